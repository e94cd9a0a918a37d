"""Define Model: layers and parameters as attributes, with gradients of what its call computes."""

from __future__ import annotations

import copy
import glob
import inspect
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Seed
from .._recording import Recorded
from ._block import Block, Entry, Views
from ._layer import Layer, Pullback, block_of, holds
from ._stream import Stream
from ._tracing import ChainStates, chain_of
from ._walk import layers_of

# Attributes that are the model's own business.
_INTERNAL = frozenset(
    {
        *("_given", "_owner", "_own", "_joined", "_prefix", "_ties", "_dtype"),
        *("_seen", "_placed", "_long", "_stale", "_mutable", "_parts_seen"),
    }
)
LONG = 1000  # entries of a list that is not read every time that a model is used
_LAYING_OUT = threading.RLock()  # one thread lays a model out, and others wait


class Parameter(np.lib.mixins.NDArrayOperatorsMixin):
    """A parameter of a `Model` beside those of its layers: an attribute, or in a list or dict.

    Read as an attribute of the model it is an array. In a list or dict `value` is the array, and
    operators and functions of NumPy take it as one.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Scale(ost.nn.Model):
    ...     def __init__(self, size):
    ...         self.scale = ost.nn.Parameter(np.ones(size, np.float32))
    ...     def __call__(self, x):
    ...         return x * self.scale
    >>> Scale(3).parameters()
    {scale: float32 [3]}

    Args:
        value: the initial values, of float32 or float64.
        decay: whether weight decay acts on it; None: unless it is a vector.

    Raises:
        TypeError: values that are no array of float32 or float64, or decay that is no bool.
    """

    _is_parameter = True  # which `vjp` takes as its array
    _model: Model | None = None
    _name = ""

    def __init__(self, value: Array, *, decay: bool | None = None) -> None:
        a = _check.array("value", value)
        _check.real_dtype(a.dtype, "value")
        self._initial, self._decay = a, a.ndim > 1 if decay is None else _check.flag("decay", decay)

    @property
    def value(self) -> Any:
        """The array: a read-only view of the model's parameters, or what `vjp` records."""
        if self._model is None:
            return _check.read_only(self._initial.view())
        return self._model.parameters()[self._name]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        a = np.asarray(self.value, dtype)
        return a.copy() if copy else a

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        _refuse_out(ufunc, options.get("out"))
        if method == "at":  # which changes its first argument
            _refuse_out(ufunc, inputs[:1])
        return getattr(ufunc, method)(*map(_value, inputs), **_values(options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        _refuse_out(function, options.get("out"))
        return function(*_values(args), **_values(options))

    def __getitem__(self, index: Any) -> Any:
        return self.value[index]

    def __repr__(self) -> str:
        return f"Parameter({list(self._initial.shape)}, {self._initial.dtype})"


def _refuse_out(function: Any, out: Any) -> None:
    """Raise if a function of NumPy would write to a parameter."""
    outputs = out if isinstance(out, tuple) else (out,)
    if any(isinstance(a, Parameter) for a in outputs):
        raise TypeError(
            f"np.{function.__name__}: expected no change of a Parameter in place; use `with "
            "model.write() as p`, which changes its values"
        )


def _value(a: Any) -> Any:
    return a.value if isinstance(a, Parameter) else a


def _values(a: Any) -> Any:
    if isinstance(a, (list, tuple)):
        return type(a)(map(_values, a))
    return {n: _values(b) for n, b in a.items()} if isinstance(a, dict) else _value(a)


class Model(Layer):
    """Base of your own models: layers as attributes, and a call that says what they compute.

    A layer, a `Model` or a `Parameter` that is an attribute, or is in a list, tuple or dict that is
    one, is part of the model; its parameters are named by the attribute: ``"rnn.weight_ih_l0"``,
    ``"blocks.0.weight"``. ``__call__`` serves inference and training: `vjp` runs it and records
    what it does, each layer with its fused `vjp`, and operations of NumPy one by one; see
    `ostinato.vjp`. All parameters lie in one block of memory, which is laid out when the model is
    made, and anew when an attribute has changed since.

    Class attributes say how it is used: ``stateful = True`` where ``__call__(x, state)`` returns
    ``(y, state)``; ``reduces_time = True`` where it gives one output a sequence in place of one a
    step (found by itself where a layer of it, such as a `Pool`, does so). Where it gives fewer
    outputs than steps, as a `Conv1d` with a stride does, a method ``output_lengths(lengths)`` says
    how many, and a Trainer gives the loss these.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Tagger(ost.nn.Model):
    ...     def __init__(self, words, tags, size=16):
    ...         self.embed = ost.nn.Embedding(words, size)
    ...         self.rnn = ost.nn.LSTM(size, size, bidirectional=True)
    ...         self.head = ost.nn.Linear(2 * size, tags)
    ...     def __call__(self, x, lengths=None):
    ...         y, state = self.rnn(self.embed(x), lengths=lengths)
    ...         return self.head(y)
    >>> model = Tagger(100, 5)
    >>> y, pullback = model.vjp(np.ones((7, 2), np.int64), lengths=[7, 4])
    >>> pullback(np.ones_like(y))  # indices have no gradient
    >>> bool(model.grads["embed.weight"].any())
    True
    """

    takes_lengths = False
    _owner: Layer | None

    def _prepare(self) -> None:
        """Make what attributes go to, so that ``super().__init__()`` is not needed."""
        start: dict[str, Any] = {
            "_own": {},
            "_ties": {},
            "_joined": None,
            "_prefix": "",
            "_owner": None,
            "_dtype": np.dtype(np.float32),
            "_seen": None,
            "_placed": [],
            "_parts_seen": {},
            "_long": {},
            "_stale": True,
            "_mutable": False,
        }
        self.__dict__.update(start)

    def __init__(self) -> None:
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "takes_lengths" not in vars(cls):
            cls.takes_lengths = takes(cls, "lengths")

    def _finish(self) -> None:
        _ = self._block  # what is wrong with the attributes is told here

    # -- attributes --------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INTERNAL:
            object.__setattr__(self, name, value)
            return
        if name in self._options:
            value = self._checked_option(name, value)
        if isinstance(value, Layer):
            self._refuse_owned(name, value)
        known = name in self._own or name in self.__dict__
        old = self._own.get(name, self.__dict__.get(name))
        self._refuse_dropped(name, old, value)
        changes = holds(value, PARTS) or holds(old, PARTS)
        if changes:
            self._refuse_fixed(name, "set its attributes before")
        self._set(name, value)
        if changes:
            undo = partial(self._set, name, old) if known else partial(delattr, self, name)
            self._lay_out_or(undo)

    def _lay_out_or(self, undo: Callable[[], None]) -> None:
        """Lay a block that is there out anew at once; where that fails, undo what was changed."""
        if self._joined is None:
            return
        try:
            _ = self._block
        except BaseException:  # Ctrl-C, too, leaves the model as it was
            undo()
            raise

    def _refuse_fixed(self, name: str, instead: str) -> None:
        """Raise if this model is laid out as a part of one whose layers stay."""
        if self._is_fixed():
            raise ValueError(
                f"{name}: expected a model that is no part of a Sequential, which is laid out "
                f"already; {instead}"
            )

    def _refuse_dropped(self, name: str, old: Any, value: Any) -> None:
        """Raise if layers or parameters would be replaced by what is none, such as an array."""
        empty = isinstance(value, (list, tuple, dict)) and not value
        if value is None or empty or not holds(old, PARTS) or holds(value, PARTS):
            return
        kind = type(value).__name__
        if isinstance(old, Parameter):
            raise TypeError(
                f"{name}: expected a Parameter in place of one, got {kind}; change its values with "
                f"`with model.write() as p: p[{name!r}][...] = ...`"
            )
        wanted = (
            "a Layer in place of one"
            if isinstance(old, Layer)
            else (f"a {type(old).__name__} of layers or parameters in place of one")
        )
        raise TypeError(
            f"{name}: expected {wanted}, got {kind}; change values with `model.write()`, or remove "
            f"it first with `del model.{name}`"
        )

    def _refuse_overwritten(self) -> None:
        """Raise if an array stands in a list or dict where a layer or parameter was.

        That is put back. Python does not tell when an entry is assigned, so it is found when the
        model is next used.
        """
        layers, parameters = self._found()
        kept = {id(part) for part in (*layers.values(), *parameters.values())}
        for name, part in self.__dict__.get("_parts_seen", {}).items():
            if "." not in name or id(part) in kept:
                continue
            holder, key = self._holder(name)
            value = None if holder is None else holder[key]
            empty = isinstance(value, (list, tuple, dict)) and not value
            if value is None or empty or holds(value, PARTS):
                continue
            holder[key] = part
            kind, change = type(part).__name__, "change values with `model.write()`"
            if isinstance(part, Parameter):
                change = f"use `with model.write() as p: p[{name!r}][...] = ...`"
            raise TypeError(
                f"{name}: expected a {kind} in place of one, got {type(value).__name__}; {change}. "
                f"The {kind} is where it was; to remove it, take it out first, as by `del` or pop()"
            )

    def _holder(self, name: str) -> tuple[Any, Any]:
        """Return the list or dict with an entry of a name, and its key there; or two None."""
        first, *keys = name.split(".")
        holder: Any = None
        value: Any = self.__dict__.get(first)
        key: Any = None
        for part in keys:
            holder = value
            if isinstance(holder, (list, tuple)):
                key = int(part) if part.isdecimal() and int(part) < len(holder) else None
            elif isinstance(holder, dict):
                key = part if part in holder else None
            else:
                key = None
            if key is None:
                return None, None
            value = holder[key]
        return (None, None) if isinstance(holder, tuple) else (holder, key)

    def _set(self, name: str, value: Any) -> None:
        self._mark()
        if isinstance(value, Parameter):
            self.__dict__.pop(name, None)
            self._own[name] = value
        else:
            self._own.pop(name, None)
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name not in self._own:
            super().__delattr__(name)
        self._own.pop(name, None)
        self._mark()

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_own", {})
        if name in own:
            return own[name].value
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _refuse_owned(self, name: str, layer: Layer) -> None:
        owner = layer._owner
        if layer is self or (owner is not None and owner is not self):
            raise ValueError(
                f"{name}: expected a layer without an owner, got a {type(layer).__name__} that a "
                "model owns already; use copy.deepcopy for one of its own"
            )

    def _refuse_shared(self, name: str, p: Parameter) -> None:
        """Raise if a parameter is one of another model, which holds it still."""
        other = p._model
        if other is None or other is self:
            return
        if any(q is p for q in other._found()[1].values()):
            raise ValueError(_shared(name, f"that a {type(other).__name__} has already"))

    def _refuse_repeated(self) -> None:
        """Raise if two models within this one have the same layer or parameter."""
        seen: set[int] = set()
        for model in layers_of(self):
            if id(model) in seen:
                raise ValueError(
                    f"model: expected a layer without an owner, got a {type(model).__name__} in "
                    "two of its models; use copy.deepcopy for one of its own"
                )
            seen.add(id(model))
            own = model._found()[1] if isinstance(model, Model) else {}
            for name, p in own.items():
                if id(p) in seen:
                    raise ValueError(_shared(name, "in two of its models"))
                seen.add(id(p))

    def _found(self) -> tuple[dict[str, Layer], dict[str, Parameter]]:
        """Return the layers and parameters of all attributes by name, each once."""
        layers: dict[str, Layer] = {}
        parameters: dict[str, Parameter] = dict(self._own)
        seen: set[int] = set(map(id, self._own.values()))

        def visit(name: str, value: Any) -> None:
            if isinstance(value, (list, tuple, dict)) and len(value) > LONG:
                # A vocabulary, say: it is read once, and again if it is another one.
                key, known = (id(value), len(value)), len(seen)
                if self._long.get(name) == key:
                    return
                inside(name, value)
                if len(seen) == known:
                    self._long[name] = key
            else:
                inside(name, value)

        def inside(name: str, value: Any) -> None:
            if isinstance(value, (list, tuple)):
                for k, inner in enumerate(value):
                    visit(f"{name}.{k}", inner)
            elif isinstance(value, dict):
                for key, inner in value.items():
                    if holds(inner, PARTS) and (not isinstance(key, str) or "." in key):
                        raise TypeError(
                            f"{name}: expected names that are text without dots, got {key!r}"
                        )
                    visit(f"{name}.{key}", inner)
            elif isinstance(value, PARTS) and id(value) not in seen:
                seen.add(id(value))
                if isinstance(value, Layer):
                    layers[name] = value
                else:
                    parameters[name] = value

        for name, value in self.__dict__.items():
            if name not in _INTERNAL:
                visit(name, value)
        return layers, parameters

    def _children(self) -> dict[str, Layer]:
        return self._found()[0]

    def _times_after(self, times: dict[str, Any]) -> dict[str, Any]:
        """Return the options of time of the outputs, of which a class may give fewer."""
        if times.get("lengths") is None or not hasattr(type(self), "output_lengths"):
            return times
        own: Any = self
        return {**times, "lengths": own.output_lengths(times["lengths"])}

    def _gradient_target(self, grads: Views | None) -> Views:
        return self._own_grads(grads)

    def _calls_are_recorded(self) -> bool:
        return type(self).vjp is Model.vjp

    @property
    def reduces_time(self) -> bool:
        """Whether the outputs are one a sequence: where a layer gives such, or the class says."""
        return any(layer.reduces_time for layer in self._children().values())

    # -- the block of parameters -------------------------------------------------------------------

    def _root(self) -> Layer:
        layer: Layer = self
        while layer._owner is not None:
            layer = layer._owner
        return layer

    def _is_fixed(self) -> bool:
        """Whether it is part of a `Sequential`, whose parameters are laid out once."""
        owner = self._owner
        while owner is not None:
            if not isinstance(owner, Model):
                return True
            owner = owner._owner
        return False

    def _mark(self) -> None:
        """Note that attributes have changed."""
        layer: Layer | None = self
        while isinstance(layer, Model):
            layer.__dict__["_stale"] = True
            layer = layer._owner

    def _note(self) -> bool:
        """Note that the block is that of the attributes; return whether some may change unseen."""
        mutable = any(_is_mutable(v) for n, v in self.__dict__.items() if n not in _INTERNAL)
        for layer in self._found()[0].values():
            mutable |= isinstance(layer, Model) and layer._note()
        self.__dict__.update(_stale=False, _mutable=mutable)
        return mutable

    def _signature(self) -> tuple[Any, ...]:
        """Return what changes where attributes have changed since the block was laid out."""
        layers, parameters = self._found()
        mine: list[Any] = [(n, id(a)) for n, a in (*layers.items(), *parameters.items())]
        mine += self._ties.items()
        for layer in layers.values():
            if isinstance(layer, Model):
                mine.append(layer._signature())
        return tuple(mine)

    @property
    def _block(self) -> Block:
        """The parameters, laid out anew where attributes have changed."""
        if self._is_fixed():
            if (self._stale or self._mutable) and self._signature() != self._seen:
                raise ValueError(
                    "model: expected layers that stay once it is part of a Sequential, got others; "
                    "change them before"
                )
        else:
            root: Any = self._root()
            if root._stale or root._mutable:
                root._follow()
        block: Block = self._joined
        return block

    @_block.setter
    def _block(self, block: Block) -> None:
        object.__setattr__(self, "_joined", block)

    def _follow(self) -> None:
        """Lay the block out anew if the attributes have changed."""
        if not self._stale and self._signature() == self._seen:
            return
        with _LAYING_OUT:
            now = self._signature()
            if now != self._seen:
                self._lay_out(now)
            self._note()

    def _lay_out(self, signature: tuple[Any, ...]) -> None:
        """Gather all parameters in one block."""
        for model in layers_of(self):
            if isinstance(model, Model):
                model._refuse_overwritten()
        before = [] if self._joined is None else [m for m in self._placed if m is not self]
        self._refuse_repeated()
        made = self._gathered()
        now = {id(m) for m in layers_of(self)}
        self._place(made, "")
        object.__setattr__(self, "_placed", list(layers_of(self)))
        self._seen = signature
        for layer in before:  # what is no longer part of the model has parameters of its own
            if id(layer) not in now and (layer._owner is None or id(layer._owner) in now):
                object.__setattr__(layer, "_owner", None)
                own = layer._own_block()
                layer._place(own, "")

    def _gathered(self) -> Block:
        """Return a new block with the parameters of this model, checked."""
        layers, parameters = self._found()
        for name, layer in layers.items():
            self._refuse_owned(name, layer)
        for name, p in parameters.items():
            self._refuse_shared(name, p)
        own = {name: self._own_entry(name, p) for name, p in parameters.items()}
        blocks = {n: m._gathered() for n, m in layers.items() if isinstance(m, Model)}
        kinds: dict[str, str] = {}  # dtypes, each with the first name that has it
        bare = self._dtype_without_parameters()
        for name, (a, _) in own.items():
            kinds.setdefault(str(a.dtype), name)
        for name, layer in layers.items():
            block = blocks.get(name)
            dtype = layer._dtype if block is None else block.values.dtype
            if block is None or len(block.entries):
                kinds.setdefault(str(dtype), name)
            elif dtype == np.float64:  # float32 is also that of models which say none
                bare = dtype
        if len(kinds) > 1:
            both = " and ".join(f"{kind} of {name}" for kind, name in list(kinds.items())[:2])
            raise TypeError(f"model: expected layers of one dtype, got {both}")
        dtype = np.dtype(next(iter(kinds), bare))
        given: dict[str, Any] = dict(layers)
        given |= {n: _Held(block) for n, block in blocks.items()}  # which stands for its layer
        block = block_of(given, own, dtype)
        for name, target in self._ties.items():
            _tie(block, name, target)
        return block

    def _dtype_without_parameters(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def _own_entry(self, name: str, p: Parameter) -> tuple[Array, Entry]:
        """Return the array of a parameter and what is known of it."""
        full = self._prefix + name
        if p._model is self and self._joined is not None and full in self._joined.entries:
            return self._joined.view(self._joined.values, full), self._joined.entries[full]
        a = p._initial
        return a, Entry(name, 0, a.shape, True, p._decay)

    def _place(self, block: Block, prefix: str) -> None:
        if self._joined is not None:
            self._joined.changes += 1
        layers, parameters = self._found()
        object.__setattr__(self, "_joined", block)
        self._prefix, self._dtype = prefix, block.values.dtype
        self.__dict__["_parts_seen"] = {**layers, **parameters}
        for name, p in parameters.items():
            p._model, p._name = self, name
        for name, layer in layers.items():
            layer._owner = self
            layer._place(block, f"{prefix}{name}.")
        self._seen = self._signature()
        self._note()

    def tie(self, name: str, to: str) -> None:
        """Let a parameter be another one: one array, whose gradients are those of both uses.

        >>> import ostinato as ost
        >>> class Words(ost.nn.Model):
        ...     def __init__(self):
        ...         self.embed = ost.nn.Embedding(50, 8)
        ...         self.head = ost.nn.Linear(8, 50)
        ...         self.tie("head.weight", "embed.weight")
        >>> Words().parameters()
        {embed.weight: float32 [50, 8], head.bias: float32 [50]}

        Args:
            name: of the parameter that gives way.
            to: of the one that stands for both, of the same shape.

        Raises:
            KeyError: a name that no parameter has.
            ValueError: two shapes, the same parameter twice, or a model that is part of a
                Sequential, whose parameters are laid out already.
        """
        self._refuse_fixed("tie", "tie its parameters before")
        block = copy.copy(self._gathered())
        _tie(block, name, to)
        self._ties[name] = to
        self._mark()
        self._lay_out_or(partial(self._untie, name))

    def _untie(self, name: str) -> None:
        del self._ties[name]
        self._mark()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters, inputs and outputs: float32 or float64."""
        kind: np.dtype[Any] = self._block.values.dtype
        return kind

    def _check_device(self, device: _device.Device | None) -> None:
        for layer in self._children().values():
            layer._check_device(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._owner is None:
            _ = self._block  # laid out, so that the copy is
        return super().__deepcopy__(memo)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=None)
        layers, parameters = self._found()
        self.__dict__["_parts_seen"] = {**layers, **parameters}
        for layer in layers.values():
            object.__setattr__(layer, "_owner", self)
        self._seen = self._signature()
        if self._joined is not None:
            object.__setattr__(self, "_placed", list(layers_of(self)))

    # -- running -----------------------------------------------------------------------------------

    def vjp(
        self,
        *args: Any,
        rng: Seed = None,
        memory_limit: str | int | None = None,
        clip_step_value: float | None = None,
        clip_step_norm: float | None = None,
        **options: Any,
    ) -> tuple[Any, Pullback]:
        """Run ``__call__`` for training: layers by their vjp, operations of NumPy recorded.

        Args:
            *args: as of the call; arrays of real numbers among them get gradients. They must not
                change until the pullback has run.
            rng: seed or generator of dropout in all layers; None: each layer's own.
            memory_limit: of every recurrent layer; see `nn.RNN.vjp`.
            clip_step_value: of every recurrent layer; see `nn.RNN.vjp`.
            clip_step_norm: of every recurrent layer; see `nn.RNN.vjp`.
            **options: named arguments of the call, without gradients.

        Returns:
            ``y, pullback``, what the call returns, where ``pullback(dy)`` gives the gradient of the
            argument (a tuple if there are several); or ``(y, state), pullback`` with
            ``pullback(dy, dstate)`` giving ``dx, dstate`` for a model with a state.

        Raises:
            TypeError: an operation that is not known, or an argument of the wrong type.
            ValueError: an argument of the wrong shape or value.
        """
        _ = self._block  # laid out before anything is recorded
        given = {
            "memory_limit": memory_limit,
            "clip_step_value": clip_step_value,
            "clip_step_norm": clip_step_norm,
        }
        recorded = Recorded(self, args, options, rng, given)
        recorded.require_gradient(type(self).__name__)
        if self.stateful and (not isinstance(recorded.out, tuple) or len(recorded.out) != 2):
            raise TypeError(
                f"{type(self).__name__}: expected (y, state) of a call with stateful = True, got "
                f"{type(recorded.values).__name__}"
            )
        return recorded.values, ModelPullback(self, recorded)

    def stream(self, batch: int = 1) -> Stream:
        """Return a stream of a model whose call is a chain of layers: one step a call.

        The call is run once on something that layers alone can take, to see which layers it runs
        in which order; `Stream.refresh` does so again. It may not compute anything beside them.
        `Stream.state` has the form of the model's state; of a model without one it is a tuple with
        one entry a layer.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> class Net(ost.nn.Model):
        ...     def __init__(self):
        ...         self.rnn = ost.nn.GRU(3, 8, rng=0)
        ...         self.head = ost.nn.Linear(8, 2, rng=1)
        ...     def __call__(self, x):
        ...         y, _ = self.rnn(x)
        ...         return self.head(y)
        >>> model = Net()
        >>> stream = model.stream()
        >>> y = stream.step(np.ones((1, 3), np.float32))
        >>> bool((y == model(np.ones((1, 1, 3), np.float32))[0]).all())
        True

        Args:
            batch: B, the number of slots, each with a state of its own.

        Returns:
            The stream, see `Stream`.

        Raises:
            TypeError: a call that is no chain of layers, or a layer that cannot run step by step;
                the message says what it does.
            ValueError: a layer that is bidirectional or not on the CPU; batch is less than 1.
        """
        return Stream(self, batch)

    def _streams_its_call(self) -> bool:
        return type(self)._join_stream is Model._join_stream

    def _join_stream(self, native: Any) -> Any:
        layers, form = chain_of(self)
        return ChainStates(layers, [layer._join_stream(native) for layer in layers], form)

    def _reset_stream(self, states: Any, slots: Any) -> None:
        states.reset(slots)

    def _stream_state(self, states: Any) -> Any:
        return states.shaped()

    def __repr__(self) -> str:
        layers, parameters = self._found()
        lines = [f"\n  {n}: {p!r}" for n, p in parameters.items()]
        for name, layer in layers.items():
            text = repr(layer).replace("\n", "\n  ")
            lines.append(f"\n  {name}: {text}")
        return f"{type(self).__name__}({''.join(lines)}{chr(10) * bool(lines)})"


def _shared(name: str, where: str) -> str:
    """Return the message about a parameter that two models have."""
    return (
        f"{name}: expected a Parameter of one model, got one {where}; use model.tie for one array "
        "under two names, or ost.nn.Parameter(p.value) for one of its own"
    )


def _is_mutable(value: Any) -> bool:
    """Whether layers may be put into a value, or taken from it, without a word."""
    return isinstance(value, (list, dict)) or (
        isinstance(value, tuple) and any(map(_is_mutable, value))
    )


class _Held:
    """A block in the place of the layer that it belongs to."""

    _prefix = ""

    def __init__(self, block: Block) -> None:
        self._block = block


def _tie(block: Block, name: str, to: str) -> None:
    """Remove a parameter from a block, and let its name stand for another one."""
    to = block.aliases.get(to, to)
    for given in (name, to):
        if given not in block.entries:
            raise KeyError(
                f"tie: expected the name of a parameter among {', '.join(block.entries)}, got "
                f"{given!r}"
            )
    a, b = block.entries[name], block.entries[to]
    if name == to or a.shape != b.shape:
        raise ValueError(
            f"tie: expected two parameters of one shape, got {name} {list(a.shape)} and {to} "
            f"{list(b.shape)}"
        )
    kept = {n: e for n, e in block.entries.items() if n != name}
    arrays = {n: block.view(block.values, n) for n in kept}
    aliases = {a: to if t == name else t for a, t in block.aliases.items()}
    made = Block(arrays, {n: e.decay for n, e in kept.items()}, block.values.dtype)
    made.tie({**aliases, name: to})
    for n, e in kept.items():
        if not e.trainable:
            made.mark(glob.escape(n), trainable=False)
    block.__dict__.pop("grads", None)
    block.__dict__.update(made.__dict__)


def _of_pullback(message: str, stateful: bool) -> str:
    """Return an error of ``d``, what `ostinato.vjp` calls a gradient, with the names of ours."""
    for theirs, ours in (("d[0]", "dy"), ("d[1]", "dstate")) if stateful else (("d", "dy"),):
        if message.startswith((f"{theirs}:", f"{theirs}[")):
            name = message.partition(":")[0]
            own = ours + name[len(theirs) :]
            return own + message[len(name) :].replace(f"use {name}.", f"use {own}.")
    return message


def takes(kind: type, name: str) -> bool:
    """Whether the call of a class takes an argument of a name."""
    parameters = inspect.signature(kind.__call__).parameters.values()
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


PARTS = (Layer, Parameter)  # what a model is made of


class ModelPullback(Pullback):
    """Compute the gradients of one call of a `Model`, once; see `Pullback`.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.nn.LayerNorm(3).vjp(np.ones((4, 3), np.float32))
    >>> pullback(np.ones_like(y)).shape
    (4, 3)

    Args:
        model: the model.
        recorded: the call.
    """

    def __init__(self, model: Model, recorded: Recorded) -> None:
        own = weakref.ref(self)  # a method of its own would hold it, and the memory of the pass

        def backward(*given: Any) -> Any:
            pullback = own()
            assert pullback is not None
            return pullback._back(*given)

        super().__init__(model, backward)
        self._recorded: Recorded | None = recorded

    def _back(self, target: Any, dy: Any, *rest: Any) -> Any:
        dstate, need_dx = rest if len(rest) == 2 else (None, rest[0])
        recorded = self._recorded
        assert recorded is not None
        d = (dy, dstate) if len(rest) == 2 else dy
        try:
            recorded.require_ready(d)  # before anything is added
        except (TypeError, ValueError) as e:
            raise type(e)(_of_pullback(str(e), len(rest) == 2)) from None
        self._recorded, self._started = None, True  # the memory goes with the pass
        found = recorded.back(d, target, need_dx)
        if len(rest) == 2:
            return (*found, None, None)[:2]
        return found[0] if len(found) == 1 else found

    def __call__(
        self,
        dy: Any = None,
        dstate: Any = None,
        *,
        grads: Views | None = None,
        need_dx: bool = True,
        **more: Any,
    ) -> Any:
        """Add the gradients of the parameters to the model's, and return those of the inputs.

        Args:
            dy: gradient of the output, in its form. None: 1 for an output that is a single number;
                zeros for a model with a state.
            dstate: gradient of the last state, for a model with one; None: zeros.
            grads: what to add to, from `Layer.new_grads`; None: the gradients of the model.
            need_dx: whether the gradients of the inputs are wanted.
            **more: none.

        Returns:
            The gradient of the argument (a tuple if the call had several), or ``(dx, dstate)`` for
            a model with a state; None for what is no array of real numbers, and without need_dx.

        Raises:
            RuntimeError: the pullback has been used, or the parameters have changed since the pass.
            TypeError: an argument has the wrong type; the pullback can be called again.
            ValueError: an argument has the wrong shape; the pullback can be called again.
        """
        if dy is None and not self._layer.stateful and self._recorded is not None:
            dy = self._recorded.ones()
        return super().__call__(dy, dstate, grads=grads, need_dx=need_dx, **more)


readable(globals())
