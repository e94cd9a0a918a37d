"""The anomaly of a blood pressure: which rows of a series did a network not expect?

A GRU is trained on 1,200 rows that are normal, and reads 7,501 others; 12 of them are wrong. The
series is KDD-TSAD 135 of the package aeon (pip install --no-deps aeon, and 'ostinato[data]').
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

import ostinato as ost
from ostinato.tasks import anomaly

FILES = "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_{}.csv"


def load(folder: str | None) -> tuple[np.ndarray, anomaly.Labelled]:
    """Return normal rows, and others with their labels."""
    paths = []
    for part in ("TRAIN", "TEST"):
        if folder is not None:
            paths.append(Path(folder) / f"{part.lower()}.csv")
            continue
        try:
            paths.append(Path(str(distribution("aeon").locate_file(FILES.format(part)))))
        except PackageNotFoundError:
            raise SystemExit("aeon is not installed: pip install --no-deps aeon") from None
    columns = {"column": "value", "label": "is_anomaly"}
    train, test = (anomaly.read(path, **columns) for path in paths)
    return train.values, test


def main(folder: str | None = None, steps: int = 600, smooth: int = 30) -> dict[str, float]:
    train, test = load(folder)
    options = anomaly.DetectorOptions(steps=steps, smooth=smooth)
    detector = anomaly.Detector(options).fit(train, report=print)
    score = detector.score(test.values)

    for rank, place in enumerate(anomaly.places(score, 3, smooth), 1):
        truth = "an anomaly" if test.label[place.begin : place.end].any() else "normal"
        print(f"{rank}. rows {place.begin} to {place.end - 1}: score {place.score:.2f}, {truth}")

    z = anomaly.moving_zscore(test.values, 100)
    figures = {
        "network": ost.metrics.average_precision(test.label, score),
        "moving z-score": ost.metrics.average_precision(test.label, z),
    }
    for name, value in figures.items():
        print(f"{name:15} area under precision over recall {value:.3f}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="a folder with train.csv and test.csv of the same columns")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    main(args.folder, args.steps)
