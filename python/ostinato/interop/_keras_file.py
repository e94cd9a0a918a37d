"""Read the weights and the configuration of Keras' files, by h5py alone."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from .._check import Array
from ._imported import require

_DEEPEST = 30
_HEAP = b"GCOL\x01\x00\x00\x00"
_CHUNK = 1 << 20  # bytes that are searched at a time
_HEAD = b"\x89HDF\r\n\x1a\n"


class Damaged(Exception):
    """Report what is wrong with a file."""


class Part(NamedTuple):
    """A layer of a file."""

    name: str
    kind: str  # the name of its class, "" where the file does not say
    config: dict[str, Any] | None
    weights: list[list[Array]]  # of each direction, in Keras' order
    inbound: list[str] | None  # the layers that it reads, None where the file does not say


class Content(NamedTuple):
    """What a file holds."""

    parts: list[Part]
    version: str  # of Keras, "" where the file does not say
    legacy: bool  # in the form of Keras 1 and 2


def snake(name: str) -> str:
    """Return the name of a class as Keras 3 writes it in a file."""
    out = ""
    for k, letter in enumerate(name):
        begins = name[k - 1 : k].islower() or (k > 0 and name[k + 1 : k + 2].islower())
        out += "_" if letter.isupper() and begins else ""
        out += letter.lower()
    return out


def _refuse_bad_heaps(words: Any) -> None:
    """Refuse a file with a damaged heap of texts, which the HDF5 library may read for ever.

    What refers to an object of a heap is its length, the place of the heap and the number of the
    object; a length beyond the object is refused too.
    """
    heaps = _heaps(words)
    if not heaps:
        return
    for at, place in _places_of(words, np.array(sorted(heaps), np.uint64)):
        size = heaps[place].get(int.from_bytes(words[at + 8 : at + 12], "little"))
        if at >= 4 and size is not None and int.from_bytes(words[at - 4 : at], "little") > size:
            raise Damaged("a text longer than its place in a heap")


def _heaps(words: Any) -> dict[int, dict[int, int]]:
    """Return the sizes of the objects of each heap, by its place and by their numbers.

    A heap is a head of 16 bytes with its size, and objects: a head of 16 bytes with a number and a
    size, and the bytes, of which the next multiple of 8 begins another one. The number 0 is what is
    free, and its size counts its head.
    """
    found: dict[int, dict[int, int]] = {}
    at = words.find(_HEAP)
    while at >= 0:
        end = at + int.from_bytes(words[at + 8 : at + 16], "little")
        here, following = at + 16, words.find(_HEAP, at + 1)
        if end > len(words):
            raise Damaged("a heap of texts that is cut off")
        if 0 <= following < end:
            raise Damaged("a heap of texts within another one")
        sizes: dict[int, int] = {}
        while here + 16 <= end:
            number = int.from_bytes(words[here : here + 2], "little")
            size = int.from_bytes(words[here + 8 : here + 16], "little")
            need = 16 + (size + 7) // 8 * 8 if number else size
            if need < 16 or here + need > end:
                raise Damaged("a heap of texts with a wrong size")
            if number:
                sizes[number] = min(size, sizes.get(number, size))
            here += need
        found[at], at = sizes, following
    return found


def _places_of(words: Any, values: Any) -> Iterator[tuple[int, int]]:
    """Yield where numbers of 8 bytes stand in a file, and which; one pass for all of them."""
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK + 7]
        for shift in range(min(8, len(part) - 7)):
            own = np.frombuffer(part, "<u8", (len(part) - shift) // 8, shift)
            near = np.flatnonzero((own >= values[0]) & (own <= values[-1]))
            for k in near[np.isin(own[near], values)].tolist():
                yield start + shift + 8 * k, int(own[k])


class _Reader:
    """Read datasets, each of which must be in the file as its shape says."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py, self.size = h5py, size

    def child(self, group: Any, name: str) -> Any:
        """Return what a group holds under a path, None for nothing; links are refused."""
        for part in name.split("/"):
            if not isinstance(group, self.h5py.Group) or part not in group:
                return None
            if not isinstance(group.get(part, getlink=True), self.h5py.HardLink):
                raise Damaged(f"a link at {part!r:.80}")
            group = group[part]
        return group

    def array(self, dataset: Any) -> Array:
        """Return a dataset as an array of real numbers."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise Damaged("a group where an array is due")
        plain = dataset.dtype.kind == "f" and dataset.chunks is None and not dataset.external
        if not plain or dataset.is_virtual or dataset.id.get_storage_size() != dataset.nbytes:
            raise Damaged(f"an array {dataset.name!r:.80} that is not stored as plain numbers")
        if dataset.nbytes > self.size:
            raise Damaged(f"an array of {dataset.nbytes} bytes in a file of {self.size}")
        a: Array = dataset[()]
        return np.asarray(a, np.float64 if a.dtype.itemsize == 8 else np.float32)

    def numbered(self, group: Any) -> list[Array]:
        """Return the arrays "0", "1" and so on of a group."""
        out: list[Array] = []
        while group is not None and str(len(out)) in group:
            out.append(self.array(self.child(group, str(len(out)))))
        return out


def _texts(value: Any) -> list[str]:
    out = []
    for v in np.atleast_1d(value) if value is not None else ():
        out.append(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v))
    return out


def _chunked(attributes: Any, name: str) -> list[str]:
    """Return a list of texts, which Keras writes in several parts if it is long."""
    if name in attributes:
        return _texts(attributes[name])
    out: list[str] = []
    k = 0
    while f"{name}{k}" in attributes:
        out += _texts(attributes[f"{name}{k}"])
        k += 1
    return out


# -- configurations --------------------------------------------------------------------------------


def _inbound(value: Any, depth: int = 0) -> list[str]:
    """Return the names of the layers among inbound nodes, of Keras 3 or of an earlier one."""
    if depth > _DEEPEST:
        raise Damaged("a configuration too deep")
    if isinstance(value, Mapping):
        history = value.get("keras_history")
        if isinstance(history, list) and history:
            return [str(history[0])]
        return [n for v in value.values() for n in _inbound(v, depth + 1)]
    if isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [value[0]]
        return [n for v in value for n in _inbound(v, depth + 1)]
    return []


class Described(NamedTuple):
    """A layer of a configuration."""

    name: str
    kind: str
    config: dict[str, Any]
    inbound: list[str] | None


def described(config: Any) -> list[Described]:
    """Return the layers of the configuration of a model, in order."""
    if isinstance(config, (str, bytes)):
        try:
            config = json.loads(config)
        except (ValueError, RecursionError):
            raise Damaged("a configuration that is not JSON") from None
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise Damaged("a configuration without a class")
    kind, inner = config["class_name"], config.get("config")
    layers = inner.get("layers") if isinstance(inner, Mapping) else inner
    if kind not in ("Sequential", "Functional", "Model") or not isinstance(layers, list):
        raise Damaged(f"a model that is a {kind!r:.80}, not a Sequential or Functional")
    out: list[Described] = []
    before: list[str] = []
    for entry in layers:
        own = entry.get("config") if isinstance(entry, Mapping) else None
        if not isinstance(own, dict) or not isinstance(entry.get("class_name"), str):
            raise Damaged("a layer without a class and a configuration")
        name = str(entry.get("name") or own.get("name") or f"layer_{len(out)}")
        inbound = before if kind == "Sequential" else _inbound(entry.get("inbound_nodes", []))
        out.append(Described(name, entry["class_name"], own, inbound))
        before = [name]
    return out


# -- weights ---------------------------------------------------------------------------------------


def _legacy(reader: _Reader, group: Any, known: list[Described] | None) -> list[Part]:
    """Return the layers of the form of Keras 1 and 2."""
    names = _chunked(group.attrs, "layer_names")
    by_name = {d.name: d for d in known or ()}
    parts = []
    for name in names:
        own = reader.child(group, name)
        if own is None:
            raise Damaged(f"no weights of the layer {name!r:.80}")
        weights = _chunked(own.attrs, "weight_names")
        arrays = [reader.array(reader.child(own, w)) for w in weights]
        d = by_name.get(name, Described(name, "", {}, None))
        both = d.kind == "Bidirectional" or (
            not d.kind and any("backward" in w for w in weights) and len(arrays) % 2 == 0
        )
        half = len(arrays) // 2
        halves = [arrays[:half], arrays[half:]] if both else [arrays]
        kind = d.kind or ("Bidirectional" if both else "")
        parts.append(Part(name, kind, d.config if d.kind else None, halves, d.inbound))
    if known is not None:  # in the order of the configuration, with those without weights
        found = {p.name: p for p in parts}
        parts = [found.get(d.name, Part(d.name, d.kind, d.config, [[]], d.inbound)) for d in known]
    return parts


def _numbered_key(kinds: list[str]) -> list[str]:
    """Return the name of each layer in a file of Keras 3: its class and a number."""
    seen: dict[str, int] = {}
    out = []
    for kind in kinds:
        key = snake(kind)
        count = seen.get(key, 0)
        out.append(f"{key}_{count}" if count else key)
        seen[key] = count + 1
    return out


def _of_layer(reader: _Reader, group: Any) -> list[list[Array]]:
    """Return the arrays of a layer, of both directions where it has two."""
    for names in (("forward_layer", "backward_layer"), ("layer",)):
        inner = [reader.child(group, n) for n in names]
        if inner[0] is not None:
            return [a for g in inner if g is not None for a in _of_layer(reader, g)]
    arrays = reader.numbered(reader.child(group, "vars"))
    cell = reader.child(group, "cell/vars")
    return [arrays + (reader.numbered(cell) if cell is not None else [])]


def _stored_name(reader: _Reader, group: Any) -> str:
    own = reader.child(group, "vars")
    return (_texts(own.attrs.get("name")) or [""])[0] if own is not None else ""


def _third(reader: _Reader, file: Any, known: list[Described] | None) -> list[Part]:
    """Return the layers of the form of Keras 3."""
    group = next(
        (
            g
            for g in (reader.child(file, n) for n in ("layers", "_layer_checkpoint_dependencies"))
            if g is not None
        ),
        None,
    )
    if group is None:
        raise Damaged("no layers")
    if known is None:
        parts = []
        for key in group:
            own = reader.child(group, key)
            name = _stored_name(reader, own) or key
            weights = _of_layer(reader, own)
            if weights != [[]]:
                kind = re.sub(r"_\d+$", "", key)
                parts.append(Part(name, kind, None, weights, None))
        return parts
    parts = []
    for d, key in zip(known, _numbered_key([d.kind for d in known])):
        own = reader.child(group, key)
        weights = [[]] if own is None else _of_layer(reader, own)
        stored = "" if own is None else _stored_name(reader, own)
        if stored and stored != d.name:
            raise Damaged(f"weights of {stored!r:.80} where those of {d.name!r:.80} are due")
        parts.append(Part(d.name, d.kind, d.config, weights, d.inbound))
    return parts


def _of_h5(h5py: Any, file: Any, size: int, config: Any) -> Content:
    with h5py.File(file, "r") as f:
        reader = _Reader(h5py, size)
        given = config if config is not None else f.attrs.get("model_config")
        known = None if given is None else described(given)
        version = (_texts(f.attrs.get("keras_version")) or [""])[0]
        group = reader.child(f, "model_weights") if "model_weights" in f else f
        if "layer_names" in group.attrs or "layer_names0" in group.attrs:
            version = version or (_texts(group.attrs.get("keras_version")) or [""])[0]
            return Content(_legacy(reader, group, known), version, True)
        return Content(_third(reader, f, known), version, False)


def _of_zip(h5py: Any, path: Any, size: int) -> Content:
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename: e for e in archive.infolist()}
        for name in ("config.json", "model.weights.h5"):
            if name not in entries:
                raise Damaged(f"an archive without {name}")
            e = entries[name]
            if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size:
                raise Damaged(f"an archive with a compressed {name}")
            if e.file_size > size:
                raise Damaged(f"{name} of {e.file_size} bytes in a file of {size}")
        config = archive.read("config.json")
        words = archive.read("model.weights.h5")
        _refuse_bad_heaps(words)
        version = ""
        if "metadata.json" in entries and entries["metadata.json"].file_size < 10_000:
            found = re.search(rb'"keras_version": *"([\w.]+)"', archive.read("metadata.json"))
            version = found[1].decode() if found else ""
    content = _of_h5(h5py, io.BytesIO(words), len(words), config)
    return content._replace(version=version)


def read_keras(path: str | os.PathLike[str], config: Any = None) -> Content:
    """Return what a file of Keras 1 to 3 holds: ``.keras``, ``.h5`` or ``.weights.h5``.

    Args:
        path: the file.
        config: of the model, where the file has weights alone.
    """
    h5py = require("h5py", "keras", "from_keras")
    with _files.open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        head = f.read(8)
        f.seek(0)
        try:
            if head[:4] == b"PK\x03\x04":
                if config is not None:
                    raise Damaged("config= for a file that has one")
                return _of_zip(h5py, f, size)
            if head != _HEAD:
                raise Damaged("one that is neither HDF5 nor a zip archive")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as words:
                _refuse_bad_heaps(words)
            return _of_h5(h5py, f, size, config)
        except (
            Damaged,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            OverflowError,
            RuntimeError,
            NotImplementedError,
            OSError,
        ) as e:
            text = str(e)[:300] or type(e).__name__
            raise ValueError(f"{os.fspath(path)}: expected a file of Keras, got {text}") from None
