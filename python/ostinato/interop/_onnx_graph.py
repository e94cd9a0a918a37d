"""Follow the values of an ONNX graph from its input to its output, as a chain of layers.

Axes are followed by name, so that a Transpose or a Reshape between two layers is known to be a
change of layout, and anything else is an error that names the node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from .._check import Array
from ._graph_ops import shape_of, split_sizes
from ._imported import chain_of
from ._layers import LastState
from ._onnx_asides import ASIDES, Aside, Shares
from ._onnx_constants import Budget, Unknown, Zeros, axes_of, dense, fold, slice_of, tensor
from ._onnx_nodes import KINDS, QUANTIZED, NodeReader, attributes

FIRST, SECOND = "first", "second"  # the axes of the input; names that are no numbers


class Axis(NamedTuple):
    """An axis: atoms that were merged into one, each with its size where it is known."""

    atoms: tuple[tuple[str, int | None], ...]

    @property
    def size(self) -> int | None:
        """The number of elements, None where it is not known."""
        sizes = [n for _, n in self.atoms]
        return None if None in sizes else math.prod(n for n in sizes if n is not None)

    @property
    def name(self) -> str:
        """The names of the atoms."""
        return "*".join(n for n, _ in self.atoms)


def axis(name: str, size: int | None = None) -> Axis:
    """Return an axis of one atom."""
    return Axis(((name, size),))


class Steps(NamedTuple):
    """What the layers so far give."""

    axes: tuple[Axis, ...]
    position: int  # of the chain


class States(NamedTuple):
    """Final states: which directions of which recurrent layers, along the axis "S"."""

    items: tuple[tuple[int, int], ...]  # position of the layer, direction
    kind: str
    axes: tuple[str, ...]  # of "S", "B", "H"
    batch: Axis
    hidden: int


_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Graph:
    """A graph with its constants, those of the graphs around it included."""

    def __init__(self, onnx: Any, graph: Any, outer: Graph | None = None) -> None:
        self.onnx, self.graph = onnx, graph
        self.values: dict[str, Any] = {} if outer is None else dict(outer.values)
        self.budget: Budget = Budget(graph.ByteSize()) if outer is None else outer.budget
        self.nodes = list(graph.node)
        self._refuse_damaged()
        for proto in graph.initializer:
            self.values[proto.name] = self._tensor(proto)
        for proto in graph.sparse_initializer:
            self.values[proto.values.name] = self._dense(proto.values.name, proto)
        for node in self.nodes:
            self.fold(node)

    def _refuse_damaged(self) -> None:
        """Refuse names that are not text, which a damaged file can have."""
        texts = [self.graph.name, *(p.name for p in self.graph.initializer)]
        texts += [p.values.name for p in self.graph.sparse_initializer]
        for node in self.nodes:
            texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
            texts += [a.name for a in node.attribute]
        texts += [v.name for v in [*self.graph.input, *self.graph.output]]
        bad = [t for t in texts if not isinstance(t, str)]
        if bad:
            raise ValueError(f"graph: expected names that are text, got {bad[0]!r:.80}")

    def _tensor(self, proto: Any) -> Array:
        try:
            return tensor(self.onnx, proto)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as e:
            raise ValueError(f"{proto.name}: expected an array, got {str(e)[:200]}") from None

    def _dense(self, name: str, proto: Any) -> Array:
        try:
            return dense(self.onnx, proto, self.budget)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as e:
            raise ValueError(f"{name}: expected a sparse array, got {str(e)[:200]}") from None

    def constant(self, name: str) -> Array | None:
        """Return the value of a name, None where it is computed."""
        value = self.values.get(name)
        return value if isinstance(value, np.ndarray) else None

    def given(self, node: Any) -> dict[str, Any]:
        """Return the attributes of a node, and the number of its outputs."""
        out = {**attributes(self.onnx, node), "outputs": len(node.output)}
        if node.op_type in ("Constant", "ConstantOfShape") and "value" in out:
            out["value"] = self._tensor(out["value"])
        if node.op_type == "Constant":
            if "sparse_value" in out:
                out["value"] = self._dense(node_name(node), out.pop("sparse_value"))
            for n, kind in _CONSTANTS.items():
                if n in out:
                    out[n] = np.array(out[n], kind)
        return out

    def fold(self, node: Any) -> bool:
        """Compute a node of constants; return whether it was one."""
        if node.op_type == "Constant":
            given = self.given(node)
            found = [v for n, v in given.items() if n.startswith("value")]
            if not found:
                return False
            self.values[node.output[0]] = np.asarray(found[0])
            return True
        inputs = [self.values.get(n) if n else None for n in node.input]
        if not inputs or not all(
            isinstance(v, np.ndarray) for v, n in zip(inputs, node.input) if n
        ):
            return False
        try:
            made = fold(node.op_type, self.given(node), inputs, self.budget)
        except Unknown:
            return False
        parts = made if isinstance(made, list) else [made]
        if any(isinstance(v, Zeros) for v in parts):
            return False
        for name, value in zip(node.output, parts):
            self.values[name] = np.asarray(value)
        return True

    def inner(self, node: Any) -> Iterator[tuple[str, Graph]]:
        """Yield the graphs that a node holds, with the names of their attributes."""
        for a in node.attribute:
            found = [a.g] if a.type == self.onnx.AttributeProto.GRAPH else list(a.graphs)
            for g in found:
                yield a.name, Graph(self.onnx, g, self)


def named_nodes(graph: Graph, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any, Graph]]:
    """Yield every recurrent node and its graph, those of nested graphs too, with where it is."""
    for node in graph.nodes:
        plain = node.op_type in KINDS and node.domain in ("", "ai.onnx")
        if plain or (node.op_type, node.domain) == (QUANTIZED, "com.microsoft"):
            yield prefix, node, graph
        if depth < 20:
            for attribute, inner in graph.inner(node):
                yield from named_nodes(inner, prefix_of(prefix, node, attribute), depth + 1)


def prefix_of(prefix: str, node: Any, attribute: str) -> str:
    """Return what stands before the names of the nodes of a graph within a node."""
    return f"{prefix}{node_name(node)}.{attribute}."


def node_name(node: Any) -> str:
    """Return the name of a node, that of its first output if it has none."""
    return str(node.name or next((n for n in node.output if n), node.op_type))


class Chain:
    """Follow a graph; afterwards `layers` are those of the model.

    Args:
        graph: the graph.
        reader: makes recurrent layers.
        opset: of the operators without a domain.
    """

    def __init__(self, graph: Graph, reader: NodeReader, opset: int) -> None:
        self.graph, self.reader, self.opset = graph, reader, opset
        self.layers: list[tuple[str, nn.Layer]] = []
        self.values: dict[str, Any] = dict(graph.values)
        self.order: tuple[str, str] | None = None  # the names of the axes of time and batch
        self.asides: dict[str, str] = {}
        self._shares = Shares()
        self.input, self.output = "", ""
        self._open = False  # the last layer is a Linear without a bias
        self._pooled = False  # a layer gives one output for each row

    # -- values ------------------------------------------------------------------------------------

    def model(self) -> nn.Layer:
        """Return the layers one after the other, once the graph has been followed."""
        self._begin()
        for node in self.graph.nodes:
            if all(n in self.values for n in node.output if n):
                continue
            name = node_name(node)
            try:
                self._follow(name, node)
            except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as e:
                raise ValueError(
                    f"{name}: expected a {node.op_type} that fits, got {e!r}"
                ) from None
            except ValueError as e:
                if str(e).startswith(f"{name}: "):
                    raise
                raise ValueError(
                    f"{name}: expected a {node.op_type} that fits, got {str(e)[:200]}"
                ) from None
        self._end()
        names: dict[str, nn.Layer] = {}
        for name, layer in self.layers:
            key = name.strip("/").replace("/", ".") or type(layer).__name__
            while key in names:
                key += "_"
            names[key] = layer
        return chain_of(names)

    def _begin(self) -> None:
        inputs = [i for i in self.graph.graph.input if i.name not in self.graph.values]
        if not inputs:
            raise ValueError("graph: expected an input, got none")
        dims = inputs[0].type.tensor_type.shape.dim
        if len(dims) not in (2, 3):
            raise ValueError(
                f"{inputs[0].name}: expected an input of 2 axes (indices) or 3, got {len(dims)}"
            )
        sizes = _sizes(inputs[0])
        axes = [axis(FIRST, sizes[0]), axis(SECOND, sizes[1])]
        axes += [axis("F", n) for n in sizes[2:]]
        self.input = inputs[0].name
        self.values[self.input] = Steps(tuple(axes), 0)
        for i in inputs[1:]:
            self.values[i.name] = Aside.of(i.name, _sizes(i))

    def _end(self) -> None:
        outputs = [o.name for o in self.graph.graph.output]
        found = [self.values.get(n) for n in outputs]
        main = next((k for k, v in enumerate(found) if isinstance(v, Steps)), None)
        if main is None:
            main = next((k for k, v in enumerate(found) if isinstance(v, States)), None)
            if main is None:
                raise ValueError(f"graph: expected outputs of a chain, got {outputs}")
        last = self._steps(outputs[main], found[main])
        self.output = outputs[main]
        for k, value in enumerate(found):
            if k != main and not isinstance(value, States):
                raise ValueError(f"{outputs[k]}: expected one output and states, got another one")
        if last.position != len(self.layers):
            raise ValueError(f"{outputs[main]}: expected the last layer's outputs, got others")
        names = [a.name for a in last.axes]
        rows = [self.order[1]] if self.order and self._pooled else [FIRST, SECOND]
        if names != [*rows, "F"]:
            raise ValueError(
                f"{outputs[main]}: expected outputs in the order of the inputs' axes, or one for "
                f"each row of the batch, got the axes {', '.join(names) or 'none'}"
            )

    def _steps(self, name: str, value: Any) -> Steps:
        """Return a value as the outputs of the chain."""
        if isinstance(value, States):
            return self._last_state(name, value)
        if isinstance(value, Aside):
            raise ValueError(f"{name}: expected one input of a chain, got {value.name!r} too")
        if not isinstance(value, Steps):
            raise ValueError(f"{name}: expected outputs of a layer, got a constant")
        if value.position != len(self.layers):
            raise ValueError(
                f"{name}: expected a chain, got a branch that reads earlier outputs again"
            )
        return value

    def _last_state(self, name: str, states: States) -> Steps:
        """Put a layer's final state in the place of its outputs."""
        at = len(self.layers) - 1
        label, layer = self.layers[-1] if self.layers else ("", None)
        recurrent = layer if isinstance(layer, nn.Recurrent) else None
        count = 0 if recurrent is None else recurrent._directions
        wanted = tuple((at, d) for d in range(count))
        if recurrent is None or states.items != wanted or states.kind != "h":
            raise ValueError(
                f"{name}: expected the final h of all directions of the last layer, got others"
            )
        if states.axes != ("B", "H"):
            raise ValueError(f"{name}: expected final states [B,H], got axes {states.axes}")
        self.layers[-1] = (label, LastState(recurrent))
        self._pooled = True
        width = axis("F", count * recurrent.hidden_size)
        return Steps((states.batch, width), len(self.layers))

    def _add(self, name: str, layer: nn.Layer, axes: tuple[Axis, ...]) -> Steps:
        self.layers.append((name, layer))
        self._open = isinstance(layer, nn.Linear) and "bias" not in layer.parameters()
        return Steps(axes, len(self.layers))

    # -- nodes -------------------------------------------------------------------------------------

    def _follow(self, name: str, node: Any) -> None:
        inputs = [self.values.get(n) if n else None for n in node.input]
        given = self.graph.given(node)
        if self._fold(name, node, inputs, given):
            return
        follow = getattr(self, "_op_" + node.op_type.lower(), None)
        if follow is None or node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"{name}: expected operators of a recurrent model, got "
                f"{'.'.join(n for n in (node.domain, node.op_type) if n)}"
            )
        if not inputs or inputs[0] is None:
            raise ValueError(f"{name}: expected an input that is there, got {list(node.input)}")
        made = follow(name, node, inputs, given)
        for output, value in zip(node.output, made if isinstance(made, list) else [made]):
            if output:
                self.values[output] = value

    def _fold(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> bool:
        """Compute what follows from constants and shapes, and follow asides."""
        there = [v for v in inputs if v is not None]
        if node.op_type == "Shape" and isinstance(inputs[0], Steps):
            shape = [a.name if a.size is None else a.size for a in inputs[0].axes]
            self.values[node.output[0]] = shape_of(given, np.array(shape, object))
            return True
        if there and isinstance(inputs[0], Aside) and node.op_type in ASIDES:
            made = ASIDES[node.op_type](name, inputs[0], inputs, given)
            parts = made if isinstance(made, list) else [made]
            self.values.update((n, v) for n, v in zip(node.output, parts) if n)
            return True
        if not there or not all(isinstance(v, (np.ndarray, Zeros)) for v in there):
            return False
        try:
            made = fold(node.op_type, given, inputs, self.graph.budget)
        except Unknown:
            return False
        for n, value in zip(node.output, made if isinstance(made, list) else [made]):
            self.values[n] = value if isinstance(value, Zeros) else np.asarray(value)
        return True

    def _recurrent(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        x = self._steps(name, inputs[0])
        layout = int(given.get("layout", 0))
        if len(x.axes) != 3:
            raise ValueError(f"{name}: expected inputs of 3 axes, got {len(x.axes)}")
        names = x.axes[0].name, x.axes[1].name
        order = names[::-1] if layout else names
        if self.order not in (None, order) or set(order) != {FIRST, SECOND}:
            raise ValueError(f"{name}: expected time and batch in the order of the first layer")
        self.order = order
        self._features(name, x)
        self._sides(name, node, inputs, layout)

        def constant(n: str) -> Array | None:
            value = self.values.get(n)
            if isinstance(value, Zeros) and n in node.input[5:7]:
                return np.zeros((1, 1, 1), np.float32)
            return value if isinstance(value, np.ndarray) else None

        made = self.reader.make(name, node, constant, batch_first=order == (SECOND, FIRST))
        layer: Any = made.layer
        inner = layer if isinstance(layer, nn.Recurrent) else layer.layer
        if inner.learned_state and any(isinstance(v, Aside) for v in inputs[5:7]):
            raise ValueError(
                f"{name}: expected initial states that are constants or inputs, got one of each"
            )
        directions, hidden = inner._directions, inner.hidden_size
        at, d = len(self.layers), axis("D", directions)
        first, second, f = x.axes[0], x.axes[1], axis("F", hidden)
        axes = (first, second, d, f) if layout else (first, d, second, f)
        y = self._add(name, layer, axes)
        items = tuple((at, k) for k in range(directions))
        state_axes = ("B", "S", "H") if layout else ("S", "B", "H")
        rows = first if layout else second
        return [y, *(States(items, kind, state_axes, rows, hidden) for kind in "hc")]

    _op_rnn = _op_lstm = _op_gru = _recurrent

    def _sides(self, name: str, node: Any, inputs: list[Any], layout: int) -> None:
        """Note which further inputs are states and lengths; refuse what is none of these."""
        for k, what in ((4, "lengths"), (5, "h"), (6, "c")):
            value = inputs[k] if k < len(inputs) else None
            if isinstance(value, Aside):
                if what != "lengths":
                    self._shares.take_state(name, value, what, layout)
                self.asides[value.name] = what
            elif value is not None and (k == 4 or not isinstance(value, (np.ndarray, Zeros))):
                raise ValueError(
                    f"{name}: expected {what} that are an input or a constant, got "
                    f"{node.input[k]!r}"
                )
        self._shares.take_lengths(name, inputs[4] if len(inputs) > 4 else None)

    @staticmethod
    def _features(name: str, x: Steps) -> Axis:
        """Return the axis of the features, which is the last one and has both directions."""
        apart = any(a.name == "D" and a.size != 1 for a in x.axes)
        if x.axes[-1].name != "F" or apart:
            raise ValueError(
                f"{name}: expected all features along the last axis, got the axes "
                f"{', '.join(a.name for a in x.axes)}"
            )
        return x.axes[-1]

    def _op_gather(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data, index = inputs[0], inputs[1]
        k = int(given.get("axis", 0))
        if isinstance(data, np.ndarray) and isinstance(index, Steps):
            x = self._steps(name, index)
            if k or data.ndim != 2 or data.dtype.kind != "f":
                raise ValueError(
                    f"{name}: expected a table [V,E] of floating-point numbers, got {data.dtype} "
                    f"of {data.shape}"
                )
            table = nn.Embedding(*data.shape, dtype=data.dtype)
            table.load_state_dict({"weight": data})
            return self._add(name, table, (*x.axes, axis("F", data.shape[1])))
        at = np.asarray(index)
        if at.ndim > 1:
            raise ValueError(f"{name}: expected indices of one axis, got {at.ndim} axes")
        if isinstance(data, States):
            return self._pick(data, k, [int(n) for n in at.reshape(-1)], at.ndim == 0)
        x = self._steps(name, data)
        k %= len(x.axes)
        if at.size == 1 and int(at.reshape(())) == -1 and self._is_time(x, k):
            return self._pool(name, x, k, at.ndim == 0)
        raise ValueError(f"{name}: expected the last step, got index {at.tolist()} of axis {k}")

    def _is_time(self, x: Steps, k: int) -> bool:
        return self.order is not None and x.axes[k].name == self.order[0]

    def _pool(self, name: str, x: Steps, k: int, squeezed: bool) -> Steps:
        """Keep the last step alone."""
        if "lengths" in self.asides.values():
            raise ValueError(
                f"{name}: expected the final state where rows have lengths, got the last step, "
                "which is 0 for all rows but the longest"
            )
        self._pooled = True
        axes = list(x.axes)
        axes[k] = axis("one", 1)
        if squeezed:
            del axes[k]
        pool = nn.Pool("last", batch_first=self.order == (SECOND, FIRST), dtype=self._dtype())
        return self._add(name, pool, tuple(axes))

    def _dtype(self) -> Any:
        return self.layers[-1][1].dtype if self.layers else np.dtype(np.float32)

    @staticmethod
    def _pick(states: States, k: int, which: list[int], squeezed: bool) -> States:
        if states.axes[k % len(states.axes)] != "S":
            raise ValueError("states: expected a choice of layers and directions, got another")
        axes = tuple(a for a in states.axes if a != "S") if squeezed else states.axes
        return states._replace(items=tuple(states.items[n] for n in which), axes=axes)

    def _op_slice(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data = inputs[0]
        starts, ends, axes, steps = slice_of(given, inputs, len(data.axes))
        if len(axes) != 1 or steps != [1]:
            raise ValueError(f"{name}: expected a slice of one axis with steps of 1")
        if isinstance(data, States):
            chosen = list(range(len(data.items)))[starts[0] : ends[0]]
            return self._pick(data, axes[0], chosen, False)
        x = self._steps(name, data)
        if starts == [-1] and ends[0] >= 2**31 - 1 and self._is_time(x, axes[0]):
            return self._pool(name, x, axes[0], False)
        if starts == [0] and ends[0] >= 2**31 - 1:
            return x
        raise ValueError(f"{name}: expected the last step alone, got {starts[0]}:{ends[0]}")

    def _op_split(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data = inputs[0]
        if not isinstance(data, States):
            raise ValueError(f"{name}: expected a chain, got a Split")
        sizes = inputs[1] if len(inputs) > 1 else None
        parts = split_sizes(given, sizes, len(data.items))
        ends = itertools.accumulate(parts)
        k = int(given.get("axis", 0))
        return [self._pick(data, k, [*range(e - n, e)], False) for n, e in zip(parts, ends)]

    def _op_concat(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        parts = [v for v in inputs if isinstance(v, States)]
        if len(parts) != len(inputs) or len({p[1:] for p in parts}) != 1:
            if len(inputs) == 1:
                return self._steps(name, inputs[0])
            raise ValueError(f"{name}: expected final states to be joined, got a branch")
        axes, k = parts[0].axes, int(given["axis"]) % len(parts[0].axes)
        if axes[k] not in ("S", "H") or (axes[k] == "H" and "S" in axes):
            raise ValueError(f"{name}: expected states to be joined along layers or units")
        return parts[0]._replace(items=tuple(i for p in parts for i in p.items))

    def _op_transpose(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data = inputs[0]
        perm = [int(k) for k in given.get("perm", range(len(data.axes))[::-1])]
        axes = tuple(data.axes[k] for k in perm)
        if isinstance(data, States):
            return data._replace(axes=axes)
        return self._steps(name, data)._replace(axes=axes)

    def _op_squeeze(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data = inputs[0]
        wanted = axes_of(given, inputs)
        count = len(data.axes)
        if isinstance(data, States):
            k = [int(n) % count for n in wanted or ()]
            if [data.axes[n] for n in k] != ["S"] or len(data.items) != 1:
                raise ValueError(f"{name}: expected an axis of one state to be squeezed")
            return self._pick(data, k[0], [0], True)
        x = self._steps(name, data)
        ones = [k for k, a in enumerate(x.axes) if a.size == 1 and a.name in ("D", "one")]
        chosen = [k % count for k in wanted or ()]
        if wanted is None:
            # Each axis of 1 goes, and which those are has to be known.
            chosen = [k for k, a in enumerate(x.axes) if a.size in (None, 1)]
        if not set(chosen) <= set(ones):
            raise ValueError(f"{name}: expected axes of 1 to be squeezed, got {chosen}")
        return x._replace(axes=tuple(a for k, a in enumerate(x.axes) if k not in chosen))

    def _op_reshape(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        data = inputs[0]
        target = list(np.asarray(inputs[1], object).reshape(-1))
        if given.get("allowzero", 0) and any(not isinstance(n, str) and n == 0 for n in target):
            raise ValueError(f"{name}: expected axes with elements, got allowzero with a size of 0")
        if isinstance(data, States):
            if data.axes == ("B", "S", "H") and _joins(target, data):
                return data._replace(axes=("B", "H"))
            raise ValueError(f"{name}: expected states [B,D,H] to become [B,D*H], got {target}")
        x = self._steps(name, data)
        target = [
            x.axes[k] if not isinstance(n, str) and n == 0 else n for k, n in enumerate(target)
        ]
        atoms = [atom for a in x.axes for atom in a.atoms]
        for groups in _groupings(atoms, len(target)):
            if all(_fits(g, n) for g, n in zip(groups, target)):
                return x._replace(axes=tuple(_merged(name, g) for g in groups))
        shown = [n.name if isinstance(n, Axis) else n for n in target]
        raise ValueError(
            f"{name}: expected a change of layout, got a Reshape of "
            f"{[a.name for a in x.axes]} to {shown}"
        )

    # -- operators that are layers -----------------------------------------------------------------

    def _op_matmul(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        return self._dense(name, inputs[0], inputs[1], None)

    def _dense(self, name: str, data: Any, weight: Any, bias: Any) -> Steps:
        x = self._steps(name, data)
        if not isinstance(weight, np.ndarray) or weight.ndim != 2 or weight.dtype.kind != "f":
            raise ValueError(f"{name}: expected a constant matrix")
        inputs, out = weight.shape
        if self._features(name, x).size not in (None, inputs):
            raise ValueError(f"{name}: expected {inputs} features, got {x.axes[-1].size}")
        layer = nn.Linear(inputs, out, bias is not None, dtype=weight.dtype)
        arrays = {"weight": np.ascontiguousarray(weight.T)}
        if bias is not None:
            if bias.ndim > 2 or bias.shape[-1:] not in ((), (1,), (out,)) or bias.shape[:-1] > (1,):
                raise ValueError(f"{name}: expected a bias of {out} features, got {bias.shape}")
            arrays["bias"] = np.broadcast_to(bias.reshape(-1), (out,))
        layer.load_state_dict(arrays)
        return self._add(name, layer, (*x.axes[:-1], axis("F", out)))

    def _op_gemm(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
        if given.get("transA", 0) or not isinstance(weight, np.ndarray):
            raise ValueError(f"{name}: expected a Gemm with a constant B and transA = 0")
        if bias is not None and not isinstance(bias, np.ndarray):
            raise ValueError(f"{name}: expected a constant C")
        weight = weight.T if given.get("transB", 0) else weight
        weight = weight * weight.dtype.type(given.get("alpha", 1.0))
        bias = None if bias is None else bias * bias.dtype.type(given.get("beta", 1.0))
        return self._dense(name, inputs[0], weight, bias)

    def _op_add(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        bias = next((v for v in inputs if isinstance(v, np.ndarray)), None)
        data = next((v for v in inputs if not isinstance(v, np.ndarray)), None)
        if bias is None or data is None:
            raise ValueError(f"{name}: expected a chain, got a sum of two branches")
        x = self._steps(name, data)
        self._features(name, x)
        label, layer = self.layers[-1] if self.layers else ("", None)
        along = bias.shape[-1:] == (bias.size,) and bias.ndim <= len(x.axes)  # the features
        linear = layer if isinstance(layer, nn.Linear) and self._open else None
        if linear is None or not along or bias.size != linear.out_features:
            raise ValueError(
                f"{name}: expected a bias of a matrix product before it, got {bias.shape}"
            )
        made = nn.Linear(linear.in_features, linear.out_features, dtype=linear.dtype)
        made.load_state_dict({**linear.state_dict(), "bias": bias.reshape(-1)})
        self.layers.pop()
        return self._add(label, made, x.axes)

    def _elementwise(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        x = self._steps(name, inputs[0])
        layer = nn.Activation(node.op_type.lower(), dtype=self._dtype())
        return self._add(name, layer, x.axes)

    _op_tanh = _op_sigmoid = _op_relu = _elementwise

    def _op_softmax(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        x = self._steps(name, inputs[0])
        k = int(given.get("axis", -1 if self.opset >= 13 else 1))
        if k % len(x.axes) != len(x.axes) - 1:
            raise ValueError(f"{name}: expected a {node.op_type} over the features, got axis {k}")
        self._features(name, x)
        log = node.op_type == "LogSoftmax"
        return self._add(name, nn.Softmax(log=log, dtype=self._dtype()), x.axes)

    _op_logsoftmax = _op_softmax

    def _same(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        """Keep a value: what the operator does is nothing in inference."""
        if isinstance(inputs[0], States):
            return inputs[0]
        return self._steps(name, inputs[0])

    _op_identity = _same

    def _op_dropout(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        training = inputs[2] if len(inputs) > 2 else None
        if training is not None and (not isinstance(training, np.ndarray) or training.any()):
            raise ValueError(f"{name}: expected a Dropout of inference, got one of training")
        return self._same(name, node, inputs, given)

    def _op_cast(self, name: str, node: Any, inputs: list[Any], given: dict[str, Any]) -> Any:
        value, to = inputs[0], given.get("to")
        indices = isinstance(value, Steps) and not value.position and len(value.axes) == 2
        kinds = self.graph.onnx.TensorProto
        wanted = (kinds.INT32, kinds.INT64) if indices else (kinds.FLOAT, kinds.DOUBLE)
        if to not in wanted:
            plain = "whole" if indices else "real"
            raise ValueError(f"{name}: expected a Cast to {plain} numbers, got to={to}")
        return self._same(name, node, inputs, given)


def _groupings(atoms: list[Any], count: int) -> Iterator[list[list[Any]]]:
    """Yield the ways to put consecutive atoms into so many groups."""
    for cuts in itertools.combinations(range(1, len(atoms)), count - 1):
        ends = [0, *cuts, len(atoms)]
        yield [atoms[a:b] for a, b in itertools.pairwise(ends)]


def _sizes(value: Any) -> list[int | None]:
    """Return the sizes of the axes of an input, None for those that are free."""
    return [d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim]


def _joins(target: list[Any], states: States) -> bool:
    """Return whether a Reshape of states ``[B,S,H]`` keeps the rows and joins all else."""
    if len(target) != 2:
        return False
    width, rows = len(states.items) * states.hidden, target[0]
    if isinstance(target[1], str) or target[1] not in (-1, width):
        return False
    if rows == -1:
        return bool(target[1] != -1)
    return rows == 0 or _fits(list(states.batch.atoms), rows)


def _fits(group: list[Any], wanted: Any) -> bool:
    """Return whether atoms are the axis that a Reshape asks for.

    A number is no axis whose size is not known, except for -1, which is what all others leave.
    """
    if isinstance(wanted, Axis):
        return [a for a in group if a[1] != 1] == [a for a in wanted.atoms if a[1] != 1]
    own = Axis(tuple(group))
    names = [n for n, size in group if size != 1]
    if isinstance(wanted, str):
        return "*".join(names) == wanted
    return int(wanted) == -1 or own.size == int(wanted)


def _merged(name: str, group: list[Any]) -> Axis:
    """Return atoms as one axis; directions and units are the features."""
    real = [a for a in group if a[1] != 1 or a[0] == "F"] or group[:1]
    if [n for n, _ in real] == ["D", "F"]:
        return axis("F", math.prod(size for _, size in real))
    if len(real) > 1 and {n for n, _ in real} != {FIRST, SECOND}:
        raise ValueError(f"{name}: expected a change of layout, got {[n for n, _ in real]} as one")
    return Axis(tuple(real))
