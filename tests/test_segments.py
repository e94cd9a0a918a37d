"""Bounds of memory: segments and recomputed gates give the bits of a whole tape."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import CELLS, GENERAL_CELLS, STACKS, flat, recurrent
from ostinato import _segments


@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_a_limit_changes_no_bit(
    make: Any, options: dict[str, Any], kernel_set: str, threads: None
) -> None:
    layer, first = make(5, 20, rng=0, **options), options.get("batch_first", False)
    r = np.random.default_rng(0)
    steps, batch = 150, 6
    ost.set_num_threads(2)

    def swapped(a: Any) -> Any:
        return np.ascontiguousarray(np.swapaxes(a, 0, 1)) if first else a

    x = swapped(r.standard_normal((steps, batch, 5)).astype(np.float32))
    dy = swapped(r.standard_normal((steps, batch, 20 * layer._directions)).astype(np.float32))
    lengths, resets, mask, cuts = (
        r.integers(0, steps, batch),
        *(swapped(r.random((steps, batch)) < s) for s in (0.05, 0.8, 0.1)),
    )
    for times in (
        {},
        {"lengths": lengths},
        {"resets": resets},
        {"mask": mask, "lengths": lengths, "resets": resets},
    ):
        results = []
        cells = r.standard_normal((len(layer._suffixes()), *x.shape[:2], 20)).astype(np.float32)
        dcells = {"dcells": cells} if make is ost.nn.LSTM else {}
        for limit in (None, 3, "least", 1, "2MB", "states"):
            layer.zero_grad()
            (y, state), pullback = layer.vjp(
                x, memory_limit=limit, rng=1, cuts=cuts, clip_step_norm=5.0, **times
            )
            dx, dstate = pullback(dy, state, **dcells)
            results.append([y.copy(), dx, *flat(state), *flat(dstate), layer.flat_grads.copy()])
        for other in results[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_a_limit_and_restarts_that_wait() -> None:
    """A row that is reset and then masked up to the border of a segment.

    Its gradient still goes to the learned state, in order.
    """
    for seed in range(12):
        r = np.random.default_rng(seed)
        layer = ost.nn.LSTM(7, 16, learned_state=True, rng=0)
        x = r.standard_normal((300, 9, 7)).astype(np.float32)
        times = {"resets": r.random((300, 9)) < 0.05, "mask": r.random((300, 9)) < 0.6}
        results = []
        for limit in (None, "least"):
            layer.zero_grad()
            (y, _), pullback = layer.vjp(x, memory_limit=limit, **times)
            dx, _ = pullback(np.ones_like(y))
            results.append((y.copy(), dx, layer.flat_grads.copy()))
        assert all(np.array_equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("limit", [None, "least"])
def test_what_was_given_may_be_used_again(limit: Any) -> None:
    layer, r = ost.nn.GRU(3, 8, rng=0), np.random.default_rng(0)
    x = r.standard_normal((100, 4, 3)).astype(np.float32)
    given = {
        "lengths": np.array([100, 50, 70, 3]),
        **{n: r.random((100, 4)) < s for n, s in (("resets", 0.1), ("mask", 0.7), ("cuts", 0.1))},
    }
    (y, _), pullback = layer.vjp(x, memory_limit=limit, **given)
    want = pullback(np.ones_like(y))
    (y, _), pullback = layer.vjp(x, memory_limit=limit, **given)
    for a in given.values():
        a[...] = 1
    got = pullback(np.ones_like(y))
    assert all(np.array_equal(a, b) for a, b in zip(flat(want), flat(got)))


@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}, {"learned_state": True}], ids=str
)
def test_no_step_within_a_bound(make: Any, options: dict[str, Any]) -> None:
    layer = make(3, 4, rng=0, **options)
    for shape in ((0, 2, 3), (5, 0, 3), (0, 0, 3)):
        x = np.zeros(shape, np.float32)
        results = []
        for limit in (None, "least"):
            (y, state), pullback = layer.vjp(x, memory_limit=limit)
            results.append([y, *flat(state), *flat(pullback(np.zeros_like(y), state))])
        assert all(np.array_equal(a, b) for a, b in zip(*results))
    wrong = np.zeros((5, 2, 4), np.float32)
    state = (wrong, wrong) if make is ost.nn.LSTM else wrong
    with pytest.raises(ValueError, match=r"state: expected shape \(L\*D, B, H\)"):
        layer.vjp(np.zeros((9, 2, 3), np.float32), state, memory_limit=2)
    (y, _), pullback = layer.vjp(np.zeros((9, 2, 3), np.float32), memory_limit=2)
    with pytest.raises(ValueError, match=r"dstate: expected shape \(L\*D, B, H\)"):
        pullback(np.zeros_like(y), state)


def test_schedules_fit_and_are_the_cheapest() -> None:
    def plan(limit: object) -> _segments.Schedule:
        return _segments.schedule(limit, 1000, 8, 10, 100)

    assert plan("1GB").extra == 0
    assert plan("200KB").num_saved == plan("200KB").count
    least = plan("least")
    assert (
        least.bytes == min(_segments.Schedule(1000, 8 * k, 0, 10, 100).bytes for k in range(1, 126))
        or least.length % 8 == 0
    )
    last = 1.0
    for limit in (least.bytes, 20_000, 40_000, 60_000, 90_000, 101_000):
        s = plan(f"{limit}B")
        assert s.bytes <= limit
        assert s.length % 8 == 0
        assert s.extra <= last
        last = s.extra
    assert last == 0
    assert plan(4).count == 4
    for bad in ("12XB", "MB", "-3MB", "nanMB", ""):
        with pytest.raises(ValueError, match="memory_limit: expected a size such as '512MB'"):
            plan(bad)
    with pytest.raises(ValueError, match=rf"memory_limit: expected at least {least.bytes} bytes"):
        plan("1KB")
    with pytest.raises(
        ValueError, match="memory_limit: expected a whole number of at least 1, got 0"
    ):
        plan(0)


def test_a_loss_taken_segment_by_segment() -> None:
    layer = ost.nn.GRU(3, 8, rng=0)
    r = np.random.default_rng(0)
    x = r.standard_normal((300, 2, 3)).astype(np.float32)
    (y, _), pullback = layer.vjp(x)
    layer.zero_grad()
    dx, _ = pullback(2 * y)
    grads, starts = layer.flat_grads.copy(), []

    def dy(t: int, segment: Any) -> Any:
        starts.append(t)
        assert np.array_equal(segment, y[t : t + len(segment)])
        return 2 * segment

    (nothing, _), pullback = layer.vjp(x, outputs="none", memory_limit=2)
    assert nothing is None
    layer.zero_grad()
    dx2, _ = pullback(dy)
    assert np.array_equal(dx, dx2)
    assert np.array_equal(grads, layer.flat_grads)
    assert starts == sorted(starts, reverse=True)
    assert len(starts) == 2


def test_memory_stays_within_the_limit() -> None:
    """NumPy's and the native memory of a pass with a limit stay below the tape that it does
    without.
    """
    layer = ost.nn.LSTM(4, 64, rng=0)
    x = np.zeros((20000, 1, 4), np.float32)
    whole = 20000 * 6 * 64 * 4
    plan = _segments.plan_for(layer, "1MB", 20000, 1, "last")
    assert plan.bytes <= 1e6 < whole
    tracemalloc.start()
    (y, _), pullback = layer.vjp(x, outputs="last", memory_limit="1MB")
    pullback(np.ones_like(y), need_dx=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cell", [c for c in CELLS if c != "rnn_relu"])
def test_recomputed_gates_have_their_bits(
    cell: str, precision: str, kernel_set: str, threads: None
) -> None:
    """Where units, lanes or layers are split over threads: as with the whole tape."""
    if precision == "bfloat16" and cell in GENERAL_CELLS:
        precision = "exact"  # they have no kernels for shorter words
    dtype = np.float64 if precision == "float64" else np.float32
    ost.set_num_threads(2)
    r = np.random.default_rng(0)
    for steps, batch, hidden, more in (
        (20, 1, 256, {}),
        (300, 1, 24, {"num_layers": 2}),
        (9, 20, 40, {"bidirectional": True}),
    ):
        layer = recurrent(cell, 5, hidden, rng=0, dtype=dtype, precision=precision, **more)
        x = r.standard_normal((steps, batch, 5)).astype(dtype)
        mask, resets = r.random((steps, batch)) < 0.8, r.random((steps, batch)) < 0.05
        for times in ({}, {"mask": mask, "resets": resets}):
            results = []
            for limit in (None, "states"):
                layer.zero_grad()
                (y, state), pullback = layer.vjp(x, memory_limit=limit, **times)
                dx, dstate = pullback(np.sin(y), state)
                results.append([y.copy(), dx, *flat(dstate), layer.flat_grads.copy()])
            assert all(np.array_equal(a, b) for a, b in zip(*results))
        text = str(ost.explain(layer, x.shape, training=True, memory_limit="states"))
        assert "states only" in text


def test_segments_of_ragged_sequences_and_their_gradients() -> None:
    """dy as a function where all outputs are kept, as an array where none are.

    One tape at a time; no step at all.
    """
    gru, f = ost.nn.GRU(3, 5, rng=0), ost.functional
    x = ost.Ragged.join(
        [
            np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
            for n in (600, 0, 301, 700)
        ]
    )
    (y, _), pullback = gru.vjp(x)
    want, _ = pullback(2 * y.rows)
    grads = gru.flat_grads.copy()

    def ask(t: int, seen: Any) -> Any:
        with pytest.raises(ValueError, match="read-only"):
            seen.rows[...] = 0
        return seen.like(2 * seen.rows)

    for outputs, dy in (("all", ask), ("none", 2 * y.rows), ("none", ask), ("all", 2 * y.rows)):
        gru.zero_grad()
        (_, _), pullback = gru.vjp(x, outputs=outputs, memory_limit=3)
        if callable(dy) and outputs == "all":
            dy = lambda t, seen: seen.like(2 * seen.rows)
        dx, _ = pullback(dy)
        assert np.array_equal(dx.rows, want.rows)
        assert np.array_equal(gru.flat_grads, grads)
    w = [np.zeros(s, np.float32) for s in ((20, 3), (20, 5))]
    for empty in (np.zeros((0, 2, 3), np.float32), [np.zeros((0, 3), np.float32)] * 2):
        h0 = np.ones((2, 5), np.float32)
        (_, (h_n, c_n)), pullback = f.lstm_vjp(empty, *w, h0=h0, memory_limit="least")
        assert np.array_equal(h_n, h0)
        assert not np.shares_memory(h_n, h0)
        assert (c_n == 0).all()
        assert np.array_equal(pullback(dh_n=h0).dh0, h0)
        for bad, words in (
            ({"h0": h0[:1]}, r"h0: expected shape \(B, H\) = \(2, 5\)"),
            ({"c0": h0[:, :1]}, "c0: expected shape"),
        ):
            with pytest.raises(ValueError, match=words):
                f.lstm_vjp(empty, *w, **bad, memory_limit="least")
    with pytest.raises(ValueError, match="x: expected shape"):
        f.lstm_vjp(np.zeros((0, 2, 4), np.float32), *w, memory_limit="least")
    with pytest.raises(TypeError, match="dcells: expected None for the cell gru"):
        f.gru_vjp(x, w[0][:15], w[1][:15], memory_limit=2)[1](
            dcells=np.zeros((700, 4, 5), np.float32)
        )


def test_a_segment_is_given_back_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    layer, alive = ost.nn.LSTM(2, 8, rng=0), []
    run = _segments.Chain._run

    def spy(self: Any, *arguments: Any) -> Any:
        assert sum(ref() is not None for ref in alive) == 0
        out = run(self, *arguments)
        if out[-1] is not None:
            alive.append(weakref.ref(out[-1]))
        return out

    monkeypatch.setattr(_segments.Chain, "_run", spy)
    (_, _), pullback = layer.vjp(np.zeros((2000, 1, 2), np.float32), memory_limit="least")
    pullback(np.zeros((2000, 1, 8), np.float32))
    assert len(alive) > 2


def test_an_input_that_repeats_itself_in_memory() -> None:
    """x may be a view of any strides; its gradient has memory of its own."""
    r = np.random.default_rng(0)
    x = np.broadcast_to(r.standard_normal((9, 1, 3)), (9, 2, 3))
    w, u, dy = r.standard_normal((4, 3)), r.standard_normal((4, 1)), r.standard_normal((9, 2, 1))
    want = ost.functional.lstm_vjp(x, w, u)[1](dy).dx
    assert np.array_equal(ost.functional.lstm_vjp(x, w, u, memory_limit=2)[1](dy).dx, want)


@pytest.mark.parametrize("limit", [None, "states", 2])
def test_errors_are_those_of_a_pass_without_a_limit(limit: Any) -> None:
    f, w = ost.functional, np.ones((12, 4), np.float32)
    x, state = np.ones((5, 3, 4), np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match=r"x: expected dtype float32, got float64; use x.astype"):
        f.gru_vjp(x.astype(float), w, w, memory_limit=limit)
    with pytest.raises(TypeError, match=r"reset_state: expected dtype float32, got float64"):
        f.gru_vjp(x, w, w, memory_limit=limit, reset_state=np.ones(4))
    (y, _), pullback = f.gru_vjp(x, w, w, memory_limit=limit)
    with pytest.raises(TypeError, match=r"dy: expected dtype float32, got float64; use dy.astype"):
        pullback(y.astype(float))
    with pytest.raises(ValueError, match="dy: expected shape"):
        pullback(y[1:])
    for name, given in (("dcells", x), ("dc_n", state)):
        with pytest.raises(TypeError, match=f"{name}: expected None for the cell gru, got ndarray"):
            pullback(**{name: given})
    assert pullback(y).dx.shape == x.shape
