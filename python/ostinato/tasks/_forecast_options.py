"""Options of a forecaster, and the loss of its networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import _check, nn
from .._annotations import readable
from .._check import Array
from ..losses import Loss, _weights

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}


class Pinball(Loss):
    """Quantile loss: the mean of ``max(q d, (q - 1) d)``, ``d = target - y``.

    Targets of NaN do not count (Koenker, Bassett 1978).

    >>> loss = Pinball((0.1, 0.9))
    >>> loss(np.zeros((1, 2)), np.array([[1.0]]))
    (0.5, array([[-0.05, -0.45]]))

    Args:
        quantiles: numbers between 0 and 1; y has an entry for each on its last axis, the target
            has one.
        batch_first: whether arrays are ``[B, T, ...]``.
    """

    def __init__(self, quantiles: Sequence[float], *, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self.quantiles = checked_quantiles(quantiles)

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: object = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[float, float, Array | None]:
        """Return the sum of the losses, their number, and the gradient of their mean.

        Args:
            y: ``[..., Q]``, the quantiles.
            target: ``[..., 1]``; NaN does not count.
            lengths: steps of each sequence that count, ``[B]``; None: all.
            gradient: whether to compute the gradient.
            weights: weights of samples or steps; the loss is then a weighted mean.

        Returns:
            The sum, the number (of weights, where there are some), and the gradient, of y's shape,
            or None.

        Raises:
            ValueError: shapes do not fit.
        """
        y, target = _check.array("y", y), _check.array("target", target)
        wanted = (*y.shape[:-1], 1)
        if y.ndim == 0 or y.shape[-1] != len(self.quantiles) or target.shape != wanted:
            raise ValueError(
                f"target: expected shape (..., 1) beside y of shape (..., {len(self.quantiles)}), "
                f"got {target.shape} beside {y.shape}"
            )
        mask = self._mask(y, lengths)
        on = np.isfinite(target)
        if mask is not None:
            on &= mask.reshape(mask.shape + (1,) * (y.ndim - 2))
        q = np.asarray(self.quantiles, y.dtype)
        d = np.where(on, target.astype(y.dtype) - y, 0)
        count: float = int(on.sum()) * len(self.quantiles)
        slope = np.where(d > 0, -q, np.where(d < 0, 1 - q, 0))
        terms = np.maximum(q * d, (q - 1) * d)
        if weights is not None:
            w = _weights(weights, y.shape, y.dtype)
            w = np.broadcast_to(w, y.shape)
            count = float(np.where(on, w, 0).sum(dtype=np.float64))
            terms, slope = terms * w, slope * w
        dy = (slope / (count or 1)).astype(y.dtype) if gradient else None
        return float(terms.sum(dtype=np.float64)), count, dy


@dataclass
class ForecastOptions:
    """Options of a `Forecaster` and its training.

    >>> ForecastOptions(horizon=6).quantiles
    (0.1, 0.5, 0.9)

    Attributes:
        horizon: rows to forecast; None: a season, or a part of a long one, or what the rows allow.
        hidden: units H of each recurrent layer.
        layers: recurrent layers.
        cell: "gru", "lstm" or "rnn".
        epochs: passes over the windows; none is skipped.
        lr: learning rate of the first step; it falls to zero along a cosine.
        seed: seed of the initial parameters and of the order of the windows.
        quantiles: quantiles of the forecast, in rising order; 0.5 is one of them.
        members: networks whose median is taken.
        window: rows that a network sees before an origin; None: a season, from 24 to 96.
        batch: windows of an update.
    """

    horizon: int | None = None
    hidden: int = 24
    layers: int = 1
    cell: str = "gru"
    epochs: int = 25
    lr: float = 5e-3
    seed: int = 0
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    members: int = 6
    window: int | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "epochs", "members", "batch"):
            _check.positive(name, getattr(self, name))
        for name in ("horizon", "window"):
            if getattr(self, name) is not None:
                _check.positive(name, getattr(self, name))
        _check.seed("seed", self.seed)
        _check.choice("cell", self.cell, tuple(CELLS))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr: expected a number above 0, got {self.lr!r}")
        self.quantiles = checked_quantiles(self.quantiles)
        if 0.5 not in self.quantiles or len(self.quantiles) < 2:
            raise ValueError(f"quantiles: expected 0.5 and at least one more, got {self.quantiles}")


def checked_quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """Return quantiles in rising order, each between 0 and 1, or raise an error."""
    q = tuple(float(v) for v in values)
    if not q or not all(0 < v < 1 for v in q) or list(q) != sorted(set(q)):
        raise ValueError(f"quantiles: expected rising numbers between 0 and 1, got {values!r}")
    return q


readable(globals())
