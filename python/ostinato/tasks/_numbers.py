"""Numbers from cells of text, by rules that are stated and never by a guess.

A file has one decimal mark and at most one thousands separator. Both are found from cells that can
be read in one way only; where cells can be read in two ways and nothing else decides, that is an
error that names the option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._check import Array, quoted
from ._remedy import fix

__all__ = ["LARGEST", "NULLS", "Marks", "Numbers", "find_marks", "parse", "share_of_numbers"]

# In any case.
NULLS = (
    "",
    "na",
    "n/a",
    "#na",
    "#n/a",
    "nan",
    "null",
    "none",
    "nil",
    "-",
    "--",
    "?",
    ".",
    "missing",
)
LARGEST = 1e100  # in magnitude: squares and sums of such numbers are still finite

SPACES = " \u00a0\u2009\u202f"
GROUPERS = SPACES + "'\u2019"  # never a decimal mark
PLAIN = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
# A number under some reading. Digits of other scripts count here alone: a column of them has
# numbers, which are told to be bad; as text it would be passed over in silence.
NUMERIC = rf"^[+-]?[\d.,{GROUPERS}]*\d[.,]?(?:[eE][+-]?\d+)?$"
MARKS = ("--decimal", "--thousands")
PLAINLY = "write the numbers as 1234.5"
INFINITE = r"^[+-]?(?i:inf|infinity)$"


@dataclass(frozen=True)
class Marks:
    """How numbers are written in a file.

    Attributes:
        decimal: the decimal mark.
        thousands: the thousands separator; None where there is none.
    """

    decimal: str = "."
    thousands: str | None = None


@dataclass(frozen=True)
class Numbers:
    """A column read as numbers.

    Attributes:
        values: float64 [rows], NaN where missing or bad.
        missing: bool [rows], cells with a mark of a missing value.
        bad: bool [rows], cells that are neither numbers nor missing.
    """

    values: Array
    missing: Array
    bad: Array


def _tidy(cells: Any) -> Any:
    """Give a minus sign its ASCII form."""
    if not cells.str.contains("\u2212", literal=True).any():
        return cells
    return cells.str.replace_all("\u2212", "-", literal=True)


def _missing(cells: Any, nulls: Sequence[str]) -> Any:
    return cells.str.to_lowercase().is_in(list(NULLS)) | cells.is_in([n.strip() for n in nulls])


def share_of_numbers(cells: Any, nulls: Sequence[str]) -> float:
    """Return the share of numbers among the cells that are not missing.

    Args:
        cells: a Polars series of text, [rows].
        nulls: marks of missing values in addition to the usual ones.

    Returns:
        A share from 0 to 1; 0 where all cells are missing.
    """
    known = cells.filter(~_missing(cells, nulls))
    if not len(known):
        return 0.0
    known = _tidy(known)
    like = known.str.contains(NUMERIC) | known.str.contains(INFINITE)
    return float(like.sum()) / len(known)


def find_marks(
    columns: Iterable[tuple[str, Any]],
    given: Marks | None,
    delimiter: str | None,
    nulls: Sequence[str],
    where: Callable[[int], str],
    decimal: str | None,
    thousands: str | None,
) -> Marks:
    """Find the decimal mark and the thousands separator of a file.

    Args:
        columns: names and cells (Polars, text) of the columns of numbers.
        given: marks of the file that a model was trained on.
        delimiter: the delimiter between cells.
        nulls: marks of missing values in addition to the usual ones.
        where: returns the line of a row, for errors.
        decimal: ``--decimal``, if given.
        thousands: ``--thousands``, if given.

    Returns:
        The marks.

    Raises:
        ValueError: cells contradict each other, or can be read in two ways.
    """
    _check_given(decimal, thousands)
    if decimal is None and thousands is None and given is not None:
        return given
    evidence = _Evidence(where)
    for name, cells in columns:
        evidence.look(name, cells, nulls)
    if decimal is not None:
        return Marks(
            decimal, thousands if thousands is not None else evidence.thousands_beside(decimal)
        )
    if thousands is not None:
        return Marks(
            "," if thousands == "." else "." if thousands == "," else evidence.decimal(delimiter),
            thousands,
        )
    found = evidence.decimal(delimiter)
    return Marks(found, evidence.thousands_beside(found))


def _check_given(decimal: str | None, thousands: str | None) -> None:
    if decimal is not None and decimal not in {".", ","}:
        raise ValueError(f"--decimal: expected '.' or ',', got {decimal!r}")
    if thousands is not None and (len(thousands) != 1 or thousands not in GROUPERS + ".,_"):
        raise ValueError(
            f"--thousands: expected one of '.', ',', ' ', \"'\" or '_', got {thousands!r}"
        )
    if decimal is not None and decimal == thousands:
        raise ValueError(
            f"--thousands: expected another mark than --decimal, got {thousands!r} for both"
        )


class _Evidence:
    """Evidence for the marks of a file: of each kind, the first cell that shows it."""

    # Cells that can be read in one way only, then those that can be read in two.
    KINDS = (
        ("decimal ,", r"^[+-]?(?:0*|[1-9][0-9]{3,}),[0-9]+(?:[eE][+-]?[0-9]+)?$"),
        ("decimal ,", r"^[+-]?[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})(?:[eE][+-]?[0-9]+)?$"),
        ("decimal ,", r"^[+-]?[0-9]+,[0-9]+[eE][+-]?[0-9]+$"),
        ("groups . decimal ,", r"^[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]*$"),
        ("groups .", r"^[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}$"),
        ("groups , decimal .", r"^[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+\.[0-9]*$"),
        ("groups ,", r"^[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3}){2,}$"),
        ("decimal .", r"^[+-]?(?:0*|[1-9][0-9]{3,})\.[0-9]+(?:[eE][+-]?[0-9]+)?$"),
        ("decimal .", r"^[+-]?[0-9]+\.(?:[0-9]{0,2}|[0-9]{4,})(?:[eE][+-]?[0-9]+)?$"),
        ("decimal .", r"^[+-]?[0-9]+\.[0-9]+[eE][+-]?[0-9]+$"),
        ("either ,", r"^[+-]?[1-9][0-9]{0,2},[0-9]{3}$"),
        ("either .", r"^[+-]?[1-9][0-9]{0,2}\.[0-9]{3}$"),
    )
    GROUPED = rf"^[+-]?[0-9]{{1,3}}(?:[{GROUPERS}][0-9]{{3}})+"

    def __init__(self, where: Callable[[int], str]) -> None:
        self.where = where
        self.seen: dict[str, str] = {}
        self.grouper: str | None = None
        # A cell with a dot before three digits, in a column that has whole numbers below 1,000 too:
        # the dot may separate thousands.
        self.beside_small: str | None = None

    def look(self, name: str, cells: Any, nulls: Sequence[str]) -> None:
        """Search a column for evidence."""
        cells = self._without_groupers(_tidy(cells))
        has = {m: cells.str.contains(m, literal=True) for m in ",."}
        if not has[","].any() and not has["."].any():
            return
        for kind, pattern in self.KINDS:
            search = kind == "either ." and self.beside_small is None
            if (kind in self.seen and not search) or not has[kind[-1]].any():
                continue
            match = cells.str.contains(pattern)
            if match.any():
                row = int(match.arg_max())
                cell = f"{quoted(cells[row])} in column {quoted(name)}, {self.where(row)}"
                self.seen.setdefault(kind, cell)
                if search and cells.str.contains(r"^[+-]?[0-9]{1,3}$").any():
                    self.beside_small = cell

    def _without_groupers(self, cells: Any) -> Any:
        """Remove spaces and apostrophes between groups of three, which are no decimal mark."""
        match = cells.str.contains(self.GROUPED)
        if not match.any():
            return cells
        if self.grouper is None:
            self.grouper = next(c for c in cells.filter(match)[0] if c in GROUPERS)
        return cells.zip_with(~match, cells.str.replace_all(f"[{GROUPERS}]", ""))

    def _first(self, *kinds: str) -> str | None:
        return next((self.seen[k] for k in kinds if k in self.seen), None)

    def decimal(self, delimiter: str | None) -> str:
        """Return the decimal mark, or raise an error if the evidence allows both."""
        comma = self._first("decimal ,", "groups . decimal ,", "groups .")
        dot = self._first("decimal .", "groups , decimal .", "groups ,")
        if comma and dot:
            raise ValueError(
                f"FILE: expected one decimal mark in the whole file, got {comma} and {dot}"
                + fix(
                    "name it with --decimal, and what separates thousands with --thousands",
                    *MARKS,
                )
            )
        if comma or dot:
            return "," if comma else "."
        if "either ," in self.seen and self.grouper is None:
            raise ValueError(
                f"FILE: expected numbers that can be read in one way, got {self.seen['either ,']}"
                + fix(
                    "--decimal ',' if the comma is the decimal mark, --thousands ',' if it "
                    "separates thousands",
                    *MARKS,
                    otherwise=PLAINLY,
                )
            )
        unclear = self.beside_small or (self.seen.get("either .") if delimiter == ";" else None)
        if unclear:
            raise ValueError(
                f"FILE: expected numbers that can be read in one way, got {unclear}"
                + fix(
                    "--decimal '.' if the dot is the decimal mark, --thousands '.' if it "
                    "separates thousands",
                    *MARKS,
                    otherwise=PLAINLY,
                )
            )
        return "," if "either ," in self.seen else "."

    def thousands_beside(self, decimal: str) -> str | None:
        """Return the thousands separator: in cells of one reading, or the only one left."""
        other = "." if decimal == "," else ","
        if any(
            k in self.seen
            for k in (f"groups {other} decimal {decimal}", f"groups {other}", f"either {other}")
        ):
            return other
        return self.grouper


def parse(cells: Any, marks: Marks, nulls: Sequence[str] = ()) -> Numbers:
    """Read a column of text as numbers.

    >>> import polars as pl
    >>> parse(pl.Series(["1.003,62", "12,5", "NA"]), Marks(",", ".")).values
    array([1003.62,   12.5 ,     nan])

    Args:
        cells: a Polars series of text, [rows].
        marks: the marks of the file.
        nulls: marks of missing values in addition to the usual ones.

    Returns:
        The numbers, where they are missing, and where a cell is no number.
    """
    import polars as pl

    missing = _missing(cells, nulls)
    text = _tidy(cells)
    bad = pl.repeat(False, len(cells), dtype=pl.Boolean, eager=True)
    t, d = marks.thousands, "\\" + marks.decimal if marks.decimal == "." else marks.decimal
    if t is not None:
        mark = (
            f"[{SPACES}]"
            if t in SPACES
            else "['\u2019]"
            if t in "'\u2019"
            else "\\" + t
            if t == "."
            else t
        )
        has = text.str.contains(mark)
        if has.any():
            bad = has & ~text.str.contains(
                rf"^[+-]?[0-9]{{1,3}}(?:{mark}[0-9]{{3}})+(?:{d}[0-9]*)?$"
            )
            text = text.str.replace_all(mark, "")
    if marks.decimal != ".":
        bad = bad | text.str.contains(".", literal=True)
        text = text.str.replace_all(marks.decimal, ".", literal=True)
    bad = (bad | ~text.str.contains(PLAIN)) & ~missing
    values = (
        text.set(bad | missing, None).cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
    )
    return Numbers(values, missing.to_numpy(), bad.to_numpy())
