"""Run one layer of Keras on arrays of NumPy: the forward pass, and the gradients.

What Keras computes with (PyTorch, TensorFlow, NumPy) calls this through a module of its own,
``_keras_on_*.py``; nothing here knows of any of them. JAX has operations of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _check, _native
from .._cells import facts_of
from .._check import Array
from .._gradients import new_gradients


class Options(NamedTuple):
    """What a pass is told beside its arrays.

    Attributes:
        cell: the name of the cell.
        scalars: the numbers of its functions, () for the usual ones.
        reverse: whether the steps run from the last to the first; outputs are in the order of the
            run, as Keras has them.
        precision: what the products multiply, "exact" or "bfloat16".
        zero: whether the output of a masked step is zero, and not that of the step before it.
    """

    cell: str
    scalars: tuple[float, ...]
    reverse: bool
    precision: str
    zero: bool

    @property
    def has_c(self) -> bool:
        """Whether the cell has a second state."""
        return bool(facts_of(self.cell)["states"] > 1)


class Inputs(NamedTuple):
    """The arrays of a pass, or the tensors of a framework that stand for them.

    Attributes:
        x: ``[B,T,I]``.
        h0: ``[B,H]``.
        c0: ``[B,H]``, or None.
        weight_ih: ``[G*H,I]``, with PyTorch's gate orders.
        weight_hh: ``[G*H,H]``.
        bias_ih: ``[G*H]``, or None.
        bias_hh: ``[G*H]``, or None.
        mask: bool ``[B,T]``, True where a row takes part in a step; None: everywhere.
    """

    x: Any
    h0: Any
    c0: Any
    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    mask: Any


class Result(NamedTuple):
    """What a pass returns.

    Attributes:
        y: ``[B,T,H]``.
        h_n: ``[B,H]``.
        c_n: ``[B,H]``, or None.
    """

    y: Any
    h_n: Any
    c_n: Any


def _rows(a: Array) -> Array:
    """Return an array whose last axis has unit stride."""
    return a if a.shape[-1] < 2 or a.strides[-1] == a.itemsize else np.ascontiguousarray(a)


def _pack(options: Options, inputs: Inputs, backward: bool) -> Any:
    """Return the weights in the layout of the kernels."""
    weights = [None if w is None else np.ascontiguousarray(w) for w in inputs[3:7]]
    first, second = weights[:2]
    assert first is not None
    assert second is not None
    more = {"scalars": options.scalars} if options.scalars else {}
    return _native.NATIVE[first.dtype.name].Packed(
        options.cell,
        first.shape[1],
        second.shape[1],
        1,
        False,
        [[*weights, None]],
        backward,
        precision=options.precision,
        numbered=False,
        **more,
    )


def forward(options: Options, inputs: Inputs, save: bool, own: bool = False) -> tuple[Result, Any]:
    """Run the forward pass; return what it computes, and its tape if it saves one.

    Args:
        options: the cell and its direction.
        inputs: the arrays.
        save: whether there will be a backward pass.
        own: whether what is saved must be the tape's own, since the caller reuses its memory.
    """
    x, h0, c0, mask = inputs.x, inputs.h0, inputs.c0, inputs.mask
    if save and own:
        x, h0, c0, mask = (None if a is None else a.copy() for a in (x, h0, c0, mask))
    if options.reverse:
        x, mask = x[:, ::-1], None if mask is None else mask[:, ::-1]
    batch, steps = x.shape[:2]
    y, h_n, c_n, tape = _pack(options, inputs, save).forward(
        _rows(x),
        np.ascontiguousarray(h0)[None],
        None if c0 is None else np.ascontiguousarray(c0)[None],
        None,
        True,
        train=save,
        mask=_check.flags("mask", mask, steps, batch, True),
        repeat=not options.zero,
    )
    if save and own:
        y = y.copy()
    return Result(y, h_n[0], None if c_n is None else c_n[0]), tape


def backward(
    options: Options, inputs: Inputs, grads: Result, tape: Any, need_x: bool = True
) -> Inputs:
    """Return the gradients of all arrays; those of absent ones and of the mask are None.

    Args:
        options: the cell and its direction.
        inputs: the arrays of the forward pass.
        grads: the gradients of its results; None is zero.
        tape: what it saved; None: it is run again, which gives the same bits.
        need_x: whether the gradient of x is needed.
    """
    if tape is None:
        _, tape = forward(options, inputs, True)
    dy, dh, dc = grads
    shapes = [None if w is None else w.shape for w in inputs[3:7]]
    weights, overwrite = new_gradients(shapes, inputs.weight_ih)
    dx, dh0, dc0, *_ = tape.backward(
        None if dy is None else _rows(dy),
        None if dh is None else np.ascontiguousarray(dh)[None],
        None if dc is None else np.ascontiguousarray(dc)[None],
        [[*weights, None]],
        need_x,
        overwrite=overwrite,
    )
    if options.reverse and dx is not None:
        dx = np.ascontiguousarray(dx[:, ::-1])
    d_ih, d_hh, db_ih, db_hh = weights
    return Inputs(dx, dh0[0], None if dc0 is None else dc0[0], d_ih, d_hh, db_ih, db_hh, None)
