"""Measure a model on data, and give its outputs: what a Trainer does without training."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _deferred, _device
from .._check import Array
from .._ragged import Ragged, as_given, flat_flags, leaves
from ..data import Inputs, whole_input
from . import metrics as _metrics
from ._inputs import Source, culprit_of, refuse_non_finite
from ._parallel import ALONE, Parallel
from ._step import Stepper, measure
from ._types import Batch, Row, Times
from ._unread import Tally
from .metrics import Metric

if TYPE_CHECKING:
    from ._trainer import Trainer


def evaluate(trainer: Trainer, source: Source, ranks: Parallel = ALONE) -> tuple[Row, str]:
    """Return the figures, and what is known of the first value that is not finite.

    Ranks that have a part of the data each measure it together.
    """
    stepper, state, tally, batches = Stepper(trainer), None, Tally(), 0
    metrics = {
        name: copy.deepcopy(m)
        if not isinstance(m, _metrics.Function)
        else _metrics.Function(m.function)
        for name, m in trainer.metrics.items()
    }
    for metric in metrics.values():
        metric.reset()
    for batch in source.batches(0):
        batches += 1
        if batch.x is None:
            continue
        with _deferred.gathered() as checks:
            y, new = stepper.forward(batch, state)
            state = new if source.carries_state else None
            picked, target, counts, weights, _ = stepper.seen(batch, y)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                value, n, _ = measure(
                    trainer.loss, picked, target, counts, weights, batch.time_major, gradient=False
                )
        tally.add(value, n, checks, culprit_of(batch))
        for metric in metrics.values():
            _feed(metric, picked, target, counts, batch)
    tally.read()
    if batches == 0:
        raise ValueError(
            "data: expected at least one batch, got none (an iterator serves once: give a "
            "loader or a list)"
        )
    total, count = tally.total, tally.count
    if source.part is not None:
        total, count = ranks._exchange("a validation", total, count).sum(0).tolist()
        metrics = _merged(metrics, ranks)
    if not count:
        raise ValueError(
            f"{source.name}: expected at least one step that counts in the loss, got none"
        )
    return {
        "loss": total / count,
        **{n: float(m.compute()) for n, m in metrics.items()},
    }, tally.culprit


def _merged(metrics: dict[str, Any], ranks: Parallel) -> dict[str, Any]:
    """Return metrics of what all ranks have gathered, in their order."""
    if not metrics:
        return metrics
    # What cannot be sent is an error before the transfer, of which the others can be told.
    packed = pickle.dumps(metrics)
    ranks._exchange("the metrics of a validation")
    first, *others = map(pickle.loads, ranks._collect_all(packed))
    for other in others:
        for name, metric in first.items():
            metric.merge(other[name])
    return dict(first)


def _feed(metric: Metric, y: Array, target: Array, counts: Any, batch: Batch) -> None:
    """Give a batch to a metric: to a function as it counts, to others as a mask."""
    if not metric.takes_sequences:
        target = _device.like(target, y)
    if isinstance(metric, _metrics.Function):
        metric.add(y, target, counts)
        return
    if counts is not None and counts.dtype != np.bool_:
        on = np.arange(y.shape[0 if batch.time_major else 1])[:, None] < np.asarray(counts)
        counts = on if batch.time_major else on.T
    if metric.takes_sequences:
        metric.update(_cut_rows(y, counts, batch.time_major), target)
    else:
        metric.update(y, target, counts)


def _cut_rows(y: Any, on: Any, time_major: bool) -> Ragged:
    """Return the steps that count, one sequence after the other, on the host."""
    if isinstance(y, Ragged):
        return y.like(_device.host(y.rows))
    y = _device.host(y)
    on = np.ones(y.shape[:2], bool) if on is None else np.asarray(_device.host(on))
    if time_major:
        y, on = y.swapaxes(0, 1), on.T
    return Ragged(y[on], np.concatenate([[0], np.cumsum(on.sum(1))]))


def predict_several(trainer: Trainer, x: Inputs, beside: dict[str, Any], batch_size: int) -> Any:
    """Return the outputs of a model of several inputs."""
    for name, value in beside.items():
        if value is not None:
            raise ValueError(f"{name}: expected it among the inputs of the model")
    form = trainer._form()
    inputs = x.mapped(whole_input).mapped(form.converted)
    form.refuse_arrays("x", inputs)
    count, parts, stepper = inputs.count(), [], Stepper(trainer)
    with _deferred.gathered() as checks:
        for k in range(0, max(count, 1), batch_size):
            some = inputs.take(np.arange(k, min(k + batch_size, count)))
            batch = Batch(some, None, {}, False)
            refuse_non_finite(batch)
            parts.append(stepper.forward(replace(batch, x=form.placed(some)), None)[0])
    _deferred.raise_first(checks)
    if isinstance(parts[0], Ragged):
        joined = [one for part in parts for one in part.like(_device.host(part.rows))]
        return Ragged.join(joined)
    return _device.host(np.concatenate(parts))


def predict_ragged(trainer: Trainer, x: Ragged, listed: bool, times: Times, batch_size: int) -> Any:
    """Return the outputs for sequences that are cut, of all steps or of one."""
    if "lengths" in times:
        raise ValueError(
            f"lengths: expected None with ragged sequences, got {type(times['lengths']).__name__}"
        )
    names = [n for n in ("mask", "resets") if n in times]
    flags = {n: flat_flags(n, times[n], x) for n in names}
    more = {n: v for n, v in times.items() if n not in flags}
    parts, lengths, stepper = [], [], Stepper(trainer)
    with _deferred.gathered() as checks:
        for k in range(0, max(len(x), 1), batch_size):
            some = np.arange(k, min(k + batch_size, len(x)))
            part = x.take(some)
            cut: Times = {n: x.like(f).take(some).rows for n, f in flags.items() if f is not None}
            batch = Batch(part, None, {**more, **cut}, bool(trainer.time_major))
            refuse_non_finite(batch)
            batch = replace(batch, x=trainer._placed(part))
            y = outputs_of(trainer, stepper, batch)
            parts.append(y.rows if isinstance(y, Ragged) else y)
            lengths.append(y.lengths if isinstance(y, Ragged) else part.lengths)
    _deferred.raise_first(checks)
    y = np.concatenate(parts)
    y = _device.host(y) if isinstance(leaves(x), np.ndarray) else y
    if trainer.outputs != "all" or stepper.reduces:
        return y
    offsets = np.cumsum([0, *np.concatenate(lengths)])
    if np.array_equal(offsets, x.offsets):
        return as_given(y, x, listed)
    # A convolution with a stride gives fewer outputs than steps.
    return as_given(y, Ragged(y, offsets), listed)


def outputs_of(trainer: Trainer, stepper: Stepper, batch: Batch) -> Any:
    """Return what the user sees of a batch: all outputs, or those of one step."""
    y, _ = stepper.forward(batch, None)
    if trainer.outputs == "all" or stepper.reduces:
        return y
    picked: Array = stepper.seen(batch, y)[0]
    return picked
