"""Random arguments: valid ones, and what is made of them to be refused or to be read otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

NOISE = np.random.default_rng(0).normal(size=1 << 16)
POOLS = {np.dtype(t): NOISE.astype(t) for t in (np.float32, np.float64)}
EVIL_INTS = (0, -1, 1, 2, 3, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, -(1 << 63))
EVIL_SCALARS: tuple[Any, ...] = (
    *EVIL_INTS, 1 << 64, -(1 << 70), 0.5, -1.0, 1e308, 1e-320, float("nan"), float("inf"),
    None, True, False, "", "x", "0", b"1", (), [], {}, [1], (1.0, 2.0), object(), "\0", "é" * 50,
    np.float32(2), np.int8(-1), np.array(3), 3j,
)  # fmt: skip
EVIL_DTYPES = ("f2", "f4", "f8", ">f4", ">f8", "i8", "i4", "u1", "?", "c8", "O", "U3", "M8[s]")
EVIL_NUMBERS = (np.nan, np.inf, -np.inf, 1e-310, 1e-42, 3e38, -3e38, -0.0, 88.8, -104.0)


class Draw:
    """The random choices of one call; a seed and the number of the call decide them."""

    def __init__(self, seed: int, index: int) -> None:
        self.r = random.Random((seed << 40) + index)
        self.chance = lambda p: self.r.random() < p
        self.pick: Callable[[Any], Any] = self.r.choice
        self.size: Callable[[int, int], int] = self.r.randint

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32, scale: float = 1.0) -> Any:
        """Return numbers from the normal distribution."""
        count = 1
        for n in shape:
            count *= n
        pool = POOLS[np.dtype(dtype)]
        start = self.size(0, 4096)
        flat = np.resize(pool[start:], count) if count > 61000 else pool[start : start + count]
        return (flat * pool.dtype.type(scale)).reshape(shape)

    def flags(self, shape: tuple[int, ...], p: float) -> Any:
        """Return a bool array that is True with probability p."""
        return self.array(shape, np.float64) < {0.1: -1.28, 0.2: -0.84, 0.8: 0.84}[p]

    def whole(self, low: int, high: int, shape: tuple[int, ...]) -> Any:
        """Return int64 numbers from low to high."""
        spread = np.abs(self.array(shape, np.float64) * 1e6).astype(np.int64)
        return low + spread % (high - low + 1)

    def maybe(self, value: Any, p: float = 0.5) -> Any:
        """Return the value, or None with probability 1 - p."""
        return value if self.chance(p) else None


def _misaligned(d: Draw, a: Any) -> Any:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(a.dtype).reshape(a.shape) if a.itemsize > 1 and a.dtype != object else raw
    if out.shape == a.shape:
        out[...] = a
    return out


def _spread(d: Draw, a: Any) -> Any:
    """Return the same numbers with gaps along one axis."""
    if a.ndim == 0:
        return a
    axis, step = d.size(0, a.ndim - 1), d.size(2, 3)
    shape = list(a.shape)
    shape[axis] *= step
    big = np.zeros(shape, a.dtype)
    view = big[(slice(None),) * axis + (slice(None, None, step),)]
    view[...] = a
    return view


def _backwards(d: Draw, a: Any) -> Any:
    if a.ndim == 0:
        return a
    axis = d.size(0, a.ndim - 1)
    return np.flip(np.ascontiguousarray(np.flip(a, axis)), axis)


def _other_order(d: Draw, a: Any) -> Any:
    axes = list(range(a.ndim))
    d.r.shuffle(axes)
    return np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes))


def _read_only(d: Draw, a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


def _repeated(d: Draw, a: Any) -> Any:
    return np.broadcast_to(a[:1], a.shape) if a.ndim else a


def _huge(d: Draw, a: Any) -> Any:
    """Return an array of a size that no memory holds, or one without elements."""
    shape = list(a.shape) or [1]
    axis = d.size(0, len(shape) - 1)
    shape[axis] = 1 << d.pick((45, 50, 61))
    if d.chance(0.5):
        shape[(axis + 1) % len(shape)] = 0
    try:
        return np.broadcast_to(np.zeros((1,) * len(shape), a.dtype), shape)
    except ValueError:
        return a


def _other_shape(d: Draw, a: Any) -> Any:
    shape = list(a.shape)
    kind = d.size(0, 3)
    if kind == 0 or not shape:
        shape.insert(d.size(0, len(shape)), d.pick((0, 1, 2)))
    elif kind == 1:
        del shape[d.size(0, len(shape) - 1)]
    else:
        axis = d.size(0, len(shape) - 1)
        shape[axis] = d.pick((0, 1, shape[axis] + 1, max(0, shape[axis] - 1), 2 * shape[axis] + 1))
    return np.resize(a, shape) if a.size else np.zeros(shape, a.dtype)


def _numbers(d: Draw, a: Any) -> Any:
    a = a.copy()
    if a.size and a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            a.reshape(-1)[d.size(0, a.size - 1)] = d.pick(EVIL_NUMBERS)
    elif a.size and a.dtype.kind == "i":
        a.reshape(-1)[d.size(0, a.size - 1)] = d.pick(EVIL_INTS)
    return a


def _bytes_of_a_flag(d: Draw, a: Any) -> Any:
    """Return flags whose bytes are neither 0 nor 1."""
    return (a.view(np.uint8) * d.size(2, 255)).view(np.bool_) if a.dtype == bool else a


def _subclass(d: Draw, a: Any) -> Any:
    return np.ma.masked_array(a) if a.ndim != 2 or d.chance(0.5) else np.asmatrix(a)


def _dtype(d: Draw, a: Any) -> Any:
    with np.errstate(all="ignore"):
        return a.astype(d.pick(EVIL_DTYPES))


ARRAY_SPOILERS: tuple[Callable[[Draw, Any], Any], ...] = (
    _misaligned, _spread, _spread, _backwards, _backwards, _other_order, _other_order, _read_only,
    _repeated, _huge, _other_shape, _other_shape, _numbers, _numbers, _numbers, _bytes_of_a_flag,
    _subclass, _dtype, lambda d, a: a.tolist(), lambda d, a: d.pick(EVIL_SCALARS),
    lambda d, a: a[..., :0], lambda d, a: a[:0], lambda d, a: memoryview(np.ascontiguousarray(a)),
)  # fmt: skip


def spoiled(d: Draw, value: Any) -> Any:
    """Return something else in the place of a valid argument."""
    if isinstance(value, np.ndarray):
        try:
            return d.pick(ARRAY_SPOILERS)(d, value)
        except Exception:  # NumPy itself cannot make it
            return None
    if isinstance(value, (list, tuple)) and value and d.chance(0.7):
        items = list(value)
        k = d.size(0, len(items) - 1)
        items[k] = spoiled(d, items[k])
        return type(value)(items) if type(value) in (list, tuple) else tuple(items)
    return d.pick(EVIL_SCALARS)


def spoil(d: Draw, arguments: dict[str, Any]) -> None:
    """Put something else in the place of one argument or two."""
    for _ in range(d.pick((1, 1, 1, 2, 2, 3))):
        name = d.pick(list(arguments))
        arguments[name] = spoiled(d, arguments[name])


def overlap(d: Draw, arguments: dict[str, Any]) -> str:
    """Let two arrays of the call lie in the same memory; return which."""
    plain = [n for n, a in arguments.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if len(plain) < 2:
        return ""
    one, other = d.r.sample(plain, 2)
    a, b = arguments[one], arguments[other]
    if a.dtype != b.dtype or a.size + b.size > 1 << 16:
        return ""
    start = d.size(0, a.size) if d.chance(0.7) else 0
    base = d.array((a.size + b.size + start,), a.dtype)
    arguments[one] = base[: a.size].reshape(a.shape)
    arguments[other] = base[start : start + b.size].reshape(b.shape)
    return f"{other} {start} elements behind {one} in one memory: "
