"""Define a stack of recurrent layers: its parameters and its calls; native code runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _device, _native
from .._annotations import readable
from .._call import Call
from .._cells import UNIT_WEIGHTS, facts_of
from .._check import Array, Lengths, Seed
from .._functions import Chosen
from ._arguments import arguments
from ._block import Views
from ._outputs import OUTPUTS, last_of
from ._quantization import ScaledInputs
from ._redraw import redraw
from ._stream import Stream
from ._training import RecurrentPullback, train

State = Any  # h, or (h, c) for an LSTM
Sequences = Any  # an array, a Ragged, or a list of arrays


class _StreamState(NamedTuple):
    """The arrays of a stream, and what they begin with: the parameters as they were."""

    h: Array
    c: Array | None
    starts: list[Any]


class Recurrent(ScaledInputs):
    """Base of RNN, LSTM and GRU: a stack of recurrent layers in one or two directions.

    It is not made itself: use `RNN`, `LSTM` or `GRU`.

    >>> import ostinato as ost
    >>> isinstance(ost.nn.GRU(3, 5), ost.nn.Recurrent)
    True

    Args:
        cell: its name, and the numbers of a call that its functions read.
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

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size below 1, a rate outside [0, 1), or a precision that there is not.
    """

    stateful = True
    takes_lengths = True
    # Called after a backward pass with the layer, its tape and the norms by step.
    _watch: Callable[..., None] | None = None

    def __init__(
        self,
        cell: Chosen,
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
        self._cell, self._scalars = cell
        self.precision = precision
        self.input_size = _check.positive("input_size", input_size)
        self.hidden_size = _check.positive("hidden_size", hidden_size)
        self.proj_size = _check.positive("proj_size", proj_size, 0)
        self.num_layers = _check.positive("num_layers", num_layers)
        _check.refuse_more_than_file("num_layers", self.num_layers)
        self.bias = _check.flag("bias", bias)
        self.batch_first = _check.flag("batch_first", batch_first)
        self.bidirectional = _check.flag("bidirectional", bidirectional)
        self.learned_state = _check.flag("learned_state", learned_state)
        self.dropout = _check.fraction("dropout", dropout)
        if dropout and num_layers == 1:
            warnings.warn("dropout: it acts between layers, and there is only one", stacklevel=3)
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
        checked = _check.precision(self._dtype, value, self.device)
        if self._scalars and checked not in (self._dtype.name, "exact"):
            raise ValueError(
                f"precision: expected {self._dtype.name!r} for a cell with functions, a clip or "
                f"coupled gates of its own, got {value!r}"
            )
        self._precision = checked
        self._block.changes += 1
        self._cache = None

    _settable = MappingProxyType({"dropout": _check.fraction, "precision": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        new = {
            "_precision": state["_dtype"].name,
            "learned_state": False,
            "proj_size": 0,
            "_scalars": (),
        }  # of what was pickled before there were any
        super().__setstate__({**new, **state})

    @cached_property
    def _gates(self) -> int:
        """The number of gates of the cell."""
        return facts_of(self._cell)["gates"]

    @cached_property
    def _has_cells(self) -> bool:
        """Whether the state is (h, c)."""
        return facts_of(self._cell)["states"] > 1

    def _check_device(self, device: _device.Device | None) -> None:
        name = "cpu" if device is None else device.name
        _check.precision(self._dtype, self._precision, name)

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

    def _functions(self) -> str:
        """Return functions, clip and coupled gates that are not the usual ones, as in a repr."""
        return ""

    def _unit_weights(self) -> list[tuple[str, int, bool]]:
        """Return the weights of one number a unit: name, rows, whether they are flat."""
        return UNIT_WEIGHTS[self._cell]

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        rows, h, size = self._gates * self.hidden_size, self.hidden_size, self._output_size
        out: list[tuple[str, tuple[int, ...]]] = []
        for k, end in enumerate(self._suffixes()):
            width = self.input_size if k < self._directions else self._directions * size
            out += [(f"weight_ih{end}", (rows, width)), (f"weight_hh{end}", (rows, size))]
            if self.bias:
                out += [(f"bias_ih{end}", (rows,)), (f"bias_hh{end}", (rows,))]
            out += [
                (name + end, (n * h,) if flat else (n, h)) for name, n, flat in self._unit_weights()
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
            TypeError: an argument of the wrong type.
            ValueError: an unknown name, a bias or gate that the layer does not have, or a
                forget_bias that is not finite; nothing has changed.
        """
        redraw(self, (input, recurrent, bias), forget_bias, chrono, rng)
        return self

    def _gradient_target(self, grads: Views | None) -> Views:
        return self._own_grads(grads)

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
            **self._own_options(),
        )

    def _own_options(self) -> dict[str, Any]:
        """Return what the native code is told of a projection, and of functions."""
        options: dict[str, Any] = {"proj_size": self.proj_size} if self.proj_size else {}
        return {**options, "scalars": self._scalars} if self._scalars else options

    def _pack_apart(self) -> list[Any]:
        """Every layer and direction packed by itself."""
        make, precision = _native.backend_for(self._block.values).Packed, self._native_precision()
        parts, d = self._parts(self.parameters()), self._directions
        inputs = [self.input_size if k < d else d * self._output_size for k in range(len(parts))]
        one = (self.hidden_size, 1, False)
        return [
            make(self._cell, n, *one, [p], True, k % d == 1, precision, **self._own_options())
            for k, (n, p) in enumerate(zip(inputs, parts))
        ]

    def _state_shape(self, batch: int, cells: bool = False) -> tuple[int, int, int]:
        """Return the shape of h, or of c."""
        return (
            self.num_layers * self._directions,
            batch,
            self.hidden_size if cells else self._output_size,
        )

    def _checked_state(
        self, name: str, s: Any, batch: int, cells: bool = False, single: bool = False
    ) -> Array | None:
        """Return a state, or its gradient, as the kernels take it.

        Args:
            name: the argument.
            s: h, or with ``cells`` c; None: none.
            batch: B.
            cells: whether it is c.
            single: whether it comes without the axis of the batch.
        """
        if s is None:
            return None
        right = type(s) is np.ndarray and s.shape == self._state_shape(batch, cells)
        if right and s.dtype == self._dtype and type(self._block.values) is np.ndarray:
            return np.ascontiguousarray(s)  # the least of what a small call pays
        a = _check.array(name, s, 2 if single else 3)
        _device.same(name, a, self._block.values)
        self._check_state(name, a, batch, cells, single)
        return _check.contiguous(a[:, None] if single else a)

    def _check_state(
        self, name: str, a: Array, batch: int, cells: bool = False, single: bool = False
    ) -> None:
        """Raise unless an array has the shape and the dtype of a state, wherever it is."""
        shape: tuple[int, ...] = self._state_shape(batch, cells)
        if single:
            shape = shape[::2]
        if a.shape == shape and a.dtype == self._dtype:
            return
        axis = "P" if self.proj_size and not cells else "H"
        _check.state(name, a, shape, self._dtype, f"(L*D, {'' if single else 'B, '}{axis})")

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
        call = arguments(self, x, state, (lengths, resets, mask, masked))
        y, h_n, c_n, _ = self._forward(call, False)
        state = self._join_state(h_n, c_n, call.single)
        last = None if outputs == "all" else last_of(outputs, self, call, self._shape(call), y, h_n)
        if last is not None:
            return last.y[0] if call.single else last.y, state
        return call.shaped(self._without_batch(y, call.single)), state

    def _shape(self, call: Call) -> tuple[int, int, int]:
        """B, T and the width of the outputs."""
        steps, batch = call.sizes
        if self.batch_first and call.ragged is None:
            steps, batch = batch, steps
        return batch, steps, self._directions * self._output_size

    def _forward(
        self,
        call: Call,
        train: bool,
        dropout: float = 0.0,
        key: int = 0,
        states_only: bool = False,
    ) -> Any:
        packed, x = self._packed(train), call.x
        return packed.forward(
            self._scaled(x) if call.table is None else x,
            call.h,
            call.c,
            batch_first=self.batch_first,
            train=train,
            dropout=dropout,
            key=key,
            states_only=states_only,
            table=call.table,
            **call.options,
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
        call = arguments(self, x, state, (lengths, resets, mask, masked))
        clips = (clip_step_value, clip_step_norm, cuts)
        return train(self, call, clips, outputs, memory_limit, rng)

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


readable(globals())
