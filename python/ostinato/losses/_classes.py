"""Define losses of logits and class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check, _deferred, _device, _native
from .._annotations import readable
from .._check import Array, Lengths
from ._base import Loss, _floats, _focal_terms, _weights


class _Classes(Loss):
    """Sum a loss over rows of logits and their class numbers."""

    def __init__(
        self,
        ignore_index: int,
        class_weights: Sequence[float] | Array | None,
        batch_first: bool | None,
    ) -> None:
        super().__init__(batch_first=batch_first)
        self.ignore_index = _check.whole("ignore_index", ignore_index)
        self.class_weights: Array | None = None
        if class_weights is not None:
            wanted = "[V] finite numbers of at least 0, some above 0"
            w = _check.reals("class_weights", class_weights, wanted)
            if w.ndim != 1 or not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
                raise ValueError(f"class_weights: expected {wanted}, got {class_weights!r:.80}")
            self.class_weights = w

    def _rows(
        self, y: Array, classes: Array, rows: Array | None, gradient: bool
    ) -> tuple[Any, Any, Array | None]:
        """Logits ``[N,V]``, class numbers (-1 does not count) and weights ``[N]``."""
        raise NotImplementedError  # the two classes below define it

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[Any, Any, Array | None]:
        """Compute the sum of the losses, their count, and the gradient of their mean.

        Args:
            y: logits ``[...,V]``; the first two axes are time and batch where lengths are given.
            target: class numbers ``[...]`` from 0 to V - 1, or ignore_index.
            lengths: ``[B]``, which leaves out the steps past the end of each row; or a bool mask of
                the first two axes of y, True where it counts. None: everything counts.
            gradient: whether the gradient is wanted.
            weights: of the first one or two axes of target, at least 0. The losses are multiplied
                by them, and the count is the sum of the weights. None: all weights are 1.

        Returns:
            ``total, count, dy``; of arrays of a device the total, and the count where the target
            is there too, are arrays without axes, which have not been waited for; dy is None
            without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape, or a class number out of range.
        """
        y = _floats("y", y)
        target = _check.array("target", target)
        if _device.of(target) is not None:
            _device.same("target", target, y, "y")
        if y.ndim == 0 or target.shape != y.shape[:-1]:
            raise ValueError(
                f"target: expected shape {y.shape[:-1]}, that of y without its last axis, got "
                f"{target.shape}"
                + ("; use target[..., 0]" if target.shape == (*y.shape[:-1], 1) else "")
            )
        classes = self._classes(y, target, lengths)
        rows = None
        if weights is not None:
            rows = np.broadcast_to(_weights(weights, target.shape, y.dtype), target.shape)
            rows = _device.like(rows.reshape(-1), target)
        logits = _check.contiguous(y).reshape(target.size, y.shape[-1])
        with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
            total, count, dy = self._rows(logits, classes, rows, gradient)
        return total, count, None if dy is None else dy.reshape(y.shape)

    def _classes(self, y: Array, target: Array, lengths: Lengths) -> Array:
        """Return the targets, where they are, as flat whole numbers; -1 for what does not count."""
        classes = _check.ids("target", target)
        skip = classes == self.ignore_index
        mask = self._mask(y, lengths)
        if mask is not None:
            mask = mask.reshape(mask.shape + (1,) * (target.ndim - 2))
            skip |= ~np.broadcast_to(_device.like(mask, target), target.shape).reshape(-1)
        size = y.shape[-1]
        known = (classes >= 0) & (classes < size)
        good = known | skip

        def error() -> ValueError:
            first = int(classes[int(_device.host(good).argmin())])
            return ValueError(f"target: expected class numbers from 0 to {size - 1}, got {first}")

        _deferred.refuse_unless_all(good, error)
        out: Array = np.where(known > skip, classes, -1)
        return out

    def _class_weights(self, y: Array, classes: Array) -> Array:
        """Return the weight of each class in the dtype of y, where the class numbers are."""
        size = y.shape[-1]
        if self.class_weights is None:
            each = np.ones(size)
        elif len(self.class_weights) == size:
            each = self.class_weights
        else:
            raise ValueError(
                f"class_weights: expected one for each of {size} classes, the last axis of y, got "
                f"{len(self.class_weights)}"
            )
        placed: Array = _device.like(each.astype(y.dtype), classes)
        return placed


def _numbered(at: Array, y: Array) -> Array:
    """Return 0, 1, ... for the rows, on the device of y."""
    numbers: Array = _device.like(np.arange(len(at)), y)
    return numbers


def _counted(classes: Array, rows: Array | None) -> tuple[Array, Array]:
    """Return which rows count, and the class of each; a row of weight 0 does not."""
    on = classes >= 0
    return on if rows is None else on & (rows != 0), np.where(on, classes, 0)


class CrossEntropy(_Classes):
    """Softmax cross entropy of logits y ``[...,V]`` and class numbers ``target [...]``, in nats.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, target = np.zeros((3, 1, 4)), np.array([[0], [1], [-100]])
    >>> value, dy = ost.losses.CrossEntropy()(y, target)
    >>> round(value, 4), dy[2].ravel().tolist()
    (1.3863, [0.0, 0.0, 0.0, 0.0])

    Args:
        ignore_index: targets of this number do not count.
        label_smoothing: the part of the target in [0, 1) that is spread over all classes (Szegedy
            et al. 2016).
        class_weights: ``[V]``, at least 0: a target of class k counts ``class_weights[k]`` times,
            and the mean is over the sum of these (as PyTorch's ``weight``, also with label
            smoothing, where every class has its own part). None: all are 1.
        batch_first: see `Loss`.

    Raises:
        ValueError: a label_smoothing outside [0, 1), or class_weights that are no weights.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Array | None = None,
        batch_first: bool | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights, batch_first)
        self.label_smoothing = _check.fraction("label_smoothing", label_smoothing)

    def _rows(
        self, y: Array, classes: Array, rows: Array | None, gradient: bool
    ) -> tuple[Any, Any, Array | None]:
        if rows is not None or self.class_weights is not None:
            return self._weighted(y, classes, rows, gradient)
        known = _deferred.whole(np.count_nonzero(classes >= 0))
        kernel: Any = _native.backend_for(y).softmax_cross_entropy
        each = 1.0 / _deferred.divisor(known)
        total, dy = kernel(y, _device.like(classes, y), self.label_smoothing, each, gradient)
        return _deferred.number(total), known, dy

    def _weighted(
        self, y: Array, classes: Array, rows: Array | None, gradient: bool
    ) -> tuple[Any, Any, Array | None]:
        """Logits ``[N,V]`` with weights of classes, of rows, or of both.

        With w_k the weight of class k, v of the row, s the smoothing and t the target, a row's
        loss is ``v ((1 - s) w_t (-log p_t) + s / V sum_k w_k (-log p_k))`` and the mean divides
        by the sum of all ``v w_t``.
        """
        size, each = y.shape[-1], self._class_weights(y, classes)
        on, at = _counted(classes, rows)
        v = on.astype(y.dtype) if rows is None else np.where(on, rows, 0)
        count = _deferred.number((v * each[at]).sum(dtype=np.float64))
        on, at, v, each = (_device.like(a, y) for a in (on, at, v, each))
        log_p, s = _log_softmax(y, on), self.label_smoothing
        goal = np.zeros_like(log_p)  # how much of the loss each class has
        goal[_numbered(at, y), at] = (1 - s) * each[at]
        goal = (goal + s / size * each) * v[:, None]
        # 0 log 0 is 0: a class that has no part in the target has none in the loss.
        total = _deferred.number(-np.where(goal == 0, 0, goal * log_p).sum(dtype=np.float64))
        dy = None
        if gradient:
            by = _deferred.scalar(_deferred.divisor(count), y.dtype)
            dy = (np.exp(log_p) * goal.sum(-1, keepdims=True) - goal) / by
        return total, count, dy


class Focal(_Classes):
    """Focal loss of logits y ``[...,V]`` and class numbers: ``-(1 - p)^gamma log p``, in nats.

    With p the probability of the target, what is already well classified counts less than in
    `CrossEntropy`, which it is for ``gamma=0``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, target = np.log([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])
    >>> [round(ost.losses.Focal(2.0)(y[k:], target[k:])[0], 4) for k in (0, 1)]
    [0.9331, 1.8651]

    Args:
        gamma: at least 0.
        ignore_index: targets of this number do not count.
        class_weights: ``[V]``, at least 0; see `CrossEntropy`. None: all are 1.
        batch_first: see `Loss`.

    Raises:
        ValueError: a gamma below 0, or class_weights that are no weights.

    Source: Lin, Goyal, Girshick, He, Dollar (2017), "Focal loss for dense object detection".
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        ignore_index: int = -100,
        class_weights: Sequence[float] | Array | None = None,
        batch_first: bool | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights, batch_first)
        self.gamma = _check.finite("gamma", gamma)

    def _rows(
        self, y: Array, classes: Array, rows: Array | None, gradient: bool
    ) -> tuple[Any, Any, Array | None]:
        each = self._class_weights(y, classes)
        on, at = _counted(classes, rows)
        v = each[at] * (on.astype(y.dtype) if rows is None else np.where(on, rows, 0))
        count = _deferred.number(v.sum(dtype=np.float64))
        on, at, v = (_device.like(a, y) for a in (on, at, v))
        log_p, numbers = _log_softmax(y, on), _numbered(at, y)
        log_t = log_p[numbers, at]
        log_rest = np.log(-np.expm1(log_t))  # log(1 - p)
        value, slope = _focal_terms(log_t, log_rest, self.gamma)
        total = _deferred.number((v * value).sum(dtype=np.float64))
        dy = None
        if gradient:
            by = _deferred.scalar(_deferred.divisor(count), y.dtype)
            part = (v * slope / by)[:, None]
            dy = -part * np.exp(log_p)
            dy[numbers, at] += part[:, 0]
        return total, count, dy


def _log_softmax(y: Array, on: Array) -> Array:
    """Return log p of rows ``[N,V]``; those that do not count may hold NaN."""
    z = np.where(on[:, None], y, 0)
    z = z - z.max(-1, keepdims=True) if y.shape[-1] else z
    out: Array = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return out


readable(globals())
