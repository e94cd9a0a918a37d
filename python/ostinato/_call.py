"""The checked arguments of one forward pass, of a stack of layers or of one layer by itself."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ._check import Array
from ._options import Options
from ._ragged import Ragged, as_given

Copied = Literal["lengths", "resets", "mask", "restart_h", "restart_c"]


class Call(NamedTuple):
    """Checked arguments of one forward pass.

    Attributes:
        x: the inputs; flat rows of sequences of different lengths.
        h: the state before the first step, or None for zeros.
        c: the second state, or None.
        options: named arguments of the native call.
        single: whether x came without a batch axis.
        learned: whether h and c are the layer's own.
        ragged: what x came as, if its sequences have different lengths.
        listed: whether it came as a list.
        table: x holds the numbers of its rows; None: x holds the inputs themselves.
        packed: the weights of one layer by itself; None: those of the stack, which has them.
    """

    x: Array
    h: Array | None
    c: Array | None
    options: Options
    single: bool = False
    learned: bool = False
    ragged: Ragged | None = None
    listed: bool = False
    table: Array | None = None
    packed: Any = None

    @property
    def sizes(self) -> tuple[int, int]:
        """The first two axes: T and B where x is time-major or ragged."""
        if self.ragged is not None:
            return self.options["span"], len(self.ragged)
        return self.x.shape[0], self.x.shape[1]

    def shaped(self, rows: Array | None) -> Any:
        """Return an array of flat rows as x came."""
        return as_given(rows, self.ragged, self.listed)

    def copied(self, *names: Copied) -> Call:
        """Return the call with copies of some options, which the caller may reuse."""
        options = self.options.copy()
        for name in names:
            given = options[name]
            options[name] = None if given is None else given.copy()
        return self._replace(options=options)

    def with_own_states(self) -> Call:
        """Return the call with copies of the states, which the caller may reuse."""
        h, c = self.h, self.c
        if h is None and c is None:
            return self
        return self._replace(h=None if h is None else h.copy(), c=None if c is None else c.copy())
