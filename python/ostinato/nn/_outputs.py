"""What y holds where it is not the outputs of all steps: the last state, or the last step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _device, _ragged
from .._call import Call
from .._check import Array

if TYPE_CHECKING:
    from ._stack import Recurrent

OUTPUTS = ("all", "last", "last_step")
TRAINING_OUTPUTS = (*OUTPUTS, "none")


class FinalState:
    """outputs="last": the final state h of every direction of the last layer, ``y [B,D*H]``."""

    def __init__(self, layer: Recurrent, h_n: Array) -> None:
        self.layer, self.batch = layer, h_n.shape[1]
        self.top = (layer.num_layers - 1) * layer._directions
        self.y: Array = np.concatenate(
            list(h_n[self.top :]), 1
        )  # a copy: the state is the caller's

    def spread(self, d: Array | None, dh: Array | None) -> tuple[Array | None, Array | None]:
        """Return dy of all steps and dh_n, from the gradient of y."""
        if d is None:
            return None, dh
        d = self._checked(d)
        size = self.layer._output_size
        out = self._states_like(d) if dh is None else dh.copy()
        for k in range(self.layer._directions):
            out[self.top + k] += d[:, k * size : (k + 1) * size]
        return None, out

    def _checked(self, d: Array) -> Array:
        d = _check.array("dy", d)
        if d.shape != self.y.shape:
            raise ValueError(
                f"dy: expected shape {self.y.shape} of {self.y.dtype}, got {d.shape} of {d.dtype}"
            )
        _check.of_dtype("dy", d, self.y.dtype)
        return d

    def _states_like(self, d: Array) -> Array:
        return np.zeros(self.layer._state_shape(self.batch), d.dtype, like=d)


class LastStep(FinalState):
    """outputs="last_step" with two directions: the output at the last real step of each row.

    Its second half is what the reverse direction gave there, after that one step.
    """

    def __init__(
        self, layer: Recurrent, call: Call, shape: tuple[int, int, int], y: Array, h_n: Array
    ) -> None:
        super().__init__(layer, h_n)
        _, steps, width = shape
        self.call, self.shape = call, shape
        ends = self._ends(steps)
        self.rows = np.flatnonzero(ends)  # a row without a step has the state that it was given
        self.at = ends[self.rows] - 1
        self.y[self.rows, width // 2 :] = y[self._where()][:, width // 2 :]

    def _ends(self, steps: int) -> Array:
        """Return the last step that each row takes part in, counted from 1; 0 if there is none."""
        lengths, mask = self.call.options["lengths"], self.call.options["mask"]
        if self.call.ragged is not None:
            assert lengths is not None
            clock = _ragged.step_of(lengths) + 1
            return _ragged.most(clock if mask is None else clock * _device.host(mask), lengths)
        on = _check.taking_part(steps, self.batch, lengths, mask)
        ends: Array = (np.arange(1, steps + 1)[:, None] * on).max(0, initial=0)
        return ends

    def _where(self) -> Any:
        if self.call.ragged is not None:
            return self.call.ragged.offsets[self.rows] + self.at
        return (self.rows, self.at) if self.layer.batch_first else (self.at, self.rows)

    def spread(self, d: Array | None, dh: Array | None) -> tuple[Array | None, Array | None]:
        """Return dy of all steps and dh_n, from the gradient of y."""
        if d is None:
            return None, dh
        d = self._checked(d)
        _, steps, width = self.shape
        size, back = self.layer._output_size, d[:, self.layer._output_size :]
        out = self._states_like(d) if dh is None else dh.copy()
        out[self.top] += d[:, :size]
        shape: tuple[int, ...] = self.shape
        if self.call.ragged is not None:
            shape = (len(self.call.ragged.rows), width)
        elif not self.layer.batch_first:
            shape = (steps, self.batch, width)
        dy = np.zeros(shape, d.dtype, like=d)
        dy[..., size:][self._where()] = back[self.rows]
        alone = np.setdiff1d(np.arange(self.batch), self.rows)
        out[self.top + 1, alone] += back[alone]
        return dy, out


def last_of(
    outputs: str,
    layer: Recurrent,
    call: Call,
    shape: tuple[int, int, int],
    y: Array | None,
    h_n: Array,
) -> FinalState | None:
    """Return what stands for the outputs of all steps, or None for ``outputs`` "all" and "none"."""
    if outputs == "last_step" and layer._directions == 2:
        assert y is not None
        return LastStep(layer, call, shape, y, h_n)
    return FinalState(layer, h_n) if outputs in ("last", "last_step") else None
