"""What a run of `Trainer.fit` is, and the checkpoints that it is saved to and resumed from."""

from __future__ import annotations

import math
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _core, _device
from .._check import Array, quoted
from ..nn._description import functions_of
from . import _checkpoint
from ._checkpoint import Place, Saved
from ._division import joined_state, joined_walks, own_state
from ._inputs import Source
from ._log import Log
from ._parallel import ParallelError
from ._restore import (
    as_json,
    check_facts,
    check_model,
    joined_parameters,
    names_of,
    split_parameters,
)
from ._settings import Settings
from ._shared import SharedGradients
from ._step import Stepper, Walk, Window
from ._types import History, diverged
from ._unread import Updates

if TYPE_CHECKING:
    from ._trainer import Trainer


class Resumable:
    """A run: where it is, what it has found, and its checkpoint."""

    def __init__(
        self, trainer: Trainer, source: Source, validation: Source | None, settings: Settings
    ) -> None:
        self.trainer, self.source, self.validation, self.settings = (
            trainer,
            source,
            validation,
            settings,
        )
        _refuse_one_file(settings)
        self.stepper, self.ranks = Stepper(trainer), trainer._ranks
        self.at = Place()
        self.state: Any = None
        self.walk = Walk()
        self.history = History()
        self.best: Array | None = None  # parameters of the best validation
        self.resumed = False
        self.log = None if settings.log is None else Log(settings.log)
        self._unread = Updates()
        # The window on which the loss of new parameters is checked, and those of the first and the
        # last update since then, one of which takes its place when they have been read.
        self._last: Window | None = None
        self._oldest: Window | None = None
        self._newest: Window | None = None
        self._known_good = -1  # the last step whose parameters had a finite loss
        self._saved: tuple[int, ...] = ()  # where the run stood when it was saved
        self.shared: SharedGradients | None = None  # memory that all ranks reach, if there is any
        self._whole = True  # False within an update
        self._kept = settings.checkpoint is not None  # whether rank 0 writes a checkpoint
        self._began = 0  # the step that this call of fit began with
        self._started = 0.0

    def columns(self) -> list[str]:
        """Return the names of a row's figures."""
        valid = (
            ["valid_loss", *(f"valid_{n}" for n in self.trainer.metrics)]
            if self.validation is not None
            else []
        )
        return ["step", "epoch", "loss", "rate", "norm", *valid, "seconds"]

    def _read(self) -> None:
        """Read the figures that a device has not been asked for."""
        raise NotImplementedError  # the loop, which has them, defines it

    # -- checkpoints -------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return what a resumed run must share with this one."""
        s, t = self.settings, self.trainer
        return {
            "accumulate": s.accumulate,
            "tbptt": None if t.tbptt is None else list(t.tbptt),
            "outputs": t.outputs,
            "seed": s.seed,
        }

    def watched(self) -> dict[str, Any] | None:
        """Return what the best figure is the best of."""
        if self.validation is None:
            return None
        found = self.validation.fingerprint()
        return {
            "monitor": self.settings.monitor,
            "kind": found["kind"],
            "content": found["content"],
        }

    def _key(self) -> tuple[int, ...]:
        """Return what changes when there is something to save."""
        at = self.at
        return at.step, len(self.history.rows), at.epoch, at.batch, at.window

    def _save(self) -> None:
        key = self._key()
        if not self._kept or self._saved == key or not self.at.step:
            return
        self._read()
        self._try()
        self.at.seconds = time.monotonic() - self._started
        state, walk = self.state, self.walk.known if self.at.window else {}
        _refuse_others((state, *walk.values()))
        if self.ranks.size > 1 and (self.source.carries_state or self.at.window):
            self.ranks._exchange("the states of a checkpoint")
            parts = self.ranks._collect(_on_host((state, walk)))
        else:
            parts = [(state, walk)]
        error: BaseException | None = None
        if self.ranks.rank == 0:
            try:
                self._write(parts)
            except BaseException as e:  # the others wait to be told
                error = e
        self.ranks._settle("a checkpoint", error)
        self._saved = key

    def _write(self, parts: list[Any]) -> None:
        """Write the checkpoint, with the states of all ranks as those of one."""
        s, t = self.settings, self.trainer
        assert s.checkpoint is not None
        state, walk = parts[0]
        if len(parts) > 1:
            state = joined_state([p[0] for p in parts])
            walk = joined_walks([p[1] for p in parts])
        _checkpoint.write(
            s.checkpoint,
            Saved(
                at=self.at,
                model=dict(t.model.parameters()),
                best=None if self.best is None else split_parameters(t.model, self.best),
                optimizer=t.optimizer.state_dict(),
                names=names_of(t),
                state=state,
                walk=walk,
                history=self.history,
                data=self.source.fingerprint(),
                validation=self.watched(),
                settings={**self.facts(), "functions": functions_of(t.model)},
                identity=s.identity,
            ),
        )

    def _try(self) -> None:
        """Raise an error if the loss of the present parameters is not finite.

        It is measured on the last batch or, after a validation, on that.
        """
        if self._known_good == self.at.step:
            return
        if self._last is None and self.ranks.size == 1:
            return
        value = 0.0
        error: BaseException | None = None
        try:
            if self._last is not None:
                value = self.stepper.loss_of(self._last)
        except BaseException as e:  # the others wait to be told
            error = e
        values = self.ranks._settle("a check of the loss", error, value)[:, 0]
        bad = values[~np.isfinite(values)]
        if len(bad):
            raise self.ranks._known(diverged(f"the loss is {bad[0]} after step {self.at.step}"))
        self._known_good = self.at.step

    def begin(self, resume: bool) -> None:
        """Compare what the ranks were given, resume where rank 0 does, and share its parameters."""
        ranks, t = self.ranks, self.trainer
        if ranks.size == 1:
            if resume:
                self.resume()
            return
        given = self._given()  # an error comes before the transfer, and is told to the others
        ranks._exchange("the start of fit")
        _check_equal(ranks._collect_all(given))
        self._kept, resume = ranks._share((self._kept, resume))
        if resume:
            self.resume()
        ranks._connect(_device.of(t.model.flat))
        state = (np.array(_device.host(t.model.flat)), t.optimizer.state_dict(), t._epochs)
        ranks._exchange("the parameters at the start")
        flat, optimizer, t._epochs = ranks._share(state)
        with t.model.write() as p:
            p.flat[...] = _device.like(flat, p.flat)
        t.optimizer.load_state_dict(optimizer)
        self.shared = ranks._hold_together(t.model)

    def end(self) -> None:
        """Give the model memory of its own for its gradients, if ranks have shared it."""
        if self.shared is not None:
            self.shared.release()
            self.shared = None

    def _given(self) -> dict[str, Any]:
        """Return what has to be equal on all ranks, by name."""
        s, t = self.settings, self.trainer
        apart = ("checkpoint", "log")
        model = {n: (a.shape, str(a.dtype)) for n, a in t.model.parameters().items()}
        return {
            **{n: v for n, v in vars(s).items() if n not in apart},
            "the kernels (OSTINATO_KERNELS chooses them)": _core.kernels(),
            "the device of the model": _device.name_of(t.model.flat).partition(":")[0],
            "the parameters of the model": model,
            "loss and optimizer": names_of(t),
            "clip_norm and clip_value": (t.clip_norm, t.clip_value),
            "tbptt": t.tbptt,
            "outputs": t.outputs,
            "train": as_json(self.source.fingerprint()),
            "validation": self.watched(),
        }

    def resume(self) -> None:
        """Continue from the checkpoint if it is there, otherwise from the log only."""
        path, ranks = self.settings.checkpoint, self.ranks
        saved = _checkpoint.read(path) if path is not None and path.exists() else None
        ranks._exchange("reading the checkpoint")
        saved = ranks._share(saved)
        if saved is not None:
            self.restore(saved, Path("the checkpoint of rank 0") if path is None else path)
        elif self.log is not None:
            self.log.resume([], self.columns())

    def restore(self, saved: Saved, path: Path) -> None:
        """Restore the run from the checkpoint; nothing changes if it does not fit."""
        t, ranks = self.trainer, self.ranks
        try:
            check_model(t, self.source, saved)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as e:
            raise ValueError(
                f"{path}: expected a checkpoint of this model and optimiser, got another: "
                f"{e.args[0] if e.args else e}"
            ) from None
        check_facts(self.facts(), self.source, self.settings.identity, saved, path)
        if self.log is not None:
            self.log.resume(saved.history.rows, self.columns())
        t.model.load_state_dict(saved.model)
        t.optimizer.load_state_dict(saved.optimizer)
        self.at, self.history = saved.at, saved.history
        state, walk = saved.state, saved.walk
        if ranks.size > 1:
            part = slice(ranks.rank, None, ranks.size)
            state = own_state(state, part)
            walk = {step: own_state(s, part) for step, s in walk.items()}
        self.state, self.walk = self._placed(state), Walk(saved.at.window, self._placed(walk))
        t._epochs = saved.at.first_epoch + saved.at.epoch
        if saved.best is not None:
            self.best = joined_parameters(t.model, saved.best)
        self.resumed = True
        self._saved = self._key()
        if saved.validation is not None and as_json(saved.validation) != as_json(self.watched()):
            if self.validation is not None:
                warnings.warn(
                    "validation: another set or monitor than that of the checkpoint, whose best no "
                    "longer counts",
                    stacklevel=4,
                )
            self.at.best = self.at.mark = math.inf
            self.at.bad, self.history.best, self.best = 0, None, None
            t.optimizer.schedule.forget()
            self._saved = ()

    def _placed(self, state: Any) -> Any:
        """Return a state on the device of the model."""
        if isinstance(state, tuple):
            return tuple(self._placed(s) for s in state)
        if isinstance(state, dict):
            return {k: self._placed(v) for k, v in state.items()}
        return None if state is None else self.trainer._placed(state)


def _refuse_one_file(s: Settings) -> None:
    """Raise if the log is the file of the checkpoint: each would write over the other."""
    if s.log is None or s.checkpoint is None:
        return
    if os.path.realpath(s.log) == os.path.realpath(s.checkpoint):
        raise ValueError(f"log: expected another file than that of the checkpoint, got {s.log}")


def _refuse_others(state: Any) -> None:
    """Raise unless a state is what a checkpoint holds: an array, None, or a tuple of such."""
    if state is None or _check.is_array(state):
        return
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            "state: expected arrays, or tuples of arrays, of a model that is saved to a "
            f"checkpoint while it carries them on, got {type(state).__name__}"
        )
    for part in state:
        _refuse_others(part)


def _on_host(state: Any) -> Any:
    """Return a state of nested tuples and dicts with arrays of NumPy, which can be sent."""
    if isinstance(state, tuple):
        return tuple(_on_host(s) for s in state)
    if isinstance(state, dict):
        return {k: _on_host(v) for k, v in state.items()}
    return _device.host(state)


def _check_equal(given: list[dict[str, Any]]) -> None:
    """Raise unless all ranks have been given the same."""
    for rank, facts in enumerate(given):
        for name, value in given[0].items():
            if facts[name] != value:
                raise ParallelError(
                    f"rank {rank} has another value than rank 0 for {name}: expected "
                    f"{quoted(value)}, got {quoted(facts[name])}"
                )
