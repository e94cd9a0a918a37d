"""Compute the CTC loss with the operations of an array library, for arrays of a device.

Every step of the recursions is a few operations on all sequences at once, in float64 and log space.
It has the interface of `_core.ctc_Float32`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _device
from .._check import Array

NONE = -1e100  # the logarithm of zero: finite, so that no difference of two is NaN
LIMIT = NONE / 10  # below it a probability is zero


class _Layout(NamedTuple):
    """Where steps and states are, on the device.

    Attributes:
        at: ``[T,B]``, the row of the logits of each step; 0 past the ends.
        on: ``[T,B]``, the steps that there are.
        where: ``[N]``, the places of these steps in a flat ``[T,B]``.
        classes: ``[B,S]``, the class of each state: blank, label, blank, ..., blank.
        states: ``[B,S]``, the states that there are.
        skips: ``[B,S]``, whether a path may come from two states before.
        last: ``[B]``, the last state.
    """

    at: Any
    on: Any
    where: Any
    classes: Any
    states: Any
    skips: Any
    last: Any


def _layout(
    device: _device.Device,
    rows: Array,
    row_offsets: Array,
    labels: Array,
    label_offsets: Array,
    blank: int,
) -> _Layout:
    lengths, counts = np.diff(row_offsets), np.diff(label_offsets)
    on = np.arange(lengths.max(initial=0))[:, None] < lengths
    at = np.zeros(on.shape, np.int64)
    at.T[on.T] = rows  # sequence after sequence
    classes = np.full((len(counts), 2 * int(counts.max(initial=0)) + 1), blank, np.int64)
    odd = classes[:, 1::2]
    odd[np.arange(odd.shape[1]) < counts[:, None]] = labels
    skips = np.zeros(classes.shape, bool)
    skips[:, 3::2] = odd[:, 1:] != odd[:, :-1]
    states = np.arange(classes.shape[1]) <= 2 * counts[:, None]
    where = np.arange(on.size).reshape(on.shape).T[on.T]
    parts = (at, on, where, classes, states, skips, 2 * counts)
    return _Layout(*(device.put(part) for part in parts))


def ctc(
    y: Any,
    rows: Array,
    row_offsets: Array,
    labels: Array,
    label_offsets: Array,
    scales: Array,
    blank: int,
    zero_infinite: bool,
    need_gradient: bool,
) -> tuple[Array, Any]:
    """Return the losses ``[B]``, and the gradient of their sum times ``scales``.

    Args:
        y: logits ``[N,V]`` on a device.
        rows: the rows of the steps, one sequence after the other; the rest is on the host as well.
        row_offsets: ``[B+1]``, where each sequence begins.
        labels: those of one sequence after the other.
        label_offsets: ``[B+1]``, where those of each sequence begin.
        scales: ``[B]``.
        blank: the class of the blank.
        zero_infinite: whether the gradient of an infinite loss is zero, else NaN.
        need_gradient: whether the gradient is wanted.

    Returns:
        ``losses, dy``; dy ``[N,V]`` is None if it is not wanted.
    """
    device = _device.of(y)
    assert device is not None
    with device.here(), np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if not len(row_offsets) - 1 or not y.size:
            losses = device.put(np.where(np.diff(label_offsets) > 0, np.inf, 0.0))
            return losses, device.xp.zeros_like(y) if need_gradient else None
        layout = _layout(device, rows, row_offsets, labels, label_offsets, blank)
        return _run(device.xp, device, y, layout, scales, zero_infinite, need_gradient)


def _run(
    xp: Any,
    device: _device.Device,
    y: Any,
    layout: _Layout,
    scales: Array,
    zero_infinite: bool,
    need_gradient: bool,
) -> tuple[Array, Any]:
    steps, batch = layout.on.shape
    z = y[layout.at].astype(np.float64)
    z -= z.max(-1, keepdims=True) if steps else 0
    log_p = z - xp.log(xp.exp(z).sum(-1, keepdims=True))
    shape = (steps, *layout.classes.shape)
    chances = xp.take_along_axis(log_p, xp.broadcast_to(layout.classes[None], shape), 2)
    chances = xp.where(layout.states, xp.maximum(chances, NONE), NONE)
    start = xp.full(layout.classes.shape, NONE)
    start[:, 0] = 0
    forward, a = [], start
    for t in range(steps):
        a = xp.where(layout.on[t][:, None], _from_before(xp, a, layout.skips) + chances[t], a)
        forward.append(a)
    every = device.put(np.arange(batch))
    before = xp.where(layout.last > 0, a[every, xp.maximum(layout.last - 1, 0)], NONE)
    total = xp.logaddexp(a[every, layout.last], before)
    total = xp.where(total < LIMIT, -np.inf, total)
    if not need_gradient:
        return -total, None
    share = xp.exp(log_p)  # becomes the gradient
    later = xp.full(layout.classes.shape, NONE)
    later[every, layout.last] = 0
    for t in range(steps - 1, -1, -1):
        b = _from_behind(xp, later, layout.skips)
        taken = xp.exp(forward[t] + b - total[:, None])
        for k in range(taken.shape[1]):  # one state after the other: equal labels add up
            share[t, every, layout.classes[:, k]] -= taken[:, k]
        later = xp.where(layout.on[t][:, None], b + chances[t], later)
    share *= device.put(scales)[:, None]
    share = xp.where(xp.isinf(total)[:, None], 0.0 if zero_infinite else np.nan, share)
    share = xp.where(xp.isnan(total)[:, None], np.nan, share)  # in all classes, at all steps
    dy = xp.zeros_like(y)
    dy[layout.at.reshape(-1)[layout.where]] = share.reshape(steps * batch, -1)[layout.where]
    return -total, dy


def _from_before(xp: Any, a: Any, skips: Any) -> Any:
    """Return the sums over the states that a path comes from."""
    out = a.copy()
    out[:, 1:] = xp.logaddexp(a[:, 1:], a[:, :-1])
    out[:, 2:] = xp.logaddexp(out[:, 2:], xp.where(skips[:, 2:], a[:, :-2], NONE))
    return out


def _from_behind(xp: Any, q: Any, skips: Any) -> Any:
    """Return the sums over the states that a path goes to."""
    out = q.copy()
    out[:, :-1] = xp.logaddexp(q[:, :-1], q[:, 1:])
    out[:, :-2] = xp.logaddexp(out[:, :-2], xp.where(skips[:, 2:], q[:, 2:], NONE))
    return out
