"""Checks of a forecaster's series, inputs and horizon, and of a state that was saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _check
from .._cells import FAMILIES
from .._check import Array
from ._forecast_options import ForecastOptions


def checked_series(series: Any, season: int) -> list[Array]:
    """Return the series as float64; an error says what is wrong with which."""
    if isinstance(series, np.ndarray) and series.ndim == 1:
        raise TypeError("series: expected a list of arrays, got one array; give [array]")
    if not len(series):
        raise ValueError("series: expected at least one array, got none")
    out = []
    for k, values in enumerate(series):
        a = _check.array(f"series[{k}]", values, 1)
        if a.dtype.kind not in "iuf":
            raise TypeError(f"series[{k}]: expected numbers, got {a.dtype}")
        a = a.astype(np.float64)
        if np.isinf(a).any():
            raise ValueError(f"series[{k}]: expected finite numbers or NaN, got infinity")
        least = max(2 * season, 12)
        if len(a) < least or np.isfinite(a).sum() < max(least // 2, 8):
            what = f"{len(a)} rows, {int(np.isfinite(a).sum())} with a value"
            shorter = max(1, len(a) // 2)
            raise ValueError(
                f"series[{k}]: expected at least {least} rows, two seasons of {season}, "
                f"got {what}; give more rows, or a season of at most {shorter} (1 for none)"
            )
        out.append(a)
    return out


def checked_inputs(name: str, given: Sequence[Array] | None, rows: list[int]) -> list[Array]:
    """Return inputs of the caller ``[n, K]`` for each series, checked."""
    if given is None:
        return [np.zeros((n, 0)) for n in rows]
    if len(given) != len(rows):
        raise ValueError(f"{name}: expected an array a series, {len(rows)}, got {len(given)}")
    out = [_check.array(f"{name}[{k}]", a, 2) for k, a in enumerate(given)]
    for k, (a, n) in enumerate(zip(out, rows)):
        if a.shape != (n, out[0].shape[1]):
            raise ValueError(f"{name}[{k}]: expected shape {(n, out[0].shape[1])}, got {a.shape}")
        if a.dtype.kind not in "iufb" or not np.isfinite(a.astype(np.float64)).all():
            raise ValueError(f"{name}[{k}]: expected finite numbers, got others; fill the gaps")
    return [a.astype(np.float64) for a in out]


def horizon_for(
    asked: int | None, season: int, shortest: int, report: Callable[[str], None]
) -> int:
    """Return the horizon: what was asked for, if the rows allow it, or what suits the season."""
    most = max(1, (shortest - season) // 3)
    if asked is not None:
        if asked > most:
            what = f"{shortest} rows and a season of {season}"
            raise ValueError(f"horizon: expected at most {most} for {what}, got {asked}")
        return asked
    if season == 1:
        wanted = 12
    elif season <= 60:
        wanted = season
    else:
        wanted = season // 7 if season % 7 == 0 and season >= 140 else 30
    horizon = min(wanted, most)
    note = "" if horizon == wanted else f", since {shortest} rows allow no more"
    report(f"horizon {horizon}{note}")
    return horizon


def bounded(name: str, value: object, most: int) -> int:
    """Return a whole number from 1 to ``most``, or raise an error."""
    n = _check.positive(name, value)
    if n > most:
        raise ValueError(f"{name}: expected at most {most}, got {n}")
    return n


def checked_moments(given: Any) -> dict[str, list[list[float]]]:
    """Return mean and spread of each input, or raise an error."""
    out = {}
    for name in ("known", "observed"):
        mean, spread = ([float(v) for v in row] for row in given[name])
        if len(mean) != len(spread) or not all(map(math.isfinite, mean + spread)):
            raise ValueError(f"expected finite moments of {name}, got others")
        if not all(v > 0 for v in spread):
            raise ValueError(f"expected spreads of {name} above 0, got others")
        out[name] = [mean, spread]
    return out


def check_tensors(tensors: Mapping[str, Array], options: ForecastOptions, inputs: int) -> None:
    """Compare names and shapes of the parameters with what the options ask for."""
    wide, gates = options.hidden, FAMILIES[options.cell] * options.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    if options.members * (4 * options.layers + 2) != len(tensors):
        what = f"{options.members} members of {options.layers} layers"
        raise ValueError(f"expected {what}, got {len(tensors)} tensors")
    for k in range(options.members):
        for layer in range(options.layers):
            columns = inputs if layer == 0 else wide
            shapes[f"{k}.0.weight_ih_l{layer}"] = (gates, columns)
            shapes[f"{k}.0.weight_hh_l{layer}"] = (gates, wide)
            shapes[f"{k}.0.bias_ih_l{layer}"] = (gates,)
            shapes[f"{k}.0.bias_hh_l{layer}"] = (gates,)
        shapes[f"{k}.1.weight"] = (len(options.quantiles), wide)
        shapes[f"{k}.1.bias"] = (len(options.quantiles),)
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            got = tensors[name].shape if name in tensors else "none"
            raise ValueError(f"expected {name} of shape {shape}, got {got}")
        if tensors[name].dtype != np.float32 or not np.isfinite(tensors[name]).all():
            raise ValueError(f"expected {name} of finite float32 numbers, got others")
