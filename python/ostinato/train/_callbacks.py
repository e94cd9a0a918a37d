"""Callbacks: methods that a run calls at its start, steps, rows and end."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from .. import _check
from .._annotations import readable
from .._files import require_path
from ..nn import Decoder
from ._types import Row

if TYPE_CHECKING:
    from ._trainer import Trainer


class Callback:
    """Base class of callbacks, whose methods do nothing until they are overridden.

    ``trainer.stop(reason)`` ends the run after the step. An exception of a callback ends the run
    too: the checkpoint is written and the best parameters are put back first. In a parallel run the
    callbacks of every rank are called, and a stop or an exception on one rank ends the run on all.

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
            loss: its loss; on a GPU an array without axes, which ``float(loss)`` waits for.
            norm: the global norm of its gradients before clipping, likewise.
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


class ScheduledSampling(Callback):
    """Lower the `nn.Decoder.teacher_forcing` of a decoder, by the number of updates i.

    The probability of the given input is ``max(final, 1 - (1 - final) i / k)`` ("linear"),
    ``max(final, k^i)`` ("exponential") or ``max(final, k / (k + e^(i/k)))`` ("inverse_sigmoid").
    When the run ends it is 1 again.

    >>> import ostinato as ost
    >>> layers = ost.nn.Embedding(9, 4), ost.nn.GRU(4, 8), ost.nn.Linear(8, 9)
    >>> sampling = ost.train.ScheduledSampling(ost.nn.Decoder(*layers), "linear", k=100, final=0.5)
    >>> [sampling.probability(i) for i in (0, 50, 100, 500)]
    [1.0, 0.75, 0.5, 0.5]

    Args:
        decoder: the decoder, within the model that is trained.
        kind: "linear", "exponential" or "inverse_sigmoid".
        k: the update at which the linear one has ended, above 0; the base of the exponential one,
            in (0, 1); that of the inverse sigmoid, at least 1.
        final: the least probability, in [0, 1].

    Raises:
        TypeError: decoder is none.
        ValueError: an unknown kind, or numbers out of range.

    Source: Bengio, Vinyals, Jaitly, Shazeer (2015), "Scheduled sampling for sequence prediction
    with recurrent neural networks".
    """

    def __init__(self, decoder: Decoder, kind: str, *, k: float, final: float = 0.0) -> None:
        if not isinstance(decoder, Decoder):
            raise TypeError(f"decoder: expected an nn.Decoder, got {type(decoder).__name__}")
        self.decoder = decoder
        self.kind = _check.choice("kind", kind, ("linear", "exponential", "inverse_sigmoid"))
        self.k, self.final = _check.finite("k", k), _check.finite("final", final)
        right = {"linear": k > 0, "exponential": 0 < k < 1, "inverse_sigmoid": k >= 1}[kind]
        if not right:
            wanted = {"linear": "above 0", "exponential": "in (0, 1)"}.get(kind, "of at least 1")
            raise ValueError(f"k: expected a number {wanted} for {kind!r}, got {k!r}")
        if final > 1:
            raise ValueError(f"final: expected a number in [0, 1], got {final!r}")

    def probability(self, step: int) -> float:
        """Return the probability of the given input after so many updates.

        Args:
            step: i, from 0 on.

        Returns:
            A number from ``final`` to 1.
        """
        if self.kind == "linear":
            value = 1 - (1 - self.final) * step / self.k
        elif self.kind == "exponential":
            value = self.k**step
        else:
            value = self.k / (self.k + math.exp(min(step / self.k, 700.0)))
        return max(self.final, value)

    def on_start(self, trainer: Trainer) -> None:
        self.decoder.teacher_forcing = self.probability(trainer.at_step)

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        self.decoder.teacher_forcing = self.probability(step)

    def on_end(self, trainer: Trainer) -> None:
        self.decoder.teacher_forcing = 1.0


class TensorBoard(Callback):
    """Write every row of the history for TensorBoard, and the loss of every ``every``-th step.

    It needs the extra ``tensorboard``; the writer of PyTorch is taken where tensorboardX is
    missing. When the run starts there is an ImportError if there is neither. In a parallel run rank
    0 alone writes.

    >>> import ostinato as ost
    >>> ost.train.TensorBoard("runs/gru").folder
    'runs/gru'

    Args:
        folder: where the event files go.
        every: steps between two losses; None: only in rows.

    Raises:
        TypeError: folder is no path, or every no whole number.
        ValueError: every is less than 1.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int | None = None) -> None:
        require_path(folder, name="folder")
        self.folder = os.fspath(folder)
        self.every = None if every is None else _check.positive("every", every)
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        if trainer.parallel is None or trainer.parallel.rank == 0:
            self._writer = _summary_writer()(self.folder)

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        if self._writer is None:
            return
        if self.every is not None and step % self.every == 0:
            self._writer.add_scalar("step/loss", float(loss), step)
            self._writer.add_scalar("step/norm", float(norm), step)

    def on_row(self, trainer: Trainer, row: Row) -> None:
        if self._writer is None:
            return
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
