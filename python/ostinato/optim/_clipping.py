"""Norms and bounds of gradients."""

from __future__ import annotations

import math

import numpy as np

from .. import _native
from .._annotations import readable
from ..nn import Layer
from ._checks import check_above_zero


def global_norm(model: Layer) -> float:
    """Return the Euclidean norm of all gradients of a model.

    >>> import ostinato as ost
    >>> ost.optim.global_norm(ost.nn.Linear(3, 2, rng=0))
    0.0

    Args:
        model: a layer.

    Returns:
        The norm; NaN if a gradient is NaN.
    """
    total: float = _native.backend_for(model.flat_grads).square_sum(model.flat_grads)
    return math.sqrt(total) if total >= 0 else math.nan


def clip_by_norm(model: Layer, max_norm: float) -> float:
    """Scale the gradients of a model so that their global norm is at most ``max_norm``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Linear(1, 1, rng=0)
    >>> _, pullback = model.vjp(np.full((1, 1), 3, np.float32))
    >>> dx = pullback(np.full((1, 1), 1, np.float32))  # gradients 3 and 1
    >>> round(ost.optim.clip_by_norm(model, 1.0), 3), round(ost.optim.global_norm(model), 3)
    (3.162, 1.0)

    Args:
        model: a layer.
        max_norm: the bound, above 0.

    Returns:
        The norm before.

    Raises:
        TypeError: max_norm is no number.
        ValueError: max_norm is not above 0.

    Source: Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
    networks".
    """
    check_above_zero("max_norm", max_norm)
    norm = global_norm(model)
    if norm > max_norm:
        flat = model._writable_grads().flat
        flat *= flat.dtype.type(max_norm / norm)
    return norm


def clip_by_value(model: Layer, limit: float) -> None:
    """Limit every gradient of a model to [-limit, limit].

    >>> import ostinato as ost
    >>> ost.optim.clip_by_value(ost.nn.Linear(3, 2, rng=0), 1.0)

    Args:
        model: a layer.
        limit: the bound, above 0.

    Raises:
        TypeError: limit is no number.
        ValueError: limit is not above 0.
    """
    check_above_zero("limit", limit)
    flat = model._writable_grads().flat
    np.clip(flat, -limit, limit, out=flat)


readable(globals())
