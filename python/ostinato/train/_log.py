"""The log: a CSV file with a line for every row of the history."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

from .. import safetensors
from ._types import Row


class Log:
    """CSV file of the rows of a run, which always agrees with the history.

    The first row makes the file.

    Args:
        path: the file; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = False
        if not path.parent.is_dir():
            raise FileNotFoundError(f"log: expected a folder at {path.parent}, found none")

    def resume(self, rows: list[Row], columns: list[str]) -> None:
        """Make the file hold these rows and no others.

        After a kill a row may be there twice, after a full disk half of one.

        Raises:
            ValueError: the file has other columns, as the log of another run; it does not change.
        """
        for row in rows:
            if set(row) != set(columns):
                raise ValueError(
                    f"log: expected the columns {', '.join(row)}, as the checkpoint has them, got "
                    f"{', '.join(columns)}; "
                    "give no log, or the validation and metrics that the run began with"
                )
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8", errors="replace") as f:
                first = f.readline(1 << 16)
            header = next(csv.reader([first]), [])
            whole = first.endswith("\n")
            if first and (header != columns if whole else not _line(columns).startswith(first)):
                raise ValueError(
                    f"log: expected the columns {', '.join(columns)} in {self.path}, got "
                    f"{', '.join(header)}; "
                    "give another file, or overwrite=True without resume"
                )
        text = (
            "".join([_line(columns), *(_line([row[n] for n in columns]) for row in rows)])
            if rows
            else ""
        )
        if not rows and not self.path.exists():
            return
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            with safetensors.atomic_write(self.path) as f:
                f.write(text.encode())
        self._begun = bool(rows)

    def write(self, row: Row) -> None:
        """Add a row: whole, or the file is as it was.

        Raises:
            OSError: it cannot be written, such as on a full disk; the message names the file.
        """
        text = (
            _line(list(row.values()))
            if self._begun
            else _line(list(row)) + _line(list(row.values()))
        ).encode()
        if not self._begun:
            with safetensors.atomic_write(self.path) as f:
                f.write(text)
            self._begun = True
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as raw:
                try:
                    if raw.write(text) != len(text):
                        raise OSError(28, "No space left on device")
                except OSError:
                    with contextlib.suppress(OSError):  # a device cannot be cut
                        raw.truncate(size)
                    raise
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self.path)) from None


def _line(cells: list[object] | list[str] | list[float]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
