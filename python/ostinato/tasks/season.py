"""The season of a series: candidates of calendar and spectrum, tested on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array

__all__ = ["Season", "find_season"]

MOST_ROWS = 65_536  # the last rows that are looked at: six weeks of minutes
# How far the log p-value must lie below that of the best of as many white frequencies.
CERTAIN = 7.0
TINY = 1e-12  # share of the variance below which what is left counts as rounding
CLEARLY = 0.8  # share of a season's held-out error that a multiple of it must stay below,
SOMEWHAT = 0.95  # and where its own harmonics stand out twice as far as they must
LINES = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # numbers of harmonics that are tried
# Seasons of the calendar by the seconds of a step; a month counts as 30.44 days.
UNITS = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "month": 2_629_746.0,
    "quarter": 7_889_238.0,
    "year": 31_556_952.0,
}
CYCLES = ("minute", "hour", "day", "week", "year")
# What is tried where the step is not known: seasons that tables of real data have.
USUAL = (4, 7, 12, 24, 48, 52, 96, 144, 168, 288, 336, 365, 672, 1440)
FEATURED = {"business day": (5, 21, 261)}


@dataclass(frozen=True)
class Season:
    """A season and why it was chosen.

    >>> Season(12, "given").period
    12

    Attributes:
        period: rows of a season; 1 where there is none.
        why: one line for the screen.
    """

    period: int
    why: str


def find_season(
    values: Array, step_seconds: float | None = None, calendar: str | None = None
) -> Season:
    """Find the season of a series.

    A candidate is a season of the calendar, a peak of the spectrum of the detrended series, or one
    of its autocorrelation. Its harmonics must stand out of first-order autoregressive noise (white
    noise and random walks are such), and it must forecast held-out blocks better than a level, a
    trend and the last value do.

    >>> t = np.arange(500)
    >>> find_season(np.sin(t * 2 * np.pi / 24)).period
    24
    >>> find_season(np.random.default_rng(0).normal(size=300)).period
    1

    Args:
        values: numbers ``[n]`` in the order of time; NaN is a missing value.
        step_seconds: seconds from row to row, where they are known.
        calendar: the name of the step where it is known: "second", "minute", "hour", "day",
            "business day", "week", "month", "quarter" or "year".

    Returns:
        The season, with a period of 1 where none is found.

    Raises:
        TypeError: values is no array of numbers.
        ValueError: values is not one-dimensional, or holds infinity; the step is not known.
    """
    x, seen = _prepare(values)
    usual, name = _calendar(step_seconds, calendar)
    n = len(x)
    if n < 8 or seen.sum() < max(8, n // 4):
        return Season(1, f"none: {int(seen.sum())} values are too few to tell")
    if np.ptp(x) == 0:
        return Season(1, "none: the values are all equal")
    scores: dict[int, float] = {}
    for period in _candidates(x, usual):
        whole = round(period)
        shortest = 2 if whole in usual and name else 3
        if 2 <= whole <= n / shortest:
            scores[whole] = max(scores.get(whole, 0.0), _score(x, float(whole)))
    limit = math.log(n / 2) + CERTAIN
    tried = 0
    while scores and tried < 4:
        best = _preferred(x, seen, scores, usual)
        if scores[best] < limit:
            break
        explained = _held_out(x, seen, best, best)
        longer = sorted(p for p in usual & set(scores) if p > best and p % best == 0)
        for period in longer:  # a week of days that differ, say
            if _adds(x, seen, period, best):
                best, explained = period, _held_out(x, seen, period, best)
        if explained > 0.02:
            named = f" ({name[best]})" if best in name else ""
            return Season(
                best, f"{best}{named}: explains {explained:.0%} of the variance of held-out data"
            )
        del scores[best]
        tried += 1
    if tried:
        return Season(1, "none: no candidate forecasts held-out data better than no season")
    return Season(1, "none: no period stands out of the noise")


def _prepare(values: Array) -> tuple[Array, Array]:
    """Return the values within [-1, 1], gaps filled by straight lines, and where values were."""
    x = _check.array("values", values, 1)
    if x.dtype.kind not in "iufb":
        raise TypeError(f"values: expected numbers, got {x.dtype}")
    x = x[-MOST_ROWS:].astype(np.float64)
    seen = ~np.isnan(x)
    if np.isinf(x).any():
        raise ValueError("values: expected finite numbers or NaN, got infinity")
    if not seen.any():
        return np.zeros(len(x)), seen
    first, last = np.flatnonzero(seen)[[0, -1]]
    x, seen = x[first : last + 1], seen[first : last + 1]
    x = x / (np.abs(x[seen]).max() or 1.0)
    x -= x[seen].mean()
    x /= np.abs(x[seen]).max() or 1.0
    where = np.arange(len(x))
    return np.interp(where, where[seen], x[seen]), seen


def _calendar(step_seconds: float | None, calendar: str | None) -> tuple[set[int], dict[int, str]]:
    """Return the seasons to prefer and their names."""
    if calendar is not None:
        if calendar in FEATURED:
            return set(FEATURED[calendar]), {5: "a week of business days", 261: "a year"}
        _check.choice("calendar", calendar, (*UNITS, *FEATURED))
        step_seconds = UNITS[calendar] if step_seconds is None else step_seconds
    if step_seconds is None:
        return set(USUAL), {}
    if not (math.isfinite(step_seconds) and step_seconds > 0):
        raise ValueError(f"step_seconds: expected a number above 0, got {step_seconds!r}")
    names: dict[int, str] = {}
    for cycle in CYCLES:
        period = UNITS[cycle] / step_seconds
        whole = round(period)
        # A week of months is no season; a year of weeks (52.18) and of days (365.24) is.
        if whole >= 2 and abs(period - whole) <= 0.01 * period:
            unit = next((u for u, s in UNITS.items() if abs(s - step_seconds) < 0.04 * s), None)
            names[whole] = f"a {cycle} of {unit}s" if unit else f"a {cycle}"
    return set(names), names


def _trend(n: int) -> Array:
    t = np.linspace(-1, 1, n)
    return np.stack([np.ones(n), t, t * t], axis=1)


def _candidates(x: Array, usual: set[int]) -> Iterator[float]:
    """Yield periods to try: of the calendar, of spectra, of the autocorrelation, with multiples."""
    n = len(x)
    yield from (float(p) for p in sorted(usual))
    basis = _trend(n)
    r = x - basis @ np.linalg.lstsq(basis, x, rcond=None)[0]
    size = 1 << (8 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(r * np.hanning(n), size)) ** 2
    frequency = np.arange(len(power)) / size
    low = int(2.5 * size / n)
    found = _peaks(power, low, 5)
    # Red noise hides peaks of short periods: the spectrum over that of differences, which is flat.
    found += _peaks(power * np.sin(np.pi * frequency) ** 2, low, 5)
    for k in found:
        a, b, c = np.log(np.maximum(power[k - 1 : k + 2], 1e-300))
        bend = a - 2 * b + c
        period = size / (k + (0.5 * (a - c) / bend if bend < 0 else 0.0))
        for multiple in range(1, 9):
            yield multiple * period
    spectrum = np.abs(np.fft.rfft(r, 2 * size)) ** 2
    acf = np.fft.irfft(spectrum)[: n // 2 + 1] / np.arange(n, n - n // 2 - 1, -1)
    yield from (float(k) for k in _peaks(acf, 2, 5))


def _peaks(a: Array, low: int, most: int) -> list[int]:
    """Return the highest local maxima from an index on."""
    k = np.arange(max(low, 1), len(a) - 1)
    k = k[(a[k] > a[k - 1]) & (a[k] >= a[k + 1])]
    return [int(i) for i in k[np.argsort(-a[k], kind="stable")[:most]]]


def _harmonics(n: int, period: float) -> int:
    """Return how many harmonics can be estimated beside the noise."""
    most = max(1, min(int(period / 2 - 1e-9), n // 16))
    return max(j for j in LINES if j <= most)


def _lines(t: Array, period: float, count: int) -> Array:
    angle = 2 * np.pi / period * np.outer(t, np.arange(1, count + 1))
    return np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(len(t), -1)


def _score(x: Array, period: float, divisor: int = 1) -> float:
    """Return minus the log of the p-value of a period's harmonics in autoregressive noise.

    The noise is estimated from what the harmonics leave, so that a strong season does not count as
    noise; the most favourable number of harmonics counts. With a divisor, the harmonics of the
    period divided by it are taken for granted: what counts is what a period has beyond them.
    """
    n, t = len(x), np.arange(len(x))
    order = np.arange(1, _harmonics(n, period) + 1)
    granted = _trend(n)
    if divisor > 1:
        order = order[order % divisor != 0]
        part = period / divisor
        granted = np.concatenate([granted, _lines(t, part, _harmonics(n, part))], axis=1)
    if not len(order):
        return 0.0
    basis = _lines(t, period, int(order[-1])).reshape(n, -1, 2)[:, order - 1].reshape(n, -1)
    if period == 2:
        basis = basis[:, :1]  # the sine of two steps is zero
    q, _ = np.linalg.qr(np.concatenate([granted, basis], axis=1))
    parts = q.T @ x
    given = done = granted.shape[1]
    left = x - q[:, :given] @ parts[:given]
    total = float(((x - x.mean()) ** 2).sum())
    best = 0.0
    for lines in sorted({min(j, len(order)) for j in LINES}):
        end = min(given + 2 * lines, q.shape[1])
        left = left - q[:, done:end] @ parts[done:end]
        done = end
        square = float(left @ left)
        # Rounding is no noise:
        # an exact season and its exact multiples are distinguished as others are.
        floor = TINY * total / n
        lag = float(left[1:] @ left[:-1]) / square if square > floor * n else 0.0
        phi = min(0.999, lag + max(lag, 0.0) * (4 + 2 * lines) / n)
        noise = max(float(((left[1:] - phi * left[:-1]) ** 2).sum()) / max(n - end - 1, 1), floor)
        omega = 2 * np.pi * order[:lines] / period
        # What harmonics leave tends to alternate: that lowers the noise of no frequency.
        bend = np.minimum(1 + phi * phi - 2 * phi * np.cos(omega), 1.0 if phi < 0 else np.inf)
        height = np.repeat(noise / bend, 2)[: end - given]
        gain = float((parts[given:end] ** 2 / np.maximum(height, 1e-300)).sum())
        best = max(best, _log_tail(gain, lines))
    return best


def _log_tail(gain: float, lines: int) -> float:
    """Return minus the log of the chance that a chi-square of ``2 * lines`` exceeds a gain."""
    half = gain / 2
    if half <= 0:
        return 0.0
    terms = np.array([i * math.log(half) - math.lgamma(i + 1) for i in range(lines)])
    top = terms.max()
    return half - float(top + np.log(np.exp(terms - top).sum()))


def _preferred(x: Array, seen: Array, scores: dict[int, float], usual: set[int]) -> int:
    """Return the period of the best score, or one of the calendar or a divisor as good as it."""
    best = max(sorted(scores), key=lambda p: scores[p])
    limit = math.log(len(x) / 2) + CERTAIN
    for period in sorted(scores):
        whole = round(best / period)
        if whole < 2 or abs(whole / best - 1 / period) > 0.7 / len(x):
            continue
        # Most of a multiple is its divisor's; a period with a fraction is the multiple's part.
        if scores[period] > limit and not _adds(x, seen, best, best / whole):
            near = [p for p in sorted(scores) if abs(whole / best - 1 / p) <= 0.7 / len(x)]
            best = max(near, key=lambda p: scores[p])
            break
    close = [
        p
        for p in sorted(usual & set(scores))
        if abs(1 / p - 1 / best) < 0.7 / len(x)
        and scores[p] > scores[best] - max(8.0, 0.015 * scores[best])
    ]
    return max(close, key=lambda p: scores[p], default=best)


def _adds(x: Array, seen: Array, multiple: int, period: float) -> bool:
    """Return whether a multiple of a season has harmonics of its own and forecasts clearly better.

    Of many multiples one explains a little more by chance, and an error of rounding decides which:
    what counts has a margin that is far from both.
    """
    limit = math.log(len(x) / 2) + CERTAIN
    score = _score(x, float(multiple), round(multiple / period))
    if score <= limit:
        return False
    share = CLEARLY if score <= 2 * limit else SOMEWHAT
    left = 1 - _held_out(x, seen, period, multiple) + TINY
    return 1 - _held_out(x, seen, multiple, multiple) + TINY < share * left


def _held_out(x: Array, seen: Array, period: float, block: int) -> float:
    """Return the share of held-out variance that a season explains.

    It counts beyond what a level, a trend and the last value explain. Blocks of rows in the last
    half are forecast from all that lies before them.
    """
    n = len(x)
    whole = round(period)
    begin = max(n // 2, min(2 * whole, n - whole))
    starts = np.unique(np.linspace(begin, n - max(2, min(block, n // 8)), 12).astype(int))
    plain: list[Array] = []
    seasonal: list[Array] = []
    for start in starts:
        rows = np.arange(start, min(start + block, n))
        truth = np.where(seen[rows], x[rows], np.nan)
        flat, wave = _forecasts(x[:start], rows - start + 1, period)
        plain.append(
            np.nanmean((flat - truth) ** 2, axis=1) if seen[rows].any() else flat[:, 0] * 0
        )
        seasonal.append(
            np.nanmean((wave - truth) ** 2, axis=1) if seen[rows].any() else wave[:, 0] * 0
        )
    none, some = np.mean(plain, axis=0).min(), np.mean(seasonal, axis=0).min()
    if none == 0:
        return 0.0
    return float(1 - some / none)


def _forecasts(past: Array, ahead: Array, period: float) -> tuple[Array, Array]:
    """Return forecasts without a season ``[5, h]`` and with one."""
    n, whole = len(past), round(period)
    t = np.arange(n)
    slope, middle = np.polyfit(t - t.mean(), past, 1)
    drift = (past[-1] - past[0]) / max(n - 1, 1)
    line = slope * (n - 1 + ahead - t.mean()) + middle
    recent = past[-max(2, min(whole, n)) :].mean()
    flat = np.stack(
        [
            np.full(len(ahead), past.mean()),
            line,
            np.full(len(ahead), past[-1]),
            np.full(len(ahead), recent),
            past[-1] + drift * ahead,
        ]
    )
    last = past[n - whole + (ahead - 1) % whole]
    count = min(_harmonics(n, period), 8)
    basis = np.concatenate([_trend(n)[:, :2], _lines(t, period, count)], axis=1)
    weights = np.linalg.lstsq(basis, past, rcond=None)[0]
    at = np.concatenate(
        [
            np.ones((len(ahead), 1)),
            (-1 + 2 * (n - 1 + ahead) / max(n - 1, 1))[:, None],
            _lines(n - 1 + ahead, period, count),
        ],
        axis=1,
    )
    wave = at @ weights
    season = at[:, 2:] @ weights[2:]
    left = past - basis @ weights
    now = left[-whole:].mean()
    shifted = season + (past - basis[:, 2:] @ weights[2:])[-whole:].mean()
    return flat, np.stack([wave, wave + now, shifted, last, recent + 0.6 * (last - recent)])


readable(globals())
