"""Draw initial values by name, for one gate's block of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array

__all__ = ["BY_NAME", "chrono", "glorot", "identity", "orthogonal", "uniform", "zeros"]

Shape = tuple[int, ...]


def uniform(shape: Shape, rng: np.random.Generator, hidden_size: int) -> Array:
    """Draw from U(-1/sqrt(H), 1/sqrt(H)), PyTorch's default for recurrent layers.

    >>> import numpy as np
    >>> bool((abs(uniform((4, 3), np.random.default_rng(0), hidden_size=4)) <= 0.5).all())
    True

    Args:
        shape: of the block.
        rng: generator.
        hidden_size: H.

    Returns:
        A float64 array of that shape.
    """
    bound = 1 / math.sqrt(hidden_size)
    return rng.uniform(-bound, bound, shape)


def glorot(shape: Shape, rng: np.random.Generator, hidden_size: int = 0) -> Array:
    """Draw from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    >>> import numpy as np
    >>> bool((abs(glorot((3, 3), np.random.default_rng(0))) <= 1).all())
    True

    Args:
        shape: ``[H,in]``, one gate's block.
        rng: generator.
        hidden_size: not used.

    Returns:
        A float64 array of that shape.

    Source: Glorot, Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks".
    """
    bound = math.sqrt(6 / sum(shape[:2]))
    return rng.uniform(-bound, bound, shape)


def orthogonal(shape: Shape, rng: np.random.Generator, hidden_size: int = 0) -> Array:
    """Draw a matrix with orthonormal rows or columns, uniformly distributed.

    >>> import numpy as np
    >>> q = orthogonal((4, 4), np.random.default_rng(0))
    >>> bool(np.allclose(q @ q.T, np.eye(4)))
    True

    Args:
        shape: of the block, two axes.
        rng: generator.
        hidden_size: not used.

    Returns:
        A float64 array of that shape.

    Source: Saxe, McClelland, Ganguli (2014), "Exact solutions to the nonlinear dynamics of learning
    in deep linear neural networks".
    """
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))  # makes the distribution uniform
    return np.ascontiguousarray(q if rows >= columns else q.T)


def identity(shape: Shape, rng: np.random.Generator | None = None, hidden_size: int = 0) -> Array:
    """Return the identity matrix; with ReLU and zero biases that is the IRNN.

    >>> identity((2, 2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Args:
        shape: of the block, two axes.
        rng: not used.
        hidden_size: not used.

    Returns:
        A float64 array of that shape.

    Source: Le, Jaitly, Hinton (2015), "A simple way to initialize recurrent networks of rectified
    linear units".
    """
    rows, columns = shape
    return np.eye(rows, columns)


def zeros(shape: Shape, rng: np.random.Generator | None = None, hidden_size: int = 0) -> Array:
    """Return zeros.

    >>> zeros((2,)).tolist()
    [0.0, 0.0]

    Args:
        shape: of the block.
        rng: not used.
        hidden_size: not used.

    Returns:
        A float64 array of that shape.
    """
    return np.zeros(shape)


def chrono(size: int, longest: int, rng: np.random.Generator) -> Array:
    """Draw biases log(U(1, longest - 1)) of a gate that keeps the state.

    >>> import numpy as np
    >>> bool((chrono(8, 100, np.random.default_rng(0)) <= np.log(99)).all())
    True

    Args:
        size: number of units.
        longest: the longest memory wanted, in steps.
        rng: generator.

    Returns:
        ``[size]`` float64.

    Raises:
        TypeError: longest is no whole number.
        ValueError: longest is less than 2.

    Source: Tallec, Ollivier (2018), "Can recurrent neural networks warp time?".
    """
    if _check.positive("longest", longest) < 2:
        raise ValueError(f"longest: expected at least 2 steps, got {longest}")
    return np.log(rng.uniform(1, longest - 1, size))


BY_NAME: dict[str, Callable[[Shape, np.random.Generator, int], Array]] = {
    "glorot": glorot,
    "identity": identity,
    "orthogonal": orthogonal,
    "uniform": uniform,
    "zeros": zeros,
}
"""The functions of this module that a layer takes by their names."""


readable(globals())
