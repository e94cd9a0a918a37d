"""The shapes of the working arrays of one layer and direction on a device.

What is allocated (`_launch`) and what `explain` counts (`_backend.bytes_of`) are the same shapes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from . import _core, _device
from ._cells import facts_of
from ._plan import chunks_of
from ._words import floats_of

Shapes = dict[str, tuple[int, ...]]  # by name; what is not needed is not there

# What a forward pass saves for its backward pass; "normed" is a list of arrays, by product.
TAPE = ("saved", "cells", "moments", "normed")
BY_STEP = ("gx", "normed_scratch0")  # what only the forward pass needs, for all steps


class DeviceFacts(NamedTuple):
    """What C++ says of a cell's kernels.

    Attributes:
        normed: by product of a step, that of the input first: whether columns of it are normed.
        norms: of a step, the one of what a phase emitted included.
        unit_rows: rows of the weights of one number a unit: gains, then parameters.
        projected: whether h is projected.
        emits: whether a phase hands something on to a later one, or to a projection.
        emitted_operand: whether a product multiplies that.
        streams: whether blocks that stream the weights run it.
        step_launches: launches of a step, forward and backward.
    """

    normed: list[bool]
    norms: int
    unit_rows: int
    projected: bool
    emits: bool
    emitted_operand: bool
    streams: bool
    step_launches: tuple[int, int]


@lru_cache
def device_facts(cell: str) -> DeviceFacts:
    """Return what C++ says of a cell's kernels."""
    return DeviceFacts(**_core.device_facts()[_device.number_of(cell)])


@lru_cache
def matrices_of(
    cell: str, inputs: int, hidden: int, output: int
) -> tuple[tuple[int, int, int], ...]:
    """Return depth, units and columns of each matrix: of the products, then of a projection."""
    return tuple(_core.matrix_shapes(_device.number_of(cell), inputs, hidden, output))


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
    own, two_states, saved = device_facts(cell), facts["states"] > 1, facts["saved"]
    shapes: Shapes = {}
    if projected:
        shapes["gx"] = (steps, batch, hidden, columns)
    if saving and saved:
        shapes["saved"] = (steps, batch, saved, hidden)
    if own.emits:
        shapes["emitted"] = (batch, hidden)
    if len(products) > 2 and not saving:
        shapes["saved_scratch"] = (batch, saved, hidden)
    for q, normed in enumerate(own.normed):
        if normed:
            name, lead = ("normed", sizes) if saving else ("normed_scratch", (batch,))
            shapes[f"{name}{q}"] = (*(lead if q else sizes), hidden, products[q])
    if own.norms:
        shapes["moments"] = (steps, batch, own.norms, 2)
    if two_states:
        name, lead = ("cells", sizes) if train else ("state", (batch,))
        shapes[name] = (*lead, hidden)
    return shapes


def backward_shapes(
    cell: str,
    inputs: int,
    hidden: int,
    output: int,
    sizes: tuple[int, int],
    *,
    library: int,
    norms: bool = False,
    flow: bool = False,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    words: int = 0,
    sliced: int = 0,
) -> Shapes:
    """Return the arrays of a backward pass.

    Those of a matrix have its number at the end of their names.

    Args:
        cell: the name of the cell.
        inputs: I.
        hidden: H.
        output: P, the width of h.
        sizes: T and B.
        library: the number of chunks for each of which the array library computes the products of
            the weights; 0: our own kernels compute them.
        norms: whether the norms of the states' gradients are bounded.
        flow: whether the norms of every step are asked for.
        wanted: whether the gradients of weight_ih, of weight_hh and of weight_hr are.
        words: words of 2 bytes of a number where the library multiplies such; 0: it does not.
        sliced: bytes of an operand where blocks share the product of a step; 0: they do not.
    """
    (steps, batch), facts, parts = sizes, facts_of(cell), _core.gradient_parts(*sizes)
    (_, products, shared), own = columns_of(cell), device_facts(cell)
    states, params = facts["states"], own.unit_rows
    widest = deepest = slices = 0
    both_states = (batch * (output + (states - 1) * hidden),)
    shapes: Shapes = {"dh": (batch, output), "restarts": both_states}
    if states > 1:
        shapes["dc"] = (batch, hidden)
    if own.emits:
        shapes["demitted"] = (batch, hidden)
    if own.emitted_operand:
        shapes["emitted"] = (steps, batch, hidden)
    for q, (depth, units, columns) in enumerate(matrices_of(cell, inputs, hidden, output)):
        if not columns:
            continue
        projection = q == len(products)
        if not (shared and q == 1):
            shapes[f"da{q}"] = (steps, batch, units, columns)
        if not projection and own.normed[q]:
            shapes[f"dproducts{q}"] = (steps, batch, units, columns)
        shapes[f"sums{q}"] = (library or parts, depth, units, columns)
        if not projection:
            shapes[f"bias_sums{q}"] = (parts, units, columns)
        if library and wanted[2 if projection else min(q, 1)]:
            shapes[f"operands{q}"] = (steps, batch, depth)
            deepest = max(deepest, depth)
        widest = max(widest, units * columns)
        if sliced and q:
            count = _core.step_slices(sliced, batch, depth, units * columns)
            slices = max(slices, count * batch * depth)
    if library and words:
        rows = batch * max(b - a for a, b in chunks_of(steps, batch, library))
        shapes["words_of_gradients"] = (floats_of(rows * widest, words > 1),)
        if deepest:
            shapes["words_of_operands"] = (floats_of(rows * deepest, words > 1),)
    if params:
        shapes["dparams"] = (steps, batch, params, hidden)
        shapes["param_sums"] = (parts, params, hidden)
    if slices:
        shapes["slices"] = (slices,)
    if norms:
        shapes["scales"] = (states, batch)
    if flow:
        shapes["squares"] = both_states
    return shapes


def tape_shapes(shapes: Shapes) -> list[tuple[int, ...]]:
    """Return those of the arrays of a forward pass that its backward pass reads."""
    return [shape for name, shape in shapes.items() if name.rstrip("0123456789") in TAPE]


def elements_of(shapes: Any) -> int:
    """Return the elements of arrays of some shapes."""
    return sum(math.prod(shape) for shape in shapes)
