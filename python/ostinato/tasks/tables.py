"""Tables (CSV, Parquet, frames of pandas, Polars and Arrow) read into series with a time axis,
without a guess.

What can be read in one way only is found;
what can be read in two ways is an error that names the option.
"""

from __future__ import annotations

import os
import stat
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._check import Array
from . import _calendar, _csv, _numbers
from ._calendar import Axis, Stamps, Step

__all__ = ["ReadOptions", "Series", "Table", "read"]

FILLS = ("linear", "previous", "error")
DUPLICATES = ("error", "first", "last", "mean", "sum")
MAX_MISSING = 0.1
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


@dataclass(frozen=True)
class ReadOptions:
    """What a reader can be told; all that is None is found, or is an error where it cannot be.

    Attributes:
        time: name of the time column; "": there is none, and the order of the rows counts.
        column: names of the columns to forecast.
        series: name of the column that tells several stacked series apart.
        known: names of input columns that are known ahead.
        observed: names of input columns that are not.
        header: whether the first row has names; without one, columns are called "1", "2", ...
        delimiter: what separates cells.
        decimal: the decimal mark, "." or ",".
        thousands: what separates thousands.
        null: marks of missing values beside the usual ones.
        encoding: of the text.
        time_format: letters as of ``strftime``, or "year", "number", "s", "ms", "us", "ns".
        timezone: of clocks that are written without a zone, such as "Europe/Berlin".
        step: a step to which rows are gathered, such as "15min", "day" or "month".
        duplicates: of several rows at one time: "error", "first", "last", "mean" or "sum";
            with a step, "mean".
        fill: what stands for missing values:
            "linear" (between its neighbours), "previous", or "error".
        max_missing: the largest share of a series that is filled.
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
        for name in ("column", "known", "observed", "null"):
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
            _calendar.parse_step(self.step)


@dataclass(frozen=True)
class Series:
    """One series on its axis.

    Attributes:
        name: what it is called.
        values: float64 [n], filled.
        known: float64 [n + m, K]: inputs that are known ahead,
            m rows of them after the end of the values.
        observed: float64 [n, O]: inputs that are not.
        axis: the times of positions, 0 being the first value's.
        missing: how many of the n values were filled.
    """

    name: str
    values: Array
    known: Array
    observed: Array
    axis: Axis
    missing: int = 0

    def times(self, begin: int, end: int) -> list[str]:
        """Return the times of positions begin to end - 1, as text."""
        return self.axis.labels(np.arange(begin, end))


@dataclass(frozen=True)
class Table:
    """A table that was read."""

    series: tuple[Series, ...]
    source: str
    rows: int
    time: str | None  # the time column
    columns: tuple[str, ...]
    options: ReadOptions  # what was found stands in place of None
    facts: dict[str, Any]  # how this table was read, for the next file: plain values, for JSON
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> Step | None:
        """The step of the time axis; None where the order of the rows counts."""
        return self.series[0].axis.step if self.time is not None else None

    def lines(self) -> list[str]:
        """Return two lines about what was read: rows, period and step;
        columns and missing values."""
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


@dataclass(frozen=True)
class _Raw:
    """A table before its columns have meanings:
    Polars series of text, float64, dates or datetimes."""

    columns: dict[str, Any]
    source: str
    delimiter: str | None = None
    lines: Array | None = None  # of a CSV file
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def where(self, row: int) -> str:
        return f"line {int(self.lines[row])}" if self.lines is not None else f"row {row + 1}"

    def is_text(self, name: str) -> bool:
        return str(self.columns[name].dtype) == "String"

    def is_time(self, name: str) -> bool:
        return bool(self.columns[name].dtype.is_temporal())


def _polars() -> Any:
    try:
        import polars
    except ImportError:
        raise ImportError("reading tables needs Polars: pip install 'ostinato[data]'") from None
    return polars


def read(
    source: Any,
    options: ReadOptions | None = None,
    *,
    like: dict[str, Any] | None = None,
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
        options: what the reader is told.
        like: ``facts`` of a table that was read before;
            this one must have its columns and its step.
        **given: fields of `ReadOptions`, in place of ``options``.

    Returns:
        The series, on time axes of one step, without missing values.

    Raises:
        ValueError: if the table can be read in two ways or in none,
            with the line and the option that decides.
        OSError: if a file cannot be read.
        ImportError: if Polars is not installed.
    """
    _polars()
    if like is not None:
        options = _checked(like)
    options = replace(options or ReadOptions(), **given)
    return _Reader(_load(source, options), options, like).table()


def _checked(like: dict[str, Any]) -> ReadOptions:
    """Return the options of a table that was read before;
    its facts may come from a file that is damaged."""
    try:
        options = ReadOptions(**like["options"])
        texts = (options.time, options.series, options.time_format, options.timezone, like["form"])
        lists = (options.column, options.known, options.observed, options.null)
        good = all(t is None or isinstance(t, str) for t in texts)
        good &= all(isinstance(name, str) for names in lists for name in names)
        marks = _numbers.Marks(**(like["marks"] or {}))
        step = Step(**(like["step"] or {"unit": "number", "count": 1}))
        good &= (
            marks.decimal in {".", ","} and step.unit in _calendar.UNITS and 0 < step.count < 1e18
        )
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


def _load(source: Any, options: ReadOptions) -> _Raw:
    if not isinstance(source, (str, os.PathLike)):
        return _from_frame(source)
    path = Path(source)
    if not stat.S_ISREG(os.stat(path).st_mode):
        what = "a folder" if path.is_dir() else "something else"
        raise ValueError(f"FILE: expected a regular file, got {what}: {path}")
    with open(path, "rb") as f:
        magic = f.read(4)
        if magic == b"PAR1":
            return _from_parquet(path)
        raw = magic + f.read()
    text, encoding = _csv.decode(raw, options.encoding, str(path))
    del raw
    cells = _csv.split(text, options.delimiter, str(path))
    notes = cells.notes + ((f"read as {encoding}",) if encoding not in (None, "utf-8") else ())
    frame, lines = cells.frame, cells.lines
    names = [str(k + 1) for k in range(frame.width)]
    _check_header(cells, options, str(path))
    if options.header is not False:
        names, frame, lines = _names(cells.first, cells.first_line), frame[1:], lines[1:]
    if not frame.height:
        raise ValueError(f"FILE: expected a header and rows, got no row in {path}")
    return _Raw(dict(zip(names, frame.get_columns())), str(path), cells.delimiter, lines, notes)


def _check_header(cells: _csv.Cells, options: ReadOptions, source: str) -> None:
    """A first row of numbers and times only is told: it is a header if the user says so."""
    if options.header is not None:
        return
    pl = _polars()
    full = pl.Series([c for c in cells.first if c])
    values = [
        c
        for c in full
        if _calendar.kinds_of(pl.Series([c]), True)[0]
        or _numbers.share_of_numbers(pl.Series([c]), ())
    ]
    if len(full) == len(values):
        raise ValueError(
            f"FILE: expected names of columns in line {cells.first_line}, got "
            f"{', '.join(cells.first[:4])} in {source}; "
            "--no-header if that is a row of values, --header if those are names"
        )


def _names(first: list[str], line: int) -> list[str]:
    names = [name or (f"unnamed {k + 1}" if k else "") for k, name in enumerate(first)]
    again = {n for n in names if names.count(n) > 1}
    if again:
        raise ValueError(
            f"FILE: expected names that differ in line {line}, got {sorted(again)[0]!r} twice"
        )
    return names


def _from_parquet(path: Path) -> _Raw:
    pl = _polars()
    try:
        frame = pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as e:
        raise ValueError(f"FILE: expected a Parquet file, got {path}: {e}") from None
    return replace(_from_frame(frame), source=str(path))


def _from_frame(frame: Any) -> _Raw:
    """Take a frame of Polars, pandas or Arrow apart."""
    pl = _polars()
    module = type(frame).__module__.partition(".")[0]
    if module == "pandas":
        columns = _pandas_columns(frame)
    elif isinstance(frame, pl.LazyFrame):
        columns = {c.name: c for c in frame.collect().get_columns()}
    elif isinstance(frame, (pl.DataFrame, pl.Series)):
        columns = {
            c.name: c
            for c in (frame.to_frame() if isinstance(frame, pl.Series) else frame).get_columns()
        }
    elif hasattr(frame, "__arrow_c_stream__"):
        columns = {c.name: c for c in pl.DataFrame(frame).get_columns()}
    else:
        raise TypeError(
            "source: expected a path or a frame of pandas, Polars or Arrow, "
            f"got {type(frame).__name__}; pandas.Series(values) makes one of an array"
        )
    plain = {str(name): _plain(column) for name, column in columns.items()}
    raw = _Raw({n: c for n, c in plain.items() if c is not None}, f"a frame of {module}")
    if not raw.rows:
        raise ValueError("source: expected a frame with rows, got an empty one")
    return raw


def _plain(column: Any) -> Any:
    """Return a column as text, float64 or a time;
    None for what can be none of them (lists, structs)."""
    pl = _polars()
    kind = column.dtype
    if kind.is_numeric() or kind == pl.Boolean:
        return column.cast(pl.Float64).fill_null(float("nan"))
    if kind in (pl.Date, pl.Datetime):
        return column if kind == pl.Datetime else column.cast(pl.Datetime("us"))
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String).fill_null("").str.strip_chars()
    return None


def _pandas_columns(frame: Any) -> dict[str, Any]:
    """Return Polars series of a pandas frame, its index included unless it counts the rows."""
    pl = _polars()
    frame = frame.to_frame(frame.name or "value") if frame.ndim == 1 else frame
    if type(frame.index).__name__ != "RangeIndex":
        frame = frame.reset_index()
    columns: dict[str, Any] = {}
    for k, name in enumerate(frame.columns):
        column = frame.iloc[:, k]
        if getattr(column.dtype, "tz", None) is not None:
            clocks = column.dt.tz_convert("UTC").dt.tz_localize(None)
            utc = pl.Series(clocks.to_numpy().astype("datetime64[us]")).dt.replace_time_zone("UTC")
            columns[str(name)] = utc.dt.convert_time_zone(str(column.dtype.tz))
        elif column.dtype.kind == "M":
            columns[str(name)] = pl.Series(column.to_numpy().astype("datetime64[us]"))
        elif column.dtype.kind in "iufb":
            columns[str(name)] = pl.Series(column.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            empty = column.isna().to_numpy()
            columns[str(name)] = pl.Series(
                ["" if e else str(v) for v, e in zip(column, empty)], dtype=pl.String
            )
    return columns


@dataclass
class _Reader:
    """Gives the columns of a table their meanings and takes the series out."""

    raw: _Raw
    options: ReadOptions
    like: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    marks: _numbers.Marks = field(default_factory=_numbers.Marks)

    def table(self) -> Table:
        raw, options = self.raw, self.options
        self.notes.extend(raw.notes)
        self._check_names()
        time = self._time_column()
        self.marks = self._find_marks(time)
        columns = options.column or (self._value_column(time),)
        stamps = self._stamps(time) if time else None
        used = {
            n: self._numbers(n, n in options.known)
            for n in (*columns, *options.known, *options.observed)
        }
        groups = self._groups()
        expected = self._expected_step(stamps, groups)
        series = []
        for name, rows in groups.items():
            one = _Group(self, name, rows, stamps, used, expected, time)
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
        used += [("--series", [o.series] if o.series else []), ("--observed", o.observed)]
        taken: dict[str, str] = {}
        for option, names in used:
            for name in names:
                if name not in self.raw.columns:
                    raise ValueError(
                        f"{option}: expected one of {', '.join(self.raw.columns)}, got {name!r}"
                    )
                if name in taken:
                    raise ValueError(
                        f"{option}: expected columns without another use, got {name!r}, which is "
                        f"{taken[name]}"
                    )
                taken[name] = option

    def _free(self) -> list[str]:
        """Return the columns that the user has given no meaning."""
        o = self.options
        return [
            n
            for n in self.raw.columns
            if n not in {o.time, o.series, *o.column, *o.known, *o.observed}
        ]

    def _known_cells(self, name: str) -> Any:
        cells = self.raw.columns[name]
        return cells.filter(~_numbers._missing(cells, self.options.null))

    def _time_column(self) -> str | None:
        """Return the time column: the one named,
        or the only one whose cells are written as times."""
        if self.options.time is not None:
            return self.options.time or None
        written = [n for n in self._free() if self.raw.is_time(n)]
        for n in self._free():
            if self.raw.is_text(n) and _calendar.kinds_of(self._known_cells(n), False)[1] >= 0.5:
                written.append(n)
        if len(written) > 1:
            raise ValueError(
                f"--time: expected the time column, for {' and '.join(written)} have times"
            )
        if written:
            return written[0]
        named = [n for n in self._free() if n.lower() in TIME_NAMES and self._share(n) >= 0.5]
        if len(named) > 1:
            raise ValueError(
                f"--time: expected the time column, for it can be {' or '.join(named)}; '' for none"
            )
        return named[0] if named else None

    def _share(self, name: str) -> float:
        """Return the share of numbers among the cells that are not missing."""
        if self.raw.is_text(name):
            return _numbers.share_of_numbers(self.raw.columns[name], self.options.null)
        return 0.0 if self.raw.is_time(name) else 1.0

    def _find_marks(self, time: str | None) -> _numbers.Marks:
        raw, o = self.raw, self.options
        named = {*o.column, *o.known, *o.observed}
        names = [n for n in raw.columns if raw.is_text(n) and n not in {time, o.series}]
        columns = [(n, raw.columns[n]) for n in names if n in named or self._share(n) >= 0.5]
        like = (self.like or {}).get("marks")
        given = None if like is None else _numbers.Marks(**like)
        return _numbers.find_marks(
            columns, given, raw.delimiter, o.null, raw.where, o.decimal, o.thousands
        )

    def _value_column(self, time: str | None) -> str:
        """Return the only column of numbers that is no time, no count of rows,
        no id and no constant."""
        numeric = [n for n in self._free() if n != time and self._share(n) >= 0.5]
        if not numeric:
            raise ValueError(
                f"FILE: expected a column of numbers, got none in {', '.join(self.raw.columns)}"
            )
        if len(numeric) == 1:
            return numeric[0]
        values = {n: self._numbers(n, False) for n in numeric}
        why = {n: self._not_a_series(n, v) for n, v in values.items()}
        left = [n for n, reason in why.items() if not reason]
        if len(left) != 1:
            raise ValueError(
                "--column: expected the column to forecast, for it can be "
                f"{', '.join(left or numeric)}; several train "
                "one model, and --known and --observed make inputs of others"
            )
        if time is None:
            for name, reason in why.items():
                if reason == "counts the rows" and (np.diff(values[name]) < 0).any():
                    raise ValueError(
                        f"--time: expected rows in order, got {name!r} out of order; --time {name} "
                        "sorts by it"
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
        """Return a column as float64 with NaN where it is missing;
        every other cell must be a number."""
        cells, where = self.raw.columns[name], self.raw.where
        if self.raw.is_time(name):
            raise ValueError(f"--column: expected a column of numbers, got times in {name!r}")
        if self.raw.is_text(name):
            if flags:
                cells = cells.str.replace("^(?i:true|yes)$", "1")
                cells = cells.str.replace("^(?i:false|no)$", "0")
            read = _numbers.parse(cells, self.marks, self.options.null)
            if read.bad.any():
                row = int(read.bad.argmax())
                raise ValueError(
                    f"FILE: expected numbers, got {cells[row]!r} in column {name!r}, {where(row)}; "
                    f"--null '{cells[row]}' if that means a missing value"
                )
            values = read.values
        else:
            values = cells.to_numpy().astype(np.float64)
        large = np.abs(np.nan_to_num(values, nan=0.0)) > _numbers.LARGEST
        if large.any():
            row = int(large.argmax())
            raise ValueError(
                f"FILE: expected numbers of at most {_numbers.LARGEST:g} in magnitude, got "
                f"{cells[row]} in column {name!r}, {where(row)}"
            )
        return values

    def _stamps(self, time: str) -> Stamps:
        pl = _polars()
        cells = self.raw.columns[time]
        if self.raw.is_time(time):
            if cells.null_count():
                row = int(cells.is_null().arg_max())
                raise ValueError(
                    f"FILE: expected a time in every row, got none in column {time!r}, "
                    f"{self.raw.where(row)}"
                )
            zone = cells.dtype.time_zone
            clocks = cells.dt.replace_time_zone(None).to_numpy().astype("datetime64[us]")
            if zone is None:
                stamps = Stamps(clocks, "date")
                zoned = self.options.timezone
                return (
                    stamps
                    if zoned is None
                    else _calendar.localise(stamps, zoned, self.raw.where, time)
                )
            instants = (
                cells.dt.convert_time_zone("UTC")
                .dt.replace_time_zone(None)
                .to_numpy()
                .astype("datetime64[us]")
            )
            return Stamps(clocks, "date", zone, instants)
        if not self.raw.is_text(time):
            whole = bool((cells == cells.round()).all())
            cells = (
                cells.cast(pl.Int64).cast(pl.String)
                if whole
                else cells.cast(pl.String).replace("NaN", "")
            )
        return _calendar.parse_times(
            cells,
            self.raw.where,
            name=time,
            time_format=self.options.time_format,
            form=(self.like or {}).get("form"),
            timezone=self.options.timezone,
        )

    def _groups(self) -> dict[str, Array]:
        """Return the rows of each series, by its name."""
        name = self.options.series
        if name is None:
            return {"": np.arange(self.raw.rows)}
        pl = _polars()
        cells = self.raw.columns[name]
        if not self.raw.is_text(name):
            whole = not self.raw.is_time(name) and bool((cells == cells.round()).all())
            cells = (cells.cast(pl.Int64) if whole else cells).cast(pl.String).fill_null("")
        if (cells == "").any():
            row = int((cells == "").arg_max())
            raise ValueError(
                f"--series: expected a name in every row, got none in column {name!r}, "
                f"{self.raw.where(row)}"
            )
        codes = cells.rank("dense").to_numpy().astype(np.int64)
        order = np.argsort(codes, kind="stable")
        cuts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        return {cells[int(rows[0])]: rows for rows in cuts}

    def _expected_step(self, stamps: Stamps | None, groups: dict[str, Array]) -> Step | None:
        """Return the step that all series must have:
        the one given, that of the training, or the first series'."""
        if stamps is None:
            return None
        if self.options.step is not None:
            return _calendar.parse_step(self.options.step)
        trained = Step(**self.like["step"]) if self.like and self.like.get("step") else None
        found: dict[Step, str] = {}
        for name, rows in groups.items():
            step = _calendar.common_step(_sorted(stamps, rows)[0])
            if step is not None:
                found.setdefault(step, name)
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
                f"--step: expected one step in all series, got {a} in {first!r} and {b} in "
                f"{second!r}"
            )
        return next(iter(found)) if len(groups) > 1 and found else None


def _same(a: Step, b: Step) -> bool:
    return a.unit == b.unit and bool(np.isclose(a.count, b.count, rtol=1e-3))


def _sorted(stamps: Stamps, rows: Array) -> tuple[Stamps, Array]:
    """Return the different times of some rows in order,
    and the rows in the order of their times."""
    key = (stamps.values if stamps.instants is None else stamps.instants)[rows]
    order = np.argsort(key, kind="stable")
    new = (
        np.concatenate([[True], np.diff(key[order]) > np.zeros(1, np.diff(key[:2]).dtype)])
        if len(key) > 1
        else np.array([True])
    )
    kept = rows[order[new]]
    instants = None if stamps.instants is None else stamps.instants[kept]
    return Stamps(stamps.values[kept], stamps.form, stamps.zone, instants), rows[order]


class _Group:
    """The rows of one series, on a grid of its own:
    columns [positions], NaN where nothing is known."""

    def __init__(
        self,
        reader: _Reader,
        name: str,
        rows: Array,
        stamps: Stamps | None,
        used: dict[str, Array],
        expected: Step | None,
        time: str | None,
    ) -> None:
        self.reader, self.name, self.time = reader, name, time
        self.options = reader.options
        if stamps is None:
            self.axis = Axis(Step("number", 1), 1.0, "number")
            self.grid = {n: v[rows] for n, v in used.items()}
            return
        if self.options.step is not None and expected is not None:
            stamps = self._gathered(stamps, expected)
        distinct, ordered = _sorted(stamps, rows)
        self._say_order(stamps, rows)
        key = stamps.values if stamps.instants is None else stamps.instants
        first = np.flatnonzero(np.concatenate([[True], key[ordered][1:] != key[ordered][:-1]]))
        columns = self._combined(used, ordered, first, stamps)
        self.axis, position, remark = _calendar.find_axis(
            distinct, expected, lambda k: reader.raw.where(int(ordered[first[k]]))
        )
        if remark:
            reader.notes.append(remark)
        gaps = int(position[-1]) + 1 - len(position)
        if gaps:
            reader.notes.append(f"{gaps} steps without a row{self._of()}")
        if gaps > 10 * len(position) + 1000:
            raise ValueError(
                f"FILE: expected rows at most of the steps, got {len(position)} in "
                f"{int(position[-1]) + 1} steps of "
                f"{self.axis.step}{self._of()}; --step names a longer one"
            )
        self.grid = {}
        for n, v in columns.items():
            self.grid[n] = np.full(int(position[-1]) + 1, np.nan)
            self.grid[n][position] = v

    def _of(self) -> str:
        return f" of {self.name}" if self.name else ""

    def _gathered(self, stamps: Stamps, step: Step) -> Stamps:
        if stamps.values.dtype.kind == "f":
            raise ValueError("--step: expected times of a calendar for it, got plain numbers")
        if (
            stamps.instants is not None
            and step.unit == "microsecond"
            and step.count < _calendar.DAY
        ):
            instants = _calendar.floor_to(stamps.instants, step)
            return Stamps(instants, "date", stamps.zone, instants)
        return Stamps(_calendar.floor_to(stamps.values, step), "date")

    def _say_order(self, stamps: Stamps, rows: Array) -> None:
        key = (stamps.values if stamps.instants is None else stamps.instants)[rows]
        if (key[1:] >= key[:-1]).all():
            return
        newest = bool((key[1:] <= key[:-1]).all())
        self.reader.notes.append(
            f"rows were {'newest first' if newest else 'not in order'}: sorted by {self.time}"
        )

    def _combined(
        self, used: dict[str, Array], ordered: Array, first: Array, stamps: Stamps
    ) -> dict[str, Array]:
        """Return one row for each time:
        rows that repeat each other count once, others as ``--duplicates`` says."""
        if len(first) == len(ordered):
            return {n: v[ordered] for n, v in used.items()}
        rule = self.options.duplicates or ("mean" if self.options.step is not None else "error")
        count = np.diff(np.append(first, len(ordered)))
        if rule == "error":
            owner = np.repeat(first, count)
            pairs = [(v[ordered], v[ordered][owner]) for v in used.values()]
            other = ~np.all([(a == b) | (np.isnan(a) & np.isnan(b)) for a, b in pairs], axis=0)
            candidates = self._ids(stamps, ordered, set(used))
            if other.any() or candidates:
                k = int(other.argmax()) if other.any() else int(first[count > 1][0]) + 1
                raise self._duplicate(ordered, int(owner[k]), k, candidates)
            self.reader.notes.append(
                f"{len(ordered) - len(first)} rows that repeat another one passed over{self._of()}"
            )
            rule = "first"
        elif self.options.step is None:
            self.reader.notes.append(
                f"{len(ordered) - len(first)} rows at the time of another one: {rule}{self._of()}"
            )
        return {n: _reduce(v[ordered], first, count, rule) for n, v in used.items()}

    def _ids(self, stamps: Stamps, ordered: Array, used: set[str]) -> list[str]:
        """Return columns that, with the time, tell every row apart:
        they may hold the names of series."""
        if self.options.series is not None:
            return []
        _, key = np.unique(
            (stamps.values if stamps.instants is None else stamps.instants)[ordered],
            return_inverse=True,
        )
        found = []
        for n in self.reader._free():
            cells = self.reader.raw.columns[n]
            codes = cells.rank("dense").to_numpy()[ordered]
            if (
                n != self.time
                and codes.max() < len(ordered)
                and len(np.unique(np.stack([key, codes]), axis=1)[0]) == len(key)
            ):
                found.append(n)
        words = [n for n in found if self.reader.raw.is_text(n) and self.reader._share(n) < 0.5]
        return words or found

    def _duplicate(self, ordered: Array, a: int, b: int, candidates: list[str]) -> ValueError:
        raw = self.reader.raw
        time = raw.columns[self.time or ""][int(ordered[a])]
        fix = "--duplicates first, last, mean or sum makes one of them"
        if candidates:
            fix = f"--series {candidates[0]} if that column tells several series apart" + (
                f" (or {', '.join(candidates[1:])})" if candidates[1:] else ""
            )
        elif not self.options.timezone:
            fix += "; --timezone NAME where clocks were put back"
        return ValueError(
            f"FILE: expected one row for each time{self._of()}, got {time} in "
            f"{raw.where(int(ordered[a]))} and {raw.where(int(ordered[b]))}; {fix}"
        )

    def series(self, column: str, several: bool) -> Series:
        """Take one series out: from its first to its last value, what is missing between filled."""
        values = self.grid[column]
        there = np.flatnonzero(~np.isnan(values))
        if not there.size:
            raise ValueError(f"FILE: expected numbers in column {column!r}{self._of()}, got none")
        begin, end = int(there[0]), int(there[-1]) + 1
        if begin:
            self.reader.notes.append(
                f"{begin} rows before the first value of {column}{self._of()} left out"
            )
        if len(values) > end:
            self.reader.notes.append(
                f"{len(values) - end} rows after the last value of {column}{self._of()}: the future"
            )
        filled, missing = self._filled(column, values[begin:end])
        observed = [self._filled(n, self.grid[n][begin:end])[0] for n in self.options.observed]
        known = [self.grid[n] for n in self.options.known]
        last = end
        if known:  # as many rows of the future as all inputs have
            full = np.all([~np.isnan(v[end:]) for v in known], axis=0)
            last = end + (int(full.argmin()) if not full.all() else len(full))
        inputs = [
            np.append(self._filled(n, v[begin:end])[0], v[end:last])
            for n, v in zip(self.options.known, known)
        ]
        n = end - begin
        name = (f"{self.name} {column}" if several else self.name) if self.name else column
        axis = replace(self.axis, start=self.axis.at(np.array(begin))[()])
        return Series(
            name,
            filled,
            np.stack(inputs, 1) if inputs else np.zeros((last - begin, 0)),
            np.stack(observed, 1) if observed else np.zeros((n, 0)),
            axis,
            missing,
        )

    def _filled(self, column: str, values: Array) -> tuple[Array, int]:
        missing = np.isnan(values)
        count = int(missing.sum())
        if not count:
            return values, 0
        share, o = count / len(values), self.options
        if o.fill == "error" or share > o.max_missing:
            limit = (
                "no missing value"
                if o.fill == "error"
                else f"at most {100 * o.max_missing:g}% missing values"
            )
            fix = (
                "--fill linear or previous fills them"
                if o.fill == "error"
                else f"--max-missing {min(0.99, share + 0.01):.2f} fills them"
            )
            raise ValueError(
                f"FILE: expected {limit} in column {column!r}{self._of()}, got {count} of "
                f"{len(values)} ({100 * share:.0f}%), steps without a row included; {fix}"
            )
        there = np.flatnonzero(~missing)
        if o.fill == "linear":
            return np.interp(np.arange(len(values)), there, values[there]), count
        before = np.maximum(np.searchsorted(there, np.arange(len(values)), side="right") - 1, 0)
        return values[there[before]], count


def _reduce(values: Array, first: Array, count: Array, rule: str) -> Array:
    """Make one value of each run of values; missing ones count for nothing."""
    if rule in {"first", "last"}:
        return values[first if rule == "first" else first + count - 1]
    known = np.add.reduceat((~np.isnan(values)).astype(np.float64), first)
    total = np.add.reduceat(np.nan_to_num(values, nan=0.0), first)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known > 0, total / (known if rule == "mean" else 1.0), np.nan)
