"""Run the kernels on the storage of tensors; a tensor owns what a pass saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import torch

from .. import _check, _device, _driver, _native
from .._cells import UNIT_WEIGHTS, facts_of
from .._gradients import new_gradients
from .._ragged import sequence_of, step_of

Tensor: TypeAlias = torch.Tensor
ALIGN = 64  # bytes; compiled code copies tensors that begin elsewhere
UNIT_NAMES: dict[str, list[tuple[str, int, bool]]] = UNIT_WEIGHTS


class Options(NamedTuple):
    """What a pass is told beside its tensors.

    Attributes:
        cell: the name of the cell.
        layers: L.
        bias: whether the layers have biases.
        bidirectional: whether there are two directions.
        batch_first: whether x and y are ``[B,T,*]``.
        dropout: rate of the dropout between layers; 0: none.
        precision: what the products multiply, by its public name.
    """

    cell: str
    layers: int
    bias: bool
    bidirectional: bool
    batch_first: bool
    dropout: float
    precision: str

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    def widths(self, weights: Sequence[Tensor]) -> tuple[int, int]:
        """Return P (H where h is not projected) and H."""
        hidden = weights[0].shape[0] // facts_of(self.cell)["gates"]
        return weights[1].shape[1], hidden


class Inputs(NamedTuple):
    """The tensors of a pass.

    Attributes:
        x: ``[T,B,I]``, ``[B,T,I]`` if batch_first, or the rows ``[N,I]`` of a PackedSequence.
        h0: ``[L*D,B,P]``, or None.
        c0: ``[L*D,B,H]``, or None.
        weights: those of each layer and direction, in the order of `weight_names`.
        lengths: int64 ``[B]``, or None.
        resets: bool ``[T,B]`` (``[B,T]``, or ``[N]``), or None.
        batch_sizes: those of a PackedSequence, or None.
        key: int64 ``[1]``, all the randomness of dropout; None without dropout.
        batch: B.
    """

    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: Sequence[Tensor]
    lengths: Tensor | None
    resets: Tensor | None
    batch_sizes: Tensor | None
    key: Tensor | None
    batch: int


def weight_names(
    cell: str, layers: int, bias: bool, bidirectional: bool, projected: bool
) -> list[str]:
    """Return the names of all parameters, in the order in which the operators take them."""
    names = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ())]
    names += [name for name, *_ in UNIT_NAMES[cell]]
    names += ["weight_hr"] if projected else []
    ends = ("", "_reverse") if bidirectional else ("",)
    return [f"{name}_l{layer}{end}" for layer in range(layers) for end in ends for name in names]


def parts_of(options: Options, weights: Sequence[Any]) -> list[list[Any]]:
    """Return the weights of each layer and direction as the kernels take them."""
    parts = options.layers * options.directions
    each, out = len(weights) // parts, []
    for k in range(parts):
        own = list(weights[k * each : (k + 1) * each])
        if not options.bias:
            own[2:2] = [None, None]
        if not UNIT_NAMES[options.cell]:
            own[4:4] = [None]  # a place that the kernels count on
        out.append(own)
    return out


# -- tensors and arrays ----------------------------------------------------------------------------


_OWN = (torch.float32, torch.float64)  # dtypes in which the kernels compute
_NATIVE = {torch.float32: _native.NATIVE["float32"], torch.float64: _native.NATIVE["float64"]}

_LIKE = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}


def _computed(t: Tensor) -> Tensor:
    """Return a tensor in the dtype in which the kernels compute."""
    return t if t.dtype in _OWN else t.float()


def _on_cpu(t: Tensor) -> bool:
    return bool(t.is_cpu)


def _array(t: Tensor) -> Any:
    """Return a view of a tensor's storage as an array of its device."""
    if t.is_cpu:
        return t.detach().numpy()
    return _device.cuda(t.device.index).xp.from_dlpack(t.detach())


def _dense(t: Tensor | None) -> Any:
    """Return a tensor as a C-contiguous array; None stays None."""
    return None if t is None else _array(_computed(t).contiguous())


def _rows(t: Tensor | None) -> Any:
    """Return a tensor as an array whose last axis has unit stride; None stays None."""
    if t is None:
        return None
    t = _computed(t)
    return _array(t if t.shape[-1] < 2 or t.stride(-1) == 1 else t.contiguous())


def _tensor(a: Any, like: Tensor) -> Tensor:
    """Return an array as a tensor of the dtype of another one, without a copy where they agree."""
    if isinstance(a, torch.Tensor):
        t = a
    else:
        t = torch.from_numpy(a) if isinstance(a, np.ndarray) else torch.utils.dlpack.from_dlpack(a)
    return t if t.dtype == like.dtype else t.to(like.dtype)


def _on_device(x: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Return memory of PyTorch for a result on the device of x; None on the CPU.

    PyTorch knows which streams use it. On the CPU results lie in memory that is kept.
    """
    if _on_cpu(x):
        return None
    return torch.empty(tuple(shape), dtype=_computed(x.new_empty(0)).dtype, device=x.device)


@contextmanager
def _on_stream(x: Tensor) -> Iterator[None]:
    """Let launches go to the stream of PyTorch that is current on the device of a tensor."""
    cupy = _device.cuda(x.device.index).xp
    stream = cupy.cuda.ExternalStream(
        torch.cuda.current_stream(x.device).cuda_stream, x.device.index
    )
    with cupy.cuda.Device(x.device.index), stream:
        yield


def require_device(device: torch.device) -> None:
    """Raise where the kernels cannot run on a device."""
    kind = device.type
    if kind == "cuda" and (reason := _driver.why_not()):
        raise RuntimeError(f"input: expected a tensor on the CPU, got one on {device}: {reason}")
    if kind not in ("cpu", "cuda"):
        raise RuntimeError(
            f"input: expected a tensor on the CPU or a CUDA GPU, got one on {device}"
        )


# -- what a pass saves -----------------------------------------------------------------------------


class _Saved(np.ndarray[Any, Any]):
    """Memory of a tensor that stands for what a pass saved, and owns it.

    The tensor is all that autograd and compiled code see. When its storage goes, this goes.
    """

    holds: _Pass


class _Pass(NamedTuple):
    """What a forward pass saved.

    Attributes:
        tape: the native tape.
        order: the rows of a PackedSequence, sequence by sequence, and the inverse; or None.
    """

    tape: Any
    order: tuple[Tensor, Tensor] | None


_saved: WeakValueDictionary[int, _Saved] = WeakValueDictionary()


def handle_of(saved: _Pass | None) -> Tensor:
    """Return a tensor ``[1]`` on the CPU that owns what a pass saved."""
    if saved is None:
        return torch.zeros(1, dtype=torch.int64)
    raw = np.zeros(2 * ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    own = raw[start : start + 8].view(np.int64).view(_Saved)
    own.holds = saved
    _saved[own.ctypes.data] = own
    return torch.from_numpy(own)


def found(handle: Tensor) -> _Pass | None:
    """Return what a pass saved, by its tensor; None where it saved nothing or was copied."""
    own = _saved.get(handle.data_ptr())
    return None if own is None else own.holds


# -- the two passes --------------------------------------------------------------------------------


def _by_sequence(sizes: Tensor, batch: int, rows: int) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Return the lengths of packed sequences, and their rows one sequence after the other.

    The second of the two orders is the inverse of the first.
    """
    steps = sizes.detach().cpu().numpy()
    if rows != int(steps.sum()) or (steps[1:] > steps[:-1]).any():
        raise ValueError(
            f"batch_sizes: expected sizes that do not increase, of {rows} rows, got "
            f"{steps.tolist()}"
        )
    lengths = (steps > np.arange(batch)[:, None]).sum(1)
    first = np.cumsum(steps) - steps
    order = first[step_of(lengths)] + sequence_of(lengths)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(rows)
    return lengths, (torch.from_numpy(order), torch.from_numpy(inverse))


def _pack(options: Options, inputs: Inputs, backward: bool) -> Any:
    """Return the weights in the layout of the kernels."""
    weights = [_dense(w) for w in inputs.weights]
    like = weights[0]
    size, hidden = options.widths(inputs.weights)
    if _on_cpu(inputs.x):  # looked up: a small call is soon done
        native = _NATIVE[_computed(inputs.weights[0]).dtype]
        precision = "bfloat16" if options.precision == "bfloat16" else "exact"
    else:
        name = _device.name_of(like)
        native = _native.backend_for(like)
        precision = _check.native_precision(like.dtype, options.precision, name)
    more = {"proj_size": size} if options.cell == "lstm_projected" else {}
    return native.Packed(
        options.cell,
        like.shape[1],
        hidden,
        options.layers,
        options.bidirectional,
        parts_of(options, weights),
        backward,
        precision=precision,
        **more,
    )


def _run(
    options: Options, inputs: Inputs, save: bool
) -> tuple[Any, Any, Any, Any, tuple[Tensor, Tensor] | None]:
    """Run the forward pass; return y, h_n, c_n, the tape and the order of packed rows."""
    x, resets, order = inputs.x, inputs.resets, None
    packed = _pack(options, inputs, save)
    times: dict[str, Any] = {}
    lengths = None
    batch_first = options.batch_first
    if inputs.batch_sizes is not None:
        batch_first = False
        lengths, order = _by_sequence(inputs.batch_sizes, inputs.batch, x.shape[0])
        x = x.index_select(0, order[0].to(x.device))
        resets = None if resets is None else resets[order[0].to(resets.device)]
        times = {"starts": np.cumsum(lengths) - lengths, "span": len(inputs.batch_sizes)}
    elif inputs.lengths is not None:
        lengths = _array(inputs.lengths.contiguous())
    if resets is not None:
        flags = resets.t() if resets.dim() == 2 and batch_first else resets
        times["resets"] = _array(flags.contiguous().view(torch.uint8))
    key = 0 if inputs.key is None else int(inputs.key)
    states = _dense(inputs.h0), _dense(inputs.c0)
    size, _ = options.widths(inputs.weights)
    out = _on_device(x, (*x.shape[:-1], size * options.directions))
    y, h_n, c_n, tape = packed.forward(
        _rows(x),
        *states,
        lengths,
        batch_first,
        None if out is None else _array(out),
        train=save,
        dropout=options.dropout,
        key=key,
        **times,
    )
    return y if out is None else out, h_n, c_n, tape, order


def forward(
    options: Options, inputs: Inputs, save: bool
) -> tuple[Tensor, Tensor, Tensor | None, _Pass | None]:
    """Return y, h_n, c_n (None for a cell without c) and what is saved."""
    if _on_cpu(inputs.x):
        return _forward(options, inputs, save)
    require_device(inputs.x.device)
    with _on_stream(inputs.x):
        return _forward(options, inputs, save)


def _forward(
    options: Options, inputs: Inputs, save: bool
) -> tuple[Tensor, Tensor, Tensor | None, _Pass | None]:
    x = inputs.x
    y, h_n, c_n, tape, order = _run(options, inputs, save)
    out = _tensor(y, x)
    if order is not None:
        out = out.index_select(0, order[1].to(out.device))
    c = None if c_n is None else _tensor(c_n, x)
    return out, _tensor(h_n, x), c, _Pass(tape, order) if save else None


def backward(
    options: Options,
    inputs: Inputs,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: _Pass | None,
    need: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of x, h0, c0 and the weights; empty tensors where none is needed.

    Where what the forward pass saved is not at hand (it saved nothing, or a hook copied its
    tensor), the pass is run again, which gives the same bits.
    """
    if _on_cpu(inputs.x):
        return _backward(options, inputs, grads, saved, need)
    require_device(inputs.x.device)
    with _on_stream(inputs.x):
        return _backward(options, inputs, grads, saved, need)


def _backward(
    options: Options,
    inputs: Inputs,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: _Pass | None,
    need: Sequence[bool],
) -> list[Tensor]:
    if saved is None:
        *_, tape, order = _run(options, inputs, True)
        saved = _Pass(tape, order)
    dy, dh, dc = grads
    if saved.order is not None and dy is not None:
        dy = dy.index_select(0, saved.order[0].to(dy.device))
    out, overwrite = _weight_gradients(inputs, need[3:])
    arrays = [_array(w) if wanted else None for w, wanted in zip(out, need[3:])]
    has_cells = facts_of(options.cell)["states"] > 1
    own = _on_device(inputs.x, inputs.x.shape) if need[0] else None
    dx, dh0, dc0, *_ = saved.tape.backward(
        _rows(dy),
        _dense(dh),
        _dense(dc) if has_cells else None,
        parts_of(options, arrays),
        need[0],
        dx=None if own is None else _array(own),
        overwrite=overwrite,
    )
    first = []
    for a, wanted in zip((dx if own is None else own, dh0, dc0), need):
        first.append(_tensor(a, inputs.x) if wanted else inputs.x.new_empty(0))
    if saved.order is not None and need[0]:
        first[0] = first[0].index_select(0, saved.order[1].to(first[0].device))
    dtype = inputs.x.dtype
    return [*first, *(w if w.dtype == dtype else w.to(dtype) for w in out)]


def _weight_gradients(inputs: Inputs, need: Sequence[bool]) -> tuple[list[Tensor], bool]:
    """Return memory for the gradients of the weights that are needed, and whether it is unfilled.

    That on a device is PyTorch's own, which knows the streams that use it.
    """
    nothing = inputs.x.new_empty(0)
    dtype = _computed(nothing).dtype
    shapes = [w.shape if n else None for w, n in zip(inputs.weights, need)]
    if not _on_cpu(inputs.x):
        device = inputs.weights[0].device
        zeros = (None if s is None else torch.zeros(s, dtype=dtype, device=device) for s in shapes)
        return [nothing if z is None else z for z in zeros], False
    arrays, overwrite = new_gradients(shapes, _LIKE[dtype])
    return [nothing if a is None else torch.from_numpy(a) for a in arrays], overwrite


def output_shapes(
    options: Options, inputs: Inputs
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Return the shapes of y, h_n and c_n."""
    size, hidden = options.widths(inputs.weights)
    parts = options.layers * options.directions
    y = (*inputs.x.shape[:-1], size * options.directions)
    c = (parts, inputs.batch, hidden) if facts_of(options.cell)["states"] > 1 else (0,)
    return y, (parts, inputs.batch, size), c
