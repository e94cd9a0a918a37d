"""Exponential smoothing: many smoothers at once, and the choice of those that suit a series.

Sources: Holt (1957), Winters (1960); a damped trend as Gardner, McKenzie (1985); a second season as
Taylor (2003).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from .._check import Array

AVERAGED = 8  # smoothers at most whose forecasts are averaged
QUARTERS = 4  # of a mixture of smoothers and a naive forecast
BOUND = 3.0  # on an error that changes the states, in mean absolute errors
LEAST = 1e-3  # of the unit of a series: bounds do not fall below that of it


def second_season(season: int) -> int:
    """Return the rows of a day where a season is a week of at least 28 rows; otherwise 1."""
    return season // 7 if season % 7 == 0 and season >= 28 else 1


def candidates(season: int) -> Array:
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
    if second_season(season) > 1:
        steps = (0.03, 0.1, 0.3)
        for alpha in (0.0, 0.03, 0.1, 0.3, 0.6, 0.9):
            for beta, phi in trends[:2] if alpha else trends[:1]:
                pairs = itertools.product(steps, steps)
                rows += [(alpha, beta * alpha, phi, gamma, omega) for gamma, omega in pairs]
    seasonal = float(season > 1)
    rows.append((1 - seasonal, 0.0, 0.0, seasonal, 0.0))  # seasonal-naive
    rows.append((0.0, 0.0, 1.0, seasonal, 0.0))  # seasonal-naive with drift: see smooth
    return np.array(rows)


@dataclass
class States:
    """States of smoothers after each row, ``[n, C]``, and how far the row was from its forecast."""

    grid: Array
    level: Array
    trend: Array
    season: Array
    second: Array
    error: Array

    def pick(self, chosen: list[int]) -> States:
        """Return the states of some smoothers."""
        kept = (self.level, self.trend, self.season, self.second, self.error)
        return States(self.grid[chosen], *(a[:, chosen] for a in kept))


def smooth(y: Array, period: int, grid: Array) -> States:
    """Run additive Holt-Winters smoothing with a damped trend; a missing value changes nothing.

    A second season is added as Taylor (2003) does. An error changes the states by at most BOUND
    times the mean absolute error of about a season (after Gelper, Fried, Croux 2010), so that an
    unusual day does not spoil them; a naive forecast and a level that is the last value (alpha or
    gamma 1) follow every error. Where alpha is 0 and phi 1, the trend is the mean change from
    season to season so far.
    """
    n, count = len(y), len(grid)
    alpha, beta, phi, gamma, omega = grid.T
    within = second_season(period)
    first = y[:period]
    start = float(np.nanmean(first)) if np.isfinite(first).any() else 0.0
    level, trend = np.full(count, start), np.zeros(count)
    shape = np.where(np.isnan(first), 0.0, first - start)
    if period == 1:
        shape[:] = 0.0
    days = shape.reshape(-1, within).mean(0) if within > 1 else np.zeros(1)
    seconds = days[:, None] * (omega > 0)
    seasons = shape[:, None] - np.tile(seconds, (period // within, 1))
    out = States(grid, *(np.zeros((n, count)) for _ in range(5)))
    missing = np.isnan(y)
    free = (alpha == 1) | (gamma == 1)
    usual, rate = np.full(count, usual_change(y, period)), 1 / max(period, 10)
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
    drifting = is_drifting(grid)
    if drifting.any() and n > period:
        change = y[period:] - y[:-period]
        known = np.isfinite(change)
        sums = np.cumsum(np.where(known, change, 0.0)) / np.maximum(np.cumsum(known), 1)
        out.trend[period:, drifting] = sums[:, None] / period
        if period == 1:
            rows = np.arange(n)
            last = np.maximum.accumulate(np.where(missing, -1, rows))  # the last known one
            since = (rows - last)[:, None] * out.trend[:, drifting]
            carried = np.where(last[:, None] < 0, 0.0, out.error[last][:, drifting] + since)
            out.level[:, drifting] = carried + start
    return out


def usual_change(y: Array, period: int) -> float:
    """Return the median change from the first season to the second and third."""
    change = np.abs(y[period : 3 * period] - y[: 2 * period][: len(y[period : 3 * period])])
    known = change[np.isfinite(change)]
    return float(np.median(known)) if known.size else 1.0


def is_drifting(grid: Array) -> Array:
    """Return which smoothers are seasonal-naive with drift."""
    found: Array = (grid[:, 0] == 0) & (grid[:, 2] == 1)
    return found


def places(origins: Array, horizon: int, period: int) -> Array:
    """Return the last row of the same place in the season, ``[W, H]``, for rows after origins."""
    ahead = np.arange(1, horizon + 1)
    places: Array = origins[:, None] + ahead - period * (-(-ahead // period))
    return places


def extend(s: States, origins: Array, horizon: int, period: int) -> Array:
    """Return forecasts ``[W, H, C]`` made after rows ``origins [W]``."""
    ahead = np.arange(1, horizon + 1)[:, None]
    damp = np.cumsum(s.grid[:, 2] ** ahead, axis=0)
    damp = np.where(is_drifting(s.grid), period * -(-ahead // period), damp)
    flat = s.level[origins][:, None] + s.trend[origins][:, None] * damp
    out: Array = flat + s.season[places(origins, horizon, period)]
    if s.grid[:, 4].any():
        out += s.second[places(origins, horizon, second_season(period))]
    return out


def average(ahead: Array, truth: Array, apart: int) -> list[int]:
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
    q = quarters_of_naive(ahead[on][..., chosen].mean(2), ahead[on][..., naive], truth[on], apart)
    if q == QUARTERS:
        return [naive]
    part = math.gcd(q, QUARTERS)
    return chosen * ((QUARTERS - q) // part) + [naive] * (q // part * len(chosen))


def quarters_of_naive(smooth: Array, naive: Array, truth: Array, apart: int) -> int:
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
