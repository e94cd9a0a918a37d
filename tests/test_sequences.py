"""Lengths, resets, masks, what happens inside, the gradient on its way.

Against the reference and against pieces run apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    CELLS,
    NORMS,
    arrays_of,
    assert_close,
    cast,
    names_of,
    numeric_gradient,
    options_of,
    output_size,
    random_weights,
    slack,
    widened,
)
from ostinato import reference

DTYPES = [np.float32, np.float64]


class Problem:
    """One layer and direction with everything that can be asked of it, also in float64."""

    def __init__(
        self, cell: str, dtype: Any, sizes: tuple[int, int, int, int], seed: int = 0
    ) -> None:
        self.cell, self.dtype = cell, dtype
        self.steps, self.batch, inputs, hidden = sizes
        r = self.rng = np.random.default_rng(seed)
        self.weights = cast(random_weights(cell, inputs, hidden, r), dtype)
        self.exact = widened(cell, self.weights)
        self.cells = cell.startswith("lstm")

        def draw(*shape: int) -> Any:
            return (r.normal(size=shape) * 0.5).astype(dtype)

        size = output_size(cell, hidden)
        self.x, self.dy, self.dcells = (
            draw(self.steps, self.batch, n) for n in (inputs, size, hidden)
        )
        self.h0, self.c0, self.dh, self.dc = (
            draw(self.batch, n) for n in (size, hidden, size, hidden)
        )
        self.restart = draw(size), draw(hidden)

    def run(self, reverse: bool = False, **options: Any) -> Any:
        """functional's forward and pullback."""
        family = self.cell.split("_")[0]
        more = {"reverse": reverse, **options_of(self.cell, self.weights)}
        f = getattr(ost.functional, family + "_vjp")
        state = (self.h0, self.c0) if self.cells else (self.h0,)
        reset_state = self.restart if self.cells else self.restart[0]
        return f(self.x, *self.weights[:4], *state, reset_state=reset_state, **more, **options)

    def hold(
        self,
        times: dict[str, Any],
        control: dict[str, Any] | None = None,
        reverse: bool = False,
        dcells: bool = True,
    ) -> None:
        """Against the reference."""
        control, loose = control or {}, slack(self.cell)
        (y, state), pullback = self.run(reverse, **times)
        h_n, c_n = state if self.cells else (state, None)
        d = (self.dy, self.dh, self.dc) if self.cells else (self.dy, self.dh)
        dcells = dcells and self.cells
        got = pullback(*d, **({"dcells": self.dcells} if dcells else {}), **control)
        wide = self.x.astype(np.float64)
        repeat = times.get("masked", "repeat") == "repeat"
        plain = {k: v for k, v in times.items() if k != "masked"}
        run = reference.forward(
            self.cell,
            wide,
            self.exact,
            self.h0,
            self.c0 if self.cells else None,
            reverse=reverse,
            repeat=repeat,
            restart=self.restart,
            **plain,
        )
        assert_close(y, run.y, "y", loose)
        assert_close(h_n, run.h_n, "h_n", loose)
        if c_n is not None:
            assert_close(c_n, run.c_n, "c_n", loose)
            assert_close(pullback.cells, run.cells, "cells", loose)
        g = reference.backward(
            run,
            self.dy.astype(np.float64),
            self.dh,
            self.dc if self.cells else None,
            dcells=self.dcells.astype(np.float64) if dcells else None,
            clip_value=control.get("clip_step_value", 0.0),
            clip_norm=control.get("clip_step_norm", 0.0),
            cuts=control.get("cuts"),
        )
        assert_close(got.dx, g.x, "dx", 4 * loose)
        assert_close(got.dh0, g.h0, "dh0", 4 * loose)
        if self.cells:
            assert_close(got.dc0, g.c0, "dc0", 4 * loose)
        for name in names_of(self.exact):
            if getattr(g.weights, name) is not None:
                of = getattr(got.dlayer_norm, name) if name in NORMS else getattr(got, "d" + name)
                assert_close(of, getattr(g.weights, name), "d" + name, 8 * loose)
        if "resets" in times:
            assert_close(got.dreset_h, g.restart[0], "dreset_h", 8 * loose)
            if self.cells:
                assert_close(got.dreset_c, g.restart[1], "dreset_c", 8 * loose)


def flags(p: Problem, share: float) -> Any:
    return p.rng.random((p.steps, p.batch)) < share


SIZES = [(9, 5, 3, 18), (30, 21, 4, 40), (3, 1, 2, 3)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_resets_and_masks(
    cell: str, dtype: Any, sizes: Any, reverse: bool, kernel_set: str
) -> None:
    p = Problem(cell, dtype, sizes)
    lengths = p.rng.integers(0, p.steps + 1, p.batch)
    resets, mask = flags(p, 0.2), flags(p, 0.7)
    p.hold({"lengths": lengths}, reverse=reverse)
    p.hold({"resets": resets}, reverse=reverse)
    p.hold({"mask": mask}, reverse=reverse)
    p.hold({"mask": mask, "masked": "zero"}, reverse=reverse)
    p.hold({"mask": mask, "resets": resets, "lengths": lengths}, reverse=reverse)
    p.hold({"mask": np.zeros_like(mask), "resets": resets}, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_control_of_the_gradient(cell: str, dtype: Any, reverse: bool, kernel_set: str) -> None:
    p = Problem(cell, dtype, (12, 7, 3, 35))
    p.dy *= 3
    cuts, resets = flags(p, 0.2), flags(p, 0.1)
    p.hold({}, {"clip_step_value": 0.4}, reverse)
    p.hold({}, {"clip_step_norm": 1.5}, reverse)
    p.hold({}, {"cuts": cuts}, reverse)
    both = {"clip_step_value": 0.8, "clip_step_norm": 2.0, "cuts": cuts}
    p.hold({"lengths": p.rng.integers(0, 13, 7), "resets": resets}, both, reverse)


@pytest.mark.parametrize("axis", ["units", "rows"])
@pytest.mark.parametrize("cell", CELLS)
def test_large_enough_for_threads(cell: str, axis: str, kernel_set: str, threads: None) -> None:
    """As in test_kernels: hidden units over three threads (B = 2), batch rows (B = 45)."""
    ost.set_num_threads(3)
    p = Problem(cell, np.float32, (30, 2, 100, 200) if axis == "units" else (12, 45, 60, 90))
    times = {
        "lengths": p.rng.integers(0, p.steps + 1, p.batch),
        "resets": flags(p, 0.1),
        "mask": flags(p, 0.8),
    }
    p.hold(times, {"cuts": flags(p, 0.1), "clip_step_value": 1.0})
    p.hold(times, {"clip_step_norm": 2.0})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_are_the_pieces_run_apart(
    cell: str, reverse: bool, kernel_set: str, threads: None
) -> None:
    """Bit for bit in y, states, dx and dstate."""
    ost.set_num_threads(2)
    p = Problem(cell, np.float32, (40, 6, 5, 37))
    resets = np.zeros((40, 6), bool)
    resets[[7, 8, 25]] = True
    (y, state), pullback = p.run(reverse, resets=resets)
    state = state if p.cells else (state,)
    d = (p.dy, p.dh, p.dc) if p.cells else (p.dy, p.dh)
    got = pullback(*d)
    pieces = [(0, 7), (7, 8), (8, 25), (25, 40)]
    first, last = (pieces[-1], pieces[0]) if reverse else (pieces[0], pieces[-1])
    dreset = np.zeros_like(p.restart[0])
    x, dy, h0, c0 = p.x, p.dy, p.h0, p.c0
    for piece in pieces:
        p.x, rows = x[slice(*piece)], slice(*piece)
        p.h0, p.c0 = (h0, c0) if piece == first else (np.tile(s, (6, 1)) for s in p.restart)
        (y1, state1), pullback1 = p.run(reverse)
        none = [None] * (1 + p.cells)
        g = pullback1(dy[rows], *(d[1:] if piece == last else none))
        assert np.array_equal(y1, y[rows])
        assert np.array_equal(g.dx, got.dx[rows])
        if piece == last:
            assert all(
                np.array_equal(a, b) for a, b in zip(state1 if p.cells else (state1,), state)
            )
        if piece == first:
            assert np.array_equal(g.dh0, got.dh0)
            assert not p.cells or np.array_equal(g.dc0, got.dc0)
        else:
            dreset += g.dh0.sum(0)
    assert_close(got.dreset_h, dreset.astype(np.float64), "dreset_h", 8)


@pytest.mark.parametrize("cell", CELLS)
def test_bits_with_lengths_do_not_depend_on_threads_or_batch_composition(
    cell: str, kernel_set: str, threads: None
) -> None:
    p = Problem(cell, np.float32, (25, 23, 6, 50))
    lengths, resets = p.rng.integers(0, 26, 23), flags(p, 0.1)
    results = []
    for n in (1, 2, 3):
        ost.set_num_threads(n)
        (y, _), pullback = p.run(lengths=lengths, resets=resets)
        results.append((y, *arrays_of(pullback(p.dy, dcells=p.dcells if p.cells else None))))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
    one = slice(11, 12)
    p.x, p.h0, p.c0 = p.x[:, one], p.h0[one], p.c0[one]
    (y1, _), pullback = p.run(lengths=lengths[one], resets=resets[:, one])
    g = pullback(p.dy[:, one], dcells=p.dcells[:, one] if p.cells else None)
    assert np.array_equal(y1, results[0][0][:, one])
    assert np.array_equal(g.dx, results[0][1][:, one])


@pytest.mark.parametrize("cell", CELLS)
def test_padding_may_hold_anything(cell: str, kernel_set: str) -> None:
    p = Problem(cell, np.float32, (9, 5, 3, 18))
    lengths, mask = np.array([9, 0, 4, 6, 1]), flags(p, 0.6)
    on = mask & (np.arange(9)[:, None] < lengths)
    (y, _), pullback = p.run(lengths=lengths, mask=mask, masked="zero")
    clean = pullback(p.dy)
    p.x[~on], p.dy[~on] = np.nan, np.nan
    (y2, _), pullback = p.run(lengths=lengths, mask=mask, masked="zero")
    g = pullback(p.dy)
    assert np.array_equal(y, y2)
    assert (y[~on] == 0).all()
    assert (g.dx[~on] == 0).all()
    assert all(np.array_equal(a, b) for a, b in zip(arrays_of(clean), arrays_of(g)))


@pytest.mark.parametrize(
    "cell",
    ["rnn_tanh", "lstm_peephole", "gru", "gru_reset_before", "lstm_projected", "lstm_layer_norm"],
)
def test_the_reference_by_differences(cell: str) -> None:
    """Resets with a learned state, masks and cells: the reference's own gradients."""
    p = Problem(cell, np.float64, (6, 3, 2, 4))
    resets, mask, lengths = flags(p, 0.3), flags(p, 0.7), np.array([6, 4, 5])
    for reverse in (False, True):
        options: dict[str, Any] = {
            "resets": resets,
            "mask": mask,
            "lengths": lengths,
            "repeat": True,
            "reverse": reverse,
        }

        def loss(options: dict[str, Any] = options) -> float:
            r = reference.forward(cell, p.x, p.exact, p.h0, p.c0, restart=p.restart, **options)
            total = (r.y * p.dy).sum() + (r.h_n * p.dh).sum()
            return float(
                total + ((r.c_n * p.dc).sum() + (r.cells * p.dcells).sum() if p.cells else 0)
            )

        run = reference.forward(cell, p.x, p.exact, p.h0, p.c0, restart=p.restart, **options)
        extra = {"dc_n": p.dc, "dcells": p.dcells} if p.cells else {}
        g = reference.backward(run, p.dy, p.dh, **extra)
        for array, want in (
            (p.x, g.x),
            (p.h0, g.h0),
            (p.restart[0], g.restart[0]),
            (p.exact.weight_hh, g.weights.weight_hh),
            *([] if p.exact.weight_hr is None else [(p.exact.weight_hr, g.weights.weight_hr)]),
            *(
                []
                if p.exact.weight_ln_c is None
                else [(getattr(p.exact, n), getattr(g.weights, n)) for n in NORMS]
            ),
        ):
            np.testing.assert_allclose(numeric_gradient(loss, array), want, atol=1e-7)
        if p.cells:
            np.testing.assert_allclose(
                numeric_gradient(loss, p.restart[1]), g.restart[1], atol=1e-7
            )


def test_gates_are_those_of_the_reference(kernel_set: str) -> None:
    for cell, names, at in (
        ("lstm", "ifgo", 3),
        ("lstm_peephole", "ifgo", 3),
        ("lstm_projected", "ifgo", 4),
        ("lstm_layer_norm", "ifgo", 7),
        ("gru", "rzn", 2),
        ("gru_reset_before", "rzn", 2),
    ):
        p = Problem(cell, np.float32, (7, 4, 3, 37))
        lengths = np.array([7, 3, 0, 5])
        _, pullback = p.run(lengths=lengths)
        run = reference.forward(
            cell, p.x.astype(np.float64), p.exact, p.h0, p.c0 if p.cells else None, lengths=lengths
        )
        gates = pullback.gates
        assert "".join(gates) == names
        for k, name in enumerate(names):
            want = np.where(run.active[..., None], np.stack([c[at + k] for c in run.caches]), 0)
            assert_close(gates[name], want, name)
            assert not gates[name].flags.writeable
    assert Problem("rnn_tanh", np.float32, (3, 1, 2, 3)).run()[1].gates == {}


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
    ids=str,
)
def test_layers_run_pieces_apart(options: dict[str, Any]) -> None:
    """Stacks and two directions: y of a call with resets is y of the pieces."""
    for make in (ost.nn.LSTM, ost.nn.GRU):
        layer = make(3, 20, learned_state=True, rng=0, **options)
        with layer.write() as p:
            for n in p:
                if n.startswith("initial"):
                    p[n][...] = np.random.default_rng(1).normal(size=20) * 0.3
        x = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
        resets = np.zeros((30, 4), bool)
        resets[[0, 11, 12]] = True
        first = options.get("batch_first", False)

        def run(a: Any, r: Any = None, layer: Any = layer, first: bool = first) -> Any:
            y, _ = layer(
                np.swapaxes(a, 0, 1) if first else a,
                resets=None if r is None else r.T if first else r,
            )
            return np.swapaxes(y, 0, 1) if first else y

        apart = np.concatenate([run(x[a:b]) for a, b in ((0, 11), (11, 12), (12, 30))])
        assert np.array_equal(run(x, resets), apart)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_low_precisions_run_pieces_apart(make: Any, precision: str, kernel_set: str) -> None:
    """Lengths, resets and segments in bfloat16 and int8: the bits of the pieces."""
    layer = make(3, 20, 2, precision=precision, rng=0)
    r = np.random.default_rng(0)
    x = r.normal(size=(30, 5, 3)).astype(np.float32)
    resets, lengths = np.zeros((30, 5), bool), np.array([30, 11, 0, 25, 30])
    resets[11] = True
    y, _ = layer(x, resets=resets, lengths=lengths)
    first, second = (
        layer(p, lengths=n)[0]
        for p, n in ((x[:11], np.minimum(lengths, 11)), (x[11:], np.maximum(lengths - 11, 0)))
    )
    assert np.array_equal(y, np.concatenate([first, second]))
    if precision == "int8":
        return
    results = []
    for options in ({}, {"memory_limit": "least"}):
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x, resets=resets, lengths=lengths, **options)
        dx, _ = pullback(np.ones_like(y))
        results.append((dx, layer.flat_grads.copy()))
        assert (dx[np.arange(30)[:, None] >= lengths] == 0).all()
    assert all(np.array_equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("make", [ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU])
def test_learned_states(make: Any) -> None:
    """Gradients of the learned initial state, at the start and at resets, by differences."""
    layer = make(3, 4, 2, learned_state=True, bidirectional=True, dtype=np.float64, rng=0)
    names = [n for n in layer.parameters() if n.startswith("initial")]
    assert len(names) == (8 if make is ost.nn.LSTM else 4)
    r = np.random.default_rng(0)
    values = layer.state_dict()
    for n in names:
        values[n] = r.normal(size=4)
    layer.load_state_dict(values)
    x, dy = r.normal(size=(6, 3, 3)), r.normal(size=(6, 3, 8))
    resets = r.random((6, 3)) < 0.3
    (y, _), pullback = layer.vjp(x, resets=resets)
    layer.zero_grad()
    pullback(dy)

    def loss() -> float:
        layer.load_state_dict(values)
        return float((layer(x, resets=resets)[0] * dy).sum())

    for n in names:
        np.testing.assert_allclose(layer.grads[n], numeric_gradient(loss, values[n]), atol=1e-6)
    given = layer(
        x,
        tuple(np.zeros((4, 3, 4)) for _ in range(2))
        if make is ost.nn.LSTM
        else np.zeros((4, 3, 4)),
    )[0]
    assert not np.array_equal(given, y)
    assert "learned_state=True" in repr(layer)
    assert set(make(3, 4, rng=0).parameters()).isdisjoint(names)


def test_masks_mean_what_they_mean_in_keras() -> None:
    """A masked step carries the state.

    Its output repeats the one before it, zeros before the first.
    """
    layer = ost.nn.GRU(2, 5, rng=0)
    x = np.random.default_rng(0).normal(size=(4, 1, 2)).astype(np.float32)
    mask = np.array([[False], [True], [False], [True]])
    y, h = layer(x, np.ones((1, 1, 5), np.float32), mask=mask)
    want, h_want = layer(x[[1, 3]], np.ones((1, 1, 5), np.float32))
    assert (y[0] == 0).all()
    assert np.array_equal(y[[1, 3]], want)
    assert np.array_equal(y[2], y[1])
    assert np.array_equal(h, h_want)
    zero, _ = layer(x, np.ones((1, 1, 5), np.float32), mask=mask, masked="zero")
    assert (zero[[0, 2]] == 0).all()
    model = ost.nn.Sequential(ost.nn.Linear(2, 2, rng=0), layer, ost.nn.Linear(5, 1, rng=0))
    x[~mask[:, 0]] = np.nan
    (out, _), pullback = model.vjp(x, mask=mask)
    assert np.isfinite(out).all()
    model.zero_grad()
    pullback(np.ones_like(out))
    assert np.isfinite(model.flat_grads).all()


def test_one_sequence_without_a_batch_axis() -> None:
    layer = ost.nn.LSTM(3, 5, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    resets = np.array([False, False, True, False, False, True])
    y, _ = layer(x, resets=resets)
    assert np.array_equal(y, layer(x[:, None], resets=resets[:, None])[0][:, 0])
    _, pullback = layer.vjp(x, resets=resets, cuts=resets)
    assert pullback.cells.shape == (1, 6, 5)
    dx, _ = pullback(dcells=np.ones((1, 6, 5), np.float32))
    assert dx.shape == (6, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"resets": np.zeros((4, 2))}, TypeError, "resets: expected dtype bool, got float64"),
        (
            {"resets": np.zeros((2, 4), bool)},
            ValueError,
            r"resets: expected shape \(T, B\) = \(4, 2\), got \(2, 4\)",
        ),
        ({"mask": [[True]]}, TypeError, "mask: expected a numpy.ndarray, got list"),
        (
            {"mask": np.ones((4, 2), bool), "masked": "carry"},
            ValueError,
            "masked: expected one of 'repeat', 'zero', got 'carry'",
        ),
        (
            {"lengths": [4, 5]},
            ValueError,
            "lengths: expected values from 0 to T = 4, got 5 at b = 1",
        ),
        (
            {"clip_step_value": 0.0},
            ValueError,
            "clip_step_value: expected a number above 0, got 0.0",
        ),
        (
            {"clip_step_norm": float("nan")},
            ValueError,
            "clip_step_norm: expected a number above 0, got nan",
        ),
        ({"cuts": np.zeros((4, 3), bool)}, ValueError, "cuts: expected shape"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], error: type[Exception], words: str) -> None:
    layer = ost.nn.GRU(3, 5, rng=0)
    with pytest.raises(error, match=words):
        layer.vjp(np.zeros((4, 2, 3), np.float32), **options)
    f = ost.functional
    with pytest.raises(TypeError, match="reset_state: expected h, or"):
        f.lstm(np.zeros((4, 2, 3)), np.zeros((4, 3)), np.zeros((4, 1)), reset_state=np.zeros(1))
    (_, pullback) = layer.vjp(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(ValueError, match="dcells: expected None for the cell gru"):
        pullback(dcells=np.zeros((1, 4, 2, 5), np.float32))
    with pytest.raises(TypeError, match="cells: expected a cell with two states, got gru"):
        _ = pullback.cells
