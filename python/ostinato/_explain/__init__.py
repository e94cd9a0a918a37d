"""Tell which kernel a call would use and why, what it costs, and what would make it faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _check
from .._annotations import readable
from ..nn._model import Model
from ..nn._sequential import Sequential
from ..nn._stack import Recurrent
from ._cpu import on_cpu
from ._gpu import on_gpu
from ._models import given_inputs, of_call, of_sequential, sizes_of
from ._shared import Explanation, measured

__all__ = ["Explanation", "explain"]

Inputs = Any  # an array, a Ragged, or a tuple of arguments with such


def explain(
    layer: Recurrent | Sequential | Model,
    shape: Sequence[int] | Inputs,
    *,
    training: bool = False,
    memory_limit: str | int | None = None,
    measure: bool = False,
) -> Explanation:
    """Tell how a call on inputs of a shape is run, of a layer or of each layer of a model.

    The roofline time is what the arithmetic and the reading of the weights would take at the rates
    that this machine shows in a few milliseconds of measuring: no kernel can be faster.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> e = ost.explain(ost.nn.LSTM(64, 128, rng=0), (100, 1, 64))
    >>> e.facts["flops"] == 2 * 4 * 128 * (64 + 128) * 100
    True
    >>> "kernel set" in str(e)
    True
    >>> rnn, head = ost.nn.GRU(8, 16), ost.nn.Linear(16, 50)
    >>> model = ost.nn.Sequential(embed=ost.nn.Embedding(50, 8), rnn=rnn, head=head)
    >>> [facts["name"] for facts in ost.explain(model, (100, 4)).facts["layers"]]
    ['rnn']
    >>> encoder = ost.nn.Encoder(ost.nn.Embedding(50, 8), ost.nn.GRU(8, 16))
    >>> e = ost.explain(encoder, np.ones((100, 4), np.int64))
    >>> [(facts["name"], facts["shape"]) for facts in e.facts["layers"]]
    [('rnn', (100, 4, 8))]

    Args:
        layer: an RNN, LSTM or GRU; or a `Sequential` or `Model` with such layers, whose ``facts``
            are ``{"layers": [...], "not_run": [...]}``: one entry for each recurrent layer and
            shape that it is given, with its ``name``, the ``shape``, and ``calls``, how often it is
            called so; and the names of recurrent layers that the call does not run.
        shape: x.shape: ``(T,B,I)``, ``(B,T,I)`` if batch_first, or ``(T,I)``; without I for a model
            that begins with an Embedding. A model may be given its input itself in place of it,
            or a tuple of all that its call takes. A `Model` is called once to see the shapes, on
            zeros where it is given a shape.
        training: whether to explain `vjp` and its pullback in place of inference.
        memory_limit: that of the vjp, with all outputs kept: the schedule, its bytes and the extra
            time ("states": what is left of the tape).
        measure: whether to run the call on zeros as well, once to get ready and three times more,
            and tell the median time beside the others; on the CPU also that of calls after pauses
            of 10 and 100 ms, and which threads had a part in the last one.

    Returns:
        The explanation, as numbers and as a text.

    Raises:
        TypeError: layer is none of these, or has no recurrent layer in it; shape is no shape.
        ValueError: a shape or memory_limit that the layer does not take.
    """
    training, measure = _check.flag("training", training), _check.flag("measure", measure)
    options: dict[str, Any] = {
        "training": training,
        "memory_limit": memory_limit,
        "measure": measure,
    }
    if isinstance(layer, (Sequential, Model)):
        inputs = given_inputs(layer, shape)
        if inputs is None:
            return of_sequential(layer, shape, _of_layer, options)
        return of_call(layer, inputs, _of_layer, options)
    if not isinstance(layer, Recurrent):
        raise TypeError(
            "layer: expected an RNN, LSTM or GRU, a Sequential or a Model, got "
            f"{type(layer).__name__}"
        )
    return _of_layer(layer, shape, **options)


def _of_layer(
    layer: Recurrent,
    shape: Any,
    *,
    training: bool,
    memory_limit: str | int | None,
    measure: bool,
    rows: int | None = None,
) -> Explanation:
    """Explain one layer; ``rows``: those of a table in which it looks up its input, or None."""
    sizes = sizes_of(shape)
    if len(sizes) not in (2, 3) or sizes[-1] != layer.input_size:
        raise ValueError(
            f"shape: expected (T, B, I) or (T, I) with I = {layer.input_size}, got {tuple(shape)}"
        )
    if len(sizes) == 2:
        sizes.insert(0 if layer.batch_first else 1, 1)
    if training and layer.precision == "int8":
        raise ValueError("precision: expected one that can be trained, got 'int8'")
    if layer.device == "cpu":
        return on_cpu(layer, sizes, training, memory_limit, measure, rows)
    if memory_limit is not None:
        raise ValueError(
            f"memory_limit: expected None for a layer on {layer.device}, got {memory_limit!r}"
        )
    steps, batch = (sizes[1], sizes[0]) if layer.batch_first else (sizes[0], sizes[1])
    seconds = measured(layer, sizes, training, None) if measure else None
    return on_gpu(layer, steps, batch, training, seconds)


readable(globals())
Explanation.__module__ = __name__  # which is where it is documented
