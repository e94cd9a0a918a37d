"""Define layer normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._annotations import readable
from .._check import Array, Seed
from ._layer import Layer, Pullback
from ._layers import _gradient_rows, _rows


class LayerNorm(Layer):
    """Give the features of every step mean 0 and variance 1, then scale and shift each.

    ``y = (x - mean) / sqrt(variance + eps) * weight + bias``, over the last axis.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.LayerNorm(2)(np.array([[1, 3]], np.float32)).round(3).tolist()
    [[-1.0, 1.0]]

    Args:
        size: D, the length of the last axis. Parameters are ``weight [D]``, ones at first, and
            ``bias [D]``, zeros.
        eps: added to the variance, above 0.
        dtype: float32 or float64.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, or an eps that is not above 0.

    Source: Ba, Kiros, Hinton (2016), "Layer normalization".
    """

    _functional = ("eps",)

    def __init__(self, size: int, *, eps: float = 1e-5, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.size = _check.positive("size", size)
        self.eps = _check.clipping("eps", eps)
        draw = {"weight": np.ones, "bias": np.zeros}
        self._declare({n: _check.drawn(n, (self.size,), self._dtype, f) for n, f in draw.items()})

    def _normal(self, x: Array) -> tuple[Array, Array]:
        """Return rows with mean 0 and variance 1, and what they were multiplied by."""
        rows = _rows("x", x, self.size, self._dtype, self._block.values)
        with np.errstate(over="ignore", invalid="ignore"):
            normal, factor = self._of_rows(rows, self._dtype.type(1))
            known = factor > 0
            if type(factor) is np.ndarray and not known.all():  # sums or squares beyond the dtype
                large = ~known[:, 0]
                most = np.abs(rows[large]).max(axis=1, keepdims=True)
                unit = np.ldexp(self._dtype.type(1), -np.frexp(most)[1])
                normal[large], factor[large] = self._of_rows(rows[large] * unit, unit)
        return normal, factor

    def _of_rows(self, rows: Array, unit: Any) -> tuple[Array, Array]:
        """Return the same of rows that were multiplied by ``unit``."""
        centred = rows - rows.mean(axis=1, keepdims=True)
        centred -= centred.mean(axis=1, keepdims=True)  # by which the mean was rounded
        variance = (centred * centred).mean(axis=1, keepdims=True)
        factor = 1 / np.sqrt(variance + self._dtype.type(self.eps) * unit * unit)
        return centred * factor, factor * unit

    def __call__(self, x: Array) -> Array:
        """Return ``y [...,D]`` of ``x [...,D]``.

        Args:
            x: the inputs, of the layer's dtype.

        Returns:
            An array of the shape of x.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: the last axis of x is not D.
        """
        p = self.parameters()
        y: Array = self._normal(x)[0] * p["weight"] + p["bias"]
        return y.reshape(x.shape)

    def _join_stream(self, native: Any) -> None:
        p = {n: v.copy() for n, v in self.parameters().items()}  # as they are now
        native.add_step(
            lambda rows, slots: self._normal(rows)[0] * p["weight"] + p["bias"], self.size
        )

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: ``[...,D]``, of the layer's dtype.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: the last axis of x is not D.
        """
        p = self.parameters()
        normal, factor = self._normal(x)
        weight = p["weight"]
        y: Array = _check.read_only((normal * weight + p["bias"]).reshape(x.shape))

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array | None:
            d = _gradient_rows(dy, y)
            for name, rows in (("weight", d * normal), ("bias", d)):
                into = grads[name]
                if into is not None:  # sums of many rows, in double precision
                    into += rows.sum(axis=0, dtype=np.float64).astype(self._dtype)
            if not need_dx:
                return None
            d = d * weight
            inner = (d * normal).mean(axis=1, keepdims=True)
            dx: Array = factor * (d - d.mean(axis=1, keepdims=True) - normal * inner)
            return dx.reshape(x.shape)

        return y, self._pullback(backward)

    def __repr__(self) -> str:
        return f"LayerNorm({self.size})"


readable(globals())
