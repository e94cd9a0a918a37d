"""Hold the parameters of a model in one buffer with a table of names, and gradients likewise."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array
from .._device import Device
from .._recording import active

ALIGN = 64  # bytes: every segment begins on a cache line


@dataclass(frozen=True)
class Entry:
    """One parameter: elements ``[offset, offset + size)`` of the buffer."""

    name: str
    offset: int
    shape: tuple[int, ...]
    trainable: bool = True
    decay: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Block:
    """The two buffers, the table, and a version that every write raises."""

    changes = (
        0  # raised with version, and by whatever else changes what a stream of the model computes
    )
    # Names of parameters whose gradients are zero, though that has not been written: what is added
    # to them first takes the place of what memory holds.
    unwritten: frozenset[str] = frozenset()
    # Further names of parameters: those that are tied to another one, by their names.
    aliases: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, arrays: Mapping[str, Array], decay: Mapping[str, bool], dtype: np.dtype[Any]
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.version = self.changes = 0
        step, end = ALIGN // dtype.itemsize, 0
        for name, a in arrays.items():
            self.entries[name] = Entry(name, end, a.shape, True, decay[name])
            end = -(-(end + a.size) // step) * step
        self.values, self.grads = _aligned(end, dtype), _aligned(end, dtype)
        for name, a in arrays.items():
            self.view(self.values, name)[...] = _device.host(a)
        devices = [_device.of(a) for a in arrays.values()]
        if any(d is not devices[0] for d in devices):
            raise ValueError("layers: expected layers on one device, got some on another")
        if devices and devices[0] is not None:
            self.move(devices[0])

    @property
    def grads(self) -> Array:
        """The gradients, all of them written."""
        self.write_zeros(self.unwritten)
        return self.held_grads

    @grads.setter
    def grads(self, buffer: Array) -> None:
        self.__dict__["grads"] = buffer

    @property
    def held_grads(self) -> Array:
        """The memory of the gradients, in which those that are unwritten do not count."""
        buffer: Array = self.__dict__["grads"]
        return buffer

    def clear_grads(self, prefix: str) -> None:
        """Set the gradients under a prefix to zero: on the CPU when they are next read."""
        names = [n for n in self.entries if n.startswith(prefix)]
        if _device.of(self.values) is None:
            self.unwritten |= frozenset(names)
            return
        for name in names:
            self.view(self.held_grads, name)[...] = 0

    def write_zeros(self, names: frozenset[str]) -> None:
        """Write the zeros of those of the gradients that are unwritten."""
        for name in self.unwritten & names:
            self.view(self.held_grads, name)[...] = 0
        self.unwritten -= names

    def entry(self, name: str) -> Entry:
        """Return the entry of a parameter, also by a further name."""
        return self.entries[self.aliases.get(name, name)]

    def names(self, prefix: str) -> list[str]:
        """Return the names under a prefix, each parameter once.

        A further name counts where its parameter itself is not under the prefix.
        """
        names = [n for n in self.entries if n.startswith(prefix)]
        for name, target in self.aliases.items():
            if name.startswith(prefix) and not target.startswith(prefix):
                names.append(name)
        return names

    def tie(self, aliases: Mapping[str, str]) -> None:
        """Give parameters further names."""
        for name, target in aliases.items():
            if name in self.entries or target not in self.entries:
                raise KeyError(f"tie: expected the name of a parameter, got {target!r}")
        self.aliases = {**self.aliases, **aliases}

    def view(self, buffer: Array, name: str, *, writable: bool = True) -> Array:
        """Return the part of a buffer that is one parameter, in its shape."""
        e = self.entries.get(name) or self.entry(name)
        v = buffer[e.offset : e.offset + e.size].reshape(e.shape)
        return v if writable else _check.read_only(v)

    def mark(
        self, pattern: str, *, trainable: bool | None = None, decay: bool | None = None
    ) -> list[str]:
        """Set a flag of every parameter whose name matches the shell pattern; returns the names."""
        found = fnmatch.filter([*self.entries, *self.aliases], pattern)
        names = list(dict.fromkeys(self.aliases.get(n, n) for n in found))
        if (
            not names and pattern.rpartition(".")[2] != "*"
        ):  # all of a layer without parameters is nothing
            raise KeyError(
                f"pattern: expected to match a parameter among {', '.join(self.entries)}, got "
                f"{pattern!r}"
            )
        for n in names:
            e = self.entries[n]
            self.entries[n] = replace(
                e,
                trainable=e.trainable if trainable is None else trainable,
                decay=e.decay if decay is None else decay,
            )
        return names

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("values", "grads"):  # a copy or an unpickled array lies anywhere
            if isinstance(state[name], np.ndarray):
                setattr(self, name, _aligned_copy(state[name]))

    def move(self, device: Device | None) -> None:
        """Move both buffers to a device, or (None) to the CPU; on an error neither moves.

        The version grows, so that weights that were packed elsewhere are not taken for these.
        """
        if _device.of(self.values) is device:
            return
        values, grads = (_device.host(a) for a in (self.values, self.grads))
        put = _aligned_copy if device is None else device.put
        self.values, self.grads = put(values), put(grads)
        self.version += 1
        self.changes += 1


def _aligned_copy(a: Array) -> Array:
    buffer = _aligned(a.size, a.dtype)
    buffer[...] = a
    return buffer


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    raw = np.zeros(size * dtype.itemsize + ALIGN, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGN  # `ctypes` is not safe in threads
    aligned: Array = raw[start : start + size * dtype.itemsize].view(dtype)
    return aligned


class Views(Mapping[str, Array]):
    """Map a layer's own names to views of one buffer, made when they are asked for.

    `Layer.parameters`, `Layer.grads` and `Layer.write` return it.

    >>> import ostinato as ost
    >>> ost.nn.Linear(3, 2, rng=0).parameters()
    {weight: float32 [2, 3], bias: float32 [2]}

    Args:
        block: the parameters of the whole model.
        buffer: its values or gradients, or other gradients of the same layout.
        prefix: what the names of the layer begin with in the block.
        writable: whether the views may be written to.
    """

    def __init__(self, block: Block, buffer: Array, prefix: str, *, writable: bool) -> None:
        self._block, self._buffer, self._prefix, self._writable = block, buffer, prefix, writable

    def __getitem__(self, name: str) -> Array:
        full = self._prefix + name
        if full not in self._block.entries and full not in self._block.aliases:
            raise KeyError(name)
        recording = None if self._writable else active()
        if recording is not None and self._buffer is self._block.values:
            recorded: Any = recording.parameter(self._block, self._block.aliases.get(full, full))
            stand_in: Array = recorded
            return stand_in
        if self._block.unwritten and self._buffer is self._block.held_grads:
            self._block.write_zeros(frozenset([self._block.aliases.get(full, full)]))
        return self._block.view(self._buffer, full, writable=self._writable)

    def __iter__(self) -> Iterator[str]:
        skip = len(self._prefix)
        return iter([n[skip:] for n in self._block.names(self._prefix)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{n}: {v.dtype} {list(v.shape)}" for n, v in self.items()) + "}"

    def _written(self) -> Array:
        """Return the buffer, in which all counts."""
        if self._buffer is self._block.held_grads:
            return self._block.grads
        return self._buffer

    def _unwritten(self, names: list[str]) -> dict[str, Array]:
        """Return the memory of gradients if all of these names are unwritten, otherwise nothing.

        Whoever has put gradients there calls `_overwritten`.
        """
        block, full = self._block, self._full(names)
        if (
            self._buffer is not block.held_grads
            or not block.unwritten
            or not full <= block.unwritten
        ):
            return {}
        return {n: block.view(self._buffer, self._prefix + n) for n in names}

    def _overwritten(self, names: Iterable[str]) -> None:
        """Note that gradients stand where there were none."""
        self._block.unwritten -= self._full(names)

    def _full(self, names: Iterable[str]) -> frozenset[str]:
        full = (self._prefix + n for n in names)
        return frozenset(self._block.aliases.get(n, n) for n in full)

    def child(self, name: str) -> Views:
        """Return the same buffer as a layer within this one sees it.

        Args:
            name: of the layer.

        Returns:
            The views of that layer's parameters, with names of its own.
        """
        return Views(self._block, self._buffer, f"{self._prefix}{name}.", writable=self._writable)

    @property
    def flat(self) -> Array:
        """All elements as one 1-D array, padding between the segments included.

        A parameter that is tied to one of another layer stands there alone.
        """
        if active() is not None and not self._writable and self._buffer is self._block.values:
            raise TypeError(
                "flat: expected parameters by their names within vjp, which have gradients there"
            )
        v: Array
        if not self._prefix:  # the whole model
            v = self._written().view()
            return v if self._writable else _check.read_only(v)
        own = [e for n, e in self._block.entries.items() if n.startswith(self._prefix)]
        if not own:
            return self._buffer[:0]
        step = ALIGN // self._buffer.itemsize
        v = self._written()[own[0].offset : -(-(own[-1].offset + own[-1].size) // step) * step]
        v = v.view()
        return v if self._writable else _check.read_only(v)


readable(globals())
