"""Divide batches and states among the ranks of a parallel run, and join states again.

Row k of a batch belongs to rank ``k mod size``: neighbours, which often have about the same
length, come to different ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import _check, _device
from .._ragged import Ragged
from ..data import Inputs, some_weights
from ._types import Batch


def own_rows(batch: Batch, part: slice, *, per_sequence: bool) -> Batch:
    """Return the rows of a batch of one input that belong to a rank.

    Args:
        batch: a whole batch.
        part: those rows.
        per_sequence: whether the target is one a sequence.
    """
    count = batch.size
    rows = None if batch.rows is None else batch.rows[part]
    some = np.arange(count)[part]
    if not len(some):
        return none_of(batch.time_major, count)
    x, axis = batch.x, 1 - batch.axis
    times = {}
    for name, value in batch.times.items():
        if name == "masked":
            times[name] = value
            continue
        value = np.asarray(value)
        if isinstance(x, Ragged) and name == "weights":
            times[name] = some_weights(value, x, some, "last" if per_sequence else "all")
        elif isinstance(x, Ragged):
            times[name] = x.like(value).take(some).rows
        else:
            times[name] = _taken(name, value, axis if value.ndim == 2 else 0, count, part)
    if not isinstance(x, Ragged):
        target = _taken("target", batch.target, 0 if per_sequence else axis, count, part)
        x = _taken("x", x, axis, count, part)
    else:
        target = batch.target[some] if per_sequence else x.like(batch.target).take(some).rows
        x = x.take(some)
    return replace(batch, x=x, target=target, times=times, rows=rows, whole=count)


def own_inputs(
    x: Inputs, target: Any, times: dict[str, Any], part: slice, axis: int, *, per_sequence: bool
) -> tuple[Inputs, Any, dict[str, Any], int]:
    """Return the rows of several inputs that belong to a rank, and how many the batch has.

    Args:
        x: the inputs.
        target: an array, or a `Ragged`.
        times: lengths, mask and weights.
        part: the rows.
        axis: that of the batch, in arrays of two axes or more.
        per_sequence: whether the target is one a sequence.
    """
    ragged = isinstance(target, Ragged)
    own = 0 if per_sequence or (not ragged and target.ndim < 2) else axis
    count = len(target) if ragged else int(target.shape[own])
    some = np.arange(count)[part]

    def taken(name: str, a: Any) -> Any:
        if isinstance(a, Ragged):
            return a.take(some)
        return _taken(name, a, axis if a.ndim > 1 else 0, count, part)

    cut = {n: _taken(n, a, axis if np.ndim(a) == 2 else 0, count, part) for n, a in times.items()}
    target = target.take(some) if ragged else _taken("target", target, own, count, part)
    return x.mapped(taken), target, cut, count


def none_of(time_major: bool, count: int) -> Batch:
    """Return the batch of a rank that has none of its rows."""
    return Batch(None, None, {}, time_major, whole=count)


def _taken(name: str, a: Any, axis: int, count: int, part: slice) -> Any:
    """Return part of the rows of an array, which are on some axis."""
    if a.ndim <= axis or a.shape[axis] != count:
        raise ValueError(
            f"{name}: expected the {count} rows of the batch on axis {axis}, by which they are "
            f"divided among the ranks, got shape {tuple(a.shape)}"
        )
    return _check.contiguous(a[part] if axis == 0 else a[:, part])


# -- states ----------------------------------------------------------------------------------------


def _axis(a: Any) -> int:
    """Return the axis of the batch in a state: ``[D,B,H]`` of recurrent layers, or ``[B,...]``."""
    return 1 if a.ndim > 2 else 0


def own_state(state: Any, part: slice) -> Any:
    """Return the rows of a state, of nested tuples of arrays, that belong to a rank."""
    if state is None:
        return None
    if _check.is_array(state):
        return _check.contiguous(state[part] if _axis(state) == 0 else state[:, part])
    return tuple(own_state(s, part) for s in state)


def joined_state(states: list[Any]) -> Any:
    """Return the state of all rows from those of the ranks; None stands for a rank without rows."""
    size = len(states)
    known = [s for s in states if s is not None]
    if not known:
        return None
    if not _check.is_array(known[0]):
        parts = [[None] * len(known[0]) if s is None else s for s in states]
        return tuple(joined_state([p[k] for p in parts]) for k in range(len(known[0])))
    like = _device.host(known[0])
    axis = _axis(like)
    count = sum(s.shape[axis] for s in known)
    out = np.empty((*like.shape[:axis], count, *like.shape[axis + 1 :]), like.dtype)
    for rank, s in enumerate(states):
        own = out[rank::size] if axis == 0 else out[:, rank::size]
        if own.size == 0 and s is None:
            continue
        if s is None or own.shape != s.shape:
            raise ValueError(
                f"state: expected the rows of the batch on axis {axis} of the states that the "
                f"model returns, got shape {None if s is None else s.shape} on rank {rank}"
            )
        own[...] = _device.host(s)
    return out


def joined_walks(walks: list[dict[int, Any]]) -> dict[int, Any]:
    """Return the states by step of all rows; those of rows that have ended stay what they are."""
    steps = sorted({t for walk in walks for t in walk})

    def at(walk: dict[int, Any], step: int) -> Any:
        return walk.get(max((t for t in walk if t <= step), default=-1))

    return {t: joined_state([at(walk, t) for walk in walks]) for t in steps}
