"""The search for settings: equal for equal seeds, pruned, with a table and a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost

pytest.importorskip("optuna", reason="pip install 'ostinato[search]'")

X = np.random.default_rng(0).normal(size=(48, 6, 2)).astype(np.float32)
DATA = (X, X.sum(2, keepdims=True))


def build(size: int = 4, lr: float = 1e-2, kind: str = "GRU") -> ost.Trainer:
    rnn = getattr(ost.nn, kind)(2, size, batch_first=True, rng=0)
    model = ost.nn.Sequential(rnn, ost.nn.Linear(size, 1, rng=1))
    return ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(lr))


SPACE = {"size": (3, 8), "lr": (1e-4, 1e-1, "log"), "kind": ["GRU", "RNN"]}


def test_a_search_and_its_seed(tmp_path: Path) -> None:
    first, second = (
        ost.search(build, SPACE, DATA, validation=DATA, trials=6, epochs=2, seed=3)
        for _ in range(2)
    )
    assert first.trials == second.trials
    assert repr(first) == repr(second)
    assert (
        ost.search(build, SPACE, DATA, validation=DATA, trials=1, epochs=1, seed=4).trials[0]
        != first.trials[0]
    )
    large = ost.search(build, SPACE, DATA, validation=DATA, trials=1, epochs=1, seed=2**100)
    assert large.trials[0] != first.trials[0]
    assert [t.number for t in first.trials] == list(range(6))
    for t in first.trials:
        assert 3 <= t.settings["size"] <= 8
        assert isinstance(t.settings["size"], int)
        assert 1e-4 <= t.settings["lr"] <= 1e-1
        assert t.settings["kind"] in ("GRU", "RNN")
    assert first.best.value == min(t.value for t in first.trials)
    assert first.trainer.evaluate(DATA)["loss"] == pytest.approx(first.best.value)
    lines = str(first).splitlines()
    assert lines[0].split() == ["trial", "valid_loss", "state", "steps", "size", "lr", "kind"]
    assert lines[1].split()[0] == str(first.best.number)
    assert len(lines) == 7
    figure = first.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    assert [a.get_xlabel() for a in figure.axes] == ["size", "lr", "kind"]


def test_bad_trials_are_ended_early() -> None:
    space = {"lr": [3e-2, 1e-7]}  # of which the second learns nothing
    result = ost.search(build, space, DATA, validation=DATA, trials=16, epochs=4)
    pruned = [t for t in result.trials if t.state == "pruned"]
    assert pruned
    assert all(t.settings["lr"] == 1e-7 and t.step < 8 for t in pruned)
    assert result.best.settings["lr"] == 3e-2
    whole = ost.search(build, space, DATA, validation=DATA, trials=16, epochs=4, prune=False)
    assert all((t.state, t.step) == ("complete", 8) for t in whole.trials)


def test_a_figure_of_which_more_is_better() -> None:
    target = (X[:, :, :1] > 0).astype(np.float32)

    def classifier(lr: float) -> ost.Trainer:
        trainer = build(lr=lr)
        return ost.Trainer(
            trainer.model, ost.losses.BinaryCrossEntropy(), ost.optim.Adam(lr), metrics=["accuracy"]
        )

    space = {"lr": [1e-7, 5e-2]}
    result = ost.search(
        classifier,
        space,
        (X, target),
        validation=(X, target),
        trials=6,
        epochs=5,
        monitor="valid_accuracy",
    )
    assert result.best.value == max(t.value for t in result.trials)
    assert result.best.settings == {"lr": 5e-2}


def test_trials_that_diverge() -> None:
    huge = {"lr": [1e30, 1e-2]}
    result = ost.search(build, huge, DATA, validation=DATA, trials=6, epochs=3)
    assert {t.state for t in result.trials if t.settings["lr"] == 1e30} == {"diverged"}
    assert result.best.settings["lr"] == 1e-2

    def broken(lr: float) -> ost.Trainer:
        trainer = build()
        with trainer.model.write() as p:
            p["1.bias"][...] = np.nan
        return trainer

    with pytest.raises(
        RuntimeError, match="search: expected a trial that does not diverge, got 2 that did"
    ):
        ost.search(broken, {"lr": (0.1, 1.0)}, DATA, validation=DATA, trials=2, epochs=1)


def test_whole_numbers_of_numpy_are_whole() -> None:
    space = {"size": (np.int64(3), np.int32(8))}
    found = ost.search(build, space, DATA, validation=DATA, trials=3, epochs=1)
    plain = ost.search(build, {"size": (3, 8)}, DATA, validation=DATA, trials=3, epochs=1)
    assert found.trials == plain.trials
    assert all(type(t.settings["size"]) is int for t in found.trials)


def test_a_picture_of_choices_of_several_types(tmp_path: Path) -> None:
    choices = [0.5, None, "auto"]
    trials = [
        ost.train.Trial(k, {"clip": c, "lr": 0.1 * (k + 1)}, 1.0 + k, "complete", 1)
        for k, c in enumerate(choices)
    ]
    figure = ost.train.SearchResult(trials, trials[0], "valid_loss", None).plot(tmp_path / "a.png")
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names == ["0.5", "None", "auto"]
    assert figure.axes[1].get_xscale() == "linear"


def test_what_is_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(build: Any = build, space: Any = SPACE, **options: Any) -> Any:
        return ost.search(
            build, space, DATA, validation=DATA, **{"trials": 1, "epochs": 1, **options}
        )

    with pytest.raises(TypeError, match="space: expected a dict of names to ranges, got list"):
        run(space=[1])
    with pytest.raises(TypeError, match="space: expected names of arguments of build, got 3"):
        run(space={3: (1, 2)})
    for given in (3, (1,), (1, 2, "linear"), [], ("a", 2)):
        with pytest.raises(TypeError, match=r"space\['lr'\]: expected \(low, high\)"):
            run(space={"lr": given})
    for given in ((2, 1), (0.0, 1.0, "log")):
        with pytest.raises(ValueError, match=r"space\['lr'\]: expected low < high"):
            run(space={"lr": given})
    with pytest.raises(TypeError, match="build: expected a function, got int"):
        run(build=3)
    with pytest.raises(TypeError, match="build: expected it to return a Trainer, got dict"):
        run(build=lambda **settings: settings)
    with pytest.raises(ValueError, match="monitor: expected one of 'valid_loss'"):
        run(monitor="valid_f1")
    with pytest.raises(TypeError, match="checkpoint: expected no such argument of fit"):
        run(checkpoint="a")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"search needs Optuna: pip install 'ostinato\[search\]'"):
        run()
