"""The columns of a file or a frame, before they have meanings."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._check import Array, some
from .._files import open_regular
from . import _csv, _numbers, _times
from ._remedy import fix
from ._table import ReadOptions

SMALL = 256 << 20  # bytes that any compressed file may hold
GROWTH = 200  # and how many times its size
PART = 1 << 20  # bytes that are unpacked at a time
CELL = 8  # bytes of a number in a table
LONGEST = 300  # characters of what Polars says of a file

__all__ = ["Columns", "Raw", "import_polars", "load"]


def import_polars() -> Any:
    """Return the module polars; the error says how to install it."""
    try:
        import polars
    except ImportError:
        raise ImportError("reading tables needs Polars: pip install 'ostinato[data]'") from None
    return polars


@dataclass(frozen=True)
class Raw:
    """A table before its columns have meanings.

    Attributes:
        columns: Polars series of text, float64 or datetimes, by name.
        exact: those of numbers that are no float64, as they are, by name. They may be names or
            times, which float64 would round.
        source: where they come from, for messages.
        delimiter: the delimiter of a CSV file.
        lines: int64 [rows], the line of each row in a CSV file.
        notes: what is worth saying about the file.
        others: columns that are neither text, numbers nor times of a calendar, by name.
    """

    columns: dict[str, Any]
    source: str
    delimiter: str | None = None
    lines: Array | None = None
    notes: tuple[str, ...] = ()
    exact: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def where(self, row: int) -> str:
        """Return where a row is: its line in a file, or its number."""
        return f"line {int(self.lines[row])}" if self.lines is not None else f"row {row + 1}"

    def is_text(self, name: str) -> bool:
        """Return whether a column holds text."""
        return str(self.columns[name].dtype) == "String"

    def is_time(self, name: str) -> bool:
        """Return whether a column holds times of a calendar."""
        return bool(self.columns[name].dtype.is_temporal())

    def texts(self, name: str) -> Any:
        """Return a column as text, "" where it is missing; different cells have different texts."""
        pl = import_polars()
        cells = self.columns[name]
        if self.is_text(name):
            return cells
        if self.is_time(name):
            return cells.cast(pl.String).fill_null("")
        cells = self.exact.get(name, cells)
        if not cells.dtype.is_float():
            return _written(cells)
        known = cells.fill_nan(None)
        whole = bool(((known == known.round()) & (known.abs() < 2**63)).all())
        return (known.cast(pl.Int64) if whole else known).cast(pl.String).fill_null("")


def _written(cells: Any) -> Any:
    """Return whole numbers, or decimal fractions, as text without zeros at the end."""
    pl = import_polars()
    text = cells.cast(pl.String).fill_null("")
    if cells.dtype.is_integer() or not cells.dtype.scale:
        return text
    return text.str.strip_chars_end("0").str.strip_chars_end(".")


def load(source: Any, options: ReadOptions) -> Raw:
    """Return the columns of a CSV or Parquet file, or of a frame."""
    if not isinstance(source, (str, os.PathLike)):
        return _from_frame(source)
    path = Path(source)
    if not stat.S_ISREG(os.stat(path).st_mode):
        what = "a folder" if path.is_dir() else "something else"
        raise ValueError(f"FILE: expected a regular file, got {what}: {path}")
    with open_regular(path) as f:
        magic = f.read(4)
        if magic == b"PAR1":
            return _from_parquet(path)
        f.seek(0)
        raw = f.read()
    if magic.startswith(b"\x1f\x8b"):
        raw = _unzipped(raw, path)
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
    return Raw(dict(zip(names, frame.get_columns())), str(path), cells.delimiter, lines, notes)


def _unzipped(raw: bytes, path: Path) -> bytes:
    """Return the bytes of a file that gzip compressed."""
    most = _most(len(raw))
    try:
        with gzip.open(io.BytesIO(raw)) as f:
            parts, left = [b""], most + 1
            while left > 0 and (part := f.read(min(left, PART))):  # it takes all of that memory
                parts.append(part)
                left -= len(part)
            text = b"".join(parts)
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"FILE: expected a file that gzip reads, got {path}: {e}") from None
    if len(text) > most:
        raise ValueError(
            f"FILE: expected a table of at most {most} bytes in a compressed file of {len(raw)}, "
            f"got more in {path}; unpack it first if that is right"
        )
    return text


def _most(size: int) -> int:
    """Return to how many bytes a file of some size may grow when it is unpacked."""
    return max(SMALL, GROWTH * size)


def _check_header(cells: _csv.Cells, options: ReadOptions, source: str) -> None:
    """Raise an error if the first row has only numbers and times, without --header."""
    if options.header is not None:
        return
    pl = import_polars()
    full = [pl.Series([c]) for c in cells.first if c]
    if all(_times.kinds_of(c, True)[0] or _numbers.share_of_numbers(c, ()) for c in full):
        raise ValueError(
            f"FILE: expected names of columns in line {cells.first_line}, got "
            f"{some(cells.first[:4], plain=True)} in {source}"
            + fix(
                "--no-header if that is a row of values, --header if those are names",
                "--no-header",
                "--header",
                otherwise="write names into the first line",
            )
        )


def _names(first: list[str], line: int) -> list[str]:
    names = [name or (f"unnamed {k + 1}" if k else "") for k, name in enumerate(first)]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(
            f"FILE: expected names that differ in line {line}, got {repeated[0]!r:.80} twice"
        )
    return names


def _from_parquet(path: Path) -> Raw:
    pl = import_polars()
    size = os.stat(path).st_size
    most = _most(size)
    try:
        lazy = pl.scan_parquet(path, glob=False)
        rows = int(lazy.select(pl.len()).collect().item())
        cells = rows * len(lazy.collect_schema())
        if cells * CELL > most:
            raise ValueError(
                f"FILE: expected a table of at most {most // CELL} cells in a Parquet file of "
                f"{size} bytes, got {cells} in {path}; make it a CSV file if that is right"
            )
        frame = pl.read_parquet(path, glob=False)
    # A panic of the library is no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as e:
        raise ValueError(f"FILE: expected a Parquet file, got {path}: {str(e)[:LONGEST]}") from None
    return replace(_from_frame(frame), source=str(path))


def _from_frame(frame: Any) -> Raw:
    """Take a frame of Polars, pandas or Arrow apart."""
    pl = import_polars()
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
    rounded = {n: c for n, c in columns.items() if c.dtype.is_numeric() and c.dtype != pl.Float64}
    exact = {str(name): column for name, column in rounded.items()}
    others = {str(name): column for name, column in columns.items() if plain[str(name)] is None}
    raw = Raw(
        {n: c for n, c in plain.items() if c is not None},
        f"a frame of {module}",
        exact=exact,
        others=others,
    )
    if not raw.rows:
        raise ValueError("source: expected a frame with rows, got an empty one")
    return raw


def _plain(column: Any) -> Any:
    """Return a column as text, float64 or a time, and None where it can be none of them."""
    pl = import_polars()
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
    pl = import_polars()
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
        elif column.dtype.kind in "iu":
            columns[str(name)] = _whole_numbers(column)
        elif column.dtype.kind in "fb":
            columns[str(name)] = pl.Series(column.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            empty = column.isna().to_numpy()
            columns[str(name)] = pl.Series(
                ["" if e else str(v) for v, e in zip(column, empty)], dtype=pl.String
            )
    return columns


def _whole_numbers(column: Any) -> Any:
    """Return a pandas column of whole numbers as a Polars series that is exact."""
    pl = import_polars()
    kind = pl.Int64 if column.dtype.kind == "i" else pl.UInt64
    if column.isna().any():
        cells = column.to_numpy(dtype=object, na_value=None).tolist()
        return pl.Series([None if cell is None else int(cell) for cell in cells], dtype=kind)
    return pl.Series(column.to_numpy(dtype=np.int64 if kind == pl.Int64 else np.uint64))


class Columns:
    """The columns of a table, and which of them have no meaning yet.

    Args:
        raw: the table.
        options: options of the reader.
    """

    def __init__(self, raw: Raw, options: ReadOptions) -> None:
        self.raw, self.options = raw, options

    def free(self) -> list[str]:
        """Return the columns that the user has given no meaning."""
        o = self.options
        used = {o.time, o.series, *o.column, *o.known, *o.observed}
        return [n for n in self.raw.columns if n not in used]

    def known_cells(self, name: str) -> Any:
        """Return the cells of a column that are not missing."""
        return self.raw.columns[name].filter(self.known(name))

    def known(self, name: str) -> Any:
        """Return which cells of a column of text are not missing, as a Polars series of bool."""
        return ~_numbers._missing(self.raw.columns[name], self.options.null)

    def share_of_numbers(self, name: str) -> float:
        """Return the share of numbers among the cells that are not missing."""
        if self.raw.is_text(name):
            return _numbers.share_of_numbers(self.raw.columns[name], self.options.null)
        return 0.0 if self.raw.is_time(name) else 1.0
