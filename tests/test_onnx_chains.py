"""Which ONNX graphs are chains of layers, and that all others keep their numbers as graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close
from ostinato.interop import Graph

onnx: Any = pytest.importorskip(
    "onnx", reason="onnx is not installed: pip install 'ostinato[onnx]'"
)
H = onnx.helper


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def N(*args: Any, **given: Any) -> Any:
    return H.make_node(*args, **given)


def gru(name: str, x: str, *more: str, kind: str = "GRU", **given: Any) -> Any:
    """A layer of 4 units, whose weights are those of `weights`."""
    names = [x, *(f"{name}{n}" for n in "WRB"), *more]
    if kind == "GRU":
        given["linear_before_reset"] = 1
    outputs = [f"{name}Y", f"{name}h", *([f"{name}c"] if kind == "LSTM" else [])]
    return N(kind, names, outputs, name, hidden_size=4, **given)


def weights(name: str, inputs: int, directions: int = 1, gates: int = 3, hidden: int = 4) -> Any:
    seed, rows = ord(name) * 10, gates * hidden
    return {
        f"{name}W": drawn(directions, rows, inputs, seed=seed),
        f"{name}R": drawn(directions, rows, hidden, seed=seed + 1),
        f"{name}B": drawn(directions, 2 * rows, seed=seed + 2),
    }


def model(
    nodes: list[Any], inputs: dict[str, Any], outputs: list[str], opset: int = 17, **constants: Any
) -> Any:
    """A model whose inputs are of real numbers, but for "lengths" and "ids"."""
    value, kinds = H.make_tensor_value_info, {"lengths": 6, "lengths2": 6, "ids": 7}
    arrays = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    given = [value(n, kinds.get(n, 1), shape) for n, shape in inputs.items()]
    results = [H.make_empty_tensor_value_info(n) for n in outputs]
    graph = H.make_graph(nodes, "g", given, results, arrays)
    return H.make_model(graph, opset_imports=[H.make_opsetid("", opset)], ir_version=8)


X: Any = {"x": [None, None, 3]}
A, B = weights("a", 3), weights("b", 4)
FLAT = [N("Squeeze", ["aY", "one"], ["z"])]
LAST = [N("Squeeze", ["bY", "one"], ["y"])]
ONE = {"one": ints(1), "zero": ints(0), "two": ints(2), "n0": np.array(0), "n1": np.array(1)}
TWO = {**A, **B, **ONE}


def stack(
    a: tuple[str, ...], b: tuple[str, ...], before: list[Any], inputs: Any, **more: Any
) -> Any:
    """Two layers of which each takes further inputs, which some nodes make."""
    nodes = [*before, gru("a", "x", *a), *FLAT, gru("b", "z", *b), *LAST]
    nodes.append(N("Squeeze", ["bh", "zero"], ["last"]))
    outputs = more.pop("outputs", ["y"])
    return lambda: model(nodes, {**X, **inputs}, outputs, **TWO, **more)


def both(h: int | None, k: int | None) -> Callable[..., Any]:
    """What two layers give that begin with some of the parts of a state, None for zeros."""

    def of(layers: Any, x: Any, s: Any = None) -> Any:
        parts = [None if n is None else s[n : n + 1].copy() for n in (h, k)]
        return layers["b"](layers["a"](x, parts[0])[0], parts[1])[0]

    return of


def lengths_of(first: str | None, second: str | None) -> Callable[..., Any]:
    def of(layers: Any, x: Any, *given: Any) -> Any:
        known = dict(zip(("lengths", "lengths2"), given))
        y, _ = layers["a"](x, lengths=known.get(first or ""))
        return layers["b"](y, lengths=known.get(second or ""))[0]

    return of


STATE = {"s": [2, None, 4]}
LENGTHS = {"lengths": [None]}
HALVES = [N("Split", ["s"], ["p", "q"], axis=0)]
FIRST = N("Slice", ["s", "zero", "one", "zero"], ["p"])
SECOND = N("Slice", ["s", "one", "two", "zero"], ["q"])
L = np.array([3, 5], np.int32)
S = drawn(2, 2, 4, seed=7)
# By name: a model, its further inputs, what it gives, and the states and lengths of a call where it
# is a chain (None: it is no chain).
SIDES: dict[str, tuple[Any, list[Any], Any, Any]] = {
    "lengths of both": (
        stack(("lengths",), ("lengths",), [], LENGTHS), [L], lengths_of("lengths", "lengths"),
        (None, L),
    ),
    "lengths of the first": (
        stack(("lengths",), (), [], LENGTHS), [L], lengths_of("lengths", None), None,
    ),
    "lengths of the second": (
        stack((), ("lengths",), [], LENGTHS), [L], lengths_of(None, "lengths"), None,
    ),
    "lengths of the first, the last state of the second": (
        stack(("lengths",), (), [], LENGTHS, outputs=["last"]), [L],
        lambda layers, x, n: layers["b"](layers["a"](x, lengths=n)[0])[1][0], None,
    ),
    "two lengths": (
        stack(("lengths",), ("lengths2",), [], {**LENGTHS, "lengths2": [None]}),
        [L, L[::-1].copy()], lengths_of("lengths", "lengths2"), None,
    ),
    "the first lengths": (
        stack(("p",), ("p",), [N("Slice", ["lengths", "zero", "two", "zero"], ["p"])], LENGTHS),
        [np.array([3, 5, 1], np.int32)],
        lambda layers, x, n: lengths_of("lengths", "lengths")(layers, x, n[:2]), None,
    ),
    "lengths of another type": (
        stack(("p",), ("p",), [N("Cast", ["lengths"], ["p"], to=6)], LENGTHS), [L],
        lengths_of("lengths", "lengths"), (None, L),
    ),
    "halves in order": (
        stack(("", "p"), ("", "q"), HALVES, STATE), [S], both(0, 1), ((S[:1], S[1:]), None),
    ),
    "halves swapped": (stack(("", "q"), ("", "p"), HALVES, STATE), [S], both(1, 0), None),
    "slices in order": (
        stack(("", "p"), ("", "q"), [FIRST, SECOND], STATE), [S], both(0, 1),
        ((S[:1], S[1:]), None),
    ),
    "slices swapped": (stack(("", "q"), ("", "p"), [FIRST, SECOND], STATE), [S], both(1, 0), None),
    "one slice twice": (stack(("", "p"), ("", "p"), [FIRST], STATE), [S], both(0, 0), None),
    "the second slice alone": (stack((), ("", "q"), [SECOND], STATE), [S], both(None, 1), None),
    "a state twice": (
        stack(("", "s"), ("", "s"), [], {"s": [1, None, 4]}), [S[:1].copy()], both(0, 0), None,
    ),
    "elements in order": (
        stack(("", "p1"), ("", "q1"), [
            N("Gather", ["s", "n0"], ["p"]), N("Unsqueeze", ["p", "zero"], ["p1"]),
            N("Gather", ["s", "n1"], ["q"]), N("Unsqueeze", ["q", "zero"], ["q1"]),
        ], STATE), [S], both(0, 1), ((S[:1], S[1:]), None),
    ),
    "elements swapped": (
        stack(("", "p"), ("", "q"), [
            N("Gather", ["s", "one"], ["p"]), N("Gather", ["s", "zero"], ["q"]),
        ], STATE), [S], both(1, 0), None,
    ),
    "a part of the rows": (
        stack(("", "p"), ("", "q"), [N("Split", ["s"], ["p", "q"], axis=1)], {"s": [1, 4, 4]}),
        [drawn(1, 4, 4, seed=8)],
        lambda layers, x, s: both(0, 1)(layers, x, np.concatenate([s[:, :2], s[:, 2:]])), None,
    ),
    "rows first": (
        stack(("", "p"), ("", "q"), [N("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
              N("Split", ["t"], ["p", "q"], axis=0)], {"s": [None, 2, 4]}), [S],
        lambda layers, x, s: both(0, 1)(layers, x, s.swapaxes(0, 1)),
        ((S.swapaxes(0, 1)[:1].copy(), S.swapaxes(0, 1)[1:].copy()), None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIDES)
def test_states_and_lengths(name: str) -> None:
    make, given, truth, called = SIDES[name]
    x = drawn(5, 2, 3)
    imported = ost.from_onnx(make())
    want, made = truth(dict(imported), x, *given), imported.model()
    if called is None:
        assert isinstance(made, Graph), made
        assert_close(made(x, *given), want, scale=2)
    else:
        assert isinstance(made, ost.nn.Sequential), made
        state, lengths = called
        assert_close(made(x, state, lengths=lengths)[0], want, scale=2)


@pytest.mark.parametrize(("h", "c", "chain"), [("p", "q", True), ("q", "p", False)])
def test_both_states_of_an_lstm_in_one_input(h: str, c: str, chain: bool) -> None:
    nodes = [*HALVES, gru("a", "x", "", h, c, kind="LSTM"), *FLAT]
    constants = {**weights("a", 3, gates=4), **ONE}
    imported = ost.from_onnx(model(nodes, {**X, **STATE}, ["z"], **constants))
    x, layer = drawn(5, 2, 3), imported.layer
    parts = [S[:1].copy(), S[1:].copy()]
    want = layer(x, tuple(parts if chain else parts[::-1]))[0]
    made = imported.model()
    assert isinstance(made, Graph) != chain
    assert_close(made(x, tuple(parts))[0] if chain else made(x, S), want, scale=2)


def test_the_states_of_both_directions_transposed() -> None:
    nodes = [
        N("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
        gru("a", "x", "", "t", direction="bidirectional"),
        N("Transpose", ["aY"], ["p"], perm=[0, 2, 1, 3]), N("Reshape", ["p", "to"], ["y"]),
    ]  # fmt: skip
    constants = {**weights("a", 3, 2), "to": ints(0, 0, -1)}
    imported = ost.from_onnx(model(nodes, {**X, "s": [None, 2, 4]}, ["y"], **constants))
    x = drawn(5, 2, 3)
    want = imported.layer(x, S.swapaxes(0, 1).copy())[0]
    made = imported.model()
    assert isinstance(made, Graph)
    assert_close(made(x, S), want, scale=2)


# -- shapes ----------------------------------------------------------------------------------------


def shape_case(nodes: list[Any], x: tuple[Any, ...] = (None, None, 3), **more: Any) -> Any:
    hidden, directions = more.pop("hidden", 4), more.pop("directions", 1)
    start = more.pop("start", "x")
    own = weights("a", 3, directions, hidden=hidden)
    way = "forward" if directions == 1 else "bidirectional"
    first = gru("a", start, direction=way)
    for attribute in first.attribute:
        if attribute.name == "hidden_size":
            attribute.i = hidden
    before = [n for n in nodes if "aY" not in n.input and "ah" not in n.input and start in n.output]
    nodes = [*before, first, *(n for n in nodes if n not in before)]
    opset = more.pop("opset", 17)
    return lambda: model(nodes, {"x": list(x)}, ["y"], opset=opset, **own, **ONE, **more)


def plain(layers: Any, x: Any) -> Any:
    return layers["a"](x)[0]


REDUCED = N("Squeeze", ["aY", "one"], ["y"])
# By name: a model, shapes of its input, what it gives, and whether it is a chain.
SHAPES: dict[str, tuple[Any, list[tuple[int, int]], Any, bool]] = {
    "one row of all steps": (
        shape_case([N("Reshape", ["x", "s"], ["v"]), REDUCED], start="v", s=ints(1, -1, 3)),
        [(5, 2), (1, 2)], lambda m, x: plain(m, x.reshape(1, -1, 3)), False,
    ),
    "steps of one row": (
        shape_case([N("Reshape", ["x", "s"], ["v"]), REDUCED], start="v", s=ints(-1, 1, 3)),
        [(5, 2), (5, 1)], lambda m, x: plain(m, x.reshape(-1, 1, 3)), False,
    ),
    "a reshape to what is fixed": (
        shape_case([N("Reshape", ["aY", "s"], ["y"])], (5, 2, 3), s=ints(5, 2, 4)),
        [(5, 2)], plain, True,
    ),
    "a reshape to what is free": (
        shape_case([N("Reshape", ["aY", "s"], ["y"])], s=ints(2, -1, 4)),
        [(5, 2), (2, 3)], lambda m, x: plain(m, x).reshape(2, -1, 4), False,
    ),
    "a reshape that keeps axes": (
        shape_case([N("Transpose", ["aY"], ["t"], perm=[0, 2, 1, 3]),
                    N("Reshape", ["t", "s"], ["y"])], directions=2, s=ints(0, 0, -1)),
        [(5, 2), (1, 1)], plain, True,
    ),
    "a reshape by some sizes of a shape": (
        shape_case([N("Shape", ["aY"], ["n"], start=0, end=1),
                    N("Concat", ["n", "m"], ["s"], axis=0), N("Reshape", ["aY", "s"], ["y"])],
                   m=ints(-1, 4)),
        [(5, 2), (1, 1)], plain, True,
    ),
    "a reshape by another size of a shape": (
        shape_case([N("Shape", ["aY"], ["n"], start=2, end=3),
                    N("Concat", ["n", "m"], ["s"], axis=0), N("Reshape", ["aY", "s"], ["y"])],
                   m=ints(-1, 4)),
        [(5, 2), (1, 3)], lambda m, x: plain(m, x).reshape(x.shape[1], -1, 4), False,
    ),
    "a squeeze of all, free": (
        shape_case([N("Squeeze", ["aY"], ["y"])]),
        [(5, 2), (5, 1), (1, 2)], lambda m, x: np.squeeze(plain(m, x)), False,
    ),
    "a squeeze of all, one row": (
        shape_case([N("Squeeze", ["aY"], ["y"])], (None, 1, 3)),
        [(5, 1)], lambda m, x: np.squeeze(plain(m, x)), False,
    ),
    "a squeeze of all, one unit": (
        shape_case([N("Squeeze", ["aY"], ["y"])], (5, 2, 3), hidden=1),
        [(5, 2)], lambda m, x: np.squeeze(plain(m, x)), False,
    ),
    "a squeeze of all, fixed": (
        shape_case([N("Squeeze", ["aY"], ["y"])], (5, 2, 3)), [(5, 2)], plain, True,
    ),
    "one step of fixed inputs": (
        shape_case([N("Reshape", ["aY", "s"], ["y"])], (1, 2, 3), s=ints(2, 4)),
        [(1, 2)], lambda m, x: plain(m, x)[0], False,
    ),
    "the final state with an axis more": (
        shape_case([N("Transpose", ["ah"], ["y"], perm=[1, 0, 2])]),
        [(5, 2)], lambda m, x: m["a"](x)[1].swapaxes(0, 1), False,
    ),
    "the final states of a row": (
        shape_case([N("Transpose", ["ah"], ["t"], perm=[1, 0, 2]), N("Reshape", ["t", "s"], ["y"])],
                   directions=2, s=ints(0, -1)),
        [(5, 2), (5, 1)], lambda m, x: np.concatenate([*m["a"](x)[1]], -1), True,
    ),
    "the final states of all rows": (
        shape_case([N("Transpose", ["ah"], ["t"], perm=[1, 0, 2]), N("Reshape", ["t", "s"], ["y"])],
                   directions=2, s=ints(1, -1)),
        [(5, 2)], lambda m, x: m["a"](x)[1].swapaxes(0, 1).reshape(1, -1), False,
    ),
    "softmax over each direction": (
        shape_case([N("Softmax", ["aY"], ["p"]), N("Transpose", ["p"], ["t"], perm=[0, 2, 1, 3]),
                    N("Reshape", ["t", "s"], ["y"])], directions=2, s=ints(0, 0, -1)),
        [(5, 2)],
        lambda m, x: ost.nn.softmax(plain(m, x).reshape(5, 2, 2, 4)).reshape(5, 2, 8), False,
    ),
    "a bias of another axis": (
        shape_case([*FLAT,
                    N("MatMul", ["z", "w"], ["e"]), N("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
                    N("Add", ["t", "b"], ["u"]), N("Transpose", ["u"], ["y"], perm=[0, 2, 1])],
                   (None, 2, 3), w=drawn(4, 2), b=drawn(2)),
        [(5, 2)],
        lambda m, x: plain(m, x) @ drawn(4, 2) + drawn(2)[:, None], False,
    ),
    "a bias of the features": (
        shape_case([*FLAT, N("MatMul", ["z", "w"], ["e"]), N("Add", ["e", "b"], ["y"])],
                   w=drawn(4, 2), b=drawn(2)),
        [(5, 2)], lambda m, x: plain(m, x) @ drawn(4, 2) + drawn(2), True,
    ),
    "a part of the shape of a constant": (
        shape_case([N("Shape", ["k"], ["n"], start=1, end=2), N("Gather", ["n", "n0"], ["m"]),
                    N("Cast", ["m"], ["f"], to=1), *FLAT, N("Mul", ["z", "f"], ["y"])],
                   k=drawn(7, 5)),
        [(5, 2)], lambda m, x: plain(m, x) * 5, False,
    ),
    "a constant in uneven parts": (
        shape_case([N("Split", ["k"], ["k1", "k2", "k3"], num_outputs=3), *FLAT,
                    N("Mul", ["z", "k3"], ["y"])], opset=18, k=drawn(7)),
        [(5, 2)], lambda m, x: plain(m, x) * drawn(7)[6], False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_changes_of_shape(name: str) -> None:
    make, shapes, truth, chain = SHAPES[name]
    imported = ost.from_onnx(make())
    layers = dict(imported)
    made = imported.model()
    assert isinstance(made, Graph) != chain, imported.describe()
    for rows in shapes:
        x = drawn(*rows, 3)
        y = made(x)
        y = y[0] if isinstance(y, tuple) else y
        want = truth(layers, x)
        assert y.shape == want.shape
        assert_close(y, want, scale=4)


# -- constants -------------------------------------------------------------------------------------


def test_a_table_looked_up_at_zeros_is_not_zeros() -> None:
    """The initial state is the first row of a table for each row of the batch."""
    zero = onnx.numpy_helper.from_array(ints(0), "v")
    nodes = [
        N("Shape", ["x"], ["n"]), N("Gather", ["n", "one"], ["rows"]),
        N("ConstantOfShape", ["rows"], ["ids"], value=zero),
        N("Gather", ["table", "ids"], ["e"]), N("Unsqueeze", ["e", "zero"], ["s"]),
        gru("a", "x", "", "s"), *FLAT,
    ]  # fmt: skip
    table, x = drawn(6, 4), drawn(5, 2, 3)
    imported = ost.from_onnx(model(nodes, X, ["z"], table=table, **A, **ONE))
    want = imported.layer(x, np.repeat(table[None, :1], 2, axis=1))[0]
    assert_close(imported.model()(x), want, scale=2)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_zeros_joined_with_a_constant_are_zeros_if_that_is(value: float) -> None:
    half = np.full((1, 2, 4), value, np.float32)
    nodes = [
        N("Shape", ["x"], ["n"]), N("Gather", ["n", "one"], ["rows"]),
        N("Concat", ["one", "rows", "four"], ["shape"], axis=0),
        N("ConstantOfShape", ["shape"], ["zeros"]), N("Concat", ["zeros", "half"], ["s"], axis=0),
        gru("a", "x", "", "s", direction="bidirectional"),
        N("Transpose", ["aY"], ["t"], perm=[0, 2, 1, 3]), N("Reshape", ["t", "to"], ["y"]),
    ]  # fmt: skip
    constants = {**weights("a", 3, 2), **ONE, "half": half, "four": ints(4), "to": ints(0, 0, -1)}
    imported = ost.from_onnx(model(nodes, X, ["y"], **constants))
    x = drawn(5, 2, 3)
    want = imported.layer(x, np.concatenate([np.zeros_like(half), half]))[0]
    made = imported.model()
    assert isinstance(made, Graph) == bool(value)
    assert_close(made(x) if value else made(x)[0], want, scale=2)


def test_a_single_number_has_the_dtype_of_onnx() -> None:
    nodes = [
        N("Constant", [], ["k"], value_floats=[1.5, 2.5, 3.5, 4.5]),
        gru("a", "x"), *FLAT, N("Mul", ["z", "k"], ["y"]),
    ]  # fmt: skip
    imported = ost.from_onnx(model(nodes, X, ["y"], **A, **ONE))
    x = drawn(5, 2, 3)
    want = imported.layer(x)[0] * np.array([1.5, 2.5, 3.5, 4.5], np.float32)
    y = imported.model()(x)
    assert y.dtype == np.float32
    assert_close(y, want, scale=4)


@pytest.mark.parametrize("at", [ints(0, 4), np.array([[0, 0], [1, 1]])])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_arrays(at: Any, as_node: bool) -> None:
    values = onnx.numpy_helper.from_array(drawn(2), "w")
    sparse = H.make_sparse_tensor(values, onnx.numpy_helper.from_array(at, "at"), [4, 3])
    nodes = [gru("a", "x"), *FLAT, N("MatMul", ["z", "w"], ["y"])]
    if as_node:
        nodes.insert(0, N("Constant", [], ["w"], sparse_value=sparse))
    whole = model(nodes, X, ["y"], **A, **ONE)
    if not as_node:
        whole.graph.sparse_initializer.append(sparse)
    imported = ost.from_onnx(whole)
    w, x = np.zeros((4, 3), np.float32), drawn(5, 2, 3)
    w[[0, 1], [0, 1]] = drawn(2)
    assert_close(imported.model()(x)[0], imported["a"](x)[0] @ w, scale=2)


def test_damaged_sparse_arrays() -> None:
    values = onnx.numpy_helper.from_array(drawn(2), "w")
    whole = model([gru("a", "x")], X, ["aY"], **A)
    for at, shape in ((ints(0, 12), [4, 3]), (ints(0), [4, 3]), (ints(0, 1), [2**40, 2**10])):
        sparse = H.make_sparse_tensor(values, onnx.numpy_helper.from_array(at, "at"), shape)
        del whole.graph.sparse_initializer[:]
        whole.graph.sparse_initializer.append(sparse)
        with pytest.raises(ValueError, match=r"^w: expected a sparse array, got "):
            ost.from_onnx(whole)


# -- inputs ----------------------------------------------------------------------------------------


def test_negative_indices_count_from_the_end_of_a_table() -> None:
    table, ids = drawn(6, 3), np.array([[1, -1], [2, -6]])
    nodes = [N("Gather", ["table", "ids"], ["e"]), N("Add", ["e", "e"], ["y"])]
    made = ost.from_onnx(model(nodes, {"ids": [None, None]}, ["y"], table=table)).model()
    np.testing.assert_array_equal(made(ids), 2 * table[ids])
    for bad in (6, -7):
        with pytest.raises(ValueError, match=f"from 0 to 5, got {bad} at position 1"):
            made(np.array([[0, bad]]))


def scaled() -> Any:
    nodes = [N("Gather", ["k", "ids"], ["f"]), N("Mul", ["x", "f"], ["y"])]
    inputs = {"x": [None, 3], "ids": [3]}
    return ost.from_onnx(model(nodes, inputs, ["y"], k=drawn(4))).model()


X2, IDS = drawn(2, 3), ints(0, 1, 3)


@pytest.mark.parametrize(
    ("x", "ids", "error", "message"),
    [
        (X2.astype(float), IDS, TypeError, "x: expected dtype float32, got float64"),
        (X2.astype(int), IDS, TypeError, "x: expected dtype float32, got int64"),
        (X2, IDS.astype(np.float32), TypeError, "ids: expected dtype int64, got float32"),
        (X2, IDS.astype(bool), TypeError, "ids: expected dtype int64, got bool"),
        ("text", IDS, TypeError, "x: expected an array, got 'text'"),
        (None, IDS, TypeError, "x: expected an array, got None"),
        (drawn(2, 4), IDS, ValueError, r"x: expected 2 axes of sizes \(any, 3\), got shape \(2, 4"),
        (drawn(3), IDS, ValueError, r"x: expected 2 axes of sizes \(any, 3\), got shape \(3,\)"),
        (X2, ints(1), ValueError, r"ids: expected 1 axes of sizes \(3\), got shape \(1,\)"),
    ],
)
def test_inputs_of_a_graph_are_checked(x: Any, ids: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        scaled()(x, ids)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, list])
def test_whole_numbers_may_have_any_dtype(kind: Any) -> None:
    ids = IDS.tolist() if kind is list else IDS.astype(kind)
    np.testing.assert_array_equal(scaled()(X2, ids), X2 * drawn(4)[IDS])


def test_inputs_that_a_graph_cannot_declare() -> None:
    node = {"op": "Neg", "inputs": ["x"], "outputs": ["y"]}
    with pytest.raises(TypeError, match=r"^inputs: expected 'x' of a dtype of numbers, got 'half-"):
        Graph([node], inputs=[{"name": "x", "dtype": "half-float"}], outputs=["y"])
    with pytest.raises(ValueError, match=r"^inputs: expected 'x' of whole sizes or None, got"):
        Graph([node], inputs=[{"name": "x", "shape": [1.5]}], outputs=["y"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": "no"}, "lengths: expected True or False, got 'no'"),
        ({"states": None}, "states: expected True or False, got None"),
        ({"path": 3}, "path: expected a path"),
    ],
)
@pytest.mark.parametrize("layer", [ost.nn.GRU(3, 4, rng=0), "graph"])
def test_arguments_of_to_onnx(layer: Any, given: Any, message: str, tmp_path: Path) -> None:
    layer = scaled() if isinstance(layer, str) else layer
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match=f"^{message}"):
        ost.to_onnx(layer, **{"path": path, **given})
    assert not path.exists()
    with pytest.raises(TypeError, match=r"^verify: expected True or False, got 'no'"):
        ost.from_onnx(ost.to_onnx(layer), verify="no")  # type: ignore[arg-type]


def test_a_row_without_steps_keeps_its_initial_state() -> None:
    """ONNX does not say what its final state is."""
    nodes = [gru("a", "x", "lengths", "s")]
    inputs = {**X, "lengths": [None], "s": [1, None, 4]}
    made = ost.from_onnx(model(nodes, inputs, ["aY", "ah"], **A)).model()
    y, h = made(drawn(5, 2, 3), np.array([0, 2], np.int32), S[:1].copy())
    np.testing.assert_array_equal(h[0, 0], S[0, 0])
    assert not y[:, :, 0].any()
