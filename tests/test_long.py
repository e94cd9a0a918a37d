"""Long and ragged sequences: bounds of memory, truncated backpropagation, streams of whole models, the gradient's way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tracemalloc
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _segments
from ostinato.diagnostics import gradient_flow


def flat(state: Any) -> list[Any]:
    if state is None:
        return []
    return [a for s in state for a in flat(s)] if isinstance(state, (tuple, list)) else [np.array(state)]


def assert_twins(layer: Any, ragged: ost.Ragged, *calls: Any) -> None:
    """The pullbacks of a padded and of a ragged call, each with dy and its states: states and gradients have the same bits."""
    results = []
    for pullback, dy, state in calls:
        layer.zero_grad()
        dx, dstate = pullback(dy, state)
        dx = dx.rows if isinstance(dx, ost.Ragged) else ragged.flat(dx)
        results.append([dx, *flat(dstate), *flat(state), layer.flat_grads.copy()])
    assert all(np.array_equal(a, b) for a, b in zip(*results))


STACKS = [
    {},
    {"num_layers": 3, "dropout": 0.3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True},
    {"learned_state": True, "batch_first": True},
]


@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_a_limit_changes_no_bit(make: Any, options: dict[str, Any], kernel_set: str, threads: None) -> None:
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
    for times in ({}, {"lengths": lengths}, {"resets": resets}, {"mask": mask, "lengths": lengths, "resets": resets}):
        results = []
        cells = r.standard_normal((len(layer._suffixes()), *x.shape[:2], 20)).astype(np.float32)
        dcells = {"dcells": cells} if make is ost.nn.LSTM else {}
        for limit in (None, 3, "least", 1, "2MB", "states"):
            layer.zero_grad()
            (y, state), pullback = layer.vjp(x, memory_limit=limit, rng=1, cuts=cuts, clip_step_norm=5.0, **times)
            dx, dstate = pullback(dy, state, **dcells)
            results.append([y.copy(), dx, *flat(state), *flat(dstate), layer.flat_grads.copy()])
        for other in results[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_a_limit_and_restarts_that_wait() -> None:
    """A row that is reset and then masked up to the border of a segment: its gradient still goes to the learned state, in order."""
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
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"learned_state": True}], ids=str)
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
    assert plan("200KB").kept == plan("200KB").count
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
    with pytest.raises(ValueError, match="memory_limit: expected a whole number of at least 1, got 0"):
        plan(0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("limit", [None, "least"])
def test_last_outputs(bidirectional: bool, limit: Any) -> None:
    layer = ost.nn.LSTM(3, 8, 2, bidirectional=bidirectional, rng=0)
    r = np.random.default_rng(0)
    x, lengths = r.standard_normal((40, 5, 3)).astype(np.float32), np.array([40, 3, 17, 1, 30])
    (y, _), pullback = layer.vjp(x, lengths=lengths)
    at = lengths - 1, np.arange(5)
    d = r.standard_normal((5, 8 * (1 + bidirectional))).astype(np.float32)
    dy = np.zeros_like(y)
    dy[at] = d
    layer.zero_grad()
    want = pullback(dy)
    grads = layer.flat_grads.copy()
    (last, _), pullback = layer.vjp(x, lengths=lengths, outputs="last_step", memory_limit=limit)
    assert np.array_equal(last, y[at])
    assert np.array_equal(layer(x, lengths=lengths, outputs="last_step")[0], last)
    layer.zero_grad()
    got = pullback(d)
    assert all(np.array_equal(a, b) for a, b in zip(flat(got), flat(want)))
    assert np.array_equal(layer.flat_grads, grads)


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
    """NumPy's and the native memory of a pass with a limit stay below the tape that it does without."""
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


SEQUENCES = [np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32) for n in (5, 0, 9, 1, 9, 30)]


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3, "dropout": 0.4}],
    ids=str,
)
@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_ragged_is_padded_without_padding(make: Any, options: dict[str, Any], kernel_set: str, threads: None) -> None:
    ost.set_num_threads(2)
    layer = make(3, 20, rng=0, **options)
    lengths = [len(s) for s in SEQUENCES]
    x = np.full((30, 6, 3), np.nan, np.float32)
    for b, s in enumerate(SEQUENCES):
        x[: len(s), b] = s
    (y, state), pullback = layer.vjp(x, lengths=lengths, rng=1)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    layer.zero_grad()
    dx, dstate = pullback(dy)
    grads = layer.flat_grads.copy()
    pieces = [dy[:n, b] for b, n in enumerate(lengths)]
    for given in (SEQUENCES, ost.Ragged.join(SEQUENCES)):
        (rows, state2), pullback = layer.vjp(given, rng=1)
        layer.zero_grad()
        drows, dstate2 = pullback(pieces)
        assert type(rows) is type(given)
        assert all(np.array_equal(a, y[: len(a), b]) for b, a in enumerate(rows))
        assert all(np.array_equal(a, dx[: len(a), b]) for b, a in enumerate(drows))
        assert all(np.array_equal(a, b) for a, b in zip(flat((state, dstate)), flat((state2, dstate2))))
        assert np.array_equal(grads, layer.flat_grads)


@pytest.mark.parametrize("options", [{}, *STACKS[2:4]], ids=str)
@pytest.mark.parametrize("make", [ost.nn.LSTM, ost.nn.GRU])
def test_ragged_takes_every_option(make: Any, options: dict[str, Any], kernel_set: str, threads: None) -> None:
    """Resets, masks, cuts, the last outputs and bounds of memory: bit for bit as padded."""
    layer = make(3, 20, rng=0, **{**options, "batch_first": False})
    ragged, r = ost.Ragged.join(SEQUENCES), np.random.default_rng(0)
    flags = {n: r.random(len(ragged.rows)) < s for n, s in (("resets", 0.1), ("mask", 0.7), ("cuts", 0.1))}
    padded = {n: ragged.padded(f) for n, f in flags.items()}
    x = ragged.padded()
    assert np.array_equal(ragged.flat(x), ragged.rows)
    for outputs in ("all", "last"):
        for limit in (None, "states", "least", 2):
            (y, state), pullback = layer.vjp(
                x, lengths=ragged.lengths, outputs=outputs, memory_limit=limit, rng=1, **padded
            )
            (rows, state2), pullback2 = layer.vjp(ragged, outputs=outputs, memory_limit=limit, rng=1, **flags)
            dy = r.standard_normal(y.shape).astype(np.float32)
            given = dy if outputs == "last" else ragged.flat(dy)
            assert np.array_equal(rows if outputs == "last" else rows.rows, y if outputs == "last" else ragged.flat(y))
            assert_twins(layer, ragged, (pullback, dy, state), (pullback2, given, state2))
    if layer._directions == 1:  # a loss taken segment by segment

        def ask(t: int, y: Any) -> Any:
            assert isinstance(y, ost.Ragged)
            return y.like(2 * y.rows)

        (y, _), pullback = layer.vjp(ragged)
        layer.zero_grad()
        dx, _ = pullback(2 * y.rows)
        grads = layer.flat_grads.copy()
        (none, _), pullback = layer.vjp(ragged, outputs="none", memory_limit="least")
        layer.zero_grad()
        asked, _ = pullback(ask)
        assert none is None
        assert np.array_equal(asked.rows, dx.rows)
        assert np.array_equal(layer.flat_grads, grads)
    for name, f in (("mask", np.ones(3, bool)), ("resets", ragged.rows)):
        with pytest.raises((ValueError, TypeError), match=f"{name}: expected"):
            layer(ragged, **{name: f})


def uneven(seed: int, batch: int) -> tuple[ost.Ragged, dict[str, Any]]:
    """Sequences most of which are empty or short beside one that is long, and their flags."""
    r = np.random.default_rng(seed)
    lengths = r.integers(0, 4, batch) * (r.random(batch) < 0.4)
    if batch > 1:
        lengths[r.integers(0, batch)] = 40
    ragged = ost.Ragged(r.standard_normal((lengths.sum(), 3)).astype(np.float32), [0, *np.cumsum(lengths)])
    shares = {"resets": 0.1, "mask": 0.6, "cuts": 0.1}
    return ragged, {n: r.random(len(ragged.rows)) < s for n, s in shares.items()}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch", [1, 7, 90])
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True, "learned_state": True}, {"num_layers": 2, "learned_state": True}],
    ids=str,
)
def test_ragged_flags_are_those_of_the_table(
    options: dict[str, Any], batch: int, count: int, kernel_set: str, threads: None
) -> None:
    """Resets, masks and cuts of many empty sequences, alone and together: bit for bit as padded, in inference and training."""
    ost.set_num_threads(count)
    layer = ost.nn.LSTM(3, 10, rng=0, **options)
    ragged, every = uneven(batch, batch)
    x, r = ragged.padded(), np.random.default_rng(1)
    for names in (["mask"], ["resets"], ["cuts"], ["mask", "resets", "cuts"]):
        flags = {n: every[n] for n in names}
        padded = {n: ragged.padded(a) for n, a in flags.items()}
        for masked in ("repeat", "zero"):
            times = {n: a for n, a in flags.items() if n != "cuts"}
            rows, state = layer(ragged, **times, masked=masked)
            y, state2 = layer(x, lengths=ragged.lengths, **{n: padded[n] for n in times}, masked=masked)
            assert np.array_equal(rows.rows, ragged.flat(y))
            assert all(np.array_equal(a, b) for a, b in zip(flat(state), flat(state2)))
        for outputs, limit in (("all", None), ("last_step", None), ("all", 3), ("last_step", 3)):
            how: dict[str, Any] = {"outputs": outputs, "memory_limit": limit}
            (y, state), pullback = layer.vjp(x, lengths=ragged.lengths, **padded, **how)
            (rows, state2), pullback2 = layer.vjp(ragged, **flags, **how)
            got = rows.rows if outputs == "all" else rows
            assert np.array_equal(got, ragged.flat(y) if outputs == "all" else y)
            dy = r.standard_normal(y.shape).astype(np.float32)
            given = ragged.flat(dy) if outputs == "all" else dy
            assert_twins(layer, ragged, (pullback, dy, state), (pullback2, given, state2))


def test_ragged_flags_take_the_memory_of_real_steps() -> None:
    """One sequence of 200,000 steps beside 4,000 empty ones: a table of all steps of all sequences would take 3.8 GB."""
    pytest.importorskip("resource")
    code = """
        import resource, sys
        import numpy as np
        import ostinato as ost

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

        def sequences(steps):
            return ost.Ragged(np.ones((steps, 1), np.float32), np.repeat([0, steps], [2001, 2001]))

        layer = ost.nn.GRU(1, 4, rng=0, bidirectional=True)
        layer(sequences(10), mask=np.ones(10, bool))
        before, x = peak(), sequences(200_000)
        flags = np.arange(200_000) % 3 > 0
        y, h = layer(x, mask=flags, resets=~flags)
        assert len(x) == 4001 and h.shape == (2, 4001, 4) and not h[:, :2000].any()
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200e6


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"precision": "bfloat16"}], ids=str)
def test_empty_sequences_beside_a_long_one(options: dict[str, Any], count: int, threads: None) -> None:
    """One sequence of 200,000 steps beside 4,000 empty ones: the gradient is that of the sequence alone. A tape of all steps of all
    sequences would take 250 GB."""
    ost.set_num_threads(count)
    steps, at = 200_000 if count == 1 and not options else 20_000, 2001
    layer = ost.nn.LSTM(1, 4, rng=0, **options)
    r = np.random.default_rng(0)
    x, dy = (r.standard_normal((steps, n)).astype(np.float32) for n in (1, 4 * layer._directions))
    alone, beside = ost.Ragged(x, [0, steps]), ost.Ragged(x, np.repeat([0, steps], [at, 4002 - at]))
    results = []
    for ragged, n, limit in ((alone, 0, None), (beside, at - 1, None), (beside, at - 1, 50)):
        (_, (h, c)), pullback = layer.vjp(ragged, memory_limit=limit)
        layer.zero_grad()
        dx, (dh, dc) = pullback(ragged.like(dy), (np.ones_like(h), np.ones_like(c)))
        results.append((dx.rows, h[:, n], c[:, n], dh[:, n], dc[:, n], layer.flat_grads.copy()))
        others = np.arange(len(ragged)) != n
        assert not h[:, others].any()
        assert (dc[:, others] == 1).all()
    alone_grads = results[0][-1]
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result[:-1], results[0][:-1]))
        assert np.allclose(result[-1], alone_grads, rtol=1e-3, atol=1e-3 * np.abs(alone_grads).max())
    assert np.array_equal(results[1][-1], results[2][-1])


def test_ragged_functional_and_limits(kernel_set: str) -> None:
    """Arrays in, arrays out: the same kernels, so the same bits; a pullback serves again."""
    f, r = ost.functional, np.random.default_rng(0)
    ragged = ost.Ragged.join(SEQUENCES)
    w = [r.standard_normal(s).astype(np.float32) * 0.3 for s in ((28, 3), (28, 7), (28,), (28,))]
    flags = {n: r.random(len(ragged.rows)) < s for n, s in (("resets", 0.1), ("mask", 0.7))}
    padded = {n: ragged.padded(a) for n, a in flags.items()}
    reset = tuple(r.standard_normal((2, 7)).astype(np.float32))
    for reverse in (False, True):
        options: dict[str, Any] = {"reset_state": reset, "reverse": reverse}
        (y, state), pullback = f.lstm_vjp(ragged.padded(), *w, lengths=ragged.lengths, **padded, **options)
        dy = r.standard_normal(y.shape).astype(np.float32)
        dcells = r.standard_normal(y.shape).astype(np.float32)
        want = pullback(dy, *state, dcells=dcells, clip_step_norm=1.0)
        for limit in (None, "states", "least", 2, "1MB"):
            for given in (ragged, SEQUENCES):
                (rows, state2), back = f.lstm_vjp(given, *w, **flags, **options, memory_limit=limit)
                assert type(rows) is type(given)
                assert np.array_equal(np.concatenate(list(rows)), ragged.flat(y))
                for _ in range(2):
                    got = back(ragged.flat(dy), *state2, dcells=dcells, clip_step_norm=1.0)
                    assert np.array_equal(np.concatenate(list(got.dx)), ragged.flat(want.dx))
                    assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(got[1:], want[1:]))
            (_, state2), back = f.lstm_vjp(
                ragged.padded(), *w, lengths=ragged.lengths, **padded, **options, memory_limit=limit, outputs="all"
            )
            assert np.array_equal(back(dy, *state, dcells=dcells, clip_step_norm=1.0).dx, want.dx)
        out = np.empty((len(ragged.rows), 7), np.float32)
        rows, _ = f.lstm(ragged, *w, **flags, **options, out=out)
        assert rows.rows is out
        assert np.array_equal(out, ragged.flat(y))
    x = ragged.padded()
    (y, _), pullback = f.rnn_vjp(x, w[0][:7], w[1][:7])
    want = pullback(2 * y)
    (none, _), back = f.rnn_vjp(x, w[0][:7], w[1][:7], memory_limit=2, outputs="none")
    assert none is None
    assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(want, back(lambda t, y: 2 * y)))
    for call, words in (
        (lambda: f.rnn_vjp(x, w[0][:7], w[1][:7], outputs="last"), "outputs: expected one of 'all', 'none'"),
        (lambda: f.rnn_vjp(x, w[0][:7], w[1][:7], memory_limit="much"), "memory_limit: expected a size"),
        (lambda: f.rnn(ragged, w[0][:7], w[1][:7], lengths=[1]), "lengths: expected None with ragged"),
        (lambda: back(np.zeros((1, 1, 7), np.float32)), r"dy: expected shape \(30, 6, 7\)"),
        (lambda: back(None, np.zeros((2, 7), np.float32)), r"dh_n: expected shape \(6, 7\)"),
        (lambda: pullback(lambda t, y: y), "dy: expected an array"),
        (lambda: back.gates, "gates: expected a pullback of a pass without segments"),
        (
            lambda: f.gru_vjp(x, w[0][:21], w[1][:21], memory_limit="states")[1].gates,
            "gates: expected a pass that keeps",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


@pytest.mark.parametrize("outputs", ["all", "last"])
def test_the_trainer_takes_ragged_sequences(outputs: str) -> None:
    """Train as on padded sequences with lengths; also a mask in a batch, predictions, a loader that shuffles."""
    r = np.random.default_rng(0)
    xs = [r.standard_normal((n, 3)).astype(np.float32) for n in (5, 9, 1, 7)]
    ragged = ost.Ragged.join(xs)
    target = r.standard_normal((len(ragged.rows) if outputs == "all" else 4, 2)).astype(np.float32)
    mask = r.random(len(ragged.rows)) < 0.7
    mask[ragged.offsets[:-1]] = True
    runs = []
    for batch in (
        (ragged, target, {"mask": mask}),
        (xs, list(ragged.like(target)) if outputs == "all" else target, {"mask": list(ragged.like(mask))}),
        (
            ragged.padded(),
            ragged.padded(target) if outputs == "all" else target,
            {"mask": ragged.padded(mask), "lengths": ragged.lengths},
        ),
    ):
        model = ost.nn.Sequential(ost.nn.GRU(3, 6, rng=0), ost.nn.Linear(6, 2, rng=0))
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), outputs=outputs)
        history = trainer.fit([batch], epochs=3)
        runs.append(
            [
                np.concatenate([p.ravel() for p in model.state_dict().values()]),
                history.rows[-1]["loss"],
                trainer.evaluate([batch])["loss"],
            ]
        )
    for other in runs[1:]:
        np.testing.assert_allclose(runs[0][0], other[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(runs[0][1:], other[1:], rtol=1e-5)
    model = ost.nn.Sequential(ost.nn.GRU(3, 6, rng=0), ost.nn.Linear(6, 2, rng=0))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), outputs=outputs)
    history = trainer.fit((ragged, target), epochs=20, batch_size=2)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    y = trainer.predict(ragged, batch_size=3)
    if outputs == "last":
        assert np.array_equal(y[1], model(xs[1][:, None])[0][-1, 0])
    else:
        assert np.array_equal(y[1], model(xs[1][:, None])[0][:, 0])
        assert [a.shape for a in trainer.predict(xs)] == [(len(a), 2) for a in xs]
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1), tbptt=(2, 4))
    with pytest.raises(ValueError, match="tbptt: expected None with ragged"):
        trainer.fit([(ragged, np.zeros((len(ragged.rows), 2), np.float32))], epochs=1)
    with pytest.raises(ValueError, match="target: expected 22 rows"):
        ost.data.RaggedLoader(ragged, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no lengths beside ragged"):
        ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1)).fit([(xs, target, [1])], epochs=1)


def test_the_flow_through_ragged_sequences() -> None:
    model = ost.nn.Sequential(ost.nn.LSTM(3, 8, bidirectional=True, rng=0), ost.nn.Linear(16, 1, rng=0))
    ragged = ost.Ragged.join(SEQUENCES)
    wanted = gradient_flow(
        model, ragged.padded(), ragged.padded(np.ones((len(ragged.rows), 1), np.float32)), lengths=ragged.lengths
    )
    for given in (ragged, SEQUENCES):
        for a, b in zip(gradient_flow(model, given), wanted):
            assert np.array_equal(a.dh, b.dh)
            assert np.array_equal(a.survival, b.survival)
            assert (a.saturation, a.verdict) == (b.saturation, b.verdict)


def test_ragged_through_a_model_and_bad_offsets() -> None:
    model = ost.nn.Sequential(ost.nn.Linear(3, 4, rng=0), ost.nn.GRU(4, 6, rng=0), ost.nn.Linear(6, 2, rng=0))
    x = ost.Ragged.join(SEQUENCES)
    y, _ = model(x)
    for b, s in enumerate(SEQUENCES):
        if len(s):
            assert np.array_equal(y[b], model(s[:, None])[0][:, 0])
    (out, _), pullback = model.vjp(SEQUENCES)
    dx, _ = pullback(out)
    assert [a.shape for a in dx] == [s.shape for s in SEQUENCES]
    rows = np.zeros((7, 3), np.float32)
    assert len(ost.Ragged(rows, [0, 7])) == 1
    assert ost.Ragged(rows, [0, 7])[0].base is rows
    for offsets, words in (
        ([0, 5, 3, 7], "decrease, got 5 before 3 at position 2"),
        ([0, 6], "from 0 to N = 7"),
        ([1, 7], "from 0 to N = 7"),
        ([], "offsets"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            ost.Ragged(rows, offsets)
    with pytest.raises(ValueError, match=r"x\[1\]: expected shape \(n, 3\)"):
        ost.Ragged.join([rows, np.zeros((2, 4), np.float32)])
    with pytest.raises(ValueError, match="lengths: expected None with ragged"):
        model(x, lengths=[1])


# -- streams -----------------------------------------------------------------------------------------------------


def models() -> list[Any]:
    nn = ost.nn
    return [
        nn.Sequential(
            nn.Embedding(11, 4, rng=0),
            nn.LSTM(4, 9, 2, rng=0),
            nn.Dropout(0.5),
            nn.Activation("tanh"),
            nn.Linear(9, 3, rng=0),
        ),
        nn.Sequential(
            nn.Linear(3, 5, rng=0),
            nn.Activation("relu"),
            nn.Sequential(nn.GRU(5, 7, learned_state=True, rng=0)),
            nn.Activation("sigmoid"),
        ),
        nn.GRU(3, 6, precision="bfloat16", rng=0),
        nn.LSTM(3, 6, precision="int8", rng=0),
        nn.RNN(3, 6, dtype=np.float64, rng=0),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_stream_is_the_model_bit_for_bit(which: int, kernel_set: str) -> None:
    """Slots that join and leave: each has the outputs of its own sequence."""
    model, r = models()[which], np.random.default_rng(0)
    steps, batch = 12, 5
    ids = which == 0
    x = r.integers(0, 11, (steps, batch)) if ids else r.standard_normal((steps, batch, 3)).astype(model.dtype)
    y, state = model(x)
    stream = model.stream(batch)
    for t in range(steps):
        assert np.array_equal(stream.step(x[t]), y[t])
    assert all(np.array_equal(a, b) for a, b in zip(flat(stream.state), flat(state)))
    stream.reset()
    clock = np.zeros(batch, int)
    for _ in range(60):
        slots = r.permutation(batch)[: r.integers(0, batch + 1)]
        slots = slots[clock[slots] < steps]
        rows = x[clock[slots], slots]
        got = stream.step(rows, slots=slots)
        assert np.array_equal(got, y[clock[slots], slots])
        clock[slots] += 1
    again = int(r.integers(batch))
    stream.reset([again])
    assert np.array_equal(stream.step(x[0, [again]], slots=[again])[0], y[0, again])


def test_states_of_a_stream_are_saved_and_restored() -> None:
    model = models()[0]
    stream, other = model.stream(2), model.stream(2)
    x = np.array([[1, 2], [3, 4], [5, 6]])
    stream.step(x[0])
    kept = stream.state
    y = stream.step(x[1]).copy()
    other.state = kept
    assert np.array_equal(other.step(x[1]), y)
    whole, _ = model(x[1:2], kept)
    assert np.array_equal(whole[0], y)
    with pytest.raises(TypeError, match="state: expected a tuple of 5"):
        other.state = kept[:2]
    with pytest.raises(ValueError, match=r"state\[1\]\[0\]: expected shape"):
        other.state = (None, (np.zeros((1, 2, 9), np.float32), kept[1][1]), *kept[2:])
    assert np.array_equal(other.state[1][0], stream.state[1][0])  # nothing was taken


def test_a_stream_begins_from_the_learned_state_that_the_model_has_now() -> None:
    model = ost.nn.GRU(3, 4, learned_state=True, rng=0)
    stream = model.stream(2)
    x = np.ones((2, 3), np.float32)
    stream.step(x)
    with model.write() as p:
        for n in p:
            p[n][...] = 0.5
    with pytest.raises(RuntimeError, match=r"call stream.refresh\(\)"):
        stream.reset()
    stream.refresh()
    stream.reset([1])
    assert (stream.h[0, 1] == 0.5).all()
    assert not (stream.h[0, 0] == 0.5).any()
    assert np.array_equal(stream.step(x)[1], model(x[None])[0][0, 1])
    with pytest.raises(AttributeError):
        stream.x = 1


def test_a_stream_refuses() -> None:
    model = models()[0]
    stream = model.stream(3)
    for slots, words in (
        ([0, 3], "slots: expected numbers from 0 to 2, got 3"),
        ([1, 1], "slots: expected each slot once, got 1 twice"),
        ([-1], "numbers from 0"),
    ):
        with pytest.raises(ValueError, match=words):
            stream.step(np.zeros(len(slots), np.int64), slots=slots)
    with pytest.raises(TypeError, match="slots: expected a sequence of whole numbers"):
        stream.step(np.zeros(1, np.int64), slots=[0.5])
    with pytest.raises(ValueError, match="slots: expected numbers from 0 to 2"):
        stream.reset([5])
    with pytest.raises(ValueError, match="x: expected indices from 0 to 10, got 11"):
        stream.step(np.array([0, 11, 0]))
    assert all((s == 0).all() for s in flat(stream.state))
    with pytest.raises(ValueError, match="stream: expected a layer of one direction"):
        ost.nn.Sequential(ost.nn.GRU(3, 4, bidirectional=True)).stream()

    class Own(ost.nn.Layer):
        pass

    with pytest.raises(TypeError, match=r"stream: expected layers of ostinato\.nn, got a Own"):
        ost.nn.Sequential(Own(), ost.nn.GRU(3, 4)).stream()
    with pytest.raises(TypeError, match="something to compute"):
        ost.nn.Sequential(ost.nn.Dropout(0.5)).stream()


def test_steps_allocate_nothing() -> None:
    stream = models()[0].stream(4)
    stream.x[...] = 3
    stream.step()
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for _ in range(1000):
        stream.step()
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    grown = sum(
        d.size_diff for d in after.compare_to(before, "filename") if "tracemalloc" not in d.traceback[0].filename
    )
    assert grown < 2000


# -- the Trainer -------------------------------------------------------------------------------------------------


def model_of(seed: int = 0, **options: Any) -> Any:
    return ost.nn.Sequential(ost.nn.GRU(2, 8, rng=seed, **options), ost.nn.Linear(8, 1, rng=seed))


def data(steps: int = 40, n: int = 6) -> Any:
    r = np.random.default_rng(0)
    x = r.standard_normal((steps, n, 2)).astype(np.float32)
    return x, x[..., :1].cumsum(0) / 10


def fitted(batches: Any, model: Any = None, **options: Any) -> Any:
    model = model_of() if model is None else model
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.05), **options)
    history = trainer.fit(batches, epochs=2, progress=False)
    return model.flat.copy(), history


def test_the_trainer_takes_a_limit_and_last_outputs() -> None:
    x, target = data()
    plain, _ = fitted([(x, target)])
    assert np.array_equal(fitted([(x, target)], memory_limit="least")[0], plain)
    ends = [(x, target[-1], None)]
    last, _ = fitted(ends, outputs="last")
    assert np.array_equal(fitted(ends, outputs="last", memory_limit=4)[0], last)

    class Own(ost.nn.Activation):  # not known to leave the steps apart: it is given all of them
        pass

    class Whole(ost.nn.Layer):
        def __call__(self, y: Any) -> Any:
            return y

        def vjp(self, y: Any, *, rng: Any = None) -> Any:
            return y, self._pullback(lambda grads, dy, need_dx: dy)

    model = ost.nn.Sequential(ost.nn.GRU(2, 8, rng=0), ost.nn.Linear(8, 1, rng=0), Whole())
    np.testing.assert_allclose(fitted(ends, model, outputs="last")[0], last, rtol=1e-4, atol=1e-6)


def test_the_trainer_takes_resets_and_masks() -> None:
    x, target = data()
    r = np.random.default_rng(1)
    mask, resets = r.random((40, 6)) < 0.7, r.random((40, 6)) < 0.1
    plain, _ = fitted([(x, target)])
    other, _ = fitted([(x, target, {"resets": resets})])
    assert not np.array_equal(plain, other)
    masked, _ = fitted([(x, target, {"mask": mask})])
    spoilt = target.copy()
    spoilt[~mask] = np.nan  # what does not count may hold anything
    assert np.array_equal(fitted([(x, spoilt, {"mask": mask})])[0], masked)
    with pytest.raises(
        ValueError, match="data: expected lengths, resets, mask, masked and weights in the third place, got"
    ):
        fitted([(x, target, {"reset": resets})])


def test_truncated_backpropagation() -> None:
    """Against windows by hand: the gradient of the last k1 losses through the last k2 steps, the state carried on."""
    x, target = data(20)
    model = model_of()
    got, _ = fitted([(x, target)], model, tbptt=(20, 20))
    assert np.array_equal(got, fitted([(x, target)])[0])
    for k1, k2 in ((5, 5), (5, 8), (7, 20), (4, 6)):
        hand, optimizer = model_of(), ost.optim.SGD(0.05)
        for _ in range(2):
            states: Any = {0: None}
            for done in range(0, 20, k1):
                end = min(done + k1, 20)
                start = max(0, end - k2) if done else 0
                if start not in states:
                    begin = max(t for t in states if t < start)
                    states[start] = hand(x[begin:start], states[begin])[1]
                (y, states[end]), pullback = hand.vjp(x[start:end], states[start])
                _, d = ost.losses.MSE()(y[done - start :], target[done:end])
                dy = np.zeros_like(y)
                dy[done - start :] = d
                hand.zero_grad()
                pullback(dy)
                optimizer.step(hand)
        got, history = fitted([(x, target)], tbptt=(k1, k2))
        np.testing.assert_allclose(got, hand.flat, rtol=1e-5, atol=1e-6)
        assert len(history.rows) == 2
    lengths, resets = np.array([20, 3, 11, 6, 1, 20]), np.random.default_rng(0).random((20, 6)) < 0.1
    assert np.isfinite(fitted([(x, target, {"lengths": lengths, "resets": resets})], tbptt=(4, 6))[0]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tbptt": (5, 3)}, "tbptt: expected k1 <= k2"),
        ({"tbptt": (0, 3)}, "tbptt: expected a whole number of at least 1"),
        ({"tbptt": 5}, "tbptt: expected a pair"),
        ({"tbptt": (2, 2), "outputs": "last"}, 'tbptt: expected outputs="all"'),
        ({"clip_step_norm": -1.0}, "clip_step_norm: expected a number above 0"),
        ({"memory_limit": "12XB"}, "memory_limit: expected a size"),
    ],
    ids=str,
)
def test_the_trainer_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        ost.Trainer(model_of(), ost.losses.MSE(), ost.optim.SGD(0.1), **options)
    with pytest.raises(ValueError, match="tbptt: expected recurrent layers of one direction"):
        ost.Trainer(
            model_of(bidirectional=True) if False else ost.nn.GRU(2, 3, bidirectional=True),
            ost.losses.MSE(),
            ost.optim.SGD(0.1),
            tbptt=(2, 2),
        )
    with pytest.raises(ValueError, match="memory_limit: expected a model with recurrent layers"):
        ost.Trainer(ost.nn.Linear(2, 3), ost.losses.MSE(), ost.optim.SGD(0.1), memory_limit="1MB")


def test_clipped_steps_keep_a_trainer_going() -> None:
    x, target = data()
    plain, _ = fitted([(x, target)])
    assert not np.array_equal(fitted([(x, target)], clip_step_norm=1e-3)[0], plain)
    assert np.array_equal(fitted([(x, target)], clip_step_norm=1e6, clip_step_value=1e6)[0], plain)


# -- the gradient's way ------------------------------------------------------------------------------------------


def test_flow_is_a_product_of_jacobians() -> None:
    """A tanh network by hand, in float64: dL/dh_t = R^T diag(1 - h^2) dL/dh_{t+1} + dy_t."""
    layer = ost.nn.RNN(3, 6, dtype=np.float64, rng=0)
    r = np.random.default_rng(0)
    x, dy = r.standard_normal((15, 4, 3)), r.standard_normal((15, 4, 6))
    y, _ = layer(x)
    weight = layer.parameters()["weight_hh_l0"]
    flow = next(iter(gradient_flow(layer, x, dy)))
    d, want = np.zeros((4, 6)), []
    for t in reversed(range(15)):
        d = d + dy[t]
        want.insert(0, np.linalg.norm(d))
        d = (d * (1 - y[t] ** 2)) @ weight
    np.testing.assert_allclose(flow.dh, want, rtol=1e-12)
    d = np.random.default_rng(0).standard_normal((4, 6))
    left = [np.linalg.norm(d)]
    for t in reversed(range(1, 15)):
        d = (d * (1 - y[t] ** 2)) @ weight
        left.append(np.linalg.norm(d))
    np.testing.assert_allclose(flow.survival, np.array(left) / left[0], rtol=1e-12)
    assert flow.reach == next(k for k, v in enumerate(left) if v / left[0] < 0.01)
    assert flow.dc is None
    assert not layer.flat_grads.any()
    assert layer._watch is None


def test_flow_of_an_lstm_against_the_reference() -> None:
    from ostinato import reference

    layer = ost.nn.LSTM(3, 6, dtype=np.float64, rng=0)
    r = np.random.default_rng(0)
    x, dy, lengths = r.standard_normal((15, 4, 3)), r.standard_normal((15, 4, 6)), np.array([15, 2, 9, 15])
    weights = reference.Weights(
        *(np.array(layer.parameters()[n + "_l0"]) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    )
    run = reference.forward("lstm", x, weights, lengths=lengths)
    want = np.sqrt(reference.backward(run, dy).flow)
    flow = next(iter(gradient_flow(layer, x, dy, lengths=lengths)))
    np.testing.assert_allclose(flow.dh, want[:, 0], rtol=1e-10)
    np.testing.assert_allclose(flow.dc, want[:, 1], rtol=1e-10)


def test_flow_leaves_the_training_alone() -> None:
    layer = ost.nn.GRU(2, 4, 2, dropout=0.5, rng=0)
    before = layer._rng.bit_generator.state
    gradient_flow(layer, np.zeros((5, 2, 2), np.float32))
    assert layer._rng.bit_generator.state == before
    for bad in ({"memory_limit": "1MB"}, {"outputs": "none"}):
        with pytest.raises(ValueError, match="expected none, since all steps are looked at"):
            gradient_flow(layer, np.zeros((5, 2, 2), np.float32), **bad)
    assert "no steps" in str(gradient_flow(layer, np.zeros((0, 2, 2), np.float32)))
    (y, _), pullback = layer.vjp(np.zeros((5, 2, 2), np.float32))
    pullback(y)
    with pytest.raises(TypeError, match="a pullback that has not been used"):
        _ = pullback.gates


def test_nested_models_take_the_same() -> None:
    nn = ost.nn
    x, lengths = np.ones((6, 2, 3), np.float32), [6, 2]
    x[2:, 1] = np.nan
    models = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4, rng=0)), nn.GRU(4, 5, rng=0), nn.Sequential(nn.Linear(5, 2, rng=0))
    )
    for outputs in ("all", "last"):
        (y, _), pullback = models.vjp(x, lengths=lengths, outputs=outputs)
        models.zero_grad()
        pullback(np.ones_like(y))
        assert np.isfinite(models.flat_grads).all()
    plain = nn.Sequential(nn.Linear(3, 4, rng=0))
    with pytest.raises(TypeError, match="foo: expected one of lengths"):
        models(x, foo=3)
    with pytest.raises(ValueError, match="memory_limit: expected None for a model without recurrent layers"):
        plain.vjp(x, memory_limit="1MB")
    tiny = nn.GRU(3, 4, rng=0)
    (y, _), pullback = tiny.vjp(np.ones((9, 2, 3), np.float32), clip_step_value=1e-60)
    dx, _ = pullback(np.ones_like(y))
    assert np.abs(dx).max() < 1e-30


def test_flow_names_what_is_wrong(tmp_path: Any) -> None:
    gru = ost.nn.GRU(2, 16, 2, bidirectional=True, rng=0)
    with gru.write() as p:
        p["bias_ih_l0"][16:32] = 100.0  # z = 1: the state is kept, whatever comes
    model = ost.nn.Sequential(ost.nn.Linear(2, 2, rng=0), gru)
    x = np.random.default_rng(0).standard_normal((30, 4, 2)).astype(np.float32)
    flow = gradient_flow(model, x)
    first = flow.layers[0]
    assert [layer.name for layer in flow] == ["1.l0", "1.l0_reverse", "1.l1", "1.l1_reverse"]
    assert first.saturation["z"] == 1.0
    assert first.dead.size == 16
    assert first.reach is None
    assert "gate z is saturated in 100% of places" in str(flow)
    assert "16 of 16 units hardly move" in first.verdict
    pytest.importorskip("matplotlib")
    flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 1000
    with pytest.raises(TypeError, match="model: expected recurrent layers"):
        gradient_flow(ost.nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match="threshold: expected a number between 0 and 1, got 2"):
        gradient_flow(gru, x, threshold=2)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "peephole", "gru", "before"])
def test_gates_made_again_have_their_bits(cell: str, precision: str, kernel_set: str, threads: None) -> None:
    """Where units, lanes or layers are split over threads: as with the whole tape."""
    make, options = {
        "rnn": (ost.nn.RNN, {}),
        "lstm": (ost.nn.LSTM, {}),
        "peephole": (ost.nn.LSTM, {"peephole": True}),
        "gru": (ost.nn.GRU, {}),
        "before": (ost.nn.GRU, {"reset_after": False}),
    }[cell]
    dtype = np.float64 if precision == "float64" else np.float32
    ost.set_num_threads(2)
    r = np.random.default_rng(0)
    for steps, batch, hidden, more in (
        (20, 1, 256, {}),
        (300, 1, 24, {"num_layers": 2}),
        (9, 20, 40, {"bidirectional": True}),
    ):
        layer = make(5, hidden, rng=0, dtype=dtype, precision=precision, **options, **more)
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
    """dy as a function where all outputs are kept, as an array where none are; one tape at a time; no step at all."""
    gru, f = ost.nn.GRU(3, 5, rng=0), ost.functional
    x = ost.Ragged.join(
        [np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32) for n in (600, 0, 301, 700)]
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
            ({"h0": h0[:1]}, r"h0: expected shape \(2, 5\)"),
            ({"c0": h0[:, :1]}, "c0: expected shape"),
        ):
            with pytest.raises(ValueError, match=words):
                f.lstm_vjp(empty, *w, **bad, memory_limit="least")
    with pytest.raises(ValueError, match="x: expected shape"):
        f.lstm_vjp(np.zeros((0, 2, 4), np.float32), *w, memory_limit="least")
    with pytest.raises(TypeError, match="dcells: expected None for the cell gru"):
        f.gru_vjp(x, w[0][:15], w[1][:15], memory_limit=2)[1](dcells=np.zeros((700, 4, 5), np.float32))


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


def test_what_is_wrong_with_ragged_is_told() -> None:
    x = ost.Ragged.join(SEQUENCES)
    model = ost.nn.Sequential(ost.nn.GRU(3, 4, rng=0), ost.nn.Linear(4, 2, rng=0))
    offsets = np.array([0, 2, 5])
    own = ost.Ragged(np.zeros((5, 3), np.float32), offsets)
    offsets[1] = 4
    assert own.offsets.tolist() == [0, 2, 5]
    (_, _), pullback = model.vjp(x, outputs="last")
    dx, _ = pullback(np.ones((6, 2), np.float32))
    assert isinstance(dx, ost.Ragged)
    (_, _), pullback = model.vjp(SEQUENCES, outputs="last")
    assert isinstance(pullback(np.ones((6, 2), np.float32))[0], list)
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.1))
    history = trainer.fit((SEQUENCES, [np.zeros((len(s), 2), np.float32) for s in SEQUENCES]), epochs=2, batch_size=3)
    assert history.rows[-1]["step"] == 4
    first = ost.nn.Sequential(ost.nn.GRU(3, 4, batch_first=True, rng=0))
    ost.Trainer(first, ost.losses.MSE(), ost.optim.SGD(0.1)).fit(
        [(x, np.zeros((len(x.rows), 4), np.float32), {"mask": np.ones(len(x.rows), bool)})], epochs=1
    )
    with pytest.warns(UserWarning, match="x: converted once"):
        trainer.fit((x.like(x.rows.astype(np.float64)), np.zeros((len(x.rows), 2), np.float32)), epochs=1)
    flags = [np.ones(len(s), bool) for s in SEQUENCES]
    for call, words in (
        (lambda: model(x, mask=flags[:-1]), "mask: expected sequences as long as those of x"),
        (lambda: model(x, mask=[*flags[:-1], np.ones(30)]), r"mask\[5\]: expected shape \(n\) of bool as mask\[0\]"),
        (lambda: model(x, mask=[]), "mask: expected at least one sequence"),
        (lambda: ost.nn.Sequential(ost.nn.Linear(3, 2, rng=0))(x, lengths=[1]), "lengths: expected None with ragged"),
        (
            lambda: trainer.fit([(x, np.zeros((3, 2), np.float32))], epochs=1),
            "target: expected 54 rows, as many as x has",
        ),
        (
            lambda: trainer.fit((x, np.zeros((54, 2), np.float32), [1]), epochs=1),
            "data: expected no lengths beside ragged",
        ),
        (
            lambda: (
                model.layers[0]
                ._packed(True)
                .forward(
                    np.zeros((2, 2, 3), np.float32),
                    None,
                    None,
                    np.array([1, 2]),
                    False,
                    None,
                    False,
                    0.0,
                    0,
                    order=np.array([0, 5]),
                )
            ),
            "order: expected each number below B = 2 once, got 5",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_an_input_that_repeats_itself_in_memory() -> None:
    """x may be a view of any strides; its gradient has memory of its own."""
    r = np.random.default_rng(0)
    x = np.broadcast_to(r.standard_normal((9, 1, 3)), (9, 2, 3))
    w, u, dy = r.standard_normal((4, 3)), r.standard_normal((4, 1)), r.standard_normal((9, 2, 1))
    want = ost.functional.lstm_vjp(x, w, u)[1](dy).dx
    assert np.array_equal(ost.functional.lstm_vjp(x, w, u, memory_limit=2)[1](dy).dx, want)
