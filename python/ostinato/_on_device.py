"""Implement the native classes and functions for arrays of a device.

`_check.backend_for` returns this module for such arrays. The signatures and their meaning are those
of `_core`; a name ends in ``_`` if the function works in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from . import _check, _core, _device
from ._device import Device
from ._plan import GpuPlan, Partition, plan, register_capacity_for
from ._ragged import sequence_of, step_of

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
FLOAT16_MAX = 65504.0
EXCHANGE_HEADER = 4  # words: csrc/cuda/exchange.h
SKIPPED = -3  # in the table of times: the row takes no part


def extent(
    device: Device,
    name: str,
    a: Any,
    axes: list[tuple[str, int]],
    dtype: Any,
    *,
    contiguous: bool = False,
) -> Any:
    """Check an array: its device, shape (-1: any) and dtype, and unit stride on the last axis."""
    a = _check.array(name, a)
    if _device.of(a) is not device:
        wanted = f"on {device.name}" if device.xp is not np else "of NumPy"
        raise TypeError(
            f"{name}: expected an array {wanted}, as the weights are, got one on "
            f"{_device.name_of(a)}"
        )
    if a.dtype != dtype:
        raise TypeError(
            f"{name}: expected dtype {np.dtype(dtype)}, got {a.dtype}; use "
            f"{name}.astype(np.{np.dtype(dtype)})"
        )
    if a.ndim != len(axes) or any(n not in (-1, got) for (_, n), got in zip(axes, a.shape)):
        names, sizes = (
            ", ".join(n for n, _ in axes),
            ", ".join("*" if n < 0 else str(n) for _, n in axes),
        )
        end = ",)" if len(axes) == 1 else ")"
        raise ValueError(f"{name}: expected shape ({names}{end} = ({sizes}{end}, got {a.shape}")
    run = a.itemsize
    for k in reversed(range(a.ndim)):
        if (contiguous or k == a.ndim - 1) and a.shape[k] > 1 and a.strides[k] != run and a.size:
            wanted = "a C-contiguous array" if contiguous else "unit stride on the last axis"
            raise ValueError(f"{name}: expected {wanted}, got strides {a.strides} bytes")
        run *= a.shape[k]
    return a


def optional_extent(device: Device, name: str, a: Any, *expected: Any, **options: Any) -> Any:
    """Check an array by `extent`, unless it is None."""
    return None if a is None else extent(device, name, a, *expected, **options)


class Rows(NamedTuple):
    """Rows as kernels address them.

    Row (t, b) begins ``t * t_stride + b * b_stride`` elements in; flat rows begin at
    ``starts[b] + t``.
    """

    array: Any
    t: int
    b: int
    starts: Any = None
    ends: Any = None
    batch_first: bool = False  # how the array lies

    @classmethod
    def of(cls, a: Any, batch_first: bool = False, flat: tuple[Any, Any] | None = None) -> Rows:
        """Return the rows of an array ``[T,B,...]``, ``[B,T,...]`` or flat."""
        if flat is not None:
            return cls(a, a.strides[0] // a.itemsize, 0, *flat)
        t, b = (1, 0) if batch_first else (0, 1)
        return cls(
            a, a.strides[t] // a.itemsize, a.strides[b] // a.itemsize, batch_first=batch_first
        )

    def columns(self, first: int, last: int) -> Rows:
        """Return a range of the last axis."""
        return self._replace(array=self.array[..., first:last])

    def values(self, name: str) -> dict[str, Any]:
        """Return the names and values that the kernels take."""
        names = (name, f"{name}_t", f"{name}_b", f"{name}_starts", f"{name}_ends")
        return dict(zip(names, self))


@dataclass
class Weights:
    """Weights of one layer and direction in the layout of the kernels."""

    device: Device
    cell: str
    input: int
    hidden: int
    dtype: Any
    reverse: bool
    arrays: dict[str, Any]
    split: bool = False  # whether a float may be multiplied as two words of 2 bytes
    shared: dict[tuple[Any, ...], dict[str, Any]] = field(
        default_factory=dict
    )  # what `partitioned` has made


@dataclass
class SavedPass:
    """Tensors and numbers that a forward pass of one layer and direction saves."""

    weights: Weights
    values: dict[str, Any]
    shape: tuple[int, int]
    x: Rows


@lru_cache
def columns_of(cell: str) -> tuple[int, list[int], bool]:
    """Return the columns of a pre-activation and of each product, and whether da is shared."""
    columns: tuple[int, list[int], bool] = _core.device_columns()[_device.number_of(cell)]
    return columns


@lru_cache
def facts_of(cell: str) -> dict[str, int]:
    """Return the numbers of gates, states, parameters of units and saved values of a cell."""
    return dict(_core.cells()[cell])


def plan_of(
    w: Weights,
    steps: int,
    batch: int,
    backward: bool = False,
    by_step: bool = False,
    co_launched: int = 1,
    layer_pipelined: bool = False,
) -> GpuPlan:
    """Return the plan by which the kernels run these weights."""
    word = word_bytes(w.dtype, w.arrays["precision"])
    facts = {
        "hidden": w.hidden,
        "steps": steps,
        "batch": batch,
        "word": word,
        "co_launched": co_launched,
    }
    columns, products, _ = columns_of(w.cell)
    facts |= {"pipeline_columns": columns if layer_pipelined else 0, "inputs": w.input}
    return plan(
        w.device.figures, products[1:], **facts, split=w.split, backward=backward, by_step=by_step
    )


def plans_of(
    packed: Packed, steps: int, batch: int, backward: bool, dropout: bool = False
) -> list[tuple[str, Weights, GpuPlan]]:
    """Return the plans of a call without resets, masks or norms, in the order in which they run.

    Each has a name for the layers and directions that it covers, and the weights that it was made
    for.
    """
    out, both, step = [], packed.directions, -1 if backward else 1
    layer = packed.layers - 1 if backward else 0
    while 0 <= layer < packed.layers:
        w, layer_pipelined = (
            packed.parts[layer * both],
            not dropout and packed.can_pipeline(layer, step, steps, batch),
        )
        planned = plan_of(
            w,
            steps,
            batch,
            backward,
            co_launched=2 if layer_pipelined else both,
            layer_pipelined=layer_pipelined,
        )
        apart = (
            " a direction" if both > planned.co_launched else " both directions" if both > 1 else ""
        )
        name = (
            f"layers {layer} and {layer + step}"
            if layer_pipelined
            else f"layer {layer}{apart and ','}{apart}"
        )
        out.append((name, w, planned))
        layer += step * (1 + layer_pipelined)
    return out


def bytes_of(
    packed: Packed, steps: int, batch: int, training: bool, dropout: bool = False
) -> tuple[int, int]:
    """Return the bytes of the tape and the peak workspace bytes, outputs excluded."""
    facts, h, item = facts_of(packed.cell), packed.hidden_size, packed.dtype.itemsize
    columns, products, shared = columns_of(packed.cell)
    rows, width, phases = steps * batch, packed.directions * h, len(products) - 1
    per_unit = facts["saved"] + (facts["states"] > 1) + (phases > 1)
    tape = len(packed.parts) * rows * h * per_unit * item if training else 0
    between = (
        (packed.layers - 1) * rows * width * item
    )  # outputs of the layers below the last, which training keeps
    library = plan_of(packed.parts[0], steps, batch).library
    spread = rows * h * products[0] * item if library and products[0] < columns else 0
    plans = [
        plans_of(packed, steps, batch, back, dropout) for back in (False, True)[: 1 + training]
    ]
    exchanges = [
        max(exchange_bytes(w, p, back) for _, w, p in of) for of, back in zip(plans, (False, True))
    ]
    # Co-launched problems have working arrays of their own. A layer with an upstream layer has no
    # projected input.
    inputs = (
        exchanges[0]
        + spread
        + rows
        * h
        * columns
        * item
        * max(1 if p.layer_pipelined else p.co_launched for _, _, p in plans[0])
    )
    forward = inputs + (between if training else min(between, 2 * rows * width * item))
    if not training:
        return 0, forward
    parts, inputs_of = _core.gradient_parts(steps, batch), {w.input for w in packed.parts}
    gates = products[0] if shared else sum(products)
    sums = (
        sum({p.chunks for _, _, p in plans[1]}) if library else parts
    )  # working arrays are reused from layer to layer, by their shapes
    backward = rows * h * (gates + facts["params"]) * item + parts * h * sum(products) * item
    backward += sums * h * (products[0] * sum(inputs_of) + sum(products[1:]) * h) * item
    if library:  # the operands of the products, and dx before it is copied
        backward += rows * (sum(inputs_of) + phases * h + max(inputs_of)) * item
    backward = backward * max(p.co_launched for _, _, p in plans[1]) + exchanges[1]
    backward += min(packed.layers - 1, 2) * rows * width * item  # gradients between layers
    return tape, max(forward, backward + between)


def word_bytes(dtype: Any, precision: str) -> int:
    """Return the bytes of an operand of the products."""
    return int(np.dtype(dtype).itemsize) if precision == "exact" else 2


def pack(
    device: Device,
    cell: str,
    weights: list[Any],
    *,
    reverse: bool = False,
    backward: bool = True,
    precision: str = "exact",
) -> Weights:
    """Pack weight_ih, weight_hh, bias_ih, bias_hh, weight_peephole; the last three may be None."""
    precision, split = (
        ("exact", cell != "rnn_relu") if precision == "split" else (precision, False)
    )  # split words need |h| <= 65504, which a ReLU does not bound
    xp, given = device.xp, dict(zip(WEIGHTS, weights))
    (columns, products, _), dtype = columns_of(cell), given["weight_ih"].dtype
    inputs, hidden = given["weight_ih"].shape[1], given["weight_hh"].shape[1]
    word = dtype if precision == "exact" else np.uint16
    if precision == "float16":
        _check_range(given["weight_ih"], given["weight_hh"])
    arrays: dict[str, Any] = {
        "precision": precision,
        "bias": xp.empty((hidden, columns), dtype),
        "params": _copied(given["weight_peephole"]),
    }
    for q, n in enumerate(products):
        depth = inputs if q == 0 else hidden
        arrays[f"panels{q}"] = xp.empty((depth, hidden, n), word)
        arrays[f"transposed{q}"] = xp.empty((hidden, n, depth), word) if backward else None
    capacity = register_capacity_for(products[1:], hidden, word_bytes(dtype, precision))
    sizes = _core.loop_bytes(_device.number_of(cell), precision, capacity) if capacity else (0, 0)
    for name, size in zip(("loop_panels", "loop_transposed"), sizes):
        arrays[name] = (
            xp.empty(size, np.uint8) if size and (backward or name == "loop_panels") else None
        )
    if word is np.uint16:  # weights as fragments: 512 bytes for 16 x 16
        deep = -(-hidden // 16)
        for q, n in enumerate(products[1:], 1):
            arrays[f"stream_panels{q}"] = xp.empty(-(-hidden // (16 // n)) * deep * 512, np.uint8)
        arrays["stream_transposed"] = (
            xp.empty(deep * -(-hidden * products[1] // 16) * 512, np.uint8) if backward else None
        )
    device.launch(
        "pack",
        cell,
        dtype,
        {**given, **arrays, "input": inputs, "hidden": hidden, "loop": capacity},
    )
    return Weights(device, cell, inputs, hidden, dtype, reverse, arrays, split)


def partition_of(
    w: Weights, planned: GpuPlan, backward: bool, has_upstream: bool = False
) -> Partition:
    """Return how the blocks of a "persistent" kernel divide these weights."""
    parts = 2 if word_bytes(w.dtype, w.arrays["precision"]) == 4 else 1
    columns, products, _ = columns_of(w.cell)
    of = [columns] if planned.layer_pipelined else products[1:]
    return Partition.of(of, w.hidden, planned.units, planned.peers, parts, backward, has_upstream)


def partitioned(
    w: Weights, planned: GpuPlan, backward: bool, upstream: Weights | None = None
) -> dict[str, Any]:
    """Return the recurrent weights as the blocks of a "persistent" kernel load them.

    They are made when first asked for. ``upstream`` is the layer that this one follows in the same
    launches: its words are multiplied by the weights of the input between the two.
    """
    key = planned.units, planned.peers, planned.layer_pipelined, backward, upstream is not None
    if key not in w.shared:
        partition, xp = partition_of(w, planned, backward, upstream is not None), w.device.xp
        weights, scales = (
            ("shared_transposed", "shared_transposed_scales")
            if backward
            else ("shared_panels", "shared_scales")
        )
        made = {}
        for f, tiles in enumerate(partition.out_tiles):
            made[f"{weights}{f}"] = xp.empty(partition.weight_bytes[f], np.uint8)
            made[f"{scales}{f}"] = (
                xp.empty((partition.blocks, tiles * 16), np.float32)
                if partition.parts > 1
                else None
            )
        sizes = {
            "input": w.input,
            "hidden": w.hidden,
            "units": planned.units,
            "peers": planned.peers,
            "groups": 1,
            "span": 1,
        }
        sizes |= {
            "layer_pipelined": int(planned.layer_pipelined),
            "has_upstream": int(upstream is not None),
        }
        between = {"transposed_upstream": upstream.arrays["transposed0"] if upstream else None}
        w.device.launch(
            "pack_persistent", w.cell, w.dtype, {**w.arrays, **made, **between, **sizes}
        )
        w.shared[key] = made
    return w.shared[key]


def exchange_bytes(w: Weights, planned: GpuPlan, backward: bool) -> int:
    """Return the bytes of the exchange buffer of a launch."""
    if not planned.units:
        return 0
    steps = planned.co_launched * planned.groups * (planned.span + planned.layer_pipelined)
    return 4 * EXCHANGE_HEADER + steps * partition_of(w, planned, backward).step_bytes


def plan_values(
    weights: list[Weights], planned: GpuPlan, backward: bool, sizes: tuple[int, int]
) -> dict[str, Any]:
    """Return the plan as the kernels take it, and the buffers of kernels that exchange words."""
    values = {
        **{
            "loop": planned.register_capacity,
            "rows": planned.rows,
            "units": planned.units,
            "groups": planned.groups,
        },
        **{
            "peers": planned.peers,
            "span": planned.span,
            "co_launched": planned.co_launched,
            "layer_pipelined": int(planned.layer_pipelined),
        },
        "launches": planned.launches
        * (2 if planned.units else 1),  # with those that clear the exchange buffer
    }
    if not planned.units:
        return values
    w, count = weights[0], planned.co_launched
    carry = not backward and planned.span < sizes[0]
    return {
        **values,
        **partitioned(w, planned, backward),
        "exchange": w.device.xp.empty(exchange_bytes(w, planned, backward) // 4, np.uint32),
        "carry": w.device.xp.empty((count, facts_of(w.cell)["states"], sizes[1], w.hidden), w.dtype)
        if carry
        else None,
        "host_status": int(w.device.host_status.ctypes.data),
    }


def _copied(a: Any) -> Any:
    return None if a is None else a.copy()


def _check_range(*weights: Any) -> None:
    """Refuse weights beyond 65504, the range of float16; this waits for the device."""
    for name, w in zip(WEIGHTS, weights):
        top = float(_library(w).abs(w).max()) if _device.of(w) else float(np.abs(w).max())
        if FLOAT16_MAX < top < np.inf:
            raise ValueError(
                f"{name}: expected weights within the range of float16, {FLOAT16_MAX:g}, got "
                f"{top:.3g}"
            )


def times_table(device: Device, steps: int, batch: int, **given: Any) -> Any:
    """Return the table of resets and masks, int32 ``[T+1,B]``; see csrc/core/times.h."""
    before = device.xp.empty((steps + 1, batch), np.int32)
    if batch:
        device.launch(
            "times", None, np.float32, {"steps": steps, "batch": batch, "before": before, **given}
        )
    return before


def flags_by_step(device: Device, flags: Any, starts: Any, lengths: Any, steps: int) -> Any:
    """Return flat flags, of which those of sequence b begin at starts[b], as bytes ``[T,B]``."""
    if flags is None:
        return None
    out = device.xp.zeros((steps, len(starts)), np.uint8)
    step = step_of(lengths)
    out[device.put(step), device.put(sequence_of(lengths))] = device.put(flags)[
        device.put(step + np.repeat(starts, lengths))
    ]
    return out


@dataclass
class Forward:
    """One layer and direction to run.

    Outputs go to ``y``, the last states to ``end``; ``before`` is the `times_table`.
    """

    w: Weights
    x: Rows
    y: Rows
    state: tuple[Any, Any]
    end: tuple[Any, Any]
    before: Any = None
    restart: tuple[Any, Any] = (None, None)


def forward(
    calls: list[Forward],
    sizes: tuple[int, int],
    planned: GpuPlan,
    *,
    lengths: Any = None,
    train: bool = False,
    states_only: bool = False,
) -> list[SavedPass]:
    """Run the co-launched layers of a plan.

    Return the tensors saved for the backward pass, or an empty list in inference.
    """
    every = []
    for k, call in enumerate(calls):
        values = _forward_values(
            call, sizes, planned.layer_pipelined and k > 0, train, train and not states_only
        )
        values["lengths"] = lengths
        if planned.library and not (planned.layer_pipelined and k > 0):
            _library_product(call.w, call.x, values, values["gx"])
        every.append(values)
    first, w = every[0], calls[0].w
    first.update(plan_values([c.w for c in calls], planned, False, sizes))
    if len(calls) > 1:
        first["other"] = {
            **every[1],
            **partitioned(calls[1].w, planned, False, w if planned.layer_pipelined else None),
        }
    if sizes[1]:
        w.device.launch("forward", w.cell, w.dtype, first)
    for values in every:  # no later pass reads these
        values.update(dict.fromkeys(("gx", "px", "exchange", "carry", "other")))
    return [SavedPass(c.w, values, sizes, c.x) for c, values in zip(calls, every)] if train else []


def _forward_values(
    call: Forward, sizes: tuple[int, int], above: bool, train: bool, saving: bool
) -> dict[str, Any]:
    w, (steps, batch), facts = call.w, sizes, facts_of(call.w.cell)
    xp, size, dtype, two = w.device.xp, w.hidden, w.dtype, facts["states"] > 1
    columns, products, _ = columns_of(w.cell)
    phases, saved_rows = len(products) - 1, (steps, batch) if saving else (batch,)
    return {
        **w.arrays,
        **{
            "steps": steps,
            "batch": batch,
            "input": w.input,
            "hidden": size,
            "reverse": int(w.reverse),
        },
        **{"before": call.before, "h0": call.state[0], "c0": call.state[1]},
        **{
            "restart_h": call.restart[0],
            "restart_c": call.restart[1],
            "hn": call.end[0],
            "cn": call.end[1],
        },
        **call.x.values("x"),
        **call.y.values("y"),
        "saved": xp.empty((steps, batch, facts["saved"], size), dtype)
        if saving and facts["saved"]
        else None,
        "saved_scratch": xp.empty((batch, facts["saved"], size), dtype)
        if not saving and phases > 1
        else None,
        "cells": xp.empty((steps, batch, size), dtype) if train and two else None,
        "state": xp.empty((batch, size), dtype) if not train and two else None,
        "emitted": xp.empty((*saved_rows, size), dtype) if phases > 1 else None,
        "gx": None if above else xp.empty((steps, batch, size, columns), dtype),
    }


def _recompute(kept: SavedPass, work: Any, library: bool) -> dict[str, Any]:
    """Return what the cell saves, recomputed from a pass that saved the states only."""
    w, xp, (steps, batch), size = (
        kept.weights,
        kept.weights.device.xp,
        kept.shape,
        kept.weights.hidden,
    )
    (columns, products, _), saved = columns_of(w.cell), facts_of(w.cell)["saved"]
    gx = xp.empty((steps, batch, size, columns), w.dtype)
    made = {
        "saved": work("saved", steps, batch, saved, size),
        "emitted": work("emitted", steps, batch, size, wanted=len(products) > 2),
    }
    values = {
        **kept.values,
        **made,
        "gx": gx,
        **dict.fromkeys(("loop", "rows", "units", "layer_pipelined"), 0),
    }
    if library:
        _library_product(w, kept.x, values, gx)
    w.device.launch("recompute", w.cell, w.dtype, {**values, "launches": len(products)})
    return made


@dataclass
class Backward:
    """The gradients of one layer and direction to compute.

    Those of the states before the first step go to ``dstate``, those of x to ``dx``. The gradients
    of the weights, of x (if ``dx_add``) and of the restarts' states are added to. ``flow``: squared
    norms, ``[T,states,B]``.
    """

    kept: SavedPass
    dy: Rows | None
    dend: tuple[Any, Any]
    dstate: tuple[Any, Any]
    grads: list[Any]
    dx: Rows | None = None
    dx_add: bool = False
    dcells: Rows | None = None
    drestart: tuple[Any, Any] = (None, None)
    flow: Any = None


def backward(
    calls: list[Backward],
    planned: GpuPlan,
    *,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    cuts: Any = None,
    scratch: list[dict[Any, Any]] | None = None,
) -> None:
    """Run the backward passes of the co-launched layers of a plan.

    ``scratch`` keeps working arrays from one call to the next, separately for each of a pair.
    """
    w, sizes = calls[0].kept.weights, calls[0].kept.shape
    if sizes[1] == 0:
        return
    library = planned.library and sizes[0] > 0
    control = {
        "clip_value": float(clip_value),
        "clip_norm": float(clip_norm),
        "cuts": cuts,
        "library": int(library),
    }
    held = scratch or [{}, {}]
    taken = planned.chunks if library else 0
    every = [
        {**_backward_values(c, taken, clip_norm > 0, held[k]), **control}
        for k, c in enumerate(calls)
    ]
    first = every[0]
    first.update(plan_values([c.kept.weights for c in calls], planned, True, sizes))
    if len(calls) > 1:
        first["other"] = {
            **every[1],
            **partitioned(
                calls[1].kept.weights, planned, True, w if planned.layer_pipelined else None
            ),
        }
    parts, chunks = _core.gradient_parts(*sizes), planned.chunks
    cuts = [parts * k // chunks for k in range(chunks + 1)]
    with w.device.side_stream() if chunks > 1 else _device.SerialStreams() as side:
        for k in reversed(range(chunks)):
            first.update(first_part=cuts[k], last_part=cuts[k + 1])
            steps = sizes[0] * cuts[k] // parts, sizes[0] * cuts[k + 1] // parts
            if chunks > 1:  # they are not recorded: that would be too many graphs of few launches
                with side.on_side():
                    w.device.launch("through_time", w.cell, w.dtype, {**first, "launches": 0})
                side.join()
                w.device.launch("products", w.cell, w.dtype, {**first, "launches": 0})
            else:
                w.device.launch("backward", w.cell, w.dtype, first)
            for call, values in zip(calls, every) if library else []:
                _library_gradients(call, values, planned, k, steps)
    first["other"] = None


def _backward_values(
    call: Backward, library: int, norms: bool, held: dict[Any, Any]
) -> dict[str, Any]:
    """Return the values that the kernels of a backward pass take.

    ``library``: the number of chunks for each of which the array library computes the products of
    the weights; 0: our own kernels compute them.
    """
    kept, w = call.kept, call.kept.weights
    (steps, batch), facts, size, dtype = kept.shape, facts_of(w.cell), w.hidden, w.dtype
    _, products, shared = columns_of(w.cell)
    states, parts = facts["states"], _core.gradient_parts(steps, batch)

    def work(name: str, *shape: int, wanted: bool = True) -> Any:
        if not wanted:
            return None
        key = (name, shape)
        if key not in held:
            held[key] = w.device.xp.empty(shape, dtype)
        return held[key]

    made = (
        _recompute(kept, work, library > 0)
        if facts["saved"] and kept.values["saved"] is None
        else {}
    )
    rows = {"dy": call.dy, "dx": call.dx, "dcells": call.dcells}
    values = {
        **kept.values,
        **made,
        **{n: v for name, r in rows.items() if r for n, v in r.values(name).items()},
        **{"dhn": call.dend[0], "dcn": call.dend[1], "dh0": call.dstate[0], "dc0": call.dstate[1]},
        **{
            "drestart_h": call.drestart[0],
            "drestart_c": call.drestart[1],
            "flow": call.flow,
            "dx_add": int(call.dx_add),
        },
        "dh": work("dh", batch, size),
        "dc": work("dc", batch, size, wanted=states > 1),
        "demitted": work("demitted", batch, size, wanted=len(products) > 2),
        "dparams": work("dparams", steps, batch, facts["params"], size, wanted=facts["params"] > 0),
        "param_sums": work("param_sums", parts, facts["params"], size, wanted=facts["params"] > 0),
        "restarts": work("restarts", states, batch, size),
        "scales": work("scales", states, batch, wanted=norms),
        "squares": work("squares", states, batch, size, wanted=call.flow is not None),
        **{f"d{name}": g for name, g in zip(WEIGHTS, call.grads)},
    }
    for q, n in enumerate(products):
        depth = w.input if q == 0 else size
        values[f"da{q}"] = work(f"da{q}", steps, batch, size, n, wanted=not (shared and q == 1))
        values[f"sums{q}"] = work(f"sums{q}", library or parts, depth, size, n)
        values[f"bias_sums{q}"] = work(f"bias_sums{q}", parts, size, n)
        taken = library > 0 and call.grads[min(q, 1)] is not None
        values[f"operands{q}"] = work(f"operands{q}", steps, batch, depth, wanted=taken)
    return values


def _library_product(w: Weights, x: Rows, values: dict[str, Any], gx: Any) -> None:
    """Compute W x of all rows by the array library, in place where it has the layout of gx."""
    xp, a = w.device.xp, x.array
    if not gx.size or (x.starts is not None and len(a) > gx.shape[0] * gx.shape[1]):
        return  # a segment is a part of the flat rows, and the product would cover all
    panels = w.arrays["panels0"].reshape(w.input, -1)
    width, rows = panels.shape[1], a.size // w.input
    in_place = x.starts is None and not x.batch_first and gx.size == rows * width
    out = gx.reshape(rows, width) if in_place else None
    product = xp.matmul(a.reshape(rows, w.input), panels, out=out).reshape(*a.shape[:-1], width)
    flat = None if x.starts is None else (x.starts, x.ends)
    values.update(Rows.of(product, x.batch_first, flat).values("px"))


def _library_gradients(
    call: Backward, values: dict[str, Any], planned: GpuPlan, chunk: int, steps: tuple[int, int]
) -> None:
    """Compute dx and the gradients of the weights of one chunk by the array library.

    Chunks come from the last one to chunk 0.
    """
    w, (all_steps, batch), last = call.kept.weights, call.kept.shape, chunk == 0
    _, products, shared = columns_of(w.cell)
    xp, whole = w.device.xp, (0, all_steps)
    times = (all_steps - steps[1], all_steps - steps[0]) if w.reverse else steps
    flat = [
        values[f"da{0 if shared and q == 1 else q}"].reshape(all_steps * batch, -1)
        for q in range(len(products))
    ]
    rows = slice(times[0] * batch, times[1] * batch)
    for q, da in enumerate(flat):
        if values[f"operands{q}"] is not None:
            a, sums = (
                values[f"operands{q}"].reshape(all_steps * batch, -1)[rows],
                values[f"sums{q}"][chunk],
            )
            xp.matmul(a.T, da[rows], out=sums.reshape(a.shape[1], -1))
    if last:
        numbers = {"units": 0, "launches": len(products), "chunks": planned.chunks}
        w.device.launch("add", w.cell, w.dtype, {**values, **numbers})
    to_both = (
        planned.co_launched > 1 and not planned.layer_pipelined
    )  # both directions: one adds to what the other one wrote
    if call.dx is None or (to_both and not last):
        return
    first, end = whole if to_both else times
    d = xp.matmul(
        flat[0][first * batch : end * batch], w.arrays["transposed0"].reshape(-1, w.input)
    )
    sizes = {
        "steps": end - first,
        "batch": batch,
        "width": w.input,
        "first": first,
        "add": int(call.dx_add),
    }
    w.device.launch("copy_rows", None, w.dtype, {**call.dx.values("to"), "from": d, **sizes})


class Packed:
    """Weights of layers and directions, with the interface of `_core.PackedFloat32`."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        weights: list[list[Any]],
        backward: bool,
        reverse: bool = False,
        precision: str = "exact",
        numbered: bool = True,
    ) -> None:
        device = _device.of(weights[0][0])
        assert device is not None
        self.device, self.cell, self.backward, self.reverse = device, cell, backward, reverse
        self.input_size, self.hidden_size, self.layers = input_size, hidden_size, num_layers
        self.output_size = hidden_size  # of h: no kernel of a device projects it
        self.directions, self.dtype, self.precision = (
            2 if bidirectional else 1,
            weights[0][0].dtype,
            precision,
        )
        gates, h = facts_of(cell)["gates"], hidden_size
        rows = "H" if gates == 1 else f"{gates}*H"
        self.parts = []
        with device.here():
            for k, given in enumerate(weights):
                layer, d = divmod(k, self.directions)
                end = f"_l{layer}{'_reverse' if d else ''}" if numbered else ""
                axes = [
                    [(rows, gates * h), ("I", input_size if layer == 0 else self.directions * h)]
                ]
                axes += [
                    [(rows, gates * h), ("H", h)],
                    [(rows, gates * h)],
                    [(rows, gates * h)],
                    [("gates", 3), ("H", h)],
                ]
                five = [
                    optional_extent(device, n + end, a, s, self.dtype, contiguous=True)
                    for n, a, s in zip(WEIGHTS, given, axes)
                ]
                self.parts.append(
                    pack(
                        device,
                        cell,
                        five,
                        reverse=reverse or d == 1,
                        backward=backward,
                        precision=precision,
                    )
                )

    def sums(self, batch: int) -> Any:
        """Return an empty handle: nothing outlives a call."""
        return SimpleNamespace(block_steps=1, bytes=0)

    def drop(self, layer: int, y: Any, rate: float, key: int, first_step: int) -> None:
        """Apply dropout in place to the outputs ``[T,B,D*H]`` of a layer."""
        self._drop(layer, y, y, rate, key, first_step)

    def can_pipeline(self, layer: int, next_one: int, steps: int, batch: int) -> bool:
        """Return whether two neighbouring layers may run in the same launches, one a step behind.

        ``next_one`` is 1 for the layer above (forward) and -1 for the one below (backward). It
        holds only if nothing happens between the two and every row takes part.
        """
        if self.directions > 1 or not 0 <= layer + next_one < self.layers or not steps * batch:
            return False
        return plan_of(
            self.parts[layer], steps, batch, next_one < 0, co_launched=2, layer_pipelined=True
        ).layer_pipelined

    def _drop(self, layer: int, y: Any, to: Any, rate: float, key: int, first_step: int) -> None:
        sizes = {
            "steps": y.shape[0],
            "batch": y.shape[1],
            "hidden": self.hidden_size,
            "directions": self.directions,
        }
        if y.size:
            values = {
                "from": y,
                "to": to,
                **sizes,
                "layer": layer,
                "first_step": first_step,
                "rate": rate,
                "key": key,
            }
            self.device.launch("drop", None, self.dtype, values)

    def forward(
        self,
        x: Any,
        h0: Any,
        c0: Any,
        lengths: Any,
        batch_first: bool,
        out: Any,
        train: bool,
        dropout: float,
        key: int,
        *,
        resets: Any = None,
        mask: Any = None,
        repeat: bool = False,
        restart_h: Any = None,
        restart_c: Any = None,
        first_step: int = 0,
        held: Any = None,
        resets_after: Any = None,
        restarted: Any = None,
        order: Any = None,
        starts: Any = None,
        span: int = 0,
        states_only: bool = False,
    ) -> tuple[Any, Any, Any, Tape | None]:
        """Return y, h_n, c_n and the tape.

        Kernels of a GPU need no order of the rows: ``order`` is ignored.
        """
        device, xp, h, n = (
            self.device,
            self.device.xp,
            self.hidden_size,
            self.layers * self.directions,
        )
        width, two = self.directions * h, facts_of(self.cell)["states"] > 1
        ragged = starts is not None
        first = ("B", "T") if batch_first else ("T", "B")
        axes = [("N", -1)] if ragged else [(first[0], -1), (first[1], -1)]
        x = extent(device, "x", x, [*axes, ("I", self.input_size)], self.dtype)
        steps, batch = (span, len(starts)) if ragged else x.shape[:2][:: -1 if batch_first else 1]
        if (resets is not None or mask is not None) and steps > 2147483640:
            raise ValueError(
                f"x: expected at most 2147483640 steps with resets or a mask, got {steps}"
            )
        parts = ("1" if n == 1 else "L*D", n)
        state = [parts, ("B", batch), ("H", h)]
        h0, c0 = (
            optional_extent(device, name, s, state, self.dtype, contiguous=True)
            for name, s in (("h0", h0), ("c0", c0))
        )
        restart_h, restart_c = (
            optional_extent(device, name, s, [parts, ("H", h)], self.dtype, contiguous=True)
            for name, s in (("restart_h", restart_h), ("restart_c", restart_c))
        )
        if out is not None:
            sizes = (
                [("N", len(x))]
                if ragged
                else [(name, size) for (name, _), size in zip(axes, x.shape)]
            )
            out = extent(device, "out", out, [*sizes, ("D*H", width)], self.dtype)
            _refuse_overlap(out, {"x": x, "h0": h0, "c0": c0})
        with device.here():
            put = device.put
            ends, offsets = put(lengths), np.zeros(0, np.int64)
            into: tuple[Any, Any] | None = None
            flat: tuple[Any, Any] | None = None
            if ragged:
                flat = into = put(starts), put(starts + lengths)
                resets, mask = (
                    flags_by_step(device, a, starts, lengths, steps) for a in (resets, mask)
                )
                if out is None:  # sequences lie one after the other
                    offsets = np.concatenate([[0], np.cumsum(lengths)])
                    into = put(offsets[:-1]), put(offsets[1:])
            given = {
                "lengths": ends,
                "resets": resets,
                "mask": mask,
                "held": held,
                "restarted": restarted,
            }
            given |= {"resets_after": resets_after}
            tables: dict[bool, Any] = {False: None, True: None}
            if resets is not None or mask is not None or resets_after is not None:
                given = {name: put(a) for name, a in given.items()}
                for from_end in {w.reverse for w in self.parts}:
                    flags = {"repeat": int(repeat), "from_end": int(from_end)}
                    tables[from_end] = times_table(device, steps, batch, **given, **flags)
            if out is None:
                shape = (
                    (int(offsets[-1]),)
                    if ragged
                    else (batch, steps)
                    if batch_first
                    else (steps, batch)
                )
                y = xp.empty((*shape, width), self.dtype)
            else:
                y = out
            h_n = xp.empty((n, batch, h), self.dtype)
            c_n = xp.empty((n, batch, h), self.dtype) if two else None
            calls, rows, kept = [], Rows.of(x, batch_first, flat), []
            steady = not dropout and tables[False] is None and tables[True] is None
            for layer in range(self.layers):
                last = layer + 1 == self.layers
                to = (
                    Rows.of(y, batch_first, into)
                    if last
                    else Rows.of(xp.empty((steps, batch, width), self.dtype))
                )
                for d in range(self.directions):
                    k = layer * self.directions + d
                    calls.append(
                        Forward(
                            self.parts[k],
                            rows,
                            to.columns(d * h, (d + 1) * h),
                            (_at(h0, k), _at(c0, k)),
                            (h_n[k], _at(c_n, k)),
                            tables[self.parts[k].reverse],
                            (_at(restart_h, k), _at(restart_c, k)),
                        )
                    )
                options = {"lengths": ends, "train": train, "states_only": states_only}
                if steady and len(calls) == 1 and self.can_pipeline(layer, 1, steps, batch):
                    rows = to
                    continue  # it runs with the next layer
                planned = plan_of(
                    calls[0].w,
                    steps,
                    batch,
                    co_launched=len(calls),
                    layer_pipelined=self.directions < len(calls),
                )
                for some in [calls] if planned.co_launched == len(calls) else [[c] for c in calls]:
                    kept += forward(some, (steps, batch), planned, **options)
                calls, rows = [], to
                if not last and dropout:
                    rows = Rows.of(xp.empty_like(to.array))
                    self._drop(layer, to.array, rows.array, dropout, key, first_step)
            if not train:
                return y, h_n, c_n, None
            facts = SimpleNamespace(
                shape=(steps, batch),
                batch_first=batch_first,
                x=x,
                y=y,
                flat=flat,
                into=into,
                dropout=dropout,
                key=key,
                first_step=first_step,
                steady=steady,
                resets=resets is not None or resets_after is not None,
                state=state,
                tables=tables,
                lengths=ends,
                sequences=(starts, lengths),
            )
            return y, h_n, c_n, Tape(self, kept, facts)


class Tape:
    """Tensors that a forward pass saves, with the interface of `_core.TapeFloat32`."""

    def __init__(self, packed: Packed, kept: list[SavedPass], facts: Any) -> None:
        self.packed, self._passes, self._facts = packed, kept, facts
        self.shape = facts.shape

    @property
    def bytes(self) -> int:
        """The bytes of the arrays that only the tape holds."""
        names = ("saved", "cells", "emitted")
        return sum(
            k.values[n].nbytes for k in self._passes for n in names if k.values[n] is not None
        )

    def backward(
        self,
        dy: Any,
        dh_n: Any,
        dc_n: Any,
        grads: list[list[Any]],
        need_dx: bool,
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        cuts: Any = None,
        dcells: Any = None,
        flow: bool = False,
        dx: Any = None,
        dx_add: bool = False,
        sums: Any = None,
        resume: bool = False,
        more: bool = False,
        drestart: Any = None,
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Return dx, dh0, dc0, gradients of restarts and squared norms; add to ``grads``."""
        p, f = self.packed, self._facts
        device, xp, dtype, h, n = (
            p.device,
            p.device.xp,
            p.dtype,
            p.hidden_size,
            p.layers * p.directions,
        )
        (steps, batch), width, states = f.shape, p.directions * h, facts_of(p.cell)["states"]
        if not p.backward:
            raise ValueError(
                "packed: expected weights packed for training, got weights packed for inference "
                "only"
            )
        lead = (
            [("N", len(f.y))]
            if f.flat
            else [("B", batch), ("T", steps)]
            if f.batch_first
            else [("T", steps), ("B", batch)]
        )
        if dy is not None:
            dy = extent(device, "dy", dy, [*lead, ("D*H", width)], dtype)
        dh_n, dc_n = (
            optional_extent(device, name, a, f.state, dtype, contiguous=True)
            for name, a in (("dh_n", dh_n), ("dc_n", dc_n))
        )
        if dcells is not None:
            if states < 2:
                raise ValueError(f"dcells: expected None for the cell {p.cell}, got an array")
            axes = [("B", batch), ("T", steps)] if f.batch_first else [("T", steps), ("B", batch)]
            dcells = extent(device, "dcells", dcells, [f.state[0], *axes, ("H", h)], dtype)
        lead = [("N", len(f.x))] if f.flat else lead
        if dx is not None:
            extent(device, "dx", dx, [*lead, ("I", p.input_size)], dtype)
        with device.here():
            if dx is None and need_dx:
                dx, dx_add = xp.empty(f.x.shape, dtype), False
            dh0 = xp.empty((n, batch, h), dtype)
            dc0 = xp.empty((n, batch, h), dtype) if states > 1 else None
            dreset: Any = (None, None)
            if drestart is not None:
                dreset = drestart
            elif f.resets:
                dreset = tuple(xp.zeros((n, h), dtype) if k < states else None for k in range(2))
            norms = xp.zeros((n, steps, states, batch), np.float64) if flow else None
            bound = [
                max(v, float(np.finfo(dtype).tiny)) if v > 0 else 0.0
                for v in (clip_value, clip_norm)
            ]
            starts, lengths = f.sequences
            cuts = (
                flags_by_step(device, cuts, starts, lengths, steps) if f.flat else device.put(cuts)
            )
            control = {"clip_value": bound[0], "clip_norm": bound[1], "cuts": cuts}
            scratch: list[dict[Any, Any]] = [{}, {}]
            into = None if dy is None else Rows.of(dy, f.batch_first, f.into)
            by_step = bound[1] > 0 or flow
            steady = f.steady and cuts is None and not by_step
            calls: list[Backward] = []
            for layer in reversed(range(p.layers)):
                layer_pipelined = steady and not calls and p.can_pipeline(layer, -1, steps, batch)
                rows: Rows | None = None
                if layer == 0:
                    rows = None if dx is None else Rows.of(dx, f.batch_first, f.flat)
                elif not layer_pipelined:
                    rows = Rows.of(xp.empty((steps, batch, width), dtype))
                calls += [
                    Backward(
                        self._passes[k],
                        None if into is None else into.columns(d * h, (d + 1) * h),
                        (_at(dh_n, k), _at(dc_n, k)),
                        (dh0[k], _at(dc0, k)),
                        grads[k],
                        rows,
                        d == 1 or (layer == 0 and dx_add),
                        None if dcells is None else Rows.of(dcells[k], f.batch_first),
                        (_at(dreset[0], k), _at(dreset[1], k)),
                        _at(norms, k),
                    )
                    for d, k in enumerate(range(layer * p.directions, (layer + 1) * p.directions))
                ]
                into = rows
                if layer_pipelined:
                    continue  # it runs with the next layer, which takes in what this one sends
                both = p.directions < len(calls)
                planned = plan_of(
                    calls[0].kept.weights,
                    steps,
                    batch,
                    True,
                    by_step,
                    co_launched=len(calls),
                    layer_pipelined=both,
                )
                for some in [calls] if planned.co_launched == len(calls) else [[c] for c in calls]:
                    backward(some, planned, scratch=scratch, **control)
                calls = []
                if layer > 0 and rows is not None and f.dropout:
                    p._drop(layer - 1, rows.array, rows.array, f.dropout, f.key, f.first_step)
        return dx, dh0, dc0, *dreset, None if norms is None else norms.sum(3)

    def active(self) -> Any:
        """Return ``[T,B]``, True where the rows take part."""
        (steps, batch), f, xp = self.shape, self._facts, self.packed.device.xp
        table = f.tables[False] if f.tables[False] is not None else f.tables[True]
        if table is not None:
            on = table[:steps] > SKIPPED
        elif f.lengths is not None:
            on = xp.arange(steps)[:, None] < f.lengths
        else:
            on = xp.ones((steps, batch), bool)
        return on

    def _rows(self, parts: list[Any]) -> Any:
        """Stack ``[T,B,H]`` of all parts to ``[L*D,T,B,H]`` (``[L*D,B,T,H]``).

        It is zero where a row takes no part.
        """
        xp, f = self.packed.device.xp, self._facts
        out = xp.stack(parts)
        out = xp.where(self.active()[..., None], out, out.dtype.type(0))
        return xp.ascontiguousarray(out.swapaxes(1, 2) if f.batch_first else out)

    def cells(self) -> Any:
        """Return c after every step."""
        if facts_of(self.packed.cell)["states"] < 2:
            raise TypeError(f"cells: expected a cell with two states, got {self.packed.cell}")
        return self._rows([k.values["cells"] for k in self._passes])

    def saved(self, number: int) -> Any:
        """Return one of the values that the cell saves, such as a gate."""
        if self._passes[0].values["saved"] is None:
            raise TypeError(
                "gates: expected a pass that keeps them, got one that keeps the states only"
            )
        return self._rows([k.values["saved"][:, :, number] for k in self._passes])

    def hidden(self) -> Any:
        """Return h after every step."""
        top = len(self._passes) - self.packed.directions
        return self._rows(
            [
                self._top(k.values["y"]) if i >= top else k.values["y"]
                for i, k in enumerate(self._passes)
            ]
        )

    def _top(self, y: Any) -> Any:
        """Return the outputs of the last layer, time-major and padded."""
        f, (steps, batch) = self._facts, self.shape
        if not f.flat:
            return y.swapaxes(0, 1) if f.batch_first else y
        out = self.packed.device.xp.zeros((steps, batch, y.shape[-1]), y.dtype)
        for b, (start, end) in enumerate(zip(*map(_device.host, f.into))):
            out[: int(end - start), b] = y[int(start) : int(end)]
        return out


def _at(a: Any, k: int) -> Any:
    return None if a is None else a[k]


def _range(device: Device, a: Any) -> tuple[int, int]:
    """Return the range of addresses of an array."""
    if not a.size:
        return 0, 0
    spans = [(n - 1) * s for n, s in zip(a.shape, a.strides)]
    base = device.address(a)
    return base + sum(s for s in spans if s < 0), base + sum(s for s in spans if s > 0) + a.itemsize


def _refuse_overlap(out: Any, others: dict[str, Any]) -> None:
    device = _device.of(out)
    assert device is not None
    low, high = _range(device, out)
    steps = sorted((abs(s), n) for s, n in zip(out.strides, out.shape) if n > 1)
    reach = out.itemsize
    for stride, n in steps if out.size else []:
        if stride < reach:
            raise ValueError(
                "out: expected rows of its own for every (t, b), got strides by which they overlap"
            )
        reach = stride * (n - 1) + reach
    for name, a in others.items():
        if a is not None:
            begin, end = _range(device, a)
            if low < end and begin < high:
                raise ValueError(
                    "out: expected memory of its own, got an array whose memory range overlaps "
                    f"that of {name}"
                )


def product(a: Any, b: Any) -> Any:
    """Multiply ``[M,K]`` by ``[K,N]``: by the array library, or by our kernel without cuBLAS."""
    device = _device.of(a)
    assert device is not None
    if device.figures.library:
        return device.xp.matmul(a, b)
    with device.here():
        out = device.xp.empty((a.shape[0], b.shape[1]), a.dtype)
    if out.size:
        strides = dict(
            zip(
                ("a_row", "a_k", "b_k", "b_column"),
                (s // a.itemsize for s in (*a.strides, *b.strides)),
            )
        )
        sizes = {"rows": out.shape[0], "columns": out.shape[1], "depth": a.shape[1]}
        device.launch("matmul", None, a.dtype, {"a": a, "b": b, "out": out, **strides, **sizes})
    return out


class PackedLinear:
    """The weights of ``y = x W^T + b``, with the interface of `_core.PackedLinearFloat32`."""

    def __init__(self, weight: Any, bias: Any, backward: bool) -> None:
        self.weight, self.bias, self.backward = weight, bias, backward

    def forward(self, x: Any) -> Any:
        """Return rows ``[N,O]`` of rows ``[N,I]``."""
        y = product(x, self.weight.T)
        if self.bias is not None:
            y += self.bias
        return y

    def run_backward(self, x: Any, dy: Any, dweight: Any, dbias: Any, need_dx: bool) -> Any:
        """Return dx, if wanted; add to the gradients of weight and bias."""
        if dweight is not None:
            dweight += product(dy.T, x)
        if dbias is not None:
            dbias += dy.sum(0)
        return product(dy, self.weight) if need_dx else None


def softmax_cross_entropy(
    y: Any, target: Any, smoothing: float, weight: float, need_gradient: bool
) -> tuple[float, Any]:
    """Return the sum of the losses of rows ``[N,V]``, and the gradient of ``weight`` times it.

    Rows of target -1 do not count.
    """
    xp, (count, classes) = _library(y), y.shape
    if count == 0:
        return 0.0, xp.empty_like(y) if need_gradient else None
    counts = (target >= 0)[:, None]
    at = xp.maximum(target, 0)[:, None]
    y = xp.where(counts, y, y.dtype.type(0))  # what does not count may hold NaN
    top = y.max(1, keepdims=True)
    exps = xp.exp(y - top)
    total = exps.sum(1, keepdims=True, dtype=np.float64)
    level = top + xp.log(total)
    losses = (1 - smoothing) * (level - xp.take_along_axis(y, at, 1))
    if smoothing:
        losses += smoothing * (level - y.mean(1, keepdims=True, dtype=np.float64))
    loss = float(xp.where(counts, losses, 0.0).sum())
    if not need_gradient:
        return loss, None
    d = exps * (weight / total).astype(y.dtype) - y.dtype.type(smoothing * weight / classes)
    d -= (xp.arange(classes) == at) * y.dtype.type((1 - smoothing) * weight)
    return loss, xp.where(counts, d, y.dtype.type(0))


def embedding_gather(ids: Any, weight: Any) -> Any:
    """Return rows of a table."""
    bad = (ids < 0) | (ids >= len(weight))
    if bool(bad.any()):
        position = int(_device.host(bad).argmax())
        raise ValueError(
            f"x: expected indices from 0 to {len(weight) - 1}, got {int(ids[position])} at "
            f"position {position}"
        )
    return weight[ids]


def embedding_scatter_(ids: Any, dy: Any, dweight: Any) -> None:
    """Add rows to those of a table, in their order."""
    xp, device = _library(dy), _device.of(dy)
    assert device is not None
    if not dy.size:
        return
    order = xp.argsort(ids, kind="stable").astype(np.int64)
    values = {
        "from": dy,
        "ids": ids[order],
        "order": order,
        "to": dweight,
        "count": len(ids),
        "width": dy.shape[1],
    }
    device.launch("scatter", None, dy.dtype, {**values, "rows": len(dweight)})


def square_sum(x: Any) -> float:
    """Return the sum of all squares."""
    return float(_library(x).square(x, dtype=np.float64).sum())


def adam_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    correction1: float,
    correction2: float,
    decoupled: bool,
) -> None:
    """Take one step of Adam, in place."""
    device = _device.of(p)
    assert device is not None
    numbers = {
        "rate": rate,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
    }
    numbers |= {
        "correction1": correction1,
        "correction2": correction2,
        "decoupled": int(decoupled),
        "count": p.size,
    }
    device.launch("adam", None, p.dtype, {"p": p, "g": g, "m": m, "v": v, **numbers})


def dropout(x: Any, rate: float, key: int) -> Any:
    """Return a flat array after dropout."""
    device = _device.of(x)
    assert device is not None
    with device.here():
        y = device.xp.empty_like(x)
    if x.size:
        device.launch(
            "drop_flat",
            None,
            x.dtype,
            {"from": x, "to": y, "count": x.size, "rate": rate, "key": key},
        )
    return y


def elementwise(name: str, x: Any) -> Any:
    """Return tanh, sigmoid or exp of every element."""
    xp = _library(x)
    if name == "sigmoid":
        return 1 / (1 + xp.exp(-x))
    return xp.tanh(x) if name == "tanh" else xp.exp(x)


def _library(a: Any) -> Any:
    device = _device.of(a)
    assert device is not None
    return device.xp
