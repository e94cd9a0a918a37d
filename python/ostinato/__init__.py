"""Recurrent networks as fast as the hardware allows, on NumPy arrays.

>>> import numpy as np
>>> import ostinato as ost
>>> lstm = ost.nn.LSTM(input_size=64, hidden_size=128, rng=0)
>>> y, (h_n, c_n) = lstm(np.zeros((100, 16, 64), np.float32))
>>> y.shape
(100, 16, 128)
"""

from importlib.metadata import version as _version

from . import data, functional, losses, nn, optim, reference, safetensors
from ._core import get_num_threads, set_num_threads, use_kernels
from ._core import supported_kernels as _supported
from ._explain import explain
from .train import Trainer

__version__ = _version("ostinato")


def kernels() -> dict[str, object]:
    """The kernel sets: ``{"chosen": name, "supported": [...], "known": [...]}``, best first.

    The environment variable OSTINATO_KERNELS, or `use_kernels`, forces one.

    >>> import ostinato as ost
    >>> ost.kernels()["chosen"] in ost.kernels()["supported"]
    True
    """
    from . import _core

    return {"chosen": _core.kernels(), "supported": _supported(), "known": _core.known_kernels()}


__all__ = [
    "Trainer",
    "__version__",
    "data",
    "explain",
    "functional",
    "get_num_threads",
    "kernels",
    "losses",
    "nn",
    "optim",
    "reference",
    "safetensors",
    "set_num_threads",
    "use_kernels",
]
