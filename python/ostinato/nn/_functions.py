"""Functions of arrays that NumPy does not have, or not in a stable form; `vjp` records them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array
from .._recording import record, value_of


def _floats(name: str, x: Any) -> Array:
    v = _check.array(name, value_of(x))
    _check.real_dtype(v.dtype, name)
    return v


def sigmoid(x: Any) -> Any:
    """Return ``1 / (1 + exp(-x))`` of every element, without overflow.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.sigmoid(np.array([0.0, 1000.0, -1000.0])).tolist()
    [0.5, 1.0, 0.0]

    Args:
        x: an array of float32 or float64, or what stands for one within `vjp`.

    Returns:
        An array of the shape of x.

    Raises:
        TypeError: x is no array of float32 or float64.
    """
    v = _floats("x", x)
    y = (np.tanh(v * v.dtype.type(0.5)) + 1) * v.dtype.type(0.5)
    return record(y, (x, lambda d: d * y * (1 - y)))


def relu(x: Any) -> Any:
    """Return ``max(x, 0)`` of every element.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.relu(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]

    Args:
        x: an array of float32 or float64, or what stands for one within `vjp`.

    Returns:
        An array of the shape of x.

    Raises:
        TypeError: x is no array of float32 or float64.
    """
    v = _floats("x", x)
    return record(np.maximum(v, v.dtype.type(0)), (x, lambda d: d * (v > 0)))


def softmax(x: Any, axis: int = -1, *, where: Any = None) -> Any:
    """Return ``exp(x) / sum(exp(x))`` along an axis, without overflow.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> on = np.array([True, True, False])
    >>> ost.nn.softmax(np.array([0.0, 0.0, np.nan]), where=on).tolist()
    [0.5, 0.5, 0.0]

    Args:
        x: an array of float32 or float64, or what stands for one within `vjp`.
        axis: along which the results sum to 1.
        where: bool, of a shape that broadcasts to that of x: the elements that take part. The
            others, which may hold anything, give 0, also where none takes part. None: all.

    Returns:
        An array of the shape of x.

    Raises:
        TypeError: x is no array of float32 or float64.
    """
    v = _floats("x", x)
    zero = v.dtype.type(0)
    if not v.size:
        y = v
    elif where is None:
        e = np.exp(_below(v, np.max(v, axis=axis, keepdims=True)))
        y = e / np.sum(e, axis=axis, keepdims=True)
    else:
        on = np.broadcast_to(_placed(where, v), v.shape)
        top = np.max(np.where(on, v, v.dtype.type(-np.inf)), axis=axis, keepdims=True)
        top = np.where(np.isfinite(top), top, zero)
        e = np.where(on, np.exp(_below(np.where(on, v, top), top)), zero)
        total = np.sum(e, axis=axis, keepdims=True)
        y = e / np.where(total == 0, v.dtype.type(1), total)

    def slope(d: Any) -> Any:
        return y * (d - np.sum(d * y, axis=axis, keepdims=True))

    return record(y, (x, slope))


def _below(v: Any, top: Any) -> Any:
    """Return by how much numbers are below the largest: -inf where no float is as far away."""
    with np.errstate(over="ignore"):
        return v - top


def _placed(mask: Any, like: Any) -> Any:
    mask = value_of(mask)
    if getattr(mask, "dtype", None) != np.bool_:
        raise TypeError(f"where: expected an array of bool, got {type(mask).__name__}")
    return _device.like(mask, like) if isinstance(mask, np.ndarray) else mask


def log_softmax(x: Any, axis: int = -1) -> Any:
    """Return the logarithm of `softmax`, without overflow.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.log_softmax(np.array([0.0, 1000.0])).tolist()
    [-1000.0, 0.0]

    Args:
        x: an array of float32 or float64, or what stands for one within `vjp`.
        axis: along which the probabilities sum to 1.

    Returns:
        An array of the shape of x.

    Raises:
        TypeError: x is no array of float32 or float64.
    """
    v = _floats("x", x)
    z = _below(v, np.max(v, axis=axis, keepdims=True)) if v.size else v
    y = z - np.log(np.sum(np.exp(z), axis=axis, keepdims=True)) if v.size else v

    def slope(d: Any) -> Any:
        return d - np.exp(y) * np.sum(d, axis=axis, keepdims=True)

    return record(y, (x, slope))


# -- GELU ------------------------------------------------------------------------------------------


@functools.cache
def _erfc_coefficients(count: int) -> tuple[float, ...]:
    """Return Chebyshev coefficients of ``log(erfc(z) exp(z^2) / t)``, with t = 2 / (2 + z).

    The function is smooth in t from 0 to 1, that is for all z of at least 0, and the coefficients
    are its cosine transform at the Chebyshev nodes; `math.erfc` gives the values, and where it
    underflows the continued fraction of erfc does.
    """
    nodes = 64

    def f(t: float) -> float:
        z = 2 / t - 2
        if z < 20:
            return math.log(math.erfc(z)) + z * z - math.log(t)
        tail = 0.0
        for k in range(60, 0, -1):
            tail = k / 2 / (z + tail)
        return -math.log((z + tail) * math.sqrt(math.pi)) - math.log(t)

    angles = [math.pi * (k + 0.5) / nodes for k in range(nodes)]
    values = [f((math.cos(a) + 1) / 2) for a in angles]
    return tuple(
        2 / nodes * math.fsum(v * math.cos(j * a) for v, a in zip(values, angles))
        for j in range(count)
    )


def normal_cdf(x: Array) -> Array:
    """Return the probability that a standard normal variable is below x, to rounding."""
    kind = x.dtype.type
    # Far out nothing is left of the tail, and the square of what is farther would overflow.
    z = np.absolute(_near(x)) * kind(math.sqrt(0.5))
    t = 2 / (2 + z)
    coefficients = _erfc_coefficients(28 if x.dtype == np.float64 else 12)
    u = 4 * t - 2  # twice the argument of the Chebyshev polynomials
    b, c = np.zeros_like(t), np.zeros_like(t)
    for a in coefficients[:0:-1]:
        b, c = u * b - c + kind(a), b
    exponent = (u * b - 2 * c + kind(coefficients[0])) * kind(0.5)
    upper = t * np.exp(exponent - z * z) * kind(0.5)
    out: Array = np.where(x >= 0, 1 - upper, upper)
    return out


def _near(x: Array) -> Array:
    """Return numbers within 60 of 0, beyond which the functions of a normal variable end."""
    kind = x.dtype.type
    near: Array = np.minimum(np.maximum(x, kind(-60)), kind(60))
    return near


def gelu_parts(v: Array, approximate: bool) -> tuple[Array, Array]:
    """Return GELU of an array, and its derivative."""
    kind, w = v.dtype.type, _near(v)
    if approximate:
        a = kind(math.sqrt(2 / math.pi))
        t = np.tanh(a * (w + kind(0.044715) * w * w * w))
        slope = (1 + t) * kind(0.5)
        slope = slope + w * kind(0.5) * (1 - t * t) * a * (1 + kind(3 * 0.044715) * w * w)
        return v * ((1 + t) * kind(0.5)), slope
    cdf = normal_cdf(v)
    density = np.exp(w * w * kind(-0.5)) * kind(1 / math.sqrt(2 * math.pi))
    return v * cdf, cdf + w * density


def gelu(x: Any, *, approximate: bool = False) -> Any:
    """Return ``x P(Z < x)`` of every element, with Z a standard normal variable.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.gelu(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.1587, 0.0, 0.8413]

    Args:
        x: an array of float32 or float64, or what stands for one within `vjp`.
        approximate: whether to take the approximation by tanh, which differs by up to 0.0005 and
            takes less time.

    Returns:
        An array of the shape of x.

    Raises:
        TypeError: x is no array of float32 or float64, or approximate no bool.

    Source: Hendrycks, Gimpel (2016), "Gaussian error linear units (GELUs)".
    """
    y, slope = gelu_parts(_floats("x", x), _check.flag("approximate", approximate))
    return record(y, (x, lambda d: d * slope))


readable(globals())
