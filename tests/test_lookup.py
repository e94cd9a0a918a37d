"""An embedding that the recurrent layer behind it looks up itself, against the two layers one by
one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import CELLS, numeric_gradient, recurrent
from ostinato.nn import Embedding, Sequential

V, E, H = 9, 6, 20


def model_of(cell: str, **options: Any) -> Sequential:
    dtype = options.get("dtype", np.float32)
    return Sequential(Embedding(V, E, dtype=dtype, rng=1), recurrent(cell, E, H, rng=2, **options))


def rows_of(y: Any) -> Any:
    return y.rows if isinstance(y, ost.Ragged) else y


def gradient(shape: tuple[int, ...], dtype: Any) -> Any:
    return np.sin(np.arange(np.prod(shape))).reshape(shape).astype(dtype)


def together(model: Sequential, x: Any, **options: Any) -> tuple[Any, Any]:
    (y, _), pullback = model.vjp(x, **options)
    model.zero_grad()
    pullback(gradient(rows_of(y).shape, model.dtype))
    return rows_of(y), model.flat_grads.copy()


def one_by_one(model: Sequential, x: Any, **options: Any) -> tuple[Any, Any]:
    """The same from the layers themselves, which know nothing of each other."""
    table, layer = model.layers
    ragged = isinstance(x, ost.Ragged)
    e, back_table = table.vjp(x.rows if ragged else x)
    (y, _), back = layer.vjp(x.like(e) if ragged else e, **options)
    model.zero_grad()
    dx, _ = back(gradient(rows_of(y).shape, model.dtype))
    back_table(rows_of(dx))
    return rows_of(y), model.flat_grads.copy()


def compare(model: Sequential, x: Any, tolerance: float, **options: Any) -> None:
    count = rows_of(x).size
    assert ost.nn._lookup.looks_up(*model.layers, count, options.get("memory_limit"))
    y, grads = together(model, x, **options)
    expected, expected_grads = one_by_one(model, x, **options)
    assert np.array_equal(y, expected)
    forward_only = {k: v for k, v in options.items() if k != "memory_limit"}
    assert np.array_equal(rows_of(model(x, **forward_only)[0]), expected)
    scale = abs(expected_grads).max()
    assert scale > 0
    assert abs(grads - expected_grads).max() <= tolerance * scale


TIMES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "all": lambda r: {},
    "lengths": lambda r: {"lengths": r.integers(0, 14, 12)},
    "resets": lambda r: {"resets": r.random((13, 12)) < 0.2},
    "mask": lambda r: {"mask": r.random((13, 12)) < 0.7},
    "states": lambda r: {"memory_limit": "states"},
    "last": lambda r: {"outputs": "last", "lengths": r.integers(1, 14, 12)},
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_have_the_same_bits(cell: str, times: str) -> None:
    r = np.random.default_rng(0)
    x, options = r.integers(0, V, (13, 12)), TIMES[times](r)
    compare(model_of(cell), x, 2e-6, **options)
    compare(model_of(cell, dtype=np.float64), x, 1e-14, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True},
        {"learned_state": True},
        {"batch_first": True},
    ],
    ids=["two-directions", "layers", "layers-of-two-directions", "learned-state", "batch-first"],
)
def test_stacks(options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).integers(0, V, (30, 7))
    compare(model_of("lstm", **options), x, 2e-6)
    compare(model_of("gru", **options), x.astype(np.uint8), 2e-6)


@pytest.mark.parametrize("kernels", ost.kernels()["supported"])
def test_every_kernel_set(kernels: str) -> None:
    chosen = ost.kernels()["chosen"]
    x = np.random.default_rng(0).integers(0, V, (70, 40))
    try:
        ost.use_kernels(kernels)
        for cell in ("lstm", "gru_reset_before", "lstm_layer_norm"):
            compare(model_of(cell), x, 5e-6)
            compare(model_of(cell, precision="bfloat16"), x, 3e-2)  # da is rounded one by one alone
    finally:
        ost.use_kernels(chosen)


def test_sequences_of_different_lengths() -> None:
    r = np.random.default_rng(0)
    x = ost.Ragged(r.integers(0, V, 150), [0, 40, 40, 41, 150])
    compare(model_of("lstm"), x, 2e-6)
    model = model_of("gru", bidirectional=True)
    compare(model, x, 2e-6)
    y, _ = model(list(x))
    assert isinstance(y, list)
    assert [len(a) for a in y] == [40, 0, 1, 109]


def test_one_sequence() -> None:
    x = np.random.default_rng(0).integers(0, V, 80)
    compare(model_of("lstm"), x, 2e-6)
    compare(model_of("lstm", batch_first=True), x, 2e-6)


def test_bits_do_not_depend_on_threads() -> None:
    model, x = (
        model_of("lstm", bidirectional=True),
        np.random.default_rng(0).integers(0, V, (90, 40)),
    )
    before = ost.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            ost.set_num_threads(threads)
            results.append(together(model, x))
    finally:
        ost.set_num_threads(before)
    for y, grads in results[1:]:
        assert np.array_equal(y, results[0][0])
        assert np.array_equal(grads, results[0][1])


def test_gradients_against_finite_differences() -> None:
    d: dict[str, Any] = {"dtype": np.float64, "rng": 0}
    model = Sequential(Embedding(3, 2, **d), ost.nn.LSTM(2, 3, **d))
    x = np.random.default_rng(0).integers(0, 3, (4, 6))
    assert ost.nn._lookup.looks_up(*model.layers, x.size, None)
    (y, _), pullback = model.vjp(x)
    dy = gradient(y.shape, np.float64)
    pullback(dy)

    def loss() -> float:
        with model.write():
            pass
        return float((model(x)[0] * dy).sum())

    for name in model.parameters():
        with model.write() as p:
            expected = numeric_gradient(loss, p[name])
        np.testing.assert_allclose(model.grads[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_frozen_parameters_get_no_gradient() -> None:
    x = np.random.default_rng(0).integers(0, V, (30, 7))
    for frozen in ("0.weight", "1.weight_ih_l0", "1.*"):
        model, free = model_of("lstm"), model_of("lstm")
        model.freeze(frozen)
        together(model, x)
        together(free, x)
        for name, g in model.grads.items():
            stays = name == frozen or (frozen == "1.*" and name.startswith("1."))
            assert np.array_equal(g, np.zeros_like(g) if stays else free.grads[name]), (
                frozen,
                name,
            )


def test_an_index_out_of_range_is_refused() -> None:
    model, x = model_of("lstm"), np.zeros((30, 7), np.int64)
    x[4, 2] = V
    for call in (model, model.vjp):
        with pytest.raises(ValueError, match="x: expected indices from 0 to 8, got 9"):
            call(x)
    x[4, 2] = -1
    with pytest.raises(ValueError, match="x: expected indices from 0 to 8, got -1"):
        model(x)


def test_where_it_does_not_pay() -> None:
    few = np.random.default_rng(0).integers(0, V, (7, 10))  # fewer than 8 steps a row
    model = model_of("lstm")
    looks = ost.nn._lookup.looks_up
    assert not looks(*model.layers, few.size, None)
    assert looks(*model.layers, 72, None)
    assert not looks(*model.layers, 72, "1MB")
    assert not looks(*model_of("lstm", precision="int8").layers, 72, None)
    y, grads = together(model, few)
    expected = one_by_one(model, few)
    assert np.array_equal(y, expected[0])
    assert np.array_equal(grads, expected[1])
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, I\) = \(\*, \*, 5\)"):
        Sequential(Embedding(V, E), ost.nn.LSTM(5, H))(np.zeros((30, 7), np.int64))


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    class Scaled(Embedding):
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    class Doubled(ost.nn.LSTM):
        def __call__(self, x: Any, *arguments: Any, **options: Any) -> Any:
            return super().__call__(2 * x, *arguments, **options)

    x = np.random.default_rng(0).integers(0, V, (30, 7))
    layers = [Embedding(V, E, rng=1), ost.nn.LSTM(E, H, rng=2)]
    expected = layers[1](2 * layers[0](x))[0]
    for model in (
        Sequential(Scaled(V, E, rng=1), ost.nn.LSTM(E, H, rng=2)),
        Sequential(Embedding(V, E, rng=1), Doubled(E, H, rng=2)),
    ):
        assert np.array_equal(model(x)[0], expected)


def test_explain_says_so() -> None:
    model = Sequential(embed=Embedding(V, E), rnn=ost.nn.LSTM(E, H), head=ost.nn.Linear(H, V))
    e = ost.explain(model, (30, 7), training=True)
    assert e.facts["layers"][0]["lookup"]
    assert "products with it are made of the 9 rows of the table, not of 210 steps" in str(e)
    e = ost.explain(model, (3, 7), training=True)
    assert not e.facts["layers"][0]["lookup"]
    assert "looked up" not in str(e)


def test_explain_measures_training() -> None:
    layer = ost.nn.LSTM(E, H)
    e = ost.explain(layer, (30, 7, E), training=True, measure=True)
    assert e.facts["measured_seconds"] > 0
    assert not layer.flat_grads.any()
