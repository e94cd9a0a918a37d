"""Products of words of 2 bytes by the array library of a device: `ostinato._words`.

cuBLAS is emulated (`fake_cupy`) with its matrices by columns and its leading dimensions. Where
there is a GPU, the same goes through CuPy's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests
from ostinato import _device, _plan, _words, cuda

native_for_tests()

BLAS = fake_cupy.cuda.cublas
Gpu = _device.Device


@pytest.fixture(params=["emulated", "cuda"] if cuda.is_available() else ["emulated"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A device on which every product of all steps is the library's, and float32 is split."""
    monkeypatch.setattr(_plan, "LIBRARY_ROWS", 1)
    monkeypatch.setattr(_plan, "SPLIT_WORK", 1)
    BLAS.calls.clear()
    if request.param == "cuda":
        device = _device.cuda()
        if device.figures.why_no_words:
            pytest.skip(device.figures.why_no_words)
        yield device
        return
    yield fake_cupy.stand_in(monkeypatch)


def error(got: Any, want: Any) -> float:
    got, want = (np.asarray(_device.host(a), np.float64) for a in (got, want))
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-30))


# ---- words and one product ----


def nearest(x: Any) -> Any:
    """The nearest bfloat16 of finite numbers, ties to even, by arithmetic of float64."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    step = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    return np.rint(x.astype(np.float64) / step) * step * np.sign(np.abs(mantissa) + 1)


def numbers(words: Any) -> Any:
    """What words of bfloat16 stand for."""
    return (_device.host(words).astype(np.uint32) << 16).view(np.float32)


def operand(gpu: Gpu, a: Any, kind: str, split: bool = False) -> _words.Operand:
    room = gpu.empty((_words.floats_of(a.size, split),), np.float32)
    return _words.operand(gpu.xp, gpu.put(a), kind, room, split)


def test_rounding_to_words(gpu: Gpu) -> None:
    r = np.random.default_rng(0)
    x = (r.standard_normal(2000) * 2.0 ** r.integers(-120, 120, 2000)).astype(np.float32)
    ties = (np.array([0x3F808000, 0x3F818000, 0x00008000, 0x80018000], np.uint32)).view(np.float32)
    x = np.concatenate([x, ties, np.float32([0.0, -0.0, 1e-45, 3.3e38])])
    (high,) = operand(gpu, x[None], "bfloat16").parts
    assert np.array_equal(numbers(high)[0].astype(np.float64), nearest(x))
    (half,) = operand(gpu, x[None] * 1e-30, "float16").parts
    with np.errstate(over="ignore"):
        want = (x[None] * np.float32(1e-30)).astype(np.float16)
    assert np.array_equal(_device.host(half).view(np.float16), want)
    odd = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000], np.uint32).view(np.float32)
    ends = np.concatenate([odd, np.float32([np.inf, -np.inf, 3.4e38])])
    for split in (False, True):
        first = numbers(operand(gpu, ends[None], "bfloat16", split).parts[0])[0]
        assert np.isnan(first[:4]).all(), "a NaN stays one"
        assert first[4:].tolist() == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000])
def test_two_words_are_sixteen_bits(gpu: Gpu, count: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, count)).astype(np.float32)
    high, low = operand(gpu, x, "bfloat16", split=True).parts
    got = numbers(high).astype(np.float64) + numbers(low)
    assert (np.abs(got - x) <= 2.0**-17 * np.abs(x)).all()
    assert low.data.ptr % 4 == 0
    assert low.data.ptr - high.data.ptr == -(-count // 128) * 256


SHAPES = [(1, 1, 1), (5, 7, 3), (3, 1, 8), (1, 9, 4), (6, 4, 1), (8, 16, 24), (33, 2, 31)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "split"), [("float16", False), ("bfloat16", False), ("bfloat16", True)]
)
def test_products(
    gpu: Gpu, kind: str, split: bool, shape: tuple[int, int, int], transposed: bool
) -> None:
    """Whole numbers, whose products are exact: any element in another place is wrong."""
    rows, depth, columns = shape
    r = np.random.default_rng(sum(shape))
    a = r.integers(-9, 10, (rows, depth)).astype(np.float32)
    b = r.integers(-9, 10, (depth, columns)).astype(np.float32)
    if split:  # numbers that one word does not hold
        a, b = a * 257, b * 257
    out = gpu.put(np.full((rows, columns), np.nan, np.float32))
    given = np.ascontiguousarray(a.T) if transposed else a
    _words.multiply(
        gpu.xp, operand(gpu, given, kind, split), operand(gpu, b, kind, split), out, transposed
    )
    got, low = _device.host(out), 2.0**-14 * float(np.abs(a).max() * np.abs(b).max()) * depth
    if split:
        assert np.abs(got - a.astype(np.float64) @ b).max() <= low
    else:
        assert np.array_equal(got, a @ b)


def test_products_of_nothing(gpu: Gpu) -> None:
    for rows, depth, columns in ((0, 3, 2), (3, 0, 2), (3, 2, 0)):
        a, b = np.ones((rows, depth), np.float32), np.ones((depth, columns), np.float32)
        out = gpu.put(np.full((rows, columns), 5, np.float32))
        _words.multiply(
            gpu.xp, operand(gpu, a, "bfloat16", True), operand(gpu, b, "bfloat16", True), out
        )
        assert not _device.host(out).any()


def test_a_wrong_leading_dimension_is_seen() -> None:
    """The stand-in reads as cuBLAS does, so what is asked for wrongly has a wrong answer."""
    gpu = fake_cupy.DEVICE
    a, b = np.arange(15, dtype=np.float32).reshape(3, 5), np.ones((5, 4), np.float32)
    words = [operand(gpu, x, "float16").parts[0] for x in (a, b)]
    out, scales = gpu.zeros((3, 4), np.float32), np.array([1, 0], np.float32)
    one = scales.ctypes.data

    def ask(n: int, lda: int, ldb: int, ldc: int) -> Any:
        BLAS.setStream(BLAS.HANDLE, fake_cupy.cuda.get_current_stream().ptr)
        BLAS.setPointerMode(BLAS.HANDLE, 0)
        right, left = words[1].data.ptr, words[0].data.ptr
        sizes = (4, n, 5, one, right, 2, lda, left, 2, ldb, one + 4, out.data.ptr, 0, ldc, 68, -1)
        BLAS.gemmEx(BLAS.HANDLE, 0, 0, *sizes)
        return out.get()

    assert np.array_equal(ask(3, 4, 5, 4), a @ b)
    assert not np.array_equal(ask(2, 4, 6, 4), a @ b)
    for wrong in ((3, 3, 5, 4), (3, 4, 4, 4), (3, 4, 5, 3)):
        with pytest.raises(AssertionError, match="leading dimension"):
            ask(*wrong)


def test_what_a_library_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _words.why_not(fake_cupy.module) == ""
    assert "has no attribute" in _words.why_not(np)

    def wrong(*sizes: Any) -> None:
        plain(*sizes[:4], sizes[4], sizes[5] - 1, *sizes[6:])

    plain = BLAS.gemmEx
    monkeypatch.setattr(BLAS, "gemmEx", wrong)
    assert _words.why_not(fake_cupy.module) == "its product in float16 is wrong"

    def fail(*sizes: Any) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(BLAS, "gemmEx", fail)
    want = "its product failed: RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"
    assert _words.why_not(fake_cupy.module) == want


# ---- layers ----

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (ost.nn.LSTM, {}),
    "peephole": (ost.nn.LSTM, {"peephole": True}),
    "GRU": (ost.nn.GRU, {}),
    "GRU before": (ost.nn.GRU, {"reset_after": False}),
    "RNN": (ost.nn.RNN, {}),
    "projected": (ost.nn.LSTM, {"proj_size": 3}),
    "normed": (ost.nn.LSTM, {"layer_norm": True}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True, "bias": False},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "stack": {"num_layers": 3, "dropout": 0.3},
}
FORMS = ["dense", "lengths", "ragged", "backwards"]


def inputs_of(form: str, first: bool, size: int) -> tuple[Any, dict[str, Any]]:
    r = np.random.default_rng(1)
    x: Any = r.standard_normal((9, 7, size)).astype(np.float32)
    if form == "ragged":
        return ost.Ragged(x.reshape(-1, size), [0, 11, 11, 24, 63]), {}
    if form == "backwards":
        return x[::-1, ::-1], {}
    rows = x.shape[0] if first else x.shape[1]
    lengths = r.integers(0, (x.shape[1] if first else x.shape[0]) + 1, rows)
    return x, {"lengths": lengths} if form == "lengths" else {}


def put(gpu: Gpu, x: Any) -> Any:
    return x.like(gpu.put(x.rows)) if isinstance(x, ost.Ragged) else gpu.put(x)


def passes(layer: Any, x: Any, times: Any, place: Any) -> list[Any]:
    """Outputs, then gradients."""
    layer.zero_grad()
    (y, _), pullback = layer.vjp(place(x), rng=0, **times)
    rows = y.rows if isinstance(y, ost.Ragged) else y
    above = np.random.default_rng(2).standard_normal(rows.shape).astype(rows.dtype)
    d = pullback(y.like(place(above)) if isinstance(y, ost.Ragged) else place(above))[0]
    d = d.rows if isinstance(d, ost.Ragged) else d
    grads = [_device.host(a).ravel() for a in layer.grads.values() if a is not None]
    return [_device.host(rows).copy(), _device.host(d).copy(), np.concatenate(grads)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("kind", ["LSTM", "GRU before"])
def test_float32_as_two_words(gpu: Gpu, kind: str, options: str, form: str) -> None:
    """Outputs within 1e-5 and gradients within 2e-5 of float64, by their norms."""
    make, own = KINDS[kind]
    layer = make(5, 7, **own, **OPTIONS[options], rng=0)
    exact = make(5, 7, **own, **OPTIONS[options], rng=0, dtype=np.float64)
    exact.load_state_dict({n: a.astype(np.float64) for n, a in layer.state_dict().items()})
    x, times = inputs_of(form, layer.batch_first, 5)
    wide = x.like(x.rows.astype(np.float64)) if form == "ragged" else x.astype(np.float64)
    want = passes(exact, wide, times, lambda a: a)
    there = copy.deepcopy(layer).to("cuda")
    got = passes(there, x, times, lambda a: put(gpu, a))
    for name, limit, a, b in zip(("y", "dx", "weights"), (1e-5, 2e-5, 2e-5), got, want):
        assert error(a, b) < limit, name
    if gpu is fake_cupy.DEVICE:
        parts = layer.num_layers * (2 if layer.bidirectional else 1)
        each = 5 if kind == "GRU before" else 4  # W x, dx, dW and every dR
        assert len(BLAS.calls) == 3 * parts * each
        assert {c["kind"] for c in BLAS.calls} == {_words.TYPES["bfloat16"]}
    BLAS.calls.clear()
    there.precision = "exact"
    got = passes(there, x, times, lambda a: put(gpu, a))
    assert not BLAS.calls
    for a, b in zip(got, want):
        assert error(a, b) < 3e-6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_two_byte_precisions(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, precision: str
) -> None:
    """The same as by our own kernels, which round the same operands, and close to float32."""
    make, own = KINDS[kind]
    layer = make(5, 7, **own, **OPTIONS[options], rng=0)
    there = copy.deepcopy(layer).to("cuda")
    there.precision = precision
    for form in FORMS if kind in ("LSTM", "GRU before") else ["lengths"]:
        x, times = inputs_of(form, layer.batch_first, 5)
        monkeypatch.setattr(_plan, "LIBRARY_ROWS", 10**9)
        BLAS.calls.clear()
        ours = passes(there, x, times, lambda a: put(gpu, a))
        assert not BLAS.calls
        monkeypatch.setattr(_plan, "LIBRARY_ROWS", 1)
        got = passes(there, x, times, lambda a: put(gpu, a))
        if gpu is fake_cupy.DEVICE:
            assert BLAS.calls
            kinds = {c["kind"] for c in BLAS.calls}
            assert kinds == {_words.TYPES["bfloat16"], _words.TYPES[precision]}
        for name, a, b in zip(("y", "dx", "weights"), got, ours):
            assert error(a, b) < 2e-3, (form, name)
        if kind != "normed":  # norms of few inputs enlarge what was rounded
            want = passes(layer, x, times, lambda a: a)
            for limit, a, b in zip((2e-2, 6e-2, 6e-2), got, want):
                assert error(a, b) < limit, form


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU before", "projected"])
def test_only_what_is_wanted(gpu: Gpu, kind: str, precision: str) -> None:
    """Frozen weights have no products, and gates that are made again are the same."""
    make, own = KINDS[kind]
    there = make(5, 7, 2, **own, rng=0).to("cuda")
    there.precision = precision
    x, _ = inputs_of("dense", False, 5)
    want = passes(there, x, {}, gpu.put)
    again = passes(there, x, {"memory_limit": "states"}, gpu.put)
    segments = passes(there, x, {"memory_limit": 4}, gpu.put)
    limit = 1e-5 if precision == "float32" else 1e-2
    for a, b, c in zip(want, again, segments):
        assert error(b, a) < limit
        assert error(c, a) < limit
    dense = there.grads["weight_ih_l0"].copy()
    there.freeze("weight_hh_l*")
    BLAS.calls.clear()
    passes(there, x, {}, gpu.put)
    assert error(there.grads["weight_ih_l0"], dense) < limit


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [False, True])
def test_memory_is_what_explain_says(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, options: str, precision: str, training: bool
) -> None:
    """The arrays of one pass beside its outputs, within a tenth."""
    plain = {n: v for n, v in OPTIONS[options].items() if n != "dropout" and n != "batch_first"}
    layer = ost.nn.LSTM(16, 40, **{**plain, "num_layers": 1}, rng=0).to("cuda")
    layer.precision = precision
    x = gpu.put(np.ones((60, 8, 16), np.float32))
    y = layer.vjp(x)[1](layer(x)[0]) and layer(x)[0]  # the weights are packed and split
    made = fake_cupy.bytes_made(monkeypatch, gpu.xp)
    said = ost.explain(layer, (60, 8, 16), training=training).facts["workspace_bytes"]
    made.clear()
    if not training:
        y = layer(x)[0]
        # Two directions, of which each gives its working arrays back.
        assert 0.45 * (sum(made) - y.nbytes) <= said <= 1.1 * (sum(made) - y.nbytes)
        return
    pullback = layer.vjp(x)[1]
    made.clear()
    dx = pullback(y)[0]
    assert abs(sum(made) - dx.nbytes - said) <= 0.1 * said


def test_explain_says_who_multiplies(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ost.nn.LSTM(5, 7, rng=0).to("cuda")
    sizes = (9, 7, 5)
    e = ost.explain(layer, sizes, training=True)
    assert "the library of the arrays, each float32 as two words of 2 bytes" in str(e)
    assert [p["library_split"] for of in e.facts["passes"].values() for p in of] == [True, True]
    split = e.facts["weight_bytes"]
    layer.precision = "exact"
    e = ost.explain(layer, sizes, training=True)
    assert "two words" not in str(e)
    assert split > e.facts["weight_bytes"]
    layer.precision = "bfloat16"
    assert "the library of the arrays, in words of 2 bytes" in str(ost.explain(layer, sizes))
    if gpu is not fake_cupy.DEVICE:
        return
    figures = replace(gpu.figures, why_no_words="its product failed: of itself")
    fake_cupy.stand_in(monkeypatch, replace(gpu, figures=figures))
    other = ost.nn.LSTM(5, 7, rng=0).to("cuda")
    BLAS.calls.clear()
    passes(other, np.ones(sizes, np.float32), {}, gpu.put)
    other.precision = "bfloat16"
    passes(other, np.ones(sizes, np.float32), {}, gpu.put)
    assert not BLAS.calls
    said = str(ost.explain(other, sizes))
    assert "our own kernel; the library of the arrays has none for words of 2 bytes: its" in said


def test_where_float32_is_split() -> None:
    """Not without leave, not for few numbers, not where a cell takes no words."""
    h200 = _plan.GpuFigures("H200", (9, 0), 132, 232448, 50 << 20, clusters=30)
    sizes: dict[str, Any] = {"hidden": 512, "steps": 1024, "batch": 16, "word": 4}
    for backward in (False, True):
        more = {**sizes, "backward": backward}
        assert _plan.plan(h200, [4], **more, split=True).library_split
        assert not _plan.plan(h200, [4], **more).library_split
        for other in (
            {"hidden": 64, "steps": 64},
            {"word": 8},
            {"word": 2},
            {"lacks": "layer norm within a step"},
        ):
            assert not _plan.plan(h200, [4], **{**more, **other}, split=True).library_split
        words = {**more, "word": 2}
        assert _plan.plan(h200, [4], **words).library
        none = replace(h200, why_no_words="there is none")
        assert not _plan.plan(none, [4], **words).library
        exact = _plan.plan(none, [4], **more, split=True)
        assert (exact.library, exact.library_split) == (True, False)
