"""Read the text files of DyNet, which it writes column by column."""

from __future__ import annotations

import codecs
import os
import re
from typing import IO, Any

import numpy as np

from .. import _check, _files, nn
from .._annotations import readable
from .._check import Array
from ._imported import Entry, Imported, shapes

_HEAD = re.compile(rb"#(Parameter|LookupParameter)# (\S{1,200}) \{([0-9,]{1,80})\} (\d{1,12}) ")
_BUILDER = re.compile(r"(?:(.*)/)?(vanilla-lstm-builder(?:_(\d+))?)/_(\d+)")
_OTHER = re.compile(r"(?:.*/)?((?:[\w-]*lstm|gru|simple-rnn)-builder)(?:_\d+)?/[^/]*")
_BIRNN = re.compile(r"(?:.*/)?birnn(_\d+)?")

_PART = 1 << 16  # bytes


class _Bad(Exception):
    """Report what is wrong with a file."""


def _numbers(words: bytes, count: int) -> tuple[Array, int]:
    """Return the numbers of a line, at most so many, and how many there are.

    A part of the line at a time: the words of all of it would be 20 times as large.
    """
    # Each has a digit, and a space between it and the next.
    out: Array = np.empty(min(count, (len(words) + 1) // 2), np.float32)
    found = at = 0
    while at < len(words):
        end = words.find(b" ", at + _PART)
        end = len(words) if end < 0 else end
        part = words[at:end].split()
        found, at = found + len(part), end
        if found <= len(out):
            try:
                with np.errstate(over="raise"):
                    out[found - len(part) : found] = part
            except FloatingPointError:
                raise _Bad("a number beyond the range of float32") from None
    return out, found


def _arrays(f: IO[bytes]) -> dict[str, tuple[str, Array]]:
    """Return kinds and arrays by name."""
    out: dict[str, tuple[str, Array]] = {}
    while True:
        head = f.readline(1000)
        if not head:
            if not out:
                raise _Bad("no parameters")
            return out
        if not out:
            head = head.removeprefix(codecs.BOM_UTF8)
        match = _HEAD.match(head)
        if match is None:
            raise _Bad(f"the line {head[:60]!r}")
        kind, name = match[1].decode(), match[2].decode("utf-8", "replace")
        dims = [int(n or 0) for n in match[3].split(b",")]
        words = f.readline()
        count = 1
        for n in dims:
            count *= n
        if not 0 < count <= len(words) or len(dims) > 2 or name in out:
            raise _Bad(f"{name!r} of {dims} in {len(words)} bytes")
        values, found = _numbers(words, count)
        if found != count:
            raise _Bad(f"{found} numbers for {name!r} of {dims}")
        if not np.isfinite(values).all():
            raise _Bad(f"numbers for {name!r} that are not finite")
        if not head.rstrip().endswith(b"ZERO_GRAD") and not f.readline():
            raise _Bad(f"no gradients for {name!r}, after which it is cut off")
        out[name] = kind, values.reshape(dims, order="F")


def _lstm(builders: list[list[Array]], both: bool, batch_first: bool) -> nn.Layer:
    """Return an LSTM of its builders, each ``[W, R, b]``, gates i f o g and 1 added to f."""
    inputs, hidden = builders[0][0].shape[1], builders[0][1].shape[1]
    layer = nn.LSTM(
        inputs,
        hidden,
        len(builders) // (2 if both else 1),
        bidirectional=both,
        batch_first=batch_first,
    )

    def ours(a: Array) -> Array:
        i, f, o, g = np.split(a, 4)
        return np.concatenate([i, f, g, o])

    arrays: dict[str, Array] = {}
    for end, (w, r, b) in zip(layer._suffixes(), builders):
        bias = b.copy()
        bias[hidden : 2 * hidden] += 1
        arrays |= {"weight_ih" + end: ours(w), "weight_hh" + end: ours(r)}
        arrays |= {"bias_ih" + end: ours(bias), "bias_hh" + end: np.zeros_like(b)}
    layer.load_state_dict(arrays)
    return layer


@_check.values_follow()
def from_dynet(path: str | os.PathLike[str], *, batch_first: bool = False) -> Imported:
    """Make layers of a text file of DyNet: vanilla LSTM builders, in two directions, and tables.

    Gates are in the order i f o g, and DyNet adds 1 to the forget gate, which is in the bias here.
    Builders within a "birnn" are the directions of a stack. A matrix becomes a Linear, with the
    vector that follows it as its bias, and a table of lookups an Embedding.

    >>> import pathlib, tempfile
    >>> import ostinato as ost
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.model"
    >>> _ = path.write_text("#LookupParameter# /_0 {2,3} 97 ZERO_GRAD" + chr(10) + "1 2 3 4 5 6")
    >>> ost.interop.from_dynet(path)["/_0"].parameters()["weight"].tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]

    Args:
        path: the file.
        batch_first: of the LSTMs.

    Returns:
        The layers by the names of the file.

    Raises:
        OSError: the file cannot be read.
        TypeError: path is no path, or batch_first is neither True nor False.
        ValueError: it is damaged, or holds parameters of another kind, which the message names.
    """
    batch_first = _check.flag("batch_first", batch_first)
    with _files.open_regular(path) as f:
        try:
            arrays = _arrays(f)
        except (_Bad, ValueError, OverflowError) as e:
            raise ValueError(
                f"{os.fspath(path)}: expected a text file of DyNet, got {str(e)[:200]}"
            ) from None
    layers: dict[str, nn.Layer] = {}
    entries: list[Entry] = []

    def add(name: str, kind: str, found: dict[str, Array], layer: Any) -> None:
        layers[name] = layer
        entries.append(Entry(name, kind, shapes(found), repr(layer)))

    # By the layer and the numbers of its builder and of the parameter; files have any order.
    groups: dict[str, dict[int, dict[int, Array]]] = {}
    rest: list[tuple[str, str, Array]] = []
    for name, (kind, a) in arrays.items():
        match = _BUILDER.fullmatch(name)
        if match is None:
            other = _OTHER.fullmatch(name)
            if other is not None:
                raise ValueError(f"{name}: expected a vanilla-lstm-builder, got a {other[1]}")
            rest.append((name, kind, a))
            continue
        root = match[1] or ""
        key = root if _BIRNN.fullmatch(root) else f"{root}/{match[2]}"
        groups.setdefault(key, {}).setdefault(int(match[3] or 0), {})[int(match[4])] = a
    for key, found in groups.items():
        both = _BIRNN.fullmatch(key) is not None
        parts = [[own[k] for k in sorted(own)] for _, own in sorted(found.items())]
        flat = {f"_{k}": a for k, a in enumerate(a for p in parts for a in p)}
        try:
            _refuse_missing(found, both)
            builders = [p[k : k + 3] for p in parts for k in range(0, len(p), 3)]
            add(key, "LSTM", flat, _lstm(builders, both, batch_first))
        except (KeyError, ValueError, IndexError, TypeError) as e:
            raise ValueError(f"{key}: expected an LSTM, got {shapes(flat)} ({e})") from None
    _others(rest, add)
    return Imported("DyNet", layers, entries, None, "their order is not in the file")


def _refuse_missing(found: dict[int, dict[int, Array]], both: bool) -> None:
    """Refuse builders whose parameters, or the pairs of two directions, are not all there."""
    for own in found.values():
        if sorted(own) != list(range(len(own))) or len(own) % 3:
            raise ValueError(f"parameters _{', _'.join(map(str, sorted(own)))} of a builder")
    if both and (sorted(found) != list(range(len(found))) or len(found) % 2):
        raise ValueError(f"builders {', '.join(map(str, sorted(found)))}, not two for each layer")
    if both and any(len(own) != 3 for own in found.values()):
        raise ValueError("a builder of several layers in one direction")


def _others(rest: list[tuple[str, str, Array]], add: Any) -> None:
    """Add tables, and matrices with the vectors that follow them."""
    k = 0
    while k < len(rest):
        name, kind, a = rest[k]
        k += 1
        if kind == "LookupParameter" and a.ndim == 2:
            table = nn.Embedding(a.shape[1], a.shape[0])
            table.load_state_dict({"weight": a.T})
            add(name, kind, {name: a}, table)
        elif kind == "Parameter" and a.ndim == 2:
            found = {"weight": a}
            if k < len(rest) and rest[k][2].shape == a.shape[:1]:
                found["bias"] = rest[k][2]
                k += 1
            linear = nn.Linear(a.shape[1], a.shape[0], "bias" in found)
            linear.load_state_dict(found)
            add(name, kind, found, linear)
        else:
            raise ValueError(f"{name}: expected a table or a matrix, got a {kind} of {a.shape}")


readable(globals())
