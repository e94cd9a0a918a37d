"""Train within a bound of memory: save states at the borders of segments, recompute the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _check, _core, _device
from ._cells import facts_of
from ._check import Array
from ._memory_limit import Schedule, parse, plan_for, plan_of, schedule
from ._options import Options
from ._ragged import Ragged, most, rows_like, step_of

__all__ = ["Chain", "Schedule", "Segmented", "parse", "plan_for", "plan_of", "schedule"]


class Chain:
    """Run layers of one direction segment by segment.

    Arrays are time-major, x may be any strided view; or they are flat rows.

    Args:
        packed: native weights; of one direction, from the start or (``reverse``) from the end.
        times: what `_check.times` or, for flat rows, `_ragged.times` gives, for all steps.
    """

    def __init__(
        self,
        packed: Any,
        x: Array,
        times: Options,
        plan: Schedule,
        *,
        dropout: float,
        key: int,
    ) -> None:
        times = times.copy()
        for name in ("lengths", "resets", "mask"):
            times[name] = _device.host(times[name])
        self.packed, self.x, self.times, self.plan = packed, x, times, plan
        self.reverse, self.dropout, self.key = bool(packed.reverse), dropout, key
        self.borders: dict[int, tuple[Array | None, Array | None]] = {}
        self.tapes: dict[int, tuple[Any, Array]] = {}
        self.starts: Array | None = times.get("starts")  # of flat rows
        self.lengths: Any = times["lengths"]  # never None with flat rows
        self.batch = x.shape[1] if self.starts is None else len(self.starts)
        self.before = self._before() if times["mask"] is not None else {}
        uneven = times["lengths"] is not None or times["mask"] is not None
        self.order = (
            _core.balance_rows(self._active_steps()) if uneven else None
        )  # one for all segments

    def _order(self) -> list[int]:
        """Return the segments in the order in which they are processed."""
        return list(range(self.plan.count))[:: -1 if self.reverse else 1]

    def _range(self, k: int) -> tuple[int, int]:
        return k * self.plan.length, min((k + 1) * self.plan.length, self.plan.steps)

    def _before(self) -> dict[int, tuple[Array, Array]]:
        """Return for each segment which rows have an output to repeat and which were reset.

        The output is that of the step before the segment in the order of processing; a row counts
        as reset until it has run a step.
        """
        batch = self.batch
        last_of = self._last_in_segments() if self.starts is None else self._last_in_flat_segments()
        out, held, restarted = {}, np.zeros(batch, bool), np.zeros(batch, bool)
        for k in self._order():
            out[k] = held.view(np.uint8), restarted.view(np.uint8)
            last_active, last_begin = last_of(k)
            any_of = (last_active | last_begin) > 0
            held = np.where(any_of, last_active >= np.maximum(last_begin, 1), held)
            restarted = np.where(any_of, last_begin > last_active, restarted)
        return out

    def _active_steps(self) -> Array:
        """Return how many steps each row takes part in."""
        lengths, mask = self.lengths, self.times["mask"]
        steps: Array
        if self.starts is None:
            steps = _check.taking_part(self.plan.steps, self.batch, lengths, mask).sum(
                0, dtype=np.int64
            )
        elif mask is None:
            steps = lengths
        else:
            counts = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
            steps = counts[self.starts + lengths] - counts[self.starts]
        return steps

    def _last_in_segments(self) -> Callable[[int], tuple[Array, Array]]:
        """Return a function that finds the last active step and last reset of a segment's rows.

        Both are counted from 1 in the order of processing; 0 where there is none.
        """
        resets, steps, batch = self.times["resets"], self.plan.steps, self.batch
        inside = _check.taking_part(steps, batch, self.lengths, None)
        active = _check.taking_part(steps, batch, self.lengths, self.times["mask"])
        begins = np.zeros_like(inside) if resets is None else inside & resets.view(bool)
        if self.reverse:
            begins = np.concatenate([begins[1:], np.zeros((1, batch), bool)])

        def last(k: int) -> tuple[Array, Array]:
            t0, t1 = self._range(k)
            clock = (
                np.arange(1, t1 - t0 + 1)[:, None]
                if not self.reverse
                else np.arange(t1 - t0, 0, -1)[:, None]
            )
            return (clock * active[t0:t1]).max(0, initial=0), (clock * begins[t0:t1]).max(
                0, initial=0
            )

        return last

    def _last_in_flat_segments(self) -> Callable[[int], tuple[Array, Array]]:
        """Return the function of `_last_in_segments` for flat rows."""
        resets, mask = self.times["resets"], self.times["mask"]
        lengths, starts = self.lengths, self.starts
        assert mask is not None
        assert starts is not None
        begins = np.zeros_like(mask) if resets is None else resets
        if self.reverse:
            begins = np.roll(begins, -1)
            begins[(starts + lengths - 1)[lengths > 0]] = (
                0  # the rows after it belong to another sequence
            )

        def last(k: int) -> tuple[Array, Array]:
            (t0, t1), places = self._range(k), self._rows(k)
            inside = np.clip(lengths - t0, 0, t1 - t0)
            clock = t1 - t0 - step_of(inside) if self.reverse else step_of(inside) + 1
            return most(clock * mask[places], inside), most(clock * begins[places], inside)

        return last

    def _resets_after(self, t: int) -> Array:
        """Return which rows begin a piece at step t."""
        resets, lengths = self.times["resets"], self.lengths
        assert resets is not None
        out = np.zeros(self.batch, np.uint8)
        if self.starts is None:
            out[:] = resets[t] if lengths is None else np.where(t < lengths, resets[t], 0)
            return out
        there = t < lengths
        out[there] = resets[self.starts[there] + t]
        return out

    def _window(self, a: Array | None, k: int) -> Array | None:
        """Return the steps of a segment; flat rows as a whole: they are found by their starts."""
        return a if a is None or self.starts is not None else a[slice(*self._range(k))]

    def _rows(self, k: int) -> Array:
        """Return the positions of a segment's rows among flat rows, sequence by sequence."""
        assert self.starts is not None
        t0, t1 = self._range(k)
        lengths = np.clip(self.lengths - t0, 0, t1 - t0)
        ends = np.cumsum(lengths)
        places: Array = np.arange(int(lengths.sum())) + np.repeat(
            self.starts + t0 - (ends - lengths), lengths
        )
        return places

    def _run(
        self, k: int, state: tuple[Array | None, Array | None], train: bool, y: Array | None
    ) -> Any:
        t0, t1 = self._range(k)
        options = self.times.copy()
        lengths, resets = options["lengths"], options["resets"]
        if lengths is not None:
            options["lengths"] = np.clip(lengths - t0, 0, t1 - t0)
        for name in ("resets", "mask"):
            options[name] = self._window(options[name], k)
        if resets is not None and self.reverse and t1 < self.plan.steps:
            options["resets_after"] = self._resets_after(t1)
        options["held"], options["restarted"] = self.before.get(k, (None, None))
        options["order"], options["first_step"] = self.order, t0
        if self.starts is not None:
            options["starts"], options["span"] = np.minimum(self.starts + t0, len(self.x)), t1 - t0
        x, out = self._window(self.x, k), self._window(y, k)
        return self.packed.forward(
            x, *state, out=out, train=train, dropout=self.dropout, key=self.key, **options
        )

    def forward(
        self, h: Array | None, c: Array | None, y: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Return the states at the end; outputs go to ``y [T,B,D*H]`` unless that is None."""
        order = self._order()
        saved = set(order[len(order) - self.plan.num_saved :] if self.plan.num_saved else ())
        for k in order:
            self.borders[k] = h, c
            out, h, c, tape = self._run(k, (h, c), k in saved, y)
            if tape is not None:
                self.tapes[k] = tape, out
        if not order:  # without a step the states are the initial ones
            rows, packed = (self.packed.layers, self.batch), self.packed
            h = (
                np.zeros((*rows, packed.output_size), self.x.dtype, like=self.x)
                if h is None
                else h.copy()
            )
            if facts_of(packed.cell)["states"] == 1:
                c = None
            else:
                c = (
                    np.zeros((*rows, packed.hidden_size), self.x.dtype, like=self.x)
                    if c is None
                    else c.copy()
                )
        assert h is not None
        return h, c

    def backward(
        self,
        dy: Array | Callable[[int, Any], Any] | None,
        dh: Array | None,
        dc: Array | None,
        grads: list[list[Array | None]],
        *,
        y: Array | None = None,
        dx: Array | None = None,
        dx_add: bool = False,
        dreset: tuple[Array | None, Array | None] | None = None,
        cuts: Array | None = None,
        dcells: Array | None = None,
        overwrite: bool = False,
        **control: float,
    ) -> tuple[Array | None, Array | None]:
        """Return the gradients of the states before the first step.

        Those of the input go to ``dx``. dy may be a function of a segment's first step and outputs
        (a `Ragged` of flat rows); y is where the forward pass wrote them. ``overwrite``: those of
        the weights take the place of what ``grads`` hold, on the CPU.
        """
        sums = self.packed.sums(self.batch)
        order = self._order()
        if not order:
            for g in (g for part in grads if overwrite for g in part if g is not None):
                g[...] = 0
            return None if dh is None else dh.copy(), None if dc is None else dc.copy()
        for n, k in enumerate(reversed(order)):
            t0, t1 = self._range(k)
            if k in self.tapes:
                tape, out = self.tapes.pop(k)
            else:
                out, _, _, tape = self._run(k, self.borders[k], True, y)
            if callable(dy):
                d = self._asked(dy, k, out, y is not None)
            elif self.starts is not None and y is None and dy is not None:
                d = dy[self._rows(k)]  # this tape's outputs lie one after the other
            else:
                d = self._window(dy, k)
            _, dh, dc, *_ = tape.backward(
                d,
                dh,
                dc,
                grads,
                False,
                **control,
                cuts=self._window(cuts, k),
                dcells=None if dcells is None else dcells[:, t0:t1],
                dx=self._window(dx, k),
                dx_add=dx_add,
                sums=sums,
                resume=n > 0,
                more=n + 1 < len(order),
                overwrite=overwrite,
                drestart=dreset,
            )
            del tape, out  # before the next one is allocated
        return dh, dc

    def _asked(
        self, dy: Callable[[int, Any], Any], k: int, out: Array, whole: bool
    ) -> Array | None:
        """Return the gradient of a segment's outputs, by the caller's function.

        ``whole``: flat outputs are those of all segments.
        """
        t0, t1 = self._range(k)
        seen = out.view()
        _check.read_only(seen)
        if self.starts is None:
            d: Array | None = dy(t0, seen)
            return d
        lengths = np.clip(self.lengths - t0, 0, t1 - t0)
        places = self._rows(k) if whole else None
        rows = Ragged(
            seen if places is None else seen[places], np.concatenate([[0], np.cumsum(lengths)])
        )
        mine = rows_like("dy", dy(t0, rows), rows, out.shape[1])
        if places is None or mine is None:
            return mine
        all_rows = np.empty(out.shape, mine.dtype, like=mine)
        all_rows[places] = mine
        return all_rows


class Segmented:
    """A recurrent layer run within a bound of memory: `forward`, then `backward`.

    All layers of one direction run together, segment by segment. With two directions the one from
    the end needs all outputs of the layer below first: then layers and directions run one after the
    other, and the outputs between the layers are saved.
    """

    def __init__(
        self, layer: Any, call: Any, limit: object, outputs: str, dropout: float, key: int
    ) -> None:
        self.layer, self.call, self.outputs, self.dropout, self.key = (
            layer,
            call,
            outputs,
            dropout,
            key,
        )
        self.first = layer.batch_first and call.ragged is None
        self.x = np.swapaxes(call.x, 0, 1) if self.first else call.x
        self.directions, self.layers, self.output = (
            layer._directions,
            layer.num_layers,
            layer._output_size,
        )
        self.packs = [layer._packed(True)] if self.directions == 1 else layer._pack_apart()
        self.sizes = call.sizes if call.ragged is not None else self.x.shape[:2]
        steps, batch = self.sizes
        self.plan = plan_for(layer, limit, steps, batch, outputs, self.packs[0])
        self.chains: list[Chain] = []
        self.ys: list[Array] = []

    def _times(self, part: int) -> Options:
        options: Options = self.call.options.copy()
        options["restart_h"] = self._part(options["restart_h"], part)
        options["restart_c"] = self._part(options["restart_c"], part)
        return options

    def _part(self, a: Array | None, part: int) -> Array | None:
        return a if a is None or self.directions == 1 else a[part : part + 1]

    def _new(self, width: int) -> tuple[Array, Array]:
        """Return an array in the layer's layout, and the same time-major; or flat rows."""
        if self.call.ragged is not None:
            a = np.empty((len(self.x), width), self.x.dtype, like=self.x)
            return a, a
        steps, batch = self.sizes
        a = np.empty(
            (batch, steps, width) if self.first else (steps, batch, width),
            self.x.dtype,
            like=self.x,
        )
        return a, np.swapaxes(a, 0, 1) if self.first else a

    def _drop(self, layer: int, rows: Array) -> Array:
        """Return what dropout leaves of the outputs of a layer, or of their gradient."""
        ragged = self.call.ragged
        out: Array = rows.copy() if ragged is None else ragged.padded(rows)
        self.layer._packed(True).drop(layer, out, self.dropout, self.key, 0)  # in place
        return out if ragged is None else ragged.flat(out)

    def forward(self) -> tuple[Array | None, Array, Array | None]:
        """Return y, h_n, c_n; y is None unless all outputs are wanted or D is 2."""
        x, y = self.x, None
        h_n: list[Any] = []
        c_n: list[Any] = []
        for k, packed in enumerate(self.packs):
            layer, d = (k // 2, k % 2) if self.directions == 2 else (self.layers - 1, 0)
            if d == 0 and (self.outputs == "all" or self.directions == 2):
                # The outputs of the last layer are returned.
                y, rows = self._new(self.directions * self.output)
                self.ys.append(rows)
            dropout = self.dropout if self.directions == 1 else 0.0
            chain = Chain(packed, x, self._times(k), self.plan, dropout=dropout, key=self.key)
            out = self.ys[-1][..., d * self.output : (d + 1) * self.output] if self.ys else None
            h, c = chain.forward(self._part(self.call.h, k), self._part(self.call.c, k), out)
            self.chains.append(chain)
            h_n.append(h)
            c_n.append(c)
            if d == 1 and layer + 1 < self.layers:
                x = self._drop(layer, self.ys[-1]) if self.dropout else self.ys[-1]
        return y, np.concatenate(h_n), None if c_n[0] is None else np.concatenate(c_n)

    def backward(
        self,
        dy: Any,
        dh: Array | None,
        dc: Array | None,
        grads: list[list[Array | None]],
        need_dx: bool,
        dcells: Array | None = None,
        **control: Any,
    ) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]:
        """dx, dh0, dc0 and the gradients of the restarts' states."""
        call, n = self.call, self.layers * self.directions
        if _check.is_array(dy) and self.first:
            dy = np.swapaxes(dy, 0, 1)
        if dcells is not None and self.layer.batch_first:
            dcells = np.swapaxes(dcells, 1, 2)
        like, dtype = self.x, self.x.dtype
        reset = call.options["resets"] is not None
        dreset_h = np.zeros((n, self.output), dtype, like=like) if reset else None
        dreset_c = (
            np.zeros((n, self.layer.hidden_size), dtype, like=like)
            if reset and self.layer._has_cells
            else None
        )
        dh0: list[Any] = []
        dc0: list[Any] = []
        dx, rows = self._new(self.layer.input_size) if need_dx else (None, None)
        below = None
        for k in reversed(range(len(self.packs))):
            layer, d = (k // 2, k % 2) if self.directions == 2 else (0, 0)
            half = slice(d * self.output, (d + 1) * self.output)
            if layer == 0:
                into = rows
            elif d == 1:
                below = into = np.empty(self.chains[k].x.shape, self.x.dtype, like=self.x)
            into_add = self.directions == 2 and d == 0  # the reverse direction has run before
            dreset = (
                None if dreset_h is None else (self._part(dreset_h, k), self._part(dreset_c, k))
            )
            part_h, part_c = self.chains[k].backward(
                dy if callable(dy) or dy is None else dy[..., half],
                self._part(dh, k),
                self._part(dc, k),
                grads[k : k + 1] if self.directions == 2 else grads,
                y=self.ys[layer][..., half] if self.ys else None,
                dcells=self._part(dcells, k),
                dx=into,
                dx_add=into_add,
                dreset=dreset,
                **control,
            )
            dh0.insert(0, part_h)
            dc0.insert(0, part_c)
            self.chains[k].borders.clear()
            if d == 0 and layer > 0:
                assert below is not None
                dy = self._drop(layer - 1, below) if self.dropout else below
        first_h, first_c = (None if a[0] is None else np.concatenate(a) for a in (dh0, dc0))
        return dx, first_h, first_c, dreset_h, dreset_c
