"""Products by tiles (AMX): the source of the set amx, run by a model of its instructions.

The model ends the process where the CPU would raise a fault: a shape that is not allowed, shapes
that do not fit each other, tiles that are not released. What the tests compare are the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import output_size, random_weights
from ostinato import _core, reference
from test_precision import BOUND, ROUNDED, cast, frobenius, pack, run

HOW = "pip install '.[test]' --config-settings=cmake.define.OSTINATO_EMULATED=ON"
# The vectors that a model takes for everything else.
VECTORS = {"amx-model": "avx512bf16", "amx-model-baseline": "baseline"}


@pytest.fixture(params=list(VECTORS))
def model(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test by a model of tiles, with the vectors of either set."""
    if not _core.tile_models():
        pytest.skip(f"built without the model of AMX: {HOW}")
    if request.param not in _core.tile_models():
        pytest.skip(f"this CPU does not run {VECTORS[request.param]}")
    before = _core.kernels()
    ost.use_kernels(request.param)
    yield request.param
    ost.use_kernels(before)


def by_vectors(model: str, f: Any) -> Any:
    """What a function returns on the vectors of a model's set."""
    ost.use_kernels(VECTORS[model])
    try:
        return f()
    finally:
        ost.use_kernels(model)


def test_the_model_is_chosen_by_name_alone(model: str) -> None:
    assert _core.kernels() == model
    assert model not in ost.kernels()["supported"]
    assert _core.instructions()["bfloat16"] == "a model of TDPBF16PS"
    text = str(ost.explain(ost.nn.LSTM(64, 64, precision="bfloat16", rng=0), (8, 40, 64)))
    assert model in text
    assert "TDPBF16PS" in text


def in_tiles(x: Any, w: Any, bias: Any) -> Any:
    """``x w^T + bias`` in float32, in the order of TDPBF16PS: blocks of 32, even and odd."""
    out = np.broadcast_to(bias, (len(x), len(w))).astype(np.float32)
    depth = x.shape[1] + x.shape[1] % 2
    x, w = (np.pad(a, [(0, 0), (0, depth - a.shape[1])]).astype(np.float64) for a in (x, w))
    for first in range(0, depth, 32):
        halves = np.zeros((2, *out.shape), np.float32)
        for k in range(first, min(first + 32, depth)):
            # The product has 16 bits, so that float64 holds the sum exactly.
            exact = np.multiply.outer(x[:, k], w[:, k]) + halves[k % 2]
            halves[k % 2] = exact.astype(np.float32)
        out = out + (halves[0] + halves[1])
    return out


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 64, 71])
def test_sums_have_the_order_of_the_instruction(batch: int, inputs: int, model: str) -> None:
    rng = np.random.default_rng(batch)
    hidden = 37
    w = random_weights("rnn_relu", inputs, hidden, rng)
    w.weight_hh[...] = 0
    arrays = cast(w, np.float32)
    x = rng.normal(size=(1, batch, inputs)).astype(np.float32)
    y = run(pack("rnn_relu", arrays, "bfloat16"), x)[0][0]

    def rounded(a: Any) -> Any:
        u = a.view(np.uint32)
        return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)

    want = in_tiles(rounded(x[0]), rounded(arrays[0]), arrays[2] + arrays[3])
    assert np.array_equal(y, np.maximum(want, 0))


@pytest.mark.parametrize("batch", [3, 18, 33])
@pytest.mark.parametrize("cell", ROUNDED)
def test_bytes_have_the_bits_of_vectors(cell: str, batch: int, model: str) -> None:
    rng = np.random.default_rng(0)
    arrays = cast(random_weights(cell, 70, 37, rng), np.float32)
    x = rng.normal(size=(3, batch, 70)).astype(np.float32)

    def forward() -> Any:
        return run(pack(cell, arrays, "int8"), x)[0]

    assert np.array_equal(forward(), by_vectors(model, forward))


@pytest.mark.parametrize("cell", ROUNDED)
def test_bfloat16_is_near_the_vectors_and_the_reference(cell: str, model: str) -> None:
    rng = np.random.default_rng(0)
    w = random_weights(cell, 24, 40, rng)
    x = rng.normal(size=(6, 18, 24)).astype(np.float32)
    dy = rng.normal(size=(6, 18, output_size(cell, 40))).astype(np.float32)

    def both() -> list[Any]:
        packed = pack(cell, cast(w, np.float32), "bfloat16")
        y, _, _, tape = run(packed, x, train=True)
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, *_ = tape.backward(dy, None, None, [grads], True)
        return [y, dx, *grads[:4]]

    got, others = both(), by_vectors(model, both)
    forward = reference.forward(cell, x, w)
    back = reference.backward(forward, dy)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    want = [forward.y, back.x, *(getattr(back.weights, n) for n in names)]
    # As in test_precision: units of a ReLU that are off in one alone, and norms.
    limit = {"rnn_relu": 10, "lstm_layer_norm": 6}.get(cell, 2) * BOUND["bfloat16"]
    for name, a, b, c in zip(("y", "x", *names), got, others, want):
        assert frobenius(a, b) < limit, name
        assert frobenius(a, c) < limit, name
    assert not np.array_equal(got[0], others[0])  # sums in another order


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_projected", "lstm_layer_norm"])
def test_bits_do_not_depend_on_other_rows(
    cell: str, precision: str, model: str, threads: None
) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 9, 21, rng), np.float32), precision)
    x = rng.normal(size=(8, 35, 9)).astype(np.float32)
    ost.set_num_threads(1)
    y = run(packed, x)[0]
    for n in (1, 3):
        ost.set_num_threads(n)
        assert np.array_equal(y, run(packed, x)[0])
        for rows in (slice(2, 3), slice(4, 21), slice(10, 35)):
            part = np.ascontiguousarray(x[:, rows])
            assert np.array_equal(y[:, rows], run(packed, part)[0])
    _, h, c, _ = run(packed, x[:3])
    assert np.array_equal(y[3:], packed.native.forward(x[3:], h, c, None)[0])


@pytest.mark.parametrize("cell", ["gru", "lstm_projected"])
def test_gradients_have_the_same_bits_for_any_threads(cell: str, model: str, threads: None) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 19, 37, rng), np.float32), "bfloat16")
    x, dy = (rng.normal(size=(9, 33, n)).astype(np.float32) for n in (19, output_size(cell, 37)))
    results = []
    for n in (1, 2, 3):
        ost.set_num_threads(n)
        tape = run(packed, x, train=True)[3]
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, dh0, *_ = tape.backward(dy, None, None, [grads], True)
        results.append([dx, dh0, *(g for g in grads if g is not None)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_streams_ragged_rows_and_memory_limits_have_the_bits_of_a_call(model: str) -> None:
    rng = np.random.default_rng(2)
    layer = ost.nn.GRU(6, 20, precision="bfloat16", rng=0)
    x = rng.normal(size=(12, 18, 6)).astype(np.float32)
    y, _ = layer(x)
    stream = layer.stream(18)
    for t in range(4):
        stream.x[...] = x[t]
        assert np.array_equal(stream.step(), y[t])
    lengths = [3 + b % 5 for b in range(18)]
    rows = np.concatenate([x[:n, b] for b, n in enumerate(lengths)])
    flat, _ = layer(ost.Ragged(rows, np.concatenate([[0], np.cumsum(lengths)])))
    for b, n in enumerate(lengths):
        assert np.array_equal(flat[b], y[:n, b])
    gradients = []
    for limit in (None, 3):
        _, pullback = layer.vjp(x, memory_limit=limit)
        layer.zero_grad()
        gradients.append([pullback(np.ones_like(y))[0], *map(np.copy, layer.grads.values())])
    assert all(np.array_equal(a, b) for a, b in zip(*gradients))


def test_other_precisions_are_those_of_the_set(model: str) -> None:
    layer = ost.nn.LSTM(5, 9, rng=0)
    x = np.random.default_rng(0).normal(size=(4, 20, 5)).astype(np.float32)
    assert np.array_equal(layer(x)[0], by_vectors(model, lambda: layer(x)[0]))
