"""Make a layer anew from a saved file that says how it was made.

A file holds the name of a class and the arguments of its constructor, as JSON. No code is read from
it: a class is one of this package, or one that the caller of `load` names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._annotations import readable
from ._description import KEY, VERSION
from ._layer import Layer

KINDS = ("layer", "list", "dtype", "generator", "dict")


def _known_classes() -> dict[str, type[Layer]]:
    from .. import nn

    public = (getattr(nn, name) for name in nn.__all__)
    return {c.__name__: c for c in public if isinstance(c, type) and issubclass(c, Layer)}


def load(path: str | os.PathLike[str], *classes: type[Layer]) -> Any:
    """Make the layer or model of a file that ``save`` wrote, with its parameters.

    The file says how the model was made: the class, and the arguments of its constructor. Nothing
    of the file is executed. Classes of `ostinato.nn` are known; yours are given.

    >>> import pathlib, tempfile
    >>> import ostinato as ost
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> model = ost.nn.Sequential(rnn=ost.nn.GRU(3, 5), head=ost.nn.Linear(5, 2))
    >>> model.save(path)
    >>> ost.load(path)["rnn"]
    GRU(3, 5)
    >>> class Net(ost.nn.Model):
    ...     def __init__(self, size):
    ...         self.rnn = ost.nn.GRU(size, size)
    >>> Net(4).save(path)
    >>> ost.load(path, Net).rnn
    GRU(4, 4)

    Args:
        path: the file.
        *classes: your own classes that the model is made of, found by their names.

    Returns:
        The model, on the CPU; what was frozen is frozen.

    Raises:
        KeyError: parameters that the class does not have, or that the file lacks.
        TypeError: a class that is not known, something else than a class of layers, or arguments
            that the class does not take.
        ValueError: a file without a model, a damaged one, or one of a newer version.
        OSError: the file cannot be read.
    """
    from .. import safetensors

    for c in classes:
        if not (isinstance(c, type) and issubclass(c, Layer)):
            raise TypeError(f"classes: expected classes of layers, got {c!r}")
    known = {**_known_classes(), **{c.__name__: c for c in classes}}
    arrays, metadata = safetensors.load(path)
    named = os.fspath(path)
    if KEY not in metadata:
        raise ValueError(
            f"path: expected a file that says how its model was made, got {named!r}, which holds "
            "parameters alone; make the model, then model.load(path)"
        )
    try:
        made = json.loads(metadata[KEY])
        version, frozen = made["version"], made["frozen"]
        name, missing = made["class"], made.get("missing")
        if not isinstance(frozen, list) or not isinstance(name, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"path: expected a model that can be read, got {named!r}") from None
    if version != VERSION:
        raise ValueError(f"path: expected a model of version {VERSION}, got {version!r}")
    if missing is not None:
        raise ValueError(
            f"path: expected the arguments of a {name} to be numbers, text, lists or layers, "
            f"got {missing}; make the model, then model.load({named!r})"
        )
    model: Layer = _made(made, known)
    model.load_state_dict(arrays)
    for pattern in frozen:
        model.freeze(pattern)
    return model


def _made(described: Mapping[str, Any], known: Mapping[str, type[Layer]]) -> Layer:
    """Make a layer from its description."""
    try:
        name, args, options = described["class"], described["args"], described["options"]
    except KeyError as e:
        raise ValueError(f"path: expected a layer with {e} in the file, got none") from None
    if name not in known:
        raise TypeError(
            f"classes: expected the class {name!r}, which the file needs and ostinato.nn does not "
            f"have; give it: ost.load(path, {name})"
        )
    values = [_read(a, known) for a in args]
    named = {n: _read(v, known) for n, v in options.items()}
    layer: Layer = known[name](*values, **named)
    precision = described.get("precision")
    if precision is not None and getattr(layer, "precision", precision) != precision:
        layer.precision = precision
    return layer


def _read(value: Any, known: Mapping[str, type[Layer]]) -> Any:
    """Return an argument from what `_written` made of it."""
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if kind == "layer":
        return _made(value, known)
    if kind == "list":
        parts = [_read(v, known) for v in value["values"]]
        return tuple(parts) if value["tuple"] else parts
    if kind == "dict":
        return {k: _read(v, known) for k, v in value["values"].items()}
    if kind == "generator":
        return np.random.default_rng()
    if kind == "dtype":
        return np.dtype(value["name"])
    raise ValueError(f"path: expected one of {', '.join(KINDS)} in a description, got {kind!r}")


readable(globals())
