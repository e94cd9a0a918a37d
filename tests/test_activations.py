"""Cells with functions, a clip and coupled gates of their own, against the reference in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    assert_bits_with_limits,
    assert_close,
    assert_gradients_by_differences,
    cast,
    normal,
    random_weights,
)
from ostinato import _core, nn, reference
from ostinato._functions import FUNCTIONS
from ostinato.diagnostics import gradient_flow

CHOICES: list[Any] = [
    "tanh",
    "sigmoid",
    "relu",
    "linear",
    "softsign",
    "softplus",
    "exponential",
    ("affine", -0.7, 0.2),
    ("leaky_relu", -0.3),
    ("thresholded_relu", 0.4),
    ("scaled_tanh", 1.7, 0.6),
    ("hard_sigmoid", 0.2, 0.5),
    ("elu", 0.7),
]
LSTMS: list[dict[str, Any]] = [
    {"coupled_gates": True},
    {"coupled_gates": True, "clip": 0.7, "peephole": True},
    {"activation": ("elu", 0.6), "clip": 0.5},
    {"output_activation": ("affine", 0.8, 0.1), "clip": 0.6},
    {"recurrent_activation": ("hard_sigmoid", 1 / 6, 0.5), "peephole": True},
]
GRUS: list[dict[str, Any]] = [
    {"recurrent_activation": ("hard_sigmoid", 0.2, 0.5)},
    {"activation": "softplus", "clip": 0.6},
]


def names(value: Any) -> str:
    return str(value).replace("'", "")


def test_every_function_is_tried() -> None:
    assert {c if isinstance(c, str) else c[0] for c in CHOICES} == set(FUNCTIONS)
    assert set(reference.FUNCTIONS) == set(FUNCTIONS)


def compare(cell: str, options: dict[str, Any], call: Any, dtype: Any, steps: int = 4) -> None:
    """A pass and its gradients against the reference, whose weights are drawn here."""
    rng = np.random.default_rng(5)
    w = random_weights(cell, 3, 21, rng)
    w.options = reference.Options(**options)
    x, h0, c0 = rng.normal(size=(steps, 5, 3)), rng.normal(size=(5, 21)), rng.normal(size=(5, 21))
    lengths = np.array([steps, 0, 1, 3, steps])
    dy = rng.normal(size=(steps, 5, 21))
    arrays = cast(w, dtype)
    states = [h0.astype(dtype)] + ([c0.astype(dtype)] if "lstm" in cell else [])
    (y, _), pullback = call(x.astype(dtype), *arrays[:4], *states, arrays[4], lengths=lengths)
    want = reference.forward(cell, x, w, h0, c0, lengths=lengths)
    assert_close(y, want.y, "y", scale=2)
    got, grads = pullback(dy.astype(dtype)), reference.backward(want, dy)
    assert_close(got.dx, grads.x, "dx", scale=4)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"):
        if getattr(grads.weights, name) is not None:
            assert_close(getattr(got, "d" + name), getattr(grads.weights, name), name, scale=4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("function", CHOICES, ids=names)
def test_functions_against_the_reference(
    function: Any, clip: float | None, dtype: Any, kernel_set: str
) -> None:
    def rnn(x: Any, wi: Any, wh: Any, bi: Any, bh: Any, h0: Any, _: Any, **times: Any) -> Any:
        w = (0.3 * wi, 0.3 * wh, bi, bh)  # a growing function of large inputs overflows
        return ost.functional.rnn_vjp(x, *w, h0, nonlinearity=function, clip=clip, **times)

    def scaled(x: Any, wi: Any, wh: Any, bi: Any, bh: Any, h0: Any, p: Any, **times: Any) -> Any:
        result, pullback = rnn(x, wi / dtype(0.3), wh / dtype(0.3), bi, bh, h0, p, **times)
        return result, pullback

    compare("rnn_general", {"activation": function, "clip": clip}, scaled, dtype, steps=3)


@pytest.mark.parametrize("function", CHOICES, ids=names)
def test_functions_of_an_lstm(function: Any, kernel_set: str) -> None:
    """A function as the output function, and bounded ones as those of candidate and gates."""

    def lstm(*given: Any, **times: Any) -> Any:
        *rest, p = given
        return ost.functional.lstm_vjp(
            *rest, weight_peephole=p, output_activation=function, clip=1.0, **times
        )

    compare("lstm_general", {"output_activation": function, "clip": 1.0}, lstm, np.float64)

    def gates(*given: Any, **times: Any) -> Any:
        *rest, p = given
        return ost.functional.lstm_vjp(
            *rest,
            weight_peephole=p,
            activation=function,
            recurrent_activation=function,
            output_activation="tanh",
            clip=0.5,
            **times,
        )

    options = {"activation": function, "recurrent_activation": function, "clip": 0.5}
    compare("lstm_general", options, gates, np.float64)


@pytest.mark.parametrize("cell", ["gru_general", "gru_reset_before_general"])
@pytest.mark.parametrize("function", CHOICES, ids=names)
def test_functions_of_a_gru(function: Any, cell: str, kernel_set: str) -> None:
    def gru(*given: Any, **times: Any) -> Any:
        *rest, _ = given
        return ost.functional.gru_vjp(
            *rest,
            reset_after=cell == "gru_general",
            activation=function,
            recurrent_activation=function,
            clip=0.5,
            **times,
        )

    options = {"activation": function, "recurrent_activation": function, "clip": 0.5}
    compare(cell, options, gru, np.float64)


def given_to_reference(options: dict[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in options.items() if k not in ("peephole", "reset_after")}
    if "activation" in out:
        out.setdefault("output_activation", out["activation"])
    return out


@pytest.mark.parametrize("options", LSTMS, ids=names)
def test_lstms_against_the_reference(options: dict[str, Any], kernel_set: str) -> None:
    own = {k: v for k, v in options.items() if k != "peephole"}

    def lstm(*given: Any, **times: Any) -> Any:
        *rest, p = given
        return ost.functional.lstm_vjp(*rest, weight_peephole=p, **own, **times)

    compare("lstm_general", given_to_reference(options), lstm, np.float64)
    compare("lstm_general", given_to_reference(options), lstm, np.float32)


@pytest.mark.parametrize("options", LSTMS, ids=names)
def test_gradients_of_an_lstm_by_differences(options: dict[str, Any]) -> None:
    layer = nn.LSTM(2, 3, dtype=np.float64, learned_state=True, rng=0, **options)
    resets = np.random.default_rng(0).random((6, 2)) < 0.3
    assert_gradients_by_differences(layer, normal((6, 2, 2), np.float64), resets)


@pytest.mark.parametrize("options", LSTMS, ids=names)
def test_any_bound_on_memory_gives_the_same_bits(
    options: dict[str, Any], kernel_set: str, threads: None
) -> None:
    assert_bits_with_limits(nn.LSTM(3, 17, rng=0, learned_state=True, **options))


@pytest.mark.parametrize(
    ("make", "options"),
    [(nn.LSTM, o) for o in LSTMS]
    + [(nn.GRU, {**o, "reset_after": after}) for o in GRUS for after in (True, False)]
    + [(nn.RNN, {"nonlinearity": ("elu", 0.5), "clip": 2.0})],
    ids=lambda v: v.__name__ if isinstance(v, type) else names(v),
)
def test_streams_ragged_rows_and_files(
    make: Any, options: dict[str, Any], tmp_path: Path, kernel_set: str
) -> None:
    layer = make(3, 19, num_layers=2, rng=0, **options)
    x = normal((7, 4, 3))
    y, _ = layer(x)
    stream = layer.stream(4)
    assert all(np.array_equal(stream.step(x[t]), y[t]) for t in range(7))
    lengths = [7, 0, 2, 5]
    rows = layer([x[:n, b] for b, n in enumerate(lengths)])[0]
    padded = layer(x, lengths=lengths)[0]
    assert all(np.array_equal(r, padded[: len(r), b]) for b, r in enumerate(rows))
    layer.save(tmp_path / "a.safetensors")
    for other in (
        ost.load(tmp_path / "a.safetensors"),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ):
        assert repr(other) == repr(layer)
        assert np.array_equal(other(x)[0], y)
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(layer) or value is True


@pytest.mark.parametrize(
    ("make", "plain"),
    [(nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {}), (nn.LSTM, {"peephole": True})]
    + [(nn.GRU, {}), (nn.GRU, {"reset_after": False})],
    ids=lambda v: v.__name__ if isinstance(v, type) else names(v),
)
def test_a_clip_that_never_binds_changes_no_bit(
    make: Any, plain: dict[str, Any], kernel_set: str
) -> None:
    """The general form of a cell, with the usual functions, gives the numbers of its own kernel."""
    one, other = make(3, 21, rng=0, **plain), make(3, 21, rng=0, clip=1e30, **plain)
    assert other._cell.endswith("_general")
    assert set(one.state_dict()) == set(other.state_dict())
    x = normal((9, 5, 3))
    assert np.array_equal(one(x)[0], other(x)[0])
    grads = []
    for layer in (one, other):
        (y, _), pullback = layer.vjp(x, lengths=[9, 4, 0, 1, 9])
        grads.append([pullback(normal(y.shape), None)[0], *layer.grads.values()])
    for a, b in zip(*grads):
        assert_close(a, b)


def test_usual_functions_have_kernels_of_their_own() -> None:
    usual = {"activation": "tanh", "recurrent_activation": ["sigmoid"], "clip": None}
    assert nn.LSTM(2, 3, **usual, output_activation="tanh", coupled_gates=False)._cell == "lstm"
    assert nn.LSTM(2, 3, **usual, peephole=True)._cell == "lstm_peephole"
    assert nn.GRU(2, 3, **usual)._cell == "gru"
    assert nn.GRU(2, 3, **usual, reset_after=False)._cell == "gru_reset_before"
    assert [nn.RNN(2, 3, nonlinearity=f)._cell for f in ("tanh", "relu")] == [
        "rnn_tanh",
        "rnn_relu",
    ]
    text = str(ost.explain(nn.GRU(2, 3, clip=1.0), (4, 2, 2)))
    assert "general" in text
    assert _core.drivers()["gru_general"]["persistent"] == "functions that a call chooses"


def test_the_slope_beyond_a_clip_is_zero() -> None:
    w = np.ones((1, 1))
    x = np.array([[[-2.0], [-0.5], [0.5], [2.0]]])
    (y, _), pullback = ost.functional.rnn_vjp(x, w, 0 * w, nonlinearity="linear", clip=1.0)
    assert y.ravel().tolist() == [-1.0, -0.5, 0.5, 1.0]
    assert pullback(np.ones_like(y)).dx.ravel().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_what_a_function_makes_of_nan_and_of_large_numbers(kernel_set: str) -> None:
    one = np.ones((1, 1), np.float32)
    x = np.array([[[np.nan], [-1e30], [1e30], [0.0]]], np.float32)
    for f in CHOICES:
        y, _ = ost.functional.rnn(x, one, 0 * one, nonlinearity=f)
        bounded = f in ("tanh", "sigmoid", "relu") or f[0] in ("hard_sigmoid", "thresholded_relu")
        assert np.isnan(y[0, 0, 0]), f
        if bounded:
            assert np.isfinite(y[0, 1:]).all(), f
    y, _ = ost.functional.rnn(x, one, 0 * one, nonlinearity="softplus")
    np.testing.assert_allclose(y[0, 1:, 0], [0, 1e30, np.log(2)], rtol=1e-6, atol=1e-30)


def test_coupled_gates_forget_what_they_do_not_take_in() -> None:
    """f = 1 - i: weights of the forget gate are parameters, but are not read."""
    layer = nn.LSTM(2, 3, coupled_gates=True, rng=0)
    (y, _), pullback = layer.vjp(normal((5, 2, 2)))
    gates = pullback.gates
    np.testing.assert_allclose(gates["f"] + gates["i"], 1, atol=1e-7)
    layer.zero_grad()
    pullback(np.ones_like(y))
    assert not layer.grads["weight_hh_l0"][3:6].any()
    assert layer.grads["weight_hh_l0"][:3].any()
    with pytest.raises(ValueError, match="forget_bias: expected None with coupled_gates=True"):
        layer.initialize(forget_bias=1.0)


def test_saturation_knows_the_limits_of_functions() -> None:
    layer = nn.GRU(2, 3, activation=("scaled_tanh", 2.0, 1.0), rng=0)
    with layer.write() as p:
        p["bias_ih_l0"][...] = [-9, -9, -9, 9, 9, 9, 9, 9, 9]
        p["weight_hh_l0"][...] = 0
    flow = gradient_flow(layer, normal((5, 2, 2)))
    assert flow.layers[0].saturation == {"r": 1.0, "z": 1.0, "n": 1.0}
    layer = nn.GRU(2, 3, recurrent_activation="softplus", rng=0)
    assert list(gradient_flow(layer, normal((5, 2, 2))).layers[0].saturation) == ["n"]


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (nn.LSTM, {"activation": "tahn"}, ValueError, "activation: expected one of 'tanh'"),
        (
            nn.GRU,
            {"activation": "elu"},
            ValueError,
            r"activation: expected \('elu', alpha\), got 'elu'",
        ),
        (nn.GRU, {"activation": ("elu", 1, 2)}, ValueError, r"got \('elu', 1, 2\)"),
        (nn.GRU, {"activation": ("tanh", 1)}, ValueError, "expected 'tanh', got"),
        (nn.GRU, {"activation": ("elu", "1")}, TypeError, "activation: alpha: expected a number"),
        (nn.GRU, {"activation": ("elu", np.nan)}, ValueError, "a finite alpha"),
        (nn.LSTM, {"recurrent_activation": 3}, TypeError, "recurrent_activation: expected the"),
        (nn.LSTM, {"output_activation": ()}, TypeError, "output_activation: expected the name"),
        (nn.RNN, {"nonlinearity": None}, TypeError, "nonlinearity: expected the name"),
        (
            nn.RNN,
            {"clip": 0},
            ValueError,
            "clip: expected a number of at least 1.2e-38, or None, got 0",
        ),
        (nn.GRU, {"clip": float("nan")}, ValueError, "clip: expected a number of at least"),
        (nn.LSTM, {"clip": -1.0}, ValueError, "clip: expected a number of at least"),
        (nn.LSTM, {"clip": "1"}, TypeError, "clip: expected a number of at least"),
        (
            nn.LSTM,
            {"coupled_gates": True, "proj_size": 2},
            ValueError,
            "coupled_gates: expected False with proj_size=2, got True; no cell has both",
        ),
        (nn.LSTM, {"clip": 1.0, "layer_norm": True}, ValueError, "clip: expected None with layer"),
        (nn.LSTM, {"clip": 1.0, "precision": "bfloat16"}, ValueError, "expected 'float32' for a"),
        (nn.GRU, {"clip": 1.0, "precision": "int8"}, ValueError, "precision: expected 'float32'"),
    ],
    ids=lambda v: names(v) if isinstance(v, dict) else "",
)
def test_errors(make: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(2, 3, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_at_the_ends(dtype: Any, kernel_set: str) -> None:
    """One unit without recurrence is given a itself, as large as its dtype has it."""
    largest = float(np.finfo(dtype).max) * 0.9
    w, r = np.ones((1, 1), dtype), np.zeros((1, 1), dtype)

    def of(name: Any, a: float) -> float:
        x = np.full((1, 1, 1), a, dtype)
        return float(ost.functional.rnn(x, w, r, nonlinearity=name)[0][0, 0, 0])

    assert of("softsign", largest) == 1
    assert of("softsign", -largest) == -1
    assert of("exponential", 1000.0 if dtype == np.float64 else 100.0) == np.inf
    near = 700.0 if dtype == np.float64 else 88.0
    assert abs(of("exponential", near) / np.exp(near) - 1) < 1e-4
    assert abs(of("softplus", largest) / largest - 1) < 1e-6


def test_saturation_of_coupled_gates() -> None:
    """f is 1 - i, and so are its limits."""
    layer = nn.LSTM(3, 8, recurrent_activation="softsign", coupled_gates=True, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    saturation = gradient_flow(layer, 30 * x).layers[0].saturation
    assert 0 < saturation["f"] < 1
    assert saturation["f"] == saturation["i"]


def test_errors_of_functional() -> None:
    w = np.ones((4, 1)), np.ones((4, 1))
    x = np.ones((2, 1, 1))
    f = ost.functional
    three = np.ones((3, 1))
    with pytest.raises(ValueError, match="weight_peephole: expected None for gru, got a ndarray"):
        f.pack("gru", three, three, weight_peephole=three)
    assert f.pack("gru", three, three, coupled_gates=np.bool_(False)).cell == "gru"  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"weight_hr: expected a numpy.ndarray, got NoneType"):
        f.Packed("lstm_projected", [*w, None, None], False)
    with pytest.raises(ValueError, match="reset_after: expected True for rnn, got False"):
        f.pack("rnn", np.ones((1, 1)), np.ones((1, 1)), reset_after=False)
    weights, other = [np.ones((1, 1)), np.ones((1, 1)), None, None, None], (99.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="scalars: expected the numbers that pack makes"):
        f.Packed("rnn_general", weights, False, None, other)
    with pytest.raises(ValueError, match=r"clip: expected None beside weight_hr, got 1\.0"):
        f.lstm(x, *w, weight_hr=np.ones((1, 1)), clip=1.0)
    with pytest.raises(ValueError, match="coupled_gates: expected False for gru, got True"):
        f.pack("gru", np.ones((3, 1)), np.ones((3, 1)), coupled_gates=True)
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' for lstm, got 'relu'"):
        f.pack("lstm", *w, nonlinearity="relu")
    arrays = [a.astype(np.float32) for a in w]
    with pytest.raises(ValueError, match="precision: expected 'float32' for a cell with functions"):
        f.pack("lstm", *arrays, clip=1.0, precision="bfloat16")
    packed = f.pack("lstm", *w, clip=1.0)
    assert np.array_equal(f.lstm(x, packed)[0], f.lstm(x, *w, clip=1.0)[0])
    assert np.array_equal(f.lstm(x, packed, clip=1.0)[0], f.lstm(x, packed)[0])
    with pytest.raises(ValueError, match="packed with the same options"):
        f.lstm(x, packed, clip=2.0)
    with pytest.raises(ValueError, match="scalars: expected 11 for the cell lstm_general, got 0"):
        f.Packed("lstm_general", [*w, None, None, None], False)


def test_old_pickles_have_the_usual_functions() -> None:
    layer = nn.LSTM(2, 3, rng=0)
    state = layer.__getstate__()
    for name in ("activation", "recurrent_activation", "output_activation", "clip", "_scalars"):
        state.pop(name)
    old = nn.LSTM.__new__(nn.LSTM)
    old.__setstate__(state)
    assert repr(old) == repr(layer)
    assert np.array_equal(old(normal((4, 2, 2)))[0], layer(normal((4, 2, 2)))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert old.clip is None
