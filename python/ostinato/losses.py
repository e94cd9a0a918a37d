"""Losses: ``loss(y, target, lengths=None)`` gives ``(value, dy)``, the mean over what counts and its gradient.

``lengths [B]`` leaves out the steps past the end of each row: of y ``[T,B,...]``, or ``[B,T,...]`` with ``batch_first``.
What is left out may hold anything, NaN too, and gets a gradient of exactly zero.

>>> import numpy as np
>>> import ostinato as ost
>>> value, dy = ost.losses.MSE()(np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1), np.float32), lengths=[1])
>>> value, dy.ravel().tolist()
(1.0, [2.0, 0.0])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _check, _device
from ._check import Array

__all__ = ["MAE", "MSE", "BinaryCrossEntropy", "CrossEntropy", "Huber", "Loss"]


class Loss:
    """Base of the losses. A loss of your own defines `parts`."""

    def __init__(self, *, batch_first: bool = False) -> None:
        self.batch_first = batch_first

    def parts(
        self, y: Array, target: Array, lengths: object = None, *, gradient: bool = True
    ) -> tuple[float, int, Array | None]:
        """The sum of the losses, how many there are, and the gradient of their mean (None if not wanted)."""
        raise TypeError(f"{type(self).__name__} does not define parts")

    def __call__(self, y: Array, target: Array, lengths: object = None) -> tuple[float, Array]:
        total, count, dy = self.parts(y, target, lengths)
        assert dy is not None
        return total / max(count, 1), dy

    def _mask(self, y: Array, lengths: object) -> Array | None:
        """[T,B] (or [B,T]) of what counts."""
        if lengths is None:
            return None
        if y.ndim < 2:
            raise ValueError(f"lengths: expected y with axes for time and batch, got shape {y.shape}")
        lengths = _device.host(_device.taken(lengths))
        if isinstance(lengths, np.ndarray) and lengths.dtype == np.bool_:
            if lengths.shape != y.shape[:2]:
                raise ValueError(f"lengths: expected a mask of shape {y.shape[:2]}, that of y, got {lengths.shape}")
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


class _Elementwise(Loss):
    """A loss that is a sum over elements of y and a target of the same shape."""

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Each element's loss and its derivative by y."""
        raise NotImplementedError  # the four classes below define it

    def parts(
        self, y: Array, target: Array, lengths: object = None, *, gradient: bool = True
    ) -> tuple[float, int, Array | None]:
        y = _floats("y", y)
        target = _device.like(_check.array("target", target), y)
        _device.same("target", target, y, "y")
        if target.shape != y.shape:
            raise ValueError(f"target: expected the shape of y {y.shape}, got {target.shape}")
        mask = self._mask(y, lengths)
        t = target.astype(y.dtype, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are answers; the Trainer stops on them
            if mask is None:
                terms, slopes = self._terms(y, t)
                count = y.size
            else:
                on = np.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - 2)), y.shape)
                terms, slopes = self._terms(np.where(on, y, 0), np.where(on, t, 0))
                terms, slopes = np.where(on, terms, 0), np.where(on, slopes, 0)
                count = int(on.sum())
        dy = (slopes / max(count, 1)).astype(y.dtype, copy=False) if gradient else None
        return float(terms.sum(dtype=np.float64)), count, dy


class MSE(_Elementwise):
    """Mean squared error: mean of ``(y - target)^2``."""

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        return d * d, 2 * d


class MAE(_Elementwise):
    """Mean absolute error: mean of ``|y - target|``."""

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        return np.abs(d), np.sign(d)


class Huber(_Elementwise):
    """Huber (1964): ``d^2 / 2`` for ``|d| <= delta``, else ``delta (|d| - delta / 2)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.losses.Huber(delta=1.0)(np.array([3.0]), np.array([0.0]))
    (2.5, array([1.]))
    """

    def __init__(self, delta: float = 1.0, *, batch_first: bool = False) -> None:
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
    """Binary cross entropy of logits y and targets in [0, 1]: ``log(1 + exp(y)) - target y``, in nats.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> value, dy = ost.losses.BinaryCrossEntropy()(np.array([0.0, 1000.0]), np.array([1.0, 1.0]))
    >>> round(value, 4), dy.tolist()
    (0.3466, [-0.25, 0.0])
    """

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        e = np.exp(-np.abs(y))
        return np.maximum(y, 0) - y * target + np.log1p(e), np.where(y >= 0, 1 / (1 + e), e / (1 + e)) - target


class CrossEntropy(Loss):
    """Softmax cross entropy of logits y ``[...,V]`` and class numbers ``target [...]``, in nats.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> value, dy = ost.losses.CrossEntropy()(np.zeros((3, 1, 4)), np.array([[0], [1], [-100]]))
    >>> round(value, 4), dy[2].ravel().tolist()
    (1.3863, [0.0, 0.0, 0.0, 0.0])

    Args:
        ignore_index: targets of this number do not count.
        label_smoothing: the share of the target that is spread over all classes (Szegedy et al. 2016).
    """

    def __init__(self, *, ignore_index: int = -100, label_smoothing: float = 0.0, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self.ignore_index, self.label_smoothing = int(ignore_index), _check.fraction("label_smoothing", label_smoothing)

    def parts(
        self, y: Array, target: Array, lengths: object = None, *, gradient: bool = True
    ) -> tuple[float, int, Array | None]:
        y = _floats("y", y)
        target = _device.like(_check.array("target", target), y)
        _device.same("target", target, y, "y")
        if y.ndim == 0 or target.shape != y.shape[:-1]:
            raise ValueError(
                f"target: expected shape {y.shape[:-1]}, that of y without its last axis, got {target.shape}"
            )
        classes = _check.ids("target", target).copy()
        skip = classes == self.ignore_index
        mask = self._mask(y, lengths)
        if mask is not None:
            skip |= ~np.broadcast_to(mask.reshape(mask.shape + (1,) * (target.ndim - 2)), target.shape).reshape(-1)
        bad = np.flatnonzero(~skip & ((classes < 0) | (classes >= y.shape[-1])))
        if bad.size:
            raise ValueError(f"target: expected class numbers from 0 to {y.shape[-1] - 1}, got {int(classes[bad[0]])}")
        classes[skip] = -1
        count = int(classes.size - np.count_nonzero(skip))
        kernel: Any = _check.typed("softmax_cross_entropy_", y)
        logits = _check.contiguous(y).reshape(target.size, y.shape[-1])
        total, dy = kernel(logits, classes, self.label_smoothing, 1 / max(count, 1), gradient)
        return float(total), count, None if dy is None else dy.reshape(y.shape)
