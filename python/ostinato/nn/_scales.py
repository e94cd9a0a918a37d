"""Choose the scales of the inputs of int8 layers from data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._check import Array, Lengths
from .._ragged import Ragged, rows_that_count, unwrapped

if TYPE_CHECKING:
    from ._quantization import ScaledInputs

# Within these, products with weights stay far from the ends of float32.
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30


def refuse_float64(layer: ScaledInputs) -> None:
    """Raise TypeError for a layer of float64, which has no int8."""
    if layer.dtype != np.float32:
        raise TypeError(f"layer: expected dtype float32, which has int8, got {layer.dtype}")


def ranges_of(layer: ScaledInputs, x: Any, lengths: Lengths, mask: Any) -> Array:
    """Return max |x| of every feature ``[I]`` over the steps that take part."""
    refuse_float64(layer)
    if layer.device != "cpu":
        raise ValueError(
            f'layer: expected one on the CPU, got one on {layer.device}; use layer.to("cpu")'
        )
    x, _ = unwrapped(x)
    shape = x.rows.shape if isinstance(x, Ragged) else np.shape(x)
    if not isinstance(x, Ragged) and _check.array("x", x, (2, 3)).ndim == 2:  # one sequence
        axis = 0 if layer.batch_first else 1
        x = np.expand_dims(x, axis)
        mask = None if mask is None else np.expand_dims(_check.array("mask", mask, 1), axis)
        lengths = None if lengths is None else np.reshape(np.asarray(lengths), (1,))
    sequences, on = rows_that_count(x, lengths, mask, layer.batch_first)
    rows = sequences.rows if on.all() else sequences.rows[on]
    if rows.ndim != 2 or rows.shape[1] != layer.input_size:
        raise ValueError(f"x: expected I = {layer.input_size} features, got shape {shape}")
    _check.of_dtype("x", rows, layer.dtype)
    if rows.size == 0:
        raise ValueError(f"x: expected at least one step that takes part, got shape {shape}")
    out: Array = np.abs(np.maximum(rows.max(0), -rows.min(0)))  # a zero without a sign
    bad = np.flatnonzero(~np.isfinite(out))
    if bad.size:
        raise ValueError(f"x: expected finite values, got {out[bad[0]]} in feature {bad[0]}")
    return out


def balanced_scales(layer: ScaledInputs, ranges: Array) -> Array:
    """Return the scales that balance the ranges of the inputs and of the weights that read them."""
    ends = [
        a for n, a in layer.parameters().items() if n in ("weight_ih_l0", "weight_ih_l0_reverse")
    ]
    x, w = ranges.astype(np.float64), np.abs(np.concatenate(ends)).max(0).astype(np.float64)
    if not np.isfinite(w).all():
        raise ValueError("weight_ih_l0: expected finite weights for int8, got some that are not")
    both = np.sqrt(x * w)
    level = both.max() or 1.0
    # A feature that is always zero, or that no weight reads, is to widen neither range.
    scale = np.ones_like(x)
    np.divide(x, np.where(both > 0, both, level), out=scale, where=x > 0)
    np.divide(level, w, out=scale, where=(x == 0) & (w > 0))
    exponents = np.rint(np.log2(np.clip(scale, 2 * SMALLEST_SCALE, LARGEST_SCALE / 2)))
    chosen: Array = np.exp2(exponents).astype(np.float32)
    return chosen
