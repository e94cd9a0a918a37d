"""Arrays that behave as CuPy's do, in ordinary memory.

What lets everything above the kernels of a GPU be tested without one.

An array here refuses to meet NumPy arrays in an operation, has no ``__array__`` and is brought back
by ``get``, as CuPy's.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from ostinato import _device

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

    def get(self) -> Any:
        return self._a.copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_a":
            raise AttributeError(name)
        value = getattr(self._a, name)
        if name in ("flags",):
            return value if False else _Flags(value)
        if callable(value) and name != "ctypes":
            return lambda *args, **kwargs: wrap(value(*unwrap(args), **unwrap(kwargs)))
        return wrap(value)

    def __getitem__(self, index: Any) -> Any:
        return wrap(self._a[index_of(index)], keep=True)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._a[index_of(index)] = unwrap(value)

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __float__(self) -> float:
        return float(self._a)

    def __int__(self) -> int:
        return int(self._a)

    def __bool__(self) -> bool:
        return bool(self._a)

    def __index__(self) -> int:
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


def asarray(a: Any, dtype: Any = None) -> ndarray:
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


def __getattr__(name: str) -> Any:
    """Every other function is NumPy's, on arrays of this module alone."""
    function = getattr(np, name)
    return lambda *args, **kwargs: wrap(function(*unwrap(args), **unwrap(kwargs)))


module = sys.modules[__name__]
DEVICE = _device.emulated(library=module)


def stand_in(patch: pytest.MonkeyPatch, device: _device.Device = DEVICE) -> _device.Device:
    """Let arrays of this module be those of the GPU, and ``import cupy`` give it."""
    patch.setitem(_device._FINDERS, ndarray, lambda a: device)
    patch.setattr(_device, "cuda", lambda index=None: device)
    patch.setitem(sys.modules, "cupy", module)
    return device
