"""Read the weights and the configuration of Keras' files, by h5py alone."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from .._check import Array
from ._imported import require

_DEEPEST = 30
_HEAP = b"GCOL\x01\x00\x00\x00"
_CHUNK = 1 << 20  # bytes that are searched at a time
_HEAD = b"\x89HDF\r\n\x1a\n"
# Classes of Keras that hold no arrays.
WITHOUT_WEIGHTS = (
    "InputLayer",
    "Masking",
    "SpatialDropout1D",
    "ActivityRegularization",
    "GaussianNoise",
    "Dropout",
    "Activation",
    "ReLU",
    "Softmax",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
)


class Damaged(Exception):
    """Report what is wrong with a file."""


class Read(NamedTuple):
    """An output of a layer that another one reads, or that the model gives."""

    name: str
    output: int = 0  # of a layer that gives several


class Part(NamedTuple):
    """A layer of a file."""

    name: str
    kind: str  # the name of its class, "" where the file does not say
    config: dict[str, Any] | None
    weights: list[list[Array]]  # of each direction, in Keras' order
    inbound: list[Read] | None  # what it reads, None where the file does not say
    given: list[str]  # the names of further arguments that it is called with
    refused: str  # why there is no such layer here, "" for one that there may be


class Content(NamedTuple):
    """What a file holds."""

    parts: list[Part]
    version: str  # of Keras, "" where the file does not say
    legacy: bool  # in the form of Keras 1 and 2
    outputs: list[Read] | None = None  # of a Functional, None where the file does not say


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
        if dataset.dtype.kind != "f":
            raise Damaged(
                f"an array {dataset.name!r:.80} of dtype {str(dataset.dtype)!r:.80} that is not "
                "stored as plain numbers"
            )
        plain = dataset.chunks is None and not dataset.external
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


def _reads(value: Any, depth: int = 0) -> list[Read]:
    """Return what is read among inbound nodes, of Keras 3 or of an earlier one."""
    if depth > _DEEPEST:
        raise Damaged("a configuration too deep")
    if isinstance(value, Mapping):
        history = value.get("keras_history")
        if isinstance(history, (list, tuple)) and history:
            return [_read(history)]
        return [n for v in value.values() for n in _reads(v, depth + 1)]
    if isinstance(value, (list, tuple)):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [_read(value), *_reads(value[3:], depth + 1)]
        return [n for v in value for n in _reads(v, depth + 1)]
    return []


def _read(history: Sequence[Any]) -> Read:
    """Return what ``[name of the layer, number of its call, number of the output]`` stands for."""
    output = history[2] if len(history) > 2 else 0
    if not isinstance(output, int):
        raise Damaged("an output of a layer without a number")
    return Read(str(history[0]), output)


def _given(nodes: Any) -> list[str]:
    """Return the names of arguments beside what is read that a layer is called with."""
    out: list[str] = []
    for node in nodes if isinstance(nodes, (list, tuple)) else ():
        if isinstance(node, Mapping):
            groups = [node.get("kwargs")]
            args = node.get("args")
            more = args[1:] if isinstance(args, (list, tuple)) else ()
            out += ["a second argument"] if any(a is not None for a in more) else []
        else:
            calls = node if isinstance(node, (list, tuple)) else ()
            groups = [c[3] for c in calls if isinstance(c, (list, tuple)) and len(c) > 3]
        for options in groups:
            if isinstance(options, Mapping):
                out += [f"{n}=" for n, v in options.items() if v is not None and v is not False]
    return out


def _dtype(config: Mapping[str, Any], depth: int = 0) -> str:
    """Return a dtype that arrays of our layers cannot stand for, "" for others."""
    policy = config.get("dtype")
    inner = policy.get("config") if isinstance(policy, Mapping) else None
    if isinstance(inner, Mapping):
        mode, source = inner.get("mode"), inner.get("source_name")
        policy = inner.get("name") if mode is None else f"{mode}_from_{source}"
    if isinstance(policy, str) and (policy == "bfloat16" or "_from_" in policy):
        return policy
    for name in ("layer", "backward_layer"):
        own = config.get(name)
        own = own.get("config") if isinstance(own, Mapping) else None
        if depth < _DEEPEST and isinstance(own, Mapping) and (found := _dtype(own, depth + 1)):
            return found
    return ""


def own_class(entry: Mapping[str, Any]) -> str:
    """Return the name of a class that only looks like one of Keras, "" for Keras' own.

    The layers of `ostinato.interop.keras` count among the latter, which give the same numbers.
    """
    registered, module = entry.get("registered_name"), entry.get("module")
    root = module.partition(".")[0] if isinstance(module, str) else ""
    ours = root in ("keras", "tf_keras", "tensorflow", "ostinato")
    if isinstance(registered, str) and registered:
        package, found, _ = registered.partition(">")
        ours = package in ("keras", "ostinato") if found else ours
        return "" if ours else registered
    return "" if ours or not root else f"{module}.{entry.get('class_name')}"


def _refused(entry: Mapping[str, Any], kind: str, config: Mapping[str, Any]) -> str:
    """Tell why there is no layer here of an entry of a configuration."""
    if own := own_class(entry):
        return (
            f"expected a layer of Keras, got a class of your own, {own!r:.80}; skip= leaves it out"
        )
    dtype = "" if kind == "InputLayer" else _dtype(config)
    if dtype:
        return (
            f"expected dtype float32, float64 or float16, got {dtype!r:.80}; save the model with "
            "one of those"
        )
    return ""


class Described(NamedTuple):
    """A layer of a configuration."""

    name: str
    kind: str
    config: dict[str, Any] | None
    inbound: list[Read] | None
    given: list[str]
    refused: str

    def part(self, weights: list[list[Array]]) -> Part:
        """Return the layer with its weights."""
        return Part(*self[:3], weights, *self[3:])


class Model(NamedTuple):
    """A model of a configuration."""

    layers: list[Described]  # in order
    outputs: list[Read] | None


def described(config: Any) -> Model:
    """Return the layers of the configuration of a model, in order, and its outputs."""
    if isinstance(config, (str, bytes)):
        try:
            config = json.loads(config)
        except (ValueError, RecursionError):
            raise Damaged("a configuration that is not JSON") from None
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise Damaged("a configuration without a class")
    kind, inner = config["class_name"], config.get("config")
    layers = inner.get("layers") if isinstance(inner, Mapping) else inner
    other = own_class(config) if ">" in str(config.get("registered_name")) else ""
    if other or kind not in ("Sequential", "Functional", "Model") or not isinstance(layers, list):
        raise Damaged(f"a model that is a {other or kind!r:.80}, not a Sequential or Functional")
    out: list[Described] = []
    before: list[Read] = []
    for entry in layers:
        own = entry.get("config") if isinstance(entry, Mapping) else None
        if not isinstance(own, dict) or not isinstance(entry.get("class_name"), str):
            raise Damaged("a layer without a class and a configuration")
        name = str(entry.get("name") or own.get("name") or f"layer_{len(out)}")
        nodes = entry.get("inbound_nodes", [])
        chained = kind == "Sequential"
        inbound, given = (before, []) if chained else (_reads(nodes), _given(nodes))
        of = entry["class_name"].removeprefix("ostinato>")  # as .h5 has those of ours
        out.append(Described(name, of, own, inbound, given, _refused(entry, of, own)))
        before = [Read(name)]
    outputs = inner.get("output_layers") if isinstance(inner, Mapping) else None
    if kind != "Sequential":
        return Model(out, None if outputs is None else _reads(outputs))
    last = out[-1] if out else None
    several = last is not None and last.config is not None and last.config.get("return_state")
    return Model(out, [Read(out[-1].name, k) for k in range(2)] if several else None)


# -- weights ---------------------------------------------------------------------------------------


def _in_order(
    reader: _Reader, group: Any, names: list[str], known: list[Described]
) -> dict[str, Described]:
    """Return the layers of another model of the same layers by the names of a file.

    It is empty where they do not fit. A layer that has no name of its own has another one in each
    model of a process.
    """
    arrays = {n: reader.child(group, n) for n in names}
    filled = [n for n, g in arrays.items() if g is None or _chunked(g.attrs, "weight_names")]
    own = [d for d in known if d.kind not in WITHOUT_WEIGHTS]
    if len(filled) != len(own) or {d.name for d in known}.issuperset(filled):
        return {}
    return dict(zip(filled, own))


def _legacy(reader: _Reader, group: Any, known: list[Described] | None, again: bool) -> list[Part]:
    """Return the layers of the form of Keras 1 and 2.

    Args:
        reader: of the file.
        group: that of the layers.
        known: the layers of the configuration; None: there is none.
        again: whether the configuration may be that of the same model, built anew.
    """
    names = _chunked(group.attrs, "layer_names")
    by_name = {d.name: d for d in known or ()}
    if known is not None and again:
        by_name = _in_order(reader, group, names, known) or by_name
    parts = []
    for name in names:
        own = reader.child(group, name)
        if own is None:
            raise Damaged(f"no weights of the layer {name!r:.80}")
        weights = _chunked(own.attrs, "weight_names")
        d = by_name.get(name, Described(name, "", {}, None, [], ""))
        weights = [] if d.refused else weights
        arrays = [reader.array(reader.child(own, w)) for w in weights]
        both = d.kind == "Bidirectional" or (
            not d.kind and any("backward" in w for w in weights) and len(arrays) % 2 == 0
        )
        half = len(arrays) // 2
        halves = [arrays[:half], arrays[half:]] if both else [arrays]
        kind = d.kind or ("Bidirectional" if both else "")
        parts.append(d._replace(kind=kind, config=d.config if d.kind else None).part(halves))
    if known is not None:  # in the order of the configuration, with those without weights
        found = {p.name: p for p in parts}
        parts = [found.get(d.name, d.part([[]])) for d in known]
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


def _third(reader: _Reader, file: Any, known: list[Described] | None, again: bool) -> list[Part]:
    """Return the layers of the form of Keras 3; the arguments are those of `_legacy`."""
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
                parts.append(Part(name, kind, None, weights, None, [], ""))
        return parts
    parts = []
    renamed = False
    keys = _numbered_key([d.kind for d in known])
    for d, key in zip(known, keys):
        own = reader.child(group, key)
        weights = [[]] if own is None or d.refused else _of_layer(reader, own)
        stored = "" if own is None else _stored_name(reader, own)
        if stored and stored != d.name and not again:
            raise Damaged(f"weights of {stored!r:.80} where those of {d.name!r:.80} are due")
        renamed = renamed or bool(stored and stored != d.name)
        parts.append(d.part(weights))
    more = [k for k in group if k not in keys] if renamed else []
    if more and any(_of_layer(reader, reader.child(group, k)) != [[]] for k in more):
        raise Damaged(f"weights of {more[0]!r:.80}, which the configuration does not have")
    return parts


def _of_h5(h5py: Any, file: Any, size: int, config: Any, again: bool) -> Content:
    with h5py.File(file, "r") as f:
        reader = _Reader(h5py, size)
        given = config if config is not None else f.attrs.get("model_config")
        known, outputs = (None, None) if given is None else described(given)
        version = (_texts(f.attrs.get("keras_version")) or [""])[0]
        group = reader.child(f, "model_weights") if "model_weights" in f else f
        if "layer_names" in group.attrs or "layer_names0" in group.attrs:
            version = version or (_texts(group.attrs.get("keras_version")) or [""])[0]
            return Content(_legacy(reader, group, known, again), version, True, outputs)
        return Content(_third(reader, f, known, again), version, False, outputs)


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
    content = _of_h5(h5py, io.BytesIO(words), len(words), config, False)
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
            return _of_h5(h5py, f, size, config, config is not None)
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
