"""Run the kernels for Keras on TensorFlow: functions of NumPy, with a gradient of their own."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import tensorflow as tf

from .._check import Array
from . import _keras_kernels as kernels
from ._keras_kernels import Inputs, Options, Result

MOST_KEPT = 64  # tapes that wait for a backward pass, which may never come


# -- tapes that a number stands for ----------------------------------------------------------------


class _Kept:
    """Tapes between two calls of a framework that carries arrays only.

    A backward pass takes its tape away. One that finds none runs the forward pass again, so that a
    tape may be dropped: the oldest is, when there are `MOST_KEPT` for which no pass came.
    """

    def __init__(self) -> None:
        self._tapes: OrderedDict[int, Any] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tapes)

    def add(self, tape: Any) -> Array:
        """Return a number ``[]`` for a tape; 0 for None."""
        if tape is None:
            return np.zeros((), np.int32)
        with self._lock:
            number = next(self._numbers) % (2**31 - 1) + 1
            self._tapes[number] = tape
            if len(self._tapes) > MOST_KEPT:
                self._tapes.popitem(last=False)
        return np.asarray(number, np.int32)

    def take(self, number: Array) -> Any:
        """Return the tape of a number and forget it; None if it is not there."""
        with self._lock:
            return self._tapes.pop(int(number), None)


kept = _Kept()


def _forward_kept(options: Options, save: bool, inputs: Inputs) -> tuple[Array, ...]:
    """Run the forward pass; return y, h_n, c_n (if there is one) and the number of the tape."""
    result, tape = kernels.forward(options, inputs, save, own=True)
    return (*(a for a in result if a is not None), kept.add(tape))


def _backward_kept(
    options: Options, inputs: Inputs, grads: Result, number: Array
) -> tuple[Array, ...]:
    """Return the gradients of the arrays that there are, by the number of a tape."""
    found = kernels.backward(options, inputs, grads, kept.take(number))
    return tuple(d for d in found if d is not None)


# -- the layer -------------------------------------------------------------------------------------


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
        return _forward_kept(options, training, _named(present, list(arrays)))

    def backward(*arrays: Any) -> tuple[Any, ...]:
        rest = list(arrays)
        given = _named(present, rest)
        *own, number = rest
        grads = Result(*own, *([] if options.has_c else [None]))
        return _backward_kept(options, given, grads, number)

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
