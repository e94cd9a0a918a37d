"""The training loop: `Trainer`, callbacks, checkpoints.

>>> import numpy as np
>>> import ostinato as ost
>>> x = np.random.default_rng(0).uniform(0, 0.1, (200, 10, 1)).astype(np.float32)
>>> model = ost.nn.Sequential(ost.nn.RNN(1, 8, rng=0), ost.nn.Linear(8, 1, rng=0))
>>> trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
>>> history = trainer.fit((x, x.cumsum(1)), epochs=20, progress=False)
>>> bool(history.rows[-1]["loss"] < history.rows[0]["loss"] / 5)
True
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import _check, _device, safetensors
from ._check import Array
from ._ragged import Ragged, as_given, flat_flags, unwrapped
from ._segments import parse as parse_limit
from .data import ArrayLoader, RaggedLoader, targets_of
from .losses import Loss
from .nn import Activation, Dropout, Layer, Linear, Recurrent, Sequential
from .optim import Optimizer, clip_by_value, global_norm

__all__ = ["Callback", "Diverged", "History", "Trainer"]

Row = dict[str, float]
Times = dict[str, Any]  # lengths, resets, mask, masked of a batch: what is there
PATIENCE = "no better loss within patience"


class Diverged(RuntimeError):
    """The loss or the gradients are no longer finite; the parameters are those before that step."""


def _diverged(message: str) -> Diverged:
    """The error, unless a kernel has found out why."""
    _device.check()
    return Diverged(message)


class Callback:
    """Base of callbacks: override what you need. ``trainer.stop(reason)`` ends the run after the step."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        """After a step: its number from 1 on, its loss, the global norm of its gradients before clipping."""

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """After a validation (or an epoch): step, epoch, loss, valid_loss, rate, norm, seconds and the metrics."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, whatever ended the run."""


@dataclass
class History:
    """What a run went through: a row for every validation (or epoch), the best one, and why it ended."""

    rows: list[Row] = field(default_factory=list)
    best: Row | None = None
    stopped: str = ""

    def column(self, name: str) -> list[float]:
        """One figure over the rows."""
        return [row[name] for row in self.rows if name in row]


@dataclass
class _Progress:
    """Where a run is; all of it goes into a checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of the epoch
    loss_sum: float = 0.0  # since the last row
    loss_count: int = 0
    norm: float = 0.0
    first_epoch: int = 0  # epochs of the calls of fit before this one: each has an order of its own
    best: float = math.inf
    bad: int = 0  # validations since the best
    seconds: float = 0.0


class Trainer:
    """Trains a model: ``fit``, ``evaluate``, ``predict``.

    Args:
        model: a layer; usually a `Sequential`.
        loss: ``loss(y, target, lengths) -> (value, dy)``.
        optimizer: it keeps its state between calls of fit.
        clip_norm, clip_value: clip gradients by their global norm, or each by value.
        outputs: "all": the loss takes every step's output; "last": that of the last real step only.
        clip_step_value, clip_step_norm: bounds on the gradient at every step on its way back through time; see `nn.RNN.vjp`.
        memory_limit: a bound on what each recurrent layer keeps for its backward pass, such as "512MB"; see `nn.RNN.vjp`.
        tbptt: ``(k1, k2)``, truncated backpropagation through time (Williams, Peng 1990, BPTT(h; h') with h = k2, h' = k1): a batch is
            walked through in strides of k1 steps, an update for each; the state is carried on, and the gradient of the losses of
            those k1 steps goes back through the last k2 >= k1. A step of the history is then a whole batch.
        metrics: names to functions ``(y, target, lengths) -> (sum, count)``, reported by evaluate; lengths is a bool mask of the steps that
            count where a batch has a mask, and None for all.
        callbacks: `Callback` objects.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        outputs: str = "all",
        clip_step_value: float | None = None,
        clip_step_norm: float | None = None,
        memory_limit: str | int | None = None,
        tbptt: tuple[int, int] | None = None,
        metrics: dict[str, Callable[[Array, Array, Any], tuple[float, int]]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        for name, value, kind in (("model", model, Layer), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: expected a number above 0, got {limit!r}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.outputs = _check.choice("outputs", outputs, ("all", "last"))
        self.metrics, self.callbacks = dict(metrics or {}), list(callbacks)
        if "loss" in self.metrics:
            raise ValueError("metrics: expected names other than 'loss', which is there already")
        recurrent = [m for m in _layers(model) if isinstance(m, Recurrent)]
        self.time_major = not any(m.batch_first for m in recurrent)
        given = {"clip_step_value": clip_step_value, "clip_step_norm": clip_step_norm, "memory_limit": memory_limit}
        self._options = {name: value for name, value in given.items() if value is not None}
        if self._options and not recurrent:
            raise ValueError(f"{next(iter(self._options))}: expected a model with recurrent layers, got {model!r}")
        _check.clipping("clip_step_value", clip_step_value)
        _check.clipping("clip_step_norm", clip_step_norm)
        if memory_limit is not None:
            parse_limit(memory_limit)
        self.tbptt = None if tbptt is None else self._strides(tbptt, recurrent)
        self._stop, self._epochs = "", 0
        self._running = threading.Lock()

    def _strides(self, tbptt: tuple[int, int], recurrent: list[Recurrent]) -> tuple[int, int]:
        if not isinstance(tbptt, (tuple, list)) or len(tbptt) != 2:
            raise TypeError(f"tbptt: expected a pair (k1, k2), got {tbptt!r}")
        k1, k2 = (_check.positive("tbptt", k) for k in tbptt)
        if k1 > k2:
            raise ValueError(f"tbptt: expected k1 <= k2, or steps would have no gradient, got k1 = {k1}, k2 = {k2}")
        if self.outputs == "last":
            raise ValueError('tbptt: expected outputs="all", since most windows do not hold the last step, got "last"')
        if not recurrent or any(m.bidirectional for m in recurrent):
            raise ValueError("tbptt: expected recurrent layers of one direction, whose state can be carried on")
        return k1, k2

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the run after the present step."""
        self._stop = reason

    # -- one step ------------------------------------------------------------------------------------------------

    def _forward(self, x: Any, state: Any, times: Times) -> tuple[Any, Any]:
        if not self.model.stateful:
            return self.model(x), None
        y, state = self.model(x, state, **times) if self.model.takes_lengths else self.model(x, state)
        return y, state

    def _vjp(self, x: Any, state: Any, times: Times) -> tuple[Any, Any, Any]:
        if not self.model.stateful:
            y, pullback = self.model.vjp(x)
            return y, None, pullback
        options = {**times, **self._options} if self.model.takes_lengths else {}
        if self.outputs == "last" and _tells_last(self.model):
            options["outputs"] = "last"
        (y, state), pullback = self.model.vjp(x, state, **options)
        return y, state, pullback

    def _counts(self, y: Array, times: Times) -> Any:
        """What the loss is given: lengths, or a mask of the steps that count."""
        if times.get("mask") is None:
            return times.get("lengths")
        mask: Array = times["mask"] if self.time_major else times["mask"].T
        on: Array = _check.taking_part(mask.shape[0], mask.shape[1], _ends(times), mask)
        return on if self.time_major else on.T

    def _pick(self, y: Array, times: Times, steps: int) -> tuple[Array, Any]:
        """The outputs that the loss sees, and where they came from (None: all)."""
        if self.outputs == "all":
            return y, None
        batch = y.shape[1 if self.time_major else 0]
        ends = np.full(batch, steps) if times.get("lengths") is None else np.asarray(times["lengths"])
        if times.get("mask") is not None:
            on = self._counts(y, times) if self.time_major else self._counts(y, times).T
            ends = np.where(on.any(0), steps - on[::-1].argmax(0), 0)
        self._refuse_empty(ends, steps)
        where = (ends - 1, np.arange(batch)) if self.time_major else (np.arange(batch), ends - 1)
        return y[where], where

    def _seen(self, x: Any, y: Any, target: Array, times: Times) -> tuple[Array, Array, Any, Any]:
        """What the loss is given: outputs, targets, lengths or a mask; and where the outputs stand in y (None: all of it)."""
        if not isinstance(x, Ragged):
            picked, where = self._pick(y, times, x.shape[0 if self.time_major else 1])
            return picked, target, self._counts(y, times) if where is None else None, where
        mask = times.get("mask")
        if self.outputs == "all":
            return (y.rows, target, None, None) if mask is None else (y.rows[mask], target[mask], None, mask)
        last = self._last_rows(x, times)
        return y.rows[last], target, None, last

    def _last_rows(self, x: Ragged, times: Times) -> Array:
        """Of each sequence, the row of its last step that is not masked."""
        on = x.padded(np.ones(len(x.rows), bool) if times.get("mask") is None else times["mask"])
        self._refuse_empty(on.sum(0), len(on))
        rows: Array = x.offsets[:-1] + len(on) - 1 - on[::-1].argmax(0)
        return rows

    def _refuse_empty(self, ends: Array, steps: int) -> None:
        if steps == 0 or (ends == 0).any():
            raise ValueError('lengths: expected at least 1 everywhere with outputs="last", got 0')

    def _train_step(self, x: Any, target: Array, times: Times, state: Any, step: int) -> tuple[float, float, Any]:
        if self.tbptt is None:
            return self._update(x, target, times, state, step)
        if isinstance(x, Ragged):
            raise ValueError("tbptt: expected None with ragged sequences; pad them and give lengths")
        k1, k2 = self.tbptt
        axis = 0 if self.time_major else 1
        steps, total, count, norm = x.shape[axis], 0.0, 0, 0.0
        known = {0: state}  # states by the step that they come before, from the parameters of the time
        for done in range(0, steps, k1):
            end = min(done + k1, steps)
            start = max(0, end - k2) if done else 0
            begin = max(t for t in known if t <= start)
            known = {t: s for t, s in known.items() if t >= begin}
            if begin < start:
                _, known[start] = self._forward(
                    _steps(x, axis, begin, start), known[begin], _cut(times, axis, begin, start)
                )
            window = _cut(times, axis, start, end)
            if window.get("lengths") is not None and not (np.asarray(window["lengths"]) > done - start).any():
                break  # nothing but padding from here on
            value, norm, state = self._update(
                _steps(x, axis, start, end), _steps(target, axis, done, end), window, known[start], step, done - start
            )
            known[end] = state
            weight = self._weight(window, done - start, end - start, x.shape[1 - axis])
            total, count = total + value * weight, count + weight
        return total / max(count, 1), norm, state

    def _weight(self, window: Times, silent: int, steps: int, batch: int) -> int:
        """How many (t, b) of a window have a loss."""
        mask = window.get("mask")
        if mask is not None and not self.time_major:
            mask = mask.T
        return int(_check.taking_part(steps, batch, _ends(window), mask)[silent:].sum())

    def _update(
        self, x: Any, target: Array, times: Times, state: Any, step: int, silent: int = 0
    ) -> tuple[float, float, Any]:
        """One forward and backward pass and an update; the first ``silent`` steps have no loss."""
        y, state, pullback = self._vjp(x, state, times)
        axis = 0 if self.time_major else 1
        counts: Any = None
        where: Any = None
        if self.outputs == "last" and _tells_last(self.model):
            if isinstance(x, Ragged):  # to refuse rows without a step
                self._last_rows(x, times)
            else:
                self._pick(np.empty((*x.shape[:2], 0)), times, x.shape[axis])
            picked = y
        else:
            some = _steps(y, axis, silent, None) if silent else y
            picked, target, counts, where = self._seen(x, some, target, times)
            y = y.rows if isinstance(y, Ragged) else y
        if silent and counts is not None:
            counts = _steps(counts, axis, silent, None) if counts.dtype == np.bool_ else np.maximum(counts - silent, 0)
        value, d = self.loss(picked, target, counts)
        if not math.isfinite(value):
            raise _diverged(f"the loss is {value} at step {step}")
        dy = d
        if where is not None or silent:
            dy = np.zeros_like(y)
            dy[where if where is not None else (slice(None),) * axis + (slice(silent, None),)] = d
        self.model.zero_grad()
        pullback(dy, need_dx=False)
        norm = global_norm(self.model)
        if not math.isfinite(norm):
            raise _diverged(f"the gradients are not finite at step {step}, at a loss of {value:.6g}")
        if self.clip_value is not None:
            clip_by_value(self.model, self.clip_value)
        if self.clip_norm is not None:
            now = norm if self.clip_value is None else global_norm(self.model)
            if now > self.clip_norm:
                grads = self.model._writable_grads().flat
                grads *= grads.dtype.type(self.clip_norm / now)
        self.optimizer.step(self.model)
        return value, norm, state

    # -- data ----------------------------------------------------------------------------------------------------

    def _loader(self, data: Any, batch_size: int, shuffle: bool, seed: int) -> Any:
        if isinstance(data, (tuple, list)) and 2 <= len(data) <= 3:
            data = type(data)(_device.taken(d) for d in data)
        whole = isinstance(data, tuple) and len(data) in (2, 3) and isinstance(data[0], (Ragged, list))
        x = unwrapped(data[0])[0] if whole else None
        if isinstance(x, Ragged):
            if len(data) == 3 and data[2] is not None:
                raise ValueError("data: expected no lengths beside ragged sequences, got some")
            return RaggedLoader(
                self._floats(x), data[1], batch_size=batch_size, shuffle=shuffle, outputs=self.outputs, rng=seed
            )
        if isinstance(data, (tuple, list)) and 2 <= len(data) <= 3 and all(_check.is_array(d) for d in data[:2]):
            x, target, lengths = (*data, None)[:3]
            if isinstance(lengths, Mapping):
                raise TypeError(
                    "data: expected lengths beside whole arrays, got a dict, which belongs to a batch; give a list of batches"
                )
            x = self._floats(x)
            return ArrayLoader(
                x,
                target,
                lengths,
                batch_size=batch_size,
                shuffle=shuffle,
                outputs=self.outputs,
                time_major=self.time_major,
                rng=seed,
            )
        if not isinstance(data, Iterable):
            raise TypeError(
                f"data: expected (x, target[, lengths]) or an iterable of such batches, got {type(data).__name__}"
            )
        return data

    def _placed(self, a: Any) -> Any:
        """An array, or sequences, where the model is."""
        if isinstance(a, Ragged):
            return a.like(self._placed(a.rows))
        own = self.model._block.values
        return _device.like(_device.host(a), own) if _check.is_array(a) and _device.of(a) is not _device.of(own) else a

    def _back(self, y: Any, x: Any) -> Any:
        """Outputs where the input was."""
        return _device.host(y) if isinstance(x, np.ndarray) else y

    def _floats(self, x: Any) -> Any:
        """x in the dtype of the model, if it is one of real numbers."""
        if isinstance(x, Ragged):
            return x.like(self._floats(x.rows))
        if x.dtype.kind != "f" or x.dtype == self.model.dtype:
            return x
        warnings.warn(f"x: converted once from {x.dtype} to {self.model.dtype}", stacklevel=4)
        return x.astype(self.model.dtype)

    def _batches(self, loader: Any, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array, Times]]:
        batches = loader.batches(epoch, start) if hasattr(loader, "batches") else _from(loader, start)
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
                raise TypeError(
                    f"data: expected (x, target[, lengths]) as numpy arrays, or batches of that form, got {type(batch).__name__}"
                )
            x, target, third = (*batch, None)[:3]
            times = dict(third) if isinstance(third, Mapping) else {} if third is None else {"lengths": third}
            unknown = sorted(set(times) - {"lengths", "resets", "mask", "masked"})
            if unknown:
                raise ValueError(f"data: expected lengths, resets, mask and masked in the third place, got {unknown}")
            x, target = (_device.taken(a) for a in (unwrapped(x)[0], target))
            times = {n: _device.host(_device.taken(a)) for n, a in times.items()}  # where the Trainer looks at them
            if isinstance(x, Ragged):
                target, times = _flat(x, target, times, self.outputs)
            elif (
                {"lengths", "mask"} & set(times) and self.outputs == "all" and self.loss.batch_first == self.time_major
            ):
                raise ValueError(
                    f"loss: expected batch_first={not self.time_major}, as the model has it, got {self.loss.batch_first}"
                )
            yield self._placed(x), self._placed(target), times

    # -- public --------------------------------------------------------------------------------------------------

    def evaluate(self, data: Any, *, batch_size: int = 32) -> Row:
        """The mean loss over ``data`` and the metrics, without training: ``{"loss": ..., ...}``."""
        loader = self._loader(data, batch_size, False, 0)
        total, count, batches, state = 0.0, 0, 0, None
        sums = {name: [0.0, 0] for name in self.metrics}
        for x, target, times in self._batches(loader, 0):
            y, new = self._forward(x, state, times)
            state = new if getattr(loader, "carries_state", False) else None
            picked, target, lens, _ = self._seen(x, y, target, times)
            part, n, _ = self.loss.parts(picked, target, lens, gradient=False)
            total, count, batches = total + part, count + n, batches + 1
            for name, metric in self.metrics.items():
                s, k = metric(picked, target, lens)
                sums[name][0] += float(s)
                sums[name][1] += int(k)
        if batches == 0:
            raise ValueError(
                "data: expected at least one batch, got none (an iterator serves once: give a loader or a list)"
            )
        return {"loss": total / count if count else math.nan, **{n: v / max(k, 1) for n, (v, k) in sums.items()}}

    def predict(self, x: Any, *, lengths: Array | None = None, batch_size: int = 32) -> Any:
        """Outputs for samples ``x [N,T,...]``: ``[N,T,...]``, or ``[N,...]`` of the last real step with outputs="last".

        x may also be a `Ragged` or a list of ``[n,...]``: without outputs="last" the outputs are then of the same kind.
        """
        x, listed = unwrapped(x)
        if isinstance(x, Ragged):
            if lengths is not None:
                raise ValueError(f"lengths: expected None with ragged sequences, got {type(lengths).__name__}")
            x = self._floats(x)
            takes = (np.arange(k, min(k + batch_size, len(x))) for k in range(0, max(len(x), 1), batch_size))
            pieces = [self._placed(x.take(numbers)) for numbers in takes]
            outputs = [self._seen(part, self._forward(part, None, {})[0], np.empty(0), {})[0] for part in pieces]
            rows = self._back(np.concatenate(outputs), x.rows)
            return rows if self.outputs == "last" else as_given(rows, x, listed)
        x = _check.array("x", x)
        if x.ndim < 2:
            raise ValueError(f"x: expected shape (N, T, ...), got {x.shape}")
        x = self._floats(x)
        parts = []
        lens = _check.lengths(lengths, x.shape[1], x.shape[0])
        for k in range(0, max(len(x), 1), batch_size):
            rows = self._placed(x[k : k + batch_size])
            some = {} if lens is None else {"lengths": lens[k : k + batch_size]}
            y, _ = self._forward(np.swapaxes(rows, 0, 1) if self.time_major else rows, None, some)
            picked, where = self._pick(y, some, x.shape[1])
            parts.append(picked if where is not None or not self.time_major else np.swapaxes(picked, 0, 1))
        return self._back(np.concatenate(parts), x)

    def fit(
        self,
        train: Any,
        *,
        validation: Any = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        validate_every: int | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        log: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> History:
        """Train.

        Args:
            train, validation: ``(x [N,T,...], target[, lengths [N]])``; or ``(x, target)`` with x a `Ragged` or a list of ``[n,...]``;
                or an iterable of batches ``(x, target[, lengths])`` in the
                model's layout, such as a loader of `ostinato.data`. In place of lengths a batch may have a dict with any of lengths,
                resets, mask and masked; masked steps do not count in the loss.
            epochs, steps: when to end; whichever comes first. Neither: one epoch.
            batch_size, shuffle, seed: for arrays.
            validate_every: steps between validations; None: after every epoch.
            patience: end after so many validations without a better loss (by ``min_delta``).
            restore_best: end with the parameters of the best validation.
            checkpoint: a file, written whole after every validation, every ``checkpoint_every`` steps, at the end and on Ctrl-C;
                only parameters with which the loss has been found finite go into it.
            resume: go on from that file if it is there; the end is bit for bit that of a run without a stop.
            log: a CSV file, a line for every row of the history.
            progress: a bar on standard error, or, where that is no terminal, a line for every row of the history.

        Raises:
            Diverged: the loss or the gradients are not finite; the message names the step and the last good checkpoint.
            KeyboardInterrupt: Ctrl-C, after the step was ended and the checkpoint written.
        """
        if not self._running.acquire(blocking=False):
            raise RuntimeError("fit: this trainer is training already, in another thread")
        try:
            epochs = 1 if epochs is None and steps is None else epochs
            for name, value in (
                ("epochs", epochs),
                ("steps", steps),
                ("validate_every", validate_every),
                ("patience", patience),
                ("checkpoint_every", checkpoint_every),
            ):
                if value is not None:
                    _check.positive(name, value)
            if resume and checkpoint is None:
                raise ValueError("resume: expected a checkpoint to resume from, got checkpoint=None")
            if patience is not None and validation is None:
                raise ValueError("patience: expected validation data to watch, got validation=None")
            run = _Fit(
                self, self._loader(train, batch_size, shuffle, seed), epochs, steps, validate_every, patience, min_delta
            )
            run.validation = None if validation is None else self._loader(validation, batch_size, False, 0)
            run.path, run.checkpoint_every = None if checkpoint is None else Path(checkpoint), checkpoint_every
            if resume and run.path is not None and run.path.exists():
                run.restore()
            run.log = None if log is None else Path(log)
            callbacks = [*self.callbacks, *([_Line(run.total())] if progress else [])]
            return run.go(callbacks, restore_best)
        finally:
            self._running.release()


class _Fit:
    """One run of fit."""

    def __init__(
        self,
        trainer: Trainer,
        loader: Any,
        epochs: int | None,
        steps: int | None,
        validate_every: int | None,
        patience: int | None,
        min_delta: float,
    ) -> None:
        self.trainer, self.loader, self.epochs, self.steps = trainer, loader, epochs, steps
        self.validate_every, self.patience, self.min_delta = validate_every, patience, min_delta
        self.validation: Any = None
        self.path: Path | None = None
        self.checkpoint_every: int | None = None
        self.log: Path | None = None
        self.at = _Progress()
        self.state: Any = None
        self.history = History()
        self.best_parameters: Array | None = None
        self.resumed = False
        self._last: tuple[Any, ...] = ()  # the last batch: the loss of new parameters is tried on it
        self._known_good = -1  # the step whose parameters have shown a finite loss
        self._saved = (-1, -1)
        self._started = 0.0

    def go(self, callbacks: Sequence[Callback], restore_best: bool) -> History:
        t, at = self.trainer, self.at
        self._started = time.monotonic() - at.seconds
        t._stop = ""
        self._open_log()
        for c in callbacks:
            c.on_start(t)
        try:
            with _deferred_interrupt() as interrupted:
                self.history.stopped = self._loop(callbacks, interrupted)
                if not interrupted():
                    self._save()
            if interrupted():
                self._save()
                raise KeyboardInterrupt
        except Diverged as e:
            good = f"; the last good checkpoint is {self.path}" if self.path is not None and self.path.exists() else ""
            raise Diverged(f"{e}{good}") from None
        finally:
            for c in callbacks:
                c.on_end(t)
        if restore_best and self.best_parameters is not None:
            with t.model.write() as p:
                p.flat[...] = self.best_parameters
        return self.history

    def total(self) -> int | None:
        """How many steps there will be, as far as it can be known."""
        known = self.epochs is not None and hasattr(self.loader, "__len__")
        ends = [n for n in (self.steps, len(self.loader) * (self.epochs or 0) if known else None) if n]
        return min(ends, default=None)

    def _loop(self, callbacks: Sequence[Callback], interrupted: Callable[[], bool]) -> str:
        t, at = self.trainer, self.at
        if not self.resumed:
            at.first_epoch = t._epochs
        if self.patience is not None and at.bad >= self.patience:
            return PATIENCE
        while True:
            if self.epochs is not None and at.epoch >= self.epochs:
                return "all epochs done"
            first = at.batch
            for x, target, times in t._batches(self.loader, at.first_epoch + at.epoch, at.batch):
                if self.steps is not None and at.step >= self.steps:
                    return self._last_row(callbacks)
                value, at.norm, state = t._train_step(x, target, times, self.state, at.step + 1)
                self._last = (x, target, times, self.state)
                self.state = state if getattr(self.loader, "carries_state", False) else None
                at.step, at.batch = at.step + 1, at.batch + 1
                at.loss_sum, at.loss_count = at.loss_sum + value, at.loss_count + 1
                for c in callbacks:
                    c.on_step(t, at.step, value, at.norm)
                if self.validate_every and at.step % self.validate_every == 0 and self._row(callbacks):
                    return PATIENCE
                if self.checkpoint_every and at.step % self.checkpoint_every == 0:
                    self._save()
                if interrupted():
                    return "interrupted"
                if t._stop:
                    return t._stop
            if at.batch == first == 0:
                raise ValueError("train: expected at least one batch, got none")
            at.epoch, at.batch, self.state = at.epoch + 1, 0, None
            t._epochs = at.first_epoch + at.epoch
            if not self.validate_every and self._row(callbacks):
                return PATIENCE
            if interrupted():
                return "interrupted"
            if t._stop:
                return t._stop

    def _last_row(self, callbacks: Sequence[Callback]) -> str:
        """The steps since the last row, if there are any, make one too."""
        if self.at.loss_count:
            self._row(callbacks)
        return "all steps done"

    def _row(self, callbacks: Sequence[Callback]) -> bool:
        """A row of the history, with a validation if there is data for one; True when patience is at its end."""
        t, at = self.trainer, self.at
        at.seconds = time.monotonic() - self._started
        row: Row = {
            "step": at.step,
            "epoch": at.epoch,
            "loss": at.loss_sum / max(at.loss_count, 1),
            "rate": t.optimizer.rate,
            "norm": at.norm,
        }
        at.loss_sum, at.loss_count = 0.0, 0
        if self.validation is not None:
            figures = t.evaluate(self.validation)
            row["valid_loss"] = figures.pop("loss")
            row.update({f"valid_{k}": v for k, v in figures.items()})
            if not math.isfinite(row["valid_loss"]):
                raise _diverged(f"the validation loss is {row['valid_loss']} after step {at.step}")
            self._known_good = at.step
            t.optimizer.schedule.observe(row["valid_loss"])
            if row["valid_loss"] < at.best - self.min_delta:
                at.best, at.bad = row["valid_loss"], 0
                self.history.best = row
                self.best_parameters = t.model.flat.copy()
            else:
                at.bad += 1
        row["seconds"] = at.seconds
        self.history.rows.append(row)
        self._write_log(row)
        self._save()
        for c in callbacks:
            c.on_row(t, row)
        return self.patience is not None and at.bad >= self.patience

    # -- log -----------------------------------------------------------------------------------------------------

    def _open_log(self) -> None:
        if self.log is not None:
            if not self.log.parent.is_dir():
                raise FileNotFoundError(f"log: expected a folder at {self.log.parent}, found none")
            if not self.resumed:
                self.log.write_text("")

    def _write_log(self, row: Row) -> None:
        if self.log is None:
            return
        new = not self.log.exists() or self.log.stat().st_size == 0
        with self.log.open("a", newline="") as f:
            writer = csv.DictWriter(f, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        key = (self.at.step, len(self.history.rows))
        if self.path is None or self._saved == key:
            return
        self._try()
        t, tensors = self.trainer, {}
        self.at.seconds = time.monotonic() - self._started
        for name, value in t.model.parameters().items():
            tensors[f"model.{name}"] = _device.host(value)
        optimizer = t.optimizer.state_dict()
        for name, value in optimizer.pop("buffers").items():
            tensors[f"optimizer.{name}"] = value
        if self.best_parameters is not None:
            tensors["best"] = _device.host(self.best_parameters)
        state = _pack_state(self.state, tensors, "state")
        at = dict(vars(self.at), best=None if math.isinf(self.at.best) else self.at.best)
        rngs = [m._rng.bit_generator.state for m in _layers(t.model) if hasattr(m, "_rng")]
        meta = {
            "at": at,
            "state": state,
            "optimizer": optimizer,
            "rows": self.history.rows,
            "best": self.history.best,
            "rngs": rngs,
        }
        safetensors.save(self.path, tensors, {"ostinato": json.dumps(meta, default=_encode)})
        self._saved = key

    def _try(self) -> None:
        """Raises if the loss of the present parameters is not finite, on the last batch or, after a validation, on that."""
        if self._known_good == self.at.step or not self._last:
            return
        x, target, times, state = self._last
        y, _ = self.trainer._forward(x, state, times)
        picked, target, counts, _ = self.trainer._seen(x, y, target, times)
        total, _, _ = self.trainer.loss.parts(picked, target, counts, gradient=False)
        if not math.isfinite(total):
            raise _diverged(f"the loss is {total} after step {self.at.step}")
        self._known_good = self.at.step

    def restore(self) -> None:
        """Take everything from the checkpoint."""
        assert self.path is not None
        tensors, text = safetensors.load(self.path)
        if "ostinato" not in text:
            raise ValueError(f"{self.path}: expected a checkpoint of a Trainer, got another safetensors file")
        meta, t = json.loads(text["ostinato"], object_hook=_decode), self.trainer
        buffers = {n[len("optimizer.") :]: v for n, v in tensors.items() if n.startswith("optimizer.")}
        optimizer = {**meta["optimizer"], "buffers": buffers}
        try:
            t.optimizer.check_state(optimizer)
            t.model.load_state_dict({n[len("model.") :]: v for n, v in tensors.items() if n.startswith("model.")})
        except (KeyError, ValueError) as e:
            raise ValueError(
                f"{self.path}: expected a checkpoint of this model and optimiser, got another: {e.args[0]}"
            ) from None
        t.optimizer.load_state_dict(optimizer)
        self.at = _Progress(**{**meta["at"], "best": math.inf if meta["at"]["best"] is None else meta["at"]["best"]})
        self.state = _unpack_state(meta["state"], {n: self.trainer._placed(a) for n, a in tensors.items()})
        self.history = History(meta["rows"], meta["best"])
        self.best_parameters = self.trainer._placed(tensors.get("best"))
        for m, state in zip((m for m in _layers(t.model) if hasattr(m, "_rng")), meta["rngs"]):
            m._rng.bit_generator.state = state
        self.resumed = True


class _Line(Callback):
    """Progress on standard error: a bar rewritten in place on a terminal, a line for every row elsewhere."""

    def __init__(self, total: int | None) -> None:
        self.total, self.live, self.last = total, sys.stderr.isatty(), 0.0

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        now = time.monotonic()
        if self.live and now - self.last > 0.2:
            self.last = now
            done = 0.0 if self.total is None else min(step / self.total, 1.0)
            bar = "" if self.total is None else f"[{'#' * int(24 * done):24}] {done:4.0%}  "
            sys.stderr.write(f"\r\x1b[K{bar}step {step}  loss {loss:.4f}  norm {norm:.3g}")
            sys.stderr.flush()

    def on_row(self, trainer: Trainer, row: Row) -> None:
        valid = f"  valid {row['valid_loss']:.4f}" if "valid_loss" in row else ""
        figures = (
            f"step {row['step']:.0f}  epoch {row['epoch']:.0f}  loss {row['loss']:.4f}{valid}  {row['seconds']:.0f} s"
        )
        sys.stderr.write(("\r\x1b[K" if self.live else "") + figures + "\n")

    def on_end(self, trainer: Trainer) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _encode(value: Any) -> Any:
    """Arrays in the state of a random generator."""
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: dict[str, Any]) -> Any:
    return np.array(value["__array__"], value["dtype"]) if "__array__" in value else value


def _steps(a: Array, axis: int, start: int, end: int | None) -> Array:
    return a[start:end] if axis == 0 else a[:, start:end]


def _flat(x: Ragged, target: Any, times: Times, outputs: str) -> tuple[Array, Times]:
    """Targets and flags of ragged sequences as flat rows."""
    if times.get("lengths") is not None:
        raise ValueError("data: expected no lengths beside ragged sequences, got some")
    flags = {n: flat_flags(n, times.get(n), x) for n in ("resets", "mask")}
    return targets_of(target, x, outputs), {**times, **{n: f for n, f in flags.items() if f is not None}}


def _ends(times: Times) -> Array | None:
    return None if times.get("lengths") is None else np.asarray(times["lengths"])


def _cut(times: Times, axis: int, start: int, end: int) -> Times:
    """The same for the steps from start to end."""
    out = dict(times)
    if times.get("lengths") is not None:
        out["lengths"] = np.clip(np.asarray(times["lengths"]) - start, 0, end - start)
    for name in ("resets", "mask"):
        if times.get(name) is not None:
            out[name] = _steps(times[name], axis, start, end)
    return out


def _tells_last(model: Layer) -> bool:
    """Whether the model's vjp knows ``outputs="last"``: what follows its last recurrent layer must not mix steps."""
    if isinstance(model, Recurrent):
        return True
    if not isinstance(model, Sequential):
        return False
    for layer in reversed(model.layers):
        if isinstance(layer, (Recurrent, Sequential)):
            return _tells_last(layer)
        if not isinstance(layer, (Linear, Activation, Dropout)):
            return False
    return False


def _layers(model: Layer) -> Iterator[Layer]:
    yield model
    for child in getattr(model, "layers", ()) if isinstance(model, Sequential) else ():
        yield from _layers(child)


def _from(iterable: Iterable[Any], start: int) -> Iterator[Any]:
    """The batches of an iterable from number ``start`` on; those before are made and left."""
    for k, batch in enumerate(iterable):
        if k >= start:
            yield batch


def _pack_state(state: Any, tensors: dict[str, Array], name: str) -> Any:
    if state is None:
        return None
    if _check.is_array(state):
        tensors[name] = _device.host(state)
        return name
    return [_pack_state(s, tensors, f"{name}.{k}") for k, s in enumerate(state)]


def _unpack_state(packed: Any, tensors: dict[str, Array]) -> Any:
    if packed is None:
        return None
    return tensors[packed] if isinstance(packed, str) else tuple(_unpack_state(p, tensors) for p in packed)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds a first Ctrl-C back until the caller asks; a second one interrupts at once."""
    seen = False

    def handler(number: int, frame: Any) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield lambda: seen
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
