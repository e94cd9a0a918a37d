"""The shapes of the working arrays of one layer and direction on a device.

What is allocated (`_launch`) and what `explain` counts (`_backend.bytes_of`) are the same shapes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from . import _core, _device
from ._cells import facts_of

Shapes = dict[str, tuple[int, ...]]  # by name; what is not needed is not there

TAPE = ("saved", "cells", "emitted")  # what a forward pass saves for its backward pass


@lru_cache
def columns_of(cell: str) -> tuple[int, list[int], bool]:
    """Return the columns of a pre-activation and of each product, and whether da is shared."""
    columns: tuple[int, list[int], bool] = _core.device_columns()[_device.number_of(cell)]
    return columns


def forward_shapes(
    cell: str,
    hidden: int,
    sizes: tuple[int, int],
    *,
    train: bool,
    saving: bool,
    projected: bool = True,
) -> Shapes:
    """Return the arrays of a forward pass.

    Args:
        cell: the name of the cell.
        hidden: H.
        sizes: T and B.
        train: whether there is a backward pass.
        saving: whether all that it reads is saved, not the states alone.
        projected: whether the input is projected ahead of the steps.
    """
    (steps, batch), facts = sizes, facts_of(cell)
    columns, products, _ = columns_of(cell)
    two_phases, two_states, saved = len(products) > 2, facts["states"] > 1, facts["saved"]
    shapes: Shapes = {}
    if projected:
        shapes["gx"] = (steps, batch, hidden, columns)
    if saving and saved:
        shapes["saved"] = (steps, batch, saved, hidden)
    if two_phases:
        shapes["emitted"] = (steps, batch, hidden) if saving else (batch, hidden)
        if not saving:
            shapes["saved_scratch"] = (batch, saved, hidden)
    if two_states:
        name, lead = ("cells", sizes) if train else ("state", (batch,))
        shapes[name] = (*lead, hidden)
    return shapes


def backward_shapes(
    cell: str,
    inputs: int,
    hidden: int,
    sizes: tuple[int, int],
    *,
    library: int,
    norms: bool = False,
    flow: bool = False,
    wanted: tuple[bool, bool] = (True, True),
) -> Shapes:
    """Return the arrays of a backward pass.

    Those of a product have its number at the end of their names.

    Args:
        cell: the name of the cell.
        inputs: I.
        hidden: H.
        sizes: T and B.
        library: the number of chunks for each of which the array library computes the products of
            the weights; 0: our own kernels compute them.
        norms: whether the norms of the states' gradients are bounded.
        flow: whether the norms of every step are asked for.
        wanted: whether the gradients of weight_ih and of weight_hh are.
    """
    (steps, batch), facts, parts = sizes, facts_of(cell), _core.gradient_parts(*sizes)
    _, products, shared = columns_of(cell)
    states, params = facts["states"], facts["params"]
    shapes: Shapes = {"dh": (batch, hidden), "restarts": (states, batch, hidden)}
    if states > 1:
        shapes["dc"] = (batch, hidden)
    if len(products) > 2:
        shapes["demitted"] = (batch, hidden)
    for q, columns in enumerate(products):
        depth = hidden if q else inputs
        if not (shared and q == 1):
            shapes[f"da{q}"] = (steps, batch, hidden, columns)
        shapes[f"sums{q}"] = (library or parts, depth, hidden, columns)
        shapes[f"bias_sums{q}"] = (parts, hidden, columns)
        if library and wanted[min(q, 1)]:
            shapes[f"operands{q}"] = (steps, batch, depth)
    if params:
        shapes["dparams"] = (steps, batch, params, hidden)
        shapes["param_sums"] = (parts, params, hidden)
    if norms:
        shapes["scales"] = (states, batch)
    if flow:
        shapes["squares"] = (states, batch, hidden)
    return shapes


def elements_of(shapes: Any) -> int:
    """Return the elements of arrays of some shapes."""
    return sum(math.prod(shape) for shape in shapes)
