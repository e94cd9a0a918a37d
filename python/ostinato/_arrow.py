"""Read columns of lists through Arrow's PyCapsule interface, without copying their numbers.

Source: Apache Arrow, "The Arrow C data interface" and "The Arrow PyCapsule interface".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._check import Array

# By the letter of a format: numbers that become rows.
NUMBERS = {
    **{"e": "f2", "f": "f4", "g": "f8"},
    **{"c": "i1", "C": "u1", "s": "i2", "S": "u2", "i": "i4", "I": "u4", "l": "i8", "L": "u8"},
}


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))),
    ("private_data", ctypes.c_void_p),
]
_OfStream = ctypes.POINTER(_Stream)
_Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, _OfStream, ctypes.POINTER(_Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, _OfStream, ctypes.POINTER(_Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, _OfStream)),
    ("release", ctypes.CFUNCTYPE(None, _OfStream)),
    ("private_data", ctypes.c_void_p),
]


class _Released:
    """Own a struct of Arrow that others filled, and give it back at the end."""

    def __init__(self, struct: Any) -> None:
        self.struct = struct

    def __del__(self) -> None:
        if self.struct.release:
            self.struct.release(ctypes.byref(self.struct))


class _Memory:
    """Show numbers in memory of Arrow to NumPy, and keep their owner alive."""

    def __init__(self, address: int, count: int, dtype: str, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, True),  # read-only: others may use it
            "shape": (count,),
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


class Nested(NamedTuple):
    """The numbers of a column, and where they are cut.

    Attributes:
        rows: ``[N]``, or ``[N,I]`` where the innermost lists have a fixed size.
        offsets: of the lists, from the outermost to the innermost; each counts those within.
    """

    rows: Array
    offsets: list[Array]


def _numbers(at: int | None, start: int, count: int, dtype: str, owner: Any) -> Array:
    """Return numbers of a buffer without copying."""
    size = np.dtype(dtype).itemsize
    if not count or at is None:
        return np.zeros(count, dtype)
    return np.asarray(_Memory(at + start * size, count, dtype, owner))


def _refuse_missing(array: Any, start: int, count: int, what: str) -> None:
    """Raise if an element of a range is null."""
    if array.null_count == 0 or not array.n_buffers or not array.buffers[0] or not count:
        return
    first, bits = start // 8, start % 8
    data = _numbers(array.buffers[0], first, (bits + count + 7) // 8, "u1", array)
    present = np.unpackbits(data, bitorder="little")
    missing = np.flatnonzero(present[bits : bits + count] == 0)
    if missing.size:
        raise ValueError(
            f"column: expected no missing {what}, got {missing.size}; fill or drop them first"
        )


def _read(
    schema: Any, array: Any, start: int, count: int, name: str, owner: Any, depth: int = 0
) -> Nested:
    """Return elements of an array, from start on."""
    form = schema.format.decode()
    if schema.dictionary:
        raise TypeError(f"{name}: expected numbers, got categories; cast them first")
    start += array.offset
    _refuse_missing(array, start, count, "numbers" if form in NUMBERS else "sequences")
    if form in NUMBERS and depth:
        return Nested(_numbers(array.buffers[1], start, count, NUMBERS[form], owner), [])
    if form in ("+l", "+L"):
        kind = "i4" if form == "+l" else "i8"
        ends = _numbers(array.buffers[1], start, count + 1, kind, owner).astype(np.int64)
    elif form.startswith("+w:"):
        width = int(form[3:])
        ends = np.arange(start, start + count + 1, dtype=np.int64) * width
    else:
        raise TypeError(
            f"{name}: expected a column of lists of numbers, got the Arrow format {form!r}"
            + ("; take one column of the table" if form == "+s" else "")
        )
    inner = schema.children[0].contents, array.children[0].contents
    if ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > inner[1].length:
        raise ValueError(
            f"{name}: expected lists within {inner[1].length} elements, got offsets beyond "
            "them; the column is damaged"
        )
    rows, offsets = _read(*inner, int(ends[0]), int(ends[-1] - ends[0]), name, owner, depth + 1)
    if form.startswith("+w:") and not offsets and rows.ndim == 1 and depth:
        return Nested(rows.reshape(count, width), [])
    return Nested(rows, [ends - ends[0], *offsets])


def _pointer(capsule: Any, name: bytes, kind: Any) -> Any:
    """Return the struct of a capsule."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.cast(get(capsule, name), ctypes.POINTER(kind)).contents


def _chunks(column: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield schema, array and owner of every piece of a column."""
    if hasattr(column, "__arrow_c_array__"):
        capsules = column.__arrow_c_array__()
        schema = _pointer(capsules[0], b"arrow_schema", _Schema)
        yield schema, _pointer(capsules[1], b"arrow_array", _Array), capsules
        return
    capsule = column.__arrow_c_stream__()
    stream = _pointer(capsule, b"arrow_array_stream", _Stream)
    schema = _Released(_Schema())

    def checked(status: int) -> None:
        if status:
            reason = stream.get_last_error(ctypes.byref(stream))
            raise ValueError(f"column: expected a stream of Arrow, got {(reason or b'').decode()}")

    checked(stream.get_schema(ctypes.byref(stream), ctypes.byref(schema.struct)))
    while True:
        owner = _Released(_Array())
        checked(stream.get_next(ctypes.byref(stream), ctypes.byref(owner.struct)))
        if not owner.struct.release:
            return
        yield schema.struct, owner.struct, owner


def nested(column: Any, name: str) -> Nested:
    """Return the numbers of a column of lists, and where they are cut.

    Args:
        column: a column of Arrow, Polars or pandas.
        name: what errors call it.

    Returns:
        The numbers, a view where the column is of one piece, and the offsets.

    Raises:
        TypeError: a column of something else, or an object without the interface.
        ValueError: missing elements, or lists of several pieces that differ in kind.
    """
    if not hasattr(column, "__arrow_c_array__") and not hasattr(column, "__arrow_c_stream__"):
        inner: Any = getattr(column, "array", None)  # of pandas before 3: that of a dtype of Arrow
        if hasattr(inner, "__arrow_array__"):
            return nested(inner.__arrow_array__(), name)
        raise TypeError(
            f"{name}: expected a column with Arrow's interface (of pyarrow, Polars or pandas), got "
            f"{type(column).__name__}; Ragged.join takes a list of arrays"
        )
    pieces = [_read(s, a, 0, a.length, name, owner) for s, a, owner in _chunks(column)]
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        raise ValueError(f"{name}: expected at least one sequence, got none")
    rows = np.concatenate([p.rows for p in pieces])
    offsets = []
    for cuts in zip(*(p.offsets for p in pieces)):
        lengths = np.concatenate([np.diff(c) for c in cuts])
        offsets.append(np.concatenate([[0], np.cumsum(lengths)]))
    return Nested(rows, offsets)
