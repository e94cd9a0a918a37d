"""Initial values by name, for one gate's block of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .._check import Array

__all__ = ["BY_NAME", "chrono", "glorot", "identity", "orthogonal", "uniform", "zeros"]

Shape = tuple[int, ...]


def uniform(shape: Shape, rng: np.random.Generator, hidden_size: int) -> Array:
    """PyTorch's default for recurrent layers: U(-1/sqrt(H), 1/sqrt(H))."""
    bound = 1 / math.sqrt(hidden_size)
    return rng.uniform(-bound, bound, shape)


def glorot(shape: Shape, rng: np.random.Generator, hidden_size: int = 0) -> Array:
    """U(-a, a), a = sqrt(6 / (fan_in + fan_out)), one gate's block being ``[H, in]`` (Glorot, Bengio 2010)."""
    bound = math.sqrt(6 / sum(shape[:2]))
    return rng.uniform(-bound, bound, shape)


def orthogonal(shape: Shape, rng: np.random.Generator, hidden_size: int = 0) -> Array:
    """Orthonormal rows or columns, uniformly distributed (Saxe et al. 2014).

    >>> import numpy as np
    >>> q = orthogonal((4, 4), np.random.default_rng(0))
    >>> bool(np.allclose(q @ q.T, np.eye(4)))
    True
    """
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))  # makes the distribution uniform
    return np.ascontiguousarray(q if rows >= columns else q.T)


def identity(shape: Shape, rng: np.random.Generator | None = None, hidden_size: int = 0) -> Array:
    """The identity: with ReLU and zero biases, the IRNN (Le, Jaitly, Hinton 2015)."""
    rows, columns = shape
    return np.eye(rows, columns)


def zeros(shape: Shape, rng: np.random.Generator | None = None, hidden_size: int = 0) -> Array:
    """Zeros."""
    return np.zeros(shape)


def chrono(size: int, longest: int, rng: np.random.Generator) -> Array:
    """Biases log(U(1, longest - 1)) of a gate that keeps the state, for memories up to ``longest`` steps (Tallec, Ollivier 2018)."""
    return np.log(rng.uniform(1, longest - 1, size))


BY_NAME: dict[str, Callable[[Shape, np.random.Generator, int], Array]] = {
    "glorot": glorot,
    "identity": identity,
    "orthogonal": orthogonal,
    "uniform": uniform,
    "zeros": zeros,
}
