"""Streams of whole models: one step a call, slots that join and leave, saved states."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import flat


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
    x = (
        r.integers(0, 11, (steps, batch))
        if ids
        else r.standard_normal((steps, batch, 3)).astype(model.dtype)
    )
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


def test_a_layer_without_a_state_has_a_stream() -> None:
    r = np.random.default_rng(0)
    for layer, x in (
        (ost.nn.Linear(3, 2, rng=0), r.standard_normal((2, 3), np.float32)),
        (ost.nn.Embedding(4, 3, rng=0), np.array([3, 1])),
    ):
        stream = layer.stream(2)
        assert np.array_equal(stream.step(x), layer(x))
        assert stream.state is None
        assert np.array_equal(stream.step(x[:1], slots=[1]), layer(x[:1]))
    with pytest.raises(TypeError, match="expected a model with something to compute, got Dropout"):
        ost.nn.Dropout(0.5).stream()
    with pytest.raises(TypeError, match="expected a layer first that knows the length of its inp"):
        ost.nn.Activation("tanh").stream()
    with pytest.raises(TypeError, match="got a Pool, which has none"):
        ost.nn.Pool("mean").stream()


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

    with pytest.raises(TypeError, match="got a Own, which has none; stream the layers before"):
        ost.nn.Sequential(Own(), ost.nn.GRU(3, 4)).stream()
    with pytest.raises(TypeError, match="one step at a time alone, got a Pool, which has none"):
        ost.nn.Sequential(ost.nn.GRU(3, 4), ost.nn.Pool("mean")).stream()
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
        d.size_diff
        for d in after.compare_to(before, "filename")
        if "tracemalloc" not in d.traceback[0].filename
    )
    assert grown < 2000


@pytest.mark.parametrize("before", ["Conv1d", "LayerNorm", "Residual", "gelu", "Softmax", "GRU"])
def test_a_function_behind_a_step_in_python(before: str) -> None:
    """The native stream that it begins has to know how wide it is."""
    nn = ost.nn
    first = {
        "Conv1d": lambda: nn.Conv1d(4, 4, 3, padding="causal", rng=0),
        "LayerNorm": lambda: nn.LayerNorm(4),
        "Residual": lambda: nn.Residual(nn.GRU(4, 4, rng=0)),
        "gelu": lambda: nn.Sequential(nn.Linear(4, 4, rng=0), nn.Activation("gelu")),
        "Softmax": lambda: nn.Sequential(nn.Linear(4, 4, rng=0), nn.Softmax()),
        "GRU": lambda: nn.GRU(4, 4, rng=0),
    }[before]()
    model = nn.Sequential(first, nn.Activation("tanh"), nn.Activation("relu"))
    x = np.random.default_rng(0).standard_normal((5, 2, 4), np.float32)
    stream = model.stream(2)
    y = np.stack([stream.step(row).copy() for row in x])
    np.testing.assert_allclose(y, model(x)[0], atol=1e-6)
