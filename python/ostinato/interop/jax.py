"""Recurrent layers inside JAX: the functions of `ostinato.functional` for its arrays.

They work under ``jax.jit``, ``jax.grad``, ``jax.vmap``, ``jax.checkpoint`` and inside
``jax.lax.scan``, on the CPU. This module imports JAX; nothing else of ostinato does.

>>> import jax
>>> import jax.numpy as jnp
>>> from ostinato.interop import jax as ost_jax
>>> w_ih, w_hh, x = jnp.ones((12, 3)), jnp.ones((12, 4)), jnp.ones((7, 2, 3))
>>> y, h = jax.jit(ost_jax.gru)(x, w_ih, w_hh)
>>> y.shape, h.shape
((7, 2, 4), (2, 4))
>>> jax.grad(lambda w: ost_jax.gru(x, w_ih, w)[0].sum())(w_hh).shape
(12, 4)
"""

from __future__ import annotations

from typing import Any

from ._imported import require as _require

_require("jax", "jax", "ostinato.interop.jax")

from .._annotations import readable as _readable  # noqa: E402
from .._functions import Function  # noqa: E402
from ..functional import LayerNormWeights  # noqa: E402
from ..functional._weights import _own_weights  # noqa: E402
from ..functional._weights import cell_of as _cell_of  # noqa: E402
from . import _jax_calls  # noqa: E402
from ._jax_arguments import recurrent as _recurrent  # noqa: E402

__all__ = ["bridge", "gru", "lstm", "rnn"]


def bridge() -> str:
    """Return how passes run inside JAX.

    >>> from ostinato.interop import jax as ost_jax
    >>> ost_jax.bridge()
    'ffi'

    Returns:
        "ffi": as custom calls of XLA, on its own buffers and without Python. Or
        "callback: ..." with the reason why XLA does not take our handlers: as callbacks on
        NumPy arrays, whose backward pass runs the forward pass again.
    """
    kind, reason = _jax_calls.bridge()
    return kind if kind == "ffi" else f"callback: {reason}"


def rnn(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    nonlinearity: Function = "tanh",
    clip: float | None = None,
    lengths: Any = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    precision: str | None = None,
) -> tuple[Any, Any]:
    """Run an Elman network, as `ostinato.functional.rnn` does.

    >>> import jax.numpy as jnp
    >>> from ostinato.interop import jax as ost_jax
    >>> x, w_ih, w_hh = jnp.ones((3, 1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 1))
    >>> y, h_n = ost_jax.rnn(x, w_ih, w_hh, nonlinearity="relu")
    >>> y.ravel().tolist()
    [2.0, 2.0, 2.0]

    Args:
        x: ``[T,B,I]``, ``[B,T,I]`` if batch_first, or one sequence ``[T,I]``: then nothing has a
            B. All arrays of real numbers have its dtype: float32, float64 (with
            ``jax_enable_x64``), bfloat16 or float16.
        weight_ih: ``[H,I]``.
        weight_hh: ``[H,H]``.
        bias_ih: ``[H]``, or None.
        bias_hh: ``[H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        nonlinearity: phi, see `ostinato.functional.rnn`.
        clip: bound of what phi is given; None: no bound.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True the step starts from
            ``reset_state``; see `ostinato.functional.rnn`.
        mask: bool, shaped as resets. A step where it is False is skipped.
        masked: the output of a skipped step: "repeat" (of the step before it) or "zero".
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        batch_first: whether the batch is the first axis of x, y, resets and mask.
        precision: "bfloat16": what products multiply in place of float32. None: the dtype of x.

    Returns:
        ``y`` as x with H features, zero past the end of a row, and ``h_n [B,H]`` at the last real
        step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape or value; the message names it.
        NotImplementedError: a second derivative, one in forward mode, or arrays of a GPU.
    """
    cell = _cell_of("rnn", nonlinearity=nonlinearity, clip=clip)
    y, h_n = _recurrent(
        cell,
        x,
        [weight_ih, weight_hh, bias_ih, bias_hh, None],
        (h0, None),
        (lengths, resets, mask, masked),
        reset_state,
        reverse=reverse,
        batch_first=batch_first,
        precision=precision,
    )
    return y, h_n


def lstm(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    c0: Any = None,
    *,
    weight_peephole: Any = None,
    weight_hr: Any = None,
    layer_norm: LayerNormWeights | None = None,
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    output_activation: Function | None = None,
    clip: float | None = None,
    coupled_gates: bool = False,
    lengths: Any = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    precision: str | None = None,
) -> tuple[Any, tuple[Any, Any]]:
    """Run a long short-term memory, as `ostinato.functional.lstm` does; gates in the order i f g o.

    >>> import jax.numpy as jnp
    >>> from ostinato.interop import jax as ost_jax
    >>> x, w = jnp.ones((3, 2, 1)), jnp.ones((4, 1))
    >>> y, (h_n, c_n) = ost_jax.lstm(x, w, w, lengths=[3, 0])
    >>> y.shape, float(y[:, 1].sum())
    ((3, 2, 1), 0.0)

    Args:
        x: ``[T,B,I]``, ``[B,T,I]`` if batch_first, or one sequence ``[T,I]``: then nothing has a
            B. All arrays of real numbers have its dtype: float32, float64 (with
            ``jax_enable_x64``), bfloat16 or float16.
        weight_ih: ``[4*H,I]``.
        weight_hh: ``[4*H,H]``; ``[4*H,P]`` beside weight_hr.
        bias_ih: ``[4*H]``, or None.
        bias_hh: ``[4*H]``, or None.
        h0: ``[B,H]`` (``[B,P]`` beside weight_hr), h before the first step; None: zeros.
        c0: ``[B,H]``, c before the first step; None: zeros.
        weight_peephole: ``[3,H]`` in the order i f o; None: no peepholes.
        weight_hr: ``[P,H]``, the projection of h; None: h is not projected.
        layer_norm: gains and shift of a layer-norm LSTM; None: nothing is normed.
        activation: of g, and of c' unless output_activation is given; see
            `ostinato.functional.lstm`.
        recurrent_activation: of the gates i f o.
        output_activation: of c'; None: as activation.
        clip: bound of what the functions are given; None: no bound.
        coupled_gates: whether ``f = 1 - i``.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True the step starts from
            ``reset_state``; see `ostinato.functional.lstm`.
        mask: bool, shaped as resets. A step where it is False is skipped.
        masked: the output of a skipped step: "repeat" (of the step before it) or "zero".
        reset_state: ``(h, c)`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        batch_first: whether the batch is the first axis of x, y, resets and mask.
        precision: "bfloat16": what products multiply in place of float32. None: the dtype of x.

    Returns:
        ``y`` as x with H (or P) features, zero past the end of a row, and ``(h_n, c_n)`` at the
        last real step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape or value; the message names it.
        NotImplementedError: a second derivative, one in forward mode, or arrays of a GPU.
    """
    names = LayerNormWeights._fields
    if layer_norm is not None and not (
        isinstance(layer_norm, (tuple, list)) and len(layer_norm) == len(names)
    ):
        got = type(layer_norm).__name__
        raise TypeError(f"layer_norm: expected the arrays {', '.join(names)}, got {got}")
    cell = _cell_of(
        "lstm",
        peephole=weight_peephole is not None,
        projected=weight_hr is not None,
        layer_norm=layer_norm is not None,
        activation=activation,
        recurrent_activation=recurrent_activation,
        output_activation=output_activation,
        clip=clip,
        coupled_gates=coupled_gates,
    )
    norms = None if layer_norm is None else LayerNormWeights(*layer_norm)
    y, h_n, c_n = _recurrent(
        cell,
        x,
        [weight_ih, weight_hh, bias_ih, bias_hh, *_own_weights(weight_peephole, weight_hr, norms)],
        (h0, c0),
        (lengths, resets, mask, masked),
        reset_state,
        reverse=reverse,
        batch_first=batch_first,
        precision=precision,
    )
    return y, (h_n, c_n)


def gru(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    reset_after: bool = True,
    activation: Function = "tanh",
    recurrent_activation: Function = "sigmoid",
    clip: float | None = None,
    lengths: Any = None,
    resets: Any = None,
    mask: Any = None,
    masked: str = "repeat",
    reset_state: Any = None,
    reverse: bool = False,
    batch_first: bool = False,
    precision: str | None = None,
) -> tuple[Any, Any]:
    """Run a gated recurrent unit, as `ostinato.functional.gru` does; gates in the order r z n.

    >>> import jax.numpy as jnp
    >>> from ostinato.interop import jax as ost_jax
    >>> x, w_ih, w_hh = jnp.zeros((3, 1, 2)), jnp.zeros((3, 2)), jnp.zeros((3, 1))
    >>> y, h_n = ost_jax.gru(x, w_ih, w_hh, h0=jnp.ones((1, 1)))
    >>> y.ravel().tolist()
    [0.5, 0.25, 0.125]

    Args:
        x: ``[T,B,I]``, ``[B,T,I]`` if batch_first, or one sequence ``[T,I]``: then nothing has a
            B. All arrays of real numbers have its dtype: float32, float64 (with
            ``jax_enable_x64``), bfloat16 or float16.
        weight_ih: ``[3*H,I]``.
        weight_hh: ``[3*H,H]``.
        bias_ih: ``[3*H]``, or None.
        bias_hh: ``[3*H]``, or None.
        h0: ``[B,H]``, the state before the first step; None: zeros.
        reset_after: which of the two forms, see `ostinato.functional.gru`.
        activation: of the candidate n, see `ostinato.functional.gru`.
        recurrent_activation: of the gates r z.
        clip: bound of what the functions are given; None: no bound.
        lengths: ``[B]`` whole numbers from 0 to T; row b ends after ``lengths[b]`` steps. None:
            every row has T steps.
        resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True the step starts from
            ``reset_state``; see `ostinato.functional.gru`.
        mask: bool, shaped as resets. A step where it is False is skipped.
        masked: the output of a skipped step: "repeat" (of the step before it) or "zero".
        reset_state: ``h [H]`` after a reset; None: zeros.
        reverse: whether to run from the last real step to the first.
        batch_first: whether the batch is the first axis of x, y, resets and mask.
        precision: "bfloat16": what products multiply in place of float32. None: the dtype of x.

    Returns:
        ``y`` as x with H features, zero past the end of a row, and ``h_n [B,H]`` at the last real
        step.

    Raises:
        TypeError: an argument has the wrong type or dtype; the message names it.
        ValueError: an argument has the wrong shape or value; the message names it.
        NotImplementedError: a second derivative, one in forward mode, or arrays of a GPU.
    """
    cell = _cell_of(
        "gru",
        reset_after=reset_after,
        activation=activation,
        recurrent_activation=recurrent_activation,
        clip=clip,
    )
    y, h_n = _recurrent(
        cell,
        x,
        [weight_ih, weight_hh, bias_ih, bias_hh, None],
        (h0, None),
        (lengths, resets, mask, masked),
        reset_state,
        reverse=reverse,
        batch_first=batch_first,
        precision=precision,
    )
    return y, h_n


_readable(globals())
