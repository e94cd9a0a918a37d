"""Explain a recurrent layer on the CPU: plans, arithmetic, the roofline, memory, advice."""

from __future__ import annotations

from typing import Any

from .. import _check, _core
from .._cells import drivers_of, facts_of
from .._segments import Schedule, parse, plan_for
from ..nn._stack import Recurrent
from ._shared import (
    Explanation,
    form,
    heading,
    how_often,
    measured,
    products_of,
    recurrent_weights,
    refusals,
    size_of,
    time_of,
    times,
)

PAUSES = (0.01, 0.1)  # seconds without a call, after which explain(measure=True) measures
MEASURE_SECONDS = 0.01
# How a call is divided among threads, by the names of the native planner.
SPREADS = {
    "alone": "serial: the call is too short, or its rows and units too few, for a second thread",
    "lanes": "batch-parallel: each row block goes through time on one thread, without a barrier",
    "units": "unit-parallel: threads divide the hidden units of every step, with a barrier a "
    "phase: there are too few rows to divide",
}

Passes = list[tuple[str, list[dict[str, Any]]]]  # by name, the groups of layers that run together


def on_cpu(
    layer: Recurrent,
    sizes: list[int],
    training: bool,
    memory_limit: str | int | None,
    measure: bool,
    rows: int | None = None,
) -> Explanation:
    """Explain a layer.

    Args:
        layer: the layer.
        sizes: x.shape with a batch axis.
        training: see `explain`, as memory_limit and measure.
        memory_limit: of the vjp.
        measure: whether to run the call as well.
        rows: those of a table in which the layer looks up its input; None: it is given it.
    """
    steps, batch = (sizes[1], sizes[0]) if layer.batch_first else (sizes[0], sizes[1])
    if memory_limit is not None and not training:
        raise ValueError(f"memory_limit: expected training=True with it, got {memory_limit!r}")
    states_only = memory_limit is not None and parse(memory_limit)[0] == "states"
    schedule = (
        None
        if memory_limit is None or states_only
        else plan_for(layer, memory_limit, steps, batch, "all")
    )
    passes = _passes(layer, steps, batch, training)
    cell = facts_of(layer._cell)
    flops = sum(products_of(layer, k, steps, batch, rows) for k in range(layer.num_layers))
    flops *= 3 if training else 1
    directions = layer._directions
    tape = sum(g["tape_bytes"] * g["layers"] * directions for g in passes[0][1]) if training else 0
    if states_only:
        kept = cell["states"] - 1  # of what a tape holds for a step: c
        tape *= kept / max(cell["tape"] + kept, 1)
        flops *= 4 / 3 if cell["tape"] else 1
    facts: dict[str, Any] = {
        "kernels": _core.kernels(),
        "cell": layer._cell,
        "precision": layer.precision,
        "passes": dict(passes),
        "flops": flops,
        "weight_bytes": sum(g["packed_bytes"] for g in passes[0][1]),
        "tape_bytes": round(tape),
        "workspace_bytes": _workspace(layer, passes, steps, batch, schedule is None),
        **_rates(layer, passes, steps, batch, rows),
        "schedule": schedule,
        "states_only": states_only,
        "drivers": drivers_of(layer._cell),
        "measured_seconds": None,
        "measured_after_pause": {},
        "team": None,
    }
    if measure:
        facts["measured_seconds"] = measured(layer, sizes, training, memory_limit)
        facts["measured_after_pause"] = {
            pause: measured(layer, sizes, training, memory_limit, pause) for pause in PAUSES
        }
        facts["team"] = _core.last_team() if _threads(facts) > 1 else (1, "alone")
    return Explanation(facts, _text(layer, steps, batch, facts, training))


def _passes(layer: Recurrent, steps: int, batch: int, training: bool) -> Passes:
    """Return the plans of the native code."""
    native = _check.native_precision(layer._dtype, layer.precision)
    sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
    return [
        (
            name,
            _core.plan(
                layer._dtype.itemsize,
                layer._cell,
                *sizes,
                layer.bidirectional,
                native,
                steps,
                batch,
                training and layer.dropout > 0,
                training,
                name == "backward",
                layer.proj_size,
            ),
        )
        for name in ("forward", "backward")[: 1 + training]
    ]


def _workspace(layer: Recurrent, passes: Passes, steps: int, batch: int, whole: bool) -> int:
    """Return the most bytes beside tape and outputs, with what layers hand to one another.

    ``whole``: training keeps the outputs between the layers; else the schedule has counted them.
    """
    layers = layer.num_layers
    width = steps * batch * layer._directions * layer._output_size * layer._dtype.itemsize
    own: list[int] = [max((g["workspace_bytes"] for g in of), default=0) for _, of in passes]
    if not whole:
        return max(own)
    # What a group of layers reads and what it writes, as far as other layers read or wrote it.
    handed: list[int] = []
    for _, of in passes:
        each = [0]
        for g in of:
            first, count = g["first_layer"], g["layers"]
            arrays = count + (first > 0) - (first + count == layers)
            each.append(g["workspace_bytes"] + arrays * width)
        handed.append(max(each))
    if len(passes) == 1:
        return handed[0]
    kept = (layers - 1) * width * (2 if layer.dropout else 1)
    return kept + max(own[0], handed[1])


def _rates(
    layer: Recurrent, passes: Passes, steps: int, batch: int, rows: int | None
) -> dict[str, Any]:
    """Return the rates of one thread now, and what the passes would take at them."""
    itemsize, directions = layer._dtype.itemsize, layer._directions
    each = recurrent_weights(layer)
    weight = {"bfloat16": 2, "int8": 1}.get(layer.precision, itemsize)
    recurrent = each * weight
    peak = _core.fma_peak(MEASURE_SECONDS, itemsize) * 1e9 * (itemsize / weight)
    if _core.instructions().get(layer.precision, "").startswith("widened"):
        peak /= 2  # each word in two parts
    forward = passes[0][1][0]
    share = recurrent / (forward["threads"] if forward["spread"] == "units" else 1)
    bandwidth = _core.read_bandwidth(int(max(share, 4096)), MEASURE_SECONDS) * 1e9
    bound = "arithmetic"
    roofline = 0.0
    for name, groups in passes:
        for g in groups:
            for k in range(g["first_layer"], g["first_layer"] + g["layers"]):
                arithmetic = products_of(layer, k, steps, batch, rows)
                arithmetic *= 2 if name == "backward" else 1
                row_blocks = 1
                if g["spread"] != "units":
                    row_blocks = max(1, g["lanes"] // (g["layers"] * directions))
                # R once a step and row block.
                reading = float(steps) * recurrent * row_blocks * directions / bandwidth
                product = 2.0 * each * steps * batch * directions / peak
                if reading > product:
                    bound = "reading the recurrent weights"
                roofline += (arithmetic / peak - product + max(product, reading)) / g["threads"]
    return {
        "peak_flops": peak,
        "bandwidth": bandwidth,
        "bound": bound,
        "warnings": _warnings(layer),
        "roofline_seconds": roofline,
    }


def _threads(facts: dict[str, Any]) -> int:
    """Return the largest number of threads that a pass is planned for."""
    return max((g["threads"] for groups in facts["passes"].values() for g in groups), default=1)


def _text(layer: Recurrent, steps: int, batch: int, facts: dict[str, Any], training: bool) -> str:
    word = _core.instructions().get(layer.precision, "fused multiply-add")
    lines = [
        heading(layer, steps, batch, training),
        f"  kernel set     {facts['kernels']}, {layer.precision} products by {word}",
        *form(layer),
    ]
    for name, groups in facts["passes"].items():
        for g in groups:
            lines += _group(layer, name, g)
    if facts["states_only"]:
        lines.append(
            "  memory limit   states only; gates are recomputed for a chunk of steps at once: "
            "33% more arithmetic"
        )
    if facts["schedule"] is not None:
        lines += _segments(facts["schedule"])
    lines += [
        f"  packed weights {size_of(facts['weight_bytes'])}, {how_often(training)}",
        f"  tape           {_tape(layer, facts) if training else 'none'}",
        f"  workspace      {size_of(facts['workspace_bytes'])}, {_returned(layer, training)}",
        f"  arithmetic     {facts['flops'] / 1e9:.3g} GFLOP; this machine does "
        f"{facts['peak_flops'] / 1e9:.3g} GFLOP/s a thread",
        f"  roofline       {time_of(facts['roofline_seconds'])}, bound by {facts['bound']}; "
        f"weights come at {facts['bandwidth'] / 1e9:.3g} GB/s a thread",
        *refusals(facts),
        *times(facts),
        *(f"  warning        {w}" for w in facts["warnings"]),
        *(f"  faster         {a}" for a in _advice(layer, batch, facts, training)),
    ]
    return "\n".join(lines)


def _group(layer: Recurrent, name: str, g: dict[str, Any]) -> list[str]:
    """Return the lines of layers that run together in a pass."""
    which = f"layer {g['first_layer']}"
    if g["layers"] > 1:
        which = f"{g['layers']} layers as a wavefront"
    both = " both directions at once," if g["together"] and layer.bidirectional else ""
    return [
        f"  {name:<14} {which}:{both} {g['threads']} thread{'s' * (g['threads'] > 1)}; "
        f"{SPREADS[g['spread']]}",
        f"                 {g['lanes']} row blocks of up to {g['lane_rows']} rows, "
        f"{g['block_steps']} steps a block; "
        f"tiles of {g['tile'][0]} rows x {g['tile'][1]} vectors",
    ]


def _tape(layer: Recurrent, facts: dict[str, Any]) -> str:
    """Return the bytes of the tape, with the formula."""
    cell = facts_of(layer._cell)
    states = (0 if facts["states_only"] else cell["tape"]) + cell["states"] - 1
    return (
        f"{size_of(facts['tape_bytes'])} = T B {states} H' {layer._dtype.itemsize} a layer and "
        "direction, H' = H rounded up to whole vectors"
    )


def _returned(layer: Recurrent, training: bool) -> str:
    """Return when the workspace is given back."""
    if layer.num_layers == 1:
        return "given back after the pass"
    when = "after the backward pass" if training else "after the pass"
    return f"with the outputs between layers; given back {when}"


def _segments(s: Schedule) -> list[str]:
    recomputed = s.count - s.num_saved
    return [
        f"  memory limit   {s.count} segments of {s.length} steps; the tapes of {s.num_saved} are "
        f"saved, {recomputed} are recomputed: {size_of(s.bytes)}",
        f"                 {s.extra:.0%} of the forward pass twice, {s.extra / 3:.0%} more "
        "arithmetic; the tape below: without a limit",
    ]


def _warnings(layer: Recurrent) -> list[str]:
    if layer.precision != "int8" or layer.input_scale is not None:
        return []
    return [
        "the error of int8 depends on the data, and input features share one scale: measure it by "
        "layer.quantization_report(x), and let layer.calibrate(x) choose a scale for each feature"
    ]


def _advice(layer: Recurrent, batch: int, facts: dict[str, Any], training: bool) -> list[str]:
    out = []
    lanes = _core.fma_lanes(layer._dtype.itemsize)
    padded = -(-layer.hidden_size // lanes) * lanes
    if facts["bound"] != "arithmetic":
        out.append(
            f"more than {batch} sequences at a time: the weights are read once for all of them"
        )
        if layer.precision == "float32" and not layer._scalars:
            out.append(
                "precision='bfloat16' halves the weights that are read"
                + ("" if training else ", 'int8' quarters them")
            )
    elif layer.precision == "float32" and not layer._scalars and "bf16" in str(facts["kernels"]):
        out.append("precision='bfloat16': this CPU multiplies it at twice the rate")
    if padded != layer.hidden_size and padded - layer.hidden_size >= 0.05 * padded:
        out.append(
            f"a hidden size that is a multiple of {lanes}: {layer.hidden_size} is computed as "
            f"{padded}, "
            f"{100 * (padded - layer.hidden_size) / padded:.0f}% for nothing"
        )
    if _threads(facts) == 1 and _core.get_num_threads() > 1:
        out.append(
            "longer sequences or more of them in one call: this one is too short for more than one "
            "thread"
        )
    return out or ["nothing that we know of"]
