"""Define attention: a mean of values, weighted by how well their keys fit a query."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _device
from .._annotations import readable
from .._check import Lengths, Seed
from .._ragged import Ragged, refuse_nested, unwrapped
from .._recording import value_of
from ._combine import padded_of, real_steps, without_padding
from ._functions import softmax
from ._layers import Linear
from ._model import Model, Parameter

KINDS = ("dot", "scaled", "general", "additive")


class Memory(NamedTuple):
    """What attention reads: `Attention.memory` makes it, once for many queries.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> attention = ost.nn.Attention()
    >>> attention.memory(np.ones((6, 2, 4), np.float32)).keys.shape
    (2, 6, 4)

    Attributes:
        keys: ``[B,S,...]``, as the scores read them.
        values: ``[B,S,V]``.
        on: bool ``[B,1,S]`` or ``[B,T,S]``, True for what counts; None: all.
    """

    keys: Any
    values: Any
    on: Any


class Attention(Model):
    """Return for each query a mean of values, weighted by the softmax of scores of their keys.

    The score of a query q and a key k is ``q k`` ("dot", Luong et al. 2015), ``q k / sqrt(D)``
    ("scaled", Vaswani et al. 2017), ``q W k`` ("general", Luong) or ``v tanh(W q + U k + b)``
    ("additive", Bahdanau et al. 2015). Called with x alone it is self-attention: x is query, keys
    and values. What lengths and masks leave out gets weight 0. A key, and its value, that no query
    reads may hold anything; so may a query for which nothing is left, which gets zeros.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> keys = np.eye(3, dtype=np.float32)[:, None]  # [S,B,D]
    >>> attention = ost.nn.Attention("dot")
    >>> attention(20 * keys[1:2], keys, lengths=[3]).round(3).tolist()
    [[[0.0, 1.0, 0.0]]]
    >>> attention.weights(keys, lengths=[1])[0].tolist()  # [B,T,S]
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]

    Args:
        kind: "dot", "scaled", "general" or "additive".
        query_size: length of a query, for "general" and "additive", which have parameters.
        key_size: length of a key, for the same; None: query_size.
        hidden_size: width of the tanh of "additive"; None: query_size.
        causal: whether query t sees keys up to t alone.
        batch_first: whether arrays are ``[B,T,*]`` in place of ``[T,B,*]``.
        dtype: float32 or float64.
        rng: seed or generator of the initial values.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind, or sizes that it does not have or lacks, or that are below 1.
    """

    takes_lengths = True

    _functional = ("kind", "causal")

    def __init__(
        self,
        kind: str = "scaled",
        query_size: int | None = None,
        key_size: int | None = None,
        hidden_size: int | None = None,
        *,
        causal: bool = False,
        batch_first: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.kind = _check.choice("kind", kind, KINDS)
        self.causal, self.batch_first = (
            _check.flag("causal", causal),
            _check.flag("batch_first", batch_first),
        )
        self._kind_of_numbers = _check.real_dtype(dtype)
        sizes = {"query_size": query_size, "key_size": key_size, "hidden_size": hidden_size}
        if kind in ("dot", "scaled"):
            for name, size in sizes.items():
                if size is not None:
                    raise ValueError(f"{name}: expected None for {kind!r}, got {size!r}")
            return
        if kind == "general" and hidden_size is not None:
            raise ValueError(f"hidden_size: expected None for {kind!r}, got {hidden_size!r}")
        if query_size is None:
            raise ValueError(f"query_size: expected a number for {kind!r}, got None")
        q = _check.positive("query_size", query_size)
        k = q if key_size is None else _check.positive("key_size", key_size)
        g = _check.generator(rng)
        if kind == "general":
            self.key = Linear(k, q, bias=False, dtype=dtype, rng=g)
            return
        a = q if hidden_size is None else _check.positive("hidden_size", hidden_size)
        self.query = Linear(q, a, bias=False, dtype=dtype, rng=g)
        self.key = Linear(k, a, dtype=dtype, rng=g)
        bound = 1 / math.sqrt(a)
        self.score = Parameter(g.uniform(-bound, bound, a).astype(self._kind_of_numbers))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of inputs and outputs: float32 or float64."""
        return self._kind_of_numbers

    def _ignores_padding(self, of_outputs: bool = False) -> bool:
        return not of_outputs  # a query past the end gets a mean of the values, too

    def _dtype_without_parameters(self) -> np.dtype[Any]:
        return self._kind_of_numbers

    def _check_rows(
        self, name: str, x: Any, ranks: int | tuple[int, ...], layer: Any = None
    ) -> Any:
        """Return an array of such ranks, which a layer can read if there is one; else raise."""
        v = _check.array(name, value_of(x), ranks)
        _check.of_dtype(name, v, self._kind_of_numbers)
        size = getattr(layer, "in_features", None)
        if size is not None and v.shape[-1] != size:
            raise ValueError(f"{name}: expected a last axis of {size}, got {v.shape[-1]}")
        return v if value_of(x) is x else x

    def _rows(self, x: Any) -> Any:
        """Return an array as ``[B,T,D]``, also that of one step ``[B,D]``."""
        if x.ndim == 2:
            return x[:, None]
        return x if self.batch_first else np.swapaxes(x, 0, 1)

    def memory(
        self, keys: Any, values: Any = None, *, lengths: Lengths = None, mask: Any = None
    ) -> Memory:
        """Return keys and values as scores read them, which serves many queries.

        Args:
            keys: ``[S,B,K]`` (``[B,S,K]`` if batch_first).
            values: ``[S,B,V]`` (``[B,S,V]`` if batch_first); None: the keys.
            lengths: ``[B]`` whole numbers from 0 to S, of the keys; None: every row has S.
            mask: bool ``[S,B]`` (``[B,S]`` if batch_first), True for keys that count; or
                ``[B,T,S]`` for each query by itself.

        Returns:
            What a call takes in place of keys.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        return self._memory("keys", keys, values, lengths, mask)

    def _memory(self, name: str, keys: Any, values: Any, lengths: Any, mask: Any) -> Memory:
        """Return what `memory` does; errors call the keys by a name, which may be the query's."""
        keys = self._check_rows(name, keys, 3, getattr(self, "key", None))
        if values is not None:
            values = self._check_rows("values", values, 3)
            shapes = [a.shape[:2] if self.batch_first else a.shape[1::-1] for a in (keys, values)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"values: expected {shapes[0]} as the keys, got {shapes[1]}")
        flags = value_of(mask)
        whole = None
        if flags is not None and getattr(flags, "ndim", 0) == 3:
            if flags.dtype != np.bool_:
                raise TypeError(
                    f"mask: expected dtype bool, got {flags.dtype}; use mask.astype(bool)"
                )
            whole, flags = _device.like(flags, value_of(keys)), None
        on = real_steps(keys, lengths, flags, self.batch_first)
        k = self._rows(without_padding(keys, on))
        v = k if values is None else self._rows(without_padding(values, on))
        if on is not None:
            on = (on if self.batch_first else np.swapaxes(on, 0, 1))[:, None]
        if whole is not None:
            if whole.shape[::2] != k.shape[:2]:
                raise ValueError(
                    f"mask: expected shape (B, T, S) = ({k.shape[0]}, T, {k.shape[1]}), got "
                    f"{whole.shape}"
                )
            k, v = (_kept(a, whole.any(axis=1)) for a in (k, v))
            on = whole if on is None else whole & on
        return Memory(self.key(k) if hasattr(self, "key") else k, v, on)

    def weights(
        self,
        query: Any,
        keys: Any = None,
        *,
        lengths: Lengths = None,
        mask: Any = None,
    ) -> Any:
        """Return the weights of the values for each query.

        Args:
            query: an array ``[T,B,Q]`` (``[B,T,Q]`` if batch_first), or ``[B,Q]`` for one step.
            keys: as in a call.
            lengths: as in a call.
            mask: as in a call.

        Returns:
            ``[B,T,S]``, which sum to 1 over S; ``[B,1,S]`` for a query of one step.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        q, memory = self._read(query, keys, None, lengths, mask)
        return self._weights(q, memory)

    def _read(self, query: Any, keys: Any, values: Any, lengths: Any, mask: Any) -> Any:
        if isinstance(keys, Memory):
            for name, given in (("values", values), ("lengths", lengths), ("mask", mask)):
                if given is not None:
                    raise ValueError(f"{name}: expected None beside a memory, which has it")
            memory = keys
        else:
            name, read = ("query", query) if keys is None else ("keys", keys)
            memory = self._memory(name, read, values, lengths, mask)
        query = self._check_rows("query", query, (2, 3), getattr(self, "query", None))
        own = query
        if keys is None and memory.on is not None:  # padding of x may hold anything
            flags = value_of(mask)
            flags = None if getattr(flags, "ndim", 0) == 3 else flags
            own = without_padding(query, real_steps(query, lengths, flags, self.batch_first))
        q = self._rows(own)
        if q.shape[0] != memory.keys.shape[0]:
            raise ValueError(
                f"query: expected a batch of {memory.keys.shape[0]} as the keys, got {q.shape[0]}"
            )
        on = memory.on
        if on is None:
            return q, memory
        if on.shape[1] not in (1, q.shape[1]):
            wanted = q.shape[0], q.shape[1], on.shape[2]
            raise ValueError(f"mask: expected shape (B, T, S) = {wanted}, got {on.shape}")
        return _kept(q, on.any(axis=2)), memory

    def _weights(self, q: Any, memory: Memory) -> Any:
        on = memory.on
        if self.kind == "additive":
            hidden = np.tanh(self.query(q)[:, :, None] + memory.keys[:, None])
            scores = np.matmul(hidden, self.score)
        else:
            if q.shape[-1] != memory.keys.shape[-1]:
                raise ValueError(
                    f"query: expected a last axis of {memory.keys.shape[-1]} as the keys, got "
                    f"{q.shape[-1]}"
                )
            if self.kind == "scaled" and q.shape[-1]:
                q = q * self._kind_of_numbers.type(1 / math.sqrt(q.shape[-1]))
            scores = np.matmul(q, np.swapaxes(memory.keys, 1, 2))
        if self.causal:
            steps, seen = scores.shape[1:]
            before = np.tri(steps, seen, dtype=bool)[None]
            before = _device.like(before, value_of(scores))
            on = before if on is None else before & on
        return softmax(scores, where=on)

    def __call__(
        self,
        query: Any,
        keys: Any = None,
        values: Any = None,
        *,
        lengths: Lengths = None,
        mask: Any = None,
    ) -> Any:
        """Return the weighted means of the values.

        Args:
            query: ``[T,B,Q]`` (``[B,T,Q]`` if batch_first), or ``[B,Q]`` for one step; a `Ragged`
                or a list of ``[n,Q]`` for self-attention, beside which there is nothing else.
            keys: ``[S,B,K]`` (``[B,S,K]`` if batch_first), or what `memory` made of them; None: the
                query.
            values: ``[S,B,V]`` (``[B,S,V]`` if batch_first); None: the keys.
            lengths: ``[B]`` whole numbers from 0 to S, of the keys; None: every row has S.
            mask: bool ``[S,B]`` (``[B,S]`` if batch_first), True for keys that count; or
                ``[B,T,S]`` for each query by itself.

        Returns:
            ``[T,B,V]``, laid out as the query; ``[B,V]`` for one step.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: an argument of the wrong shape or value.
        """
        x, listed = unwrapped(query, "query")
        if isinstance(x, Ragged):
            return self._of_sequences(x, listed, keys, values, lengths, mask)
        q, memory = self._read(query, keys, values, lengths, mask)
        y = np.matmul(self._weights(q, memory), memory.values)
        if query.ndim == 2:
            return y[:, 0]
        return y if self.batch_first else np.swapaxes(y, 0, 1)

    def _of_sequences(self, x: Ragged, listed: bool, *others: Any) -> Any:
        """Return self-attention of sequences without padding."""
        for name, given in zip(("keys", "values", "lengths", "mask"), others):
            if given is not None:
                raise ValueError(
                    f"{name}: expected None with ragged sequences, got {type(given).__name__}"
                )
        refuse_nested(x, "query")
        if x.rows.ndim != 2:
            raise ValueError(f"query: expected rows of shape (N, Q), got {x.rows.shape}")
        padded = padded_of(x)
        padded = np.swapaxes(padded, 0, 1) if self.batch_first else padded
        y = self(padded, lengths=x.lengths)
        y = np.swapaxes(y, 0, 1) if self.batch_first else y
        out = x.like(y[x._places()])
        return list(out) if listed else out

    def __repr__(self) -> str:
        sizes = ""
        if hasattr(self, "key"):
            key: Linear = self.key
            sizes = f", {key.out_features if self.kind == 'general' else self.query.in_features}"
            sizes += f", {key.in_features}"
        return f"Attention({self.kind!r}{sizes}{', causal=True' if self.causal else ''})"


def _kept(rows: Any, used: Any) -> Any:
    """Return ``rows [B,T,D]`` with zeros in those that are not used, which may hold anything."""
    return np.where(used[..., None], rows, rows.dtype.type(0))


readable(globals())
