"""Walk through the layers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._layer import Layer


def layers_of(model: Layer) -> Iterator[Layer]:
    """Yield the model and all that is in it, in order."""
    yield model
    for inner in model._children().values():
        yield from layers_of(inner)


def layouts_of(model: Layer) -> Iterator[tuple[bool, Layer]]:
    """Yield ``batch_first`` and the layer of all that tell time from batch in a model's inputs.

    What runs within a step, as in `TimeDistributed`, reads time of its own.
    """
    first = getattr(model, "batch_first", None)
    if first is not None:
        yield bool(first), model
    for inner in model._children().values() if not model._within_steps else ():
        yield from layouts_of(inner)


def layout_of(model: Layer) -> bool | None:
    """Whether a layer takes ``[B,T,...]``; None if it does not tell time from batch."""
    return next((first for first, _ in layouts_of(model)), None)
