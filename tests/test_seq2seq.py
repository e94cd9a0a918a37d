"""Decoders: lengths, scheduled sampling, weights of attention, and what `decoding` writes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close, parameter_gradient
from ostinato import nn
from ostinato.decoding import beam_search, greedy, sample

T, S, B = 4, 5, 3
LENGTHS = [3, 5, 4]
FEEDS = ("none", "output", "context")
SOURCE = np.random.default_rng(0).integers(0, 9, (S, B))
TARGET = np.random.default_rng(1).integers(0, 5, (T, B))


class Translator(nn.Model):
    """An encoder of 2 x 3 units, and a decoder of 6 that writes one of five labels."""

    def __init__(
        self, feed: str, cell: Any = nn.LSTM, batch_first: bool = False, dtype: Any = np.float64
    ) -> None:
        more: Any = {"dtype": dtype, "batch_first": batch_first}
        self.encoder = nn.Encoder(
            nn.Embedding(9, 4, dtype=dtype, rng=0), cell(4, 3, bidirectional=True, rng=1, **more)
        )
        self.decoder = nn.Decoder(
            nn.Embedding(5, 4, dtype=dtype, rng=2),
            cell(4 + (0 if feed == "none" else 6), 6, rng=3, **more),
            nn.Linear(6, 5, dtype=dtype, rng=4),
            attention=nn.Attention("general", 6, rng=5, **more),
            memory_size=6,
            feed=feed,
            rng=6,
        )

    def __call__(self, source: Any, target: Any, lengths: Any = None, ends: Any = None) -> Any:
        memory, state = self.encoder(source, lengths)
        return self.decoder(target, memory, state, lengths=ends, memory_lengths=lengths)[0]


def run(model: Translator, source: Any = SOURCE, lengths: Any = LENGTHS) -> Any:
    memory, state = model.encoder(source, lengths)
    return model.decoder.steps(memory, state, memory_lengths=lengths)


def log_p(model: Translator, labels: tuple[int, ...], b: int) -> float:
    """The log-probability of labels for sequence b, by teacher forcing without its neighbours."""
    given = np.array([0, *labels[:-1]])[:, None]
    n = LENGTHS[b]
    y = model(SOURCE[:n, b : b + 1], given)[:, 0]
    y = y - np.log(np.exp(y).sum(-1, keepdims=True))
    return float(sum(y[t, k] for t, k in enumerate(labels)))


# -- decoding drives a decoder ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_a_wide_beam_finds_the_most_probable(feed: str, batch_first: bool) -> None:
    """Compared with all sequences of at most three labels; 1 ends them."""
    model = Translator(feed, batch_first=batch_first)
    major = Translator(feed)
    major.load_state_dict(model.state_dict())
    steps = run(model, SOURCE.T if batch_first else SOURCE)
    for penalty in (0.0, 1.5):
        found = beam_search(
            steps, [0] * B, end=1, width=60, max_steps=3, length_penalty=penalty, count=3
        )
        for b in range(B):
            every = [
                (*body, 1) for n in range(3) for body in itertools.product((0, 2, 3, 4), repeat=n)
            ]
            scores = {
                labels: log_p(major, labels, b) / ((5 + len(labels)) / 6) ** penalty
                for labels in every
            }
            best = sorted(scores, key=lambda labels: -scores[labels])[:3]
            assert [(*h.labels.tolist(), 1) for h in found[b]] == best
            for h, labels in zip(found[b], best):
                assert math.isclose(h.score, scores[labels], abs_tol=1e-9)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_generate_is_what_decoding_writes(feed: str, cell: Any) -> None:
    model = Translator(feed, cell)
    memory, state = model.encoder(SOURCE, LENGTHS)
    given: Any = {"start": 0, "steps": 6, "end": 1, "memory_lengths": LENGTHS}
    ids, lengths = model.decoder.generate(memory, state, **given)
    written = greedy(run(model), [0] * B, end=1, max_steps=6)
    assert [ids[:n, b].tolist() for b, n in enumerate(lengths)] == [
        h.labels.tolist() for h in written
    ]
    assert (ids[lengths.max() :] == 1).all()
    ids, lengths = model.decoder.generate(memory, state, width=3, length_penalty=1.0, **given)
    best = beam_search(run(model), [0] * B, end=1, max_steps=6, width=3, length_penalty=1.0)
    assert [ids[:n, b].tolist() for b, n in enumerate(lengths)] == [
        h[0].labels.tolist() for h in best
    ]
    cold = sample(run(model), [0] * B, end=1, max_steps=6, temperature=0)
    assert [h.labels.tolist() for h in cold] == [h.labels.tolist() for h in written]


def test_samples_of_a_decoder_have_its_probabilities() -> None:
    model = Translator("output")
    memory, state = model.encoder(SOURCE[:3, :1])
    many = np.repeat(memory, 4000, axis=1), tuple(np.repeat(s, 4000, axis=1) for s in state)
    drawn = sample(model.decoder.steps(*many), [0] * 4000, max_steps=1, rng=0)
    shares = np.bincount([int(h.labels[0]) for h in drawn], minlength=5) / 4000
    expected = [math.exp(log_p(model, (k,), 0)) for k in range(5)]
    np.testing.assert_allclose(shares, expected, atol=0.04)


def test_steps_are_told_what_is_wrong() -> None:
    model = Translator("none")
    with pytest.raises(ValueError, match=r"start: expected 3 labels, .* got 2"):
        greedy(run(model), [0, 0])
    with pytest.raises(ValueError, match="memory: expected the outputs of an encoder, got None"):
        model.decoder.steps()
    with pytest.raises(ValueError, match="end: expected a label below V = 5"):
        greedy(run(model), [0] * B, end=5)
    with pytest.raises(ValueError, match="width: expected"):
        model.decoder.generate(*model.encoder(SOURCE), start=0, steps=2, width=0)
    recurrent = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4, 4))
    with pytest.raises(ValueError, match="embed: expected layers without a state, got a recurrent"):
        nn.Encoder(recurrent, nn.GRU(4, 4))
    with pytest.raises(ValueError, match="head: expected layers without a state, got a recurrent"):
        nn.Decoder(nn.Embedding(5, 4), nn.GRU(4, 6), nn.GRU(6, 4))


def test_parts_may_be_sequentials() -> None:
    """With dropout in them, which inference does not see."""
    embed = nn.Embedding(5, 4, rng=0)
    plain = nn.Decoder(embed, nn.GRU(4, 6, rng=1), nn.Linear(6, 5, rng=2), rng=3)
    parts = nn.Sequential(nn.Embedding(5, 4, rng=0), nn.Dropout(0.3, rng=0))
    head = nn.Sequential(nn.Dropout(0.3, rng=0), nn.Linear(6, 5, rng=2))
    decoder = nn.Decoder(parts, nn.GRU(4, 6, rng=1), head, rng=3)
    assert np.array_equal(decoder(TARGET)[0], plain(TARGET)[0])
    y, pullback = ost.vjp(lambda: decoder(TARGET)[0].sum())
    pullback()
    assert float(y) != float(plain(TARGET)[0].sum())
    encoder = nn.Encoder(nn.Sequential(nn.Embedding(9, 4), nn.Dropout(0.5)), nn.GRU(4, 6))
    assert encoder(SOURCE, LENGTHS)[0].shape == (S, B, 6)


# -- lengths, weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_lengths_of_the_inputs(feed: str, batch_first: bool) -> None:
    """Outputs are 0 past the end, and a state is that of the last step that counts."""
    model = Translator(feed, batch_first=batch_first)
    turn: Any = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    memory, state = model.encoder(turn(SOURCE), LENGTHS)
    ends = [2, 4, 1]
    given: Any = {"memory_lengths": LENGTHS}
    y, after = model.decoder(turn(TARGET), memory, state, lengths=ends, **given)
    whole, _ = model.decoder(turn(TARGET), memory, state, **given)
    for b, n in enumerate(ends):
        np.testing.assert_array_equal(turn(y)[:n, b], turn(whole)[:n, b])
        assert not turn(y)[n:, b].any()
        _, alone = model.decoder(
            turn(TARGET)[:n] if not batch_first else TARGET.T[:, :n], memory, state, **given
        )
        inner, other = (after, alone) if feed == "none" else (after[0], alone[0])
        for one, two in zip(inner, other):
            np.testing.assert_allclose(one[:, b], two[:, b], atol=1e-14)
        if feed == "output":  # a context is computed anew
            np.testing.assert_allclose(after[1][b], alone[1][b], atol=1e-14)
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 4, got 5"):
        model.decoder(turn(TARGET), memory, state, lengths=[5, 1, 1])


@pytest.mark.parametrize("feed", FEEDS)
def test_a_state_stays_as_it_is_past_the_end(feed: str) -> None:
    sizes = {"none": 4, "output": 9, "context": 10}
    decoder = nn.Decoder(
        nn.Embedding(7, 4, rng=0),
        nn.GRU(sizes[feed], 5, rng=1),
        nn.Linear(5, 7, rng=2),
        attention=nn.Attention("additive", 5, 6, 3, rng=3),
        memory_size=6,
        feed=feed,
        rng=4,
    )
    r = np.random.default_rng(0)
    memory = r.standard_normal((3, 2, 6)).astype(np.float32)
    x = r.integers(0, 7, (4, 2))
    _, padded = decoder(x, memory, lengths=[4, 2])
    _, alone = decoder(x[:2, 1:], memory[:, 1:])
    if feed == "none":
        assert_close(padded[:, 1:], alone)
    else:
        assert_close(padded[0][:, 1:], alone[0])
        assert_close(padded[1][1:], alone[1])


@pytest.mark.parametrize("feed", FEEDS)
def test_gradients_with_lengths_on_both_sides(feed: str) -> None:
    model, ends = Translator(feed), [2, 4, 0]
    y, pullback = model.vjp(SOURCE, TARGET, lengths=LENGTHS, ends=ends)
    d = np.random.default_rng(2).standard_normal(y.shape)
    pullback(d)

    def value() -> float:
        return float((model(SOURCE, TARGET, LENGTHS, ends) * d).sum())

    for name in ("encoder.rnn.bias_hh_l0_reverse", "decoder.embed.weight", "decoder.combine.bias"):
        np.testing.assert_allclose(
            model.grads[name], parameter_gradient(value, model, name), atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_weights_are_those_of_the_call(feed: str, batch_first: bool) -> None:
    """A memory of unit vectors, whose means are the weights themselves."""
    model = Translator(feed, batch_first=batch_first)
    turn: Any = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    memory, state = model.encoder(turn(SOURCE), LENGTHS)
    given: Any = {"memory_lengths": LENGTHS}
    weights = model.decoder.weights(turn(TARGET), memory, state, **given)
    assert weights.shape == (B, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    for b, n in enumerate(LENGTHS):
        assert not weights[b, :, n:].any()
    if feed != "none":
        steps = []
        for t in range(T):
            one = turn(TARGET[t : t + 1])
            steps.append(model.decoder.weights(one, memory, state, **given))
            _, state = model.decoder(one, memory, state, **given)
        np.testing.assert_allclose(np.concatenate(steps, 1), weights, atol=1e-12)
    plain = nn.Decoder(nn.Embedding(5, 4), nn.GRU(4, 6), nn.Linear(6, 5))
    with pytest.raises(ValueError, match="weights: expected a decoder with attention"):
        plain.weights(TARGET, memory)


# -- scheduled sampling ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_scheduled_sampling(feed: str, batch_first: bool) -> None:
    """What was drawn is found again: gradients are those of the call with these inputs."""
    model = Translator(feed, batch_first=batch_first)
    source, target = (SOURCE.T, TARGET.T) if batch_first else (SOURCE, TARGET)
    forced, _ = model.vjp(source, target, lengths=LENGTHS, rng=3)
    model.decoder.teacher_forcing = 0.5
    seen: list[Any] = []
    embed = type(model.decoder.embed)
    assert np.array_equal(model(source, target, LENGTHS), forced)  # inference does not draw
    plain = embed.vjp

    def watched(self: Any, x: Any, **options: Any) -> Any:
        if self is model.decoder.embed:
            seen.append(np.array(x))
        return plain(self, x, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "vjp", watched)
        y, pullback = model.vjp(source, target, lengths=LENGTHS, rng=3)
    used = np.concatenate(seen, axis=1 if batch_first else 0)
    assert used.shape == target.shape
    changed = (used != target).T if batch_first else used != target
    assert changed.any()
    assert not changed[0].any()
    again, _back = model.vjp(source, target, lengths=LENGTHS, rng=3)
    assert np.array_equal(again, y)
    model.decoder.teacher_forcing = 1.0
    np.testing.assert_allclose(model(source, used, LENGTHS), y, atol=1e-12)
    d = np.random.default_rng(2).standard_normal(y.shape)
    model.zero_grad()
    pullback(d)
    drawn = {n: g.copy() for n, g in model.grads.items()}
    model.zero_grad()
    model.vjp(source, used, lengths=LENGTHS)[1](d)
    for name, grad in model.grads.items():
        np.testing.assert_allclose(drawn[name], grad, atol=1e-10, err_msg=name)


def test_draws_follow_the_model() -> None:
    """Without teacher forcing the second input has the distribution of the first output."""
    layers = nn.Embedding(5, 4, rng=0), nn.GRU(4, 6, rng=1), nn.Linear(6, 5, rng=2)
    decoder = nn.Decoder(*layers, rng=3)
    decoder.teacher_forcing = 0.0
    x = np.zeros((2, 6000), np.int64)
    y, _ = ost.vjp(lambda: decoder(x)[0])
    answers = np.stack([decoder(np.array([[0], [k]]))[0][1, 0] for k in range(5)])
    drawn = np.abs(y[1][:, None] - answers).sum(-1).argmin(-1)
    p = np.exp(y[0, 0]) / np.exp(y[0, 0]).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 6000, p, atol=0.03)


def test_sampling_takes_labels_alone() -> None:
    decoder = nn.Decoder(nn.Linear(3, 4), nn.GRU(4, 6), nn.Linear(6, 5))
    decoder.teacher_forcing = 0.5
    with pytest.raises(
        TypeError, match=r"x: expected labels \[T,B\] of an integer dtype with teac"
    ):
        ost.vjp(lambda: decoder(np.zeros((4, 2, 3), np.float32))[0])
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="teacher_forcing: expected"):
            decoder.teacher_forcing = wrong


def test_schedules_of_sampling() -> None:
    decoder = nn.Decoder(nn.Embedding(5, 4), nn.GRU(4, 6), nn.Linear(6, 5))

    def made(kind: str, **options: Any) -> Any:
        return ost.train.ScheduledSampling(decoder, kind, **options)

    linear = made("linear", k=10, final=0.2)
    np.testing.assert_allclose([linear.probability(i) for i in (0, 5, 10, 20)], [1, 0.6, 0.2, 0.2])
    falling = made("exponential", k=0.5, final=0.1)
    np.testing.assert_allclose([falling.probability(i) for i in (0, 1, 3, 9)], [1, 0.5, 0.125, 0.1])
    sigmoid = made("inverse_sigmoid", k=10)
    np.testing.assert_allclose(
        [sigmoid.probability(i) for i in (0, 10, 10**9)],
        [10 / 11, 10 / (10 + math.e), 0],
        atol=1e-12,
    )
    for kind, k in (("linear", 0), ("exponential", 1.0), ("inverse_sigmoid", 0.5)):
        with pytest.raises(ValueError, match=f"k: expected a number .* for '{kind}'"):
            made(kind, k=k)
    with pytest.raises(ValueError, match=r"final: expected a number in \[0, 1\], got 2"):
        made("linear", k=3, final=2)
    with pytest.raises(ValueError, match="kind: expected one of 'linear'"):
        made("cosine", k=3)
    with pytest.raises(TypeError, match=r"decoder: expected an nn\.Decoder, got Linear"):
        ost.train.ScheduledSampling(nn.Linear(2, 2), "linear", k=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_no_steps_are_no_error(feed: str, batch_first: bool) -> None:
    """A part without steps leaves the state as it is, so that any cuts in time add up."""
    model = Translator(feed, batch_first=batch_first)
    decoder = model.decoder
    source, target = (a.T if batch_first else a for a in (SOURCE, TARGET))
    memory, state = model.encoder(source, LENGTHS)
    none = target[:, :0] if batch_first else target[:0]
    y, after = decoder(none, memory, state, memory_lengths=LENGTHS, lengths=[0] * B)
    assert y.shape == ((B, 0, 5) if batch_first else (0, B, 5))
    weights = decoder.weights(none, memory, state, memory_lengths=LENGTHS)
    assert weights.shape == (B, 0, S)
    whole = decoder(target, memory, state, memory_lengths=LENGTHS)[0]
    np.testing.assert_array_equal(decoder(target, memory, after, memory_lengths=LENGTHS)[0], whole)
    one = target[:, :1] if batch_first else target[:1]
    rest = target[:, 1:] if batch_first else target[1:]
    between = decoder(one, memory, None, memory_lengths=LENGTHS)[1]
    same = decoder(none, memory, between, memory_lengths=LENGTHS)[1]
    np.testing.assert_array_equal(
        decoder(rest, memory, same, memory_lengths=LENGTHS)[0],
        decoder(rest, memory, between, memory_lengths=LENGTHS)[0],
    )


@pytest.mark.parametrize("forcing", [1.0, 0.5])
@pytest.mark.parametrize("feed", FEEDS)
def test_gradients_without_steps(feed: str, forcing: float) -> None:
    """The gradient of the state behind no steps is that of the state before them."""
    model = Translator(feed)
    model.decoder.teacher_forcing = forcing
    memory = np.random.default_rng(2).normal(size=(S, B, 6))
    state = tuple(np.random.default_rng(k).normal(size=(1, B, 6)) for k in (3, 4))

    def run(memory: Any, h: Any, c: Any) -> Any:
        y, after = model.decoder(TARGET[:0], memory, (h, c), memory_lengths=LENGTHS)
        h, c = after if feed == "none" else after[0]
        return y.sum() + (h * state[1]).sum() + (c * state[0]).sum()

    _, pullback = ost.vjp(run, memory, *state)
    dmemory, dh, dc = pullback()
    assert not dmemory.any()
    np.testing.assert_array_equal(dh, state[1])
    np.testing.assert_array_equal(dc, state[0])


def test_the_head_of_a_decoder_is_its_last_layer() -> None:
    decoder = nn.Decoder(
        nn.Embedding(7, 4),
        nn.GRU(4, 5),
        nn.Linear(5, 7),
        attention=nn.Attention("additive", 5, 6, 3),
        memory_size=6,
    )
    layers = [names[0].partition(".")[0] for names in nn.layer_groups(decoder)]
    assert list(dict.fromkeys(layers)) == ["embed", "attention", "rnn", "combine", "head"]
    rates = ost.optim.discriminative(decoder, 2)
    assert rates["head.weight"] == 1
    assert rates["combine.weight"] == 0.5


# -- padding ---------------------------------------------------------------------------------------

EMBEDDED: dict[str, Any] = {
    "Linear": lambda: nn.Linear(3, 4, dtype=np.float64, rng=0),
    "Sequential": lambda: nn.Sequential(
        nn.Linear(3, 4, dtype=np.float64, rng=0), nn.Activation("tanh", dtype=np.float64)
    ),
    "TimeDistributed": lambda: nn.TimeDistributed(nn.Linear(3, 4, dtype=np.float64, rng=0)),
    "Conv1d": lambda: nn.Conv1d(3, 4, 1, dtype=np.float64, rng=0),
    "Embedding": lambda: nn.Embedding(9, 4, dtype=np.float64, rng=0),
}


@pytest.mark.parametrize("embed", EMBEDDED)
@pytest.mark.parametrize("part", ["encoder", *FEEDS[:2]])
def test_padding_of_inputs_may_hold_anything(part: str, embed: str) -> None:
    more: Any = {"dtype": np.float64}
    inner = EMBEDDED[embed]()
    if part == "encoder":
        model: Any = nn.Encoder(inner, nn.GRU(4, 6, rng=1, **more))
    else:
        size = 4 if part == "none" else 10
        rnn, head = nn.GRU(size, 6, rng=1, **more), nn.Linear(6, 2, rng=2, **more)
        model = nn.Decoder(inner, rnn, head, feed=part, rng=3)
    ids = embed == "Embedding"
    x = SOURCE.copy() if ids else np.random.default_rng(3).normal(size=(S, B, 3))
    found = []
    for fill in (0, -1 if ids else np.nan):
        for b, n in enumerate(LENGTHS):
            x[n:, b] = fill
        (y, state), pullback = model.vjp(x, lengths=LENGTHS)
        model.zero_grad()
        state = state[0] if isinstance(state, tuple) else state
        d = np.ones_like(y)
        pullback((d, np.ones_like(state)) if part == "encoder" else d)
        found.append([y, state, model.flat_grads.copy()])
    for a, b in zip(*found):
        assert np.array_equal(a, b)
