"""Training over several processes, with a communicator of threads in the place of MPI's."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_mpi
import ostinato as ost
from ostinato import nn
from ostinato.data import PairLoader, RaggedLoader, StreamLoader
from ostinato.train import Parallel, ParallelError
from ostinato.train._shared import SharedGradients, SharedRows, machine
from ostinato.train._sums import BLOCK
from ostinato.train.metrics import Accuracy


def shares() -> bool:
    """Return whether processes can share memory here: some sandboxes do not let them."""
    memory = SharedRows(1, 1, np.dtype(np.float32))
    made = memory.make() is not None
    memory.close()
    return made and bool(machine())


SHARES = shares()
needs_shared_memory = pytest.mark.skipif(not SHARES, reason="processes share no memory here")


def data(count: int = 22, steps: int = 6) -> tuple[Any, Any, Any]:
    """Return samples, targets and lengths; some have no step."""
    r = np.random.default_rng(0)
    x = r.standard_normal((count, steps, 2)).astype(np.float32)
    return x, x.cumsum(1)[..., :1], r.integers(0, steps + 1, count)


class Flat(nn.Layer):
    """A layer of some numbers."""

    def __init__(self, count: int, dtype: Any) -> None:
        super().__init__(dtype=dtype)
        self._declare({"a": np.zeros(count, dtype)})


def net(dtype: Any = np.float64, **options: Any) -> nn.Sequential:
    rnn = nn.GRU(2, 5, batch_first=True, rng=0, dtype=dtype, **options)
    return nn.Sequential(rnn, nn.Linear(5, 1, rng=1, dtype=dtype))


def trained(
    parallel: Parallel | None = None, train: Any = None, model: Any = None, **options: Any
) -> Any:
    """Train a small model, and return its trainer with the history."""
    given = {k: options.pop(k) for k in ("tbptt", "metrics", "callbacks") if k in options}
    loss = options.pop("loss", ost.losses.MSE())
    optimizer = options.pop("optimizer", None) or ost.optim.Adam(1e-2)
    trainer = ost.Trainer(
        net() if model is None else model,
        loss,
        optimizer,
        clip_norm=0.5,
        parallel=parallel,
        **given,
    )
    options = {"epochs": 2, "batch_size": 5, "progress": False, **options}
    if train is None:
        x, target, lengths = data()
        train = x.astype(np.float64), target.astype(np.float64), lengths
    trainer.history = trainer.fit(train, **options)  # type: ignore[attr-defined]
    return trainer


def compare(size: int, **options: Any) -> None:
    """Check that ranks agree with one process to rounding, and with themselves to the bit."""
    make = options.pop("make", None)

    def work(parallel: Any) -> Any:
        return trained(parallel, model=None if make is None else make(), **options)

    one = trained(model=None if make is None else make(), **options)
    first, again = (fake_mpi.same_on_all(fake_mpi.run(size, work)) for _ in range(2))
    assert np.array_equal(first.model.flat, again.model.flat)
    np.testing.assert_allclose(first.model.flat, one.model.flat, rtol=1e-9, atol=1e-11)
    rows = [[{**r, "seconds": 0} for r in t.history.rows] for t in (first, again, one)]
    assert rows[0] == rows[1]
    for a, b in zip(rows[0], rows[2]):
        assert a == pytest.approx(b, rel=1e-9)
    assert first.optimizer.steps == one.optimizer.steps


@pytest.mark.parametrize("size", [2, 3, 7])  # 7: the last batch of 2 rows leaves ranks without any
def test_ranks_train_as_one_process_does(size: int) -> None:
    x, target, lengths = data(12)
    valid = x.astype(np.float64), target.astype(np.float64), lengths
    compare(size, validation=valid, metrics=["mae"])


def test_weights_masks_and_accumulated_batches() -> None:
    x, target, _ = data()
    r = np.random.default_rng(1)
    third = {"weights": r.uniform(0, 2, x.shape[:2]), "mask": r.random(x.shape[:2]) < 0.7}
    whole = (x.astype(np.float64), target.astype(np.float64), third)
    compare(3, train=whole, accumulate=2)


def test_ragged_sequences_and_trees_of_parts() -> None:
    x, target, lengths = data()
    rows = [a[:n].astype(np.float64) for a, n in zip(x, lengths)]
    answers = [a[:n].astype(np.float64) for a, n in zip(target, lengths)]
    joined = ost.Ragged.join(rows)
    flat = np.concatenate(answers)
    weights = np.random.default_rng(1).uniform(0, 2, len(flat))
    loader = RaggedLoader(joined, flat, {"weights": weights}, batch_size=5)
    compare(3, train=loader)
    # Batches of the user's own are divided after they were made.
    batches = [(ost.Ragged.join(rows[k : k + 4]), answers[k : k + 4]) for k in range(0, 20, 4)]
    compare(3, train=batches)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("batches", [False, True])
def test_weights_of_sequences_some_of_which_are_empty(size: int, batches: bool) -> None:
    """Rank 0 has as many rows as sequences in either case: of 2, 0 and 1 steps, or of 2 and 0."""
    r, lengths = np.random.default_rng(0), [2, 1, 0, 0, 1, 4]
    x = ost.Ragged(r.standard_normal((8, 2)), np.cumsum([0, *lengths]))
    given = x, x.rows[:, :1].cumsum(0), {"weights": np.arange(1.0, 7)}
    train: Any = [given] if batches else given
    options: Any = {} if batches else {"shuffle": False, "batch_size": 6}
    compare(size, train=train, **options)


def test_stateful_windows_of_a_text() -> None:
    ids = np.random.default_rng(0).integers(0, 5, 150)
    compare(
        3,
        make=text_model,
        train=StreamLoader(ids, 5, 7),
        validation=StreamLoader(ids[::-1], 2, 9),
        loss=ost.losses.CrossEntropy(),
        metrics=["accuracy", "f1"],
    )


def test_truncated_backpropagation_of_rows_that_end_early() -> None:
    x, target, lengths = data(20, 9)
    whole = x.astype(np.float64), target.astype(np.float64), np.minimum(lengths, 7)
    compare(4, train=whole, tbptt=(2, 3), batch_size=6)


class Answering(nn.Model):
    """A model of several inputs, time first: pairs of a `PairLoader`."""

    def __init__(self) -> None:
        kind = {"dtype": np.float64}
        self.words = nn.Embedding(9, 4, rng=0, **kind)
        self.encoder = nn.GRU(4, 6, rng=1, **kind)
        self.decoder = nn.GRU(4, 6, rng=2, **kind)
        self.head = nn.Linear(6, 9, rng=3, **kind)

    def __call__(self, source: Any, inputs: Any, lengths: Any) -> Any:
        _, state = self.encoder(self.words(source), lengths=lengths)
        return self.head(self.decoder(self.words(inputs), state)[0])


class Anew(PairLoader):
    """A loader with batches of its own, which are divided after they were made."""

    def batches(self, epoch: int, start: int = 0) -> Any:
        return super().batches(epoch, start)


@pytest.mark.parametrize("kind", [PairLoader, Anew])
def test_pairs_of_sequences(kind: Any) -> None:
    r = np.random.default_rng(0)
    source, target = ([r.integers(2, 9, r.integers(1, 6)) for _ in range(17)] for _ in range(2))
    loader = kind(source, target, start=0, end=1, batch_size=5, buckets=2)
    loss = ost.losses.CrossEntropy()
    compare(3, make=Answering, train=loader, validation=loader, loss=loss, metrics=["accuracy"])


def test_one_rank_has_the_bits_of_a_process_alone() -> None:
    x, target, lengths = data()
    plain = trained(model=net(np.float32), train=(x, target, lengths))

    def work(parallel: Any) -> Any:
        return trained(parallel, model=net(np.float32), train=(x, target, lengths))

    (one,) = fake_mpi.run(1, work)
    assert np.array_equal(one.model.flat, plain.model.flat)
    assert one.history.column("loss") == plain.history.column("loss")


@pytest.mark.parametrize("size", [2, 4])
def test_sums_have_the_order_of_the_ranks(size: int) -> None:
    r = np.random.default_rng(0)
    for dtype, count in ((np.float32, 4 * BLOCK + 11), (np.float64, 2), (np.float32, 0)):
        scale = 10.0 ** r.integers(-44, 38, (size, count))
        parts = (r.standard_normal((size, count)) * scale).astype(dtype)
        # Halves of the last bit, to which a sum may be rounded twice.
        parts[1, ::3] = parts[0, ::3] * (0.5 + r.integers(-2, 3, parts[1, ::3].shape)) * 2.0**-23
        wanted = parts[0].astype(np.float64)
        for part in parts[1:]:
            wanted = wanted + part

        factor = np.dtype(dtype).type(1 / 3)

        def work(parallel: Any, parts: Any = parts, factor: Any = factor) -> Any:
            own = parts[parallel.rank].copy()
            parallel._add(own, factor)
            return own

        def shared(parallel: Any, parts: Any = parts, factor: Any = factor) -> Any:
            model = Flat(parts.shape[1], parts.dtype)
            together = parallel._hold_together(model)
            model._writable_grads()["a"][...] = parts[parallel.rank]
            parallel._exchange("the gradients")
            parallel._add(model._writable_grads().flat, factor, together)
            together.release()
            return model.grads["a"]

        with np.errstate(over="ignore"):
            rounded = wanted.astype(dtype) * factor
        ways = [fake_mpi.run(size, work)] + ([fake_mpi.run(size, shared)] if SHARES else [])
        for found in [one for way in ways for one in way]:
            assert found.dtype == dtype
            assert np.array_equal(found, rounded)


def ends_alike(a: list[Any], b: list[Any]) -> None:
    """Two runs of all ranks have ended with the same bits."""
    one, other = fake_mpi.same_on_all(a), fake_mpi.same_on_all(b)
    assert np.array_equal(one.model.flat, other.model.flat)


@needs_shared_memory
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_share_memory_have_the_bits_of_those_that_send_messages(size: int) -> None:
    """Also where the model is a part of a larger one, whose other gradients stay what they are."""

    def work(parallel: Any) -> Any:
        whole = nn.Sequential(nn.Linear(2, 3, rng=0), net(np.float32), nn.Linear(1, 2, rng=1))
        whole.layers[0]._writable_grads()["bias"][...] = 5
        trainer = trained(parallel, data(), model=whole.layers[1], accumulate=2)
        assert (whole.grads["0.bias"] == 5).all()
        return trainer

    ways = [fake_mpi.run(size, work, messages=m) for m in (False, True)]
    calls = [set(found[0].parallel._comm.shared.calls) for found in ways]
    assert "Alltoallv" in calls[1]
    assert "Alltoallv" not in calls[0]
    there, sent = (fake_mpi.same_on_all(found) for found in ways)
    assert np.array_equal(there.model.flat, sent.model.flat)
    assert np.array_equal(there.model.flat_grads, sent.model.flat_grads)


def owner(a: Any) -> Any:
    """Return what the memory of an array belongs to."""
    while isinstance(a, (np.ndarray, memoryview)):
        a = a.base if isinstance(a, np.ndarray) else a.obj
    return a


@needs_shared_memory
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_has_gradients_of_its_own_when_fit_has_ended(fails: bool) -> None:
    def work(parallel: Any) -> Any:
        model, seen = net(), []

        class See(ost.train.Callback):
            def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
                seen.append(type(owner(model.flat_grads)).__name__)
                if fails and parallel.rank == 1:
                    raise KeyError("no such word")

        error = pytest.raises((KeyError, ParallelError)) if fails else contextlib.nullcontext()
        with error:
            trained(parallel, model=model, steps=2, callbacks=[See()])
        return seen, owner(model.flat_grads), model.flat_grads.any()

    before = os.listdir("/proc/self/fd")
    for seen, left, counted in fake_mpi.run(2, work):
        assert set(seen) == {"mmap"}
        assert left is None
        assert counted
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@needs_shared_memory
def test_a_model_that_is_laid_out_anew_within_fit() -> None:
    """Its gradients come to the shared memory again; those of other sizes are sent."""

    class Net(nn.Model):
        def __init__(self) -> None:
            self.rnn = nn.GRU(2, 5, batch_first=True, rng=0)
            self.out = nn.Linear(5, 1, rng=1)

        def __call__(self, x: Any) -> Any:
            return self.out(self.rnn(x)[0])

    class Change(ost.train.Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            if step == 1:
                setattr(trainer.model, self.name, nn.Linear(5, 1, rng=2))

    for name, is_sent in (("out", False), ("another", True)):

        def work(parallel: Any, name: str = name) -> Any:
            options = {"optimizer": ost.optim.SGD(0.1), "callbacks": [Change(name)]}
            return trained(parallel, data()[:2], model=Net(), steps=3, **options)

        there, sent = (fake_mpi.run(2, work, messages=m) for m in (False, True))
        assert ("Alltoallv" in there[0].parallel._comm.shared.calls) == is_sent
        ends_alike(there, sent)


@needs_shared_memory
def test_a_model_at_another_place_on_every_rank() -> None:
    def work(parallel: Any) -> Any:
        own = nn.Linear(2, 40 * (parallel.rank + 1), rng=0)
        whole = nn.Sequential(own, net(np.float32))
        return trained(parallel, data()[:2], model=whole.layers[1], steps=3)

    there, sent = (fake_mpi.run(2, work, messages=m) for m in (False, True))
    assert not there[0].parallel.shares_memory
    ends_alike(there, sent)


@needs_shared_memory
def test_arrays_of_gradients_of_before_have_those_of_the_end() -> None:
    def work(parallel: Any) -> Any:
        model = net()
        before = model.grads
        trained(parallel, model=model, steps=2)
        return before.flat.copy(), model.grads.flat.copy()

    for before, after in fake_mpi.run(2, work):
        assert after.any()
        assert np.array_equal(before, after)


@needs_shared_memory
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_within_fit_has_gradients_of_its_own() -> None:
    rows = SharedRows(2, net(np.float32).flat.size, np.dtype(np.float32))
    rows.make()
    model = net(np.float32)
    assert rows.rows is not None
    held = SharedGradients(rows.rows, 0, None, model)
    model._writable_grads().flat[:] = 3
    child = os.fork()
    if not child:
        seen = bool((model.flat_grads == 3).all())
        model._writable_grads().flat[:] = 7
        os._exit(0 if seen else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (model.flat_grads == 3).all()
    held.release()
    rows.close()
    assert (model.flat_grads == 3).all()


@needs_shared_memory
@pytest.mark.parametrize("what", ["no memory", "another's", "gone", "no mapping"])
def test_messages_are_sent_where_memory_cannot_be_shared(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    find = SharedRows.open
    if what == "no memory":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    elif what == "another's":  # of another machine, with the same numbers
        monkeypatch.setattr(SharedRows, "open", lambda self, at: find(self, (*at[:2], "other")))
    elif what == "gone":
        monkeypatch.setattr(SharedRows, "open", lambda self, at: find(self, (at[0], 10**6, at[2])))
    else:
        monkeypatch.setattr(SharedRows, "_map", refuse)
    before = os.listdir("/proc/self/fd")
    found = fake_mpi.run(3, lambda p: trained(p, steps=2))
    assert "Alltoallv" in found[0].parallel._comm.shared.calls
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    sent = fake_mpi.run(3, lambda p: trained(p, steps=2), messages=True)
    ends_alike(found, sent)


def test_dropout_repeats_itself_and_differs_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(parallel: Any) -> Any:
        return trained(parallel, model=net(num_layers=2, dropout=0.5))

    first, again = (fake_mpi.same_on_all(fake_mpi.run(2, work)) for _ in range(2))
    assert np.array_equal(first.model.flat, again.model.flat)

    own: dict[int, Any] = {}
    add = Parallel._add

    def noted(self: Any, values: Any, *more: Any) -> None:
        own[self.rank] = values.copy()
        add(self, values, *more)

    monkeypatch.setattr(Parallel, "_add", noted)
    x = np.ones((2, 3, 2))  # a row for each rank, and the same one
    for rate in (0.0, 0.5):
        model = {"num_layers": 2, "dropout": rate}
        data = x, x[..., :1]
        work = lambda p, m=model, d=data: trained(p, d, model=net(**m), steps=1)
        fake_mpi.run(2, work, messages=True)  # others would write to what is noted
        assert np.array_equal(own[0], own[1]) == (rate == 0)


# -- checkpoints -----------------------------------------------------------------------------------


def text_model() -> nn.Sequential:
    kind = {"dtype": np.float64}
    return nn.Sequential(
        nn.Embedding(5, 4, rng=0, **kind),  # type: ignore[arg-type]
        nn.LSTM(4, 6, rng=1, **kind),
        nn.Linear(6, 5, rng=2, **kind),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("sizes", [(3, 3), (3, 1), (1, 3), (7, 2)])
def test_a_run_is_resumed_by_any_number_of_ranks(sizes: tuple[int, int], tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 5, 150)
    options: dict[str, Any] = {
        "train": StreamLoader(ids, 5, 7),
        "loss": ost.losses.CrossEntropy(),
        "epochs": 3,
        "checkpoint": tmp_path / "run.safetensors",
        "log": tmp_path / "log.csv",
    }

    def work(parallel: Any, **more: Any) -> Any:
        return trained(parallel, model=text_model(), **{**options, **more})

    fake_mpi.run(sizes[0], lambda p: work(p, steps=6))  # in the middle of an epoch
    resumed = fake_mpi.same_on_all(fake_mpi.run(sizes[1], lambda p: work(p, resume=True)))
    alone = {"checkpoint": None, "log": None}
    whole = fake_mpi.same_on_all(fake_mpi.run(sizes[1], lambda p: work(p, **alone)))
    assert resumed.optimizer.steps == whole.optimizer.steps > 6
    if sizes[0] == sizes[1]:
        assert np.array_equal(resumed.model.flat, whole.model.flat)
    np.testing.assert_allclose(resumed.model.flat, whole.model.flat, rtol=1e-9, atol=1e-11)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + len(resumed.history.rows)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (1, 3)])
def test_a_run_is_resumed_within_a_batch(sizes: tuple[int, int], tmp_path: Path) -> None:
    x, target, lengths = data(14, 9)
    options: dict[str, Any] = {
        "train": (x.astype(np.float64), target.astype(np.float64), lengths),
        "tbptt": (2, 3),
        "batch_size": 6,
        "checkpoint": tmp_path / "run.safetensors",
    }
    fake_mpi.run(sizes[0], lambda p: trained(p, **options, steps=7))
    resumed = fake_mpi.run(sizes[1], lambda p: trained(p, **options, resume=True))
    found = fake_mpi.same_on_all(resumed)
    options["checkpoint"] = None
    whole = fake_mpi.same_on_all(fake_mpi.run(sizes[1], lambda p: trained(p, **options)))
    np.testing.assert_allclose(found.model.flat, whole.model.flat, rtol=1e-9, atol=1e-11)


def test_patience_ends_all_ranks_at_once_with_the_best_parameters() -> None:
    x, target, _ = data()
    far = x.astype(np.float64), -100 * target.astype(np.float64)

    def work(parallel: Any) -> Any:
        return trained(parallel, validation=far, patience=2, epochs=40)

    found = fake_mpi.run(3, work)
    trainer = fake_mpi.same_on_all(found)
    assert trainer.history.stopped == "no better loss within patience"
    assert {len(t.history.rows) for t in found} == {len(trainer.history.rows)}
    assert trainer.evaluate(far)["loss"] == pytest.approx(trainer.history.best["valid_loss"])


def test_rank_0_alone_shows_progress_and_metrics_of_ones_own_see_all_data(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Largest(ost.train.metrics.Metric):
        name, mode = "largest", "min"

        def reset(self) -> None:
            self.value, self.rows = 0.0, 0

        def update(self, y: Any, target: Any, on: Any = None) -> None:
            self.rows += len(y)
            self.value = max(self.value, float(np.abs(y - target).max()))

        def compute(self) -> float:
            assert self.rows == 22
            return self.value

    x, target, _ = data()
    valid = x.astype(np.float64), target.astype(np.float64)
    options: dict[str, Any] = {"validation": valid, "metrics": [Largest()], "progress": True}
    found = fake_mpi.run(2, lambda p: trained(p, **options))
    one = trained(**{**options, "progress": False})
    assert fake_mpi.same_on_all(found).history.rows[-1]["valid_largest"] == pytest.approx(
        one.history.rows[-1]["valid_largest"]
    )
    lines = [line for line in capfd.readouterr().err.splitlines() if "epoch" in line or "/" in line]
    assert len(lines) == 2  # one an epoch


# -- errors ----------------------------------------------------------------------------------------


class Failing(ost.train.Callback):
    """Fail, or ask for an end, on one rank after some steps."""

    def __init__(self, parallel: Any, rank: int, how: str) -> None:
        self.here, self.how = parallel.rank == rank, how

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        if self.here and step == 4 and self.how == "step":
            raise KeyError("no such word")
        if self.here and step == 4 and self.how == "stop":
            trainer.stop("enough")

    def on_row(self, trainer: Any, row: Any) -> None:
        if self.here and self.how == "row":
            raise OSError(28, "No space left on device")

    def on_end(self, trainer: Any) -> None:
        if self.here and self.how == "end":
            raise ValueError("it ends badly")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("how", ["step", "row", "end"])
def test_an_error_on_one_rank_ends_all(rank: int, how: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"

    def work(parallel: Any) -> Any:
        return trained(parallel, callbacks=[Failing(parallel, rank, how)], checkpoint=path)

    found = fake_mpi.run(3, work)
    assert isinstance(found[rank], (KeyError, OSError, ValueError))
    name = type(found[rank]).__name__
    for k, error in enumerate(found):
        if k != rank:
            assert isinstance(error, ParallelError)
            assert f"rank {rank} of 3 has failed: {name}" in str(error)
    steps = {"step": 4, "row": 5, "end": 10}[how]
    assert ost.train.Checkpoint.load(path, which="last").step == steps


def test_a_stop_on_one_rank_stops_all() -> None:
    def work(parallel: Any) -> Any:
        return trained(parallel, callbacks=[Failing(parallel, 1, "stop")])

    found = fake_mpi.run(3, work)
    assert {t.history.stopped for t in found} == {"enough"}
    assert fake_mpi.same_on_all(found).optimizer.steps == 4


def test_what_is_not_finite_is_told_to_all(tmp_path: Path) -> None:
    x, target, _ = data()
    bad = target.astype(np.float64)
    bad[17] = np.nan
    path = tmp_path / "run.safetensors"

    def work(parallel: Any) -> Any:
        data = x.astype(np.float64), bad
        return trained(parallel, data, checkpoint=path, checkpoint_every=1, shuffle=False)

    found = fake_mpi.run(2, work)  # row 2 of batch 3: rank 0
    assert all(isinstance(e, ost.train.Diverged) for e in found)
    assert "target holds nan at [17, 0, 0]" in str(found[0])
    assert "rank 0 of 2 has failed: Diverged: the loss is nan at step 4" in str(found[1])
    assert ost.train.Checkpoint.load(path, which="last").step == 3


def test_a_file_that_is_there_is_told_to_all(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"something")
    found = fake_mpi.run(2, lambda p: trained(p, checkpoint=path))
    assert isinstance(found[0], FileExistsError)
    assert "rank 0 of 2 has failed: FileExistsError" in str(found[1])
    found = fake_mpi.run(2, lambda p: trained(p, checkpoint=path, resume=True))
    assert isinstance(found[0], ValueError)
    assert "rank 0 of 2 has failed: ValueError" in str(found[1])
    assert path.read_bytes() == b"something"


def test_a_checkpoint_that_cannot_be_written_ends_all(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ostinato.train._checkpoint.write", full)
    with pytest.warns(UserWarning, match="could not be written"):
        found = fake_mpi.run(2, lambda p: trained(p, checkpoint=tmp_path / "run.safetensors"))
    assert isinstance(found[0], OSError)
    assert "rank 0 of 2 has failed: OSError: [Errno 28]" in str(found[1])


def test_ranks_that_were_given_different_things() -> None:
    x, target, _ = data()
    wide = x.astype(np.float64), target.astype(np.float64)

    def fails(work: Any, match: str) -> None:
        for error in fake_mpi.run(2, work):
            assert isinstance(error, ParallelError), error
            assert match in str(error)

    fails(lambda p: trained(p, seed=p.rank), "than rank 0 for seed: expected 0, got 1")
    fails(lambda p: trained(p, epochs=1 + p.rank), "for epochs")
    other = [wide, (wide[0] + 1, wide[1])]
    fails(lambda p: trained(p, other[p.rank]), "for train")
    batches = [[(a[:n], b[:n]) for a, b in [wide]] for n in (6, 8)]
    fails(lambda p: trained(p, batches[p.rank]), "was given a batch of 8 rows, and rank 0 one of 6")
    fails(lambda p: trained(p, [wide] * (1 + p.rank)), "is at an update, and rank 0 at a row")

    def spoiled(parallel: Any) -> Any:
        class Spoil(ost.train.Callback):
            def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
                if parallel.rank:
                    with trainer.model.write() as p:
                        p.flat[0] += 1

        return trained(parallel, callbacks=[Spoil()])

    fails(spoiled, "the parameters of rank 1 differ from those of rank 0 after step 5")


def test_models_that_begin_with_different_parameters_take_those_of_rank_0() -> None:
    def work(parallel: Any) -> Any:
        model = net()
        with model.write() as p:
            p.flat[...] += parallel.rank
        return trained(parallel, model=model)

    one = trained()
    found = fake_mpi.same_on_all(fake_mpi.run(3, work))
    np.testing.assert_allclose(found.model.flat, one.model.flat, rtol=1e-9)


def test_what_several_processes_do_not_do() -> None:
    def clipped(parallel: Any) -> Any:
        x, target, _ = data()
        model = net(np.float32)
        trainer = ost.Trainer(model, ost.losses.MSE(), clip_step_norm=1.0, parallel=parallel)
        trainer.fit((x, target), progress=False)

    for error in fake_mpi.run(2, clipped):
        assert isinstance(error, ValueError)
        assert "clip_step_norm: expected None with several processes" in str(error)
    with pytest.raises(TypeError, match="parallel: expected a Parallel, got str"):
        ost.Trainer(net(), ost.losses.MSE(), parallel="mpi")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="comm: expected a communicator of mpi4py or None, got int"):
        Parallel(3)


class Broken(ost.losses.MSE):
    """A loss that cannot be computed once its memory is short."""

    short = False

    def _terms(self, y: Any, target: Any) -> Any:
        if self.short:
            raise MemoryError("no room for the loss")
        return super()._terms(y, target)


class Shorten(ost.train.Callback):
    def __init__(self, loss: Broken) -> None:
        self.loss = loss

    def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
        self.loss.short = self.loss.short or step == 4


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("every", [None, 3, 4])  # no checkpoint; before the error; with it
def test_an_error_that_comes_again_when_the_loss_is_checked_ends_all(
    rank: int, every: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    kept = {} if every is None else {"checkpoint": path, "checkpoint_every": every}
    models: dict[int, Any] = {}

    def work(parallel: Any) -> Any:
        loss, model = Broken(), models.setdefault(parallel.rank, net())
        callbacks = [Shorten(loss)] if parallel.rank == rank else []
        return trained(parallel, model=model, loss=loss, callbacks=callbacks, **kept)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ends = fake_mpi.run(3, work)
    for k, error in enumerate(ends):
        assert type(error) is (MemoryError if k == rank else ParallelError)
        assert "MemoryError: no room for the loss" in str(error) or k == rank
    # Step 4 is not proven good by a loss that fails: all go back to step 3.
    three = fake_mpi.run(3, lambda parallel: trained(parallel, steps=3))
    for model in models.values():
        assert np.array_equal(model.flat, three[0].model.flat)
    said = [str(w.message) for w in found if "could not be written" in str(w.message)]
    assert len(said) == (0 if every is None else 3)
    assert path.exists() == (every == 3)
    if every == 3:
        assert ost.train.Checkpoint.load(path, which="last").step == 3


def test_an_error_in_the_check_of_the_loss_does_not_hide_the_first_one(tmp_path: Path) -> None:
    class Fail(ost.train.Callback):
        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            if step == 4:
                trainer.loss.short = True
                raise KeyError("no such word")

    path = tmp_path / "run.safetensors"
    with (
        pytest.warns(UserWarning, match="written after .* MemoryError: no room"),
        pytest.raises(KeyError, match="no such word"),
    ):
        trained(loss=Broken(), callbacks=[Fail()], checkpoint=path)


@pytest.mark.parametrize("rank", [0, 1])
def test_too_little_memory_for_the_gradients_is_told_to_all(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short:
        """NumPy, which has no more memory on one rank."""

        thread: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def empty(self, *args: Any) -> Any:
            if threading.get_ident() == self.thread:
                raise MemoryError("no room for the gradients")
            return np.empty(*args)

    short = Short()
    monkeypatch.setattr("ostinato.train._parallel.np", short)

    def work(parallel: Any) -> Any:
        if parallel.rank == rank:
            short.thread = threading.get_ident()
        return trained(parallel)

    found = fake_mpi.run(2, work, messages=True)
    assert isinstance(found[rank], MemoryError)
    assert isinstance(found[1 - rank], ParallelError)
    assert "MemoryError: no room for the gradients" in str(found[1 - rank])


def test_an_error_outside_of_fit_is_told_by_the_block() -> None:
    def work(parallel: Any) -> Any:
        if parallel.rank == 1:
            raise ValueError("no such file")
        return trained(parallel)

    found = fake_mpi.run(2, work)
    assert str(found[0]) == "rank 1 of 2 has failed: ValueError: no such file"
    assert str(found[1]) == "no such file"


@pytest.mark.parametrize("then", ["the end", "more training", "an error"])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_behind_one_that_was_caught_is_told_to_all(rank: int, then: str) -> None:
    """The ranks that have caught what they were told go on, and wait for one that does not."""

    def work(parallel: Any) -> Any:
        try:
            trained(parallel, callbacks=[Failing(parallel, 1, "step")])
        except (KeyError, ParallelError):
            if parallel.rank == rank:
                raise OSError(28, "No space left on device") from None
        if then == "more training":
            trained(parallel)
        if then == "an error":
            raise ValueError("another one")

    found = fake_mpi.run(3, work)
    assert isinstance(found[rank], OSError)
    for k in {0, 1, 2} - {rank}:
        if then == "an error":
            assert str(found[k]) == "another one"
        else:
            assert isinstance(found[k], ParallelError)
            assert f"rank {rank} of 3 has failed: OSError" in str(found[k])


@pytest.mark.parametrize("call", ["Alltoallv", pytest.param("Barrier", marks=needs_shared_memory)])
def test_a_transfer_that_fails_ends_all_ranks(call: str, capfd: pytest.CaptureFixture[str]) -> None:
    def work(parallel: Any) -> Any:
        if parallel.rank:
            setattr(parallel._comm, call, lambda *_: 1 / 0)
        return trained(parallel)

    found = fake_mpi.run(2, work, messages=call == "Alltoallv")
    assert isinstance(found[1], fake_mpi.Aborted)
    assert "rank 1 of 2 failed while it exchanged data" in capfd.readouterr().err


def test_metrics_merge_to_those_of_all_batches() -> None:
    r = np.random.default_rng(0)
    y, target = r.standard_normal((40, 4)), r.integers(0, 3, 40)
    for name in ("accuracy", "f1", "bits_per_character"):
        whole, *parts = (ost.train.metrics.KNOWN[name]() for _ in range(3))
        whole.update(y, target)
        parts[0].update(y[::2], target[::2])
        parts[1].update(y[1::2], target[1::2])
        parts[0].merge(parts[1])
        assert parts[0].compute() == pytest.approx(whole.compute())
    with pytest.raises(TypeError, match="does not define merge"):
        ost.train.metrics.Metric().merge(Accuracy())


# -- applications and commands ---------------------------------------------------------------------


def applications(folder: Path) -> dict[str, Any]:
    """Return calls that train a little model of each application on some ranks."""
    from ostinato.tasks import _application, anomaly, classify, compose, parse, tag, transcribe
    from ostinato.tasks import translate as t
    from ostinato.tasks._clips import Clip
    from ostinato.tasks._documents import Documents

    def quiet(line: str) -> None:
        pass

    noise = np.random.default_rng(0).normal(size=16000) / 10
    clips = [Clip(str(k), noise[k * 3000 : k * 3000 + 6000], "no") for k in range(3)]
    texts = Documents(["good film", "bad film"] * 4, ["yes", "no"] * 4, None, [""] * 8, "")
    tunes = [f"M:6/8\nK:G\n{a}B{b} gdB|{b}6|]\n" for a in "ABcde" for b in "GABcd"]
    tagged = tag.Tagged([["a", "b"], ["b", "a"]] * 20, [["X", "Y"], ["X", "Z"]] * 20)
    pairs, series = folder / "pairs.tsv", folder / "series.csv"
    pairs.write_text("".join(f"{'ab' * k}\t{'ba' * k}\n" for k in range(1, 30)), encoding="utf-8")
    values = np.sin(np.arange(400) / 5)
    series.write_text("value\n" + "".join(f"{v:.4f}\n" for v in values), encoding="utf-8")

    def run(p: Any) -> Any:
        return _application.Run(None, None, None, quiet, p)

    def train(name: str, path: Path, options: Any) -> Any:
        return lambda p: _application.train(name, [str(path)], options, report=quiet, parallel=p)

    small = classify.ClassifyOptions(hidden=4, embedding=4, epochs=1, batch=3)
    listops = parse.ParseOptions(examples=20, held_out=5, epochs=1, hidden=4)
    spoken = transcribe.TranscribeOptions(hidden=4, layers=1, epochs=1)
    out = {
        "tag": lambda p: tag.train(tagged, tag.TagOptions(hidden=4, epochs=1), run(p)),
        "compose": lambda p: compose.train(
            tunes, compose.ComposeOptions(steps=2, hidden=4, written=1), run(p)
        ),
        "parse": lambda p: parse.train([], listops, run(p)),
        "classify": lambda p: classify.train_classifier(
            texts, texts, small, report=quiet, parallel=p
        ),
        "transcribe": lambda p: transcribe.train(clips, spoken, report=quiet, parallel=p),
        "anomaly": train("anomaly", series, anomaly.AnomalyOptions(hidden=4, steps=2, window=32)),
    }
    if importlib.util.find_spec("sacrebleu") is not None:  # which chrF is measured by
        options = t.TranslateOptions(hidden=4, epochs=1, members=2)
        out["translate"] = train("translate", pairs, options)
    return out


def test_every_application_trains_on_all_ranks(tmp_path: Path) -> None:
    for name, train in applications(tmp_path).items():

        def work(parallel: Any, train: Any = train) -> list[str]:
            train(parallel)
            return list(parallel._comm.shared.calls)

        for calls in fake_mpi.run(2, work):
            assert not isinstance(calls, BaseException), f"{name}: {calls!r}"
            assert {"Alltoallv", "Barrier"} & set(calls), name


def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.cli._ranks import RANK, SIZES, TASKS, launched

    for name in (*SIZES, RANK, TASKS):
        monkeypatch.delenv(name, raising=False)
    assert launched() == 1
    monkeypatch.setenv(TASKS, "4")  # tasks without MPI are programs of their own
    assert launched() == 1
    monkeypatch.setenv(RANK, "0")
    assert launched() == 4
    monkeypatch.delenv(TASKS)
    assert launched() == 0
    monkeypatch.setenv(SIZES[1], "2")
    assert launched() == 2


@pytest.mark.parametrize("task", ["forecast", "series"])
def test_a_command_for_one_process_is_refused_where_the_launcher_tells_no_size(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ostinato.cli import _ranks
    from ostinato.train import _parallel

    for name in (*_ranks.SIZES, _ranks.TASKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(_ranks.RANK, "0")
    comms: dict[int, Any] = {}
    monkeypatch.setattr(_parallel, "_world", lambda: comms[threading.get_ident()])
    monkeypatch.setattr(_parallel, "_threads_are_shared", True)

    def work(parallel: Any) -> Any:
        comms[threading.get_ident()] = parallel._comm
        args = argparse.Namespace(command="train", task=task, parallel=None)
        try:
            with _ranks.ranks(args):
                return "it has run"
        except ValueError as e:
            return str(e), _ranks.repeats(args, e)

    said = f"train {task}: expected one process, since it does not train by a Trainer, got 2 that"
    for rank, found in enumerate(fake_mpi.run(2, work)):
        assert found == (f"{said} mpiexec has started", rank == 1)  # only rank 0 says so
    monkeypatch.setattr(_parallel, "_world", _parallel._One)
    args = argparse.Namespace(command="train", task=task, parallel=None)
    with _ranks.ranks(args):  # one process is what it is for
        assert args.parallel is None


def test_commands_under_mpiexec_without_mpi4py(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from ostinato.cli import main
    from ostinato.train import _parallel

    def missing() -> Any:
        raise ImportError("parallel: expected mpi4py and a library of MPI")

    monkeypatch.setenv("PMI_SIZE", "4")
    words = ["train", "text", "--corpus", "python", "--save", str(tmp_path / "model")]
    monkeypatch.setattr(_parallel, "_world", missing)
    assert main(words) == 2
    assert "parallel: expected mpi4py" in capsys.readouterr().err
    monkeypatch.setattr(_parallel, "_world", _parallel._One)
    assert main(words) == 2
    assert "has started 4 processes, and mpi4py finds 1" in capsys.readouterr().err
    assert main(["train", "forecast", "sales.csv"]) == 2
    assert "train forecast: expected one process" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert main(["train", "text", str(tmp_path / "none.txt")]) == 2
    assert "FILE: expected a file, found none" in capsys.readouterr().err
