"""Define the CTC loss: labels in order, without times, for a longer sequence of logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _deferred, _device, _native
from .._annotations import readable
from .._check import Array, Lengths
from .._ragged import Ragged, unwrapped
from ._base import Loss, _floats

PADDING = -1  # what stands behind the labels of a row


def padded_labels(target: Any) -> npt.NDArray[np.int64]:
    """Return labels as ``[B,S]``, with negative numbers behind them.

    They are given so, or as a `Ragged` or a list of ``[n]`` whole numbers.
    """
    if isinstance(target, (list, tuple)):
        # An empty list of numbers has no dtype of its own.
        taken = (_device.host(_device.taken(row)) for row in target)
        rows = [np.asarray(_check.unmasked("target", row)) for row in taken]
        target = Ragged.join(
            [row.astype(np.int64) if not row.size else row for row in rows] or [np.zeros(0, int)],
            "target",
        )
        if not rows:
            return np.zeros((0, 0), np.int64)
    if isinstance(target, Ragged):
        flat, lengths = np.asarray(_device.host(target.rows)), target.lengths
        if flat.ndim != 1:
            raise ValueError(f"target: expected sequences of shape (n,), got rows {flat.shape}")
        _whole(flat)
        out = np.full((len(lengths), int(lengths.max(initial=0))), PADDING, np.int64)
        out[np.arange(out.shape[1]) < lengths[:, None]] = flat
        return out
    a = np.asarray(_device.host(_check.array("target", target, 2)))
    _whole(a)
    return a.astype(np.int64)


def _whole(a: Array) -> None:
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"target: expected an integer dtype, got {a.dtype}")


class _Paths(NamedTuple):
    """What the kernel is given: rows of the logits and labels, of one sequence after the other."""

    rows: npt.NDArray[np.int64]
    row_offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    label_offsets: npt.NDArray[np.int64]


def _offsets(counts: Array) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return out


class CTC(Loss):
    """Connectionist temporal classification: labels in order, of which nobody knows the times.

    The loss of a sequence is the negative logarithm, in nats, of the probability that its logits
    give to the labels: of all ways to write them over the steps, each label one or more steps long
    and with any number of blanks around it. Between two equal labels there is at least one blank.
    The softmax is a part of it. Exponents of probabilities are kept apart, so long sequences do not
    underflow, and every sequence is summed in an order of its own: the bits do not depend on the
    number of threads or on the batch.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y = np.zeros((3, 1, 4), np.float32)  # [T,B,V]: each of 4 classes has probability 1/4
    >>> value, dy = ost.losses.CTC()(y, np.array([[1, 2]]))
    >>> round(float(np.exp(-value)), 6) == 5 / 4**3  # 112 122 012 102 120
    True

    Labels may have different numbers, padded with negative numbers or as a list:

    >>> y = np.zeros((5, 2, 4), np.float32)
    >>> value, dy = ost.losses.CTC()(y, [np.array([1, 1, 2]), np.array([3])], lengths=[5, 2])

    Args:
        blank: the class of the blank.
        normalize: whether the loss of each sequence is divided by the number of its labels (at
            least 1), as PyTorch's mean does. The value is a mean over sequences in any case.
        impossible: what to do with labels that need more steps than the sequence has (one for each
            label, and one between equal neighbours), whose probability is zero. "error" raises a
            ValueError. "zero": the loss and its gradient count as zero (PyTorch's
            ``zero_infinity``). "skip": the sequence does not count. These two also hold where a
            label that is needed has a logit of minus infinity; with "error" the loss is infinite
            there and its gradient NaN.
        batch_first: see `Loss`.

    Attributes:
        takes_sequences: True: a Trainer gives it the labels of each sequence, not of each step.

    Raises:
        ValueError: a negative blank, or an unknown rule.

    Source: Graves, Fernandez, Gomez, Schmidhuber (2006), "Connectionist temporal classification:
    labelling unsegmented sequence data with recurrent neural networks".
    """

    takes_sequences = True

    def __init__(
        self,
        *,
        blank: int = 0,
        normalize: bool = False,
        impossible: str = "error",
        batch_first: bool | None = None,
    ) -> None:
        super().__init__(batch_first=batch_first)
        self.blank = _check.positive("blank", blank, 0)
        self.normalize = _check.flag("normalize", normalize)
        self.impossible: str = _check.choice("impossible", impossible, ("error", "zero", "skip"))

    def parts(
        self,
        y: Any,
        target: Any,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[Any, Any, Any]:
        """Compute the sum of the losses, their count, and the gradient of their mean.

        Args:
            y: logits ``[T,B,V]``, or ``[B,T,V]`` with ``batch_first``; or a `Ragged` or a list of
                ``[n,V]``.
            target: labels ``[B,S]`` of whole numbers, with negative numbers behind them where there
                are fewer; or a `Ragged` or a list of ``[n]``. None is the blank.
            lengths: ``[B]``, the steps of each sequence; or a bool mask of the first two axes of y,
                whose other steps are left out. None: all steps.
            gradient: whether the gradient is wanted.
            weights: ``[B]``, at least 0. The losses are multiplied by them, and the count is the
                sum of the weights. None: all weights are 1.

        Returns:
            ``total, count, dy``; of arrays of a device the total, and with ``impossible="skip"``
            the count, are arrays without axes, which have not been waited for; dy is of the kind
            of y, None without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape, labels out of range, or (unless the rule
                says otherwise) labels that need more steps than there are.
        """
        y, listed = unwrapped(y, "y")
        rows = _floats("y", y.rows if isinstance(y, Ragged) else y)
        on, at = self._steps(y, rows, lengths)
        labels = padded_labels(target)
        if len(labels) != len(on):
            raise ValueError(
                f"target: expected labels of {len(on)} sequences, as many as y has, got "
                f"{len(labels)}"
            )
        classes = rows.shape[-1]
        counts = self._counts(labels, classes)
        factors = self._factors(weights, len(on))
        possible = self._possible(labels, counts, on.sum(1))
        if self.impossible == "skip":
            factors = np.where(possible, factors, 0)
        used = possible & (factors > 0)
        paths = _paths(on & used[:, None], at, labels, np.where(used, counts, 0))
        each = factors / np.maximum(counts, 1) if self.normalize else factors
        count: Any = float(factors.sum())
        losses, d = _kernel(rows)(
            _check.contiguous(rows).reshape(-1, classes),
            *paths,
            each / (count or 1),
            self.blank,
            self.impossible != "error",
            gradient,
        )
        each, factors, used = (_device.like(a, losses) for a in (each, factors, used))
        losses = np.where(used, losses, 0)
        infinite = np.isposinf(losses)
        if self.impossible != "error" and _may_be(infinite):
            losses = np.where(infinite, 0, losses)
            if self.impossible == "skip":
                before, count = count, _left(factors, infinite, count)
                by = _deferred.scalar(before / _deferred.divisor(count), rows.dtype)
                d = None if d is None else d * by
        total = _deferred.number((each * losses).sum())
        return total, count, None if d is None else _like(d, y, listed)

    def _steps(self, y: Any, rows: Array, lengths: Lengths) -> tuple[Array, Array]:
        """Return which steps of each sequence count, ``[B,T]``, and their rows in flat logits."""
        if isinstance(y, Ragged):
            if rows.ndim != 2:
                raise ValueError(f"y: expected sequences of shape (n, V), got rows {rows.shape}")
            if lengths is not None:
                raise ValueError(
                    f"lengths: expected None with ragged sequences, got {type(lengths).__name__}"
                )
            steps = np.arange(int(y.lengths.max(initial=0)))
            return steps < y.lengths[:, None], steps + y.offsets[:-1, None]
        if rows.ndim != 3:
            axes = "(B, T, V)" if self.batch_first else "(T, B, V)"
            raise ValueError(f"y: expected shape {axes}, got {rows.shape}")
        mask = self._mask(rows, lengths)
        on = np.ones(rows.shape[:2], bool) if mask is None else mask
        at = np.arange(on.size).reshape(on.shape)
        return (on, at) if self.batch_first else (on.T, at.T)

    def _counts(self, labels: Array, classes: int) -> Array:
        """Return how many labels each sequence has, checked."""
        if self.blank >= classes:
            raise ValueError(
                f"blank: expected a class below V = {classes}, the last axis of y, got {self.blank}"
            )
        there = labels >= 0
        counts = there.sum(1)
        bad = np.argwhere(there != (np.arange(labels.shape[1]) < counts[:, None]))
        if bad.size:
            raise ValueError(
                "target: expected negative numbers behind the labels alone, got one before a "
                f"label at b = {bad[0][0]}"
            )
        bad = np.argwhere((labels >= classes) | (labels == self.blank))
        if bad.size:
            raise ValueError(
                f"target: expected labels from 0 to {classes - 1} other than the blank "
                f"{self.blank}, got {labels[tuple(bad[0])]} at {bad[0].tolist()}"
            )
        out: Array = counts
        return out

    def _factors(self, weights: object, batch: int) -> Array:
        if weights is None:
            return np.ones(batch)
        a = np.asarray(_device.host(_check.array("weights", weights)))
        if a.dtype.kind not in "fiub":
            raise TypeError(f"weights: expected real numbers, got dtype {a.dtype}")
        if a.shape != (batch,):
            raise ValueError(f"weights: expected shape (B,) = ({batch},), got {a.shape}")
        if not (np.isfinite(a).all() and (a >= 0).all()):
            raise ValueError("weights: expected finite numbers of at least 0, got others")
        return a.astype(np.float64)

    def _possible(self, labels: Array, counts: Array, steps: Array) -> Array:
        """Return which sequences have as many steps as their labels need."""
        equal = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)
        needed = counts + equal.sum(1)
        possible: Array = needed <= steps
        if self.impossible == "error" and not possible.all():
            b = int(np.flatnonzero(~possible)[0])
            raise ValueError(
                f"target: expected labels that fit into the {int(steps[b])} steps of b = {b}, got "
                f"{int(counts[b])} that need {int(needed[b])}, with one between equal neighbours; "
                "leave such sequences out, or use impossible='skip'"
            )
        return possible


def _kernel(rows: Array) -> Any:
    """Return the function for arrays of the CPU, or of a device."""
    if _device.of(rows) is None:
        return _native.backend_for(rows).ctc
    from ._ctc_arrays import ctc  # here: most programs never need it

    return ctc


def _may_be(flags: Array) -> bool:
    """Return whether any is True, or may be: a device is not asked."""
    return _device.of(flags) is not None or bool(flags.any())


def _left(factors: Array, skipped: Array, count: float) -> Any:
    """Return the sum of the factors that are left; ``count`` is that of all."""
    if _device.of(factors) is None:
        return float(factors[~skipped].sum())
    # The very count where nothing is skipped: the gradient keeps its bits.
    return np.where(skipped.any(), np.where(skipped, 0.0, factors).sum(), count)


def _paths(on: Array, at: Array, labels: Array, counts: Array) -> _Paths:
    flat = labels[np.arange(labels.shape[1]) < counts[:, None]]
    return _Paths(
        np.ascontiguousarray(at[on], np.int64),
        _offsets(on.sum(1)),
        np.ascontiguousarray(flat, np.int64),
        _offsets(counts),
    )


def _like(d: Array, y: Any, listed: bool) -> Any:
    """Return flat gradients in the form that y came in."""
    if isinstance(y, Ragged):
        return list(y.like(d)) if listed else y.like(d)
    return d.reshape(y.shape)


readable(globals())
