"""Options of the reader of tables, and the tables and series that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import Array
from ._axis import Axis, Step, parse_step

__all__ = ["MAX_MISSING", "ReadOptions", "Series", "Table"]

FILLS = ("linear", "previous", "error")
DUPLICATES = ("error", "first", "last", "mean", "sum")
MAX_MISSING = 0.1
LISTS = ("column", "known", "observed", "null")  # options that are tuples of texts


@dataclass(frozen=True)
class ReadOptions:
    """Options of the reader; what is None is detected, and an error where it is ambiguous.

    >>> ReadOptions(column="sales").column
    ('sales',)

    Attributes:
        time: name of the time column; "": there is none, and the order of the rows counts.
        column: names of the columns to forecast.
        series: name of the column that tells several stacked series apart.
        known: names of input columns that are known ahead.
        observed: names of input columns that are not.
        header: whether the first row has names; without one, columns are called "1", "2", ...
        delimiter: the delimiter between cells.
        decimal: the decimal mark, "." or ",".
        thousands: the thousands separator.
        null: marks of missing values in addition to the usual ones.
        encoding: encoding of the text.
        time_format: a format of ``strftime``, or "year", "number", "s", "ms", "us", "ns".
        timezone: time zone of times that are written without one, such as "Europe/Berlin".
        step: the step to which rows are resampled, such as "15min", "day" or "month".
        duplicates: how several rows at one time are combined: "error", "first", "last", "mean" or
            "sum"; None is "error", and "mean" with a step.
        fill: how missing values are filled: "linear" (between neighbours), "previous", or "error".
        max_missing: the largest fraction of a series that is filled.
    """

    time: str | None = None
    column: tuple[str, ...] = ()
    series: str | None = None
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    header: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    null: tuple[str, ...] = ()
    encoding: str | None = None
    time_format: str | None = None
    timezone: str | None = None
    step: str | None = None
    duplicates: str | None = None
    fill: str = "linear"
    max_missing: float = MAX_MISSING

    def __post_init__(self) -> None:
        for name in LISTS:
            value = getattr(self, name)
            object.__setattr__(
                self, name, (value,) if isinstance(value, str) else tuple(value or ())
            )
        if self.fill not in FILLS:
            raise ValueError(f"--fill: expected one of {', '.join(FILLS)}, got {self.fill!r}")
        if self.duplicates is not None and self.duplicates not in DUPLICATES:
            raise ValueError(
                f"--duplicates: expected one of {', '.join(DUPLICATES)}, got {self.duplicates!r}"
            )
        if not 0 <= self.max_missing < 1:
            raise ValueError(
                f"--max-missing: expected a share of at least 0 and below 1, got {self.max_missing}"
            )
        if self.step is not None:
            parse_step(self.step)


@dataclass(frozen=True)
class Series:
    """One series on its axis.

    >>> axis = Axis(Step("month", 1), np.datetime64("2020-01", "us"), "month")
    >>> series = Series("n", np.ones(2), np.zeros((2, 0)), np.zeros((2, 0)), axis)
    >>> series.times(0, 3)
    ['2020-01', '2020-02', '2020-03']

    Attributes:
        name: name of the series.
        values: float64 [n], filled.
        known: float64 [n + m, K]: inputs whose future is known, m rows after the end of the values.
        observed: float64 [n, O]: inputs that are known up to the present.
        axis: the times of positions; the first value is at position 0.
        missing: how many of the n values were filled.
        measured: float64 [n], the values before they were filled, NaN where missing; None: as
            ``values``.
        inputs: float64 [n, O], ``observed`` before it was filled; None: as ``observed``.
    """

    name: str
    values: Array
    known: Array
    observed: Array
    axis: Axis
    missing: int = 0
    measured: Array | None = None
    inputs: Array | None = None

    def times(self, begin: int, end: int) -> list[str]:
        """Return the times of a range of positions.

        Args:
            begin: the first position; 0 is that of the first value.
            end: the position after the last one.

        Returns:
            ISO 8601 text, or plain numbers, one for each position.
        """
        return self.axis.labels(np.arange(begin, end))


@dataclass(frozen=True)
class Table:
    """A table that was read.

    >>> import polars as pl
    >>> from ostinato.tasks.tables import read
    >>> str(read(pl.DataFrame({"month": ["2020-01", "2020-02"], "n": [1, 2]})).step)
    '1 month'

    Attributes:
        series: the series, one for each column and name of a series.
        source: where it comes from, for messages.
        rows: rows of the table.
        time: name of the time column; None where there is none.
        columns: names of the columns to forecast.
        options: the options, with what was detected in place of None.
        facts: how the table was read, for the next file; values that JSON can hold.
        notes: what is worth saying about the table, a line each.
    """

    series: tuple[Series, ...]
    source: str
    rows: int
    time: str | None
    columns: tuple[str, ...]
    options: ReadOptions
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> Step | None:
        """The step of the time axis; None where the order of the rows counts."""
        return self.series[0].axis.step if self.time is not None else None

    def lines(self) -> list[str]:
        """Describe what was read.

        Returns:
            Two lines: rows, period and step; columns, their range and missing values.
        """
        one = self.series[0]
        n = sum(len(s.values) for s in self.series)
        missing = sum(s.missing for s in self.series)
        many = f", {len(self.series)} series" if len(self.series) > 1 else ""
        if self.time is None:
            when = "no time column: the order of the rows counts"
        else:
            begin = min(self.series, key=lambda s: s.axis.start)
            end = max(self.series, key=lambda s: s.axis.at(np.array(len(s.values) - 1)))
            last = len(end.values)
            first, final = begin.times(0, 1)[0], end.times(last - 1, last)[0]
            when = f"{first} to {final} (column {self.time}), step {one.axis.step}"
        inputs = "".join(
            f"; {kind} {', '.join(names)}"
            for kind, names in (("known", self.options.known), ("observed", self.options.observed))
            if names
        )
        low = min(s.values.min() for s in self.series)
        high = max(s.values.max() for s in self.series)
        filled = f", filled: {self.options.fill}" if missing else ""
        return [
            f"read     {self.rows:,} rows of {self.source}{many}: {when}",
            f"column   {', '.join(self.columns)}{inputs}: {low:.6g} to {high:.6g}; missing "
            f"{missing:,} of {n:,}{filled}",
        ]


readable(globals())
