"""Safetensors files taken apart and put together, and zip archives around a mutated entry."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

CHECKSUM = "ostinato.crc32"


def apart(words: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and body of a safetensors file."""
    (size,) = struct.unpack_from("<Q", words)
    return json.loads(words[8 : 8 + size]), words[8 + size :]


def together(header: Any, body: bytes) -> bytes:
    """Return a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def unsealed(words: bytes) -> bytes:
    """Return a safetensors file without its checksum, so that a change reaches what is behind."""
    header, body = apart(words)
    header["__metadata__"].pop(CHECKSUM, None)
    return together(header, body)


def archive(template: bytes, entry: str, words: bytes) -> bytes:
    """Return a zip archive with other bytes in an entry, and the checksums that belong to it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(template)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = words if name == entry else old.read(name)
            new.writestr(zipfile.ZipInfo(name), content)  # which has the same date in every run
    return out.getvalue()


def entry(template: bytes, name: str) -> bytes:
    """Return the bytes of an entry of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(template)) as z:
        return z.read(name)
