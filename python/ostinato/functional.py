"""Run one recurrent layer in one direction: arrays in, arrays out, no parameters held.

Shapes are ``x [T,B,I]``, ``y [T,B,H]`` and ``h0, c0 [B,H]``; weights have PyTorch's names, shapes
and gate orders. x may also be sequences of different lengths, an `ostinato.Ragged` or a list of
``[n,I]``: y is then of the same kind. All arrays of a call share one dtype, float32 or float64. A
pullback holds copies of the states that it was given, and may be called more than once.

>>> import numpy as np
>>> import ostinato as ost
>>> rng = np.random.default_rng(0)
>>> w_ih, w_hh = rng.normal(size=(4 * 8, 3)), rng.normal(size=(4 * 8, 8))
>>> y, (h_n, c_n) = ost.functional.lstm(rng.normal(size=(5, 2, 3)), w_ih, w_hh)
>>> y.shape, h_n.shape
((5, 2, 8), (2, 8))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _check, _core, _device, _native, _ragged
from ._annotations import readable
from ._check import Array, Lengths
from ._ragged import Ragged, as_given, rows_like, unwrapped
from ._segments import Chain, parse, plan_of

__all__ = [
    "Gradients",
    "LayerNormWeights",
    "Packed",
    "Pullback",
    "gru",
    "gru_vjp",
    "lstm",
    "lstm_vjp",
    "pack",
    "rnn",
    "rnn_vjp",
]


Sequences = Any  # an array, a Ragged, or a list of arrays


class LayerNormWeights(NamedTuple):
    """The gains and the shift of a layer-norm LSTM, or their gradients; see `lstm`.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> n = ost.functional.LayerNormWeights(np.ones(8), np.ones(8), np.ones(2), np.zeros(2))
    >>> y, state = ost.functional.lstm(
    ...     np.ones((3, 1, 4)), np.ones((8, 4)), np.eye(8, 2), layer_norm=n
    ... )
    >>> y.shape
    (3, 1, 2)

    Attributes:
        weight_ln_ih: ``[4*H]``, the gain of W x.
        weight_ln_hh: ``[4*H]``, the gain of R h.
        weight_ln_c: ``[H]``, the gain of c'.
        bias_ln_c: ``[H]``, the shift of c'.
    """

    weight_ln_ih: Array
    weight_ln_hh: Array
    weight_ln_c: Array
    bias_ln_c: Array


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


class Packed:
    """Hold the weights of one layer in the layout of the kernels; immutable.

    `pack` makes it, and the functions of this module take it in the place of ``weight_ih``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> packed = ost.functional.pack("rnn", np.ones((2, 3)), np.ones((2, 2)), nonlinearity="relu")
    >>> packed.cell, packed.precision
    ('rnn_relu', 'float64')

    Args:
        cell: "rnn_tanh", "rnn_relu", "lstm", "lstm_peephole", "lstm_projected", "lstm_layer_norm",
            "gru" or "gru_reset_before".
        weights: weight_ih, weight_hh, bias_ih, bias_hh and weight_peephole, of which the last three
            may be None; and weight_hr of a projected LSTM. Of a layer-norm LSTM the gains and the
            shift stand in the place of weight_peephole.
        reverse: whether the layer runs from the last real step to the first.
        precision: what the products multiply; None: the dtype of the weights.
    """

    def __init__(
        self, cell: str, weights: list[Array | None], reverse: bool, precision: str | None = None
    ) -> None:
        weights = [_device.taken(w) for w in weights]
        w_ih, w_hh = (_check.array(n, w, 2) for n, w in zip(("weight_ih", "weight_hh"), weights))
        self.cell, self.dtype, self.weights, self.reverse = (
            cell,
            _check.real_dtype(w_ih.dtype),
            weights,
            reverse,
        )
        facts, device = _core.cells()[cell], _device.name_of(w_ih)
        gates, hidden = facts["gates"], w_hh.shape[1]
        projection: dict[str, int] = {}
        if facts.get("projected"):
            hidden, projection = _projection(w_hh, weights[5], gates, device)
        elif cell == "lstm_layer_norm" and device != "cpu":
            wanted = f"None on {device}, whose kernels have no layer norm yet"
            raise ValueError(f"layer_norm: expected {wanted}, got arrays; give weights on the CPU")
        elif hidden == 0 or w_hh.shape[0] != gates * hidden:
            raise ValueError(f"weight_hh: expected shape ({gates}*H, H), got {w_hh.shape}")
        if w_ih.shape[1] == 0:
            raise ValueError(f"weight_ih: expected at least one input, got shape {w_ih.shape}")
        make = _native.backend_for(w_ih).Packed
        self.precision = _check.precision(self.dtype, precision, device)
        native, backward = (
            _check.native_precision(self.dtype, self.precision, device),
            self.precision != "int8",
        )
        sizes = (w_ih.shape[1], hidden, 1, False)
        self.native = make(
            cell, *sizes, [weights], backward, reverse, native, numbered=False, **projection
        )


def _projection(
    w_hh: Array, weight_hr: Array | None, gates: int, device: str
) -> tuple[int, dict[str, int]]:
    """Return H, and what the native code is told of a projection."""
    if device != "cpu":
        wanted = f"None on {device}, whose kernels do not project h yet"
        raise ValueError(f"weight_hr: expected {wanted}, got an array; give weights on the CPU")
    w_hr = _check.array("weight_hr", weight_hr, 2)
    size, hidden = w_hr.shape
    if 0 in w_hr.shape:
        raise ValueError(
            f"weight_hr: expected shape (P, H) with P and H of at least 1, got {w_hr.shape}"
        )
    if w_hh.shape != (gates * hidden, size):
        wanted = f"({gates}*H, P) = {(gates * hidden, size)}"
        raise ValueError(
            f"weight_hh: expected shape {wanted} beside weight_hr (P, H), got {w_hh.shape}"
        )
    return hidden, {"proj_size": size}


def _cell(
    family: str,
    *,
    nonlinearity: str = "tanh",
    reset_after: bool = True,
    peephole: bool = False,
    projected: bool = False,
    layer_norm: bool = False,
) -> str:
    if family == "rnn":
        return f"rnn_{_check.choice('nonlinearity', nonlinearity, ('tanh', 'relu'))}"
    if family == "gru":
        return "gru" if reset_after else "gru_reset_before"
    if peephole and projected:
        raise ValueError(
            "weight_peephole: expected None beside weight_hr, got an array; no cell has both"
        )
    if layer_norm and (peephole or projected):
        other = "weight_peephole" if peephole else "weight_hr"
        raise ValueError(
            f"{other}: expected None beside layer_norm, got an array; no cell has both"
        )
    if layer_norm:
        return "lstm_layer_norm"
    return "lstm_peephole" if peephole else "lstm_projected" if projected else "lstm"


def _norms(layer_norm: object) -> LayerNormWeights | None:
    """Return the gains and the shift as they were given."""
    if layer_norm is None:
        return None
    names = LayerNormWeights._fields
    if not isinstance(layer_norm, (tuple, list)) or len(layer_norm) != len(names):
        got = type(layer_norm).__name__
        if isinstance(layer_norm, (tuple, list)):
            got = f"{len(layer_norm)} of them"
        raise TypeError(f"layer_norm: expected the arrays {', '.join(names)}, got {got}")
    return LayerNormWeights(*(_check.array(name, w, 1) for name, w in zip(names, layer_norm)))


def _own_weights(
    weight_peephole: Array | None, weight_hr: Array | None, norms: LayerNormWeights | None
) -> tuple[Array | None, ...]:
    """Return what an LSTM has beside the weights of every cell, in the order of the kernels."""
    if norms is not None:
        return tuple(norms)
    return (weight_peephole,) if weight_hr is None else (weight_peephole, weight_hr)


def pack(
    family: str,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    weight_peephole: Array | None = None,
    weight_hr: Array | None = None,
    layer_norm: LayerNormWeights | None = None,
    nonlinearity: str = "tanh",
    reset_after: bool = True,
    reverse: bool = False,
    precision: str | None = None,
) -> Packed:
    """Pack the weights of one layer once, for many calls.

    The options that choose the cell and its direction are packed with them.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> packed = ost.functional.pack("gru", np.ones((6, 3)), np.ones((6, 2)))
    >>> ost.functional.gru(np.ones((4, 1, 3)), packed)[0].shape
    (4, 1, 2)

    Args:
        family: "rnn", "lstm" or "gru".
        weight_ih: ``[G*H,I]``, with G = 1, 4 (i f g o) or 3 (r z n).
        weight_hh: ``[G*H,H]``; ``[4*H,P]`` beside weight_hr.
        bias_ih: ``[G*H]``, or None.
        bias_hh: ``[G*H]``, or None.
        weight_peephole: ``[3,H]`` in the order i f o, for an LSTM with peepholes.
        weight_hr: ``[P,H]``, for an LSTM whose h is projected, see `lstm`.
        layer_norm: gains and shift, for a layer-norm LSTM, see `lstm`.
        nonlinearity: "tanh" or "relu", of an RNN.
        reset_after: which form of the GRU, see `gru`.
        reverse: whether the layer runs from the last real step to the first.
        precision: what the products multiply in place of float32: "bfloat16"; on the CPU also
            "int8" (no gradients), on a GPU also "float16" (gradients in bfloat16) and "exact"; see
            `ostinato.nn.LSTM.precision`. None: the dtype of the weights.

    Returns:
        The packed weights, which the functions of this module take in place of ``weight_ih``.

    Raises:
        TypeError: a weight is no array, or has another dtype than float32 or float64.
        ValueError: an unknown family or option, or a weight of the wrong shape.
    """
    _check.choice("family", family, ("rnn", "lstm", "gru"))
    if weight_hr is not None and family != "lstm":
        raise ValueError(f"weight_hr: expected None for {family}, got an array")
    if layer_norm is not None and family != "lstm":
        raise ValueError(f"layer_norm: expected None for {family}, got arrays")
    norms = _norms(layer_norm)
    cell = _cell(
        family,
        nonlinearity=nonlinearity,
        reset_after=reset_after,
        peephole=weight_peephole is not None,
        projected=weight_hr is not None,
        layer_norm=norms is not None,
    )
    own = _own_weights(weight_peephole, weight_hr, norms)
    return Packed(cell, [weight_ih, weight_hh, bias_ih, bias_hh, *own], reverse, precision)


class _Call(NamedTuple):
    """Checked arguments of one forward pass."""

    packed: Packed
    x: Array
    h: Array | None
    c: Array | None
    options: dict[str, Any]  # of the native call
    ragged: Ragged | None  # what x came as; then x is its rows
    listed: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """T and B."""
        return (
            (self.x.shape[0], self.x.shape[1])
            if self.ragged is None
            else (self.options["span"], len(self.ragged))
        )

    def shaped(self, rows: Array | None) -> Any:
        """Flat rows as x came."""
        return as_given(rows, self.ragged, self.listed)

    def forward(self, out: Array | None, train: bool, states_only: bool = False) -> Any:
        options = {**self.options, "states_only": states_only}
        lengths = options.pop("lengths")
        return self.packed.native.forward(
            self.x, self.h, self.c, lengths, False, out, train, 0.0, 0, **options
        )


Times = tuple[object, Any, Any, str]  # lengths, resets, mask, masked


def _arguments(
    packed: Packed, x: Any, h0: Array | None, c0: Array | None, times: Times, reset_state: object
) -> _Call:
    x, listed = unwrapped(x)
    ragged = x if isinstance(x, Ragged) else None
    if ragged is not None:
        if times[0] is not None:
            raise ValueError(
                f"lengths: expected None with ragged sequences, got {type(times[0]).__name__}"
            )
        options, x = _ragged.times(ragged, *times[1:]), _check.array("x", ragged.rows, 2)
    else:
        x = _check.array("x", x, 3)
        options = _check.times(x, *times)
    h, c = (_row(n, s, 2) for n, s in (("h0", h0), ("c0", c0)))
    pair = isinstance(reset_state, (tuple, list)) and len(reset_state) == 2
    if reset_state is not None and pair != (_core.cells()[packed.cell]["states"] == 2):
        raise TypeError(
            f"reset_state: expected h, or (h, c) for an LSTM, got {type(reset_state).__name__}"
        )
    reset: Any = reset_state if pair else (reset_state, None)
    dtype, sizes = packed.dtype, (packed.native.output_size, packed.native.hidden_size)
    for name, r, size in zip(("restart_h", "restart_c"), reset, sizes):
        r = None if r is None else _check.array("reset_state", r)
        if r is not None and (r.shape != (size,) or r.dtype != dtype):
            raise ValueError(
                f"reset_state: expected shape (H,) = ({size},) of {dtype}, got {r.shape} of "
                f"{r.dtype}"
            )
        options[name] = None if r is None else _check.contiguous(r)[None]
    return _Call(packed, x, h, c, options, ragged, listed)


def _row(name: str, state: object, ndim: int) -> Array | None:
    return None if state is None else _check.array(name, state, ndim)[None]


def _apply(call: _Call, out: Array | None) -> tuple[Any, Array, Array | None]:
    y, h_n, c_n, _ = call.forward(out, False)
    return call.shaped(y), h_n[0], None if c_n is None else c_n[0]


def _train(
    call: _Call, memory_limit: str | int | None, outputs: str
) -> tuple[Any, Array, Array | None, Pullback]:
    _check.choice("outputs", outputs, ("all", "none"))
    packed = call.packed
    if not packed.native.backward:
        raise ValueError(
            "weight_ih: expected a precision that can be trained, got weights packed as "
            f"{packed.precision}"
        )
    # The caller may reuse the arrays of its state, and segments that run again those of its times,
    # before the pullback runs.
    kept = ("restart_h", "restart_c", "lengths", "resets", "mask")
    copies = {n: None if call.options[n] is None else call.options[n].copy() for n in kept}
    h, c = (None if s is None else s.copy() for s in (call.h, call.c))
    call = call._replace(h=h, c=c, options={**call.options, **copies})
    if memory_limit is None or parse(memory_limit)[0] == "states":
        y, h_n, c_n, tape = call.forward(None, True, memory_limit is not None)
        _check.read_only(y)
        pullback = Pullback(call, tape)
    else:
        steps, batch = call.sizes
        size, outputs_size, inputs = (
            packed.native.hidden_size,
            packed.native.output_size,
            packed.native.input_size,
        )
        for name, a, shape in (
            ("x", call.x, (*call.x.shape[:-1], inputs)),
            ("h0", h, (1, batch, outputs_size)),
            ("c0", c, (1, batch, size)),
        ):
            if a is not None and (
                a.shape != shape or a.dtype != packed.dtype
            ):  # where there is no step, nobody else looks
                skip = 0 if name == "x" else 1
                raise ValueError(
                    f"{name}: expected shape {shape[skip:]} of {packed.dtype}, got "
                    f"{a.shape[skip:]} of {a.dtype}"
                )
        plan = plan_of(
            packed.native, memory_limit, steps, batch, outputs, 1, 1, packed.dtype.itemsize
        )
        chain = Chain(packed.native, call.x, call.options, plan, dropout=0.0, key=0)
        rows = None
        if outputs == "all":
            rows = np.empty(
                (*call.x.shape[:-1], packed.native.output_size), packed.dtype, like=call.x
            )
        h_n, c_n = chain.forward(h, c, rows)
        y = None if rows is None else rows.view()
        if y is not None:
            _check.read_only(y)
        pullback = Pullback(call, None, chain, rows)
    y = call.shaped(y) if outputs == "all" else None
    return y, h_n[0], None if c_n is None else c_n[0], pullback


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
        self, call: _Call, tape: Any, chain: Chain | None = None, y: Array | None = None
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
            name: a[0] for name, a in _check.gates(self._call.packed.cell, self._known()).items()
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
            TypeError: dc_n for a cell without c; a function as dy without segments.
            ValueError: a gradient of another shape or dtype than what it is the gradient of.
        """
        call, packed = self._call, self._call.packed
        size, hidden = packed.native.output_size, packed.native.hidden_size
        states = _core.cells()[packed.cell]["states"]
        own = (*call.x.shape[:-1], size)
        if call.ragged is not None:
            flags = _ragged.flag_bytes("cuts", cuts, call.ragged)
            dy = dy if callable(dy) else rows_like("dy", dy, call.ragged, size)
        else:
            flags = _check.flags("cuts", cuts, *call.sizes)
        options: dict[str, Any] = {
            "clip_value": _check.clipping("clip_step_value", clip_step_value),
            "clip_norm": _check.clipping("clip_step_norm", clip_step_norm),
            "cuts": flags,
            "dcells": _row("dcells", dcells, 3),
        }
        if dc_n is not None and states < 2:
            raise TypeError(
                f"dc_n: expected None for the cell {packed.cell}, got {type(dc_n).__name__}"
            )
        grads = [None if w is None else np.zeros_like(w) for w in packed.weights]
        dh, dc = _row("dh_n", dh_n, 2), _row("dc_n", dc_n, 2)
        if self._chain is None:
            if callable(dy):
                raise TypeError("dy: expected an array; a function is taken with segments")
            dy = None if dy is None else _check.array("dy", dy)
            dx, dh0, dc0, *dreset, _ = self._tape.backward(dy, dh, dc, [grads], True, **options)
        else:
            if dcells is not None and states < 2:
                raise TypeError(
                    f"dcells: expected None for the cell {packed.cell}, got {type(dcells).__name__}"
                )
            shapes: dict[str, Any] = {
                "dh_n": (dh, call.sizes[1:] + (size,)),
                "dc_n": (dc, call.sizes[1:] + (hidden,)),
            }
            shapes |= {"dcells": (options["dcells"], (*call.sizes, hidden))}
            for name, (a, shape) in shapes.items():
                if a is not None and (a.shape[1:] != shape or a.dtype != packed.dtype):
                    raise ValueError(
                        f"{name}: expected shape {shape} of {packed.dtype}, got {a.shape[1:]} of "
                        f"{a.dtype}"
                    )
            dy = dy if dy is None or callable(dy) else _check.array("dy", dy)
            if _check.is_array(dy) and (dy.shape != own or dy.dtype != packed.dtype):
                raise ValueError(
                    f"dy: expected shape {own} of {packed.dtype}, got {dy.shape} of {dy.dtype}"
                )
            dx, dreset = np.empty(call.x.shape, packed.dtype, like=call.x), [None, None]
            if call.options["resets"] is not None:
                dreset = [
                    np.zeros((1, n), packed.dtype, like=call.x) if k < states else None
                    for k, n in enumerate((size, hidden))
                ]
            pair = None if dreset[0] is None else (dreset[0], dreset[1])
            dh0, dc0 = self._chain.backward(
                dy, dh, dc, [grads], y=self._y, dx=dx, dreset=pair, **options
            )
            rows = (1, call.sizes[1])
            if dh0 is None:  # no step at all
                dh0 = np.zeros((*rows, size), packed.dtype, like=call.x)
            if dc0 is None and states > 1:
                dc0 = np.zeros((*rows, hidden), packed.dtype, like=call.x)
        d_ih, d_hh, db_ih, db_hh, *rest = grads
        assert d_ih is not None
        assert d_hh is not None
        normed = packed.cell == "lstm_layer_norm"
        d_norms = LayerNormWeights(*rest) if normed else None  # type: ignore[arg-type]
        d_peephole, d_hr = (None, None) if normed else (*rest, None)[:2]
        dc0, dreset_h, dreset_c = (None if d is None else d[0] for d in (dc0, *dreset))
        states_of = (dh0[0], dc0, d_peephole, dreset_h, dreset_c)
        return Gradients(call.shaped(dx), d_ih, d_hh, db_ih, db_hh, *states_of, d_hr, d_norms)


def _packed(
    family: str, weight_ih: Array | Packed, rest: tuple[Any, ...], reverse: bool, cell: str
) -> Packed:
    if isinstance(weight_ih, Packed):
        if any(r is not None for r in rest):
            raise TypeError("weight_ih: expected no further weights beside packed ones")
        if weight_ih.cell.split("_")[0] != family:
            raise ValueError(
                f"weight_ih: expected weights packed for {family}, got {weight_ih.cell}"
            )
        if (reverse and not weight_ih.reverse) or (
            cell != _cell(family) and cell != weight_ih.cell
        ):
            raise ValueError(
                "weight_ih: expected weights packed with the same options, got others; give them "
                "to pack"
            )
        return weight_ih
    return Packed(cell, [weight_ih, *rest], reverse)


def _packed_lstm(
    weight_ih: Array | Packed,
    rest: tuple[Any, ...],
    weight_hr: Array | None,
    layer_norm: LayerNormWeights | None,
    reverse: bool,
) -> Packed:
    norms = _norms(layer_norm)
    cell = _cell(
        "lstm",
        peephole=rest[3] is not None,
        projected=weight_hr is not None,
        layer_norm=norms is not None,
    )
    own = _own_weights(rest[3], weight_hr, norms)
    return _packed("lstm", weight_ih, (*rest[:3], *own), reverse, cell)


def rnn(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    out: Array | None = None,
) -> tuple[Sequences, Array]:
    """Run an Elman network: ``h' = phi(W x + b_ih + R h + b_hh)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.ones((3, 1, 2)), np.ones((1, 2)), np.zeros((1, 1))
    >>> y, h_n = ost.functional.rnn(x, w_ih, w_hh, nonlinearity="relu")
    >>> y.ravel()
    array([2., 2., 2.])

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool.
        weight_ih: ``[H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[H,H]``.
        bias_ih: ``[H]``, or None.
        bias_hh: ``[H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        nonlinearity: phi, "tanh" or "relu".
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        out: an array of the shape of y to write y to; it must not overlap an input. None: a new
            array.

    Returns:
        ``y [T,B,H]``, zero past the end of a row, and ``h_n [B,H]`` at the last real step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Elman (1990), "Finding structure in time".
    """
    packed = _packed(
        "rnn",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        _cell("rnn", nonlinearity=nonlinearity),
    )
    y, h_n, _ = _apply(
        _arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state), out
    )
    return y, h_n


def rnn_vjp(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    memory_limit: str | int | None = None,
    outputs: str = "all",
) -> tuple[tuple[Sequences, Array], Pullback]:
    """Run `rnn` for training and return a `Pullback` for its gradients.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.ones((3, 1, 2)), np.ones((1, 2)), np.zeros((1, 1))
    >>> (y, h_n), pullback = ost.functional.rnn_vjp(x, w_ih, w_hh, nonlinearity="relu")
    >>> pullback(np.ones_like(y)).dweight_ih
    array([[3., 3.]])

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool. It must not
            change until the pullback has run.
        weight_ih: ``[H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[H,H]``.
        bias_ih: ``[H]``, or None.
        bias_hh: ``[H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        nonlinearity: phi, "tanh" or "relu".
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        memory_limit: a bound on the memory of the backward pass: a size such as "512MB", "least", a
            number of segments, or "states"; see `ostinato.nn.RNN.vjp`. Gradients have the same bits
            with and without it. None: everything that the backward pass reads is saved.
        outputs: "all", or "none": y is None, which saves its memory.

    Returns:
        ``(y, h_n), pullback``: the outputs and the last state of `rnn`, and a pullback, of which
        ``pullback(dy, dh_n)`` gives `Gradients`.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Elman (1990); backpropagation through time: Werbos (1990).
    """
    packed = _packed(
        "rnn",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        _cell("rnn", nonlinearity=nonlinearity),
    )
    call = _arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state)
    y, h_n, _, pullback = _train(call, memory_limit, outputs)
    return (y, h_n), pullback


def lstm(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    weight_peephole: Array | None = None,
    weight_hr: Array | None = None,
    layer_norm: LayerNormWeights | None = None,
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    out: Array | None = None,
) -> tuple[Sequences, tuple[Array, Array]]:
    """Run a long short-term memory, with gates in the order i f g o.

    ``c' = f c + i g``, ``h' = o tanh(c')`` with ``i, f, o = sigmoid(a)``, ``g = tanh(a)`` and
    ``a = W x + b_ih + R h + b_hh``; peepholes add ``p_i c`` to a_i, ``p_f c`` to a_f and ``p_o c'``
    to a_o. With weight_hr h is projected, ``h' = W_hr (o tanh(c'))``, and P wide, while c is
    H wide. With layer_norm ``a = LN(W x) gain_ih + b_ih + LN(R h) gain_hh + b_hh`` and
    ``h' = o tanh(LN(c') gain_c + shift_c)``. LN makes a row (of 4H, 4H and H numbers) zero mean and
    unit variance: ``(a - mean) / sqrt(variance + 1e-5)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.zeros((3, 2, 1)), np.zeros((4, 1)), np.zeros((4, 1))
    >>> y, (h_n, c_n) = ost.functional.lstm(x, w_ih, w_hh, lengths=[3, 0])
    >>> y.shape, bool((y == 0).all())
    ((3, 2, 1), True)

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool.
        weight_ih: ``[4*H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[4*H,H]``; ``[4*H,P]`` beside weight_hr.
        bias_ih: ``[4*H]``, or None.
        bias_hh: ``[4*H]``, or None.
        h0: ``[B,H]`` (``[B,P]`` beside weight_hr), h before the first step; None: zeros.
        c0: ``[B,H]``, c before the first step; None: zeros.
        weight_peephole: ``[3,H]`` in the order i f o; None: no peepholes.
        weight_hr: ``[P,H]``, the projection of h, on the CPU and without peepholes; None: h is not
            projected.
        layer_norm: gains and shift of a layer-norm LSTM, on the CPU, without peepholes and
            projection; None: nothing is normed.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``(h, c)`` after a reset, each ``[H]`` (h ``[P]`` beside weight_hr); None:
            zeros.
        reverse: whether to run from the last real step to the first.
        out: an array of the shape of y to write y to; it must not overlap an input. None: a new
            array.

    Returns:
        ``y [T,B,H]``, zero past the end of a row, and ``(h_n, c_n)``, each ``[B,H]``, at the last
        real step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Hochreiter, Schmidhuber (1997); the forget gate: Gers, Schmidhuber, Cummins (2000);
    peepholes: Gers, Schraudolph, Schmidhuber (2002); the projection: Sak, Senior, Beaufays (2014);
    layer norm: Ba, Kiros, Hinton (2016).
    """
    weights = (weight_hh, bias_ih, bias_hh, weight_peephole)
    packed = _packed_lstm(weight_ih, weights, weight_hr, layer_norm, reverse)
    y, h_n, c_n = _apply(
        _arguments(packed, x, h0, c0, (lengths, resets, mask, masked), reset_state), out
    )
    assert c_n is not None
    return y, (h_n, c_n)


def lstm_vjp(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    weight_peephole: Array | None = None,
    weight_hr: Array | None = None,
    layer_norm: LayerNormWeights | None = None,
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    memory_limit: str | int | None = None,
    outputs: str = "all",
) -> tuple[tuple[Sequences, tuple[Array, Array]], Pullback]:
    """Run `lstm` for training and return a `Pullback` for its gradients.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.ones((3, 2, 1)), np.ones((4, 1)), np.ones((4, 1))
    >>> (y, state), pullback = ost.functional.lstm_vjp(x, w_ih, w_hh)
    >>> pullback(dh_n=np.ones((2, 1))).dx.shape
    (3, 2, 1)

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool. It must not
            change until the pullback has run.
        weight_ih: ``[4*H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[4*H,H]``; ``[4*H,P]`` beside weight_hr.
        bias_ih: ``[4*H]``, or None.
        bias_hh: ``[4*H]``, or None.
        h0: ``[B,H]`` (``[B,P]`` beside weight_hr), h before the first step; None: zeros.
        c0: ``[B,H]``, c before the first step; None: zeros.
        weight_peephole: ``[3,H]`` in the order i f o; None: no peepholes.
        weight_hr: ``[P,H]``, the projection of h, on the CPU and without peepholes; None: h is not
            projected.
        layer_norm: gains and shift of a layer-norm LSTM, on the CPU, without peepholes and
            projection; None: nothing is normed.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``(h, c)``, each ``[H]``, after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        memory_limit: a bound on the memory of the backward pass: a size such as "512MB", "least", a
            number of segments, or "states"; see `ostinato.nn.RNN.vjp`. Gradients have the same bits
            with and without it. None: everything that the backward pass reads is saved.
        outputs: "all", or "none": y is None, which saves its memory.

    Returns:
        ``(y, (h_n, c_n)), pullback``: the outputs and the last states of `lstm`, and a pullback, of
        which ``pullback(dy, dh_n, dc_n)`` gives `Gradients`.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Hochreiter, Schmidhuber (1997); backpropagation through time: Werbos (1990).
    """
    weights = (weight_hh, bias_ih, bias_hh, weight_peephole)
    packed = _packed_lstm(weight_ih, weights, weight_hr, layer_norm, reverse)
    call = _arguments(packed, x, h0, c0, (lengths, resets, mask, masked), reset_state)
    y, h_n, c_n, pullback = _train(call, memory_limit, outputs)
    assert c_n is not None
    return (y, (h_n, c_n)), pullback


def gru(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    reset_after: bool = True,
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    out: Array | None = None,
) -> tuple[Sequences, Array]:
    """Run a gated recurrent unit, with gates in the order r z n: ``h' = (1 - z) n + z h``.

    ``reset_after=True`` (PyTorch, cuDNN, Keras' default):
    ``n = tanh(W_n x + b_in + r (R_n h + b_hn))``; ``reset_after=False`` (the paper, ONNX' default):
    ``n = tanh(W_n x + b_in + R_n (r h) + b_hn)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.zeros((3, 1, 2)), np.zeros((3, 2)), np.zeros((3, 1))
    >>> y, h_n = ost.functional.gru(x, w_ih, w_hh, h0=np.ones((1, 1)))
    >>> y.ravel()
    array([0.5  , 0.25 , 0.125])

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool.
        weight_ih: ``[3*H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[3*H,H]``.
        bias_ih: ``[3*H]``, or None.
        bias_hh: ``[3*H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        reset_after: which of the two forms.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        out: an array of the shape of y to write y to; it must not overlap an input. None: a new
            array.

    Returns:
        ``y [T,B,H]``, zero past the end of a row, and ``h_n [B,H]`` at the last real step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder".
    """
    packed = _packed(
        "gru",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        _cell("gru", reset_after=reset_after),
    )
    y, h_n, _ = _apply(
        _arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state), out
    )
    return y, h_n


def gru_vjp(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    reset_after: bool = True,
    lengths: Lengths = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    memory_limit: str | int | None = None,
    outputs: str = "all",
) -> tuple[tuple[Sequences, Array], Pullback]:
    """Run `gru` for training and return a `Pullback` for its gradients.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x, w_ih, w_hh = np.ones((3, 2, 1)), np.ones((3, 1)), np.ones((3, 1))
    >>> (y, h_n), pullback = ost.functional.gru_vjp(x, w_ih, w_hh)
    >>> pullback(np.ones_like(y)).dh0.shape
    (2, 1)

    Args:
        x: ``[T,B,I]`` with unit stride on its last axis, a `Ragged`, or a list of ``[n,I]``. For
            the last two, resets and mask are a `Ragged`, a list, or flat rows of bool. It must not
            change until the pullback has run.
        weight_ih: ``[3*H,I]``; or packed weights, in place of all weights.
        weight_hh: ``[3*H,H]``.
        bias_ih: ``[3*H]``, or None.
        bias_hh: ``[3*H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        reset_after: which of the two forms, see `gru`.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]``. Where it is True the step starts from ``reset_state``, as if a new
            sequence began there; with ``reverse`` the state is replaced after the step, so that the
            pieces between two resets are the same in both directions.
        mask: bool ``[T,B]``. A step where it is False is skipped, and the state is carried over it.
        masked: the output of a skipped step, as in Keras: "repeat" gives the output of the step
            before it (zeros if there is none), "zero" gives zeros.
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        memory_limit: a bound on the memory of the backward pass: a size such as "512MB", "least", a
            number of segments, or "states"; see `ostinato.nn.RNN.vjp`. Gradients have the same bits
            with and without it. None: everything that the backward pass reads is saved.
        outputs: "all", or "none": y is None, which saves its memory.

    Returns:
        ``(y, h_n), pullback``: the outputs and the last state of `gru`, and a pullback, of which
        ``pullback(dy, dh_n)`` gives `Gradients`.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Cho et al. (2014); backpropagation through time: Werbos (1990).
    """
    packed = _packed(
        "gru",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        _cell("gru", reset_after=reset_after),
    )
    call = _arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state)
    y, h_n, _, pullback = _train(call, memory_limit, outputs)
    return (y, h_n), pullback


readable(globals())
