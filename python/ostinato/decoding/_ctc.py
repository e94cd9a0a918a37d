"""Decode logits that were trained with the CTC loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Lengths
from .._ragged import Ragged, rows_that_count, unwrapped
from ..losses._ctc import padded_labels
from ._hypothesis import Hypothesis, log_softmax, refuse_unusable
from ._language import LanguageModel

Labels = npt.NDArray[np.int64]
NEVER = -np.inf


def _sequences(y: Any, lengths: Lengths, batch_first: bool, blank: int) -> list[Array]:
    """Return the logits ``[n,V]`` of each sequence on the host, checked."""
    blank = _check.positive("blank", blank, 0)
    y, _ = unwrapped(y, "y")
    rows = y.rows if isinstance(y, Ragged) else _check.array("y", y, 3)
    _check.real_dtype(rows.dtype, "y")
    y = y.like(_device.host(rows)) if isinstance(y, Ragged) else _device.host(rows)
    if rows.ndim != (2 if isinstance(y, Ragged) else 3):
        raise ValueError(f"y: expected sequences of shape (n, V), got rows {rows.shape}")
    if blank >= rows.shape[-1]:
        raise ValueError(
            f"blank: expected a class below V = {rows.shape[-1]}, the last axis of y, got {blank}"
        )
    batch_first = _check.flag("batch_first", batch_first)
    ragged, on = rows_that_count(y, _device.host(lengths), None, batch_first)
    refuse_unusable("y", ragged.rows[on])
    return [ragged[b][on[ragged.offsets[b] : ragged.offsets[b + 1]]] for b in range(len(ragged))]


def _collapsed(path: Array, blank: int) -> Labels:
    changed = np.ones(len(path), bool)
    changed[1:] = path[1:] != path[:-1]
    out: Labels = path[changed & (path != blank)].astype(np.int64)
    return out


def ctc_greedy(
    y: Any, lengths: Lengths = None, *, blank: int = 0, batch_first: bool = False
) -> list[npt.NDArray[np.int64]]:
    """Return the labels of the best path: the best class of each step.

    Repetitions count once, and blanks are left out. The most probable labels may be others:
    `ctc_beam_search` adds up their paths.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> path = np.eye(4)[[1, 1, 0, 1, 2, 2]]  # classes 1 1 blank 1 2 2
    >>> ost.decoding.ctc_greedy(path[:, None])[0].tolist()
    [1, 1, 2]

    Args:
        y: logits ``[T,B,V]``, or ``[B,T,V]`` with ``batch_first``; or a `Ragged` or a list of
            ``[n,V]``.
        lengths: ``[B]``, the steps of each sequence. None: all.
        blank: the class of the blank.
        batch_first: the layout of y.

    Returns:
        Labels ``[n]`` of each sequence.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, or logits of NaN.
    """
    return [_collapsed(s.argmax(-1), blank) for s in _sequences(y, lengths, batch_first, blank)]


def ctc_beam_search(
    y: Any,
    lengths: Lengths = None,
    *,
    blank: int = 0,
    width: int = 16,
    language_model: LanguageModel | None = None,
    weight: float = 1.0,
    bonus: float = 0.0,
    count: int = 1,
    batch_first: bool = False,
) -> list[list[Hypothesis]]:
    """Return the most probable labels that a search over prefixes finds.

    The probabilities of all paths that write the same prefix are added up. The score of labels is
    ``log p(labels | y) + weight log p_lm(labels) + bonus n``; the latter two only with a language
    model and a bonus. With a width that no prefix falls out of, the search is exact.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y = np.log([[0.6, 0.4], [0.6, 0.4]])[:, None]
    >>> ost.decoding.ctc_greedy(y)[0].tolist()  # two blanks: 0.36
    []
    >>> best = ost.decoding.ctc_beam_search(y)[0][0]  # the others: 0.64
    >>> best.labels.tolist(), round(float(np.exp(best.log_probability)), 2)
    ([1], 0.64)

    Args:
        y: logits ``[T,B,V]``, or ``[B,T,V]`` with ``batch_first``; or a `Ragged` or a list of
            ``[n,V]``.
        lengths: ``[B]``, the steps of each sequence. None: all.
        blank: the class of the blank.
        width: prefixes that are kept after each step.
        language_model: tells the probability of the next label, in the numbers of the classes of y;
            see `LanguageModel`.
        weight: of the language model, at least 0.
        bonus: what each label adds to the score: against the preference of a language model for
            few labels.
        count: how many hypotheses to return, at most; at most the width.
        batch_first: the layout of y.

    Returns:
        The best hypotheses of each sequence, the best one first; an empty list where no labels
        have a probability above 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, logits of NaN, or a language model of
            another number of classes.

    Source: Graves (2012), "Supervised sequence labelling with recurrent neural networks"; Hannun,
    Maas, Jurafsky, Ng (2014), "First-pass large vocabulary continuous speech recognition using
    bi-directional recurrent DNNs".
    """
    width, count = _check.positive("width", width), _check.positive("count", count)
    if count > width:
        raise ValueError(f"count: expected at most width = {width}, got {count}")
    weight = _check.finite("weight", weight)
    bonus = _check.finite("bonus", bonus, minimum=-np.inf)
    if language_model is not None and not isinstance(language_model, LanguageModel):
        raise TypeError(
            "language_model: expected an ostinato.decoding.LanguageModel, got "
            f"{type(language_model).__name__}"
        )
    sequences = _sequences(y, lengths, batch_first, blank)
    return [
        _Search(log_softmax(s), blank, width, language_model, weight, bonus).best(count)
        for s in sequences
    ]


class _Search:
    """Search over the prefixes of one sequence. A prefix is a node of a tree.

    Attributes:
        parents, labels: ``[nodes]``, of each node; node 0 is the empty prefix.
        nodes: ``[K]``, those in the beam.
        ends_blank, ends_label: ``[K]``, logarithms of the probabilities of the paths that end with
            a blank, or with the last label.
        extra: ``[K]``, what language model and bonus add.
        ahead: ``[K,V]``, what they add for each next label.
    """

    def __init__(
        self,
        log_p: Array,
        blank: int,
        width: int,
        language_model: LanguageModel | None,
        weight: float,
        bonus: float,
    ) -> None:
        self.log_p, self.blank, self.width = log_p, blank, width
        self.model, self.weight, self.bonus = language_model, weight, bonus
        self.parents, self.labels = [-1], [-1]
        self.children: dict[tuple[int, int], int] = {}
        self.states: list[Any] = [None if language_model is None else language_model.start()]
        self.nodes = np.zeros(1, np.int64)
        self.ends_blank, self.ends_label = np.zeros(1), np.full(1, NEVER)
        self.extra = np.zeros(1)
        self.ahead = self._ahead(0)[None]
        # -inf beside -inf; and sums of logarithms that no float holds are probability 0.
        with np.errstate(invalid="ignore", over="ignore"):
            for row in log_p:
                self._step(row)

    def _ahead(self, node: int) -> Array:
        """Return what the next label adds to the score, ``[V]``."""
        classes = self.log_p.shape[-1]
        if self.model is None:
            return np.full(classes, self.bonus)
        given: Any = self.model.log_probabilities(self.states[node])
        try:
            p = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"language_model: expected log-probabilities of V = {classes} classes as an array, "
                f"got {_check.quoted(given)}"
            ) from None
        if p.shape != (classes,):
            raise ValueError(
                f"language_model: expected log-probabilities of V = {classes} classes, those of y, "
                f"got shape {p.shape}"
            )
        if not self.weight:
            return np.full(classes, self.bonus)
        out: Array = self.weight * p + self.bonus
        out[self.blank] = 0.0  # which is not read
        if np.isnan(out).any():
            raise ValueError(
                "language_model: expected log-probabilities that are numbers, got NaN after "
                f"labels {_check.quoted(self._prefix(node).tolist())}"
            )
        return out

    def _step(self, log_p: Array) -> None:
        last = np.array([self.labels[n] for n in self.nodes], np.int64)  # none in an empty beam
        both = np.logaddexp(self.ends_blank, self.ends_label)
        stay_blank = both + log_p[self.blank]
        stay_label = np.where(last >= 0, self.ends_label + log_p[last], NEVER)
        longer = both[:, None] + log_p
        some = np.flatnonzero(last >= 0)  # a repeated label is a new one only after a blank
        longer[some, last[some]] = self.ends_blank[some] + log_p[last[some]]
        longer[:, self.blank] = NEVER
        # A longer prefix that is in the beam already has these paths, too.
        above = np.array([self.parents[n] for n in self.nodes], np.int64)
        child, parent = np.nonzero(above[:, None] == self.nodes)
        stay_label[child] = np.logaddexp(stay_label[child], longer[parent, last[child]])
        longer[parent, last[child]] = NEVER
        scores = np.concatenate(
            [
                np.logaddexp(stay_blank, stay_label) + self.extra,
                (longer + (self.extra[:, None] + self.ahead)).reshape(-1),
            ]
        )
        self._keep(_largest(scores, self.width), stay_blank, stay_label, longer)

    def _keep(self, chosen: Array, stay_blank: Array, stay_label: Array, longer: Array) -> None:
        old, new = chosen[chosen < len(self.nodes)], chosen[chosen >= len(self.nodes)]
        rows, labels = np.divmod(new - len(self.nodes), longer.shape[1])
        made = [self._child(int(self.nodes[r]), int(k)) for r, k in zip(rows, labels)]
        self.extra = np.concatenate([self.extra[old], self.extra[rows] + self.ahead[rows, labels]])
        self.ahead = np.concatenate([self.ahead[old], *(self._ahead(n)[None] for n in made)])
        self.ends_blank = np.concatenate([stay_blank[old], np.full(len(made), NEVER)])
        self.ends_label = np.concatenate([stay_label[old], longer[rows, labels]])
        self.nodes = np.concatenate([self.nodes[old], np.array(made, np.int64)])

    def _child(self, node: int, label: int) -> int:
        known = self.children.get((node, label))
        if known is not None:
            return known
        child = len(self.parents)
        self.children[node, label] = child
        self.parents.append(node)
        self.labels.append(label)
        self.states.append(
            None if self.model is None else self.model.advance(self.states[node], label)
        )
        return child

    def best(self, count: int) -> list[Hypothesis]:
        """Return the best hypotheses, with the end that the language model gives them."""
        both = np.logaddexp(self.ends_blank, self.ends_label)
        with np.errstate(over="ignore"):
            scores = both + self.extra
        if self.model is not None and self.weight:
            scores = scores + self.weight * np.array([self._end(int(n)) for n in self.nodes])
        return [
            Hypothesis(self._prefix(int(self.nodes[k])), float(scores[k]), float(both[k]))
            for k in _largest(scores, count)
        ]

    def _end(self, node: int) -> float:
        """Return the logarithm of the probability that a prefix ends."""
        assert self.model is not None
        end = _check.number("language_model", self.model.end(self.states[node]), "a number as end")
        if np.isnan(end):
            raise ValueError(
                "language_model: expected a number as end, got NaN after labels "
                f"{_check.quoted(self._prefix(node).tolist())}"
            )
        return end

    def _prefix(self, node: int) -> Labels:
        out = []
        while node:
            out.append(self.labels[node])
            node = self.parents[node]
        return np.array(out[::-1], np.int64)


def _largest(scores: Array, count: int) -> Array:
    """Return where the largest scores are, the largest first; -inf is none of them.

    Where scores are equal, lower indices come first.
    """
    at = np.flatnonzero(scores > NEVER)
    if len(at) > count:
        # Where a partition puts equal scores differs between CPUs; its threshold does not.
        least = np.partition(scores[at], len(at) - count)[len(at) - count]
        above, equal = at[scores[at] > least], at[scores[at] == least]
        at = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    out: Array = at[np.argsort(-scores[at], kind="stable")]
    return out


def ctc_align(
    y: Any,
    target: Any,
    lengths: Lengths = None,
    *,
    blank: int = 0,
    batch_first: bool = False,
) -> list[npt.NDArray[np.int64]]:
    """Return when each label is written, on the most probable path of known labels.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> path = 5 * np.eye(3)[[0, 1, 1, 0, 2]]
    >>> ost.decoding.ctc_align(path[:, None], np.array([[1, 2]]))[0].tolist()
    [[1, 3], [4, 5]]

    Args:
        y: logits ``[T,B,V]``, or ``[B,T,V]`` with ``batch_first``; or a `Ragged` or a list of
            ``[n,V]``.
        target: labels ``[B,S]``, with negative numbers behind them; or a `Ragged` or a list of
            ``[n]``.
        lengths: ``[B]``, the steps of each sequence. None: all.
        blank: the class of the blank.
        batch_first: the layout of y.

    Returns:
        ``[n,2]`` of each sequence: the first step of each label, and the step behind its last one.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, logits of NaN, or labels that no path
            writes in so many steps.
    """
    sequences = _sequences(y, lengths, batch_first, blank)
    rows = padded_labels(target)
    if len(rows) != len(sequences):
        raise ValueError(
            f"target: expected labels of {len(sequences)} sequences, as many as y has, got "
            f"{len(rows)}"
        )
    out = []
    for b, (logits, row) in enumerate(zip(sequences, rows)):
        labels = row[row >= 0]
        if ((labels >= logits.shape[-1]) | (labels == blank)).any():
            raise ValueError(
                f"target: expected labels from 0 to {logits.shape[-1] - 1} other than the blank "
                f"{blank}, got others at b = {b}"
            )
        out.append(_aligned(log_softmax(logits), labels, blank, b))
    return out


def _aligned(log_p: Array, labels: Labels, blank: int, b: int) -> Labels:
    """Run Viterbi's algorithm over the states blank, label, blank, ..., blank."""
    states = np.full(2 * len(labels) + 1, blank, np.int64)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = labels[1:] != labels[:-1]
    a = np.full(len(states), NEVER)
    a[0] = 0.0  # before the first step
    came = np.zeros((len(log_p), len(states)), np.int64)
    for t, row in enumerate(log_p):
        from_two = np.concatenate([[NEVER, NEVER], a[:-2]])[: len(states)]
        ways = np.stack([a, np.concatenate([[NEVER], a[:-1]]), np.where(skips, from_two, NEVER)])
        came[t] = ways.argmax(0)
        with np.errstate(over="ignore"):  # what no float holds is probability 0
            a = ways.max(0) + row[states]
    ends = a[-2:] if len(labels) else a
    if not ends.max() > NEVER:
        raise ValueError(
            f"target: expected labels that some path writes in {len(log_p)} steps, got "
            f"{len(labels)} without one at b = {b}"
        )
    state = len(states) - len(ends) + int(ends.argmax())
    out = np.zeros((len(labels), 2), np.int64)
    for t in range(len(log_p) - 1, -1, -1):
        if state % 2:
            label = state // 2
            out[label, 0] = t
            out[label, 1] = max(out[label, 1], t + 1)
        state -= int(came[t, state])
    return out


readable(globals())
