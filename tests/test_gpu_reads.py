"""What a training loop on a device reads back: nothing in a step, its figures once a report.

And what it does all the same: an update after something that is not finite is not made, and the run
ends as it does on the CPU, which looks at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests
from ostinato import _deferred, _device
from ostinato.train import _unread

native_for_tests()

R = np.random.default_rng(0)
X = R.standard_normal((16, 6, 3)).astype(np.float32)
GOALS, LABELS = X.cumsum(1)[..., :2], R.integers(0, 5, (16, 6))
LENGTHS = R.integers(1, 7, 16)
MASK = np.arange(6) < LENGTHS[:, None]
WEIGHTS = R.random(16).astype(np.float32)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> _device.Device:
    """A device of which `fake_cupy.traffic` tells what is read."""
    return fake_cupy.stand_in(monkeypatch)


@pytest.fixture(params=["emulated", "cuda"] if ost.cuda.is_available() else ["emulated"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _device.Device:
    return _device.cuda() if request.param == "cuda" else fake_cupy.stand_in(monkeypatch)


class Watch(ost.train.Callback):
    """Note how many reads and copies there have been, at every step and at every row."""

    def on_start(self, trainer: Any) -> None:
        self.steps: list[tuple[int, int]] = []
        self.rows: list[int] = []  # reads since the step before
        self.ends: set[int] = set()

    def on_step(self, trainer: Any, step: int, loss: Any, norm: Any) -> None:
        self.steps.append((fake_cupy.traffic.reads, fake_cupy.traffic.copies))

    def on_row(self, trainer: Any, row: Any) -> None:
        self.rows.append(fake_cupy.traffic.reads - self.steps[-1][0])
        self.ends.add(len(self.steps))

    def between(self, which: int) -> set[int]:
        """Return the reads (0) or copies (1) between steps that follow one another."""
        pairs = enumerate(zip(self.steps, self.steps[1:]), 1)
        return {b[which] - a[which] for k, (a, b) in pairs if k not in self.ends}

    def reads(self) -> set[int]:
        return self.between(0)


def layers(outputs: int, **options: Any) -> ost.nn.Sequential:
    return ost.nn.Sequential(
        ost.nn.GRU(3, 5, batch_first=True, rng=0, **options),
        ost.nn.Dropout(0.1, rng=1),
        ost.nn.Linear(5, outputs, rng=2),
    )


class Slow(ost.optim.SGD):
    """An optimiser of the user's, which knows nothing of flags on a device."""

    def _update(
        self, p: Any, g: Any, lr: float, decay: float, age: int, *state: Any
    ) -> tuple[Any, ...]:
        return (p - p.dtype.type(lr / age) * g,)


class Own(ost.nn.Model):
    """A recorded model, which picks rows of its own table by inputs that are on the device."""

    def __init__(self) -> None:
        self.table = ost.nn.Parameter(
            np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
        )
        self.rnn = ost.nn.GRU(4, 5, batch_first=True, rng=0)
        self.head = ost.nn.Linear(5, 5, rng=0)

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        y, _ = self.rnn(self.table[x], lengths=lengths)
        return self.head(np.tanh(y) + y.mean(1, keepdims=True))


CASES: dict[str, tuple[Callable[[], Any], Any, Any, Any, dict[str, Any]]] = {
    "values": (lambda: layers(2), ost.losses.MSE(), (X, GOALS), ost.optim.AdamW(0.01), {}),
    "lengths": (
        lambda: layers(2, num_layers=2),
        ost.losses.Huber(),
        (X, GOALS, LENGTHS),
        ost.optim.SGD(0.01, momentum=0.9),
        {"clip_norm": 0.1},
    ),
    "weights": (
        lambda: layers(2),
        ost.losses.MAE(),
        (X, GOALS, {"mask": MASK, "weights": WEIGHTS}),
        ost.optim.RMSprop(0.01),
        {"clip_value": 0.01, "clip_norm": 0.1},
    ),
    "classes": (
        lambda: layers(5),
        ost.losses.CrossEntropy(label_smoothing=0.1),
        (X, np.where(MASK, LABELS, -100), LENGTHS),
        ost.optim.Adam(0.01, groups={"0.*": 0.5}),
        {"clip_norm": 1.0},
    ),
    "class weights": (
        lambda: layers(5),
        ost.losses.CrossEntropy(class_weights=np.arange(1, 6)),
        (X, LABELS, {"weights": WEIGHTS}),
        Slow(0.1),
        {},
    ),
    "focal": (lambda: layers(5), ost.losses.Focal(), (X, LABELS), ost.optim.SGD(0.1), {}),
    "last": (
        lambda: layers(5),
        ost.losses.CrossEntropy(),
        (X, LABELS[:, 0], LENGTHS),
        ost.optim.Adam(0.01),
        {"outputs": "last_step"},
    ),
    "ragged": (
        lambda: layers(2),
        ost.losses.MSE(),
        ([x[:n] for x, n in zip(X, LENGTHS)], [g[:n] for g, n in zip(GOALS, LENGTHS)]),
        ost.optim.Adam(0.01),
        {},
    ),
    "own": (
        Own,
        ost.losses.CrossEntropy(),
        (LABELS, LABELS, LENGTHS),
        ost.optim.AdamW(0.01),
        {"clip_norm": 1.0},
    ),
    "ctc": (
        lambda: ost.nn.Sequential(
            ost.nn.Conv1d(3, 3, 2, stride=2, batch_first=True, rng=3), layers(6)
        ),
        ost.losses.CTC(impossible="skip"),
        (X, [row[:2] + 1 for row in LABELS], LENGTHS),
        ost.optim.Adam(0.01),
        {},
    ),
    "windows": (
        lambda: layers(2),
        ost.losses.MSE(),
        (X, GOALS, LENGTHS),
        ost.optim.Adam(0.01),
        {"tbptt": (2, 4), "clip_norm": 0.1},
    ),
    "indices": (
        lambda: ost.nn.Sequential(
            ost.nn.Embedding(5, 4, rng=0),
            ost.nn.LSTM(4, 5, batch_first=True, rng=0),
            ost.nn.Linear(5, 5, rng=0),
        ),
        ost.losses.CrossEntropy(),
        (LABELS, LABELS[:, ::-1]),
        ost.optim.AdamW(0.01),
        {"clip_norm": 1.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_reads(watched: _device.Device, case: str) -> None:
    """The history of a run is that of the CPU; the device is read once for each row."""
    make, loss, data, optimizer, options = CASES[case]
    rows = []
    for device in ("cpu", "cuda"):
        watch = Watch()
        trainer = ost.Trainer(
            make().to(device), loss, copy.deepcopy(optimizer), callbacks=[watch], **options
        )
        history = trainer.fit(data, validation=data, epochs=2, batch_size=4, progress=False)
        rows.append([[r[k] for k in ("loss", "valid_loss", "norm", "step")] for r in history.rows])
        if device == "cpu":
            continue
        assert watch.reads() == {0}
        assert watch.rows == [2, 2]  # the figures of all steps, and those of the validation
    np.testing.assert_allclose(rows[1], rows[0], rtol=2e-4)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_text_is_cut_on_the_device(watched: _device.Device, precision: str) -> None:
    """A step of ``train text`` neither reads the device nor copies anything there."""
    from ostinato.tasks import text as tasks

    options = tasks.TextOptions(steps=6, hidden=6, precision=precision, dropout=0.1)
    chars = tasks.CharModel.fresh("abcde", options)
    chars.model.to("cuda")
    chars.set_precision(precision)
    ids = chars._placed(np.tile(LABELS.reshape(-1), 20).astype(np.uint8))
    trainer, watch = tasks.trainer_of(chars), Watch()
    trainer.callbacks.append(watch)
    trainer.fit(ost.data.StreamLoader(ids, 4, 12), steps=6, progress=False)
    assert len(watch.steps) == 6
    assert watch.between(0) == watch.between(1) == {0}
    assert watch.rows == [1]  # all figures at once


def test_text_is_the_same_data_on_the_device(gpu: _device.Device, tmp_path: Path) -> None:
    """A run that began on the CPU is resumed on a device, which recognises the text."""
    from ostinato.tasks import text as tasks

    ids, options = np.tile(LABELS.reshape(-1), 9).astype(np.uint8), tasks.TextOptions(hidden=4)

    def fit(text: Any, steps: int, device: str) -> int:
        chars = tasks.CharModel.fresh("abcde", options)
        chars.model.to(device)
        trainer = tasks.trainer_of(chars)
        trainer.fit(
            ost.data.StreamLoader(chars._placed(text), 4, 12),
            steps=steps,
            progress=False,
            checkpoint=tmp_path / "checkpoint.safetensors",
            resume=True,
        )
        return trainer.optimizer.steps

    assert fit(ids, 2, "cpu") == 2
    assert fit(ids, 4, "cuda") == 4
    assert fit(ids, 6, "cpu") == 6
    with pytest.warns(UserWarning, match="train: other data than the checkpoint's run began with"):
        fit(ids[::-1], 8, "cuda")
    one, other = (ost.data.StreamLoader(a, 4, 5) for a in (ids, gpu.put(ids)))
    assert one.fingerprint() == other.fingerprint()


def test_the_device_is_read_now_and_then(watched: _device.Device) -> None:
    """Without a row, a run still finds out what its figures are."""
    watch = Watch()
    trainer = ost.Trainer(
        layers(2).to("cuda"), ost.losses.MSE(), ost.optim.Adam(0.01), callbacks=[watch]
    )
    trainer.fit((X, GOALS), steps=80, epochs=80, validate_every=80, batch_size=8, progress=False)
    reads = [b[0] - a[0] for a, b in zip(watch.steps, watch.steps[1:])]
    assert [k for k, n in enumerate(reads, 2) if n] == [_unread.MOST, 2 * _unread.MOST]
    assert max(reads) == 1


def broken(at: int, where: str) -> tuple[Any, Any]:
    """Batches of which one gives a loss, or gradients, that are not finite."""
    x, goals = np.tile(X, (3, 1, 1)), np.tile(GOALS, (3, 1, 1))
    if where == "loss":
        goals[4 * at + 1, 2, 1] = np.inf
    else:
        x[4 * at + 1, 2, 1] = np.nan
    return x, goals


@pytest.mark.parametrize("where", ["loss", "x"])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_what_is_not_finite_moves_nothing(
    gpu: _device.Device, at: int, where: str, tmp_path: Path
) -> None:
    """The error, and all that a run leaves, are those of the CPU, which looks at every step."""
    found = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.safetensors"
        optimizer = ost.optim.Adam(0.01)
        trainer = ost.Trainer(layers(2).to(device), ost.losses.MSE(), optimizer, clip_norm=1.0)
        with pytest.raises(ost.train.Diverged) as error:
            trainer.fit(
                broken(at, where), epochs=2, batch_size=4, shuffle=False, progress=False,
                checkpoint=path,
            )  # fmt: skip
        message = str(error.value).replace(str(path), "PATH")
        state = {k: _device.host(v) for k, v in optimizer.state.items()}
        assert all(np.isfinite(v).all() for v in state.values())
        saved = ost.safetensors.load(path)[0] if path.exists() else {}
        found.append((message, trainer.at_step, optimizer.steps, dict(optimizer.started), saved))
        found.append((np.array(_device.host(trainer.model.flat)), state))
    assert found[2][:4] == found[0][:4]
    assert found[0][1] == at
    assert f"at step {at + 1}" in found[0][0]
    assert set(found[2][4]) == set(found[0][4])
    for name, value in found[0][4].items():
        np.testing.assert_allclose(found[2][4][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found[3][0], found[1][0], atol=1e-5)
    for name, value in found[1][1].items():
        np.testing.assert_allclose(found[3][1][name], value, atol=1e-5)


def test_parameters_that_diverged_are_put_back(gpu: _device.Device) -> None:
    """Where the loss of the parameters is infinite, those before the last update are restored."""
    found = []
    for device in ("cpu", "cuda"):
        model = layers(2).to(device)
        initial = np.array(_device.host(model.flat))
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(1e25))
        with pytest.raises(ost.train.Diverged) as error:
            trainer.fit((X, GOALS), epochs=3, batch_size=4, progress=False)
        assert np.array_equal(_device.host(model.flat), initial)
        found.append((str(error.value), trainer.at_step, trainer.optimizer.steps))
    assert found[0] == found[1]
    assert "x and target are finite, so it came of the parameters" in found[0][0]


@pytest.mark.parametrize(
    "optimizer",
    [ost.optim.SGD(0.1, momentum=0.9), ost.optim.RMSprop(0.01), ost.optim.AdamW(0.01), Slow(0.1)],
    ids=lambda o: type(o).__name__,
)
def test_optimisers_leave_all_as_it_was(gpu: _device.Device, optimizer: Any) -> None:
    """A step with a flag that is False changes no bit, though gradients are NaN; one with True does
    what a step without a flag does.
    """
    optimizer, models = copy.deepcopy(optimizer), [layers(2).to("cuda") for _ in range(2)]
    other = copy.deepcopy(optimizer)
    for k, flag in enumerate((True, False, True)):
        for model in models:
            with model.write() as p:
                model._writable_grads().flat[...] = gpu.put(
                    np.full(p.flat.size, k + 1 if flag else np.nan, np.float32)
                )
        before = [np.array(_device.host(a)) for a in (models[0].flat, *optimizer.state.values())]
        optimizer.step(models[0], where=gpu.put(np.array(flag)))
        after = [np.array(_device.host(a)) for a in (models[0].flat, *optimizer.state.values())]
        if flag:
            other.steps = optimizer.steps - 1
            other.step(models[1])
            assert np.array_equal(_device.host(models[1].flat), after[0])
            assert not np.array_equal(after[0], before[0])
        else:
            assert all(np.array_equal(a, b) for a, b in zip(after, before))
    assert optimizer.steps == 3


def test_indices_out_of_range(gpu: _device.Device) -> None:
    """A wrong index or class is the error that the CPU gives, and no update was made with it."""
    for x, target, said in (
        (7, 1, "x: expected indices from 0 to 4, got 7 at position 3"),
        (1, 9, "target: expected class numbers from 0 to 4, got 9"),
    ):
        bad = [np.where(np.arange(8) == 3, k, 1)[:, None] for k in (x, target)]
        good = np.ones((8, 1), int)
        model = ost.nn.Sequential(
            ost.nn.Embedding(5, 4, rng=0), ost.nn.RNN(4, 3, rng=0), ost.nn.Linear(3, 5, rng=0)
        )
        found = []
        for device in ("cpu", "cuda"):
            there = model.to(device)
            batches = [(good, good)] * 2 + [tuple(bad)] + [(good, good)] * 3
            if device == "cuda":
                batches = [tuple(map(gpu.put, pair)) for pair in batches]
            trainer = ost.Trainer(there, ost.losses.CrossEntropy(), ost.optim.SGD(0.1))
            initial = np.array(_device.host(there.flat))
            with pytest.raises(ValueError, match=said):
                trainer.fit(batches, progress=False)
            found.append((trainer.at_step, np.array(_device.host(there.flat)) - initial))
            with there.write() as p:
                p.flat[...] = gpu.put(initial) if device == "cuda" else initial
            with pytest.raises(ValueError, match=said):
                trainer.evaluate(batches)
        assert found[0][0] == found[1][0] == 2
        np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-6)


def test_nothing_that_counts(watched: _device.Device) -> None:
    """Whether targets on a device count is not asked for: a step without any changes nothing."""
    model, watch = layers(5).to("cuda"), Watch()
    ignored = np.full((4, 6), -100)
    goals = [LABELS[:4], ignored, LABELS[4:8]]
    trainer = ost.Trainer(
        model, ost.losses.CrossEntropy(), ost.optim.SGD(0.1, momentum=0.9), callbacks=[watch]
    )
    kept = []

    class Keep(ost.train.Callback):
        def on_step(self, trainer: Any, step: int, loss: Any, norm: Any) -> None:
            kept.append(trainer.model.flat.copy())
            assert loss.shape == norm.shape == ()
            assert _device.of(loss) is _device.of(norm) is watched

    trainer.callbacks.append(Keep())
    batches = [(watched.put(X[:4]), watched.put(g)) for g in goals]
    history = trainer.fit(batches, progress=False)
    assert watch.reads() == {0}
    first, second, third = (a.get() for a in kept)
    assert np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert 1 < history.rows[0]["loss"] < 2
    with pytest.raises(ValueError, match="expected at least one step that counts in the loss"):
        trainer.fit([(watched.put(X[:4]), watched.put(ignored))], progress=False)


def test_losses_and_steps_of_the_user(gpu: _device.Device) -> None:
    """What reads the device by itself works, and gives what the CPU gives."""

    class Square(ost.losses.Loss):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:
            assert (_device.of(y) is None) == (_device.of(target) is None)
            return float(((y - target) ** 2).mean()), 2 * (y - target) / y.size

    class Twice(ost.optim.SGD):
        def step(self, model: Any) -> None:
            super().step(model)
            super().step(model)

    rows = []
    for device in ("cpu", "cuda"):
        trainer = ost.Trainer(
            layers(2).to(device), Square(), Twice(0.1), metrics=["mae"], clip_norm=1.0
        )
        history = trainer.fit(
            (X, GOALS), validation=(X, GOALS), epochs=2, batch_size=4, progress=False
        )
        rows.append([[r[k] for k in ("loss", "valid_mae", "norm")] for r in history.rows])
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-4)


def test_accuracy_is_read_at_the_end(watched: _device.Device) -> None:
    """Metrics that are sums do not wait for the device; the figures are those of the CPU."""
    function = {"right": lambda y, t, n: ((y.argmax(-1) == t).sum(), t.size)}
    for metrics in (["accuracy"], function):
        rows = []
        for device in ("cpu", "cuda"):
            trainer = ost.Trainer(layers(5).to(device), ost.losses.CrossEntropy(), metrics=metrics)
            before = fake_cupy.traffic.reads
            rows.append(trainer.evaluate((X, LABELS, {"mask": MASK}), batch_size=4))
        assert fake_cupy.traffic.reads - before == 2  # the losses, and what was right
        assert rows[1] == pytest.approx(rows[0], rel=1e-5)


def test_metrics_that_are_merged_are_read(gpu: _device.Device) -> None:
    """What two metrics have not asked the device for counts too."""
    parts = [ost.train.metrics.Accuracy() for _ in range(2)]
    for k, part in enumerate(parts):
        part.update(gpu.xp.asarray(np.eye(5)), gpu.xp.asarray((np.arange(5) + k) % 5))
    parts[0].merge(parts[1])
    assert parts[0].compute() == 0.5


@pytest.mark.parametrize("target", [[0, 7], [0.0, 2.0]], ids=["classes", "two classes"])
def test_targets_out_of_range_are_told_when_accuracy_is_read(
    watched: _device.Device, target: Any
) -> None:
    """What a batch has of them is counted on the device, which `update` does not wait for."""
    put, metric = watched.xp.asarray, ost.train.metrics.Accuracy()
    y = put(np.eye(2) if isinstance(target[1], int) else np.ones(2))
    arrays = y, put(np.array(target))
    on = np.array([True, False])
    before = fake_cupy.traffic.reads
    metric.update(*arrays, on)  # it does not count
    assert fake_cupy.traffic.reads == before
    assert metric.compute() in (0, 1)
    metric.update(*arrays)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"target: expected .* from 0 to 1.*, got others"):
            metric.compute()
    metric.reset()
    assert np.isnan(metric.compute())


def test_predictions_are_read_at_the_end(watched: _device.Device) -> None:
    """What an Embedding finds, and the outputs, are read once for all batches."""
    model = CASES["indices"][0]().to("cuda")
    trainer, before = ost.Trainer(model, ost.losses.CrossEntropy()), fake_cupy.traffic.reads
    assert trainer.predict(LABELS, batch_size=3).shape == (16, 6, 5)
    assert fake_cupy.traffic.reads - before == 2
    with pytest.raises(ValueError, match="x: expected indices from 0 to 4, got 5 at position 5"):
        trainer.predict(np.where(np.arange(6) == 5, 5, LABELS), batch_size=3)


def test_weights_beyond_float16_are_refused_every_time(gpu: _device.Device) -> None:
    """What packs weights finds them; they stay packed, and no later use takes them for good."""
    model = layers(2).to("cuda")
    model.layers[0].precision = "float16"
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1))
    wide = copy.deepcopy(model.state_dict())
    wide["0.weight_hh_l0"][0, 0] = 1e6

    def fit() -> None:
        trainer.fit((X, GOALS), steps=2, progress=False)

    def call() -> None:
        model(gpu.put(X))

    def evaluate() -> None:
        trainer.evaluate(X, GOALS, batch_size=5)

    def predict() -> None:
        trainer.predict(X, batch_size=5)

    def predict_ragged() -> None:
        trainer.predict(list(X), batch_size=5)

    uses = (predict, predict, predict_ragged, evaluate, evaluate, call, call, fit, fit, predict)
    fine = model.state_dict()
    for first in (0, 2, 3, 5, 7):
        model.load_state_dict(wide)  # packed anew by the first of them
        for use in (*uses[first:], *uses[:first]):
            with pytest.raises(ValueError, match="weight_hh: expected weights within the range of"):
                use()
    assert trainer.optimizer.steps == 0
    model.load_state_dict(fine)
    for use in uses:
        use()


def test_good_weights_of_float16_are_looked_at_once(watched: _device.Device) -> None:
    model = layers(2).to("cuda")
    model.layers[0].precision = "float16"
    trainer, x = ost.Trainer(model, ost.losses.MSE()), watched.put(X)
    trainer.predict(X)
    reads = []
    for _ in range(3):
        before = fake_cupy.traffic.reads
        model(x)
        reads.append(fake_cupy.traffic.reads - before)
    assert reads[0] == 1
    assert reads[1:] == [0, 0]


def test_text_of_weights_beyond_float16_is_refused(gpu: _device.Device) -> None:
    """A generation looks at the weights before its first character."""
    from ostinato.tasks import text as tasks

    chars = tasks.CharModel.fresh("abcde", tasks.TextOptions(steps=6, hidden=6))
    chars.model.to("cuda")
    chars.set_precision("float16")
    assert len(chars.generate("ab", 3, seed=0)) == 3
    wide = copy.deepcopy(chars.model.state_dict())
    wide[next(n for n in wide if "weight_hh" in n)][0, 0] = 1e6
    chars.model.load_state_dict(wide)
    for _ in range(2):
        with pytest.raises(ValueError, match="weight_hh: expected weights within the range of"):
            chars.generate("ab", 3, seed=0)


def test_checks_wait_only_where_they_are_read(watched: _device.Device) -> None:
    """Outside of a loop a check raises at once; within, the one that failed first is told."""
    flags = [watched.put(np.array(k > 1)) for k in range(4)]

    def error(k: int) -> Callable[[], Exception]:
        return lambda: ValueError(f"number {k}")

    with _deferred.gathered() as checks:
        for k, flag in enumerate(flags):
            _deferred.refuse(flag, error(k))
        with pytest.raises(ValueError, match="host"):
            _deferred.refuse(np.bool_(True), lambda: ValueError("host"))
        _deferred.refuse_non_finite(watched.put(np.array(np.inf)), error(4))
    assert [c.failed() for c in checks] == [False, False, True, True, True]
    with pytest.raises(ValueError, match="number 2"):
        _deferred.raise_first(checks)
    sound: Any = 0.0
    for check, want in zip(checks, (0.0, 0.0, np.nan, np.nan, np.nan)):
        with np.errstate(invalid="ignore"):
            sound = check.marked(sound)
        assert np.array_equal(float(sound), want, equal_nan=True)
    with pytest.raises(ValueError, match="number 3"):
        _deferred.refuse(flags[3], error(3))
    fake_cupy.traffic.reads = 0
    assert _deferred.numbers([1, *flags[1:3], 2.5]) == [1, 0, 1, 2.5]
    assert fake_cupy.traffic.reads == 1
