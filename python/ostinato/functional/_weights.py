"""Check and pack the weights of one layer, in the layout of the kernels."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _device, _native
from .._annotations import readable
from .._cells import facts_of
from .._check import Array
from .._functions import (
    Chosen,
    Function,
    LstmOptions,
    bound,
    check_scalars,
    function,
    gru_cell,
    lstm_cell,
    rnn_cell,
)


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
            "gru" or "gru_reset_before"; or a general form of one, "rnn_general", "lstm_general",
            "gru_general" or "gru_reset_before_general".
        weights: weight_ih, weight_hh, bias_ih, bias_hh and weight_peephole, of which the last three
            may be None; and weight_hr of a projected LSTM. Of a layer-norm LSTM the gains and the
            shift stand in the place of weight_peephole.
        reverse: whether the layer runs from the last real step to the first.
        precision: what the products multiply; None: the dtype of the weights.
        scalars: the numbers of functions, clip and coupled gates, which `pack` knows; () of a cell
            with its usual functions.

    Raises:
        TypeError: a weight of the wrong type or dtype.
        ValueError: an unknown cell or precision, or a weight of the wrong shape.
    """

    def __init__(
        self,
        cell: str,
        weights: list[Array | None],
        reverse: bool,
        precision: str | None = None,
        scalars: tuple[float, ...] = (),
    ) -> None:
        if not isinstance(weights, (list, tuple)) or len(weights) < 2:
            raise TypeError(
                "weights: expected a list of weight_ih, weight_hh and those that the cell has "
                f"beside them, got {type(weights).__name__}"
                + (f" of {len(weights)}" if isinstance(weights, (list, tuple)) else "")
            )
        weights = [_device.taken(w) for w in weights]
        w_ih, w_hh = (_check.array(n, w, 2) for n, w in zip(("weight_ih", "weight_hh"), weights))
        self.cell, self.dtype, self.weights, self.reverse = (
            cell,
            _check.real_dtype(w_ih.dtype, "weight_ih"),
            weights,
            _check.flag("reverse", reverse),
        )
        facts, device = facts_of(cell), _device.name_of(w_ih)
        gates, hidden = facts["gates"], w_hh.shape[1]
        self.scalars = scalars
        check_scalars(cell, scalars)
        projection: dict[str, Any] = {"scalars": scalars} if scalars else {}
        if facts.get("projected"):
            w_hr = weights[5] if len(weights) > 5 else None
            hidden, projection = _projection(w_hh, w_hr, gates)
        elif hidden == 0 or w_hh.shape[0] != gates * hidden:
            raise ValueError(f"weight_hh: expected shape ({gates}*H, H), got {w_hh.shape}")
        if w_ih.shape[1] == 0:
            raise ValueError(f"weight_ih: expected at least one input, got shape {w_ih.shape}")
        make = _native.backend_for(w_ih).Packed
        self.precision = _check.precision(self.dtype, precision, device)
        if scalars and self.precision not in (self.dtype.name, "exact"):
            raise ValueError(
                f"precision: expected {self.dtype.name!r} for a cell with functions, a clip or "
                f"coupled gates of its own, got {precision!r}"
            )
        native, backward = (
            _check.native_precision(self.dtype, self.precision, device),
            self.precision != "int8",
        )
        sizes = (w_ih.shape[1], hidden, 1, False)
        self.native = make(
            cell, *sizes, [weights], backward, reverse, native, numbered=False, **projection
        )

    def __copy__(self) -> Packed:
        """Return the weights themselves, which cannot change."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        """Return the weights themselves, which cannot change."""
        return self

    def __reduce__(self) -> Any:
        """Refuse to be pickled: the layout is that of one machine's kernels."""
        raise TypeError(
            "Packed: expected arrays to pickle, got packed weights, which are laid out for the "
            "kernels of this process; pickle the arrays, and pack them again"
        )


def _projection(w_hh: Array, weight_hr: Array | None, gates: int) -> tuple[int, dict[str, int]]:
    """Return H, and what the native code is told of a projection."""
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


def cell_of(family: str, *, nonlinearity: Any = "tanh", clip: Any = None, **options: Any) -> Chosen:
    """Return the cell of a family with its options, which are those of `pack`."""
    if family == "rnn":
        return rnn_cell(function("nonlinearity", nonlinearity), bound(clip))
    if family == "gru":
        return gru_cell(
            _check.flag("reset_after", options.get("reset_after", True)),
            function("activation", options.get("activation", "tanh")),
            function("recurrent_activation", options.get("recurrent_activation", "sigmoid")),
            bound(clip),
        )
    return _cell_of_lstm(clip=clip, **options)


@cache
def _usual_cell(family: str) -> Chosen:
    """Return the cell of a family without any option."""
    return cell_of(family)


def _cell_of_lstm(
    *,
    peephole: bool = False,
    projected: bool = False,
    layer_norm: bool = False,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    output_activation: Any = None,
    clip: Any = None,
    coupled_gates: bool = False,
) -> Chosen:
    if peephole and projected:
        raise ValueError(
            "weight_peephole: expected None beside weight_hr, got an array; no cell has both"
        )
    if layer_norm and (peephole or projected):
        other = "weight_peephole" if peephole else "weight_hr"
        raise ValueError(
            f"{other}: expected None beside layer_norm, got an array; no cell has both"
        )
    options = LstmOptions.checked(
        activation, recurrent_activation, output_activation, clip, coupled_gates
    )
    if layer_norm:
        return lstm_cell(options, "lstm_layer_norm", "beside layer_norm")
    if projected:
        return lstm_cell(options, "lstm_projected", "beside weight_hr")
    return lstm_cell(options, "lstm_peephole" if peephole else "lstm")


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
    nonlinearity: Function = "tanh",
    reset_after: bool = True,
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    output_activation: Function | None = None,
    clip: float | None = None,
    coupled_gates: bool = False,
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
        nonlinearity: "tanh", "relu" or another function of an RNN, see `rnn`.
        reset_after: which form of the GRU, see `gru`.
        activation: of an LSTM or GRU, see `lstm` and `gru`.
        recurrent_activation: of the gates of an LSTM or GRU.
        output_activation: of c' of an LSTM; None: as activation.
        clip: the bound of what functions are given; None: none.
        coupled_gates: of an LSTM, whether ``f = 1 - i``.
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
    options: dict[str, Any] = {"clip": clip}
    if family == "rnn":
        options["nonlinearity"] = nonlinearity
    else:
        options["activation"] = activation
        options["recurrent_activation"] = recurrent_activation
    if family == "gru":
        options["reset_after"] = reset_after
    if family == "lstm":
        options["output_activation"] = output_activation
        options["coupled_gates"] = coupled_gates
        options["peephole"] = weight_peephole is not None
        options["projected"] = weight_hr is not None
        options["layer_norm"] = norms is not None
    _refuse_others(
        family,
        nonlinearity=nonlinearity,
        activation=activation,
        recurrent_activation=recurrent_activation,
        output_activation=output_activation,
        coupled_gates=coupled_gates,
        weight_peephole=weight_peephole,
        reset_after=reset_after,
    )
    cell, scalars = cell_of(family, **options)
    own = _own_weights(weight_peephole, weight_hr, norms)
    weights = [weight_ih, weight_hh, bias_ih, bias_hh, *own]
    return Packed(cell, weights, reverse, precision, scalars)


def _refuse_others(family: str, **given: Any) -> None:
    """Refuse options that the family does not have."""
    owners = {
        "nonlinearity": ("tanh", ("rnn",)),
        "activation": ("tanh", ("lstm", "gru")),
        "recurrent_activation": ("sigmoid", ("lstm", "gru")),
        "output_activation": (None, ("lstm",)),
        "coupled_gates": (False, ("lstm",)),
        "weight_peephole": (None, ("lstm",)),
        "reset_after": (True, ("gru",)),
    }
    for name, value in given.items():
        usual, families = owners[name]
        value = bool(value) if isinstance(value, np.bool_) else value
        if family not in families and value is not usual and (value == usual) is not True:
            plain = isinstance(value, (str, bool, tuple))
            got = _check.quoted(value) if plain else f"a {type(value).__name__}"
            raise ValueError(f"{name}: expected {usual!r} for {family}, got {got}")


def packed_as(
    family: str, weight_ih: Array | Packed, rest: tuple[Any, ...], reverse: bool, chosen: Chosen
) -> Packed:
    """Return weights packed for a cell; those that are packed already have to be for it."""
    if isinstance(weight_ih, Packed):
        if any(r is not None for r in rest):
            raise TypeError("weight_ih: expected no further weights beside packed ones")
        if weight_ih.cell.split("_")[0] != family:
            raise ValueError(
                f"weight_ih: expected weights packed for {family}, got {weight_ih.cell}"
            )
        theirs = Chosen(weight_ih.cell, weight_ih.scalars)
        usual = _usual_cell(family)
        if (reverse and not weight_ih.reverse) or (chosen != usual and chosen != theirs):
            raise ValueError(
                "weight_ih: expected weights packed with the same options, got others; give them "
                "to pack"
            )
        return weight_ih
    return Packed(chosen.cell, [weight_ih, *rest], reverse, None, chosen.scalars)


def packed_lstm(
    weight_ih: Array | Packed,
    rest: tuple[Any, ...],
    weight_hr: Array | None,
    layer_norm: LayerNormWeights | None,
    reverse: bool,
    **options: Any,
) -> Packed:
    """Return the packed weights of an LSTM, whose cell its weights and options tell."""
    norms = _norms(layer_norm)
    chosen = cell_of(
        "lstm",
        **options,
        peephole=rest[3] is not None,
        projected=weight_hr is not None,
        layer_norm=norms is not None,
    )
    own = _own_weights(rest[3], weight_hr, norms)
    return packed_as("lstm", weight_ih, (*rest[:3], *own), reverse, chosen)


readable(globals())
