"""Which layers of a model a state carries over the borders of windows."""

from __future__ import annotations

from .._annotations import readable
from ..nn import Attention, Conv1d, Decoder, Layer, Model


def uncarried(model: Layer) -> Layer | None:
    """Return a layer that reads steps which no state carries, or None.

    Windows of a sequence are the whole of it where the state says all about the steps before: a
    convolution or an attention would see zeros, or nothing, in their place. What the call of a
    `Model` of one's own hands to its layers is not known.

    >>> import ostinato as ost
    >>> uncarried(ost.nn.Sequential(ost.nn.Conv1d(3, 4, 3), ost.nn.GRU(4, 5)))
    Conv1d(3, 4, 3)
    >>> uncarried(ost.nn.Sequential(ost.nn.Conv1d(3, 4, 1), ost.nn.GRU(4, 5)))

    Args:
        model: a layer or a model.

    Returns:
        The first such layer.
    """
    if isinstance(model, Conv1d):
        return model if model.kernel_size > 1 else None
    if isinstance(model, Attention):
        return model
    if isinstance(model, Decoder):  # whose attention reads a memory, the same in each window
        return None
    if isinstance(model, Model) and type(model).__module__.partition(".")[0] != "ostinato":
        return None
    found = (uncarried(layer) for layer in model._children().values())
    return next((layer for layer in found if layer is not None), None)


def refuse_uncarried(name: str, model: Layer) -> None:
    """Raise where windows whose state is carried on are not the whole sequence to a model."""
    layer = uncarried(model)
    if layer is not None:
        raise ValueError(
            f"{name}: expected layers that read one step at a time beside a state that is carried "
            f"on, got a {layer!r}, which reads several; run whole sequences"
        )


readable(globals())
