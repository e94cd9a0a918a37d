"""Find out whether the call of a model is a chain of layers, which a stream can run step by step.

The call is run once on what stands for its input and tells nothing of it, not even its shape. What
it does therefore cannot depend on the input, and each layer is given what the layer before it gave.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from .._recording import Recording
from ._layer import Layer
from ._sequential import Sequential
from ._stack import Recurrent

# Options of a layer's call that change nothing.
PLAIN = {"masked": "repeat", "outputs": "all"}


class _NotAChain(TypeError):
    """What a stream cannot do, in words that follow "got one that"."""


class Passed(np.lib.mixins.NDArrayOperatorsMixin):
    """What stands for the input of a call, the output of a layer or a state: layers alone take it.

    Args:
        place: of a state, the number of the layer and where in its state; of an input or output
            -1 and the number of layers so far.
    """

    __slots__ = ("place",)

    def __init__(self, place: tuple[int, ...]) -> None:
        self.place = place

    def __array_ufunc__(self, ufunc: Any, *args: Any, **options: Any) -> Any:
        raise _NotAChain(f"computes np.{ufunc.__name__}")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise _NotAChain(f"computes np.{function.__name__}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _NotAChain(f"asks for .{name} of what it is given")

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise _NotAChain("makes an array of what it is given")

    def __getitem__(self, index: Any) -> Any:
        raise _NotAChain("takes a part of what it is given")

    def __iter__(self) -> Any:
        raise _NotAChain("takes apart what it is given")

    def __len__(self) -> int:
        raise _NotAChain("asks for the length of what it is given")

    def __bool__(self) -> bool:
        raise _NotAChain("decides by what it is given")


def _state_of(layer: Layer, place: tuple[int, ...]) -> Any:
    """Return what stands for the state that a layer gives, in its form where that is known."""
    if isinstance(layer, Recurrent) and layer._has_cells:
        return Passed((*place, 0)), Passed((*place, 1))
    if isinstance(layer, Sequential):
        return tuple(
            _state_of(inner, (*place, k)) if inner.stateful else None
            for k, inner in enumerate(layer.layers)
        )
    return Passed(place)


def _places(state: Any) -> Any:
    """Return a state with the places of what stands in it."""
    if isinstance(state, (tuple, list)):
        return tuple(map(_places, state))
    if isinstance(state, Passed):
        return state.place
    return None if state is None else "an array"


class _Tracing(Recording):
    """The layers that a call runs, in their order.

    Args:
        model: whose call it is.
        continued: whether the call is given a state.
    """

    def __init__(self, model: Layer, continued: bool) -> None:
        super().__init__(None, {})
        self.model, self.continued = model, continued
        self.now = Passed((-1, 0))
        self.layers: list[Layer] = []

    def enters(self, layer: Layer) -> bool:
        """Whether the layers within a layer are looked at, and not the layer."""
        return layer._streams_its_call()

    def parameter(self, block: Any, name: str) -> Any:
        """Return a parameter, which a chain of layers does not read."""
        return block.view(block.values, name, writable=False)

    def call(self, layer: Layer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Note the call of a layer; return what stands for its outputs."""
        names = ["x", "state"] if layer.stateful else ["x"]
        given = {**dict(zip(names, args)), **options}
        name = layer._prefix.rstrip(".") or type(layer).__name__
        if len(args) > len(names):
            raise _NotAChain(f"gives {name} more than {' and '.join(names)}")
        if given.pop("x", None) is not self.now:
            before = "the input" if not self.layers else "what the layer before it gave"
            raise _NotAChain(f"gives {name} something else than {before}")
        place, state = (len(self.layers),), given.pop("state", None)
        own = _state_of(layer, place) if layer.stateful else None
        if _places(state) != (_places(own) if self.continued else None):
            raise _NotAChain(f"gives {name} another state than the one that it left")
        for option, value in given.items():
            if value is not None and not (option in PLAIN and PLAIN[option] == value):
                raise _NotAChain(f"gives {name} the option {option}")
        self.layers.append(layer)
        self.now = Passed((-1, len(self.layers)))
        return (self.now, own) if layer.stateful else self.now


def _traced(model: Layer, state: Any, continued: bool) -> tuple[list[Layer], Any]:
    """Return the layers that a call runs, and the form of its state."""
    tracing = _Tracing(model, continued)
    call: Callable[..., Any] = model.__call__
    signature = inspect.signature(call)
    args: list[Any] = [tracing.now]
    given: dict[str, Any] = {}
    if model.stateful and "state" in signature.parameters:
        given["state"] = state
    elif model.stateful:
        args.append(state)
    try:
        signature.bind(*args, **given)
    except TypeError as e:
        what = "x and a state" if model.stateful else "x"
        raise _NotAChain(f"cannot be given {what} alone: {e}") from None
    with tracing.running():
        out = call(*args, **given)
    form = None
    if model.stateful:
        if not isinstance(out, tuple) or len(out) != 2:
            raise _NotAChain(f"returns {type(out).__name__} in place of (y, state)")
        out, form = out
        if not _is_state(form):
            raise _NotAChain("returns something else than states of its layers beside y")
    if out is not tracing.now or not tracing.layers:
        raise _NotAChain("returns something else than what its last layer gave")
    return tracing.layers, form


def _is_state(form: Any) -> bool:
    """Whether a form consists of states of layers."""
    if isinstance(form, (tuple, list)):
        return all(map(_is_state, form))
    return form is None or (isinstance(form, Passed) and form.place[0] >= 0)


class ChainStates:
    """The states of a model's layers in a stream, and the form in which the model gives them.

    Args:
        layers: in their order.
        states: what each of them works on.
        form: of the model's state, with what stands for those of layers; None: a tuple of them.
    """

    def __init__(self, layers: list[Layer], states: list[Any], form: Any) -> None:
        self.layers, self.states, self.form = layers, states, form

    def reset(self, slots: Any) -> None:
        """Put slots back to their initial state."""
        for layer, state in zip(self.layers, self.states):
            layer._reset_stream(state, slots)

    def shaped(self) -> Any:
        """Return the states, shaped as the model gives them."""
        own = [layer._stream_state(s) for layer, s in zip(self.layers, self.states)]
        return tuple(own) if self.form is None else _filled(self.form, own)


def _filled(form: Any, own: list[Any]) -> Any:
    """Return a form with the states in the place of what stands for them."""
    if isinstance(form, (tuple, list)):
        return tuple(_filled(part, own) for part in form)
    if form is None:
        return None
    found: Any = own
    for k in form.place:
        found = found[k]
    return found


def chain_of(model: Layer) -> tuple[list[Layer], Any]:
    """Return the layers that the call of a model runs one after the other, and the state's form.

    Raises:
        TypeError: the call does something else; the message says what.
    """
    try:
        layers, form = _traced(model, None, continued=False)
        if model.stateful:
            again, later = _traced(model, form, continued=True)
            if [*map(id, again)] != [*map(id, layers)] or _places(later) != _places(form):
                raise _NotAChain("does something else with a state than without")
    except _NotAChain as e:
        said = str(e)
    except (TypeError, ValueError, AttributeError) as e:
        said = f"raised {type(e).__name__}: {e}"
    else:
        return layers, form
    raise TypeError(
        f"stream: expected a call of {type(model).__name__} that is a chain of layers, got one "
        f"that {said}; use layers such as nn.Residual and nn.Activation for it, stream the layers, "
        "or give the model one step and its state at a time"
    )
