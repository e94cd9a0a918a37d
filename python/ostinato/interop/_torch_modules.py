"""Define the recurrent modules of PyTorch that the kernels run."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _check
from .._annotations import readable
from ._torch_kernels import UNIT_NAMES, Inputs, Options, Tensor, require_device, weight_names
from ._torch_ops import recurrent

_FAMILIES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_AUTOCAST = ("cpu", "cuda")  # PyTorch knows no autocast of a tensor without memory
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Recurrent(torch.nn.RNNBase):
    """Base of LSTM, GRU and RNN: ``torch.nn.RNNBase``, whose calls run the kernels of ostinato.

    It is not made itself: use `LSTM`, `GRU` or `RNN`.

    >>> from ostinato.interop import torch as ot
    >>> issubclass(ot.GRU, ot.Recurrent)
    True

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether inputs and outputs are ``[B,T,*]`` in place of ``[T,B,*]``.
        dropout: rate in [0, 1) of the dropout between layers, which acts in training.
        bidirectional: whether a second direction runs from the last step to the first.
        proj_size: P, the width to which h of an LSTM is projected; 0: it is not.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a rate of dropout that is not in [0, 1), or a size that PyTorch refuses.
    """

    layer_norm = False
    _names: tuple[str, ...]

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            mode,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        if self.dropout == 1:
            raise ValueError("dropout: expected a number in [0, 1), got 1.0")
        self.prepare()

    def prepare(self) -> None:
        """Remember the names of the parameters, in the order of the kernels.

        >>> from ostinato.interop import torch as ot
        >>> ot.GRU(3, 5).prepare()
        """
        self._names = tuple(
            weight_names(
                self._cell, self.num_layers, self.bias, self.bidirectional, self.proj_size > 0
            )
        )

    @property
    def _cell(self) -> str:
        """The name of the cell."""
        if self.layer_norm:
            return "lstm_layer_norm"
        return "lstm_projected" if self.proj_size else _FAMILIES[self.mode]

    @property
    def _has_cells(self) -> bool:
        return bool(self.mode == "LSTM")

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
    ) -> tuple[Any, Any]:
        """Run the stack.

        >>> import torch
        >>> from ostinato.interop import torch as ot
        >>> x, resets = torch.ones(7, 2, 3), torch.zeros(7, 2, dtype=torch.bool)
        >>> resets[4, 1] = True  # a new episode begins
        >>> y, h = ot.GRU(3, 5)(x, resets=resets)
        >>> bool((y[4, 1] == y[0, 1]).all()), bool((y[4, 0] == y[0, 0]).all())
        (True, False)

        Args:
            input: ``[T,B,I]`` (``[B,T,I]`` if batch_first), ``[T,I]`` for one sequence, or a
                ``PackedSequence``.
            hx: the state before the first step: ``h [L*D,B,P]`` (P = H without a projection), for
                an LSTM ``(h, c)`` with ``c [L*D,B,H]``; without B for one sequence. None: zeros.
            lengths: whole numbers ``[B]`` from 0 to T: row b ends after ``lengths[b]`` steps, its
                outputs are zero from there on and its final state is that of its last step. None:
                every row has T steps.
            resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True the state before
                the step is replaced by zeros. With a ``PackedSequence`` a ``PackedSequence`` of
                bool, or its data ``[N]``.

        Returns:
            ``output, h_n``, for an LSTM ``output, (h_n, c_n)``, as ``torch.nn`` has them.

        Raises:
            RuntimeError: a tensor of the wrong shape, or on a device without kernels.
            ValueError: a dtype that the parameters do not have, or lengths out of range.
            TypeError: lengths that are no whole numbers, or resets that are not bool.
        """
        tracing: Any = torch.jit  # whose types leave out is_tracing
        if not torch.compiler.is_compiling() and tracing.is_tracing():
            raise RuntimeError(
                "torch.jit.trace: expected torch.compile or torch.export, since a trace would keep "
                "this call's outputs; torch.onnx.export has dynamo=True"
            )
        weights = [getattr(self, name) for name in self._names]
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, lengths, resets, weights)
        if not isinstance(input, torch.Tensor):
            raise TypeError(
                f"input: expected a tensor or a PackedSequence, got {type(input).__name__}"
            )
        dim = input.dim()
        if dim != 3 and dim != 2:
            raise ValueError(
                f"{type(self).__name__}: input: expected [T,B,I] or [T,I], got {dim} axes"
            )
        first = self.batch_first
        if dim == 2:
            axis = 0 if first else 1
            input, hx = input.unsqueeze(axis), self._with_batch(hx)
            if resets is not None:
                _check_flags(resets)
                resets = resets.unsqueeze(axis)
            if lengths is not None:
                lengths = _tensor_of(lengths, input.device)
                lengths = lengths.reshape(1) if lengths.numel() == 1 else lengths
        batch, steps = input.shape[:2] if first else (input.shape[1], input.shape[0])
        if steps == 0:
            raise RuntimeError(f"input: expected at least one step, got {tuple(input.shape)}")
        if lengths is not None:
            lengths = _whole_lengths(lengths, batch, input.device)
        if resets is not None:
            _check_resets(resets, (batch, steps) if first else (steps, batch))
        y, h, c = self._run(input, hx, weights, lengths, resets, None, batch)
        if dim == 2:
            y, h, c = y.squeeze(axis), h.squeeze(1), c.squeeze(1) if self._has_cells else None
        return y, ((h, c) if self._has_cells else h)

    def _with_batch(self, hx: Any) -> Any:
        """Return the state of one sequence with an axis of the batch."""
        if hx is None:
            return None
        states = self._split(hx)
        for s in states:
            if s is not None and s.dim() != 2:
                raise RuntimeError(
                    f"hx: expected 2 axes for an input of one sequence, got {s.dim()}"
                )
        h, c = (None if s is None else s.unsqueeze(1) for s in states)
        return (h, c) if self._has_cells else h

    def _split(self, hx: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return h and c of a state."""
        if hx is None:
            return None, None
        if not self._has_cells:
            if not isinstance(hx, torch.Tensor):
                raise TypeError(f"hx: expected a tensor h, got {type(hx).__name__}")
            return hx, None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise TypeError(f"hx: expected a pair (h, c), got {type(hx).__name__}")
        for s in hx:
            if s is not None and not isinstance(s, torch.Tensor):
                raise TypeError(f"hx: expected a pair of tensors, got one of {type(s).__name__}")
        return hx[0], hx[1]

    def _run(
        self,
        x: Tensor,
        hx: Any,
        weights: list[Tensor],
        lengths: Tensor | None,
        resets: Tensor | None,
        batch_sizes: Tensor | None,
        batch: Any,
    ) -> tuple[Tensor, Tensor, Any]:
        """Check what all forms of a call have in common, and run the operator."""
        like = weights[0]
        precision, x, h, c = self._converted(x, hx, like)
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input: expected {self.input_size} features, got shape {tuple(x.shape)}"
            )
        parts = self.num_layers * (2 if self.bidirectional else 1)
        size = self.proj_size or self.hidden_size
        for name, s, width in (("h", h, size), ("c", c, self.hidden_size)):
            if s is not None and s.shape != (parts, batch, width):
                raise RuntimeError(
                    f"hx: expected {name} of shape {(parts, batch, width)}, got {tuple(s.shape)}"
                )
        self._check_devices(x, h, c, lengths, resets, like)
        rate = self.dropout if self.training and self.num_layers > 1 else 0.0
        key = torch.randint(2**62, (1,), dtype=torch.int64) if rate else None
        training = torch.is_grad_enabled() and (
            x.requires_grad
            or any(w.requires_grad for w in weights)
            or (h is not None and h.requires_grad)
            or (c is not None and c.requires_grad)
        )
        options = Options(
            self._cell,
            self.num_layers,
            self.bias,
            self.bidirectional,
            self.batch_first,
            rate,
            precision,
        )
        inputs = Inputs(x, h, c, weights, lengths, resets, batch_sizes, key, batch)
        return recurrent(options, inputs, training)

    def _converted(
        self, x: Tensor, hx: Any, like: Tensor
    ) -> tuple[str, Tensor, Tensor | None, Tensor | None]:
        """Return what the products multiply, and the inputs in the dtype of the parameters."""
        h, c = self._split(hx)
        dtype, device = like.dtype, x.device.type
        if dtype not in DTYPES:
            raise ValueError(
                f"{type(self).__name__}: expected parameters of float32, float64, bfloat16 or "
                f"float16, got {dtype}"
            )
        precision = "float64" if dtype == torch.float64 else "float32"
        if dtype == torch.bfloat16:
            precision = "bfloat16"
        casts = device in _AUTOCAST and torch.is_autocast_enabled(device)
        # As PyTorch does, of floating-point numbers alone.
        if casts and all(t is None or t.is_floating_point() for t in (x, h, c)):
            if dtype == torch.float32 and torch.get_autocast_dtype(device) == torch.bfloat16:
                precision = "bfloat16"
            x = x if x.dtype == dtype else x.to(dtype)
            h = h if h is None or h.dtype == dtype else h.to(dtype)
            c = c if c is None or c.dtype == dtype else c.to(dtype)
            return precision, x, h, c
        for name, t in (("input", x), ("hx", h), ("hx", c)):
            if t is not None and t.dtype != dtype:
                raise ValueError(
                    f"{name}: expected {dtype} as the parameters have, got {t.dtype}; use "
                    f"{name}.to({dtype}), or the module's .to({t.dtype})"
                )
        return precision, x, h, c

    def _check_devices(
        self,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        like: Tensor,
    ) -> None:
        device = x.device
        if device != like.device:
            raise RuntimeError(
                f"input: expected a tensor on {like.device}, where the layer is, got one on "
                f"{device}"
            )
        for name, t in (("hx", h), ("hx", c), ("lengths", lengths), ("resets", resets)):
            if t is not None and t.device != device:
                raise RuntimeError(
                    f"{name}: expected a tensor on {device}, where the input is, got one on "
                    f"{t.device}"
                )
        if device.type not in ("cpu", "meta"):
            require_device(device)

    def _packed(
        self, input: PackedSequence, hx: Any, lengths: Any, resets: Any, weights: list[Tensor]
    ) -> tuple[Any, Any]:
        """Run the sequences of a ``PackedSequence``."""
        x, sizes, there, back = input
        if lengths is not None:
            raise ValueError("lengths: expected None with a PackedSequence, which has them")
        if isinstance(resets, PackedSequence):
            _check_packing(resets, input)
            resets = resets.data
        if resets is not None:
            _check_resets(resets, (x.shape[0],))
        if x.dim() != 2:
            raise RuntimeError(f"input: expected data of 2 axes, got shape {tuple(x.shape)}")
        h, c = self._split(hx)
        if there is not None:
            for s in (h, c):
                if s is not None and (s.dim() != 3 or s.shape[1] != there.shape[0]):
                    raise RuntimeError(
                        f"hx: expected states of {there.shape[0]} sequences, got shape "
                        f"{tuple(s.shape)}"
                    )
            h, c = (None if s is None else s.index_select(1, there) for s in (h, c))
        hx = None if h is None and c is None else (h, c) if self._has_cells else h
        batch = int(sizes[0]) if there is None else there.shape[0]  # the latter breaks no graph
        y, h, c = self._run(x, hx, weights, None, resets, sizes, batch)
        if back is not None:
            h = h.index_select(1, back)
            c = c.index_select(1, back) if self._has_cells else None
        return PackedSequence(y, sizes, there, back), ((h, c) if self._has_cells else h)


def _tensor_of(lengths: Any, device: torch.device) -> Tensor:
    """Return lengths as a tensor; what is none becomes one on the device of the input."""
    if isinstance(lengths, torch.Tensor):
        return lengths
    try:
        return torch.as_tensor(lengths, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"lengths: expected whole numbers, got {_check.quoted(lengths)}") from None


def _whole_lengths(lengths: Any, batch: Any, device: torch.device) -> Tensor:
    """Return lengths as int64."""
    t = _tensor_of(lengths, device)
    if t.dtype not in _WHOLE:
        raise TypeError(f"lengths: expected whole numbers, got {t.dtype}")
    if t.shape != (batch,):
        raise RuntimeError(f"lengths: expected shape (B,) = ({batch},), got {tuple(t.shape)}")
    return t.to(torch.int64)


def _check_packing(resets: PackedSequence, input: PackedSequence) -> None:
    """Raise unless flags are packed as the input: those of other rows would be read."""
    if torch.compiler.is_compiling():  # to compare numbers would end the graph
        return
    sizes, (there, wanted) = resets.batch_sizes, (resets.sorted_indices, input.sorted_indices)
    same = torch.equal(sizes, input.batch_sizes)
    if there is not None or wanted is not None:
        identity = torch.arange(int(input.batch_sizes[0]))
        a, b = (identity if s is None else s.cpu() for s in (there, wanted))
        same = same and torch.equal(a, b)
    if not same:
        raise ValueError(
            "resets: expected a PackedSequence of the batch_sizes and sorted_indices of the input, "
            f"got one of {tuple(sizes.shape)} steps; pack both by the same lengths"
        )


def _check_flags(resets: Any) -> None:
    if not isinstance(resets, torch.Tensor) or resets.dtype != torch.bool:
        got = resets.dtype if isinstance(resets, torch.Tensor) else type(resets).__name__
        raise TypeError(f"resets: expected a tensor of bool, got {got}")


def _check_resets(resets: Any, shape: tuple[Any, ...]) -> None:
    _check_flags(resets)
    if resets.shape != shape:
        raise RuntimeError(f"resets: expected shape {shape}, got {tuple(resets.shape)}")


class LSTM(Recurrent):
    """``torch.nn.LSTM`` on the kernels of ostinato, with lengths, resets and layer norm.

    Constructor, attributes, ``state_dict``, inputs and outputs are those of ``torch.nn.LSTM``; with
    the same seed of PyTorch the initial values are the same too. The parameters are read at every
    call.

    >>> import torch
    >>> from ostinato.interop import torch as ot
    >>> lstm = ot.LSTM(3, 5, num_layers=2, bidirectional=True)
    >>> y, (h, c) = lstm(torch.zeros(7, 2, 3), lengths=[7, 4])
    >>> y.shape, h.shape, c.shape
    (torch.Size([7, 2, 10]), torch.Size([4, 2, 5]), torch.Size([4, 2, 5]))
    >>> lstm.load_state_dict(torch.nn.LSTM(3, 5, 2, bidirectional=True).state_dict())
    <All keys matched successfully>

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether inputs and outputs are ``[B,T,*]`` in place of ``[T,B,*]``.
        dropout: rate in [0, 1) of the dropout between layers, which acts in training; its random
            numbers follow ``torch.manual_seed`` but are not those of ``torch.nn``.
        bidirectional: whether a second direction runs from the last step to the first.
        proj_size: P, the width to which h is projected; 0: it is not.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.
        layer_norm: whether W x, R h and c' are normed, see `ostinato.nn.LSTM`; adds
            the parameters ``weight_ln_ih_l{k}``, ``weight_ln_hh_l{k}``, ``weight_ln_c_l{k}`` and
            ``bias_ln_c_l{k}``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or rate out of range, or layer_norm beside proj_size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        if not _check.flag("layer_norm", layer_norm):
            return
        if proj_size:
            raise ValueError(f"proj_size: expected 0 with layer_norm=True, got {proj_size}")
        self.layer_norm = True
        self.prepare()
        rows = {name: (n * hidden_size,) for name, n, _ in UNIT_NAMES[self._cell]}
        for full in self._names:
            name = full.rpartition("_l")[0]
            if name in rows:
                setattr(
                    self,
                    full,
                    torch.nn.Parameter(torch.empty(rows[name], device=device, dtype=dtype)),
                )
        self._reset_norms()

    def reset_parameters(self) -> None:
        """Draw all parameters anew; gains become ones and shifts zeros.

        >>> from ostinato.interop import torch as ot
        >>> ot.LSTM(3, 5, layer_norm=True).reset_parameters()
        """
        super().reset_parameters()
        self._reset_norms()

    def _reset_norms(self) -> None:
        for name, p in self.named_parameters(recurse=False):
            if "_ln_" in name:
                torch.nn.init.constant_(p, float(name.startswith("weight")))

    def extra_repr(self) -> str:
        """Return the arguments as ``repr`` shows them.

        >>> from ostinato.interop import torch as ot
        >>> ot.LSTM(3, 5, layer_norm=True)
        LSTM(3, 5, layer_norm=True)

        Returns:
            The text.
        """
        return str(super().extra_repr()) + (", layer_norm=True" if self.layer_norm else "")


class GRU(Recurrent):
    """``torch.nn.GRU`` on the kernels of ostinato, with lengths and resets.

    Constructor, attributes, ``state_dict``, inputs and outputs are those of ``torch.nn.GRU``; with
    the same seed of PyTorch the initial values are the same too.

    >>> import torch
    >>> from ostinato.interop import torch as ot
    >>> y, h = ot.GRU(3, 5, batch_first=True)(torch.zeros(2, 7, 3))
    >>> y.shape, h.shape
    (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether inputs and outputs are ``[B,T,*]`` in place of ``[T,B,*]``.
        dropout: rate in [0, 1) of the dropout between layers, which acts in training; its random
            numbers follow ``torch.manual_seed`` but are not those of ``torch.nn``.
        bidirectional: whether a second direction runs from the last step to the first.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or rate out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )


class RNN(Recurrent):
    """``torch.nn.RNN`` on the kernels of ostinato, with lengths and resets.

    Constructor, attributes, ``state_dict``, inputs and outputs are those of ``torch.nn.RNN``; with
    the same seed of PyTorch the initial values are the same too.

    >>> import torch
    >>> from ostinato.interop import torch as ot
    >>> y, h = ot.RNN(3, 5, nonlinearity="relu")(torch.zeros(7, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 5]), torch.Size([1, 5]))

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether inputs and outputs are ``[B,T,*]`` in place of ``[T,B,*]``.
        dropout: rate in [0, 1) of the dropout between layers, which acts in training; its random
            numbers follow ``torch.manual_seed`` but are not those of ``torch.nn``.
        bidirectional: whether a second direction runs from the last step to the first.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or rate out of range, or another nonlinearity.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity


readable(globals())
