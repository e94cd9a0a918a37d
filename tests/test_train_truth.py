"""What a run of the Trainer says is so.

Losses weighted by what counts, the best kept, the end validated, steps counted once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import data, losses, nn, optim
from ostinato.train import Callback, Diverged


def linear(rate: Any = 0.0, loss: Any = None, **options: Any) -> ost.Trainer:
    """One weight, which starts at 1 without a bias: y = x."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False, rng=0))
    with model.write() as p:
        p["0.weight"][...] = 1
    return ost.Trainer(model, loss or losses.MSE(), optim.SGD(rate), **options)


def quiet(trainer: Any, *args: Any, **options: Any) -> Any:
    return trainer.fit(*args, progress=False, **options)


def uneven() -> list[Any]:
    """Batches of 9 and of 1 sequence, errors 1 and 11."""
    out = []
    for n, error in ((9, 1.0), (1, 11.0)):
        x = np.zeros((n, 4, 1), np.float32)
        out.append((x, x + error))
    return out


class Steps(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps: list[int] = []

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)


# -- 1: what an epoch's loss averages --------------------------------------------------------------


def test_the_loss_of_an_epoch_is_weighted_by_its_elements() -> None:
    trainer = linear()
    assert quiet(trainer, uneven()).rows[0]["loss"] == pytest.approx((9 * 1 + 121) / 10)
    assert trainer.evaluate(uneven())["loss"] == pytest.approx(13)


def test_the_loss_of_an_epoch_is_weighted_by_real_steps() -> None:
    x = np.zeros((6, 10, 1), np.float32)
    target = np.where(np.arange(6)[:, None, None] == 0, 11.0, 1.0) + x
    lengths = np.array([1, 10, 10, 10, 10, 10])
    trainer = ost.Trainer(
        nn.Sequential(nn.GRU(1, 1, batch_first=True, rng=0)), losses.MSE(), optim.SGD(0)
    )
    history = quiet(trainer, (x, target, lengths), batch_size=1)
    assert history.rows[0]["loss"] == pytest.approx(
        trainer.evaluate((x, target, lengths))["loss"], rel=1e-6
    )


def test_a_loss_that_is_only_called_counts_by_its_steps() -> None:
    class Called(losses.Loss):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:  # type: ignore[override]
            return float(((y - target) ** 2).mean()), 2 * (y - target) / y.size

    trainer = linear(loss=Called())
    assert quiet(trainer, uneven()).rows[0]["loss"] == pytest.approx(13)
    assert trainer.evaluate(uneven())["loss"] == pytest.approx(13)


def test_padding_alone_counts_for_nothing() -> None:
    x = np.ones((2, 3, 1), np.float32)
    full, empty = (x, x * 3, [3, 3]), (x, x * 3, [0, 0])
    seen = Steps()
    trainer = linear(0.1, losses.MSE(batch_first=True), callbacks=[seen])
    trainer.optimizer = optim.SGD(0.1, momentum=0.9)  # a step without a gradient would move on
    quiet(trainer, [full, empty, empty])
    other = linear(0.1, losses.MSE(batch_first=True))
    other.optimizer = optim.SGD(0.1, momentum=0.9)
    history = quiet(other, [full])
    assert np.array_equal(trainer.model.flat, other.model.flat)
    assert seen.steps == [1]
    assert history.rows[0]["loss"] == seen.losses[0]
    with pytest.raises(
        ValueError, match="train: expected at least one step that counts in the loss"
    ):
        quiet(linear(0.1, losses.MSE(batch_first=True)), [empty], steps=5)


def test_a_validation_set_of_padding_is_an_error_by_name() -> None:
    x = np.ones((2, 3, 1), np.float32)
    model = nn.Sequential(nn.GRU(1, 1, batch_first=True, rng=0))
    trainer, before = ost.Trainer(model, losses.MSE()), model.flat.copy()
    with pytest.raises(
        ValueError, match="validation: expected at least one step that counts, got lengths of zeros"
    ):
        quiet(trainer, (x, x), validation=(x, x, [0, 0]))
    assert np.array_equal(model.flat, before)
    with pytest.raises(
        ValueError, match="validation: expected at least one step that counts in the loss"
    ):
        quiet(trainer, (x, x), validation=[(x, x, [0, 0])])
    with pytest.raises(ValueError, match="data: expected at least one step that counts"):
        trainer.evaluate([(x, x, [0, 0])])


# -- 2: the best -----------------------------------------------------------------------------------


def falling() -> Any:
    """The validation loss falls by less and less: y = w x goes to 3 x."""
    x = np.ones((4, 5, 1), np.float32)
    return x, 3 * x


def test_the_best_is_the_best_whatever_min_delta_says() -> None:
    trainer = linear(0.01)
    history = quiet(
        trainer, falling(), validation=falling(), epochs=12, patience=20, min_delta=10.0
    )
    valid = history.column("valid_loss")
    assert valid == sorted(valid, reverse=True)
    assert history.best is not None
    assert history.best["step"] == 12
    assert trainer.evaluate(falling())["loss"] == pytest.approx(min(valid))


def test_min_delta_concerns_patience() -> None:
    history = quiet(
        linear(0.01), falling(), validation=falling(), epochs=50, patience=3, min_delta=10.0
    )
    assert (history.stopped, len(history.rows)) == ("no better loss within patience", 4)
    with pytest.raises(ValueError, match="min_delta: expected 0 without patience"):
        quiet(linear(), falling(), validation=falling(), min_delta=0.1)


# -- 3: the end is validated -----------------------------------------------------------------------


def test_the_end_is_always_validated() -> None:
    x = np.ones((16, 5, 1), np.float32)
    history = quiet(
        linear(0.01), (x, 3 * x), validation=(x, 3 * x), batch_size=2, epochs=2, validate_every=7
    )
    assert history.column("step") == [7, 14, 16]
    assert len(history.column("valid_loss")) == 3
    assert history.best is not None
    assert history.best["step"] == 16


@pytest.mark.parametrize("name", ["validate_every", "checkpoint_every"])
def test_an_interval_that_never_comes_is_an_error(name: str, tmp_path: Any) -> None:
    x = np.ones((16, 5, 1), np.float32)
    options: Any = {name: 17, "checkpoint": tmp_path / "run"}
    with pytest.raises(
        ValueError, match=f"{name}: expected at most 16, the steps of this run, got 17"
    ):
        quiet(linear(0.01), (x, 3 * x), batch_size=2, epochs=2, **options)
    assert list(tmp_path.iterdir()) == []
    quiet(linear(0.01), (x, 3 * x), batch_size=2, epochs=2, **{**options, name: 16})


# -- 4: figures that are not there -----------------------------------------------------------------


@pytest.mark.parametrize("wrap", [False, True])
def test_a_schedule_that_watches_needs_something_to_watch(wrap: bool) -> None:
    plateau: optim.Schedule = optim.ReduceOnPlateau(0.1)
    trainer = linear(optim.Warmup(plateau, steps=2) if wrap else plateau)
    before = trainer.model.flat.copy()
    with pytest.raises(
        ValueError,
        match=r"validation: expected data for the .* of the optimiser to watch, got None",
    ):
        quiet(trainer, falling())
    assert np.array_equal(trainer.model.flat, before)
    quiet(trainer, falling(), validation=falling())
    with pytest.raises(
        ValueError, match="monitor: expected one of 'valid_loss', got 'valid_accuracy'"
    ):
        quiet(trainer, falling(), validation=falling(), monitor="valid_accuracy")


# -- 5: a step is an update ------------------------------------------------------------------------


def walked(**options: Any) -> Any:
    model = nn.Sequential(
        nn.GRU(2, 4, dropout=0.0, batch_first=True, rng=0), nn.Dropout(0.2), nn.Linear(4, 1, rng=0)
    )
    seen = Steps()
    schedule = optim.StepDecay(0.05, every=2, factor=0.5)
    return ost.Trainer(
        model, losses.MSE(), optim.Adam(schedule), tbptt=(4, 6), callbacks=[seen], **options
    ), seen


def sequences() -> Any:
    x = np.random.default_rng(0).standard_normal((6, 10, 2)).astype(np.float32)
    return x, x[..., :1].cumsum(1)


def test_with_tbptt_a_step_is_an_update(tmp_path: Any) -> None:
    trainer, seen = walked()
    history = quiet(
        trainer, sequences(), batch_size=3, steps=8, validate_every=2, log=tmp_path / "log.csv"
    )
    assert seen.steps == list(
        range(1, 9)
    )  # three strides of 4, 4 and 2 steps in a batch, two batches an epoch
    assert trainer.optimizer.steps == 8
    assert history.column("step") == [2, 4, 6, 8]
    assert history.column("rate") == [0.025, 0.0125, 0.00625, 0.003125]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert history.column("loss")[0] == pytest.approx(np.mean(seen.losses[:2]), rel=1e-6)


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_run_with_tbptt_resumes_in_the_middle_of_a_batch(stop: int, tmp_path: Any) -> None:
    options: Any = {
        "batch_size": 3,
        "epochs": 2,
        "validate_every": 4,
        "validation": sequences(),
        "seed": 3,
    }
    whole, _ = walked()
    want = quiet(whole, sequences(), **options)
    first, _ = walked()

    class Stop(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            if step == stop:
                trainer.stop("enough")

    first.callbacks.append(Stop())
    quiet(first, sequences(), checkpoint=tmp_path / "run", restore_best=False, **options)
    assert first.optimizer.steps == stop
    second, _ = walked()
    got = quiet(second, sequences(), checkpoint=tmp_path / "run", resume=True, **options)
    assert np.array_equal(second.model.flat, whole.model.flat)
    assert [{**r, "seconds": 0} for r in got.rows] == [{**r, "seconds": 0} for r in want.rows]


# -- accumulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [10, 3, 7, 1, 10, 2, 9, 4]])
def test_accumulated_batches_are_one_large_batch(lengths: Any) -> None:
    x = np.random.default_rng(0).standard_normal((8, 10, 2))
    ends = []
    for size, k in ((8, 1), (2, 4), (3, 3)):
        gru = nn.GRU(2, 4, batch_first=True, dtype=np.float64, rng=0)
        model = nn.Sequential(gru, nn.Linear(4, 1, dtype=np.float64, rng=0))
        seen = Steps()
        trainer = ost.Trainer(
            model, losses.MSE(), optim.Adam(0.01), clip_norm=0.5, callbacks=[seen]
        )
        whole = (
            (x, x[..., :1].cumsum(1))
            if lengths is None
            else (x, x[..., :1].cumsum(1), np.array(lengths))
        )
        history = quiet(trainer, whole, batch_size=size, accumulate=k, epochs=5, shuffle=False)
        assert seen.steps == [1, 2, 3, 4, 5]
        ends.append((model.flat.copy(), history.column("loss"), history.column("norm")))
    for other in ends[1:]:
        for a, b in zip(other, ends[0]):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="accumulate: expected 1 with tbptt"):
        quiet(walked()[0], sequences(), accumulate=2)


def test_what_is_left_of_an_epoch_is_an_update_too() -> None:
    seen = Steps()
    quiet(linear(0.01, callbacks=[seen]), [falling()] * 5, accumulate=2, epochs=2)
    assert seen.steps == [1, 2, 3, 4, 5, 6]


# -- 6: what is left when a run ends early ---------------------------------------------------------


def test_nan_says_which_input_held_it() -> None:
    x, target = (a.copy() for a in falling())
    target[2, 3] = np.nan
    with pytest.raises(
        Diverged, match=r"the loss is nan at step 1; target holds nan at \[2, 3, 0\]$"
    ):
        quiet(linear(0.1), (x, target))
    spoilt = x.copy()
    spoilt[1, 4] = np.nan
    with pytest.raises(Diverged, match=r"x holds nan at \[1, 4, 0\]"):
        quiet(linear(0.1), (spoilt, 3 * x), batch_size=1)
    with pytest.raises(
        Diverged, match=r"the validation loss is nan after step 1; target holds nan at \[2, 3, 0\]"
    ):
        quiet(linear(0.1), (x, 3 * x), validation=(x, target))
    with pytest.raises(Diverged, match="x and target are finite, so it came of the parameters"):
        quiet(linear(1e37), (x, 3 * x), epochs=5)
    gru = nn.Sequential(nn.GRU(1, 1, batch_first=True, rng=0))
    batch = (spoilt.swapaxes(0, 1).copy(), x.swapaxes(0, 1).copy())
    time_major = ost.Trainer(nn.Sequential(nn.GRU(1, 1, rng=0)), losses.MSE())
    loader = data.ArrayLoader(spoilt, x, time_major=True, rng=1)
    for trainer, given, at in (
        (ost.Trainer(gru, losses.MSE()), (spoilt, x), r"\[1, 4, 0\]"),
        (time_major, loader, r"\[1, 4, 0\]"),
        (time_major, [batch], r"\[4, 1, 0\] of the batch"),
    ):
        with pytest.raises(Diverged, match=f"x holds nan at {at}"):
            quiet(trainer, given)


def test_parameters_that_exploded_are_put_back() -> None:
    """Without validation the last good ones, with it the best."""
    trainer = linear(optim.StepDecay(0.1, every=3, factor=1e37))
    seen: list[Any] = []

    class Keep(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            seen.append(trainer.model.flat.copy())

    trainer.callbacks.append(Keep())
    with pytest.raises(Diverged):
        quiet(trainer, falling(), epochs=9)
    assert np.array_equal(trainer.model.flat, seen[2])  # the fourth step broke them
    trainer = linear(optim.StepDecay(0.1, every=3, factor=1e37), callbacks=[Keep()])
    with pytest.raises(Diverged):
        quiet(trainer, falling(), validation=falling(), epochs=9)
    assert np.array_equal(trainer.model.flat, seen[2])


def test_an_error_of_a_callback_saves_and_puts_the_best_back(tmp_path: Any) -> None:
    class Bad(Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            if step == 5:
                raise RuntimeError("of the user")

    ended: list[int] = []

    class End(Callback):
        def on_end(self, trainer: Any) -> None:
            ended.append(1)

    def fresh(*callbacks: Callback) -> ost.Trainer:
        gru = nn.GRU(2, 4, batch_first=True, rng=0)
        return ost.Trainer(
            nn.Sequential(gru, nn.Linear(4, 1, rng=0)),
            losses.MSE(),
            optim.Adam(0.5),
            callbacks=callbacks,
        )

    options: Any = {"validation": sequences(), "validate_every": 1, "batch_size": 3, "epochs": 4}
    trainer = fresh(Bad(), End())
    with pytest.raises(RuntimeError, match="of the user"):
        quiet(trainer, sequences(), checkpoint=tmp_path / "run", **options)
    assert ended == [1]
    best = ost.train.Checkpoint.load(tmp_path / "run")
    last = ost.train.Checkpoint.load(tmp_path / "run", which="last")
    assert last.step == 5
    for name, value in trainer.model.parameters().items():
        assert np.array_equal(value, best.parameters[name])
    whole, resumed = fresh(), fresh()
    want = quiet(whole, sequences(), **options)
    got = quiet(resumed, sequences(), checkpoint=tmp_path / "run", resume=True, **options)
    assert np.array_equal(
        resumed.model.flat, whole.model.flat
    )  # the row that had not been made was made
    assert got.column("step") == want.column("step")


@pytest.mark.parametrize(
    ("value", "norm"), [(None, 0.05), (0.01, None), (0.01, 0.02), (0.01, 100.0), (None, 100.0)]
)
def test_gradients_are_clipped_by_value_then_by_norm(
    value: float | None, norm: float | None
) -> None:
    """The norm is that of what clipping by value has left, and gradients within it stay."""
    x, target = (np.random.default_rng(k).normal(size=(6, 4, 3)).astype(np.float32) for k in (0, 1))
    one, other = (nn.Linear(3, 3, rng=0) for _ in range(2))
    trainer = ost.Trainer(one, losses.MSE(), optim.SGD(0.5), clip_value=value, clip_norm=norm)
    trainer.fit(data.ArrayLoader(x, target, batch_size=6), epochs=1)
    y, pullback = other.vjp(x)
    pullback(losses.MSE()(y, target)[1])
    g = other.flat_grads.copy()
    if value is not None:
        g = np.clip(g, -value, value)
    length = np.linalg.norm(g)
    if norm is not None and length > norm:
        g *= norm / length
    np.testing.assert_allclose(one.flat, other.flat - 0.5 * g, rtol=1e-5, atol=1e-7)
    assert np.abs(g).max() > 1e-3
