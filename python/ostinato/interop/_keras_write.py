"""Write the parameters of a model as Keras 3 loads them: ``.weights.h5``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _files, nn
from .._annotations import readable
from .._check import Array
from .._functions import Function
from ._imported import require
from ._keras_file import snake
from ._layers import LastState

_ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}  # theirs at each of ours
_KERAS = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"}


class _Group:
    """Arrays under a path of the file, and what the layer is in Keras."""

    def __init__(self, kind: str, code: str, arrays: dict[str, list[Array]]) -> None:
        self.kind, self.code, self.arrays = kind, code, arrays


def _columns(kind: str, a: Array) -> Array:
    parts = np.split(a, len(_ORDER[kind]))
    return np.ascontiguousarray(np.concatenate([parts[k] for k in _ORDER[kind]]).T)


def _direction(kind: str, layer: Any, end: str) -> list[Array]:
    """Return kernel, recurrent kernel and bias of one layer and direction."""
    p = layer.state_dict()
    out = [_columns(kind, p["weight_ih" + end]), _columns(kind, p["weight_hh" + end])]
    if layer.bias:
        two = [_columns(kind, p[f"bias_{n}{end}"]) for n in ("ih", "hh")]
        after = kind == "GRU" and layer.reset_after
        out.append(np.stack(two) if after else two[0] + two[1])
    return out


def _recurrent(name: str, layer: Any, last: bool) -> Iterator[_Group]:
    kind = next(k for k in _ORDER if isinstance(layer, getattr(nn, k)))
    refused = {
        "peephole=True": getattr(layer, "peephole", False),
        "layer_norm=True": getattr(layer, "layer_norm", False),
        "proj_size": layer.proj_size,
        "learned_state=True": layer.learned_state,
        f"clip={layer.clip}": layer.clip is not None,
        "coupled_gates=True": getattr(layer, "coupled_gates", False),
    }
    for what, there in refused.items():
        if there:
            raise ValueError(f"{name}: expected {kind} without {what}, which Keras does not have")
    for k in range(layer.num_layers):
        final = last and k == layer.num_layers - 1
        options = [str(layer.hidden_size)]
        options += _functions(name, layer)
        options += ["use_bias=False"] if not layer.bias else []
        options += ["reset_after=False"] if not getattr(layer, "reset_after", True) else []
        options += [] if final else ["return_sequences=True"]
        code = f"{_KERAS[kind]}({', '.join(options)})"
        if layer.bidirectional:
            both = {
                f"{n}_layer/cell/vars": _direction(kind, layer, f"_l{k}{end}")
                for n, end in (("forward", ""), ("backward", "_reverse"))
            }
            yield _Group("Bidirectional", f"Bidirectional({code})", both)
        else:
            yield _Group(_KERAS[kind], code, {"cell/vars": _direction(kind, layer, f"_l{k}")})


def _functions(name: str, layer: Any) -> list[str]:
    """Return the arguments of functions that are not the usual ones."""
    if isinstance(layer, nn.RNN):
        usual = {"activation": (layer.nonlinearity, "tanh")}
    else:
        usual = {
            "activation": (layer.activation, "tanh"),
            "recurrent_activation": (layer.recurrent_activation, "sigmoid"),
        }
        output = getattr(layer, "output_activation", layer.activation)
        if output != layer.activation:
            raise ValueError(
                f"{name}: expected an output_activation that is the activation, as Keras has it, "
                f"got {output!r}"
            )
    return [f"{o}={_function(f)}" for o, (f, plain) in usual.items() if f != plain]


def _function(function: Function) -> str:
    """Return a function of Keras as code."""
    own, *numbers = (function,) if isinstance(function, str) else function
    if not numbers or function == ("elu", 1.0):
        return repr(own)
    alpha, beta = (*numbers, 0.0)[:2]
    if function == ("hard_sigmoid", 1 / 6, 0.5):
        return repr(own)
    value = {
        "affine": f"{alpha} * x + {beta}",
        "leaky_relu": f"keras.activations.leaky_relu(x, negative_slope={alpha})",
        "thresholded_relu": f"keras.ops.where(x > {alpha}, x, 0.0)",
        "scaled_tanh": f"{alpha} * keras.ops.tanh({beta} * x)",
        "hard_sigmoid": f"keras.ops.clip({alpha} * x + {beta}, 0, 1)",
        "elu": f"keras.activations.elu(x, alpha={alpha})",
    }[str(own)]
    return _named("_".join(map(str, function)), value)


def _named(name: str, value: str) -> str:
    """Return a function of x as code that gives it a name and registers it.

    Keras makes layers again from their configuration, within a Bidirectional and from a file, and
    finds functions there by their names: it makes none of a lambda.
    """
    made = f'(lambda f: setattr(f, "__name__", {name!r}) or f)(lambda x: {value})'
    return f'keras.saving.register_keras_serializable("ostinato", {name!r})({made})'


def _groups(name: str, layer: nn.Layer) -> Iterator[_Group]:
    """Yield what the layers of a model are in Keras, in order."""
    if isinstance(layer, nn.Sequential):
        for child, inner in layer._children().items():
            yield from _groups(f"{name}.{child}" if name else child, inner)
        return
    name, p = name or type(layer).__name__, layer.state_dict()
    bias = [p["bias"]] if "bias" in p else []
    plain = "" if bias else ", use_bias=False"
    if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
        yield from _recurrent(name, layer, False)
    elif type(layer) is LastState:
        yield from _recurrent(name, layer.layer, True)
    elif isinstance(layer, nn.Linear):
        arrays = [np.ascontiguousarray(p["weight"].T), *bias]
        yield _Group("Dense", f"Dense({layer.out_features}{plain})", {"vars": arrays})
    elif isinstance(layer, nn.Embedding):
        code = f"Embedding({layer.num_embeddings}, {layer.embedding_dim})"
        yield _Group("Embedding", code, {"vars": [p["weight"]]})
    elif isinstance(layer, nn.LayerNorm):
        code = f"LayerNormalization(epsilon={layer.eps})"
        yield _Group("LayerNormalization", code, {"vars": [p["weight"], p["bias"]]})
    elif isinstance(layer, nn.Conv1d):
        if layer.padding == "same" and layer.stride != 1:
            raise ValueError(f"{name}: expected a stride of 1 with padding 'same', got {layer!r}")
        code = (
            f"Conv1D({layer.out_channels}, {layer.kernel_size}, strides={layer.stride}, "
            f"padding={layer.padding!r}, dilation_rate={layer.dilation}{plain})"
        )
        weight = np.ascontiguousarray(p["weight"].transpose(2, 1, 0))
        yield _Group("Conv1D", code, {"vars": [weight, *bias]})
    elif type(layer) in (nn.Activation, nn.Dropout, nn.Softmax, nn.Pool) and not p:
        yield _Group("", _simple(layer), {})
    else:
        raise ValueError(f"{name}: expected a layer that Keras has, got {layer!r}")


def _simple(layer: Any) -> str:
    """Return what a layer without parameters is in Keras."""
    if isinstance(layer, nn.Dropout):
        return f"Dropout({layer.rate})"
    if isinstance(layer, nn.Softmax):
        return f"Activation({'log_softmax' if layer.log else 'softmax'!r})"
    if isinstance(layer, nn.Pool):
        kinds = {"mean": "GlobalAveragePooling1D()", "max": "GlobalMaxPooling1D()"}
        return kinds.get(layer.kind, "Lambda(lambda x: x[:, -1])")
    if layer.name == "gelu_tanh":
        value = "keras.activations.gelu(x, approximate=True)"
        return f"Activation({_named('gelu_tanh', value)})"
    return f"Activation({layer.name!r})"


def to_keras(layer: nn.Layer, path: str | os.PathLike[str]) -> list[str]:
    """Write the parameters of a layer or a `Sequential` as ``.weights.h5``, which Keras 3 loads.

    Keras' model is made of the layers that this returns, and then ``model.load_weights(path)``
    fills it. Each layer of a stack is one of its own there, and activations may be arguments of
    the layers before them. A function that Keras has no name for is registered with it under one of
    ours. What Keras does not have (peepholes, projections, layer norm within a cell, learned
    initial states) is an error that names it.

    >>> import pathlib, tempfile
    >>> import ostinato as ost
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.weights.h5"
    >>> model = ost.nn.Sequential(ost.nn.LSTM(3, 5, rng=0), ost.nn.Linear(5, 2, rng=1))
    >>> try:
    ...     lines = ost.to_keras(model, path)
    ... except ImportError:  # without h5py
    ...     lines = ["LSTM(5, return_sequences=True)", "Dense(2)"]
    >>> lines
    ['LSTM(5, return_sequences=True)', 'Dense(2)']

    Args:
        layer: a layer or a `Sequential`.
        path: the file to write, whole or, on an error, not at all; Keras wants names that end with
            ".weights.h5".

    Returns:
        The layers of Keras' model, as code, which knows Keras itself as ``keras``.

    Raises:
        ImportError: h5py is not installed.
        OSError: the file cannot be written.
        TypeError: something else than a layer, or than a path.
        ValueError: a layer that Keras does not have, or another ending of the path.
    """
    if not isinstance(layer, nn.Layer):
        raise TypeError(f"layer: expected a layer, got a {type(layer).__name__}")
    _files.require_path(path)
    if not str(os.fspath(path)).endswith(".weights.h5"):
        raise ValueError(f"path: expected a name that ends with '.weights.h5', got {path!r}")
    h5py = require("h5py", "keras", "to_keras")
    groups = list(_groups("", layer))
    words = io.BytesIO()
    with h5py.File(words, "w") as f:
        f.create_group("vars")  # of the model itself, which Keras 3.3 asks for
        seen: dict[str, int] = {}
        for g in (g for g in groups if g.kind):
            key = snake(g.kind)
            count = seen.get(key, 0)
            seen[key] = count + 1
            root = f"layers/{key}_{count}" if count else f"layers/{key}"
            for where, arrays in g.arrays.items():
                for k, a in enumerate(arrays):
                    f.create_dataset(f"{root}/{where}/{k}", data=a)
    with _files.atomic_write(path) as out:
        out.write(words.getvalue())
    return [g.code for g in groups]


readable(globals())
