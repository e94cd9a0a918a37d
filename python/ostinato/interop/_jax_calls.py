"""Run passes for JAX: as custom calls of XLA where it takes our handlers, else as callbacks.

A handler reads and writes the buffers of XLA in the native code, without Python. A callback runs on
NumPy arrays; what its forward pass saves cannot leave it, so the backward pass runs it again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir

from .. import _core, _native
from .._cells import UNIT_WEIGHTS, facts_of
from .._gradients import new_gradients

Array: TypeAlias = Any  # of JAX, or what stands for one while it traces
INPUTS = ("x", "h0", "c0", "lengths", "resets", "mask", "reset_h", "reset_c")
TARGETS = ("pack", "infer", "forward", "backward")


class Options(NamedTuple):
    """What a pass is told beside its arrays.

    Attributes:
        cell: the name of the cell.
        scalars: the numbers of its functions; () with its usual ones.
        input: I.
        hidden: H.
        output: P, which is H where h is not projected.
        precision: of the products, by its name in the kernels.
        reverse: whether to run from the last real step to the first.
        batch_first: whether x and y are ``[B,T,*]``, and flags ``[B,T]``.
        repeat: whether a masked step repeats the output before it.
        weights: a bit for each weight that there is, in the order of `weight_slots`.
        given: a bit for each of `INPUTS` that there is.
        kernels: the kernel set, which tells how packed weights and tapes are laid out.
        bridge: "ffi" or "callback".
        samples: how many samples of `jax.vmap` the batch is made of, one after the other.
    """

    cell: str
    scalars: tuple[float, ...]
    input: int
    hidden: int
    output: int
    precision: str
    reverse: bool
    batch_first: bool
    repeat: bool
    weights: int
    given: int
    kernels: str
    bridge: str
    samples: int = 1

    @property
    def has_c(self) -> bool:
        """Whether the cell has a second state."""
        return facts_of(self.cell)["states"] > 1

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that there are."""
        return [INPUTS[k] for k in bits(self.given)]


def bits(mask: int) -> list[int]:
    """Return the positions of the bits that are set."""
    return [k for k in range(mask.bit_length()) if mask >> k & 1]


def mask_of(flags: Sequence[Any]) -> int:
    """Return a number with a bit for every flag that is true."""
    return sum(1 << k for k, flag in enumerate(flags) if flag)


def weight_slots(
    cell: str, input_size: int, hidden: int, output: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the weights in the order of the kernels.

    A cell without weights of units has one place without a name for them.
    """
    facts = facts_of(cell)
    rows = facts["gates"] * hidden
    slots: list[tuple[str, tuple[int, ...]]] = [
        ("weight_ih", (rows, input_size)),
        ("weight_hh", (rows, output)),
        ("bias_ih", (rows,)),
        ("bias_hh", (rows,)),
    ]
    for name, count, flat in UNIT_WEIGHTS[cell]:
        slots.append((name, (count * hidden,) if flat else (count, hidden)))
    if not UNIT_WEIGHTS[cell]:
        slots.append(("", ()))
    if facts.get("projected"):
        slots.append(("weight_hr", (output, hidden)))
    return slots


def weight_shapes(options: Options) -> list[tuple[int, ...]]:
    """Return the shapes of the weights that there are."""
    slots = weight_slots(options.cell, options.input, options.hidden, options.output)
    return [slots[k][1] for k in bits(options.weights)]


def sizes(options: Options, itemsize: int) -> tuple[int, int, int]:
    """Return the elements of packed weights, of a row of the tape and of a row of its cells."""
    if options.bridge != "ffi":
        return sum(int(np.prod(s)) for s in weight_shapes(options)), 0, 0
    return _core.xla_sizes(
        itemsize, options.cell, options.input, options.hidden, options.output, options.precision
    )


# -- custom calls ----------------------------------------------------------------------------------


@functools.cache
def bridge() -> tuple[str, str]:
    """Return how passes run, "ffi" or "callback", and why where it is the second."""
    try:
        for name, handler in _core.xla_handlers().items():
            jax.ffi.register_ffi_target(f"ostinato_{name}", handler, platform="cpu")
    except Exception as e:  # XLA's own, of whatever class, where it takes another version
        return "callback", str(e)
    _keep_freed_pages()
    return "ffi", ""


def _keep_freed_pages() -> None:
    """Free a block of 31 MB, behind which the C library of Linux keeps up to 62 MB for later.

    It measures by the largest block that was freed (M_MMAP_THRESHOLD of mallopt, unless that is
    set). XLA frees its arrays after each step, packed weights among them; where the C library gives
    their pages back to the system, the next step waits for new ones, which took half of a training
    step of one row. Nothing is written to the block, so that it takes no memory.
    """
    np.empty(31 << 20, np.uint8)


def _custom_call(
    target: str, ctx: Any, operands: Sequence[Any], options: Options, **more: int
) -> Any:
    o = options
    numbers = {
        "input": o.input,
        "hidden": o.hidden,
        "output": o.output,
        "reverse": o.reverse,
        "batch_first": o.batch_first,
        "repeat": o.repeat,
        "samples": o.samples,
        "weights": o.weights,
        "given": o.given,
        **more,
    }
    return jax.ffi.ffi_lowering(f"ostinato_{target}")(
        ctx,
        *operands,
        cell=o.cell,
        precision=o.precision,
        kernels=o.kernels,
        scalars=np.array(o.scalars or (0.0,), np.float64),
        **{name: np.int64(n) for name, n in numbers.items()},
    )


# -- callbacks -------------------------------------------------------------------------------------


def _by_callback(ctx: Any, operands: Sequence[Any], run: Callable[..., Any]) -> Any:
    """Lower to a callback that is given NumPy arrays and returns those of all results.

    It reads and writes the buffers of XLA. `jax.pure_callback` would make arrays of JAX of them,
    and wait for these within a thread of the pool that has to make them: with one or two cores for
    ever, now and then.
    """
    # Experimental in JAX, and so imported where nothing but it is left.
    from jax.experimental.buffer_callback import buffer_callback

    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in ctx.avals_out)

    def host(_: Any, results: Any, *args: Any) -> None:
        found = run(*(np.ascontiguousarray(a) for a in args))
        for buffer, a in zip(results, found, strict=True):
            own = np.asarray(buffer)
            own[...] = a.reshape(own.shape)

    return mlir.lower_fun(buffer_callback(host, shapes), multiple_results=True)(ctx, *operands)


def _own_packed(options: Options, weights: Sequence[Any]) -> Any:
    """Return weights packed by the native code, of arrays or of one that holds all of them."""
    count = len(weight_slots(options.cell, options.input, options.hidden, options.output))
    slots: list[Any] = [None] * count
    for k, w in zip(bits(options.weights), weights):
        slots[k] = w
    more: dict[str, Any] = {"scalars": options.scalars} if options.scalars else {}
    if facts_of(options.cell).get("projected"):
        more["proj_size"] = options.output
    return _native.NATIVE[weights[0].dtype.name].Packed(
        options.cell,
        options.input,
        options.hidden,
        1,
        False,
        [slots],
        True,
        options.reverse,
        options.precision,
        numbered=False,
        **more,
    )


def _unpacked(options: Options, packed: Any) -> list[Any]:
    """Return the weights out of the array that holds all of them."""
    out, first = [], 0
    for shape in weight_shapes(options):
        size = int(np.prod(shape))
        out.append(packed[first : first + size].reshape(shape))
        first += size
    return out


def _forward(packed: Any, options: Options, inputs: Sequence[Any], train: bool) -> Any:
    given: dict[str, Any] = dict.fromkeys(INPUTS)
    given.update(zip(options.inputs, inputs))

    def row(name: str) -> Any:
        return None if given[name] is None else given[name][None]

    def flags(name: str) -> Any:
        a = given[name]
        if a is None:
            return None
        return np.ascontiguousarray(a.T if options.batch_first else a).view(np.uint8)

    lengths = given["lengths"]
    return packed.forward(
        given["x"],
        row("h0"),
        row("c0"),
        None if lengths is None else lengths.astype(np.int64),
        options.batch_first,
        train=train,
        resets=flags("resets"),
        mask=flags("mask"),
        repeat=options.repeat,
        restart_h=row("reset_h"),
        restart_c=row("reset_c"),
    )


def _infer_here(options: Options, *args: Any) -> list[Any]:
    n = len(bits(options.weights))
    y, h, c, _ = _forward(_own_packed(options, args[:n]), options, args[n:], False)
    return [y, h, *([c] if options.has_c else [])]


def _forward_here(options: Options, packed: Any, *inputs: Any) -> list[Any]:
    out = _infer_here(options, *_unpacked(options, packed), *inputs)
    nothing = np.empty(0, packed.dtype)
    return [*out, nothing, *([nothing] if options.has_c else [])]


def _backward_here(
    options: Options, need: tuple[bool, ...], cotangents: int, packed: Any, *args: Any
) -> list[Any]:
    weights, count = _unpacked(options, packed), len(options.inputs)
    inputs, rest = args[:count], list(args[count + (3 if options.has_c else 2) :])
    own = _own_packed(options, weights)
    *_, tape = _forward(own, options, inputs, True)
    dy, dh, dc = (rest.pop(0) if cotangents >> k & 1 else None for k in range(3))
    shapes = [w.shape if n else None for w, n in zip(weights, need)]
    grads, overwrite = new_gradients(shapes, np.empty(0, packed.dtype))
    slots: list[Any] = [None] * len(
        weight_slots(options.cell, options.input, options.hidden, options.output)
    )
    for k, g in zip(bits(options.weights), grads):
        slots[k] = g
    wanted = dict(zip(options.inputs, need[len(weights) :]))
    dx, dh0, dc0, *dreset, _ = tape.backward(
        dy,
        *(None if d is None else d[None] for d in (dh, dc)),
        [slots],
        wanted["x"],
        overwrite=overwrite,
    )
    of_inputs = dict(zip(("x", "h0", "c0", "reset_h", "reset_c"), (dx, dh0, dc0, *dreset)))
    for name, size in (("reset_h", options.output), ("reset_c", options.hidden)):
        if of_inputs[name] is None:
            of_inputs[name] = np.zeros(size, packed.dtype)
    return [
        *(g for g in grads if g is not None),
        *(of_inputs[name] for name, n in wanted.items() if n),
    ]


# -- lowerings -------------------------------------------------------------------------------------


def infer(ctx: Any, *operands: Any, options: Options) -> Any:
    """Lower a pass without gradients."""
    if options.bridge == "ffi":
        return _custom_call("infer", ctx, operands, options)
    return _by_callback(ctx, operands, functools.partial(_infer_here, options))


def pack(ctx: Any, *operands: Any, options: Options) -> Any:
    """Lower the packing of weights."""
    if options.bridge == "ffi":
        return _custom_call("pack", ctx, operands, options)

    def joined(*weights: Any) -> Any:
        return [jnp.concatenate([w.ravel() for w in weights])]

    return mlir.lower_fun(joined, multiple_results=True)(ctx, *operands)


def forward(ctx: Any, *operands: Any, options: Options) -> Any:
    """Lower a pass that keeps what its backward pass reads."""
    if options.bridge == "ffi":
        return _custom_call("forward", ctx, operands, options)
    return _by_callback(ctx, operands, functools.partial(_forward_here, options))


def backward(
    ctx: Any, *operands: Any, options: Options, need: tuple[bool, ...], cotangents: int
) -> Any:
    """Lower a backward pass."""
    if options.bridge != "ffi":
        run = functools.partial(_backward_here, options, need, cotangents)
        return _by_callback(ctx, operands, run)
    slots = bits(options.weights)
    need_weights = sum(1 << k for k, wanted in zip(slots, need) if wanted)
    inputs = zip(bits(options.given), need[len(slots) :])
    need_inputs = sum(1 << k for k, wanted in inputs if wanted)
    return _custom_call(
        "backward",
        ctx,
        operands,
        options,
        need_weights=need_weights,
        need=need_inputs,
        cotangents=cotangents,
    )


def refuse_platform(ctx: Any, *operands: Any, **params: Any) -> Any:
    """Raise for a platform that there are no kernels for."""
    names = ", ".join(ctx.module_context.platforms)
    raise NotImplementedError(
        f"x: expected arrays on the CPU, got arrays of {names}: there are no kernels for JAX "
        "there; use jax.device_put(x, jax.devices('cpu')[0])"
    )


def refuse_forward_mode(ctx: Any, *operands: Any, **params: Any) -> Any:
    """Raise for a derivative in forward mode."""
    raise NotImplementedError(
        "jvp: expected derivatives in reverse mode, got forward mode (jax.jvp, jax.jacfwd, "
        "jax.linearize) through an ostinato layer; use jax.vjp, jax.grad or jax.jacrev"
    )
