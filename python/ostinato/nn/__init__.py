"""Layers: parameters and descriptions; the arithmetic is in the native code."""

from . import init
from ._block import Views
from ._layer import Layer, Pullback
from ._layers import Activation, Dropout, Embedding, Linear
from ._pool import Pool
from ._quantization import ModelQuantizationReport, QuantizationReport
from ._recurrent import GRU, LSTM, RNN, Recurrent, RecurrentPullback
from ._sequential import Sequential
from ._stream import Stream

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Dropout",
    "Embedding",
    "Layer",
    "Linear",
    "ModelQuantizationReport",
    "Pool",
    "Pullback",
    "QuantizationReport",
    "Recurrent",
    "RecurrentPullback",
    "Sequential",
    "Stream",
    "Views",
    "init",
]
