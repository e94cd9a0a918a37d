"""The backend of a device: what a stack of layers (csrc/stack.h) asks of one.

It allocates arrays and launches kernels. The order of layers and directions, dropout between them,
states, tape and checks are the stack's, which is the same for all devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _core, _device, _launch
from ._abi import DropFields, TimesFields
from ._buffers import (
    BY_STEP,
    backward_shapes,
    columns_of,
    elements_of,
    forward_shapes,
    tape_shapes,
)
from ._device import Device
from ._launch import (
    Backward,
    Forward,
    Rows,
    SavedPass,
    Weights,
    exchange_bytes,
    plan_of,
    slice_word,
    words_of,
)
from ._plan import GpuPlan
from ._ragged import sequence_of, step_of
from ._words import floats_of

SKIPPED = -3  # in the table of times: the row takes no part


def times_table(device: Device, values: TimesFields) -> Any:
    """Return the table of resets and masks, int32 ``[T+1,B]``; ``values`` gets it as well."""
    table = device.xp.empty((values["steps"] + 1, values["batch"]), np.int32)
    values["predecessors"] = table
    if values["batch"]:
        device.launch("times", None, np.float32, values)
    return table


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


class Times(NamedTuple):
    """Tables of one call, on the device.

    Attributes:
        shape: ``(T, B)``.
        lengths: ``[B]``, or None.
        tables: the table of resets and masks for the direction from the start and for that from
            the end; None where there is none.
        x_rows: begins and ends of the sequences in flat inputs, or None.
        y_rows: those in flat outputs.
        sequences: begins in flat inputs and lengths, on the host, or two None.
    """

    shape: tuple[int, int]
    lengths: Any
    tables: tuple[Any, Any]
    x_rows: tuple[Any, Any] | None
    y_rows: tuple[Any, Any] | None
    sequences: tuple[Any, Any]


class Backend:
    """Hold the weights of a stack on a device, and launch its kernels.

    Args:
        device: where the weights are.
        cell: the name of the cell.
        directions: 1 or 2.
        reverse: whether the first direction runs from the end.
        precision: as the kernels know it.
        backward: whether the weights are packed for training as well.
        dtype: of the weights.
    """

    rows = staticmethod(Rows)
    backward_call = staticmethod(Backward)

    def __init__(
        self,
        device: Device,
        cell: str,
        directions: int,
        reverse: bool,
        precision: str,
        backward: bool,
        dtype: Any,
    ) -> None:
        self.device, self.cell, self.precision, self.dtype = device, cell, precision, dtype
        self._directions, self._reverse, self._training = directions, reverse, backward
        self.parts: list[Weights] = []  # [layer * D + direction]

    def pack(self, weights: list[list[Any]], scalars: tuple[float, ...]) -> None:
        """Pack the weights of all layers and directions; ``scalars`` are those of the cell."""
        with self.device.here():
            self.parts = [
                _launch.pack(
                    self.device,
                    self.cell,
                    given,
                    reverse=self._reverse or k % self._directions == 1,
                    backward=self._training,
                    precision=self.precision,
                    scalars=scalars,
                )
                for k, given in enumerate(weights)
            ]

    def can_pipeline(self, layer: int, next_one: int, steps: int, batch: int) -> bool:
        """Return whether two neighbouring layers may run in the same launches, one a step behind.

        ``next_one`` is 1 for the layer above (forward) and -1 for the one below (backward). It
        holds only if nothing happens between the two.
        """
        if self._directions > 1 or not 0 <= layer + next_one < len(self.parts):
            return False
        if not steps * batch:
            return False
        return plan_of(
            self.parts[layer], steps, batch, next_one < 0, co_launched=2, layer_pipelined=True
        ).layer_pipelined

    def groups(
        self, steps: int, batch: int, backward: bool, steady: bool, by_step: bool = False
    ) -> list[tuple[int, int, GpuPlan]]:
        """Return first layer, number of layers and plan of what runs together, by layers.

        Args:
            steps: T.
            batch: B.
            backward: whether it is the backward pass, which pairs layers from the top.
            steady: whether nothing happens between the layers or to a state: no dropout, no resets,
                masks or cuts.
            by_step: whether the norm of every step's gradient is asked for.
        """
        layers, both = len(self.parts) // self._directions, self._directions
        out, step = [], -1 if backward else 1
        layer = layers - 1 if backward else 0
        while 0 <= layer < layers:
            pipelined = steady and self.can_pipeline(layer, step, steps, batch)
            planned = plan_of(
                self.parts[layer * both],
                steps,
                batch,
                backward,
                by_step,
                co_launched=2 if pipelined else both,
                layer_pipelined=pipelined,
            )
            out.append((min(layer, layer + step * pipelined), 1 + pipelined, planned))
            layer += step * (1 + pipelined)
        return sorted(out, key=lambda group: group[0])

    def times(
        self,
        steps: int,
        batch: int,
        lengths: Any,
        starts: Any,
        x_rows: tuple[Any, Any],
        y_rows: tuple[Any, Any],
        resets: Any,
        mask: Any,
        repeat: bool,
        held: Any,
        resets_after: Any,
        restarted: Any,
    ) -> Times:
        """Return the tables of a call; flags of ragged sequences are flat."""
        device = self.device
        with device.here():
            if starts is not None:
                resets, mask = (
                    flags_by_step(device, a, starts, lengths, steps) for a in (resets, mask)
                )
            tables: list[Any] = [None, None]
            ends = device.put(lengths)
            if resets is not None or mask is not None or resets_after is not None:
                for from_end in {w.reverse for w in self.parts}:
                    given: TimesFields = {
                        "steps": steps,
                        "batch": batch,
                        "lengths": ends,
                        "resets": device.put(resets),
                        "mask": device.put(mask),
                        "held": device.put(held),
                        "restarted": device.put(restarted),
                        "resets_after": device.put(resets_after),
                        "predecessors": None,
                        "repeat": repeat,
                        "from_end": from_end,
                    }
                    tables[from_end] = times_table(device, given)
            flat = [
                None if starts is None else (device.put(first), device.put(last))
                for first, last in (x_rows, y_rows)
            ]
        sequences = (None, None) if starts is None else (starts, lengths)
        return Times((steps, batch), ends, (tables[0], tables[1]), flat[0], flat[1], sequences)

    def cuts(self, cuts: Any, times: Times) -> Any:
        """Return the flags of cut gradients as bytes ``[T,B]`` on the device."""
        starts, lengths = times.sequences
        if starts is None:
            return self.device.put(cuts)
        with self.device.here():
            return flags_by_step(self.device, cuts, starts, lengths, times.shape[0])

    def forward_call(self, part: int, *rest: Any) -> Forward:
        """Return the call of one layer and direction, by its number."""
        return Forward(self.parts[part], *rest)

    def forward(
        self,
        calls: list[Forward],
        sizes: tuple[int, int],
        planned: GpuPlan,
        lengths: Any,
        train: bool,
        states_only: bool,
    ) -> list[SavedPass]:
        """Launch a group; return what the passes saved, or an empty list in inference."""
        passes = []
        with self.device.here():
            for some in _launched(calls, planned):
                passes += _launch.forward(
                    some, sizes, planned, lengths=lengths, train=train, states_only=states_only
                )
        return passes

    def scratch(self) -> list[dict[Any, Any]]:
        """Return an empty store of working arrays for one backward pass over the stack."""
        return [{}, {}]

    def backward(
        self,
        calls: list[Backward],
        planned: GpuPlan,
        clip_value: float,
        clip_norm: float,
        cuts: Any,
        scratch: list[dict[Any, Any]],
    ) -> None:
        """Launch the backward passes of a group."""
        control = {"clip_value": clip_value, "clip_norm": clip_norm, "cuts": cuts}
        with self.device.here():
            for some in _launched(calls, planned):
                _launch.backward(some, planned, scratch=scratch, **control)

    def drop(
        self,
        rows: int | None,
        to: int | None,
        sizes: tuple[int, int],
        layer: int,
        rate: float,
        key: int,
        first_step: int,
    ) -> None:
        """Apply dropout to the outputs ``[T,B,D*H]`` of a layer."""
        steps, batch = sizes
        if not steps * batch:
            return
        values: DropFields = {
            "from": rows,
            "to": to,
            "steps": steps,
            "batch": batch,
            "hidden": self.parts[0].output,
            "directions": self._directions,
            "layer": layer,
            "first_step": first_step,
            "rate": rate,
            "key": key,
        }
        self.device.launch("drop", None, self.dtype, values)

    def sum_rows(self, norms: Any) -> Any:
        """Return the sums over the rows of squared norms ``[L*D,T,states,B]``."""
        with self.device.here():
            return norms.sum(3)

    def active(self, times: Times) -> Any:
        """Return ``[T,B]``, True where the rows take part."""
        (steps, batch), xp = times.shape, self.device.xp
        table = times.tables[1] if times.tables[0] is None else times.tables[0]
        with self.device.here():
            if table is not None:
                on = table[:steps] > SKIPPED
            elif times.lengths is not None:
                on = xp.arange(steps)[:, None] < times.lengths
            else:
                on = xp.ones((steps, batch), bool)
        return on

    def _rows(self, parts: list[Any], times: Times, batch_first: bool) -> Any:
        """Stack ``[T,B,N]`` of all parts to ``[L*D,T,B,N]``, or ``[L*D,B,T,N]``.

        It is zero where a row takes no part.
        """
        xp = self.device.xp
        on = self.active(times)
        with self.device.here():
            out = xp.stack(parts)
            out = xp.where(on[..., None], out, out.dtype.type(0))
            return xp.ascontiguousarray(out.swapaxes(1, 2) if batch_first else out)

    def cells(self, passes: list[SavedPass], times: Times, batch_first: bool) -> Any:
        """Return c after every step."""
        return self._rows([p.layer["cells"] for p in passes], times, batch_first)

    def saved(self, passes: list[SavedPass], times: Times, batch_first: bool, number: int) -> Any:
        """Return one of the values that the cell saves, such as a gate."""
        parts = [p.layer["saved"][:, :, number] for p in passes]
        return self._rows(parts, times, batch_first)

    def hidden(self, passes: list[SavedPass], times: Times, batch_first: bool, y: Any) -> Any:
        """Return h after every step; those of the last layer are in the outputs."""
        width, below = self.parts[0].output, len(passes) - self._directions
        size = self.dtype.itemsize
        parts = []
        for k, p in enumerate(passes):
            if k < below:
                y_below = p.layer["y"]
                strides = (y_below["t"] * size, y_below["b"] * size, size)
                shape = (*times.shape, width)
                parts.append(self.device.view(y_below["data"], shape, strides, self.dtype))
            else:
                first = (k - below) * width
                parts.append(self._top(y[..., first : first + width], times, batch_first))
        return self._rows(parts, times, batch_first)

    def _top(self, y: Any, times: Times, batch_first: bool) -> Any:
        """Return outputs of the last layer, time-major and padded."""
        if times.y_rows is None:
            return y.swapaxes(0, 1) if batch_first else y
        out = self.device.zeros((*times.shape, y.shape[-1]), y.dtype)
        for b, (start, end) in enumerate(zip(*map(_device.host, times.y_rows))):
            out[: int(end - start), b] = y[int(start) : int(end)]
        return out


def _launched(calls: list[Any], planned: GpuPlan) -> list[list[Any]]:
    """Return the calls of a group by launches."""
    return [calls] if planned.co_launched == len(calls) else [[call] for call in calls]


def plans_of(
    backend: Backend, steps: int, batch: int, backward: bool, dropout: bool = False
) -> list[tuple[str, Weights, GpuPlan]]:
    """Return the plans of a call without resets, masks or norms, in the order in which they run.

    Each has a name for the layers and directions that it covers, and the weights that it was made
    for.
    """
    both, out = backend._directions, []
    groups = backend.groups(steps, batch, backward, not dropout)
    for layer, layers, planned in reversed(groups) if backward else groups:
        last = layer + layers - 1
        run = [last, layer] if backward else [layer, last]
        if layers > 1:
            name = f"layers {run[0]} and {run[1]}"
        elif both == 1:
            name = f"layer {layer}"
        else:
            name = (
                f"layer {layer}, {'a direction' if planned.co_launched < 2 else 'both directions'}"
            )
        out.append((name, backend.parts[run[0] * both], planned))
    return out


def bytes_of(
    backend: Backend, steps: int, batch: int, training: bool, dropout: bool = False
) -> tuple[int, int]:
    """Return the bytes of the tape and the peak workspace bytes, outputs excluded."""
    both, parts, sizes = backend._directions, backend.parts, (steps, batch)
    h, item, layers = parts[0].hidden, backend.dtype.itemsize, len(parts) // both
    columns, products, _ = columns_of(backend.cell)
    rows = steps * batch
    width = rows * both * parts[0].output * item  # the bytes of the outputs of a layer
    shapes = forward_shapes(backend.cell, h, sizes, train=training, saving=training)
    tape = elements_of(tape_shapes(shapes)) if training else 0
    between = (layers - 1) * width  # outputs below the last layer, which training keeps
    library = plan_of(parts[0], *sizes).library
    spread = rows * h * products[0] * item if library and products[0] < columns else 0
    plans = [plans_of(backend, *sizes, back, dropout) for back in (False, True)[: 1 + training]]
    exchanges = [
        max(exchange_bytes(w, p, back) for _, w, p in of) for of, back in zip(plans, (False, True))
    ]
    # Co-launched problems have working arrays of their own. A layer with an upstream layer has no
    # projected input.
    projected = max(1 if p.layer_pipelined else p.co_launched for _, _, p in plans[0])
    by_step = elements_of(shapes[name] for name in BY_STEP if name in shapes)
    forward = exchanges[0] + spread + by_step * item * projected
    words = max(words_of(w, p) for _, w, p in plans[0])
    if words:  # of the inputs of one problem
        forward += floats_of(rows * max(w.input for w in parts), words > 1) * item
    forward += between if training else min(between, 2 * width)
    if not training:
        return 0, forward
    chunks = {
        (p.chunks if library else 0, words_of(w, p), slice_word(w, p)) for _, w, p in plans[1]
    }
    # Working arrays are used again from layer to layer, by their shapes.
    held = {
        (name, shape)
        for w in parts
        for n, words, sliced in chunks
        for name, shape in backward_shapes(
            w.cell, w.input, h, w.output, sizes, library=n, words=words, sliced=sliced
        ).items()
    }
    backward = elements_of(shape for _, shape in held) * item
    if library:  # dx before it is copied
        backward += rows * max(w.input for w in parts) * item
    backward = backward * max(p.co_launched for _, _, p in plans[1]) + exchanges[1]
    backward += min(layers - 1, 2) * width  # gradients between layers
    return len(parts) * tape * item, max(forward, backward + between)


def Packed(
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
    scalars: tuple[float, ...] = (),
    proj_size: int = 0,
) -> Any:
    """Return the packed weights of a stack, as `_core.PackedFloat32` does for arrays of NumPy."""
    device, dtype = _device.of(weights[0][0]), weights[0][0].dtype
    assert device is not None
    directions = 2 if bidirectional else 1
    backend = Backend(device, cell, directions, reverse, precision, backward, dtype)
    native = _core.PackedFloat32 if dtype == np.float32 else _core.PackedFloat64
    return native(
        cell,
        input_size,
        hidden_size,
        num_layers,
        bidirectional,
        weights,
        backward,
        reverse=reverse,
        numbered=numbered,
        scalars=scalars,
        proj_size=proj_size,
        backend=backend,
    )
