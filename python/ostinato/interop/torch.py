"""Recurrent layers for PyTorch models: the modules of ``torch.nn`` on the kernels of ostinato.

They stand in the place of ``torch.nn.LSTM``, ``GRU`` and ``RNN``, in training too. This module
imports PyTorch; nothing else of ostinato does.

>>> import torch
>>> from ostinato.interop import torch as ot
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), ot.GRU(4, 5))
>>> y, h = model(torch.zeros(7, 2, 3))
>>> y.sum().backward()
>>> model[1].weight_hh_l0.grad.shape
torch.Size([15, 5])
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ostinato.interop.torch: expected PyTorch, which is not installed: "
        "pip install 'ostinato[torch]'"
    ) from error

from ._torch_modules import GRU, LSTM, RNN, Recurrent
from ._torch_replace import Replaced, replace

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "Replaced", "replace"]

for _name in __all__:
    globals()[_name].__module__ = __name__
