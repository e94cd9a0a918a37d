"""Read and write the checkpoint of a run, a safetensors file that is checked before use."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import _check, _device, safetensors
from .._annotations import readable
from .._check import Array
from .._files import require_path
from ._types import History, Row

FORMAT = 2
LIMIT = 2**62


@dataclass
class Place:
    """Position of a run, which a checkpoint holds completely.

    Attributes:
        step: updates of the parameters.
        epoch: epochs done.
        batch: batches done of this epoch.
        window: steps done of a batch that ``tbptt`` runs in strides.
        loss_sum: sum of the losses since the last row, weighted by what they average over.
        loss_count: the sum of those weights.
        norm: of the last gradients.
        first_epoch: epochs of the calls of fit before this one: each has an order of its own.
        best: the best figure that was watched, the lower the better.
        mark: the figure that patience compares with, and how many validations were not better.
        seconds: of all runs so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    window: int = 0
    loss_sum: float = 0.0
    loss_count: float = 0.0
    norm: float = 0.0
    first_epoch: int = 0
    best: float = math.inf
    mark: float = math.inf
    bad: int = 0
    seconds: float = 0.0


@dataclass
class Saved:
    """A checkpoint as it was read, consistent in itself."""

    at: Place
    model: dict[str, Array]
    best: dict[str, Array] | None
    optimizer: dict[str, Any]
    names: dict[str, str]  # the classes of loss and optimiser
    state: Any
    walk: dict[int, Any]
    history: History
    data: dict[str, Any]
    validation: dict[str, Any] | None
    settings: dict[str, Any]
    identity: dict[str, Any]


@dataclass
class Checkpoint:
    """Hold what a checkpoint of a Trainer contains, for use without one.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import ostinato as ost
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> x = np.zeros((8, 5, 1), np.float32)
    >>> model = ost.nn.GRU(1, 1, batch_first=True, rng=0)
    >>> trainer = ost.Trainer(model, ost.losses.MSE())
    >>> history = trainer.fit((x, x), checkpoint=path, progress=False)
    >>> checkpoint = ost.train.Checkpoint.load(path, which="last")
    >>> model.load_state_dict(checkpoint.parameters)
    >>> checkpoint.step
    1

    Attributes:
        parameters: by name, as `Layer.load_state_dict` takes them.
        step: updates of the parameters.
        epoch: epochs that were done.
        history: its rows, and the best one.
        identity: what `Trainer.fit` was given under that name.
    """

    parameters: dict[str, Array]
    step: int
    epoch: int
    history: History
    identity: dict[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str], which: str = "best") -> Checkpoint:
        """Read a checkpoint, with the parameters of the best validation or of the last step.

        Args:
            path: the file.
            which: "best" or "last".

        Returns:
            The checkpoint.

        Raises:
            OSError: the file cannot be read.
            TypeError: path is no path.
            ValueError: the file is no checkpoint, a damaged one, or has no best parameters.
        """
        _check.choice("which", which, ("best", "last"))
        saved = read(path)
        if which == "best" and saved.best is None:
            raise ValueError(
                f"which: expected 'last', since the run of {os.fspath(path)} had no validation, "
                "got 'best'"
            )
        parameters = saved.model if which == "last" else saved.best
        assert parameters is not None
        return cls(parameters, saved.at.step, saved.at.epoch, saved.history, saved.identity)


def write(path: str | os.PathLike[str], saved: Saved) -> None:
    """Write a checkpoint, whole or not at all."""
    tensors = {f"model.{n}": np.asarray(_device.host(a)) for n, a in saved.model.items()}
    tensors.update(
        {f"best.{n}": np.asarray(_device.host(a)) for n, a in (saved.best or {}).items()}
    )
    optimizer = dict(saved.optimizer)
    tensors.update({f"optimizer.{n}": a for n, a in optimizer.pop("buffers").items()})
    at = {
        n: None if isinstance(v, float) and math.isinf(v) else v for n, v in vars(saved.at).items()
    }
    meta = {
        "format": FORMAT,
        "at": at,
        "names": saved.names,
        "optimizer": optimizer,
        "state": _pack(saved.state, tensors, "state"),
        "walk": [[t, _pack(s, tensors, f"walk.{t}")] for t, s in saved.walk.items()],
        "rows": saved.history.rows,
        "best": saved.history.best,
        "data": saved.data,
        "validation": saved.validation,
        "settings": saved.settings,
        "identity": saved.identity,
    }
    safetensors.save(path, tensors, {"ostinato": json.dumps(meta, default=_plain)})


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint: expected facts that JSON can hold, got a {type(value).__name__}")


def read(path: str | os.PathLike[str]) -> Saved:
    """Read and check a checkpoint; what its metadata says is believed only where the tensors agree.

    Raises:
        TypeError: path is no path.
        ValueError: it is none, or damaged, or of another version.
    """
    require_path(path)
    name = os.fspath(path)
    tensors, text = safetensors.load(path)
    if "ostinato" not in text:
        raise ValueError(
            f"{name}: expected a checkpoint of a Trainer, got another safetensors file"
        )
    try:
        meta = json.loads(text["ostinato"])
    except (ValueError, RecursionError):
        raise ValueError(
            f"{name}: expected a checkpoint of a Trainer, got metadata that is not JSON"
        ) from None
    if isinstance(meta, dict) and "format" not in meta and "at" in meta:
        raise ValueError(
            f"{name}: expected a checkpoint of format {FORMAT}, got one of an older version, which "
            "cannot be resumed; "
            'its parameters are the tensors that begin with "model."'
        )
    if isinstance(meta, dict) and isinstance(meta.get("format"), int) and meta["format"] > FORMAT:
        raise ValueError(
            f"{name}: expected a checkpoint of format {FORMAT}, got {meta['format']}, of a newer "
            "version"
        )
    try:
        return _parse(meta, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(
            f"{name}: expected a checkpoint of a Trainer, got a damaged one: {e}"
        ) from None


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _number(value: Any, what: str) -> float:
    _need(isinstance(value, (int, float)) and not isinstance(value, bool), f"{what} is no number")
    return float(value)


def _count(value: Any, what: str) -> int:
    _need(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT,
        f"{what} is no whole number",
    )
    return int(value)


def _row(row: Any) -> Row:
    _need(
        isinstance(row, dict) and {"step", "epoch", "loss"} <= set(row),
        "a row without its step, epoch and loss",
    )
    return {
        str(n): v if isinstance(v, int) and not isinstance(v, bool) else _number(v, n)
        for n, v in row.items()
    }


def _parse(meta: Any, tensors: dict[str, Array]) -> Saved:
    """Return the checkpoint that a file's metadata and tensors describe, checked."""
    _need(isinstance(meta, dict) and meta["format"] == FORMAT, "no known format")
    at = _place(meta["at"])
    groups = _groups(tensors)
    model, best = groups["model"], groups["best"]
    forms = [{n: (a.shape, a.dtype) for n, a in g.items()} for g in (model, best)]
    _need(not best or forms[0] == forms[1], "best parameters that are not shaped as the last ones")
    _need(
        bool(best) == (meta["best"] is not None),
        "a best row without parameters, or parameters without a row",
    )
    optimizer = _optimizer(meta["optimizer"], groups)
    _check_facts(meta)
    used: list[str] = []
    state = _unpack(meta["state"], tensors, used)
    walk = {_count(t, "a step"): _unpack(s, tensors, used) for t, s in meta["walk"]}
    _need(bool(walk) == (at.window > 0), "a batch that was begun without its states")
    _need(
        sorted(used) == sorted(n for n in tensors if n.split(".")[0] in ("state", "walk")),
        "tensors of states that nothing refers to",
    )
    return Saved(
        at=at,
        model=model,
        best=best or None,
        optimizer=optimizer,
        names=meta["names"],
        state=state,
        walk=walk,
        history=History(
            [_row(r) for r in meta["rows"]], None if meta["best"] is None else _row(meta["best"])
        ),
        data=meta["data"],
        validation=meta["validation"],
        settings=meta["settings"],
        identity=meta["identity"],
    )


def _place(given: Any) -> Place:
    """Return the position of the run; infinities are written as null."""
    _need(set(given) == {f.name for f in fields(Place)}, "another set of facts about its place")
    place: dict[str, Any] = {}
    for f in fields(Place):
        value = given[f.name]
        if f.type == "int":
            place[f.name] = _count(value, f.name)
        else:
            place[f.name] = (
                math.inf if value is None and f.name in ("best", "mark") else _number(value, f.name)
            )
            _need(value is None or math.isfinite(value), f"{f.name} is not finite")
    return Place(**place)


def _groups(tensors: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Return the tensors by the first part of their names, then by the rest."""
    groups: dict[str, dict[str, Array]] = {
        n: {} for n in ("model", "best", "optimizer", "state", "walk")
    }
    for name, a in tensors.items():
        group, _, rest = name.partition(".")
        _need(group in groups, f"an unknown tensor {name!r}")
        groups[group][rest] = a
    return groups


def _optimizer(given: Any, groups: dict[str, dict[str, Array]]) -> dict[str, Any]:
    """Return the state of the optimiser."""
    _need(
        isinstance(given, dict) and set(given) == {"steps", "started", "schedule"},
        "no state of an optimiser",
    )
    started = given["started"]
    _need(
        isinstance(started, dict) and set(started) <= set(groups["model"]),
        "an optimiser of other parameters",
    )
    steps = _count(given["steps"], "steps")
    counts = {n: _count(v, n) for n, v in started.items()}
    _need(isinstance(given["schedule"], dict), "no state of a schedule")
    _need(all(k <= steps for k in counts.values()), "parameters that started after the last step")
    return {
        "steps": steps,
        "started": counts,
        "schedule": given["schedule"],
        "buffers": groups["optimizer"],
    }


def _check_facts(meta: dict[str, Any]) -> None:
    """Raise an error unless the other entries have the types that are read later."""
    for part in ("names", "data", "settings", "identity"):
        _need(isinstance(meta[part], dict), f"no {part}")
    _need(
        all(isinstance(meta["data"].get(n), dict) for n in ("kind", "order", "content")),
        "no facts about the data",
    )
    _need(
        meta["validation"] is None or isinstance(meta["validation"], dict),
        "no facts about the validation set",
    )
    _need(isinstance(meta["rows"], list) and isinstance(meta["walk"], list), "no rows or no walk")


def _pack(state: Any, tensors: dict[str, Array], name: str) -> Any:
    if state is None:
        return None
    if _check.is_array(state):
        tensors[name] = _device.host(state)
        return name
    return [_pack(s, tensors, f"{name}.{k}") for k, s in enumerate(state)]


def _unpack(packed: Any, tensors: dict[str, Array], used: list[str]) -> Any:
    if packed is None:
        return None
    if isinstance(packed, str):
        _need(
            packed.split(".")[0] in ("state", "walk") and packed not in used,
            "a state that is another tensor",
        )
        used.append(packed)
        return tensors[packed]
    _need(isinstance(packed, list), "a state of another form")
    return tuple(_unpack(p, tensors, used) for p in packed)


readable(globals())
