"""Define ClockworkRNN: modules of a recurrent layer that run at periods of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _check, _device
from .._annotations import readable
from .._check import Array, Lengths, Seed
from .._ragged import Ragged, as_given, flat_flags, unwrapped
from .._recording import value_of
from ._model import Model
from ._recurrent import RNN


class _Times(NamedTuple):
    """When each row takes part, all ``[T,B]`` on the host.

    Attributes:
        clock: steps since the start of the row, or since its last reset, before each step.
        inside: whether the step is a real one of the row.
        on: whether the row takes part in it.
        reset: the last step up to this one at which the row starts anew, -1 for none.
        end: ``[B]``, the clock after the last step.
    """

    clock: Array
    inside: Array
    on: Array
    reset: Array
    end: Array


class _Layout:
    """Where the rows of an array, or of sequences, are in flat order."""

    def __init__(self, x: Any, batch_first: bool) -> None:
        self.ragged = isinstance(x, Ragged)
        self.batch_first = batch_first
        if isinstance(x, Ragged):
            self.lengths = x.lengths
            self.steps, self.batch = int(x.lengths.max(initial=0)), len(x)
        else:
            self.batch, self.steps = x.shape[:2] if batch_first else x.shape[1::-1]

    def flat(self, a: Array) -> Array:
        """Return what there is of ``[T,B]`` for the rows, in their order."""
        if self.ragged:
            rows: Array = a.T[np.arange(self.steps) < self.lengths[:, None]]
            return rows
        flat: Array = (a.T if self.batch_first else a).reshape(-1)
        return flat

    def positions(self) -> Array:
        """Return the place of each ``[T,B]`` among the rows; past the end of a sequence any."""
        t, b = np.arange(self.steps)[:, None], np.arange(self.batch)
        return _places(
            t, b, self.steps, self.batch, self.lengths if self.ragged else None, self.batch_first
        )


def _places(t: Any, b: Any, steps: int, batch: int, lengths: Array | None, first: bool) -> Array:
    """Return the place of step t of row b: of ragged rows of these lengths, or of an array."""
    if lengths is not None:
        at: Array = (np.cumsum(lengths) - lengths)[b] + t
    else:
        at = b * steps + t if first else t * batch + b
    return at


class _Module(NamedTuple):
    """The steps of one module, and where the states that it holds are found.

    Its outputs are rows; behind them are the states that the rows of the batch begin with, if there
    are any, and a row of zeros.

    Attributes:
        steps: where its inputs are among the rows of x, ``[N]`` in the order of its own rows.
        counts: ``[B]``, the steps that each row of the batch takes.
        resets: bool, for each of its rows; None: nowhere.
        after: ``[T,B]``, where the state after each step is.
        before: ``[T,B]``, where the state before each step is.
        lost: ``[B]``, whether a reset has come after its last step.
    """

    steps: Array
    counts: Array
    resets: Array | None
    after: Array
    before: Array
    lost: Array


def _plan(period: int, times: _Times, layout: _Layout, given: bool) -> _Module:
    """Return the steps of the module of a period; ``given``: whether a state is."""
    active = times.on & (times.clock % period == 0)
    steps, batch = active.shape
    number: Array = np.cumsum(active, 0)
    counts = number[-1] if steps else np.zeros(batch, np.int64)
    longest = int(counts.max(initial=0))
    own = counts if layout.ragged else None
    rows = int(counts.sum()) if layout.ragged else longest * batch
    b = np.arange(batch)
    zero = rows + (batch if given else 0)
    start = rows + b if given else np.full(batch, zero)
    clock = np.arange(steps)[:, None]
    last: Array = np.maximum.accumulate(np.where(active, clock, -1), 0)
    after = _places(number - 1, b, longest, batch, own, layout.batch_first)
    after = np.where(number > 0, after, start)
    after = np.where(times.reset > last, zero, after)
    before = np.concatenate([start[None], after[:-1]])[:steps]
    anew = times.reset == clock
    before = np.where(anew, zero, before)
    if layout.ragged:
        keep, at = active, np.flatnonzero(layout.flat(active))
        resets = layout.flat(np.where(keep, _fresh(last, times), False))[at]
    else:
        at, resets = np.zeros((longest, batch), np.int64), np.zeros((longest, batch), bool)
        t, row = np.nonzero(active)
        j = number[t, row] - 1
        at[j, row] = layout.positions()[t, row]
        resets[j, row] = _fresh(last, times)[t, row]
        if layout.batch_first:
            at, resets = at.T, resets.T
        at = at.reshape(-1)
    lost = times.reset[-1] > last[-1] if steps else np.zeros(batch, bool)
    return _Module(at, counts, resets if (times.reset >= 0).any() else None, after, before, lost)


def _fresh(last: Array, times: _Times) -> Array:
    """Whether a reset has come since the step of the module before this one, ``[T,B]``."""
    earlier = np.concatenate([np.full((1, last.shape[1]), -1), last[:-1]])[: len(last)]
    fresh: Array = times.reset > earlier
    return fresh


class ClockworkRNN(Model):
    """Divide the units into modules, each of which runs at every ``period``-th step alone.

    A module reads the inputs, itself and the slower modules as they were a step before; between its
    steps it holds its state. Slow modules bridge long gaps at few steps, fast ones see the details.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> layer = ost.nn.ClockworkRNN(3, 12, periods=[1, 2, 4, 8], rng=0)
    >>> y, state = layer(np.ones((16, 2, 3), np.float32))
    >>> y.shape, state[0].shape, state[1].tolist()
    ((16, 2, 12), (1, 2, 12), [[16, 16]])
    >>> bool((y[0, 0, 9:] == y[7, 0, 9:]).all())  # the module of period 8 runs at steps 0 and 8
    True

    Module k is an `RNN` with the parameters ``modules.k.weight_ih_l0 [H_k, I + slower]``, whose
    columns are those of the inputs and then those of all slower modules, ``modules.k.weight_hh_l0
    [H_k, H_k]`` and two biases: the rows of the block-triangular matrix of the paper.

    It costs one call of the fused kernels a module, the slowest first, since that reads no other
    one. A module is run at its own steps alone: at 1 / period of the arithmetic of an `RNN` of its
    size, with its inputs and the slower states copied side by side for those steps. On one core of
    a Zen 4 server (T 128 and 256, B 32, I 64, eight periods from 1 to 128) a training step takes
    0.36 of the time of an `RNN` of 1,024 units, and as long as one of 256, where the copies cost
    what the arithmetic saves; inference takes 0.46 and 1.3 of it.

    Args:
        input_size: I, features of an input.
        hidden_size: H, units of all modules, which divide them evenly; or a list with the units of
            each module.
        periods: whole numbers that increase, one a module; 1, 2, 4, 8 in the paper.
        nonlinearity: "tanh" or "relu".
        bias: whether modules have biases.
        batch_first: whether x and y are ``[B,T,*]`` in place of ``[T,B,*]``.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)).

    Raises:
        TypeError: periods or sizes that are no whole numbers.
        ValueError: periods that do not increase, or units that they do not divide evenly.

    Source: Koutník, Greff, Gomez, Schmidhuber (2014), "A clockwork RNN".
    """

    stateful = True
    takes_lengths = True
    _functional = ("periods",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        periods: Sequence[int] = (1, 2, 4, 8),
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.periods = _checked_periods(periods)
        self.sizes = _checked_sizes(hidden_size, len(self.periods))
        self.input_size = _check.positive("input_size", input_size)
        self.hidden_size = sum(self.sizes)
        self.batch_first = _check.flag("batch_first", batch_first)
        g = _check.generator(rng)
        ends = np.cumsum(self.sizes)
        self.modules = [
            RNN(
                self.input_size + self.hidden_size - int(end),
                size,
                nonlinearity=nonlinearity,
                bias=bias,
                batch_first=self.batch_first,
                dtype=dtype,
                rng=g,
            )
            for size, end in zip(self.sizes, ends)
        ]
        for module in self.modules:  # drawn for the units of one module
            with module.write() as p:
                for view in p.values():
                    view *= view.dtype.type(math.sqrt(module.hidden_size / self.hidden_size))

    def _parts(self) -> list[slice]:
        """Return where the units of each module are."""
        ends = np.cumsum([0, *self.sizes]).tolist()
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def __call__(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Lengths = None,
        resets: Any = None,
        mask: Any = None,
        masked: str = "repeat",
    ) -> Any:
        """Run all modules over the steps.

        Args:
            x: ``[T,B,I]`` (``[B,T,I]`` if batch_first); or sequences of different lengths as a
                `Ragged` or a list of ``[n,I]``.
            state: ``(h, clock)`` from an earlier call: h ``[1,B,H]``, and how many steps each row
                has taken, whole numbers ``[1,B]``. None: zeros, at the first step of the clock.
            lengths: ``[B]`` whole numbers from 0 to T; None: every row has T steps.
            resets: bool ``[T,B]`` (``[B,T]`` if batch_first): where it is True the state is zeros
                and the clock starts anew before the step.
            mask: bool, shaped as resets. A step where it is False is skipped, and the clock stands.
            masked: the output of a skipped step: "repeat" gives the output of the step before it,
                "zero" gives zeros.

        Returns:
            ``y, state``: the states of all modules after every step ``[T,B,H]``, the fastest first,
            of the kind of x and zero past the end of a row; and the state after the last real step.

        Raises:
            TypeError: an argument has the wrong type or dtype; the message names it.
            ValueError: an argument has the wrong shape or value; the message names it.
        """
        x, listed = unwrapped(x)
        _check.choice("masked", masked, ("repeat", "zero"))
        batch = self._batch(x)
        h0, clock = self._start(state, batch)
        layout = _Layout(x, self.batch_first)
        times = self._times(x, layout, clock, lengths, resets, mask)
        rows = x.rows if isinstance(x, Ragged) else x.reshape(-1, self.input_size)
        found: list[tuple[Any, _Module]] = []  # rows and steps of the modules, the slowest first
        ends: list[Any] = []
        for module, period, part in reversed(list(zip(self.modules, self.periods, self._parts()))):
            plan = _plan(period, times, layout, h0 is not None)
            own = None if h0 is None else h0[:, :, part]
            y, end = self._run(module, rows, own, plan, found, layout)
            found.insert(0, (_held(y, own), plan))
            ends.insert(0, end)
        shown = times.on if masked == "zero" else np.cumsum(times.on, 0) > 0
        shown = shown & times.inside
        held = [_at(a, layout.flat(np.where(shown, plan.after, len(a) - 1))) for a, plan in found]
        out = np.concatenate(held, -1)
        new = _device.like(times.end[None], value_of(out))
        if not isinstance(x, Ragged):
            return out.reshape(*x.shape[:2], self.hidden_size), (np.concatenate(ends, -1), new)
        return as_given(out, x, listed), (np.concatenate(ends, -1), new)

    def _run(
        self,
        module: RNN,
        rows: Any,
        own: Any,
        plan: _Module,
        slower: list[tuple[Any, _Module]],
        layout: _Layout,
    ) -> tuple[Any, Any]:
        """Return the rows of a module's outputs, and its last state."""
        parts = [_at(rows, plan.steps)]
        for held, other in slower:
            parts.append(_at(held, layout.flat(other.before)[plan.steps]))
        inputs = np.concatenate(parts, -1)
        options: dict[str, Any] = {}
        if plan.resets is not None:
            options["resets"] = _device.like(np.ascontiguousarray(plan.resets), value_of(rows))
        if layout.ragged:
            given: Any = Ragged(inputs, np.concatenate([[0], np.cumsum(plan.counts)]))
        else:
            longest = int(plan.counts.max(initial=0))
            shape = (layout.batch, longest) if self.batch_first else (longest, layout.batch)
            given = inputs.reshape(*shape, inputs.shape[-1])
            options["lengths"] = None if (plan.counts == longest).all() else plan.counts
        y, end = module(given, own, **options)
        y = y.rows if isinstance(y, Ragged) else y.reshape(-1, module.hidden_size)
        if plan.lost.any():
            lost = _device.like(plan.lost[:, None], value_of(end))
            end = np.where(lost, end.dtype.type(0), end)
        return y, end

    def _batch(self, x: Any) -> int:
        """Return B, of an x of the right form."""
        if isinstance(x, Ragged):
            return len(x)
        a = value_of(x)
        if not _check.is_array(a) or a.ndim != 3 or a.shape[2] != self.input_size:
            axes = "(B, T, I)" if self.batch_first else "(T, B, I)"
            got = f"shape {a.shape}" if _check.is_array(a) else type(a).__name__
            raise ValueError(f"x: expected shape {axes} = (*, *, {self.input_size}), got {got}")
        return int(a.shape[0 if self.batch_first else 1])

    def _start(self, state: Any, batch: int) -> tuple[Any, Array]:
        """Return h, None for zeros, and the clock ``[B]`` before the first step."""
        if state is None:
            return None, np.zeros(batch, np.int64)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state: expected a pair (h, clock), got {type(state).__name__}")
        h, clock = state
        shape = (1, batch, self.hidden_size)
        if value_of(h).shape != shape or h.dtype != self.dtype:
            raise ValueError(
                f"state: expected h of shape {shape} of {self.dtype}, got {h.shape} of {h.dtype}"
            )
        c = np.asarray(_device.host(_device.taken(clock)))
        if c.shape != shape[:2] or c.dtype.kind not in "iu" or (c.size and c.min() < 0):
            raise ValueError(
                f"state: expected a clock of shape {shape[:2]} of whole numbers from 0, got "
                f"{c.shape} of {c.dtype}"
            )
        return h, c[0].astype(np.int64)

    def _times(
        self, x: Any, layout: _Layout, clock: Array, lengths: Any, resets: Any, mask: Any
    ) -> _Times:
        """Return when each row takes part, and what its clock says."""
        steps, batch = layout.steps, layout.batch
        if isinstance(x, Ragged):
            if lengths is not None:
                raise ValueError(
                    f"lengths: expected None with ragged sequences, got {type(lengths).__name__}"
                )
            ends = x.lengths
            flags, anew = (
                None if f is None else x.padded(np.asarray(_device.host(f)))
                for f in (flat_flags("mask", mask, x), flat_flags("resets", resets, x))
            )
        else:
            given = _check.lengths(lengths, steps, batch)
            ends = np.full(batch, steps) if given is None else _device.host(given)
            flags, anew = (
                None if f is None else np.asarray(_device.host(f)).astype(bool)
                for f in (
                    _check.flags(n, f, steps, batch, self.batch_first)
                    for n, f in (("mask", mask), ("resets", resets))
                )
            )
        inside = np.arange(steps)[:, None] < ends
        on = inside if flags is None else inside & flags
        taken: Array = np.cumsum(on, 0) - on  # steps taken before each
        if anew is None:
            never = np.full((steps, batch), -1)
            return _Times(clock + taken, inside, on, never, clock + on.sum(0))
        last: Array = np.maximum.accumulate(
            np.where(anew & inside, np.arange(steps)[:, None], -1), 0
        )
        at: Array = np.take_along_axis(taken, np.maximum(last, 0), 0)
        now = np.where(last < 0, clock + taken, taken - at)
        end = now[-1] + on[-1] if steps else clock
        return _Times(now, inside, on, last, end)

    # -- streams -----------------------------------------------------------------------------------

    def _join_stream(self, native: Any) -> Any:
        h = np.zeros((1, native.batch, self.hidden_size), self.dtype)
        clock = np.zeros((1, native.batch), np.int64)
        parts = self._parts()
        weights = [dict(module.parameters()) for module in self.modules]
        weights = [{n: np.array(w) for n, w in p.items()} for p in weights]
        relu = "relu" in self.modules[0]._cell

        def step(rows: Array, slots: Any) -> Array:
            before, now = h[0, slots].copy(), clock[0, slots]
            after = before.copy()
            for p, period, part in zip(weights, self.periods, parts):
                on = now % period == 0
                a = np.concatenate([rows[on], before[on, part.stop :]], 1) @ p["weight_ih_l0"].T
                a += before[on, part] @ p["weight_hh_l0"].T
                if "bias_ih_l0" in p:
                    a += p["bias_ih_l0"] + p["bias_hh_l0"]
                after[on, part] = np.maximum(a, 0) if relu else np.tanh(a)
            h[0, slots] = after
            clock[0, slots] += 1
            stepped: Array = after
            return stepped

        native.add_step(step, self.input_size, self.hidden_size)
        return [h, clock]

    def _reset_stream(self, states: Any, slots: Any) -> None:
        for s in states:
            s[:, slots] = 0

    def _stream_state(self, states: Any) -> Any:
        return tuple(states)

    def __repr__(self) -> str:
        sizes = self.hidden_size if len(set(self.sizes)) == 1 else list(self.sizes)
        return f"ClockworkRNN({self.input_size}, {sizes}, periods={list(self.periods)})"


def _held(y: Any, own: Any) -> Any:
    """Return the rows of a module's outputs with its first states and a row of zeros behind."""
    zeros = np.zeros_like(value_of(y), shape=(1, y.shape[-1]))
    return np.concatenate([y, zeros] if own is None else [y, own[0], zeros])


def _at(rows: Any, index: Array) -> Any:
    """Return some rows; all of them in their order are not copied."""
    if len(index) == len(rows) and np.array_equal(index, np.arange(len(rows))):
        return rows
    return rows[_device.like(np.ascontiguousarray(index), value_of(rows))]


def _checked_periods(periods: Any) -> tuple[int, ...]:
    """Return the periods, which increase."""
    if isinstance(periods, np.ndarray):
        periods = periods.tolist()
    if isinstance(periods, (str, bytes)) or not hasattr(periods, "__iter__"):
        raise TypeError(f"periods: expected a sequence of numbers, got {type(periods).__name__}")
    found = tuple(_check.positive("periods", p) for p in periods)
    if not found or any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(
            f"periods: expected at least one number, in increasing order, got {list(found)}"
        )
    return found


def _checked_sizes(hidden_size: Any, count: int) -> tuple[int, ...]:
    """Return the units of each module."""
    if isinstance(hidden_size, np.ndarray):
        hidden_size = hidden_size.tolist()
    if hasattr(hidden_size, "__iter__"):
        sizes = tuple(_check.positive("hidden_size", n) for n in hidden_size)
        if len(sizes) != count:
            raise ValueError(
                f"hidden_size: expected {count} numbers, one a period, got {len(sizes)}"
            )
        return sizes
    n = _check.positive("hidden_size", hidden_size)
    if n % count:
        raise ValueError(
            f"hidden_size: expected a multiple of the {count} periods, got {n}; or a list with the "
            "units of each module"
        )
    return (n // count,) * count


readable(globals())
