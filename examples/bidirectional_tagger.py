"""A tagger that reads both ways.

Every character of Python source is a comment, a string, a number, a name, or anything else.

The text is Python's own standard library, the tags those of its tokenizer. Whether a quote opens or
closes a string may show only later in the line, so a network that reads in both directions makes
fewer mistakes than one that reads forward only.
"""

from __future__ import annotations

import argparse
import io
import sysconfig
import tokenize
from pathlib import Path

import numpy as np

import ostinato as ost

KINDS = {
    tokenize.COMMENT: 1,
    tokenize.STRING: 2,
    tokenize.NUMBER: 3,
    tokenize.NAME: 4,
}  # 0: anything else
WINDOW = 80  # characters of a sample


def tags(source: str) -> np.ndarray:
    """The kind of every character."""
    lines = source.splitlines(keepends=True)
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    out = np.zeros(len(source) + 1, np.int64)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, begin), (last, end) = token.start, token.end
        if token.type in KINDS:
            out[starts[row - 1] + begin : starts[last - 1] + end] = KINDS[token.type]
    return out[: len(source)]


def load(files: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of 80 characters (as ASCII codes) and their tags, cut anywhere.

    Some begin in the middle of a string.
    """
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:files]
    texts = [
        t for t in (p.read_text(encoding="utf-8") for p in paths) if t.isascii() and "\f" not in t
    ]
    codes = np.concatenate([np.frombuffer(t.encode(), np.uint8) for t in texts]).astype(np.int64)
    kinds = np.concatenate([tags(t) for t in texts])
    n = len(codes) // WINDOW * WINDOW
    return codes[:n].reshape(-1, WINDOW), kinds[:n].reshape(-1, WINDOW)


def correct(y: np.ndarray, target: np.ndarray, lengths: object) -> tuple[float, int]:
    return float((y.argmax(-1) == target).sum()), target.size


def main(epochs: int = 6, files: int = 60) -> dict[str, float]:
    x, target = load(files)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [int(0.9 * len(x))])
    scores = {}
    for both in (False, True):
        layer = ost.nn.GRU(32, 48, bidirectional=both, batch_first=True, rng=0)
        model = ost.nn.Sequential(
            ost.nn.Embedding(128, 32, rng=1), layer, ost.nn.Linear(96 if both else 48, 5, rng=2)
        )
        trainer = ost.Trainer(
            model,
            ost.losses.CrossEntropy(),
            ost.optim.Adam(4e-3),
            clip_norm=1.0,
            metrics={"accuracy": correct},
        )
        trainer.fit((x[train], target[train]), epochs=epochs)
        scores["both ways" if both else "forward"] = trainer.evaluate((x[test], target[test]))[
            "accuracy"
        ]
    for name, score in scores.items():
        print(
            f"{name:10} {score:.2%} of {target[test].size:,} unseen characters are tagged correctly"
        )
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--files", type=int, default=60)
    args = parser.parse_args()
    main(args.epochs, args.files)
