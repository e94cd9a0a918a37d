"""Run one recurrent layer in one direction: arrays in, arrays out, no parameters held.

Shapes are ``x [T,B,I]``, ``y [T,B,H]`` and ``h0, c0 [B,H]``; weights have PyTorch's names, shapes
and gate orders. x may also be sequences of different lengths, an `ostinato.Ragged` or a list of
``[n,I]``: y is then of the same kind. All arrays of a call share one dtype, float32 or float64. A
pullback holds copies of the states that it was given, and may be called more than once.

The functions that a cell may have (``nonlinearity``, ``activation``, ``recurrent_activation`` and
``output_activation``, of layers too) are "tanh", "sigmoid", "relu", "linear", "softsign",
"softplus" and "exponential", each by its name, and those with parameters, as a tuple of the name
and the numbers: ("affine", alpha, beta), ("leaky_relu", alpha), ("thresholded_relu", alpha),
("scaled_tanh", alpha, beta), ("hard_sigmoid", alpha, beta) and ("elu", alpha). They are those that
ONNX defines. With others than the usual ones a general kernel runs, which has float32 and float64.

>>> import numpy as np
>>> import ostinato as ost
>>> rng = np.random.default_rng(0)
>>> w_ih, w_hh = rng.normal(size=(4 * 8, 3)), rng.normal(size=(4 * 8, 8))
>>> y, (h_n, c_n) = ost.functional.lstm(rng.normal(size=(5, 2, 3)), w_ih, w_hh)
>>> y.shape, h_n.shape
((5, 2, 8), (2, 8))
"""

from __future__ import annotations

import sys as _sys
from typing import Any as _Any

from .._annotations import complete as _complete
from .._check import Array as _Array
from ._gru import gru, gru_vjp
from ._lstm import lstm, lstm_vjp
from ._pullback import Gradients, Pullback
from ._rnn import rnn, rnn_vjp
from ._weights import LayerNormWeights, Packed, pack

__all__ = [
    "Gradients",
    "LayerNormWeights",
    "Packed",
    "Pullback",
    "gru",
    "gru_vjp",
    "lstm",
    "lstm_vjp",
    "pack",
    "rnn",
    "rnn_vjp",
]

# All is part of this module, whatever file it is in: for `help`, and for pickled weights.
for _name in __all__:
    globals()[_name].__module__ = __name__

# What the annotations of their fields name is looked up here.
_complete(_sys.modules[__name__], Any=_Any, Array=_Array)
