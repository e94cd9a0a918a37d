"""Measure `train anomaly` on three series, beside the same network in PyTorch.

KDD-TSAD 135 and an ECG have labels. The readings of glucose have none: there the anomalous rows are
those beside a pause of the sensor, which the detector is not told of, since it sees no times.

Needs the packages aeon, sktime and bokeh-sampledata (`pip install --no-deps`), and Polars.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
from datetime import datetime
from typing import Any

import common
import numpy as np
import peer

from ostinato import optim
from ostinato.data import ArrayLoader
from ostinato.tasks import _surprise, anomaly

# Rows of the score's mean: a heartbeat has about 300.
SMOOTH = {"kdd": 30, "ecg": 300, "glucose": 30}
PAUSE = 900  # seconds between two readings of glucose, which are to be 300
BESIDE = 15  # rows before and behind a pause that count as anomalous
FIRST = 10  # places that are looked at
NAMES = {"0.": "cell.", "1.": "head."}


class TorchDetector(anomaly.Detector):
    """A detector whose network PyTorch trains, from our initial values on our windows."""

    threads = 1

    def _train(self, train: Any, valid: Any) -> float:
        """Train; the last parameters are kept, and the error of ``valid`` is not measured."""
        import torch
        from torch import nn

        o = self.options

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = nn.GRU(1, o.hidden, batch_first=True)
                self.head = nn.Linear(o.hidden, o.horizon)

            def forward(self, x: Any) -> Any:
                return self.head(self.cell(x)[0])

        def batches() -> Any:
            loader = ArrayLoader(*train, time_major=False, rng=o.seed)
            for step in range(o.steps):
                epoch, at = divmod(step, len(loader))
                if at == 0:
                    turn = loader.batches(epoch)
                x, target, _ = next(turn)
                yield torch.from_numpy(x), torch.from_numpy(target)

        model = Network()
        peer.share(self.model, model, NAMES)
        peer.fit(
            model,
            lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
            batches(),
            optim.Cosine(o.rate, steps=o.steps, final=o.rate / 50),
            threads=self.threads,
        )
        peer.take_back(self.model, model, NAMES)
        return float("nan")


def pauses(path: str) -> Any:
    """Return the rows of a record of glucose that are beside a pause, or a clock set back."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        times = [datetime.fromisoformat(row["datetime"]) for row in csv.DictReader(f)]
    apart = np.array([(b - a).total_seconds() for a, b in itertools.pairwise(times)])
    label = np.zeros(len(times), bool)
    for row in np.flatnonzero((apart > PAUSE) | (apart <= 0)) + 1:
        label[max(row - BESIDE, 0) : row + BESIDE] = True
    return label


def parts(name: str) -> tuple[anomaly.Labelled, anomaly.Labelled, Any]:
    """Return the rows to train on and those to test, and the rows before the latter."""
    paths, options = anomaly._paths((), anomaly.AnomalyOptions(example=name))
    own, test = anomaly._parts(paths, options)
    if name == "glucose":
        label = pauses(paths[0])[len(own.values) :]
        test = dataclasses.replace(test, label=label)
    return own, test, own.values if len(paths) == 1 else None


def measure(kind: type[anomaly.Detector], name: str, seed: int) -> dict[str, float]:
    """Train on the normal rows of a series, and compare the scores of the others with labels."""
    own, test, before = parts(name)
    options = _surprise.DetectorOptions(seed=seed, smooth=SMOOTH[name])
    detector, times = common.timed(lambda: kind(options).fit(own.values))
    score = detector.score(test.values, before)
    figures = anomaly.compared(score, test, before, options)
    label: Any = test.label
    first = anomaly.places(score, FIRST, options.smooth)
    return {
        "rank of the anomaly": figures["rank"],
        f"of the first {FIRST} places": sum(label[p.begin : p.end].any() for p in first),
        "AUC-PR": figures["average_precision"],
        "AUC-PR of the best moving z-score": figures["zscore_average_precision"],
        "CPU seconds": times["cpu_seconds"],
    }


def main() -> None:
    """Print a table for the three series."""
    args = common.arguments(__doc__)
    TorchDetector.threads = args.threads
    peer.warm_up(args)
    rows = {}
    for name in SMOOTH:
        kinds = {"ostinato": anomaly.Detector}
        if not args.no_peer:
            kinds["torch"] = TorchDetector
        for title, kind in kinds.items():
            rows[f"{name}, {title}"] = [measure(kind, name, seed) for seed in args.seeds]
    common.table("Anomalies", rows, args.out)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
