"""ONNX models in and out, held against ONNX Runtime."""

from __future__ import annotations

import io
import re
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close
from ostinato import nn
from ostinato.interop import LastState, Reversed

onnx: Any = pytest.importorskip(
    "onnx", reason="onnx is not installed: pip install 'ostinato[onnx]'"
)
runtime: Any = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed: pip install 'ostinato[bench]'"
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]

H = onnx.helper
needs_torch = pytest.mark.skipif(
    torch is None, reason="torch is not installed: pip install 'ostinato[bench]'"
)


def run(model: Any, **feed: Any) -> list[Any]:
    """Run a model by ONNX Runtime."""
    words = model if isinstance(model, bytes) else model.SerializeToString()
    session = runtime.InferenceSession(words, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# -- writing ---------------------------------------------------------------------------------------

WRITTEN: dict[str, Any] = {
    "rnn": lambda: nn.RNN(4, 5, rng=0),
    "relu": lambda: nn.RNN(4, 5, nonlinearity="relu", bidirectional=True, rng=0),
    "lstm": lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True, rng=0),
    "without bias": lambda: nn.LSTM(4, 5, bias=False, rng=0),
    "peephole": lambda: nn.LSTM(4, 5, peephole=True, bidirectional=True, rng=0),
    "gru": lambda: nn.GRU(4, 5, num_layers=2, rng=0),
    "gru before": lambda: nn.GRU(4, 5, reset_after=False, rng=0),
    "rnn function": lambda: nn.RNN(4, 5, nonlinearity=("elu", 0.5), clip=1.0, rng=0),
    "lstm functions": lambda: nn.LSTM(
        4,
        5,
        activation="softsign",
        recurrent_activation=("hard_sigmoid", 0.2, 0.5),
        coupled_gates=True,
        bidirectional=True,
        rng=0,
    ),
    "gru functions": lambda: nn.GRU(4, 5, recurrent_activation="softsign", clip=0.7, rng=0),
    "reversed": lambda: Reversed(nn.GRU(4, 5, batch_first=True, rng=0)),
    "last state": lambda: LastState(nn.LSTM(4, 5, bidirectional=True, rng=0)),
    "tagger": lambda: nn.Sequential(
        rnn=nn.LSTM(4, 5, bidirectional=True, batch_first=True, rng=0),
        drop=nn.Dropout(0.5),
        head=nn.Linear(10, 6, rng=1),
        act=nn.Activation("tanh"),
        out=nn.Linear(6, 3, bias=False, rng=2),
        probability=nn.Softmax(),
    ),
    "classifier": lambda: nn.Sequential(
        nn.GRU(4, 5, batch_first=True, rng=0),
        nn.Pool("last", batch_first=True),
        nn.Linear(5, 3, rng=1),
        nn.Softmax(log=True),
    ),
    "states": lambda: nn.Sequential(
        LastState(nn.LSTM(4, 5, bidirectional=True, batch_first=True, rng=0)),
        nn.Linear(10, 3, rng=1),
        nn.Activation("sigmoid"),
    ),
}
ONE_WAY: dict[str, Any] = {  # that come back as more than a chain, or not at all
    "norm": lambda: nn.Sequential(nn.GRU(4, 6, rng=0), nn.LayerNorm(6), nn.Activation("gelu")),
    "gelu": lambda: nn.Sequential(nn.Linear(4, 6, rng=0), nn.Activation("gelu_tanh")),
    "conv": lambda: nn.Sequential(
        nn.Conv1d(4, 6, 4, dilation=2, batch_first=True, rng=0),
        nn.Conv1d(6, 4, 3, padding="causal", batch_first=True, rng=1),
        nn.Conv1d(4, 5, 2, padding="valid", stride=2, batch_first=True, bias=False, rng=2),
        nn.GRU(5, 3, batch_first=True, rng=3),
        nn.Pool("mean", batch_first=True),
    ),
    "max": lambda: nn.Sequential(nn.GRU(4, 6, rng=0), nn.Pool("max")),
    "blocks": lambda: nn.Sequential(
        nn.Residual(nn.Sequential(nn.GRU(4, 6, rng=0), nn.Linear(6, 4, rng=1))),
        nn.Concat(nn.Linear(4, 3, rng=2), nn.GRU(4, 2, rng=3)),
        nn.Linear(5, 2, rng=4),
    ),
    "widths": lambda: nn.Sequential(
        nn.Concat(nn.Activation("tanh"), nn.Linear(4, 3, rng=0), nn.Dropout()),
        nn.Residual(nn.Concat(nn.LayerNorm(11))),
    ),
    "any width": lambda: nn.Residual(nn.Sequential(nn.Concat(nn.Activation("tanh")))),
}


def shifted(layer: nn.Layer) -> nn.Layer:
    """Give a layer parameters none of which has a special value."""
    rng = np.random.default_rng(7)
    with layer.write() as p:
        for name in p:
            p[name][...] += 0.1 * rng.normal(size=p[name].shape).astype(np.float32)
    return layer


def called(layer: nn.Layer, x: Any, **times: Any) -> Any:
    out = layer(x, **times)
    return out[0] if layer.stateful else out


@pytest.mark.parametrize("name", [*WRITTEN, *ONE_WAY])
def test_written_models_run_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    layer, x = shifted({**WRITTEN, **ONE_WAY}[name]()), drawn(7, 3, 4)
    model = ost.to_onnx(layer, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == model.SerializeToString()
    assert model.opset_import[0].version == 14
    want = called(layer, x)
    (got,) = run(model, x=x)
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-6
    other = np.concatenate([x, x[:, :2]], 1)[1:].copy()
    (more,) = run(model, x=other)
    assert np.abs(more - called(layer, other)).max() < 1e-6


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (nn.Concat(nn.Linear(4, 3), nn.Dropout()), ["time", "batch", 7]),
        (nn.Concat(nn.Dropout(), nn.Dropout()), ["time", "batch", "concat.features"]),
        (nn.Conv1d(4, 5, 3, stride=2), ["steps", "batch", 5]),
        (nn.Conv1d(4, 5, 3, batch_first=True), ["batch", "time", 5]),
    ],
    ids=["known", "free", "fewer steps", "all steps"],
)
def test_the_axes_of_written_outputs(layer: nn.Layer, axes: list[Any]) -> None:
    shape = ost.to_onnx(layer).graph.output[0].type.tensor_type.shape
    assert [d.dim_value or d.dim_param for d in shape.dim] == axes


@pytest.mark.parametrize("name", WRITTEN)
def test_written_models_come_back(name: str) -> None:
    layer, x = shifted(WRITTEN[name]()), drawn(7, 3, 4)
    imported = ost.from_onnx(ost.to_onnx(layer).SerializeToString(), verify=True)
    model = imported.model(verify=True)
    assert_close(called(model, x), called(layer, x))
    assert imported.model() is model
    assert "ONNX: " in imported.describe()


def test_indices_states_and_lengths() -> None:
    layer = nn.Sequential(
        embed=nn.Embedding(9, 4, rng=0),
        rnn=nn.LSTM(4, 5, num_layers=2, batch_first=True, rng=1),
        head=nn.Linear(5, 3, rng=2),
    )
    model = ost.to_onnx(layer, states=True, lengths=True)
    names = [i.name for i in model.graph.input]
    assert names[:3] == ["x", "lengths", "rnn.0.initial_h"]
    ids = np.random.default_rng(0).integers(0, 9, (3, 7))
    zeros = {n: np.zeros((1, 3, 5), np.float32) for n in names[2:]}
    lengths = np.array([7, 2, 5], np.int32)
    y, *states = run(model, x=ids, lengths=lengths, **zeros)
    want, state = layer(ids, lengths=lengths)
    for row, n in enumerate(lengths):
        assert_close(y[row, :n], want[row, :n])
    assert_close(np.concatenate([states[0], states[2]]), state[1][0])
    feed = dict(zip(names[2:], states))
    more, *_ = run(model, x=ids, lengths=np.full(3, 7, np.int32), **feed)
    assert_close(more, layer(ids, state)[0])
    imported = ost.from_onnx(model, verify=True)
    assert list(imported) == ["rnn.0", "rnn.1"]
    assert "sequence_lens from 'lengths'" in imported.describe()
    assert_close(imported.model(verify=True)(ids)[0], layer(ids)[0])


def test_learned_states() -> None:
    for layer in (nn.LSTM(4, 5, learned_state=True, rng=0), nn.GRU(4, 5, learned_state=True)):
        x = drawn(6, 2, 4)
        model = ost.to_onnx(shifted(layer))
        (got,) = run(model, x=x)
        assert_close(got, called(layer, x))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    for layer, message in (
        (nn.LSTM(3, 4, proj_size=2), r"proj_size=2"),
        (nn.LSTM(3, 4, layer_norm=True), r"layer_norm=True"),
        (nn.RNN(3, 4, nonlinearity="exponential"), r"functions that ONNX has, got 'exponential'"),
        (nn.Sequential(nn.GRU(3, 4), nn.Pool("attention", 4)), r"1: expected Pool 'mean'"),
        (nn.Attention("dot"), r"expected a layer that ONNX can hold"),
    ):
        with pytest.raises(ValueError, match=message):
            ost.to_onnx(layer, path)
    with pytest.raises(ValueError, match=r"lengths: expected False with Conv1d"):
        ost.to_onnx(nn.Conv1d(3, 4, 2), lengths=True)
    with pytest.raises(TypeError, match=r"layer: expected a layer, got a int"):
        ost.to_onnx(3, path)  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"


# -- reading nodes ---------------------------------------------------------------------------------

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def node_model(
    kind: str,
    directions: int = 1,
    *,
    arrays: dict[str, Any] | None = None,
    name: str = "cell",
    more: tuple[str, ...] = (),
    **given: Any,
) -> Any:
    """A model of one node with random weights."""
    g, h, i = GATES[kind], 5, 4
    own = {
        "W": drawn(directions, g * h, i, seed=1) / 2,
        "R": drawn(directions, g * h, h, seed=2) / 2,
        "B": drawn(directions, 2 * g * h, seed=3),
        **(arrays or {}),
    }
    inputs = ["X", "W", "R", "B" if "B" in own else "", *more]
    node = H.make_node(kind, inputs, ["Y", "Y_h"], name, hidden_size=h, **given)
    value = H.make_tensor_value_info
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in own.items()]
    return made([node], [value("X", 1, ["a", "b", i])], ["Y"], constants)


def made(nodes: Any, inputs: Any, outputs: Any, constants: Any, producer: str = "") -> Any:
    value = H.make_tensor_value_info
    outs = [o if not isinstance(o, str) else value(o, 1, None) for o in outputs]
    graph = H.make_graph(nodes, "g", inputs, outs, constants)
    opset = [H.make_opsetid("", 14)]
    return H.make_model(graph, opset_imports=opset, ir_version=8, producer_name=producer)


NODES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "rnn": ("RNN", 1, {}),
    "relu": ("RNN", 2, {"direction": "bidirectional", "activations": ["Relu", "Relu"]}),
    "tanh": ("RNN", 1, {"activations": ["Tanh"], "direction": "reverse"}),
    "lstm": ("LSTM", 1, {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
    "lstm reverse": ("LSTM", 1, {"direction": "reverse"}),
    "lstm both": ("LSTM", 2, {"direction": "bidirectional"}),
    "peephole": ("LSTM", 1, {"arrays": {"P": drawn(1, 15, seed=4)}, "more": ("", "", "", "P")}),
    "gru": ("GRU", 2, {"direction": "bidirectional", "linear_before_reset": 1}),
    "gru before": ("GRU", 1, {"linear_before_reset": 0}),
    "batch first": ("GRU", 1, {"layout": 1}),
    "usual parameters": (
        "LSTM",
        1,
        {"activations": ["HardSigmoid", "LeakyRelu", "Elu"], "clip": 0.9},
    ),
    "given parameters": (
        "LSTM",
        2,
        {
            "direction": "bidirectional",
            "activations": ["HardSigmoid", "Affine", "ScaledTanh"] * 2,
            "activation_alpha": [0.3, 0.6, 1.2] * 2,
            "activation_beta": [0.4, 0.1, 0.7] * 2,
        },
    ),
    "some parameters": (
        "GRU",
        2,
        {
            "direction": "bidirectional",
            "activations": ["HardSigmoid", "ThresholdedRelu"] * 2,
            "activation_alpha": [0.2, 0.7] * 2,
            "linear_before_reset": 1,
        },
    ),
    "clip": ("GRU", 1, {"clip": 0.3, "linear_before_reset": 1}),
    "clip before": ("GRU", 1, {"clip": 0.3, "activations": ["Sigmoid", "Softplus"]}),
    "clip of an rnn": ("RNN", 1, {"clip": 0.3, "activations": ["Softsign"]}),
    "coupled": ("LSTM", 1, {"input_forget": 1}),
    "all at once": (
        "LSTM",
        1,
        {
            "input_forget": 1,
            "clip": 0.05,
            "arrays": {"P": drawn(1, 15, seed=4)},
            "more": ("", "", "", "P"),
        },
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_nodes_agree_with_onnx_runtime(name: str) -> None:
    kind, directions, given = NODES[name]
    model = node_model(kind, directions, **given)
    imported = ost.from_onnx(model, verify=True)
    assert list(imported) == ["cell"]
    layer = imported.layer
    if name == "batch first":
        assert layer.batch_first
        return  # ONNX Runtime runs no whole model of this layout
    x = drawn(6, 3, 4)
    (want,) = run(model, X=x)
    assert_close(called(layer, x), want.transpose(0, 2, 1, 3).reshape(6, 3, -1), scale=2)


def test_a_graph_of_batches_first() -> None:
    """Its outputs are those of the same weights with time first, which ONNX Runtime does run."""
    results = []
    for layout in (0, 1):
        inner = node_model("GRU", layout=layout).graph
        axis = onnx.numpy_helper.from_array(np.array([2 if layout else 1]), "axis")
        nodes = [
            H.make_node("Squeeze", ["Y", "axis"], ["s"], "squeezed"),
            H.make_node("Relu", ["s"], ["r"], "relu"),
            H.make_node("Add", ["s", "r"], ["out"], "added"),
        ]
        model = made([*inner.node, *nodes], inner.input, ["out"], [*inner.initializer, axis])
        x = drawn(6, 3, 4)
        y = ost.from_onnx(model).model()(x.swapaxes(0, 1) if layout else x)
        y = y[0] if isinstance(y, tuple) else y
        results.append(y.swapaxes(0, 1) if layout else y)
        if not layout:
            assert_close(y, run(model, X=x)[0], scale=2)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("output", "axes"), [("Y", (1, 2)), ("Y_h", (0, 1))])
def test_a_chain_of_batches_first(output: str, axes: tuple[int, int]) -> None:
    """A node whose axes are others is read as the same chain of layers, with the same numbers."""
    results = []
    for layout in (0, 1):
        inner = node_model("GRU", layout=layout).graph
        constants = {"axis": np.array([axes[layout]]), "w": drawn(5, 2, seed=7)}
        arrays = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
        nodes = [
            H.make_node("Squeeze", [output, "axis"], ["s"], "squeezed"),
            H.make_node("MatMul", ["s", "w"], ["out"], "head"),
        ]
        model = made([*inner.node, *nodes], inner.input, ["out"], [*inner.initializer, *arrays])
        chain = ost.from_onnx(model).model()
        assert isinstance(chain, nn.Sequential), chain  # and no graph of single operations
        x = drawn(6, 3, 4)
        y = chain(x.swapaxes(0, 1) if layout else x)
        y = y[0] if isinstance(y, tuple) else y
        if not layout:
            assert_close(y, run(model, X=x)[0], scale=2)
        results.append(y.swapaxes(0, 1) if layout and output == "Y" else y)
    np.testing.assert_array_equal(*results)


def test_the_initial_states_of_batches_first() -> None:
    results = []
    for layout in (0, 1):
        start = np.repeat(drawn(2, 1, 5, seed=6), 3, 1)  # [directions, rows, hidden]
        arrays = {"initial_h": start.swapaxes(0, 1).copy() if layout else start}
        given = {"direction": "bidirectional", "layout": layout, "more": ("", "initial_h")}
        layer = ost.from_onnx(node_model("GRU", 2, arrays=arrays, **given)).layer
        x = drawn(6, 3, 4)
        y = called(layer, x.swapaxes(0, 1) if layout else x)
        results.append(y.swapaxes(0, 1) if layout else y)
    np.testing.assert_array_equal(*results)


def test_verify_finds_a_wrong_order_of_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.interop import _onnx_nodes

    monkeypatch.setitem(_onnx_nodes._ORDER, "LSTM", (0, 1, 2, 3))
    with pytest.raises(ValueError, match=r"verify: expected the outputs of ONNX Runtime for cell"):
        ost.from_onnx(node_model("LSTM"), verify=True)


def test_weights_behind_other_operators() -> None:
    w, r, b = drawn(20, 4, seed=1), drawn(20, 5, seed=2), drawn(40, seed=3)
    nodes = [
        H.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(w.T.copy(), "w")),
        H.make_node("Transpose", ["w"], ["wt"]),
        H.make_node("Unsqueeze", ["wt", "zero"], ["W"]),
        H.make_node("Unsqueeze", ["r", "zero"], ["R"]),
        H.make_node("Split", ["b"], ["b0", "b1"], axis=0),
        H.make_node("Concat", ["b0", "b1"], ["bb"], axis=0),
        H.make_node("Reshape", ["bb", "shape"], ["B"]),
        H.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=5),
    ]
    constants = {"r": r, "b": b, "zero": np.array([0]), "shape": np.array([1, -1])}
    arrays = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
    model = made(nodes, [H.make_tensor_value_info("X", 1, ["t", "n", 4])], ["Y"], arrays)
    layer = ost.from_onnx(model, verify=True)["Y"]  # no name: that of the output
    x = drawn(6, 3, 4)
    assert_close(called(layer, x), run(model, X=x)[0][:, 0], scale=2)


def test_constant_initial_states_are_learned_states() -> None:
    start = np.repeat(drawn(1, 1, 5, seed=5), 3, 1)
    arrays = {"initial_h": start}
    model = node_model("LSTM", arrays=arrays, more=("", "initial_h"))
    layer = ost.from_onnx(model, verify=True).layer
    x = drawn(6, 3, 4)
    assert layer.learned_state
    assert_close(called(layer, x), run(model, X=x)[0][:, 0], scale=2)
    uneven = node_model("GRU", arrays={"initial_h": drawn(1, 3, 5)}, more=("", "initial_h"))
    with pytest.raises(ValueError, match=r"cell: expected one initial_h for all rows"):
        ost.from_onnx(uneven)


def test_nested_graphs() -> None:
    inner = node_model("GRU", linear_before_reset=1, name="inner").graph
    value = H.make_tensor_value_info
    branch = H.make_graph(list(inner.node), "then", [], [value("Y", 1, None)])
    other = H.make_graph([H.make_node("Identity", ["Z"], ["Q"])], "else", [], [value("Q", 1, None)])
    nodes = [H.make_node("If", ["flag"], ["out"], "choice", then_branch=branch, else_branch=other)]
    zeros = onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 5), np.float32), "Z")
    inputs = [value("X", 1, ["a", "b", 4]), value("flag", 9, [])]
    model = made(nodes, inputs, ["out"], [*inner.initializer, zeros])
    imported = ost.from_onnx(model, verify=True)
    assert list(imported) == ["choice.then_branch.inner"]
    whole, x = imported.model(), drawn(6, 3, 4)
    for flag in (np.array(True), np.array(False)):
        assert_close(whole(x, flag), run(model, X=x, flag=flag)[0])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activations": (
        "LSTM",
        {"activations": ["HardSigmoid", "Gelu", "Tanh"]},
        r"cell: expected activations among Tanh, .*, Elu, got 'Gelu'",
    ),
    "their number": ("GRU", {"activations": ["Tanh"]}, r"cell: expected 2 activations, got Tanh"),
    "no parameters": (
        "RNN",
        {"activations": ["Affine"], "activation_alpha": [1.0]},
        r"cell: expected 1 values of activation_beta for Affine, got 0",
    ),
    "some parameters": (  # ONNX does not say which function they belong to
        "GRU",
        {"activations": ["HardSigmoid", "Elu"], "activation_alpha": [0.3]},
        r"cell: expected 2 values of activation_alpha, or none, for HardSigmoid, Elu, got 1",
    ),
    "parameters": (
        "RNN",
        {"activations": ["Tanh"], "activation_alpha": [0.5]},
        r"cell: expected 0 values of activation_alpha, or none, for Tanh, got 1",
    ),
    "finite": (
        "RNN",
        {"activations": ["Elu"], "activation_alpha": [float("inf")]},
        r"cell: expected finite values of activation_alpha, got \[inf\]",
    ),
    "clip": ("GRU", {"clip": -1.5}, r"cell: expected a clip above 0, got -1.5"),
    "nan": ("GRU", {"clip": float("nan")}, r"cell: expected a clip above 0, got nan"),
    "coupled": ("LSTM", {"input_forget": 2}, r"cell: expected input_forget 0 or 1, got 2"),
    "direction": ("RNN", {"direction": "up"}, r"cell: expected a direction, got 'up'"),
    "layout": ("RNN", {"layout": 2}, r"cell: expected layout 0 or 1"),
    "B": (
        "RNN",
        {"arrays": {"B": drawn(1, 3)}},
        r"expected B of shape \(1, 10\), got \(1, 3\)",
    ),
    "W": ("GRU", {"arrays": {"W": drawn(15, 4)}}, r"cell: expected W of shape"),
    "ints": ("RNN", {"arrays": {"R": np.ones((1, 5, 5), np.int64)}}, r"cell: expected R .* int64"),
    "directions": ("RNN", {"direction": "bidirectional"}, r"cell: expected W of shape \(2, "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_cells_do_not_have_is_named(name: str) -> None:
    kind, given, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ost.from_onnx(node_model(kind, **given))


def test_functions_of_two_directions() -> None:
    model = node_model("RNN", 2, direction="bidirectional", activations=["Relu", "Tanh"])
    with pytest.raises(ValueError, match=r"the same activations in both directions, got Relu, T"):
        ost.from_onnx(model)


def test_usual_functions_give_the_plain_cells() -> None:
    largest = float(np.finfo(np.float32).max)  # some files say that where there is no clip
    model = node_model("LSTM", activations=["sigmoid", "TANH", "Tanh"], clip=largest)
    layer: Any = ost.from_onnx(model, verify=True).layer
    assert layer._cell == "lstm"


FUNCTIONS: list[Any] = [
    "tanh",
    "sigmoid",
    "relu",
    "linear",
    "softsign",
    "softplus",
    ("affine", 0.7, 0.2),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.4),
    ("scaled_tanh", 1.3, 0.6),
    ("hard_sigmoid", 0.3, 0.4),
    ("elu", 0.7),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f if isinstance(f, str) else f[0])
def test_functions_agree_with_onnx_runtime(function: Any) -> None:
    """To 1e-6, in every place that a cell has for one."""
    x = drawn(4, 3, 4)
    for layer in (
        nn.RNN(4, 5, nonlinearity=function, clip=1.5, bidirectional=True, rng=0),
        nn.LSTM(4, 5, output_activation=function, rng=0),
        nn.LSTM(4, 5, activation=function, clip=0.4, rng=0),
        nn.LSTM(4, 5, recurrent_activation=function, clip=0.2, peephole=True, rng=0),
        nn.GRU(4, 5, activation=function, recurrent_activation=function, clip=0.5, rng=0),
        nn.GRU(4, 5, activation=function, reset_after=False, clip=0.5, rng=0),
    ):
        want = run(ost.to_onnx(layer), x=x)[0]
        np.testing.assert_allclose(called(layer, x), want, rtol=0, atol=1e-6)


def test_computed_weights_are_refused() -> None:
    model = node_model("GRU")
    model.graph.input.append(H.make_tensor_value_info("V", 1, [1, 15, 4]))
    model.graph.node[0].input[1] = "V"
    with pytest.raises(ValueError, match=r"cell: expected a constant W, got one that is computed"):
        ost.from_onnx(model)


def test_a_gru_that_pytorch_exported_wrongly() -> None:
    model = node_model("GRU", linear_before_reset=0)
    model.producer_name = "pytorch"
    with pytest.warns(UserWarning, match=r"cell: PyTorch, .* linear_before_reset=0"):
        layer = ost.from_onnx(model).layer
    assert not layer.reset_after
    assert ost.from_onnx(model, gru_form="torch").layer.reset_after
    assert not ost.from_onnx(model, gru_form="onnx").layer.reset_after
    with pytest.raises(ValueError, match=r"gru_form: expected 'torch', 'onnx' or None, got 'x'"):
        ost.from_onnx(model, gru_form="x")


# -- whole models ----------------------------------------------------------------------------------


def exported(net: Any, x: Any, names: list[str], free: Any) -> bytes:
    """A module as PyTorch writes it."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            x,
            out,
            dynamo=False,
            input_names=names,
            dynamic_axes=free,
            opset_version=14,
        )
    return out.getvalue()


class Case:
    """A model of PyTorch, as a function of a namespace of layers."""

    def __init__(self, layers: Any, call: Any, x: Any, batch_first: bool = True) -> None:
        self.layers, self.call, self.x, self.batch_first = layers, call, x, batch_first


def cases() -> dict[str, Case]:
    n = torch.nn
    ids, x = np.zeros((2, 5), np.int64), drawn(2, 5, 4)
    return {
        "tagger": Case(
            {
                "e": n.Embedding(10, 4),
                "r": n.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
                "f": n.Linear(12, 3),
            },
            lambda m, x: torch.softmax(m.f(m.r(m.e(x))[0]), -1),
            ids,
        ),
        "last step": Case(
            {"r": n.GRU(4, 6, batch_first=True), "f": n.Linear(6, 3)},
            lambda m, x: m.f(torch.relu(m.r(x)[0][:, -1])),
            x,
        ),
        "final states": Case(
            {"r": n.LSTM(4, 6, 2, bidirectional=True, batch_first=True), "f": n.Linear(12, 3)},
            lambda m, x: (lambda h: torch.sigmoid(m.f(torch.cat([h[-2], h[-1]], -1))))(
                m.r(x)[1][0]
            ),
            x,
        ),
        "time first": Case(
            {"r": n.RNN(4, 6, nonlinearity="relu"), "f": n.Linear(6, 3, bias=False)},
            lambda m, x: torch.log_softmax(m.f(torch.tanh(m.r(x)[0])), -1),
            x,
            False,
        ),
        "layers between": Case(
            {"a": n.Linear(4, 5), "r": n.GRU(5, 6, batch_first=True), "q": n.LSTM(6, 3)},
            lambda m, x: m.q(m.r(m.a(x))[0].transpose(0, 1))[0].transpose(0, 1),
            x,
        ),
    }


@needs_torch
@pytest.mark.parametrize("free", [True, False], ids=["free sizes", "fixed sizes"])
@pytest.mark.parametrize(
    "name", ["tagger", "last step", "final states", "time first", "layers between"]
)
def test_models_of_pytorch(name: str, free: bool) -> None:
    torch.manual_seed(0)
    case = cases()[name]

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for n, m in case.layers.items():
                self.add_module(n, m)

        def forward(self, x: Any) -> Any:
            return case.call(self, x)

    net = Net()
    axes = {"x": {0: "a", 1: "b"}} if free else {}
    words = exported(net, torch.from_numpy(case.x), ["x"], axes)
    imported = ost.from_onnx(words, verify=True)
    model = imported.model(verify=True)
    rng = np.random.default_rng(3)
    x = rng.integers(0, 10, (3, 7)) if case.x.dtype.kind == "i" else drawn(3, 7, 4)
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    assert_close(called(model, x), want, scale=2)


@needs_torch
def test_a_model_with_states_streams() -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.r, self.f = torch.nn.LSTM(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            y, (h, c) = self.r(x, (h, c))
            return torch.softmax(self.f(y), -1), h, c

    zeros = torch.zeros(1, 2, 6)
    free = {"x": {0: "t", 1: "b"}, "h": {1: "b"}, "c": {1: "b"}}
    net = Net()
    words = exported(net, (torch.zeros(5, 2, 4), zeros, zeros), ["x", "h", "c"], free)
    model = ost.from_onnx(words).model(verify=True)
    x = drawn(6, 1, 4)
    stream = model.stream()
    got = np.stack([stream.step(step).copy() for step in x])
    with torch.no_grad():
        h = torch.zeros(1, 1, 6)
        want = net(torch.from_numpy(x), h, h)[0].numpy()
    assert_close(got, want, scale=2)


def chain(nodes: Any, inputs: Any = None, outputs: tuple[str, ...] = ("out",), **more: Any) -> Any:
    """A model whose first node is an LSTM."""
    inner = node_model("LSTM").graph
    arrays = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in more.items()]
    inputs = list(inner.input) + list(inputs or [])
    return made([*inner.node, *nodes], inputs, list(outputs), [*inner.initializer, *arrays])


def N(*args: Any, **given: Any) -> Any:
    return H.make_node(*args, **given)


def with_lengths(model: Any) -> Any:
    """Give the first node the input L as its lengths."""
    model.graph.node[0].input.append("L")
    return model


SQUEEZE = N("Squeeze", ["Y", "one"], ["y"], "squeeze")
ONE = np.array([1])
GRAPHS: dict[str, tuple[Any, str]] = {
    "an unknown operator": (
        lambda: chain([SQUEEZE, N("Sinh", ["y"], ["out"], "sine")], one=ONE),
        r"sine: expected operators of a recurrent model, got Sinh",
    ),
    "a branch": (
        lambda: chain(
            [SQUEEZE, N("Tanh", ["y"], ["a"]), N("Relu", ["y"], ["out"], "again")], one=ONE
        ),
        r"again: expected a chain, got a branch",
    ),
    "a sum": (
        lambda: chain([SQUEEZE, N("Add", ["y", "y"], ["out"], "sum")], one=ONE),
        r"sum: expected a chain, got a sum of two branches",
    ),
    "a scale": (
        lambda: chain([SQUEEZE, N("Mul", ["y", "k"], ["out"], "scale")], one=ONE, k=np.float32(2)),
        r"scale: expected operators",
    ),
    "a bias alone": (
        lambda: chain([SQUEEZE, N("Add", ["y", "b"], ["out"], "bias")], one=ONE, b=drawn(5)),
        r"bias: expected a bias of a matrix product before it",
    ),
    "another step": (
        lambda: chain(
            [SQUEEZE, N("Gather", ["y", "at"], ["out"], "third", axis=0)], one=ONE, at=np.array(2)
        ),
        r"third: expected the last step, got index 2 of axis 0",
    ),
    "the last row": (
        lambda: chain(
            [SQUEEZE, N("Gather", ["y", "at"], ["out"], "row", axis=1)], one=ONE, at=np.array(-1)
        ),
        r"row: expected the last step, got index -1 of axis 1",
    ),
    "softmax over time": (
        lambda: chain([SQUEEZE, N("Softmax", ["y"], ["out"], "soft", axis=0)], one=ONE),
        r"soft: expected a Softmax over the features, got axis 0",
    ),
    "another layout": (
        lambda: chain([SQUEEZE, N("Transpose", ["y"], ["out"], perm=[1, 0, 2])], one=ONE),
        r"out: expected outputs in the order of the inputs' axes",
    ),
    "units as steps": (
        lambda: chain(
            [SQUEEZE, N("Reshape", ["y", "s"], ["out"], "mix")], one=ONE, s=np.array([0, -1])
        ),
        r"mix: expected a change of layout",
    ),
    "two inputs": (
        lambda: chain(
            [N("Tanh", ["Z"], ["out"], "tanh")], [H.make_tensor_value_info("Z", 1, [2, 2, 2])]
        ),
        r"tanh: expected one input of a chain, got 'Z' too",
    ),
    "two outputs": (
        lambda: chain([SQUEEZE, N("Tanh", ["y"], ["out"])], None, ("out", "y"), one=ONE),
        r"y: expected one output and states, got another one",
    ),
    "axes": (
        lambda: chain([N("Squeeze", ["Y", "one"], ["out"], "squeeze")], one=np.array([0])),
        r"squeeze: expected axes of 1 to be squeezed, got \[0\]",
    ),
    "a bias of each step": (
        lambda: chain(
            [SQUEEZE, N("MatMul", ["y", "w"], ["z"]), N("Add", ["z", "b"], ["out"], "add")],
            one=ONE,
            w=drawn(5, 3),
            b=drawn(3, 1, 1),
        ),
        r"add: expected a bias of a matrix product before it, got \(3, 1, 1\)",
    ),
    "a bias with a further axis": (
        lambda: chain(
            [SQUEEZE, N("MatMul", ["y", "w"], ["z"]), N("Add", ["z", "b"], ["out"], "add")],
            one=ONE,
            w=drawn(5, 3),
            b=drawn(1, 1, 1, 3),
        ),
        r"add: expected a bias of a matrix product before it, got \(1, 1, 1, 3\)",
    ),
    "a bias of each row": (
        lambda: chain(
            [
                SQUEEZE,
                N("Gather", ["y", "last"], ["z"], "last", axis=0),
                N("Gemm", ["z", "w", "b"], ["out"], "gemm"),
            ],
            one=ONE,
            last=np.array(-1),
            w=drawn(5, 3),
            b=drawn(3, 1),
        ),
        r"gemm: expected a bias of 3 features, got \(3, 1\)",
    ),
    "dropout in training": (
        lambda: chain(
            [SQUEEZE, N("Dropout", ["y", "rate", "on"], ["out"], "drop")],
            one=ONE,
            rate=np.float32(0.5),
            on=np.array(True),
        ),
        r"drop: expected a Dropout of inference, got one of training",
    ),
    "the last step of rows with lengths": (
        lambda: with_lengths(
            chain(
                [SQUEEZE, N("Gather", ["y", "last"], ["out"], "last", axis=0)],
                [H.make_tensor_value_info("L", 6, ["b"])],
                one=ONE,
                last=np.array(-1),
            )
        ),
        r"last: expected the final state where rows have lengths, got the last step",
    ),
    "outputs made whole numbers": (
        lambda: chain([SQUEEZE, N("Cast", ["y"], ["out"], "cast", to=7)], one=ONE),
        r"cast: expected a Cast to real numbers, got to=7",
    ),
}


# Those that are none of ONNX either, or of training.
WRONG = {
    "axes": r"squeeze: Squeeze: expected axes of 1 to be squeezed",
    "dropout in training": r"drop: expected a Dropout of inference",
    "an unknown operator": r"expected operators of a recurrent model, got Sinh \(sine\)",
}


# Those that take inputs of one size alone.
SIZED = {"a bias of each step": (3, 2), "a bias of each row": (5, 3)}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_no_chain_is_a_graph(name: str) -> None:
    model, message = GRAPHS[name]
    imported = ost.from_onnx(model())
    assert list(imported) == ["cell"]  # the layers are there all the same
    if name in WRONG:
        with pytest.raises(ValueError, match=WRONG[name]):
            imported.model()(drawn(3, 2, 4))
        return
    checked = name not in SIZED and name != "outputs made whole numbers"
    graph = imported.model(verify=checked)
    assert isinstance(graph, ost.interop.Graph)
    if name in SIZED:
        x = drawn(*SIZED[name], 4)
        assert_close(graph(x), run(model(), X=x)[0], scale=2)
    assert re.search(f"since it is no chain: {message}", imported.describe())


def test_an_lstm_of_whole_numbers(tmp_path: Path) -> None:
    """What onnxruntime quantises: the weights are read exactly, up to half a step of each.

    With 7 bits, half a step of which is one of 8: sums of two products of 8 bits overflow in its
    kernels for CPUs without VNNI.
    """
    quantization = pytest.importorskip(
        "onnxruntime.quantization", reason="onnxruntime cannot quantise here"
    )
    layer = nn.LSTM(4, 5, bidirectional=True, rng=0)
    ost.to_onnx(layer, tmp_path / "a.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(
            tmp_path / "a.onnx",
            tmp_path / "b.onnx",
            op_types_to_quantize=["LSTM"],
            reduce_range=True,
        )
    imported = ost.from_onnx(tmp_path / "b.onnx", verify=True)
    assert imported.entries[0].kind == "DynamicQuantizeLSTM"
    for name, a in layer.parameters().items():
        step = np.abs(a).max() / 127 if name.startswith("weight") else 0
        assert np.abs(imported.layer.parameters()[name] - a).max() <= 1.01 * step
    x = drawn(6, 3, 4)
    (want,) = run((tmp_path / "b.onnx").read_bytes(), x=x)
    assert np.abs(called(imported.layer, x) - want).max() < 0.02  # it rounds x and h as well


# -- damaged files ---------------------------------------------------------------------------------


def external(name: str, location: str, *shape: int) -> Any:
    """A tensor whose numbers are in another file."""
    proto = onnx.TensorProto(name=name, data_type=1, dims=shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    entry = proto.external_data.add()
    entry.key, entry.value = "location", location
    return proto


def test_numbers_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, up = drawn(1, 20, 4), drawn(1, 20, 4, seed=1)
    (tmp_path / "inner").mkdir()
    (tmp_path / "w.bin").write_bytes(up.tobytes())
    (tmp_path / "inner" / "w.bin").write_bytes(own.tobytes())
    model = node_model("LSTM", name="a")
    kept = [t for t in model.graph.initializer if t.name != "W"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, external("W", "w.bin", 1, 20, 4)])
    path = tmp_path / "inner" / "a.onnx"
    path.write_bytes(model.SerializeToString())
    found = ost.from_onnx(path).layer.state_dict()["weight_ih_l0"]
    assert np.array_equal(found[:5], own[0, :5])
    monkeypatch.chdir(tmp_path)  # a model without a path has no folder, not this one
    for source in (model, model.SerializeToString()):
        with pytest.raises(ValueError, match=r"W: expected an array, got numbers in another file"):
            ost.from_onnx(source)
    node = H.make_node("Constant", [], ["W"], value=external("W", str(tmp_path / "w.bin"), 1, 20))
    with pytest.raises(ValueError, match=r"W: expected an array, got numbers in another file"):
        ost.from_onnx(made([node, *model.graph.node], model.graph.input, ["Y"], kept))
    model.graph.initializer[-1].external_data[0].value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"a.onnx: expected an ONNX model, got one that is dam"):
        ost.from_onnx(path)


BOMBS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "expanded": (
        [N("Expand", ["v", "n"], ["big"]), N("Add", ["big", "v"], ["more"])],
        {"v": np.ones(1, np.float32), "n": np.array([2**30])},
    ),
    "outer sum": (
        [N("Add", ["v", "n"], ["big"])],
        {"v": np.ones((1, 10_000), np.float32), "n": np.ones((10_000, 1), np.float32)},
    ),
    "gathered": (
        [N("Gather", ["v", "n"], ["big"], axis=1)],
        {"v": np.ones((10_000, 1), np.float32), "n": np.zeros(10_000, np.int64)},
    ),
    "doubled": (
        [N("Concat", [f"v{k}" if k else "v"] * 2, [f"v{k + 1}"], axis=0) for k in range(40)],
        {"v": np.ones(1, np.float32)},
    ),
    "cast": (
        [N("Expand", ["v", "n"], ["big"]), N("Cast", ["big"], ["more"], to=11)],
        {"v": np.ones(1, np.float32), "n": np.array([2**30])},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much(name: str) -> None:
    nodes, arrays = BOMBS[name]
    model = chain(nodes, None, ("Y",), **arrays)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"graph: expected constants of about the size"):
            ost.from_onnx(model)
        assert tracemalloc.get_traced_memory()[1] < 10**8
    finally:
        tracemalloc.stop()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    words = node_model("LSTM").SerializeToString()
    path.write_bytes(words[:-100])
    with pytest.raises(ValueError, match=r"a\.onnx: expected an ONNX model, got one"):
        ost.from_onnx(path)
    path.write_bytes(b"")
    for empty in (path, b"", onnx.ModelProto()):
        with pytest.raises(ValueError, match=r"expected an ONNX model, got one without a graph"):
            ost.from_onnx(empty)
    with pytest.raises(FileNotFoundError):
        ost.from_onnx(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match=r"source: expected a path"):
        ost.from_onnx(3.5)
    path.write_bytes(words)
    assert repr(ost.from_onnx(path).layer) == "LSTM(4, 5)"


def test_mutations_are_errors_or_layers() -> None:
    layer = nn.Sequential(nn.GRU(2, 3, rng=0), nn.Linear(3, 2, rng=1))
    words, rng = ost.to_onnx(layer).SerializeToString(), np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for k in range(1000):
        b = bytearray(words)
        if k % 8 == 0:
            b = b[: int(rng.integers(len(b)))]
        for _ in range(int(rng.integers(1, 4))):
            if b:
                b[int(rng.integers(len(b)))] = int(rng.integers(256))
        outcomes[outcome(bytes(b))] += 1
    assert min(outcomes.values()) > 0


def outcome(words: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ost.from_onnx(words).model()
        except ValueError:
            return "refused"
    return "read"
