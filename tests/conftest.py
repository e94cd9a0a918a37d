"""Fixtures and helpers that all tests share.

Every kernel set of the machine, one table of tolerances.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

# Tests run in several processes. The threads of each one's BLAS would wait for each other by
# spinning: small products then take up to 28 times the time of the CPU (`find_season`, two
# processes on two cores). The variables are read when NumPy is imported.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402  # after what it reads
import pytest  # noqa: E402

import ostinato as ost  # noqa: E402
from ostinato import _core, _launch, reference  # noqa: E402

# A shell that starts the tests in the background lets them ignore Ctrl-C, and some tests press it.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Keras asks for TensorFlow where nothing is said, and cannot be imported without it.
if importlib.util.find_spec("tensorflow") is None:
    os.environ.setdefault(
        "KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "numpy"
    )

# Relative to the largest value of an array, per element. float32 sums of up to ~100 terms over ~20
# steps stay below 2e-6.
TOLERANCE = {np.dtype(np.float32): 5e-6, np.dtype(np.float64): 1e-13}
CELLS = tuple(_core.cells())
DEVICE_CELLS = tuple(c for c in CELLS if not _core.drivers()[c]["step"])  # that run on a GPU
STREAM_CELLS = tuple(c for c in CELLS if not _core.drivers()[c]["stream"])  # by blocks that stream
GATES = {cell: facts["gates"] for cell, facts in _core.cells().items()}
# The class of each cell and the options that choose it, without the width of a projection.
FACES: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (ost.nn.RNN, {}),
    "rnn_relu": (ost.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (ost.nn.LSTM, {}),
    "lstm_peephole": (ost.nn.LSTM, {"peephole": True}),
    "lstm_projected": (ost.nn.LSTM, {}),
    "lstm_layer_norm": (ost.nn.LSTM, {"layer_norm": True}),
    "gru": (ost.nn.GRU, {}),
    "gru_reset_before": (ost.nn.GRU, {"reset_after": False}),
    "rnn_general": (ost.nn.RNN, {"nonlinearity": ("leaky_relu", 0.2), "clip": 0.9}),
    "lstm_general": (
        ost.nn.LSTM,
        {
            "activation": ("scaled_tanh", 1.2, 0.7),
            "recurrent_activation": ("hard_sigmoid", 0.2, 0.5),
            "output_activation": "softsign",
            "clip": 1.1,
        },
    ),
    "gru_general": (
        ost.nn.GRU,
        {"activation": "softsign", "recurrent_activation": ("hard_sigmoid", 0.2, 0.5)},
    ),
    "gru_reset_before_general": (
        ost.nn.GRU,
        {"reset_after": False, "activation": ("elu", 0.6), "clip": 0.8},
    ),
}
# Cells whose functions a call chooses have no kernels for words of two bytes and fewer.
GENERAL_CELLS = tuple(c for c, facts in _core.cells().items() if facts["scalars"])
NORMS = ost.functional.LayerNormWeights._fields  # of a layer-norm LSTM


def slack(cell: str) -> float:
    """By how much more than the others a cell may be off.

    A norm divides rounding errors by the spread of a row.
    """
    return 4.0 if cell == "lstm_layer_norm" else 1.0


def output_size(cell: str, hidden: int) -> int:
    """P, how wide h is in the tests: narrower than c where it is projected."""
    return (2 * hidden + 4) // 5 if cell == "lstm_projected" else hidden


def recurrent(cell: str, inputs: int, hidden: int, **options: Any) -> Any:
    """A layer of a cell."""
    kind, own = FACES[cell]
    if cell == "lstm_projected":
        own = {"proj_size": output_size(cell, hidden)}
    return kind(inputs, hidden, **own, **options)


def options_of(cell: str, weights: list[Any]) -> dict[str, Any]:
    """The options of `functional` that choose a cell, with its weights beside those of all."""
    if cell == "lstm_peephole":
        return {"weight_peephole": weights[4]}
    if cell == "lstm_general":
        return {"weight_peephole": weights[4], **FACES[cell][1]}
    if cell == "lstm_projected":
        return {"weight_hr": weights[5]}
    if cell == "lstm_layer_norm":
        return {"layer_norm": weights[4:]}
    return FACES[cell][1]


def scalars_of(cell: str) -> tuple[float, ...]:
    """The numbers that the functions of a cell read, by its options in `FACES`."""
    return recurrent(cell, 1, 1)._scalars if cell in GENERAL_CELLS else ()


def reference_options(cell: str) -> reference.Options | None:
    """The options of a general cell in the reference."""
    if cell not in GENERAL_CELLS:
        return None
    given = {n: v for n, v in FACES[cell][1].items() if n != "reset_after"}
    if "nonlinearity" in given:
        given["activation"] = given.pop("nonlinearity")
    return reference.Options(**given)


def device_rows(a: Any) -> _launch.Rows:
    """The rows of an array ``[T,B,...]``, as the kernels of a device address them."""
    return _launch.Rows(a, a.strides[0] // a.itemsize, a.strides[1] // a.itemsize)


def native_for_tests() -> Any:
    """The module that only tests need, or a skip that says how to build it."""
    how = "pip install '.[test]' --config-settings=cmake.define.OSTINATO_EMULATED=ON"
    return pytest.importorskip(
        "ostinato._emulated",
        reason=f"built without the emulation of GPU kernels and the plain path: {how}",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes must collect the same tests: no id has the address of an object."""
    changing = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if changing:
        raise pytest.UsageError(f"ids: expected the same in every process, got {changing[0]}")


@pytest.fixture(params=_core.supported_kernels())
def kernel_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every kernel set that the machine has."""
    before = _core.kernels()
    ost.use_kernels(request.param)
    yield request.param
    ost.use_kernels(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = ost.get_num_threads()
    yield
    ost.set_num_threads(before)


def assert_close(got: Any, want: Any, name: str = "", scale: float = 1.0) -> None:
    """Within the tolerance of got's dtype."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: {got.shape} against {want.shape}"
    if got.size == 0:
        return
    limit = TOLERANCE[got.dtype] * scale * max(float(np.abs(want).max()), 1e-3)
    error = float(np.abs(got - want).max())
    assert error <= limit, f"{name}: error {error:.3g} above {limit:.3g}"


def random_weights(
    cell: str, inputs: int, hidden: int, rng: np.random.Generator, projected: int | None = None
) -> reference.Weights:
    """float64 weights of the usual size; a ReLU network's are halved so that h stays bounded.

    So are gains, since normed rows of weight 1 make a step chaotic. ``projected`` is P.
    """
    rows, bound = GATES[cell] * hidden, (0.5 if cell == "rnn_relu" else 1.0) / np.sqrt(hidden)

    def draw(*shape: int) -> Any:
        return rng.uniform(-bound, bound, shape)

    peephole = draw(3, hidden) if cell in ("lstm_peephole", "lstm_general") else None
    size = output_size(cell, hidden) if projected is None else projected
    w = reference.Weights(draw(rows, inputs), draw(rows, size), draw(rows), draw(rows), peephole)
    w.options = reference_options(cell)
    if cell == "lstm_projected":
        w.weight_hr = draw(size, hidden)
    if cell == "lstm_layer_norm":
        for name, n in zip(NORMS, (rows, rows, hidden, hidden)):
            setattr(w, name, 0.3 * rng.uniform(-1, 1, n) + 0.5 * name.startswith("weight"))
    return w


def names_of(weights: reference.Weights) -> tuple[str, ...]:
    """The names of a cell's weights in the order of the kernels."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if weights.weight_ln_c is not None:
        return names + NORMS
    return (*names, "weight_peephole", *(() if weights.weight_hr is None else ("weight_hr",)))


def widened(cell: str, arrays: list[Any]) -> reference.Weights:
    """The weights of a cell, as the kernels take them, in float64."""
    own = NORMS if cell == "lstm_layer_norm" else ("weight_peephole", "weight_hr")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *own)
    return reference.Weights(
        **{n: None if a is None else a.astype(np.float64) for n, a in zip(names, arrays)},
        options=reference_options(cell),
    )


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Any:
    """Numbers from the normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays_of(gradients: Any) -> list[Any]:
    """All arrays of functional's gradients."""
    one_by_one = (g if isinstance(g, tuple) else (g,) for g in gradients)
    return [a for arrays in one_by_one for a in arrays if a is not None]


def cast(weights: reference.Weights, dtype: Any) -> list[Any]:
    """As `names_of` has them, in a dtype."""
    w = [getattr(weights, n) for n in names_of(weights)]
    return [None if a is None else a.astype(dtype) for a in w]


def packed(cell: str, weights: list[Any], reverse: bool = False) -> ost.functional.Packed:
    """Packed weights of one layer."""
    return ost.functional.Packed(cell, weights, reverse, scalars=scalars_of(cell))


def parameter_gradient(f: Any, layer: Any, name: str, eps: float = 1e-6) -> Any:
    """Central differences of a scalar function with respect to a parameter of a layer."""
    out = np.zeros(layer.parameters()[name].shape)
    for at in np.ndindex(out.shape):
        values = []
        for step in (eps, -2 * eps, eps):
            with layer.write() as p:
                p[name][at] += step
            values.append(float(f()))
        out[at] = (values[0] - values[1]) / (2 * eps)
    return out


def numeric_gradient(f: Any, x: Any, eps: float = 1e-6) -> Any:
    """Central differences of a scalar function with respect to x, which f reads in place."""
    g = np.zeros_like(x)
    flat, out = x.reshape(-1), g.reshape(-1)
    for i in range(flat.size):
        keep = flat[i]
        flat[i] = keep + eps
        up = f()
        flat[i] = keep - eps
        down = f()
        flat[i] = keep
        out[i] = (up - down) / (2 * eps)
    return g


def assert_gradients_by_differences(layer: Any, x: Any, resets: Any) -> None:
    """The gradients of an LSTM's inputs and parameters, against central differences."""
    values = layer.state_dict()
    (y, (h, c)), pullback = layer.vjp(x, resets=resets)
    dy, dh, dc = (normal(a.shape, np.float64, k) for k, a in enumerate((y, h, c)))
    layer.zero_grad()
    dx, _ = pullback(dy, (dh, dc))

    def loss() -> float:
        layer.load_state_dict(values)
        y, (h, c) = layer(x, resets=resets)
        return float((y * dy).sum() + (h * dh).sum() + (c * dc).sum())

    np.testing.assert_allclose(dx, numeric_gradient(loss, x), atol=1e-6)
    for name, value in values.items():
        np.testing.assert_allclose(
            layer.grads[name], numeric_gradient(loss, value), atol=1e-6, err_msg=name
        )


def assert_bits_with_limits(layer: Any) -> None:
    """Training an LSTM of 3 inputs gives the same bits with any bound on memory."""
    x = normal((70, 70, 3))[:, :6] if not layer.batch_first else normal((70, 70, 3))[:6]
    flags = np.random.default_rng(0).random(x.shape[:2]) < 0.1
    results = []
    for n, limit in ((1, None), (2, "states"), (2, "least"), (1, 3), (3, None)):
        ost.set_num_threads(n)
        layer.zero_grad()
        (y, (h, c)), pullback = layer.vjp(x, resets=flags, mask=~flags, memory_limit=limit)
        dx, (dh, dc) = pullback(normal(y.shape), (normal(h.shape), normal(c.shape)))
        results.append([y, h, c, dx, dh, dc, layer.flat_grads.copy()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


# Depths, directions and layouts, without dropout.
PLAIN_STACKS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
STACKS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "dropout": 0.3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True},
    {"learned_state": True, "batch_first": True},
]
SEQUENCES = [
    np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32) for n in (5, 0, 9, 1, 9, 30)
]


def flat(state: Any) -> list[Any]:
    """The arrays of a state, of whatever nesting."""
    if state is None:
        return []
    return (
        [a for s in state for a in flat(s)]
        if isinstance(state, (tuple, list))
        else [np.array(state)]
    )
