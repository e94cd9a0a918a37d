"""Check the arguments of a call inside JAX, and run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _check, _core
from .._cells import facts_of
from .._functions import Chosen
from . import _jax_calls as calls
from ._jax_calls import INPUTS, Array, Options
from ._jax_ops import alike, recurrent_p

_FLOATS = ("float32", "float64", "bfloat16", "float16")
_INTEGERS = ("int32", "int64")  # that the kernels read


def _flag(name: str, value: Any) -> bool:
    """Return True or False, which are no part of what JAX traces."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name}: expected True or False, got a value that JAX traces; name the argument in "
            "static_argnames of jax.jit"
        )
    if isinstance(value, jax.Array) and value.ndim == 0:
        value = value.item()
    return _check.flag(name, value)


def _taken(name: str, value: Any, wanted: str) -> Array:
    """Return what JAX makes an array of; of a text it would take the name of a dtype."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return jnp.asarray(value)
    except (TypeError, ValueError) as e:
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}") from e


def _array(name: str, value: Any, ndim: int | None, like: Array | None = None) -> Array:
    """Return an array of real numbers with so many axes, of the dtype of x."""
    a = _taken(name, value, "an array")
    if str(a.dtype) not in _FLOATS:
        raise TypeError(f"{name}: expected dtype {', '.join(_FLOATS)}, got {a.dtype}")
    if like is not None and a.dtype != like.dtype:
        raise TypeError(
            f"{name}: expected dtype {like.dtype}, that of x, got {a.dtype}; use "
            f"{name}.astype({str(like.dtype)!r})"
        )
    if ndim is not None and a.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {a.shape}")
    return a


def _shaped(name: str, a: Array, names: str, shape: tuple[int, ...]) -> Array:
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {names} = {shape}, got {a.shape}")
    return a


def _sizes(cell: str, weights: Sequence[Any], like: Array) -> tuple[int, int, int]:
    """Return I, H and P of the weights."""
    w_ih, w_hh = (_array(n, w, 2, like) for n, w in zip(("weight_ih", "weight_hh"), weights))
    hidden = output = w_hh.shape[1]
    if facts_of(cell).get("projected"):
        output, hidden = _array("weight_hr", weights[5], 2, like).shape
    if 0 in (w_ih.shape[1], hidden, output):
        raise ValueError(
            f"weight_ih, weight_hh: expected sizes of at least 1, got shapes {w_ih.shape} and "
            f"{w_hh.shape}"
        )
    return w_ih.shape[1], hidden, output


def _weights(cell: str, given: Sequence[Any], like: Array) -> tuple[list[Any], Any]:
    """Return the weights in their places, and (I, H, P)."""
    sizes = _sizes(cell, given, like)
    names = {"weight_ih": "(G*H, I)", "weight_hh": "(G*H, P)", "weight_hr": "(P, H)"}
    out = []
    for (name, shape), w in zip(calls.weight_slots(cell, *sizes), given):
        if w is not None:
            w = _array(name, w, len(shape), like)
            own = names.get(name, "(G*H,)" if len(shape) == 1 else "(gates, H)")
            w = _shaped(name, w, own, shape)
        out.append(w)
    return out, sizes


def _reset_state(state: Any, has_c: bool) -> tuple[Any, Any]:
    """Return h and c after a reset."""
    pair = isinstance(state, (tuple, list)) and len(state) == 2
    if state is not None and pair != has_c:
        raise TypeError(
            f"reset_state: expected h, or (h, c) for an LSTM, got {type(state).__name__}"
        )
    return (state[0], state[1]) if pair else (state, None)


def _precision(cell: Chosen, dtype: Any, asked: str | None) -> tuple[Any, str]:
    """Return the dtype in which the kernels compute, and what their products multiply."""
    computed = jnp.float64 if str(dtype) == "float64" else jnp.float32
    names = [str(dtype), *(["bfloat16"] if computed == jnp.float32 else [])]
    _check.choice("precision", str(dtype) if asked is None else asked, names)
    low = (str(dtype) if asked is None else asked) == "bfloat16"
    if low and asked is not None and cell.scalars:
        raise ValueError(
            f"precision: expected {str(dtype)!r} for a cell with functions, a clip or coupled "
            "gates of its own, got 'bfloat16'"
        )
    return computed, "bfloat16" if low and not cell.scalars else "exact"


class _Call(NamedTuple):
    """How the arrays of a call are laid out.

    Attributes:
        x: ``[T,B,I]``, or ``[B,T,I]`` if batch_first.
        batch_first: whether the batch is the first axis.
        single: whether the call has no axis of the batch.
    """

    x: Array
    batch_first: bool
    single: bool

    @property
    def steps(self) -> int:
        """T."""
        return int(self.x.shape[1 if self.batch_first else 0])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.x.shape[0 if self.batch_first else 1])

    def state(self, name: str, value: Any, letter: str, size: int) -> Array:
        """Return a state ``[B,size]``; of a call without a batch it is given without B."""
        a = _array(name, value, 1 if self.single else 2, self.x)
        a = a[None] if self.single else a
        return _shaped(name, a, f"(B, {letter})", (self.batch, size))

    def lengths(self, value: Any) -> Array:
        """Return lengths ``[B]``; their values are checked here where they are known."""
        value = _plain_lengths(value)
        value = value[None] if self.single and value.ndim == 0 else value
        if not isinstance(value, jax.Array):
            return jnp.asarray(_check.lengths(value, self.steps, self.batch))
        if value.dtype.kind not in "iu":
            raise TypeError(f"lengths: expected an integer dtype, got {value.dtype}")
        _shaped("lengths", value, "(B,)", (self.batch,))
        return value if str(value.dtype) in _INTEGERS else self._signed(value)

    def _signed(self, value: Array) -> Array:
        """Return lengths of another dtype in one of the kernels; what it cannot hold is refused."""
        if value.dtype.kind == "u" and not isinstance(value, jax.core.Tracer):
            return jnp.asarray(_check.lengths(np.asarray(value), self.steps, self.batch))
        wide = jnp.int64 if jax.config.jax_enable_x64 and value.dtype.itemsize > 2 else jnp.int32
        if value.dtype.kind == "u" and value.dtype.itemsize >= wide.dtype.itemsize:
            value = jnp.minimum(value, value.dtype.type(jnp.iinfo(wide).max))  # beyond T as well
        return value.astype(wide)

    def flags(self, name: str, value: Any) -> Array:
        """Return resets or a mask, with the first two axes of x."""
        a = _taken(name, value, "a bool array")
        if a.dtype != np.bool_:
            raise TypeError(f"{name}: expected dtype bool, got {a.dtype}; use {name}.astype(bool)")
        names = "(T,)" if self.single else "(B, T)" if self.batch_first else "(T, B)"
        axes = self.x.shape[:2]
        return _shaped(name, a, names, (self.steps,) if self.single else axes).reshape(axes)


def _plain_lengths(value: Any) -> Any:
    """Return lengths as an array, of JAX where something of them is one."""
    listed = isinstance(value, (list, tuple))
    try:
        if listed and any(isinstance(v, jax.Array) for v in value):
            return jnp.asarray(value)
        return value if hasattr(value, "shape") else np.asarray(value)
    except (TypeError, ValueError) as e:
        raise TypeError(f"lengths: expected whole numbers [B], got {_check.quoted(value)}") from e


def _inputs(
    call: _Call,
    sizes: tuple[int, int, int],
    states: tuple[Any, Any],
    times: tuple[Any, Any, Any, str],
    reset: tuple[Any, Any],
) -> dict[str, Any]:
    """Return all inputs by name, None for those that there are not."""
    size, hidden, output = sizes
    given: dict[str, Any] = dict.fromkeys(INPUTS)
    names = "(B, T, I)" if call.batch_first else "(T, B, I)"
    given["x"] = _shaped("x", call.x, names, (*call.x.shape[:2], size))
    widths = ((output, "H" if output == hidden else "P"), (hidden, "H"))
    for name, state, (width, letter) in zip(("h0", "c0"), states, widths):
        if state is not None:
            given[name] = call.state(name, state, letter, width)
    lengths, resets, mask, _ = times
    if lengths is not None:
        given["lengths"] = call.lengths(lengths)
    for name, flags in (("resets", resets), ("mask", mask)):
        if flags is not None:
            given[name] = call.flags(name, flags)
    for name, state, (width, letter) in zip(("reset_h", "reset_c"), reset, widths):
        if state is not None:
            a = _array("reset_state", state, 1, call.x)
            given[name] = _shaped("reset_state", a, f"({letter},)", (width,))
    return given


def recurrent(
    cell: Chosen,
    x: Any,
    weights: Sequence[Any],
    states: tuple[Any, Any],
    times: tuple[Any, Any, Any, str],
    reset_state: Any,
    *,
    reverse: bool,
    batch_first: bool,
    precision: str | None,
) -> tuple[Array, ...]:
    """Run a layer: y, h_n and, of a cell that has it, c_n.

    Args:
        cell: the cell and its numbers.
        x: ``[T,B,I]``, ``[B,T,I]`` if batch_first, or ``[T,I]``.
        weights: in the order of the kernels, None for what there is not.
        states: h0 and c0, or None.
        times: lengths, resets, mask and masked.
        reset_state: the state after a reset, or None.
        reverse: whether to run from the end.
        batch_first: whether the batch is the first axis.
        precision: what the products multiply, or None.
    """
    reverse, batch_first = _flag("reverse", reverse), _flag("batch_first", batch_first)
    x = _array("x", x, None)
    single = x.ndim == 2
    if not single and x.ndim != 3:
        raise ValueError(f"x: expected 3 axes, or 2 of one sequence, got shape {x.shape}")
    dtype = x.dtype
    arrays, sizes = _weights(cell.cell, weights, x)
    if single:
        x = x[None] if batch_first else x[:, None]
    reset = _reset_state(reset_state, facts_of(cell.cell)["states"] > 1)
    given = _inputs(_Call(x, batch_first, single), sizes, states, times, reset)
    computed, products = _precision(cell, dtype, precision)
    options = Options(
        cell=cell.cell,
        scalars=cell.scalars,
        input=sizes[0],
        hidden=sizes[1],
        output=sizes[2],
        precision=products,
        reverse=reverse,
        batch_first=batch_first,
        repeat=_check.choice("masked", times[3], ("repeat", "zero")) == "repeat",
        weights=calls.mask_of([w is not None for w in arrays]),
        given=calls.mask_of([given[n] is not None for n in INPUTS]),
        kernels=_core.kernels(),
        bridge=calls.bridge()[0],
    )
    operands = [a for a in (*arrays, *given.values()) if a is not None]
    own = alike([a.astype(computed) if a.dtype == dtype else a for a in operands])
    y, *final = (a.astype(dtype) for a in recurrent_p.bind(*own, options=options))
    if single:
        return (y[0] if batch_first else y[:, 0]), *(s[0] for s in final)
    return y, *final
