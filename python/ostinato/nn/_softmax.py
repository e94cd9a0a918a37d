"""Define the softmax over features as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._annotations import readable
from .._check import Array, Seed
from ._functions import log_softmax, softmax
from ._layer import Layer, Pullback
from ._layers import _gradient_rows, _rows


class Softmax(Layer):
    """Turn the last axis into probabilities: ``exp(x) / sum(exp(x))``, or their logarithms.

    Losses such as `ostinato.losses.CrossEntropy` take what comes before it: it is for inference,
    and for models of other libraries that have it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.Softmax()(np.zeros((3, 2, 4), np.float32))[0, 0].tolist()
    [0.25, 0.25, 0.25, 0.25]

    Args:
        log: whether to return logarithms.
        dtype: float32 or float64.

    Raises:
        TypeError: log is no bool, or dtype neither float32 nor float64.
    """

    _functional = ("log",)

    def __init__(self, *, log: bool = False, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.log = _check.flag("log", log)

    def __call__(self, x: Array) -> Array:
        """Return an array of the shape of x.

        Args:
            x: ``[...,D]``, of the layer's dtype.

        Returns:
            The probabilities, or their logarithms.

        Raises:
            TypeError: x is no array of the layer's dtype.
            ValueError: x has no axis.
        """
        x = _check.array("x", x)
        if x.ndim == 0:
            raise ValueError("x: expected at least 1 axis, got shape ()")
        rows = _rows("x", x, x.shape[-1], self._dtype)
        y: Array = (log_softmax if self.log else softmax)(rows)
        return y.reshape(x.shape)

    def _join_stream(self, native: Any) -> None:
        function = log_softmax if self.log else softmax
        native.add_step(lambda rows, slots: function(rows), None)

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: ``[...,D]``, of the layer's dtype.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of the layer's dtype.
            ValueError: x has no axis.
        """
        y = _check.read_only(self(x))

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array:
            d = _gradient_rows(dy, y).reshape(y.shape)
            if self.log:
                dx: Array = d - np.exp(y) * d.sum(axis=-1, keepdims=True)
            else:
                dx = y * (d - (d * y).sum(axis=-1, keepdims=True))
            return dx

        return y, self._pullback(backward)

    def __repr__(self) -> str:
        return f"Softmax({'log=True' if self.log else ''})"


readable(globals())
