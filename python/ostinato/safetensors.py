"""Read and write tensors in a file, in the safetensors format, with only NumPy.

A file is 8 bytes with the length of the header (little endian), a JSON header of names to dtype,
shape and byte range, and the bytes. A file is written beside its place and moved there when it is
whole.

What `save` writes has a checksum (CRC-32) of names, dtypes, shapes, metadata and all bytes in its
metadata, under ``ostinato.crc32``, and `load` refuses a file that does not fit it, or in which that
name is damaged. Files of other writers, without a checksum, load as well. The checksum costs about
a quarter of a second a gigabyte, when writing and when reading.

BF16 tensors are read as float32, which holds every bfloat16 exactly; arrays of
``ml_dtypes.bfloat16`` are written as BF16, and with ``dtype="bfloat16"`` all real numbers are.
Dtypes that NumPy does not have (F8, F6, F4) are refused by name.

>>> import tempfile, pathlib
>>> import numpy as np
>>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
>>> save(path, {"w": np.ones((2, 3), np.float32)}, {"made by": "hand"})
>>> tensors, metadata = load(path)
>>> tensors["w"].shape, metadata
((2, 3), {'made by': 'hand'})
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from . import _device
from ._annotations import readable
from ._check import Array, mapping, quoted
from ._files import atomic_write, open_regular, require_path

__all__ = ["atomic_write", "load", "save"]

_NAMES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # as bits; bfloat16 is the upper half of a float32
    "C64": "<c8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODES = {np.dtype(v): k for k, v in _NAMES.items() if k != "BF16"}
_LONGEST_HEADER = 100_000_000  # the format's own limit
_PART = 1 << 18  # bfloat16 that are widened at a time
_MOST_AXES = 64  # NumPy's limit, 32 before NumPy 2
_CHECKSUM = "ostinato.crc32"
_METADATA = "__metadata__"


def _checksum(
    facts: dict[str, tuple[str, list[int]]], metadata: Mapping[str, str], crcs: dict[str, int]
) -> str:
    """Return the checksum of a file.

    It covers all that a reader is given, and nothing that a copy may lay out differently.
    """
    content = [sorted(metadata.items()), [(n, *facts[n], crcs[n]) for n in sorted(facts)]]
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _bfloat16_bits(name: str, a: Array) -> Array:
    """Return the 16 bits of numbers rounded to bfloat16, to nearest, ties to even."""
    a = np.atleast_1d(a)
    with np.errstate(over="ignore"):
        b = np.ascontiguousarray(a, np.float32)
    u = b.view(np.uint32).copy()
    if a.dtype.itemsize > 4:  # round to odd first: rounding to nearest twice would be wrong
        u -= (np.abs(b) > np.abs(a)) & np.isfinite(b)
        u |= (b != a) & np.isfinite(b)
    nan = np.isnan(a)
    u += np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))
    bits: Array = (u >> np.uint32(16)).astype("<u2")
    if ((bits & np.uint16(0x7FFF)) == 0x7F80)[np.isfinite(a)].any():
        largest = np.abs(a[np.isfinite(a)]).max()
        raise ValueError(f"{name}: expected values within the range of bfloat16, got {largest:.3g}")
    bits[nan] = 0x7FC0
    return bits


def _raw(name: str, value: Any, dtype: str | None) -> tuple[str, Array]:
    """Return the format's name of a dtype, and the array as contiguous little-endian words."""
    if type(value) is not np.ndarray and np.ma.is_masked(value):
        raise ValueError(
            f"{name}: expected numbers everywhere, got a masked array; use a.filled(number)"
        )
    if _device.of(value) is not None:
        raise TypeError(
            f"{name}: expected a numpy.ndarray, got one on {_device.name_of(value)}; use a.get()"
        )
    try:
        a = np.asarray(value)
    except (TypeError, ValueError):  # lists of different lengths among them
        raise TypeError(f"{name}: expected a numpy.ndarray, got {type(value).__name__}") from None
    if dtype is not None and a.dtype.kind == "f":
        return "BF16", _bfloat16_bits(name, a)
    if a.dtype.name == "bfloat16":
        return "BF16", np.ascontiguousarray(a).view(np.uint16).astype("<u2", copy=False)
    code = _CODES.get(a.dtype.newbyteorder("<") if a.dtype.itemsize > 1 else a.dtype)
    if code is None:
        raise TypeError(f"{name}: expected a dtype that safetensors knows, got {a.dtype}")
    return code, np.ascontiguousarray(a, dtype=_NAMES[code])


def _check_text(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the metadata without a checksum that an earlier file had."""
    pairs = {} if metadata is None else dict(mapping("metadata", metadata, "text for text"))
    pairs.pop(_CHECKSUM, None)
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata: expected text for text, got {key!r}: {value!r}")
        _check_utf8("metadata", key + value)
    return pairs


def _check_utf8(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected text that UTF-8 can write, got {text[:80]!r}") from None


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: str | None = None,
) -> None:
    """Write named arrays, and text under ``__metadata__``.

    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save(path, {"w": np.ones((2, 3), np.float32)}, dtype="bfloat16")
    >>> path.exists()
    True

    Args:
        path: the file to write; what is there stays until the new file is whole.
        tensors: names to arrays.
        metadata: text for text.
        dtype: None: every array as it is. "bfloat16": arrays of real numbers as BF16, rounded to
            nearest, ties to even.

    Raises:
        TypeError: a dtype that the format does not know; names or metadata that are no text;
            tensors that are no mapping, or a path that is none.
        ValueError: a name or metadata that UTF-8 cannot write; a tensor named ``__metadata__``;
            another ``dtype`` than these, a number too large for bfloat16, or arrays with masked
            numbers.
        OSError: the file cannot be written; the error names it.
    """
    require_path(path)
    text = _check_text(metadata)
    if not hasattr(tensors, "items"):
        raise TypeError(f"tensors: expected names to arrays (a dict), got {type(tensors).__name__}")
    if dtype not in (None, "bfloat16"):
        raise ValueError(f"dtype: expected None or 'bfloat16', got {dtype!r}")
    arrays = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"tensors: expected names that are text, got {name!r}")
        if name == _METADATA:
            raise ValueError(
                f"tensors: expected names other than {_METADATA!r}, which the format keeps for "
                "itself"
            )
        _check_utf8("tensors", name)
        arrays[name] = _raw(name, value, dtype)
    facts = {n: (code, list(np.shape(tensors[n]))) for n, (code, _) in arrays.items()}
    crcs = {n: zlib.crc32(_bytes(raw)) for n, (_, raw) in arrays.items()}
    header: dict[str, Any] = {_METADATA: {**text, _CHECKSUM: _checksum(facts, text, crcs)}}
    # Widest items first, as the format's own writer does: every tensor is then aligned to its
    # items.
    order = sorted(arrays, key=lambda n: (-arrays[n][1].dtype.itemsize, n))
    end = 0
    for name in order:
        code, raw = arrays[name]
        header[name] = {
            "dtype": code,
            "shape": facts[name][1],
            "data_offsets": [end, end + raw.nbytes],
        }
        end += raw.nbytes
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    if len(words) > _LONGEST_HEADER:
        raise ValueError(
            f"tensors: expected a header of at most {_LONGEST_HEADER} bytes, got {len(words)}"
        )
    with atomic_write(path) as f:
        f.write(struct.pack("<Q", len(words)) + words)
        for name in order:
            f.write(_bytes(arrays[name][1]))


def _bytes(a: Array) -> memoryview:
    return a.reshape(-1).view(np.uint8).data


class _Bad(Exception):
    """Report what is wrong with a file."""


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read named arrays and the metadata.

    The header is checked against the file's size before anything is allocated: the tensors must lie
    one behind the other and fill the file, as the format wants it.

    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save(path, {"w": np.ones((2, 3), np.float32)})
    >>> load(path)
    ({'w': array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)}, {})

    Args:
        path: the file to read.

    Returns:
        The arrays by name, BF16 as float32; and the metadata, without the checksum.

    Raises:
        TypeError: a path that is none.
        OSError: the file cannot be read.
        ValueError: it is not a whole safetensors file, it does not fit its checksum, or it is no
            regular file; the message says what is wrong.
    """
    with open_regular(path) as f:
        try:
            return _read(f, os.fstat(f.fileno()).st_size)
        except _Bad as e:
            raise ValueError(f"{os.fspath(path)}: expected a safetensors file, got {e}") from None


def _read(f: IO[bytes], length: int) -> tuple[dict[str, Array], dict[str, str]]:
    header, body = _header(f, length)
    metadata = header.pop(_METADATA, None)
    metadata = {} if metadata is None else metadata
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise _Bad("metadata that is not text")
    entries = {name: _entry(name, entry, body) for name, entry in header.items()}
    order = sorted(entries, key=lambda n: entries[n][2:])
    at = 0
    for name in order:
        begin, end = entries[name][2:]
        if begin != at:
            raise _Bad(
                f"byte range {begin}:{end} for {quoted(name)}, where one that begins at {at} is due"
            )
        at = end
    if at != body:
        raise _Bad(f"a body of {body} bytes, of which tensors fill {at}")
    wanted = metadata.pop(_CHECKSUM, None)
    for key in metadata if wanted is None else ():
        if len(key) == len(_CHECKSUM) and sum(a != b for a, b in zip(key, _CHECKSUM)) <= 2:
            raise _Bad(
                f"one that is damaged: its metadata has {quoted(key)} where {_CHECKSUM!r} is due"
            )
    tensors, crcs = {}, {}
    for name in order:
        tensors[name], crcs[name] = _tensor(f, name, *entries[name], checked=wanted is not None)
    if wanted is not None:
        found = _checksum({n: (e[0], list(e[1])) for n, e in entries.items()}, metadata, crcs)
        if found != wanted:
            raise _Bad(
                f"one that is damaged: its checksum is {found}, not {wanted[:80]!r} (or another "
                "program has "
                f"changed the tensors and kept the metadata; {_CHECKSUM!r} does not belong there "
                "then)"
            )
    return {name: tensors[name] for name in entries}, metadata


def _header(f: IO[bytes], length: int) -> tuple[dict[str, Any], int]:
    """Return the parsed header, and the length of the body."""
    if length < 8:
        raise _Bad(f"{length} bytes")
    (size,) = struct.unpack("<Q", _exactly(f, 8))
    if size > min(_LONGEST_HEADER, length - 8):
        raise _Bad(f"a header of {size} bytes in a file of {length}")
    try:
        header = json.loads(
            _exactly(f, size).decode(),
            object_pairs_hook=_no_duplicates,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        raise _Bad("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise _Bad("a header that is not an object")
    return header, length - 8 - size


def _exactly(f: IO[bytes], size: int) -> bytes:
    data = f.read(size)
    if len(data) != size:
        raise _Bad("one that grew shorter while it was read")
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise _Bad(f"a header with more than one {quoted(name)}")
        out[name] = value
        for text in (name, value):
            if isinstance(text, str):
                text.encode()  # a lone surrogate is a ValueError
    return out


def _whole(text: str) -> int:
    if text.startswith("-"):
        raise _Bad(f"the number {text[:40]} in its header")
    return int(text)


def _no_number(text: str) -> Any:
    raise _Bad(f"the number {text[:40]} in its header")


def _entry(name: str, entry: Any, body: int) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, begin and end of a tensor, checked against the length of the body."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Bad(f"a bad entry for {quoted(name)}: {quoted(entry)}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise _Bad(f"a bad entry for {quoted(name)}: {quoted(entry)}")
    # The type is compared, since True is an instance of int.
    if len(offsets) != 2 or not all(type(k) is int for k in (*shape, *offsets)):
        raise _Bad(f"a bad entry for {quoted(name)}: {quoted(entry)}")
    if code not in _NAMES:
        raise _Bad(
            f"a bad entry for {quoted(name)}: dtype {quoted(code)}, where one of "
            f"{', '.join(_NAMES)} can be read"
        )
    if len(shape) > _MOST_AXES:
        raise _Bad(f"{len(shape)} axes for {quoted(name)}, where at most {_MOST_AXES} can be read")
    begin, end = offsets
    count, bound = 1, 1
    for k in shape:
        count, bound = count * k, bound * max(k, 1)
        if bound >= 2**63 // 8:
            raise _Bad(
                f"byte range {begin}:{end} for {quoted(name)} of shape {quoted(shape)}, which has "
                "no size"
            )
    if end > body or begin > end or end - begin != count * np.dtype(_NAMES[code]).itemsize:
        raise _Bad(
            f"byte range {begin}:{end} for {quoted(name)} of shape {quoted(tuple(shape))} in a "
            f"body of {body} bytes"
        )
    return code, tuple(shape), begin, end


def _tensor(
    f: IO[bytes],
    name: str,
    code: str,
    shape: tuple[int, ...],
    begin: int,
    end: int,
    *,
    checked: bool,
) -> tuple[Array, int]:
    """Read the next tensor of the file, and compute its checksum if there is one to compare."""
    dtype = np.dtype("|u1") if code == "BOOL" else np.dtype(_NAMES[code])
    try:
        a: Array = np.empty(shape, np.float32 if code == "BF16" else dtype)
    except ValueError as e:  # more axes than this NumPy knows
        raise _Bad(f"shape {quoted(shape)} for {quoted(name)}: {e}") from None
    if code == "BF16":
        return a, _bfloat16_into(f, a, checked)
    view = _bytes(a)
    if f.readinto(view) != len(view):  # type: ignore[attr-defined]  # a binary file
        raise _Bad("one that grew shorter while it was read")
    crc = zlib.crc32(view) if checked else 0
    if code == "BOOL":
        if a.size and a.max() > 1:
            raise _Bad(f"a bool of value {a.max()} in {quoted(name)}")
        return a.view(np.bool_), crc
    return a.astype(dtype.newbyteorder("="), copy=False), crc


def _bfloat16_into(f: IO[bytes], a: Array, checked: bool) -> int:
    """Read bfloat16 as float32, a part at a time; return their checksum if there is one."""
    wide, crc = a.reshape(-1).view(np.uint32), 0
    part = np.empty(min(wide.size, _PART), "<u2")
    for begin in range(0, wide.size, _PART):
        end = min(begin + _PART, wide.size)
        bits = part[: end - begin]
        view = _bytes(bits)
        if f.readinto(view) != len(view):  # type: ignore[attr-defined]  # a binary file
            raise _Bad("one that grew shorter while it was read")
        crc = zlib.crc32(view, crc) if checked else 0
        np.left_shift(bits, np.uint32(16), out=wide[begin:end], dtype=np.uint32)
    return crc


readable(globals())
