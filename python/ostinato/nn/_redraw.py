"""Draw the parameters of a stack anew, gate by gate: `Recurrent.initialize`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _device
from .._cells import gates_of
from .._check import Array, Seed
from . import init

if TYPE_CHECKING:
    from ._stack import Recurrent


def redraw(
    layer: Recurrent,
    kinds: tuple[str | None, str | None, str | None],
    forget_bias: float | None,
    chrono: int | None,
    rng: Seed,
) -> None:
    """Draw the parameters anew.

    Args:
        layer: the stack.
        kinds: input, recurrent and bias; see `Recurrent.initialize`, as all further arguments.
        forget_bias: of an LSTM, or None.
        chrono: the longest memory wanted, or None.
        rng: seed or generator, or None.
    """
    g = layer._rng if rng is None else _check.generator(rng)
    gates = gates_of(layer._cell)
    if (forget_bias is not None or chrono is not None) and not layer.bias:
        raise ValueError("forget_bias, chrono: expected a layer with biases, got bias=False")
    if forget_bias is not None and not layer._has_cells:
        raise ValueError(f"forget_bias: expected an LSTM, got {type(layer).__name__}")
    coupled = getattr(layer, "coupled_gates", False)
    if coupled and forget_bias is not None:
        raise ValueError(
            "forget_bias: expected None with coupled_gates=True, whose forget gate is 1 - i, got "
            f"{forget_bias!r}"
        )
    if chrono is not None and (gates.keep is None or _check.positive("chrono", chrono) < 3):
        raise ValueError(
            f"chrono: expected an LSTM or GRU and at least 3 steps, got {type(layer).__name__} "
            f"and {chrono}"
        )
    if kinds[2] is not None and not layer.bias:
        raise ValueError(f"bias: expected None for a layer with bias=False, got {kinds[2]!r}")
    for name, kind in zip(("input", "recurrent", "bias"), kinds):
        if kind is not None:
            known = ("zeros", "uniform") if name == "bias" else tuple(init.BY_NAME)
            _check.choice(name, kind, known)
    if forget_bias is not None:
        forget_bias = _check.finite("forget_bias", forget_bias, minimum=-math.inf)
    new = _drawn(layer, kinds, g)
    with layer.write() as p:
        for name, value in new.items():
            p[name][...] = _device.like(value, p[name])
        for end in layer._suffixes() if forget_bias is not None else []:
            _set_bias(layer, p, end, gates.keep, forget_bias)
        for end in layer._suffixes() if chrono is not None else []:
            drawn = init.chrono(layer.hidden_size, chrono or 0, g)
            value = _device.like(drawn, layer._block.values)
            _set_bias(layer, p, end, gates.keep, value)
            _set_bias(layer, p, end, gates.write, -value)


def _drawn(
    layer: Recurrent, kinds: tuple[str | None, str | None, str | None], g: np.random.Generator
) -> dict[str, Array]:
    """Return new values of the parameters by name, each gate drawn by itself."""
    input, recurrent, bias = kinds
    by_name = {"weight_ih": input, "weight_hh": recurrent, "weight_hr": recurrent, "bias": bias}
    new: dict[str, Array] = {}
    for name, shape in layer._shapes():
        kind = next((k for part, k in by_name.items() if name.startswith(part)), None)
        if kind is None or "_ln_" in name:
            continue
        make = init.BY_NAME[kind]
        projection = name.startswith("weight_hr")
        block = shape if projection else (layer.hidden_size, *shape[1:])
        blocks = 1 if projection else layer._gates
        new[name] = np.concatenate([make(block, g, layer.hidden_size) for _ in range(blocks)])
    return new


def _set_bias(layer: Recurrent, p: Any, end: str, gate: str | None, value: Any) -> None:
    """Let the two biases of a gate be a value and zero."""
    if gate is None:
        return
    h, k = layer.hidden_size, gates_of(layer._cell).names.index(gate)
    rows = slice(k * h, (k + 1) * h)
    p["bias_ih" + end][rows], p["bias_hh" + end][rows] = value, 0
