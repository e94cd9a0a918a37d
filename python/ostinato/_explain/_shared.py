"""What explanations of all devices have: numbers in words, measured times, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

from .. import _device
from .._annotations import readable
from .._cells import facts_of
from ..nn._stack import Recurrent

DRIVERS = {  # of a GPU, by the names that its plans have
    "step": "a launch for every step",
    "stream": "blocks that each read their part of the weights once a step",
    "loop": "one multiprocessor for all steps",
    "persistent": "multiprocessors that share the recurrent weights",
    "cluster": "clusters of blocks that keep the recurrent weights of some rows",
}


@dataclass(frozen=True)
class Explanation:
    """Hold what `explain` found; ``str()`` gives it as a text.

    >>> import ostinato as ost
    >>> e = ost.explain(ost.nn.GRU(8, 16, rng=0), (100, 4, 8))
    >>> e.facts["precision"]
    'float32'

    Attributes:
        facts: the same as numbers, times in seconds, sizes in bytes.
        text: the text.
    """

    facts: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def size_of(n: float) -> str:
    """Return bytes in words."""
    for unit in ("bytes", "KB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def time_of(s: float) -> str:
    """Return seconds in words."""
    return f"{s * 1e6:.3g} us" if s < 1e-3 else f"{s * 1e3:.3g} ms" if s < 1 else f"{s:.3g} s"


def recurrent_weights(layer: Recurrent) -> int:
    """Return the number of weights of a layer and direction that every step waits for."""
    gates = facts_of(layer._cell)["gates"]
    return gates * layer.hidden_size * layer._output_size + layer.proj_size * layer.hidden_size


def products_of(layer: Recurrent, k: int, steps: int, batch: int, rows: int | None = None) -> float:
    """Return the operations of the products of layer k, forward.

    ``rows``: those of the table in which the first layer looks up its input; None: it is given it.
    """
    inputs = layer.input_size if k == 0 else layer._directions * layer._output_size
    columns = facts_of(layer._cell)["gates"] * layer.hidden_size
    times = steps * batch
    read = times if k > 0 or rows is None else rows
    weights = columns * inputs * float(read) + recurrent_weights(layer) * float(times)
    return 2.0 * weights * layer._directions


def measured(
    layer: Recurrent,
    sizes: list[int],
    training: bool,
    memory_limit: str | int | None,
    pause: float = 0.0,
) -> float:
    """Return the median seconds of a call on zeros, after pauses; no gradient changes."""
    x = _device.like(np.zeros(sizes, layer._dtype), layer._block.values)
    device = _device.of(x)
    limit: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}
    grads = layer.new_grads() if training else None
    seconds = []
    for _ in range(4):
        sleep(pause)
        start = perf_counter()
        if training:
            (y, _), pullback = layer.vjp(x, rng=0, **limit)
            pullback(y, grads=grads)
        else:
            layer(x)
        if device is not None:
            device.wait()
            device.check()
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


def form(layer: Recurrent) -> list[str]:
    """Return the line of a cell with functions of the layer's own."""
    if not layer._scalars:
        return []
    return [f"  cell           {layer._cell}: functions, clip and coupled gates of the layer"]


def times(facts: dict[str, Any]) -> list[str]:
    """Return the lines of what was measured."""
    seconds = facts["measured_seconds"]
    if seconds is None:
        return []
    lines = [f"  measured       {time_of(seconds)}, on zeros, all of the call"]
    pauses = facts.get("measured_after_pause")
    if pauses:
        times = ", ".join(
            f"{time_of(s)} after {1000 * pause:.0f} ms" for pause, s in pauses.items()
        )
        lines.append(f"                 {times} without a call")
        members, kind = facts["team"]
        who = {
            "alone": "",
            "workers": ", workers of the library",
            "openmp": ", of an OpenMP runtime",
        }[kind]
        lines.append(f"                 by {members} thread{'s' * (members > 1)}{who}")
    return lines


def refusals(facts: dict[str, Any]) -> list[str]:
    """Return a line for each driver of a GPU that does not run the cell, with what it lacks."""
    lacks = facts["drivers"]
    return [
        f"  not on a GPU   by {kernel} ({DRIVERS[kernel]}): it lacks {lacks[kernel]}"
        for kernel in DRIVERS
        if lacks[kernel]
    ]


def heading(layer: Recurrent, steps: int, batch: int, training: bool) -> str:
    """Return the first line of an explanation."""
    return f"{layer!r}, T={steps}, B={batch}: {'training' if training else 'inference'}"


def how_often(training: bool) -> str:
    """Return how often weights are packed."""
    return f"made {'once a step of the optimiser' if training else 'once'}"


readable(globals())
