"""Equations of layers that are not recurrent, one output at a time: a part of `reference`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._annotations import readable

Array = npt.NDArray[Any]


def attention(
    kind: str,
    query: Array,
    keys: Array,
    values: Array,
    *,
    weights: Mapping[str, Array] | None = None,
    on: Array | None = None,
) -> tuple[Array, Array]:
    """Return means of values, weighted by the softmax of the scores of their keys.

    The score of query q and key k is ``q . k`` ("dot"), that over ``sqrt(D)`` ("scaled"),
    ``q . W_k k`` ("general"), or ``v . tanh(W_q q + W_k k + b)`` ("additive").

    >>> import numpy as np
    >>> q, k = np.zeros((1, 1, 2)), np.zeros((4, 1, 2))
    >>> y, a = attention("dot", q, k, np.arange(4.0).reshape(4, 1, 1))
    >>> y.tolist(), a.tolist()
    ([[[1.5]]], [[[0.25, 0.25, 0.25, 0.25]]])

    Args:
        kind: "dot", "scaled", "general" or "additive".
        query: ``[T,B,D]``.
        keys: ``[S,B,K]``.
        values: ``[S,B,V]``.
        weights: ``key.weight``, ``key.bias``, ``query.weight`` and ``score``, as `nn.Attention` has
            them for its kind; None for "dot" and "scaled".
        on: bool ``[T,B,S]``: what each query may read; None: everything.

    Returns:
        ``[T,B,V]``, zero where nothing may be read, and the weights ``[B,T,S]``.

    Source: Bahdanau, Cho, Bengio (2015); Luong, Pham, Manning (2015); Vaswani et al. (2017).
    """
    p = {} if weights is None else weights
    (steps, batch, size), many = query.shape, len(keys)

    def score(q: Array, k: Array) -> Any:
        if kind == "general":
            return q @ (p["key.weight"] @ k)
        if kind == "additive":
            hidden = p["query.weight"] @ q + p["key.weight"] @ k + p["key.bias"]
            return p["score"] @ np.tanh(hidden)
        return q @ k / (np.sqrt(size) if kind == "scaled" else 1.0)

    y, a = np.zeros((steps, batch, values.shape[2])), np.zeros((batch, steps, many))
    for t in range(steps):
        for b in range(batch):
            there = [s for s in range(many) if on is None or on[t, b, s]]
            scores = np.array([score(query[t, b], keys[s, b]) for s in there])
            e = np.exp(scores - scores.max(initial=-np.inf)) if there else scores
            for s, one in zip(there, e):
                a[b, t, s] = one / e.sum()
                y[t, b] += a[b, t, s] * values[s, b]
    return y, a


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return rows of mean 0 and variance 1, scaled and shifted.

    >>> import numpy as np
    >>> layer_norm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), eps=1e-9).round(6).tolist()
    [[-1.0, 1.0]]

    Args:
        x: ``[...,D]``.
        weight: ``[D]``.
        bias: ``[D]``.
        eps: added to the variance.

    Returns:
        ``[...,D]``.

    Source: Ba, Kiros, Hinton (2016), equation 4.
    """
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        away = x[at] - x[at].mean()
        out[at] = away / np.sqrt((away * away).mean() + eps) * weight + bias
    return out


def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: str = "same",
    dilation: int = 1,
    lengths: Sequence[int] | None = None,
) -> Array:
    """Convolve over time, each row by itself, with zeros before its start and behind its end.

    >>> import numpy as np
    >>> x = np.arange(1.0, 5.0).reshape(4, 1, 1)
    >>> conv1d(x, np.ones((1, 1, 2)), padding="causal")[:, 0, 0].tolist()
    [1.0, 3.0, 5.0, 7.0]

    Args:
        x: ``[T,B,I]``.
        weight: ``[O,I,K]``.
        bias: ``[O]``; None: zeros.
        stride: s, steps between two outputs.
        padding: "same", "causal" or "valid"; see `nn.Conv1d`.
        dilation: d, steps between two that an output sees.
        lengths: ``[B]``; None: T.

    Returns:
        ``[N,B,O]``: a row of n steps has ``ceil(n / s)`` outputs, with "valid"
        ``ceil((n - (K - 1) d) / s)``, and zeros behind them.
    """
    (steps, batch, _), (outputs, _, size) = x.shape, weight.shape
    span = (size - 1) * dilation
    before = {"same": span // 2, "causal": span, "valid": 0}[padding]

    def count(n: int) -> int:
        return max(-(-(n - (span if padding == "valid" else 0)) // stride), 0)

    out = np.zeros((count(steps), batch, outputs))
    for b in range(batch):
        n = steps if lengths is None else int(lengths[b])
        for t in range(count(n)):
            y = np.zeros(outputs) if bias is None else np.array(bias, np.float64)
            for k in range(size):
                at = t * stride + k * dilation - before
                if 0 <= at < n:
                    y = y + weight[:, :, k] @ x[at, b]
            out[t, b] = y
    return out


def pool(
    kind: str, x: Array, on: Array | None = None, *, weights: Mapping[str, Array] | None = None
) -> Array:
    """Return one row a sequence: the mean, maximum, last or an attended mean of its steps.

    The attended mean has the weights of the softmax of ``context . tanh(W x + b)``.

    >>> import numpy as np
    >>> pool("last", np.arange(3.0).reshape(3, 1, 1), np.array([[True], [True], [False]])).tolist()
    [[1.0]]

    Args:
        kind: "mean", "max", "last" or "attention".
        x: ``[T,B,D]``.
        on: bool ``[T,B]``, the steps that count; None: all.
        weights: ``weight [D,D]``, ``bias [D]`` and ``context [D]``, for "attention".

    Returns:
        ``[B,D]``, zero for a sequence without a step.

    Source: for the attended mean Yang et al. (2016), equations 5 to 7.
    """
    out = np.zeros(x.shape[1:])
    for b in range(x.shape[1]):
        rows = [x[t, b] for t in range(len(x)) if on is None or on[t, b]]
        if not rows:
            continue
        if kind == "max":
            out[b] = np.max(rows, 0)
        elif kind == "last":
            out[b] = rows[-1]
        elif kind == "mean":
            out[b] = np.sum(rows, 0) / len(rows)
        else:
            assert weights is not None
            hidden = [np.tanh(weights["weight"] @ row + weights["bias"]) for row in rows]
            e = np.exp([weights["context"] @ h for h in hidden])
            out[b] = np.sum([one / e.sum() * row for one, row in zip(e, rows)], 0)
    return out


readable(globals())
