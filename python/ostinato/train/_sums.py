"""Add arrays up over the ranks of a parallel run: the order of the sums, and NCCL on GPUs.

Each rank adds up one slice of the array. NCCL only carries the slices: its own reductions add in an
order that depends on how the machines are connected.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import Array
from .._device import Device

BLOCK = 1 << 16  # numbers of a slice that are added up at a time


def cuts_of(count: int, size: int) -> list[int]:
    """Return where the slices of the ranks begin in an array, and its end."""
    return [count * k // size for k in range(size + 1)]


def add_up(parts: Array, outs: Sequence[Array], factor: Any = None) -> None:
    """Write the sum over the first axis: in its order and in float64, rounded once.

    Args:
        parts: ``[size, n]`` of float32 or float64.
        outs: arrays ``[n]``, which may be rows of ``parts``.
        factor: what the sum is multiplied by after it was rounded; None: 1.
    """
    count = parts.shape[1]
    # On a CPU the sums stay in its cache; on a GPU every block is a few launches.
    step = BLOCK if isinstance(parts, np.ndarray) else max(count, 1)
    # What overflows is infinite, and found with the norm.
    with np.errstate(all="ignore"):
        for begin in range(0, count, step):
            here = slice(begin, begin + step)
            out = outs[0][here]
            _sum_into(out, parts[:, here])
            if factor is not None:
                out *= factor
            for other in outs[1:]:
                other[here] = out


def _sum_into(out: Array, parts: Array) -> None:
    """Write the sum over the first axis, of which ``out`` may be a row."""
    if len(parts) == 2:
        # The same bits: a sum of two float32 that is rounded to float64 first is rounded to
        # float32 as if it had not been, since 53 >= 2 * 24 + 2 (Figueroa 1995).
        np.add(parts[0], parts[1], out=out)
        return
    total = parts[0].astype(np.float64)
    for part in parts[1:]:
        total += part
    out[...] = total


def nccl_of(device: Device) -> Any:
    """Return the module of NCCL of a device's array library.

    Raises:
        ImportError: CuPy has not found NCCL.
    """
    nccl = getattr(device.xp.cuda, "nccl", None)
    if nccl is None or not getattr(nccl, "available", False):
        raise ImportError(
            "parallel: expected NCCL for a model on a GPU, which CuPy has not found; install "
            "nvidia-nccl-cu13, or use model.to('cpu')"
        )
    return nccl


class Nccl:
    """The ways between the GPUs of the ranks, each of which makes one with the same name.

    Args:
        device: that of this rank.
        name: what NCCL's ``get_unique_id`` has given to rank 0.
        rank: the number of this rank.
        size: how many ranks there are.
    """

    def __init__(self, device: Device, name: Any, rank: int, size: int) -> None:
        self.device, self.rank, self.size = device, rank, size
        self._nccl = nccl_of(device)
        self._kinds = {"float32": self._nccl.NCCL_FLOAT32, "float64": self._nccl.NCCL_FLOAT64}
        with device.here():
            self._comm = self._nccl.NcclCommunicator(size, name, rank)
        self._received: Array | None = None

    def room(self, values: Array) -> Array:
        """Return memory for the slices that `add` receives, which is kept from call to call."""
        cuts = cuts_of(len(values), self.size)
        shape = (self.size, cuts[self.rank + 1] - cuts[self.rank])
        if (
            self._received is None
            or self._received.shape != shape
            or self._received.dtype != values.dtype
        ):
            self._received = self.device.empty(shape, values.dtype)
        return self._received

    def add(self, values: Array, factor: Any = None) -> None:
        """Replace an array by its sum over the ranks, times a factor, on the current stream.

        Args:
            values: contiguous ``[n]`` of float32 or float64 on the device, as long on every rank.
            factor: None: 1.
        """
        cuts = cuts_of(len(values), self.size)
        slices = [values[begin:end] for begin, end in itertools.pairwise(cuts)]
        parts = self.room(values)
        others = [k for k in range(self.size) if k != self.rank]
        own = slices[self.rank]
        with self.device.here():
            self._exchange([(k, slices[k]) for k in others], [(k, parts[k]) for k in others])
            parts[self.rank] = own
            add_up(parts, [own], factor)
            self._exchange([(k, own) for k in others], [(k, slices[k]) for k in others])

    def _exchange(
        self, sent: Iterable[tuple[int, Array]], received: Iterable[tuple[int, Array]]
    ) -> None:
        """Send arrays to ranks, and receive others from there, all at once."""
        stream = self.device.xp.cuda.get_current_stream().ptr
        self._nccl.groupStart()
        for call, messages in ((self._comm.send, sent), (self._comm.recv, received)):
            for rank, a in messages:
                if a.size:  # on both sides: a slice is as long for whoever sends it
                    kind = self._kinds[a.dtype.name]
                    call(self.device.address(a), a.size, kind, rank, stream)
        self._nccl.groupEnd()


readable(globals())
