"""Sequences of sequences: `Ragged` of `Ragged`, and Hierarchical, against one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import numeric_gradient, parameter_gradient
from ostinato import nn, reference

F64 = {"dtype": np.float64}
D = 2
WORDS = [3, 1, 0, 2, 4]  # of each sentence
SENTENCES = [2, 0, 3]  # of each document


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def documents(rows: Any = None) -> ost.Ragged:
    rows = drawn(sum(WORDS), D) if rows is None else rows
    return ost.Ragged(ost.Ragged(rows, np.cumsum([0, *WORDS])), np.cumsum([0, *SENTENCES]))


def padded(x: ost.Ragged, first: bool) -> tuple[Any, Any, Any]:
    """Return documents with padding that holds NaN, and the lengths."""
    out = np.full((len(x), 3, 4, D), np.nan)
    inner = np.full((len(x), 3), 2)  # of sentences that are none
    for b, document in enumerate(x):
        for s, words in enumerate(document):
            out[b, s, : len(words)], inner[b, s] = words, len(words)
    if not first:
        out, inner = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (out, inner))
    return out, x.lengths, inner


# -- Ragged of Ragged ------------------------------------------------------------------------------


def test_sequences_of_sequences() -> None:
    x = documents()
    assert repr(x) == "Ragged(3 sequences, Ragged(5 sequences, 10 rows))"
    assert [[len(words) for words in document] for document in x] == [[3, 1], [], [0, 2, 4]]
    assert np.array_equal(x[2][2], x.rows.rows[6:])
    assert np.shares_memory(x[2][2], x.rows.rows)
    taken = x.take([2, 1, 0, 2])
    assert taken.lengths.tolist() == [3, 0, 2, 3]
    assert taken.rows.lengths.tolist() == [0, 2, 4, 3, 1, 0, 2, 4]
    assert np.array_equal(taken[3][1], x[2][1])
    joined = ost.Ragged.join([x[0], x[1], x[2]])
    assert np.array_equal(joined.offsets, x.offsets)
    assert np.array_equal(joined.rows.offsets, x.rows.offsets)
    assert np.array_equal(joined.rows.rows, x.rows.rows)
    shelves = ost.Ragged.join([x, x.take([0])])  # one level more
    assert shelves.lengths.tolist() == [3, 1]
    assert shelves.rows.lengths.tolist() == [2, 0, 3, 2]
    assert shelves.rows.rows.lengths.tolist() == [*WORDS, 3, 1]
    assert np.array_equal(shelves[1][0][0], x[0][0])
    with pytest.raises(TypeError, match=r"x\[1\]: expected an ostinato\.Ragged as others"):
        ost.Ragged.join([x[0], np.zeros((3, D))])
    with pytest.raises(TypeError, match=r"rows: expected a numpy\.ndarray, got Ragged"):
        x.padded()
    with pytest.raises(ValueError, match="offsets: expected numbers from 0 to N = 5"):
        ost.Ragged(x.rows, [0, 4])


def test_several_sequences_by_an_index() -> None:
    x = ost.Ragged(np.arange(10), np.cumsum([0, *WORDS]))
    part = x[1:4]
    assert [s.tolist() for s in part] == [[3], [], [4, 5]]
    assert np.shares_memory(part.rows, x.rows)
    assert [s.tolist() for s in x[3:1]] == []
    assert [s.tolist() for s in x[::-2]] == [[6, 7, 8, 9], [], [0, 1, 2]]
    assert [s.tolist() for s in x[np.array([3, 0])]] == [[4, 5], [0, 1, 2]]
    assert x[-1].tolist() == [6, 7, 8, 9]
    for several in ([3, 0], [True, False, False, True, False]):
        assert [s.tolist() for s in x[several]] == [s.tolist() for s in x[np.array(several)]]
    assert len(x[[]]) == len(x.take(np.zeros(0))) == 0
    assert len(ost.Trees(np.zeros(3), [[-1, 0], [-1]])[[1]]) == 1


NUMBERS: dict[str, tuple[Any, Any, str]] = {
    "too large": ([5], IndexError, "expected the numbers of some of 5 sequences, got 5"),
    "too small": ([0, -6], IndexError, "expected the numbers of some of 5 sequences, got -6"),
    "fractions": ([0.5], TypeError, r"expected the numbers of sequences, got .*\[0\.5\]"),
    "uneven": ([[0], [1, 2]], TypeError, "expected the numbers of sequences, got"),
    "axes": ([[0, 1]], ValueError, r"expected an array of one axis, got shape \(1, 2\)"),
    "flags": ([True], ValueError, r"expected bool of shape \(B,\) = \(5,\), got \(1,\)"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_sequences_that_are_none(case: str) -> None:
    given, error, words = NUMBERS[case]
    x = ost.Ragged(np.arange(10), np.cumsum([0, *WORDS]))
    with pytest.raises(error, match=f"index: {words}"):
        x[given]
    with pytest.raises(error, match=f"sequences: {words}"):
        x.take(given)
    if case != "uneven":
        with pytest.raises(error, match=f"sequences: {words}"):
            x.take(np.array(given))


def test_a_number_of_a_sequence_that_is_none() -> None:
    x = ost.Ragged(np.arange(10), np.cumsum([0, *WORDS]))
    for b in (5, -6):
        message = f"index: expected the number of one of 5 sequences, got {b}"
        with pytest.raises(IndexError, match=message):
            x[b]
    for wrong in (0.5, "a", None):
        with pytest.raises(TypeError, match="index: expected a whole number, got"):
            x[wrong]


@pytest.mark.parametrize(
    "layer", ["GRU", "Pool", "Attention", "Linear", "Embedding", "Conv1d", "Sequential"]
)
def test_layers_that_do_not_take_them(layer: str) -> None:
    made: dict[str, Any] = {
        "GRU": lambda: nn.GRU(D, 3, **F64),
        "Pool": lambda: nn.Pool("max", **F64),
        "Attention": lambda: nn.Attention("dot"),
        "Linear": lambda: nn.Linear(D, 3, **F64),
        "Embedding": lambda: nn.Embedding(5, 3, **F64),
        "Conv1d": lambda: nn.Conv1d(D, 3, 3, **F64),
        "Sequential": lambda: nn.Sequential(nn.Linear(D, 3, **F64), nn.GRU(3, 3, **F64)),
    }
    with pytest.raises(TypeError, match=r"expected .*got .*Ragged"):
        made[layer]()(documents())


# -- Hierarchical ----------------------------------------------------------------------------------


def weights(p: Any, prefix: str) -> reference.Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return reference.Weights(*(np.array(p[f"{prefix}{n}_l0"]) for n in names))


def hierarchical(pools: bool = True, first: bool = False) -> nn.Hierarchical:
    options: Any = {**F64, "batch_first": first}
    inner = nn.Sequential(nn.GRU(D, 3, rng=0, **options), nn.Pool("mean", **options))
    outer = [nn.LSTM(3, 2, rng=1, **options), *([nn.Pool("max", **options)] if pools else [])]
    return nn.Hierarchical(inner, nn.Sequential(*outer))


def expected(model: nn.Hierarchical, x: ost.Ragged, pools: bool) -> Any:
    """Compute one sentence, then one document at a time, with the equations of the papers."""
    p, out = model.parameters(), []
    for document in x:
        vectors = np.zeros((len(document), 3))
        for s, words in enumerate(document):
            if len(words):
                run = reference.forward("gru", words[:, None], weights(p, "inner.0."))
                vectors[s] = run.y[:, 0].mean(0)
        y = np.zeros((0, 2))
        if len(document):
            y = reference.forward("lstm", vectors[:, None], weights(p, "outer.0.")).y[:, 0]
        out.append(y if not pools else y.max(0) if len(y) else np.zeros(2))
    return np.stack(out) if pools else np.concatenate(out)


@pytest.mark.parametrize("pools", [True, False], ids=["one a document", "one a sentence"])
@pytest.mark.parametrize("form", ["ragged", "lists", "time major", "batch first"])
def test_forward_and_gradients(form: str, pools: bool) -> None:
    x, first = documents(), form == "batch first"
    model = hierarchical(pools, first)
    assert model.reduces_time == pools
    given: Any = x
    times: dict[str, Any] = {}
    if form == "lists":
        given = [list(document) for document in x]
    elif form != "ragged":
        given, lengths, inner = padded(x, first)
        times = {"lengths": lengths, "inner_lengths": inner}
    want = expected(model, x, pools)
    dy = drawn(*want.shape, seed=2)

    def value() -> float:
        return float((expected(model, x, pools) * dy).sum())

    y, pullback = model.vjp(given, **times)
    again = model(given, **times)
    step = np.concatenate([np.arange(n) for n in SENTENCES])
    where: Any = (step, x._places()[1]) if not first else (x._places()[1], step)
    d = dy
    if not pools and times:
        d = np.zeros_like(y)
        d[where] = dy
        assert np.array_equal(again, y)
        assert not y[d == 0].any()
        y = y[where]
    elif not pools:
        assert np.array_equal(again.rows, y.rows)
        y, d = y.rows, y.like(dy)
    else:
        assert np.array_equal(again, y)
    np.testing.assert_allclose(y, want, atol=1e-12)
    dx = pullback(d)
    if form == "ragged":
        dx = dx.rows.rows
    elif form == "lists":
        dx = np.concatenate([words for document in dx for words in document])
    else:
        flat = [dx[b, s] if first else dx[s, b] for b, n in enumerate(SENTENCES) for s in range(n)]
        assert not np.isnan(dx).any()
        dx = np.concatenate([words[:n] for words, n in zip(flat, WORDS)])
    np.testing.assert_allclose(dx, numeric_gradient(value, x.rows.rows), atol=1e-7)
    for name in model.parameters():
        np.testing.assert_allclose(
            model.grads[name], parameter_gradient(value, model, name), atol=1e-7, err_msg=name
        )


def test_padding_without_lengths_is_words() -> None:
    model, x = hierarchical(), drawn(3, 2, 4, D)
    whole = ost.Ragged(x.swapaxes(0, 1).reshape(-1, D), np.arange(7) * 4)
    assert np.array_equal(model(x), model(ost.Ragged(whole, [0, 3, 6])))


def test_nothing_to_read() -> None:
    """Documents without sentences are zeros to the layers behind; so are no documents."""
    none = ost.Ragged(np.zeros((0, D)), [0])
    for pools in (True, False):
        model = hierarchical(pools)
        y, pullback = model.vjp(ost.Ragged(none, [0, 0, 0]))
        rows = y if pools else y.rows
        assert rows.shape == ((2 if pools else 0), 2)
        assert not rows.any()
        assert len(pullback(y).rows.rows) == 0
    assert hierarchical()(ost.Ragged(none, [0])).shape == (0, 2)
    assert hierarchical()(np.zeros((2, 3, 0, D))).shape == (3, 2)  # sentences without words
    assert hierarchical()(np.zeros((0, 3, 4, D))).shape == (3, 2)


def words_of(seed: int, count: int) -> tuple[ost.Ragged, Any]:
    """Return documents whose class is whether a sentence of them has the word 1 before the 2."""
    r = np.random.default_rng(seed)
    sentences, counts, labels = [], [], []
    for _ in range(count):
        n = int(r.integers(1, 4))
        own = [r.integers(3, 9, int(r.integers(2, 6))) for _ in range(n)]
        label = int(r.integers(2))
        for k, words in enumerate(own):
            at = np.sort(r.choice(len(words), 2, replace=False))
            words[at] = (1, 2) if label and k == 0 else (2, 1)
        order = r.permutation(n)
        sentences += [own[k] for k in order]
        counts.append(n)
        labels.append(label)
    made = ost.Ragged(ost.Ragged.join(sentences), np.cumsum([0, *counts]))
    return made, np.array(labels)


def test_training(tmp_path: Any) -> None:
    """What order within sentences decides is learned; predictions, files and resumed runs agree."""
    x, target = words_of(0, 120)
    held = words_of(1, 60)

    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.Hierarchical(
                nn.Sequential(
                    nn.Embedding(9, 8, rng=0), nn.GRU(8, 12, rng=1), nn.Pool("attention", 12, rng=2)
                ),
                nn.Concat(nn.Pool("mean"), nn.Pool("max")),
            ),
            nn.Dropout(0.1, rng=3),
            nn.Linear(24, 2, rng=4),
        )

    def trainer() -> ost.Trainer:
        loss, optimizer = ost.losses.CrossEntropy(), ost.optim.Adam(1e-2)
        return ost.Trainer(make(), loss, optimizer, metrics=["accuracy"])

    whole, cut = trainer(), trainer()
    whole.fit((x, target), epochs=16, batch_size=16, progress=False)
    assert whole.evaluate(held)["accuracy"] > 0.95
    y = whole.predict(held[0])
    assert y.shape == (60, 2)
    np.testing.assert_allclose(y, whole.model(held[0])[0], atol=1e-6)
    lists = [list(document) for document in held[0]]
    np.testing.assert_allclose(whole.model(lists)[0], y, atol=1e-6)
    run = {"batch_size": 16, "progress": False, "checkpoint": tmp_path / "c"}
    cut.fit((x, target), steps=21, **run)
    cut = trainer()
    cut.fit((x, target), epochs=16, resume=True, **run)
    assert np.array_equal(cut.model.flat, whole.model.flat)
    whole.model.save(tmp_path / "m")
    assert np.array_equal(ost.load(tmp_path / "m")(held[0])[0], whole.model(held[0])[0])


def test_one_target_a_sentence() -> None:
    """Without a pool outside, targets are those of sentences, flat or cut as the documents."""
    x = documents(drawn(10, D).astype(np.float32))
    model = nn.Sequential(
        nn.Hierarchical(nn.Sequential(nn.GRU(D, 4, rng=0), nn.Pool("last")), nn.GRU(4, 4, rng=1)),
        nn.Linear(4, 3, rng=2),
    )
    trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(1e-2))
    target = np.array([0, 1, 2, 1, 0])
    before = trainer.evaluate((x, x.like(target)))["loss"]
    trainer.fit((x, target), epochs=60, progress=False)
    assert trainer.evaluate((x, target))["loss"] < before / 2
    with pytest.raises(ValueError, match="target: expected 5 rows, as many as x has"):
        trainer.evaluate((x, target[:3]))
    bad = documents(np.where(np.arange(10)[:, None] == 4, np.inf, x.rows.rows))
    with pytest.raises(ValueError, match="x: expected finite numbers, got inf"):
        trainer.evaluate((bad, target))


def test_pools_side_by_side() -> None:
    """Concat joins what is one a sequence, with and without padding, and refuses a mixture."""
    x = drawn(7, 3, D)
    both = nn.Concat(nn.Pool("mean", **F64), nn.Pool("max", **F64))
    y = both(x, lengths=[7, 2, 4])
    assert np.array_equal(y, np.concatenate([p(x, lengths=[7, 2, 4]) for p in both.layers], axis=1))
    rows = [x[:n, b].copy() for b, n in enumerate([7, 2, 4])]
    sequences = ost.Ragged.join(rows)
    y2, pullback = both.vjp(sequences)
    np.testing.assert_allclose(y2, y, atol=1e-14)
    np.testing.assert_allclose(both(rows), y, atol=1e-14)
    d = drawn(3, 2 * D, seed=4)
    np.testing.assert_allclose(
        pullback(d).rows,
        numeric_gradient(lambda: float((both(sequences) * d).sum()), sequences.rows),
        atol=1e-8,
    )
    with pytest.raises(ValueError, match="layers: expected outputs of every step, or one a seq"):
        nn.Concat(nn.Pool("mean"), nn.GRU(D, 3))


def test_pools_within_steps() -> None:
    """A pool of what is in a step leaves one output, and a target, for each step."""
    letters = nn.TimeDistributed(nn.Pool("max", batch_first=True, **F64))
    assert not letters.reduces_time
    x = drawn(5, 3, 4, D)  # 5 steps of 4 letters
    assert np.array_equal(letters(x), x.max(2))
    model = nn.Sequential(letters, nn.Linear(D, 2, rng=0, **F64))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam())
    data = [(x, np.zeros((5, 3, 2)))]  # a target for each step
    assert trainer.evaluate(data)["loss"] == pytest.approx((model(x)[0] ** 2).mean())


def test_what_is_wrong_is_told() -> None:
    gru, pool = nn.GRU(D, 3, **F64), nn.Pool("max", **F64)
    with pytest.raises(ValueError, match="inner: expected one output a sequence, got one a step"):
        nn.Hierarchical(gru, pool)
    with pytest.raises(TypeError, match="outer: expected a layer, got str"):
        nn.Hierarchical(pool, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers: expected one batch_first for all, got both"):
        nn.Hierarchical(nn.Pool("max", batch_first=True), nn.Pool("max"))
    model, x = hierarchical(), documents()
    with pytest.raises(TypeError, match="x: expected sequences of sequences, got a Ragged of rows"):
        model(x.rows)
    with pytest.raises(ValueError, match="x: expected at least one document, got none"):
        model([])
    with pytest.raises(ValueError, match="x: expected at least one sentence, got none"):
        model([[], []])
    with pytest.raises(TypeError, match=r"x\[1\]: expected the sentences of a document"):
        model([[np.zeros((2, D))], np.zeros((3, D))])
    with pytest.raises(TypeError, match=r"x\[0\]\[1\]: expected an array of words, got list"):
        model([[np.zeros((2, D)), [1, 2]]])
    with pytest.raises(ValueError, match="lengths: expected None with ragged sequences"):
        model(x, lengths=[1, 0, 2])
    with pytest.raises(ValueError, match="inner_lengths: expected None with ragged sequences"):
        model([list(d) for d in x], inner_lengths=[1])
    a, lengths, inner = padded(x, False)
    with pytest.raises(ValueError, match=r"x: expected shape \(S, B, W, ...\), got \(3, 3\)"):
        model(a[..., 0, 0])
    with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\) = \(3,\)"):
        model(a, lengths[:2], inner_lengths=inner)
    with pytest.raises(ValueError, match=r"inner_lengths: expected shape \(3, 3\), got \(2, 3\)"):
        model(a, lengths, inner_lengths=inner[:2])
    with pytest.raises(ValueError, match="inner_lengths: expected values from 0 to 4, got 6"):
        model(a, lengths, inner_lengths=inner + 3)
    with pytest.raises(TypeError, match="inner_lengths: expected an integer dtype, got float64"):
        model(a, lengths, inner_lengths=inner * 1.0)
