"""The CTC loss: published numbers, all paths, PyTorch; layouts, rules, the Trainer, devices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import native_for_tests, numeric_gradient
from ostinato import _device, _native, losses, reference

DTYPES = [np.float32, np.float64]
LIMIT = {np.float32: 2e-6, np.float64: 1e-12}  # of gradients, and of losses relative to them


def softmax(y: Any) -> Any:
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# -- numbers of others -----------------------------------------------------------------------------

# The example of A. Graves' that TensorFlow's and Keras' tests hold: probabilities, labels, the loss
# and its gradient at three steps.
GRAVES = np.array(
    [
        [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
        [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
        [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
        [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
        [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
    ]
)
GRAVES_GRADIENT = {
    0: [-0.366234, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
    2: [0.0357786, 0.633813, -0.678582, 0.00249248, 0.00272882, 0.0037688],
    4: [-0.541765, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
}
PUBLISHED: dict[str, Any] = {
    "graves": (np.log(GRAVES), [0, 1, 2, 1, 0], 5, 3.34211),
    "keras 3 labels": (
        [[0.4, 0.8, 0.4], [0.2, 0.8, 0.3], [0.9, 0.4, 0.5]],
        [1, 2, 1],
        0,
        3.4411672,
    ),
    "keras 2 labels": ([[0.4, 0.8, 0.4], [0.2, 0.3, 0.3]], [1, 2], 0, 1.91680186),
    "warp-ctc small": (
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]],
        [1, 2],
        0,
        2.46285844,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses(name: str, dtype: Any, kernel_set: str) -> None:
    logits, labels, blank, want = PUBLISHED[name]
    y = np.asarray(logits, dtype)[:, None]
    value, dy = losses.CTC(blank=blank)(y, np.array([labels]))
    assert value == pytest.approx(
        want, abs=1e-5 if name == "graves" else 1e-7 if dtype == np.float64 else 5e-7
    )
    if name == "graves":
        for t, row in GRAVES_GRADIENT.items():
            np.testing.assert_allclose(dy[t, 0], row, atol=1e-6)


@pytest.mark.parametrize("labels", [[], [1], [1, 1], [1, 2], [2, 1, 2], [1, 1, 1, 1]], ids=str)
def test_the_probability_is_that_of_all_paths(labels: list[int], kernel_set: str) -> None:
    y = np.random.default_rng(0).normal(size=(5, 3))
    p, total = softmax(y), 0.0
    for path in itertools.product(range(3), repeat=5):
        if [k for k, _ in itertools.groupby(path) if k] == labels:
            total += np.prod(p[np.arange(5), path])
    rule = "zero" if total == 0 else "error"
    value, dy = losses.CTC(impossible=rule)(y[:, None], np.array([labels], int))
    if total == 0:  # four equal labels need seven steps
        assert value == 0
        assert not dy.any()
    else:
        assert value == pytest.approx(-np.log(total), rel=1e-13)
        assert reference.ctc(y, np.array(labels, int))[0] == pytest.approx(value, rel=1e-13)


def batch(dtype: Any, seed: int = 0, blank: int = 0, scale: float = 2.0) -> tuple[Any, Any, Any]:
    """Rows of all kinds: repeats, no labels, no steps, as many labels as steps, one step."""
    rng = np.random.default_rng(seed)
    lengths = np.array([11, 9, 0, 5, 1, 7, 11, 10])
    labels = [
        [1, 1, 2, 3, 3],
        [],
        [],
        [1, 2, 3, 1, 2],
        [5],
        [5, 5, 5, 5],
        [2],
        rng.integers(1, 6, 4),
    ]
    y = scale * rng.normal(size=(11, 8, 6))
    moved = [np.array([(k + blank) % 6 for k in row], int) for row in labels]
    y[np.arange(11)[:, None] >= lengths] = np.nan
    return y.astype(dtype), moved, lengths


def rows_of(y: Any, lengths: Any) -> list[Any]:
    return [np.ascontiguousarray(y[:n, b]) for b, n in enumerate(lengths)]


@pytest.mark.parametrize("blank", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_reference(dtype: Any, blank: int, kernel_set: str) -> None:
    y, labels, lengths = batch(dtype, blank=blank)
    value, dy = losses.CTC(blank=blank)(y, labels, lengths)
    total = 0.0
    for b, n in enumerate(lengths):
        loss, gradient = reference.ctc(y[:n, b].astype(np.float64), labels[b], blank)
        total += loss
        np.testing.assert_allclose(dy[:n, b] * 8, gradient, atol=LIMIT[dtype])
        assert (dy[n:, b] == 0).all()
    assert value * 8 == pytest.approx(total, rel=LIMIT[dtype])
    assert dy.dtype == dtype


def test_against_finite_differences(kernel_set: str) -> None:
    rng = np.random.default_rng(1)
    y, target, weights = (
        rng.normal(size=(5, 3, 4)),
        np.array([[1, 1, 2], [3, -1, -1], [2, 3, -9]]),
        np.array([2, 0.5, 1]),
    )
    for loss in (losses.CTC(), losses.CTC(normalize=True)):
        dy = loss(y, target, [5, 4, 3], weights=weights)[1]
        numeric = numeric_gradient(
            lambda loss=loss: loss(y, target, [5, 4, 3], weights=weights)[0], y
        )
        np.testing.assert_allclose(dy, numeric, atol=1e-8)


@pytest.mark.parametrize("rule", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_torch(dtype: Any, rule: str, kernel_set: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    steps, size, classes, most = 60, 9, 20, 18
    y = (3 * rng.normal(size=(steps, size, classes))).astype(dtype)
    target, lengths = rng.integers(0, 19, (size, most)), rng.integers(37, steps + 1, size)
    counts = rng.integers(0, most + 1, size)
    target[np.arange(most) >= counts[:, None]] = -1
    x = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(-1),
        torch.tensor(target),
        torch.tensor(lengths),
        torch.tensor(counts),
        blank=19,
        reduction=rule,
    )
    loss.backward()
    total, count, dy = losses.CTC(blank=19, normalize=rule == "mean").parts(y, target, lengths)
    ours, scale = (total / count, 1) if rule == "mean" else (total, count)
    assert ours == pytest.approx(loss.item(), rel=LIMIT[dtype])
    np.testing.assert_allclose(scale * dy, x.grad.numpy(), atol=LIMIT[dtype])


def test_zero_is_the_zero_infinity_of_torch() -> None:
    torch = pytest.importorskip("torch")
    y = np.random.default_rng(3).normal(size=(4, 3, 5))
    target, lengths = np.array([[1, 1, 2], [1, 1, 1], [3, 4, -1]]), np.array([4, 4, 2])
    y[1, 2, 3:] = -np.inf  # the label of that step has to be 4
    x = torch.tensor(y, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(-1),
        torch.tensor(target),
        torch.tensor(lengths),
        torch.tensor([3, 3, 2]),
        zero_infinity=True,
    )
    value, dy = losses.CTC(impossible="zero", normalize=True)(y, target, lengths)
    assert value == pytest.approx(loss.item(), rel=1e-13)
    assert not dy[:, 1:].any()
    loss.backward()
    np.testing.assert_allclose(dy[:, 0], x.grad.numpy()[:, 0], atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_underflows(dtype: Any, kernel_set: str) -> None:
    """Probabilities of e^-60 a step: after twelve steps far below what a double holds."""
    rng = np.random.default_rng(4)
    y = rng.normal(size=(250, 12)).astype(dtype)
    y[:, 0] += 60  # a network that has learned nothing but blanks
    labels = rng.integers(1, 12, 60)
    want, gradient = reference.ctc(y.astype(np.float64), labels)
    assert want > 3000
    value, dy = losses.CTC()(y[:, None], labels[None])
    assert value == pytest.approx(want, rel=LIMIT[dtype])
    np.testing.assert_allclose(dy[:, 0], gradient, atol=1e-5 if dtype == np.float32 else 1e-10)
    # Each row of the gradient adds up to zero: probabilities do.
    assert abs(dy.sum(-1)).max() < (1e-5 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 15, 16, 17, 37])
def test_one_class_far_above_the_others(classes: int, dtype: Any, kernel_set: str) -> None:
    """In any lane of a vector, and in the part of one: only differences of logits count."""
    y = np.random.default_rng(9).normal(size=(classes, classes)).astype(dtype)
    y += 500 * np.eye(classes, dtype=dtype)
    labels = np.arange(1, classes)[:: max(classes // 5, 1)]
    want, gradient = reference.ctc(y.astype(np.float64), labels)
    value, dy = losses.CTC()(y[:, None], labels[None])
    assert value == pytest.approx(want, rel=LIMIT[dtype])
    np.testing.assert_allclose(dy[:, 0], gradient, atol=1e-4 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_sequence_is_learned_to_its_end(dtype: Any) -> None:
    """Labels at known steps, with much confidence: hardly any loss, hardly any gradient."""
    steps, rng = 4000, np.random.default_rng(5)
    labels = rng.integers(1, 30, 1000)
    y = np.full((steps, 30), -20, dtype)
    y[:, 0] = 0
    y[::4] = -20
    y[np.arange(0, steps, 4), labels] = 0
    value, dy = losses.CTC()(y[:, None], labels[None])
    want = -np.log(
        softmax(y.astype(np.float64)).max(-1)
    ).sum()  # of the one path; others are e^-20 of it
    assert value == pytest.approx(
        want, **({"rel": 0.05} if dtype == np.float64 else {"abs": 1.2e-7 * steps})
    )
    assert abs(dy).max() < 1e-6


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_layouts_have_the_same_bits(dtype: Any, kernel_set: str, threads: None) -> None:
    y, labels, lengths = batch(dtype)
    loss = losses.CTC()
    value, dy = loss(y, labels, lengths)
    padded = np.full((8, 7), -100)
    for b, row in enumerate(labels):
        padded[b, : len(row)] = row
    flat = ost.Ragged.join(rows_of(y, lengths))
    mask = np.arange(11)[:, None] < lengths
    first = losses.CTC(batch_first=True)
    turned = np.ascontiguousarray(y.swapaxes(0, 1))
    found = {
        "padded": loss(y, padded, lengths),
        "ragged labels": loss(y, ost.Ragged.join(labels), lengths),
        "small dtype": loss(y, padded.astype(np.int16), lengths.astype(np.uint8)),
        "mask": loss(y, padded, mask),
        "views": loss(turned.swapaxes(0, 1), padded, lengths),
        "a wider array": loss(np.pad(y, ((0, 0), (0, 0), (0, 3)))[..., :6], padded, lengths),
        "batch first": tuple(
            a if k == 0 else a.swapaxes(0, 1) for k, a in enumerate(first(turned, padded, lengths))
        ),
    }
    for name, (again, d) in found.items():
        assert again == value, name
        np.testing.assert_array_equal(d, dy, name)
    again, rows = loss(flat, labels)
    assert again == value
    assert rows.offsets.tolist() == flat.offsets.tolist()
    listed = loss(rows_of(y, lengths), labels)[1]
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(rows[b], dy[:n, b])
        np.testing.assert_array_equal(listed[b], dy[:n, b])
    ost.set_num_threads(1)
    np.testing.assert_array_equal(loss(y, labels, lengths)[1], dy)
    for b, n in enumerate(lengths):  # whatever stands beside it in the batch
        np.testing.assert_allclose(
            8 * dy[:n, b], loss(y[:n, b : b + 1], [labels[b]])[1][:, 0], atol=LIMIT[dtype]
        )


def test_a_mask_leaves_out_steps_anywhere() -> None:
    y, target = np.random.default_rng(6).normal(size=(6, 2, 4)), np.array([[1, 2], [3, -1]])
    mask = np.ones((6, 2), bool)
    mask[[0, 3], 0] = mask[4, 1] = False
    value, dy = losses.CTC()(np.where(mask[..., None], y, np.nan), target, mask)
    parts = [losses.CTC()(y[mask[:, b], b][:, None], target[b : b + 1]) for b in range(2)]
    assert value == pytest.approx(sum(p[0] for p in parts) / 2, rel=1e-14)
    for b in range(2):
        np.testing.assert_allclose(2 * dy[mask[:, b], b], parts[b][1][:, 0], atol=1e-14)
    assert not dy[~mask].any()


def test_weights_and_counts() -> None:
    y, labels, lengths = batch(np.float64)
    weights = np.array([1, 0, 2, 0.5, 3, 1, 1, 1])
    each = [losses.CTC()(y[:n, b : b + 1], [labels[b]])[0] for b, n in enumerate(lengths)]
    total, count, dy = losses.CTC().parts(y, labels, lengths, weights=weights)
    assert count == weights.sum()
    assert total == pytest.approx((weights * each).sum(), rel=1e-14)
    assert not dy[:, 1].any()
    sizes = np.array([max(len(row), 1) for row in labels])
    assert losses.CTC(normalize=True).parts(y, labels, lengths, weights=weights)[
        0
    ] == pytest.approx((weights * each / sizes).sum(), rel=1e-14)
    without = losses.CTC().parts(y, labels, lengths, weights=weights, gradient=False)
    assert without[0] == total
    assert without[2] is None
    assert losses.CTC().parts(y, labels, lengths, weights=0 * weights)[:2] == (0, 0)
    assert not losses.CTC()(y, labels, lengths, weights=0 * weights)[1].any()


def test_nothing_to_do() -> None:
    assert losses.CTC()(np.zeros((3, 0, 4)), np.zeros((0, 2), int))[0] == 0
    assert losses.CTC()(np.zeros((3, 0, 4)), [])[1].shape == (3, 0, 4)
    assert losses.CTC()(np.zeros((0, 2, 4)), np.zeros((2, 0), int))[0] == 0
    assert losses.CTC()(np.zeros((5, 1, 1)), np.zeros((1, 0), int))[0] == 0  # a blank alone
    value, dy = losses.CTC()(np.zeros((2, 1, 4)), [[]])
    assert value == pytest.approx(2 * np.log(4))
    np.testing.assert_allclose(dy[:, 0], [[-0.75, 0.25, 0.25, 0.25]] * 2)


# -- what is not possible, or not finite -----------------------------------------------------------


def test_labels_that_do_not_fit() -> None:
    y = np.random.default_rng(7).normal(size=(4, 3, 5))
    target, lengths = np.array([[1, 2, 3], [1, 1, 2], [4, 4, -1]]), [4, 3, 2]
    message = "into the 3 steps of b = 1, got 3 that need 4, with one between equal neighbours"
    with pytest.raises(ValueError, match=message):
        losses.CTC()(y, target, lengths)
    alone, gradient = losses.CTC()(y[:, :1], target[:1])
    total, count, dy = losses.CTC(impossible="zero").parts(y, target, lengths)
    assert (total, count) == (alone, 3)
    np.testing.assert_allclose(3 * dy[:, 0], gradient[:, 0], rtol=1e-14)
    total, count, skipped = losses.CTC(impossible="skip").parts(y, target, lengths)
    assert (total, count) == (alone, 1)
    np.testing.assert_array_equal(skipped[:, 0], gradient[:, 0])
    assert not dy[:, 1:].any()
    assert not skipped[:, 1:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits(dtype: Any, kernel_set: str) -> None:
    y = np.random.default_rng(8).normal(size=(3, 2, 4)).astype(dtype)
    y[:, 0, 3] = -np.inf  # a class that is not needed
    target = np.array([[1, 2], [3, 2]])
    want, gradient = losses.CTC()(y[:, :1, :3], target[:1])
    total, count, dy = losses.CTC(impossible="skip").parts(y, target)
    assert np.isfinite(total)
    assert count == 2
    assert losses.CTC()(y[:, :1], target[:1])[0] == pytest.approx(want, rel=LIMIT[dtype])
    np.testing.assert_allclose(2 * dy[:, 0, :3], gradient[:, 0], atol=LIMIT[dtype])
    y[:, 1, 3] = -np.inf  # one that is
    value, d = losses.CTC()(y, target)
    assert value == np.inf
    assert np.isnan(d[:, 1]).all()
    assert np.isfinite(d[:, 0]).all()
    for rule, counted in (("zero", 2), ("skip", 1)):
        total, count, d = losses.CTC(impossible=rule).parts(y, target)
        assert (total, count) == (pytest.approx(want, rel=LIMIT[dtype]), counted)
        np.testing.assert_allclose(counted * d[:, 0, :3], gradient[:, 0], atol=LIMIT[dtype])
        assert not d[:, 1].any()
    y[:, 1, 3] = np.finfo(dtype).min  # what many write for minus infinity
    assert losses.CTC()(y, target)[0] == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("where", [0, 3])
def test_logits_that_are_no_numbers_show(bad: float, where: int, kernel_set: str) -> None:
    y = np.zeros((3, 2, 17), np.float32)
    y[1, 0, where] = bad
    for rule in ("error", "zero", "skip"):
        value, dy = losses.CTC(impossible=rule)(y, np.array([[1], [2]]))
        assert np.isnan(value)
        assert np.isnan(dy[:, 0]).all()
        assert np.isfinite(dy[:, 1]).all()
    y[1, 0] = -np.inf
    assert np.isnan(losses.CTC()(y, np.array([[1], [2]]))[0])


ERRORS: dict[str, Any] = {
    "a label of the blank": (
        {"target": [[1, 0]]},
        ValueError,
        "other than the blank 0, got 0 at \\[0, 1\\]",
    ),
    "a label too large": (
        {"target": [[1, 4]]},
        ValueError,
        "from 0 to 3 other than the blank 0, got 4",
    ),
    "padding inside": (
        {"target": [[-1, 2]]},
        ValueError,
        "negative numbers behind the labels alone.*at b = 0",
    ),
    "labels of others": (
        {"target": [[1], [2]]},
        ValueError,
        "labels of 1 sequences, as many as y has, got 2",
    ),
    "real labels": (
        {"target": np.ones((1, 2))},
        TypeError,
        "target: expected an integer dtype, got float64",
    ),
    "flat labels": (
        {"target": np.array([1, 2])},
        ValueError,
        "target: expected 2 axes, got shape \\(2,\\)",
    ),
    "no axis of sequences": (
        {"y": np.zeros((3, 4))},
        ValueError,
        "y: expected shape \\(T, B, V\\), got \\(3, 4\\)",
    ),
    "whole numbers": (
        {"y": np.zeros((3, 1, 4), int)},
        TypeError,
        "y: expected dtype float32 or float64, got int64",
    ),
    "lengths too large": (
        {"lengths": [9]},
        ValueError,
        "lengths: expected values from 0 to T = 3, got 9",
    ),
    "weights of steps": (
        {"weights": np.ones((3, 1))},
        ValueError,
        "weights: expected shape \\(B,\\) = \\(1,\\)",
    ),
    "negative weights": (
        {"weights": -np.ones(1)},
        ValueError,
        "weights: expected finite numbers of at least 0",
    ),
    "the blank": (
        {"y": np.zeros((3, 1, 1)), "target": [[]], "blank": 1},
        ValueError,
        "blank: expected a class below V = 1",
    ),
    "ragged lengths": (
        {"y": [np.zeros((3, 4))], "lengths": [3]},
        ValueError,
        "expected None with ragged sequences",
    ),
    "ragged ranks": (
        {"y": ost.Ragged(np.zeros(3), [0, 3])},
        ValueError,
        "sequences of shape \\(n, V\\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments(name: str) -> None:
    given, error, message = ERRORS[name]
    y, target = given.get("y", np.zeros((3, 1, 4))), given.get("target", [[1, 2]])
    target = np.array(target, int) if isinstance(target, list) else target
    with pytest.raises(error, match=message):
        losses.CTC(blank=given.get("blank", 0))(
            y, target, given.get("lengths"), weights=given.get("weights")
        )


def test_bad_options() -> None:
    with pytest.raises(
        ValueError, match="impossible: expected one of 'error', 'zero', 'skip', got 'no'"
    ):
        losses.CTC(impossible="no")
    with pytest.raises(ValueError, match="blank: expected a whole number of at least 0, got -1"):
        losses.CTC(blank=-1)


def test_the_border_to_the_kernels_is_checked() -> None:
    y = np.zeros((3, 4), np.float32)
    good: dict[str, Any] = {
        "rows": [0, 1, 2],
        "row_offsets": [0, 3],
        "labels": [1],
        "label_offsets": [0, 1],
        "scales": [1.0],
        "blank": 0,
    }
    for name, value, message in [
        ("rows", [0, 1, 3], "rows: expected numbers from 0 to 2, got 3"),
        ("rows", [0, 1, 1], "rows: expected each row once, got 1 twice"),
        ("row_offsets", [0, 2], "row_offsets: expected offsets from 0 to 3"),
        ("row_offsets", [0, 3, 2, 3], "row_offsets: expected offsets that do not decrease"),
        ("labels", [4], "labels: expected numbers from 0 to 3, got 4"),
        ("label_offsets", [0, 1, 1], "label_offsets: expected 2 numbers, got 3"),
        ("blank", 4, "blank: expected a class below V = 4, got 4"),
        ("scales", [1.0, 2.0], "scales: expected shape"),
    ]:
        given = {
            n: np.array(v) if isinstance(v, list) else v for n, v in {**good, name: value}.items()
        }
        with pytest.raises(ValueError, match=message):
            _native.NATIVE["float32"].ctc(y, **given, zero_infinite=False, need_gradient=True)


# -- the Trainer -----------------------------------------------------------------------------------


def tunes(count: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Labels, each written as one or two steps of its own, with nothing before and behind it."""
    rng = np.random.default_rng(seed)
    xs, targets = [], []
    for _ in range(count):
        labels, parts = rng.integers(1, 4, rng.integers(1, 4)), []
        for k in labels:
            parts += [np.zeros((rng.integers(1, 3), 3)), *[np.eye(3)[[k - 1]]] * rng.integers(1, 3)]
        xs.append(np.concatenate([*parts, np.zeros((2, 3))]).astype(np.float32))
        targets.append(labels)
    return xs, targets


def trainer(batch_first: bool = True, loss: Any = None, **options: Any) -> ost.Trainer:
    layers = ost.nn.GRU(3, 16, batch_first=batch_first, rng=0), ost.nn.Linear(16, 4, rng=1)
    return ost.Trainer(
        ost.nn.Sequential(*layers), loss or losses.CTC(), ost.optim.Adam(1e-2), **options
    )


def padded(rows: list[Any], fill: float) -> Any:
    out = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill, rows[0].dtype)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out


def test_the_trainer_takes_every_form() -> None:
    xs, labels = tunes(48)
    x, target, lengths = padded(xs, 0), padded(labels, -1), np.array([len(s) for s in xs])
    mask = np.arange(x.shape[1]) < lengths[:, None]
    seen = {}
    for name, data in {
        "ragged": (xs, labels),
        "ragged, padded labels": (xs, target),
        "ragged with a mask": (xs, labels, {"mask": [np.ones(len(s), bool) for s in xs]}),
        "arrays": (x, target, lengths),
        "arrays, a list of labels": (x, labels, lengths),
        "a mask": (x, target, {"mask": mask}),
        "weights": (x, target, {"lengths": lengths, "weights": np.ones(48)}),
    }.items():
        t = trainer(metrics=["label_error_rate"])
        history = t.fit(data, epochs=2, batch_size=16, progress=False)
        seen[name] = [*history.column("loss"), *t.evaluate(data, batch_size=7).values()]
    t = trainer(False, metrics=["label_error_rate"])
    options: Any = {"outputs": "last", "time_major": True}
    history = t.fit(
        ost.data.ArrayLoader(x, target, lengths, batch_size=16, rng=0, **options),
        epochs=2,
        progress=False,
    )
    loader = ost.data.ArrayLoader(x, target, lengths, batch_size=7, shuffle=False, **options)
    seen["time major"] = [*history.column("loss"), *t.evaluate(loader).values()]
    for name, figures in seen.items():
        np.testing.assert_allclose(figures, seen["arrays"], rtol=1e-5, err_msg=name)


def test_a_network_learns_labels_without_times() -> None:
    xs, labels = tunes(200)
    t = trainer(metrics=["label_error_rate"])
    t.fit((xs, labels), epochs=25, progress=False)
    figures = t.evaluate(*tunes(50, seed=1))
    assert figures["label_error_rate"] < 0.05
    assert figures["loss"] < 0.5
    guesses = ost.decoding.ctc_greedy(t.predict(tunes(50, seed=1)[0]))
    assert ost.metrics.error_rate(tunes(50, seed=1)[1], guesses) == pytest.approx(
        figures["label_error_rate"]
    )


def test_what_a_trainer_refuses_beside_ctc() -> None:
    with pytest.raises(
        ValueError, match='outputs: expected the outputs of all steps for CTC, got "last"'
    ):
        trainer(outputs="last")
    with pytest.raises(ValueError, match=r"tbptt: .*got CTC, a loss of whole sequences"):
        trainer(tbptt=(2, 2))
    xs, labels = tunes(4)
    with pytest.raises(
        ValueError, match="target: expected 4 rows, one for each sequence, got shape \\(3"
    ):
        trainer().fit((xs, labels[:3]), epochs=1, progress=False)
    weights = np.ones(sum(map(len, xs)))
    with pytest.raises(ValueError, match=r"weights: expected shape \(B,\) = \(4,\)"):
        trainer().fit((xs, labels, {"weights": weights}), epochs=1, progress=False)
    x, target, lengths = padded(xs, 0), padded(labels, -1), [len(row) for row in xs]
    other = trainer(loss=losses.CTC(batch_first=False))
    with pytest.raises(
        ValueError, match="loss: expected batch_first=True, as the model has it, got False"
    ):
        other.fit((x, target, lengths), epochs=1, progress=False)


# -- devices ---------------------------------------------------------------------------------------


@pytest.fixture(params=["emulated", "cuda"] if ost.cuda.is_available() else ["emulated"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "cuda":
        return _device.cuda()
    native_for_tests()
    import fake_cupy

    return fake_cupy.stand_in(monkeypatch)


def test_a_trainer_on_a_device(gpu: Any) -> None:
    xs, labels = tunes(12)
    x, target, lengths = padded(xs, 0), padded(labels, -1), np.array([len(s) for s in xs])
    figures = []
    for place in ("cpu", "cuda"):
        for data in ((xs, labels), (x, target, lengths)):
            t = trainer(metrics=["label_error_rate"])
            t.model.to(place)
            history = t.fit(data, epochs=2, batch_size=4, progress=False)
            figures.append([*history.column("loss"), *t.evaluate(data).values()])
    np.testing.assert_allclose(figures[1:], figures[:-1], rtol=1e-4)


@pytest.mark.parametrize("rule", ["zero", "skip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_a_device(gpu: Any, dtype: Any, rule: str) -> None:
    y, labels, lengths = batch(dtype)
    y[3, 0, labels[0]] = -np.inf  # of some classes alone
    y[:, 7, labels[7][0]] = -np.inf  # a label that is needed
    labels[3] = np.array([1] * 5)  # does not fit
    weights = np.linspace(0, 1, 8)
    loss = losses.CTC(impossible=rule, normalize=True)
    value, dy = loss(y, labels, lengths, weights=weights)
    again, d = loss(gpu.put(y), labels, lengths, weights=weights)
    assert again == pytest.approx(value, rel=LIMIT[dtype])
    assert _device.of(d) is gpu
    np.testing.assert_allclose(_device.host(d), dy, atol=LIMIT[dtype])
    assert loss.parts(gpu.put(y), labels, lengths, gradient=False)[2] is None
    rows = ost.Ragged(
        gpu.put(np.concatenate(rows_of(y, lengths))), np.concatenate([[0], lengths.cumsum()])
    )
    np.testing.assert_allclose(
        _device.host(loss(rows, labels, weights=weights)[1].rows),
        np.concatenate(rows_of(dy, lengths)),
        atol=LIMIT[dtype],
    )
    y[0, 0, 0] = np.nan
    value, d = loss(gpu.put(y), labels, lengths)
    assert np.isnan(value)
    assert np.isnan(_device.host(d)[: lengths[0], 0]).all()
    y[:, 7, labels[7][0]] = -np.inf
    value, d = losses.CTC()(gpu.put(y[:, 7:]), labels[7:], lengths[7:])
    assert value == np.inf
    assert np.isnan(_device.host(d)[: lengths[7]]).all()
    empty = losses.CTC()(gpu.put(np.zeros((0, 2, 3), dtype)), [[], []])
    assert empty[0] == 0
