"""Say how a layer was made, for a file: the class, and the arguments of its constructor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

KEY = "ostinato.model"
FUNCTIONS = "ostinato.functions"
VERSION = 1


def named_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all layers within a model, in order, with the names that their parameters begin with.

    The model itself is not among them.
    """
    for name, inner in model._children().items():
        yield prefix + name, inner
        yield from named_layers(inner, f"{prefix}{name}.")


def classes_of(model: Any) -> dict[str, str]:
    """Return the classes of the layers of ours within a model by the names of the layers."""
    ours = __name__.partition(".")[0]
    return {
        name: type(one).__name__
        for name, one in named_layers(model)
        if type(one).__module__.partition(".")[0] == ours
    }


class _NotPlain(Exception):
    """Tell that an argument cannot be written."""


def _written(value: Any, name: str) -> Any:
    """Return an argument as JSON can hold it: a plain value, or an object with its kind."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]  # a scalar of NumPy
    if isinstance(value, np.bool_):
        return bool(value)
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
    of_numpy = isinstance(value, type) and issubclass(value, np.generic)
    if isinstance(value, np.dtype) or of_numpy or (value is float and name.endswith("(dtype=)")):
        return {"kind": "dtype", "name": np.dtype(value).name}
    raise _NotPlain(f"{name}: a {type(value).__name__}")


def _described(layer: Any, name: str) -> dict[str, Any]:
    kind = type(layer)
    given = layer.__dict__.get("_given")
    if given is None:
        raise _NotPlain(f"{name}: a {kind.__name__} of an earlier version")
    args, options = given
    out: dict[str, Any] = {
        "class": kind.__name__,
        "args": [_written(a, f"{name}({k})") for k, a in enumerate(args)],
        "options": {n: _written(v, f"{name}({n}=)") for n, v in options.items() if n != "rng"},
    }
    return out


def functions_of(layer: Any) -> dict[str, dict[str, Any]]:
    """Return what a model computes beside its parameters: options by the names of its layers."""
    found = _options_of(layer, "_functional")
    out: dict[str, dict[str, Any]] = json.loads(json.dumps(found))  # tuples become lists, as there
    return out


def _options_of(layer: Any, which: str) -> dict[str, dict[str, Any]]:
    """Return some options of a model and of all layers in it that have such, by their names."""
    out = {}
    for name, one in (("", layer), *named_layers(layer)):
        options = {n: getattr(one, n) for n in getattr(one, which)}
        if options:
            out[name] = options
    return out


def require_layers(model: Any, saved: Mapping[str, Any], named: str) -> None:
    """Raise if a constructor makes other layers of ours than a model had when it was saved.

    They were changed after it had been made, which their parameters tell only where they have such.

    Args:
        model: as its constructor makes it.
        saved: classes by the names of layers.
        named: the path, for errors.
    """
    made, layers = classes_of(model), dict(named_layers(model))
    for name, kind in saved.items():
        own = made.get(name)
        # A class of the user's may do without a layer by now; one of ours has all that it is given.
        lost = name not in layers and name.rpartition(".")[0] in made
        if lost or (own is not None and own != kind):
            wanted = "no layer" if lost else f"a layer {own}"
            raise ValueError(
                f"path: expected {wanted} at {name!r:.80}, as the constructor of "
                f"{type(model).__name__} makes it, got {kind!r:.80} in {named!r}; make the model, "
                "change its layers, then model.load(path)"
            )


def set_options(layer: Any, saved: Any, named: str) -> None:
    """Give layers the options that may be set after they were made, as a file has them.

    Args:
        layer: the model.
        saved: options by the names of layers.
        named: the path, for errors.
    """
    layers = dict((("", layer), *named_layers(layer)))
    for name, options in saved.items():
        one = layers.get(name)
        if not isinstance(options, dict) or one is None or not set(options) <= set(one._settable):
            raise ValueError(
                f"path: expected options of layers that there are, got {options!r:.80} of "
                f"{name!r:.80} in {named!r}"
            )
        for option, value in options.items():
            if getattr(one, option) != value:
                setattr(one, option, value)


def require_functions(layer: Any, metadata: Mapping[str, str], named: str) -> None:
    """Raise if parameters were saved by a layer that computes something else with them.

    Args:
        layer: that is to have them.
        metadata: of the file. One of an earlier version says nothing of this.
        named: the path, for errors.
    """
    text = metadata.get(FUNCTIONS)
    if text is None:
        return
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError):
        saved = text
    compare_functions(layer, saved, named)


def compare_functions(layer: Any, saved: Any, named: str) -> None:
    """Raise unless the options of a model's layers are those that were saved, where both are."""
    if not isinstance(saved, dict) or not all(isinstance(v, dict) for v in saved.values()):
        raise ValueError(f"path: expected options of layers in {named!r}, got {saved!r:.80}")
    for name, own in functions_of(layer).items():
        for option, value in saved.get(name, {}).items():
            if option in own and own[option] != value:
                where = f"{name}.{option}" if name else option
                raise ValueError(
                    f"{where}: expected parameters of a layer with {_shown(own[option])}, got "
                    f"those of one with {_shown(value)} in {named!r}; give the layer that option, "
                    "or read the file by ost.safetensors.load"
                )


def _shown(value: Any) -> str:
    """Return an option as it is written in Python."""
    return repr(tuple(value) if isinstance(value, list) else value)


def metadata_of(layer: Any) -> dict[str, str]:
    """Return what a file says of a layer beside its parameters, nothing if that cannot be said."""
    try:
        made = _described(layer, type(layer).__name__)
    except _NotPlain as e:
        made = {"class": type(layer).__name__, "missing": str(e)}
    settings = _options_of(layer, "_settable")
    frozen = [n for n in layer.parameters() if not layer._block.entry(layer._prefix + n).trainable]
    return {
        KEY: json.dumps(
            {
                "version": VERSION,
                "frozen": frozen,
                **made,
                "set": settings,
                "layers": classes_of(layer),
            }
        ),
        FUNCTIONS: json.dumps(functions_of(layer)),
    }
