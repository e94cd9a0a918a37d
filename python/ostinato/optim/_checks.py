"""Checks of the numbers that schedules, clipping and optimisers are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check


def number(name: str, value: Any) -> float:
    """Return a finite number of at least 0; the error names the argument whatever came in."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return _check.finite(name, float(value))


def fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    number(name, value)
    return _check.fraction(name, value)


def check_above_zero(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
