"""Pronounce words: a pretrained pair of GRUs from the package g2p-en, run with NumPy alone.

`pip install --no-deps g2p-en==2.1.0` brings the weights, an npz file of arrays; nothing of that
package is imported. The encoder reads the letters of a word, and the decoder starts from its state
and writes one phone a step (ARPAbet, with 0, 1 or 2 for the stress of a vowel).

    python examples/pronounce.py recurrent ostinato
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ostinato as ost

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
OTHERS = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH"
PHONES = sorted([v + stress for v in VOWELS for stress in "012"] + OTHERS.split())
SYMBOLS = ["<pad>", "<unk>", "<s>", "</s>", *PHONES]
START, END, MOST = 2, 3, 20  # of the decoder; phones of a word

# Names in the file, and what they are called in PyTorch.
RULES = {
    r"^(enc|dec)_emb$": r"\1_embedding.weight",
    r"^(enc|dec)_w_(ih|hh)$": r"\1.weight_\2_l0",
    r"^(enc|dec)_b_(ih|hh)$": r"\1.bias_\2_l0",
    r"^fc_w$": "fc.weight",
    r"^fc_b$": "fc.bias",
}


def weights() -> Path | None:
    """Return the file of the package, None where it is not installed."""
    spec = importlib.util.find_spec("g2p_en")
    return None if spec is None else Path(str(spec.origin)).parent / "checkpoint20.npz"


class Speller:
    """The encoder and decoder of a file."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            layers = ost.from_torch(dict(arrays), rename=RULES)
        self.letters, self.encoder = layers["enc_embedding"], layers["enc"]
        self.decoder = ost.nn.Sequential(layers["dec_embedding"], layers["dec"], layers["fc"])
        self.stream = self.decoder.stream(1)  # for as many words as came last

    def pronounce(self, words: Sequence[str]) -> list[list[str]]:
        """Return the phones of each word, all words at once."""
        known = {c: k for k, c in enumerate(LETTERS)}
        rows = [[known.get(c, 1) for c in w.lower()] + [known["</s>"]] for w in words]
        ids = np.zeros((max(map(len, rows)), len(rows)), np.int64)
        for k, row in enumerate(rows):
            ids[: len(row), k] = row
        _, h = self.encoder(self.letters(ids), lengths=[len(row) for row in rows])
        if len(self.stream.y) != len(rows):
            self.stream = self.decoder.stream(len(rows))
        self.stream.state = (None, h, None)
        symbol = np.full(len(rows), START)
        out: list[list[str]] = [[] for _ in rows]
        running = np.ones(len(rows), bool)
        for _ in range(MOST):
            symbol = self.stream.step(symbol).argmax(-1)
            running &= symbol != END
            if not running.any():
                break
            for k in np.flatnonzero(running):
                out[k].append(SYMBOLS[symbol[k]])
        return out


def main(words: Sequence[str]) -> dict[str, list[str]]:
    """Print the phones of words, and return them."""
    path = weights()
    if path is None:
        raise SystemExit("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    found = dict(zip(words, Speller(path).pronounce(words)))
    for word, phones in found.items():
        print(f"{word}: {' '.join(phones)}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pronounce words by a pretrained model.")
    parser.add_argument("words", nargs="*", default=["recurrent", "memory"])
    main(parser.parse_args().words)
