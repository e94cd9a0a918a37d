"""ONNX graphs that are no chain, held against ONNX Runtime: values, gradients, files, streams."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close
from ostinato import nn
from ostinato.interop import Graph

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
needs_onnxscript = pytest.mark.skipif(
    not importlib.util.find_spec("onnxscript"), reason="onnxscript is not installed"
)


def run(model: Any, feed: dict[str, Any]) -> list[Any]:
    """Run a model by ONNX Runtime."""
    words = model if isinstance(model, bytes) else model.SerializeToString()
    session = runtime.InferenceSession(words, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got: Any, want: Any) -> None:
    """Compare within 1e-5 of the largest number."""
    assert np.shape(got) == np.shape(want)
    assert np.abs(got - want).max(initial=0) <= 1e-5 * max(np.abs(want).max(initial=0), 1)


# -- models of PyTorch -----------------------------------------------------------------------------


def modules() -> dict[str, tuple[Any, Any, tuple[Any, ...]]]:
    """By name: layers, what they compute, and inputs ``[B,T,...]``."""
    n, cat = torch.nn, torch.cat
    x = drawn(2, 6, 4)
    ids = np.random.default_rng(0).integers(0, 10, (2, 6))
    return {
        "residual": (
            {"a": n.LSTM(4, 4, batch_first=True), "b": n.GRU(4, 4, batch_first=True)},
            lambda m, x: (lambda y: y + m.b(y)[0])(x + m.a(x)[0]),
            (x,),
        ),
        "two branches": (
            {"a": n.LSTM(4, 3, batch_first=True, bidirectional=True), "b": n.Linear(4, 5)},
            lambda m, x: cat([m.a(x)[0], torch.relu(m.b(x))], -1),
            (x,),
        ),
        "words and characters": (
            {
                "w": n.Embedding(10, 4),
                "c": n.Embedding(7, 3),
                "r": n.GRU(7, 5, batch_first=True),
                "f": n.Linear(5, 2),
            },
            lambda m, w, c: m.f(m.r(cat([m.w(w), m.c(c).mean(2)], -1))[0]),
            (ids, np.random.default_rng(1).integers(0, 7, (2, 6, 3))),
        ),
        "pools over time": (
            {"r": n.GRU(4, 5, batch_first=True, bidirectional=True), "f": n.Linear(30, 2)},
            lambda m, x: (lambda y: m.f(cat([y.mean(1), y.amax(1), y[:, -1]], -1)))(m.r(x)[0]),
            (x,),
        ),
        "states of both directions": (
            {"r": n.LSTM(4, 5, batch_first=True, bidirectional=True), "f": n.Linear(20, 2)},
            lambda m, x: (lambda h, c: m.f(cat([h[0], h[1], c[0], c[1]], -1)))(*m.r(x)[1]),
            (x,),
        ),
        "norms": (
            {
                "i": n.LayerNorm(4),
                "r": n.LSTM(4, 6, batch_first=True),
                "o": n.LayerNorm(6, eps=1e-3),
                "b": n.BatchNorm1d(6),
            },
            lambda m, x: m.b(m.o(m.r(m.i(x))[0]).transpose(1, 2)),
            (x,),
        ),
        "convolutions": (
            {
                "a": n.Conv1d(4, 6, 3, padding=1),
                "b": n.Conv1d(6, 6, 3, dilation=2, groups=3),
                "r": n.GRU(6, 5, batch_first=True),
            },
            lambda m, x: m.r(
                torch.nn.functional.leaky_relu(m.b(m.a(x.transpose(1, 2))), 0.1).transpose(1, 2)
            )[0],
            (x,),
        ),
        "a mask": (
            {"r": n.GRU(4, 5, batch_first=True), "d": n.Dropout(0.5)},
            lambda m, x, on: (
                lambda y: torch.where(on.unsqueeze(-1), y, torch.full_like(y, -1e9)).amax(1)
            )(m.d(m.r(x)[0])),
            (x, np.array([[True] * 6, [True] * 4 + [False] * 2])),
        ),
        "gates of its own": (
            {"r": n.GRU(4, 6, batch_first=True), "f": n.Linear(3, 3)},
            lambda m, x: (lambda a, b: torch.clamp(m.f(a) * torch.sigmoid(b), -0.5, 0.5))(
                *m.r(x)[0].chunk(2, -1)
            ),
            (x,),
        ),
        "several outputs": (
            {"r": n.LSTM(4, 4, batch_first=True), "f": n.Linear(4, 3)},
            lambda m, x, h, c: (lambda y, s: (torch.nn.functional.gelu(m.f(y + x)), s[0], s[1]))(
                *m.r(x, (h, c))
            ),
            (x, drawn(1, 2, 4, seed=1), drawn(1, 2, 4, seed=2)),
        ),
        "softmax over time": (
            {"r": n.GRU(4, 5, batch_first=True), "f": n.Linear(5, 1)},
            lambda m, x: (lambda y: (torch.softmax(m.f(y), 1) * y).sum(1))(m.r(x)[0]),
            (x,),
        ),
    }


NAMES = (
    *("residual", "two branches", "words and characters", "pools over time", "norms"),
    *("states of both directions", "convolutions", "a mask", "gates of its own"),
    *("several outputs", "softmax over time"),
)
STREAMED = ("gates of its own", "residual", "norms")


def net_of(name: str) -> tuple[Any, tuple[Any, ...]]:
    torch.manual_seed(0)
    layers, call, inputs = modules()[name]

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for key, layer in layers.items():
                self.add_module(key, layer)

        def forward(self, *inputs: Any) -> Any:
            return call(self, *inputs)

    net = Net()
    if "b" in layers and isinstance(layers["b"], torch.nn.BatchNorm1d):
        net(torch.from_numpy(drawn(8, 6, 4, seed=5)))  # which moves its running numbers
    return net.eval(), inputs


def exported(net: Any, inputs: tuple[Any, ...], exporter: str) -> bytes:
    """A module as PyTorch writes it, with a free batch and free steps."""
    names = [f"x{k}" for k in range(len(inputs))]
    tensors = tuple(map(torch.from_numpy, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            free = [torch.export.Dim.AUTO] * 2
            shapes = tuple(
                {1: free[0]} if np.ndim(a) == 3 and a.shape[0] == 1 else {0: free[0], 1: free[1]}
                for a in inputs
            )
            program = torch.onnx.export(
                net,
                tensors,
                dynamo=True,
                verbose=False,
                input_names=names,
                dynamic_shapes=(shapes,),
                optimize=True,
            )
            words: bytes = program.model_proto.SerializeToString()
            return words
        out = io.BytesIO()
        axes = {
            n: {1: "b"} if np.ndim(a) == 3 and a.shape[0] == 1 else {0: "b", 1: "t"}
            for n, a in zip(names, inputs)
        }
        torch.onnx.export(
            net,
            tensors,
            out,
            dynamo=False,
            input_names=names,
            dynamic_axes=axes,
            opset_version=17,
        )
    return out.getvalue()


@needs_torch
@pytest.mark.parametrize(
    ("name", "exporter"),
    [(name, "legacy") for name in NAMES]
    + [
        pytest.param(name, "dynamo", marks=needs_onnxscript)
        for name in ("residual", "words and characters", "pools over time", "norms")
    ],
)
def test_models_of_pytorch(name: str, exporter: str, tmp_path: Path) -> None:
    net, inputs = net_of(name)
    words = exported(net, inputs, exporter)
    imported = ost.from_onnx(words)
    model = imported.model()
    assert isinstance(model, Graph)
    fed = {i.name: a for i, a in zip(onnx.load_from_string(words).graph.input, inputs)}
    want = run(words, fed)
    got = model(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    for a, b in zip(got, want):
        close(a, b)
    with torch.no_grad():
        there = net(*map(torch.from_numpy, inputs))
    for a, b in zip(got, there if isinstance(there, tuple) else (there,)):
        close(a, b.numpy())
    # It is saved and read without a word of where it comes from.
    model.save(tmp_path / "graph")
    again = ost.load(tmp_path / "graph")(*inputs)
    assert all(
        np.array_equal(a, b) for a, b in zip(again if isinstance(again, tuple) else (again,), got)
    )
    assert all(e.became for e in imported.entries)


@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_models_of_pytorch_are_written_back(name: str) -> None:
    net, inputs = net_of(name)
    words = exported(net, inputs, "legacy")
    written = ost.to_onnx(ost.from_onnx(words).model())
    fed = {i.name: a for i, a in zip(written.graph.input, inputs)}
    for a, b in zip(run(written, fed), run(words, fed)):
        close(a, b)


@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_pytorch(name: str) -> None:
    net, inputs = net_of(name)
    model = ost.from_onnx(exported(net, inputs, "legacy")).model()
    y, pullback = model.vjp(*inputs)
    several = isinstance(y, tuple)
    dy = tuple(drawn(*a.shape, seed=9) for a in (y if several else (y,)))
    dx = pullback(dy if several else dy[0])
    dx = dx if isinstance(dx, tuple) else (dx,)
    tensors = [torch.from_numpy(a) for a in inputs]
    for t in tensors:
        t.requires_grad_(t.dtype == torch.float32)
    out = net(*tensors)
    total = sum((a * torch.from_numpy(b)).sum() for a, b in zip(out if several else (out,), dy))
    total.backward()
    for d, t in zip(dx, tensors):
        if t.grad is not None:
            assert_close(d, t.grad.numpy(), scale=20)
    # All parameters together: those of each side are named and divided in ways of their own.
    ours = float(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in model.grads.values())))
    theirs = float(torch.sqrt(sum(p.grad.double().square().sum() for p in net.parameters())))
    if name != "norms":  # whose BatchNormalization is one scale and one shift here
        assert ours == pytest.approx(theirs, rel=1e-4)
    before = model.flat.copy()
    ost.optim.Adam(1e-2).step(model)
    assert not np.array_equal(model.flat, before)


@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_streams_where_nodes_see_one_step(name: str) -> None:
    net, inputs = net_of(name)
    model = ost.from_onnx(exported(net, inputs, "legacy")).model()
    if name not in STREAMED:
        with pytest.raises(TypeError, match=r"^stream: expected"):
            model.stream(2)
        return
    x = drawn(3, 7, 4, seed=3)
    want, stream = model(x), model.stream(3)
    want = want.swapaxes(1, 2) if name == "norms" else want  # [B,C,T]
    for t in range(7):
        assert_close(stream.step(x[:, t].copy()), want[:, t], scale=4)
    stream.reset([1])
    y = stream.step(x[1:2, 0].copy(), slots=[1])
    assert_close(y[0], want[1, 0], scale=2)
    assert model.batch_first
    assert not model.reduces_time


# -- graphs of nodes -------------------------------------------------------------------------------


def N(*args: Any, **given: Any) -> Any:
    return H.make_node(*args, **given)


def graph(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], **more: Any) -> Any:
    """A model of nodes; inputs by the name with a dtype and a shape, further ones are constants."""
    opset = more.pop("opset", 17)
    arrays = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in more.items()]
    kinds = {"f": onnx.TensorProto.FLOAT, "i": onnx.TensorProto.INT64, "b": onnx.TensorProto.BOOL}
    given = [
        H.make_tensor_value_info(n, kinds[kind], list(shape)) for n, (kind, shape) in inputs.items()
    ]
    results = [H.make_empty_tensor_value_info(n) for n in outputs]
    model = H.make_model(
        H.make_graph(nodes, "g", given, results, arrays),
        opset_imports=[H.make_opsetid("", opset)],
    )
    model.ir_version = 8
    return model


W = {"w": drawn(1, 9, 3, seed=1), "r": drawn(1, 9, 3, seed=2)}
GRU = N("GRU", ["x", "w", "r"], ["Y", "Yh"], "gru", hidden_size=3, linear_before_reset=1)
FLAT = N("Squeeze", ["Y", "one"], ["y"])
ONE = {**W, "one": np.array([1])}
X = {"x": ("f", ("t", "b", 3))}


def unary(kind: str, opset: int = 17, **given: Any) -> Any:
    flat = FLAT if opset > 12 else N("Squeeze", ["Y"], ["y"], axes=[1])
    nodes = [GRU, flat, N("Add", ["x", "y"], ["s"]), N(kind, ["s"], ["o"], **given)]
    return lambda: graph(nodes, X, ["o"], **ONE, opset=opset)


def binary(kind: str) -> Any:
    return lambda: graph([GRU, FLAT, N(kind, ["x", "y"], ["o"])], X, ["o"], **ONE)


def compared(kind: str) -> Any:
    nodes = [GRU, FLAT, N(kind, ["x", "y"], ["on"]), N("Where", ["on", "x", "y"], ["o"])]
    return lambda: graph(nodes, X, ["o"], **ONE)


def reduced_by(kind: str, axes: Any, opset: int = 18, **given: Any) -> Any:
    """A reduction whose axes are an input, as all have them since opset 18."""
    node = N(kind, ["p", "axes"], ["o"], **given)
    positive = [N("Exp", ["y"], ["p"])]  # whose logarithm is a number
    nodes = [GRU, FLAT, *positive, node]
    return lambda: graph(nodes, X, ["o"], **ONE, axes=np.array(axes, np.int64), opset=opset)


def pooled(kind: str, size: Any, opset: int = 17, outer: Any = ("t",), **given: Any) -> Any:
    """A pool of the outputs of a layer over time, or of a picture."""
    picture = [N(kind, ["x"], ["o"], kernel_shape=size, **given)]
    if len(size) == 2:
        return lambda: graph(picture, {"x": ("f", ("b", 3, *outer))}, ["o"], opset=opset)
    nodes = [
        GRU, FLAT, N("Transpose", ["y"], ["n"], perm=[1, 2, 0]),
        N(kind, ["n"], ["q"], kernel_shape=size, **given),
        N("Transpose", ["q"], ["o"], perm=[2, 0, 1]),
    ]  # fmt: skip
    return lambda: graph(nodes, X, ["o"], **ONE, opset=opset)


def resized(by: dict[str, Any], opset: int = 17, **given: Any) -> Any:
    """A change of the size of a picture [N,C,5,6], by "scales" or "sizes"."""
    names = {10: ["x", "scales"], 9: ["x", "scales"]}.get(opset)
    names = names or ["x", "", *(["scales"] if "scales" in by else ["", "sizes"])]
    if opset < 9:
        names, given, by = ["x"], {**given, **{n: list(map(float, v)) for n, v in by.items()}}, {}
    nodes = [N("Upsample" if opset < 10 else "Resize", names, ["o"], **given)]
    arrays = {n: np.array(v, np.float32 if n == "scales" else np.int64) for n, v in by.items()}
    return lambda: graph(nodes, {"x": ("f", ("b", 3, 5, 6))}, ["o"], opset=opset, **arrays)


def branch(nodes: list[Any], *outputs: str) -> Any:
    return H.make_graph(nodes, "b", [], [H.make_empty_tensor_value_info(n) for n in outputs])


def chosen(then: Any, other: Any, outputs: list[str], *more: Any, above: float = -99.0) -> Any:
    """A choice by the sum of a layer's outputs, which is above a number."""
    nodes = [
        GRU, FLAT, N("ReduceSum", ["y"], ["sum"], keepdims=0),
        N("Greater", ["sum", "level"], ["on"]),
        N("If", ["on"], outputs, "if", then_branch=then, else_branch=other), *more,
    ]  # fmt: skip
    return lambda: graph(nodes, X, ["o"], **ONE, level=np.float32(above), k=drawn(3, seed=5))


THEN, ELSE = branch([N("Mul", ["y", "k"], ["t"])], "t"), branch([N("Neg", ["x"], ["e"])], "e")
INNER = N(
    "GRU", ["y", "w", "r"], ["Y2", "Yh2"], "second", hidden_size=3, linear_before_reset=1
)  # in a branch
BELOW = branch(
    [
        N("Constant", [], ["zero_f"], value=onnx.numpy_helper.from_array(np.float32(0), "z")),
        N("Greater", ["sum", "zero_f"], ["again"]),
        N("If", ["again"], ["n"], "inner",
          then_branch=branch([N("Sin", ["y"], ["n1"])], "n1"),
          else_branch=branch([N("Cos", ["x"], ["n2"])], "n2")),
    ],
    "n",
)  # fmt: skip


def reduced(kind: str, **given: Any) -> Any:
    return lambda: graph([GRU, FLAT, N(kind, ["y"], ["o"], **given)], X, ["o"], **ONE)


HAND: dict[str, Any] = {
    **{
        k: unary(k)
        for k in (
            *("Exp", "Neg", "Abs", "Sin", "Cos", "Sign", "Floor", "Ceil", "Tanh", "Sigmoid"),
            *("Relu", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Softsign"),
            *("Erf", "Reciprocal", "Softmax", "LogSoftmax", "Size", "Flatten"),
        )
    },
    "LeakyRelu 0.3": unary("LeakyRelu", alpha=0.3),
    "Softmax over time": unary("Softmax", axis=0),
    "Softmax over all axes": unary("Softmax", 11, axis=0),
    "Softmax over rows and features": unary("Softmax", 11, axis=1),
    **{k: binary(k) for k in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "PRelu")},
    **{
        k: compared(k)
        for k in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    },
    **{
        f"{k} {axes} {keep}": reduced(k, axes=axes, keepdims=keep)
        for k in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")
        for axes, keep in (([0], 0), ([0], 1), ([-1], 0), ([0, 2], 0))
    },
    "ReduceMax of all": reduced("ReduceMax"),
    "ReduceSum": lambda: graph(
        [GRU, FLAT, N("ReduceSum", ["y", "axes"], ["o"], keepdims=0)],
        X, ["o"], **ONE, axes=np.array([0]),
    ),
    "ArgMax": reduced("ArgMax", axis=-1, keepdims=0),
    "Split": lambda: graph(
        [GRU, FLAT, N("Split", ["y", "two"], ["a", "b"], axis=-1),
         N("Concat", ["b", "a", "x"], ["o"], axis=-1)],
        X, ["o"], **ONE, two=np.array([1, 2]),
    ),
    "Slice backwards": lambda: graph(
        [GRU, FLAT, N("Slice", ["y", "s", "e", "a", "by"], ["z"]), N("Add", ["z", "x"], ["o"])],
        X, ["o"], **ONE, s=np.array([-1]), e=np.array([-(2**62)]), a=np.array([0]),
        by=np.array([-1]),
    ),
    "Slice of steps": lambda: graph(
        [GRU, FLAT, N("Slice", ["y", "s", "e", "a"], ["o"])],
        X, ["o"], **ONE, s=np.array([1, 0]), e=np.array([2**62, 2]), a=np.array([0, 2]),
    ),
    "Gather": lambda: graph(
        [GRU, FLAT, N("Gather", ["y", "k"], ["o"], axis=0)], X, ["o"], **ONE,
        k=np.array([[0, -1], [1, 1]]),
    ),
    "final state and steps": lambda: graph(
        [GRU, FLAT, N("Mul", ["y", "Yh"], ["o"])], X, ["o", "Yh"], **ONE
    ),
    "shapes": lambda: graph(
        [GRU, FLAT, N("Shape", ["y"], ["n"]), N("Gather", ["n", "k"], ["tb"]),
         N("Concat", ["tb", "tail"], ["to"], axis=0), N("Reshape", ["y", "to"], ["z"]),
         N("Unsqueeze", ["x", "tail"], ["u"]), N("Expand", ["z", "n"], ["v"]),
         N("Transpose", ["v"], ["o"], perm=[1, 2, 0])],
        X, ["o", "u"], **ONE, k=np.array([0, 1]), tail=np.array([3]),
    ),
    "a state that is made": lambda: graph(
        [N("Shape", ["x"], ["n"]), N("Gather", ["n", "k"], ["b"]),
         N("Concat", ["front", "b", "tail"], ["to"], axis=0),
         N("ConstantOfShape", ["to"], ["h"], value=onnx.numpy_helper.from_array(
             np.array([0.5], np.float32))),
         N("GRU", ["x", "w", "r", "", "", "h"], ["Y", "Yh"], "gru", hidden_size=3,
           linear_before_reset=1),
         FLAT, N("Sub", ["y", "x"], ["o"])],
        X, ["o"], **ONE, k=np.array([1]), front=np.array([1]), tail=np.array([3]),
    ),
    "layout 1": lambda: graph(
        [N("LSTM", ["x", "w", "r"], ["Y", "Yh", "Yc"], "lstm", hidden_size=3, layout=0,
           direction="bidirectional"),
         N("Transpose", ["Y"], ["z"], perm=[0, 2, 1, 3]), N("Reshape", ["z", "to"], ["f"]),
         N("MatMul", ["f", "m"], ["p"]), N("Add", ["p", "x"], ["o"])],
        X, ["o", "Yc"], w=drawn(2, 12, 3), r=drawn(2, 12, 3), to=np.array([0, 0, -1]),
        m=drawn(6, 3, seed=4),
    ),
    "reverse": lambda: graph(
        [N("GRU", ["x", "w", "r"], ["Y", "Yh"], "gru", hidden_size=3, linear_before_reset=1,
           direction="reverse"), FLAT, N("Add", ["x", "y"], ["o"])],
        X, ["o", "Yh"], **ONE,
    ),
    "a product of two branches": lambda: graph(
        [GRU, FLAT, N("Transpose", ["y"], ["a"], perm=[1, 0, 2]),
         N("Transpose", ["x"], ["b"], perm=[1, 2, 0]), N("MatMul", ["a", "b"], ["o"])],
        X, ["o"], **ONE,
    ),
    "a Gemm of rows": lambda: graph(
        [GRU, N("Squeeze", ["Yh", "zero"], ["h"]),
         N("Gemm", ["h", "m", "v"], ["g"], alpha=0.5, beta=2.0, transB=1),
         N("Add", ["g", "h"], ["o"])],
        X, ["o"], **W, zero=np.array([0]), m=drawn(3, 3, seed=3), v=drawn(3, seed=6),
    ),
    "Pad": lambda: graph(
        [GRU, FLAT, N("Pad", ["y", "p", "half"], ["o"])], X, ["o"], **ONE,
        p=np.array([1, 0, 0, 0, 0, 2]), half=np.float32(0.5),
    ),
    "Pad by reflection": lambda: graph(
        [GRU, FLAT, N("Pad", ["y", "p"], ["o"], mode="reflect")], X, ["o"], **ONE,
        p=np.array([2, 0, 0, 1, 0, 0]),
    ),
    "Clip": lambda: graph(
        [GRU, FLAT, N("Add", ["x", "y"], ["s"]), N("Clip", ["s", "", "top"], ["o"])],
        X, ["o"], **ONE, top=np.float32(0.2),
    ),
    "CumSum": lambda: graph(
        [GRU, FLAT, N("CumSum", ["y", "axis"], ["o"])], X, ["o"], **ONE, axis=np.array(0)
    ),
    "Tile": lambda: graph(
        [GRU, FLAT, N("Tile", ["y", "n"], ["o"])], X, ["o"], **ONE, n=np.array([1, 2, 1])
    ),
    "GatherElements": lambda: graph(
        [GRU, FLAT, N("GatherElements", ["y", "k"], ["o"], axis=0)], X, ["o"], **ONE,
        k=np.array([[[0, 1, 2], [3, 0, 1]]]),
    ),
    "GatherElements of a part": lambda: graph(
        [GRU, FLAT, N("GatherElements", ["y", "k"], ["o"], axis=0)], X, ["o"], **ONE,
        k=np.array([[[2]]]),
    ),
    "Slice from before the beginning": lambda: graph(
        [GRU, FLAT, N("Slice", ["y", "s", "e", "a", "d"], ["o"])], X, ["o"], **ONE,
        s=np.array([-9, 9]), e=np.array([-9, -9]), a=np.array([0, 2]), d=np.array([-1, -2]),
    ),
    "ReduceSum of no axes": reduced("ReduceSum", noop_with_empty_axes=1),
    "the last of equals": lambda: graph(
        [GRU, FLAT, N("Sign", ["y"], ["s"]),
         N("ArgMax", ["s"], ["k"], axis=0, keepdims=0, select_last_index=1),
         N("Cast", ["k"], ["f"], to=1), N("Add", ["f", "y"], ["o"])], X, ["o"], **ONE,
    ),
    "a root of a whole number": lambda: graph(
        [GRU, FLAT, N("Shape", ["x"], ["n"]), N("Pow", ["n", "half"], ["p"]),
         N("Cast", ["p"], ["f"], to=1), N("Mul", ["f", "y"], ["o"])], X, ["o"], **ONE,
        half=np.float32(0.5),
    ),
    "a branch that reads a product": lambda: graph(
        [GRU, FLAT, N("MatMul", ["y", "m"], ["mm"]), N("Add", ["mm", "v"], ["s"]),
         N("If", ["on"], ["u"],
           then_branch=H.make_graph([N("Neg", ["mm"], ["t"])], "t", [],
                                    [H.make_empty_tensor_value_info("t")]),
           else_branch=H.make_graph([N("Abs", ["mm"], ["e"])], "e", [],
                                    [H.make_empty_tensor_value_info("e")])),
         N("Add", ["s", "u"], ["o"])],
        X, ["o"], **ONE, on=np.array(True), m=drawn(3, 3, seed=3), v=drawn(3, seed=6),
    ),
    "ReverseSequence": lambda: graph(
        [GRU, FLAT, N("ReverseSequence", ["y", "n"], ["o"], time_axis=0, batch_axis=1)],
        {**X, "n": ("i", ("b",))}, ["o"], **ONE,
    ),
    "lengths": lambda: graph(
        [N("Cast", ["n"], ["m"], to=6),
         N("GRU", ["x", "w", "r", "", "m"], ["Y", "Yh"], "gru", hidden_size=3,
           linear_before_reset=1), FLAT, N("Add", ["x", "y"], ["o"])],
        {**X, "n": ("i", ("b",))}, ["o", "Yh"], **ONE,
    ),
    "a branch that is chosen": lambda: graph(
        [GRU, FLAT, N("If", ["on"], ["o"], "if",
         then_branch=H.make_graph([N("Add", ["x", "y"], ["t"])], "t", [],
                                  [H.make_empty_tensor_value_info("t")]),
         else_branch=H.make_graph([N("Sub", ["x", "y"], ["e"])], "e", [],
                                  [H.make_empty_tensor_value_info("e")]))],
        X, ["o"], **ONE, on=np.array(True),
    ),
    **{f"If, {which}": chosen(THEN, ELSE, ["o"], above=level)
       for which, level in (("then", -99.0), ("else", 99.0))},
    "If with two outputs and values of the graph around": chosen(
        branch([N("Abs", ["x"], ["t1"]), N("Identity", ["y"], ["t2"])], "t1", "t2"),
        branch([N("Identity", ["x"], ["e1"]), N("Neg", ["y"], ["e2"])], "e1", "e2"),
        ["u", "v"], N("Mul", ["u", "v"], ["o"]),
    ),
    "If with a recurrent layer": chosen(
        branch([INNER, N("Squeeze", ["Y2", "one"], ["t"])], "t"), ELSE, ["s"],
        N("Add", ["s", "y"], ["o"]),
    ),
    **{f"If within If, {level}": chosen(THEN, BELOW, ["o"], above=level) for level in (99.0,)},
    "If of which one branch would fail": lambda: graph(
        [GRU, FLAT, N("Shape", ["x"], ["n"]), N("Gather", ["n", "zero"], ["steps"]),
         N("Equal", ["steps", "unit"], ["on"]),
         N("If", ["on"], ["o"], then_branch=branch([N("Squeeze", ["y", "front"], ["t0"]),
                                N("Unsqueeze", ["t0", "front"], ["t"])], "t"),
           else_branch=branch([N("Identity", ["y"], ["e"])], "e"))],
        X, ["o"], **ONE, zero=np.array(0), unit=np.array(1), front=np.array([0]),
    ),
    **{
        f"{k} {axes} {keep}, of an input": reduced_by(k, axes, keepdims=keep)
        for k in ("ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                  "ReduceLogSum", "ReduceLogSumExp", "ReduceMin", "ReduceSum")
        for axes, keep in (([0], 0), ([0, -1], 1))
    },
    "ReduceMax of no axes": reduced_by("ReduceMax", [], noop_with_empty_axes=1),
    **{k: unary(k, 22) for k in ("Selu", "Celu", "Mish", "ThresholdedRelu")},
    "Selu and Celu of other numbers": lambda: graph(
        [GRU, FLAT, N("Selu", ["y"], ["a"], alpha=1.1, gamma=0.9), N("Celu", ["a"], ["b"],
         alpha=0.7), N("ThresholdedRelu", ["x"], ["c"], alpha=0.3), N("Add", ["b", "c"], ["o"])],
        X, ["o"], **ONE,
    ),
    "Round": unary("Round"),
    "Mod": lambda: graph(
        [GRU, FLAT, N("Cast", ["x"], ["q"], to=7), N("Mod", ["q", "three"], ["m"]),
         N("Cast", ["m"], ["f"], to=1), N("Mul", ["f", "y"], ["o"])], X, ["o"], **ONE,
        three=np.array(-3),
    ),
    "Mod of real numbers": lambda: graph(
        [GRU, FLAT, N("Shape", ["x"], ["n"]), N("Cast", ["n"], ["f"], to=1),
         N("Mod", ["f", "part"], ["m"], fmod=1), N("Mul", ["m", "y"], ["o"])], X, ["o"], **ONE,
        part=np.float32(-1.5),
    ),
    "OneHot": lambda: graph(
        [N("OneHot", ["i", "depth", "values"], ["x"], axis=-1), GRU, FLAT,
         N("Add", ["x", "y"], ["o"])], {"i": ("i", ("t", "b"))}, ["o"], **ONE,
        depth=np.array(3), values=np.array([0.25, 2], np.float32),
    ),
    "Einsum": lambda: graph(
        [GRU, FLAT, N("Einsum", ["y", "m"], ["o"], equation="tbi, bij -> tbj")], X, ["o"], **ONE,
        m=drawn(2, 3, 4, seed=3),
    ),
    "InstanceNormalization": lambda: graph(
        [GRU, FLAT, N("Transpose", ["y"], ["n"], perm=[1, 2, 0]),
         N("InstanceNormalization", ["n", "s", "v"], ["q"], epsilon=1e-3),
         N("Transpose", ["q"], ["o"], perm=[2, 0, 1])], X, ["o"], **ONE,
        s=drawn(3, seed=2), v=drawn(3, seed=3),
    ),
    "MaxPool": pooled("MaxPool", [2]),
    "MaxPool, padded": pooled("MaxPool", [3], pads=[1, 1], strides=[2]),
    "MaxPool, rounded up": pooled("MaxPool", [2], strides=[3], ceil_mode=1),
    "MaxPool of a picture": pooled(
        "MaxPool", [3, 2], outer=(7, 8), strides=[2, 3], pads=[1, 0, 1, 1], dilations=[1, 2],
        ceil_mode=1,
    ),
    "MaxPool of opset 8": pooled("MaxPool", [2, 2], 8, (5, 6), strides=[2, 2]),
    **{f"MaxPool, {auto}": pooled("MaxPool", [3, 3], outer=(7, 8), strides=[2, 2], auto_pad=auto)
       for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")},
    "AveragePool": pooled("AveragePool", [2], strides=[2]),
    **{f"AveragePool, padded, {n}": pooled(
        "AveragePool", [3, 3], outer=(7, 8), strides=[2, 3], pads=[1, 1, 1, 1],
        count_include_pad=n) for n in (0, 1)},
    "AveragePool of opset 19": pooled(
        "AveragePool", [2, 2], 19, (7, 8), dilations=[2, 1], ceil_mode=1, strides=[2, 2]
    ),
    **{f"Resize, nearest, {n}, {where}": resized(
        {"scales": [1, 1, 1.6, 0.7]}, coordinate_transformation_mode=where, nearest_mode=n)
       for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
       for where in ("half_pixel", "asymmetric")},
    **{f"Resize, linear, {where}": resized(
        {"sizes": [2, 3, 8, 4]}, 19, mode="linear", coordinate_transformation_mode=where)
       for where in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
                     "asymmetric")},
    "Resize to one": resized(
        {"sizes": [2, 3, 1, 1]}, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "Resize of axes": resized({"scales": [1.5, 2]}, 18, axes=[2, 3]),
    "Resize of opset 10": resized({"scales": [1, 1, 2, 1.5]}, 10),
    "Resize of opset 10, linear": resized({"scales": [1, 1, 2, 1.5]}, 10, mode="linear"),
    "Upsample of opset 9": resized({"scales": [1, 1, 2, 3]}, 9),
    "Upsample of opset 7": resized({"scales": [1, 1, 2, 3]}, 7, mode="nearest"),
    "Resize over time": lambda: graph(
        [GRU, FLAT, N("Transpose", ["y"], ["n"], perm=[1, 2, 0]),
         N("Resize", ["n", "", "by"], ["q"]), N("Transpose", ["q"], ["o"], perm=[2, 0, 1])],
        X, ["o"], **ONE, by=np.array([1, 1, 2], np.float32),
    ),
    "a picture": lambda: graph(
        [N("Conv", ["x", "k", "b"], ["c"], pads=[1, 0, 0, 1], strides=[2, 1]),
         N("BatchNormalization", ["c", "s", "b", "b", "v"], ["n"]), N("Relu", ["n"], ["o"]),
         N("GlobalAveragePool", ["o"], ["g"])],
        {"x": ("f", ("b", 2, 5, 6))}, ["o", "g"], k=drawn(3, 2, 3, 2), b=drawn(3),
        s=drawn(3, seed=2), v=np.abs(drawn(3, seed=3)) + 0.5,
    ),
}  # fmt: skip


def fed(model: Any, seed: int = 0) -> dict[str, Any]:
    """Inputs of 4 steps and 2 rows."""
    sizes, rng, out = {"t": 4, "b": 2}, np.random.default_rng(seed), {}
    for i in model.graph.input:
        dims = i.type.tensor_type.shape.dim
        shape = [d.dim_value or sizes[d.dim_param] for d in dims]
        whole = i.type.tensor_type.elem_type == onnx.TensorProto.INT64
        out[i.name] = (
            rng.integers(1, 5, shape) if whole else rng.normal(size=shape).astype(np.float32)
        )
    return out


@pytest.mark.parametrize("name", HAND)
def test_nodes_agree_with_onnx_runtime(name: str, tmp_path: Path) -> None:
    model = HAND[name]()
    feed = fed(model)
    want = run(model, feed)
    imported = ost.from_onnx(model)
    made = imported.model()
    assert isinstance(made, Graph)
    got = made(*feed.values())
    for a, b in zip(got if len(want) > 1 else (got,), want):
        assert np.asarray(a).dtype == b.dtype
        close(a, b)
    made.save(tmp_path / "graph")
    again = ost.load(tmp_path / "graph")(*feed.values())
    for a, b in zip(again if len(want) > 1 else (again,), want):
        close(a, b)


@pytest.mark.parametrize("name", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("where", ["half_pixel", "asymmetric", "align_corners"])
def test_the_nearest_element_of_two_is_that_of_onnx_runtime(name: str, where: str) -> None:
    """Sizes whose quotient float32 rounds, so that one of two equally near ones seems nearer."""
    for length, size in ((7, 4), (7, 8), (10, 12), (14, 1), (14, 2), (14, 19)):
        at = {"coordinate_transformation_mode": where, "nearest_mode": name}
        nodes = [N("Resize", ["x", "", "", "sizes"], ["o"], **at)]
        sizes = np.array([1, 1, size, 1])
        model = graph(nodes, {"x": ("f", (1, 1, length, 1))}, ["o"], opset=19, sizes=sizes)
        x = np.arange(length, dtype=np.float32).reshape(1, 1, length, 1)
        (want,) = run(model, {"x": x})
        np.testing.assert_array_equal(ost.from_onnx(model).model()(x), want)


@pytest.mark.parametrize("keep", [0, 1])
def test_the_logarithm_of_a_sum_of_infinite_exponentials(keep: int) -> None:
    node = N("ReduceLogSumExp", ["x", "axes"], ["o"], keepdims=keep)
    model = graph([node], {"x": ("f", (5, 3))}, ["o"], opset=18, axes=np.array([1]))
    x = drawn(5, 3)
    x[0], x[1], x[2, 0], x[3, 1] = -np.inf, np.inf, np.inf, -np.inf
    (want,) = run(model, {"x": x})
    assert np.isinf(want.reshape(-1)).tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(ost.from_onnx(model).model()(x), want, rtol=1e-5)


EMPTY: dict[str, Any] = {
    "Softmax": lambda: graph([N("Softmax", ["x"], ["o"], axis=1)], X, ["o"], opset=11),
    "Tile": lambda: graph([N("Tile", ["x", "n"], ["o"])], X, ["o"], n=np.array([2, 0, 1])),
    "Conv": lambda: graph([N("Conv", ["x", "k"], ["o"])], X, ["o"], k=drawn(2, 3, 2)),
    "MaxPool": lambda: graph([N("MaxPool", ["x"], ["o"], kernel_shape=[2])], X, ["o"]),
    "AveragePool": lambda: graph([N("AveragePool", ["x"], ["o"], kernel_shape=[2])], X, ["o"]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_arrays(name: str) -> None:
    model = EMPTY[name]()
    x = drawn(2, 3, 3) if name == "Tile" else np.zeros((0, 3, 3), np.float32)
    (want,) = run(model, {"x": x})
    assert ost.from_onnx(model).model()(x).shape == want.shape


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3)])
def test_no_steps_and_no_rows(shape: tuple[int, ...]) -> None:
    made = ost.from_onnx(HAND["final state and steps"]()).model()
    y, state = made(np.zeros(shape, np.float32))
    assert y.shape == shape
    assert state.shape == (1, shape[1], 3)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("kind", ["Sum", "Mean", "Prod", "L1", "L2", "SumSquare", "LogSumExp"])
def test_reductions_of_whole_numbers(kind: str, dtype: Any) -> None:
    nodes = [N("Cast", ["x"], ["k"], to=6 if dtype is np.int32 else 7),
             N(f"Reduce{kind}", ["k", "axes"], ["o"])]  # fmt: skip
    model = graph(nodes, {"x": ("f", ("t", 3))}, ["o"], axes=np.array([1]), opset=18)
    x = np.array([[1, 2, 2], [3, -5, -2]], np.float32)
    (want,) = run(model, {"x": x})
    found = ost.from_onnx(model).model()(x)
    assert found.dtype == want.dtype == dtype
    assert np.array_equal(found, want)


def test_a_cumulative_sum_along_an_axis_in_a_list() -> None:
    model = graph([N("CumSum", ["x", "k"], ["o"])], X, ["o"], k=np.array([1]))
    x = drawn(4, 2, 3)
    close(ost.from_onnx(model).model()(x), run(model, {"x": x})[0])


STEPPED = ("ArgMax", "Size", "Sign", "Floor", "Ceil", "Reciprocal", "a picture", "OneHot")
STEPPED += ("Round", "Mod", "ThresholdedRelu", "Selu and Celu of other numbers")


@pytest.mark.parametrize("name", HAND)
def test_graphs_are_written_back(name: str) -> None:
    model = HAND[name]()
    feed = fed(model)
    want = run(model, feed)
    written = ost.to_onnx(ost.from_onnx(model).model())
    for a, b in zip(run(written, feed), want):
        close(a, b)
    again = ost.from_onnx(written).model()(*feed.values())
    for a, b in zip(again if len(want) > 1 else (again,), want):
        close(a, b)


SMOOTH = [n for n in HAND if n not in STEPPED]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_differences(name: str) -> None:
    model = HAND[name]()
    feed = fed(model, seed=4)
    made = ost.from_onnx(model).model()
    y, pullback = made.vjp(*feed.values())
    several = isinstance(y, tuple)
    dy = tuple(drawn(*np.shape(a), seed=7) for a in (y if several else (y,)))
    dx = pullback(dy if several else dy[0])
    dx = dx[0] if isinstance(dx, tuple) else dx
    x, rest = next(iter(feed.values())), list(feed.values())[1:]

    def loss(a: Any) -> float:
        out = made(a, *rest)
        return float(
            sum((b * d).sum(dtype=np.float64) for b, d in zip(out if several else (out,), dy))
        )

    towards = drawn(*x.shape, seed=8)
    step = np.float32(1e-3)
    want = (loss(x + step * towards) - loss(x - step * towards)) / (2 * float(step))
    assert float((dx * towards).sum()) == pytest.approx(want, rel=2e-2, abs=2e-2)


def test_all_that_is_not_known_is_named_at_once() -> None:
    model = graph(
        [GRU, FLAT, N("NonZero", ["y"], ["a"], "first"), N("Sinh", ["y"], ["o"], "second")],
        X, ["o"], **ONE,
    )  # fmt: skip
    imported = ost.from_onnx(model)
    assert "Not read: NonZero (first); Sinh (second)." in imported.describe()
    assert list(imported) == ["gru"]
    with pytest.raises(ValueError, match=r"got NonZero \(first\); Sinh \(second\)"):
        imported.model()


def test_what_was_mapped_is_described() -> None:
    model = HAND["a Gemm of rows"]()
    text = ost.from_onnx(model).describe()
    assert "Gemm" in text
    assert "Linear" in text
    assert "a function" in text


def test_names_of_two_branches() -> None:
    """The same inner name in two branches would be one value here; it is refused."""

    def chosen(out: str, factor: float) -> Any:
        inner = [onnx.numpy_helper.from_array(np.float32(factor), "k")]
        made = [H.make_empty_tensor_value_info("t")]
        branch = H.make_graph([N("Mul", ["x", "k"], ["t"])], "b", [], made, inner)
        return N("If", ["on"], [out], then_branch=branch, else_branch=branch)

    nodes = [GRU, FLAT, chosen("a", 2), chosen("b", 10), N("Sum", ["a", "b", "y"], ["o"])]
    with pytest.raises(ValueError, match="b: expected a name of its own, got 'k' of another"):
        ost.from_onnx(graph(nodes, X, ["o"], **ONE, on=np.array(True))).model()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (N("Resize", ["n", "", "by"], ["o"], mode="cubic"), "Resize with mode one of nearest, l"),
        (
            N("Resize", ["n", "by", "by"], ["o"], coordinate_transformation_mode="tf_crop_and_r"),
            "coordinate_transformation_mode one of half_pixel, ",
        ),
        (N("Resize", ["n", "", "by"], ["o"], antialias=1), "antialias one of 0, got 1"),
        (N("Pad", ["n", "p"], ["o"], mode="other"), "Pad with mode one of constant, reflect"),
        (N("CumSum", ["n", "one"], ["o"], reverse=1), "CumSum with reverse one of 0"),
        (N("MaxPool", ["n"], ["q", "o"], kernel_shape=[2]), "got one whose places are"),
        (N("LpPool", ["n"], ["o"], kernel_shape=[2]), r"got LpPool \(o\)"),
    ],
    ids=["cubic", "crop", "antialias", "Pad", "CumSum", "places", "LpPool"],
)
def test_ways_that_there_are_not(node: Any, message: str) -> None:
    nodes = [GRU, FLAT, N("Transpose", ["y"], ["n"], perm=[1, 2, 0]), node]
    model = graph(nodes, X, ["o"], **ONE, opset=18, by=np.ones(3, np.float32), p=np.zeros(6, int))
    with pytest.raises(ValueError, match=message):
        ost.from_onnx(model).model()


@pytest.mark.parametrize("opset", [11, 17, 18, 22])
def test_attributes_become_inputs_with_their_opset(opset: int) -> None:
    """A graph made by hand has attributes; the file has them where its opset looks for them."""
    nodes = [
        {"op": "Recurrent", "layer": "rnn", "inputs": ["x"], "outputs": ["all"]},
        {"op": "Squeeze", "inputs": ["all"], "outputs": ["h"], "at": {"axes": [1]}},
        {"op": "Clip", "inputs": ["h"], "outputs": ["c"], "at": {"max": 0.1}},
        {"op": "Pad", "inputs": ["c"], "outputs": ["p"],
         "at": {"pads": [0, 0, 1, 0, 0, 0], "value": 2.0}},
        {"op": "Slice", "inputs": ["p"], "outputs": ["s"],
         "at": {"starts": [1], "ends": [3], "axes": [2]}},
        {"op": "Split", "inputs": ["s"], "outputs": ["a", "b"], "at": {"axis": 2, "split": [1, 1]}},
        {"op": "ReduceMax", "inputs": ["a"], "outputs": ["m"], "at": {"axes": [0], "keepdims": 0}},
        {"op": "ReduceSum", "inputs": ["b"], "outputs": ["q"], "at": {"axes": [0], "keepdims": 0}},
        {"op": "Add", "inputs": ["m", "q"], "outputs": ["y"]},
    ]  # fmt: skip
    inputs = [{"name": "x", "dtype": "float32", "shape": [None, None, 3]}]
    layers = {"rnn": nn.GRU(3, 4, rng=0)}
    made = Graph(nodes, layers, inputs=inputs, outputs=["y"], opset=opset)
    x = drawn(5, 2, 3)
    words = ost.to_onnx(made)
    assert words.opset_import[0].version == opset
    close(run(words, {"x": x})[0], made(x))


def test_choices_made_by_hand() -> None:
    """A choice says what its branches read; what it does not say is an error."""
    both: list[dict[str, Any]] = [
        {"nodes": [{"op": "Neg", "inputs": ["x"], "outputs": ["t"]}], "outputs": ["t"]},
        {"nodes": [], "outputs": ["x"]},
    ]
    choice = {"op": "If", "inputs": ["on", "x"], "outputs": ["y"], "branches": both}
    inputs = [
        {"name": "x", "dtype": "float32", "shape": [None, 3]},
        {"name": "on", "dtype": "bool", "shape": []},
    ]
    made = Graph([choice], inputs=inputs, outputs=["y"])
    x = drawn(2, 3)
    assert np.array_equal(made(x, np.array(True)), -x)
    assert np.array_equal(made(x, np.array(False)), x)
    y, pullback = made.vjp(x, np.array(True))
    assert np.array_equal(pullback(np.ones_like(y))[0], -np.ones_like(x))
    with pytest.raises(ValueError, match=r"If: If: expected a condition of one element, got \(2,"):
        made(x, np.array([True, False]))
    for changed, message in (
        ({"inputs": ["on"]}, "to have all that its branches read, got none of x"),
        ({"branches": both[:1]}, "expected If with two branches, got 1"),
        ({"outputs": ["y", "z"]}, "expected branches of If that make 2 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            Graph([{**choice, **changed}], inputs=inputs, outputs=["y"])


def test_outputs_without_a_number_of_axes_are_not_written() -> None:
    front = {"front": np.array([0])}
    flat = branch([N("Squeeze", ["Yh", "front"], ["t"])], "t")
    nodes = [GRU, FLAT, N("ReduceSum", ["y"], ["sum"], keepdims=0),
             N("Greater", ["sum", "level"], ["on"]),
             N("If", ["on"], ["o"], then_branch=flat,
               else_branch=branch([N("Identity", ["y"], ["e"])], "e"))]  # fmt: skip
    model = graph(nodes, X, ["o"], **ONE, **front, level=np.float32(0))
    with pytest.raises(ValueError, match="o: expected an output whose number of axes onnx can"):
        ost.to_onnx(ost.from_onnx(model).model())


def test_attributes_that_nothing_reads_are_refused() -> None:
    nodes = [GRU, FLAT, N("Mul", ["y", "v"], ["o"], broadcast=1, axis=1)]
    with pytest.raises(ValueError, match="expected Mul without axis, broadcast, got one"):
        ost.from_onnx(graph(nodes, X, ["o"], **ONE, v=drawn(3))).model()


@pytest.mark.parametrize(
    ("node", "what"),
    [
        ({"op": "Pow", "inputs": ["two", "x"]}, "an exponent"),
        ({"op": "ReduceProd", "inputs": ["x"], "at": {"axes": [1]}}, "factors of a product"),
        ({"op": "Clip", "inputs": ["two", "", "x"]}, "an upper bound"),
    ],
)
def test_no_gradient_is_left_out(node: Any, what: str) -> None:
    """There is another path to the output, so that a lost one would go unseen."""
    nodes = [node | {"outputs": ["p"]}, {"op": "Add", "inputs": ["x", "p"], "outputs": ["y"]}]
    two = {"two": {"dtype": "float32", "shape": [], "values": [2.0]}}
    inputs = [{"name": "x", "dtype": "float32", "shape": [None, 3]}]
    made = Graph(nodes, {}, numbers=two, inputs=inputs, outputs=["y"])
    assert np.isfinite(made(drawn(1, 3))).all()
    with pytest.raises(TypeError, match=f"expected {what} without a gradient"):
        made.vjp(drawn(1, 3))


@pytest.mark.parametrize("kind", ["Div", "Add"])
def test_streams_that_would_count_steps(kind: str) -> None:
    """A number of steps that comes into the result, and positions in a sequence."""
    count = [N("Shape", ["x"], ["n"]), N("Gather", ["n", "zero"], ["steps"])]
    if kind == "Add":
        count += [
            N("Range", ["zero", "steps", "unit"], ["p"]),
            N("Reshape", ["p", "column"], ["q"]),
            N("Cast", ["q"], ["f"], to=1),
        ]
    else:
        count += [N("Cast", ["steps"], ["f"], to=1)]
    more = {"zero": np.array(0), "unit": np.array(1), "column": np.array([-1, 1, 1])}
    model = graph([GRU, FLAT, *count, N(kind, ["y", "f"], ["o"])], X, ["o"], **ONE, **more)
    with pytest.raises(TypeError, match=f"{kind}.*reads 'f', made from the number of steps"):
        ost.from_onnx(model).model().stream(2)


def test_wrong_inputs_name_the_node() -> None:
    made = ost.from_onnx(HAND["Add"]()).model()
    with pytest.raises(TypeError, match=r"inputs: expected 1 \(x\), got 2"):
        made(drawn(4, 2, 3), drawn(4, 2, 3))
    with pytest.raises(ValueError, match=r"^x: expected 3 axes of sizes \(any, any, 3\), got"):
        made(drawn(4, 2, 5))
    free = ost.from_onnx(
        graph([GRU, FLAT, N("Neg", ["y"], ["o"])], {"x": ("f", "tbi")}, ["o"], **ONE)
    )
    with pytest.raises(ValueError, match="gru: Recurrent: x: expected"):
        free.model()(drawn(4, 2, 5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("final state and steps", "got .*Mul.*, which reads 'Yh' of a whole sequence"),
        ("reverse", r"got gru \(Recurrent\)"),
        ("ReduceMax [0] 0", "ReduceMax"),
        ("Softmax over time", "Softmax"),
        ("Softmax over all axes", "Softmax"),
        ("Slice backwards", "Slice"),
        ("lengths", "a graph with one input, got 2"),
        ("a product of two branches", "time to stay an axis of its own"),
        ("CumSum", "CumSum"),
        ("If of which one branch would fail", r"\(If\), whose condition may see others"),
        ("MaxPool", "time to stay an axis of its own"),
        ("ReduceLogSum [0] 0, of an input", "ReduceLogSum"),
    ],
)
def test_streams_that_would_see_other_steps(name: str, message: str) -> None:
    made = ost.from_onnx(HAND[name]()).model()
    with pytest.raises(TypeError, match=f"^stream: expected .*{message}"):
        made.stream(2)


def by_hand(last: dict[str, Any], rows: int | None = None, **given: Any) -> Graph:
    """A layer, and what comes behind it."""
    lengths = ["n"] if "n" in given else []
    nodes: list[dict[str, Any]] = [
        {"op": "Recurrent", "layer": "rnn", "inputs": ["x", *lengths], "outputs": ["all"]},
        {"op": "Squeeze", "inputs": ["all"], "outputs": ["h"], "at": {"axes": [1]}},
        {"outputs": ["y"], **last},
    ]
    layers = {"rnn": nn.GRU(3, 3, rng=0)}
    inputs = [{"name": "x", "dtype": "float32", "shape": [None, rows, 3]}]
    return Graph(nodes, layers, inputs=inputs, outputs=["y"], numbers=given)


GAIN: dict[str, Any] = {"s": {"dtype": "float32", "shape": [3], "values": [1.0, 2.0, 3.0]}}
NORM = {"op": "LayerNormalization", "inputs": ["h", "s"]}
ADDED = {"op": "Add", "inputs": ["x", "h"]}
ONES = {"dtype": "int64", "shape": [3], "values": [1, 1, 1]}


@pytest.mark.parametrize("axis", [0, -3])
def test_a_stream_of_a_norm_over_all_steps(axis: int) -> None:
    """It was run, and each step was normed by itself."""
    made = by_hand(NORM | {"at": {"axis": axis, "epsilon": 1e-5}}, **GAIN)
    with pytest.raises(TypeError, match=r"^stream: expected nodes that see one.*LayerNorm"):
        made.stream(2)


def test_a_stream_of_fixed_lengths() -> None:
    """They were not looked at, so that rows went on behind their ends."""
    with pytest.raises(TypeError, match=r"^stream: expected nodes that see one.*Recurrent"):
        by_hand(ADDED, 3, n=ONES).stream(3)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_stream_whose_outputs_are_no_rows(batch: int) -> None:
    """With as many features as rows they were taken for one another."""
    for perm in ([0, 2, 1], [2, 1, 0]):
        made = by_hand({"op": "Transpose", "inputs": ["h"], "at": {"perm": perm}})
        with pytest.raises(TypeError, match=r"^stream: expected inputs \[T,B,I\] and outputs"):
            made.stream(batch)
    made = by_hand({"op": "ReduceMean", "inputs": ["h"], "at": {"axes": [1]}})
    with pytest.raises(TypeError, match=r"^stream: expected inputs \[T,B,I\] and outputs"):
        made.stream(batch)


def test_a_stream_of_a_fixed_batch() -> None:
    made, x = by_hand(ADDED, 2), drawn(5, 2, 3)
    stream, want = made.stream(2), made(x)
    for t in range(5):
        assert_close(stream.step(x[t].copy()), want[t], scale=2)
    with pytest.raises(ValueError, match="batch: expected 2, the rows that 'x' has in the graph"):
        made.stream(3)


def test_masked_arrays_are_refused() -> None:
    x = np.ma.array(drawn(4, 2, 3), mask=False)
    made = by_hand(ADDED)
    assert np.array_equal(made(x), made(x.data))
    x[0, 0] = np.ma.masked
    with pytest.raises(ValueError, match="x: expected an array without masked elements"):
        made(x)


def test_an_empty_list_of_whole_numbers() -> None:
    inputs = [{"name": "x", "dtype": "int64", "shape": [None]}]
    made = Graph([{"op": "Neg", "inputs": ["x"], "outputs": ["y"]}], inputs=inputs, outputs=["y"])
    assert made([]).dtype == np.int64


@pytest.mark.parametrize(
    "name",
    ["Add", "LeakyRelu", "a state that is made", "Split", "Clip", "Softmax over rows and features"],
)
def test_streams(name: str) -> None:
    made = ost.from_onnx(HAND[name]()).model()
    x, stream = drawn(5, 2, 3, seed=1), made.stream(2)
    want = made(x)
    for t in range(5):
        assert_close(stream.step(x[t].copy()), want[t], scale=2)
    stream.reset()
    assert_close(stream.step(x[0].copy()), want[0], scale=2)
    state = stream.state
    again = made.stream(2)
    again.state = state
    assert np.array_equal(again.step(x[1].copy()), stream.step(x[1].copy()))


def test_indices_stream_through_their_embedding() -> None:
    nodes = [
        N("Gather", ["table", "i"], ["x"]), GRU, FLAT, N("Add", ["x", "y"], ["o"]),
    ]  # fmt: skip
    model = graph(nodes, {"i": ("i", ("t", "b"))}, ["o"], table=drawn(6, 3), **ONE)
    made = ost.from_onnx(model).model(verify=True)
    ids = np.random.default_rng(0).integers(0, 6, (5, 2))
    want, stream = made(ids), made.stream(2)
    for t in range(5):
        assert_close(stream.step(ids[t]), want[t], scale=2)


def test_a_trainer_trains_a_graph() -> None:
    made = ost.from_onnx(HAND["Add"]()).model()
    x = drawn(6, 8, 3)
    target = np.tanh(x)
    trainer = ost.Trainer(made, ost.losses.MSE(), ost.optim.Adam(1e-2))
    before = trainer.evaluate([(x, target)])["loss"]
    trainer.fit([(x, target)], epochs=60, progress=False)
    assert trainer.evaluate([(x, target)])["loss"] < 0.7 * before


def test_layers_are_those_of_the_model() -> None:
    imported = ost.from_onnx(HAND["Add"]())
    made = imported.model()
    assert made.layers["gru"] is imported["gru"]
    assert isinstance(imported["gru"], nn.GRU)


def test_graphs_that_are_none() -> None:
    inputs = [{"name": "x", "dtype": "float32", "shape": [None, None, 3]}]
    add = {"op": "Add", "inputs": ["x", "z"], "outputs": ["y"]}
    with pytest.raises(ValueError, match="nodes: expected Add to read what is there, got 'z'"):
        Graph([add], inputs=inputs, outputs=["y"])
    with pytest.raises(TypeError, match="nodes: expected operators that there are, got 'Tan'"):
        Graph([{**add, "op": "Tan"}], inputs=inputs, outputs=["y"])
    with pytest.raises(TypeError, match="layers: expected a layer 'r', got none"):
        Graph([{**add, "op": "Recurrent", "layer": "r"}], inputs=inputs, outputs=["y"])
    with pytest.raises(ValueError, match="outputs: expected values of the graph, got"):
        Graph([{**add, "inputs": ["x", "x"]}], inputs=inputs, outputs=["q"])


def test_names_that_are_there_already() -> None:
    """A node whose outputs are there does not run, and of two inputs the second one counted."""
    inputs = [{"name": "x", "dtype": "float32", "shape": [None]}]
    neg = {"op": "Neg", "inputs": ["x"], "outputs": ["y"]}
    for outputs in (["y"], ["x"]):
        again = {"op": "Exp", "inputs": ["x"], "outputs": outputs}
        with pytest.raises(ValueError, match="nodes: expected Exp to make values of names of thei"):
            Graph([neg, again], inputs=inputs, outputs=["y"])
    with pytest.raises(ValueError, match="inputs: expected names that no other input or number ha"):
        Graph([neg], inputs=inputs * 2, outputs=["y"])
    number = {"x": {"dtype": "float32", "shape": [], "values": [1.0]}}
    with pytest.raises(ValueError, match="inputs: expected names that no other input or number ha"):
        Graph([neg], inputs=inputs, outputs=["y"], numbers=number)


def test_what_a_node_lacks() -> None:
    inputs = [{"name": "x", "dtype": "float32", "shape": [None]}]
    x = drawn(4)

    def made(node: dict[str, Any], output: str) -> Any:
        return Graph([{"inputs": ["x"], **node}], inputs=inputs, outputs=[output])

    two = {"op": "Neg", "outputs": ["y", "z"]}
    assert np.array_equal(made(two, "y")(x), -x)  # as a Dropout whose mask nothing reads
    with pytest.raises(ValueError, match="Neg: expected at most 1 outputs, got one more, 'z'"):
        made(two, "z")(x)
    with pytest.raises(ValueError, match="Concat: expected attributes that it has, got no 'axis'"):
        made({"op": "Concat", "outputs": ["y"]}, "y")(x)
    for at in ({}, {"num_outputs": 2}):
        split = {"op": "Split", "outputs": ["y", "z"], "at": at}
        assert np.array_equal(made(split, "z")(x), x[2:])
