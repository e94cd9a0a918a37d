"""Transfer: what was learned on much data helps where there is little.

A network learns which of twelve motions a noisy signal makes at each step. Then there are eight
sequences with other labels: is the motion slow, fast or none? It gets a new head, layers have rates
of their own, and they are unfrozen one after the other.
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost

MOTIONS, STEPS = 12, 60


def motions(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Signals ``[N,T,2]`` that turn at one of twelve speeds for ten steps, and the speeds."""
    speeds = np.repeat(rng.integers(0, MOTIONS, (count, STEPS // 10)), 10, axis=1)
    angle = np.cumsum((speeds - MOTIONS / 2) / 6, axis=1)
    x = np.stack([np.cos(angle), np.sin(angle)], -1) + 0.15 * rng.normal(size=(count, STEPS, 2))
    return x.astype(np.float32), speeds


def kinds(speeds: np.ndarray) -> np.ndarray:
    """The labels of the second task: 0 slow, 1 fast, 2 none."""
    away = np.abs(speeds - MOTIONS // 2)
    return np.where(away == 0, 2, np.where(away > 3, 1, 0))


def network(classes: int) -> ost.nn.Sequential:
    """A GRU of two layers with a head."""
    return ost.nn.Sequential(
        rnn=ost.nn.GRU(2, 32, 2, batch_first=True, rng=0), head=ost.nn.Linear(32, classes, rng=1)
    )


def train(model: ost.nn.Layer, x: np.ndarray, target: np.ndarray, steps: int, **options) -> None:
    """Train with Adam; options are those of the Trainer and of the optimiser."""
    callbacks = options.pop("callbacks", ())
    optimizer = ost.optim.Adam(1e-2, **options)
    loss = ost.losses.CrossEntropy()
    trainer = ost.Trainer(model, loss, optimizer, clip_norm=1.0, callbacks=callbacks)
    trainer.fit((x, target), epochs=steps, steps=steps, batch_size=16, progress=False)


def main(steps: int = 60) -> dict[str, float]:
    """Train both ways, and return the part of right answers of each."""
    rng = np.random.default_rng(0)
    x, speeds = motions(400, rng)
    source = network(MOTIONS)
    train(source, x, speeds, 250)

    few, labels = motions(8, rng)
    scratch = network(3)
    train(scratch, few, kinds(labels), steps)

    model = source.replaced("head", ost.nn.Linear(32, 3, rng=2))
    groups = ost.optim.discriminative(model, factor=3.0)
    unfreezing = ost.train.GradualUnfreezing(every=20)
    train(model, few, kinds(labels), steps, groups=groups, callbacks=[unfreezing])

    test, labels = motions(100, rng)
    scores = {}
    for name, m in (("from scratch", scratch), ("transferred", model)):
        scores[name] = float((m(test)[0].argmax(-1) == kinds(labels)).mean())
        print(f"{name}: {scores[name]:.1%} right after {steps} steps")
    return scores


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=60)
    main(p.parse_args().steps)
