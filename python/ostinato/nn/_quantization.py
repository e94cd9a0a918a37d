"""Choose scales for the inputs of int8 layers from data, and report the error of int8 on data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _native
from .._annotations import readable
from .._check import Array, Lengths
from .._ragged import Ragged, rows_that_count, unwrapped
from ._layer import Layer

GOOD = 0.03  # the relative error of outputs that the documents promise for inputs of like ranges
WIDE = 100.0  # ratio of feature ranges from which the features share a scale badly
SMALLEST_SCALE, LARGEST_SCALE = (
    1e-30,
    1e30,
)  # products with weights stay far from the ends of float32


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
        layers: names of recurrent layers to their reports.
    """

    layers: dict[str, QuantizationReport]

    def __getitem__(self, name: str) -> QuantizationReport:
        return self.layers[name]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {report!r}" for name, report in self.layers.items())


class ScaledInputs(Layer):
    """Add the scales of the inputs of an int8 layer, and measurements of its error."""

    input_size: int
    batch_first: bool
    precision: Any  # the property is that of Recurrent
    _input_scale: Array | None = None
    _scales_set: int = 0  # how often, which tells packed weights of old scales

    @property
    def input_scale(self) -> Array | None:
        """Scales ``[I]`` of the input features for ``precision="int8"``, or None; read-only.

        int8 has one scale for all features of a step, so a feature of small range is lost beside
        one that is 100 times larger. With scales s the layer computes ``(W_ih * s) (x / s)``, which
        is the same but for rounding. Other precisions ignore the scales. They may be set to
        positive numbers, or chosen by `calibrate`; powers of two divide exactly.

        The scales are pickled and copied with the layer. They are no parameters: `state_dict` and
        `save` have PyTorch's names alone, and after `load` the scales must be set or calibrated
        again.

        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(2, 5, precision="int8", rng=0)
        >>> layer.input_scale = [1, 128]
        >>> layer.input_scale.tolist()
        [1.0, 128.0]
        """
        return None if self._input_scale is None else _check.read_only(self._input_scale.view())

    @input_scale.setter
    def input_scale(self, value: npt.ArrayLike | None) -> None:
        scale = None
        if value is not None:
            _refuse_float64(self)
            given = np.asarray(value)
            if given.dtype.kind not in "fiu":
                raise TypeError(f"input_scale: expected numbers or None, got {value!r}")
            if given.shape != (self.input_size,):
                raise ValueError(
                    f"input_scale: expected shape (I,) = ({self.input_size},), got {given.shape}"
                )
            bad = np.flatnonzero(~((given >= SMALLEST_SCALE) & (given <= LARGEST_SCALE)))
            if bad.size:
                raise ValueError(
                    f"input_scale: expected positive numbers from {SMALLEST_SCALE:g} to "
                    f"{LARGEST_SCALE:g}, "
                    f"got {given[bad[0]]} for feature {bad[0]}"
                )
            scale = np.array(given, np.float32)
        self._input_scale = scale
        self._scales_set += 1
        self._block.changes += 1
        self._cache = None

    def calibrate(self, x: Any, *, lengths: Lengths = None, mask: Array | None = None) -> Any:
        """Choose `input_scale` from data, for ``precision="int8"``; return the layer.

        A feature's scale is ``sqrt(max |x| / max |W|)``, with its largest input and the largest of
        its weights ``weight_ih_l0``, as a power of two: the ranges of the inputs and of the weights
        then differ equally little. Calibrate again when the weights have changed much.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(2, 5, precision="int8", rng=0)
        >>> x = np.array([[[1.0, 1000.0]], [[-2.0, 500.0]]], np.float32)
        >>> scale = layer.calibrate(x).input_scale
        >>> bool(scale[1] > 10 * scale[0])
        True

        Args:
            x: inputs as in a call.
            lengths: as in a call; steps past the end of a row do not count.
            mask: as in a call; masked steps do not count.

        Returns:
            The layer itself.

        Raises:
            TypeError: a layer of float64, which has no int8.
            ValueError: a layer that is not on the CPU; no step at all, or values that are not
                finite. The layer stays as it was.
        """
        self.input_scale = _chosen(self, _ranges(self, x, lengths, mask))
        return self

    def quantization_report(self, x: Any, state: Any = None, **times: Any) -> QuantizationReport:
        """Measure what int8 and bfloat16 cost in accuracy on this data; the layer stays as it is.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> layer = ost.nn.LSTM(3, 16, rng=0)
        >>> x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
        >>> report = layer.quantization_report(x)
        >>> report.errors["int8"] < 0.03
        True
        >>> print(report)  # doctest: +ELLIPSIS
        LSTM(3, 16) on this data, against float32
          precision        error of y   worst feature of y
          bfloat16 ...

        Args:
            x: inputs as in a call.
            state: state as in a call.
            **times: options of a call, such as ``lengths`` and ``mask``.

        Returns:
            The errors of the outputs, the ranges of the inputs, and advice.

        Raises:
            TypeError: a layer of float64, which has no int8.
            ValueError: a layer that is not on the CPU; no step, or inputs that are not finite.
        """
        ranges = _ranges(self, x, times.get("lengths"), times.get("mask"))
        probe = copy.deepcopy(self)
        probe.precision = "float32"
        exact = _rows(probe(x, state, **times)[0])
        errors, worst = {}, {}
        for name in ("bfloat16", "int8", "int8 calibrated"):
            probe.precision = name.split()[0]
            if name == "int8 calibrated":
                probe.input_scale = _chosen(probe, ranges)
            y = _rows(probe(x, state, **times)[0])
            errors[name] = float(_relative(y - exact, exact, None))
            each = _relative(y - exact, exact, 0)
            worst[name] = int(each.argmax()), float(each.max())
        some = ranges[ranges > 0]
        ratio = float(some.max() / some.min()) if some.size else 1.0
        calibrated = self._input_scale is not None
        advice = tuple(_advice(errors, worst, ratio, calibrated))
        return QuantizationReport(
            repr(self), errors, worst, _check.read_only(ranges), ratio, calibrated, advice
        )

    def _scale_in_use(self) -> Array | None:
        return self._input_scale if self.precision == "int8" else None

    def _scaled(self, x: Array) -> Array:
        """Return inputs divided by their scales, if there are such and x is of the right dtype."""
        scale = self._scale_in_use()
        if scale is None or x.dtype != scale.dtype:  # another dtype is refused by name further on
            return x
        out: Array = x * (np.float32(1) / scale)
        return out

    def _scaled_weights(
        self, parts: list[list[Array | None]], directions: int
    ) -> list[list[Array | None]]:
        """Return the parts of a stack with the scales in the weights that read the inputs."""
        scale = self._scale_in_use()
        if scale is None:
            return parts
        return [
            [p[0] * scale, *p[1:]] if k < directions and p[0] is not None else p
            for k, p in enumerate(parts)
        ]

    def _join_scales(self, native: Any) -> None:
        """Divide by the scales in a stream: a diagonal matrix gives the same bits."""
        scale = self._scale_in_use()
        if scale is not None:
            make = _native.backend_for(self._block.values).PackedLinear
            native.add_linear(make(np.diag(np.float32(1) / scale), None, False))


def _refuse_float64(layer: ScaledInputs) -> None:
    if layer.dtype != np.float32:
        raise TypeError(f"layer: expected dtype float32, which has int8, got {layer.dtype}")


def _ranges(layer: ScaledInputs, x: Any, lengths: Lengths, mask: Any) -> Array:
    """Return max |x| of every feature ``[I]`` over the steps that take part."""
    _refuse_float64(layer)
    if layer.device != "cpu":
        raise ValueError(
            f'layer: expected one on the CPU, got one on {layer.device}; use layer.to("cpu")'
        )
    x, _ = unwrapped(x)
    shape = x.rows.shape if isinstance(x, Ragged) else np.shape(x)
    if not isinstance(x, Ragged) and _check.array("x", x, (2, 3)).ndim == 2:  # one sequence
        axis = 0 if layer.batch_first else 1
        x = np.expand_dims(x, axis)
        mask = None if mask is None else np.expand_dims(_check.array("mask", mask, 1), axis)
        lengths = None if lengths is None else np.reshape(np.asarray(lengths), (1,))
    sequences, on = rows_that_count(x, lengths, mask, layer.batch_first)
    rows = sequences.rows if on.all() else sequences.rows[on]
    if rows.ndim != 2 or rows.shape[1] != layer.input_size:
        raise ValueError(f"x: expected I = {layer.input_size} features, got shape {shape}")
    if rows.dtype != layer.dtype:
        raise TypeError(
            f"x: expected dtype {layer.dtype}, got {rows.dtype}; use x.astype(np.{layer.dtype})"
        )
    if rows.size == 0:
        raise ValueError(f"x: expected at least one step that takes part, got shape {shape}")
    out: Array = np.maximum(rows.max(0), -rows.min(0))
    bad = np.flatnonzero(~np.isfinite(out))
    if bad.size:
        raise ValueError(f"x: expected finite values, got {out[bad[0]]} in feature {bad[0]}")
    return out


def _chosen(layer: ScaledInputs, ranges: Array) -> Array:
    """Return the scales that balance the ranges of the inputs and of the weights that read them."""
    ends = [
        a for n, a in layer.parameters().items() if n in ("weight_ih_l0", "weight_ih_l0_reverse")
    ]
    x, w = ranges.astype(np.float64), np.abs(np.concatenate(ends)).max(0).astype(np.float64)
    if not np.isfinite(w).all():
        raise ValueError("weight_ih_l0: expected finite weights for int8, got some that are not")
    both = np.sqrt(x * w)
    level = both.max() or 1.0
    # A feature that is always zero, or that no weight reads, is to widen neither range.
    scale = np.ones_like(x)
    np.divide(x, np.where(both > 0, both, level), out=scale, where=x > 0)
    np.divide(level, w, out=scale, where=(x == 0) & (w > 0))
    exponents = np.rint(np.log2(np.clip(scale, 2 * SMALLEST_SCALE, LARGEST_SCALE / 2)))
    chosen: Array = np.exp2(exponents).astype(np.float32)
    return chosen


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


# -- models ----------------------------------------------------------------------------------------
# ----------------------


class _Recorder(Layer):
    """A recurrent layer within a model that records its calls and runs in its dtype."""

    stateful = True
    takes_lengths = True
    _layer_attributes = frozenset({"layer", "exact"})  # of another model

    def __init__(self, name: str, layer: ScaledInputs, calls: list[Any]) -> None:
        super().__init__(dtype=layer.dtype)
        self.name, self.layer, self.calls = name, layer, calls
        self.batch_first = layer.batch_first
        self.exact = layer
        if layer.precision != layer.dtype.name:
            self.exact = copy.deepcopy(layer)
            self.exact.precision = layer.dtype.name

    def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
        self.calls.append((self.name, self.layer, x, state, times))
        return self.exact(x, state, **times)


def _recording(model: Any, calls: list[Any], prefix: str = "") -> Any:
    """Return a model that shares the layers of another and records its recurrent calls."""
    shadow = object.__new__(type(model))
    shadow.__dict__.update(model.__dict__)
    layers = []
    for name, layer in zip(model._names, model.layers):
        if isinstance(layer, ScaledInputs):
            layer = _Recorder(prefix + name, layer, calls)
        elif hasattr(layer, "_names"):
            layer = _recording(layer, calls, f"{prefix}{name}.")
        layers.append(layer)
    shadow.layers = tuple(layers)
    return shadow


def calls_of(model: Any, x: Any, state: Any, times: dict[str, Any]) -> list[Any]:
    """Run a model; return name, layer, x, state and options of each recurrent call."""
    calls: list[Any] = []
    _recording(model, calls)(x, state, **times)
    if not calls:
        raise TypeError(f"model: expected recurrent layers in it, got {model!r}")
    return calls


def report_of(model: Any, x: Any, state: Any, times: dict[str, Any]) -> ModelQuantizationReport:
    """Return the reports of a model's recurrent layers, each on the inputs that it gets."""
    calls = calls_of(model, x, state, times)
    return ModelQuantizationReport(
        {name: layer.quantization_report(a, s, **own) for name, layer, a, s, own in calls}
    )


def calibrate_all(model: Any, x: Any, state: Any, times: dict[str, Any]) -> None:
    """Set the scales of all recurrent layers of a model, or of none."""
    calls = calls_of(model, x, state, times)
    scales = [
        _chosen(layer, _ranges(layer, a, own.get("lengths"), own.get("mask")))
        for _, layer, a, _, own in calls
    ]
    for (_, layer, *_), scale in zip(calls, scales):
        layer.input_scale = scale


readable(globals())
