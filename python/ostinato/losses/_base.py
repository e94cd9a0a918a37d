"""Define what losses share: the base class, and the checks of outputs and weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _deferred, _device
from .._annotations import readable
from .._check import Array, Lengths
from .._recording import record_loss


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

    Raises:
        TypeError: batch_first is no bool.

    Attributes:
        takes_sequences: whether the target is one of whole sequences, ``[B,...]``, and not of
            steps; a Trainer then gives it as it is, and weights ``[B]``.
    """

    takes_sequences = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Let `vjp` record the calls of a loss of one's own, as it does those of this package."""
        super().__init_subclass__(**options)
        record_loss(cls)

    def __init__(self, *, batch_first: bool | None = None) -> None:
        self.batch_first = None if batch_first is None else _check.flag("batch_first", batch_first)

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
            y: outputs ``[...]``; the first two axes are time and batch where lengths are given.
            target: what they should be.
            lengths: ``[B]``, which leaves out the steps past the end of each row; or a bool mask of
                the first two axes of y, True where it counts. None: everything counts.
            gradient: whether the gradient is wanted.
            weights: of the first one or two axes of y, at least 0. The losses are multiplied by
                them, and the count is the sum of the weights. None: all weights are 1.

        Returns:
            ``total, count, dy``: floats, or arrays without axes where they are known to a device
            alone and reading them would wait for it; dy is None without gradient.

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
        return float(_deferred.quotient(total, count)), dy

    def _mask(self, y: Array, lengths: Lengths) -> Array | None:
        """[T,B] (or [B,T]) of what counts, on the host."""
        if lengths is None:
            return None
        if y.ndim < 2:
            raise ValueError(
                f"lengths: expected y with axes for time and batch, got shape {y.shape}"
            )
        lengths = _device.host(_device.taken(lengths))
        if type(lengths) is not np.ndarray:
            lengths = _check.unmasked("lengths", lengths)
        if isinstance(lengths, np.ndarray) and lengths.dtype == np.bool_:
            if lengths.shape != y.shape[:2]:
                raise ValueError(
                    f"lengths: expected a mask of shape {y.shape[:2]}, that of y, got "
                    f"{lengths.shape}"
                )
            return lengths
        batch, steps = y.shape[:2] if self.batch_first else y.shape[1::-1]
        ends = _check.lengths(lengths, steps, batch)
        assert ends is not None
        mask: Array = np.arange(steps)[:, None] < ends
        return mask.T if self.batch_first else mask


record_loss(Loss)


def _floats(name: str, y: object) -> Array:
    a = _check.array(name, y)
    _check.real_dtype(a.dtype, name)
    return a


def takes_host_targets(loss: Loss) -> bool:
    """Return whether a loss is given its target on the host, which it checks before it moves it."""
    return all(
        getattr(type(loss), name).__module__.startswith(f"{__package__}.")
        for name in ("__call__", "parts")
    )


def _weights(weights: object, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return checked weights on the host, as floats that are broadcast to ``shape``."""
    a = _device.host(_check.array("weights", weights))
    if a.dtype.kind not in "fiub":
        raise TypeError(f"weights: expected real numbers, got dtype {a.dtype}")
    if not 1 <= a.ndim <= min(2, max(len(shape), 1)) or a.shape != shape[: a.ndim]:
        raise ValueError(
            f"weights: expected shape {shape[:1]} or {shape[:2]}, the first axes of y, got "
            f"{a.shape}"
        )
    if not (np.isfinite(a).all() and (a >= 0).all()):
        raise ValueError("weights: expected finite numbers of at least 0, got others")
    floats: Array = a.astype(dtype).reshape(a.shape + (1,) * (len(shape) - a.ndim))
    return floats


def _hint(y: Array, target: Array) -> str:
    """Say how to mend a target that only lacks, or has too many, last axes of one."""
    if target.shape == y.shape[:-1] and y.ndim and y.shape[-1] == 1:
        return "; use target[..., None]"
    if target.ndim and target.shape == (*y.shape, 1):
        return "; use target[..., 0]"
    return ""


def _focal_terms(log_p: Array, log_rest: Array, gamma: float) -> tuple[Array, Array]:
    """Return ``f = -(1 - p)^gamma log p`` and ``p df/dp``, by the logarithms of p and 1 - p."""
    power = np.exp(gamma * log_rest) if gamma else np.ones_like(log_p)
    rest = np.exp(log_rest)
    # log p / (1 - p) is -1 at p = 1; with it (1 - p)^(gamma - 1) need not be finite there.
    ratio = np.where(rest > 0, log_p / np.where(rest > 0, rest, 1), -1)
    # 0 log 0 is 0.
    value = np.where(power == 0, 0, -power * log_p)
    p = np.exp(log_p)
    return value, gamma * np.where(p == 0, 0, p * ratio) * power - power


readable(globals())
