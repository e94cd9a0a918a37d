"""Operators of ONNX that gather from neighbours: convolutions, pools, changes of size.

Like those of `_graph_ops`, each takes the attributes of a node and its inputs; `vjp` records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._check import Array
from .._recording import value_of
from ._graph_ops import Given, _axes, _fixed, _ints, _like, _pad

# -- windows ---------------------------------------------------------------------------------------


def _pads(
    at: Given, outer: Any, sizes: Sequence[int], strides: list[int], spacing: list[int]
) -> list[int]:
    """Return the padding before each axis, then that after each."""
    auto, rank = at.get("auto_pad", "NOTSET"), len(sizes)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, d, s in zip(outer, sizes, spacing, strides)
        ]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        return [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    return _ints(at.get("pads", [0] * 2 * rank)) if auto == "NOTSET" else [0] * 2 * rank


def _steps(at: Given, rank: int) -> tuple[list[int], list[int]]:
    """Return the strides of windows, and the distances of their elements."""
    strides, spacing = (_ints(at.get(n, [1] * rank)) for n in ("strides", "dilations"))
    return strides, spacing


def _index(
    outer: Sequence[int], sizes: Sequence[int], strides: list[int], spacing: list[int]
) -> tuple[Array, list[int]]:
    """Return where windows take their elements, ``[K,P]`` among all places, and how many are."""
    counts = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(outer, sizes, spacing, strides)]
    if min(counts) < 1:
        raise ValueError(
            f"expected at least one output, got inputs of {tuple(outer)} for {tuple(sizes)}"
        )
    index = np.zeros((1, 1), np.int64)
    for n, k, d, s, count in zip(outer, sizes, spacing, strides, counts):
        own = np.arange(k)[:, None] * d + np.arange(count)[None] * s
        index = index[:, None, :, None] * n + own[None, :, None, :]
        index = index.reshape(index.shape[0] * k, -1)
    return index, counts


def _around(x: Any, pads: Sequence[int], value: float) -> Any:
    """Return ``[N,C,...]`` with a number around its further axes."""
    half = len(pads) // 2
    given = {"pads": [0, 0, *pads[:half], 0, 0, *pads[half:]], "value": value}
    return _pad(given, x)


def conv(at: Given, x: Any, weight: Any, bias: Any = None) -> Any:
    """Return a convolution over any number of axes, in groups: products with gathered windows.

    Args:
        at: the attributes of the node.
        x: ``[N,C,...]``.
        weight: ``[O,C/groups,...]``.
        bias: ``[O]``, or None.

    Returns:
        ``[N,O,...]``.

    Raises:
        ValueError: inputs smaller than a window.
    """
    sizes = np.shape(value_of(weight))[2:]
    rank, groups = len(sizes), int(at.get("group", 1))
    strides, spacing = _steps(at, rank)
    x = _around(x, _pads(at, x.shape[2:], sizes, strides, spacing), 0)
    index, counts = _index(x.shape[2:], sizes, strides, spacing)
    batch, channels = x.shape[:2]
    flat = np.reshape(x, (batch, channels, math.prod(x.shape[2:])))
    windows = flat[:, :, index]  # [N,C,K,P]
    each = channels // groups
    windows = np.reshape(windows, (batch, groups, each * index.shape[0], index.shape[1]))
    rows = np.reshape(weight, (groups, -1, each * index.shape[0]))
    y = np.reshape(np.matmul(rows, windows), (batch, groups * rows.shape[1], *counts))
    return y if bias is None else y + np.reshape(bias, (-1, *(1,) * rank))


# -- pools -----------------------------------------------------------------------------------------


def _overhang(at: Given, outer: Any, pads: list[int], sizes: list[int]) -> list[int]:
    """Return how far the last windows reach beyond the padding, where their number is rounded up.

    A window that would begin behind the input and the padding before it is left out.
    """
    rank = len(sizes)
    out = [0] * rank
    if not at.get("ceil_mode", 0):
        return out
    for k, (n, size, s, d) in enumerate(zip(outer, sizes, *_steps(at, rank))):
        reach, padded = (size - 1) * d + 1, n + pads[k] + pads[rank + k]
        count = -(-(padded - reach) // s) + 1
        count -= (count - 1) * s >= n + pads[k]
        out[k] = max((count - 1) * s + reach - padded, 0)
    return out


def _pooled(
    at: Given, x: Any, value: float
) -> tuple[Any, list[int], Callable[[Any, list[int]], Any]]:
    """Return the windows of a pool ``[N,C,K,P]``, the sizes of its outputs, and what makes them."""
    sizes = _ints(at["kernel_shape"])
    if len(sizes) != x.ndim - 2:
        raise ValueError(f"expected windows of {x.ndim - 2} axes, got {sizes}")
    strides, spacing = _steps(at, len(sizes))
    pads = _pads(at, x.shape[2:], sizes, strides, spacing)
    more = _overhang(at, x.shape[2:], pads, sizes)
    reach = [p + m for p, m in zip(pads[len(sizes) :], more)]
    x = _around(x, [*pads[: len(sizes)], *reach], value)
    index, counts = _index(x.shape[2:], sizes, strides, spacing)

    def windows(a: Any, lead: list[int]) -> Any:
        return np.reshape(a, (*lead, math.prod(a.shape[2:])))[:, :, index]

    return windows(x, list(x.shape[:2])), counts, windows


def max_pool(at: Given, x: Any) -> Any:
    """Return the largest number of each window; what lies around the input is none of them.

    Args:
        at: the attributes of the node.
        x: ``[N,C,...]``.

    Returns:
        ``[N,C,...]``.

    Raises:
        ValueError: inputs smaller than a window.
    """
    kind = value_of(x).dtype
    least = -np.inf if kind.kind == "f" else float(np.iinfo(kind).min)
    windows, counts, _ = _pooled(at, x, least)
    return np.reshape(np.max(windows, axis=2), (*x.shape[:2], *counts))


def average_pool(at: Given, x: Any) -> Any:
    """Return the mean of each window, of padding too with ``count_include_pad``.

    Args:
        at: the attributes of the node.
        x: ``[N,C,...]``.

    Returns:
        ``[N,C,...]``.

    Raises:
        ValueError: inputs smaller than a window.
    """
    windows, counts, take = _pooled(at, x, 0)
    sizes = _ints(at["kernel_shape"])
    outer, rank = x.shape[2:], len(sizes)
    pads = _pads(at, outer, sizes, *_steps(at, rank))
    ones: Array = _around(np.ones((1, 1, *outer)), pads, float(at.get("count_include_pad", 0)))
    ones = _around(ones, [*[0] * rank, *_overhang(at, outer, pads, sizes)], 0)
    many = np.sum(take(ones, [1, 1]), axis=2).astype(value_of(x).dtype)
    return np.reshape(np.sum(windows, axis=2) / many, (*x.shape[:2], *counts))


# -- sizes -----------------------------------------------------------------------------------------

MODES = ("nearest", "linear")
COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
    "asymmetric",
)
NEAREST: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _origins(kind: str, length: int, size: int, scale: np.float32, exact: bool) -> Array:
    """Return where the elements of a new axis lie on the old one, in float32 as its peers do.

    With `exact`, two elements that are equally near stay so, which a rounded scale may change.
    """
    at = np.arange(size, dtype=np.float32)
    half = np.float32(0.5)

    def scaled(a: Array) -> Array:
        out: Array = a * np.float32(length) / np.float32(size) if exact else a / scale
        return out

    if kind == "asymmetric":
        return scaled(at)
    if kind == "align_corners":
        ends: Array = at * np.float32(length - 1) / np.float32(max(size - 1, 1))
        return ends
    if kind == "pytorch_half_pixel" and size == 1:
        return at
    middle: Array = scaled(at + half) - half
    if kind == "half_pixel_symmetric":
        real = scale * np.float32(length)
        middle += np.float32(length) * half * (1 - np.float32(size) / real)
    return middle


def _sized(x: Any, axis: int, origins: Array, at: Given) -> Any:
    """Return an array with an axis of another size."""
    front, last = (slice(None),) * axis, x.shape[axis] - 1
    if at.get("mode", "nearest") == "nearest":
        rounded = NEAREST[at.get("nearest_mode", "round_prefer_floor")](origins)
        return x[front + (np.clip(rounded, 0, last).astype(np.int64),)]
    where = np.clip(origins, 0, last)
    low = np.floor(where).astype(np.int64)
    high = np.minimum(low + 1, last)
    part = (where - low).astype(value_of(x).dtype).reshape(-1, *(1,) * (x.ndim - axis - 1))
    return x[front + (low,)] * (_like(x, 1) - part) + x[front + (high,)] * part


def resize(at: Given, x: Any, *more: Any) -> Any:
    """Return an array of another size, by the nearest elements or between neighbours.

    Args:
        at: the attributes of the node.
        x: the array.
        *more: roi, scales and sizes; scales alone before opset 11.

    Returns:
        The array.

    Raises:
        ValueError: another number of scales or sizes than of axes, or none.
    """
    if len(more) == 1:  # of opset 10
        old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return resize({**at, **old}, x, None, *more)
    _, scales, sizes = (*more, None, None)[:3]
    chosen = _axes(at, None)
    axes = list(range(x.ndim)) if chosen is None else [k % x.ndim for k in chosen]
    factors = None if scales is None else _fixed(scales, "scales").reshape(-1).astype(np.float32)
    ends = None if sizes is None else _ints(sizes)
    given = factors if factors is not None and factors.size else ends
    if given is None or len(given) != len(axes):
        got = None if given is None else len(given)
        raise ValueError(f"expected a scale or a size for each of {len(axes)} axes, got {got}")
    kind = at.get("coordinate_transformation_mode", "half_pixel")
    by_size = given is ends
    nearest = at.get("mode", "nearest") == "nearest"
    rounds = nearest and at.get("nearest_mode", "round").startswith("round")
    for k, axis in enumerate(axes):
        length = x.shape[axis]
        if factors is not None and not by_size:
            scale = factors[k]
            size = math.floor(np.float32(length) * scale)
        else:
            size = int(given[k])
            scale = np.float32(size) / np.float32(length)
        if size != length or scale != 1:
            x = _sized(x, axis, _origins(kind, length, size, scale, by_size and rounds), at)
    return x


def upsample(at: Given, x: Any, scales: Any = None) -> Any:
    """Return an array of another size, as operators before opset 10 have it.

    Args:
        at: the attributes of the node, which have the scales before opset 9.
        x: the array.
        scales: one for each axis, or None.

    Returns:
        The array.
    """
    given = np.array(at["scales"], np.float32) if scales is None else scales
    return resize({n: v for n, v in at.items() if n == "mode"}, x, given)
