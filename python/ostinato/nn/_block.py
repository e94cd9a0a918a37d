"""Hold the parameters of a model in one buffer with a table of names, and gradients likewise."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_process = object()  # another one in every process


def _new_process() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_process)


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
    # to them first takes the place of what memory holds. It is changed by single calls of a set,
    # since pullbacks of several layers may run in threads.
    unwritten: set[str]
    # Further names of parameters: those that are tied to another one, by their names.
    aliases: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, arrays: Mapping[str, Array], decay: Mapping[str, bool], dtype: np.dtype[Any]
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.unwritten = set()
        self.writers: dict[str, list[object]] = {}  # what pullbacks at work write to
        self.version = self.changes = 0
        step, end = ALIGN // dtype.itemsize, 0
        for name, a in arrays.items():
            self.entries[name] = Entry(name, end, a.shape, True, decay[name])
            end = -(-(end + a.size) // step) * step
        self.values = _aligned(end, dtype)
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
        if self.unwritten:
            self.write_zeros(frozenset(self.unwritten))
        return self.held_grads

    @grads.setter
    def grads(self, buffer: Array) -> None:
        self.__dict__["grads"] = buffer

    @property
    def held_grads(self) -> Array:
        """The memory of the gradients, in which those that are unwritten do not count.

        It is made, at zero, when something first asks for it: a model that only runs has none. On a
        device it is made by `move`, so that no call that is recorded in a graph does.
        """
        buffer: Array | None = self.__dict__.get("grads")
        if buffer is None:
            zeros = _aligned(self.values.size, self.values.dtype)
            buffer = self.__dict__.setdefault("grads", zeros)  # of two threads, that of the first
        return buffer

    def holds_grads(self, buffer: Array) -> bool:
        """Whether a buffer is that of the gradients."""
        return buffer is self.__dict__.get("grads")

    def place_grads(self, buffer: Array) -> None:
        """Move the gradients of a model on the CPU to other memory, as long as its parameters."""
        buffer[...] = self.held_grads
        self.grads = buffer

    @property
    def has_grads(self) -> bool:
        """Whether there is memory of gradients; all are zero without."""
        return "grads" in self.__dict__

    def clear_grads(self, prefix: str) -> None:
        """Set the gradients under a prefix to zero: on the CPU when they are next read."""
        names = [n for n in self.entries if n.startswith(prefix)]
        if _device.of(self.values) is None:
            self.unwritten.update(names)
            return
        for name in names:
            self.view(self.held_grads, name)[...] = 0

    def write_zeros(self, names: frozenset[str]) -> None:
        """Write the zeros of those of the gradients that are unwritten."""
        for name in self.unwritten & names:
            self.view(self.held_grads, name)[...] = 0
        self.unwritten.difference_update(names)

    def claim(self, keys: Sequence[str]) -> None:
        """Keep other threads from what a pullback writes to, until it calls `release`.

        Raises:
            RuntimeError: another thread is at work there.
        """
        writers, me = self.writers, [_process]
        for k, key in enumerate(keys):
            owner = writers.setdefault(key, me)
            if owner is me:
                continue
            if owner[0] is not _process:  # a fork has left it there
                writers[key] = me
                continue
            self.release(keys[:k])
            raise RuntimeError(
                "grads: expected one pullback at a time to add to the gradients of "
                f"{key or 'a layer'}, got two in threads; give each thread gradients of its own: "
                "pullback(dy, grads=layer.new_grads())"
            )

    def release(self, keys: Sequence[str]) -> None:
        """Let others write again."""
        for key in keys:
            self.writers.pop(key, None)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "writers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.unwritten, self.writers = set(state.get("unwritten", ())), {}
        for name in ("values", "grads"):  # a copy or an unpickled array lies anywhere
            if isinstance(state.get(name), np.ndarray):
                setattr(self, name, _aligned_copy(state[name]))

    def move(self, device: Device | None) -> None:
        """Move both buffers to a device, or (None) to the CPU; on an error neither moves.

        The version grows, so that weights that were packed elsewhere are not taken for these.
        """
        if _device.of(self.values) is device:
            return
        put = _aligned_copy if device is None else device.put
        values, grads = put(_device.host(self.values)), None
        if self.has_grads:
            grads = put(_device.host(self.grads))
        elif device is not None:
            grads = device.zeros(self.values.shape, self.values.dtype)
        self.values = values
        if grads is not None:
            self.grads = grads
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
        if self._block.unwritten and self._block.holds_grads(self._buffer):
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
        if self._block.holds_grads(self._buffer):
            return self._block.grads
        return self._buffer

    def _begin(
        self, names: Callable[[list[str]], list[str]], apart: list[str], overwrite: bool
    ) -> tuple[Sequence[str], dict[str, Array]]:
        """Give the gradients to the kernels of one pullback, which calls `_end` afterwards.

        They overwrite where all of the gradients are unwritten; otherwise those that are unwritten
        become zero. Meanwhile no other thread may write to the model's own gradients of this layer,
        or of one that shares them.

        Args:
            names: makes the names of those that the kernels write to, of ``apart``.
            apart: what it is given.
            overwrite: whether the kernels can.

        Returns:
            What is to be given to `_end`, and the gradients that the kernels overwrite, by name,
            nothing where they add.
        """
        block = self._block
        if self._buffer is not block.__dict__.get("grads"):
            return (), {}
        # With nothing unwritten the layer alone is claimed, unless others may share its parameters:
        # its names would take a while. So would calls here: this is a tenth of a small step.
        if not (block.unwritten or block.aliases):
            keys: Sequence[str] = (self._prefix,)
            if block.writers.setdefault(self._prefix, me := [_process]) is not me:
                block.claim(keys)
            return keys, {}
        own = names(apart)
        full = self._full(own)
        keys = (self._prefix, *full)
        block.claim(keys)
        if not overwrite or not full <= block.unwritten:
            try:
                block.write_zeros(full)
            except BaseException:  # nobody would call `_end`
                block.release(keys)
                raise
            return keys, {}
        block.unwritten.difference_update(full)  # whoever reads others must not write zeros here
        return keys, {n: block.view(self._buffer, self._prefix + n) for n in own}

    def _end(self, keys: Sequence[str], failed: bool) -> None:
        """Let others write; what was to be overwritten, and was not, is unwritten again."""
        if failed:
            self._block.unwritten.update(keys[1:])
        for key in keys:
            self._block.writers.pop(key, None)

    def _full(self, names: list[str]) -> frozenset[str]:
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
