"""Explain a recurrent layer on a GPU: the plans of its passes, the planner's model, and memory."""

from __future__ import annotations

from typing import Any

from .._cells import drivers_of
from .._plan import CHANGED_SINCE, CONFIRMED_BY, ESTIMATES
from ..nn._stack import Recurrent
from ._shared import (
    Explanation,
    form,
    heading,
    how_often,
    products_of,
    refusals,
    size_of,
    time_of,
    times,
)


def on_gpu(
    layer: Recurrent, steps: int, batch: int, training: bool, measured: float | None
) -> Explanation:
    """Explain a layer; ``measured`` are the seconds of a call, if they are wanted."""
    from .._backend import bytes_of, plans_of

    backend, dropout = layer._packed(training).backend, training and layer.dropout > 0
    plans = {
        which: plans_of(backend, steps, batch, which == "backward", dropout)
        for which in ("forward", "backward")[: 1 + training]
    }
    tape, workspace = bytes_of(backend, steps, batch, training, dropout)
    facts: dict[str, Any] = {
        "device": backend.device.figures.name,
        "cell": layer._cell,
        "drivers": drivers_of(layer._cell),
        "precision": layer.precision,
        "passes": {
            which: [{"of": name, **vars(p)} for name, _, p in of] for which, of in plans.items()
        },
        "flops": _flops(layer, steps, batch) * (3 if training else 1),
        "weight_bytes": _weight_bytes(layer, backend, plans),
        "tape_bytes": tape,
        "workspace_bytes": workspace,
        "measured_seconds": measured,
    }
    lines = [
        heading(layer, steps, batch, training),
        f"  device         {facts['device']}, {backend.device.figures.multiprocessors} "
        f"multiprocessors; {layer.precision} products",
        *form(layer),
        *(line for which, of in plans.items() for some in of for line in _plan(which, *some)),
        f"  packed weights {size_of(facts['weight_bytes'])}, {how_often(training)}",
        f"  tape           {size_of(tape) if training else 'none'}",
        f"  workspace      {size_of(workspace)}, given back after the pass",
        f"  arithmetic     {facts['flops'] / 1e9:.3g} GFLOP",
        *refusals(facts),
        *times(facts),
    ]
    return Explanation(facts, "\n".join(lines))


def _flops(layer: Recurrent, steps: int, batch: int) -> float:
    """Return the operations of the products of a forward pass."""
    return sum(products_of(layer, k, steps, batch) for k in range(layer.num_layers))


def _weight_bytes(layer: Recurrent, backend: Any, plans: dict[str, Any]) -> int:
    """Return the bytes of the packed weights, and of those that blocks divide among themselves."""
    from .._launch import packed_sizes

    directions = layer._directions
    partitions = [
        sum(packed_sizes(w, p, which == "backward", has_upstream)[0])
        for which, of in plans.items()
        for _, w, p in of
        for has_upstream in ((False, True) if p.layer_pipelined else (False,) * directions)
    ]
    packed: int = sum(w.bytes for w in backend.parts)
    split: int = sum(
        w.split_bytes
        for of in plans.values()
        if any(p.library_split for _, _, p in of)
        for w in backend.parts
    )
    return packed + split + sum(partitions)


def _plan(which: str, name: str, w: Any, p: Any) -> list[str]:
    """Return the lines of a plan."""
    launches = "1 launch for all steps" if p.launches == 1 else f"{p.launches} launches"
    return [
        f"  {which:<14} {name}: kernel {p.kernel}, {launches} of {p.blocks} blocks",
        f"                 {p.reason}",
        f"                 about {time_of(p.seconds)} by the planner's model, "
        f"{_confirmed(w.device.figures.name, p.kernel, which)}",
        f"                 products of all steps at once: {_products(w, p)}",
    ]


def _confirmed(name: str, kernel: str, which: str) -> str:
    """Return which device has confirmed the planner's model of a kernel."""
    if kernel == "cluster":
        return f"which is of a prototype on an {CONFIRMED_BY}; no device has run this kernel"
    fitted = f"which was fitted to an {CONFIRMED_BY}"
    if (kernel, which) in ESTIMATES:
        return f"an estimate: an {CONFIRMED_BY} ran earlier kernels, and no device has run these"
    if (kernel, which) in CHANGED_SINCE:
        return f"{fitted} with earlier kernels; no run on a device has confirmed it for these"
    if CONFIRMED_BY in name:
        return "which was fitted to this kind of device"
    return f"{fitted}, and no run on this device has confirmed"


def _products(w: Any, p: Any) -> str:
    """Return who multiplies all steps at once, and what."""
    why = w.device.figures.why_no_words
    if p.library:
        words = ", in words of 2 bytes" if w.word_bytes == 2 else ""
        split = ", each float32 as two words of 2 bytes" if p.library_split else ""
        return f"the library of the arrays{words}{split}"
    missing = f"; the library of the arrays has none for words of 2 bytes: {why}"
    return f"our own kernel{missing if why and w.word_bytes == 2 else ''}"
