"""Forecasts by quantiles: exponential smoothing whose errors an ensemble of networks corrects.

One model serves many series. What validation does not find better is not used, which `report`
says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np

from .. import _check, nn, optim
from .._check import Array
from ..losses import Loss, _weights

__all__ = ["ForecastOptions", "Forecaster", "Pinball"]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CHANNELS = 7  # what the network is told at a step besides the inputs of the caller
MOST_ROWS = 6000  # of one series: older rows are left out
MOST_WINDOWS = 512  # of all series, that one epoch sees
MOST_ORIGINS = 200  # of one series, at which smoothers are compared
AVERAGED = 8  # smoothers at most whose forecasts are averaged
QUARTERS = 4  # of a mixture of smoothers and a naive forecast
CARRIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # what is left of the last error after a row
BOUND = 3.0  # on an error that changes the states, in mean absolute errors
LEAST = 1e-3  # of the unit of a series: bounds do not fall below that of it
CARRIED = 4.0  # bound on the last error that is carried, in median absolute errors
WORSE = 1.25  # how much more the smoothers of one scale may err and still be averaged
FLOOR = 0.1  # of the least value: forecasts whose logarithm is taken do not fall below
CLIP = 6.0  # bound on what the network is told, in mean absolute deviations
SHRINKAGE = (0.0, 0.25, 0.5, 0.75, 1.0)
FORMAT = 2


class Pinball(Loss):
    """Quantile loss: the mean of ``max(q d, (q - 1) d)``, ``d = target - y``.

    Targets of NaN do not count (Koenker, Bassett 1978).

    >>> loss = Pinball((0.1, 0.9))
    >>> loss(np.zeros((1, 2)), np.array([[1.0]]))
    (0.5, array([[-0.05, -0.45]]))

    Args:
        quantiles: numbers between 0 and 1; y has an entry for each on its last axis, the target
            has one.
    """

    def __init__(self, quantiles: Sequence[float], *, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self.quantiles = _quantiles(quantiles)

    def parts(
        self,
        y: Array,
        target: Array,
        lengths: object = None,
        *,
        gradient: bool = True,
        weights: Array | None = None,
    ) -> tuple[float, float, Array | None]:
        """Return the sum of the losses, how many there are, and the gradient of their mean."""
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
            w = _weights(weights, y.shape, y)
            count = float(np.where(on, w, 0).sum(dtype=np.float64))
            terms, slope = terms * w, slope * w
        dy = (slope / (count or 1)).astype(y.dtype) if gradient else None
        return float(terms.sum(dtype=np.float64)), count, dy


@dataclass
class ForecastOptions:
    """What the training of a `Forecaster` can be told.

    Attributes:
        horizon: rows to forecast; None: a season, or a part of a long one, or what the rows allow.
        hidden, layers, cell: the recurrent network: units, layers, and "gru", "lstm" or "rnn".
        epochs: passes over the windows; each is done.
        lr: the learning rate of the first step; it falls to zero along a cosine.
        seed: of all that is drawn.
        quantiles: of the forecast, in rising order; 0.5 is one of them.
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
        _check.positive("seed", self.seed, 0)
        _check.choice("cell", self.cell, tuple(CELLS))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr: expected a number above 0, got {self.lr!r}")
        self.quantiles = _quantiles(self.quantiles)
        if 0.5 not in self.quantiles or len(self.quantiles) < 2:
            raise ValueError(f"quantiles: expected 0.5 and at least one more, got {self.quantiles}")


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    q = tuple(float(v) for v in values)
    if not q or not all(0 < v < 1 for v in q) or list(q) != sorted(set(q)):
        raise ValueError(f"quantiles: expected rising numbers between 0 and 1, got {values!r}")
    return q


# -- exponential smoothing -----------------------------------------------------------------------


def _second(season: int) -> int:
    """Return the rows of a day where a season is a week of at least 28 rows; otherwise 1."""
    return season // 7 if season % 7 == 0 and season >= 28 else 1


def _grid(season: int) -> Array:
    """Return the smoothers that are compared, ``[C, 5]``: alpha, beta, phi, gamma, omega.

    Where a season is a week of many rows, some have a second season, that of the day.
    """
    rows = []
    trends = [(0.0, 0.0), (0.1, 0.9), (0.1, 0.98), (0.3, 0.95), (0.02, 1.0)]
    gammas = (0.03, 0.1, 0.3, 0.6, 1.0) if season > 1 else (0.0,)
    for alpha in (0.0, 0.03, 0.1, 0.25, 0.5, 0.8, 1.0):
        left = 1 - alpha if alpha < 1 else 0.02
        for beta, phi in trends if alpha else trends[:1]:
            rows += [(alpha, beta * alpha, phi, gamma * left, 0.0) for gamma in gammas]
    if _second(season) > 1:
        steps = (0.03, 0.1, 0.3)
        for alpha in (0.0, 0.03, 0.1, 0.3, 0.6, 0.9):
            for beta, phi in trends[:2] if alpha else trends[:1]:
                pairs = itertools.product(steps, steps)
                rows += [(alpha, beta * alpha, phi, gamma, omega) for gamma, omega in pairs]
    seasonal = float(season > 1)
    rows.append((1 - seasonal, 0.0, 0.0, seasonal, 0.0))  # seasonal-naive
    rows.append((0.0, 0.0, 1.0, seasonal, 0.0))  # seasonal-naive with drift: see _smooth
    return np.array(rows)


@dataclass
class _States:
    """States of smoothers after each row, ``[n, C]``, and how far the row was from its forecast."""

    grid: Array
    level: Array
    trend: Array
    season: Array
    second: Array
    error: Array

    def pick(self, chosen: list[int]) -> _States:
        """Return the states of some smoothers."""
        kept = (self.level, self.trend, self.season, self.second, self.error)
        return _States(self.grid[chosen], *(a[:, chosen] for a in kept))


def _smooth(y: Array, period: int, grid: Array) -> _States:
    """Run additive Holt-Winters smoothing with a damped trend; a missing value changes nothing.

    A second season is added as Taylor (2003) does. An error changes the states by at most BOUND
    times the mean absolute error of about a season (after Gelper, Fried, Croux 2010), so that an
    unusual day does not spoil them; a naive forecast and a level that is the last value (alpha or
    gamma 1) follow every error. Where alpha is 0 and phi 1, the trend is the mean change from
    season to season so far.
    """
    n, count = len(y), len(grid)
    alpha, beta, phi, gamma, omega = grid.T
    within = _second(period)
    first = y[:period]
    start = float(np.nanmean(first)) if np.isfinite(first).any() else 0.0
    level, trend = np.full(count, start), np.zeros(count)
    shape = np.where(np.isnan(first), 0.0, first - start)
    if period == 1:
        shape[:] = 0.0
    days = shape.reshape(-1, within).mean(0) if within > 1 else np.zeros(1)
    seconds = days[:, None] * (omega > 0)
    seasons = shape[:, None] - np.tile(seconds, (period // within, 1))
    out = _States(grid, *(np.zeros((n, count)) for _ in range(5)))
    missing = np.isnan(y)
    free = (alpha == 1) | (gamma == 1)
    usual, rate = np.full(count, _usual_change(y, period)), 1 / max(period, 10)
    for t in range(n):
        k, j = t % period, t % within
        trend = phi * trend
        level = level + trend
        if not missing[t]:
            error = out.error[t] = y[t] - level - seasons[k] - seconds[j]
            if t >= period:
                limit = BOUND * np.maximum(usual, LEAST)
                error = np.where(free, error, np.clip(error, -limit, limit))
                usual = usual + rate * (np.abs(error) - usual)
            level = level + alpha * error
            trend = trend + beta * error
            seasons[k] += gamma * error
            seconds[j] += omega * error
        out.level[t], out.trend[t] = level, trend
        out.season[t], out.second[t] = seasons[k], seconds[j]
    drifting = _drifting(grid)
    if drifting.any() and n > period:
        change = y[period:] - y[:-period]
        known = np.isfinite(change)
        sums = np.cumsum(np.where(known, change, 0.0)) / np.maximum(np.cumsum(known), 1)
        out.trend[period:, drifting] = sums[:, None] / period
        if period == 1:
            out.level[:, drifting] = out.error[:, drifting] + start
    return out


def _usual_change(y: Array, period: int) -> float:
    """Return the median change from the first season to the second and third."""
    change = np.abs(y[period : 3 * period] - y[: 2 * period][: len(y[period : 3 * period])])
    known = change[np.isfinite(change)]
    return float(np.median(known)) if known.size else 1.0


def _drifting(grid: Array) -> Array:
    """Return which smoothers are seasonal-naive with drift."""
    found: Array = (grid[:, 0] == 0) & (grid[:, 2] == 1)
    return found


def _places(origins: Array, horizon: int, period: int) -> Array:
    """Return the last row of the same place in the season, ``[W, H]``, for rows after origins."""
    ahead = np.arange(1, horizon + 1)
    places: Array = origins[:, None] + ahead - period * (-(-ahead // period))
    return places


def _extend(s: _States, origins: Array, horizon: int, period: int) -> Array:
    """Return forecasts ``[W, H, C]`` made after rows ``origins [W]``."""
    ahead = np.arange(1, horizon + 1)[:, None]
    damp = np.cumsum(s.grid[:, 2] ** ahead, axis=0)
    damp = np.where(_drifting(s.grid), period * -(-ahead // period), damp)
    flat = s.level[origins][:, None] + s.trend[origins][:, None] * damp
    out: Array = flat + s.season[_places(origins, horizon, period)]
    if s.grid[:, 4].any():
        out += s.second[_places(origins, horizon, _second(period))]
    return out


def _average(ahead: Array, truth: Array, apart: int) -> list[int]:
    """Choose the smoothers, each as often as it helps, whose average errs least.

    Args:
        ahead: forecasts ``[W, H, C]``; the last two are seasonal-naive, without and with drift.
        truth: what came ``[W, H]``; NaN is not known.
        apart: how many of the origins do not overlap.
    """
    known = np.isfinite(truth)
    if not known.any():
        return [0]  # nothing to compare with: the first smoother serves
    flat, came = ahead[known], truth[known]
    chosen: list[int] = []
    total = np.zeros(len(came))
    least = math.inf
    for k in range(AVERAGED):
        errors = np.abs((total[:, None] + flat) / (k + 1) - came[:, None]).mean(0)
        best = int(np.argmin(errors))
        if not errors[best] < least:
            break
        chosen.append(best)
        least = float(errors[best])
        total += flat[:, best]
    count = ahead.shape[2]
    naive = min((count - 2, count - 1), key=lambda c: float(np.abs(flat[:, c] - came).mean()))
    on = known.any(1)
    q = _quarters(ahead[on][..., chosen].mean(2), ahead[on][..., naive], truth[on], apart)
    if q == QUARTERS:
        return [naive]
    part = math.gcd(q, QUARTERS)
    return chosen * ((QUARTERS - q) // part) + [naive] * (q // part * len(chosen))


def _quarters(smooth: Array, naive: Array, truth: Array, apart: int) -> int:
    """Return the quarters of a naive forecast in the mixture with smoothers.

    The least error decides; but the smoothers were chosen from many and the naive forecast was not,
    so up to a half of it is taken where that errs by less than a standard error more.
    """
    shares = np.arange(QUARTERS + 1) / QUARTERS
    mixed = ((1 - w) * smooth + w * naive for w in shares)
    errors = np.stack([np.nanmean(np.abs(m - truth), axis=1) for m in mixed])
    best = int(np.argmin(errors.mean(1)))
    taken = best
    for q in range(best + 1, QUARTERS // 2 + 1):
        more = errors[q] - errors[best]
        if len(more) > 1 and more.mean() <= more.std(ddof=1) / math.sqrt(apart):
            taken = q
    return taken


# -- one series ----------------------------------------------------------------------------------


class _Smoothers:
    """The smoothers that suit a series on one scale, that of the values or of their logarithms.

    Args:
        x: the values, divided by their unit.
        end: smoothers are chosen by their errors at origins before this row.
    """

    def __init__(self, x: Array, period: int, horizon: int, log: bool, end: int) -> None:
        self.period, self.horizon, self.log = period, horizon, log
        y = np.log(x) if log else x
        grid = _grid(period)
        states = _smooth(y, period, grid)
        origins = _origins(end, period, horizon)
        some = origins[:: max(1, len(origins) * horizon // 6000)]
        truth = _ahead(x, some, horizon)
        apart = max(1, min(len(some), int(origins[-1] - origins[0]) // horizon + 1))
        ahead = self._raw(_extend(states, some, horizon, period))
        self.states = states.pick(_average(ahead, truth, apart))
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
        out: Array = _extend(self.states, origins, self.horizon, self.period).mean(2)
        last = np.clip(self.states.error.mean(1)[origins], -self.limit, self.limit)
        return self._raw(out + last[:, None] * self.carry ** np.arange(1, self.horizon + 1))


class _Series:
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
        each = [_Smoothers(self.x, self.period, self.horizon, log, end) for log in scales]
        most = WORSE * min(s.error for s in each)
        self.smoothers = [s for s in each if s.error <= most]
        self.level = self._mean([s.level for s in self.smoothers])
        self.error = np.nan_to_num(self.y - self._mean([s.fitted for s in self.smoothers]))
        origins = _origins(end, self.period, self.horizon)
        self.scale = _spread(self.truth(origins) - self.base(origins))
        self.error_scale = _spread(self.error[self.period : end])
        self.level_scale = _spread((self.y - self.level)[:end])
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
        return _ahead(self.y, origins, self.horizon)

    def base(self, origins: Array) -> Array:
        """Return the forecasts of the smoothers ``[W, H]``."""
        return self._mean([s.base(origins) for s in self.smoothers])

    def inputs(self, origins: Array, window: int, base: Array) -> Array:
        """Return what the network is told of rows around origins, ``[W, window + H, F]``."""
        horizon, period = self.horizon, self.period
        short = _second(period)
        filled = np.where(np.isnan(self.y), self.level, self.y)
        season, near = (_lagged(filled, k) for k in (period, short))
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
        ahead[..., 2] = (filled[_places(origins, horizon, period)] - base) / self.scale
        ahead[..., 3] = (filled[_places(origins, horizon, short)] - base) / self.scale
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
        """Numbers that the network is told at a step."""
        return CHANNELS + int(self.known.shape[1] + self.observed.shape[1])


def _ahead(y: Array, origins: Array, horizon: int) -> Array:
    """Return what came after origins, ``[W, H]``."""
    ahead: Array = y[origins[:, None] + np.arange(1, horizon + 1)]
    return ahead


def _origins(end: int, period: int, horizon: int) -> Array:
    """Return past origins at which forecasts are compared with what came before ``end``."""
    last = end - horizon - 1
    first = min(max(period - 1, 3, last // 3), last)
    return np.unique(np.linspace(first, last, MOST_ORIGINS).astype(int))


def _spread(a: Array) -> float:
    """Return the mean absolute value of what is known; 1 where that is nothing."""
    known = np.abs(a[np.isfinite(a)])
    return float(known.mean()) if known.size and known.mean() > 1e-12 else 1.0


def _lagged(y: Array, lag: int) -> Array:
    out = np.zeros_like(y)
    out[lag:] = y[lag:] - y[:-lag]
    return out


Part = tuple[_Series, Array, Array, Array]  # with base, correction and truth at held-out origins

# -- checks --------------------------------------------------------------------------------------


def _checked(series: Any, season: int) -> list[Array]:
    """Return the series as float64; an error says what is wrong with which."""
    if isinstance(series, np.ndarray) and series.ndim == 1:
        raise TypeError("series: expected a list of arrays, got one array; give [array]")
    if not len(series):
        raise ValueError("series: expected at least one array, got none")
    out = []
    for k, values in enumerate(series):
        a = _check.array(f"series[{k}]", values, 1)
        if a.dtype.kind not in "iuf":
            raise TypeError(f"series[{k}]: expected numbers, got {a.dtype}")
        a = a.astype(np.float64)
        if np.isinf(a).any():
            raise ValueError(f"series[{k}]: expected finite numbers or NaN, got infinity")
        least = max(2 * season, 12)
        if len(a) < least or np.isfinite(a).sum() < max(least // 2, 8):
            what = f"{len(a)} rows, {int(np.isfinite(a).sum())} with a value"
            shorter = max(1, len(a) // 2)
            raise ValueError(
                f"series[{k}]: expected at least {least} rows, two seasons of {season}, "
                f"got {what}; give more rows, or a season of at most {shorter} (1 for none)"
            )
        out.append(a)
    return out


def _extras(name: str, given: Sequence[Array] | None, rows: list[int]) -> list[Array]:
    """Return inputs of the caller ``[n, K]`` for each series, checked."""
    if given is None:
        return [np.zeros((n, 0)) for n in rows]
    if len(given) != len(rows):
        raise ValueError(f"{name}: expected an array a series, {len(rows)}, got {len(given)}")
    out = [_check.array(f"{name}[{k}]", a, 2) for k, a in enumerate(given)]
    for k, (a, n) in enumerate(zip(out, rows)):
        if a.shape != (n, out[0].shape[1]):
            raise ValueError(f"{name}[{k}]: expected shape {(n, out[0].shape[1])}, got {a.shape}")
        if a.dtype.kind not in "iufb" or not np.isfinite(a.astype(np.float64)).all():
            raise ValueError(f"{name}[{k}]: expected finite numbers, got others; fill the gaps")
    return [a.astype(np.float64) for a in out]


def _horizon(asked: int | None, season: int, shortest: int, report: Callable[[str], None]) -> int:
    """Return the horizon: what was asked for, if the rows allow it, or what suits the season."""
    room = max(1, (shortest - season) // 3)
    if asked is not None:
        if asked > room:
            what = f"{shortest} rows and a season of {season}"
            raise ValueError(f"horizon: expected at most {room} for {what}, got {asked}")
        return asked
    if season == 1:
        wanted = 12
    elif season <= 60:
        wanted = season
    else:
        wanted = season // 7 if season % 7 == 0 and season >= 140 else 30
    horizon = min(wanted, room)
    note = "" if horizon == wanted else f", since {shortest} rows allow no more"
    report(f"horizon {horizon}{note}")
    return horizon


def seasonal_naive(values: Array, horizon: int, season: int, *, drift: bool = False) -> Array:
    """Repeat the last season; with drift, add its mean change from season to season.

    >>> seasonal_naive(np.array([1.0, 2.0, 2.0, 3.0]), 4, 2, drift=True).tolist()
    [3.0, 4.0, 4.0, 5.0]

    Args:
        values: numbers ``[n]``; in place of a missing one stands that of the season before.
        horizon: rows to forecast.
        season: rows of a season.
        drift: add the mean difference of values a season apart.

    Returns:
        The forecast ``[horizon]``.
    """
    a = values.copy()
    for t in np.flatnonzero(np.isnan(a)):
        if t >= season:
            a[t] = a[t - season]
    last = a[-season:]
    last = np.where(np.isnan(last), np.nanmean(values), last)
    out = np.resize(last, horizon)
    if drift and len(values) > season:
        change = values[season:] - values[:-season]
        if np.isfinite(change).any():
            out = out + np.nanmean(change) * (np.arange(horizon) // season + 1)
    return out


# -- the model -----------------------------------------------------------------------------------


class Forecaster:
    """A trained model of one or many series; `train` makes one.

    >>> t = np.arange(120)
    >>> series = [10 + np.sin(2 * np.pi * t / 12)]
    >>> options = ForecastOptions(horizon=6, epochs=2, members=1)
    >>> model = Forecaster.train(series, 12, options, report=lambda line: None)
    >>> model.forecast(series).shape
    (1, 6, 3)
    """

    def __init__(
        self,
        options: ForecastOptions,
        season: int,
        horizon: int,
        window: int,
        inputs: int,
    ) -> None:
        self.options, self.season, self.horizon, self.window = options, season, horizon, window
        self.members = [_network(options, inputs, k) for k in range(options.members)]
        self.log = False
        self.shrink = 0.0
        self.factor = 1.0
        self.names: list[str] = []
        self.moments: dict[str, list[list[float]]] = {}
        self.figures: dict[str, float] = {}

    @classmethod
    def train(
        cls,
        series: Sequence[Array],
        season: int,
        options: ForecastOptions | None = None,
        *,
        names: Sequence[str] | None = None,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
        report: Callable[[str], None] = print,
    ) -> Forecaster:
        """Train one model on all series.

        The last part of each series is held out to find how much of the networks' correction helps
        and to set the width of the band; on what lies before it is decided whether the networks see
        the errors of the values or of their logarithms. Then they are trained again on everything.

        Args:
            series: arrays ``[n_s]`` in the order of time; NaN is a missing value.
            season: rows of a season; 1 for none.
            options: see `ForecastOptions`.
            names: of the series, kept with the model.
            known: inputs ``[n_s, K]`` whose future is known when a forecast is made.
            observed: inputs ``[n_s, O]`` that are known up to the present only.
            report: is given lines that say what was adapted and what validation found.

        Returns:
            The trained model.

        Raises:
            TypeError: series holds something else than numbers.
            ValueError: a series is shorter than two seasons; shapes disagree; infinity is found.
        """
        options = ForecastOptions() if options is None else options
        season = _check.positive("season", season)
        data = _checked(series, season)
        lengths = [len(a) for a in data]
        extras = [_extras("known", known, lengths), _extras("observed", observed, lengths)]
        if names is not None and len(names) != len(data):
            raise ValueError(f"names: expected {len(data)}, a name a series, got {len(names)}")
        if any(len(a) > MOST_ROWS for a in data):
            report(f"of each series the last {MOST_ROWS:,} rows are used")
        shortest = min(min(len(a), MOST_ROWS) for a in data)
        horizon = _horizon(options.horizon, season, shortest, report)
        window = options.window or min(max(season, 24), 96)
        inputs = CHANNELS + sum(e[0].shape[1] for e in extras)
        model = cls(options, season, horizon, window, inputs)
        model.names = [str(n) for n in names or ()]
        for name, e in zip(("known", "observed"), extras):
            model.moments[name] = [[float(v) for v in row] for row in _moments(e)]
        model._validate(data, extras, report)
        prepared = model._prepare(data, extras)
        for one in prepared:
            one.choose(len(one.y))
        if model.shrink or model.factor:
            model._fit(prepared, [len(one.y) for one in prepared])
        return model

    def _prepare(self, data: list[Array], extras: list[list[Array]]) -> list[_Series]:
        """Put series and inputs on the model's scale; the newest rows of each."""
        out = []
        moments = (self.moments["known"], self.moments["observed"])
        for values, known, observed in zip(data, *extras):
            skip = max(0, len(values) - MOST_ROWS)
            scaled = [
                (a[skip:] - np.array(mean)) / np.array(spread) if a.shape[1] else a[skip:]
                for a, (mean, spread) in zip((known, observed), moments)
            ]
            out.append(_Series(values[skip:], self.season, self.horizon, self.log, *scaled))
        return out

    def _validate(
        self,
        data: list[Array],
        extras: list[list[Array]],
        report: Callable[[str], None],
    ) -> None:
        """Choose the scale, the share of the correction and the band's width on held-out rows."""
        rows = [min(len(a), MOST_ROWS) for a in data]
        ends = [_cut(n, self.horizon, self.season) for n in rows]
        prepared = self._prepare(data, extras)
        each = [one.choose(end) for one, end in zip(prepared, ends)]
        for name in ("plain", "log"):
            if all(name in errors for errors in each):
                sizes = [_size(one) for one in prepared]
                self.figures[name] = float(np.mean([e[name] / s for e, s in zip(each, sizes)]))
        self.log = self.figures.get("log", math.inf) < 0.99 * self.figures["plain"]
        if self.log:
            report("logarithms forecast better than the values: errors are measured on their scale")
            prepared = self._prepare(data, extras)
            for one, end in zip(prepared, ends):
                one.choose(end)
        self._fit(prepared, ends)
        parts = []
        for one, end in zip(prepared, ends):
            origins = _spaced(end - 1, len(one.y) - self.horizon - 1, 60)
            base = one.base(origins)
            parts.append((one, base, self._correction(one, origins, base), one.truth(origins)))
        middle = self.options.quantiles.index(0.5)
        errors = np.array([np.mean([_error(p, w, middle) for p in parts]) for w in SHRINKAGE])
        # Few held-out horizons are weak evidence: a part of what they say is believed.
        apart = _apart(parts)
        self.shrink = float(SHRINKAGE[int(np.argmin(errors))]) * apart / (apart + 2)
        self.figures |= {"base_error": float(errors[0]), "error": float(errors.min())}
        gain = 1 - errors.min() / errors[0] if errors[0] > 0 else 0.0
        if self.shrink:
            report(
                f"networks: {self.shrink:.0%} of their correction is used, which lowers the error "
                f"on held-out rows by {gain:.1%}"
            )
        else:
            report("networks: their correction does not lower the error on held-out rows: not used")
        self.factor = _width(parts, self.shrink, self.options.quantiles)

    def _fit(self, prepared: list[_Series], ends: list[int]) -> None:
        """Train the members anew on windows whose targets lie before ``ends``."""
        windows, targets = [], []
        total = sum(max(end - self.horizon, 1) for end in ends)
        for one, end in zip(prepared, ends):
            last = end - self.horizon - 1
            most = max(4, MOST_WINDOWS * max(end - self.horizon, 1) // total)
            origins = _spaced(min(max(self.season - 1, 3), last), last, most)
            base = one.base(origins)
            windows.append(one.inputs(origins, self.window, base))
            targets.append((one.truth(origins) - base) / one.scale)
        x = np.ascontiguousarray(np.concatenate(windows).transpose(1, 0, 2))
        target = np.concatenate(targets).T[:, :, None].astype(np.float32)
        for k in range(self.options.members):
            self.members[k] = _network(self.options, x.shape[2], k)
            _train(self.members[k], x, target, self.window, self.options, k)

    def _correction(self, one: _Series, origins: Array, base: Array) -> Array:
        """Return the median of the members' quantiles ``[W, H, Q]``, in units of the error."""
        x = one.inputs(origins, self.window, base).transpose(1, 0, 2)
        outputs = [m(np.ascontiguousarray(x))[0][self.window :] for m in self.members]
        ahead = np.median(np.stack(outputs).astype(np.float64), axis=0)
        return np.sort(ahead.transpose(1, 0, 2), axis=2)

    def forecast(
        self,
        series: Sequence[Array],
        *,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
    ) -> Array:
        """Forecast what comes after the end of each series.

        Args:
            series: arrays ``[n_s]``, those of the training continued, or others like them.
            known: inputs ``[n_s + horizon, K]``, if the model was trained with such.
            observed: inputs ``[n_s, O]``, if the model was trained with such.

        Returns:
            Quantiles ``[S, horizon, Q]`` in the units of the series, none of them NaN.

        Raises:
            ValueError: a series is shorter than two seasons; inputs are missing or of another
                shape; a forecast is beyond the range of float64.
        """
        data = _checked(series, self.season)
        rows = [len(a) for a in data]
        extras = [
            _extras("known", known, [n + self.horizon for n in rows]),
            _extras("observed", observed, rows),
        ]
        for name, e in zip(("known", "observed"), extras):
            width = len(self.moments[name][0])
            if e[0].shape[1] != width:
                raise ValueError(f"{name}: expected {width} columns, got {e[0].shape[1]}")
        if self.log:
            for k, a in enumerate(data):
                if np.nanmin(a) <= 0:
                    raise ValueError(
                        f"series[{k}]: expected values above 0, since the model forecasts "
                        f"logarithms, got {np.nanmin(a):g}; train again with this series"
                    )
        for k, a in enumerate(data):
            if len(a) - self.horizon < self.season + 1:
                least = self.season + self.horizon
                raise ValueError(f"series[{k}]: expected more than {least} rows, got {len(a)}")
        out = []
        for k, one in enumerate(self._prepare(data, extras)):
            one.choose(len(one.y))
            origin = np.array([len(one.y) - 1])
            base = one.base(origin)
            correction = self._correction(one, origin, base)
            quantiles = self.options.quantiles
            ahead = _band(base, correction, one.scale, self.shrink, self.factor, quantiles)
            with np.errstate(over="ignore"):
                values = one.raw(ahead[0]) * one.unit
            if not np.isfinite(values).all():
                raise ValueError(
                    f"series[{k}]: its forecast is beyond the range of float64; divide the series, "
                    f"whose largest value is {one.unit:g}"
                )
            out.append(values)
        return np.stack(out)

    @classmethod
    def backtest(
        cls,
        series: Sequence[Array],
        season: int,
        options: ForecastOptions | None = None,
        *,
        origins: int = 4,
        refit: bool = False,
        names: Sequence[str] | None = None,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
        report: Callable[[str], None] = print,
    ) -> dict[str, Any]:
        """Measure forecasts from several origins, each made from what lies before it alone.

        Args:
            series, season, options, names, known, observed, report: see `train`.
            origins: how many; they lie a horizon apart at the end of each series, fewer where the
                series are short.
            refit: train a model at every origin; otherwise one before the first serves all.

        Returns:
            ``mae``, ``naive_mae`` (seasonal-naive), ``drift_mae`` (with drift), ``ratio`` (to the
            better of the two; None where that is zero), ``coverage`` of the band between the
            outermost quantiles, ``horizon``, ``origins``, and ``series``, a list with the same
            figures of each. Errors over all are means of the series'.
        """
        options = ForecastOptions() if options is None else options
        _check.positive("origins", origins)
        data = _checked(series, season)
        shortest = min(len(a) for a in data)
        horizon = options.horizon
        if horizon is None:
            horizon = _horizon(None, season, min(shortest * 3 // 4, MOST_ROWS), report)
        room = (shortest - max(2 * season, 12, season + 3 * horizon)) // horizon
        if room < 1:
            raise ValueError(
                f"series: expected at least {max(2 * season, 12, season + 3 * horizon) + horizon} "
                f"rows to test a horizon of {horizon}, got {shortest}; give a smaller horizon"
            )
        if room < origins:
            report(f"{room} origins in place of {origins}, since {shortest} rows allow no more")
            origins = room
        options = ForecastOptions(**{**asdict(options), "horizon": horizon})
        rows: list[list[dict[str, float]]] = [[] for _ in data]
        model = None
        for k in range(origins, 0, -1):
            ends = [len(a) - k * horizon for a in data]
            past = [a[:end] for a, end in zip(data, ends)]
            before = None if observed is None else [a[:end] for a, end in zip(observed, ends)]
            if model is None or refit:
                now = None if known is None else [a[:end] for a, end in zip(known, ends)]
                model = cls.train(
                    past,
                    season,
                    options,
                    names=names,
                    known=now,
                    observed=before,
                    report=report,
                )
            ahead = None if known is None else [a[: e + horizon] for a, e in zip(known, ends)]
            forecasts = model.forecast(past, known=ahead, observed=before)
            for s, end in enumerate(ends):
                truth = data[s][end : end + horizon]
                rows[s].append(_measured(truth, forecasts[s], past[s], season, options.quantiles))
        assert model is not None
        each = [_summed(r) for r in rows]
        for s, name in enumerate(model.names):
            each[s]["name"] = name
        return {**_summed(each), "horizon": horizon, "origins": origins, "series": each}

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return tensors and JSON-able facts, from which `from_state` makes the same model."""
        tensors: dict[str, Array] = {}
        for k, member in enumerate(self.members):
            tensors |= {f"{k}.{name}": a for name, a in member.state_dict().items()}
        facts = {
            "format": FORMAT,
            "options": {**asdict(self.options), "quantiles": list(self.options.quantiles)},
            "season": self.season,
            "horizon": self.horizon,
            "window": self.window,
            "log": self.log,
            "shrink": self.shrink,
            "factor": self.factor,
            "names": self.names,
            "moments": self.moments,
            "figures": self.figures,
        }
        return tensors, facts

    @classmethod
    def from_state(cls, tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> Forecaster:
        """Make the model that `state` described; everything is checked before it is allocated.

        Args:
            tensors: the parameters by name.
            facts: what `state` returned beside them.

        Returns:
            The model.

        Raises:
            ValueError: facts and tensors do not belong together, or are damaged.
        """
        if facts.get("format") != FORMAT:
            raise ValueError(
                f"facts: expected format {FORMAT}, got {facts.get('format')!r}; "
                "the model is of another version of ostinato"
            )
        try:
            given = dict(facts["options"])
            unknown = set(given) - {f.name for f in fields(ForecastOptions)}
            if unknown:
                raise ValueError(f"expected known options, got {sorted(unknown)}")
            options = ForecastOptions(**given)
            season, horizon, window = (
                _bounded(name, facts[name], MOST_ROWS) for name in ("season", "horizon", "window")
            )
            numbers = [float(facts["shrink"]), float(facts["factor"])]
            if not all(math.isfinite(v) and v >= 0 for v in numbers) or numbers[0] > 1:
                raise ValueError(f"expected shrink and factor of at least 0, got {numbers}")
            moments = _checked_moments(facts["moments"])
            names = [str(n) for n in facts["names"]]
            figures = {str(k): float(v) for k, v in dict(facts["figures"]).items()}
            inputs = CHANNELS + sum(len(m[0]) for m in moments.values())
            _check_tensors(tensors, options, inputs)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            said = f"facts: expected those of a forecaster, got damaged ones: {what}"
            raise ValueError(said) from None
        model = cls(options, season, horizon, window, inputs)
        model.log, (model.shrink, model.factor) = bool(facts["log"]), numbers
        model.names, model.moments, model.figures = names, moments, figures
        for k, member in enumerate(model.members):
            prefix = f"{k}."
            own = {n[len(prefix) :]: a for n, a in tensors.items() if n.startswith(prefix)}
            member.load_state_dict(own)
        return model


def _network(options: ForecastOptions, inputs: int, member: int) -> nn.Sequential:
    seeds = np.random.SeedSequence([options.seed, member]).spawn(2)
    rngs = [np.random.default_rng(s) for s in seeds]
    cell = CELLS[options.cell](inputs, options.hidden, options.layers, rng=rngs[0])
    return nn.Sequential(cell, nn.Linear(options.hidden, len(options.quantiles), rng=rngs[1]))


def _train(
    model: nn.Sequential,
    x: Array,
    target: Array,
    window: int,
    options: ForecastOptions,
    member: int,
) -> None:
    """Run every epoch; the learning rate falls to zero along a cosine."""
    known = target[np.isfinite(target)]
    if not known.size:
        return
    with model.write() as parameters:  # the first outputs are close to the quantiles of the errors
        weight = parameters["1.weight"]
        weight *= np.float32(0.1)
        parameters["1.bias"][:] = np.quantile(known, options.quantiles)
    rng = np.random.default_rng([options.seed, member, 1])
    count = x.shape[1]
    batch = min(options.batch, max(8, count // 6))
    steps = options.epochs * -(-count // batch)
    optimizer = optim.AdamW(optim.Cosine(options.lr, steps=steps), weight_decay=0.01)
    loss = Pinball(options.quantiles)
    for _ in range(options.epochs):
        for rows in np.array_split(rng.permutation(count), -(-count // batch)):
            (y, _), pullback = model.vjp(np.ascontiguousarray(x[:, rows]))
            _, d = loss(y[window:], target[:, rows])
            dy = np.zeros_like(y)
            dy[window:] = d
            model.zero_grad()
            pullback(dy, need_dx=False)
            optim.clip_by_norm(model, 1.0)
            optimizer.step(model)


def _spaced(first: int, last: int, most: int) -> Array:
    """Return at most so many origins from first to last, evenly spaced, the last among them."""
    count = min(most, last - first + 1)
    spaced: Array = np.unique(np.linspace(first, last, max(count, 1)).round().astype(int))
    return spaced


def _cut(n: int, horizon: int, season: int) -> int:
    """Return how many rows come before the validation part."""
    held = horizon + max(min(horizon, season), n // 8)
    return max(n - held, min(season + 1 + horizon, n - horizon))


def _size(one: _Series) -> float:
    """Return the mean absolute deviation of a series, the unit of its errors among others."""
    raw = one.raw(one.y)
    return _spread(raw - np.nanmean(raw))


def _error(part: Part, shrink: float, middle: int) -> float:
    """Return the mean absolute error with a share of the correction, in units of the series."""
    one, base, correction, truth = part
    gap = np.abs(one.raw(base + shrink * one.scale * correction[..., middle]) - one.raw(truth))
    known = gap[np.isfinite(gap)]
    return float(known.mean() / _size(one)) if known.size else 0.0


def _apart(parts: list[Part]) -> int:
    """Return how many held-out horizons do not overlap."""
    count = 0
    for one, _, _, truth in parts:
        n, horizon = len(one.y), one.horizon
        count += 1 + (n - truth.shape[1] - _cut(n, horizon, one.period)) // horizon
    return count


def _band(
    base: Array,
    correction: Array,
    scale: float,
    shrink: float,
    factor: float,
    quantiles: tuple[float, ...],
) -> Array:
    """Return quantiles ``[W, H, Q]``: the corrected median, and a band of the calibrated width."""
    middle = quantiles.index(0.5)
    median = correction[..., middle : middle + 1]
    ahead: Array = base[..., None] + scale * (shrink * median + factor * (correction - median))
    return ahead


def _width(parts: list[Part], shrink: float, quantiles: tuple[float, ...]) -> float:
    """Return the factor that gives the outermost quantiles their share on held-out rows."""
    middle = quantiles.index(0.5)
    ratios = []
    for one, base, correction, truth in parts:
        median = correction[..., middle]
        gap = (truth - base) / one.scale - shrink * median
        lower = np.maximum(median - correction[..., 0], 1e-6)
        upper = np.maximum(correction[..., -1] - median, 1e-6)
        ratios.append((np.where(gap < 0, -gap / lower, gap / upper))[np.isfinite(gap)])
    every = np.concatenate(ratios)
    if not every.size:
        return 1.0
    share = quantiles[-1] - quantiles[0]
    # Errors of one origin go together: few held-out horizons say little, so the band is wider then.
    width = float(np.quantile(every, share)) * _students_factor((1 + share) / 2, _apart(parts) + 1)
    return float(np.clip(width, 0.0, 10.0))


def _students_factor(level: float, freedom: int) -> float:
    """Return the quantile of Student's t over that of the normal distribution.

    It is what the width of a normal sample's interval is multiplied by if its scale is estimated
    from so few values. Source: Cornish-Fisher series, Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf(level)
    if z < 1e-6:
        return 1.0
    terms = (
        (z**2 + 1) / 4,
        (5 * z**4 + 16 * z**2 + 3) / 96,
        (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384,
    )
    more: float = sum(term / freedom ** (k + 1) for k, term in enumerate(terms))
    return 1 + more


def _moments(arrays: list[Array]) -> Iterator[Array]:
    """Yield mean and spread of each column over all series."""
    every = np.concatenate(arrays)
    yield every.mean(0)
    spread = every.std(0)
    yield np.where(spread > 0, spread, 1.0)


def _measured(
    truth: Array, forecast: Array, past: Array, season: int, quantiles: tuple[float, ...]
) -> dict[str, float]:
    """Return the figures of one forecast; what is missing does not count."""
    on = np.isfinite(truth)
    if not on.any():
        return {}
    median = forecast[:, quantiles.index(0.5)]
    out = {"mae": float(np.abs(median - truth)[on].mean())}
    for name, drift in (("naive_mae", False), ("drift_mae", True)):
        gap = np.abs(seasonal_naive(past, len(truth), season, drift=drift) - truth)
        out[name] = float(gap[on].mean())
    within = (truth >= forecast[:, 0]) & (truth <= forecast[:, -1])
    return {**out, "coverage": float(within[on].mean())}


def _summed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of figures and the ratio of errors."""
    known = [r for r in rows if r]
    keys = ("mae", "naive_mae", "drift_mae", "coverage")
    out: dict[str, Any] = dict.fromkeys(keys, math.nan)
    if known:
        out = {k: float(np.mean([r[k] for r in known if k in r])) for k in keys}
    least = min(out["naive_mae"], out["drift_mae"])
    out["ratio"] = out["mae"] / least if least > 0 else None
    return out


def _bounded(name: str, value: object, most: int) -> int:
    n = _check.positive(name, value)
    if n > most:
        raise ValueError(f"{name}: expected at most {most}, got {n}")
    return n


def _checked_moments(given: Any) -> dict[str, list[list[float]]]:
    out = {}
    for name in ("known", "observed"):
        mean, spread = ([float(v) for v in row] for row in given[name])
        if len(mean) != len(spread) or not all(map(math.isfinite, mean + spread)):
            raise ValueError(f"expected finite moments of {name}, got others")
        if not all(v > 0 for v in spread):
            raise ValueError(f"expected spreads of {name} above 0, got others")
        out[name] = [mean, spread]
    return out


def _check_tensors(tensors: Mapping[str, Array], options: ForecastOptions, inputs: int) -> None:
    """Compare names and shapes of the parameters with what the options ask for."""
    wide, gates = options.hidden, GATES[options.cell] * options.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    if options.members * (4 * options.layers + 2) != len(tensors):
        what = f"{options.members} members of {options.layers} layers"
        raise ValueError(f"expected {what}, got {len(tensors)} tensors")
    for k in range(options.members):
        for layer in range(options.layers):
            columns = inputs if layer == 0 else wide
            shapes[f"{k}.0.weight_ih_l{layer}"] = (gates, columns)
            shapes[f"{k}.0.weight_hh_l{layer}"] = (gates, wide)
            shapes[f"{k}.0.bias_ih_l{layer}"] = (gates,)
            shapes[f"{k}.0.bias_hh_l{layer}"] = (gates,)
        shapes[f"{k}.1.weight"] = (len(options.quantiles), wide)
        shapes[f"{k}.1.bias"] = (len(options.quantiles),)
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            got = tensors[name].shape if name in tensors else "none"
            raise ValueError(f"expected {name} of shape {shape}, got {got}")
        if tensors[name].dtype != np.float32 or not np.isfinite(tensors[name]).all():
            raise ValueError(f"expected {name} of finite float32 numbers, got others")
