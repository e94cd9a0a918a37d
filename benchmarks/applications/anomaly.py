"""Measure `train anomaly` on KDD-TSAD 135 and on an ECG, beside the same network in PyTorch.

Needs the packages aeon and sktime (`pip install --no-deps`), and Polars.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import peer

from ostinato import optim
from ostinato.data import ArrayLoader
from ostinato.tasks import _surprise, anomaly

SMOOTH = {"kdd": 30, "ecg": 300}  # rows of the score's mean: a heartbeat has about 300
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


def measure(kind: type[anomaly.Detector], name: str, seed: int) -> dict[str, float]:
    """Train on the normal rows of a series, and compare the scores of the others with labels."""
    paths, options = anomaly._paths((), anomaly.AnomalyOptions(example=name))
    own, test = anomaly._parts(paths, options)
    options = _surprise.DetectorOptions(seed=seed, smooth=SMOOTH[name])
    detector, times = common.timed(lambda: kind(options).fit(own.values))
    before = own.values if len(paths) == 1 else None
    figures = anomaly.compared(detector.score(test.values, before), test, before, options)
    return {
        "rank of the anomaly": figures["rank"],
        "AUC-PR": figures["average_precision"],
        "AUC-PR of the best moving z-score": figures["zscore_average_precision"],
        "CPU seconds": times["cpu_seconds"],
    }


def main() -> None:
    """Print a table for both series."""
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
