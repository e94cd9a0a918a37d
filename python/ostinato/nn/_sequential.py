"""Define Sequential: layers in a row, with one block of parameters and one state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Seed
from .._ragged import Ragged, as_given, rows_like, unwrapped
from ._block import Block, Views
from ._layer import Layer, Pullback, acts_on_rows, block_of
from ._lookup import lookup_of, table_pullback
from ._outputs import OUTPUTS
from ._table import Lookup
from ._walk import layout_of, layouts_of

if TYPE_CHECKING:
    from .. import nn


class Sequential(Layer):
    """Run layers one after the other, as one model with one block of parameters.

    Parameters are named by position, ``"1.weight_ih_l0"``, or by the layer's name,
    ``"rnn.weight_ih_l0"``. A call always returns ``(y, state)``; the state is a tuple with one
    entry a layer, None for those without one, and can be given back to continue where the last call
    ended. (A `Conv1d` or an `Attention` has none, and reads the steps of one call alone.)

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(ost.nn.Embedding(10, 4), ost.nn.GRU(4, 8), ost.nn.Linear(8, 10))
    >>> y, state = model(np.array([[1, 2], [3, 4], [5, 6]]))
    >>> y, state = model(np.array([[7, 8]]), state)
    >>> y.shape, [s is None for s in state]
    ((1, 2, 10), [True, False, True])
    >>> named = ost.nn.Sequential(rnn=ost.nn.GRU(4, 8), head=ost.nn.Linear(8, 10))
    >>> list(named.parameters())[-1], named["head"]
    ('head.bias', Linear(8, 10))

    Args:
        *layers: layers of one dtype and one layout (batch_first). The model becomes their owner; a
            layer has one owner only.
        **named: further layers, in this order, with names in place of positions.

    Raises:
        TypeError: something that is no layer, or layers of two dtypes.
        ValueError: no layer, layers of two layouts, or a layer that has an owner.
    """

    stateful = True
    takes_lengths = True
    _layer_attributes = frozenset({"layers"})

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        self._names = (*map(str, range(len(layers))), *named)
        layers = (*layers, *named.values())
        if not layers:
            raise ValueError("layers: expected at least one, got none")
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: expected layers, got {type(layer).__name__}")
            if layer.dtype != layers[0].dtype:
                raise TypeError(
                    f"layers: expected one dtype, got {layers[0].dtype} and {layer.dtype}"
                )
            if layer._owner is not None or sum(layer is other for other in layers) > 1:
                raise ValueError(
                    f"layers: expected layers without an owner, got a {type(layer).__name__} that "
                    "a model owns already; "
                    "use copy.deepcopy for one of its own"
                )
        _refuse_mixed_layouts(layers)
        super().__init__(dtype=layers[0].dtype)
        self.layers = tuple(layers)
        self._place(block_of(dict(zip(self._names, layers)), {}, self._dtype), "")

    def _place(self, block: Block, prefix: str) -> None:
        super()._place(block, prefix)
        for name, layer in zip(self._names, self.layers):
            layer._owner = self
            layer._place(block, f"{prefix}{name}.")

    @property
    def reduces_time(self) -> bool:
        """Whether the outputs are one a sequence, because a layer pools over the steps."""
        return any(layer.reduces_time for layer in self.layers)

    def _times_after(self, times: dict[str, Any]) -> dict[str, Any]:
        for layer in self.layers:
            times = layer._times_after(times)
        return times

    def _children(self) -> dict[str, Layer]:
        """Return the layers by their names."""
        return dict(zip(self._names, self.layers))

    def _check_device(self, device: _device.Device | None) -> None:
        for layer in self.layers:
            layer._check_device(device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = tuple(
            map(str, range(len(state["layers"])))
        )  # of what was pickled before there were names
        super().__setstate__({"_names": names, **state})
        for layer in self.layers:
            layer._owner = self

    def __getitem__(self, index: int | str) -> Layer:
        """Return a layer by its position or by its name."""
        if not isinstance(index, str):
            return self.layers[index]
        if index not in self._names:
            raise KeyError(f"index: expected one of {', '.join(self._names)}, got {index!r}")
        return self.layers[self._names.index(index)]

    def replaced(self, index: int | str, layer: Layer) -> Sequential:
        """Return a copy of the model with another layer in place of one, such as a new head.

        The other layers keep their parameters, and what is frozen of them stays so. The layers of
        this model are as they were. (Those of a `Model` are attributes: ``model.head = ...``.)

        >>> import ostinato as ost
        >>> model = ost.nn.Sequential(rnn=ost.nn.GRU(3, 5), head=ost.nn.Linear(5, 2))
        >>> model.freeze("rnn.*")
        >>> other = model.replaced("head", ost.nn.Linear(5, 7))
        >>> other["head"], other.count_parameters(trainable_only=True)
        (Linear(5, 7), 42)

        Args:
            index: the layer's position or name.
            layer: the layer that takes its place and name, without an owner.

        Returns:
            The new model.

        Raises:
            IndexError: there is no such position.
            KeyError: there is no such name.
            TypeError: something that is no layer, or a layer of another dtype.
            ValueError: a layer that has an owner, or one of another layout.
        """
        old = self[index]
        layers = [layer if one is old else copy.deepcopy(one) for one in self.layers]
        places = [name == str(k) for k, name in enumerate(self._names)]
        count = places.index(False) if False in places else len(places)
        named = dict(zip(self._names[count:], layers[count:]))
        return Sequential(*layers[:count], **named)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def _states(self, name: str, state: Any) -> tuple[Any, ...]:
        if state is None:
            return (None,) * len(self.layers)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.layers):
            got = (
                f"{len(state)} entries"
                if isinstance(state, (tuple, list))
                else type(state).__name__
            )
            raise TypeError(
                f"{name}: expected a tuple with one entry for each of {len(self.layers)} layers, "
                f"got {got}"
            )
        for k, (layer, entry) in enumerate(zip(self.layers, state)):
            if entry is not None and not layer.stateful:
                raise TypeError(
                    f"{name}[{k}]: expected None, since {type(layer).__name__} has no state"
                )
        return tuple(state)

    def _begin(
        self, x: Any, state: Any, times: dict[str, Any]
    ) -> tuple[Any, bool, tuple[Any, ...], list[dict[str, Any]]]:
        """Return x, whether it was a list, states, and each layer's options; all checked."""
        states = self._states("state", state)
        outputs = times.get("outputs", "all")
        recurrent = [k for k, layer in enumerate(self.layers) if layer._has_recurrent()]
        _refuse_unknown(times, any(map(takes_times, self.layers)), bool(recurrent))
        _check.choice("outputs", outputs, OUTPUTS)
        if outputs != "all" and not recurrent:
            raise ValueError(
                f"outputs: expected 'all' for a model without recurrent layers, got {outputs!r}"
            )
        if outputs != "all" and self.reduces_time:
            raise ValueError(
                f"outputs: expected 'all' for a model that pools over the steps, got {outputs!r}"
            )
        more: list[dict[str, Any]] = []
        of_inputs = times
        for k, layer in enumerate(self.layers):
            if not takes_times(layer):
                more.append({})
            elif k not in recurrent:
                more.append({n: times[n] for n in ("lengths", "mask") if n in times})
            else:
                own = {n: v for n, v in times.items() if n != "outputs"}
                more.append(
                    {**own, "outputs": outputs} if outputs != "all" and k == recurrent[-1] else own
                )
            times = layer._times_after(times)
        x, listed = unwrapped(x)
        ignored = _leaf(self, 0)._ignores_padding()
        return self._without_padding(x, of_inputs, ignored), listed, states, more

    def _lookup(self, k: int, x: Any, more: list[dict[str, Any]]) -> Lookup | None:
        """Return what the layer behind the k-th looks up itself, if that is an embedding."""
        if k + 1 == len(self.layers):
            return None
        return lookup_of(self.layers[k], self.layers[k + 1], x, more[k + 1])

    def __call__(self, x: Any, state: Any = None, **times: Any) -> tuple[Any, tuple[Any, ...]]:
        """Run all layers; return the outputs of the last one and the state.

        Args:
            x: the inputs of the first layer.
            state: a tuple with one entry a layer, from an earlier call; None: initial states.
            **times: ``lengths``, ``resets``, ``mask`` and ``masked``, which go to the layers that
                take them, and ``outputs``, see `Recurrent.__call__`. With ``outputs="last"`` or
                "last_step" the last recurrent layer gives ``[B,D*H]``, and the layers behind it get
                that alone.

        Returns:
            ``y, state``: the outputs of the last layer, and a tuple with one entry a layer.

        Raises:
            TypeError: an unknown option, or an argument of the wrong type; the message names it.
            ValueError: an argument of the wrong shape or value; the message names it.
        """
        x, listed, states, more = self._begin(x, state, times)
        new = []
        for k, (layer, s, own) in enumerate(zip(self.layers, states, more)):
            lookup = self._lookup(k, x, more)
            if lookup is not None:
                x = lookup
            elif layer.stateful:
                x, s = layer(x, s, **own)
            elif own or layer.takes_lengths:
                x = layer(x, **own)
            else:
                x = x.like(layer(x.rows)) if acts_on_rows(layer, x) else layer(x)
            new.append(s)
        return list(x) if listed and isinstance(x, Ragged) else x, tuple(new)

    def vjp(
        self, x: Any, state: Any = None, *, rng: Seed = None, **times: Any
    ) -> tuple[tuple[Any, tuple[Any, ...]], Pullback]:
        """Run all layers for training; return the outputs, the state and a pullback.

        ``dx, dstate = pullback(dy=None, dstate=None, *, grads=None, need_dx=True)`` adds the
        gradients of the parameters to ``model.grads`` (or to ``grads``).

        Args:
            x: the inputs of the first layer, which must not change until the pullback has run.
            state: a tuple with one entry a layer, from an earlier call; None: initial states.
            rng: seed or generator of dropout in all layers; None: each layer's own.
            **times: the options of the call, and ``clip_step_value``, ``clip_step_norm``, ``cuts``
                and ``memory_limit``, which go to the recurrent layers: see `Recurrent.vjp`.

        Returns:
            ``(y, state), pullback``.

        Raises:
            TypeError: an unknown option, or an argument of the wrong type; the message names it.
            ValueError: an argument of the wrong shape or value; the message names it.
        """
        x, listed, states, more = self._begin(x, state, times)
        sequences = x if isinstance(x, Ragged) else None
        rng = None if rng is None else _check.generator(rng)
        new, pullbacks = [], []
        for k, (layer, s, own) in enumerate(zip(self.layers, states, more)):
            lookup = self._lookup(k, x, more)
            if lookup is not None:
                x, pullback = lookup, table_pullback(layer)
            elif layer.stateful:
                (x, s), pullback = layer.vjp(x, s, rng=rng, **own)
            elif own or layer.takes_lengths:
                x, pullback = layer.vjp(x, rng=rng, **own)
            else:
                x, pullback = _vjp_of(layer, x, rng)
            new.append(s)
            pullbacks.append(pullback)
        whole = times.get("outputs", "all") == "all" and not self.reduces_time

        def backward(
            grads: Views, dy: Any, dstate: Any, need_dx: bool, **more: Any
        ) -> tuple[Any, tuple[Any, ...]]:
            if more or callable(dy):
                name = next(iter(more), "dy")
                raise TypeError(
                    f"{name}: expected an array for dy and nothing else; a recurrent layer by "
                    "itself takes more"
                )
            # All is checked before the first layer adds to its gradients.
            into, dstates = self._states("dstate", dstate), [None] * len(self.layers)
            into = tuple(
                _like(f"dstate[{k}]", given, own) for k, (given, own) in enumerate(zip(into, new))
            )
            if isinstance(y, Ragged):
                dy = rows_like("dy", dy, y, y.rows.shape[-1])
            dy = _like("dy", dy, y.rows if isinstance(y, Ragged) else y)
            if dy is not None and not isinstance(y, Ragged) and whole:
                # What a masked step repeats has a gradient: lengths alone.
                ends = self._times_after({"lengths": times.get("lengths")})
                ignored = _leaf(self, -1)._ignores_padding(of_outputs=True)
                dy = self._without_padding(_check.contiguous(dy), ends, ignored)
            for k in reversed(range(len(self.layers))):
                options: dict[str, Any] = {
                    "grads": grads.child(self._names[k]),
                    "need_dx": need_dx or k > 0,
                }
                if self.layers[k].stateful:
                    dy, dstates[k] = pullbacks[k](dy, into[k], **options)
                    dy = dy.rows if isinstance(dy, Ragged) else dy
                elif dy is not None:
                    dy = pullbacks[k](dy, **options)
                    dy = dy.rows if isinstance(dy, Ragged) else dy
            return as_given(dy, sequences, listed), tuple(dstates)

        y = x
        return (list(y) if listed and isinstance(y, Ragged) else y, tuple(new)), Pullback(
            self, backward
        )

    def quantization_report(
        self, x: Any, state: Any = None, **times: Any
    ) -> nn.ModelQuantizationReport:
        """Measure what int8 costs in every recurrent layer, on the inputs that the layer gets.

        Args:
            x: inputs as in a call.
            state: state as in a call.
            **times: options of a call, such as ``lengths`` and ``mask``.

        Returns:
            The reports by the names of the layers, see `RNN.quantization_report`.

        Raises:
            TypeError: a model without recurrent layers, one of float64, or layers of layers that
                ``copy.deepcopy`` does not copy.
            ValueError: a model that is not on the CPU, or none of whose recurrent layers has int8;
                no step, or inputs that are not finite.
        """
        from ._quantization_report import model_report  # here: most programs never need it

        return model_report(self, x, state, times)

    def calibrate(self, x: Any, state: Any = None, **times: Any) -> Sequential:
        """Choose the `input_scale` of every recurrent layer from data; return the model.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> gru = ost.nn.GRU(2, 5, precision="int8", rng=0)
        >>> model = ost.nn.Sequential(gru, ost.nn.Linear(5, 1, rng=1))
        >>> model.calibrate(np.ones((4, 1, 2), np.float32))[0].input_scale.shape
        (2,)

        Args:
            x: inputs as in a call; each layer is calibrated on the inputs that it gets.
            state: state as in a call.
            **times: options of a call, such as ``lengths`` and ``mask``.

        Returns:
            The model itself.

        Raises:
            TypeError: a model without recurrent layers, one of float64, or layers of layers that
                ``copy.deepcopy`` does not copy.
            ValueError: a model that is not on the CPU; no step, or inputs that are not finite. No
                layer has changed.
        """
        from ._quantization_report import calibrate_all  # here: most programs never need it

        calibrate_all(self, x, state, times)
        return self

    def _join_stream(self, native: Any) -> Any:
        return [layer._join_stream(native) for layer in self.layers]

    def _reset_stream(self, states: Any, slots: Any) -> None:
        for layer, s in zip(self.layers, states):
            layer._reset_stream(s, slots)

    def _stream_state(self, states: Any) -> Any:
        return tuple(layer._stream_state(s) for layer, s in zip(self.layers, states))

    def _ignores_padding(self, of_outputs: bool = False) -> bool:
        known = layout_of(self) is not None  # it leaves padding out by itself then
        return known or _leaf(self, -1 if of_outputs else 0)._ignores_padding(of_outputs)

    def _has_recurrent(self) -> bool:
        return any(layer._has_recurrent() for layer in self.layers)

    def _gradient_target(self, grads: Views | None) -> Views:
        return self._own_grads(grads)

    def _without_padding(self, x: Any, times: dict[str, Any], ignored: bool) -> Any:
        """Return x with zeros where a row takes no part, since padding may hold NaN.

        x is returned as it is if the layer that reads it ignores what is there.
        """
        lengths, mask = times.get("lengths"), times.get("mask")
        if isinstance(x, Ragged) and lengths is not None:
            raise ValueError(
                f"lengths: expected None with ragged sequences, got {type(lengths).__name__}"
            )
        if isinstance(x, Ragged) or (lengths is None and mask is None) or ignored:
            return x
        batch_first = layout_of(self)
        x = _check.array("x", x)
        if batch_first is None or x.ndim < 2:
            return x
        batch, steps = x.shape[:2] if batch_first else x.shape[1::-1]
        flags = _check.flags("mask", mask, steps, batch, batch_first)
        on = _check.taking_part(steps, batch, _check.lengths(lengths, steps, batch), flags)
        on = on.T if batch_first else on
        return np.where(
            _device.like(on.reshape(on.shape + (1,) * (x.ndim - 2)), x), x, x.dtype.type(0)
        )

    def __repr__(self) -> str:
        return (
            "Sequential("
            + "".join(f"\n  {n}: {layer!r}" for n, layer in zip(self._names, self.layers))
            + "\n)"
        )


OPTIONS = (
    "lengths",
    "resets",
    "mask",
    "masked",
    "clip_step_value",
    "clip_step_norm",
    "cuts",
    "outputs",
    "memory_limit",
)


def _refuse_unknown(times: dict[str, Any], takers: bool, recurrent: bool) -> None:
    for name, value in times.items():
        if name not in OPTIONS:
            raise TypeError(f"{name}: expected one of {', '.join(OPTIONS)}")
        if name == "outputs":
            continue
        knows = recurrent or (takers and name == "mask")
        if (
            value is not None and not knows and name not in ("lengths", "masked")
        ):  # lengths say where the padding is
            raise ValueError(
                f"{name}: expected None for a model without recurrent layers, got "
                f"{type(value).__name__}"
            )


def _vjp_of(layer: Layer, x: Any, rng: Any) -> tuple[Any, Any]:
    """Return the outputs and the pullback of a layer without a state that takes no lengths."""
    if not acts_on_rows(layer, x):
        y, pullback = layer.vjp(x, rng=rng)
        return y, pullback
    rows, pullback = layer.vjp(x.rows, rng=rng)
    return x.like(rows), pullback


def takes_times(model: Layer) -> bool:
    """Whether a layer, or one within it, knows of lengths and the like."""
    if isinstance(model, Sequential):
        return any(map(takes_times, model.layers))
    return model.takes_lengths


def _leaf(model: Layer, end: int) -> Layer:
    """Return the first (0) or last (-1) layer that is no model."""
    while isinstance(model, Sequential):
        model = model.layers[end]
    return model


def _refuse_mixed_layouts(layers: tuple[Layer, ...]) -> None:
    known = [found for layer in layers for found in layouts_of(layer)]
    for first, layer in known:
        if first != known[0][0]:
            raise ValueError(
                "layers: expected one batch_first for all, or one would read the batch of the "
                f"other as time; got {known[0][0]} in {known[0][1]!r} and {first} in {layer!r}"
            )


def _like(name: str, given: Any, own: Any) -> Any:
    """Check a gradient: structure, shapes, dtype and device of what it is the gradient of.

    None stands for zeros.
    """
    if given is None or own is None:
        return given
    if _check.is_array(own):
        given = _check.array(name, given)
        _device.same(name, given, own)
        if given.shape != own.shape:
            raise ValueError(f"{name}: expected shape {own.shape}, got {given.shape}")
        _check.of_dtype(name, given, own.dtype)
        return given
    if not isinstance(given, (tuple, list)) or len(given) != len(own):
        raise TypeError(f"{name}: expected a tuple of {len(own)}, got {type(given).__name__}")
    return tuple(_like(f"{name}[{k}]", a, b) for k, (a, b) in enumerate(zip(given, own)))


readable(globals())
