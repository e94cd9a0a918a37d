"""Tell which kernel a call would use and why, what it costs, and what would make it faster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

from . import _check, _core, _device
from ._annotations import readable
from ._segments import Schedule, parse, plan_for
from .nn._layer import Layer
from .nn._layers import Embedding
from .nn._lookup import looks_up
from .nn._sequential import Sequential
from .nn._stack import Recurrent

__all__ = ["Explanation", "explain"]

PAUSES = (0.01, 0.1)  # seconds without a call, after which explain(measure=True) measures
MEASURE_SECONDS = 0.01
DRIVERS = {  # of a GPU, by the names that its plans have
    "step": "a launch for every step",
    "loop": "one multiprocessor for all steps",
    "persistent": "multiprocessors that share the recurrent weights",
}
# How a call is divided among threads, by the names of the native planner.
SPREADS = {
    "alone": "serial: the call is too short, or its rows and units too few, for a second thread",
    "lanes": "batch-parallel: each row block goes through time on one thread, without a barrier",
    "units": "unit-parallel: threads divide the hidden units of every step, with a barrier a "
    "phase: there are too few rows to divide",
}


@dataclass(frozen=True)
class Explanation:
    """Hold what `explain` found; ``str()`` gives it as a text.

    >>> import ostinato as ost
    >>> e = ost.explain(ost.nn.GRU(8, 16, rng=0), (100, 4, 8))
    >>> e.facts["precision"]
    'float32'

    Attributes:
        facts: the same as numbers, times in seconds, sizes in bytes.
        text: the text.
    """

    facts: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def _bytes(n: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def _seconds(s: float) -> str:
    return f"{s * 1e6:.3g} us" if s < 1e-3 else f"{s * 1e3:.3g} ms" if s < 1 else f"{s:.3g} s"


def explain(
    layer: Recurrent | Sequential,
    shape: Sequence[int],
    *,
    training: bool = False,
    memory_limit: str | int | None = None,
    measure: bool = False,
) -> Explanation:
    """Tell how a call on inputs of a shape is run, of a layer or of each layer of a model.

    The roofline time is what the arithmetic and the reading of the weights would take at the rates
    that this machine shows in a few milliseconds of measuring: no kernel can be faster.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> e = ost.explain(ost.nn.LSTM(64, 128, rng=0), (100, 1, 64))
    >>> e.facts["flops"] == 2 * 4 * 128 * (64 + 128) * 100
    True
    >>> "kernel set" in str(e)
    True
    >>> rnn, head = ost.nn.GRU(8, 16), ost.nn.Linear(16, 50)
    >>> model = ost.nn.Sequential(embed=ost.nn.Embedding(50, 8), rnn=rnn, head=head)
    >>> [facts["name"] for facts in ost.explain(model, (100, 4)).facts["layers"]]
    ['rnn']

    Args:
        layer: an RNN, LSTM or GRU; or a Sequential with such layers, whose ``facts`` are
            ``{"layers": [...]}``, one entry a recurrent layer, with its ``name`` and the ``shape``
            of what it gets.
        shape: x.shape: ``(T,B,I)``, ``(B,T,I)`` if batch_first, or ``(T,I)``; without I for a model
            that begins with an Embedding.
        training: whether to explain `vjp` and its pullback in place of inference.
        memory_limit: that of the vjp, with all outputs kept: the schedule, its bytes and the extra
            time ("states": what is left of the tape).
        measure: whether to run the call on zeros as well, once to get ready and three times more,
            and tell the median time beside the others; on the CPU also that of calls after pauses
            of 10 and 100 ms, and which threads had a part in the last one.

    Returns:
        The explanation, as numbers and as a text.

    Raises:
        TypeError: layer is none of these.
        ValueError: a shape or memory_limit that the layer does not take.
    """
    if isinstance(layer, Sequential):
        return _of_model(
            layer, shape, training=training, memory_limit=memory_limit, measure=measure
        )
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"layer: expected an RNN, LSTM or GRU, or a Sequential, got {type(layer).__name__}"
        )
    sizes = [_check.positive("shape", n, 0) for n in shape]
    if len(sizes) not in (2, 3) or sizes[-1] != layer.input_size:
        raise ValueError(
            f"shape: expected (T, B, I) or (T, I) with I = {layer.input_size}, got {tuple(shape)}"
        )
    if len(sizes) == 2:
        sizes.insert(0 if layer.batch_first else 1, 1)
    steps, batch = (sizes[1], sizes[0]) if layer.batch_first else (sizes[0], sizes[1])
    if training and layer.precision == "int8":
        raise ValueError("precision: expected one that can be trained, got 'int8'")

    if layer.device != "cpu":
        if memory_limit is not None:
            raise ValueError(
                f"memory_limit: expected None for a layer on {layer.device}, got {memory_limit!r}"
            )
        return _on_gpu(
            layer,
            steps,
            batch,
            training,
            _measured(layer, sizes, training, None) if measure else None,
        )
    if memory_limit is not None and not training:
        raise ValueError(f"memory_limit: expected training=True with it, got {memory_limit!r}")
    states_only = memory_limit is not None and parse(memory_limit)[0] == "states"
    schedule = (
        None
        if memory_limit is None or states_only
        else plan_for(layer, memory_limit, steps, batch, "all")
    )

    cell, hidden, dtype = _core.cells()[layer._cell], layer.hidden_size, layer._dtype
    native = _check.native_precision(dtype, layer.precision)
    directions = 2 if layer.bidirectional else 1

    def plan(backward: bool) -> list[dict[str, Any]]:
        sizes = (layer.input_size, hidden, layer.num_layers)
        dropout = training and layer.dropout > 0
        return _core.plan(
            dtype.itemsize,
            layer._cell,
            *sizes,
            layer.bidirectional,
            native,
            steps,
            batch,
            dropout,
            training,
            backward,
            layer.proj_size,
        )

    passes = [("forward", plan(False))] + ([("backward", plan(True))] if training else [])
    inputs = [
        layer.input_size if k == 0 else directions * layer._output_size
        for k in range(layer.num_layers)
    ]
    # Weights that every step waits for.
    each = cell["gates"] * hidden * layer._output_size + layer.proj_size * hidden
    flops = sum(
        2.0 * (cell["gates"] * hidden * i + each) * steps * batch * directions for i in inputs
    )
    flops *= 3 if training else 1
    weight = {"bfloat16": 2, "int8": 1}.get(layer.precision, dtype.itemsize)
    recurrent = each * weight

    # The rates of one thread, now.
    peak = _core.fma_peak(MEASURE_SECONDS, dtype.itemsize) * 1e9 * (dtype.itemsize / weight)
    forward = passes[0][1][0]
    share = recurrent / (forward["threads"] if forward["spread"] == "units" else 1)
    bandwidth = _core.read_bandwidth(int(max(share, 4096)), MEASURE_SECONDS) * 1e9
    bound = "arithmetic"
    roofline = 0.0
    for _, groups in passes:
        for g in groups:
            together, times = g["threads"], (2 if groups is not passes[0][1] else 1)
            for k in range(g["first_layer"], g["first_layer"] + g["layers"]):
                arithmetic = (
                    2.0
                    * (cell["gates"] * hidden * inputs[k] + each)
                    * steps
                    * batch
                    * directions
                    * times
                )
                lanes = (
                    max(1, g["lanes"] // (g["layers"] * directions))
                    if g["spread"] != "units"
                    else 1
                )
                reading = (
                    float(steps) * recurrent * lanes * directions / bandwidth
                )  # R once a step and row block
                product = 2.0 * each * steps * batch * directions / peak
                if reading > product:
                    bound = "reading the recurrent weights"
                roofline += (arithmetic / peak - product + max(product, reading)) / together
    tape = sum(g["tape_bytes"] * g["layers"] * directions for g in passes[0][1]) if training else 0
    kept = cell["states"] - 1  # of what a tape holds for a step: c
    if states_only:
        tape *= kept / max(cell["tape"] + kept, 1)
        flops *= 4 / 3 if cell["tape"] else 1
    facts: dict[str, Any] = {
        "kernels": _core.kernels(),
        "precision": layer.precision,
        "passes": dict(passes),
        "flops": flops,
        "weight_bytes": sum(g["packed_bytes"] for g in passes[0][1]),
        "tape_bytes": round(tape),
        "workspace_bytes": max(
            (g["workspace_bytes"] for _, groups in passes for g in groups), default=0
        ),
        "peak_flops": peak,
        "bandwidth": bandwidth,
        "bound": bound,
        "warnings": _warnings(layer),
        "roofline_seconds": roofline,
        "schedule": schedule,
        "states_only": states_only,
        "drivers": _core.drivers()[layer._cell],
        "measured_seconds": None,
        "measured_after_pause": {},
        "team": None,
    }
    if measure:
        facts["measured_seconds"] = _measured(layer, sizes, training, memory_limit)
        facts["measured_after_pause"] = {
            pause: _measured(layer, sizes, training, memory_limit, pause) for pause in PAUSES
        }
        facts["team"] = _core.last_team() if _threads(facts) > 1 else (1, "alone")
    return Explanation(facts, _text(layer, steps, batch, facts, training))


def _threads(facts: dict[str, Any]) -> int:
    """Return the largest number of threads that a pass is planned for."""
    return max((g["threads"] for groups in facts["passes"].values() for g in groups), default=1)


def _leaves(model: Sequential, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the layers of a model, those of models within it included, with their names."""
    for name, layer in zip(model._names, model.layers):
        if isinstance(layer, Sequential):
            yield from _leaves(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _of_model(model: Sequential, shape: Sequence[int], **options: Any) -> Explanation:
    """Explain the recurrent layers of a model, each with the shape that it gets."""
    leaves = list(_leaves(model))
    lead = [_check.positive("shape", n, 0) for n in shape]
    first = leaves[0][1]
    if not isinstance(first, Embedding):
        width = getattr(first, "input_size", getattr(first, "in_features", None))
        if len(lead) not in (2, 3) or (width is not None and lead[-1] != width):
            raise ValueError(
                f"shape: expected (T, B, I) or (T, I) with I = {width or 'any'}, got {tuple(shape)}"
            )
        lead.pop()
    if len(lead) not in (1, 2):
        raise ValueError(
            f"shape: expected (T, B) or (T,) for a model of an Embedding first, got {tuple(shape)}"
        )
    facts, texts = [], []
    before: Layer | None = None
    for name, layer in leaves:
        if layer.reduces_time:
            lead = lead[:1] if getattr(layer, "batch_first", False) else lead[1:]
        if isinstance(layer, Recurrent):
            own = (*lead, layer.input_size)
            e = explain(layer, own, **options)
            limit, count = options.get("memory_limit"), math.prod(lead)
            table = before if isinstance(before, Embedding) else None
            lookup = table is not None and looks_up(table, layer, count, limit)
            facts.append({"name": name, "shape": own, "lookup": lookup, **e.facts})
            texts.append(f"{name}: {e}")
            if table is not None and lookup:
                texts.append(
                    "  input          looked up by the layer itself: products with it are made of "
                    f"the {table.num_embeddings} rows of the table, not of {count} steps"
                )
        before = layer
    if not facts:
        raise TypeError(
            f"layer: expected a Sequential with an RNN, LSTM or GRU in it, got {model!r}"
        )
    return Explanation({"layers": facts}, "\n".join(texts))


def _text(layer: Recurrent, steps: int, batch: int, facts: dict[str, Any], training: bool) -> str:
    cell = _core.cells()[layer._cell]
    set_name, word = (
        facts["kernels"],
        _core.instructions().get(layer.precision, "fused multiply-add"),
    )
    lines = [
        f"{layer!r}, T={steps}, B={batch}: {'training' if training else 'inference'}",
        f"  kernel set     {set_name}, {layer.precision} products by {word}",
    ]
    for name, groups in facts["passes"].items():
        for g in groups:
            which = (
                f"layer {g['first_layer']}"
                if g["layers"] == 1
                else f"{g['layers']} layers as a wavefront"
            )
            both = " both directions at once," if g["together"] and layer.bidirectional else ""
            lines += [
                f"  {name:<14} {which}:{both} {g['threads']} thread{'s' * (g['threads'] > 1)}; "
                f"{SPREADS[g['spread']]}",
                f"                 {g['lanes']} row blocks of up to {g['lane_rows']} rows, "
                f"{g['block_steps']} steps a block; "
                f"tiles of {g['tile'][0]} rows x {g['tile'][1]} vectors",
            ]
    itemsize, states = (
        layer._dtype.itemsize,
        (0 if facts["states_only"] else cell["tape"]) + cell["states"] - 1,
    )
    formula = (
        f" = T B {states} H' {itemsize} a layer and direction, H' = H rounded up to whole vectors"
        if training
        else ""
    )
    lines += [
        *(
            [
                "  memory limit   states only; gates are recomputed for a chunk of steps at once: "
                "33% more arithmetic"
            ]
            if facts["states_only"]
            else []
        ),
        *(_segments(facts["schedule"]) if facts["schedule"] is not None else ()),
        f"  packed weights {_bytes(facts['weight_bytes'])}, made "
        f"{'once a step of the optimiser' if training else 'once'}",
        f"  tape           {_bytes(facts['tape_bytes'])}{formula}"
        if training
        else "  tape           none",
        f"  workspace      {_bytes(facts['workspace_bytes'])}, given back after the pass",
        f"  arithmetic     {facts['flops'] / 1e9:.3g} GFLOP; this machine does "
        f"{facts['peak_flops'] / 1e9:.3g} GFLOP/s a thread",
        f"  roofline       {_seconds(facts['roofline_seconds'])}, bound by {facts['bound']}; "
        "weights come at "
        f"{facts['bandwidth'] / 1e9:.3g} GB/s a thread",
        *_refusals(facts),
        *_time(facts),
        *(f"  warning        {w}" for w in facts["warnings"]),
    ]
    return "\n".join(
        lines + [f"  faster         {a}" for a in _advice(layer, batch, facts, training)]
    )


def _measured(
    layer: Recurrent,
    sizes: list[int],
    training: bool,
    memory_limit: str | int | None,
    pause: float = 0.0,
) -> float:
    """Return the median seconds of a call on zeros, after pauses; no gradient changes."""
    x = _device.like(np.zeros(sizes, layer._dtype), layer._block.values)
    device = _device.of(x)
    limit: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}
    grads = layer.new_grads() if training else None
    seconds = []
    for _ in range(4):
        sleep(pause)
        start = perf_counter()
        if training:
            (y, _), pullback = layer.vjp(x, rng=0, **limit)
            pullback(y, grads=grads)
        else:
            layer(x)
        if device is not None:
            device.wait()
            device.check()
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


def _time(facts: dict[str, Any]) -> list[str]:
    seconds = facts["measured_seconds"]
    if seconds is None:
        return []
    lines = [f"  measured       {_seconds(seconds)}, on zeros, all of the call"]
    pauses = facts.get("measured_after_pause")
    if pauses:
        times = ", ".join(
            f"{_seconds(s)} after {1000 * pause:.0f} ms" for pause, s in pauses.items()
        )
        lines.append(f"                 {times} without a call")
        members, kind = facts["team"]
        who = {
            "alone": "",
            "workers": ", workers of the library",
            "openmp": ", of an OpenMP runtime",
        }[kind]
        lines.append(f"                 by {members} thread{'s' * (members > 1)}{who}")
    return lines


def _refusals(facts: dict[str, Any]) -> list[str]:
    """Return a line for each driver of a GPU that does not run the cell, with what it lacks."""
    lacks = facts["drivers"]
    return [
        f"  not on a GPU   by {kernel} ({DRIVERS[kernel]}): it lacks {lacks[kernel]}"
        for kernel in DRIVERS
        if lacks[kernel]
    ]


def _on_gpu(
    layer: Recurrent, steps: int, batch: int, training: bool, measured: float | None
) -> Explanation:
    """Explain a layer on a GPU: the plans of its passes, the planner's estimate, and memory."""
    from ._backend import bytes_of, plans_of
    from ._launch import partition_of

    backend, name = layer._packed(training).backend, layer._cell
    dropout = training and layer.dropout > 0
    cell, h, directions = _core.cells()[name], layer.hidden_size, 2 if layer.bidirectional else 1
    plans = {
        which: plans_of(backend, steps, batch, backward, dropout)
        for which, backward in (("forward", False), ("backward", True))[: 1 + training]
    }
    tape, workspace = bytes_of(backend, steps, batch, training, dropout)
    inputs = [layer.input_size if k == 0 else directions * h for k in range(layer.num_layers)]
    flops = sum(2.0 * cell["gates"] * h * (i + h) * steps * batch * directions for i in inputs) * (
        3 if training else 1
    )
    weights = sum(w.bytes for w in backend.parts)
    partitions = [
        sum(partition_of(w, p, which == "backward", has_upstream).weight_bytes)
        for which, of in plans.items()
        for _, w, p in of
        for has_upstream in ((False, True) if p.layer_pipelined else (False,) * directions)
        if p.units
    ]
    weights += sum(partitions)
    facts: dict[str, Any] = {
        "device": backend.device.figures.name,
        "drivers": _core.drivers()[name],
        "precision": layer.precision,
        "passes": {
            which: [{"of": name, **vars(p)} for name, _, p in of] for which, of in plans.items()
        },
        "flops": flops,
        "weight_bytes": weights,
        "tape_bytes": tape,
        "workspace_bytes": workspace,
        "measured_seconds": measured,
    }
    lines = [
        f"{layer!r}, T={steps}, B={batch}: {'training' if training else 'inference'}",
        f"  device         {facts['device']}, {backend.device.figures.multiprocessors} "
        f"multiprocessors; {layer.precision} products",
    ]
    for which, of in plans.items():
        for name, _, p in of:
            launches = "1 launch for all steps" if p.launches == 1 else f"{p.launches} launches"
            lines += [
                f"  {which:<14} {name}: kernel {p.kernel}, {launches} of {p.blocks} blocks",
                f"                 {p.reason}",
                f"                 about {_seconds(p.seconds)} by the planner's model, which no "
                "run has confirmed",
                "                 products of all steps at once: "
                f"{'the library of the arrays' if p.library else 'our own kernel'}",
            ]
    lines += [
        f"  packed weights {_bytes(weights)}, made "
        f"{'once a step of the optimiser' if training else 'once'}",
        f"  tape           {_bytes(tape) if training else 'none'}",
        f"  workspace      {_bytes(workspace)}, given back after the pass",
        f"  arithmetic     {flops / 1e9:.3g} GFLOP",
        *_refusals(facts),
        *_time(facts),
    ]
    return Explanation(facts, "\n".join(lines))


def _segments(s: Schedule) -> list[str]:
    recomputed = s.count - s.num_saved
    return [
        f"  memory limit   {s.count} segments of {s.length} steps; the tapes of {s.num_saved} are "
        f"saved, {recomputed} are recomputed: {_bytes(s.bytes)}",
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
        if layer.precision == "float32":
            out.append(
                "precision='bfloat16' halves the weights that are read"
                + ("" if training else ", 'int8' quarters them")
            )
    elif layer.precision == "float32" and "bf16" in str(facts["kernels"]):
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


readable(globals())
