"""Edit distance against the table, error rates, chrF, average precision, also in a Trainer."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import metrics
from ostinato.train import metrics as by_batch


def table(a: Any, b: Any) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@pytest.mark.parametrize("alphabet", ["a", "ab", "abcdef"])
def test_edit_distance_is_that_of_the_table(alphabet: str) -> None:
    rng = random.Random(alphabet)
    for _ in range(400):
        a, b = ("".join(rng.choices(alphabet, k=rng.randrange(90))) for _ in range(2))
        want = table(a, b)
        assert metrics.edit_distance(a, b) == want
        assert metrics.edit_distance(b, a) == want
        assert (
            metrics.edit_distance(np.array([ord(c) for c in a], int), [ord(c) for c in b]) == want
        )


def test_edit_distance_of_texts_with_few_edits() -> None:
    rng = random.Random(0)
    text = [rng.randrange(30) for _ in range(20000)]
    other = list(text)
    for k in range(100, 20000, 1000):  # 20 places far from each other: a substitution each
        other[k] = 30
    assert metrics.edit_distance(text, other) == 20
    del other[5000:5007]
    assert metrics.edit_distance(text, other) == 27
    assert metrics.edit_distance(text, text) == 0
    assert metrics.edit_distance("", "abc") == metrics.edit_distance("abc", "") == 3
    assert metrics.edit_distance("\u00e9", "e\u0301") == 2  # code points, as they come
    assert metrics.edit_distance(iter("abc"), (c for c in "abd")) == 1


def test_error_rates() -> None:
    assert metrics.cer(["kitten", "sunday"], ["sitting", "sunday"]) == 3 / 12
    assert metrics.cer("ab", "xyzw") == 2
    assert metrics.wer(["the cat  sat\n", "on it"], ["the cat", "on it it"]) == 2 / 5
    assert metrics.per([["HH", "AH0"], ["L"]], ["HH AH1", "L"]) == 1 / 3
    assert metrics.cer([""], [""]) == 0
    assert metrics.cer([""], ["a"]) == np.inf
    assert metrics.error_rate([], []) == 0
    with pytest.raises(ValueError, match="hypotheses: expected 2, as many as references, got 1"):
        metrics.wer(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="hypotheses: expected a text beside a text"):
        metrics.cer("ab", ["a", "b"])


def test_chrf_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references, found = (
        ["the cat sat on the mat", "how are you"],
        ["a cat sat on a mat", "how you are"],
    )
    want = sacrebleu.corpus_chrf(found, [references])
    assert metrics.chrf(references, found) == want.score
    assert metrics.chrf(references, references) == 100
    plus = sacrebleu.corpus_chrf(found, [references], word_order=2)
    assert metrics.chrf(references, found, word_order=2) == plus.score != want.score
    several = [["the cat sat on the mat", "a cat sat on a mat"], ["how are you"]]
    assert want.score < metrics.chrf(several, found) < 100
    with pytest.raises(
        ValueError, match=r"references: expected one for each of the hypotheses.*got 1 beside 2"
    ):
        metrics.chrf(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="references: expected one for each"):
        metrics.chrf([], [])
    assert metrics.chrf(references[0], found[0]) == metrics.chrf(references[:1], found[:1]) < 100
    assert metrics.chrf(np.array(references), np.array(found)) == want.score  # type: ignore[arg-type]
    assert metrics.chrf([[r, None] for r in references], found) == want.score  # type: ignore[list-item]


def test_what_chrf_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "sacrebleu"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # type: ignore[arg-type]
    with pytest.raises(
        ImportError, match=r"chrf: needs sacrebleu; use pip install 'ostinato\[translation\]'"
    ):
        metrics.chrf(["a"], ["a"])


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_sklearn(ties: bool) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 200):
        target = rng.integers(0, 2, n)
        target[0] = 1
        score = rng.integers(0, 4, n).astype(np.float32) if ties else rng.normal(size=n)
        want = sklearn.average_precision_score(target, score)
        assert metrics.average_precision(target, score) == pytest.approx(want, rel=1e-12)
        assert metrics.average_precision(target.astype(bool), score) == pytest.approx(
            want, rel=1e-12
        )
    assert (
        metrics.average_precision(np.array([1, 0, 0, 1]), np.zeros(4)) == 0.5
    )  # scores that know nothing
    assert metrics.average_precision(np.array([0, 1]), np.array([-np.inf, np.inf])) == 1
    for target, score, message in (
        ([0, 0], [0.0, 1.0], "target: expected numbers of 0 and 1, at least one of them 1"),
        ([0, 2], [0.0, 1.0], "target: expected numbers of 0 and 1"),
        ([0, 1], [0.0, np.nan], "score: expected numbers, got NaN"),
        ([0, 1], [0.0], r"score: expected shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.average_precision(np.array(target), np.array(score))


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a text beside a list": (
        lambda: metrics.chrf(["ab"], "a"),
        TypeError,
        "hypotheses: expected a text beside a text, or a list beside a list, got one of each",
    ),
    "no references": (
        lambda: metrics.chrf(None, ["a"]),  # type: ignore[arg-type]
        TypeError,
        "references: expected a text or a sequence, got NoneType",
    ),
    "references of numbers": (
        lambda: metrics.chrf([["a", 3]], ["a"]),  # type: ignore[list-item]
        TypeError,
        "references[0][1]: expected a text, got 3",
    ),
    "translations of numbers": (
        lambda: metrics.chrf(["a"], [3]),  # type: ignore[list-item]
        TypeError,
        "hypotheses[0]: expected a text, got 3",
    ),
    "a translation without a reference": (
        lambda: metrics.chrf(["a", []], ["a", "b"]),  # type: ignore[list-item]
        ValueError,
        "references[1]: expected at least one text, got none",
    ),
    "sequences of sequences": (
        lambda: metrics.edit_distance([1, [1]], [2]),  # type: ignore[list-item]
        TypeError,
        "reference: expected words, numbers or other symbols that can be hashed, got list at "
        "position 1; use error_rate for several sequences",
    ),
    "two axes": (
        lambda: metrics.edit_distance([1], np.zeros((2, 2))),
        TypeError,
        "hypothesis: expected words, numbers or other symbols that can be hashed, got list",
    ),
    "deep sequences": (
        lambda: metrics.error_rate([[1]], [[[1]]]),  # type: ignore[list-item]
        TypeError,
        "hypotheses: expected words, numbers or other symbols that can be hashed, got list",
    ),
    "a target of texts": (
        lambda: metrics.average_precision(np.array(["a"]), np.ones(1)),
        TypeError,
        "target: expected real numbers, got dtype <U1",
    ),
    "scores of texts": (
        lambda: metrics.average_precision(np.ones(1), np.array(["a"])),
        TypeError,
        "score: expected real numbers, got dtype <U1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_scores_of_64_bits_are_told_apart() -> None:
    score = np.array([2**60, 2**60 + 1])
    assert metrics.average_precision(np.array([0, 1]), score) == 1
    assert metrics.average_precision(np.array([1, 0]), score) == 0.5


def test_average_precision_of_the_worst_scores() -> None:
    """It is above 0, and may be below the share of ones."""
    found = metrics.average_precision(np.array([0, 0, 1, 1]), np.array([4, 3, 2, 1]))
    assert found == pytest.approx(5 / 12)


LOGITS, FLAGS = np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([True, False])
BY_CLASS = [by_batch.Accuracy, by_batch.F1]
WITH_INDEX = [*BY_CLASS, by_batch.BitsPerCharacter, by_batch.AveragePrecision]
ALL = [*WITH_INDEX, by_batch.MAE]


@pytest.mark.parametrize("kind", WITH_INDEX)
def test_an_ignore_index_is_a_whole_number(kind: Any) -> None:
    with pytest.raises(TypeError, match="ignore_index: expected a whole number, got 'pad'"):
        kind(ignore_index="pad")


@pytest.mark.parametrize("kind", BY_CLASS)
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 7], ValueError, "target: expected class numbers from 0 to 1, or ign.* got 7"),
        ([0, -1], ValueError, "target: expected class numbers from 0 to 1, or ign.* got -1"),
        ([0.0, 1.0], TypeError, r"target: expected an integer dtype, got float64; use target\.ast"),
        (["a", "b"], TypeError, "target: expected real numbers, got dtype <U1"),
        (
            [0, 1, 1],
            ValueError,
            r"target: expected shape \(2,\) or \(2, 2\), that of y, got \(3,\)",
        ),
        ([[0, 2], [0, 1]], ValueError, "target: expected numbers from 0 to 1 beside y of .* got 2"),
    ],
)
def test_classes_are_checked(kind: Any, target: Any, error: Any, message: str) -> None:
    metric = kind()
    metric.update(LOGITS, np.array([0, 1]))
    with pytest.raises(error, match=message):
        metric.update(LOGITS, np.array(target))
    assert metric.compute() == 1
    if np.ndim(target) == 1 and len(target) == 2 and error is ValueError:  # they do not count
        metric.update(LOGITS, np.array(target), FLAGS)
        ignoring = kind(ignore_index=target[1])
        ignoring.update(LOGITS, np.array(target))
        assert metric.compute() == ignoring.compute() == 1


@pytest.mark.parametrize("kind", BY_CLASS)
def test_targets_of_two_classes_take_an_ignore_index(kind: Any) -> None:
    metric = kind()
    metric.update(np.array([2.0, 1.0, -1.0]), np.array([1.0, -100.0, 0.0]))
    metric.update(np.array([[2.0], [1.0]]), np.array([1.0, -100.0]))
    metric.update(np.array([[2.0], [1.0]]), np.array([True, True]))
    metric.update(np.array([2.0, 1.0]), np.array([0, -100]), np.array([False, True]))
    assert metric.compute() == 1


@pytest.mark.parametrize("kind", ALL)
def test_arrays_of_a_batch_are_checked(kind: Any) -> None:
    y = np.ones((2, 3)) if kind in (by_batch.MAE, by_batch.AveragePrecision) else np.ones((2, 3, 4))
    target = np.ones((2, 3)) if y.ndim == 2 else np.ones((2, 3), int)
    metric = kind()
    metric.update(y, target, np.zeros((2, 3), bool))
    assert np.isnan(metric.compute())
    for bad, error, message in (
        ((y.tolist(), target), TypeError, "y: expected a numpy.ndarray, got list"),
        ((y, target.tolist()), TypeError, "target: expected a numpy.ndarray, got list"),
        ((y.astype(str), target), TypeError, "y: expected real numbers, got dtype <U32"),
        ((y, target.astype(str)), TypeError, "target: expected real numbers, got dtype <U"),
        ((y, target[:1]), ValueError, "target: expected "),
        ((y, target[:1], np.ones((2, 3), bool)), ValueError, "target: expected "),
        ((y, target, np.ones((1, 3), bool)), ValueError, r"on: expected shape \(2, 3\).*\(1, 3\)"),
        ((y, target, np.ones(3, bool)), ValueError, r"on: expected shape \(2, 3\).* got \(3,\)"),
        ((y, target, np.ones((2, 3))), TypeError, "on: expected dtype bool, got float64; use on"),
        ((y, target, [[True], [True, False]]), TypeError, "on: expected a numpy.ndarray, got list"),
    ):
        with pytest.raises(error, match=message):
            metric.update(*bad)
    assert np.isnan(metric.compute())


def test_targets_of_average_precision_are_checked_by_batch() -> None:
    metric = by_batch.AveragePrecision()
    with pytest.raises(ValueError, match="target: expected 0 and 1, or ignore_index = -100, got 2"):
        metric.update(np.ones(2), np.array([1, 2]))
    metric.update(np.ones(2), np.array([1, -100]))
    assert metric.compute() == 1


def test_a_function_gives_a_sum_and_a_count() -> None:
    metric = by_batch.named({"own": lambda y, target, lengths: 3.0})["own"]
    with pytest.raises(
        TypeError, match=r"metrics: expected \(sum, count\) from a function, got float"
    ):
        metric.add(np.ones(1), np.ones(1), None)  # type: ignore[attr-defined]


def test_average_precision_by_batches() -> None:
    rng = np.random.default_rng(1)
    y, target = rng.normal(size=(4, 7, 1)), rng.integers(0, 2, (4, 7))
    metric = by_batch.AveragePrecision()
    assert np.isnan(metric.compute())
    on = rng.integers(0, 2, (4, 7)).astype(bool)
    target[0, 0] = -100
    for k in range(4):
        metric.update(y[k : k + 1], target[k : k + 1], on[k : k + 1])
    known = on & (target != -100)
    assert metric.compute() == metrics.average_precision(target[known], y[known][:, 0])
    metric.reset()
    metric.update(y[..., 0], np.abs(target) % 2)
    assert metric.compute() == metrics.average_precision(
        np.abs(target).reshape(-1) % 2, y.reshape(-1)
    )
    with pytest.raises(ValueError, match="target: expected the shape of y"):
        metric.update(y[:, :3], target)
    x = rng.normal(size=(40, 5, 2)).astype(np.float32)
    goal = (x.cumsum(1)[..., :1] > 0.5).astype(np.float32)
    model = ost.nn.Sequential(ost.nn.GRU(2, 8, batch_first=True, rng=0), ost.nn.Linear(8, 1, rng=0))
    trainer = ost.Trainer(
        model, ost.losses.BinaryFocal(), ost.optim.Adam(1e-2), metrics=["average_precision"]
    )
    before = trainer.evaluate(x, goal)["average_precision"]
    trainer.fit((x, goal), epochs=20, progress=False)
    assert trainer.evaluate(x, goal)["average_precision"] > max(before, 0.9)


def test_the_label_error_rate_by_batches() -> None:
    metric = by_batch.LabelErrorRate(blank=2)
    assert np.isnan(metric.compute())
    y = np.eye(3)[np.array([[0, 2, 1, 1], [1, 0, 0, 2]])]  # [B,T,V]: 0 1, and 1 0
    metric.update(y, np.array([[0, 1, -1], [1, 0, 1]]))
    assert metric.compute() == 1 / 5
    metric.update(
        y,
        [np.array([0]), np.array([1])],
        np.array([[True] * 2 + [False] * 2, [True] + [False] * 3]),
    )
    assert metric.compute() == 1 / 7
    metric.reset()
    metric.update(ost.Ragged(y.reshape(8, 3), [0, 4, 8]), [np.array([0, 1]), np.array([], int)])
    assert metric.compute() == 2 / 2
    with pytest.raises(
        ValueError, match="target: expected labels of 2 sequences, as many as y has, got 1"
    ):
        metric.update(y, np.array([[1]]))
    before, labels = metric.compute(), np.array([[0, 1], [1, 0]])
    rows, on = list(y), [np.ones(4, bool)] * 2
    for bad, error, message in (
        ((y, labels, np.ones((1, 4), bool)), ValueError, r"on: expected shape \(2, 4\).*\(1, 4\)"),
        ((y, labels, np.ones(2, bool)), ValueError, r"on: expected shape \(2, 4\).* got \(2,\)"),
        ((y, labels, np.ones((2, 4))), TypeError, "on: expected dtype bool, got float64"),
        ((rows, labels, on[:1]), ValueError, "on: expected 2 masks, one for each .* got 1"),
        ((rows, labels, 3), TypeError, "on: expected a mask of each sequence of y, got int"),
        ((y[0], labels, np.ones((4, 3), bool)), ValueError, "y: expected 3 axes"),
    ):
        with pytest.raises(error, match=message):
            metric.update(*bad)  # type: ignore[arg-type]
    assert metric.compute() == before
    metric.reset()
    metric.update(rows, labels, on)  # type: ignore[arg-type]
    assert metric.compute() == 0
