"""Kernels of clusters, emulated by a CPU thread for every block.

Their stores to other blocks arrive late and in any order, and a barrier counts their bytes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import DEVICE_CELLS
from ostinato import _core, _device, _launch, _plan
from test_device import DEVICES, NAMES, on_cpu, on_device, problem
from test_persistent import with_options

CLUSTERED = [c for c in DEVICE_CELLS if not _core.drivers()[c]["loop"]]
# words, and the blocks of a cluster
KINDS = [("float16", 2), ("bfloat16", 4), ("float16", 8), ("bfloat16", 16), ("split", 2), ("split", 4)]


def clustered(
    cell: str, p: Any, control: Any, device: Any, precision: str, blocks: int, **facts: Any
) -> list[Any]:
    """Run both passes by clusters."""
    facts |= {"register_capacity": 0, "rows": 0, "units": 0, "cluster": blocks}
    return on_device(cell, p, control, device, precision, **facts)


def close(want: list[Any], got: list[Any], limit: float) -> None:
    for name, a, b in zip(NAMES, want, got):
        if a is not None and a.size:
            error = float(np.linalg.norm(b - a))
            assert error <= limit * max(float(np.linalg.norm(a)), 1e-3), name


def widened(p: dict[str, Any]) -> dict[str, Any]:
    """Return a problem in float64."""

    def wide(v: Any) -> Any:
        if isinstance(v, (list, tuple)):
            return [wide(a) for a in v]
        return v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v

    return {name: wide(v) for name, v in p.items()}


@pytest.mark.parametrize(("precision", "blocks"), KINDS)
@pytest.mark.parametrize("cell", CLUSTERED)
def test_against_float64(cell: str, precision: str, blocks: int) -> None:
    """Agree with the CPU in float64, which is held against the reference, for every cell.

    Neither the order of blocks and threads nor that of stores changes a bit.
    """
    devices = [with_options(d, delays=n) for d, n in ((DEVICES[0], 7), (DEVICES[1], 12345))]
    devices += [DEVICES[0], *DEVICES[2:]]
    limit = 2e-5 if precision == "split" else 1e-2
    limit *= 5 if cell == "rnn_relu" else 1  # one at rest flips by rounding: another slope
    hidden = 21 if blocks < 8 else 40
    for sizes, kind, reverse, control in (
        ((5, 3, 3, hidden), "none", False, {}),
        ((6, 11, 3, hidden), "all", True, {"cut": True, "clip_value": 0.4}),
    ):
        p = problem(cell, np.float32, sizes, kind, reverse)
        want = on_cpu(cell, widened(p), control)
        first, *others = (clustered(cell, p, control, d, precision, blocks) for d in devices)
        close(want, first, limit)
        for some in others[:2]:
            assert all(a is None or np.array_equal(a, b) for a, b in zip(first, some))
