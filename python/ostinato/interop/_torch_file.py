"""Read the files of ``torch.save``, zip archives and the older stream, with only NumPy."""

from __future__ import annotations

import errno
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from .. import _check, _files
from .._annotations import readable
from .._check import Array
from ._pickle import Bounded, Global, Refused, read, read_bytes

# What readers of zip archives and of pickles raise where a file is damaged; EINVAL is a seek to a
# place before the file, RuntimeError an encrypted entry.
_DAMAGES = (
    Refused,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    OSError,
)
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the older form
_MOST_AXES = 32
_DEEPEST = 100  # containers within containers
# What torch calls a storage of a dtype, the dtype in torch, and NumPy's.
_STORAGES = {
    "DoubleStorage": ("float64", "f8"),
    "FloatStorage": ("float32", "f4"),
    "HalfStorage": ("float16", "f2"),
    "BFloat16Storage": ("bfloat16", "u2"),  # as bits; the upper half of a float32
    "LongStorage": ("int64", "i8"),
    "IntStorage": ("int32", "i4"),
    "ShortStorage": ("int16", "i2"),
    "CharStorage": ("int8", "i1"),
    "ByteStorage": ("uint8", "u1"),
    "BoolStorage": ("bool", "u1"),
    "ComplexFloatStorage": ("complex64", "c8"),
    "ComplexDoubleStorage": ("complex128", "c16"),
}
_DTYPES = {**dict(_STORAGES.values()), "uint16": "u2", "uint32": "u4", "uint64": "u8"}


class _Storage:
    """The memory of tensors: bytes of a file, read once."""

    def __init__(self, key: str, dtype: str, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count
        self.words: bytearray | None = None
        self.order = "<"
        self._arrays: dict[str, Array] = {}

    def array(self, dtype: str) -> Array:
        """Return all of it as an array of a dtype; bfloat16 as float32."""
        if self.words is None:
            raise Refused(f"no bytes for the storage {self.key[:80]!r}")
        if dtype not in self._arrays:
            code = np.dtype(self.order + _DTYPES[dtype])
            whole = len(self.words) // code.itemsize * code.itemsize
            flat: Array = np.frombuffer(memoryview(self.words)[:whole], code)
            if dtype == "bfloat16":
                flat = (flat.astype("<u4") << 16).view("<f4")
            elif dtype == "bool":
                flat = flat != 0
            self._arrays[dtype] = flat.astype(np.dtype(flat.dtype.name), copy=False)
        return self._arrays[dtype]


class _Tensor:
    """A tensor that is to be made once its storage has been read."""

    def __init__(self, storage: _Storage, dtype: str, offset: Any, size: Any, stride: Any) -> None:
        if not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise Refused("a tensor without a size and strides")
        self.storage, self.dtype = storage, dtype
        self.offset, self.size, self.stride = offset, size, stride

    def array(self, most: int) -> Array:
        """Return the view of the storage, of at most so many elements."""
        flat = self.storage.array(self.dtype)
        numbers = (self.offset, *self.size, *self.stride)
        if not len(self.size) == len(self.stride) <= _MOST_AXES:
            raise Refused(f"a tensor of {len(self.size)} axes and {len(self.stride)} strides")
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise Refused("a tensor whose size and strides are no numbers of elements")
        if math.prod(max(n, 1) for n in self.size) >= 2**60:
            raise Refused(f"a tensor of size {self.size}")
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride))
        if count and (last >= len(flat) or count > max(most, len(flat))):
            raise Refused(
                f"a tensor of size {self.size} at {self.offset} in a storage of {len(flat)}"
            )
        if not count:
            return np.zeros(self.size, flat.dtype)
        step = flat.itemsize
        strides = tuple(s * step for s in self.stride)
        view: Array = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, strides)
        return view


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise Refused("a tensor without a storage")
    if storage.dtype not in _DTYPES:
        raise Refused(f"a storage of {storage.dtype}, which NumPy does not have")
    return _Tensor(storage, storage.dtype, offset, size, stride)


def _rebuilt_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> _Tensor:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else "no dtype"
    if not isinstance(storage, _Storage) or name not in _DTYPES:
        raise Refused(f"a tensor of {name[:80]}, which NumPy does not have")
    return _Tensor(storage, name, offset, size, stride)


def _parameter(data: Any, *rest: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise Refused("a parameter that is no tensor")
    return data


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(p, (list, tuple)) and len(p) == 2 and isinstance(p[0], (str, int)) for p in pairs
    ):
        raise Refused("an OrderedDict that is not made of pairs")
    return dict(pairs)


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, tuple):
        raise Refused("a size that is no tuple")
    return sizes


def _device_name(kind: Any = "cpu", index: Any = None) -> str:
    if not isinstance(kind, str):
        raise Refused("a device that is no text")
    return kind


_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch.device": _device_name,
}


class _Storages:
    """The storages that a pickle speaks of."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def find(self, given: Any) -> _Storage:
        """Return the storage of a persistent id."""
        if isinstance(given, tuple) and len(given) > 1 and given[0] == "module":
            name = given[1].name if isinstance(given[1], Global) else "module"
            raise Refused(f"a pickled {name}; save its state_dict() in PyTorch")
        if not isinstance(given, tuple) or len(given) < 5 or given[0] != "storage":
            raise Refused("a persistent id that is no storage")
        _, kind, key, _, count = given[:5]
        if not isinstance(kind, Global) or not isinstance(key, str) or type(count) is not int:
            raise Refused("a persistent id that is no storage")
        if len(given) > 5 and given[5] is not None:
            raise Refused("a view of a storage, as PyTorch before 0.4 wrote them")
        name = kind.name.rpartition(".")[2]
        dtype = _STORAGES.get(name, (name, ""))[0]
        if name == "UntypedStorage":
            dtype = "uint8"
        found = self.by_key.setdefault(key, _Storage(key, dtype, count))
        return found


class _Resolver:
    """Put arrays in the place of tensors.

    What a pickle holds in several places is made once and shared, as it was saved: a small file
    can hold a value 2**100 times.

    Args:
        most: elements of a tensor.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # By their identity, with the value itself, which lives as long.
        self._made: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """Return a value with arrays in place of tensors, and names in place of globals."""
        if isinstance(value, Global):
            return value.name
        if not isinstance(value, (_Tensor, dict, list, tuple)):
            return value
        if id(value) in self._open or depth > _DEEPEST:
            raise Refused("containers that hold themselves, or lie too deep in others")
        if id(value) not in self._made:
            self._open.add(id(value))
            self._made[id(value)] = self._inner(value, depth + 1), value
            self._open.discard(id(value))
        return self._made[id(value)][0]

    def _inner(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Tensor):
            return value.array(self._most)
        if isinstance(value, dict):
            return {k: self(v, depth) for k, v in value.items()}
        return type(value)(self(v, depth) for v in value)


def _read_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {e.filename: e for e in archive.infolist()}
        roots = [n[: -len("data.pkl")] for n in entries if n.endswith("data.pkl")]
        if len(roots) != 1:
            raise Refused("a zip archive without one data.pkl")
        root = roots[0]
        if any(n.startswith(root + "code/") for n in entries):
            raise Refused(
                "an archive of TorchScript, which holds code; save its state_dict() in PyTorch"
            )
        stored = sum(e.file_size for e in entries.values())
        plain = all(
            e.compress_type == zipfile.ZIP_STORED and e.compress_size == e.file_size
            for e in entries.values()
        )
        if not plain or stored > size:
            raise Refused("an archive with compressed or overlapping entries")
        storages = _Storages()
        made = read_bytes(archive.read(root + "data.pkl"), _FUNCTIONS, storages.find)
        order = "<"
        if root + "byteorder" in entries and archive.read(root + "byteorder") == b"big":
            order = ">"
        for key, storage in storages.by_key.items():
            name = f"{root}data/{key}"
            if name not in entries:
                raise Refused(f"no entry {name[:80]!r} for a storage")
            storage.words, storage.order = bytearray(archive.read(name)), order
    return _Resolver(size)(made)


def _read_stream(file: IO[bytes], size: int) -> Any:
    bounded, storages = Bounded(file, size), _Storages()

    def none(given: Any) -> Any:
        raise Refused("a persistent id before the data")

    if read(bounded, {}, none) != _MAGIC:
        raise Refused("a pickle that torch.save did not write")
    read(bounded, {}, none)  # the version of the protocol
    system = read(bounded, {}, none)
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    made = read(bounded, _FUNCTIONS, storages.find)
    keys = read(bounded, {}, none)
    for key in keys if isinstance(keys, list) else ():
        storage = storages.by_key.get(key) if isinstance(key, str) else None
        head = bounded.read(8)
        if storage is None or len(head) != 8:
            raise Refused(f"no storage {str(key)[:80]!r}")
        (count,) = struct.unpack("<q", head)
        item = np.dtype(_DTYPES.get(storage.dtype, "u1")).itemsize
        if count != storage.count or not 0 <= count * item <= bounded.left:
            raise Refused(f"a storage of {count} elements, where {bounded.left} bytes are left")
        storage.words = bytearray(bounded.read(count * item))
        storage.order = "<" if little else ">"
    return _Resolver(size)(made)


def _names_of(key: Any) -> tuple[Any, ...]:
    """Return the names that lead into nested dictionaries, from the outermost on."""
    names = () if key is None else (key,) if isinstance(key, str) else key
    listed = isinstance(names, Sequence) and not isinstance(names, (bytes, bytearray))
    if not listed or not all(isinstance(n, (str, int)) for n in names):
        raise TypeError(f"key: expected a name or a list of names, got {_check.quoted(key)}")
    return tuple(names)


def _picked(made: Any, names: tuple[Any, ...]) -> Any:
    for name in names:
        if not isinstance(made, dict) or name not in made:
            known = isinstance(made, dict)
            there = _check.some(list(made)) if known else f"a {type(made).__name__}"
            raise KeyError(f"key: expected one of {there}, got {name!r}")
        made = made[name]
    return made


def load_torch(path: str | os.PathLike[str], key: str | Sequence[str] | None = None) -> Any:
    """Read what ``torch.save`` wrote, without PyTorch.

    Zip archives and the stream of PyTorch before 1.6 are read by an allow-list: tensors, numbers,
    text, lists, tuples and dictionaries of these. Nothing of the file is executed or imported, and
    a file that asks for more, such as a pickled module, is an error that names what it asks for.

    >>> import pathlib, pickle, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.pt"
    >>> _ = path.write_bytes(pickle.dumps(print))
    >>> load_torch(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...: expected a file of torch.save, got a pickle that torch.save did not write

    Args:
        path: the file.
        key: what to pick of nested dictionaries, such as "model_state"; several names lead further
            in. None: all.

    Returns:
        Dictionaries, lists and plain values as they were saved, with arrays in place of tensors;
        bfloat16 as float32, which holds it exactly. Tensors that shared memory still do.

    Raises:
        KeyError: a ``key`` that is not there; the message lists what is.
        OSError: the file cannot be read.
        TypeError: a ``path`` that is none, or a ``key`` that is no name and no list of names.
        ValueError: it is damaged, it is no file of ``torch.save``, or it asks for more than the
            allow-list has.
    """
    names = _names_of(key)
    with _files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            made = _read_zip(file, size) if zipped else _read_stream(file, size)
        except _DAMAGES as e:
            if isinstance(e, OSError) and e.errno != errno.EINVAL:
                raise
            text = str(e)[:300] or type(e).__name__
            raise ValueError(
                f"{os.fspath(path)}: expected a file of torch.save, got {text}"
            ) from None
    return _picked(made, names)


readable(globals())
