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
from ._graph_ops import OPERATORS, _plain
from ._graph_stream import GraphStates, joined, shaped, times_of
from ._layers import Reversed

LAYERS = ("Recurrent", "Linear", "Embedding", "LayerNorm", "Conv1d")  # nodes that are layers


@dataclass
class Plan:
    """What a graph is beside its parameters.

    Attributes:
        inputs: name, dtype and shape of each.
        outputs: their names.
        nodes: in their order.
        numbers: constants by name.
        times: what is known of the axis of time, in a tuple once it was asked for.
    """

    inputs: list[dict[str, Any]]
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
            left out, "@name" for a parameter) and "outputs", attributes "at", and its "name".
        layers: by the names that the nodes have for them.
        parameters: the shapes of further parameters by their names; zeros at first.
        numbers: constants that are no parameters: "dtype", "shape" and flat "values" by name.
        inputs: the "name", "dtype" and "shape" of each input; None for a size that is free.
        outputs: the names of the values that a call gives.
        opset: of ONNX, whose meaning the attributes have.
        dtype: float32 or float64, of the parameters.

    Raises:
        TypeError: a layer that is none, or an operator that is not known.
        ValueError: a node that reads what no node before it makes.
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
        self._plan = Plan(
            [dict(i) for i in inputs],
            [str(n) for n in outputs],
            [{"layer": "", "name": n["op"], **n, "at": self._at(n)} for n in nodes],
            {n: self._number(given) for n, given in (numbers or {}).items()},
        )
        self.layers = dict(layers or {})
        self.weights = {
            n: Parameter(_check.drawn(n, tuple(int(k) for k in s), self._kind, np.zeros))
            for n, s in (parameters or {}).items()
        }
        self._check_nodes()

    def _at(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a node; "real" is the dtype of the model."""
        at = dict(node.get("at", {}))
        return {**at, "dtype": self._kind.name} if at.get("dtype") == "real" else at

    def _number(self, given: Mapping[str, Any]) -> Array:
        kind = np.dtype(given["dtype"])
        kind = self._kind if kind.kind == "f" else kind
        return _check.read_only(np.array(given["values"], kind).reshape(tuple(given["shape"])))

    def _check_nodes(self) -> None:
        known = {i["name"] for i in self._plan.inputs} | set(self._plan.numbers)
        known |= {"@" + n for n in self.weights}
        for node in self._plan.nodes:
            if node["op"] in LAYERS:
                if not isinstance(self.layers.get(node["layer"]), Layer):
                    raise TypeError(f"layers: expected a layer {node['layer']!r}, got none")
            elif node["op"] not in OPERATORS:
                raise TypeError(f"nodes: expected operators that there are, got {node['op']!r:.80}")
            for name in node["inputs"]:
                if name and name not in known:
                    raise ValueError(
                        f"nodes: expected {node['name']} to read what is there, got {name!r:.80}"
                    )
            known.update(node["outputs"])
        missing = [n for n in self._plan.outputs if n not in known]
        if missing or not self._plan.outputs:
            raise ValueError(f"outputs: expected values of the graph, got {missing}")

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
            *inputs: arrays, in the order of the graph's inputs.

        Returns:
            The output; a tuple of them where there are several.

        Raises:
            TypeError: another number of inputs.
            ValueError: inputs that a node cannot take; the message names it.
        """
        known = [i["name"] for i in self._plan.inputs]
        if len(inputs) != len(known):
            names = ", ".join(i["name"] for i in self._plan.inputs)
            raise TypeError(
                f"inputs: expected {len(self._plan.inputs)} ({names}), got {len(inputs)}"
            )
        values: dict[str, Any] = dict(zip(known, inputs))
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
        last = (
            {n: k for k, node in enumerate(self._plan.nodes) for n in node["inputs"]}
            if drop
            else {}
        )
        for k, node in enumerate(self._plan.nodes):
            if all(n in values for n in node["outputs"] if n):
                continue
            inputs = [values[n] if n else None for n in node["inputs"]]
            try:
                made = self._one(node, inputs, recurrent)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError) as e:
                kind = TypeError if isinstance(e, TypeError) else ValueError
                raise kind(f"{node['name']}: {node['op']}: {e}") from e
            several = made if isinstance(made, (list, tuple)) else [made]
            values.update({n: v for n, v in zip(node["outputs"], several) if n})
            yield node
            for n in node["inputs"]:
                if drop and last[n] == k and n not in self._plan.outputs:
                    values.pop(n, None)

    def _one(self, node: Mapping[str, Any], inputs: list[Any], recurrent: Any) -> Any:
        """Return the outputs of a node."""
        if node["op"] == "Recurrent":
            return recurrent(node, *inputs)
        if node["op"] in LAYERS:
            layer: Any = self.layers[node["layer"]]
            if node["op"] == "Conv1d":
                return _convolved(layer, node["at"], inputs[0])
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


def _convolved(layer: Any, at: Mapping[str, Any], x: Any) -> Any:
    """Run a Conv1d on ``[N,C,L]``, with zeros around it."""
    steps = np.transpose(x, (0, 2, 1))
    before, after = at["pads"]
    if before or after:
        steps = np.pad(steps, ((0, 0), (before, after), (0, 0)))
    return np.transpose(layer(_contiguous(steps)), (0, 2, 1))


readable(globals())
