"""The adding problem (Hochreiter, Schmidhuber 1997).

What an LSTM can remember and a tanh network cannot.

Each sequence has T = 100 steps of (a number in [0, 1], a mark). Two steps are marked, one in each
half; the answer is the sum of the two marked numbers. Always answering 1 gives a mean squared error
of 1/6 = 0.167.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import ostinato as ost

BASELINE = 1 / 6


class Adding:
    """An endless supply of batches ``x [T,B,2]``, ``target [B,1]``; ``steps`` of them an epoch."""

    def __init__(self, length: int, batch: int, steps: int, seed: int) -> None:
        self.length, self.batch, self.steps, self.seed = length, batch, steps, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for k in range(start, self.steps):
            rng = np.random.default_rng((self.seed, epoch, k))
            numbers = rng.uniform(size=(self.length, self.batch))
            marks, rows, half = np.zeros_like(numbers), np.arange(self.batch), self.length // 2
            for begin in (0, half):
                marks[rng.integers(begin, begin + half, self.batch), rows] = 1
            yield (
                np.stack([numbers, marks], axis=2).astype(np.float32),
                (numbers * marks).sum(0)[:, None].astype(np.float32),
            )


def main(steps: int = 3000, length: int = 100) -> dict[str, float]:
    test = Adding(length, 500, 4, seed=1)
    errors = {}
    for name, layer in (
        ("LSTM", ost.nn.LSTM(2, 64, rng=0)),
        ("tanh RNN", ost.nn.RNN(2, 64, rng=0)),
    ):
        layer.initialize("glorot", "orthogonal", "zeros")
        if isinstance(layer, ost.nn.LSTM):
            layer.initialize(
                chrono=length
            )  # gates that keep their state for up to T steps, from the start
        model = ost.nn.Sequential(layer, ost.nn.Linear(64, 1, rng=1))
        rate = ost.optim.Cosine(5e-3 if name == "LSTM" else 1e-3, steps=steps, final=1e-4)
        trainer = ost.Trainer(
            model, ost.losses.MSE(), ost.optim.Adam(rate), clip_norm=1.0, outputs="last"
        )
        trainer.fit(Adding(length, 50, max(1, steps // 6), seed=0), steps=steps, validation=test)
        errors[name] = trainer.evaluate(test)["loss"]
    for name, error in errors.items():
        print(
            f"{name:10} mean squared error {error:.4f}  ({error / BASELINE:.1%} of always "
            "answering 1)"
        )
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--length", type=int, default=100)
    args = parser.parse_args()
    main(args.steps, args.length)
