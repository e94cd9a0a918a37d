"""Define the Trainer: a model, a loss and an optimiser, with fit, evaluate and predict."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, _deferred, _device
from .._annotations import readable
from .._files import require_path
from .._ragged import Ragged
from .._recording import refuse_overridden
from .._segments import parse as parse_limit
from ..data import Inputs, as_array
from ..losses import Loss
from ..losses._base import takes_host_targets
from ..nn import Layer, Recurrent
from ..nn._walk import layers_of, layouts_of
from ..optim import Adam, Optimizer
from ..optim._checks import check_above_zero
from . import metrics as _metrics
from ._callbacks import Callback
from ._carried import refuse_uncarried
from ._fit import Fit
from ._inference import evaluate, outputs_of, predict_ragged, predict_several
from ._inputs import Form, Source, contiguous, refuse_non_finite, sequences
from ._parallel import ALONE, Parallel
from ._progress import Progress
from ._settings import (
    Settings,
    check_counts,
    check_files,
    check_intervals,
    check_run,
    facts_of,
    flags,
    sign_of,
)
from ._step import Stepper, check_strides, tells_last
from ._types import Batch, History, Row, Times
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
        self.callbacks = _callbacks(callbacks)
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
        if tbptt is not None:
            refuse_uncarried("tbptt", model)
        layouts = {first for first, _ in layouts_of(model)}
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
            reason: what `History.stopped` says; a text that is not empty.

        Raises:
            TypeError: reason is no text.
            ValueError: reason is empty.
        """
        if not _check.text("reason", reason, "a text"):
            raise ValueError("reason: expected a text that is not empty, got ''")
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
        return evaluate(self, source)[0]

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
            return predict_several(self, Inputs.of(x), beside, batch_size)
        listed = isinstance(x, (list, tuple))
        given = {"lengths": lengths, "mask": mask, "resets": resets}
        times: Times = {n: v for n, v in given.items() if v is not None}
        if masked != "repeat":
            times["masked"] = masked
        x = sequences(x)
        form = self._form()
        if isinstance(x, Ragged):
            return predict_ragged(self, form.floats(x), listed, times, batch_size)
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
                parts.append(outputs_of(self, stepper, replace(batch, x=form.placed(batch.x))))
        _deferred.raise_first(checks)
        y = np.concatenate(parts)
        return _device.host(y) if isinstance(x, np.ndarray) else y

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
            FileNotFoundError: the folder of the checkpoint or log is missing.
            KeyboardInterrupt: Ctrl-C, after the step was ended and the checkpoint written. SIGTERM
                raises SystemExit likewise.
            RuntimeError: this trainer is training already, in another thread.
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value, or one that would have no effect.
        """
        if not self._running.acquire(blocking=False):
            raise RuntimeError("fit: this trainer is training already, in another thread")
        ranks = self._ranks
        if ranks.rank:  # whose files are those of rank 0
            checkpoint = log = None
        try:
            shuffle, restore_best = flags(shuffle=shuffle, restore_best=restore_best)
            files = flags(resume=resume, overwrite=overwrite, progress=progress)
            settings = Settings(
                epochs=1 if epochs is None and steps is None else epochs,
                steps=steps,
                validate_every=validate_every,
                patience=patience,
                min_delta=min_delta,
                monitor=monitor,
                sign=sign_of(self, monitor, mode, validation is not None),
                restore_best=restore_best,
                checkpoint=_path("checkpoint", checkpoint),
                checkpoint_every=checkpoint_every,
                accumulate=accumulate,
                seed=seed,
                identity=facts_of(identity),
                log=_path("log", log),
            )
            check_counts(settings, batch_size)
            data = _pair("train", train, target, self._form())
            source, valid = self._sources(data, validation, batch_size, shuffle, seed)
            check_run(self, settings, valid)
            return self._run(Fit(self, source, valid, settings), *files)
        except BaseException as e:
            ranks._tell(e, last=True)
            raise
        finally:
            self._running.release()

    def _run(self, run: Fit, resume: bool, overwrite: bool, progress: bool) -> History:
        """Check the files of a run and begin it, on this rank or on all."""
        first = self._ranks.rank == 0
        if first:
            check_files(run.settings, resume, overwrite)
        check_intervals(run.settings, run.total())
        try:
            run.begin(resume)
            bar = [Progress(run.total())] if progress and first else []
            return run.go([*self.callbacks, *bar])
        finally:
            run.end()

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


def _callbacks(given: Any) -> list[Callback]:
    """Return the callbacks of a list; a class is instantiated where it needs no arguments."""
    every = enumerate(_check.each("callbacks", given, "callbacks"))
    return [_instance(f"callbacks[{k}]", c, Callback) for k, c in every]


def _pair(name: str, data: Any, target: Any, form: Form) -> Any:
    """Return ``(x, target)`` from two arguments, or the first unchanged."""
    if target is None:
        return data
    if isinstance(data, tuple) and not form.several(data):
        raise TypeError(
            f"target: expected None beside {name} = (x, target), got {type(target).__name__}"
        )
    return data, target


def _path(name: str, given: str | os.PathLike[str] | None) -> Path | None:
    require_path(given, type(None), name=name)
    return None if given is None else Path(given)


readable(globals())
