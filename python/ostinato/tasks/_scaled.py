"""One series on the scale of a model, with the smoothers that suit it and the network's inputs."""

from __future__ import annotations

import numpy as np

from .._check import Array
from ._smoothing import average, candidates, extend, places, second_season, smooth

CHANNELS = 7  # inputs of the network at a step, besides those of the caller
MOST_ORIGINS = 200  # of one series, at which smoothers are compared
CARRIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # share of the last error left after a row
CARRIED = 4.0  # bound on the last error that is carried, in median absolute errors
WORSE = 1.25  # how much more the smoothers of one scale may err and still be averaged
FLOOR = 0.1  # of the least value: forecasts whose logarithm is taken do not fall below
CLIP = 6.0  # bound on the inputs of the network, in mean absolute deviations


class Smoothers:
    """The smoothers that suit a series on one scale, that of the values or of their logarithms.

    Args:
        x: the values, divided by their unit.
        end: smoothers are chosen by their errors at origins before this row.
    """

    def __init__(self, x: Array, period: int, horizon: int, log: bool, end: int) -> None:
        self.period, self.horizon, self.log = period, horizon, log
        y = np.log(x) if log else x
        grid = candidates(period)
        states = smooth(y, period, grid)
        origins = past_origins(end, period, horizon)
        some = origins[:: max(1, len(origins) * horizon // 6000)]
        truth = ahead_of(x, some, horizon)
        apart = max(1, min(len(some), int(origins[-1] - origins[0]) // horizon + 1))
        ahead = self._raw(extend(states, some, horizon, period))
        self.states = states.pick(average(ahead, truth, apart))
        self.fitted = self._raw(y - self.states.error.mean(1))
        self.level = self._raw(self.states.level.mean(1))
        size = np.abs(self.states.error.mean(1)[:end])
        self.limit = CARRIED * float(np.nanmedian(size[min(period, end - 1) :]))
        known = np.isfinite(truth)
        if not known.any():
            known[:], truth = True, np.zeros_like(truth)
        gaps = []
        for carry in CARRIES:
            self.carry = carry
            gaps.append(float(np.abs(self.base(some)[known] - truth[known]).mean()))
        self.carry, self.error = CARRIES[int(np.argmin(gaps))], min(gaps)

    def _raw(self, y: Array) -> Array:
        with np.errstate(over="ignore"):
            out: Array = np.exp(y) if self.log else y
        return out

    def base(self, origins: Array) -> Array:
        """Return forecasts ``[W, H]`` of the values, with what is left of the last error."""
        out: Array = extend(self.states, origins, self.horizon, self.period).mean(2)
        last = np.clip(self.states.error.mean(1)[origins], -self.limit, self.limit)
        return self._raw(out + last[:, None] * self.carry ** np.arange(1, self.horizon + 1))


class ScaledSeries:
    """A series on the model's scale, with the smoothers that suit it."""

    def __init__(
        self,
        values: Array,
        period: int,
        horizon: int,
        log: bool,
        known: Array,
        observed: Array,
    ) -> None:
        self.period, self.horizon, self.log = period, horizon, log
        seen = np.isfinite(values)
        self.unit = float(np.abs(values[seen]).max()) or 1.0
        self.x = values / self.unit
        self.least = float(self.x[seen].min())
        self.offset = 0.0 if log else float(np.median(self.x[seen]))
        self.y = self.scaled(self.x)
        self.known, self.observed = known, observed

    def choose(self, end: int) -> dict[str, float]:
        """Choose smoothers by their errors at origins before ``end``; return the least errors.

        Those of the values and those of their logarithms are averaged, unless either errs more by
        a quarter.
        """
        scales = (False, True) if self.least > 0 else (False,)
        each = [Smoothers(self.x, self.period, self.horizon, log, end) for log in scales]
        most = WORSE * min(s.error for s in each)
        self.smoothers = [s for s in each if s.error <= most]
        self.level = self._mean([s.level for s in self.smoothers])
        self.error = np.nan_to_num(self.y - self._mean([s.fitted for s in self.smoothers]))
        origins = past_origins(end, self.period, self.horizon)
        self.scale = spread_of(self.truth(origins) - self.base(origins))
        self.error_scale = spread_of(self.error[self.period : end])
        self.level_scale = spread_of((self.y - self.level)[:end])
        return {"log" if s.log else "plain": s.error for s in each}

    def _mean(self, raw: list[Array]) -> Array:
        """Return the mean of values on the scale of the series."""
        return self.scaled(np.mean(raw, axis=0))

    def scaled(self, x: Array) -> Array:
        """Return values on the model's scale; logarithms are those of what is above zero."""
        if not self.log:
            return x - self.offset
        out: Array = np.log(np.maximum(x, FLOOR * self.least))
        return out

    def raw(self, y: Array) -> Array:
        """Return values on the scale of the series divided by its unit."""
        with np.errstate(over="ignore"):
            out: Array = np.exp(y) if self.log else y + self.offset
        return out

    def truth(self, origins: Array) -> Array:
        """Return what came after origins, ``[W, H]``."""
        return ahead_of(self.y, origins, self.horizon)

    def base(self, origins: Array) -> Array:
        """Return the forecasts of the smoothers ``[W, H]``."""
        return self._mean([s.base(origins) for s in self.smoothers])

    def inputs(self, origins: Array, window: int, base: Array) -> Array:
        """Return the inputs of the network around origins, ``[W, window + H, F]``."""
        horizon, period = self.horizon, self.period
        short = second_season(period)
        filled = np.where(np.isnan(self.y), self.level, self.y)
        season, near = (lagged(filled, k) for k in (period, short))
        level = self.level[origins][:, None]
        rows = origins[:, None] + np.arange(1 - window, 1)
        back = np.maximum(rows, 0)
        out = np.zeros((len(origins), window + horizon, self.features), np.float32)
        past, ahead = out[:, :window], out[:, window:]
        past[..., 0] = self.error[back] / self.error_scale
        past[..., 1] = (filled[back] - level) / self.level_scale
        past[..., 2], past[..., 3] = season[back] / self.scale, near[back] / self.scale
        past[..., 4] = np.isnan(self.y[back])
        ahead[..., 0] = self.error[origins][:, None] / self.error_scale
        ahead[..., 1] = (base - level) / self.level_scale
        ahead[..., 2] = (filled[places(origins, horizon, period)] - base) / self.scale
        ahead[..., 3] = (filled[places(origins, horizon, short)] - base) / self.scale
        ahead[..., 5] = 1.0
        ahead[..., 6] = np.linspace(0, 1, horizon)
        np.clip(out, -CLIP, CLIP, out=out)
        k = self.known.shape[1]
        if k:
            steps = origins[:, None] + np.arange(1 - window, horizon + 1)
            out[..., CHANNELS : CHANNELS + k] = self.known[np.maximum(steps, 0)]
        if self.observed.shape[1]:
            past[..., CHANNELS + k :] = self.observed[back]
        past[rows < 0] = 0.0
        return out

    @property
    def features(self) -> int:
        """The number of inputs of the network at a step."""
        return CHANNELS + int(self.known.shape[1] + self.observed.shape[1])


def ahead_of(y: Array, origins: Array, horizon: int) -> Array:
    """Return what came after origins, ``[W, H]``."""
    ahead: Array = y[origins[:, None] + np.arange(1, horizon + 1)]
    return ahead


def past_origins(end: int, period: int, horizon: int) -> Array:
    """Return past origins at which forecasts are compared with what came before ``end``."""
    last = end - horizon - 1
    first = min(max(period - 1, 3, last // 3), last)
    return np.unique(np.linspace(first, last, MOST_ORIGINS).astype(int))


def spread_of(a: Array) -> float:
    """Return the mean absolute value of what is known; 1 where that is nothing."""
    known = np.abs(a[np.isfinite(a)])
    return float(known.mean()) if known.size and known.mean() > 1e-12 else 1.0


def lagged(y: Array, lag: int) -> Array:
    """Return the change from ``lag`` rows before, 0 where there are none."""
    out = np.zeros_like(y)
    out[lag:] = y[lag:] - y[:-lag]
    return out
