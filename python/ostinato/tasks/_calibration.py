"""Calibration on held-out rows: how much of a correction helps, and the width of the band."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .._check import Array
from ._scaled import ScaledSeries, spread_of

SHRINKAGE = (0.0, 0.25, 0.5, 0.75, 1.0)


class HeldOut(NamedTuple):
    """Forecasts of one series at held-out origins, and what came.

    Attributes:
        series: the series, scaled.
        base: forecasts of the smoothers ``[W, H]``.
        correction: quantiles of the networks ``[W, H, Q]``, in units of the errors.
        truth: what came ``[W, H]``; NaN is not known.
    """

    series: ScaledSeries
    base: Array
    correction: Array
    truth: Array


def spaced(first: int, last: int, most: int) -> Array:
    """Return at most so many origins from first to last, evenly spaced, the last among them."""
    count = min(most, last - first + 1)
    spaced: Array = np.unique(np.linspace(first, last, max(count, 1)).round().astype(int))
    return spaced


def rows_before_validation(n: int, horizon: int, season: int) -> int:
    """Return how many rows come before the validation part."""
    held = horizon + max(min(horizon, season), n // 8)
    return max(n - held, min(season + 1 + horizon, n - horizon))


def size_of(one: ScaledSeries) -> float:
    """Return the mean absolute deviation of a series, the unit of its errors among others."""
    raw = one.raw(one.y)
    return spread_of(raw - np.nanmean(raw))


def relative_error(part: HeldOut, shrink: float, middle: int) -> float:
    """Return the mean absolute error with a share of the correction, in units of the series."""
    one, base, correction, truth = part
    gap = np.abs(one.raw(base + shrink * one.scale * correction[..., middle]) - one.raw(truth))
    known = gap[np.isfinite(gap)]
    return float(known.mean() / size_of(one)) if known.size else 0.0


def count_apart(parts: list[HeldOut]) -> int:
    """Return how many held-out horizons do not overlap."""
    count = 0
    for one, _, _, truth in parts:
        n, horizon = len(one.y), one.horizon
        left = n - truth.shape[1] - rows_before_validation(n, horizon, one.period)
        count += 1 + left // horizon
    return count


def band(
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


def band_factor(parts: list[HeldOut], shrink: float, quantiles: tuple[float, ...]) -> float:
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
    # Errors of one origin are correlated. Few held-out horizons say little about their scale, and
    # the band has to be wider.
    widening = students_factor((1 + share) / 2, count_apart(parts) + 1)
    width = float(np.quantile(every, share)) * widening
    return float(np.clip(width, 0.0, 10.0))


def students_factor(level: float, freedom: int) -> float:
    """Return the quantile of Student's t over that of the normal distribution.

    It is what the width of a normal sample's interval is multiplied by if its scale is estimated
    from so few values.

    >>> round(students_factor(0.975, 2), 3)  # 4.303 over 1.960
    2.195
    """
    z = NormalDist().inv_cdf(level)
    if z < 1e-6:
        return 1.0
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t over the root of the freedom
    for _ in range(60):
        angle = (low + high) / 2
        if _within(angle, freedom) > 2 * level - 1:
            high = angle
        else:
            low = angle
    return math.tan(low) * math.sqrt(freedom) / z


def _within(angle: float, freedom: int) -> float:
    """Return the probability of ``|t| < tan(angle) sqrt(freedom)`` for Student's t.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    odd, cosine = freedom % 2, math.cos(angle)
    term, total = cosine if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    inner = math.sin(angle) * total
    return 2 / math.pi * (angle + inner) if odd else inner
