"""Times from cells of text, in whatever form they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._check import Array, quoted
from ._remedy import argument, fix, has

__all__ = [
    "MONTH_FORMS",
    "Stamps",
    "check_zone",
    "kinds_of",
    "localise",
    "offset_of",
    "parse_times",
]

CLOCK = (
    r"(?:(?:[Tt]| +)(?<H>[0-9]{1,2}):(?<M>[0-9]{2})(?::(?<S>[0-9]{2})(?:[.,](?<f>[0-9]{1,9}))?)?"
    r"(?: ?(?<p>[AaPp][Mm]))?"
    r"(?: ?(?<z>Z|z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2}))?)?"
)
NAME = r"(?<b>[A-Za-z]{3,9})\.?"
# Names of forms of times, and what they look like: y year, m month, d day, b month's name, q
# quarter, w week, u and v the day and the month in an order that has to be found, H M S f p z the
# time of day.
FORMS: dict[str, str] = {
    "date": rf"^(?<y>[0-9]{{4}})[-/.](?<m>[0-9]{{1,2}})[-/.](?<d>[0-9]{{1,2}}){CLOCK}$",
    "date and hour": (
        r"^(?<y>[0-9]{4})-(?<m>[0-9]{2})-(?<d>[0-9]{2})[T ](?<H>[0-9]{2})"
        r"(?<z>Z|[+-][0-9]{2}:?[0-9]{2})?$"
    ),
    "day or month first": rf"^(?<u>[0-9]{{1,2}})[-/](?<v>[0-9]{{1,2}})[-/](?<y>[0-9]{{4}}){CLOCK}$",
    "day first": rf"^(?<d>[0-9]{{1,2}})\.(?<m>[0-9]{{1,2}})\.(?<y>[0-9]{{4}}){CLOCK}$",
    "day and name": rf"^(?<d>[0-9]{{1,2}})[ .-]+{NAME}[ ,.-]+(?<y>[0-9]{{4}}){CLOCK}$",
    "name and day": rf"^{NAME} (?<d>[0-9]{{1,2}}),? (?<y>[0-9]{{4}}){CLOCK}$",
    "month": r"^(?<y>[0-9]{4})(?:[-/]|[Mm])(?<m>[0-9]{1,2})$",
    "month first": r"^(?<m>[0-9]{1,2})/(?<y>[0-9]{4})$",
    "named month": rf"^{NAME}[ -](?<y>[0-9]{{4}})$",
    "year and name": rf"^(?<y>[0-9]{{4}})[ -]{NAME}$",
    "quarter": r"^(?<y>[0-9]{4})[- ]?[Qq](?<q>[1-4])$",
    "quarter first": r"^[Qq](?<q>[1-4])[ /-]?(?<y>[0-9]{4})$",
    "week": r"^(?<y>[0-9]{4})-?[Ww](?<w>[0-9]{2})$",
    "two digits": (
        r"^[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2}(?: .*)?$|^[A-Za-z]{3}-[0-9]{2}$"
        r"|^[0-9]{1,2}-[A-Za-z]{3}-[0-9]{2}$"
    ),
}
MONTH_FORMS = {"month", "month first", "named month", "year and name"}
COUNTED = r"^[+-]?[0-9]+(?:\.0*)?$"
NUMBERED = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
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
EPOCHS = {"s": 10**6, "ms": 10**3, "us": 1}
FAR = 4 * 10**17  # microseconds from 1970 to beyond `LATEST`
EARLIEST, LATEST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31", "us")


@dataclass(frozen=True)
class Stamps:
    """The times of rows, in the order of the rows.

    Attributes:
        values: datetime64[us] [rows], on the clock of `zone`; or float64 [rows], plain numbers.
        form: how they were written: a name of `FORMS`, "year", "number", "s", "%d.%m.%Y" and such.
        zone: "UTC", "+01:00" or "Europe/Berlin"; None: no zone, clocks are taken as they are.
        instants: datetime64[us] [rows], UTC, where there is a zone.
    """

    values: Array
    form: str
    zone: str | None = None
    instants: Array | None = None


def kinds_of(cells: Any, integers: bool) -> tuple[str | None, float]:
    """Return the form that most of the cells have, and their share.

    Args:
        cells: a Polars series of text without missing values, [rows].
        integers: whether whole numbers may be times (years, epochs, counts). Only the name of a
            column tells them from other numbers.

    Returns:
        A name of `FORMS`, "number" or None, and the share of the cells, from 0 to 1.
    """
    if not len(cells):
        return None, 0.0
    if len(cells) > 2 * SAMPLE:
        cells = cells.head(SAMPLE).append(cells.tail(SAMPLE))
    best: tuple[str | None, float] = (None, 0.0)
    for form, pattern in FORMS.items():
        share = float(cells.str.contains(_wide(pattern)).sum()) / len(cells)
        if share > best[1]:
            best = (form, share)
    if integers:
        share = float(cells.str.contains(NUMBERED).sum()) / len(cells)
        if share > best[1]:
            best = ("number", share)
    return best


def _rust(pattern: str) -> str:
    return pattern.replace("(?<", "(?P<")


def _wide(pattern: str) -> str:
    """Return a pattern that has digits of all scripts, for what is not silently passed over."""
    return _rust(pattern).replace("[0-9]", r"\d")


def parse_times(
    cells: Any,
    where: Callable[[int], str],
    *,
    name: str = "time",
    time_format: str | None = None,
    form: str | None = None,
    timezone: str | None = None,
    groups: Iterable[Array] | None = None,
) -> Stamps:
    """Read a column of text as times.

    >>> import polars as pl
    >>> parse_times(pl.Series(["31/01/2020", "01/02/2020"]), lambda row: f"row {row}").values
    array(['2020-01-31T00:00:00.000000', '2020-02-01T00:00:00.000000'],
          dtype='datetime64[us]')

    Args:
        cells: a Polars series of text, [rows].
        where: returns the line of a row, for errors.
        name: name of the column, for errors.
        time_format: ``--time-format``: a format of ``strftime``, or "s", "ms", "us" (since 1970),
            "year", "number".
        form: how an earlier file wrote its times; it decides where there are two readings.
        timezone: time zone of times that are written without one.
        groups: the numbers of the rows of each series, for `localise`.

    Returns:
        The times.

    Raises:
        ValueError: a cell is no time, or the times can be read in two ways.
    """
    empty = cells == ""
    if empty.any():
        row = int(empty.arg_max())
        raise ValueError(
            f"FILE: expected a time in every row, got none in column {quoted(name)}, {where(row)}"
        )
    if time_format is not None:
        stamps = _by_format(cells, where, name, time_format)
    else:
        found, share = kinds_of(cells, integers=True)
        if found is None or share < 0.5:
            raise ValueError(
                f"{argument('--time')}: expected a column of times, got {quoted(cells[0])} in "
                f"column {quoted(name)}, {where(0)}"
                + fix(
                    "say how they are written with --time-format",
                    "--time-format",
                    otherwise="write them as 2020-01-31",
                )
            )
        stamps = (
            _counted(cells, where, name, form)
            if found == "number"
            else _written(cells, where, name, found, form)
        )
    if stamps.values.dtype.kind == "f" and not (np.abs(stamps.values) < LARGEST_COUNT).all():
        row = int((~(np.abs(stamps.values) < LARGEST_COUNT)).argmax())
        raise ValueError(
            f"FILE: expected times below 1e15, got {quoted(cells[row])} in column "
            f"{quoted(name)}, {where(row)}"
        )
    if stamps.values.dtype.kind == "M":
        outside = (stamps.values < EARLIEST) | (stamps.values > LATEST) | np.isnat(stamps.values)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"FILE: expected years of 1 to 9999, got {quoted(cells[row])} in column "
                f"{quoted(name)}, {where(row)}"
            )
        if timezone is not None and stamps.zone is None:
            stamps = localise(stamps, timezone, where, name, groups)
    return stamps


def _bad_time(
    cells: Any, row: int, where: Callable[[int], str], name: str, form: str
) -> ValueError:
    like = {"number": "a whole number"}.get(form, f"a time as in the other rows ({form})")
    if any(c.isdecimal() and not c.isascii() for c in cells[row]):
        like = "times in the digits 0 to 9"
    return ValueError(
        f"FILE: expected {like}, got {quoted(cells[row])} in column {quoted(name)}, {where(row)}"
        + fix(
            "a line that is no row has to go, another way of writing times is named by "
            "--time-format",
            "--time-format",
            otherwise="a line that is no row has to go, or mend the time",
        )
    )


def _written(
    cells: Any, where: Callable[[int], str], name: str, found: str, before: str | None
) -> Stamps:
    """Read times that are written out, all in the form that was found."""
    if found == "two digits":
        raise ValueError(
            f"{argument('--time-format')}: expected years of four digits, got {quoted(cells[0])} "
            f"in column {quoted(name)}, {where(0)}"
            + fix(
                "name the format, such as '%d.%m.%y' or '%m/%d/%y'",
                "--time-format",
                otherwise="write them as 2020-01-31",
            )
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
    """Return digits of a pattern as int64, -1 where it has none."""
    import polars as pl

    return np.asarray(cells.cast(pl.Int64).fill_null(-1).to_numpy())


def _whole_numbers(cells: Any, where: Callable[[int], str], name: str) -> Array:
    """Return cells of the form `COUNTED` as int64."""
    import polars as pl

    text = cells
    for pattern in (r"\.0*$", r"^\+"):
        if text.str.contains(pattern).any():  # otherwise there would be a second column
            text = text.str.replace(pattern, "")
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count():
        row = int(numbers.is_null().arg_max())
        raise ValueError(
            f"FILE: expected times of at most 19 digits, below 2**63, got {quoted(cells[row])} in "
            f"column {quoted(name)}, {where(row)}"
        )
    return np.asarray(numbers.to_numpy())


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
            f"FILE: expected days and months in one order, got {quoted(cells[a])} ({where(a)}) and "
            f"{quoted(cells[b])} ({where(b)}) in column {quoted(name)}"
        )
    if (u > 12).any() or (before == "%d/%m/%Y" and not (v > 12).any()):
        return u, v, "%d/%m/%Y"
    if (v > 12).any() or before == "%m/%d/%Y":
        return v, u, "%m/%d/%Y"
    if not has("--time-format"):
        raise ValueError(
            "FILE: expected dates that can be read in one way, for no day in column "
            f"{quoted(name)} is above 12 and tells it from the month, got {quoted(cells[0])}; "
            "write them as 2020-01-31"
        )
    mark = next(c for c in cells[0] if not c.isdigit())
    formats = [f"{a}{mark}{b}{mark}%Y" for a, b in (("%d", "%m"), ("%m", "%d"))]
    raise ValueError(
        f"--time-format: expected '{formats[0]}' (the day first) or '{formats[1]}' (the month "
        f"first), for no day in column {quoted(name)} is above 12 and tells which, as in "
        f"{quoted(cells[0])}"
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
    past = (np.where(good, day, 1) - 1).astype("timedelta64[D]")
    date = (first + past).astype("datetime64[us]")
    if "H" not in parts:
        return date, good
    hour, minute, second = (np.maximum(parts.get(c, np.zeros_like(year)), 0) for c in "HMS")
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
        first = (years - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        fourth = first + np.timedelta64(3, "D")
        return np.asarray(fourth - ((fourth.astype(int) + 3) % 7).astype("timedelta64[D]"))

    monday = first_monday(year) + (7 * (week - 1)).astype("timedelta64[D]")
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
            f"FILE: expected a zone with every time or with none, got none in column "
            f"{quoted(name)}, {where(row)}"
        )
    different = {z: offset_of(z) for z in set(zones)}
    offsets = np.array([different[z] for z in zones]).astype("timedelta64[m]")
    # One offset keeps its clock. With several (summer time) the clock is UTC, unless a step is
    # measured in days.
    one = len(set(different.values())) == 1
    zone = (
        ("UTC" if not offsets[0].astype(int) else _offset_text(int(offsets[0].astype(int))))
        if one
        else "mixed"
    )
    return Stamps(values, form, zone, values - offsets)


def offset_of(zone: str) -> int:
    """Return the minutes of an offset, such as 90 of "+01:30"."""
    if zone.upper() in {"Z", "UTC", "GMT"}:
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (1 if zone[0] == "+" else -1) * (int(digits[:2]) * 60 + int(digits[2:]))


def _offset_text(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _counted(cells: Any, where: Callable[[int], str], name: str, before: str | None) -> Stamps:
    """Read numbers as years, dates without marks, epochs or a count, by their digits."""
    import polars as pl

    match = cells.str.contains(NUMBERED)
    if not match.all():
        raise _bad_time(cells, int((~match).arg_max()), where, name, "number")
    if not cells.str.contains(COUNTED).all():
        return Stamps(cells.cast(pl.Float64).to_numpy().astype(np.float64), "number")
    n = _whole_numbers(cells, where, name)
    low, high = int(n.min()), int(n.max())
    if before in {"number", "year", "s", "ms", "us", "ns"}:
        return _numbered(n, before)
    if low >= 1000 and high <= 2999:
        return _numbered(n, "year")
    for digits in (6, 8):
        if 10 ** (digits - 1) <= low and high < 10**digits:
            parts = {"y": n // 100, "m": n % 100}
            if digits == 8:
                parts = {"y": n // 10000, "m": n // 100 % 100, "d": n % 100}
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
    # What is clipped is beyond the year 9999, which is refused later.
    micro = n // 1000
    if form != "ns":
        most = FAR // EPOCHS[form]
        micro = np.clip(n, -most, most) * EPOCHS[form]
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
        return _numbered(_whole_numbers(cells, where, name), time_format)
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
            f"--time-format: expected letters as in '%d.%m.%Y %H:%M', got "
            f"{quoted(time_format)}: {e}"
        ) from None
    failed = parsed.is_null()
    if failed.any():
        row = int(failed.arg_max())
        raise ValueError(
            f"{argument('--time-format')}: expected times as {time_format!r}, got "
            f"{quoted(cells[row])} in column {quoted(name)}, {where(row)}"
        )
    values = parsed.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]")
    return Stamps(values, time_format, "UTC" if zone else None, values if zone else None)


def check_zone(timezone: str) -> None:
    """Raise an error if there is no time zone of a name."""
    import polars as pl

    try:
        if not timezone:  # Polars takes it for no zone
            raise pl.exceptions.ComputeError
        pl.Series(np.zeros(1, "datetime64[us]")).dt.replace_time_zone(timezone)
    except pl.exceptions.PolarsError:
        raise ValueError(
            f"--timezone: expected a name such as Europe/Berlin, got {quoted(timezone)}"
        ) from None


def localise(
    stamps: Stamps,
    timezone: str,
    where: Callable[[int], str],
    name: str,
    groups: Iterable[Array] | None = None,
) -> Stamps:
    """Give clocks their time zone.

    Where the clocks show an hour twice, rows of a series are taken for the earlier one first.

    Args:
        stamps: times without a zone.
        timezone: name of a zone, such as "Europe/Berlin".
        where: returns the line of a row, for errors.
        name: name of the column, for errors.
        groups: the numbers of the rows of each series, ascending; None: all are of one.

    Returns:
        The times with their zone and instants.

    Raises:
        ValueError: there is no such zone, or its clocks never show a time.
    """
    import polars as pl

    check_zone(timezone)
    clocks = pl.Series(stamps.values)
    sides = [
        clocks.dt.replace_time_zone(
            timezone, ambiguous=side, non_existent="null"
        ).dt.convert_time_zone("UTC")
        for side in ("earliest", "latest")
    ]
    earlier, later = (
        s.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]") for s in sides
    )
    if np.isnat(earlier).any():
        row = int(np.isnat(earlier).argmax())
        raise ValueError(
            f"{argument('--timezone')}: expected times that the clocks of {timezone} show, got "
            f"{stamps.values[row]} in column {quoted(name)}, {where(row)}, when they are "
            "put forward"
        )
    instants = earlier.copy()
    ambiguous = earlier != later
    if ambiguous.any():
        for rows in [np.arange(len(ambiguous))] if groups is None else groups:
            twice = rows[ambiguous[rows]]
            seen: set[Any] = set()
            backwards = bool(stamps.values[rows[0]] > stamps.values[rows[-1]])
            for row in twice[::-1] if backwards else twice:
                if stamps.values[row] in seen:
                    instants[row] = later[row]
                seen.add(stamps.values[row])
    return Stamps(stamps.values, stamps.form, timezone, instants)
