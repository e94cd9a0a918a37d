"""Build layers from PyTorch's state dicts and modules, and modules from layers.

A state dict needs no PyTorch; modules, and checks against them, import it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _check, nn
from .._annotations import readable
from .._check import Array
from ._imported import Entry, Imported, chain_of, common, compare, real, require, shapes

_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?")
_CELL = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
_GATES = {4: "LSTM", 3: "GRU", 1: "RNN"}
_LIMIT = 1e-5
Options = Mapping[str, Mapping[str, Any]]


class _Found:
    """A layer as a state dict or a module has it.

    Args:
        name: its prefix.
        kind: the name of the class in ``torch.nn``.
        arrays: its parameters.
        options: further arguments of our class.
        module: the module itself, if there is one.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        arrays: dict[str, Array],
        options: dict[str, Any],
        module: Any = None,
    ) -> None:
        self.name, self.kind, self.module = name, kind, module
        self.arrays, self.options = arrays, options

    @property
    def shown(self) -> str:
        """The name, in errors."""
        return self.name or "the layer"

    def make(self) -> nn.Layer:
        """Return our layer with these parameters."""
        layer = _MAKERS[self.kind](self)
        if self.arrays:
            try:
                layer.load_state_dict(self.arrays)
            except (KeyError, ValueError) as e:
                raise type(e)(f"{self.shown}: {e.args[0]}") from None
        return layer


def _recurrent(f: _Found) -> nn.Layer:
    a, kind = f.arrays, f.kind
    layers = {int(n.split("_l")[-1].split("_")[0]) for n in a}
    first = a.get("weight_ih_l0")
    recurrent = a.get("weight_hh_l0")
    if first is None or recurrent is None or first.ndim != 2 or recurrent.ndim != 2:
        raise ValueError(f"{f.shown}: expected weight_ih_l0 and weight_hh_l0, got {shapes(a)}")
    gates = {name: count for count, name in _GATES.items()}[kind]
    options = {
        "num_layers": max(layers) + 1,
        "bias": "bias_ih_l0" in a,
        "bidirectional": any(n.endswith("_reverse") for n in a),
        "dtype": common(a),
        **f.options,
    }
    if "weight_hr_l0" in a:
        options["proj_size"] = recurrent.shape[1]
    hidden = first.shape[0] // gates
    made: nn.Layer = getattr(nn, kind)(first.shape[1], hidden, **options)
    return made


def _cell(f: _Found) -> nn.Layer:
    """Return a recurrent layer of one layer for a cell of one step."""
    f.arrays = {n + "_l0": a for n, a in f.arrays.items()}
    f.kind = f.kind.removesuffix("Cell")
    return _recurrent(f)


def _linear(f: _Found) -> nn.Layer:
    out, inputs = f.arrays["weight"].shape
    return nn.Linear(inputs, out, "bias" in f.arrays, dtype=common(f.arrays), **f.options)


def _embedding(f: _Found) -> nn.Layer:
    return nn.Embedding(*f.arrays["weight"].shape, dtype=common(f.arrays), **f.options)


def _norm(f: _Found) -> nn.Layer:
    size = f.arrays["weight"].size
    f.arrays.setdefault("bias", np.zeros(size, f.arrays["weight"].dtype))
    return nn.LayerNorm(size, dtype=common(f.arrays), **f.options)


def _convolution(f: _Found) -> nn.Layer:
    out, inputs, size = f.arrays["weight"].shape
    options = {"padding": "valid", **f.options}
    bias = "bias" in f.arrays
    return nn.Conv1d(inputs, out, size, bias=bias, dtype=common(f.arrays), **options)


def _without_parameters(make: Callable[..., nn.Layer]) -> Callable[[_Found], nn.Layer]:
    return lambda f: make(**f.options)


_MAKERS: dict[str, Callable[[_Found], nn.Layer]] = {
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "LSTMCell": _cell,
    "GRUCell": _cell,
    "RNNCell": _cell,
    "Linear": _linear,
    "Embedding": _embedding,
    "LayerNorm": _norm,
    "Conv1d": _convolution,
    "Dropout": _without_parameters(nn.Dropout),
    "ReLU": _without_parameters(lambda **o: nn.Activation("relu", **o)),
    "Tanh": _without_parameters(lambda **o: nn.Activation("tanh", **o)),
    "Sigmoid": _without_parameters(lambda **o: nn.Activation("sigmoid", **o)),
    "GELU": _without_parameters(nn.Activation),
    "Softmax": _without_parameters(nn.Softmax),
    "LogSoftmax": _without_parameters(lambda **o: nn.Softmax(log=True, **o)),
}


# -- state dicts -----------------------------------------------------------------------------------


def _renamed(names: list[str], rules: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of every name; each rule must match, and no two may become one."""
    out = {n: n for n in names}
    for pattern, replacement in rules.items():
        matched = False
        for name, now in out.items():
            out[name], count = re.subn(pattern, replacement, now)
            matched |= count > 0
        if not matched:
            raise ValueError(f"rename: expected rules that match a name, got {pattern!r}")
    seen: dict[str, str] = {}
    for name, now in out.items():
        if now in seen:
            raise ValueError(f"rename: expected different names, got {now!r} for {seen[now]!r} too")
        seen[now] = name
    return out


def _kind_of(name: str, arrays: Mapping[str, Array]) -> str | None:
    """Return the class of ``torch.nn`` that parameters belong to, by names and shapes."""
    leaves = set(arrays)
    if all(_RECURRENT.fullmatch(n) for n in leaves) or (leaves <= _CELL and "weight_hh" in leaves):
        cell = "Cell" if leaves <= _CELL else ""
        w = arrays.get("weight_hh" + ("" if cell else "_l0"))
        if w is None or w.ndim != 2 or not w.shape[1]:
            return None
        if any("weight_hr" in n for n in leaves):
            return "LSTM"
        known = _GATES.get(w.shape[0] // w.shape[1])
        return known + cell if known and w.shape[0] % w.shape[1] == 0 else None
    w, bias = arrays.get("weight"), arrays.get("bias")
    if w is None or leaves - {"weight", "bias"}:
        return None
    if bias is not None and bias.shape != w.shape[:1]:
        return None
    if w.ndim == 2 and bias is None:
        return "Embedding" if "emb" in name.lower() else None
    return {1: "LayerNorm" if bias is not None else None, 2: "Linear", 3: "Conv1d"}.get(w.ndim)


def _of_state_dict(
    arrays: Mapping[str, Array], kinds: Mapping[str, str], options: Options, batch_first: bool
) -> list[_Found]:
    groups: dict[str, dict[str, Array]] = {}
    for name, a in arrays.items():
        prefix, _, leaf = name.rpartition(".")
        groups.setdefault(prefix, {})[leaf] = a
    out = []
    for prefix, own in groups.items():
        kind = kinds.get(prefix) or _kind_of(prefix, own)
        if kind is None or kind not in _MAKERS:
            raise ValueError(
                f"{prefix or 'source'}: expected parameters of one of {', '.join(_MAKERS)}, got "
                f"{shapes(own)}; rename= changes names, kinds= says what a layer is, skip= leaves "
                "parameters out"
            )
        given = dict(options.get(prefix, {}))
        if kind in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "Conv1d"):
            given.setdefault("batch_first", batch_first)
        out.append(_Found(prefix, kind, own, given))
    return out


# -- modules ---------------------------------------------------------------------------------------


def _module_options(name: str, m: Any) -> dict[str, Any]:
    """Return the arguments of our class that a module's attributes say."""
    kind = type(m).__name__
    if kind in ("LSTM", "GRU", "RNN"):
        own = {"batch_first": m.batch_first, "dropout": m.dropout if m.num_layers > 1 else 0.0}
        return own | ({"nonlinearity": m.nonlinearity} if kind == "RNN" else {})
    if kind == "RNNCell":
        return {"nonlinearity": m.nonlinearity}
    if kind == "Embedding":
        if m.max_norm is not None or m.scale_grad_by_freq:
            raise ValueError(f"{name}: expected an Embedding without max_norm, got {m}")
        return {"padding_index": m.padding_idx}
    if kind == "LayerNorm":
        if len(m.normalized_shape) != 1 or m.weight is None:
            raise ValueError(f"{name}: expected a LayerNorm of one axis with weights, got {m}")
        return {"eps": m.eps}
    if kind == "Conv1d":
        return _convolution_options(name, m)
    if kind == "Dropout":
        return {"rate": m.p}
    if kind == "GELU":
        return {"name": "gelu_tanh" if m.approximate == "tanh" else "gelu"}
    if kind in ("Softmax", "LogSoftmax") and m.dim not in (-1, 2):
        raise ValueError(f"{name}: expected a {kind} over the last axis, got {m}")
    return {}


def _convolution_options(name: str, m: Any) -> dict[str, Any]:
    """Return the arguments of a convolution; ours take ``[B,T,C]`` where torch has ``[B,C,T]``."""
    span = (m.kernel_size[0] - 1) * m.dilation[0]
    given = m.padding if isinstance(m.padding, str) else m.padding[0]
    same = given == "same" or (2 * given == span if isinstance(given, int) else False)
    padding = "valid" if given in ("valid", 0) else "same" if same else None
    if m.groups != 1 or m.padding_mode != "zeros" or padding is None:
        raise ValueError(
            f"{name}: expected a Conv1d without groups, padded by nothing or by as much as "
            f"'same' is, got {m}"
        )
    if padding == "same" and m.stride[0] != 1:
        raise ValueError(f"{name}: expected a stride of 1 with padding, got {m}")
    return {
        "stride": m.stride[0],
        "dilation": m.dilation[0],
        "padding": padding,
        "batch_first": True,
    }


def _of_module(
    module: Any, skip: Callable[[str], bool], options: Options
) -> tuple[list[_Found], list[Entry]]:
    """Return the layers of a module, and the parts that have no layer here."""
    torch = require("torch", "torch", "from_torch of a module")
    found: list[_Found] = []
    others: list[Entry] = []
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    inside: list[str] = []
    for name, m in module.named_modules():
        if any(not p or name.startswith(p + ".") for p in inside) or skip(name):
            continue
        kind = type(m).__name__
        if getattr(torch.nn, kind, None) is type(m) and kind in _MAKERS:
            arrays = {n: real(f"{name}.{n}", p) for n, p in m.state_dict().items()}
            given = _module_options(name or "source", m) | dict(options.get(name, {}))
            if not arrays and dtype == torch.float64:
                given["dtype"] = np.float64
            found.append(_Found(name, kind, arrays, given, m))
            inside.append(name)
            continue
        tensors = [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
        own = [n for n, _ in tensors if not skip(f"{name}.{n}".lstrip("."))]
        if own or (kind != "Identity" and not list(m.children())):
            raise ValueError(
                f"{name or 'source'}: expected modules of torch.nn that are one of "
                f"{', '.join(_MAKERS)}, got a {kind} with {', '.join(own) or 'no parameters'}; "
                "skip= leaves it out"
            )
        if kind == "Identity":
            others.append(Entry(name, kind, "", "nothing"))
    return found, others


# -- the way in ------------------------------------------------------------------------------------


@_check.values_follow()
def from_torch(
    source: Any,
    *,
    rename: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    options: Options | None = None,
    batch_first: bool = False,
    verify: bool = False,
) -> Imported:
    """Make layers of a state dict, or of a module of PyTorch.

    A state dict, such as `load_torch` gives, is read by names and shapes, and needs no PyTorch:
    ``weight_ih_l0`` and its like are an LSTM, GRU or RNN by the number of their rows, and a
    ``weight`` and a ``bias`` a Linear, LayerNorm or Conv1d by their axes. A matrix by itself is an
    Embedding if its name says so ("emb"), and otherwise an error that asks for ``kinds``. What
    names and shapes do not say are options: ``batch_first``, ``nonlinearity="relu"``, eps. A
    module says all of it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> weights = ost.nn.LSTM(3, 5, num_layers=2, rng=0).state_dict()
    >>> weights = {f"encoder.rnn.{n}": a for n, a in weights.items()}
    >>> ost.from_torch(weights, rename={"^encoder[.]": ""}, batch_first=True)["rnn"]
    LSTM(3, 5, num_layers=2, batch_first=True)

    Args:
        source: a mapping of names to arrays or tensors, or a ``torch.nn.Module``.
        rename: regular expressions and what takes their place in the names of a state dict, in
            this order; each must match.
        skip: shell patterns of names to leave out: of tensors of a state dict, of modules and
            their tensors in a module.
        kinds: by the name of a layer of a state dict, the name of its class in ``torch.nn``.
        options: by the name of a layer, arguments of our class, such as
            ``{"rnn": {"nonlinearity": "relu"}}``.
        batch_first: of the layers of a state dict that tell time from batch.
        verify: whether to run a random input through each layer and through PyTorch's, which must
            be installed; they must agree within 1e-5 of the largest output.

    Returns:
        The layers by their names. `Imported.model` gives the whole of a single layer and of a
        ``torch.nn.Sequential``.

    Raises:
        ImportError: a module, or ``verify``, without PyTorch.
        KeyError: parameters that a layer lacks.
        TypeError: a source or an argument of another kind, or a tensor that holds no real numbers.
        ValueError: parameters or modules that no layer here has, by name; a rule that matches
            nothing; or sides that differ.
    """
    rules, options, kinds = dict(rename or {}), dict(options or {}), dict(kinds or {})
    patterns, batch_first = _check.patterns("skip", skip), _check.flag("batch_first", batch_first)

    def skipped(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in patterns)

    others: list[Entry] = []
    module = source if hasattr(source, "named_modules") else None
    if module is not None:
        if rules or kinds:
            raise ValueError("rename, kinds: expected none for a module, which says what it is")
        found, others = _of_module(module, skipped, options)
    elif isinstance(source, Mapping):
        for n in source:
            if not isinstance(n, str):
                raise TypeError(f"source: expected names that are text, got {n!r}")
        names = _renamed([n for n in source if not skipped(n)], rules)
        arrays = {new: real(old, source[old]) for old, new in names.items()}
        found = _of_state_dict(arrays, kinds, options, batch_first)
    else:
        raise TypeError(f"source: expected a state dict or a module, got a {type(source).__name__}")
    _refuse_unused(found, options, kinds)
    layers, entries = {}, []
    for f in found:
        kind, given = f.kind, dict(f.arrays)
        layers[f.name] = f.make()
        if verify:
            _verify(f, kind, given, layers[f.name])
        entries.append(Entry(f.name, kind, shapes(given), repr(layers[f.name])))
    return Imported("PyTorch", layers, entries + others, None, _assembly(module, layers))


def _refuse_unused(found: list[_Found], options: Options, kinds: Mapping[str, str]) -> None:
    names = {f.name for f in found}
    for what, given in (("options", options), ("kinds", kinds)):
        for name in given:
            if name not in names:
                raise KeyError(f"{what}: expected names among {sorted(names)}, got {name!r}")


def _assembly(module: Any, layers: Mapping[str, nn.Layer]) -> Callable[[], nn.Layer] | str:
    """Return what makes the whole model, or why there is none."""
    if len(layers) == 1:
        return lambda: chain_of(layers)
    if module is not None and type(module).__name__ == "Sequential":
        return lambda: chain_of(layers)
    return "names and shapes do not say in which order the layers run"


def _verify(f: _Found, kind: str, arrays: Mapping[str, Array], layer: nn.Layer) -> None:
    """Run a random input through both sides of a layer."""
    torch = require("torch", "torch", "verify=True")
    module = f.module
    if module is None:
        module = _torch_module(torch, layer, kind)
        tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
        module.load_state_dict(tensors)
    training = module.training
    module.eval()
    dtype = layer.dtype
    rng = np.random.default_rng(0)
    width = next((int(getattr(layer, n)) for n in _WIDTHS if hasattr(layer, n)), 4)
    x: Array = rng.normal(size=(5, 5, width)).astype(dtype)
    if isinstance(layer, nn.Embedding):
        x = rng.integers(0, layer.num_embeddings, (5, 5))
    try:
        with torch.no_grad():
            want = _run(torch, module, kind, x, layer)
    finally:
        module.train(training)
    y = layer(x)
    got = y[0] if layer.stateful else y
    compare(f"PyTorch's {kind} {f.name}".rstrip(), got, want, _LIMIT)


_WIDTHS = ("input_size", "in_features", "in_channels", "size")


def _run(torch: Any, module: Any, kind: str, x: Array, layer: nn.Layer) -> Array:
    """Return the outputs of a module for ``x [5,5,I]``, in our layout."""
    t = torch.from_numpy(x)
    if kind == "Conv1d":
        t = t if getattr(layer, "batch_first", False) else t.transpose(0, 1)
        t = module(t.transpose(1, 2)).transpose(1, 2)
        t = t if getattr(layer, "batch_first", False) else t.transpose(0, 1)
    elif kind.endswith("Cell"):
        first = getattr(layer, "batch_first", False)
        state, outs = None, []
        for step in t.unbind(1 if first else 0):
            state = module(step, state)
            outs.append(state[0] if kind == "LSTMCell" else state)
        t = torch.stack(outs, 1 if first else 0)
    elif kind in ("LSTM", "GRU", "RNN"):
        t = module(t)[0]
    else:
        t = module(t)
    return np.asarray(t.numpy())


# -- the way out -----------------------------------------------------------------------------------


def _torch_module(torch: Any, layer: nn.Layer, kind: str = "") -> Any:
    """Return a module of the same shapes, with values of its own."""
    dtype = getattr(torch, layer.dtype.name)
    if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
        return _torch_recurrent(torch, layer, kind, dtype)
    if isinstance(layer, nn.Linear):
        bias = "bias" in layer.parameters()
        return torch.nn.Linear(layer.in_features, layer.out_features, bias, dtype=dtype)
    if isinstance(layer, nn.Embedding):
        sizes = (layer.num_embeddings, layer.embedding_dim)
        return torch.nn.Embedding(*sizes, padding_idx=layer.padding_index, dtype=dtype)
    if isinstance(layer, nn.LayerNorm):
        return torch.nn.LayerNorm(layer.size, eps=layer.eps, dtype=dtype)
    if isinstance(layer, nn.Conv1d) and layer.padding != "causal":
        if layer.padding == "same" and layer.stride != 1:
            raise ValueError(f"layer: expected a stride of 1 with padding 'same', got {layer!r}")
        return torch.nn.Conv1d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            bias="bias" in layer.parameters(),
            dtype=dtype,
        )
    if isinstance(layer, nn.Dropout):
        return torch.nn.Dropout(layer.rate)
    if isinstance(layer, nn.Softmax):
        return torch.nn.LogSoftmax(-1) if layer.log else torch.nn.Softmax(-1)
    if isinstance(layer, nn.Activation):
        make = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}.get(layer.name)
        if make is not None:
            return getattr(torch.nn, make)()
        return torch.nn.GELU(approximate="tanh" if layer.name == "gelu_tanh" else "none")
    raise ValueError(f"layer: expected one that torch.nn has, got {layer!r}")


def _torch_recurrent(torch: Any, layer: Any, kind: str, dtype: Any) -> Any:
    name = type(layer).__name__
    refused = {
        "peephole=True": getattr(layer, "peephole", False),
        "layer_norm=True": getattr(layer, "layer_norm", False),
        "reset_after=False": not getattr(layer, "reset_after", True),
        "learned_state=True": layer.learned_state,
        layer._functions().removeprefix(", "): bool(layer._scalars),
    }
    for what, there in refused.items():
        if there:
            raise ValueError(f"layer: expected {name} without {what}, which torch.nn does not have")
    relu = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    sizes, bias = (layer.input_size, layer.hidden_size), layer.bias
    if kind.endswith("Cell"):
        return getattr(torch.nn, kind)(*sizes, bias, dtype=dtype, **relu)
    more = {"proj_size": layer.proj_size} if layer.proj_size else {}
    return getattr(torch.nn, name)(
        *sizes,
        layer.num_layers,
        bias=bias,
        batch_first=layer.batch_first,
        dropout=layer.dropout,
        bidirectional=layer.bidirectional,
        dtype=dtype,
        **relu,
        **more,
    )


def _filled(torch: Any, layer: nn.Layer) -> Any:
    module = _torch_module(torch, layer)
    module.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()})
    return module


def to_torch(layer: nn.Layer) -> Any:
    """Return a module of PyTorch with copies of a layer's parameters.

    A layer becomes its namesake of ``torch.nn``. A `Sequential` becomes a module whose children
    have the names of its layers, so that its state dict has our names, and whose call gives
    ``(y, states)`` as ours does; a convolution in it reads the model's layout.

    Args:
        layer: a layer or a `Sequential`.

    Returns:
        A ``torch.nn.Module``.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: something else than a layer.
        ValueError: a layer that ``torch.nn`` does not have, such as a reset-before GRU; the
            message names it.

    >>> import ostinato as ost
    >>> try:
    ...     names = list(ost.to_torch(ost.nn.GRU(3, 5)).state_dict())
    ... except ImportError:  # without PyTorch
    ...     names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    >>> names
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """
    if not isinstance(layer, nn.Layer):
        raise TypeError(f"layer: expected a layer, got a {type(layer).__name__}")
    torch = require("torch", "torch", "to_torch")
    if not isinstance(layer, nn.Sequential):
        return _filled(torch, layer)
    children = {n: to_torch(m) for n, m in layer._children().items()}
    return _chain(torch, children, layer)


def _chain(torch: Any, children: Mapping[str, Any], model: nn.Sequential) -> Any:
    """Return a module that runs modules one after the other, with their states."""
    stateful = [m.stateful for m in model.layers]
    convolutions = [None if not isinstance(m, nn.Conv1d) else m.batch_first for m in model.layers]

    class Chain(torch.nn.Module):  # type: ignore[misc]
        """Run modules one after the other; the state is a tuple with one entry each."""

        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                self.add_module(name, child)

        def forward(self, x: Any, states: Any = None) -> Any:
            out = []
            given = states or (None,) * len(stateful)
            for m, has_state, conv, s in zip(self.children(), stateful, convolutions, given):
                if has_state:
                    x, s = m(x, s)
                elif conv is not None:
                    axes = (0, 2, 1) if conv else (1, 2, 0)
                    back = (0, 2, 1) if conv else (2, 0, 1)
                    x = m(x.permute(axes)).permute(back)
                else:
                    x = m(x)
                out.append(s)
            return x, tuple(out)

    return Chain()


readable(globals())
