"""Make layers of the parameter trees of Flax and Haiku; neither is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn
from .._annotations import readable
from .._check import Array
from ._imported import Entry, Imported, common, real, shapes

_DEEPEST = 50
_ORDER = "their order is not in a tree of parameters"


class _Tree:
    """Gather layers, each with what it was made of."""

    def __init__(self, source: str, batch_first: bool) -> None:
        self.source, self.batch_first = source, batch_first
        self.layers: dict[str, nn.Layer] = {}
        self.entries: list[Entry] = []

    def add(self, name: str, kind: str, found: Mapping[str, Array], layer: nn.Layer) -> None:
        """Keep a layer."""
        if name in self.layers:
            raise ValueError(f"params: expected different names, got {name!r} twice")
        self.layers[name] = layer
        self.entries.append(Entry(name, kind, shapes(found), repr(layer)))

    def recurrent(
        self, name: str, kind: str, found: Mapping[str, Array], parts: list[Any], **given: Any
    ) -> None:
        """Add a recurrent layer of weights and biases of x and of h, in our order of gates."""
        w, r, b, c = parts
        arrays = {"weight_ih_l0": w, "weight_hh_l0": r, "bias_ih_l0": b, "bias_hh_l0": c}
        options = {"batch_first": self.batch_first, "dtype": common(arrays), **given}
        layer = getattr(nn, kind)(w.shape[1], r.shape[1], **options)
        layer.load_state_dict(arrays)
        self.add(name, kind, found, layer)

    def dense(self, name: str, weight: Array, bias: Array | None) -> None:
        """Add a Linear of a matrix ``[I,O]``."""
        found = {"kernel": weight} if bias is None else {"kernel": weight, "bias": bias}
        inputs, out = weight.shape
        layer = nn.Linear(inputs, out, bias is not None, dtype=common(found))
        arrays = {"weight": weight.T, **({} if bias is None else {"bias": bias})}
        layer.load_state_dict(arrays)
        self.add(name, "Dense", found, layer)

    def table(self, name: str, weight: Array) -> None:
        """Add an Embedding."""
        layer = nn.Embedding(*weight.shape, dtype=weight.dtype)
        layer.load_state_dict({"weight": weight})
        self.add(name, "Embed", {"embedding": weight}, layer)

    def norm(self, name: str, weight: Array, bias: Array, eps: float) -> None:
        """Add a LayerNorm."""
        layer = nn.LayerNorm(weight.size, eps=eps, dtype=weight.dtype)
        layer.load_state_dict({"weight": weight, "bias": bias})
        self.add(name, "LayerNorm", {"scale": weight, "bias": bias}, layer)

    def imported(self) -> Imported:
        """Return the layers; a single one is the whole model."""
        if len(self.layers) == 1:
            only = next(iter(self.layers.values()))
            return Imported(self.source, self.layers, self.entries, None, lambda: only)
        return Imported(self.source, self.layers, self.entries, None, _ORDER)


def _guarded(
    name: str, found: Mapping[str, Array], make: Callable[..., None], *args: Any, **given: Any
) -> None:
    """Call what adds a layer; an error says of what."""
    try:
        make(*args, **given)
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise ValueError(
            f"{name or 'params'}: expected parameters that fit one another, got {shapes(found)} "
            f"({e})"
        ) from None


# -- Flax ------------------------------------------------------------------------------------------

_LSTM = {a + b for a in "ih" for b in "ifgo"}
_GRU = {a + b for a in "ih" for b in "rzn"}


def _stacked(found: Mapping[str, Any], letters: str) -> list[Array]:
    """Return weights and biases of x and h; a bias that is not there is zeros."""
    out: list[Array] = []
    for what in ("kernel", "bias"):
        for side in "ih":
            parts = []
            for gate in letters:
                own = found[f"{side}{gate}.kernel"]
                bias = found.get(f"{side}{gate}.bias")
                zeros = np.zeros(own.shape[1], own.dtype)
                parts.append(own.T if what == "kernel" else zeros if bias is None else bias)
            out.append(np.concatenate(parts))
    return out


def _flax_cell(tree: _Tree, name: str, kind: str, found: Mapping[str, Any], letters: str) -> None:
    tree.recurrent(name, kind, found, _stacked(found, letters))


def _flax_node(tree: _Tree, name: str, node: Mapping[str, Any], eps: float) -> bool:
    """Add the layer of a node of the tree; return whether it is one."""
    keys = set(node)
    inner = all(isinstance(v, Mapping) for v in node.values())
    for kind, wanted, letters in (("LSTM", _LSTM, "ifgo"), ("GRU", _GRU, "rzn")):
        if inner and keys == wanted:
            found = {
                f"{k}.{n}": real(f"{name}.{k}.{n}", a)
                for k, v in node.items()
                for n, a in v.items()
            }
            _guarded(name, found, _flax_cell, tree, name, kind, found, letters)
            return True
    if not keys or any(isinstance(v, Mapping) for v in node.values()):
        return False
    arrays = {k: real(f"{name}.{k}", v) for k, v in node.items()}
    if keys in ({"kernel"}, {"kernel", "bias"}) and arrays["kernel"].ndim == 2:
        _guarded(name, arrays, tree.dense, name, arrays["kernel"], arrays.get("bias"))
    elif keys == {"embedding"} and arrays["embedding"].ndim == 2:
        tree.table(name, arrays["embedding"])
    elif keys == {"scale", "bias"}:
        _guarded(name, arrays, tree.norm, name, arrays["scale"], arrays["bias"], eps)
    else:
        raise ValueError(
            f"{name or 'params'}: expected the parameters of an LSTMCell, GRUCell, Dense, Embed or "
            f"LayerNorm of Flax, got {shapes(arrays)}"
        )
    return True


def from_flax(
    params: Mapping[str, Any], *, batch_first: bool = True, eps: float = 1e-6
) -> Imported:
    """Make layers of a tree of parameters of Flax (linen): cells, Dense, Embed and LayerNorm.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> tree = {"params": {"head": {"kernel": np.ones((3, 2), np.float32)}}}
    >>> ost.interop.from_flax(tree)["head"]
    Linear(3, 2, bias=False)

    Args:
        params: nested mappings of names to arrays, with or without "params" at the top.
        batch_first: of recurrent layers; Flax' RNN has it.
        eps: of LayerNorm, which is not in the tree; Flax' default.

    Returns:
        The layers by their paths, joined by dots. The two directions of a bidirectional one are
        layers of their own.

    Raises:
        TypeError: params are no mapping, or hold an array that is not of real numbers.
        ValueError: parameters of another layer, which the message names.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a mapping, got a {type(params).__name__}")
    tree = _Tree("Flax", batch_first)

    def walk(name: str, node: Mapping[str, Any], depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"params: expected at most {_DEEPEST} levels, got more at {name!r}")
        if _flax_node(tree, name, node, eps):
            return
        for key, value in node.items():
            full = f"{name}.{key}" if name else str(key)
            if not isinstance(value, Mapping):
                raise ValueError(f"{full}: expected a layer, got an array beside layers")
            walk(full, value, depth + 1)

    top = params["params"] if set(params) == {"params"} else params
    walk("", top, 0)
    return tree.imported()


# -- Haiku -----------------------------------------------------------------------------------------


_VANILLA = re.compile(r"(^|/)vanilla_rnn(_\d+)?/linear$")


def _haiku_lstm(tree: _Tree, name: str, a: Mapping[str, Array]) -> None:
    """Add an LSTM of one matrix of x and h, gates i g f o, with 1 added to the forget gate."""
    hidden = a["w"].shape[1] // 4
    inputs = a["w"].shape[0] - hidden
    bias = a["b"].copy()
    bias[2 * hidden : 3 * hidden] += 1

    def ours(m: Array) -> Array:
        i, g, f, o = np.split(m, 4, -1)
        out: Array = np.concatenate([i, f, g, o], -1).T
        return out

    parts = [ours(a["w"][:inputs]), ours(a["w"][inputs:]), ours(bias), np.zeros_like(bias)]
    tree.recurrent(name, "LSTM", a, parts)


def _haiku_gru(tree: _Tree, name: str, a: Mapping[str, Array]) -> None:
    """Add a reset-before GRU of the order z r a, whose z is the opposite of ours."""

    def ours(m: Array) -> Array:
        z, r, n = np.split(m, 3, -1)
        out: Array = np.concatenate([r, -z, n], -1).T
        return out

    parts = [ours(a["w_i"]), ours(a["w_h"]), ours(a["b"]), np.zeros_like(a["b"])]
    tree.recurrent(name, "GRU", a, parts, reset_after=False)


def _haiku_rnn(tree: _Tree, name: str, a: Mapping[str, Array], b: Mapping[str, Array]) -> None:
    zeros = np.zeros(a["w"].shape[1], a["w"].dtype)
    parts = [a["w"].T, b["w"].T, a.get("b", zeros), b.get("b", zeros)]
    tree.recurrent(name, "RNN", {**a}, parts, nonlinearity="relu")


def from_haiku(
    params: Mapping[str, Any], *, batch_first: bool = False, eps: float = 1e-5
) -> Imported:
    """Make layers of the parameters of Haiku: LSTM, GRU, VanillaRNN, Linear, Embed and LayerNorm.

    Haiku's GRU is reset-before, with the opposite sense of z, and its LSTM adds 1 to the forget
    gate; both are in the parameters here.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> params = {"lstm/linear": {"w": np.ones((7, 16)), "b": np.zeros(16)}}
    >>> ost.interop.from_haiku(params)["lstm"]
    LSTM(3, 4)

    Args:
        params: a mapping of the names of modules to mappings of names to arrays. An LSTM and
            a VanillaRNN are recognised by their names, "lstm", "lstm_1" and so on.
        batch_first: of recurrent layers.
        eps: of LayerNorm, which is not among the parameters; Haiku's default.

    Returns:
        The layers by the names of their modules.

    Raises:
        TypeError: params are no mapping of mappings, or an array is not of real numbers.
        ValueError: parameters of another module, which the message names.
    """
    if not isinstance(params, Mapping) or not all(isinstance(v, Mapping) for v in params.values()):
        raise TypeError("params: expected a mapping of mappings, got another")
    tree = _Tree("Haiku", batch_first)
    modules = {
        name: {k: real(f"{name}.{k}", v) for k, v in own.items()} for name, own in params.items()
    }
    for name, a in modules.items():
        keys, base = set(a), name.rpartition("/")[0]
        if re.search(r"(^|/)lstm(_\d+)?/linear$", name) and keys == {"w", "b"}:
            _guarded(name, a, _haiku_lstm, tree, base, a)
        elif keys == {"w_i", "w_h", "b"}:
            _guarded(name, a, _haiku_gru, tree, name, a)
        elif _VANILLA.search(name) and name + "_1" in modules:
            other = modules[name + "_1"]
            _guarded(name, a, _haiku_rnn, tree, base, a, other)
        elif _VANILLA.search(name.removesuffix("_1")) and name.removesuffix("_1") in modules:
            continue
        elif keys in ({"w"}, {"w", "b"}) and a["w"].ndim == 2:
            _guarded(name, a, tree.dense, name, a["w"], a.get("b"))
        elif keys == {"embeddings"} and a["embeddings"].ndim == 2:
            tree.table(name, a["embeddings"])
        elif keys == {"scale", "offset"}:
            _guarded(name, a, tree.norm, name, a["scale"], a["offset"], eps)
        else:
            raise ValueError(
                f"{name}: expected the parameters of an LSTM, GRU, VanillaRNN, Linear, Embed or "
                f"LayerNorm of Haiku, got {shapes(a)}"
            )
    return tree.imported()


readable(globals())
