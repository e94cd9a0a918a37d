"""Train one model by several processes, each of which takes part of every batch.

What is sent goes through a communicator of mpi4py, or an object with the same methods; MPI is
imported only where `Parallel` is given none. Gradients on GPUs go through NCCL, whose communicator
is made over MPI.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _device, _driver
from .._annotations import readable
from .._check import Array
from .._device import Device
from .._runtime import get_num_threads, set_num_threads
from ._shared import SharedGradients, SharedRows, machine, place_of
from ._sums import Nccl, add_up, cuts_of, nccl_of
from ._types import Diverged

if TYPE_CHECKING:
    from ..nn import Layer

_threads_are_shared = False
WIDTH = 7  # numbers that a rank can tell the others at a time
END = "the end of the program"


class ParallelError(RuntimeError):
    """Report that another process of a parallel run has failed, and why."""


class Parallel:
    """The processes that train one model together, for ``Trainer(parallel=...)``.

    Every process runs the same program. Row k of a batch belongs to rank ``k mod size``; gradients
    are added in the order of the ranks, so that equal numbers of ranks give equal bits.

    Used in a ``with`` statement, an exception that leaves the block on one rank is told to the
    others, which raise `ParallelError` instead of waiting for ever.

    >>> import ostinato as ost
    >>> class One:  # of MPI itself: Parallel() in a program that mpiexec has started
    ...     Get_rank, Get_size = (lambda self: 0), (lambda self: 1)
    >>> with ost.train.Parallel(One()) as parallel:
    ...     print(parallel.rank, parallel.size)
    0 1

    Args:
        comm: a communicator of mpi4py; None: all processes that ``mpiexec`` has started
            (``MPI.COMM_WORLD``). Those of them that may use the same cores of a machine then divide
            their number among themselves, unless OSTINATO_NUM_THREADS is set. All ranks of the
            communicator make theirs together.

    Raises:
        ImportError: comm is None, and mpi4py or MPI is not installed.
        TypeError: comm is no communicator.

    Attributes:
        rank: the number of this process, from 0 on. Rank 0 writes files and shows progress.
        size: how many processes there are.
        local_rank: the number of this process among those of its machine, from 0 on: on a machine
            with several GPUs, ``model.to(f"cuda:{parallel.local_rank}")`` gives each its own.
        shares_memory: whether the ranks of the last `fit` had their gradients in memory that they
            share. Otherwise they sent messages, or were on GPUs; the bits are the same.
    """

    def __init__(self, comm: Any = None) -> None:
        world = comm is None
        self._comm: Any = _world() if world else comm
        if not hasattr(self._comm, "Get_rank") or not hasattr(self._comm, "Get_size"):
            raise TypeError(
                f"comm: expected a communicator of mpi4py or None, got {type(comm).__name__}"
            )
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        self._failures: list[str | None] = [None] * self.size  # what each rank said last
        self._received: Array = np.zeros(0)
        self._nccl: Nccl | None = None
        self.local_rank = 0
        self.shares_memory = False
        self._one_machine = False  # which has memory that its processes can share
        if self.size > 1:
            self._look_around(world)

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Wait until all ranks are here, and tell them of an error that they do not know yet.

        A rank that is still elsewhere is told there, by the exchange that it takes part in, and
        comes here in its turn; also one whose program has caught the errors that it was told of.
        """
        unsaid = None if error is None or hasattr(error, "_ranks_know") else self._known(error)
        found, together = None, self.size == 1
        while not together:
            table, wrong = self._met(END, (), unsaid)
            together = bool((table[:, 1] == zlib.crc32(END.encode())).all())
            found, unsaid = found or wrong, None
        if error is None and found is not None:
            raise found

    def __repr__(self) -> str:
        return f"Parallel(rank {self.rank} of {self.size})"

    def _look_around(self, world: bool) -> None:
        """Find the ranks on the same machine.

        Leave each of all processes its share of the cores that several of them may use, once.
        """
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        own = (socket.gethostname(), cores, machine())
        with self._communicating():
            all_of_them = self._comm.allgather(own)
        self.local_rank = [host for host, *_ in all_of_them[: self.rank]].count(own[0])
        self._one_machine = bool(own[2]) and len({(host, m) for host, _, m in all_of_them}) == 1
        if world:
            self._share_threads(all_of_them.count(own))

    @staticmethod
    def _share_threads(beside: int) -> None:
        global _threads_are_shared
        done, _threads_are_shared = _threads_are_shared, True
        if beside > 1 and not done and not os.environ.get("OSTINATO_NUM_THREADS"):
            set_num_threads(max(1, get_num_threads() // beside))

    # -- what ranks tell one another ---------------------------------------------------------------

    def _exchange(self, place: str, *numbers: float) -> Array:
        """Return the numbers of all ranks, ``[size, numbers]``.

        Args:
            place: where the program is; other ranks have to be there too.
            numbers: at most `WIDTH`.

        Returns:
            float64, a row for each rank.

        Raises:
            Diverged: that was raised on another rank.
            ParallelError: another rank has failed, or is elsewhere.
        """
        if self.size == 1:
            return np.array([numbers], np.float64)
        table, wrong = self._met(place, numbers, None)
        if wrong is not None:
            raise wrong
        return table[:, 2 : 2 + len(numbers)]

    def _met(
        self, place: str, numbers: Any, error: BaseException | None
    ) -> tuple[Array, BaseException | None]:
        """Return what all ranks say, and what is wrong with it: a failure, or different places."""
        table, failed = self._gathered(zlib.crc32(place.encode()), numbers, error)
        if failed:
            return table, self._error_of_another()
        first, *others = table[:, 1].tolist()
        if all(one == first for one in others):
            return table, None
        with self._communicating():
            places = self._comm.allgather(place)
        other = next(k for k, p in enumerate(places) if p != places[0])
        return table, self._known(
            ParallelError(
                f"rank {other} of {self.size} is at {places[other]}, and rank 0 at "
                f"{places[0]}: expected all ranks to be given the same data and arguments"
            )
        )

    def _tell(self, error: BaseException, *, last: bool = False) -> None:
        """Tell the other ranks that this one has failed, unless they know.

        Args:
            error: what was raised.
            last: whether this rank will take no part in anything else: of an error that came up
                while one that they know was handled they are then not told.
        """
        known, one = False, error if last else None
        while one is not None and not known:
            known, one = hasattr(one, "_ranks_know"), one.__context__
        if not known and not hasattr(error, "_ranks_know"):
            self._say(error)

    def _say(self, error: BaseException) -> None:
        if self.size > 1:
            self._known(error)
            self._gathered(0, (), error)

    def _settle(self, place: str, error: BaseException | None, *numbers: float) -> Array:
        """Exchange what follows work that may have failed on any rank.

        Args:
            place: as for `_exchange`, where the other ranks wait for this one.
            error: what the work has raised on this rank. The others are always told, also while an
                earlier error is handled which they know.
            numbers: those of this rank if it has not failed.

        Returns:
            The numbers of all ranks, as `_exchange` does.

        Raises:
            BaseException: ``error``, after the others have been told, or that of another rank.
        """
        if error is None:
            return self._exchange(place, *numbers)
        self._say(error)
        raise error

    def _gathered(
        self, place: int, numbers: Any, error: BaseException | None
    ) -> tuple[Array, bool]:
        """Return a row of what each rank says, and whether one of them has failed."""
        unused = (0.0,) * (WIDTH - len(numbers))
        own = np.array((error is not None, place, *numbers, *unused), np.float64)
        table = np.zeros((self.size, 2 + WIDTH))
        with self._communicating():
            self._comm.Allgather(own, table)
            failed = any(table[:, 0].tolist())
            if failed:
                said = None if error is None else f"{type(error).__name__}: {error}"
                self._failures = self._comm.allgather(said)
        return table, failed

    def _error_of_another(self) -> BaseException:
        rank, said = next((k, s) for k, s in enumerate(self._failures) if s)
        kind = Diverged if said.startswith(f"{Diverged.__name__}: ") else ParallelError
        return self._known(kind(f"rank {rank} of {self.size} has failed: {said}"))

    @staticmethod
    def _known(error: BaseException) -> BaseException:
        """Mark an error as one that all ranks know of."""
        error._ranks_know = True  # type: ignore[attr-defined]
        return error

    @contextlib.contextmanager
    def _communicating(self) -> Iterator[None]:
        """End all ranks where one fails within a transfer: no other rank can be told."""
        try:
            yield
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
            print(
                f"ostinato: rank {self.rank} of {self.size} failed while it exchanged data, and "
                f"ends all ranks: {said}",
                file=sys.__stderr__,
                flush=True,
            )
            self._comm.Abort(1)
            raise

    # -- arrays and objects ------------------------------------------------------------------------

    def _add(
        self, values: Array, factor: Any = None, shared: SharedGradients | None = None
    ) -> None:
        """Replace an array by its sum over the ranks, the same bits on every rank.

        Each rank adds up one slice, in the order of the ranks and in float64, rounds once, and
        multiplies; the sums are then gathered.

        Args:
            values: contiguous ``[n]`` of float32 or float64, as long on every rank.
            factor: what the sums are multiplied by; None: 1.
            shared: what `_hold_together` has returned for the gradients that these are, in which
                the ranks reach one another's.
        """
        if self.size == 1:
            return
        with self._communicating():
            if self._nccl is not None and _device.of(values) is self._nccl.device:
                self._nccl.add(values, factor)
                return
            if shared is not None:
                shared.add(factor)
                return
            cuts = cuts_of(len(values), self.size)
            counts = np.diff(cuts).tolist()
            own = counts[self.rank]
            received = self._room(values)
            places = [own * k for k in range(self.size)]
            self._comm.Alltoallv(
                [values, (counts, cuts[:-1])], [received, ([own] * self.size, places)]
            )
            parts = received.reshape(self.size, own)
            add_up(parts, [parts[0]], factor)
            self._comm.Allgatherv(parts[0], [values, (counts, cuts[:-1])])

    def _room(self, values: Array) -> Array:
        """Return memory for the slices that `_add` receives, which is kept from call to call.

        A rank that calls this before an exchange which comes before `_add` can tell the others
        that it has too little memory; within `_add` nobody can be told.
        """
        if self._nccl is not None and _device.of(values) is self._nccl.device:
            return self._nccl.room(values)
        cuts = cuts_of(len(values), self.size)
        count = self.size * (cuts[self.rank + 1] - cuts[self.rank])
        if self._received.shape != (count,) or self._received.dtype != values.dtype:
            self._received = np.empty(count, values.dtype)
        return self._received

    def _hold_together(self, model: Layer) -> SharedGradients | None:
        """Move the gradients of a model to memory that all ranks reach; None: there is none.

        Args:
            model: one of as many parameters on every rank.

        Raises:
            ParallelError: another rank has failed.
        """
        whole = model._block.values
        self.shares_memory = False
        if not self._one_machine or _device.of(whole) is not None:
            return None
        memory = SharedRows(self.size, whole.size, whole.dtype)
        try:
            place = memory.make() if self.rank == 0 else None
            where = (whole.size, place_of(model))
            made = self._exchange("new memory for the gradients", place is not None, *where)
            if not made[0, 0] or (made[:, 1:3] != made[0, 1:3]).any():
                return None
            place = self._share(place)
            if self.rank and place is not None:
                memory.open(place)
            found = self._exchange("the memory of the gradients", memory.rows is not None)
        finally:
            memory.close()
        if memory.rows is None or not found[:, 0].all():
            return None
        self.shares_memory = True
        return SharedGradients(memory.rows, self.rank, self._comm, model)

    def _own(self, device: str) -> str:
        """Return the name of the GPU of this rank where "cuda" is asked for, and others as given.

        A launcher may let each process see a GPU of its own alone.
        """
        count = len(_driver.devices()) if device == "cuda" and self.size > 1 else 0
        return f"{device}:{self.local_rank % count}" if count else device

    def _connect(self, device: Device | None) -> None:
        """Make the ways between the GPUs of all ranks, unless they are there.

        Args:
            device: that of the model; None: the CPU, then on all ranks, which has been compared.

        Raises:
            ImportError: CuPy has not found NCCL.
            ParallelError: two ranks with one GPU.
        """
        if self.size == 1 or device is None:
            return
        known = self._nccl is not None and self._nccl.device is device
        if self._exchange("the devices of the models", known).all():
            return
        name, place, error = None, "", None
        try:
            nccl, place = nccl_of(device), device.place()
            name = nccl.get_unique_id() if self.rank == 0 else None
        except Exception as e:  # the others wait to be told
            error = e
        self._settle("the name of NCCL's communicator", error)
        self._refuse_shared((socket.gethostname(), place))
        name = self._share(name)
        with self._communicating():  # within NCCL the others would wait for ever
            self._nccl = Nccl(device, name, self.rank, self.size)

    def _refuse_shared(self, place: tuple[str, str]) -> None:
        """Raise on all ranks if two of them have one GPU, which NCCL does not take."""
        places = self._collect_all(place)
        for rank, own in enumerate(places):
            first = places.index(own)
            if first < rank:
                raise self._known(
                    ParallelError(
                        f"rank {rank} has the GPU of rank {first}, {own[1]} of {own[0]}: expected "
                        'one for each; use model.to(f"cuda:{parallel.local_rank}")'
                    )
                )

    def _share(self, thing: Any) -> Any:
        """Return the object of rank 0, which it can pickle."""
        if self.size == 1:
            return thing
        with self._communicating():
            return self._comm.bcast(thing if self.rank == 0 else None, root=0)

    def _collect(self, thing: Any) -> list[Any]:
        """Return the objects of all ranks on rank 0, and nothing elsewhere."""
        if self.size == 1:
            return [thing]
        with self._communicating():
            return self._comm.gather(thing, root=0) or []

    def _collect_all(self, thing: Any) -> list[Any]:
        """Return the objects of all ranks, in their order."""
        if self.size == 1:
            return [thing]
        with self._communicating():
            return list(self._comm.allgather(thing))


class _One:
    """The communicator of a process that is alone."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1


ALONE = Parallel(_One())


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:  # without the package, or without a library of MPI
        raise ImportError(
            "parallel: expected mpi4py and a library of MPI, such as pip install "
            f"'ostinato[mpi]' mpich; {e}"
        ) from None
    return MPI.COMM_WORLD


readable(globals())
