"""Trained models in folders: a safetensors file has the parameters and all facts to use them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import safetensors
from .._annotations import readable
from .._cells import FAMILIES
from .._check import Array
from ..nn import Layer

__all__ = [
    "check_shapes",
    "known_options",
    "load_model",
    "prepare_file",
    "prepare_folder",
    "recurrent_shapes",
    "save_model",
]

MODEL, CHECKPOINT, LOG = "model.safetensors", "checkpoint.safetensors", "log.csv"
_WAYS = "--resume continues from the checkpoint, --overwrite replaces what is there"
RESUMED = "text"  # the task of the only command that has --resume


@contextlib.contextmanager
def prepare_folder(
    path: str | os.PathLike[str] | None, *, resume: bool | None = False, overwrite: bool = False
) -> Iterator[Path | None]:
    """Check and make the folder that a command saves in, for the length of a ``with`` block.

    If the block raises, the folders that were made for it and are still empty are removed. A
    command without ``--resume`` writes no checkpoint and no log: where its model has replaced
    another one, the checkpoint and the log of that one are removed.

    >>> import tempfile
    >>> inside = Path(tempfile.mkdtemp()) / "runs" / "first"
    >>> with prepare_folder(inside) as folder:
    ...     _ = (folder / "model.safetensors").write_bytes(b"")
    >>> with prepare_folder(inside) as folder:  # doctest: +ELLIPSIS
    ...     pass
    Traceback (most recent call last):
    ...
    ValueError: --save: expected a folder without a model, found model.safetensors in ...

    Args:
        path: the folder of ``--save``; None for none.
        resume: whether the run continues from the checkpoint in the folder; None for a command that
            has no ``--resume``.
        overwrite: whether files of an earlier run may be replaced.

    Yields:
        The folder, or None.

    Raises:
        ValueError: the folder holds a model, a checkpoint or a log, and neither was allowed;
            resume was asked for and there is no checkpoint, or a model of another task beside it;
            or both were asked for.
        OSError: the folder cannot be made.
    """
    if resume and overwrite:
        raise ValueError("--resume: expected one of --resume and --overwrite, got both")
    if path is None:
        for name, given in (("--resume", resume), ("--overwrite", overwrite)):
            if given:
                raise ValueError(f"{name}: expected --save DIR beside it, got none")
        yield None
        return
    if not os.fspath(path):  # as of a variable that is not set; it would be the current folder
        raise ValueError("--save: expected a folder, got an empty name")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save: expected a folder, got the file {folder}")
    if resume and not (folder / CHECKPOINT).exists():
        raise ValueError(
            f"--resume: expected a checkpoint to continue from, found none in {folder}"
        )
    if resume:
        _check_resumed(folder)
    if not resume and not overwrite:
        present = [name for name in (MODEL, CHECKPOINT, LOG) if os.path.lexists(folder / name)]
        if present:
            ways = "--overwrite replaces them" if resume is None else _WAYS
            raise ValueError(
                f"--save: expected a folder without a model, found {', '.join(present)} in "
                f"{folder}; {ways}"
            )
    made = _make(folder)
    before = _stamp(folder / MODEL)
    try:
        try:
            yield folder
        finally:  # after an interruption, too: the model may be there already
            if resume is None and overwrite and _stamp(folder / MODEL) not in (None, before):
                for name in (CHECKPOINT, LOG):
                    (folder / name).unlink(missing_ok=True)
    except BaseException:  # Ctrl-C, too, leaves no empty folder behind
        for one in reversed(made):
            with contextlib.suppress(OSError):  # it is not empty
                one.rmdir()
        raise


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from the one that replaces it; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_resumed(folder: Path) -> None:
    """Raise where the model beside a checkpoint, which a resumed run replaces, is of another task.

    One that cannot be read is replaced.
    """
    try:
        text = safetensors.load(folder / MODEL)[1].get("ostinato", "{}")
    except (OSError, ValueError):
        return
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or facts.get("task") != RESUMED:
        raise ValueError(
            f"--resume: expected a model for {RESUMED} beside the checkpoint, got {folder / MODEL} "
            "of another kind; --overwrite replaces what is there"
        )


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, the outermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    return missing[::-1]


def prepare_file(
    name: str, path: str | os.PathLike[str] | None, *, overwrite: bool = False
) -> None:
    """Check a file that a command will write at its end: now, and not after the work.

    >>> prepare_file("--out", __file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: --out: expected a file that is not there yet, found ...; --overwrite replaces it

    Args:
        name: the option, such as ``--plot``.
        path: the file; None for none.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the file is there, it is no regular file, or its name is empty.
    """
    if path is None:
        return
    if not os.fspath(path):
        raise ValueError(f"{name}: expected a file, got an empty name")
    target = Path(path)
    if not target.absolute().parent.is_dir():
        parent = target.absolute().parent
        raise FileNotFoundError(f"{name}: expected a folder at {parent}, found none")
    if target.exists() and not target.is_file():
        raise ValueError(f"{name}: expected a regular file, got {target}")
    if os.path.lexists(target) and not overwrite:
        raise ValueError(
            f"{name}: expected a file that is not there yet, found {target}; --overwrite replaces "
            "it"
        )


def save_model(
    folder: str | os.PathLike[str],
    task: str,
    model: Layer,
    facts: dict[str, Any],
    *,
    arrays: Mapping[str, Array] | None = None,
) -> None:
    """Write ``folder/model.safetensors``.

    >>> import tempfile
    >>> from ostinato import nn
    >>> folder = tempfile.mkdtemp()
    >>> save_model(folder, "text", nn.Linear(2, 3, rng=0), {"alphabet": "ab"})
    >>> load_model(folder, "text")[1]["alphabet"]
    'ab'

    Args:
        folder: the folder, which is there.
        task: what the model is for, such as "text".
        model: the model.
        facts: what is needed to use it, beside its parameters; values that JSON can hold.
        arrays: arrays that are needed too, by names that no parameter has.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = {"ostinato": json.dumps({"task": task, **facts})}
    tensors = {**(arrays or {}), **model.state_dict()}
    safetensors.save(Path(folder) / MODEL, tensors, metadata)


def load_model(
    folder: str | os.PathLike[str], task: str
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the parameters and the facts that `save_model` wrote for this task.

    >>> load_model("no-such-folder", "text")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    FileNotFoundError: DIR: expected a folder with model.safetensors, found none at ...

    Facts are only known to be JSON and have to be checked before they are used; see `known_options`
    and `check_shapes`.

    Args:
        folder: the folder.
        task: what the model is for.

    Returns:
        Parameters by name, and facts by name.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the file is damaged, or it is no model of this task.
    """
    path = Path(folder) / MODEL
    if not path.exists():
        raise FileNotFoundError(f"DIR: expected a folder with {MODEL}, found none at {path}")
    tensors, text = safetensors.load(path)
    try:
        facts = json.loads(text.get("ostinato", "{}"))
    except (ValueError, RecursionError):
        raise ValueError(
            f"DIR: expected a model for {task}, got {path} with facts that are no JSON"
        ) from None
    if not isinstance(facts, dict) or facts.get("task") != task:
        raise ValueError(f"DIR: expected a model for {task}, got {path} of another kind")
    return tensors, facts


def known_options(folder: str | os.PathLike[str], given: Any, kind: type[Any]) -> dict[str, Any]:
    """Check the options of a model against the names and types of a dataclass's fields.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     hidden: int = 3
    >>> known_options("m", {"hidden": 4}, Options)
    {'hidden': 4}
    >>> known_options("m", {"hiden": 4}, Options)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: DIR: expected a model that this version knows, got m with the unknown ...

    Args:
        folder: where the model was read from, for messages.
        given: the options that were read.
        kind: the dataclass; the default of a field tells the type of its values.

    Returns:
        The options.

    Raises:
        ValueError: the options are no object, or have unknown names or values of another type.
    """
    if not isinstance(given, dict):
        raise ValueError(f"DIR: expected a model with options, got {os.fspath(folder)} without any")
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"DIR: expected a model that this version knows, got {os.fspath(folder)} with the "
                f"unknown option {name[:40]!r}: a newer ostinato wrote it, or it is damaged"
            )
        default = known[name].default
        right = (
            type(value) is type(default)
            or (type(default) is float and type(value) is int)
            or default is None
        )
        if not right or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(
                f"DIR: expected a model with {name} such as {default!r}, got {os.fspath(folder)} "
                f"with {value!r:.80}"
            )
    return dict(given)


def recurrent_shapes(
    prefix: str, cell: str, inputs: int, hidden: int, layers: int, *, bidirectional: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the parameters of a recurrent stack.

    >>> recurrent_shapes("0.", "gru", 3, 2, 1)["0.weight_hh_l0"]
    (6, 2)

    Args:
        prefix: prefix of the names, such as ``"1."``.
        cell: "rnn", "lstm" or "gru".
        inputs: inputs I.
        hidden: units H.
        layers: layers of the stack.
        bidirectional: whether each layer reads in both directions.

    Returns:
        Shapes by name.
    """
    rows = FAMILIES[cell] * hidden
    ways = ("", "_reverse") if bidirectional else ("",)
    out: dict[str, tuple[int, ...]] = {}
    for k in range(layers):
        for end in (f"l{k}{way}" for way in ways):
            out[f"{prefix}weight_ih_{end}"] = (rows, inputs if k == 0 else len(ways) * hidden)
            out[f"{prefix}weight_hh_{end}"] = (rows, hidden)
            out[f"{prefix}bias_ih_{end}"] = (rows,)
            out[f"{prefix}bias_hh_{end}"] = (rows,)
    return out


def check_shapes(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that a file has the parameters that its options ask for.

    >>> check_shapes("m", {"bias": np.zeros(2)}, {"bias": (3,)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: DIR: expected a model ..., got m with bias of shape (2,) where (3,) is promised

    Args:
        folder: where the model was read from, for messages.
        tensors: what the file holds.
        wanted: names to shapes.

    Raises:
        ValueError: names or shapes differ, or a parameter is not finite.
    """
    where = f"DIR: expected a model whose parameters fit its options, got {os.fspath(folder)}"
    for name in sorted(set(wanted) ^ set(tensors)):
        raise ValueError(f"{where} {'without' if name in wanted else 'with'} {name[:80]!r}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{where} with {name} of shape {tensors[name].shape} where {shape} is promised"
            )
        if tensors[name].dtype.kind != "f" or not np.isfinite(tensors[name]).all():
            raise ValueError(f"{where} with {name} that is not finite")


readable(globals())
