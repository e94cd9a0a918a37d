"""The first recurrent network of every course: one unit learns to continue a sequence.

A SimpleRNN with one unit reads three numbers and predicts the next; Adam, mean squared error, 100
epochs, batch size 1.
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost


def main(epochs: int = 100) -> float:
    sequence = np.arange(0.1, 1.05, 0.1, dtype=np.float32)  # 0.1, 0.2, ..., 1.0
    x = np.stack([sequence[k : k + 3] for k in range(len(sequence) - 3)])[:, :, None]  # [N, T, I]
    target = sequence[3:, None]  # [N, 1]

    model = ost.nn.Sequential(ost.nn.RNN(1, 1, batch_first=True, rng=1), ost.nn.Linear(1, 1, rng=2))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(0.02), outputs="last")
    history = trainer.fit((x, target), epochs=epochs, batch_size=1, progress=False)

    for row, truth, guess in zip(x[:, :, 0], target[:, 0], trainer.predict(x)[:, 0]):
        print(f"{' '.join(f'{v:.1f}' for v in row)} -> {guess:.3f}  (true: {truth:.1f})")
    error = float(np.abs(trainer.predict(x) - target).mean())
    print(
        f"loss {history.rows[0]['loss']:.4f} -> {history.rows[-1]['loss']:.6f}; mean absolute "
        f"error {error:.3f}"
    )
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    main(parser.parse_args().epochs)
