"""Measure the error of int8 and bfloat16 on data, in a layer and in all layers of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged
from ._description import named_layers
from ._layer import Layer
from ._scales import balanced_scales, ranges_of
from ._walk import layers_of

if TYPE_CHECKING:
    from ._quantization import ScaledInputs

GOOD = 0.03  # the relative error of outputs that the documents promise for inputs of like ranges
WIDE = 100.0  # ratio of feature ranges from which the features share a scale badly


@dataclass(frozen=True, repr=False)
class QuantizationReport:
    """Hold what ``layer.quantization_report(x)`` measured; its ``repr()`` is a text.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
    >>> report = ost.nn.LSTM(3, 16, rng=0).quantization_report(x)
    >>> sorted(report.errors)
    ['bfloat16', 'int8', 'int8 calibrated']

    Attributes:
        layer: what was measured.
        errors: precision to the relative error of the outputs against float32,
            ``|y - y32| / |y32|`` with Frobenius norms: "bfloat16"; "int8", with the layer's
            `input_scale`; "int8 calibrated", with the scales that `calibrate` would set.
        worst: precision to ``(feature, error)``: the output feature with the largest relative
            error.
        input_ranges: ``[I]``, max |x| of every input feature over the steps that take part.
        range_ratio: the largest of these ranges over the smallest that is not zero.
        calibrated: whether the layer has an `input_scale`.
        advice: what to do, one sentence an entry.
    """

    layer: str
    errors: dict[str, float]
    worst: dict[str, tuple[int, float]]
    input_ranges: Array
    range_ratio: float
    calibrated: bool
    advice: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [
            f"{self.layer} on this data, against float32",
            "  precision        error of y   worst feature of y",
        ]
        for name, error in self.errors.items():
            feature, worst = self.worst[name]
            lines.append(f"  {name:<16} {error:>10.3%}   {worst:.3%} (feature {feature})")
        low, high = int(self.input_ranges.argmin()), int(self.input_ranges.argmax())
        lines.append(
            f"  input ranges     {self.input_ranges[low]:.3g} (feature {low}) to "
            f"{self.input_ranges[high]:.3g} "
            f"(feature {high}), ratio {self.range_ratio:.3g}"
        )
        return "\n".join([*lines, *(f"  advice           {a}" for a in self.advice)])


@dataclass(frozen=True, repr=False)
class ModelQuantizationReport:
    """Hold what ``model.quantization_report(x)`` measured; ``report["0"]`` is that of a layer.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(ost.nn.GRU(3, 5, rng=0), ost.nn.Linear(5, 1, rng=0))
    >>> report = model.quantization_report(np.ones((4, 2, 3), np.float32))
    >>> report["0"].layer
    'GRU(3, 5)'

    Attributes:
        layers: names of recurrent layers to their reports, which are of all calls of a layer. Those
            with functions, a clip or coupled gates of their own have no int8 and are not here.
    """

    layers: dict[str, QuantizationReport]

    def __getitem__(self, name: str) -> QuantizationReport:
        return self.layers[name]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {report!r}" for name, report in self.layers.items())


def layer_report(layer: ScaledInputs, calls: list[Given]) -> QuantizationReport:
    """Return the report of a recurrent layer; see `ScaledInputs.quantization_report`.

    Args:
        layer: the layer.
        calls: x, the state and the options of each call.
    """
    ranges = _ranges(layer, calls)
    if layer._scalars:
        raise ValueError(
            f"layer: expected one that has int8, got {layer!r}, whose functions, clip or coupled "
            "gates are its own"
        )
    probe = copy.deepcopy(layer)
    probe.precision = "float32"

    def outputs() -> Array:
        return np.concatenate([_rows(probe(x, state, **times)[0]) for x, state, times in calls])

    exact = outputs()
    errors, worst = {}, {}
    for name in ("bfloat16", "int8", "int8 calibrated"):
        probe.precision = name.split()[0]
        if name == "int8 calibrated":
            probe.input_scale = balanced_scales(probe, ranges)
        y = outputs()
        errors[name] = float(_relative(y - exact, exact, None))
        each = _relative(y - exact, exact, 0)
        worst[name] = int(each.argmax()), float(each.max())
    some = ranges[ranges > 0]
    ratio = float(some.max() / some.min()) if some.size else 1.0
    calibrated = layer._input_scale is not None
    advice = tuple(_advice(errors, worst, ratio, calibrated))
    return QuantizationReport(
        repr(layer), errors, worst, _check.read_only(ranges), ratio, calibrated, advice
    )


def _ranges(layer: ScaledInputs, calls: list[Given]) -> Array:
    """Return max |x| of every feature ``[I]`` over the steps of all calls that take part."""
    each = [ranges_of(layer, x, o.get("lengths"), o.get("mask")) for x, _, o in calls]
    ranges: Array = np.maximum.reduce(each)
    return ranges


def _rows(y: Any) -> Array:
    """Return outputs of any kind as float64 ``[N,O]``."""
    y = y.rows if isinstance(y, Ragged) else np.concatenate(y) if isinstance(y, list) else y
    rows: Array = y.reshape(-1, y.shape[-1]).astype(np.float64)
    return rows


def _relative(difference: Array, exact: Array, axis: int | None) -> Any:
    """Return norms of the difference over those of the exact numbers; 0 where both are zero."""
    a, b = (np.sqrt((v * v).sum(axis)) for v in (difference, exact))
    return np.where(a == 0, 0.0, a / np.where(b > 0, b, 1)) + np.where(
        (a > 0) & (b == 0), np.inf, 0.0
    )


def _advice(
    errors: dict[str, float], worst: dict[str, tuple[int, float]], ratio: float, calibrated: bool
) -> Iterator[str]:
    now, better, half = errors["int8"], errors["int8 calibrated"], errors["bfloat16"]
    if better < 0.7 * now:
        yield f"calibrate(x) brings the error of int8 from {now:.2%} to {better:.2%}"
    if ratio >= WIDE and not calibrated:
        yield (
            f"the ranges of the input features differ by {ratio:.3g} times, and int8 has one scale "
            "for all: "
            + (
                "calibrate(x) gives each its own"
                if better < 0.7 * now
                else "standardise them before training"
            )
        )
    if now > GOOD and better > GOOD:
        yield (
            f"precision='bfloat16', which is off by {half:.2%}: int8 is off by "
            f"{min(now, better):.2%} at best"
        )
    if now <= GOOD:
        feature, error = worst["int8"]
        if error > 3 * GOOD:
            yield f"look at output feature {feature}, which int8 has off by {error:.2%}"
        yield f"int8 is off by {now:.2%} on this data: below the {GOOD:.0%} that is usual"


Given = tuple[Any, Any, dict[str, Any]]  # x, the state and the options of a call
Calls = list[tuple[str, "ScaledInputs", Given]]  # with the name of the layer, and the layer


class _Recorder(Layer):
    """A recurrent layer within a model that records its calls and runs in its dtype."""

    stateful = True
    takes_lengths = True
    _layer_attributes = frozenset({"layer", "exact"})  # of another model

    def __init__(self, name: str, layer: ScaledInputs, calls: Calls) -> None:
        super().__init__(dtype=layer.dtype)
        self.name, self.layer, self.calls = name, layer, calls
        self.batch_first = layer.batch_first
        self.exact = layer
        if layer.precision != layer.dtype.name:
            self.exact = copy.deepcopy(layer)
            self.exact.precision = layer.dtype.name

    def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
        self.calls.append((self.name, self.layer, (x, state, times)))
        return self.exact(x, state, **times)


def _recording(model: Any, calls: Calls, prefix: str = "") -> Any:
    """Return a model that shares the layers of another and records its recurrent calls."""
    shadow = object.__new__(type(model))
    shadow.__dict__.update(model.__dict__)
    layers = []
    for name, layer in zip(model._names, model.layers):
        if hasattr(layer, "_names"):
            layer = _recording(layer, calls, f"{prefix}{name}.")
        elif hasattr(layer, "input_scale"):
            layer = _Recorder(prefix + name, layer, calls)
        elif any(hasattr(one, "input_scale") for one in layers_of(layer)):
            layer = _recording_copy(layer, calls, f"{prefix}{name}.")
        layers.append(layer)
    shadow.layers = tuple(layers)
    return shadow


def _recording_copy(model: Layer, calls: Calls, prefix: str) -> Layer:
    """Return a copy of a model of any class that records its recurrent calls."""
    try:
        twin = copy.deepcopy(model)
    except TypeError as e:  # of an attribute of the user's, such as a lock
        raise TypeError(
            f"model: expected layers that copy.deepcopy copies, got a {type(model).__name__}: {e}"
        ) from e
    own = dict(named_layers(model))
    for name, layer in named_layers(twin):
        if hasattr(layer, "input_scale"):
            layer.precision = layer.dtype.name
            layer.__dict__["_recorded"] = prefix + name, own[name], calls
            object.__setattr__(layer, "__class__", _recorder_of(type(layer)))
    return twin


def _recorder_of(kind: Any) -> Any:
    """Return a class of recurrent layers that note what they are given."""

    def call(self: Any, x: Any, state: Any = None, **times: Any) -> Any:
        name, layer, calls = self._recorded
        calls.append((name, layer, (x, state, times)))
        return kind.__call__(self, x, state, **times)

    own: Any = type(kind.__name__, (kind,), {})
    own.__call__ = call  # only now: a class that is made with it would be wrapped
    return own


def calls_of(
    model: Any, x: Any, state: Any, times: dict[str, Any]
) -> list[tuple[str, ScaledInputs, list[Given]]]:
    """Run a model; return the recurrent layers that it ran, with names and all of their calls."""
    calls: Calls = []
    _recording(model, calls)(x, state, **times)
    if not calls:
        raise TypeError(f"model: expected recurrent layers in it, got {model!r}")
    layers = {name: layer for name, layer, _ in calls}
    return [
        (name, layer, [given for other, _, given in calls if other == name])
        for name, layer in layers.items()
    ]


def model_report(model: Any, x: Any, state: Any, times: dict[str, Any]) -> ModelQuantizationReport:
    """Return the reports of a model's recurrent layers, each on the inputs that it gets."""
    calls = calls_of(model, x, state, times)
    of_int8 = [call for call in calls if not call[1]._scalars]
    return ModelQuantizationReport(
        {name: layer_report(layer, given) for name, layer, given in of_int8 or calls}
    )


def calibrate_all(model: Any, x: Any, state: Any, times: dict[str, Any]) -> None:
    """Set the scales of all recurrent layers of a model, or of none."""
    calls = calls_of(model, x, state, times)
    scales = [balanced_scales(layer, _ranges(layer, given)) for _, layer, given in calls]
    for (_, layer, _), scale in zip(calls, scales):
        layer.input_scale = scale


readable(globals())
