"""Define Encoder and Decoder: sequence to sequence, with attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._recording import value_of
from ._attention import Attention, Memory
from ._layer import Layer
from ._layers import Linear
from ._model import Model
from ._stack import Recurrent

FEEDS = ("none", "output", "context")


class Encoder(Model):
    """Read a sequence: embed it, and run a recurrent layer over it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> encoder = ost.nn.Encoder(ost.nn.Embedding(20, 4), ost.nn.LSTM(4, 8, bidirectional=True))
    >>> y, (h, c) = encoder(np.ones((6, 2), np.int64), lengths=[6, 3])
    >>> y.shape, h.shape
    ((6, 2, 16), (1, 2, 16))

    Args:
        embed: what is run on the inputs first: an `Embedding`, a `Linear`, a `Conv1d` ...; None:
            nothing.
        rnn: the recurrent layer.

    Raises:
        TypeError: something that is no layer, or no recurrent one.
        ValueError: a layer that has an owner.
    """

    takes_lengths = True

    def __init__(self, embed: Layer | None, rnn: Recurrent) -> None:
        _require(embed, Layer, "embed", optional=True)
        _require(rnn, Recurrent, "rnn")
        self.embed, self.rnn = embed, rnn
        self.batch_first = rnn.batch_first

    def __call__(self, x: Any, lengths: Lengths = None) -> Any:
        """Return the outputs of every step, and the last state.

        Args:
            x: ``[T,B,...]`` (``[B,T,...]`` if batch_first), as embed takes it.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.

        Returns:
            ``y, state``: y ``[T,B,D*H]``, zero past the end of a row, which a `Decoder` attends to;
            and the state with the directions of each layer joined, ``[L,B,D*H]`` (a pair for an
            LSTM), which a recurrent layer of D*H units starts from.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value.
        """
        if self.embed is not None:
            takes = self.embed.takes_lengths
            x = self.embed(x, lengths=lengths) if takes else self.embed(x)
            lengths = self.embed._times_after({"lengths": lengths})["lengths"]
        y, state = self.rnn(x, lengths=lengths)
        if not self.rnn.bidirectional:
            return y, state
        return y, (tuple(map(_joined, state)) if isinstance(state, tuple) else _joined(state))


def _joined(s: Any) -> Any:
    """Return states ``[L*2,B,H]`` as ``[L,B,2*H]``."""
    layers, batch, size = s.shape[0] // 2, s.shape[1], s.shape[2]
    s = s.reshape(layers, 2, batch, size)
    return np.swapaxes(s, 1, 2).reshape(layers, batch, 2 * size)


class Decoder(Model):
    """Write a sequence, one step after the other, attending to what an `Encoder` has read.

    At every step a recurrent layer reads the embedded input; attention with its output (or, with
    ``feed="context"``, with the output before) gives a mean of the memory; ``tanh(W [output;
    mean])`` goes to the head. Called with all inputs of a sequence (teacher forcing) it gives all
    outputs. Where the attention does not feed back, the recurrent layer runs over them in one
    fused call.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> decoder = ost.nn.Decoder(
    ...     ost.nn.Embedding(9, 4, rng=0), ost.nn.GRU(4, 8, rng=1), ost.nn.Linear(8, 9, rng=2),
    ...     attention=ost.nn.Attention("dot"), memory_size=8, rng=3,
    ... )
    >>> memory = np.ones((6, 2, 8), np.float32)  # [S,B,M]
    >>> logits, state = decoder(np.ones((5, 2), np.int64), memory, memory_lengths=[6, 3])
    >>> logits.shape
    (5, 2, 9)
    >>> ids, lengths = decoder.generate(memory, start=0, stop=1, steps=4)
    >>> ids.shape[1], lengths.shape
    (2, (2,))

    Args:
        embed: what is run on the inputs first, such as an `Embedding` of E features.
        rnn: the recurrent layer of H units, in one direction, with inputs of E features; with
            ``feed="output"`` of E + H, with ``feed="context"`` of E + M.
        head: what is run on the results ``[...,H]``, such as a `Linear` to logits.
        attention: None: the decoder sees the state alone that it starts from.
        memory_size: M, features of the memory; with attention.
        feed: what joins the next input: "none"; "output", the result of the step (input feeding,
            Luong et al. 2015); "context", the mean of the memory, by attention with the output of
            the step before (Bahdanau et al. 2015).
        rng: seed or generator of the initial values of W.

    Raises:
        TypeError: something that is no layer, or no recurrent one.
        ValueError: two directions, sizes that do not fit, or a layer that has an owner.
    """

    stateful = True

    def __init__(
        self,
        embed: Layer,
        rnn: Recurrent,
        head: Layer,
        *,
        attention: Attention | None = None,
        memory_size: int | None = None,
        feed: str = "none",
        rng: Seed = None,
    ) -> None:
        _require(embed, Layer, "embed")
        _require(rnn, Recurrent, "rnn")
        _require(head, Layer, "head")
        _require(attention, Attention, "attention", optional=True)
        self.feed = _check.choice("feed", feed, FEEDS)
        if rnn.bidirectional:
            raise ValueError("rnn: expected one direction, since a decoder cannot look ahead")
        if (attention is None) != (memory_size is None):
            raise ValueError("memory_size: expected it with attention, and None without")
        if attention is None and feed == "context":
            raise ValueError("feed: expected attention with 'context', got None")
        if attention is not None and attention.batch_first != rnn.batch_first:
            raise ValueError("attention: expected batch_first as rnn has it")
        self.embed, self.rnn, self.head, self.attention = embed, rnn, head, attention
        self.batch_first = rnn.batch_first
        size = rnn.proj_size or rnn.hidden_size
        self._fed_size = {"none": 0, "output": size, "context": memory_size or 0}[feed]
        if attention is not None:
            wide = size + _check.positive("memory_size", memory_size)
            self.combine = Linear(wide, size, dtype=rnn.dtype, rng=rng)

    def __call__(
        self,
        x: Any,
        memory: Any = None,
        state: Any = None,
        *,
        memory_lengths: Lengths = None,
    ) -> Any:
        """Return the outputs for given inputs, and the state behind them.

        Args:
            x: the inputs ``[T,B,...]`` (``[B,T,...]`` if batch_first), as embed takes them: in
                training the target, one step late. A single step continues where a state ended.
            memory: ``[S,B,M]`` (``[B,S,M]`` if batch_first): the outputs of an `Encoder`, or what
                ``attention.memory`` made of them; None without attention.
            state: of the recurrent layer, such as that of an `Encoder`, or what a call returned;
                None: initial states.
            memory_lengths: ``[B]``, of the memory; None: all of it counts.

        Returns:
            ``y, state``: ``y [T,B,O]`` of the head, and a state to continue from.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, or a memory without attention.
        """
        memory = self._memory(memory, memory_lengths)
        embedded = self.embed(x)
        if self.feed == "none":
            y, state = self.rnn(embedded, state)
            return self.head(self._result(y, memory)), state
        axis = 1 if self.batch_first else 0
        steps = embedded.shape[axis]
        batch = embedded.shape[1 - axis]
        inner, fed = self._begin(state, batch, value_of(embedded))
        results = []
        for t in range(steps):
            e = embedded[:, t] if axis else embedded[t]
            result, inner, fed = self._step(e, memory, inner, fed)
            results.append(result)
        if not results:
            raise ValueError(f"x: expected at least one step, got shape {x.shape}")
        return self.head(np.stack(results, axis=axis)), (inner, fed)

    def _memory(self, memory: Any, lengths: Lengths) -> Memory | None:
        if self.attention is None:
            if memory is not None or lengths is not None:
                raise ValueError("memory: expected None for a decoder without attention, got one")
            return None
        if memory is None:
            raise ValueError("memory: expected the outputs of an encoder, got None")
        if isinstance(memory, Memory):
            if lengths is not None:
                raise ValueError("memory_lengths: expected None beside a memory, which has them")
            return memory
        made: Memory = self.attention.memory(memory, lengths=lengths)
        return made

    def _begin(self, state: Any, batch: int, like: Array) -> tuple[Any, Any]:
        """Return the state of the recurrent layer, and what joins the first input."""
        if isinstance(state, tuple) and len(state) == 2 and getattr(state[1], "ndim", 0) == 2:
            return state[0], state[1]
        fed = np.zeros_like(like, shape=(batch, self._fed_size), dtype=self.rnn.dtype)
        return state, fed

    def _step(self, e: Any, memory: Any, inner: Any, fed: Any) -> tuple[Any, Any, Any]:
        """Return the result of one step ``[B,H]``, the state, and what joins the next input."""
        if self.feed == "context":
            assert self.attention is not None  # which `__init__` has checked
            fed = self.attention(self._query(inner, e), memory)
        together = np.concatenate([e, fed], axis=-1)
        axis = 1 if self.batch_first else 0
        y, inner = self.rnn(np.expand_dims(together, axis), inner)
        y = y[:, 0] if self.batch_first else y[0]
        if self.feed == "context":
            return np.tanh(self.combine(np.concatenate([y, fed], axis=-1))), inner, fed
        result = self._result(y, memory)
        return result, inner, result

    def _query(self, inner: Any, e: Any) -> Any:
        """Return the output of the step before: the top layer's h."""
        h = inner[0] if isinstance(inner, tuple) else inner
        if h is not None:
            return h[-1]
        size = self.rnn.proj_size or self.rnn.hidden_size
        return np.zeros_like(value_of(e), shape=(e.shape[0], size), dtype=self.rnn.dtype)

    def _result(self, y: Any, memory: Any) -> Any:
        """Return what goes to the head, from the outputs of the recurrent layer."""
        if self.attention is None:
            return y
        mean = self.attention(y, memory)
        return np.tanh(self.combine(np.concatenate([y, mean], axis=-1)))

    def generate(
        self,
        memory: Any = None,
        state: Any = None,
        *,
        start: Any,
        steps: int,
        stop: int | None = None,
        memory_lengths: Lengths = None,
    ) -> tuple[Array, Array]:
        """Write sequences step by step, each time taking what is most likely (greedy).

        Args:
            memory: as in a call.
            state: as in a call; without a memory and a state there is one sequence.
            start: the first input: a whole number, or ``[B]`` whole numbers.
            steps: how many are written at most.
            stop: the number that ends a sequence; None: none does.
            memory_lengths: as in a call.

        Returns:
            ``ids, lengths``: ``ids [T,B]`` (``[B,T]`` if batch_first) on the CPU, filled with
            ``stop`` behind the end of a sequence; and ``lengths [B]``, without the stop.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, a stop that is no label, or logits
                of NaN.
        """
        steps = _check.positive("steps", steps)
        stop = None if stop is None else _check.positive("stop", stop, 0)
        made = self._memory(memory, memory_lengths)
        now = self._starts(start, made, state)
        batch, axis = len(now), 1 if self.batch_first else 0
        ended, written = np.zeros(batch, bool), []
        lengths = np.full(batch, steps, np.int64)
        for t in range(steps):
            x = _device.like(np.expand_dims(now, axis), self._block.values)
            y, state = self(x, made, state)
            scores = _checked_scores(y[:, 0] if axis else y[0], stop, ended)
            now = np.asarray(scores.argmax(axis=-1), np.int64)
            if stop is not None:
                now = np.where(ended, stop, now)
                new = (now == stop) & ~ended
                lengths[new], ended = t, ended | new
            written.append(now)
            if ended.all():
                break
        return np.stack(written, axis=axis), lengths

    def _starts(self, start: Any, memory: Any, state: Any) -> Array:
        """Return the first input of each sequence to write, ``[B]``."""
        first = np.asarray(_device.host(start))
        if first.dtype.kind not in "iu" or first.ndim > 1:
            raise TypeError(f"start: expected a whole number or [B] of them, got {start!r}")
        batch = len(first) if first.ndim else 1
        given = None
        if memory is not None:
            given, batch = "memory", int(memory.keys.shape[0])
        else:
            while isinstance(state, tuple):
                state = state[0]
            if state is not None:
                given, batch = "state", int(state.shape[1])
        if first.ndim and len(first) != batch:
            raise ValueError(
                f"start: expected a whole number or {batch} of them, one for each sequence of the "
                f"{given}, got {len(first)}"
            )
        return np.broadcast_to(first, (batch,)).astype(np.int64)


def _checked_scores(y: Any, stop: int | None, ended: Array) -> Array:
    """Return the logits ``[B,O]`` of a step on the host, usable where no sequence has ended."""
    from ..decoding._hypothesis import refuse_unusable  # which imports the layers

    scores: Array = _device.host(y)
    if stop is not None and stop >= scores.shape[-1]:
        raise ValueError(
            f"stop: expected a label below O = {scores.shape[-1]}, the outputs of the head, got "
            f"{stop}"
        )
    refuse_unusable("head", scores[~ended])
    return scores


def _require(value: Any, kind: type, name: str, *, optional: bool = False) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        wanted = "a recurrent layer" if kind is Recurrent else f"a {kind.__name__}"
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")


readable(globals())
