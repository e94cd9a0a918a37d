"""Run the kernels for Keras on TensorFlow: functions of NumPy, with a gradient of their own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import _keras_kernels as kernels
from ._keras_kernels import Inputs, Options, Result


def _named(present: tuple[bool, ...], arrays: list[Any]) -> Inputs:
    """Take as many arrays from the front of a list as inputs have, by name."""
    return Inputs(*(arrays.pop(0) if there else None for there in present))


def recurrent(options: Options, inputs: Inputs, training: bool) -> Result:
    """Run one layer.

    The pass saves what a backward pass reads if it is one of training; a gradient of another one
    runs it again.
    """
    present = tuple(t is not None for t in inputs)
    count = 3 if options.has_c else 2

    def forward(*arrays: Any) -> tuple[Any, ...]:
        return kernels.forward_kept(options, training, _named(present, list(arrays)))

    def backward(*arrays: Any) -> tuple[Any, ...]:
        rest = list(arrays)
        given = _named(present, rest)
        *own, number = rest
        grads = Result(*own, *([] if options.has_c else [None]))
        return kernels.backward_kept(options, given, grads, number)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*tensors: Any) -> Any:
        x, h0 = tensors[:2]
        kinds = [x.dtype] * count
        *out, number = tf.numpy_function(forward, tensors, [*kinds, tf.int32])
        out[0].set_shape([x.shape[0], x.shape[1], h0.shape[1]])
        for state in out[1:]:
            state.set_shape(h0.shape)

        def pull(*grads: Any) -> list[Any]:
            given = [t for t in tensors if t.dtype != tf.bool]
            dtypes = [t.dtype for t in given]
            found = tf.numpy_function(backward, [*tensors, *grads, number], dtypes)
            for d, t in zip(found, given):
                d.set_shape(t.shape)
            return [*found, *[None] * (len(tensors) - len(given))]

        return out, pull

    out = run(*(t for t in inputs if t is not None))
    return Result(out[0], out[1], out[2] if options.has_c else None)
