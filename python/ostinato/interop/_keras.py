"""Make layers of Keras' files, of any version; no Keras is needed but for checks."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _check, nn
from .._annotations import readable
from .._check import Array
from .._functions import Function
from ._imported import Entry, Imported, chain_of, common, compare, require
from ._keras_file import WITHOUT_WEIGHTS, Content, Part, Read, own_class, read_keras, snake
from ._layers import LastState

_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
_ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}  # z r h: ours at each
_NAMES = {snake(n): n for n in _GATES} | {"cu_dnnlstm": "CuDNNLSTM", "cu_dnngru": "CuDNNGRU"}
_PLAIN_KINDS = {
    "embedding": "Embedding",
    "dense": "Dense",
    "time_distributed": "TimeDistributed",
    "bidirectional": "Bidirectional",
    "layer_normalization": "LayerNormalization",
    "conv1_d": "Conv1D",
    "conv1d": "Conv1D",
}
# Activations of recurrent layers that have our names, and those with the alpha of Keras.
_SAME = ("tanh", "sigmoid", "relu", "linear", "softsign", "softplus", "exponential")
_WITH_ALPHA = {"elu": 1.0, "leaky_relu": 0.2}
_LIMIT = 1e-5
# The options of classes that change numbers, with the only value that there is here; None is as
# good. Those of recurrent layers are below "".
_USUAL: dict[str, dict[str, Any]] = {
    "": {"time_major": False},
    "Conv1D": {"data_format": "channels_last", "groups": 1},
    "GlobalAveragePooling1D": {"data_format": "channels_last", "keepdims": False},
    "GlobalMaxPooling1D": {"data_format": "channels_last", "keepdims": False},
    "LayerNormalization": {"rms_scaling": False},
    "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0},
}
# The options in which the directions of a Bidirectional may not differ, with their defaults.
_BOTH = {
    "units": None,
    "output_dim": None,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "inner_activation": None,
    "use_bias": True,
    "reset_after": True,
    "return_sequences": False,
    "time_major": False,
    "zero_output_for_mask": False,
}
# What a configuration calls the sizes of arrays, by the class.
_SIZES: dict[str, Callable[[Any], dict[str, int]]] = {
    "Dense": lambda layer: {"units": layer.out_features},
    "TimeDistributed": lambda layer: {"units": layer.out_features},
    "Embedding": lambda layer: {
        "input_dim": layer.num_embeddings,
        "output_dim": layer.embedding_dim,
    },
    "Conv1D": lambda layer: {"filters": layer.out_channels, "kernel_size": layer.kernel_size},
}


class _Maker:
    """Make layers of the parts of a file.

    Args:
        content: of the file.
        reads: which outputs of each layer are read, by its name.
        recurrent_activation: what the caller says where the file does not; None: nothing.
        reset_after: the same, of GRUs without biases.
    """

    def __init__(
        self,
        content: Content,
        reads: Mapping[str, set[int]],
        recurrent_activation: str | None,
        reset_after: bool | None,
    ) -> None:
        self.content, self.reads, self.reset_after = content, reads, reset_after
        self.recurrent_activation = recurrent_activation
        self.layers: dict[str, nn.Layer] = {}
        self.entries: list[Entry] = []
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.chain: list[tuple[str, Any, bool]] = []  # the last: whether its final state alone
        self.finals: set[str] = set()  # those of which h is read in place of the first output
        self.ranks: dict[str, int] = {}  # of outputs, where they are known
        arrays = (a for part in content.parts for group in part.weights for a in group)
        self.dtype = next((a.dtype for a in arrays), np.dtype(np.float32))

    def skip(self, part: Part) -> None:
        """Leave a part out."""
        self.skipped.append(part.name)
        self.entries.append(Entry(part.name, part.kind or "", "", "nothing: skip"))

    def add(self, part: Part) -> None:
        """Make the layers of a part."""
        if part.refused:
            raise ValueError(f"{part.name}: {part.refused}")
        if part.config is None and not any(part.weights):  # in a file of weights alone
            self.entries.append(Entry(part.name, "", "no weights", "nothing"))
            return
        kind = part.kind or self._guessed(part)
        kind = _NAMES.get(kind, _PLAIN_KINDS.get(kind, kind))
        found = ", ".join(f"[{','.join(map(str, a.shape))}]" for d in part.weights for a in d)
        before = len(self.chain)
        config = dict(part.config or {})
        if kind == "TimeDistributed" or (kind == "Bidirectional" and config):
            kind, config = self._wrapped(part, kind, config)
        rank = self._rank(part)
        if kind in ("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU"):
            self._recurrent(part, kind, config)
        elif kind == "Bidirectional":
            self._recurrent(part, self._guessed(part), config)
        else:
            known = [*_GATES, "Bidirectional", *_MAKERS, *_MAKERS_WITHOUT]
            if kind not in known and kind not in WITHOUT_WEIGHTS:
                raise ValueError(
                    f"{part.name}: expected a layer of Keras that is one of {', '.join(known)}, "
                    f"got a {kind or 'layer'} with weights {found or 'of none'}"
                )
            if kind in known:
                self._plain(part, kind, config, rank)
        self._follow(part, kind, config, rank)
        became = ", ".join(
            f"{layer!r}{', its last state' if last else ''}"
            for _, layer, last in self.chain[before:]
        )
        label = f"Bidirectional {kind}" if len(part.weights) == 2 else kind
        self.entries.append(Entry(part.name, label, found, became or "nothing"))
        if kind == "Masking" or config.get("mask_zero"):
            self.notes.append(f"{part.name} masks steps: give lengths= or mask= to a call.")

    def _rank(self, part: Part) -> int | None:
        """Return the number of axes of what a part reads, None where it is not known."""
        config = part.config or {}
        if part.inbound:
            return self.ranks.get(part.inbound[0].name)
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        return len(shape) if isinstance(shape, (list, tuple)) else None

    def _follow(self, part: Part, kind: str, config: dict[str, Any], rank: int | None) -> None:
        """Note the number of axes of what a part gives."""
        if kind in ("GlobalAveragePooling1D", "GlobalMaxPooling1D"):
            rank = 2
        elif kind == "Embedding":
            rank = None if rank is None else rank + 1
        elif self.chain and self.chain[-1][0] == part.name and kind.removeprefix("CuDNN") in _GATES:
            rank = 2 if self.chain[-1][2] else 3
        if rank is not None:
            self.ranks[part.name] = rank

    def _wrapped(self, part: Part, kind: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the class and configuration of the layer within a wrapper."""
        inner = config.get("layer")
        if kind == "TimeDistributed" and inner is None:
            return "Dense", {}
        if not isinstance(inner, Mapping) or not isinstance(inner.get("config"), dict):
            raise ValueError(f"{part.name}: expected a layer within the {kind}, got none")
        if kind == "Bidirectional" and config.get("merge_mode", "concat") != "concat":
            raise ValueError(
                f"{part.name}: expected merge_mode 'concat', got {config['merge_mode']!r:.80}"
            )
        name = str(inner.get("class_name")).removeprefix("ostinato>")
        allowed = ("Dense",) if kind == "TimeDistributed" else (*_GATES, "CuDNNLSTM", "CuDNNGRU")
        if name not in allowed:
            raise ValueError(f"{part.name}: expected a {kind} of {', '.join(allowed)}, got {name}")
        if other := own_class(inner):
            raise ValueError(
                f"{part.name}: expected a {kind} of a layer of Keras, got a class of your own, "
                f"{other!r:.80}"
            )
        own = dict(inner["config"])
        if kind == "Bidirectional" and own.get("go_backwards"):
            raise ValueError(f"{part.name}: expected a forward layer that goes forward")
        if kind == "Bidirectional" and config.get("backward_layer") is not None:
            _refuse_unlike(part.name, name, own, config["backward_layer"])
        return name, own

    def _guessed(self, part: Part) -> str:
        """Return the class of a layer of which only arrays are known, "" if they do not say."""
        shapes = [a.shape for a in part.weights[0]]
        if len(shapes) == 12:
            return "LSTM"  # Keras 1: an array for each gate
        if len(shapes) == 9:
            return "GRU"
        if len(shapes) in (2, 3) and len(shapes[0]) == 2 and len(shapes[1]) == 2 and shapes[1][0]:
            gates = shapes[1][1] / shapes[1][0]
            return {4: "LSTM", 3: "GRU", 1: "SimpleRNN"}.get(gates, "")
        if len(shapes) == 2 and shapes[1] == shapes[0][1:]:
            return "Dense"
        return "Embedding" if len(shapes) == 1 and "emb" in part.name.lower() else ""

    # -- recurrent layers --------------------------------------------------------------------------

    def _recurrent(self, part: Part, kind: str, config: dict[str, Any]) -> None:
        kind = kind.removeprefix("CuDNN")
        both = len(part.weights) == 2
        if part.config is not None and both != (part.kind == "Bidirectional"):
            raise ValueError(
                f"{part.name}: expected the weights of a {part.kind}, got those of "
                f"{'two directions' if both else 'one direction'}"
            )
        _refuse_options(part.name, "", config)
        directions = [_plain_weights(part.name, kind, list(w)) for w in part.weights]
        cudnn = all(w[-1].ndim == 1 and w[-1].size == 2 * w[1].shape[1] for w in part.weights)
        cudnn = cudnn and kind != "SimpleRNN"
        options = self._options(part.name, kind, config, directions, cudnn)
        first = directions[0]
        has = {"units": first[1].shape[0], "use_bias": len(first) == 3}
        _refuse_other_sizes(part.name, config, {**has, "output_dim": has["units"]})
        layer = getattr(nn, "RNN" if kind == "SimpleRNN" else kind)(
            first[0].shape[0],
            first[1].shape[0],
            bias=len(first) == 3,
            bidirectional=len(directions) == 2,
            batch_first=True,
            dtype=np.result_type(*first),
            **options,
        )
        arrays: dict[str, Array] = {}
        for end, weights in zip(("_l0", "_l0_reverse"), directions):
            arrays |= {n + end: a for n, a in _ours(kind, weights).items()}
        try:
            layer.load_state_dict(arrays)
        except (KeyError, ValueError) as e:
            raise ValueError(f"{part.name}: {e.args[0]}") from None
        self.layers[part.name] = layer
        last = bool(part.config) and not config.get("return_sequences", False)
        if not both and config.get("return_state") and self.reads.get(part.name) == {1}:
            self.finals.add(part.name)
            last = True
        self.chain.append((part.name, layer, last))

    def _options(
        self,
        name: str,
        kind: str,
        config: dict[str, Any],
        directions: list[list[Array]],
        cudnn: bool,
    ) -> dict[str, Any]:
        """Return the options of our class; refuse by name what the cells do not have."""
        if config.get("go_backwards"):
            raise ValueError(
                f"{name}: expected go_backwards only within Bidirectional, got it alone, whose "
                "outputs are in the order of a reversed time"
            )
        activation = self._function(name, "activation", config.get("activation"), "tanh")
        if kind == "SimpleRNN":
            return {"nonlinearity": activation}
        gate = None if cudnn else self._gate(name, kind, config, directions)
        options: dict[str, Any] = {
            "activation": activation,
            "recurrent_activation": self._function(name, "recurrent_activation", gate, "sigmoid"),
        }
        if kind != "GRU":
            return options
        biases = [w[2] for w in directions if len(w) == 3]
        given = config.get("reset_after", self.reset_after)
        if biases:
            after = biases[0].ndim == 2
            if "reset_after" in config and bool(config["reset_after"]) != after:
                raise ValueError(
                    f"{name}: expected a bias that fits reset_after={config['reset_after']}, got "
                    f"shape {biases[0].shape}"
                )
            return {**options, "reset_after": after}
        if given is None and not config:
            raise ValueError(
                f"{name}: expected reset_after=, which a GRU without biases does not show"
            )
        return {**options, "reset_after": bool(given)}

    def _function(self, name: str, option: str, value: Any, usual: str) -> Function:
        """Return our name of an activation, or a tuple of it and its parameters."""
        given = _text(value, usual)
        if given in _SAME:
            return given
        if given == "hard_sigmoid":  # Keras 3 has another slope than those before it
            version = self.content.version
            third = _at_least(version, (3, 0)) if version else not self.content.legacy
            return ("hard_sigmoid", 1 / 6 if third else 0.2, 0.5)
        if given in _WITH_ALPHA and not isinstance(value, Mapping):
            return (given, _WITH_ALPHA[given])
        known = ", ".join([*_SAME, "hard_sigmoid", *_WITH_ALPHA])
        raise ValueError(f"{name}: expected {option} among {known}, got {given!r:.80}")

    def _gate(
        self, name: str, kind: str, config: dict[str, Any], directions: list[list[Array]]
    ) -> str | None:
        given = config.get("recurrent_activation", config.get("inner_activation"))
        if given is not None:
            return _text(given, "sigmoid")
        if self.recurrent_activation is not None:
            return self.recurrent_activation
        old = self.content.legacy and not _at_least(self.content.version, (2, 3))
        if old and kind != "SimpleRNN":
            raise ValueError(
                f"{name}: expected recurrent_activation=, which the file does not say; the default "
                "of Keras was 'hard_sigmoid' before 2.3, and is 'sigmoid' since"
            )
        if not config:
            self.notes.append(f"{name}: no configuration; recurrent_activation is the default.")
        return "sigmoid"

    # -- others ------------------------------------------------------------------------------------

    def _plain(
        self,
        part: Part,
        kind: str,
        config: dict[str, Any],
        rank: int | None,
    ) -> None:
        _refuse_options(part.name, kind, config)
        _refuse_axis(part.name, kind, config, rank)
        try:
            if kind in _MAKERS_WITHOUT:
                layer = _MAKERS_WITHOUT[kind](config, self.dtype)
            else:
                layer = _MAKERS[kind](part.weights[0], config)
        except (IndexError, KeyError, ValueError, TypeError) as e:
            raise ValueError(
                f"{part.name}: expected the weights of a {part.kind or 'layer'}, got "
                f"{[a.shape for a in part.weights[0]]} ({e})"
            ) from None
        name = part.name
        if kind in _SIZES:
            _refuse_other_sizes(name, config, _SIZES[kind](layer))
        if layer is not None:
            self.layers[name] = layer
            self.chain.append((name, layer, False))
        shared = ("Dense", "TimeDistributed", "Conv1D", "dense", "conv1_d", "conv1d")
        activation = _text(config.get("activation"), "linear")
        if part.kind in shared and activation != "linear":
            dtype = self.dtype if layer is None else layer.dtype
            follow = _activation(name, activation, dtype)
            self.layers[f"{name}_activation"] = follow
            self.chain.append((f"{name}_activation", follow, False))


def _refuse_options(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Refuse by name what our layers do not have."""
    for option, usual in _USUAL.get(kind, {}).items():
        value = config.get(option)
        if value is not None and _single(value) != usual:
            raise ValueError(f"{name}: expected {option}={usual!r}, got {value!r:.80}")


def _single(value: Any) -> Any:
    """Return the only element of a list, and anything else as it is."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _refuse_axis(name: str, kind: str, config: Mapping[str, Any], rank: int | None) -> None:
    """Refuse an axis that is not the last one."""
    if kind not in ("LayerNormalization", "Softmax") or config.get("axis") is None:
        return
    axis = _single(config["axis"])
    if axis not in (-1, 2 if rank is None else rank - 1):
        raise ValueError(f"{name}: expected axis=-1, the last one, got {config['axis']!r:.80}")


def _refuse_other_sizes(name: str, config: Mapping[str, Any], has: Mapping[str, int]) -> None:
    """Refuse arrays that are not of the sizes of the configuration."""
    for option, size in has.items():
        value = _single(config.get(option))
        if value is not None and value != size:
            raise ValueError(
                f"{name}: expected the weights of {option}={value!r:.80}, got those of "
                f"{option}={size}"
            )


def _refuse_unlike(name: str, kind: str, forward: Mapping[str, Any], entry: Any) -> None:
    """Refuse a backward layer that is not the forward one run from the end."""
    backward = entry.get("config") if isinstance(entry, Mapping) else None
    if not isinstance(backward, Mapping):
        raise ValueError(f"{name}: expected a backward_layer with a configuration, got none")
    other = own_class(entry) or str(entry.get("class_name")).removeprefix("ostinato>")
    if other != kind:
        raise ValueError(f"{name}: expected a backward_layer that is a {kind}, got {other!r:.80}")
    if not backward.get("go_backwards"):
        raise ValueError(f"{name}: expected a backward_layer with go_backwards=True")
    for option, usual in _BOTH.items():
        want, got = forward.get(option, usual), backward.get(option, usual)
        if want != got:
            raise ValueError(
                f"{name}: expected a backward_layer with the {option}={want!r:.80} of the forward "
                f"one, got {got!r:.80}"
            )


def _at_least(version: str, wanted: tuple[int, int]) -> bool:
    parts = version.split(".")[:2]
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        return False
    return tuple(map(int, parts)) >= wanted


def _text(value: Any, default: str) -> str:
    """Return the name of an activation, which Keras 3 may write as an object."""
    if value is None:
        return default
    if isinstance(value, Mapping):
        inner = value.get("config")
        return str(inner if isinstance(inner, str) else value.get("class_name"))
    return str(value)


def _activation(name: str, kind: str, dtype: Any) -> nn.Layer:
    if kind in ("softmax", "log_softmax"):
        return nn.Softmax(log=kind != "softmax", dtype=dtype)
    if kind in ("tanh", "relu", "sigmoid", "gelu"):
        return nn.Activation(kind, dtype=dtype)
    raise ValueError(
        f"{name}: expected the activation linear, relu, tanh, sigmoid, gelu, softmax or "
        f"log_softmax, got {kind!r:.80}"
    )


def _plain_weights(name: str, kind: str, weights: list[Array]) -> list[Array]:
    """Return kernel, recurrent kernel and bias as Keras 2 has them, of whatever version."""
    gates = _GATES[kind]
    if len(weights) == 3 * gates and gates > 1:  # Keras 1; an LSTM is in the order i c f o
        order = (0, 2, 1, 3) if kind == "LSTM" else (0, 1, 2)
        weights = [np.concatenate([weights[3 * g + k] for g in order], -1) for k in range(3)]
    shapes = [a.shape for a in weights]
    hidden = weights[1].shape[0] if len(weights) > 1 and weights[1].ndim == 2 else 0
    fits = (
        len(weights) in (2, 3)
        and hidden > 0
        and weights[0].ndim == 2
        and weights[0].shape[0] > 0
        and shapes[0][1] == shapes[1][1] == gates * hidden
    )
    if fits and len(weights) == 3:
        allowed: list[tuple[int, ...]] = [(gates * hidden,)]
        if kind != "SimpleRNN":
            allowed.append((2 * gates * hidden,))
        if kind == "GRU":
            allowed.append((2, gates * hidden))
        fits = shapes[2] in allowed
    if not fits:
        raise ValueError(f"{name}: expected the weights of a {kind}, got {shapes}")
    if len(weights) == 3 and shapes[2] == (2 * gates * hidden,) and kind != "SimpleRNN":
        return _of_cudnn(kind, weights)
    return weights


def _of_cudnn(kind: str, weights: list[Array]) -> list[Array]:
    """Return the weights of CuDNNLSTM or CuDNNGRU in the plain layout."""
    gates = _GATES[kind]
    kernel = [k.T.reshape(k.shape, order="F") for k in np.split(weights[0], gates, 1)]
    recurrent = [k.T for k in np.split(weights[1], gates, 1)]
    both = weights[2].reshape(2, -1)
    bias = both if kind == "GRU" else both.sum(0)
    return [np.concatenate(kernel, 1), np.concatenate(recurrent, 1), bias]


def _ours(kind: str, weights: list[Array]) -> dict[str, Array]:
    """Return our parameters of one direction."""

    def rows(a: Array) -> Array:
        parts = np.split(a, _GATES[kind], -1)
        return np.concatenate([parts[k] for k in _ORDER[kind]], -1)

    out = {"weight_ih": rows(weights[0]).T, "weight_hh": rows(weights[1]).T}
    if len(weights) == 3:
        bias = rows(weights[2])
        two = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
        out |= {"bias_ih": two[0], "bias_hh": two[1]}
    return out


def _loaded(layer: nn.Layer, arrays: Mapping[str, Array]) -> nn.Layer:
    layer.load_state_dict(arrays)
    return layer


def _refuse_other_count(w: list[Array], config: dict[str, Any]) -> None:
    """Refuse arrays that are not a kernel and the bias of the configuration."""
    bias = config.get("use_bias", config.get("bias"))
    if len(w) not in ((1, 2) if bias is None else (1 + bool(bias),)):
        raise ValueError("a kernel and a bias" if bias else "a kernel alone")


def _dense(w: list[Array], config: dict[str, Any]) -> nn.Layer:
    inputs, out = w[0].shape
    _refuse_other_count(w, config)
    arrays = {"weight": w[0].T, **({"bias": w[1]} if len(w) == 2 else {})}
    return _loaded(nn.Linear(inputs, out, len(w) == 2, dtype=common(arrays)), arrays)


def _embedding(w: list[Array], config: dict[str, Any]) -> nn.Layer:
    if len(w) != 1:
        raise ValueError("one table")
    return _loaded(nn.Embedding(*w[0].shape, dtype=w[0].dtype), {"weight": w[0]})


def _norm(w: list[Array], config: dict[str, Any]) -> nn.Layer:
    scale, center = bool(config.get("scale", True)), bool(config.get("center", True))
    if not (scale or center):
        raise ValueError("scale=False with center=False, whose size is not in the file")
    if len(w) != scale + center:
        raise ValueError(f"scale={scale} and center={center}")
    if w[0].ndim != 1:
        raise ValueError("more than one axis")
    weight = w[0] if scale else np.ones_like(w[0])
    bias = w[-1] if center else np.zeros_like(w[0])
    layer = nn.LayerNorm(w[0].size, eps=float(config.get("epsilon", 1e-3)), dtype=w[0].dtype)
    return _loaded(layer, {"weight": weight, "bias": bias})


def _convolution(w: list[Array], config: dict[str, Any]) -> nn.Layer:
    size, inputs, out = w[0].shape
    _refuse_other_count(w, config)

    def one(value: Any) -> int:
        return int(value if isinstance(value, int) else value[0])

    layer = nn.Conv1d(
        inputs,
        out,
        size,
        stride=one(config.get("strides", 1)),
        dilation=one(config.get("dilation_rate", 1)),
        padding=str(config.get("padding", "valid")),
        bias=len(w) == 2,
        batch_first=True,
        dtype=w[0].dtype,
    )
    if layer.padding == "same" and layer.stride != 1:
        raise ValueError("padding 'same' with strides")
    arrays = {"weight": w[0].transpose(2, 1, 0), **({"bias": w[1]} if len(w) == 2 else {})}
    return _loaded(layer, arrays)


_MAKERS: dict[str, Callable[[list[Array], dict[str, Any]], Any]] = {
    "Embedding": _embedding,
    "Dense": _dense,
    "LayerNormalization": _norm,
    "Conv1D": _convolution,
}
# Those without weights: by their configuration, in the dtype of the others.
_MAKERS_WITHOUT: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "Dropout": lambda config, dtype: nn.Dropout(
        float(config.get("rate", config.get("p", 0.5))), dtype=dtype
    ),
    "Activation": lambda config, dtype: (
        None
        if _text(config.get("activation"), "linear") == "linear"
        else _activation("Activation", _text(config["activation"], ""), dtype)
    ),
    "ReLU": lambda config, dtype: nn.Activation("relu", dtype=dtype),
    "Softmax": lambda config, dtype: nn.Softmax(dtype=dtype),
    "GlobalAveragePooling1D": lambda config, dtype: nn.Pool("mean", batch_first=True, dtype=dtype),
    "GlobalMaxPooling1D": lambda config, dtype: nn.Pool("max", batch_first=True, dtype=dtype),
}


# -- the way in ------------------------------------------------------------------------------------


@_check.values_follow()
def from_keras(
    path: str | os.PathLike[str],
    *,
    config: Any = None,
    recurrent_activation: str | None = None,
    reset_after: bool | None = None,
    skip: Sequence[str] = (),
    verify: bool = False,
) -> Imported:
    """Make layers of a file of Keras 1 to 3: ``.keras``, ``.h5`` or ``.weights.h5``.

    LSTM, GRU (both forms), SimpleRNN, the CuDNN layouts, Bidirectional, Embedding, Dense,
    TimeDistributed, Conv1D, LayerNormalization, activations and poolings are read by their
    configuration, or by shapes where a file holds weights alone. What the cells do not have (some
    activations, ``go_backwards``, other merge modes) is an error that names it. ``hard_sigmoid`` is
    ``clip(0.2 x + 0.5, 0, 1)`` in files of Keras 1 and 2, and ``clip(x / 6 + 0.5, 0, 1)`` since.
    `Imported.model` gives the whole of a Sequential, or of a Functional that is a chain;
    ``return_sequences=False`` is a `LastState` in it, and so is the second output of
    ``return_state=True``. Layers have ``batch_first=True``.

    >>> import pathlib, tempfile
    >>> import ostinato as ost
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.weights.h5"
    >>> model = ost.nn.Sequential(ost.nn.GRU(3, 5, rng=0), ost.nn.Linear(5, 2, rng=1))
    >>> try:
    ...     _ = ost.to_keras(model, path)
    ...     names = list(ost.from_keras(path))
    ... except ImportError:  # without h5py
    ...     names = ["dense", "gru"]
    >>> sorted(names)
    ['dense', 'gru']

    Args:
        path: the file.
        config: the configuration of the model, as JSON (``model.to_json()``) or as a dictionary,
            for a file with weights alone.
        recurrent_activation: of recurrent layers in a file without a configuration, "sigmoid" or
            "hard_sigmoid". None: not known; an error where the version of Keras does not say.
        reset_after: of GRUs without biases in a file without a configuration.
        skip: shell patterns of names of layers to leave out, such as those of classes of your own;
            there is then no whole model.
        verify: whether to run a random input through the whole model and through Keras, which must
            be installed; they must agree within 1e-5.

    Returns:
        The layers by their names in the file.

    Raises:
        ImportError: h5py, or Keras for ``verify``, is not installed.
        OSError: the file cannot be read.
        TypeError: an argument of another type.
        ValueError: a damaged file, or a layer that there is none of here; the message names it.
    """
    if recurrent_activation not in (None, "sigmoid", "hard_sigmoid"):
        raise ValueError(
            "recurrent_activation: expected 'sigmoid', 'hard_sigmoid' or None, got "
            f"{recurrent_activation!r}"
        )
    patterns = _check.patterns("skip", skip)
    if reset_after is not None:
        reset_after = _check.flag("reset_after", reset_after)
    verify = _check.flag("verify", verify)
    content = read_keras(path, config)
    reads: dict[str, set[int]] = {}
    for read in _all_reads(content):
        reads.setdefault(read.name, set()).add(read.output)
    maker = _Maker(content, reads, recurrent_activation, reset_after)
    for k, part in enumerate(content.parts):
        if any(fnmatch.fnmatchcase(part.name, pattern) for pattern in patterns):
            maker.skip(part)
        else:
            maker.add(part)
        content.parts[k] = part._replace(weights=[])  # the layers have them now
    version = f"Keras {content.version}".rstrip()
    imported = Imported(
        version,
        maker.layers,
        maker.entries,
        maker.notes,
        _assembly(content, maker),
        lambda model: _verify(path, config, model),
    )
    if verify:
        imported.model(verify=True)
    return imported


def _assembly(content: Content, maker: _Maker) -> Callable[[], nn.Layer] | str:
    """Return what makes the whole model, or why there is none."""
    if any(p.config is None for p in content.parts):
        return "weights alone do not say in which order the layers run"
    if maker.skipped:
        return f"the layer {maker.skipped[0]!r} is left out"
    before: list[str] = []
    for p in content.parts:
        if p.inbound and [r.name for r in p.inbound] != before:
            return f"the layer {p.name!r} reads another one than that before it"
        if not p.inbound and before:
            return f"the layer {p.name!r} reads no other one"
        if p.given:
            return f"the layer {p.name!r} is called with {p.given[0]:.80}"
        before = [p.name]
    outputs = content.outputs
    if outputs is not None and len(outputs) != 1:
        names = _check.some(list(dict.fromkeys(r.name for r in outputs)), plain=True)
        return f"the model has several outputs, of {names}" if outputs else "there is no output"
    if outputs and [outputs[0].name] != before:
        return f"the layer {outputs[0].name!r} gives the output, and others follow it"
    for read in _all_reads(content):
        if read.output != (read.name in maker.finals):
            return (
                f"output {read.output} of the layer {read.name!r} is read, a state that no layer "
                "gives alone"
            )

    def assemble() -> nn.Layer:
        return chain_of({_plain_name(n): LastState(m) if last else m for n, m, last in maker.chain})

    return assemble


def _all_reads(content: Content) -> Iterator[Read]:
    """Yield what the layers of a file read, and what the model gives."""
    for part in content.parts:
        yield from part.inbound or ()
    yield from content.outputs or ()


def _plain_name(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")


def _verify(path: str | os.PathLike[str], config: Any, model: nn.Layer) -> None:
    """Run a random input through Keras and through our model."""
    keras = require("keras", "bench-all", "verify=True")
    if config is None:
        theirs = keras.saving.load_model(os.fspath(path), compile=False)
    else:
        text = config if isinstance(config, str) else json.dumps(config)
        theirs = keras.models.model_from_json(text)
        theirs.load_weights(os.fspath(path))
    shape = [n or 6 for n in theirs.input_shape[1:]]
    rng = np.random.default_rng(0)
    x: Any = rng.normal(size=(3, *shape)).astype(np.float32)
    leaf: Any = next(iter(model._children().values())) if model._children() else model
    if isinstance(leaf, nn.Embedding):
        x = rng.integers(1, leaf.num_embeddings, (3, *shape))  # 0 may be masked
    outputs = theirs(x)
    if isinstance(outputs, Mapping):  # of one output, as a list of it
        outputs = list(outputs.values())
    outputs = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    want = np.asarray(keras.ops.convert_to_numpy(outputs))
    y = model(x)
    compare("Keras", y[0] if model.stateful else y, want, _LIMIT)


readable(globals())
