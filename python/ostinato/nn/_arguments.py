"""Check the arguments of a call of a stack, and bring them to the form that the kernels take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _ragged
from .._call import Call
from .._check import Array
from .._options import Options
from .._ragged import Ragged, unwrapped
from ._table import Lookup

if TYPE_CHECKING:
    from ._stack import Recurrent

State = Any  # h, or (h, c) for an LSTM
Times = tuple[object, Any, Any, str]  # lengths, resets, mask, masked


def arguments(layer: Recurrent, x: Any, state: State, times: Times) -> Call:
    """Return the checked arguments of a call."""
    x, table = x if isinstance(x, Lookup) else (x, None)
    x, listed = unwrapped(x)
    if isinstance(x, Ragged):
        return _ragged_arguments(layer, x, state, times, listed, table)
    x = _check.array("x", x, (2, 3))
    single = x.ndim == 2  # [T, I]: one sequence without a batch axis
    if single:
        x = x[None] if layer.batch_first else x[:, None]
    # Before the state's shape is held against the batch.
    if table is None and x.shape[2] != layer.input_size:
        names = "(B, T, I)" if layer.batch_first else "(T, B, I)"
        raise ValueError(f"x: expected shape {names} = (*, *, {layer.input_size}), got {x.shape}")
    h, c = layer._split_state("state", state)
    lengths, resets, mask, masked = times
    if single:
        given: Any = lengths  # of any kind: `times` checks it
        if given is not None and np.size(given) == 1:
            one = given if _check.is_array(given) else np.asarray(given)
            lengths = one.reshape(1)
        resets, mask = (with_batch(layer, n, a, 1) for n, a in (("resets", resets), ("mask", mask)))
    options = _check.times(x, lengths, resets, mask, masked, layer.batch_first)
    h, c, learned = _start(layer, h, c, options, x.shape[0 if layer.batch_first else 1], single)
    return Call(x, h, c, options, single, learned, table=table)


def _ragged_arguments(
    layer: Recurrent,
    x: Ragged,
    state: State,
    times: Times,
    listed: bool,
    table: Array | None,
) -> Call:
    _ragged.refuse_nested(x)
    if table is None and (x.rows.ndim != 2 or x.rows.shape[1] != layer.input_size):
        raise ValueError(
            f"x: expected rows of shape (N, I) = (*, {layer.input_size}), got {x.rows.shape}"
        )
    if times[0] is not None:
        raise ValueError(
            f"lengths: expected None with ragged sequences, got {type(times[0]).__name__}"
        )
    options = _ragged.times(x, *times[1:])
    h, c, learned = _start(layer, *layer._split_state("state", state), options, len(x))
    return Call(x.rows, h, c, options, False, learned, x, listed, table)


def _start(
    layer: Recurrent, h: Any, c: Any, options: Options, batch: int, single: bool = False
) -> tuple[Array | None, Array | None, bool]:
    """Return the states to start from; put those of a restart into the options.

    Where none are given they are the layer's own.
    """
    h = layer._checked_state("state", h, batch, single=single)
    c = layer._checked_state("state", c, batch, cells=True, single=single)
    own: list[Array | None] = [None, None]
    if layer.learned_state:
        initial = layer._initial(layer.parameters())
        own = [None if rows is None else np.stack(rows) for rows in initial]
    options["restart_h"], options["restart_c"] = own
    learned = layer.learned_state and h is None and c is None
    if learned:
        h, c = (None if r is None else np.repeat(r[:, None], batch, 1) for r in own)
    return h, c, learned


def with_batch(layer: Recurrent, name: str, a: object, ndim: int) -> Array | None:
    """Return an array of one sequence, with the batch axis that it came without."""
    if a is None:
        return None
    return np.expand_dims(_check.array(name, a, ndim), 0 if layer.batch_first else 1)
