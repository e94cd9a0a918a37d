"""Outputs of the last step alone, of layers and of nested models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import flat


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("limit", [None, "least"])
def test_last_outputs(bidirectional: bool, limit: Any) -> None:
    layer = ost.nn.LSTM(3, 8, 2, bidirectional=bidirectional, rng=0)
    r = np.random.default_rng(0)
    x, lengths = r.standard_normal((40, 5, 3)).astype(np.float32), np.array([40, 3, 17, 1, 30])
    (y, _), pullback = layer.vjp(x, lengths=lengths)
    at = lengths - 1, np.arange(5)
    d = r.standard_normal((5, 8 * (1 + bidirectional))).astype(np.float32)
    dy = np.zeros_like(y)
    dy[at] = d
    layer.zero_grad()
    want = pullback(dy)
    grads = layer.flat_grads.copy()
    (last, _), pullback = layer.vjp(x, lengths=lengths, outputs="last_step", memory_limit=limit)
    assert np.array_equal(last, y[at])
    assert np.array_equal(layer(x, lengths=lengths, outputs="last_step")[0], last)
    layer.zero_grad()
    got = pullback(d)
    assert all(np.array_equal(a, b) for a, b in zip(flat(got), flat(want)))
    assert np.array_equal(layer.flat_grads, grads)


def test_nested_models_take_the_same() -> None:
    nn = ost.nn
    x, lengths = np.ones((6, 2, 3), np.float32), [6, 2]
    x[2:, 1] = np.nan
    models = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4, rng=0)),
        nn.GRU(4, 5, rng=0),
        nn.Sequential(nn.Linear(5, 2, rng=0)),
    )
    for outputs in ("all", "last"):
        (y, _), pullback = models.vjp(x, lengths=lengths, outputs=outputs)
        models.zero_grad()
        pullback(np.ones_like(y))
        assert np.isfinite(models.flat_grads).all()
    plain = nn.Sequential(nn.Linear(3, 4, rng=0))
    with pytest.raises(TypeError, match="foo: expected one of lengths"):
        models(x, foo=3)
    with pytest.raises(
        ValueError, match="memory_limit: expected None for a model without recurrent layers"
    ):
        plain.vjp(x, memory_limit="1MB")
    tiny = nn.GRU(3, 4, rng=0)
    (y, _), pullback = tiny.vjp(np.ones((9, 2, 3), np.float32), clip_step_value=1e-60)
    dx, _ = pullback(np.ones_like(y))
    assert np.abs(dx).max() < 1e-30
