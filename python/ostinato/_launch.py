"""Launch the kernels of one layer and direction on a device, or of two that run together.

A call is a `Forward` or `Backward`; the arrays in it are those of the device's library, or their
addresses where they belong to someone else (`_backend`). The order of layers is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _core, _deferred, _device, _words
from ._abi import (
    CopyRowsFields,
    GradientFields,
    LayerFields,
    PackFields,
    PackSharedFields,
    PassFields,
    PlanFields,
    RowsFields,
    SharedFields,
    WeightFields,
)
from ._buffers import (
    TAPE,
    Shapes,
    backward_shapes,
    columns_of,
    device_facts,
    forward_shapes,
    matrices_of,
)
from ._cells import UNIT_WEIGHTS, drivers_of, facts_of
from ._device import Device
from ._plan import (
    ClusterKernel,
    GpuPlan,
    Partition,
    chunks_of,
    plan,
    plan_by_step,
    register_capacity_for,
)

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of every cell
FLOAT16_MAX = 65504.0


def named_weights(cell: str, weights: list[Any]) -> dict[str, Any]:
    """Return the weights of one layer and direction by name.

    They are `WEIGHTS`, then those of one number a unit, or one None where a cell has none of them,
    and then weight_hr of a projection.
    """
    names = [*WEIGHTS, *([name for name, *_ in UNIT_WEIGHTS[cell]] or [""]), "weight_hr"]
    return dict.fromkeys(names) | dict(zip(names, weights))


class Rows(NamedTuple):
    """Rows as kernels address them.

    Row (t, b) begins ``t * t_stride + b * b_stride`` elements in; flat rows begin at
    ``starts[b] + t``. ``data`` is an array or an address; ``total`` is the number of flat rows.
    """

    data: Any
    t: int
    b: int
    starts: Any = None
    ends: Any = None
    total: int = 0

    def fields(self) -> RowsFields:
        """Return the fields that the kernels take."""
        return {
            "data": self.data,
            "t": self.t,
            "b": self.b,
            "starts": self.starts,
            "ends": self.ends,
        }

    def array(self, w: Weights, steps: int, batch: int) -> Any:
        """Return the rows as an array as it lies: ``[T,B,I]``, ``[B,T,I]`` or flat ``[N,I]``."""
        if not isinstance(self.data, int):
            return self.data
        axes = [(steps, self.t), (batch, self.b)]
        if self.starts is not None:
            axes = [(self.total, self.t)]
        elif self.batch_first:
            axes.reverse()
        shape, strides = zip(*axes, (w.input, 1))
        size = w.dtype.itemsize
        return w.device.view(self.data, shape, tuple(size * s for s in strides), w.dtype)

    @property
    def batch_first(self) -> bool:
        """Whether the steps of a row lie closer to each other than the rows of a step."""
        return self.starts is None and abs(self.t) < abs(self.b)


@dataclass
class Weights:
    """Weights of one layer and direction in the layout of the kernels."""

    device: Device
    cell: str
    dtype: Any
    reverse: bool
    fields: WeightFields
    split: bool = False  # whether a float may be multiplied as two words of 2 bytes
    shared: dict[tuple[Any, ...], SharedFields] = field(
        default_factory=dict
    )  # what `partitioned` has made
    words: dict[str, _words.Operand] = field(default_factory=dict)  # what `words_of_weights` has
    # What has not been looked at yet when they were packed, and is asked for at every use.
    checks: list[_deferred.Check] = field(default_factory=list)

    @property
    def input(self) -> int:
        """Input features."""
        return self.fields["input"]

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self.fields["hidden"]

    @property
    def output(self) -> int:
        """The width of h."""
        return self.fields["output"]

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """Depth, units and columns of each matrix."""
        return matrices_of(self.cell, self.input, self.hidden, self.output)

    @property
    def word_bytes(self) -> int:
        """The bytes of an operand of the products."""
        return word_bytes(self.dtype, self.fields["precision"])

    @property
    def bytes(self) -> int:
        """The bytes of the packed weights, without the parameters of units."""
        f = self.fields
        arrays = [*f["panels"], *f["transposed"], *f["stream_panels"], f["stream_transposed"]]
        arrays += [f["bias"], f["loop_panels"], f["loop_transposed"]]
        return sum(a.nbytes for a in arrays if a is not None)

    @property
    def split_bytes(self) -> int:
        """The bytes of the words of the input's weights, as one pass multiplies them."""
        panels: Any = self.fields["panels"][0]
        return _words.floats_of(panels.size, True) * 4


@dataclass
class SavedPass:
    """What a forward pass of one layer and direction saves, and what it was given."""

    weights: Weights
    layer: LayerFields
    shape: tuple[int, int]
    x: Rows

    @property
    def bytes(self) -> int:
        """The bytes of what the kernels saved."""
        fields: Any = self.layer
        held = (fields[name] for name in TAPE)
        arrays = (a for f in held for a in (f if isinstance(f, list) else [f]))
        return sum(a.nbytes for a in arrays if a is not None)


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
    (columns, products, _), own = columns_of(w.cell), device_facts(w.cell)
    facts = {"hidden": w.hidden, "steps": steps, "batch": batch, "word": w.word_bytes}
    if not own.streams:
        return plan_by_step(
            w.device.figures,
            products[1:],
            **facts,
            backward=backward,
            lacks=drivers_of(w.cell)["stream"],
            launches=own.step_launches[backward],
        )
    facts |= {"co_launched": co_launched, "inputs": w.input}
    facts["pipeline_columns"] = columns if layer_pipelined else 0
    return plan(
        w.device.figures,
        products[1:],
        **facts,
        split=w.split,
        backward=backward,
        by_step=by_step,
        lacks=lacks_of(w.cell),
    )


def words_of(w: Weights, planned: GpuPlan) -> int:
    """Return the words of 2 bytes of a number in the products of the array library.

    It is 0 where it multiplies none.
    """
    if not planned.library:
        return 0
    return 2 if planned.library_split else int(w.word_bytes == 2)


def slice_word(w: Weights, planned: GpuPlan) -> int:
    """Return the bytes of an operand where blocks share the product of a step backward, or 0."""
    streams = planned.rows > 0 and w.word_bytes == 2
    kept = planned.register_capacity or planned.units or planned.cluster
    return 0 if kept or streams else w.word_bytes


def words_of_weights(w: Weights, backward: bool) -> _words.Operand:
    """Return the weights of the input ``[I,H*columns]``, or backward their transpose, as words.

    Words of float32 are made when first asked for.
    """
    name = "transposed" if backward else "panels"
    panels: Any = (w.fields["transposed"] if backward else w.fields["panels"])[0]
    matrix = panels.reshape(-1, w.input) if backward else panels.reshape(w.input, -1)
    if w.word_bytes == 2:
        return _words.Operand(word_kind(w, backward), (matrix,))
    if name not in w.words:
        xp = w.device.xp
        room = xp.empty(_words.floats_of(matrix.size, True), np.float32)
        w.words[name] = _words.operand(xp, matrix, "bfloat16", room, split=True)
    return w.words[name]


def word_kind(w: Weights, backward: bool) -> str:
    """Return what words are: gradients need the range of a float32, which float16 has not."""
    return "float16" if w.fields["precision"] == "float16" and not backward else "bfloat16"


def lacks_of(cell: str) -> str:
    """Return what kernels that hold the recurrent weights lack for a cell, or nothing."""
    return drivers_of(cell)["persistent"]


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
    scalars: tuple[float, ...] = (),
) -> Weights:
    """Pack weights, of which the biases may be None; see `named_weights` for their order."""
    precision, split = (
        ("exact", cell != "rnn_relu") if precision == "split" else (precision, False)
    )  # split words need |h| <= 65504, which a ReLU does not bound
    xp, given = device.xp, named_weights(cell, weights)
    (columns, products, _), dtype = columns_of(cell), given["weight_ih"].dtype
    inputs, output = given["weight_ih"].shape[1], given["weight_hh"].shape[1]
    hidden = given["weight_hh"].shape[0] // facts_of(cell)["gates"]
    word = dtype if precision == "exact" else np.uint16
    checks = _check_range(given) if precision == "float16" else []
    matrices = matrices_of(cell, inputs, hidden, output)
    capacity = 0
    if not lacks_of(cell):
        capacity = register_capacity_for(products[1:], hidden, word_bytes(dtype, precision))
    loop = _core.loop_bytes(_device.number_of(cell), precision, capacity, split)
    # Weights as fragments, which products of 2-byte words read.
    streams, streams_back = _core.stream_bytes(_device.number_of(cell), hidden)
    if word is not np.uint16:
        streams, streams_back = [0] * len(products), 0
    fields: WeightFields = {
        "precision": precision,
        "input": inputs,
        "hidden": hidden,
        "output": output,
        "panels": [xp.empty((d, units, n), word) if n else None for d, units, n in matrices],
        "transposed": [
            xp.empty((units, n, d), word) if n and backward else None for d, units, n in matrices
        ],
        "bias": xp.empty((hidden, columns), dtype),
        "units": _unit_rows(device, cell, given, hidden),
        "scalars": scalars,
        "stream_panels": [xp.empty(n, np.uint8) if n else None for n in streams],
        "stream_transposed": xp.empty(streams_back, np.uint8)
        if streams_back and backward
        else None,
        "loop_panels": xp.empty(loop[0], np.uint8) if loop[0] else None,
        "loop_transposed": xp.empty(loop[1], np.uint8) if loop[1] and backward else None,
    }
    values: PackFields = {
        "weight_ih": given["weight_ih"],
        "weight_hh": given["weight_hh"],
        "bias_ih": given["bias_ih"],
        "bias_hh": given["bias_hh"],
        "weight_hr": given["weight_hr"],
        "weights": fields,
        "loop": capacity,
        "loop_split": split and capacity > 0,
    }
    device.launch("pack", cell, dtype, values)
    return Weights(device, cell, dtype, reverse, fields, split, checks=checks)


def partition_of(
    w: Weights, planned: GpuPlan, backward: bool, has_upstream: bool = False
) -> Partition:
    """Return how the blocks of a "persistent" kernel divide these weights."""
    columns, products, _ = columns_of(w.cell)
    of = [columns] if planned.layer_pipelined else products[1:]
    return Partition.of(
        of, w.hidden, planned.units, planned.peers, w.word_bytes, backward, has_upstream
    )


def packed_sizes(
    w: Weights, planned: GpuPlan, backward: bool, has_upstream: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return, by phase, the bytes of the weights that blocks keep and the number of their scales.

    They are those of a "persistent" or a "cluster" kernel; of others there are none.
    """
    if planned.cluster:
        columns = columns_of(w.cell)[1][1]
        kernel = ClusterKernel.of(columns, planned.cluster, w.word_bytes, backward)
        return (kernel.weight_bytes,), (kernel.scale_count,)
    if not planned.units:
        return (), ()
    partition = partition_of(w, planned, backward, has_upstream)
    return partition.weight_bytes, partition.scale_counts


NOT_SHARED: SharedFields = {
    "panels": [],
    "scales": [],
    "transposed": [],
    "transposed_scales": [],
}


def partitioned(
    w: Weights, planned: GpuPlan, backward: bool, upstream: Weights | None = None
) -> SharedFields:
    """Return the recurrent weights as the blocks of "persistent" and "cluster" kernels load them.

    They are made when first asked for. ``upstream`` is the layer that this one follows in the same
    launches: its words are multiplied by the weights of the input between the two.
    """
    if not (planned.units or planned.cluster):
        return NOT_SHARED
    key = (
        planned.units,
        planned.peers,
        planned.layer_pipelined,
        planned.cluster,
        backward,
        upstream is not None,
    )
    if key not in w.shared:
        xp, sizes = w.device.xp, packed_sizes(w, planned, backward, upstream is not None)
        weights = [xp.empty(size, np.uint8) for size in sizes[0]]
        scales = [xp.empty(n, np.float32) if n else None for n in sizes[1]]
        shared: SharedFields = {
            "panels": [] if backward else weights,
            "scales": [] if backward else scales,
            "transposed": weights if backward else [],
            "transposed_scales": scales if backward else [],
        }
        values: PackSharedFields = {
            "weights": w.fields,
            "shared": shared,
            "plan": {**plan_fields(planned), "groups": 1, "span": 1},
            "upstream": upstream is not None,
            "transposed_upstream": upstream.fields["transposed"][0] if upstream else None,
        }
        w.device.launch("pack_shared", w.cell, w.dtype, values)
        w.shared[key] = shared
    return w.shared[key]


def exchange_bytes(w: Weights, planned: GpuPlan, backward: bool) -> int:
    """Return the bytes of the exchange buffer of a launch; of clusters it is the status alone."""
    if planned.cluster:
        return _core.status_bytes()
    if not planned.units:
        return 0
    return _core.exchange_bytes(
        partition_of(w, planned, backward).step_bytes,
        planned.span,
        planned.groups,
        planned.co_launched,
    )


def plan_fields(planned: GpuPlan) -> PlanFields:
    """Return a plan as the kernels take it."""
    return {
        "loop": planned.register_capacity,
        "loop_split": planned.loop_split and planned.register_capacity > 0,
        "rows": planned.rows,
        "units": planned.units,
        "peers": planned.peers,
        "groups": planned.groups,
        "span": planned.span,
        "co_launched": planned.co_launched,
        "layer_pipelined": planned.layer_pipelined,
        "cluster": planned.cluster,
    }


NO_PLAN: PlanFields = {
    "loop": 0,
    "loop_split": False,
    "rows": 0,
    "units": 0,
    "peers": 1,
    "groups": 0,
    "span": 0,
    "co_launched": 1,
    "layer_pipelined": False,
    "cluster": 0,
}


def pass_fields(
    layers: list[LayerFields],
    weights: list[Weights],
    planned: GpuPlan,
    backward: bool,
    sizes: tuple[int, int],
) -> PassFields:
    """Return a pass by a plan, with the buffers of kernels that exchange words.

    Its layers get the weights that the plan divides among blocks.
    """
    w = weights[0]
    for k, (layer, own) in enumerate(zip(layers, weights)):
        upstream = w if k > 0 and planned.layer_pipelined else None
        layer["shared"] = partitioned(own, planned, backward, upstream)
    exchange = carry = None
    if planned.units or planned.cluster:
        exchange = w.device.xp.empty(exchange_bytes(w, planned, backward) // 4, np.uint32)
    if planned.units and not backward and planned.span < sizes[0]:
        shape = (planned.co_launched, facts_of(w.cell)["states"], sizes[1], w.hidden)
        carry = w.device.xp.empty(shape, w.dtype)
    return {
        "layers": layers,
        "gradients": [],
        "plan": plan_fields(planned),
        "exchange": exchange,
        "carry": carry,
        "host_status": int(w.device.host_status.ctypes.data),
        "spin_limit": 0,
        "chunks": planned.chunks,
        # With those that clear the exchange buffer, or the status, and look at the status.
        "launches": planned.launches * (2 if planned.units else 3 if planned.cluster else 1),
    }


def _single(layer: LayerFields, gradients: list[GradientFields], launches: int) -> PassFields:
    """Return a pass over one layer without a plan."""
    return {
        "layers": [layer],
        "gradients": gradients,
        "plan": NO_PLAN,
        "exchange": None,
        "carry": None,
        "host_status": 0,
        "spin_limit": 0,
        "chunks": 1,
        "launches": launches,
    }


def _unit_rows(device: Device, cell: str, given: dict[str, Any], hidden: int) -> Any:
    """Return the weights of one number a unit, one after the other, or None without any.

    Those that are not given are zeros.
    """
    count = device_facts(cell).unit_rows
    if not count:
        return None
    out, first = device.xp.zeros((count, hidden), given["weight_ih"].dtype), 0
    for name, rows, _ in UNIT_WEIGHTS[cell]:
        if given[name] is not None:
            out[first : first + rows] = given[name].reshape(rows, hidden)
        first += rows
    return out


def _check_range(given: dict[str, Any]) -> list[_deferred.Check]:
    """Refuse weights beyond 65504, the range of float16; return the checks that are gathered.

    Outside of a loop that gathers checks this waits for the device.
    """
    checks = []
    for name in ("weight_ih", "weight_hh", "weight_hr"):
        w = given[name]
        if w is None:
            continue
        device = _device.of(w)
        top = (np if device is None else device.xp).abs(w).max()

        def error(name: str = name, top: Any = top) -> ValueError:
            return ValueError(
                f"{name}: expected weights within the range of float16, {FLOAT16_MAX:g}, got "
                f"{float(top):.3g}"
            )

        checks += _deferred.refuse((top > FLOAT16_MAX) & (top < np.inf), error)
    return checks


@dataclass
class Forward:
    """One layer and direction to run.

    Outputs go to ``y``, the last states to ``end``; ``predecessors`` is the `times_table`.
    """

    w: Weights
    x: Rows
    y: Rows
    state: tuple[Any, Any]
    end: tuple[Any, Any]
    predecessors: Any = None
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
    layers = []
    for k, call in enumerate(calls):
        _deferred.refuse_again(call.w.checks)
        above = planned.layer_pipelined and k > 0
        layer = _layer_fields(call, sizes, lengths, above, train, train and not states_only)
        if planned.library and not above:
            layer["px"] = _library_product(call.w, call.x, layer, words_of(call.w, planned))
        layers.append(layer)
    w = calls[0].w
    if sizes[1]:
        values = pass_fields(layers, [c.w for c in calls], planned, False, sizes)
        w.device.launch("forward", w.cell, w.dtype, values)
    if not train:
        return []
    for layer in layers:  # no later pass reads these
        layer["gx"] = layer["px"] = layer["emitted"] = layer["saved_scratch"] = None
        layer["normed_scratch"], layer["shared"] = [], NOT_SHARED
        if states_only:
            layer["moments"] = None
    return [SavedPass(c.w, layer, sizes, c.x) for c, layer in zip(calls, layers)]


def _layer_fields(
    call: Forward, sizes: tuple[int, int], lengths: Any, above: bool, train: bool, saving: bool
) -> LayerFields:
    w = call.w
    shapes = forward_shapes(
        w.cell, w.hidden, sizes, train=train, saving=saving, projected=not above
    )
    made = {name: w.device.xp.empty(shape, w.dtype) for name, shape in shapes.items()}
    by_product = range(len(device_facts(w.cell).normed))
    return {
        "weights": w.fields,
        "shared": NOT_SHARED,
        "steps": sizes[0],
        "batch": sizes[1],
        "reverse": w.reverse,
        "lengths": lengths,
        "predecessors": call.predecessors,
        "x": call.x.fields(),
        "px": None,
        "y": call.y.fields(),
        "h0": call.state[0],
        "c0": call.state[1],
        "restart_h": call.restart[0],
        "restart_c": call.restart[1],
        "gx": made.get("gx"),
        "saved": made.get("saved"),
        "cells": made.get("cells"),
        "emitted": made.get("emitted"),
        "state": made.get("state"),
        "saved_scratch": made.get("saved_scratch"),
        "normed": [made.get(f"normed{q}") for q in by_product],
        "normed_scratch": [made.get(f"normed_scratch{q}") for q in by_product],
        "moments": made.get("moments"),
        "hn": call.end[0],
        "cn": call.end[1],
    }


class _Working:
    """Working arrays of some shapes, of which those in a store are used again."""

    def __init__(self, w: Weights, shapes: Shapes, held: dict[Any, Any]) -> None:
        self.w, self.shapes, self.held = w, shapes, held

    def __call__(self, name: str) -> Any:
        """Return an array by its name, None if there is none."""
        shape = self.shapes.get(name)
        if shape is None:
            return None
        key = (name, shape)
        if key not in self.held:
            self.held[key] = self.w.device.xp.empty(shape, self.w.dtype)
        return self.held[key]

    def by_matrix(self, name: str) -> list[Any]:
        """Return the arrays of all matrices."""
        return [self(f"{name}{q}") for q in range(len(self.w.matrices))]


def _recompute(kept: SavedPass, held: dict[Any, Any], library: bool, words: int) -> LayerFields:
    """Return a pass that saved the states only with what the cell saves, recomputed."""
    w = kept.weights
    shapes = forward_shapes(w.cell, w.hidden, kept.shape, train=True, saving=True)
    if len(columns_of(w.cell)[1]) > 2:  # all steps at once: what each of them emits
        shapes["emitted"] = (*kept.shape, w.hidden)
    work = _Working(w, shapes, held)
    layer: LayerFields = {
        **kept.layer,
        "saved": work("saved"),
        "emitted": work("emitted"),
        "normed": [work(f"normed{q}") for q in range(len(device_facts(w.cell).normed))],
        "moments": work("moments"),
        "gx": w.device.xp.empty(shapes["gx"], w.dtype),
    }
    if library:
        layer["px"] = _library_product(w, kept.x, layer, words)
    launches = len(columns_of(w.cell)[1])
    w.device.launch("recompute", w.cell, w.dtype, _single(layer, [], launches))
    return {**layer, "gx": None, "px": None}


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
    held = scratch or [{}, {}]
    layers, gradients, working = [], [], []
    for call, arrays in zip(calls, held):
        layer, gradient, work = _backward_fields(
            call,
            planned.chunks if library else 0,
            words_of(call.kept.weights, planned),
            clip_norm > 0,
            slice_word(call.kept.weights, planned),
            arrays,
        )
        gradient["clip_value"], gradient["clip_norm"] = float(clip_value), float(clip_norm)
        gradient["cuts"], gradient["library"] = cuts, library
        layers.append(layer)
        gradients.append(gradient)
        working.append(work)
    values = pass_fields(layers, [c.kept.weights for c in calls], planned, True, sizes)
    values["gradients"] = gradients
    parts, chunks = _core.gradient_parts(*sizes), planned.chunks
    borders = [parts * k // chunks for k in range(chunks + 1)]
    if chunks > 1:
        values["launches"] = 0  # not recorded: that would be too many graphs of few launches
    with w.device.side_stream() if chunks > 1 else _device.SerialStreams() as side:
        for k in reversed(range(chunks)):
            for gradient in gradients:
                gradient["first_part"], gradient["last_part"] = borders[k], borders[k + 1]
            steps = sizes[0] * borders[k] // parts, sizes[0] * borders[k + 1] // parts
            if chunks > 1:
                with side.on_side():
                    w.device.launch("through_time", w.cell, w.dtype, values)
                side.join()
                w.device.launch("products", w.cell, w.dtype, values)
            else:
                w.device.launch("backward", w.cell, w.dtype, values)
            for some in zip(calls, layers, gradients, working) if library else []:
                _library_gradients(*some, planned, k, steps)


def _backward_fields(
    call: Backward, library: int, words: int, norms: bool, sliced: int, held: dict[Any, Any]
) -> tuple[LayerFields, GradientFields, _Working]:
    """Return what the kernels of a backward pass take, and its working arrays.

    ``library``: the number of chunks for each of which the array library computes the products of
    the weights; 0: our own kernels compute them. ``words``: see `words_of`; ``sliced``: see
    `slice_word`.
    """
    kept, w = call.kept, call.kept.weights
    grads = named_weights(w.cell, call.grads)
    matrices = ("weight_ih", "weight_hh", "weight_hr")
    inputs, recurrent, projection = (grads[name] is not None for name in matrices)
    shapes = backward_shapes(
        w.cell,
        w.input,
        w.hidden,
        w.output,
        kept.shape,
        library=library,
        norms=norms,
        flow=call.flow is not None,
        wanted=(inputs, recurrent, projection),
        words=words,
        sliced=sliced,
    )
    work = _Working(w, shapes, held)
    recomputed = facts_of(w.cell)["saved"] > 0 and kept.layer["saved"] is None
    layer = _recompute(kept, held, library > 0, words) if recomputed else {**kept.layer}
    layer["emitted"] = work("emitted")
    gradient: GradientFields = {
        "dy": call.dy.fields() if call.dy else None,
        "dx": call.dx.fields() if call.dx else None,
        "dcells": call.dcells.fields() if call.dcells else None,
        "dx_add": call.dx_add,
        "dhn": call.dend[0],
        "dcn": call.dend[1],
        "dh0": call.dstate[0],
        "dc0": call.dstate[1],
        "dh": work("dh"),
        "dc": work("dc"),
        "demitted": work("demitted"),
        "slices": work("slices"),
        "da": work.by_matrix("da"),
        "dproducts": work.by_matrix("dproducts"),
        "sums": work.by_matrix("sums"),
        "bias_sums": work.by_matrix("bias_sums"),
        "operands": work.by_matrix("operands"),
        "dparams": work("dparams"),
        "param_sums": work("param_sums"),
        "restarts": work("restarts"),
        "scales": work("scales"),
        "squares": work("squares"),
        "flow": call.flow,
        "cuts": None,
        "clip_value": 0.0,
        "clip_norm": 0.0,
        "library": False,
        "first_part": 0,
        "last_part": _core.gradient_parts(*kept.shape),
        "gradients": [grads[name] for name in (*WEIGHTS, "weight_hr")],
        "unit_gradients": [grads[name] for name, *_ in UNIT_WEIGHTS[w.cell]],
        "drestart_h": call.drestart[0],
        "drestart_c": call.drestart[1],
    }
    return layer, gradient, work


def _library_product(w: Weights, x: Rows, layer: LayerFields, words: int) -> RowsFields | None:
    """Compute W x of all rows by the array library, in place where it has the layout of gx.

    ``words``: see `words_of`.
    """
    gx = layer["gx"]
    xp, (steps, batch) = w.device.xp, gx.shape[:2]
    if not gx.size or x.total > steps * batch:
        return None  # a segment is a part of the flat rows, and the product would cover all
    a = x.array(w, steps, batch)
    width = w.fields["panels"][0].size // w.input
    rows = a.size // w.input
    in_place = x.starts is None and not x.batch_first and gx.size == rows * width
    out = gx.reshape(rows, width) if in_place else xp.empty((rows, width), w.dtype)
    matrix = a.reshape(rows, w.input)
    if words:
        room = xp.empty(_words.floats_of(matrix.size, words > 1), np.float32)
        inputs = _words.operand(xp, matrix, word_kind(w, False), room, words > 1)
        _words.multiply(xp, inputs, words_of_weights(w, False), out)
    else:
        xp.matmul(matrix, w.fields["panels"][0].reshape(w.input, -1), out=out)
    product = out.reshape(*a.shape[:-1], width)
    strides = [s // product.itemsize for s in product.strides]
    if x.starts is not None:
        px = Rows(product, strides[0], 0, x.starts, x.ends)
    else:
        px = Rows(product, *(strides[1::-1] if x.batch_first else strides[:2]))
    return px.fields()


class _Products:
    """The products of a chunk of a backward pass by the array library.

    Gradients are rounded to words once for all products that take them.
    """

    def __init__(
        self, w: Weights, gradient: GradientFields, work: _Working, words: int, rows: slice
    ) -> None:
        self.w, self.gradient, self.work, self.words, self.rows = w, gradient, work, words, rows
        self._held: tuple[int, int, int] | None = (
            None  # of which gradients and rows there are words
        )

    def _gradients(self, q: int, rows: slice) -> Any:
        """Return the gradients of what matrix q made, ``[rows,H*columns]``, as words if any."""
        own, source = self.gradient["dproducts"][q], -1 - q
        if own is None:
            source = 0 if q == 1 and columns_of(self.w.cell)[2] else q
            own = self.gradient["da"][source]
        d = own.reshape(own.shape[0] * own.shape[1], -1)[rows]
        if not self.words:
            return d
        wanted = (source, rows.start, rows.stop)
        if self._held != wanted:
            self._held = wanted
            self._words = self._operand(d, "words_of_gradients")
        return self._words

    def _operand(self, a: Any, room: str) -> _words.Operand:
        return _words.operand(self.w.device.xp, a, "bfloat16", self.work(room), self.words > 1)

    def weights(self, q: int, sums: Any) -> None:
        """Write the gradient of matrix q, ``[depth,H*columns]``."""
        xp, operands = self.w.device.xp, self.gradient["operands"][q]
        a, d = operands.reshape(-1, operands.shape[2])[self.rows], self._gradients(q, self.rows)
        if self.words:
            inputs = self._operand(a, "words_of_operands")
            _words.multiply(xp, inputs, d, sums, transposed=True)
        else:
            xp.matmul(a.T, d, out=sums)

    def inputs(self, rows: slice) -> Any:
        """Return the gradient of the inputs of some rows, ``[rows,I]``."""
        xp, w = self.w.device.xp, self.w
        d, out = self._gradients(0, rows), xp.empty((rows.stop - rows.start, w.input), w.dtype)
        if self.words:
            _words.multiply(xp, d, words_of_weights(w, True), out)
        else:
            xp.matmul(d, w.fields["transposed"][0].reshape(-1, w.input), out=out)
        return out


def _library_gradients(
    call: Backward,
    layer: LayerFields,
    gradient: GradientFields,
    work: _Working,
    planned: GpuPlan,
    chunk: int,
    steps: tuple[int, int],
) -> None:
    """Compute dx and the gradients of the weights of one chunk by the array library.

    Chunks come from the last one to chunk 0.
    """
    w, (all_steps, batch), last = call.kept.weights, call.kept.shape, chunk == 0

    def rows_of(some: tuple[int, int]) -> slice:
        times = (all_steps - some[1], all_steps - some[0]) if w.reverse else some
        return slice(times[0] * batch, times[1] * batch)

    rows, words = rows_of(steps), words_of(w, planned)
    products = _Products(w, gradient, work, words, rows)
    # Those of the input come last, so that dx finds the words of its gradients.
    for q, operands in reversed(list(enumerate(gradient["operands"]))):
        if operands is not None:
            products.weights(q, gradient["sums"][q][chunk].reshape(operands.shape[2], -1))
    if last:
        values = _single(layer, [gradient], len(w.matrices))
        values["chunks"] = planned.chunks
        w.device.launch("add", w.cell, w.dtype, values)
    to_both = (
        planned.co_launched > 1 and not planned.layer_pipelined
    )  # both directions: one adds to what the other one wrote
    if call.dx is None or (to_both and not last):
        return
    every = chunks_of(all_steps, batch, planned.chunks)
    for some in map(rows_of, every) if to_both else [rows]:
        copy: CopyRowsFields = {
            "from": products.inputs(some),
            "to": call.dx.fields(),
            "steps": (some.stop - some.start) // batch,
            "batch": batch,
            "width": w.input,
            "first": some.start // batch,
            "add": call.dx_add,
        }
        w.device.launch("copy_rows", None, w.dtype, copy)
