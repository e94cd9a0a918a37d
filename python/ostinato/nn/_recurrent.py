"""Define RNN, LSTM and GRU: the options of each, and the cell that they choose."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _check
from .._annotations import readable
from .._check import Seed
from .._functions import (
    Chosen,
    Function,
    LstmOptions,
    bound,
    function,
    gru_cell,
    lstm_cell,
    rnn_cell,
    said,
)
from ._stack import Recurrent


class RNN(Recurrent):
    """Elman network, ``h' = phi(W x + b_ih + R h + b_hh)``, in layers and directions.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> rnn = ost.nn.RNN(3, 5, bidirectional=True, rng=0)
    >>> y, h = rnn(np.zeros((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 10), (2, 2, 5))

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack; each reads the outputs of the one below.
        nonlinearity: phi, by its name or as a tuple with its parameters, such as ("elu", 1.0);
            `ostinato.functional` lists them. "tanh" and "relu" have kernels of their own, the
            others a general one.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``. States are
            ``[L*D,B,H]`` either way, with D = 2 directions if bidirectional, else 1.
        dropout: rate in [0, 1) of the dropout between layers, which acts in `vjp` only.
        bidirectional: whether a second direction runs from the last step to the first; its outputs
            are the second half of y.
        clip: bound of what the functions are given, as in ONNX: beyond [-clip, clip] an input
            counts as the bound, and its gradient is zero. None: no bound.
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, a rate outside [0, 1), or a precision, function or clip that
            there is not.

    Source: Elman (1990), "Finding structure in time".
    """

    clip: float | None = None
    _functional = ("nonlinearity", "clip")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Function = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        clip: float | None = None,
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.nonlinearity = function("nonlinearity", nonlinearity)
        self.clip = bound(clip)
        super().__init__(
            rnn_cell(self.nonlinearity, self.clip),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            precision,
            learned_state,
            dtype,
            rng,
        )

    def _functions(self) -> str:
        return said(nonlinearity=self.nonlinearity, clip=self.clip)

    def _extra_repr(self) -> str:
        return self._functions()


class LSTM(Recurrent):
    """Long short-term memory, gates i f g o, in layers and directions. The state is ``(h, c)``.

    ``c' = f c + i g``, ``h' = o tanh(c')`` with ``i, f, o = sigmoid(a)``, ``g = tanh(a)`` and
    ``a = W x + b_ih + R h + b_hh``; peepholes add ``p_i c`` to a_i, ``p_f c`` to a_f and ``p_o c'``
    to a_o. Parameters have PyTorch's names and shapes: ``weight_ih_l{k} [4*H,I]`` (``[4*H,D*H]``
    above the first layer), ``weight_hh_l{k} [4*H,H]``, ``bias_ih_l{k}`` and ``bias_hh_l{k} [4*H]``,
    with the ending ``_reverse`` for the second direction, and ``weight_peephole_l{k} [3,H]``. With
    ``proj_size=P`` h is projected, ``h' = W_hr (o tanh(c'))``: ``weight_hr_l{k} [P,H]``,
    ``weight_hh_l{k} [4*H,P]``, and h and y are P wide. With ``layer_norm=True``
    ``a = LN(W x) gain_ih + b_ih + LN(R h) gain_hh + b_hh`` and
    ``h' = o tanh(LN(c') gain_c + shift_c)``. LN makes a row (of 4H, 4H and H numbers) zero mean and
    unit variance: ``(a - mean) / sqrt(variance + 1e-5)``. The gains ``weight_ln_ih_l{k} [4*H]``,
    ``weight_ln_hh_l{k} [4*H]`` and ``weight_ln_c_l{k} [H]`` are ones at first, the shift
    ``bias_ln_c_l{k} [H]`` zeros.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> lstm = ost.nn.LSTM(3, 5, num_layers=2, rng=0)
    >>> x = np.zeros((7, 2, 3), np.float32)  # [T,B,I]
    >>> y, (h, c) = lstm(x)
    >>> y.shape, h.shape, c.shape
    ((7, 2, 5), (2, 2, 5), (2, 2, 5))
    >>> y, (h, c) = ost.nn.LSTM(3, 5, proj_size=2, rng=0)(x)
    >>> y.shape, h.shape, c.shape
    ((7, 2, 2), (1, 2, 2), (1, 2, 5))
    >>> (y, (h, c)), pullback = lstm.vjp(x, lengths=[7, 4])
    >>> dx, dstate = pullback(np.ones_like(y))
    >>> dx.shape, bool((dx[4:, 1] == 0).all())
    ((7, 2, 3), True)

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack; each reads the outputs of the one below.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``. States are
            ``[L*D,B,H]`` either way, with D = 2 directions if bidirectional, else 1.
        dropout: rate in [0, 1) of the dropout between layers, which acts in `vjp` only.
        bidirectional: whether a second direction runs from the last step to the first; its outputs
            are the second half of y.
        activation: of the candidate g, and of c' unless output_activation is given, by its
            name or as a tuple with its parameters, such as ("elu", 1.0); see `ostinato.functional`
            for the list.
            With others than the usual functions, with a clip or coupled gates, a general kernel
            runs, in float32 or float64.
        recurrent_activation: of the gates i f o, one of the same.
        output_activation: of c', which is not clipped; None: as activation.
        clip: bound of what the functions are given, as in ONNX: beyond [-clip, clip] an input
            counts as the bound, and its gradient is zero. None: no bound.
        coupled_gates: whether ``f = 1 - i``, as ONNX' input_forget: weights and biases of the
            forget gate are parameters still, but are not read.
        peephole: whether c feeds the gates i f o, by parameters ``weight_peephole_l{k} [3,H]``.
        proj_size: P, as in PyTorch: h and y are projected to that width, and c stays H wide;
            without peepholes. 0: they are not projected.
        layer_norm: whether W x, R h and c' are normed, as in Haste's LayerNormLSTM; without
            peepholes and projection.
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, a rate outside [0, 1), or a precision that there is not.

    Source: Hochreiter, Schmidhuber (1997); the forget gate: Gers, Schmidhuber, Cummins (2000);
    peepholes: Gers, Schraudolph, Schmidhuber (2002); the projection: Sak, Senior, Beaufays (2014);
    layer norm: Ba, Kiros, Hinton (2016).
    """

    activation: Function = "tanh"
    recurrent_activation: Function = "sigmoid"
    output_activation: Function = "tanh"
    clip: float | None = None
    coupled_gates = False
    _functional = LstmOptions._fields

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: Function = "tanh",
        recurrent_activation: Function = "sigmoid",
        output_activation: Function | None = None,
        clip: float | None = None,
        coupled_gates: bool = False,
        peephole: bool = False,
        proj_size: int = 0,
        layer_norm: bool = False,
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.peephole = _check.flag("peephole", peephole)
        options = LstmOptions.checked(
            activation, recurrent_activation, output_activation, clip, coupled_gates
        )
        self.activation, self.recurrent_activation = options[:2]
        self.output_activation, self.clip, self.coupled_gates = options[2:]
        super().__init__(
            _lstm(
                options,
                self.peephole,
                _check.positive("proj_size", proj_size, 0),
                _check.flag("layer_norm", layer_norm),
            ),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            precision,
            learned_state,
            dtype,
            rng,
            proj_size,
        )

    def _functions(self) -> str:
        given = {
            "activation": self.activation,
            "recurrent_activation": self.recurrent_activation,
            "clip": self.clip,
            "coupled_gates": self.coupled_gates,
        }
        output = ""
        if self.output_activation != self.activation:
            output = f", output_activation={self.output_activation!r}"
        return said(**given) + output

    def _extra_repr(self) -> str:
        return (
            self._functions()
            + (", peephole=True" if self.peephole else "")
            + (f", proj_size={self.proj_size}" if self.proj_size else "")
            + (", layer_norm=True" if self.layer_norm else "")
        )

    def _unit_weights(self) -> list[tuple[str, int, bool]]:
        """Return the weights of one number a unit; those of peepholes only where there are any."""
        return super()._unit_weights() if self.peephole or self.layer_norm else []

    @property
    def layer_norm(self) -> bool:
        """Whether W x, R h and c' are normed."""
        return self._cell == "lstm_layer_norm"


def _lstm(options: LstmOptions, peephole: bool, proj_size: int, layer_norm: bool) -> Chosen:
    """Return the cell of an LSTM, or say by name which options it cannot have together."""
    if peephole and proj_size:
        raise ValueError(
            f"proj_size: expected 0 with peephole=True, got {proj_size!r}; no cell has both"
        )
    if layer_norm and (peephole or proj_size):
        name, wanted, got = ("proj_size", "0", repr(proj_size))
        if peephole:
            name, wanted, got = ("peephole", "False", "True")
        raise ValueError(
            f"{name}: expected {wanted} with layer_norm=True, got {got}; no cell has both"
        )
    if layer_norm:
        return lstm_cell(options, "lstm_layer_norm", "with layer_norm=True")
    if proj_size:
        return lstm_cell(options, "lstm_projected", f"with proj_size={proj_size!r}")
    return lstm_cell(options, "lstm_peephole" if peephole else "lstm")


class GRU(Recurrent):
    """Gated recurrent unit, gates r z n, in layers and directions: ``h' = (1 - z) n + z h``.

    ``reset_after=True``: ``n = tanh(W_n x + b_in + r (R_n h + b_hn))``; ``reset_after=False``:
    ``n = tanh(W_n x + b_in + R_n (r h) + b_hn)``. Neither can express the other.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> gru = ost.nn.GRU(3, 5, batch_first=True, rng=0)
    >>> y, h = gru(np.zeros((2, 7, 3), np.float32))
    >>> y.shape, h.shape
    ((2, 7, 5), (1, 2, 5))

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack; each reads the outputs of the one below.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``. States are
            ``[L*D,B,H]`` either way, with D = 2 directions if bidirectional, else 1.
        dropout: rate in [0, 1) of the dropout between layers, which acts in `vjp` only.
        bidirectional: whether a second direction runs from the last step to the first; its outputs
            are the second half of y.
        reset_after: whether the reset gate acts on the recurrent product (PyTorch, cuDNN) or on the
            state before it (the paper, ONNX' default).
        activation: of the candidate n, by its name or as a tuple with its parameters, such as
            ("elu", 1.0); see `ostinato.functional` for the list.
            With others than the usual functions, or with a clip, a general kernel runs, in float32
            or float64.
        recurrent_activation: of the gates r z, one of the same.
        clip: bound of what the functions are given, as in ONNX: beyond [-clip, clip] an input
            counts as the bound, and its gradient is zero. None: no bound.
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, a rate outside [0, 1), or a precision, function or clip that
            there is not.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder".
    """

    activation: Function = "tanh"
    recurrent_activation: Function = "sigmoid"
    clip: float | None = None
    _functional = ("reset_after", "activation", "recurrent_activation", "clip")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        activation: Function = "tanh",
        recurrent_activation: Function = "sigmoid",
        clip: float | None = None,
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.reset_after = _check.flag("reset_after", reset_after)
        self.activation = function("activation", activation)
        self.recurrent_activation = function("recurrent_activation", recurrent_activation)
        self.clip = bound(clip)
        super().__init__(
            gru_cell(self.reset_after, self.activation, self.recurrent_activation, self.clip),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            precision,
            learned_state,
            dtype,
            rng,
        )

    def _extra_repr(self) -> str:
        return ("" if self.reset_after else ", reset_after=False") + self._functions()

    def _functions(self) -> str:
        return said(
            activation=self.activation,
            recurrent_activation=self.recurrent_activation,
            clip=self.clip,
        )


readable(globals())
