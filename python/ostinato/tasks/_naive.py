"""The seasonal-naive forecast, and the errors of forecasts beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import Array


def seasonal_naive(values: Array, horizon: int, season: int, *, drift: bool = False) -> Array:
    """Repeat the last season; with drift, add its mean change from season to season.

    >>> seasonal_naive(np.array([1.0, 2.0, 2.0, 3.0]), 4, 2, drift=True).tolist()
    [3.0, 4.0, 4.0, 5.0]

    Args:
        values: numbers ``[n]``; a missing one is replaced by that of the season before.
        horizon: rows to forecast.
        season: rows of a season.
        drift: add the mean difference of values a season apart.

    Returns:
        The forecast ``[horizon]``.
    """
    values = np.asarray(values)
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


def measured(
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


def summed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of figures and the ratio of errors; rows without figures do not count."""
    known = [r for r in rows if r and not math.isnan(r["mae"])]
    keys = ("mae", "naive_mae", "drift_mae", "coverage")
    out: dict[str, Any] = dict.fromkeys(keys, math.nan)
    if known:
        out = {k: float(np.mean([r[k] for r in known if k in r])) for k in keys}
    least = min(out["naive_mae"], out["drift_mae"])
    out["ratio"] = out["mae"] / least if least > 0 else None
    return out


readable(globals())
