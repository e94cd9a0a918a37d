"""Gradients that are zero and are not written as such: what is added first takes their place."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _core, nn
from ostinato.optim._optimizers import Also

LAYERS: dict[str, Callable[[], Any]] = {
    "rnn": lambda: nn.RNN(3, 21, rng=0),
    "lstm": lambda: nn.LSTM(3, 21, num_layers=2, dropout=0.5, rng=0),
    "peepholes": lambda: nn.LSTM(3, 21, peephole=True, rng=0),
    "projected": lambda: nn.LSTM(3, 21, proj_size=7, rng=0),
    "layer norm": lambda: nn.LSTM(3, 21, layer_norm=True, rng=0),
    "gru": lambda: nn.GRU(3, 21, bidirectional=True, rng=0),
    "gru reset before": lambda: nn.GRU(3, 21, reset_after=False, rng=0),
    "general": lambda: nn.LSTM(3, 21, activation="softsign", coupled_gates=True, rng=0),
    "learned": lambda: nn.GRU(3, 21, learned_state=True, rng=0),
    "no bias": lambda: nn.LSTM(3, 21, bias=False, rng=0),
    "bfloat16": lambda: nn.LSTM(3, 21, precision="bfloat16", rng=0),
}


def unwritten(layer: Any) -> None:
    """Let the gradients be zero where memory holds NaN."""
    layer._clear_grads()
    layer._block.held_grads[...] = np.nan


def gradients(layer: Any, x: Any, clear: Callable[[Any], None], **options: Any) -> Any:
    clear(layer)
    (y, _), pullback = layer.vjp(x, rng=5, **options)
    pullback(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape))
    return {n: np.array(g) for n, g in layer.grads.items()}


def assert_equal(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(ours) == list(expected)
    for name, g in expected.items():
        np.testing.assert_array_equal(ours[name], g, err_msg=name)


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_gradients_take_their_place(name: str, batch: int, kernel_set: str) -> None:
    layer = LAYERS[name]()
    x = np.random.default_rng(0).normal(size=(6, batch, 3)).astype(np.float32)
    for options in ({}, {"lengths": np.arange(batch) % 7}, {"lengths": np.zeros(batch, np.int64)}):
        expected = gradients(layer, x, nn.Layer.zero_grad, **options)
        assert_equal(gradients(layer, x, unwritten, **options), expected)


@pytest.mark.parametrize("limit", [None, "states", 2])
def test_the_second_ones_are_added(limit: Any) -> None:
    layer, x = nn.LSTM(3, 8, rng=0), np.ones((6, 2, 3), np.float32)
    layer.freeze("bias*")
    once = gradients(layer, x, unwritten, memory_limit=limit)
    twice = gradients(layer, x, lambda layer: None, memory_limit=limit)
    assert_equal(twice, {n: 2 * g for n, g in once.items()})
    assert not twice["bias_ih_l0"].any()
    assert twice["weight_hh_l0"].all()


@pytest.mark.parametrize("steps", [0, 4])
def test_without_a_step_or_a_row_they_are_zero(steps: int) -> None:
    layer = nn.LSTM(3, 8, rng=0)
    x = np.ones((steps, 2 if steps == 0 else 0, 3), np.float32)
    assert not any(g.any() for g in gradients(layer, x, unwritten).values())


def test_a_pullback_that_is_refused_leaves_them_zero() -> None:
    layer, x = nn.LSTM(3, 8, rng=0), np.ones((6, 2, 3), np.float32)
    unwritten(layer)
    _, pullback = layer.vjp(x)
    with pytest.raises(ValueError, match="dy: expected shape"):
        pullback(np.ones((1, 2, 8), np.float32))
    assert layer._block.unwritten
    pullback(np.ones((6, 2, 8), np.float32))
    found = {n: np.array(g) for n, g in layer.grads.items()}
    layer.zero_grad()
    layer.vjp(x)[1](np.ones((6, 2, 8), np.float32))
    assert_equal(found, dict(layer.grads))


READERS: dict[str, Callable[[Any], Any]] = {
    "flat_grads": lambda layer: layer.flat_grads,
    "grads": lambda layer: layer.grads["weight_hh_l0"],
    "block": lambda layer: layer._block.grads,
    "norm": lambda layer: np.array(ost.optim.global_norm(layer)),
    "writable": lambda layer: layer._writable_grads().flat,
    "copy": lambda layer: copy.deepcopy(layer).flat_grads,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)).flat_grads,
    "model": lambda layer: nn.Sequential(layer).flat_grads,
    "pullback": lambda layer: layer._gradients(None)["weight_hh_l0"],
}


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_them_sees_zero(name: str) -> None:
    layer = nn.LSTM(3, 8, rng=0)
    unwritten(layer)
    assert not READERS[name](layer).any()


class Shared(nn.Model):
    """Two layers of one matrix, an embedding that is looked up, and a layer that is not called."""

    def __init__(self) -> None:
        self.embedding = nn.Embedding(4, 6, rng=0)
        self.first, self.second = nn.GRU(6, 6, rng=1), nn.GRU(6, 6, rng=2)
        self.unused = nn.LSTM(6, 3, rng=3)
        self.scale = nn.Parameter(np.ones(6, np.float32))
        self.tie("second.weight_hh_l0", "first.weight_hh_l0")

    def __call__(self, x: Any) -> Any:
        h, _ = self.first(self.embedding(x))
        return self.second(h)[0] * self.scale


def _shared() -> Any:
    return Shared()


def _looked_up() -> Any:
    parts = nn.Embedding(4, 6, rng=0), nn.LSTM(6, 6, bidirectional=True, rng=1)
    return nn.Sequential(*parts, nn.Linear(12, 6, rng=2))


@pytest.mark.parametrize("make", [_shared, _looked_up])
def test_a_run_gives_the_bits_of_a_loop_that_writes_zeros(make: Callable[[], Any]) -> None:
    """The loop clips, scales and steps one after the other, and a run in one pass."""
    model, other = make(), make()
    x = np.random.default_rng(0).integers(0, 4, (3, 40, 2))
    target = np.random.default_rng(1).normal(size=(3, 40, 2, 6)).astype(np.float32)
    loss, seen = ost.losses.MSE(), []
    trainer = ost.Trainer(model, loss, ost.optim.AdamW(1e-2), clip_norm=1e-3)

    class Grads(ost.train.Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            seen.append(np.array(trainer.model.flat_grads))

    trainer.callbacks.append(Grads())
    trainer.fit(list(zip(x, target)), epochs=2, progress=False)
    optimizer = ost.optim.AdamW(1e-2)
    for step in range(6):
        other.zero_grad()
        out, pullback = other.vjp(x[step % 3])
        y = out[0] if isinstance(out, tuple) else out
        pullback(loss(y, target[step % 3])[1], need_dx=False)
        assert ost.optim.clip_by_norm(other, 1e-3) > 1e-3
        np.testing.assert_array_equal(seen[step], other.flat_grads)
        optimizer.step(other)
    assert len(seen) == 6
    np.testing.assert_array_equal(model.flat, other.flat)


@pytest.mark.parametrize("kind", ["adam", "sgd", "own"])
def test_an_update_keeps_frozen_parameters_too(kind: str) -> None:
    """A run that has to go back takes all parameters from what the update has kept."""

    class Own(ost.optim.SGD):
        def _update(self, p: Any, g: Any, lr: float, decay: float, age: int, *state: Any) -> Any:
            return (p - p.dtype.type(lr) * g,)

    optimizer = {"adam": ost.optim.AdamW, "sgd": ost.optim.SGD, "own": Own}[kind](0.1)
    model = nn.Sequential(nn.Linear(5, 4, rng=0), nn.Linear(4, 3, rng=1), nn.Linear(3, 2, rng=2))
    model.freeze("1.*")
    model._writable_grads().flat[...] = 2
    before, previous = model.flat.copy(), np.full_like(model.flat, np.nan)
    optimizer._advance(model, None, Also(0.25, previous))
    np.testing.assert_array_equal(previous, before)
    assert set(model.flat_grads.tolist()) == {0.5}
    moved = {n: bool((a != b).all()) for n, a, b in _pairs(model, before)}
    assert moved == {n: not n.startswith("1.") for n in moved}


def _pairs(model: Any, flat: Any) -> Any:
    for name, a in model.parameters().items():
        yield name, a, model._block.view(flat, name)


# -- threads ---------------------------------------------------------------------------------------


class Towers(nn.Model):
    """Layers whose pullbacks run in threads of their own, as a user may write it."""

    def __init__(self, count: int) -> None:
        self.towers = [nn.GRU(3, 7, rng=k) for k in range(count)]


def test_pullbacks_of_several_layers_may_run_in_threads() -> None:
    """No thread undoes what another one notes of its own gradients."""
    model = Towers(8)
    x = np.random.default_rng(0).normal(size=(2, 1, 3)).astype(np.float32)
    dy = np.ones((2, 1, 7), np.float32)

    def run(layer: Any) -> None:
        layer.vjp(x)[1](dy)

    model.zero_grad()
    for layer in model.towers:
        run(layer)
    expected = {n: np.array(g) for n, g in model.grads.items()}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(40):
                unwritten(model)
                list(pool.map(run, model.towers))
                assert_equal(dict(model.grads), expected)
    finally:
        sys.setswitchinterval(before)


def test_what_several_threads_note_is_kept() -> None:
    """The order of two pullbacks that overlap, each between the first and the last note of one."""
    model = nn.Sequential(nn.GRU(3, 4), nn.GRU(4, 4))
    model._clear_grads()
    block = model._block
    first, second = (model[k]._writable_grads() for k in range(2))
    keys, a = first._begin(lambda _: list(first), [], True)
    block.held_grads[...] = 5  # as the kernels of the first may have put there
    others, b = second._begin(lambda _: list(second), [], False)
    assert not any(g.any() for g in second.values())
    second._end(others, False)
    assert (block.grads == 5).any()
    first._end(keys, False)
    assert (len(a), len(b)) == (4, 0)
    assert (first["weight_hh_l0"] == 5).all()
    assert not block.unwritten
    assert not block.writers


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_two_pullbacks_of_one_parameter_at_once_are_refused(tied: bool, written: bool) -> None:
    """The second is refused, the first goes on; gradients of its own are another matter."""
    model = Shared()
    first = model.first
    second = model.second if tied else first
    x, dy = np.ones((6, 1, 6), np.float32), np.ones((6, 1, 6), np.float32)
    model.zero_grad()
    first.vjp(x, memory_limit=2)[1](dy)
    expected = {n: np.array(g) for n, g in model.grads.items()}
    refused = []

    def within(t: int, y: Any) -> Any:
        thread = threading.Thread(target=other, args=(t,))
        thread.start()
        thread.join()
        return dy[t : t + len(y)]

    def other(t: int) -> None:
        (_, _), pullback = second.vjp(x)
        try:
            pullback(dy)
        except RuntimeError as e:
            refused.append(str(e))
        (_, _), pullback = second.vjp(x)
        pullback(dy, grads=second.new_grads())

    if written:
        model.zero_grad()
        assert model.flat_grads.shape
        assert not model._block.unwritten
    else:
        unwritten(model)
    first.vjp(x, memory_limit=2)[1](within)
    assert refused
    assert all("expected one pullback at a time to add to the gradients of" in r for r in refused)
    assert_equal(dict(model.grads), expected)
    second.vjp(x)[1](dy)  # and it may go on afterwards
    assert not np.array_equal(model.grads["first.weight_hh_l0"], expected["first.weight_hh_l0"])


def test_a_child_process_is_not_kept_from_gradients_of_its_parent() -> None:
    layer = nn.GRU(3, 4, rng=0)
    layer._block.writers.update({key: [object()] for key in ("", *layer._block.entries)})
    layer.vjp(np.ones((2, 1, 3), np.float32))[1](np.ones((2, 1, 4), np.float32))
    assert layer.flat_grads.any()


# -- gradients that are not there ------------------------------------------------------------------


def test_a_model_that_only_runs_has_no_memory_of_gradients(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nn.Sequential(nn.Embedding(9, 6), nn.GRU(6, 8), nn.Linear(8, 3)).save(path)
    model = ost.load(path)
    model.freeze("1.*")
    model(np.ones((4, 2), np.int64))
    model.stream().step(np.ones(1, np.int64))
    copied, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for one in (model, copied, unpickled):
        assert not one._block.has_grads
        assert not one.flat_grads.any()
        assert one._block.has_grads
        one.vjp(np.ones((4, 2), np.int64), rng=0)[1](np.ones((4, 2, 3), np.float32))
        assert one.grads["2.weight"].any()
        assert not one.grads["1.weight_ih_l0"].any()


def test_threads_that_ask_first_are_given_the_same_gradients() -> None:
    for _ in range(20):
        layer, ready = nn.Linear(3, 4), threading.Barrier(4)

        def ask(layer: Any = layer, ready: Any = ready) -> Any:
            ready.wait()
            return layer._block.held_grads

        with ThreadPoolExecutor(4) as pool:
            found = [f.result() for f in [pool.submit(ask) for _ in range(4)]]
        assert all(a is found[0] for a in found)


def _dirty(shapes: Any) -> None:
    """Leave memory that is kept for gradients full of NaN."""
    arrays = [_core.kept_array(np.dtype(np.float32), s) for s in shapes for _ in range(2)]
    for a in arrays:
        a[...] = np.nan


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_functions_overwrite_what_memory_holds(steps: int, limit: Any) -> None:
    r = np.random.default_rng(0)
    hidden = 300  # blocks of 1 MB are kept
    x = r.normal(size=(steps, 2, 3)).astype(np.float32)
    weights = [r.normal(size=s).astype(np.float32) / 20 for s in ((1200, 3), (1200, hidden))]
    dy = np.ones((steps, 2, hidden), np.float32)
    lengths = np.array([steps, 0])
    found = []
    for _ in range(2):
        _dirty([w.shape for w in weights])
        _, pullback = ost.functional.lstm_vjp(x, *weights, lengths=lengths, memory_limit=limit)
        found.append(pullback(dy))
    for name in ("dweight_ih", "dweight_hh", "dx"):
        a, b = (getattr(f, name) for f in found)
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
    assert found[0].dweight_ih.any() == (steps > 0)
