"""Loaders: iterables of ``(x, target)`` or ``(x, target, lengths)``, in the layout of the model.

A loader may say ``carries_state = True`` (the state goes on from batch to batch) and may have ``batches(epoch, start)``, so that a run
resumes where it stopped without going through what was seen. Arrays that a loader gave are never changed by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _check
from ._check import Array
from ._ragged import Ragged, rows_of

__all__ = ["ArrayLoader", "RaggedLoader", "StreamLoader"]


class _Selections:
    """Which samples of x go into which batch."""

    carries_state = False
    x: Any

    def _select(self, batch_size: int, shuffle: bool, rng: int) -> None:
        self.batch_size, self.shuffle = _check.positive("batch_size", batch_size), shuffle
        self.rng = _check.positive("rng", rng, 0)

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def _selections(self, epoch: int, start: int) -> Iterator[Array]:
        """The numbers of the samples of each batch, from batch ``start`` on."""
        n = len(self.x)
        order = np.random.default_rng((self.rng, epoch)).permutation(n) if self.shuffle else np.arange(n)
        for k in range(start, len(self)):
            yield order[k * self.batch_size : (k + 1) * self.batch_size]


class ArrayLoader(_Selections):
    """Batches of samples ``x [N,T,I]`` (or ``[N,T]`` of indices) with targets ``[N,...]`` and lengths ``[N]``.

    >>> import numpy as np
    >>> loader = ArrayLoader(np.zeros((10, 7, 3)), np.zeros((10, 7, 1)), batch_size=4, time_major=True, rng=0)
    >>> [x.shape for x, target, lengths in loader]
    [(7, 4, 3), (7, 4, 3), (7, 2, 3)]

    Args:
        outputs: "all": a target a step, ``[N,T,...]``; "last": one a sequence, ``[N,...]``.
        time_major: batches are ``[T,B,...]`` (views, without a copy beyond the selection), else ``[B,T,...]``.
        shuffle: a new order every epoch, that of (rng, epoch).
    """

    def __init__(
        self,
        x: Array,
        target: Array,
        lengths: Array | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        outputs: str = "all",
        time_major: bool = True,
        rng: int = 0,
    ) -> None:
        self.x, self.target = _check.array("x", x), _check.array("target", target)
        if x.ndim < 2:
            raise ValueError(f"x: expected shape (N, T, ...), got {x.shape}")
        _check.choice("outputs", outputs, ("all", "last"))
        wanted = x.shape[:2] if outputs == "all" else x.shape[:1]
        if target.shape[: len(wanted)] != wanted:
            raise ValueError(f"target: expected a shape that begins with {wanted}, got {target.shape}")
        self.lengths = _check.lengths(lengths, x.shape[1], x.shape[0])
        self._select(batch_size, shuffle, rng)
        self.outputs, self.time_major = outputs, time_major

    def __iter__(self) -> Iterator[tuple[Array, Array, Array | None]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array, Array | None]]:
        """The batches of an epoch from number ``start`` on."""
        for rows in self._selections(epoch, start):
            x, target = self.x[rows], self.target[rows]
            if self.time_major:
                x = np.swapaxes(x, 0, 1)
                if self.outputs == "all":
                    target = np.swapaxes(target, 0, 1)
            yield x, target, None if self.lengths is None else self.lengths[rows]


def targets_of(target: Any, x: Ragged, outputs: str) -> Array:
    """Of ragged sequences: flat rows ``[N,...]``, or with outputs="last" ``[B,...]``."""
    if outputs == "all":
        return rows_of("target", target, x)
    a = _check.array("target", target)
    if a.ndim == 0 or len(a) != len(x):
        raise ValueError(f"target: expected {len(x)} rows, one for each sequence, got shape {a.shape}")
    return a


class RaggedLoader(_Selections):
    """Batches of sequences of different lengths, without padding.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = ost.Ragged(np.zeros((10, 3)), [0, 4, 4, 9, 10])
    >>> [(batch, target.shape) for batch, target in RaggedLoader(x, np.zeros((10, 1)), batch_size=3, shuffle=False)]
    [(Ragged(3 sequences, 9 rows), (9, 1)), (Ragged(1 sequences, 1 rows), (1, 1))]

    Args:
        x: an `ostinato.Ragged`.
        target: flat rows ``[N,...]``, or a `Ragged` or a list cut as x; with ``outputs="last"`` one a sequence, ``[B,...]``.
        shuffle: a new order every epoch, that of (rng, epoch).
    """

    def __init__(
        self,
        x: Ragged,
        target: Any,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        outputs: str = "all",
        rng: int = 0,
    ) -> None:
        if not isinstance(x, Ragged):
            raise TypeError(f"x: expected an ostinato.Ragged, got {type(x).__name__}")
        self.x, self.outputs = x, _check.choice("outputs", outputs, ("all", "last"))
        self.target: Array = targets_of(target, x, outputs)
        self._select(batch_size, shuffle, rng)

    def __iter__(self) -> Iterator[tuple[Ragged, Array]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Ragged, Array]]:
        """The batches of an epoch from number ``start`` on."""
        for some in self._selections(epoch, start):
            target = self.x.like(self.target).take(some).rows if self.outputs == "all" else self.target[some]
            yield self.x.take(some), target


class StreamLoader:
    """Windows of a long stream of indices, cut into parallel rows: truncated backpropagation through time.

    The stream is cut into ``batch_size`` rows of equal length; batch k holds the steps ``k * window ..`` of every row, and its
    target the same one step later. The state is carried from window to window (Williams, Peng 1990; Mikolov et al. 2010), so only
    the gradient is cut.

    >>> import numpy as np
    >>> loader = StreamLoader(np.arange(13), batch_size=2, window=3)
    >>> [(x.T.tolist(), target.T.tolist()) for x, target in loader][0]
    ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]])

    Args:
        text: the stream ``[N]`` of whole numbers, N > batch_size, of any integer dtype. It is used as
            it is, without a copy, so leave it unchanged; batches are int64.
        batch_size: parallel rows B.
        window: steps T of a batch; the last of an epoch may be shorter.
    """

    carries_state = True

    def __init__(self, text: Array, batch_size: int, window: int) -> None:
        stream = _check.array("text", text)
        if stream.dtype.kind not in "iu":
            raise TypeError(f"text: expected an integer dtype, got {stream.dtype}")
        stream = _check.contiguous(stream).reshape(-1)
        self.batch_size, self.window = _check.positive("batch_size", batch_size), _check.positive("window", window)
        self.steps = (stream.size - 1) // self.batch_size  # of every row
        if self.steps < 1:
            raise ValueError(f"text: expected more than batch_size = {batch_size} elements, got {stream.size}")
        used = self.steps * self.batch_size
        self._x = stream[:used].reshape(self.batch_size, -1).T
        self._target = stream[1 : used + 1].reshape(self.batch_size, -1).T

    def __len__(self) -> int:
        return -(-self.steps // self.window)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """The windows from number ``start`` on; every epoch is the same."""
        for k in range(start, len(self)):
            part = slice(k * self.window, (k + 1) * self.window)
            x, target = self._x[part], self._target[part]
            yield _check.contiguous(x, np.int64), _check.contiguous(target, np.int64)
