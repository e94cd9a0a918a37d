"""Follow the further inputs of an ONNX chain, states and lengths, to the nodes that take them.

A call of a chain takes a state for each layer, and lengths that hold for all of them. A graph is
such a chain only where its nodes read their inputs in that way: the parts of a state one after the
other, and the lengths whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._graph_ops import split_sizes
from ._onnx_constants import axes_of, slice_of

_END = 2**31 - 1  # a Slice that ends there or behind ends with the axis
_REAL, _WHOLE = (1, 11), (6, 7)  # of TensorProto: float and double, int32 and int64


class Part(NamedTuple):
    """The elements that were taken along an axis of an input."""

    label: int  # of the axis
    start: int
    end: int | None  # None: all from the start on


class Aside(NamedTuple):
    """A further input, or a part of one.

    Attributes:
        name: of the input.
        axes: each by its place in the input, None for a new axis of 1, with its size where it is
            known; None: their number is not known.
        part: what of the input it is; None: all.
        casts: the types that it was cast to.
    """

    name: str
    axes: tuple[tuple[int | None, int | None], ...] | None
    part: Part | None = None
    casts: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, sizes: list[int | None]) -> Aside:
        """Return an input, whose sizes are known as far as they are fixed."""
        return cls(name, tuple(enumerate(sizes)) or None)

    def known(self, name: str) -> tuple[tuple[int | None, int | None], ...]:
        """Return the axes; raise where their number is not known."""
        if self.axes is None:
            raise ValueError(f"{name}: expected {self.name!r} with a number of axes, got none")
        return self.axes

    def in_order(self) -> bool:
        """Whether all elements are in the order of the input."""
        labels = [k for k, n in self.axes or () if k is not None and n != 1]
        return labels == sorted(labels)


def _taken(name: str, a: Aside, k: int, start: int, end: int | None) -> Aside:
    """Return what lies between two places of an axis."""
    axes = list(a.known(name))
    label, size = axes[k]
    if end is not None and end >= _END:
        end = size
    if size is not None and end is not None:
        start, end = (n + size * (n < 0) for n in (start, end))
        end = min(end, size)
    if start == 0 and end == size:
        return a
    if a.part is not None or label is None or start < 0 or (end is not None and end <= start):
        raise ValueError(f"{name}: expected a part of {a.name!r}, got {start}:{end} of axis {k}")
    axes[k] = (label, None if end is None else end - start)
    return a._replace(axes=tuple(axes), part=Part(label, start, end))


def _without(name: str, a: Aside, gone: list[int]) -> Aside:
    """Return the same without some axes, which have one element each."""
    axes = a.known(name)
    if any(axes[k][1] not in (None, 1) for k in gone):
        raise ValueError(f"{name}: expected axes of 1 to be squeezed, got {gone} of {a.name!r}")
    return a._replace(axes=tuple(axis for k, axis in enumerate(axes) if k not in gone))


def _slice(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    starts, ends, axes, steps = slice_of(given, inputs, len(a.known(name)))
    if any(step != 1 for step in steps):
        raise ValueError(f"{name}: expected steps of 1, got {steps}")
    for k, start, end in zip(axes, starts, ends):
        a = _taken(name, a, k, start, end)
    return a


def _gather(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    axes, at = a.known(name), np.asarray(inputs[1])
    k = int(given.get("axis", 0)) % len(axes)
    which = [int(n) for n in at.reshape(-1)]
    if (size := axes[k][1]) is not None:
        which = [n + size * (n < 0) for n in which]
    if at.ndim > 1 or not which or which != list(range(which[0], which[0] + len(which))):
        raise ValueError(f"{name}: expected neighbours of {a.name!r}, got {which}")
    a = _taken(name, a, k, which[0], which[-1] + 1)
    return a if at.ndim else _without(name, a, [k])


def _split(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> list[Aside]:
    axes, k = a.known(name), int(given.get("axis", 0))
    sizes = inputs[1] if len(inputs) > 1 else None
    length = axes[k][1]
    if length is None:
        raise ValueError(f"{name}: expected {a.name!r} of a fixed size, got a Split of axis {k}")
    out, start = [], 0
    for n in split_sizes(given, sizes, length):
        out.append(_taken(name, a, k % len(axes), start, start + n))
        start += n
    return out


def _squeeze(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    axes, wanted = a.known(name), axes_of(given, inputs)
    if wanted is not None:
        return _without(name, a, [k % len(axes) for k in wanted])
    if any(n is None for _, n in axes):
        raise ValueError(f"{name}: expected {a.name!r} of fixed sizes, got a Squeeze without axes")
    return _without(name, a, [k for k, (_, n) in enumerate(axes) if n == 1])


def _unsqueeze(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    axes, wanted = a.known(name), axes_of(given, inputs) or ()
    count = len(axes) + len(wanted)
    new, left = {k % count for k in wanted}, iter(axes)
    return a._replace(axes=tuple((None, 1) if k in new else next(left) for k in range(count)))


def _transpose(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    axes = a.known(name)
    return a._replace(axes=tuple(axes[k] for k in given.get("perm", range(len(axes))[::-1])))


def _cast(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    return a._replace(casts=(*a.casts, int(given["to"])))


def _same(name: str, a: Aside, inputs: list[Any], given: Mapping[str, Any]) -> Aside:
    return a


Follow = Callable[[str, Aside, list[Any], Mapping[str, Any]], Any]
ASIDES: dict[str, Follow] = {
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Identity": _same,
    "Cast": _cast,
}


class Shares:
    """Note which parts of the further inputs the nodes of a chain have taken so far."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, int | None]] = {}  # of inputs: the axis, and how far
        self._lengths: tuple[str | None] | None = None  # of the nodes so far

    def take_lengths(self, name: str, value: Any) -> None:
        """Take the lengths of a node, which are those of every other one.

        Args:
            name: of the node.
            value: an `Aside`, or None for a node without lengths.

        Raises:
            ValueError: they are others, or not an input as it is.
        """
        own = value.name if isinstance(value, Aside) else None
        if isinstance(value, Aside) and (
            value.part is not None
            or not value.in_order()
            or any(to not in _WHOLE for to in value.casts)
        ):
            raise ValueError(f"{name}: expected lengths that are an input, got a part of {own!r}")
        if self._lengths not in (None, (own,)):
            raise ValueError(f"{name}: expected the lengths of all other nodes, got {own!r}")
        if own in self._ends:
            raise ValueError(f"{name}: expected lengths, got {own!r}, which is a state too")
        self._lengths = (own,)

    def take_state(self, name: str, value: Aside, what: str, layout: int) -> None:
        """Take an initial state of a node, whose parts follow those of the nodes before it.

        Args:
            name: of the node.
            value: the state.
            what: "h" or "c".
            layout: of the node, whose states are ``[D,B,H]`` or, with 1, ``[B,D,H]``.

        Raises:
            ValueError: it is another part, or its elements are in another order.
        """
        labels = [k for k, _ in value.axes or ()]
        label, start, end = value.part or Part(0, 0, None)
        moved = value.part is not None and label in labels and labels.index(label) != layout
        if moved or not value.in_order() or any(to not in _REAL for to in value.casts):
            raise ValueError(f"{name}: expected {what} as it is in {value.name!r}, got another")
        before = self._ends.get(value.name, (label, 0))
        if before != (label, start):
            raise ValueError(
                f"{name}: expected {what} to be the part of {value.name!r} behind those of the "
                "nodes before it, got another"
            )
        self._ends[value.name] = (label, end)
