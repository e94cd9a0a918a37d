"""Define what every layer has: parameters, writing, state dicts, saving, and the pullback."""

from __future__ import annotations

import copy
import functools
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _core, _device
from .._annotations import readable
from .._check import Array
from .._recording import of_layer, recordable
from ._block import Block, Entry, Views
from ._stream import Stream
from ._walk import layers_of


class Layer:
    """Base of all layers; derive from it to write your own.

    A layer declares its parameters once, by `_declare` in ``__init__``, and then defines two
    methods:

    - ``layer(x)`` gives y, or ``layer(x, state, lengths=...)`` gives ``(y, state)`` if `stateful`
      is True;
    - ``layer.vjp(x)`` gives ``y, pullback`` (or ``(y, state), pullback``), where ``pullback(dy)``
      adds the gradients of the parameters to what `_gradients` hands out and returns ``dx`` (or
      ``pullback(dy, dstate)`` returns ``dx, dstate``).

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Scale(ost.nn.Layer):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self._declare({"scale": np.ones(size, np.float32)})
    ...     def __call__(self, x):
    ...         return x * self.parameters()["scale"]
    ...     def vjp(self, x, *, rng=None):
    ...         def backward(grads, dy, need_dx):
    ...             if grads["scale"] is not None:  # None: frozen
    ...                 grads["scale"][...] += (dy * x).sum((0, 1))
    ...             return dy * self.parameters()["scale"]
    ...         return self(x), self._pullback(backward)
    >>> y, pullback = Scale(3).vjp(np.ones((2, 1, 3), np.float32))
    >>> pullback(np.ones_like(y)).shape
    (2, 1, 3)

    Args:
        dtype: float32 or float64, of parameters, inputs and outputs.

    Raises:
        TypeError: dtype is neither float32 nor float64.
    """

    stateful = False  # returns (y, state) and takes a state
    takes_lengths = False
    takes_trees = False  # reads the edges of `ostinato.Trees`
    _within_steps = False  # runs what is in it on every step by itself
    _cache: Any = None  # packed weights, a snapshot
    _is_layer = True
    _layer_attributes: frozenset[str] = frozenset()  # that may hold layers, which it knows of
    _options: frozenset[str] = frozenset()  # arguments of our constructors: set once, as attributes
    # Those that may be set again, with what checks a value; None: the property of that name does.
    _settable: Mapping[str, Callable[[str, Any], Any] | None] = MappingProxyType({})
    # Those that decide what is computed with the same parameters; a file names them.
    _functional: tuple[str, ...] = ()
    _stored: frozenset[str] = frozenset()  # the options that our constructors have set
    _given: tuple[tuple[Any, ...], dict[str, Any]]  # the arguments that the layer was made with

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # mypy does not let a method be replaced, which is what a class of layers is for here.
        if "__call__" in vars(cls):
            cls.__call__ = recordable(vars(cls)["__call__"], of_layer)  # type: ignore[method-assign]
        if "__init__" in vars(cls):
            init = vars(cls)["__init__"]
            if own := cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
                code = init.__code__
                count = code.co_argcount + code.co_kwonlyargcount
                cls._options = cls._options | set(code.co_varnames[1:count])
            cls.__init__ = _remembering(init, own)  # type: ignore[method-assign]

    def _prepare(self) -> None:
        """Make what has to be there before any ``__init__`` runs."""

    def _finish(self) -> None:
        """Do what is left when all ``__init__`` have run."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_owner" and name not in self._layer_attributes and holds(value, Layer):
            raise TypeError(
                f"{name}: expected no layer as this attribute of {type(self).__name__}, whose "
                "parameters would not be found; derive from ost.nn.Model"
            )
        if name in self._options:
            value = self._checked_option(name, value)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._stored and name in self.__dict__:
            raise AttributeError(f"{name}: expected to stay, since it is an option of {self!r:.80}")
        object.__delattr__(self, name)

    def _checked_option(self, name: str, value: Any) -> Any:
        """Return the value of an option that is assigned; raise where it cannot be changed."""
        if name not in self.__dict__ or name not in self._stored:
            return value  # the constructor's, which has checked it; or not an option of ours
        check = self._settable.get(name)
        if check is None:
            kind = type(self).__name__
            raise AttributeError(
                f"{name}: expected no change once the {kind} is made, since it is built for its "
                f"options; make another {kind} with {name}=, and load state_dict() into it"
            )
        return check(name, value)

    def __init__(self, *, dtype: npt.DTypeLike = np.float32) -> None:
        self._dtype = _check.real_dtype(dtype)
        self._block = Block({}, {}, self._dtype)
        self._prefix = ""
        self._owner: Layer | None = None

    def _declare(self, arrays: Mapping[str, Array], *, no_decay: tuple[str, ...] = ()) -> None:
        """Give the layer its parameters; vectors and those in no_decay have no weight decay."""
        decay = {n: a.ndim > 1 and n not in no_decay for n, a in arrays.items()}
        self._block = Block(arrays, decay, self._dtype)

    @property
    def reduces_time(self) -> bool:
        """Whether the layer gives one output a sequence instead of one a step."""
        return False

    # -- parameters --------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters, inputs and outputs: float32 or float64."""
        return self._dtype

    def parameters(self) -> Views:
        """Return a mapping from names to read-only views of the parameters; `write` changes them.

        Returns:
            The views, which follow every change of the parameters.
        """
        return Views(self._block, self._block.values, self._prefix, writable=False)

    @property
    def grads(self) -> Views:
        """A mapping from names to read-only views of the accumulated gradients."""
        return Views(self._block, self._block.grads, self._prefix, writable=False)

    @property
    def flat(self) -> Array:
        """All parameters as one 1-D read-only view, with zeros between the segments of names."""
        return self.parameters().flat

    @property
    def flat_grads(self) -> Array:
        """All gradients as one 1-D read-only view, laid out as `flat`."""
        return self.grads.flat

    @property
    def device(self) -> str:
        """The device of the parameters, where the layer runs: "cpu", "cuda:0" and so on."""
        return _device.name_of(self._block.values)

    def to(self, device: str) -> Any:
        """Move the parameters and their gradients to a device; return the layer.

        From then on the layer takes and gives arrays of that device.

        >>> import ostinato as ost
        >>> ost.nn.GRU(3, 5, rng=0).to("cpu").device
        'cpu'

        Args:
            device: "cpu"; "cuda", the current GPU; "cuda:0" and so on.

        Returns:
            The layer itself.

        Raises:
            ValueError: an unknown name, a layer that is part of a model (which moves as a whole),
                or a precision that the device does not have.
            RuntimeError: there is no GPU, no module for GPUs or no CuPy; the message says which,
                and nothing has changed.
        """
        if self._owner is not None:
            raise ValueError("device: expected the whole model to be moved, got one of its layers")
        self._move(_device.named(device))
        return self

    def _move(self, device: _device.Device | None) -> None:
        self._check_device(device)
        self._block.move(device)

    def _check_device(self, device: _device.Device | None) -> None:
        """Raise if the layer cannot run there."""

    @property
    def version(self) -> int:
        """A number that grows with every change of a parameter."""
        return self._block.version

    @contextmanager
    def write(self) -> Iterator[Views]:
        """Open the parameters for writing, the only way to change them.

        >>> import ostinato as ost
        >>> layer = ost.nn.Linear(3, 2, rng=0)
        >>> with layer.write() as p:
        ...     p["bias"][...] = 0

        Yields:
            A mapping from names to writable views of the parameters.
        """
        try:
            yield Views(self._block, self._block.values, self._prefix, writable=True)
        finally:
            self._block.version += 1
            self._block.changes += 1

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._writable_grads().flat[...] = 0

    def _clear_grads(self) -> None:
        """Set all gradients to zero, on the CPU when they are next read or added to.

        Arrays that somebody has kept of them do not follow before that.
        """
        if type(self).zero_grad is Layer.zero_grad:
            self._block.clear_grads(self._prefix)
        else:
            self.zero_grad()

    def new_grads(self) -> Views:
        """Return a second set of gradients, at zero.

        A pullback takes it as ``grads=``, so that threads or single samples have gradients of their
        own.

        Returns:
            A mapping from names to writable arrays.
        """
        return Views(self._block, np.zeros_like(self._block.values), self._prefix, writable=True)

    def freeze(self, pattern: str = "*") -> None:
        """Leave parameters out of training: gradients become zero, and steps do not move them.

        Args:
            pattern: shell pattern of the names, such as ``"*_l0"``.

        Raises:
            KeyError: no parameter matches.
            TypeError: a pattern that is no text.
        """
        names = self._block.mark(self._within(pattern), trainable=False)
        for name in names if self._block.has_grads else ():
            self._block.view(self._block.grads, name)[...] = 0

    def unfreeze(self, pattern: str = "*") -> None:
        """Take frozen parameters back into training.

        Args:
            pattern: shell pattern of the names.

        Raises:
            KeyError: no parameter matches.
            TypeError: a pattern that is no text.
        """
        self._block.mark(self._within(pattern), trainable=True)

    def _within(self, pattern: str) -> str:
        """Return a pattern of names of this layer as one of names of the whole model."""
        return glob.escape(self._prefix) + _check.text("pattern", pattern, "a pattern of names")

    def set_decay(self, pattern: str, decay: bool) -> None:
        """Choose whether weight decay acts on parameters; by default it does on all but vectors.

        Peepholes and embeddings are left out by default as well.

        Args:
            pattern: shell pattern of the names.
            decay: whether decay acts on the parameters that match.

        Raises:
            KeyError: no parameter matches.
            TypeError: a pattern that is no text, or decay that is no bool.
        """
        self._block.mark(self._within(pattern), decay=_check.flag("decay", decay))

    def count_parameters(self, *, trainable_only: bool = False) -> int:
        """Count the elements of all parameters.

        Args:
            trainable_only: whether to leave out frozen parameters.

        Returns:
            The number of elements.

        Raises:
            TypeError: trainable_only is no bool.
        """
        trainable_only = _check.flag("trainable_only", trainable_only)
        own = (e for n, e in self._block.entries.items() if n.startswith(self._prefix))
        return sum(e.size for e in own if e.trainable or not trainable_only)

    def _children(self) -> dict[str, Layer]:
        """Return the layers within this one by their names."""
        return {}

    def _times_after(self, times: dict[str, Any]) -> dict[str, Any]:
        """Return the options of time of what reads the outputs, which may have fewer steps."""
        return times

    def _has_recurrent(self) -> bool:
        """Whether it, or a layer within it, has a state and knows of resets and the like."""
        return self.stateful and self.takes_lengths

    def _ignores_padding(self, of_outputs: bool = False) -> bool:
        """Whether its inputs past the ends, or the gradients of its outputs there, do not count."""
        return self.takes_lengths

    def _calls_are_recorded(self) -> bool:
        """Whether a recording sees the calls within ``__call__``, in place of the layer's vjp."""
        return False

    def _streams_its_call(self) -> bool:
        """Whether a stream runs the layers that ``__call__`` runs."""
        return False

    def summary(self) -> str:
        """Return a table of the layers within this one, with their parameters.

        >>> import ostinato as ost
        >>> model = ost.nn.Sequential(rnn=ost.nn.GRU(3, 8), head=ost.nn.Linear(8, 2))
        >>> print(model.summary())
        name  layer         parameters  trained
        rnn   GRU(3, 8)            312      312
        head  Linear(8, 2)          18       18
        330 parameters in 1.3 kB of float32, 330 of them trained

        Returns:
            The table, a line for every layer without further ones in it and for every parameter
            that stands beside layers. A tied parameter is counted once.
        """
        return summary_of(self)

    # -- state dicts -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters, with PyTorch's names and shapes.

        Returns:
            Names to NumPy arrays, which may be changed.
        """
        return {n: np.array(_device.host(v)) for n, v in self.parameters().items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copy all parameters from a mapping of names to arrays, or, on an error, none.

        Values of another dtype are cast to the layer's: half precision and bfloat16 (of PyTorch or
        ``ml_dtypes``), which float32 holds exactly, and float64 and whole numbers, which are
        rounded.

        Args:
            mapping: names to arrays or PyTorch tensors, with all names of `parameters` and no
                others.

        Raises:
            KeyError: names that are missing or unknown; the message lists them.
            TypeError: no mapping, or a value that holds no numbers.
            ValueError: a shape that differs, or a value beyond the range of the layer's dtype.
        """
        mend = "; a file is read by load(path)" if isinstance(mapping, (str, os.PathLike)) else ""
        mapping = _check.mapping("mapping", mapping, "a mapping of names to arrays", mend)
        own, mapping = self.parameters(), self._untied(mapping)
        missing, unknown = (
            [n for n in own if n not in mapping],
            [n for n in mapping if n not in own],
        )
        if missing or unknown:
            these, others = _check.some(missing), _check.some(unknown)
            raise KeyError(f"mapping: missing {these}, unknown {others}")
        arrays = {}
        for name, view in own.items():
            a = _as_numbers(name, mapping[name])
            if a.shape != view.shape:
                raise ValueError(f"{name}: expected shape {view.shape}, got {a.shape}")
            arrays[name] = self._cast(name, a)
        with self.write() as p:
            for name, a in arrays.items():
                p[name][...] = _device.like(a, p[name])

    def _cast(self, name: str, a: Array) -> Array:
        """Return a new parameter in the layer's dtype; a copy where it lies in a parameter."""
        if a.dtype == self._dtype:
            own = self._block.values
            shared = _device.of(own) is None and np.may_share_memory(a, own)
            return a.copy() if shared else a
        with np.errstate(over="ignore"):
            cast = a.astype(self._dtype)
        if np.isfinite(a).all() and not np.isfinite(cast).all():
            raise ValueError(
                f"{name}: expected values within the range of {self._dtype}, got "
                f"{np.abs(a).max():.3g}"
            )
        return cast

    def _untied(self, mapping: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a mapping without the further names of tied parameters, whose values must agree.

        Other libraries write such a parameter under each of its names.
        """
        n = len(self._prefix)
        tied = {a[n:]: t[n:] for a, t in self._block.aliases.items() if a.startswith(self._prefix)}
        for name, target in tied.items():
            if name in mapping and target in mapping:
                a, b = (_as_numbers(k, mapping[k]) for k in (name, target))
                if not np.array_equal(a, b):
                    raise ValueError(f"{name}: expected the values of {target}, got others")
        given = [k for k in tied if k in mapping]
        return {k: v for k, v in mapping.items() if k not in given} if given else mapping

    def save(self, path: str | os.PathLike[str], *, dtype: str | None = None) -> None:
        """Write the parameters to a safetensors file, whole or, on an error, not at all.

        The file says how the layer was made, so that `ostinato.load` makes it anew.

        >>> import pathlib, tempfile
        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(3, 5, rng=0)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "gru.safetensors"
        >>> layer.save(path, dtype="bfloat16")  # half the bytes
        >>> layer.load(path)  # float32 again, rounded to 8 significant bits

        Args:
            path: the file to write.
            dtype: None: the layer's own. "bfloat16": every parameter rounded to the nearest
                bfloat16, ties to even, in half the bytes of float32.

        Raises:
            ValueError: another dtype, or a parameter too large for bfloat16; nothing is written.
            OSError: the file cannot be written.
        """
        from .. import safetensors  # here: its imports take a quarter of the time of ours
        from ._description import metadata_of

        safetensors.save(path, self.state_dict(), metadata_of(self), dtype=dtype)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from a safetensors file: all of them or, on an error, none.

        Args:
            path: the file to read.

        Raises:
            KeyError: names that are missing or unknown; the message lists them.
            OSError: the file cannot be read.
            ValueError: the file is damaged, a shape differs, or the parameters were saved by a
                layer that computes something else with them, such as one with another activation.
        """
        from .. import safetensors
        from ._description import require_functions

        arrays, metadata = safetensors.load(path)
        require_functions(self, metadata, os.fspath(path))
        self.load_state_dict(arrays)

    # -- for derived classes -----------------------------------------------------------------------

    def _gradients(self, grads: Views | None) -> dict[str, Array | None]:
        """Writable gradients by name; None for what is frozen."""
        return self._arrays_of(self._own_grads(grads))

    def _arrays_of(
        self, grads: Views, known: Mapping[str, Array] = MappingProxyType({})
    ) -> dict[str, Array | None]:
        """Return gradients by name, some of which are known; None for what is frozen."""
        entry = self._block.entry
        return {
            n: (known[n] if n in known else grads[n]) if entry(self._prefix + n).trainable else None
            for n in self.parameters()
        }

    def _own_grads(self, grads: Views | None) -> Views:
        if grads is None:
            return self._writable_grads()
        mine = (
            isinstance(grads, Views)
            and grads._block is self._block
            and grads._prefix == self._prefix
        )
        if not mine or _device.of(grads._buffer) is not _device.of(self._block.values):
            raise TypeError(
                f"grads: expected what new_grads() of this {type(self).__name__} gave, got "
                f"{type(grads).__name__}"
            )
        return grads

    def _writable_grads(self) -> Views:
        return Views(self._block, self._block.held_grads, self._prefix, writable=True)

    def _pullback(self, backward: Callable[..., Any]) -> Pullback:
        """Return a pullback that serves once.

        It calls ``backward(grads, dy, need_dx)``, or ``backward(grads, dy, dstate, need_dx)`` for a
        layer with a state; grads are arrays to add to, by name, or None for what is frozen.
        """
        return Pullback(self, backward)

    def _gradient_target(self, grads: Views | None) -> Any:
        """Return what a pullback of this layer writes to."""
        return self._gradients(grads)

    def _packed(self, backward: bool) -> Any:
        """Return the packed weights of this version and kernel set, replaced as a whole."""
        own = getattr(self, "precision", None), getattr(self, "_scales_set", 0)
        key, cache = (self.version, _core.kernels(), *own), self._cache
        if cache is None or cache[0] != key or (backward and not cache[1].backward):
            cache = self._cache = None  # first: the old ones need not stay beside the new
            self._cache = cache = (key, self._pack(backward))
        return cache[1]

    def _pack(self, backward: bool) -> Any:
        raise TypeError(f"{type(self).__name__} has no packed weights")

    def stream(self, batch: int = 1) -> Stream:
        """Return a stream of the layer or model: one step a call, with states in slots.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> layers = ost.nn.Embedding(4, 3, rng=0), ost.nn.GRU(3, 5, rng=0)
        >>> stream = ost.nn.Sequential(*layers).stream(batch=2)
        >>> stream.step(np.array([0, 3])).shape
        (2, 5)

        Args:
            batch: B, the number of slots, each with a state of its own.

        Returns:
            The stream, see `Stream`.

        Raises:
            TypeError: a layer that needs more than one step at a time, or that has no number of
                features, as `Dropout` and `Activation` by themselves.
            ValueError: a layer that is bidirectional or not on the CPU; batch is less than 1.
        """
        return Stream(self, batch)

    # A stream adds what the layer computes to a native object, and works on the states that
    # `_join_stream` returns: None for a
    # layer without one, arrays (h, c) for a recurrent layer, a list for a model.

    def _join_stream(self, native: Any) -> Any:
        raise TypeError(
            "stream: expected layers that need one step at a time alone, got a "
            f"{type(self).__name__}, which has none; stream the layers before it"
        )

    def _reset_stream(self, states: Any, slots: Any) -> None:
        """Put slots back to their initial state."""

    def _stream_state(self, states: Any) -> Any:
        """Return the states, shaped as the layer gives them."""
        return None

    def _place(self, block: Block, prefix: str) -> None:
        """Move to another block, which holds this layer's parameters under ``prefix``."""
        self._block.changes += 1  # a stream watches the block that it was made of
        self._block, self._prefix, self._cache = block, prefix, None

    def _own_block(self) -> Block:
        """Return a new block with this layer's parameters alone, flags kept."""
        own = self.parameters()
        entries = {n: self._block.entry(self._prefix + n) for n in own}
        block = Block(own, {n: e.decay for n, e in entries.items()}, self.dtype)
        start = len(self._prefix)
        pairs = [
            (a[start:], t[start:])
            for a, t in self._block.aliases.items()
            if a.startswith(self._prefix) and t.startswith(self._prefix)
        ]
        block.tie(dict(pairs))
        for n, e in entries.items():
            block.mark(glob.escape(n), trainable=e.trainable)
            if self._block.has_grads:
                block.view(block.grads, n)[...] = self.grads[n]
        return block

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        alone = (
            self._owner is not None and not memo
        )  # copy.deepcopy(layer) itself, not something that holds it
        if self._owner is not None and not alone and id(self._owner) not in memo:
            copy.deepcopy(
                self._owner, memo
            )  # with its model, so that the two belong together in the copy as well
            return memo[id(self)]
        new = object.__new__(type(self))
        memo[id(self)] = new
        if alone:
            memo[id(self._block)] = self._own_block()
        new.__setstate__({k: copy.deepcopy(v, memo) for k, v in self.__getstate__().items()})
        if alone:
            new._place(new._block, "")
        return new

    # Weights are packed again when needed; a model sets itself as the owner of its layers.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_owner", "_watch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=None)

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; every layer defines it.

        Args:
            x: the inputs.
            *args: what else the layer takes, such as a state.
            **kwargs: options of the layer.

        Returns:
            y, or ``(y, state)`` for a layer with a state.

        Raises:
            TypeError: the layer does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")

    def vjp(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs for training; every layer that trains defines it.

        Args:
            x: the inputs.
            *args: what else the layer takes, such as a state.
            **kwargs: options of the layer.

        Returns:
            ``y, pullback``, or ``(y, state), pullback`` for a layer with a state.

        Raises:
            TypeError: the layer does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define vjp")


def _remembering(init: Callable[..., None], own: bool) -> Callable[..., None]:
    """Return an ``__init__`` that keeps its arguments, which a file needs to make the layer anew.

    Of those of a class and its bases, the first one that runs keeps them. One of our ``own`` also
    notes which of its options it has set: a class of a user may have attributes of the other names.
    """

    @functools.wraps(init)
    def remembering(self: Layer, *args: Any, **options: Any) -> None:
        first = "_given" not in self.__dict__
        if first:
            object.__setattr__(self, "_given", (args, options))
            self._prepare()
        init(self, *args, **options)
        if own:
            stored = self._options & self.__dict__.keys()
            object.__setattr__(self, "_stored", self._stored | stored)
        if first:
            self._finish()

    return remembering


def holds(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether a value is of these kinds, or a list, tuple or dict with such in it."""
    if isinstance(value, (list, tuple)):
        return any(holds(v, kinds) for v in value)
    if isinstance(value, dict):
        return any(holds(v, kinds) for v in value.values())
    return isinstance(value, kinds)


def acts_on_rows(layer: Layer, x: Any) -> bool:
    """Return whether a layer is given the rows of sequences or trees alone, not what they form."""
    ragged = getattr(x, "_is_ragged", False) is True
    return (
        ragged and not layer.takes_lengths and not any(one.takes_trees for one in layers_of(layer))
    )


def block_of(
    children: Mapping[str, Layer], own: Mapping[str, tuple[Array, Entry]], dtype: np.dtype[Any]
) -> Block:
    """Return one block with the parameters of layers, and with some of a model's own.

    Args:
        children: the layers by their names.
        own: parameters by their names, with entries that say whether they are trained.
        dtype: of all.
    """
    arrays: dict[str, Array] = {name: array for name, (array, _) in own.items()}
    grads: dict[str, Array] = {}
    entries: dict[str, Entry] = {name: entry for name, (_, entry) in own.items()}
    aliases: dict[str, str] = {}
    for child, layer in children.items():
        block, prefix = layer._block, layer._prefix
        for name in block.names(prefix):  # one that is tied to another layer's is by itself here
            full = f"{child}.{name[len(prefix) :]}"
            arrays[full], entries[full] = block.view(block.values, name), block.entry(name)
            if block.has_grads:
                grads[full] = block.view(block.grads, name)
        for name, target in block.aliases.items():
            if name.startswith(prefix) and target.startswith(prefix):
                aliases[f"{child}.{name[len(prefix) :]}"] = f"{child}.{target[len(prefix) :]}"
    made = Block(arrays, {name: e.decay for name, e in entries.items()}, dtype)
    made.tie(aliases)
    for name, gradient in grads.items():
        made.view(made.grads, name)[...] = gradient
    for name, entry in entries.items():
        if not entry.trainable:
            made.mark(glob.escape(name), trainable=False)
    return made


def _counts(layer: Layer, names: list[str]) -> tuple[int, int]:
    entries = [layer._block.entries[n] for n in names if n in layer._block.entries]
    return sum(e.size for e in entries), sum(e.size for e in entries if e.trainable)


def summary_of(model: Layer) -> str:
    """Return the table of `Layer.summary`."""
    rows: list[tuple[str, str, int, int]] = []

    def visit(layer: Layer, name: str) -> None:
        children, names = layer._children(), list(layer._block.names(layer._prefix))
        if not children:
            rows.append((name or "-", repr(layer), *_counts(layer, names)))
            return
        inner = tuple(f"{layer._prefix}{child}." for child in children)
        own = [n for n in names if not n.startswith(inner)]
        for n in own:
            shape = layer._block.entry(n).shape
            label = f"Parameter{list(shape)}"
            rows.append((n[len(model._prefix) :], label, *_counts(layer, [n])))
        for child, one in children.items():
            visit(one, f"{name}.{child}" if name else child)

    visit(model, "")
    total, trained = (model.count_parameters(trainable_only=t) for t in (False, True))
    table = [("name", "layer", "parameters", "trained")]
    table += [(n, text, f"{a:,}", f"{b:,}") for n, text, a, b in rows]
    first, second = (max(len(row[k]) for row in table) for k in (0, 1))
    lines = [f"{a:<{first}}  {b:<{second}}  {c:>10}  {d:>7}" for a, b, c, d in table]
    size: float = total * model.dtype.itemsize
    held = f"{total * model.dtype.itemsize} bytes"
    for unit in ("kB", "MB", "GB"):
        if size >= 1000:
            size /= 1000
            held = f"{size:.1f} {unit}"
    tied = len(model._block.aliases)
    return "\n".join(
        [*lines, f"{total:,} parameters in {held} of {model.dtype}, {trained:,} of them trained"]
        + ([f"{tied} tied to others, counted once"] if tied else [])
    )


def _as_numbers(name: str, value: Any) -> Array:
    """Return a parameter from anywhere as an array of a dtype that NumPy casts from."""
    value = _device.host(value)
    if type(value) is not np.ndarray:  # those of a file: numpy.ma takes time to import
        value = _check.unmasked(name, value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError:  # bfloat16 and other dtypes that NumPy does not have
            value = value.float().numpy()
    try:
        a = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise TypeError(
            f"{name}: expected an array of numbers, got nested lists of different lengths"
        ) from None
    if a.dtype.kind == "V" and a.dtype.isbuiltin == 2 and "complex" not in a.dtype.name:
        a = a.astype(np.float32)  # ml_dtypes' numbers: all that it has fit
    if a.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, got dtype {a.dtype}")
    return a


class Pullback:
    """Compute the gradients of one forward pass, once.

    ``vjp`` of a layer returns it. It serves only while the parameters are those of the pass.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> layer = ost.nn.Linear(3, 2, rng=0)
    >>> y, pullback = layer.vjp(np.ones((4, 3), np.float32))
    >>> pullback(np.ones_like(y)).shape, layer.grads["bias"].tolist()
    ((4, 3), [4.0, 4.0])

    Args:
        layer: the layer of the pass.
        backward: computes the gradients.
    """

    _started = False  # whether gradients may have been added: a model's layers run one by one

    def __init__(self, layer: Layer, backward: Callable[..., Any]) -> None:
        self._layer = layer
        self._unused = [backward]  # taken out by the call that it serves
        self._block, self._version = layer._block, layer.version

    def __call__(
        self,
        dy: Array | None = None,
        dstate: Any = None,
        *,
        grads: Views | None = None,
        need_dx: bool = True,
        **more: Any,  # of the layer's own
    ) -> Any:
        """Add the gradients of the parameters to the layer's, and return those of the inputs.

        Args:
            dy: gradient of y, shaped as it is. None: zeros, for a layer with a state.
            dstate: gradient of the last state, for a layer with one; None: zeros.
            grads: what to add to, from `Layer.new_grads`; None: the gradients of the layer.
            need_dx: whether the gradient of x is wanted; a layer that has to compute it saves the
                time.
            **more: options of the layer.

        Returns:
            dx, or ``(dx, dstate)`` for a layer with a state; dx may be None if it is not wanted.

        Raises:
            RuntimeError: the pullback has been used, or the parameters have changed since the pass.
            TypeError: an argument has the wrong type; the pullback can be called again.
            ValueError: an argument has the wrong shape; the pullback can be called again.
        """
        layer = self._layer
        self._require_ready()
        if not layer.stateful and dy is None:
            raise TypeError("dy: expected an array, got None")
        if not layer.stateful and dstate is not None:
            raise TypeError(f"dstate: expected None, since {type(layer).__name__} has no state")
        target = layer._gradient_target(grads)
        try:
            backward = self._unused.pop()
        except IndexError:  # another thread has taken it since
            raise _used() from None
        try:
            return (
                backward(target, dy, dstate, need_dx, **more)
                if layer.stateful
                else backward(target, dy, need_dx, **more)
            )
        except (TypeError, ValueError):
            if not self._started:  # an argument was refused: it can be called again
                self._unused.append(backward)
            raise

    def _require_ready(self) -> None:
        """Raise if it has been used, or if the parameters are no longer those of the pass."""
        if not self._unused:
            raise _used()
        if self._layer._block is not self._block or self._layer.version != self._version:
            raise RuntimeError(
                "pullback: the parameters have changed since the forward pass; call vjp again"
            )


def _used() -> Exception:
    return RuntimeError("pullback: it has been used; call vjp again")


# The base keeps its arguments as its subclasses do; mypy does not let a method be replaced.
Layer.__init__ = _remembering(Layer.__init__, True)  # type: ignore[method-assign]
readable(globals())
