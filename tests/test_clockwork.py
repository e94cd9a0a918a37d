"""ClockworkRNN against the paper's equations, and all gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import numeric_gradient, parameter_gradient
from ostinato import nn, reference

F64 = {"dtype": np.float64}
T, B, D = 11, 3, 2
SIZES, PERIODS = [2, 1, 2], [1, 3, 4]


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def made(**options: Any) -> nn.ClockworkRNN:
    return nn.ClockworkRNN(D, SIZES, PERIODS, rng=0, **{**F64, **options})


def matrices(layer: nn.ClockworkRNN) -> reference.Weights:
    """Return the matrices of all modules as one, with anything where the paper has zeros."""
    size, p = layer.hidden_size, layer.parameters()
    w_ih, w_hh = np.zeros((size, D)), np.full((size, size), 9.0)
    bias = np.zeros((2, size))
    start = 0
    for k, n in enumerate(layer.sizes):
        own = slice(start, start + n)
        start += n
        given = p[f"modules.{k}.weight_ih_l0"]
        w_ih[own], w_hh[own, start:] = given[:, :D], given[:, D:]
        w_hh[own, own] = p[f"modules.{k}.weight_hh_l0"]
        if layer.modules[0].bias:
            bias[0, own], bias[1, own] = (
                p[f"modules.{k}.bias_{which}_l0"] for which in ("ih", "hh")
            )
    return reference.Weights(w_ih, w_hh, *bias)


def expected(layer: nn.ClockworkRNN, x: Any, **options: Any) -> tuple[Any, Any]:
    return reference.clockwork(x, matrices(layer), layer.sizes, layer.periods, **options)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": np.array([11, 0, 6])},
    "state": {"clock": np.array([5, 0, 2])},
    "state and lengths": {"clock": np.array([1, 3, 6]), "lengths": np.array([2, 11, 1])},
}


@pytest.mark.parametrize("form", ["time major", "batch first", "ragged", "relu without bias"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case: str, form: str) -> None:
    options = CASES[case]
    relu = form == "relu without bias"
    first = form == "batch first"
    layer = made(batch_first=first, **({"nonlinearity": "relu", "bias": False} if relu else {}))
    x, lengths = drawn(T, B, D), options.get("lengths")
    h0 = drawn(1, B, 5, seed=3) if "clock" in options else None
    state = None if h0 is None else (h0, options["clock"][None])
    ends = np.full(B, T) if lengths is None else lengths
    dy, dh = drawn(T, B, 5, seed=1), drawn(1, B, 5, seed=2)
    phi = (lambda a: np.maximum(a, 0)) if relu else np.tanh

    def want() -> tuple[Any, Any]:
        h = None if h0 is None else h0[0]
        return expected(layer, x, h0=h, phi=phi, **options)

    def value() -> float:
        y, h = want()
        return float((y * dy).sum() + (h * dh[0]).sum())

    ragged = ost.Ragged(x.swapaxes(0, 1).reshape(-1, D), np.arange(B + 1) * T)
    at = np.concatenate([np.arange(n) + b * T for b, n in enumerate(ends)]).astype(int)
    cut = ost.Ragged(ragged.rows[at], np.cumsum([0, *ends]))
    given = cut if form == "ragged" else x.swapaxes(0, 1) if first else x
    times = {} if form == "ragged" or lengths is None else {"lengths": lengths}
    (y, new), pullback = layer.vjp(given, state, **times)
    again, same = layer(given, state, **times)
    flat = dy.swapaxes(0, 1).reshape(-1, 5)[at]
    d = cut.like(flat) if form == "ragged" else dy.swapaxes(0, 1) if first else dy
    dx, dstate = pullback(d, (dh, None))
    if form == "ragged":
        assert np.array_equal(again.rows, y.rows)
        full = np.zeros((B * T, D))
        full[at] = dx.rows
        dx = full.reshape(B, T, D).swapaxes(0, 1)
        padded = np.zeros((T, B, 5))
        padded[: cut.lengths.max()] = y.padded()
        y = padded
    else:
        assert np.array_equal(again, y)
        y, dx = (a.swapaxes(0, 1) if first else a for a in (y, dx))
    y_want, h_want = want()
    np.testing.assert_allclose(y, y_want, atol=1e-12)
    np.testing.assert_allclose(new[0][0], h_want, atol=1e-12)
    assert np.array_equal(same[0], new[0])
    assert new[1].tolist() == [(ends + options.get("clock", 0)).tolist()]
    np.testing.assert_allclose(dx, numeric_gradient(value, x), atol=1e-7)
    if h0 is not None:
        np.testing.assert_allclose(dstate[0], numeric_gradient(value, h0), atol=1e-7)
    for name in layer.parameters():
        np.testing.assert_allclose(
            layer.grads[name], parameter_gradient(value, layer, name), atol=1e-7, err_msg=name
        )


def test_modules_hold_between_their_steps() -> None:
    layer = nn.ClockworkRNN(1, 8, [1, 2, 4, 8], rng=0)
    y, _ = layer(drawn(17, 1, 1).astype(np.float32))
    for k, period in enumerate(layer.periods):
        moves = np.any(y[1:, 0, 2 * k : 2 * k + 2] != y[:-1, 0, 2 * k : 2 * k + 2], axis=1)
        assert (np.flatnonzero(moves) + 1).tolist() == list(range(period, 17, period))


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (4, 7, 8)], ids=str)
def test_a_call_in_pieces_is_the_whole(cuts: tuple[int, ...]) -> None:
    layer, x = made(), drawn(T, B, D)
    state, parts = None, []
    for piece in np.split(x, cuts):
        y, state = layer(piece, state)
        parts.append(y)
    whole, end = layer(x)
    assert np.array_equal(np.concatenate(parts), whole)
    assert state is not None
    assert all(np.array_equal(a, b) for a, b in zip(state, end))


@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_no_steps(form: str) -> None:
    """The state stays as it is, and has a gradient."""
    layer = made()
    state = drawn(1, B, 5), np.array([[5, 0, 2]])
    x: Any = np.zeros((0, B, D))
    flags: Any = np.zeros((0, B), bool)
    if form == "ragged":
        x, flags = ost.Ragged(np.zeros((0, D)), [0] * (B + 1)), np.zeros(0, bool)
    (y, new), pullback = layer.vjp(x, state, resets=flags)
    assert len(y if form == "padded" else y.rows) == 0
    assert np.array_equal(new[0], state[0])
    assert np.array_equal(new[1], state[1])
    dh = drawn(1, B, 5, seed=4)
    assert np.array_equal(pullback(None, (dh, None))[1][0], dh)


def pieces(layer: nn.ClockworkRNN, x: Any, on: Any, resets: Any, h0: Any, clock: Any) -> Any:
    """Run the steps that take part alone, one row after the other, and repeat the others."""
    y = np.zeros((T, B, 5))
    ends, clocks = np.zeros((B, 5)), np.zeros(B, int)
    for b in range(B):
        h, number, shown = h0[b : b + 1], clock[b], np.zeros(5)
        for t in range(T):
            if resets[t, b]:
                h, number, shown = np.zeros((1, 5)), 0, np.zeros(5)
            if on[t, b]:
                _, h = expected(layer, x[t : t + 1, b : b + 1], h0=h, clock=np.array([number]))
                number, shown = number + 1, h[0]
            y[t, b] = shown
        ends[b], clocks[b] = h[0], number
    return y, ends, clocks


@pytest.mark.parametrize("form", ["padded", "ragged"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_and_resets(seed: int, form: str) -> None:
    """Skipped steps stand still, and a reset starts the state and the clock anew."""
    r = np.random.default_rng(seed)
    layer, x = made(), drawn(T, B, D)
    on, resets = r.random((T, B)) < 0.6, r.random((T, B)) < (0.3 if seed % 2 else 0)
    h0, clock = drawn(1, B, 5, seed=3), np.array([[5, 0, 2]])
    y, ends, clocks = pieces(layer, x, on, resets, h0[0], clock[0])
    bad = np.where(on[..., None], x, np.nan)  # what is skipped may be anything
    if form == "padded":
        got, (h, after) = layer(bad, (h0, clock), mask=on, resets=resets)
        zero = layer(bad, (h0, clock), mask=on, resets=resets, masked="zero")[0]
    else:

        def flat(a: Any) -> Any:
            return np.ascontiguousarray(a.swapaxes(0, 1).reshape(B * T, *a.shape[2:]))

        sequences = ost.Ragged(flat(bad), np.arange(B + 1) * T)
        flags = {"mask": flat(on), "resets": flat(resets)}
        got, (h, after) = layer(sequences, (h0, clock), **flags)
        zero = layer(sequences, (h0, clock), masked="zero", **flags)[0].padded()
        got = got.padded()
    np.testing.assert_allclose(got, y, atol=1e-12)
    np.testing.assert_allclose(zero, np.where(on[..., None], y, 0), atol=1e-12)
    np.testing.assert_allclose(h[0], ends, atol=1e-12)
    assert after.tolist() == [clocks.tolist()]


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_with_masks_and_resets(batch_first: bool) -> None:
    r = np.random.default_rng(1)
    layer, x = made(batch_first=batch_first), drawn(T, B, D)
    on, resets = r.random((T, B)) < 0.6, r.random((T, B)) < 0.2
    h0, clock = drawn(1, B, 5, seed=3), np.array([[5, 0, 2]])
    dy, dh = drawn(T, B, 5, seed=1), drawn(1, B, 5, seed=2)

    def value() -> float:
        y, ends, _ = pieces(layer, x, on, resets, h0[0], clock[0])
        return float((y * dy).sum() + (ends * dh[0]).sum())

    def turned(a: Any) -> Any:
        return np.ascontiguousarray(a.swapaxes(0, 1)) if batch_first else a

    flags = {"mask": turned(on), "resets": turned(resets)}
    _, pullback = layer.vjp(turned(x), (h0, clock), **flags)
    dx, dstate = pullback(turned(dy), (dh, None))
    np.testing.assert_allclose(turned(dx), numeric_gradient(value, x), atol=1e-7)
    np.testing.assert_allclose(dstate[0], numeric_gradient(value, h0), atol=1e-7)
    for name in ("modules.0.weight_ih_l0", "modules.2.weight_hh_l0"):
        np.testing.assert_allclose(
            layer.grads[name], parameter_gradient(value, layer, name), atol=1e-7, err_msg=name
        )


def test_streams() -> None:
    """Slots have clocks of their own; a state goes between streams and calls."""
    layer, x = made(), drawn(T, B, D)
    model = nn.Sequential(layer, nn.Linear(5, 2, **F64, rng=1))
    want = model(x)[0]
    stream = model.stream(batch=B)
    for t in range(4):
        np.testing.assert_allclose(stream.step(x[t]), want[t], atol=1e-13)
    stream.reset([1])
    for t in range(4):
        np.testing.assert_allclose(stream.step(x[t, [1]], slots=[1]), want[t, [1]], atol=1e-13)
    state = stream.state
    assert state[0][1].tolist() == [[4, 4, 4]]
    np.testing.assert_allclose(model(x[4:], state)[0], want[4:], atol=1e-13)
    own = layer.stream() if layer._owner is None else made().stream()
    np.testing.assert_allclose(own.step(x[0, :1]), made()(x[:1, :1])[0][0], atol=1e-13)
    own.state = made()(x[:3, :1])[1]
    np.testing.assert_allclose(own.step(x[3, :1]), made()(x[:4, :1])[0][3], atol=1e-13)


def test_in_a_model_that_is_trained() -> None:
    """The Trainer gives lengths, and the loss of a periodic series falls."""
    t = np.arange(24)
    x = np.stack([np.sin(t / 2 + p) for p in range(8)])[..., None].astype(np.float32)
    model = nn.Sequential(
        nn.ClockworkRNN(1, 12, [1, 2, 4], batch_first=True, rng=0), nn.Linear(12, 1, rng=1)
    )
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
    data = (x[:, :-1], x[:, 1:], np.full(8, 20))
    before = trainer.evaluate(data)["loss"]
    trainer.fit(data, epochs=40, progress=False)
    assert trainer.evaluate(data)["loss"] < before / 10


def test_a_file_makes_it_anew(tmp_path: Any) -> None:
    layer = made(nonlinearity="relu", bias=False, batch_first=True)
    layer.save(tmp_path / "a")
    again = ost.load(tmp_path / "a")
    assert repr(again) == repr(layer) == "ClockworkRNN(2, [2, 1, 2], periods=[1, 3, 4])"
    x = drawn(B, T, D)
    assert np.array_equal(again(x)[0], layer(x)[0])


def test_what_is_wrong_is_told() -> None:
    for periods, error in (
        ([2, 2], ValueError),
        ([4, 1], ValueError),
        ([], ValueError),
        ([0, 1], ValueError),
        ([1.5, 2], TypeError),
        (4, TypeError),
        ("12", TypeError),
    ):
        with pytest.raises(error, match="periods: expected"):
            nn.ClockworkRNN(2, 4, periods)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden_size: expected a multiple of the 4 periods"):
        nn.ClockworkRNN(2, 6)
    with pytest.raises(ValueError, match="nonlinearity: expected one of 'tanh', 'relu', got 'elu'"):
        ost.nn.ClockworkRNN(2, 8, nonlinearity="elu")
    with pytest.raises(ValueError, match="hidden_size: expected 2 numbers, one a period, got 3"):
        nn.ClockworkRNN(2, [1, 2, 3], [1, 2])
    layer, x = made(), drawn(T, B, D)
    h, clock = layer(x)[1]
    for state, error, message in (
        (h, TypeError, r"state: expected a pair \(h, clock\)"),
        ((h[0], clock), ValueError, r"state: expected h of shape \(1, 3, 5\)"),
        ((h.astype(np.float32), clock), ValueError, "state: expected h of shape"),
        ((h, clock[0]), ValueError, r"state: expected a clock of shape \(1, 3\)"),
        ((h, clock * 1.0), ValueError, "state: expected a clock"),
        ((h, clock - 99), ValueError, "state: expected a clock of .* whole numbers from 0"),
    ):
        with pytest.raises(error, match=message):
            layer(x, state)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, I\) = \(\*, \*, 2\), got"):
        layer(x[..., :1])
    with pytest.raises(ValueError, match="x: expected shape"):
        layer(x[0])
    with pytest.raises(ValueError, match="lengths: expected None with ragged sequences"):
        layer([x[:, 0]], lengths=[3])
    with pytest.raises(ValueError, match="masked: expected"):
        layer(x, masked="none")
    with pytest.raises(TypeError, match="mask: expected dtype bool"):
        layer(x, mask=np.ones((T, B)))
