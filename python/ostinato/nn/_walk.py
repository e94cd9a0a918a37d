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
