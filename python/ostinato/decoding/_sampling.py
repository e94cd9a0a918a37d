"""Turn logits into the probabilities that labels are drawn with."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array
from ._hypothesis import log_softmax, refuse_unusable


def check_options(
    temperature: float, top_k: int | None, top_p: float | None
) -> tuple[float, int | None, float | None]:
    """Return checked options of `probabilities`."""
    temperature = _check.finite("temperature", temperature)
    top_k = None if top_k is None else _check.positive("top_k", top_k)
    if top_p is not None:
        top_p = _check.number("top_p", top_p, "a number above 0 and at most 1")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0 and at most 1, got {top_p!r}")
    return temperature, top_k, top_p


def probabilities(
    logits: Any, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """Return the probabilities that labels are drawn with.

    First logits are divided by the temperature, then all but the ``top_k`` most probable labels are
    left out, then all behind the first ones whose probabilities add up to ``top_p`` (the nucleus).
    Of equal labels the one of the lower number comes first.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> logits = np.log([0.5, 0.25, 0.15, 0.1])
    >>> ost.decoding.probabilities(logits, top_k=3).round(3).tolist()
    [0.556, 0.278, 0.167, 0.0]
    >>> ost.decoding.probabilities(logits, top_p=0.7).round(3).tolist()
    [0.667, 0.333, 0.0, 0.0]
    >>> ost.decoding.probabilities(logits, temperature=0).tolist()
    [1.0, 0.0, 0.0, 0.0]

    Args:
        logits: ``[...,V]``.
        temperature: at least 0; at 0 all of it is the most probable label's.
        top_k: how many labels to keep, at least 1; None: all.
        top_p: above 0 and at most 1; at least one label is kept. None: 1.

    Returns:
        float64 of the shape of the logits, which add up to 1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an option out of range, or logits of NaN.

    Source: for the nucleus Holtzman, Buys, Du, Forbes, Choi (2020), "The curious case of neural
    text degeneration"; for the k most probable Fan, Lewis, Dauphin (2018).
    """
    temperature, top_k, top_p = check_options(temperature, top_k, top_p)
    y = _device.host(_check.array("logits", logits))
    _check.real_dtype(y.dtype, "logits")
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V of at least 1, got {y.shape}")
    refuse_unusable("logits", y)
    z = y.astype(np.float64)
    with np.errstate(over="ignore"):  # -inf, near temperature 0 too, is probability 0
        z = z - z.max(-1, keepdims=True)
        if temperature == 0:
            top_k = 1
        else:
            z = z / temperature
    p = np.exp(log_softmax(z))
    order = np.argsort(-p, axis=-1, kind="stable")
    if top_k is not None:
        np.put_along_axis(p, order[..., top_k:], 0.0, -1)
        p /= p.sum(-1, keepdims=True)
    if top_p is not None:
        falling = np.take_along_axis(p, order, -1)
        before = falling.cumsum(-1) - falling
        before[..., 0] = 0
        np.put_along_axis(p, order, np.where(before < top_p, falling, 0.0), -1)
        p /= p.sum(-1, keepdims=True)
    return p


def drawn(p: Array, rng: np.random.Generator) -> Array:
    """Return a label of each row of probabilities ``[N,V]``."""
    ends = p.cumsum(-1)
    at = rng.random(len(p))[:, None] * ends[:, -1:]
    labels = (ends <= at).sum(-1)
    # Where rounding led behind the last label that has a probability.
    last = p.shape[-1] - 1 - (p[:, ::-1] > 0).argmax(-1)
    out: Array = np.minimum(labels, last)
    return out


readable(globals())
