"""The functions that a recurrent cell may have: their names and parameters, and what they cost.

A cell with its usual functions has kernels of its own. With others, a clip or coupled gates a
general form of the cell runs, which is given numbers of the whole call: its *scalars*.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import _check

Function = str | tuple[str | float, ...]  # "tanh", or a name with parameters: ("elu", 1.0)

# By name: the number of the function in csrc/cells/activation.h, and its parameters.
FUNCTIONS: dict[str, tuple[int, tuple[str, ...]]] = {
    "tanh": (0, ()),
    "sigmoid": (1, ()),
    "relu": (2, ()),
    "linear": (3, ()),
    "affine": (3, ("alpha", "beta")),
    "leaky_relu": (4, ("alpha",)),
    "thresholded_relu": (5, ("alpha",)),
    "scaled_tanh": (6, ("alpha", "beta")),
    "hard_sigmoid": (7, ("alpha", "beta")),
    "elu": (8, ("alpha",)),
    "softsign": (9, ()),
    "softplus": (10, ()),
    "exponential": (11, ()),
}

PLAIN = frozenset(name for name, (_, parameters) in FUNCTIONS.items() if not parameters)

SMALLEST = 2.0**-126  # the least normal number of float32


class Chosen(NamedTuple):
    """A cell, and the numbers of a call that it reads.

    Attributes:
        cell: its name.
        scalars: the numbers; () of a cell with its usual functions.
    """

    cell: str
    scalars: tuple[float, ...] = ()


def function(name: str, value: Any) -> Function:
    """Return a function as it is kept: its name, or a tuple of the name and the parameters."""
    if type(value) is str and value in PLAIN:  # the usual case of a small call
        return value
    named = isinstance(value, str)
    given = (value,) if named else value
    if not isinstance(given, (tuple, list)) or not given or not isinstance(given[0], str):
        wanted = 'the name of a function, or a tuple such as ("elu", 1.0)'
        raise TypeError(f"{name}: expected {wanted}, got {value!r}")
    kind = _check.choice(name, given[0], FUNCTIONS)
    parameters = FUNCTIONS[kind][1]
    if len(given) != 1 + len(parameters):
        wanted = repr(kind)
        if parameters:
            wanted = f"({', '.join((repr(kind), *parameters))})"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    numbers = [_check.number(f"{name}: {p}", v, "a number") for p, v in zip(parameters, given[1:])]
    for parameter, number in zip(parameters, numbers):
        if not math.isfinite(number):
            raise ValueError(f"{name}: expected a finite {parameter}, got {value!r}")
    return (kind, *numbers) if numbers else kind


def limits(f: Function) -> tuple[float, float] | None:
    """Return the least and the largest value that a function comes near, if it has both."""
    kind, *given = (f,) if isinstance(f, str) else f
    if kind == "scaled_tanh":
        return -abs(float(given[0])), abs(float(given[0]))
    both = {"tanh": -1.0, "softsign": -1.0, "sigmoid": 0.0, "hard_sigmoid": 0.0}
    return (both[str(kind)], 1.0) if kind in both else None


def bound(value: Any) -> float | None:
    """Return the bound of what functions are given, or None."""
    if value is None:
        return None
    wanted = "a number of at least 1.2e-38, or None"  # in float32 a smaller one would be none
    clip = _check.number("clip", value, wanted)
    if not SMALLEST <= clip < math.inf:
        raise ValueError(f"clip: expected {wanted}, got {value!r}")
    return clip


def _numbers(f: Function) -> tuple[float, float, float]:
    """Return the number of a function, alpha and beta."""
    kind, *given = (f,) if isinstance(f, str) else f
    if kind == "linear":
        given = [1.0, 0.0]
    alpha, beta = (*(float(v) for v in given), 0.0, 0.0)[:2]
    return float(FUNCTIONS[str(kind)][0]), alpha, beta


def check_scalars(cell: str, scalars: tuple[float, ...]) -> None:
    """Raise unless scalars are what `rnn_cell`, `gru_cell` and `lstm_cell` make for a cell."""
    functions = {"rnn": 1, "gru": 2, "lstm": 3}[cell.split("_")[0]]
    known = {float(number) for number, _ in FUNCTIONS.values()}
    if not all(s in known for s in scalars[: 3 * functions : 3]):
        raise ValueError(f"scalars: expected the numbers that pack makes, got {scalars!r}")


def rnn_cell(nonlinearity: Function, clip: float | None) -> Chosen:
    """Return the cell of an RNN."""
    if nonlinearity in ("tanh", "relu") and clip is None:
        return Chosen(f"rnn_{nonlinearity}")
    return Chosen("rnn_general", (*_numbers(nonlinearity), clip or 0.0))


def gru_cell(
    reset_after: bool, activation: Function, recurrent_activation: Function, clip: float | None
) -> Chosen:
    """Return the cell of a GRU."""
    cell = "gru" if reset_after else "gru_reset_before"
    if (activation, recurrent_activation, clip) == ("tanh", "sigmoid", None):
        return Chosen(cell)
    functions = (*_numbers(recurrent_activation), *_numbers(activation))
    return Chosen(f"{cell}_general", (*functions, clip or 0.0))


class LstmOptions(NamedTuple):
    """What an LSTM may have in place of its usual functions.

    Attributes:
        activation: of the candidate g.
        recurrent_activation: of the gates i f o.
        output_activation: of c', before it becomes h.
        clip: the bound of what the first two are given, or None.
        coupled_gates: whether f is 1 - i.
    """

    activation: Function = "tanh"
    recurrent_activation: Function = "sigmoid"
    output_activation: Function = "tanh"
    clip: float | None = None
    coupled_gates: bool = False

    @classmethod
    def checked(
        cls,
        activation: Any,
        recurrent_activation: Any,
        output_activation: Any,
        clip: Any,
        coupled_gates: Any,
    ) -> LstmOptions:
        """Return the options as they were given, checked."""
        inner = function("activation", activation)
        outer = inner
        if output_activation is not None:
            outer = function("output_activation", output_activation)
        gates = function("recurrent_activation", recurrent_activation)
        coupled = _check.flag("coupled_gates", coupled_gates)
        return cls(inner, gates, outer, bound(clip), coupled)

    @property
    def usual(self) -> bool:
        """Whether all of them are those of the plain cell."""
        return self == LstmOptions()

    def unusual(self) -> tuple[str, object, object]:
        """Return the name of the first option that is not usual, what it is then, and itself."""
        usual = LstmOptions()
        return next(
            (name, usual_one, own)
            for name, usual_one, own in zip(self._fields, usual, self)
            if own != usual_one
        )

    def scalars(self) -> tuple[float, ...]:
        """Return the numbers that the general form reads."""
        functions = (self.recurrent_activation, self.activation, self.output_activation)
        numbers = [n for f in functions for n in _numbers(f)]
        return (*numbers, self.clip or 0.0, float(self.coupled_gates))


def lstm_cell(options: LstmOptions, cell: str, beside: str = "") -> Chosen:
    """Return the cell of an LSTM.

    Args:
        options: its functions, clip and coupling.
        cell: the one with the usual functions.
        beside: what has chosen that one, if there is no general form of it.
    """
    if options.usual:
        return Chosen(cell)
    if beside:
        name, usual, got = options.unusual()
        raise ValueError(f"{name}: expected {usual!r} {beside}, got {got!r}; no cell has both")
    return Chosen("lstm_general", options.scalars())


def said(**given: Any) -> str:
    """Return the options that differ from their usual values, as a repr says them."""
    usual = {**LstmOptions()._asdict(), "nonlinearity": "tanh"}
    return "".join(f", {name}={value!r}" for name, value in given.items() if value != usual[name])
