"""Define streams: a model that runs one step a call, and keeps its states in slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _check, _native
from .._annotations import readable
from .._check import Array
from .._recording import refuse_overridden
from ._chain import Chain
from ._walk import layers_of

if TYPE_CHECKING:
    from ._layer import Layer

_PLAIN = np.ndarray  # a step takes a microsecond, of which np.ndarray would be a part


class Stream:
    """Run the layers of a model one step a call, on arrays that stay.

    `Layer.stream` makes it. The numbers are those of the model on the whole sequence, bit for bit.
    A step of all slots allocates nothing. A stream runs one step at a time: make one for each
    thread. Layers that the native code does not have (`LayerNorm`, `ClockworkRNN`, a causal
    `Conv1d`, `Residual`, `Concat`, GELU) take steps in NumPy between native ones, which allocate,
    and agree to rounding.

    A stream holds the weights as they were when it was made. Once the model has changed (a
    parameter, a precision, an `input_scale`, or the layer became part of a model), a step or a
    reset is an error: `refresh` takes the new weights and keeps the states.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(ost.nn.GRU(3, 5, rng=0), ost.nn.Linear(5, 2, rng=0))
    >>> stream = model.stream(batch=4)
    >>> y = stream.step(np.ones((4, 3), np.float32))  # all four slots
    >>> y = stream.step(np.ones((2, 3), np.float32), slots=[3, 0])  # two of them
    >>> stream.reset([1])  # slot 1 starts from its initial state
    >>> y.shape
    (2, 2)

    Args:
        model: a layer or a model, on the CPU.
        batch: B, the number of slots.

    Raises:
        TypeError: a model that needs more than one step at a time; batch is no whole number.
        ValueError: a model that is not on the CPU; batch is less than 1.
    """

    def __init__(self, model: Layer, batch: int) -> None:
        self.batch = _check.positive("batch", batch)
        self._model = model
        self._take(*self._made())
        self.reset()

    def _made(self) -> tuple[Any, Any, tuple[Any, int]]:
        """Return a native stream of the model, its states, and a token of the model's version."""
        model = self._model
        if model.device != "cpu":
            raise ValueError(
                f'model: expected one on the CPU, got one on {model.device}; use model.to("cpu")'
            )
        for layer in layers_of(model):
            refuse_overridden(layer, "_join_stream")
        made_of = model._block, model._block.changes  # before the weights are read
        make = _native.backend_for(model._block.values).Stream
        chain = Chain(make, self.batch, model.dtype)
        states = model._join_stream(chain)
        native = chain.alone()
        if native.y.size == 0:
            raise TypeError(f"stream: expected a model with something to compute, got {model!r}")
        return native, states, made_of

    def _take(self, native: Any, states: Any, made_of: tuple[Any, int]) -> None:
        self._native, self._states = native, states
        self._block, self._changes = made_of
        self._step = native.step
        self._x: Array = native.x
        self._y: Array = native.y

    def refresh(self) -> None:
        """Take the weights and settings that the model has now, and keep the states.

        What `x` and `y` hold is kept as well.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> gru = ost.nn.GRU(3, 5, rng=0)
        >>> stream = gru.stream()
        >>> y = stream.step(np.ones((1, 3), np.float32))
        >>> with gru.write() as p:
        ...     p["bias_ih_l0"][...] += 0.1
        >>> stream.refresh()  # without it, the next step is an error
        >>> y = stream.step(np.ones((1, 3), np.float32))

        `x`, `y`, `h` and `c` are new arrays then: the old x, h and c become read-only, and the old
        y NaN, so that a program that keeps on using them notices.

        Raises:
            ValueError: the model is no longer on the CPU. The stream is as it was.
        """
        native, states, made_of = self._made()
        _assign("state", self._model._stream_state(states), self._model._stream_state(self._states))
        native.x[...], native.y[...] = self._x, self._y
        _retire(self._x)
        _retire(self._model._stream_state(self._states))
        self._y[...] = np.nan
        self._take(native, states, made_of)

    def _refuse_changed(self) -> None:
        raise RuntimeError(
            "stream: expected the model that it was made of, got one whose parameters or settings "
            "have changed since; "
            "call stream.refresh(), which keeps the states, or make a new stream"
        )

    @property
    def x(self) -> Array:
        """The inputs of the next step: fill it, then call `step`.

        ``[B,I]``, or ``[B]`` whole numbers where the first layer is an Embedding.
        """
        return self._x

    @property
    def y(self) -> Array:
        """The outputs ``[B,O]``, which every step overwrites."""
        return self._y

    def step(
        self,
        x: Array | None = None,
        slots: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    ) -> Array:
        """Run one step of all slots, or of some.

        Args:
            x: ``[B,I]``, or ``[len(slots),I]``; None: what `x` holds.
            slots: the slots that the rows of x belong to, each at most once; the others stay as
                they are. None: all, in order.

        Returns:
            `y`, or its first ``len(slots)`` rows, which the next step overwrites.

        Raises:
            TypeError: an x of another type or dtype, or slots that are no whole numbers.
            ValueError: a slot out of range or given twice, or an x of another shape or with masked
                elements. No state has changed then.
            RuntimeError: the model has changed since the stream was made: see `refresh`.
        """
        if self._block.changes != self._changes:
            self._refuse_changed()
        if type(x) is not _PLAIN and x is not None:
            x = _check.unmasked("x", x)
        y: Array = self._step(x) if slots is None else self._step(x, self._slots(slots))
        return y

    def reset(self, slots: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None) -> None:
        """Put slots back to their initial state, the learned one or zeros.

        Args:
            slots: the slots; None: all.

        Raises:
            ValueError: a slot out of range.
            RuntimeError: the model has changed since the stream was made: see `refresh`.
        """
        if self._block.changes != self._changes:
            self._refuse_changed()
        rows: Any = slice(None) if slots is None else self._slots(slots)
        if slots is not None and ((rows < 0) | (rows >= self.batch)).any():
            raise ValueError(
                f"slots: expected numbers from 0 to {self.batch - 1}, got {rows.tolist()}"
            )
        self._model._reset_stream(self._states, rows)

    @property
    def state(self) -> Any:
        """A copy of the states, shaped as the model takes and gives them.

        It may be assigned, which continues from there.
        """
        return _copied(self._model._stream_state(self._states))

    @state.setter
    def state(self, value: Any) -> None:
        _assign("state", self._model._stream_state(self._states), value)

    @property
    def h(self) -> Array:
        """``h [L,B,H]`` of a recurrent layer: the array that the steps work on."""
        h: Array = self._layer_state()[0]
        return h

    @property
    def c(self) -> Array | None:
        """``c [L,B,H]`` of an LSTM: the array that the steps work on; None for other layers."""
        c: Array | None = self._layer_state()[1]
        return c

    def _layer_state(self) -> Any:
        if not isinstance(self._states, tuple):
            raise AttributeError(
                "stream: expected the stream of a recurrent layer for h and c; a model has state"
            )
        return self._states

    def _slots(self, slots: Any) -> npt.NDArray[np.int64]:
        a = np.asarray(slots)
        if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
            raise TypeError(f"slots: expected a sequence of whole numbers, got {slots!r}")
        return np.ascontiguousarray(a, dtype=np.int64)


def _copied(states: Any) -> Any:
    if states is None:
        return None
    if _check.is_array(states):
        return states.copy()
    return type(states)(_copied(s) for s in states)


def _retire(states: Any) -> None:
    """Make arrays that no step works on any more read-only."""
    if isinstance(states, np.ndarray):
        states.flags.writeable = False
    elif states is not None:
        for s in states:
            _retire(s)


def _assign(name: str, into: Any, value: Any, check_only: bool = False) -> None:
    """Copy a state into the arrays of a stream: all of it or, on an error, nothing."""
    if not check_only:
        _assign(name, into, value, check_only=True)
    if into is None:
        if value is not None:
            raise TypeError(f"{name}: expected None, got {type(value).__name__}")
    elif isinstance(into, np.ndarray):
        a = _check.array(name, value)
        _check.of_dtype(name, a, into.dtype)
        if a.shape != into.shape:
            raise ValueError(f"{name}: expected shape {into.shape}, got {a.shape}")
        if not check_only:
            into[...] = a
    else:
        if not isinstance(value, (tuple, list)) or len(value) != len(into):
            raise TypeError(f"{name}: expected a tuple of {len(into)}, got {type(value).__name__}")
        for k, (i, v) in enumerate(zip(into, value)):
            _assign(f"{name}[{k}]", i, v, check_only)


readable(globals())
