"""The programs that try to break the native code, for a moment, and the faults that they found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _core, nn

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc and forks")

from torture import calls, threads  # noqa: E402

F = np.float32


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/torture-native"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_calls() -> None:
    before = _core.kernels(), ost.get_num_threads()
    outcomes = []
    try:
        with np.errstate(all="ignore"):
            for index in range(500):
                outcome, wrong = calls.try_call(1, index, compare=index % 10 == 0)
                assert not wrong, f"tools/torture-native call {index} --seed 1: {wrong}"
                outcomes.append(outcome)
    finally:
        ost.use_kernels(before[0])
        ost.set_num_threads(before[1])
    assert {"accepted", "compared", "TypeError", "ValueError"} <= set(outcomes)


@linux
@pytest.mark.skipif(not shutil.which("cc"), reason="compiles what makes allocations fail")
def test_failing_allocations() -> None:
    done = tool("allocations", "a step of a stream", "--most", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allocations failed" in done.stdout


@linux
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads: what is tried
def test_threads_forks_signals_and_exits() -> None:
    done = tool("threads", "--count", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 1 tries") == len(threads.KINDS)


@linux
def test_soak() -> None:
    done = tool("soak", "--minutes", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("steps in 0.01 minutes") == 2


# -- what they found


def packed(hidden: int = 4, inputs: int = 3) -> tuple[Any, list[Any]]:
    r = np.random.default_rng(0)
    weights = [r.normal(size=s).astype(F) for s in ((hidden, inputs), (hidden, hidden), (hidden,))]
    weights = [*weights, weights[2].copy(), None]
    made = _core.PackedFloat32("rnn_tanh", inputs, hidden, 1, False, [weights], True)
    return made, [None if w is None else np.zeros_like(w) for w in weights]


def test_outputs_do_not_lie_in_a_reset_state() -> None:
    """The state of a reset is read at every reset, when outputs have been written already."""
    x, w = np.ones((5, 2, 3), F), np.ones((4, 3), F)
    out = np.zeros((5, 2, 4), F)
    with pytest.raises(ValueError, match=r"out: expected memory of its own.*restart_h"):
        ost.functional.rnn(
            x, w, np.ones((4, 4), F), out=out, reset_state=out[0, 0], resets=np.ones((5, 2), bool)
        )


def test_gradients_do_not_lie_in_what_is_read() -> None:
    made, grads = packed()
    memory = np.ones(100, F)
    x, dx = memory[:30].reshape(5, 2, 3), memory[20:50].reshape(5, 2, 3)
    _, _, _, tape = made.forward(x, None, None, train=True)
    with pytest.raises(ValueError, match="dx: expected memory of its own"):
        tape.backward(None, None, None, [grads], True, dx=dx)
    grads[3] = grads[2]
    with pytest.raises(ValueError, match="grads: expected memory of its own"):
        tape.backward(None, None, None, [grads], True)
    same = np.lib.stride_tricks.as_strided(np.zeros(99, F), (5, 2, 3), (12, 4, 4))
    grads[3] = np.zeros_like(grads[2])
    with pytest.raises(ValueError, match="dx: expected rows of its own"):
        tape.backward(None, None, None, [grads], True, dx=same)


def test_a_training_steps_outputs_do_not_lie_in_its_inputs() -> None:
    a = np.ones(8, F)
    with pytest.raises(ValueError, match="expected memory of its own"):
        _core.adam_runs_Float32(
            a, a, a.copy(), a.copy(), [(0, 8, *(0.1,) * 4)], 0.9, 0.9, 1e-8, False
        )
    table = np.ones((4, 3), F)
    with pytest.raises(ValueError, match="grads: weight: expected memory of its own"):
        _core.embedding_scatter_Float32(np.array([0]), table[:1], table)
    linear = _core.PackedLinearFloat32(np.ones((2, 3), F), None, True)
    with pytest.raises(ValueError, match="grads: weight: expected memory of its own"):
        linear.run_backward(table[:2], np.ones((2, 2), F), table[1:3], None, True)


def test_sums_are_of_other_segments_and_of_no_table() -> None:
    """Sums that nothing was added to yet are no numbers; with a table they were too small."""
    made, grads = packed()
    x, sums = np.ones((5, 2, 3), F), made.sums(2)
    tape = made.forward(x, None, None, train=True)[3]
    with pytest.raises(ValueError, match="resume: expected False with new sums, got True"):
        tape.backward(None, None, None, [grads], True, sums=sums, resume=True)
    ids = np.zeros((5, 2, 1), np.int64)
    tape = made.forward(ids, None, None, train=True, table=np.ones((9, 3), F))[3]
    grads[0] = np.zeros((4, 9), F)
    with pytest.raises(ValueError, match="sums: expected None with a table"):
        tape.backward(None, None, None, [grads], False, sums=sums)


def test_what_is_no_pair_or_no_number_is_a_type_error() -> None:
    made, grads = packed()
    tape = made.forward(np.ones((5, 2, 3), F), None, None, train=True)[3]
    with pytest.raises(TypeError, match="drestart: expected a pair"):
        tape.backward(None, None, None, [grads], True, drestart="x")
    weights = [np.ones((4, 3), F), np.ones((4, 4), F), None, None, None]
    with pytest.raises(TypeError, match="scalars: expected numbers, got 'a'"):
        _core.PackedFloat32("rnn_general", 3, 4, 1, False, [weights], True, scalars=["a"])
    scalars: Any = np.array(1.0)  # a sequence for Python, of no length
    with pytest.raises(TypeError, match="scalars: expected a sequence, got array"):
        _core.PackedFloat32("rnn_general", 3, 4, 1, False, [weights], True, scalars=scalars)
    p = np.ones(3, F)
    with pytest.raises(TypeError, match="runs: expected a sequence, got array"):
        _core.sgd_runs_Float32(p, p.copy(), p.copy(), scalars, 0.9, False)
    with pytest.raises(ValueError, match="dtype: expected a dtype of floats, got object"):
        _core.kept_array(np.dtype(object), (2,))


def test_sizes_beyond_all_memory_are_refused() -> None:
    """Their products would not fit 64 bits: a block of a few bytes was allocated, and filled."""
    made, _ = packed()
    with pytest.raises(ValueError, match="x: expected steps of all sequences"):
        made.forward(
            np.ones((4, 3), F), None, None, np.array([1, 1]), starts=np.array([0, 1]), span=2**61
        )
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="x: expected steps of all sequences"):
        made.forward(np.ones((0, 3), F), None, None, none, starts=none, span=2**63 - 1)
    plan = {
        "cell": "lstm",
        "input": 3,
        "hidden": 4,
        "bidirectional": False,
        "precision": "exact",
        "batch": 2,
    }
    flags = {"dropout": False, "train": True, "backward": False}
    with pytest.raises(ValueError, match="num_layers: expected at most 1000000"):
        _core.plan(itemsize=4, layers=2**31, steps=3, **plan, **flags)
    weights = [np.ones((4, 3), F), np.ones((4, 4), F), None, None, None]
    with pytest.raises(ValueError, match="hidden_size: expected a size from 1 to"):
        _core.PackedFloat32("rnn_tanh", 3, 2**62, 1, False, [weights], True)
    with pytest.raises(ValueError, match="itemsize: expected 4 or 8, got 5"):
        _core.plan(itemsize=5, layers=1, steps=3, **plan, **flags)
    with pytest.raises(ValueError, match="steps: expected at most 2"):
        _core.plan(itemsize=4, layers=2**10, steps=2**40, **plan, **flags)
    with pytest.raises(ValueError, match="hidden_size: expected at most 2"):
        _core.plan(itemsize=4, layers=1, steps=3, **{**plan, "hidden": 2**40}, **flags)
    for sizes in [(2**40, 2**40), (-3, 2)]:
        with pytest.raises(ValueError, match="shape: expected sizes whose array fits"):
            _core.kept_array(np.dtype(np.float32), sizes)
    with pytest.raises(ValueError, match="hidden_size: expected a size from 1"):
        _core.xla_sizes(4, "lstm", 3, -(2**63), 1, "exact")
    with pytest.raises(ValueError, match="steps: expected a size from 0"):
        _core.gradient_parts(2**63 - 1, 2)
    numbers: list[tuple[Any, tuple[Any, ...]]] = [
        (_core.step_slices, (4, 2**40, 2**38, 2**40)),
        (_core.stream_bytes, (1, 2**31)),
        (_core.persistent_kernels, ([4], 2**40, 2, True, False)),
        (_core.exchange_bytes, (1, 1, 2**31, 2**31)),
    ]
    for function, given in numbers:
        with pytest.raises(ValueError, match="of at most 2"):
            function(*given)
    wide = {**plan, "input": 2**24, "hidden": 1}  # W has few rows
    assert _core.plan(itemsize=4, layers=1, steps=3, **wide, **flags)
    many = {**plan, "hidden": 2**20, "batch": 2**38}
    with pytest.raises(ValueError, match="steps: expected at most 2"):
        _core.plan(itemsize=4, layers=1, steps=0, **many, **flags)


def test_flat_rows_are_of_one_sequence_or_none() -> None:
    """Rows of two sequences were written by two threads; the gradient of rows of none never was."""
    made, grads = packed()
    x = np.ones((6, 3), F)
    for lengths, starts in [([2, 4], [0, 1]), ([3, 3], [3, 1])]:
        with pytest.raises(ValueError, match="starts: expected sequences of different rows"):
            made.forward(x, None, None, np.array(lengths), starts=np.array(starts), span=4)
    lengths, starts = [2, 0, 3], [4, 2, 0]
    for _ in range(3):
        np.full((6, 3), 7, F)  # whose memory the next array of this size gets
        given = np.array(lengths), np.array(starts)
        y, *_, tape = made.forward(x, None, None, given[0], starts=given[1], span=4, train=True)
        dx = tape.backward(np.ones_like(y), None, None, [grads], True)[0]
        assert dx[3].tolist() == [0, 0, 0]
        assert dx[[0, 1, 2, 4, 5]].all()


def test_steps_without_a_row_take_no_time() -> None:
    x = np.zeros((2**45, 0, 3), F)
    y, _ = nn.LSTM(3, 4, 2, dropout=0.5, rng=0).vjp(x, rng=0)[0]
    assert y.shape == (2**45, 0, 4)
    tape = packed()[0].forward(x, None, None, train=True)[3]
    assert tape.active().shape == (2**45, 0)
    assert tape.hidden().shape == (1, 2**45, 0, 4)


def test_the_shape_of_a_streams_input_may_change() -> None:
    stream = _core.StreamFloat32(2)
    linear = _core.PackedLinearFloat32(np.ones((1, 3), F), None, False)
    stream.add_linear(linear)
    stream.x.resize((1, 6), refcheck=False)
    assert stream.step(np.ones((2, 3), F)).tolist() == [[3], [3]]
    with pytest.raises(ValueError, match="x: expected shape"):
        stream.step(np.ones((2, 6), F))


def test_an_optimizer_moves_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that had no memory for one range of parameters had moved those before it.

    Here with an ``_update`` that is a user's own.
    """
    layer = nn.Linear(3, 2, rng=0)  # weights decay, and biases do not: two ranges
    optimizer = ost.optim.SGD(0.1, momentum=0.9, weight_decay=0.1)
    layer._writable_grads().flat[...] = 1
    optimizer.step(layer)
    before = layer.flat.copy(), optimizer.state["momentum"].copy(), optimizer.steps
    update, calls_made = optimizer._update, []

    def failing(*arguments: Any) -> Any:
        calls_made.append(1)
        if len(calls_made) == 2:
            raise MemoryError
        return update(*arguments)

    monkeypatch.setattr(optimizer, "_update", failing)
    with pytest.raises(MemoryError):
        optimizer.step(layer)
    after = layer.flat, optimizer.state["momentum"], optimizer.steps
    assert all(map(np.array_equal, before, after))


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "rmsprop", "adam"])
def test_an_update_that_is_refused_moves_nothing(kind: str) -> None:
    layer = nn.Linear(3, 2, rng=0)  # weights decay, and biases do not: two ranges
    optimizer = {
        "momentum": ost.optim.SGD(0.1, momentum=0.9, weight_decay=0.1),
        "nesterov": ost.optim.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "rmsprop": ost.optim.RMSprop(0.1, weight_decay=0.1),
        "adam": ost.optim.Adam(0.1, weight_decay=0.1),
    }[kind]
    layer._writable_grads().flat[...] = 1
    optimizer.step(layer)
    before = layer.flat.copy(), *(a.copy() for a in optimizer.state.values()), optimizer.steps
    last = next(reversed(optimizer.state.values()))
    last.flags.writeable = False
    with pytest.raises(ValueError, match="expected a writable array"):
        optimizer.step(layer)
    after = layer.flat, *optimizer.state.values(), optimizer.steps
    assert all(map(np.array_equal, before, after))


def test_ranges_of_adam_are_checked() -> None:
    a = [np.ones(8, F) for _ in range(4)]
    with pytest.raises(ValueError, match="runs: expected ranges within 8"):
        _core.adam_runs_Float32(*a, [(0, 9, 0.1, 0.0, 1.0, 1.0)], 0.9, 0.9, 1e-8, False)
    with pytest.raises(TypeError, match="runs: expected tuples of 6 numbers"):
        _core.adam_runs_Float32(*a, [(0, 8)], 0.9, 0.9, 1e-8, False)
    assert all((one == 1).all() for one in a)


def test_cuts_of_sequences_that_look_a_table_up() -> None:
    """They were read as [T,B], beyond their end, where the sequences are not padded."""
    made, _ = packed()
    r = np.random.default_rng(0)
    ids, table = r.integers(0, 5, (7, 1)), r.normal(size=(5, 3)).astype(F)
    lengths, starts = np.array([2, 3, 0, 2, 0]), np.array([0, 2, 5, 5, 7])
    cuts, dy = (r.random(7) < 0.4).view(np.uint8), r.normal(size=(7, 4)).astype(F)
    results = []
    for x, given in ((ids, table), (table[ids[:, 0]], None)):
        _, grads = packed()
        grads[0] = np.zeros((4, 3 if given is None else 5), F)
        tape = made.forward(x, None, None, lengths, starts=starts, span=3, train=True, table=given)[
            3
        ]
        _, dh0, *_ = tape.backward(dy, None, None, [grads], False, cuts=cuts)
        results.append((dh0, *grads[1:4]))
    assert cuts.any()
    assert all(map(np.array_equal, *results))
