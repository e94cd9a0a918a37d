"""Units of texts: characters, words, or pieces of words found by byte-pair encoding."""

from __future__ import annotations

import heapq
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("char", "word", "subword")
# Words with the space before them, marks, and other white space: joined they are the text again.
DRAWS = 16  # ways in which a word is cut at random
WORDS = re.compile(r" ?\w+| ?[^\w\s]+|\s+")


@dataclass
class Units:
    """The units of one side, and their numbers.

    Attributes:
        kind: one of `KINDS`.
        symbols: the units in their order.
        merges: for "subword" the pairs of pieces that are joined, the first ones first.
    """

    kind: str
    symbols: list[str]
    merges: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = {s: k for k, s in enumerate(self.symbols)}
        self._ranks = {pair: k for k, pair in enumerate(self.merges)}
        self._known: dict[str, list[str]] = {}
        self._drawn: dict[tuple[str, int, float], list[str]] = {}

    def cut(self, text: str) -> list[str]:
        """Return the units of a text."""
        if self.kind == "char":
            return list(text)
        if self.kind == "word":
            return text.split()
        out = []
        for word in WORDS.findall(text):
            if word not in self._known:
                self._known[word] = self._pieces(word)
            out += self._known[word]
        return out

    def draw(self, text: str, dropout: float, rng: np.random.Generator) -> list[str]:
        """Return the units of a text, of which subwords are cut in one of several ways.

        Each time that two pieces could be joined they are left apart with some probability.

        Args:
            text: the text.
            dropout: the probability, in [0, 1).
            rng: what draws.

        Returns:
            The units; those of `cut` for other kinds, and for a probability of 0.

        Source: Provilkov, Emelianenko, Voita (2020), "BPE-dropout: simple and effective subword
        regularization".
        """
        if self.kind != "subword" or not dropout:
            return self.cut(text)
        out = []
        for word in WORDS.findall(text):
            one = word, int(rng.integers(DRAWS)), dropout
            if one not in self._drawn:
                own = np.random.default_rng((zlib.crc32(word.encode()), one[1]))
                self._drawn[one] = self._pieces(word, dropout, own)
            out += self._drawn[one]
        return out

    def _pieces(
        self, word: str, dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> list[str]:
        """Return the pieces of a word: its characters, joined by the merges in their order."""
        parts, ranks = list(word), self._ranks
        while len(parts) > 1:
            pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
            if rng is not None:
                pairs = [pair for pair in pairs if rng.random() >= dropout]
            if not pairs:
                break
            parts = _joined(parts, min(pairs, key=ranks.__getitem__))
        return parts

    def numbers_of(self, units: Iterable[str], first: int) -> list[int]:
        """Return the numbers of units from ``first`` on; -1 for unknown ones.

        A unit that is known in lower case alone has the number of that.
        """
        known = self._numbers
        found = (known.get(s, known.get(s.lower(), -1)) for s in units)
        return [k if k < 0 else k + first for k in found]

    def numbers(self, text: str, first: int) -> list[int]:
        """Return the numbers of the units of a text from ``first`` on, as `numbers_of` does."""
        return self.numbers_of(self.cut(text), first)

    def unknown(self, text: str) -> list[str]:
        """Return the units of a text that have no number."""
        return [s for s, k in zip(self.cut(text), self.numbers(text, 0)) if k < 0]

    def text(self, symbols: Iterable[str]) -> str:
        """Return the text of units."""
        return (" " if self.kind == "word" else "").join(symbols)

    def facts(self) -> dict[str, Any]:
        """Return what `from_facts` makes the units of, as JSON can hold it."""
        merges = [list(pair) for pair in self.merges]
        return {"kind": self.kind, "symbols": self.symbols, "merges": merges}


def from_facts(folder: object, side: str, facts: Any) -> Units:
    """Return units from facts that a file held.

    Args:
        folder: where they were read from, for errors.
        side: "source" or "target".
        facts: what was read.

    Returns:
        The units.

    Raises:
        ValueError: the facts are damaged.
    """
    given: dict[str, Any] = facts if isinstance(facts, dict) else {}
    kind, symbols, merges = (given.get(n, ()) for n in ("kind", "symbols", "merges"))
    right = (
        kind in KINDS
        and _texts(symbols)
        and len(set(symbols)) == len(symbols)
        and isinstance(merges, list)
        and all(_texts(pair) and len(pair) == 2 for pair in merges)
    )
    if not right:
        raise ValueError(
            f"DIR: expected a model with units of the {side}, got {folder} with others"
        )
    return Units(str(kind), list(symbols), [(a, b) for a, b in merges])


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(s, str) and s for s in value)


def _joined(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Return the parts with every occurrence of a pair joined."""
    out: list[str] = []
    for part in parts:
        # What was joined just now is no first part of the same pair.
        if out and part == pair[1] and out[-1] == pair[0]:
            out[-1] = pair[0] + pair[1]
        else:
            out.append(part)
    return out


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Return the pairs of pieces to join: again and again the most frequent one.

    Args:
        texts: what is counted.
        count: how many pairs, at most.

    Returns:
        The pairs; fewer where no pair occurs twice.

    Source: Sennrich, Haddow, Birch (2016), "Neural machine translation of rare words with subword
    units".
    """
    counted = Counter(word for text in texts for word in WORDS.findall(text))
    words = [(list(word), n) for word, n in sorted(counted.items())]
    totals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = {}
    for k, (parts, n) in enumerate(words):
        for pair in itertools.pairwise(parts):
            totals[pair] += n
            places.setdefault(pair, set()).add(k)
    # Counts that a pair had; one that is no longer right is put back when its turn comes.
    heap = [(-n, pair) for pair, n in totals.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while len(merges) < count and heap:
        n, best = heapq.heappop(heap)
        if totals[best] != -n:
            if 1 < totals[best] < -n:
                heapq.heappush(heap, (-totals[best], best))
            continue
        if -n < 2:
            break
        merges.append(best)
        for pair in _merge(best, words, totals, places):
            heapq.heappush(heap, (-totals[pair], pair))
    return merges


def _merge(
    best: tuple[str, str],
    words: list[tuple[list[str], int]],
    totals: Counter[tuple[str, str]],
    places: dict[tuple[str, str], set[int]],
) -> list[tuple[str, str]]:
    """Join a pair in all words that have it; return the pairs that occur more often now."""
    more: set[tuple[str, str]] = set()
    for k in sorted(places.pop(best)):
        parts, n = words[k]
        before = Counter(itertools.pairwise(parts))
        parts = _joined(parts, best)
        words[k] = parts, n
        after = Counter(itertools.pairwise(parts))
        for pair in before.keys() | after.keys():
            change = (after[pair] - before[pair]) * n
            totals[pair] += change
            if change > 0:
                more.add(pair)
                places.setdefault(pair, set()).add(k)
    del totals[best]
    more.discard(best)
    return sorted(more)


CLOSED = 200  # words of a target, at most, that are taken for symbols such as phones


def choose(kind: str, source: Sequence[str], target: Sequence[str]) -> tuple[str, str]:
    """Return the kinds of units of both sides.

    Args:
        kind: one of `KINDS` for both, or "auto": words of a target that has few different ones
            (such as phones) and characters of its source; pieces of words on both sides otherwise.
        source: the texts.
        target: the texts.

    Returns:
        The kind of the source and that of the target.
    """
    if kind != "auto":
        return kind, kind
    words = {word for text in target for word in text.split()}
    several = sum(len(text.split()) > 1 for text in target) > len(target) / 2
    if several and len(words) <= min(CLOSED, max(len(target) // 4, 2)):
        return "char", "word"
    return "subword", "subword"


def make(
    kinds: tuple[str, str],
    source: Sequence[str],
    target: Sequence[str],
    pieces: int,
    *,
    shared: bool = False,
    drawn: bool = False,
) -> tuple[Units, Units]:
    """Return the units of both sides, with the symbols that occur in these texts.

    Args:
        kinds: of the source and the target.
        source: the texts.
        target: the texts.
        pieces: merges of byte-pair encoding, at most.
        shared: whether both sides have the same symbols; their kinds are then equal.
        drawn: whether texts are cut by `Units.draw`, whose pieces of words are then symbols too.

    Returns:
        The units of the source and of the target; pieces are found in the texts of all sides that
        have them.
    """
    sides = list(zip(kinds, (source, target)))
    seen = [text for kind, texts in sides if kind == "subword" for text in texts]
    merges = learn_merges(seen, pieces)
    out = []
    for kind, texts in [(kinds[0], [*source, *target])] if shared else sides:
        units = Units(kind, [], merges if kind == "subword" else [])
        symbols = {symbol for text in texts for symbol in units.cut(text)}
        if kind == "subword" and drawn:
            symbols |= _within(texts, {a + b for a, b in merges})
        out.append(Units(kind, sorted(symbols), units.merges))
    return out[0], out[-1]


def _within(texts: Iterable[str], pieces: set[str]) -> set[str]:
    """Return the characters of texts, and those of some pieces that their words contain."""
    most = max(map(len, pieces), default=0)
    found: set[str] = set()
    for word in {word for text in texts for word in WORDS.findall(text)}:
        found.update(word)
        spans = itertools.combinations(range(len(word) + 1), 2)
        found.update(word[a:b] for a, b in spans if b - a <= most and word[a:b] in pieces)
    return found
