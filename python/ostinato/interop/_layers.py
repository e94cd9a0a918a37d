"""Define layers that models of other libraries need: a last state alone, and a backward run."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged, as_given, refuse_nested, unwrapped
from .._recording import value_of
from ..nn import Model, Recurrent


class _Around(Model):
    """A model of one recurrent layer, with its state."""

    stateful = True
    takes_lengths = True

    def __init__(self, layer: Recurrent) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
        self.layer = layer

    @property
    def batch_first(self) -> bool:
        """Whether x is ``[B,T,I]`` in place of ``[T,B,I]``."""
        return bool(self.layer.batch_first)


class LastState(_Around):
    """Give the final state h of a recurrent layer in place of all outputs: ``y [B,D*H]``.

    It is what ``outputs="last"`` of a call gives, as a part of the model: both directions of the
    last layer, each after its own last step.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> rnn = ost.nn.LSTM(3, 5, bidirectional=True, batch_first=True, rng=0)
    >>> model = ost.nn.Sequential(ost.interop.LastState(rnn), ost.nn.Linear(10, 2, rng=1))
    >>> model(np.zeros((4, 7, 3), np.float32), lengths=[7, 5, 2, 1])[0].shape
    (4, 2)

    Args:
        layer: an RNN, LSTM or GRU.

    Raises:
        TypeError: another layer.
        ValueError: a layer that has an owner.
    """

    reduces_time = True

    def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
        """Return the final h of all directions, and the state.

        Args:
            x: the inputs of the layer.
            state: of the layer; None: its initial state.
            **times: ``lengths``, ``resets``, ``mask`` and ``masked`` of the layer.

        Returns:
            ``y [B,D*H], state``.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value.
        """
        return self.layer(x, state, **{**times, "outputs": "last"})


class Reversed(_Around):
    """Run a recurrent layer from the last step of each row to its first.

    The output of a step has seen that step and all later ones. The state is that after step 0.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> gru = ost.nn.GRU(3, 5, rng=0)
    >>> x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    >>> y, _ = ost.interop.Reversed(gru)(x)
    >>> bool((y == gru(x[::-1].copy())[0][::-1]).all())
    True

    Args:
        layer: an RNN, LSTM or GRU.

    Raises:
        TypeError: another layer.
        ValueError: a layer that has an owner.
    """

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        """Return the outputs of all steps, in the order of x, and the state.

        Args:
            x: the inputs of the layer: an array of 3 axes, a `Ragged` or a list of ``[n,I]``.
            state: of the layer; None: its initial state.
            lengths: of an array, ``[B]`` whole numbers of steps; None: all.

        Returns:
            ``y, state``.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value.
        """
        x, listed = unwrapped(x)
        if isinstance(x, Ragged):
            return self._of_sequences(x, state, lengths, listed)
        index = self._index(x, lengths)
        y, state = self.layer(x[index], state, lengths=lengths)
        return y[index], state

    def _of_sequences(self, x: Ragged, state: Any, lengths: Any, listed: bool) -> Any:
        """Return the outputs of sequences without padding, and the state."""
        refuse_nested(x)
        last = np.repeat(x.offsets[1:] - 1 + x.offsets[:-1], x.lengths)
        index = _device.like(last - np.arange(len(last)), value_of(x.rows))
        y, state = self.layer(x.like(x.rows[index]), state, lengths=lengths)
        return as_given(y.rows[index], x, listed), state

    def _index(self, x: Any, lengths: Any) -> Any:
        """Return an index that reverses the real steps of every row."""
        _check.array("x", value_of(x), 3)
        first = self.batch_first
        batch, steps = x.shape[:2] if first else x.shape[1::-1]
        ends = _check.lengths(lengths, steps, batch)
        ends = np.full(batch, steps) if ends is None else np.asarray(ends)
        return reverse_order(steps, ends, first)


def reverse_order(steps: int, lengths: Array, batch_first: bool) -> tuple[Array, Array]:
    """Return an index of an array that reverses the first ``lengths[b]`` steps of each row b."""
    t = np.arange(steps)[:, None]
    order = np.where(t < lengths, lengths - 1 - t, t)
    rows = np.broadcast_to(np.arange(len(lengths)), order.shape)
    return (rows.T, order.T) if batch_first else (order, rows)


readable(globals())
