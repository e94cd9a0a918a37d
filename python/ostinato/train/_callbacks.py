"""Callbacks: methods that a run calls at its start, steps, rows and end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .._annotations import readable
from ._types import Row

if TYPE_CHECKING:
    from ._trainer import Trainer


class Callback:
    """Base class of callbacks, whose methods do nothing until they are overridden.

    ``trainer.stop(reason)`` ends the run after the step. An exception of a callback ends the run
    too: the checkpoint is written and the best parameters are put back first.

    >>> import ostinato as ost
    >>> class Print(ost.train.Callback):
    ...     def on_row(self, trainer, row):
    ...         print(row["epoch"], row["loss"])
    >>> isinstance(Print(), ost.train.Callback)
    True
    """

    def on_start(self, trainer: Trainer) -> None:
        """Act before the first step.

        Args:
            trainer: the trainer of the run.
        """

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        """Act after an update of the parameters.

        With ``tbptt`` a batch makes several updates, with ``accumulate`` several batches make one.

        Args:
            trainer: the trainer of the run.
            step: the number of the update, from 1 on.
            loss: its loss.
            norm: the global norm of its gradients before clipping.
        """

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """Act after a validation, or after an epoch without one.

        Args:
            trainer: the trainer of the run.
            row: step, epoch, loss, valid_loss, rate, norm, seconds and the metrics.
        """

    def on_end(self, trainer: Trainer) -> None:
        """Act after the last step, whatever ended the run.

        Args:
            trainer: the trainer of the run.
        """


class TensorBoard(Callback):
    """Write every row of the history for TensorBoard, and the loss of every ``every``-th step.

    It needs the extra ``tensorboard``; the writer of PyTorch is taken where tensorboardX is
    missing. When the run starts there is an ImportError if there is neither.

    >>> import ostinato as ost
    >>> ost.train.TensorBoard("runs/gru").folder
    'runs/gru'

    Args:
        folder: where the event files go.
        every: steps between two losses; None: only in rows.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int | None = None) -> None:
        self.folder, self.every = os.fspath(folder), every
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        self._writer = _summary_writer()(self.folder)

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        if self.every is not None and step % self.every == 0:
            self._writer.add_scalar("step/loss", loss, step)
            self._writer.add_scalar("step/norm", norm, step)

    def on_row(self, trainer: Trainer, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def on_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoard needs a writer: pip install 'ostinato[tensorboard]'"
            ) from None
    return SummaryWriter


readable(globals())
