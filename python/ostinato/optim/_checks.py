"""Checks of the numbers that schedules, clipping and optimisers are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check
from ..nn import Layer


def number(name: str, value: Any) -> float:
    """Return a finite number of at least 0; the error names the argument whatever came in."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return _check.finite(name, value)


def fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    number(name, value)
    return _check.fraction(name, value)


def check_above_zero(name: str, value: Any) -> None:
    """Raise unless a value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")


def check_model(model: object) -> None:
    """Raise unless a model is a layer; a class that only holds layers is none."""
    if not isinstance(model, Layer):
        raise TypeError(
            f"model: expected a Layer, got {type(model).__name__}; a class of yours that has "
            "layers as attributes derives from ost.nn.Model"
        )
