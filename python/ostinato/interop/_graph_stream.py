"""Run a graph one step a call: which axes of its values are time, and what a step of it does.

The graph is run on zeros of two numbers of steps. An axis whose size follows that number is time;
no size within a graph depends on the numbers of its input, so that what is found holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._check import Array
from .._recording import value_of
from ._graph_ops import _axes, _ints
from ._layers import Reversed

STEPS, BATCH = (5, 7), 3  # of the two runs: their sizes are those of no other axis by chance alone

# Operators that act on each element, or on axes that shapes alone tell.
_BY_ELEMENT = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Neg", "Abs", "Sin", "Cos"),
    *("Reciprocal", "Sign", "Floor", "Ceil", "Max", "Min", "Sum", "Mean", "Erf", "Gelu", "Clip"),
    *("Tanh", "Sigmoid", "Relu", "LeakyRelu", "PRelu", "Elu", "HardSigmoid", "HardSwish"),
    *("Selu", "Celu", "Mish", "ThresholdedRelu", "Round", "Mod", "Xor"),
    *("Softplus", "Softsign", "Where", "Cast", "Equal", "Less", "LessOrEqual", "Greater"),
    *("GreaterOrEqual", "Not", "And", "Or", "Identity", "Dropout", "BatchNormalization"),
}
_ON_FEATURES = {"Linear", "LayerNorm", "MatMul", "Gemm", "LayerNormalization"}
_ALONG = {
    *("Concat", "Split", "Slice", "Gather", "GatherElements", "Softmax", "LogSoftmax", "ArgMax"),
    *("ArgMin", "CumSum", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1"),
    *("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
}
_SHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"}
_SIZES = {"Shape", "Size"}  # which say nothing of the numbers


class Times(NamedTuple):
    """Which axes of a graph's values are time.

    Attributes:
        axis: of the input.
        shapes: of every value, in both runs.
        values: of the first run.
        second: the values of the second run.
    """

    axis: int
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    values: dict[str, Any]
    second: dict[str, Any]

    def counts(self, name: str) -> bool:
        """Whether what a value holds depends on the number of steps, beside how often."""
        one, other = (np.asarray(value_of(v[name])) for v in (self.values, self.second))
        if one.shape == other.shape and np.array_equal(one, other):
            return False
        return not (
            one.size
            and other.size
            and np.all(one == other.flat[0])
            and np.all(other == other.flat[0])
        )

    def of(self, name: str) -> int | None:
        """Return the axis of time of a value, None for none.

        Raises:
            TypeError: an axis that time was merged into.
        """
        first, second = self.shapes[name]
        changed = [k for k, (a, b) in enumerate(zip(first, second)) if a != b]
        if len(first) == len(second) and not changed:
            return None
        if len(changed) == 1 and (first[changed[0]], second[changed[0]]) == STEPS:
            return changed[0]
        raise TypeError(f"stream: expected time to stay an axis of its own, got {name!r} without")


def key(node: Mapping[str, Any]) -> str:
    """Return what tells a node from all others: the first value that it makes."""
    return next((str(n) for n in node["outputs"] if n), "")


def _input(graph: Any) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = graph._plan.inputs
    if len(inputs) != 1:
        raise TypeError(
            f"stream: expected a graph with one input, got {len(inputs)} "
            f"({', '.join(i['name'] for i in inputs)}); give the model one step and its states at "
            "a time"
        )
    return inputs[0]


def _zeros(given: Mapping[str, Any], axis: int, steps: int, batch: int = BATCH) -> Array:
    """Return an input of zeros with so many steps."""
    shape = [batch if n is None else int(n) for n in given["shape"]]
    shape[axis] = steps
    return np.zeros(shape, given["dtype"])


def _ran(graph: Any, x: Array, name: str) -> tuple[dict[str, Any], list[tuple[Any, int]]]:
    """Run a graph; return all values, and the axis of time of what each recurrent layer read."""
    values: dict[str, Any] = {name: x}
    read: list[tuple[Any, int]] = []
    for node in graph._run(values, graph._recurrent):
        if node["op"] == "Recurrent":
            first = bool(graph.layers[node["layer"]].batch_first)
            read.append((node["inputs"][0], int(first)))
    return values, read


def times_of(graph: Any) -> Times:
    """Find the axis of time of each value.

    Raises:
        TypeError: a graph with several inputs, without a recurrent layer, or of fixed sizes.
    """
    given = _input(graph)
    free = [k for k, n in enumerate(given["shape"][:2]) if n is None]
    last: Exception | None = None
    for axis in free:
        try:
            runs = [_ran(graph, _zeros(given, axis, n), given["name"]) for n in STEPS]
        except ValueError as e:  # an axis that cannot have any size
            last = e
            continue
        shapes = {
            n: (np.shape(value_of(v)), np.shape(value_of(runs[1][0][n])))
            for n, v in runs[0][0].items()
        }
        times, read = Times(axis, shapes, runs[0][0], runs[1][0]), runs[0][1]
        if not read:
            raise TypeError("stream: expected a graph with a recurrent layer, got none")
        if all(_sizes(times, name, k) == STEPS for name, k in read):
            return times
    why = f": {last}" if last is not None else ""
    raise TypeError(f"stream: expected a graph whose number of steps is free, got another{why}")


def _sizes(times: Times, name: str, k: int) -> tuple[int, int]:
    first, second = times.shapes[name]
    return (first[k], second[k])


# -- what a step may do ----------------------------------------------------------------------------


def checked(graph: Any) -> Times:
    """Return the axes of time of a graph that can run step by step.

    Raises:
        TypeError: a node that sees other steps; the message names it.
    """
    times = times_of(graph)
    known = {_input(graph)["name"]}  # values that hold numbers of the input
    needed = _needed(graph)
    for node in graph._plan.nodes:
        if node["op"] == "If" and key(node) in needed:
            raise TypeError(
                f"stream: expected nodes that see one step, got {node['name']} (If), whose "
                "condition may see others"
            )
        read = [n for n in node["inputs"] if n in known]
        if not read or node["op"] in _SIZES or key(node) not in needed:
            continue
        known.update(node["outputs"])
        for name in read:
            if times.of(name) is None:
                raise TypeError(
                    f"stream: expected nodes that see one step, got {node['name']} "
                    f"({node['op']}), which reads {name!r} of a whole sequence"
                )
        for name in _data(node):
            if name not in known and times.counts(name):
                raise TypeError(
                    f"stream: expected nodes that see one step, got {node['name']} "
                    f"({node['op']}), which reads {name!r}, made from the number of steps"
                )
        if not _by_step(graph, times, node, read):
            raise TypeError(
                f"stream: expected nodes that see one step and those before it, got "
                f"{node['name']} ({node['op']})"
            )
    if times.of(graph._plan.outputs[0]) is None:
        raise TypeError(
            f"stream: expected a first output for each step, got {graph._plan.outputs[0]!r}"
        )
    return times


def _needed(graph: Any) -> set[str]:
    """Return the keys of the nodes that the first output needs."""
    wanted, found = {graph._plan.outputs[0]}, set()
    for node in reversed(graph._plan.nodes):
        if wanted & set(node["outputs"]):
            found.add(key(node))
            wanted.update(node["inputs"])
    return found


def _data(node: Any) -> list[str]:
    """Return the inputs of a node that are data, not sizes or places; states are not asked."""
    if node["op"] == "Recurrent" or node["op"] in _SHAPES | _ALONG:
        return [n for n in node["inputs"][:1] if n] if node["op"] != "Concat" else node["inputs"]
    return [n for n in node["inputs"] if n]


def _by_step(graph: Any, times: Times, node: Any, read: list[str]) -> bool:
    """Whether an output of a step depends on inputs of that step alone, or on a state."""
    op, name = node["op"], read[0]
    at, shape = times.of(name), times.shapes[name][0]
    out = next((n for n in node["outputs"] if n), "")
    after = times.of(out) if op != "Recurrent" else 0
    if at is None or after is None:
        return False
    if op == "Recurrent":
        layer = graph.layers[node["layer"]]
        several = any(n and not _whole(times, n, read) for n in node["inputs"][1:2])
        return not (isinstance(layer, Reversed) or layer.bidirectional or several)
    if op in ("Embedding", "Transpose"):
        return True
    if op in _BY_ELEMENT:
        # Axes are aligned at the end, where they broadcast.
        ends = {(times.of(n) or 0) - len(times.shapes[n][0]) for n in read}
        return ends == {after - len(times.shapes[out][0])}
    if op in _ON_FEATURES:
        first = len(shape) - 1
        if op == "LayerNormalization":
            first = int(node["at"].get("axis", -1)) % len(shape)
        return at < first and node["inputs"][0] == name and len(read) == 1
    if op in _SHAPES:
        before, behind = shape[:at], times.shapes[out][0][:after]
        return int(np.prod(before)) == int(np.prod(behind))
    if op in _ALONG:
        return all(at != k % len(shape) for k in _along(node, times.values, len(shape)))
    return False


def _whole(times: Times, name: str, read: list[str]) -> bool:
    """Whether lengths are the number of steps, whatever that is."""
    runs = ((times.values, STEPS[0]), (times.second, STEPS[1]))
    return name not in read and all(
        bool(np.all(np.asarray(value_of(values[name])) == steps)) for values, steps in runs
    )


def _along(node: Any, values: dict[str, Any], count: int) -> list[int]:
    """Return the axes that an operator works along."""
    given, op = node["at"], node["op"]
    inputs = [values[n] if n else None for n in node["inputs"]]
    if op == "Slice":
        found = _axes(given, inputs[3] if len(inputs) > 3 else None)
        starts = inputs[1] if len(inputs) > 1 else given["starts"]
        return list(range(len(_ints(starts)))) if found is None else found
    if op.startswith("Reduce"):
        found = _axes(given, inputs[1] if len(inputs) > 1 else None)
        return found or ([] if given.get("noop_with_empty_axes", 0) else list(range(count)))
    if op == "CumSum":
        return _ints(inputs[1])
    axis = int(given.get("axis", 0))
    return list(range(axis % count, count)) if given.get("flat", False) else [axis]


# -- steps -----------------------------------------------------------------------------------------


class GraphStates:
    """The states of a graph's recurrent layers in a stream.

    Args:
        parts: by the keys of nodes, the arrays ``[1,B,H]`` of each layer.
    """

    def __init__(self, parts: dict[str, list[Array]]) -> None:
        self.parts = parts
        self._initial = {n: [a.copy() for a in part] for n, part in parts.items()}

    def reset(self, slots: Any) -> None:
        """Put slots back to their initial state."""
        where = slice(None) if slots is None else slots
        for name, part in self.parts.items():
            for a, initial in zip(part, self._initial[name]):
                a[:, where] = initial[:, where]

    def shaped(self) -> Any:
        """Return the states, a tuple with h or ``(h, c)`` of each layer."""
        return tuple(tuple(p) if len(p) > 1 else p[0] for p in self.parts.values())


def joined(graph: Any, native: Any) -> GraphStates:
    """Add a step of a graph to a native stream; return the states that it works on."""
    times, given = checked(graph), _input(graph)
    start = _start(graph, given, native)
    initial: dict[str, list[Array]] = {}
    batch = native.batch
    fixed = given["shape"][1 - times.axis]
    if fixed not in (None, batch):
        raise ValueError(
            f"batch: expected {fixed}, the rows that {given['name']!r} has in the graph, got "
            f"{batch}"
        )
    values: dict[str, Any] = {given["name"]: _zeros(given, times.axis, 1, batch)}
    for _ in graph._run(values, _noting(graph, initial)):
        pass
    states = GraphStates(initial)
    along = times.of(start)
    out = graph._plan.outputs[0]
    out_axis = times.of(out)
    assert along is not None
    assert out_axis is not None
    shape = list(times.shapes[out][0])
    del shape[out_axis]
    rows = [np.delete(np.shape(value_of(values[out])), out_axis)[:1].tolist()]
    if fixed is None:  # with one row more, what has as many elements as rows by chance is told
        values = {given["name"]: _zeros(given, times.axis, 1, batch + 1)}
        for _ in graph._run(values, graph._recurrent):
            pass
        rows += [np.delete(np.shape(value_of(values[out])), out_axis)[:1].tolist()]
    by_row = rows == [[batch], [batch + 1]][: len(rows)]
    if len(shape) != 2 or len(times.shapes[start][0]) != 3 or not by_row:
        raise TypeError(f"stream: expected inputs [T,B,I] and outputs [T,B,O], got others of {out}")

    def step(rows: Array, slots: Any) -> Array:
        own: dict[str, Any] = {start: np.expand_dims(rows, along)}
        if start != given["name"]:
            own[given["name"]] = _zeros(given, times.axis, 1, len(rows))
        for _ in graph._run(own, _stepping(graph, states, slots)):
            pass
        y: Array = np.take(own[out], 0, axis=out_axis)
        return y

    native.add_step(step, times.shapes[start][0][2], shape[1])
    return states


def _start(graph: Any, given: Mapping[str, Any], native: Any) -> str:
    """Return the value that a step is given: the input, or the rows that it looks up."""
    name = str(given["name"])
    if np.dtype(given["dtype"]).kind == "f":
        return name
    readers = [n for n in graph._plan.nodes if name in n["inputs"] and n["op"] not in _SIZES]
    while len(readers) == 1 and readers[0]["op"] in ("Cast", "Identity"):
        inner = readers[0]["outputs"][0]
        readers = [n for n in graph._plan.nodes if inner in n["inputs"] and n["op"] not in _SIZES]
    if len(readers) != 1 or readers[0]["op"] != "Embedding":
        raise TypeError(f"stream: expected an Embedding alone to read {name!r}, got others")
    graph.layers[readers[0]["layer"]]._join_stream(native)
    return str(readers[0]["outputs"][0])


def _noting(graph: Any, initial: dict[str, list[Array]]) -> Callable[..., Any]:
    """Return what runs a recurrent layer and notes the state that it begins with."""

    def run(node: Any, x: Any, lengths: Any = None, h: Any = None, c: Any = None) -> Any:
        layer = graph.layers[node["layer"]]
        state = None if h is None and c is None else graph._state(layer, x, h, c)
        batch = x.shape[0 if layer.batch_first else 1]
        none = np.zeros(batch, np.int64)  # without a step the last state is the first
        _, first = layer(np.ascontiguousarray(x), state, lengths=none)
        parts = list(first) if layer._has_cells else [first]
        initial[key(node)] = [np.array(a) for a in parts]
        return graph._recurrent(node, x, lengths, h, c)

    return run


def _stepping(graph: Any, states: GraphStates, slots: Any) -> Callable[..., Any]:
    """Return what runs a recurrent layer on one step of some slots."""

    def run(node: Any, x: Any, *others: Any) -> Any:
        layer, part = graph.layers[node["layer"]], states.parts[key(node)]
        own = [np.ascontiguousarray(a[:, slots]) for a in part]
        y, new = layer(np.ascontiguousarray(x), tuple(own) if len(own) > 1 else own[0])
        for a, b in zip(part, new if len(own) > 1 else (new,)):
            a[:, slots] = b
        return shaped(layer, y, new, bool(layer.batch_first))

    return run


def shaped(layer: Any, y: Any, state: Any, first: bool) -> list[Any]:
    """Return outputs and states of a layer as ONNX has them: ``Y [T,D,B,H]`` or ``[B,T,D,H]``."""
    inner = layer.layer if isinstance(layer, Reversed) else layer
    directions = inner._directions
    y = np.reshape(y, (*y.shape[:2], directions, y.shape[2] // directions))
    parts = list(state) if inner._has_cells else [state]
    if first:
        return [y, *(np.swapaxes(s, 0, 1) for s in parts)]
    return [np.transpose(y, (0, 2, 1, 3)), *parts]
