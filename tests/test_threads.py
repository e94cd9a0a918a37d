"""Eight Python threads at once, with the GIL and without: layers, streams, pullbacks, trainers."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fake_mpi
import ostinato as ost
from ostinato import nn

THREADS = 8
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Call a function in eight threads that start together; return what each gave or raised."""
    start = threading.Barrier(THREADS)

    def run(k: int) -> Any:
        start.wait()
        return work(k)

    return fake_mpi.in_threads(THREADS, run)


def unharmed(found: list[Any]) -> list[Any]:
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def arrays(thing: Any) -> list[Any]:
    if isinstance(thing, np.ndarray):
        return [thing]
    return [] if thing is None else [a for part in thing for a in arrays(part)]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


class Net(nn.Model):
    def __init__(self) -> None:
        self.rnn = nn.GRU(6, 24, rng=0)
        self.out = nn.Linear(24, 3, rng=1)

    def __call__(self, x: Any) -> Any:
        return np.tanh(self.out(self.rnn(x)[0]))


def x_of(kind: str) -> Any:
    r = np.random.default_rng(0)
    if kind == "text":
        return r.integers(0, 9, (12, 5))
    return r.standard_normal((12, 5, 6)).astype(np.float32)


def text() -> Any:
    return nn.Sequential(nn.Embedding(9, 6, rng=0), nn.LSTM(6, 24, rng=1), nn.Linear(24, 9, rng=2))


MAKERS: dict[str, Callable[[], Any]] = {
    "lstm": lambda: nn.LSTM(6, 40, num_layers=2, rng=0),
    "gru": lambda: nn.GRU(6, 24, bidirectional=True, precision="bfloat16", rng=0),
    "learned": lambda: nn.RNN(6, 24, learned_state=True, rng=0),
    "text": text,
    "model": Net,
}


def pass_of(layer: Any, x: Any) -> Any:
    """Return outputs, and gradients in memory of their own."""
    out, pullback = layer.vjp(x)
    y = out[0] if isinstance(out, tuple) else out
    grads = layer.new_grads()
    dx = pullback(np.ones_like(y), grads=grads)
    return y, arrays(dx), grads.flat.copy()


@pytest.mark.parametrize("kind", MAKERS)
def test_layers_are_shared(kind: str, threads: None) -> None:
    """Weights are packed by whoever comes first, in many threads at once."""
    ost.set_num_threads(2)
    x = x_of(kind)
    want = pass_of(MAKERS[kind](), x)
    for _ in range(4):
        layer = MAKERS[kind]()

        def work(k: int, layer: Any = layer) -> list[Any]:
            if k == 0:  # what is for all threads may change meanwhile
                for n in (1, 2) * 3:
                    ost.set_num_threads(n)
                    ost.release_memory()
            return [pass_of(layer, x) for _ in range(5)]

        for passes in unharmed(at_once(work)):
            assert all(same(one, want) for one in passes)
        assert not layer.grads.flat.any()


def test_threads_have_streams_of_one_model() -> None:
    model, x = text(), np.random.default_rng(0).integers(0, 9, (40, 3))
    alone = model.stream(batch=3)
    want = [alone.step(row).copy() for row in x]

    def work(k: int) -> Any:
        stream = model.stream(batch=3)
        return [stream.step(row).copy() for row in x]

    assert all(same(found, want) for found in unharmed(at_once(work)))


def test_a_stream_takes_one_step_at_a_time() -> None:
    """A second step is refused, and the states are those of the steps that were made."""
    for units in (16, 700):  # without and with the GIL held in a step
        layer = nn.GRU(4, units, rng=0)
        stream, alone = layer.stream(batch=2), layer.stream(batch=2)
        for s in (stream, alone):
            s.x[...] = 0.5

        def work(k: int, stream: Any = stream) -> list[str]:
            said = []
            for _ in range(30):
                try:
                    stream.step()
                except RuntimeError as e:
                    said.append(str(e))
            return said

        refused = [one for said in unharmed(at_once(work)) for one in said]
        assert all("expected one step at a time" in one for one in refused)
        made = 30 * THREADS - len(refused)
        assert made >= 30
        for _ in range(made):
            alone.step()
        assert np.array_equal(stream.state, alone.state)


def test_a_pullback_serves_one_thread() -> None:
    layer, x = nn.LSTM(6, 40, rng=0), x_of("lstm")
    (y, _), pullback = layer.vjp(x)
    pullback(np.ones_like(y))
    want = layer.flat_grads.copy()
    for _ in range(10):
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        found = at_once(lambda k, pullback=pullback, y=y: pullback(np.ones_like(y)))  # type: ignore[misc]
        refused = [f for f in found if isinstance(f, RuntimeError)]
        assert len(refused) == THREADS - 1
        assert all("it has been used" in str(f) for f in refused)
        assert np.array_equal(layer.flat_grads, want)


def test_functions_are_called_in_threads() -> None:
    r = np.random.default_rng(0)
    x, w, u = (r.standard_normal(s) for s in ((9, 4, 3), (20, 3), (20, 5)))

    def work(k: int) -> Any:
        out, pullback = ost.functional.lstm_vjp(x, w, u)
        return out, tuple(pullback(np.ones((9, 4, 5))))

    want = work(0)
    assert all(same(found, want) for found in unharmed(at_once(work)))


def test_threads_train_models_of_their_own() -> None:
    x = x_of("lstm").swapaxes(0, 1)

    def work(k: int) -> Any:
        model = nn.Sequential(nn.GRU(6, 16, batch_first=True, rng=0), nn.Linear(16, 6, rng=1))
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2), clip_norm=1.0)
        trainer.fit((x, x), epochs=3, batch_size=2, progress=False)
        return model.flat.copy(), trainer.predict(x)

    want = work(0)
    assert all(same(found, want) for found in unharmed(at_once(work)))


@pytest.mark.skipif(not FREE, reason="this Python has a GIL for good")
def test_free_threaded_python_stays_so() -> None:
    """A module that does not declare that it needs no GIL brings it back, with a warning."""
    code = "import ostinato, sys; assert not sys._is_gil_enabled()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
