"""A trained model in a folder: one safetensors file with the parameters and all that is needed to use them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .. import safetensors
from .._check import Array
from ..nn import Layer

__all__ = ["load_model", "save_model"]


def save_model(folder: str | os.PathLike[str], task: str, model: Layer, facts: dict[str, Any]) -> None:
    """Write ``folder/model.safetensors``."""
    metadata = {"ostinato": json.dumps({"task": task, **facts})}
    safetensors.save(Path(folder) / "model.safetensors", model.state_dict(), metadata)


def load_model(folder: str | os.PathLike[str], task: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The parameters and the facts that `save_model` wrote for this task."""
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"DIR: expected a folder with model.safetensors, found none at {path}")
    tensors, text = safetensors.load(path)
    facts: dict[str, Any] = json.loads(text.get("ostinato", "{}"))
    if facts.get("task") != task:
        raise ValueError(f"DIR: expected a model for {task}, got {path} of another kind")
    return tensors, facts
