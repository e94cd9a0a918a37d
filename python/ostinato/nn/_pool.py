"""Define pooling over the steps of a sequence."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _device, _native
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._ragged import Ragged, rows_that_count
from ._layer import Layer, Pullback


class _Sums:
    """Sums and maxima over the rows of each sequence, given back to every row of it."""

    def __init__(self, x: Ragged) -> None:
        self.lengths = x.lengths
        self._filled = x.lengths > 0
        self._starts = x.offsets[:-1][self._filled]

    def by_sequence(self, rows: Array) -> Array:
        """Return the sums ``[B,...]``, zero for a sequence without rows."""
        out = np.zeros((len(self.lengths), *rows.shape[1:]), rows.dtype)
        if self._starts.size:
            sums = np.add.reduceat(rows, self._starts, axis=0, dtype=np.float64)
            out[self._filled] = sums
        return out

    def of(self, values: Array) -> Array:
        """Return the sum of its sequence for every row."""
        return np.repeat(self.by_sequence(values), self.lengths)

    def largest(self, values: Array) -> Array:
        """Return the largest of its sequence for every row."""
        if not self._starts.size:
            return values
        return np.repeat(np.maximum.reduceat(values, self._starts), self.lengths[self._filled])


class _Attended(NamedTuple):
    """What attention over the steps saves for its way back."""

    rows: Array
    hidden: Array
    weights: Array
    packed: Any
    sums: _Sums


class Pool(Layer):
    """Reduce each sequence to one row: the mean, maximum, last or an attended mean of its steps.

    Padding and masked steps do not count, whatever they hold. A sequence without a real step gives
    zeros.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.arange(6, dtype=np.float32).reshape(1, 3, 2)  # [B,T,D]
    >>> ost.nn.Pool("mean", batch_first=True)(x, lengths=[2]).tolist()
    [[1.0, 2.0]]
    >>> classifier = ost.nn.Sequential(
    ...     ost.nn.LSTM(2, 8, batch_first=True),
    ...     ost.nn.Pool("max", batch_first=True),
    ...     ost.nn.Linear(8, 3),
    ... )
    >>> classifier(x)[0].shape
    (1, 3)

    Args:
        kind: "mean", "max", "last"; or "attention", the mean weighted by the softmax of
            ``context tanh(weight x + bias)`` over the real steps (Yang et al. 2016).
        size: D, for "attention", which has the parameters ``weight [D,D]``, ``bias [D]`` and
            ``context [D]``; None otherwise.
        batch_first: whether x is ``[B,T,D]`` in place of ``[T,B,D]``.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, U(-1/sqrt(D), 1/sqrt(D)).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind, or a size that it does not have or lacks, or that is below 1.
    """

    takes_lengths = True

    _functional = ("kind",)

    def __init__(
        self,
        kind: str,
        size: int | None = None,
        *,
        batch_first: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.kind = _check.choice("kind", kind, ("mean", "max", "last", "attention"))
        self.batch_first = _check.flag("batch_first", batch_first)
        if kind != "attention":
            if size is not None:
                raise ValueError(f"size: expected None for {kind!r}, got {size!r}")
            return
        if size is None:
            raise ValueError(f"size: expected a number for {kind!r}, got None")
        n, g = _check.positive("size", size), _check.generator(rng)
        shapes = {"weight": (n, n), "bias": (n,), "context": (n,)}
        bound = 1 / math.sqrt(n)

        def draw(shape: tuple[int, ...]) -> Array:
            return g.uniform(-bound, bound, shape)

        self._declare({k: _check.drawn(k, s, self._dtype, draw) for k, s in shapes.items()})

    @property
    def reduces_time(self) -> bool:
        """True: the output is one row a sequence."""
        return True

    def _check_device(self, device: _device.Device | None) -> None:
        if device is not None:
            raise ValueError(f"device: expected 'cpu' for a model with a Pool, got {device.name!r}")

    def _rows(self, x: Any, lengths: Lengths, mask: Any) -> tuple[Ragged, Array]:
        """Return the sequences one after the other, and which of their rows count."""
        sequences, counts = rows_that_count(x, lengths, mask, self.batch_first)
        if sequences.rows.ndim != 2:
            raise ValueError(f"x: expected rows of shape (N, D), got {sequences.rows.shape}")
        _check.of_dtype("x", sequences.rows, self._dtype)
        width = sequences.rows.shape[1]
        if self.kind == "attention" and width != len(self.parameters()["bias"]):
            raise ValueError(
                f"x: expected a last axis of {len(self.parameters()['bias'])}, got {width}"
            )
        return sequences, counts

    def _pack(self, backward: bool) -> Any:
        p = self.parameters()
        make = _native.backend_for(self._block.values).PackedLinear
        return make(p["weight"], p["bias"], backward)

    def _attended(self, x: Ragged, on: Array, backward: bool) -> tuple[Array, _Attended]:
        """Return y [B,D], and what the way back needs."""
        rows = np.where(on[:, None], x.rows, self._dtype.type(0))
        packed = self._packed(backward)
        hidden = np.tanh(packed.forward(_check.contiguous(rows)))
        scores = np.where(on, hidden @ self.parameters()["context"], -np.inf)
        sums = _Sums(x)
        top = sums.largest(scores)
        with np.errstate(over="ignore"):  # what is farther below than any float has no weight
            weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
        total = sums.of(weights)
        weights = (weights / np.where(total == 0, 1, total)).astype(self._dtype)
        y = sums.by_sequence(weights[:, None] * rows)
        return y, _Attended(rows, hidden, weights, packed, sums)

    def _attended_back(
        self, saved: _Attended, grads: dict[str, Array | None], d: Array, need_dx: bool
    ) -> Array | None:
        """Add the gradients of the parameters; return that of the rows."""
        rows, hidden, weights, packed, sums = saved
        spread = np.repeat(d, sums.lengths, 0)
        slopes = (spread * rows).sum(1)
        slopes = (weights * (slopes - sums.of(weights * slopes))).astype(self._dtype)
        into = grads["context"]
        if into is not None:
            into += slopes @ hidden
        back = slopes[:, None] * self.parameters()["context"] * (1 - hidden * hidden)
        dx: Array | None = packed.run_backward(
            rows, _check.contiguous(back), grads["weight"], grads["bias"], need_dx
        )
        return None if dx is None else dx + weights[:, None] * spread

    def _pooled(self, x: Ragged, on: Array) -> tuple[Array, Array]:
        """Return y [B,D], and 1 / count [B] or the row that each element came from [B,D]."""
        batch, width = len(x), x.rows.shape[1]
        filled = x.lengths > 0
        starts = x.offsets[:-1][filled]
        if self.kind == "mean":
            y, share = np.zeros((batch, width), self._dtype), np.zeros(batch)
            if starts.size:
                sums = np.add.reduceat(
                    np.where(on[:, None], x.rows, 0), starts, axis=0, dtype=np.float64
                )
                count = np.add.reduceat(on.astype(np.int64), starts)
                share[filled] = 1 / np.maximum(count, 1)
                y[filled] = sums * share[filled, None]
            return y, share
        source = np.full((batch, width), -1, np.int64)
        if starts.size:
            numbers = np.arange(len(x.rows))[:, None]
            if self.kind == "last":
                source[filled] = np.maximum.reduceat(
                    np.where(on[:, None], numbers, -1), starts, axis=0
                )
            else:
                seen = np.where(on[:, None], x.rows, -np.inf)
                top = np.zeros((batch, width), self._dtype)
                top[filled] = np.maximum.reduceat(seen, starts, axis=0)
                best = (seen == np.repeat(top, x.lengths, 0)) | np.isnan(seen)
                first = np.where(best & on[:, None], numbers, len(x.rows))
                source[filled] = np.minimum.reduceat(first, starts, axis=0)
                source[source == len(x.rows)] = -1
        y = np.zeros((batch, width), self._dtype)
        there = source >= 0
        y[there] = x.rows[source[there], np.nonzero(there)[1]]
        return y, source

    def __call__(self, x: Any, *, lengths: Lengths = None, mask: Any = None) -> Array:
        """Return one row a sequence.

        Args:
            x: ``[T,B,D]`` (``[B,T,D]`` if batch_first), a `Ragged` or a list of ``[n,D]``.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.
            mask: bool ``[T,B]`` (``[B,T]`` if batch_first), True for the steps that count.

        Returns:
            ``y [B,D]``.

        Raises:
            TypeError: x has another dtype than the layer, or another argument is of the wrong
                type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        sequences, on = self._rows(x, lengths, mask)
        if self.kind == "attention":
            return self._attended(sequences, on, False)[0]
        return self._pooled(sequences, on)[0]

    def vjp(
        self, x: Any, *, lengths: Lengths = None, mask: Any = None, rng: Seed = None
    ) -> tuple[Array, Pullback]:
        """Return one row a sequence, and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: ``[T,B,D]`` (``[B,T,D]`` if batch_first), a `Ragged` or a list of ``[n,D]``.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.
            mask: bool ``[T,B]`` (``[B,T]`` if batch_first), True for the steps that count.
            rng: not used.

        Returns:
            ``y, pullback``, with ``y [B,D]`` read-only and dx of the kind of x.

        Raises:
            TypeError: x has another dtype than the layer, or another argument is of the wrong
                type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        sequences, on = self._rows(x, lengths, mask)
        saved: _Attended | None = None
        if self.kind == "attention":
            y, saved = self._attended(sequences, on, True)
        else:
            y, origin = self._pooled(sequences, on)

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Any:
            d = _check.array("dy", dy)
            if d.shape != y.shape:
                raise ValueError(
                    f"dy: expected shape {y.shape} of {y.dtype}, got {d.shape} of {d.dtype}"
                )
            _check.of_dtype("dy", d, y.dtype)
            if saved is not None:
                found = self._attended_back(saved, grads, d, need_dx)
                if found is None:
                    return None
                rows = found
                rows[~on] = 0
            elif self.kind == "mean":
                rows = np.repeat((d * origin[:, None]).astype(d.dtype), sequences.lengths, 0)
                rows[~on] = 0
            else:
                rows = np.zeros_like(sequences.rows)
                there = origin >= 0
                rows[origin[there], np.nonzero(there)[1]] = d[there]
            if isinstance(x, np.ndarray):
                if self.batch_first:
                    return rows.reshape(x.shape)
                steps, batch, width = x.shape
                return rows.reshape(batch, steps, width).swapaxes(0, 1)
            return sequences.like(rows) if isinstance(x, Ragged) else list(sequences.like(rows))

        return _check.read_only(y), self._pullback(backward)

    def __repr__(self) -> str:
        size = f", {len(self.parameters()['bias'])}" if self.kind == "attention" else ""
        return f"Pool({self.kind!r}{size}{', batch_first=True' if self.batch_first else ''})"


readable(globals())
