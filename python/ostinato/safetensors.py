"""Tensors in a file: the safetensors format, read and written with NumPy alone.

A file is 8 bytes with the length of the header (little endian), a JSON header of names to dtype, shape and byte range, and
the bytes. A file is written beside its place and moved there when it is whole.

>>> import tempfile, pathlib
>>> import numpy as np
>>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
>>> save(path, {"w": np.ones((2, 3), np.float32)}, {"made by": "hand"})
>>> tensors, metadata = load(path)
>>> tensors["w"].shape, metadata
((2, 3), {'made by': 'hand'})
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ._check import Array

__all__ = ["atomic_write", "load", "save"]

_NAMES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
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
_CODES = {np.dtype(v): k for k, v in _NAMES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that appears at ``path`` whole when the block ends; on an error the old one stays and no trace is left."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: expected a folder at {target.parent}, found none")
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp gives 0600
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays, and text under ``__metadata__``."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end, parts = 0, []
    # Widest items first, as the format's own writer does: every tensor is then aligned to its items.
    for name, value in sorted(tensors.items(), key=lambda kv: (-kv[1].dtype.itemsize, kv[0])):
        a = np.asarray(value)
        code = _CODES.get(a.dtype.newbyteorder("<") if a.dtype.itemsize > 1 else a.dtype)
        if code is None:
            raise TypeError(f"{name}: expected a dtype that safetensors knows, got {a.dtype}")
        raw = np.ascontiguousarray(a, dtype=_NAMES[code])
        header[name] = {"dtype": code, "shape": list(a.shape), "data_offsets": [end, end + raw.nbytes]}
        end += raw.nbytes
        parts.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for raw in parts:
            f.write(raw.reshape(-1).view(np.uint8).data)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read named arrays and the metadata.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a whole safetensors file; the message says what is wrong.
    """
    data = Path(path).read_bytes()

    def bad(what: str) -> ValueError:
        return ValueError(f"{os.fspath(path)}: expected a safetensors file, got {what}")

    if len(data) < 8:
        raise bad(f"{len(data)} bytes")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(_LONGEST_HEADER, len(data) - 8):
        raise bad(f"a header of {size} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise bad("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise bad("a header that is not an object")
    metadata, body, tensors = header.pop("__metadata__", {}), memoryview(data)[8 + size :], {}
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise bad("metadata that is not text")
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = np.dtype(_NAMES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
            whole = all(isinstance(k, int) and k >= 0 for k in (*shape, begin, end))
            count = int(np.prod(shape, dtype=object)) if whole else -1
        except (KeyError, TypeError, ValueError) as e:
            raise bad(f"a bad entry for {name!r}: {entry!r}"[:200]) from e
        if not whole or end > len(body) or begin > end or end - begin != count * dtype.itemsize:
            raise bad(f"byte range {begin}:{end} for {name!r} of shape {shape} in a body of {len(body)} bytes")
        a = np.frombuffer(body[begin:end], dtype).reshape(shape)
        tensors[name] = a.astype(dtype.newbyteorder("="), copy=True)
    return tensors, metadata
