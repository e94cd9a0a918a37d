"""Edit distance against the table, error rates, chrF, average precision, also in a Trainer."""

from __future__ import annotations

import random
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
