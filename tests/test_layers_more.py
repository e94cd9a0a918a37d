"""LayerNorm, Conv1d, layers of layers, attention pooling, padding of embeddings, GELU, streams."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests, numeric_gradient, parameter_gradient
from ostinato import nn

F64 = {"dtype": np.float64}
T, B, D = 7, 3, 4
LENGTHS = [7, 0, 4]


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def randomised(layer: Any, seed: int = 1) -> Any:
    r = np.random.default_rng(seed)
    with layer.write() as p:
        for view in p.values():
            view[...] = r.standard_normal(view.shape)
    return layer


def check(layer: Any, x: Any, want: Any, **times: Any) -> Any:
    """Compare forward with a reference, and all gradients with its finite differences."""
    out, pullback = layer.vjp(x, **times)
    y = out[0] if layer.stateful else out
    again = layer(x, **times)
    assert np.array_equal(again[0] if layer.stateful else again, y)
    np.testing.assert_allclose(y, want(), atol=1e-12)
    d = drawn(*y.shape, seed=8)
    layer.zero_grad()
    dx = pullback(d)
    dx = dx[0] if layer.stateful else dx

    def value() -> float:
        return float((want() * d).sum())

    np.testing.assert_allclose(dx, numeric_gradient(value, x), atol=1e-7)
    for name in layer.parameters():
        np.testing.assert_allclose(
            layer.grads[name], parameter_gradient(value, layer, name), atol=1e-7, err_msg=name
        )
    return y


# -- LayerNorm -------------------------------------------------------------------------------------


def test_layer_norm() -> None:
    layer, x = randomised(nn.LayerNorm(D, eps=1e-3, **F64)), drawn(T, B, D)

    def want() -> Any:
        p = layer.parameters()
        return ost.reference.layer_norm(x, p["weight"], p["bias"], 1e-3)

    check(layer, x, want)
    assert nn.LayerNorm(D)(np.ones((2, D), np.float32)).tolist() == [[0.0] * D] * 2
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 4\), got \(2, 3\)"):
        layer(np.ones((2, 3)))
    with pytest.raises(ValueError, match="eps: expected a number above 0, got 0"):
        nn.LayerNorm(D, eps=0)
    assert layer.parameters().__repr__() == "{weight: float64 [4], bias: float64 [4]}"


@pytest.mark.parametrize(
    ("dtype", "factor"), [(np.float32, 1e19), (np.float32, 5e37), (np.float64, 1e200)]
)
def test_layer_norm_of_large_rows(dtype: Any, factor: float) -> None:
    """Their squares are beyond the dtype, and their variance infinite."""
    layer = nn.LayerNorm(4, dtype=dtype)
    rows = np.array([[1, 2, 3, 4], [0, 3, 1, -1]], dtype)
    large = np.stack([rows[0] * dtype(factor), rows[1]])
    y, pullback = layer.vjp(large)
    want, before = layer.vjp(rows)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)
    dy = np.array([[1, 0, 0, 0]] * 2, dtype)
    dx, small = pullback(dy), before(dy)
    np.testing.assert_allclose(dx[0] * dtype(factor), small[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(dx[1], small[1], rtol=0, atol=1e-6)
    assert np.isnan(layer(np.array([[np.inf, 1, 2, 3]], dtype))).all()


def test_layer_norm_far_from_zero() -> None:
    x = np.array([[1e6, 1000001, 999999.5, 1000000.25, 1000000.75]], np.float32)
    exact = nn.LayerNorm(5, dtype=np.float64)(x.astype(np.float64))
    np.testing.assert_allclose(nn.LayerNorm(5)(x), exact, rtol=0, atol=1e-5)


def test_layer_norm_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LayerNorm(D)
    layer = randomised(nn.LayerNorm(D))
    theirs.load_state_dict({n: torch.tensor(v) for n, v in layer.state_dict().items()})
    x = drawn(T, B, D).astype(np.float32)
    t = torch.tensor(x, requires_grad=True)
    out = theirs(t)
    y, pullback = layer.vjp(x)
    np.testing.assert_allclose(y, out.detach().numpy(), atol=2e-6)
    out.square().sum().backward()
    np.testing.assert_allclose(pullback(2 * y), t.grad.numpy(), atol=2e-5)
    np.testing.assert_allclose(layer.grads["weight"], theirs.weight.grad.numpy(), atol=2e-5)


# -- Conv1d ----------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "same": {},
    "even": {"kernel_size": 4},
    "causal": {"padding": "causal"},
    "valid": {"padding": "valid"},
    "stride": {"stride": 2},
    "stride, causal": {"stride": 3, "padding": "causal", "kernel_size": 2},
    "stride, valid": {"stride": 2, "padding": "valid"},
    "dilation": {"dilation": 2},
    "dilation, causal": {"dilation": 3, "padding": "causal"},
    "wider than x": {"kernel_size": 9},
    "no bias": {"bias": False},
}


def convolved(layer: nn.Conv1d, x: Any, lengths: Any = None) -> Any:
    """One output at a time, of ``x [T,B,I]``; with lengths each row by itself."""
    p = layer.parameters()
    return ost.reference.conv1d(
        x,
        p["weight"],
        p.get("bias"),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        lengths=lengths,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("times", ["all", "lengths"])
def test_convolution(form: str, times: str) -> None:
    layer = nn.Conv1d(D, 5, **{"kernel_size": 3, **FORMS[form]}, **F64, rng=0)
    x = drawn(T, B, D)
    lengths = LENGTHS if times == "lengths" else None
    y = check(layer, x, lambda: convolved(layer, x, lengths), lengths=lengths)
    first = nn.Conv1d(D, 5, **{"kernel_size": 3, **FORMS[form]}, batch_first=True, **F64, rng=0)
    turned = np.ascontiguousarray(x.swapaxes(0, 1))
    assert np.array_equal(first(turned, lengths=lengths), y.swapaxes(0, 1))
    z, pullback = first.vjp(turned, lengths=lengths)
    np.testing.assert_allclose(
        pullback(np.ones_like(z)), layer.vjp(x, lengths=lengths)[1](np.ones_like(y)).swapaxes(0, 1)
    )


@pytest.mark.parametrize("form", ["same", "causal", "stride", "valid"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_convolution_of_sequences_without_padding(form: str, batch_first: bool) -> None:
    layer = nn.Conv1d(
        D, 5, **{"kernel_size": 3, **FORMS[form]}, batch_first=batch_first, **F64, rng=0
    )
    lists = [drawn(n, D, seed=n) for n in LENGTHS]
    x = ost.Ragged.join(lists)
    y, pullback = layer.vjp(x)
    assert y.lengths.tolist() == layer.output_lengths(LENGTHS).tolist()
    assert np.array_equal(layer(x).rows, y.rows)
    dx = pullback(y)
    assert isinstance(dx, ost.Ragged)
    alone = np.concatenate([convolved(layer, a[:, None])[:, 0] for a in lists])
    np.testing.assert_allclose(y.rows, alone, atol=1e-12)
    want = numeric_gradient(
        lambda: sum((convolved(layer, a[:, None])[:, 0] ** 2).sum() for a in x) / 2, x.rows
    )
    np.testing.assert_allclose(dx.rows, want, atol=1e-7)
    ys, pullback = layer.vjp(lists)
    assert isinstance(ys, list)
    assert [len(d) for d in pullback(ys)] == LENGTHS


def test_masked_steps_are_read_as_zeros() -> None:
    layer, x = nn.Conv1d(D, 5, 3, **F64, rng=0), drawn(T, B, D)
    mask = np.random.default_rng(0).random((T, B)) < 0.6
    cleaned = np.where(mask[..., None], x, 0)
    y, pullback = layer.vjp(np.where(mask[..., None], x, np.nan), mask=mask)
    np.testing.assert_allclose(
        y, np.where(mask[..., None], convolved(layer, cleaned), 0), atol=1e-12
    )
    dx = pullback(np.ones_like(y))
    assert not dx[~mask].any()
    assert np.isfinite(dx).all()


def test_convolution_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    for options in (
        {"padding": "valid", "stride": 2},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
    ):
        layer = nn.Conv1d(D, 5, 3, **options, batch_first=True, rng=0)
        given = {n: v for n, v in options.items() if n != "padding"}
        theirs = torch.nn.Conv1d(D, 5, 3, padding=options["padding"], **given)
        theirs.load_state_dict({n: torch.tensor(v) for n, v in layer.state_dict().items()})
        x = drawn(B, T, D).astype(np.float32)
        out = theirs(torch.tensor(x.swapaxes(1, 2)))
        np.testing.assert_allclose(layer(x), out.detach().numpy().swapaxes(1, 2), atol=2e-6)
        y, pullback = layer.vjp(x)
        pullback(y)
        (out.square().sum() / 2).backward()
        np.testing.assert_allclose(layer.grads["weight"], theirs.weight.grad.numpy(), atol=2e-5)


def test_strides_shorten_the_lengths_of_what_follows() -> None:
    model = nn.Sequential(
        nn.Conv1d(D, 6, 3, stride=2, **F64, rng=0),
        nn.GRU(6, 5, bidirectional=True, **F64, rng=1),
        nn.Linear(10, 2, **F64, rng=2),
    )
    x = drawn(T, B, D)
    (y, (_, h, _)), pullback = model.vjp(x, lengths=LENGTHS)
    dx, _ = pullback(np.ones_like(y))
    for b, n in enumerate(LENGTHS):
        (alone, (_, end, _)), back = model.vjp(x[:n, b : b + 1])
        np.testing.assert_allclose(y[: len(alone), b], alone[:, 0], atol=1e-12)
        np.testing.assert_allclose(h[:, b], end[:, 0], atol=1e-12)
        np.testing.assert_allclose(dx[:n, b], back(np.ones_like(alone))[0][:, 0], atol=1e-12)
        assert not dx[n:, b].any()
    with pytest.raises(ValueError, match=r"mask: expected None with a Conv1d\(4, 6, 3, stride=2\)"):
        model(x, mask=np.ones((T, B), bool))


def test_convolution_is_told_what_is_wrong() -> None:
    with pytest.raises(
        ValueError, match="padding: expected one of 'same', 'causal', 'valid', got 'full'"
    ):
        nn.Conv1d(3, 4, 3, padding="full")
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 3\), got \(5, 2, 4\)"):
        nn.Conv1d(3, 4, 3)(np.zeros((5, 2, 4), np.float32))
    with pytest.raises(TypeError, match=r"x: expected dtype float32, .* x.astype\(np.float32\)"):
        nn.Conv1d(3, 4, 3)(np.zeros((5, 2, 3)))
    with pytest.raises(TypeError, match="lengths: expected whole numbers, got dtype float64"):
        nn.Conv1d(3, 4, 3).output_lengths([1.5])
    with pytest.raises(
        TypeError, match=r"lengths: expected whole numbers, got \[\[1\], \[2, 3\]\]"
    ):
        nn.Conv1d(3, 4, 3).output_lengths([[1], [2, 3]])
    with pytest.raises(ValueError, match="lengths: expected numbers of at least 0, got -5"):
        nn.Conv1d(3, 4, 3).output_lengths([2, -5])
    none = nn.Conv1d(3, 4, 3, padding="valid").output_lengths([])
    assert none.shape == (0,)
    assert none.dtype == np.int64
    with pytest.raises(
        ValueError, match=r"x: expected rows of shape \(N, I\) = \(\*, 3\), got \(5,"
    ):
        nn.Conv1d(3, 4, 3)(ost.Ragged(np.zeros(5, np.float32), [0, 5]))
    with pytest.raises(
        TypeError,
        match=r"stream: expected padding='causal' and stride=1, .* got a Conv1d\(3, 4, 3\)",
    ):
        nn.Sequential(nn.Conv1d(3, 4, 3)).stream()


# -- streams ---------------------------------------------------------------------------------------

STREAMED: dict[str, Any] = {
    "LayerNorm first": lambda: nn.Sequential(nn.LayerNorm(D, **F64), nn.GRU(D, 3, **F64, rng=0)),
    "LayerNorm last": lambda: nn.Sequential(nn.GRU(D, 3, **F64, rng=0), nn.LayerNorm(3, **F64)),
    "between": lambda: nn.Sequential(
        nn.LSTM(D, 3, **F64, rng=0),
        nn.Activation("gelu", **F64),
        nn.LayerNorm(3, **F64),
        nn.LSTM(3, 2, **F64, rng=1),
    ),
    "Conv1d": lambda: nn.Sequential(
        nn.Conv1d(D, 5, 3, padding="causal", dilation=2, **F64, rng=0), nn.GRU(5, 2, **F64, rng=1)
    ),
    "Residual": lambda: nn.Sequential(
        nn.Residual(nn.GRU(D, D, **F64, rng=0)),
        nn.Residual(nn.Sequential(nn.LayerNorm(D, **F64), nn.Linear(D, D, **F64, rng=0))),
    ),
    "Concat": lambda: nn.Sequential(
        nn.Concat(nn.GRU(D, 2, **F64, rng=0), nn.Conv1d(D, 3, 2, padding="causal", **F64, rng=1)),
        nn.Linear(5, 2, **F64, rng=2),
    ),
    "of any inputs": lambda: nn.Sequential(
        nn.Linear(D, D, **F64, rng=0),
        nn.Residual(nn.Residual(nn.Dropout(**F64))),
        nn.Concat(nn.Dropout(**F64), nn.Softmax(**F64), nn.GRU(D, 2, **F64, rng=1)),
    ),
    "alone": lambda: nn.Residual(nn.LSTM(D, D, **F64, rng=0)),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streams(name: str) -> None:
    """Steps of all slots and of some, resets, states, new weights, against whole sequences."""
    model, x = STREAMED[name](), drawn(T, B, D)
    stream = model.stream(batch=B)
    want = model(x)[0]
    for t in range(T):
        np.testing.assert_allclose(stream.step(x[t]), want[t], atol=1e-13)
    stream.reset()
    for t in range(T):  # rows 2 and 0 alone, in that order; row 1 later
        np.testing.assert_allclose(
            stream.step(x[t, [2, 0]], slots=[2, 0]), want[t, [2, 0]], atol=1e-13
        )
    saved = stream.state
    for t in range(T):
        np.testing.assert_allclose(stream.step(x[t, 1:2], slots=[1]), want[t, 1:2], atol=1e-13)
    stream.reset([2])
    np.testing.assert_allclose(stream.step(x[0, 2:], slots=[2]), want[0, 2:], atol=1e-13)
    stream.state = saved
    for t in range(T):
        np.testing.assert_allclose(stream.step(x[t, 1:2], slots=[1]), want[t, 1:2], atol=1e-13)
    stream.reset()
    stream.step(x[0])
    with model.write() as p:
        for view in p.values():
            view[...] *= 0.5
    with pytest.raises(RuntimeError, match="stream: expected the model that it was made of"):
        stream.step(x[1])
    stream.refresh()
    stream.x[...] = x[1]
    y = stream.step().copy()
    assert np.isfinite(y).all()
    assert not np.allclose(y, want[1])
    with pytest.raises(ValueError, match="slots: expected"):
        stream.step(x[0, :1], slots=[B])
    with pytest.raises(ValueError, match="slots: "):
        stream.step(x[0, :2], slots=[1, 1])
    with pytest.raises((ValueError, TypeError), match="x: expected"):
        stream.step(x[0, :, :2])


@pytest.mark.parametrize("name", ["norm", "convolution"])
def test_streams_of_one_layer(name: str) -> None:
    layer: Any = {
        "norm": randomised(nn.LayerNorm(D, **F64)),
        "convolution": nn.Conv1d(D, 5, 3, padding="causal", dilation=2, **F64, rng=0),
    }[name]
    x, stream = drawn(T, B, D), layer.stream(B)
    np.testing.assert_allclose([stream.step(row).copy() for row in x], layer(x), atol=1e-13)
    stream.reset([1])
    np.testing.assert_allclose(stream.step(x[0, 1:2], slots=[1]), layer(x)[0, 1:2], atol=1e-13)


def test_a_stream_needs_to_know_its_inputs() -> None:
    with pytest.raises(
        TypeError, match="stream: expected a layer first that knows the length of its inputs"
    ):
        nn.Sequential(nn.Activation("gelu"), nn.Linear(2, 2)).stream()
    with pytest.raises(
        TypeError, match="stream: expected a layer first that knows the length of its inputs"
    ):
        nn.Sequential(nn.Residual(nn.Dropout()), nn.Linear(2, 2)).stream()
    with pytest.raises(TypeError, match="stream: expected a Concat of layers that read numbers"):
        nn.Sequential(nn.Concat(nn.Embedding(5, 2), nn.Embedding(5, 3)), nn.GRU(5, 2)).stream()
    with pytest.raises(ValueError, match="stream: expected inputs of 3, got 2 of the layer before"):
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(3)).stream()


@pytest.mark.parametrize("layer", [nn.GRU(D, 2), nn.LayerNorm(D)], ids=["native", "Python"])
def test_what_a_stream_does_not_take(layer: nn.Layer) -> None:
    stream, x = layer.stream(2), np.ones((2, D), np.float32)
    y = stream.step(x).copy()
    state = stream.state
    for wrong in (x.astype(float), x.tolist()):
        with pytest.raises(TypeError, match=r"x: expected .*float32, got"):
            stream.step(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x: expected shape .*\(2, 4\), got \(1, 4\)"):
        stream.step(x[:1])
    if layer.stateful:
        with pytest.raises(TypeError, match="state: expected dtype float32, got float64"):
            stream.state = state.astype(float)
    stream.reset()
    assert np.array_equal(stream.step(x), y)


# -- layers of layers ------------------------------------------------------------------------------


def test_residual_without_a_state() -> None:
    layer = nn.Residual(nn.Linear(D, D, **F64, rng=0))
    x = drawn(T, B, D)
    check(
        layer,
        x,
        lambda: x + x @ layer.layer.parameters()["weight"].T + layer.layer.parameters()["bias"],
    )
    with pytest.raises(
        TypeError, match="state: expected None, since no layer of Residual has a state"
    ):
        layer(x, np.zeros(3))
    with pytest.raises(
        ValueError,
        match=r"layer: expected outputs of the shape of the inputs \(7, 3, 4\), got \(7, 3, 2\)",
    ):
        nn.Residual(nn.Linear(D, 2, **F64))(x)


def test_residual_and_concat_with_states() -> None:
    x = drawn(T, B, D)
    inner = nn.GRU(D, D, bidirectional=False, **F64, rng=0)
    blocks = {
        "residual": nn.Residual(copy.deepcopy(inner)),
        "concat": nn.Concat(nn.LayerNorm(D, **F64), copy.deepcopy(inner)),
    }
    assert [b.stateful for b in blocks.values()] == [True, True]
    real = (np.arange(T)[:, None] < np.asarray(LENGTHS))[..., None]

    def residual() -> Any:
        return real * x + blocks["residual"].layer(x, lengths=LENGTHS)[0]

    def concat() -> Any:
        norm, gru = blocks["concat"].layers
        return np.concatenate([norm(x * real), gru(x, lengths=LENGTHS)[0]], -1)

    check(blocks["residual"], x, residual, lengths=LENGTHS)
    check(blocks["concat"], x, concat, lengths=LENGTHS)
    y, state = blocks["residual"](x[:3])
    assert np.array_equal(
        np.concatenate([y, blocks["residual"](x[3:], state)[0]]), blocks["residual"](x)[0]
    )
    y, state = blocks["concat"](x[:3])
    assert state[0] is None
    assert np.array_equal(
        np.concatenate([y, blocks["concat"](x[3:], state)[0]]), blocks["concat"](x)[0]
    )
    with pytest.raises(TypeError, match="state: expected a tuple of 2, one entry a layer, got 3"):
        blocks["concat"](x, (None,) * 3)


@pytest.mark.parametrize("name", ["Residual", "Concat", "ClockworkRNN"])
def test_models_take_lists_of_sequences(name: str) -> None:
    """Their gradients are a list as well, and those of a Ragged."""
    layer: Any = {
        "Residual": lambda: nn.Residual(nn.GRU(D, D, **F64, rng=0)),
        "Concat": lambda: nn.Concat(nn.GRU(D, 2, **F64, rng=0), nn.Linear(D, 3, **F64, rng=1)),
        "ClockworkRNN": lambda: nn.ClockworkRNN(D, 4, [1, 2], **F64, rng=0),
    }[name]()
    x = [drawn(n, D, seed=n) for n in (3, 0, 5)]
    (y, _), pullback = layer.vjp(x)
    (flat, _), other = layer.vjp(ost.Ragged.join(x))
    assert isinstance(y, list)
    assert all(np.array_equal(a, b) for a, b in zip(y, flat))
    dx, want = pullback(y)[0], other(flat)[0]
    assert isinstance(dx, list)
    assert all(np.array_equal(a, b) for a, b in zip(dx, want))


def test_blocks_in_a_sequential() -> None:
    """With padding that holds NaN, as lists without padding, and trained."""
    model = nn.Sequential(
        nn.Residual(nn.GRU(D, D, **F64, rng=0)),
        nn.LayerNorm(D, **F64),
        nn.Concat(nn.Linear(D, 2, **F64, rng=1), nn.Conv1d(D, 3, 3, **F64, rng=2)),
        nn.Pool("attention", 5, **F64, rng=3),
        nn.Linear(5, 1, **F64, rng=4),
    )
    x = drawn(T, B, D)
    x[0, 1] = 0  # a row of length 0
    x[4:, 2] = np.nan
    lengths = [7, 1, 4]
    (y, _), pullback = model.vjp(x, lengths=lengths)
    dx, _ = pullback(np.ones_like(y))
    padded = model.flat_grads.copy()
    assert np.isfinite(y).all()
    assert np.isfinite(padded).all()
    assert np.isfinite(dx).all()
    lists = [x[:n, b].copy() for b, n in enumerate(lengths)]
    (y2, _), pullback = model.vjp(lists)
    np.testing.assert_allclose(y2, y, atol=1e-12)
    model.zero_grad()
    dx2, _ = pullback(np.ones_like(y))
    np.testing.assert_allclose(model.flat_grads, padded, atol=1e-10)
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(dx2[b], dx[:n, b], atol=1e-10)
    np.testing.assert_allclose(
        model.grads["0.layer.bias_ih_l0"],
        parameter_gradient(lambda: model(lists)[0].sum(), model, "0.layer.bias_ih_l0"),
        atol=1e-7,
    )


CHAINS: dict[str, Any] = {
    "stride behind": lambda: [
        nn.Linear(D, D, **F64, rng=0),
        nn.Conv1d(D, 3, 3, stride=2, **F64, rng=1),
    ],
    "strides of Concat": lambda: [
        nn.Concat(*(nn.Conv1d(D, n, n, stride=2, **F64, rng=n) for n in (2, 3))),
        nn.GRU(5, 3, **F64, rng=1),
    ],
    "steps first": lambda: [
        nn.TimeDistributed(nn.Linear(D, D, **F64, rng=0)),
        nn.GRU(D, 3, **F64, rng=1),
    ],
    "steps last": lambda: [
        nn.GRU(D, D, **F64, rng=0),
        nn.TimeDistributed(nn.Linear(D, 3, **F64, rng=1)),
    ],
    "blocks": lambda: [
        nn.Residual(nn.Sequential(nn.Linear(D, D, **F64, rng=0))),
        nn.GRU(D, D, **F64, rng=1),
        nn.Concat(nn.Linear(D, 2, **F64, rng=2), nn.GRU(D, 1, **F64, rng=3)),
    ],
    "attention last": lambda: [nn.GRU(D, D, **F64, rng=0), nn.Attention(**F64)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_rows_of_a_padded_batch_are_as_alone(name: str) -> None:
    """Whatever padding holds, of the inputs and of the gradients of the outputs."""
    model = nn.Sequential(*CHAINS[name]())
    x = drawn(T, B, D)
    for b, n in enumerate(LENGTHS):
        x[n:, b] = np.nan
    (y, _), pullback = model.vjp(x, lengths=LENGTHS)
    assert np.array_equal(model(x, lengths=LENGTHS)[0], y)
    d = drawn(*y.shape, seed=8)
    grads, alone = model.new_grads(), model.new_grads()
    dx, _ = pullback(d, grads=grads)
    for b, n in enumerate(LENGTHS):
        (own, _), back = model.vjp(x[:n, b : b + 1])
        np.testing.assert_allclose(y[: len(own), b], own[:, 0], atol=1e-12)
        own_dx, _ = back(d[: len(own), b : b + 1], grads=alone)
        np.testing.assert_allclose(dx[:n, b], own_dx[:, 0], atol=1e-12)
        assert not dx[n:, b].any()
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(gradient, alone[parameter], atol=1e-12, err_msg=parameter)


def test_outputs_of_a_concat_have_the_same_lengths() -> None:
    convolutions = (nn.Conv1d(D, 2, 2, stride=2, padding=p) for p in ("same", "valid"))
    model = nn.Sequential(nn.Concat(*convolutions), nn.GRU(4, 3))
    with pytest.raises(ValueError, match="lengths: expected layers of a Concat whose outputs have"):
        model(drawn(6, 2, D).astype(np.float32), lengths=[6, 5])


@pytest.mark.parametrize("mine", [False, np.ones(2), 1.0], ids=["flag", "array", "number"])
def test_attributes_of_ones_own_say_nothing_of_a_state(mine: Any) -> None:
    class Own(nn.Model):
        stateful = True

        def __init__(self) -> None:
            self.rnn = nn.GRU(D, D, **F64, rng=0)
            self._recurrent = mine

        def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
            return self.rnn(x, state, **times)

    x, resets = drawn(T, B, D), np.zeros((T, B), bool)
    resets[3] = True
    got, _ = nn.Sequential(Own(), nn.Linear(D, 1, **F64, rng=1))(x, resets=resets)
    alone = nn.GRU(D, D, **F64, rng=0), nn.Linear(D, 1, **F64, rng=1)
    want, _ = nn.Sequential(*alone)(x, resets=resets)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("block", ["Residual", "Concat", "Sequential"])
@pytest.mark.parametrize("inner", ["Linear", "Conv1d"])
def test_resets_are_for_recurrent_layers_alone(block: str, inner: str) -> None:
    own: Any = (
        nn.Linear(D, D, **F64, rng=0)
        if inner == "Linear"
        else nn.Conv1d(D, D, 1, padding="causal", **F64, rng=0)
    )
    first: Any = nn.Sequential(own)
    first = first if block == "Sequential" else getattr(nn, block)(first)
    model = nn.Sequential(first, nn.GRU(D, 3, **F64, rng=1))
    x, resets = drawn(T, B, D), np.zeros((T, B), bool)
    resets[3] = True
    y = model(x, resets=resets)[0]
    np.testing.assert_allclose(y[:3], model(x[:3])[0], atol=1e-12)
    np.testing.assert_allclose(y[3:], model(x[3:])[0], atol=1e-12)


def test_the_dtype_of_blocks_without_parameters() -> None:
    blocks = [
        nn.Residual(nn.Attention(**F64)),
        nn.Concat(nn.Residual(nn.Activation("tanh", **F64)), nn.Attention(**F64)),
    ]
    assert [block.dtype for block in blocks] == [np.float64] * 2
    assert nn.Sequential(*blocks, nn.Linear(2 * D, 2, **F64))(drawn(T, B, D))[0].shape == (T, B, 2)


def test_what_runs_within_steps_has_a_layout_of_its_own() -> None:
    """Steps ``[T,B,N]`` that are sequences of their own, in front of layers that read [T,B,*]."""
    words = nn.TimeDistributed(
        nn.Sequential(nn.Embedding(9, D, **F64, rng=0), nn.Pool("max", batch_first=True, **F64))
    )
    model = nn.Sequential(words, nn.GRU(D, 3, **F64, rng=1), nn.Linear(3, 9, **F64, rng=2))
    x = np.random.default_rng(0).integers(0, 9, (B, B, 5))
    y, _ = model(x, lengths=[3, 1, 2])
    for b, n in enumerate([3, 1, 2]):
        np.testing.assert_allclose(y[:n, b], model(x[:n, b : b + 1])[0][:, 0], atol=1e-12)


def test_layers_of_layers_are_told_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="layers: expected layers, got str"):
        nn.Concat(nn.Linear(2, 2), "linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers: expected at least one, got none"):
        nn.Concat()
    with pytest.raises(ValueError, match="layers: expected one batch_first for all, got both"):
        nn.Concat(nn.GRU(2, 2), nn.GRU(2, 2, batch_first=True))
    with pytest.raises(ValueError, match="layer: expected batch_first=True within TimeDistributed"):
        nn.TimeDistributed(nn.GRU(2, 2))


def test_concat_of_strides() -> None:
    """Outputs that are fewer than the steps are joined where they are as many in all layers."""
    layer = nn.Concat(*(nn.Conv1d(D, n, 3, stride=2, **F64, rng=n) for n in (2, 3)))
    x = [drawn(n, D, seed=n) for n in (5, 0, 4)]
    y, pullback = layer.vjp(x)
    assert [a.shape for a in y] == [(3, 5), (0, 5), (2, 5)]
    for a, b in zip(y, x):
        np.testing.assert_allclose(a, layer(b[:, None])[:, 0], atol=1e-12)
    assert [a.shape for a in pullback(y)] == [a.shape for a in x]


def wrong_blocks() -> dict[str, Any]:
    x, listed = drawn(T, B, D), drawn(T, B, D).tolist()
    ragged = ost.Ragged(drawn(6, D), [0, 2, 6])
    line, gru = (lambda n=2: nn.Linear(D, n, **F64)), (lambda: nn.GRU(D, D, **F64))
    strided = nn.Concat(nn.Conv1d(D, 2, 3, stride=2, **F64), line())
    words = nn.TimeDistributed(nn.Conv1d(D, 2, 3, batch_first=True, **F64))
    steps = drawn(2, 3, 4, D)
    apart = "layers: expected outputs that differ in the last axis alone, got"
    no_array = "x: expected a numpy.ndarray, got list"
    return {
        "state of Concat": (
            TypeError,
            "state: expected a tuple of 2, one entry a layer, got int",
            lambda: nn.Concat(gru(), line())(x, 5),
        ),
        "strides of Concat": (
            ValueError,
            f"{apart} (4, 3, 2) of Conv1d(4, 2, 3, stride=2), (7, 3, 2) of Linear(4, 2)",
            lambda: strided(x),
        ),
        "strides of ragged": (ValueError, f"{apart} (3, 2) of Conv1d", lambda: strided(ragged)),
        "strides of Residual": (
            ValueError,
            "layer: expected outputs of the shape of the inputs (7, 3, 4), got (4, 3, 4)",
            lambda: nn.Residual(nn.Conv1d(D, D, 3, stride=2, **F64))(x),
        ),
        "lists in Residual": (
            TypeError,
            no_array,
            lambda: nn.Residual(gru())(listed, lengths=LENGTHS),
        ),
        "uneven lists": (TypeError, no_array, lambda: nn.Residual(gru())([[[1.0]], [[1.0], []]])),
        "lists without a check": (TypeError, no_array, lambda: nn.Residual(nn.Dropout())([[1.0]])),
        "lists in Concat": (
            TypeError,
            no_array,
            lambda: nn.Concat(gru(), line())(listed, lengths=LENGTHS),
        ),
        "lists of steps": (TypeError, no_array, lambda: nn.TimeDistributed(line())(listed)),
        "no steps": (
            ValueError,
            "x: expected shape (T, B, ...) or (B, T, ...), got (4,)",
            lambda: nn.TimeDistributed(line())(x[0, 0]),
        ),
        "no features": (
            ValueError,
            "layer: expected an output for each of 4 steps, got (2,) of Linear(4, 2)",
            lambda: nn.TimeDistributed(line())(drawn(2, 2)),
        ),
        "steps of steps": (
            TypeError,
            "x: expected sequences of rows, got Ragged",
            lambda: nn.TimeDistributed(line())(ost.Ragged(ragged, [0, 2])),
        ),
        "lengths of no sequences": (
            TypeError,
            "inner_lengths: expected None, since Linear(4, 2) takes no lengths, got list",
            lambda: nn.TimeDistributed(line())(x, inner_lengths=[1]),
        ),
        "lengths within a block": (
            TypeError,
            "inner_lengths: expected None, since Residual takes no lengths, got list",
            lambda: nn.TimeDistributed(nn.Residual(line(D)))(x, inner_lengths=[1]),
        ),
        "lengths above": (
            ValueError,
            "inner_lengths: expected values from 0 to 4, got 5",
            lambda: words(steps, inner_lengths=np.full((2, 3), 5)),
        ),
        "fractional lengths": (
            TypeError,
            "inner_lengths: expected an integer dtype, got float64",
            lambda: words(steps, inner_lengths=np.ones((2, 3))),
        ),
    }


@pytest.mark.parametrize("case", wrong_blocks())
def test_what_is_wrong_with_a_call_of_layers_of_layers(case: str) -> None:
    error, words, call = wrong_blocks()[case]
    with pytest.raises(error, match=re.escape(words)):
        call()


@pytest.mark.parametrize("inner", ["recurrent", "convolution", "linear"])
def test_time_distributed(inner: str) -> None:
    """Words as sequences of characters."""
    layer: Any = nn.TimeDistributed(
        {
            "recurrent": lambda: nn.Sequential(
                nn.GRU(D, 5, batch_first=True, **F64, rng=0),
                nn.Pool("last", batch_first=True, **F64),
            ),
            "convolution": lambda: nn.Conv1d(D, 5, 3, batch_first=True, **F64, rng=0),
            "linear": lambda: nn.Linear(D, 5, **F64, rng=0),
        }[inner]()
    )
    x = drawn(2, 3, 6, D)
    lengths = np.array([[6, 1, 3], [2, 5, 4]])
    times = {} if inner == "linear" else {"inner_lengths": lengths}

    def want() -> Any:
        rows = []
        for at in np.ndindex(2, 3):
            n = 6 if inner == "linear" else lengths[at]
            y = layer.layer(x[at][None, :n])
            y = (y[0] if layer.layer.stateful else y)[0]
            rows.append(np.pad(y, ((0, 6 - n), (0, 0))) if y.ndim == 2 else y)
        return np.stack(rows).reshape(2, 3, *rows[0].shape)

    check(layer, x, want, **times)
    if times:
        with pytest.raises(
            ValueError, match=r"inner_lengths: expected shape \(2, 3\), got \(3, 2\)"
        ):
            layer(x, inner_lengths=lengths.T)
    words = ost.Ragged(x.reshape(6, 6, D), [0, 2, 6])
    out = layer(words, **({"inner_lengths": lengths.reshape(6)} if times else {}))
    np.testing.assert_allclose(out.rows, want().reshape(6, *want().shape[2:]), atol=1e-12)
    cut = {"inner_lengths": list(words.like(lengths.reshape(6)))} if times else {}
    found, pullback = layer.vjp(list(words), **cut)
    assert isinstance(found, list)
    assert all(np.array_equal(a, b) for a, b in zip(found, out))
    assert [a.shape for a in pullback(found)] == [(2, 6, D), (4, 6, D)]


# -- pooling by attention --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_pooling(batch_first: bool) -> None:
    layer = nn.Pool("attention", D, batch_first=batch_first, **F64, rng=0)
    x = drawn(B, T, D) if batch_first else drawn(T, B, D)
    mask = np.random.default_rng(0).random(x.shape[:2]) < 0.8

    def want() -> Any:
        rows, on = (a.swapaxes(0, 1) if batch_first else a for a in (x, mask))
        on = on & (np.arange(T)[:, None] < np.array(LENGTHS))
        return ost.reference.pool("attention", rows, on, weights=layer.parameters())

    y = check(layer, x, want, lengths=LENGTHS, mask=mask)
    assert not y[1].any()  # a row without a step
    with pytest.raises(ValueError, match="size: expected None for 'mean', got 4"):
        nn.Pool("mean", 4)
    with pytest.raises(ValueError, match="size: expected a number for 'attention', got None"):
        nn.Pool("attention")
    with pytest.raises(ValueError, match="x: expected a last axis of 4, got 3"):
        layer(x[..., :3])
    with pytest.raises(ValueError, match=r"x: expected rows of shape \(N, D\), got \(5,\)"):
        layer(ost.Ragged(drawn(5), [0, 5]))
    with pytest.raises(TypeError, match=r"x: expected dtype float64, got float32; use x\.astype"):
        layer(x.astype(np.float32))


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["alone", "looked up", "in a model"])
def test_padding_of_an_embedding(way: str) -> None:
    embed = nn.Embedding(5, D, padding_index=2, **F64, rng=0)
    assert not embed.parameters()["weight"][2].any()
    ids = np.random.default_rng(0).integers(0, 5, (20, 4))
    ids[0] = 2
    if way == "alone":
        y, pullback = embed.vjp(ids)
        d = drawn(*y.shape)
        pullback(d)
        want = np.zeros((5, D))
        np.add.at(want, ids, d)
        want[2] = 0
        np.testing.assert_allclose(embed.grads["weight"], want, atol=1e-12)
        assert repr(embed) == "Embedding(5, 4, padding_index=2)"
        return
    gru = nn.GRU(D, 3, **F64, rng=1)
    if way == "looked up":
        model: Any = nn.Sequential(embed, gru)
    else:

        class Both(nn.Model):
            def __init__(self) -> None:
                self.embed, self.rnn = embed, gru

            def __call__(self, x: Any) -> Any:
                return self.rnn(self.embed(x))

        model = Both()
    name = next(iter(model.parameters()))
    (y, *_), pullback = model.vjp(ids)
    pullback((np.ones_like(y), None)) if way == "in a model" else pullback(np.ones_like(y))
    want = parameter_gradient(lambda: model(ids)[0].sum(), model, name)
    want[2] = 0
    assert want.any()
    np.testing.assert_allclose(model.grads[name], want, atol=1e-8)


def test_padding_indices_that_are_none() -> None:
    with pytest.raises(ValueError, match="padding_index: expected a number below N = 5, got 5"):
        nn.Embedding(5, 2, padding_index=5)
    with pytest.raises(
        ValueError, match="padding_index: expected a whole number of at least 0, got -1"
    ):
        nn.Embedding(5, 2, padding_index=-1)


# -- GELU ------------------------------------------------------------------------------------------


def test_gelu() -> None:
    x = np.linspace(-9, 9, 73)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(nn.gelu(x), exact, rtol=1e-13)
    approximate = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(nn.gelu(x, approximate=True), approximate, atol=1e-15)
    single = nn.gelu(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=3e-6, atol=3e-7)
    for name, function in (
        ("gelu", nn.gelu),
        ("gelu_tanh", lambda a: nn.gelu(a, approximate=True)),
    ):
        layer, a = nn.Activation(name, **F64), drawn(T, B, D) * 3
        check(layer, a, lambda function=function, a=a: function(a))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_of_the_largest_numbers(kind: Any, approximate: bool) -> None:
    """Far from 0 it is 0 or the number itself, with slopes of 0 and 1, and nothing overflows."""
    most = np.finfo(kind).max
    x = np.array([-most, -1e30, -100, 100, 1e30, most], kind)
    with np.errstate(all="raise", under="ignore"):
        y, pullback = ost.vjp(lambda a: nn.gelu(a, approximate=approximate), x)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        np.testing.assert_array_equal(pullback(np.ones_like(x)), x > 0)


def test_gelu_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = np.linspace(-6, 6, 49)
    for approximate, name in ((False, "none"), (True, "tanh")):
        t = torch.tensor(x, requires_grad=True)
        out = torch.nn.functional.gelu(t, approximate=name)
        out.sum().backward()
        y, pullback = ost.vjp(lambda a, on=approximate: nn.gelu(a, approximate=on), x)
        np.testing.assert_allclose(y, out.detach().numpy(), atol=1e-14)
        np.testing.assert_allclose(pullback(np.ones_like(x)), t.grad.numpy(), atol=1e-14)


def test_functions_refuse_what_is_no_real_number() -> None:
    for function in (nn.sigmoid, nn.relu, nn.softmax, nn.log_softmax, nn.gelu):
        with pytest.raises(TypeError, match="x: expected dtype float32 or float64, got int64"):
            function(np.arange(3))
        with pytest.raises(TypeError, match=r"x: expected a numpy\.ndarray, got list"):
            function([1.0])
    with pytest.raises(TypeError, match="where: expected an array of bool, got list"):
        nn.softmax(np.ones(2), where=[True, False])
    assert nn.softmax(np.zeros((2, 0))).shape == (2, 0)


# -- on a device -----------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    native_for_tests()
    return fake_cupy.stand_in(monkeypatch)


ON_A_DEVICE: dict[str, Any] = {
    "LayerNorm": lambda: nn.LayerNorm(D),
    "Conv1d": lambda: nn.Conv1d(D, 5, 3, stride=2, rng=0),
    "causal": lambda: nn.Conv1d(D, 5, 3, padding="causal", batch_first=True, rng=0),
    "Residual": lambda: nn.Residual(nn.GRU(D, D, rng=0)),
    "Concat": lambda: nn.Concat(nn.GRU(D, D, rng=0), nn.Linear(D, 2, rng=1)),
    "TimeDistributed": lambda: nn.TimeDistributed(nn.Linear(D, 2, rng=1)),
    "gelu": lambda: nn.Activation("gelu"),
    "ClockworkRNN": lambda: nn.ClockworkRNN(D, [3, 2], [1, 2], rng=0),
}


@pytest.mark.parametrize("name", ON_A_DEVICE)
def test_layers_on_a_device(gpu: Any, name: str) -> None:
    layer = ON_A_DEVICE[name]()
    there = copy.deepcopy(layer).to("cuda")
    x = drawn(T, B, D).astype(np.float32)
    times = (
        {"lengths": LENGTHS if not getattr(layer, "batch_first", False) else [3, 0, 2, 1, 3, 3, 3]}
        if layer.takes_lengths
        else {}
    )
    y, pullback = layer.vjp(x, **times)
    y2, pullback2 = there.vjp(gpu.put(x), **times)
    y, y2 = (y[0], y2[0]) if layer.stateful else (y, y2)
    np.testing.assert_allclose(y2.get(), y, atol=2e-5)
    dx, dx2 = pullback(y), pullback2(y2)
    dx, dx2 = (dx[0], dx2[0]) if layer.stateful else (dx, dx2)
    np.testing.assert_allclose(dx2.get(), dx, atol=5e-5)
    for n, grad in layer.grads.items():
        np.testing.assert_allclose(there.grads[n].get(), grad, atol=1e-4, err_msg=n)


# -- layers of other libraries ---------------------------------------------------------------------


def test_reversed_sequences_without_padding() -> None:
    layer = ost.interop.Reversed(nn.GRU(D, 5, **F64, rng=0))
    x = [drawn(n, D, seed=n) for n in (3, 0, 6)]
    (y, state), pullback = layer.vjp(x)
    dx, _ = pullback(y)
    for b, a in enumerate(x):
        (alone, end), back = layer.vjp(a[:, None])
        np.testing.assert_allclose(y[b], alone[:, 0], atol=1e-12)
        np.testing.assert_allclose(state[:, b], end[:, 0], atol=1e-12)
        np.testing.assert_allclose(dx[b], back(alone)[0][:, 0], atol=1e-12)
    with pytest.raises(ValueError, match="lengths: expected None with ragged sequences, got list"):
        layer(x, lengths=[3, 0, 6])
    with pytest.raises(TypeError, match=r"x: expected a numpy\.ndarray, got list"):
        layer(x[0][:, None].tolist())
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, got Linear"):
        ost.interop.Reversed(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_without_features(batch_first: bool) -> None:
    x = np.zeros((T, B, 0))
    for layer in (
        nn.Pool("mean", batch_first=batch_first, **F64),
        nn.Pool("max", batch_first=batch_first, **F64),
        nn.Attention(batch_first=batch_first, **F64),
        nn.Softmax(log=True, **F64),
    ):
        y, pullback = layer.vjp(x)
        assert y.shape == (((T if batch_first else B), 0) if layer.reduces_time else x.shape)
        assert pullback(np.zeros_like(y)).shape == x.shape


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(D, 2, 3, **F64),
        nn.Pool("mean", **F64),
        nn.Pool("attention", D, **F64),
        nn.Sequential(nn.Pool("max", **F64)),
        nn.LayerNorm(D, **F64),
    ],
    ids=["Conv1d", "Pool", "attended", "Sequential", "LayerNorm"],
)
def test_a_gradient_of_another_dtype_is_a_type_error(layer: Any) -> None:
    out, pullback = layer.vjp(drawn(T, B, D))
    y = out[0] if layer.stateful else out
    with pytest.raises(TypeError, match=r"dy: expected dtype float64, got float32; use dy.astype"):
        pullback(y.astype(np.float32))
    pullback(y)
