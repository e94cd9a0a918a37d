"""Describe where arrays are and where kernels run.

That is the CPU with NumPy, a GPU with CuPy, or the kernels of the GPU emulated on the CPU. Nothing
here allocates or waits by itself: arrays come from the array library of the device, and kernels go
to its current stream, or to a side stream that the current one waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, _driver, _words

if TYPE_CHECKING:
    from ._plan import GpuFigures


class NoGpu(RuntimeError):
    """Tell that there is no GPU to run on, or what is missing to use it."""


# Messages by the status of a launch: csrc/cuda/exchange.h.
STATUS_MESSAGES = {
    1: "a block of an earlier launch timed out waiting for another one (is the device shared with "
    "other work?)",
    2: "a state of an earlier call was beyond 65504, the range of float16, two words of which "
    "stand for a float32 there; "
    "use precision='exact'",
}
NO_CELL = -1  # for kernels that belong to no cell
HIGHEST = -100  # the runtime takes the highest stream priority that there is


class SerialStreams:
    """Stream interface of a device that runs one launch at a time."""

    def __enter__(self) -> SerialStreams:
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def on_side(self) -> AbstractContextManager[Any]:
        """Return a context whose launches go to the side stream.

        They wait for what was launched before the side stream was opened, and for nothing after
        that.
        """
        return nullcontext()

    def join(self) -> None:
        """Let later launches wait for those on the side stream."""


@dataclass(frozen=True)
class Device:
    """Hold what is needed to run kernels on a device.

    Attributes:
        name: "cuda:0", "emulated".
        figures: what the planner needs to know of the device.
        xp: its array library.
        address: returns the address of an array's first element.
        view: ``view(address, shape, strides, dtype)`` returns an array of memory that belongs to
            someone else; strides are in bytes.
        run: ``run(action, cell, itemsize, values)`` launches the kernels of an action on fields of
            `_abi` without arrays.
        here: returns a context in which the library's arrays are made on this device.
        wait: waits until all launches have been done.
        side_stream: opens a side stream, see `SerialStreams`.
        place: returns what tells the device from the others of the machine, also in a process that
            sees only some of them.
        host_status: a word of the host's memory to which kernels write the status of a launch that
            was given up: ``csrc/cuda/exchange.h``.
    """

    name: str
    figures: GpuFigures
    xp: Any
    address: Callable[[Any], int]
    view: Callable[[int, tuple[int, ...], tuple[int, ...], Any], Any]
    run: Callable[..., None]
    here: Callable[[], AbstractContextManager[Any]] = nullcontext
    wait: Callable[[], None] = lambda: None
    side_stream: Callable[[], SerialStreams] = SerialStreams
    place: Callable[[], str] = lambda: ""
    host_status: Any = field(default_factory=lambda: np.zeros(1, np.uint32), compare=False)

    def check(self) -> None:
        """Raise what a kernel of an earlier call has found, once."""
        if self.host_status[0]:
            status, self.host_status[0] = int(self.host_status[0]), 0
            raise RuntimeError(
                f"{self.name}: {STATUS_MESSAGES[status]}; the outputs of that call are NaN"
            )

    def require(self, name: str, a: Any) -> None:
        """Raise TypeError unless an argument is an array of this device."""
        if of(a) is self:
            return
        if not isinstance(a, np.ndarray) and of(a) is None:
            raise TypeError(
                f"{name}: expected an array on {self.name}, as the weights are, got "
                f"{type(a).__name__}"
            )
        raise TypeError(
            f"{name}: expected an array on {self.name}, as the weights are, got one on {name_of(a)}"
        )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array, which is not initialised."""
        with self.here():
            return self.xp.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array of zeros."""
        with self.here():
            return self.xp.zeros(shape, dtype)

    def put(self, a: Any) -> Any:
        """Return an array on the device; None stays None."""
        if a is None or of(a) is self:
            return a
        with self.here():
            return self.xp.asarray(a)

    def launch(self, action: str, cell: str | None, dtype: Any, values: Mapping[str, Any]) -> None:
        """Run kernels on fields of `_abi`; raise what those of an earlier call found."""
        if self.host_status[0]:
            self.check()
        with self.here():
            self.run(action, number_of(cell), np.dtype(dtype).itemsize, self._addresses(values))

    def _addresses(self, value: Any) -> Any:
        """Return fields with addresses in the place of arrays."""
        if isinstance(value, dict):
            return {name: self._addresses(v) for name, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._addresses(v) for v in value]
        plain = value is None or isinstance(value, (int, float, str, np.generic))
        return value if plain else self.address(value)


@lru_cache
def number_of(cell: str | None) -> int:
    """Return the number of a cell in the list of all."""
    return NO_CELL if cell is None else list(_core.cells()).index(cell)


# What is known to be on the CPU without a look at its module.
_HERE = frozenset({np.ndarray, float, int, bool, np.float32, np.float64, np.int64, np.bool_})
# Functions that return the device of an array, by its type.
_FINDERS: dict[type, Callable[[Any], Device]] = {}


def register(kind: type, finder: Callable[[Any], Device]) -> None:
    """Let arrays of a type be known as arrays of a device."""
    _FINDERS[kind] = finder


def of(a: Any) -> Device | None:
    """Return the device of an array; None for the CPU, or for what is no array that is known."""
    if type(a) in _HERE:
        return None
    finder = _FINDERS.get(type(a))
    if finder is None and type(a).__module__.partition(".")[0] == "cupy":
        cuda(int(a.device.id))  # the array was made before we first used CuPy
        finder = _FINDERS.get(type(a))
    return None if finder is None else finder(a)


def taken(a: Any) -> Any:
    """Return an array of another GPU library as one of ours, of the same memory.

    Such an array has ``__dlpack__`` or ``__cuda_array_interface__`` (torch, JAX); its own stream is
    ordered before ours. Anything else is returned as it is.
    """
    if isinstance(a, np.ndarray) or of(a) is not None:
        return a
    if hasattr(a, "__dlpack__") and hasattr(a, "__dlpack_device__"):
        kind, index = a.__dlpack_device__()
        if int(kind) == 2:  # kDLCUDA
            return cuda(int(index)).xp.from_dlpack(a)
        return a
    return cuda().xp.asarray(a) if hasattr(a, "__cuda_array_interface__") else a


def host(a: Any) -> Any:
    """Return an array as one of NumPy; this waits for the device."""
    return a if of(a) is None else a.get()


def like(a: Any, other: Any) -> Any:
    """Return a NumPy array on the device of another array."""
    device = of(other)
    return a if device is None else device.put(a)


def same(name: str, a: Any, own: Any, what: str = "the layer") -> None:
    """Raise unless an array is on the device of another one, which is called ``what``."""
    if type(a) is np.ndarray and type(own) is np.ndarray:
        return
    if of(a) is not of(own):
        to = "cpu" if of(a) is None else "cuda"
        move = f"move it, or use layer.to({to!r})" if what == "the layer" else "move one of them"
        raise TypeError(
            f"{name}: expected an array on {name_of(own)}, where {what} is, got one on "
            f"{name_of(a)}; {move}"
        )


def name_of(a: Any) -> str:
    """Return the name of an array's device, such as "cpu" or "cuda:0"."""
    device = of(a)
    return "cpu" if device is None else device.name


def named(name: object) -> Device | None:
    """Return the device of a name: None for "cpu"; "cuda" or "cuda:1".

    Raises:
        ValueError: an unknown name.
        NoGpu: there is no GPU of that number, or no CuPy; the message says which.
    """
    if name == "cpu":
        return None
    kind, _, index = str(name).partition(":")
    if (
        isinstance(name, str)
        and kind == "cuda"
        and (not index or index.isdecimal())
        and name[-1] != ":"
    ):
        return cuda(int(index) if index else None)
    raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:0', got {name!r}")


def emulated(reverse_order: bool = False, library: Any = np) -> Device:
    """Return a device that runs the kernels on the CPU, one thread after the other.

    ``reverse_order`` runs threads and blocks from the last to the first, which must not change a
    bit.

    Raises:
        ImportError: at the first launch, if the package was built without the emulation
            (``OSTINATO_EMULATED=OFF``, the default).
    """
    from ._plan import GpuFigures  # here: programs on a CPU never need it

    def run(action: str, cell: int, itemsize: int, values: dict[str, Any], **options: int) -> None:
        from . import _emulated

        _emulated.run(action, cell, itemsize, values, reverse_order, **options)

    def view(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
        a = np.asarray(_Memory(address, shape, strides, np.dtype(dtype).str))
        return a if library is np else library.ndarray(a)

    def address(a: Any) -> int:
        return int(a.ctypes.data) if a.size else 0

    why_no_words = "NumPy has none" if library is np else ""
    # Few multiprocessors: tests reach every plan.
    figures = GpuFigures("emulated", (8, 0), 2, 49152, 1 << 20, why_no_words=why_no_words)
    return Device("emulated", figures, library, address, view, run)


class _Memory:
    """Memory at an address, as NumPy's array interface describes it."""

    def __init__(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str
    ) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": kind,
            "version": 3,
        }


def cuda(index: int | None = None) -> Device:
    """Return a GPU (None: the current one), with CuPy as its array library and its current stream.

    Raises:
        NoGpu: there is no such GPU, or no CuPy; the message says which.
    """
    cupy, count = _ready()
    if index is not None and index >= count:
        raise NoGpu(f"cuda: expected a number below {count}, the GPUs that there are, got {index}")
    return _cuda_device(int(cupy.cuda.runtime.getDevice()) if index is None else index)


@lru_cache
def _ready() -> tuple[Any, int]:
    """Return CuPy and the number of GPUs; what is found once stays."""
    if reason := _driver.why_not():
        raise NoGpu(f"cuda: expected a GPU, but {reason}")
    try:
        import cupy
    except ImportError as error:
        raise NoGpu(
            "cuda: expected CuPy, which is not installed: pip install cupy-cuda13x"
        ) from error
    return cupy, len(_driver.devices())


def _has_product(cupy: Any, index: int) -> bool:
    """Return whether CuPy finds cuBLAS, which it opens at its first product."""
    try:
        with cupy.cuda.Device(index):
            a = cupy.ones((2, 2), np.float32)
            return bool((cupy.matmul(a, a) == 2).all())
    except (ImportError, RuntimeError):
        return False


class SideStream(SerialStreams):
    """A stream of CuPy with the highest priority, beside the current one."""

    def __init__(self, cupy: Any, stream: Any) -> None:
        self._cupy, self._stream, self._current = cupy, stream, cupy.cuda.get_current_stream()
        self._wait(self._stream, self._current)

    def on_side(self) -> AbstractContextManager[Any]:
        """Return a context whose launches go to the side stream."""
        stream: AbstractContextManager[Any] = self._stream
        return stream

    def join(self) -> None:
        """Let later launches on the current stream wait for those on the side stream."""
        self._wait(self._current, self._stream)

    def _wait(self, one: Any, other: Any) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(other)
        one.wait_event(event)


@lru_cache
def _cuda_device(index: int) -> Device:
    import cupy

    from ._plan import GpuFigures

    module = _driver.module()
    register(cupy.ndarray, lambda a: _cuda_device(int(a.device.id)))

    def run(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        module.run(action, cell, itemsize, values, cupy.cuda.get_current_stream().ptr)

    def here() -> Any:
        return cupy.cuda.Device(index)

    def view(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
        extent = sum((n - 1) * abs(s) for n, s in zip(shape, strides)) + np.dtype(dtype).itemsize
        memory = cupy.cuda.UnownedMemory(address, extent, None, index)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0), strides)

    with here():
        d = _driver.devices()[index]
    own = ("library", "why_no_words")  # what the array library tells; the runtime tells the others
    names = [n for n in GpuFigures.__dataclass_fields__ if n not in own]
    library = _has_product(cupy, index)
    with here():
        why_no_words = _words.why_not(cupy) if library else "it has no products"
    figures = GpuFigures(**{n: d[n] for n in names}, library=library, why_no_words=why_no_words)
    # One stream a thread: threads must not record each other's launches.
    streams = threading.local()

    def side_stream() -> SerialStreams:
        if not hasattr(streams, "one"):
            with here():
                streams.one = cupy.cuda.Stream(non_blocking=True, priority=HIGHEST)
        return SideStream(cupy, streams.one)

    with here():  # memory that the device writes to and the host reads without waiting
        host_status = np.frombuffer(cupy.cuda.alloc_pinned_memory(4), np.uint32, 1)
    host_status[0] = 0
    made = Device(
        f"cuda:{index}",
        figures,
        cupy,
        lambda a: int(a.data.ptr),
        view,
        run,
        here,
        lambda: here().synchronize(),
        side_stream,
        lambda: str(here().pci_bus_id),
        host_status,
    )
    _MADE.append(made)
    return made


_MADE: list[Device] = []


def check() -> None:
    """Wait for all GPUs that are in use, and raise what a kernel has found."""
    for device in _MADE:
        device.wait()
        device.check()
