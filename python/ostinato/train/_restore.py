"""What a run takes from a checkpoint, and the checks that it is that of the same run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _device
from .._check import Array, quoted
from ..nn import Layer, Recurrent, Sequential
from ..nn._description import compare_functions
from ._checkpoint import Saved
from ._inputs import Source

if TYPE_CHECKING:
    from ._trainer import Trainer


def names_of(trainer: Trainer) -> dict[str, str]:
    """Return the names of the classes of loss and optimiser."""
    return {
        "loss": type(trainer.loss).__name__,
        "optimizer": type(trainer.optimizer).__name__,
    }


def check_model(trainer: Trainer, source: Source, saved: Saved) -> None:
    """Raise an error unless parameters, optimiser and states have the form of this run's."""
    t, own = trainer, trainer.model.parameters()
    if saved.names != names_of(t):
        raise ValueError(f"expected {names_of(t)}, got {saved.names}")
    missing, unknown = (
        [n for n in own if n not in saved.model],
        [n for n in saved.model if n not in own],
    )
    if missing or unknown:
        raise KeyError(f"mapping: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for name, view in own.items():
        a = saved.model[name]
        if (a.shape, a.dtype) != (view.shape, view.dtype):
            raise ValueError(
                f"{name}: expected shape {view.shape} of {view.dtype}, got {a.shape} of {a.dtype}"
            )
        for b in (a, saved.model[name] if saved.best is None else saved.best[name]):
            if not np.isfinite(b).all():
                raise ValueError(f"{name}: expected finite numbers, got others")
    compare_functions(t.model, saved.settings.get("functions", {}), "the checkpoint")
    t.optimizer.check_state(saved.optimizer)
    for name, buffer in saved.optimizer["buffers"].items():
        if buffer.shape != t.model.flat.shape or buffer.dtype != t.model.dtype:
            raise ValueError(
                f"optimizer.{name}: expected {t.model.flat.shape} of {t.model.dtype}, got "
                f"{buffer.shape}"
            )
    batch = getattr(source.loader, "batch_size", None)
    for state in (saved.state, *saved.walk.values()):
        _check_state(t.model, state, batch if source.carries_state else None)


def _check_state(model: Layer, state: Any, batch: int | None) -> None:
    """Raise an error unless a state has the form that the model's would have.

    Layers of classes that are not ours take what they are given.
    """
    if state is None or (not isinstance(model, (Sequential, Recurrent))):
        return
    if isinstance(model, Sequential):
        if not isinstance(state, tuple) or len(state) != len(model.layers):
            raise ValueError("state: expected one entry for each layer, got others")
        for layer, entry in zip(model.layers, state):
            if entry is not None and not layer.stateful:
                raise ValueError(f"state: expected none for a {type(layer).__name__}, got one")
            _check_state(layer, entry, batch)
        return
    parts = state if model._has_cells else (state,)
    if not isinstance(parts, tuple) or len(parts) != 1 + model._has_cells:
        raise ValueError("state: expected the arrays of a recurrent layer, got others")
    for k, a in enumerate(parts):
        if a is not None:
            size = a.shape[1] if isinstance(a, np.ndarray) and a.ndim == 3 else 0
            model._check_state("state", a, batch or size, cells=k == 1)


def check_facts(
    facts: dict[str, Any], source: Source, identity: dict[str, Any], saved: Saved, path: Path
) -> None:
    """Raise an error if data or settings are not those that the run began with."""
    ours, data = as_json(facts), as_json(source.fingerprint())
    for name, value in ours.items():
        if saved.settings.get(name) != value:
            raise ValueError(
                f"{name}: expected {saved.settings.get(name)}, as the run of {path} had it, "
                f"got {value}"
            )
    theirs = saved.data
    if data["kind"] != theirs.get("kind"):
        raise ValueError(
            f"train: expected data of the kind {theirs.get('kind')}, as {path} had it, got "
            f"{data['kind']}"
        )
    for name, value in data["order"].items():
        if theirs.get("order", {}).get(name) != value:
            raise ValueError(
                f"{name}: expected {theirs.get('order', {}).get(name)}, as the run of {path} "
                f"had it, got {value}"
            )
    identity = as_json(identity)
    for name in sorted({*identity, *saved.identity}):
        same = _same(identity.get(name), saved.identity.get(name))
        if not same or (name in identity) != (name in saved.identity):
            raise ValueError(
                f"identity[{name!r}]: expected {quoted(saved.identity.get(name))}, as the run "
                f"of {path} had it, got "
                f"{quoted(identity.get(name))}"
            )
    if data["content"] != theirs.get("content"):
        warnings.warn(
            "train: other data than the checkpoint's run began with; it continues, but not as "
            "one that never stopped",
            stacklevel=5,
        )


def _same(one: Any, other: Any) -> bool:
    """Return whether two values from JSON are equal; NaN is equal to NaN."""
    return bool(one == other) or json.dumps(one, sort_keys=True) == json.dumps(
        other, sort_keys=True
    )


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def split_parameters(model: Layer, flat: Array) -> dict[str, Array]:
    """Return a copy of the flat buffer by the names of the parameters."""
    out, base = {}, None
    for name in model.parameters():
        e = model._block.entries[model._prefix + name]
        base = e.offset if base is None else base
        out[name] = flat[e.offset - base : e.offset - base + e.size].reshape(e.shape)
    return out


def joined_parameters(model: Layer, arrays: dict[str, Array]) -> Array:
    """Return the inverse of `split_parameters`, on the device of the model."""
    flat = np.zeros(model.flat.shape, model.dtype)
    for name, view in split_parameters(model, flat).items():
        view[...] = arrays[name]
    placed: Array = _device.like(flat, model.flat)
    return placed
