"""Define metrics: figures beside the loss, for `Trainer(metrics=...)`.

A metric gathers what it needs batch by batch and computes its figure at the end, so that a mean
over batches is never taken for the figure of all. Each evaluation works on a copy of its own.

>>> import numpy as np
>>> from ostinato.train.metrics import Accuracy
>>> accuracy = Accuracy()
>>> y, target = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), np.array([0, 1, 1])
>>> accuracy.update(y, target)
>>> round(accuracy.compute(), 3)
0.667
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _deferred, _device
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged
from ..decoding._ctc import ctc_greedy
from ..losses import CrossEntropy
from ..losses._ctc import padded_labels
from ..metrics import average_precision, edit_distance

__all__ = [
    "F1",
    "MAE",
    "Accuracy",
    "AveragePrecision",
    "BitsPerCharacter",
    "LabelErrorRate",
    "Metric",
]


class Metric:
    """Base of the metrics; derive from it to write your own.

    >>> import numpy as np
    >>> class Largest(Metric):
    ...     name, mode = "largest", "min"
    ...     def reset(self):
    ...         self.value = 0.0
    ...     def update(self, y, target, on=None):
    ...         self.value = max(self.value, float(np.abs(y - target).max()))
    ...     def compute(self):
    ...         return self.value
    >>> largest = Largest()
    >>> largest.reset()
    >>> largest.update(np.array([1.0]), np.array([3.0]))
    >>> largest.compute()
    2.0

    Attributes:
        name: what it is called where a list of metrics is given.
        mode: "min" or "max": which way is better.
        takes_sequences: whether `update` is given the outputs of whole sequences, as a `Ragged` of
            the steps that count, and the targets as they are.
    """

    name = ""
    mode: str | None = None
    takes_sequences = False

    def reset(self) -> None:
        """Forget all batches.

        Raises:
            TypeError: the metric does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define reset")

    def update(self, y: Any, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: outputs.
            target: what they should be.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: the metric does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define update")

    def compute(self) -> float:
        """Compute the figure of all batches.

        Returns:
            The figure; NaN without any batch.

        Raises:
            TypeError: the metric does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define compute")

    def merge(self, other: Any) -> None:
        """Take what another metric of this kind has gathered, as if it were further batches.

        A metric that defines it is measured by all processes of a parallel run together, each with
        its part of the validation data; one that does not, by each of them with all data.

        Args:
            other: the other metric.

        Raises:
            TypeError: the metric does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define merge")


def _array(name: str, value: Any) -> Array:
    """Return an array of real numbers where it is; those of other libraries are converted."""
    if type(value) is np.ndarray and value.dtype.kind in "fiub":  # at once what is usual
        return value
    value = _device.taken(value)
    if not _check.is_array(value) and hasattr(value, "__array__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # told by the error below
            value = np.asarray(value)
    a = _check.array(name, value)
    if not np.can_cast(a.dtype, np.float64, "same_kind"):  # bfloat16 can be, and text cannot
        raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
    return a


def _on_host(value: Any) -> Any:
    return _device.host(_device.taken(value))


def _flags(value: Any, axes: tuple[int, ...], least: int = 1) -> Array:
    """Return a mask of at least so many of the first axes."""
    if isinstance(value, (list, tuple)):
        with contextlib.suppress(TypeError, ValueError):  # lists of different lengths
            value = np.asarray(value)
    on = _array("on", value)
    if on.dtype != np.bool_:
        raise TypeError(f"on: expected dtype bool, got {on.dtype}; use on.astype(bool)")
    if not least <= on.ndim <= len(axes) or on.shape != axes[: on.ndim]:
        raise ValueError(f"on: expected shape {axes[:2]}, the first axes of y, got {on.shape}")
    return on


def _counted(y: Array, target: Array, on: Any) -> tuple[Array, Array]:
    """Return the outputs and targets that count, on the host."""
    y, target = _device.host(y), _device.host(target)
    if on is None:
        return y, target
    on = _flags(_on_host(on), target.shape)
    return y[on], target[on]


class _Mean(Metric):
    """Base of metrics that are a sum over a count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0.0
        self._unread: list[tuple[Any, Any, Any, str]] = []

    def _add(self, total: Any, count: Any, bad: Any = 0, wanted: str = "") -> None:
        """Add to sum and count; numbers that are on a device are read together, in `compute`.

        So is how many targets are bad there, and not what was wanted: it is an error then.
        """
        numbers = [_deferred.number(one) for one in (total, count, bad)]
        self._unread.append((numbers[0], numbers[1], numbers[2], wanted))
        if all(_device.of(one) is None for one in numbers):
            self._read()

    def _read(self) -> None:
        flat = _deferred.numbers([one for row in self._unread for one in row[:3]])
        for bad, (*_, wanted) in zip(flat[2::3], self._unread):
            if bad:
                raise ValueError(f"target: expected {wanted}, got others")
        self._unread = []
        for total, count in zip(flat[::3], flat[1::3]):
            self._sum, self._count = self._sum + total, self._count + count

    def compute(self) -> float:
        """Compute the figure of all batches.

        Returns:
            The figure; NaN without any batch.

        Raises:
            ValueError: targets on a device that are out of range, which is told here.
        """
        self._read()
        return self._sum / self._count if self._count else math.nan

    def merge(self, other: Any) -> None:
        """Take what another metric of this kind has gathered.

        Args:
            other: the other metric.
        """
        other._read()
        self._add(other._sum, other._count)


class Accuracy(_Mean):
    """Fraction of targets that are met.

    Outputs are logits ``[...,V]`` for class numbers ``[...]``, or logits of one class for targets
    of 0 and 1 in the same shape.

    >>> import numpy as np
    >>> accuracy = Accuracy()
    >>> accuracy.update(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
    >>> accuracy.compute()
    0.5

    Args:
        ignore_index: targets of this number do not count.

    Raises:
        TypeError: an ignore_index that is no whole number.
    """

    name, mode = "accuracy", "max"

    def __init__(self, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = _check.whole("ignore_index", ignore_index)

    def update(self, y: Array, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: logits.
            target: class numbers, or 0 and 1.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument that is no array, or of the wrong dtype.
            ValueError: an argument of the wrong shape, or a target out of range; of arrays on a
                device `compute` raises it, since reading them here would wait.
        """
        met = _classes(y, target, on, self.ignore_index)
        right = (met.guess == met.target) & met.known
        self._add(right.sum(), met.known.sum(), met.bad, met.wanted)


class _Met(NamedTuple):
    """Hold classes that a batch has.

    Attributes:
        guess: what was said.
        target: what is right.
        known: where it counts.
        bad: how many targets that count are out of range, if they are on a device; else 0.
        wanted: what they should be.
    """

    guess: Array
    target: Array
    known: Array
    bad: Any
    wanted: str


def _classes(y: Any, target: Any, on: Any, ignore_index: int) -> _Met:
    """Return the classes of logits and of targets, where y is; nothing waits for a device."""
    y, target = _array("y", y), _array("target", target)
    if _device.of(target) is not None:
        _device.same("target", target, y, "y")
    target = _device.like(target, y)
    if y.shape[:-1] != target.shape != y.shape:
        raise ValueError(
            f"target: expected shape {y.shape[:-1]} or {y.shape}, that of y, got {target.shape}"
        )
    known = target != ignore_index
    if on is not None:
        on = _flags(on, target.shape)
        if _device.of(on) is not None:
            _device.same("on", on, y, "y")
        known = known & _device.like(on, y).reshape(on.shape + (1,) * (known.ndim - on.ndim))
    if y.shape == (*target.shape, 1):
        y = y[..., 0]
    if y.shape == target.shape:
        wanted = f"numbers from 0 to 1 beside y of the same shape, or ignore_index = {ignore_index}"
        good = (target >= 0) & (target <= 1)
        guess, right = y > 0, target > 0.5
    else:
        size = y.shape[-1]
        if not size:
            raise ValueError(f"y: expected logits of at least one class, got shape {y.shape}")
        if target.dtype.kind not in "iub" and target.size:
            raise TypeError(
                f"target: expected an integer dtype, got {target.dtype}; use "
                "target.astype(np.int64)"
            )
        right = target.astype(np.int64, copy=False)  # V may be beyond the dtype
        wanted = f"class numbers from 0 to {size - 1}, or ignore_index = {ignore_index}"
        good = (right >= 0) & (right < size)
        guess = y.argmax(-1)
    bad = known & ~good
    if _device.of(bad) is not None:
        return _Met(guess, right, known, bad.sum(), wanted)
    if bad.any():
        raise ValueError(f"target: expected {wanted}, got {target[bad][0]}")
    return _Met(guess, right, known, 0, wanted)


class F1(Metric):
    """F1 score ``2 tp / (2 tp + fp + fn)``, from counts over all batches.

    >>> import numpy as np
    >>> f1 = F1("micro")
    >>> f1.update(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
    >>> f1.compute()
    0.5

    Args:
        average: "macro": the mean over the classes that occur in targets or outputs; "micro": one
            score from the counts of all classes; "binary": that of class 1.
        ignore_index: targets of this number do not count.

    Raises:
        TypeError: an ignore_index that is no whole number.
        ValueError: an unknown average.
    """

    name, mode = "f1", "max"

    def __init__(self, average: str = "macro", *, ignore_index: int = -100) -> None:
        self.average = _check.choice("average", average, ("macro", "micro", "binary"))
        self.ignore_index = _check.whole("ignore_index", ignore_index)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._counts = np.zeros((3, 2))  # tp, fp, fn by class

    def update(self, y: Array, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: logits.
            target: class numbers, or 0 and 1.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument that is no array, or of the wrong dtype.
            ValueError: an argument of the wrong shape, or a target out of range.
        """
        met = _classes(_on_host(y), _on_host(target), _on_host(on), self.ignore_index)
        guess, target = (a[met.known].astype(np.int64) for a in (met.guess, met.target))
        size = int(max(guess.max(initial=1), target.max(initial=1), self._counts.shape[1] - 1)) + 1
        self._counts = np.pad(self._counts, ((0, 0), (0, size - self._counts.shape[1])))
        right = guess == target
        for k, classes in enumerate((guess[right], guess[~right], target[~right])):
            self._counts[k] += np.bincount(classes, minlength=size)

    def merge(self, other: Any) -> None:
        """Take what another metric of this kind has gathered.

        Args:
            other: the other metric.
        """
        size = max(self._counts.shape[1], other._counts.shape[1])
        own, theirs = (
            np.pad(m._counts, ((0, 0), (0, size - m._counts.shape[1]))) for m in (self, other)
        )
        self._counts = own + theirs

    def compute(self) -> float:
        """Compute the score of all batches.

        Returns:
            The score; NaN without any target.
        """
        tp, fp, fn = self._counts
        total = 2 * tp + fp + fn
        if not total.any():
            return math.nan
        if self.average == "micro":
            return float(2 * tp.sum() / total.sum())
        if self.average == "binary":
            return float(2 * tp[1] / total[1]) if total[1] else 0.0
        occurs = total > 0
        return float((2 * tp[occurs] / total[occurs]).mean())


class MAE(_Mean):
    """Mean absolute error over all elements that count.

    >>> import numpy as np
    >>> mae = MAE()
    >>> mae.update(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> mae.compute()
    1.0
    """

    name, mode = "mae", "min"

    def update(self, y: Array, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: outputs.
            target: what they should be.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument that is no array, or of the wrong dtype.
            ValueError: an argument of the wrong shape.
        """
        y, target = _array("y", y), _array("target", target)
        if y.shape != target.shape:
            raise ValueError(f"target: expected the shape of y {y.shape}, got {target.shape}")
        y, target = _counted(y, target, on)
        self._add(np.abs(y.astype(np.float64) - target).sum(), y.size)


class BitsPerCharacter(_Mean):
    """Cross entropy of logits ``[...,V]`` and class numbers ``[...]`` in bits.

    >>> import numpy as np
    >>> bits = BitsPerCharacter()
    >>> bits.update(np.zeros((3, 2)), np.array([0, 1, 1]))
    >>> round(bits.compute(), 3)
    1.0

    Args:
        ignore_index: targets of this number do not count.

    Raises:
        TypeError: an ignore_index that is no whole number.
    """

    name, mode = "bits_per_character", "min"

    def __init__(self, *, ignore_index: int = -100) -> None:
        super().__init__()
        self._loss = CrossEntropy(ignore_index=ignore_index)

    def update(self, y: Array, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: logits.
            target: class numbers.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument that is no array, or of the wrong dtype.
            ValueError: an argument of the wrong shape, or a class number out of range.
        """
        y, target = _array("y", y), _array("target", target)
        if y.ndim == 0 or target.shape != y.shape[:-1]:
            raise ValueError(
                f"target: expected shape {y.shape[:-1]}, that of y without its last axis, got "
                f"{target.shape}"
            )
        total, count, _ = self._loss.parts(*_counted(y, target, on), gradient=False)
        self._add(total / math.log(2), count)


class AveragePrecision(Metric):
    """Area under the curve of precision over recall; see `ostinato.metrics.average_precision`.

    Outputs are scores, or logits, of class 1, for targets of 0 and 1 in the same shape. All of them
    are kept until `reset`.

    >>> import numpy as np
    >>> precision = AveragePrecision()
    >>> precision.update(np.array([0.1, 0.4, 0.5, 0.8]), np.array([0, 1, 0, 1]))
    >>> round(precision.compute(), 4)
    0.8333

    Args:
        ignore_index: targets of this number do not count.

    Raises:
        TypeError: an ignore_index that is no whole number.
    """

    name, mode = "average_precision", "max"

    def __init__(self, *, ignore_index: int = -100) -> None:
        self.ignore_index = _check.whole("ignore_index", ignore_index)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._scores: list[Array] = []
        self._targets: list[Array] = []

    def update(self, y: Array, target: Array, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: scores, or logits.
            target: 0 and 1.
            on: bool mask of the first two axes of y, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument that is no array, or of the wrong dtype.
            ValueError: an argument of the wrong shape, or targets other than 0 and 1.
        """
        y, target = _array("y", y), _array("target", target)
        if y.shape not in (target.shape, (*target.shape, 1)):
            raise ValueError(f"target: expected the shape of y {y.shape}, got {target.shape}")
        y, target = _counted(y, target, on)
        y = y[..., 0] if y.ndim > target.ndim else y
        known = target != self.ignore_index
        scores, target = y[known], target[known]
        bad = (target != 0) & (target != 1)
        if bad.any():
            raise ValueError(
                f"target: expected 0 and 1, or ignore_index = {self.ignore_index}, got "
                f"{target[bad][0]}"
            )
        self._scores.append(scores)
        self._targets.append(target)

    def merge(self, other: Any) -> None:
        """Take what another metric of this kind has gathered.

        Args:
            other: the other metric.
        """
        self._scores += other._scores
        self._targets += other._targets

    def compute(self) -> float:
        """Compute the area of all batches.

        Returns:
            The area; NaN without any target of 1.

        Raises:
            ValueError: scores of NaN.
        """
        target = np.concatenate([np.zeros(0), *self._targets])
        if not (target == 1).any():
            return math.nan
        return average_precision(target, np.concatenate([np.zeros(0), *self._scores]))


class LabelErrorRate(Metric):
    """Edits between the best path of CTC and the labels, over the number of labels.

    With labels of characters it is the character error rate, with phones the phone error rate.

    >>> import numpy as np
    >>> errors = LabelErrorRate()
    >>> errors.update([np.eye(3)[[1, 0, 2, 2]]], np.array([[1, 2, 1]]))
    >>> round(errors.compute(), 3)
    0.333

    Args:
        blank: the class of the blank.

    Raises:
        TypeError: a blank that is no whole number.
        ValueError: a blank below 0.

    Attributes:
        takes_sequences: True: a Trainer gives `update` a `Ragged` and the labels.
    """

    name, mode = "label_error_rate", "min"
    takes_sequences = True

    def __init__(self, *, blank: int = 0) -> None:
        self.blank = _check.positive("blank", blank, 0)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._edits, self._labels = 0, 0

    def update(self, y: Any, target: Any, on: Array | None = None) -> None:
        """Take a batch.

        Args:
            y: logits: a `Ragged` or a list of ``[n,V]``, or ``[B,T,V]``.
            target: labels ``[B,S]``, with negative numbers behind them; or a list of ``[n]``.
            on: bool mask ``[B,T]`` of y ``[B,T,V]``, True where it counts; None: everything counts.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape, another number of sequences than of labels,
                or logits of NaN.
        """
        if on is not None:
            y = _kept(y, on)
        rows = padded_labels(target)
        guesses = ctc_greedy(y, blank=self.blank, batch_first=True)
        if len(rows) != len(guesses):
            raise ValueError(
                f"target: expected labels of {len(guesses)} sequences, as many as y has, got "
                f"{len(rows)}"
            )
        for row, guess in zip(rows, guesses):
            self._edits += edit_distance(row[row >= 0], guess)
            self._labels += int((row >= 0).sum())

    def merge(self, other: Any) -> None:
        """Take what another metric of this kind has gathered.

        Args:
            other: the other metric.
        """
        self._edits += other._edits
        self._labels += other._labels

    def compute(self) -> float:
        """Compute the rate of all batches.

        Returns:
            The rate; NaN without any label.
        """
        return self._edits / self._labels if self._labels else math.nan


def _kept(y: Any, on: Any) -> list[Array]:
    """Return the steps of each sequence that count, on the host."""
    on = _on_host(on)
    if not isinstance(y, (list, tuple, Ragged)):
        y = _on_host(_check.array("y", y, 3))
        return [row[keep] for row, keep in zip(y, _flags(on, y.shape[:2], 2))]
    if not isinstance(on, (list, tuple)) and not (isinstance(on, np.ndarray) and on.ndim):
        raise TypeError(f"on: expected a mask of each sequence of y, got {type(on).__name__}")
    if len(on) != len(y):
        raise ValueError(f"on: expected {len(y)} masks, one for each sequence of y, got {len(on)}")
    rows = [_on_host(_check.array(f"y[{k}]", row)) for k, row in enumerate(y)]
    return [row[_flags(_on_host(keep), row.shape[:1])] for row, keep in zip(rows, on)]


class Function(_Mean):
    """Wrap a function ``(y, target, lengths) -> (sum, count)`` as a metric."""

    def __init__(self, function: Callable[[Array, Array, Any], tuple[float, float]]) -> None:
        super().__init__()
        self.function = function

    # Another process has the function too, and what is not importable cannot be sent.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "function"}

    def add(self, y: Array, target: Array, lengths: Any) -> None:
        found: Any = self.function(y, target, lengths)
        try:
            total, count = found
        except (TypeError, ValueError):
            raise TypeError(
                f"metrics: expected (sum, count) from a function, got {type(found).__name__}"
            ) from None
        self._add(total, count)

    def compute(self) -> float:
        self._read()
        return self._sum / (self._count or 1)


KNOWN: dict[str, type[Metric]] = {
    str(m.name): m for m in (Accuracy, F1, MAE, BitsPerCharacter, AveragePrecision, LabelErrorRate)
}


def named(metrics: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Metric]:
    """Return metrics by name, from a dict, or from a list of metrics or of names that are known."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        if isinstance(metrics, str) or not isinstance(metrics, Sequence):
            raise TypeError(f"metrics: expected a dict or a list, got {type(metrics).__name__}")
        pairs = [(_name_of(m), m) for m in metrics]
    else:
        pairs = [(str(name), m) for name, m in metrics.items()]
    out: dict[str, Metric] = {}
    for name, metric in pairs:
        if name in out:
            raise ValueError(
                f"metrics: expected different names, got {name!r} twice; give a dict of names to "
                "metrics"
            )
        if name in ("loss", ""):
            raise ValueError(
                f"metrics: expected names other than 'loss', which is there already, got {name!r}"
            )
        made = _made(metric)
        if made is None:
            raise TypeError(
                f"metrics[{name!r}]: expected a Metric or a function, got {type(metric).__name__}"
            )
        out[name] = made
    return out


def _name_of(metric: Any) -> str:
    if isinstance(metric, str):
        return str(_check.choice("metrics", metric, tuple(KNOWN)))
    name = getattr(metric, "name", "") or getattr(metric, "__name__", "")
    if not name:
        raise TypeError(
            f"metrics: expected metrics with a name, got a {type(metric).__name__}; give a dict of "
            "names"
        )
    return str(name)


def _made(metric: Any) -> Metric | None:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return KNOWN[_check.choice("metrics", metric, tuple(KNOWN))]()
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    return Function(metric) if callable(metric) else None


readable(globals())
