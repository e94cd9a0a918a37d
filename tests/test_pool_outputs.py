"""One output a sequence: final states, the last real step, pooling.

Names and layouts of a Sequential.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import numeric_gradient

nn = ost.nn
LENGTHS = np.array([5, 2, 0, 3])


def data(steps: int = 5, batch: int = 4, width: int = 3) -> Any:
    return np.random.default_rng(0).standard_normal((steps, batch, width))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("limit", [None, 2, "states"])
@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_last_is_the_final_state_of_each_direction(
    cell: Any, limit: Any, batch_first: bool
) -> None:
    layer = cell(3, 4, 2, bidirectional=True, batch_first=batch_first, dtype=np.float64, rng=0)
    x = np.ascontiguousarray(data().swapaxes(0, 1)) if batch_first else data()
    (y, state), pullback = layer.vjp(x, lengths=LENGTHS, outputs="last", memory_limit=limit)
    h = state[0] if cell is nn.LSTM else state
    assert np.array_equal(y, np.concatenate([h[2], h[3]], 1))
    assert np.array_equal(layer(x, lengths=LENGTHS, outputs="last")[0], y)
    d = np.random.default_rng(1).standard_normal(y.shape)
    dx, _ = pullback(d)
    want = numeric_gradient(lambda: (layer(x, lengths=LENGTHS, outputs="last")[0] * d).sum(), x)
    np.testing.assert_allclose(dx, want, atol=1e-8)


def test_a_direction_from_the_end_has_read_the_whole_row() -> None:
    """The first token alone decides the final state of the reverse direction, not that of the last
    step.
    """
    layer = nn.GRU(3, 4, bidirectional=True, rng=0)
    x = data().astype(np.float32)
    other = x.copy()
    other[0] += 1
    last, last_step = (
        [layer(a, outputs=o)[0][:, 4:] for a in (x, other)] for o in ("last", "last_step")
    )
    assert (last[0] != last[1]).all()
    assert np.array_equal(*last_step)
    with pytest.raises(
        ValueError, match="outputs: expected one of 'all', 'last', 'last_step', got 'none'"
    ):
        layer(x, outputs="none")


def test_one_sequence_and_lists() -> None:
    layer = nn.LSTM(3, 4, bidirectional=True, rng=0)
    x = data().astype(np.float32)
    rows, _ = layer([x[:n, b] for b, n in enumerate(LENGTHS)], outputs="last")
    want, _ = layer(x, lengths=LENGTHS, outputs="last")
    assert np.array_equal(rows, want)
    assert np.array_equal(layer(x[:, 0], outputs="last")[0], want[0])


@pytest.mark.parametrize("form", ["time first", "batch first", "list"])
@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_pool(kind: str, form: str) -> None:
    layer = nn.Pool(kind, batch_first=form == "batch first", dtype=np.float64)
    x, mask = data(), np.random.default_rng(3).random((5, 4)) < 0.7
    on = (np.arange(5)[:, None] < LENGTHS) & mask
    x[~on] = np.nan  # what does not count may hold anything
    want = ost.reference.pool(kind, x, on)
    times: dict[str, Any] = {"lengths": LENGTHS, "mask": mask}
    if form == "batch first":
        x, times["mask"] = np.ascontiguousarray(x.swapaxes(0, 1)), mask.T
    elif form == "list":
        x = [x[:n, b] for b, n in enumerate(LENGTHS)]
        times = {"mask": [mask[:n, b] for b, n in enumerate(LENGTHS)]}
    y, pullback = layer.vjp(x, **times)
    np.testing.assert_allclose(y, want, rtol=1e-12)
    d = np.random.default_rng(4).standard_normal(y.shape)
    dx = pullback(d)
    whole = (
        ost.Ragged.join(dx).padded()
        if form == "list"
        else dx.swapaxes(0, 1)
        if form == "batch first"
        else dx
    )
    filled = np.where(on[..., None], data(), 0)
    np.testing.assert_allclose(
        whole,
        numeric_gradient(lambda: (ost.reference.pool(kind, filled, on) * d).sum(), filled),
        atol=1e-8,
    )


def test_pool_in_a_model() -> None:
    model = nn.Sequential(
        rnn=nn.GRU(3, 4, bidirectional=True, dtype=np.float64, rng=0),
        pool=nn.Pool("max", dtype=np.float64),
        head=nn.Linear(8, 2, dtype=np.float64, rng=0),
    )
    assert model.reduces_time
    assert not nn.Sequential(nn.GRU(3, 4)).reduces_time
    x = data()
    (y, _), pullback = model.vjp(x, lengths=LENGTHS)
    assert y.shape == (4, 2)
    assert np.array_equal(model(x, lengths=LENGTHS)[0], y)
    d = np.random.default_rng(1).standard_normal(y.shape)
    dx, _ = pullback(d)
    np.testing.assert_allclose(
        dx, numeric_gradient(lambda: (model(x, lengths=LENGTHS)[0] * d).sum(), x), atol=1e-8
    )
    ragged = [x[:n, b] for b, n in enumerate(LENGTHS)]
    (y2, _), pullback = model.vjp(ragged)
    np.testing.assert_allclose(y2, y, atol=1e-12)
    np.testing.assert_allclose(ost.Ragged.join(pullback(d)[0]).padded(), dx, atol=1e-12)
    with pytest.raises(
        ValueError,
        match="outputs: expected 'all' for a model that pools over the steps, got 'last'",
    ):
        model(x, outputs="last")
    with pytest.raises(
        ValueError, match="kind: expected one of 'mean', 'max', 'last', 'attention', got 'sum'"
    ):
        nn.Pool("sum")


def test_names() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4, rng=0), rnn=nn.GRU(4, 5, rng=0), head=nn.Linear(5, 2, rng=0)
    )
    assert [n.split(".")[0] for n in model.parameters()] == ["0"] * 2 + ["rnn"] * 4 + ["head"] * 2
    x = data().astype(np.float32)
    want = model(x)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other(x)[0], want)
        assert other["rnn"] is other[1]
    (y, _), pullback = model.vjp(x)
    pullback(np.ones_like(y))
    assert np.abs(model.grads["rnn.weight_hh_l0"]).max() > 0
    model.freeze("head.*")
    assert model.count_parameters(trainable_only=True) == model.count_parameters() - 12
    assert "rnn: GRU(4, 5)" in repr(model)
    with pytest.raises(KeyError, match="index: expected one of 0, rnn, head, got 'tail'"):
        model["tail"]


def test_layers_of_two_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="layers: expected one batch_first for all"):
        nn.Sequential(nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 4))
    with pytest.raises(ValueError, match="layers: expected one batch_first for all"):
        nn.Sequential(nn.Sequential(nn.LSTM(3, 4)), nn.Pool("mean", batch_first=True))
    nn.Sequential(nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True))
