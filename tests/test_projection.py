"""The projected LSTM as a layer.

Shapes, stacks, directions, streams, bounds on memory, and what it refuses.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    PLAIN_STACKS,
    assert_bits_with_limits,
    assert_close,
    assert_gradients_by_differences,
    cast,
    normal,
    random_weights,
)
from ostinato import _core, diagnostics, reference

# (T, B, I, H, P): around the vector lengths, groups of 4 vectors, one row; and h wider than c.
SIZES = [
    (1, 1, 1, 1, 1),
    (5, 4, 7, 15, 16),
    (4, 5, 17, 33, 1),
    (7, 2, 1, 65, 64),
    (3, 41, 9, 20, 70),
    (6, 3, 4, 128, 65),
    (3, 300, 2, 5, 2),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reverse", [False, True])
def test_widths_against_the_reference(
    reverse: bool, dtype: Any, sizes: Any, kernel_set: str
) -> None:
    steps, batch, inputs, hidden, size = sizes
    rng = np.random.default_rng(sum(sizes))
    weights = cast(random_weights("lstm_projected", inputs, hidden, rng, size), dtype)
    exact = reference.Weights(*(None if a is None else a.astype(np.float64) for a in weights))  # type: ignore[arg-type]
    x, dy = (rng.normal(size=(steps, batch, n)).astype(dtype) for n in (inputs, size))
    h0, dh = (rng.normal(size=(batch, size)).astype(dtype) for _ in range(2))
    c0, dc = (rng.normal(size=(batch, hidden)).astype(dtype) for _ in range(2))
    lengths = rng.integers(0, steps + 1, batch)
    times: dict[str, Any] = {"lengths": lengths, "reverse": reverse}
    (y, (h_n, c_n)), pullback = ost.functional.lstm_vjp(
        x, *weights[:4], h0, c0, weight_hr=weights[5], **times
    )
    run = reference.forward("lstm_projected", x.astype(np.float64), exact, h0, c0, **times)
    assert_close(y, run.y, "y", 2)
    assert_close(h_n, run.h_n, "h_n", 2)
    assert_close(c_n, run.c_n, "c_n", 2)
    got = pullback(dy, dh, dc)
    want = reference.backward(run, dy.astype(np.float64), dh, dc)
    assert_close(got.dx, want.x, "dx", 8)
    assert_close(got.dh0, want.h0, "dh0", 8)
    assert_close(got.dc0, want.c0, "dc0", 8)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
        assert_close(getattr(got, "d" + name), getattr(want.weights, name), name, 8)


def test_an_identity_projects_nothing(kernel_set: str) -> None:
    """W_hr = 1 gives the plain LSTM.

    The sums that the projection adds are of one number and zeros.
    """
    rng = np.random.default_rng(0)
    w = cast(random_weights("lstm", 5, 37, rng), np.float32)
    x, dy = (rng.normal(size=(9, 4, n)).astype(np.float32) for n in (5, 37))
    (y, state), plain = ost.functional.lstm_vjp(x, *w[:4])
    (z, other), projected = ost.functional.lstm_vjp(
        x, *w[:4], weight_hr=np.eye(37, dtype=np.float32)
    )
    assert np.array_equal(y, z)
    assert all(np.array_equal(a, b) for a, b in zip(state, other))
    assert_close(projected(dy).dweight_hh, plain(dy).dweight_hh.astype(np.float64), "dweight_hh")


@pytest.mark.parametrize("stack", PLAIN_STACKS, ids=str)
def test_gradients_of_stacks_by_differences(stack: dict[str, Any]) -> None:
    layer = ost.nn.LSTM(3, 4, proj_size=2, learned_state=True, dtype=np.float64, rng=0, **stack)
    values = {
        n: normal(a.shape, np.float64, k) * 0.5
        for k, (n, a) in enumerate(layer.state_dict().items())
    }
    layer.load_state_dict(values)
    x = normal((5, 3, 3), np.float64)
    resets = np.random.default_rng(3).random(x.shape[:2]) < 0.2
    y, (h, c) = layer(x, resets=resets)
    parts = layer.num_layers * layer._directions
    batch = 5 if layer.batch_first else 3
    assert y.shape == (5, 3, 2 * layer._directions)
    assert h.shape == (parts, batch, 2)
    assert c.shape == (parts, batch, 4)
    assert_gradients_by_differences(layer, x, resets)


@pytest.mark.parametrize("stack", PLAIN_STACKS, ids=str)
def test_bits_with_a_bound_on_memory(stack: dict[str, Any], kernel_set: str, threads: None) -> None:
    assert_bits_with_limits(ost.nn.LSTM(3, 37, proj_size=21, rng=0, **stack))


def test_limits_count_both_widths() -> None:
    """A border holds h, P wide, and c, H wide."""
    layer = ost.nn.LSTM(3, 40, proj_size=8, rng=0)
    schedule = ost.explain(layer, (1000, 2, 3), training=True, memory_limit=10).facts["schedule"]
    assert schedule.border_bytes == 2 * (40 + 8) * 4


@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "size"), [(40, 1, 200, 90), (40, 3, 130, 200), (17, 45, 70, 30)]
)
def test_bits_do_not_depend_on_threads_or_batch_composition(
    steps: int, batch: int, hidden: int, size: int, kernel_set: str, threads: None
) -> None:
    rng = np.random.default_rng(5)
    w = cast(random_weights("lstm_projected", 6, hidden, rng, size), np.float32)
    x, dy = (rng.normal(size=(steps, batch, n)).astype(np.float32) for n in (6, size))

    def run(rows: slice) -> list[Any]:
        (y, state), pullback = ost.functional.lstm_vjp(x[:, rows], *w[:4], weight_hr=w[5])
        g = pullback(dy[:, rows])
        return [y, *state, g.dx, g.dh0, g.dc0, g.dweight_hr, g.dweight_hh, g.dweight_ih, g.dbias_hh]

    results = []
    for n in (1, 2, 3, 5):
        ost.set_num_threads(n)
        results.append(run(slice(None)))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
    last = slice(batch - 1, batch)
    for got, whole in zip(run(last)[:6], results[0]):
        assert np.array_equal(got, whole[last] if whole.ndim == 2 else whole[:, last])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_streams_have_the_bits_of_the_whole(precision: str, kernel_set: str) -> None:
    layer = ost.nn.LSTM(4, 19, 2, proj_size=7, learned_state=True, precision=precision, rng=0)
    values = layer.state_dict()
    for n in values:
        if n.startswith("initial"):
            values[n] = normal(values[n].shape) * 0.3
    layer.load_state_dict(values)
    x = normal((12, 3, 4))
    y, (h, c) = layer(x)
    stream = layer.stream(3)
    for t in range(12):
        assert np.array_equal(stream.step(x[t]), y[t])
    assert np.array_equal(stream.h, h)
    assert np.array_equal(stream.c, c)
    stream.reset([1])
    stream.step(x[0, 1:2], slots=np.array([1]))
    one, _ = layer(x[:1, 1:2])
    assert np.array_equal(stream.y[:1], one[0])


def test_ragged_sequences_and_outputs(kernel_set: str) -> None:
    layer = ost.nn.LSTM(3, 21, 2, proj_size=5, bidirectional=True, rng=0)
    sequences = [normal((n, 3), seed=n) for n in (4, 0, 9, 1)]
    ys, (h, c) = layer(sequences)
    for k, (x, y) in enumerate(zip(sequences, ys)):
        alone, (h1, c1) = layer(x[:, None])
        assert np.array_equal(y, alone[:, 0])
        assert np.array_equal(h[:, k], h1[:, 0])
        assert np.array_equal(c[:, k], c1[:, 0])
    x = normal((6, 2, 3))
    y, (h, _) = layer(x)
    assert np.array_equal(layer(x, outputs="last")[0], np.concatenate([h[2], h[3]], 1))
    assert np.array_equal(layer(x, outputs="last_step")[0], y[-1])
    (last, _), pullback = layer.vjp(x, outputs="last_step")
    dx, _ = pullback(np.ones_like(last))
    (y, _), whole = layer.vjp(x)
    d = np.zeros_like(y)
    d[-1] = 1
    assert np.array_equal(dx, whole(d)[0])


def test_dropout_between_layers_is_of_the_projected_h() -> None:
    layer = ost.nn.LSTM(3, 6, 2, proj_size=4, dropout=0.5, dtype=np.float64, rng=0)
    x = normal((5, 2, 3), np.float64)
    (y, _), _ = layer.vjp(x, rng=7)
    key = int(np.random.default_rng(7).integers(0, 2**64, dtype=np.uint64))
    mask = reference.dropout_mask(key, 0.5, 0, 0, (5, 2, 4))
    for k in range(2):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        p = layer.parameters()
        w = reference.Weights(*(p[f"{n}_l{k}"] for n in names), weight_hr=p[f"weight_hr_l{k}"])
        x = reference.forward("lstm_projected", x, w).y * (mask if k == 0 else 1)
    assert_close(y, x)


def test_cells_gates_and_flow(kernel_set: str) -> None:
    layer = ost.nn.LSTM(3, 9, proj_size=4, rng=0)
    x = normal((6, 2, 3))
    (y, (_, c)), pullback = layer.vjp(x)
    assert pullback.cells.shape == (1, 6, 2, 9)
    assert np.array_equal(pullback.cells[0, -1], c[0])
    assert {n: g.shape for n, g in pullback.gates.items()} == dict.fromkeys("ifgo", (1, 6, 2, 9))
    p = layer.parameters()
    w = reference.Weights(
        *(p[n].astype(np.float64) for n in list(p)[:4]),
        weight_hr=p["weight_hr_l0"].astype(np.float64),
    )
    run = reference.forward("lstm_projected", x.astype(np.float64), w)
    want = reference.backward(run, np.ones(y.shape))
    flow = diagnostics.gradient_flow(layer, x).layers[0]
    np.testing.assert_allclose(flow.dh, np.sqrt(want.flow[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(flow.dc, np.sqrt(want.flow[:, 1]), rtol=1e-5)
    with pytest.raises(ValueError, match=r"dcells: expected shape .*9\)"):
        layer.vjp(x, memory_limit=1)[1](dcells=np.zeros((1, 6, 2, 4), np.float32))


def test_it_is_pickled_copied_and_drawn_anew() -> None:
    layer = ost.nn.LSTM(3, 9, proj_size=4, rng=0)
    assert repr(layer) == "LSTM(3, 9, proj_size=4)"
    assert list(layer.parameters()) == [
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
        "bias_hh_l0",
        "weight_hr_l0",
    ]
    x = normal((4, 2, 3))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.proj_size == 4
        assert np.array_equal(other(x)[0], layer(x)[0])
    layer.initialize("glorot", "orthogonal", "zeros")
    w = layer.parameters()["weight_hr_l0"]
    np.testing.assert_allclose(w @ w.T, np.eye(4), atol=1e-5)
    state = ost.nn.LSTM(3, 9, rng=0).__getstate__()
    del state["proj_size"]  # of a layer that was pickled before there were projections
    old = object.__new__(ost.nn.LSTM)
    old.__setstate__(state)
    assert old(x)[0].shape == (4, 2, 9)


def test_explain_counts_the_projection() -> None:
    e = ost.explain(ost.nn.LSTM(8, 32, proj_size=16, rng=0), (10, 2, 8))
    assert e.facts["flops"] == 2 * (4 * 32 * (8 + 16) + 16 * 32) * 10 * 2
    assert e.facts["drivers"]["cpu"] == ""
    assert "it lacks a projection of h" in str(e)
    plain = ost.explain(ost.nn.LSTM(8, 32, rng=0), (10, 2, 8))
    assert "it lacks" not in str(plain)


def test_drivers_name_what_they_lack() -> None:
    drivers = _core.drivers()
    names = ("plain", "cpu", "step", "stream", "loop", "persistent", "cluster")
    assert drivers["lstm"] == dict.fromkeys(names, "")
    lacking = {n for n in names if drivers["lstm_projected"][n]}
    assert lacking == {"stream", "loop", "persistent", "cluster"}
    assert drivers["lstm_projected"]["stream"] == "a projection of h"
    for name in ("loop", "cluster"):
        assert drivers["gru_reset_before"][name] == "a second product in a step"
    assert drivers["gru_reset_before"]["persistent"] == ""


def test_errors_name_the_argument() -> None:
    f, x = ost.functional, np.zeros((3, 2, 5))
    w_ih, w_hh, w_hr = np.zeros((16, 5)), np.zeros((16, 2)), np.zeros((2, 4))
    with pytest.raises(
        ValueError, match=r"weight_hh: expected shape \(4\*H, P\) = \(16, 2\) .*got \(16, 4\)"
    ):
        f.lstm(x, w_ih, np.zeros((16, 4)), weight_hr=w_hr)
    with pytest.raises(ValueError, match=r"weight_hr: expected shape \(P, H\) .*got \(0, 4\)"):
        f.lstm(x, w_ih, np.zeros((16, 0)), weight_hr=np.zeros((0, 4)))
    with pytest.raises(ValueError, match="weight_peephole: expected None beside weight_hr"):
        f.lstm(x, w_ih, w_hh, weight_hr=w_hr, weight_peephole=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="weight_hr: expected None for gru, got an array"):
        f.pack("gru", w_ih, w_hh, weight_hr=w_hr)
    with pytest.raises(ValueError, match=r"h0: expected shape .*2, 2\), got"):
        f.lstm(x, w_ih, w_hh, h0=np.zeros((2, 4)), weight_hr=w_hr)
    with pytest.raises(ValueError, match=r"c0: expected shape .*2, 4\), got"):
        f.lstm(x, w_ih, w_hh, c0=np.zeros((2, 2)), weight_hr=w_hr)
    with pytest.raises(ValueError, match=r"reset_state: expected shape .*\(4,\)"):
        f.lstm(x, w_ih, w_hh, weight_hr=w_hr, reset_state=(np.zeros(2), np.zeros(2)))
    with pytest.raises(ValueError, match="proj_size: expected 0 with peephole=True, got 2"):
        ost.nn.LSTM(5, 4, peephole=True, proj_size=2)
    with pytest.raises(
        ValueError, match="proj_size: expected a whole number of at least 0, got -1"
    ):
        ost.nn.LSTM(5, 4, proj_size=-1)
    layer = ost.nn.LSTM(5, 4, proj_size=2, rng=0)
    with pytest.raises(ValueError, match=r"expected shape .*P.*, got"):
        layer(
            np.zeros((3, 2, 5), np.float32),
            (np.zeros((1, 2, 4), np.float32), np.zeros((1, 2, 4), np.float32)),
        )
    layer.precision = "int8"
    with layer.write() as p:
        p["weight_hr_l0"][1, 3] = np.inf
    with pytest.raises(
        ValueError, match="weight_hr_l0: expected finite weights for int8, got inf in row 1"
    ):
        layer(np.zeros((3, 2, 5), np.float32))


def test_packed_weights_know_their_projection() -> None:
    rng = np.random.default_rng(0)
    w = cast(random_weights("lstm_projected", 5, 12, rng), np.float32)
    x = normal((4, 2, 5))
    packed = ost.functional.pack("lstm", *w[:4], weight_hr=w[5])
    assert np.array_equal(
        ost.functional.lstm(x, packed)[0], ost.functional.lstm(x, *w[:4], weight_hr=w[5])[0]
    )
    with pytest.raises(
        TypeError, match="weight_ih: expected no further weights beside packed ones"
    ):
        ost.functional.lstm(x, packed, weight_hr=w[5])
