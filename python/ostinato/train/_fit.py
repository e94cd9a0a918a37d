"""Run `Trainer.fit` once: epochs, rows, early stopping, checkpoints, and ends by an error."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _deferred, _device
from ..nn import Layer, Model, Recurrent, Sequential
from ._callbacks import Callback
from ._checkpoint import Place
from ._inference import evaluate
from ._inputs import Source
from ._parallel import ParallelError
from ._resumable import Resumable
from ._settings import Settings
from ._signals import Signals
from ._step import Walk, Window
from ._types import Batch, Diverged, History, Row, diverged
from ._unread import MOST, Update

if TYPE_CHECKING:
    from ._trainer import Trainer

PATIENCE = "no better loss within patience"
NOTHING_COUNTS = (
    "train: expected at least one step that counts in the loss, got an epoch without any"
)


@dataclass
class _Figures:
    """What a rank has of an update, or all of them together.

    Attributes:
        total: sum of the losses.
        weight: by how much it counts.
        counts: whether anything does, or may do: a device is not asked.
        window: the first one of this rank of which anything counts.
        over: whether the batches are at their end. A rank without rows is: the others decide.
        done: steps of the batch that have been run.
    """

    total: Any = 0.0
    weight: Any = 0.0
    counts: bool = False
    window: Window | None = None
    over: bool = True
    done: int = 0


class Fit(Resumable):
    """Run of `Trainer.fit`: the loop, its rows, and its ends."""

    def __init__(
        self, trainer: Trainer, source: Source, validation: Source | None, settings: Settings
    ) -> None:
        super().__init__(trainer, source, validation, settings)
        self._draws = _draws(trainer.model)

    # -- the run -----------------------------------------------------------------------------------

    def total(self) -> int | None:
        """Return the most steps there can be, as far as it can be known."""
        s, ends = self.settings, []
        if s.steps is not None:
            ends.append(s.steps)
        each = self._updates_of_a_batch()
        if s.epochs is not None and self.source.has_length and each is not None:
            ends.append(-(-len(self.source) // s.accumulate) * each * s.epochs)
        return min(ends, default=None)

    def _updates_of_a_batch(self) -> int | None:
        """Return the most updates of a batch, or None if unknown."""
        if self.trainer.tbptt is None:
            return 1
        steps = getattr(self.source.loader, "window", None)
        if steps is None and isinstance(getattr(self.source.loader, "x", None), np.ndarray):
            steps = self.source.loader.x.shape[1]
        return None if steps is None else max(-(-int(steps) // self.trainer.tbptt[0]), 1)

    def go(self, callbacks: Sequence[Callback]) -> History:
        """Train, and restore order however the run ends."""
        t, at = self.trainer, self.at
        self._started = time.monotonic() - at.seconds
        self._began = t.at_step = at.step
        t._stop = ""
        signals, failed = Signals(), True
        try:
            with signals:
                for c in callbacks:
                    c.on_start(t)
                self.history.stopped = self._loop(callbacks, signals)
                self._read()
                self._save()
            failed = False
        except BaseException as e:  # Ctrl-C, too: what is known to be good is saved
            self.ranks._tell(e)
            self._rescue()
            if isinstance(e, Diverged):
                path = self.settings.checkpoint
                good = (
                    f"; the last good checkpoint is {path}"
                    if path is not None and path.exists()
                    else ""
                )
                first, _, rest = str(e).partition("\n")
                raise Diverged(f"{first}{good}{'; ' if rest else ''}{rest}") from None
            raise
        finally:
            _end(callbacks, t, failed)
        self._put_best_back()
        signals.deliver()
        return self.history

    def _put_best_back(self) -> bool:
        if not self.settings.restore_best or self.best is None:
            return False
        with self.trainer.model.write() as p:
            p.flat[...] = self.best
        return True

    def _rescue(self) -> None:
        """After an error write what is known to be good, then restore the best parameters.

        Without validation these are the last good ones.
        """
        whole = self._whole
        try:
            self._read()
        except Exception as e:  # the error that ends the run came first; updates before it are good
            whole = whole and isinstance(e, (Diverged, ValueError))
        good = self._agreed(whole)
        failed: Exception | None = None
        if good:
            try:
                self._try()
            except Exception as e:  # an error of the loss does not prove the parameters good
                good, failed = False, None if isinstance(e, Diverged) else e
        if self._kept and self.at.step > self._began:
            try:
                if good:
                    self._save()
            except Exception as e:  # the one that ends the run came first
                failed = e
            if failed is not None:
                said = f"{type(failed).__name__}: {failed}"
                warnings.warn(
                    f"checkpoint: it could not be written after the error that follows: {said}",
                    stacklevel=2,
                )
        if not self._put_best_back() and not good and self.stepper.previous is not None:
            with self.trainer.model.write() as p:
                p.flat[...] = self.stepper.previous

    def _loop(self, callbacks: Sequence[Callback], signals: Signals) -> str:
        t, at, s = self.trainer, self.at, self.settings
        if not self.resumed:
            at.first_epoch = t._epochs
        if s.patience is not None and at.bad >= s.patience:
            return PATIENCE
        if (
            s.validate_every
            and at.step
            and at.step % s.validate_every == 0
            and self._unseen()
            and self._row(callbacks)
        ):
            return PATIENCE  # an error had ended the run between a step and its row
        while True:
            if s.epochs is not None and at.epoch >= s.epochs:
                return self._last_row(callbacks, "all epochs done")
            began, before = (at.batch, at.window), at.step
            for group in _groups(
                self.source.batches(at.first_epoch + at.epoch, at.batch), s.accumulate
            ):
                if s.steps is not None and at.step >= s.steps:
                    return self._last_row(callbacks, "all steps done")
                reason = self._batch(group, callbacks, signals)
                if reason:
                    return reason
            if at.batch == 0 and began == (0, 0):
                raise ValueError("train: expected at least one batch, got none")
            if at.step == before and began == (0, 0):
                raise ValueError(NOTHING_COUNTS)
            at.epoch, at.batch, self.state = at.epoch + 1, 0, None
            t._epochs = at.first_epoch + at.epoch
            if not s.validate_every and self._row(callbacks):
                return PATIENCE
            reason = self._asked_to_end(signals)
            if reason:
                return reason

    def _asked_to_end(self, signals: Signals) -> str:
        """Return why the run is to end, by a signal or a callback on any rank, or ""."""
        ranks, t = self.ranks, self.trainer
        asked = ranks._exchange("the end of a step", signals.seen or 0, bool(t._stop))
        seen, stops = asked.T.tolist()
        if any(seen):
            signals.seen = int(max(seen))
            return "interrupted"
        if ranks.size > 1 and any(stops):
            t._stop = next(reason for reason in ranks._collect_all(t._stop) if reason)
        return t._stop

    def _agreed(self, whole: bool) -> bool:
        """Return whether all ranks are whole, and have ended the same update and the same row."""
        at = self.at.step, len(self.history.rows)
        table = self.ranks._exchange("an error", whole, *at)
        return bool(table[:, 0].all() and (table == table[0]).all())

    def _batch(self, group: list[Batch], callbacks: Sequence[Callback], signals: Signals) -> str:
        """Run the updates of a batch, or of several; return why the run ends, or ""."""
        s, at = self.settings, self.at
        if not at.window:
            self.walk = Walk(0, {0: self.state})
        while True:
            if s.steps is not None and at.step >= s.steps:
                return self._last_row(callbacks, "all steps done")
            done = self._update(group)
            if done is None:
                continue_ = at.window > 0
            else:
                reason = self._after(*done, callbacks, signals)
                if reason:
                    return reason
                continue_ = at.window > 0
            if not continue_:
                return ""

    def _update(self, group: list[Batch]) -> tuple[Any, Any] | None:
        """Make an update if anything counts, advance ``at``, and return the loss and the norm.

        On a device these are arrays without axes, for which nothing has waited.
        """
        before = self._here()
        at, done = self.at, None
        summed = len(group) > 1 or self.ranks.size > 1
        self.trainer.model._clear_grads()
        with _deferred.gathered() as checks:
            figures = self._of_all(self._gradients(group, summed), group, checks)
            if figures.counts:
                self._whole = False
                value = _deferred.quotient(figures.total, figures.weight)
                summed = summed and self.ranks.size == 1  # ranks divide as they add up
                norm = self.stepper.apply(at.step + 1, value, figures.weight, checks, summed=summed)
                self._newest = figures.window or self._newest
                if not self._unread.pending:
                    self._oldest = self._newest
                update = Update(figures.total, figures.weight, norm, checks, before)
                self._unread.pending.append(update)
                at.step += 1
                done = value, norm
        at.window = 0 if figures.over else figures.done
        if figures.over:
            at.batch += len(group)
        self._whole = True
        self.trainer.at_step = at.step
        if not self._waits():
            self._read()
        return done

    def _of_all(self, own: _Figures, group: list[Batch], checks: list[_deferred.Check]) -> _Figures:
        """Return what all ranks have of an update, whose gradients are added up.

        A process that is alone may have figures on a device, which stay there. Several ranks read
        theirs, and their checks, once an update: one that has failed is told to the others before
        its gradients are added to theirs.
        """
        if self.ranks.size == 1:
            return own
        own.total, own.weight = _deferred.raise_first(checks, own.total, own.weight)
        checks.clear()
        own.counts = own.counts and own.weight != 0
        own.window = own.window if own.counts else None
        rows = sum(batch.whole for batch in group)
        held = self.shared is not None and self.shared.hold()
        gradients = self.trainer.model._writable_grads().flat
        if not held:
            self.ranks._room(gradients)
        table = self.ranks._exchange(
            "an update", own.total, own.weight, own.counts, own.over, own.done, rows, held
        )
        # As lists: this is a part of a small step, and ranks are few.
        totals, weights, counted, over, done, wholes, all_held = table.T.tolist()
        _check_rows(wholes)
        total, weight, counts = sum(totals), sum(weights), any(counted)
        if counts:
            factor = _deferred.scalar(1 / _deferred.divisor(weight), gradients.dtype)
            self.ranks._add(gradients, factor, self.shared if all(all_held) else None)
        return _Figures(total, weight, counts, own.window, all(over), int(max(done)))

    def _waits(self) -> bool:
        """Whether the figures of updates can stay on a device for now."""
        pending = self._unread.pending
        return len(pending) < MOST and any(u.waits for u in pending)

    def _here(self) -> Callable[[], None]:
        """Return what brings the run back to where it is now; the parameters stay.

        What is kept is plain: an update on the CPU, which never goes back, comes here as well.
        """
        t, at, state = self.trainer, vars(self.at).copy(), self.state
        done, known = self.walk.done, dict(self.walk.known)
        steps, started = t.optimizer.steps, t.optimizer.started  # which an update replaces

        def back() -> None:
            t.optimizer.steps, t.optimizer.started = steps, started
            figures = {n: getattr(self.at, n) for n in ("loss_sum", "loss_count", "norm")}
            self.at = Place(**{**at, **figures})
            self.state, self.walk = state, Walk(done, known)
            t.at_step, t._epochs = self.at.step, self.at.first_epoch + self.at.epoch

        return back

    def _read(self) -> None:
        """Read the figures of the updates since the last time.

        If one was not made, since a check had failed, nor were those after it: then the run is
        brought back to where it stood before, and the error is raised.
        """
        if not self._unread.pending:
            return
        at = self.at
        figures, norm, failed = self._unread.read(self.stepper.sound)
        for total, weight in figures:
            at.loss_sum, at.loss_count = at.loss_sum + total, at.loss_count + weight
        if figures:
            at.norm = norm
            # What an update that was not made has read may not be finite.
            self._last = self._newest if failed is None else self._oldest
        if failed is None:
            return
        failed.before()
        _deferred.raise_first(failed.checks)

    def _gradients(self, group: list[Batch], summed: bool) -> _Figures:
        """Add the gradients of this rank's part of the next window of each batch."""
        own = _Figures()
        for k, batch in enumerate(group):
            if k:
                self.walk = Walk(0, {0: self.state})
            if batch.x is None:
                continue
            window = self.stepper.next_window(batch, self.walk)
            if window is None:
                continue
            result = self.stepper.gradients(window, self.at.step + 1, self._rng(k), summed=summed)
            if result.counts:
                own.window, own.counts = own.window or window, True
            own.total = own.total + result.loss * result.weight
            own.weight = own.weight + result.weight
            own.over = self.stepper.advance(batch, self.walk, result.state)
            if own.over:
                self.state = self.walk.known[self.walk.done] if self.source.carries_state else None
        own.done = self.walk.done
        return own

    def _rng(self, batch: int) -> Any:
        """Return the generator of an update.

        It depends only on the seed, the position and the rank: a resumed run draws the same
        numbers, if the number of ranks is the same.
        """
        if not self._draws:
            return None
        at = self.at
        place = (self.settings.seed, 1, at.first_epoch + at.epoch, at.batch + batch, at.window)
        rank = (self.ranks.rank,) if self.ranks.size > 1 else ()
        return np.random.default_rng((*place, *rank))

    def _after(self, loss: Any, norm: Any, callbacks: Sequence[Callback], signals: Signals) -> str:
        """Do what follows an update; return why the run ends, or ""."""
        t, at, s = self.trainer, self.at, self.settings
        for c in callbacks:
            c.on_step(t, at.step, loss, norm)
        if s.validate_every and at.step % s.validate_every == 0 and self._row(callbacks):
            return PATIENCE
        if s.checkpoint_every and at.step % s.checkpoint_every == 0:
            self._save()
        return self._asked_to_end(signals)

    # -- rows --------------------------------------------------------------------------------------

    def _unseen(self) -> bool:
        """Return whether there were steps since the last row."""
        return not self.history.rows or self.history.rows[-1]["step"] != self.at.step

    def _last_row(self, callbacks: Sequence[Callback], reason: str) -> str:
        """Make a row of the steps since the last one: the end is always validated."""
        if self._unseen() and self.at.step:
            self._row(callbacks)
        return reason

    def _row(self, callbacks: Sequence[Callback]) -> bool:
        """Add a row to the history, validated if there is data; return whether patience ends."""
        self._read()
        t, at, s = self.trainer, self.at, self.settings
        if not at.loss_count and self._unseen() and _device.of(t.model.flat) is not None:
            raise ValueError(NOTHING_COUNTS)  # whether anything counts is known now
        at.seconds = self._agreed_seconds()
        row: Row = {
            "step": at.step,
            "epoch": at.epoch,
            "loss": at.loss_sum / (at.loss_count or 1.0),
            "rate": float(t.optimizer.rate),
            "norm": at.norm,
        }
        better = False
        if self.validation is not None:
            figures, culprit = evaluate(t, self.validation, self.ranks)
            row["valid_loss"] = figures.pop("loss")
            row.update({f"valid_{k}": v for k, v in figures.items()})
            if not math.isfinite(row["valid_loss"]):
                raise diverged(
                    f"the validation loss is {row['valid_loss']} after step {at.step}\n{culprit}"
                )
            self._known_good = at.step
            better = self._judge(s.sign * row[s.monitor])
        at.loss_sum, at.loss_count = 0.0, 0.0
        row["seconds"] = at.seconds
        self.history.rows.append(row)
        if better:
            self.history.best = row
            self.best = t.model.flat.copy()
        self._save()
        if self.log is not None:
            self.log.write(row)
        for c in callbacks:
            c.on_row(t, row)
        return s.patience is not None and at.bad >= s.patience

    def _agreed_seconds(self) -> float:
        """Return the seconds of rank 0, and raise if the parameters of the ranks are not equal."""
        ranks, seconds = self.ranks, time.monotonic() - self._started
        if ranks.size == 1:
            return seconds
        found = zlib.crc32(_device.host(self.trainer.model.flat).tobytes())
        table = ranks._exchange("a row", seconds, found)
        other = int((table[:, 1] != table[0, 1]).argmax())
        if other:
            raise ParallelError(
                f"the parameters of rank {other} differ from those of rank 0 after step "
                f"{self.at.step}: expected calls and callbacks that do the same on every rank"
            )
        return float(table[0, 0])

    def _judge(self, figure: float) -> bool:
        """Return whether a figure is the best so far; NaN never is.

        ``min_delta`` acts on patience only.
        """
        at = self.at
        self.trainer.optimizer.schedule.observe(figure)
        if figure < at.mark - self.settings.min_delta:
            at.mark, at.bad = figure, 0
        else:
            at.bad += 1
        if figure < at.best:
            at.best = figure
            return True
        return False


def _check_rows(rows: list[float]) -> None:
    """Raise unless all ranks have been given batches of the same number of rows."""
    if len(set(rows)) > 1:
        other = next(k for k, count in enumerate(rows) if count != rows[0])
        raise ParallelError(
            f"rank {other} was given a batch of {rows[other]:.0f} rows, and rank 0 one of "
            f"{rows[0]:.0f}: expected every rank to be given the same whole batches, which are "
            "divided here"
        )


def _end(callbacks: Sequence[Callback], trainer: Trainer, failed: bool) -> None:
    """End all callbacks, even if one raises an error; where the run failed, that is the error."""
    first: BaseException | None = None
    for c in callbacks:
        try:
            c.on_end(trainer)
        except BaseException as e:  # the others end all the same; it is raised behind them
            first = first or e
    if first is not None and not failed:
        raise first


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of ``size`` batches; the last one may have fewer."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _draws(model: Layer) -> bool:
    """Return whether anything in the model may draw numbers in `vjp`."""
    if isinstance(model, Sequential):
        return any(_draws(layer) for layer in model.layers)
    if isinstance(model, Model) and type(model).__module__.startswith("ostinato."):
        own = hasattr(model, "_rng")
        return own or any(_draws(layer) for layer in model._children().values())
    if isinstance(model, Recurrent):
        return bool(model.dropout) and model.num_layers > 1
    return getattr(model, "rate", 1) != 0 and (
        hasattr(model, "_rng") or not type(model).__module__.startswith("ostinato.")
    )
