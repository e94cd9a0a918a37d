"""The schedule of a pass with a memory limit: which segments there are and what is recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _check, _core
from ._cells import facts_of

UNITS = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
}


@dataclass(frozen=True)
class Schedule:
    """Divide the steps into segments of ``length`` steps, from t = 0 on.

    The tapes of the last ``num_saved`` segments are saved; the forward pass of the others is
    recomputed.
    """

    steps: int
    length: int
    num_saved: int
    border_bytes: int  # of the states at one border
    step_bytes: int  # of the tape of one step
    other_bytes: int = 0  # saved in any case

    @property
    def count(self) -> int:
        """The number of segments."""
        return -(-self.steps // self.length)

    @property
    def bytes(self) -> int:
        """The peak of what is saved: by the forward pass, or with one recomputed segment."""
        longest = min(self.length, self.steps)
        return (
            self.other_bytes
            + self.count * self.border_bytes
            + max(self.num_saved, 1) * longest * self.step_bytes
        )

    @property
    def extra(self) -> float:
        """The fraction of the forward pass that runs a second time."""
        return max(0, self.steps - self.num_saved * self.length) / self.steps if self.steps else 0.0


def parse(limit: object) -> tuple[str, int]:
    """Return ("bytes", n), ("segments", n), ("least", 0) or ("states", 0) of a memory limit."""
    if isinstance(limit, str):
        text = limit.strip().upper().replace(" ", "")
        if text in ("LEAST", "STATES"):
            return text.lower(), 0
        digits = text.rstrip("BKMGI")
        try:
            n = float(digits) * UNITS[text[len(digits) :]]
            if 0 < n < 2**62:
                return "bytes", int(n)
        except (ValueError, KeyError):
            pass
        raise ValueError(
            "memory_limit: expected a size such as '512MB', 'least', 'states' or a number of "
            f"segments, got {limit!r}"
        )
    return "segments", _check.positive("memory_limit", limit)


def schedule(
    limit: object, steps: int, unit: int, border_bytes: int, step_bytes: int, other_bytes: int = 0
) -> Schedule:
    """Return the cheapest schedule within a limit.

    Segments are multiples of ``unit`` steps, so that all sums keep their order.

    Raises:
        ValueError: not even the least that works fits; the message says what would.
    """
    kind, n = parse(limit)
    costs = border_bytes, step_bytes, other_bytes
    whole = -(-steps // unit) or 1  # units of all steps
    if kind == "segments":
        length = -(-whole // n) * unit
        return Schedule(steps, length, 1 if length >= steps else 0, *costs)
    sizes = sorted({min(whole, round(2 ** (k / 4))) for k in range(4 * whole.bit_length() + 1)})
    plain = [Schedule(steps, size * unit, 0, *costs) for size in sizes]
    least = min(plain, key=lambda s: (s.bytes, -s.length))
    if kind == "least":
        return least
    if least.bytes > n:
        raise ValueError(
            f"memory_limit: expected at least {least.bytes} bytes for this layer and input, got "
            f"{limit!r}"
        )
    best = least
    for s in plain:
        free = n - other_bytes - s.count * border_bytes
        num_saved = min(s.count, free // max(1, s.length * step_bytes))
        if num_saved >= 1:
            best = min(
                best,
                Schedule(steps, s.length, int(num_saved), *costs),
                key=lambda c: (c.extra, -c.length),
            )
    return best


def plan_for(
    layer: Any, limit: object, steps: int, batch: int, outputs: str, packed: Any = None
) -> Schedule:
    """Return the schedule of a layer for ``x [T,B,I]``."""
    packed = (
        (layer._packed(True) if layer._directions == 1 else layer._pack_apart()[0])
        if packed is None
        else packed
    )
    sizes = layer.num_layers, layer._directions, layer.dtype.itemsize
    return plan_of(packed, limit, steps, batch, outputs, *sizes, dropout=layer.dropout > 0)


def plan_of(
    packed: Any,
    limit: object,
    steps: int,
    batch: int,
    outputs: str,
    layers: int,
    directions: int,
    itemsize: int,
    dropout: bool = False,
) -> Schedule:
    """Return the schedule of layers, of which ``packed`` is one direction or all layers of one."""
    cell, hidden = facts_of(packed.cell), packed.hidden_size
    lanes = _core.fma_lanes(itemsize)  # of the SIMD registers
    n, rows = layers * directions, batch * packed.output_size * itemsize
    cells = batch * hidden * itemsize if cell["states"] > 1 else 0
    padded = -(-hidden // lanes) * lanes * batch * itemsize
    tape = n * (cell["tape"] + (cell["states"] > 1)) * padded
    between = (layers - 1) * directions * rows * (2 if dropout else 1)
    other = 0
    if directions == 2:  # the outputs between the layers are saved, and one gradient of them
        other = (between + (layers > 1) * 2 * rows) * steps
    else:
        tape += between + (outputs != "all") * rows
    unit = packed.sums(batch).block_steps
    return schedule(limit, steps, unit, n * (rows + cells), tape, other)
