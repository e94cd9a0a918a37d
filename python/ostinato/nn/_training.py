"""Run a stack of recurrent layers for training: the pass, and the gradients of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _ragged
from .._annotations import readable
from .._call import Call
from .._cells import saved_gates
from .._check import Array, Seed
from .._ragged import rows_like
from ._arguments import with_batch
from ._layer import Pullback
from ._outputs import TRAINING_OUTPUTS, FinalState, last_of
from ._table import TableGradients

if TYPE_CHECKING:
    from ._block import Views
    from ._stack import Recurrent


class RecurrentPullback(Pullback):
    """Compute the gradients of one pass of a recurrent layer, once, and show what happened in it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> lstm = ost.nn.LSTM(3, 5, rng=0)
    >>> (y, state), pullback = lstm.vjp(np.zeros((7, 2, 3), np.float32))
    >>> pullback.cells.shape, pullback.gates["f"].shape
    ((1, 7, 2, 5), (1, 7, 2, 5))
    >>> dx, dstate = pullback(dcells=np.ones((1, 7, 2, 5), np.float32))

    Args:
        layer: the layer of the pass.
        backward: computes the gradients.
        tape: what the native forward pass saved; None with segments.
        single: whether x came without a batch axis.
    """

    def __init__(
        self, layer: Recurrent, backward: Callable[..., Any], tape: Any, single: bool
    ) -> None:
        super().__init__(layer, backward)
        self._cell, self._tape, self._single = layer._cell, tape, single
        self._batch_axis = 1 if layer.batch_first else 2

    @property
    def cells(self) -> Array:
        """c after every step of an LSTM, ``[L*D,T,B,H]`` (``[L*D,B,T,H]`` if batch_first).

        It is zero where a row takes no part. TypeError once the pullback has been used, or after a
        pass with segments.
        """
        return self._shaped(self._known().cells())

    @property
    def gates(self) -> dict[str, Array]:
        """The gates of every step by name, each shaped as `cells` and read-only.

        i f g o of an LSTM, r z n of a GRU, none of an RNN.
        """
        return {name: self._shaped(a) for name, a in saved_gates(self._cell, self._known()).items()}

    def _known(self) -> Any:
        if self._tape is None:
            raise TypeError(
                "cells, gates: expected a pullback that has not been used, of a pass without "
                "memory_limit"
            )
        return self._tape

    def _shaped(self, a: Array) -> Array:
        return a.squeeze(self._batch_axis) if self._single else a

    def __call__(
        self, dy: Any = None, dstate: Any = None, *, dcells: Array | None = None, **options: Any
    ) -> Any:
        """Add the gradients of the parameters to the layer's, and return those of the inputs.

        Args:
            dy: gradient of y, of the kind of y; None: zeros. With segments and one direction it may
                be a function, see ``memory_limit`` of `Recurrent.vjp`.
            dstate: gradient of the last state, shaped as it is; None: zeros.
            dcells: gradient of `cells`, shaped as they are; None: zeros.
            **options: ``grads`` and ``need_dx`` of `Pullback`.

        Returns:
            ``dx, dstate``: the gradients of x (None without need_dx) and of the state before the
            first step.

        Raises:
            RuntimeError: the pullback has been used, or the parameters have changed since the pass.
            TypeError: an argument has the wrong type or dtype; the pullback can be called again.
            ValueError: an argument has the wrong shape; the pullback can be called again.
        """
        out = super().__call__(dy, dstate, dcells=dcells, **options)
        self._tape = None  # the memory goes with the pass
        return out


class _Backward:
    """The way back of one pass: what the pullback of a stack runs.

    Args:
        layer: the stack.
        call: the checked arguments of the pass.
        shape: B, T and the width of the outputs.
        control: bounds of the gradients and where they are cut, as the kernels take them.
        tape: what the pass saved, or its segments.
        segmented: whether it is segments.
        last: what stands for the outputs of all steps; None: they are those of all steps.
    """

    __slots__ = ("call", "control", "last", "layer", "segmented", "shape", "tape")

    def __init__(
        self,
        layer: Recurrent,
        call: Call,
        shape: tuple[int, int, int],
        control: dict[str, Any],
        tape: Any,
        segmented: bool,
        last: FinalState | None,
    ) -> None:
        self.layer, self.call, self.shape = layer, call, shape
        self.control, self.last = control, last
        self.tape, self.segmented = tape, segmented

    def __call__(
        self,
        grads: Views,
        dy: Any,
        dstate: Any,
        need_dx: bool,
        dcells: Array | None = None,
    ) -> tuple[Any, Any]:
        """Add to the gradients of the parameters; return those of x and of the state."""
        layer, call = self.layer, self.call
        dy = self._rows_of(dy)
        dh, dc, dcells = self._states_of(dstate, dcells)
        if self.last is not None:
            dy, dh = self.last.spread(dy, dh)
        run = self._through_segments if self.segmented else self._through_tape
        dx, dh0, dc0, *dreset = run(grads, dy, (dh, dc), need_dx, dcells)
        if layer.learned_state:
            self._add_to_learned(grads, (dh0, dc0), dreset)
        if dx is not None and call.table is None:
            dx = call.shaped(layer._without_batch(dx, call.single))
        return dx, layer._join_state(dh0, dc0, call.single)

    def _rows_of(self, dy: Any) -> Any:
        """Return dy with a batch axis, or as flat rows."""
        layer, call = self.layer, self.call
        if callable(dy) and (not self.segmented or layer._directions == 2 or call.single):
            raise TypeError(
                "dy: expected an array; a function is taken with segments, one direction and a "
                "batch axis"
            )
        if call.ragged is not None and self.last is None and not callable(dy):
            dy = rows_like("dy", dy, call.ragged, self.shape[2])
        elif dy is not None and not callable(dy):
            dy = _check.array("dy", dy)
        if call.single and dy is not None:
            dy = dy[None] if self.last is not None else with_batch(layer, "dy", dy, 2)
        return dy

    def _states_of(
        self, dstate: Any, dcells: Array | None
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return the gradients of the last states and of all c, with a batch axis."""
        if dstate is None and dcells is None:
            return None, None, None
        layer = self.layer
        dh, dc = layer._split_state("dstate", dstate)
        batch, single = self.shape[0], self.call.single
        dh = layer._checked_state("dstate", dh, batch, single=single)
        dc = layer._checked_state("dstate", dc, batch, cells=True, single=single)
        if single and dcells is not None:
            axis = 1 if layer.batch_first else 2
            dcells = np.expand_dims(_check.array("dcells", dcells), axis)
        return dh, dc, dcells

    def _through_segments(
        self,
        grads: Views,
        dy: Any,
        dend: tuple[Array | None, Array | None],
        need_dx: bool,
        dcells: Array | None,
    ) -> Any:
        """Run back through the segments, which are given what has been checked as a whole."""
        layer, call, (batch, steps, width) = self.layer, self.call, self.shape
        if dcells is not None:
            layer._check_cells(dcells, steps, batch)
        if dy is not None and not callable(dy):
            dy = _check.array("dy", dy)
        own: tuple[int, ...] = self.shape if layer.batch_first else (steps, batch, width)
        if call.ragged is not None:
            own = (len(call.ragged.rows), width)
        if _check.is_array(dy):
            if dy.shape != own:
                raise ValueError(f"dy: expected shape {own}, that of y, got {dy.shape}")
            _check.of_dtype("dy", dy, layer._dtype)
        keys, _ = grads._begin(self._added_by_kernels, [], False)
        try:
            parts = layer._parts(layer._arrays_of(grads))
            dx, dh0, dc0, *dreset = self.tape.backward(
                dy, *dend, parts, need_dx, dcells=dcells, **self.control
            )
        finally:
            grads._end(keys, False)
        if dh0 is None:  # no step at all
            dh0 = self._zeros(batch)
        if dc0 is None and layer._has_cells:
            dc0 = self._zeros(batch, cells=True)
        return dx, dh0, dc0, *dreset

    def _zeros(self, batch: int, cells: bool = False) -> Array:
        like = self.layer._block.values
        return np.zeros(self.layer._state_shape(batch, cells), like.dtype, like=like)

    def _through_tape(
        self,
        grads: Views,
        dy: Any,
        dend: tuple[Array | None, Array | None],
        need_dx: bool,
        dcells: Array | None,
    ) -> Any:
        """Run back through the tape, with the gradients of a table that was looked up."""
        layer, call, watch = self.layer, self.call, self.layer._watch
        suffixes = [] if call.table is None else layer._suffixes()[: layer._directions]
        # Gradients that are zero need not be written as such before the kernels add to them.
        keys, zero = grads._begin(self._added_by_kernels, suffixes, True)
        failed = bool(zero)
        try:
            parts, of_table = layer._parts(layer._arrays_of(grads, zero)), None
            if call.table is not None:
                weights = [layer.parameters()[f"weight_ih{suffix}"] for suffix in suffixes]
                of_table = TableGradients(call.table, weights, parts)
                parts = of_table.parts
            dx, dh0, dc0, dreset_h, dreset_c, norms = self.tape.backward(
                dy,
                *dend,
                parts,
                need_dx and of_table is None,
                **self.control,
                dcells=dcells,
                flow=watch is not None,
                overwrite=bool(zero),
            )
            failed = False
            if of_table is not None:
                dx = of_table.add(need_dx)
        finally:
            grads._end(keys, failed)
        if watch is not None:
            watch(layer, self.tape, norms)
        return dx, dh0, dc0, dreset_h, dreset_c

    def _added_by_kernels(self, looked_up: list[str]) -> list[str]:
        """Return the names of the gradients that the kernels add to.

        They are those of all weights that are trained, without ``weight_ih`` of the directions that
        look their input up.
        """
        layer = self.layer
        others = {*layer._state_names(), *(f"weight_ih{suffix}" for suffix in looked_up)}
        entry = layer._block.entry
        return [
            n for n in layer.parameters() if n not in others and entry(layer._prefix + n).trainable
        ]

    def _add_to_learned(self, grads: Views, dstart: tuple[Any, Any], dreset: list[Any]) -> None:
        """Add to the gradients of the learned states, that of a restart included."""
        states = self.layer._initial(self.layer._arrays_of(grads))
        for into, first, later in zip(states, dstart, dreset):
            for part, g in enumerate(into or ()):
                if g is not None:
                    g += (first[part].sum(0) if self.call.learned else 0) + (
                        0 if later is None else later[part]
                    )


def _control(
    layer: Recurrent, call: Call, shape: tuple[int, int, int], value: Any, norm: Any, cuts: Any
) -> dict[str, Any]:
    """Return bounds of the gradients, and where they are cut, as the kernels take them."""
    if call.single:
        cuts = with_batch(layer, "cuts", cuts, 1)
    if call.ragged is not None:
        mine = _ragged.flag_bytes("cuts", cuts, call.ragged)
    else:
        mine = _check.flags("cuts", cuts, shape[1], shape[0], layer.batch_first)
    return {
        "clip_value": _check.clipping("clip_step_value", value),
        "clip_norm": _check.clipping("clip_step_norm", norm),
        # Read by the pullback: the caller may reuse its array.
        "cuts": None if mine is None else mine.copy(),
    }


def train(
    layer: Recurrent,
    call: Call,
    clips: tuple[float | None, float | None, Array | None],
    outputs: str,
    memory_limit: str | int | None,
    rng: Seed,
) -> tuple[tuple[Any, Any], RecurrentPullback]:
    """Run a stack for training.

    Args:
        layer: the stack.
        call: its checked arguments.
        clips: clip_step_value, clip_step_norm and cuts.
        outputs: see `Recurrent.vjp`, as all further arguments.
        memory_limit: a bound on what is saved, or None.
        rng: of dropout, or None.
    """
    shape = layer._shape(call)
    control = _control(layer, call, shape, *clips)
    kind = None
    if memory_limit is not None:
        from .._memory_limit import parse  # here: most programs never need it

        kind = parse(memory_limit)[0]
    segments = kind not in (None, "states")
    if segments:  # recomputed segments read these again
        call = call.copied("lengths", "resets", "mask")
    dropout = layer.dropout if layer.num_layers > 1 else 0.0
    key = _check.draw_key(layer._rng if rng is None else _check.generator(rng)) if dropout else 0
    if not call.learned:
        call = call.with_own_states()
    _check.choice("outputs", outputs, TRAINING_OUTPUTS)
    tape: Any
    if segments:
        from .._segments import Segmented  # here: most programs never need it

        tape = Segmented(layer, call, memory_limit, outputs, dropout, key)
        y, h_n, c_n = tape.forward()
    else:
        y, h_n, c_n, tape = layer._forward(call, True, dropout, key, kind == "states")
    last = last_of(outputs, layer, call, shape, y, h_n)
    y = last.y if last is not None else None if outputs == "none" else y
    if y is not None:
        y = _check.read_only(y.view())  # a recomputed segment writes its outputs again
        if last is None:
            y = call.shaped(layer._without_batch(y, call.single))
        elif call.single:
            y = y[0]
    backward = _Backward(layer, call, shape, control, tape, segments, last)
    known = None if segments else tape
    out = y, layer._join_state(h_n, c_n, call.single)
    return out, RecurrentPullback(layer, backward, known, call.single)


readable(globals())
