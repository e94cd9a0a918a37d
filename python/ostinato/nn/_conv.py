"""Define convolution over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _device, _native
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._ragged import Ragged, as_given, refuse_nested, rows_like, unwrapped
from ._combine import real_steps, without_padding
from ._layer import Layer, Pullback
from ._stream import Stream

PADDINGS = ("same", "causal", "valid")


class Conv1d(Layer):
    """Convolve over time: each output sees ``kernel_size`` steps around it, or before it.

    ``y_t = b + sum_k W_k x_(t s + k d - p)`` with stride s, dilation d and p steps of padding, on
    the kernels of `Linear`. Steps past the end of a row count as zeros, and outputs past its end
    are zero. A stream of a causal one keeps the last inputs of each slot as its state, ``[n,B,I]``
    with n = (K - 1) d.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> conv = ost.nn.Conv1d(3, 5, kernel_size=4, stride=2, rng=0)
    >>> conv(np.zeros((9, 2, 3), np.float32)).shape  # [T,B,I]
    (5, 2, 5)
    >>> conv.output_lengths([9, 4]).tolist()
    [5, 2]

    Args:
        in_channels: I. Parameters are ``weight [O,I,K]`` and ``bias [O]``, as in PyTorch.
        out_channels: O.
        kernel_size: K, steps that an output sees.
        stride: s, steps between two outputs.
        padding: "same": an output for each s steps, which sees as many steps before it as after
            it (one more after it where that is uneven); "causal": it sees no later step; "valid":
            outputs for whole windows alone.
        dilation: d, steps between two that an output sees.
        bias: whether there is a bias.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, U(-1/sqrt(I K), 1/sqrt(I K)) as in PyTorch.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size, stride or dilation below 1, or padding that there is not.

    Source: Waibel et al. (1989), "Phoneme recognition using time-delay neural networks".
    """

    takes_lengths = True

    _functional = ("stride", "padding", "dilation")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: str = "same",
        dilation: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.in_channels = _check.positive("in_channels", in_channels)
        self.out_channels = _check.positive("out_channels", out_channels)
        self.kernel_size = _check.positive("kernel_size", kernel_size)
        self.stride = _check.positive("stride", stride)
        self.padding = _check.choice("padding", padding, PADDINGS)
        self.dilation = _check.positive("dilation", dilation)
        self.batch_first = _check.flag("batch_first", batch_first)
        g = _check.generator(rng)
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size)
        shape = (self.out_channels, self.in_channels, self.kernel_size)
        arrays = {
            "weight": _check.drawn(
                "weight", shape, self._dtype, lambda s: g.uniform(-bound, bound, s)
            )
        }
        if _check.flag("bias", bias):
            arrays["bias"] = g.uniform(-bound, bound, self.out_channels).astype(self._dtype)
        self._declare(arrays)

    @property
    def _span(self) -> int:
        """The steps from the first that an output sees to the last, less one."""
        return (self.kernel_size - 1) * self.dilation

    @property
    def _makes_fewer(self) -> bool:
        """Whether the outputs are fewer than the steps."""
        return self.stride > 1 or self.padding == "valid"

    def output_lengths(self, lengths: Any) -> npt.NDArray[np.int64]:
        """Return how many outputs rows of given lengths have.

        Args:
            lengths: ``[B]`` whole numbers of steps.

        Returns:
            ``[B]`` whole numbers.

        Raises:
            TypeError: lengths that are no whole numbers.
            ValueError: a length below 0.
        """
        n = _check.plain("lengths", lengths, "whole numbers")
        if n.dtype.kind not in "iu" and n.size:
            raise TypeError(f"lengths: expected whole numbers, got dtype {n.dtype}")
        if (n < 0).any():
            raise ValueError(f"lengths: expected numbers of at least 0, got {n.min()}")
        counts: Array = self._outputs_of(n.astype(np.int64))
        return counts

    def _outputs_of(self, n: Any) -> Any:
        """Return the outputs of so many steps."""
        n = n - (self._span if self.padding == "valid" else 0)
        return np.maximum(-(-n // self.stride), 0)

    def _times_after(self, times: dict[str, Any]) -> dict[str, Any]:
        """Return the options of time of the layers behind this one in a `Sequential`."""
        if not self._makes_fewer:
            return times
        for name in ("mask", "resets"):
            if times.get(name) is not None:
                raise ValueError(
                    f"{name}: expected None with a {self!r}, whose outputs are fewer than the "
                    "steps; use lengths"
                )
        if times.get("lengths") is None:
            return times
        return {**times, "lengths": self.output_lengths(times["lengths"])}

    def _pack(self, backward: bool) -> Any:
        p = self.parameters()
        flat = p["weight"].transpose(0, 2, 1)  # a window is K steps of I numbers
        flat = _check.contiguous(flat).reshape(self.out_channels, -1)
        return _native.backend_for(self._block.values).PackedLinear(flat, p.get("bias"), backward)

    def stream(self, batch: int = 1) -> Stream:
        """Return a stream of a causal convolution without a stride: one step a call.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> stream = ost.nn.Conv1d(3, 5, kernel_size=4, padding="causal").stream(batch=2)
        >>> stream.step(np.ones((2, 3), np.float32)).shape
        (2, 5)

        Args:
            batch: B, the number of slots, each with the inputs that it has seen.

        Returns:
            The stream, see `Stream`.

        Raises:
            TypeError: another padding, which sees later steps, or a stride.
            ValueError: a layer that is not on the CPU; batch is less than 1.
        """
        return Stream(self, batch)

    def _join_stream(self, native: Any) -> Array:
        """Add a step that keeps the inputs before it, which are the state of the stream."""
        if self.padding != "causal" or self.stride != 1:
            raise TypeError(
                "stream: expected padding='causal' and stride=1, which see no later step, got a "
                f"{self!r}"
            )
        packed = self._packed(False)
        # The slots are on axis 1, as in every state: a decoder selects them there.
        before = np.zeros((self._span, native.batch, self.in_channels), self._dtype)

        def step(rows: Array, slots: Any) -> Array:
            seen = np.concatenate([before[:, slots], rows[None]])
            before[:, slots] = seen[1:]
            window = _check.contiguous(seen[:: self.dilation].swapaxes(0, 1))
            y: Array = packed.forward(window.reshape(len(rows), -1))
            return y

        native.add_step(step, self.in_channels, self.out_channels)
        return before

    def _reset_stream(self, states: Any, slots: Any) -> None:
        states[:, slots] = 0

    def _stream_state(self, states: Any) -> Any:
        return states

    def _arranged(self, x: Any, lengths: Lengths, mask: Any) -> tuple[Array, Array | None]:
        """Return x as ``[B,T,I]``, zero where it does not count, and where it counts ``[B,T]``."""
        x = _check.array("x", x, 3)
        _device.same("x", x, self._block.values)
        _check.of_dtype("x", x, self._dtype)
        if x.shape[2] != self.in_channels:
            raise ValueError(f"x: expected shape (..., {self.in_channels}), got {x.shape}")
        on = real_steps(x, lengths, mask, self.batch_first)
        x = without_padding(x, on)
        if not self.batch_first:
            x = np.swapaxes(x, 0, 1)
            on = None if on is None else np.swapaxes(on, 0, 1)
        return x, on

    def _counted(self, on: Array | None, steps: int, outputs: int) -> Array | None:
        """Return which outputs count: those at steps that do, of ``on [B,T]``."""
        if on is None:
            return None
        if self.stride == 1 and outputs == steps:
            return on
        clock, every = (_device.like(np.arange(n), on) for n in (steps, outputs))
        numbers = (clock + 1) * on
        ends = numbers.max(axis=1) if steps else numbers.sum(axis=1)
        counted: Array = every < self._outputs_of(ends)[:, None]
        return counted

    def _windows(self, x: Array) -> tuple[Array, int]:
        """Return the rows ``[B*T',K*I]`` that the products read, and the padding before x."""
        span = self._span
        before = {"same": span // 2, "causal": span, "valid": 0}[self.padding]
        after = span - before if self.padding == "same" else 0
        batch, steps, width = x.shape
        outputs = int(self._outputs_of(steps))
        wide = np.zeros_like(x, shape=(batch, before + steps + after, width))
        wide[:, before : before + steps] = x
        starts = np.arange(outputs) * self.stride
        at = starts[:, None] + np.arange(self.kernel_size) * self.dilation
        rows = wide[:, _device.like(at.reshape(-1), x)]
        return _check.contiguous(rows).reshape(batch * outputs, self.kernel_size * width), before

    def _forward(self, x: Array, on: Array | None, backward: bool) -> tuple[Array, Any, int]:
        rows, before = self._windows(x)
        packed = self._packed(backward)
        y: Array = packed.forward(rows)
        batch = x.shape[0]
        outputs = int(self._outputs_of(x.shape[1]))
        y = y.reshape(batch, outputs, self.out_channels)
        counted = self._counted(on, x.shape[1], outputs)
        y = without_padding(y, counted)
        return y, (rows, packed, counted), before

    def __call__(self, x: Any, *, lengths: Lengths = None, mask: Any = None) -> Any:
        """Return the outputs at every stride.

        Args:
            x: ``[T,B,I]`` (``[B,T,I]`` if batch_first), a `Ragged` or a list of ``[n,I]``.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.
            mask: bool ``[T,B]`` (``[B,T]`` if batch_first), True for the steps that count; others
                are read as zeros. Their outputs are zero where there is one for each step.

        Returns:
            ``y [T',B,O]`` of the kind and layout of x; see `output_lengths` for T'.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: an argument of the wrong shape.
        """
        sequences, listed = unwrapped(x)
        if isinstance(sequences, Ragged):
            return self._of_sequences(sequences, listed, lengths, mask, False)[0]
        arranged, on = self._arranged(x, lengths, mask)
        y = self._forward(arranged, on, False)[0]
        return y if self.batch_first else _check.contiguous(np.swapaxes(y, 0, 1))

    def vjp(
        self, x: Any, *, lengths: Lengths = None, mask: Any = None, rng: Seed = None
    ) -> tuple[Any, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: ``[T,B,I]`` (``[B,T,I]`` if batch_first), a `Ragged` or a list of ``[n,I]``.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.
            mask: bool ``[T,B]`` (``[B,T]`` if batch_first), True for the steps that count.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only and dx of the kind of x.

        Raises:
            TypeError: x is no array of the layer's dtype and device.
            ValueError: an argument of the wrong shape.
        """
        sequences, listed = unwrapped(x)
        if isinstance(sequences, Ragged):
            return self._of_sequences(sequences, listed, lengths, mask, True)
        arranged, on = self._arranged(x, lengths, mask)
        y, saved, before = self._forward(arranged, on, True)
        laid = y if self.batch_first else _check.contiguous(np.swapaxes(y, 0, 1))
        shape = arranged.shape

        def backward(grads: dict[str, Array | None], dy: Array, need_dx: bool) -> Array | None:
            d = _check.array("dy", dy)
            if d.shape != laid.shape:
                raise ValueError(
                    f"dy: expected shape {laid.shape} of {laid.dtype}, got {d.shape} of {d.dtype}"
                )
            _check.of_dtype("dy", d, laid.dtype)
            d = d if self.batch_first else np.swapaxes(d, 0, 1)
            dx = self._backward(grads, d, saved, shape, before, need_dx)
            if dx is None:
                return None
            dx = without_padding(dx, on)
            return dx if self.batch_first else _check.contiguous(np.swapaxes(dx, 0, 1))

        return _check.read_only(laid), self._pullback(backward)

    def _backward(
        self,
        grads: dict[str, Array | None],
        d: Array,
        saved: Any,
        shape: tuple[int, ...],
        before: int,
        need_dx: bool,
    ) -> Array | None:
        """Add the gradients of the parameters; return that of x as ``[B,T,I]``."""
        rows, packed, counted = saved
        batch, outputs, _ = d.shape
        d = _check.contiguous(without_padding(d, counted)).reshape(-1, self.out_channels)
        into, weight = grads["weight"], None
        if into is not None:
            weight = np.zeros_like(into, shape=(self.out_channels, rows.shape[1]))
        dx_rows = packed.run_backward(rows, d, weight, grads.get("bias"), need_dx)
        if into is not None and weight is not None:
            sizes = (self.out_channels, self.kernel_size, self.in_channels)
            into += weight.reshape(sizes).transpose(0, 2, 1)
        if not need_dx:
            return None
        _, steps, width = shape
        windows = dx_rows.reshape(batch, outputs, self.kernel_size, width)
        length = before + steps + self._span
        wide = np.zeros_like(d, shape=(batch, length, width))
        for k in range(self.kernel_size):
            first = k * self.dilation
            wide[:, first : first + outputs * self.stride : self.stride] += windows[:, :, k]
        dx: Array = wide[:, before : before + steps]
        return dx

    def _of_sequences(
        self, x: Ragged, listed: bool, lengths: Any, mask: Any, train: bool
    ) -> tuple[Any, Any]:
        """Return the outputs of sequences without padding, and in training a pullback."""
        for name, given in (("lengths", lengths), ("mask", mask)):
            if given is not None:
                raise ValueError(f"{name}: expected None with ragged sequences, got one")
        refuse_nested(x)
        if x.rows.ndim != 2:
            raise ValueError(
                f"x: expected rows of shape (N, I) = (*, {self.in_channels}), got {x.rows.shape}"
            )
        padded = x.padded()  # [T,B,I]
        padded = np.ascontiguousarray(padded.swapaxes(0, 1)) if self.batch_first else padded
        new = self.output_lengths(x.lengths)
        offsets = np.concatenate([[0], np.cumsum(new)])

        def flat(y: Array, like: Ragged) -> Array:
            return like.flat(y.swapaxes(0, 1) if self.batch_first else y)

        empty = np.zeros_like(x.rows, shape=(int(offsets[-1]), self.out_channels))
        out = Ragged(empty, offsets)
        if not train:
            y = self(padded, lengths=x.lengths)
            out = out.like(flat(y, out))
            return (list(out) if listed else out), None
        y, pullback = self.vjp(padded, lengths=x.lengths)
        out = out.like(_check.read_only(flat(y, out)))

        def backward(grads: dict[str, Array | None], dy: Any, need_dx: bool) -> Any:
            rows = rows_like("dy", dy, out, self.out_channels)
            d = np.zeros_like(y)
            laid = out.padded(rows)
            laid = laid.swapaxes(0, 1) if self.batch_first else laid
            d[: laid.shape[0], : laid.shape[1]] = laid
            (backward_of,) = pullback._unused
            dx = backward_of(grads, d, need_dx)
            return None if dx is None else as_given(flat(dx, x), x, listed)

        return (list(out) if listed else out), self._pullback(backward)

    def __repr__(self) -> str:
        more = f", stride={self.stride}" if self.stride > 1 else ""
        more += f", padding={self.padding!r}" if self.padding != "same" else ""
        more += f", dilation={self.dilation}" if self.dilation > 1 else ""
        more += ", batch_first=True" if self.batch_first else ""
        return f"Conv1d({self.in_channels}, {self.out_channels}, {self.kernel_size}{more})"


readable(globals())
