"""Write an `interop.Graph` as the ONNX graph that it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import nn
from ._graph import Graph
from ._graph_table import OPERATORS
from ._layers import Reversed
from ._onnx_nodes import KINDS

_KINDS = {"float32": 1, "float64": 11, "int32": 6, "int64": 7, "bool": 9}
_OURS = ("outputs", "dtype", "flat")  # attributes that ONNX does not have

# Attributes that are inputs since an opset, in their order behind the first input.
_INPUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "Clip": (11, ("min", "max")),
    "Pad": (11, ("pads", "value")),
    "Slice": (10, ("starts", "ends", "axes")),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), (13, ("axes",))),
    **{op: (18, ("axes",)) for op in OPERATORS if op.startswith("Reduce") and op != "ReduceSum"},
    "Split": (13, ("split",)),
    "Upsample": (9, ("scales",)),
}


def write_graph(
    writer: Any, graph: Graph, functions: Callable[..., dict[str, Any]]
) -> tuple[list[Any], list[Any]]:
    """Add the nodes of a graph to a writer; return the inputs and outputs of the model.

    Args:
        writer: gathers nodes and constants.
        graph: the graph.
        functions: gives the attributes of a recurrent node that say its functions.
    """
    plan = graph._plan
    _Nodes(writer, graph, functions).write()
    value = writer.onnx.helper.make_tensor_value_info
    inputs = []
    for i in plan.inputs:
        shape = [f"{i['name']}_{k}" if n is None else n for k, n in enumerate(i["shape"])]
        inputs.append(value(i["name"], _KINDS[i["dtype"]], shape))
    return inputs, _typed(writer, inputs, plan.outputs, graph.opset)


def _typed(writer: Any, inputs: list[Any], names: list[str], opset: int) -> list[Any]:
    """Return outputs with the types and the numbers of axes that follow from the nodes."""
    helper = writer.onnx.helper
    bare = [helper.make_empty_tensor_value_info(n) for n in names]
    graph = helper.make_graph(writer.nodes, "ostinato", inputs, bare, writer.constants)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    outputs = list(writer.onnx.shape_inference.infer_shapes(whole).graph.output)
    for one in outputs:
        if not one.type.tensor_type.HasField("shape"):
            raise ValueError(
                f"{one.name}: expected an output whose number of axes onnx can infer, got another "
                "one, such as a choice between different numbers of axes"
            )
    return outputs


def _made(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that nodes make, those of branches included."""
    inner = [one for node in nodes for b in node.get("branches", ()) for one in b["nodes"]]
    return [n for node in nodes for n in node["outputs"]] + (_made(inner) if inner else [])


class _Nodes:
    """Write nodes with the names of the graph's values.

    Args:
        writer: gathers nodes and constants.
        graph: the graph.
        functions: gives the attributes of a recurrent node that say its functions.
    """

    def __init__(self, writer: Any, graph: Graph, functions: Callable[..., dict[str, Any]]) -> None:
        self.writer, self.graph, self.plan, self.functions = writer, graph, graph._plan, functions
        made = _made(self.plan.nodes)
        writer._names |= {*(i["name"] for i in self.plan.inputs), *made, *self.plan.outputs}
        self.names: dict[str, str] = {}
        state = graph.state_dict()
        for n in graph.weights:
            self.names["@" + n] = writer.constant(n, state[f"weights.{n}"])
        for n, a in self.plan.numbers.items():
            self.names[n] = writer.constant(n, a)

    def write(self) -> None:
        """Write all nodes, and outputs that no node makes."""
        for node in self.plan.nodes:
            self._node(node)
        for n in self.plan.outputs:
            if n in self.names:
                self._add("Identity", [self.names[n]], [n], f"{n}.constant")

    def _node(self, node: Mapping[str, Any]) -> None:
        inputs = [self.names.get(n, n) for n in node["inputs"]]
        special = getattr(self, "_op_" + node["op"].lower(), None)
        (special or self._plain)(node, inputs)

    def _add(
        self, kind: str, inputs: list[str], outputs: list[str], name: str, **given: Any
    ) -> None:
        unique = self.writer.unique(name)
        made = self.writer.onnx.helper.make_node(kind, inputs, outputs, unique, **given)
        self.writer.nodes.append(made)

    def _plain(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        """Write a node with the attributes that it has."""
        at = {n: v for n, v in node["at"].items() if n not in _OURS}
        since, names = _INPUTS.get(node["op"], (0, ()))
        for k, n in enumerate(names):
            if n in at and self.graph.opset >= since:
                real = node["op"] in ("Clip", "Upsample") or n == "value"
                a = np.array(at.pop(n), self.graph.dtype if real else np.int64)
                inputs = [*inputs, *[""] * (k + 2 - len(inputs))]
                inputs[k + 1] = self.writer.constant(f"{node['name']}.{n}", a)
        self._add(node["op"], inputs, node["outputs"], node["name"], **at)

    def _op_if(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        """Write a choice of two branches, each a graph of its own."""
        outer, names, graphs = self.writer.nodes, self.names, {}
        for which, branch in zip(("then_branch", "else_branch"), node["branches"]):
            self.writer.nodes, self.names = [], dict(names)
            self._own_sizes(branch)
            for one in branch["nodes"]:
                self._node(one)
            outputs = [self.writer.unique(f"{node['name']}.{which}") for _ in node["outputs"]]
            for given, made in zip(branch["outputs"], outputs):  # which may be of the graph around
                self._add("Identity", [self.names.get(given, given)], [made], made)
            values = [self.writer.onnx.helper.make_empty_tensor_value_info(n) for n in outputs]
            graphs[which] = self.writer.onnx.helper.make_graph(self.writer.nodes, which, [], values)
        self.writer.nodes, self.names = outer, names
        self._add("If", inputs[:1], node["outputs"], node["name"], **graphs)

    def _own_sizes(self, branch: Mapping[str, Any]) -> None:
        """Write the whole numbers that a branch reads within it: onnx infers shapes by them."""
        read = {n for one in branch["nodes"] for n in one["inputs"] if n in self.plan.numbers}
        for n in sorted(read):
            a = self.plan.numbers[n]
            if a.dtype.kind == "i":
                self.names[n] = self.writer.unique(n)
                value = self.writer.onnx.numpy_helper.from_array(a)
                self._add("Constant", [], [self.names[n]], self.names[n], value=value)

    def _op_cast(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        to = _KINDS[node["at"]["dtype"]]
        self._add("Cast", inputs, node["outputs"], node["name"], to=to)

    def _op_constantofshape(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        at = node["at"]
        value = np.array([at.get("value", 0)], at.get("dtype", "float32"))
        tensor = self.writer.onnx.numpy_helper.from_array(value)
        self._add("ConstantOfShape", inputs, node["outputs"], node["name"], value=tensor)

    def _op_batchnormalization(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        count = self.graph.state_dict()[f"weights.{node['inputs'][1][1:]}"].size
        mean = self.writer.constant(f"{node['name']}.mean", np.zeros(count, self.graph.dtype))
        var = self.writer.constant(f"{node['name']}.var", np.ones(count, self.graph.dtype))
        every = [*inputs, mean, var]
        self._add("BatchNormalization", every, node["outputs"], node["name"], epsilon=0.0)

    # -- layers ------------------------------------------------------------------------------------

    def _weights(self, node: Mapping[str, Any]) -> tuple[str, Any, dict[str, str]]:
        layer = self.graph.layers[node["layer"]]
        key = node["layer"]
        arrays = layer.state_dict()
        return key, layer, {n: self.writer.constant(f"{key}.{n}", a) for n, a in arrays.items()}

    def _op_linear(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        layer: Any = self.graph.layers[node["layer"]]
        key, p = node["layer"], layer.state_dict()
        weight = self.writer.constant(f"{key}.weight", p["weight"].T)
        y = node["outputs"] if "bias" not in p else [self.writer.unique(f"{key}.product")]
        self._add("MatMul", [inputs[0], weight], y, node["name"])
        if "bias" in p:
            bias = self.writer.constant(f"{key}.bias", p["bias"])
            self._add("Add", [y[0], bias], node["outputs"], f"{node['name']}.add")

    def _op_embedding(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        _, _, p = self._weights(node)
        self._add("Gather", [p["weight"], inputs[0]], node["outputs"], node["name"], axis=0)

    def _op_layernorm(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        _, layer, p = self._weights(node)
        every = [inputs[0], p["weight"], p["bias"]]
        at = {"axis": -1, "epsilon": layer.eps}
        self._add("LayerNormalization", every, node["outputs"], node["name"], **at)

    def _op_conv1d(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        _, layer, p = self._weights(node)
        at = {
            "pads": list(node["at"]["pads"]),
            "strides": [layer.stride],
            "dilations": [layer.dilation],
        }
        every = [inputs[0], *(p[n] for n in ("weight", "bias") if n in p)]
        self._add("Conv", every, node["outputs"], node["name"], **at)

    def _op_recurrent(self, node: Mapping[str, Any], inputs: list[str]) -> None:
        layer: Any = self.graph.layers[node["layer"]]
        inner: Any = layer.layer if isinstance(layer, Reversed) else layer
        name, first = node["name"], bool(layer.batch_first)
        if inner.learned_state and first:
            raise ValueError(f"{name}: expected layout 0 with a learned state, got layout 1")
        kind = next(k for k in KINDS if isinstance(inner, getattr(nn, k)))
        p = inner.state_dict()
        x, lengths, *states = [*inputs, "", "", ""][:4]
        if inner.learned_state:
            states = self.writer._starts(kind, name, inner, p, 0, x)
        every = [x, *self.writer._weights(kind, name, inner, p, 0), self._ends(lengths, name)]
        every += [*states[: 2 if kind == "LSTM" else 1]]
        every += [self.writer._peepholes(name, inner, p, 0)] if kind == "LSTM" else []
        while not every[-1]:
            every.pop()
        ways = ("forward", "bidirectional")[inner._directions - 1]
        given: dict[str, Any] = {
            "hidden_size": inner.hidden_size,
            "direction": "reverse" if inner is not layer else ways,
        }
        if kind == "GRU":
            given["linear_before_reset"] = int(inner.reset_after)
        if first:
            given["layout"] = 1
        given |= self.functions(name, kind, inner)
        self._add(kind, every, node["outputs"], name, **given)

    def _ends(self, lengths: str, name: str) -> str:
        """Return lengths as int32, which ONNX asks for."""
        if not lengths:
            return ""
        out = str(self.writer.unique(f"{name}.lengths"))
        self._add("Cast", [lengths], [out], f"{name}.cast", to=_KINDS["int32"])
        return out
