"""Norms and bounds of gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _deferred, _device, _native
from .._annotations import readable
from .._check import Array
from ..nn import Layer
from ._checks import check_above_zero, check_model

LEAST = 1e-280  # a sum of squares, of which none that counts is below the range of float64


def global_norm(model: Layer) -> float:
    """Return the Euclidean norm of all gradients of a model.

    >>> import ostinato as ost
    >>> ost.optim.global_norm(ost.nn.Linear(3, 2, rng=0))
    0.0

    Args:
        model: a layer.

    Returns:
        The norm; NaN if a gradient is NaN.

    Raises:
        TypeError: model is no layer.
    """
    check_model(model)
    return float(norm_of(model.flat_grads))


def norm_of(grads: Array) -> Any:
    """Return the norm of flat gradients; of those on a device an array without axes."""
    total = _native.backend_for(grads).square_sum(grads)
    if _device.of(total) is not None:
        return np.sqrt(total)
    # Their squares are beyond float64, or below it.
    if total < LEAST or (math.isinf(total) and np.isfinite(grads).all()):
        most = float(np.abs(grads).max(initial=0.0))
        return most * float(np.linalg.norm(grads / most)) if most else 0.0
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
        TypeError: model is no layer, or max_norm is no number.
        ValueError: max_norm is not above 0.

    Source: Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
    networks".
    """
    check_model(model)
    check_above_zero("max_norm", max_norm)
    norm = norm_of(model.flat_grads)
    limit_norm(model, norm, max_norm)
    return float(norm)


def limit_norm(model: Layer, norm: Any, max_norm: float) -> None:
    """Scale gradients of a known norm, which a device need not have told, to ``max_norm`` at most.

    On a device NaN stays NaN, and an infinite norm gives zeros.
    """
    factor = factor_of(norm, max_norm)
    if factor is not None:
        scale(model, factor)


def factor_of(norm: Any, max_norm: float) -> Any:
    """Return by what gradients of this norm are multiplied to bound it; None: they are within."""
    if _device.of(norm) is not None:
        return max_norm / np.maximum(norm, max_norm)  # exactly 1 up to the bound
    return max_norm / norm if norm > max_norm else None


def scale(model: Layer, factor: Any) -> None:
    """Multiply all gradients of a model by a number, which may be an array without axes."""
    flat = model._writable_grads().flat
    flat *= _deferred.scalar(factor, flat.dtype)


def clip_by_value(model: Layer, limit: float) -> None:
    """Limit every gradient of a model to [-limit, limit].

    >>> import ostinato as ost
    >>> ost.optim.clip_by_value(ost.nn.Linear(3, 2, rng=0), 1.0)

    Args:
        model: a layer.
        limit: the bound, above 0.

    Raises:
        TypeError: model is no layer, or limit is no number.
        ValueError: limit is not above 0.
    """
    check_model(model)
    check_above_zero("limit", limit)
    flat = model._writable_grads().flat
    np.clip(flat, -limit, limit, out=flat)


readable(globals())
