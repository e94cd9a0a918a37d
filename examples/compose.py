"""Learn a book of tunes, write one, and save it as MIDI.

The tunes are O'Neill's, 2,009 of the dances of Ireland in ABC notation (pip install --no-deps
music21; the package is read as text and never imported).
"""

from __future__ import annotations

import argparse

import numpy as np

import ostinato as ost
from ostinato.tasks import compose
from ostinato.tasks.text import CharModel, TextOptions, trainer_of


def main(
    files: list[str] | None = None, steps: int = 1500, hidden: int = 256, out: str | None = None
) -> dict[str, float]:
    tunes = compose.read(files or [])
    order = np.random.default_rng(0).permutation(len(tunes))
    test, train = ([tunes[k] for k in part] for part in np.split(order, [len(tunes) // 10]))

    alphabet = "".join(sorted(set("".join(tunes))))
    model = CharModel.fresh(alphabet, TextOptions(steps=steps, hidden=hidden, dropout=0.2))
    trainer_of(model).fit(compose.TuneLoader(model, train), steps=steps)

    counts = ost.decoding.NGram(len(alphabet), order=5)
    counts.fit([model.encode(tune) for tune in train])
    bits = {
        "LSTM": compose.bits_per_char(model, test),
        "5-gram": counts.bits_per_label([model.encode(tune) for tune in test]),
    }
    for name, value in bits.items():
        print(f"{name:7} {value:.3f} bits for each character of {len(test)} unseen tunes")

    tune = compose.compose(model, {"K": "G"}, seed=1)
    print(f"\n{tune['abc']}\n{tune['notes']} notes, {tune['seconds']:.0f} s {tune['problem']}")
    if out is not None:
        compose.save([tune], out)
        print(f"written to {out}")
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="books of tunes in ABC")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", help="a MIDI file for the tune")
    args = parser.parse_args()
    main(args.files, args.steps, out=args.out)
