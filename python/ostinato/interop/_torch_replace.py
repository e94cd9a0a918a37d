"""Replace the recurrent layers of a PyTorch model by those that the kernels run."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import torch

from .. import _driver
from .._annotations import readable
from ._torch_modules import DTYPES, GRU, LSTM, RNN

_KINDS = {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU, torch.nn.RNN: RNN}
_CELLS = (torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell)


class Replaced(NamedTuple):
    """What `replace` did, layer by layer.

    >>> import torch
    >>> from ostinato.interop import torch as ot
    >>> model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 5), "cell": torch.nn.GRUCell(3, 5)})
    >>> print(ot.replace(model))
    rnn: GRU(3, 5)
    cell: kept, a cell runs one step a call; use a layer for the whole sequence

    Attributes:
        replaced: the new layers, by their names in the model.
        kept: why a recurrent layer was kept, by its name.
    """

    replaced: dict[str, Any]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name or 'module'}: {layer!r}" for name, layer in self.replaced.items()]
        lines += [f"{name or 'module'}: kept, {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines) or "no recurrent layers"


# The class gets the name of the public module, which does not have the names of these types.
Replaced.__annotations__ = get_type_hints(Replaced)


def _why_not(layer: Any) -> str:
    """Tell why a recurrent layer is kept; "" where it can be replaced."""
    if isinstance(layer, _CELLS):
        return "a cell runs one step a call; use a layer for the whole sequence"
    if type(layer) not in _KINDS:
        name = f"{type(layer).__module__}.{type(layer).__qualname__}"
        return f"{name} is a class of its own, whose methods may do something else"
    if layer.dropout == 1:
        return "dropout=1.0, and the rate here is below 1"
    first = next(layer.parameters())
    if first.dtype not in DTYPES:
        return f"parameters of {first.dtype}, which the kernels do not have"
    if first.device.type == "cuda" and (reason := _driver.why_not()):
        return f"it is on {first.device}: {reason}"
    if first.device.type not in ("cpu", "cuda", "meta"):
        return f"it is on {first.device}, for which there are no kernels"
    return ""


def replace(module: Any) -> Replaced:
    """Make every ``torch.nn`` recurrent layer within a module one of ostinato, in place.

    The objects stay: only their class changes, so that parameters, optimisers, hooks, names and
    whatever else refers to a layer go on. Layers that cannot be replaced are kept and named.

    >>> import torch
    >>> from ostinato.interop import torch as ot
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LSTM(4, 5))
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> ot.replace(model).replaced
    {'1': LSTM(4, 5)}
    >>> y, state = model(torch.zeros(7, 2, 3))  # runs the kernels; the optimizer goes on

    Args:
        module: a ``torch.nn.Module``: a model, or a recurrent layer itself.

    Returns:
        The new layers, and why others were kept.

    Raises:
        TypeError: something else than a module.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    replaced: dict[str, Any] = {}
    kept: dict[str, str] = {}
    ours = tuple(_KINDS.values())
    for name, layer in list(module.named_modules()):
        if isinstance(layer, ours) or not isinstance(
            layer, (torch.nn.RNNBase, torch.nn.RNNCellBase)
        ):
            continue
        if reason := _why_not(layer):
            kept[name] = reason
        else:
            same: Any = layer
            same.__class__ = _KINDS[type(layer)]
            same.prepare()
            replaced[name] = same
    return Replaced(replaced, kept)


readable(globals())
