"""Define the primitives of JAX for recurrent passes, with their rules for its transformations.

- ``recurrent``: a pass. Its derivative is a ``forward``, and a ``linear`` map of the tangents.
- ``pack``: the weights in the layout of the kernels, made once for forward and backward pass.
- ``forward``: a pass that also returns its tape.
- ``linear``: tangents of the inputs to those of the outputs. Only its transpose can be run.
- ``backward``: that transpose, which returns the gradients that something asks for.

They are primitives, and not functions with `jax.custom_vjp`, for the sake of two orders: the
gradient of a `jax.vmap` is then one backward pass of the larger batch, while the rule of a
custom_vjp would be asked for the weights' gradients of each sample, to be summed behind it; and a
gradient that nothing asks for is not computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import _jax_calls as calls
from ._jax_calls import Array, Options

_SHARED = ("reset_h", "reset_c")  # inputs that all rows of a batch have in common
_DIFFERENTIABLE = ("x", "h0", "c0", *_SHARED)


def _primitive(name: str, abstract: Callable[..., Any], lowering: Callable[..., Any]) -> Any:
    """Return a primitive with several results, which computes by being compiled."""
    p = Primitive(f"ostinato_{name}")
    p.multiple_results = True

    @functools.partial(jax.jit, static_argnames="params")
    def compiled(*args: Array, params: tuple[tuple[str, Any], ...]) -> Any:
        return p.bind(*args, **dict(params))

    def run(*args: Array, **params: Any) -> Any:
        if jax.config.jax_disable_jit:  # within it `compiled` would call this function again
            with jax.disable_jit(False):
                return compiled(*args, params=tuple(params.items()))
        return compiled(*args, params=tuple(params.items()))

    p.def_impl(run)
    p.def_abstract_eval(abstract)
    mlir.register_lowering(p, calls.refuse_platform)
    mlir.register_lowering(p, lowering, platform="cpu")
    return p


# -- shapes ----------------------------------------------------------------------------------------


def _shaped(shape: tuple[int, ...], like: Any) -> Any:
    """Return an abstract array that varies over the axes of a `jax.shard_map` as another does."""
    spec = jax.sharding.PartitionSpec(*(None,) * len(shape))
    return like.update(shape=shape, weak_type=False, sharding=like.sharding.update(spec=spec))


def _varying(aval: Any) -> frozenset[str]:
    """Return the axes of a `jax.shard_map` that an array varies over."""
    kind = getattr(aval, "manual_axis_type", None)  # since JAX 0.10
    axes: frozenset[str] = aval.vma if kind is None else kind.varying
    return axes


def alike(arrays: Sequence[Array]) -> list[Array]:
    """Let arrays vary over the same axes of a `jax.shard_map`, as JAX' own operations do.

    Then the gradient of one that was the same everywhere is the sum of those of all shards.
    """
    axes = [_varying(jax.typeof(a)) for a in arrays]
    together = frozenset[str]().union(*axes)
    cast = getattr(jax.lax, "pcast", None)
    out = []
    for a, own in zip(arrays, axes):
        rest = tuple(sorted(together - own))
        if rest:
            a = cast(a, rest, to="varying") if cast else jax.lax.pvary(a, rest)
        out.append(a)
    return out


def _outputs(options: Options, x: Any) -> list[Any]:
    """Return y, h_n and, of a cell that has it, c_n."""
    batch = x.shape[0 if options.batch_first else 1]
    widths = (options.output, options.hidden) if options.has_c else (options.output,)
    return [
        _shaped((*x.shape[:2], options.output), x),
        *(_shaped((batch, width), x) for width in widths),
    ]


def _infer_shapes(*args: Any, options: Options) -> list[Any]:
    return _outputs(options, args[len(calls.bits(options.weights))])


def _pack_shapes(*weights: Any, options: Options) -> list[Any]:
    like = weights[0]
    return [_shaped((calls.sizes(options, like.dtype.itemsize)[0],), like)]


def _forward_shapes(packed: Any, x: Any, *rest: Any, options: Options) -> list[Any]:
    _, saved, cells = calls.sizes(options, x.dtype.itemsize)
    axes = x.shape[1::-1] if options.batch_first else x.shape[:2]
    tape = [_shaped((*axes, saved), x)]
    if options.has_c:
        tape.append(_shaped((*axes, cells), x))
    return [*_outputs(options, x), *tape]


def _linear_shapes(
    packed: Any, x: Any, *rest: Any, options: Options, need: tuple[bool, ...]
) -> list[Any]:
    return _outputs(options, x)


def _backward_shapes(
    packed: Any, *args: Any, options: Options, need: tuple[bool, ...], cotangents: int
) -> list[Any]:
    x = args[0]
    shapes = [*calls.weight_shapes(options), *(a.shape for a in args[: len(options.inputs)])]
    return [_shaped(s, x) for s, wanted in zip(shapes, need) if wanted]


recurrent_p = _primitive("recurrent", _infer_shapes, calls.infer)
pack_p = _primitive("pack", _pack_shapes, calls.pack)
forward_p = _primitive("forward", _forward_shapes, calls.forward)
linear_p = _primitive("linear", _linear_shapes, calls.refuse_forward_mode)
backward_p = _primitive("backward", _backward_shapes, calls.backward)


# -- derivatives -----------------------------------------------------------------------------------


def _is_tangent(t: Any) -> bool:
    """Whether it is a tangent of real numbers, and not zero by its kind."""
    return type(t) is not ad.Zero and t.dtype != jax.dtypes.float0


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], *, options: Options) -> Any:
    count = len(calls.bits(options.weights))
    weights, inputs = primals[:count], primals[count:]
    need = tuple(map(_is_tangent, tangents))
    packed = pack_p.bind(*weights, options=options)
    saved = forward_p.bind(*packed, *inputs, options=options)
    outputs = 3 if options.has_c else 2
    out, tape = saved[:outputs], saved[outputs:]
    if not any(need):
        return out, [ad.Zero(jax.typeof(o).to_tangent_aval()) for o in out]
    own = [t for t, wanted in zip(tangents, need) if wanted]
    out_tangents = linear_p.bind(*packed, *inputs, out[0], *tape, *own, options=options, need=need)
    return out, out_tangents


def _transpose(cotangents: Any, *args: Any, options: Options, need: tuple[bool, ...]) -> Any:
    first = len(args) - sum(need)
    fixed, tangents = args[:first], list(args[first:])
    asked = [ad.is_undefined_primal(t) for t in tangents]
    given = [type(c) is not ad.Zero for c in cotangents]
    if not any(given):
        return [None] * len(args)
    follow = iter(asked)
    wanted = tuple(n and next(follow) for n in need)
    grads = iter(
        backward_p.bind(
            *fixed,
            *(c for c, g in zip(cotangents, given) if g),
            options=options,
            need=wanted,
            cotangents=calls.mask_of(given),
        )
    )
    return [None] * first + [next(grads) if a else None for a in asked]


def _no_second(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "grad: expected first derivatives alone, got a second one through an ostinato layer; "
        "write the layer as a jax.lax.scan where you need it"
    )


ad.primitive_jvps[recurrent_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
for _p in (pack_p, forward_p, linear_p, backward_p):
    ad.primitive_jvps[_p] = _no_second


# -- vmap ------------------------------------------------------------------------------------------


class _Merge:
    """Join the samples of `jax.vmap` to one batch, and take its results apart again.

    A batch of one row, whose samples lie one after the other, is taken as batch-first: then
    nothing is moved.
    """

    def __init__(self, options: Options, args: Sequence[Array], dims: Sequence[Any], x: int):
        self.samples = next(a.shape[d] for a, d in zip(args, dims) if d is not None)
        axes = [n for k, n in enumerate(args[x].shape) if k != dims[x]]
        self.batch = axes[0 if options.batch_first else 1]
        self.turn = not options.batch_first and self.batch == 1 and dims[x] == 0
        self.options = options._replace(
            batch_first=options.batch_first or self.turn, samples=options.samples * self.samples
        )

    def _axis(self, name: str) -> int:
        """Return the axis of the rows."""
        if name in ("saved", "cells"):
            return 1
        by_row = name in ("h0", "c0", "lengths", "h", "c")
        return 0 if by_row or self.options.batch_first else 1

    def _is_turned(self, name: str) -> bool:
        return self.turn and name in ("x", "y", "resets", "mask")

    def operand(self, name: str, a: Array, dim: Any) -> Array:
        """Return an argument of the merged call."""
        if dim is None:
            a, dim = jnp.broadcast_to(a[None], (self.samples, *a.shape)), 0
        if self._is_turned(name):
            a, dim = jnp.moveaxis(a, dim, 0), 0
            a = a.reshape(self.samples, 1, a.shape[1], *a.shape[3:])
        axis = self._axis(name)
        a = jnp.moveaxis(a, dim, axis)
        return a.reshape(*a.shape[:axis], self.samples * self.batch, *a.shape[axis + 2 :])

    def result(self, name: str, a: Array) -> tuple[Array, int]:
        """Return a result of the merged call by sample, and the axis of the samples."""
        axis = self._axis(name)
        a = a.reshape(*a.shape[:axis], self.samples, self.batch, *a.shape[axis + 1 :])
        if self._is_turned(name):
            a = a.reshape(self.samples, a.shape[2], 1, *a.shape[3:])
        return a, axis


def _one_by_one(p: Any, args: Sequence[Array], dims: Sequence[Any], params: Any) -> Any:
    """Run one call after the other, one for each sample."""
    batched = [jnp.moveaxis(a, d, 0) for a, d in zip(args, dims) if d is not None]

    def run(own: Sequence[Array]) -> Any:
        follow = iter(own)
        return p.bind(*(a if d is None else next(follow) for a, d in zip(args, dims)), **params)

    out = jax.lax.map(run, batched)
    return out, [0] * len(out)


def _batch_forward(
    p: Any, shared: Callable[[Options], int], args: Any, dims: Any, *, options: Options
) -> Any:
    first = shared(options)
    names = [*("",) * first, *options.inputs]
    alone = any(d is not None for n, d in zip(names, dims) if not n or n in _SHARED)
    if alone:
        return _one_by_one(p, args, dims, {"options": options})
    merge = _Merge(options, args, dims, first)
    own = [
        a if not n or n in _SHARED else merge.operand(n, a, d) for n, a, d in zip(names, args, dims)
    ]
    out = p.bind(*own, options=merge.options)
    kinds = ["y", "h", *(["c"] if options.has_c else []), "saved", "cells"]
    results = [merge.result(n, a) for n, a in zip(kinds, out)]
    return [a for a, _ in results], [d for _, d in results]


def _batch_backward(
    args: Any, dims: Any, *, options: Options, need: tuple[bool, ...], cotangents: int
) -> Any:
    """Join samples where no gradient is one of all rows, and each has a tape of its own."""
    count = len(calls.bits(options.weights))
    tape = ["saved", *(["cells"] if options.has_c else [])]
    kinds = [("y", "h", "c")[k] for k in calls.bits(cotangents)]
    names = ["", *options.inputs, "y", *tape, *kinds]
    wanted = [n for n, w in zip([*("",) * count, *options.inputs], need) if w]
    alone = any(not n or n in _SHARED for n in wanted)
    alone |= any(d is not None for n, d in zip(names, dims) if not n or n in _SHARED)
    alone |= dims[names.index("saved")] is None
    params = {"options": options, "need": need, "cotangents": cotangents}
    if alone:
        return _one_by_one(backward_p, args, dims, params)
    merge = _Merge(options, args, dims, 1)
    own = [
        a if not n or n in _SHARED else merge.operand(n, a, d) for n, a, d in zip(names, args, dims)
    ]
    out = backward_p.bind(*own, **{**params, "options": merge.options})
    results = [merge.result(n, a) for n, a in zip(wanted, out)]
    return [a for a, _ in results], [d for _, d in results]


def _batch_alone(p: Any, args: Any, dims: Any, **params: Any) -> Any:
    return _one_by_one(p, args, dims, params)


batching.primitive_batchers[recurrent_p] = functools.partial(
    _batch_forward, recurrent_p, lambda options: len(calls.bits(options.weights))
)
batching.primitive_batchers[forward_p] = functools.partial(
    _batch_forward, forward_p, lambda options: 1
)
batching.primitive_batchers[backward_p] = _batch_backward
for _p in (pack_p, linear_p):
    batching.primitive_batchers[_p] = functools.partial(_batch_alone, _p)
