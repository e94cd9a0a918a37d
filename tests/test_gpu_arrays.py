"""Layers, losses, optimisers and the Trainer on a device, against the same on the CPU.

Kernels emulated, and a GPU if there is one.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import (
    DEVICE_CELLS,
    GATES,
    GENERAL_CELLS,
    TOLERANCE,
    assert_close,
    cast,
    names_of,
    native_for_tests,
    numeric_gradient,
    options_of,
    output_size,
    random_weights,
    slack,
    widened,
)
from ostinato import _device, _plan, cuda, reference
from ostinato import functional as F

native_for_tests()

Gpu = _device.Device
FAKE = fake_cupy.DEVICE


@pytest.fixture(params=["emulated", "cuda"] if cuda.is_available() else ["emulated"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    if request.param == "cuda":
        yield _device.cuda()
        return
    yield fake_cupy.stand_in(monkeypatch)


def host(a: Any) -> Any:
    """Whatever a layer gives, as NumPy arrays."""
    if isinstance(a, ost.Ragged):
        return host(a.rows)
    if isinstance(a, (tuple, list)):
        return [host(b) for b in a]
    return _device.host(a)


def put(gpu: Gpu, a: Any) -> Any:
    if isinstance(a, ost.Ragged):
        return a.like(put(gpu, a.rows))
    if isinstance(a, (tuple, list)):
        return type(a)(put(gpu, b) for b in a)
    return gpu.put(a) if isinstance(a, np.ndarray) else a


LIMITS = {**TOLERANCE, np.dtype(np.float32): 2e-5}  # which may have gone as two words: docs/gpu.md


def agree(gpu: Gpu, got: Any, want: Any, name: str = "", scale: float = 1.0) -> None:
    """Everything that was an array is one of the device, and close by its norm."""
    if isinstance(want, ost.Ragged):
        assert got.offsets.tolist() == want.offsets.tolist()
        return agree(gpu, got.rows, want.rows, name, scale)
    if isinstance(want, (tuple, list)):
        assert len(got) == len(want), name
        for k, (a, b) in enumerate(zip(got, want)):
            agree(gpu, a, b, f"{name}[{k}]", scale)
        return None
    if want is None:
        assert got is None, name
        return None
    assert _device.of(got) is gpu, (name, type(got))
    a = host(got)
    assert (a.shape, a.dtype) == (want.shape, want.dtype), name
    if want.size:
        limit = LIMITS[want.dtype] * scale * max(float(np.linalg.norm(want)), 1e-3)
        assert float(np.linalg.norm(a - want)) <= limit, name
    return None


def moved(layer: Any) -> Any:
    return copy.deepcopy(layer).to("cuda")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 3, "dropout": 0.4},
    "both ways": {"num_layers": 2, "bidirectional": True, "dropout": 0.2, "batch_first": True},
    "learned": {"learned_state": True, "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2},
}
# By the names in the tests: the class and the options that choose a cell.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (ost.nn.LSTM, {}),
    "GRU": (ost.nn.GRU, {}),
    "RNN": (ost.nn.RNN, {}),
    "projected": (ost.nn.LSTM, {"proj_size": 3}),
    "normed": (ost.nn.LSTM, {"layer_norm": True}),
}
LSTMS = ["LSTM", "projected", "normed"]


def layer_of(kind: str, *sizes: int, **options: Any) -> Any:
    """A layer of a cell; gains and shifts are not 1 and 0, with which a step is chaotic."""
    make, own = KINDS[kind]
    layer = make(*sizes, **own, **options, rng=0)
    r = np.random.default_rng(9)
    with layer.write() as p:
        for name in [n for n in p if "_ln_" in n]:
            p[name][...] = 0.5 * p[name] + 0.3 * r.uniform(-1, 1, p[name].shape)
    return layer


TIMES = ["none", "lengths", "resets", "mask", "all", "zeros"]


def times_of(kind: str, steps: int, batch: int, batch_first: bool) -> dict[str, Any]:
    r = np.random.default_rng(3)
    shape = (batch, steps) if batch_first else (steps, batch)
    out: dict[str, Any] = {}
    if kind in ("lengths", "all"):
        out["lengths"] = r.integers(0, steps + 1, batch)
    if kind in ("resets", "all"):
        out["resets"] = r.random(shape) < 0.3
    if kind in ("mask", "all", "zeros"):
        out["mask"] = r.random(shape) < 0.6
    if kind == "zeros":
        out["masked"] = "zero"
    return out


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("cell", list(KINDS))
def test_layers(gpu: Gpu, cell: str, options: str, kind: str) -> None:
    steps, batch = 6, 4
    layer = layer_of(cell, 3, 5, **OPTIONS[options])
    there, first, r = moved(layer), layer.batch_first, np.random.default_rng(1)
    assert there.device == gpu.name
    assert layer.device == "cpu"
    x = r.standard_normal((batch, steps, 3) if first else (steps, batch, 3)).astype(np.float32)
    times = times_of(kind, steps, batch, first)
    given = put(gpu, list(times.values()))
    on_device = dict(zip(times, given))
    want = layer(x, **times)
    agree(gpu, there(put(gpu, x), **times), want, "flags on the host")
    agree(gpu, there(put(gpu, x), **on_device), want, "flags on the device")
    control = {"clip_step_value": 0.7, "clip_step_norm": 1.5} if kind == "all" else {}
    (y, state), pullback = layer.vjp(x, rng=5, **times, **control)
    (y2, state2), pullback2 = there.vjp(put(gpu, x), rng=5, **on_device, **control)
    agree(gpu, (y2, state2), (y, state), "vjp")
    if cell in LSTMS:
        agree(gpu, pullback2.cells, pullback.cells, "cells")
    for name, gate in pullback.gates.items():
        agree(gpu, pullback2.gates[name], gate, name)
    dy = r.standard_normal(y.shape).astype(np.float32)
    dstate = tuple(
        r.standard_normal(s.shape).astype(np.float32)
        for s in (state if cell in LSTMS else (state,))
    )
    d = dstate if cell in LSTMS else dstate[0]
    agree(gpu, pullback2(put(gpu, dy), put(gpu, d)), pullback(dy, d), "dx, dstate")
    agree(gpu, there.flat_grads, layer.flat_grads, "gradients")


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"coupled_gates": True, "peephole": True, "clip": 0.9}),
        ("LSTM", {"activation": "softplus", "learned_state": True, "num_layers": 2}),
        ("GRU", {"recurrent_activation": ("hard_sigmoid", 0.2, 0.5), "bidirectional": True}),
        ("GRU", {"activation": ("elu", 0.4), "reset_after": False, "clip": 0.7}),
        ("RNN", {"nonlinearity": ("scaled_tanh", 1.2, 0.6)}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_functions_that_a_call_chooses(gpu: Gpu, cell: str, options: dict[str, Any]) -> None:
    layer = getattr(ost.nn, cell)(3, 21, **options, rng=0)
    there, r = moved(layer), np.random.default_rng(1)
    x, lengths = r.standard_normal((6, 4, 3)).astype(np.float32), [6, 0, 3, 5]
    agree(gpu, there(put(gpu, x), lengths=lengths), layer(x, lengths=lengths), "y")
    (y, _), pullback = layer.vjp(x, resets=r.random((6, 4)) < 0.3)
    r = np.random.default_rng(1)
    r.standard_normal((6, 4, 3))
    (y2, _), pullback2 = there.vjp(put(gpu, x), resets=r.random((6, 4)) < 0.3)
    agree(gpu, y2, y, "vjp")
    dy = r.standard_normal(y.shape).astype(np.float32)
    agree(gpu, pullback2(put(gpu, dy)), pullback(dy), "dx, dstate")
    agree(gpu, there.flat_grads, layer.flat_grads, "gradients")
    text = str(ost.explain(there, x.shape, training=True))
    assert f"{layer._cell}: functions, clip and coupled gates of the layer" in text
    assert "have no functions, clip or coupled gates" in text
    with pytest.raises(ValueError, match="precision: expected 'float32'"):
        there.precision = "float16"


@pytest.mark.parametrize("cell", DEVICE_CELLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions(gpu: Gpu, cell: str, dtype: Any) -> None:
    """Every cell, from the start and from the end, with its own options, out= and a state of a
    reset.
    """
    family, r, g = cell.split("_")[0], np.random.default_rng(0), GATES[cell]
    size = output_size(cell, 5)
    draw = lambda *shape: r.standard_normal(shape).astype(dtype)
    weights = [draw(g * 5, 3), draw(g * 5, size), draw(g * 5), draw(g * 5)]
    if cell == "rnn_relu":
        weights[1] = weights[1] * dtype(0.1)
    own = {"lstm_projected": [None, draw(size, 5)]}
    own["lstm_layer_norm"] = [dtype(0.3) * draw(n) for n in (20, 20, 5, 5)]
    options = options_of(cell, [*weights, *own.get(cell, [draw(3, 5)])])
    x, resets, reset = draw(7, 2, 3), r.random((7, 2)) < 0.3, draw(size)
    pair = (reset, draw(5)) if family == "lstm" else reset
    both = {"resets": resets, "reset_state": pair, "lengths": [7, 4]}
    for reverse in (False, True):
        run, vjp = getattr(F, family), getattr(F, family + "_vjp")
        want = run(x, *weights, **options, **both, reverse=reverse)
        theirs = {n: put(gpu, v) for n, v in {**options, **both}.items()}
        out = gpu.xp.empty((7, 2, size), dtype)
        got = run(put(gpu, x), *put(gpu, weights), **theirs, reverse=reverse, out=out)
        assert got[0] is out
        agree(gpu, got, want, cell)
        _, pullback = vjp(x, *weights, **options, **both, reverse=reverse)
        _, pullback2 = vjp(put(gpu, x), *put(gpu, weights), **theirs, reverse=reverse)
        cuts, dy = r.random((7, 2)) < 0.2, draw(7, 2, size)
        _, pullback3 = vjp(
            put(gpu, x), *put(gpu, weights), **theirs, reverse=reverse, memory_limit="states"
        )
        agree(
            gpu,
            tuple(pullback3(put(gpu, dy), cuts=put(gpu, cuts))),
            tuple(pullback(dy, cuts=cuts)),
            cell,
        )
        if family != "rnn":
            with pytest.raises(TypeError, match="gates: expected a pass that keeps them"):
                _ = pullback3.gates
        for _ in range(2):  # a pullback here holds no state
            agree(
                gpu,
                tuple(pullback2(put(gpu, dy), cuts=put(gpu, cuts))),
                tuple(pullback(dy, cuts=cuts)),
                cell,
            )


def pairs_of(family: str, h: Any, c: Any) -> Any:
    return (h, c) if family == "lstm" else (h,)


@pytest.mark.parametrize("hidden", [1, 7, 65, 300])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", [c for c in DEVICE_CELLS if c not in GENERAL_CELLS])
def test_against_the_reference(gpu: Gpu, cell: str, dtype: Any, reverse: bool, hidden: int) -> None:
    """Rows with fewer numbers than a block has threads, and with more."""
    steps, batch, inputs, size = 5, 3, 4, output_size(cell, hidden)
    family, rng = cell.split("_")[0], np.random.default_rng(hidden)
    arrays = cast(random_weights(cell, inputs, hidden, rng), dtype)
    x, dy = (rng.normal(size=(steps, batch, n)).astype(dtype) for n in (inputs, size))
    states = pairs_of(family, *(rng.normal(size=(batch, n)).astype(dtype) for n in (size, hidden)))
    dstates = pairs_of(family, *(rng.normal(size=(batch, n)).astype(dtype) for n in (size, hidden)))
    times: dict[str, Any] = {"lengths": np.array([5, 0, 3]), "reverse": reverse}
    vjp, there = getattr(F, family + "_vjp"), put(gpu, arrays)
    out, pullback = vjp(
        put(gpu, x), *there[:4], *put(gpu, states), **options_of(cell, there), **times
    )
    got = pullback(put(gpu, dy), *put(gpu, dstates))
    wide = [a.astype(np.float64) for a in (x, *states, dy, *dstates)]
    exact, n = widened(cell, arrays), len(states)
    run = reference.forward(cell, wide[0], exact, *wide[1 : 1 + n], **times)
    want = reference.backward(run, *wide[1 + n :])
    scale = 8 * slack(cell)
    y, state = host(out[0]), host(out[1])
    assert_close(y, run.y, "y", scale)
    assert_close(state[0] if n == 2 else state, run.h_n, "h_n", scale)
    assert_close(host(got.dx), want.x, "dx", scale)
    assert_close(host(got.dh0), want.h0, "dh0", scale)
    if n == 2:
        assert_close(state[1], run.c_n, "c_n", scale)
        assert_close(host(got.dc0), want.c0, "dc0", scale)
    for name in names_of(exact):
        if getattr(exact, name) is not None:
            of = got.dlayer_norm if "_ln_" in name else got
            value = getattr(of, name if "_ln_" in name else "d" + name)
            assert_close(host(value), getattr(want.weights, name), name, scale)


@pytest.mark.parametrize("cell", ["lstm", "lstm_projected", "lstm_layer_norm"])
def test_gradients_by_differences(gpu: Gpu, cell: str) -> None:
    """All of them, with resets to a state of their own and a mask."""
    steps, batch, hidden = 4, 2, 3
    size, rng = output_size(cell, hidden), np.random.default_rng(0)
    weights = cast(random_weights(cell, 2, hidden, rng), np.float64)
    x = rng.normal(size=(steps, batch, 2))
    states = [rng.normal(size=(batch, n)) for n in (size, hidden)]
    reset = [rng.normal(size=n) for n in (size, hidden)]
    flags = {"resets": rng.random((steps, batch)) < 0.3, "mask": rng.random((steps, batch)) < 0.8}
    dy, dh, dc = (
        rng.normal(size=s) for s in ((steps, batch, size), (batch, size), (batch, hidden))
    )

    def arguments() -> tuple[list[Any], dict[str, Any]]:
        w = put(gpu, weights)
        options = {**options_of(cell, w), "reset_state": put(gpu, tuple(reset))}
        if cell == "lstm":
            options["weight_peephole"] = None
        return [put(gpu, x), *w[:4], *put(gpu, states)], {**options, **flags}

    def loss() -> float:
        given, options = arguments()
        y, (h, c) = F.lstm(*given, **options)
        return float((host(y) * dy).sum() + (host(h) * dh).sum() + (host(c) * dc).sum())

    given, options = arguments()
    _, pullback = F.lstm_vjp(*given, **options)
    got = pullback(*put(gpu, [dy, dh, dc]))
    gradients = [got.dweight_ih, got.dweight_hh, got.dbias_ih, got.dbias_hh]
    gradients += {"lstm": [], "lstm_projected": [got.dweight_hr]}.get(cell, got.dlayer_norm or [])
    held = [a for a in weights if a is not None]
    assert len(held) == len(gradients)
    for k, (a, d) in enumerate(
        zip(
            (x, *states, *reset, *held),
            (got.dx, got.dh0, got.dc0, got.dreset_h, got.dreset_c, *gradients),
        )
    ):
        np.testing.assert_allclose(
            host(d), numeric_gradient(loss, a), atol=1e-6, err_msg=f"argument {k}"
        )


@pytest.mark.parametrize("options", ["plain", "both ways"])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("cell", LSTMS)
def test_ragged(gpu: Gpu, cell: str, options: str, listed: bool) -> None:
    layer = layer_of(cell, 3, 5, **OPTIONS[options])
    there, r = moved(layer), np.random.default_rng(1)
    pieces = [r.standard_normal((n, 3)).astype(np.float32) for n in (4, 0, 7, 1)]
    x: Any = pieces if listed else ost.Ragged.join(pieces)
    (y, state), pullback = layer.vjp(x, rng=2)
    (y2, state2), pullback2 = there.vjp(put(gpu, x), rng=2)
    agree(gpu, (y2, state2), (y, state))
    agree(gpu, there(put(gpu, x)), layer(x))
    dy = y if listed else y.like(y.rows)
    agree(gpu, pullback2(put(gpu, dy)), pullback(dy))
    agree(gpu, there.flat_grads, layer.flat_grads)


@pytest.mark.parametrize("outputs", ["all", "last_step"])
@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("options", ["layers", "both ways"])
@pytest.mark.parametrize("cell", LSTMS)
def test_ragged_flags(gpu: Gpu, cell: str, options: str, limit: Any, outputs: str) -> None:
    layer = layer_of(cell, 3, 5, **OPTIONS[options])
    there, r = moved(layer), np.random.default_rng(1)
    x = ost.Ragged(r.standard_normal((13, 3)).astype(np.float32), [0, 0, 4, 4, 11, 13, 13])
    flags = {
        n: r.random(13) < share for n, share in (("mask", 0.7), ("resets", 0.2), ("cuts", 0.2))
    }
    theirs = dict(zip(flags, put(gpu, list(flags.values()))))
    (y, state), pullback = layer.vjp(x, rng=2, outputs=outputs, memory_limit=limit, **flags)
    (y2, state2), pullback2 = there.vjp(
        put(gpu, x), rng=2, outputs=outputs, memory_limit=limit, **theirs
    )
    agree(gpu, (y2, state2), (y, state))
    dy = y.like(y.rows) if outputs == "all" else y
    agree(gpu, pullback2(put(gpu, dy)), pullback(dy))
    agree(gpu, there.flat_grads, layer.flat_grads)


@pytest.mark.parametrize("outputs", ["last", "last_step", "none"])
@pytest.mark.parametrize("limit", [None, 3, "least", "states"])
@pytest.mark.parametrize("options", ["layers", "both ways"])
@pytest.mark.parametrize("cell", ["GRU", "projected", "normed"])
def test_outputs_and_segments(gpu: Gpu, cell: str, options: str, limit: Any, outputs: str) -> None:
    layer = layer_of(cell, 3, 5, **OPTIONS[options])
    there, r, first = moved(layer), np.random.default_rng(1), layer.batch_first
    x = r.standard_normal((4, 9, 3) if first else (9, 4, 3)).astype(np.float32)
    times = {
        "lengths": np.array([9, 2, 0, 5]),
        "mask": r.random(x.shape[:2]) < 0.7,
        "resets": r.random(x.shape[:2]) < 0.2,
    }
    (y, state), pullback = layer.vjp(x, outputs=outputs, memory_limit=limit, rng=3, **times)
    theirs = dict(zip(times, put(gpu, list(times.values()))))
    (y2, state2), pullback2 = there.vjp(
        put(gpu, x), outputs=outputs, memory_limit=limit, rng=3, **theirs
    )
    agree(gpu, (y2, state2), (y, state))
    dy = None if y is None else np.ones_like(y)
    agree(gpu, pullback2(put(gpu, dy), put(gpu, state)), pullback(dy, state))
    agree(gpu, there.flat_grads, layer.flat_grads)


def wrapped(gpu: Gpu, base: Any, view: Any) -> Any:
    """A view of an array, with its strides, on the device."""
    on = put(gpu, base)
    if gpu is FAKE:
        return fake_cupy.ndarray(np.lib.stride_tricks.as_strided(on._a, view.shape, view.strides))
    return gpu.xp.lib.stride_tricks.as_strided(on, view.shape, view.strides)


@pytest.mark.parametrize("options", ["plain", "both ways", "no bias"])
@pytest.mark.parametrize("form", ["dense", "lengths", "ragged", "strided", "backwards", "windows"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "projected", "normed"])
def test_products_of_the_library(gpu: Gpu, cell: str, form: str, options: str) -> None:
    """As many rows as the planner gives to the array library."""
    if (cell, options) == ("normed", "no bias"):
        pytest.skip("24 steps of it are too chaotic to compare; test_layers has 6")
    layer = layer_of(cell, 3, 5, **OPTIONS[options])
    there, r, first = moved(layer), np.random.default_rng(1), layer.batch_first
    x: Any = r.standard_normal((24, 24, 3) if form != "strided" else (48, 48, 3)).astype(np.float32)
    times: dict[str, Any] = {}
    if form == "lengths":
        times = {"lengths": r.integers(0, 25, 24)}
        (x if first else x.swapaxes(0, 1))[np.arange(24) >= times["lengths"][:, None]] = np.nan
    on = put(gpu, x)
    if form == "strided":
        x, on = x[::2, 1::2], on[::2, 1::2]
    if form == "backwards":
        x, on = x[::-1, ::-1], on[::-1, ::-1]
    if form == "windows":  # both axes a step apart
        series = r.standard_normal((70, 3)).astype(np.float32)
        x = np.lib.stride_tricks.sliding_window_view(series, 40, axis=0).swapaxes(1, 2)
        on = wrapped(gpu, series, x)
    if form == "ragged":
        x = ost.Ragged(x.reshape(-1, 3), [0, 100, 100, 240, 576])
        on = put(gpu, x)
    plan = _plan.plan(gpu.figures, [4], hidden=5, steps=24, batch=24, word=4)
    assert plan.library
    # The norms of three inputs, and of five units, enlarge rounding errors from step to step.
    scale = 8.0 if cell == "normed" else 1.0
    (y, state), pullback = layer.vjp(x, rng=0, **times)
    (y2, state2), pullback2 = there.vjp(on, rng=0, **times)
    agree(gpu, (y2, state2), (y, state), "y, state", scale)
    agree(gpu, pullback2(put(gpu, y), put(gpu, state)), pullback(y, state), "dx, dstate", scale)
    agree(gpu, there.flat_grads, layer.flat_grads, "gradients", scale)


@pytest.mark.parametrize(
    "sizes", [(0, 2, 3, 4), (3, 0, 3, 4), (1, 1, 1, 1), (2, 3, 1, 33)], ids=str
)
@pytest.mark.parametrize("cell", LSTMS)
def test_every_shape(gpu: Gpu, cell: str, sizes: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, hidden = sizes
    layer = layer_of(cell, inputs, hidden, 2, bidirectional=True)
    there, x = moved(layer), np.ones((steps, batch, inputs), np.float32)
    # A row of one input has nearly the same norm for every input: its dx is a small difference.
    scale = 8.0 if cell == "normed" else 1.0
    (y, state), pullback = layer.vjp(x, rng=0)
    (y2, state2), pullback2 = there.vjp(put(gpu, x), rng=0)
    agree(gpu, (y2, state2), (y, state))
    agree(gpu, pullback2(put(gpu, y), put(gpu, state)), pullback(y, state), "dx, dstate", scale)
    agree(gpu, there.flat_grads, layer.flat_grads)


def test_one_sequence_without_a_batch_axis(gpu: Gpu) -> None:
    layer = ost.nn.LSTM(3, 5, rng=0)
    there, x = moved(layer), np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    agree(gpu, there(put(gpu, x), lengths=put(gpu, np.array(4))), layer(x, lengths=4))
    (y, _), pullback = layer.vjp(x)
    _, pullback2 = there.vjp(put(gpu, x))
    agree(gpu, pullback2(put(gpu, np.ones_like(y))), pullback(np.ones_like(y)))


def model_of(rng: int = 0) -> Any:
    return ost.nn.Sequential(
        ost.nn.Embedding(11, 4, rng=rng),
        ost.nn.GRU(4, 6, 2, dropout=0.2, batch_first=True, rng=rng),
        ost.nn.Activation("tanh"),
        ost.nn.Dropout(0.3, rng=rng),
        ost.nn.Linear(6, 11, rng=rng),
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: ost.optim.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: ost.optim.RMSprop(0.01),
        lambda: ost.optim.Adam(0.01, weight_decay=0.01),
        lambda: ost.optim.AdamW(0.01),
    ],
)
def test_training(gpu: Gpu, optimizer: Any) -> None:
    """Losses, parameters and predictions agree when CPU and device train on equal batches."""
    r = np.random.default_rng(0)
    x = r.integers(0, 11, (30, 8))
    target, lengths = r.integers(0, 11, (30, 8)), r.integers(1, 9, 30)
    results = []
    for model in (model_of(), model_of().to("cuda")):
        trainer = ost.Trainer(
            model, ost.losses.CrossEntropy(label_smoothing=0.1), optimizer(), clip_norm=0.5
        )
        history = trainer.fit(
            (x, target, lengths),
            validation=(x[:7], target[:7]),
            epochs=2,
            batch_size=8,
            progress=False,
        )
        results.append((model, [row["loss"] for row in history.rows], trainer.predict(x[:5])))
    (model, losses, y), (there, losses2, y2) = results
    np.testing.assert_allclose(losses2, losses, rtol=1e-4)
    assert isinstance(y2, np.ndarray)  # as x was
    np.testing.assert_allclose(y2, y, atol=2e-4)
    assert _device.of(there.flat) is gpu
    np.testing.assert_allclose(host(there.flat), model.flat, atol=2e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "base",
    [ost.optim.SGD, ost.optim.RMSprop, ost.optim.Adam, ost.optim.AdamW],
)
def test_an_update_of_the_user(gpu: Gpu, base: Any, device: str) -> None:
    """It counts on every device; that of the base, which it may call, is that of the kernel."""
    options: dict[str, Any] = {"weight_decay": 0.1}
    if base is ost.optim.SGD:
        options["momentum"] = 0.9

    class Scaled(base):  # type: ignore[misc]
        scale, calls = 1.0, 0

        def _update(self, p: Any, *rest: Any) -> tuple[Any, ...]:
            self.calls += 1
            moved, *state = super()._update(p, *rest)
            return (p + self.scale * (moved - p), *state)

    def after(optimizer: Any, steps: int, device: str) -> Any:
        model = ost.nn.GRU(3, 4, dtype=np.float64, rng=0).to(device)
        x = np.random.default_rng(1).normal(size=(5, 2, 3))
        x = x if device == "cpu" else gpu.put(x)
        for _ in range(steps):
            model.zero_grad()
            (y, _h), pullback = model.vjp(x)
            pullback(y)
            optimizer.step(model)
        return host(model.flat)

    same, half = Scaled(0.05, **options), Scaled(0.05, **options)
    np.testing.assert_allclose(
        after(same, 3, device), after(base(0.05, **options), 3, "cpu"), rtol=1e-9, atol=1e-12
    )
    half.scale = 0.5
    before, kernel = after(half, 0, "cpu"), after(base(0.05, **options), 1, "cpu")
    np.testing.assert_allclose(after(half, 1, device), (before + kernel) / 2, atol=1e-12)
    assert same.calls >= 3
    assert half.calls >= 1


@pytest.mark.parametrize(
    "loss",
    [ost.losses.MSE(), ost.losses.MAE(), ost.losses.Huber(0.5), ost.losses.BinaryCrossEntropy()],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("lengths", [None, [3, 0]])
def test_losses(gpu: Gpu, loss: Any, lengths: Any) -> None:
    r = np.random.default_rng(0)
    y, target = r.standard_normal((3, 2, 4)), r.random((3, 2, 4))
    if lengths:
        y[:, 1] = np.nan
    value, dy = loss(y, target, lengths)
    for goal in (target, put(gpu, target)):
        value2, dy2 = loss(put(gpu, y), goal, lengths)
        assert abs(value2 - value) < 1e-12
        agree(gpu, dy2, dy)


def test_cross_entropy(gpu: Gpu) -> None:
    r = np.random.default_rng(0)
    y, target = 50 * r.standard_normal((5, 3, 7)), r.integers(0, 7, (5, 3))
    target[0, 1], y[0, 1] = -100, np.nan
    for smoothing in (0.0, 0.2):
        loss = ost.losses.CrossEntropy(label_smoothing=smoothing)
        value, dy = loss(y, target, [5, 2, 0])
        value2, dy2 = loss(put(gpu, y), put(gpu, target), [5, 2, 0])
        assert abs(value2 - value) < 1e-9 * abs(value)
        agree(gpu, dy2, dy)
    with pytest.raises(ValueError, match="target: expected class numbers from 0 to 6, got 9"):
        ost.losses.CrossEntropy()(put(gpu, y), put(gpu, np.full((5, 3), 9)))
    nothing = np.full((5, 3), -100)  # of no classes
    value, dy = ost.losses.CrossEntropy()(put(gpu, y[..., :0]), put(gpu, nothing))
    assert (value, dy.shape) == (0.0, (5, 3, 0))


def test_ragged_and_last_in_the_trainer(gpu: Gpu) -> None:
    r = np.random.default_rng(0)
    pieces = [r.standard_normal((n, 3)).astype(np.float32) for n in r.integers(1, 9, 12)]
    goals = r.integers(0, 4, 12)
    losses = []
    for model in (
        ost.nn.Sequential(ost.nn.LSTM(3, 6, bidirectional=True, rng=0), ost.nn.Linear(12, 4, rng=0))
        for _ in range(2)
    ):
        model = model.to("cuda") if losses else model
        trainer = ost.Trainer(
            model, ost.losses.CrossEntropy(), ost.optim.Adam(0.01), outputs="last"
        )
        history = trainer.fit((pieces, goals), epochs=3, batch_size=4, progress=False)
        losses.append([row["loss"] for row in history.rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_a_checkpoint_goes_from_one_to_the_other(gpu: Gpu, tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    data = (r.integers(0, 11, (24, 6)), r.integers(0, 11, (24, 6)))

    def fit(model: Any, epochs: int, name: str, **options: Any) -> Any:
        trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(0.01))
        path = tmp_path / f"{name}.safetensors"
        trainer.fit(
            data,
            validation=data,
            epochs=epochs,
            batch_size=8,
            progress=False,
            checkpoint=path,
            **options,
        )
        return model

    whole = fit(model_of(), 4, "whole")
    fit(model_of().to("cuda"), 2, "half")
    there = fit(model_of(1).to("cuda"), 4, "half", resume=True)
    # Split words have errors of 2e-5 of a gradient, a share of Adam's steps of 0.01.
    np.testing.assert_allclose(host(there.flat), whole.flat, atol=1e-3)
    back = fit(model_of(2), 4, "half", resume=True)
    assert np.array_equal(back.flat, host(there.flat))


def test_to_and_fro(gpu: Gpu, tmp_path: Path) -> None:
    model = ost.nn.Sequential(ost.nn.LSTM(3, 4, rng=0), ost.nn.Linear(4, 2, rng=0))
    before, x = model.flat.copy(), np.ones((2, 1, 3), np.float32)
    want, optimizer = model(x)[0], ost.optim.Adam(0.01)
    for device in ("cuda", "cpu", "cuda"):
        assert model.to(device) is model
        assert {model.device, model[0].device} == {"cpu" if device == "cpu" else gpu.name}
        (y, _), pullback = model.vjp(x if device == "cpu" else put(gpu, x))
        model.zero_grad()
        pullback(y * 0)
        optimizer.step(model)  # its state follows the model
    assert np.array_equal(host(model.flat), before)
    np.testing.assert_allclose(host(model(put(gpu, x))[0]), want, atol=1e-6)
    model.save(tmp_path / "m.safetensors")
    again = ost.nn.Sequential(ost.nn.LSTM(3, 4, rng=1), ost.nn.Linear(4, 2, rng=1))
    again.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.flat, before)
    other = ost.nn.Sequential(ost.nn.LSTM(3, 4, rng=1), ost.nn.Linear(4, 2, rng=1)).to("cuda")
    other.load_state_dict(model.state_dict())
    assert np.array_equal(host(other.flat), before)
    wrapped = ost.nn.Sequential(other)
    assert wrapped.device == gpu.name
    other = (
        ost.nn.LSTM(3, 4, rng=0)
        .to("cuda")
        .initialize("glorot", "orthogonal", "zeros", forget_bias=1.0)
    )
    assert host(other.parameters()["bias_ih_l0"])[4:8].tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="device: expected the whole model to be moved"):
        model[0].to("cpu")
    with pytest.raises(ValueError, match="layers: expected layers on one device"):
        ost.nn.Sequential(ost.nn.GRU(3, 4), ost.nn.GRU(4, 4).to("cuda"))


def test_gradient_flow(gpu: Gpu) -> None:
    from ostinato.diagnostics import gradient_flow

    layer = ost.nn.LSTM(2, 8, 2, bidirectional=True, batch_first=True, rng=0)
    x = np.random.default_rng(0).standard_normal((4, 20, 2)).astype(np.float32)
    want = gradient_flow(layer, x, lengths=[20, 3, 0, 11])
    got = gradient_flow(moved(layer), put(gpu, x), lengths=[20, 3, 0, 11])
    assert str(got) == str(want)
    for a, b in zip(got.layers, want.layers):
        np.testing.assert_allclose(a.dh, b.dh, rtol=1e-4)
        np.testing.assert_allclose(a.survival, b.survival, rtol=1e-4, atol=1e-9)
    ragged = ost.Ragged.join([x[0], x[1, :3]])
    assert str(gradient_flow(moved(layer), put(gpu, ragged))) == str(gradient_flow(layer, ragged))


def test_the_same_arrays_again(gpu: Gpu) -> None:
    """In a loop memory comes round.

    What was recorded of a pass must read what its arrays hold now.
    """
    layer = ost.nn.LSTM(3, 70, rng=0)
    there, r = moved(layer), np.random.default_rng(0)
    x = put(gpu, np.empty((20, 2, 3), np.float32))
    for _ in range(6):
        now = r.standard_normal((20, 2, 3)).astype(np.float32)
        x[...] = put(gpu, now)
        (y, _), pullback = layer.vjp(now)
        (y2, _), pullback2 = there.vjp(x)
        agree(gpu, y2, y)
        agree(gpu, pullback2(y2)[0], pullback(y)[0])
        agree(gpu, there(x)[0], y)


def test_nothing_is_read_back(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all arrays on the device a call neither waits for it nor copies from the host.

    It can be captured in a graph.
    """
    if gpu is not FAKE:
        pytest.skip("needs a library that can be watched")
    layer = ost.nn.LSTM(3, 5, 2, bidirectional=True, dropout=0.2, learned_state=True, rng=0).to(
        "cuda"
    )
    r = np.random.default_rng(0)
    x, dy = (
        put(gpu, r.standard_normal((6, 4, 3)).astype(np.float32)),
        put(gpu, np.ones((6, 4, 10), np.float32)),
    )
    times = times_of("all", 6, 4, False)
    on_device = dict(zip(times, put(gpu, list(times.values()))))
    layer(x), layer.vjp(x)  # weights are packed

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the host has met the device")

    for name in ("get", "__float__", "__int__", "__bool__", "__index__", "__iter__"):
        monkeypatch.setattr(fake_cupy.ndarray, name, refuse)
    monkeypatch.setattr(fake_cupy, "asarray", refuse)
    layer(x, **on_device)
    _, pullback = layer.vjp(x, rng=0, clip_step_norm=1.0, cuts=on_device["resets"], **on_device)
    pullback(dy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_without_a_library(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """Where the array library has found no product, ours multiplies."""
    figures = replace(FAKE.figures, library=False)
    gpu = fake_cupy.stand_in(monkeypatch, replace(FAKE, figures=figures))
    monkeypatch.setattr(fake_cupy.module, "matmul", None, raising=False)
    model = ost.nn.Sequential(
        ost.nn.GRU(3, 40, dtype=dtype, rng=0), ost.nn.Linear(40, 70, dtype=dtype, rng=1)
    )
    there, x = moved(model), np.random.default_rng(0).standard_normal((200, 3, 3)).astype(dtype)
    (y, _), pullback = model.vjp(x)
    (y2, _), pullback2 = there.vjp(put(gpu, x))
    agree(gpu, y2, y)
    agree(gpu, pullback2(put(gpu, y))[0], pullback(y)[0])
    agree(gpu, there.flat_grads, model.flat_grads)
    empty = ost.nn.Linear(3, 2, dtype=dtype, rng=0).to("cuda")
    assert empty(put(gpu, np.zeros((0, 3), dtype))).shape == (0, 2)


def test_explain(gpu: Gpu) -> None:
    small = ost.nn.GRU(3, 20, 2, bidirectional=True, rng=0).to("cuda")
    text = str(ost.explain(small, (50, 4, 3), training=True))
    rows = _plan.loop_rows_for(gpu.figures, 4)
    loop = f"kernel loop, 1 launch for all steps of {4 // rows} blocks"
    assert f"layer 0, a direction: {loop}" in text
    told = "an estimate: an NVIDIA H200 ran earlier kernels, and no device has run these"
    assert f"by the planner's model, {told}" in text
    large = ost.nn.LSTM(3, 300, rng=0).to("cuda")
    e = ost.explain(large, (50, 40, 3))
    (found,) = e.facts["passes"]["forward"]
    sizes = {"hidden": 300, "steps": 50, "batch": 40, "word": 4, "inputs": 3}
    planned = _plan.plan(gpu.figures, [4], **sizes, split=True)
    assert (found["kernel"], found["launches"]) == (planned.kernel, planned.launches)
    if gpu is FAKE:  # which has too few multiprocessors to share the weights
        assert (found["kernel"], found["launches"]) == ("stream", 50)
        assert "H = 300 is beyond 64" in str(e)
    with pytest.raises(ValueError, match="memory_limit: expected None for a layer on"):
        ost.explain(large, (50, 40, 3), training=True, memory_limit="least")


@pytest.mark.parametrize(
    ("kind", "lacks", "launches", "flops"),
    [
        ("projected", "a projection of h", (2, 6), 4 * 32 * (8 + 3) + 3 * 32),
        ("normed", "layer norm within a step", (5, 6), 4 * 32 * (8 + 32)),
    ],
)
def test_explain_says_which_kernels_run_a_step(
    gpu: Gpu, kind: str, lacks: str, launches: tuple[int, int], flops: int
) -> None:
    e = ost.explain(layer_of(kind, 8, 32).to("cuda"), (10, 2, 8), training=True)
    for which, n in zip(("forward", "backward"), launches):
        (plan,) = e.facts["passes"][which]
        assert (plan["kernel"], plan["launches"]) == ("step", 10 * n)
        assert f"a step takes {n} launches" in plan["reason"]
    assert f"all other kernels lack {lacks}" in str(e)
    for kernel in ("stream", "loop", "persistent"):
        assert f"by {kernel} (" in str(e)
    assert "by step (" not in str(e)
    assert e.facts["flops"] == 3 * 2 * flops * 10 * 2


@pytest.mark.parametrize("cell", list(KINDS))
@pytest.mark.parametrize("training", [False, True])
def test_memory_is_what_explain_says(
    gpu: Gpu, cell: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest sum of arrays that are made in one pass beside its outputs, within a tenth."""
    make, own = KINDS[cell]
    own = {**own, "proj_size": 24} if cell == "projected" else own
    layer = make(16, 40, 2, **own, rng=0).to("cuda")
    size = layer._output_size
    x = put(gpu, np.ones((60, 8, 16), np.float32))
    layer(x), layer.vjp(x)  # the weights are packed
    facts = ost.explain(layer, (60, 8, 16), training=training).facts
    made = fake_cupy.bytes_made(monkeypatch, gpu.xp)
    if not training:
        layer(x)
        outputs = 60 * 8 * size * 4
        assert facts["tape_bytes"] == 0
        # Two layers, of which each gives its working arrays back.
        assert (
            0.45 * (sum(made) - outputs) <= facts["workspace_bytes"] <= 1.1 * (sum(made) - outputs)
        )
        return
    (y, _), pullback = layer.vjp(x)
    between = 60 * 8 * size * 4  # outputs of the layer below, which the tape keeps as well
    assert facts["tape_bytes"] == pullback._tape.bytes - between
    made.clear()
    pullback(y)
    outputs = 60 * 8 * 16 * 4
    assert (
        abs(sum(made) - outputs + between - facts["workspace_bytes"])
        <= 0.1 * facts["workspace_bytes"]
    )


def test_text(gpu: Gpu) -> None:
    from ostinato.tasks.text import TextOptions, train_text

    text, figures = "the quick brown fox jumps over the lazy dog. " * 60, []
    for device in ("cpu", "cuda"):
        options = TextOptions(steps=6, hidden=12, seed=1, device=device)
        chars, facts = train_text(text, "fox", options, out=io.StringIO())
        figures.append(facts["valid_bits_per_char"])
        assert chars.model.device == ("cpu" if device == "cpu" else gpu.name)
    assert abs(figures[0] - figures[1]) < 1e-3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision(gpu: Gpu, precision: str) -> None:
    layer = ost.nn.LSTM(16, 24, 2, bidirectional=True, rng=0)
    there, x = (
        moved(layer),
        np.random.default_rng(0).standard_normal((20, 4, 16)).astype(np.float32),
    )
    there.precision = precision
    (y, _), pullback = layer.vjp(x)
    (y2, _), pullback2 = there.vjp(put(gpu, x))
    limit = {"bfloat16": 1e-2, "float16": 1e-3}[precision]
    error = float(np.linalg.norm(host(y2) - y) / np.linalg.norm(y))
    assert 1e-6 < error < limit
    dx, dx2 = pullback(y)[0], host(pullback2(put(gpu, y))[0])
    assert 1e-6 < np.linalg.norm(dx2 - dx) / np.linalg.norm(dx) < 2e-2
    packed = F.pack(
        "gru",
        *put(gpu, [np.ones((6, 3), np.float32), np.ones((6, 2), np.float32)]),
        precision=precision,
    )
    F.gru(put(gpu, np.ones((2, 1, 3), np.float32)), packed)
    if precision == "float16":
        for call in (lambda: there.to("cpu"), lambda: setattr(layer, "precision", "float16")):
            with pytest.raises(
                ValueError,
                match="precision: expected one of 'float32', 'bfloat16', 'int8', 'exact' on cpu, "
                "got 'float16'",
            ):
                call()
        layer.precision = "int8"
        model = ost.nn.Sequential(layer)
        with pytest.raises(
            ValueError,
            match=r"precision: expected one of 'float32', 'bfloat16', 'float16', 'exact' on .*, "
            r"got 'int8'",
        ):
            model.to("cuda")
        assert model.device == "cpu"


def test_bad_input(gpu: Gpu) -> None:
    layer = ost.nn.GRU(3, 4, rng=0)
    there, x = moved(layer), np.ones((2, 1, 3), np.float32)
    on = put(gpu, x)
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            lambda: there(x),
            TypeError,
            f"x: expected an array on {gpu.name}, as the weights are, got one on cpu",
        ),
        (
            lambda: layer(on),
            TypeError,
            "x: expected a numpy.ndarray of float32, as the weights are on the CPU, got an array "
            "of a GPU",
        ),
        (
            lambda: there(on, np.zeros((1, 1, 4), np.float32)),
            TypeError,
            "state: expected an array on",
        ),
        (lambda: there(on.astype(np.float64)), TypeError, "x: expected dtype float32, got float64"),
        (
            lambda: there(on[..., :2]),
            ValueError,
            r"x: expected shape \(T, B, I\) = \(\*, \*, 3\), got \(2, 1, 2\)",
        ),
        (lambda: there(on[..., ::-1]), ValueError, "x: expected unit stride on the last axis"),
        (
            lambda: there(on, gpu.xp.zeros((1, 2, 4), np.float32)),
            ValueError,
            r"state: expected shape \(L\*D, B, H\) = \(1, 1, 4\)",
        ),
        (
            lambda: there(on, lengths=put(gpu, np.array([1.0]))),
            TypeError,
            "lengths: expected an integer dtype",
        ),
        (
            lambda: there(on, lengths=put(gpu, np.array([1, 1]))),
            ValueError,
            r"lengths: expected shape \(B,\) = \(1,\)",
        ),
        (lambda: there.stream(), ValueError, "model: expected one on the CPU, got one on"),
        (
            lambda: there.to("gpu"),
            ValueError,
            "device: expected 'cpu', 'cuda' or 'cuda:0', got 'gpu'",
        ),
        (
            lambda: there.to("cuda:"),
            ValueError,
            "device: expected 'cpu', 'cuda' or 'cuda:0', got 'cuda:'",
        ),
        (
            lambda: ost.nn.Linear(3, 2).to("cuda")(x),
            TypeError,
            "x: expected an array on .*, where the layer is, got one on cpu",
        ),
        (
            lambda: ost.nn.Linear(3, 2)(on),
            TypeError,
            "x: expected an array on cpu, where the layer is, got one on",
        ),
        (
            lambda: ost.nn.Embedding(3, 2).to("cuda")(put(gpu, np.array([0, 5]))),
            ValueError,
            "x: expected indices from 0 to 2, got 5 at position 1",
        ),
        (
            lambda: F.gru(on, np.ones((3, 3)), np.ones((3, 1))),
            TypeError,
            "x: expected a numpy.ndarray of float64, as the weights are on the CPU",
        ),
        (
            lambda: F.rnn(
                on, *put(gpu, [np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)]), out=on
            ),
            ValueError,
            r"out: expected shape \(T, B, D\*H\)",
        ),
        (
            lambda: F.rnn(
                on[..., :1], *put(gpu, [np.ones((1, 1), np.float32)] * 2), out=on[..., :1]
            ),
            ValueError,
            "out: expected memory of its own, got an array whose memory range overlaps that of x",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_the_script_for_a_gpu_is_ready() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--emulated"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Foreign:
    """An array of another library, of the same memory: by one of the two protocols."""

    def __init__(self, a: Any, protocol: str) -> None:
        self.protocol, self.a = protocol, a

    def __getattr__(self, name: str) -> Any:
        if self.protocol == "dlpack" and name in ("__dlpack__", "__dlpack_device__"):
            return {"__dlpack__": lambda **_: self.a, "__dlpack_device__": lambda: (2, 0)}[name]
        if self.protocol == "cai" and name == "__cuda_array_interface__":
            return {"version": 3}
        raise AttributeError(name)


@pytest.fixture
def foreign(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes arrays of another library, and knows those that were taken."""
    if gpu is not FAKE:
        pytest.skip("a GPU has libraries of its own: see test_torch_on_a_gpu")
    plain, taken = fake_cupy.asarray, []

    def take(a: Any) -> Any:
        if not isinstance(a, Foreign):
            return plain(a)
        taken.append(a)
        return a.a

    monkeypatch.setattr(fake_cupy, "from_dlpack", take, raising=False)
    monkeypatch.setattr(fake_cupy, "asarray", take)

    def make(a: Any, protocol: str = "dlpack") -> Foreign:
        return Foreign(put(gpu, a), protocol)

    make.taken = taken  # type: ignore[attr-defined]
    return make


@pytest.mark.parametrize("protocol", ["dlpack", "cai"])
def test_arrays_of_other_libraries(gpu: Gpu, foreign: Any, protocol: str) -> None:
    weights, x = (
        [np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)],
        np.ones((4, 1, 2), np.float32),
    )
    want, _ = F.gru(x, *weights)
    got, _ = F.gru(foreign(x, protocol), *(foreign(w, protocol) for w in weights))
    assert len(foreign.taken) >= 3
    agree(gpu, got, want)


def test_wherever_such_an_array_may_stand(gpu: Gpu, foreign: Any) -> None:
    r = np.random.default_rng(0)
    x, w, u = (r.standard_normal(s).astype(np.float32) for s in ((6, 2, 3), (15, 3), (15, 5)))
    resets, reset, dy = (
        r.random((6, 2)) < 0.4,
        np.ones(5, np.float32),
        r.standard_normal((6, 2, 5)).astype(np.float32),
    )
    for limit in (None, 2):
        (_, _), pullback = F.gru_vjp(x, w, u, resets=resets, reset_state=reset, memory_limit=limit)
        theirs = {"resets": foreign(resets), "reset_state": foreign(reset)}
        (_, _), pullback2 = F.gru_vjp(
            foreign(x), foreign(w), foreign(u), memory_limit=limit, **theirs
        )
        agree(gpu, tuple(pullback2(foreign(dy))), tuple(pullback(dy)))
    model = ost.nn.Sequential(ost.nn.LSTM(3, 5, rng=0), ost.nn.Linear(5, 2, rng=0))
    there, pieces = moved(model), [x[:3, 0], x[:5, 1]]
    (y, state), pullback = model.vjp(pieces)
    (y2, state2), pullback2 = there.vjp([foreign(p) for p in pieces])
    agree(gpu, (y2, state2), (y, state))
    agree(gpu, pullback2([foreign(a) for a in y])[0], pullback(y)[0])
    (y, state), pullback = model.vjp(x, lengths=[6, 2])
    _, pullback2 = there.vjp(foreign(x), lengths=foreign(np.array([6, 2])))
    dstate = (tuple(np.ones_like(s) for s in state[0]), None)
    agree(gpu, pullback2(foreign(y), (tuple(map(foreign, dstate[0])), None)), pullback(y, dstate))
    single = there[0].vjp(foreign(x[:, 0]))[1]
    single(dcells=foreign(np.ones((1, 6, 5), np.float32)))
    trainer = ost.Trainer(there, ost.losses.MSE(), ost.optim.SGD(0.1))
    trainer.fit([(foreign(x), foreign(y))], epochs=1, progress=False)


def test_such_an_array_is_recorded(gpu: Gpu, foreign: Any) -> None:
    """It gets a gradient, and may be one."""
    layer = ost.nn.GRU(3, 5, rng=0)
    there, x = moved(layer), np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((4, 2, 5)).astype(np.float32)
    y, pullback = ost.vjp(lambda x: np.tanh(layer(x)[0]), x)
    y2, pullback2 = ost.vjp(lambda x: np.tanh(there(x)[0]), foreign(x))
    agree(gpu, y2, y)
    agree(gpu, pullback2(foreign(dy)), pullback(dy))
    agree(gpu, there.flat_grads, layer.flat_grads)


def test_what_goes_wrong_leaves_nothing_half_done(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ost.nn.Sequential(ost.nn.GRU(3, 4, rng=0), ost.nn.Linear(4, 2, rng=0)).to("cuda")
    (y, _), pullback = model.vjp(put(gpu, np.ones((2, 1, 3), np.float32)))
    with pytest.raises(
        TypeError, match=r"dstate\[0\]: expected an array on .*, where the layer is, got one on cpu"
    ):
        pullback(y, (np.zeros((1, 1, 4), np.float32), None))
    assert not host(model.flat_grads).any()
    pullback(y)
    assert host(model.flat_grads).any()
    early = model.new_grads()
    model.to("cpu")
    (y, _), pullback = model.vjp(np.ones((2, 1, 3), np.float32))
    with pytest.raises(TypeError, match="grads: expected what new_grads"):
        pullback(y, grads=early)
    version, flat = model.version, model.flat
    assert model.to("cpu").version == version  # where it is already
    assert np.shares_memory(model.flat, flat)
    pullback(y)
    calls: list[Any] = []

    def put_once(self: Any, a: Any) -> Any:
        calls.append(a)
        if len(calls) > 1:
            raise MemoryError("out of memory allocating 5 bytes")
        return plain(self, a)

    plain = _device.Device.put
    monkeypatch.setattr(_device.Device, "put", put_once)
    with pytest.raises(MemoryError, match="5 bytes"):
        model.to("cuda")
    assert (model.device, model.version) == ("cpu", version)
    assert isinstance(model.flat_grads, np.ndarray)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gates_made_again_in_many_rows(gpu: Gpu, precision: str) -> None:
    """As many as the library multiplies, and in words of 2 bytes.

    The tape is what the states take.
    """
    layer = ost.nn.LSTM(3, 20, 2, rng=0).to("cuda")
    layer.precision = precision
    x, dy = (
        put(gpu, np.random.default_rng(0).standard_normal((40, 16, n)).astype(np.float32))
        for n in (3, 20)
    )
    (_, _), pullback = layer.vjp(x)
    (_, _), pullback2 = layer.vjp(x, memory_limit="states")
    between = 40 * 16 * 20 * 4  # outputs of the layer below
    assert (pullback2._tape.bytes - between) * 5 == pullback._tape.bytes - between  # c of i f g o c
    want = host(pullback(dy)[0])
    error = np.linalg.norm(host(pullback2(dy)[0]) - want) / np.linalg.norm(want)
    assert error < (1e-5 if precision == "float32" else 1e-2)


def test_packed_peepholes_are_a_snapshot(gpu: Gpu) -> None:
    r = np.random.default_rng(0)
    draw = lambda *s: put(gpu, r.standard_normal(s).astype(np.float32))
    x, peephole = draw(4, 2, 3), draw(3, 5)
    packed = F.pack("lstm", draw(20, 3), draw(20, 5), weight_peephole=peephole)
    before = host(F.lstm(x, packed)[0])
    peephole[...] = 0
    assert np.array_equal(host(F.lstm(x, packed)[0]), before)


def test_the_trainer_with_times_on_the_device(gpu: Gpu, tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    x, goals, lengths = (
        r.standard_normal((12, 6, 3)).astype(np.float32),
        r.integers(0, 4, 12),
        r.integers(1, 7, 12),
    )
    mask = r.random((12, 6)) < 0.8
    mask[:, 0] = True
    metrics = {"right": lambda y, t, n: ((y.argmax(-1) == t).sum(), t.size)}
    rows = []
    for device in ("cpu", "cuda"):
        model = ost.nn.Sequential(ost.nn.GRU(3, 6, rng=0), ost.nn.Linear(6, 4, rng=0)).to(device)
        trainer = ost.Trainer(
            model,
            ost.losses.CrossEntropy(),
            ost.optim.Adam(lambda_rate()),
            outputs="last",
            metrics=metrics,
        )
        move = (lambda a: a) if device == "cpu" else (lambda a: put(gpu, a))
        batches = [
            (
                x[k : k + 4].swapaxes(0, 1),
                goals[k : k + 4],
                {"lengths": move(lengths[k : k + 4]), "mask": move(mask[k : k + 4].T)},
            )
            for k in (0, 4, 8)
        ]
        history = trainer.fit(
            batches,
            validation=batches,
            epochs=2,
            progress=False,
            checkpoint=tmp_path / f"{device}.safetensors",
        )
        rows.append(history.rows[-1])
    assert abs(rows[0]["valid_loss"] - rows[1]["valid_loss"]) < 1e-4
    assert rows[0]["valid_right"] == rows[1]["valid_right"]


def lambda_rate() -> Any:
    class Rate(ost.optim.Schedule):
        """Gives NumPy's numbers."""

        def __call__(self, step: int) -> Any:
            return np.float32(0.01)

    return Rate()


def test_a_gpu_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ostinato.__main__ import main

    def refuse(index: int | None = None) -> Any:
        raise _device.NoGpu("cuda: expected a GPU, but there is no NVIDIA driver")

    monkeypatch.setattr(_device, "cuda", refuse)
    assert main(["train", "text", "--corpus", "python", "--device", "cuda", "--steps", "1"]) == 2
    assert (
        "ostinato: cuda: expected a GPU, but there is no NVIDIA driver" in capsys.readouterr().err
    )
    layer = ost.nn.GRU(3, 4)
    with pytest.raises(RuntimeError, match="there is no NVIDIA driver"):
        layer.to("cuda")
    assert layer.device == "cpu"


@pytest.mark.skipif(not cuda.is_available(), reason="no GPU")
def test_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(backend, "allow_tf32", False)  # ours is float32
    x, w, r = (torch.randn(*s, device="cuda") for s in ((5, 2, 3), (16, 3), (16, 4)))
    out = torch.empty(5, 2, 4, device="cuda")
    F.lstm(x, w, r, out=out)
    module = torch.nn.LSTM(3, 4, bias=False).cuda()
    with torch.no_grad():
        module.weight_ih_l0.copy_(w)
        module.weight_hh_l0.copy_(r)
        want = module(x)[0]
    assert torch.allclose(out, want, atol=1e-5)
