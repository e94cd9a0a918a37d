"""The specification itself: finite differences, and a few values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import CELLS, NORMS, numeric_gradient, output_size, random_weights
from ostinato import reference


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_against_finite_differences(cell: str, reverse: bool) -> None:
    rng = np.random.default_rng(1)
    w = random_weights(cell, 3, 4, rng)
    size = output_size(cell, 4)
    x, h0, c0 = rng.normal(size=(5, 3, 3)), rng.normal(size=(3, size)), rng.normal(size=(3, 4))
    dy, dh, dc = rng.normal(size=(5, 3, size)), rng.normal(size=(3, size)), rng.normal(size=(3, 4))
    lengths = np.array([5, 0, 3])

    def loss() -> float:
        run = reference.forward(cell, x, w, h0, c0, lengths=lengths, reverse=reverse)
        return float((run.y * dy).sum() + (run.h_n * dh).sum() + (run.c_n * dc).sum())

    run = reference.forward(cell, x, w, h0, c0, lengths=lengths, reverse=reverse)
    g = reference.backward(run, dy, dh, dc)
    pairs = [
        (x, g.x),
        (h0, g.h0),
        (c0, g.c0),
        (w.weight_ih, g.weights.weight_ih),
        (w.weight_hh, g.weights.weight_hh),
    ]
    pairs += [(w.bias_ih, g.weights.bias_ih), (w.bias_hh, g.weights.bias_hh)]
    if w.weight_peephole is not None:
        pairs.append((w.weight_peephole, g.weights.weight_peephole))
    if w.weight_hr is not None:
        pairs.append((w.weight_hr, g.weights.weight_hr))
    if cell == "lstm_layer_norm":
        pairs += [(getattr(w, n), getattr(g.weights, n)) for n in NORMS]
    for value, gradient in pairs:
        np.testing.assert_allclose(gradient, numeric_gradient(loss, value), rtol=1e-6, atol=1e-8)


def test_an_lstm_step_by_hand() -> None:
    w = reference.Weights(
        np.array([[1.0], [2.0], [3.0], [4.0]]), np.zeros((4, 1)), np.zeros(4), np.zeros(4)
    )
    run = reference.forward("lstm", np.array([[[0.5]]]), w, c0=np.array([[2.0]]))
    i, f, g, o = (
        1 / (1 + np.exp(-0.5)),
        1 / (1 + np.exp(-1.0)),
        np.tanh(1.5),
        1 / (1 + np.exp(-2.0)),
    )
    assert np.isclose(run.c_n[0, 0], f * 2 + i * g)
    assert np.isclose(run.h_n[0, 0], o * np.tanh(f * 2 + i * g))


def test_the_two_grus_differ_only_with_a_recurrent_candidate() -> None:
    rng = np.random.default_rng(0)
    w = random_weights("gru", 2, 3, rng)
    x = rng.normal(size=(4, 2, 2))
    assert not np.allclose(
        reference.forward("gru", x, w).y, reference.forward("gru_reset_before", x, w).y
    )
    w.weight_hh[6:], w.bias_hh[6:] = 0, 0
    assert np.allclose(
        reference.forward("gru", x, w).y, reference.forward("gru_reset_before", x, w).y
    )


def test_dropout_mask_keeps_the_mean() -> None:
    mask = reference.dropout_mask(5, 0.3, 0, 0, (40, 10, 25))
    assert abs((mask > 0).mean() - 0.7) < 0.02
    assert np.allclose(mask[mask > 0], 1 / 0.7)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_gradients_are_float64_whatever_is_given(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-2, 3, s) for s in ((12, 2), (12, 3), (12,), (12,), (5, 4, 2))]

    def gradients(kind: Any) -> list[Any]:
        w_ih, w_hh, bias, second, x = (a.astype(kind) for a in arrays)
        w, tree = reference.Weights(w_ih, w_hh, bias, second), x[:, 0]
        g = reference.backward(reference.forward("lstm", x, w), np.ones((5, 4, 3), kind))
        run = reference.tree_lstm(tree, [-1, 0, 0, 1, 1], w_ih, w_hh, bias)
        of_tree = reference.tree_lstm_backward(run, np.ones((5, 3), kind), tree, w_ih, w_hh)
        return [g.x, g.weights.weight_ih, g.weights.bias_hh, *of_tree]

    for found, wanted in zip(gradients(dtype), gradients(np.float64)):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
