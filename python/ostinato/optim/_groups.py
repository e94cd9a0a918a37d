"""Give each layer of a model a learning rate of its own."""

from __future__ import annotations

import glob

from .._annotations import readable
from ..nn import Layer, layer_groups
from ._checks import number


def discriminative(model: Layer, factor: float = 2.6) -> dict[str, float]:
    """Return the ``groups`` of an optimiser with which lower layers learn more slowly.

    The last layer has the learning rate itself, and each one before it that of the next divided by
    the factor: what a model has learned elsewhere changes the less, the nearer it is to the inputs.

    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(rnn=ost.nn.RNN(3, 5), head=ost.nn.Linear(5, 2))
    >>> groups = ost.optim.discriminative(model, 2)
    >>> groups["rnn.weight_ih_l0"], groups["head.weight"]
    (0.5, 1.0)
    >>> optimizer = ost.optim.Adam(1e-3, groups=groups)

    Args:
        model: a layer or a model; see `nn.layer_groups` for what counts as a layer.
        factor: what the rate is divided by from layer to layer, at least 1, which leaves all alike.

    Returns:
        Patterns of names, each with its factor of the learning rate.

    Raises:
        TypeError: something that is no layer, or no number.
        ValueError: a factor below 1, such as a learning rate, or one that is not finite.

    Source: Howard, Ruder (2018), "Universal language model fine-tuning for text classification".
    """
    factor = number("factor", factor)
    if factor < 1:
        raise ValueError(
            "factor: expected a number of at least 1, by which the learning rate is divided from "
            f"layer to layer, got {factor!r}; the rate itself is given to the optimiser"
        )
    layers = layer_groups(model)[::-1]
    rates = {n: factor**-k for k, names in enumerate(layers) for n in names}
    # A name is no pattern.
    return {glob.escape(n): rates[n] for n in model.parameters()}


readable(globals())
