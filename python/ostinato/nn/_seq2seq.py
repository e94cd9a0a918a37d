"""Define Encoder and Decoder: sequence to sequence, with attention."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._recording import active, value_of
from ._attention import Attention, Memory
from ._combine import real_steps, without_padding
from ._layer import Layer
from ._layers import Linear
from ._model import Model
from ._stack import Recurrent
from ._walk import layers_of

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
        _refuse_recurrent("embed", embed)
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
            if not self.embed._ignores_padding():
                x = _without_padding(x, lengths, self.batch_first)
            takes = self.embed.takes_lengths
            x = _applied(self.embed, x, lengths=lengths) if takes else _applied(self.embed, x)
            lengths = self.embed._times_after({"lengths": lengths})["lengths"]
        y, state = self.rnn(x, lengths=lengths)
        if not self.rnn.bidirectional:
            return y, state
        return y, (tuple(map(_joined, state)) if isinstance(state, tuple) else _joined(state))


def _applied(layer: Layer, x: Any, **options: Any) -> Any:
    """Return the outputs of a layer whose state, if it has one, is that of no recurrent layer."""
    y = layer(x, **options)
    return y[0] if layer.stateful else y


def _without_padding(x: Any, lengths: Any, batch_first: bool) -> Any:
    """Return inputs with zeros past the ends of the rows, where they may hold anything."""
    if lengths is None:
        return x
    a = _check.array("x", value_of(x))
    if a.ndim < 2:  # which the layer refuses
        return x
    return without_padding(x, real_steps(x, lengths, None, batch_first))


def _refuse_recurrent(name: str, layer: Layer | None) -> None:
    """Raise if a part that is called without a state has a layer that needs one."""
    if layer is not None and any(isinstance(part, Recurrent) for part in layers_of(layer)):
        raise ValueError(
            f"{name}: expected layers without a state, got a recurrent one; give it as rnn"
        )


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
    >>> ids, lengths = decoder.generate(memory, start=0, end=1, steps=4)
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
        rng: seed or generator of the initial values of W, and of what `teacher_forcing` draws.

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
        _refuse_recurrent("embed", embed)
        _refuse_recurrent("head", head)
        self.feed = _check.choice("feed", feed, FEEDS)
        if rnn.bidirectional:
            raise ValueError("rnn: expected one direction, since a decoder cannot look ahead")
        if (attention is None) != (memory_size is None):
            raise ValueError("memory_size: expected it with attention, and None without")
        if attention is None and feed == "context":
            raise ValueError("feed: expected attention with 'context', got None")
        if attention is not None and attention.batch_first != rnn.batch_first:
            raise ValueError("attention: expected batch_first as rnn has it")
        # In the order of the computation, which layer groups follow: the head is the last one.
        self.embed, self.attention, self.rnn = embed, attention, rnn
        self.batch_first = rnn.batch_first
        self._forcing, self._rng = 1.0, _check.generator(rng)
        size = rnn.proj_size or rnn.hidden_size
        self._fed_size = {"none": 0, "output": size, "context": memory_size or 0}[feed]
        if attention is not None:
            wide = size + _check.positive("memory_size", memory_size)
            self.combine = Linear(wide, size, dtype=rnn.dtype, rng=self._rng)
        self.head = head

    _settable = MappingProxyType({"teacher_forcing": None})

    @property
    def teacher_forcing(self) -> float:
        """The probability, in training, that a step reads the given input (scheduled sampling).

        1: always. Otherwise, within `vjp`, each step of each sequence but the first reads with
        probability ``1 - teacher_forcing`` a label drawn from what the model said at the step
        before, without a gradient through the draw (Bengio et al. 2015, "Scheduled sampling for
        sequence prediction with recurrent neural networks"). `train.ScheduledSampling` lowers it
        during a run. Inference is not affected.
        """
        return self._forcing

    @teacher_forcing.setter
    def teacher_forcing(self, value: float) -> None:
        value = _check.finite("teacher_forcing", value)
        if value > 1:
            raise ValueError(f"teacher_forcing: expected a number in [0, 1], got {value!r}")
        self._forcing = value

    def __call__(
        self,
        x: Any,
        memory: Any = None,
        state: Any = None,
        *,
        lengths: Lengths = None,
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
            lengths: ``[B]`` whole numbers from 0 to T, of x: the state of a row stays as it is past
                its end, and the outputs there are 0. None: every row has T steps.
            memory_lengths: ``[B]``, of the memory; None: all of it counts.

        Returns:
            ``y, state``: ``y [T,B,O]`` of the head, and a state to continue from.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, or a memory without attention.
        """
        read = self._memory(memory, memory_lengths)
        x = _without_padding(x, lengths, self.batch_first)
        samples = self._forcing < 1 and active() is not None
        samples = samples and x.shape[1 if self.batch_first else 0] > 0  # else nothing is drawn
        if self.feed == "none" and not samples:
            y, state = self.rnn(_applied(self.embed, x), state, lengths=lengths)
            y = _applied(self.head, self._result(y, read))
        elif samples:
            y, state = self._sampled(x, read, state, lengths)
        else:
            y, state = self._stepped(_applied(self.embed, x), read, state, lengths)
            y = _applied(self.head, y)
        return y if lengths is None else self._cut(y, lengths), state

    def _cut(self, y: Any, lengths: Any) -> Any:
        """Return y with zeros past the end of each row."""
        axis = 1 if self.batch_first else 0
        steps = np.arange(y.shape[axis])
        ends = np.asarray(_device.host(lengths))
        on = steps < ends[:, None] if axis else steps[:, None] < ends
        on = _device.like(on.reshape(*on.shape, *(1,) * (y.ndim - 2)), value_of(y))
        return np.where(on, y, value_of(y).dtype.type(0))

    def _counted(self, x: Any, lengths: Any) -> tuple[int, int, Any]:
        """Return T and B of inputs, and their checked lengths on the host."""
        axis = 1 if self.batch_first else 0
        steps, batch = int(x.shape[axis]), int(x.shape[1 - axis])
        ends = None if lengths is None else _check.lengths(_device.host(lengths), steps, batch)
        return steps, batch, ends

    def _stepped(
        self, embedded: Any, memory: Any, state: Any, lengths: Any, seen: list[Any] | None = None
    ) -> tuple[Any, Any]:
        """Return the results ``[T,B,H]`` of given inputs, one step after the other, and the state.

        The weights of the attention ``[B,1,S]`` are appended to ``seen``.
        """
        axis = 1 if self.batch_first else 0
        steps, batch, ends = self._counted(embedded, lengths)
        state = self._begin(state, batch, value_of(embedded))
        if not steps:
            return self._without_steps(embedded, state, lengths)
        results = []
        for t in range(steps):
            e = embedded[:, t] if axis else embedded[t]
            result, state = self._step(e, memory, state, _within(ends, t), seen)
            results.append(result)
        return np.stack(results, axis=axis), self._continued(state)

    def _without_steps(self, embedded: Any, state: Any, lengths: Any) -> tuple[Any, Any]:
        """Return the results ``[0,B,H]`` of no inputs, and the state as the layer begins with it.

        Past its end a row keeps what is fed next, and so does one without steps.
        """
        inner, fed = state
        shape = (*embedded.shape[:-1], self._fed_size)
        none = np.zeros_like(value_of(embedded), shape=shape)
        y, inner = self.rnn(np.concatenate([embedded, none], axis=-1), inner, lengths=lengths)
        return y, self._continued((inner, fed))

    def _sampled(self, x: Any, memory: Any, state: Any, lengths: Any) -> tuple[Any, Any]:
        """Return the outputs ``[T,B,O]`` where some inputs are drawn from those before."""
        given = np.asarray(_device.host(value_of(x)))
        if given.ndim != 2 or given.dtype.kind not in "iu":
            raise TypeError(
                "x: expected labels [T,B] of an integer dtype with teacher_forcing below 1, got "
                f"shape {given.shape} of {given.dtype}"
            )
        axis = 1 if self.batch_first else 0
        steps, batch, ends = self._counted(given, lengths)
        recording = active()
        own = None if recording is None else recording.rng
        rng = self._rng if own is None else own
        values = self._block.values
        state = self._begin(state, batch, values)
        now = given[:, 0] if axis else given[0]
        outputs: list[Any] = []
        for t in range(steps):
            if t:
                right = given[:, t] if axis else given[t]
                logits = np.asarray(_device.host(value_of(outputs[-1])), np.float64)
                drawn = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
                now = np.where(rng.random(batch) < self._forcing, right, drawn)
            e = _applied(self.embed, _device.like(np.expand_dims(now, axis), values))
            e = e[:, 0] if axis else e[0]
            result, state = self._step(e, memory, state, _within(ends, t), None)
            outputs.append(_applied(self.head, result))
        return np.stack(outputs, axis=axis), self._continued(state)

    def weights(
        self,
        x: Any,
        memory: Any,
        state: Any = None,
        *,
        lengths: Lengths = None,
        memory_lengths: Lengths = None,
    ) -> Any:
        """Return how much each step attends to each step of the memory, such as for a picture.

        Args:
            x: as in a call; for a sequence that was written, its labels, one step late.
            memory: as in a call.
            state: as in a call.
            lengths: as in a call.
            memory_lengths: as in a call.

        Returns:
            ``[B,T,S]``, which sum to 1 over S.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, or a decoder without attention.
        """
        if self.attention is None:
            raise ValueError("weights: expected a decoder with attention, got one without")
        read = self._memory(memory, memory_lengths)
        embedded = _applied(self.embed, _without_padding(x, lengths, self.batch_first))
        if self.feed == "none":
            y, _ = self.rnn(embedded, state, lengths=lengths)
            return self.attention.weights(y, read)
        seen: list[Any] = []
        y, _ = self._stepped(embedded, read, state, lengths, seen)
        return np.concatenate(seen, axis=1) if seen else self.attention.weights(y, read)

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
            return state
        fed = np.zeros_like(like, shape=(batch, self._fed_size), dtype=self.rnn.dtype)
        return state, fed

    def _continued(self, state: tuple[Any, Any]) -> Any:
        """Return the state that a call returns: of the recurrent layer alone if nothing is fed."""
        return state[0] if self.feed == "none" else state

    def _step(
        self, e: Any, memory: Any, state: tuple[Any, Any], on: Any, seen: list[Any] | None
    ) -> tuple[Any, tuple[Any, Any]]:
        """Return the result of one step ``[B,H]``, and the state: inner, and what is fed next.

        ``on`` is 1 for rows that have the step and 0 for others; None for all.
        """
        inner, before = state
        axis, fed = 1 if self.batch_first else 0, before
        if self.feed == "context":
            fed = self._mean(self._query(inner, e), memory, seen)
        together = np.concatenate([e, fed], axis=-1) if self._fed_size else e
        y, inner = self.rnn(np.expand_dims(together, axis), inner, lengths=on)
        y = y[:, 0] if self.batch_first else y[0]
        if self.feed == "context":
            result = np.tanh(self.combine(np.concatenate([y, fed], axis=-1)))
        else:
            result = self._result(y, memory, seen)
            fed = result if self.feed == "output" else before
        if on is not None and self._fed_size:
            fed = np.where(_device.like(on[:, None] > 0, value_of(result)), fed, before)
        return result, (inner, fed)

    def _query(self, inner: Any, e: Any) -> Any:
        """Return the output of the step before: the top layer's h."""
        h = inner[0] if isinstance(inner, tuple) else inner
        if h is not None:
            return h[-1]
        size = self.rnn.proj_size or self.rnn.hidden_size
        return np.zeros_like(value_of(e), shape=(e.shape[0], size), dtype=self.rnn.dtype)

    def _result(self, y: Any, memory: Any, seen: list[Any] | None = None) -> Any:
        """Return what goes to the head, from the outputs of the recurrent layer."""
        if self.attention is None:
            return y
        mean = self._mean(y, memory, seen)
        return np.tanh(self.combine(np.concatenate([y, mean], axis=-1)))

    def _mean(self, query: Any, memory: Any, seen: list[Any] | None) -> Any:
        """Return the mean of the memory; its weights are appended to ``seen``."""
        assert self.attention is not None
        if seen is not None:
            seen.append(self.attention.weights(query, memory))
        return self.attention(query, memory)

    def steps(
        self, memory: Any = None, state: Any = None, *, memory_lengths: Lengths = None
    ) -> DecoderSteps:
        """Return what `decoding.greedy`, `decoding.beam_search` and `decoding.sample` drive.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> decoder = ost.nn.Decoder(
        ...     ost.nn.Embedding(9, 4, rng=0), ost.nn.GRU(4, 8, rng=1), ost.nn.Linear(8, 9, rng=2),
        ...     attention=ost.nn.Attention("dot"), memory_size=8, rng=3,
        ... )
        >>> steps = decoder.steps(np.ones((6, 2, 8), np.float32))
        >>> best = ost.decoding.beam_search(steps, [0, 0], end=1, width=3, max_steps=5)
        >>> len(best)
        2

        Args:
            memory: as in a call, of B sequences.
            state: as in a call, from which every sequence starts.
            memory_lengths: as in a call.

        Returns:
            A function ``(labels [N], state) -> (logits [N,O], state)``; the state None is that of
            the B sequences before their first step.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value.
        """
        return DecoderSteps(self, self._memory(memory, memory_lengths), state)

    def generate(
        self,
        memory: Any = None,
        state: Any = None,
        *,
        start: Any,
        steps: int,
        end: int | None = None,
        memory_lengths: Lengths = None,
        width: int = 1,
        length_penalty: float = 0.0,
    ) -> tuple[Array, Array]:
        """Write sequences by `decoding.greedy`, or by `decoding.beam_search`.

        Args:
            memory: as in a call.
            state: as in a call; without a memory and a state there is one sequence.
            start: the first input: a whole number, or ``[B]`` whole numbers.
            steps: how many are written at most.
            end: the label that ends a sequence; None: none does.
            memory_lengths: as in a call.
            width: hypotheses of a sequence in a beam search; 1 is greedy.
            length_penalty: of the beam search, at least 0; the larger, the longer the sequences.

        Returns:
            ``ids, lengths``: ``ids [T,B]`` (``[B,T]`` if batch_first) on the CPU, filled with
            ``end`` behind the end of a sequence; and ``lengths [B]``, without that label.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or value, an end that is no label, or logits
                of NaN.
        """
        from ..decoding import beam_search, greedy  # which imports the layers

        most, width = _check.positive("steps", steps), _check.positive("width", width)
        end = None if end is None else _check.positive("end", end, 0)
        run = self.steps(memory, state, memory_lengths=memory_lengths)
        first = self._starts(start, run.memory, state)
        options: Any = {"end": end, "max_steps": most, "select": run.select}
        if width == 1 and not length_penalty:
            found = greedy(_checked(run, end), first, **options)
        else:
            options.update(width=width, length_penalty=length_penalty)
            found = [best[0] for best in beam_search(_checked(run, end), first, **options)]
        lengths = np.array([len(h.labels) for h in found], np.int64)
        longest = max((len(h.labels) + bool(h.ended) for h in found), default=0)
        ids = np.full((len(found), longest), 0 if end is None else end, np.int64)
        for row, h in zip(ids, found):
            row[: len(h.labels)] = h.labels
        return (ids if self.batch_first else ids.T), lengths

    def _starts(self, start: Any, memory: Any, state: Any) -> Array:
        """Return the first input of each sequence to write, ``[B]``."""
        first = np.asarray(_device.host(start))
        if first.dtype.kind not in "iu" or first.ndim > 1:
            raise TypeError(f"start: expected a whole number or [B] of them, got {start!r}")
        given, batch = self._batch(memory, state)
        if batch is None:
            batch = len(first) if first.ndim else 1
        if first.ndim and len(first) != batch:
            raise ValueError(
                f"start: expected a whole number or {batch} of them, one for each sequence of the "
                f"{given}, got {len(first)}"
            )
        return np.broadcast_to(first, (batch,)).astype(np.int64)

    @staticmethod
    def _batch(memory: Any, state: Any) -> tuple[str, int | None]:
        """Return B and what it is known by; None if there is neither."""
        if memory is not None:
            return "memory", int(memory.keys.shape[0])
        while isinstance(state, (tuple, dict)):
            state = next(iter(state.values())) if isinstance(state, dict) else state[0]
        return "state", None if state is None else int(state.shape[1])


class DecoderSteps:
    """Run a `Decoder` on some of the sequences of a memory; `Decoder.steps` makes it.

    A state holds which sequence each row of it continues, and the state of the decoder.

    Attributes:
        memory: of all sequences; None without attention.
    """

    def __init__(self, decoder: Decoder, memory: Memory | None, state: Any) -> None:
        self.memory = memory
        self._decoder, self._state = decoder, state
        self._batch = decoder._batch(memory, state)[1]
        self._last: tuple[Array, Memory | None] = np.zeros(0, np.int64), None

    def __call__(self, labels: Array, state: Any) -> tuple[Any, Any]:
        """Return the logits of the next labels, and the state behind them.

        Args:
            labels: ``[N]``, the last label of each row.
            state: None for all B sequences at their start, or what the last call returned.

        Returns:
            ``logits, state``: ``[N,O]``, and a state.

        Raises:
            ValueError: another number of labels than of sequences at the start.
        """
        if state is not None:
            rows, inner = state
        else:
            rows, inner = np.arange(len(labels)), self._state
            if self._batch not in (None, len(labels)):
                raise ValueError(
                    f"start: expected {self._batch} labels, one for each sequence of the memory "
                    f"and the state, got {len(labels)}"
                )
        decoder = self._decoder
        axis = 1 if decoder.batch_first else 0
        x = _device.like(np.expand_dims(labels, axis), decoder._block.values)
        y, inner = decoder(x, self._memory_of(rows), inner)
        return (y[:, 0] if axis else y[0]), (rows, inner)

    def _memory_of(self, rows: Array) -> Memory | None:
        """Return the memory of some sequences, which most steps share with the step before."""
        if self.memory is None:
            return None
        if self._last[1] is None or not np.array_equal(self._last[0], rows):
            keys, values, on = self.memory
            some = Memory(keys[rows], values[rows], None if on is None else on[rows])
            self._last = rows, some
        return self._last[1]

    def select(self, state: Any, rows: Array) -> Any:
        """Return the state of some rows, which may be repeated.

        Args:
            state: what a call returned.
            rows: ``[M]``, their numbers.

        Returns:
            A state of M rows.
        """
        from ..decoding._steps import select_rows  # which imports the layers

        sequences, inner = state
        if self._decoder.feed == "none":
            return sequences[rows], select_rows(inner, rows)
        return sequences[rows], (select_rows(inner[0], rows), inner[1][rows])


def _within(lengths: Any, step: int) -> Any:
    """Return how many of one step each row has: 1 up to its end, then 0; None for all 1."""
    return None if lengths is None else (lengths > step).astype(np.int64)


def _checked(run: DecoderSteps, end: int | None) -> Any:
    """Return a step whose logits are usable, and whose end is one of their labels."""
    from ..decoding._hypothesis import refuse_unusable  # which imports the layers

    def step(labels: Array, state: Any) -> tuple[Array, Any]:
        y, state = run(labels, state)
        scores: Array = _device.host(y)
        if end is not None and end >= scores.shape[-1]:
            raise ValueError(
                f"end: expected a label below O = {scores.shape[-1]}, the outputs of the head, "
                f"got {end}"
            )
        refuse_unusable("head", scores)
        return scores, state

    return step


def _require(value: Any, kind: type, name: str, *, optional: bool = False) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        wanted = "a recurrent layer" if kind is Recurrent else f"a {kind.__name__}"
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")


readable(globals())
