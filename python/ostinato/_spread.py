"""Means and standard deviations of channels, some of which are constant."""

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
    with np.errstate(over="ignore"):  # then they vary
        out: Array = largest - least > ROUNDING * np.maximum(np.abs(largest), np.abs(least))
    return out


def moments(rows: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column; the latter is 1 where nothing varies.

    >>> import numpy as np
    >>> [a.tolist() for a in moments(np.array([[0.1, 1e200], [0.1, 3e200]]))]
    [[0.1, 2e+200], [1.0, 1e+200]]

    Columns are measured by a power of two, by which no square leaves the range of float64.

    Args:
        rows: finite numbers ``[n,D]``, at least one row.

    Returns:
        Two arrays ``[D]``.
    """
    exponents = np.frexp(np.abs(rows).max(0))[1]
    unit = np.ldexp(rows, -exponents)  # of at most 1, to the same bits
    mean, deviation = (np.ldexp(a, exponents) for a in (unit.mean(0), unit.std(0)))
    return mean, np.where(varies(unit) & (deviation > 0), deviation, 1.0)
