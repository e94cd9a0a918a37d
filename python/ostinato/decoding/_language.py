"""Define language models over labels, for the beam search over logits of the CTC loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array
from ..nn import Layer
from ._hypothesis import log_softmax, refuse_unusable

START = -1  # before the first label of a sequence
KNOWN = 65536  # distributions that are kept


class _Counts:
    """Hold how often labels came after contexts of one length.

    Args:
        contexts: ``[C,n]``.
        offsets: ``[C+1]``, where the labels of each context begin.
        labels: ``[K]``.
        counts: ``[K]``.
    """

    names = ("contexts", "offsets", "labels", "counts")

    def __init__(self, contexts: Array, offsets: Array, labels: Array, counts: Array) -> None:
        self.arrays = (contexts, offsets, labels, counts)
        self._at = {tuple(c): k for k, c in enumerate(contexts.tolist())}

    def __len__(self) -> int:
        """Return the number of different contexts."""
        return len(self._at)

    def find(self, context: tuple[int, ...]) -> tuple[Array, Array] | None:
        """Return the labels that came after a context, and how often; None if it is not known."""
        k = self._at.get(context)
        if k is None:
            return None
        _, offsets, labels, counts = self.arrays
        part = slice(offsets[k], offsets[k + 1])
        return labels[part], counts[part]


def _loaded(arrays: list[Array], n: int, classes: int) -> _Counts | None:
    """Return counts after contexts of n labels from arrays of a file; None if they do not fit."""
    most = np.iinfo(np.int64).max
    if any(a.dtype.kind not in "iu" or (a > most).any() for a in arrays):
        return None
    contexts, offsets, labels, counts = (a.astype(np.int64) for a in arrays)
    if contexts.ndim != 2 or contexts.shape[1] != n or labels.ndim != 1:
        return None
    if offsets.shape != (len(contexts) + 1,) or counts.shape != labels.shape:
        return None
    if offsets[0] != 0 or offsets[-1] != len(labels) or (np.diff(offsets) <= 0).any():
        return None
    if ((labels < 0) | (labels > classes) | (counts <= 0)).any():
        return None
    if counts.sum(dtype=np.float64) > most / 2:  # whose sums could wrap
        return None
    least = np.zeros(n, np.int64)
    least[:1] = START  # which stands at the front alone
    if ((contexts < least) | (contexts >= classes)).any():
        return None
    owners = np.repeat(np.arange(len(contexts)), np.diff(offsets))
    order = np.lexsort((labels, owners))
    if ((np.diff(owners[order]) == 0) & (np.diff(labels[order]) == 0)).any():
        return None  # a label twice after one context
    made = _Counts(contexts, offsets, labels, counts)
    return made if len(made) == len(contexts) else None  # a context twice


def _each(sequences: Any) -> Iterator[tuple[str, Any]]:
    """Return sequences, each with what errors call it."""
    every = enumerate(_check.each("sequences", sequences, "sequences"))
    return ((f"sequences[{k}]", sequence) for k, sequence in every)


def _checked_labels(sequence: Any, name: str, classes: int) -> Array:
    """Return labels ``[n]`` from 0 to V - 1 as int64."""
    a = _check.plain(name, sequence, "[n] whole numbers")
    if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
        raise TypeError(f"{name}: expected [n] whole numbers, got shape {a.shape} of {a.dtype}")
    if a.size and not (a.min() >= 0 and a.max() < classes):
        raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got others")
    labels: Array = a.astype(np.int64)
    return labels


class LanguageModel:
    """Base of the language models; derive from it to write your own.

    A state says where in a sequence the model is. It may be anything, and is never changed: a
    search goes on from one state with many labels.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> class Uniform(ost.decoding.LanguageModel):
    ...     def start(self):
    ...         return None
    ...     def advance(self, state, label):
    ...         return None
    ...     def log_probabilities(self, state):
    ...         return np.full(3, -np.log(3))
    >>> y = np.log([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4]])[:, None]
    >>> ost.decoding.ctc_beam_search(y, language_model=Uniform())[0][0].labels.tolist()
    [1]
    """

    def start(self) -> Any:
        """Return the state before the first label.

        Returns:
            A state.

        Raises:
            TypeError: the model does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define start")

    def advance(self, state: Any, label: int) -> Any:
        """Return the state after a label.

        Args:
            state: the one before it.
            label: the label.

        Returns:
            Another state.

        Raises:
            TypeError: the model does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define advance")

    def log_probabilities(self, state: Any) -> Array:
        """Return the logarithms of the probabilities of each next label.

        Args:
            state: where the sequence is.

        Returns:
            ``[V]``, in nats; what stands at the blank is not read.

        Raises:
            TypeError: the model does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define log_probabilities")

    def end(self, state: Any) -> float:
        """Return the logarithm of the probability that the sequence ends here.

        Args:
            state: where the sequence is.

        Returns:
            A number in nats; 0 where a model does not say otherwise.
        """
        return 0.0


class NGram(LanguageModel):
    """Count sequences of n labels, and tell the probability of the next one.

    Probabilities of all lengths of the context are interpolated by Witten and Bell's rule: with
    c(h, w) how often label w came after the context h, and d(h) how many different labels did,
    ``p(w | h) = (c(h, w) + d(h) p(w | h')) / (c(h) + d(h))``, where h' is h without its first
    label; without any context p is uniform. Ends of sequences are counted as a label of their own.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.decoding.NGram(classes=3, order=2)
    >>> model.fit([np.array([1, 2, 1, 2]), np.array([1, 2])])
    >>> after_1 = np.exp(model.log_probabilities(model.advance(model.start(), 1)))
    >>> after_1.round(2).tolist()
    [0.02, 0.09, 0.84]

    Args:
        classes: V, the number of classes, the blank included.
        order: n, at least 1: a label is predicted from the n - 1 before it.

    Raises:
        ValueError: a size below 1.

    Source: Witten, Bell (1991), "The zero-frequency problem".
    """

    def __init__(self, classes: int, order: int = 5) -> None:
        self.classes = _check.positive("classes", classes)
        self.order = _check.positive("order", order)
        self._tables: list[_Counts] = []  # for contexts of 0, 1, ... labels
        self._known: dict[tuple[int, ...], Array] = {}

    def fit(self, sequences: Iterable[Array]) -> None:
        """Count sequences, in place of those that were counted before.

        Args:
            sequences: labels ``[n]`` of each, from 0 to V - 1.

        Raises:
            TypeError: what is no list of sequences, or labels that are no whole numbers.
            ValueError: labels out of range.
        """
        parts = []
        for name, sequence in _each(sequences):
            labels = _checked_labels(sequence, name, self.classes)
            parts += [np.array([START]), labels, np.array([self.classes])]
        self._count(np.concatenate(parts) if parts else np.zeros(0, np.int64))

    def _count(self, flat: Array) -> None:
        """Count the windows of 1, 2, ... symbols that lie within one sequence."""
        sequence = np.cumsum(flat == START)
        base = self.classes + 1
        context = np.zeros(len(flat), np.int64)  # a number for the n - 1 symbols from each place on
        tables = []
        for n in range(1, self.order + 1):
            at = np.arange(len(flat) - n + 1)
            at = at[(sequence[at] == sequence[at + n - 1]) & (flat[at + n - 1] != START)]
            found, first, counts = np.unique(
                context[at] * base + flat[at + n - 1], return_index=True, return_counts=True
            )
            begins = np.flatnonzero(np.diff(found // base, prepend=-1))
            windows = flat[at[first[begins]][:, None] + np.arange(n - 1)]
            offsets = np.append(begins, len(found))
            tables.append(_Counts(windows, offsets, found % base, counts))
            if n < self.order:  # those with a START in front are contexts, too
                inside = np.arange(len(flat) - n + 1)
                key = context[inside] * (base + 1) + flat[inside + n - 1] + 1
                context = np.unique(key, return_inverse=True)[1].reshape(-1)
        self._tables, self._known = tables, {}

    def state_dict(self) -> dict[str, Array]:
        """Return what was counted.

        Returns:
            Arrays by name, such as `ostinato.safetensors` writes.
        """
        out = {}
        for n, table in enumerate(self._tables):
            for name, array in zip(table.names, table.arrays):
                out[f"{n}.{name}"] = array
        return out

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take counts in place of those that are there.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> model, other = (ost.decoding.NGram(classes=3, order=2) for _ in range(2))
        >>> model.fit([np.array([1, 2, 1, 2])])
        >>> other.load_state_dict(model.state_dict())
        >>> other.bits_per_label([np.array([1])]) == model.bits_per_label([np.array([1])])
        True

        Args:
            arrays: what `state_dict` of a model of the same classes and order gave.

        Raises:
            TypeError: what is no mapping of names to arrays.
            ValueError: arrays of another model. In both cases the counts are as they were.
        """
        _check.mapping("arrays", arrays, "names to arrays")
        wanted = {f"{n}.{name}" for n in range(self.order) for name in _Counts.names}
        if arrays and set(arrays) != wanted:
            raise ValueError(
                f"arrays: expected those of an NGram of order {self.order}, got "
                f"{_check.some(list(arrays))}"
            )
        tables = []
        for n in range(self.order if arrays else 0):
            names = [f"{n}.{name}" for name in _Counts.names]
            given = [_check.plain(f"arrays[{k!r}]", arrays[k], "an array") for k in names]
            table = _loaded(given, n, self.classes)
            if table is None:
                raise ValueError(
                    f"arrays: expected counts of {self.classes} classes after {n} labels, got "
                    "others"
                )
            tables.append(table)
        self._tables, self._known = tables, {}

    def _distribution(self, context: tuple[int, ...]) -> Array:
        """Return the probabilities of all labels and of the end, ``[V+1]``."""
        known = self._known.get(context)
        if known is not None:
            return known
        lower = (
            self._distribution(context[1:])
            if context
            else np.full(self.classes + 1, 1 / (self.classes + 1))
        )
        found = self._tables[len(context)].find(context) if self._tables else None
        if found is None:
            return lower
        labels, counts = found
        p = len(labels) * lower
        p[labels] += counts
        p /= counts.sum() + len(labels)
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[context] = p
        return p

    def start(self) -> tuple[int, ...]:
        """Return the state before the first label.

        Returns:
            The context, as a tuple.
        """
        return (START,)[: self.order - 1]

    def advance(self, state: tuple[int, ...], label: int) -> tuple[int, ...]:
        """Return the state after a label.

        Args:
            state: the one before it.
            label: the label.

        Returns:
            The last n - 1 labels.
        """
        longer = (*state, int(label))
        return longer[len(longer) - min(len(longer), self.order - 1) :]

    def log_probabilities(self, state: tuple[int, ...]) -> Array:
        """Return the logarithms of the probabilities of each next label.

        Args:
            state: where the sequence is.

        Returns:
            ``[V]``, in nats.
        """
        out: Array = np.log(self._distribution(state)[:-1])
        return out

    def end(self, state: tuple[int, ...]) -> float:
        """Return the logarithm of the probability that the sequence ends here.

        Args:
            state: where the sequence is.

        Returns:
            A number in nats.
        """
        return math.log(self._distribution(state)[-1])

    def bits_per_label(self, sequences: Iterable[Array]) -> float:
        """Return the mean of ``-log2 p`` over the labels and the ends of sequences.

        Args:
            sequences: labels ``[n]`` of each, from 0 to V - 1.

        Returns:
            Bits; NaN without any sequence.

        Raises:
            TypeError: what is no list of sequences, or labels that are no whole numbers.
            ValueError: labels out of range.
        """
        total, count = 0.0, 0
        for name, sequence in _each(sequences):
            labels = _checked_labels(sequence, name, self.classes)
            state = self.start()
            for label in labels.tolist():
                total -= math.log2(self._distribution(state)[label])
                state = self.advance(state, label)
            total -= math.log2(self._distribution(state)[-1])
            count += len(labels) + 1
        return total / count if count else math.nan


class StreamModel(LanguageModel):
    """Use a recurrent model of the next label as a language model.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> layers = ost.nn.Embedding(4, 3, rng=0), ost.nn.GRU(3, 8, rng=0), ost.nn.Linear(8, 4, rng=0)
    >>> model = ost.decoding.StreamModel(ost.nn.Sequential(*layers), start=0)
    >>> y = np.random.default_rng(0).normal(size=(6, 1, 4))
    >>> len(ost.decoding.ctc_beam_search(y, language_model=model)[0])
    1

    Args:
        model: takes numbers of labels and gives logits of the next one, of the same numbers as the
            classes of the CTC loss: one with a `stream`, such as `nn.Sequential`.
        start: the label that stands before the first one.
        end: the label that stands behind the last one; None: ends add nothing to a score.

    Raises:
        TypeError: a model that is no layer, or one that needs more than one step at a time.
        ValueError: a model of another direction, or a label below 0.
    """

    def __init__(self, model: Layer, start: int, end: int | None = None) -> None:
        if not isinstance(model, Layer):
            raise TypeError(f"model: expected a Layer, got {type(model).__name__}")
        self._stream = model.stream()
        self._initial = self._stream.state
        self._first = _check.positive("start", start, 0)
        self._last = None if end is None else _check.positive("end", end, 0)

    def _after(self, state: Any, label: int) -> tuple[Any, Array]:
        self._stream.state = state
        y = self._stream.step(np.array([label]))[0]
        if self._last is not None and self._last >= len(y):
            raise ValueError(
                f"end: expected a label below V = {len(y)}, the last axis of the logits, got "
                f"{self._last}"
            )
        refuse_unusable("language_model", y)
        return self._stream.state, log_softmax(y)

    def start(self) -> tuple[Any, Array]:
        """Return the state before the first label.

        Returns:
            The states of the stream, and what it gave.
        """
        return self._after(self._initial, self._first)

    def advance(self, state: tuple[Any, Array], label: int) -> tuple[Any, Array]:
        """Return the state after a label.

        Args:
            state: the one before it.
            label: the label.

        Returns:
            The states of the stream, and what it gave.
        """
        return self._after(state[0], label)

    def log_probabilities(self, state: tuple[Any, Array]) -> Array:
        """Return the logarithms of the probabilities of each next label.

        Args:
            state: where the sequence is.

        Returns:
            ``[V]``, in nats.
        """
        return state[1]

    def end(self, state: tuple[Any, Array]) -> float:
        """Return the logarithm of the probability that the sequence ends here.

        Args:
            state: where the sequence is.

        Returns:
            A number in nats; 0 without ``end``.
        """
        return 0.0 if self._last is None else float(state[1][self._last])


readable(globals())
