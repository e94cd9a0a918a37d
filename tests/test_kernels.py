"""Kernels against the reference, on every kernel set, dtype and cell.

And bitwise reproducibility.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    CELLS,
    DEVICE_CELLS,
    FACES,
    GATES,
    NORMS,
    STREAM_CELLS,
    assert_close,
    cast,
    names_of,
    output_size,
    packed,
    random_weights,
    recurrent,
    slack,
    widened,
)
from ostinato import _cells, _core, reference

DTYPES = [np.float32, np.float64]
# (T, B, I, H): around the vector lengths (4, 8, 16), row tiles (4 to 8), groups of units (64) and
# blocks (128, 256 rows); weight gradients of several chains of 64 rows, packed from 192 columns on.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 2, 3),
    (5, 4, 7, 15),
    (3, 6, 16, 16),
    (4, 5, 17, 33),
    (7, 2, 1, 65),
    (3, 41, 9, 20),
    (130, 2, 3, 8),
    (3, 300, 2, 5),
    (80, 2, 200, 200),
]


def native(
    p: Any, x: Any, h0: Any = None, c0: Any = None, lengths: Any = None, train: bool = False
) -> Any:
    lens = None if lengths is None else np.asarray(lengths, np.int64)
    state = [None if s is None else s[None] for s in (h0, c0)]
    return p.native.forward(x, *state, lens, train=train)


def check(
    cell: str,
    dtype: Any,
    sizes: tuple[int, int, int, int],
    *,
    lengths: Any = None,
    reverse: bool = False,
    states: bool = True,
) -> None:
    steps, batch, inputs, hidden = sizes
    loose = slack(cell)
    rng = np.random.default_rng(sum(sizes))
    w = random_weights(cell, inputs, hidden, rng)
    weights = cast(w, dtype)
    exact = widened(cell, weights)
    size = output_size(cell, hidden)
    x, dy = (rng.normal(size=(steps, batch, n)).astype(dtype) for n in (inputs, size))
    h0, c0, dh, dc = (
        (rng.normal(size=(batch, n)) * 0.5).astype(dtype) if states else None
        for n in (size, hidden, size, hidden)
    )
    p = packed(cell, weights, reverse)
    y, h_n, c_n, _ = native(p, x, h0, c0, lengths)
    y_train, h_train, _, tape = native(p, x, h0, c0, lengths, train=True)
    assert np.array_equal(y, y_train)
    assert np.array_equal(h_n, h_train)
    run = reference.forward(
        cell, x.astype(np.float64), exact, h0, c0, lengths=lengths, reverse=reverse
    )
    assert_close(y, run.y, "y", loose)
    assert_close(h_n[0], run.h_n, "h_n", loose)
    has_cells = c_n is not None
    assert has_cells == cell.startswith("lstm")
    if has_cells:
        assert_close(c_n[0], run.c_n, "c_n", loose)
    else:
        c0 = dc = None
    wide = [None if d is None else d.astype(np.float64) for d in (dy, dh, dc)]
    g = reference.backward(run, *wide)
    grads = [None if a is None else np.ones_like(a) for a in weights]
    dx, dh0, dc0, *_ = tape.backward(
        dy, *(None if d is None else d[None] for d in (dh, dc)), [grads], True
    )
    assert_close(dx, g.x, "dx", 4 * loose)
    assert_close(dh0[0], g.h0, "dh0", 4 * loose)
    if has_cells:
        assert_close(dc0[0], g.c0, "dc0", 4 * loose)
    for name, got in zip(names_of(exact), grads):
        if got is not None:  # added to the ones that were there
            assert_close(got, getattr(g.weights, name) + 1, f"d{name}", 4 * loose)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_against_the_reference(
    cell: str, dtype: Any, sizes: tuple[int, int, int, int], kernel_set: str
) -> None:
    check(cell, dtype, sizes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell: str, dtype: Any, reverse: bool, kernel_set: str) -> None:
    check(cell, dtype, (6, 5, 3, 18), lengths=np.array([6, 0, 3, 1, 5]), reverse=reverse)
    check(cell, dtype, (6, 5, 3, 18), reverse=reverse, states=False)


@pytest.mark.parametrize("axis", ["units", "rows"])
@pytest.mark.parametrize("cell", CELLS)
def test_large_enough_for_threads(cell: str, axis: str, kernel_set: str, threads: None) -> None:
    """Sizes at which the cost model splits hidden units (B = 2) and batch rows (B = 45) over three
    threads.
    """
    ost.set_num_threads(3)
    sizes = (30, 2, 200, 200) if axis == "units" else (12, 45, 90, 90)
    check(cell, np.float32, sizes)
    check(
        cell,
        np.float32,
        sizes,
        lengths=np.random.default_rng(0).integers(0, sizes[0] + 1, sizes[1]),
    )


def everything(
    cell: str, dtype: Any, steps: int, batch: int, size: int, lengths: Any = None
) -> list[Any]:
    rng = np.random.default_rng(5)
    weights = cast(random_weights(cell, size, size, rng), dtype)
    x, dy = (
        rng.normal(size=(steps, batch, n)).astype(dtype) for n in (size, output_size(cell, size))
    )
    p = packed(cell, weights)
    y, h_n, c_n, tape = native(p, x, lengths=lengths, train=True)
    grads = [None if a is None else np.zeros_like(a) for a in weights]
    dx, dh0, dc0, *_ = tape.backward(dy, None, None, [grads], True)
    return [a for a in (y, h_n, c_n, dx, dh0, dc0, *grads) if a is not None]


@pytest.mark.parametrize(
    ("steps", "batch", "size"), [(40, 1, 200), (40, 3, 130), (17, 45, 70), (3, 300, 40)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(
    cell: str, steps: int, batch: int, size: int, kernel_set: str, threads: None
) -> None:
    results = []
    for n in (1, 2, 3, 5):
        ost.set_num_threads(n)
        results.append(everything(cell, np.float32, steps, batch, size))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_batch_composition_or_cuts(
    cell: str, dtype: Any, kernel_set: str
) -> None:
    """y, states, dx and dstate of a row.

    Alone, in a batch, among padded rows, and in two pieces of time.
    """
    rng = np.random.default_rng(2)
    steps, batch, hidden = 23, 9, 37
    p = packed(cell, cast(random_weights(cell, 5, hidden, rng), dtype))
    x, dy = (
        rng.normal(size=(steps, batch, n)).astype(dtype) for n in (5, output_size(cell, hidden))
    )

    def gradients(tape: Any, d: Any, dh: Any = None, dc: Any = None) -> Any:
        return tape.backward(
            d, dh, dc, [[None if w is None else np.zeros_like(w) for w in p.weights]], True
        )[:3]

    y, h_n, c_n, tape = native(p, x, train=True)
    dx, dh0, dc0 = gradients(tape, dy)
    one, h_one, _, tape_one = native(p, x[:, 4:5], train=True)
    dx_one, dh_one, _ = gradients(tape_one, dy[:, 4:5])
    assert np.array_equal(one, y[:, 4:5])
    assert np.array_equal(h_one, h_n[:, 4:5])
    assert np.array_equal(dx_one, dx[:, 4:5])
    assert np.array_equal(dh_one, dh0[:, 4:5])

    lengths = rng.integers(0, steps + 1, batch)
    lengths[4] = steps
    mixed, _, _, tape_mixed = native(p, x, lengths=lengths, train=True)
    assert np.array_equal(mixed[:, 4], y[:, 4])
    assert np.array_equal(gradients(tape_mixed, dy)[0][:, 4], dx[:, 4])

    first, h_mid, c_mid, tape1 = native(p, x[:11], train=True)
    second, h_end, c_end, tape2 = p.native.forward(x[11:], h_mid, c_mid, None, train=True)
    assert np.array_equal(np.concatenate([first, second]), y)
    assert np.array_equal(h_end, h_n)
    assert c_n is None or np.array_equal(c_end, c_n)
    dx2, dh, dc = gradients(tape2, dy[11:])
    dx1, dh, dc = gradients(tape1, dy[:11], dh, dc)
    assert np.array_equal(np.concatenate([dx1, dx2]), dx)
    assert np.array_equal(dh, dh0)
    assert dc0 is None or np.array_equal(dc, dc0)


@pytest.mark.parametrize("cell", CELLS)
def test_streaming_gives_the_bits_of_the_batch(cell: str, kernel_set: str) -> None:
    rng = np.random.default_rng(2)
    p = packed(cell, cast(random_weights(cell, 4, 19, rng), np.float32))
    x = rng.normal(size=(20, 3, 4)).astype(np.float32)
    whole, h, c = native(p, x)[0], None, None
    for t in range(20):
        y, h, c, _ = p.native.forward(x[t : t + 1], h, c, None)
        assert np.array_equal(y[0], whole[t])


@pytest.mark.parametrize("cell", CELLS)
def test_padding_may_hold_nan(cell: str, kernel_set: str) -> None:
    rng = np.random.default_rng(4)
    p = packed(cell, cast(random_weights(cell, 3, 10, rng), np.float32))
    lengths = np.array([4, 0, 7])
    on = np.arange(7)[:, None, None] < lengths[:, None]
    x, dy = (rng.normal(size=(7, 3, n)).astype(np.float32) for n in (3, output_size(cell, 10)))
    results = []
    for filler in (0.0, np.nan):
        y, h, _, tape = native(p, np.where(on, x, np.float32(filler)), lengths=lengths, train=True)
        grads = [None if w is None else np.zeros_like(w) for w in p.weights]
        dx, *_ = tape.backward(np.where(on, dy, np.float32(filler)), None, None, [grads], True)
        results.append([y, h, dx, *(g for g in grads if g is not None)])
    assert all(np.array_equal(a, b) for a, b in zip(*results))
    y, _, dx, *_ = results[1]
    assert (y[~np.broadcast_to(on, y.shape)] == 0).all()
    assert (dx[~np.broadcast_to(on, dx.shape)] == 0).all()


def test_nan_in_the_input_comes_out(kernel_set: str) -> None:
    p = packed("lstm", cast(random_weights("lstm", 3, 10, np.random.default_rng(0)), np.float32))
    x = np.zeros((4, 3, 3), np.float32)
    x[1, 1, 2] = np.nan
    y = native(p, x)[0]
    assert np.isnan(y[1:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()


@pytest.mark.parametrize("hidden", [3, 16, 20])
@pytest.mark.parametrize(
    "cell", ["lstm", "lstm_peephole", "gru", "gru_reset_before", "lstm_projected"]
)
def test_an_infinite_input_stays_in_its_row(cell: str, hidden: int, kernel_set: str) -> None:
    """0 * infinity leaves NaN in the lanes that pad a vector.

    What is real is the same as where nothing is padded.
    """
    p = packed(cell, cast(random_weights(cell, 1, hidden, np.random.default_rng(0)), np.float32))
    x = np.zeros((4, 2, 1), np.float32)
    x[2, 1, 0] = np.inf
    y, _, _, tape = native(p, x, train=True)
    assert np.isfinite(y).all()
    grads = [None if w is None else np.zeros_like(w) for w in p.weights]
    dx, dh0, *_ = tape.backward(np.ones_like(y), None, None, [grads], True)
    assert np.isfinite(dx).all()
    assert np.isfinite(dh0).all()
    assert np.isfinite(grads[1]).all()


@pytest.mark.parametrize(
    "view",
    ["batch first", "every other", "backwards", "broadcast", "one aligned item off", "read-only"],
)
def test_any_strides(view: str, kernel_set: str) -> None:
    rng = np.random.default_rng(9)
    p = packed("gru", cast(random_weights("gru", 5, 12, rng), np.float32))
    base = rng.normal(size=(8, 6, 5)).astype(np.float32)
    if view == "batch first":
        x = base.transpose(1, 0, 2)
    elif view == "every other":
        x = base[::2, ::3]
    elif view == "backwards":
        x = base[::-1, ::-1]
    elif view == "broadcast":
        x = np.broadcast_to(base[:1], (4, 6, 5))
    elif view == "one aligned item off":
        x = np.zeros(8 * 6 * 5 + 1, np.float32)[1:].reshape(8, 6, 5)
        x[...] = base
    else:
        x = base.copy()
        x.flags.writeable = False
    y, _, _, tape = native(p, x, train=True)
    want, _, _, plain = native(p, np.ascontiguousarray(x), train=True)
    assert np.array_equal(y, want)
    dy = rng.normal(size=y.shape).astype(np.float32)
    grads = [[[None if w is None else np.zeros_like(w) for w in p.weights]] for _ in range(2)]
    assert np.array_equal(
        tape.backward(dy, None, None, grads[0], True)[0],
        plain.backward(dy, None, None, grads[1], True)[0],
    )
    assert all(np.array_equal(a, b) for a, b in zip(grads[0][0], grads[1][0]) if a is not None)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(cell: str, steps: int, batch: int, kernel_set: str) -> None:
    p = packed(cell, cast(random_weights(cell, 2, 3, np.random.default_rng(0)), np.float32))
    size = output_size(cell, 3)
    x, h0 = np.zeros((steps, batch, 2), np.float32), np.ones((batch, size), np.float32)
    c0 = np.ones((batch, 3), np.float32) if cell.startswith("lstm") else None
    y, h_n, _, tape = native(p, x, h0, c0, train=True)
    assert y.shape == (steps, batch, size)
    if steps == 0:
        assert np.array_equal(h_n[0], h0)
    grads = [None if w is None else np.zeros_like(w) for w in p.weights]
    dx, dh0, *_ = tape.backward(
        np.zeros_like(y), np.ones((1, batch, size), np.float32), None, [grads], True
    )
    assert dx.shape == x.shape
    assert np.array_equal(dh0[0], np.ones((batch, size)))
    assert all((g == 0).all() for g in grads if g is not None)


def test_out_is_used(kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    w = cast(random_weights("lstm", 3, 10, rng), np.float32)
    x = rng.normal(size=(4, 3, 3)).astype(np.float32)
    out = np.full((4, 3, 30), 7, np.float32)
    y, _ = ost.functional.lstm(x, *w[:4], out=out[:, :, 10:20])
    assert y.base is out
    assert np.array_equal(y, ost.functional.lstm(x, *w[:4])[0])
    assert (out[:, :, :10] == 7).all()
    assert (out[:, :, 20:] == 7).all()


def test_packed_weights_are_a_snapshot_that_is_shared_and_not_pickled() -> None:
    w = cast(random_weights("gru", 3, 4, np.random.default_rng(0)), np.float32)
    x, packed_ = np.ones((4, 2, 3), np.float32), ost.functional.pack("gru", w[0], w[1])
    y, _ = ost.functional.gru(x, packed_)
    assert copy.deepcopy({"weights": packed_})["weights"] is copy.copy(packed_) is packed_
    with pytest.raises(TypeError, match="Packed: expected arrays to pickle, got packed weights"):
        pickle.dumps(packed_)
    w[0][...] = 0
    assert np.array_equal(ost.functional.gru(x, packed_)[0], y)


def test_denormals_are_flushed_inside_and_left_alone_outside() -> None:
    tiny = np.float32(1e-40)
    p = packed(
        "rnn_relu", [np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), None, None, None]
    )
    assert native(p, np.full((1, 1, 1), tiny))[0][0, 0, 0] == 0
    assert np.float32(tiny * np.float32(0.5)) > 0


@pytest.mark.huge
def test_more_than_2_to_the_31_elements() -> None:
    """y and x of 2^31 + elements each: 64-bit sizes and strides throughout. Needs 18 GB."""
    hidden, batch = 64, 32
    steps = 2**31 // (hidden * batch) + 3
    rng = np.random.default_rng(0)
    weights = cast(random_weights("rnn_tanh", 1, hidden, rng), np.float32)
    p = packed("rnn_tanh", weights)
    x = np.broadcast_to(rng.normal(size=(1, batch, 1)).astype(np.float32), (steps, batch, 1))
    y, h_n, _, _ = native(p, x)
    assert y.size > 2**31
    assert np.array_equal(y[-1], h_n[0])
    small = native(p, x[:50])[0]
    assert np.array_equal(y[:50], small)
    # With the same input at every step the state comes to rest, so the far end is known too.
    again, *_ = p.native.forward(x[:1], y[-2][None], None, None)
    assert np.array_equal(y[-1], again[0])


def test_cells_say_what_they_are() -> None:
    assert {cell: gates for cell, (gates, *_) in reference.CELLS.items()} == GATES
    assert set(FACES) == set(CELLS) == set(DEVICE_CELLS) > set(STREAM_CELLS)
    assert {recurrent(cell, 2, 3)._cell for cell in CELLS} == set(CELLS)
    assert {"lstm", "gru_reset_before"} <= set(STREAM_CELLS)
    assert _cells.FAMILIES == {"rnn": 1, "lstm": 4, "gru": 3}
    for cell in CELLS:
        gates = _cells.gates_of(cell)
        assert len(gates.names) in (0, GATES[cell])
        assert {gates.keep, gates.write} <= {*gates.names, None}
    named = {cell: [name for name, *_ in weights] for cell, weights in _core.unit_weights().items()}
    assert named.pop("lstm_peephole") == named.pop("lstm_general") == ["weight_peephole"]
    assert named.pop("lstm_layer_norm") == list(NORMS)
    assert not any(named.values())
    assert _core.cells()["lstm_peephole"] == {
        "gates": 4,
        "states": 2,
        "params": 3,
        "saved": 4,
        "tape": 4,
        "scalars": 0,
    }
