"""Transfer: layer groups, rates of their own, gradual unfreezing, new heads, and the command."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato.cli import main
from ostinato.tasks import transcribe, transfer
from ostinato.tasks._application import load
from ostinato.tasks._recognizer import Recognizer
from ostinato.tasks.text import CharModel


def stack() -> ost.nn.Sequential:
    return ost.nn.Sequential(
        rnn=ost.nn.GRU(2, 3, 2, bidirectional=True, batch_first=True, rng=0),
        drop=ost.nn.Dropout(0.1),
        head=ost.nn.Linear(6, 1, rng=1),
    )


class Own(ost.nn.Model):
    """A model whose layers are attributes, one with a name that a pattern would not match."""

    def __init__(self) -> None:
        self.blocks = {"[a]": ost.nn.Linear(2, 3, rng=0)}
        self.head = ost.nn.Linear(3, 1, rng=1)

    def __call__(self, x: Any) -> Any:
        return self.head(np.tanh(self.blocks["[a]"](x)))


DATA = np.random.default_rng(0).normal(size=(8, 4, 2)).astype(np.float32)
TARGET = DATA.sum(2, keepdims=True)


def changed(model: ost.nn.Layer, before: dict[str, np.ndarray]) -> set[str]:
    return {
        n.rpartition(".")[0] + n[-3:] * ("_l" in n)
        for n, a in model.state_dict().items()
        if (a != before[n]).any()
    }


# -- groups and rates ------------------------------------------------------------------------------


def test_layers_of_a_stack_are_groups() -> None:
    groups = ost.nn.layer_groups(stack())
    assert [len(g) for g in groups] == [8, 8, 2]
    assert all("_l0" in n for n in groups[0])
    assert all("_l1" in n for n in groups[1])
    assert sorted(n for g in groups for n in g) == sorted(stack().parameters())
    assert ost.nn.layer_groups(ost.nn.Linear(2, 1)) == [["weight", "bias"]]
    with pytest.raises(TypeError, match="model: expected a Layer"):
        ost.nn.layer_groups("model")  # type: ignore[arg-type]


def test_lower_layers_learn_more_slowly() -> None:
    model = stack()
    optimizer = ost.optim.SGD(1.0, groups=ost.optim.discriminative(model, 2.0))
    model._writable_grads().flat[...] = 1
    before = model.state_dict()
    optimizer.step(model)
    moved = {
        n: set((before[n] - a).round(5).ravel().tolist()) for n, a in model.state_dict().items()
    }
    assert {n: v for n, v in moved.items() if v != {1.0}}.keys() == {
        n for n in moved if n.startswith("rnn")
    }
    assert all(v == ({0.5} if "_l1" in n else {0.25}) for n, v in moved.items() if "rnn" in n)


def test_names_are_no_patterns() -> None:
    model = Own()
    groups = ost.optim.discriminative(model, 4.0)
    optimizer = ost.optim.SGD(1.0, groups=groups)
    optimizer.check_groups(model)
    model._writable_grads().flat[...] = 1
    before = model.state_dict()
    optimizer.step(model)
    name = "blocks.[a].bias"
    assert np.allclose(before[name] - model.state_dict()[name], 0.25)


@pytest.mark.parametrize("factor", [0, -1.0, 1e-3, float("nan"), float("inf")])
def test_bad_factors(factor: float) -> None:
    with pytest.raises(ValueError, match="factor: expected"):
        ost.optim.discriminative(stack(), factor)


# -- gradual unfreezing ----------------------------------------------------------------------------


def fit(model: ost.nn.Layer, callback: ost.train.Callback, steps: int, **options: Any) -> Any:
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), callbacks=[callback])
    return trainer.fit((DATA, TARGET), epochs=steps, steps=steps, progress=False, **options)


@pytest.mark.parametrize(
    ("steps", "layers"), [(3, {"head"}), (4, {"head", "rnn_l1"}), (7, {"head", "rnn_l1", "rnn_l0"})]
)
def test_one_more_layer_after_every_so_many_steps(steps: int, layers: set[str]) -> None:
    model = stack()
    before = model.state_dict()
    fit(model, ost.train.GradualUnfreezing(3), steps)
    moved = changed(model, before)
    assert {m.replace("rse", "") for m in moved if "_l" in m or m == "head"} >= layers - {"head"}
    assert ("rnn_l1" in moved) == ("rnn_l1" in layers)
    assert ("rnn_l0" in moved) == ("rnn_l0" in layers)
    # All are trained again afterwards.
    assert model.count_parameters(trainable_only=True) == model.count_parameters()


def test_what_was_frozen_stays_frozen() -> None:
    model = stack()
    model.freeze("rnn.*_l0*")
    before = model.state_dict()
    fit(model, ost.train.GradualUnfreezing(1), 5)
    assert "rnn_l0" not in changed(model, before)
    assert "rnn_l1" in changed(model, before)
    assert model.count_parameters(trainable_only=True) < model.count_parameters()


def test_groups_by_patterns() -> None:
    model = stack()
    before = model.state_dict()
    callback = ost.train.GradualUnfreezing(2, [["rnn.*_l0*", "head.bias"], "rnn.*"])
    fit(model, callback, 2)
    moved = {n for n, a in model.state_dict().items() if (a != before[n]).any()}
    assert {"head.weight", "head.bias", "rnn.weight_hh_l0"} <= moved  # one is in no group
    assert not any("_l1" in n for n in moved)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("head.*", TypeError, "groups: expected a list"),
        ([["head.*", 3]], TypeError, r"groups\[0\]\[\.\.\.\]: expected a pattern of names, got 3"),
        ([], ValueError, "groups: expected at least one"),
    ],
    ids=["text", "number", "empty"],
)
def test_bad_groups(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ost.train.GradualUnfreezing(1, groups)


def test_a_pattern_that_matches_nothing_changes_nothing() -> None:
    model = stack()
    with pytest.raises(KeyError, match="nowhere"):
        fit(model, ost.train.GradualUnfreezing(1, ["head.*", "nowhere.*"]), 2)
    assert model.count_parameters(trainable_only=True) == model.count_parameters()
    with pytest.raises(ValueError, match="every: expected"):
        ost.train.GradualUnfreezing(0)


def test_an_error_unfreezes_all() -> None:
    class Broken(ost.train.Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            raise RuntimeError("broken")

    model = stack()
    callbacks = [ost.train.GradualUnfreezing(50), Broken()]
    trainer = ost.Trainer(model, ost.losses.MSE(), callbacks=callbacks)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit((DATA, TARGET), progress=False)
    assert model.count_parameters(trainable_only=True) == model.count_parameters()


def test_a_resumed_run_is_that_of_one_piece(tmp_path: Path) -> None:
    whole, halves, path = stack(), stack(), tmp_path / "c.safetensors"
    fit(whole, ost.train.GradualUnfreezing(2), 6)
    fit(halves, ost.train.GradualUnfreezing(2), 3, checkpoint=path)
    resumed = stack()
    fit(resumed, ost.train.GradualUnfreezing(2), 6, checkpoint=path, resume=True)
    assert np.array_equal(resumed.flat, whole.flat)


# -- new heads -------------------------------------------------------------------------------------


def test_a_new_head_of_a_sequential() -> None:
    model = stack()
    model.freeze("rnn.*")
    other = model.replaced("head", ost.nn.Linear(6, 4, rng=2))
    assert other(DATA)[0].shape == (8, 4, 4)
    assert np.array_equal(other["rnn"](DATA)[0], model["rnn"](DATA)[0])
    assert other.count_parameters(trainable_only=True) == 28
    before = other.state_dict()
    fit_target = np.zeros((8, 4, 4), np.float32)
    ost.Trainer(other, ost.losses.MSE()).fit((DATA, fit_target), progress=False)
    assert changed(other, before) == {"head"}
    assert model(DATA)[0].shape == (8, 4, 1)  # as it was
    assert np.array_equal(model.flat, stack().flat)


def test_a_new_head_is_saved(tmp_path: Path) -> None:
    for model in (stack(), ost.nn.Sequential(*(ost.nn.Linear(2, 2), ost.nn.Linear(2, 1)))):
        inputs = model.layers[-1].parameters()["weight"].shape[1]
        other = model.replaced(-1, ost.nn.Linear(inputs, 3, rng=0))
        other.save(tmp_path / "m.safetensors")
        again = ost.load(tmp_path / "m.safetensors")
        assert again._names == other._names == model._names
        assert np.array_equal(again.flat, other.flat)


def test_heads_that_do_not_fit() -> None:
    model = stack()
    with pytest.raises(KeyError, match="tail"):
        model.replaced("tail", ost.nn.Linear(6, 4))
    with pytest.raises(IndexError):
        model.replaced(7, ost.nn.Linear(6, 4))
    with pytest.raises(TypeError, match="layers: expected layers"):
        model.replaced("head", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without an owner"):
        model.replaced("head", model["head"])


# -- fewer outputs than steps ----------------------------------------------------------------------


class Strided(ost.nn.Model):
    """A model that gives fewer outputs than steps, and says how many."""

    def __init__(self) -> None:
        self.conv = ost.nn.Conv1d(2, 4, 3, stride=2, batch_first=True, rng=0)
        self.head = ost.nn.Linear(4, 3, rng=1)

    def output_lengths(self, lengths: Any) -> Any:
        return self.conv.output_lengths(lengths)

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        return self.head(self.conv(x, lengths=lengths))


@pytest.mark.parametrize("own", [True, False], ids=["Model", "Sequential"])
def test_the_loss_is_given_the_lengths_of_the_outputs(own: bool) -> None:
    """Padded batches give what sequences without padding give."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 2)).astype(np.float32) for n in (9, 4, 7)]
    labels = [np.array([1, 2]), np.array([2]), np.array([1, 1])]
    model: Any = Strided()
    if not own:
        model = ost.nn.Sequential(
            conv=ost.nn.Conv1d(2, 4, 3, stride=2, batch_first=True, rng=0),
            head=ost.nn.Linear(4, 3, rng=1),
        )
    trainer = ost.Trainer(model, ost.losses.CTC(), metrics=["label_error_rate"])
    padded = np.full((3, 9, 2), np.nan, np.float32)
    for b, row in enumerate(x):
        padded[b, : len(row)] = row
    found = trainer.evaluate([(padded, labels, np.array([9, 4, 7]))])
    y = [model.head(model.conv(row[None])) if own else model(row[None])[0] for row in x]
    loss = ost.losses.CTC(batch_first=True)
    wanted = np.mean([loss(a, [t])[0] for a, t in zip(y, labels)])
    assert np.isclose(found["loss"], wanted, rtol=1e-5)


def test_predict_gives_as_many_outputs_as_there_are() -> None:
    conv = ost.nn.Conv1d(2, 4, 3, stride=2, batch_first=True, rng=0)
    trainer = ost.Trainer(ost.nn.Sequential(conv=conv), ost.losses.MSE())
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 2)).astype(np.float32) for n in (9, 4, 7)]
    y = trainer.predict(x, batch_size=2)
    assert [len(a) for a in y] == [5, 2, 4]
    assert all(np.array_equal(a, conv(b[None])[0]) for a, b in zip(y, x))


# -- the command -----------------------------------------------------------------------------------

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "so", "did", "that", "rat"]


def some_text(seed: int, words: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[k] for k in rng.integers(0, len(WORDS), words)) + "."


def train_source(folder: Path) -> None:
    file = folder / "source.txt"
    file.write_text(some_text(0, 4000))
    code = main(
        [
            "train",
            "text",
            str(file),
            "--steps",
            "150",
            "--hidden",
            "24",
            "--save",
            str(folder / "source"),
            "--json",
        ]
    )
    assert code == 0


def test_the_command_with_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_source(tmp_path)
    (tmp_path / "target.txt").write_text(some_text(1, 3000).replace("cat", "Cow"))
    capsys.readouterr()
    arguments = [
        "train",
        "transfer",
        str(tmp_path / "target.txt"),
        "--source",
        str(tmp_path / "source"),
        "--steps",
        "60",
        "--part",
        "0.2",
        "--json",
    ]
    assert main([*arguments, "--save", str(tmp_path / "new")]) == 0
    out = capsys.readouterr()
    figures = json.loads(out.out)
    assert figures["better"] > 0.1
    assert figures["steps_share"] <= 0.7
    assert figures["transfer"] < figures["scratch"]
    assert figures["scratch_course"][-1][0] == 60
    assert "now: python -m ostinato generate" in out.err
    model = CharModel.load(tmp_path / "new")
    assert {"C", "w"} <= set(model.alphabet)  # which the source has not seen
    source = CharModel.load(tmp_path / "source").model.state_dict()
    assert source["1.weight_hh_l0"].shape == model.model.parameters()["1.weight_hh_l0"].shape


def test_shared_characters_keep_their_rows(tmp_path: Path) -> None:
    train_source(tmp_path)
    source = CharModel.load(tmp_path / "source")
    alphabet = "".join(sorted({*source.alphabet, "Z"}))
    made = transfer._adapted(source, alphabet)
    text = "the cat"
    ours, theirs = (m.model(m.encode(text)[:, None])[0] for m in (made, source))
    places = [made.index[c] for c in source.alphabet]
    assert np.array_equal(ours[..., places], theirs)


def test_the_command_with_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tones of five letters, then of two of them and a new one."""
    rng = np.random.default_rng(0)
    tones = {"a": 350, "b": 600, "c": 1000, "d": 1600, "e": 2500, "z": 3200}

    def clips(name: str, letters: str, count: int) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for k in range(count):
            text = "".join(rng.choice(list(letters), rng.integers(2, 5)))
            t = np.arange(960) / 8000
            parts = [
                np.r_[np.sin(2 * np.pi * tones[c] * t) * np.hanning(960), np.zeros(320)]
                for c in text
            ]
            x = 0.3 * np.concatenate(parts) + 0.001 * rng.normal(size=1280 * len(text))
            with wave.open(str(folder / f"{k}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((x * 32767).astype("<i2").tobytes())
            lines.append(f"{k}: {text}")
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        return [str(folder), str(tmp_path / f"{name}.txt")]

    source, new = str(tmp_path / "source"), str(tmp_path / "new")
    small = ["--hidden", "24", "--layers", "1", "--batch", "4", "--rate", "0.02", "--dropout", "0"]
    first = clips("first", "abcde", 40)
    assert main(["train", "transcribe", *first, *small, "--epochs", "20", "--save", source]) == 0
    capsys.readouterr()
    second = clips("second", "adz", 50)
    arguments = ["--source", source, "--part", "0.3", "--steps", "40", "--rate", "0.02"]
    arguments += ["--unfreeze", "5", "--json"]
    assert main(["train", "transfer", *second, *arguments, "--save", new]) == 0
    out = capsys.readouterr()
    figures = json.loads(out.out)
    assert figures["unit"] == "character error rate"
    assert figures["transfer_valid_loss"] < figures["scratch_course"][0][1]
    assert figures["steps_share"] is not None
    assert figures["steps_share"] <= 0.7
    assert f"predict {new} INPUT" in out.err
    saved, before = Recognizer.load(new), Recognizer.load(source)
    assert "z" in saved.alphabet
    assert set(before.alphabet) <= set(saved.alphabet)
    # What chose the parameters counts as trained on: evaluate leaves it out.
    sounds = transcribe.read(second, saved.options, lambda line: None)
    parts = transfer._parts(sounds, saved.options)
    assert set(saved.trained) == {c.key for part in parts[:2] for c in part}
    assert len(parts[1]) > 0
    # What both know is there from the first step on.
    start = transfer._transferred(
        before, Recognizer(saved.options, saved.alphabet, saved.mean, saved.scale)
    )
    x = [np.random.default_rng(1).normal(size=(30, 40)).astype(np.float32)]
    places = [0, *start.labels(before.alphabet)]
    assert np.array_equal(start.logits(x)[0][:, places], before.logits(x)[0])


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("short")

    def error(*arguments: str) -> str:
        assert main(["train", "transfer", *arguments]) == 2
        return capsys.readouterr().err

    assert "expected a folder with model.safetensors" in error("--source", str(tmp_path / "no"))
    assert "DATA: expected none without --source" in error(str(tmp_path / "t.txt"))
    assert "--part: expected a number above 0 and at most 1" in error("--part", "1.5")
    assert "--factor: expected a number of at least 1" in error("--factor", "0.5")
    nowhere = error("--source", str(tmp_path / "no"))
    assert nowhere.startswith("ostinato: --source: expected a folder with model.safetensors")
    for option in (["--play", "nosuch"], ["--source-steps", "3"], ["--hidden", "5"]):
        line = error("--source", str(tmp_path / "no"), *option)
        assert f"{option[0]}: expected none with --source, got {option[1]}" in line.replace("'", "")
    for option in (["--digits", "en"], ["--strip-accents"]):
        assert f"{option[0]}: expected none without a model of train transcribe" in error(*option)
    ost.safetensors.save(tmp_path / "model.safetensors", {}, {"ostinato": '{"task": "series"}'})
    assert "--source: expected a model of train text or" in error("--source", str(tmp_path))


def test_what_transfer_saves_is_read_by_other_commands() -> None:
    application = load("transfer")
    assert application.predict is None
    assert application.evaluate is None


def test_courses() -> None:
    never = transfer.compare(transfer.Course([(0, 1.0)]), transfer.Course([(0, 2.0), (5, 1.5)]))
    assert never["steps_share"] is None
    assert never["loss_lower"] == -0.5
