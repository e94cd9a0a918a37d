"""Memory that the ranks of one machine share, in which their gradients lie and are added up.

It is an anonymous file in memory, which rank 0 makes and the others open through ``/proc``: it has
no name in any folder, so that nothing is left of it when processes are killed, and it lives as long
as an array in it. Linux has that. Elsewhere, and where ranks are on several machines or in
containers that do not see each other's processes, gradients are sent as messages.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from .._annotations import readable
from .._check import Array
from ._sums import add_up, cuts_of

if TYPE_CHECKING:
    from ..nn import Layer

Place = tuple[int, int, str]  # of a file: the process that has it open, its number there, its name


def machine() -> str:
    """Return what tells a running machine from others; "" where ranks cannot share memory."""
    try:
        os.memfd_create  # noqa: B018 - Linux alone has it
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (AttributeError, OSError):
        return ""


class SharedRows:
    """A row of numbers for each rank, in memory that all of them reach.

    Args:
        size: how many ranks there are.
        count: numbers of a row.
        dtype: float32 or float64.
    """

    def __init__(self, size: int, count: int, dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = (size, count), dtype
        # Rows begin on pages of their own, and the memory is never empty.
        self._stride = (count * dtype.itemsize // mmap.PAGESIZE + 1) * mmap.PAGESIZE
        self._file: int | None = None
        self.rows: Array | None = None

    def make(self) -> Place | None:
        """Make the memory; return where the other ranks find it, or None: the system has none."""
        name = f"ostinato-{secrets.token_hex(16)}"
        try:
            self._file = os.memfd_create(name)
            # Now: what is not there when it is written to would end the process.
            os.posix_fallocate(self._file, 0, self.shape[0] * self._stride)
            self._map(self._file)
        except OSError:
            self.close()
            return None
        return os.getpid(), self._file, name

    def open(self, place: Place) -> None:
        """Open what another rank has made; there are no rows after that if it is not found."""
        process, file, name = place
        path = f"/proc/{process}/fd/{file}"
        try:
            if os.readlink(path).startswith(f"/memfd:{name}"):  # not of another machine
                self._file = os.open(path, os.O_RDWR)
                self._map(self._file)
        except (OSError, ValueError):  # ValueError: it is shorter than these rows
            self.rows = None
        self.close()

    def close(self) -> None:
        """Close the file; the memory stays while there are arrays in it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _map(self, file: int) -> None:
        size, count = self.shape
        memory = mmap.mmap(file, size * self._stride)
        whole: Array = np.frombuffer(memory, self.dtype).reshape(size, -1)
        self.rows = whole[:, :count]


_held: weakref.WeakSet[SharedGradients] = weakref.WeakSet()


class SharedGradients:
    """The gradients of a model in one of the rows that ranks share.

    Args:
        rows: ``[size, n]``, that of each rank, as long as the buffer that holds the gradients.
        rank: the number of this rank.
        comm: a communicator of mpi4py, of these ranks.
        model: that of this rank, whose parameters lie at one place on all of them.
    """

    def __init__(self, rows: Array, rank: int, comm: Any, model: Layer) -> None:
        self._rows, self._rank, self._comm, self._model = rows, rank, comm, model
        self._row = rows[rank]
        self.hold()
        _held.add(self)

    def hold(self) -> bool:
        """Let the gradients lie in the row of this rank; return whether they fit there.

        They do not in those of a model that has been given more or fewer parameters since.
        """
        block, row = self._model._block, self._row
        if block.holds_grads(row):
            return True
        if block.values.shape != row.shape:
            return False
        start = place_of(self._model)
        count = len(self._model._writable_grads().flat)
        self._own = block.held_grads  # to which they return: arrays of them may be in use
        block.place_grads(row)
        first, end = cuts_of(count, len(self._rows))[self._rank : self._rank + 2]
        self._parts = self._rows[:, start + first : start + end]
        others = [a for k, a in enumerate(self._parts) if k != self._rank]
        self._outs = [self._parts[self._rank], *others]
        return True

    def release(self) -> None:
        """Give the model its own memory again."""
        block = self._model._block
        if block.holds_grads(self._row):
            block.place_grads(self._own)

    def add(self, factor: Any) -> None:
        """Replace the gradients by their sum over the ranks, times a factor, on every rank.

        Every rank has exchanged something since it wrote its gradients.

        Args:
            factor: None: 1.
        """
        add_up(self._parts, self._outs, factor)
        self._comm.Barrier()


def place_of(model: Layer) -> int:
    """Return where the parameters of a model begin in their buffer, its own or a larger one."""
    own, whole = model._writable_grads().flat, model._block.held_grads
    return (_address(own) - _address(whole)) // whole.itemsize


def _address(a: Array) -> int:
    address: int = a.__array_interface__["data"][0]
    return address


def _in_a_child() -> None:
    """Give a process that was forked within `fit` gradients of its own."""
    for gradients in list(_held):
        gradients.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)


readable(globals())
