"""Make the arrays in which kernels put the gradients of weights, for whoever hands them out.

Functions and the adapters of other libraries give new arrays at every call. (Layers of ours add to
the gradients of their `Block`, which stay.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _core
from ._check import Array


def new_gradients(
    shapes: Iterable[Sequence[int] | None], like: Any
) -> tuple[list[Array | None], bool]:
    """Return arrays for gradients, and what ``overwrite`` of a backward pass must be for them.

    On the CPU they lie in memory that is kept from call to call, and are not filled: the kernels
    overwrite them. Pages that an allocator gives back to the system after each step come anew in
    the next one, and are zeroed one by one: 2 MB took as long as half of a backward pass. The
    kernels of a device add to zeros.

    Args:
        shapes: of the weights; None for one without a gradient.
        like: an array with their dtype, of their device.
    """
    if isinstance(like, np.ndarray):
        make = _core.kept_array
        return [None if s is None else make(like.dtype, s) for s in shapes], True
    return [None if s is None else np.zeros(s, like.dtype, like=like) for s in shapes], False
