"""A translator from dates as people write them to ISO dates, with attention.

"3 March 1999", "March 3, 1999" and "03/03/99" become "1999-03-03", character by character. An LSTM
reads the text in both directions; another one writes the answer and looks at what it needs at each
step. A row of the printed matrix shows where it looked for a character that it wrote.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

import ostinato as ost

FORMS = "{d.day} {d:%B} {d.year}", "{d:%B} {d.day}, {d.year}", "{d:%d}/{d:%m}/{d:%y}"
LETTERS = sorted(set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-, "))
NUMBER = {c: k + 2 for k, c in enumerate(LETTERS)}  # 0: start and padding, 1: end
EPOCH = datetime.date(1990, 1, 1)


def dates(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of a date as it is written somewhere, and as ISO 8601 has it."""
    r = np.random.default_rng(seed)
    days = [EPOCH + datetime.timedelta(int(k)) for k in r.integers(0, 12_000, count)]
    return [(FORMS[r.integers(len(FORMS))].format(d=d), d.isoformat()) for d in days]


class Translator(ost.nn.Model):
    """An encoder in both directions, and a decoder with Luong's attention."""

    def __init__(self, size: int) -> None:
        symbols, nn = len(LETTERS) + 2, ost.nn
        self.encoder = nn.Encoder(
            nn.Embedding(symbols, 16, rng=0), nn.LSTM(16, size // 2, bidirectional=True, rng=1)
        )
        self.decoder = nn.Decoder(
            nn.Embedding(symbols, 16, rng=2), nn.LSTM(16, size, rng=3),
            nn.Linear(size, symbols, rng=4), attention=nn.Attention("general", size, rng=5),
            memory_size=size, rng=6,
        )  # fmt: skip

    def __call__(self, source: Any, inputs: Any, lengths: Any) -> Any:
        memory, state = self.encoder(source, lengths)
        return self.decoder(inputs, memory, state, memory_lengths=lengths)[0]


def main(count: int = 6000, epochs: int = 5) -> float:
    """Train, show a date with what was looked at, and return the share of dates that are right."""
    train, test = dates(count, 0), dates(500, 1)
    model = Translator(64)
    source, target = ([np.array([NUMBER[c] for c in pair[k]]) for pair in train] for k in (0, 1))
    loader = ost.data.PairLoader(source, target, start=0, end=1, batch_size=32)
    trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(5e-3), clip_norm=1.0)
    trainer.fit(loader, epochs=epochs, progress=False)

    x = ost.Ragged.join([np.array([NUMBER[c] for c in text]) for text, _ in test])
    memory, state = model.encoder(x.padded(), x.lengths)
    steps = model.decoder.steps(memory, state, memory_lengths=x.lengths)
    found = ost.decoding.beam_search(steps, [0] * len(test), end=1, width=3, max_steps=12)
    written = ["".join(LETTERS[k - 2] for k in best[0].labels if k > 1) for best in found]

    text, given = test[0][0], np.concatenate([[0], found[0][0].labels])[:, None]
    alone = memory[: len(text), :1], tuple(s[:, :1] for s in state)
    weights = model.decoder.weights(given, *alone)[0]
    print(f"  {text}   ->   {written[0]}")
    for character, row in zip(written[0], weights):
        print(f"{character} {''.join(' .:*#'[min(int(5 * w), 4)] for w in row)}")
    right = float(np.mean([w == answer for w, (_, answer) in zip(written, test)]))
    print(f"{100 * right:.1f}% of {len(test)} dates are right")
    return right


if __name__ == "__main__":
    main()
