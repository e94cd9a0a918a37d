"""Compute what is constant in an ONNX graph: weights behind Unsqueeze, Transpose and the like.

Shapes are computed as well, with the names of axes in place of sizes that are not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._check import Array
from ._graph_ops import clamped, shape_of, split_sizes

_LARGEST = 2**31  # elements of a constant that takes no memory
_SPARE = 2**22  # elements that constants of any model may be computed to


class Budget:
    """How many elements may still be computed, so that a small file does not ask for much memory.

    Args:
        given: elements that the model has itself.
    """

    def __init__(self, given: int) -> None:
        self._left = 4 * given + _SPARE

    def take(self, count: int) -> None:
        """Take so many elements; raise where there are fewer.

        Raises:
            ValueError: too little is left.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError(
                "graph: expected constants of about the size of the model, got operators that "
                "make far more of them"
            )


class Unknown(Exception):
    """Tell that an operator is not one of those that constants are computed with."""


class Zeros:
    """An array of zeros, whose shape is not known."""


def tensor(onnx: Any, proto: Any) -> Array:
    """Return the array of a TensorProto; bfloat16 and half as float32."""
    if proto.data_location == onnx.TensorProto.EXTERNAL:  # `onnx.load` has read those of a path
        raise ValueError("numbers in another file, which are read for a path alone")
    a: Array = onnx.numpy_helper.to_array(proto)
    if a.dtype.name == "bfloat16" or a.dtype == np.float16:
        a = a.astype(np.float32)
    return a


def dense(onnx: Any, proto: Any, budget: Budget) -> Array:
    """Return the array of a SparseTensorProto: zeros, but for the values at some indices.

    Args:
        onnx: the module.
        proto: values, with their indices in the flat array or along each axis.
        budget: which all elements are taken from.

    Raises:
        ValueError: indices or a shape that do not fit, or too large an array.
    """
    values, at = tensor(onnx, proto.values), tensor(onnx, proto.indices)
    shape = tuple(int(n) for n in proto.dims)
    if any(n < 0 for n in shape) or values.ndim != 1 or len(at) != len(values):
        raise ValueError(f"{values.shape} values at {at.shape} indices of shape {shape}")
    size = math.prod(shape)
    budget.take(size)
    if at.ndim == 2:
        at = np.ravel_multi_index(tuple(at.T), shape)
    if at.ndim != 1 or (len(at) and not 0 <= at.min() <= at.max() < size):
        raise ValueError(f"indices beyond shape {shape}")
    out = np.zeros(size, values.dtype)
    out[at] = values
    return out.reshape(shape)


def _ints(a: Any) -> list[Any]:
    return list(np.atleast_1d(a))


def axes_of(given: Mapping[str, Any], inputs: list[Any]) -> tuple[int, ...] | None:
    """Return the axes of Squeeze and Unsqueeze, an attribute before opset 13."""
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else given.get("axes")
    return None if axes is None else tuple(int(k) for k in _ints(axes))


def _unsqueeze(given: Mapping[str, Any], inputs: list[Any]) -> Array:
    axes = axes_of(given, inputs)
    if axes is None:
        raise Unknown
    out: Array = np.expand_dims(inputs[0], axes)
    return out


def _slice(given: Mapping[str, Any], inputs: list[Any]) -> Array:
    a: Array = inputs[0]
    starts, ends, axes, steps = slice_of(given, inputs, a.ndim)
    index: list[Any] = [slice(None)] * a.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        index[axis] = clamped(start, end, step, a.shape[axis])
    out: Array = a[tuple(index)]
    return out


def slice_of(
    given: Mapping[str, Any], inputs: list[Any], ndim: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return starts, ends, axes and steps of a Slice."""
    parts: list[Any] = [*inputs[1:], None, None, None, None]
    starts = parts[0] if parts[0] is not None else given["starts"]
    ends = parts[1] if parts[1] is not None else given["ends"]
    count = len(_ints(starts))
    axes = parts[2] if parts[2] is not None else given.get("axes", list(range(count)))
    steps = parts[3] if parts[3] is not None else [1] * count
    lists = [[int(k) for k in _ints(v)] for v in (starts, ends, axes, steps)]
    return lists[0], lists[1], [k % max(ndim, 1) for k in lists[2]], lists[3]


def _reshape(given: Mapping[str, Any], inputs: list[Any]) -> Array:
    a: Array = inputs[0]
    target = [int(k) for k in _ints(inputs[1])] if np.size(inputs[1]) else []
    keep = not given.get("allowzero", 0)
    shape = [a.shape[k] if n == 0 and keep else n for k, n in enumerate(target)]
    return a.reshape(shape)


def _split(given: Mapping[str, Any], inputs: list[Any]) -> list[Array]:
    axis = int(given.get("axis", 0))
    sizes = split_sizes(given, inputs[1] if len(inputs) > 1 else None, np.shape(inputs[0])[axis])
    return np.split(inputs[0], np.cumsum(sizes)[:-1], axis)


def _expanded(shape: Any, value: Array) -> Any:
    """Return a value, repeated without taking memory; zeros where the shape is not known."""
    sizes = _ints(shape) if np.size(shape) else []
    if any(isinstance(n, str) for n in sizes):
        if not _is_zero(value):
            raise Unknown
        return Zeros()
    counts = tuple(int(n) for n in sizes)
    shape = np.broadcast_shapes(value.shape, counts)
    if any(n < 0 for n in counts) or math.prod(shape) > _LARGEST:
        raise Unknown
    return np.broadcast_to(value, shape)


def _is_zero(value: Any) -> bool:
    """Whether there are elements, of which all are 0."""
    return isinstance(value, Zeros) or bool(np.size(value) and not np.any(value))


def _cast(given: Mapping[str, Any], inputs: list[Any]) -> Array:
    a: Array = inputs[0]
    kind = {1: np.float32, 11: np.float64, 6: np.int32, 7: np.int64, 10: np.float32}
    if a.dtype == object:
        return a
    if given.get("to") not in kind:
        raise Unknown
    return a.astype(kind[given["to"]])


def _filled(given: Mapping[str, Any], inputs: list[Any]) -> Any:
    value = given.get("value")
    return _expanded(inputs[0], np.float32(0) if value is None else np.asarray(value).reshape(()))


def _arithmetic(f: Callable[[Any, Any], Any]) -> Callable[[Mapping[str, Any], list[Any]], Array]:
    def of(given: Mapping[str, Any], inputs: list[Any]) -> Array:
        # Names of axes stand for sizes that are not known: they cannot be numbers.
        a, b = (np.asarray(v, np.int64) if v.dtype == object else v for v in inputs)
        out: Array = f(a, b)
        return out

    return of


_FOLDS: dict[str, Callable[[Mapping[str, Any], list[Any]], Any]] = {
    "Identity": lambda given, inputs: inputs[0],
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda given, inputs: np.squeeze(inputs[0], axes_of(given, inputs)),
    "Transpose": lambda given, inputs: np.transpose(inputs[0], given.get("perm")),
    "Concat": lambda given, inputs: np.concatenate(inputs, int(given["axis"])),
    "Slice": _slice,
    "Reshape": _reshape,
    "Split": _split,
    "Cast": _cast,
    "Gather": lambda given, inputs: np.take(
        inputs[0], np.asarray(inputs[1], np.int64), int(given.get("axis", 0))
    ),
    "Expand": lambda given, inputs: _expanded(inputs[1], inputs[0]),
    "ConstantOfShape": _filled,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Shape": lambda given, inputs: shape_of(given, np.array(np.shape(inputs[0]), np.int64)),
}
# What gives zeros of its first input, when that is zeros, whatever the others are.
_ZEROS_STAY = {
    *("Identity", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Reshape", "Split", "Cast"),
    *("Gather", "Expand"),
}


def _zeros(kind: str, given: Mapping[str, Any], inputs: list[Any]) -> Any:
    """Return what an operator makes of zeros whose shape is not known."""
    there = all(_is_zero(a) for a in inputs) if kind == "Concat" else isinstance(inputs[0], Zeros)
    if not there or kind not in _ZEROS_STAY | {"Concat"}:
        raise Unknown
    return [Zeros() for _ in range(int(given["outputs"]))] if kind == "Split" else Zeros()


def _copied(kind: str, given: Mapping[str, Any], inputs: list[Any]) -> int:
    """Return how many elements an operator makes that are no view of its inputs."""
    if kind in ("Add", "Sub", "Mul"):
        return math.prod(np.broadcast_shapes(*(np.shape(a) for a in inputs[:2])))
    if kind == "Gather":
        rows: tuple[int, ...] = np.shape(inputs[0])
        picked = rows[int(given.get("axis", 0))]
        return math.prod(rows) // max(picked, 1) * int(np.size(inputs[1]))
    if kind == "Concat":
        return sum(int(np.size(a)) for a in inputs)
    return int(np.size(inputs[0])) if kind in ("Cast", "Reshape") else 0


def fold(kind: str, given: Mapping[str, Any], inputs: list[Any], budget: Budget) -> Any:
    """Return the outputs of an operator on constants: an array, a list of them, or `Zeros`.

    Raises:
        Unknown: it is not one of those, or the inputs do not fit it.
        ValueError: it makes more elements than the budget has left.
    """
    if kind not in _FOLDS or not inputs or inputs[0] is None:
        raise Unknown
    try:
        if any(isinstance(a, Zeros) for a in inputs):
            return _zeros(kind, given, inputs)
        count = _copied(kind, given, inputs)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
        raise Unknown from None
    budget.take(count)
    try:
        return _FOLDS[kind](given, inputs)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
        raise Unknown from None
