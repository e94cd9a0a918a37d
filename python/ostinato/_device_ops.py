"""Native functions for arrays of a device, and `Packed` and `PackedLinear` for its weights.

`_native.backend_for` returns this module for such arrays. The signatures and their meaning are
those of `_core`; a name ends in ``_`` if the function works in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _deferred, _device
from ._abi import AdamFields, DropFlatFields, MatmulFields, ScatterFields
from ._backend import Packed as Packed


def product(a: Any, b: Any) -> Any:
    """Multiply ``[M,K]`` by ``[K,N]``: by the array library, or by our kernel without cuBLAS."""
    device = _device.of(a)
    assert device is not None
    if device.figures.library:
        return device.xp.matmul(a, b)
    with device.here():
        out = device.xp.empty((a.shape[0], b.shape[1]), a.dtype)
    if out.size:
        a_row, a_k = (stride // a.itemsize for stride in a.strides)
        b_k, b_column = (stride // b.itemsize for stride in b.strides)
        values: MatmulFields = {
            "a": a,
            "b": b,
            "out": out,
            "rows": out.shape[0],
            "columns": out.shape[1],
            "depth": a.shape[1],
            "a_row": a_row,
            "a_k": a_k,
            "b_k": b_k,
            "b_column": b_column,
        }
        device.launch("matmul", None, a.dtype, values)
    return out


class PackedLinear:
    """The weights of ``y = x W^T + b``, with the interface of `_core.PackedLinearFloat32`."""

    def __init__(self, weight: Any, bias: Any, backward: bool) -> None:
        self.weight, self.bias, self.backward = weight, bias, backward

    def forward(self, x: Any) -> Any:
        """Return rows ``[N,O]`` of rows ``[N,I]``."""
        y = product(x, self.weight.T)
        if self.bias is not None:
            y += self.bias
        return y

    def run_backward(self, x: Any, dy: Any, dweight: Any, dbias: Any, need_dx: bool) -> Any:
        """Return dx, if wanted; add to the gradients of weight and bias."""
        if dweight is not None:
            dweight += product(dy.T, x)
        if dbias is not None:
            dbias += dy.sum(0)
        return product(dy, self.weight) if need_dx else None


def softmax_cross_entropy(
    y: Any, target: Any, smoothing: float, weight: Any, need_gradient: bool
) -> tuple[Any, Any]:
    """Return the sum of the losses of rows ``[N,V]``, and the gradient of ``weight`` times it.

    Rows of target -1 do not count. The sum is an array without axes, and the weight a number or
    such an array.
    """
    xp, classes = _library(y), y.shape[1]
    if not y.size:
        return 0.0, xp.empty_like(y) if need_gradient else None
    counts = (target >= 0)[:, None]
    at = xp.maximum(target, 0)[:, None]
    y = xp.where(counts, y, y.dtype.type(0))  # what does not count may hold NaN
    top = y.max(1, keepdims=True)
    exps = xp.exp(y - top)
    total = exps.sum(1, keepdims=True, dtype=np.float64)
    level = top + xp.log(total)
    losses = (1 - smoothing) * (level - xp.take_along_axis(y, at, 1))
    if smoothing:
        losses += smoothing * (level - y.mean(1, keepdims=True, dtype=np.float64))
    loss, scalar = xp.where(counts, losses, 0.0).sum(), _deferred.scalar
    if not need_gradient:
        return loss, None
    d = exps * (weight / total).astype(y.dtype) - scalar(smoothing * weight / classes, y.dtype)
    d -= (xp.arange(classes) == at) * scalar((1 - smoothing) * weight, y.dtype)
    return loss, xp.where(counts, d, y.dtype.type(0))


def embedding_gather(ids: Any, weight: Any) -> Any:
    """Return rows of a table; where indices are out of range, any rows."""
    bad, count = (ids < 0) | (ids >= len(weight)), len(weight)

    def error() -> ValueError:
        position = int(_device.host(bad).argmax())
        return ValueError(
            f"x: expected indices from 0 to {count - 1}, got {int(ids[position])} at "
            f"position {position}"
        )

    _deferred.refuse(bad.any(), error)
    return weight[np.where(bad, 0, ids)]


def embedding_scatter_(ids: Any, dy: Any, dweight: Any) -> None:
    """Add rows to those of a table, in their order."""
    xp, device = _library(dy), _device.of(dy)
    assert device is not None
    if not dy.size:
        return
    order = xp.argsort(ids, kind="stable").astype(np.int64)
    values: ScatterFields = {
        "from": dy,
        "ids": ids[order],
        "order": order,
        "to": dweight,
        "count": len(ids),
        "width": dy.shape[1],
        "rows": len(dweight),
    }
    device.launch("scatter", None, dy.dtype, values)


def square_sum(x: Any) -> Any:
    """Return the sum of all squares, as an array without axes."""
    return _library(x).square(x, dtype=np.float64).sum()


def adam_runs_(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    runs: list[tuple[int, int, float, float, float, float]],
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool,
    where: Any = None,
) -> None:
    """Take one step of Adam on ranges of p, in place.

    Args:
        p: the parameters, as g, m and v.
        g: the gradients.
        m: their mean.
        v: the mean of their squares.
        runs: first, end, rate, weight_decay, correction1 and correction2 of each range.
        beta1: the decay rate of m.
        beta2: the decay rate of v.
        eps: added to the root of v.
        decoupled: whether weight decay acts on the parameters themselves.
        where: a flag on the device: nothing changes if it is False.
    """
    device = _device.of(p)
    assert device is not None
    for first, end, rate, decay, one, two in runs:
        values: AdamFields = {
            "p": p[first:end],
            "g": g[first:end],
            "m": m[first:end],
            "v": v[first:end],
            "where": where,
            "count": end - first,
            "rate": rate,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": decay,
            "correction1": one,
            "correction2": two,
            "decoupled": decoupled,
        }
        device.launch("adam", None, p.dtype, values)


def dropout(x: Any, rate: float, key: int) -> Any:
    """Return a flat array after dropout."""
    device = _device.of(x)
    assert device is not None
    with device.here():
        y = device.xp.empty_like(x)
    if x.size:
        values: DropFlatFields = {"from": x, "to": y, "count": x.size, "rate": rate, "key": key}
        device.launch("drop_flat", None, x.dtype, values)
    return y


def elementwise(name: str, x: Any) -> Any:
    """Return tanh, sigmoid or exp of every element."""
    xp = _library(x)
    if name == "sigmoid":
        return 1 / (1 + xp.exp(-x))
    return xp.tanh(x) if name == "tanh" else xp.exp(x)


def _library(a: Any) -> Any:
    device = _device.of(a)
    assert device is not None
    return device.xp
