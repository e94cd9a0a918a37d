"""Make a layer anew from a saved file that says how it was made.

A file holds the name of a class and the arguments of its constructor, as JSON. No code is read from
it: a class is one of this package, or one that the caller of `load` names.
"""

from __future__ import annotations

import glob
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from ._description import KEY, VERSION, require_functions, require_layers, set_options
from ._layer import Layer

KINDS = ("layer", "list", "dtype", "generator", "dict")


def _known_classes() -> dict[str, type[Layer]]:
    from .. import nn

    public = (getattr(nn, name) for name in nn.__all__)
    return {c.__name__: c for c in public if isinstance(c, type) and issubclass(c, Layer)}


def _imported_classes() -> dict[str, type[Layer]]:
    """Return the layers that models of other libraries need, which few files have."""
    from ..interop import Graph, LastState, Reversed

    return {c.__name__: c for c in (Graph, LastState, Reversed)}


def load(path: str | os.PathLike[str], *classes: type[Layer]) -> Any:
    """Make the layer or model of a file that ``save`` wrote, with its parameters.

    The file says how the model was made: the class, and the arguments of its constructor. Nothing
    of the file is executed. Classes of `ostinato.nn` and the layers that importers make are known;
    yours are given.

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
        ValueError: a file without a model, a damaged one, one of a newer version, one of a model
            whose layers were changed after it had been made, or one that describes a layer with
            more elements than the file holds.
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
    made, frozen = _description(metadata[KEY], named)
    try:
        with _check.made_from_file(sum(a.size for a in arrays.values())):
            model = _made(made, known)
    except RecursionError:
        raise ValueError(f"path: expected layers of fewer layers, got {named!r}") from None
    require_layers(model, _field({"layers": {}, **made}, "layers", dict), named)
    set_options(model, _field({"set": {}, **made}, "set", dict), named)
    require_functions(model, metadata, named)
    model.load_state_dict(arrays)
    for name in frozen:
        model.freeze(glob.escape(name))
    return model


def _description(text: str, named: str) -> tuple[dict[str, Any], list[str]]:
    """Return the description of a model from the text of a file, and the names of what is frozen.

    Args:
        text: JSON.
        named: the path, for errors.
    """
    try:
        made = json.loads(text)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict) or "version" not in made:
        raise ValueError(f"path: expected a model that can be read, got {named!r}")
    if made["version"] != VERSION:
        raise ValueError(f"path: expected a model of version {VERSION}, got {made['version']!r}")
    name, frozen = _field(made, "class", str), _field(made, "frozen", list)
    if not all(isinstance(n, str) for n in frozen):
        raise ValueError(f"path: expected names in 'frozen' of a description, got {frozen!r:.80}")
    if made.get("missing") is not None:
        raise ValueError(
            f"path: expected the arguments of a {name} to be numbers, text, lists or layers, "
            f"got {made['missing']}; make the model, then model.load({named!r})"
        )
    return made, frozen


def _field(described: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return an entry of a description, which must be of a kind."""
    value = described.get(name)
    if not isinstance(value, kind):
        raise ValueError(
            f"path: expected a {kind.__name__} as {name!r} of a description, got {value!r:.80}"
        )
    return value


def _made(described: Mapping[str, Any], known: Mapping[str, type[Layer]]) -> Layer:
    """Make a layer from its description."""
    name = _field(described, "class", str)
    args, options = _field(described, "args", list), _field(described, "options", dict)
    if name not in known:
        known = {**_imported_classes(), **known}
    if name not in known:
        raise TypeError(
            f"classes: expected the class {name!r}, which the file needs and ostinato.nn does not "
            f"have; give it: ost.load(path, {name})"
        )
    values = [_read(a, known) for a in args]
    options = {n: _read(v, known) for n, v in options.items()}
    signature = inspect.signature(known[name])
    try:
        signature.bind(*values, **options)
    except TypeError:
        raise TypeError(
            f"path: expected the arguments of {name} ({', '.join(signature.parameters)}), got "
            f"{len(values)} by their places, and by their names {', '.join(options) or 'none'}"
        ) from None
    ours = known[name].__module__.partition(".")[0] == __name__.partition(".")[0]
    try:
        # A constructor of a user may compute with what it has drawn.
        with _check.values_follow(ours):
            layer: Layer = known[name](*values, **options)
    except OverflowError as e:  # a whole number that no float can hold
        raise ValueError(f"path: expected arguments that a {name} can hold, got {e}") from e
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
        parts = [_read(v, known) for v in _field(value, "values", list)]
        return tuple(parts) if _field(value, "tuple", bool) else parts
    if kind == "dict":
        return {k: _read(v, known) for k, v in _field(value, "values", dict).items()}
    if kind == "generator":
        return np.random.default_rng()
    if kind == "dtype":
        name = _field(value, "name", str)
        try:
            return np.dtype(name)
        except (TypeError, ValueError, SyntaxError):
            raise ValueError(f"path: expected the name of a dtype, got {name!r:.80}") from None
    raise ValueError(f"path: expected one of {', '.join(KINDS)} in a description, got {kind!r:.80}")


readable(globals())
