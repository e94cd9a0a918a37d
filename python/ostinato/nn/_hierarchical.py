"""Define Hierarchical: sequences of sequences, such as words in sentences in documents."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Lengths
from .._ragged import Ragged
from .._recording import value_of
from ._layer import Layer
from ._model import Model
from ._walk import layout_of


class Hierarchical(Model):
    """Encode each inner sequence as one row, then run over the rows of each outer sequence.

    Documents are sentences of words: ``inner`` reads the words of a sentence and gives one row for
    it, ``outer`` reads the rows of the sentences of a document. Every sentence is read by itself,
    all of a batch at once.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Hierarchical(
    ...     ost.nn.Sequential(
    ...         ost.nn.Embedding(50, 4), ost.nn.GRU(4, 8), ost.nn.Pool("attention", 8)
    ...     ),
    ...     ost.nn.Sequential(ost.nn.GRU(8, 6), ost.nn.Pool("max"), ost.nn.Linear(6, 3)),
    ... )
    >>> sentences = ost.Ragged(np.arange(9), [0, 3, 4, 9])  # of 3, 1 and 5 words
    >>> documents = ost.Ragged(sentences, [0, 2, 3])  # of 2 and 1 sentences
    >>> model(documents).shape
    (2, 3)
    >>> model([[np.arange(3), np.arange(1)], [np.arange(5)]]).shape  # the same sizes, as lists
    (2, 3)

    Padding is cut off before anything is computed, so it costs nothing and may hold anything. An
    inner sequence without steps is what ``inner`` makes of it: zeros of a `Pool`. Source: Yang et
    al. (2016), "Hierarchical attention networks for document classification".

    Args:
        inner: a layer or model that gives one output a sequence, such as a `Sequential` that ends
            in a `Pool`. Its state, if it has one, is dropped.
        outer: a layer or model that takes those outputs as its steps. With a `Pool` in it the model
            gives one output a document; without one, one a sentence.

    Raises:
        TypeError: something that is no layer.
        ValueError: an inner layer that gives one output a step, layers of two layouts
            (batch_first), or a layer that has an owner.
    """

    takes_lengths = True

    def __init__(self, inner: Layer, outer: Layer) -> None:
        for name, layer in (("inner", inner), ("outer", outer)):
            if not isinstance(layer, Layer):
                raise TypeError(f"{name}: expected a layer, got {type(layer).__name__}")
        if not inner.reduces_time:
            raise ValueError(
                f"inner: expected one output a sequence, got one a step of {inner!r}; put an "
                "ost.nn.Pool at its end"
            )
        layouts = {layout_of(inner), layout_of(outer)} - {None}
        if len(layouts) > 1:
            raise ValueError("layers: expected one batch_first for all, got both")
        self.inner, self.outer = inner, outer
        self._first = True in layouts  # axis 0 of padded inputs is the batch

    @property
    def reduces_time(self) -> bool:
        """Whether the outputs are one a document, because the outer model pools over the steps."""
        return self.outer.reduces_time

    def __call__(self, x: Any, lengths: Lengths = None, *, inner_lengths: Lengths = None) -> Any:
        """Return one output a document, or one a sentence.

        Args:
            x: a `Ragged` of a `Ragged`; a list of documents, each a `Ragged` or a list of arrays
                ``[n,...]``; or an array ``[S,B,W,...]`` (``[B,S,W,...]`` if the layers have
                batch_first) of S sentences of W words, with at least 3 axes.
            lengths: of an array, ``[B]`` whole numbers from 0 to S: the sentences of each document.
                None: every document has S.
            inner_lengths: of an array, whole numbers from 0 to W, ``[S,B]`` (``[B,S]`` if
                batch_first): the words of each sentence. None: every sentence has W.

        Returns:
            ``[B,...]`` if ``outer`` pools. Otherwise outputs ``[n,...]`` of every document as a
            `Ragged`, or padded with zeros as x was.

        Raises:
            TypeError: an argument of the wrong type, or a list with another thing than documents.
            ValueError: an argument of the wrong shape or value.
        """
        nested = nested_of(x)
        if nested is not None:
            for name, given in (("lengths", lengths), ("inner_lengths", inner_lengths)):
                if given is not None:
                    raise ValueError(
                        f"{name}: expected None with ragged sequences, got {type(given).__name__}"
                    )
            return self._run(nested)
        a = value_of(x)
        x = x if a is not x else _check.array("x", x)
        documents = self._without_padding(x, lengths, inner_lengths)
        y = self._run(documents)
        return y if not isinstance(y, Ragged) else self._padded(y, x)

    def _run(self, documents: Ragged) -> Any:
        rows = _called(self.inner, documents.rows)
        return _called(self.outer, documents.like(rows))

    def _without_padding(self, x: Any, lengths: Lengths, inner_lengths: Any) -> Ragged:
        """Return documents of an array, without padding."""
        if x.ndim < 3:
            axes = "(B, S, W, ...)" if self._first else "(S, B, W, ...)"
            raise ValueError(f"x: expected shape {axes}, got {x.shape}")
        batch, count = x.shape[:2] if self._first else x.shape[1::-1]
        ends = _check.lengths(lengths, count, batch)
        ends = np.full(batch, count) if ends is None else ends
        ends = _device.host(ends)
        words = np.full(x.shape[:2], x.shape[2])
        if inner_lengths is not None:
            words = _inner_lengths(inner_lengths, x.shape)
        on = np.arange(count) < ends[:, None]  # [B,S]
        words = (words if self._first else words.T)[on]
        document, sentence = np.nonzero(on)
        at = np.repeat(np.arange(len(words)), words)
        step = np.arange(len(at)) - np.repeat(np.cumsum(words) - words, words)
        first, second = (document, sentence) if self._first else (sentence, document)
        index = tuple(_device.like(k, value_of(x)) for k in (first[at], second[at], step))
        sentences = Ragged(x[index], np.concatenate([[0], np.cumsum(words)]))
        return Ragged(sentences, np.concatenate([[0], np.cumsum(ends)]))

    def _padded(self, y: Ragged, x: Any) -> Any:
        """Return outputs of every sentence, laid out as x; recorded within `vjp`."""
        rows = y.rows
        batch, count = x.shape[:2] if self._first else x.shape[1::-1]
        index = np.full((count, batch), len(rows), np.int64)
        index[y._places()] = np.arange(len(rows))
        index = index.T if self._first else index
        zeros = np.zeros_like(value_of(rows), shape=(1, *rows.shape[1:]))
        return np.concatenate([rows, zeros])[_device.like(index, value_of(rows))]


def _inner_lengths(given: Any, shape: tuple[int, ...]) -> Array:
    """Return the words of each sentence of an array, checked."""
    a = np.asarray(_device.host(_device.taken(given)))
    if a.dtype.kind not in "iu":
        raise TypeError(f"inner_lengths: expected an integer dtype, got {a.dtype}")
    if a.shape != shape[:2]:
        raise ValueError(f"inner_lengths: expected shape {shape[:2]}, got {a.shape}")
    bad = a[(a < 0) | (a > shape[2])]
    if bad.size:
        raise ValueError(f"inner_lengths: expected values from 0 to {shape[2]}, got {bad[0]}")
    return a.astype(np.int64)


def _called(layer: Any, x: Ragged) -> Any:
    """Return the outputs of a layer, without its state."""
    if layer.stateful:
        return layer(x)[0]
    if layer.takes_lengths:
        return layer(x)
    return x.like(layer(x.rows))


def nested_of(x: Any) -> Ragged | None:
    """Return sequences of sequences as a `Ragged` of a `Ragged`; None for an array."""
    if isinstance(x, Ragged):
        if not isinstance(x.rows, Ragged):
            raise TypeError(
                "x: expected sequences of sequences, got a Ragged of rows; use "
                "ost.Ragged(sentences, offsets) with sentences a Ragged"
            )
        return x
    if not isinstance(x, (list, tuple)):
        return None
    if not x:
        raise ValueError("x: expected at least one document, got none")
    return _joined(x)


def _joined(documents: Any) -> Ragged:
    """Return a list of documents as a `Ragged` of a `Ragged`."""
    sentences: list[Any] = []
    counts = []
    for k, document in enumerate(documents):
        if not isinstance(document, (Ragged, list, tuple)):
            raise TypeError(
                f"x[{k}]: expected the sentences of a document, a Ragged or a list of arrays, got "
                f"{type(document).__name__}"
            )
        for j, words in enumerate(document):
            if not _check.is_array(_device.taken(value_of(words))):
                raise TypeError(
                    f"x[{k}][{j}]: expected an array of words, got {type(words).__name__}"
                )
        sentences += document
        counts.append(len(document))
    if not sentences:
        raise ValueError("x: expected at least one sentence, got none")
    return Ragged(Ragged.join(sentences), np.cumsum([0, *counts]))


readable(globals())
