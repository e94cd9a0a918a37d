"""Write with several models at once, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array
from ._hypothesis import log_softmax
from ._steps import Select, _Steps


class Ensemble:
    """Average the probabilities that several models give the next label.

    It is a step of `greedy`, `beam_search` and `sample`, as each of the models is. Networks that
    differ in their seed alone make different mistakes; their mean is most often better than any
    of them, in as many times the time.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> def always(label):
    ...     return lambda labels, state: (9.0 * np.eye(3)[[label] * len(labels)], state)
    >>> both = ost.decoding.Ensemble([always(1), always(1), always(2)])
    >>> [h.labels.tolist() for h in ost.decoding.greedy(both, [0], max_steps=2)]
    [[1, 1]]

    Args:
        steps: what `greedy` takes as step, at least one: models of the next label, their streams,
            ``decoder.steps(memory, state)``, or functions. All have the same labels.
        weights: of the models, at least 0 and some above; None: all the same.
        select: one function for each model, see `greedy`; None: as `greedy` finds it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: no step, or weights or functions that are not one for each.
    """

    def __init__(
        self,
        steps: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        select: Sequence[Select | None] | None = None,
    ) -> None:
        if not isinstance(steps, (list, tuple)):
            raise TypeError(
                f"steps: expected a list of models or functions, got {type(steps).__name__}"
            )
        if not steps:
            raise ValueError("steps: expected at least one, got none")
        given = (
            [None] * len(steps)
            if select is None
            else list(_check.each("select", select, "functions, one for each step"))
        )
        if len(given) != len(steps):
            raise ValueError(
                f"select: expected {len(steps)} functions, one for each step, got {len(given)}"
            )
        self._steps = [_Steps(step, one, None) for step, one in zip(steps, given)]
        self._log_weights = _logarithms(weights, len(steps))

    def __call__(self, labels: Array, state: Any) -> tuple[Array, Any]:
        """Return the logarithm of the mean probability of each next label, and the states.

        Args:
            labels: ``[N]``, the last label of each row.
            state: None at the start, or what the last call returned.

        Returns:
            float64 ``[N,V]``, and a tuple with the state of each model.

        Raises:
            TypeError: a state that is none of this ensemble.
            ValueError: models of different numbers of labels, or logits of NaN.
        """
        states = (None,) * len(self._steps) if state is None else state
        if not isinstance(states, tuple) or len(states) != len(self._steps):
            raise TypeError(
                f"state: expected None or a tuple of {len(self._steps)} states, one for each "
                f"model, got {type(state).__name__}"
            )
        found = [step(labels, one) for step, one in zip(self._steps, states)]
        sizes = {y.shape[1] for y, _ in found}
        if len(sizes) > 1:
            raise ValueError(
                f"steps: expected models of the same labels, got {sorted(sizes)} of them"
            )
        with np.errstate(over="ignore"):  # what no float holds is probability 0
            terms = [log_softmax(y) + weight for (y, _), weight in zip(found, self._log_weights)]
        mean: Array = np.logaddexp.reduce(terms, axis=0)
        return mean, tuple(after for _, after in found)

    def select(self, state: Any, rows: Array) -> Any:
        """Return the states of some rows, which may be repeated.

        Args:
            state: what a call returned.
            rows: ``[M]``, their numbers.

        Returns:
            A state of M rows.
        """
        return tuple(step.select(one, rows) for step, one in zip(self._steps, state))


def _logarithms(weights: Sequence[float] | None, count: int) -> Array:
    """Return the logarithms of the weights, whose sum is 1."""
    values = (
        [1.0] * count
        if weights is None
        else list(_check.each("weights", weights, "numbers, one for each step"))
    )
    if len(values) != count:
        raise ValueError(f"weights: expected {count} numbers, one for each step, got {len(values)}")
    a = np.array([_check.finite("weights", value) for value in values])
    if not a.any():
        raise ValueError(f"weights: expected a number above 0 among them, got {values}")
    with np.errstate(divide="ignore"):  # a model of weight 0 does not count
        out: Array = np.log(a / a.sum())
    return out


readable(globals())
