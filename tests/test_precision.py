"""bfloat16 and int8: one step against the same rounding in NumPy, whole sequences within the stated bounds, the law of the bits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import CELLS, GATES, assert_close, cast, random_weights
from ostinato import _core, reference

# Relative Frobenius norm against float64 over 30 steps at H = 40, as docs/kernels.md states it.
BOUND = {"bfloat16": 1e-2, "int8": 3e-2}
SIZES = [(1, 1, 1), (2, 3, 5), (5, 17, 33), (19, 40, 64), (3, 70, 47)]  # B, I, H


def bfloat16(a: Any) -> Any:
    """Rounded to nearest, ties to even, as float64."""
    u = np.asarray(a, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def int8(a: Any) -> Any:
    """Each row as whole multiples of its largest value / 127, as float64."""
    a = np.asarray(a, np.float32)
    top = np.abs(a).max(axis=-1, keepdims=True)
    q = np.rint(a * np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32))
    return q.astype(np.float64) * (top / np.float32(127))


ROUND = {"bfloat16": bfloat16, "int8": int8}


def pack(cell: str, weights: list[Any], precision: str) -> ost.functional.Packed:
    return ost.functional.Packed(cell, weights, False, precision)


def run(packed: Any, x: Any, h0: Any = None, c0: Any = None, train: bool = False) -> Any:
    state = [None if s is None else s[None] for s in (h0, c0)]
    return packed.native.forward(x, state[0], state[1], None, False, None, train, 0.0, 0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", [c for c in CELLS if c != "gru_reset_before"])  # whose second operand is rounded too
def test_one_step_is_that_of_rounded_operands(
    cell: str, precision: str, sizes: tuple[int, int, int], kernel_set: str
) -> None:
    batch, inputs, hidden = sizes
    rng = np.random.default_rng(3)
    w = random_weights(cell, inputs, hidden, rng)
    x, h0, c0 = rng.normal(size=(1, batch, inputs)), rng.normal(size=(batch, hidden)), rng.normal(size=(batch, hidden))
    arrays = cast(w, np.float32)
    x32, h32, c32 = (a.astype(np.float32) for a in (x, h0, c0))
    cells = c32 if _core.cells()[cell]["states"] > 1 else None
    y = run(pack(cell, arrays, precision), x32, h32, cells)[0]

    # The operands are rounded, the old state that enters pointwise is not.
    r = ROUND[precision]
    a = r(x32[0]) @ r(arrays[0]).T
    b = r(h32) @ r(arrays[1]).T
    exact = reference.Weights(*(None if v is None else v.astype(np.float64) for v in arrays))
    want = _step(cell, a, b, exact, h32.astype(np.float64), c32.astype(np.float64))
    assert_close(y[0], want, precision)


def _step(cell: str, a: Any, b: Any, w: Any, h: Any, c: Any) -> Any:
    """One step from finished products."""

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    a, b = a + w.bias_ih, b + w.bias_hh
    if cell.startswith("rnn"):
        return np.tanh(a + b) if cell == "rnn_tanh" else np.maximum(a + b, 0)
    parts = list(zip(np.split(a, GATES[cell], axis=1), np.split(b, GATES[cell], axis=1)))
    if cell == "gru":
        r, z = (sigmoid(u + v) for u, v in parts[:2])
        n = np.tanh(parts[2][0] + r * parts[2][1])
        return (1 - z) * n + z * h
    i, f, g, o = (u + v for u, v in parts)
    p = w.weight_peephole if cell == "lstm_peephole" else np.zeros((3, h.shape[1]))
    c1 = sigmoid(f + p[1] * c) * c + sigmoid(i + p[0] * c) * np.tanh(g)
    return sigmoid(o + p[2] * c1) * np.tanh(c1)


def frobenius(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_stays_within_the_bound(cell: str, precision: str, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    w = random_weights(cell, 24, 40, rng)
    x, dy = rng.normal(size=(30, 7, 24)), rng.normal(size=(30, 7, 40))
    trains = precision != "int8"
    packed = pack(cell, cast(w, np.float32), precision)
    y, _, _, tape = run(packed, x.astype(np.float32), train=trains)
    want = reference.forward(cell, x, w)
    assert frobenius(y, want.y) < BOUND[precision]
    assert not np.array_equal(y, run(pack(cell, cast(w, np.float32), "float32"), x.astype(np.float32))[0])
    if trains:
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, *_ = tape.backward(dy.astype(np.float32), None, None, [grads], True)
        backward = reference.backward(want, dy)
        limit = (10 if cell == "rnn_relu" else 2) * BOUND[precision]  # a unit that is off in one and on in the other
        assert frobenius(dx, backward.x) < limit
        for got, name in zip(grads[:4], ("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            assert frobenius(got, getattr(backward.weights, name)) < limit, name


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_the_law_of_the_bits(cell: str, precision: str, kernel_set: str, threads: None) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 33, 130, rng), np.float32), precision)
    x = rng.normal(size=(60, 9, 33)).astype(np.float32)
    ost.set_num_threads(1)
    y = run(packed, x)[0]
    for n in (2, 3):
        ost.set_num_threads(n)
        assert np.array_equal(y, run(packed, x)[0])
        assert np.array_equal(y[:, 2:3], run(packed, np.ascontiguousarray(x[:, 2:3]))[0])
    _, h, c, _ = run(packed, x[:25])
    rest = packed.native.forward(x[25:], h, c, None, False, None, False, 0.0, 0)[0]
    assert np.array_equal(y[25:], rest)


@pytest.mark.parametrize("batch", [1, 9, 33])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_gradients_in_bfloat16_have_the_same_bits_for_any_threads(
    cell: str, batch: int, kernel_set: str, threads: None
) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 19, 70, rng), np.float32), "bfloat16")
    x, dy = (rng.normal(size=(45, batch, n)).astype(np.float32) for n in (19, 70))
    results = []
    for n in (1, 2, 3):
        ost.set_num_threads(n)
        tape = run(packed, x, train=True)[3]
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, dh0, *_ = tape.backward(dy, None, None, [grads], True)
        results.append([dx, dh0, *(g for g in grads if g is not None)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert np.array_equal(a, b)


def test_int8_takes_zero_rows_and_refuses_what_has_no_scale(kernel_set: str) -> None:
    layer = ost.nn.LSTM(5, 6, rng=0)
    with layer.write() as p:
        p["weight_ih_l0"][...] = 0
        p["weight_hh_l0"][3] = 0
    layer.precision = "int8"
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    assert np.isfinite(layer(x)[0]).all()
    x[1, 2, 0] = np.nan
    y = layer(x)[0]
    assert np.isnan(y[1:, 2]).all()
    assert np.isfinite(y[:, :2]).all()
    with layer.write() as p:
        p["weight_hh_l0"][7, 2] = np.nan
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected finite weights for int8, got nan in row 7"):
        layer(x)


def test_errors_name_the_precision() -> None:
    with pytest.raises(
        ValueError, match=r"precision: expected one of 'float32', 'bfloat16', 'int8', 'exact', got 'half'"
    ):
        ost.nn.GRU(3, 4, precision="half")
    with pytest.raises(ValueError, match=r"precision: expected one of 'float64', got 'int8'"):
        ost.nn.GRU(3, 4, precision="int8", dtype=np.float64)
    layer = ost.nn.GRU(3, 4, precision="int8", rng=0)
    with pytest.raises(ValueError, match=r"precision: expected one that can be trained"):
        layer.vjp(np.zeros((2, 1, 3), np.float32))
    weights = ost.functional.pack("rnn", np.ones((2, 3), np.float32), np.ones((2, 2), np.float32), precision="int8")
    with pytest.raises(ValueError, match=r"expected a precision that can be trained, got weights packed as int8"):
        ost.functional.rnn_vjp(np.ones((1, 1, 3), np.float32), weights)


def test_a_layer_pickled_before_there_were_precisions() -> None:
    layer = ost.nn.GRU(3, 4, rng=0)
    state = layer.__getstate__()
    del state["_precision"]
    other = object.__new__(ost.nn.GRU)
    other.__setstate__(state)
    x = np.ones((2, 1, 3), np.float32)
    assert other.precision == "float32"
    assert np.array_equal(other(x)[0], layer(x)[0])
    layer.precision = "int8"
    assert copy.deepcopy(layer).precision == "int8"


def test_a_layer_changes_its_precision_and_back() -> None:
    layer = ost.nn.LSTM(8, 16, num_layers=2, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 2, 8)).astype(np.float32)
    exact = layer(x)[0]
    for name in ("bfloat16", "int8"):
        layer.precision = name
        assert 0 < frobenius(layer(x)[0], exact) < BOUND[name]
    layer.precision = "float32"
    assert np.array_equal(layer(x)[0], exact)


def test_training_in_bfloat16_learns_as_well() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 20, 2)).astype(np.float32)
    target = (x[..., :1] * 0.5 + x[..., 1:]).cumsum(axis=1)
    losses = []
    for precision in ("float32", "bfloat16"):
        model = ost.nn.Sequential(ost.nn.GRU(2, 32, precision=precision, batch_first=True, rng=0), ost.nn.Linear(32, 1, rng=1))
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.AdamW(3e-3), clip_norm=1.0)
        losses.append(min(trainer.fit((x, target), epochs=20, batch_size=32, progress=False).column("loss")[-3:]))
    assert losses[1] < 1.25 * losses[0]
    assert losses[0] < 0.1
