"""Recurrent layers for Keras models: those of ``keras.layers`` on the kernels of ostinato.

They stand in the place of ``keras.layers.LSTM``, ``GRU`` and ``SimpleRNN``, in ``fit`` too, with
Keras on PyTorch, JAX or TensorFlow (and on NumPy, which has no gradients). This module imports
Keras; nothing else of ostinato does.

>>> import keras
>>> from ostinato.interop import keras as ok
>>> model = keras.Sequential([keras.Input((7, 3)), ok.GRU(5), keras.layers.Dense(1)])
>>> model.output_shape
(None, 1)
"""

from __future__ import annotations

try:
    import keras as _keras
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] == "keras":
        raise ImportError(
            "ostinato.interop.keras: expected Keras 3, which is not installed: "
            "pip install 'ostinato[keras-layers]'"
        ) from error
    raise ImportError(
        f"ostinato.interop.keras: expected what Keras computes with, got no {error.name}; install "
        "it, or set KERAS_BACKEND to one that is: torch, jax, tensorflow or numpy"
    ) from error

_OLDEST = (3, 3)  # the first version that the tests have run on
if tuple(int(n) for n in _keras.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"ostinato.interop.keras: expected Keras {'.'.join(map(str, _OLDEST))} or later, got "
        f"{_keras.__version__}; install a newer one: pip install -U keras"
    )

from ._keras_layers import GRU, LSTM, SimpleRNN  # noqa: E402
from ._keras_replace import Replaced, replace, restore  # noqa: E402

__all__ = ["GRU", "LSTM", "Replaced", "SimpleRNN", "replace", "restore"]

for _name in __all__:
    globals()[_name].__module__ = __name__
