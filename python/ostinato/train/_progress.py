"""Show progress on standard error: the bar of tqdm if it is installed, otherwise our own line.

An error here never ends a run.
"""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from ._callbacks import Callback
from ._types import Row

if TYPE_CHECKING:
    from ._trainer import Trainer

PLAIN = ("step", "epoch", "loss", "valid_loss", "rate", "norm", "seconds")


class _Output:
    """Standard error that can be written to even if it is closed or broken."""

    def __init__(self) -> None:
        self._stream: Any = sys.stderr  # None in a program without a console
        self.encoding = getattr(self._stream, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError, LookupError):  # full, broken, closed
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None

    def isatty(self) -> bool:
        try:
            return bool(self._stream is not None and self._stream.isatty())
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("no standard error")
        number: int = self._stream.fileno()
        return number

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return max(shutil.get_terminal_size().columns, 2)


class Progress(Callback):
    """A bar on a terminal or in a notebook, and a line for every row of the history."""

    def __init__(self, total: int | None) -> None:
        self.total, self.out = total, _Output()
        notebook = _in_notebook()
        self.live = self.out.isatty() or notebook
        self._make = _tqdm() if self.live else None
        self._bar: Any = None
        self._notebook, self._first, self._begun, self._last = notebook, 0, 0.0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._first, self._begun = trainer.at_step, time.monotonic()
        if self._make is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a notebook without widgets has a bar of text
                self._bar = self._make(
                    total=self.total,
                    initial=self._first,
                    unit="step",
                    dynamic_ncols=True,
                    file=None if self._notebook else self.out,
                    leave=False,
                )

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if not self.live or now - self._last <= 0.2:
            return
        self._last = now
        if self._bar is not None:
            shown = {"loss": f"{float(loss):.4g}", "norm": f"{float(norm):.3g}"}
            self._bar.set_postfix(shown, refresh=False)
            return
        text = f"step {step}  loss {float(loss):.4f}  norm {float(norm):.3g}"
        if self.total:
            done = min(step / self.total, 1.0)
            left = (now - self._begun) / max(step - self._first, 1) * max(self.total - step, 0)
            text = f"[{'#' * int(24 * done):24}] {done:4.0%}  {_clock(left)} left  {text}"
        self.out.write("\r\x1b[K" + text[: self.out.columns - 1])
        self.out.flush()

    def on_row(self, trainer: Trainer, row: Row) -> None:
        valid = f"  valid {row['valid_loss']:.4f}" if "valid_loss" in row else ""
        more = "".join(
            f"  {n.removeprefix('valid_')} {v:.4g}" for n, v in row.items() if n not in PLAIN
        )
        text = (
            f"step {row['step']:.0f}  epoch {row['epoch']:.0f}  loss "
            f"{row['loss']:.4f}{valid}{more}  "
            f"{row['seconds']:.0f} s"
        )
        if self._bar is not None:
            self._bar.write(text, file=None if self._notebook else self.out)
        else:
            self.out.write(("\r\x1b[K" if self.live else "") + text + "\n")
            self.out.flush()

    def on_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self.live:
            self.out.write("\r\x1b[K")
            self.out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    kernel = None if shell is None else shell.get_ipython()
    return kernel is not None and hasattr(kernel, "kernel")


def _tqdm() -> Any:
    """Return a bar of tqdm, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
