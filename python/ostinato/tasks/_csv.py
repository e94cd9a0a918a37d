"""Columns of text from the bytes of a CSV file, with the line number of every row.

Polars splits the cells. It does not report a short row (it fills it with nulls), nor where a long
one is. The shape of the file (encoding, delimiter, quotes, cells of each row) is therefore checked
here first, over whole arrays.
"""

from __future__ import annotations

import codecs
import encodings
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._check import Array, quoted
from ._remedy import argument, has

__all__ = ["Cells", "decode", "split"]

# In order of preference: only the comma occurs in numbers as well.
DELIMITERS = ("\t", ";", "|", ",")
HEAD = 1 << 18  # bytes from which the delimiter is found
PIECE = 1 << 18  # bytes that are looked at together
NEWLINE, QUOTE = 10, 34
SPACE = re.compile(rb"[\t\x0b\x0c\x1c-\x20]")  # what may be around a cell
SIGNATURES = {
    b"PK\x03\x04": "a zip archive (.xlsx or .zip)",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"BZh": "a bzip2 file",
    b"\xd0\xcf\x11\xe0": "an .xls file",
    b"%PDF": "a PDF file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite file",
}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Cells:
    """The columns of a CSV file, all text.

    Attributes:
        frame: a polars.DataFrame of strings, without null.
        lines: int64 [rows], the line of the file in which each row begins.
        delimiter: the delimiter; None where the file has one column.
        first: the cells of the first row, which are the names where there is a header.
        first_line: the line of the first row.
        notes: what is worth saying about the file.
    """

    frame: Any
    lines: Array
    delimiter: str | None
    first: list[str]
    first_line: int
    notes: tuple[str, ...]


def decode(raw: bytes, encoding: str | None, source: str) -> tuple[bytes, str | None]:
    """Decode the text of a file.

    A byte-order mark tells the encoding. Without one it is UTF-8 if the bytes are, otherwise UTF-16
    if every other byte is zero, otherwise Windows-1252, which is Latin-1 with more letters.

    Args:
        raw: the bytes of the file.
        encoding: ``--encoding``, if given.
        source: name of the file, for errors.

    Returns:
        The text in UTF-8 with newlines between lines, and the encoding where it was not UTF-8.

    Raises:
        ValueError: the file is no text, or not in this encoding.
    """
    for signature, kind in SIGNATURES.items():
        if raw.startswith(signature):
            raise ValueError(f"FILE: expected CSV or Parquet, got {kind}: {source}")
    text, found = _recode(raw, encoding, source)
    if b"\0" in text[:HEAD]:
        raise ValueError(f"FILE: expected CSV or Parquet, got bytes that are no text in {source}")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text, found


def _recode(raw: bytes, encoding: str | None, source: str) -> tuple[bytes, str | None]:
    if encoding is not None:
        try:
            # Python's own: others may answer to any name.
            codec = encodings.search_function(encoding)
            if codec is None:
                raise LookupError(encoding)
            name = codec.name
            text = raw.decode("utf-8-sig" if name == "utf-8" else name)
            return text.removeprefix("\ufeff").encode(), None
        except LookupError:
            raise ValueError(
                f"--encoding: expected a name such as utf-8 or latin-1, got {encoding!r}"
            ) from None
        except UnicodeError as e:  # some codecs tell no place; of some, the text has surrogates
            at = "bytes that have no meaning in it"
            if isinstance(e, UnicodeDecodeError):
                at = f"{e.reason} at byte {e.start}"
            elif isinstance(e, UnicodeEncodeError):
                at = f"half of a surrogate pair at character {e.start}"
            raise ValueError(
                f"{argument('--encoding')}: expected text in {encoding}, got {source} with {at}"
            ) from None
    for mark, name in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            rest = raw[len(mark) :]
            return (
                (rest, None)
                if name == "utf-8" and _is_utf8(rest)
                else (_strict(rest, name, source), name)
            )
    head = np.frombuffer(raw[: HEAD // 2 * 2][: len(raw) // 2 * 2], np.uint8)
    zeros = [float((head[k::2] == 0).mean()) if head.size else 0.0 for k in (0, 1)]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        name = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        return _strict(raw, name, source), name
    if _is_utf8(raw):
        return raw, None
    try:
        return raw.decode("cp1252").encode(), "cp1252"
    except UnicodeDecodeError:
        return raw.decode("latin-1").encode(), "latin-1"


def _is_utf8(raw: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, len(raw), PIECE):
            decoder.decode(raw[begin : begin + PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _strict(raw: bytes, name: str, source: str) -> bytes:
    try:
        return raw.decode(name).encode()
    except UnicodeDecodeError as e:
        raise ValueError(
            f"FILE: expected {name} after the byte-order mark, got {source} with {e.reason} at "
            f"byte {e.start}"
        ) from None


@dataclass(frozen=True)
class _Records:
    """The records of a text.

    A record is a line, or several where a quoted cell holds line breaks.

    Attributes:
        ends: int64 [records], bytes, without the line break.
        cells: int32 [records], how many cells each has.
        lines: int64 [records], line numbers from 1.
    """

    ends: Array
    cells: Array
    lines: Array

    @property
    def starts(self) -> Array:
        """Where the records begin, int64 [records]: behind the line break before each."""
        starts: Array = np.zeros_like(self.ends)
        starts[1:] = self.ends[:-1] + 1
        return starts


def _records(text: bytes, delimiter: int | None) -> _Records:
    """Find the records and count their cells; what is within quotes separates nothing.

    The text is looked at in pieces of whole records, since what is computed of a byte takes several
    times its memory.
    """
    most = text.count(b"\n") + 1
    out = _Records(np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.int64))
    count, begin, line, size = 0, 0, 1, PIECE
    while begin < len(text):
        end = min(begin + size, len(text))
        a = np.frombuffer(text, np.uint8, end - begin, begin)
        piece = _whole_records(a, delimiter, line, end == len(text))
        if piece is None:  # one record is longer
            size *= 2
            continue
        ends, cells, lines, after = piece
        mine = slice(count, count + len(ends))
        out.ends[mine], out.cells[mine], out.lines[mine] = ends + begin, cells, lines
        count += len(ends)
        begin, line, size = begin + int(ends[-1]) + 1, after, PIECE
    return _Records(out.ends[:count], out.cells[:count], out.lines[:count])


def _whole_records(
    a: Array, delimiter: int | None, line: int, last: bool
) -> tuple[Array, Array, Array, int] | None:
    """Return where the records of a piece end, their cells and lines, and the line after them.

    Args:
        a: the bytes, of which the first begins a record.
        delimiter: between cells, or None.
        line: the line of the first byte.
        last: whether the text ends here. Otherwise the rest behind the last end is left out.

    Returns:
        The four, or None where no record ends.
    """
    wanted = (a == NEWLINE) | (a == QUOTE)
    if delimiter is not None:
        wanted |= a == delimiter
    at = np.flatnonzero(wanted)
    kind = a[at]
    quotes = kind == QUOTE
    outside = np.cumsum(quotes) % 2 == 0 if quotes.any() else np.ones(len(at), bool)
    is_end = outside & (kind == NEWLINE)
    if not last:
        found = np.flatnonzero(is_end)
        if not found.size:
            return None
        count = int(found[-1]) + 1
        at, kind, quotes, outside = at[:count], kind[:count], quotes[:count], outside[:count]
        is_end, a = is_end[:count], a[: int(at[-1]) + 1]
    if quotes.any():
        _check_quotes(a, at[quotes], delimiter, line)
    breaks = np.cumsum(kind == NEWLINE)
    ends = at[is_end]
    commas = np.cumsum(outside & (kind != NEWLINE) & ~quotes)
    counts, lines = commas[is_end], breaks[is_end]
    if (int(ends[-1]) + 1 if ends.size else 0) < len(a):  # the last line has no line break
        ends = np.append(ends, len(a))
        counts = np.append(counts, commas[-1] if commas.size else 0)
        lines = np.append(lines, breaks[-1] + 1 if breaks.size else 1)
    cells = (np.diff(counts, prepend=0) + 1).astype(np.int32)
    first_lines = np.concatenate([[0], lines[:-1]])[: len(ends)] + line
    return ends, cells, first_lines, line + (int(lines[-1]) if lines.size else 0)


def _check_quotes(a: Array, quotes: Array, delimiter: int | None, first: int) -> None:
    """Raise an error unless quotes are around whole cells, and doubled inside them.

    ``first`` is the line of the first byte.
    """

    def line(at: Any) -> int:
        return int((a[: int(at)] == NEWLINE).sum()) + first

    opening, closing = quotes[0::2], quotes[1::2]
    borders = [NEWLINE] if delimiter is None else [NEWLINE, delimiter]
    before = np.where(opening > 0, a[np.maximum(opening - 1, 0)], NEWLINE)
    doubled = np.zeros(len(opening), bool)
    doubled[1:] = opening[1:] == closing[: len(opening) - 1] + 1
    bad = ~np.isin(before, borders) & ~doubled
    if bad.any():
        raise ValueError(
            "FILE: expected quotes around whole cells, got one within a cell in line "
            f"{line(opening[bad][0])}; quote the cell and double the quotes inside it"
        )
    if len(closing) < len(opening):
        raise ValueError(
            "FILE: expected an even number of quotes, got one that is never closed in line "
            f"{line(opening[-1])}"
        )
    after = np.where(closing + 1 < len(a), a[np.minimum(closing + 1, len(a) - 1)], NEWLINE)
    bad = ~np.isin(after, borders)
    bad[: len(opening) - 1] &= ~doubled[1:]
    if bad.any():
        raise ValueError(
            "FILE: expected a cell to end with its quote, got more in line "
            f"{line(closing[bad][0])}; quote the cell and double the quotes inside it"
        )


def _find_delimiter(text: bytes) -> str | None:
    """Return the delimiter that splits every line of the head into the same number of cells.

    Where none does, it is the one that the first line has most of, and the row that differs is
    reported later with its line.
    """
    head = text[:HEAD]
    if len(text) > HEAD:
        head = head[: head.rfind(b"\n") + 1] or head
    counts: dict[str, Array] = {}
    problem: ValueError | None = None
    for candidate in DELIMITERS:
        try:
            records = _records(head, ord(candidate))
        except ValueError as e:  # quotes that do not fit, or a quoted cell that the head cuts
            problem = e
            continue
        full = records.ends > records.starts
        if full.any():
            counts[candidate] = records.cells[full]
    if problem is not None and not counts:
        raise problem
    for candidate, cells in counts.items():
        if cells[0] > 1 and (cells == cells[0]).all():
            return candidate
    in_header = {c: int(cells[0]) for c, cells in counts.items() if cells[0] > 1}
    return max(in_header, key=lambda c: in_header[c]) if in_header else None


def split(text: bytes, delimiter: str | None, source: str) -> Cells:
    """Split a text into cells, all rows with the same number of them.

    Args:
        text: UTF-8 with newlines between lines.
        delimiter: ``--delimiter``, if given.
        source: name of the file, for errors.

    Returns:
        The cells.

    Raises:
        ValueError: a row has another number of cells than the first one, or a quote is within a
            cell.
    """
    import polars as pl

    if delimiter is not None and (
        len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\n\r'
    ):
        raise ValueError(
            "--delimiter: expected one ASCII character, such as ';' or a tab, $'\\t', got "
            f"{quoted(delimiter)}"
        )
    if not text.strip():
        raise ValueError(f"FILE: expected a header and rows, got an empty file: {source}")
    found = delimiter or _find_delimiter(text)
    records = _records(text, None if found is None else ord(found))
    blank = _blank(text, records)
    text, records, blank_lines = _without(text, records, blank)
    _same_width(text, records, found)
    frame = _one_column(text, records) if found is None else _columns(text, found, source)
    # Line breaks within a cell stand in quotes.
    spaces = not text.isascii() or b'"' in text or SPACE.search(text) is not None
    frame = _stripped(frame, spaces)
    if frame.height != len(records.ends):
        raise ValueError(
            f"FILE: expected {len(records.ends)} rows, got {frame.height} from the reader in "
            f"{source}"
        )
    lines, first, first_line = records.lines, list(frame.row(0)), int(records.lines[0])
    empty = frame.select(pl.all_horizontal(pl.all() == "")).to_series().to_numpy()
    if empty[0]:
        raise ValueError(
            f"FILE: expected names or values in the first row, got empty cells in line {first_line}"
        )
    if empty.any() and frame.width > 1:  # spreadsheets write lines of delimiters below the last row
        blank_lines += int(empty.sum())
        frame, lines = frame.filter(~empty), lines[~empty]
    notes = (f"{blank_lines} blank lines passed over",) if blank_lines > 1 else ()
    notes = ("1 blank line passed over",) if blank_lines == 1 else notes
    return Cells(frame, lines, found, first, first_line, notes)


def _columns(text: bytes, delimiter: str, source: str) -> Any:
    """Return the cells of a file with a delimiter, unchanged."""
    import polars as pl

    try:
        return pl.read_csv(
            text,
            has_header=False,
            infer_schema=False,
            separator=delimiter,
            quote_char='"',
            truncate_ragged_lines=False,
        )
    except pl.exceptions.PolarsError as e:
        raise ValueError(f"FILE: expected a CSV file, got {source}: {str(e)[:300]}") from None


def _stripped(frame: Any, spaces: bool) -> Any:
    """Return cells without spaces around them, and empty ones as ""; ``spaces``: there are any."""
    import polars as pl

    columns = frame.get_columns()
    for k, column in enumerate(columns):
        if column.null_count():
            columns[k] = column.fill_null("")
        if spaces:
            columns[k] = columns[k].str.strip_chars()
    return pl.DataFrame(columns)


def _one_column(text: bytes, records: _Records) -> Any:
    """Return the cells of a file without a delimiter: whole lines, without quotes around them."""
    import polars as pl

    cells = [text[s:e].decode() for s, e in zip(records.starts.tolist(), records.ends.tolist())]
    if b'"' in text:
        cells = [c[1:-1].replace('""', '"') if c.startswith('"') else c for c in cells]
    return pl.DataFrame({"column_1": cells})


def _blank(text: bytes, records: _Records) -> Array:
    """Return which records have nothing but spaces."""
    starts, ends = records.starts, records.ends
    blank = ends == starts
    a = np.frombuffer(text, np.uint8)
    first = a[np.minimum(starts, len(a) - 1)]
    for k in np.flatnonzero(~blank & (first <= 32) & (records.cells == 1)).tolist():
        blank[k] = not text[starts[k] : ends[k]].strip()
    return np.asarray(blank)


def _without(text: bytes, records: _Records, blank: Array) -> tuple[bytes, _Records, int]:
    """Drop blank records; those after the last row are not counted."""
    if not blank.any():
        return text, records, 0
    kept, starts = np.flatnonzero(~blank), records.starts
    between = int(blank[: kept[-1]].sum())
    pieces = []
    for run in np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1):
        pieces.append(text[int(starts[run[0]]) : int(records.ends[run[-1]])])
    lengths = (records.ends - starts)[kept]
    ends = np.cumsum(lengths + 1) - 1
    return (
        b"\n".join(pieces),
        _Records(ends, records.cells[kept], records.lines[kept]),
        between,
    )


def _same_width(text: bytes, records: _Records, delimiter: str | None) -> None:
    width = int(records.cells[0])
    bad = np.flatnonzero(records.cells != width)
    if not bad.size:
        return
    k = int(bad[0])
    row = text[int(records.starts[k]) : int(records.ends[k])].decode()
    row = row if len(row) <= 60 else row[:57] + "..."
    more = f" (and {len(bad) - 1} more rows like it)" if len(bad) > 1 else ""
    if records.cells[k] > width and delimiter == ",":
        fix = 'a cell with a comma in it has to be quoted, as "1,003.62"'
    elif k == len(records.cells) - 1:
        fix = "a line below the table, as a footer, has to go"
    else:
        fix = "mend the line"
        fix += ", or name what separates cells with --delimiter" if has("--delimiter") else ""
    raise ValueError(
        f"FILE: expected {width} cells in every row, as in line {int(records.lines[0])}, got "
        f"{int(records.cells[k])} in line {int(records.lines[k])}: {row!r}{more}; {fix}"
    )
