"""Run an Elman network."""

from __future__ import annotations

from typing import Any

from .._annotations import readable
from .._check import Array, Lengths
from .._functions import Function
from ._pullback import Pullback
from ._run import Sequences, apply, arguments, train
from ._weights import Packed, cell_of, packed_as


def rnn(
    x: Sequences,
    weight_ih: Array | Packed,
    weight_hh: Array | None = None,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    h0: Array | None = None,
    *,
    nonlinearity: Function = "tanh",
    clip: float | None = None,
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
        nonlinearity: phi, by its name or as a tuple with its parameters, such as ("elu", 1.0);
            see `ostinato.functional` for the list.
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

    Source: Elman (1990), "Finding structure in time".
    """
    packed = packed_as(
        "rnn",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        cell_of("rnn", nonlinearity=nonlinearity, clip=clip),
    )
    y, h_n, _ = apply(
        arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state), out
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
    nonlinearity: Function = "tanh",
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
        nonlinearity: phi, by its name or as a tuple with its parameters, such as ("elu", 1.0);
            see `ostinato.functional` for the list.
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
        ``(y, h_n), pullback``: the outputs and the last state of `rnn`, and a pullback, of which
        ``pullback(dy, dh_n)`` gives `Gradients`.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape, stride or value; the message names it.

    Source: Elman (1990); backpropagation through time: Werbos (1990).
    """
    packed = packed_as(
        "rnn",
        weight_ih,
        (weight_hh, bias_ih, bias_hh, None),
        reverse,
        cell_of("rnn", nonlinearity=nonlinearity, clip=clip),
    )
    call = arguments(packed, x, h0, None, (lengths, resets, mask, masked), reset_state)
    y, h_n, _, pullback = train(call, memory_limit, outputs)
    return (y, h_n), pullback


readable(globals())
