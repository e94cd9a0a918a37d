"""Define models that are made of other layers: Residual, Concat, TimeDistributed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged, as_given, refuse_nested, rows_of, unwrapped
from .._recording import value_of
from ._layer import Layer, acts_on_rows
from ._model import Model, takes
from ._sequential import takes_times
from ._walk import layout_of


def real_steps(x: Any, lengths: object, mask: Any, batch_first: bool) -> Array | None:
    """Return which steps of ``x [T,B,...]`` count, as ``[T,B]``; ``[B,T]`` if batch_first.

    None stands for all.
    """
    if lengths is None and mask is None:
        return None
    batch, steps = x.shape[:2] if batch_first else x.shape[1::-1]
    flags = _check.flags("mask", mask, steps, batch, batch_first)
    on = _check.taking_part(steps, batch, _check.lengths(lengths, steps, batch), flags)
    placed: Array = _device.like(np.ascontiguousarray(on.T) if batch_first else on, value_of(x))
    return placed


def without_padding(x: Any, on: Array | None) -> Any:
    """Return x with zeros in the steps that do not count, which may hold anything."""
    if on is None:
        return x
    zero = x.dtype.type(0)
    return np.where(on.reshape(on.shape + (1,) * (x.ndim - 2)), x, zero)


def padded_of(x: Ragged) -> Any:
    """Return sequences as ``[T,B,...]``, with zeros past the ends; recorded within `vjp`."""
    refuse_nested(x)
    rows = x.rows
    index = np.full((int(x.lengths.max(initial=0)), len(x)), len(rows), np.int64)
    index[x._places()] = np.arange(len(rows))
    more = np.zeros_like(value_of(rows), shape=(1, *rows.shape[1:]))
    return np.concatenate([rows, more])[_device.like(index, value_of(rows))]


def _times_for(layer: Layer, times: dict[str, Any]) -> dict[str, Any]:
    """Return the options of time that a layer takes."""
    if not takes_times(layer):
        return {}
    if layer._has_recurrent():
        return times
    return {n: times[n] for n in ("lengths", "mask") if n in times}


def _require_layers(layers: tuple[Any, ...]) -> None:
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"layers: expected layers, got {type(layer).__name__}")


def _stepped(chain: Any, rows: Array, slots: Any) -> Array:
    """Run a step of a chain within another one."""
    y: Array = chain.step(rows, None if isinstance(slots, slice) else slots)
    return y


def _refuse_state(kind: str, state: Any) -> None:
    if state is not None:
        raise TypeError(f"state: expected None, since no layer of {kind} has a state, got one")


def _short(layer: Layer) -> str:
    """Return what errors call a layer: its class alone where a repr has several lines."""
    text = repr(layer)
    return text if len(text) <= _check.LONGEST and "\n" not in text else type(layer).__name__


class _Wrapper(Model):
    """A model of other layers, which has a state if one of them has."""

    def _take_after(self, layers: tuple[Layer, ...]) -> None:
        _require_layers(layers)
        self.stateful = any(layer.stateful for layer in layers)
        self.takes_lengths = any(map(takes_times, layers))
        layouts = {layout_of(layer) for layer in layers} - {None}
        if len(layouts) > 1:
            raise ValueError("layers: expected one batch_first for all, got both")
        self._layout = next(iter(layouts), None)

    def _ignores_padding(self, of_outputs: bool = False) -> bool:
        return self.takes_lengths and self._layout is not None and not of_outputs

    def _cleaned(self, x: Any, times: dict[str, Any]) -> Any:
        """Return x with zeros in steps that do not count."""
        if isinstance(x, Ragged) or self._layout is None or getattr(x, "ndim", 0) < 3:
            return x
        lengths, mask = times.get("lengths"), times.get("mask")
        return without_padding(x, real_steps(x, lengths, mask, self._layout))


class Residual(_Wrapper):
    """Add the outputs of a layer to its inputs: ``y = x + layer(x)``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> block = ost.nn.Residual(ost.nn.GRU(4, 4, rng=0))
    >>> y, state = block(np.ones((5, 2, 4), np.float32))
    >>> y.shape
    (5, 2, 4)

    Args:
        layer: with outputs of the shape of its inputs. If it has a state, so has the block.

    Raises:
        TypeError: layer is no layer.
        ValueError: a layer that has an owner.

    Source: He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition".
    """

    def __init__(self, layer: Layer) -> None:
        self._take_after((layer,))
        self.layer = layer

    def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
        """Return ``x + layer(x)``, with the state if the layer has one.

        Args:
            x: the inputs: an array, or sequences as a `Ragged` or a list of ``[n,D]``.
            state: of the layer, if it has one; None: its initial state.
            **times: options of the layer, such as ``lengths``.

        Returns:
            y, or ``(y, state)`` for a layer with a state.

        Raises:
            TypeError: a state for a layer without one, or an argument of the wrong type.
            ValueError: outputs of another shape than the inputs.
        """
        x, listed = unwrapped(x)
        if type(x) is not np.ndarray and not isinstance(x, Ragged):
            _check.array("x", value_of(x))
        x = self._cleaned(x, times)
        if self.layer.stateful:
            y, state = self.layer(x, state, **times)
        else:
            _refuse_state("Residual", state)
            by_rows = acts_on_rows(self.layer, x)
            y = x.like(self.layer(x.rows)) if by_rows else self.layer(x, **times)
        own = x if isinstance(x, Ragged) else None
        a, b = (v.rows if isinstance(v, Ragged) else v for v in (x, y))
        got = getattr(b, "shape", type(b).__name__)
        if a.shape != got:
            raise ValueError(
                f"layer: expected outputs of the shape of the inputs {a.shape}, got {got}"
            )
        y = as_given(a + b, own, listed)
        return (y, state) if self.stateful else y

    def _join_stream(self, native: Any) -> Any:
        inner = native.branch()
        states = self.layer._join_stream(inner)
        width = inner.y.shape[1] if inner.y.ndim == 2 else None  # that of any inputs
        native.add_step(lambda rows, slots: rows + _stepped(inner, rows, slots), width)
        return states

    def _reset_stream(self, states: Any, slots: Any) -> None:
        self.layer._reset_stream(states, slots)

    def _stream_state(self, states: Any) -> Any:
        return self.layer._stream_state(states)

    def _has_recurrent(self) -> bool:
        return self.layer._has_recurrent()


class Concat(_Wrapper):
    """Run layers on the same inputs, and join their outputs along the last axis.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> both = ost.nn.Concat(ost.nn.Linear(4, 3, rng=0), ost.nn.GRU(4, 5, rng=1))
    >>> y, state = both(np.ones((6, 2, 4), np.float32))
    >>> y.shape, state[0]
    ((6, 2, 8), None)

    Layers that give one output a sequence are joined as well, such as the mean and the maximum of
    two `Pool`.

    Args:
        *layers: with outputs that differ in the last axis alone. If one has a state the model has
            one: a tuple with one entry a layer, None for those without.

    Raises:
        TypeError: something that is no layer.
        ValueError: no layer, layers of two layouts, layers that give one output a sequence beside
            others, or a layer that has an owner.
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("layers: expected at least one, got none")
        self._take_after(layers)
        if len({layer.reduces_time for layer in layers}) > 1:
            raise ValueError(
                "layers: expected outputs of every step, or one a sequence, of all layers, got both"
            )
        self.layers = list(layers)

    def _times_after(self, times: dict[str, Any]) -> dict[str, Any]:
        """Return the options of time of the outputs, which are as many in all layers."""
        first = self.layers[0]._times_after(times)
        for layer in self.layers[1:]:
            after = layer._times_after(times)
            if after is first:  # most layers have an output for every step
                continue
            a, b = first.get("lengths"), after.get("lengths")
            if a is not b and not np.array_equal(_device.host(a), _device.host(b)):
                raise ValueError(
                    "lengths: expected layers of a Concat whose outputs have the same lengths, got "
                    f"{_check.quoted(a)} and {_check.quoted(b)}"
                )
        return first

    def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
        """Return the outputs of all layers, joined.

        Args:
            x: the inputs: an array, or sequences as a `Ragged` or a list of ``[n,D]``.
            state: a tuple with one entry a layer; None: initial states.
            **times: options such as ``lengths``, which go to the layers that take them.

        Returns:
            y, or ``(y, state)`` if a layer has a state.

        Raises:
            TypeError: a state where no layer has one, or an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, or outputs that cannot be joined.
        """
        x, listed = unwrapped(x)
        x = self._cleaned(x, times)
        if not self.stateful:
            _refuse_state("Concat", state)
        states = (None,) * len(self.layers) if state is None else state
        listed_states = isinstance(states, (tuple, list))
        if not listed_states or len(states) != len(self.layers):
            raise TypeError(
                f"state: expected a tuple of {len(self.layers)}, one entry a layer, got "
                f"{len(states) if listed_states else type(states).__name__}"
            )
        ys, new = [], []
        for layer, s in zip(self.layers, states):
            own = _times_for(layer, times)
            if layer.stateful:
                y, s = layer(x, s, **own)
            elif acts_on_rows(layer, x):
                y = layer(x.rows)
            else:
                y = layer(x, **own)
            ys.append(y)
            new.append(s)
        y = self._together(ys, x, listed)
        return (y, tuple(new)) if self.stateful else y

    def _together(self, ys: list[Any], x: Any, listed: bool) -> Any:
        """Return the outputs of all layers joined, in the form that x came in."""
        rows = [y.rows if isinstance(y, Ragged) else y for y in ys]
        cuts = [y for y in ys if isinstance(y, Ragged)]
        own = None
        if isinstance(x, Ragged) and not self.reduces_time:
            own = x  # its form, which may be that of trees
            if not all(np.array_equal(y.offsets, x.offsets) for y in cuts):
                own = cuts[0]  # such as those of convolutions with a stride
                alike = all(np.array_equal(y.offsets, own.offsets) for y in cuts)
                if not alike or len(cuts) < len(ys):
                    raise ValueError(self._apart(rows))
        try:
            joined = np.concatenate(rows, axis=-1)
        except ValueError:
            raise ValueError(self._apart(rows)) from None
        return as_given(joined, own, listed)

    def _apart(self, rows: list[Any]) -> str:
        """Return the message for outputs that cannot be joined."""
        shapes = [f"{np.shape(value_of(a))} of {_short(one)}" for a, one in zip(rows, self.layers)]
        return (
            f"layers: expected outputs that differ in the last axis alone, got {', '.join(shapes)}"
        )

    def _join_stream(self, native: Any) -> Any:
        branches = [native.branch() for _ in self.layers]
        states = [layer._join_stream(b) for layer, b in zip(self.layers, branches)]
        if any(b.y.size == 0 for b in branches):
            raise TypeError("stream: expected layers with something to compute in a Concat")

        def step(rows: Array, slots: Any) -> Array:
            return np.concatenate([_stepped(b, rows, slots) for b in branches], axis=1)

        if branches[0].x.ndim < 2:
            raise TypeError(
                "stream: expected a Concat of layers that read numbers, got one of indices; put "
                "an Embedding before it"
            )
        width = branches[0].x.shape[1]
        native.add_step(step, width, sum(b.y.shape[1] for b in branches))
        return states

    def _reset_stream(self, states: Any, slots: Any) -> None:
        for layer, s in zip(self.layers, states):
            layer._reset_stream(s, slots)

    def _stream_state(self, states: Any) -> Any:
        return tuple(layer._stream_state(s) for layer, s in zip(self.layers, states))

    def _has_recurrent(self) -> bool:
        return any(layer._has_recurrent() for layer in self.layers)


class TimeDistributed(Model):
    """Run a layer on every step by itself, each of which may be a sequence of its own.

    With ``x [T,B,N,...]`` the layer gets ``[T*B,N,...]``: words as sequences of N characters, say,
    for a `Conv1d`, a recurrent layer or a `Pool` with ``batch_first=True``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> words = ost.nn.TimeDistributed(
    ...     ost.nn.Sequential(
    ...         ost.nn.Embedding(30, 4, rng=0),
    ...         ost.nn.Conv1d(4, 8, 3, batch_first=True, rng=0),
    ...         ost.nn.Pool("max", batch_first=True),
    ...     )
    ... )
    >>> words(np.ones((5, 2, 7), np.int64)).shape  # 5 words of 7 characters, twice
    (5, 2, 8)

    Args:
        layer: what is run; the state of one that has a state is dropped.

    Raises:
        TypeError: layer is no layer.
        ValueError: a layer that reads ``[T,B,...]`` and would take the steps for time.
    """

    _within_steps = True

    def __init__(self, layer: Layer) -> None:
        _require_layers((layer,))
        if layout_of(layer) is False:
            raise ValueError(
                f"layer: expected batch_first=True within TimeDistributed, got False in {layer!r}"
            )
        self.layer = layer

    @property
    def reduces_time(self) -> bool:
        """False: there is an output for every step, even if the layer pools what is in it."""
        return False

    def _ignores_padding(self, of_outputs: bool = False) -> bool:
        return False  # it does not know which axis is time

    def __call__(
        self, x: Any, *, lengths: Any = None, mask: Any = None, inner_lengths: Any = None
    ) -> Any:
        """Return the outputs of every step.

        Args:
            x: ``[T,B,...]`` or ``[B,T,...]``, or sequences of steps as a `Ragged` or a list of
                ``[n,...]``.
            lengths: taken and not needed: every step is by itself.
            mask: taken and not needed.
            inner_lengths: whole numbers ``[T,B]``, laid out as x: the lengths of the sequences that
                the steps are, for a layer that takes lengths. Of sequences of steps they are
                ``[N]``, or a `Ragged` or a list cut as x. None: all of them are whole.

        Returns:
            The outputs, laid out as x.

        Raises:
            TypeError: an argument of the wrong type, or inner_lengths for a layer that takes no
                lengths.
            ValueError: an argument of the wrong shape or value, or a layer that does not give an
                output for every step.
        """
        x, listed = unwrapped(x)
        sequences = x if isinstance(x, Ragged) else None
        if sequences is not None:
            refuse_nested(sequences)
        a = x if sequences is None else sequences.rows
        shape = _check.array("x", value_of(a)).shape
        lead = shape[: 1 if sequences is not None else 2]
        if sequences is None and len(shape) < 2:
            raise ValueError(f"x: expected shape (T, B, ...) or (B, T, ...), got {shape}")
        count = int(np.prod(lead, dtype=np.int64))
        options: dict[str, Any] = {}
        if inner_lengths is not None:
            options["lengths"] = self._inner(inner_lengths, sequences, shape, lead)
        y = self.layer(a.reshape(count, *shape[len(lead) :]), **options)
        y = y[0] if self.layer.stateful else y
        got = getattr(y, "shape", type(y).__name__)
        if not isinstance(got, tuple) or got[:1] != (count,):
            raise ValueError(
                f"layer: expected an output for each of {count} steps, got {got} of "
                f"{_short(self.layer)}"
            )
        return as_given(y.reshape(*lead, *got[1:]), sequences, listed)

    def _inner(
        self, given: Any, sequences: Ragged | None, shape: tuple[int, ...], lead: tuple[int, ...]
    ) -> Array:
        """Return the lengths of the sequences that the steps are, one after the other."""
        layer = self.layer
        own = isinstance(layer, _Wrapper)  # takes any option, and gives it to its layers
        if not layer.takes_lengths and (own or not takes(type(layer), "lengths")):
            raise TypeError(
                f"inner_lengths: expected None, since {_short(layer)} takes no lengths, got "
                f"{type(given).__name__}"
            )
        if sequences is not None:
            given, _ = unwrapped(given, "inner_lengths")
            if isinstance(given, Ragged):
                given = rows_of("inner_lengths", given, sequences)
        inner = _check.plain("inner_lengths", given, f"whole numbers of shape {lead}")
        if inner.size and inner.dtype.kind not in "iu":
            raise TypeError(f"inner_lengths: expected an integer dtype, got {inner.dtype}")
        if inner.shape != lead:
            raise ValueError(f"inner_lengths: expected shape {lead}, got {inner.shape}")
        steps = shape[len(lead)] if len(shape) > len(lead) else None
        bad = inner[(inner < 0) | (inner > steps)] if steps is not None else inner[:0]
        if bad.size:
            raise ValueError(f"inner_lengths: expected values from 0 to {steps}, got {bad.flat[0]}")
        return inner.reshape(-1)


readable(globals())
