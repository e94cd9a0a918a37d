"""Record what a function computes on arrays, and run back through it for gradients.

A recording is a list of the operations of one call, in their order. A layer is one operation of it,
with the fused `vjp` that it has. `Variable` is the array type that is recorded; what the operations
of NumPy do to it, and the gradients, are in `_rules`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _device
from ._annotations import readable
from ._check import Array, Seed, generator, is_array, of_dtype, some, unmasked

if TYPE_CHECKING:
    from .nn._block import Block, Views
    from .nn._layer import Layer

Slope = Callable[[Any], Any]  # from the gradient of the result of an operation to that of an input

# The recordings that are going on, by thread. Empty most of the time: that is all that a call of a
# layer looks at.
_RECORDINGS: dict[int, Recording] = {}


def active() -> Recording | None:
    """Return the recording of this thread, if there is one."""
    return _RECORDINGS.get(get_ident()) if _RECORDINGS else None


class Variable:
    """An array within `vjp`, whose operations are recorded.

    It has the operators and most methods of an array; functions of NumPy take it. It cannot be
    changed in place. Comparisons give plain arrays.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.vjp(lambda x: (np.tanh(x) ** 2).sum(), np.zeros(3))
    >>> pullback().tolist()
    [0.0, 0.0, 0.0]

    Args:
        value: the array.
        recording: what records its operations.
        index: its number in the recording.
    """

    __slots__ = ("_index", "_recording", "_value")
    __hash__ = None  # type: ignore[assignment]  # as of an array: == compares elements

    def __init__(self, value: Any, recording: Recording, index: int) -> None:
        self._value, self._recording, self._index = value, recording, index

    # -- NumPy's protocols -------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _rules().ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return _rules().function(function, args, options)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(
            "Variable: expected an operation that vjp records, got a conversion to a plain array, "
            "which would lose the gradient; use np.stack or np.concatenate to join, np.where in "
            "place of assignments, ost.stop_gradient(x) where no gradient is wanted"
        )

    # -- what an array has -------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        shape: tuple[int, ...] = self._value.shape
        return shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._value.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(self._value.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the elements."""
        dtype: np.dtype[Any] = self._value.dtype
        return dtype

    @property
    def T(self) -> Variable:
        """The array with its axes in reverse order."""
        turned: Variable = self.transpose()
        return turned

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return _rules().indexed(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "Variable: expected no assignment to elements within vjp; use np.where, np.stack or "
            "np.concatenate"
        )

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS:
            return functools.partial(getattr(np, name), self)
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{name}: expected an attribute of arrays that vjp knows, got {name!r}; "
            "ost.stop_gradient(x) gives the plain array, without a gradient"
        )

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Return the elements in another shape."""
        given = (shape[0] if len(shape) == 1 else shape,) if shape or not options else ()
        return np.reshape(self, *given, **options)

    def transpose(self, *axes: Any) -> Any:
        """Return the array with its axes in another order."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None
        return np.transpose(self, order)

    def astype(self, dtype: Any, **options: Any) -> Any:
        """Return the array in another dtype: a plain one if it is none of real numbers."""
        made = self._value.astype(dtype, **options)
        return record(made, (self, lambda d: d)) if made.dtype.kind not in "biuSU" else made

    def copy(self, order: str = "C") -> Variable:
        """Return the array itself, since nothing changes it."""
        return self

    def flatten(self, order: str = "C") -> Any:
        """Return the elements in one axis."""
        return self.reshape(-1, **({} if order == "C" else {"order": order}))

    def _no_number(self) -> Any:
        raise TypeError(
            "Variable: expected an operation that vjp records, got a conversion to a number, which "
            "would lose the gradient; use ost.stop_gradient(x) where none is wanted"
        )

    __float__ = __int__ = __index__ = __complex__ = item = tolist = _no_number

    def __bool__(self) -> bool:
        return bool(self._value)  # a decision has no gradient

    def __repr__(self) -> str:
        return f"Variable({self._value!r})"


# Methods of arrays that are functions of NumPy by the same name and arguments.
_METHODS = frozenset(
    {
        *("all", "any", "argmax", "argmin", "argsort", "clip", "cumsum", "dot", "max", "mean"),
        *("min", "nonzero", "ravel", "repeat", "squeeze", "std", "sum", "swapaxes", "take", "var"),
    }
)


def _operators() -> None:
    """Give `Variable` the operators of arrays, without those in place."""
    names = "add subtract multiply true_divide floor_divide power matmul greater greater_equal"
    names += " less less_equal equal not_equal negative absolute positive"
    short = {"subtract": "sub", "multiply": "mul", "true_divide": "truediv", "power": "pow"}
    short |= {"floor_divide": "floordiv", "greater": "gt", "greater_equal": "ge", "less": "lt"}
    short |= {"less_equal": "le", "equal": "eq", "not_equal": "ne", "negative": "neg"}
    short |= {"absolute": "abs", "positive": "pos"}

    def forward(ufunc: Any) -> Any:
        return lambda self, *other: _rules().ufunc(ufunc, "__call__", (self, *other), {})

    def reflected(ufunc: Any) -> Any:
        return lambda self, other: _rules().ufunc(ufunc, "__call__", (other, self), {})

    def in_place(symbol: str) -> Any:
        def refuse(self: Variable, other: Any) -> Any:
            raise TypeError(
                f"x {symbol}= ...: expected no change in place within vjp; use x = x {symbol} ..."
            )

        return refuse

    for name in names.split():
        setattr(Variable, f"__{short.get(name, name)}__", forward(getattr(np, name)))
    symbols = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "matmul": "@"}
    symbols["floordiv"] = "//"
    long = {v: k for k, v in short.items()}
    for name, symbol in symbols.items():
        setattr(Variable, f"__r{name}__", reflected(getattr(np, long.get(name, name))))
        setattr(Variable, f"__i{name}__", in_place(symbol))


_operators()


@functools.cache
def _rules() -> Any:
    """Return the rules of the operations, which an import of the package does without."""
    return importlib.import_module("ostinato._rules")


def value_of(x: Any) -> Any:
    """Return the array of a Variable; anything else as it is."""
    return x._value if type(x) is Variable else x


def stop_gradient(x: Any) -> Any:
    """Return arrays that count as constants: no gradient goes through them.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.vjp(lambda x: (x * ost.stop_gradient(x)).sum(), np.array([3.0]))
    >>> pullback().tolist()
    [3.0]

    Args:
        x: an array, or what stands for one within `vjp`; also tuples, lists, dicts and `Ragged` of
            them, such as a state.

    Returns:
        The plain array, or those of a structure; outside of `vjp` that is x itself.
    """
    read = mapped(_read, x) if active() is not None else x
    return plain(read) if variables_in(read) else x


def _read(a: Any) -> Any:
    """Return what a parameter that is no attribute of a model stands for; anything else as it is.

    In lists and dicts of a model it stays what it is, and operations read it.
    """
    return a.value if getattr(a, "_is_parameter", False) else a


def record(value: Any, *inputs: tuple[Any, Slope]) -> Any:
    """Return the result of an operation, as a Variable if one of its inputs is one.

    Args:
        value: the result.
        *inputs: each input with the function from the gradient of the result to that of the input,
            which may have the shape and dtype that broadcasting gave it.
    """
    pairs = [(x, slope) for x, slope in inputs if type(x) is Variable]
    if not pairs:
        return value
    recording = pairs[0][0]._recording
    recording.require_active()
    if value.dtype.kind != "f":
        raise TypeError(
            "Variable: expected operations on real numbers within vjp, got a result of "
            f"{value.dtype}; ost.stop_gradient(x) gives the plain array, without a gradient"
        )
    out = recording.variable(value)
    recording.steps.append(_Operation(out._index, [(x._index, slope) for x, slope in pairs]))
    return out


class _Operation:
    """An operation on arrays: its result, and its inputs with their slopes."""

    __slots__ = ("inputs", "output")

    def __init__(self, output: int, inputs: list[tuple[int, Slope]]) -> None:
        self.output, self.inputs = output, inputs

    def require_ready(self) -> None:
        """Return: arrays do not change within a recording."""

    def mark(self, live: list[bool]) -> None:
        """Note whether the result depends on something whose gradient is wanted."""
        live[self.output] = any(live[k] for k, _ in self.inputs)

    def back(self, run: Backward) -> None:
        """Add the gradients of the inputs."""
        d = run.take(self.output)
        if d is not None:
            for k, slope in self.inputs:
                if run.live[k]:
                    run.add(k, slope(d))


class _LayerCall:
    """A call of a layer: its pullback, its inputs and its outputs as they were given."""

    def __init__(self, layer: Layer, pullback: Any, given: tuple[Any, Any], out: Any) -> None:
        self.layer, self.pullback, self.given, self.out = layer, pullback, given, out
        self.inputs = [v._index for v in variables_in(given)]
        self.outputs = [v._index for v in variables_in(out)]

    @functools.cached_property
    def trains(self) -> bool:
        """Whether a parameter of the layer is trained."""
        entry = self.layer._block.entry
        return any(entry(self.layer._prefix + n).trainable for n in self.layer.parameters())

    def require_ready(self) -> None:
        """Raise if the pullback of the layer has been used, or its parameters have changed."""
        if hasattr(self.pullback, "_require_ready"):  # a layer may return any function
            self.pullback._require_ready()

    def mark(self, live: list[bool]) -> None:
        """Note whether the outputs depend on something whose gradient is wanted."""
        on = any(live[k] for k in self.inputs) or self.trains
        for k in self.outputs:
            live[k] = on

    def back(self, run: Backward) -> None:
        """Run the pullback of the layer, unless nothing depends on its outputs."""
        found = {k: run.take(k) for k in self.outputs}
        wanted = any(run.live[k] for k in self.inputs)
        if all(d is None for d in found.values()) or not (wanted or self.trains):
            return
        options: dict[str, Any] = {"need_dx": any(run.live[k] for k in _indices(self.given[0]))}
        into = run.views(self.layer)
        if into is not None:
            options["grads"] = into
        if not self.layer.stateful:
            dx, dstate = self.pullback(_gradient(self.out, found), **options), None
        else:
            y, state = self.out
            dx, dstate = self.pullback(_gradient(y, found), _gradient(state, found), **options)
        for given, d in zip(self.given, (dx, dstate)):
            for v, part in _paired(given, d):
                if part is not None and run.live[v._index]:
                    run.add(v._index, part)


class _Leaf:
    """A parameter that was read as an array."""

    def __init__(self, block: Block, name: str, index: int) -> None:
        self.block, self.name, self.index, self.version = block, name, index, block.version

    def require_ready(self) -> None:
        """Raise if the parameters have changed since the call."""
        if self.block.version != self.version:
            raise RuntimeError(
                "pullback: the parameters have changed since the forward pass; call vjp again"
            )

    def mark(self, live: list[bool]) -> None:
        """Note whether the parameter is trained."""
        live[self.index] = self.block.entry(self.name).trainable

    def back(self, run: Backward) -> None:
        """Add the gradient to those of the parameters."""
        d = run.take(self.index)
        if d is not None and run.live[self.index]:
            self.block.view(run.buffer(self.block), self.name)[...] += d


class Recording:
    """The operations of one call of a function.

    Args:
        rng: the generator of dropout; None: each layer's own.
        options: given to every recurrent layer, such as ``memory_limit``.
    """

    def __init__(self, rng: np.random.Generator | None, options: dict[str, Any]) -> None:
        self.rng, self.options = rng, options
        self.options_used = False
        self.inputs = 0  # the first Variables are arguments of the call
        self.constants: set[int] = set()  # those of them that a loss has taken as a target
        self.steps: list[Any] = []
        self.kinds: list[tuple[tuple[int, ...], Any]] = []  # shape and dtype of every Variable
        self._leaves: dict[tuple[int, str], Variable] = {}

    def variable(self, value: Any) -> Variable:
        """Return a new Variable."""
        self.kinds.append((value.shape, value.dtype))
        return Variable(value, self, len(self.kinds) - 1)

    def require_active(self) -> None:
        """Raise unless this is the recording that is going on."""
        if active() is not self:
            raise RuntimeError(
                "Variable: expected to be used within the vjp that made it, got one of another"
            )

    def parameter(self, block: Block, name: str) -> Variable:
        """Return a parameter as a Variable, always the same one."""
        key = (id(block), name)
        if key not in self._leaves:
            made = self.variable(block.view(block.values, name, writable=False))
            self._leaves[key] = made
            self.steps.append(_Leaf(block, name, made._index))
        return self._leaves[key]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the operations of this thread."""
        thread = get_ident()
        if thread in _RECORDINGS:
            raise RuntimeError(
                "vjp: expected no recording within another; gradients of gradients are not "
                "computed (a Layer with a vjp of its own may use one)"
            )
        _RECORDINGS[thread] = self
        try:
            yield
        finally:
            del _RECORDINGS[thread]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the operations of this thread unrecorded."""
        thread = get_ident()
        del _RECORDINGS[thread]
        try:
            yield
        finally:
            _RECORDINGS[thread] = self

    def taken(self) -> list[Any]:
        """Return the operations, and forget them and the parameters.

        Both hold Variables, and those the recording: memory in a circle stays until the collector
        comes by, which counts objects and not their bytes.
        """
        steps, self.steps, self._leaves = self.steps, [], {}
        return steps

    def enters(self, layer: Layer) -> bool:
        """Whether the calls within that of a layer are recorded, and not the layer's vjp."""
        return layer._calls_are_recorded()

    def call(self, layer: Layer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the vjp of a layer as one operation."""
        x, args = (args[0], args[1:]) if args else (options.pop("x", None), ())
        state = options.pop("state", args[0] if args and layer.stateful else None)
        more = args[1:] if layer.stateful else args
        for v in variables_in((more, options)):
            raise TypeError(
                f"{type(layer).__name__}: expected gradients for its inputs and its state alone, "
                f"got a Variable of shape {v.shape} elsewhere; ost.stop_gradient(x) gives the "
                "plain array"
            )
        given = plain(x), plain(state)
        if self.rng is not None:
            options["rng"] = self.rng
        if layer.stateful and layer.takes_lengths:
            options, self.options_used = {**self.options, **options}, True
        with self.paused():
            refuse_overridden(layer, "vjp")
            if layer.stateful:
                out, pullback = layer.vjp(given[0], given[1], *more, **options)
            else:
                out, pullback = layer.vjp(given[0], *more, **options)
        wrapped = self.wrapped(out)
        self.steps.append(_LayerCall(layer, pullback, (x, state), wrapped))
        return wrapped

    def wrapped(self, out: Any) -> Any:
        """Return Variables in place of the arrays of real numbers in a structure."""

        def one(a: Any) -> Any:
            if a is not None and type(a) is not np.ndarray:
                a = unmasked("args", _device.taken(a))
            floats = is_array(a) and a.dtype.kind == "f"
            return self.variable(a) if floats else a

        return mapped(one, out)


class Backward:
    """The gradients of one way back.

    Args:
        recording: what to run back through.
        steps: its operations.
        inputs: numbers of the Variables that the function was given.
        grads: gradients to add to in place of those of the model that they belong to.
        need_dx: whether the gradients of the inputs are wanted.
    """

    def __init__(
        self,
        recording: Recording,
        steps: Sequence[Any],
        inputs: Sequence[int],
        grads: Views | None,
        need_dx: bool,
    ) -> None:
        self._recording, self._steps, self._grads = recording, steps, grads
        count = len(recording.kinds)
        self.live = [False] * count
        for k in inputs:
            self.live[k] = need_dx
        for step in steps:
            step.mark(self.live)
        self._found: list[Any] = [None] * count
        self._owned = [False] * count

    def add(self, index: int, d: Any) -> None:
        """Add to the gradient of a Variable."""
        shape, dtype = self._recording.kinds[index]
        if d.shape != shape:
            d = summed_to(d, shape)
        if d.dtype != dtype:
            d = d.astype(dtype)
        now = self._found[index]
        if now is None:
            self._found[index] = d
        elif self._owned[index] and shape:
            now += d
        else:
            self._found[index], self._owned[index] = now + d, True

    def take(self, index: int) -> Any:
        """Return the gradient of a Variable, None for zero, and forget it."""
        d, self._found[index] = self._found[index], None
        return d

    def buffer(self, block: Block) -> Array:
        """Return the gradients of a block of parameters."""
        given = self._grads
        return given._written() if given is not None and given._block is block else block.grads

    def views(self, layer: Layer) -> Views | None:
        """Return the gradients that the pullback of a layer adds to; None: its own."""
        given = self._grads
        if given is None or given._block is not layer._block:
            return None
        return type(given)(given._block, given._buffer, layer._prefix, writable=True)

    def run(self, out: Any, d: Any, given: Any) -> Any:
        """Return the gradients of ``given`` from those of ``out``."""
        for v, part in _paired(out, d):
            if part is not None:
                self.add(v._index, part)
        inputs = {v._index for v in variables_in(given)}
        for step in reversed(self._steps):
            step.back(self)

        def one(v: Any) -> Any:
            if type(v) is not Variable or v._index not in inputs or not self.live[v._index]:
                return None
            if v._index in self._recording.constants:
                return None
            found = self.take(v._index)
            if found is None:
                return np.zeros_like(v._value)
            # Whoever gets a gradient may change it: it is neither d itself, nor that of another
            # input, nor a broadcast view of either.
            return found if self._owned[v._index] else found.copy()

        return mapped(one, given)


def summed_to(d: Any, shape: tuple[int, ...]) -> Any:
    """Return the gradient of what was broadcast from a shape: sums over the axes that were added.

    A gradient of fewer elements, such as that of a sum, is broadcast instead.
    """
    extra = d.ndim - len(shape)
    axes = tuple(range(extra))
    axes += tuple(k + extra for k, n in enumerate(shape) if n == 1 and d.shape[k + extra] != 1)
    if axes:
        d = d.sum(axis=axes, keepdims=True)
        d = d.reshape(d.shape[extra:])
    return d if d.shape == shape else np.broadcast_to(d, shape)


# -- structures: arrays in tuples, lists, dicts and Ragged -----------------------------------------


def _is_ragged(a: Any) -> bool:
    """Return whether a value is a `Ragged`, whose module is above this one."""
    return getattr(a, "_is_ragged", False) is True


def mapped(function: Callable[[Any], Any], a: Any) -> Any:
    """Return a structure with the function of each of its leaves."""
    if type(a) is Variable or type(a) is np.ndarray:  # the most of them, at the least cost
        return function(a)
    if isinstance(a, (tuple, list)):
        parts = [mapped(function, b) for b in a]
        return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
    if isinstance(a, dict):
        return {name: mapped(function, b) for name, b in a.items()}
    if _is_ragged(a):
        rows = mapped(function, a.rows)  # which may be sequences themselves
        return None if rows is None else a.like(rows)
    return function(a)


def plain(a: Any) -> Any:
    """Return a structure with the arrays of its Variables."""
    return mapped(value_of, a)


def variables_in(a: Any) -> list[Variable]:
    """Return the Variables of a structure, in order."""
    found: list[Variable] = []

    def one(v: Any) -> Any:
        if type(v) is Variable:
            found.append(v)
        return v

    mapped(one, a)
    return found


def _indices(a: Any) -> list[int]:
    return [v._index for v in variables_in(a)]


def _gradient(out: Any, found: dict[int, Any]) -> Any:
    """Return gradients in the form of an output, zeros where there is none beside others."""
    if all(found[k] is None for k in _indices(out)):
        return None

    def one(v: Any) -> Any:
        if type(v) is not Variable:
            return v if is_array(v) else None
        d = found[v._index]
        if d is None:
            return np.zeros_like(v._value)
        return np.ascontiguousarray(d) if type(d) is np.ndarray else d

    return mapped(one, out)


def _paired(out: Any, d: Any, name: str = "d") -> Iterator[tuple[Variable, Any]]:
    """Yield the Variables of an output, each with its part of the gradient, which is checked."""
    if d is None or out is None:
        return
    if _is_ragged(out):
        yield from _paired(out.rows, d.rows if _is_ragged(d) else d, name)
    elif isinstance(out, (tuple, list, dict)):
        keys = list(out) if isinstance(out, dict) else list(range(len(out)))
        alike = isinstance(d, dict if isinstance(out, dict) else (tuple, list))
        if not alike or len(d) != len(out):
            got = f"one of {len(d)}" if alike else type(d).__name__
            raise TypeError(f"{name}: expected a {type(out).__name__} of {len(out)}, got {got}")
        if isinstance(out, dict) and (missing := [key for key in keys if key not in d]):
            raise TypeError(f"{name}: expected {missing[0]!r} in it, got {some(list(d))}")
        for key in keys:
            yield from _paired(out[key], d[key], f"{name}[{key!r}]")
    elif type(out) is Variable:
        if type(d) is not np.ndarray:
            d = unmasked(name, _device.taken(d))
        if is_array(d):
            _device.same(name, d, out._value, "the output")
        elif not isinstance(d, np.generic):
            raise TypeError(f"{name}: expected an array, got {type(d).__name__}")
        if d.shape != out.shape:
            raise ValueError(
                f"{name}: expected shape {out.shape} of {out.dtype}, got {d.shape} of {d.dtype}"
            )
        of_dtype(name, d, out.dtype)
        yield out, d


# -- calls of layers and losses --------------------------------------------------------------------


def recordable(call: Callable[..., Any], of: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``__call__`` that runs ``of(recording, call, self, args, options)`` in a recording.

    Outside of recordings it costs a third of a microsecond.
    """

    @functools.wraps(call)
    def recorded(self: Any, *args: Any, **options: Any) -> Any:
        if not _RECORDINGS:
            return call(self, *args, **options)
        recording = active()
        if recording is None:
            return call(self, *args, **options)
        return of(recording, call, self, args, options)

    return recorded


def of_layer(
    recording: Recording, call: Callable[..., Any], layer: Any, args: Any, options: Any
) -> Any:
    """Record a call of a layer, or the calls within that of a model."""
    if recording.enters(layer):
        _ = layer._block  # laid out before its parameters are read
        return call(layer, *args, **options)
    return recording.call(layer, args, options)


def of_loss(
    recording: Recording, call: Callable[..., Any], loss: Any, args: Any, options: Any
) -> Any:
    """Record a call of a loss: its value has the gradient that it returns.

    y is an array, a `Ragged` or a list; every array of it that is recorded gets its part.
    A target that is an argument of the recorded call is a constant: its gradient is None.
    """
    args, y = list(args), options.get("y", args[0] if args else None)
    others = [a for k, a in enumerate(args) if k], {n: a for n, a in options.items() if n != "y"}
    for v in variables_in(others):
        if v._index < recording.inputs:  # an argument of the recorded call, such as the target
            recording.constants.add(v._index)
            continue
        raise TypeError(
            f"{type(loss).__name__}: expected a gradient for y alone, got a Variable of shape "
            f"{v.shape} elsewhere; ost.stop_gradient(x) gives the plain array"
        )
    args, options = plain(args), plain(options)
    ys = variables_in(y)
    if not ys:
        return call(loss, *args, **options)
    with recording.paused():
        value, dy = call(loss, *args, **options)
    pairs = [(y, dy)] if type(y) is Variable else list(_paired(y, dy, "dy"))
    if len(pairs) != len(ys):
        raise TypeError(
            f"{type(loss).__name__}: expected a gradient for every part of y, got {len(pairs)} "
            f"for {len(ys)}"
        )
    if _device.of(value) is None:
        value = np.asarray(value)
    made = _device.like(value.astype(ys[0].dtype), ys[0]._value)
    return record(made, *((v, _times(part)) for v, part in pairs)), dy


def _times(dy: Any) -> Slope:
    """Return the slope of a number in an array whose gradient is known."""
    return lambda d: d * dy


def record_loss(kind: Any) -> None:
    """Let calls of a class of losses be recorded, if it defines them."""
    if "__call__" in vars(kind):
        kind.__call__ = recordable(vars(kind)["__call__"], of_loss)


@functools.lru_cache(1024)
def overriding(kind: type, name: str) -> type | None:
    """Return the class that defines ``__call__`` if it knows nothing of the method ``name``.

    That is so where a base of it defines the method, for a ``__call__`` of its own.
    """
    order = kind.__mro__
    calls = next(c for c in order if "__call__" in vars(c))
    other = next(c for c in order if name in vars(c))
    return calls if order.index(calls) < order.index(other) else None


def refuse_overridden(layer: Any, name: str) -> None:
    """Raise if a class overrides ``__call__`` and inherits a method that would ignore it."""
    if name == "vjp" and layer._calls_are_recorded():
        return  # the vjp of a model runs its call
    if name == "_join_stream" and layer._streams_its_call():
        return  # the stream of a model runs the layers that its call runs
    own: Any = type(layer)
    kind = overriding(own, name)
    if kind is not None:
        base = next(c for c in kind.__mro__ if name in vars(c))
        if base.__name__ != "Layer":  # which says itself that it has no such method
            shown = "stream" if name == "_join_stream" else name
            raise TypeError(
                f"{shown}: expected the __call__ of {base.__name__}, got that of {kind.__name__}, "
                f"which overrides it and not {shown}, and would be ignored; derive from "
                "ost.nn.Model and call the layer there, or override both"
            )


# -- vjp -------------------------------------------------------------------------------------------


class Recorded:
    """The result of a call with its recording.

    Args:
        function: what is called.
        args: the arguments: gradients are computed for arrays of real numbers among them.
        options: named arguments, without gradients.
        rng: seed or generator of dropout.
        layer_options: of all recurrent layers, None for none.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        rng: Seed,
        layer_options: dict[str, Any],
    ) -> None:
        given = {n: o for n, o in layer_options.items() if o is not None}
        self.recording = Recording(None if rng is None else generator(rng), given)
        self.given = self.recording.wrapped(args)
        self.recording.inputs = len(self.recording.kinds)
        try:
            with self.recording.running():
                self.out = function(*self.given, **options)
        finally:
            self.steps = self.recording.taken()
        if given and not self.recording.options_used:
            raise ValueError(
                f"{next(iter(given))}: expected a model with recurrent layers, got a call of none"
            )
        for v in variables_in(self.out):
            if v._recording is not self.recording:
                raise RuntimeError("vjp: expected outputs of this call, got those of another")

    @property
    def values(self) -> Any:
        """The outputs as plain arrays."""
        return mapped(_output, self.out)

    def require_gradient(self, name: str) -> None:
        """Raise if nothing of the output has a gradient."""
        if not variables_in(self.out):
            raise TypeError(
                f"{name}: expected an output that depends on parameters or inputs of real "
                f"numbers, got {type(self.out).__name__} without any"
            )

    def require_ready(self, d: Any) -> None:
        """Raise if d is no gradient of the output, or if parameters have changed since the call."""
        for _ in _paired(self.out, d):
            pass
        for step in self.steps:
            step.require_ready()

    def back(self, d: Any, grads: Views | None, need_dx: bool) -> Any:
        """Return the gradients of the arguments, and add those of the parameters.

        What `require_ready` asks has been made sure of, so that all of them are added or none.
        """
        run = Backward(self.recording, self.steps, _indices(self.given), grads, need_dx)
        return run.run(self.out, d, self.given)

    def ones(self) -> Any:
        """Return the gradient of the output by itself, if that is a single number."""
        out = self.out
        if type(out) is not Variable or out.size != 1:
            raise TypeError(
                f"d: expected the gradient of the output, which is no single number, got None "
                f"for {type(out).__name__}"
            )
        return np.ones_like(out._value)


def _output(v: Any) -> Any:
    """Return the array of a Variable; that of NumPy without axes as a number.

    Slopes may read it, so whoever gets one that can be changed gets a copy. (The y of a layer is
    read-only.)
    """
    a = value_of(v)
    if not isinstance(a, np.ndarray):
        return a
    if not a.shape:
        return a[()]
    return a.copy(order="K") if a is not v and a.flags.writeable else a


class FunctionPullback:
    """Compute the gradients of one call that `vjp` recorded, once.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.vjp(lambda a, b: a @ b, np.ones((2, 3)), np.ones((3, 4)))
    >>> [d.shape for d in pullback(y)]
    [(2, 3), (3, 4)]

    Args:
        recorded: the call.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._recorded: Recorded | None = recorded

    def __call__(self, d: Any = None, *, need_dx: bool = True) -> Any:
        """Add the gradients of all parameters to those of their layers; return those of the inputs.

        Args:
            d: gradient of the output, in its form (None in place of a part is zero). None: 1, for
                an output that is a single number.
            need_dx: whether the gradients of the inputs are wanted.

        Returns:
            The gradient of the argument, or a tuple with one entry an argument if there are
            several; None for what is no array of real numbers, for the target of a loss, and
            without need_dx.

        Raises:
            RuntimeError: the pullback has been used, or parameters have changed since the call.
            TypeError: d has another form, dtype or device than the output; the pullback can be
                called again.
            ValueError: d has another shape, or masked elements; the pullback can be called again.
        """
        recorded = self._recorded
        if recorded is None:
            raise RuntimeError("pullback: it has been used; call vjp again")
        d = recorded.ones() if d is None else d
        recorded.require_ready(d)  # before anything is added
        self._recorded = None
        found = recorded.back(d, None, need_dx)
        return found[0] if len(found) == 1 else found


def vjp(
    function: Callable[..., Any],
    *args: Any,
    rng: Seed = None,
    memory_limit: str | int | None = None,
    clip_step_value: float | None = None,
    clip_step_norm: float | None = None,
    **options: Any,
) -> tuple[Any, FunctionPullback]:
    """Call a model or any function of arrays; return what it returns, and a pullback.

    Layers within are run by their own `vjp`, the fused one. Operations of NumPy on arrays are
    recorded: arithmetic, comparisons, matmul, einsum, indexing, joining and cutting, reductions,
    elementary functions, and those of `ostinato.nn` such as `ostinato.nn.softmax`. An operation
    that is not known is an error that names it. Losses of `ostinato.losses` give their value with
    its gradient. Arrays of a device are recorded likewise.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Net(ost.nn.Model):
    ...     def __init__(self):
    ...         self.rnn = ost.nn.GRU(3, 8, rng=0)
    ...         self.head = ost.nn.Linear(8, 1, rng=1)
    ...     def __call__(self, x):
    ...         y, _ = self.rnn(x)
    ...         return self.head(np.tanh(y).mean(0))
    >>> model, x = Net(), np.ones((5, 2, 3), np.float32)
    >>> loss, pullback = ost.vjp(lambda x: (model(x) ** 2).mean(), x)
    >>> pullback().shape, bool(model.grads["head.bias"].any())
    ((5, 2, 3), True)

    Args:
        function: a model, a layer, or any function.
        *args: its arguments; arrays of real numbers among them, also in tuples, lists and `Ragged`,
            get gradients.
        rng: seed or generator of dropout in all layers; None: each layer's own.
        memory_limit: of every recurrent layer; see `nn.RNN.vjp`.
        clip_step_value: of every recurrent layer; see `nn.RNN.vjp`.
        clip_step_norm: of every recurrent layer; see `nn.RNN.vjp`.
        **options: named arguments of the function, which get no gradient.

    Returns:
        ``output, pullback``, where ``pullback(d)`` adds the gradients of the parameters to those of
        their layers (``model.grads``) and returns those of the arguments.

    Raises:
        RuntimeError: a vjp within what another one records.
        TypeError: function is none; an operation that is not known, or an output without a
            gradient.
        ValueError: an option of recurrent layers where the function has none, or of a wrong value.
    """
    if not callable(function):
        raise TypeError(f"function: expected a model or a function, got {type(function).__name__}")
    given = {
        "memory_limit": memory_limit,
        "clip_step_value": clip_step_value,
        "clip_step_norm": clip_step_norm,
    }
    recorded = Recorded(function, args, options, rng, given)
    recorded.require_gradient("vjp")
    return recorded.values, FunctionPullback(recorded)


readable(globals())
