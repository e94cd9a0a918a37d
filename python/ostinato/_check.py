"""Check arguments on the Python side; the native code checks arrays."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _device

Array = npt.NDArray[Any]
Lengths = object  # [B] whole numbers in anything that NumPy takes, or None; `lengths` checks it
if TYPE_CHECKING:
    from ._options import Options

    Seed = int | np.random.Generator | None
else:
    Seed = Any  # numpy.random takes 10 ms to import: a program that only loads weights does without

LARGEST_INT = 2**63 - 1  # of the sizes of arrays, and of the native code
SHOWN, LONGEST = 8, 80  # names in an error, and characters of each
# The elements of the file that a model is being made from; None: it is made from no file.
_elements_of_file: ContextVar[int | None] = ContextVar("elements_of_file", default=None)
_values_follow: ContextVar[bool] = ContextVar("values_follow", default=False)


def some(names: Sequence[Any], plain: bool = False) -> str:
    """Return the first names of a list for an error; a file may make both as long as it likes."""
    first = [n[:LONGEST] if isinstance(n, str) else n for n in names[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    if plain:
        return ", ".join(map(str, first)) + more
    return f"[{', '.join(f'{n!r:.{LONGEST + 2}}' for n in first)}]{more}" if names else "nothing"


def quoted(value: object) -> str:
    """Return a value as Python writes it, for an error; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def flag(name: str, value: object) -> bool:
    """Return True or False; 1 and 0 stand for them, and nothing else does."""
    given: Any = value
    if isinstance(given, (bool, np.bool_)):
        return bool(given)
    if is_array(given) and given.ndim == 0 and given.dtype.kind == "b":
        return bool(given)
    if isinstance(given, (int, np.integer)) and given in (0, 1):
        return bool(given)
    raise TypeError(f"{name}: expected True or False, got {value!r:.{LONGEST}}")


def whole(name: str, value: object) -> int:
    """Return a whole number that 64 bits hold."""
    given: Any = value  # anything may come in; that is what is checked
    try:
        if isinstance(given, bool):
            raise TypeError
        n = operator.index(given)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r:.{LONGEST}}") from None
    if not -LARGEST_INT <= n <= LARGEST_INT:
        raise ValueError(f"{name}: expected a whole number below 2**63, got {value!r}")
    return n


def positive(name: str, value: object, minimum: int = 1) -> int:
    """Return a whole number, at least ``minimum``."""
    n = minimum - 1 if isinstance(value, bool) else whole(name, value)
    if n < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, got {value!r}")
    return n


def seed(name: str, value: object) -> int:
    """Return a whole number of at least 0; as for NumPy, it may be as large as one likes."""
    given: Any = value
    try:
        n = operator.index(given)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r:.{LONGEST}}") from None
    if isinstance(value, bool) or n < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r:.{LONGEST}}")
    return n


def number(name: str, value: object, wanted: str) -> float:
    """Return a real number; the error calls it ``wanted``."""
    given: Any = value  # anything may come in; that is what is checked
    try:
        if isinstance(given, (str, bytes, bool)):
            raise TypeError
        return float(given)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected {wanted}, got {value!r}") from None


def reals(name: str, value: object, wanted: str) -> Array:
    """Return real numbers as a new float64 array; the error calls them ``wanted``."""
    value = unmasked(name, value)
    try:
        a = np.array(value)
        if a.dtype.kind == "O":  # such as those of pandas, or of Decimal and Fraction
            a = np.array([_real(element) for element in a.flat], float).reshape(a.shape)
    except (TypeError, ValueError, OverflowError):  # lists of different lengths among them
        a = np.array(None)
    if a.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected {wanted}, got {value!r:.{LONGEST}}")
    return a.astype(np.float64)


def _real(value: Any) -> float:
    """Return an object as a number, unless it is a text, an array, a date or complex."""
    other = isinstance(value, np.generic) and value.dtype.kind not in "biuf"
    if other or isinstance(value, (str, bytes, bytearray, np.ndarray)):
        raise TypeError
    return float(value)


def fraction(name: str, value: object) -> float:
    """Return a probability in [0, 1)."""
    given, value = value, number(name, value, "a number in [0, 1)")
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {given!r}")
    return value


def finite(name: str, value: object, *, minimum: float = 0.0) -> float:
    """Return a finite number, at least ``minimum``."""
    wanted = "a finite number" + (f" of at least {minimum:g}" if minimum > -math.inf else "")
    n = number(name, value, wanted)
    if not (math.isfinite(n) and n >= minimum):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    return n


def choice(name: str, value: object, known: Any) -> Any:
    """Return a value that is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def each(name: str, value: object, what: str) -> Iterator[Any]:
    """Iterate over what is no text; what the iterator raises goes through."""
    if not isinstance(value, (str, bytes)):
        try:
            return iter(value)  # type: ignore[call-overload, no-any-return]
        except TypeError:
            pass
    raise TypeError(f"{name}: expected a list of {what}, got {type(value).__name__}")


def patterns(name: str, value: object) -> list[str]:
    """Return a list of shell patterns; a text would be a list of its letters."""
    if isinstance(value, str):
        raise TypeError(f"{name}: expected a list of patterns, got {value!r}; use [{value!r}]")
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"{name}: expected a list of patterns, got {type(value).__name__}")
    for pattern in value:
        text(f"{name}[...]", pattern, "a pattern of names")
    return list(value)


def text(name: str, value: object, wanted: str) -> str:
    """Return a text; the error calls it ``wanted``."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {wanted}, got {value!r:.{LONGEST}}")
    return value


def mapping(name: str, value: object, wanted: str, mend: str = "") -> Mapping[str, Any]:
    """Return a mapping; the error calls it ``wanted``, and ends with what to do."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}{mend}")
    return value


def real_dtype(dtype: npt.DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """Return float32 or float64, in the byte order of the machine; ``name``: of what it is."""
    wanted = "float32 or float64" if name == "dtype" else "dtype float32 or float64"
    try:
        d: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # of text that is no name, or no text
        raise TypeError(f"{name}: expected {wanted}, got {dtype!r}") from None
    if d not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected {wanted}, got {d}")
    return np.dtype(d.type)


def precision(dtype: np.dtype[Any], name: str | None, device: str = "cpu") -> str:
    """Return a precision by its public name; None is the dtype itself."""
    low = (
        ("bfloat16", "int8" if device == "cpu" else "float16", "exact")
        if dtype == np.float32
        else ()
    )
    if (
        isinstance(name, str)
        and name in ("int8", "float16")
        and dtype == np.float32
        and name not in low
    ):
        raise ValueError(
            f"precision: expected one of {', '.join(map(repr, (dtype.name, *low)))} on {device}, "
            f"got {name!r}"
        )
    return str(choice("precision", dtype.name if name is None else name, (dtype.name, *low)))


def native_precision(dtype: np.dtype[Any], name: str, device: str = "cpu") -> str:
    """Return the name of a precision in the kernels.

    On a GPU that of float32 is "split": a number is multiplied as two words of 2 bytes.
    """
    return (
        name
        if name != dtype.name
        else "exact"
        if device == "cpu" or dtype == np.float64
        else "split"
    )


@contextlib.contextmanager
def made_from_file(elements: int) -> Iterator[None]:
    """Refuse layers with more elements than the file has, before they are allocated."""
    token = _elements_of_file.set(elements)
    try:
        with values_follow():
            yield
    finally:
        _elements_of_file.reset(token)


@contextlib.contextmanager
def values_follow(follow: bool = True) -> Iterator[None]:
    """Let new layers of ours hold zeros, since their parameters are loaded at once.

    Drawing numbers takes time, and three times the memory of the parameters.

    Args:
        follow: False: they are drawn, within what else may hold.
    """
    token = _values_follow.set(follow)
    try:
        yield
    finally:
        _values_follow.reset(token)


def refuse_more_than_file(name: str, count: int) -> None:
    """Raise where a parameter or a number of layers exceeds the elements of the file."""
    elements = _elements_of_file.get()
    if elements is not None and count > elements:
        raise ValueError(
            f"{name}: expected at most {elements}, the elements of all arrays of the file, got "
            f"{count}"
        )


def drawn(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], draw: Any) -> Array:
    """Return initial values of a parameter, ``draw(shape)``; an error names the parameter."""
    size = math.prod(shape)
    refuse_more_than_file(name, size)
    if size >= 2**47:  # bytes of an address space, whatever the dtype
        raise ValueError(
            f"{name}: expected sizes whose product a computer can hold, got shape {shape}"
        )
    try:
        if _values_follow.get():
            return np.zeros(shape, dtype)
        values: Array = draw(shape).astype(dtype, copy=False)
    except MemoryError:
        raise MemoryError(
            f"{name}: cannot allocate {size * dtype.itemsize} bytes for shape {shape}"
        ) from None
    return values


def generator(rng: Seed) -> np.random.Generator:
    """Return a generator from a seed, or the generator itself."""
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng() if rng is None else rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise TypeError(
        "rng: expected a seed (a whole number of at least 0) or a numpy.random.Generator, got "
        f"{rng!r}"
    )


def draw_key(rng: np.random.Generator) -> int:
    """One 64-bit key: all the randomness of one call."""
    return int(rng.integers(0, 2**64, dtype=np.uint64))


def is_array(value: Any) -> bool:
    """Whether it is an array, of NumPy or of a device."""
    return isinstance(value, np.ndarray) or _device.of(value) is not None


def array(name: str, value: object, ndim: int | tuple[int, ...] | None = None) -> Array:
    """Return an array of one of the given ranks.

    It is one of NumPy or of the array library of a device; arrays of other libraries are converted.
    A masked array has to be without masked elements, which would be read as if they were not.
    """
    if type(value) is not np.ndarray:
        value = unmasked(name, _device.taken(value))
        if not is_array(value):
            raise TypeError(f"{name}: expected a numpy.ndarray, got {type(value).__name__}")
    a: Array = value  # type: ignore[assignment]  # arrays of a device are as good
    ranks = (ndim,) if isinstance(ndim, int) else ndim
    if ranks is not None and a.ndim not in ranks:
        raise ValueError(
            f"{name}: expected {' or '.join(map(str, ranks))} axes, got shape {a.shape}"
        )
    return a


def unmasked(name: str, value: Any) -> Any:
    """Return a masked array as a plain one, and anything else as it is; raise if it masks any."""
    ma = sys.modules.get("numpy.ma")  # else there is no masked array: importing takes 24 ms
    if ma is None or not isinstance(value, ma.MaskedArray):
        return value
    if ma.getmaskarray(value).any():
        raise ValueError(
            f"{name}: expected an array without masked elements, got some; use {name}.filled(0), "
            "and leave such steps out by a mask of bool"
        )
    return np.asarray(value.data)


def of_dtype(name: str, value: Array, dtype: np.dtype[Any]) -> None:
    """Raise unless an array is of a dtype."""
    if value.dtype != dtype:
        raise TypeError(
            f"{name}: expected dtype {dtype}, got {value.dtype}; use {name}.astype(np.{dtype})"
        )


def state(
    name: str, value: Array, shape: tuple[int, ...], dtype: np.dtype[Any], axes: str
) -> Array:
    """Return an array that is a state, or the gradient of one, of that shape and dtype."""
    of_dtype(name, value, dtype)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {axes} = {shape}, got {value.shape}")
    return value


def plain(name: str, value: object, wanted: str) -> Array:
    """Return an array of NumPy of what is one anywhere, or a list; the error says ``wanted``."""
    value = unmasked(name, value)
    try:
        return np.asarray(_device.host(_device.taken(value)))
    except (TypeError, ValueError):  # lists of different lengths among them
        raise TypeError(f"{name}: expected {wanted}, got {quoted(value)}") from None


def contiguous(a: Array, dtype: type[np.int64] | None = None) -> Array:
    """Return a C-contiguous array, like np.ascontiguousarray, for arrays of a device too."""
    if type(a) is np.ndarray:  # the least of what a small call pays
        return np.ascontiguousarray(a, dtype=dtype)
    device = _device.of(a)
    out: Array = (np if device is None else device.xp).ascontiguousarray(a, dtype=dtype)
    return out


def read_only(a: Array) -> Array:
    """Return the array, made read-only where its library knows of such."""
    if isinstance(a, np.ndarray):
        a.flags.writeable = False
    return a


def lengths(value: object, steps: int, batch: int) -> npt.NDArray[np.int64] | None:
    """Lengths [B] as int64; any integer dtype, zeros allowed."""
    if value is None:
        return None
    value = _device.taken(value)
    if _device.of(value) is not None:
        on_device: npt.NDArray[np.int64] = _device_lengths(value, steps, batch)
        return on_device
    a = np.asarray(unmasked("lengths", value))
    if a.size == 0:
        a = a.astype(np.int64)
    if a.dtype.kind not in "iu":
        if a.dtype.kind == "f" and np.isnan(a).any():
            raise ValueError("lengths: expected whole numbers, got NaN")
        raise TypeError(
            f"lengths: expected an integer dtype, got {a.dtype}; use lengths.astype(np.int64)"
        )
    if a.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {a.shape}")
    bad = np.flatnonzero((a < 0) | (a > steps))
    if bad.size:
        raise ValueError(
            f"lengths: expected values from 0 to T = {steps}, got {a[bad[0]]} at b = {bad[0]}"
        )
    return contiguous(a, dtype=np.int64)


def _device_lengths(a: Any, steps: int, batch: int) -> Any:
    """Check lengths that are on a device without waiting for it.

    Their values are not read: what is out of range counts as 0 or T.
    """
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(
            f"lengths: expected an integer dtype, got {a.dtype}; use lengths.astype(np.int64)"
        )
    if a.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {a.shape}")
    return np.clip(a.astype(np.int64), 0, steps)  # T may be beyond the dtype


def flags(
    name: str, value: object, steps: int, batch: int, batch_first: bool = False
) -> npt.NDArray[np.uint8] | None:
    """Return a bool array ``[T,B]`` (``[B,T]`` if batch_first), as contiguous bytes ``[T,B]``."""
    if value is None:
        return None
    a = array(name, value)
    if a.dtype != np.bool_:
        raise TypeError(f"{name}: expected dtype bool, got {a.dtype}; use {name}.astype(bool)")
    names, shape = ("(B, T)", (batch, steps)) if batch_first else ("(T, B)", (steps, batch))
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {names} = {shape}, got {a.shape}")
    return contiguous(a.T if batch_first else a).view(np.uint8)


def times(
    x: Array, lengths_: object, resets: object, mask: object, masked: str, batch_first: bool = False
) -> Options:
    """In which steps of ``x [T,B,I]`` the rows take part: what the native forward pass is given."""
    batch, steps = x.shape[:2] if batch_first else x.shape[1::-1]
    return {
        "lengths": lengths(lengths_, steps, batch),
        "resets": flags("resets", resets, steps, batch, batch_first),
        "mask": flags("mask", mask, steps, batch, batch_first),
        "repeat": choice("masked", masked, ("repeat", "zero")) == "repeat",
    }


def taking_part(
    steps: int, batch: int, lengths_: npt.NDArray[Any] | None, mask: npt.NDArray[Any] | None
) -> npt.NDArray[np.bool_]:
    """Return ``[T,B]`` on the host, True where a row takes part in a step.

    lengths are checked, and mask is time-major.
    """
    lengths_, mask = _device.host(lengths_), _device.host(mask)
    on: npt.NDArray[np.bool_] = np.arange(steps)[:, None] < (
        np.full(batch, steps) if lengths_ is None else lengths_
    )
    return on if mask is None else on & mask.view(np.bool_)


def clipping(name: str, value: float | None) -> float:
    """Return a bound above 0; None is none, which the kernels know as 0."""
    if value is None:
        return 0.0
    n = number(name, value, "a number above 0")
    if not n > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    return n


def ids(name: str, value: object) -> npt.NDArray[np.int64]:
    """Return an integer array as contiguous int64, flat."""
    a = array(name, value)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer dtype, got {a.dtype}")
    flat: npt.NDArray[np.int64] = contiguous(a, dtype=np.int64).reshape(-1)
    return flat
