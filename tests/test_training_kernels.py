"""Kernels of a training step outside the recurrences: the bits of NumPy on every set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ostinato import _core, reference

SIZES = [
    1,
    3,
    7,
    8,
    16,
    17,
    63,
    64,
    65,
    129,
    1000,
]  # around the lanes of a vector and their multiples
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def kernel(name: str, dtype: Any) -> Any:
    return getattr(_core, f"{name}_{np.dtype(dtype).name.capitalize()}")


@BOTH
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(dtype: Any, decoupled: bool, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    b1, b2, eps, rate, decay = map(dtype, (0.9, 0.99, 1e-8, 2e-3, 0.01))
    b1_rest, b2_rest, root = map(dtype, (1 - 0.9, 1 - 0.99, 1 / np.sqrt(0.25)))
    for n in SIZES:
        p, grad, m, v = rng.normal(size=(4, n)).astype(dtype)
        v = abs(v)
        g = grad if decoupled else grad + decay * p
        m_after = b1 * m + b1_rest * g
        v_after = b2 * v + b2_rest * g * g
        kept = dtype(1 - 1e-3 * 0.01) * p if decoupled else p
        p_after = kept - rate * m_after / (np.sqrt(v_after) * root + eps)
        runs = [(0, n, 1e-3, 0.01, 0.5, 0.25)]
        kernel("adam_runs", dtype)(p, grad, m, v, runs, 0.9, 0.99, 1e-8, decoupled)
        for ours, expected in ((p, p_after), (m, m_after), (v, v_after)):
            np.testing.assert_array_equal(ours, expected)


def _sgd(p: Any, g: Any, m: Any, momentum: Any, nesterov: bool) -> tuple[Any, Any]:
    lr, decay = map(p.dtype.type, (2e-3, 0.01))
    g = g + p * decay
    if not momentum:
        return p - g * lr, m
    m = m * p.dtype.type(momentum) + g
    return p - (g + m * p.dtype.type(momentum) if nesterov else m) * lr, m


@BOTH
@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [(0.0, False), (0.9, False), (0.9, True)],
    ids=["0", "0.9", "nesterov"],
)
def test_sgd(dtype: Any, momentum: float, nesterov: bool, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    for n in SIZES:
        p, g, m = rng.normal(size=(3, n)).astype(dtype)
        expected = _sgd(p, g, m, momentum, nesterov)
        kernel("sgd_runs", dtype)(p, g, m, [(0, n, 2e-3, 0.01)], momentum, nesterov)
        np.testing.assert_array_equal((p, m), expected)


@BOTH
def test_rmsprop(dtype: Any, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    lr, decay, alpha, rest, eps = map(dtype, (2e-3, 0.01, 0.99, 1 - 0.99, 1e-8))
    for n in SIZES:
        p, g, m = rng.normal(size=(3, n)).astype(dtype)
        m = abs(m)
        decayed = g + p * decay
        m_after = m * alpha + decayed * rest * decayed
        p_after = p - decayed / (np.sqrt(m_after) + eps) * lr
        kernel("rmsprop_runs", dtype)(p, g, m, [(0, n, 2e-3, 0.01)], 0.99, 1e-8)
        np.testing.assert_array_equal((p, m), (p_after, m_after))


def test_without_decay_parameters_that_are_not_finite_spoil_no_buffer(kernel_set: str) -> None:
    p, g, m = np.array([[np.inf] * 20, [1] * 20, [2] * 20], np.float32)
    _core.sgd_runs_Float32(p, g, m, [(0, 20, 0.1, 0.0)], 0.5, False)
    assert m.tolist() == [2] * 20


@BOTH
@pytest.mark.parametrize("rule", ["adam", "sgd", "rmsprop"])
def test_an_update_scales_gradients_and_keeps_what_parameters_were(
    dtype: Any, rule: str, kernel_set: str
) -> None:
    """One pass gives the bits of three: to copy, to scale, to step."""
    rng, n = np.random.default_rng(0), 100_003
    p, g, *state = rng.normal(size=(4 if rule == "adam" else 3, n)).astype(dtype)
    state = [abs(a) for a in state]
    run = (7, n - 5, 1e-3, 0.01, *((0.5, 0.25) if rule == "adam" else ()))
    options = {"adam": (0.9, 0.99, 1e-8, True), "sgd": (0.9, True), "rmsprop": (0.99, 1e-8)}[rule]
    step = kernel(f"{rule}_runs", dtype)
    apart = [a.copy() for a in (p, g, *state)]
    apart[1][7 : n - 5] *= dtype(0.3)
    step(*apart, [run], *options)
    before, previous = p.copy(), np.full(n, 9, dtype)
    step(p, g, *state, [run], *options, factor=0.3, previous=previous)
    for one, other in zip((p, g, *state), apart):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(previous[7 : n - 5], before[7 : n - 5])
    assert (previous[:7] == 9).all()
    assert (previous[n - 5 :] == 9).all()


def test_an_update_writes_to_memory_that_is_its_own() -> None:
    p, g, m = (np.ones(8, np.float32) for _ in range(3))
    run = [(0, 8, 0.1, 0.0)]
    with pytest.raises(ValueError, match="previous: expected memory of its own"):
        _core.sgd_runs_Float32(p, g, m, run, 0.9, False, previous=g)
    g.flags.writeable = False
    with pytest.raises(ValueError, match="g: expected a writable array"):
        _core.sgd_runs_Float32(p, g, m, run, 0.9, False, factor=0.5)
    assert (p == 1).all()
    assert (m == 1).all()
    _core.sgd_runs_Float32(p, g, m, run, 0.9, False)


@BOTH
def test_square_sum(dtype: Any, kernel_set: str) -> None:
    for n in SIZES:
        x = np.random.default_rng(n).normal(size=n).astype(dtype)
        squares = x.astype(np.float64) ** 2
        sums = [0.0] * 8
        for i, square in enumerate(squares):
            sums[i % 8 if i < n // 8 * 8 else 0] += square
        pairs = [sums[0] + sums[1], sums[2] + sums[3], sums[4] + sums[5], sums[6] + sums[7]]
        expected = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
        assert kernel("square_sum", dtype)(x) == expected


@BOTH
def test_embedding_scatter(dtype: Any, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    for width in SIZES:
        ids = rng.integers(0, 5, 40)
        dy, table = rng.normal(size=(40, width)).astype(dtype), np.ones((5, width), dtype)
        expected = table.copy()
        np.add.at(expected, ids, dy)
        kernel("embedding_scatter", dtype)(ids, dy, table)
        np.testing.assert_array_equal(table, expected)


@BOTH
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_dropout(dtype: Any, rate: float, kernel_set: str) -> None:
    key = 0x0123456789ABCDEF
    for n in SIZES[:-1]:
        words = [
            w for quad in range(-(-n // 4)) for w in reference.philox(key, (quad, 0, 0, 1 << 31))
        ]
        kept = np.array([(w >> 8) / 2**24 >= rate for w in words[:n]])
        x = np.random.default_rng(n).normal(size=n).astype(dtype)
        x[::5] = [np.inf, np.nan, -0.0][n % 3]
        y = kernel("dropout", dtype)(x, rate, key)
        np.testing.assert_array_equal(y, np.where(kept, x * dtype(1 / (1 - rate)), dtype(0)))
        assert not np.signbit(y[~kept]).any()


@BOTH
@pytest.mark.parametrize("place", [0, 1, 20, 39])
def test_cross_entropy_of_what_is_not_finite(dtype: Any, place: int, kernel_set: str) -> None:
    """A NaN anywhere makes the loss and all of the row's gradient NaN, and no other row's."""
    y = np.random.default_rng(0).normal(size=(3, 40)).astype(dtype)
    clean = kernel("softmax_cross_entropy", dtype)(y, np.array([1, 2, 3]), 0.0, 1.0, True)
    y[1, place] = np.nan
    loss, dy = kernel("softmax_cross_entropy", dtype)(y, np.array([1, 2, 3]), 0.0, 1.0, True)
    assert np.isnan(loss)
    assert np.isnan(dy[1]).all()
    np.testing.assert_array_equal(dy[[0, 2]], clean[1][[0, 2]])
    y[1, place] = 1e4
    loss, dy = kernel("softmax_cross_entropy", dtype)(y, np.array([1, place, 3]), 0.0, 1.0, True)
    assert np.isfinite(loss)
    # exp gives no number below the smallest that is normal.
    np.testing.assert_allclose(dy[1], np.zeros(40), atol=2 * np.finfo(dtype).tiny)
