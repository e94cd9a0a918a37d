"""Make layers of the parameter trees of Flax and Haiku; neither is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import _check, nn
from .._annotations import readable
from .._check import Array
from ._imported import Entry, Imported, common, compare, real, require, shapes

_DEEPEST = 50
_LIMIT = 1e-5  # by which outputs may differ, relative to the largest
_ORDER = "their order is not in a tree of parameters"


class _Tree:
    """Gather layers, each with what it was made of."""

    def __init__(self, source: str, batch_first: bool) -> None:
        self.source, self.batch_first = source, _check.flag("batch_first", batch_first)
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

    def verify(self, theirs: Callable[[str, nn.Layer], Callable[[Array], Any]]) -> None:
        """Run a random input through every layer and through what ``theirs`` makes of its name."""
        rng = np.random.default_rng(0)
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Embedding):
                x: Any = rng.integers(0, layer.num_embeddings, (3, 5))
            else:
                name_of_weight = "weight_ih_l0" if layer.stateful else "weight"
                width = layer.parameters()[name_of_weight].shape[-1]
                x = rng.normal(size=(3, 5, width)).astype(layer.dtype)
            run: Any = layer
            got = run(x)[0] if layer.stateful else run(x)
            compare(f"{self.source}, {name or 'params'}", got, theirs(name, layer)(x), _LIMIT)

    def imported(self) -> Imported:
        """Return the layers; a single one is the whole model."""
        if len(self.layers) == 1:
            only = next(iter(self.layers.values()))
            return Imported(self.source, self.layers, self.entries, None, lambda: only)
        return Imported(self.source, self.layers, self.entries, None, _ORDER)


def _above_zero(name: str, value: object) -> float:
    """Return a number above 0."""
    n = _check.number(name, value, "a number above 0")
    if not n > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    return n


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


def _by_flax(top: Mapping[str, Any], tree: _Tree) -> Callable[[str, nn.Layer], Any]:
    """Return a function that makes of a layer's name the layer as Flax runs it."""
    linen = require("flax.linen", "", "verify=True", "flax")

    def theirs(name: str, layer: Any) -> Callable[[Array], Any]:
        node: Any = top
        for key in name.split(".") if name else ():
            node = node[key]
        if isinstance(layer, nn.Recurrent):
            cell = linen.OptimizedLSTMCell if isinstance(layer, nn.LSTM) else linen.GRUCell
            module = linen.RNN(cell(layer.hidden_size), time_major=not tree.batch_first)
            node = {"cell": node}
        elif isinstance(layer, nn.Embedding):
            module = linen.Embed(layer.num_embeddings, layer.embedding_dim)
        elif isinstance(layer, nn.LayerNorm):
            module = linen.LayerNorm(epsilon=layer.eps, use_fast_variance=False)
        else:
            module = linen.Dense(layer.out_features, use_bias="bias" in node)
        return lambda x: module.apply({"params": node}, x)

    return theirs


@_check.values_follow()
def from_flax(
    params: Mapping[str, Any],
    *,
    batch_first: bool = True,
    eps: float = 1e-6,
    verify: bool = False,
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
        verify: whether to run a random input through each layer and through Flax', which must be
            installed; they must agree within 1e-5.

    Returns:
        The layers by their paths, joined by dots. The two directions of a bidirectional one are
        layers of their own.

    Raises:
        ImportError: ``verify`` without Flax.
        TypeError: params are no mapping, or hold an array that is not of real numbers.
        ValueError: parameters of another layer, or outputs that differ; the message names it.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a mapping, got a {type(params).__name__}")
    tree = _Tree("Flax", batch_first)
    eps, verify = _above_zero("eps", eps), _check.flag("verify", verify)

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
    if verify:
        tree.verify(_by_flax(top, tree))
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


def _by_haiku(
    modules: Mapping[str, Mapping[str, Array]], tree: _Tree
) -> Callable[[str, nn.Layer], Any]:
    """Return a function that makes of a layer's name the layer as Haiku runs it."""
    haiku = require("haiku", "", "verify=True", "dm-haiku")

    def module(layer: Any, double_bias: bool) -> Callable[[Any], Any]:
        made: Any
        if isinstance(layer, nn.Embedding):
            made = haiku.Embed(layer.num_embeddings, layer.embedding_dim, name="own")
        elif isinstance(layer, nn.LayerNorm):
            made = haiku.LayerNorm(-1, True, True, eps=layer.eps, name="own")
        elif isinstance(layer, nn.Linear):
            made = haiku.Linear(layer.out_features, "bias" in layer.parameters(), name="own")
        else:
            made = unrolled(layer, double_bias)
        run: Callable[[Any], Any] = made
        return run

    def unrolled(layer: Any, double_bias: bool) -> Callable[[Any], Any]:
        if isinstance(layer, nn.RNN):
            core = haiku.VanillaRNN(layer.hidden_size, double_bias=double_bias, name="own")
        else:
            kind = haiku.LSTM if isinstance(layer, nn.LSTM) else haiku.GRU
            core = kind(layer.hidden_size, name="own")
        first = tree.batch_first
        return lambda x: haiku.dynamic_unroll(
            core, x, core.initial_state(x.shape[0 if first else 1]), time_major=not first
        )[0]

    def theirs(name: str, layer: nn.Layer) -> Callable[[Array], Any]:
        own = {
            "own" + key.removeprefix(name): arrays
            for key, arrays in modules.items()
            if key == name or key in (f"{name}/linear", f"{name}/linear_1")
        }
        both = "b" in own.get("own/linear_1", {})
        run = haiku.without_apply_rng(haiku.transform(lambda x: module(layer, both)(x)))
        return lambda x: run.apply(own, x)

    return theirs


@_check.values_follow()
def from_haiku(
    params: Mapping[str, Any],
    *,
    batch_first: bool = False,
    eps: float = 1e-5,
    verify: bool = False,
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
        verify: whether to run a random input through each layer and through Haiku's, which must be
            installed; they must agree within 1e-5.

    Returns:
        The layers by the names of their modules.

    Raises:
        ImportError: ``verify`` without Haiku.
        TypeError: params are no mapping of mappings, or an array is not of real numbers.
        ValueError: parameters of another module, or outputs that differ; the message names it.
    """
    if not isinstance(params, Mapping) or not all(isinstance(v, Mapping) for v in params.values()):
        raise TypeError("params: expected a mapping of mappings, got another")
    tree = _Tree("Haiku", batch_first)
    eps, verify = _above_zero("eps", eps), _check.flag("verify", verify)
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
    if verify:
        tree.verify(_by_haiku(modules, tree))
    return tree.imported()


readable(globals())
