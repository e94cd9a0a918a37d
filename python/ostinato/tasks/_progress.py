"""Lines that people read while a model is trained."""

from __future__ import annotations

from collections.abc import Callable

from ..train import Callback, Row, Trainer


class EpochReport(Callback):
    """Report epoch, time and losses, and the accuracy where it is known.

    Args:
        report: called with a line an epoch.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """Report a row.

        Args:
            trainer: not used.
            row: the figures.
        """
        line = f"epoch {row['epoch']:3.0f}  {row['seconds']:4.0f} s  loss {row['loss']:.3f}"
        if "valid_loss" in row:
            line += f", validation {row['valid_loss']:.3f}"
        if "valid_accuracy" in row:
            line += f", right {row['valid_accuracy']:.2%}"
        self.report(line)
