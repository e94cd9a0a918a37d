"""Metrics, weights of classes, rates of groups, TensorBoard, progress on any standard error, and
strict floating point.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import losses, nn, optim
from ostinato.train import Callback, TensorBoard, metrics


def quiet(trainer: Any, *args: Any, **options: Any) -> Any:
    return trainer.fit(*args, progress=False, **options)


def classes(n: int = 60, seed: int = 0) -> Any:
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, 5, 2)).astype(np.float32)
    return x, (x[..., 0] > 0).astype(np.int64) + (x[..., 1] > 1), r.integers(1, 6, n)


def classifier(**options: Any) -> ost.Trainer:
    model = nn.Sequential(nn.GRU(2, 8, batch_first=True, rng=0), nn.Linear(8, 3, rng=1))
    return ost.Trainer(model, losses.CrossEntropy(), optim.Adam(0.02), **options)


def fresh() -> ost.Trainer:
    model = nn.Sequential(nn.GRU(1, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=1))
    return ost.Trainer(model, losses.MSE(), optim.Adam(0.01))


def ones(n: int = 8) -> Any:
    x = np.ones((n, 4, 1), np.float32)
    return x, 2 * x


# -- metrics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_metrics_are_those_of_all_that_counts(batch_size: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    x, target, lengths = classes()
    named = {
        "accuracy": metrics.Accuracy(),
        "macro": metrics.F1(),
        "micro": metrics.F1("micro"),
        "bits": metrics.BitsPerCharacter(),
        "own": lambda y, t, n: (float(n.sum()), 1),
    }
    trainer = classifier(metrics=named)
    found = trainer.evaluate((x, target, lengths), batch_size=batch_size)
    y, on = trainer.predict(x), np.arange(5) < lengths[:, None]
    guess, truth = y.argmax(-1)[on], target[on]
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, guess))
    assert found["macro"] == pytest.approx(sklearn.f1_score(truth, guess, average="macro"))
    assert found["micro"] == pytest.approx(sklearn.f1_score(truth, guess, average="micro"))
    assert found["bits"] == pytest.approx(found["loss"] / math.log(2), rel=1e-5)
    assert found["own"] == pytest.approx(lengths.sum() / -(-60 // batch_size))


def test_metrics_of_two_classes_and_of_numbers() -> None:
    y, target = np.array([[2.0], [-1.0], [3.0], [-2.0]]), np.array([[1.0], [1.0], [0.0], [0.0]])
    f1, accuracy, mae = metrics.F1("binary"), metrics.Accuracy(), metrics.MAE()
    for metric in (f1, accuracy, mae):
        assert math.isnan(metric.compute())
        for k in range(0, 4, 2):
            metric.update(y[k : k + 2], target[k : k + 2])
    assert (f1.compute(), accuracy.compute(), mae.compute()) == (0.5, 0.5, 2.0)
    with pytest.raises(
        ValueError, match="average: expected one of 'macro', 'micro', 'binary', got 'weighted'"
    ):
        metrics.F1("weighted")
    ignored = metrics.Accuracy()
    ignored.update(np.eye(3), np.array([0, 0, -100]))
    assert ignored.compute() == 0.5


def test_metrics_in_history_log_and_early_stopping(tmp_path: Path) -> None:
    x, target, _ = classes()
    trainer = classifier(metrics=["accuracy", "f1"])
    options: Any = {"validation": (x[:20], target[:20]), "monitor": "valid_accuracy"}
    history = quiet(
        trainer, (x, target), epochs=30, patience=4, log=tmp_path / "log.csv", **options
    )
    accuracies = history.column("valid_accuracy")
    assert history.best is not None
    assert history.best["valid_accuracy"] == max(accuracies)
    assert history.rows.index(history.best) == accuracies.index(max(accuracies))
    assert trainer.evaluate((x[:20], target[:20]))["accuracy"] == max(accuracies)
    assert len(accuracies) == 30 or accuracies.index(max(accuracies)) == len(accuracies) - 5
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header == "step,epoch,loss,rate,norm,valid_loss,valid_accuracy,valid_f1,seconds"
    own = classifier(metrics={"own": lambda y, t, n: (0.0, 1)})
    with pytest.raises(ValueError, match="mode: expected 'min' or 'max' with monitor='valid_own'"):
        quiet(own, (x, target), validation=(x, target), monitor="valid_own")
    assert (
        quiet(own, (x, target), validation=(x, target), monitor="valid_own", mode="max").best
        is not None
    )
    with pytest.raises(ValueError, match="monitor: expected validation data to watch"):
        quiet(trainer, (x, target), monitor="valid_accuracy")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"loss": metrics.MAE()}, ValueError, "metrics: expected names other than 'loss'"),
        (
            ["acc"],
            ValueError,
            "metrics: expected one of 'accuracy', 'f1', 'mae', 'bits_per_character', "
            "'average_precision', 'label_error_rate', got 'acc'",
        ),
        ("accuracy", TypeError, "metrics: expected a dict or a list, got str"),
        (
            [metrics.F1("macro"), metrics.F1("micro")],
            ValueError,
            "metrics: expected different names, got 'f1' twice; give a dict of names to metrics",
        ),
        ({1: "f1", "1": "mae"}, ValueError, "metrics: expected different names, got '1' twice"),
        ({"a": 3}, TypeError, r"metrics\['a'\]: expected a Metric or a function, got int"),
    ],
    ids=["loss", "acc", "text", "twice", "twice in a dict", "number"],
)
def test_metrics_are_checked(given: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        classifier(metrics=given)


# -- what users of other libraries write -----------------------------------------------------------


def test_classes_in_place_of_objects() -> None:
    model = nn.Sequential(nn.GRU(1, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=1))
    trainer = ost.Trainer(model, losses.MSE)
    assert isinstance(trainer.loss, losses.MSE)
    assert isinstance(trainer.optimizer, optim.Adam)
    assert isinstance(ost.Trainer(model, losses.MSE, optim.AdamW).optimizer, optim.AdamW)
    with pytest.raises(
        TypeError,
        match="optimizer: expected an Optimizer, got the class SGD, which needs arguments: lr",
    ):
        ost.Trainer(model, losses.MSE, optim.SGD)
    with pytest.raises(TypeError, match="loss: expected a Loss, got str"):
        ost.Trainer(model, "mse")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clip_norm: expected a number, got 'a'"):
        ost.Trainer(model, losses.MSE, clip_norm="a")  # type: ignore[arg-type]


def test_the_rate_has_two_names() -> None:
    model = nn.Linear(1, 1)
    for make in (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW):
        assert make(lr=0.25).lr == make(rate=0.25).lr == make(0.25).rate == 0.25
        with pytest.raises(
            TypeError,
            match="lr: expected the learning rate alone, got Views before it; the Trainer",
        ):
            make(model.parameters(), 1e-3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="lr: expected a number or a Schedule, got Views"):
            make(model.parameters())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="rate: expected None beside lr"):
            make(0.1, rate=0.1)
    assert optim.Adam().lr == optim.AdamW().lr == 1e-3
    assert optim.RMSprop().lr == 1e-2
    for schedule in (
        optim.Constant(rate=2),
        optim.Cosine(rate=2, steps=3),
        optim.StepDecay(lr=2, every=1),
    ):
        assert schedule(0) == 2
    for call, words in (
        (lambda: optim.Adam(betas=""), r"betas: expected a pair of numbers"),  # type: ignore[arg-type]
        (lambda: optim.Adam(eps="a"), "eps: expected a number, got 'a'"),  # type: ignore[arg-type]
        (lambda: optim.SGD(0.1, momentum=None), "momentum: expected a number, got None"),  # type: ignore[arg-type]
        (lambda: optim.Adam(weight_decay=""), "weight_decay: expected a number, got ''"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop, optim.AdamW])
def test_rates_by_group(make: Any) -> None:
    """A factor of the rate is that rate for those parameters."""

    def moved(lr: float, groups: Any) -> Any:
        model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Linear(3, 1, rng=1))
        trainer = ost.Trainer(model, losses.MSE(), make(lr, groups=groups))
        x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
        before = model.state_dict()
        quiet(trainer, (x, x.sum(1, keepdims=True)))
        return {n: v - before[n] for n, v in model.state_dict().items()}

    mixed, plain, tenth = moved(0.1, {"0.*": 0.1, "*.bias": 0}), moved(0.1, None), moved(0.01, None)
    assert np.array_equal(mixed["1.weight"], plain["1.weight"])
    np.testing.assert_allclose(mixed["0.weight"], tenth["0.weight"], rtol=1e-4, atol=1e-7)
    assert not mixed["0.bias"].any()
    assert not mixed["1.bias"].any()
    with pytest.raises(
        KeyError, match="groups: expected to match a parameter among weight, bias, got 'rnn"
    ):
        ost.Trainer(nn.Linear(1, 1), losses.MSE, make(0.1, groups={"rnn.*": 0.1}))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_are_those_of_pytorch(smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    r = np.random.default_rng(0)
    y, target, weights = (
        r.standard_normal((7, 3, 5)),
        r.integers(0, 5, (7, 3)),
        np.array([0, 1, 2.5, 0.5, 1]),
    )
    target[2, 1] = -100
    theirs = torch.tensor(y, requires_grad=True)
    value = torch.nn.functional.cross_entropy(
        theirs.reshape(-1, 5),
        torch.tensor(target).reshape(-1),
        torch.tensor(weights),
        label_smoothing=smoothing,
    )
    value.backward()
    loss, dy = losses.CrossEntropy(class_weights=weights, label_smoothing=smoothing)(y, target)
    assert loss == pytest.approx(value.item(), rel=1e-12)
    np.testing.assert_allclose(dy, theirs.grad.numpy(), atol=1e-14)
    plain = losses.CrossEntropy(label_smoothing=smoothing)(y, target)
    same = losses.CrossEntropy(label_smoothing=smoothing, class_weights=np.ones(5))(y, target)
    assert same[0] == pytest.approx(plain[0], rel=1e-12)
    np.testing.assert_allclose(same[1], plain[1], atol=1e-14)
    with pytest.raises(ValueError, match="class_weights: expected one for each of 5 classes"):
        losses.CrossEntropy(class_weights=[1, 2])(y, target)


# -- TensorBoard -----------------------------------------------------------------------------------


def test_tensorboard_reads_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    trainer = fresh()
    trainer.callbacks.append(TensorBoard(tmp_path, every=1))
    history = quiet(trainer, ones(), validation=ones(), epochs=3)
    found: dict[str, list[tuple[int, float]]] = {}
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        while raw:  # length, its checksum, the event, its checksum
            size = int.from_bytes(raw[:8], "little")
            event = event_pb2.Event.FromString(raw[12 : 12 + size])
            raw = raw[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    for name in ("loss", "valid_loss", "rate"):
        assert [step for step, _ in found[name]] == [1, 2, 3]
        np.testing.assert_allclose([v for _, v in found[name]], history.column(name), rtol=1e-6)
    assert len(found["step/loss"]) == 3


@pytest.mark.parametrize("folder", [3, None])
def test_the_folder_of_tensorboard_is_a_path(folder: Any) -> None:
    with pytest.raises(TypeError, match="folder: expected a path"):
        TensorBoard(folder)


def test_tensorboard_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    trainer = fresh()
    trainer.callbacks.append(TensorBoard(tmp_path))
    with pytest.raises(ImportError, match=r"pip install 'ostinato\[tensorboard\]'"):
        quiet(trainer, ones())


# -- progress --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def closed() -> Any:
    out = Terminal()
    out.close()
    return out


@pytest.mark.parametrize("bar", ["tqdm", "plain"])
@pytest.mark.parametrize("kind", ["none", "closed", "full", "broken", "narrow", "terminal"])
def test_progress_is_never_a_reason_to_stop(
    bar: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bar == "tqdm":
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    monkeypatch.setenv("COLUMNS", "12" if kind == "narrow" else "80")
    streams = {
        "none": lambda: None,
        "closed": closed,
        "full": lambda: open("/dev/full", "w", buffering=1),  # noqa: SIM115
        "broken": Broken,
    }
    stream = streams.get(kind, Terminal)()
    trainer = classifier(metrics=["accuracy"])
    x, target, _ = classes()
    with monkeypatch.context() as m:
        m.setattr(sys, "stderr", stream)
        history = trainer.fit((x, target), validation=(x, target), epochs=3, batch_size=4)
    assert len(history.rows) == 3
    if kind == "terminal":
        text = stream.getvalue()
        assert text.isascii()
        assert "step 15  epoch 1  loss" in text
        assert "accuracy 0." in text
    if kind == "full":
        with contextlib.suppress(OSError):
            stream.close()


def test_progress_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.train import _progress

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(_progress, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    bar = _progress.Progress(4)
    bar.on_start(types.SimpleNamespace(at_step=0))  # type: ignore[arg-type]
    bar.on_step(fresh(), 1, 0.5, 1.0)  # 10 s for a step, three to go
    assert "0:30 left  step 1  loss 0.5000" in out.getvalue()


# -- strict floating point -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop, optim.AdamW])
@pytest.mark.parametrize(
    "loss",
    [losses.MSE(), losses.MAE(), losses.Huber(), losses.BinaryCrossEntropy()],
    ids=["mse", "mae", "huber", "bce"],
)
def test_floating_point_errors_break_nothing(make: Any, loss: Any) -> None:
    """Squares of 1e-30 are below the range of float32."""
    strict: list[Any] = []

    class Look(Callback):
        def on_row(self, trainer: Any, row: Any) -> None:
            strict.append(np.geterr()["under"])

    x = np.full((8, 5, 1), 1e-30, np.float32)
    model = nn.Sequential(
        nn.Linear(1, 4, rng=0),
        nn.Activation("tanh"),
        nn.GRU(4, 4, batch_first=True, rng=0),
        nn.Linear(4, 1, rng=1),
    )
    with model.write() as p:
        p.flat[...] *= np.float32(1e-20)
    trainer = ost.Trainer(
        model, loss, make(0.1, weight_decay=1e-3), clip_norm=1e-3, callbacks=[Look()]
    )
    with np.errstate(all="raise"):
        quiet(trainer, (x, x), validation=(x, x), epochs=2)
        trainer.predict(x)
    assert strict == ["raise", "raise"]  # what the user's own functions see is the user's choice


class OwnError(ost.losses.Loss):
    """A weighted mean squared error that is called, and says nothing of what it counted."""

    def __call__(  # type: ignore[override]
        self, y: Any, target: Any, lengths: Any = None, *, weights: Any = None
    ) -> tuple[float, Any]:
        on = np.ones(y.shape[:2])
        if lengths is not None:
            steps = np.arange(y.shape[1])
            on = (lengths if lengths.dtype == bool else steps < lengths[:, None]) * 1.0
        w = on if weights is None else on * weights
        d = y - target
        slopes = 2 * d / y.shape[-1] * (w / w.sum())[..., None]
        return float(((d * d).mean(-1) * w).sum() / w.sum()), slopes


@pytest.mark.parametrize("times", ["lengths", "mask"])
def test_weights_of_padding_do_not_count_in_a_loss_of_ones_own(times: str) -> None:
    r = np.random.default_rng(0)
    x, y, w = r.normal(size=(6, 5, 2)), r.normal(size=(6, 5, 2)), r.random((6, 5)) + 0.1
    mask = r.random((6, 5)) < 0.7
    mask[:, 0] = True
    given = {"lengths": np.array([5, 1, 2, 4, 1, 3])} if times == "lengths" else {"mask": mask}
    found = []
    for loss in (ost.losses.MSE(), OwnError()):
        model = nn.GRU(2, 2, batch_first=True, dtype=np.float64, rng=0)
        trainer = ost.Trainer(model, loss, optim.SGD(1.0))
        data = (x, y, {**given, "weights": w})
        figures = [trainer.evaluate(data, batch_size=b)["loss"] for b in (6, 2, 1)]
        options: Any = {"batch_size": 2, "accumulate": 3, "shuffle": False, "progress": False}
        row = trainer.fit(data, epochs=1, **options).rows[-1]
        found.append([*figures, row["loss"], row["norm"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
    np.testing.assert_allclose(found[0][:4], found[0][0], rtol=1e-12)


def test_windows_are_not_for_layers_that_read_several_steps() -> None:
    """No state carries what they read of the steps before a window."""
    wide = nn.Sequential(nn.Conv1d(1, 2, 3, padding="causal"), nn.GRU(2, 3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"tbptt: expected layers .* got a Conv1d\(1, 2, 3"):
        ost.Trainer(wide, losses.MSE(), tbptt=(2, 4))
    narrow = nn.Sequential(nn.Conv1d(1, 2, 1), nn.GRU(2, 3), nn.Linear(3, 1))
    ost.Trainer(narrow, losses.MSE(), tbptt=(2, 4))
    parts = nn.Embedding(5, 2), nn.LSTM(2, 6), nn.Linear(6, 5)
    decoder = nn.Decoder(*parts, attention=nn.Attention(), memory_size=6, feed="none")
    ost.Trainer(decoder, losses.CrossEntropy(), tbptt=(2, 4))  # it attends to a memory
    text = np.arange(40) % 5
    loader = ost.data.StreamLoader(text, batch_size=2, window=4)
    ends = nn.Embedding(5, 2), nn.Linear(2, 5)
    over = nn.Sequential(ends[0], nn.Residual(nn.Conv1d(2, 2, 3)), nn.GRU(2, 2), ends[1])
    with pytest.raises(ValueError, match="train: expected layers that read one step at a time"):
        ost.Trainer(over, losses.CrossEntropy()).fit(loader, steps=1, progress=False)


def test_weights_of_outputs_of_which_there_are_fewer_than_steps() -> None:
    k: Any = {"batch_first": True, "dtype": np.float64}
    model = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2, rng=0, **k), nn.GRU(2, 2, rng=1, **k))
    r = np.random.default_rng(0)
    x, y, lengths = r.normal(size=(4, 7, 2)), r.normal(size=(4, 4, 2)), np.array([7, 3, 4, 1])
    trainer = ost.Trainer(model, losses.MSE())
    plain = trainer.evaluate([(x, y, {"lengths": lengths})])
    ones = trainer.evaluate([(x, y, {"lengths": lengths, "weights": np.ones((4, 4))})])
    assert ones == pytest.approx(plain)
    chosen = {"lengths": lengths, "weights": np.array([1.0, 0, 0, 0])}
    alone = trainer.evaluate([(x[:1], y[:1], {"lengths": lengths[:1]})])
    assert trainer.evaluate([(x, y, chosen)]) == pytest.approx(alone)


def test_a_loss_of_ones_own_of_whole_sequences_counts_by_their_weights() -> None:
    class Whole(OwnError):
        takes_sequences = True

        def __call__(  # type: ignore[override]
            self, y: Any, target: Any, lengths: Any = None, *, weights: Any = None
        ) -> tuple[float, Any]:
            each = weights[:, None] * (np.arange(y.shape[1]) < lengths[:, None])
            d = y - target
            slopes = 2 * d * each[..., None] / weights.sum()
            return float((d * d * each[..., None]).sum() / weights.sum()), slopes

    r = np.random.default_rng(0)
    x, y = r.normal(size=(6, 5, 2)), r.normal(size=(6, 5, 2))
    given = {"lengths": np.array([5, 1, 2, 4, 1, 3]), "weights": r.random(6) + 0.1}
    model = nn.GRU(2, 2, batch_first=True, dtype=np.float64, rng=0)
    trainer = ost.Trainer(model, Whole(), optim.SGD(1.0))
    figures = [trainer.evaluate((x, y, given), batch_size=b)["loss"] for b in (6, 2, 1)]
    np.testing.assert_allclose(figures, figures[0], rtol=1e-12)
