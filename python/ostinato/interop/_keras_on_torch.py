"""Run the kernels for Keras on PyTorch: one operator forward, one backward."""

from __future__ import annotations

from typing import Any

import torch

from . import _keras_kernels as kernels
from ._keras_kernels import Inputs, Options, Result
from ._torch_kernels import found, handle_of

FORWARD, BACKWARD = "ostinato::keras_recurrent", "ostinato::keras_recurrent_backward"
_INPUTS = (
    "Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
    "Tensor? bias_hh, Tensor? mask"
)
_OPTIONS = "str cell, float[] scalars, bool reverse, str precision, bool zero"
_N, _M = len(Inputs._fields), len(Options._fields)  # arguments of the two groups

torch.library.define(
    FORWARD,
    f"({_INPUTS}, {_OPTIONS}, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved)",
)
torch.library.define(
    BACKWARD,
    f"(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, Tensor saved, {_INPUTS}, {_OPTIONS}, "
    "bool need_x) -> Tensor[]",
)
_forward_op = torch.ops.ostinato.keras_recurrent.default
_backward_op = torch.ops.ostinato.keras_recurrent_backward.default


def _split(args: Any) -> tuple[Options, Inputs]:
    """Return the two groups of arguments of an operator."""
    cell, scalars, *rest = args[_N : _N + _M]
    return Options(cell, tuple(scalars), *rest), Inputs(*args[:_N])


def _array(t: Any) -> Any:
    """Return a view of a tensor's storage; contiguous, which PyTorch does faster than NumPy."""
    return None if t is None else t.detach().contiguous().numpy()


def _arrays(inputs: Inputs) -> Inputs:
    return Inputs(*(_array(t) for t in inputs))


# -- the operators ---------------------------------------------------------------------------------


def _forward(*args: Any) -> tuple[Any, Any, Any, Any]:
    options, inputs = _split(args)
    result, tape = kernels.forward(options, _arrays(inputs), args[-1])
    c_n = inputs.x.new_empty(0) if result.c_n is None else torch.from_numpy(result.c_n)
    y, h_n = torch.from_numpy(result.y), torch.from_numpy(result.h_n)
    return y, h_n, c_n, handle_of(tape)


def _backward(*args: Any) -> list[Any]:
    options, inputs = _split(args[5:])
    grads = Result(*(_array(t) for t in args[:3]))
    if not options.has_c:
        grads = grads._replace(c_n=None)
    out = kernels.backward(options, _arrays(inputs), grads, found(args[4]), args[-1])
    nothing = inputs.x.new_empty(0)
    return [nothing if d is None else torch.from_numpy(d) for d in out[:-1]]


torch.library.impl(FORWARD, "cpu", _forward)
torch.library.impl(BACKWARD, "cpu", _backward)


@torch.library.register_fake(FORWARD)
def _fake_forward(*args: Any) -> tuple[Any, Any, Any, Any]:
    options, inputs = _split(args)
    x, h = inputs.x, inputs.h0
    c = x.new_empty(h.shape if options.has_c else (0,))
    y = x.new_empty((*x.shape[:2], h.shape[1]))
    return y, x.new_empty(h.shape), c, torch.empty(1, dtype=torch.int64, device="cpu")


@torch.library.register_fake(BACKWARD)
def _fake_backward(*args: Any) -> list[Any]:
    _, inputs = _split(args[5:])
    x, *rest = inputs[:-1]
    first = x.new_empty(x.shape if args[-1] else (0,))
    return [first, *(x.new_empty((0,) if t is None else t.shape) for t in rest)]


# -- gradients -------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    """Save all tensors: what changes one of them in place is an error, as the kernels read them."""
    options, given = _split(inputs)
    ctx.set_materialize_grads(False)
    ctx.options = options
    ctx.save_for_backward(output[0], output[3], *given)


def _pull(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> tuple[Any, ...]:
    y, saved, *given = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    out = _backward_op(dy, dh_n, dc_n, y, saved, *given, *ctx.options, wanted[0])
    grads = [d if need else None for d, need in zip(out, wanted)]
    return (*grads, None, *[None] * (_M + 1))


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "backward: expected first derivatives alone, got a second one through an ostinato layer; "
        "keep create_graph=False, or use the layer of keras.layers"
    )


torch.library.register_autograd(FORWARD, _pull, setup_context=_setup)
torch.library.register_autograd(BACKWARD, _no_second)


def recurrent(options: Options, inputs: Inputs, training: bool) -> Result:
    """Run one layer."""
    device = inputs.x.device
    if device.type not in ("cpu", "meta"):
        raise RuntimeError(
            f"sequences: expected a tensor on the CPU, got one on {device}; set "
            "KERAS_TORCH_DEVICE=cpu, or use the layers of ostinato.interop.torch"
        )
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, h_n, c_n, _ = _forward_op(*inputs, *options, save)
    return Result(y, h_n, c_n if options.has_c else None)
