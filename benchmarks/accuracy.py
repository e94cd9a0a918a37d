"""Measure what a text model loses in bfloat16 and int8.

Run ``python benchmarks/accuracy.py DIR``, where `train text --save DIR` wrote it.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from ostinato import Trainer, losses, optim
from ostinato.data import StreamLoader
from ostinato.tasks import corpora, text


def main(folder: str) -> None:
    """Bits per held-out character, and how often the likeliest next character is the same."""
    words, name = corpora.shakespeare(), "shakespeare"
    chars = text.CharModel.load(folder)
    stream, cut = chars.encode(words), int(len(words) * 0.95)
    valid = StreamLoader(stream[cut : cut + 200_000], text.BATCH, 4 * text.WINDOW)
    trainer = Trainer(chars.model, losses.CrossEntropy(), optim.SGD(0.0))
    sample = stream[cut : cut + 20_000].reshape(20, 1000).T.copy()
    print(f"{name}, model {folder}")
    first: tuple[float, np.ndarray] | None = None
    for precision in ("float32", "bfloat16", "int8"):
        chars.set_precision(precision)
        bits = trainer.evaluate(valid)["loss"] / math.log(2)
        likeliest = chars.model(sample)[0].argmax(axis=-1)
        first = first or (bits, likeliest)
        same = float((likeliest == first[1]).mean())
        print(
            f"{precision:10}{bits:.5f} bits per character ({bits - first[0]:+.5f}), same "
            f"likeliest character {100 * same:.2f}%"
        )


if __name__ == "__main__":
    main(sys.argv[1])
