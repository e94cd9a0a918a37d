"""What Python knows of each cell: the native code's figures, and the meaning of its gates."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from . import _check, _core
from ._check import Array


class Gates(NamedTuple):
    """The gates of a family of cells.

    Attributes:
        names: in the order of the rows of a weight, and of the tape; () for a cell without gates.
        keep: the gate that keeps the state, whose bias a long memory raises; None without one.
        write: the gate that writes to it, whose bias a long memory lowers; None without one.
    """

    names: tuple[str, ...]
    keep: str | None = None
    write: str | None = None


# By family, the first word of a cell's name; a cell whose gates are others has its own name here.
GATES = {
    "rnn": Gates(()),
    "lstm": Gates(("i", "f", "g", "o"), keep="f", write="i"),
    "gru": Gates(("r", "z", "n"), keep="z"),
}

# By family: the gates of its first cell.
FAMILIES: dict[str, int] = {}
for _name, _facts in _core.cells().items():
    FAMILIES.setdefault(_name.split("_")[0], _facts["gates"])

# By cell: weights of one number a unit, as (name, rows, whether they are flat).
UNIT_WEIGHTS = _core.unit_weights()


@cache
def facts_of(cell: str) -> dict[str, int]:
    """Return the numbers of gates, states, parameters of units and saved values of a cell."""
    known = _core.cells()
    return known[_check.choice("cell", cell, tuple(known))]


# What a kernel lacks, by its own words, in those of the layer that it runs.
_OF_A_LAYER = {"functions that a call chooses": "functions, clip or coupled gates of a layer's own"}


@cache
def drivers_of(cell: str) -> dict[str, str]:
    """Return what each driver of a GPU lacks for a cell, "" for nothing, in words of layers."""
    return {driver: _OF_A_LAYER.get(said, said) for driver, said in _core.drivers()[cell].items()}


@cache
def gates_of(cell: str) -> Gates:
    """Return the gates of a cell."""
    return GATES[cell if cell in GATES else cell.split("_")[0]]


def saved_gates(cell: str, tape: Any) -> dict[str, Array]:
    """Return the gates that a cell keeps for its backward pass, read-only."""
    out = {name: tape.saved(k) for k, name in enumerate(gates_of(cell).names)}
    for a in out.values():
        _check.read_only(a)
    return out
