"""The input of a recurrent layer as rows of a table, and the gradients that follow from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _native
from .._check import Array


class Lookup(NamedTuple):
    """The input ``table[ids]`` of a recurrent layer, which is not computed.

    Attributes:
        ids: whole numbers ``[T,B,1]`` (``[B,T,1]`` if batch_first), ``[T,1]`` for one sequence, or
            a `Ragged` of rows ``[N,1]``.
        table: ``[V,I]``.
    """

    ids: Any
    table: Array


class TableGradients:
    """Gradients of ``weight_ih`` and of the table, from those of their product.

    The backward pass adds the gradients of the pre-activations up by row of the table, which is the
    gradient of ``P = weight_ih table^T [G*H,V]``, for each direction of the first layer.

    Args:
        table: ``[V,I]``.
        weights: ``weight_ih`` of each direction.
        parts: arrays of gradients by layer and direction; ``weight_ih`` is the first of each.
    """

    def __init__(self, table: Array, weights: list[Array], parts: list[list[Array | None]]) -> None:
        self._table, self._weights = table, weights
        self._into = [part[0] for part in parts[: len(weights)]]
        self._products = [np.zeros((len(w), len(table)), table.dtype) for w in weights]
        products: list[Any] = self._products
        first = [[p, *part[1:]] for p, part in zip(products, parts)]
        #: What the backward pass adds to, in place of ``parts``.
        self.parts: list[list[Array | None]] = [*first, *parts[len(weights) :]]

    def add(self, need_table: bool) -> Array | None:
        """Add to the gradients of the weights, dW = dP table; return that of the table, dP^T W.

        They are the gradients of ``P = W table^T``, a linear layer whose weights are the table: it
        is the smaller of the two to pack, and dP lies as the layer takes it.
        """
        table = self._table
        linear = _native.backend_for(table).PackedLinear(table, None, True)
        out = np.zeros_like(table) if need_table else None
        for weight, product, into in zip(self._weights, self._products, self._into):
            if into is not None or need_table:
                d = linear.run_backward(weight, product, out, None, into is not None)
            if into is not None:
                into += d
        return out
