"""The handlers of XLA's custom calls, called as XLA calls them, without JAX.

All buffers end where their page ends, and the page behind it cannot be touched: a handler that read
or wrote beyond one would end the process.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from conftest import CELLS, cast, output_size, random_weights, scalars_of
from ostinato import _core

T, B, I, H = 5, 4, 3, 18  # noqa: E741
NUMBERS = {"bool": 1, "int32": 4, "int64": 5, "float32": 11, "float64": 12}  # XLA's, of dtypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
Pointer, Size = ctypes.c_void_p, ctypes.c_size_t


def struct(name: str, *fields: tuple[str, Any]) -> Any:
    """Return a struct of C."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


SIZED = (("struct_size", Size), ("extension_start", Pointer))
Version = struct("Version", *SIZED, ("major", ctypes.c_int), ("minor", ctypes.c_int))
ErrorArgs = struct("ErrorArgs", *SIZED, ("message", ctypes.c_char_p), ("errc", ctypes.c_int))
Create = ctypes.CFUNCTYPE(Pointer, ctypes.POINTER(ErrorArgs))
Api = struct("Api", *SIZED, ("version", Version), ("internal", Pointer), ("error_create", Create))
Buffer = struct(
    "Buffer",
    *SIZED,
    ("dtype", ctypes.c_int),
    ("data", Pointer),
    ("rank", ctypes.c_int64),
    ("dims", Pointer),
)
Span = struct("Span", ("ptr", ctypes.c_char_p), ("len", Size))
Scalar = struct("Scalar", ("dtype", ctypes.c_int), ("value", Pointer))
Numbers = struct("Numbers", ("dtype", ctypes.c_int), ("size", Size), ("data", Pointer))
List = struct("List", *SIZED, ("size", ctypes.c_int64), ("types", Pointer), ("items", Pointer))
Attrs = struct(
    "Attrs",
    *SIZED,
    ("size", ctypes.c_int64),
    ("types", Pointer),
    ("names", Pointer),
    ("attrs", Pointer),
)
Frame = struct(
    "Frame",
    *SIZED,
    ("api", Pointer),
    ("ctx", Pointer),
    ("stage", ctypes.c_int),
    ("args", List),
    ("rets", List),
    ("attrs", Attrs),
    ("future", Pointer),
)
Extension = struct("Extension", ("struct_size", Size), ("type", ctypes.c_int), ("next", Pointer))
Metadata = struct(
    "Metadata", ("struct_size", Size), ("version", Version), ("traits", ctypes.c_uint32)
)
MetadataExtension = struct("MetadataExtension", ("base", Extension), ("metadata", Pointer))


class Guarded:
    """Arrays that end before a page that cannot be touched."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array of NaN, or of zeros where there is none."""
        page, size = mmap.PAGESIZE, int(np.prod(shape)) * np.dtype(dtype).itemsize
        pages = -(-size // page) * page
        start = libc.mmap(None, pages + page, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert start not in (None, ctypes.c_void_p(-1).value)
        assert libc.mprotect(start + pages, page, 0) == 0
        self.blocks.append((start, pages + page))
        memory = (ctypes.c_char * size).from_address(start + pages - size)
        a: Any = np.frombuffer(memory, dtype).reshape(shape)
        a[...] = np.nan if a.dtype.kind == "f" else 0
        return a

    def copy(self, given: Any) -> Any:
        """Return a copy of an array."""
        a = self.array(given.shape, given.dtype)
        a[...] = given
        return a

    def close(self) -> None:
        """Give the memory back."""
        for start, size in self.blocks:
            libc.munmap(start, size)


class Call:
    """A call frame, and all that it points to."""

    def __init__(self, version: tuple[int, int] = (0, 3)) -> None:
        self.message: str | None = None
        self.held: list[Any] = []

        def create(args: Any) -> int:
            self.message = args.contents.message.decode()
            return 1

        number = Version(ctypes.sizeof(Version), None, *version)
        self.api = Api(ctypes.sizeof(Api), None, number, None, Create(create))
        self.frame = Frame(struct_size=ctypes.sizeof(Frame) - 8, stage=3)
        self.frame.api = ctypes.addressof(self.api)

    def keep(self, value: Any) -> int:
        """Keep something of ctypes alive, and return its address."""
        self.held.append(value)
        return ctypes.addressof(value)

    def addresses(self, values: list[int]) -> int:
        """Return the address of an array of addresses."""
        return self.keep((Pointer * max(len(values), 1))(*values))

    def buffers(self, arrays: list[Any]) -> Any:
        """Return arrays as arguments or results."""
        out = []
        for a in arrays:
            dims = self.keep((ctypes.c_int64 * max(a.ndim, 1))(*a.shape))
            kind = NUMBERS[a.dtype.name]
            data = a.ctypes.data if a.size else None
            size = ctypes.sizeof(Buffer)
            out.append(self.keep(Buffer(size, None, kind, data, a.ndim, dims)))
        kinds = self.keep((ctypes.c_int * max(len(out), 1))(*[1] * len(out)))
        return List(ctypes.sizeof(List), None, len(out), kinds, self.addresses(out))

    def attributes(self, given: dict[str, Any]) -> Any:
        """Return attributes: text, whole numbers and tuples of numbers."""
        kinds, names, values = [], [], []
        for name, value in sorted(given.items()):
            names.append(self.keep(Span(name.encode(), len(name))))
            if isinstance(value, str):
                kinds.append(4)
                values.append(self.keep(Span(value.encode(), len(value))))
            elif isinstance(value, tuple):
                kinds.append(1)
                data = self.keep((ctypes.c_double * len(value))(*value))
                values.append(self.keep(Numbers(NUMBERS["float64"], len(value), data)))
            else:
                kinds.append(3)
                data = self.keep(ctypes.c_int64(value))
                values.append(self.keep(Scalar(NUMBERS["int64"], data)))
        types = self.keep((ctypes.c_int * len(kinds))(*kinds))
        lists = self.addresses(names), self.addresses(values)
        return Attrs(ctypes.sizeof(Attrs), None, len(kinds), types, *lists)

    def run(self, name: str, args: list[Any], rets: list[Any], attrs: dict[str, Any]) -> None:
        """Call a handler; `message` is what it refuses."""
        self.frame.args, self.frame.rets = self.buffers(args), self.buffers(rets)
        self.frame.attrs = self.attributes(attrs)
        failed = handler(name)(ctypes.addressof(self.frame))
        assert bool(failed) == (self.message is not None)


def handler(name: str) -> Any:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = Pointer, [ctypes.py_object, ctypes.c_char_p]
    address = get(_core.xla_handlers()[name], None)
    return ctypes.CFUNCTYPE(Pointer, Pointer)(address)


class Problem:
    """A layer with all its inputs, in memory that is guarded."""

    def __init__(self, cell: str, dtype: str, memory: Guarded) -> None:
        self.memory, self.dtype = memory, dtype
        rng = np.random.default_rng(0)
        weights = cast(random_weights(cell, I, H, rng), dtype)
        self.weights = [memory.copy(w) for w in weights if w is not None]
        size, self.has_c = output_size(cell, H), cell.startswith("lstm")
        self.size = size
        x, h0, c0 = (rng.normal(size=s).astype(dtype) for s in ((T, B, I), (B, size), (B, H)))
        lengths, flags = np.array([2, T, 0, 3]), rng.random((2, T, B)) < 0.5
        reset = rng.normal(size=size).astype(dtype), rng.normal(size=H).astype(dtype)
        inputs = [x, h0, c0, lengths, *flags, *reset]
        given = [True, True, self.has_c, True, True, True, True, self.has_c]
        self.inputs = [memory.copy(a) for a, g in zip(inputs, given) if g]
        bits = [
            sum(1 << k for k, g in enumerate(mask) if g)
            for mask in (
                given,
                [w is not None for w in weights],
                given[:3] + [False] * 3 + given[6:],
            )
        ]
        self.attrs: dict[str, Any] = {
            "cell": cell,
            "precision": "exact",
            "kernels": _core.kernels(),
            "input": I,
            "hidden": H,
            "output": size,
            "reverse": 0,
            "batch_first": 0,
            "repeat": 1,
            "samples": 1,
            "given": bits[0],
            "weights": bits[1],
            "scalars": scalars_of(cell) or (0.0,),
        }
        self.more = {"need": bits[2], "need_weights": bits[1], "cotangents": 7 if self.has_c else 3}
        self.sizes = _core.xla_sizes(np.dtype(dtype).itemsize, cell, I, H, size, "exact")

    def new(self, *shape: int) -> Any:
        return self.memory.array(shape, self.dtype)

    def outputs(self) -> list[Any]:
        return [self.new(T, B, self.size), self.new(B, self.size), *([self.new(B, H)] * self.has_c)]

    def tape(self) -> list[Any]:
        _, saved, cells = self.sizes
        return [self.new(T, B, saved), *([self.new(T, B, cells)] * self.has_c)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_handlers_stay_within_their_buffers(cell: str, dtype: str, kernel_set: str) -> None:
    memory = Guarded()
    p = Problem(cell, dtype, memory)
    call = Call()
    packed, outputs, again, tape = p.new(p.sizes[0]), p.outputs(), p.outputs(), p.tape()
    call.run("infer", [*p.weights, *p.inputs], outputs, p.attrs)
    assert call.message is None
    call.run("pack", p.weights, [packed], p.attrs)
    call.run("forward", [packed, *p.inputs], [*again, *tape], p.attrs)
    assert call.message is None
    for a, b in zip(outputs, again):
        assert np.isfinite(a).all()
        assert np.array_equal(a, b)
    cotangents = [p.memory.copy(np.ones_like(a)) for a in outputs]
    states = [*p.inputs[: 2 + p.has_c], *p.inputs[5 + p.has_c :]]
    grads = [p.new(*a.shape) for a in (*p.weights, *states)]
    args = [packed, *p.inputs, again[0], *tape, *cotangents]
    call.run("backward", args, grads, {**p.attrs, **p.more})
    assert call.message is None
    assert all(np.isfinite(g).all() for g in grads)
    memory.close()


def test_what_does_not_fit_is_refused() -> None:
    memory = Guarded()
    p = Problem("gru", "float32", memory)
    args, outputs = [*p.weights, *p.inputs], p.outputs()
    wrong: list[tuple[str, list[Any], list[Any], dict[str, Any]]] = [
        (r"weight_ih: expected 162 elements", [args[0][:-1], *args[1:]], outputs, p.attrs),
        (r"h_n: expected 72 elements", args, [outputs[0], outputs[1][1:]], p.attrs),
        (r"h_n: expected a further result", args, outputs[:1], p.attrs),
        (r"reset_state: expected a further argument", args[:-1], outputs, p.attrs),
        (
            r"lengths: expected values from 0 to T = 5, got 9",
            [*args[:6], args[6] + 9 * (np.arange(4) == 2), *args[7:]],
            outputs,
            p.attrs,
        ),
        (r"cell: expected one of rnn_tanh", args, outputs, {**p.attrs, "cell": "gr"}),
        (r"kernels: expected a set that this CPU runs", args, outputs, {**p.attrs, "kernels": "z"}),
        (
            r"precision: expected one that can be trained",
            args,
            outputs,
            {**p.attrs, "precision": "int8"},
        ),
        (
            r"input: expected an attribute of the call",
            args,
            outputs,
            {k: v for k, v in p.attrs.items() if k != "input"},
        ),
        (r"hidden_size: expected a size from 1", args, outputs, {**p.attrs, "hidden": 0}),
    ]
    for message, given, results, attrs in wrong:
        call = Call()
        call.run("infer", given, results, attrs)
        assert call.message is not None, message
        assert call.message.startswith(message), call.message
    memory.close()


def test_structs_of_another_size_are_refused() -> None:
    memory = Guarded()
    p = Problem("gru", "float32", memory)
    call = Call()
    call.frame.struct_size = 40
    call.run("infer", [*p.weights, *p.inputs], p.outputs(), p.attrs)
    assert call.message is not None
    assert call.message.startswith("jaxlib: expected the custom calls of a version")
    memory.close()


@pytest.mark.parametrize(
    ("theirs", "told"), [((0, 1), 1), ((0, 2), 2), ((0, 3), 3), ((0, 9), 3), ((1, 5), 1)], ids=str
)
def test_the_version_is_the_newest_that_both_know(theirs: tuple[int, int], told: int) -> None:
    call = Call(theirs)
    metadata = Metadata(ctypes.sizeof(Metadata))
    base = Extension(ctypes.sizeof(Extension), 1, None)
    extension = MetadataExtension(base, ctypes.addressof(metadata))
    call.frame.extension_start = ctypes.addressof(extension)
    for name in _core.xla_handlers():
        assert handler(name)(ctypes.addressof(call.frame)) is None
        assert (metadata.version.major, metadata.version.minor) == (0, told)
