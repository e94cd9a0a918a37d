"""Define losses: ``loss(y, target, lengths=None)`` gives ``(value, dy)``.

The value is the mean over what counts, and dy its gradient. ``lengths [B]`` leaves out the steps
past the end of each row: of y ``[T,B,...]``, or ``[B,T,...]`` with ``batch_first``. What is left
out may hold anything, NaN too, and gets a gradient of exactly zero. ``weights`` make it a weighted
mean.

>>> import numpy as np
>>> import ostinato as ost
>>> y, target = np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1), np.float32)
>>> value, dy = ost.losses.MSE()(y, target, lengths=[1])
>>> value, dy.ravel().tolist()
(1.0, [2.0, 0.0])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _check, _device, _native
from ._annotations import readable
from ._check import Array, Lengths

__all__ = ["MAE", "MSE", "BinaryCrossEntropy", "CrossEntropy", "Huber", "Loss"]


class Loss:
    """Base of the losses; one of your own defines `parts`, or ``__call__`` alone.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Square(ost.losses.Loss):
    ...     def __call__(self, y, target, lengths=None):
    ...         d = y - target
    ...         return float((d * d).sum()), 2 * d
    >>> Square()(np.ones(2), np.zeros(2))
    (2.0, array([2., 2.]))

    Args:
        batch_first: the layout of y when ``lengths`` are given: True is ``[B,T,...]``, False is
            ``[T,B,...]``. None is False for a call by hand; in a Trainer it is the layout of the
            model.
    """

    def __init__(self, *, batch_first: bool | None = None) -> None:
        self.batch_first = batch_first

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[float, float, Array | None]:
        """Compute the sum of the losses, their count, and the gradient of their mean.

        Args:
            y: outputs ``[...]``; the first two axes are time and batch where lengths are given.
            target: what they should be.
            lengths: ``[B]``, which leaves out the steps past the end of each row; or a bool mask of
                the first two axes of y, True where it counts. None: everything counts.
            gradient: whether the gradient is wanted.
            weights: of the first one or two axes of y, at least 0. The losses are multiplied by
                them, and the count is the sum of the weights. None: all weights are 1.

        Returns:
            ``total, count, dy``; dy is None without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype, or a loss that does not define this
                method.
            ValueError: an argument of the wrong shape or value.
        """
        raise TypeError(f"{type(self).__name__} does not define parts")

    def __call__(
        self, y: Array, target: Array, lengths: Lengths = None, *, weights: Array | None = None
    ) -> tuple[float, Array]:
        """Return the mean of the losses and its gradient.

        Args:
            y: outputs ``[...]``; the first two axes are time and batch where lengths are given.
            target: what they should be.
            lengths: ``[B]``, which leaves out the steps past the end of each row; or a bool mask of
                the first two axes of y, True where it counts. None: everything counts.
            weights: of the first one or two axes of y, at least 0; the mean is then a weighted one.

        Returns:
            ``value, dy``: a float, and an array of the shape of y.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        given: dict[str, Any] = {} if weights is None else {"weights": weights}
        total, count, dy = self.parts(y, target, lengths, **given)
        assert dy is not None
        return total / (count or 1), dy

    def _mask(self, y: Array, lengths: Lengths) -> Array | None:
        """[T,B] (or [B,T]) of what counts."""
        if lengths is None:
            return None
        if y.ndim < 2:
            raise ValueError(
                f"lengths: expected y with axes for time and batch, got shape {y.shape}"
            )
        lengths = _device.host(_device.taken(lengths))
        if isinstance(lengths, np.ndarray) and lengths.dtype == np.bool_:
            if lengths.shape != y.shape[:2]:
                raise ValueError(
                    f"lengths: expected a mask of shape {y.shape[:2]}, that of y, got "
                    f"{lengths.shape}"
                )
            like: Array = _device.like(lengths, y)
            return like
        batch, steps = y.shape[:2] if self.batch_first else y.shape[1::-1]
        ends = _check.lengths(lengths, steps, batch)
        assert ends is not None
        mask: Array = np.arange(steps)[:, None] < ends
        placed: Array = _device.like(mask.T if self.batch_first else mask, y)
        return placed


def _floats(name: str, y: object) -> Array:
    a = _check.array(name, y)
    _check.real_dtype(a.dtype)
    return a


def _weights(weights: object, shape: tuple[int, ...], like: Array) -> Array:
    """Return checked weights as floats, broadcast from their first axes to ``shape``."""
    a = _check.array("weights", weights)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"weights: expected real numbers, got dtype {a.dtype}")
    if not 1 <= a.ndim <= min(2, max(len(shape), 1)) or a.shape != shape[: a.ndim]:
        raise ValueError(
            f"weights: expected shape {shape[:1]} or {shape[:2]}, the first axes of y, got "
            f"{a.shape}"
        )
    if not (np.isfinite(a).all() and (a >= 0).all()):
        raise ValueError("weights: expected finite numbers of at least 0, got others")
    placed = _device.like(_device.host(a).astype(like.dtype), like)
    full: Array = np.broadcast_to(
        placed.reshape(placed.shape + (1,) * (len(shape) - a.ndim)), shape
    )
    return full


def _hint(y: Array, target: Array) -> str:
    """Say how to mend a target that only lacks, or has too many, last axes of one."""
    if target.shape == y.shape[:-1] and y.ndim and y.shape[-1] == 1:
        return "; use target[..., None]"
    if target.ndim and target.shape == (*y.shape, 1):
        return "; use target[..., 0]"
    return ""


class _Elementwise(Loss):
    """Sum a loss over the elements of y and a target of the same shape."""

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Each element's loss and its derivative by y."""
        raise NotImplementedError  # the four classes below define it

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[float, float, Array | None]:
        """Compute the sum of the losses, their count, and the gradient of their mean.

        Args:
            y: outputs ``[...]``; the first two axes are time and batch where lengths are given.
            target: what they should be.
            lengths: ``[B]``, which leaves out the steps past the end of each row; or a bool mask of
                the first two axes of y, True where it counts. None: everything counts.
            gradient: whether the gradient is wanted.
            weights: of the first one or two axes of y, at least 0. The losses are multiplied by
                them, and the count is the sum of the weights. None: all weights are 1.

        Returns:
            ``total, count, dy``; dy is None without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        y = _floats("y", y)
        target = _device.like(_check.array("target", target), y)
        _device.same("target", target, y, "y")
        if target.shape != y.shape:
            raise ValueError(
                f"target: expected the shape of y {y.shape}, got {target.shape}{_hint(y, target)}"
            )
        mask = self._mask(y, lengths)
        t = target.astype(y.dtype, copy=False)
        # Infinity and NaN are answers, on which the Trainer stops; a square of something small may
        # become zero.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            on: Array | None = None
            if mask is None:
                terms, slopes = self._terms(y, t)
                count: float = y.size
            else:
                on = np.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - 2)), y.shape)
                terms, slopes = self._terms(np.where(on, y, 0), np.where(on, t, 0))
                terms, slopes = np.where(on, terms, 0), np.where(on, slopes, 0)
                count = int(on.sum())
            if weights is not None:
                w = _weights(weights, y.shape, y)
                count = float((w if on is None else np.where(on, w, 0)).sum(dtype=np.float64))
                terms, slopes = terms * w, slopes * w
            dy = (slopes / (count or 1)).astype(y.dtype, copy=False) if gradient else None
            total = float(terms.sum(dtype=np.float64))
        return total, count, dy


class MSE(_Elementwise):
    """Mean squared error: the mean of ``(y - target)^2``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.losses.MSE()(np.array([3.0, 0.0]), np.array([1.0, 0.0]))
    (2.0, array([2., 0.]))

    Args:
        batch_first: see `Loss`.
    """

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        return d * d, 2 * d


class MAE(_Elementwise):
    """Mean absolute error: the mean of ``|y - target|``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.losses.MAE()(np.array([3.0]), np.array([1.0]))
    (2.0, array([1.]))

    Args:
        batch_first: see `Loss`.
    """

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        return np.abs(d), np.sign(d)


class Huber(_Elementwise):
    """Huber loss: the square of small errors, and a multiple of large ones.

    With d = y - target it is ``d^2 / 2`` for ``|d| <= delta``, else ``delta (|d| - delta / 2)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.losses.Huber(delta=1.0)(np.array([3.0]), np.array([0.0]))
    (2.5, array([1.]))

    Args:
        delta: where the loss goes from square to linear, above 0.
        batch_first: see `Loss`.

    Raises:
        ValueError: delta is not finite or not above 0.

    Source: Huber (1964), "Robust estimation of a location parameter".
    """

    def __init__(self, delta: float = 1.0, *, batch_first: bool | None = None) -> None:
        super().__init__(batch_first=batch_first)
        if not (np.isfinite(delta) and delta > 0):
            raise ValueError(f"delta: expected a finite number above 0, got {delta!r}")
        self.delta = float(delta)

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        a = np.abs(d)
        return np.where(a <= self.delta, 0.5 * d * d, self.delta * (a - 0.5 * self.delta)), np.clip(
            d, -self.delta, self.delta
        )


class BinaryCrossEntropy(_Elementwise):
    """Binary cross entropy of logits: ``log(1 + exp(y)) - target y``, in nats, targets in [0, 1].

    >>> import numpy as np
    >>> import ostinato as ost
    >>> value, dy = ost.losses.BinaryCrossEntropy()(np.array([0.0, 1000.0]), np.array([1.0, 1.0]))
    >>> round(value, 4), dy.tolist()
    (0.3466, [-0.25, 0.0])

    Args:
        batch_first: see `Loss`.
    """

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        e = np.exp(-np.abs(y))
        return np.maximum(y, 0) - y * target + np.log1p(e), np.where(
            y >= 0, 1 / (1 + e), e / (1 + e)
        ) - target


class CrossEntropy(Loss):
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
        super().__init__(batch_first=batch_first)
        self.ignore_index, self.label_smoothing = (
            int(ignore_index),
            _check.fraction("label_smoothing", label_smoothing),
        )
        self.class_weights: Array | None = None
        if class_weights is not None:
            w = np.array(class_weights, np.float64)
            if w.ndim != 1 or not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
                raise ValueError(
                    "class_weights: expected [V] finite numbers of at least 0, some above 0, got "
                    "others"
                )
            self.class_weights = w

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[float, float, Array | None]:
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
            ``total, count, dy``; dy is None without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape, or a class number out of range.
        """
        y = _floats("y", y)
        target = _device.like(_check.array("target", target), y)
        _device.same("target", target, y, "y")
        if y.ndim == 0 or target.shape != y.shape[:-1]:
            raise ValueError(
                f"target: expected shape {y.shape[:-1]}, that of y without its last axis, got "
                f"{target.shape}"
                + ("; use target[..., 0]" if target.shape == (*y.shape[:-1], 1) else "")
            )
        classes = self._classes(y, target, lengths)
        if weights is not None or self.class_weights is not None:
            rows = None if weights is None else _weights(weights, target.shape, y).reshape(-1)
            total, count, dy = self._weighted(
                y.reshape(target.size, y.shape[-1]), classes, rows, gradient
            )
            return total, count, None if dy is None else dy.reshape(y.shape)
        known = int(np.count_nonzero(classes >= 0))
        kernel: Any = _native.backend_for(y).softmax_cross_entropy
        logits = _check.contiguous(y).reshape(target.size, y.shape[-1])
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            total, dy = kernel(logits, classes, self.label_smoothing, 1 / max(known, 1), gradient)
        return float(total), known, None if dy is None else dy.reshape(y.shape)

    def _classes(self, y: Array, target: Array, lengths: Lengths) -> Array:
        """Return the targets as flat whole numbers; -1 for what does not count."""
        classes = _check.ids("target", target).copy()
        skip = classes == self.ignore_index
        mask = self._mask(y, lengths)
        if mask is not None:
            skip |= ~np.broadcast_to(
                mask.reshape(mask.shape + (1,) * (target.ndim - 2)), target.shape
            ).reshape(-1)
        bad = np.flatnonzero(~skip & ((classes < 0) | (classes >= y.shape[-1])))
        if bad.size:
            raise ValueError(
                f"target: expected class numbers from 0 to {y.shape[-1] - 1}, got "
                f"{int(classes[bad[0]])}"
            )
        classes[skip] = -1
        out: Array = classes
        return out

    def _weighted(
        self, y: Array, classes: Array, rows: Array | None, gradient: bool
    ) -> tuple[float, float, Array | None]:
        """Logits ``[N,V]`` with weights of classes, of rows, or of both.

        With w_k the weight of class k, v of the row, s the smoothing and t the target, a row's
        loss is ``v ((1 - s) w_t (-log p_t) + s / V sum_k w_k (-log p_k))`` and the mean divides
        by the sum of all ``v w_t``.
        """
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
        each = _device.like(each.astype(y.dtype), y)
        on, at = classes >= 0, np.where(classes >= 0, classes, 0)
        v = on.astype(y.dtype) if rows is None else np.where(on, rows, 0)
        count = float((v * each[at]).sum(dtype=np.float64))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            z = np.where(on[:, None], y, 0)
            z = z - z.max(-1, keepdims=True) if size else z
            log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
            s = self.label_smoothing
            numbers = (
                np.arange(len(at)) if _device.of(y) is None else _device.like(np.arange(len(at)), y)
            )
            goal = np.zeros_like(z)  # how much of the loss each class has
            goal[numbers, at] = (1 - s) * each[at]
            goal = (goal + s / size * each) * v[:, None]
            # 0 log 0 is 0: a class that has no part in the target has none in the loss.
            total = float(-np.where(goal == 0, 0, goal * log_p).sum(dtype=np.float64))
            dy = None
            if gradient:
                dy = (np.exp(log_p) * goal.sum(-1, keepdims=True) - goal) / y.dtype.type(count or 1)
        return total, count, dy


readable(globals())
