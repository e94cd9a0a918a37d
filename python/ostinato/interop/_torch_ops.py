"""Define the operators of PyTorch: one forward and one backward, with all that compilers ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from . import _torch_kernels as kernels
from ._torch_kernels import Inputs, Options, Tensor

FORWARD, BACKWARD = "ostinato::recurrent", "ostinato::recurrent_backward"
_INPUTS = (
    "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? resets, "
    "Tensor? batch_sizes, Tensor? key, SymInt batch"
)
_OPTIONS = (
    "str cell, int layers, bool bias, bool bidirectional, bool batch_first, float dropout, "
    "str precision"
)
_N, _M = len(Inputs._fields), len(Options._fields)  # arguments of the two groups

torch.library.define(
    FORWARD,
    f"({_INPUTS}, {_OPTIONS}, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved)",
)
torch.library.define(
    BACKWARD,
    f"(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, Tensor saved, {_INPUTS}, {_OPTIONS}, "
    "bool[] need) -> Tensor[]",
)
_forward_op = torch.ops.ostinato.recurrent.default
_backward_op = torch.ops.ostinato.recurrent_backward.default


def _split(args: Sequence[Any]) -> tuple[Options, Inputs]:
    """Return the two groups of arguments of an operator."""
    return Options(*args[_N : _N + _M]), Inputs(*args[:_N])


# -- the operators ---------------------------------------------------------------------------------


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, inputs = _split(args)
    y, h_n, c_n, saved = kernels.forward(options, inputs, args[-1])
    c = inputs.x.new_empty(0) if c_n is None else c_n
    return y, h_n, c, kernels.handle_of(saved)


def _backward(*args: Any) -> list[Tensor]:
    dy, dh_n, dc_n, _, saved, *rest = args
    return kernels.backward(*_split(rest), (dy, dh_n, dc_n), kernels.found(saved), args[-1])


torch.library.impl(FORWARD, ("cpu", "cuda"), _forward)
torch.library.impl(BACKWARD, ("cpu", "cuda"), _backward)


@torch.library.register_fake(FORWARD)
def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, inputs = _split(args)
    y, h, c = (inputs.x.new_empty(s) for s in kernels.output_shapes(options, inputs))
    return y, h, c, torch.empty(1, dtype=torch.int64, device="cpu")


@torch.library.register_fake(BACKWARD)
def _fake_backward(*args: Any) -> list[Tensor]:
    options, inputs = _split(args[5:])
    x, need = inputs.x, args[-1]
    _, h, c = kernels.output_shapes(options, inputs)
    shapes = [tuple(x.shape), h, c, *(tuple(w.shape) for w in inputs.weights)]
    return [x.new_empty(shape if n else (0,)) for shape, n in zip(shapes, need)]


# -- gradients -------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save all tensors: what changes one of them in place is an error, as the kernels read them."""
    options, given = _split(inputs)
    ctx.set_materialize_grads(False)
    ctx.options, ctx.batch = options, given.batch
    tensors = (given.x, given.h0, given.c0, given.lengths, given.resets, given.batch_sizes)
    ctx.save_for_backward(output[0], output[3], given.key, *tensors, *given.weights)


def _pull(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> tuple[Any, ...]:
    y, saved, key, x, h0, c0, lengths, resets, sizes, *weights = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    need = [wanted[0], wanted[1], wanted[2], *wanted[3]]
    given = (x, h0, c0, weights, lengths, resets, sizes, key, ctx.batch)
    grads = _backward_op(dy, dh_n, dc_n, y, saved, *given, *ctx.options, need)
    known = [g if n else None for g, n in zip(grads, need)]
    nothing = [None] * (_N - 4 + _M + 1)
    return (*known[:3], known[3:], *nothing)


def _no_second(*_: Any) -> Any:
    raise RuntimeError(
        "backward: expected first derivatives alone, got a second one through an ostinato layer; "
        "keep create_graph=False, or use the layer of torch.nn"
    )


torch.library.register_autograd(FORWARD, _pull, setup_context=_setup)
torch.library.register_autograd(BACKWARD, _no_second)


# -- vmap ------------------------------------------------------------------------------------------


def _at(value: Any, dim: Any, k: int) -> Any:
    """Return sample k of an argument: the argument itself where it is not batched."""
    if isinstance(value, (list, tuple)):
        dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(value)
        return [_at(v, d, k) for v, d in zip(value, dims)]
    return value if dim is None else value.select(dim, k)


def _is_batched(dim: Any) -> bool:
    if isinstance(dim, (list, tuple)):
        return any(_is_batched(d) for d in dim)
    return dim is not None


def _merge(value: Any, dim: Any, axis: int, samples: int) -> Any:
    """Return a tensor whose axis of the batch holds all samples, one after the other."""
    if value is None:
        return None
    if dim is None:
        value = value.unsqueeze(axis).expand(*value.shape[:axis], samples, *value.shape[axis:])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis, axis + 1)


def _merged(inputs: Inputs, dims: Sequence[Any], first: bool, samples: int) -> Inputs:
    """Return the inputs with all samples in one batch."""
    axis = 0 if first else 1
    d = Inputs(*dims)
    return inputs._replace(
        x=_merge(inputs.x, d.x, axis, samples),
        h0=_merge(inputs.h0, d.h0, 1, samples),
        c0=_merge(inputs.c0, d.c0, 1, samples),
        lengths=_merge(inputs.lengths, d.lengths, 0, samples),
        resets=_merge(inputs.resets, d.resets, axis, samples),
        batch=inputs.batch * samples,
    )


def _can_merge(options: Options, inputs: Inputs, dims: Sequence[Any]) -> bool:
    """Return whether the samples are rows of one batch: same weights, no masks of dropout."""
    d = Inputs(*dims)
    alone = inputs.key is not None or inputs.batch_sizes is not None
    return not alone and not _is_batched(d.weights)


def _stack(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(column)) for column in zip(*rows)]


@torch.library.register_vmap(FORWARD)
def _vmap_forward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    options, inputs = _split(args)
    samples, rest = info.batch_size, args[_N:-1]
    if not _can_merge(options, inputs, in_dims[:_N]):
        rows = [
            _forward_op(*(_at(a, d, k) for a, d in zip(args[:-1], in_dims)), False)
            for k in range(samples)
        ]
        return tuple(_stack(rows)), (0, 0, 0, 0)
    axis = 0 if options.batch_first else 1
    one = _merged(inputs, in_dims[:_N], options.batch_first, samples)
    y, h, c, saved = _forward_op(*one, *rest, False)
    y, h = y.unflatten(axis, (samples, inputs.batch)), h.unflatten(1, (samples, inputs.batch))
    has_c = c.dim() == 3
    c = c.unflatten(1, (samples, inputs.batch)) if has_c else c
    return (y, h, c, saved), (axis, 1, 1 if has_c else None, None)


@torch.library.register_vmap(BACKWARD)
def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    options, inputs = _split(args[5:])
    dims, need, samples = in_dims[5 : 5 + _N], args[-1], info.batch_size
    if any(need[3:]) or not _can_merge(options, inputs, dims) or not _is_batched(dims):
        given, given_dims = list(args), list(in_dims)
        if _is_batched(dims):  # what was saved is of another batch: it is computed again
            given[4], given_dims[4] = torch.zeros_like(args[4].reshape(-1)[:1]), None
        rows = [
            _backward_op(*(_at(a, d, k) for a, d in zip(given, given_dims))) for k in range(samples)
        ]
        stacked = _stack(rows)
        return stacked, [0] * len(stacked)
    axis = 0 if options.batch_first else 1
    one = _merged(inputs, dims, options.batch_first, samples)
    grads = [_merge(g, d, a, samples) for g, d, a in zip(args[:3], in_dims[:3], (axis, 1, 1))]
    y = _merge(args[3], in_dims[3], axis, samples)
    fresh = torch.zeros_like(args[4].reshape(-1)[:1])
    out = list(_backward_op(*grads, y, fresh, *one, *args[5 + _N : -1], need))
    out_dims: list[int | None] = [None] * len(out)
    for k, (a, wanted) in enumerate(zip((axis, 1, 1), need[:3])):
        if wanted:
            out[k], out_dims[k] = out[k].unflatten(a, (samples, inputs.batch)), a
    return out, out_dims


# -- calls -----------------------------------------------------------------------------------------


class _Recorded(torch.autograd.Function):
    """The two passes in eager mode: plain tensors need no operator between autograd and kernels."""

    generate_vmap_rule = True  # that of the operators, which other tensors go to

    @staticmethod
    def forward(
        options: Options,
        rest: tuple[Any, ...],
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> Any:
        inputs = Inputs(x, h0, c0, weights, *rest)
        return (_forward if _is_plain(inputs) else _forward_op)(*inputs, *options, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        options, (*tensors, batch), *given = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[3])
        ctx.options, ctx.batch = options, batch
        ctx.save_for_backward(output[0], output[3], *tensors, *given)

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> Any:
        y, saved, lengths, resets, sizes, key, x, h0, c0, *weights = ctx.saved_tensors
        inputs = Inputs(x, h0, c0, weights, lengths, resets, sizes, key, ctx.batch)
        need = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            args = (dy, dh_n, dc_n, y, saved, x, h0, c0, *weights)
            grads = _Gradients.apply(ctx.options, (*inputs[4:], need), *args)
        else:
            run = _backward if _is_plain(inputs, dy, dh_n, dc_n) else _backward_op
            grads = run(dy, dh_n, dc_n, y, saved, *inputs, *ctx.options, need)
        return (None, None, *[g if n else None for g, n in zip(grads, need)])


class _Gradients(torch.autograd.Function):
    """The backward pass where a graph of it is asked for, which has no derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: Options, rest: tuple[Any, ...], *args: Any) -> Any:
        *others, need = rest
        x, h0, c0, *weights = args[5:]
        inputs = Inputs(x, h0, c0, weights, *others)
        run = _backward if _is_plain(inputs, *args[:3]) else _backward_op
        return tuple(run(*args[:5], *inputs, *options, need))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return _no_second()


def recurrent(
    options: Options, inputs: Inputs, training: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a pass: by the operator where something records it, otherwise right away."""
    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    if torch.compiler.is_compiling():
        save = training and not torch.compiler.is_exporting()
        y, h_n, c_n, _ = _forward_op(*inputs, *options, save)
        return y, h_n, c_n
    _refuse_forward_mode(inputs)
    if training:
        x, h0, c0, weights, *rest = inputs
        y, h_n, c_n, _ = _Recorded.apply(options, tuple(rest), x, h0, c0, *weights)
    elif _is_plain(inputs):
        y, h_n, c_n, _ = kernels.forward(options, inputs, False)
    else:
        y, h_n, c_n, _ = _forward_op(*inputs, *options, False)
    return y, h_n, c_n


def _refuse_forward_mode(inputs: Inputs) -> None:
    """Raise where a tensor has a tangent, which the kernels would drop."""
    if getattr(forward_ad, "_current_level", 0) < 0:  # of PyTorch: no level is open
        return
    for t in (inputs.x, inputs.h0, inputs.c0, *inputs.weights):
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            raise RuntimeError(
                "forward mode: expected tensors without tangents, got one with, through an "
                "ostinato layer; use torch.func.vjp or jacrev, or the layer of torch.nn"
            )


_PLAIN = (Tensor, torch.nn.Parameter)
# The innermost transform of torch.func that runs; PyTorch has no public name for it.
_transforms: Any = getattr(torch._C._functorch, "maybe_current_level", lambda: None)


def _is_plain(inputs: Inputs, *more: Tensor | None) -> bool:
    """Return whether all tensors have memory: none stands for others, as those of vmap do.

    Within a transform of torch.func new tensors stand for others as well, also those of a layer
    that the transform does not differentiate.
    """
    if _transforms() is not None:
        return False
    x, h0, c0, weights, lengths, resets, *_ = inputs
    try:
        for t in (*weights, x, h0, c0, lengths, resets, *more):
            if t is not None and (type(t) not in _PLAIN or (t.data_ptr() == 0 and t.numel())):
                return False
    except RuntimeError:  # what PyTorch raises for a tensor without memory
        return False
    return True
