"""Put steps in Python between native ones, for streams of layers that the native code lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array

# ``step(rows [n,I], slots)`` gives rows [n,O]; slots are their numbers, or a slice for all.
Step = Callable[[Array, Any], Array]


class Chain:
    """Native streams and steps in Python, one after the other, as one native stream.

    Layers add themselves as they do to a native stream, or by `add_step`.

    Args:
        make: returns a native stream of so many slots.
        batch: B, the number of slots.
        dtype: of the rows.
        width: the length of the inputs; None: that of the first layer that knows it.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        batch: int,
        dtype: np.dtype[Any],
        width: int | None = None,
    ) -> None:
        self._make, self._batch, self._dtype, self._width = make, batch, dtype, width
        self._parts: list[Any] = []  # native streams, and functions
        self._native: Any = None  # that layers are being added to
        self._x: Array | None = None  # where the first part is a function
        self._y: Array | None = None  # where the last part is one

    def _open(self) -> Any:
        if self._native is None:
            self._native = self._make(self._batch)
            self._parts.append(self._native)
            self._y = None
        return self._native

    def add_recurrent(self, packed: Any) -> Any:
        """Add a recurrent layer; return its states."""
        return self._open().add_recurrent(packed)

    def add_linear(self, packed: Any) -> None:
        """Add a `Linear`."""
        self._open().add_linear(packed)

    def add_embedding(self, weight: Array) -> None:
        """Add an `Embedding`."""
        self._open().add_embedding(weight)

    def add_map(self, name: str, width: int) -> None:
        """Add a function of every element that the native code has; -1: of any width."""
        known = self._require_width(None if width < 0 else width)
        self._open().add_map(name, known)

    def add_step(self, step: Step, width: int | None, out: int | None = None) -> None:
        """Add a step in Python.

        Args:
            step: the function.
            width: I; None: that of what comes before.
            out: O; None: I.
        """
        known = self._require_width(width)
        if width is not None and width != known:
            raise ValueError(f"stream: expected inputs of {width}, got {known} of the layer before")
        if not self._parts:
            self._x = np.zeros((self._batch, known), self._dtype)
        self._y = np.zeros((self._batch, out or known), self._dtype)
        self._native = None
        self._parts.append(step)

    def _require_width(self, width: int | None) -> int:
        """Return the length of the inputs of the next layer, or its own where it is the first."""
        known = self.y.shape[1] if self._parts else self._width
        known = width if known is None else known
        if known is None:
            raise TypeError(
                "stream: expected a layer first that knows the length of its inputs, such as a "
                "Linear, got one that takes any"
            )
        return known

    @property
    def batch(self) -> int:
        """B, the number of slots."""
        return self._batch

    def branch(self) -> Chain:
        """Return an empty chain of the same slots and inputs, for a layer within a layer."""
        width = self.y.shape[1] if self._parts else self._width
        return Chain(self._make, self._batch, self._dtype, width)

    def alone(self) -> Any:
        """Return the native stream if that is all there is, else the chain."""
        return self._native if len(self._parts) == 1 and self._native is not None else self

    @property
    def x(self) -> Array:
        """The inputs of the next step."""
        if self._x is not None:
            return self._x
        x: Array = self._parts[0].x if self._parts else self.y
        return x

    @property
    def y(self) -> Array:
        """The outputs of the last step; empty without a layer if no width is known either."""
        if self._y is not None:
            return self._y
        if self._parts:
            y: Array = self._parts[-1].y
            return y
        return np.zeros(0 if self._width is None else (self._batch, self._width), self._dtype)

    def step(self, x: Array | None = None, slots: Array | None = None) -> Array:
        """Run one step of all slots, or of some."""
        rows = x
        if self._x is not None:
            rows = self._checked(x, slots)
        where: Any = slice(None) if slots is None else slots
        for part in self._parts:
            if callable(part):
                assert rows is not None
                rows = part(rows, where)
            else:
                rows = part.step(rows) if slots is None else part.step(rows, slots)
        assert rows is not None
        if self._y is None:
            return rows
        out = self._y[: len(rows)]
        out[...] = rows
        return out

    def _checked(self, x: Any, slots: Array | None) -> Array:
        """Return the inputs of a step that begins in Python, which no native code has checked."""
        assert self._x is not None
        if slots is not None:
            if ((slots < 0) | (slots >= self._batch)).any():
                raise ValueError(
                    f"slots: expected numbers from 0 to {self._batch - 1}, got {slots.tolist()}"
                )
            if len(np.unique(slots)) != len(slots):
                raise ValueError(f"slots: expected each at most once, got {slots.tolist()}")
        shape = (self._batch if slots is None else len(slots), self._x.shape[1])
        if x is None:
            return self._x[: shape[0]]
        if not isinstance(x, np.ndarray):
            kind = type(x).__name__
            raise TypeError(f"x: expected a numpy.ndarray of {self._dtype}, got {kind}")
        _check.of_dtype("x", x, self._dtype)
        if x.shape != shape:
            raise ValueError(f"x: expected shape {shape}, got {x.shape}")
        return x


readable(globals())
