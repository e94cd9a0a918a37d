"""Run a long short-term memory."""

from __future__ import annotations

from typing import Any

from .._annotations import readable
from .._check import Array, Lengths
from .._functions import Function
from ._pullback import Pullback
from ._run import Sequences, apply, arguments, train
from ._weights import LayerNormWeights, Packed, packed_lstm


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
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    output_activation: Function | None = None,
    clip: float | None = None,
    coupled_gates: bool = False,
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
        weight_hr: ``[P,H]``, the projection of h, without peepholes; None: h is not projected.
        layer_norm: gains and shift of a layer-norm LSTM, without peepholes and projection; None:
            nothing is normed.
        activation: of the candidate g, and of c' unless output_activation is given, by its
            name or as a tuple with its parameters, such as ("elu", 1.0); see `ostinato.functional`
            for the list.
        recurrent_activation: of the gates i f o, one of the same.
        output_activation: of c', which is not clipped; None: as activation.
        clip: bound of what the functions are given: beyond [-clip, clip] an input counts as the
            bound, and its gradient is zero. None: no bound.
        coupled_gates: whether ``f = 1 - i``, as ONNX' input_forget.
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
    packed = packed_lstm(
        weight_ih,
        weights,
        weight_hr,
        layer_norm,
        reverse,
        activation=activation,
        recurrent_activation=recurrent_activation,
        output_activation=output_activation,
        clip=clip,
        coupled_gates=coupled_gates,
    )
    y, h_n, c_n = apply(
        arguments(packed, x, h0, c0, (lengths, resets, mask, masked), reset_state), out
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
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    output_activation: Function | None = None,
    clip: float | None = None,
    coupled_gates: bool = False,
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
        weight_hr: ``[P,H]``, the projection of h, without peepholes; None: h is not projected.
        layer_norm: gains and shift of a layer-norm LSTM, without peepholes and projection; None:
            nothing is normed.
        activation: of the candidate g, and of c' unless output_activation is given, by its
            name or as a tuple with its parameters, such as ("elu", 1.0); see `ostinato.functional`
            for the list.
        recurrent_activation: of the gates i f o, one of the same.
        output_activation: of c', which is not clipped; None: as activation.
        clip: bound of what the functions are given: beyond [-clip, clip] an input counts as the
            bound, and its gradient is zero. None: no bound.
        coupled_gates: whether ``f = 1 - i``, as ONNX' input_forget.
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
    packed = packed_lstm(
        weight_ih,
        weights,
        weight_hr,
        layer_norm,
        reverse,
        activation=activation,
        recurrent_activation=recurrent_activation,
        output_activation=output_activation,
        clip=clip,
        coupled_gates=coupled_gates,
    )
    call = arguments(packed, x, h0, c0, (lengths, resets, mask, masked), reset_state)
    y, h_n, c_n, pullback = train(call, memory_limit, outputs)
    assert c_n is not None
    return (y, (h_n, c_n)), pullback


readable(globals())
