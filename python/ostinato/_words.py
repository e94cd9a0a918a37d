"""Products of words of 2 bytes, whose sums are float32, by the cuBLAS that CuPy has opened.

NumPy and CuPy have no type for bfloat16, so words are kept as uint16, and products go to
``gemmEx``, which is told what they are. A float32 is one such word, or two of bfloat16 whose sum it
is to 16 bits; the range of bfloat16 is that of float32, so inputs and gradients need no scale.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

# Numbers of CUDA's library_types.h and cuBLAS's cublas_api.h.
TYPES = {"float16": 2, "bfloat16": 14}
FLOAT32, SUMS_IN_FLOAT32 = 0, 68
PLAIN, TRANSPOSED = 0, 1
SCALES_ON_THE_HOST = 0
ANY_ALGORITHM = -1

# To the nearest bfloat16, ties to even; a NaN, which must not be rounded to an infinity, has its
# quiet bit set instead. Bits are only shifted, masked and added, so that this is C for the device
# and Python for a library that stands in for it.
_ROUNDED = (
    "({b} + (0x7fff + ({b} >> 16 & 1)) * (({b} & 0x7fffffff) <= 0x7f800000)) >> 16"
    " | (({b} & 0x7fffffff) > 0x7f800000) * 0x40"
)
_TO_BFLOAT16 = "unsigned int b = __float_as_uint(x);\nhigh = " + _ROUNDED.format(b="b") + ";"
_TO_TWO = (
    _TO_BFLOAT16
    + "\nunsigned int bits = high;\nfloat rest = x - __uint_as_float(bits << 16);"
    + "\nunsigned int r = __float_as_uint(rest);\nlow = "
    + _ROUNDED.format(b="r")
    + ";"
)


class Operand(NamedTuple):
    """A matrix of words.

    Attributes:
        kind: "float16" or "bfloat16".
        parts: uint16 arrays ``[M,N]`` without gaps: one, or the high and the low-order words of
            split numbers.
    """

    kind: str
    parts: tuple[Any, ...]


def _low_begins(elements: int) -> int:
    """Return where low-order words begin: on 256 bytes, as arrays do, for wide loads."""
    return -(-elements // 128) * 128


def floats_of(elements: int, split: bool) -> int:
    """Return the float32 elements of an array that has room for the words of so many numbers."""
    words = _low_begins(elements) + elements if split else elements
    return -(-words // 2)


@lru_cache
def _kernel(library: Any, split: bool) -> Any:
    """Return the kernel that rounds; CuPy compiles it at its first launch."""
    if split:
        return library.ElementwiseKernel(
            "float32 x", "uint16 high, uint16 low", _TO_TWO, "ostinato_split_words"
        )
    return library.ElementwiseKernel(
        "float32 x", "uint16 high", _TO_BFLOAT16, "ostinato_bfloat16_words"
    )


def operand(library: Any, a: Any, kind: str, room: Any, split: bool = False) -> Operand:
    """Round a matrix of float32 to words.

    Args:
        library: the array library.
        a: ``[M,N]`` float32.
        kind: "float16" or "bfloat16".
        room: an array without gaps to which the words go, of at least `floats_of` float32.
        split: whether to keep two words of bfloat16 of each number.
    """
    count = math.prod(a.shape)
    words = room.reshape(-1).view(np.uint16)
    high = words[:count].reshape(a.shape)
    if split:
        begin = _low_begins(count)
        low = words[begin : begin + count].reshape(a.shape)
        if count:
            _kernel(library, True)(a, high, low)
        return Operand(kind, (high, low))
    if kind == "float16":
        high.view(np.float16)[...] = a
    elif count:
        _kernel(library, False)(a, high)
    return Operand(kind, (high,))


def multiply(library: Any, a: Operand, b: Operand, out: Any, transposed: bool = False) -> None:
    """Set float32 ``out`` ``[M,N]`` to the product of ``a`` ``[M,K]`` and ``b`` ``[K,N]``.

    Of numbers in two words the product of both low-order words is left out; it is below their
    precision. The small products come first. ``transposed``: a is ``[K,M]``. It is launched on the
    current stream.
    """
    pairs = [(0, 0)] if len(a.parts) == 1 else [(1, 0), (0, 1), (0, 0)]
    for k, (i, j) in enumerate(pairs):
        _gemm(library, a.kind, a.parts[i], b.parts[j], out, transposed, add=k > 0)


def _gemm(library: Any, kind: str, a: Any, b: Any, out: Any, transposed: bool, add: bool) -> None:
    """Launch one product of words.

    cuBLAS has matrices by columns, so what lies by rows here is transposed to it: it is asked for
    out^T ``[N,M]`` = b^T a^T, and b^T, without gaps, has N rows.
    """
    rows, columns = out.shape
    depth = b.shape[0]
    if not rows * columns:
        return
    if not depth:
        if not add:
            out[...] = 0
        return
    cuda, kind_number = library.cuda, TYPES[kind]
    scales = np.array([1, add], np.float32)
    one, beta = scales.ctypes.data, scales.ctypes.data + 4
    handle = cuda.device.get_cublas_handle()
    cuda.cublas.setStream(handle, cuda.get_current_stream().ptr)
    mode = cuda.cublas.getPointerMode(handle)
    cuda.cublas.setPointerMode(handle, SCALES_ON_THE_HOST)
    left = (TRANSPOSED, rows) if transposed else (PLAIN, depth)
    try:
        cuda.cublas.gemmEx(
            handle,
            PLAIN,
            left[0],
            columns,
            rows,
            depth,
            one,
            b.data.ptr,
            kind_number,
            columns,
            a.data.ptr,
            kind_number,
            left[1],
            beta,
            out.data.ptr,
            FLOAT32,
            columns,
            SUMS_IN_FLOAT32,
            ANY_ALGORITHM,
        )
    finally:
        cuda.cublas.setPointerMode(handle, mode)


def why_not(library: Any) -> str:
    """Return why an array library has no products of words, or "" where it has.

    All that passes use is tried on small whole numbers, whose products and sums are exact.
    """
    try:
        r = np.random.default_rng(0)
        a, b = (r.integers(-8, 9, shape).astype(np.float32) for shape in ((5, 7), (7, 3)))
        for kind, split, transposed in (
            ("float16", False, False),
            ("bfloat16", False, True),
            ("bfloat16", True, False),
        ):
            given = [
                library.asarray(np.ascontiguousarray(x)) for x in (a.T if transposed else a, b)
            ]
            words = [
                operand(
                    library, x, kind, library.empty(floats_of(x.size, split), np.float32), split
                )
                for x in given
            ]
            out = library.empty((5, 3), np.float32)
            multiply(library, words[0], words[1], out, transposed)
            if not np.array_equal(out.get(), a @ b):
                return f"its product in {kind} is wrong"
    except (ImportError, AttributeError) as error:
        return f"its product is not there: {error}"
    except Exception as error:  # whatever a compiler, a driver or cuBLAS may say
        return f"its product failed: {type(error).__name__}: {error}"
    return ""
