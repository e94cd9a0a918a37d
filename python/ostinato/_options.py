"""The named arguments of the native forward pass."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy.typing as npt

Array = npt.NDArray[Any]


class Times(TypedDict):
    """In which steps the rows take part: what every forward pass is given.

    Attributes:
        lengths: ``[B]``, or None for all steps of every row.
        resets: ``[T,B]`` or flat, uint8: steps before which the state is that of a restart; None
            for none.
        mask: ``[T,B]`` or flat, uint8: steps that run; None for all.
        repeat: whether a step that is masked repeats the output before it, else it is zero.
    """

    lengths: Array | None
    resets: Array | None
    mask: Array | None
    repeat: bool


class Options(Times, total=False):
    """Named arguments of the native forward pass; those that are absent have their defaults.

    Attributes:
        restart_h: ``[L*D,P]``, h after a reset; None for zeros.
        restart_c: ``[L*D,H]``, c after a reset; None for zeros.
        starts: ``[B]``, the first row of each sequence among flat rows; None: x is not flat.
        span: the number of steps of flat rows.
        table: ``[V,I]``, whose rows x has the numbers of; None: x holds the inputs.
        states_only: whether the tape leaves out what the backward pass can make again.
        first_step: the number of the first step in the sequence that a segment belongs to.
        held: ``[B]`` uint8, rows that have an output to repeat from the step before a segment.
        restarted: ``[B]`` uint8, rows that were reset before a segment and have not run since.
        resets_after: ``[B]`` uint8, rows for which a piece begins behind a segment.
        order: ``[B]``, the order in which the kernels take the rows.
    """

    restart_h: Array | None
    restart_c: Array | None
    starts: Array | None
    span: int
    table: Array | None
    states_only: bool
    first_step: int
    held: Array | None
    restarted: Array | None
    resets_after: Array | None
    order: Array | None
