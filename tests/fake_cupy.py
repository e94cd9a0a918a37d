"""Arrays that behave as CuPy's do, in ordinary memory.

What lets everything above the kernels of a GPU be tested without one.

An array here refuses to meet NumPy arrays in an operation, has no ``__array__`` and is brought back
by ``get``, as CuPy's. `traffic` counts what makes the host wait for a GPU, and copies to there.
"""

from __future__ import annotations

import ctypes
import queue
import re
import sys
import threading
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ostinato import _device
from ostinato._recording import Variable

HOST = (
    int,
    float,
    complex,
    bool,
    np.generic,
    str,
    type(None),
    type,
    np.dtype,
    slice,
    type(Ellipsis),
)


@dataclass
class Traffic:
    """What has gone between host and device: `traffic`.

    Attributes:
        reads: calls for which the host waits: of values, or of shapes that depend on values.
        copies: arrays of NumPy that were copied to the device.
    """

    reads: int = 0
    copies: int = 0


traffic = Traffic()
READ_BY = ("item", "tolist", "nonzero")  # methods
SHAPED_BY_VALUES = ("nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract")


def is_mask(index: Any) -> bool:
    """Whether the shape of what an index picks depends on values."""
    if isinstance(index, tuple):
        return any(map(is_mask, index))
    return isinstance(index, (ndarray, np.ndarray)) and index.dtype == np.bool_


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __module__ = "fake_cupy"

    def __init__(self, a: Any) -> None:
        self._a = a

    # -- what CuPy refuses -------------------------------------------------------------------------

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct one explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        assert method == "__call__", method
        if any(type(x) is Variable for x in inputs):
            return NotImplemented  # as CuPy for all that it does not know
        if "out" in kwargs:
            kwargs["out"] = tuple(unwrap(o) for o in kwargs["out"])
        return wrap(
            ufunc(
                *map(unwrap, inputs),
                **{k: v if k == "out" else unwrap(v) for k, v in kwargs.items()},
            )
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(t not in (ndarray, np.ndarray) for t in types):
            return NotImplemented  # another library's array, which may know what to do
        traffic.reads += function.__name__ in SHAPED_BY_VALUES
        return wrap(function(*unwrap(args), **unwrap(kwargs)))

    # -- what an array has -------------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self._a.shape,
            "typestr": self._a.dtype.str,
            "data": (self._a.ctypes.data, False),
        }

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._a.ctypes.data)

    def get(self) -> Any:
        traffic.reads += 1
        return self._a.copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_a":
            raise AttributeError(name)
        value = getattr(self._a, name)
        if name in ("flags",):
            return value if False else _Flags(value)
        traffic.reads += name in READ_BY
        if callable(value) and name != "ctypes":
            return lambda *args, **kwargs: wrap(value(*unwrap(args), **unwrap(kwargs)))
        return wrap(value)

    def __getitem__(self, index: Any) -> Any:
        traffic.reads += is_mask(index)
        return wrap(self._a[index_of(index)], keep=True)

    def __setitem__(self, index: Any, value: Any) -> None:
        with np.errstate(over="ignore"):  # CuPy tells nothing of what a shorter type cannot hold
            traffic.reads += is_mask(index) and np.ndim(unwrap(value)) > 0
            self._a[index_of(index)] = unwrap(value)

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __float__(self) -> float:
        traffic.reads += 1
        return float(self._a)

    def __int__(self) -> int:
        traffic.reads += 1
        return int(self._a)

    def __bool__(self) -> bool:
        traffic.reads += 1
        return bool(self._a)

    def __index__(self) -> int:
        traffic.reads += 1
        return self._a.__index__()

    def __repr__(self) -> str:
        return f"fake({self._a!r})"

    def __deepcopy__(self, memo: Any) -> ndarray:
        return ndarray(self._a.copy())

    __hash__ = None  # type: ignore[assignment]


class _Flags:
    """CuPy's know nothing of writing."""

    def __init__(self, flags: Any) -> None:
        self.c_contiguous = flags.c_contiguous


def wrap(value: Any, keep: bool = False) -> Any:
    if isinstance(value, np.ndarray):
        return ndarray(value)
    if isinstance(value, np.generic):
        return ndarray(np.asarray(value))  # CuPy's scalars are arrays
    if isinstance(value, (tuple, list)) and not isinstance(value, str):
        return type(value)(
            wrap(v) if isinstance(v, (np.ndarray, tuple, list)) else v for v in value
        )
    return value


def unwrap(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(unwrap(v) for v in value)
    if isinstance(value, dict):
        return {k: unwrap(v) for k, v in value.items()}
    assert isinstance(value, HOST), type(value)
    return value


def index_of(index: Any) -> Any:
    """Indices may be arrays of NumPy."""
    if isinstance(index, tuple):
        return tuple(map(index_of, index))
    return index._a if isinstance(index, ndarray) else index


def asnumpy(a: ndarray) -> Any:
    return a.get()


def asarray(a: Any, dtype: Any = None) -> ndarray:
    traffic.copies += not isinstance(a, ndarray)
    return ndarray(
        np.array(
            a._a if isinstance(a, ndarray) else a,
            dtype,
            copy=None if isinstance(a, ndarray) else True,
        )
    )


def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
    """A product summed in ascending k without a BLAS.

    A row has the same bits for any batch composition and on any machine.
    """
    x, w = unwrap(a), unwrap(b)
    total = np.zeros((x.shape[0], w.shape[1]), np.result_type(x, w)) if out is None else unwrap(out)
    total[...] = 0
    for k in range(w.shape[0]):
        total += x[:, k, None] * w[k]
    return wrap(total) if out is None else out


class ElementwiseKernel:
    """A kernel whose statements are C that is Python as well, but for the types of its variables.

    ``__float_as_uint`` and ``__uint_as_float`` are those of CUDA.
    """

    def __init__(self, inputs: str, outputs: str, operation: str, name: str) -> None:
        self.inputs, self.outputs = (
            [tuple(one.split()) for one in some.split(",")] for some in (inputs, outputs)
        )
        lines = operation.split("\n")
        assert all(re.fullmatch(r"[^;{}]+;", line) for line in lines), operation
        declared = re.compile(r"^(unsigned int|float) (?=\w+ = )")
        self.statements = [declared.sub("", line.rstrip(";")) for line in lines]
        self.integers = [m and m[1] == "unsigned int" for m in map(declared.match, lines)]
        self.name = name

    def __call__(self, *arrays: ndarray) -> None:
        count = len(self.inputs)
        assert len(arrays) == count + len(self.outputs), self.name
        names: dict[str, Any] = {
            "__float_as_uint": lambda x: np.asarray(x, np.float32).view(np.uint32),
            "__uint_as_float": lambda x: np.asarray(x, np.uint32).view(np.float32),
        }
        for (kind, name), a in zip(self.inputs, arrays):
            assert a.dtype == kind, (self.name, name, a.dtype)
            names[name] = unwrap(a)
        kinds = {name: (kind, a) for (kind, name), a in zip(self.outputs, arrays[count:])}
        for statement, integer in zip(self.statements, self.integers):
            name, expression = statement.split(" = ", 1)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                value = eval(expression, {"__builtins__": {}}, names)
            if name in kinds:
                kind, a = kinds[name]
                assert a.dtype == kind, (self.name, name, a.dtype)
                assert a.shape == arrays[0].shape, (self.name, name)
                value = value.astype(kind)
                a[...] = wrap(value)
            names[name] = value.astype(np.uint32) if integer else value


class _Blas:
    """cuBLAS as CuPy gives it: matrices by columns, addresses, leading dimensions and all.

    Every launch is kept in ``calls``, with the stream that its handle had.
    """

    HANDLE, TYPES = 7, {2: np.dtype(np.uint16), 14: np.dtype(np.uint16), 0: np.dtype(np.float32)}

    def __init__(self) -> None:
        self.stream: int | None = None
        self.mode = 1  # scales on the device, until someone says otherwise
        self.calls: list[dict[str, Any]] = []

    def setStream(self, handle: int, stream: int) -> None:
        assert handle == self.HANDLE
        self.stream = stream

    def getPointerMode(self, handle: int) -> int:
        assert handle == self.HANDLE
        return self.mode

    def setPointerMode(self, handle: int, mode: int) -> None:
        assert handle == self.HANDLE
        self.mode = mode

    def _matrix(self, address: int, kind: int, leading: int, rows: int, columns: int) -> Any:
        """Return a matrix by columns of memory at an address."""
        assert leading >= max(1, rows), f"leading dimension {leading} of {rows} rows"
        size = self.TYPES[kind].itemsize
        strides = (size, leading * size)
        return DEVICE.view(address, (rows, columns), strides, self.TYPES[kind])._a

    def _numbers(self, words: Any, kind: int) -> Any:
        if kind == 2:
            return words.view(np.float16).astype(np.float32)
        return (words.astype(np.uint32) << 16).view(np.float32)

    def gemmEx(
        self,
        handle: int,
        transa: int,
        transb: int,
        m: int,
        n: int,
        k: int,
        alpha: int,
        a: int,
        a_type: int,
        lda: int,
        b: int,
        b_type: int,
        ldb: int,
        beta: int,
        c: int,
        c_type: int,
        ldc: int,
        compute: int,
        algorithm: int,
    ) -> None:
        """C = alpha op(A) op(B) + beta C, sums in ascending k."""
        assert handle == self.HANDLE
        assert self.stream == cuda.get_current_stream().ptr, "the handle has another stream"
        assert self.mode == 0, "the scales are on the host"
        assert (a_type, c_type, compute, algorithm) == (b_type, 0, 68, -1)
        assert a_type in (2, 14)
        assert min(m, n, k) > 0
        left = self._matrix(a, a_type, lda, *((k, m) if transa else (m, k)))
        right = self._matrix(b, b_type, ldb, *((n, k) if transb else (k, n)))
        out = self._matrix(c, c_type, ldc, m, n)
        one, other = (ctypes.c_float.from_address(x).value for x in (alpha, beta))
        left = self._numbers(np.ascontiguousarray(left.T if transa else left), a_type)
        right = self._numbers(np.ascontiguousarray(right.T if transb else right), a_type)
        total = np.zeros((m, n), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for i in range(k):
                total += left[:, i, None] * right[i]
            out[...] = one * total + (other * out if other else 0)
        self.calls.append({"m": m, "n": n, "k": k, "kind": a_type, "add": other != 0})


class Nccl:
    """NCCL as CuPy gives it, between threads: addresses, numbers of types, groups and a stream."""

    NCCL_FLOAT32, NCCL_FLOAT64 = 7, 8
    TYPES = MappingProxyType(
        {NCCL_FLOAT32: np.dtype(np.float32), NCCL_FLOAT64: np.dtype(np.float64)}
    )

    def __init__(self) -> None:
        self.available = True
        self.made: list[int] = []  # sizes of communicators
        self._mail: dict[Any, queue.Queue[Any]] = {}
        self._lock = threading.Lock()
        self._group = threading.local()

    def get_unique_id(self) -> bytes:
        with self._lock:
            self.made.append(0)
            return b"%d" % len(self.made)

    def NcclCommunicator(self, size: int, name: bytes, rank: int) -> _Communicator:
        self.made[int(name) - 1] = size
        return _Communicator(self, name, rank)

    def groupStart(self) -> None:
        self._group.waiting = []

    def groupEnd(self) -> None:
        """Receive what was asked for in the group: what is sent there has left before."""
        for box, into, kind in self._group.waiting:
            sent, number = self._box(box).get(timeout=60)
            assert (number, sent.shape) == (kind, into.shape)
            into[...] = sent
        del self._group.waiting

    def _box(self, key: Any) -> queue.Queue[Any]:
        with self._lock:
            return self._mail.setdefault(key, queue.Queue())


class _Communicator:
    def __init__(self, nccl: Nccl, name: bytes, rank: int) -> None:
        self.nccl, self.name, self.rank = nccl, name, rank

    def _array(self, address: int, count: int, kind: int, stream: int) -> Any:
        assert stream == cuda.get_current_stream().ptr
        assert count > 0
        dtype = Nccl.TYPES[kind]
        return DEVICE.view(address, (count,), (dtype.itemsize,), dtype)._a

    def send(self, address: int, count: int, kind: int, peer: int, stream: int) -> None:
        own = self._array(address, count, kind, stream).copy()
        self.nccl._box((self.name, self.rank, peer)).put((own, kind))

    def recv(self, address: int, count: int, kind: int, peer: int, stream: int) -> None:
        into = self._array(address, count, kind, stream)
        self.nccl._group.waiting.append(((self.name, peer, self.rank), into, kind))


cuda = SimpleNamespace(
    cublas=_Blas(),
    nccl=Nccl(),
    device=SimpleNamespace(get_cublas_handle=lambda: _Blas.HANDLE),
    get_current_stream=lambda: SimpleNamespace(ptr=11),
)


def __getattr__(name: str) -> Any:
    """Every other function is NumPy's, on arrays of this module alone."""
    function = getattr(np, name)
    traffic.reads += name in SHAPED_BY_VALUES
    return lambda *args, **kwargs: wrap(function(*unwrap(args), **unwrap(kwargs)))


module = sys.modules[__name__]
DEVICE = _device.emulated(library=module)


def stand_in(patch: pytest.MonkeyPatch, device: _device.Device = DEVICE) -> _device.Device:
    """Let arrays of this module be those of the GPU, and ``import cupy`` give it."""
    patch.setitem(_device._FINDERS, ndarray, lambda a: device)
    patch.setattr(_device, "cuda", lambda index=None: device)
    patch.setitem(sys.modules, "cupy", module)
    return device


def bytes_made(patch: pytest.MonkeyPatch, xp: Any = module) -> list[int]:
    """Return a list to which every array that is made without values adds its bytes from now on."""
    made: list[int] = []
    empty = xp.empty

    def count(shape: Any, dtype: Any = float) -> Any:
        made.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return empty(shape, dtype)

    patch.setattr(xp, "empty", count, raising=False)
    return made
