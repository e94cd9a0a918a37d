"""Run the kernels for Keras on JAX: callbacks on its buffers, with a gradient of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from . import _keras_kernels as kernels
from ._keras_kernels import Inputs, Options, Result

# Not pure_callback: it makes arrays of JAX of what it is given, for which it waits within a thread
# of the pool that has to make them. With one or two cores a step then may never end.
try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError as error:
    raise ImportError(
        f"ostinato.interop.keras: expected JAX 0.6.1 or later, got {jax.__version__}"
    ) from error


def _named(present: tuple[bool, ...], buffers: list[Any]) -> Inputs:
    """Take as many buffers from the front of a list as inputs have, by name, as arrays."""
    return Inputs(*(np.asarray(buffers.pop(0)) if there else None for there in present))


def _given(inputs: Any) -> list[Any]:
    return [a for a in inputs if a is not None]


def _shape(a: Any) -> Any:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _write(out: Any, arrays: tuple[Any, ...]) -> None:
    for buffer, a in zip(out, arrays, strict=True):
        np.asarray(buffer)[...] = a


def _run(options: Options, inputs: Inputs, save: bool) -> tuple[Result, Any]:
    """Run the forward pass; return what it computes, and the number of the tape."""
    present = tuple(a is not None for a in inputs)

    def run(_: Any, out: Any, *buffers: Any) -> None:
        _write(out, kernels.forward_kept(options, save, _named(present, list(buffers))))

    x, h = inputs.x, inputs.h0
    y = jax.ShapeDtypeStruct((*x.shape[:2], h.shape[1]), x.dtype)
    states = [_shape(h)] * (2 if options.has_c else 1)
    number = jax.ShapeDtypeStruct((), np.int32)
    call = buffer_callback(run, (y, *states, number), vmap_method="sequential")
    *result, number = call(*_given(inputs))
    return Result(*result, *([] if options.has_c else [None])), number


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrent(options: Options, inputs: Inputs) -> Result:
    return _run(options, inputs, False)[0]


def _forward(options: Options, inputs: Inputs) -> tuple[Result, Any]:
    result, number = _run(options, inputs, True)
    return result, (inputs, number)


def _backward(options: Options, saved: Any, grads: Result) -> tuple[Inputs]:
    inputs, number = saved
    present = tuple(a is not None for a in inputs)

    def run(_: Any, out: Any, *buffers: Any) -> None:
        rest = list(buffers)
        given = _named(present, rest)
        *own, number = (np.asarray(b) for b in rest)
        full = Result(*own, *([] if options.has_c else [None]))
        _write(out, kernels.backward_kept(options, given, full, number))

    sought = inputs._replace(mask=None)
    shapes = tuple(_shape(a) for a in _given(sought))
    call = buffer_callback(run, shapes, vmap_method="sequential")
    found = list(call(*_given(inputs), *_given(grads), number))
    return (Inputs(*(None if a is None else found.pop(0) for a in sought)),)


_recurrent.defvjp(_forward, _backward)


def recurrent(options: Options, inputs: Inputs, training: bool) -> Result:
    """Run one layer."""
    if jax.default_backend() != "cpu":
        raise RuntimeError(
            f"sequences: expected JAX on the CPU, got {jax.default_backend()}; set "
            "JAX_PLATFORMS=cpu, or use the layer of keras.layers"
        )
    result: Result = _recurrent(options, inputs)
    return result
