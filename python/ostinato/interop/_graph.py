"""Define Graph: a model whose call runs the nodes of a graph, layers and functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._annotations import readable
from .._check import Array
from .._recording import record, value_of
from ..nn import Layer, Model, Parameter
from ._graph_form import Form, forms_of, inputs_of, node_of, number_of, row, sizes, table, texts
from ._graph_ops import _plain
from ._graph_stream import GraphStates, joined, shaped, times_of
from ._graph_table import OPERATORS
from ._layers import Reversed

LAYERS = ("Recurrent", "Linear", "Embedding", "LayerNorm", "Conv1d")  # nodes that are layers


def captured(branches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what branches read of the graph around them, each name once.

    Args:
        branches: each with its "nodes" and "outputs".

    Returns:
        The names, in the order in which they are read.
    """
    names: dict[str, None] = {}
    for branch in branches:
        made: set[str] = set()
        for node in branch["nodes"]:
            names.update(dict.fromkeys(n for n in node["inputs"] if n and n not in made))
            made.update(node["outputs"])
        names.update(dict.fromkeys(n for n in branch["outputs"] if n not in made))
    return list(names)


@dataclass
class Plan:
    """What a graph is beside its parameters.

    Attributes:
        inputs: name, dtype and shape of each.
        forms: what each has to be.
        outputs: their names.
        nodes: in their order.
        numbers: constants by name.
        times: what is known of the axis of time, in a tuple once it was asked for.
    """

    inputs: list[dict[str, Any]]
    forms: list[Form]
    outputs: list[str]
    nodes: list[dict[str, Any]]
    numbers: dict[str, Array]
    times: tuple[Any] | None = None


class Graph(Model):
    """Run a graph of layers and functions, as `from_onnx` makes one of a model that branches.

    A call takes the inputs of the graph in their order and gives its outputs: one array, or a tuple
    of several. The nodes keep the meaning that ONNX gives them; layers and larger constants are
    parameters. It trains like any `Model`, ``ost.load`` reads what `save` wrote, and `stream` runs
    one step a call where every node acts on each step by itself or is a forward recurrent layer.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> layers = {"rnn": ost.nn.GRU(3, 3, rng=0)}
    >>> nodes = [
    ...     {"op": "Recurrent", "layer": "rnn", "inputs": ["x"], "outputs": ["all", "last"]},
    ...     {"op": "Squeeze", "inputs": ["all"], "outputs": ["h"], "at": {"axes": [1]}},
    ...     {"op": "Add", "inputs": ["x", "h"], "outputs": ["y"]},
    ... ]
    >>> inputs = [{"name": "x", "dtype": "float32", "shape": [None, None, 3]}]
    >>> graph = ost.interop.Graph(nodes, layers, inputs=inputs, outputs=["y"])
    >>> y, pullback = graph.vjp(np.ones((5, 2, 3), np.float32))
    >>> pullback(np.ones_like(y)).shape
    (5, 2, 3)
    >>> graph.stream(2).step(np.ones((2, 3), np.float32)).shape
    (2, 3)

    Args:
        nodes: in the order in which they run: the operator "op" (of ONNX, or "Recurrent", "Linear",
            "Embedding", "LayerNorm" or "Conv1d" with a "layer"), its "inputs" ("" for one that is
            left out, "@name" for a parameter) and "outputs", attributes "at", and its "name". The
            first input of an "If" says which of its two "branches" runs, each with "nodes" and
            "outputs"; its further inputs are what these read.
        layers: by the names that the nodes have for them.
        parameters: the shapes of further parameters by their names; zeros at first.
        numbers: constants that are no parameters: "dtype", "shape" and flat "values" by name.
        inputs: the "name", "dtype" and "shape" of each input; None for a size that is free.
        outputs: the names of the values that a call gives.
        opset: of ONNX, whose meaning the attributes have.
        dtype: float32 or float64, of the parameters.

    Raises:
        TypeError: a layer that is none, an operator that is not known, or a part that is no
            mapping, sequence or text where one is due.
        ValueError: a node that reads what no node before it makes, or a part without an entry
            that it needs.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, Any]],
        layers: Mapping[str, Layer] | None = None,
        *,
        parameters: Mapping[str, Sequence[int]] | None = None,
        numbers: Mapping[str, Mapping[str, Any]] | None = None,
        inputs: Sequence[Mapping[str, Any]],
        outputs: Sequence[str],
        opset: int = 17,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._kind = _check.real_dtype(dtype)
        self.opset = _check.positive("opset", opset)
        constants = table("numbers", numbers or {})
        shapes = table("parameters", parameters or {})
        given = inputs_of(inputs)
        self._plan = Plan(
            given,
            forms_of(given),
            texts("outputs", outputs),
            self._whole(nodes),
            {
                n: _check.read_only(number_of(n, value, self._kind))
                for n, value in constants.items()
            },
        )
        self.layers = dict(table("layers", layers or {}))
        self.weights = {
            n: Parameter(_check.drawn(n, sizes(f"parameters: {n}", s), self._kind, np.zeros))
            for n, s in shapes.items()
        }
        self._check_nodes()

    def _whole(self, nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return nodes with all that they may leave out."""
        out = []
        for n in map(node_of, row("nodes", nodes)):
            whole = {"layer": "", "name": n["op"], **n, "at": self._at(n)}
            if n["op"] == "If":
                parts = [{**b, "nodes": self._whole(b["nodes"])} for b in n["branches"]]
                whole["branches"] = parts
            out.append(whole)
        return out

    def _at(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a node; "real" is the dtype of the model."""
        at = dict(node.get("at", {}))
        if node["op"] == "Split":
            at.setdefault("outputs", len(node["outputs"]))
        return {**at, "dtype": self._kind.name} if at.get("dtype") == "real" else at

    def _check_nodes(self) -> None:
        given = [i["name"] for i in self._plan.inputs] + list(self._plan.numbers)
        known = set(given) | {"@" + n for n in self.weights}
        if len(set(given)) < len(given):
            twice = next(n for n in given if given.count(n) > 1)
            raise ValueError(
                f"inputs: expected names that no other input or number has, got {twice!r:.80}"
            )
        made = set(known)
        for node in self._plan.nodes:
            own = {n for n in node["outputs"] if n}
            if own and own <= made:  # it would not run
                raise ValueError(
                    f"nodes: expected {node['name']} to make values of names of their own, got "
                    f"{min(own)!r:.80} of what is there"
                )
            made |= own
        known = self._check_those(self._plan.nodes, known)
        missing = [n for n in self._plan.outputs if n not in known]
        if missing or not self._plan.outputs:
            raise ValueError(f"outputs: expected values of the graph, got {missing}")

    def _check_those(self, nodes: list[dict[str, Any]], known: set[str]) -> set[str]:
        """Check nodes that follow one another; return what is known behind them."""
        known = set(known)
        for node in nodes:
            if node["op"] in LAYERS:
                if not isinstance(self.layers.get(node["layer"]), Layer):
                    raise TypeError(f"layers: expected a layer {node['layer']!r}, got none")
            elif node["op"] not in OPERATORS and node["op"] != "If":
                raise TypeError(f"nodes: expected operators that there are, got {node['op']!r:.80}")
            for name in node["inputs"]:
                if name and name not in known:
                    raise ValueError(
                        f"nodes: expected {node['name']} to read what is there, got {name!r:.80}"
                    )
            if node["op"] == "If":
                self._check_branches(node, known)
            known.update(node["outputs"])
        return known

    def _check_branches(self, node: dict[str, Any], known: set[str]) -> None:
        if len(node["branches"]) != 2:
            raise ValueError(
                f"nodes: expected {node['name']} with two branches, got {len(node['branches'])}"
            )
        unsaid = [n for n in captured(node["branches"]) if n not in node["inputs"][1:]]
        if unsaid:
            raise ValueError(
                f"nodes: expected the inputs of {node['name']} to have all that its branches "
                f"read, got none of {', '.join(unsaid)}"
            )
        for branch in node["branches"]:
            there = self._check_those(branch["nodes"], known)
            if len(branch["outputs"]) != len(node["outputs"]) or set(branch["outputs"]) - there:
                raise ValueError(
                    f"nodes: expected branches of {node['name']} that make "
                    f"{len(node['outputs'])} outputs, got {branch['outputs']}"
                )

    # -- what it is --------------------------------------------------------------------------------

    @property
    def batch_first(self) -> bool | None:
        """Whether inputs are ``[B,T,...]``; None where the graph does not tell time from batch."""
        times = self._known_times()
        return None if times is None else times.axis == 1

    @property
    def reduces_time(self) -> bool:
        """Whether the first output has no axis of time."""
        times = self._known_times()
        return times is not None and times.of(self._plan.outputs[0]) is None

    def _known_times(self) -> Any:
        """Return which axes are time, None where the graph cannot be asked."""
        if self._plan.times is None:
            try:
                self._plan.times = (times_of(self),)
            except (TypeError, ValueError):
                self._plan.times = (None,)
        return self._plan.times[0]

    # -- running -----------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph.

        Args:
            *inputs: arrays, in the order of the graph's inputs, with the dtypes and the fixed
                sizes that those have; whole numbers may have any integer dtype.

        Returns:
            The output; a tuple of them where there are several.

        Raises:
            TypeError: another number of inputs, or one of another dtype.
            ValueError: an input of another shape, or one that a node cannot take; the message
                names the input or the node.
        """
        forms = self._plan.forms
        if len(inputs) != len(forms):
            names = ", ".join(f.name for f in forms)
            raise TypeError(f"inputs: expected {len(forms)} ({names}), got {len(inputs)}")
        values: dict[str, Any] = {f.name: f.of(x) for f, x in zip(forms, inputs)}
        for _ in self._run(values, self._recurrent, drop=True):
            pass
        out = tuple(values[n] for n in self._plan.outputs)
        return out[0] if len(out) == 1 else out

    def _run(
        self, values: dict[str, Any], recurrent: Callable[..., Any], *, drop: bool = False
    ) -> Iterator[Any]:
        """Run the nodes whose outputs are not there yet, and yield each.

        Args:
            values: by name; outputs are added.
            recurrent: runs a recurrent layer.
            drop: whether values that nothing reads any more are dropped.
        """
        values.update(self._plan.numbers)
        values.update({"@" + n: p.value for n, p in self.weights.items()})
        nodes = self._plan.nodes
        last = {n: k for k, node in enumerate(nodes) for n in node["inputs"]} if drop else {}
        for k, node in enumerate(nodes):
            if all(n in values for n in node["outputs"] if n):
                continue
            self._into(node, values, recurrent)
            yield node
            for n in node["inputs"]:
                if drop and last[n] == k and n not in self._plan.outputs:
                    values.pop(n, None)

    def _into(self, node: Mapping[str, Any], values: dict[str, Any], recurrent: Any) -> None:
        """Run a node and add its outputs to the values."""
        if node["op"] == "If":
            made = self._chosen(node, values, recurrent)
        else:
            inputs = [values[n] if n else None for n in node["inputs"]]
            try:
                made = self._one(node, inputs, recurrent)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError) as e:
                kind = TypeError if isinstance(e, TypeError) else ValueError
                why = f"expected attributes that it has, got no {e}" if type(e) is KeyError else e
                raise kind(f"{node['name']}: {node['op']}: {why}") from e
        several = made if isinstance(made, (list, tuple)) else [made]
        if len(several) < len(node["outputs"]):
            self._refuse_lacking(node, len(several))
        values.update({n: v for n, v in zip(node["outputs"], several) if n})

    def _refuse_lacking(self, node: Mapping[str, Any], count: int) -> None:
        """Raise where a node makes fewer outputs than are read of it."""
        read = {n for other in self._plan.nodes for n in other["inputs"]}
        read.update(self._plan.outputs)
        lacking = [n for n in node["outputs"][count:] if n in read]
        if lacking:
            raise ValueError(
                f"{node['name']}: {node['op']}: expected at most {count} outputs, got one more, "
                f"{lacking[0]!r:.80}"
            )

    def _chosen(self, node: Mapping[str, Any], values: dict[str, Any], recurrent: Any) -> list[Any]:
        """Return the outputs of the branch that a condition chooses; the other one does not run."""
        on = _plain(values[node["inputs"][0]])
        if on.size != 1:
            raise ValueError(
                f"{node['name']}: If: expected a condition of one element, got {on.shape}"
            )
        branch = node["branches"][0 if on.reshape(-1)[0] else 1]
        inner = {n: values[n] for n in node["inputs"][1:] if n}
        for one in branch["nodes"]:
            self._into(one, inner, recurrent)
        return [inner[n] for n in branch["outputs"]]

    def _one(self, node: Mapping[str, Any], inputs: list[Any], recurrent: Any) -> Any:
        """Return the outputs of a node."""
        if node["op"] == "Recurrent":
            return recurrent(node, *inputs)
        if node["op"] in LAYERS:
            layer: Any = self.layers[node["layer"]]
            if node["op"] == "Conv1d":
                return _convolved(layer, node["at"], inputs[0])
            if node["op"] == "Embedding":
                return layer(_from_the_front(layer, inputs[0]))
            return layer(_contiguous(inputs[0]))
        return OPERATORS[node["op"]](node["at"], *inputs)

    def _recurrent(
        self, node: Mapping[str, Any], x: Any, lengths: Any = None, h: Any = None, c: Any = None
    ) -> list[Any]:
        """Return Y, Y_h and Y_c of a recurrent node, as ONNX shapes them."""
        layer: Any = self.layers[node["layer"]]
        first = bool(layer.batch_first)
        state = None if h is None and c is None else self._state(layer, x, h, c)
        ends = None if lengths is None else _plain(lengths).astype(np.int64)
        y, state = layer(_contiguous(x), state, lengths=ends)
        return shaped(layer, y, state, first)

    def _state(self, layer: Any, x: Any, h: Any, c: Any) -> Any:
        inner = layer.layer if isinstance(layer, Reversed) else layer
        parts = []
        for part in (h, c):
            if part is not None:
                part = np.swapaxes(part, 0, 1) if layer.batch_first else part
                parts.append(_contiguous(part))
            elif not parts or inner._has_cells:
                batch = x.shape[0 if layer.batch_first else 1]
                shape = (inner._directions, batch, inner.hidden_size)
                parts.append(np.zeros(shape, self._kind))
        return (parts[0], parts[1]) if inner._has_cells else parts[0]

    # -- streams -----------------------------------------------------------------------------------

    def _streams_its_call(self) -> bool:
        return False

    def _join_stream(self, native: Any) -> GraphStates:
        return joined(self, native)

    def _reset_stream(self, states: GraphStates, slots: Any) -> None:
        states.reset(slots)

    def _stream_state(self, states: GraphStates) -> Any:
        return states.shaped()

    def __repr__(self) -> str:
        ops = [n["op"] for n in self._plan.nodes]
        inner = "".join(f"\n  {n}: {layer!r}" for n, layer in self.layers.items())
        return f"Graph({len(ops)} nodes{inner}\n)"


def _contiguous(x: Any) -> Any:
    """Return an array whose elements lie in their order, which kernels ask for."""
    v = value_of(x)
    if not isinstance(v, np.ndarray) or v.flags.c_contiguous:
        return x
    return record(np.ascontiguousarray(value_of(x)), (x, lambda d: d))


def _from_the_front(layer: Any, x: Any) -> Any:
    """Return the indices of a table with those from its end, which ONNX has, from its front."""
    ids, count = value_of(x), layer.num_embeddings
    if not isinstance(ids, np.ndarray) or ids.dtype.kind != "i" or ids.min(initial=0) >= 0:
        return x
    wide = ids.astype(np.int64)
    return np.where((wide < 0) & (wide >= -count), wide + count, wide)


def _convolved(layer: Any, at: Mapping[str, Any], x: Any) -> Any:
    """Run a Conv1d on ``[N,C,L]``, with zeros around it."""
    steps = np.transpose(x, (0, 2, 1))
    before, after = at["pads"]
    if before or after:
        steps = np.pad(steps, ((0, 0), (before, after), (0, 0)))
    return np.transpose(layer(_contiguous(steps)), (0, 2, 1))


readable(globals())
