"""Standard deviations of channels, some of which are constant."""

from __future__ import annotations

import numpy as np

from ._check import Array

# What differs by less than this part of the largest value is constant up to rounding: the standard
# deviation of forty times 0.1 is 3e-17, not 0, and what is divided by it is noise.
ROUNDING = 1e-14


def varies(values: Array, axis: int = 0) -> Array:
    """Return whether values vary along an axis by more than they are rounded.

    >>> import numpy as np
    >>> varies(np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])).tolist()
    [False, True]

    Args:
        values: finite numbers, at least one along the axis.
        axis: the axis.

    Returns:
        bool, without the axis.
    """
    largest, least = values.max(axis), values.min(axis)
    out: Array = largest - least > ROUNDING * np.maximum(np.abs(largest), np.abs(least))
    return out


def deviations(values: Array) -> Array:
    """Return the standard deviation of each channel ``[n,D]``; 1 of one that does not vary."""
    out: Array = np.where(varies(values), values.std(0), 1.0)
    return out
