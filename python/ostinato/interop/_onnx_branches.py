"""Read an ONNX graph that is no chain: every node as a layer or a function of a `Graph`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from .._check import Array
from ._graph import Graph as Model
from ._graph import captured
from ._graph_table import ATTRIBUTES, OPERATORS, VALUES
from ._imported import Entry, shapes
from ._onnx_constants import Zeros
from ._onnx_graph import Graph, node_name, prefix_of
from ._onnx_nodes import KINDS, QUANTIZED, Made

LARGEST = 2**16  # whole numbers of a constant

Make = Callable[[], nn.Layer]


class Taken(NamedTuple):
    """What became of a node.

    Attributes:
        op: of the graph's node.
        inputs: names, where they are not those of the ONNX node.
        at: its attributes.
        make: makes its layer, if it is one.
        arrays: the weights that went into it.
        outputs: names, where they are not those of the ONNX node.
    """

    op: str
    inputs: list[str]
    at: dict[str, Any]
    make: Make | None = None
    arrays: Mapping[str, Array] | None = None
    outputs: list[str] | None = None


class _Refused(ValueError):
    """What a graph cannot be; the message follows the name of the node."""


def _read_in(graph: Graph) -> Iterator[str]:
    """Yield what the nodes of a graph read, and those of the graphs in them."""
    for node in graph.nodes:
        yield from node.input
        for _, inner in graph.inner(node):
            yield from _read_in(inner)
            yield from (str(o.name) for o in inner.graph.output)


def _same(a: Any, b: Any) -> bool:
    """Whether two constants are the same array."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return bool(a == b)
    return a.dtype == b.dtype and np.array_equal(a, b)


class Branches:
    """Read all nodes of a graph; `refused` names those that cannot be read.

    Args:
        graph: the graph with its constants.
        made: recurrent layers by where their nodes are and the first outputs; None where two nodes
            have the same.
        opset: of the operators without a domain.
    """

    def __init__(self, graph: Graph, made: Mapping[str, Made | None], opset: int) -> None:
        self.graph, self.made, self.opset = graph, made, opset
        self.entries: list[Entry] = []
        self.refused: list[str] = []
        self._values: dict[str, Any] = dict(graph.values)
        self._alias: dict[str, str] = {}
        self._nodes: list[dict[str, Any]] = []
        self._fills: list[dict[str, Any]] = []  # of constants, which come before all other nodes
        self._layers: dict[str, Make] = {}
        self._parameters: dict[str, Array] = {}
        self._numbers: dict[str, Array] = {}
        self._constants: dict[str, str] = {}
        self._names: set[str] = set()
        self._prefix = ""  # of the branch that is read
        self._outputs = [str(o.name) for o in graph.graph.output]
        self._readers = Counter(self._outputs)
        self._readers.update(_read_in(graph))
        self._made: set[str] = set()  # the outputs of nodes so far
        self._merged: set[str] = set()  # sums that are biases of the product before
        for node in graph.nodes:
            self._read(node)

    # -- nodes -------------------------------------------------------------------------------------

    def _read(self, node: Any, depth: int = 0) -> None:
        """Read a node; what it cannot be is noted."""
        outputs = [n for n in node.output if n]
        if all(n in self._values for n in outputs) or set(outputs) & self._merged:
            return
        name, op = self._prefix + node_name(node), str(node.op_type)
        plain = node.domain in ("", "ai.onnx")
        try:
            if again := self._made & set(outputs):
                raise _Refused(f"expected a name of its own, got {min(again)!r} of another branch")
            self._made.update(outputs)
            if op == "If" and plain and depth < 20:
                self._branch(name, node, depth)
                return
            follow = getattr(self, "_op_" + op.lower(), None) if plain else None
            if op == QUANTIZED or (plain and op in KINDS):
                follow = self._recurrent
            if follow is None and not (plain and op in OPERATORS):
                full = ".".join(n for n in (node.domain, op) if n)
                self.refused.append(f"{full} ({name})")
                return
            taken = (follow or self._plain)(name, node, self.graph.given(node))
            self._take(name, op, node, taken)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            said = str(e) if isinstance(e, ValueError) else f"expected another {op}, got {e!r}"
            self.refused.append(said if said.startswith(f"{name}: ") else f"{name}: {said}")
            self._alias.update({n: n for n in outputs})

    def _take(self, name: str, op: str, node: Any, taken: Taken | None) -> None:
        if taken is None:
            self.entries.append(Entry(name, op, "", "nothing, as in inference"))
            return
        inputs = [self._name(n) for n in taken.inputs]
        outputs = list(node.output) if taken.outputs is None else taken.outputs
        key = self._key(name)
        made: dict[str, Any] = {
            "op": taken.op,
            "name": name,
            "inputs": inputs,
            "outputs": outputs,
            "at": _plain_attributes(name, taken.at),
        }
        became = "a function"
        if taken.make is not None:
            made["layer"], self._layers[key] = key, taken.make
            became = f"{taken.op} {key!r}"
        self._nodes.append(made)
        found = "" if taken.arrays is None else shapes(taken.arrays)
        self.entries.append(Entry(name, op, found, became))

    def _key(self, name: str) -> str:
        """Return a name for a layer or a parameter, without dots and slashes."""
        key = re.sub(r"[^0-9A-Za-z_]+", "_", name).strip("_") or "node"
        while key in self._names:
            key += "_"
        self._names.add(key)
        return key

    def _branch(self, name: str, node: Any, depth: int) -> None:
        """Read the branch that a constant condition takes, or both where it is computed."""
        branches = dict(self.graph.inner(node))
        on = self._constant(node.input[0])
        if on is None:
            self._both(name, node, branches, depth)
            return
        which = "then_branch" if on.reshape(-1)[0] else "else_branch"
        inner = branches[which]
        self._within(node, which, inner, depth)
        self._alias.update(zip(node.output, (str(o.name) for o in inner.graph.output)))

    def _within(self, node: Any, which: str, inner: Graph, depth: int) -> None:
        """Read the nodes of a branch of a node."""
        for one, value in inner.values.items():
            there = self._values.setdefault(one, value)
            if one in self._made or not (there is value or _same(there, value)):
                raise _Refused(f"expected a name of its own, got {one!r} of another branch")
        before, self._prefix = self._prefix, prefix_of(self._prefix, node, which)
        try:
            for one in inner.nodes:
                self._read(one, depth + 1)
        finally:
            self._prefix = before

    def _both(self, name: str, node: Any, branches: Mapping[str, Graph], depth: int) -> None:
        """Read a node that chooses one of its branches when it runs."""
        outer, parts = self._nodes, []
        for which in ("then_branch", "else_branch"):
            self._nodes = []
            try:
                self._within(node, which, branches[which], depth)
                outputs = [self._name(str(o.name)) for o in branches[which].graph.output]
                parts.append({"nodes": self._nodes, "outputs": outputs})
            finally:
                self._nodes = outer
        inputs = [self._name(str(node.input[0])), *captured(parts)]
        made = {"op": "If", "name": name, "inputs": inputs, "outputs": list(node.output)}
        self._nodes.append({**made, "at": {}, "branches": parts})
        self.entries.append(Entry(name, "If", "", "a choice of two branches"))

    # -- values ------------------------------------------------------------------------------------

    def _constant(self, name: str) -> Array | None:
        while name in self._alias and self._alias[name] != name:
            name = self._alias[name]
        value = self._values.get(name)
        return value if isinstance(value, np.ndarray) else None

    def _name(self, name: str) -> str:
        """Return the name that a value has in the graph; constants become parts of it."""
        while name in self._alias and self._alias[name] != name:
            name = self._alias[name]
        if not name or name not in self._values:
            return name
        if name not in self._constants:
            self._constants[name] = self._held(name, self._values[name])
        return self._constants[name]

    def _held(self, name: str, value: Any) -> str:
        """Hold a constant as numbers or as a parameter; return its name."""
        if isinstance(value, Zeros) or value.dtype.kind not in "fiub":
            raise _Refused(f"{name}: expected an array of numbers, got {value!r:.80}")
        if value.dtype.kind == "f" and value.size > 1:
            if all(n == 1 or step == 0 for n, step in zip(value.shape, value.strides)):
                shape = name + ".shape"
                self._numbers[name] = np.array(value.reshape(-1)[0])
                self._numbers[shape] = np.array(value.shape, np.int64)
                made = {"op": "Expand", "name": name, "inputs": [name, shape]}
                self._fills.append({**made, "outputs": [name + ".filled"]})
                return name + ".filled"
            key = self._key(name)
            self._parameters[key] = value
            return "@" + key
        if value.size > LARGEST:
            raise _Refused(
                f"{name}: expected at most {LARGEST} constant whole numbers, got {value.size}"
            )
        self._numbers[name] = value
        return name

    # -- operators ---------------------------------------------------------------------------------

    def _plain(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        others = set(given) - ATTRIBUTES.get(node.op_type, set()) - {"outputs"}
        if others:
            raise _Refused(f"expected {node.op_type} without {', '.join(sorted(others))}, got one")
        for n, known in VALUES.get(node.op_type, {}).items():
            if n in given and given[n] not in known:
                raise _Refused(
                    f"expected {node.op_type} with {n} one of {', '.join(map(str, known))}, got "
                    f"{given[n]}"
                )
        return Taken(node.op_type, list(node.input), given)

    def _recurrent(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        made = self.made.get(self._prefix + next(n for n in node.output if n))
        if made is None:
            raise _Refused("expected a node with a name of its own and constant weights")
        inputs = [node.input[0]]
        states = [made.inputs.get(n, "") for n in ("initial_h", "initial_c")]
        inner: Any = made.layer
        inner = getattr(inner, "layer", inner)
        for k, state in enumerate(states):
            if state and self._constant(state) is not None:
                states[k] = ""  # zeros, or those that the layer has
        if inner.learned_state and any(states):
            raise _Refused("expected initial states that are constants or inputs, got one of each")
        lengths = made.inputs.get("sequence_lens", "")
        inputs = _trimmed([node.input[0], lengths, *states])
        return Taken("Recurrent", inputs, {}, lambda: made.layer, made.arrays)

    def _op_gather(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        table = self._constant(node.input[0])
        indexed = self._constant(node.input[1]) is None
        if not indexed or table is None or table.ndim != 2 or given.get("axis", 0):
            return self._plain(name, node, given)
        if table.dtype.kind != "f":
            return self._plain(name, node, given)
        arrays = {"weight": table}

        def make() -> nn.Layer:
            return _loaded(nn.Embedding(*table.shape, dtype=table.dtype), arrays)

        return Taken("Embedding", [node.input[1]], {}, make, arrays)

    def _op_matmul(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        weight = self._constant(node.input[1])
        if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
            return self._plain(name, node, given)
        outputs, bias = [str(node.output[0])], self._bias_behind(node.output[0], weight.shape[1])
        if bias is not None:
            outputs = [str(bias[0])]
        return self._dense(node.input[0], weight, None if bias is None else bias[1], outputs)

    def _bias_behind(self, name: str, width: int) -> tuple[str, Array] | None:
        """Return the sum that alone reads a product, with the bias that it adds."""
        if self._readers[name] != 1:
            return None
        for node in self.graph.nodes:
            if node.op_type == "Add" and name in node.input:
                other = node.input[0] if node.input[1] == name else node.input[1]
                bias = self._constant(other)
                if bias is not None and bias.shape == (width,) and bias.dtype.kind == "f":
                    self._merged.add(node.output[0])
                    return node.output[0], bias
        return None

    def _dense(self, x: str, weight: Array, bias: Array | None, outputs: list[str]) -> Taken:
        arrays = {"weight": np.ascontiguousarray(weight.T)}
        if bias is not None:
            arrays["bias"] = np.broadcast_to(bias, (weight.shape[1],))

        def make() -> nn.Layer:
            inputs, out = weight.shape
            return _loaded(nn.Linear(inputs, out, bias is not None, dtype=weight.dtype), arrays)

        return Taken("Linear", [x], {}, make, arrays, outputs)

    def _op_gemm(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        weight = self._constant(node.input[1])
        there = len(node.input) > 2 and bool(node.input[2])
        bias = self._constant(node.input[2]) if there else None
        odd = bias is None if there else False
        if bias is not None:
            odd = bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] > 1)
        if weight is None or weight.ndim != 2 or given.get("transA", 0) or odd:
            return self._plain(name, node, given)
        weight = weight.T if given.get("transB", 0) else weight
        weight = weight * weight.dtype.type(given.get("alpha", 1.0))
        if bias is not None:
            bias = bias.reshape(-1) * bias.dtype.type(given.get("beta", 1.0))
        return self._dense(node.input[0], weight, bias, [str(node.output[0])])

    def _op_layernormalization(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        if any(self._readers[n] for n in list(node.output)[1:]):
            raise _Refused("expected its first output to be read alone")
        eps, scale = float(given.get("epsilon", 1e-5)), self._constant(node.input[1])
        there = len(node.input) > 2 and bool(node.input[2])
        bias = self._constant(node.input[2]) if there else None
        known = scale is not None and scale.ndim == 1 and (bias is not None or not there)
        outputs = [str(node.output[0])]
        if given.get("axis", -1) != -1 or not known or scale is None:
            return Taken(
                "LayerNormalization",
                list(node.input),
                {"axis": given.get("axis", -1), "epsilon": eps},
                outputs=outputs,
            )
        arrays = {"weight": scale, "bias": np.zeros_like(scale) if bias is None else bias}

        def make() -> nn.Layer:
            return _loaded(nn.LayerNorm(len(scale), eps=eps, dtype=scale.dtype), arrays)

        return Taken("LayerNorm", [node.input[0]], {}, make, arrays, outputs)

    def _op_batchnormalization(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        parts = [self._constant(n) for n in list(node.input)[1:5]]
        scale, bias, mean, var = parts
        if given.get("training_mode", 0) or any(self._readers[n] for n in list(node.output)[1:]):
            raise _Refused("expected a BatchNormalization of inference, got one of training")
        if scale is None or bias is None or mean is None or var is None:
            raise _Refused("expected constants, got numbers that are computed")
        factor = scale / np.sqrt(var + var.dtype.type(given.get("epsilon", 1e-5)))
        arrays = {"scale": factor, "shift": bias - mean * factor}
        names = []
        for what, value in arrays.items():
            key = self._key(f"{name}_{what}")
            self._parameters[key] = value
            names.append("@" + key)
        outputs = [str(node.output[0])]
        return Taken("BatchNormalization", [node.input[0], *names], {}, None, arrays, outputs)

    def _op_conv(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        weight = self._constant(node.input[1])
        there = len(node.input) > 2 and bool(node.input[2])
        bias = self._constant(node.input[2]) if there else None
        pads = [int(k) for k in given.get("pads", (0, 0))]
        single = weight is not None and weight.ndim == 3 and given.get("group", 1) == 1
        usual = given.get("auto_pad", "NOTSET") == "NOTSET" and min(pads) >= 0
        if weight is None or not single or not usual or (there and bias is None):
            return self._plain(name, node, given)
        arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
        out, channels, size = weight.shape
        stride, dilation = (int(given.get(n, [1])[0]) for n in ("strides", "dilations"))

        def make() -> nn.Layer:
            made = nn.Conv1d(
                channels,
                out,
                size,
                stride=stride,
                padding="valid",
                dilation=dilation,
                bias=bias is not None,
                batch_first=True,
                dtype=weight.dtype,
            )
            return _loaded(made, arrays)

        return Taken("Conv1d", [node.input[0]], {"pads": pads}, make, arrays)

    def _op_resize(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        """Hold the scales as numbers, which nothing trains."""
        taken, inputs = self._plain(name, node, given), list(node.input)
        place = 1 if len(inputs) == 2 else 2
        scales = self._constant(inputs[place]) if len(inputs) > place else None
        if scales is not None:
            inputs[place] += ".scales"
            self._numbers[inputs[place]] = scales
        if len(inputs) > 2:
            inputs[1] = ""  # what is cut out, where anything is
        return taken._replace(inputs=inputs)

    _op_upsample = _op_resize

    def _op_maxpool(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        if any(self._readers[n] for n in list(node.output)[1:]):
            raise _Refused("expected its first output to be read alone, got one whose places are")
        return self._plain(name, node, given)._replace(outputs=[str(node.output[0])])

    def _op_softmax(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        new = self.opset >= 13
        at = {"axis": int(given.get("axis", -1 if new else 1)), "flat": not new}
        return Taken(node.op_type, list(node.input), at)

    _op_logsoftmax = _op_softmax

    def _op_identity(self, name: str, node: Any, given: dict[str, Any]) -> None:
        self._alias[str(node.output[0])] = str(node.input[0])

    def _op_dropout(self, name: str, node: Any, given: dict[str, Any]) -> None:
        training = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        computed = len(node.input) > 2 and bool(node.input[2]) and training is None
        masks = any(self._readers[n] for n in list(node.output)[1:])
        if computed or masks or (training is not None and training.any()):
            raise _Refused("expected a Dropout of inference, got one of training")
        self._op_identity(name, node, given)

    def _op_cast(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        kinds = self.graph.onnx.TensorProto
        real = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
        whole = {kinds.INT32: "int32", kinds.INT64: "int64", kinds.BOOL: "bool"}
        to = given["to"]
        if to not in real and to not in whole:
            raise _Refused(f"expected a Cast to real or whole numbers, got to={to}")
        return Taken("Cast", list(node.input), {"dtype": whole.get(to, "real")})

    def _op_constantofshape(self, name: str, node: Any, given: dict[str, Any]) -> Taken:
        value = np.asarray(given.get("value", np.float32(0))).reshape(-1)
        kind = "real" if value.dtype.kind == "f" else value.dtype.name
        return Taken("ConstantOfShape", list(node.input), {"value": value[0].item(), "dtype": kind})

    # -- the model ---------------------------------------------------------------------------------

    def model(self) -> Model:
        """Return the graph as a model.

        Raises:
            ValueError: nodes that cannot be read; the message names all of them.
        """
        if self.refused:
            raise ValueError(
                f"graph: expected operators of a recurrent model, got {'; '.join(self.refused)}"
            )
        layers = {n: make() for n, make in self._layers.items()}
        outputs = [self._name(n) for n in self._outputs]
        dtypes = [layer.dtype for layer in layers.values()]
        dtypes += [a.dtype for a in self._parameters.values()]
        dtype = np.result_type(*dtypes) if dtypes else np.dtype(np.float32)
        model = Model(
            [*self._fills, *self._nodes],
            layers,
            parameters={n: list(a.shape) for n, a in self._parameters.items()},
            numbers={n: _numbers(a) for n, a in self._numbers.items()},
            inputs=self._inputs(dtype),
            outputs=outputs,
            opset=self.opset,
            dtype=dtype,
        )
        with model.write() as p:
            for n, a in self._parameters.items():
                p[f"weights.{n}"][...] = a
        return model

    def _inputs(self, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
        """Return what is known of each input."""
        out = []
        helper = self.graph.onnx.helper
        for i in self.graph.graph.input:
            if i.name in self.graph.values:
                continue
            given = i.type.tensor_type
            try:
                kind = np.dtype(helper.tensor_dtype_to_np_dtype(given.elem_type))
            except KeyError:
                raise ValueError(f"{i.name}: expected an array, got another input") from None
            name = kind.name if kind.kind in "iub" else dtype.name
            sizes = [d.dim_value if d.dim_value > 0 else None for d in given.shape.dim]
            out.append({"name": str(i.name), "dtype": name, "shape": sizes})
        if not out:
            raise ValueError("graph: expected an input, got none")
        return out


def _loaded(layer: nn.Layer, arrays: Mapping[str, Array]) -> nn.Layer:
    layer.load_state_dict(arrays)
    return layer


def _trimmed(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names.pop()
    return names


def _numbers(a: Array) -> dict[str, Any]:
    """Return an array as a file can hold it."""
    return {"dtype": a.dtype.name, "shape": list(a.shape), "values": a.reshape(-1).tolist()}


def _plain_attributes(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes that a file can hold."""
    out = {}
    for n, value in given.items():
        if isinstance(value, (list, tuple)):
            value = list(value)
        good = isinstance(value, (bool, int, float, str)) or (
            isinstance(value, list) and all(isinstance(v, (int, float, str)) for v in value)
        )
        if not good:
            raise _Refused(f"{name}: expected an attribute {n} of numbers or text")
        out[n] = value
    return out
