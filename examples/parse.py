"""The truth of logical formulas, read as trees and as sequences.

A TreeLSTM computes the state of each node from those of its children, so that a formula within a
formula is read as it would be by itself. An LSTM has to find the tree in the sequence of tokens.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import ostinato as ost

LABELS = {"false": 0, "true": 1, "not": 2, "and": 3, "or": 4, "xor": 5, "end": 6}


def formula(rng: np.random.Generator, depth: int) -> Any:
    """Return a random formula as nested tuples: (operator, argument, ...)."""
    if depth == 0 or rng.random() < 0.25:
        return "true" if rng.random() < 0.5 else "false"
    name = str(rng.choice(["not", "and", "or", "xor"]))
    count = 1 if name == "not" else int(rng.integers(2, 4))
    return (name, *(formula(rng, depth - 1) for _ in range(count)))


def truth(f: Any) -> bool:
    """Return the value of a formula."""
    if isinstance(f, str):
        return f == "true"
    values = [truth(part) for part in f[1:]]
    return {"not": not values[0], "and": all(values), "or": any(values)}.get(
        f[0], sum(values) % 2 == 1
    )


def tokens(f: Any) -> list[int]:
    """Return a formula as a sequence, with a token at the end of each operator's arguments."""
    if isinstance(f, str):
        return [LABELS[f]]
    return [LABELS[f[0]], *(t for part in f[1:] for t in tokens(part)), LABELS["end"]]


def main(count: int = 4000, epochs: int = 8) -> dict[str, float]:
    rng = np.random.default_rng(0)
    formulas = list(dict.fromkeys(formula(rng, 5) for _ in range(2 * count)))[:count]
    target = np.array([truth(f) for f in formulas], np.int64)
    inputs = {
        "tree": ost.Trees.from_nested(formulas, LABELS),
        "sequence": ost.Ragged.join([np.array(tokens(f)) for f in formulas]),
    }
    layers = {"tree": ost.nn.TreeLSTM(16, 48, rng=1), "sequence": ost.nn.LSTM(16, 48, rng=1)}
    train, test = np.split(np.arange(len(formulas)), [int(0.8 * len(formulas))])
    scores = {}
    for name, x in inputs.items():
        model = ost.nn.Sequential(
            ost.nn.Embedding(len(LABELS), 16, rng=0), layers[name], ost.nn.Linear(48, 2, rng=2)
        )
        trainer = ost.Trainer(
            model,
            ost.losses.CrossEntropy(),
            ost.optim.Adam(5e-3),
            outputs="all" if name == "tree" else "last",  # a TreeLSTM gives one row a tree itself
            clip_norm=1.0,
            metrics=["accuracy"],
        )
        trainer.fit((x.take(train), target[train]), epochs=epochs, progress=False)
        scores[name] = trainer.evaluate((x.take(test), target[test]))["accuracy"]
        print(f"{name:8} {scores[name]:.1%} of {len(test)} unseen formulas are right")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    main(args.count, args.epochs)
