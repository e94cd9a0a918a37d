"""Properties that hold for any shape: drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import CELLS, assert_close, cast, output_size, packed, random_weights, widened
from ostinato import nn, reference

pytest.importorskip(
    "hypothesis", reason="hypothesis is not installed: pip install 'ostinato[test]'"
)
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 20), st.integers(1, 70))
quick = settings(max_examples=60, deadline=None)


def loose(cell: str) -> float:
    """A norm divides by the spread of a row, which in a row of a few numbers may be tiny."""
    return 1000.0 if cell == "lstm_layer_norm" else 1.0


@quick
@given(
    st.sampled_from(CELLS),
    sizes,
    st.booleans(),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.data(),
)
def test_kernels_equal_the_reference(
    cell: str, size: Any, reverse: bool, ragged: bool, dtype: Any, draw: Any
) -> None:
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(sum(size))
    w = random_weights(cell, inputs, hidden, rng)
    lengths = (
        np.array(
            draw.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)), np.int64
        )
        if ragged
        else None
    )
    x, dy = (
        rng.normal(size=(steps, batch, n)).astype(dtype)
        for n in (inputs, output_size(cell, hidden))
    )
    weights = cast(w, dtype)
    p = packed(cell, weights, reverse)
    y, h_n, _, tape = p.native.forward(x, None, None, lengths, train=True)
    exact = widened(cell, weights)
    run = reference.forward(cell, x.astype(np.float64), exact, lengths=lengths, reverse=reverse)
    assert_close(y, run.y, "y", loose(cell))
    assert_close(h_n[0], run.h_n, "h_n", loose(cell))
    grads = [None if a is None else np.zeros_like(a) for a in weights]
    dx, dh0, *_ = tape.backward(dy, None, None, [grads], True)
    g = reference.backward(run, dy.astype(np.float64))
    assert_close(dx, g.x, "dx", 4 * loose(cell))
    assert_close(dh0[0], g.h0, "dh0", 4 * loose(cell))
    assert_close(grads[1], g.weights.weight_hh, "dweight_hh", 4 * loose(cell))


@quick
@given(
    st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 8),
)
def test_cutting_time_changes_nothing(
    cls: Any, layers: int, batch_first: bool, steps: int, batch: int, cut: int
) -> None:
    layer = cls(3, 5, layers, batch_first=batch_first, rng=0)
    x = np.random.default_rng(0).normal(size=(steps, batch, 3)).astype(np.float32)
    x = x.swapaxes(0, 1) if batch_first else x
    axis, cut = int(batch_first), min(cut, steps)
    first, second = np.split(x, [cut], axis=axis)
    whole, _ = layer(x)
    y1, state = layer(first)
    y2, _ = layer(second, state)
    assert np.array_equal(np.concatenate([y1, y2], axis=axis), whole)


@quick
@given(st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]), st.permutations(range(6)))
def test_rows_do_not_see_each_other(cls: Any, order: Any) -> None:
    layer, x = (
        cls(3, 5, bidirectional=True, rng=0),
        np.random.default_rng(0).normal(size=(7, 6, 3)).astype(np.float32),
    )
    lengths = np.array([7, 0, 3, 3, 5, 1])
    y, _ = layer(x, lengths=lengths)
    shuffled, _ = layer(np.ascontiguousarray(x[:, order]), lengths=lengths[list(order)])
    assert np.array_equal(shuffled, y[:, order])


@quick
@given(st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]), st.floats(0.1, 4), st.integers(1, 40))
def test_gradients_are_linear_in_dy(cls: Any, scale: float, hidden: int) -> None:
    layer = cls(3, hidden, dtype=np.float64, rng=0)
    rng = np.random.default_rng(0)
    x, a, b = (
        rng.normal(size=(5, 2, 3)),
        rng.normal(size=(5, 2, hidden)),
        rng.normal(size=(5, 2, hidden)),
    )

    def gradient(dy: Any) -> Any:
        return layer.vjp(x)[1](dy, grads=layer.new_grads())[0]

    np.testing.assert_allclose(
        gradient(a + scale * b), gradient(a) + scale * gradient(b), rtol=1e-9, atol=1e-11
    )


@pytest.mark.soak
@settings(max_examples=3000, deadline=None)
@given(
    st.sampled_from(CELLS),
    st.tuples(st.integers(0, 40), st.integers(0, 300), st.integers(1, 90), st.integers(1, 150)),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_soak(cell: str, size: Any, reverse: bool, seed: int) -> None:
    """Random shapes far beyond those of the ordinary run: pytest -m soak."""
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(seed)
    w = random_weights(cell, inputs, hidden, rng)
    lengths = rng.integers(0, steps + 1, batch) if seed % 2 else None
    x, dy = (rng.normal(size=(steps, batch, n)) for n in (inputs, output_size(cell, hidden)))
    p = packed(cell, cast(w, np.float64), reverse)
    y, _, _, tape = p.native.forward(x, None, None, lengths, train=True)
    run = reference.forward(cell, x, w, lengths=lengths, reverse=reverse)
    assert_close(y, run.y, "y", loose(cell))
    grads = [None if a is None else np.zeros_like(a) for a in cast(w, np.float64)]
    dx, *_ = tape.backward(dy, None, None, [grads], True)
    g = reference.backward(run, dy)
    assert_close(dx, g.x, "dx", 10 * loose(cell))
    assert_close(grads[0], g.weights.weight_ih, "dweight_ih", 10 * loose(cell))
