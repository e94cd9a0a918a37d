"""Build layers from PyTorch's state dicts and modules, and modules from layers.

A state dict needs no PyTorch; modules, and checks against them, import it.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _check, nn
from .._annotations import readable
from .._check import Array
from ._imported import Entry, Imported, chain_of, common, compare, real, require, shapes

_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr|ln_ih|ln_hh|ln_c)_l([0-9]{1,9})(_reverse)?")
_CELL = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
_SEQUENCES = ("LSTM", "GRU", "RNN")
_CELLS = ("LSTMCell", "GRUCell", "RNNCell")
# The parameters of the other kinds that have some, by name; all but the first may be missing.
_LEAVES = {
    "Linear": ("weight", "bias"),
    "Embedding": ("weight",),
    "LayerNorm": ("weight", "bias"),
    "Conv1d": ("weight", "bias"),
}
_GATES = {4: "LSTM", 3: "GRU", 1: "RNN"}
# What acts on every element by itself, wherever the features lie.
_BY_ELEMENT = {"Dropout", "ReLU", "Tanh", "Sigmoid", "GELU"}
# What gives in inference what it takes.
_INERT = (
    "Identity",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
)
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
        return self.name or "source"

    def make(self) -> nn.Layer:
        """Return our layer with these parameters."""
        layer = _MAKERS[self.kind](self)
        if self.arrays:
            try:
                layer.load_state_dict(self.arrays)
            except (KeyError, ValueError) as e:
                raise type(e)(f"{self.shown}: {e.args[0]}") from None
        return layer


def _of_kind(kind: str, leaf: str) -> bool:
    """Whether a class of ``torch.nn`` may have a parameter of this name."""
    if kind in _SEQUENCES:
        return _RECURRENT.fullmatch(leaf) is not None
    return leaf in (_CELL if kind in _CELLS else _LEAVES.get(kind, ()))


def _refuse_leaves(name: str, kind: str, leaves: Iterable[str], mend: str) -> None:
    """Raise unless parameters have the names that the class of ``torch.nn`` has."""
    leaves, needed = list(leaves), _LEAVES.get(kind, ())[:1]
    if all(_of_kind(kind, n) for n in leaves) and set(needed) <= set(leaves):
        return
    wanted = " and ".join(_LEAVES.get(kind, ())) or "no parameters"
    if kind in _SEQUENCES or kind in _CELLS:
        ends = "" if kind in _CELLS else "_l0"
        wanted = f"weight_ih{ends}, weight_hh{ends} and their like"
    raise ValueError(
        f"{name or 'source'}: expected {wanted} of {kind}, got "
        f"{_check.some(leaves, plain=True) or 'no parameters'}; {mend}"
    )


def _built(f: _Found, make: Callable[..., nn.Layer], *sizes: Any, **own: Any) -> nn.Layer:
    """Return a layer of the sizes that the arrays have, and with its options."""
    given = {**own, **f.options}
    known = [*inspect.signature(make).parameters][len(sizes) :]
    for n in given:
        if n not in known:
            raise TypeError(
                f"options[{f.name!r}]: expected arguments of {make.__name__} among "
                f"{', '.join(known)}, got {n!r}"
            )
    try:
        return make(*sizes, **given)
    except (TypeError, ValueError) as e:
        raise type(e)(f"{f.shown}: {e}") from None


def _recurrent(f: _Found) -> nn.Layer:
    a, kind = f.arrays, f.kind
    first = a.get("weight_ih_l0")
    recurrent = a.get("weight_hh_l0")
    if first is None or recurrent is None or first.ndim != 2 or recurrent.ndim != 2:
        raise ValueError(f"{f.shown}: expected weight_ih_l0 and weight_hh_l0, got {shapes(a)}")
    gates = {name: count for count, name in _GATES.items()}[kind]
    hidden = first.shape[0] // gates
    options = {
        "num_layers": _refuse_others(f, gates, hidden),
        "bias": "bias_ih_l0" in a,
        "bidirectional": any(n.endswith("_reverse") for n in a),
        "dtype": common(a),
    }
    if "weight_hr_l0" in a:
        options["proj_size"] = recurrent.shape[1]
    if any("_ln_" in n for n in a):
        options["layer_norm"] = True
    return _built(f, getattr(nn, kind), first.shape[1], hidden, **options)


def _refuse_others(f: _Found, gates: int, hidden: int) -> int:
    """Return the number of layers, once each has what the first one asks for.

    It is checked before a layer is made: few arrays can ask for many and large ones.
    """
    a = f.arrays
    numbers = sorted({int(n.removesuffix("_reverse").rpartition("_l")[2]) for n in a})
    count = len(numbers)
    if numbers[-1] != count - 1:
        missing = next(k for k, n in enumerate(numbers) if n != k)
        raise KeyError(
            f"{f.shown}: expected parameters of the layers 0 to {numbers[-1]}, got none of layer "
            f"{missing}"
        )
    width = a["weight_hh_l0"].shape[1] if "weight_hr_l0" in a else hidden
    ends = ("", "_reverse") if any(n.endswith("_reverse") for n in a) else ("",)
    rows, wanted = gates * hidden, {}
    for k in range(count):
        columns = width * len(ends) if k else a["weight_ih_l0"].shape[1]
        own: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns), "weight_hh": (rows, width)}
        if "bias_ih_l0" in a:
            own |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if "weight_hr_l0" in a:
            own["weight_hr"] = (width, hidden)
        wanted.update({f"{n}_l{k}{end}": shape for end in ends for n, shape in own.items()})
    lacking = [n for n in wanted if n not in a]
    if lacking:
        raise KeyError(
            f"{f.shown}: expected parameters of all layers, missing {_check.some(lacking)}"
        )
    for n, shape in wanted.items():
        if a[n].shape != shape:
            raise ValueError(f"{f.shown}: {n}: expected shape {shape}, got {a[n].shape}")
    return count


def _cell(f: _Found) -> nn.Layer:
    """Return a recurrent layer of one layer for a cell of one step."""
    f.arrays = {n + "_l0": a for n, a in f.arrays.items()}
    f.kind = f.kind.removesuffix("Cell")
    return _recurrent(f)


def _sizes(f: _Found, axes: int) -> tuple[int, ...]:
    """Return the shape of the weight, which has so many axes."""
    weight = f.arrays["weight"]
    if weight.ndim != axes:
        several = "1 axis" if axes == 1 else f"{axes} axes"
        raise ValueError(
            f"{f.shown}: expected a weight of {several} for {f.kind}, got {shapes(f.arrays)}"
        )
    return weight.shape


def _linear(f: _Found) -> nn.Layer:
    out, inputs = _sizes(f, 2)
    return _built(f, nn.Linear, inputs, out, bias="bias" in f.arrays, dtype=common(f.arrays))


def _embedding(f: _Found) -> nn.Layer:
    return _built(f, nn.Embedding, *_sizes(f, 2), dtype=common(f.arrays))


def _norm(f: _Found) -> nn.Layer:
    (size,) = _sizes(f, 1)
    f.arrays.setdefault("bias", np.zeros(size, f.arrays["weight"].dtype))
    return _built(f, nn.LayerNorm, size, dtype=common(f.arrays))


def _convolution(f: _Found) -> nn.Layer:
    out, inputs, size = _sizes(f, 3)
    own = {"padding": "valid", "bias": "bias" in f.arrays, "dtype": common(f.arrays)}
    return _built(f, nn.Conv1d, inputs, out, size, **own)


def _without_parameters(
    make: Callable[..., nn.Layer], *first: Any, **own: Any
) -> Callable[[_Found], nn.Layer]:
    return lambda f: _built(f, make, *first, **own)


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
    "ReLU": _without_parameters(nn.Activation, "relu"),
    "Tanh": _without_parameters(nn.Activation, "tanh"),
    "Sigmoid": _without_parameters(nn.Activation, "sigmoid"),
    "GELU": _without_parameters(nn.Activation),
    "Softmax": _without_parameters(nn.Softmax),
    "LogSoftmax": _without_parameters(nn.Softmax, log=True),
}


# -- state dicts -----------------------------------------------------------------------------------


def _rules(rename: Any) -> dict[Any, Any]:
    """Return what takes the place of what, by compiled expressions."""
    given = _check.mapping("rename", rename, "a mapping of regular expressions to text")
    rules = {}
    for pattern, replacement in given.items():
        if not isinstance(getattr(pattern, "pattern", pattern), str):
            raise TypeError(f"rename: expected regular expressions, got {_check.quoted(pattern)}")
        try:
            compiled = re.compile(pattern)
        except re.error as e:
            raise ValueError(
                f"rename: expected regular expressions, got {_check.quoted(pattern)}: {e}"
            ) from None
        if not callable(replacement):
            _check.text(f"rename[{pattern!r}]", replacement, "a text")
        rules[compiled] = replacement
    return rules


def _renamed(names: list[str], rules: Mapping[Any, Any]) -> dict[str, str]:
    """Return the new name of every name; each rule must match, and no two may become one."""
    out = {n: n for n in names}
    for compiled, replacement in rules.items():
        pattern, matched = compiled.pattern, False
        for name, now in out.items():
            try:
                out[name], count = compiled.subn(replacement, now)
            except (re.error, IndexError) as e:  # a group that there is none of
                raise ValueError(
                    f"rename[{pattern!r}]: expected a text whose groups the expression has, got "
                    f"{_check.quoted(replacement)}: {e}"
                ) from None
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
        if kind is None:
            raise ValueError(
                f"{prefix or 'source'}: expected parameters of one of {', '.join(_MAKERS)}, got "
                f"{shapes(own):.600}; rename= changes names, kinds= says what a layer is, skip= "
                "leaves parameters out"
            )
        _refuse_leaves(prefix, kind, own, "kinds= says what a layer is")
        given = dict(options.get(prefix, {}))
        if kind in (*_SEQUENCES, *_CELLS, "Conv1d"):
            given.setdefault("batch_first", batch_first)
        out.append(_Found(prefix, kind, own, given))
    return out


# -- modules ---------------------------------------------------------------------------------------


def _module_options(name: str, m: Any) -> dict[str, Any]:
    """Return the arguments of our class that a module's attributes say."""
    kind = type(m).__name__
    if kind in _SEQUENCES:
        own = {"batch_first": m.batch_first, "dropout": m.dropout if m.num_layers > 1 else 0.0}
        relu = m.mode == "RNN_RELU"
        return own | ({"nonlinearity": "relu" if relu else "tanh"} if kind == "RNN" else {})
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


def _joined(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf


def _is_layer(torch: Any, m: Any) -> bool:
    """Whether a module is of a class that has a layer here: of PyTorch, or of ours for it."""
    kind = type(m).__name__
    ours = sys.modules.get(__name__.rpartition(".")[0] + "._torch_modules")
    known = (getattr(torch.nn, kind, None), getattr(ours, kind, None))
    return kind in _MAKERS and type(m) in known


def _is_chain(torch: Any, m: Any) -> bool:
    """Whether the class of a module runs its children one after the other, and no more."""
    kind, base = type(m), torch.nn.Sequential
    inherited = ("forward", "__call__", "_call_impl", "__iter__")
    if issubclass(kind, base):
        return all(getattr(kind, n) is getattr(base, n) for n in inherited)
    return bool(getattr(kind, "runs_in_order", False)) and kind.__module__ == __name__


def _is_wrapper(torch: Any, m: Any) -> bool:
    """Whether a module gives what the one module within it gives."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    compiled = "_orig_mod" in m._modules and type(m).__module__.startswith("torch._dynamo")
    return type(m) in parallel or compiled


class _Walk:
    """Visit the modules within a module: which have a layer here, and in which order they run.

    Args:
        torch: PyTorch.
        module: the outermost one.
        skip: whether a name is to be left out.
        options: of the layers.
    """

    def __init__(
        self, torch: Any, module: Any, skip: Callable[[str], bool], options: Options
    ) -> None:
        self.found: list[_Found] = []
        self.others: list[Entry] = []
        self.notes: list[str] = []
        self._torch, self._skip, self._options = torch, skip, options
        first = next((p.dtype for p in module.parameters()), torch.float32)
        self._double = first == torch.float64
        self._unknown = ""  # why the order of the layers is not known
        self._unordered = ""  # the same of a container, which matters to several layers alone
        self._names: dict[int, str] = {}  # of the modules that were seen, and of their parameters
        self._visit("", module, (), False)

    def why_no_chain(self) -> str:
        """Tell why the layers are not the whole module in their order; "" where they are."""
        if not self.found:
            return "there is no layer"
        reason = self._unknown or (self._unordered if len(self.found) > 1 else "")
        convolution = next((f for f in self.found if f.kind == "Conv1d"), None)
        other = next((f for f in self.found if f.kind not in {"Conv1d", *_BY_ELEMENT}), None)
        if not reason and convolution is not None and other is not None:
            reason = (
                f"{convolution.shown} is a Conv1d, which takes time on the last axis, and "
                f"{other.shown} a {other.kind}, which has no such axis"
            )
        return reason

    def _lose(self, name: str, reason: str) -> None:
        self._unknown = self._unknown or f"{name or 'the module'} {reason}"

    def _visit(self, name: str, m: Any, above: tuple[int, ...], chained: bool) -> None:
        """Visit a module and what is within it; those of a chain as often as they run."""
        if id(m) in above:
            raise ValueError(f"{name}: expected a module that is not within itself")
        if self._skip(name):
            if not self._does_nothing(m):
                self._lose(name, "is left out by skip")
        else:
            first = self._names.setdefault(id(m), name)
            if first != name and not chained:
                return
            if _is_layer(self._torch, m):
                self._layer(name, m, first)
                return
            self._container(name, m)
        chained = _is_chain(self._torch, m)
        for leaf, child in m._modules.items():
            if child is not None:
                self._visit(_joined(name, leaf), child, (*above, id(m)), chained)

    def _does_nothing(self, m: Any) -> bool:
        """Whether the whole is the same in inference without the module itself."""
        kind = getattr(self._torch.nn, type(m).__name__, None)
        inert = type(m) is kind and type(m).__name__ in _INERT
        return not _why_other(m) and (inert or _is_chain(self._torch, m))

    def _layer(self, name: str, m: Any, first: str) -> None:
        kind, state = type(m).__name__, m.state_dict()
        kept = {n: p for n, p in state.items() if not self._skip(_joined(name, n))}
        lost = [n for n in state if n not in kept and _of_kind(kind, n)]
        if lost:
            self._lose(_joined(name, lost[0]), "is left out by skip")
        if state and not kept:
            return
        if reason := _why_other(m):
            self._lose(name, reason)
        mend = (
            "torch.nn.utils.remove_weight_norm, remove_spectral_norm and prune.remove make plain "
            "parameters of theirs, and skip= leaves out others"
        )
        _refuse_leaves(name, kind, kept, mend)
        given = _module_options(name or "source", m)
        if not kept and self._double:
            given["dtype"] = np.float64
        arrays = {n: real(_joined(name, n), p) for n, p in kept.items()}
        self.found.append(_Found(name, kind, arrays, given | dict(self._options.get(name, {})), m))
        if arrays and first != name:
            self._lose(name, f"is {first} again, whose weights a Sequential has no way to share")
        for n, p in m.named_parameters(recurse=False):
            own = _joined(name, n)
            before = self._names.setdefault(id(p), own)
            if before != own and n in arrays:
                self.notes.append(f"{own} is {before} in PyTorch; here each has values of its own")

    def _container(self, name: str, m: Any) -> None:
        """Note what a module without a layer here does; raise where it has parameters."""
        torch, kind = self._torch, type(m).__name__
        tensors = [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
        own = [n for n, _ in tensors if not self._skip(_joined(name, n))]
        lists = type(m) in (torch.nn.ModuleList, torch.nn.ModuleDict)
        identity = type(m) is torch.nn.Identity
        empty = not any(child is not None for child in m._modules.values())
        nothing = empty and name != "" and (lists or _is_chain(torch, m))
        if own or (empty and not identity and not nothing):
            raise ValueError(
                f"{name or 'source'}: expected modules of torch.nn that are one of "
                f"{', '.join(_MAKERS)}, got a {kind} with {', '.join(own) or 'no parameters'}; "
                "skip= leaves it out"
            )
        if identity or nothing:
            self.others.append(Entry(name, kind, "", "nothing"))
        wrapper = _is_wrapper(torch, m)
        if reason := _why_other(m, hooks_alone=wrapper):
            self._lose(name, reason)
        elif lists:
            shown = name or "the module"
            self._unordered = (
                f"{shown} is a {kind}, which does not say in which order its layers run"
            )
        elif not (wrapper or identity or _is_chain(torch, m)):
            self._lose(
                name,
                f"is a {kind}, whose code alone says in which order its layers run, and what is "
                "done besides",
            )
        elif getattr(type(m), "runs_in_order", False) and any(
            isinstance(child, torch.nn.Conv1d) for child in m._modules.values()
        ):
            self._lose(name, "comes from to_torch, and keeps the layout of its convolutions")


def _why_other(m: Any, hooks_alone: bool = False) -> str:
    """Tell why a module may do something else than its class; "" where it does not."""
    if m._forward_hooks or m._forward_pre_hooks:
        return "has hooks, which may change what it takes and gives"
    if not hooks_alone and "forward" in vars(m):
        return "has a forward of its own, beside that of its class"
    return ""


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
            their tensors in a module. What is within a module that is left out has names of its
            own.
        kinds: by the name of a layer of a state dict, the name of its class in ``torch.nn``.
        options: by the name of a layer, arguments of our class, such as
            ``{"rnn": {"nonlinearity": "relu"}}``.
        batch_first: of the layers of a state dict that tell time from batch. A module says it.
        verify: whether to run a random input through each layer and through PyTorch's, which must
            be installed; they must agree within 1e-5 of the largest output.

    Returns:
        The layers by their names. `Imported.model` gives the whole of a single layer and of a
        ``torch.nn.Sequential`` of layers and of such; with modules of other classes within it,
        with hooks, or with a part left out, it is an error that names them.

    Raises:
        ImportError: a module, or ``verify``, without PyTorch.
        KeyError: parameters that a layer lacks.
        TypeError: a source or an argument of another kind, an option that a layer does not have,
            or a tensor that holds no real numbers.
        ValueError: parameters or modules that no layer here has, by name; none at all; a rule that
            matches nothing or is no regular expression; or sides that differ.
    """
    rules = _rules({} if rename is None else rename)
    kinds, options = _checked_kinds(kinds), _checked_options(options)
    patterns, batch_first = _check.patterns("skip", skip), _check.flag("batch_first", batch_first)
    verify = _check.flag("verify", verify)

    def skipped(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in patterns)

    walk = None
    if not isinstance(source, type) and hasattr(source, "named_modules"):
        if rules or kinds:
            raise ValueError("rename, kinds: expected none for a module, which says what it is")
        if batch_first:
            raise ValueError("batch_first: expected False for a module, which says what it is")
        torch = require("torch", "torch", "from_torch of a module")
        if not isinstance(source, torch.nn.Module):
            raise _no_source(source)
        walk = _Walk(torch, source, skipped, options)
        found = walk.found
    elif isinstance(source, Mapping):
        for n in source:
            if not isinstance(n, str):
                raise TypeError(f"source: expected names that are text, got {n!r}")
        names = _renamed([n for n in source if not skipped(n)], rules)
        arrays = {new: real(old, source[old]) for old, new in names.items()}
        found = _of_state_dict(arrays, kinds, options, batch_first)
    else:
        raise _no_source(source)
    others = walk.others if walk else []
    _refuse_unused(found, options, kinds)
    if not found and not others:
        left = " beside what skip leaves out" if patterns else ""
        raise ValueError(f"source: expected at least one layer, got none{left}")
    layers, entries = {}, []
    why_no_chain = _why_no_chain(walk, found)
    for f in found:
        kind, given = f.kind, dict(f.arrays)
        layers[f.name] = f.make()
        if verify:
            _verify(f, kind, given, layers[f.name])
        entries.append(Entry(f.name, kind, shapes(given), repr(layers[f.name])))
    assemble = why_no_chain or (lambda: chain_of(layers))
    return Imported("PyTorch", layers, entries + others, walk.notes if walk else None, assemble)


def _no_source(source: Any) -> TypeError:
    """Return the error of what is neither a state dict nor a module."""
    if isinstance(source, type):
        got = f"the class {source.__name__}; give a module of it"
    else:
        got = f"a {type(source).__name__}"
    return TypeError(f"source: expected a state dict or a module, got {got}")


def _checked_kinds(kinds: Any) -> dict[str, str]:
    given = {} if kinds is None else kinds
    given = _check.mapping("kinds", given, "a mapping of names to classes of torch.nn")
    return {n: _check.choice(f"kinds[{n!r}]", kind, _MAKERS) for n, kind in given.items()}


def _checked_options(options: Any) -> dict[str, Mapping[str, Any]]:
    given = {} if options is None else options
    given = _check.mapping("options", given, "a mapping of names of layers to their arguments")
    wanted = "a mapping of arguments to values"
    return {n: _check.mapping(f"options[{n!r}]", own, wanted) for n, own in given.items()}


def _refuse_unused(found: list[_Found], options: Options, kinds: Mapping[str, str]) -> None:
    names = {f.name for f in found}
    for what, given in (("options", options), ("kinds", kinds)):
        for name in given:
            if name not in names:
                raise KeyError(f"{what}: expected names among {sorted(names)}, got {name!r}")


def _why_no_chain(walk: _Walk | None, found: list[_Found]) -> str:
    """Tell why the layers are not a whole model in their order; "" where they are."""
    if walk is not None:
        return walk.why_no_chain()
    one = len(found) == 1
    return "" if one else "names and shapes do not say in which order the layers run"


def _verify(f: _Found, kind: str, arrays: Mapping[str, Array], layer: nn.Layer) -> None:
    """Run a random input through both sides of a layer."""
    torch = require("torch", "torch", "verify=True")
    module = f.module
    if module is not None:
        module = _like(torch, module, layer)
    else:
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


def _like(torch: Any, module: Any, layer: nn.Layer) -> Any:
    """Return a module that computes in the dtype of a layer: itself, or a copy."""
    dtype = getattr(torch, layer.dtype.name)
    if all(p.dtype == dtype and p.device.type == "cpu" for p in module.parameters()):
        return module
    return copy.deepcopy(module).to("cpu", dtype)


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

        runs_in_order = True

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
