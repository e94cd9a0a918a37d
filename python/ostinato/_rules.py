"""The gradients of NumPy's operations on recorded arrays.

Each rule computes an operation on plain arrays and records it with a slope for each input: a
function from the gradient of the result to that of the input. Slopes need not undo broadcasting,
which `_recording` does. All is written with functions of NumPy that other array libraries take
over, and loaded with the first recording.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _check, _device, _native
from ._recording import mapped, plain, record, value_of

UFUNCS: dict[Any, Callable[..., Any]] = {}
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
_NAMES: dict[Any, frozenset[str]] = {}  # arguments that the rule of a function takes
_POSITIONS: dict[Any, int | None] = {}  # how many of them by position; None: any number

# Their results have no gradient: they are counted, compared or constant almost everywhere.
_PLAIN_UFUNCS = {
    *(np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal),
    *(np.logical_and, np.logical_or, np.logical_not, np.logical_xor),
    *(np.isnan, np.isfinite, np.isinf, np.signbit, np.sign),
    *(np.floor, np.ceil, np.rint, np.trunc, np.floor_divide),
}
_PLAIN_FUNCTIONS = {
    *(np.zeros_like, np.ones_like, np.empty_like, np.full_like, np.shape, np.ndim, np.size),
    *(np.argmax, np.argmin, np.argsort, np.nonzero, np.flatnonzero, np.argwhere),
    *(np.any, np.all, np.count_nonzero, np.isclose, np.allclose, np.array_equal),
    *(np.result_type, np.searchsorted),
}


def ufunc(operation: Any, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
    """Run an elementwise operation, or a product, on recorded arrays."""
    name = f"np.{operation.__name__}"
    if options.get("out") is not None:
        raise TypeError(
            f"{name}(out=...): expected no change in place within vjp; use x = x + ... in place of "
            "x += ..."
        )
    if method != "__call__":
        raise _unknown(f"{name}.{method}")
    if options:
        raise TypeError(f"{name}: expected no options within vjp, got {', '.join(options)}")
    if operation in _PLAIN_UFUNCS:
        return operation(*(value_of(_array(x)) for x in inputs))
    rule = UFUNCS.get(operation)
    if rule is None:
        raise _unknown(name)
    return rule(*map(_array, inputs))


def _array(x: Any) -> Any:
    """Return the array of a parameter of a model; anything else as it is."""
    return x.value if getattr(x, "_is_parameter", False) else x


def _operand(x: Any) -> Any:
    """Return the plain array of an operand, which may be a number or a list of numbers."""
    return np.asarray(x) if isinstance(x, (list, tuple, int, float)) else value_of(x)


def function(operation: Any, args: Any, options: dict[str, Any]) -> Any:
    """Run any other function of NumPy on recorded arrays."""
    args, options = mapped(_array, args), mapped(_array, options)
    if operation in _PLAIN_FUNCTIONS:
        return operation(*plain(args), **plain(options))
    rule, name = FUNCTIONS.get(operation), f"np.{operation.__name__}"
    if rule is None:
        raise _unknown(name)
    most = _POSITIONS[rule]
    if most is not None and len(args) > most:
        raise TypeError(
            f"{name}: expected at most {most} argument{'s' * (most > 1)} by position within vjp, "
            f"got {len(args)}"
        )
    for option in options:
        if option not in _NAMES[rule]:
            raise TypeError(f"{name}: expected no {option} within vjp")
    return rule(*args, **options)


def _unknown(name: str) -> TypeError:
    return TypeError(
        f"{name}: expected an operation that vjp knows the gradient of; write it with arithmetic, "
        "matmul, einsum, indexing, concatenate, sums and the like, take "
        "ost.stop_gradient(x) where no gradient is wanted, or derive an ost.nn.Layer with a vjp "
        "of its own"
    )


def _of_ufunc(*operations: Any) -> Callable[[Any], Any]:
    def add(rule: Any) -> Any:
        for operation in operations:
            UFUNCS[operation] = rule
        return rule

    return add


def _of(*names: str) -> Callable[[Any], Any]:
    """Add a rule for functions of NumPy by their names; not every version has all of them.

    Arguments that a rule takes by position stand where NumPy has them; all others are named.
    """

    def add(rule: Any) -> Any:
        for name in names:
            if hasattr(np, name):
                FUNCTIONS[getattr(np, name)] = rule
        parameters = inspect.signature(rule).parameters
        kinds = [p.kind for p in parameters.values()]
        _NAMES[rule] = frozenset(parameters)
        several = inspect.Parameter.VAR_POSITIONAL in kinds
        by_position = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
        _POSITIONS[rule] = None if several else by_position
        return rule

    return add


# -- elementwise -----------------------------------------------------------------------------------


def _unary(operation: Any, slope: Callable[[Any, Any], Any]) -> None:
    """Add a rule with dy/dx as a function of x and y."""

    def rule(x: Any) -> Any:
        v = value_of(x)
        y = operation(v)
        return record(y, (x, lambda d: d * slope(v, y)))

    UFUNCS[operation] = rule


_unary(np.negative, lambda x, y: -1)
_unary(np.positive, lambda x, y: 1)
_unary(np.exp, lambda x, y: y)
_unary(np.expm1, lambda x, y: y + 1)
_unary(np.log, lambda x, y: 1 / x)
_unary(np.log1p, lambda x, y: 1 / (1 + x))
_unary(np.log2, lambda x, y: 1 / (x * x.dtype.type(np.log(2))))
_unary(np.log10, lambda x, y: 1 / (x * x.dtype.type(np.log(10))))
_unary(np.exp2, lambda x, y: y * x.dtype.type(np.log(2)))
_unary(np.sqrt, lambda x, y: 1 / (2 * y))
_unary(np.square, lambda x, y: 2 * x)
_unary(np.reciprocal, lambda x, y: -y * y)
_unary(np.tanh, lambda x, y: 1 - y * y)
_unary(np.sin, lambda x, y: np.cos(x))
_unary(np.cos, lambda x, y: -np.sin(x))
_unary(np.sinh, lambda x, y: np.cosh(x))
_unary(np.cosh, lambda x, y: np.sinh(x))
_unary(np.arctan, lambda x, y: 1 / (1 + x * x))
_unary(np.absolute, lambda x, y: np.sign(x))


@_of_ufunc(np.add)
def _add(a: Any, b: Any) -> Any:
    return record(np.add(value_of(a), value_of(b)), (a, lambda d: d), (b, lambda d: d))


@_of_ufunc(np.subtract)
def _subtract(a: Any, b: Any) -> Any:
    return record(np.subtract(value_of(a), value_of(b)), (a, lambda d: d), (b, lambda d: -d))


@_of_ufunc(np.multiply)
def _multiply(a: Any, b: Any) -> Any:
    u, v = value_of(a), value_of(b)
    return record(np.multiply(u, v), (a, lambda d: d * v), (b, lambda d: d * u))


@_of_ufunc(np.true_divide)
def _divide(a: Any, b: Any) -> Any:
    u, v = value_of(a), value_of(b)
    return record(np.true_divide(u, v), (a, lambda d: d / v), (b, lambda d: -d * u / (v * v)))


@_of_ufunc(np.power)
def _power(a: Any, b: Any) -> Any:
    u, v = value_of(a), value_of(b)
    y = np.power(u, v)

    def of_base(d: Any) -> Any:
        return d * v * np.power(u, np.where(v == 0, 1, v - 1) if np.ndim(v) else v - (v != 0))

    def of_exponent(d: Any) -> Any:  # 0^v has the slope 0 in v, where log 0 would give NaN
        positive = np.where(u > 0, u, 1)
        return d * y * np.log(positive)

    return record(y, (a, of_base), (b, of_exponent))


def _chooser(operation: Any, first: Any) -> None:
    """Add a rule for the larger or smaller of two; equal ones share the gradient."""

    def rule(a: Any, b: Any) -> Any:
        u, v = value_of(a), value_of(b)

        def part(mine: Any, other: Any) -> Any:
            return lambda d: d * (first(mine, other) + (mine == other) * d.dtype.type(0.5))

        return record(operation(u, v), (a, part(u, v)), (b, part(v, u)))

    UFUNCS[operation] = rule


_chooser(np.maximum, np.greater)
_chooser(np.minimum, np.less)


@_of_ufunc(np.logaddexp)
def _logaddexp(a: Any, b: Any) -> Any:
    u, v = value_of(a), value_of(b)
    y = np.logaddexp(u, v)
    return record(y, (a, lambda d: d * np.exp(u - y)), (b, lambda d: d * np.exp(v - y)))


@_of("where")
def where(condition: Any, x: Any, y: Any) -> Any:
    """Choose by a condition, which has no gradient."""
    on = value_of(condition)
    return record(
        np.where(on, value_of(x), value_of(y)),
        (x, lambda d: np.where(on, d, d.dtype.type(0))),
        (y, lambda d: np.where(on, d.dtype.type(0), d)),
    )


@_of("clip")
def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    low, high = (value_of(u if u is not None else v) for u, v in ((a_min, min), (a_max, max)))
    v = value_of(a)

    def slope(d: Any) -> Any:
        d = d if low is None else d * (v >= low)
        return d if high is None else d * (v <= high)

    return record(np.clip(v, low, high), (a, slope))


@_of("nan_to_num")
def _nan_to_num(x: Any, *, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    v = value_of(x)
    y = np.nan_to_num(v, nan=nan, posinf=posinf, neginf=neginf)
    return record(y, (x, lambda d: d * np.isfinite(v)))


# -- products --------------------------------------------------------------------------------------


@_of_ufunc(np.matmul)
def matmul(a: Any, b: Any) -> Any:
    """Multiply matrices, also stacks of them, and vectors."""
    u, v = _operand(a), _operand(b)

    def of_left(d: Any) -> Any:
        if v.ndim == 1:
            return d[..., None] * v
        if u.ndim == 1:
            d = d[..., None, :]
            return np.matmul(d, np.swapaxes(v, -1, -2))[..., 0, :]
        return np.matmul(d, np.swapaxes(v, -1, -2))

    def of_right(d: Any) -> Any:
        if u.ndim == 1:
            return u * d if v.ndim == 1 else u[:, None] * d[..., None, :]
        if v.ndim == 1:
            rows = u.reshape(-1, u.shape[-1])
            return np.matmul(np.swapaxes(rows, 0, 1), d.reshape(-1))
        if v.ndim == 2:  # one product in place of a stack of them and its sum
            rows = u.reshape(-1, u.shape[-1])
            return np.matmul(np.swapaxes(rows, 0, 1), d.reshape(-1, d.shape[-1]))
        return np.matmul(np.swapaxes(u, -1, -2), d)

    return record(np.matmul(u, v), (a, of_left), (b, of_right))


@_of("dot")
def _dot(a: Any, b: Any) -> Any:
    if np.ndim(value_of(a)) == 0 or np.ndim(value_of(b)) == 0:
        return _multiply(a, b)
    if np.ndim(value_of(b)) > 2:
        raise TypeError("np.dot: expected at most 2 axes on the right within vjp; use np.matmul")
    return matmul(a, b)


@_of("outer")
def _outer(a: Any, b: Any) -> Any:
    return _multiply(_reshape(a, (-1, 1)), _reshape(b, (1, -1)))


@_of("einsum")
def einsum(subscripts: Any, *operands: Any, optimize: Any = False) -> Any:
    """Sum products by subscripts; an index may stand once in an operand."""
    if not isinstance(subscripts, str):
        raise TypeError("np.einsum: expected subscripts as text within vjp, got lists")
    values = [_operand(o) for o in operands]
    terms, out = _terms(subscripts, values)

    def slope(k: int) -> Callable[[Any], Any]:
        def of_operand(d: Any) -> Any:
            others = [t for j, t in enumerate(terms) if j != k]
            known = set(out).union(*others)
            mine = "".join(c for c in terms[k] if c in known)
            equation = ",".join([out, *others]) + "->" + mine
            rest = [v for j, v in enumerate(values) if j != k]
            found = np.einsum(equation, d, *rest, optimize=optimize)
            # An index of this operand alone was summed: its gradient is the same along it.
            at = iter(found.shape)
            return found.reshape([next(at) if c in known else 1 for c in terms[k]])

        return of_operand

    value = np.einsum(",".join(terms) + "->" + out, *values, optimize=optimize)
    return record(value, *((o, slope(k)) for k, o in enumerate(operands)))


def _terms(subscripts: str, values: list[Any]) -> tuple[list[str], str]:
    """Return the indices of every operand and of the result, with letters in place of dots."""
    left, arrow, out = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(values):
        raise ValueError(f"np.einsum: expected {len(terms)} operands, got {len(values)}")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in subscripts]
    longest = ""
    for k, (term, v) in enumerate(zip(terms, values)):
        if "..." in term:
            count = v.ndim - len(term.replace("...", ""))
            letters = "".join(spare[:count][::-1])
            longest = max(longest, letters, key=len)
            terms[k] = term.replace("...", letters)
        if len(set(terms[k])) != len(terms[k]):
            raise TypeError(
                f"np.einsum: expected every index once in an operand within vjp, got {term!r}"
            )
    if arrow:
        return terms, out.replace("...", longest)
    every = "".join(terms)
    once = sorted(c for c in set(every) if every.count(c) == 1 and c not in longest)
    return terms, longest + "".join(once)


# -- reductions ------------------------------------------------------------------------------------


def _spread(d: Any, axis: Any, ndim: int) -> Any:
    """Return the gradient of a reduction with its axes put back, of length 1."""
    if axis is None:
        return d.reshape((1,) * ndim)
    axes = {a % ndim for a in ((axis,) if isinstance(axis, (int, np.integer)) else axis)}
    rest = iter(d.shape)
    return d.reshape([1 if k in axes else next(rest) for k in range(ndim)])


def _reduced_count(shape: tuple[int, ...], axis: Any) -> int:
    axes = range(len(shape)) if axis is None else axis
    axes = (axes,) if isinstance(axes, (int, np.integer)) else axes
    return int(np.prod([shape[a] for a in axes], dtype=np.int64))


@_of("sum")
def sum_(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Sum over axes."""
    v = value_of(a)

    def slope(d: Any) -> Any:
        return d if keepdims else _spread(d, axis, v.ndim)

    return record(np.sum(v, axis=axis, keepdims=keepdims), (a, slope))


@_of("mean")
def mean(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Take the mean over axes."""
    v = value_of(a)
    count = _reduced_count(v.shape, axis)

    def slope(d: Any) -> Any:
        return (d if keepdims else _spread(d, axis, v.ndim)) / d.dtype.type(count)

    return record(np.mean(v, axis=axis, keepdims=keepdims), (a, slope))


@_of("var")
def _var(a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Any:
    v = value_of(a)
    count = _reduced_count(v.shape, axis) - ddof

    def slope(d: Any) -> Any:
        d = d if keepdims else _spread(d, axis, v.ndim)
        return d * (v - np.mean(v, axis=axis, keepdims=True)) * d.dtype.type(2 / count)

    return record(np.var(v, axis=axis, ddof=ddof, keepdims=keepdims), (a, slope))


@_of("std")
def _std(a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Any:
    return UFUNCS[np.sqrt](_var(a, axis, ddof=ddof, keepdims=keepdims))


def _extreme(operation: Any) -> Any:
    """Return a rule for the largest or smallest; equal ones share the gradient."""

    def rule(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
        v = value_of(a)
        y = operation(v, axis=axis, keepdims=keepdims)

        def slope(d: Any) -> Any:
            at = v == (y if keepdims else _spread(y, axis, v.ndim))
            d = d if keepdims else _spread(d, axis, v.ndim)
            return at * (d / np.sum(at, axis=axis, keepdims=True).astype(d.dtype))

        return record(y, (a, slope))

    return rule


_of("max", "amax")(_extreme(np.amax))
_of("min", "amin")(_extreme(np.amin))


@_of("cumsum")
def _cumsum(a: Any, axis: int | None = None) -> Any:
    if axis is None:
        return _cumsum(_reshape(a, (-1,)), 0)
    y = np.cumsum(value_of(a), axis=axis)
    return record(y, (a, lambda d: np.flip(np.cumsum(np.flip(d, axis), axis=axis), axis)))


# -- shapes ----------------------------------------------------------------------------------------


@_of("reshape")
def _reshape(a: Any, shape: Any = None, *, newshape: Any = None) -> Any:
    v = _operand(a)
    wanted = newshape if shape is None else shape
    return record(v.reshape(wanted), (a, lambda d: d.reshape(v.shape)))


@_of("ravel")
def _ravel(a: Any) -> Any:
    return _reshape(a, (-1,))


def _reshaping(name: str) -> None:
    """Add a rule for a function that gives the same elements in the same order."""
    operation = getattr(np, name)

    def rule(a: Any, axis: Any = None) -> Any:
        v = value_of(a)
        return record(operation(v, axis=axis), (a, lambda d: d.reshape(v.shape)))

    _of(name)(rule)


_reshaping("squeeze")
_reshaping("expand_dims")


@_of("transpose")
def transpose(a: Any, axes: Any = None) -> Any:
    """Change the order of the axes."""
    v = value_of(a)
    order = tuple(range(v.ndim))[::-1] if axes is None else tuple(k % v.ndim for k in axes)
    inverse = tuple(order.index(k) for k in range(v.ndim))
    return record(np.transpose(v, order), (a, lambda d: np.transpose(d, inverse)))


@_of("swapaxes")
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    y = np.swapaxes(value_of(a), axis1, axis2)
    return record(y, (a, lambda d: np.swapaxes(d, axis1, axis2)))


@_of("moveaxis")
def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    y = np.moveaxis(value_of(a), source, destination)
    return record(y, (a, lambda d: np.moveaxis(d, destination, source)))


@_of("broadcast_to")
def _broadcast_to(array: Any, shape: Any) -> Any:
    return record(np.broadcast_to(value_of(array), shape), (array, lambda d: d))


@_of("flip")
def _flip(m: Any, axis: Any = None) -> Any:
    return record(np.flip(value_of(m), axis), (m, lambda d: np.flip(d, axis)))


@_of("roll")
def _roll(a: Any, shift: Any, axis: Any = None) -> Any:
    back = tuple(-s for s in shift) if isinstance(shift, (tuple, list)) else -shift
    return record(np.roll(value_of(a), shift, axis), (a, lambda d: np.roll(d, back, axis)))


@_of("repeat")
def _repeat(a: Any, repeats: Any, axis: int | None = None) -> Any:
    if axis is None:
        a, axis = _reshape(a, (-1,)), 0
    if not isinstance(repeats, (int, np.integer)):
        raise TypeError("np.repeat: expected one number of repeats within vjp; use x[indices]")
    v = value_of(a)
    at = axis % v.ndim + 1
    split = (*v.shape[:at], int(repeats), *v.shape[at:])
    y = np.repeat(v, int(repeats), axis=axis)
    return record(y, (a, lambda d: d.reshape(split).sum(axis=at)))


@_of("pad")
def _pad(array: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Any:
    if mode != "constant":
        raise TypeError(f"np.pad: expected mode 'constant' within vjp, got {mode!r}")
    v = value_of(array)
    widths = np.broadcast_to(np.asarray(pad_width), (v.ndim, 2)).tolist()
    inside = tuple(slice(w, w + n) for (w, _), n in zip(widths, v.shape))
    y = np.pad(v, widths, constant_values=constant_values)
    return record(y, (array, lambda d: d[inside]))


def _triangle(name: str) -> None:
    operation = getattr(np, name)

    def rule(m: Any, k: int = 0) -> Any:
        return record(operation(value_of(m), k), (m, lambda d: operation(d, k)))

    _of(name)(rule)


_triangle("tril")
_triangle("triu")


# -- joining and cutting ---------------------------------------------------------------------------


@_of("concatenate")
def concatenate(arrays: Any, axis: int | None = 0) -> Any:
    """Join arrays along an axis; None: all their elements."""
    arrays = list(arrays)
    if axis is None:
        arrays, axis = [_reshape(a, (-1,)) for a in arrays], 0
    values = [_operand(a) for a in arrays]
    y = np.concatenate(values, axis=axis)
    at = axis % y.ndim
    ends = np.cumsum([v.shape[at] for v in values]).tolist()

    def part(start: int, end: int) -> Any:
        index = (slice(None),) * at + (slice(start, end),)
        return lambda d: d[index]

    return record(y, *((a, part(s, e)) for a, s, e in zip(arrays, [0, *ends[:-1]], ends)))


@_of("stack")
def _stack(arrays: Any, axis: int = 0) -> Any:
    arrays = list(arrays)
    y = np.stack([_operand(a) for a in arrays], axis=axis)
    at = (slice(None),) * (axis % y.ndim)

    def part(k: int) -> Any:
        return lambda d: d[at + (k,)]

    return record(y, *((a, part(k)) for k, a in enumerate(arrays)))


@_of("hstack")
def _hstack(tup: Any) -> Any:
    arrays = [_at_least(a, 1) for a in tup]
    return concatenate(arrays, 0 if np.ndim(value_of(arrays[0])) == 1 else 1)


@_of("vstack")
def _vstack(tup: Any) -> Any:
    return concatenate([_at_least(a, 2) for a in tup])


def _at_least(a: Any, ndim: int) -> Any:
    """Return an array with axes of length 1 in front, where it has fewer than ndim."""
    shape = np.shape(_operand(a))
    return _reshape(a, (1,) * (ndim - len(shape)) + shape) if len(shape) < ndim else a


@_of("array_split")
def _array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    v = value_of(ary)
    at = axis % v.ndim
    pieces = np.array_split(np.arange(v.shape[at]), indices_or_sections)
    ends = np.cumsum([len(p) for p in pieces]).tolist()
    front = (slice(None),) * at
    return [indexed(ary, (*front, slice(start, end))) for start, end in zip([0, *ends[:-1]], ends)]


@_of("split")
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    if isinstance(indices_or_sections, int) and np.shape(ary)[axis] % indices_or_sections:
        raise ValueError("np.split: expected a division into equal parts; use np.array_split")
    return _array_split(ary, indices_or_sections, axis)


@_of("take")
def _take(a: Any, indices: Any, axis: int | None = None) -> Any:
    indices = _operand(indices)
    if isinstance(indices, np.ndarray):
        indices = _device.like(indices, value_of(a))
    if getattr(indices, "dtype", None) == np.bool_:
        indices = indices.astype(np.intp)  # numbers here, where x[indices] has a mask
    if axis is None:
        return indexed(_reshape(a, (-1,)), indices)
    front = (slice(None),) * (axis % np.ndim(value_of(a)))
    return indexed(a, (*front, indices))


@_of("take_along_axis")
def _take_along_axis(arr: Any, indices: Any, axis: int = -1) -> Any:
    v = value_of(arr)
    at = axis % v.ndim
    shape = np.shape(indices)
    grid: list[Any] = []
    for k in range(v.ndim):
        numbers = np.arange(shape[k]).reshape([-1 if j == k else 1 for j in range(v.ndim)])
        grid.append(indices if k == at else _device.like(numbers, v))
    return indexed(arr, tuple(grid))


def _is_basic(index: Any) -> bool:
    """Return whether an index picks every element at most once: numbers, slices and masks."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice)):
            continue
        if getattr(part, "dtype", None) != np.bool_:
            return False
    return True


def _listed(part: Any, like: Any) -> Any:
    """Return the array that a list within an index stands for: numbers, or a mask."""
    if not isinstance(part, list):
        return part
    a = np.asarray(part)
    return _device.like(a if a.size else a.astype(np.intp), like)


def indexed(x: Any, index: Any) -> Any:
    """Pick elements, by anything that NumPy takes as an index."""
    v, index = value_of(x), plain(index)
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(_listed(part, v) for part in parts)
    index = parts if isinstance(index, tuple) else parts[0]
    y = v[index]
    if _is_basic(index):

        def slope(d: Any) -> Any:
            out = np.zeros_like(v, shape=v.shape)
            out[index] = d
            return out

        return record(y, (x, slope))

    def scattered(d: Any) -> Any:
        """Add up what several places were picked for."""
        if not isinstance(index, tuple):
            ids, width = index, v.shape[1:]
        else:
            numbers = np.arange(v.size).reshape(v.shape)
            ids, width = _device.like(numbers, v)[index], ()
        ids = np.asarray(ids) if _device.of(ids) is None else ids
        length = v.shape[0] if width or not isinstance(index, tuple) else v.size
        ids = np.where(ids < 0, ids + length, ids).astype(np.int64).reshape(-1)
        columns = max(1, int(np.prod(width, dtype=np.int64)))
        # The sums of half precision are those of float32; float64 and wider keep their own dtype.
        dtype = np.float32 if v.dtype.itemsize < 4 else v.dtype
        out = np.zeros_like(v, shape=(length, columns), dtype=dtype)
        rows = _check.contiguous(d.astype(dtype, copy=False)).reshape(ids.size, columns)
        if dtype not in (np.float32, np.float64):
            np.add.at(out, _device.host(ids), rows)
        elif ids.size and columns:
            _native.backend_for(out).embedding_scatter_(_device.like(ids, v), rows, out)
        return out.reshape(v.shape).astype(v.dtype, copy=False)

    return record(y, (x, scattered))
