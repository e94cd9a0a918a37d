"""One layer and direction on arrays of a device: buffers by name, whose addresses go to the kernels.

Nothing here allocates or waits on its own: arrays come from the array library of the device (CuPy; NumPy where the kernels are emulated).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _core

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")


@dataclass(frozen=True)
class Device:
    """Where kernels run.

    Attributes:
        xp: its array library.
        address: of an array's first element.
        run: ``run(action, cell, itemsize, addresses)`` launches the kernels of "pack", "forward" or "backward".
    """

    xp: Any
    address: Callable[[Any], int]
    run: Callable[[str, int, int, dict[str, Any]], None]

    def put(self, a: Any) -> Any:
        """A NumPy array on the device; None stays None."""
        return None if a is None else self.xp.asarray(a)

    def get(self, a: Any) -> Any:
        """The same back."""
        return a if a is None or isinstance(a, np.ndarray) else a.get()

    def launch(self, action: str, cell: str, itemsize: int, values: dict[str, Any]) -> None:
        """Run kernels on arrays and numbers by name."""
        addresses = {
            name: v if v is None or isinstance(v, (int, float, bool)) else self.address(v) for name, v in values.items()
        }
        self.run(action, list(_core.cells()).index(cell), itemsize, addresses)


def _columns(cell: str) -> tuple[int, list[int]]:
    """Of a pre-activation, and of each product."""
    columns: tuple[int, list[int]] = _core.device_columns()[list(_core.cells()).index(cell)]
    return columns


def emulated(turned: bool = False) -> Device:
    """The kernels on the CPU, one thread after the other; ``turned``: in the opposite order, which must not matter."""

    def run(action: str, cell: int, itemsize: int, addresses: dict[str, Any]) -> None:
        _core.emulated(action, cell, itemsize, addresses, turned)

    return Device(np, lambda a: int(a.ctypes.data), run)


def cuda() -> Device:
    """The present GPU, with CuPy as its array library; kernels go to CuPy's current stream.

    Raises:
        RuntimeError: there is no GPU, or no CuPy; the message says which.
    """
    from . import cuda as gpu

    if reason := gpu.why_not():
        raise RuntimeError(f"cuda: expected a GPU, but {reason}")
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError("cuda: expected CuPy, which is not installed: pip install cupy-cuda13x") from error
    from . import _cuda

    def run(action: str, cell: int, itemsize: int, addresses: dict[str, Any]) -> None:
        _cuda.run(action, cell, itemsize, addresses, cupy.cuda.get_current_stream().ptr)

    return Device(cupy, lambda a: int(a.data.ptr), run)


@dataclass
class DeviceWeights:
    """Weights of one layer and direction in the order of the kernels."""

    device: Device
    cell: str
    input: int
    hidden: int
    dtype: Any
    reverse: bool
    arrays: dict[str, Any]


def pack(
    device: Device, cell: str, weights: list[Any], *, reverse: bool = False, backward: bool = True
) -> DeviceWeights:
    """From weight_ih, weight_hh, bias_ih, bias_hh and weight_peephole, the last three of which may be None."""
    xp, given = device.xp, dict(zip(WEIGHTS, weights))
    (columns, products), dtype = _columns(cell), given["weight_ih"].dtype
    inputs, hidden = given["weight_ih"].shape[1], given["weight_hh"].shape[1]
    arrays: dict[str, Any] = {"bias": xp.empty((hidden, columns), dtype), "params": given["weight_peephole"]}
    for q, n in enumerate(products):
        depth = inputs if q == 0 else hidden
        arrays[f"panels{q}"] = xp.empty((depth, hidden, n), dtype)
        arrays[f"turned{q}"] = xp.empty((hidden, n, depth), dtype) if backward else None
    device.launch("pack", cell, dtype.itemsize, {**given, **arrays, "input": inputs, "hidden": hidden})
    return DeviceWeights(device, cell, inputs, hidden, dtype, reverse, arrays)


@dataclass
class DeviceTape:
    """What a forward pass keeps: the values that the kernels were given."""

    weights: DeviceWeights
    values: dict[str, Any]
    shape: tuple[int, int]
    resets: bool
    held: list[Any] = field(default_factory=list)


def forward(
    w: DeviceWeights,
    x: Any,
    h0: Any = None,
    c0: Any = None,
    *,
    lengths: Any = None,
    before: Any = None,
    restart: tuple[Any, Any] = (None, None),
    train: bool = False,
) -> tuple[Any, Any, Any, DeviceTape | None]:
    """y ``[T,B,H]``, h_n, c_n and the tape; ``before`` is the table of resets and masks, int32 ``[T+1,B]``."""
    xp, facts = w.device.xp, _core.cells()[w.cell]
    steps, batch, size, dtype = x.shape[0], x.shape[1], w.hidden, w.dtype
    columns, products = _columns(w.cell)
    two, phases = facts["states"] > 1, len(products) - 1
    y, h_n = xp.empty((steps, batch, size), dtype), xp.empty((batch, size), dtype)
    c_n = xp.empty((batch, size), dtype) if two else None
    rows = (steps, batch) if train else (batch,)
    values = {
        **w.arrays,
        **{"steps": steps, "batch": batch, "input": w.input, "hidden": size, "reverse": int(w.reverse)},
        **{"lengths": lengths, "before": before, "h0": h0, "c0": c0, "restart_h": restart[0], "restart_c": restart[1]},
        **_rows("x", x),
        **_rows("y", y),
        **{"hn": h_n, "cn": c_n, "gx": xp.empty((steps, batch, size, columns), dtype)},
        "saved": xp.empty((steps, batch, facts["saved"], size), dtype) if train and facts["saved"] else None,
        "kept": xp.empty((batch, facts["saved"], size), dtype) if not train and phases > 1 else None,
        "cells": xp.empty((steps, batch, size), dtype) if train and two else None,
        "state": xp.empty((batch, size), dtype) if not train and two else None,
        "emitted": xp.empty((*rows, size), dtype) if phases > 1 else None,
    }
    w.device.launch("forward", w.cell, dtype.itemsize, values)
    tape = DeviceTape(w, values, (steps, batch), before is not None) if train else None
    return y, h_n, c_n, tape


def backward(
    tape: DeviceTape,
    dy: Any = None,
    dh_n: Any = None,
    dc_n: Any = None,
    grads: list[Any] | None = None,
    *,
    need_dx: bool = True,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    cuts: Any = None,
    dcells: Any = None,
    flow: bool = False,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """dx, dh0, dc0, the gradients of the restarts' states and the squared norms by step; adds to ``grads``."""
    w, xp, facts = tape.weights, tape.weights.device.xp, _core.cells()[tape.weights.cell]
    (steps, batch), size, dtype, states = tape.shape, w.hidden, w.dtype, facts["states"]
    parts, (_, products) = _core.gradient_parts(steps, batch), _columns(w.cell)

    def state(wanted: bool = True) -> Any:
        return xp.empty((batch, size), dtype) if wanted else None

    dx = xp.empty((steps, batch, w.input), dtype) if need_dx else None
    dh0, dc0 = state(), state(states > 1)
    reset = [xp.zeros(size, dtype) if tape.resets and k < states else None for k in range(2)]
    norms = xp.zeros((steps, states, batch), np.float64) if flow else None
    values = {
        **tape.values,
        **_rows("dy", dy),
        **_rows("dx", dx),
        **_rows("dcells", dcells),
        **{"dhn": dh_n, "dcn": dc_n, "dh": state(), "dc": state(states > 1), "demitted": state(len(products) > 2)},
        **{"dh0": dh0, "dc0": dc0, "drestart_h": reset[0], "drestart_c": reset[1], "cuts": cuts, "flow": norms},
        **{"clip_value": float(clip_value), "clip_norm": float(clip_norm)},
        "dparams": xp.empty((steps, batch, facts["params"], size), dtype) if facts["params"] else None,
        "param_sums": xp.empty((parts, facts["params"], size), dtype) if facts["params"] else None,
        "restarts": xp.empty((states, batch, size), dtype),
        "scales": xp.empty((states, batch), dtype) if clip_norm > 0 else None,
        "squares": xp.empty((states, batch, size), dtype) if flow else None,
        **{f"d{name}": g for name, g in zip(WEIGHTS, grads or [None] * 5)},
    }
    for q, n in enumerate(products):
        depth = w.input if q == 0 else size
        values[f"da{q}"] = xp.empty((steps, batch, size, n), dtype)
        values[f"sums{q}"] = xp.empty((parts, depth, size, n), dtype)
        values[f"bias_sums{q}"] = xp.empty((parts, size, n), dtype)
    w.device.launch("backward", w.cell, dtype.itemsize, values)
    return dx, dh0, dc0, *reset, None if norms is None else norms.sum(2)


def _rows(name: str, a: Any) -> dict[str, Any]:
    """An array ``[T,B,*]`` with unit stride on the last axis, as the kernels are given it."""
    if a is None:
        return {name: None}
    return {name: a, f"{name}_t": a.strides[0] // a.itemsize, f"{name}_b": a.strides[1] // a.itemsize}
