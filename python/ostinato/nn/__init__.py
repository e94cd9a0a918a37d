"""Layers: parameters and descriptions; the arithmetic is in the native code."""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .._annotations import complete as _complete
from . import _outputs, _quantization, _sequential, _stream, _training, _walk, init
from ._block import Views
from ._functions import gelu, log_softmax, relu, sigmoid, softmax
from ._layer import Layer, Pullback
from ._layers import Activation, Dropout, Embedding, Linear
from ._recurrent import GRU, LSTM, RNN
from ._sequential import Sequential
from ._stack import Recurrent
from ._stream import Stream
from ._training import RecurrentPullback

if _TYPE_CHECKING:
    from ._attention import Attention, Memory
    from ._clockwork import ClockworkRNN
    from ._combine import Concat, Residual, TimeDistributed
    from ._conv import Conv1d
    from ._groups import layer_groups
    from ._hierarchical import Hierarchical
    from ._model import Model, ModelPullback, Parameter
    from ._norm import LayerNorm
    from ._pool import Pool
    from ._quantization_report import ModelQuantizationReport, QuantizationReport
    from ._seq2seq import Decoder, Encoder
    from ._softmax import Softmax
    from ._tree_lstm import TreeLSTM

# What an import of the package does without, by its module: loaded when it is first asked for.
_LATER = {
    "Attention": "_attention",
    "ClockworkRNN": "_clockwork",
    "Concat": "_combine",
    "Conv1d": "_conv",
    "Decoder": "_seq2seq",
    "Encoder": "_seq2seq",
    "Hierarchical": "_hierarchical",
    "LayerNorm": "_norm",
    "Memory": "_attention",
    "Model": "_model",
    "ModelPullback": "_model",
    "ModelQuantizationReport": "_quantization_report",
    "Parameter": "_model",
    "Pool": "_pool",
    "QuantizationReport": "_quantization_report",
    "Residual": "_combine",
    "Softmax": "_softmax",
    "TimeDistributed": "_combine",
    "TreeLSTM": "_tree_lstm",
    "layer_groups": "_groups",
}


def __getattr__(name: str) -> _Any:
    import importlib

    if name not in _LATER:
        raise AttributeError(f"module 'ostinato.nn' has no attribute {name!r}")
    value = getattr(importlib.import_module("." + _LATER[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Attention",
    "ClockworkRNN",
    "Concat",
    "Conv1d",
    "Decoder",
    "Dropout",
    "Embedding",
    "Encoder",
    "Hierarchical",
    "Layer",
    "LayerNorm",
    "Linear",
    "Memory",
    "Model",
    "ModelPullback",
    "ModelQuantizationReport",
    "Parameter",
    "Pool",
    "Pullback",
    "QuantizationReport",
    "Recurrent",
    "RecurrentPullback",
    "Residual",
    "Sequential",
    "Softmax",
    "Stream",
    "TimeDistributed",
    "TreeLSTM",
    "Views",
    "gelu",
    "init",
    "layer_groups",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
]

_complete(_quantization, _sequential, nn=_sys.modules[__name__])
_complete(_training, _outputs, Recurrent=Recurrent, Views=Views)
_complete(_stream, _walk, Layer=Layer)
