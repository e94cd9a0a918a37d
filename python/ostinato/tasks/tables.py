"""Tables (CSV, Parquet, frames of pandas, Polars and Arrow) read into series with a time axis.

Nothing is guessed: what can be read in one way only is detected, and what can be read in two ways
is an error that names the option.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import LONGEST, Array, quoted, some
from . import _numbers
from ._axis import UNITS, Step, common_step, parse_step
from ._frames import Columns, import_polars, load
from ._group import Group, sorted_stamps
from ._remedy import argument, fix, has, only
from ._table import LISTS, ReadOptions, Series, Table
from ._times import Stamps, check_zone, kinds_of, localise, parse_times

__all__ = ["ReadOptions", "Series", "Table", "read"]

TIME_NAMES = {
    "time",
    "date",
    "datetime",
    "timestamp",
    "ds",
    "t",
    "year",
    "epoch",
    "period",
    "step",
    "unixtime",
}
ID_NAMES = {"", "id", "index", "key", "row", "nr", "no"}


def read(
    source: Any,
    options: ReadOptions | None = None,
    *,
    like: dict[str, Any] | None = None,
    command: Mapping[str, str] | None = None,
    **given: Any,
) -> Table:
    """Read series from a CSV or Parquet file, or from a frame.

    >>> import polars as pl
    >>> months = ["1949-01", "1949-02", "1949-03"]
    >>> table = read(pl.DataFrame({"month": months, "n": [112, 118, 132]}))
    >>> table.series[0].values
    array([112., 118., 132.])
    >>> table.series[0].times(3, 5)
    ['1949-04', '1949-05']

    Args:
        source: a path, or a frame of pandas, Polars or Arrow.
        options: options of the reader.
        like: ``facts`` of a table that was read before; this one must have its columns and step.
        command: options that the running command has, each by the option of the reader that it is,
            such as ``{"--column": "--column"}``; errors name no others. None: it has all.
        **given: fields of `ReadOptions`, in place of ``options``.

    Returns:
        The series, on time axes of one step, without missing values.

    Raises:
        ValueError: the table can be read in two ways or in none; the error has the line and the
            option that decides.
        OSError: a file cannot be read.
        ImportError: Polars is not installed.
    """
    import_polars()
    if like is not None:
        options = _checked(like)
    options = replace(options or ReadOptions(), **given)
    with only(command):
        return _Reader(Columns(load(source, options), options), like).table()


def _checked(like: dict[str, Any]) -> ReadOptions:
    """Return the options of a table that was read before.

    Everything is checked, since its facts may come from a damaged file.
    """
    try:
        options = ReadOptions(**like["options"])
        own = vars(options)
        texts = [own[n] for n in own if n not in (*LISTS, "header", "max_missing")]
        good = all(t is None or isinstance(t, str) for t in (*texts, like["form"]))
        good &= all(isinstance(name, str) for names in LISTS for name in own[names])
        good &= options.header is None or isinstance(options.header, bool)
        given, own_step = like["marks"], like["step"]
        good &= all(facts is None or isinstance(facts, dict) for facts in (given, own_step))
        marks = _numbers.Marks(**(given or {}))
        step = Step(**(own_step or {"unit": "number", "count": 1}))
        good &= marks.decimal in {".", ","} and step.unit in UNITS and 0 < step.count < 1e18
        good &= marks.thousands is None or (
            isinstance(marks.thousands, str) and len(marks.thousands) == 1
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            "DIR: expected a model that says how its table was read, got one that is damaged, or "
            "newer"
        )
    return options


class _Reader:
    """Reader that finds what each column of a table means, and returns the series."""

    def __init__(self, columns: Columns, like: dict[str, Any] | None) -> None:
        self.columns, self.like = columns, like
        self.raw, self.options = columns.raw, columns.options
        self.notes: list[str] = []
        self.marks = _numbers.Marks()

    def table(self) -> Table:
        """Return the table; see `read`."""
        raw, options = self.raw, self.options
        self.notes.extend(raw.notes)
        self._check_names()
        time = self._time_column()
        self._check_options_of_times(time)
        self.marks = self._find_marks(time)
        columns = options.column or (self._value_column(time),)
        groups = self._groups()
        stamps = self._stamps(time, groups) if time else None
        used = {
            n: self._numbers(n, n in options.known)
            for n in (*columns, *options.known, *options.observed)
        }
        expected = self._expected_step(stamps, groups)
        series = []
        for name, rows in groups.items():
            one = Group(self.columns, self.notes, name, rows, stamps, used, expected, time)
            series += [one.series(column, len(columns) > 1) for column in columns]
        form = stamps.form if stamps is not None else None
        found = replace(options, time=time or "", column=columns)
        step = series[0].axis.step if time else None
        facts = {
            "options": asdict(found),
            "marks": asdict(self.marks)
            if raw.lines is not None
            else (self.like or {}).get("marks"),
            "form": form,
            "step": None if step is None else asdict(step),
        }
        return Table(
            tuple(series),
            raw.source,
            raw.rows,
            time,
            columns,
            found,
            facts,
            tuple(dict.fromkeys(self.notes)),
        )

    def _check_names(self) -> None:
        o = self.options
        used = [
            ("--time", [o.time] if o.time else []),
            ("--column", o.column),
            ("--known", o.known),
        ]
        used += [("--series", [] if o.series is None else [o.series]), ("--observed", o.observed)]
        taken: dict[str, str] = {}
        for option, names in used:
            for name in names:
                if name in self.raw.others:
                    raise ValueError(
                        f"{argument(option)}: expected a column of text, numbers, dates or "
                        f"datetimes, got {quoted(name)} of {self.raw.others[name].dtype}"
                    )
                if name not in self.raw.columns:
                    known = some(list(self.raw.columns), plain=True)
                    if not has(option):
                        raise ValueError(
                            f"FILE: expected a column {quoted(name)}, as in the training, got "
                            f"{known}"
                        )
                    raise ValueError(f"{argument(option)}: expected one of {known}, got {name!r}")
                if name in taken:
                    raise ValueError(
                        f"{argument(option)}: expected columns without another use, got {name!r}, "
                        f"which is {taken[name]}"
                    )
                taken[name] = argument(option)

    def _time_column(self) -> str | None:
        """Return the time column: the one named, or the only one that holds times."""
        if self.options.time is not None:
            return self.options.time or None
        written = [n for n in self.columns.free() if self.raw.is_time(n)]
        for n in self.columns.free():
            if self.raw.is_text(n) and kinds_of(self.columns.known_cells(n), False)[1] >= 0.5:
                written.append(n)
        if len(written) > 1:
            raise ValueError(
                f"--time: expected the time column, for {' and '.join(written)} have times"
            )
        if written:
            return written[0]
        named = [
            n
            for n in self.columns.free()
            if n.lower() in TIME_NAMES and self.columns.share_of_numbers(n) >= 0.5
        ]
        named = named or self._named_but_unknown()
        if len(named) > 1:
            raise ValueError(
                f"--time: expected the time column, for it can be {' or '.join(named)}; '' for none"
            )
        return named[0] if named else None

    def _named_but_unknown(self) -> list[str]:
        """Return columns of other text that are called as times are, if their format is given.

        Without it that is an error: the order of the rows may not be that of the times.
        """
        found = []
        for name in self.columns.free():
            if name.lower() not in TIME_NAMES or not self.raw.is_text(name):
                continue
            rows = np.flatnonzero(self.columns.known(name).to_numpy())
            if not rows.size:
                continue
            if self.options.time_format is None:
                row = int(rows[0])
                raise ValueError(
                    "--time: expected times that are known, got "
                    f"{quoted(self.raw.columns[name][row])} in column {quoted(name)}, "
                    f"{self.raw.where(row)}; --time-format says how they are written, --time '' "
                    "ignores them"
                )
            found.append(name)
        for name, cells in self.raw.others.items():
            if name.lower() in TIME_NAMES and cells.null_count() < len(cells):
                row = int(cells.is_not_null().arg_max())
                raise ValueError(
                    f"--time: expected times that are known, got {quoted(str(cells[row]))} in "
                    f"column {quoted(name)}, {self.raw.where(row)}; make them dates, datetimes or "
                    "text, --time '' ignores them"
                )
        return found

    def _check_options_of_times(self, time: str | None) -> None:
        """Raise an error if an option is given that cannot act without a time column."""
        if time is not None or self.like is not None:  # older models may have such options
            return
        o = self.options
        for option, value in (
            ("--time-format", o.time_format),
            ("--timezone", o.timezone),
            ("--step", o.step),
            ("--duplicates", None if o.duplicates == "error" else o.duplicates),
        ):
            if value is not None:
                raise ValueError(f"{option}: expected a time column with it, got none")

    def _find_marks(self, time: str | None) -> _numbers.Marks:
        raw, o = self.raw, self.options
        named = {*o.column, *o.known, *o.observed}
        names = [n for n in raw.columns if raw.is_text(n) and n not in {time, o.series}]
        columns = [
            (n, raw.columns[n])
            for n in names
            if n in named or self.columns.share_of_numbers(n) >= 0.5
        ]
        like = (self.like or {}).get("marks")
        given = None if like is None else _numbers.Marks(**like)
        return _numbers.find_marks(
            columns, given, raw.delimiter, o.null, raw.where, o.decimal, o.thousands
        )

    def _value_column(self, time: str | None) -> str:
        """Return the only column of numbers that is no time, row count, id or constant."""
        numeric = [
            n for n in self.columns.free() if n != time and self.columns.share_of_numbers(n) >= 0.5
        ]
        if not numeric:
            names = some(list(self.raw.columns), plain=True)
            raise ValueError(f"FILE: expected a column of numbers, got none in {names}")
        if len(numeric) == 1:
            return numeric[0]
        values = {n: self._numbers(n, False) for n in numeric}
        why = {n: self._not_a_series(n, v) for n, v in values.items()}
        left = [n for n, reason in why.items() if not reason]
        if len(left) != 1:
            names = some(left or numeric, plain=True)
            what = "to forecast" if has("--known") else "that is meant"
            raise ValueError(
                f"--column: expected the column {what}, for it can be {names}"
                + fix(
                    "several train one model, and --known and --observed make inputs of others",
                    "--known",
                    "--observed",
                    otherwise="name one of them",
                )
            )
        if time is None:
            for name, reason in why.items():
                if reason == "counts the rows" and (np.diff(values[name]) < 0).any():
                    raise ValueError(
                        f"--time: expected rows in order, got {quoted(name)} out of order; "
                        f"--time {shlex.quote(name[:LONGEST])} sorts by it"
                    )
        self.notes.append("; ".join(f"column {n} left out: {r}" for n, r in why.items() if r))
        return left[0]

    @staticmethod
    def _not_a_series(name: str, values: Array) -> str:
        known = values[~np.isnan(values)]
        if (known == known[0]).all() if known.size else True:
            return "constant"
        if (known != np.round(known)).any():
            return ""
        lower, ordered = name.lower(), np.sort(known)
        if ordered[0] in (0, 1) and known.size == values.size and (np.diff(ordered) == 1).all():
            return "counts the rows"
        is_id = (
            lower in ID_NAMES
            or lower.endswith(("_id", " id"))
            or name.endswith("Id")
            or lower.startswith("unnamed")
        )
        return "an id" if is_id else ""

    def _numbers(self, name: str, flags: bool) -> Array:
        """Return a column as float64, NaN where it is missing; other cells must be numbers."""
        cells, where = self.raw.columns[name], self.raw.where
        if self.raw.is_time(name):
            raise ValueError(
                f"{argument('--column')}: expected a column of numbers, got times in {quoted(name)}"
            )
        if self.raw.is_text(name):
            if flags:
                cells = cells.str.replace("^(?i:true|yes)$", "1")
                cells = cells.str.replace("^(?i:false|no)$", "0")
            read = _numbers.parse(cells, self.marks, self.options.null)
            if read.bad.any():
                row = int(read.bad.argmax())
                cell = str(cells[row])
                advice = fix(
                    f"--null {shlex.quote(cell)} if that means a missing value",
                    "--null",
                    otherwise="mend the cell, or leave it empty if that means a missing value",
                )
                advice = advice if len(cell) <= LONGEST else ""
                raise ValueError(
                    f"FILE: expected numbers, got {quoted(cells[row])} in column {quoted(name)}, "
                    f"{where(row)}{advice}"
                )
            values = read.values
        else:
            values = cells.to_numpy().astype(np.float64)
        large = np.abs(np.nan_to_num(values, nan=0.0)) > _numbers.LARGEST
        if large.any():
            row = int(large.argmax())
            raise ValueError(
                f"FILE: expected numbers of at most {_numbers.LARGEST:g} in magnitude, got "
                f"{cells[row]} in column {quoted(name)}, {where(row)}"
            )
        return values

    def _stamps(self, time: str, groups: dict[str, Array]) -> Stamps:
        zone = self.options.timezone
        if zone is not None:  # also where the times have a zone of their own
            check_zone(zone)
        stamps = self._stamps_of(time, groups)
        if zone is not None and self.like is None and stamps.values.dtype.kind == "f":
            raise ValueError("--timezone: expected times of a calendar with it, got plain numbers")
        return stamps

    def _stamps_of(self, time: str, groups: dict[str, Array]) -> Stamps:
        cells = self.raw.columns[time]
        if self.raw.is_time(time):
            if cells.null_count():
                row = int(cells.is_null().arg_max())
                raise ValueError(
                    f"FILE: expected a time in every row, got none in column {quoted(time)}, "
                    f"{self.raw.where(row)}"
                )
            zone = cells.dtype.time_zone
            clocks = cells.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]")
            if zone is None:
                stamps = Stamps(clocks, "date")
                zoned = self.options.timezone
                if zoned is None:
                    return stamps
                return localise(stamps, zoned, self.raw.where, time, groups.values())
            instants = (
                cells.dt.convert_time_zone("UTC")
                .dt.replace_time_zone(None)
                .to_numpy()
                .astype("datetime64[us]")
            )
            return Stamps(clocks, "date", zone, instants)
        return parse_times(
            self.raw.texts(time),
            self.raw.where,
            name=time,
            time_format=self.options.time_format,
            form=(self.like or {}).get("form"),
            timezone=self.options.timezone,
            groups=groups.values(),
        )

    def _groups(self) -> dict[str, Array]:
        """Return the rows of each series, by its name."""
        name = self.options.series
        if name is None:
            return {"": np.arange(self.raw.rows)}
        cells = self.raw.texts(name)
        if (cells == "").any():
            row = int((cells == "").arg_max())
            raise ValueError(
                f"{argument('--series')}: expected a name in every row, got none in column "
                f"{quoted(name)}, {self.raw.where(row)}"
            )
        codes = cells.rank("dense").to_numpy().astype(np.int64)
        order = np.argsort(codes, kind="stable")
        cuts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        return {cells[int(rows[0])]: rows for rows in cuts}

    def _expected_step(self, stamps: Stamps | None, groups: dict[str, Array]) -> Step | None:
        """Return the step that all series must have.

        It is the one given, that of the training, or that of the first series.
        """
        if stamps is None:
            return None
        if self.options.step is not None:
            return parse_step(self.options.step)
        trained = Step(**self.like["step"]) if self.like and self.like.get("step") else None
        found: dict[Step, str] = {}
        for name, rows in groups.items():
            step = common_step(sorted_stamps(stamps, rows)[0])
            if step is not None and not any(_rounded(step, other) for other in found):
                found[step] = name
        for step in found:
            if trained is not None and not _same(step, trained):
                raise ValueError(
                    f"FILE: expected steps of {trained}, as in the training, got {step}"
                )
        if trained is not None:
            return trained
        if len(found) > 1:
            (a, first), (b, second) = list(found.items())[:2]
            raise ValueError(
                f"--step: expected one step in all series, got {a} in {quoted(first)} and {b} in "
                f"{quoted(second)}"
            )
        return next(iter(found)) if len(groups) > 1 and found else None


def _rounded(a: Step, b: Step) -> bool:
    """Return whether steps differ by no more than the rounding of times that are numbers."""
    return a == b or (
        a.unit == b.unit == "number" and bool(np.isclose(a.count, b.count, rtol=1e-4, atol=0))
    )


def _same(a: Step, b: Step) -> bool:
    return a.unit == b.unit and bool(np.isclose(a.count, b.count, rtol=1e-3))


readable(globals())
