"""The layer-norm LSTM: its equations, stacks, streams, bounds on memory, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    NORMS,
    PLAIN_STACKS,
    arrays_of,
    assert_bits_with_limits,
    assert_close,
    assert_gradients_by_differences,
    cast,
    normal,
    random_weights,
    slack,
    widened,
)
from ostinato import _core, diagnostics, reference

CELL = "lstm_layer_norm"
LOOSE = slack(CELL)


def layer_of(*sizes: int, seed: int = 0, **options: Any) -> Any:
    """A layer with gains, shifts and states of its own."""
    layer = ost.nn.LSTM(*sizes, layer_norm=True, rng=0, **options)
    values = layer.state_dict()
    for k, name in enumerate(values):
        if "_ln_" in name or name.startswith("initial"):
            values[name] = values[name] + normal(values[name].shape, layer.dtype, seed + k) * 0.3
    layer.load_state_dict(values)
    return layer


def weights_of(layer: Any, end: str) -> reference.Weights:
    p = layer.parameters()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *NORMS)
    return reference.Weights(**{n: p[n + end].astype(np.float64) for n in names})


def norm(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_one_step_is_written_out(kernel_set: str) -> None:
    """From the equations of the paper, here once more; the variance is not that of a sample."""
    w = random_weights(CELL, 3, 5, np.random.default_rng(0))
    x, h, c = (
        normal((2, 3), np.float64, 1),
        normal((2, 5), np.float64, 2),
        normal((2, 5), np.float64, 3),
    )
    a = (
        norm(x @ w.weight_ih.T) * w.weight_ln_ih
        + norm(h @ w.weight_hh.T) * w.weight_ln_hh
        + w.bias_ih
        + w.bias_hh
    )
    i, f, g, o = np.split(a, 4, axis=1)

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    c1 = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h1 = sigmoid(o) * np.tanh(norm(c1) * w.weight_ln_c + w.bias_ln_c)
    arrays = cast(w, np.float64)
    y, (h_n, c_n) = ost.functional.lstm(x[None], *arrays[:4], h, c, layer_norm=arrays[4:])
    assert_close(y[0], h1)
    assert np.array_equal(h_n, y[0])
    assert_close(c_n, c1)  # as it is carried: not normed


@pytest.mark.parametrize("hidden", [1, 2, 7, 16, 31, 64, 65])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_any_width(hidden: int, dtype: Any, kernel_set: str) -> None:
    """Pad lanes take no part in a mean, a variance or a gradient."""
    rng = np.random.default_rng(hidden)
    arrays = cast(random_weights(CELL, 4, hidden, rng), dtype)
    x, dy = (rng.normal(size=(6, 3, n)).astype(dtype) for n in (4, hidden))
    (y, (_, c_n)), pullback = ost.functional.lstm_vjp(x, *arrays[:4], layer_norm=arrays[4:])
    exact = widened(CELL, arrays)
    run = reference.forward(CELL, x.astype(np.float64), exact)
    assert_close(y, run.y, "y", LOOSE)
    assert_close(c_n, run.c_n, "c_n", LOOSE)
    got, want = pullback(dy), reference.backward(run, dy.astype(np.float64))
    assert_close(got.dx, want.x, "dx", 8 * LOOSE)
    for name in NORMS:
        assert_close(getattr(got.dlayer_norm, name), getattr(want.weights, name), name, 8 * LOOSE)


def test_a_row_of_equal_numbers_is_normed_to_zero(kernel_set: str) -> None:
    """No spread: the constant beside the variance keeps the quotient, and its gradient, finite."""
    w = cast(random_weights(CELL, 2, 9, np.random.default_rng(0)), np.float32)
    (y, _), pullback = ost.functional.lstm_vjp(
        np.zeros((3, 2, 2), np.float32), *w[:4], layer_norm=w[4:]
    )
    assert all(np.isfinite(a).all() for a in (y, *arrays_of(pullback(np.ones_like(y)))))
    w[0][...] = 1
    z, _ = ost.functional.lstm(np.ones((3, 2, 2), np.float32), *w[:4], layer_norm=w[4:])
    assert_close(z, y.astype(np.float64))


def test_scaled_weights_change_nothing() -> None:
    """LN(s W x) = LN(W x), but for the constant beside the variance."""
    w = random_weights(CELL, 5, 24, np.random.default_rng(0))
    x = normal((7, 2, 5), np.float64)
    arrays = cast(w, np.float64)
    y, _ = ost.functional.lstm(x, *arrays[:4], layer_norm=arrays[4:])
    arrays[0], arrays[1] = arrays[0] * 1000, arrays[1] * 1000
    z, _ = ost.functional.lstm(x, *arrays[:4], layer_norm=arrays[4:])
    np.testing.assert_allclose(y, z, atol=2e-2)
    assert not np.allclose(y, ost.functional.lstm(x, *arrays[:4])[0], atol=0.1)


@pytest.mark.parametrize("stack", PLAIN_STACKS, ids=str)
def test_gradients_of_stacks_by_differences(stack: dict[str, Any]) -> None:
    layer = layer_of(3, 4, learned_state=True, dtype=np.float64, **stack)
    x = normal((5, 3, 3), np.float64)
    resets = np.random.default_rng(3).random(x.shape[:2]) < 0.2
    assert_gradients_by_differences(layer, x, resets)


@pytest.mark.parametrize("stack", PLAIN_STACKS, ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_with_a_bound_on_memory(
    precision: str, stack: dict[str, Any], kernel_set: str, threads: None
) -> None:
    assert_bits_with_limits(layer_of(3, 37, precision=precision, **stack))


@pytest.mark.parametrize(
    ("steps", "batch", "hidden"),
    [(40, 1, 200), (40, 3, 130), (17, 45, 70), (5, 300, 20), (60, 1, 16)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads_or_company(
    steps: int, batch: int, hidden: int, dtype: Any, kernel_set: str, threads: None
) -> None:
    """Threads that share the units of a step norm whole rows, too."""
    rng = np.random.default_rng(5)
    w = cast(random_weights(CELL, 6, hidden, rng), dtype)
    x, dy = (rng.normal(size=(steps, batch, n)).astype(dtype) for n in (6, hidden))

    def run(rows: slice) -> list[Any]:
        (y, state), pullback = ost.functional.lstm_vjp(x[:, rows], *w[:4], layer_norm=w[4:])
        g = pullback(dy[:, rows])
        return [y, *state, g.dx, g.dh0, g.dc0, *arrays_of(g)]

    results = []
    for n in (1, 2, 3, 5):
        ost.set_num_threads(n)
        results.append(run(slice(None)))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
    last = slice(batch - 1, batch)
    for got, whole in zip(run(last)[:6], results[0]):
        assert np.array_equal(got, whole[last] if whole.ndim == 2 else whole[:, last])


def test_one_row_is_shared_by_units(threads: None) -> None:
    """The spread that the bits above are about is taken, and told."""
    ost.set_num_threads(2)
    plans = ost.explain(layer_of(256, 256), (50, 1, 256), training=True).facts["passes"]
    assert {g["spread"] for groups in plans.values() for g in groups} == {"units"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_streams_have_the_bits_of_the_whole(precision: str, kernel_set: str) -> None:
    layer = layer_of(4, 19, 2, learned_state=True, precision=precision)
    x = normal((12, 3, 4))
    y, (h, c) = layer(x)
    stream = layer.stream(3)
    for t in range(12):
        assert np.array_equal(stream.step(x[t]), y[t])
    assert np.array_equal(stream.h, h)
    assert np.array_equal(stream.c, c)
    stream.reset([1])
    stream.step(x[0, 1:2], slots=np.array([1]))
    one, _ = layer(x[:1, 1:2])
    assert np.array_equal(stream.y[:1], one[0])


def test_ragged_sequences_and_outputs(kernel_set: str) -> None:
    layer = layer_of(3, 21, 2, bidirectional=True)
    sequences = [normal((n, 3), seed=n) for n in (4, 0, 9, 1)]
    ys, (h, c) = layer(sequences)
    for k, (x, y) in enumerate(zip(sequences, ys)):
        alone, (h1, c1) = layer(x[:, None])
        assert np.array_equal(y, alone[:, 0])
        assert np.array_equal(h[:, k], h1[:, 0])
        assert np.array_equal(c[:, k], c1[:, 0])
    x = normal((6, 2, 3))
    y, (h, _) = layer(x)
    assert np.array_equal(layer(x, outputs="last")[0], np.concatenate([h[2], h[3]], 1))
    (last, _), pullback = layer.vjp(x, outputs="last_step")
    assert np.array_equal(last, y[-1])
    dx, _ = pullback(np.ones_like(last))
    (y, _), whole = layer.vjp(x)
    d = np.zeros_like(y)
    d[-1] = 1
    assert np.array_equal(dx, whole(d)[0])


def test_ragged_gradients_are_those_of_padded_rows(kernel_set: str) -> None:
    layer = layer_of(3, 21)
    sequences = [normal((n, 3), seed=n) for n in (4, 0, 9, 1)]
    x = np.zeros((9, 4, 3), np.float32)
    for k, s in enumerate(sequences):
        x[: len(s), k] = s
    layer.zero_grad()
    (_, (h, _)), pullback = layer.vjp(sequences, outputs="last")
    pullback(np.ones_like(h[0]))
    flat = layer.flat_grads.copy()
    layer.zero_grad()
    (_, (h, _)), pullback = layer.vjp(x, lengths=[4, 0, 9, 1], outputs="last")
    pullback(np.ones_like(h[0]))
    assert_close(flat, layer.flat_grads.astype(np.float64), "grads", LOOSE)


def test_dropout_between_layers() -> None:
    layer = layer_of(3, 6, 2, dropout=0.5, dtype=np.float64)
    x = normal((5, 2, 3), np.float64)
    (y, _), _ = layer.vjp(x, rng=7)
    key = int(np.random.default_rng(7).integers(0, 2**64, dtype=np.uint64))
    mask = reference.dropout_mask(key, 0.5, 0, 0, (5, 2, 6))
    for k in range(2):
        x = reference.forward(CELL, x, weights_of(layer, f"_l{k}")).y * (mask if k == 0 else 1)
    assert_close(y, x, scale=LOOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_cells_gates_and_flow(bias: bool, kernel_set: str) -> None:
    layer = layer_of(3, 9, bias=bias)
    x = normal((6, 2, 3))
    (y, (_, c)), pullback = layer.vjp(x)
    assert pullback.cells.shape == (1, 6, 2, 9)
    assert np.array_equal(pullback.cells[0, -1], c[0])
    assert {n: g.shape for n, g in pullback.gates.items()} == dict.fromkeys("ifgo", (1, 6, 2, 9))
    if not bias:
        assert not any(n.startswith("bias_ih") for n in layer.parameters())
        return
    run = reference.forward(CELL, x.astype(np.float64), weights_of(layer, "_l0"))
    want = reference.backward(run, np.ones(y.shape))
    flow = diagnostics.gradient_flow(layer, x).layers[0]
    np.testing.assert_allclose(flow.dh, np.sqrt(want.flow[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(flow.dc, np.sqrt(want.flow[:, 1]), rtol=1e-4)


def test_looked_up_embeddings_are_normed_once_a_row(kernel_set: str) -> None:
    """What is kept of W x lies with the table, not with every step."""
    table = ost.nn.Embedding(5, 6, rng=1)
    model = ost.nn.Sequential(table, layer_of(6, 20, 2, bidirectional=True))
    ids = np.random.default_rng(0).integers(0, 5, (40, 7))
    (y, _), pullback = model.vjp(ids)
    (z, _), apart = model.layers[1].vjp(table(ids))
    assert np.array_equal(y, z)
    dy = normal(y.shape)
    model.zero_grad()
    pullback(dy)
    got = model.layers[1].flat_grads.copy()
    model.zero_grad()
    apart(dy)
    assert_close(got, model.layers[1].flat_grads.astype(np.float64), "grads", LOOSE)
    w = cast(random_weights(CELL, 6, 20, np.random.default_rng(0)), np.float32)
    native, rows = ost.functional.pack("lstm", *w[:4], layer_norm=w[4:]).native, normal((5, 6))
    looked_up = native.forward(ids[..., None], None, None, train=True, table=rows)[3]
    direct = native.forward(rows[ids], None, None, train=True)[3]
    assert all(np.array_equal(looked_up.saved(k), direct.saved(k)) for k in range(4))
    assert looked_up.bytes < direct.bytes


def test_weights_have_names_shapes_and_values() -> None:
    layer = ost.nn.LSTM(3, 5, 2, bidirectional=True, layer_norm=True, rng=0)
    assert repr(layer) == "LSTM(3, 5, num_layers=2, bidirectional=True, layer_norm=True)"
    p = layer.parameters()
    assert list(p)[:8] == [
        f"{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *NORMS)
    ]
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        assert [p[n + end].shape for n in NORMS] == [(20,), (20,), (5,), (5,)]
        assert [float(p[n + end].min()) for n in NORMS] == [1, 1, 1, 0]
    # What is drawn for the others is what a layer without them draws.
    plain = ost.nn.LSTM(3, 5, 2, bidirectional=True, rng=0).parameters()
    assert all(np.array_equal(p[n], plain[n]) for n in plain)
    layer = layer_of(3, 8)
    before = layer.state_dict()
    layer.initialize("glorot", "orthogonal", "zeros", forget_bias=1.0)
    after = layer.parameters()
    assert all(np.array_equal(before[f"{n}_l0"], after[f"{n}_l0"]) for n in NORMS)
    assert after["bias_ih_l0"][8:16].tolist() == [1.0] * 8


def test_it_is_saved_pickled_and_copied(tmp_path: Path) -> None:
    layer = layer_of(3, 9, 2)
    x = normal((4, 2, 3))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.layer_norm
        assert np.array_equal(other(x)[0], layer(x)[0])
    other = ost.nn.LSTM(3, 9, 2, layer_norm=True, rng=5)
    other.load_state_dict(layer.state_dict())
    assert np.array_equal(other(x)[0], layer(x)[0])
    layer.save(tmp_path / "norm.npz")
    third = ost.nn.LSTM(3, 9, 2, layer_norm=True, rng=6)
    third.load(tmp_path / "norm.npz")
    assert np.array_equal(third(x)[0], layer(x)[0])
    with pytest.raises((KeyError, ValueError), match="weight_ln_ih_l0"):
        ost.nn.LSTM(3, 9, 2, rng=0).load_state_dict(layer.state_dict())


def test_it_is_quantized() -> None:
    layer = layer_of(16, 24)
    x = normal((30, 4, 16))
    exact, _ = layer(x)
    layer.precision = "int8"
    assert float(np.linalg.norm(layer(x)[0] - exact) / np.linalg.norm(exact)) < 0.05
    with layer.write() as p:
        p["weight_hh_l0"][1, 3] = np.inf
    with pytest.raises(
        ValueError, match="weight_hh_l0: expected finite weights for int8, got inf in row 1"
    ):
        layer(x)


def test_it_learns() -> None:
    """One batch by heart: gains and shifts move with the rest."""
    model = ost.nn.Sequential(
        ost.nn.LSTM(2, 16, layer_norm=True, rng=0), ost.nn.Linear(16, 1, rng=0)
    )
    x = normal((8, 16, 2))
    want = np.cumsum(x.prod(-1, keepdims=True), 0)
    optimizer, losses = ost.optim.Adam(0.02), []
    for _ in range(100):
        (y, _), pullback = model.vjp(x)
        model.zero_grad()
        pullback(2 * (y - want) / y.size)
        optimizer.step(model)
        losses.append(float(((y - want) ** 2).mean()))
    assert losses[-1] < 0.2 * losses[0]
    p = model.layers[0].parameters()
    assert all(np.abs(p[f"{n}_l0"] - n.startswith("weight")).max() > 0.01 for n in NORMS)


def test_explain_tells_what_a_gpu_lacks() -> None:
    e = ost.explain(layer_of(8, 32), (10, 2, 8), training=True)
    assert e.facts["flops"] == 3 * 2 * 4 * 32 * (8 + 32) * 10 * 2
    assert e.facts["drivers"]["cpu"] == ""
    assert "by stream (" in str(e)
    assert "it lacks layer norm within a step" in str(e)
    assert "by step (" not in str(e)
    assert (
        e.facts["tape_bytes"] == 10 * 2 * 13 * 32 * 4
    )  # i f g o, c, and the deviations of W x and R h
    drivers = _core.drivers()[CELL]
    assert drivers["plain"] == drivers["cpu"] == drivers["step"] == ""
    others = ("stream", "loop", "persistent", "cluster")
    assert {drivers[n] for n in others} == {"layer norm within a step"}


def test_the_tape_is_counted() -> None:
    """explain's bytes are those that a pass keeps, and a bound on memory reckons with them."""
    layer = layer_of(8, 32)
    native = layer._packed(True).forward(normal((10, 2, 8)), None, None, None, train=True)[3]
    assert native.bytes == 10 * 2 * 13 * 32 * 4
    assert ost.explain(layer, (10, 2, 8), training=True).facts["tape_bytes"] == native.bytes


def test_errors_name_the_argument() -> None:
    f, x = ost.functional, np.zeros((3, 2, 5))
    w_ih, w_hh = np.zeros((16, 5)), np.zeros((16, 4))
    norms = [np.ones(16), np.ones(16), np.ones(4), np.zeros(4)]
    with pytest.raises(ValueError, match=r"weight_ln_hh: expected shape .*16.*, got \(15,\)"):
        f.lstm(x, w_ih, w_hh, layer_norm=[norms[0], np.ones(15), *norms[2:]])
    with pytest.raises(
        TypeError, match=r"layer_norm: expected the arrays weight_ln_ih, .*, got 3 of them"
    ):
        f.lstm(x, w_ih, w_hh, layer_norm=norms[:3])
    with pytest.raises(
        TypeError, match=r"layer_norm: expected the arrays weight_ln_ih, .*, got bool"
    ):
        f.lstm(x, w_ih, w_hh, layer_norm=True)
    with pytest.raises(TypeError, match="weight_ln_c: expected"):
        f.lstm(x, w_ih, w_hh, layer_norm=[norms[0], norms[1], None, norms[3]])
    with pytest.raises(ValueError, match="weight_peephole: expected None beside layer_norm"):
        f.lstm(x, w_ih, w_hh, layer_norm=norms, weight_peephole=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="weight_hr: expected None beside layer_norm"):
        f.lstm(x, w_ih, np.zeros((16, 2)), layer_norm=norms, weight_hr=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="layer_norm: expected None for gru, got arrays"):
        f.pack("gru", w_ih, w_hh, layer_norm=norms)
    with pytest.raises(ValueError, match="peephole: expected False with layer_norm=True, got True"):
        ost.nn.LSTM(5, 4, peephole=True, layer_norm=True)
    with pytest.raises(ValueError, match="proj_size: expected 0 with layer_norm=True, got 2"):
        ost.nn.LSTM(5, 4, proj_size=2, layer_norm=True)


def test_packed_weights_know_their_norms() -> None:
    w = cast(random_weights(CELL, 5, 12, np.random.default_rng(0)), np.float32)
    x = normal((4, 2, 5))
    packed = ost.functional.pack("lstm", *w[:4], layer_norm=w[4:])
    assert np.array_equal(
        ost.functional.lstm(x, packed)[0], ost.functional.lstm(x, *w[:4], layer_norm=w[4:])[0]
    )
    with pytest.raises(
        TypeError, match="weight_ih: expected no further weights beside packed ones"
    ):
        ost.functional.lstm(x, packed, layer_norm=w[4:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_a_cell_in_torch(dtype: Any) -> None:
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: pip install 'ostinato[bench]'"
    )
    layer = layer_of(5, 18, dtype=dtype)
    x, dy = normal((9, 4, 5), dtype), normal((9, 4, 18), dtype, 1)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in layer.state_dict().items()}
    given = torch.tensor(x, requires_grad=True)
    h, c = torch.zeros(4, 18, dtype=given.dtype), torch.zeros(4, 18, dtype=given.dtype)
    ys = []
    for t in range(9):
        a = torch.nn.functional.layer_norm(
            given[t] @ p["weight_ih_l0"].T, (72,), p["weight_ln_ih_l0"]
        )
        b = torch.nn.functional.layer_norm(h @ p["weight_hh_l0"].T, (72,), p["weight_ln_hh_l0"])
        i, f, g, o = (a + b + p["bias_ih_l0"] + p["bias_hh_l0"]).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(
            torch.nn.functional.layer_norm(c, (18,), p["weight_ln_c_l0"], p["bias_ln_c_l0"])
        )
        ys.append(h)
    y = torch.stack(ys)
    y.backward(torch.tensor(dy))
    layer.zero_grad()
    (got, _), pullback = layer.vjp(x)
    dx, _ = pullback(dy)
    assert_close(got, y.detach().numpy(), "y", 10)
    assert_close(dx, given.grad.numpy(), "dx", 10 * LOOSE)
    for name, value in p.items():
        assert_close(layer.grads[name], value.grad.numpy(), name, 10 * LOOSE)
