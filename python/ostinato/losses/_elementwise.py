"""Define losses that are a sum over the elements of y and a target of its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check, _deferred, _device
from .._annotations import readable
from .._check import Array, Lengths
from ._base import Loss, _floats, _focal_terms, _hint, _weights


class _Elementwise(Loss):
    """Sum a loss over the elements of y and a target of the same shape."""

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        """Each element's loss and its derivative by y."""
        raise NotImplementedError  # the classes below define it

    def _matched(self, y: Array, target: Array) -> Array:
        """Return the target in the shape of y, if it may have another one."""
        return target

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: Lengths = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[Any, float, Array | None]:
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
            ``total, count, dy``; the total of arrays of a device is one without axes, which has
            not been waited for; dy is None without gradient.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        y = _floats("y", y)
        target = _check.array("target", target)
        if target.dtype.kind not in "fiub":
            raise TypeError(f"target: expected real numbers, got dtype {target.dtype}")
        target = _device.like(target, y)
        _device.same("target", target, y, "y")
        target = self._matched(y, target)
        if target.shape != y.shape:
            raise ValueError(
                f"target: expected the shape of y {y.shape}, got {target.shape}{_hint(y, target)}"
            )
        mask = self._mask(y, lengths)
        t = target.astype(y.dtype, copy=False)
        # Infinity and NaN are answers, on which the Trainer stops; a square of something small may
        # become zero.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            every: Array | None = None  # what counts, on the host
            if mask is None:
                terms, slopes = self._terms(y, t)
                count: float = y.size
            else:
                flags = mask.reshape(mask.shape + (1,) * (y.ndim - 2))
                every = np.broadcast_to(flags, y.shape)
                on = np.broadcast_to(_device.like(flags, y), y.shape)
                terms, slopes = self._terms(np.where(on, y, 0), np.where(on, t, 0))
                terms, slopes = np.where(on, terms, 0), np.where(on, slopes, 0)
                count = int(every.sum())
            if weights is not None:
                w = _weights(weights, y.shape, y.dtype)
                full = np.broadcast_to(w, y.shape)
                counted = full if every is None else np.where(every, full, 0)
                count = float(counted.sum(dtype=np.float64))
                w = _device.like(w, y)
                terms, slopes = (np.where(w == 0, 0, a * w) for a in (terms, slopes))
            dy = (slopes / (count or 1)).astype(y.dtype, copy=False) if gradient else None
            total = _deferred.number(terms.sum(dtype=np.float64))
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
        TypeError: delta is no number.
        ValueError: delta is not finite or not above 0.

    Source: Huber (1964), "Robust estimation of a location parameter".
    """

    def __init__(self, delta: float = 1.0, *, batch_first: bool | None = None) -> None:
        super().__init__(batch_first=batch_first)
        self.delta = _check.number("delta", delta, "a finite number above 0")
        if not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta: expected a finite number above 0, got {delta!r}")

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        d = y - target
        a = np.abs(d)
        return np.where(a <= self.delta, 0.5 * d * d, self.delta * (a - 0.5 * self.delta)), np.clip(
            d, -self.delta, self.delta
        )


class Quantile(_Elementwise):
    """Quantile (pinball) loss: ``max(q d, (q - 1) d)`` with ``d = target - y``.

    The y that makes it least is the q-quantile of the targets.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.losses.Quantile(0.9)(np.array([0.0, 0.0]), np.array([1.0, -1.0]))
    (0.5, array([-0.45,  0.05]))

    With several quantiles y ``[...,Q]`` has one on its last axis for each:

    >>> loss = ost.losses.Quantile([0.1, 0.9])
    >>> loss(np.zeros((1, 2)), np.array([1.0]))
    (0.5, array([[-0.05, -0.45]]))

    Args:
        quantile: a number between 0 and 1, or a sequence of Q such; the target of Q quantiles has
            the shape of y without its last axis, or with a last axis of 1.
        batch_first: see `Loss`.

    Raises:
        TypeError: no number, or no sequence of such.
        ValueError: a quantile that is not between 0 and 1, or none.

    Source: Koenker, Bassett (1978), "Regression quantiles".
    """

    def __init__(
        self, quantile: float | Sequence[float] | Array, *, batch_first: bool | None = None
    ) -> None:
        super().__init__(batch_first=batch_first)
        self.several = np.ndim(quantile) > 0
        given: Any = quantile if self.several else [quantile]
        values = [_check.number("quantile", q, "a number between 0 and 1") for q in given]
        if not values or not all(0 < q < 1 for q in values):
            raise ValueError(f"quantile: expected numbers between 0 and 1, got {quantile!r}")
        self.quantiles = tuple(values)

    def _matched(self, y: Array, target: Array) -> Array:
        if not self.several:
            return target
        if y.ndim == 0 or y.shape[-1] != len(self.quantiles):
            raise ValueError(
                f"y: expected {len(self.quantiles)} on the last axis, one for each quantile, got "
                f"shape {y.shape}"
            )
        if target.shape not in (y.shape[:-1], (*y.shape[:-1], 1)):
            raise ValueError(
                f"target: expected shape {y.shape[:-1]} or {(*y.shape[:-1], 1)}, got {target.shape}"
            )
        out: Array = np.broadcast_to(target.reshape(*y.shape[:-1], 1), y.shape)
        return out

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        q = _device.like(np.asarray(self.quantiles, y.dtype), y)
        d = target - y
        slopes = np.where(d > 0, -q, np.where(d < 0, 1 - q, 0 * d))  # NaN stays
        return np.maximum(q * d, (q - 1) * d), slopes


class BinaryCrossEntropy(_Elementwise):
    """Binary cross entropy of logits: ``log(1 + exp(y)) - target y``, in nats, targets in [0, 1].

    >>> import numpy as np
    >>> import ostinato as ost
    >>> value, dy = ost.losses.BinaryCrossEntropy()(np.array([0.0, 1000.0]), np.array([1.0, 1.0]))
    >>> round(value, 4), dy.tolist()
    (0.3466, [-0.25, 0.0])

    Args:
        positive_weight: by how much the part of the target that is 1 counts, above 0: a number, or
            one for each element of the last axis of y. The count stays that of the elements
            (PyTorch's ``pos_weight``). None: 1.
        batch_first: see `Loss`.

    Raises:
        ValueError: a positive_weight that is no weight.
    """

    def __init__(
        self,
        *,
        positive_weight: float | Sequence[float] | Array | None = None,
        batch_first: bool | None = None,
    ) -> None:
        super().__init__(batch_first=batch_first)
        self.positive_weight: Array | None = None
        if positive_weight is not None:
            wanted = "a finite number above 0, or one for each element of the last axis"
            w = _check.reals("positive_weight", positive_weight, wanted)
            if w.ndim > 1 or not (w.size and np.isfinite(w).all() and (w > 0).all()):
                raise ValueError(f"positive_weight: expected {wanted}, got {positive_weight!r}")
            self.positive_weight = w

    def _matched(self, y: Array, target: Array) -> Array:
        w = self.positive_weight
        if w is not None and w.ndim and w.shape != y.shape[-1:]:
            raise ValueError(
                f"positive_weight: expected one for each element of the last axis of y, "
                f"{y.shape[-1:]}, got {w.shape}"
            )
        return target

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        _refuse_outside(target)
        e = np.exp(-np.abs(y))
        p = np.where(y >= 0, 1 / (1 + e), e / (1 + e))
        if self.positive_weight is None:
            return np.maximum(y, 0) - y * target + np.log1p(e), p - target
        w = _device.like(self.positive_weight.astype(y.dtype), y)
        more = 1 + (w - 1) * target  # of log(1 + exp(-y)), beside (1 - target) y
        return (1 - target) * y + more * (np.log1p(e) + np.maximum(-y, 0)), (
            1 - target - more * np.where(y >= 0, e / (1 + e), 1 / (1 + e))
        )


class BinaryFocal(_Elementwise):
    """Focal loss of logits and targets in [0, 1]; see `Focal` for one of many classes.

    With p the sigmoid of y it is ``-target (1 - p)^gamma log p - (1 - target) p^gamma log(1 - p)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> value, dy = ost.losses.BinaryFocal(2.0)(np.array([0.0]), np.array([1.0]))
    >>> round(value, 4)  # a quarter of the cross entropy
    0.1733

    Args:
        gamma: at least 0.
        alpha: between 0 and 1: the part of the target that is 1 counts alpha times, the other one 1
            - alpha times. None: both count once.
        batch_first: see `Loss`.

    Raises:
        ValueError: a gamma below 0, or an alpha that is not between 0 and 1.

    Source: Lin, Goyal, Girshick, He, Dollar (2017), "Focal loss for dense object detection".
    """

    def __init__(
        self, gamma: float = 2.0, *, alpha: float | None = None, batch_first: bool | None = None
    ) -> None:
        super().__init__(batch_first=batch_first)
        self.gamma = _check.finite("gamma", gamma)
        self.alpha: float | None = None
        if alpha is not None:
            self.alpha = _check.number("alpha", alpha, "a number between 0 and 1")
            if not 0 < self.alpha < 1:
                raise ValueError(f"alpha: expected a number between 0 and 1, got {alpha!r}")

    def _terms(self, y: Array, target: Array) -> tuple[Array, Array]:
        _refuse_outside(target)
        log_1_e = np.log1p(np.exp(-np.abs(y)))
        log_p, log_q = np.minimum(y, 0) - log_1_e, np.minimum(-y, 0) - log_1_e
        ones, zeros = target, 1 - target
        if self.alpha is not None:
            ones, zeros = self.alpha * ones, (1 - self.alpha) * zeros
        value_p, slope_p = _focal_terms(log_p, log_q, self.gamma)
        value_q, slope_q = _focal_terms(log_q, log_p, self.gamma)
        # dp/dy = p (1 - p), and p df/dp is given.
        return (
            ones * value_p + zeros * value_q,
            ones * slope_p * np.exp(log_q) - zeros * slope_q * np.exp(log_p),
        )


def _refuse_outside(target: Array) -> None:
    """Raise for a target that is no probability; NaN is an answer, on which the Trainer stops.

    One on a device is not read, since that would wait for it.
    """
    if isinstance(target, np.ndarray) and ((outside := target < 0).any() or (target > 1).any()):
        got = target[outside if outside.any() else target > 1][0]
        raise ValueError(f"target: expected values in [0, 1], got {got:g}")


readable(globals())
