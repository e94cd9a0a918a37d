"""Run a gated recurrent unit."""

from __future__ import annotations

from typing import Any

from .._annotations import readable
from .._check import Array, Lengths
from .._functions import Function
from ._pullback import Pullback
from ._run import Sequences, apply, arguments, train
from ._weights import Packed, cell_of, packed_as


def gru(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    reset_after: bool = True,
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    clip: float | None = None,
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
        activation: of the candidate n, by its name or as a tuple with its parameters, such as
            ("elu", 1.0); see `ostinato.functional` for the list.
        recurrent_activation: of the gates r z, one of the same.
        clip: bound of what the functions are given: beyond [-clip, clip] an input counts as the
            bound, and its gradient is zero. None: no bound.
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
    packed = packed_as(
        "gru",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        cell_of(
            "gru",
            reset_after=reset_after,
            activation=activation,
            recurrent_activation=recurrent_activation,
            clip=clip,
        ),
    )
    y, h_n, _ = apply(
        arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state), out
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
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    clip: float | None = None,
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
        activation: of the candidate n, by its name or as a tuple with its parameters, such as
            ("elu", 1.0); see `ostinato.functional` for the list.
        recurrent_activation: of the gates r z, one of the same.
        clip: bound of what the functions are given: beyond [-clip, clip] an input counts as the
            bound, and its gradient is zero. None: no bound.
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
    packed = packed_as(
        "gru",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        cell_of(
            "gru",
            reset_after=reset_after,
            activation=activation,
            recurrent_activation=recurrent_activation,
            clip=clip,
        ),
    )
    call = arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state)
    y, h_n, _, pullback = train(call, memory_limit, outputs)
    return (y, h_n), pullback


readable(globals())
