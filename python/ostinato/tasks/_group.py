"""The rows of one series: sorted, one for each time, on a grid, without missing values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .._check import LONGEST, Array, quoted
from ._axis import DAY, Axis, Step, find_axis, floor_to
from ._frames import Columns
from ._remedy import argument, fix, has
from ._table import Series
from ._times import Stamps

__all__ = ["Group", "fill_gaps", "sorted_stamps"]


class Group:
    """The rows of one series, on a grid of its own.

    Args:
        columns: the columns of the table.
        notes: takes lines about what was moved, filled or left out.
        name: name of the series; "" where there is one.
        rows: the numbers of its rows.
        stamps: the times of all rows of the table; None where the order of the rows counts.
        used: the columns of numbers by name, [rows of the table], NaN where missing.
        expected: the step that the series must have; None: it is detected.
        time: name of the time column.
    """

    def __init__(
        self,
        columns: Columns,
        notes: list[str],
        name: str,
        rows: Array,
        stamps: Stamps | None,
        used: dict[str, Array],
        expected: Step | None,
        time: str | None,
    ) -> None:
        self.columns, self.notes, self.name, self.time = columns, notes, name, time
        self.raw, self.options = columns.raw, columns.options
        if stamps is None:
            self.axis = Axis(Step("number", 1), 1.0, "number")
            self.grid = {n: v[rows] for n, v in used.items()}
            return
        if self.options.step is not None and expected is not None:
            stamps = self._gathered(stamps, expected)
        distinct, ordered = sorted_stamps(stamps, rows)
        self._say_order(stamps, rows)
        key = stamps.values if stamps.instants is None else stamps.instants
        first = np.flatnonzero(np.concatenate([[True], key[ordered][1:] != key[ordered][:-1]]))
        combined = self._combined(used, ordered, first, stamps)
        self.axis, position, remark = find_axis(
            distinct, expected, lambda k: self.raw.where(int(ordered[first[k]]))
        )
        if remark:
            notes.append(remark)
        gaps = int(position[-1]) + 1 - len(position)
        if gaps:
            notes.append(f"{gaps} steps without a row{self._of()}")
        if gaps > 10 * len(position) + 1000:
            raise ValueError(
                f"FILE: expected rows at most of the steps, got {len(position)} in "
                f"{int(position[-1]) + 1} steps of "
                f"{self.axis.step}{self._of()}"
                + fix("--step names a longer one", "--step", otherwise="mend the times")
            )
        self.grid = {}
        for n, v in combined.items():
            self.grid[n] = np.full(int(position[-1]) + 1, np.nan)
            self.grid[n][position] = v

    def _of(self) -> str:
        return f" of {self.name[:LONGEST]}" if self.name else ""

    def _gathered(self, stamps: Stamps, step: Step) -> Stamps:
        if stamps.values.dtype.kind == "f":
            raise ValueError(
                f"{argument('--step')}: expected times of a calendar for it, got plain numbers"
            )
        if stamps.instants is not None and step.unit == "microsecond" and step.count < DAY:
            instants = floor_to(stamps.instants, step)
            return Stamps(instants, "date", stamps.zone, instants)
        return Stamps(floor_to(stamps.values, step), "date")

    def _say_order(self, stamps: Stamps, rows: Array) -> None:
        key = (stamps.values if stamps.instants is None else stamps.instants)[rows]
        if (key[1:] >= key[:-1]).all():
            return
        newest = bool((key[1:] <= key[:-1]).all())
        self.notes.append(
            f"rows were {'newest first' if newest else 'not in order'}: sorted by {self.time}"
        )

    def _combined(
        self, used: dict[str, Array], ordered: Array, first: Array, stamps: Stamps
    ) -> dict[str, Array]:
        """Return one row for each time.

        Rows that repeat each other count once, others are combined as ``--duplicates`` says.
        """
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
            self.notes.append(
                f"{len(ordered) - len(first)} rows that repeat another one passed over{self._of()}"
            )
            rule = "first"
        elif self.options.step is None:
            self.notes.append(
                f"{len(ordered) - len(first)} rows at the time of another one: {rule}{self._of()}"
            )
        return {n: _reduce(v[ordered], first, rule) for n, v in used.items()}

    def _ids(self, stamps: Stamps, ordered: Array, used: set[str]) -> list[str]:
        """Return columns that tell every row apart together with the time.

        They may hold the names of series.
        """
        if self.options.series is not None:
            return []
        _, key = np.unique(
            (stamps.values if stamps.instants is None else stamps.instants)[ordered],
            return_inverse=True,
        )
        found = []
        for n in self.columns.free():
            cells = self.raw.texts(n) if n in self.raw.exact else self.raw.columns[n]
            codes = cells.rank("dense").to_numpy()[ordered]
            if (
                n != self.time
                and codes.max() < len(ordered)
                and len(np.unique(np.stack([key, codes]), axis=1)[0]) == len(key)
            ):
                found.append(n)
        share = self.columns.share_of_numbers
        words = [n for n in found if self.raw.is_text(n) and share(n) < 0.5]
        return words or found

    def _duplicate(self, ordered: Array, a: int, b: int, candidates: list[str]) -> ValueError:
        raw = self.raw
        name = self.time or ""
        time = raw.exact.get(name, raw.columns[name])[int(ordered[a])]
        none = "leave one of them"
        advice = fix(
            "--duplicates first, last, mean or sum makes one of them",
            "--duplicates",
            otherwise=none,
        )
        if candidates:
            more = f" (or {', '.join(candidates[1:])})" if candidates[1:] else ""
            advice = fix(
                f"--series {candidates[0]} if that column tells several series apart{more}",
                "--series",
                otherwise=none,
            )
        elif not self.options.timezone and has("--timezone"):
            advice += "; --timezone NAME where clocks were put back"
        return ValueError(
            f"FILE: expected one row for each time{self._of()}, got {time} in "
            f"{raw.where(int(ordered[a]))} and {raw.where(int(ordered[b]))}{advice}"
        )

    def series(self, column: str, several: bool) -> Series:
        """Return a column as a series, from its first to its last value.

        Args:
            column: name of the column.
            several: whether the table has several columns to forecast, which names a series.

        Returns:
            The series, with what is missing in between filled.

        Raises:
            ValueError: the column has no number, or more is missing than may be filled.
        """
        values = self.grid[column]
        there = np.flatnonzero(~np.isnan(values))
        if not there.size:
            raise ValueError(
                f"FILE: expected numbers in column {quoted(column)}{self._of()}, got none"
            )
        begin, end = int(there[0]), int(there[-1]) + 1
        if begin:
            self.notes.append(
                f"{begin} rows before the first value of {column}{self._of()} left out"
            )
        if len(values) > end:
            use = ": the future" if self.options.known else " left out"
            self.notes.append(
                f"{len(values) - end} rows after the last value of {column}{self._of()}{use}"
            )
        filled, missing = self._filled(column, values[begin:end])
        given = [self.grid[n][begin:end] for n in self.options.observed]
        observed = [self._filled(n, v)[0] for n, v in zip(self.options.observed, given)]
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
            values[begin:end],
            np.stack(given, 1) if given else np.zeros((n, 0)),
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
            none = "fill them in the file"
            advice = (
                fix("--fill linear or previous fills them", "--fill", otherwise=none)
                if o.fill == "error"
                else fix(
                    f"--max-missing {min(0.99, share + 0.01):.2f} fills them",
                    "--max-missing",
                    otherwise=none,
                )
            )
            raise ValueError(
                f"FILE: expected {limit} in column {quoted(column)}{self._of()}, got {count} of "
                f"{len(values)} ({100 * share:.0f}%), steps without a row included{advice}"
            )
        return fill_gaps(values, o.fill), count


def fill_gaps(values: Array, rule: str) -> Array:
    """Fill what is missing by its neighbours, as ``--fill`` says; a column without values by 0."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    there = np.flatnonzero(~missing)
    if not there.size:
        return np.zeros(len(values))
    if rule == "linear":
        return np.interp(np.arange(len(values)), there, values[there])
    before = np.maximum(np.searchsorted(there, np.arange(len(values)), side="right") - 1, 0)
    return np.asarray(values[there[before]])


def sorted_stamps(stamps: Stamps, rows: Array) -> tuple[Stamps, Array]:
    """Return the distinct times of some rows in order, and the rows in the order of their times."""
    key = (stamps.values if stamps.instants is None else stamps.instants)[rows]
    if (key[1:] > key[:-1]).all():  # as most tables are
        kept = ordered = rows
    else:
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order][1:] > key[order][:-1]])
        kept, ordered = rows[order[new]], rows[order]
    instants = None if stamps.instants is None else stamps.instants[kept]
    return Stamps(stamps.values[kept], stamps.form, stamps.zone, instants), ordered


def _reduce(values: Array, first: Array, rule: str) -> Array:
    """Combine each run of values into one; missing ones do not count."""
    if rule in {"first", "last"}:
        rows = np.arange(len(values))
        missing = np.isnan(values)
        if rule == "first":
            taken = np.minimum.reduceat(np.where(missing, len(values), rows), first)
            return np.asarray(values[np.where(taken < len(values), taken, first)])
        taken = np.maximum.reduceat(np.where(missing, -1, rows), first)
        return np.asarray(values[np.where(taken < 0, first, taken)])
    known = np.add.reduceat((~np.isnan(values)).astype(np.float64), first)
    total = np.add.reduceat(np.nan_to_num(values, nan=0.0), first)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known > 0, total / (known if rule == "mean" else 1.0), np.nan)
