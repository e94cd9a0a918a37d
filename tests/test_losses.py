"""Quantile, focal and weighted losses: formulas, finite differences, PyTorch, devices."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import native_for_tests, numeric_gradient
from ostinato import _device, losses


def sigmoid(y: Any) -> Any:
    return 1 / (1 + np.exp(-y))


def softmax(y: Any) -> Any:
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pinball(q: Any, y: Any, target: Any) -> Any:
    d = target - y
    return np.where(d > 0, q * d, (q - 1) * d)


def focal(y: Any, target: Any, gamma: float, one: float = 1.0, zero: float = 1.0) -> Any:
    p = sigmoid(y)
    return -one * target * (1 - p) ** gamma * np.log(p) - zero * (1 - target) * p**gamma * np.log(
        1 - p
    )


W = np.array([0.5, 3.0])
ELEMENTWISE: dict[str, Any] = {
    "quantile 0.9": (losses.Quantile(0.9), lambda y, t: pinball(0.9, y, t)),
    "quantiles": (losses.Quantile([0.1, 0.7]), lambda y, t: pinball(np.array([0.1, 0.7]), y, t)),
    "bce 3": (
        losses.BinaryCrossEntropy(positive_weight=3),
        lambda y, t: -3 * t * np.log(sigmoid(y)) - (1 - t) * np.log(1 - sigmoid(y)),
    ),
    "bce [D]": (
        losses.BinaryCrossEntropy(positive_weight=W),
        lambda y, t: -W * t * np.log(sigmoid(y)) - (1 - t) * np.log(1 - sigmoid(y)),
    ),
    "focal 0": (losses.BinaryFocal(0), lambda y, t: focal(y, t, 0)),
    "focal 0.5": (losses.BinaryFocal(0.5), lambda y, t: focal(y, t, 0.5)),
    "focal 2": (losses.BinaryFocal(2, alpha=0.25), lambda y, t: focal(y, t, 2, 0.25, 0.75)),
}


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_losses_of_elements(name: str, lengths: Any) -> None:
    loss, formula = ELEMENTWISE[name]
    rng = np.random.default_rng(0)
    y, target = 2 * rng.normal(size=(4, 3, 2)), rng.uniform(0, 1, (4, 3, 2))
    if name == "quantiles":
        target = target[..., :1]
    on = np.ones((4, 3), bool) if lengths is None else np.arange(4)[:, None] < lengths
    value, dy = loss(y, target, lengths)
    assert value == pytest.approx(formula(y, target)[on].mean(), rel=1e-12)
    np.testing.assert_allclose(
        dy, numeric_gradient(lambda: loss(y, target, lengths)[0], y), rtol=1e-5, atol=1e-9
    )
    weights = rng.uniform(0, 2, (4, 3))
    weighted, dw = loss(y, target, lengths, weights=weights)
    assert weighted == pytest.approx(
        (weights[..., None] * formula(y, target))[on].sum() / (2 * weights[on].sum()), rel=1e-12
    )
    numeric = numeric_gradient(lambda: loss(y, target, lengths, weights=weights)[0], y)
    np.testing.assert_allclose(dw, numeric, rtol=1e-5, atol=1e-9)
    y[~on] = np.nan
    again, dnan = loss(y, target, lengths)
    assert again == value
    assert (dnan[~on] == 0).all()
    if name == "quantiles":
        assert loss(y, target[..., 0], lengths)[0] == value
    single = loss(np.where(on[..., None], y, 0).astype(np.float32), target, lengths)
    assert single[0] == pytest.approx(value, rel=1e-5)
    assert single[1].dtype == np.float32


def test_the_least_quantile_loss_is_at_the_quantile() -> None:
    target = np.random.default_rng(1).exponential(size=2001)
    for q in (0.05, 0.5, 0.9):
        at = np.quantile(target, q)
        best = losses.Quantile(q)(np.full(2001, at), target)[0]
        for other in (at - 0.05, at + 0.05):
            assert losses.Quantile(q)(np.full(2001, other), target)[0] > best
    assert losses.Quantile(0.5)(target, 0 * target)[0] == pytest.approx(
        losses.MAE()(target, 0 * target)[0] / 2
    )
    value, dy = losses.Quantile(0.9)(np.array([1.0, np.nan]), np.array([1.0, 1.0]))
    assert np.isnan(value)
    assert dy[0] == 0  # at the kink
    assert np.isnan(dy[1])


def test_logits_far_away() -> None:
    y, target = np.array([1000.0, -1000.0, 1000.0, -1000.0]), np.array([1.0, 1.0, 0.0, 0.0])
    for gamma in (0.5, 1.0, 2.0):
        value, dy = losses.BinaryFocal(gamma)(y, target)
        assert value == 500
        np.testing.assert_allclose(4 * dy, [0, -1, 1, 0], atol=1e-300)
    value, dy = losses.BinaryCrossEntropy(positive_weight=2.0)(y, target)
    assert value == 750
    np.testing.assert_allclose(4 * dy, [0, -2, 1, 0], atol=1e-300)
    for gamma in (0.0, 0.5, 1.0, 2.0):
        value, dy = losses.Focal(gamma)(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
        assert value == 500
        np.testing.assert_allclose(2 * dy, [[0, 0], [-1, 1]], atol=1e-300)


def test_the_positive_weight_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    y, target = rng.normal(size=(5, 2)), rng.integers(0, 2, (5, 2)).astype(float)
    x = torch.tensor(y, requires_grad=True)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        x, torch.tensor(target), pos_weight=torch.tensor(W)
    )
    want.backward()
    value, dy = losses.BinaryCrossEntropy(positive_weight=W)(y, target)
    assert value == pytest.approx(want.item(), rel=1e-12)
    np.testing.assert_allclose(dy, x.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_of_classes(gamma: float, weighted: bool) -> None:
    rng = np.random.default_rng(3)
    y, target = 2 * rng.normal(size=(4, 3, 5)), rng.integers(0, 5, (4, 3))
    target[1, 1], lengths = -7, [4, 3, 1]
    each = np.array([0.5, 0, 1, 2, 3]) if weighted else None
    weights = rng.uniform(0, 2, (4, 3)) if weighted else None
    loss = losses.Focal(gamma, ignore_index=-7, class_weights=each)
    on = (np.arange(4)[:, None] < lengths) & (target != -7)
    p = np.take_along_axis(softmax(y), np.where(on, target, 0)[..., None], 2)[..., 0]
    v = np.ones((4, 3)) if weights is None else weights * each[np.where(on, target, 0)]
    want = ((-v * (1 - p) ** gamma * np.log(p))[on]).sum() / v[on].sum()
    value, dy = loss(y, target, lengths, weights=weights)
    assert value == pytest.approx(want, rel=1e-12)
    numeric = numeric_gradient(lambda: loss(y, target, lengths, weights=weights)[0], y)
    np.testing.assert_allclose(dy, numeric, atol=1e-8)
    if gamma == 0:
        entropy = losses.CrossEntropy(ignore_index=-7, class_weights=each)
        other, d = entropy(y, target, lengths, weights=weights)
        assert value == pytest.approx(other, rel=1e-13)
        np.testing.assert_allclose(dy, d, atol=1e-15)
    y[~on] = np.nan
    assert loss(y, target, lengths, weights=weights)[0] == value
    assert (loss(y, target, lengths, weights=weights)[1][~on] == 0).all()
    assert loss(y, np.full((4, 3), -7))[0] == 0


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=str)
@pytest.mark.parametrize("name", [*ELEMENTWISE, "focal of classes"])
def test_on_a_device(name: str, lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    native_for_tests()
    import fake_cupy

    gpu = fake_cupy.stand_in(monkeypatch)
    rng = np.random.default_rng(4)
    y, target = rng.normal(size=(4, 3, 2)), rng.uniform(0, 1, (4, 3, 2))
    if name == "focal of classes":
        loss, target = losses.Focal(1.5, class_weights=[1, 2]), rng.integers(0, 2, (4, 3))
    else:
        loss = ELEMENTWISE[name][0]
    if name == "quantiles":
        target = target[..., 0]
    weights = rng.uniform(0, 2, (4, 3))
    value, dy = loss(y, target, lengths, weights=weights)
    again, d = loss(gpu.put(y), gpu.put(target), lengths, weights=weights)
    assert again == pytest.approx(value, rel=1e-13)
    assert _device.of(d) is gpu
    np.testing.assert_allclose(_device.host(d), dy, rtol=1e-12, atol=1e-15)


BAD: dict[str, Any] = {
    "quantile 0": (
        lambda: losses.Quantile(0.0),
        ValueError,
        "quantile: expected numbers between 0 and 1, got 0.0",
    ),
    "no quantile": (
        lambda: losses.Quantile([]),
        ValueError,
        "quantile: expected numbers between 0 and 1",
    ),
    "a word": (
        lambda: losses.Quantile("half"),
        TypeError,
        "quantile: expected a number between 0 and 1, got 'half'",
    ),
    "gamma": (
        lambda: losses.Focal(-1),
        ValueError,
        "gamma: expected a finite number of at least 0",
    ),
    "binary gamma": (
        lambda: losses.BinaryFocal(np.nan),
        ValueError,
        "gamma: expected a finite number of at least 0",
    ),
    "alpha": (
        lambda: losses.BinaryFocal(alpha=1.0),
        ValueError,
        "alpha: expected a number between 0 and 1, got 1.0",
    ),
    "weight 0": (
        lambda: losses.BinaryCrossEntropy(positive_weight=0),
        ValueError,
        "positive_weight: expected a finite",
    ),
    "class weights": (
        lambda: losses.Focal(class_weights=[-1, 2]),
        ValueError,
        "class_weights: expected",
    ),
    "three weights": (
        lambda: losses.BinaryCrossEntropy(positive_weight=[1, 2, 3])(
            np.zeros((4, 2)), np.zeros((4, 2))
        ),
        ValueError,
        r"positive_weight: expected one for each element of the last axis of y, \(2,\), got \(3,\)",
    ),
    "outputs of quantiles": (
        lambda: losses.Quantile([0.1, 0.9])(np.zeros((4, 3)), np.zeros(4)),
        ValueError,
        r"y: expected 2 on the last axis, one for each quantile, got shape \(4, 3\)",
    ),
    "target of quantiles": (
        lambda: losses.Quantile([0.1, 0.9])(np.zeros((4, 2)), np.zeros((4, 2))),
        ValueError,
        r"target: expected shape \(4,\) or \(4, 1\), got \(4, 2\)",
    ),
    "weights of classes": (
        lambda: losses.Focal(class_weights=[1, 2, 3])(np.zeros((4, 2)), np.zeros(4, int)),
        ValueError,
        "class_weights: expected one for each of 2 classes",
    ),
    "a class": (
        lambda: losses.Focal()(np.zeros((4, 2)), np.full(4, 2)),
        ValueError,
        "target: expected class numbers from 0 to 1, got 2",
    ),
}


@pytest.mark.parametrize(
    "weights",
    [
        np.array([1, 2.5], object),
        [Decimal(1), Decimal("2.5")],
        (Fraction(1), Fraction(5, 2)),
        [np.float32(1), Decimal("2.5")],
        np.array([True, 2.5], object),
    ],
)
def test_weights_may_be_any_numbers(weights: Any) -> None:
    for got in (
        losses.CrossEntropy(class_weights=weights).class_weights,
        losses.BinaryCrossEntropy(positive_weight=weights).positive_weight,
    ):
        assert got is not None
        assert (got.dtype, got.tolist()) == (np.dtype(np.float64), [1, 2.5])


@pytest.mark.parametrize(
    "weights",
    [
        ["1", "2"],
        np.array(["1", 2], object),
        np.array([b"1", 2], object),
        [1j, 2],
        np.array([np.complex128(1), 2], object),
        [date(2026, 1, 1)],
        np.array([1, 2], "M8[D]"),
        np.array([np.timedelta64(1, "D"), 2], object),
        [None, 1],
        [[1], [1, 2]],
        [10**400],
    ],
)
def test_what_is_no_number_is_no_weight(weights: Any) -> None:
    with pytest.raises(TypeError, match="class_weights: expected"):
        losses.Focal(class_weights=weights)
    with pytest.raises(TypeError, match="positive_weight: expected"):
        losses.BinaryCrossEntropy(positive_weight=weights)


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_trainer_with_quantiles() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 8, 1)).astype(np.float32)
    target = x + rng.normal(size=x.shape).astype(np.float32)
    model = ost.nn.Sequential(ost.nn.GRU(1, 8, batch_first=True, rng=0), ost.nn.Linear(8, 2, rng=0))
    trainer = ost.Trainer(model, losses.Quantile([0.1, 0.9]), ost.optim.Adam(2e-2))
    trainer.fit((x, target), epochs=40, progress=False)
    low, high = np.moveaxis(trainer.predict(x), -1, 0)
    inside = ((target[..., 0] >= low) & (target[..., 0] <= high)).mean()
    assert 0.7 < inside < 0.9


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (losses.CrossEntropy(), [0, 1]),
        (losses.CrossEntropy(label_smoothing=0.1, class_weights=[1.0, 2.0]), [0, 1]),
        (losses.Focal(), [0, 1]),
        (losses.MSE(), [[0.0, 1.0], [1.0, 0.0]]),
        (losses.MAE(), [[0.0, 1.0], [1.0, 0.0]]),
        (losses.Huber(), [[0.0, 1.0], [1.0, 0.0]]),
        (losses.BinaryCrossEntropy(), [[0.0, 1.0], [1.0, 0.0]]),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_of_weight_0_does_not_count(loss: Any, target: Any, bad: float) -> None:
    """Whatever it holds, as one that a mask leaves out."""
    y, target = np.array([[0.5, -1.0], [0.25, 2.0]]), np.array(target)
    value, dy = loss(y[:1], target[:1])
    y[1, 0] = bad
    got, slopes = loss(y, target, weights=np.array([1.0, 0.0]))
    assert got == pytest.approx(value)
    np.testing.assert_allclose(slopes, np.concatenate([dy, np.zeros((1, 2))]))


def test_a_class_that_cannot_be() -> None:
    """Focal loss at gamma 0 is cross entropy, also there."""
    y, target = np.array([[-np.inf, 0.0]]), np.array([0])
    for loss in (losses.CrossEntropy(), losses.Focal(0.0), losses.Focal(2.0)):
        value, dy = loss(y, target)
        assert value == np.inf
        assert dy.tolist() == [[-1.0, 1.0]]
