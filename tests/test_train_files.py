"""Checkpoints and logs of the Trainer.

Nothing written over unasked, what is resumed is checked, damage changes nothing.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import data, losses, nn, optim, safetensors
from ostinato.train import Callback, Checkpoint


def series(n: int = 32, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).uniform(-0.1, 0.1, (n, 12, 1)).astype(np.float32)
    return x, x.cumsum(1)


def fresh(rate: Any = 1e-2, **options: Any) -> ost.Trainer:
    model = nn.Sequential(nn.GRU(1, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=2))
    return ost.Trainer(model, losses.MSE(), optim.Adam(rate), **options)


def quiet(trainer: Any, *args: Any, **options: Any) -> Any:
    return trainer.fit(*args, progress=False, **options)


def everything(trainer: ost.Trainer) -> Any:
    """All that a refused checkpoint must leave alone."""
    state = copy.deepcopy(trainer.optimizer.state_dict())
    buffers = {k: v.tobytes() for k, v in state.pop("buffers").items()}
    return (
        trainer.model.flat.tobytes(),
        buffers,
        state,
        trainer._epochs,
        trainer.optimizer.schedule.state_dict(),
    )


# -- 8: nothing is written over --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_what_is_there_is_not_written_over(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    options: Any = {name: path}
    with pytest.raises(
        FileExistsError,
        match=rf"{name}: expected no file at .*; continue from it with resume=True, or write over",
    ):
        quiet(fresh(), series(), **options)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    quiet(fresh(), series(), overwrite=True, **options)
    assert path.read_bytes()[:8] != b"precious"
    with pytest.raises(ValueError, match="resume, overwrite: expected one of the two, got both"):
        quiet(fresh(), series(), checkpoint=path, resume=True, overwrite=True)


def test_resume_without_a_file_begins(tmp_path: Path) -> None:
    path, log = tmp_path / "run", tmp_path / "log.csv"
    for epochs in (1, 3):
        history = quiet(fresh(), series(), checkpoint=path, log=log, resume=True, epochs=epochs)
        assert len(history.rows) == epochs


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    x, target = series()
    options: Any = {"checkpoint": tmp_path / "run", "log": tmp_path / "log.csv"}
    with pytest.raises(ost.train.Diverged):
        quiet(fresh(), (x, target * np.nan), **options)
    with pytest.raises(ValueError, match="target"):
        quiet(fresh(), (x, target[..., 0]), **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a folder at"):
        quiet(fresh(), series(), checkpoint=tmp_path / "no" / "run")


# -- 6: signals, Checkpoint.load -------------------------------------------------------------------


class Send(Callback):
    def __init__(self, number: int, at: int) -> None:
        self.number, self.at = number, at

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals go to the main thread",
)


@main_thread
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
    ids=["int", "term"],
)
def test_a_signal_saves_and_puts_the_best_back(number: int, error: Any, tmp_path: Path) -> None:
    options: Any = {"validation": series(8, 1), "batch_size": 8, "epochs": 4}
    trainer = fresh(0.3, callbacks=[Send(number, 10)])
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error) as raised:
        quiet(trainer, series(), checkpoint=tmp_path / "run", **options)
    if error is SystemExit:
        assert raised.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    best = Checkpoint.load(tmp_path / "run")
    assert Checkpoint.load(tmp_path / "run", which="last").step == 10
    for name, value in trainer.model.parameters().items():
        assert np.array_equal(value, best.parameters[name])
    whole, resumed = fresh(0.3), fresh(0.3)
    quiet(whole, series(), **options)
    quiet(resumed, series(), checkpoint=tmp_path / "run", resume=True, **options)
    assert np.array_equal(resumed.model.flat, whole.model.flat)


@main_thread
def test_a_handler_of_the_program_is_called() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        history = quiet(
            fresh(callbacks=[Send(signal.SIGTERM, 3)]), series(), batch_size=8, epochs=4
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert (history.stopped, len(history.rows)) == ("interrupted", 0)


def test_a_process_that_is_terminated_goes_on(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import numpy as np
import ostinato as ost
class Kill(ost.train.Callback):
    def on_step(self, trainer, step, loss, norm):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
x = np.ones((32, 5, 1), np.float32)
model = ost.nn.Sequential(ost.nn.GRU(1, 4, batch_first=True, rng=0), ost.nn.Linear(4, 1, rng=0))
trainer = ost.Trainer(model, ost.losses.MSE(), callbacks=[Kill()])
trainer.fit((x, x), batch_size=8, epochs=2, checkpoint=sys.argv[1])
"""
    path = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert Checkpoint.load(path, which="last").step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_parameters_of_a_checkpoint_without_a_trainer(tmp_path: Path) -> None:
    path, trainer = tmp_path / "run", fresh(0.5)
    history = quiet(
        trainer,
        series(),
        validation=series(8, 1),
        epochs=6,
        checkpoint=path,
        identity={"alphabet": "abc"},
    )
    loaded = Checkpoint.load(path)
    assert loaded.history.best == history.best
    assert loaded.identity == {"alphabet": "abc"}
    assert (loaded.step, loaded.epoch) == (6, 6)
    model = fresh().model
    model.load_state_dict(loaded.parameters)
    assert np.array_equal(model.flat, trainer.model.flat)
    quiet(fresh(), series(), checkpoint=path, overwrite=True)
    with pytest.raises(
        ValueError, match=r"which: expected 'last', since the run of .* had no validation"
    ):
        Checkpoint.load(path)
    with pytest.raises(ValueError, match="which: expected one of 'best', 'last', got 'first'"):
        Checkpoint.load(path, which="first")
    with pytest.raises(TypeError, match=r"path: expected a path .*, got int"):
        Checkpoint.load(3)  # type: ignore[arg-type]


def test_a_checkpoint_says_how_many_epochs_were_done(tmp_path: Path) -> None:
    """Also where the last validation came before the end of its epoch was known."""
    path, options = tmp_path / "a", {"batch_size": 16, "validate_every": 2}
    quiet(fresh(), series(), validation=series(), checkpoint=path, **options)
    loaded = Checkpoint.load(path)
    assert (loaded.step, loaded.epoch) == (2, 1)
    more = fresh()
    quiet(more, series(), validation=series(), checkpoint=path, resume=True, epochs=2, **options)
    whole = fresh()
    quiet(whole, series(), validation=series(), epochs=2, **options)
    assert np.array_equal(more.model.flat, whole.model.flat)


@pytest.mark.parametrize("resume", [False, True])
def test_a_log_in_the_file_of_the_checkpoint_is_refused(resume: bool, tmp_path: Path) -> None:
    path, trainer = tmp_path / "a", fresh()
    if resume:
        quiet(fresh(), series(), checkpoint=path)
    (tmp_path / "b").symlink_to(path)
    before = everything(trainer), path.read_bytes() if resume else None
    for log in (path, tmp_path / "b"):
        with pytest.raises(ValueError, match="log: expected another file than that of the check"):
            quiet(trainer, series(), checkpoint=path, log=log, resume=resume, epochs=2)
    assert before == (everything(trainer), path.read_bytes() if resume else None)
    assert path.exists() == resume


@pytest.mark.parametrize("more", [3, "a", {"h": 1}, np.float32(1)], ids=str)
def test_a_state_that_no_checkpoint_holds_is_named(more: Any, tmp_path: Path) -> None:
    class Counts(nn.Model):
        stateful = True

        def __init__(self) -> None:
            self.rnn, self.head = nn.GRU(5, 4, rng=0), nn.Linear(4, 5, rng=1)

        def __call__(self, x: Any, state: Any = None) -> Any:
            rows = np.eye(5, dtype=np.float32)[x]
            y, h = self.rnn(rows, None if state is None else state[0])
            return self.head(y), [h, more]

    trainer = ost.Trainer(Counts(), losses.CrossEntropy())
    text = data.StreamLoader(np.arange(40) % 5, 2, 5)
    quiet(trainer, text)  # without a checkpoint it is the model's own affair
    words = rf"state: expected arrays, .* got {type(more).__name__}"
    with pytest.warns(UserWarning, match="checkpoint: "), pytest.raises(TypeError, match=words):
        quiet(trainer, text, checkpoint=tmp_path / "a", checkpoint_every=1)


# -- 7: what a run goes on with --------------------------------------------------------------------


def refused(
    words: str, path: Path, given: Any, trainer: ost.Trainer | None = None, **options: Any
) -> None:
    """The checkpoint is refused, and nothing has changed."""
    trainer = trainer or fresh()
    before, file = everything(trainer), path.read_bytes()
    with pytest.raises(ValueError, match=words):
        quiet(trainer, given, checkpoint=path, resume=True, **options)
    assert everything(trainer) == before
    assert path.read_bytes() == file


def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "run"
    quiet(fresh(), series(), epochs=1, checkpoint=path, identity={"alphabet": "abc", "n": 3})
    same: Any = {"epochs": 2, "identity": {"alphabet": "abc", "n": 3}}
    refused(
        r"identity\['alphabet'\]: expected 'abc', as the run of .* had it, got 'abd'",
        path,
        series(),
        epochs=2,
        identity={"alphabet": "abd", "n": 3},
    )
    refused(r"identity\['n'\]: expected 3", path, series(), epochs=2, identity={"alphabet": "abc"})
    nan: Any = {"checkpoint": tmp_path / "b", "identity": {"low": float("nan")}}
    quiet(fresh(), series(), **nan)
    quiet(fresh(), series(), epochs=2, resume=True, **nan)
    refused(
        "batch_size: expected 32, as the run of .* had it, got 8",
        path,
        series(),
        batch_size=8,
        **same,
    )
    refused("seed: expected 0, as the run of .* had it, got 1", path, series(), seed=1, **same)
    refused("accumulate: expected 1", path, series(), accumulate=2, **same)
    refused(
        "train: expected data of the kind",
        path,
        data.ArrayLoader(*series(), {"weights": np.ones(32)}, time_major=False),
        **same,
    )
    refused("train: expected data of the kind", path, [series()], **same)
    other = ost.Trainer(fresh().model, losses.MAE(), optim.Adam())
    refused(
        "expected a checkpoint of this model and optimiser, got another",
        path,
        series(),
        other,
        **same,
    )
    other = ost.Trainer(fresh().model, losses.MSE(), optim.AdamW())
    refused(
        "expected a checkpoint of this model and optimiser, got another",
        path,
        series(),
        other,
        **same,
    )
    trainer = fresh()
    with pytest.warns(UserWarning, match="train: other data than the checkpoint's run began with"):
        quiet(trainer, series(seed=5), checkpoint=path, resume=True, **same)
    with pytest.raises(TypeError, match="identity: expected facts that JSON can hold"):
        quiet(fresh(), series(), identity={"a": object()})


def test_the_best_on_another_validation_set_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "run"
    plateau = lambda: optim.ReduceOnPlateau(1e-3, patience=0)
    x, _ = series(8)
    easy = x, np.zeros_like(x) + fresh().predict(x)
    history = quiet(fresh(plateau()), series(), validation=easy, epochs=2, checkpoint=path)
    assert history.best is not None
    assert history.best["valid_loss"] < 1e-4
    trainer = fresh(plateau())
    with pytest.warns(
        UserWarning, match="validation: another set or monitor than that of the checkpoint"
    ):
        history = quiet(
            trainer, series(), validation=series(8, 3), epochs=4, checkpoint=path, resume=True
        )
    assert history.best is not None
    assert history.best["step"] in (3, 4)
    assert trainer.evaluate(series(8, 3))["loss"] == pytest.approx(history.best["valid_loss"])
    assert Checkpoint.load(path).history.best == history.best


def test_an_older_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    safetensors.save(
        path, {"model.w": np.zeros(3, np.float32)}, {"ostinato": json.dumps({"at": {}, "rows": []})}
    )
    refused("expected a checkpoint of format 2, got one of an older version", path, series())
    safetensors.save(
        path, {"model.w": np.zeros(3, np.float32)}, {"ostinato": json.dumps({"format": 9})}
    )
    refused("expected a checkpoint of format 2, got 9, of a newer version", path, series())


# -- 4.1, 4.2: damaged files -----------------------------------------------------------------------


def _mutations(meta: Any, path: tuple[Any, ...] = ()) -> Any:
    """Every place in the metadata, with something else in it, or without it."""
    values = [
        None,
        -1,
        10**30,
        float("nan"),
        float("inf"),
        "x",
        [],
        {},
        [[[]]],
        True,
        {"__array__": [], "dtype": "S20000000"},
    ]
    for value in values:
        yield path, value
    if isinstance(meta, dict):
        for name in meta:
            yield (*path, name), KeyError
            yield from _mutations(meta[name], (*path, name))
    elif isinstance(meta, list):
        for k in range(len(meta)):
            yield from _mutations(meta[k], (*path, k))


def _mutated(meta: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    meta = copy.deepcopy(meta)
    inner = meta
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return meta


def stream() -> tuple[Any, Any]:
    loader = data.StreamLoader(np.random.default_rng(0).integers(0, 5, 100), 4, 6)
    model = nn.Sequential(nn.Embedding(5, 3, rng=0), nn.LSTM(3, 4, rng=0), nn.Linear(4, 5, rng=0))
    rate = optim.ReduceOnPlateau(0.01)
    return ost.Trainer(model, losses.CrossEntropy(), optim.Adam(rate), tbptt=(2, 4)), loader


@pytest.mark.filterwarnings("ignore:validation. another", "ignore:train. other data")
def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer, loader = stream()
    quiet(trainer, loader, validation=loader, steps=5, validate_every=4, checkpoint=path)
    tensors, text = safetensors.load(path)
    meta = json.loads(text["ostinato"])
    loaded = set()
    for place, value in _mutations(meta):
        if _mutated(meta, place, value) == meta:
            continue
        safetensors.save(path, tensors, {"ostinato": json.dumps(_mutated(meta, place, value))})
        trainer, loader = stream()
        before = everything(trainer)
        try:
            quiet(trainer, loader, validation=loader, steps=5, checkpoint=path, resume=True)
            inner = place[0] in ("at", "data", "settings")
            loaded.add((place[0], place[1] if inner else ""))
        except ValueError:
            assert everything(trainer) == before, (place, value)
    # What may be another number: figures of the past, and what tells data from other data.
    sums = {
        ("at", n)
        for n in (
            "loss_sum",
            "loss_count",
            "norm",
            "best",
            "mark",
            "seconds",
            "epoch",
            "first_epoch",
            "bad",
        )
    }
    assert loaded <= {
        *sums,
        ("rows", ""),
        ("best", ""),
        ("validation", ""),
        ("data", "content"),
        ("optimizer", ""),
        ("settings", "functions"),  # which checkpoints of earlier versions do not have
    }
    for name in tensors:
        for change in (
            None,
            tensors[name][..., :0],
            tensors[name].astype(np.float64),
            tensors[name] * np.nan,
        ):
            other = {**tensors, name: change}
            if change is None:
                del other[name]
            safetensors.save(path, other, text)
            trainer, loader = stream()
            if (
                name.startswith(("optimizer", "state", "walk"))
                and change is not None
                and change.shape == tensors[name].shape
                and change.dtype == np.float32
            ):
                continue  # a number that is not one in there is seen by the first step
            refused("expected a checkpoint", path, loader, trainer, validation=loader, steps=5)


# -- 4.4: the log ----------------------------------------------------------------------------------


def test_the_log_agrees_with_the_checkpoint(tmp_path: Path) -> None:
    """After a kill a row may be there that the checkpoint does not know, after a full disk half of
    one.
    """
    path, log, options = tmp_path / "run", tmp_path / "log.csv", {"validation": series(8)}
    quiet(fresh(), series(), epochs=2, checkpoint=path, log=log, **options)
    good, run = log.read_text(), path.read_bytes()
    rows = good.splitlines(keepends=True)
    for damaged in (
        good + rows[-1],
        good + rows[-1][:20],
        good + rows[-1].replace("2", "3", 1),
        rows[0] + rows[1],
        rows[0][:9],
        None,
    ):
        path.write_bytes(run)
        log.unlink()
        if damaged is not None:
            log.write_text(damaged, newline="")
        quiet(fresh(), series(), epochs=3, checkpoint=path, log=log, resume=True, **options)
        with log.open(newline="") as f:
            found = list(csv.DictReader(f))
        assert [r["step"] for r in found] == ["1", "2", "3"]
        assert log.read_text().startswith(good)


def test_a_log_of_another_run_is_refused(tmp_path: Path) -> None:
    path, log = tmp_path / "run", tmp_path / "log.csv"
    quiet(fresh(), series(), epochs=2, checkpoint=path, log=log)
    before = log.read_bytes()
    refused(
        "log: expected the columns step, epoch, loss, rate, norm, seconds, as the checkpoint has "
        "them",
        path,
        series(),
        epochs=3,
        log=log,
        validation=series(8),
    )
    assert log.read_bytes() == before
    log.write_text("mine\n1\n")
    refused("log: expected the columns step, epoch", path, series(), epochs=3, log=log)
    assert log.read_text() == "mine\n1\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    from ostinato.train._log import Log

    log = Log(tmp_path / "log.csv")
    log.write({"step": 1})
    log.path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        log.write({"step": 2})


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_files_of_a_run_have_paths(name: str) -> None:
    trainer = ost.train.Trainer(ost.nn.Linear(2, 1, rng=0), ost.losses.MSE(), ost.optim.SGD(0.1))
    x = np.ones((4, 1, 2), np.float32)
    with pytest.raises(TypeError, match=f"{name}: expected a path .str or os.PathLike., got int"):
        trainer.fit(x, x[..., :1], **{name: 3})
