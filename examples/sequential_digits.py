"""Handwritten digits read pixel by pixel.

Each image of 8 x 8 is a sequence of 64 grey values, its class the answer.

The images are those of scikit-learn (1,797 from the UCI repository); it comes with the extra
``test``.
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, 64, 1]`` in [0, 1] and classes ``[N]``."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("this example needs scikit-learn: pip install 'ostinato[test]'") from None
    images, classes = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32)[:, :, None], classes.astype(np.int64)


def correct(y: np.ndarray, target: np.ndarray, lengths: object) -> tuple[float, int]:
    return float((y.argmax(-1) == target).sum()), len(target)


def main(epochs: int = 40) -> float:
    x, target = load()
    order = np.random.default_rng(0).permutation(len(x))
    train, valid, test = np.split(order, [1300, 1500])
    gru = ost.nn.GRU(1, 64, batch_first=True, rng=0).initialize(
        "glorot", "orthogonal", "zeros", chrono=64
    )
    model = ost.nn.Sequential(gru, ost.nn.Linear(64, 10, rng=1))
    trainer = ost.Trainer(
        model,
        ost.losses.CrossEntropy(),
        ost.optim.Adam(
            ost.optim.Warmup(ost.optim.Cosine(5e-3, steps=41 * epochs, final=1e-4), steps=20)
        ),
        clip_norm=1.0,
        outputs="last",
        metrics={"accuracy": correct},
    )
    trainer.fit((x[train], target[train]), validation=(x[valid], target[valid]), epochs=epochs)
    accuracy = trainer.evaluate((x[test], target[test]))["accuracy"]
    print(f"{accuracy:.1%} of {len(test)} images that were never seen are read correctly")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    main(parser.parse_args().epochs)
