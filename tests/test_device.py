"""The kernels of the GPU, emulated on the CPU.

Every cell against the kernels of the CPU, which are held against the reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import (
    DEVICE_CELLS,
    GENERAL_CELLS,
    STREAM_CELLS,
    TOLERANCE,
    device_rows,
    native_for_tests,
    output_size,
    scalars_of,
    slack,
)
from ostinato import (
    _abi,
    _backend,
    _buffers,
    _core,
    _device,
    _driver,
    _launch,
    _native,
    _plan,
    cuda,
)

_emulated = native_for_tests()

SIZES = [(5, 3, 4, 7), (3, 1, 1, 1), (2, 40, 3, 20), (0, 2, 3, 4), (4, 0, 3, 4), (6, 2, 70, 33)]


def close(got: Any, want: Any, name: str, dtype: Any, scale: float = 1.0) -> None:
    """By the norm of the whole: sums have another order here.

    A row of one input has nearly the same norm for every input, so its dx is a small difference.
    """
    assert got.shape == want.shape, name
    if want.size:
        floor = 1e-3 * scale
        limit = TOLERANCE[np.dtype(dtype)] * scale * max(float(np.linalg.norm(want)), floor)
        assert float(np.linalg.norm(got - want)) <= limit, name


def problem(cell: str, dtype: Any, sizes: Any, kind: str, reverse: bool) -> dict[str, Any]:
    steps, batch, inputs, hidden = sizes
    r = np.random.default_rng(0)
    facts, size = _core.cells()[cell], output_size(cell, hidden)
    rows, two = facts["gates"] * hidden, facts["states"] > 1

    def draw(*shape: int) -> Any:
        return (r.uniform(-1, 1, shape) / np.sqrt(max(hidden, 1))).astype(dtype)

    p: dict[str, Any] = {"x": r.standard_normal((steps, batch, inputs)).astype(dtype)}
    p["weights"] = [draw(rows, inputs), draw(rows, size), draw(rows), draw(rows)]
    for name, n, flat in _core.unit_weights()[cell]:
        shift = dtype(0.5 * name.startswith("weight_ln"))  # gains of 1 make a step chaotic
        p["weights"].append((draw(n * hidden) if flat else draw(n, hidden)) + shift)
    if not _core.unit_weights()[cell]:
        p["weights"].append(None)
    if facts.get("projected"):
        p["weights"].append(draw(size, hidden))
    p["h0"], p["c0"] = draw(batch, size), draw(batch, hidden) if two else None
    p["restart"] = draw(size), draw(hidden) if two else None
    p["lengths"] = r.integers(0, steps + 1, batch) if kind in ("lengths", "all") else None
    p["resets"] = r.random((steps, batch)) < 0.3 if kind in ("resets", "all") else None
    p["mask"] = r.random((steps, batch)) < 0.6 if kind in ("mask", "all") else None
    p["dy"] = r.standard_normal((steps, batch, size)).astype(dtype)
    p["dh"], p["dc"] = draw(batch, size), draw(batch, hidden) if two else None
    p["cuts"] = r.random((steps, batch)) < 0.2
    p["dcells"] = r.standard_normal((steps, batch, hidden)).astype(dtype) if two else None
    if p["lengths"] is not None:
        p["x"][np.arange(steps)[:, None] >= p["lengths"]] = np.nan
    p["reverse"], p["hidden"] = reverse, hidden
    return p


def flags(a: Any) -> Any:
    return None if a is None else np.ascontiguousarray(a).view(np.uint8)


def on_cpu(
    cell: str, p: dict[str, Any], control: dict[str, Any], precision: str = "exact"
) -> list[Any]:
    make = _native.backend_for(p["x"]).Packed
    packed = make(
        cell,
        p["x"].shape[2],
        p["hidden"],
        1,
        False,
        [p["weights"]],
        True,
        p["reverse"],
        precision,
        scalars=scalars_of(cell),
        proj_size=p["h0"].shape[1] if _core.cells()[cell].get("projected") else 0,
    )
    one = lambda a: None if a is None else a[None]
    options = {"restart_h": one(p["restart"][0]), "restart_c": one(p["restart"][1]), "repeat": True}
    options |= {"resets": flags(p["resets"]), "mask": flags(p["mask"])}
    y, h, c, tape = packed.forward(
        p["x"], one(p["h0"]), one(p["c0"]), p["lengths"], train=True, **options
    )
    grads = [None if w is None else np.zeros_like(w) for w in p["weights"]]
    out = tape.backward(
        p["dy"], one(p["dh"]), one(p["dc"]), [grads], True, **control_of(p, control, one)
    )
    if p["resets"] is None:
        out = (*out[:3], None, None, out[5])
    first = lambda a: None if a is None else a[0]
    return [y, first(h), first(c), out[0], *map(first, out[1:]), *grads]


def control_of(p: dict[str, Any], control: dict[str, Any], one: Any) -> dict[str, Any]:
    out = dict(control)
    if out.pop("cut", False):
        out["cuts"] = flags(p["cuts"])
        out["dcells"] = one(p["dcells"])
    return out


DEVICES = [_device.emulated(), _device.emulated(reverse_order=True)] + (
    [_device.cuda()] if cuda.is_available() else []
)


def on_device(
    cell: str,
    p: dict[str, Any],
    control: dict[str, Any],
    device: _device.Device,
    precision: str = "exact",
    states_only: bool = False,
    **forced: Any,
) -> list[Any]:
    """``forced``: of the plans."""
    (steps, batch, size), hidden = p["dy"].shape, p["hidden"]
    forwards = {n: v for n, v in forced.items() if n != "backward"}
    put, xp = device.put, device.xp
    weights, restart = [put(a) for a in p["weights"]], tuple(put(a) for a in p["restart"])
    w = _launch.pack(
        device,
        cell,
        weights,
        reverse=p["reverse"],
        precision=precision,
        scalars=scalars_of(cell),
    )
    lengths = None if p["lengths"] is None else put(np.ascontiguousarray(p["lengths"], np.int64))
    before = None
    if p["resets"] is not None or p["mask"] is not None:
        given: Any = dict.fromkeys(("held", "restarted", "resets_after", "predecessors"))
        given |= {
            "steps": steps,
            "batch": batch,
            "lengths": lengths,
            "repeat": True,
            "from_end": p["reverse"],
        }
        given |= {"resets": put(flags(p["resets"])), "mask": put(flags(p["mask"]))}
        before = _backend.times_table(device, given)
    states = 1 if p["c0"] is None else 2

    def pair() -> Any:
        return tuple(
            xp.empty((batch, n), p["x"].dtype) if k < states else None
            for k, n in enumerate((size, hidden))
        )

    def run(train: bool) -> Any:
        y, end = xp.empty((steps, batch, size), p["x"].dtype), pair()
        rows = device_rows(put(p["x"])), device_rows(y)
        call = _launch.Forward(w, *rows, (put(p["h0"]), put(p["c0"])), end, before, restart)
        planned = replace(_launch.plan_of(w, steps, batch), **forwards)
        kept = _launch.forward(
            [call],
            (steps, batch),
            planned,
            lengths=lengths,
            train=train,
            states_only=states_only,
        )
        return y, *end, kept

    y, h, c, kept = run(True)
    for a, b in zip((y, h, c), run(False)):  # inference, without a tape
        assert a is None or np.array_equal(_device.host(a), _device.host(b), equal_nan=True)
    grads = [None if a is None else xp.zeros_like(a) for a in weights]
    control = {
        n: put(v) if isinstance(v, np.ndarray) else v
        for n, v in control_of(p, control, lambda a: a).items()
    }
    if "dcells" in control:
        control["dcells"] = None if control["dcells"] is None else device_rows(control["dcells"])
    flow = xp.zeros((steps, states, batch), np.float64) if control.pop("flow", False) else None
    dx, d0 = xp.empty(p["x"].shape, p["x"].dtype), pair()
    streams = cell != "gru_reset_before" and flow is None and not control.get("clip_norm")
    backwards = {**forwards, **forced.get("backward", {})}
    if "rows" in forced and not streams:
        backwards["rows"] = 0
    reset = [
        xp.zeros(n, p["x"].dtype) if p["resets"] is not None and k < states else None
        for k, n in enumerate((size, hidden))
    ]
    rows = device_rows(put(p["dy"])), device_rows(dx)
    call = _launch.Backward(
        kept[0],
        rows[0],
        (put(p["dh"]), put(p["dc"])),
        d0,
        grads,
        rows[1],
        False,
        control.pop("dcells", None),
        tuple(reset),
        flow,
    )
    planned = _launch.plan_of(
        w, steps, batch, True, flow is not None or bool(control.get("clip_norm"))
    )
    _launch.backward([call], replace(planned, **backwards), **control)
    norms = None if flow is None else flow.sum(2)
    return [_device.host(a) for a in (y, h, c, dx, *d0, *reset, norms, *grads)]


@pytest.mark.parametrize("kind", ["none", "lengths", "resets", "mask", "all"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", DEVICE_CELLS)
def test_every_cell(cell: str, dtype: Any, sizes: Any, kind: str) -> None:
    compare(cell, dtype, sizes, kind)


CELLS_OF_ALL_WORDS = [c for c in DEVICE_CELLS if c not in GENERAL_CELLS]
CELLS_AND_WORDS = [
    (c, p)
    for c in STREAM_CELLS
    if c in CELLS_OF_ALL_WORDS
    for p in ("exact", "bfloat16", "float16")
    if p != "float16" or c == "lstm"
]


@pytest.mark.parametrize("hidden", [1, 32, 33, 64, 65, 128])
@pytest.mark.parametrize(
    ("cell", "precision"), [c for c in CELLS_AND_WORDS if c[0] != "gru_reset_before"]
)
def test_all_steps_in_one_launch(cell: str, precision: str, hidden: int) -> None:
    """Against the same with a launch a step, which is held against the CPU."""
    word, products = 4 if precision == "exact" else 2, _buffers.columns_of(cell)[1][1:]
    figures = _device.emulated().figures
    plan = _plan.plan(figures, products, hidden=hidden, steps=6, batch=11, word=word)
    assert (plan.kernel == "loop") == (hidden <= (64 if word == 4 else 128))
    for kind, reverse, control in (
        ("none", False, {}),
        ("all", True, {"cut": True, "clip_value": 0.4}),
        ("lengths", False, {}),
    ):
        p = problem(cell, np.float32, (6, 11, 3, hidden), kind, reverse)
        want = on_device(cell, p, control, DEVICES[0], precision, register_capacity=0, rows=0)
        results = [on_device(cell, p, control, device, precision) for device in DEVICES]
        for k, (name, a) in enumerate(zip(NAMES, want)):
            if a is None:
                continue
            limit = {"exact": 1e-6, "bfloat16": 1e-2, "float16": 1e-2}[precision] * max(
                float(np.linalg.norm(a)), 1e-3
            )
            for r in results:
                assert float(np.linalg.norm(r[k] - a)) <= limit, name
            assert np.array_equal(results[0][k], results[1][k]), (
                f"{name} depends on the order of threads"
            )


LOOP_CELLS = [c for c in STREAM_CELLS if c in CELLS_OF_ALL_WORDS and c != "gru_reset_before"]
LOOPS = [("lstm", "exact", 40), ("gru", "split", 40), ("lstm", "bfloat16", 70)]


@pytest.mark.parametrize(("cell", "precision", "hidden"), LOOPS)
def test_rows_of_a_block_change_no_bit(cell: str, precision: str, hidden: int) -> None:
    """A thread has up to four cells, and as many are on their way."""
    for kind, reverse, control in (
        ("none", True, {}),
        ("lengths", True, {}),
        ("all", False, {"cut": True}),
    ):
        p = problem(cell, np.float32, (7, 9, 3, hidden), kind, reverse)
        want = on_device(cell, p, control, DEVICES[0], precision, rows=8)
        for rows in (1, 2, 4):
            got = on_device(cell, p, control, DEVICES[rows % 2], precision, rows=rows)
            for name, a, b in zip(NAMES, want, got):
                assert a is None or np.array_equal(a, b), (name, rows)


@pytest.mark.parametrize("hidden", [20, 64])
@pytest.mark.parametrize("cell", LOOP_CELLS)
def test_two_words_of_a_float(cell: str, hidden: int) -> None:
    """Against exact products; the states of a ReLU have no bound, so its products stay exact."""
    p = problem(cell, np.float32, (6, 5, 3, hidden), "lengths", True)
    rows = np.arange(len(p["weights"][1]))[:, None]
    p["weights"][1] *= np.float32(3) ** (rows // hidden % 2)  # gates have different scales
    want = on_device(cell, p, {}, DEVICES[0])
    results = [on_device(cell, p, {}, device, "split") for device in DEVICES]
    for k, (name, a) in enumerate(zip(NAMES, want)):
        if a is None:
            continue
        size = max(float(np.linalg.norm(a)), 1e-3)
        limit = (1e-6 if k < 3 else 1e-5) * size  # gradients have the sixteen bits of two bfloat16
        assert np.array_equal(results[0][k], results[1][k]), name
        assert float(np.linalg.norm(results[0][k] - a)) <= limit, name
        if hidden == 64 and k < 1:
            assert np.array_equal(results[0][k], a) == (cell == "rnn_relu")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_states_that_two_words_of_a_float_do_not_hold(cell: str) -> None:
    """A GRU keeps what it was given; in float16 it would be infinite."""
    p = problem(cell, np.float32, (6, 5, 3, 20), "all", False)
    p["h0"] = p["h0"] * np.float32(1e6)
    p["restart"] = (p["restart"][0] * np.float32(3e7), p["restart"][1])
    want = on_cpu(cell, p, {})
    assert cell == "lstm" or np.abs(want[0]).max() > 1e6
    for device in DEVICES:
        got = on_device(cell, p, {}, device, "split")
        for name, a, b in zip(NAMES[:3], want, got):
            assert a is None or float(np.linalg.norm(b - a)) <= 1e-6 * np.linalg.norm(a), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "lstm_projected"])
def test_blocks_that_share_the_product_of_a_step(cell: str, dtype: Any) -> None:
    """Several tiles of outputs and rows, and slices that end within a word of the weights."""
    assert _core.step_slices(4, 18, 70, 280) == 9
    assert _core.step_slices(2, 65, 70, 280) == 0  # tiles of matrix instructions
    compare(cell, dtype, (3, 18, 2, 70), "all")


def test_slices_of_many_columns() -> None:
    """All threads of a block have columns, more than once."""
    assert _core.step_slices(4, 520, 70, 280) == 1
    compare("lstm", np.float32, (2, 520, 2, 70), "none")


@pytest.mark.parametrize("batch", [3, 65])
def test_steps_of_words_of_two_bytes(batch: int) -> None:
    """By slices, and for many rows by tiles."""
    p = problem("lstm_layer_norm", np.float32, (3, batch, 2, 20), "none", True)
    want = on_device("lstm_layer_norm", p, {}, DEVICES[0])
    got = on_device("lstm_layer_norm", p, {}, DEVICES[1], "bfloat16")
    for name, a, b in zip(NAMES, want, got):
        assert a is None or float(np.linalg.norm(b - a)) <= 3e-2 * np.linalg.norm(a), name


@pytest.mark.parametrize("hidden", [1, 70])
@pytest.mark.parametrize("rows", [8, 16, 32])
@pytest.mark.parametrize(("cell", "precision"), CELLS_AND_WORDS)
def test_blocks_that_stream_the_weights(cell: str, precision: str, rows: int, hidden: int) -> None:
    """Against the same by tiles, which is held against the CPU."""
    for kind, reverse, control in (
        ("none", False, {}),
        ("all", True, {"cut": True, "clip_value": 0.4}),
        ("mask", False, {"flow": True}),
    ):
        p = problem(cell, np.float32, (5, 19, 3, hidden), kind, reverse)
        want = on_device(cell, p, control, DEVICES[0], precision, register_capacity=0, rows=0)
        results = [
            on_device(cell, p, control, device, precision, register_capacity=0, rows=rows)
            for device in DEVICES
        ]
        for k, (name, a) in enumerate(zip(NAMES, want)):
            if a is None:
                continue
            # A ReLU at rest flips by rounding: another sign, another slope. Of one unit nothing
            # averages: a device contracts other products and sums, and was 4e-6 away.
            limit = 1e-2
            if precision == "exact":
                limit = 5e-6 if hidden == 1 else 1e-6
            limit *= 5 if cell == "rnn_relu" else 1
            for r in results:
                assert float(np.linalg.norm(r[k] - a)) <= limit * max(
                    float(np.linalg.norm(a)), 1e-3
                ), name
            assert np.array_equal(results[0][k], results[1][k]), (
                f"{name} depends on the order of threads"
            )


def test_functions_that_a_call_chooses_run_step_by_step() -> None:
    """No other kernel takes the numbers of the call, and none of words of two bytes."""
    figures = _device.emulated().figures
    plan = _plan.plan(
        figures, [4], hidden=20, steps=6, batch=11, word=4, backward=True, lacks="scalars"
    )
    assert (plan.kernel, plan.units, plan.register_capacity) == ("step", 0, 0)
    assert "have no scalars" in plan.reason
    p = problem("lstm_general", np.float32, (2, 2, 3, 4), "none", False)
    for options, message in (
        ({"register_capacity": 32}, "loop: expected a register capacity"),
        ({"units": 8, "peers": 1, "groups": 1, "span": 1}, "units: expected those of a kernel"),
    ):
        with pytest.raises(ValueError, match=message):
            on_device("lstm_general", p, {}, DEVICES[0], **options)
    with pytest.raises(ValueError, match="precision: expected exact"):
        on_device("lstm_general", p, {}, DEVICES[0], "bfloat16")
    weights = [DEVICES[0].put(a) for a in p["weights"]]
    with pytest.raises(ValueError, match="scalars: expected at most 12 numbers, got 13"):
        _launch.pack(DEVICES[0], "lstm_general", weights, scalars=(0.0,) * 13)


def test_plans_that_there_are_not() -> None:
    p = problem("gru", np.float32, (2, 2, 3, 4), "none", False)
    with pytest.raises(ValueError, match="rows: expected 1, 2, 4 or 8 of a block"):
        on_device("gru", p, {}, DEVICES[0], rows=3)
    with pytest.raises(ValueError, match="loop_split: expected false but for float32"):
        on_device("gru", p, {}, DEVICES[0], "bfloat16", loop_split=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch, "slice_word", lambda *_: 0)
        with pytest.raises(ValueError, match="slices: expected an address"):
            on_device("gru", p, {}, DEVICES[0], register_capacity=0, rows=0)
    p = problem("gru_reset_before", np.float32, (2, 2, 3, 4), "none", False)
    for options, message in (
        ({"register_capacity": 32}, "loop: expected a register capacity"),
        ({"rows": 9}, "rows: expected 8, 16 or 32"),
    ):
        with pytest.raises(ValueError, match=message):
            on_device("gru_reset_before", p, {}, DEVICES[0], **options)


@pytest.mark.parametrize("cell", DEVICE_CELLS)
def test_products_of_the_library(cell: str) -> None:
    """All steps' products by NumPy, as CuPy takes them on a GPU."""
    for dtype, sizes, kind in (
        (np.float32, (5, 3, 4, 7), "all"),
        (np.float64, (6, 6, 2, 5), "lengths"),
        (np.float32, (0, 2, 3, 4), "none"),
    ):
        for reverse, control in ((False, {}), (True, {"cut": True, "flow": True})):
            p = problem(cell, dtype, sizes, kind, reverse)
            want = on_cpu(cell, p, control)
            for device in DEVICES:
                got = on_device(cell, p, control, device, library=True)
                for name, a, b in zip(NAMES, want, got):
                    assert (a is None) == (b is None), name
                    if a is not None:
                        close(b, a, name, dtype, slack(cell))


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("kind", ["none", "all"])
@pytest.mark.parametrize("cell", DEVICE_CELLS)
def test_what_was_not_saved_is_recomputed(cell: str, kind: str, library: bool) -> None:
    """By tiles with the same bits: each element is the same chain of sums."""
    for dtype, reverse in ((np.float32, False), (np.float64, True)):
        p = problem(cell, dtype, (7, 35, 3, 21), kind, reverse)
        facts = {"library": library, "rows": 0, "register_capacity": 0}
        want = on_device(cell, p, {}, DEVICES[0], **facts)
        for device in DEVICES:
            got = on_device(cell, p, {}, device, states_only=True, **facts)
            for name, a, b in zip(NAMES, want, got):
                assert a is None or np.array_equal(a, b), name


@pytest.mark.parametrize("cell", [c for c in DEVICE_CELLS if c not in STREAM_CELLS])
def test_a_step_of_several_launches(cell: str) -> None:
    """The planner has no other kernel, and counts the launches that there are."""
    launched: list[dict[str, Any]] = []
    plain = _device.emulated()

    def watch(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        launched.append(values)
        plain.run(action, cell, itemsize, values)

    p = problem(cell, np.float32, (6, 3, 4, 7), "none", False)
    w = _launch.pack(replace(plain, run=watch), cell, p["weights"])
    for backward, by_step in ((False, False), (True, False), (True, True)):
        plan = _launch.plan_of(w, 6, 3, backward, by_step)
        assert (plan.kernel, plan.rows, plan.units) == ("step", 0, 0)
        assert plan.launches == 6 * _buffers.device_facts(cell).step_launches[backward]
        assert f"all other kernels lack {_core.drivers()[cell]['loop']}" in plan.reason
    with pytest.raises(ValueError, match="rows: expected 8, 16 or 32 in float32 of a cell without"):
        on_device(cell, p, {}, plain, rows=8)
    with pytest.raises(ValueError, match="loop: expected a register capacity"):
        on_device(cell, p, {}, plain, register_capacity=32)


@pytest.mark.parametrize(
    "cell", ["lstm_peephole", "gru_reset_before", "lstm_projected", "lstm_layer_norm"]
)
def test_gradients_in_several_parts(cell: str) -> None:
    assert _core.gradient_parts(270, 2) == 2
    compare(cell, np.float64, (270, 2, 3, 5), "all")


NAMES = ["y", "h", "c", "dx", "dh0", "dc0", "drestart_h", "drestart_c", "flow"]
NAMES += ["dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"]
NAMES += [f"own weight {k}" for k in range(4)]  # what a cell has besides


def compare(cell: str, dtype: Any, sizes: Any, kind: str) -> None:
    for reverse, control in (
        (False, {}),
        (True, {"flow": True}),
        (False, {"cut": True, "clip_value": 0.4, "clip_norm": 0.9}),
    ):
        p = problem(cell, dtype, sizes, kind, reverse)
        want = on_cpu(cell, p, control)
        results = [on_device(cell, p, control, device) for device in DEVICES]
        for name, a, *others in zip(NAMES, want, *results):
            assert all((a is None) == (b is None) for b in others), name
            if a is not None:
                for b in others:
                    close(b, a, name, dtype, slack(cell))
                assert np.array_equal(others[0], others[1]), (
                    f"{name} depends on the order of threads"
                )


# Relative, by the norm: 8 bits of bfloat16 round to 2^-9, 11 of float16 to 2^-12; backward runs in
# bfloat16 in both.
ERRORS = {"bfloat16": (1e-2, 2e-2), "float16": (1e-3, 2e-2)}


@pytest.mark.parametrize("sizes", [*SIZES, (128, 8, 24, 40)], ids=str)
@pytest.mark.parametrize("precision", list(ERRORS))
@pytest.mark.parametrize("cell", CELLS_OF_ALL_WORDS)
def test_operands_of_two_bytes(cell: str, precision: str, sizes: Any) -> None:
    """Matrix instructions, against float64.

    In bfloat16 as near to the CPU's, which rounds the same operands.
    """
    p = problem(cell, np.float32, sizes, "all", False)
    wide = {
        n: [None if a is None else a.astype(np.float64) for a in v] if isinstance(v, (list, tuple))
        else v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for n, v in p.items()
    }  # fmt: skip
    want, results = on_cpu(cell, wide, {}), [on_device(cell, p, {}, d, precision) for d in DEVICES]
    cpu = on_cpu(cell, p, {}, "bfloat16") if precision == "bfloat16" else None
    for k, (name, a) in enumerate(zip(NAMES, want)):
        if a is None or not a.size:
            continue
        limit = ERRORS[precision][name not in ("y", "h", "c")] * (
            3 if cell == "rnn_relu" else slack(cell)
        )  # another sign, another slope
        scale = max(float(np.linalg.norm(a)), 1e-3)
        for b in (r[k] for r in results):
            assert float(np.linalg.norm(b - a)) <= limit * scale, name
            if cpu is not None:
                assert float(np.linalg.norm(b - cpu[k])) <= limit * scale, name
        assert np.array_equal(results[0][k], results[1][k]), (
            f"{name} depends on the order of threads"
        )


def test_words_of_two_bytes_are_rounded_to_even() -> None:
    """Through the packed weights.

    All words of float16 and bfloat16, and what lies halfway between two.
    """
    words = np.arange(0x7C00, dtype=np.uint16)
    exact = words.view(np.float16).astype(np.float32)
    half = (exact[:-1] + exact[1:]) / 2
    values = np.concatenate([exact, half, np.nextafter(half, 0, dtype=np.float32), -exact])
    device = _device.emulated()

    def panels(a: Any, precision: str) -> Any:
        weights = [
            a[None],
            np.zeros((1, 1), np.float32),
            None,
            None,
            None,
        ]  # one unit, an input each
        return (
            _launch.pack(device, "rnn_tanh", weights, precision=precision)
            .fields["panels"][0]
            .ravel()
        )

    assert np.array_equal(panels(values, "float16").view(np.float16), values.astype(np.float16))
    low = (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
    bits = np.concatenate([np.arange(0, 0x7F80, 7, dtype=np.uint32) << 16 | n for n in low])
    upper = bits >> 16
    want = upper + ((bits & 0xFFFF) + (upper & 1) > 0x8000)
    assert np.array_equal(panels(bits.view(np.float32), "bfloat16"), want.astype(np.uint16))


def test_weights_beyond_float16() -> None:
    w = np.full((1, 1), 70000.0, np.float32)
    with pytest.raises(
        ValueError,
        match="weight_hh: expected weights within the range of float16, 65504, got 7e\\+04",
    ):
        _launch.pack(
            _device.emulated(), "rnn_tanh", [w * 0, w, None, None, None], precision="float16"
        )


def test_launches_that_come_again_are_recorded() -> None:
    """The second time with the same arrays, whatever they hold then.

    Other arrays, numbers or cells are other launches.
    """
    seen: list[Any] = []
    plain = _device.emulated()

    def watch(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        seen.append((action, cell, itemsize, dict(values)))
        plain.run(action, cell, itemsize, values)

    device = replace(plain, name="watched", run=watch)
    p = problem("lstm", np.float64, (20, 2, 3, 5), "none", False)
    w = _launch.pack(device, "lstm", p["weights"])
    y, end = np.empty((20, 2, 5)), (np.empty((2, 5)), np.empty((2, 5)))
    rows = device_rows(p["x"]), device_rows(y)

    def run() -> Any:
        call = _launch.Forward(w, *rows, (None, None), end)
        _launch.forward([call], (20, 2), _launch.plan_of(w, 20, 2))
        return y.copy()

    kept = [
        np.empty(n) for n in (20 * 2 * 5 * 4, 2 * 5)
    ]  # working arrays that stay: the first call has others
    run()
    action, cell, itemsize, values = seen[-1]
    (layer,) = values["layers"]
    layer |= {"gx": kept[0].ctypes.data, "state": kept[1].ctypes.data}
    for want_ran in (0, 1, 2, 2):  # directly, recorded, replayed
        p["x"] += 0.1
        want = run()
        y[:] = np.nan
        assert _emulated.run(action, cell, itemsize, values, False) == want_ran
        assert np.array_equal(y, want)
    for change in (
        {"reverse": True},
        {"h0": end[0].ctypes.data},
        {"x": {**layer["x"], "starts": None, "b": 0}},
    ):
        assert (
            _emulated.run(
                action, cell, itemsize, {**values, "layers": [{**layer, **change}]}, False
            )
            == 0
        )
    assert _emulated.run(action, cell, itemsize, {**values, "launches": 3}, False) == 0
    for k in range(1, 71):  # others take its place
        for _ in range(2):
            _emulated.run(action, cell, itemsize, {**values, "spin_limit": k}, False)
    assert _emulated.run(action, cell, itemsize, values, False) == 0


def test_fields_are_checked_by_name() -> None:
    """The structs of the kernels and of Python have the same fields.

    An unknown or a missing one is an error that names it.
    """
    hints = {
        name: set(kind.__annotations__)
        for name, kind in vars(_abi).items()
        if name.endswith("Fields")
    }
    native = {name: set(fields) for name, fields in _core.device_fields().items()}
    assert native == hints
    values: Any = {"from": 0, "to": 0, "count": 0, "rate": 0.5, "key": 1}
    _emulated.run("drop_flat", -1, 4, values, False)
    with pytest.raises(ValueError, match=r"drop_flat: expected the fields that it has, got 'cout'"):
        _emulated.run("drop_flat", -1, 4, {**values, "cout": 3}, False)
    del values["rate"]
    with pytest.raises(ValueError, match=r"drop_flat.rate: expected a value, got none"):
        _emulated.run("drop_flat", -1, 4, values, False)
    seen: list[Any] = []
    device = replace(_device.emulated(), run=lambda *call: seen.append(call))
    p = problem("gru", np.float32, (3, 2, 3, 5), "none", False)
    w = _launch.pack(device, "gru", p["weights"])
    call = _launch.Forward(w, device_rows(p["x"]), device_rows(p["dy"]), (None, None), (None, None))
    _launch.forward([call], (3, 2), _launch.plan_of(w, 3, 2))
    action, cell, itemsize, values = seen[-1]
    del values["layers"][0]["weights"]["bias"]
    with pytest.raises(
        ValueError, match=r"forward\.layers\.weights\.bias: expected a value, got none"
    ):
        _emulated.run(action, cell, itemsize, values, False)


def test_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one: what is found once stays, so it is asked anew."""
    monkeypatch.setattr(_driver, "why_not", lambda: "there is no NVIDIA driver")
    monkeypatch.setattr(_device, "_ready", _device._ready.__wrapped__)
    with pytest.raises(RuntimeError, match="cuda: expected a GPU, but there is no NVIDIA driver"):
        _device.cuda()
