"""Compute the gradients of one layer in one direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _check, _ragged
from .._annotations import readable
from .._call import Call
from .._cells import facts_of, saved_gates
from .._check import Array
from .._gradients import new_gradients
from .._ragged import rows_like
from .._segments import Chain
from ._weights import LayerNormWeights, Packed


class Gradients(NamedTuple):
    """The gradients that a `Pullback` returns; None for an input that the call did not have.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.functional.rnn_vjp(np.ones((3, 2, 1)), np.ones((4, 1)), np.ones((4, 4)))
    >>> gradients = pullback(dh_n=np.ones((2, 4)))
    >>> gradients.dweight_hh.shape, gradients.dc0 is None
    ((4, 4), True)

    Attributes:
        dx: gradient of x, of the kind of x: ``[T,B,I]``, a `Ragged` or a list.
        dweight_ih: ``[G*H,I]``, with G gates.
        dweight_hh: ``[G*H,H]``.
        dbias_ih: ``[G*H]``, or None.
        dbias_hh: ``[G*H]``, or None.
        dh0: ``[B,H]``.
        dc0: ``[B,H]`` of an LSTM, else None.
        dweight_peephole: ``[3,H]`` in the order i f o, or None.
        dreset_h: ``[H]``, gradient of the h that resets put in; None without resets.
        dreset_c: ``[H]``, gradient of the c that resets put in; None without resets or without c.
        dweight_hr: ``[P,H]``, or None. Where there is one, dweight_hh is ``[4*H,P]``, and dh0 and
            dreset_h are P wide.
        dlayer_norm: gradients of the gains and the shift of a layer-norm LSTM, or None.
    """

    dx: Any  # of the kind of x
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dh0: Array
    dc0: Array | None
    dweight_peephole: Array | None
    dreset_h: Array | None = None
    dreset_c: Array | None = None
    dweight_hr: Array | None = None
    dlayer_norm: LayerNormWeights | None = None


class Pullback:
    """Compute the gradients of one forward pass, as often as it is called.

    `rnn_vjp`, `lstm_vjp` and `gru_vjp` make it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w = np.ones((3, 2, 1)), np.ones((4, 1))
    >>> _, pullback = ost.functional.lstm_vjp(x, w, w)
    >>> pullback.cells.shape, sorted(pullback.gates)
    ((3, 2, 1), ['f', 'g', 'i', 'o'])
    >>> pullback(dcells=np.ones((3, 2, 1))).dx.shape
    (3, 2, 1)

    Args:
        call: the checked arguments of the forward pass.
        tape: what the native forward pass saved; None with segments.
        chain: the segments of a pass with a memory limit; None without.
        y: the outputs of a pass with segments, if they are kept.
    """

    def __init__(
        self, call: Call, tape: Any, chain: Chain | None = None, y: Array | None = None
    ) -> None:
        self._call, self._tape, self._chain, self._y = call, tape, chain, y

    @property
    def cells(self) -> Array:
        """c after every step of an LSTM, ``[T,B,H]``; zero where a row takes no part.

        Its gradient is the argument ``dcells`` of a call. TypeError after a pass with segments.
        """
        cells: Array = self._known().cells()[0]
        return cells

    @property
    def gates(self) -> dict[str, Array]:
        """The gates of every step by name, each ``[T,B,H]`` and read-only.

        i f g o of an LSTM, r z n of a GRU, none of an RNN. TypeError after a pass with segments.
        """
        return {
            name: a[0] for name, a in saved_gates(self._call.packed.cell, self._known()).items()
        }

    def _known(self) -> Any:
        if self._tape is None:
            raise TypeError("cells, gates: expected a pullback of a pass without segments")
        return self._tape

    def __call__(
        self,
        dy: Any = None,
        dh_n: Array | None = None,
        dc_n: Array | None = None,
        *,
        dcells: Array | None = None,
        clip_step_value: float | None = None,
        clip_step_norm: float | None = None,
        cuts: Any = None,
    ) -> Gradients:
        """Return the gradients of a weighted sum of all outputs.

        The sum is ``sum(y dy) + sum(h_n dh_n) + sum(c_n dc_n) + sum(cells dcells)``.

        Args:
            dy: gradient of y, of the kind of y; None: zeros. With segments (``memory_limit``) it
                may be a function ``dy(t, y)`` that is given the first step of a segment and its
                outputs, from the last segment to the first, and returns their gradient.
            dh_n: ``[B,H]``, gradient of the last h; None: zeros.
            dc_n: ``[B,H]``, gradient of the last c of an LSTM; None: zeros.
            dcells: ``[T,B,H]``, gradient of `cells`, of an LSTM; None: zeros.
            clip_step_value: bound on the absolute value of each element of the gradient of the
                states, at every step. It acts on dL/dh_t by all paths, and on what step t + 1 hands
                to c_t, before they go back through step t. None: no bound.
            clip_step_norm: bound on the Euclidean norm over H of each row of the same gradients,
                applied after clip_step_value. None: no bound.
            cuts: bool, shaped as resets. Where it is True no gradient goes from the step to the
                state that it started from.

        Returns:
            The gradients of all inputs and weights.

        Raises:
            TypeError: a gradient of another dtype than what it is the gradient of; dc_n or dcells
                for a cell without c; a function as dy without segments.
            ValueError: a gradient of another shape than what it is the gradient of.
        """
        call, packed = self._call, self._call.packed
        dy, flags = self._by_step(dy, cuts)
        options: dict[str, Any] = {
            "clip_value": _check.clipping("clip_step_value", clip_step_value),
            "clip_norm": _check.clipping("clip_step_norm", clip_step_norm),
            "cuts": flags,
            "dcells": row("dcells", dcells, 3),
        }
        for name, given in (("dc_n", dc_n), ("dcells", dcells)):
            if given is not None and facts_of(packed.cell)["states"] < 2:
                raise TypeError(
                    f"{name}: expected None for the cell {packed.cell}, got {type(given).__name__}"
                )
        shapes = [None if w is None else w.shape for w in packed.weights]
        grads, options["overwrite"] = new_gradients(shapes, packed.weights[0])
        batch = call.sizes[1]
        dh = state_row(packed, "dh_n", dh_n, batch)
        dc = state_row(packed, "dc_n", dc_n, batch, cells=True)
        if self._chain is None:
            if callable(dy):
                raise TypeError("dy: expected an array; a function is taken with segments")
            dy = None if dy is None else _check.array("dy", dy)
            dx, dh0, dc0, *dreset, _ = self._tape.backward(dy, dh, dc, [grads], True, **options)
        else:
            dy = self._checked(dy, options["dcells"])
            dx, dh0, dc0, dreset = self._through_segments(self._chain, dy, dh, dc, grads, options)
        return _gradients(packed, grads, call.shaped(dx), (dh0, dc0, *dreset))

    def _by_step(self, dy: Any, cuts: Any) -> tuple[Any, Any]:
        """Return dy and cuts as the kernels take them, which ragged sequences have flat."""
        call = self._call
        if call.ragged is None:
            return dy, _check.flags("cuts", cuts, *call.sizes)
        flags = _ragged.flag_bytes("cuts", cuts, call.ragged)
        if not callable(dy):
            dy = rows_like("dy", dy, call.ragged, call.packed.native.output_size)
        return dy, flags

    def _checked(self, dy: Any, dcells: Array | None) -> Any:
        """Return dy; raise for what no segment that runs would refuse before others have run."""
        call, packed = self._call, self._call.packed
        size, hidden = packed.native.output_size, packed.native.hidden_size
        if dcells is not None:
            _check.state("dcells", dcells[0], (*call.sizes, hidden), packed.dtype, "(T, B, H)")
        own = (*call.x.shape[:-1], size)
        dy = dy if dy is None or callable(dy) else _check.array("dy", dy)
        if _check.is_array(dy):
            _check.of_dtype("dy", dy, packed.dtype)
            if dy.shape != own:
                raise ValueError(f"dy: expected shape {own}, got {dy.shape}")
        return dy

    def _through_segments(
        self,
        chain: Chain,
        dy: Any,
        dh: Array | None,
        dc: Array | None,
        grads: list[Array | None],
        options: dict[str, Any],
    ) -> tuple[Array, Array, Array | None, list[Array | None]]:
        """Return dx, the gradients of the states before the first step, and those of resets."""
        call, packed = self._call, self._call.packed
        states, like, dtype = facts_of(packed.cell)["states"], call.x, packed.dtype
        sizes = packed.native.output_size, packed.native.hidden_size
        dx = np.empty(like.shape, dtype, like=like)
        dreset: list[Array | None] = [None, None]
        if call.options["resets"] is not None:
            dreset = [
                np.zeros((1, n), dtype, like=like) if k < states else None
                for k, n in enumerate(sizes)
            ]
        pair = None if dreset[0] is None else (dreset[0], dreset[1])
        dh0, dc0 = chain.backward(dy, dh, dc, [grads], y=self._y, dx=dx, dreset=pair, **options)
        rows = (1, call.sizes[1])
        if dh0 is None:  # no step at all
            dh0 = np.zeros((*rows, sizes[0]), dtype, like=like)
        if dc0 is None and states > 1:
            dc0 = np.zeros((*rows, sizes[1]), dtype, like=like)
        return dx, dh0, dc0, dreset


def row(name: str, state: object, ndim: int) -> Array | None:
    """Return what is of one layer with the axis of layers that the kernels want."""
    return None if state is None else _check.array(name, state, ndim)[None]


def state_row(
    packed: Packed, name: str, state: object, batch: int, cells: bool = False
) -> Array | None:
    """Return a state ``[B,H]``, or its gradient, with the axis of layers that the kernels want."""
    if state is None:
        return None
    native = packed.native
    size = native.hidden_size if cells else native.output_size
    a = _check.array(name, state, 2)
    if a.shape != (batch, size) or a.dtype != packed.dtype:
        axes = "(B, P)" if size != native.hidden_size else "(B, H)"
        _check.state(name, a, (batch, size), packed.dtype, axes)
    return a[None]


def _gradients(
    packed: Packed, grads: list[Array | None], dx: Any, states: tuple[Array | None, ...]
) -> Gradients:
    """Return gradients by name.

    Args:
        packed: the weights.
        grads: those of the weights, in the order of the kernels.
        dx: that of x.
        states: those of h0 and c0, and of the h and c of resets.
    """
    d_ih, d_hh, db_ih, db_hh, *rest = grads
    assert d_ih is not None
    assert d_hh is not None
    dh0, dc0, dreset_h, dreset_c = (None if d is None else d[0] for d in states)
    assert dh0 is not None
    d_peephole = d_hr = d_norms = None
    if packed.cell == "lstm_layer_norm":
        d_norms = LayerNormWeights(*(d for d in rest if d is not None))
    else:
        d_peephole, d_hr = (*rest, None)[:2]
    by_reset = (dreset_h, dreset_c)
    return Gradients(dx, d_ih, d_hh, db_ih, db_hh, dh0, dc0, d_peephole, *by_reset, d_hr, d_norms)


readable(globals())
