"""Decoding against every sequence there is: of CTC, and of models of the next label."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

import ostinato as ost
from ostinato import decoding, losses, nn

Labels = tuple[int, ...]


def softmax(y: Any) -> Any:
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def collapsed(path: Any, blank: int = 0) -> Labels:
    return tuple(int(k) for k, _ in itertools.groupby(path) if k != blank)


def every_labelling(y: Any, blank: int = 0) -> dict[Labels, float]:
    """The probability of all labels, from all paths."""
    p, out = softmax(y), {}
    for path in itertools.product(range(y.shape[1]), repeat=len(y)):
        key = collapsed(path, blank)
        out[key] = out.get(key, 0.0) + float(np.prod(p[np.arange(len(y)), list(path)]))
    return out


# -- CTC -------------------------------------------------------------------------------------------


def test_the_best_path() -> None:
    paths = [[0, 1, 1, 0, 1, 2, 2, 0], [3, 3, 3, 3, 3, 3, 3, 3], [0] * 8]
    y = np.eye(4)[np.array(paths).T]
    assert [a.tolist() for a in decoding.ctc_greedy(y)] == [[1, 1, 2], [3], []]
    assert [a.tolist() for a in decoding.ctc_greedy(y, [3, 0, 8])] == [[1], [], []]
    assert [
        a.tolist() for a in decoding.ctc_greedy(y.swapaxes(0, 1), batch_first=True, blank=3)
    ] == [
        [0, 1, 0, 1, 2, 0],
        [],
        [0],
    ]
    rows = ost.Ragged.join([y[:n, b] for b, n in enumerate((8, 2, 0))])
    for sequences in (rows, list(rows)):
        assert [a.tolist() for a in decoding.ctc_greedy(sequences)] == [[1, 1, 2], [3], []]
    y[5:, 0] = np.nan  # past the end of the row
    assert decoding.ctc_greedy(y, [5, 8, 8])[0].tolist() == [1, 1]
    assert all(a.dtype == np.int64 for a in decoding.ctc_greedy(y, [5, 8, 8]))


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_prefix_search_is_exact(seed: int, blank: int) -> None:
    y = 2 * np.random.default_rng(seed).normal(size=(6, 3))
    want = sorted(every_labelling(y, blank).items(), key=lambda item: -item[1])
    found = decoding.ctc_beam_search(y[:, None], blank=blank, width=1000, count=1000)[0]
    assert len(found) == len(want)
    for hypothesis, (labels, p) in zip(found, want):
        assert tuple(hypothesis.labels) == labels
        assert hypothesis.log_probability == pytest.approx(np.log(p), abs=1e-12)
        assert hypothesis.score == hypothesis.log_probability
    best = found[0]
    loss = losses.CTC(blank=blank)(y[:, None], best.labels[None])[0]
    assert best.log_probability == pytest.approx(-loss, abs=1e-12)
    narrow = decoding.ctc_beam_search(y[:, None], blank=blank, width=6)[0]
    assert narrow[0].labels.tolist() == best.labels.tolist()


def test_the_width_matters_and_prefixes_may_come_back() -> None:
    rng, better = np.random.default_rng(0), 0
    for _ in range(30):
        y = rng.normal(size=(10, 1, 4))
        one, many = (decoding.ctc_beam_search(y, width=w)[0][0] for w in (1, 64))
        assert many.score >= one.score - 1e-12
        better += many.score > one.score + 1e-9
        loss = losses.CTC()(y, many.labels[None])[0]
        assert many.log_probability <= -loss + 1e-12  # of the paths of what was kept
        assert many.log_probability == pytest.approx(-loss, abs=0.3)
    assert better > 10


class Table(decoding.LanguageModel):
    """A language model of three classes by a table of the label before."""

    p = np.array(
        [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1], [0.05, 0.9, 0.05]]
    )  # the last row: at the start
    stops = np.array([0.3, 0.2, 0.5, 0.9])

    def start(self) -> int:
        return 3

    def advance(self, state: int, label: int) -> int:
        return label

    def log_probabilities(self, state: int) -> Any:
        return np.log(self.p[state])

    def end(self, state: int) -> float:
        return float(np.log(self.stops[state]))


@pytest.mark.parametrize(("weight", "bonus"), [(1.0, 0.0), (0.7, 1.5), (0.0, -0.5)])
def test_a_language_model_and_a_bonus(weight: float, bonus: float) -> None:
    y, model = np.random.default_rng(5).normal(size=(6, 3)), Table()
    scores = {}
    for labels, p in every_labelling(y).items():
        state, extra = 3, 0.0
        for k in labels:
            extra += np.log(model.p[state, k])
            state = k
        scores[labels] = np.log(p) + weight * (extra + model.end(state)) + bonus * len(labels)
    want = sorted(scores.items(), key=lambda item: -item[1])[:5]
    found = decoding.ctc_beam_search(
        y[:, None], width=1000, count=5, language_model=model, weight=weight, bonus=bonus
    )[0]
    assert [tuple(h.labels) for h in found] == [labels for labels, _ in want]
    np.testing.assert_allclose([h.score for h in found], [s for _, s in want], atol=1e-12)
    with pytest.raises(
        TypeError, match=r"language_model: expected an ostinato.decoding.LanguageModel, got int"
    ):
        decoding.ctc_beam_search(y[:, None], language_model=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LanguageModel does not define start"):
        decoding.ctc_beam_search(y[:, None], language_model=decoding.LanguageModel())


def test_a_label_without_probability_is_not_written() -> None:
    y = np.full((3, 1, 3), -np.inf)
    y[0, 0, 1] = y[1, 0, 0] = y[2, 0, 1] = 0
    found = decoding.ctc_beam_search(y, width=8, count=8)[0]
    assert [h.labels.tolist() for h in found] == [[1, 1]]
    assert found[0].score == 0
    empty = decoding.ctc_beam_search(np.zeros((0, 2, 3)))
    assert [(h[0].labels.size, h[0].score) for h in empty] == [(0, 0), (0, 0)]


class Never(decoding.LanguageModel):
    """A language model in which some labels have no probability."""

    def __init__(self, labels: list[int], *, ends: bool = True) -> None:
        self.labels, self.ends = labels, ends

    def start(self) -> None:
        return None

    def advance(self, state: None, label: int) -> None:
        return None

    def log_probabilities(self, state: None) -> Any:
        p = np.zeros(3)
        p[self.labels] = -np.inf
        return p

    def end(self, state: None) -> float:
        return 0.0 if self.ends else -np.inf


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_hypothesis_where_no_labels_have_a_probability(steps: int) -> None:
    y = np.full((steps, 2, 3), -np.inf)
    y[:, 0, 1] = 0  # only label 1
    y[:, 1, 0] = 0  # only the blank
    found = decoding.ctc_beam_search(y, language_model=Never([1]), count=3)
    assert [[h.labels.tolist() for h in f] for f in found] == [[], [[]]]
    found = decoding.ctc_beam_search(y, language_model=Never([2]), count=3)
    assert [[h.labels.tolist() for h in f] for f in found] == [[[1]], [[]]]
    found = decoding.ctc_beam_search(y, language_model=Never([1]), weight=0.0)
    assert [[h.labels.tolist() for h in f] for f in found] == [[[1]], [[]]]
    assert decoding.ctc_beam_search(y, language_model=Never([], ends=False)) == [[], []]


@pytest.mark.parametrize("classes", [5, 65, 700])
def test_equal_scores_are_kept_by_the_lower_label(classes: int) -> None:
    y = np.zeros((1, 1, classes))  # the empty prefix comes first, then the labels in their order
    for width in (1, 2, 4, classes // 2, classes - 1, classes):
        found = decoding.ctc_beam_search(y, width=width, count=width)[0]
        assert [h.labels.tolist() for h in found] == [[], *([k] for k in range(1, width))]
    y[0, 0, 1::2] = 1  # those of the odd labels are better
    order = [[k] for k in range(1, classes, 2)] + [[]] + [[k] for k in range(2, classes, 2)]
    for width in (1, classes // 2, classes // 2 + 3, classes):
        found = decoding.ctc_beam_search(y, width=width, count=width)[0]
        assert [h.labels.tolist() for h in found] == order[:width]


def test_the_alignment_is_the_best_path_of_the_labels() -> None:
    rng = np.random.default_rng(6)
    for labels in ([1, 1, 2], [2], [], [1, 2, 1]):
        y = rng.normal(size=(6, 3))
        p = np.log(softmax(y))
        paths = [q for q in itertools.product(range(3), repeat=6) if collapsed(q) == tuple(labels)]
        best = max(paths, key=lambda q: p[np.arange(6), list(q)].sum())
        want, t = [], 0
        for k, group in itertools.groupby(best):
            n = len(list(group))
            want += [[t, t + n]] if k else []
            t += n
        got = decoding.ctc_align(y[:, None], [np.array(labels, int)])[0]
        assert got.tolist() == want
        assert got.shape == (len(labels), 2)
    with pytest.raises(
        ValueError, match=r"target: expected labels that some path writes in 6 steps.*at b = 0"
    ):
        decoding.ctc_align(y[:, None], np.array([[1] * 6]))
    with pytest.raises(ValueError, match="other than the blank 0, got others at b = 0"):
        decoding.ctc_align(y[:, None], np.array([[1, 0]]))
    with pytest.raises(ValueError, match="labels of 1 sequences, as many as y has, got 2"):
        decoding.ctc_align(y[:, None], np.array([[1], [1]]))


CTC_ERRORS: dict[str, Any] = {
    "NaN": (
        np.full((2, 1, 3), np.nan),
        {},
        ValueError,
        "y: expected numbers, of which some .* finite",
    ),
    "minus infinity alone": (np.full((2, 1, 3), -np.inf), {}, ValueError, "minus infinity alone"),
    "ranks": (np.zeros((2, 3)), {}, ValueError, "y: expected 3 axes, got shape"),
    "whole numbers": (
        np.zeros((2, 1, 3), int),
        {},
        TypeError,
        "y: expected dtype float32 or float64, got int64",
    ),
    "the blank": (
        np.zeros((2, 1, 3)),
        {"blank": 3},
        ValueError,
        "blank: expected a class below V = 3",
    ),
    "lengths": (
        np.zeros((2, 1, 3)),
        {"lengths": [3]},
        ValueError,
        "lengths: expected values from 0 to T = 2",
    ),
    "width": (
        np.zeros((2, 1, 3)),
        {"width": 0},
        ValueError,
        "width: expected a whole number of at least 1",
    ),
    "weight": (
        np.zeros((2, 1, 3)),
        {"weight": -1},
        ValueError,
        "weight: expected a finite number of at least 0",
    ),
    "count": (
        np.zeros((2, 1, 3)),
        {"width": 1, "count": 5},
        ValueError,
        "count: expected at most width = 1, got 5",
    ),
    "bonus": (
        np.zeros((2, 1, 3)),
        {"bonus": np.nan},
        ValueError,
        "bonus: expected a finite number",
    ),
    "classes": (
        np.zeros((2, 1, 4)),
        {"language_model": Table()},
        ValueError,
        r"language_model: expected log-probabilities of V = 4 classes, .* got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("name", CTC_ERRORS)
def test_bad_arguments_of_the_search(name: str) -> None:
    y, options, error, message = CTC_ERRORS[name]
    with pytest.raises(error, match=message):
        decoding.ctc_beam_search(y, **options)


# -- language models -------------------------------------------------------------------------------


def test_an_n_gram_by_hand() -> None:
    model = decoding.NGram(classes=3, order=2)
    model.fit([np.array([1, 1, 2]), np.array([1])])
    # Without a context: 1 three times, 2 once, the end twice: three kinds; uniform is 1/4.
    zero = (np.array([0, 3, 1, 2]) + 3 * 0.25) / 9
    after_1 = (np.array([0, 1, 1, 1]) + 3 * zero) / 6
    start = (np.array([0, 2, 0, 0]) + 1 * zero) / 3
    np.testing.assert_allclose(np.exp(model.log_probabilities(model.start())), start[:3])
    state = model.advance(model.start(), 1)
    np.testing.assert_allclose(np.exp(model.log_probabilities(state)), after_1[:3])
    assert model.end(state) == pytest.approx(np.log(after_1[3]))
    never = model.advance(state, 0)  # a label that was never seen: as without a context
    np.testing.assert_allclose(np.exp(model.log_probabilities(never)), zero[:3])
    bits = -np.log2([start[1], after_1[1], after_1[3]]).mean()
    assert model.bits_per_label([np.array([1, 1])]) == pytest.approx(bits)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_n_grams_are_distributions_and_longer_ones_know_more(order: int) -> None:
    rng = np.random.default_rng(0)
    sequences = [np.cumsum(rng.integers(0, 2, rng.integers(0, 30))) % 6 for _ in range(40)]
    model, shorter = decoding.NGram(6, order), decoding.NGram(6, max(order - 1, 1))
    model.fit(sequences)
    shorter.fit(sequences)
    state = model.start()
    for label in sequences[1][:10]:
        p = np.exp(model.log_probabilities(state))
        assert p.sum() + np.exp(model.end(state)) == pytest.approx(1, rel=1e-12)
        assert (p > 0).all()
        state = model.advance(state, int(label))
        assert len(state) <= order - 1
    assert model.bits_per_label(sequences) <= shorter.bits_per_label(sequences) + 1e-9
    first = np.exp(model.log_probabilities(model.start()))
    model.fit([])
    assert np.isnan(model.bits_per_label([]))
    np.testing.assert_allclose(np.exp(model.log_probabilities(model.start())), np.full(6, 1 / 7))
    model.fit(sequences)
    np.testing.assert_array_equal(np.exp(model.log_probabilities(model.start())), first)


def test_counts_do_not_go_from_one_sequence_to_the_next() -> None:
    apart, joined = decoding.NGram(5, 4), decoding.NGram(5, 4)
    apart.fit([np.array([1, 2]), np.array([3, 4])])
    joined.fit([np.array([1, 2, 3, 4])])
    state = apart.advance(apart.advance(apart.start(), 1), 2)
    assert np.exp(apart.end(state)) > 0.5
    assert np.exp(joined.end(state)) < 0.2
    for bad, error in (
        (np.array([5]), ValueError),
        (np.array([0.5]), TypeError),
        (np.zeros((1, 1), int), TypeError),
    ):
        with pytest.raises(error, match=r"sequences\[0\]: expected"):
            apart.fit([bad])


def test_n_grams_are_those_that_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 3, rng.integers(0, 25)).tolist() for _ in range(30)]
    model = decoding.NGram(3, 4)
    model.fit(np.array(s, int) for s in sequences)

    def p(context: Labels, w: int) -> float:
        lower = p(context[1:], w) if context else 1 / 4
        after: list[int] = []
        for s in sequences:
            symbols = (-1, *s, 3)
            for k in range(len(context), len(symbols)):
                if symbols[k] >= 0 and symbols[k - len(context) : k] == context:
                    after.append(symbols[k])
        kinds = len(set(after))
        return (after.count(w) + kinds * lower) / (len(after) + kinds) if after else lower

    for context in [(-1,), (-1, 0), (-1, 1, 2), (0, 1, 2), (2, 2, 2), (0, 0, 1)]:
        got = np.exp([*model.log_probabilities(context), model.end(context)])
        np.testing.assert_allclose(got, [p(context, w) for w in range(4)], rtol=1e-12)


def test_counts_are_saved_and_loaded(tmp_path: Any) -> None:
    model, other = decoding.NGram(5, 3), decoding.NGram(5, 3)
    texts = [np.array([1, 2, 3]), np.array([1, 4])]
    model.fit(texts)
    ost.safetensors.save(tmp_path / "counts.safetensors", model.state_dict())
    other.load_state_dict(ost.safetensors.load(tmp_path / "counts.safetensors")[0])
    assert other.bits_per_label(texts) == model.bits_per_label(texts)
    good = model.state_dict()
    for bad in (
        {n: a for n, a in good.items() if n != "1.labels"},
        {**good, "1.labels": good["1.labels"] + 9},
        {**good, "1.offsets": good["1.offsets"][::-1]},
        {**good, "2.contexts": good["2.contexts"][:, :1]},
        {**good, "0.counts": good["0.counts"] * 0.5},
    ):
        with pytest.raises(ValueError, match="arrays: expected"):
            other.load_state_dict(bad)
    assert other.bits_per_label(texts) == model.bits_per_label(texts)


def changed(array: Any, at: Any, value: Any) -> Any:
    copy = array.copy()
    copy[at] = value
    return copy


WRONG_COUNTS: dict[str, Any] = {  # after 1 comes 2 or 4, after 2 comes 3, ...
    "contexts of one axis": ("1.contexts", lambda a: a[:, 0]),
    "a number": ("1.contexts", lambda a: a[0, 0]),
    "decreasing offsets of uint64": ("1.offsets", lambda a: changed(a, 1, 6).astype(np.uint64)),
    "large offsets": ("1.offsets", lambda a: changed(a.astype(np.uint64), 1, 2**64 - 1)),
    "large contexts": ("1.contexts", lambda a: a.astype(np.uint64)),  # the start is 2**64 - 1
    "a label twice": ("1.labels", lambda a: changed(a, a == 4, 2)),
    "a context twice": ("1.contexts", lambda a: changed(a, 1, a[2])),
    "a context out of range": ("1.contexts", lambda a: changed(a, 1, 5)),
    "a context below": ("1.contexts", lambda a: changed(a, 1, -2)),
    "a start within": ("2.contexts", lambda a: changed(a, (0, 1), -1)),
    "counts whose sum wraps": ("0.counts", lambda a: np.full_like(a, 2**62)),
    "no count": ("0.counts", lambda a: changed(a, 0, 0)),
    "bool": ("0.labels", lambda a: a.astype(bool)),
    "text": ("0.labels", lambda a: a.astype(str)),
}


@pytest.mark.parametrize("name", WRONG_COUNTS)
def test_counts_that_are_wrong(name: str) -> None:
    model = decoding.NGram(5, 3)
    texts = [np.array([1, 2, 3]), np.array([1, 4])]
    model.fit(texts)
    good, bits = model.state_dict(), model.bits_per_label(texts)
    array, change = WRONG_COUNTS[name]
    with pytest.raises(ValueError, match=f"arrays: expected counts of 5 classes after {array[0]}"):
        model.load_state_dict({**good, array: change(good[array])})
    assert model.bits_per_label(texts) == bits
    model.load_state_dict(  # other whole numbers are as good
        {n: a.astype(np.int16 if n == "1.contexts" else np.int32) for n, a in good.items()}
    )
    model.load_state_dict({**good, "1.offsets": good["1.offsets"].astype(np.uint64)})
    assert model.bits_per_label(texts) == bits


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, "arrays: expected names to arrays, got NoneType"),
        ("", TypeError, "arrays: expected names to arrays, got str"),
        (
            {1: 2, "a": 3},
            ValueError,
            r"arrays: expected those of an NGram of order 1, got \[1, 'a'\]",
        ),
        (
            {f"0.{n}": [[1], [1, 2]] for n in ("contexts", "offsets", "labels", "counts")},
            TypeError,
            r"arrays\['0.contexts'\]: expected an array, got \[\[1\], \[1, 2\]\]",
        ),
    ],
)
def test_what_is_no_count_leaves_an_n_gram_as_it_was(given: Any, error: Any, message: str) -> None:
    model = decoding.NGram(3, 1)
    model.fit([np.array([1, 2])])
    before = model.state_dict()
    with pytest.raises(error, match=message):
        model.load_state_dict(given)
    assert model.state_dict().keys() == before.keys() != set()
    model.load_state_dict({})  # that of a model that has counted nothing
    assert model.state_dict() == {}


def test_bits_of_labels_that_are_none() -> None:
    model = decoding.NGram(5, 3)
    model.fit([np.array([1, 2, 3])])
    for labels in ([-1], [5], [9]):  # 5 would be the end
        with pytest.raises(ValueError, match=r"sequences\[1\]: expected labels from 0 to 4, got"):
            model.bits_per_label([np.array([1]), np.array(labels)])
    bits = model.bits_per_label([np.array([1])])
    bad: Any
    for bad in (np.array([0.5]), np.zeros((1, 1), int), np.array([True]), [[1], [1, 2]]):
        for call in (model.bits_per_label, model.fit):
            with pytest.raises(TypeError, match=r"sequences\[0\]: expected \[n\] whole numbers, g"):
                call([bad])
    for call in (model.bits_per_label, model.fit):
        with pytest.raises(TypeError, match="sequences: expected a list of sequences, got NoneTyp"):
            call(None)  # type: ignore[arg-type]
    assert model.bits_per_label([np.array([1])]) == bits


def language(seed: int = 0, classes: int = 6) -> nn.Sequential:
    layers = (
        nn.Embedding(classes, 4, rng=seed),
        nn.LSTM(4, 8, rng=seed),
        nn.Linear(8, classes, rng=seed),
    )
    model = nn.Sequential(*layers)
    with model.write() as p:
        for name in p:
            p[name][...] *= 4  # so that it is not sure of nothing
    return model


@pytest.mark.parametrize("where", ["label", "end"])
def test_a_language_model_that_is_no_number(where: str) -> None:
    """NaN would drop hypotheses; at the blank it may stand."""

    class Wrong(decoding.LanguageModel):
        def start(self) -> int:
            return 0

        def advance(self, state: int, label: int) -> int:
            return state + 1

        def log_probabilities(self, state: int) -> Any:
            return np.array([np.nan, -1.0, np.nan if state and where == "label" else -1.0])

        def end(self, state: int) -> float:
            return np.nan if state and where == "end" else -1.0

    y = np.zeros((2, 1, 3))
    with pytest.raises(ValueError, match=r"language_model: .*, got NaN after labels \[1\]"):
        decoding.ctc_beam_search(y, language_model=Wrong())
    assert decoding.ctc_beam_search(y, language_model=Wrong(), weight=0.0)[0]
    assert decoding.ctc_beam_search(y[:0], language_model=Wrong())[0]


def test_a_stream_is_a_language_model() -> None:
    model = language()
    lm = decoding.StreamModel(model, start=0, end=5)
    labels = [2, 1, 3]
    y = model(np.array([[0], [2], [1], [3]]))[0][:, 0]
    states = [lm.start()]
    for k in labels:
        states.append(lm.advance(states[-1], k))
    for state, row in zip(states, y):
        np.testing.assert_allclose(
            lm.log_probabilities(state), np.log(softmax(row.astype(np.float64))), atol=1e-6
        )
    assert lm.end(states[-1]) == lm.log_probabilities(states[-1])[5]
    again = lm.advance(states[1], 1)  # a state may be gone on from more than once
    np.testing.assert_array_equal(lm.log_probabilities(again), lm.log_probabilities(states[2]))
    logits = np.random.default_rng(0).normal(size=(7, 1, 6))
    best = decoding.ctc_beam_search(logits, language_model=lm, width=8)[0][0]
    total, state = 0.0, lm.start()
    for k in best.labels:
        total += lm.log_probabilities(state)[k]
        state = lm.advance(state, int(k))
    assert best.score == pytest.approx(best.log_probability + total + lm.end(state))
    with pytest.raises(TypeError, match="model: expected a Layer, got int"):
        decoding.StreamModel(3, start=0)  # type: ignore[arg-type]


def test_a_language_model_mends_what_is_heard() -> None:
    """The logits cannot tell 1 from 2; in the texts 2 follows on 3 alone."""
    texts = [np.array([1, 1, 3, 2, 1, 3, 2])] * 5
    model = decoding.NGram(4, 3)
    model.fit(texts)
    y = np.full((14, 4), -8.0)
    for t, k in enumerate([1, 1, 3, 2, 1, 3, 2]):
        y[2 * t, [1, 2] if k < 3 else [3]] = 0
        y[2 * t + 1, 0] = 0
    y[0, 2] += 0.1  # a little more like the wrong one
    assert decoding.ctc_greedy(y[:, None])[0].tolist()[0] == 2
    best = decoding.ctc_beam_search(y[:, None], language_model=model)[0][0]
    assert best.labels.tolist() == texts[0].tolist()


# -- one label after the other ---------------------------------------------------------------------


def every_text(
    model: Any, start: int, end: int, steps: int, classes: int
) -> dict[Labels, tuple[float, int]]:
    """Return log p of all texts that end within so many steps, and their steps."""
    out = {}
    for n in range(steps):
        for text in itertools.product([k for k in range(classes) if k != end], repeat=n):
            y = model(np.array([[k] for k in (start, *text)]))[0][:, 0].astype(np.float64)
            p = np.log(softmax(y))
            out[text] = float(p[np.arange(n + 1), [*text, end]].sum()), n + 1
    return out


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_search_is_exact(penalty: float) -> None:
    model = language(1, 4)
    for start in (0, 1, 2):
        want = {
            t: p / ((5 + n) / 6) ** penalty
            for t, (p, n) in every_text(model, start, 3, 5, 4).items()
        }
        best = sorted(want.items(), key=lambda item: -item[1])[:4]
        options: Any = {
            "end": 3,
            "width": 400,
            "max_steps": 5,
            "length_penalty": penalty,
            "count": 4,
        }
        found = decoding.beam_search(model, [start], **options)[0]
        assert [tuple(h.labels) for h in found] == [t for t, _ in best]
        np.testing.assert_allclose([h.score for h in found], [s for _, s in best], rtol=1e-6)
        assert all(h.ended for h in found)


def test_models_streams_functions_and_batches_agree() -> None:
    model = language(2)
    first = nn.Sequential(
        nn.Embedding(6, 4, rng=2), nn.LSTM(4, 8, batch_first=True, rng=2), nn.Linear(8, 6, rng=2)
    )
    first.load_state_dict(model.state_dict())

    def step(labels: Any, state: Any) -> Any:
        y, state = model(labels[None], state)
        return y[0], state

    def nested(labels: Any, state: Any) -> Any:  # other containers of states
        y, state = model(labels[None], None if state is None else tuple(state["model"][0]))
        return y[0], {"model": [state], "nothing": None}

    starts = [0, 1, 2, 3]
    texts = decoding.greedy(model, starts, end=5, max_steps=8)
    assert len({tuple(h.labels) for h in texts}) > 1
    beams = decoding.beam_search(model, starts, end=5, max_steps=8, width=3, count=3)
    for other in (step, nested, first, model.stream(batch=12)):
        again = decoding.greedy(other, starts, end=5, max_steps=8)
        assert [h.labels.tolist() for h in again] == [h.labels.tolist() for h in texts]
        found = decoding.beam_search(other, starts, end=5, max_steps=8, width=3, count=3)
        assert [[h.labels.tolist() for h in b] for b in found] == [
            [h.labels.tolist() for h in b] for b in beams
        ]
        np.testing.assert_allclose(
            [h.score for b in found for h in b], [h.score for b in beams for h in b], rtol=1e-5
        )
    for b, start in enumerate(starts):
        alone = decoding.beam_search(model, [start], end=5, max_steps=8, width=3, count=3)[0]
        assert [h.labels.tolist() for h in alone] == [h.labels.tolist() for h in beams[b]]
        one = decoding.beam_search(model, [start], end=5, max_steps=8, width=1)[0][0]
        assert one.labels.tolist() == texts[b].labels.tolist()
        assert one.score == pytest.approx(texts[b].score)
        y = model(np.array([[k] for k in (start, *texts[b].labels)]))[0][:, 0]
        assert texts[b].labels.tolist() == y.argmax(-1)[: len(texts[b].labels)].tolist()
    zero = decoding.sample(model, starts, end=5, max_steps=8, temperature=0, rng=0)
    assert [h.labels.tolist() for h in zero] == [h.labels.tolist() for h in texts]
    assert decoding.greedy(model, [], end=5) == []
    assert decoding.beam_search(model, [], end=5) == []


def test_a_state_of_ones_own() -> None:
    """An encoder's outputs on axis 0, which `select` knows."""
    memory = np.array([[1, 2, 3, 0], [2, 2, 0, 0], [3, 1, 1, 0]])

    def step(labels: Any, state: Any) -> Any:
        rows, at = state
        return 9 * np.eye(4)[rows[:, at]], (rows, at + 1)

    def select(state: Any, rows: Any) -> Any:
        return state[0][rows], state[1]

    options: Any = {"end": 0, "state": (memory, 0), "select": select}
    assert [h.labels.tolist() for h in decoding.greedy(step, [0] * 3, **options)] == [
        [1, 2, 3],
        [2, 2],
        [3, 1, 1],
    ]
    found = decoding.beam_search(step, [0] * 3, width=3, **options)
    assert [h[0].labels.tolist() for h in found] == [[1, 2, 3], [2, 2], [3, 1, 1]]
    with pytest.raises(
        TypeError,
        match=r"state: expected arrays with the sequences on axis 1.*got int; give select=",
    ):
        decoding.greedy(step, [0] * 3, end=0, state=(memory, 0))


def test_texts_without_an_end_are_cut() -> None:
    model = language(3)
    texts = decoding.greedy(model, [0, 1], max_steps=5)
    assert [(len(h.labels), h.ended) for h in texts] == [(5, False), (5, False)]
    found = decoding.beam_search(model, [0], max_steps=5, width=3, count=3)[0]
    assert [(len(h.labels), h.ended) for h in found] == [(5, False)] * 3
    assert sorted((h.score for h in found), reverse=True) == [h.score for h in found]

    def never(labels: Any, state: Any) -> Any:
        y = np.zeros((len(labels), 3))
        y[:, 2] = -np.inf
        return y, state

    cut = decoding.beam_search(never, [0], end=2, max_steps=4, width=2, count=2)[0]
    assert [h.ended for h in cut] == [False, False]


def test_probabilities() -> None:
    p = np.array([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    y = np.log(p).astype(np.float32) + 3
    np.testing.assert_allclose(decoding.probabilities(y), p, rtol=1e-6)
    np.testing.assert_allclose(
        decoding.probabilities(y, temperature=0.5), p**2 / (p**2).sum(-1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(
        decoding.probabilities(y, top_k=2), [[4 / 7, 0, 3 / 7, 0], [0.5, 0.5, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        decoding.probabilities(y[:1], top_p=0.69), [[4 / 7, 0, 3 / 7, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        decoding.probabilities(y[:1], top_p=0.71), [[4 / 9, 0, 3 / 9, 2 / 9]], rtol=1e-6
    )
    np.testing.assert_allclose(decoding.probabilities(y, top_p=1e-9), [[1, 0, 0, 0]] * 2)
    np.testing.assert_allclose(decoding.probabilities(y, top_p=1.0), p, rtol=1e-6)
    np.testing.assert_allclose(decoding.probabilities(y, top_k=99), p, rtol=1e-6)
    both = decoding.probabilities(
        y[:1], top_k=3, top_p=0.75
    )  # of what top_k has left: 4/9, 3/9, 2/9
    np.testing.assert_allclose(both, [[4 / 7, 0, 3 / 7, 0]], rtol=1e-6)
    np.testing.assert_allclose(decoding.probabilities(y, temperature=0), [[1, 0, 0, 0]] * 2)
    np.testing.assert_allclose(decoding.probabilities(y[:1], temperature=1e-300), [[1, 0, 0, 0]])
    np.testing.assert_allclose(decoding.probabilities(np.array([-np.inf, 0.0])), [0, 1])
    for options, message in (
        ({"temperature": -1}, "temperature: expected a finite number of at least 0"),
        ({"top_k": 0}, "top_k: expected a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p: expected a number above 0 and at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            decoding.probabilities(y, **options)
        with pytest.raises(ValueError, match=message):
            decoding.sample(language(), [0], **options)
    with pytest.raises(ValueError, match="logits: expected numbers"):
        decoding.probabilities(np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="logits: expected shape"):
        decoding.probabilities(np.zeros((2, 0)))


def test_what_is_drawn_follows_the_probabilities() -> None:
    p = np.array([0.5, 0.0, 0.3, 0.2])

    def step(labels: Any, state: Any) -> Any:
        with np.errstate(divide="ignore"):
            return np.tile(np.log(p), (len(labels), 1)), state

    texts = decoding.sample(step, [0] * 4000, max_steps=5, rng=0)
    labels = np.concatenate([h.labels for h in texts])
    share = np.bincount(labels, minlength=4) / labels.size
    np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / labels.size))
    assert share[1] == 0
    assert texts[0].log_probability == pytest.approx(np.log(p[texts[0].labels]).sum())
    again = decoding.sample(step, [0] * 4000, max_steps=5, rng=0)
    assert all((a.labels == b.labels).all() for a, b in zip(texts, again))
    few = np.concatenate(
        [h.labels for h in decoding.sample(step, [0] * 500, max_steps=5, top_k=2, rng=1)]
    )
    assert set(few.tolist()) == {0, 2}
    ends = decoding.sample(step, [0] * 2000, end=3, max_steps=50, rng=2)
    lengths = np.array([len(h.labels) for h in ends])
    assert all(h.ended == (len(h.labels) < 50) for h in ends)
    assert lengths.mean() == pytest.approx(4, rel=0.1)  # of a geometric distribution


def test_bad_arguments_of_the_steps() -> None:
    model = language()
    with pytest.raises(TypeError, match="step: expected a model, a stream or a function, got int"):
        decoding.greedy(3, [0])
    with pytest.raises(TypeError, match="step: expected a model with a state"):
        decoding.greedy(nn.Linear(3, 3, rng=0), [0])
    with pytest.raises(
        TypeError,
        match=r"start: expected \[B\] whole numbers, got shape \(\) of int64; use \[start\]",
    ):
        decoding.greedy(model, 0)
    with pytest.raises(TypeError, match=r"start: expected \[B\] whole numbers"):
        decoding.greedy(model, [0.5])
    with pytest.raises(ValueError, match="end: expected a whole number of at least 0"):
        decoding.greedy(model, [0], end=-1)
    with pytest.raises(ValueError, match="max_steps: expected a whole number of at least 1"):
        decoding.greedy(model, [0], max_steps=0)
    with pytest.raises(ValueError, match="count: expected at most width = 2, got 3"):
        decoding.beam_search(model, [0], width=2, count=3)
    with pytest.raises(ValueError, match="length_penalty: expected a finite number of at least 0"):
        decoding.beam_search(model, [0], length_penalty=-1)
    with pytest.raises(
        ValueError,
        match=r"expected a stream of 2 slots or more.*got 1; use model.stream\(batch=2\)",
    ):
        decoding.greedy(model.stream(), [0, 1])
    with pytest.raises(
        ValueError, match=r"step: expected logits of shape \(N, V\) with N = 1, got \(2, 3\)"
    ):
        decoding.greedy(lambda labels, state: (np.zeros((2, 3)), state), [0])
    with pytest.raises(ValueError, match="step: expected numbers"):
        decoding.greedy(lambda labels, state: (np.full((1, 3), np.nan), state), [0])
    for search in (decoding.greedy, decoding.sample, decoding.beam_search):
        with pytest.raises(ValueError, match=r"end: expected a label below V = 6, .* got 6"):
            search(model, [0], end=6)
    with pytest.raises(ValueError, match=r"end: expected a label below V = 6, .* got 6"):
        decoding.StreamModel(model, start=0, end=6).start()
    with pytest.raises(TypeError, match=r"x: expected dtype float32|model: expected"):
        decoding.StreamModel(nn.Linear(2, 1, rng=0), start=0).start()
    with pytest.raises(
        TypeError, match=r"start: expected \[B\] whole numbers, got \[\[0\], \[1, 2\]\]"
    ):
        decoding.greedy(model, [[0], [1, 2]])
    with pytest.raises(TypeError, match=r"select: expected a function of \(state, rows\), got int"):
        decoding.greedy(model, [0], select=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda labels, state: np.zeros((len(labels), 3)), "got ndarray"),
        (lambda labels, state: None, "got NoneType"),
        (lambda labels, state: (np.zeros((len(labels), 3)), state, 0), "got tuple of 3"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_forgets_its_state(step: Any, message: str, count: int) -> None:
    for one in (step, decoding.Ensemble([step])):
        for search in (decoding.greedy, decoding.sample, decoding.beam_search):
            with pytest.raises(TypeError, match=rf"step: expected \(logits, state\), {message}"):
                search(one, [0] * count)


def test_logits_and_scores_that_are_no_numbers() -> None:
    for search in (decoding.greedy, decoding.sample, decoding.beam_search):
        with pytest.raises(TypeError, match="step: expected logits that are real numbers, got dty"):
            search(lambda labels, state: (np.full((1, 3), "a"), state), [0])
    found = decoding.greedy(lambda labels, state: [np.eye(3, dtype=int)[labels], state], [2])
    assert found[0].labels.tolist() == [2] * 100

    class Texts(decoding.LanguageModel):
        def start(self) -> None:
            return None

        def log_probabilities(self, state: None) -> Any:
            return ["a", "b", "c"]

    with pytest.raises(TypeError, match="language_model: expected log-probabilities of V = 3 cla"):
        decoding.ctc_beam_search(np.zeros((2, 1, 3)), language_model=Texts())


def test_penalties_of_length_that_leave_no_score() -> None:
    def step(labels: Any, state: Any) -> Any:
        return np.tile(np.log([0.5, 0.3, 0.2]), (len(labels), 1)), state

    def longest(penalty: float, steps: int) -> int:
        options: Any = {"end": 2, "width": 40, "max_steps": steps}
        return len(decoding.beam_search(step, [0], length_penalty=penalty, **options)[0][0].labels)

    assert longest(0.0, 4) == 0
    assert longest(1000.0, 4) == 3
    assert longest(1e300, 1) == 0  # of one step there is one length
    for penalty in (1e6, 1e300):
        with pytest.raises(
            ValueError, match=r"length_penalty: expected at most 1480 with max_steps = 4, got 1"
        ):
            longest(penalty, 4)


class Pair(NamedTuple):
    """A state with names."""

    h: Any
    c: Any


def test_states_with_names() -> None:
    model = language(2)

    def step(labels: Any, state: Any) -> Any:
        y, states = model(labels[None], None if state is None else (None, tuple(state), None))
        return y[0], Pair(*states[1])

    assert isinstance(decoding._steps.select_rows(Pair(*np.ones((2, 1, 2, 3))), [0]), Pair)
    options: Any = {"end": 5, "max_steps": 8}
    want = decoding.greedy(model, [0, 1, 2, 3], **options)
    assert len({len(h.labels) for h in want}) > 1
    found = decoding.greedy(step, [0, 1, 2, 3], **options)
    assert [h.labels.tolist() for h in found] == [h.labels.tolist() for h in want]
    beams = decoding.beam_search(step, [0, 1], width=3, **options)
    again = decoding.beam_search(model, [0, 1], width=3, **options)
    assert [b[0].labels.tolist() for b in beams] == [b[0].labels.tolist() for b in again]


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_streams_of_convolutions_decode_each_sequence_alone(kernel_size: int) -> None:
    model = nn.Sequential(
        nn.Embedding(6, 4, rng=0),
        nn.Conv1d(4, 4, kernel_size, padding="causal", dilation=2, rng=1),
        nn.GRU(4, 8, rng=2),
        nn.Linear(8, 6, rng=3),
    )
    with model.write() as p:
        for name in p:
            p[name][...] *= 4

    def greedy(starts: list[int], end: int, slots: int) -> list[list[int]]:
        stream = model.stream(batch=slots)
        return [h.labels.tolist() for h in decoding.greedy(stream, starts, end=end, max_steps=9)]

    def whole(start: int, end: int) -> list[int]:
        text = [start]
        for _ in range(9):
            text.append(int(model(np.array(text)[:, None])[0][-1, 0].argmax()))
            if text[-1] == end:
                return text[1:-1]
        return text[1:]

    lengths = set()
    for end in range(6):
        want = [whole(start, end) for start in range(6)]
        lengths |= {len(w) for w in want}
        assert greedy(list(range(6)), end, 6) == want
        assert greedy(list(range(6)), end, 8) == want
        assert [greedy([start], end, 1)[0] for start in range(6)] == want
        beams = decoding.beam_search(model.stream(batch=18), range(6), end=end, width=3)
        for start in range(6):
            stream = model.stream(batch=3)
            alone = decoding.beam_search(stream, [start], end=end, width=3)[0][0]
            assert alone.labels.tolist() == beams[start][0].labels.tolist()
    assert len(lengths) > 2  # sequences end at different steps


# -- several models --------------------------------------------------------------------------------


class Chain(NamedTuple):
    """A first-order model of labels that counts its steps in a state [1,N]."""

    p: Any

    def __call__(self, labels: Any, state: Any) -> tuple[Any, Any]:
        state = np.zeros((1, len(labels))) if state is None else state
        return np.log(self.p[labels]) + 7.0, state + 1  # logits, not yet normed


def chains(count: int) -> list[Chain]:
    p = np.random.default_rng(0).dirichlet(np.ones(4), (count, 4))
    return [Chain(one) for one in p]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0]])
def test_an_ensemble_averages_probabilities(weights: Any) -> None:
    """It writes what one model with the mean of the tables would write."""
    several = chains(3)
    mean = np.average([one.p for one in several], axis=0, weights=weights)
    ensemble = decoding.Ensemble(several, weights=weights)
    logits, state = ensemble(np.array([0, 2, 3]), None)
    np.testing.assert_allclose(np.exp(logits), mean[[0, 2, 3]], atol=1e-15)
    assert len(state) == 3
    assert [s.tolist() for s in ensemble.select(state, np.array([2, 2]))] == [[[1, 1]]] * 3
    options: Any = {"end": 3, "width": 4, "count": 3, "max_steps": 6}
    found = decoding.beam_search(ensemble, [0, 1], **options)
    want = decoding.beam_search(Chain(mean), [0, 1], **options)
    for some, others in zip(found, want):
        assert [h.labels.tolist() for h in some] == [h.labels.tolist() for h in others]
        np.testing.assert_allclose([h.score for h in some], [h.score for h in others], atol=1e-12)
    drawn = decoding.sample(ensemble, [0] * 5, end=3, rng=1)
    assert [h.labels.tolist() for h in drawn] == [
        h.labels.tolist() for h in decoding.sample(Chain(mean), [0] * 5, end=3, rng=1)
    ]


def test_an_ensemble_of_models_streams_and_decoders() -> None:
    layers = (
        [nn.Embedding(5, 4, rng=k), nn.GRU(4, 6, rng=k), nn.Linear(6, 5, rng=k)] for k in (0, 1)
    )
    first, second = (nn.Sequential(*some) for some in layers)
    memory = np.ones((3, 2, 6), np.float32)
    decoder = nn.Decoder(
        nn.Embedding(5, 4, rng=2),
        nn.GRU(4, 6, rng=3),
        nn.Linear(6, 5, rng=4),
        attention=nn.Attention("dot"),
        memory_size=6,
        rng=5,
    )
    steps = [first, second.stream(batch=8), decoder.steps(memory)]
    found = decoding.beam_search(decoding.Ensemble(steps), [0, 1], end=4, max_steps=5)
    for best, start in zip(found, (0, 1)):
        fed = np.array([start, *best[0].labels])[:, None]
        p: Any = np.zeros((len(fed), 5))
        for model in (first, second):
            p = p + softmax(model(fed)[0][:, 0].astype(np.float64)) / 3
        p += softmax(decoder(fed, memory[:, :1])[0][:, 0].astype(np.float64)) / 3
        written = [*best[0].labels, 4] if best[0].ended else list(best[0].labels)
        total = sum(np.log(p[k, label]) for k, label in enumerate(written))
        assert best[0].log_probability == pytest.approx(total, abs=1e-5)


def test_an_ensemble_refuses_what_does_not_fit() -> None:
    one, two, three = chains(3)
    with pytest.raises(TypeError, match="steps: expected a list of models or functions, got Ens"):
        decoding.Ensemble(decoding.Ensemble([one]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: expected at least one, got none"):
        decoding.Ensemble([])
    with pytest.raises(TypeError, match="step: expected a model, a stream or a function, got int"):
        decoding.Ensemble([one, 3])
    with pytest.raises(ValueError, match="weights: expected 2 numbers, one for each step, got 3"):
        decoding.Ensemble([one, two], weights=[1, 2, 3])
    with pytest.raises(ValueError, match="weights: expected a number above 0 among them"):
        decoding.Ensemble([one, two], weights=[0, 0])
    with pytest.raises(ValueError, match="weights: expected a finite number of at least 0, got -1"):
        decoding.Ensemble([one, two], weights=[-1, 2])
    with pytest.raises(ValueError, match="select: expected 2 functions, one for each step, got 1"):
        decoding.Ensemble([one, two], select=[None])
    with pytest.raises(TypeError, match=r"weights: expected a list of numbers, .*step, got float"):
        decoding.Ensemble([one, two], weights=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"select: expected a list of functions, .* got function"):
        decoding.Ensemble([one, two], select=lambda state, rows: state)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"select: expected a function of \(state, rows\), got int"):
        decoding.Ensemble([one], select=[3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"models of the same labels, got \[3, 4\] of"):
        decoding.greedy(decoding.Ensemble([one, lambda x, s: (np.zeros((len(x), 3)), s)]), [0])
    with pytest.raises(TypeError, match="state: expected None or a tuple of 3 states"):
        decoding.greedy(decoding.Ensemble([one, two, three]), [0], state=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="step: expected numbers, of which some"):
        decoding.greedy(
            decoding.Ensemble([one, lambda x, s: (np.full((len(x), 4), np.nan), s)]), [0]
        )


# -- numbers near the bounds of the floats ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_farther_apart_than_any_float(dtype: Any) -> None:
    """What is so far below has probability 0, as a logit of -inf has, and nothing warns of it."""
    most, rng = np.finfo(dtype).max, np.random.default_rng(0)
    high = rng.random((7, 2, 4)) < 0.6
    high[..., 0] |= ~high.any(-1)
    y = np.where(high, most, -most).astype(dtype)
    y[:4, :, 3] = np.where(high[:4, :, 3], most, -most / 3)  # of such ones sums are beyond, too
    plain = np.where(high, 0.0, -np.inf)

    def same(a: Any, b: Any) -> None:
        assert [[h.labels.tolist() for h in one] for one in a] == [
            [h.labels.tolist() for h in one] for one in b
        ]
        for one, other in zip(a, b):
            got, want = ([h.log_probability for h in hs] for hs in (one, other))
            np.testing.assert_allclose(got, want, rtol=1e-12)

    if dtype == np.float64:
        same(decoding.ctc_beam_search(y, width=64), decoding.ctc_beam_search(plain, width=64))
    best = decoding.ctc_beam_search(y, width=64)[0][0]
    target = [best.labels]
    aligned = [decoding.ctc_align(one[:, :1], target)[0].tolist() for one in (y, plain)]
    assert aligned[0] == aligned[1]

    def model(logits: Any) -> Any:
        return lambda labels, t: (logits[t[0], np.arange(len(labels)) % 2], t + 1)

    start, t = np.zeros(2, np.int64), np.zeros((1, 2), np.int64)
    for search in (decoding.greedy, decoding.sample):
        a, b = (search(model(z), start, state=t, max_steps=7) for z in (y, plain))
        if search is decoding.greedy:
            same([a], [b])
    a, b = (decoding.probabilities(z) for z in (y, plain))
    np.testing.assert_array_equal(a, b)
    ensemble = decoding.Ensemble([model(y), model(y)])
    found = decoding.beam_search(ensemble, start, state=(t, t), max_steps=7)
    assert np.isfinite(found[0][0].log_probability)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_numbers_farther_apart_than_any_float(dtype: Any) -> None:
    most = np.finfo(dtype).max
    x = np.array([[most, -most, most], [-most, -most, -most], [0, most, -most / 2]], dtype)
    want = np.array([[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]], dtype)
    np.testing.assert_allclose(nn.softmax(x), want, rtol=1e-6)
    np.testing.assert_allclose(nn.softmax(x, where=np.ones_like(x, bool)), want, rtol=1e-6)
    np.testing.assert_allclose(np.exp(nn.log_softmax(x)), want, rtol=1e-6)
    np.testing.assert_allclose(nn.Softmax(dtype=dtype)(x), want, rtol=1e-6)
