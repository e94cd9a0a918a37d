"""Define the layers without a state: Linear, Embedding, Dropout, Activation."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _device, _native
from .._annotations import readable
from .._check import Array, Seed
from ._functions import gelu_parts
from ._layer import Layer, Pullback


def _rows(
    name: str, x: Array, width: int, dtype: np.dtype[Any], like: Array | None = None
) -> Array:
    """x [..., width] as contiguous rows [N, width]."""
    x = _check.array(name, x)
    if like is not None:
        _device.same(name, x, like)
    _check.of_dtype(name, x, dtype)
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {x.shape}")
    return _check.contiguous(x).reshape(math.prod(x.shape[:-1]), width)


def _gradient_rows(dy: Array, y: Array) -> Array:
    """dy as rows, which must have the shape of y."""
    dy = _check.array("dy", dy)
    if dy.shape != y.shape:
        raise ValueError(f"dy: expected the shape of y {y.shape}, got {dy.shape}")
    return _rows("dy", dy, y.shape[-1], y.dtype, y)


def _read_only(y: Array) -> Array:
    return _check.read_only(y)


def _flat(x: Array, dtype: np.dtype[Any]) -> Array:
    x = _check.array("x", x)
    if x.ndim == 0:
        raise ValueError("x: expected at least 1 axis, got shape ()")
    return _rows("x", x, x.shape[-1], dtype).reshape(-1)


class Linear(Layer):
    """Apply ``y = x W^T + b`` on the last axis, on the same kernels as the recurrent layers.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.Linear(3, 2, rng=0)(np.zeros((5, 4, 3), np.float32)).shape
    (5, 4, 2)

    Args:
        in_features: I. Parameters are ``weight [O,I]`` and ``bias [O]``.
        out_features: O.
        bias: whether there is a bias.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, U(-1/sqrt(I), 1/sqrt(I)).

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.in_features = _check.positive("in_features", in_features)
        self.out_features = _check.positive("out_features", out_features)
        g, bound = _check.generator(rng), 1 / math.sqrt(self.in_features)
        shape = (self.out_features, self.in_features)
        arrays = {
            "weight": _check.drawn(
                "weight", shape, self._dtype, lambda s: g.uniform(-bound, bound, s)
            )
        }
        if _check.flag("bias", bias):
            arrays["bias"] = g.uniform(-bound, bound, self.out_features).astype(self._dtype)
        self._declare(arrays)

    def _pack(self, backward: bool) -> Any:
        p = self.parameters()
        return _native.backend_for(self._block.values).PackedLinear(
            p["weight"], p.get("bias"), backward
        )

    def __call__(self, x: Array) -> Array:
        """Return ``y [...,O]`` of ``x [...,I]``.

        Args:
            x: the inputs, of the layer's dtype.

        Returns:
            The outputs.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: the last axis of x is not I.
        """
        y: Array = self._packed(False).forward(
            _rows("x", x, self.in_features, self._dtype, self._block.values)
        )
        return y.reshape(*x.shape[:-1], self.out_features)

    def _join_stream(self, native: Any) -> None:
        native.add_linear(self._packed(False))

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: ``[...,I]``, which must not change until the pullback has run.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: the last axis of x is not I.
        """
        rows, packed = (
            _rows("x", x, self.in_features, self._dtype, self._block.values),
            self._packed(True),
        )

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array | None:
            d = _gradient_rows(dy, y)
            dx: Array | None = packed.run_backward(
                rows, d, grads["weight"], grads.get("bias"), need_dx
            )
            return None if dx is None else dx.reshape(x.shape)

        flat: Array = packed.forward(rows)
        y = _read_only(flat.reshape(*x.shape[:-1], self.out_features))
        return y, self._pullback(backward)

    def __repr__(self) -> str:
        bias = "" if "bias" in self.parameters() else ", bias=False"
        return f"Linear({self.in_features}, {self.out_features}{bias})"


class Embedding(Layer):
    """Look up a row of a table for every index: ``y[..., :] = weight[x]``.

    In a `Sequential` in front of a recurrent layer on the CPU, and with at least 8 steps a row, the
    rows are not copied: the layer computes its products with the table once, and gives the same
    bits in less time. `explain` says where that happens.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.Embedding(10, 4, rng=0)(np.array([[1, 2], [3, 9]])).shape
    (2, 2, 4)

    Args:
        num_embeddings: N, rows of the table. The parameter is ``weight [N,E]``.
        embedding_dim: E, length of a row.
        padding_index: an index that stands for padding: its row begins as zeros, and looking it up
            gives it no gradient. None: none.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, N(0, 1).

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, or a padding_index that is no row.
    """

    padding_index: int | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_index: int | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.num_embeddings = _check.positive("num_embeddings", num_embeddings)
        self.embedding_dim = _check.positive("embedding_dim", embedding_dim)
        shape = (self.num_embeddings, self.embedding_dim)
        weight = _check.drawn("weight", shape, self._dtype, _check.generator(rng).standard_normal)
        if padding_index is not None:
            self.padding_index = _check.positive("padding_index", padding_index, 0)
            if self.padding_index >= self.num_embeddings:
                raise ValueError(
                    f"padding_index: expected a number below N = {self.num_embeddings}, got "
                    f"{padding_index}"
                )
            weight[self.padding_index] = 0
        self._declare({"weight": weight}, no_decay=("weight",))

    def __call__(self, x: Array) -> Array:
        """Return ``y [...,E]`` of indices ``x [...]``.

        Args:
            x: whole numbers from 0 to N - 1.

        Returns:
            The rows of the table.

        Raises:
            TypeError: x is no array of whole numbers.
            ValueError: an index out of range.
        """
        y: Array = _native.backend_for(self._block.values).embedding_gather(
            self._ids(x), self.parameters()["weight"]
        )
        return y.reshape(*x.shape, self.embedding_dim)

    def _ids(self, x: Array) -> Array:
        ids = _check.ids("x", x)
        _device.same("x", ids, self._block.values)
        return ids

    def _join_stream(self, native: Any) -> None:
        native.add_embedding(self.parameters()["weight"])

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return the outputs and a pullback, which returns None: indices have no gradient.

        Args:
            x: whole numbers from 0 to N - 1.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of whole numbers.
            ValueError: an index out of range.
        """
        ids = self._ids(x)

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> None:
            d = _gradient_rows(dy, y)
            if grads["weight"] is not None:
                if self.padding_index is not None:
                    d = np.where((ids != self.padding_index)[:, None], d, d.dtype.type(0))
                _native.backend_for(d).embedding_scatter_(ids, d, grads["weight"])

        y = _read_only(self(x))
        return y, self._pullback(backward)

    def __repr__(self) -> str:
        padding = "" if self.padding_index is None else f", padding_index={self.padding_index}"
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}{padding})"


class Dropout(Layer):
    """Set elements to 0 with probability ``rate``, and others to x / (1 - rate), in `vjp` only.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> y, pullback = ost.nn.Dropout(0.5, rng=0).vjp(np.ones((2, 3), np.float32))
    >>> bool(np.isin(y, (0, 2)).all())
    True

    Args:
        rate: probability in [0, 1) that an element is dropped.
        dtype: float32 or float64.
        rng: seed or generator of what is dropped.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a rate outside [0, 1).

    Source: Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from
    overfitting".
    """

    _settable = MappingProxyType({"rate": _check.fraction})

    def __init__(
        self, rate: float = 0.5, *, dtype: npt.DTypeLike = np.float32, rng: Seed = None
    ) -> None:
        super().__init__(dtype=dtype)
        self.rate = _check.fraction("rate", rate)
        self._rng = _check.generator(rng)

    def __call__(self, x: Array) -> Array:
        """Return x as it is: nothing is dropped in inference.

        Args:
            x: the inputs.

        Returns:
            x itself.
        """
        return x

    def _join_stream(self, native: Any) -> None:
        pass  # x as it is

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return x with elements dropped, and a pullback that drops the same elements of dy.

        Args:
            x: the inputs.
            rng: seed or generator of this call; None: the layer's own.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of the layer's dtype.
            ValueError: x has no axis.
        """
        key = _check.draw_key(self._rng if rng is None else _check.generator(rng))
        rate = self.rate  # of this pass: it may be another one when the pullback runs

        def drop(flat: Array) -> Array:
            dropped: Array = _native.backend_for(flat).dropout(flat, rate, key)
            return dropped.reshape(x.shape)

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array:
            return drop(_gradient_rows(dy, y).reshape(-1))

        y = _read_only(drop(_flat(x, self._dtype)))
        return y, self._pullback(backward)

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"


class Activation(Layer):
    """Apply a function to every element.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.nn.Activation("relu")(np.array([-1, 2], np.float32)).tolist()
    [0.0, 2.0]

    Args:
        name: "tanh", "sigmoid", "relu"; "gelu" or "gelu_tanh", its approximation by tanh, see
            `ostinato.nn.gelu`.
        dtype: float32 or float64.

    Raises:
        TypeError: dtype is neither float32 nor float64.
        ValueError: an unknown name.
    """

    _functional = ("name",)

    def __init__(self, name: str, *, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.name = _check.choice("name", name, ("tanh", "sigmoid", "relu", "gelu", "gelu_tanh"))

    def __call__(self, x: Array) -> Array:
        """Return the function of every element.

        Args:
            x: the inputs, of the layer's dtype.

        Returns:
            An array of the shape of x.

        Raises:
            TypeError: x is no array of the layer's dtype.
            ValueError: x has no axis.
        """
        flat = _flat(x, self._dtype)
        if self.name.startswith("gelu"):
            return gelu_parts(flat, self.name == "gelu_tanh")[0].reshape(x.shape)
        y: Array = (
            np.maximum(flat, 0)
            if self.name == "relu"
            else _native.backend_for(flat).elementwise(self.name, flat)
        )
        return y.reshape(x.shape)

    def _join_stream(self, native: Any) -> None:
        if self.name.startswith("gelu"):
            native.add_step(lambda rows, slots: self(rows), None)
            return
        native.add_map(self.name, -1)

    def vjp(self, x: Array, *, rng: Seed = None) -> tuple[Array, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: the inputs, of the layer's dtype.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only.

        Raises:
            TypeError: x is no array of the layer's dtype.
            ValueError: x has no axis.
        """
        known: Array | None = None  # the slope, where the outputs alone do not give it
        if self.name.startswith("gelu"):
            flat, known = gelu_parts(_flat(x, self._dtype), self.name == "gelu_tanh")
            y = _read_only(flat.reshape(x.shape))
        else:
            y = _read_only(self(x))

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array:
            d = _gradient_rows(dy, y).reshape(y.shape)
            if known is not None:
                return known.reshape(y.shape) * d
            if self.name == "relu":
                slope: Array = (y > 0).astype(y.dtype)
            else:
                slope = 1 - y * y if self.name == "tanh" else y * (1 - y)
            return slope * d

        return y, self._pullback(backward)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"


readable(globals())
