"""The native classes and functions, by the dtype and the device of an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core


class Native:
    """The native classes and functions for NumPy arrays of one dtype.

    Args:
        suffix: the end of their names in `_core`, "Float32" or "Float64".
    """

    def __init__(self, suffix: str) -> None:
        def named(name: str) -> Any:
            return getattr(_core, name + suffix)

        self.Packed, self.Stream = named("Packed"), named("Stream")
        self.PackedLinear = named("PackedLinear")
        self.softmax_cross_entropy = named("softmax_cross_entropy_")
        self.ctc = named("ctc_")
        self.embedding_gather = named("embedding_gather_")
        self.embedding_scatter_ = named("embedding_scatter_")  # in place
        self.square_sum = named("square_sum_")
        # In place, all or nothing.
        self.adam_runs_, self.sgd_runs_ = named("adam_runs_"), named("sgd_runs_")
        self.rmsprop_runs_ = named("rmsprop_runs_")
        self.dropout = named("dropout_")
        self.elementwise = named("map_")


NATIVE = {"float32": Native("Float32"), "float64": Native("Float64")}
_BY_DTYPE = {np.dtype(name): native for name, native in NATIVE.items()}


def backend_for(like: Any) -> Any:
    """Return the native classes and functions for the dtype and the device of an array."""
    if isinstance(like, np.ndarray):
        # Asking for a name takes microseconds. Another byte order has it, which kernels refuse.
        return _BY_DTYPE.get(like.dtype) or NATIVE[like.dtype.name]
    from . import _device_ops  # here: most programs never need it

    return _device_ops
