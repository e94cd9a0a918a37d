"""What a device has not been asked for yet: figures of updates, and of the batches of a validation.

To read a number the host waits for all that was launched before it, so several steps are read at
once: at a row, a validation or a checkpoint, and after `MOST` of them, by which a run also finds
out that it has diverged. On the CPU every step is read at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import _deferred, _device
from .._deferred import Check

MOST = 32  # steps between two reads


@dataclass
class Update:
    """An update whose figures may still be on a device.

    Attributes:
        total: sum of the losses.
        weight: by how much it counts.
        norm: of the gradients.
        checks: what must hold; nothing has moved if it does not.
        before: goes back to where the run stood before the update.
    """

    total: Any
    weight: Any
    norm: Any
    checks: list[Check]
    before: Callable[[], None]

    @property
    def waits(self) -> bool:
        """Whether any figure is on a device."""
        figures = (self.total, self.weight, self.norm)
        return bool(self.checks) or any(_device.of(f) is not None for f in figures)


@dataclass
class Updates:
    """The updates since the last read, in their order."""

    pending: list[Update] = field(default_factory=list)

    def read(self, sound: Any) -> tuple[list[tuple[float, float]], float, Update | None]:
        """Read the figures of all, and forget them.

        Args:
            sound: 0, or NaN if a check has failed.

        Returns:
            Sums and weights of the updates that were made, the last norm of them, and the first
            update that was not made, if any.
        """
        updates, self.pending = self.pending, []
        norm = updates[-1].norm
        *figures, now = _deferred.numbers(
            [*(u.total for u in updates), *(u.weight for u in updates), norm, sound]
        )
        failed, made = None, len(updates)
        if math.isnan(now):
            made = next(k for k, u in enumerate(updates) if any(c.failed() for c in u.checks))
            failed, norm = updates[made], updates[made - 1].norm if made else math.nan
        totals, weights = figures[:made], figures[len(updates) : len(updates) + made]
        return list(zip(totals, weights)), figures[-1] if failed is None else float(norm), failed


class Tally:
    """The mean of losses that are read together.

    Attributes:
        total: sum of the losses.
        count: by how much they count.
        culprit: of the first loss that is not finite; "".
    """

    def __init__(self) -> None:
        self.total, self.count, self.culprit = 0.0, 0.0, ""
        self._pending: list[tuple[Any, Any, list[Check], Callable[[], str]]] = []

    def add(self, value: Any, count: Any, checks: list[Check], why: Callable[[], str]) -> None:
        """Take the mean loss of a batch, and by how much it counts."""
        self._pending.append((value, count, checks, why))
        waits = checks or _device.of(value) is not None or _device.of(count) is not None
        if not waits or len(self._pending) >= MOST:
            self.read()

    def read(self) -> None:
        """Add up what was taken; raise the error of a check that failed."""
        pending, self._pending = self._pending, []
        checks = [c for p in pending for c in p[2]]  # flags alone: a loss is looked at here
        found = _deferred.numbers(
            [*(p[0] for p in pending), *(p[1] for p in pending), *(c.value for c in checks)]
        )
        size = len(pending)
        if any(found[2 * size :]):
            _deferred.raise_first(checks)
        for k, (value, count) in enumerate(zip(found[:size], found[size : 2 * size])):
            if not math.isfinite(value) and not self.culprit:
                self.culprit = pending[k][3]()
            self.total, self.count = self.total + value * count, self.count + count
