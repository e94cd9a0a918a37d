"""Losses against finite differences, masks, schedules, clipping, optimisers on a quadratic."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import numeric_gradient
from ostinato import losses, nn, optim

LOSSES: dict[str, Any] = {
    "mse": (losses.MSE(), lambda d: d * d),
    "mae": (losses.MAE(), np.abs),
    "huber": (
        losses.Huber(0.7),
        lambda d: np.where(abs(d) <= 0.7, d * d / 2, 0.7 * (abs(d) - 0.35)),
    ),
}


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
@pytest.mark.parametrize("name", [*LOSSES, "bce"])
def test_elementwise_losses(name: str, lengths: Any) -> None:
    rng = np.random.default_rng(0)
    y, target = rng.normal(size=(4, 3, 2)), rng.uniform(0, 1, (4, 3, 2))
    loss = losses.BinaryCrossEntropy() if name == "bce" else LOSSES[name][0]
    on = np.ones((4, 3), bool) if lengths is None else np.arange(4)[:, None] < lengths
    value, dy = loss(y, target, lengths)
    if name == "bce":
        p = 1 / (1 + np.exp(-y))
        terms = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    else:
        terms = LOSSES[name][1](y - target)
    assert np.isclose(value, terms[on].mean())
    np.testing.assert_allclose(
        dy, numeric_gradient(lambda: loss(y, target, lengths)[0], y), rtol=1e-5, atol=1e-8
    )
    y[~on] = np.nan
    again, dnan = loss(y, target, lengths)
    assert again == value
    assert (dnan[~on] == 0).all()
    flipped = type(loss)(**({"delta": 0.7} if name == "huber" else {}), batch_first=True)
    assert np.isclose(flipped(y.swapaxes(0, 1), target.swapaxes(0, 1), lengths)[0], value)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy(dtype: Any, smoothing: float, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    y, target = (4 * rng.normal(size=(5, 3, 37))).astype(dtype), rng.integers(0, 37, (5, 3))
    target[1, 2], lengths = -7, [5, 2, 4]
    loss = losses.CrossEntropy(ignore_index=-7, label_smoothing=smoothing)
    value, dy = loss(y, target, lengths)
    on = (np.arange(5)[:, None] < lengths) & (target != -7)
    wide = y.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.where(on, target, 0)[..., None], 2)[..., 0]
    want = -((1 - smoothing) * picked + smoothing * log_p.mean(-1))[on].mean()
    assert np.isclose(value, want, rtol=1e-6 if dtype == np.float32 else 1e-12)
    goal = (1 - smoothing) * np.eye(37)[np.where(on, target, 0)] + smoothing / 37
    np.testing.assert_allclose(
        dy,
        np.where(on[..., None], np.exp(log_p) - goal, 0) / on.sum(),
        atol=1e-7 if dtype == np.float32 else 1e-15,
    )


def test_cross_entropy_at_the_edges(kernel_set: str) -> None:
    y = np.array([[1e4, -1e4, 0.0], [np.nan, 0, 0]], np.float32)
    value, dy = losses.CrossEntropy()(y, np.array([0, -100]))
    assert value == 0
    assert abs(dy).max() < 2e-38  # exp does not go below its clamp
    assert losses.CrossEntropy()(y[:1], np.array([1]))[0] == pytest.approx(2e4)
    assert np.isnan(losses.CrossEntropy()(y[1:], np.array([1]))[0])
    assert losses.CrossEntropy()(y, np.array([-100, -100]))[0] == 0
    assert losses.CrossEntropy()(np.zeros((0, 4)), np.zeros(0, int))[0] == 0


def test_schedules() -> None:
    assert [optim.Exponential(1.0, factor=0.5)(s) for s in range(3)] == [1, 0.5, 0.25]
    cosine = optim.Cosine(2.0, steps=100, final=0.5)
    assert [cosine(0), cosine(50), cosine(100), cosine(1000)] == [2, 1.25, 0.5, 0.5]
    warm = optim.Warmup(cosine, steps=10)
    assert np.allclose([warm(0), warm(9), warm(10), warm(60)], [0.2, 2, 2, 1.25])
    plateau = optim.ReduceOnPlateau(1.0, factor=0.1, patience=0, min_delta=0.1, minimum=0.05)
    for value in (5, 4.95):
        plateau.observe(value)
    assert plateau(0) == pytest.approx(0.1)
    twin = optim.ReduceOnPlateau(1.0, factor=0.1, patience=0, min_delta=0.1, minimum=0.05)
    twin.load_state_dict(plateau.state_dict())
    for s in (plateau, twin):
        s.observe(4.95)
    assert plateau(0) == twin(0) == 0.05
    inner = optim.ReduceOnPlateau(1.0, factor=0.5, patience=0)
    outer = optim.Warmup(inner, steps=1)
    outer.observe(1)
    outer.observe(2)
    assert outer(5) == 0.5
    assert outer.state_dict() == inner.state_dict()


def test_clipping_of_squares_beyond_float64() -> None:
    model = nn.Linear(1, 1, rng=0, dtype=np.float64)
    model.vjp(np.full((1, 1), 3e200))[1](np.full((1, 1), 1e200))
    assert optim.global_norm(model) == np.inf  # 3e400
    model.zero_grad()
    model.vjp(np.full((1, 1), 0.75))[1](np.full((1, 1), 4e200))  # 3e200 and 4e200
    assert optim.clip_by_norm(model, 1.0) == pytest.approx(5e200)
    assert optim.global_norm(model) == pytest.approx(1.0)
    model.zero_grad()
    assert optim.global_norm(model) == 0
    model.vjp(np.full((1, 1), 0.75))[1](np.full((1, 1), 4e-200))
    assert optim.global_norm(model) == pytest.approx(5e-200, abs=0)


def test_clipping() -> None:
    model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Linear(3, 1, rng=0))
    pullback = model.vjp(np.ones((4, 2), np.float32))[1]
    pullback(np.full((4, 1), 100, np.float32))
    exact = np.sqrt((model.flat_grads.astype(np.float64) ** 2).sum())
    assert optim.global_norm(model) == pytest.approx(exact)
    assert optim.clip_by_norm(model, 1e9) == pytest.approx(exact)
    assert optim.clip_by_norm(model, 2.0) == pytest.approx(exact)
    assert optim.global_norm(model) == pytest.approx(2, rel=1e-6)
    optim.clip_by_value(model, 0.01)
    assert abs(model.flat_grads).max() == np.float32(0.01)
    grads = model._writable_grads()
    grads["0.bias"][0] = np.nan
    assert np.isnan(optim.global_norm(model))


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.SGD(0.1),
        lambda: optim.SGD(0.05, momentum=0.9),
        lambda: optim.SGD(0.05, momentum=0.9, nesterov=True),
        lambda: optim.RMSprop(0.02),
        lambda: optim.Adam(0.1),
        lambda: optim.AdamW(0.1, weight_decay=0),
    ],
)
def test_optimisers_find_the_line_and_resume(make: Any) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    target = x @ np.array([[1.0], [-2.0], [0.5]]) + 3

    def steps(model: Any, optimizer: Any, n: int) -> None:
        for _ in range(n):
            y, pullback = model.vjp(x)
            model.zero_grad()
            pullback(losses.MSE()(y, target)[1])
            optimizer.step(model)

    model, optimizer = nn.Linear(3, 1, dtype=np.float64, rng=0), make()
    steps(model, optimizer, 150)
    saved, state = model.state_dict(), optimizer.state_dict()
    steps(model, optimizer, 150)
    np.testing.assert_allclose(model.parameters()["weight"][0], [1, -2, 0.5], atol=0.02)
    twin, other = nn.Linear(3, 1, dtype=np.float64), make()
    twin.load_state_dict(saved)
    other.load_state_dict(state)
    steps(twin, other, 150)
    assert np.array_equal(twin.flat, model.flat)


def test_an_optimiser_refuses_another_model() -> None:
    optimizer = optim.Adam()
    optimizer.step(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model: expected the one"):
        optimizer.step(nn.Linear(40, 2))
    with pytest.raises(KeyError, match="momentum"):
        optimizer.load_state_dict(
            {"steps": 0, "started": {}, "schedule": {}, "buffers": {"momentum": np.zeros(3)}}
        )


def test_a_loss_of_your_own() -> None:
    class Sum(losses.Loss):
        def parts(self, y: Any, target: Any, lengths: Any = None, *, gradient: bool = True) -> Any:
            return float(y.sum()), 1, np.ones_like(y)

    assert Sum()(np.ones(3), None)[0] == 3
    with pytest.raises(TypeError, match="Loss does not define parts"):
        losses.Loss()(np.ones(3), np.ones(3))
    assert ost.losses is losses


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
def test_the_first_step_of_adam_is_the_rate(make: Any) -> None:
    """The corrections make it so, whatever the gradient.

    They are m / (1 - b1) = g, v / (1 - b2) = g^2 (Kingma, Ba 2015, section 3).
    """
    model = nn.Linear(3, 2, dtype=np.float64, rng=0)
    before, grads = model.state_dict(), model._writable_grads()
    for g in grads.values():
        g[...] = np.random.default_rng(0).normal(size=g.shape) * 100
    make(0.25, weight_decay=0).step(model)
    for n, v in model.parameters().items():
        np.testing.assert_allclose(v - before[n], -0.25 * np.sign(model.grads[n]), rtol=1e-6)


def test_a_rate_is_a_number() -> None:
    for wrong in (nn.Linear(1, 1), {}, [0.1], None):
        with pytest.raises(TypeError, match="lr: expected a number or a Schedule"):
            optim.Adam(wrong)  # type: ignore[arg-type]


def gradients(model: Any, seed: int) -> None:
    """Give a model gradients of random numbers."""
    flat = model._writable_grads().flat
    flat[...] = np.random.default_rng(seed).normal(size=flat.size)


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("resumed", [False, True])
def test_steps_in_which_a_parameter_was_frozen_are_none_of_its_own(
    make: Any, resumed: bool
) -> None:
    """The corrections of Adam count the updates of the averages, which rest while it is frozen."""
    models = [nn.Linear(2, 1, dtype=np.float64, rng=0) for _ in range(2)]
    optimizers = [make(0.1), make(0.1)]
    rested = {3, 4, 5, 6, 7, 20}
    for k in range(24):
        if k in rested:
            models[0].freeze("weight")
        else:
            models[0].unfreeze("weight")
        if resumed and k in (5, 10):
            state, optimizers[0] = optimizers[0].state_dict(), make(0.1)
            optimizers[0].load_state_dict(state)
        for model, optimizer in zip(models, optimizers):
            gradients(model, k)
            if model is models[0] or k not in rested:
                optimizer.step(model)
    first, second = (model.parameters()["weight"] for model in models)
    assert np.array_equal(first, second)
    assert optimizers[0].steps == 24


def test_a_step_that_fails_counts_for_nothing() -> None:
    class Fails(optim.Optimizer):
        _buffers = ("mean",)

        def _update(self, p: Any, g: Any, lr: float, decay: float, age: int, mean: Any) -> Any:
            if model.parameters()["bias"][0] == 1:
                raise RuntimeError("no")
            return p, mean

    model = nn.Linear(2, 1, rng=0)
    with model.write() as p:
        p["bias"][...] = 1
    optimizer = Fails(0.1)
    with pytest.raises(RuntimeError, match="no"):
        optimizer.step(model)
    assert optimizer.steps == 0
    assert not optimizer.started
    Fails(0.1).load_state_dict(optimizer.state_dict())  # buffers of zeros, and no steps


@pytest.mark.parametrize("begun", ["a", 2, -1, 0.5])
def test_what_the_steps_of_a_state_cannot_be(begun: Any) -> None:
    model, optimizer = nn.Linear(2, 1, rng=0), optim.Adam()
    optimizer.step(model)
    state = {**optimizer.state_dict(), "started": {"weight": begun, "bias": 0}}
    with pytest.raises((TypeError, ValueError), match=r"state\['started'\]\['weight'\]: expected"):
        optimizer.load_state_dict(state)
    assert optimizer.started == {"weight": 0, "bias": 0}


def test_rates_that_no_float_holds() -> None:
    assert optim.Exponential(1e-3, factor=1.1)(8000) == np.inf
    assert optim.StepDecay(1e-3, every=2, factor=10)(800) == np.inf
    assert optim.Exponential(0.0, factor=1.1)(8000) == 0
    for name, call in (
        ("lr", lambda: optim.Adam(10**400)),
        ("weight_decay", lambda: optim.Adam(weight_decay=10**400)),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a finite number of at least 0"):
            call()


def test_a_plateau_of_numbers_of_numpy() -> None:
    plateau, twin = optim.ReduceOnPlateau(1.0, patience=0), optim.ReduceOnPlateau(1.0, patience=0)
    plateau.observe(np.float32(0.5))  # type: ignore[arg-type]
    twin.load_state_dict(json.loads(json.dumps(plateau.state_dict())))
    twin.observe(0.5)
    assert twin(0) == 0.5
    with pytest.raises(TypeError, match="value: expected a number, got 'low'"):
        twin.observe("low")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state: expected what state_dict returned, got NoneType"):
        twin.load_state_dict(None)  # type: ignore[arg-type]
