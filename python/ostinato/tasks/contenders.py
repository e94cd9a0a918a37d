"""Contenders of the benchmark: each builds a function that runs a case once.

The function returns what is compared, as NumPy arrays. A contender's name may have settings:
``ostinato:threads=1`` or ``ostinato:precision=bfloat16`` run beside plain ``ostinato``. Every peer
runs in the way that its documentation recommends for speed: torch in inference mode, ONNX Runtime
with a checked model, Keras under ``tf.function``, JAX under ``jit`` with the input product outside
the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._annotations import readable
from .._cells import FAMILIES
from .._check import Array

__all__ = ["CONTENDERS", "Case", "arrays", "make", "onnx_session", "settings_of"]

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
Runner = Callable[[], dict[str, Array]]


@dataclass(frozen=True)
class Case:
    """One case of the benchmark: a layer and what it does.

    >>> Case("lstm", "infer", 32, 256).name
    'lstm-infer-B32-H256'

    Attributes:
        cell: "rnn", "lstm" or "gru".
        mode: "infer"; "train": forward and all gradients; or "step": one step of a stream, which
            carries its state on.
        batch: sequences B.
        hidden: units H.
        steps: T.
        inputs: I; 0: as hidden.
        precision: "float32", "float64", "bfloat16" or "int8".
        bidirectional: whether there are both directions.
        layers: layers of the stack.
        variant: "peephole", "layer_norm" or "projected" (LSTM; P = H / 2), "reset_before" (GRU),
            or "".
        pause: milliseconds without a call before each.
    """

    cell: str
    mode: str
    batch: int
    hidden: int
    steps: int = 100
    inputs: int = 0
    precision: str = "float32"
    bidirectional: bool = False
    layers: int = 1
    variant: str = ""
    pause: int = 0

    @property
    def input_size(self) -> int:
        """The number of inputs I."""
        return self.inputs or self.hidden

    @property
    def proj_size(self) -> int:
        """The size P of a projected LSTM, otherwise 0."""
        return self.hidden // 2 if self.variant == "projected" else 0

    @property
    def output_size(self) -> int:
        """The size of h."""
        return self.proj_size or self.hidden

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the weights of a layer and direction."""
        return (*WEIGHTS, "weight_hr") if self.proj_size else WEIGHTS

    @property
    def name(self) -> str:
        """The name of the case, such as lstm-infer-B32-H256."""
        extra = [self.variant] * bool(self.variant) + [self.precision] * (
            self.precision != "float32"
        )
        extra += ["both"] * self.bidirectional + [f"L{self.layers}"] * (self.layers > 1)
        extra += [f"pause{self.pause}ms"] * (self.pause > 0)
        return "-".join([self.cell, self.mode, f"B{self.batch}", f"H{self.hidden}", *extra])

    @property
    def flops(self) -> float:
        """The operations of all products; a training step counts as three forward passes."""
        times = (3 if self.mode == "train" else 1) * (2 if self.bidirectional else 1)
        size = self.output_size
        deep = size * (1 + self.bidirectional) + size  # of the products above the first layer
        depth = self.input_size + size + (self.layers - 1) * deep
        weights = (
            FAMILIES[self.cell] * self.hidden * depth + self.layers * self.proj_size * self.hidden
        )
        return times * 2.0 * weights * self.steps * self.batch

    @property
    def dtype(self) -> Any:
        """The dtype of the arrays."""
        return np.float64 if self.precision == "float64" else np.float32


def arrays(case: Case) -> dict[str, Array]:
    """Return weights, input and output gradient, equal in every process.

    >>> arrays(Case("gru", "infer", batch=2, hidden=4, steps=3))["x"].shape
    (3, 2, 4)

    Args:
        case: the case.

    Returns:
        Weights by name, ``x [T,B,I]`` and ``dy [T,B,D*H]``, of the case's dtype.
    """
    r, rows, h = np.random.default_rng(7), FAMILIES[case.cell] * case.hidden, case.hidden
    bound = 1 / np.sqrt(h)
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, case.input_size),
        "weight_hh": (rows, case.output_size),
    }
    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if case.proj_size:
        shapes["weight_hr"] = (case.proj_size, h)
    out: dict[str, Array] = {
        n: r.uniform(-bound, bound, s).astype(case.dtype) for n, s in shapes.items()
    }
    out["x"] = r.standard_normal((case.steps, case.batch, case.input_size)).astype(case.dtype)
    width = case.output_size * (1 + case.bidirectional)
    out["dy"] = r.standard_normal((case.steps, case.batch, width)).astype(case.dtype)
    return out


def _ostinato(case: Case, a: dict[str, Array], threads: int, settings: dict[str, str]) -> Runner:
    import ostinato as ost

    ost.set_num_threads(int(settings.get("threads", threads)))
    options: dict[str, Any] = {
        "precision": settings.get("precision", case.precision),
        "dtype": case.dtype,
    }
    if case.variant in ("peephole", "layer_norm"):
        options[case.variant] = True
    if case.proj_size:
        options["proj_size"] = case.proj_size
    if case.variant == "reset_before":
        options["reset_after"] = False
    make: Any = {"rnn": ost.nn.RNN, "lstm": ost.nn.LSTM, "gru": ost.nn.GRU}[case.cell]
    layer = make(
        case.input_size,
        case.hidden,
        case.layers,
        bidirectional=case.bidirectional,
        rng=0,
        **options,
    )
    ends = ("_l0", "_l0_reverse") if case.bidirectional else ("_l0",)
    with layer.write() as p:
        for n in case.weights:
            for end in ends:
                p[n + end][...] = a[n]
    if case.mode == "step":
        stream = layer.stream(case.batch)
        stream.x[...] = a["x"][0]
        step, out = stream.step, {"y": stream.y}

        def one() -> dict[str, Array]:
            step()
            return out

        return one

    x, dy = a["x"], a["dy"]  # not a itself, whose weights would count as memory of the layer

    def train() -> dict[str, Array]:
        with layer.write():  # as after an optimiser's step: the weights are packed again
            pass
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        dx, _ = pullback(dy)
        return {"y": y, "dx": dx, **{n: layer.grads[n + "_l0"] for n in case.weights}}

    return train if case.mode == "train" else lambda: {"y": layer(x)[0]}


def _torch(case: Case, a: dict[str, Array], threads: int, settings: dict[str, str]) -> Runner:
    import torch

    torch.set_num_threads(threads)
    make = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(
        case.precision, torch.float32
    )
    more = {"proj_size": case.proj_size} if case.proj_size else {}
    layer = make(
        case.input_size,
        case.hidden,
        case.layers,
        bidirectional=case.bidirectional,
        dtype=dtype,
        **more,
    )
    ends = ("_l0", "_l0_reverse") if case.bidirectional else ("_l0",)
    layer.load_state_dict({n + end: torch.from_numpy(a[n]) for n in case.weights for end in ends})
    x, dy = torch.from_numpy(a["x"]).to(dtype), torch.from_numpy(a["dy"]).to(dtype)

    if case.mode == "step":
        state = None

        def one() -> dict[str, Array]:
            nonlocal state
            with torch.inference_mode():
                y, state = layer(x, state)
                return {"y": y[0].numpy()}

        return one

    def array(t: Any) -> Array:
        out: Array = (
            t.detach().to(torch.float64 if case.precision == "float64" else torch.float32).numpy()
        )
        return out

    def infer() -> dict[str, Array]:
        with torch.inference_mode():
            return {"y": array(layer(x)[0])}

    def train() -> dict[str, Array]:
        layer.zero_grad(set_to_none=False)
        leaf = x.detach().requires_grad_(True)
        y, _ = layer(leaf)
        y.backward(dy)
        grads = {n: array(getattr(layer, n + "_l0").grad) for n in case.weights}
        return {"y": array(y), "dx": array(leaf.grad), **grads}

    return train if case.mode == "train" else infer


def onnx_session(case: Case, a: dict[str, Array], threads: int, *, states: bool = False) -> Any:
    """Build an ONNX Runtime session of the case's layer.

    >>> case = Case("gru", "infer", 2, 4, 3)
    >>> session = onnx_session(case, arrays(case), 1)  # doctest: +SKIP

    Args:
        case: the case; a peephole or projected LSTM is not taken.
        a: what `arrays` returns.
        threads: threads within an operator.
        states: whether h (and c) are inputs and outputs as well.

    Returns:
        An ``onnxruntime.InferenceSession``.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    order = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}[case.cell]

    def blocks(w: Array) -> Array:
        parts = np.split(w, FAMILIES[case.cell])
        return np.concatenate([parts[k] for k in order])[None]

    weights = {
        "W": blocks(a["weight_ih"]),
        "R": blocks(a["weight_hh"]),
        "B": np.concatenate([blocks(a["bias_ih"]), blocks(a["bias_hh"])], axis=1),
    }
    options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    state = (1, case.batch, case.hidden)
    more = (["H", "C"] if case.cell == "lstm" else ["H"]) if states else []
    node = helper.make_node(
        case.cell.upper(),
        ["X", "W", "R", "B", *([""] if more else []), *(n + "0" for n in more)],
        ["Y", *(n + "N" for n in more)],
        hidden_size=case.hidden,
        **options,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [value("X", *a["x"].shape), *(value(n + "0", *state) for n in more)],
        [
            value("Y", case.steps, 1, case.batch, case.hidden),
            *(value(n + "N", *state) for n in more),
        ],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    setup = onnxruntime.SessionOptions()
    setup.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), setup, providers=["CPUExecutionProvider"]
    )


def _onnxruntime(case: Case, a: dict[str, Array], threads: int, settings: dict[str, str]) -> Runner:
    if case.mode == "step":
        stepper, shape = onnx_session(case, a, threads, states=True), (1, case.batch, case.hidden)
        names = ["H0", "C0"] if case.cell == "lstm" else ["H0"]
        feed = {"X": a["x"], **{n: np.zeros(shape, np.float32) for n in names}}

        def one() -> dict[str, Array]:
            y, *state = stepper.run(None, feed)
            feed.update(zip(names, state))
            return {"y": y[0, 0]}

        return one
    session, x = onnx_session(case, a, threads), a["x"]
    return lambda: {"y": session.run(None, {"X": x})[0][:, 0]}


def _keras(case: Case, a: dict[str, Array], threads: int, settings: dict[str, str]) -> Runner:
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    order = {"rnn": [0], "lstm": [0, 1, 2, 3], "gru": [1, 0, 2]}[case.cell]  # keras: i f c o; z r h

    def blocks(w: Array) -> Array:
        parts = np.split(w, FAMILIES[case.cell])
        return np.concatenate([parts[k] for k in order])

    make = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[
        case.cell
    ]
    layer = make(case.hidden, return_sequences=True)
    x = tf.constant(a["x"].swapaxes(0, 1).copy())
    dy = tf.constant(a["dy"].swapaxes(0, 1).copy())
    layer.build(x.shape)
    both = [blocks(a["bias_ih"]), blocks(a["bias_hh"])]
    layer.set_weights(
        [
            blocks(a["weight_ih"]).T,
            blocks(a["weight_hh"]).T,
            np.stack(both) if case.cell == "gru" else both[0] + both[1],
        ]
    )

    @tf.function  # type: ignore[untyped-decorator]  # of TensorFlow
    def forward(v: Any) -> Any:
        return layer(v)

    @tf.function  # type: ignore[untyped-decorator]  # of TensorFlow
    def step(v: Any, d: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(v)
            y = layer(v)
        return y, tape.gradient(y, [v, *layer.trainable_weights], output_gradients=d)

    def public(w: Array) -> Array:
        parts = np.split(w, FAMILIES[case.cell])
        return np.concatenate([parts[order.index(k)] for k in range(FAMILIES[case.cell])])

    def train() -> dict[str, Array]:
        y, (dx, dw, dr, db) = step(x, dy)
        out = {"y": y.numpy().swapaxes(0, 1), "dx": dx.numpy().swapaxes(0, 1)}
        out |= {"weight_ih": public(dw.numpy().T), "weight_hh": public(dr.numpy().T)}
        d = db.numpy()
        return out | {"bias_ih": public(d[0] if case.cell == "gru" else d)}

    return train if case.mode == "train" else lambda: {"y": forward(x).numpy().swapaxes(0, 1)}


def _jax(case: Case, a: dict[str, Array], threads: int, settings: dict[str, str]) -> Runner:
    import jax
    import jax.numpy as jnp

    h = case.hidden

    def lstm(state: Any, gx: Any, r: Any, b: Any) -> Any:
        i, f, g, o = jnp.split(gx + state[0] @ r.T + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c)

    def gru(state: Any, gx: Any, r: Any, b: Any) -> Any:
        gh = state[0] @ r.T + b
        reset, update = jnp.split(jax.nn.sigmoid(gx[:, : 2 * h] + gh[:, : 2 * h]), 2, axis=-1)
        n = jnp.tanh(gx[:, 2 * h :] + reset * gh[:, 2 * h :])
        return ((1 - update) * n + update * state[0],)

    def rnn(state: Any, gx: Any, r: Any, b: Any) -> Any:
        return (jnp.tanh(gx + state[0] @ r.T + b),)

    cell = {"lstm": lstm, "gru": gru, "rnn": rnn}[case.cell]

    def forward(x: Any, w: Any, r: Any, b_ih: Any, b_hh: Any) -> Any:
        zero = jnp.zeros((case.batch, h), x.dtype)

        def step(state: Any, gx: Any) -> Any:
            state = cell(state, gx, r, b_hh)
            return state, state[0]

        return jax.lax.scan(step, (zero, zero) if case.cell == "lstm" else (zero,), x @ w.T + b_ih)[
            1
        ]

    def gradients(dy: Any, *inputs: Any) -> Any:
        y, pullback = jax.vjp(forward, *inputs)
        return (y, *pullback(dy))

    inputs = [jnp.asarray(a[n]) for n in ("x", *WEIGHTS)]
    if case.mode == "infer":
        run = jax.jit(forward)
        return lambda: {"y": np.asarray(run(*inputs))}
    grad, dy = jax.jit(gradients), jnp.asarray(a["dy"])
    wait: Any = jax.block_until_ready
    names = ("y", "dx", *WEIGHTS)
    return lambda: {n: np.asarray(v) for n, v in zip(names, wait(grad(dy, *inputs)))}


# For each name: the function that builds it, the modules that it needs, and its modes.
CONTENDERS: dict[str, tuple[Callable[..., Runner], tuple[str, ...], tuple[str, ...]]] = {
    "ostinato": (_ostinato, (), ("infer", "train", "step")),
    "torch": (_torch, ("torch",), ("infer", "train", "step")),
    "onnxruntime": (_onnxruntime, ("onnxruntime", "onnx"), ("infer", "step")),
    "keras": (_keras, ("keras", "tensorflow"), ("infer", "train")),
    "jax": (_jax, ("jax",), ("infer", "train")),
}
"""The contenders by name, each as (what makes it, the packages that it needs, its modes)."""


def settings_of(name: str) -> dict[str, str]:
    """Return the settings in a contender's name.

    >>> settings_of("ostinato:threads=1")
    {'threads': '1'}

    Args:
        name: a name of `CONTENDERS`, with settings after a colon.

    Returns:
        Values by name.
    """
    return dict(pair.split("=", 1) for pair in name.partition(":")[2].split(",") if pair)


def make(name: str, case: Case, threads: int) -> Runner:
    """Build the function of a contender.

    >>> import ostinato as ost
    >>> run = make("ostinato", Case("gru", "infer", 2, 4, 3), ost.get_num_threads())
    >>> run()["y"].shape
    (3, 2, 4)

    Args:
        name: a name of `CONTENDERS`, with settings such as ``ostinato:threads=1``.
        case: what the function runs.
        threads: threads of the contender.

    Returns:
        A function that runs the case once and returns its answers.
    """
    return CONTENDERS[name.partition(":")[0]][0](case, arrays(case), threads, settings_of(name))


readable(globals())
