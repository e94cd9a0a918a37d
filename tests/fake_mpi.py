"""A communicator of threads with the methods of mpi4py's that ostinato calls."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import ostinato as ost


class Aborted(RuntimeError):
    """What MPI_Abort is here."""


class ThreadComm:
    """One rank of a group of threads; `run` makes them."""

    def __init__(self, rank: int, shared: Shared) -> None:
        self.rank, self.shared = rank, shared

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return len(self.shared.slots)

    def _all(self, name: str, thing: Any) -> list[Any]:
        """Return what all ranks have given to the same call."""
        self.shared.slots[self.rank] = (name, thing)
        self.shared.barrier.wait(60)
        found = list(self.shared.slots)
        self.shared.barrier.wait(60)
        assert {n for n, _ in found} == {name}, f"ranks in different calls: {found}"
        self.shared.calls.append(name)
        return [t for _, t in found]

    def allgather(self, thing: Any) -> list[Any]:
        return [pickle.loads(s) for s in self._all("allgather", pickle.dumps(thing))]

    def bcast(self, thing: Any, root: int = 0) -> Any:
        return pickle.loads(self._all("bcast", pickle.dumps(thing))[root])

    def gather(self, thing: Any, root: int = 0) -> list[Any] | None:
        found = self._all("gather", pickle.dumps(thing))
        return [pickle.loads(s) for s in found] if self.rank == root else None

    def Allgather(self, own: Any, table: Any) -> None:
        table[...] = self._all("Allgather", own.copy())

    def Alltoallv(self, send: Any, receive: Any) -> None:
        values, (counts, places) = send
        parts = [values[p : p + n].copy() for n, p in zip(counts, places)]
        every = self._all("Alltoallv", parts)
        out, (counts, places) = receive
        for sent, n, p in zip(every, counts, places):
            out[p : p + n] = sent[self.rank]

    def Allgatherv(self, own: Any, receive: Any) -> None:
        every = self._all("Allgatherv", own.copy())
        out, (counts, places) = receive
        for sent, n, p in zip(every, counts, places):
            out[p : p + n] = sent

    def Barrier(self) -> None:
        self._all("Barrier", None)

    def Abort(self, code: int) -> None:
        self.shared.barrier.abort()
        raise Aborted(f"rank {self.rank} has ended all with {code}")


class Shared:
    """What the ranks of a group share."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.calls: list[str] = []


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Call a function with its number in each of some threads; return what each gave or raised."""
    found: list[Any] = [None] * count

    def one(k: int) -> None:
        try:
            found[k] = work(k)
        except BaseException as e:
            found[k] = e

    threads = [threading.Thread(target=one, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return found


def run(size: int, work: Callable[[Any], Any], *, messages: bool = False) -> list[Any]:
    """Call a function on every rank, in threads; return what it returned or raised on each.

    Args:
        size: how many ranks there are.
        work: the function, of a `Parallel`.
        messages: whether gradients are sent, as by ranks on several machines, also where the ranks
            can share memory.
    """
    shared = Shared(size)

    def one(rank: int) -> Any:
        with ost.train.Parallel(ThreadComm(rank, shared)) as parallel:
            parallel._one_machine = parallel._one_machine and not messages
            return work(parallel)

    return in_threads(size, one)


def same_on_all(results: list[Any]) -> Any:
    """Return the result of rank 0, after a check that all have the same parameters."""
    for one in results:
        if isinstance(one, BaseException):
            raise one
        assert np.array_equal(one.model.flat, results[0].model.flat)
    return copy.copy(results[0])
