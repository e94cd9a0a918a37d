"""Checks of values that are on a device, and numbers from there, without waiting for each.

Whoever finds bad values in an array of a device has them as a flag there, and to raise an error at
once the host would have to wait. Within `gathered` such checks are kept, so that a training loop
reads the flags of many steps at once. Checks of NumPy's arrays always raise at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _device


@dataclass
class Check:
    """A value of a device that has not been looked at.

    Attributes:
        value: an array without axes: a flag that is True where something is wrong, or a number
            that should be finite.
        error: makes the error; it may read the device.
    """

    value: Any
    error: Callable[[], Exception]

    def failed(self, value: float | None = None) -> bool:
        """Return whether the value, which is waited for if it is not given, is bad."""
        return _is_bad(float(self.value) if value is None else value, self.value.dtype)

    def marked(self, sound: Any) -> Any:
        """Return ``sound``, or NaN if the check fails, as an array without axes of the device."""
        if self.value.dtype == np.bool_:
            return np.where(self.value, np.nan, sound)
        return sound + 0.0 * self.value  # NaN for what is not finite


def _is_bad(value: float, dtype: Any) -> bool:
    return value != 0 if dtype == np.bool_ else not math.isfinite(value)


_gathered: ContextVar[list[Check] | None] = ContextVar("gathered", default=None)


@contextlib.contextmanager
def gathered() -> Iterator[list[Check]]:
    """Gather the checks of values on a device in a list, in place of waiting for them."""
    checks: list[Check] = []
    token = _gathered.set(checks)
    try:
        yield checks
    finally:
        _gathered.reset(token)


def refuse(bad: Any, error: Callable[[], Exception]) -> list[Check]:
    """Raise an error where a flag is True: at once, or when it is read, if it is on a device.

    Return the check, if it is gathered: what outlives the loop that gathers it, such as packed
    weights, takes it along and hands it to `refuse_again` whenever it is used.
    """
    return _expect(bad, error, np.bool_)


def refuse_unless_all(good: Any, error: Callable[[], Exception]) -> None:
    """Raise an error where any of an array of flags is False: at once, or when it is read."""
    if _device.of(good) is not None:
        refuse(~good.all(), error)
    elif np.count_nonzero(good) < good.size:  # faster than all() for a small array
        raise error()


def refuse_again(checks: list[Check]) -> None:
    """Gather checks once more; outside of a loop read them, and forget them if they hold."""
    if not checks:
        return
    now = _gathered.get()
    if now is not None:
        now += [c for c in checks if not any(c is other for other in now)]
        return
    raise_first(checks)
    checks.clear()


def refuse_non_finite(number: Any, error: Callable[[], Exception]) -> None:
    """Raise an error where a number is not finite: at once, or when it is read."""
    _expect(number, error, np.float64)


def _expect(value: Any, error: Callable[[], Exception], dtype: Any) -> list[Check]:
    checks = _gathered.get()
    if checks is not None and _device.of(value) is not None:
        checks.append(Check(value, error))
        return checks[-1:]
    if _is_bad(float(value), dtype):
        raise error()
    return []


def raise_first(checks: Sequence[Check], *beside: Any) -> list[float]:
    """Read the values of checks at once, and raise the error of the first one that fails.

    Return what was read at the same time: numbers, and arrays without axes.
    """
    found = numbers([*(c.value for c in checks), *beside])
    for check, value in zip(checks, found):
        if check.failed(value):
            raise check.error()
    return found[len(checks) :]


def number(value: Any) -> Any:
    """Return a float; an array without axes of a device stays one."""
    return float(value) if _device.of(value) is None else value


def numbers(values: Sequence[Any]) -> list[float]:
    """Return numbers and arrays without axes as floats; a device is read once for all of them."""
    found = list(values)
    there = [k for k, value in enumerate(found) if _device.of(value) is not None]
    if there:
        flat = [found[k].astype(np.float64, copy=False).reshape(()) for k in there]
        for k, value in zip(there, _device.host(np.stack(flat)).tolist()):
            found[k] = value
    return [float(value) for value in found]


def whole(value: Any) -> Any:
    """Return an int; an array without axes of a device stays one."""
    return int(value) if _device.of(value) is None else value


def divisor(count: Any) -> Any:
    """Return a count to divide by: 1 in place of zero."""
    return (count or 1) if _device.of(count) is None else np.where(count == 0, 1, count)


def quotient(total: Any, count: Any) -> Any:
    """Return ``total / count``, or the total where the count is zero."""
    return total / divisor(number(count))


def scalar(value: Any, dtype: Any) -> Any:
    """Return a number as one of a dtype, with which an array of it keeps its dtype."""
    return dtype.type(value) if _device.of(value) is None else value.astype(dtype)
