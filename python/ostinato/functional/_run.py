"""Check the arguments of a call of one layer, and run it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _ragged
from .._call import Call
from .._cells import facts_of
from .._check import Array
from .._ragged import Ragged, unwrapped
from .._segments import Chain, parse, plan_of
from ._pullback import Pullback, state_row
from ._weights import Packed

Sequences = Any  # an array, a Ragged, or a list of arrays
Times = tuple[object, Any, Any, str]  # lengths, resets, mask, masked


def arguments(
    packed: Packed, x: Any, h0: Array | None, c0: Array | None, times: Times, reset_state: object
) -> Call:
    """Return the checked arguments of a call."""
    x, listed = unwrapped(x)
    ragged = x if isinstance(x, Ragged) else None
    if ragged is not None:
        if times[0] is not None:
            raise ValueError(
                f"lengths: expected None with ragged sequences, got {type(times[0]).__name__}"
            )
        options, x = _ragged.times(ragged, *times[1:]), _check.array("x", ragged.rows, 2)
    else:
        x = _check.array("x", x, 3)
        options = _check.times(x, *times)
    batch = x.shape[1] if ragged is None else len(ragged)
    h = state_row(packed, "h0", h0, batch)
    c = state_row(packed, "c0", c0, batch, cells=True)
    pair = isinstance(reset_state, (tuple, list)) and len(reset_state) == 2
    if reset_state is not None and pair != (facts_of(packed.cell)["states"] == 2):
        raise TypeError(
            f"reset_state: expected h, or (h, c) for an LSTM, got {type(reset_state).__name__}"
        )
    reset: Any = reset_state if pair else (reset_state, None)
    options["restart_h"] = _restart(packed, reset[0], packed.native.output_size)
    options["restart_c"] = _restart(packed, reset[1], packed.native.hidden_size)
    return Call(x, h, c, options, False, False, ragged, listed, None, packed)


def _restart(packed: Packed, state: object, size: int) -> Array | None:
    """Return a state after a reset as the kernels take it."""
    if state is None:
        return None
    r = _check.array("reset_state", state)
    axes = "(P,)" if size != packed.native.hidden_size else "(H,)"
    _check.state("reset_state", r, (size,), packed.dtype, axes)
    return _check.contiguous(r)[None]


def forward(call: Call, out: Array | None, train: bool, states_only: bool = False) -> Any:
    """Run the native forward pass; return y, h, c and the tape."""
    return call.packed.native.forward(
        call.x, call.h, call.c, out=out, train=train, states_only=states_only, **call.options
    )


def apply(call: Call, out: Array | None) -> tuple[Any, Array, Array | None]:
    """Run a call for inference."""
    y, h_n, c_n, _ = forward(call, out, False)
    return call.shaped(y), h_n[0], None if c_n is None else c_n[0]


def train(
    call: Call, memory_limit: str | int | None, outputs: str
) -> tuple[Any, Array, Array | None, Pullback]:
    """Run a call for training."""
    _check.choice("outputs", outputs, ("all", "none"))
    packed = call.packed
    if not packed.native.backward:
        raise ValueError(
            "weight_ih: expected a precision that can be trained, got weights packed as "
            f"{packed.precision}"
        )
    # The caller may reuse the arrays of its state, and segments that run again those of its times,
    # before the pullback runs.
    call = call.copied("restart_h", "restart_c", "lengths", "resets", "mask").with_own_states()
    if memory_limit is None or parse(memory_limit)[0] == "states":
        y, h_n, c_n, tape = forward(call, None, True, memory_limit is not None)
        _check.read_only(y)
        pullback = Pullback(call, tape)
    else:
        chain = _segments(call, memory_limit, outputs)
        rows = None
        if outputs == "all":
            shape = (*call.x.shape[:-1], packed.native.output_size)
            rows = np.empty(shape, packed.dtype, like=call.x)
        h_n, c_n = chain.forward(call.h, call.c, rows)
        y = None if rows is None else _check.read_only(rows.view())
        pullback = Pullback(call, None, chain, rows)
    y = call.shaped(y) if outputs == "all" else None
    return y, h_n[0], None if c_n is None else c_n[0], pullback


def _segments(call: Call, memory_limit: str | int, outputs: str) -> Chain:
    """Return the segments of a call; where there is no step, nobody else checks its arrays."""
    packed, native, (steps, batch) = call.packed, call.packed.native, call.sizes
    shape = (*call.x.shape[:-1], native.input_size)
    _check.of_dtype("x", call.x, packed.dtype)
    if call.x.shape != shape:
        raise ValueError(f"x: expected shape {shape}, got {call.x.shape}")
    plan = plan_of(native, memory_limit, steps, batch, outputs, 1, 1, packed.dtype.itemsize)
    return Chain(native, call.x, call.options, plan, dropout=0.0, key=0)
