"""Kernels whose blocks share the weights and exchange what a step needs.

The blocks are emulated in turn.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import DEVICE_CELLS, device_rows
from ostinato import _backend, _core, _device, _launch, _plan
from test_device import DEVICES, NAMES, on_cpu, on_device, problem

real_can_pipeline = _backend.Backend.can_pipeline
SHARED = [c for c in DEVICE_CELLS if not _core.drivers()[c]["persistent"]]
KINDS = [("bfloat16", 16), ("bfloat16", 8), ("float16", 16), ("float16", 8), ("split", 8)]
WITH_PEERS = [*((*k, 4 if k[1] == 8 else 1) for k in KINDS), ("split", 8, 1), ("split", 8, 2)]


def thinned(ordinary: Callable[..., bool], *options: Iterable[Any]) -> list[Any]:
    """Return all combinations, marked as such but for those of the ordinary run."""

    def name(value: Any) -> str:
        return str(value) if isinstance(value, (str, int)) else "-".join(map(str, value)) or "plain"

    return [
        pytest.param(
            *c,
            id="-".join(map(name, c)),
            marks=() if ordinary(*c) else pytest.mark.combinations,
        )
        for c in itertools.product(*options)
    ]


def with_options(device: _device.Device, **options: Any) -> _device.Device:
    """Return the device with other numbers for its emulation: ``delays``, ``absent``."""

    def run(*call: Any) -> None:
        device.run(*call, **options)

    return replace(device, run=run, host_status=np.zeros(1, np.uint32))


def persistent(
    cell: str,
    p: Any,
    control: Any,
    device: Any,
    precision: str,
    units: int,
    groups: int,
    span: int,
    peers: int = 1,
    chunks: int = 1,
    **facts: Any,
) -> Any:
    """Run both passes by persistent kernels."""
    facts |= {"register_capacity": 0, "rows": 0, "groups": groups, "span": span, "units": units}
    backward = {
        "units": 8 if precision == "split" and peers > 1 else 16,
        "peers": peers,
        "chunks": chunks,
    }
    return on_device(cell, p, control, device, precision, **facts, backward=backward)


# At one unit two kinds; at 80, of two clusters, every cell and every kind once.
@pytest.mark.parametrize(
    ("cell", "kind", "hidden"),
    thinned(
        lambda cell, kind, hidden: (
            hidden == 37
            or (hidden == 1 and kind in WITH_PEERS[3:5])
            or (hidden == 80 and SHARED.index(cell) == WITH_PEERS.index(kind))
        ),
        SHARED,
        WITH_PEERS,
        [1, 37, 80],
    ),
)
def test_against_tiles(cell: str, kind: tuple[str, int, int], hidden: int) -> None:
    """Agree with a launch a step, which is compared with the CPU.

    And the order of the blocks changes no bit.
    """
    precision, units, peers = kind
    devices = [
        with_options(DEVICES[0], delays=7),
        with_options(DEVICES[1], delays=12345),
        *DEVICES[2:],
    ]
    for sizes, rows, reverse, control, groups, span in (
        ((5, 3, 3, hidden), "none", False, {}, 1, 10),
        ((7, 19, 3, hidden), "all", True, {"cut": True, "clip_value": 0.4}, 2, 3),
        ((4, 35, 3, hidden), "lengths", False, {}, 2, 4),
    ):
        p = problem(cell, np.float32, sizes, rows, reverse)
        tiles = "exact" if precision == "split" else precision
        want = on_device(cell, p, control, DEVICES[0], tiles, register_capacity=0, rows=0)
        results = [
            persistent(cell, p, control, d, precision, units, groups, span, peers) for d in devices
        ]
        for k, (name, a) in enumerate(zip(NAMES, want)):
            if a is None:
                continue
            # A ReLU at rest flips by rounding: another sign, another slope.
            limit = (2e-5 if precision == "split" else 1e-2) * (5 if cell == "rnn_relu" else 1)
            for r in results:
                assert float(np.linalg.norm(r[k] - a)) <= limit * max(
                    float(np.linalg.norm(a)), 1e-3
                ), name
            assert all(np.array_equal(results[0][k], r[k]) for r in results[1:2]), (
                f"{name} depends on the order of blocks"
            )


@pytest.mark.parametrize(
    ("cell", "sizes", "peers"),
    [
        ("lstm", (2, 2, 3, 272), 4),
        ("gru_reset_before", (2, 2, 3, 272), 4),
        ("gru_reset_before", (2, 1, 3, 912), 4),
        ("lstm", (2, 1, 3, 656), 2),
    ],
)
def test_weights_in_shared_memory(cell: str, sizes: Any, peers: int) -> None:
    """Large layers keep in shared memory the weights that registers have no room for."""
    p = problem(cell, np.float32, sizes, "none", False)
    want = on_device(cell, p, {}, DEVICES[0], register_capacity=0, rows=0)
    got = persistent(cell, p, {}, DEVICES[0], "split", 8, 1, 2, peers)
    for name, a, b in zip(NAMES, want, got):
        if a is not None:
            assert float(np.linalg.norm(b - a)) <= 2e-5 * max(float(np.linalg.norm(a)), 1e-3), name


H200 = _plan.GpuFigures("NVIDIA H200", (9, 0), 132, 232448, 50 << 20, clusters=30, pairs=66)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_training_of_1024_units(monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    """In float32, by the kernels that an H200 is planned to run: backward in clusters of two.

    Against the CPU, with the tolerances of float32 on a GPU.
    """
    monkeypatch.setattr(_plan, "LAUNCH", 1.0)  # so that two steps are enough
    device = fake_cupy.stand_in(
        monkeypatch, replace(fake_cupy.DEVICE, figures=H200, host_status=np.zeros(1, np.uint32))
    )
    layer = getattr(ost.nn, cell)(4, 1024, rng=0)
    there, r = copy.deepcopy(layer).to("cuda"), np.random.default_rng(1)
    x = r.standard_normal((2, 1, 4)).astype(np.float32)
    dy = r.standard_normal((2, 1, 1024)).astype(np.float32)
    passes = ost.explain(there, x.shape, training=True).facts["passes"]
    (forward,), (backward,) = passes["forward"], passes["backward"]
    for planned, peers in ((forward, 1), (backward, 2)):
        assert (planned["kernel"], planned["units"], planned["peers"]) == ("persistent", 8, peers)
        assert planned["blocks"] == 128
    y, pullback = layer.vjp(x)
    y2, pullback2 = there.vjp(device.put(x))
    pairs = [(y2[0], y[0], 1e-5), (pullback2(device.put(dy))[0], pullback(dy)[0], 2e-5)]
    pairs += [(there.grads[n], g, 2e-5) for n, g in layer.grads.items()]
    for got, want, limit in pairs:
        error = float(np.linalg.norm(_device.host(got) - want))
        assert error <= limit * float(np.linalg.norm(want))


def apart(device: _device.Device, first: bool) -> _device.Device:
    """Run the side stream only when it is joined.

    Or (``first``) at once, and the current stream at the end.
    """
    ahead: list[bool] = [False]
    waiting: list[Any] = []
    behind: list[Any] | None = None

    class Apart(_device.SerialStreams):
        def __enter__(self) -> Apart:
            nonlocal behind
            behind = [] if first else None
            return self

        def __exit__(self, *_: object) -> None:
            nonlocal behind
            calls, behind = behind or [], None
            for call in calls:
                device.run(*call)

        @contextmanager
        def on_side(self) -> Any:
            ahead[0] = True
            yield
            ahead[0] = False

        def join(self) -> None:
            for call in waiting:
                device.run(*call)
            waiting.clear()

    def run(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        call = action, cell, itemsize, dict(values)
        if ahead[0] and not first:
            waiting.append(call)
        elif not ahead[0] and behind is not None:
            behind.append(call)
        else:
            device.run(*call)

    return replace(device, run=run, side_stream=Apart)


@pytest.mark.parametrize(
    ("cell", "kind", "library"),
    thinned(
        lambda cell, kind, library: cell == "lstm" or (kind == "all" and not library),
        SHARED,
        ["none", "all"],
        [False, True],
    ),
)
def test_products_beside_the_steps(cell: str, kind: str, library: bool) -> None:
    """Chunks, the last steps first, give the same sums in the same order.

    The array library gives one sum a chunk.
    """
    p = problem(cell, np.float32, (61, 17, 5, 20), kind, kind == "all")  # 4 parts of the rows
    orders = [(1, False), (3, False)] if library else [(1, False), (3, False), (4, True)]
    whole, *others = (
        persistent(
            cell, p, {}, apart(DEVICES[0], first), "split", 8, 2, 20, chunks=n, library=library
        )
        for n, first in orders
    )
    for some in others:
        for name, a, b in zip(NAMES, whole, some):
            if a is not None and library:
                assert float(np.linalg.norm(b - a)) <= 1e-6 * float(np.linalg.norm(a)), name
            elif a is not None:
                assert np.array_equal(a, b), name


def test_a_stream_beside_the_current_one() -> None:
    """The side stream waits for what was launched before it, and what follows a `join` for the side
    stream.
    """
    log: list[Any] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Any) -> None:
            log.append(("waits", self.name, event.of))

    class Event:
        def __init__(self, disable_timing: bool) -> None:
            assert disable_timing

        def record(self, stream: Stream) -> None:
            self.of = stream.name

    cupy = SimpleNamespace(
        cuda=SimpleNamespace(Event=Event, get_current_stream=lambda: Stream("current"))
    )
    beside = Stream("beside")
    with _device.SideStream(cupy, beside) as both:
        assert log == [("waits", "beside", "current")]
        assert both.on_side() is beside
    # whatever happened in between: arrays that the other stream uses are given back now
    assert log[1:] == [("waits", "current", "beside")]


@pytest.mark.parametrize(("cell", "peers"), [("lstm", 1), ("lstm", 4), ("gru", 1), ("rnn_tanh", 4)])
def test_two_words_for_a_float(cell: str, peers: int) -> None:
    """The targets of float32 on a GPU, over many steps.

    1e-5 of outputs and 2e-5 of gradients, against float64.
    """
    p = problem(cell, np.float32, (128, 16, 24, 64), "none", False)
    wide = {
        n: [None if a is None else a.astype(np.float64) for a in v] if isinstance(v, (list, tuple))
        else v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for n, v in p.items()
    }  # fmt: skip
    want, got = (
        on_cpu(cell, wide, {}),
        persistent(cell, p, {}, DEVICES[0], "split", 8, 1, 128, peers),
    )
    for name, a, b in zip(NAMES, want, got):
        if a is not None and a.size:
            limit = 1e-5 if name in ("y", "h", "c") else 2e-5
            assert float(np.linalg.norm(b - a)) <= limit * float(np.linalg.norm(a)), name


@pytest.mark.parametrize("power_error", [-(2.0**-22), 2.0**-22])
@pytest.mark.parametrize("reciprocal_error", [-(2.0**-23), 2.0**-23])
def test_functions_of_two_byte_words(power_error: float, reciprocal_error: float) -> None:
    """What cells of 2-byte words call on a GPU (`Quick` in math.h) is within what is said of it.

    The errors of the instructions are the largest that the PTX manual states.
    """

    def logistic(exponent: Any) -> Any:
        power = (np.exp2(exponent.astype(np.float64)) * (1 + power_error)).astype(np.float32)
        power[power < np.float32(2.0**-126)] = 0
        return ((1 + reciprocal_error) / (np.float32(1) + power)).astype(np.float32)

    x = np.linspace(-88, 88, 200_001, dtype=np.float32)  # float32 has the power of any
    log2e, wide = np.float32(1.4426950408889634), x.astype(np.float64)
    sigmoid, tanh = logistic(-log2e * x), 1 - 2 * logistic(2 * log2e * x[np.abs(x) < 44])
    wide_tanh = np.tanh(wide[np.abs(x) < 44])
    assert np.abs(sigmoid - 1 / (1 + np.exp(-wide))).max() < 2.0**-22
    assert np.abs(tanh - wide_tanh).max() < 2.0**-21
    # Backward the slope of tanh is wanted, whose words are rounded to 2^-9 of their size.
    assert np.abs((1 - tanh * tanh) - (1 - wide_tanh**2)).max() < 2.0**-20


def test_weights_of_any_size() -> None:
    """Each output's weights go as words of float16 by a power of two of their own."""
    p = problem("lstm", np.float32, (4, 3, 5, 20), "none", False)
    for k, size in enumerate((1e-30, 1e6, 3e9, 0)):
        p["weights"][1][k * 20 : k * 20 + 10] *= np.float32(size)
    want = on_device("lstm", p, {}, DEVICES[0], register_capacity=0, rows=0)
    got = persistent("lstm", p, {}, DEVICES[0], "split", 8, 1, 4)
    for name, a, b in zip(NAMES, want, got):
        if a is not None:
            assert float(np.linalg.norm(b - a)) <= 1e-4 * float(np.linalg.norm(a)), name


@pytest.mark.parametrize(("backward", "chunks"), [(False, 1), (True, 1), (True, 2)])
def test_a_block_that_does_not_come(backward: bool, chunks: int) -> None:
    """Nobody waits for ever: the outputs are NaN, the next call raises, and then all is well."""
    steps, batch = 5 * chunks, 3 if chunks == 1 else 60
    p = problem("lstm", np.float32, (steps, batch, 3, 40), "none", False)
    plain = _device.emulated()

    def run(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        missed = ("backward", "through_time") if backward else ("forward",)
        late = {}
        if action in missed and all(g["first_part"] == 0 for g in values["gradients"]):
            late, values = {"absent": 1}, {**values, "spin_limit": 200}
        plain.run(action, cell, itemsize, values, **late)

    device = replace(plain, run=run, host_status=np.zeros(1, np.uint32))
    w = _launch.pack(device, "lstm", p["weights"], precision="bfloat16")
    y, end = (
        np.empty((steps, batch, 40), np.float32),
        tuple(np.empty((batch, 40), np.float32) for _ in range(2)),
    )
    forced = {"register_capacity": 0, "rows": 0, "units": 16, "groups": 1, "span": 2}
    rows = device_rows(p["x"]), device_rows(y)
    call = _launch.Forward(w, *rows, (None, None), end)
    planned = [replace(_launch.plan_of(w, steps, batch, back), **forced) for back in (False, True)]
    planned[1] = replace(planned[1], chunks=chunks)
    kept = _launch.forward([call], (steps, batch), planned[0], train=True)
    if backward:
        assert np.isfinite(y).all()
        grads = [None if a is None else np.zeros_like(a) for a in p["weights"]]
        dx, d0 = np.zeros_like(p["x"]), tuple(np.empty((batch, 40), np.float32) for _ in range(2))
        dy = device_rows(p["dy"])
        _launch.backward(
            [_launch.Backward(kept[0], dy, (None, None), d0, grads, device_rows(dx))],
            planned[1],
        )
        for a in (dx, *d0, *grads[:4]):
            assert np.isnan(a).all()
    else:
        for a in (y, *end):
            assert np.isnan(a).all()
    assert device.host_status[0] == 1
    with pytest.raises(
        RuntimeError,
        match="emulated: a block of an earlier launch timed out waiting for another one",
    ):
        _launch.pack(device, "lstm", p["weights"])
    _launch.pack(device, "lstm", p["weights"])
    device.check()


def test_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for all devices, and raises once what a kernel has found.

    Without any it does nothing.
    """
    ost.cuda.check()
    waited: list[int] = []
    device = replace(
        _device.emulated(), wait=lambda: waited.append(1), host_status=np.zeros(1, np.uint32)
    )
    monkeypatch.setattr(_device, "_MADE", [device])
    ost.cuda.check()
    device.host_status[0] = 1
    with pytest.raises(
        RuntimeError,
        match=r"timed out waiting for another one .*; the outputs of that call are NaN",
    ):
        ost.cuda.check()
    ost.cuda.check()
    assert len(waited) == 3


def test_states_beyond_float16() -> None:
    """Two words of float16 stand for a float32 up to 65504."""
    p = problem("gru", np.float32, (3, 2, 3, 20), "none", False)
    device = with_options(DEVICES[0])
    p["h0"][1, 7] = 65504.0
    assert np.isfinite(persistent("gru", p, {}, device, "split", 8, 1, 4)[0]).all()
    p["h0"][1, 7] = 70000.0
    with pytest.raises(
        RuntimeError, match=r"a state of an earlier call was beyond 65504.*use precision='exact'"
    ):
        persistent("gru", p, {}, device, "split", 8, 1, 4)
    y = on_device("gru", p, {}, device, "exact")[0]  # asked for, float32 it is
    assert np.isfinite(y).all()


def test_nan_travels() -> None:
    """A NaN stays in its row, and is not taken for an unset word."""
    for precision, units in KINDS:
        p = problem("lstm", np.float32, (6, 5, 3, 40), "none", False)
        want = persistent("lstm", p, {}, DEVICES[0], precision, units, 1, 6)[0]
        p["x"][2, 3] = np.nan
        p["h0"].view(np.uint32)[4] = 0xFFFFFFFF
        got = persistent("lstm", p, {}, DEVICES[0], precision, units, 1, 6)[0]
        assert np.isnan(got[2:, 3]).all()
        assert np.isnan(got[:, 4]).all()
        others = [0, 1, 2]
        assert np.array_equal(got[:, others], want[:, others])
        assert np.array_equal(got[:2, 3], want[:2, 3])


def test_plans_that_the_kernels_refuse() -> None:
    p = problem("gru_reset_before", np.float32, (2, 2, 3, 4), "none", False)
    with pytest.raises(ValueError, match="units: expected those of a kernel that there is"):
        persistent(
            "gru_reset_before", p, {}, DEVICES[0], "bfloat16", 16, 1, 2, layer_pipelined=True
        )
    p = problem("gru_reset_before", np.float32, (2, 2, 3, 1281), "none", False)
    with pytest.raises(
        ValueError,
        match="units: expected blocks with room for all weights, got 16 of 1281 hidden units",
    ):
        persistent("gru_reset_before", p, {}, DEVICES[0], "bfloat16", 16, 1, 2)
    p = problem("lstm", np.float32, (2, 2, 3, 4), "none", False)
    for units, groups, message in (
        (7, 1, "units: expected those"),
        (16, 0, "groups: expected a group and a step"),
    ):
        with pytest.raises(ValueError, match=message):
            persistent("lstm", p, {}, DEVICES[0], "bfloat16", units, groups, 2)
    p = problem("lstm", np.float32, (2, 2, 3, 1025), "none", False)
    with pytest.raises(
        ValueError,
        match="units: expected blocks with room for all weights, got 16 of 1025 hidden units",
    ):
        persistent("lstm", p, {}, DEVICES[0], "bfloat16", 16, 1, 2)
    # Forward a block of 8 units has room for twice as many, and backward it is one of 16.
    with pytest.raises(
        ValueError,
        match="units: expected blocks with room for all weights, got 16 of 1025 hidden units",
    ):
        persistent("lstm", p, {}, DEVICES[0], "bfloat16", 8, 1, 2)


WIDE = _plan.GpuFigures("wide", (9, 0), 132, 232448, 50 << 20, clusters=32)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> _device.Device:
    """A stand-in for a large GPU, on which a launch costs so much that the weights are partitioned
    wherever they can be.
    """
    monkeypatch.setattr(_plan, "LAUNCH", 1.0)
    return fake_cupy.stand_in(
        monkeypatch, replace(fake_cupy.DEVICE, figures=WIDE, host_status=np.zeros(1, np.uint32))
    )


# options of a layer, of a call, and the problems in a launch, with whether they are layers
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], set[tuple[int, bool]]]] = {
    "one": ({}, {}, {(1, False)}),
    "both ways": ({"bidirectional": True, "num_layers": 2}, {"lengths": [7, 0, 3]}, {(2, False)}),
    "both ways, resets": (
        {"bidirectional": True, "batch_first": True},
        {"resets": 0.3, "mask": 0.6},
        {(2, False)},
    ),
    "two layers": ({"num_layers": 2}, {}, {(2, True)}),
    "three layers": (
        {"num_layers": 3, "batch_first": True},
        {"lengths": [2, 7, 5]},
        {(2, True), (1, False)},
    ),
    "dropout": ({"num_layers": 2, "dropout": 0.5}, {}, {(1, False)}),
    "resets": ({"num_layers": 2}, {"resets": 0.3}, {(1, False)}),
    "states": ({"num_layers": 2, "learned_state": True}, {"memory_limit": "states"}, {(2, True)}),
    "segments": ({"num_layers": 2}, {"memory_limit": 3}, {(2, True)}),
    "bfloat16": ({"num_layers": 2, "precision": "bfloat16"}, {}, {(2, True)}),
    "bfloat16, both ways": ({"bidirectional": True, "precision": "bfloat16"}, {}, {(2, False)}),
}


@pytest.mark.parametrize(
    ("cell", "name", "span"),
    thinned(
        lambda cell, name, span: cell == "LSTM" or len(cell + name) % 2 == (span > 2),
        ["LSTM", "GRU", "GRU before", "RNN"],
        CALLS,
        [2, 100],
    ),
)
def test_layers(
    wide: _device.Device, monkeypatch: pytest.MonkeyPatch, cell: str, name: str, span: int
) -> None:
    """As users call them, against the CPU.

    Layers above each other and both directions share launches.
    """
    options, how, plans = CALLS[name]
    seen: list[tuple[Any, bool]] = []
    real = _launch.pass_fields

    def watch(layers: Any, weights: Any, planned: Any, back: bool, sizes: Any) -> Any:
        seen.append((planned, back))
        return real(layers, weights, planned, back, sizes)

    monkeypatch.setattr(_plan, "LIBRARY_ROWS", 1 if span == 2 else 512)
    plain = _plan._persistent
    monkeypatch.setattr(
        _plan, "_persistent", lambda *a: (p := plain(*a)) and replace(p, span=min(span, p.span))
    )
    monkeypatch.setattr(_launch, "pass_fields", watch)
    hidden = 150 if "bfloat16" in name else 80
    if cell == "GRU before":  # two phases a step: layers go one after the other
        options, plans = (
            {**options, "reset_after": False},
            {(1 if layer_pipelined else n, False) for n, layer_pipelined in plans},
        )
    layer = getattr(ost.nn, cell.split()[0])(5, hidden, **options, rng=0)
    there, r = copy.deepcopy(layer).to("cuda"), np.random.default_rng(1)
    shape = (3, 7) if layer.batch_first else (7, 3)
    x = r.standard_normal((*shape, 5)).astype(np.float32)
    given = {n: r.random(shape) < v if isinstance(v, float) else v for n, v in how.items()}
    (y, state), pullback = layer.vjp(x, rng=np.random.default_rng(2), **given)
    (y2, state2), pullback2 = there.vjp(wide.put(x), rng=np.random.default_rng(2), **given)
    dy = r.standard_normal(y.shape).astype(np.float32)
    dx, dx2 = pullback(dy)[0], pullback2(wide.put(dy))[0]
    limit = 2e-2 if "bfloat16" in name else 2e-5
    pairs = [("y", y2, y), ("dx", dx2, dx)]
    if state is not None:
        pairs += [
            ("state", a, b)
            for a, b in zip(*((s if isinstance(s, tuple) else (s,)) for s in (state2, state)))
        ]
    pairs += [(n, there.grads[n], g) for n, g in layer.grads.items()]
    for what, got, want in pairs:
        error = float(np.linalg.norm(_device.host(got) - want))
        assert error <= limit * max(float(np.linalg.norm(want)), 1e-3), what
    assert {p.kernel for p, _ in seen} == {"persistent"}
    for back in (False, True):
        assert {(p.co_launched, p.layer_pipelined) for p, b in seen if b == back} == plans
    y3, _ = (
        there(wide.put(x), **{n: v for n, v in given.items() if n != "memory_limit"})
        if not layer.dropout
        else (y2, None)
    )
    assert np.array_equal(_device.host(y3), _device.host(y2))


@pytest.mark.parametrize(
    ("cell", "options", "library"),
    thinned(
        lambda cell, options, library: (
            cell == "LSTM" or (len(options) > 0 and library in ("", "bfloat16"))
        ),
        ["LSTM", "GRU"],
        [{}, {"bidirectional": True}, {"num_layers": 2}],
        ["", "floats", "split", "bfloat16"],
    ),
)
def test_layers_with_products_beside_the_steps(
    wide: _device.Device,
    monkeypatch: pytest.MonkeyPatch,
    cell: str,
    options: dict[str, Any],
    library: str,
) -> None:
    """Layers alone and co-launched give what they give with products after all steps."""
    monkeypatch.setattr(_plan, "LIBRARY_ROWS", 1 if library else 10**9)
    if library == "split":
        monkeypatch.setattr(_plan, "SPLIT_WORK", 1)
    fake_cupy.cuda.cublas.calls.clear()
    plain, chunks = _plan._persistent, [1]
    monkeypatch.setattr(_plan, "_persistent", lambda *a: replace(plain(*a), chunks=chunks[0]))
    device = fake_cupy.stand_in(monkeypatch, apart(wide, False))
    hidden = 150 if library == "bfloat16" else 70  # beyond what one multiprocessor holds
    layer = getattr(ost.nn, cell)(5, hidden, **options, rng=0).to("cuda")
    layer.precision = library if library == "bfloat16" else "float32"
    r = np.random.default_rng(1)
    rows = 32, 16  # two parts of them
    x = device.put(r.standard_normal((*rows, 5)).astype(np.float32))
    dy = device.put(
        r.standard_normal((*rows, hidden * (2 if layer.bidirectional else 1))).astype(np.float32)
    )
    results = []
    for chunks[0] in (1, 2):
        layer.zero_grad()
        dx = layer.vjp(x)[1](dy)[0]
        results.append([_device.host(a).copy() for a in (dx, *layer.grads.values())])
        (planned,) = {
            p["chunks"]
            for p in ost.explain(layer, x.shape, training=True).facts["passes"]["backward"]
        }
        assert planned == chunks[0]
    limit = 1e-5 if library == "bfloat16" else 1e-6
    for some in results[1:]:
        for a, b in zip(results[0], some):
            if (
                library or layer.num_layers > 1
            ):  # a layer that follows another one adds in another order where launches begin
                assert float(np.linalg.norm(b - a)) <= limit * float(np.linalg.norm(a))
            else:
                assert np.array_equal(a, b)
    assert bool(fake_cupy.cuda.cublas.calls) == (library in ("split", "bfloat16"))


@pytest.mark.parametrize(
    ("precision", "peers"),
    [("float32", 1), ("float32", 2), ("float32", 4), ("bfloat16", 1), ("bfloat16", 4)],
)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_two_layers_back(
    wide: _device.Device, monkeypatch: pytest.MonkeyPatch, cell: str, precision: str, peers: int
) -> None:
    """Two pipelined layers, with and without clusters, agree with one after the other.

    Delays change no bit.
    """
    partitions = _plan.partitions_for
    monkeypatch.setattr(
        _plan,
        "partitions_for",
        lambda *a: [s for s in partitions(*a) if s.peers == (peers if a[4] else 1)],
    )
    hidden = 150 if precision == "bfloat16" else 70
    layer = getattr(ost.nn, cell)(5, hidden, 2, rng=0, precision=precision).to("cuda")
    r = np.random.default_rng(1)
    x, dy = (r.standard_normal((9, 19, n)).astype(np.float32) for n in (5, hidden))
    results = []
    for pipelined, delays in ((False, 0), (True, 0), (True, 99)):
        figures = replace(WIDE, pairs=66)
        device = fake_cupy.stand_in(
            monkeypatch, replace(with_options(wide, delays=delays), figures=figures)
        )
        layer = copy.deepcopy(layer)
        monkeypatch.setattr(
            _backend.Backend, "can_pipeline", real_can_pipeline if pipelined else lambda *a: False
        )
        layer.zero_grad()
        dx = layer.vjp(device.put(x), lengths=[*range(1, 10), 0, *[9] * 9])[1](device.put(dy))[0]
        results.append([_device.host(a).copy() for a in (dx, *layer.grads.values())])
        plans = ost.explain(layer, (9, 19, 5), training=True).facts["passes"]["backward"]
        assert {(p["peers"], p["layer_pipelined"]) for p in plans} == {(peers, pipelined)}
    for a, b, c in zip(*results):
        assert np.array_equal(b, c)
        assert float(np.linalg.norm(b - a)) <= (2e-2 if precision == "bfloat16" else 1e-5) * float(
            np.linalg.norm(a)
        )


@pytest.mark.parametrize("direction", [0, 1])
def test_strides_beyond_an_int(
    wide: _device.Device, monkeypatch: pytest.MonkeyPatch, direction: int
) -> None:
    """Either pass refuses the output of either problem whose steps lie 2^31 numbers apart."""
    layer = ost.nn.LSTM(5, 80, bidirectional=True, rng=0).to("cuda")
    x = wide.put(np.ones((1, 3, 5), np.float32))  # of one step, at which no stride is taken
    want, real = _device.host(layer(x)[0]).copy(), _launch.pass_fields
    (y, _), pullback = layer.vjp(x)
    want_dx = _device.host(pullback(y)[0]).copy()
    strides = [0]

    def far(layers: Any, *others: Any) -> Any:
        layers[direction]["y"]["t"] = strides[0]
        return real(layers, *others)

    def back() -> Any:
        strides[0], kept = int(y.strides[0] // 4), strides[0]
        pullback = layer.vjp(x)[1]
        strides[0] = kept
        return pullback(y)[0]

    monkeypatch.setattr(_launch, "pass_fields", far)
    for strides[0] in (2**31 - 1, 1 - 2**31):
        assert np.array_equal(_device.host(layer(x)[0]), want)
        assert np.array_equal(_device.host(back()), want_dx)
    message = r"x: expected fewer than 2\^31 numbers from one step to the next, got 2147483648"
    for strides[0] in (2**31, -(2**31)):
        for run in (lambda: layer(x), back):
            with pytest.raises(ValueError, match=message):
                run()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing(wide: _device.Device, bidirectional: bool) -> None:
    """Layers whose weights would be partitioned take no rows, or no steps."""
    layer = ost.nn.LSTM(5, 80, 2, bidirectional=bidirectional, rng=0).to("cuda")
    for steps, batch in ((3, 0), (0, 3)):
        (y, _), pullback = layer.vjp(wide.put(np.zeros((steps, batch, 5), np.float32)))
        assert pullback(y)[0].shape == (steps, batch, 5)
        assert str(ost.explain(layer, (steps, batch, 5), training=True))
    assert not _device.host(layer.flat_grads).any()


def test_explain(wide: _device.Device) -> None:
    """What is planned, what the model makes of it, and what a run takes.

    The gradients stay as they were.
    """
    layer = ost.nn.LSTM(5, 80, 3, rng=0).to("cuda")
    layer.flat_grads[...] = 1.5
    e = ost.explain(layer, (20, 3, 5), training=True, measure=True)
    forward, backward = (e.facts["passes"][n] for n in ("forward", "backward"))
    assert [(p["of"], p["kernel"], p["layer_pipelined"]) for p in forward] == [
        ("layers 0 and 1", "persistent", True), ("layer 2", "persistent", False)
    ]  # fmt: skip
    assert [(p["of"], p["layer_pipelined"]) for p in backward] == [
        ("layers 2 and 1", True),
        ("layer 0", False),
    ]
    assert all(p["seconds"] > 0 for p in forward + backward)
    assert e.facts["measured_seconds"] > 0
    said = "was fitted to an NVIDIA H200 with earlier kernels; no run on a device has confirmed it"
    assert f"by the planner's model, which {said} for these" in str(e)
    assert "measured" in str(e)
    assert (_device.host(layer.flat_grads) == 1.5).all()
    assert ost.explain(layer, (20, 3, 5)).facts["measured_seconds"] is None
    both = ost.explain(ost.nn.GRU(5, 80, bidirectional=True, rng=0).to("cuda"), (20, 3, 5))
    assert "layer 0, both directions: kernel persistent" in str(both)
    dropped = ost.nn.LSTM(5, 80, 2, dropout=0.5, rng=0).to("cuda")
    assert not any(
        p["layer_pipelined"]
        for p in ost.explain(dropped, (20, 3, 5), training=True).facts["passes"]["forward"]
    )


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}])
def test_memory_is_what_explain_says(
    wide: _device.Device, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The arrays of one pass beside its outputs, within a tenth.

    The exchange buffer, and those of each co-launched layer.
    """
    layer = ost.nn.GRU(5, 80, rng=0, **options).to("cuda")
    x = wide.put(np.zeros((20, 3, 5), np.float32))
    layer(x), layer.vjp(x)[1](layer(x)[0])  # the weights are packed and shared out
    made = fake_cupy.bytes_made(monkeypatch)
    y = layer(x)[0]
    said = ost.explain(layer, (20, 3, 5)).facts["workspace_bytes"]
    assert abs(sum(made) - y.nbytes - said) <= 0.1 * said
    pullback = layer.vjp(x)[1]
    made.clear()
    dx = pullback(y)[0]
    said = ost.explain(layer, (20, 3, 5), training=True).facts["workspace_bytes"]
    assert abs(sum(made) - dx.nbytes - said) <= 0.1 * said


def test_the_trainer_tells_what_a_kernel_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's error is raised in place of a loss that is not finite."""
    device = replace(_device.emulated(), host_status=np.ones(1, np.uint32))
    monkeypatch.setattr(_device, "_MADE", [device])
    model = ost.nn.Sequential(ost.nn.GRU(1, 2, batch_first=True, rng=0), ost.nn.Linear(2, 1, rng=1))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(1e-2))
    x = np.full((2, 3, 1), np.nan, np.float32)
    with pytest.raises(RuntimeError, match="timed out waiting for another one"):
        trainer.fit((x, x), epochs=1, progress=False)
    with pytest.raises(ost.train.Diverged, match="the loss is nan"):
        trainer.fit((x, x), epochs=1, progress=False)
