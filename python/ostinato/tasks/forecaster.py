"""Forecasts by quantiles: exponential smoothing whose errors an ensemble of networks corrects.

One model serves many series. What validation does not find better is not used, which `report`
says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from .. import _check, nn, optim
from .._annotations import readable
from .._check import Array
from .._spread import moments
from ._calibration import (
    SHRINKAGE,
    HeldOut,
    band,
    band_factor,
    count_apart,
    relative_error,
    rows_before_validation,
    size_of,
    spaced,
)
from ._forecast_checks import (
    bounded,
    check_tensors,
    checked_inputs,
    checked_moments,
    checked_series,
    horizon_for,
)
from ._forecast_options import CELLS, ForecastOptions, Pinball
from ._naive import measured, seasonal_naive, summed
from ._scaled import CHANNELS, ScaledSeries

__all__ = ["ForecastOptions", "Forecaster", "Pinball", "seasonal_naive"]

MOST_ROWS = 6000  # of one series: older rows are left out
MOST_WINDOWS = 512  # of all series, that one epoch sees
FORMAT = 2


class Forecaster:
    """A model of one or many series; `train` returns a trained one.

    >>> t = np.arange(120)
    >>> series = [10 + np.sin(2 * np.pi * t / 12)]
    >>> options = ForecastOptions(horizon=6, epochs=2, members=1)
    >>> model = Forecaster.train(series, 12, options, report=lambda line: None)
    >>> model.forecast(series).shape
    (1, 6, 3)

    Args:
        options: options of the model.
        season: rows of a season.
        horizon: rows to forecast.
        window: rows that the networks see before an origin.
        inputs: inputs of the networks at a step.
    """

    def __init__(
        self,
        options: ForecastOptions,
        season: int,
        horizon: int,
        window: int,
        inputs: int,
    ) -> None:
        self.options, self.season, self.horizon, self.window = options, season, horizon, window
        self.members = [_network(options, inputs, k) for k in range(options.members)]
        self.log = False
        self.shrink = 0.0
        self.factor = 1.0
        self.names: list[str] = []
        self.moments: dict[str, list[list[float]]] = {}
        self.figures: dict[str, float] = {}

    @classmethod
    def train(
        cls,
        series: Sequence[Array],
        season: int,
        options: ForecastOptions | None = None,
        *,
        names: Sequence[str] | None = None,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
        report: Callable[[str], None] = print,
    ) -> Forecaster:
        """Train one model on all series.

        The last part of each series is held out to find how much of the networks' correction helps
        and to set the width of the band; on what lies before it is decided whether the networks see
        the errors of the values or of their logarithms. Then they are trained again on everything.

        Args:
            series: arrays ``[n_s]`` in the order of time; NaN is a missing value.
            season: rows of a season; 1 for none.
            options: options of the model; None: the defaults.
            names: names of the series, saved with the model.
            known: inputs ``[n_s, K]`` whose future is known when a forecast is made.
            observed: inputs ``[n_s, O]`` that are known up to the present only.
            report: takes lines about what was adapted and what validation found.

        Returns:
            The trained model.

        Raises:
            TypeError: series holds something else than numbers.
            ValueError: a series is shorter than two seasons; shapes disagree; infinity is found.
        """
        options = ForecastOptions() if options is None else options
        season = _check.positive("season", season)
        data = checked_series(series, season)
        lengths = [len(a) for a in data]
        extras = [
            checked_inputs("known", known, lengths),
            checked_inputs("observed", observed, lengths),
        ]
        if names is not None and len(names) != len(data):
            raise ValueError(f"names: expected {len(data)}, a name a series, got {len(names)}")
        if any(len(a) > MOST_ROWS for a in data):
            report(f"of each series the last {MOST_ROWS:,} rows are used")
        shortest = min(min(len(a), MOST_ROWS) for a in data)
        horizon = horizon_for(options.horizon, season, shortest, report)
        window = options.window or min(max(season, 24), 96)
        inputs = CHANNELS + sum(e[0].shape[1] for e in extras)
        model = cls(options, season, horizon, window, inputs)
        model.names = [str(n) for n in names or ()]
        for name, e in zip(("known", "observed"), extras):
            model.moments[name] = [[float(v) for v in row] for row in moments(np.concatenate(e))]
        model._validate(data, extras, report)
        prepared = model._prepare(data, extras)
        for one in prepared:
            one.choose(len(one.y))
        if model.shrink or model.factor:
            model._fit(prepared, [len(one.y) for one in prepared])
        return model

    def _prepare(self, data: list[Array], extras: list[list[Array]]) -> list[ScaledSeries]:
        """Put series and inputs on the model's scale; the newest rows of each."""
        out = []
        moments = (self.moments["known"], self.moments["observed"])
        for values, known, observed in zip(data, *extras):
            skip = max(0, len(values) - MOST_ROWS)
            scaled = [
                (a[skip:] - np.array(mean)) / np.array(spread) if a.shape[1] else a[skip:]
                for a, (mean, spread) in zip((known, observed), moments)
            ]
            out.append(ScaledSeries(values[skip:], self.season, self.horizon, self.log, *scaled))
        return out

    def _validate(
        self,
        data: list[Array],
        extras: list[list[Array]],
        report: Callable[[str], None],
    ) -> None:
        """Choose the scale, the share of the correction and the band's width on held-out rows."""
        rows = [min(len(a), MOST_ROWS) for a in data]
        ends = [rows_before_validation(n, self.horizon, self.season) for n in rows]
        prepared = self._prepare(data, extras)
        each = [one.choose(end) for one, end in zip(prepared, ends)]
        for name in ("plain", "log"):
            if all(name in errors for errors in each):
                sizes = [size_of(one) for one in prepared]
                self.figures[name] = float(np.mean([e[name] / s for e, s in zip(each, sizes)]))
        self.log = self.figures.get("log", math.inf) < 0.99 * self.figures["plain"]
        if self.log:
            report("logarithms forecast better than the values: errors are measured on their scale")
            prepared = self._prepare(data, extras)
            for one, end in zip(prepared, ends):
                one.choose(end)
        self._fit(prepared, ends)
        parts = []
        for one, end in zip(prepared, ends):
            origins = spaced(end - 1, len(one.y) - self.horizon - 1, 60)
            base = one.base(origins)
            correction = self._correction(one, origins, base)
            parts.append(HeldOut(one, base, correction, one.truth(origins)))
        middle = self.options.quantiles.index(0.5)
        errors = np.array(
            [np.mean([relative_error(p, w, middle) for p in parts]) for w in SHRINKAGE]
        )
        # Few held-out horizons are weak evidence: a part of what they say is believed.
        apart = count_apart(parts)
        self.shrink = float(SHRINKAGE[int(np.argmin(errors))]) * apart / (apart + 2)
        self.figures |= {"base_error": float(errors[0]), "error": float(errors.min())}
        gain = 1 - errors.min() / errors[0] if errors[0] > 0 else 0.0
        if self.shrink:
            report(
                f"networks: {self.shrink:.0%} of their correction is used, which lowers the error "
                f"on held-out rows by {gain:.1%}"
            )
        else:
            report("networks: their correction does not lower the error on held-out rows: not used")
        self.factor = band_factor(parts, self.shrink, self.options.quantiles)

    def _fit(self, prepared: list[ScaledSeries], ends: list[int]) -> None:
        """Train new members on windows whose targets lie before ``ends``."""
        windows, targets = [], []
        total = sum(max(end - self.horizon, 1) for end in ends)
        for one, end in zip(prepared, ends):
            last = end - self.horizon - 1
            most = max(4, MOST_WINDOWS * max(end - self.horizon, 1) // total)
            origins = spaced(min(max(self.season - 1, 3), last), last, most)
            base = one.base(origins)
            windows.append(one.inputs(origins, self.window, base))
            targets.append((one.truth(origins) - base) / one.scale)
        x = np.ascontiguousarray(np.concatenate(windows).transpose(1, 0, 2))
        target = np.concatenate(targets).T[:, :, None].astype(np.float32)
        for k in range(self.options.members):
            self.members[k] = _network(self.options, x.shape[2], k)
            _train(self.members[k], x, target, self.window, self.options, k)

    def _correction(self, one: ScaledSeries, origins: Array, base: Array) -> Array:
        """Return the median of the members' quantiles ``[W, H, Q]``, in units of the error."""
        x = one.inputs(origins, self.window, base).transpose(1, 0, 2)
        outputs = [m(np.ascontiguousarray(x))[0][self.window :] for m in self.members]
        ahead = np.median(np.stack(outputs).astype(np.float64), axis=0)
        return np.sort(ahead.transpose(1, 0, 2), axis=2)

    def forecast(
        self,
        series: Sequence[Array],
        *,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
    ) -> Array:
        """Forecast what comes after the end of each series.

        Args:
            series: arrays ``[n_s]``, those of the training continued, or others like them.
            known: inputs ``[n_s + horizon, K]``, if the model was trained with such.
            observed: inputs ``[n_s, O]``, if the model was trained with such.

        Returns:
            Quantiles ``[S, horizon, Q]`` in the units of the series, none of them NaN.

        Raises:
            ValueError: a series is shorter than two seasons; inputs are missing or of another
                shape; a forecast is beyond the range of float64.
        """
        data = checked_series(series, self.season)
        rows = [len(a) for a in data]
        extras = [
            checked_inputs("known", known, [n + self.horizon for n in rows]),
            checked_inputs("observed", observed, rows),
        ]
        for name, e in zip(("known", "observed"), extras):
            width = len(self.moments[name][0])
            if e[0].shape[1] != width:
                raise ValueError(f"{name}: expected {width} columns, got {e[0].shape[1]}")
        if self.log:
            for k, a in enumerate(data):
                if np.nanmin(a) <= 0:
                    raise ValueError(
                        f"series[{k}]: expected values above 0, since the model forecasts "
                        f"logarithms, got {np.nanmin(a):g}; train again with this series"
                    )
        for k, a in enumerate(data):
            if len(a) - self.horizon < self.season + 1:
                least = self.season + self.horizon
                raise ValueError(f"series[{k}]: expected more than {least} rows, got {len(a)}")
        out = []
        for k, one in enumerate(self._prepare(data, extras)):
            one.choose(len(one.y))
            origin = np.array([len(one.y) - 1])
            base = one.base(origin)
            correction = self._correction(one, origin, base)
            quantiles = self.options.quantiles
            ahead = band(base, correction, one.scale, self.shrink, self.factor, quantiles)
            with np.errstate(over="ignore"):
                values = one.raw(ahead[0]) * one.unit
            if not np.isfinite(values).all():
                raise ValueError(
                    f"series[{k}]: expected a forecast in float64, got one beyond the range of "
                    f"float64; divide the series, whose largest value is {one.unit:g}"
                )
            out.append(values)
        return np.stack(out)

    @classmethod
    def backtest(
        cls,
        series: Sequence[Array],
        season: int,
        options: ForecastOptions | None = None,
        *,
        origins: int = 4,
        refit: bool = False,
        names: Sequence[str] | None = None,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
        report: Callable[[str], None] = print,
    ) -> dict[str, Any]:
        """Measure forecasts from several origins, each made only from what lies before it.

        Args:
            series: arrays ``[n_s]`` in the order of time; NaN is a missing value.
            season: rows of a season; 1 for none.
            options: options of the models; None: the defaults.
            origins: how many; they lie a horizon apart at the end of each series, fewer where the
                series are short.
            refit: whether to train a model at every origin; otherwise one that is trained before
                the first serves all.
            names: names of the series.
            known: inputs ``[n_s, K]`` whose future is known when a forecast is made.
            observed: inputs ``[n_s, O]`` that are known up to the present only.
            report: takes lines about what was adapted and what validation found.

        Returns:
            ``mae``, ``naive_mae`` (seasonal-naive), ``drift_mae`` (with drift), ``ratio`` (to the
            better of the two; None where that is zero), ``coverage`` of the band between the
            outermost quantiles, ``horizon``, ``origins``, and ``series``, a list with the same
            figures of each. Errors over all are means of the series'.

        Raises:
            ValueError: the series are too short for the horizon, or `train` raises it.
        """
        return cls._backtest(
            series,
            season,
            options,
            origins=origins,
            refit=refit,
            names=names,
            known=known,
            observed=observed,
            report=report,
        )

    @classmethod
    def _backtest(
        cls,
        series: Sequence[Array],
        season: int,
        options: ForecastOptions | None,
        *,
        origins: int = 4,
        refit: bool = False,
        names: Sequence[str] | None = None,
        known: Sequence[Array] | None = None,
        observed: Sequence[Array] | None = None,
        report: Callable[[str], None] = print,
        fill: Callable[[Array], Array] | None = None,
    ) -> dict[str, Any]:
        """Measure forecasts as `backtest` does; ``fill`` may fill what lies before an origin.

        It gets each series and observed input up to the origin, ``[n]``, and returns it without
        NaN: it sees nothing after the origin, and no filled row is a truth.
        """
        options = ForecastOptions() if options is None else options
        _check.positive("origins", origins)
        data = checked_series(series if fill is None else [fill(a) for a in series], season)
        if fill is not None:
            data = [np.asarray(a, np.float64) for a in series]
        shortest = min(len(a) for a in data)
        horizon, origins = _tested(options.horizon, origins, season, shortest, report)
        options = ForecastOptions(**{**asdict(options), "horizon": horizon})
        rows: list[list[dict[str, float]]] = [[] for _ in data]
        model = None
        for k in range(origins, 0, -1):
            ends = [len(a) - k * horizon for a in data]
            past = [a[:end] for a, end in zip(data, ends)]
            before = None if observed is None else [a[:end] for a, end in zip(observed, ends)]
            if fill is not None:
                past = [fill(a) for a in past]
                before = before and [_filled(a, fill) for a in before]
            if model is None or refit:
                now = None if known is None else [a[:end] for a, end in zip(known, ends)]
                model = cls.train(
                    past,
                    season,
                    options,
                    names=names,
                    known=now,
                    observed=before,
                    report=report,
                )
            ahead = None if known is None else [a[: e + horizon] for a, e in zip(known, ends)]
            forecasts = model.forecast(past, known=ahead, observed=before)
            for s, end in enumerate(ends):
                truth = data[s][end : end + horizon]
                rows[s].append(measured(truth, forecasts[s], past[s], season, options.quantiles))
        assert model is not None
        each = [summed(r) for r in rows]
        for s, name in enumerate(model.names):
            each[s]["name"] = name
        return {**summed(each), "horizon": horizon, "origins": origins, "series": each}

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return all that is needed to build the same model.

        Returns:
            Parameters by name, and facts that JSON can hold; `from_state` takes both.
        """
        tensors: dict[str, Array] = {}
        for k, member in enumerate(self.members):
            tensors |= {f"{k}.{name}": a for name, a in member.state_dict().items()}
        facts = {
            "format": FORMAT,
            "options": {**asdict(self.options), "quantiles": list(self.options.quantiles)},
            "season": self.season,
            "horizon": self.horizon,
            "window": self.window,
            "log": self.log,
            "shrink": self.shrink,
            "factor": self.factor,
            "names": self.names,
            "moments": self.moments,
            "figures": self.figures,
        }
        return tensors, facts

    @classmethod
    def from_state(cls, tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> Forecaster:
        """Build the model that `state` described; everything is checked before it is allocated.

        Args:
            tensors: the parameters by name.
            facts: the facts that `state` returned.

        Returns:
            The model.

        Raises:
            ValueError: facts and tensors do not belong together, or are damaged.
        """
        if facts.get("format") != FORMAT:
            raise ValueError(
                f"facts: expected format {FORMAT}, got {facts.get('format')!r}; "
                "the model is of another version of ostinato"
            )
        try:
            given = dict(facts["options"])
            unknown = set(given) - {f.name for f in fields(ForecastOptions)}
            if unknown:
                raise ValueError(f"expected known options, got {sorted(unknown)}")
            options = ForecastOptions(**given)
            season, horizon, window = (
                bounded(name, facts[name], MOST_ROWS) for name in ("season", "horizon", "window")
            )
            numbers = [float(facts["shrink"]), float(facts["factor"])]
            if not all(math.isfinite(v) and v >= 0 for v in numbers) or numbers[0] > 1:
                raise ValueError(f"expected shrink and factor of at least 0, got {numbers}")
            if not isinstance(logs := facts["log"], bool):
                raise ValueError(f"expected true or false as log, got {logs!r:.80}")
            moments = checked_moments(facts["moments"])
            names = [str(n) for n in facts["names"]]
            figures = {str(k): float(v) for k, v in dict(facts["figures"]).items()}
            inputs = CHANNELS + sum(len(m[0]) for m in moments.values())
            check_tensors(tensors, options, inputs)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            said = f"facts: expected those of a forecaster, got damaged ones: {what}"
            raise ValueError(said) from None
        model = cls(options, season, horizon, window, inputs)
        model.log, (model.shrink, model.factor) = logs, numbers
        model.names, model.moments, model.figures = names, moments, figures
        for k, member in enumerate(model.members):
            prefix = f"{k}."
            own = {n[len(prefix) :]: a for n, a in tensors.items() if n.startswith(prefix)}
            member.load_state_dict(own)
        return model


def _tested(
    horizon: int | None, origins: int, season: int, shortest: int, report: Callable[[str], None]
) -> tuple[int, int]:
    """Return the horizon and the number of origins of a backtest that the rows allow."""
    if horizon is None:
        horizon = horizon_for(None, season, min(shortest * 3 // 4, MOST_ROWS), report)
    least = max(2 * season, 12, season + 3 * horizon)
    most = (shortest - least) // horizon
    if most < 1:
        raise ValueError(
            f"series: expected at least {least + horizon} rows to test a horizon of {horizon}, "
            f"got {shortest}; give a smaller horizon"
        )
    if most < origins:
        report(f"{most} origins in place of {origins}, since {shortest} rows allow no more")
    return horizon, min(most, origins)


def _filled(inputs: Array, fill: Callable[[Array], Array]) -> Array:
    """Return inputs ``[n, O]`` with each column filled."""
    return np.stack([fill(column) for column in inputs.T], 1) if inputs.size else inputs


def _network(options: ForecastOptions, inputs: int, member: int) -> nn.Sequential:
    seeds = np.random.SeedSequence([options.seed, member]).spawn(2)
    rngs = [np.random.default_rng(s) for s in seeds]
    cell = CELLS[options.cell](inputs, options.hidden, options.layers, rng=rngs[0])
    return nn.Sequential(cell, nn.Linear(options.hidden, len(options.quantiles), rng=rngs[1]))


def _train(
    model: nn.Sequential,
    x: Array,
    target: Array,
    window: int,
    options: ForecastOptions,
    member: int,
) -> None:
    """Run every epoch; the learning rate falls to zero along a cosine."""
    known = target[np.isfinite(target)]
    if not known.size:
        return
    with model.write() as parameters:  # the first outputs are close to the quantiles of the errors
        weight = parameters["1.weight"]
        weight *= np.float32(0.1)
        parameters["1.bias"][:] = np.quantile(known, options.quantiles)
    rng = np.random.default_rng([options.seed, member, 1])
    count = x.shape[1]
    batch = min(options.batch, max(8, count // 6))
    steps = options.epochs * -(-count // batch)
    optimizer = optim.AdamW(optim.Cosine(options.lr, steps=steps), weight_decay=0.01)
    loss = Pinball(options.quantiles)
    for _ in range(options.epochs):
        for rows in np.array_split(rng.permutation(count), -(-count // batch)):
            (y, _), pullback = model.vjp(np.ascontiguousarray(x[:, rows]))
            _, d = loss(y[window:], target[:, rows])
            dy = np.zeros_like(y)
            dy[window:] = d
            model.zero_grad()
            pullback(dy, need_dx=False)
            optim.clip_by_norm(model, 1.0)
            optimizer.step(model)


readable(globals())
