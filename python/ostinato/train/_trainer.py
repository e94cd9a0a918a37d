"""Define the Trainer: a model, a loss and an optimiser, with fit, evaluate and predict."""

from __future__ import annotations

import copy
import json
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, _deferred, _device
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged, as_given, flat_flags, leaves
from .._recording import refuse_overridden
from .._segments import parse as parse_limit
from ..data import Inputs, as_array, whole_input
from ..losses import Loss
from ..losses._base import takes_host_targets
from ..nn import Layer, Recurrent
from ..nn._layer import layers_of
from ..optim import Adam, Optimizer
from ..optim._checks import check_above_zero
from . import metrics as _metrics
from ._callbacks import Callback
from ._fit import Fit, Settings
from ._inputs import Form, Source, contiguous, culprit_of, refuse_non_finite, sequences
from ._log import Log
from ._parallel import ALONE, Parallel
from ._progress import Progress
from ._step import Stepper, check_strides, measure, tells_last
from ._types import Batch, History, Row, Times
from ._unread import Tally
from .metrics import Metric

OUTPUTS = ("all", "last", "last_step")


def _instance(name: str, value: Any, kind: type) -> Any:
    """Return an object of a kind; a class is instantiated where it needs no arguments."""
    wanted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
    if isinstance(value, type) and issubclass(value, kind):
        try:
            return value()
        except TypeError as e:
            raise TypeError(
                f"{name}: expected {wanted}, got the class {value.__name__}, which needs "
                f"arguments: {e}"
            ) from None
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    return value


def _check_model(model: object) -> None:
    """Raise unless it is a layer, whose parts train what their calls compute."""
    if not isinstance(model, Layer):
        raise TypeError(
            f"model: expected a Layer, got {type(model).__name__}; a class of yours that has "
            "layers as attributes derives from ost.nn.Model"
        )
    for layer in layers_of(model):
        refuse_overridden(layer, "vjp")


class Trainer:
    """Train a model: ``fit``, ``evaluate``, ``predict``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.random.default_rng(0).uniform(-0.1, 0.1, (64, 10, 1)).astype(np.float32)
    >>> gru = ost.nn.GRU(1, 8, batch_first=True, rng=0)
    >>> model = ost.nn.Sequential(gru, ost.nn.Linear(8, 1, rng=0))
    >>> trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
    >>> history = trainer.fit((x, x.cumsum(1)), epochs=2, progress=False)
    >>> trainer.predict(x).shape
    (64, 10, 1)

    Args:
        model: a layer; usually a `Sequential`.
        loss: a `Loss`, or its class; ``loss(y, target, lengths) -> (value, dy)``.
        optimizer: an `Optimizer`, or its class; it keeps its state between calls of fit. None:
            ``Adam()``.
        clip_norm: bound on the global norm of the gradients; None: no bound.
        clip_value: bound on the absolute value of every gradient; None: no bound.
        outputs: what the loss is given: "all": every step's output; "last": the final state of each
            direction, ``[B,D*H]``; "last_step": the output at the last real step. The two differ
            with two directions only, where the second half of the last step has read that step
            alone. Layers behind the recurrent ones follow on either.
        clip_step_value: bound on the gradient of the states at every step; see `nn.RNN.vjp`.
        clip_step_norm: bound on the norm of that gradient in each row; see `nn.RNN.vjp`.
        memory_limit: a bound on what each recurrent layer saves for its backward pass, such as
            "512MB"; see `nn.RNN.vjp`.
        tbptt: ``(k1, k2)``, truncated backpropagation through time (Williams, Peng 1990, BPTT(h;
            h') with h = k2, h' = k1): a batch is run in strides of k1 steps; the state is carried
            on, and the gradient of the losses of those k1 steps goes back through the last k2 >=
            k1. Each stride is an update, and so a step of schedules, logs and ``fit``. A model of
            several inputs takes and returns a state for it, and each input has T steps.
        metrics: a dict of names to `ostinato.train.metrics`, or functions
            ``(y, target, lengths) -> (sum, count)``; or a list of metrics or of their names, such
            as ``["accuracy"]``. evaluate and every validation report them. lengths is a bool mask
            of the steps that count where a batch has a mask, and None for all.
        callbacks: `Callback` objects.
        parallel: the processes that train together, each with its part of every batch; see
            `Parallel`. All of them make the same Trainer and call `fit` with the same arguments;
            only rank 0 reads and writes the checkpoint and the log. evaluate and predict are those
            of one process. None: this one alone.

    Raises:
        KeyError: a pattern of the optimiser's groups that matches no parameter.
        TypeError: an argument of the wrong type.
        ValueError: an option that the model does not have, or layers of two layouts.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss | type[Loss],
        optimizer: Optimizer | type[Optimizer] | None = None,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        outputs: str = "all",
        clip_step_value: float | None = None,
        clip_step_norm: float | None = None,
        memory_limit: str | int | None = None,
        tbptt: tuple[int, int] | None = None,
        metrics: Mapping[str, Any] | Sequence[Any] | None = None,
        callbacks: Sequence[Callback] = (),
        parallel: Parallel | None = None,
    ) -> None:
        _check_model(model)
        self.model: Layer = model
        self.loss: Loss = _instance("loss", loss, Loss)
        self.optimizer: Optimizer = (
            Adam() if optimizer is None else _instance("optimizer", optimizer, Optimizer)
        )
        self.optimizer.check_groups(model)
        steps = {"clip_step_value": clip_step_value, "clip_step_norm": clip_step_norm}
        for name, limit in {"clip_norm": clip_norm, "clip_value": clip_value, **steps}.items():
            if limit is not None:
                check_above_zero(name, limit)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.outputs: str = _check.choice("outputs", outputs, OUTPUTS)
        self.metrics = _metrics.named(metrics)
        self.callbacks = list(callbacks)
        self.parallel: Parallel | None = (
            None if parallel is None else _instance("parallel", parallel, Parallel)
        )
        recurrent = [m for m in layers_of(model) if isinstance(m, Recurrent)]
        self._check_outputs(recurrent)
        given = {**steps, "memory_limit": memory_limit}
        self._options = {name: value for name, value in given.items() if value is not None}
        if self._options and not recurrent:
            raise ValueError(
                f"{next(iter(self._options))}: expected a model with recurrent layers, got "
                f"{model!r}"
            )
        if memory_limit is not None:
            parse_limit(memory_limit)
        whole = self._per_sequence()
        self.tbptt = None if tbptt is None else check_strides(tbptt, recurrent, whole)
        layouts = {bool(m.batch_first) for m in layers_of(model) if hasattr(m, "batch_first")}
        if len(layouts) > 1:
            raise ValueError(
                "model: expected recurrent layers of one layout, got some with batch_first=True "
                "and some without"
            )
        self.time_major: bool | None = not layouts.pop() if layouts else None
        self.at_step = 0
        self._stop, self._epochs = "", 0
        self._running = threading.Lock()

    def _per_sequence(self) -> str | None:
        """Return what makes an output or a target one of whole sequences; None if nothing does."""
        per_sequence = None if self.outputs == "all" else f'"{self.outputs}"'
        if getattr(self.model, "reduces_time", False):
            per_sequence = "a model that reduces the axis of time"
        if not self.loss.takes_sequences:
            return per_sequence
        loss = type(self.loss).__name__
        if per_sequence is not None:
            raise ValueError(
                f"outputs: expected the outputs of all steps for {loss}, got {per_sequence}"
            )
        return f"{loss}, a loss of whole sequences"

    def _check_outputs(self, recurrent: list[Recurrent]) -> None:
        if self.outputs == "all":
            return
        if getattr(self.model, "reduces_time", False):
            raise ValueError(
                'outputs: expected "all" for a model that reduces the axis of time, '
                f'got "{self.outputs}"'
            )
        if (
            self.outputs == "last"
            and any(m.bidirectional for m in recurrent)
            and not tells_last(self.model)
        ):
            raise ValueError(
                'outputs: expected "last_step", or a model whose layers behind its last recurrent '
                "one act on each step by itself "
                '(Linear, Activation, Dropout, LayerNorm), got "last"'
            )

    # A copy or a pickle is a Trainer that is not running.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _running=threading.Lock())

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the run after the present step.

        Args:
            reason: what `History.stopped` says.
        """
        self._stop = reason

    @property
    def _ranks(self) -> Parallel:
        return ALONE if self.parallel is None else self.parallel

    def _form(self) -> Form:
        per_sequence = self.outputs != "all" or bool(getattr(self.model, "reduces_time", False))
        labels = self.loss.takes_sequences
        return Form(
            self.model,
            self.time_major,
            per_sequence,
            self.loss.batch_first,
            labels,
            takes_host_targets(self.loss),
        )

    def _placed(self, a: Any) -> Any:
        """Return an array, or sequences, on the device of the model."""
        return self._form().placed(a)

    # -- evaluate ----------------------------------------------------------------------------------

    def evaluate(self, data: Any, target: Any = None, *, batch_size: int = 32) -> Row:
        """Return the mean loss over data and the metrics, without training.

        Args:
            data: as the training data of `fit`.
            target: ``evaluate(x, target)`` is ``evaluate((x, target))``.
            batch_size: samples of a batch, for arrays.

        Returns:
            ``{"loss": ..., ...}`` with the metrics by their names.

        Raises:
            ValueError: there is no batch, or no step that counts.
        """
        _check.positive("batch_size", batch_size)
        form = self._form()
        source = Source("data", _pair("data", data, target, form), form, batch_size, False, 0)
        return self._evaluate(source)[0]

    def _evaluate(self, source: Source, ranks: Parallel = ALONE) -> tuple[Row, str]:
        """Return the figures, and what is known of the first value that is not finite.

        Ranks that have a part of the data each measure it together.
        """
        stepper, state, tally, batches = Stepper(self), None, Tally(), 0
        metrics = {
            name: copy.deepcopy(m)
            if not isinstance(m, _metrics.Function)
            else _metrics.Function(m.function)
            for name, m in self.metrics.items()
        }
        for metric in metrics.values():
            metric.reset()
        for batch in source.batches(0):
            batches += 1
            if batch.x is None:
                continue
            with _deferred.gathered() as checks:
                y, new = stepper.forward(batch, state)
                state = new if source.carries_state else None
                picked, target, counts, weights, _ = stepper.seen(batch, y)
                with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                    value, n, _ = measure(
                        self.loss, picked, target, counts, weights, batch.time_major, gradient=False
                    )
            tally.add(value, n, checks, culprit_of(batch))
            for metric in metrics.values():
                _feed(metric, picked, target, counts, batch)
        tally.read()
        if batches == 0:
            raise ValueError(
                "data: expected at least one batch, got none (an iterator serves once: give a "
                "loader or a list)"
            )
        total, count = tally.total, tally.count
        if source.part is not None:
            total, count = ranks._exchange("a validation", total, count).sum(0).tolist()
            metrics = _merged(metrics, ranks)
        if not count:
            raise ValueError(
                f"{source.name}: expected at least one step that counts in the loss, got none"
            )
        return {
            "loss": total / count,
            **{n: float(m.compute()) for n, m in metrics.items()},
        }, tally.culprit

    # -- predict -----------------------------------------------------------------------------------

    def predict(
        self,
        x: Any,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        masked: str = "repeat",
        batch_size: int = 32,
    ) -> Any:
        """Return the outputs of the model for samples.

        Args:
            x: the samples ``[N,T,...]``; or a `Ragged` or a list of ``[n,...]``, whose outputs (of
                all steps) are then of the same kind; or several inputs as in `fit`.
            lengths: ``[N]``; None: every sample has T steps.
            mask: bool ``[N,T]``, or cut as the sequences of x; see `nn.RNN`.
            resets: bool ``[N,T]``, or cut as the sequences of x; see `nn.RNN`.
            masked: what the output of a masked step is, "repeat" or "zero".
            batch_size: samples that are run at a time.

        Returns:
            ``[N,T,...]``, or ``[N,...]`` with outputs of one step.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, or x that is not finite.
        """
        _check.positive("batch_size", batch_size)
        if self._form().several(x):
            beside = {"lengths": lengths, "mask": mask, "resets": resets}
            return self._predict_several(Inputs.of(x), beside, batch_size)
        listed = isinstance(x, (list, tuple))
        given = {"lengths": lengths, "mask": mask, "resets": resets}
        times: Times = {n: v for n, v in given.items() if v is not None}
        if masked != "repeat":
            times["masked"] = masked
        x = sequences(x)
        form = self._form()
        if isinstance(x, Ragged):
            return self._predict_ragged(form.floats(x), listed, times, batch_size)
        form.refuse_time_major("x")
        form.check_rank(x)
        if x.ndim < 2:
            raise ValueError(f"x: expected shape (N, T, ...), got {x.shape}")
        x = form.floats(x)
        if lengths is not None:
            times["lengths"] = _check.lengths(
                as_array("lengths", np.asarray(lengths)), x.shape[1], x.shape[0]
            )
        for name in ("mask", "resets"):
            if name in times:
                times[name] = np.asarray(_device.host(as_array(name, times[name])))
                _check.flags(name, times[name], x.shape[1], x.shape[0], True)
        parts, stepper = [], Stepper(self)
        with _deferred.gathered() as checks:
            for k in range(0, max(len(x), 1), batch_size):
                rows = slice(k, k + batch_size)
                some = {n: v[rows] if isinstance(v, np.ndarray) else v for n, v in times.items()}
                batch = Batch(contiguous(x[rows]), None, some, False, np.arange(len(x))[rows])
                refuse_non_finite(batch)
                parts.append(self._outputs(stepper, replace(batch, x=form.placed(batch.x))))
        _deferred.raise_first(checks)
        y = np.concatenate(parts)
        return _device.host(y) if isinstance(x, np.ndarray) else y

    def _predict_several(self, x: Inputs, beside: dict[str, Any], batch_size: int) -> Any:
        """Return the outputs of a model of several inputs."""
        for name, value in beside.items():
            if value is not None:
                raise ValueError(f"{name}: expected it among the inputs of the model")
        form = self._form()
        inputs = x.mapped(whole_input).mapped(form.converted)
        form.refuse_arrays("x", inputs)
        count, parts, stepper = inputs.count(), [], Stepper(self)
        with _deferred.gathered() as checks:
            for k in range(0, max(count, 1), batch_size):
                some = inputs.take(np.arange(k, min(k + batch_size, count)))
                batch = Batch(some, None, {}, False)
                refuse_non_finite(batch)
                parts.append(stepper.forward(replace(batch, x=form.placed(some)), None)[0])
        _deferred.raise_first(checks)
        if isinstance(parts[0], Ragged):
            joined = [one for part in parts for one in part.like(_device.host(part.rows))]
            return Ragged.join(joined)
        return _device.host(np.concatenate(parts))

    def _predict_ragged(self, x: Ragged, listed: bool, times: Times, batch_size: int) -> Any:
        if "lengths" in times:
            raise ValueError(
                "lengths: expected None with ragged sequences, got "
                f"{type(times['lengths']).__name__}"
            )
        names = [n for n in ("mask", "resets") if n in times]
        flags = {n: flat_flags(n, times[n], x) for n in names}
        more = {n: v for n, v in times.items() if n not in flags}
        parts, lengths, stepper = [], [], Stepper(self)
        with _deferred.gathered() as checks:
            for k in range(0, max(len(x), 1), batch_size):
                some = np.arange(k, min(k + batch_size, len(x)))
                part = x.take(some)
                cut: Times = {
                    n: x.like(f).take(some).rows for n, f in flags.items() if f is not None
                }
                batch = Batch(part, None, {**more, **cut}, bool(self.time_major))
                refuse_non_finite(batch)
                batch = replace(batch, x=self._placed(part))
                y = self._outputs(stepper, batch)
                parts.append(y.rows if isinstance(y, Ragged) else y)
                lengths.append(y.lengths if isinstance(y, Ragged) else part.lengths)
        _deferred.raise_first(checks)
        y = np.concatenate(parts)
        y = _device.host(y) if isinstance(leaves(x), np.ndarray) else y
        if self.outputs != "all" or stepper.reduces:
            return y
        offsets = np.cumsum([0, *np.concatenate(lengths)])
        if np.array_equal(offsets, x.offsets):
            return as_given(y, x, listed)
        # A convolution with a stride gives fewer outputs than steps.
        return as_given(y, Ragged(y, offsets), listed)

    def _outputs(self, stepper: Stepper, batch: Batch) -> Any:
        """Return what the user sees of a batch: all outputs, or those of one step."""
        y, _ = stepper.forward(batch, None)
        if self.outputs == "all" or stepper.reduces:
            return y
        picked: Array = stepper.seen(batch, y)[0]
        return picked

    # -- fit ---------------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        target: Any = None,
        *,
        validation: Any = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        accumulate: int = 1,
        validate_every: int | None = None,
        monitor: str = "valid_loss",
        mode: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        identity: Mapping[str, Any] | None = None,
        log: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> History:
        """Train the model.

        A step is an update of the parameters, here and in schedules, logs and callbacks: one a
        batch; with ``tbptt`` one a stride; with ``accumulate`` one for so many batches. A batch of
        which nothing counts (only padding) makes none.

        Args:
            train: ``(x [N,T,...], target[, lengths [N]])``; or ``(x, target)`` with x a `Ragged` or
                a list of ``[n,...]``; or with x a dict of inputs for a `Model` that takes several,
                by the names of its arguments (or a tuple, by their order, where it requires more
                than one), each an array ``[N,...]`` or a `Ragged`: lengths beside them are then
                those of the outputs, and go to the loss alone; or an iterable of batches
                ``(x, target[, lengths])`` in the model's layout, such as a loader of
                `ostinato.data` or a DataLoader of PyTorch. In place of lengths there may be a dict
                with any of lengths, resets, mask (masked steps do not count in the loss), masked,
                and weights (of samples ``[N]`` or of steps ``[N,T]``; the loss is then a weighted
                mean). Whole arrays need recurrent layers with ``batch_first=True``.
            target: ``fit(x, target)`` is ``fit((x, target))``.
            validation: data as train, on which the loss and the metrics are measured; None: none.
            epochs: when to end; None: by steps only, or after one epoch without steps.
            steps: when to end, if that comes first; None: by epochs only.
            batch_size: samples of a batch, for arrays.
            shuffle: whether every epoch has a new order, for arrays.
            seed: seed of all that draws in the run: the order of the samples, and dropout in every
                layer.
            accumulate: batches for an update, whose gradient is that of their common mean loss.
            validate_every: steps between validations; None: after every epoch. The end of the run
                is validated as well.
            monitor: what patience, ``restore_best`` and `optim.ReduceOnPlateau` watch:
                "valid_loss", or "valid_" and the name of a metric.
            mode: "min" or "max": which way is better; None: as the metric says.
            patience: end after so many validations without a better figure (by ``min_delta``);
                None: never.
            min_delta: what patience takes for better; the best is the best all the same.
            restore_best: whether to end with the parameters of the best validation, also after an
                error, NaN, Ctrl-C or SIGTERM.
            checkpoint: a file, written whole after every validation, every ``checkpoint_every``
                steps, at the end and when anything ends the run early; only parameters with which
                the loss has been found finite go into it.
            checkpoint_every: steps between checkpoints, beside those above; None: no others.
            resume: whether to continue from that file if it is there; the end is bit for bit that
                of a run without a stop.
            overwrite: whether to write over a checkpoint and a log that are there.
            identity: facts that JSON can hold, such as an alphabet; a run is resumed with equal
                ones only.
            log: a CSV file, a line for every row of the history.
            progress: whether to show a bar on standard error (that of tqdm, where it is installed),
                or, where that is no terminal, a line for every row of the history.

        Returns:
            The rows of the run, the best one, and why it ended.

        Raises:
            Diverged: the loss or the gradients are not finite; the message names the step, the last
                good checkpoint, and whether x, target or neither held the first value that was not.
            FileExistsError: a checkpoint or log is there, and neither ``resume`` nor ``overwrite``
                was given.
            KeyboardInterrupt: Ctrl-C, after the step was ended and the checkpoint written. SIGTERM
                raises SystemExit likewise.
        """
        if not self._running.acquire(blocking=False):
            raise RuntimeError("fit: this trainer is training already, in another thread")
        ranks = self._ranks
        if ranks.rank:  # whose files are those of rank 0
            checkpoint = log = None
        try:
            settings = Settings(
                epochs=1 if epochs is None and steps is None else epochs,
                steps=steps,
                validate_every=validate_every,
                patience=patience,
                min_delta=min_delta,
                monitor=monitor,
                sign=self._sign(monitor, mode, validation is not None),
                restore_best=restore_best,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                checkpoint_every=checkpoint_every,
                accumulate=accumulate,
                seed=seed,
                identity=_facts(identity),
                log=None if log is None else Path(log),
            )
            _check_counts(settings, batch_size)
            data = _pair("train", train, target, self._form())
            source, valid = self._sources(data, validation, batch_size, shuffle, seed)
            self._check_run(settings, valid)
            return self._run(Fit(self, source, valid, settings), resume, overwrite, progress)
        except BaseException as e:
            ranks._tell(e, last=True)
            raise
        finally:
            self._running.release()

    def _run(self, run: Fit, resume: bool, overwrite: bool, progress: bool) -> History:
        """Check the files of a run and begin it, on this rank or on all."""
        first = self._ranks.rank == 0
        if first:
            _check_files(run.settings, resume, overwrite)
        _check_intervals(run.settings, run.total())
        run.begin(resume)
        bar = [Progress(run.total())] if progress and first else []
        return run.go([*self.callbacks, *bar])

    def _sources(
        self, train: Any, validation: Any, batch_size: int, shuffle: bool, seed: int
    ) -> tuple[Source, Source | None]:
        """Return the batches of training and validation, of which a rank has its part."""
        form, ranks = self._form(), self._ranks
        part = slice(ranks.rank, None, ranks.size) if ranks.size > 1 else None
        source = Source("train", train, form, batch_size, shuffle, seed, part)
        if validation is None:
            return source, None
        mergeable = all(type(m).merge is not Metric.merge for m in self.metrics.values())
        own = part if mergeable else None
        return source, Source("validation", validation, form, batch_size, False, 0, own)

    def _sign(self, monitor: str, mode: str | None, validated: bool) -> float:
        """Return 1 if a smaller monitored figure is better, -1 if a larger one is."""
        known = {"valid_loss": "min", **{f"valid_{n}": m.mode for n, m in self.metrics.items()}}
        _check.choice("monitor", monitor, tuple(known))
        if not validated and (monitor != "valid_loss" or mode is not None):
            raise ValueError("monitor: expected validation data to watch, got validation=None")
        way = known[monitor] if mode is None else _check.choice("mode", mode, ("min", "max"))
        if way is None:
            raise ValueError(
                f"mode: expected 'min' or 'max' with monitor={monitor!r}, which does not say, got "
                "None"
            )
        return -1.0 if way == "max" else 1.0

    def _check_parallel(self) -> None:
        """Raise an error where several processes cannot train this model."""
        for name in {"clip_step_value", "clip_step_norm"} & set(self._options):
            raise ValueError(
                f"{name}: expected None with several processes, since it bounds the gradient of "
                f"the whole batch, got {self._options[name]}"
            )
        device = _device.name_of(self.model.flat)
        if device != "cpu":
            raise ValueError(
                "parallel: expected a model on the CPU, since gradients are exchanged in its "
                f"memory, got one on {device}; use model.to('cpu'), or one "
                "process"
            )

    def _check_run(self, s: Settings, valid: Source | None) -> None:
        """Raise an error before the first step if an argument would have no effect."""
        if s.patience is not None and valid is None:
            raise ValueError("patience: expected validation data to watch, got validation=None")
        _check.finite("min_delta", s.min_delta)
        if s.min_delta and s.patience is None:
            raise ValueError(
                "min_delta: expected 0 without patience, the only thing it acts on, got "
                f"{s.min_delta}"
            )
        if valid is None and self.optimizer.schedule.observes:
            raise ValueError(
                f"validation: expected data for the {type(self.optimizer.schedule).__name__} of "
                "the optimiser to watch, got None"
            )
        if valid is not None:
            valid.refuse_nothing()
        if s.accumulate > 1 and self.tbptt is not None:
            raise ValueError(
                "accumulate: expected 1 with tbptt, whose strides are the updates, got "
                f"{s.accumulate}"
            )
        if self._ranks.size > 1:
            self._check_parallel()
        if s.accumulate > 1 and {"clip_step_value", "clip_step_norm"} & set(self._options):
            raise ValueError(
                "accumulate: expected 1 with clip_step_value or clip_step_norm, whose bounds are "
                "on the gradient of the whole "
                f"batch, got {s.accumulate}"
            )


def _merged(metrics: dict[str, Any], ranks: Parallel) -> dict[str, Any]:
    """Return metrics of what all ranks have gathered, in their order."""
    if not metrics:
        return metrics
    # What cannot be sent is an error before the transfer, of which the others can be told.
    packed = pickle.dumps(metrics)
    ranks._exchange("the metrics of a validation")
    first, *others = map(pickle.loads, ranks._collect_all(packed))
    for other in others:
        for name, metric in first.items():
            metric.merge(other[name])
    return dict(first)


def _pair(name: str, data: Any, target: Any, form: Form) -> Any:
    """Return ``(x, target)`` from two arguments, or the first unchanged."""
    if target is None:
        return data
    if isinstance(data, tuple) and not form.several(data):
        raise TypeError(
            f"target: expected None beside {name} = (x, target), got {type(target).__name__}"
        )
    return data, target


def _facts(identity: Mapping[str, Any] | None) -> dict[str, Any]:
    if identity is None:
        return {}
    if not isinstance(identity, Mapping) or not all(isinstance(k, str) for k in identity):
        raise TypeError(f"identity: expected a dict with names, got {type(identity).__name__}")
    try:
        made: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    except (TypeError, ValueError) as e:
        raise TypeError(f"identity: expected facts that JSON can hold, got others: {e}") from None
    return made


def _check_counts(s: Settings, batch_size: int) -> None:
    """Raise an error for a count that is no whole number of at least 1, and for a bad seed."""
    counts = ("epochs", "steps", "validate_every", "patience", "checkpoint_every", "accumulate")
    for name in counts:
        value = getattr(s, name)
        if value is not None:
            _check.positive(name, value)
    _check.positive("batch_size", batch_size)
    _check.positive("seed", s.seed, 0)


def _check_intervals(s: Settings, total: int | None) -> None:
    """Raise an error for an interval that is longer than the run."""
    for name in ("validate_every", "checkpoint_every"):
        every = getattr(s, name)
        if every is not None and total is not None and every > total:
            raise ValueError(
                f"{name}: expected at most {total}, the steps of this run, got {every}"
            )


def _check_files(s: Settings, resume: bool, overwrite: bool) -> None:
    """Raise an error if a file would be replaced, or its folder is missing."""
    if resume and overwrite:
        raise ValueError("resume, overwrite: expected one of the two, got both")
    if resume and s.checkpoint is None:
        raise ValueError("resume: expected a checkpoint to resume from, got checkpoint=None")
    if s.checkpoint is not None and not s.checkpoint.parent.is_dir():
        raise FileNotFoundError(
            f"checkpoint: expected a folder at {s.checkpoint.parent}, found none"
        )
    if s.log is not None:
        Log(s.log)
    for name, path in (("checkpoint", s.checkpoint), ("log", s.log)):
        if path is None or not path.exists():
            continue
        if path.is_dir():
            raise IsADirectoryError(f"{name}: expected a file, got the folder {path}")
        if not resume and not overwrite:
            raise FileExistsError(
                f"{name}: expected no file at {path}, found one; continue from it with "
                "resume=True, or write over it with overwrite=True"
            )


def _feed(metric: Metric, y: Array, target: Array, counts: Any, batch: Batch) -> None:
    """Give a batch to a metric: to a function as it counts, to others as a mask."""
    if not metric.takes_sequences:
        target = _device.like(target, y)
    if isinstance(metric, _metrics.Function):
        metric.add(y, target, counts)
        return
    if counts is not None and counts.dtype != np.bool_:
        on = np.arange(y.shape[0 if batch.time_major else 1])[:, None] < np.asarray(counts)
        counts = on if batch.time_major else on.T
    if metric.takes_sequences:
        metric.update(_cut_rows(y, counts, batch.time_major), target)
    else:
        metric.update(y, target, counts)


def _cut_rows(y: Any, on: Any, time_major: bool) -> Ragged:
    """Return the steps that count, one sequence after the other, on the host."""
    if isinstance(y, Ragged):
        return y.like(_device.host(y.rows))
    y = _device.host(y)
    on = np.ones(y.shape[:2], bool) if on is None else np.asarray(_device.host(on))
    if time_major:
        y, on = y.swapaxes(0, 1), on.T
    return Ragged(y[on], np.concatenate([[0], np.cumsum(on.sum(1))]))


readable(globals())
