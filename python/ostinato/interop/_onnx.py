"""Read models in the ONNX format, by the onnx package alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .. import _check, _files, nn
from .._annotations import readable
from ._imported import Entry, Imported, compare, require, shapes
from ._onnx_branches import Branches
from ._onnx_graph import FIRST, SECOND, Chain, Graph, named_nodes, node_name
from ._onnx_nodes import Made, NodeReader, verify_node


def _loaded(onnx: Any, source: Any) -> Any:
    """Return the ModelProto of a path, of bytes or of a model itself."""
    given = isinstance(source, (bytes, bytearray, onnx.ModelProto))
    name = "source" if given else _path_of(source)
    try:
        if isinstance(source, onnx.ModelProto):
            proto = source
        elif given:
            proto = onnx.load_from_string(bytes(source))
        else:
            with _files.open_regular(name):
                pass  # a pipe or a device would wait
            proto = onnx.load(name)
    except OSError:
        raise
    except Exception as e:  # protobuf's errors have no common public base
        raise ValueError(f"{name}: expected an ONNX model, got one that is damaged: {e}") from None
    if not proto.HasField("graph"):  # nothing at all is a message of protobuf, too
        raise ValueError(f"{name}: expected an ONNX model, got one without a graph")
    return proto


def _path_of(source: Any) -> str:
    try:
        return os.fsdecode(source)
    except TypeError as e:
        raise TypeError(f"source: expected a path, bytes or a model, got {e}") from None


@_check.values_follow()
def from_onnx(source: Any, *, gru_form: str | None = None, verify: bool = False) -> Imported:
    """Make layers of the RNN, LSTM and GRU nodes of an ONNX model, and a model of the whole graph.

    Nodes are found by their names (that of the first output where a node has none), in nested
    graphs too, with both directions, peepholes, layouts, constant initial states and weights that
    constants are computed to. `Imported.model` gives the whole graph as one model. Where it is a
    chain, that is a `Sequential`: Gather, MatMul, Add, Gemm, the recurrent nodes, Softmax, Tanh,
    Sigmoid and Relu, with Squeeze, Transpose and Reshape between; the last step, or the final
    state, in place of all steps; states and lengths as inputs, which are those of a call. Any other
    graph is a `Graph`, whose call takes the inputs and gives the outputs of the file.
    `Imported.describe` lists what became of every node; those that are not known are an error of
    `Imported.model` that names them all.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(rnn=ost.nn.GRU(3, 5, rng=0), head=ost.nn.Linear(5, 2, rng=1))
    >>> try:
    ...     imported = ost.from_onnx(ost.to_onnx(model))
    ... except ImportError:  # without onnx
    ...     imported = None
    >>> imported is None or list(imported) == ["rnn"]
    True

    Args:
        source: a path, the bytes of a file, or an ``onnx.ModelProto``.
        gru_form: of GRUs with ``linear_before_reset=0`` in files that PyTorch wrote, which has no
            such GRU: "torch" for reset-after, what was meant; "onnx" for reset-before, what the
            file says. None: as the file says, with a warning.
        verify: whether to run a random input through each layer and through its node by ONNX
            Runtime, which must be installed; they must agree within 1e-5.

    Returns:
        The layers by the names of their nodes.

    Raises:
        ImportError: onnx, or ONNX Runtime for ``verify``, is not installed.
        OSError: the file cannot be read.
        TypeError: a source of another kind.
        ValueError: a damaged file, or a node that the cells cannot be; the message names it.
    """
    if gru_form not in (None, "torch", "onnx"):
        raise ValueError(f"gru_form: expected 'torch', 'onnx' or None, got {gru_form!r}")
    verify = _check.flag("verify", verify)
    onnx = require("onnx", "onnx", "from_onnx")
    proto = _loaded(onnx, source)
    reader = NodeReader(onnx, proto.producer_name, gru_form)
    graph = Graph(onnx, proto.graph)
    layers: dict[str, nn.Layer] = {}
    entries: list[Entry] = []
    nodes: dict[str, Made | None] = {}  # by where they are and their first outputs
    for prefix, node, within in named_nodes(graph):
        name = prefix + node_name(node)
        while name in layers:
            name += "_"
        made = reader.make(name, node, within.constant)
        layers[name] = made.layer
        key = prefix + next((n for n in node.output if n), "")
        nodes[key] = None if key in nodes else made
        if verify:
            verify_node(onnx, name, node, made)
        entries.append(Entry(name, node.op_type, _found(made), repr(made.layer)))
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    branches = Branches(graph, nodes, opset)
    known = {e.name for e in entries}
    entries += [e for e in branches.entries if e.name not in known]
    notes = [f"Not read: {'; '.join(branches.refused)}."] if branches.refused else []
    chains: list[Chain | None] = []

    def assemble() -> nn.Layer:
        chain = Chain(graph, NodeReader(onnx, proto.producer_name, gru_form or "onnx"), opset)
        try:
            model = chain.model()
        except ValueError as why:
            try:
                model = branches.model()
            except ValueError as e:
                raise ValueError(f"{e}; and it is no chain: {why}") from None
            chains.append(None)
            imported.notes += (f"A Graph, since it is no chain: {why}.",)
        else:
            chains.append(chain)
        return model

    def check(model: nn.Layer) -> None:
        chain = chains[-1]
        if chain is None:
            _verify_graph(proto, model)
        else:
            _verify_whole(proto, chain, model)

    imported = Imported("ONNX", layers, entries, notes, assemble, check)
    return imported


def _found(made: Made) -> str:
    return f"{shapes(made.arrays)}; {made.said}"


def _verify_graph(proto: Any, model: Any) -> None:
    """Run random inputs through ONNX Runtime and through a graph."""
    runtime = require("onnxruntime", "bench", "verify=True")
    words = proto.SerializeToString()
    session = runtime.InferenceSession(words, providers=["CPUExecutionProvider"])
    rng, sizes = np.random.default_rng(0), dict[Any, int]()
    feed: dict[str, Any] = {}
    tables = [e.num_embeddings for e in model.layers.values() if isinstance(e, nn.Embedding)]
    for given, known in zip(session.get_inputs(), model._plan.inputs):
        # Sizes of one name are one size; those without a name are 4.
        shape = [
            n if isinstance(n, int) and n > 0 else sizes.setdefault(n, 4 + len(sizes))
            for n in given.shape
        ]
        kind = np.dtype(known["dtype"])
        if kind.kind == "f":
            feed[given.name] = rng.normal(size=shape).astype(kind)
        else:
            feed[given.name] = rng.integers(0, min(tables, default=2), shape).astype(kind)
    want = session.run(None, feed)
    got = model(*feed.values())
    for name, a, b in zip(proto.graph.output, got if len(want) > 1 else (got,), want):
        compare(f"ONNX Runtime for {name.name}", a, b, 1e-5)


def _verify_whole(proto: Any, chain: Chain, model: nn.Layer) -> None:
    """Run a random input through ONNX Runtime and through our model."""
    runtime = require("onnxruntime", "bench", "verify=True")
    words = proto.SerializeToString()
    session = runtime.InferenceSession(words, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    x: Any
    first = chain.order == (SECOND, FIRST)
    steps, batch = 6, 3
    given = {i.name: i for i in session.get_inputs()}
    sizes = [n if isinstance(n, int) else None for n in given[chain.input].shape]
    batch = sizes[0 if first else 1] or batch
    steps = sizes[1 if first else 0] or steps
    shape = [*((batch, steps) if first else (steps, batch))]
    leaf = model.layers[0] if isinstance(model, nn.Sequential) else model
    if isinstance(leaf, nn.Embedding):
        x = rng.integers(0, leaf.num_embeddings, shape)
    else:
        width = sizes[2] or next(
            int(getattr(inner, n))
            for inner in (leaf, getattr(leaf, "layer", leaf))
            for n in ("input_size", "in_features")
            if hasattr(inner, n)
        )
        x = rng.normal(size=(*shape, width)).astype(np.float32)
    for name, value in given.items():
        kind = np.int32 if value.type == "tensor(int32)" else np.int64
        if name == chain.input:
            feed[name] = x.astype(kind) if x.dtype.kind == "i" else x
        elif chain.asides.get(name) == "lengths":
            feed[name] = np.full(batch, steps, kind)
        else:
            dims = [n if isinstance(n, int) else batch for n in value.shape]
            feed[name] = np.zeros(dims, np.float32)
    want = session.run([chain.output], feed)[0]
    y = model(x)
    compare("ONNX Runtime", y[0] if model.stateful else y, want, 1e-5)


readable(globals())
