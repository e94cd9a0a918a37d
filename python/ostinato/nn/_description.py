"""Say how a layer was made, for a file: the class, and the arguments of its constructor."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np

KEY = "ostinato.model"
VERSION = 1


class _NotPlain(Exception):
    """Tell that an argument cannot be written."""


def _written(value: Any, name: str) -> Any:
    """Return an argument as JSON can hold it: a plain value, or an object with its kind."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if getattr(value, "_is_layer", False):
        return {"kind": "layer", **_described(value, name)}
    if isinstance(value, (list, tuple)):
        parts = [_written(v, f"{name}[{k}]") for k, v in enumerate(value)]
        return {"kind": "list", "tuple": isinstance(value, tuple), "values": parts}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"kind": "dict", "values": {k: _written(v, f"{name}.{k}") for k, v in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"kind": "generator"}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"kind": "dtype", "name": np.dtype(value).name}
    raise _NotPlain(f"{name}: a {type(value).__name__}")


def _described(layer: Any, name: str) -> dict[str, Any]:
    kind = type(layer)
    given = layer.__dict__.get("_given")
    if given is None:
        raise _NotPlain(f"{name}: a {kind.__name__} of an earlier version")
    args, options = given
    known = inspect.signature(kind.__init__).parameters
    out: dict[str, Any] = {
        "class": kind.__name__,
        "args": [_written(a, f"{name}({k})") for k, a in enumerate(args)],
        "options": {n: _written(v, f"{name}({n}=)") for n, v in options.items() if n != "rng"},
    }
    precision = getattr(layer, "precision", None)
    if precision is not None and "precision" in known:  # which may have been set since
        out["precision"] = precision
    return out


def metadata_of(layer: Any) -> dict[str, str]:
    """Return what a file says of a layer beside its parameters, nothing if that cannot be said."""
    try:
        made = _described(layer, type(layer).__name__)
    except _NotPlain as e:
        made = {"class": type(layer).__name__, "missing": str(e)}
    frozen = [n for n in layer.parameters() if not layer._block.entry(layer._prefix + n).trainable]
    return {KEY: json.dumps({"version": VERSION, "frozen": frozen, **made})}
