"""Explain the recurrent layers of a model, each with the shape that it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _device
from .._call import Call
from .._ragged import Ragged
from ..nn._description import named_layers
from ..nn._layer import Layer
from ..nn._layers import Embedding
from ..nn._lookup import looks_up
from ..nn._sequential import Sequential
from ..nn._stack import Recurrent
from ..nn._walk import layers_of, layout_of
from ._shared import Explanation

_one_at_a_time = RLock()  # a layer has one that watches it
Explain = Callable[..., Explanation]  # of one layer, with the rows of a table that it looks up


class _Seen(NamedTuple):
    """A recurrent layer, with a shape that it is given."""

    name: str
    shape: tuple[int, ...]
    rows: int | None  # of the table that the layer looks up itself


def sizes_of(shape: Any) -> list[int]:
    """Return the numbers of a shape."""
    try:
        given = tuple(shape)
    except TypeError:
        raise TypeError(f"shape: expected (T, B, I) or (T, I), got {shape!r}") from None
    return [_check.positive("shape", n, 0) for n in given]


def given_inputs(model: Layer, shape: Any) -> tuple[Any, ...] | None:
    """Return what to call a model with; None: the shapes of its layers follow from its own.

    Args:
        model: the model.
        shape: x.shape, or x (a list of sequences, too), or a tuple of all arguments.
    """
    if _check.is_array(shape) or isinstance(shape, Ragged):
        return (shape,)
    if isinstance(shape, (tuple, list)) and any(not np.isscalar(n) for n in shape):
        return shape if isinstance(shape, tuple) else (shape,)
    leaves = [leaf for _, leaf in _leaves(model)]
    recurrent = [layer for layer in layers_of(model) if isinstance(layer, Recurrent)]
    if isinstance(model, Sequential) and all(layer in leaves for layer in recurrent):
        return None
    sizes = sizes_of(shape)
    first = next(layer for layer in layers_of(model) if not layer._children())
    dtype = np.dtype(np.int64) if isinstance(first, Embedding) else model.dtype
    return (_device.like(np.zeros(sizes, dtype), model._block.values),)


def _leaves(model: Layer) -> Iterator[tuple[str, Layer]]:
    """Yield the layers of a `Sequential`, those of such within it included, with their names."""
    for name, layer in model._children().items() if isinstance(model, Sequential) else ():
        if isinstance(layer, Sequential):
            for inner, leaf in _leaves(layer):
                yield f"{name}.{inner}", leaf
        else:
            yield name, layer


def of_sequential(
    model: Layer, shape: Sequence[int], explain: Explain, options: dict[str, Any]
) -> Explanation:
    """Explain the recurrent layers of a `Sequential`, whose shapes follow from its own."""
    leaves = list(_leaves(model))
    lead = sizes_of(shape)
    first = leaves[0][1]
    if not isinstance(first, Embedding):
        width = getattr(first, "input_size", getattr(first, "in_features", None))
        if len(lead) not in (2, 3) or (width is not None and lead[-1] != width):
            raise ValueError(
                f"shape: expected (T, B, I) or (T, I) with I = {width or 'any'}, got {tuple(shape)}"
            )
        lead.pop()
    if len(lead) not in (1, 2):
        raise ValueError(
            f"shape: expected (T, B) or (T,) for a model of an Embedding first, got {tuple(shape)}"
        )
    seen: dict[_Seen, int] = {}
    before: Layer | None = None
    pooled = False
    for name, layer in leaves:
        time = len(lead) - 1 if layout_of(layer) else 0
        if layer.reduces_time:
            lead, pooled = lead[:time] + lead[time + 1 :], True
        elif not pooled:  # a convolution may have fewer outputs than steps
            after = layer._times_after({"lengths": np.array(lead[time : time + 1])})
            lead[time] = int(after["lengths"][0])
        if isinstance(layer, Recurrent):
            rows, limit = None, options.get("memory_limit")
            if isinstance(before, Embedding) and looks_up(before, layer, math.prod(lead), limit):
                rows = before.num_embeddings
            seen[_Seen(name, (*lead, layer.input_size), rows)] = 1
        before = layer
    if not seen:
        raise TypeError(
            f"layer: expected a Sequential with an RNN, LSTM or GRU in it, got {model!r}"
        )
    return _together(model, seen, explain, options)


def of_call(
    model: Layer, inputs: tuple[Any, ...], explain: Explain, options: dict[str, Any]
) -> Explanation:
    """Explain the recurrent layers that a call of a model runs."""
    recurrent = {n: m for n, m in named_layers(model) if isinstance(m, Recurrent)}
    if not recurrent:
        raise TypeError(f"layer: expected a model with an RNN, LSTM or GRU in it, got {model!r}")
    with _watched(recurrent) as seen:
        if options["training"]:
            model.vjp(*inputs, rng=0)  # the seed leaves the generator of dropout as it is
        else:
            model(*inputs)
    if not seen:
        raise ValueError(
            f"shape: expected a call that runs a recurrent layer, got one that runs none of "
            f"{', '.join(recurrent)}"
        )
    return _together(model, seen, explain, options)


@contextmanager
def _watched(recurrent: dict[str, Recurrent]) -> Iterator[dict[_Seen, int]]:
    """Count the calls of layers by what they are given."""
    seen: dict[_Seen, int] = {}
    mine = get_ident()

    def watched(name: str, layer: Recurrent) -> Callable[..., Any]:
        forward = layer._forward

        def run(call: Call, *rest: Any) -> Any:
            if get_ident() == mine:  # other threads may run the layer
                batch, steps, _ = layer._shape(call)
                lead = (batch, steps) if layer.batch_first else (steps, batch)
                rows = None if call.table is None else len(call.table)
                given = _Seen(name, (*lead, layer.input_size), rows)
                seen[given] = seen.get(given, 0) + 1
            return forward(call, *rest)

        return run

    with _one_at_a_time:
        for name, layer in recurrent.items():
            layer.__dict__["_forward"] = watched(name, layer)
        try:
            yield seen
        finally:
            for layer in recurrent.values():
                del layer.__dict__["_forward"]


def _together(
    model: Layer, seen: dict[_Seen, int], explain: Explain, options: dict[str, Any]
) -> Explanation:
    """Return what is found of all layers, in the order in which they were first run."""
    layers = dict(named_layers(model))
    facts, texts = [], []
    for (name, shape, rows), calls in seen.items():
        e = explain(layers[name], shape, rows=rows, **options)
        facts.append(
            {"name": name, "shape": shape, "lookup": rows is not None, "calls": calls, **e.facts}
        )
        texts.append(f"{name}: {e}")
        if rows is not None:
            texts.append(
                "  input          looked up by the layer itself: products with it are made of the "
                f"{rows} rows of the table, not of {math.prod(shape[:-1])} steps"
            )
        if calls > 1:
            texts.append(f"  calls          {calls} of this shape")
    run = {given.name for given in seen}
    left = [n for n, m in layers.items() if isinstance(m, Recurrent) and n not in run]
    texts += [f"{name}: not run by this call" for name in left]
    return Explanation({"layers": facts, "not_run": left}, "\n".join(texts))
