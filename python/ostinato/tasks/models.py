"""A trained model in a folder: one safetensors file with the parameters and all that is needed to use them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import safetensors
from .._check import Array
from ..nn import Layer

__all__ = ["load_model", "prepare_file", "prepare_folder", "save_model"]

MODEL, CHECKPOINT, LOG = "model.safetensors", "checkpoint.safetensors", "log.csv"
_WAYS = "--resume goes on from the checkpoint, --overwrite replaces what is there"


@contextlib.contextmanager
def prepare_folder(
    path: str | os.PathLike[str] | None, *, resume: bool | None = False, overwrite: bool = False
) -> Iterator[Path | None]:
    """Check and make the folder that a command saves in, for the length of a ``with`` block.

    If the block raises, the folders that were made for it and are still empty are removed.

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
        path: what ``--save`` was given; None for nowhere: the block is then given None.
        resume: whether the run goes on from the checkpoint in the folder; None for a command that
            has no ``--resume``.
        overwrite: whether files of an earlier run may be replaced.

    Raises:
        ValueError: the folder holds a model, a checkpoint or a log, and neither was allowed;
            resume was asked for and there is no checkpoint; or both were asked for.
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
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save: expected a folder, got the file {folder}")
    if resume and not (folder / CHECKPOINT).exists():
        raise ValueError(f"--resume: expected a checkpoint to go on from, found none in {folder}")
    if not resume and not overwrite:
        present = [name for name in (MODEL, CHECKPOINT, LOG) if os.path.lexists(folder / name)]
        if present:
            ways = "--overwrite replaces them" if resume is None else _WAYS
            raise ValueError(
                f"--save: expected a folder without a model, found {', '.join(present)} in {folder}; {ways}"
            )
    made = _make(folder)
    try:
        yield folder
    except BaseException:
        for one in reversed(made):
            with contextlib.suppress(OSError):  # it is not empty
                one.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, the outermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    return missing[::-1]


def prepare_file(name: str, path: str | os.PathLike[str] | None, *, overwrite: bool = False) -> None:
    """Check a file that a command will write at its end: now, and not after the work.

    >>> prepare_file("--out", __file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: --out: expected a file that is not there yet, found ...; --overwrite replaces it

    Args:
        name: the option, such as ``--plot``.
        path: what it was given; None for no file.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the file is there, or it is no regular file.
    """
    if path is None:
        return
    target = Path(path)
    if not target.absolute().parent.is_dir():
        parent = target.absolute().parent
        raise FileNotFoundError(f"{name}: expected a folder at {parent}, found none")
    if target.exists() and not target.is_file():
        raise ValueError(f"{name}: expected a regular file, got {target}")
    if os.path.lexists(target) and not overwrite:
        raise ValueError(f"{name}: expected a file that is not there yet, found {target}; --overwrite replaces it")


def save_model(folder: str | os.PathLike[str], task: str, model: Layer, facts: dict[str, Any]) -> None:
    """Write ``folder/model.safetensors``."""
    metadata = {"ostinato": json.dumps({"task": task, **facts})}
    safetensors.save(Path(folder) / MODEL, model.state_dict(), metadata)


def load_model(folder: str | os.PathLike[str], task: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The parameters and the facts that `save_model` wrote for this task."""
    path = Path(folder) / MODEL
    if not path.exists():
        raise FileNotFoundError(f"DIR: expected a folder with {MODEL}, found none at {path}")
    tensors, text = safetensors.load(path)
    facts: dict[str, Any] = json.loads(text.get("ostinato", "{}"))
    if facts.get("task") != task:
        raise ValueError(f"DIR: expected a model for {task}, got {path} of another kind")
    return tensors, facts
