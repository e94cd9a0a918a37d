"""Ragged sequences: the bits of padded ones, without padding and without its memory."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import SEQUENCES, STACKS, flat


def assert_twins(layer: Any, ragged: ost.Ragged, *calls: Any) -> None:
    """The pullbacks of a padded and of a ragged call, each with dy and its states.

    States and gradients have the same bits.
    """
    results = []
    for pullback, dy, state in calls:
        layer.zero_grad()
        dx, dstate = pullback(dy, state)
        dx = dx.rows if isinstance(dx, ost.Ragged) else ragged.flat(dx)
        results.append([dx, *flat(dstate), *flat(state), layer.flat_grads.copy()])
    assert all(np.array_equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 3, "dropout": 0.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_ragged_is_padded_without_padding(
    make: Any, options: dict[str, Any], kernel_set: str, threads: None
) -> None:
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
        assert all(
            np.array_equal(a, b) for a, b in zip(flat((state, dstate)), flat((state2, dstate2)))
        )
        assert np.array_equal(grads, layer.flat_grads)


@pytest.mark.parametrize("options", [{}, *STACKS[2:4]], ids=str)
@pytest.mark.parametrize("make", [ost.nn.LSTM, ost.nn.GRU])
def test_ragged_takes_every_option(
    make: Any, options: dict[str, Any], kernel_set: str, threads: None
) -> None:
    """Resets, masks, cuts, the last outputs and bounds of memory: bit for bit as padded."""
    layer = make(3, 20, rng=0, **{**options, "batch_first": False})
    ragged, r = ost.Ragged.join(SEQUENCES), np.random.default_rng(0)
    flags = {
        n: r.random(len(ragged.rows)) < s
        for n, s in (("resets", 0.1), ("mask", 0.7), ("cuts", 0.1))
    }
    padded = {n: ragged.padded(f) for n, f in flags.items()}
    x = ragged.padded()
    assert np.array_equal(ragged.flat(x), ragged.rows)
    for outputs in ("all", "last"):
        for limit in (None, "states", "least", 2):
            (y, state), pullback = layer.vjp(
                x, lengths=ragged.lengths, outputs=outputs, memory_limit=limit, rng=1, **padded
            )
            (rows, state2), pullback2 = layer.vjp(
                ragged, outputs=outputs, memory_limit=limit, rng=1, **flags
            )
            dy = r.standard_normal(y.shape).astype(np.float32)
            given = dy if outputs == "last" else ragged.flat(dy)
            assert np.array_equal(
                rows if outputs == "last" else rows.rows, y if outputs == "last" else ragged.flat(y)
            )
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
    ragged = ost.Ragged(
        r.standard_normal((lengths.sum(), 3)).astype(np.float32), [0, *np.cumsum(lengths)]
    )
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
    """Resets, masks and cuts of many empty sequences, alone and together.

    Bit for bit as padded, in inference and training.
    """
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
            y, state2 = layer(
                x, lengths=ragged.lengths, **{n: padded[n] for n in times}, masked=masked
            )
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
    """One sequence of 200,000 steps beside 4,000 empty ones.

    A table of all steps of all sequences would take 3.8 GB.
    """
    pytest.importorskip("resource")
    code = """
        import resource, sys
        import numpy as np
        import ostinato as ost

        def peak():
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

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
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200e6


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"precision": "bfloat16"}], ids=str
)
def test_empty_sequences_beside_a_long_one(
    options: dict[str, Any], count: int, threads: None
) -> None:
    """One sequence of 200,000 steps beside 4,000 empty ones.

    The gradient is that of the sequence alone. A tape of all steps of all sequences would take 250
    GB.
    """
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
        assert np.allclose(
            result[-1], alone_grads, rtol=1e-3, atol=1e-3 * np.abs(alone_grads).max()
        )
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
        (y, state), pullback = f.lstm_vjp(
            ragged.padded(), *w, lengths=ragged.lengths, **padded, **options
        )
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
                    assert all(
                        (a is None and b is None) or np.array_equal(a, b)
                        for a, b in zip(got[1:], want[1:])
                    )
            (_, state2), back = f.lstm_vjp(
                ragged.padded(),
                *w,
                lengths=ragged.lengths,
                **padded,
                **options,
                memory_limit=limit,
                outputs="all",
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
    assert all(
        (a is None and b is None) or np.array_equal(a, b)
        for a, b in zip(want, back(lambda t, y: 2 * y))
    )
    for call, words in (
        (
            lambda: f.rnn_vjp(x, w[0][:7], w[1][:7], outputs="last"),
            "outputs: expected one of 'all', 'none'",
        ),
        (
            lambda: f.rnn_vjp(x, w[0][:7], w[1][:7], memory_limit="much"),
            "memory_limit: expected a size",
        ),
        (
            lambda: f.rnn(ragged, w[0][:7], w[1][:7], lengths=[1]),
            "lengths: expected None with ragged",
        ),
        (lambda: back(np.zeros((1, 1, 7), np.float32)), r"dy: expected shape \(30, 6, 7\)"),
        (
            lambda: back(None, np.zeros((2, 7), np.float32)),
            r"dh_n: expected shape \(B, H\) = \(6, 7\)",
        ),
        (lambda: pullback(lambda t, y: y), "dy: expected an array"),
        (lambda: back.gates, "gates: expected a pullback of a pass without segments"),
        (
            lambda: f.gru_vjp(x, w[0][:21], w[1][:21], memory_limit="states")[1].gates,
            "gates: expected a pass that keeps",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


def test_ragged_through_a_model_and_bad_offsets() -> None:
    model = ost.nn.Sequential(
        ost.nn.Linear(3, 4, rng=0), ost.nn.GRU(4, 6, rng=0), ost.nn.Linear(6, 2, rng=0)
    )
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
    history = trainer.fit(
        (SEQUENCES, [np.zeros((len(s), 2), np.float32) for s in SEQUENCES]), epochs=2, batch_size=3
    )
    assert history.rows[-1]["step"] == 4
    first = ost.nn.Sequential(ost.nn.GRU(3, 4, batch_first=True, rng=0))
    ost.Trainer(first, ost.losses.MSE(), ost.optim.SGD(0.1)).fit(
        [(x, np.zeros((len(x.rows), 4), np.float32), {"mask": np.ones(len(x.rows), bool)})],
        epochs=1,
    )
    with pytest.warns(UserWarning, match="x: converted once"):
        trainer.fit(
            (x.like(x.rows.astype(np.float64)), np.zeros((len(x.rows), 2), np.float32)), epochs=1
        )
    flags = [np.ones(len(s), bool) for s in SEQUENCES]
    for call, words in (
        (lambda: model(x, mask=flags[:-1]), "mask: expected sequences as long as those of x"),
        (
            lambda: model(x, mask=[*flags[:-1], np.ones(30)]),
            r"mask\[5\]: expected shape \(n\) of bool as mask\[0\]",
        ),
        (lambda: model(x, mask=[]), "mask: expected at least one sequence"),
        (
            lambda: ost.nn.Sequential(ost.nn.Linear(3, 2, rng=0))(x, lengths=[1]),
            "lengths: expected None with ragged",
        ),
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
                    order=np.array([0, 5]),
                )
            ),
            "order: expected each number below B = 2 once, got 5",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def own() -> ost.Ragged:
    return ost.Ragged(np.arange(1.0, 7).reshape(6, 1), [0, 2, 2, 6])


def test_rows_and_lists_of_every_kind() -> None:
    x = own()
    longer = np.concatenate([x.padded(), np.ones((3, 3, 1))])
    assert np.array_equal(x.flat(longer), x.rows)
    assert np.array_equal(x.padded(2 * x.rows), 2 * x.padded())
    (y, pullback) = ost.vjp(lambda a: (x.flat(a) ** 2).sum(), x.padded())
    assert y == (x.rows**2).sum()
    assert np.array_equal(pullback(), 2 * x.padded())
    for joined in (ost.Ragged.join(s for s in x), ost.Ragged.join(x), ost.Ragged.join(tuple(x))):
        assert np.array_equal(joined.rows, x.rows)
        assert np.array_equal(joined.offsets, x.offsets)


COUNT = "rows: expected 6 rows, as many as the sequences have, got"
SHAPE = "padded: expected shape (T, B, ...) with T >= 4 and B = 3, got"
WRONG: dict[str, tuple[Any, str, Any]] = {
    "one row": (ValueError, f"{COUNT} shape (1, 1)", lambda: own().padded(np.ones((1, 1)))),
    "five rows": (ValueError, f"{COUNT} shape (5,)", lambda: own().padded(np.ones(5))),
    "a number": (ValueError, f"{COUNT} shape ()", lambda: own().padded(np.ones(()))),
    "rows of like": (ValueError, f"{COUNT} shape (5,)", lambda: own().like(np.ones(5))),
    "sequences of like": (ValueError, f"{COUNT} 3 sequences", lambda: own().like(own())),
    "batch first": (ValueError, f"{SHAPE} (3, 4)", lambda: own().flat(np.ones((3, 4)))),
    "too short": (ValueError, f"{SHAPE} (3, 3)", lambda: own().flat(np.ones((3, 3)))),
    "too wide": (ValueError, f"{SHAPE} (4, 4)", lambda: own().flat(np.ones((4, 4)))),
    "one axis": (ValueError, f"{SHAPE} (6,)", lambda: own().flat(np.ones(6))),
    "a list": (TypeError, "padded: expected a numpy.ndarray", lambda: own().flat([[1]])),  # type: ignore[arg-type]
    "uneven offsets": (
        TypeError,
        "offsets: expected a sequence of whole numbers, got [[0], [1, 2]]",
        lambda: ost.Ragged(np.ones(3), [[0], [1, 2]]),  # type: ignore[list-item]
    ),
    "join of one array": (
        TypeError,
        "x: expected a list of arrays, got one array of shape (2, 3); use list(x) if",
        lambda: ost.Ragged.join(np.ones((2, 3))),
    ),
    "join of a number": (
        TypeError,
        "x: expected a list of arrays, got int",
        lambda: ost.Ragged.join(5),
    ),
    "join of nothing": (
        ValueError,
        "x: expected at least one sequence, got none",
        lambda: ost.Ragged.join(s for s in ()),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_and_lists_that_do_not_fit(case: str) -> None:
    error, words, call = WRONG[case]
    with pytest.raises(error, match=re.escape(words)):
        call()
