"""Forecasting a time series from a CSV file, held against the seasonal-naive forecast."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import _check, losses, nn, optim, safetensors
from .._check import Array
from ..train import Trainer
from .models import load_model, save_model

__all__ = ["SeriesOptions", "find_season", "forecast", "read_column", "train_series"]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass
class SeriesOptions:
    """What ``train series`` can be told."""

    horizon: int = 24
    season: int | None = None  # None: found from the autocorrelation
    hidden: int = 64
    layers: int = 1
    cell: str = "gru"
    epochs: int = 60
    rate: float = 3e-3
    seed: int = 0


def read_column(path: str | os.PathLike[str], column: str | None = None) -> tuple[str, Array]:
    """One numeric column of a CSV file with a header line: the one named, or the last that is numeric throughout.

    Empty cells and NaN are filled by the value before them, blank lines are passed over.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = [row for row in csv.reader(f) if row]
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"FILE: expected a CSV file in UTF-8, got {os.fspath(path)}: {e}") from None
    if len(rows) < 2:
        raise ValueError(f"FILE: expected a header and rows, got {len(rows)} lines in {os.fspath(path)}")
    header = [h.strip() for h in rows[0]]
    if column is not None and column not in header:
        raise ValueError(f"--column: expected one of {', '.join(header)}, got {column!r}")
    problem = ""
    for name in [column] if column is not None else reversed(header):
        k = header.index(name)
        values: list[float] = []
        for number, row in enumerate(rows[1:], 2):
            cell = row[k].strip() if k < len(row) else ""
            try:
                value = float(cell or "nan")
                values.append(values[-1] if math.isnan(value) and values else value)
            except ValueError:
                problem = f"{cell!r} in column {name!r}, line {number}"
                break
            if math.isinf(values[-1]):
                problem = f"{cell!r} in column {name!r}, line {number}"
                break
        else:
            a = np.array(values)
            known = a[~np.isnan(a)]
            if known.size:
                return name, np.where(np.isnan(a), known[0], a)
            problem = f"no number in column {name!r}"
    raise ValueError(f"FILE: expected a column of numbers, got {problem}")


def find_season(values: Array, longest: int = 400) -> int:
    """The lag of the highest autocorrelation of the differenced series, after its first dip; 1 if there is none.

    >>> find_season(np.sin(np.arange(500) * 2 * np.pi / 24))
    24
    """
    d = np.diff(values)
    d = d - d.mean()
    longest = min(longest, len(d) // 3)
    if longest < 3 or not d.any():
        return 1
    acf = np.array([np.dot(d[: len(d) - k], d[k:]) / (len(d) - k) for k in range(longest + 1)])
    acf /= acf[0]
    dip = int(np.argmax(acf < 0.1)) if (acf < 0.1).any() else 0
    if not dip or dip >= longest:
        return 1
    # The first peak that is about as good as the highest: a multiple of the season is no better than the season itself.
    best = acf[dip:].max()
    peaks = [k for k in range(dip, longest) if acf[k] >= 0.9 * best and acf[k - 1] <= acf[k] >= acf[k + 1]]
    return peaks[0] if best > 0.2 and peaks else 1


def _features(scaled: Array, season: int) -> Array:
    """[T, 3]: the value, its change, its distance from the season before. None depends on where the file begins."""
    seasonal = np.zeros_like(scaled)
    seasonal[season:] = scaled[season:] - scaled[:-season]
    return np.stack([scaled, np.diff(scaled, prepend=scaled[:1]), seasonal], axis=1).astype(np.float32)


def _naive(values: Array, at: int, horizon: int, season: int) -> Array:
    """The forecast made after ``values[:at]``: the same places of the season before."""
    last = values[at - season : at]
    return np.resize(last, horizon)


FEATURES = 3
UNSEEN_EPOCHS = 10  # of a series too short for a validation part: nothing would end the training in time


def _model(options: SeriesOptions) -> nn.Sequential:
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(options.seed).spawn(2)]
    cell = CELLS[options.cell](FEATURES, options.hidden, options.layers, rng=rngs[0])
    return nn.Sequential(cell, nn.Linear(options.hidden, options.horizon, rng=rngs[1]))


def train_series(
    path: str | os.PathLike[str],
    options: SeriesOptions,
    *,
    column: str | None = None,
    save: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    out: TextIO = sys.stdout,
) -> dict[str, Any]:
    """Train on the first 80% of a series, stop on the next 10% (if it is long enough), report on the last 10%; returns the figures.

    At every step the model forecasts the next ``horizon`` values, as differences from the seasonal-naive forecast.
    """
    _check.choice("cell", options.cell, tuple(CELLS))
    if plot is not None:  # now, and not after the training
        _matplotlib()
        if not Path(plot).absolute().parent.is_dir():
            raise FileNotFoundError(f"--plot: expected a folder at {Path(plot).absolute().parent}, found none")
    folder = None if save is None else Path(save)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    horizon = _check.positive("--horizon", options.horizon)
    name, values = read_column(path, column)
    season = _check.positive("--season", options.season) if options.season is not None else find_season(values)
    n, window = len(values), max(2 * season, 48)
    stride = max(1, n // 1000)  # about a thousand samples, overlapping
    if n * 0.1 < horizon + 1 or n * 0.8 < window + horizon + season:
        rows = max(10 * (horizon + 1), int((window + horizon + season) / 0.8) + 1)
        raise ValueError(f"FILE: expected at least {rows} rows for horizon {horizon} and season {season}, got {n}")
    cuts = (int(n * 0.8), int(n * 0.9))
    mean, spread = values[: cuts[0]].mean(), values[: cuts[0]].std() or 1.0
    scaled = (values - mean) / spread
    features = _features(scaled, season)
    naive = np.stack([_naive(scaled, t + 1, horizon, season) for t in range(season - 1, n - horizon)])
    truth = np.stack([scaled[t + 1 : t + 1 + horizon] for t in range(season - 1, n - horizon)])
    first = season - 1  # the first step with a naive forecast
    target = (truth - naive).astype(np.float32)

    def windows(begin: int, end: int, stride: int) -> tuple[Array, Array]:
        """Samples whose forecasts lie within [begin, end)."""
        starts = range(max(begin, first), end - window - horizon, stride)
        x = np.stack([features[s : s + window] for s in starts])
        return x, np.stack([target[s - first : s - first + window] for s in starts])

    model = _model(options)
    train = windows(0, cuts[0], stride)
    room = cuts[1] - cuts[0] > window + horizon + stride  # for windows whose every forecast lies in the validation part
    valid = windows(cuts[0], cuts[1], stride) if room else None
    epochs = options.epochs if valid is not None else min(options.epochs, UNSEEN_EPOCHS)
    if valid is None:
        print(f"too short a series for a validation part: training ends after {epochs} epochs", file=out, flush=True)
    trainer = Trainer(model, losses.Huber(), optim.Adam(options.rate), clip_norm=1.0)
    print(
        f"{name}: {n:,} values, season {season}, horizon {horizon}; {model.count_parameters():,} parameters",
        file=out,
        flush=True,
    )
    start = time.perf_counter()
    history = trainer.fit(
        train,
        validation=valid,
        epochs=epochs,
        batch_size=32,
        seed=options.seed,
        patience=None if valid is None else 8,
        progress=False,
    )

    # The test: one pass over everything, forecasts from every step of the last tenth.
    y, _ = model(features[:, None])
    steps = np.arange(cuts[1] - 1, n - horizon)
    ours = y[steps, 0] + naive[steps - first]
    real, theirs = truth[steps - first], naive[steps - first]
    mae, naive_mae = (float(np.abs(f - real).mean() * spread) for f in (ours, theirs))
    ratio = mae / naive_mae if naive_mae else math.nan
    print(
        f"mean absolute error on the last tenth: {mae:.6g}; seasonal-naive: {naive_mae:.6g}; ratio {ratio:.3f}",
        file=out,
        flush=True,
    )
    figures = {
        "task": "series",
        "column": name,
        "mae": mae,
        "naive_mae": naive_mae,
        "ratio": ratio if naive_mae else None,
        "season": season,
        "horizon": horizon,
        "steps": trainer.optimizer.steps,
        "epochs": len(history.rows),
        "parameters": model.count_parameters(),
        "seconds": time.perf_counter() - start,
    }
    if folder is not None:
        facts = {"options": asdict(options), "season": season, "mean": mean, "spread": float(spread), "column": name}
        save_model(folder, "series", model, facts)
    if plot is not None:
        at = int(steps[-1])
        _draw(
            plot, values, at, ours[-1] * spread + mean, theirs[-1] * spread + mean, name, max(4 * season, 3 * horizon)
        )
        print(f"plot: {os.fspath(plot)}", file=out)
    return figures


def forecast(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The next values after the end of a series, by the model in a folder that `train_series` has saved."""
    tensors, facts = load_model(folder, "series")
    options, season = SeriesOptions(**facts["options"]), int(facts["season"])
    name, values = read_column(path, facts["column"])
    if len(values) <= season:
        raise ValueError(f"FILE: expected more than one season of {season} rows, got {len(values)}")
    model = _model(options)
    model.load_state_dict(tensors)
    scaled = (values - facts["mean"]) / facts["spread"]
    y, _ = model(_features(scaled, season)[:, None])
    ahead = y[-1, 0] + _naive(scaled, len(scaled), options.horizon, season)
    return {"column": name, "forecast": (ahead * facts["spread"] + facts["mean"]).tolist()}


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'ostinato[data]' (--plot '' for no picture)") from None
    return Figure, FigureCanvasAgg


def _draw(
    path: str | os.PathLike[str], values: Array, at: int, ours: Array, naive: Array, name: str, history: int
) -> None:
    figure_class, canvas_class = _matplotlib()
    figure = figure_class(figsize=(9, 4), layout="constrained")
    canvas_class(figure)
    axes = figure.subplots()
    begin, ahead = max(0, at + 1 - history), np.arange(at + 1, at + 1 + len(ours))
    axes.plot(np.arange(begin, at + 1 + len(ours)), values[begin : at + 1 + len(ours)], color="0.3", lw=1.2, label=name)
    axes.plot(ahead, naive, color="tab:orange", lw=1.2, ls="--", label="seasonal-naive")
    axes.plot(ahead, ours, color="tab:blue", lw=1.8, label="ostinato")
    axes.axvline(at + 0.5, color="0.7", lw=0.8)
    axes.set_xlabel("step")
    axes.legend(loc="upper left", frameon=False)
    with safetensors.atomic_write(path) as f:
        figure.savefig(f, format="png", dpi=120)
