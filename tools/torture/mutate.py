"""Change files: bytes, the numbers and words in them, and values of the JSON that they hold."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

from . import sealed

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483648", b"18446744073709551616")
_NUMBERS += (b"1e400", b"nan", b"0.5", b"9" * 40, b"1000000")
_EDGES = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_EDGES += (2**40, 2**62, 2**63 - 1, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\x00", "\ud800", "a" * 300, [], {}, [[[]]], [1] * 40, {"": 0},
    {"kind": "layer"}, {"kind": "list", "values": [], "tuple": True},
    {"kind": "dtype", "name": "O"},
    {"kind": "dtype", "name": "S99999999"}, "O", "float64", "LSTM", "Sequential",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values within a value of JSON."""
    out = [path]
    if isinstance(value, dict):
        out += [q for k, v in value.items() for q in _places(v, (*path, k))]
    elif isinstance(value, list):
        out += [q for k, v in enumerate(value[:50]) for q in _places(v, (*path, k))]
    return out


def json_value(value: Any, rng: random.Random) -> Any:
    """Return a value of JSON in which one thing is another one, gone, twice, or elsewhere."""
    value = json.loads(json.dumps(value))
    places = _places(value)
    path = rng.choice(places)
    if not path:
        return rng.choice(_VALUES)
    inner = value
    for k in path[:-1]:
        inner = inner[k]
    last, kind = path[-1], rng.randrange(6)
    if kind == 0:
        del inner[last]
    elif kind == 1 and isinstance(inner, list):
        inner.insert(rng.randrange(len(inner) + 1), inner[last])
    elif kind == 1:
        inner[rng.choice(["", "x", "class", "kind", last + "0"])] = inner[last]
    elif kind == 2:  # the value of another place
        other: Any = value
        for k in rng.choice(places):
            other = other[k]
        inner[last] = json.loads(json.dumps(other))
    elif kind == 3 and isinstance(inner[last], (int, float)):
        inner[last] = rng.choice([-inner[last], inner[last] + 1, inner[last] * 2, 10**9])
    else:
        inner[last] = rng.choice(_VALUES)
    return value


def _json_text(text: bytes, rng: random.Random) -> bytes | None:
    """Return a text of JSON with a change, which may be in JSON that is text within it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    inner = value.get("__metadata__") if isinstance(value, dict) else None
    if isinstance(inner, dict) and inner and rng.random() < 0.7:
        name = rng.choice(list(inner))
        own = _json_text(str(inner[name]).encode("utf-8", "replace"), rng)
        if own is not None:
            inner[name] = own.decode("utf-8", "replace")
            return json.dumps(value).encode()
    return json.dumps(json_value(value, rng)).encode()


def _structured(words: bytes, rng: random.Random) -> bytes | None:
    """Return a file with a change of its JSON; None where it has none."""
    if words[:1] == b"{":
        return _json_text(words, rng)
    if len(words) > 9 and words[8:9] == b"{":
        (size,) = struct.unpack_from("<Q", words)
        if size <= len(words) - 8:
            text = _json_text(words[8 : 8 + size], rng)
            body = words[8 + size :]
            return None if text is None else sealed.together(text, body)
    return None


def _bytes(words: bytearray, rng: random.Random, tokens: tuple[bytes, ...]) -> None:
    """Change some bytes."""
    at = rng.randrange(len(words) + 1)
    width = min(rng.choice((1, 1, 2, 4, 8, 16, 64)), len(words) - at)
    kind = rng.randrange(9)
    if kind == 0 and at < len(words):
        words[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del words[at : at + width]
    elif kind == 2:
        words[at:at] = words[at : at + width] * rng.choice((1, 1, 2, 20))
    elif kind == 3:
        words[at : at + width] = rng.randbytes(width)
    elif kind == 4:
        size = rng.choice((1, 2, 4, 8))
        order = rng.choice(("little", "big"))
        value = rng.choice(_EDGES) % (1 << 8 * size)
        words[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    elif kind == 5 and tokens:
        words[at:at] = rng.choice(tokens)
    elif kind == 6:
        other = rng.randrange(len(words) + 1)
        words[at : at + width] = words[other : other + width]
    elif kind == 7:
        found = list(_NUMBER.finditer(bytes(words)))
        if found:
            one = rng.choice(found)
            words[one.start() : one.end()] = rng.choice(_NUMBERS)
    elif rng.random() < 0.3:
        del words[at:]


def mutated(words: bytes, rng: random.Random, tokens: tuple[bytes, ...] = ()) -> bytes:
    """Return a file with one to four changes.

    Args:
        words: a file.
        rng: what is changed.
        tokens: what may be put in.
    """
    if rng.random() < 0.5:
        made = _structured(words, rng)
        if made is not None:
            return made
    out = bytearray(words)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _bytes(out, rng, tokens)
    return bytes(out)
