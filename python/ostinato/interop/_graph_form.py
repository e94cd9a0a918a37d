"""Check the form of what a Graph is made of, which may come from a damaged file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._check import Array


def table(name: str, value: Any, *keys: str) -> Mapping[str, Any]:
    """Return a mapping of texts that has some keys; raise for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TypeError(f"{name}: expected a mapping of texts, got {value!r:.80}")
    missing = [k for k in keys if k not in value]
    if missing:
        raise ValueError(f"{name}: expected entries {', '.join(keys)}, got no {missing[0]}")
    return value


def row(name: str, value: Any) -> list[Any]:
    """Return the items of a sequence that is no text."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a sequence, got {value!r:.80}")
    return list(value)


def texts(name: str, value: Any) -> list[str]:
    """Return a list of texts."""
    items = row(name, value)
    if not all(isinstance(n, str) for n in items):
        raise TypeError(f"{name}: expected a sequence of texts, got {value!r:.80}")
    return items


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Return a shape."""
    items = row(name, value)
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in items):
        raise ValueError(f"{name}: expected a shape of whole numbers from 0, got {value!r:.80}")
    return tuple(int(n) for n in items)


def inputs_of(value: Any) -> list[dict[str, Any]]:
    """Return the inputs of a graph: each has a name, and may have a dtype and a shape."""
    out = []
    for given in row("inputs", value):
        one = table("inputs", given, "name")
        if not all(isinstance(one.get(k, ""), str) for k in ("name", "dtype")):
            raise TypeError(f"inputs: expected texts as name and dtype, got {given!r:.80}")
        out.append(dict(one))
    return out


def node_of(value: Any) -> Mapping[str, Any]:
    """Return a node: an operator with its inputs, outputs and attributes."""
    node = table("nodes", value, "op", "inputs", "outputs")
    for key in ("op", "layer", "name"):
        if not isinstance(node.get(key, ""), str):
            raise TypeError(f"nodes: expected text as {key!r}, got {node[key]!r:.80}")
    for key in ("inputs", "outputs"):
        texts(f"nodes: {key}", node[key])
    table("nodes: at", node.get("at", {}))
    if node["op"] == "If":
        for branch in row("nodes: branches", table("nodes: If", node, "branches")["branches"]):
            texts("nodes: outputs", table("nodes: If", branch, "nodes", "outputs")["outputs"])
    return node


def number_of(name: str, value: Any, kind: np.dtype[Any]) -> Array:
    """Return a constant, whose real numbers have the dtype of the model.

    Args:
        name: of it.
        value: "dtype", "shape" and flat "values".
        kind: the dtype of the model.
    """
    given = table(f"numbers: {name}", value, "dtype", "shape", "values")
    shape = sizes(f"numbers: {name}", given["shape"])
    values = given["values"]
    values = values if isinstance(values, np.ndarray) else row(f"numbers: {name}", values)
    try:
        own = np.dtype(given["dtype"])
        flat = np.array(values, kind if own.kind == "f" else own)
    except (TypeError, ValueError, OverflowError, SyntaxError):
        flat = np.empty(0, object)
    if flat.dtype.kind not in "fiub" or flat.shape != (math.prod(shape),):
        raise ValueError(
            f"numbers: expected {name} to be {math.prod(shape)} numbers of {given['dtype']!r:.40}, "
            f"got {values!r:.80}"
        )
    return flat.reshape(shape)
