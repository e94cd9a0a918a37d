"""Recurrent networks as fast as the hardware allows, on NumPy arrays.

>>> import numpy as np
>>> import ostinato as ost
>>> lstm = ost.nn.LSTM(input_size=64, hidden_size=128, rng=0)
>>> y, (h_n, c_n) = lstm(np.zeros((100, 16, 64), np.float32))
>>> y.shape
(100, 16, 128)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import nn
from ._annotations import readable as _readable
from ._core import supported_kernels as _supported
from ._ragged import Ragged
from ._recording import stop_gradient, vjp
from ._runtime import get_num_threads, release_memory, set_num_threads, use_kernels
from ._wait import get_wait, set_wait
from ._wait import read_environment as _read_environment

if _TYPE_CHECKING:
    from . import (
        audio,
        cuda,
        data,
        decoding,
        diagnostics,
        functional,
        interop,
        losses,
        metrics,
        optim,
        reference,
        safetensors,
    )
    from ._explain import explain
    from ._trees import Trees
    from .interop import (
        from_keras,
        from_onnx,
        from_torch,
        load_torch,
        to_keras,
        to_onnx,
        to_torch,
    )
    from .nn._architecture import load
    from .train import Trainer, search

    __version__: str

_read_environment()

# What a layer does not need to run is loaded when it is first asked for: an import takes a third of
# the time. tests/test_process.py says what an import may load.
_LATER = {
    "Trainer": "train",
    "Trees": "_trees",
    "explain": "_explain",
    "load": "nn._architecture",
    "search": "train",
}
_MODULES = (
    "audio",
    "cuda",
    "data",
    "decoding",
    "diagnostics",
    "functional",
    "interop",
    "losses",
    "metrics",
    "optim",
    "reference",
    "safetensors",
    "train",
)
_INTEROP = (
    "from_keras",
    "from_onnx",
    "from_torch",
    "load_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
)
_LATER |= dict.fromkeys(_INTEROP, "interop")


def __getattr__(name: str) -> _Any:
    import importlib

    value: _Any
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("ostinato")
    elif name in _LATER:
        value = getattr(importlib.import_module("." + _LATER[name], __name__), name)
    elif name in _MODULES:
        value = importlib.import_module("." + name, __name__)
    else:
        raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def kernels() -> dict[str, object]:
    """List the kernel sets, best first, and the one that is chosen.

    The environment variable OSTINATO_KERNELS, or `use_kernels`, chooses another one.

    >>> import ostinato as ost
    >>> ost.kernels()["chosen"] in ost.kernels()["supported"]
    True

    Returns:
        ``{"chosen": name, "supported": [...], "known": [...]}``: the sets that this CPU runs, and
        those that were compiled.
    """
    from . import _core

    return {"chosen": _core.kernels(), "supported": _supported(), "known": _core.known_kernels()}


__all__ = [
    "Ragged",
    "Trainer",
    "Trees",
    "__version__",
    "audio",
    "cuda",
    "data",
    "decoding",
    "diagnostics",
    "explain",
    "from_keras",
    "from_onnx",
    "from_torch",
    "functional",
    "get_num_threads",
    "get_wait",
    "interop",
    "kernels",
    "load",
    "load_torch",
    "losses",
    "metrics",
    "nn",
    "optim",
    "reference",
    "release_memory",
    "safetensors",
    "search",
    "set_num_threads",
    "set_wait",
    "stop_gradient",
    "to_keras",
    "to_onnx",
    "to_torch",
    "use_kernels",
    "vjp",
]

_readable(globals())
