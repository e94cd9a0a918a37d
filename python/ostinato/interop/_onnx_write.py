"""Write models in the ONNX format: opset 14, layout 0."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _check, _files, nn
from .._annotations import readable
from .._check import Array
from .._functions import Function
from ..nn._walk import layers_of, layout_of
from ._graph import Graph
from ._imported import require
from ._layers import LastState, Reversed
from ._onnx_nodes import FUNCTION_NAMES, FUNCTIONS, KINDS, reordered
from ._onnx_write_graph import write_graph

_OPSET = 14
_IR = 8  # the version of the file that goes with it
_FLOATS = {np.dtype(np.float32): 1, np.dtype(np.float64): 11}
_INT64 = 7


class _Writer:
    """Gather nodes and constants; values are ``[T,B,F]`` inside, or ``[B,F]`` once pooled.

    Args:
        onnx: the module.
        dtype: of the model.
        lengths: the name of the lengths, if they are an input.
        states: whether initial and final states are inputs and outputs.
    """

    def __init__(self, onnx: Any, dtype: np.dtype[Any], lengths: str, states: bool) -> None:
        self.onnx, self.dtype, self.lengths, self.states = onnx, dtype, lengths, states
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.width: int | str = "features"  # of the last value; a name where it is free
        self._names: set[str] = set()

    def unique(self, name: str) -> str:
        """Return a name that nothing else has."""
        out, k = name, 1
        while out in self._names:
            out, k = f"{name}_{k}", k + 1
        self._names.add(out)
        return out

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer; return its name."""
        name = self.unique(name)
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def number(self, name: str, value: float) -> str:
        """Add a number of the model's dtype."""
        return self.constant(name, np.array(value, self.dtype))

    def node(self, kind: str, inputs: list[str], name: str, count: int = 1, **given: Any) -> Any:
        """Add a node; return the name of its output, or the names of several."""
        outs = [self.unique(f"{name}.y" if not k else f"{name}.y{k}") for k in range(count)]
        made = self.onnx.helper.make_node(kind, inputs, outs, self.unique(name), **given)
        self.nodes.append(made)
        return outs[0] if count == 1 else outs

    # -- layers ------------------------------------------------------------------------------------

    def layer(self, name: str, layer: nn.Layer, x: str) -> str:
        """Add a layer that reads x; return the name of what it gives."""
        if isinstance(layer, nn.Sequential):
            for child, inner in layer._children().items():
                x = self.layer(f"{name}.{child}" if name else child, inner, x)
            return x
        name = name or type(layer).__name__.lower()
        for kind, write in _WRITERS:
            if type(layer) is kind:
                return str(write(self, name, layer, x))
        raise ValueError(
            f"{name}: expected a layer that ONNX can hold, got {layer!r}; of those are "
            f"{', '.join(k.__name__ for k, _ in _WRITERS)}"
        )

    def linear(self, name: str, layer: nn.Linear, x: str) -> str:
        """Multiply by the transposed weights, and add the bias."""
        p = layer.state_dict()
        self.width = layer.out_features
        x = self.node("MatMul", [x, self.constant(f"{name}.weight", p["weight"].T)], name)
        if "bias" in p:
            bias = self.constant(f"{name}.bias", p["bias"])
            x = self.node("Add", [x, bias], f"{name}.add")
        return x

    def embedding(self, name: str, layer: nn.Embedding, x: str) -> str:
        """Look up rows of a table."""
        self.width = layer.embedding_dim
        table = self.constant(f"{name}.weight", layer.state_dict()["weight"])
        return str(self.node("Gather", [table, x], name, axis=0))

    def dropout(self, name: str, layer: nn.Dropout, x: str) -> str:
        """Leave x as it is, as in inference."""
        return x

    def activation(self, name: str, layer: nn.Activation, x: str) -> str:
        """Apply a function of every element; GELU is written out, which opset 14 lacks."""
        if not layer.name.startswith("gelu"):
            return str(self.node(layer.name.capitalize(), [x], name))

        def op(kind: str, *inputs: str) -> str:
            return str(self.node(kind, list(inputs), f"{name}.{kind.lower()}"))

        def number(value: float) -> str:
            return self.number(f"{name}.number", value)

        if layer.name == "gelu":
            inner = op("Erf", op("Mul", x, number(math.sqrt(0.5))))
        else:
            cube = op("Mul", op("Mul", op("Mul", x, x), x), number(0.044715))
            inner = op("Tanh", op("Mul", op("Add", x, cube), number(math.sqrt(2 / math.pi))))
        return op("Mul", op("Mul", x, number(0.5)), op("Add", inner, number(1.0)))

    def softmax(self, name: str, layer: nn.Softmax, x: str) -> str:
        """Normalise the last axis."""
        return str(self.node("LogSoftmax" if layer.log else "Softmax", [x], name, axis=-1))

    def norm(self, name: str, layer: nn.LayerNorm, x: str) -> str:
        """Write layer normalisation out, which opset 14 lacks."""

        def op(kind: str, *inputs: str, **given: Any) -> str:
            return str(self.node(kind, list(inputs), f"{name}.{kind.lower()}", **given))

        p = layer.state_dict()
        centred = op("Sub", x, op("ReduceMean", x, axes=[-1], keepdims=1))
        variance = op("ReduceMean", op("Mul", centred, centred), axes=[-1], keepdims=1)
        spread = op("Sqrt", op("Add", variance, self.number(f"{name}.eps", layer.eps)))
        scaled = op("Mul", op("Div", centred, spread), self.constant(f"{name}.weight", p["weight"]))
        return op("Add", scaled, self.constant(f"{name}.bias", p["bias"]))

    def convolution(self, name: str, layer: nn.Conv1d, x: str) -> str:
        """Convolve ``[B,F,T]``."""
        self._refuse_lengths(name, layer)
        span = (layer.kernel_size - 1) * layer.dilation
        pads = {"same": [span // 2, span - span // 2], "causal": [span, 0], "valid": [0, 0]}
        p = layer.state_dict()
        inputs = [self.node("Transpose", [x], f"{name}.in", perm=[1, 2, 0])]
        inputs.append(self.constant(f"{name}.weight", p["weight"]))
        if "bias" in p:
            inputs.append(self.constant(f"{name}.bias", p["bias"]))
        self.width = layer.out_channels
        y = self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=[layer.kernel_size],
            strides=[layer.stride],
            dilations=[layer.dilation],
            pads=pads[layer.padding],
        )
        return str(self.node("Transpose", [y], f"{name}.out", perm=[2, 0, 1]))

    def pool(self, name: str, layer: nn.Pool, x: str) -> str:
        """Reduce the axis of time."""
        self._refuse_lengths(name, layer)
        if layer.kind == "last":
            return str(self.node("Gather", [x, self.constant(f"{name}.at", np.int64(-1))], name))
        kind = {"mean": "ReduceMean", "max": "ReduceMax"}.get(layer.kind)
        if kind is None:
            raise ValueError(f"{name}: expected Pool 'mean', 'max' or 'last', got {layer!r}")
        return str(self.node(kind, [x], name, axes=[0], keepdims=0))

    def _refuse_lengths(self, name: str, layer: nn.Layer) -> None:
        if self.lengths:
            raise ValueError(f"lengths: expected False with {layer!r} ({name}), got True")

    def residual(self, name: str, layer: Any, x: str) -> str:
        """Add what a layer gives to x."""
        width = self.width
        y = self.layer(f"{name}.layer", layer.layer, x)
        self.width = width
        return str(self.node("Add", [x, y], name))

    def concat(self, name: str, layer: Any, x: str) -> str:
        """Join what layers give."""
        width, outs, widths = self.width, [], []
        for k, inner in enumerate(layer.layers):
            self.width = width
            outs.append(self.layer(f"{name}.layers.{k}", inner, x))
            widths.append(self.width)
        known = [n for n in widths if isinstance(n, int)]
        self.width = sum(known) if len(known) == len(widths) else f"{name}.features"
        return str(self.node("Concat", outs, name, axis=-1))

    def last_state(self, name: str, layer: LastState, x: str) -> str:
        """Give the final h of the last layer."""
        inner: Any = layer.layer
        return self.recurrent(f"{name}.layer", inner, x, last=True)

    def reversed(self, name: str, layer: Reversed, x: str) -> str:
        """Run from the last step to the first."""
        inner: Any = layer.layer
        if inner.num_layers > 1 or inner.bidirectional:
            raise ValueError(f"{name}: expected one layer in one direction, got {inner!r}")
        return self.recurrent(f"{name}.layer", inner, x, direction="reverse")

    # -- recurrent layers --------------------------------------------------------------------------

    def recurrent(
        self, name: str, layer: Any, x: str, last: bool = False, direction: str = ""
    ) -> str:
        """Add a node for each layer of the stack, ``[T,D,B,H]`` brought to ``[T,B,D*H]``."""
        kind = next(k for k in KINDS if isinstance(layer, getattr(nn, k)))
        if layer.proj_size or getattr(layer, "layer_norm", False):
            what = f"proj_size={layer.proj_size}" if layer.proj_size else "layer_norm=True"
            raise ValueError(f"{name}: expected a cell that ONNX has, got {what}")
        d, p, h_n = layer._directions, layer.state_dict(), ""
        direction = direction or ("bidirectional" if d == 2 else "forward")
        for k in range(layer.num_layers):
            own = name if layer.num_layers == 1 else f"{name}.{k}"
            inputs = [x, *self._weights(kind, own, layer, p, k)]
            inputs += [self.lengths, *self._starts(kind, own, layer, p, k, x)]
            inputs += [self._peepholes(own, layer, p, k)]
            while not inputs[-1]:
                inputs.pop()
            given: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": direction}
            if kind == "GRU":
                given["linear_before_reset"] = int(layer.reset_after)
            given |= _functions_of(name, kind, layer)
            outs = self.node(kind, inputs, own, 3 if kind == "LSTM" else 2, **given)
            self._ends(own, layer, outs[1:])
            h_n = outs[1]
            x = self._joined(own, outs[0], d)
        self.width = d * layer.hidden_size
        if not last:
            return x
        h = self.node("Transpose", [h_n], f"{name}.final", perm=[1, 0, 2])
        shape = self.constant(f"{name}.shape", np.array([0, -1]))
        return str(self.node("Reshape", [h, shape], f"{name}.joined"))

    def _joined(self, name: str, y: str, d: int) -> str:
        if d == 1:
            axes = self.constant(f"{name}.axis", np.array([1]))
            return str(self.node("Squeeze", [y, axes], f"{name}.squeeze"))
        y = self.node("Transpose", [y], f"{name}.transpose", perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}.shape", np.array([0, 0, -1]))
        return str(self.node("Reshape", [y, shape], f"{name}.reshape"))

    def _suffixes(self, layer: Any, k: int) -> list[str]:
        return [f"_l{k}{end}" for end in ("", "_reverse")[: layer._directions]]

    def _weights(self, kind: str, name: str, layer: Any, p: dict[str, Array], k: int) -> list[str]:
        ends = self._suffixes(layer, k)

        def stacked(what: str) -> Array:
            return np.stack([reordered(kind, p[what + end], back=True) for end in ends])

        out = [self.constant(f"{name}.W", stacked("weight_ih"))]
        out.append(self.constant(f"{name}.R", stacked("weight_hh")))
        if not layer.bias:
            return [*out, ""]
        both = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1)
        return [*out, self.constant(f"{name}.B", both)]

    def _peepholes(self, name: str, layer: Any, p: dict[str, Array], k: int) -> str:
        if not getattr(layer, "peephole", False):
            return ""
        rows = [
            p["weight_peephole" + end][[0, 2, 1]].reshape(-1) for end in self._suffixes(layer, k)
        ]
        return self.constant(f"{name}.P", np.stack(rows))

    def _starts(
        self, kind: str, name: str, layer: Any, p: dict[str, Array], k: int, x: str
    ) -> list[str]:
        """Return the initial states: inputs of the model, learned ones, or none."""
        value = self.onnx.helper.make_tensor_value_info
        kinds, d = ("h", "c") if kind == "LSTM" else ("h",), layer._directions
        out: list[str] = []
        for what in kinds:
            if self.states:
                label = self.unique(f"{name}.initial_{what}")
                shape = [d, "batch", layer.hidden_size]
                self.inputs.append(value(label, _FLOATS[self.dtype], shape))
                out.append(label)
            elif layer.learned_state:
                rows = np.stack([p[f"initial_{what}{end}"] for end in self._suffixes(layer, k)])
                out.append(self._repeated(f"{name}.initial_{what}", rows[:, None], x))
        return out or [""] * len(kinds)

    def _repeated(self, name: str, rows: Array, x: str) -> str:
        """Return an initial state ``[D,1,H]``, once for each row of the batch."""
        shape = self.node("Shape", [x], f"{name}.of")
        one = self.constant(f"{name}.one", np.array([1]))
        batch = self.node("Gather", [shape, one], f"{name}.batch", axis=0)
        ends = [self.constant(f"{name}.n", np.array([n])) for n in (rows.shape[0], rows.shape[2])]
        target = self.node("Concat", [ends[0], batch, ends[1]], f"{name}.shape", axis=0)
        return str(self.node("Expand", [self.constant(name, rows), target], f"{name}.repeated"))

    def _ends(self, name: str, layer: Any, finals: list[str]) -> None:
        """Make final states outputs of the model."""
        value = self.onnx.helper.make_tensor_value_info
        for what, final in zip("hc", finals if self.states else ()):
            label = self.unique(f"{name}.final_{what}")
            self.nodes.append(self.onnx.helper.make_node("Identity", [final], [label]))
            shape = [layer._directions, "batch", layer.hidden_size]
            self.outputs.append(value(label, _FLOATS[self.dtype], shape))


def _functions_of(name: str, kind: str, layer: Any) -> dict[str, Any]:
    """Return the attributes that say functions, clip and coupled gates."""
    out: dict[str, Any] = {}
    if kind == "RNN" or layer._scalars:
        parts = [_function(name, getattr(layer, option)) for option in FUNCTIONS[kind]]
        parts *= layer._directions
        out["activations"] = [theirs for theirs, _ in parts]
        for k, parameter in enumerate(("alpha", "beta")):
            values = [numbers[k] for _, numbers in parts if len(numbers) > k]
            if values:
                out[f"activation_{parameter}"] = values
    if layer.clip is not None:
        out["clip"] = layer.clip
    if getattr(layer, "coupled_gates", False):
        out["input_forget"] = 1
    return out


def _function(name: str, function: Function) -> tuple[str, list[float]]:
    """Return ONNX' name of a function, and its parameters."""
    own, *numbers = (function,) if isinstance(function, str) else function
    if own == "linear":
        return "Affine", [1.0, 0.0]
    if own not in FUNCTION_NAMES:
        raise ValueError(f"{name}: expected functions that ONNX has, got {own!r}")
    return FUNCTION_NAMES[str(own)][0], [float(v) for v in numbers]


_WRITERS: list[tuple[type, Callable[..., str]]] = [
    (nn.RNN, _Writer.recurrent),
    (nn.LSTM, _Writer.recurrent),
    (nn.GRU, _Writer.recurrent),
    (nn.Linear, _Writer.linear),
    (nn.Embedding, _Writer.embedding),
    (nn.Dropout, _Writer.dropout),
    (nn.Activation, _Writer.activation),
    (nn.Softmax, _Writer.softmax),
    (nn.LayerNorm, _Writer.norm),
    (nn.Conv1d, _Writer.convolution),
    (nn.Pool, _Writer.pool),
    (nn.Residual, _Writer.residual),
    (nn.Concat, _Writer.concat),
    (LastState, _Writer.last_state),
    (Reversed, _Writer.reversed),
]


def _leaf(layer: Any) -> Any:
    """Return the first layer that is no model of others."""
    while True:
        inner = layer._children()
        if not inner:
            return layer
        layer = next(iter(inner.values()))


def _width_of(layer: Any) -> int | None:
    """Return the length of a layer's inputs; None where it takes any, or whole numbers."""
    for name in _WIDTHS:
        if hasattr(layer, name):
            return int(getattr(layer, name))
    for inner in layer._children().values():
        width = _width_of(inner)
        keeps = isinstance(inner, (nn.Activation, nn.Dropout, nn.Softmax))
        if width is not None or (isinstance(layer, nn.Sequential) and not keeps):
            return width
    return None


def to_onnx(
    layer: nn.Layer,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    states: bool = False,
) -> Any:
    """Return a layer or a model as an ONNX model, and write it where a path is given.

    The model has opset 14, the input "x" and the output "y", shaped as in a call, with free axes
    "time" and "batch"; that of outputs that are fewer than the steps is "steps". Recurrent layers
    are nodes of layout 0, one for each layer of a stack; a reset-after GRU has
    ``linear_before_reset=1``. What ONNX cannot hold is an error that names it: a projected or
    layer-norm LSTM, attention, models of your own.

    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(rnn=ost.nn.LSTM(3, 5, rng=0), head=ost.nn.Linear(5, 2, rng=1))
    >>> try:
    ...     kinds = [node.op_type for node in ost.to_onnx(model).graph.node]
    ... except ImportError:  # without onnx
    ...     kinds = ["LSTM", "Squeeze", "MatMul", "Add"]
    >>> kinds
    ['LSTM', 'Squeeze', 'MatMul', 'Add']

    Args:
        layer: a layer or a `Sequential`; or a `Graph`, which is written as it is, with its own
            opset, inputs and outputs.
        path: the file to write, whole or, on an error, not at all. None: none.
        lengths: whether "lengths", int32 ``[B]``, is an input too.
        states: whether initial states ``{name}.initial_h [D,B,H]`` (and ``_c``) of every recurrent
            layer are inputs, and ``{name}.final_h`` outputs. Learned initial states are those of
            the caller then.

    Returns:
        The ``onnx.ModelProto``, checked by ``onnx.checker``.

    Raises:
        ImportError: onnx is not installed.
        OSError: the file cannot be written.
        TypeError: something else than a layer, a path, or True and False.
        ValueError: a layer that ONNX cannot hold.
    """
    if not isinstance(layer, nn.Layer):
        raise TypeError(f"layer: expected a layer, got a {type(layer).__name__}")
    if path is not None:
        _files.require_path(path)
    lengths, states = _check.flag("lengths", lengths), _check.flag("states", states)
    onnx = require("onnx", "onnx", "to_onnx")
    value = onnx.helper.make_tensor_value_info
    if isinstance(layer, Graph):
        return _of_graph(onnx, layer, path, lengths or states)
    writer = _Writer(onnx, layer.dtype, "lengths" if lengths else "", states)
    writer._names |= {"x", "y", "lengths"}
    leaf, first = _leaf(layer), bool(layout_of(layer))
    ids = isinstance(leaf, nn.Embedding)
    width = _width_of(layer) or writer.width
    axes: list[Any] = ["batch", "time"] if first else ["time", "batch"]
    code = _FLOATS[layer.dtype]
    shape = axes if ids else [*axes, width]
    inputs = [value("x", _INT64 if ids else code, shape)]
    if lengths:
        inputs.append(value("lengths", 6, ["batch"]))
    perm = [1, 0] if ids else [1, 0, 2]
    x = writer.node("Transpose", ["x"], "input", perm=perm) if first else "x"
    writer.width = width
    y = writer.layer("", layer, x)
    pooled = layer.reduces_time
    if first and not pooled:
        y = writer.node("Transpose", [y], "output", perm=[1, 0, 2])
    if y == "x" or not writer.nodes:
        y = writer.node("Identity", [y], "output")
    _named(writer, y)
    if any(isinstance(m, nn.Conv1d) and m._makes_fewer for m in layers_of(layer)):
        axes = ["steps" if n == "time" else n for n in axes]
    axes = ["batch", writer.width] if pooled else [*axes, writer.width]
    outputs = [value("y", code, axes), *writer.outputs]
    return _written(writer, inputs + writer.inputs, outputs, _OPSET, path)


def _of_graph(onnx: Any, graph: Graph, path: Any, more: bool) -> Any:
    """Return the model of a graph, which has lengths and states among its inputs if at all."""
    if more:
        raise ValueError("lengths, states: expected False for a Graph, whose inputs are its own")
    writer = _Writer(onnx, graph.dtype, "", False)
    return _written(writer, *write_graph(writer, graph, _functions_of), graph.opset, path)


def _written(writer: _Writer, inputs: list[Any], outputs: list[Any], opset: int, path: Any) -> Any:
    """Return a checked model, and write it where a path is given."""
    onnx = writer.onnx
    graph = onnx.helper.make_graph(writer.nodes, "ostinato", inputs, outputs, writer.constants)
    model = onnx.helper.make_model(
        graph,
        producer_name="ostinato",
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=_IR,
    )
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        with _files.atomic_write(path) as f:
            f.write(model.SerializeToString())
    return model


_WIDTHS = ("input_size", "in_features", "in_channels", "size")


def _named(writer: _Writer, y: str) -> None:
    """Give the name "y" to the output of a model."""
    for node in writer.nodes:
        for names in (node.input, node.output):
            for k, n in enumerate(names):
                if n == y:
                    names[k] = "y"


readable(globals())
