"""Anomalies in a series: train on normal rows, and rank the places that were not expected."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from .._annotations import readable
from .._check import Array
from .._files import atomic_write
from .._spread import varies
from . import _picture, tables
from ._application import (
    Application,
    Figures,
    Run,
    held_out_of,
    held_out_option,
    option,
    package_file,
    within,
)
from ._surprise import (
    Detector,
    DetectorOptions,
    Place,
    checked_series,
    moving_mean,
    moving_zscore,
    places,
)

__all__ = [
    "AnomalyOptions",
    "Detector",
    "DetectorOptions",
    "Labelled",
    "Place",
    "compared",
    "moving_zscore",
    "places",
    "read",
]

KDD = "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_"
# The package, its files, and the columns of time, value and label of each series with a name.
EXAMPLES: dict[str, tuple[str, tuple[str, ...], tuple[str, str, str]]] = {
    "kdd": ("aeon", (f"{KDD}TRAIN.csv", f"{KDD}TEST.csv"), ("timestamp", "value", "is_anomaly")),
    "ecg": ("sktime", ("sktime/datasets/data/mitdb/mitdb.csv",), ("", "data", "label")),
    "glucose": ("bokeh-sampledata", ("bokeh_sampledata/_data/CGM.csv.gz",), ("", "glucose", "")),
}
# Options of ``train anomaly`` by those of the reader of tables.
OPTIONS = {o: o for o in ("--column", "--time", "--fill")} | {"--observed": "--label"}
Z_WINDOWS = (20, 50, 100, 200, 400)  # of the moving z-scores that scores are compared with


@dataclass(frozen=True)
class AnomalyOptions(DetectorOptions):
    """Options of ``train anomaly``.

    >>> AnomalyOptions(column="load").held_out
    0.5

    Attributes:
        horizon: each row is expected from 1, 2, ... horizon rows before it.
        smooth: rows of the centred moving mean of the score: about the length of an anomaly.
        window: rows of a training window.
        hidden: units H of the recurrent layer.
        cell: "gru" or "lstm".
        steps: updates of the parameters.
        rate: peak learning rate.
        seed: seed of the initial parameters and of the order of the windows.
        example: the series that is taken without a file.
        column: the column; "" for the only one that can be meant.
        time: the time column; "" for none: the order of the rows counts.
        label: the column that is 1 in anomalous rows and 0 in others; "" for none.
        fill: how missing values are filled: "error", "linear" or "previous".
        held_out: the last rows of a single file, which are not trained on: a share below 1, or how
            many, at most a tenth of all.
        places: how many places are reported.
    """

    example: str = option("kdd", "series that is taken without FILE", choices=tuple(EXAMPLES))
    column: str = option("", "the column of numbers (default: the only one that can be meant)")
    time: str = option("", "the time column (default: none, the order of the rows counts)")
    label: str = option("", "the column that is 1 in anomalous rows (default: none)")
    fill: str = option(
        "error", "how missing values are filled", choices=("error", "linear", "previous")
    )
    held_out: float = held_out_option(0.5, "rows at the end of a single FILE, not trained on")
    places: int = option(5, "places that are reported")


@dataclass(frozen=True)
class Labelled:
    """A series, with its labels where they are known.

    >>> Labelled(np.zeros(3), None, ["a", "b", "c"], {}).values.shape
    (3,)

    Attributes:
        values: ``[n]``.
        label: ``[n]`` of bool, True in anomalous rows; None where nothing is known.
        times: the time or number of each row.
        facts: how the table was read, for the next file.
        notes: what is worth saying about the table, a line each.
    """

    values: Array
    label: Array | None
    times: list[str]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(
    source: Any,
    *,
    column: str = "",
    time: str = "",
    label: str = "",
    fill: str = "error",
    like: dict[str, Any] | None = None,
) -> Labelled:
    """Read a series from a CSV or Parquet file, or from a frame.

    >>> import polars as pl
    >>> series = read(pl.DataFrame({"v": [1.5, 2.5], "bad": [0, 1]}), column="v", label="bad")
    >>> series.values.tolist(), series.label.tolist()
    ([1.5, 2.5], [False, True])

    Args:
        source: a path, or a frame of pandas, Polars or Arrow.
        column: the column; "" for the only one that can be meant.
        time: the time column; "" for none.
        label: the column of labels; "" for none.
        fill: how missing values are filled: "error", "linear" or "previous".
        like: facts of a series that was read before, to read this one in the same way; its label is
            read where ``label`` is given.

    Returns:
        The series.

    Raises:
        ValueError: the table cannot be read in one way, has missing values, or labels other than 0
            and 1.
        OSError: a file cannot be read.
        ImportError: Polars is not installed.
    """
    given = {"column": column or (), "time": time, "fill": fill} if like is None else {}
    return _read(source, label, like, OPTIONS if like is None else {}, **given)


def _read(
    source: Any, label: str, like: dict[str, Any] | None, command: dict[str, str], **given: Any
) -> Labelled:
    """Read a series, of which errors name the options of the running command."""
    observed = (label,) if label else ()
    table = tables.read(source, like=like, command=command, observed=observed, **given)
    series = table.series[0]
    values = checked_series("FILE", series.values)
    labels = None
    if label:
        cells = series.observed[:, 0]
        if not ((cells == 0) | (cells == 1)).all():
            argument = "--label" if command else "FILE"
            raise ValueError(
                f"{argument}: expected a column of 0 and 1, got others in {label!r} of "
                f"{table.source}"
            )
        labels = cells == 1
    return Labelled(values, labels, series.times(0, len(values)), table.facts, table.notes)


def _best_zscore(values: Array, before: Array | None, label: Array, smooth: int) -> float:
    """Return the highest average precision of moving z-scores, smoothed as ours and not."""
    known = np.zeros(0) if before is None else before[-max(Z_WINDOWS) :]
    best = 0.0
    for window in Z_WINDOWS:
        z = moving_zscore(np.concatenate([known, values]), window)[len(known) :]
        scored = np.arange(len(known), len(known) + len(values)) >= window
        for width in (1, smooth, window):
            score = np.where(scored, moving_mean(z, width, scored), 0.0)
            best = max(best, metrics.average_precision(label, score))
    return best


def compared(
    score: Array, series: Labelled, before: Array | None, options: DetectorOptions
) -> Figures:
    """Return how well a score tells the anomalous rows, and a moving z-score.

    >>> values, label = np.zeros(600), np.zeros(600, bool)
    >>> values[::2], label[500:510] = 1.0, True
    >>> series = Labelled(values, label, [], {})
    >>> compared(label * 2.0, series, None, DetectorOptions())["average_precision"]
    1.0

    Args:
        score: ``[n]``.
        series: the series, with labels.
        before: the rows before it, for the z-score; None for none.
        options: options of the detector, for its ``smooth``.

    Returns:
        The average precision (the area under precision over recall) of the score; that of the best
        of 15 moving z-scores, whose window and smoothing are chosen by these labels; and the rank
        of the first place that has an anomalous row, 0 for none among 100.

    Raises:
        ValueError: no row is anomalous.
    """
    label = series.label
    if label is None or not label.any():
        raise ValueError("--label: expected at least one anomalous row, got none")
    ranked = places(score, 100, options.smooth)
    ranks = [k for k, one in enumerate(ranked, 1) if label[one.begin : one.end].any()]
    return {
        "average_precision": metrics.average_precision(label, score),
        "zscore_average_precision": _best_zscore(series.values, before, label, options.smooth),
        "anomalous_rows": int(label.sum()),
        "rank": ranks[0] if ranks else 0,
    }


def _paths(data: Sequence[str], options: AnomalyOptions) -> tuple[list[str], AnomalyOptions]:
    """Return the files to read, and the options with the columns of an example."""
    if len(data) > 2:
        raise ValueError(
            f"DATA: expected FILE, or the file to train on and the one to test, got {len(data)}"
        )
    if data:
        if options.example != AnomalyOptions.example:
            raise ValueError(f"--example: expected none beside FILE, got {options.example!r}")
        if len(data) == 2 and options.held_out != AnomalyOptions.held_out:
            raise ValueError(
                "--held-out: expected none with a file to train on and one to test, got "
                f"{options.held_out}"
            )
        return [os.fspath(path) for path in data], options
    own = {"time": options.time, "column": options.column, "label": options.label}
    for name, value in own.items():
        if value:
            raise ValueError(f"--{name}: expected none without FILE, got {value!r}")
    package, files, (time, column, label) = EXAMPLES[options.example]
    paths = [str(package_file(package, f, f"the series {options.example!r}")) for f in files]
    return paths, dataclasses.replace(options, time=time, column=column, label=label)


def _parts(paths: list[str], options: AnomalyOptions) -> tuple[Labelled, Labelled]:
    """Return the rows to train on and those to test, which follow them if they are of one file."""
    whole = read(
        paths[0],
        column=options.column,
        time=options.time,
        label=options.label,
        fill=options.fill,
    )
    if len(paths) == 2:
        return whole, _read(paths[1], options.label, whole.facts, OPTIONS)
    rows = len(whole.values)
    cut = rows - held_out_of(options.held_out, rows)
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        label = None if whole.label is None else whole.label[part]
        parts.append(
            Labelled(whole.values[part], label, whole.times[part], whole.facts, whole.notes)
        )
    return parts[0], parts[1]


def _train(data: Sequence[str], options: AnomalyOptions, run: Run) -> Figures:
    """Run ``train anomaly``."""
    paths, options = _paths(data, options)
    own, test = _parts(paths, options)
    names = {f.name for f in dataclasses.fields(DetectorOptions)}
    chosen = {n: v for n, v in asdict(options).items() if n in names}
    detector = Detector(DetectorOptions(**chosen))
    if len(own.values) < detector.shortest or not len(test.values):
        raise ValueError(
            f"DATA: expected at least {detector.shortest} rows to train on (--window "
            f"{options.window}) and rows to test, got {len(own.values)} and {len(test.values)} of "
            f"{paths[0]}; --window and --held-out change that"
        )
    _check_varies(own.values, paths[0])
    run.report(f"read     {len(own.values):,} rows to train on, {len(test.values):,} to test")
    notes = _told(run, *((own, test) if len(paths) == 2 else (own,)))
    normal = None if own.label is None else ~own.label
    detector.fit(own.values, normal, run.report, parallel=run.parallel)
    before = own.values if len(paths) == 1 else None
    if run.folder is not None:  # before what can fail, or be interrupted
        facts = {
            "reading": own.facts,
            "label": options.label,
            "example": "" if data else options.example,
            "held_out": options.held_out,
        }
        detector.save(run.folder, facts)
    return _found(detector, test, before, options.places, run) | {"notes": notes}


def _check_varies(values: Array, path: str) -> None:
    if not varies(values):
        raise ValueError(
            f"DATA: expected rows that vary, got {values[0]:g} in all rows to train on of {path}"
        )


def _told(run: Run, *tables_read: Labelled) -> list[str]:
    """Report what is worth saying about tables, and return it."""
    notes = [note for series in tables_read for note in series.notes]
    for note in notes:
        run.report(note)
    return notes


def _found(
    detector: Detector, series: Labelled, before: Array | None, count: int, run: Run
) -> Figures:
    """Score a series, and report, compare, draw and write what was found."""
    score = detector.score(series.values, before)
    found = places(score, count, detector.options.smooth)
    if before is None:
        run.report(f"the first {min(detector.warm_up, len(score))} rows have no score")
    listed = []
    for rank, place in enumerate(found, 1):
        at = {name: series.times[row] for name, row in _rows(place).items()}
        listed.append({"rank": rank, **asdict(place), **at})
        truth = ""
        if series.label is not None:
            right = series.label[place.begin : place.end].any()
            truth = ", labelled" if right else ", not labelled"
        run.report(
            f"{rank:3}. {at['from']} to {at['to']}: {place.score:.3g} times the highest score of "
            f"normal rows{truth}"
        )
    figures: Figures = {"task": "anomaly", "rows": len(score), "places": listed}
    if series.label is not None and series.label.any():
        figures |= compared(score, series, before, detector.options)
        run.report(
            f"AUC-PR {figures['average_precision']:.3f}; the best moving z-score has "
            f"{figures['zscore_average_precision']:.3f}; rank of the first place that is labelled: "
            f"{figures['rank'] or 'none'}"
        )
    if run.out is not None:
        _save(series, score, run.out)
    if run.plot is not None:
        _draw(series, score, found, run)
    return figures


def _rows(place: Place) -> dict[str, int]:
    return {"time": place.row, "from": place.begin, "to": place.end - 1}


def _save(series: Labelled, score: Array, path: Path) -> None:
    """Write time, value and score of each row as CSV, such that reading gives equal numbers."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["time", "value", "score"])
    for time, value, one in zip(series.times, series.values, score):
        rows.writerow([time, _written(value), _written(one)])
    with atomic_write(path) as f:
        f.write(text.getvalue().encode("utf-8"))


def _written(value: float) -> str:
    """Return a number in as few digits as tell it from all others."""
    short = f"{value:.10g}"  # whole numbers without a point
    return short if float(short) == value else repr(float(value))


def _draw(series: Labelled, score: Array, found: Sequence[Place], run: Run) -> None:
    """Draw the series, its score and the places that were found."""
    figure = _picture.figure(9, 4.2)
    upper, lower = figure.subplots(2, sharex=True)
    rows = np.arange(len(score))
    upper.plot(rows, series.values, color="0.3", lw=0.7)
    lower.plot(rows, score, color="tab:blue", lw=0.8)
    lower.axhline(1, color="0.5", lw=0.8, ls="--", label="highest of normal rows")
    if series.label is not None and series.label.any():
        edges = np.flatnonzero(np.diff(series.label.astype(int), prepend=0, append=0))
        for begin, end in zip(edges[::2], edges[1::2]):
            upper.axvspan(begin - 0.5, end - 0.5, color="tab:orange", alpha=0.5, lw=0)
    for rank, place in enumerate(found, 1):
        lower.annotate(
            str(rank), (place.row, place.score), color="tab:red", ha="center", va="bottom"
        )
        upper.axvline(place.row, color="tab:red", lw=0.8, alpha=1 if rank == 1 else 0.4)
    upper.set_ylabel("value")
    lower.set_ylabel("score")
    lower.set_xlabel("row, from the first one that is scored")
    lower.margins(y=0.2)
    lower.legend(loc="upper left", frameon=False)
    if run.plot is not None:
        _picture.save(figure, run.plot)
        run.report(f"picture  {run.plot}")


def _loaded(run: Run) -> tuple[Detector, dict[str, Any]]:
    """Return the detector of a folder, and its checked facts."""
    if run.folder is None:
        raise ValueError("DIR: expected the folder of a model, got none")
    detector, facts = Detector.load(run.folder)
    facts = {**facts, "held_out": _held_out(facts)}
    good = isinstance(facts.get("label"), str) and isinstance(facts.get("reading"), dict)
    good = good and facts.get("example") in ("", *EXAMPLES)
    if not good or not within("part", facts["held_out"]):
        raise ValueError(
            f"DIR: expected a model that says how its table was read, got {run.folder} without"
        )
    return detector, facts


def _held_out(facts: dict[str, Any]) -> float:
    """Return what was held out; NaN where the facts do not tell it.

    The first models had the share that was trained on in its place.
    """
    trained, held = facts.get("share"), facts.get("held_out")
    if isinstance(trained, (int, float)) and held is None:
        return 1 - trained
    return float(held) if isinstance(held, (int, float)) else math.nan


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    """Run ``predict`` with a model for anomalies."""
    if len(inputs) != 1:
        raise ValueError(f"INPUT: expected one CSV or Parquet file, got {len(inputs)}")
    if run.out is not None and run.out.suffix.lower() != ".csv":
        raise ValueError(f"--out: expected a name that ends in .csv, got {str(run.out)!r}")
    detector, facts = _loaded(run)
    series = read(inputs[0], like=facts["reading"])
    notes = _told(run, series)
    return _found(detector, series, None, 10, run) | {"notes": notes}


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    """Run ``evaluate`` with a model for anomalies."""
    detector, facts = _loaded(run)
    if not facts["label"]:
        raise ValueError("DIR: expected a model that was trained with --label, got one without")
    if len(data) > 1 or (not data and not facts["example"]):
        raise ValueError(f"DATA: expected one file with labels, got {len(data)}")
    if data:
        series = read(data[0], like=facts["reading"], label=facts["label"])
        if series.label is None or not series.label.any():
            raise ValueError(f"DATA: expected rows that are labelled anomalous, got {data[0]}")
        notes = _told(run, series)
        return _found(detector, series, None, 10, run) | {"notes": notes}
    paths, options = _paths(
        (), AnomalyOptions(example=facts["example"], held_out=float(facts["held_out"]))
    )
    own, test = _parts(paths, options)
    notes = _told(run, test)
    return _found(detector, test, own.values if len(paths) == 1 else None, 10, run) | {
        "notes": notes
    }


APPLICATION = Application(
    help="learn a normal series, and rank the places of another one that were not expected",
    data="a CSV or Parquet file, whose first rows are normal, or one of normal rows and one to "
    "test; without any --example, of packages (pip install --no-deps aeon, sktime or "
    "bokeh-sampledata)",
    inputs="a file with the column of the training; --out FILE.csv has the score of each row",
    options=AnomalyOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)

readable(globals())
