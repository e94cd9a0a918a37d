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
        except OSError:
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


class SharedGradients:
    """The gradients of a model in one of the rows that ranks share.

    Args:
        rows: ``[size, n]``, that of each rank, as long as the buffer that holds the gradients.
        rank: the number of this rank.
        comm: a communicator of mpi4py, of these ranks.
        model: that of this rank.
    """

    def __init__(self, rows: Array, rank: int, comm: Any, model: Layer) -> None:
        self._rows, self._rank, self._comm, self._model = rows, rank, comm, model
        self._row = rows[rank]
        self.hold()

    def hold(self) -> None:
        """Make sure that the gradients lie in the row of this rank.

        Raises:
            ValueError: the model has another size than at first.
        """
        block, row = self._model._block, self._row
        if block.holds_grads(row):
            return
        if block.values.shape != row.shape:
            raise ValueError(
                f"model: expected the {row.size} parameters of the start of fit on several ranks, "
                f"got {block.values.size}"
            )
        block.place_grads(row)
        own = self._model._writable_grads().flat
        # The model may be a part of a larger one.
        start = (_address(own) - _address(row)) // own.itemsize
        first, end = cuts_of(len(own), len(self._rows))[self._rank : self._rank + 2]
        self._parts = self._rows[:, start + first : start + end]
        others = [a for k, a in enumerate(self._parts) if k != self._rank]
        self._outs = [self._parts[self._rank], *others]

    def release(self) -> None:
        """Give the model memory of its own again."""
        block = self._model._block
        if block.holds_grads(self._row):
            block.place_grads(None)

    def add(self, factor: Any) -> None:
        """Replace the gradients by their sum over the ranks, times a factor, on every rank.

        Every rank has exchanged something since it wrote its gradients.

        Args:
            factor: None: 1.
        """
        add_up(self._parts, self._outs, factor)
        self._comm.Barrier()


def _address(a: Array) -> int:
    address: int = a.__array_interface__["data"][0]
    return address


readable(globals())
