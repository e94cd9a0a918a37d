"""Types that the parts of the training loop share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import _device
from .._annotations import readable
from .._ragged import Ragged
from ..data import Inputs

Row = dict[str, float]
"""The figures of an evaluation, or of a line of the log, by name."""
Times = dict[str, Any]  # those of `THIRD` that a batch has
FLAGS = ("resets", "mask")
THIRD = ("lengths", "resets", "mask", "masked", "weights")


class Diverged(RuntimeError):
    """Report that the loss or the gradients are no longer finite.

    The parameters are those before that step.
    """


def diverged(message: str) -> Diverged:
    """Return the error, unless a kernel has found out why: then that is raised."""
    _device.check()
    return Diverged(message)


@dataclass
class Batch:
    """One batch in the layout of the model, checked.

    Attributes:
        x: ``[T,B,...]``, ``[B,T,...]``, a `Ragged`, or `Inputs`; the target of the latter tells T
            and B.
        target: as x, or ``[B,...]`` where there is one for each sequence; flat rows of a `Ragged`.
        times: those of `THIRD` that are there.
        time_major: the layout.
        rows: numbers of the samples of whole arrays, in the order of the batch; None if unknown.
        per_sequence: whether the target is one a sequence.
        non_finite: what is known of the first value that is not finite, if x and the target have
            left the host; "" if they can be asked.
        whole: rows of the batch that this one is a part of, in a parallel run. A rank that has none
            of them has None for x.
    """

    x: Any
    target: Any
    times: Times
    time_major: bool
    rows: Any = None
    per_sequence: bool = False
    non_finite: str = ""
    whole: int = 0

    @property
    def axis(self) -> int:
        """The axis of time."""
        return 0 if self.time_major else 1

    @property
    def steps(self) -> int:
        """T."""
        if isinstance(self.x, Ragged):
            return int(self.x.lengths.max(initial=0))
        if isinstance(self.x, Inputs):
            return 1 if self.per_sequence else int(self.target.shape[self.axis])
        return int(self.x.shape[self.axis])

    @property
    def size(self) -> int:
        """B."""
        if isinstance(self.x, Inputs):
            return int(self.target.shape[0 if self.per_sequence else 1 - self.axis])
        return len(self.x) if isinstance(self.x, Ragged) else int(self.x.shape[1 - self.axis])


@dataclass
class History:
    """Hold what a run went through.

    >>> import ostinato as ost
    >>> history = ost.train.History([{"step": 1.0, "epoch": 1.0, "loss": 0.5}])
    >>> history.column("loss")
    [0.5]

    Attributes:
        rows: a row for every validation, or epoch without one.
        best: the row with the best monitored figure; None without validation.
        stopped: why the run ended.
    """

    rows: list[Row] = field(default_factory=list)
    best: Row | None = None
    stopped: str = ""

    def column(self, name: str) -> list[float]:
        """Return one figure over the rows that have it.

        Args:
            name: such as "loss" or "valid_loss".

        Returns:
            The figures in the order of the rows.
        """
        return [row[name] for row in self.rows if name in row]


readable(globals())
