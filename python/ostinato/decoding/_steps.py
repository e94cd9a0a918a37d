"""Write sequences one label after the other: greedy, by beam search, or drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Seed
from ..nn import Layer, Stream
from ..nn._walk import layouts_of
from ._hypothesis import Hypothesis, log_softmax, refuse_unusable
from ._sampling import check_options, drawn, probabilities

Step = Callable[[Array, Any], tuple[Array, Any]]
Select = Callable[[Any, Array], Any]
MOST_EXPONENT = 600.0  # e^600 divides 1e-16, the least -log p but 0, without underflow


def select_rows(state: Any, rows: Array) -> Any:
    """Return the states of some sequences: axis 1 of every array, as recurrent layers have it."""
    if state is None:
        return None
    if isinstance(state, dict):
        return {name: select_rows(part, rows) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [select_rows(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if not _check.is_array(state) or state.ndim < 2:
        raise TypeError(
            "state: expected arrays with the sequences on axis 1, or tuples, lists and dicts of "
            f"such, got {type(state).__name__}; give select=, a function of (state, rows)"
        )
    return state[:, rows]


def _pair(given: Any) -> tuple[Any, Any]:
    """Return what a step gave: logits and a state."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        several = f" of {len(given)}" if isinstance(given, (tuple, list)) else ""
        raise TypeError(f"step: expected (logits, state), got {type(given).__name__}{several}")
    return given[0], given[1]


def _step_of_model(model: Layer) -> Step:
    batch_first = any(first for first, _ in layouts_of(model))

    def step(labels: Array, state: Any) -> tuple[Array, Any]:
        x = labels[:, None] if batch_first else labels[None]
        y, state = _pair(model(x, state))
        return y[:, 0] if batch_first else y[0], state

    if not model.stateful:
        raise TypeError(f"step: expected a model with a state, got {model!r}")
    return step


class _StepOfStream:
    """Run a stream on the rows of a state; its first slots hold them."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __call__(self, labels: Array, state: Any) -> tuple[Array, Any]:
        count = len(labels)
        if count > self.stream.batch:
            raise ValueError(
                f"step: expected a stream of {count} slots or more, one for each sequence and "
                f"hypothesis, got {self.stream.batch}; use model.stream(batch={count})"
            )
        slots = np.arange(count)
        if state is None:
            self.stream.reset(slots)
        else:
            at = np.zeros(self.stream.batch, np.int64)  # slots that are not used hold anything
            at[:count] = slots
            self.stream.state = select_rows(state, at)
        y = self.stream.step(labels, slots).copy()
        return y, select_rows(self.stream.state, slots)


class _Steps:
    """Run a step function on some of the sequences, checked."""

    def __init__(self, step: Any, select: Select | None, end: int | None) -> None:
        if isinstance(step, Layer):
            step = _step_of_model(step)
        elif isinstance(step, Stream):
            step = _StepOfStream(step)
        elif not callable(step):
            raise TypeError(
                f"step: expected a model, a stream or a function, got {type(step).__name__}"
            )
        if select is not None and not callable(select):
            raise TypeError(
                f"select: expected a function of (state, rows), got {type(select).__name__}"
            )
        own = getattr(step, "select", None)  # that of a Decoder's steps
        self.step: Step = step
        self.select: Select = (own or select_rows) if select is None else select
        self.end = None if end is None else _check.positive("end", end, 0)

    def __call__(self, labels: Array, state: Any) -> tuple[Array, Any]:
        """Return float64 logits ``[N,V]`` on the host, and the states."""
        y, state = _pair(self.step(labels, state))
        y = _device.host(_check.array("step", y, 2))
        if len(y) != len(labels) or y.shape[1] == 0:
            raise ValueError(
                f"step: expected logits of shape (N, V) with N = {len(labels)}, got {y.shape}"
            )
        if self.end is not None and self.end >= y.shape[1]:
            raise ValueError(
                f"end: expected a label below V = {y.shape[1]}, the last axis of the logits, got "
                f"{self.end}"
            )
        refuse_unusable("step", y)
        return y.astype(np.float64), state


def _starts(start: Any) -> Array:
    a = _check.plain("start", start, "[B] whole numbers")
    if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
        raise TypeError(
            f"start: expected [B] whole numbers, got shape {a.shape} of {a.dtype}; use [start] "
            "for one sequence"
        )
    return a.astype(np.int64)


def greedy(
    step: Any,
    start: Any,
    *,
    end: int | None = None,
    state: Any = None,
    max_steps: int = 100,
    select: Callable[[Any, Array], Any] | None = None,
) -> list[Hypothesis]:
    """Write the most probable label, again and again.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> def step(labels, state):  # after label k comes k + 1
    ...     return 9 * np.eye(5)[labels + 1], state
    >>> [h.labels.tolist() for h in ost.decoding.greedy(step, [0, 2], end=4)]
    [[1, 2, 3], [3]]

    Args:
        step: a model of the next label, its stream (with a slot for each sequence),
            ``decoder.steps(memory, state)`` of a `nn.Decoder`, or a function
            ``(labels [N], state) -> (logits [N,V], state)``.
        start: ``[B]``, the first label of each sequence, which is not a part of what is returned.
        end: the label that ends a sequence, which is not a part of it either; None: none does.
        state: what the first step is given; None: the model's initial state.
        max_steps: where sequences without an end are cut.
        select: a function ``(state, rows) -> state`` of the sequences ``rows [M]`` of a state.
            None: the method ``select`` of the step if it has one, or they are on axis 1 of every
            array of it, as in recurrent layers.

    Returns:
        A hypothesis for each sequence; its score is its log-probability.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong value, an end that is no label, or logits of NaN.
    """
    return _write(_Steps(step, select, end), _starts(start), state, max_steps, _most_probable)


def _most_probable(logits: Array) -> Array:
    out: Array = logits.argmax(-1)
    return out


def sample(
    step: Any,
    start: Any,
    *,
    end: int | None = None,
    state: Any = None,
    max_steps: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Seed = None,
    select: Callable[[Any, Array], Any] | None = None,
) -> list[Hypothesis]:
    """Draw each label with the probabilities that the model gives it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> layers = ost.nn.Embedding(9, 4, rng=0), ost.nn.GRU(4, 8, rng=0), ost.nn.Linear(8, 9, rng=0)
    >>> model = ost.nn.Sequential(*layers)
    >>> texts = ost.decoding.sample(model, [0, 0, 0], end=8, max_steps=20, top_p=0.9, rng=1)
    >>> len(texts)
    3

    Args:
        step: a model of the next label, its stream, or a function; see `greedy`.
        start: ``[B]``, the first label of each sequence, which is not a part of what is returned.
        end: the label that ends a sequence, which is not a part of it either; None: none does.
        state: what the first step is given; None: the model's initial state.
        max_steps: where sequences without an end are cut.
        temperature: see `probabilities`; 0 is `greedy`.
        top_k: see `probabilities`.
        top_p: see `probabilities`.
        rng: a seed, or a generator.
        select: a function ``(state, rows) -> state``; see `greedy`.

    Returns:
        A hypothesis for each sequence; its score is the log-probability by the model as it is, at
        temperature 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong value, an end that is no label, or logits of NaN.
    """
    options: Any = dict(
        zip(("temperature", "top_k", "top_p"), check_options(temperature, top_k, top_p))
    )
    generator = _check.generator(rng)

    def choose(logits: Array) -> Array:
        return drawn(probabilities(logits, **options), generator)

    return _write(_Steps(step, select, end), _starts(start), state, max_steps, choose)


def _write(
    steps: _Steps,
    labels: Array,
    state: Any,
    max_steps: int,
    choose: Callable[[Array], Array],
) -> list[Hypothesis]:
    active = np.arange(len(labels))
    written: list[list[int]] = [[] for _ in active]
    total, ended = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for _ in range(_check.positive("max_steps", max_steps)):
        if not len(active):
            break
        logits, state = steps(labels, state)
        labels = choose(logits)
        with np.errstate(over="ignore"):  # what no float holds is probability 0
            total[active] += log_softmax(logits)[np.arange(len(labels)), labels]
        going = np.ones(len(labels), bool) if steps.end is None else labels != steps.end
        ended[active[~going]] = True
        if not going.all():
            rows = np.flatnonzero(going)
            active, labels, state = active[rows], labels[rows], steps.select(state, rows)
        for b, label in zip(active, labels.tolist()):
            written[b].append(label)
    return [
        Hypothesis(np.array(w, np.int64), float(p), float(p), bool(e))
        for w, p, e in zip(written, total, ended)
    ]


def beam_search(
    step: Any,
    start: Any,
    *,
    end: int | None = None,
    state: Any = None,
    width: int = 4,
    max_steps: int = 100,
    length_penalty: float = 0.0,
    count: int = 1,
    select: Callable[[Any, Array], Any] | None = None,
) -> list[list[Hypothesis]]:
    """Search for the most probable sequences, with so many hypotheses beside each other.

    The score of n steps, the end among them, is ``log p / ((5 + n) / 6)^length_penalty`` (Wu et al.
    2016). The search of a sequence ends when no hypothesis that is still written can have a better
    score than those that are returned. A width of 1 is `greedy`, but for a penalty; with one that
    nothing falls out of, the search is exact.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> p = np.array([[0, 0.6, 0.4, 0], [0, 0, 0, 0.5], [0, 0, 0, 1.0]])  # 0 to 1 or 2, then to 3
    >>> p[1, 0] = 0.5
    >>> def step(labels, state):
    ...     with np.errstate(divide="ignore"):
    ...         return np.log(p[labels]), state
    >>> ost.decoding.greedy(step, [0], end=3, max_steps=2)[0].labels.tolist()
    [1, 0]
    >>> best = ost.decoding.beam_search(step, [0], end=3, max_steps=2)[0][0]
    >>> best.labels.tolist(), round(float(np.exp(best.score)), 2)
    ([2], 0.4)

    Args:
        step: a model of the next label, its stream (with ``B * width`` slots), or a function; see
            `greedy`.
        start: ``[B]``, the first label of each sequence, which is not a part of what is returned.
        end: the label that ends a sequence, which is not a part of it either; None: none does, and
            all have ``max_steps`` labels.
        state: what the first step is given; None: the model's initial state.
        width: hypotheses of a sequence that are kept after each step.
        max_steps: where hypotheses without an end are cut.
        length_penalty: at least 0, and at most ``600 / log((5 + max_steps) / 6)``; the larger, the
            longer the sequences.
        count: how many hypotheses to return, at most; at most the width.
        select: a function ``(state, rows) -> state``, in which rows may be repeated; see `greedy`.

    Returns:
        The best hypotheses of each sequence, the best one first. Those that were cut follow on
        those that have an end.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong value, an end that is no label, or logits of NaN.

    Source: for the penalty Wu et al. (2016), "Google's neural machine translation system".
    """
    width, count = _check.positive("width", width), _check.positive("count", count)
    if count > width:
        raise ValueError(f"count: expected at most width = {width}, got {count}")
    max_steps = _check.positive("max_steps", max_steps)
    penalty = _checked_penalty(length_penalty, max_steps)
    steps, labels = _Steps(step, select, end), _starts(start)
    beams = [_Beam(width, count, penalty, max_steps, steps.end) for _ in labels]
    owners = np.arange(len(labels))  # the sequence of each row
    for n in range(1, max_steps + 1):
        if not len(owners):
            break
        logits, state = steps(labels, state)
        log_p = log_softmax(logits)
        rows, parts = [], []
        for b in np.unique(owners):
            own = np.flatnonzero(owners == b)
            kept, chosen = beams[b].grow(log_p[own], n)
            rows.append(own[kept])
            parts.append(chosen)
        every = np.concatenate(rows)
        owners, labels = owners[every], np.concatenate(parts)
        if len(every):
            state = steps.select(state, every)
    return [beam.best() for beam in beams]


def _checked_penalty(penalty: float, max_steps: int) -> float:
    """Return a penalty of length with which scores of all lengths can be told apart."""
    penalty = _check.finite("length_penalty", penalty)
    longest = math.log((5 + max_steps) / 6)
    if penalty * longest > MOST_EXPONENT:
        raise ValueError(
            f"length_penalty: expected at most {MOST_EXPONENT / longest:.4g} with max_steps = "
            f"{max_steps}, got {penalty!r}"
        )
    return penalty


class _Beam:
    """Hold the hypotheses of one sequence: those still written, and the best that ended."""

    def __init__(
        self, width: int, count: int, penalty: float, max_steps: int, end: int | None
    ) -> None:
        self.width, self.count, self.penalty = width, count, penalty
        self.max_steps, self.end = max_steps, end
        self.texts, self.log_p = np.zeros((1, 0), np.int64), np.zeros(1)
        self.ended: list[Hypothesis] = []

    def _score(self, log_p: float, steps: int) -> float:
        return float(log_p / ((5 + steps) / 6) ** self.penalty)

    def grow(self, log_p: Array, step: int) -> tuple[Array, Array]:
        """Return the rows that go on, and their next labels."""
        with np.errstate(over="ignore"):  # what no float holds is probability 0
            totals = (self.log_p[:, None] + log_p).reshape(-1)
        at = np.flatnonzero(totals > -np.inf)
        # Of the best 2 width continuations at most width are ends.
        at = at[np.argsort(-totals[at], kind="stable")][: 2 * self.width]
        rows, labels = np.divmod(at, log_p.shape[1])
        ends = labels == (-1 if self.end is None else self.end)
        for k in np.flatnonzero(ends[: self.width]):
            p = float(totals[at[k]])
            self.ended.append(Hypothesis(self.texts[rows[k]], self._score(p, step), p))
        self.ended = sorted(self.ended, key=lambda h: -h.score)[: self.count]
        going = np.flatnonzero(~ends)[: self.width]
        at, rows, labels = at[going], rows[going], labels[going]
        self.texts = np.concatenate([self.texts[rows], labels[:, None]], 1)
        self.log_p = totals[at]
        if len(self.ended) == self.count and (
            not len(at) or self._score(self.log_p[0], self.max_steps) <= self.ended[-1].score
        ):
            self.texts, self.log_p = self.texts[:0], self.log_p[:0]
        return rows[: len(self.log_p)], labels[: len(self.log_p)]

    def best(self) -> list[Hypothesis]:
        """Return the best hypotheses: those with an end first."""
        cut = [
            Hypothesis(text, self._score(float(p), len(text)), float(p), False)
            for text, p in zip(self.texts, self.log_p)
        ]
        return (self.ended + sorted(cut, key=lambda h: -h.score))[: self.count]


readable(globals())
