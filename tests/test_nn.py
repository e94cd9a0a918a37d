"""Layers: faces, parameters, pullbacks, state dicts, copies, Sequential."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import CELLS, assert_close, numeric_gradient, recurrent
from ostinato import _core, nn, reference

RECURRENT = [pytest.param(partial(recurrent, cell, 3, 4), id=cell) for cell in CELLS]


def normal(*shape: int, dtype: Any = np.float64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def states_of(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("make", RECURRENT)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bidirectional": True},
        {"num_layers": 2, "batch_first": True},
        {"bias": False},
    ],
    ids=str,
)
def test_gradients_of_a_stack_against_finite_differences(make: Any, options: Any) -> None:
    layer = make(dtype=np.float64, rng=0, **options)
    batch_first = options.get("batch_first", False)
    x = normal(2, 4, 3) if batch_first else normal(4, 2, 3)
    lengths = [4, 2]
    y, state = layer(x, lengths=lengths)
    state0 = tuple(normal(*s.shape, seed=k + 1) for k, s in enumerate(states_of(state)))
    dy, dstate = (
        normal(*y.shape, seed=5),
        tuple(normal(*s.shape, seed=k + 6) for k, s in enumerate(state0)),
    )

    def one(s: Any) -> Any:
        return s if isinstance(layer, nn.LSTM) else s[0]

    def loss() -> float:
        y, new = layer(x, one(state0), lengths=lengths)
        return float((y * dy).sum() + sum((a * b).sum() for a, b in zip(states_of(new), dstate)))

    (y, _), pullback = layer.vjp(x, one(state0), lengths=lengths)
    dx, dstate0 = pullback(dy, one(dstate))
    np.testing.assert_allclose(dx, numeric_gradient(loss, x), rtol=1e-6, atol=1e-8)
    for got, s in zip(states_of(dstate0), state0):
        np.testing.assert_allclose(got, numeric_gradient(loss, s), rtol=1e-6, atol=1e-8)
    for name in layer.parameters():

        def loss_of_parameter() -> float:
            with layer.write():  # raise the version: the weights are packed anew
                pass
            return loss()

        with layer.write() as p:
            numeric = numeric_gradient(loss_of_parameter, p[name])
        np.testing.assert_allclose(layer.grads[name], numeric, rtol=1e-6, atol=1e-8, err_msg=name)


def test_faces() -> None:
    common = [
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ]
    faces = {
        nn.RNN: [
            *common[:3],
            "nonlinearity",
            *common[3:],
            "clip",
            "precision",
            "learned_state",
            "dtype",
            "rng",
        ],
        nn.LSTM: [
            *common,
            "activation",
            "recurrent_activation",
            "output_activation",
            "clip",
            "coupled_gates",
            "peephole",
            "proj_size",
            "layer_norm",
            "precision",
            "learned_state",
            "dtype",
            "rng",
        ],
        nn.GRU: [
            *common,
            "reset_after",
            "activation",
            "recurrent_activation",
            "clip",
            "precision",
            "learned_state",
            "dtype",
            "rng",
        ],
    }
    for cls, names in faces.items():
        assert [*inspect.signature(cls).parameters] == names
    rnn = nn.RNN(
        3, 4, 2, "relu", False, True, 0.1, True, dtype=np.float64, rng=np.random.default_rng(0)
    )
    y, h = rnn(np.zeros((5, 7, 3)))
    assert (y.shape, h.shape, y.dtype) == ((5, 7, 8), (4, 5, 4), np.float64)


@pytest.mark.parametrize("make", RECURRENT)
def test_unbatched_input(make: Any) -> None:
    for options in ({}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True}):
        layer = make(rng=0, **options)
        x = normal(6, 3, dtype=np.float32)
        batched = x[None] if layer.batch_first else x[:, None]
        (y, state), pullback = layer.vjp(x)
        (want, want_state), want_pullback = layer.vjp(batched)
        assert np.array_equal(y, want[0] if layer.batch_first else want[:, 0])
        assert all(
            np.array_equal(a, b[:, 0]) for a, b in zip(states_of(state), states_of(want_state))
        )
        again, _ = layer(x, state)
        assert np.array_equal(
            again, (layer(batched, want_state)[0])[0 if layer.batch_first else (slice(None), 0)]
        )
        dx, dstate = pullback(np.ones_like(y), state)
        want_dx, want_dstate = want_pullback(np.ones_like(want), want_state)
        assert np.array_equal(dx, want_dx[0] if layer.batch_first else want_dx[:, 0])
        assert all(
            np.array_equal(a, b[:, 0]) for a, b in zip(states_of(dstate), states_of(want_dstate))
        )
        assert layer(x, lengths=4)[0].shape == y.shape


@pytest.mark.parametrize("make", RECURRENT)
def test_batch_first_is_a_transposition(make: Any) -> None:
    a, b = make(rng=0, bidirectional=True), make(rng=0, bidirectional=True, batch_first=True)
    x = normal(5, 3, 3, dtype=np.float32)
    ya, sa = a(x, lengths=[5, 1, 0])
    yb, sb = b(x.swapaxes(0, 1), lengths=[5, 1, 0])
    assert np.array_equal(ya, yb.swapaxes(0, 1))
    assert yb.flags.c_contiguous
    assert all(np.array_equal(s, t) for s, t in zip(states_of(sa), states_of(sb)))


@pytest.mark.parametrize("make", RECURRENT)
def test_lengths_equal_running_each_row_alone(make: Any) -> None:
    layer, x, lengths = (
        make(rng=0, num_layers=2, bidirectional=True),
        normal(6, 4, 3, dtype=np.float32),
        [3, 6, 0, 1],
    )
    y, state = layer(x, lengths=lengths)
    for b, n in enumerate(lengths):
        alone, own = layer(x[:n, b : b + 1])
        assert np.array_equal(y[:n, b : b + 1], alone)
        assert (y[n:, b] == 0).all()
        assert all(
            np.array_equal(s[:, b : b + 1], t) for s, t in zip(states_of(state), states_of(own))
        )


def test_initial_values() -> None:
    lstm = nn.LSTM(8, 16, rng=3)
    assert lstm.flat.max() <= 0.25
    assert np.array_equal(lstm.flat, nn.LSTM(8, 16, rng=3).flat)
    assert not np.array_equal(lstm.flat, nn.LSTM(8, 16, rng=4).flat)
    lstm.initialize("glorot", "orthogonal", "zeros", forget_bias=1.0, rng=0)
    p = lstm.parameters()
    for block in np.split(p["weight_hh_l0"], 4):
        assert np.allclose(block @ block.T, np.eye(16), atol=1e-6)
    assert abs(p["weight_ih_l0"]).max() <= np.sqrt(6 / 24)
    assert p["bias_ih_l0"].tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
    assert (p["bias_hh_l0"] == 0).all()
    irnn = nn.RNN(3, 5, nonlinearity="relu").initialize(recurrent="identity", bias="zeros")
    assert np.array_equal(irnn.parameters()["weight_hh_l0"], np.eye(5))
    chrono = nn.LSTM(3, 50).initialize(bias="zeros", chrono=100, rng=0).parameters()["bias_ih_l0"]
    assert np.allclose(chrono[:50], -chrono[50:100])
    assert 0 <= chrono[50:100].min() <= chrono[50:100].max() <= np.log(99)
    with pytest.raises(ValueError, match="longest: expected at least 2 steps, got 1"):
        nn.init.chrono(3, 1, np.random.default_rng(0))
    assert nn.GRU(3, 5).initialize(chrono=10).parameters()["bias_ih_l0"][5:10].min() >= 0
    with pytest.raises(ValueError, match="expected a layer with biases"):
        nn.LSTM(3, 5, bias=False).initialize(forget_bias=1.0)


def test_a_pullback_serves_once_and_only_with_the_same_parameters() -> None:
    layer, x = nn.LSTM(3, 4, rng=0), normal(5, 2, 3, dtype=np.float32)
    (y, _), pullback = layer.vjp(x)
    pullback(np.ones_like(y))
    with pytest.raises(RuntimeError, match="it has been used"):
        pullback(np.ones_like(y))
    (y, _), pullback = layer.vjp(x)
    with layer.write() as p:
        p["bias_ih_l0"][...] += 1
    with pytest.raises(RuntimeError, match="the parameters have changed"):
        pullback(np.ones_like(y))


def test_gradients_accumulate_and_can_go_elsewhere() -> None:
    layer, x = nn.GRU(3, 4, rng=0), normal(5, 2, 3, dtype=np.float32)
    for _ in range(2):
        (y, _), pullback = layer.vjp(x)
        pullback(np.ones_like(y))
    twice = layer.flat_grads.copy()
    layer.zero_grad()
    (y, _), pullback = layer.vjp(x)
    pullback(np.ones_like(y))
    once = layer.flat_grads.copy()
    assert np.array_equal(twice, once + once)
    apart = layer.new_grads()
    (y, _), pullback = layer.vjp(x)
    assert pullback(np.ones_like(y), grads=apart, need_dx=False)[0] is None
    assert np.array_equal(apart.flat, once)
    assert np.array_equal(layer.flat_grads, once)
    (y, _), pullback = layer.vjp(x)
    assert pullback()[0].any() == np.False_  # no gradient comes in, none goes out


def test_dropout_between_layers_uses_the_mask_of_the_reference() -> None:
    layer = nn.LSTM(3, 6, num_layers=2, bidirectional=True, dropout=0.4, dtype=np.float64, rng=0)
    x, rng = normal(4, 2, 3), np.random.default_rng(11)
    key = int(np.random.default_rng(11).integers(0, 2**64, dtype=np.uint64))
    (y, _), pullback = layer.vjp(x, rng=rng)
    w = layer.parameters()

    def run(k: int, end: str, inputs: Any) -> Any:
        weights = reference.Weights(
            *(
                np.array(w[f"{n}_l{k}{end}"])
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
        )
        return reference.forward("lstm", inputs, weights, reverse=bool(end))

    lower = [run(0, end, x) for end in ("", "_reverse")]
    masks = [reference.dropout_mask(key, 0.4, 0, d, (4, 2, 6)) for d in (0, 1)]
    between = np.concatenate([r.y * m for r, m in zip(lower, masks)], axis=2)
    upper = [run(1, end, between) for end in ("", "_reverse")]
    assert_close(y, np.concatenate([r.y for r in upper], axis=2), "y")
    dy = normal(4, 2, 12, seed=3)
    dx, _ = pullback(dy)
    dbetween = sum(reference.backward(r, d).x for r, d in zip(upper, np.split(dy, 2, axis=2)))
    want = sum(
        reference.backward(r, d * m).x
        for r, d, m in zip(lower, np.split(dbetween, 2, axis=2), masks)
    )
    assert_close(dx, want, "dx", 10)
    assert np.array_equal(layer(x)[0], layer(x)[0])
    assert not np.array_equal(layer(x)[0], y)


def test_philox_is_that_of_the_reference() -> None:
    for key, ld, t, b, u in [
        (0, 0, 0, 0, 0),
        (2**63 + 12345, 3, 1000, 77, 513),
        (2**64 - 1, 1, 7, 0, 2),
    ]:
        assert (
            _core.philox_word(key, ld, t, b, u) == reference.philox(key, (u // 4, b, t, ld))[u % 4]
        )


def test_state_dict_and_files(tmp_path: Any) -> None:
    a, b = (
        nn.LSTM(3, 4, 2, bidirectional=True, peephole=True, rng=0),
        nn.LSTM(3, 4, 2, bidirectional=True, peephole=True, rng=1),
    )
    d = a.state_dict()
    assert d["weight_ih_l1_reverse"].shape == (16, 8)
    assert d["weight_peephole_l0"].shape == (3, 4)
    b.load_state_dict(d)
    assert np.array_equal(a.flat, b.flat)
    before = b.flat.copy()
    with pytest.raises(KeyError, match=r"missing \['bias_hh_l1'\], unknown \['bias'\]"):
        b.load_state_dict({("bias" if k == "bias_hh_l1" else k): v * 0 for k, v in d.items()})
    with pytest.raises(ValueError, match="bias_hh_l1"):
        b.load_state_dict({k: (v * 0 if k != "bias_hh_l1" else v[:3]) for k, v in d.items()})
    assert np.array_equal(b.flat, before)  # all or nothing
    a.save(tmp_path / "a.safetensors")
    c = nn.LSTM(3, 4, 2, bidirectional=True, peephole=True, rng=2)
    c.load(tmp_path / "a.safetensors")
    assert np.array_equal(a.flat, c.flat)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_buffers_are_contiguous_and_aligned(dtype: Any) -> None:
    model = nn.Sequential(
        nn.Embedding(5, 3, dtype=dtype), nn.LSTM(3, 7, dtype=dtype), nn.Linear(7, 5, dtype=dtype)
    )
    for flat, views in ((model.flat, model.parameters()), (model.flat_grads, model.grads)):
        for view in views.values():
            offset = view.ctypes.data - flat.ctypes.data
            assert offset % 64 == 0
            assert 0 <= offset < flat.nbytes
    assert model.flat.ctypes.data % 64 == 0
    assert model[1].flat.base is not None
    assert model[1].flat.size < model.flat.size
    assert model.count_parameters() == 5 * 3 + 4 * 7 * (3 + 7 + 2) + 7 * 5 + 5


def test_freezing_and_decay_groups() -> None:
    model = nn.Sequential(nn.Embedding(6, 3, rng=0), nn.GRU(3, 4, rng=0), nn.Linear(4, 6, rng=0))
    model.freeze("1.weight_hh*")
    model[2].freeze("bias")
    before = model.state_dict()
    for optimizer in (
        ost.optim.SGD(0.1, momentum=0.9, weight_decay=0.1),
        ost.optim.AdamW(0.1, weight_decay=0.5),
    ):
        (y, _), pullback = model.vjp(np.array([[1, 2], [3, 4]]))
        pullback(np.ones_like(y))
        optimizer.step(model)
    moved = {n for n, v in model.parameters().items() if not np.array_equal(v, before[n])}
    assert moved == {"0.weight", "1.weight_ih_l0", "1.bias_ih_l0", "1.bias_hh_l0", "2.weight"}
    assert (model.grads["1.weight_hh_l0"] == 0).all()
    assert model.count_parameters(trainable_only=True) == model.count_parameters() - 48 - 6
    model.unfreeze()
    assert model.count_parameters(trainable_only=True) == model.count_parameters()
    # Without gradients AdamW moves only what decays: matrices, not vectors nor the embedding.
    model.zero_grad()
    before = model.state_dict()
    model.set_decay("2.*", False)
    ost.optim.AdamW(0.1, weight_decay=0.5).step(model)
    changed = {
        n: v / before[n] for n, v in model.parameters().items() if not np.array_equal(v, before[n])
    }
    assert set(changed) == {"1.weight_ih_l0", "1.weight_hh_l0"}
    assert np.allclose(changed["1.weight_ih_l0"], 0.95)


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(make: Any) -> None:
    model = nn.Sequential(
        nn.Embedding(6, 3, rng=0),
        nn.Sequential(nn.GRU(3, 4, num_layers=2, dropout=0.5, rng=0)),
        nn.Linear(4, 6, rng=0),
    )
    model.freeze("0.*")
    x = np.array([[1, 2], [3, 4]])
    y, _ = model(x)
    twin = make(model)
    assert np.array_equal(twin(x)[0], y)
    assert np.array_equal(twin.vjp(x)[0][0], model.vjp(x)[0][0])  # the state of rng too
    with twin.write() as p:
        p["2.bias"][...] += 1
    assert np.array_equal(model(x)[0], y)
    assert np.allclose(twin(x)[0], y + 1)
    assert np.array_equal(twin[2](np.zeros((1, 4), np.float32))[0], twin.parameters()["2.bias"])
    assert twin.count_parameters(trainable_only=True) < twin.count_parameters()


def test_a_layer_copied_out_of_its_model_is_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Sequential(nn.GRU(3, 4, rng=0)))
    inner = copy.deepcopy(model[1])
    assert list(inner.parameters()) == [
        f"0.{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    x = normal(5, 2, 3, dtype=np.float32)
    assert np.array_equal(inner(x)[0], model[1](x)[0])
    with inner.write() as p:
        p["0.bias_ih_l0"][...] = 5
    assert not np.array_equal(inner(x)[0], model[1](x)[0])
    nn.Sequential(inner)  # it can be owned again
    with pytest.raises(ValueError, match="a model owns already"):
        nn.Sequential(model[0])
    twice = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="a model owns already"):
        nn.Sequential(twice, twice)


def test_a_child_sees_the_parameters_of_its_model() -> None:
    linear = nn.Linear(2, 3, rng=0)
    model = nn.Sequential(linear, nn.Activation("tanh"))
    x = normal(4, 2, dtype=np.float32)
    y = linear(x)
    with model.write() as p:
        p["0.weight"][...] *= 2
        p["0.bias"][...] *= 2
    assert np.allclose(linear(x), 2 * y)
    assert linear.version == model.version


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_against_numpy(dtype: Any, kernel_set: str, threads: None) -> None:
    for n, inputs, outputs in [(1, 1, 1), (7, 3, 5), (300, 65, 33), (2, 17, 130)]:
        layer, x, dy = (
            nn.Linear(inputs, outputs, dtype=dtype, rng=0),
            normal(n, inputs, dtype=dtype),
            normal(n, outputs, dtype=dtype, seed=1),
        )
        w = layer.state_dict()
        results = []
        for count in (1, 3):
            ost.set_num_threads(count)
            layer.zero_grad()
            y, pullback = layer.vjp(x)
            dx = pullback(dy)
            results.append([y, dx, layer.flat_grads.copy()])
            assert_close(
                y, x.astype(np.float64) @ w["weight"].T.astype(np.float64) + w["bias"], "y"
            )
            assert_close(dx, dy.astype(np.float64) @ w["weight"].astype(np.float64), "dx")
            assert_close(
                layer.grads["weight"], dy.T.astype(np.float64) @ x.astype(np.float64), "dweight", 4
            )
            assert_close(layer.grads["bias"], dy.astype(np.float64).sum(0), "dbias", 4)
        assert all(np.array_equal(a, b) for a, b in zip(*results))
        assert np.array_equal(layer(x), results[0][0])


def test_stateless_layers_against_finite_differences() -> None:
    x, dy = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    for name in ("tanh", "sigmoid", "relu"):
        layer = nn.Activation(name, dtype=np.float64)
        _, pullback = layer.vjp(x)
        numeric = numeric_gradient(lambda: float((layer(x) * dy).sum()), x)  # noqa: B023  # used at once
        np.testing.assert_allclose(pullback(dy), numeric, rtol=1e-5, atol=1e-7)
    drop = nn.Dropout(0.25, dtype=np.float64, rng=0)
    big = np.ones((100, 100))
    y, pullback = drop.vjp(big)
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert np.array_equal(pullback(big), y)
    assert drop(big) is big
    embedding = nn.Embedding(5, 4, dtype=np.float64, rng=0)
    ids = np.array([[1, 1], [4, 0], [1, 2]])
    y, pullback = embedding.vjp(ids)
    assert pullback(dy) is None
    want = np.zeros((5, 4))
    np.add.at(want, ids, dy)
    np.testing.assert_allclose(embedding.grads["weight"], want)


def test_sequential_carries_its_state() -> None:
    model = nn.Sequential(
        nn.Embedding(9, 4, rng=0),
        nn.LSTM(4, 5, num_layers=2, rng=0),
        nn.GRU(5, 3, rng=0),
        nn.Linear(3, 9, rng=0),
    )
    ids = np.random.default_rng(0).integers(0, 9, (12, 2))
    whole, end = model(ids)
    first, state = model(ids[:5])
    second, state = model(ids[5:], state)
    assert np.array_equal(np.concatenate([first, second]), whole)
    assert np.array_equal(state[2], end[2])
    assert np.array_equal(state[1][1], end[1][1])


def test_sequential_gradients_against_finite_differences() -> None:
    d = {"dtype": np.float64, "rng": 0}
    model = nn.Sequential(
        nn.Linear(2, 3, **d),
        nn.Activation("tanh", dtype=np.float64),
        nn.LSTM(3, 4, bidirectional=True, **d),
        nn.Sequential(nn.Linear(8, 2, **d)),
    )
    x, lengths = normal(4, 3, 2), [4, 0, 2]
    y, state = model(x, lengths=lengths)
    dy, dc = normal(*y.shape, seed=1), normal(*state[2][1].shape, seed=2)
    dy[np.arange(4)[:, None] >= lengths] = 0  # past the end there is no gradient
    state0 = (None, None, (normal(2, 3, 4, seed=3), normal(2, 3, 4, seed=4)), None)

    def loss() -> float:
        with model.write():
            pass
        y, s = model(x, state0, lengths=lengths)
        return float((y * dy).sum() + (s[2][1] * dc).sum())

    (y, _), pullback = model.vjp(x, state0, lengths=lengths)
    dx, dstate = pullback(dy, (None, None, (None, dc), None))
    np.testing.assert_allclose(dx, numeric_gradient(loss, x), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        dstate[2][0], numeric_gradient(loss, state0[2][0]), rtol=1e-6, atol=1e-8
    )
    for name in model.parameters():
        with model.write() as p:
            np.testing.assert_allclose(
                model.grads[name],
                numeric_gradient(loss, p[name]),
                rtol=1e-6,
                atol=1e-8,
                err_msg=name,
            )


def test_packed_weights_follow_parameters_and_kernel_set(kernel_set: str) -> None:
    layer, x = nn.GRU(3, 4, rng=0), normal(5, 2, 3, dtype=np.float32)
    y, _ = layer(x)
    assert layer._cache[1].kernels == kernel_set
    held = layer._cache[1]
    assert layer(x)[0] is not y
    assert layer._cache[1] is held  # packed once
    with layer.write() as p:
        p["weight_hh_l0"][...] = 0
    assert not np.array_equal(layer(x)[0], y)
    assert held.forward(x, None, None, None)[0].tolist() == y.tolist()  # a snapshot


def test_repr() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 5, bidirectional=True), nn.Linear(10, 2))
    assert (
        repr(model)
        == "Sequential(\n  0: Embedding(9, 4)\n  1: LSTM(4, 5, bidirectional=True)\n  2: "
        "Linear(10, 2)\n)"
    )


def test_copying_what_holds_a_layer_and_its_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.GRU(2, 2, rng=0))
    for holder in ([model[1], model], [model, model[1]]):
        child, parent = sorted(copy.deepcopy(holder), key=lambda m: isinstance(m, nn.Sequential))
        assert parent[1] is child
        with parent.write() as p:
            p["1.bias_ih_l0"][...] = 9
        assert (child.parameters()["bias_ih_l0"] == 9).all()
        assert (model[1].parameters()["bias_ih_l0"] != 9).all()
    alone = pickle.loads(pickle.dumps(model[1]))
    assert np.array_equal(nn.Sequential(alone).flat, model[1].flat)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.flat.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="a model owns already"):
            nn.Sequential(twin[0])


STATELESS = [
    (lambda: nn.Linear(4, 2, rng=0), (4, 3, 4)),
    (lambda: nn.Activation("tanh"), (4, 3)),
    (lambda: nn.Dropout(0.5, rng=0), (4, 3)),
]


@pytest.mark.parametrize(("make", "shape"), STATELESS)
def test_stateless_layers_check_dy_and_keep_y(make: Any, shape: Any) -> None:
    layer, x = make(), normal(*shape, dtype=np.float32)
    y, pullback = layer.vjp(x)
    assert not y.flags.writeable
    with pytest.raises(ValueError, match="dy: expected the shape of y"):
        pullback(np.ascontiguousarray(np.swapaxes(np.ones_like(y), 0, 1)))
    assert pullback(np.ones_like(y)).shape == x.shape
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray, got list"):
        layer.vjp(x.tolist())
    empty = x[:0]
    y, pullback = layer.vjp(empty)
    assert pullback(y).shape == empty.shape


def test_padding_may_hold_nan_through_a_whole_model() -> None:
    def gradients(filler: float, batch_first: bool) -> Any:
        gru = nn.GRU(3, 4, batch_first=batch_first, rng=0)
        model = nn.Sequential(
            nn.Linear(2, 3, rng=0), nn.Activation("tanh"), gru, nn.Linear(4, 2, rng=0)
        )
        x, lengths = normal(6, 2, 2, dtype=np.float32), np.array([6, 3])
        on = np.arange(6)[:, None, None] < lengths[:, None]
        x, dy = (np.where(on, v, np.float32(filler)) for v in (x, np.ones_like(x)))
        if batch_first:
            x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
        (_, _), pullback = model.vjp(x, lengths=lengths)
        pullback(dy, need_dx=False)
        return model.flat_grads.copy()

    for batch_first in (False, True):
        assert np.array_equal(gradients(0.0, batch_first), gradients(np.nan, batch_first))
    model = nn.Sequential(nn.Embedding(5, 3), nn.GRU(3, 2))
    assert model(np.array([[1, 2], [3, -1]]), lengths=[2, 1])[0].shape == (2, 2, 2)


def test_a_refused_gradient_of_a_model_adds_nothing() -> None:
    model, x = (
        nn.Sequential(nn.GRU(2, 3, rng=0), nn.Linear(3, 2, rng=0)),
        normal(5, 2, 2, dtype=np.float32),
    )
    (y, _), pullback = model.vjp(x)
    for dy, dstate in (
        (np.ones_like(y), (np.zeros((1, 2, 9), np.float32), None)),
        (np.ones((5, 2, 9), np.float32), None),
    ):
        with pytest.raises(ValueError, match="expected shape"):
            pullback(dy, dstate)
    with pytest.raises(TypeError, match="grads: expected what new_grads"):
        pullback(np.ones_like(y), grads={})
    assert (model.flat_grads == 0).all()
    pullback(np.ones_like(y))
    assert (model.flat_grads != 0).any()


def test_a_pullback_from_before_the_adoption_is_refused() -> None:
    layer, x = nn.RNN(2, 2, rng=0), normal(3, 1, 2, dtype=np.float32)
    with layer.write():
        pass
    (y, _), pullback = layer.vjp(x)
    model = nn.Sequential(layer)
    with model.write() as p:
        p["0.weight_hh_l0"][...] = 0
    with pytest.raises(RuntimeError, match="the parameters have changed"):
        pullback(np.ones_like(y))


def test_the_state_given_to_vjp_may_be_used_again() -> None:
    layer, x = nn.LSTM(2, 3, rng=0), normal(4, 2, 2, dtype=np.float32)
    results = []
    for change in (False, True):
        h, c = normal(1, 2, 3, dtype=np.float32, seed=1), normal(1, 2, 3, dtype=np.float32, seed=2)
        (y, _), pullback = layer.vjp(x, (h, c))
        if change:
            h[...], c[...] = 100, 100
        results.append(pullback(np.ones_like(y))[0])
    assert np.array_equal(*results)


def test_a_layer_of_your_own_in_a_frozen_model() -> None:
    class Scale(nn.Layer):
        def __init__(self, size: int) -> None:
            super().__init__()
            self._declare({"scale": np.full(size, 2, np.float32)})

        def __call__(self, x: Any) -> Any:
            return x * self.parameters()["scale"]

        def vjp(self, x: Any, *, rng: Any = None) -> Any:
            def backward(grads: Any, dy: Any, need_dx: bool) -> Any:
                if grads["scale"] is not None:
                    grads["scale"][...] += (dy * x).sum((0, 1))
                return dy * self.parameters()["scale"]

            return self(x), self._pullback(backward)

    model = nn.Sequential(Scale(3), nn.GRU(3, 2, rng=0), nn.Dropout(0.1))
    for frozen in (False, True):
        (y, _), pullback = model.vjp(normal(4, 2, 3, dtype=np.float32))
        model.zero_grad()
        pullback(np.ones_like(y))
        assert (model.grads["0.scale"] == 0).all() == frozen
        for layer in model.layers:
            layer.freeze()
        assert ost.optim.global_norm(model) == 0


def test_small_refusals() -> None:
    with pytest.warns(UserWarning, match=r"dropout: it acts between layers"):
        nn.GRU(2, 2, dropout=0.5)
    with pytest.raises(ValueError, match="bias: expected values within the range of float32"):
        nn.Linear(1, 1).load_state_dict({"weight": np.zeros((1, 1)), "bias": np.array([1e300])})
    with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\)"):
        nn.GRU(2, 2)(np.zeros((3, 2), np.float32), lengths=[1, 2])
    before = ost.functional.pack("gru", np.zeros((3, 1)), np.zeros((3, 1)), reset_after=False)
    x = np.zeros((2, 1, 1))
    ost.functional.gru(x, before)
    for options in ({"reverse": True}, {"reset_after": False}):
        with pytest.raises(ValueError, match="packed with the same options"):
            ost.functional.gru(
                x, ost.functional.pack("gru", np.zeros((3, 1)), np.zeros((3, 1))), **options
            )


MASKED_CALLS: dict[str, Any] = {
    "LSTM": lambda a: ost.nn.LSTM(3, 4, rng=0)(a),
    "a pullback": lambda a: ost.nn.LSTM(3, 3, rng=0).vjp(np.asarray(a.data))[1](a),
    "a state": lambda a: ost.nn.GRU(2, 3, rng=0)(np.ones((1, 2, 2), np.float32), a[:1]),
    "Linear": lambda a: ost.nn.Linear(3, 4, rng=0)(a),
    "Conv1d": lambda a: ost.nn.Conv1d(3, 4, 1, rng=0)(a),
    "Attention": lambda a: ost.nn.Attention()(a, a),
    "functional": lambda a: ost.functional.lstm(a, *ost.nn.LSTM(3, 4, rng=0).parameters().values()),
    "a loss": lambda a: ost.losses.MSE()(a, np.zeros(a.shape, np.float32)),
    "a target": lambda a: ost.losses.MSE()(np.zeros(a.shape, np.float32), a),
    "steps of a loss": lambda a: ost.losses.MSE()(np.asarray(a), np.asarray(a), a[..., 0] > 0),
    "labels of CTC": lambda a: ost.losses.CTC()(np.zeros((5, 1, 3)), [a[0, 0, :2].astype(int)]),
    "a stream": lambda a: ost.nn.GRU(3, 4, rng=0).stream(2).step(a[0]),
    "a stream in Python": lambda a: ost.nn.LayerNorm(3).stream(2).step(a[0]),
    "parameters": lambda a: ost.nn.Embedding(2, 3).load_state_dict({"weight": a[0]}),
    "a recorded gradient": lambda a: ost.vjp(lambda x: x * x, np.asarray(a))[1](a),
}


@pytest.mark.parametrize("call", MASKED_CALLS.values(), ids=MASKED_CALLS)
def test_masked_elements_are_not_read_as_numbers(call: Any) -> None:
    values = np.ones((2, 2, 3), np.float32)
    call(np.ma.masked_array(values))  # nothing is masked: an array like any other
    with pytest.raises(ValueError, match=": expected an array without masked elements, got some"):
        call(np.ma.masked_array(values, values > 0))


def test_masked_lengths_are_refused() -> None:
    x, lengths = np.ones((2, 2, 3), np.float32), np.ma.masked_array([2, 1], [False, True])
    with pytest.raises(ValueError, match="lengths: expected an array without masked elements"):
        ost.nn.LSTM(3, 4, rng=0)(x, lengths=lengths)
