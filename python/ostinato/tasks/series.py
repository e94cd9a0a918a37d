"""``train forecast`` and ``forecast``: read a table, train and measure a model, write forecasts."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, safetensors
from .._annotations import readable
from .._check import Array
from . import _picture, tables
from ._group import fill_gaps
from .forecaster import Forecaster, ForecastOptions, seasonal_naive
from .models import MODEL, load_model, prepare_file, prepare_folder
from .season import Season, find_season

__all__ = ["as_csv", "forecast", "train_series"]

PANELS = 6  # of a picture: series beyond that many are not drawn
CALENDAR = {
    ("month", 1): "month",
    ("month", 3): "quarter",
    ("month", 12): "year",
    ("business day", 1): "business day",
}
Report = Callable[[str], None]


def train_series(
    source: Any,
    options: ForecastOptions | None = None,
    *,
    season: int | None = None,
    save: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Report = print,
    **reading: Any,
) -> dict[str, Any]:
    """Train one model on all series of a table, and measure it on their last rows.

    >>> import polars as pl
    >>> t = np.arange(120)
    >>> frame = pl.DataFrame({"t": t, "load": 10 + np.sin(2 * np.pi * t / 12)})
    >>> options = ForecastOptions(horizon=6, epochs=1, members=1)
    >>> figures = train_series(frame, options, report=lambda line: None)
    >>> figures["season"], figures["series"][0]["times"][0]
    (12, '120')

    Args:
        source: a path to a CSV or Parquet file, or a frame of pandas, Polars or Arrow.
        options: options of the model and its training; the horizon adapts where it is None.
        season: rows of a season, 1 for none; None: it is detected.
        save: a folder for the model; None: it is not saved.
        plot: a PNG file for a picture of the forecasts.
        overwrite: whether a model and a picture that are there may be replaced.
        report: takes lines about progress and results.
        **reading: fields of `tables.ReadOptions`.

    Returns:
        What was read, errors over several origins, and the forecast after the end of each series.

    Raises:
        ValueError: the table cannot be read in one way, a series is too short, or a file that is
            there would be replaced.
        OSError: a file cannot be read or written.
        ImportError: Polars, or for a picture matplotlib, is not installed.
    """
    options = ForecastOptions() if options is None else options
    start = time.perf_counter()
    _picture.check(plot)
    prepare_file("--plot", plot, overwrite=overwrite)
    with prepare_folder(save, resume=None, overwrite=overwrite and save is not None) as folder:
        table = tables.read(source, **reading)
        found = _season(table, season)
        for line in [*table.lines(), f"season   {_said(found)}", *table.notes]:
            report(line)
        model, test = _fit(table, found.period, options, report, plot is not None)
        ahead = _ahead(model, table) if _future(table) >= model.horizon else None
        if folder is not None:
            _save(folder, model, table, found.period)
            report(f"model    saved in {folder}")
        if plot is not None and ahead is not None:
            _draw(plot, table, ahead, model, report)
    figures = _figures(table, found, test)
    for one, s, k in zip(figures["series"], table.series, range(len(table.series))):
        one["name"] = s.name
        if ahead is not None:
            one |= _one(s, ahead[k], options)
    return {**figures, "seconds": time.perf_counter() - start}


def _season(table: tables.Table, given: int | None) -> Season:
    """Return the season: the one given, or the one that most of the series have."""
    if given is not None:
        return Season(_check.positive("--season", given), "given")
    step = table.step
    name = None if step is None else CALENDAR.get((step.unit, int(step.count)))
    seconds = None if step is None or name is not None else step.seconds
    seasons = [find_season(s.values, seconds, name) for s in table.series]
    periods = [s.period for s in seasons]
    most = max(sorted(set(periods)), key=periods.count)
    chosen = seasons[periods.index(most)]
    if len(seasons) == 1:
        return chosen
    return Season(most, f"{chosen.why} (in {periods.count(most)} of {len(periods)} series)")


def _said(season: Season) -> str:
    return (
        season.why
        if season.why.startswith(str(season.period))
        else f"{season.period}: {season.why}"
    )


def _future(table: tables.Table) -> int:
    """Return for how many rows after the end of every series a forecast can be made."""
    if not table.options.known:
        return 1 << 40
    return min(len(s.known) - len(s.values) for s in table.series)


def _fit(
    table: tables.Table, season: int, options: ForecastOptions, report: Report, needs_future: bool
) -> tuple[Forecaster, dict[str, Any]]:
    """Measure the model on the last rows, then train it on all."""
    values = [s.values for s in table.series]
    given: dict[str, Any] = {"names": [s.name for s in table.series]}
    if table.options.known:
        given["known"] = [s.known[: len(s.values)] for s in table.series]
    if table.options.observed:
        given["observed"] = [s.observed for s in table.series]
    rows = {**given}
    if table.options.observed:
        rows["observed"] = [s.observed if s.inputs is None else s.inputs for s in table.series]
    test = Forecaster._backtest(
        [s.values if s.measured is None else s.measured for s in table.series],
        season,
        options,
        **rows,
        report=report,
        fill=lambda past: fill_gaps(past, table.options.fill),
    )
    horizon = int(test["horizon"])
    if needs_future and _future(table) < horizon:
        raise ValueError(f"--plot: expected {_wanted(table, horizon)}")
    band = 100 * (options.quantiles[-1] - options.quantiles[0])
    ratio = "" if test["ratio"] is None else f"; ratio {test['ratio']:.3f}"
    report(
        f"error    mean absolute, {test['origins']} origins, {horizon} rows ahead: "
        f"{test['mae']:.6g}; seasonal-naive "
        f"{test['naive_mae']:.6g}, with drift {test['drift_mae']:.6g}{ratio}; "
        f"{100 * test['coverage']:.0f}% within the {band:.0f}% band"
    )
    model = Forecaster.train(
        values, season, replace(options, horizon=horizon), **given, report=lambda line: None
    )
    return model, test


def _wanted(table: tables.Table, horizon: int) -> str:
    """Say which rows of the future are needed; the end of an error."""
    short = min(table.series, key=lambda s: len(s.known) - len(s.values))
    n, there = len(short.values), len(short.known) - len(short.values)
    last = short.times(n + horizon - 1, n + horizon)[0]
    return (
        f"{horizon} rows with {', '.join(table.options.known)} after the last value of "
        f"{short.name}, to {last}, got {there}; the cells of the series are empty there"
    )


def _ahead(model: Forecaster, table: tables.Table) -> Array:
    """Return the quantiles after the end of each series, [S, horizon, Q]."""
    given: dict[str, Any] = {}
    if table.options.known:
        given["known"] = [s.known[: len(s.values) + model.horizon] for s in table.series]
    if table.options.observed:
        given["observed"] = [s.observed for s in table.series]
    return np.asarray(model.forecast([s.values for s in table.series], **given))


def _figures(table: tables.Table, season: Season, test: dict[str, Any]) -> dict[str, Any]:
    """Return what was read and measured, for JSON."""
    step = table.step
    each = [
        {
            **figures,
            "rows": len(s.values),
            "missing": s.missing,
            "start": s.times(0, 1)[0],
            "end": s.times(n - 1, n)[0],
        }
        for figures, s, n in zip(
            test["series"], table.series, [len(s.values) for s in table.series]
        )
    ]
    return {
        "task": "series",
        "source": table.source,
        "column": table.columns[0] if len(table.columns) == 1 else list(table.columns),
        "time": table.time,
        "rows": table.rows,
        "step": None if step is None else str(step),
        "season": season.period,
        "why": season.why,
        "notes": list(table.notes),
        **{
            k: test[k]
            for k in ("horizon", "origins", "mae", "naive_mae", "drift_mae", "ratio", "coverage")
        },
        "series": each,
    }


def _median(ahead: Array, options: ForecastOptions) -> Array:
    """Return the median [horizon] of quantiles [horizon, Q]; it need not be in their middle."""
    return np.asarray(ahead[:, options.quantiles.index(0.5)])


def _one(series: tables.Series, ahead: Array, options: ForecastOptions) -> dict[str, Any]:
    """Return the forecast of one series, for JSON: its times, median and band."""
    n = len(series.values)
    return {
        "times": series.times(n, n + len(ahead)),
        "median": _median(ahead, options).tolist(),
        "low": ahead[:, 0].tolist(),
        "high": ahead[:, -1].tolist(),
    }


def _save(folder: Path, model: Forecaster, table: tables.Table, season: int) -> None:
    tensors, facts = model.state()
    metadata = {"task": "series", "model": facts, "reader": table.facts, "season": season}
    safetensors.save(folder / MODEL, tensors, {"ostinato": json.dumps(metadata)})


def forecast(
    folder: str | os.PathLike[str],
    source: Any,
    *,
    plot: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Forecast what comes after the end of each series of a table, by a model that was saved.

    The table is read as the training's was: its columns, marks, time format and step.

    >>> import tempfile
    >>> import polars as pl
    >>> t = np.arange(120)
    >>> frame = pl.DataFrame({"t": t, "load": 10 + np.sin(2 * np.pi * t / 12)})
    >>> options, folder = ForecastOptions(horizon=6, epochs=1, members=1), tempfile.mkdtemp()
    >>> _ = train_series(frame, options, save=folder, report=lambda line: None)
    >>> forecast(folder, frame)["series"][0]["times"][0]
    '120'

    Args:
        folder: where `train_series` has saved the model.
        source: a path to a CSV or Parquet file, or a frame of pandas, Polars or Arrow.
        plot: a PNG file for a picture.
        out: a file for the forecasts, .csv or .json.
        overwrite: whether files that are there may be replaced.
        report: takes lines about progress.

    Returns:
        For each series its name, times, median and band.

    Raises:
        ValueError: the table has another step than the training's, lacks a column or future rows
            of inputs that are known ahead, or cannot be read in one way.
        OSError: a file cannot be read or written.
        ImportError: Polars, or for a picture matplotlib, is not installed.
    """
    _picture.check(plot)
    if out is not None:
        _check_suffix("--out", out, (".csv", ".json"))
    prepare_file("--plot", plot, overwrite=overwrite)
    prepare_file("--out", out, overwrite=overwrite)
    tensors, facts = load_model(folder, "series")
    if not all(isinstance(facts.get(name), dict) for name in ("model", "reader")):
        raise ValueError(
            "DIR: expected a model of this version, got an older or damaged one in "
            f"{os.fspath(folder)}; train it again"
        )
    model = Forecaster.from_state(tensors, facts["model"])
    table = tables.read(source, like=facts["reader"], command={})
    for line in [*table.lines(), *table.notes]:
        report(line)
    if _future(table) < model.horizon:
        raise ValueError(f"FILE: expected {_wanted(table, model.horizon)}")
    ahead = _ahead(model, table)
    step = table.step
    figures = {
        "task": "forecast",
        "source": table.source,
        "column": table.columns[0] if len(table.columns) == 1 else list(table.columns),
        "step": None if step is None else str(step),
        "season": model.season,
        "horizon": model.horizon,
        "quantiles": list(model.options.quantiles),
        "series": [
            {"name": s.name, **_one(s, a, model.options)} for s, a in zip(table.series, ahead)
        ],
    }
    if out is not None:
        text = (
            json.dumps(figures) + "\n" if Path(out).suffix.lower() == ".json" else as_csv(figures)
        )
        with safetensors.atomic_write(out) as f:
            f.write(text.encode())
        report(f"forecast {os.fspath(out)}")
    if plot is not None:
        _draw(plot, table, ahead, model, report)
    return figures


def as_csv(figures: dict[str, Any]) -> str:
    """Return forecasts as CSV, with a row for each series and time; no digit is lost.

    >>> one = {"name": "load", "times": ["7"], "median": [2.0], "low": [1.0], "high": [3.0]}
    >>> as_csv({"series": [one]}).splitlines()
    ['series,time,median,low,high', 'load,7,2,1,3']

    Args:
        figures: what `forecast` returned.

    Returns:
        CSV with the columns series, time, median, low and high.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["series", "time", "median", "low", "high"])
    for s in figures["series"]:
        for at, *values in zip(s["times"], s["median"], s["low"], s["high"]):
            rows.writerow([s["name"], at, *(repr(float(v)).removesuffix(".0") for v in values)])
    return text.getvalue()


def _check_suffix(option: str, path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> None:
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(
            f"{option}: expected a name that ends in {' or '.join(suffixes)}, got "
            f"{os.fspath(path)!r}"
        )


def _draw(
    path: str | os.PathLike[str],
    table: tables.Table,
    ahead: Array,
    model: Forecaster,
    report: Report,
) -> None:
    """Draw each series with its forecast: median, band and the seasonal-naive one, over time."""
    shown = min(len(table.series), PANELS)
    figure = _picture.figure(9, 1.2 + 2.8 * shown)
    for axes, s, quantiles in zip(figure.subplots(shown, squeeze=False)[:, 0], table.series, ahead):
        _panel(axes, s, quantiles, model, table.time)
    _picture.save(figure, path, dpi=120)
    left = len(table.series) - shown
    report(
        f"picture  {os.fspath(path)}"
        + (f", the first {shown} series of {len(table.series)}" if left else "")
    )


def _panel(
    axes: Any, s: tables.Series, quantiles: Array, model: Forecaster, time_column: str | None
) -> None:
    n, horizon = len(s.values), model.horizon
    begin = max(0, n - max(4 * model.season, 3 * horizon))
    past, future = s.axis.at(np.arange(begin, n)), s.axis.at(np.arange(n, n + horizon))
    options = model.options
    band = 100 * (options.quantiles[-1] - options.quantiles[0])
    naive = seasonal_naive(s.values, horizon, model.season)
    axes.plot(past, s.values[begin:], color="0.3", lw=1.2, label=s.name.replace("$", r"\$"))
    axes.fill_between(
        future,
        quantiles[:, 0],
        quantiles[:, -1],
        color="tab:blue",
        alpha=0.2,
        lw=0,
        label=f"{band:.0f}% band",
    )
    axes.plot(future, naive, color="tab:orange", lw=1.2, ls="--", label="seasonal-naive")
    median = _median(quantiles, options)
    axes.plot(future, median, color="tab:blue", lw=1.8, label="median")
    zone = s.axis.zone and " (UTC)"
    axes.set_xlabel(
        "row" if time_column is None else f"{time_column}{zone or ''}".replace("$", r"\$")
    )
    axes.legend(loc="upper left", frameon=False, ncols=4)


readable(globals())
