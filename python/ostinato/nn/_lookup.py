"""An embedding that a recurrent layer looks up itself.

``W (table[i]) + b`` depends on the index alone. The layer computes it once for each of the V rows
of the table, not for each of the T B steps, and the steps start from the row that they read. In
the backward pass the gradients of the pre-activations are first added up by row, and V rows are
multiplied for the gradients of W and of the table. Of an LSTM with inputs of size I this saves
I / (I + H) of the arithmetic of its first layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _device
from .._check import Array
from .._ragged import Ragged
from ._layer import Layer, Pullback
from ._layers import Embedding
from ._stack import Recurrent
from ._table import Lookup

# Every row is projected, read or not, and each part of the batch (8 at most) sums its gradients by
# row. With 8 steps a row the projection costs an eighth of what it saves, and the sums take no more
# memory than the tape.
STEPS_A_ROW = 8


def lookup_of(
    layer: Layer, following: Layer | None, x: Any, options: dict[str, Any]
) -> Lookup | None:
    """Return what ``following`` looks up in place of ``layer(x)``, or None where it had better not.

    Args:
        layer: any layer.
        following: the layer that reads its outputs, if any.
        x: inputs of ``layer``.
        options: of the call of ``following``.

    Returns:
        The input of ``following``.
    """
    if not isinstance(layer, Embedding) or not isinstance(following, Recurrent):
        return None
    rows = x.rows if isinstance(x, Ragged) else x
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
        return None
    if rows.ndim not in ((1,) if isinstance(x, Ragged) else (1, 2)):
        return None
    if not looks_up(layer, following, rows.size, options.get("memory_limit")):
        return None
    ids = _check.contiguous(rows, dtype=np.int64)[..., None]
    table = layer.parameters()["weight"]
    return Lookup(x.like(ids) if isinstance(x, Ragged) else ids, table)


def table_pullback(embedding: Layer) -> Pullback:
    """Return the pullback of an embedding that was looked up: dy is the gradient of its table."""

    def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> None:
        into = grads["weight"]
        if into is None:
            return
        padding = getattr(embedding, "padding_index", None)
        if padding is None:
            into += dy
        else:
            into[:padding] += dy[:padding]
            into[padding + 1 :] += dy[padding + 1 :]

    return embedding._pullback(backward)


def _changed(layer: Layer, base: type[Layer]) -> bool:
    """Return whether a class of the user's computes something else than the base that it has."""
    own = type(layer)
    return own.__call__ is not base.__call__ or own.vjp is not base.vjp


def looks_up(embedding: Embedding, layer: Recurrent, count: int, memory_limit: object) -> bool:
    """Return whether a layer looks up ``count`` steps in the table itself."""
    return (
        not _changed(embedding, Embedding)
        and not _changed(layer, Recurrent)
        and _device.of(embedding._block.values) is None
        and embedding.embedding_dim == layer.input_size
        and embedding.num_embeddings * STEPS_A_ROW <= count
        and layer.precision != "int8"  # its scales are those of a step's inputs
        and (memory_limit is None or str(memory_limit).strip().lower() == "states")
    )
