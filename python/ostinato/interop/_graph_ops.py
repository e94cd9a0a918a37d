"""Operators of ONNX as functions of NumPy, which `vjp` records.

Each takes the attributes of a node and its inputs, None for one that is left out. Numbers that say
where or how much (axes, shapes, indices) are plain arrays; gradients go through the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn
from .._check import Array
from .._recording import record, value_of
from ..nn._functions import normal_cdf
from ._layers import reverse_order

Given = Mapping[str, Any]
Operator = Callable[..., Any]


def _plain(a: Any) -> Array:
    """Return an array of indices or of a condition, which has no gradient."""
    out: Array = np.asarray(value_of(a))
    return out


def _fixed(a: Any, what: str) -> Array:
    """Return an array of real numbers through which no gradient goes; raise if one should."""
    v = _plain(a)
    if v.dtype.kind == "f" and a is not value_of(a):
        raise TypeError(f"expected {what} without a gradient within vjp, got one that has it")
    return v


def _ints(a: Any) -> list[int]:
    return [int(k) for k in np.atleast_1d(_plain(a))]


def _like(x: Any, number: float) -> Any:
    """Return a number of the dtype of an array, so that float32 stays what it is."""
    return value_of(x).dtype.type(number)


def _axes(at: Given, axes: Any) -> list[int] | None:
    """Return the axes of an operator: an input, an attribute in older versions, None for all."""
    given = at.get("axes") if axes is None else axes
    return None if given is None else _ints(given)


# -- elements --------------------------------------------------------------------------------------


def _divide(at: Given, a: Any, b: Any) -> Any:
    if value_of(a).dtype.kind in "iu":
        quotient = np.abs(a) // np.abs(b)  # towards zero, as in C
        return quotient * np.sign(a) * np.sign(b)
    return a / b


def _modulus(at: Given, a: Any, b: Any) -> Array:
    """Return a rest: of the sign of the divisor, or, as in C, of that of the dividend."""
    f = np.fmod if at.get("fmod", 0) else np.mod
    out: Array = f(_fixed(a, "a dividend"), _fixed(b, "a divisor"))
    return out


def _clip(at: Given, x: Any, low: Any = None, high: Any = None) -> Any:
    low = at.get("min") if low is None else _fixed(low, "a lower bound")
    high = at.get("max") if high is None else _fixed(high, "an upper bound")
    kind = value_of(x).dtype
    if low is not None:
        x = np.maximum(x, np.asarray(low, kind))
    return x if high is None else np.minimum(x, np.asarray(high, kind))


def _power(at: Given, a: Any, b: Any) -> Any:
    exponent, kind = _fixed(b, "an exponent"), value_of(a).dtype
    if kind.kind == "f":
        return np.power(a, exponent.astype(kind))
    return np.power(_plain(a), exponent).astype(kind)  # a whole number to the power of a real one


def _leaky(at: Given, x: Any) -> Any:
    return np.where(_plain(x) < 0, x * _like(x, at.get("alpha", 0.01)), x)


def _elu(at: Given, x: Any) -> Any:
    low = np.minimum(x, _like(x, 0))
    return np.where(_plain(x) < 0, np.expm1(low) * _like(x, at.get("alpha", 1.0)), x)


def _selu(at: Given, x: Any) -> Any:
    y = _elu({"alpha": at.get("alpha", 1.67326319217681884765625)}, x)
    return y * _like(x, at.get("gamma", 1.05070102214813232421875))


def _celu(at: Given, x: Any) -> Any:
    alpha = at.get("alpha", 1.0)
    return np.maximum(x, _like(x, 0)) + _elu(
        {"alpha": alpha}, np.minimum(x, _like(x, 0)) / _like(x, alpha)
    )


def _mish(at: Given, x: Any) -> Any:
    return x * np.tanh(_softplus(at, x))


def _thresholded(at: Given, x: Any) -> Any:
    return np.where(_plain(x) > at.get("alpha", 1.0), x, _like(x, 0))


def _prelu(at: Given, x: Any, slope: Any) -> Any:
    return np.where(_plain(x) < 0, x * slope, x)


def _hard_sigmoid(at: Given, x: Any) -> Any:
    x = x * _like(x, at.get("alpha", 0.2)) + _like(x, at.get("beta", 0.5))
    return np.minimum(np.maximum(x, _like(x, 0)), _like(x, 1))


def _erf(at: Given, x: Any) -> Any:
    v = value_of(x)
    kind = v.dtype.type
    y = 2 * normal_cdf(v * kind(math.sqrt(2))) - 1
    return record(y, (x, lambda d: d * kind(2 / math.sqrt(math.pi)) * np.exp(-v * v)))


def _gelu(at: Given, x: Any) -> Any:
    return nn.gelu(x, approximate=at.get("approximate", "none") == "tanh")


def _softplus(at: Given, x: Any) -> Any:
    return np.logaddexp(x, _like(x, 0))


def _where(at: Given, on: Any, a: Any, b: Any) -> Any:
    return np.where(_plain(on), a, b)


def _cast(at: Given, x: Any) -> Any:
    v = value_of(x)
    to = np.dtype(at["dtype"])
    if v.dtype.kind == "f" and to.kind == "f":
        return x  # of the model's dtype, whatever the file has between its layers
    return v.astype(to)


def _folded(f: Callable[[Any, Any], Any]) -> Operator:
    def of(at: Given, *parts: Any) -> Any:
        out = parts[0]
        for part in parts[1:]:
            out = f(out, part)
        return out

    return of


def _mean_of(at: Given, *parts: Any) -> Any:
    total = _folded(np.add)(at, *parts)
    return total / _like(total, len(parts))


# -- shapes ----------------------------------------------------------------------------------------


def _concat(at: Given, *parts: Any) -> Any:
    return np.concatenate(parts, axis=int(at["axis"]))


def _split(at: Given, x: Any, sizes: Any = None) -> Any:
    axis = int(at.get("axis", 0))
    ends = np.cumsum(split_sizes(at, sizes, x.shape[axis])).tolist()
    front = (slice(None),) * (axis % x.ndim)
    return [x[front + (slice(a, b),)] for a, b in zip([0, *ends[:-1]], ends)]


def split_sizes(at: Given, sizes: Any, length: int) -> list[int]:
    """Return how many elements each part of a Split has.

    Args:
        at: the attributes of the node, and the number of its "outputs".
        sizes: its second input, None where that is left out.
        length: of the axis that is split.

    Returns:
        The sizes; of equal parts the last one is smaller where they do not divide the axis.

    Raises:
        ValueError: the parts are not the axis.
    """
    given = at.get("split") if sizes is None else sizes
    if given is None:
        count = int(at.get("num_outputs", at["outputs"]))
        each = -(-length // count)
        given = [min(each, length - k * each) for k in range(count)]
    parts = _ints(given)
    if sum(parts) != length or min(parts, default=0) < 0:
        raise ValueError(f"expected parts of {length} elements, got {parts}")
    return parts


def _slice(
    at: Given, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    begin = _ints(at["starts"] if starts is None else starts)
    end = _ints(at["ends"] if ends is None else ends)
    chosen = at.get("axes") if axes is None else axes
    along = list(range(len(begin))) if chosen is None else _ints(chosen)
    by = [1] * len(begin) if steps is None else _ints(steps)
    index: list[Any] = [slice(None)] * x.ndim
    for a, b, axis, step in zip(begin, end, along, by):
        index[axis] = clamped(a, b, step, x.shape[axis])
    return x[tuple(index)]


def clamped(start: int, end: int, step: int, length: int) -> slice:
    """Return a slice of an axis as ONNX means it, where a start before the axis is its beginning.

    Args:
        start: of the slice; from the end where negative.
        end: likewise.
        step: not 0.
        length: of the axis.

    Returns:
        What takes those elements of an array.
    """
    start, end = (k + length * (k < 0) for k in (start, end))
    if step > 0:
        return slice(min(max(start, 0), length), min(max(end, 0), length), step)
    start, end = min(max(start, 0), length - 1), min(max(end, -1), length - 1)
    return slice(start, None if end < 0 else end, step)


def _gather(at: Given, x: Any, index: Any) -> Any:
    axis = int(at.get("axis", 0)) % x.ndim
    where = _plain(index)
    front = (slice(None),) * axis
    return x[front + (int(where) if where.ndim == 0 else where,)]


def _gather_elements(at: Given, x: Any, index: Any) -> Any:
    where, axis = _plain(index), int(at.get("axis", 0)) % x.ndim
    # Of the other axes as many elements are taken as the indices have, without broadcasting.
    cut = tuple(slice(None if k == axis else n) for k, n in enumerate(where.shape))
    return np.take_along_axis(x[cut], where, axis=axis)


def _reshape(at: Given, x: Any, shape: Any) -> Any:
    wanted, keep = _ints(shape) if np.size(_plain(shape)) else [], not at.get("allowzero", 0)
    sizes = [x.shape[k] if n == 0 and keep else n for k, n in enumerate(wanted)]
    return np.reshape(x, tuple(sizes))


def _flatten(at: Given, x: Any) -> Any:
    axis = int(at.get("axis", 1))
    shape = x.shape
    cut = axis + len(shape) * (axis < 0)
    return np.reshape(x, (math.prod(shape[:cut]), math.prod(shape[cut:])))


def _squeeze(at: Given, x: Any, axes: Any = None) -> Any:
    chosen = _axes(at, axes)
    shape = x.shape
    if chosen is None:
        chosen = [k for k, n in enumerate(shape) if n == 1]
    gone = {k % len(shape) for k in chosen}
    if any(shape[k] != 1 for k in gone):
        raise ValueError(f"expected axes of 1 to be squeezed, got {sorted(gone)} of {shape}")
    return np.reshape(x, tuple(n for k, n in enumerate(shape) if k not in gone))


def _unsqueeze(at: Given, x: Any, axes: Any = None) -> Any:
    chosen = _axes(at, axes) or []
    count = np.ndim(value_of(x)) + len(chosen)
    new = {k % count for k in chosen}
    left = iter(np.shape(value_of(x)))
    return np.reshape(x, tuple(1 if k in new else next(left) for k in range(count)))


def _expand(at: Given, x: Any, shape: Any) -> Any:
    wanted = tuple(_ints(shape)) if np.size(_plain(shape)) else ()
    return np.broadcast_to(x, np.broadcast_shapes(np.shape(value_of(x)), wanted))


def _tile(at: Given, x: Any, repeats: Any) -> Any:
    for axis, count in enumerate(_ints(repeats)):
        if count < 1:
            x = x[(slice(None),) * axis + (slice(0),)]
        elif count > 1:
            x = np.concatenate([x] * count, axis=axis)
    return x


def _transpose(at: Given, x: Any) -> Any:
    return np.transpose(x, at.get("perm"))


def _shape(at: Given, x: Any) -> Array:
    return shape_of(at, np.array(np.shape(value_of(x)), np.int64))


def shape_of(at: Given, shape: Array) -> Array:
    """Return the sizes of those axes that a Shape asks for."""
    return shape[slice(at.get("start", 0), at.get("end"))]


def _filled(at: Given, shape: Any) -> Array:
    sizes = tuple(_ints(shape)) if np.size(_plain(shape)) else ()
    return np.full(sizes, at.get("value", 0), at.get("dtype", "float32"))


def _one_hot(at: Given, index: Any, depth: Any, values: Any) -> Any:
    """Return one number where an index points, and the other one elsewhere; outside nowhere."""
    where, count = _plain(index).astype(np.int64), int(_plain(depth).reshape(()))
    on = np.where(where < 0, where + count, where)[..., None] == np.arange(count)
    return np.where(np.moveaxis(on, -1, int(at.get("axis", -1))), values[1], values[0])


def _range(at: Given, start: Any, end: Any, step: Any) -> Array:
    kind = _plain(start).dtype
    first, last, by = (_plain(a).item() for a in (start, end, step))
    return np.arange(first, last, by, dtype=kind)


def _pad(at: Given, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    widths = _ints(at["pads"] if pads is None else pads)
    half, mode = len(widths) // 2, at.get("mode", "constant")
    along = list(range(half)) if axes is None else [k % x.ndim for k in _ints(axes)]
    full = [(0, 0)] * x.ndim
    for k, axis in enumerate(along):
        full[axis] = (widths[k], widths[half + k])
    for axis, (before, after) in enumerate(full):
        if before < 0 or after < 0:
            inside = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
            x = x[(slice(None),) * axis + (inside,)]
    full = [(max(a, 0), max(b, 0)) for a, b in full]
    if mode == "constant":
        number = at.get("value", 0.0) if value is None else float(_plain(value).reshape(()))
        return np.pad(x, full, constant_values=number) if any(map(any, full)) else x
    for axis, (before, after) in enumerate(full):
        if before or after:
            picked = np.pad(np.arange(x.shape[axis]), (before, after), mode=MODES[mode])
            x = x[(slice(None),) * axis + (picked,)]
    return x


MODES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _reverse(at: Given, x: Any, lengths: Any) -> Any:
    """Return ReverseSequence: the first steps of each row in reverse order."""
    time, batch = int(at.get("time_axis", 0)), int(at.get("batch_axis", 1))
    return x[
        reverse_order(x.shape[time], np.asarray(_ints(lengths), np.int64), (time, batch) != (0, 1))
    ]


# -- reductions ------------------------------------------------------------------------------------


def _reduced(f: Callable[..., Any]) -> Operator:
    def of(at: Given, x: Any, axes: Any = None) -> Any:
        chosen = _axes(at, axes)
        if not chosen:
            if at.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        out = f(x, axis=tuple(chosen), keepdims=bool(at.get("keepdims", 1)))
        kind = value_of(x).dtype
        return value_of(out).astype(kind) if kind.kind in "iu" else out

    return of


def _l1(x: Any, **options: Any) -> Any:
    return np.sum(np.absolute(x), **options)


def _squares(x: Any, **options: Any) -> Any:
    return np.sum(np.square(x), **options)


def _log_sum(x: Any, **options: Any) -> Any:
    return np.log(np.sum(x, **options))


def _log_sum_exp(x: Any, **options: Any) -> Any:
    """Return the logarithm of a sum of exponentials, none of which is larger than 1."""
    top = np.max(_plain(x), axis=options["axis"], keepdims=True)
    top = np.where(np.isfinite(top), top, np.zeros_like(top))  # inf - inf would be no number
    left = top if options["keepdims"] else np.squeeze(top, options["axis"])
    with np.errstate(divide="ignore"):  # of nothing but -inf, it is -inf
        return np.log(np.sum(np.exp(x - top), **options)) + left


def _l2(x: Any, **options: Any) -> Any:
    return np.sqrt(np.sum(np.square(x), **options))


def _product(x: Any, **options: Any) -> Array:
    out: Array = np.prod(_fixed(x, "factors of a product"), **options)
    return out


def _softmax_by(f: Callable[..., Any]) -> Operator:
    def of(at: Given, x: Any) -> Any:
        axis, shape = int(at["axis"]), x.shape
        if not at.get("flat", False):
            return f(x, axis)
        # Before opset 13 all axes from that one on were one.
        cut = axis + len(shape) * (axis < 0)
        rows = np.reshape(x, (math.prod(shape[:cut]), math.prod(shape[cut:])))
        return np.reshape(f(rows, 1), shape)

    return of


def _argmax(f: Callable[..., Any]) -> Operator:
    def of(at: Given, x: Any) -> Array:
        v, axis = _plain(x), int(at.get("axis", 0))
        out: Array = f(v, axis=axis).astype(np.int64)
        if at.get("select_last_index", 0):
            out = v.shape[axis] - 1 - f(np.flip(v, axis), axis=axis).astype(np.int64)
        return np.expand_dims(out, axis) if at.get("keepdims", 1) else out

    return of


def _cumsum(at: Given, x: Any, axis: Any) -> Any:
    if at.get("exclusive", 0) or at.get("reverse", 0):
        raise ValueError("expected a CumSum that is neither exclusive nor reversed")
    v = np.cumsum(x, axis=_ints(axis)[0])
    return v.astype(value_of(x).dtype) if value_of(x).dtype.kind in "iu" else v


# -- layers with weights of their own --------------------------------------------------------------


def _gemm(at: Given, a: Any, b: Any, c: Any = None) -> Any:
    a = np.transpose(a, (1, 0)) if at.get("transA", 0) else a
    b = np.transpose(b, (1, 0)) if at.get("transB", 0) else b
    y = np.matmul(a, b) * _like(a, at.get("alpha", 1.0))
    return y if c is None else y + c * _like(a, at.get("beta", 1.0))


def _scale_shift(at: Given, x: Any, scale: Any, shift: Any) -> Any:
    """Return x times a number for each channel, plus another one: a BatchNormalization."""
    shape = (-1, *(1,) * (x.ndim - 2))
    return x * np.reshape(scale, shape) + np.reshape(shift, shape)


def _layer_norm(at: Given, x: Any, scale: Any, bias: Any = None) -> Any:
    axis = int(at.get("axis", -1)) % x.ndim
    axes = tuple(range(axis, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    spread = np.mean(np.square(centred), axis=axes, keepdims=True) + _like(x, at["epsilon"])
    y = centred / np.sqrt(spread) * scale
    return y if bias is None else y + bias


def _instance_norm(at: Given, x: Any, scale: Any, bias: Any) -> Any:
    """Return each channel of each row with mean 0 and variance 1, then scaled and shifted."""
    axes = tuple(range(2, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    spread = np.mean(np.square(centred), axis=axes, keepdims=True)
    y = centred / np.sqrt(spread + _like(x, at.get("epsilon", 1e-5)))
    return _scale_shift(at, y, scale, bias)


def _global_mean(at: Given, x: Any) -> Any:
    return np.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _global_max(at: Given, x: Any) -> Any:
    return np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


PLAIN: dict[str, Operator] = {
    "Add": lambda at, a, b: np.add(a, b),
    "Sub": lambda at, a, b: np.subtract(a, b),
    "Mul": lambda at, a, b: np.multiply(a, b),
    "Div": _divide,
    "Pow": _power,
    "Sqrt": lambda at, x: np.sqrt(x),
    "Exp": lambda at, x: np.exp(x),
    "Log": lambda at, x: np.log(x),
    "Neg": lambda at, x: np.negative(x),
    "Abs": lambda at, x: np.absolute(x),
    "Sin": lambda at, x: np.sin(x),
    "Cos": lambda at, x: np.cos(x),
    "Reciprocal": lambda at, x: _like(x, 1) / x,
    "Sign": lambda at, x: np.sign(_plain(x)),
    "Floor": lambda at, x: np.floor(_plain(x)),
    "Ceil": lambda at, x: np.ceil(_plain(x)),
    "Round": lambda at, x: np.round(_plain(x)),
    "Mod": _modulus,
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Sum": _folded(np.add),
    "Mean": _mean_of,
    "Tanh": lambda at, x: np.tanh(x),
    "Sigmoid": lambda at, x: nn.sigmoid(x),
    "Relu": lambda at, x: nn.relu(x),
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Mish": _mish,
    "ThresholdedRelu": _thresholded,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda at, x: x * _hard_sigmoid({"alpha": 1 / 6}, x),
    "Softplus": _softplus,
    "Softsign": lambda at, x: x / (np.absolute(x) + _like(x, 1)),
    "Erf": _erf,
    "Gelu": _gelu,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    "Equal": lambda at, a, b: _plain(a) == _plain(b),
    "Less": lambda at, a, b: _plain(a) < _plain(b),
    "LessOrEqual": lambda at, a, b: _plain(a) <= _plain(b),
    "Greater": lambda at, a, b: _plain(a) > _plain(b),
    "GreaterOrEqual": lambda at, a, b: _plain(a) >= _plain(b),
    "Not": lambda at, x: ~_plain(x),
    "And": lambda at, a, b: _plain(a) & _plain(b),
    "Or": lambda at, a, b: _plain(a) | _plain(b),
    "Xor": lambda at, a, b: _plain(a) ^ _plain(b),
    "OneHot": _one_hot,
    "Identity": lambda at, x: x,
    "Dropout": lambda at, x, *more: x,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Transpose": _transpose,
    "Shape": _shape,
    "Size": lambda at, x: np.array(np.size(value_of(x)), np.int64),
    "ConstantOfShape": _filled,
    "Range": _range,
    "Pad": _pad,
    "ReverseSequence": _reverse,
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceL1": _reduced(_l1),
    "ReduceL2": _reduced(_l2),
    "ReduceSumSquare": _reduced(_squares),
    "ReduceLogSum": _reduced(_log_sum),
    "ReduceLogSumExp": _reduced(_log_sum_exp),
    "ReduceProd": _reduced(_product),
    "ArgMax": _argmax(np.argmax),
    "ArgMin": _argmax(np.argmin),
    "CumSum": _cumsum,
    "Softmax": _softmax_by(nn.softmax),
    "LogSoftmax": _softmax_by(nn.log_softmax),
    "MatMul": lambda at, a, b: np.matmul(a, b),
    "Gemm": _gemm,
    "BatchNormalization": _scale_shift,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "Einsum": lambda at, *parts: np.einsum(at["equation"].replace(" ", ""), *parts),
    "GlobalAveragePool": _global_mean,
    "GlobalMaxPool": _global_max,
}
