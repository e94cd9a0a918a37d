"""The Trainer: fitting, validation, early stopping, resuming to the same bits, signals, logs."""

from __future__ import annotations

import csv
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import data, losses, nn, optim
from ostinato.train import Callback, Diverged


def series(n: int = 64, steps: int = 12, dtype: Any = np.float32) -> Any:
    x = np.random.default_rng(0).uniform(-0.1, 0.1, (n, steps, 1)).astype(dtype)
    return x, x.cumsum(1)


def regressor(rate: Any = 1e-2, **options: Any) -> ost.Trainer:
    model = nn.Sequential(
        nn.LSTM(1, 8, num_layers=2, dropout=0.2, batch_first=True, rng=0),
        nn.Dropout(0.1, rng=1),
        nn.Linear(8, 1, rng=2),
    )
    return ost.Trainer(model, losses.MSE(), optim.Adam(rate), clip_norm=1.0, **options)


def quiet(trainer: Any, *args: Any, **options: Any) -> Any:
    return trainer.fit(*args, progress=False, **options)


def test_it_learns() -> None:
    trainer = regressor()
    history = quiet(trainer, series(256), validation=series(64), epochs=30)
    assert history.rows[-1]["valid_loss"] < 0.3 * history.rows[0]["valid_loss"]
    assert history.stopped == "all epochs done"
    assert history.column("step") == [8.0 * k for k in range(1, 31)]
    assert history.best is not None
    assert trainer.evaluate(series(64))["loss"] == pytest.approx(history.best["valid_loss"])
    y = trainer.predict(series(10)[0])
    assert y.shape == (10, 12, 1)
    assert ((y - series(10)[1]) ** 2).mean() == pytest.approx(
        trainer.evaluate(series(10))["loss"], rel=1e-4
    )


def test_last_outputs_lengths_metrics_and_batch_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 9, 2)).astype(np.float32)
    lengths = rng.integers(1, 10, 200)
    target = np.array([int(x[b, n - 1, 0] > 0) for b, n in enumerate(lengths)])

    def accuracy(y: Any, t: Any, lens: Any) -> tuple[float, int]:
        return float((y.argmax(-1) == t).sum()), len(t)

    ends = []
    for batch_first in (False, True):
        model = nn.Sequential(nn.GRU(2, 8, batch_first=batch_first, rng=0), nn.Linear(8, 2, rng=0))
        trainer = ost.Trainer(
            model,
            losses.CrossEntropy(),
            optim.Adam(0.02),
            outputs="last",
            metrics={"accuracy": accuracy},
        )
        whole = (x, target, lengths)
        batches = data.ArrayLoader(x, target, lengths, outputs="last", time_major=not batch_first)
        quiet(trainer, batches, validation=whole if batch_first else batches, epochs=12)
        assert trainer.evaluate(batches)["accuracy"] > 0.9
        if batch_first:
            assert trainer.predict(x, lengths=lengths).shape == (200, 2)
        ends.append(model.flat.copy())
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="expected at least 1 everywhere"):
        quiet(trainer, (x, target, lengths * 0))


def test_lengths_reach_the_loss() -> None:
    x, target = series(32)
    lengths = np.full(32, 5)
    target = target.copy()
    target[:, 5:] = np.nan
    history = quiet(regressor(), (x, target, lengths), epochs=2)
    assert np.isfinite(history.rows[-1]["loss"])
    model = nn.Sequential(nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="loss: expected batch_first=True"):
        quiet(
            ost.Trainer(model, losses.MSE(batch_first=False), optim.SGD(0.1)), (x, target, lengths)
        )
    for loss in (
        losses.MSE(),
        losses.MSE(batch_first=True),
    ):  # what the model has said need not be said again
        assert np.isfinite(
            quiet(ost.Trainer(model, loss, optim.SGD(0.1)), (x, target, lengths)).rows[0]["loss"]
        )


def test_dtype_is_converted_once_and_it_says_so() -> None:
    with pytest.warns(UserWarning, match="x: converted once from float64 to float32"):
        quiet(regressor(), series(16, dtype=np.float64))


def test_early_stopping_restores_the_best() -> None:
    seen: list[Any] = []

    class Keep(Callback):
        def on_row(self, trainer: Any, row: Any) -> None:
            seen.append((row["valid_loss"], trainer.model.flat.copy()))

    trainer = regressor(rate=0.5, callbacks=[Keep()])
    history = quiet(trainer, series(), validation=series(32), epochs=200, patience=3)
    assert history.stopped == "no better loss within patience"
    losses_seen = [value for value, _ in seen]
    best = int(np.argmin(losses_seen))
    assert len(seen) == best + 4
    assert np.array_equal(trainer.model.flat, seen[best][1])


def test_an_early_stopped_run_stays_stopped(tmp_path: Any) -> None:
    options: dict[str, Any] = {
        "validation": series(32),
        "epochs": 200,
        "patience": 2,
        "checkpoint": tmp_path / "run",
    }
    first = regressor(rate=0.5)
    rows = len(quiet(first, series(), **options).rows)
    again = regressor(rate=0.5)
    history = quiet(again, series(), resume=True, **options)
    assert (len(history.rows), history.stopped) == (rows, "no better loss within patience")
    assert np.array_equal(again.model.flat, first.model.flat)  # the best, restored


def test_fitting_again_goes_on_with_other_orders() -> None:
    class Order(data.ArrayLoader):
        seen: list[int] = []  # noqa: RUF012  # of all instances

        def batches(self, epoch: int, start: int = 0) -> Any:
            self.seen.append(epoch)
            return super().batches(epoch, start)

    trainer = regressor()
    for _ in range(2):
        quiet(trainer, Order(*series(), time_major=False), epochs=2)
    assert Order.seen == [0, 1, 2, 3]


def test_steps_after_the_last_row_make_one_too() -> None:
    history = quiet(regressor(), series(), validation=series(8), steps=3)  # an epoch has two
    assert [r["step"] for r in history.rows] == [2, 3]
    assert history.best is not None


@pytest.mark.parametrize(
    "bits", [np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM]
)
def test_any_generator_can_be_kept(bits: Any, tmp_path: Any) -> None:
    ends = []
    for cuts in ((4,), (2, 4)):
        model = nn.Sequential(
            nn.Dropout(0.3, rng=np.random.Generator(bits(3))), nn.Linear(1, 1, rng=0)
        )
        for steps in cuts:
            trainer = ost.Trainer(model, losses.MSE(), optim.SGD(0.1))
            quiet(
                trainer,
                series(),
                steps=steps,
                checkpoint=tmp_path / str(cuts),
                resume=steps == 4 and len(cuts) > 1,
            )
        ends.append(model.flat.copy())
    assert np.array_equal(*ends)


def test_a_validation_that_says_nothing_is_an_error() -> None:
    batches = [(x, t) for x, t in [series(8)]]
    with pytest.raises(ValueError, match="data: expected at least one batch, got none"):
        quiet(regressor(), series(), validation=(b for b in batches), epochs=3)
    x, target = series(8)
    with pytest.raises(Diverged, match="the validation loss is nan after step 2"):
        quiet(regressor(), series(), validation=(x, target * np.nan), epochs=3)


def test_parameters_that_explode_are_not_kept(tmp_path: Any) -> None:
    """The step that breaks the model is seen before its checkpoint is written."""
    path = tmp_path / "run"
    trainer = ost.Trainer(
        nn.Sequential(nn.Linear(1, 1, rng=0)),
        losses.MSE(),
        optim.SGD(optim.StepDecay(0.1, every=3, factor=1e37)),
    )
    with pytest.raises(Diverged, match="after step 4; the last good checkpoint is"):
        quiet(trainer, series(), epochs=9, checkpoint=path, checkpoint_every=1)
    kept, _ = ost.safetensors.load(path)
    assert max(abs(v).max() for n, v in kept.items() if n.startswith("model.")) < 10


def test_resuming_with_another_optimiser_changes_nothing(tmp_path: Any) -> None:
    path = tmp_path / "run"
    quiet(regressor(), series(), epochs=1, checkpoint=path)
    model = regressor().model
    before = model.flat.copy()
    other = ost.Trainer(model, losses.MSE(), optim.SGD(0.1, momentum=0.5))
    with pytest.raises(ValueError, match="expected a checkpoint of this model and optimiser"):
        quiet(other, series(), checkpoint=path, resume=True)
    assert np.array_equal(model.flat, before)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        if step == self.step:
            trainer.stop("enough")


@pytest.mark.parametrize("stop", [1, 7, 8, 13, 16])
def test_a_resumed_run_ends_with_the_same_bits(stop: int, tmp_path: Any) -> None:
    """Arrays, shuffled, with dropout, a plateau schedule, validation every three steps.

    Epochs are of eight steps.
    """
    options: dict[str, Any] = {
        "validation": series(32),
        "epochs": 3,
        "batch_size": 8,
        "validate_every": 3,
        "seed": 5,
    }

    def fresh() -> ost.Trainer:
        return regressor(rate=optim.ReduceOnPlateau(0.05, patience=0))

    whole = fresh()
    want = quiet(whole, series(), **options)
    path = tmp_path / "run.safetensors"
    first = fresh()
    first.callbacks.append(StopAt(stop))
    assert (
        quiet(first, series(), checkpoint=path, restore_best=False, **options).stopped == "enough"
    )
    second = fresh()
    got = quiet(second, series(), checkpoint=path, resume=True, **options)
    assert np.array_equal(second.model.flat, whole.model.flat)
    assert all(
        np.array_equal(second.optimizer.state[k], v) for k, v in whole.optimizer.state.items()
    )
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in got.rows] == [
        {k: v for k, v in r.items() if k not in drop} for r in want.rows
    ]


def test_a_resumed_stream_carries_its_state(tmp_path: Any) -> None:
    text = np.random.default_rng(0).integers(0, 7, 2000)
    loader = data.StreamLoader(text, 8, 16)

    def fresh() -> ost.Trainer:
        model = nn.Sequential(
            nn.Embedding(7, 4, rng=0),
            nn.LSTM(4, 8, num_layers=2, rng=1),
            nn.GRU(8, 8, rng=1),
            nn.Linear(8, 7, rng=2),
        )
        return ost.Trainer(model, losses.CrossEntropy(), optim.AdamW(0.01))

    whole = fresh()
    quiet(whole, loader, steps=25)
    first, second, path = fresh(), fresh(), tmp_path / "run.safetensors"
    quiet(first, loader, steps=11, checkpoint=path)
    quiet(second, loader, steps=25, checkpoint=path, resume=True)
    assert np.array_equal(second.model.flat, whole.model.flat)


def test_the_stream_carries_state_between_windows() -> None:
    """Two windows of 8 with the state carried give the outputs of one window of 16."""
    text = np.random.default_rng(0).integers(0, 5, 200)
    model = nn.Sequential(nn.Embedding(5, 4, rng=0), nn.GRU(4, 6, rng=0), nn.Linear(6, 5, rng=0))
    trainer = ost.Trainer(model, losses.CrossEntropy(), optim.SGD(0.0))
    short, long = data.StreamLoader(text, 4, 7), data.StreamLoader(text, 4, 49)
    assert trainer.evaluate(short)["loss"] == pytest.approx(
        trainer.evaluate(long)["loss"], rel=1e-9
    )
    seen: list[float] = []

    class Keep(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            seen.append(loss)

    trainer.callbacks.append(Keep())
    quiet(
        trainer, short
    )  # at a rate of zero: training sees what evaluation sees, seven windows of seven steps
    assert np.mean(seen) == pytest.approx(trainer.evaluate(long)["loss"], rel=1e-9)
    pieces = [x for x, _ in short]
    assert np.array_equal(np.concatenate(pieces), next(iter(long))[0])
    assert sum(len(p) for p in pieces) == 49


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Any) -> None:
    x, target = series()
    path, trainer = tmp_path / "run.safetensors", regressor()
    quiet(trainer, (x, target), epochs=1, checkpoint=path)
    kept = path.read_bytes()
    target = target.copy()
    target[:] = np.nan
    before = trainer.model.flat.copy()
    with pytest.raises(
        Diverged, match=r"the loss is nan at step 1; the last good checkpoint is .*run\.safetensors"
    ):
        quiet(trainer, (x, target), epochs=1, checkpoint=path, overwrite=True)
    assert path.read_bytes() == kept
    assert np.array_equal(trainer.model.flat, before)


def test_infinite_gradients_stop_the_run() -> None:
    class Bad(losses.MSE):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:
            return 1.0, np.full_like(y, np.inf)

    trainer = ost.Trainer(
        nn.Sequential(nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)), Bad(), optim.SGD(0.1)
    )
    with pytest.raises(Diverged, match="the gradients are not finite at step 1"):
        quiet(trainer, series())


def test_parameters_that_are_no_numbers_give_way_to_those_before() -> None:
    class Late(optim.Schedule):
        def __call__(self, step: int) -> float:
            return 1e39 if step == 2 else 0.1

    class Keep(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            kept.append(trainer.model.flat.copy())

    kept: list[Any] = []
    model = nn.Sequential(nn.GRU(1, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=0))
    trainer = ost.Trainer(model, losses.MSE(), optim.SGD(Late()), callbacks=[Keep()])
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step 4"):
        quiet(trainer, series(), batch_size=8, epochs=1)
    assert np.array_equal(model.flat, kept[1])  # before the third update


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals go to the main thread",
)
def test_ctrl_c_saves(tmp_path: Any) -> None:
    class Press(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    path, trainer = tmp_path / "run.safetensors", regressor()
    trainer.callbacks.append(Press())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quiet(trainer, series(), epochs=2, batch_size=8, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.optimizer.steps == 5
    resumed, whole = regressor(), regressor()
    quiet(resumed, series(), epochs=2, batch_size=8, checkpoint=path, resume=True)
    quiet(whole, series(), epochs=2, batch_size=8)
    assert np.array_equal(resumed.model.flat, whole.model.flat)


def test_the_log(tmp_path: Any) -> None:
    path, run = tmp_path / "log.csv", tmp_path / "run.safetensors"
    quiet(regressor(), series(), validation=series(8), epochs=2, log=path, checkpoint=run)
    quiet(
        regressor(), series(), validation=series(8), epochs=4, log=path, checkpoint=run, resume=True
    )
    with path.open() as f:
        rows = list(csv.DictReader(f))
    assert [r["epoch"] for r in rows] == ["1", "2", "3", "4"] or [
        float(r["epoch"]) for r in rows
    ] == [1, 2, 3, 4]
    assert set(rows[0]) == {"step", "epoch", "loss", "rate", "norm", "valid_loss", "seconds"}
    with pytest.raises(FileNotFoundError, match="log: expected a folder"):
        quiet(regressor(), series(), log=tmp_path / "no" / "log.csv")


def test_iterables_and_their_mistakes() -> None:
    x, target = series(16)
    batches = [(x, target)] * 3
    assert quiet(regressor(), batches, epochs=2).rows[-1]["step"] == 6
    assert quiet(regressor(), batches, steps=5).stopped == "all steps done"
    with pytest.raises(
        TypeError, match=r"data: expected \(x, target\[, lengths\]\) or an iterable"
    ):
        quiet(regressor(), 3)
    with pytest.raises(TypeError, match="or batches of that form, got int"):
        quiet(regressor(), [3])
    with pytest.raises(ValueError, match="train: expected at least one batch"):
        quiet(regressor(), [], epochs=1)
    with pytest.raises(ValueError, match="resume: expected a checkpoint"):
        quiet(regressor(), batches, resume=True)
    with pytest.raises(ValueError, match="patience: expected validation data"):
        quiet(regressor(), batches, patience=1)
    with pytest.raises(ValueError, match="epochs: expected a whole number of at least 1, got 0"):
        quiet(regressor(), batches, epochs=0)
    with pytest.raises(TypeError, match="loss: expected a Loss, got int"):
        ost.Trainer(nn.Linear(1, 1), 3, optim.SGD(0.1))  # type: ignore[arg-type]


def test_a_trainer_entered_twice_raises() -> None:
    trainer = regressor()

    class Again(Callback):
        def on_step(self, inner: Any, step: int, loss: float, norm: float) -> None:
            with pytest.raises(RuntimeError, match="this trainer is training already"):
                quiet(trainer, series())

    trainer.callbacks.append(Again())
    quiet(trainer, series(), steps=1)


def test_a_checkpoint_of_something_else(tmp_path: Any) -> None:
    path = tmp_path / "x.safetensors"
    ost.safetensors.save(path, {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="expected a checkpoint of a Trainer"):
        quiet(regressor(), series(), checkpoint=path, resume=True)


def test_progress_lines(capsys: Any) -> None:
    regressor().fit(series(), validation=series(8), epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 2  epoch 1  loss ")
    assert "valid" in lines[0]


def test_training_is_the_same_for_any_number_of_threads(threads: None) -> None:
    ends = []
    for n in (1, 3):
        ost.set_num_threads(n)
        trainer = regressor()
        quiet(trainer, series(), epochs=2)
        ends.append(trainer.model.flat.copy())
    assert np.array_equal(*ends)
