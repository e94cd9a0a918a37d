"""Trainers of models with several inputs, and the loaders of such batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests
from ostinato import nn
from ostinato.data import InputsLoader, PairLoader


class Two(nn.Model):
    """Outputs of two inputs of different sizes, of which one counts twice."""

    def __init__(self, batch_first: bool = True) -> None:
        self.rnn = nn.GRU(2, 6, batch_first=batch_first, rng=0)
        self.embed = nn.Embedding(5, 6, rng=1)
        self.head = nn.Linear(6, 1, rng=2)

    def __call__(self, x: Any, ids: Any, scale: float = 1.0) -> Any:
        return self.head(self.rnn(x)[0] * scale + self.embed(ids))


def data(count: int = 24, steps: int = 7) -> tuple[Any, Any, Any]:
    r = np.random.default_rng(0)
    x = r.standard_normal((count, steps, 2)).astype(np.float32)
    ids = r.integers(0, 5, (count, steps))
    return x, ids, (x[..., :1] + ids[..., None]).astype(np.float32)


def fitted(train: Any, **options: Any) -> tuple[Two, ost.train.History]:
    model = Two()
    trainer = ost.Trainer(model, ost.losses.MSE(batch_first=True), ost.optim.Adam(3e-2))
    history = trainer.fit(train, progress=False, epochs=options.pop("epochs", 6), **options)
    return model, history


def test_a_dict_and_a_tuple_train_alike() -> None:
    x, ids, target = data()
    model, history = fitted(({"ids": ids, "x": x}, target), batch_size=6)
    other, same = fitted(((x, ids), target), batch_size=6)
    loader = InputsLoader((x, ids), target, batch_size=6)
    third, last = fitted(loader)
    assert np.array_equal(model.flat, other.flat)
    assert np.array_equal(model.flat, third.flat)
    assert history.column("loss") == same.column("loss") == last.column("loss")
    assert history.rows[-1]["loss"] < history.rows[0]["loss"] / 4
    trainer = ost.Trainer(model, ost.losses.MSE(batch_first=True))
    y = trainer.predict({"x": x, "ids": ids}, batch_size=5)
    np.testing.assert_allclose(y, model(x, ids), atol=1e-6)
    assert np.array_equal(trainer.predict((x, ids), batch_size=5), y)
    expected = float(((y - target) ** 2).mean())
    for form in (({"x": x, "ids": ids}, target), ((x, ids), target)):
        assert abs(trainer.evaluate(form)["loss"] - expected) < 1e-5
        assert abs(trainer.evaluate(*form)["loss"] - expected) < 1e-5


def test_lengths_and_weights_are_those_of_the_outputs() -> None:
    x, ids, target = data()
    lengths = np.random.default_rng(1).integers(0, 8, len(x))
    trainer = ost.Trainer(Two(), ost.losses.MSE(batch_first=True), metrics=["mae"])
    row = trainer.evaluate(({"x": x, "ids": ids}, target, lengths), batch_size=5)
    on = np.arange(7) < lengths[:, None]
    error = (trainer.model(x, ids) - target)[..., 0]  # type: ignore[call-arg]
    np.testing.assert_allclose(row["loss"], (error[on] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(row["mae"], np.abs(error[on]).mean(), rtol=1e-5)
    weights = np.random.default_rng(2).uniform(0, 1, len(x))
    row = trainer.evaluate(({"x": x, "ids": ids}, target, {"weights": weights}), batch_size=5)
    wanted = np.average((error**2).mean(1), weights=weights)
    np.testing.assert_allclose(row["loss"], wanted, rtol=1e-5)
    garbage = target.copy()
    garbage[~on] = np.nan
    assert trainer.evaluate(((x, ids), garbage, lengths))["loss"] == pytest.approx(
        trainer.evaluate(((x, ids), target, lengths))["loss"]
    )


class Cut(nn.Model):
    """A text and its parts of speech, cut alike, to one number a sequence."""

    def __init__(self) -> None:
        self.rnn, self.pool = nn.GRU(2, 6, rng=0), nn.Pool("mean")
        self.words, self.head = nn.Embedding(5, 6, rng=1), nn.Linear(12, 1, rng=2)

    def __call__(self, x: Any, ids: Any) -> Any:
        words = self.pool(self.words(ids.padded()), lengths=ids.lengths)
        return self.head(np.concatenate([self.pool(self.rnn(x)[0]), words], -1))


def test_ragged_inputs() -> None:
    r = np.random.default_rng(0)
    sizes = r.integers(1, 8, (2, 40))
    x = [r.standard_normal((n, 2)).astype(np.float32) for n in sizes[0]]
    ids = [r.integers(0, 5, n) for n in sizes[1]]
    target = np.array([[a.mean() + b.mean()] for a, b in zip(x, ids)], np.float32)
    trainer = ost.Trainer(Cut(), ost.losses.MSE(), ost.optim.Adam(3e-2))
    history = trainer.fit((({"x": x, "ids": ids}), target), epochs=10, progress=False)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"] / 4
    y = trainer.predict((x, ids), batch_size=7)
    assert y.shape == (40, 1)
    for k in (0, 17, 39):
        np.testing.assert_allclose(
            trainer.predict((x[k : k + 1], ids[k : k + 1]))[0], y[k], atol=1e-6
        )


class Same(nn.Model):
    """Whether two rows of numbers are of one kind: a target a sequence."""

    def __init__(self) -> None:
        self.rnn, self.pool = (
            nn.GRU(2, 6, batch_first=True, rng=0),
            nn.Pool("mean", batch_first=True),
        )
        self.head = nn.Linear(6, 2, rng=1)

    def __call__(self, one: Any, two: Any) -> Any:
        a, b = (self.pool(self.rnn(x)[0]) for x in (one, two))
        return self.head(abs(a - b))


def test_a_target_a_sequence() -> None:
    r = np.random.default_rng(0)
    kinds = r.integers(0, 2, (2, 60))
    one, two = (
        (r.standard_normal((60, 5, 2)) / 4 + 2 * k[:, None, None]).astype(np.float32) for k in kinds
    )
    target = (kinds[0] == kinds[1]).astype(np.int64)
    loss = ost.losses.CrossEntropy()
    trainer = ost.Trainer(Same(), loss, ost.optim.Adam(3e-2), metrics=["accuracy"])
    trainer.fit(((one, two), target), epochs=15, progress=False)
    assert trainer.evaluate({"one": one, "two": two}, target)["accuracy"] > 0.95


class Copy(nn.Model):
    """A translator, for pairs of equal sequences."""

    def __init__(self) -> None:
        self.encoder = nn.Encoder(nn.Embedding(9, 8, rng=0), nn.GRU(8, 8, rng=1))
        self.decoder = nn.Decoder(
            nn.Embedding(9, 8, rng=2), nn.GRU(8, 8, rng=3), nn.Linear(8, 9, rng=4),
            attention=nn.Attention("dot"), memory_size=8, rng=5,
        )  # fmt: skip

    def __call__(self, source: Any, inputs: Any, lengths: Any) -> Any:
        memory, state = self.encoder(source, lengths)
        return self.decoder(inputs, memory, state, memory_lengths=lengths)[0]


def equal_pairs(**options: Any) -> PairLoader:
    r = np.random.default_rng(0)
    source = [r.integers(2, 9, n) for n in r.integers(1, 9, 40)]
    return PairLoader(source, source, start=0, end=1, batch_size=8, buckets=2, rng=3, **options)


def test_pairs_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    native_for_tests()
    fake_cupy.stand_in(monkeypatch)
    losses = []
    for device in ("cpu", "cuda"):
        model = Copy().to(device)
        sampling = ost.train.ScheduledSampling(model.decoder, "linear", k=4, final=0.5)
        trainer = ost.Trainer(model, ost.losses.CrossEntropy(), callbacks=[sampling])
        history = trainer.fit(
            equal_pairs(), validation=equal_pairs(shuffle=False), epochs=2, progress=False
        )
        losses.append([*history.column("loss"), *history.column("valid_loss")])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-3)


def test_a_run_of_pairs_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(steps: int, resume: bool, path: Path) -> Copy:
        model = Copy()
        sampling = ost.train.ScheduledSampling(model.decoder, "linear", k=20, final=0.5)
        trainer = ost.Trainer(
            model, ost.losses.CrossEntropy(), ost.optim.Adam(1e-2), callbacks=[sampling]
        )
        trainer.fit(
            equal_pairs(), epochs=9, steps=steps, checkpoint=path, resume=resume, progress=False
        )
        assert model.decoder.teacher_forcing == 1.0
        return model

    whole = run(12, False, tmp_path / "whole")
    run(7, False, tmp_path / "parts")
    assert np.array_equal(run(12, True, tmp_path / "parts").flat, whole.flat)


@pytest.mark.parametrize("time_major", [False, True])
def test_pairs(time_major: bool) -> None:
    r = np.random.default_rng(0)
    sizes = r.integers(1, 30, (2, 100))
    source, target = ([r.integers(2, 9, n) for n in row] for row in sizes)
    loader = PairLoader(
        source, target, start=0, end=1, batch_size=8, buckets=4, time_major=time_major, rng=1
    )
    seen, padded, real = [], 0, 0
    for x, answer, ends in loader.batches(0):
        arrays = (x["source"], x["inputs"], answer)
        a, given, wanted = arrays if time_major else (v.T for v in arrays)
        assert (a.shape[0], wanted.shape[0]) == (x["lengths"].max(), ends.max())
        padded, real = padded + wanted.size, real + ends.sum()
        for b in range(a.shape[1]):
            one, n = a[: x["lengths"][b], b], ends[b]
            assert wanted[n - 1, b] == 1
            assert given[0, b] == 0
            assert np.array_equal(given[1:n, b], wanted[: n - 1, b])
            seen.append((one.tolist(), wanted[: n - 1, b].tolist()))
    pairs = [(a.tolist(), b.tolist()) for a, b in zip(source, target)]
    assert sorted(seen) == sorted(pairs)
    assert padded < 1.5 * real  # without buckets it is about twice
    assert [len(e) for *_, e in loader.batches(0, 5)] == [len(e) for *_, e in loader.batches(0)][5:]
    first, other = ([e.tolist() for *_, e in loader.batches(k)] for k in (0, 1))
    assert first != other
    assert len(first) == len(loader)


class Carried(nn.Model):
    """Outputs of two inputs, with the state that the next steps start from."""

    stateful = True

    def __init__(self, batch_first: bool = True) -> None:
        self.rnn = nn.GRU(2, 6, batch_first=batch_first, rng=0)
        self.embed = nn.Embedding(5, 6, rng=1)
        self.head = nn.Linear(6, 1, rng=2)

    def __call__(self, x: Any, ids: Any, state: Any = None) -> Any:
        y, state = self.rnn(x, state)
        return self.head(y + self.embed(ids)), state


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (2, 4), (4, 7), (9, 9)])
def test_several_inputs_in_strides(k1: int, k2: int, batch_first: bool) -> None:
    """Against windows by hand: the last k1 losses through the last k2 steps, the state carried."""
    x, ids, target = (a if batch_first else a.swapaxes(0, 1).copy() for a in data())
    axis = 1 if batch_first else 0

    def cut(a: Any, start: int, end: int) -> Any:
        return a[:, start:end] if batch_first else a[start:end]

    hand, optimizer, loss = Carried(batch_first), ost.optim.SGD(0.05), ost.losses.MSE()
    for _ in range(2):
        states: Any = {0: None}
        for done in range(0, 7, k1):
            end = min(done + k1, 7)
            start = max(0, end - k2) if done else 0
            if start not in states:
                begin = max(t for t in states if t < start)
                states[start] = hand(cut(x, begin, start), cut(ids, begin, start), states[begin])[1]
            parts = cut(x, start, end), cut(ids, start, end)
            (y, states[end]), pullback = hand.vjp(*parts, state=states[start])
            dy = np.zeros_like(y)
            cut(dy, done - start, end - start)[...] = loss(
                cut(y, done - start, end - start), cut(target, done, end)
            )[1]
            hand.zero_grad()
            pullback(dy)
            optimizer.step(hand)
    for given in ((x, ids), {"ids": ids, "x": x}):
        model = Carried(batch_first)
        trainer = ost.Trainer(model, loss, ost.optim.SGD(0.05), tbptt=(k1, k2))
        history = trainer.fit([(given, target)], epochs=2, progress=False)
        np.testing.assert_allclose(model.flat, hand.flat, rtol=1e-5, atol=1e-6)
        assert history.rows[-1]["step"] == 2 * -(-x.shape[axis] // k1)


def test_a_state_beside_several_inputs_is_carried() -> None:
    """Of whole arrays it begins anew in every batch; a loader may carry it from batch to batch."""
    x, ids, target = data()
    model = Carried()
    trainer = ost.Trainer(model, ost.losses.MSE())
    np.testing.assert_array_equal(trainer.predict((x, ids), batch_size=24), model(x, ids)[0])

    class Parts(list[Any]):
        carries_state = True

    halves = Parts(((x[:, a:b], ids[:, a:b]), target[:, a:b]) for a, b in ((0, 4), (4, 7)))
    whole = trainer.evaluate([((x, ids), target)])["loss"]
    assert trainer.evaluate(halves)["loss"] == pytest.approx(whole, rel=1e-6)
    assert trainer.evaluate(list(halves))["loss"] != pytest.approx(whole, rel=1e-6)
    trainer.fit(((x, ids), target), epochs=1, batch_size=6, progress=False)


def test_lengths_beside_several_inputs_in_strides() -> None:
    """Steps past the end have no loss, and a stride that is past all ends is none."""
    x, ids, target = data()
    lengths = np.full(24, 4)
    lengths[::2] = 2
    seen = []
    for end in (7, 4):
        model = Carried()
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.SGD(0.05), tbptt=(2, 4))
        batch = (x[:, :end], ids[:, :end]), target[:, :end], lengths
        trainer.fit([batch], epochs=2, progress=False)
        seen.append(model.flat.copy())
        assert trainer.at_step == 4
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6, atol=1e-7)


def test_a_run_of_several_inputs_in_strides_resumes_bit_for_bit(tmp_path: Path) -> None:
    x, ids, target = data()
    options: Any = {"progress": False, "batch_size": 8, "epochs": 2}
    models = [Carried() for _ in range(3)]
    whole, part, resumed = (ost.Trainer(m, ost.losses.MSE(), tbptt=(2, 4)) for m in models)
    whole.fit(((x, ids), target), **options)
    options["checkpoint"] = tmp_path / "run"
    part.fit(((x, ids), target), steps=6, **options)  # in the middle of a batch
    resumed.fit(((x, ids), target), resume=True, **options)
    assert np.array_equal(models[0].flat, models[2].flat)
    assert not np.array_equal(models[0].flat, models[1].flat)


def test_inputs_that_cannot_be_cut_in_time() -> None:
    x, ids, target = data()
    trainer = ost.Trainer(Carried(), ost.losses.MSE(), tbptt=(2, 4))
    fit = lambda given, target: trainer.fit([(given, target)], epochs=1, progress=False)
    wanted = r"tbptt: expected inputs of T = 7 steps, as the target has, got"
    with pytest.raises(ValueError, match=wanted + r" x\[1\] of shape \(24,\); repeat it"):
        fit((x, ids[:, 0]), target)
    with pytest.raises(ValueError, match=wanted + r" x\['ids'\] of shape \(24, 5\)"):
        fit({"x": x, "ids": ids[:, :5]}, target)
    with pytest.raises(ValueError, match=wanted + r" ragged sequences as x\[1\]; pad them"):
        fit((x, ost.Ragged.join(list(ids))), target)
    with pytest.raises(ValueError, match="tbptt: expected a target of every step, got one a seq"):
        fit((x, ids), target[:, 0, 0])

    class Deaf(Carried):
        def __call__(self, x: Any, ids: Any) -> Any:  # type: ignore[override]
            return super().__call__(x, ids)

    with pytest.raises(TypeError, match="for a Deaf, which has a state and whose __call__ takes"):
        ost.Trainer(Deaf(), ost.losses.MSE()).fit(((x, ids), target), epochs=1, progress=False)


def test_what_is_wrong_with_several_inputs() -> None:
    x, ids, target = data()
    trainer = ost.Trainer(Two(), ost.losses.MSE(batch_first=True))
    fit = lambda *a, **o: trainer.fit(*a, epochs=1, progress=False, **o)
    with pytest.raises(ValueError, match=r"x\['ids'\]: expected 24 samples as x\['x'\] has, got 5"):
        fit(({"x": x, "ids": ids[:5]}, target))
    with pytest.raises(ValueError, match="target: expected 24 samples as x has, got 7"):
        fit(((x, ids), target[:7]))
    with pytest.raises(TypeError, match=r"x: expected names of the arguments of the model, got 3"):
        fit(({3: x}, target))
    with pytest.raises(ValueError, match="x: expected at least one input, got none"):
        fit(({}, target))
    with pytest.raises(ValueError, match="resets: expected it among the inputs of the model"):
        fit(((x, ids), target, {"resets": ids > 3}))
    with pytest.raises(ValueError, match="lengths: expected it among the inputs of the model"):
        trainer.predict((x, ids), lengths=[3] * 24)
    with pytest.raises(TypeError, match=r"x\[0\]: expected numbers, got dtype <U1"):
        fit(((np.full(24, "a"), ids), target))
    with pytest.warns(UserWarning, match=r"x\[0\]: converted once from float64 to float32"):
        fit(((x.astype(np.float64), ids), target))
    bad = x.copy()
    bad[3, 2, 1] = np.inf
    with pytest.raises(ValueError, match=r"x: expected finite numbers, got inf at \[3, 2, 1\] of"):
        trainer.predict((bad, ids))
    chain = nn.Sequential(nn.GRU(2, 3, batch_first=True))
    with pytest.raises(TypeError, match="x: expected one input for a Sequential, got a dict"):
        ost.Trainer(chain, ost.losses.MSE()).fit(({"x": x}, target))
    major = ost.Trainer(Two(batch_first=False), ost.losses.MSE())
    with pytest.raises(ValueError, match="train: expected recurrent layers with batch_first=True"):
        major.fit(((x, ids), target))


def test_what_is_wrong_with_pairs() -> None:
    one = [np.array([2, 3])]
    given: Any = {"start": 0, "end": 1}
    with pytest.raises(ValueError, match="target: expected 1 sequences as source has, got 2"):
        PairLoader(one, one * 2, **given)
    with pytest.raises(TypeError, match=r"source: expected a Ragged or a list of \[n\] whole"):
        PairLoader([np.array([0.5])], one, **given)
    with pytest.raises(ValueError, match="buckets: expected"):
        PairLoader(one, one, buckets=0, **given)
    with pytest.raises(ValueError, match="source: expected at least one sequence, got none"):
        PairLoader([], [], **given)


class Nested(nn.Model):
    """One output for a document and a tree."""

    def __init__(self) -> None:
        sentence = nn.Sequential(nn.GRU(3, 4, rng=0), nn.Pool("mean"))
        self.documents = nn.Hierarchical(
            sentence, nn.Sequential(nn.GRU(4, 5, rng=1), nn.Pool("max"))
        )
        self.trees = nn.TreeLSTM(3, 5, rng=2)
        self.head = nn.Linear(10, 1, rng=3)

    def __call__(self, documents: Any, trees: Any) -> Any:
        return self.head(np.concatenate([self.documents(documents), self.trees(trees)], -1))


def nested() -> dict[str, Any]:
    rows = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    sentences = ost.Ragged(rows[:9], [0, 3, 4, 9])
    return {
        "documents": ost.Ragged(sentences, [0, 2, 3]),
        "trees": ost.Trees(rows[9:], [[-1, 0, 0, 1], [2, 2, -1]]),
    }


def test_a_run_of_documents_and_trees_resumes_bit_for_bit(tmp_path: Path) -> None:
    train = nested(), np.ones((2, 1), np.float32)
    options: Any = {"progress": False, "batch_size": 1, "epochs": 4}
    whole, part, resumed = Nested(), Nested(), Nested()
    ost.Trainer(whole, ost.losses.MSE()).fit(train, **options)
    options["checkpoint"] = tmp_path / "run"
    ost.Trainer(part, ost.losses.MSE()).fit(train, steps=3, **options)
    ost.Trainer(resumed, ost.losses.MSE()).fit(train, resume=True, **options)
    assert np.array_equal(resumed.flat, whole.flat)


@pytest.mark.parametrize("where", ["documents", "trees"])
def test_nan_in_documents_and_trees_is_refused(where: str) -> None:
    x = nested()
    bad = x[where].rows if where == "trees" else x[where].rows.rows
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match=rf"got nan at \[1, 2\] of x\['{where}'\] of the batch"):
        ost.Trainer(Nested(), ost.losses.MSE()).predict(x)


def test_sequences_cut_elsewhere_are_other_data() -> None:
    x = nested()
    target = np.zeros((2, 1), np.float32)
    first = InputsLoader(x, target).fingerprint()["content"]
    assert InputsLoader(nested(), target).fingerprint()["content"] == first
    trees, documents = x["trees"], x["documents"]
    sentences = documents.rows
    others = [
        {**x, "trees": ost.Trees(trees.rows, [[-1, 0, 1, 2], [2, 2, -1]])},
        {**x, "documents": ost.Ragged(sentences, [0, 1, 3])},
        {**x, "documents": ost.Ragged(ost.Ragged(sentences.rows, [0, 2, 4, 9]), [0, 2, 3])},
    ]
    for other in others:
        assert InputsLoader(other, target).fingerprint()["content"] != first
    a, b = ([np.zeros(n, np.int64) for n in sizes] for sizes in ((1, 3), (3, 1)))
    pairs = [PairLoader(s, b, start=0, end=1).fingerprint()["content"] for s in (a, b)]
    assert pairs[0] != pairs[1]
    rows = np.zeros((4, 2), np.float32)
    ragged = [
        ost.data.RaggedLoader(ost.Ragged(rows, [0, k, 4]), rows).fingerprint()["content"]
        for k in (1, 3)
    ]
    assert ragged[0] != ragged[1]
