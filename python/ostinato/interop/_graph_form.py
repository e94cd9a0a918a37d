"""Check the form of what a Graph is made of, which may come from a damaged file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _device
from .._check import Array
from .._recording import value_of


class Form(NamedTuple):
    """What an input of a graph has to be.

    Attributes:
        name: of it.
        dtype: None: any.
        shape: None for an axis of any size; nothing: any axes.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]

    def of(self, x: Any) -> Any:
        """Return an input of this form; whole numbers become those of the dtype.

        Args:
            x: an array, one that is recorded, or numbers in lists.

        Returns:
            The array.

        Raises:
            TypeError: it has another dtype.
            ValueError: it has another shape.
        """
        v = value_of(x)
        if isinstance(v, np.ma.MaskedArray):
            x = v = _check.unmasked(self.name, v)
        elif type(v) is not np.ndarray and not _check.is_array(v):
            x = v = self._listed(v)
        if v.dtype != self.dtype and self.dtype is not None:
            x = v = self._whole(v)
        shape = v.shape
        if len(shape) != len(self.shape) and self.shape:
            raise ValueError(f"{self.name}: expected {self._axes()}, got shape {shape}")
        for n, wanted in zip(shape, self.shape):
            if wanted is not None and n != wanted:
                raise ValueError(f"{self.name}: expected {self._axes()}, got shape {shape}")
        return x

    def _axes(self) -> str:
        sizes = ("any" if n is None else str(n) for n in self.shape)
        return f"{len(self.shape)} axes of sizes ({', '.join(sizes)})"

    def _listed(self, value: Any) -> Array:
        """Return an array of another library, or numbers in lists, as an array of ours.

        Numbers in lists have no dtype: where the input is of real ones, they have that.
        """
        value = _device.taken(value)
        if _check.is_array(value):
            return value  # type: ignore[no-any-return]  # of a device
        try:
            a = np.asarray(value)
        except (TypeError, ValueError, RuntimeError):  # lists of different lengths among them
            a = np.empty(0, object)
        if a.dtype.kind not in "biuf":
            raise TypeError(f"{self.name}: expected an array, got {_check.quoted(value)}")
        listed = isinstance(value, (list, tuple, int, float)) and a.dtype.kind != "b"
        real = self.dtype is not None and (self.dtype.kind == "f" or a.size == 0)
        return a.astype(self.dtype) if listed and real else a

    def _whole(self, a: Any) -> Any:
        """Return whole numbers with the dtype of the input; raise for any other array."""
        assert self.dtype is not None
        if a.dtype.kind in "iu" and self.dtype.kind in "iu":
            made = a.astype(self.dtype)
            if not (made == a).all():
                raise ValueError(
                    f"{self.name}: expected numbers that {self.dtype} holds, got others of "
                    f"{a.dtype}"
                )
            return made
        _check.of_dtype(self.name, a, self.dtype)
        return a


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


def forms_of(inputs: list[dict[str, Any]]) -> list[Form]:
    """Return what the inputs of a graph have to be; what is not said of one may be anything."""
    out = []
    for one in inputs:
        name, dtype, shape = one["name"], one.get("dtype"), one.get("shape") or ()
        try:
            kind = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # of a text that is no name
            kind = np.dtype(object)
        if kind is not None and kind.kind not in "fiub":
            raise TypeError(f"inputs: expected {name!r} of a dtype of numbers, got {dtype!r:.40}")
        known = row(f"inputs: {name}", shape)
        if not all(n is None or (isinstance(n, (int, np.integer)) and n >= 0) for n in known):
            raise ValueError(f"inputs: expected {name!r} of whole sizes or None, got {shape!r:.80}")
        out.append(Form(name, kind, tuple(known)))
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
