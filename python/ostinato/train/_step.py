"""Run one step of training: forward, loss, backward, clipping, update; also truncated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _deferred, _device
from .._check import Array
from .._ragged import Ragged
from ..data import Inputs
from ..losses import Loss
from ..nn import Activation, Dropout, Layer, LayerNorm, Linear, Model, Recurrent, Sequential
from ..nn._model import takes
from ..nn._walk import layers_of
from ..optim import Optimizer, clip_by_value
from ..optim._clipping import factor_of, norm_of, scale
from ..optim._optimizers import Also
from ._inputs import culprit_of, taking_part
from ._types import Batch, Times, diverged

if TYPE_CHECKING:
    from ._trainer import Trainer

QUIET: Any = {"over": "ignore", "invalid": "ignore", "under": "ignore", "divide": "ignore"}


@dataclass
class Walk:
    """The position in a batch that is run in strides: steps done, and known states by step."""

    done: int = 0
    known: dict[int, Any] = field(default_factory=dict)


@dataclass
class Window:
    """Part of a batch that has gradients; its first ``silent`` steps have no loss."""

    batch: Batch
    state: Any
    silent: int = 0


@dataclass
class Result:
    """Mean loss of a window, its weight, and the state after it.

    Loss and weight may be arrays without axes, of which a device has not been asked.
    """

    loss: Any
    weight: Any
    state: Any

    @property
    def counts(self) -> bool:
        """Whether anything of the window counts, or may do: a device is not asked."""
        return _device.of(self.weight) is not None or bool(self.weight)


def tells_last(model: Layer) -> bool:
    """Return whether the layers behind the last recurrent one act on each step by itself."""
    if isinstance(model, Recurrent):
        return True
    if not isinstance(model, Sequential):
        return False
    for layer in reversed(model.layers):
        if isinstance(layer, (Recurrent, Sequential)):
            return tells_last(layer)
        if not isinstance(layer, (Linear, Activation, Dropout, LayerNorm)):
            return False
    return False


def reads_steps(model: Layer) -> bool:
    """Return whether anything in a model is told apart by lengths: layers that read many steps."""
    return any(layer.takes_lengths for layer in layers_of(model) if not isinstance(layer, Model))


def measure(
    loss: Loss, y: Array, target: Array, counts: Any, weights: Any, time_major: bool, gradient: bool
) -> tuple[Any, Any, Any]:
    """Return the mean loss, by how much it counts (what the mean divides by), and its gradient.

    The first two are floats, or arrays without axes where a device has not been asked for them.
    A loss that overrides ``__call__`` and not `Loss.parts` is called, and counts by its steps.
    """
    if loss.takes_sequences and loss.batch_first is None:
        loss = copy.copy(loss)
        loss.batch_first = not time_major
    if (
        counts is not None
        and loss.batch_first is None
        and not time_major
        and counts.dtype != np.bool_
    ):
        # A mask [B,T] reads the same in either layout.
        counts = np.arange(y.shape[1]) < np.asarray(counts)[:, None]
    given = {} if weights is None else {"weights": weights}
    if _calls(loss):
        value, gradient_of_y = loss(y, target, counts, **given)
        if weights is not None:
            w = np.asarray(_device.host(weights))
            on = None if loss.takes_sequences else loss._mask(y, counts)  # one a sequence
            weight = float(w.sum() if on is None else w[on].sum())
        elif counts is None:
            weight = float(math.prod(y.shape[:-1]))
        else:
            weight = float(np.sum(counts))
        return _deferred.number(value), weight, gradient_of_y
    total, count, dy = loss.parts(y, target, counts, gradient=gradient, **given)
    dy = dy.rows if isinstance(dy, Ragged) else dy
    total, count = _deferred.number(total), _deferred.number(count)
    return _deferred.quotient(total, count), count, dy


def _calls(loss: Loss) -> bool:
    for kind in type(loss).__mro__:
        if "__call__" in vars(kind):
            return kind is not Loss
        if "parts" in vars(kind):
            return False
    return False


class Stepper:
    """Run a Trainer's model forward and backward on batches."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.outputs = trainer.outputs
        # Whether the model itself returns the outputs of one step.
        self.picks_step = self.outputs != "all" and tells_last(self.model)
        self.reduces = bool(getattr(self.model, "reduces_time", False))
        self.previous: Array | None = None  # the parameters before the last update
        self.sound: Any = 0.0  # on a device NaN from the first update on that was not made

    # -- forward -----------------------------------------------------------------------------------

    def forward(self, batch: Batch, state: Any) -> tuple[Any, Any]:
        """Return y and the state, without dropout."""
        with np.errstate(**QUIET):
            if not self.model.stateful:
                args, named = self._arguments(batch)
                return self.model(*args, **named), None
            if isinstance(batch.x, Inputs):
                y, state = self.model(*batch.x.args, **batch.x.named, state=state)
                return y, state
            options = self._stepped(batch)
            if self.picks_step:
                options["outputs"] = self.outputs
            y, state = self.model(batch.x, state, **options)
        return y, state

    def _vjp(self, batch: Batch, state: Any, rng: Any) -> tuple[Any, Any, Any]:
        given = {} if rng is None else {"rng": rng}
        if not self.model.stateful:
            if isinstance(self.model, Model):
                given = {**given, **self.trainer._options}
            args, named = self._arguments(batch)
            layer: Any = self.model
            y, pullback = layer.vjp(*args, **named, **given)
            return y, None, pullback
        if isinstance(batch.x, Inputs):
            named = {**batch.x.named, "state": state, **self.trainer._options, **given}
            model: Any = self.model
            (y, state), pullback = model.vjp(*batch.x.args, **named)
            return y, state, pullback
        options = self._stepped(batch)
        if self.model.takes_lengths:
            options.update(self.trainer._options)
        if self.picks_step:
            options["outputs"] = self.outputs
        (y, state), pullback = self.model.vjp(batch.x, state, **options, **given)
        return y, state, pullback

    def _arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what a model without a state is called with.

        Several inputs are all that it is given: lengths beside them are those of its outputs.
        """
        if isinstance(batch.x, Inputs):
            return batch.x.args, batch.x.named
        return (batch.x,), self._pooled(batch)

    def _stepped(self, batch: Batch) -> dict[str, Any]:
        """Return what a model with a state needs to know of the steps."""
        if isinstance(self.model, Model):
            self._refuse_unread(batch)
        return self._times(batch.times) if self.model.takes_lengths else {}

    def _pooled(self, batch: Batch) -> dict[str, Any]:
        """Return what a layer without a state, such as a Pool, needs to know of the steps."""
        if isinstance(self.model, Model):
            self._refuse_unread(batch)
        return {
            n: batch.times[n]
            for n in ("lengths", "mask")
            if self.model.takes_lengths and n in batch.times
        }

    def _refuse_unread(self, batch: Batch) -> None:
        """Raise if a model has layers that take lengths or masks, and its call takes none."""
        for name, value in self._times(batch.times).items():
            if value is None or takes(type(self.model), name) or not reads_steps(self.model):
                continue
            # Resets that reset nothing need not be known of; a device is asked last.
            if name != "resets" or bool(np.any(_device.host(value))):
                raise ValueError(
                    f"{name}: expected None for a {type(self.model).__name__}, whose __call__ "
                    f"takes no {name}, got {type(value).__name__}; give it such an "
                    "argument, and pass it on to its layers"
                )

    @staticmethod
    def _times(times: Times) -> dict[str, Any]:
        return {n: v for n, v in times.items() if n != "weights"}

    # -- what the loss sees ------------------------------------------------------------------------

    def counts(self, batch: Batch) -> Any:
        """Return what the loss is given: lengths, or a mask of the steps that count."""
        if batch.times.get("mask") is None:
            # Those of the outputs, of which a convolution with a stride gives fewer than the steps.
            return self.model._times_after({"lengths": batch.times.get("lengths")})["lengths"]
        on = taking_part(batch)
        return on if batch.time_major else on.T

    def seen(self, batch: Batch, y: Any) -> tuple[Array, Array, Any, Any, Any]:
        """Return outputs, targets, lengths or a mask, weights, and where the outputs stand in y.

        None stands for all of y.
        """
        weights = batch.times.get("weights")
        whole = self.trainer.loss.takes_sequences
        if self.outputs != "all" or self.reduces or whole:
            if weights is not None and np.shape(weights) != (batch.size,):
                raise ValueError(
                    f"weights: expected shape (B,) = ({batch.size},), got {np.shape(weights)}"
                )
            if whole:
                return self._whole(batch, y, weights)
            if self.reduces:
                return y, batch.target, None, weights, None
            where = self._last(batch)
            if self.picks_step:
                return y, batch.target, None, weights, None
            rows = y.rows if isinstance(y, Ragged) else y
            return rows[where], batch.target, None, weights, where
        weights = self._step_weights(batch, y, weights)
        if isinstance(y, Ragged):
            mask = batch.times.get("mask")
            if mask is None:
                return y.rows, batch.target, None, weights, None
            on = np.flatnonzero(mask)  # a device need not look for them
            return y.rows[on], batch.target[on], None, None if weights is None else weights[on], on
        return y, batch.target, self.counts(batch), weights, None

    def _whole(self, batch: Batch, y: Any, weights: Any) -> tuple[Any, Array, Any, Any, Any]:
        """Return what a loss of whole sequences sees: ragged outputs stay cut."""
        mask = batch.times.get("mask")
        if isinstance(y, Ragged) and mask is not None:
            ends, on = np.concatenate([[0], np.cumsum(mask)]), np.flatnonzero(mask)
            return Ragged(y.rows[on], ends[y.offsets]), batch.target, None, weights, on
        return y, batch.target, None if isinstance(y, Ragged) else self.counts(batch), weights, None

    @staticmethod
    def _step_weights(batch: Batch, y: Any, weights: Any) -> Any:
        """Return weights of every output in the batch's layout, from those of steps or sequences.

        Of a convolution with a stride there are fewer outputs than steps.
        """
        if weights is None:
            return None
        w = np.asarray(weights)
        if isinstance(y, Ragged):
            w = np.repeat(w, y.lengths) if len(w) == len(y) != len(y.rows) else w
            wanted: tuple[int, ...] = (len(y.rows),)
        else:
            wanted = y.shape[:2]
            if w.shape == (batch.size,):
                w = np.broadcast_to(w if batch.time_major else w[:, None], wanted)
        if w.shape != wanted:
            raise ValueError(f"weights: expected shape {(batch.size,)} or {wanted}, got {w.shape}")
        return w

    def _last(self, batch: Batch) -> Any:
        """Return the last step that counts of each sequence."""
        if isinstance(batch.x, Ragged):
            flags = batch.times.get("mask")
            on = batch.x.padded(np.ones(len(batch.x.rows), bool) if flags is None else flags)
        else:
            on = taking_part(batch)
        if not len(on) or not on.any(0).all():
            raise ValueError(
                f'lengths: expected at least 1 everywhere with outputs="{self.outputs}", got 0'
            )
        ends = len(on) - 1 - on[::-1].argmax(0)
        if isinstance(batch.x, Ragged):
            return batch.x.offsets[:-1] + ends
        every = np.arange(batch.size)
        return (ends, every) if batch.time_major else (every, ends)

    # -- backward ----------------------------------------------------------------------------------

    def gradients(self, window: Window, step: int, rng: Any, *, summed: bool) -> Result:
        """Add the gradients of a window's mean loss; with ``summed`` those of its sum."""
        batch, silent = window.batch, window.silent
        with np.errstate(**QUIET):
            y, state, pullback = self._vjp(batch, window.state, rng)
            if silent:
                loud = _cut(batch, silent, None)
                picked, target, counts, weights, where = self.seen(
                    loud, _steps(y, batch.axis, silent, None)
                )
            else:
                picked, target, counts, weights, where = self.seen(batch, y)
            value, weight, d = measure(
                self.trainer.loss, picked, target, counts, weights, batch.time_major, gradient=True
            )
            why = culprit_of(batch)
            _deferred.refuse_non_finite(
                value, lambda: diverged(f"the loss is {float(value)} at step {step}\n{why()}")
            )
            result = Result(value, weight, state)
            if result.counts:
                d = d * _deferred.scalar(weight, d.dtype) if summed else d
                pullback(self._spread(y, d, where, batch, silent), need_dx=False)
        return result

    def _spread(self, y: Any, d: Array, where: Any, batch: Batch, silent: int) -> Array:
        """Return the gradient of all of y, from that of what the loss saw."""
        if where is None and not silent:
            return d
        dy: Array = np.zeros_like(y.rows if isinstance(y, Ragged) else y)
        dy[where if where is not None else (slice(None),) * batch.axis + (slice(silent, None),)] = d
        return dy

    def apply(
        self,
        step: int,
        loss: Any,
        weight: Any,
        checks: Sequence[_deferred.Check],
        *,
        summed: bool,
    ) -> Any:
        """Clip the gradients and move the parameters; returns the norm before clipping.

        On a device nothing is waited for: whether the checks of this step and of those before it
        have passed is a flag there, without which nothing moves.
        """
        t, model = self.trainer, self.model
        with np.errstate(**QUIET):
            if summed:
                scale(model, 1 / _deferred.divisor(weight))
            norm = norm_of(model.flat_grads)
            _deferred.refuse_non_finite(
                norm,
                lambda: diverged(
                    f"the gradients are not finite at step {step}, at a loss of {float(loss):.6g}"
                ),
            )
            if t.clip_value is not None:
                clip_by_value(model, t.clip_value)
            factor = None
            if t.clip_norm is not None:
                now = norm if t.clip_value is None else norm_of(model.flat_grads)
                factor = factor_of(now, t.clip_norm)
            self._move(self._passed(checks, weight), factor)
        return norm

    def _passed(self, checks: Sequence[_deferred.Check], weight: Any) -> Any:
        """Return a flag of the device: all is well so far, and something counts; None: it is."""
        for check in checks:
            self.sound = check.marked(self.sound)
        if not checks:
            return None
        passed = self.sound == 0
        return passed if _device.of(weight) is None else passed & (weight != 0)

    def _move(self, where: Any, factor: Any) -> None:
        """Make the update, if a flag of the device is True or there is none.

        It is along the gradients times ``factor``, and keeps what the parameters were.
        """
        model, optimizer = self.model, self.trainer.optimizer
        p = model.flat
        if self.previous is None or self.previous.shape != p.shape:
            self.previous = p.copy()
        also = Also(factor, self.previous)
        if type(optimizer).step is Optimizer.step:
            optimizer._advance(model, where, also)
            return
        also.apply(p, model._writable_grads().flat, where)
        if where is None or bool(where):  # a step of the user's own knows of no flag
            optimizer.step(model)

    # -- truncated backpropagation -----------------------------------------------------------------

    def next_window(self, batch: Batch, walk: Walk) -> Window | None:
        """Return the window of a batch that comes next; None where only padding is left.

        Without ``tbptt`` a batch is one window.
        """
        if self.trainer.tbptt is None:
            return Window(batch, walk.known[0])
        if isinstance(batch.x, Inputs):
            _check_steps(batch)
        if isinstance(batch.x, Ragged):
            raise ValueError(
                "tbptt: expected None with ragged sequences; pad them and give lengths"
            )
        k1, k2 = self.trainer.tbptt
        lengths = batch.times.get("lengths")
        if lengths is not None and not (np.asarray(lengths) > walk.done).any():
            return None  # all further steps are padding
        end = min(walk.done + k1, batch.steps)
        start = max(0, end - k2) if walk.done else 0
        begin = max(t for t in walk.known if t <= start)
        walk.known = {t: s for t, s in walk.known.items() if t >= begin}
        if begin < start:
            walk.known[start] = self.forward(_cut(batch, begin, start), walk.known[begin])[1]
        return Window(_cut(batch, start, end), walk.known[start], walk.done - start)

    def advance(self, batch: Batch, walk: Walk, state: Any) -> bool:
        """Note that the window at ``walk.done`` has been seen; whether the batch is at its end."""
        stride = batch.steps if self.trainer.tbptt is None else self.trainer.tbptt[0]
        walk.done = min(walk.done + stride, batch.steps)
        walk.known[walk.done] = state
        lengths = batch.times.get("lengths")
        return walk.done >= batch.steps or (
            self.trainer.tbptt is not None
            and lengths is not None
            and not (np.asarray(lengths) > walk.done).any()
        )

    def loss_of(self, window: Window) -> float:
        """Return the mean loss of a window with the present parameters, without dropout."""
        with np.errstate(**QUIET):
            y, _ = self.forward(window.batch, window.state)
            part = window.batch
            if window.silent:
                part = _cut(part, window.silent, None)
                y = _steps(y, part.axis, window.silent, None)
            picked, target, counts, weights, _ = self.seen(part, y)
            value, _, _ = measure(
                self.trainer.loss, picked, target, counts, weights, part.time_major, gradient=False
            )
        return float(value)


def _steps(a: Array, axis: int, start: int, end: int | None) -> Array:
    return a[start:end] if axis == 0 else a[:, start:end]


def _parts(x: Any, axis: int, start: int, end: int) -> Any:
    """Return the steps from start to end of the input, or of all of several ones."""
    if isinstance(x, Inputs):
        return x.mapped(lambda _, a: _check.contiguous(_steps(a, axis, start, end)))
    return _steps(x, axis, start, end)


def _check_steps(batch: Batch) -> None:
    """Raise if a batch of several inputs cannot be cut in time: all must have the target's steps.

    One that has none is not told from one that has as many features as there are steps.
    """
    if batch.per_sequence:
        raise ValueError("tbptt: expected a target of every step, got one a sequence")
    wanted = f"tbptt: expected inputs of T = {batch.steps} steps, as the target has, got"
    for name, a in batch.x.items():
        if isinstance(a, Ragged):
            raise ValueError(f"{wanted} ragged sequences as {name}; pad them and give lengths")
        if a.ndim < 2 or a.shape[batch.axis] != batch.steps:
            raise ValueError(f"{wanted} {name} of shape {a.shape}; repeat it for every step")


def _cut(batch: Batch, start: int, end: int | None) -> Batch:
    """Return the steps from start to end of a batch, as a batch."""
    stop = batch.steps if end is None else end
    times = dict(batch.times)
    if times.get("lengths") is not None:
        times["lengths"] = np.clip(np.asarray(times["lengths"]) - start, 0, stop - start)
    for name in ("resets", "mask", "weights"):
        if times.get(name) is not None and np.ndim(times[name]) == 2:
            times[name] = _steps(times[name], batch.axis, start, stop)
    x = _parts(batch.x, batch.axis, start, stop)
    target = _steps(batch.target, batch.axis, start, stop)
    return replace(batch, x=x, target=target, times=times)


def check_strides(
    tbptt: Any, recurrent: list[Recurrent], per_sequence: str | None
) -> tuple[int, int]:
    """Check ``(k1, k2)``; ``per_sequence`` names what gives one output a sequence, or is None."""
    if not isinstance(tbptt, (tuple, list)) or len(tbptt) != 2:
        raise TypeError(f"tbptt: expected a pair (k1, k2), got {tbptt!r}")
    k1, k2 = (_check.positive("tbptt", k) for k in tbptt)
    if k1 > k2:
        raise ValueError(
            f"tbptt: expected k1 <= k2, or steps would have no gradient, got k1 = {k1}, k2 = {k2}"
        )
    if per_sequence is not None:
        raise ValueError(
            'tbptt: expected outputs="all", since most windows do not hold the last step, '
            f"got {per_sequence}"
        )
    if not recurrent or any(m.bidirectional for m in recurrent):
        raise ValueError(
            "tbptt: expected recurrent layers of one direction, whose state can be carried on"
        )
    return k1, k2
