"""Training over several processes on GPUs: CuPy, NCCL and MPI have stand-ins, ranks are threads."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import fake_mpi
import ostinato as ost
from conftest import native_for_tests
from ostinato import nn
from ostinato.train import ParallelError
from ostinato.train._sums import Nccl
from test_parallel import data, trained


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every thread a GPU of its own."""
    native_for_tests()
    place = lambda: str(threading.get_ident())
    fake_cupy.stand_in(monkeypatch, replace(fake_cupy.DEVICE, place=place))
    monkeypatch.setattr(fake_cupy.cuda, "nccl", fake_cupy.Nccl())


def net(**options: Any) -> Any:
    rnn = nn.GRU(2, 5, batch_first=True, rng=0, **options)
    return nn.Sequential(rnn, nn.Linear(5, 1, rng=1)).to("cuda")


def fit(parallel: Any = None, train: Any = None, **options: Any) -> Any:
    model = options.pop("model", None)
    return trained(parallel, data() if train is None else train, model or net(), **options)


def flat(trainer: Any) -> Any:
    return trainer.model.flat.get()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_train_as_one_process_does(size: int) -> None:
    x, target, lengths = data(12)
    valid = (x, target, lengths)
    one = fit(validation=valid, metrics=["mae"])
    runs = []
    for _ in range(2):
        found = fake_mpi.run(size, lambda p: fit(p, validation=valid, metrics=["mae"]))
        assert not any(isinstance(f, BaseException) for f in found), found
        assert all(np.array_equal(flat(f), flat(found[0])) for f in found)
        runs.append(found[0])
    assert np.array_equal(flat(runs[0]), flat(runs[1]))
    np.testing.assert_allclose(flat(runs[0]), flat(one), rtol=1e-3, atol=1e-5)
    for a, b in zip(runs[0].history.rows, one.history.rows):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["valid_mae"] == pytest.approx(b["valid_mae"], rel=1e-4)
    assert fake_cupy.cuda.nccl.made == [size, size]  # one communicator a run


def test_one_rank_has_the_bits_of_a_process_alone() -> None:
    (one,) = fake_mpi.run(1, fit)
    assert np.array_equal(flat(one), flat(fit()))
    assert fake_cupy.cuda.nccl.made == []


def test_sums_have_the_order_of_the_ranks() -> None:
    r = np.random.default_rng(0)
    for k, (dtype, count) in enumerate(((np.float32, 11), (np.float64, 2), (np.float32, 0))):
        scale = 10.0 ** r.integers(-9, 9, (4, count))
        parts = (r.standard_normal((4, count)) * scale).astype(dtype)
        wanted = ((parts[0].astype(np.float64) + parts[1]) + parts[2]) + parts[3]
        name = fake_cupy.cuda.nccl.get_unique_id()

        def work(parallel: Any, parts: Any = parts, name: bytes = name) -> Any:
            own = fake_cupy.asarray(parts[parallel.rank])
            Nccl(fake_cupy.DEVICE, name, parallel.rank, parallel.size).add(own)
            return own.get()

        for found in fake_mpi.run(4, work):
            assert found.dtype == dtype, k
            assert np.array_equal(found, wanted.astype(dtype))


def test_gradients_leave_the_device_by_nccl_alone() -> None:
    def work(parallel: Any) -> Any:
        trainer = fit(parallel, steps=3)
        parallel._comm.shared.calls.append("done")
        return trainer

    found = fake_mpi.run(2, work)
    assert not any(isinstance(f, BaseException) for f in found), found
    calls = found[0].parallel._comm.shared.calls
    assert not {"Alltoallv", "Allgatherv"} & set(calls)


def test_a_run_is_resumed_by_another_number_of_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fake_mpi.run(3, lambda p: fit(p, checkpoint=path, steps=4))
    resumed = fake_mpi.run(2, lambda p: fit(p, checkpoint=path, resume=True))
    whole = fake_mpi.run(2, fit)
    np.testing.assert_allclose(flat(resumed[0]), flat(whole[0]), rtol=1e-3, atol=1e-5)
    assert resumed[0].optimizer.steps == whole[0].optimizer.steps > 4
    # The states that a model carries from window to window are put together in a checkpoint.
    ids = np.random.default_rng(0).integers(0, 5, 150)
    loader = ost.data.StreamLoader(ids, 5, 7)

    def text(parallel: Any, **options: Any) -> Any:
        layers = (nn.Embedding(5, 4, rng=0), nn.LSTM(4, 6, rng=1), nn.Linear(6, 5, rng=2))
        model = nn.Sequential(*layers).to("cuda")
        loss = ost.losses.CrossEntropy()
        return fit(parallel, loader, model=model, loss=loss, checkpoint=path, **options)

    first = fake_mpi.run(3, lambda p: text(p, steps=2, overwrite=True))
    again = fake_mpi.run(2, lambda p: text(p, epochs=1, resume=True))
    assert not any(isinstance(f, BaseException) for f in (*first, *again)), (first, again)
    assert np.array_equal(flat(again[0]), flat(again[1]))


def test_what_is_not_finite_is_told_to_all(tmp_path: Path) -> None:
    x, target, _ = data()
    bad = target.copy()
    bad[17] = np.nan
    path = tmp_path / "run.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1, "shuffle": False}
    found = fake_mpi.run(2, lambda p: fit(p, (x, bad), **options))
    assert all(isinstance(e, ost.train.Diverged) for e in found), found
    assert "the loss is nan at step 4" in str(found[0])
    assert "rank 0 of 2 has failed: Diverged" in str(found[1])
    assert ost.train.Checkpoint.load(path, which="last").step == 3


def test_gradients_that_overflow_end_all_ranks_at_once() -> None:
    x, target, _ = data()
    large = target * np.float32(1e25)  # its square is finite on no rank, its slope overflows in sum
    found = fake_mpi.run(2, lambda p: fit(p, (x, large)))
    assert all(isinstance(e, ost.train.Diverged) for e in found), found


def test_two_ranks_with_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.stand_in(monkeypatch, replace(fake_cupy.DEVICE, place=lambda: "0000:01:00.0"))
    for error in fake_mpi.run(2, fit):
        assert isinstance(error, ParallelError)
        assert "rank 1 has the GPU of rank 0, 0000:01:00.0 of " in str(error)


def test_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.cuda.nccl.available = False
    for error in fake_mpi.run(2, fit):
        assert isinstance(error, (ImportError, ParallelError))
        assert "parallel: expected NCCL for a model on a GPU" in str(error)


def test_a_communicator_that_one_rank_cannot_make(monkeypatch: pytest.MonkeyPatch) -> None:
    nccl = fake_cupy.cuda.nccl
    make = nccl.NcclCommunicator

    def broken(size: int, name: bytes, rank: int) -> Any:
        if rank == 1:
            raise RuntimeError("NCCL_ERROR_UNHANDLED_CUDA_ERROR")
        return make(size, name, rank)

    monkeypatch.setattr(nccl, "NcclCommunicator", broken)
    monkeypatch.setattr(sys, "__stderr__", said := io.StringIO())
    found = fake_mpi.run(2, fit)
    assert isinstance(found[1], fake_mpi.Aborted)
    assert "ends all ranks: RuntimeError: NCCL_ERROR" in said.getvalue()


def test_one_rank_on_the_cpu() -> None:
    def work(parallel: Any) -> Any:
        model = net()
        return fit(parallel, model=model if parallel.rank else model.to("cpu"))

    for error in fake_mpi.run(2, work):
        assert isinstance(error, ParallelError)
        assert "for the device of the model: expected 'cpu', got 'emulated'" in str(error)


def test_the_gpu_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato._driver.devices", lambda: [{}] * 4)
    found = fake_mpi.run(3, lambda p: [p._own(n) for n in ("cuda", "cuda:3", "cpu")])
    assert found == [[f"cuda:{k}", "cuda:3", "cpu"] for k in range(3)]
    monkeypatch.setattr("ostinato._driver.devices", lambda: [{}])  # each process sees its own
    assert fake_mpi.run(2, lambda p: p._own("cuda")) == ["cuda:0", "cuda:0"]
