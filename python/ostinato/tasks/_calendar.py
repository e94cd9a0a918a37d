"""Times from cells of text, and the step between them:
microseconds, months, business days or plain numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._check import Array

__all__ = [
    "Axis",
    "Stamps",
    "Step",
    "common_step",
    "find_axis",
    "floor_to",
    "kinds_of",
    "parse_step",
    "parse_times",
]

MICROSECONDS = {
    "second": 10**6,
    "minute": 60 * 10**6,
    "hour": 3600 * 10**6,
    "day": 86400 * 10**6,
    "week": 7 * 86400 * 10**6,
}
DAY = MICROSECONDS["day"]
CLOCK = (
    r"(?:(?:[Tt]| +)(?<H>\d{1,2}):(?<M>\d{2})(?::(?<S>\d{2})(?:[.,](?<f>\d{1,9}))?)?"
    r"(?: ?(?<p>[AaPp][Mm]))?"
    r"(?: ?(?<z>Z|z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2}))?)?"
)
NAME = r"(?<b>[A-Za-z]{3,9})\.?"
# Names of forms of times, and what they look like: y year, m month, d day, b month's name, q
# quarter, w week, u and v the day and the month in an order that has to be found, H M S f p z the
# time of day.
FORMS: dict[str, str] = {
    "date": rf"^(?<y>\d{{4}})[-/.](?<m>\d{{1,2}})[-/.](?<d>\d{{1,2}}){CLOCK}$",
    "day or month first": rf"^(?<u>\d{{1,2}})[-/](?<v>\d{{1,2}})[-/](?<y>\d{{4}}){CLOCK}$",
    "day first": rf"^(?<d>\d{{1,2}})\.(?<m>\d{{1,2}})\.(?<y>\d{{4}}){CLOCK}$",
    "day and name": rf"^(?<d>\d{{1,2}})[ .-]+{NAME}[ ,.-]+(?<y>\d{{4}}){CLOCK}$",
    "name and day": rf"^{NAME} (?<d>\d{{1,2}}),? (?<y>\d{{4}}){CLOCK}$",
    "month": r"^(?<y>\d{4})(?:[-/]|[Mm])(?<m>\d{1,2})$",
    "month first": r"^(?<m>\d{1,2})/(?<y>\d{4})$",
    "named month": rf"^{NAME}[ -](?<y>\d{{4}})$",
    "year and name": rf"^(?<y>\d{{4}})[ -]{NAME}$",
    "quarter": r"^(?<y>\d{4})[- ]?[Qq](?<q>[1-4])$",
    "quarter first": r"^[Qq](?<q>[1-4])[ /-]?(?<y>\d{4})$",
    "week": r"^(?<y>\d{4})-?[Ww](?<w>\d{2})$",
    "two digits": (
        r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{2}(?: .*)?$|^[A-Za-z]{3}-\d{2}$|^\d{1,2}-[A-Za-z]{3}-\d{2}$"
    ),
}
MONTH_FORMS = {"month", "month first", "named month", "year and name"}
COUNTED = r"^[+-]?\d+(?:\.0*)?$"
NUMBERED = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH_NAMES = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
SAMPLE = 1000  # cells from each end of a column that tell its form; all cells must then have it
LARGEST_COUNT = 1e15  # of a time that is a plain number: float64 still tells neighbours apart
UNITS = ("month", "business day", "microsecond", "number")  # of steps
EPOCHS = {"s": 10**6, "ms": 10**3, "us": 1}
EARLIEST, LATEST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31", "us")


@dataclass(frozen=True)
class Stamps:
    """The times of rows, in the order of the rows."""

    values: Array  # datetime64[us] [rows], on the clock of `zone`; or float64 [rows], plain numbers
    form: str  # how they were written: a name of `FORMS`, "year", "number", "s", "%d.%m.%Y", ...
    # "UTC", "+01:00", "Europe/Berlin"; None: no zone, clocks are taken as they are
    zone: str | None = None
    instants: Array | None = None  # datetime64[us] [rows], UTC, where there is a zone


def kinds_of(cells: Any, integers: bool) -> tuple[str | None, float]:
    """Return the form that most of the cells have, and their share.

    Args:
        cells: a Polars series of text without missing values, [rows].
        integers: whether whole numbers may be times (years, epochs, counts):
            that takes a name to tell.
    """
    if not len(cells):
        return None, 0.0
    if len(cells) > 2 * SAMPLE:
        cells = cells.head(SAMPLE).append(cells.tail(SAMPLE))
    best: tuple[str | None, float] = (None, 0.0)
    for form, pattern in FORMS.items():
        share = float(cells.str.contains(_rust(pattern)).sum()) / len(cells)
        if share > best[1]:
            best = (form, share)
    if integers:
        share = float(cells.str.contains(NUMBERED).sum()) / len(cells)
        if share > best[1]:
            best = ("number", share)
    return best


def _rust(pattern: str) -> str:
    return pattern.replace("(?<", "(?P<")


def parse_times(
    cells: Any,
    where: Callable[[int], str],
    *,
    name: str = "time",
    time_format: str | None = None,
    form: str | None = None,
    timezone: str | None = None,
) -> Stamps:
    """Read a column of text as times.

    >>> import polars as pl
    >>> parse_times(pl.Series(["31/01/2020", "01/02/2020"]), lambda row: f"row {row}").values
    array(['2020-01-31T00:00:00.000000', '2020-02-01T00:00:00.000000'],
          dtype='datetime64[us]')

    Args:
        cells: a Polars series of text, [rows].
        where: says which line a row is in.
        name: the column's, for errors.
        time_format: ``--time-format``:
            letters as of ``strftime``, or "s", "ms", "us" (since 1970), "year", "number".
        form: how a file before this one wrote its times; taken where this one can be read so.
        timezone: the zone of clocks that are written without one.

    Raises:
        ValueError: if a cell is no time, or the times can be read in two ways.
    """
    empty = cells == ""
    if empty.any():
        row = int(empty.arg_max())
        raise ValueError(
            f"FILE: expected a time in every row, got none in column {name!r}, {where(row)}"
        )
    if time_format is not None:
        stamps = _by_format(cells, where, name, time_format)
    else:
        found, share = kinds_of(cells, integers=True)
        if found is None or share < 0.5:
            raise ValueError(
                f"--time: expected a column of times, got {cells[0]!r} in column {name!r}, "
                f"{where(0)}; say how they are written with --time-format"
            )
        stamps = (
            _counted(cells, where, name, form)
            if found == "number"
            else _written(cells, where, name, found, form)
        )
    if stamps.values.dtype.kind == "f" and not (np.abs(stamps.values) < LARGEST_COUNT).all():
        row = int((~(np.abs(stamps.values) < LARGEST_COUNT)).argmax())
        raise ValueError(
            f"FILE: expected times below 1e15, got {cells[row]!r} in column {name!r}, {where(row)}"
        )
    if stamps.values.dtype.kind == "M":
        outside = (stamps.values < EARLIEST) | (stamps.values > LATEST) | np.isnat(stamps.values)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"FILE: expected years of 1 to 9999, got {cells[row]!r} in column {name!r}, "
                f"{where(row)}"
            )
        if timezone is not None and stamps.zone is None:
            stamps = localise(stamps, timezone, where, name)
    return stamps


def _bad_time(
    cells: Any, row: int, where: Callable[[int], str], name: str, form: str
) -> ValueError:
    like = {"number": "a whole number"}.get(form, f"a time as in the other rows ({form})")
    return ValueError(
        f"FILE: expected {like}, got {cells[row]!r} in column {name!r}, {where(row)}; "
        "a line that is no row has to go, another way of writing times is named by --time-format"
    )


def _written(
    cells: Any, where: Callable[[int], str], name: str, found: str, before: str | None
) -> Stamps:
    """Read times that are written out, all in the form that was found."""
    if found == "two digits":
        raise ValueError(
            f"--time-format: expected years of four digits, got {cells[0]!r} in column {name!r}, "
            f"{where(0)}; name the format, such as '%d.%m.%y' or '%m/%d/%y'"
        )
    pattern = _rust(FORMS[found])
    match = cells.str.contains(pattern)
    if not match.all():
        raise _bad_time(cells, int((~match).arg_max()), where, name, found)
    parts = cells.str.extract_groups(pattern).struct.unnest()
    got = {c: parts[c].to_numpy() for c in ("b", "z", "p") if c in parts.columns}
    whole = {c: _integers(parts[c]) for c in parts.columns if c not in {"b", "z", "p", "f"}}
    if "u" in whole:
        whole["d"], whole["m"], found = _day_and_month(cells, whole, where, name, before)
    if "b" in got:
        whole["m"] = np.array([_month_of(b) for b in got["b"]])
    fraction = _fraction(parts["f"]) if "f" in parts.columns else 0
    values, good = _build(whole, got.get("p"), fraction)
    if not good.all():
        raise _bad_time(cells, int((~good).argmax()), where, name, "that the calendar has")
    return _zoned(values, got.get("z"), found, where, name)


def _integers(cells: Any) -> Array:
    import polars as pl

    return np.asarray(cells.cast(pl.Int64).fill_null(-1).to_numpy())


def _fraction(cells: Any) -> Array:
    return _integers(cells.fill_null("0").str.slice(0, 6).str.pad_end(6, "0"))


def _month_of(text: str) -> int:
    lower = text.lower()
    full = lower in MONTH_NAMES or lower in MONTHS or lower == "sept"
    return MONTHS.index(lower[:3]) + 1 if full else 0


def _day_and_month(
    cells: Any, parts: dict[str, Array], where: Callable[[int], str], name: str, before: str | None
) -> tuple[Array, Array, str]:
    """Tell the day from the month: a number above 12 is a day."""
    u, v = parts["u"], parts["v"]
    if (u > 12).any() and (v > 12).any():
        a, b = int((u > 12).argmax()), int((v > 12).argmax())
        raise ValueError(
            f"FILE: expected days and months in one order, got {cells[a]!r} ({where(a)}) and "
            f"{cells[b]!r} ({where(b)}) in column {name!r}"
        )
    if (u > 12).any() or (before == "%d/%m/%Y" and not (v > 12).any()):
        return u, v, "%d/%m/%Y"
    if (v > 12).any() or before == "%m/%d/%Y":
        return v, u, "%m/%d/%Y"
    mark = next(c for c in cells[0] if not c.isdigit())
    formats = [f"{a}{mark}{b}{mark}%Y" for a, b in (("%d", "%m"), ("%m", "%d"))]
    raise ValueError(
        f"--time-format: expected '{formats[0]}' (the day first) or '{formats[1]}' (the month "
        f"first), for no day in column {name!r} is above 12 and tells which, as in {cells[0]!r}"
    )


def _build(parts: dict[str, Array], half: Array | None, fraction: Any) -> tuple[Array, Array]:
    """Put years, months, days and clocks together; also whether the calendar has such a time."""
    year = parts["y"]
    good = (year >= 1) & (year <= 9999)
    if "w" in parts:
        return _weeks(year, parts["w"], good)
    month = (parts["q"] - 1) * 3 + 1 if "q" in parts else parts.get("m", np.ones_like(year))
    day = parts.get("d", np.ones_like(year))
    good &= (month >= 1) & (month <= 12) & (day >= 1)
    months = (np.where(good, year, 2000) - 1970) * 12 + np.where(good, month, 1) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]")
    following = (months + 1).astype("datetime64[M]").astype("datetime64[D]")
    good &= day <= (following - first).astype(int)
    date = (first + (np.where(good, day, 1) - 1)).astype("datetime64[us]")
    if "H" not in parts:
        return date, good
    hour, minute, second = (np.maximum(parts[c], 0) for c in "HMS")
    if half is not None:
        given = np.array([h is not None for h in half])
        afternoon = np.array([h is not None and h.lower() == "pm" for h in half])
        good &= ~given | ((hour >= 1) & (hour <= 12))
        hour = np.where(given, hour % 12 + 12 * afternoon, hour)
    good &= (hour < 24) & (minute < 60) & (second < 60)
    clock = (hour * 3600 + minute * 60 + second) * 10**6 + fraction
    return date + clock.astype("timedelta64[us]"), good


def _weeks(year: Array, week: Array, good: Array) -> tuple[Array, Array]:
    """Return the Mondays of ISO weeks: the first week of a year is that with the 4th of January."""

    def first_monday(years: Array) -> Array:
        fourth = (years - 1970).astype("datetime64[Y]").astype("datetime64[D]") + 3
        return np.asarray(fourth - (fourth.astype(int) + 3) % 7)

    monday = first_monday(year) + 7 * (week - 1)
    good = good & (week >= 1) & (monday < first_monday(year + 1))
    return monday.astype("datetime64[us]"), good


def _zoned(
    values: Array, zones: Array | None, form: str, where: Callable[[int], str], name: str
) -> Stamps:
    if zones is None or all(z is None for z in zones):
        return Stamps(values, form)
    without = np.array([z is None for z in zones])
    if without.any():
        row = int(without.argmax())
        raise ValueError(
            f"FILE: expected a zone with every time or with none, got none in column {name!r}, "
            f"{where(row)}"
        )
    different = {z: _offset(z) for z in set(zones)}
    offsets = np.array([different[z] for z in zones]).astype("timedelta64[m]")
    # With one offset its clock stays;
    # with several (summer time) the clock is UTC unless the step is of days.
    one = len(set(different.values())) == 1
    zone = (
        ("UTC" if not offsets[0].astype(int) else _offset_text(int(offsets[0].astype(int))))
        if one
        else "mixed"
    )
    return Stamps(values, form, zone, values - offsets)


def _offset(zone: str) -> int:
    if zone.upper() in {"Z", "UTC", "GMT"}:
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (1 if zone[0] == "+" else -1) * (int(digits[:2]) * 60 + int(digits[2:]))


def _offset_text(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _counted(cells: Any, where: Callable[[int], str], name: str, before: str | None) -> Stamps:
    """Read numbers as years, dates without marks, epochs, or a count:
    by the number of their digits."""
    import polars as pl

    match = cells.str.contains(NUMBERED)
    if not match.all():
        raise _bad_time(cells, int((~match).arg_max()), where, name, "number")
    if not cells.str.contains(COUNTED).all():
        return Stamps(cells.cast(pl.Float64).to_numpy().astype(np.float64), "number")
    text = cells.str.replace(r"\.0*$", "").str.replace(r"^\+", "")
    n = _integers(text)
    low, high = int(n.min()), int(n.max())
    if before in {"number", "year", "s", "ms", "us", "ns"}:
        return _numbered(n, before)
    if low >= 1000 and high <= 2999:
        return _numbered(n, "year")
    for digits, parts in (
        (6, {"y": n // 100, "m": n % 100}),
        (8, {"y": n // 10000, "m": n // 100 % 100, "d": n % 100}),
    ):
        if 10 ** (digits - 1) <= low and high < 10**digits:
            values, good = _build(parts, None, 0)
            if good.all() and (parts["y"] >= 1000).all() and (parts["y"] <= 2999).all():
                return Stamps(values, "%Y%m" if digits == 6 else "%Y%m%d")
    for form, (least, most) in {
        "s": (10**8, 10**10),
        "ms": (10**11, 10**13),
        "us": (10**14, 10**16),
        "ns": (10**17, 9 * 10**18),
    }.items():
        if least <= low and high < most:
            return _numbered(n, form)
    return _numbered(n, "number")


def _numbered(n: Array, form: str) -> Stamps:
    if form == "number":
        return Stamps(n.astype(np.float64), form)
    if form == "year":
        years = (np.clip(n, 0, 10000) - 1970).astype("datetime64[Y]")
        return Stamps(years.astype("datetime64[us]"), form)
    micro = n // 1000 if form == "ns" else np.clip(n, -(10**14), 10**16) * EPOCHS[form]
    values = micro.astype("datetime64[us]")
    return Stamps(values, form, "UTC", values)


def _by_format(cells: Any, where: Callable[[int], str], name: str, time_format: str) -> Stamps:
    """Read times as ``--time-format`` says."""
    import polars as pl

    if time_format in {"year", "number", "s", "ms", "us", "ns"}:
        match = cells.str.contains(NUMBERED if time_format == "number" else COUNTED)
        if not match.all():
            raise _bad_time(cells, int((~match).arg_max()), where, name, time_format)
        if time_format == "number":
            return Stamps(cells.cast(pl.Float64).to_numpy().astype(np.float64), time_format)
        return _numbered(_integers(cells.str.replace(r"\.0*$", "")), time_format)
    if "%" not in time_format:
        raise ValueError(
            "--time-format: expected letters as in '%d.%m.%Y %H:%M', or one of year, number, s, "
            f"ms, us, ns, got {time_format!r}"
        )
    text, full = cells, time_format
    for letters, tail, directive in (
        (("%m", "%b", "%B", "%D", "%F", "%j", "%c", "%x"), " 01", " %m"),
        (("%d", "%e", "%D", "%F", "%j", "%c", "%x"), " 01", " %d"),
    ):
        if not any(d in time_format for d in letters):
            text, full = text + tail, full + directive
    zone = "%z" in full or "%Z" in full or "%:z" in full
    try:
        parsed = text.str.to_datetime(
            full, strict=False, time_unit="us", time_zone="UTC" if zone else None
        )
    except pl.exceptions.PolarsError as e:
        raise ValueError(
            f"--time-format: expected letters as in '%d.%m.%Y %H:%M', got {time_format!r}: {e}"
        ) from None
    failed = parsed.is_null()
    if failed.any():
        row = int(failed.arg_max())
        raise ValueError(
            f"--time-format: expected times as {time_format!r}, got {cells[row]!r} in column "
            f"{name!r}, {where(row)}"
        )
    values = parsed.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]")
    return Stamps(values, time_format, "UTC" if zone else None, values if zone else None)


def localise(stamps: Stamps, timezone: str, where: Callable[[int], str], name: str) -> Stamps:
    """Give clocks their zone: an hour that comes twice is the earlier one first,
    in the order of the rows."""
    import polars as pl

    clocks = pl.Series(stamps.values)
    try:
        sides = [
            clocks.dt.replace_time_zone(
                timezone, ambiguous=side, non_existent="null"
            ).dt.convert_time_zone("UTC")
            for side in ("earliest", "latest")
        ]
    except pl.exceptions.PolarsError:
        raise ValueError(
            f"--timezone: expected a name such as Europe/Berlin, got {timezone!r}"
        ) from None
    earlier, later = (
        s.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]") for s in sides
    )
    if np.isnat(earlier).any():
        row = int(np.isnat(earlier).argmax())
        raise ValueError(
            f"--timezone: expected times that the clocks of {timezone} show, got "
            f"{stamps.values[row]} in column {name!r}, {where(row)}, when they are put forward"
        )
    instants = earlier.copy()
    twice = np.flatnonzero(earlier != later)
    if twice.size:
        seen: set[Any] = set()
        backwards = bool(stamps.values[0] > stamps.values[-1])
        for row in twice[::-1] if backwards else twice:
            if stamps.values[row] in seen:
                instants[row] = later[row]
            seen.add(stamps.values[row])
    return Stamps(stamps.values, stamps.form, timezone, instants)


@dataclass(frozen=True)
class Step:
    """What lies between two rows:
    so many months, business days, microseconds, or a plain number."""

    unit: str  # "month", "business day", "microsecond", "number"
    count: float  # whole but for "number"

    def __str__(self) -> str:
        if self.unit == "number":
            return f"{self.count:g}"
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
        """Return the seconds of a step; of months and business days on the average."""
        if self.unit == "number":
            return None
        if self.unit == "month":
            return self.count * 365.2425 / 12 * 86400
        return self.count * (86400 * 7 / 5 if self.unit == "business day" else 1e-6)


def parse_step(text: str) -> Step:
    """Read a step as ``--step`` has it.

    >>> str(parse_step("15min")), str(parse_step("month")), str(parse_step("2 weeks"))
    ('15 minutes', '1 month', '2 weeks')
    """
    match = re.fullmatch(r"\s*(\d*)\s*([a-z -]+?)\s*", text.lower())
    names = {
        "s": "second", "sec": "second", "second": "second",
        "t": "minute", "min": "minute", "minute": "minute", "h": "hour", "hour": "hour",
        "d": "day", "day": "day", "w": "week", "week": "week",
        "month": "month", "quarter": "quarter", "y": "year", "year": "year",
        "business day": "business day", "business-day": "business day",
    }  # fmt: skip
    unit = names.get(match[2], names.get(match[2].removesuffix("s"))) if match else None
    if match is None or unit is None or match[1] in {"0", "00"}:
        raise ValueError(
            f"--step: expected a step such as 15min, 1h, day, week, month or quarter, got {text!r}"
        )
    count = int(match[1] or 1)
    if unit in {"month", "quarter", "year"}:
        return Step("month", count * {"month": 1, "quarter": 3, "year": 12}[unit])
    if unit == "business day":
        return Step(unit, count)
    return Step("microsecond", count * MICROSECONDS[unit])


@dataclass(frozen=True)
class Axis:
    """The times of a series: a start and a step.

    >>> axis = Axis(Step("month", 1), np.datetime64("2020-01-31", "us"), month_end=True)
    >>> axis.labels(np.arange(3))
    ['2020-01-31', '2020-02-29', '2020-03-31']
    """

    step: Step
    start: Any  # datetime64[us] on the axis' clock, or float
    form: str = "date"
    zone: str | None = None
    month_end: bool = False

    def at(self, k: Array) -> Array:
        """Return the times of positions, [n]: datetime64[us], or float64 of a numbered axis."""
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
        months = month + k * int(count)
        first = months.astype("datetime64[D]")
        length = ((months + 1).astype("datetime64[D]") - first).astype(int)
        wanted = (
            np.int64(31)
            if self.month_end
            else (day - month.astype("datetime64[D]")).astype(int) + 1
        )
        return np.asarray(
            (first + (np.minimum(length, wanted) - 1)).astype("datetime64[us]") + clock
        )

    def labels(self, k: Array) -> list[str]:
        """Return the times of positions as text: ISO 8601, as short as the file's own form."""
        times = self.at(k)
        if self.step.unit == "number":
            return [f"{t:.10g}" for t in times]
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


def _in_zone(instants: Array, zone: str) -> list[str]:
    """Return UTC times as a zone's clocks show them, with the offset."""
    import polars as pl

    whole = bool((instants == instants.astype("datetime64[s]")).all())
    pattern = "%Y-%m-%dT%H:%M:%S" if whole else "%Y-%m-%dT%H:%M:%S%.6f"
    if zone == "UTC":
        return list(pl.Series(instants).dt.strftime(pattern + "Z"))
    if zone[0] in "+-":
        return list(
            pl.Series(instants + np.timedelta64(_offset(zone), "m")).dt.strftime(pattern + zone)
        )
    clocks = pl.Series(instants).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    return list(clocks.dt.strftime(pattern + "%:z"))


def floor_to(times: Array, step: Step) -> Array:
    """Return the beginnings of the steps in which times lie;
    weeks begin on Mondays, weekends belong to Fridays."""
    count = int(step.count)
    if step.unit == "month":
        months = times.astype("datetime64[M]").astype(np.int64) // count * count
        return months.astype("datetime64[M]").astype("datetime64[us]")
    if step.unit == "business day":
        days = np.busday_offset(times.astype("datetime64[D]"), 0, roll="backward")
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
        expected: the step that they should have; None: it is found.
        label: says which line a time is in.

    Returns:
        The axis; positions, int64 [n], ascending from 0; a remark where times were moved, or "".

    Raises:
        ValueError: if the times have no common step.
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
    """Return the step that most of the times of one series have, or None;
    times ascend, none twice."""
    if len(stamps.values) < 2:
        return None
    if stamps.values.dtype.kind == "f":
        return Step("number", _usual(np.diff(stamps.values)))
    return _find_step(stamps)


def _usual(differences: Array) -> float:
    """Return the most common difference, the smallest of several;
    of numbers that all differ, their median."""
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
    again = np.diff(position, prepend=-1) < 1
    if (away | again).any():
        row = int((away | again).argmax())
        raise ValueError(
            f"FILE: expected times with one step, got {values[row]:.10g} ({label(row)}) where the "
            f"step is {count:.6g}"
        )
    return Axis(Step("number", count), float(values[0]), stamps.form), position.astype(np.int64), ""


def _parts(values: Array) -> tuple[Array, Array, Array, Array]:
    """Return the month (int), the day of the month from 1, the days that the month has,
    and the time of day."""
    day, month = values.astype("datetime64[D]"), values.astype("datetime64[M]")
    first = month.astype("datetime64[D]")
    length = ((month + 1).astype("datetime64[D]") - first).astype(np.int64)
    return month.astype(np.int64), (day - first).astype(np.int64) + 1, length, values - day


def _find_step(stamps: Stamps) -> Step | None:
    """Find months by the day of the month, business days by weekends without rows,
    else a fixed time."""
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
    """Return microseconds: of UTC where there is a zone and the step is shorter than a day,
    else of the clocks."""
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
    """Return the positions on a grid, whether each has its own within a tenth of a step,
    and the grid's start."""
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
    """Return the error for times without a common step:
    it names the most common ones, and the first odd row."""
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
        f"{stamps.values[odd].astype('datetime64[s]')} ({label(odd)}); --step gives one, such as "
        "--step day, by the mean of the rows in each"
    )
