"""Divide the parameters of a model into its layers, from the inputs to the outputs."""

from __future__ import annotations

import re

from .._annotations import readable
from ._layer import Layer


def layer_groups(model: Layer) -> list[list[str]]:
    """Return the names of a model's parameters, layer by layer, in their order in the model.

    Each layer of a recurrent stack is a group of its own, with both of its directions; layers
    without parameters are none. Sequential models have them in the order of the computation, a
    `Model` in that of its attributes.

    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(rnn=ost.nn.RNN(3, 5, num_layers=2), head=ost.nn.Linear(5, 2))
    >>> for names in ost.nn.layer_groups(model):
    ...     print(names)
    ['rnn.weight_ih_l0', 'rnn.weight_hh_l0', 'rnn.bias_ih_l0', 'rnn.bias_hh_l0']
    ['rnn.weight_ih_l1', 'rnn.weight_hh_l1', 'rnn.bias_ih_l1', 'rnn.bias_hh_l1']
    ['head.weight', 'head.bias']

    Args:
        model: a layer or a model.

    Returns:
        A list of names for each group.

    Raises:
        TypeError: something that is no layer.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model: expected a Layer, got {type(model).__name__}")
    groups: dict[tuple[str, str], list[str]] = {}
    for name in model.parameters():
        prefix, _, own = name.rpartition(".")
        level = re.search(r"_l(\d+)(_reverse)?$", own)
        groups.setdefault((prefix, level[1] if level else ""), []).append(name)
    return list(groups.values())


readable(globals())
