"""Compare sequences, texts and scores: edit distance, error rates, chrF, average precision.

`ostinato.train.metrics` has the figures of a Trainer, by batch.

>>> import ostinato as ost
>>> ost.metrics.cer(["kitten", "sunday"], ["sitting", "sunday"])
0.25
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from . import _check, _device
from ._annotations import readable
from ._check import Array

__all__ = ["average_precision", "cer", "chrf", "edit_distance", "error_rate", "per", "wer"]


def edit_distance(reference: Iterable[Hashable], hypothesis: Iterable[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one into the other.

    Rows of the table are the bits of Python's whole numbers, so texts of 100,000 characters take
    seconds.

    >>> import ostinato as ost
    >>> ost.metrics.edit_distance("kitten", "sitting")
    3
    >>> ost.metrics.edit_distance(["how", "are", "you"], ["how", "you"])
    1

    Args:
        reference: a text, or a sequence of anything that can be compared: words, numbers.
        hypothesis: the other one.

    Returns:
        The distance, from 0 to the length of the longer one.

    Raises:
        TypeError: an argument that is no sequence, or one of what has no hash, such as lists.

    Source: Levenshtein (1966); for the bits Myers (1999) and Hyyro (2003).
    """
    mend = "; use error_rate for several sequences"
    a, b = _hashable("reference", reference, mend), _hashable("hypothesis", hypothesis, mend)
    return _edits(a, b)


def _edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the edit distance of checked sequences; what is equal at both ends is left out."""
    begin = 0
    for x, y in zip(a, b):
        if x != y:
            break
        begin += 1
    a, b = a[begin:], b[begin:]
    end = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        end += 1
    a, b = a[: len(a) - end], b[: len(b) - end]
    if len(a) < len(b):  # fewer turns of the loop over longer numbers
        a, b = b, a
    return _distance(a, b) if b else len(a)


def _symbols(name: str, sequence: Any) -> Sequence[Any]:
    """Return a text or a sequence, as something with a length."""
    if isinstance(sequence, (str, list, tuple)):
        return sequence
    if _check.is_array(sequence):
        sequence = _device.host(sequence).tolist()
    try:
        return list(sequence)
    except TypeError:
        raise TypeError(
            f"{name}: expected a text or a sequence, got {type(sequence).__name__}"
        ) from None


def _hashable(name: str, sequence: Any, mend: str = "") -> Sequence[Any]:
    """Return a text or a sequence of symbols that can be the keys of a dict."""
    symbols = _symbols(name, sequence)
    try:
        if not isinstance(symbols, str):
            set(symbols)
    except TypeError:
        k = next(k for k, symbol in enumerate(symbols) if not _has_hash(symbol))
        raise TypeError(
            f"{name}: expected words, numbers or other symbols that can be hashed, got "
            f"{type(symbols[k]).__name__} at position {k}{mend}"
        ) from None
    return symbols


def _has_hash(symbol: Any) -> bool:
    try:
        hash(symbol)
    except TypeError:
        return False
    return True


def _bits(a: Sequence[Any]) -> dict[Any, int]:
    """Return where each symbol is, as bits of a whole number."""
    places: dict[Any, list[int]] = {}
    for k, x in enumerate(a):
        places.setdefault(x, []).append(k)
    out = {}
    for x, at in places.items():
        flags = np.zeros(at[-1] + 1, np.uint8)
        flags[at] = 1
        out[x] = int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
    return out


def _distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Go through the columns of the table; bits say which way it changes from row to row."""
    known = _bits(a)
    every, top = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = every, 0, len(a)  # rows that are one more, and one less, than that above
    for x in b:
        equal = known.get(x, 0)
        diagonal = ((((equal & up) + up) ^ up) | equal | down) & every
        right_up = down | (every ^ (diagonal | up))
        right_down = up & diagonal
        if right_up & top:
            distance += 1
        elif right_down & top:
            distance -= 1
        right_up = (right_up << 1 | 1) & every
        right_down = right_down << 1 & every
        vertical = equal | down
        up = right_down | (every ^ (vertical | right_up))
        down = right_up & vertical
    return distance


def error_rate(
    references: Sequence[Iterable[Hashable]], hypotheses: Sequence[Iterable[Hashable]]
) -> float:
    """Return the edit distances of all pairs over the lengths of all references.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> ost.metrics.error_rate([np.array([1, 2, 3]), [4]], [[1, 3], [4]])
    0.25

    Args:
        references: what is right: a sequence for each pair.
        hypotheses: what was found.

    Returns:
        0 where all are equal; above 1 where much was inserted. Infinity where there is something
        and the references are empty.

    Raises:
        TypeError: an argument that is no sequence of sequences.
        ValueError: another number of hypotheses than of references.
    """
    references = _symbols("references", references)
    hypotheses = _symbols("hypotheses", hypotheses)
    if len(references) != len(hypotheses):
        raise ValueError(
            f"hypotheses: expected {len(references)}, as many as references, got {len(hypotheses)}"
        )
    edits = length = 0
    for reference, hypothesis in zip(references, hypotheses):
        symbols = _hashable("references", reference)
        edits += _edits(symbols, _hashable("hypotheses", hypothesis))
        length += len(symbols)
    return edits / length if length else (math.inf if edits else 0.0)


def _lists(references: Any, hypotheses: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what two lists hold, or a pair of texts as lists of one each."""
    if isinstance(references, str) != isinstance(hypotheses, str):
        raise TypeError(
            "hypotheses: expected a text beside a text, or a list beside a list, got one of each"
        )
    if isinstance(references, str):
        return [references], [hypotheses]
    return _symbols("references", references), _symbols("hypotheses", hypotheses)


def _texts(references: Any, hypotheses: Any, split: Callable[[Any], Sequence[Any]]) -> float:
    """Return the error rate of texts, or of a pair of them."""
    references, hypotheses = _lists(references, hypotheses)
    return error_rate([split(text) for text in references], [split(text) for text in hypotheses])


def cer(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> float:
    """Return the character error rate.

    >>> import ostinato as ost
    >>> ost.metrics.cer("abcd", "abd")
    0.25

    Args:
        references: a text, or a list of texts.
        hypotheses: as many.

    Returns:
        Edits over characters of all references; see `error_rate`.

    Raises:
        TypeError: a text beside a list, or what is neither.
        ValueError: another number of hypotheses than of references.
    """
    return _texts(references, hypotheses, lambda text: text)


def _words(text: Any) -> Sequence[Any]:
    return text.split() if isinstance(text, str) else text


def wer(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> float:
    """Return the word error rate; words stand between white space.

    >>> import ostinato as ost
    >>> ost.metrics.wer("how are you", "how  you")
    0.3333333333333333

    Args:
        references: a text, or a list of texts.
        hypotheses: as many.

    Returns:
        Edits over words of all references; see `error_rate`.

    Raises:
        TypeError: a text beside a list, or what is neither.
        ValueError: another number of hypotheses than of references.
    """
    return _texts(references, hypotheses, _words)


def per(
    references: str | Sequence[str | Sequence[str]], hypotheses: str | Sequence[str | Sequence[str]]
) -> float:
    """Return the phone error rate.

    >>> import ostinato as ost
    >>> ost.metrics.per(["HH AH0 L OW1"], [["HH", "EH0", "L", "OW1"]])
    0.25

    Args:
        references: phones between white space, or a list of such texts or of lists of phones.
        hypotheses: as many.

    Returns:
        Edits over phones of all references; see `error_rate`.

    Raises:
        TypeError: a text beside a list, or what is neither.
        ValueError: another number of hypotheses than of references.
    """
    return _texts(references, hypotheses, _words)


def chrf(
    references: str | Sequence[str] | Sequence[Sequence[str]],
    hypotheses: str | Sequence[str],
    *,
    word_order: int = 0,
) -> float:
    """Return the chrF score of translations, by sacrebleu (extra ``translation``).

    Args:
        references: a text for each translation, or a list of several that are all right; or one
            text.
        hypotheses: the translations; one text beside a text.
        word_order: how many words a sequence that is compared has at most; 0 is chrF, 2 is chrF++.

    Returns:
        From 0 to 100.

    Raises:
        ImportError: sacrebleu is not installed.
        TypeError: a text beside a list, or what is neither.
        ValueError: another number of references than of translations, or none.

    Source: Popovic (2015), "chrF: character n-gram F-score for automatic MT evaluation".

    >>> import ostinato as ost
    >>> ost.metrics.chrf(["the cat"], ["the cat"])  # doctest: +SKIP
    100.0
    """
    word_order = _check.positive("word_order", word_order, 0)
    references, hypotheses = _lists(references, hypotheses)
    if len(references) != len(hypotheses) or not hypotheses:
        raise ValueError(
            f"references: expected one for each of the hypotheses, at least one, got "
            f"{len(references)} beside {len(hypotheses)}"
        )
    for k, text in enumerate(hypotheses):
        _check.text(f"hypotheses[{k}]", text, "a text")
    lists = [_alternatives(f"references[{k}]", r) for k, r in enumerate(references)]
    try:
        sacrebleu: Any = importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise ImportError(
            "chrf: needs sacrebleu; use pip install 'ostinato[translation]'"
        ) from error
    most = max(map(len, lists))
    # sacrebleu takes the first reference of all texts, then the second one, ...
    columns = [[r[k] if k < len(r) else None for r in lists] for k in range(most)]
    scorer = sacrebleu.CHRF(word_order=word_order)
    return float(scorer.corpus_score(list(hypotheses), columns).score)


def _alternatives(name: str, reference: Any) -> list[str]:
    """Return the texts that are right for one translation; None among them stands for none."""
    if isinstance(reference, str):
        return [reference]
    texts = [text for text in _symbols(name, reference) if text is not None]
    if not texts:
        raise ValueError(f"{name}: expected at least one text, got none")
    return [_check.text(f"{name}[{k}]", text, "a text") for k, text in enumerate(texts)]


def average_precision(target: Array, score: Array) -> float:
    """Return the area under the curve of precision over recall (AUC-PR), as average precision.

    It is ``sum_n (R_n - R_{n-1}) P_n`` over all thresholds, from the highest score down, without
    interpolation; equal scores are one threshold.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> target, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.5, 0.8])
    >>> round(ost.metrics.average_precision(target, score), 4)
    0.8333

    Args:
        target: ``[N]`` of 0 and 1, or bool.
        score: ``[N]``, the higher the more likely 1.

    Returns:
        Above 0 and at most 1; about the share of ones for scores that know nothing.

    Raises:
        TypeError: an argument that is no array of numbers.
        ValueError: other shapes, a target of other numbers or without a 1, or scores of NaN.
    """
    target, score = _check.array("target", target, 1), _check.array("score", score, 1)
    for name, a in (("target", target), ("score", score)):
        if a.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
    if target.shape != score.shape:
        raise ValueError(f"score: expected shape {target.shape}, that of target, got {score.shape}")
    if np.isnan(score).any():
        raise ValueError("score: expected numbers, got NaN")
    if not ((target == 0) | (target == 1)).all() or not (target == 1).any():
        raise ValueError("target: expected numbers of 0 and 1, at least one of them 1, got others")
    order = np.argsort(score, kind="stable")[::-1]
    positive, falling = (target == 1)[order], score[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    found = positive.cumsum()[ends]
    precision, recall = found / (ends + 1), found / found[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


readable(globals())
