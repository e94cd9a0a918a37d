"""Models of other libraries, in and out; each adapter imports what it needs when it is called.

>>> import numpy as np
>>> import ostinato as ost
>>> weights = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
>>> ost.from_torch(weights)["fc"]
Linear(3, 2)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from ._dynet import from_dynet
    from ._graph import Graph
    from ._imported import Entry, Imported
    from ._jax import from_flax, from_haiku
    from ._keras import from_keras
    from ._keras_write import to_keras
    from ._layers import LastState, Reversed
    from ._onnx import from_onnx
    from ._onnx_write import to_onnx
    from ._torch import from_torch, to_torch
    from ._torch_file import load_torch

_LATER = {
    "Entry": "_imported",
    "Graph": "_graph",
    "Imported": "_imported",
    "LastState": "_layers",
    "Reversed": "_layers",
    "from_dynet": "_dynet",
    "from_flax": "_jax",
    "from_haiku": "_jax",
    "from_keras": "_keras",
    "from_onnx": "_onnx",
    "from_torch": "_torch",
    "load_torch": "_torch_file",
    "to_keras": "_keras_write",
    "to_onnx": "_onnx_write",
    "to_torch": "_torch",
}


def __getattr__(name: str) -> _Any:
    import importlib

    if name in ("aeon", "jax", "keras", "sklearn", "sktime", "torch"):
        # These import what they are named after.
        return importlib.import_module("." + name, __name__)
    if name not in _LATER:
        raise AttributeError(f"module 'ostinato.interop' has no attribute {name!r}")
    value = getattr(importlib.import_module("." + _LATER[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Entry",
    "Graph",
    "Imported",
    "LastState",
    "Reversed",
    "from_dynet",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
]
