"""The arguments of `Trainer.fit` that describe a run, and their checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _check
from ._inputs import Source
from ._log import Log

if TYPE_CHECKING:
    from ._trainer import Trainer


@dataclass
class Settings:
    """Checked arguments of `Trainer.fit` that describe the run."""

    epochs: int | None
    steps: int | None
    validate_every: int | None
    patience: int | None
    min_delta: float
    monitor: str
    sign: float  # -1 where a larger figure is better, otherwise 1
    restore_best: bool
    checkpoint: Path | None
    checkpoint_every: int | None
    accumulate: int
    seed: int
    identity: dict[str, Any]
    log: Path | None


def facts_of(identity: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a run is told of itself, as JSON gives it back."""
    if identity is None:
        return {}
    if not isinstance(identity, Mapping) or not all(isinstance(k, str) for k in identity):
        raise TypeError(f"identity: expected a dict with names, got {type(identity).__name__}")
    try:
        made: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    except (TypeError, ValueError) as e:
        raise TypeError(f"identity: expected facts that JSON can hold, got others: {e}") from None
    return made


def sign_of(trainer: Trainer, monitor: str, mode: str | None, validated: bool) -> float:
    """Return 1 if a smaller monitored figure is better, -1 if a larger one is."""
    known = {"valid_loss": "min", **{f"valid_{n}": m.mode for n, m in trainer.metrics.items()}}
    _check.choice("monitor", monitor, tuple(known))
    if not validated and (monitor != "valid_loss" or mode is not None):
        raise ValueError("monitor: expected validation data to watch, got validation=None")
    way = known[monitor] if mode is None else _check.choice("mode", mode, ("min", "max"))
    if way is None:
        raise ValueError(
            f"mode: expected 'min' or 'max' with monitor={monitor!r}, which does not say, got None"
        )
    return -1.0 if way == "max" else 1.0


def flags(**given: object) -> list[bool]:
    """Return the values of arguments that are True or False, checked."""
    return [_check.flag(name, value) for name, value in given.items()]


def check_counts(s: Settings, batch_size: int) -> None:
    """Raise an error for a count that is no whole number of at least 1, and for a bad seed."""
    counts = ("epochs", "steps", "validate_every", "patience", "checkpoint_every", "accumulate")
    for name in counts:
        value = getattr(s, name)
        if value is not None:
            _check.positive(name, value)
    _check.positive("batch_size", batch_size)
    _check.seed("seed", s.seed)


def check_run(trainer: Trainer, s: Settings, valid: Source | None) -> None:
    """Raise an error before the first step if an argument would have no effect."""
    if s.patience is not None and valid is None:
        raise ValueError("patience: expected validation data to watch, got validation=None")
    _check.finite("min_delta", s.min_delta)
    if s.min_delta and s.patience is None:
        raise ValueError(
            f"min_delta: expected 0 without patience, the only thing it acts on, got {s.min_delta}"
        )
    if valid is None and trainer.optimizer.schedule.observes:
        raise ValueError(
            f"validation: expected data for the {type(trainer.optimizer.schedule).__name__} of "
            "the optimiser to watch, got None"
        )
    if valid is not None:
        valid.refuse_nothing()
    if s.accumulate > 1 and trainer.tbptt is not None:
        raise ValueError(
            f"accumulate: expected 1 with tbptt, whose strides are the updates, got {s.accumulate}"
        )
    if trainer._ranks.size > 1:
        _check_parallel(trainer)
    if s.accumulate > 1 and {"clip_step_value", "clip_step_norm"} & set(trainer._options):
        raise ValueError(
            "accumulate: expected 1 with clip_step_value or clip_step_norm, whose bounds are "
            "on the gradient of the whole "
            f"batch, got {s.accumulate}"
        )


def _check_parallel(trainer: Trainer) -> None:
    """Raise an error where several processes cannot train this model."""
    for name in {"clip_step_value", "clip_step_norm"} & set(trainer._options):
        raise ValueError(
            f"{name}: expected None with several processes, since it bounds the gradient of "
            f"the whole batch, got {trainer._options[name]}"
        )


def check_intervals(s: Settings, total: int | None) -> None:
    """Raise an error for an interval that is longer than the run."""
    for name in ("validate_every", "checkpoint_every"):
        every = getattr(s, name)
        if every is not None and total is not None and every > total:
            raise ValueError(
                f"{name}: expected at most {total}, the steps of this run, got {every}"
            )


def check_files(s: Settings, resume: bool, overwrite: bool) -> None:
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
