"""The step between times, and the axis that it makes: calendar, business days or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import Array, quoted
from ._remedy import fix
from ._times import LARGEST_COUNT, MONTH_FORMS, Stamps, offset_of

__all__ = ["DAY", "UNITS", "Axis", "Step", "common_step", "find_axis", "floor_to", "parse_step"]

MICROSECONDS = {
    "second": 10**6,
    "minute": 60 * 10**6,
    "hour": 3600 * 10**6,
    "day": 86400 * 10**6,
    "week": 7 * 86400 * 10**6,
}
DAY = MICROSECONDS["day"]
MONTH = np.timedelta64(1, "M")
LONGEST_STEP = 9999 * 365.2425 * 86400  # seconds
DIGITS = 12  # of the count of the longest step, in seconds
UNITS = ("month", "business day", "microsecond", "number")  # of steps


@dataclass(frozen=True)
class Step:
    """The time between two rows.

    >>> str(Step("month", 3))
    '1 quarter'

    Attributes:
        unit: "month", "business day", "microsecond" or "number".
        count: how many units; a whole number except for "number".
    """

    unit: str
    count: float

    def __str__(self) -> str:
        if self.unit == "number":
            return _plainly(float(self.count), self.count)
        count, unit = int(self.count), self.unit
        if unit == "month":
            count, unit = (count // 12, "year") if count % 12 == 0 else (count, unit)
            count, unit = (1, "quarter") if (count, unit) == (3, "month") else (count, unit)
        elif unit == "microsecond":
            for name in ("week", "day", "hour", "minute", "second"):
                if count % MICROSECONDS[name] == 0:
                    count, unit = count // MICROSECONDS[name], name
                    break
        return f"{count} {unit}" + ("s" if count != 1 else "")

    @property
    def seconds(self) -> float | None:
        """The seconds of a step, on the average for months and business days."""
        if self.unit == "number":
            return None
        if self.unit == "month":
            return self.count * 365.2425 / 12 * 86400
        return self.count * (86400 * 7 / 5 if self.unit == "business day" else 1e-6)


def parse_step(text: str) -> Step:
    """Read a step as ``--step`` writes it.

    >>> str(parse_step("15min")), str(parse_step("month")), str(parse_step("2 weeks"))
    ('15 minutes', '1 month', '2 weeks')

    Args:
        text: a count, which may be left out, and a unit.

    Returns:
        The step.

    Raises:
        ValueError: the text is no step.
    """
    match = re.fullmatch(r"\s*([0-9]*)\s*([a-z -]+?)\s*", text.lower())
    names = {
        "s": "second", "sec": "second", "second": "second",
        "t": "minute", "min": "minute", "minute": "minute", "h": "hour", "hour": "hour",
        "d": "day", "day": "day", "w": "week", "week": "week",
        "month": "month", "quarter": "quarter", "y": "year", "year": "year",
        "business day": "business day", "business-day": "business day",
    }  # fmt: skip
    unit = names.get(match[2], names.get(match[2].removesuffix("s"))) if match else None
    digits = match[1].lstrip("0") if match else ""
    if match is None or unit is None or (match[1] and not digits):
        raise ValueError(
            "--step: expected a step such as 15min, 1h, day, week, month or quarter, got "
            f"{quoted(text)}"
        )
    count = int(digits[:DIGITS] or 1)
    if unit in {"month", "quarter", "year"}:
        step = Step("month", count * {"month": 1, "quarter": 3, "year": 12}[unit])
    elif unit == "business day":
        step = Step(unit, count)
    else:
        step = Step("microsecond", count * MICROSECONDS[unit])
    if len(digits) > DIGITS or (step.seconds or 0) > LONGEST_STEP:
        raise ValueError(f"--step: expected a step below 10,000 years, got {quoted(text)}")
    return step


@dataclass(frozen=True)
class Axis:
    """The times of a series: a start and a step.

    >>> axis = Axis(Step("month", 1), np.datetime64("2020-01-31", "us"), month_end=True)
    >>> axis.labels(np.arange(3))
    ['2020-01-31', '2020-02-29', '2020-03-31']

    Attributes:
        step: the step.
        start: the time of position 0: datetime64[us] on the clock of the axis, or float.
        form: how times were written, see `Stamps`.
        zone: time zone of the labels; ``start`` is then UTC.
        month_end: whether every time is the last day of a month.
    """

    step: Step
    start: Any
    form: str = "date"
    zone: str | None = None
    month_end: bool = False

    def at(self, k: Array) -> Array:
        """Return the times of positions.

        Args:
            k: whole numbers [n].

        Returns:
            datetime64[us] [n], or float64 [n] on an axis of numbers.
        """
        k = np.asarray(k)
        count, unit = self.step.count, self.step.unit
        if unit == "number":
            return np.asarray(self.start + k * count)
        if unit == "microsecond":
            return np.asarray(self.start + (k * int(count)).astype("timedelta64[us]"))
        day = self.start.astype("datetime64[D]")
        clock = self.start - day
        if unit == "business day":
            return np.asarray(
                np.busday_offset(day, k * int(count)).astype("datetime64[us]") + clock
            )
        month = self.start.astype("datetime64[M]")
        months = month + (k * int(count)).astype("timedelta64[M]")
        first = months.astype("datetime64[D]")
        length = ((months + MONTH).astype("datetime64[D]") - first).astype(int)
        wanted = (
            np.int64(31)
            if self.month_end
            else (day - month.astype("datetime64[D]")).astype(int) + 1
        )
        days = (np.minimum(length, wanted) - 1).astype("timedelta64[D]")
        return np.asarray((first + days).astype("datetime64[us]") + clock)

    def labels(self, k: Array) -> list[str]:
        """Return the times of positions as text.

        Args:
            k: whole numbers [n].

        Returns:
            ISO 8601, as short as the form of the file, or plain numbers.
        """
        times = self.at(k)
        if self.step.unit == "number":
            return [_plainly(t, self.step.count) for t in times.tolist()]
        if self.zone is not None:
            return _in_zone(times, self.zone)
        return [self._label(t) for t in times]

    def _label(self, t: Any) -> str:
        if self.step.unit == "month" and t == t.astype("datetime64[M]"):
            month = str(t.astype("datetime64[M]"))
            if self.form == "year":
                return month[:4]
            if self.form.startswith("quarter"):
                return f"{month[:4]}Q{(int(month[5:]) + 2) // 3}"
            if self.form in MONTH_FORMS or ("%" in self.form and "%d" not in self.form):
                return month
        day = t.astype("datetime64[D]")
        if t == day and (self.step.unit != "microsecond" or self.step.count % DAY == 0):
            return str(day)
        seconds = t.astype("datetime64[s]")
        return str(seconds if t == seconds else t)


def _plainly(number: float, step: float) -> str:
    """Return a number as text: whole ones with all digits, others without those of rounding.

    Numbers a step apart have different texts.
    """
    if not number.is_integer():
        size, part = (math.floor(math.log10(abs(v))) for v in (number, step))
        number = round(number, max(min(9 - part, 14 - size), 2 - part))
    whole = number.is_integer() and abs(number) < LARGEST_COUNT
    return str(int(number)) if whole else repr(number)


def _in_zone(instants: Array, zone: str) -> list[str]:
    """Return UTC times as a zone's clocks show them, with the offset."""
    import polars as pl

    whole = bool((instants == instants.astype("datetime64[s]")).all())
    pattern = "%Y-%m-%dT%H:%M:%S" if whole else "%Y-%m-%dT%H:%M:%S%.6f"
    if zone == "UTC":
        return list(pl.Series(instants).dt.strftime(pattern + "Z"))
    if zone[0] in "+-":
        return list(
            pl.Series(instants + np.timedelta64(offset_of(zone), "m")).dt.strftime(pattern + zone)
        )
    clocks = pl.Series(instants).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    return list(clocks.dt.strftime(pattern + "%:z"))


def floor_to(times: Array, step: Step) -> Array:
    """Return the beginnings of the steps in which times lie.

    Weeks begin on Mondays; weekends belong to Fridays. Several business days are counted from the
    first of the times.

    Args:
        times: datetime64[us] [n].
        step: a step of the calendar.

    Returns:
        datetime64[us] [n].
    """
    count = int(step.count)
    if step.unit == "month":
        months = times.astype("datetime64[M]").astype(np.int64) // count * count
        return months.astype("datetime64[M]").astype("datetime64[us]")
    if step.unit == "business day":
        days = np.busday_offset(times.astype("datetime64[D]"), 0, roll="backward")
        if count > 1:
            first = days.min()
            days = np.busday_offset(first, np.busday_count(first, days) // count * count)
        return np.asarray(days.astype("datetime64[us]"))
    monday = 4 * DAY if count % MICROSECONDS["week"] == 0 else 0
    ticks = times.astype("datetime64[us]").astype(np.int64)
    return ((ticks - monday) // count * count + monday).astype("datetime64[us]")


def find_axis(
    stamps: Stamps, expected: Step | None, label: Callable[[int], str]
) -> tuple[Axis, Array, str]:
    """Find the step of times, and the position of each on the axis.

    Args:
        stamps: times in ascending order, none twice, [n].
        expected: the step that they should have; None: it is detected.
        label: returns the line of a time, for errors.

    Returns:
        The axis; positions, int64 [n], ascending from 0; a remark where times were moved, or "".

    Raises:
        ValueError: the times have no common step.
    """
    if expected is None and len(stamps.values) < 2:
        raise ValueError(
            f"FILE: expected at least two times, which make a step, got one ({label(0)})"
        )
    if stamps.values.dtype.kind == "f":
        return _numbered_axis(stamps, expected, label)
    step = expected or _find_step(stamps)
    if step is None:
        raise _mixed(stamps, label)
    if step.unit == "month":
        return _month_axis(stamps, step, label)
    if step.unit == "business day":
        return _business_axis(stamps, step, label)
    return _fixed_axis(stamps, step, label)


def common_step(stamps: Stamps) -> Step | None:
    """Return the step that most of the times of one series have.

    Args:
        stamps: times in ascending order, none twice, [n].

    Returns:
        The step; None where there is none.
    """
    if len(stamps.values) < 2:
        return None
    if stamps.values.dtype.kind == "f":
        count = _usual(np.diff(stamps.values))
        position = np.round((stamps.values - stamps.values[0]) / count)
        return Step("number", _shortest(stamps.values, position, count))
    return _find_step(stamps)


def _usual(differences: Array) -> float:
    """Return the most common difference, the smallest of several.

    It is the median where all differ.
    """
    scale = float(np.abs(differences).max())
    _, first, counts = np.unique(
        np.round(differences / scale, 9), return_index=True, return_counts=True
    )
    if counts.max() == 1 and len(counts) > 1:
        return float(np.median(differences))
    return float(differences[first[counts.argmax()]])


def _numbered_axis(
    stamps: Stamps, expected: Step | None, label: Callable[[int], str]
) -> tuple[Axis, Array, str]:
    values = stamps.values
    count = (
        expected.count
        if expected is not None
        else _usual(np.diff(values))
        if len(values) > 1
        else 1.0
    )
    position = np.round((values - values[0]) / count)
    if expected is None and position[-1] > 0:
        finer = (values[-1] - values[0]) / position[-1]
        if not np.allclose(position * count + values[0], values, rtol=1e-12, atol=1e-9 * count):
            count = finer
            position = np.round((values - values[0]) / count)
    away = np.abs(values - values[0] - position * count) > 0.1 * count
    repeated = np.diff(position, prepend=-1) < 1
    if (away | repeated).any():
        row = int((away | repeated).argmax())
        raise ValueError(
            f"FILE: expected times with one step, got {_plainly(float(values[row]), count)} "
            f"({label(row)}) where the step is {_plainly(count, count)}"
        )
    count = _shortest(values, position, count)
    return Axis(Step("number", count), float(values[0]), stamps.form), position.astype(np.int64), ""


def _shortest(values: Array, position: Array, count: float) -> float:
    """Return the step of fewest digits that gives the times as exactly as float64 holds them.

    A difference of two large times has few digits that are right, and errors add up over the rows.
    It is ``count`` where the times are not that regular.
    """
    if len(values) < 2 or position[-1] < 1:
        return count
    mean = float((values[-1] - values[0]) / position[-1])
    most = 4 * np.spacing(np.abs(values).max())
    if np.abs(values[0] + position * mean - values).max() > most:
        return count
    for digits in range(1, 16):
        short = float(f"{mean:.{digits}g}")
        if np.abs(values[0] + position * short - values).max() <= most:
            return short
    return mean


def _parts(values: Array) -> tuple[Array, Array, Array, Array]:
    """Return the month (int), the day of the month from 1, the month's days, the time of day."""
    day, month = values.astype("datetime64[D]"), values.astype("datetime64[M]")
    first = month.astype("datetime64[D]")
    length = ((month + MONTH).astype("datetime64[D]") - first).astype(np.int64)
    return month.astype(np.int64), (day - first).astype(np.int64) + 1, length, values - day


def _find_step(stamps: Stamps) -> Step | None:
    """Return the step of a calendar, or a fixed one.

    Months are detected by the day of the month, business days by weekends without rows.
    """
    values = stamps.values
    month, day, length, clock = _parts(values)
    apart = np.diff(month)
    days = np.diff(values.astype("datetime64[D]").astype(np.int64))
    one_clock = bool((clock == clock[0]).all())
    if one_clock and (apart >= 1).all():
        steps, counts = np.unique(apart, return_counts=True)
        count = int(steps[counts.argmax()])
        anchored = bool((day == np.minimum(day.max(), length)).all() or (day == length).all())
        if anchored and (apart % count == 0).all():
            return Step("month", count)
        if len(np.unique(days)) > 1 and count == 1 and 28 <= np.median(days) <= 31:
            return Step("month", 1)  # one row a month, as of its last day of trade
    if one_clock and _is_business(values, days):
        return Step("business day", 1)
    return _fixed_step(stamps)


def _is_business(values: Array, days: Array) -> bool:
    weekday = (values.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return bool(len(days) >= 5 and (weekday < 5).all() and _usual(days) == 1 and (days == 3).any())


def _fixed_step(stamps: Stamps) -> Step | None:
    """Return the first of the likely steps whose grid has a place of its own for every time."""
    clocks = stamps.values.astype(np.int64)
    ticks = _ticks(stamps, None) if np.median(np.diff(clocks)) < DAY else clocks
    differences = np.diff(ticks)
    values, counts = np.unique(differences, return_counts=True)
    candidates = [int(values[counts.argmax()]), *_nice(float(np.median(differences)))]
    if counts.max() * 2 < len(differences):  # clocks that shake: no difference is the step itself
        candidates = [*candidates[1:], candidates[0]]
    for count in candidates:
        if count > 0 and _fits(ticks, count)[1]:
            return Step("microsecond", count)
    return None


def _ticks(stamps: Stamps, step: Step | None) -> Array:
    """Return microseconds of UTC for steps below a day in a zone, otherwise of the clocks."""
    utc = stamps.instants is not None and (step is None or step.count < DAY)
    return np.asarray(stamps.instants if utc else stamps.values).astype(np.int64)


def _nice(count: float) -> list[int]:
    """Return steps near a duration that people choose: whole days, hours, minutes, seconds."""
    found = []
    for unit in (*reversed(MICROSECONDS.values()), 10**3):
        k = round(count / unit)
        if k and abs(k * unit - count) <= 0.02 * count:
            found.append(k * unit)
    return found


def _fits(ticks: Array, count: int) -> tuple[Array, bool, int]:
    """Return the positions on a grid, whether all fit, and the start of the grid.

    Times fit if each has a position of its own within a tenth of a step.
    """
    first, whole = int(ticks[0]), round(int(ticks[0]) / count) * count
    exact = bool(((ticks - first) % count == 0).all())
    for start in (first,) if exact else (whole, first):
        position = np.round((ticks - start) / count).astype(np.int64)
        away = np.abs(ticks - start - position * count) > count // 10
        if not away.any() and (np.diff(position) >= 1).all():
            return position, True, start
    return position, False, start


def _fixed_axis(stamps: Stamps, step: Step, label: Callable[[int], str]) -> tuple[Axis, Array, str]:
    ticks, count = _ticks(stamps, step), int(step.count)
    position, good, start = _fits(ticks, count)
    if not good:
        raise _mixed(stamps, label)
    moved = int((ticks != start + position * count).sum())
    remark = f"{moved} times moved to the step's own, by a tenth of a step at most" if moved else ""
    first = np.datetime64(start + int(position[0]) * count, "us")
    zone = stamps.zone if stamps.instants is not None and count < DAY else None
    axis = Axis(step, first, stamps.form, "UTC" if zone == "mixed" else zone)
    return axis, position - position[0], remark


def _month_axis(stamps: Stamps, step: Step, label: Callable[[int], str]) -> tuple[Axis, Array, str]:
    month, day, length, clock = _parts(stamps.values)
    count = int(step.count)
    position = (month - month[0]) // count
    bad = ((month - month[0]) % count != 0) | (np.diff(position, prepend=-1) < 1)
    if bad.any():
        raise _mixed(stamps, label)
    start, remark = stamps.values[0], ""
    month_end = bool((day == length).all() and day.max() > 28)
    anchored = bool((day == np.minimum(day.max(), length)).all() and (clock == clock[0]).all())
    if not month_end and not anchored:
        start = stamps.values[0].astype("datetime64[M]").astype("datetime64[us]")
        remark = "one row a month on days that differ: dates are given as the first of the month"
    elif not month_end:
        month_end = False
        start = (
            start + np.timedelta64(int(day.max() - day[0]), "D")
            if length[0] >= day.max()
            else start
        )
    return Axis(step, start, stamps.form, None, month_end), position, remark


def _business_axis(
    stamps: Stamps, step: Step, label: Callable[[int], str]
) -> tuple[Axis, Array, str]:
    days = stamps.values.astype("datetime64[D]")
    weekend = ~np.is_busday(days)
    if weekend.any():
        row = int(weekend.argmax())
        raise ValueError(
            f"FILE: expected business days, got {days[row]}, a weekend, in {label(row)}"
        )
    position = np.busday_count(days[0], days).astype(np.int64)
    if (np.diff(position) < 1).any() or (position % int(step.count)).any():
        raise _mixed(stamps, label)
    return Axis(step, stamps.values[0], stamps.form), position // int(step.count), ""


def _mixed(stamps: Stamps, label: Callable[[int], str]) -> ValueError:
    """Return the error for times without a common step.

    It names the most common steps and the first row with another one.
    """
    ticks = _ticks(stamps, None)
    differences = np.diff(ticks)
    values, counts = np.unique(differences, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    most = ", ".join(
        f"{Step('microsecond', int(values[k]))} ({int(counts[k])} times)" for k in order[:3]
    )
    odd = int((differences != values[order[0]]).argmax()) + 1
    return ValueError(
        f"FILE: expected times with one step, got steps of {most}; the first other one ends at "
        f"{stamps.values[odd].astype('datetime64[s]')} ({label(odd)})"
        + fix(
            "--step gives one, such as --step day, by the mean of the rows in each",
            "--step",
            otherwise="mend the times",
        )
    )


readable(globals())
