"""Define RNN, LSTM and GRU: parameters and the description of a stack; native code runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _core, _device, _native, _ragged
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._ragged import Ragged, as_given, rows_like, unwrapped
from .._segments import Segmented, parse
from . import init
from ._layer import Pullback
from ._quantization import ScaledInputs
from ._stream import Stream
from ._table import Lookup, TableGradients

State = Any  # h, or (h, c) for an LSTM
Sequences = Any  # an array, a Ragged, or a list of arrays

# By cell: weights of one number a unit, as (name, rows, whether they are flat).
UNIT_WEIGHTS = _core.unit_weights()


class _Call(NamedTuple):
    """Checked arguments of one forward pass."""

    x: Array
    h: Array | None
    c: Array | None
    options: dict[
        str, Any
    ]  # of the native call: lengths, resets, mask, repeat, restart_h, restart_c
    single: bool  # x came without a batch axis
    learned: bool  # h and c are the layer's own
    ragged: Ragged | None = None  # what x came as; then x is its rows
    listed: bool = False  # it came as a list
    table: Array | None = None  # x holds the numbers of its rows

    @property
    def sizes(self) -> tuple[int, int]:
        """T and B, with x time-major."""
        if self.ragged is not None:
            return self.options["span"], len(self.ragged)
        return self.x.shape[0], self.x.shape[1]

    def shaped(self, rows: Array) -> Any:
        """Return an array of flat rows as x came."""
        return as_given(rows, self.ragged, self.listed)


class _FinalState:
    """outputs="last": the final state h of every direction of the last layer, ``y [B,D*H]``."""

    def __init__(self, layer: Recurrent, h_n: Array) -> None:
        self.layer, self.batch = layer, h_n.shape[1]
        self.top = (layer.num_layers - 1) * layer._directions
        self.y: Array = np.concatenate(
            list(h_n[self.top :]), 1
        )  # a copy: the state is the caller's

    def spread(self, d: Array | None, dh: Array | None) -> tuple[Array | None, Array | None]:
        """Return dy of all steps and dh_n, from the gradient of y."""
        if d is None:
            return None, dh
        d = self._checked(d)
        size = self.layer._output_size
        out = self._states_like(d) if dh is None else dh.copy()
        for k in range(self.layer._directions):
            out[self.top + k] += d[:, k * size : (k + 1) * size]
        return None, out

    def _checked(self, d: Array) -> Array:
        d = _check.array("dy", d)
        if d.shape != self.y.shape or d.dtype != self.y.dtype:
            raise ValueError(
                f"dy: expected shape {self.y.shape} of {self.y.dtype}, got {d.shape} of {d.dtype}"
            )
        return d

    def _states_like(self, d: Array) -> Array:
        return np.zeros(self.layer._state_shape(self.batch), d.dtype, like=d)


class _LastStep(_FinalState):
    """outputs="last_step" with two directions: the output at the last real step of each row.

    Its second half is what the reverse direction gave there, after that one step.
    """

    def __init__(
        self, layer: Recurrent, call: _Call, shape: tuple[int, int, int], y: Array, h_n: Array
    ) -> None:
        super().__init__(layer, h_n)
        _, steps, width = shape
        self.call, self.shape = call, shape
        ends = self._ends(steps)
        self.rows = np.flatnonzero(ends)  # a row without a step has the state that it was given
        self.at = ends[self.rows] - 1
        self.y[self.rows, width // 2 :] = y[self._where()][:, width // 2 :]

    def _ends(self, steps: int) -> Array:
        """Return the last step that each row takes part in, counted from 1; 0 if there is none."""
        lengths, mask = self.call.options["lengths"], self.call.options["mask"]
        if self.call.ragged is not None:
            clock = _ragged.step_of(lengths) + 1
            return _ragged.most(clock if mask is None else clock * _device.host(mask), lengths)
        on = _check.taking_part(steps, self.batch, lengths, mask)
        ends: Array = (np.arange(1, steps + 1)[:, None] * on).max(0, initial=0)
        return ends

    def _where(self) -> Any:
        if self.call.ragged is not None:
            return self.call.ragged.offsets[self.rows] + self.at
        return (self.rows, self.at) if self.layer.batch_first else (self.at, self.rows)

    def spread(self, d: Array | None, dh: Array | None) -> tuple[Array | None, Array | None]:
        """Return dy of all steps and dh_n, from the gradient of y."""
        if d is None:
            return None, dh
        d = self._checked(d)
        _, steps, width = self.shape
        size, back = self.layer._output_size, d[:, self.layer._output_size :]
        out = self._states_like(d) if dh is None else dh.copy()
        out[self.top] += d[:, :size]
        shape: tuple[int, ...] = self.shape
        if self.call.ragged is not None:
            shape = (len(self.call.ragged.rows), width)
        elif not self.layer.batch_first:
            shape = (steps, self.batch, width)
        dy = np.zeros(shape, d.dtype, like=d)
        dy[..., size:][self._where()] = back[self.rows]
        alone = np.setdiff1d(np.arange(self.batch), self.rows)
        out[self.top + 1, alone] += back[alone]
        return dy, out


OUTPUTS = ("all", "last", "last_step")


def _last(
    outputs: str,
    layer: Recurrent,
    call: _Call,
    shape: tuple[int, int, int],
    y: Array | None,
    h_n: Array,
) -> _FinalState | None:
    """Return what stands for the outputs of all steps, or None for ``outputs`` "all" and "none"."""
    if outputs == "last_step" and layer._directions == 2:
        assert y is not None
        return _LastStep(layer, call, shape, y, h_n)
    return _FinalState(layer, h_n) if outputs in ("last", "last_step") else None


class _StreamState(NamedTuple):
    """The arrays of a stream, and what they begin with: the parameters as they were."""

    h: Array
    c: Array | None
    starts: list[Any]


class RecurrentPullback(Pullback):
    """Compute the gradients of one pass of a recurrent layer, once, and show what happened in it.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> lstm = ost.nn.LSTM(3, 5, rng=0)
    >>> (y, state), pullback = lstm.vjp(np.zeros((7, 2, 3), np.float32))
    >>> pullback.cells.shape, pullback.gates["f"].shape
    ((1, 7, 2, 5), (1, 7, 2, 5))
    >>> dx, dstate = pullback(dcells=np.ones((1, 7, 2, 5), np.float32))

    Args:
        layer: the layer of the pass.
        backward: computes the gradients.
        tape: what the native forward pass saved; None with segments.
        single: whether x came without a batch axis.
    """

    def __init__(
        self, layer: Recurrent, backward: Callable[..., Any], tape: Any, single: bool
    ) -> None:
        super().__init__(layer, backward)
        self._cell, self._tape, self._single = layer._cell, tape, single
        self._batch_axis = 1 if layer.batch_first else 2

    @property
    def cells(self) -> Array:
        """c after every step of an LSTM, ``[L*D,T,B,H]`` (``[L*D,B,T,H]`` if batch_first).

        It is zero where a row takes no part. TypeError once the pullback has been used, or after a
        pass with segments.
        """
        return self._shaped(self._known().cells())

    @property
    def gates(self) -> dict[str, Array]:
        """The gates of every step by name, each shaped as `cells` and read-only.

        i f g o of an LSTM, r z n of a GRU, none of an RNN.
        """
        return {
            name: self._shaped(a) for name, a in _check.gates(self._cell, self._known()).items()
        }

    def _known(self) -> Any:
        if self._tape is None:
            raise TypeError(
                "cells, gates: expected a pullback that has not been used, of a pass without "
                "memory_limit"
            )
        return self._tape

    def _shaped(self, a: Array) -> Array:
        return a.squeeze(self._batch_axis) if self._single else a

    def __call__(
        self, dy: Any = None, dstate: Any = None, *, dcells: Array | None = None, **options: Any
    ) -> Any:
        """Add the gradients of the parameters to the layer's, and return those of the inputs.

        Args:
            dy: gradient of y, of the kind of y; None: zeros. With segments and one direction it may
                be a function, see ``memory_limit`` of `Recurrent.vjp`.
            dstate: gradient of the last state, shaped as it is; None: zeros.
            dcells: gradient of `cells`, shaped as they are; None: zeros.
            **options: ``grads`` and ``need_dx`` of `Pullback`.

        Returns:
            ``dx, dstate``: the gradients of x (None without need_dx) and of the state before the
            first step.

        Raises:
            RuntimeError: the pullback has been used, or the parameters have changed since the pass.
            TypeError: an argument has the wrong type; the pullback can be called again.
            ValueError: an argument has the wrong shape or dtype; the pullback can be called again.
        """
        out = super().__call__(dy, dstate, dcells=dcells, **options)
        self._tape = None  # the memory goes with the pass
        return out


class Recurrent(ScaledInputs):
    """Base of RNN, LSTM and GRU: a stack of recurrent layers in one or two directions.

    It is not made itself: use `RNN`, `LSTM` or `GRU`.

    >>> import ostinato as ost
    >>> isinstance(ost.nn.GRU(3, 5), ost.nn.Recurrent)
    True

    Args:
        cell: "rnn_tanh", "rnn_relu", "lstm", "lstm_peephole", "gru" or "gru_reset_before".
        input_size: I, features of an input.
        hidden_size: H, units of a layer.
        num_layers: L, layers of the stack; each reads the outputs of the one below.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``. States are
            ``[L*D,B,H]`` either way, with D = 2 directions if bidirectional, else 1.
        dropout: rate in [0, 1) of the dropout between layers, which acts in `vjp` only.
        bidirectional: whether a second direction runs from the last step to the first; its outputs
            are the second half of y.
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.
        proj_size: P, the width to which h is projected; 0: it is not.
    """

    stateful = True
    takes_lengths = True
    _gates: ClassVar[int]
    _has_cells: ClassVar[bool] = False
    # Called after a backward pass with the layer, its tape and the norms by step.
    _watch: Callable[..., None] | None = None

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        precision: str | None,
        learned_state: bool,
        dtype: npt.DTypeLike,
        rng: Seed,
        proj_size: int = 0,
    ) -> None:
        super().__init__(dtype=dtype)
        self.precision = precision
        self.input_size = _check.positive("input_size", input_size)
        self.hidden_size = _check.positive("hidden_size", hidden_size)
        self.proj_size = _check.positive("proj_size", proj_size, 0)
        self.num_layers = _check.positive("num_layers", num_layers)
        _check.refuse_more_than_file("num_layers", self.num_layers)
        self.bias, self.batch_first, self.bidirectional = (
            bool(bias),
            bool(batch_first),
            bool(bidirectional),
        )
        self.learned_state = bool(learned_state)
        self.dropout = _check.fraction("dropout", dropout)
        if dropout and num_layers == 1:
            warnings.warn("dropout: it acts between layers, and there is only one", stacklevel=3)
        self._cell = cell
        self._rng = _check.generator(rng)
        bound = 1 / np.sqrt(
            self.hidden_size
        )  # PyTorch's default: everything from U(-1/sqrt(H), 1/sqrt(H))
        values = {
            n: _check.drawn(
                n, s, self._dtype, lambda shape: self._rng.uniform(-bound, bound, shape)
            )
            if "_ln_" not in n
            else np.full(s, float(n.startswith("weight")), self._dtype)  # a gain of 1, no shift
            for n, s in self._shapes()
        }
        for n in self._state_names():
            values[n] = np.zeros(
                self.hidden_size if n.startswith("initial_c") else self._output_size, self._dtype
            )
        self._declare(values, no_decay=tuple(n for n in values if "peephole" in n or "_ln_" in n))

    @property
    def precision(self) -> str:
        """What the products multiply; parameters, states and gradients keep their dtype.

        It may be set at any time, to one of:

        - "float32" or "float64", the dtype: exact up to rounding. On a GPU, where many
          multiprocessors share the recurrent weights, a float32 is multiplied as two 16-bit words,
          of float16 forward and bfloat16 backward (errors of outputs below 1e-5, of gradients below
          2e-5).
        - "exact": every product in float32, on a GPU too.
        - "bfloat16": weights and operands rounded to bfloat16, sums in float32; it trains too.
        - "int8": weights as bytes with one scale a row, operands with one scale a (t, b) row, for
          inference on the CPU. `quantization_report` measures what it costs in accuracy on given
          data, and `calibrate` gives input features scales of their own.
        - "float16": weights and operands rounded to float16, whose largest number is 65504, sums in
          float32; on a GPU. Gradients are computed in bfloat16.

        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(3, 5, rng=0)
        >>> layer.precision = "bfloat16"
        >>> layer
        GRU(3, 5, precision='bfloat16')
        """
        return self._precision

    @precision.setter
    def precision(self, value: str | None) -> None:
        self._precision = _check.precision(self._dtype, value, self.device)
        self._block.changes += 1
        self._cache = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        new = {
            "_precision": state["_dtype"].name,
            "learned_state": False,
            "proj_size": 0,
        }  # of what was pickled before there were any
        super().__setstate__({**new, **state})

    def _check_device(self, device: _device.Device | None) -> None:
        name = "cpu" if device is None else device.name
        _check.precision(self._dtype, self._precision, name)
        if device is not None and self.proj_size:
            raise ValueError(
                f"proj_size: expected 0 on {name}, whose kernels do not project h yet, "
                f"got {self.proj_size}; keep the layer on the CPU"
            )
        if device is not None and self._cell == "lstm_layer_norm":
            raise ValueError(
                f"layer_norm: expected False on {name}, whose kernels have no layer norm yet, "
                "got True; keep the layer on the CPU"
            )

    @property
    def _output_size(self) -> int:
        """Return P, the width of h: H, unless h is projected."""
        return self.proj_size or self.hidden_size

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[str]:
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        rows, h, size = self._gates * self.hidden_size, self.hidden_size, self._output_size
        out: list[tuple[str, tuple[int, ...]]] = []
        for k, end in enumerate(self._suffixes()):
            width = self.input_size if k < self._directions else self._directions * size
            out += [(f"weight_ih{end}", (rows, width)), (f"weight_hh{end}", (rows, size))]
            if self.bias:
                out += [(f"bias_ih{end}", (rows,)), (f"bias_hh{end}", (rows,))]
            out += [
                (name + end, (n * h,) if flat else (n, h))
                for name, n, flat in UNIT_WEIGHTS[self._cell]
            ]
            if self.proj_size:
                out += [(f"weight_hr{end}", (size, h))]
        return out

    def _state_names(self) -> list[str]:
        """Return the names of the learned initial states: h of all layers, then c."""
        kinds = ("h", "c")[: 1 + self._has_cells] if self.learned_state else ()
        return [f"initial_{kind}{end}" for kind in kinds for end in self._suffixes()]

    def _initial(self, arrays: Any) -> list[Any]:
        """Return the learned initial states among parameters or gradients.

        They are ``[h [L*D,H], c [L*D,H]]``, None where there is none.
        """
        names, n = self._state_names(), len(self._suffixes())
        return [[arrays.get(name) for name in names[k : k + n]] or None for k in (0, n)]

    def _parts(self, arrays: Any) -> list[list[Array | None]]:
        names: tuple[str, ...] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        own = tuple(name for name, *_ in UNIT_WEIGHTS[self._cell])
        names += own or ("weight_peephole",)  # a place that the kernels count on
        names += ("weight_hr",) if self.proj_size else ()
        return [[arrays.get(n + end) for n in names] for end in self._suffixes()]

    def initialize(
        self,
        input: str | None = None,
        recurrent: str | None = None,
        bias: str | None = None,
        *,
        forget_bias: float | None = None,
        chrono: int | None = None,
        rng: Seed = None,
    ) -> Recurrent:
        """Draw the parameters anew, gate by gate; return the layer.

        >>> import ostinato as ost
        >>> layer = ost.nn.LSTM(3, 8, rng=0)
        >>> layer = layer.initialize("glorot", "orthogonal", "zeros", forget_bias=1.0)
        >>> p = layer.parameters()
        >>> p["bias_hh_l0"][8:16].tolist() + p["bias_ih_l0"][8:9].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]

        Args:
            input: how to draw ``weight_ih``: "glorot", "orthogonal", "identity", "uniform"
                (PyTorch's default) or "zeros"; see `ostinato.nn.init`. None: keep them.
            recurrent: how to draw ``weight_hh`` and weight_hr, by the same names; "identity" with
                ``nonlinearity="relu"`` is the IRNN. None: keep them.
            bias: "zeros" or "uniform". None: keep them.
            forget_bias: value of the forget gate's bias of an LSTM, which goes to bias_ih; bias_hh
                becomes zero there.
            chrono: the longest memory wanted, in steps, of an LSTM or GRU: the biases of the gates
                that keep the state start at log(U(1, chrono - 1)) (Tallec, Ollivier 2018).
            rng: seed or generator; None: the layer's own.

        Returns:
            The layer itself.

        Raises:
            ValueError: an unknown name, or a bias or gate that the layer does not have.
        """
        g = self._rng if rng is None else _check.generator(rng)
        keep, write = {"lstm": (1, 0), "gru": (1, None)}.get(self._cell.split("_")[0], (None, None))
        if (forget_bias is not None or chrono is not None) and not self.bias:
            raise ValueError("forget_bias, chrono: expected a layer with biases, got bias=False")
        if forget_bias is not None and not self._has_cells:
            raise ValueError(f"forget_bias: expected an LSTM, got {type(self).__name__}")
        if chrono is not None and (keep is None or _check.positive("chrono", chrono) < 3):
            raise ValueError(
                f"chrono: expected an LSTM or GRU and at least 3 steps, got {type(self).__name__} "
                f"and {chrono}"
            )
        h = self.hidden_size
        new: dict[str, Array] = {}
        for name, shape in (s for s in self._shapes() if "_ln_" not in s[0]):
            projection = "weight_hr" in name
            kind = (
                recurrent
                if "weight_hh" in name or projection
                else input
                if "weight_ih" in name
                else bias
                if "bias" in name
                else None
            )
            if kind is not None:
                known = ("zeros", "uniform") if "bias" in name else tuple(init.BY_NAME)
                make = init.BY_NAME[
                    _check.choice("bias" if "bias" in name else "input, recurrent", kind, known)
                ]
                block = shape if projection else (h, *shape[1:])
                blocks = 1 if projection else self._gates
                new[name] = np.concatenate([make(block, g, h) for _ in range(blocks)])
        with self.write() as p:
            for name, value in new.items():
                p[name][...] = _device.like(value, p[name])
            for end in self._suffixes() if forget_bias is not None else []:
                p["bias_ih" + end][h : 2 * h], p["bias_hh" + end][h : 2 * h] = forget_bias, 0
            for end in self._suffixes() if chrono is not None else []:
                value = init.chrono(h, chrono or 0, g)
                value = _device.like(value, self._block.values)
                for gate, gate_bias in ((keep, value), (write, -value)):
                    if gate is not None:
                        (
                            p["bias_ih" + end][gate * h : (gate + 1) * h],
                            p["bias_hh" + end][gate * h : (gate + 1) * h],
                        ) = (
                            gate_bias,
                            0,
                        )
        return self

    # -- running -----------------------------------------------------------------------------------
    # --------------

    def _native_precision(self) -> str:
        return _check.native_precision(self._dtype, self._precision, self.device)

    def _pack(self, backward: bool) -> Any:
        make = _native.backend_for(self._block.values).Packed
        precision = self._native_precision()
        parts = self._scaled_weights(self._parts(self.parameters()), self._directions)
        sizes = (self.input_size, self.hidden_size, self.num_layers)
        return make(
            self._cell,
            *sizes,
            self.bidirectional,
            parts,
            backward,
            precision=precision,
            **self._projection(),
        )

    def _projection(self) -> dict[str, int]:
        """Return what the native code is told of a projection."""
        return {"proj_size": self.proj_size} if self.proj_size else {}

    def _pack_apart(self) -> list[Any]:
        """Every layer and direction packed by itself."""
        make, precision = _native.backend_for(self._block.values).Packed, self._native_precision()
        parts, d = self._parts(self.parameters()), self._directions
        inputs = [self.input_size if k < d else d * self._output_size for k in range(len(parts))]
        one = (self.hidden_size, 1, False)
        return [
            make(self._cell, n, *one, [p], True, k % d == 1, precision, **self._projection())
            for k, (n, p) in enumerate(zip(inputs, parts))
        ]

    def _arguments(self, x: Any, state: State, times: tuple[object, object, object, str]) -> _Call:
        x, table = x if isinstance(x, Lookup) else (x, None)
        x, listed = unwrapped(x)
        if isinstance(x, Ragged):
            return self._ragged_arguments(x, state, times, listed, table)
        x = _check.array("x", x, (2, 3))
        single = x.ndim == 2  # [T, I]: one sequence without a batch axis
        if single:
            x = x[None] if self.batch_first else x[:, None]
        if (
            table is None and x.shape[2] != self.input_size
        ):  # before the state's shape is held against the batch
            names = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(
                f"x: expected shape {names} = (*, *, {self.input_size}), got {x.shape}"
            )
        h, c = self._split_state("state", state)
        lengths, resets, mask, masked = times
        if single:
            h, c = (None if s is None else _check.array("state", s, 2)[:, None] for s in (h, c))
            given: Any = lengths  # of any kind: `times` checks it
            if given is not None and np.size(given) == 1:
                one = given if _check.is_array(given) else np.asarray(given)
                lengths = one.reshape(1)
            resets, mask = (
                self._with_batch(n, a, 1) for n, a in (("resets", resets), ("mask", mask))
            )
        options = _check.times(x, lengths, resets, mask, masked, self.batch_first)
        h, c, learned = self._start(h, c, options, x.shape[0 if self.batch_first else 1])
        return _Call(x, h, c, options, single, learned, table=table)

    def _ragged_arguments(
        self,
        x: Ragged,
        state: State,
        times: tuple[object, object, object, str],
        listed: bool,
        table: Array | None,
    ) -> _Call:
        if table is None and (x.rows.ndim != 2 or x.rows.shape[1] != self.input_size):
            raise ValueError(
                f"x: expected rows of shape (N, I) = (*, {self.input_size}), got {x.rows.shape}"
            )
        if times[0] is not None:
            raise ValueError(
                f"lengths: expected None with ragged sequences, got {type(times[0]).__name__}"
            )
        options = _ragged.times(x, *times[1:])
        h, c, learned = self._start(*self._split_state("state", state), options, len(x))
        return _Call(x.rows, h, c, options, False, learned, x, listed, table)

    def _start(
        self, h: Array | None, c: Array | None, options: dict[str, Any], batch: int
    ) -> tuple[Array | None, Array | None, bool]:
        """Return the states to start from; put those of a restart into the options.

        Where none are given they are the layer's own.
        """
        h, c = (
            None if s is None else self._contiguous_state(_check.array("state", s, 3), batch, cells)
            for s, cells in ((h, False), (c, True))
        )
        for name, rows in zip(("restart_h", "restart_c"), self._initial(self.parameters())):
            options[name] = None if rows is None else np.stack(rows)
        learned = self.learned_state and h is None and c is None
        if learned:
            own = options["restart_h"], options["restart_c"]
            h, c = (None if r is None else np.repeat(r[:, None], batch, 1) for r in own)
        return h, c, learned

    def _with_batch(self, name: str, a: object, ndim: int) -> Array | None:
        """Return an array of one sequence, with the batch axis that it came without."""
        if a is None:
            return None
        return np.expand_dims(_check.array(name, a, ndim), 0 if self.batch_first else 1)

    def _state_shape(self, batch: int, cells: bool = False) -> tuple[int, int, int]:
        """Return the shape of h, or of c."""
        return (
            self.num_layers * self._directions,
            batch,
            self.hidden_size if cells else self._output_size,
        )

    def _contiguous_state(self, s: Array, batch: int, cells: bool = False) -> Array:
        """Return a state as the kernels take it.

        One of another shape, which they refuse, is not copied: broadcast, it may be of any size.
        """
        return _check.contiguous(s) if s.shape == self._state_shape(batch, cells) else s

    def _check_state(self, name: str, s: Array | None, batch: int, cells: bool = False) -> None:
        shape = self._state_shape(batch, cells)
        if s is not None and (s.shape != shape or s.dtype != self._dtype):
            axis = "P" if self.proj_size and not cells else "H"
            wanted = f"shape (L*D, B, {axis}) = {shape} of {self._dtype}"
            raise ValueError(f"{name}: expected {wanted}, got {s.shape} of {s.dtype}")

    def _check_cells(self, dcells: object, steps: int, batch: int) -> None:
        parts = self.num_layers * self._directions
        shape = (parts, *((batch, steps) if self.batch_first else (steps, batch)), self.hidden_size)
        a = _check.array("dcells", dcells)
        if not self._has_cells or a.shape != shape or a.dtype != self._dtype:
            wanted = (
                f"shape {shape} of {self._dtype}"
                if self._has_cells
                else f"None for {type(self).__name__}"
            )
            raise ValueError(f"dcells: expected {wanted}, got {a.shape} of {a.dtype}")

    def _split_state(self, name: str, state: State) -> tuple[Array | None, Array | None]:
        if state is None:
            return None, None
        if not self._has_cells:
            if isinstance(state, (tuple, list)):
                raise TypeError(f"{name}: expected one array h, got a {type(state).__name__}")
            return state, None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        return state[0], state[1]

    def _join_state(self, h: Array, c: Array | None, single: bool) -> State:
        if single:
            h, c = h[:, 0], None if c is None else c[:, 0]
        return (h, c) if self._has_cells else h

    def _without_batch(self, y: Array, single: bool) -> Array:
        return y if not single else y[0] if self.batch_first else y[:, 0]

    def __call__(
        self,
        x: Sequences,
        state: State = None,
        *,
        lengths: Lengths = None,
        resets: Array | None = None,
        mask: Array | None = None,
        masked: str = "repeat",
        outputs: str = "all",
    ) -> tuple[Any, State]:
        """Run the stack for inference: nothing is saved and nothing is dropped.

        Args:
            x: ``[T,B,I]`` (``[B,T,I]`` if batch_first), or ``[T,I]`` for one sequence; or sequences
                of different lengths as a `Ragged` or a list of ``[n,I]``, which are not padded.
            state: the state before the first step: ``h [L*D,B,H]``, or ``(h, c)`` for an LSTM;
                without B for one sequence. None: the learned state, or zeros.
            lengths: ``[B]`` whole numbers from 0 to T, in any order: row b ends after
                ``lengths[b]`` steps. None: every row has T steps.
            resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True a new sequence
                begins: the state is replaced by the learned one, or zeros. The direction from the
                end starts anew behind the step, so that each piece runs as if it were alone.
            mask: bool, shaped as resets. A step where it is False is skipped, and the state is
                carried over it.
            masked: the output of a skipped step: "repeat" gives the output of the step before it,
                "zero" gives zeros.
            outputs: what y holds. "all": every step. "last": ``[B,D*H]``, the final state h of each
                direction of the last layer; the direction from the end has read the whole row, as
                in Keras' ``Bidirectional``. "last_step": ``[B,D*H]``, the output at the last real
                step of each row, where the direction from the end has read that step alone.

        Returns:
            ``y, state``: the outputs ``[T,B,D*H]`` of the kind of x, zero past the end of a row;
            and the state at the last real step of each row, shaped as ``state``.

        Raises:
            TypeError: an argument has the wrong type or dtype; the message names it.
            ValueError: an argument has the wrong shape or value; the message names it.
        """
        if outputs != "all":
            _check.choice("outputs", outputs, OUTPUTS)
        call = self._arguments(x, state, (lengths, resets, mask, masked))
        y, h_n, c_n, _ = self._forward(call, False)
        state = self._join_state(h_n, c_n, call.single)
        last = None if outputs == "all" else _last(outputs, self, call, self._shape(call), y, h_n)
        if last is not None:
            return last.y[0] if call.single else last.y, state
        return call.shaped(self._without_batch(y, call.single)), state

    def _shape(self, call: _Call) -> tuple[int, int, int]:
        """B, T and the width of the outputs."""
        steps, batch = call.sizes
        if self.batch_first and call.ragged is None:
            steps, batch = batch, steps
        return batch, steps, self._directions * self._output_size

    def _forward(
        self,
        call: _Call,
        train: bool,
        dropout: float = 0.0,
        key: int = 0,
        states_only: bool = False,
    ) -> Any:
        options = {**call.options, "states_only": states_only}
        lengths = options.pop("lengths")
        packed, x = self._packed(train), call.x
        if call.table is None:
            x = self._scaled(x)
        else:
            options["table"] = call.table
        return packed.forward(
            x, call.h, call.c, lengths, self.batch_first, None, train, dropout, key, **options
        )

    def stream(self, batch: int = 1) -> Stream:
        """Return a stream of the stack: one step a call, on arrays that stay.

        It is the fastest way from Python for sequences whose steps arrive one at a time, and it
        gives the same bits as the layer on the whole sequence.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> gru = ost.nn.GRU(3, 5, rng=0)
        >>> stream = gru.stream()
        >>> stream.x[...] = 1.0  # [B,I]; or stream.step(x), which copies
        >>> y = stream.step()  # the array stream.y [B,H], which every step overwrites
        >>> bool((y == gru(np.ones((1, 1, 3), np.float32))[0][0]).all())
        True

        Args:
            batch: B, the number of slots, each with a state of its own.

        Returns:
            The stream, whose states are the learned ones or zeros.

        Raises:
            ValueError: the layer is bidirectional or not on the CPU; batch is less than 1.
        """
        return Stream(self, batch)

    def _join_stream(self, native: Any) -> Any:
        self._join_scales(native)
        states: tuple[Array, Array | None] = native.add_recurrent(self._packed(False))
        starts = [
            0 if s is None else np.stack(s)[:, None] for s in self._initial(self.parameters())
        ]
        return _StreamState(*states, starts)

    def _reset_stream(self, states: Any, slots: Any) -> None:
        for state, start in zip(states[:2], states.starts):
            if state is not None:
                state[:, slots] = start

    def _stream_state(self, states: Any) -> Any:
        return (states[0], states[1]) if self._has_cells else states[0]

    def vjp(
        self,
        x: Sequences,
        state: State = None,
        *,
        lengths: Lengths = None,
        resets: Array | None = None,
        mask: Array | None = None,
        masked: str = "repeat",
        clip_step_value: float | None = None,
        clip_step_norm: float | None = None,
        cuts: Array | None = None,
        outputs: str = "all",
        memory_limit: str | int | None = None,
        rng: Seed = None,
    ) -> tuple[tuple[Any, State], RecurrentPullback]:
        """Run the stack for training, with dropout between its layers.

        ``dx, dstate = pullback(dy=None, dstate=None, *, grads=None, need_dx=True)`` adds the
        gradients of the parameters to ``layer.grads`` (or to ``grads``). It serves once, and only
        while the parameters are those of the pass. After a KeyboardInterrupt or MemoryError in it
        the gradients of a stack are undefined: call `zero_grad`.

        Args:
            x: ``[T,B,I]`` (``[B,T,I]`` if batch_first), or ``[T,I]`` for one sequence; or sequences
                of different lengths as a `Ragged` or a list of ``[n,I]``, which are not padded.
            state: the state before the first step: ``h [L*D,B,H]``, or ``(h, c)`` for an LSTM;
                without B for one sequence. None: the learned state, or zeros.
            lengths: ``[B]`` whole numbers from 0 to T, in any order: row b ends after
                ``lengths[b]`` steps. None: every row has T steps.
            resets: bool ``[T,B]`` (``[B,T]`` if batch_first). Where it is True a new sequence
                begins: the state is replaced by the learned one, or zeros. The direction from the
                end starts anew behind the step, so that each piece runs as if it were alone.
            mask: bool, shaped as resets. A step where it is False is skipped, and the state is
                carried over it.
            masked: the output of a skipped step: "repeat" gives the output of the step before it,
                "zero" gives zeros.
            clip_step_value: bound on the absolute value of each element of the gradient of the
                states, at every step. It acts on dL/dh_t by all paths, and on what step t + 1 hands
                to c_t, before they go back through step t. None: no bound.
            clip_step_norm: bound on the Euclidean norm over H of each row of the same gradients,
                applied after clip_step_value. None: no bound.
            cuts: bool, shaped as resets. Where it is True no gradient goes from the step to the
                state that it started from.
            outputs: "all", "last" or "last_step", as in the call; or "none": y is None, and dy may
                be a function, see memory_limit.
            memory_limit: a bound on what is saved for the backward pass: a size such as "512MB",
                "least", or a number of segments. The states at the borders of segments are saved,
                and segments that do not fit are computed again; gradients have the same bits as
                without. "states" saves the state after every step and computes the gates again,
                which costs less where the batch is small. With segments and one direction dy may be
                a function ``dy(t, y)`` that is given the first step of a segment and its outputs
                ``[n,B,H]``, from the last segment to the first, and returns their gradient.
            rng: seed or generator of dropout; None: the layer's own.

        Returns:
            ``(y, state), pullback``: y and state are those of the call, and y is read-only. x must
            not change until the pullback has run.

        Raises:
            TypeError: an argument has the wrong type or dtype; the message names it.
            ValueError: an argument has the wrong shape or value; the message names it.
        """
        call = self._arguments(x, state, (lengths, resets, mask, masked))
        if call.single:
            cuts = self._with_batch("cuts", cuts, 1)
        shape = self._shape(call)
        batch, steps, _ = shape
        if call.ragged is not None:
            mine = _ragged.flag_bytes("cuts", cuts, call.ragged)
        else:
            mine = _check.flags("cuts", cuts, steps, batch, self.batch_first)
        control = {
            "clip_value": _check.clipping("clip_step_value", clip_step_value),
            "clip_norm": _check.clipping("clip_step_norm", clip_step_norm),
            "cuts": None
            if mine is None
            else mine.copy(),  # read by the pullback: the caller may reuse its array
        }
        states_only = memory_limit is not None and parse(memory_limit)[0] == "states"
        segments = memory_limit is not None and not states_only
        if segments:  # recomputed segments read these again
            names = ("lengths", "resets", "mask")
            copies = {n: None if call.options[n] is None else call.options[n].copy() for n in names}
            call = call._replace(options={**call.options, **copies})
            self._check_state("state", call.h, batch)
            self._check_state("state", call.c, batch, cells=True)
        dropout = self.dropout if self.num_layers > 1 else 0.0
        key = _check.draw_key(self._rng if rng is None else _check.generator(rng)) if dropout else 0
        if not call.learned:  # the caller may reuse the arrays of its state
            call = call._replace(
                h=None if call.h is None else call.h.copy(),
                c=None if call.c is None else call.c.copy(),
            )
        _check.choice("outputs", outputs, (*OUTPUTS, "none"))
        single = call.single
        run: Segmented | None = None
        tape: Any = None
        if not segments:
            y, h_n, c_n, tape = self._forward(call, True, dropout, key, states_only)
        else:
            run = Segmented(self, call, memory_limit, outputs, dropout, key)
            y, h_n, c_n = run.forward()
        last = _last(outputs, self, call, shape, y, h_n)
        y = last.y if last is not None else None if outputs == "none" else y
        if y is not None:
            y = y.view()  # a recomputed segment writes its outputs again
            _check.read_only(y)

        def backward(
            grads: dict[str, Array | None],
            dy: Any,
            dstate: State,
            need_dx: bool,
            dcells: Array | None = None,
        ) -> tuple[Any, State]:
            if callable(dy) and (run is None or self._directions == 2 or single):
                raise TypeError(
                    "dy: expected an array; a function is taken with segments, one direction and a "
                    "batch axis"
                )
            if call.ragged is not None and last is None and not callable(dy):
                dy = rows_like("dy", dy, call.ragged, shape[2])
            if single and dy is not None:
                dy = dy[None] if last is not None else self._with_batch("dy", dy, 2)
            dh, dc = self._split_state("dstate", dstate)
            if single:
                dh, dc = (
                    None if s is None else _check.array("dstate", s, 2)[:, None] for s in (dh, dc)
                )
                axis = 1 if self.batch_first else 2
                dcells = (
                    None if dcells is None else np.expand_dims(_check.array("dcells", dcells), axis)
                )
            dh, dc = (
                None if s is None else _check.contiguous(_check.array("dstate", s))
                for s in (dh, dc)
            )
            for s in (dh, dc):
                if s is not None:
                    _device.same("dstate", s, self._block.values)
            if run is not None:
                self._check_state("dstate", dh, batch)
                self._check_state("dstate", dc, batch, cells=True)
            if last is not None:
                dy, dh = last.spread(dy, dh)
            watch = self._watch
            if run is not None:
                if dcells is not None:
                    self._check_cells(dcells, steps, batch)
                if dy is not None and not callable(dy):
                    dy = _check.array("dy", dy)
                own: tuple[int, ...] = shape if self.batch_first else (steps, batch, shape[2])
                if call.ragged is not None:
                    own = (len(call.ragged.rows), shape[2])
                if _check.is_array(dy) and (dy.shape, dy.dtype) != (own, self._dtype):
                    raise ValueError(
                        f"dy: expected the shape and dtype of y, got {dy.shape} of {dy.dtype}"
                    )
                dx, dh0, dc0, dreset_h, dreset_c = run.backward(
                    dy, dh, dc, self._parts(grads), need_dx, dcells=dcells, **control
                )
                if dh0 is None:  # no step at all
                    dh0 = np.zeros_like(h_n)
                if dc0 is None and c_n is not None:
                    dc0 = np.zeros_like(c_n)
            else:
                parts, of_table = self._parts(grads), None
                if call.table is not None:
                    suffixes = self._suffixes()[: self._directions]
                    weights = [self.parameters()[f"weight_ih{suffix}"] for suffix in suffixes]
                    of_table = TableGradients(call.table, weights, parts)
                    parts = of_table.parts
                dx, dh0, dc0, dreset_h, dreset_c, norms = tape.backward(
                    dy,
                    dh,
                    dc,
                    parts,
                    need_dx and of_table is None,
                    **control,
                    dcells=dcells,
                    flow=watch is not None,
                )
                if of_table is not None:
                    dx = of_table.add(need_dx)
                if watch is not None:
                    watch(self, tape, norms)
            if self.learned_state:
                starts: Any = (dh0, dc0)
                for into, first, later in zip(self._initial(grads), starts, (dreset_h, dreset_c)):
                    for part, g in enumerate(into or ()):
                        if g is not None:
                            g += (first[part].sum(0) if call.learned else 0) + (
                                0 if later is None else later[part]
                            )
            if dx is not None and call.table is None:
                dx = call.shaped(self._without_batch(dx, single))
            return dx, self._join_state(dh0, dc0, single)

        if single and y is not None:
            y = y[0] if last is not None else self._without_batch(y, True)
        shaped = y if y is None or last is not None else call.shaped(y)
        out: Any = shaped, self._join_state(h_n, c_n, single)
        return out, RecurrentPullback(self, backward, tape, single)

    def __repr__(self) -> str:
        extra = "".join(
            f", {n}={v}"
            for n, v, plain in (
                ("num_layers", self.num_layers, 1),
                ("bias", self.bias, True),
                ("batch_first", self.batch_first, False),
                ("dropout", self.dropout, 0.0),
                ("bidirectional", self.bidirectional, False),
                ("precision", self.precision, self._dtype.name),
                ("learned_state", self.learned_state, False),
            )
            if v != plain
        ).replace("precision=" + self.precision, f"precision={self.precision!r}")
        sizes = f"{self.input_size}, {self.hidden_size}"
        return f"{type(self).__name__}({sizes}{extra}{self._extra_repr()})"

    def _extra_repr(self) -> str:
        return ""


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
        nonlinearity: phi, "tanh" or "relu".
        bias: whether the layers have ``bias_ih`` and ``bias_hh``.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``. States are
            ``[L*D,B,H]`` either way, with D = 2 directions if bidirectional, else 1.
        dropout: rate in [0, 1) of the dropout between layers, which acts in `vjp` only.
        bidirectional: whether a second direction runs from the last step to the first; its outputs
            are the second half of y.
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.

    Source: Elman (1990), "Finding structure in time".
    """

    _gates = 1

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
        *,
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.nonlinearity = _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        cell = f"rnn_{nonlinearity}"
        super().__init__(
            cell,
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
        return "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"


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
        peephole: whether c feeds the gates i f o, by parameters ``weight_peephole_l{k} [3,H]``.
        proj_size: P, as in PyTorch: h and y are projected to that width, and c stays H wide; on the
            CPU, without peepholes. 0: they are not projected.
        layer_norm: whether W x, R h and c' are normed, as in Haste's LayerNormLSTM; on the CPU,
            without peepholes and projection.
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

    _gates = 4
    _has_cells = True

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
        peephole: bool = False,
        proj_size: int = 0,
        layer_norm: bool = False,
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.peephole = bool(peephole)
        if peephole and proj_size:
            raise ValueError(
                f"proj_size: expected 0 with peephole=True, got {proj_size!r}; no cell has both"
            )
        cell = "lstm_peephole" if peephole else "lstm_projected" if proj_size else "lstm"
        if layer_norm:
            if peephole or proj_size:
                name, wanted, got = ("proj_size", "0", repr(proj_size))
                if peephole:
                    name, wanted, got = ("peephole", "False", "True")
                raise ValueError(
                    f"{name}: expected {wanted} with layer_norm=True, got {got}; no cell has both"
                )
            cell = "lstm_layer_norm"
        super().__init__(
            cell,
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

    def _extra_repr(self) -> str:
        return (
            (", peephole=True" if self.peephole else "")
            + (f", proj_size={self.proj_size}" if self.proj_size else "")
            + (", layer_norm=True" if self.layer_norm else "")
        )

    @property
    def layer_norm(self) -> bool:
        """Whether W x, R h and c' are normed."""
        return self._cell == "lstm_layer_norm"


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
        precision: what the products multiply, such as "bfloat16"; see `precision`. None: the dtype.
        learned_state: whether the state before the first step, and after a reset, is learned: as
            parameters ``initial_h_l{k} [H]`` (for an LSTM also ``initial_c_l{k}``), zeros at first.
            A state that is given to a call takes its place.
        dtype: float32 or float64, of parameters, inputs and outputs.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch, and of
            dropout.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder".
    """

    _gates = 3

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
        precision: str | None = None,
        learned_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        self.reset_after = bool(reset_after)
        cell = "gru" if reset_after else "gru_reset_before"
        super().__init__(
            cell,
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
        return "" if self.reset_after else ", reset_after=False"


readable(globals())
