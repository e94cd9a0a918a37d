"""Lines that people read while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..train import Callback, Row, Trainer


class EpochReport(Callback):
    """Report epoch, time and losses, and the accuracy where it is known.

    Args:
        report: called with a line.
        name: what a line begins with.
        every: epochs from one line to the next.
        bits: whether a row shows its step in place of its epoch, and losses in bits per character.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        *,
        name: str = "",
        every: int = 1,
        bits: bool = False,
    ) -> None:
        self.report, self.name, self.every, self.bits = report, name, every, bits

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """Report a row.

        Args:
            trainer: not used.
            row: the figures.
        """
        if row["epoch"] % self.every and not self.bits:
            return
        scale = math.log(2) if self.bits else 1.0
        place = f"step {row['step']:5.0f}" if self.bits else f"epoch {row['epoch']:3.0f}"
        loss = "bits per character" if self.bits else "loss"
        line = f"{self.name}{place}  {row['seconds']:4.0f} s  {loss} {row['loss'] / scale:.3f}"
        if "valid_loss" in row:
            line += f", validation {row['valid_loss'] / scale:.3f}"
        if "valid_accuracy" in row:
            line += f", right {row['valid_accuracy']:.2%}"
        self.report(line)
