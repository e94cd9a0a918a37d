"""Attention, encoders and decoders, against NumPy, finite differences and PyTorch."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests, numeric_gradient, parameter_gradient
from ostinato import nn

KINDS = ("dot", "scaled", "general", "additive")
T, S, B, D = 3, 5, 2, 4
LENGTHS = [3, 5]


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def made(kind: str, *, key: int = D, **options: Any) -> nn.Attention:
    sizes: tuple[Any, ...] = (
        () if kind in ("dot", "scaled") else (D, key, *((3,) if kind == "additive" else ()))
    )
    return nn.Attention(kind, *sizes, dtype=np.float64, rng=0, **options)


def reference(attention: nn.Attention, q: Any, k: Any, v: Any, on: Any) -> tuple[Any, Any]:
    """One query and one key at a time, from the papers; arrays are time-major, on is [T,B,S]."""
    p = {n: np.asarray(a) for n, a in attention.parameters().items()}
    return ost.reference.attention(attention.kind, q, k, v, weights=p, on=on)


def everywhere(lengths: Any = None, mask: Any = None, causal: bool = False, steps: int = T) -> Any:
    on = np.ones((steps, B, S if not causal else steps), bool)
    if lengths is not None:
        on &= np.arange(on.shape[2]) < np.asarray(lengths)[:, None]
    if mask is not None:
        on &= mask.T[None] if mask.ndim == 2 else mask.swapaxes(0, 1)
    if causal:
        on &= np.tri(steps, dtype=bool)[:, None]
    return on


MASK = np.random.default_rng(5).random((S, B)) < 0.6
WHOLE = np.random.default_rng(6).random((B, T, S)) < 0.6
WHOLE[0, 1] = False  # a query that nothing is left for
GIVEN: dict[str, dict[str, Any]] = {
    "all": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "both": {"lengths": LENGTHS, "mask": MASK},
    "a mask a query": {"lengths": LENGTHS, "mask": WHOLE},
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradient(kind: str, batch_first: bool, given: str) -> None:
    attention, times = made(kind, batch_first=batch_first), GIVEN[given]
    q, k, v = drawn(T, B, D), drawn(S, B, D, seed=1), drawn(S, B, 6, seed=2)
    on = everywhere(**times)

    def laid(a: Any) -> Any:
        return np.ascontiguousarray(a.swapaxes(0, 1)) if batch_first else a

    mask = times.get("mask")
    times = {**times, "mask": laid(mask) if mask is not None and mask.ndim == 2 else mask}
    y, pullback = attention.vjp(laid(q), laid(k), laid(v), **times)
    want, weights = reference(attention, q, k, v, on)
    np.testing.assert_allclose(laid(y), want, atol=1e-12)
    np.testing.assert_allclose(attention.weights(laid(q), laid(k), **times), weights, atol=1e-12)
    assert np.array_equal(attention(laid(q), laid(k), laid(v), **times), y)
    d = drawn(*y.shape, seed=3)

    def value() -> float:
        return float((reference(attention, q, k, v, on)[0] * laid(d)).sum())

    for a, found in zip((q, k, v), pullback(d)):
        np.testing.assert_allclose(laid(found), numeric_gradient(value, a), atol=1e-8)
    for name in attention.parameters():
        np.testing.assert_allclose(
            attention.grads[name], parameter_gradient(value, attention, name), atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_may_hold_anything(kind: str) -> None:
    attention = made(kind)
    q, k, v = drawn(T, B, D), drawn(S, B, D, seed=1), drawn(S, B, 6, seed=2)
    results = []
    for filler in (0.0, np.nan, np.inf):
        k[3:, 0], v[3:, 0] = filler, filler
        attention.zero_grad()
        y, pullback = attention.vjp(q, k, v, lengths=LENGTHS)
        results.append([y, *pullback(np.ones_like(y)), attention.flat_grads.copy()])
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0]))
    x = drawn(S, B, D)
    x[3:, 0] = np.nan
    y, pullback = attention.vjp(x, lengths=LENGTHS)
    dx = pullback(np.ones_like(y))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert not dx[3:, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mask_of_each_query_leaves_out_may_hold_anything(kind: str) -> None:
    attention, mask = made(kind), WHOLE.copy()
    mask[1, :, 2] = False  # a key that no query reads
    mask[0, 2, 1:] = True
    q, k, v = drawn(T, B, D), drawn(S, B, D, seed=1), drawn(S, B, 6, seed=2)
    results = []
    for filler in (0.0, np.nan, np.inf):
        k[2, 1], v[2, 1] = filler, filler
        q[1, 0] = filler  # a query that nothing is left for
        attention.zero_grad()
        y, pullback = attention.vjp(q, k, v, mask=mask)
        dq, dk, dv = pullback(np.ones_like(y))
        results.append([y, dq, dk, dv, attention.flat_grads.copy()])
        memory = attention.memory(k, v, mask=mask)
        assert np.array_equal(attention(q, memory), y)
    for result in results:
        assert all(np.isfinite(a).all() for a in result)
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0]))
    assert not results[0][2][2, 1].any()
    assert not results[0][3][2, 1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_self_attention(kind: str) -> None:
    attention, x = made(kind, causal=True), drawn(S, B, D)
    on = everywhere(LENGTHS, causal=True, steps=S)
    want, _ = reference(attention, x, x, x, on)
    y, pullback = attention.vjp(x, lengths=LENGTHS)
    d = drawn(*y.shape, seed=3) * (np.arange(S)[:, None] < np.asarray(LENGTHS))[..., None]
    np.testing.assert_allclose((y * (d != 0)), (want * (d != 0)), atol=1e-12)
    dx = pullback(d)
    want_dx = numeric_gradient(lambda: float((reference(attention, x, x, x, on)[0] * d).sum()), x)
    np.testing.assert_allclose(dx, want_dx, atol=1e-8)
    # In a Sequential, and on sequences without padding.
    row = nn.Sequential(nn.LayerNorm(D, dtype=np.float64), copy.deepcopy(attention))
    (z, _), back = row.vjp(x, lengths=LENGTHS)
    lists = [x[:n, b] for b, n in enumerate(LENGTHS)]
    (z2, _), back2 = row.vjp(lists)
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(z2[b], z[:n, b], atol=1e-12)
    dx, dx2 = back(d)[0], back2([d[:n, b] for b, n in enumerate(LENGTHS)])[0]
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(dx2[b], dx[:n, b], atol=1e-12)


def test_one_query_and_a_memory() -> None:
    for kind in KINDS:
        attention = made(kind)
        q, k = drawn(T, B, D), drawn(S, B, D, seed=1)
        memory = attention.memory(k, lengths=LENGTHS)
        whole = attention(q, k, lengths=LENGTHS)
        for t in range(T):
            np.testing.assert_allclose(attention(q[t], memory), whole[t], atol=1e-13)
        assert attention.weights(q[0], memory).shape == (B, 1, S)
        with pytest.raises(ValueError, match="lengths: expected None beside a memory"):
            attention(q, memory, lengths=LENGTHS)


def test_scaled_attention_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = drawn(T, B, D), drawn(S, B, D, seed=1), drawn(S, B, 6, seed=2)
    tensors = [torch.tensor(a.swapaxes(0, 1), requires_grad=True) for a in (q, k, v)]
    mask = torch.tensor(np.arange(S) < np.asarray(LENGTHS)[:, None])[:, None]
    want = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    y, pullback = made("scaled").vjp(q, k, v, lengths=LENGTHS)
    np.testing.assert_allclose(y.swapaxes(0, 1), want.detach().numpy(), atol=1e-12)
    want.sum().backward()
    for a, t in zip(pullback(np.ones_like(y)), tensors):
        np.testing.assert_allclose(a.swapaxes(0, 1), t.grad.numpy(), atol=1e-12)


def test_attention_is_told_what_is_wrong() -> None:
    q, k = drawn(T, B, D), drawn(S, B, D)
    attention = made("dot")
    with pytest.raises(
        ValueError,
        match="kind: expected one of 'dot', 'scaled', 'general', 'additive', got 'cosine'",
    ):
        nn.Attention("cosine")
    with pytest.raises(ValueError, match="query_size: expected None for 'dot', got 3"):
        nn.Attention("dot", 3)
    for kind in ("general", "additive"):
        with pytest.raises(
            ValueError, match=f"query_size: expected a number for '{kind}', got None"
        ):
            nn.Attention(kind)
    with pytest.raises(ValueError, match="query: expected a last axis of 4 as the keys, got 3"):
        attention(q[..., :3], k)
    with pytest.raises(ValueError, match="query: expected a batch of 2 as the keys, got 1"):
        attention(q[:, :1], k)
    with pytest.raises(
        TypeError,
        match=r"keys: expected dtype float64, got float32; use keys\.astype\(np\.float64\)",
    ):
        attention(q, k.astype(np.float32))
    with pytest.raises(ValueError, match=r"values: expected \(2, 5\) as the keys, got \(2, 4\)"):
        attention(q, k, k[:4])
    with pytest.raises(
        ValueError, match=r"mask: expected shape \(B, T, S\) = \(2, T, 5\), got \(2, 3, 4\)"
    ):
        attention(q, k, mask=WHOLE[..., :4])
    for query, steps in ((q, 3), (q[0], 1)):
        with pytest.raises(
            ValueError,
            match=rf"mask: expected shape \(B, T, S\) = \(2, {steps}, 5\), got \(2, 2, 5\)",
        ):
            attention(query, k, mask=WHOLE[:, :2])
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 5, got 6"):
        attention(q, k, lengths=[6, 1])


def wrong_calls() -> dict[str, Any]:
    q, k = drawn(T, B, D), drawn(S, B, D)
    ragged, attention = ost.Ragged(drawn(7, D), [0, 3, 7]), made("dot")
    flat, lists = ost.Ragged(drawn(7), [0, 3, 7]), [drawn(2, D)]
    none = "expected None with ragged sequences, got"
    no_array = "expected a numpy.ndarray, got"
    general, additive = (made(kind, key=5) for kind in ("general", "additive"))
    return {
        "ragged keys": (ValueError, f"keys: {none}", lambda: attention(ragged, k)),
        "ragged values": (ValueError, f"values: {none}", lambda: attention(ragged, values=ragged)),
        "ragged lengths": (ValueError, f"lengths: {none}", lambda: attention(ragged, lengths=[1])),
        "ragged mask": (ValueError, f"mask: {none}", lambda: attention(ragged, mask=MASK)),
        "list and values": (ValueError, f"values: {none}", lambda: attention(lists, values=lists)),
        "flat rows": (
            ValueError,
            "query: expected rows of shape (N, Q), got (7,)",
            lambda: attention(flat),
        ),
        "weights of a Ragged": (
            TypeError,
            f"query: {no_array} Ragged",
            lambda: attention.weights(ragged),
        ),
        "weights of a list": (
            TypeError,
            f"query: {no_array} list",
            lambda: attention.weights(lists),
        ),
        "nested lists": (
            TypeError,
            f"query: {no_array} list",
            lambda: attention(q.tolist(), lengths=LENGTHS),
        ),
        "lists as keys": (
            TypeError,
            f"keys: {no_array} list",
            lambda: attention(q, k.tolist(), lengths=LENGTHS),
        ),
        "lists as values": (
            TypeError,
            f"values: {no_array} list",
            lambda: attention(q, k, k.tolist(), lengths=LENGTHS),
        ),
        "dtype of x": (
            TypeError,
            "query: expected dtype float64, got float32",
            lambda: attention(q.astype(np.float32)),
        ),
        "values and lengths": (
            ValueError,
            "values: expected (2, 5) as the keys, got (2, 4)",
            lambda: attention(q, k, k[:4], lengths=LENGTHS),
        ),
        "width of keys": (
            ValueError,
            "keys: expected a last axis of 5, got 4",
            lambda: general(q, k),
        ),
        "width of a query": (
            ValueError,
            "query: expected a last axis of 4, got 3",
            lambda: additive(q[..., :3], drawn(S, B, 5)),
        ),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_what_is_wrong_with_a_call_of_attention(case: str) -> None:
    error, words, call = wrong_calls()[case]
    with pytest.raises(error, match=re.escape(words)):
        call()


# -- encoder and decoder ---------------------------------------------------------------------------

FEEDS = ("none", "output", "context")


def pair(
    feed: str, *, cell: Any = nn.LSTM, batch_first: bool = False, dtype: Any = np.float64
) -> Any:
    """An encoder in both directions of 2 x 3 units, and a decoder of 6."""
    more = {"dtype": dtype, "batch_first": batch_first}
    encoder = nn.Encoder(
        nn.Embedding(9, 4, dtype=dtype, rng=0), cell(4, 3, bidirectional=True, rng=1, **more)
    )
    inputs = {"none": 4, "output": 10, "context": 10}[feed]
    decoder = nn.Decoder(
        nn.Embedding(8, 4, dtype=dtype, rng=2),
        cell(inputs, 6, rng=3, **more),
        nn.Linear(6, 8, dtype=dtype, rng=4),
        attention=nn.Attention("additive", 6, rng=5, **more),
        memory_size=6,
        feed=feed,
        rng=6,
    )
    return encoder, decoder


class Translator(nn.Model):
    def __init__(self, feed: str, **options: Any) -> None:
        self.encoder, self.decoder = pair(feed, **options)

    def __call__(self, source: Any, target: Any, lengths: Any = None) -> Any:
        memory, state = self.encoder(source, lengths=lengths)
        return self.decoder(target, memory, state, memory_lengths=lengths)[0]


SOURCE = np.random.default_rng(0).integers(0, 9, (S, B))
TARGET = np.random.default_rng(1).integers(0, 8, (T, B))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_sequence_to_sequence(cell: Any, feed: str) -> None:
    model = Translator(feed, cell=cell)
    y, pullback = model.vjp(SOURCE, TARGET, lengths=LENGTHS)
    assert np.array_equal(model(SOURCE, TARGET, lengths=LENGTHS), y)
    d = drawn(*y.shape)
    pullback(d)

    def value() -> float:
        return float((model(SOURCE, TARGET, lengths=LENGTHS) * d).sum())

    for name in (
        "encoder.embed.weight",
        "encoder.rnn.weight_hh_l0_reverse",
        "decoder.attention.score",
        "decoder.attention.key.bias",
        "decoder.rnn.bias_ih_l0",
        "decoder.combine.weight",
        "decoder.head.bias",
    ):
        np.testing.assert_allclose(
            model.grads[name], parameter_gradient(value, model, name), atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("feed", FEEDS)
def test_the_decoder_against_its_equations(feed: str) -> None:
    """Step by step, with a GRU that is called for one step at a time and attention by hand."""
    _, decoder = pair(feed, cell=nn.GRU)
    memory, h = drawn(S, B, 6), drawn(1, B, 6, seed=1)
    y, state = decoder(TARGET, memory, h, memory_lengths=LENGTHS)
    p = decoder.parameters()
    fed = np.zeros((B, 6))
    on = everywhere(LENGTHS, steps=1)
    for t in range(T):
        x = p["embed.weight"][TARGET[t]]
        if feed == "context":
            fed = reference(decoder.attention, h, memory, memory, on)[0][0]
        if feed != "none":
            x = np.concatenate([x, fed], -1)
        out, h = decoder.rnn(x[None], h)
        mean = (
            fed
            if feed == "context"
            else reference(decoder.attention, out, memory, memory, on)[0][0]
        )
        result = np.tanh(
            np.concatenate([out[0], mean], -1) @ p["combine.weight"].T + p["combine.bias"]
        )
        np.testing.assert_allclose(y[t], result @ p["head.weight"].T + p["head.bias"], atol=1e-12)
        fed = result if feed == "output" else fed
    np.testing.assert_allclose(state if feed == "none" else state[0], h, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("feed", FEEDS)
def test_step_by_step_is_teacher_forcing(feed: str, batch_first: bool) -> None:
    encoder, decoder = pair(feed, batch_first=batch_first)
    source, target = (a.T.copy() if batch_first else a for a in (SOURCE, TARGET))
    memory, state = encoder(source, lengths=LENGTHS)
    whole, _end = decoder(target, memory, state, memory_lengths=LENGTHS)
    read = decoder.attention.memory(memory, lengths=LENGTHS)
    for t in range(T):
        one = target[:, t : t + 1] if batch_first else target[t : t + 1]
        y, state = decoder(one, read, state)
        np.testing.assert_allclose(
            y[:, 0] if batch_first else y[0], whole[:, t] if batch_first else whole[t], atol=1e-13
        )
    ids, _ = decoder.generate(
        memory, encoder(source, lengths=LENGTHS)[1], start=0, steps=4, memory_lengths=LENGTHS
    )
    ids = ids.T if batch_first else ids
    inputs = np.concatenate([np.zeros((1, B), np.int64), ids[:-1]])
    y, _ = decoder(
        inputs.T if batch_first else inputs,
        memory,
        encoder(source, lengths=LENGTHS)[1],
        memory_lengths=LENGTHS,
    )
    assert np.array_equal(y.argmax(-1).T if batch_first else y.argmax(-1), ids)


def test_sequences_end_where_they_stop() -> None:
    class Counter(nn.Layer):
        """A head that likes the number behind its input best."""

        def __call__(self, x: Any) -> Any:
            return np.eye(8)[np.argmax(x, -1) + 1]

    table = np.zeros((8, 8))
    np.fill_diagonal(table, 1)
    embed = nn.Embedding(8, 8, dtype=np.float64)
    embed.load_state_dict({"weight": table})
    rnn = nn.RNN(8, 8, dtype=np.float64)
    zero = {n: np.zeros_like(v) for n, v in rnn.state_dict().items()}
    rnn.load_state_dict({**zero, "weight_ih_l0": table})
    decoder = nn.Decoder(embed, rnn, Counter(dtype=np.float64))
    ids, lengths = decoder.generate(start=np.array([0, 3, 4]), end=5, steps=9)
    assert ids.T.tolist() == [[1, 2, 3, 4, 5], [4, 5, 5, 5, 5], [5, 5, 5, 5, 5]]
    assert lengths.tolist() == [4, 1, 0]
    ids, lengths = decoder.generate(start=0, steps=3)
    assert ids.tolist() == [[1], [2], [3]]
    assert lengths.tolist() == [3]


def test_a_translator_learns() -> None:
    """To copy its input backwards, each with attention or without."""
    r = np.random.default_rng(0)
    source = r.integers(2, 9, (4, 256))
    answer = np.concatenate([source[::-1] - 1, np.zeros((1, 256), np.int64)])
    given = np.concatenate([np.zeros((1, 256), np.int64), answer[:-1]])
    model = Translator("none", dtype=np.float32)
    loss, optimizer = ost.losses.CrossEntropy(), ost.optim.Adam(3e-2)
    for _ in range(150):
        value, pullback = ost.vjp(lambda: loss(model(source, given), answer)[0])
        model.zero_grad()
        pullback()
        ost.optim.clip_by_norm(model, 1.0)
        optimizer.step(model)
    assert value < 0.3
    memory, state = model.encoder(source)
    ids, lengths = model.decoder.generate(memory, state, start=0, end=0, steps=8)
    right = [ids[: lengths[b], b].tolist() == answer[:-1, b].tolist() for b in range(256)]
    assert np.mean(right) > 0.8


def test_encoders_and_decoders_are_told_what_is_wrong() -> None:
    embed, rnn, head = (
        (lambda: nn.Embedding(8, 4)),
        (lambda: nn.GRU(4, 6)),
        (lambda: nn.Linear(6, 8)),
    )
    with pytest.raises(TypeError, match="rnn: expected a recurrent layer, got Linear"):
        nn.Encoder(None, head())
    with pytest.raises(ValueError, match="rnn: expected one direction"):
        nn.Decoder(embed(), nn.GRU(4, 6, bidirectional=True), head())
    with pytest.raises(ValueError, match="memory_size: expected it with attention"):
        nn.Decoder(embed(), rnn(), head(), attention=nn.Attention())
    with pytest.raises(ValueError, match="feed: expected attention with 'context', got None"):
        nn.Decoder(embed(), rnn(), head(), feed="context")
    with pytest.raises(ValueError, match="attention: expected batch_first as rnn has it"):
        nn.Decoder(embed(), rnn(), head(), attention=nn.Attention(batch_first=True), memory_size=6)
    plain = nn.Decoder(embed(), rnn(), head())
    with pytest.raises(ValueError, match="memory: expected None for a decoder without attention"):
        plain(TARGET, np.ones((S, B, 6), np.float32))
    _, decoder = pair("none")
    with pytest.raises(ValueError, match="memory: expected the outputs of an encoder, got None"):
        decoder(TARGET)
    with pytest.raises(TypeError, match=r"start: expected a whole number or \[B\] of them"):
        plain.generate(start=0.5, steps=2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    native_for_tests()
    return fake_cupy.stand_in(monkeypatch)


@pytest.mark.parametrize("feed", FEEDS)
def test_translators_on_a_device(gpu: Any, feed: str) -> None:
    model = Translator(feed, dtype=np.float32)
    there = copy.deepcopy(model).to("cuda")
    y, pullback = model.vjp(SOURCE, TARGET, lengths=LENGTHS)
    pullback(y)
    y2, pullback = there.vjp(gpu.put(SOURCE), gpu.put(TARGET), lengths=LENGTHS)
    pullback(y2)
    np.testing.assert_allclose(y2.get(), y, atol=2e-5)
    for name, grad in model.grads.items():
        np.testing.assert_allclose(there.grads[name].get(), grad, atol=1e-4, err_msg=name)
    memory, state = there.encoder(gpu.put(SOURCE), lengths=LENGTHS)
    ids, _ = there.decoder.generate(memory, state, start=0, steps=3, memory_lengths=LENGTHS)
    assert isinstance(ids, np.ndarray)


def test_generate_is_told_what_is_wrong() -> None:
    def decoder() -> nn.Decoder:
        layers = nn.Embedding(7, 4, rng=0), nn.GRU(4, 6, rng=1), nn.Linear(6, 7, rng=2)
        return nn.Decoder(*layers, attention=nn.Attention(), memory_size=6, rng=3)

    memory, model = drawn(S, 3, 6).astype(np.float32), decoder()
    state = np.zeros((1, 2, 6), np.float32)
    plain = nn.Decoder(nn.Embedding(7, 4, rng=0), nn.GRU(4, 6, rng=1), nn.Linear(6, 7, rng=2))
    for start in ([0, 1], [0], np.zeros(0, np.int64)):
        message = r"start: expected a whole number or 3 of them, .* of the memory, got [012]"
        with pytest.raises(ValueError, match=message):
            model.generate(memory, start=start, steps=2)
    with pytest.raises(
        ValueError, match=r"start: expected .* or 2 of them, .* of the state, got 3"
    ):
        plain.generate(state=state, start=[0, 1, 2], steps=2)
    one = model.generate(memory, start=2, steps=2)[0]
    assert np.array_equal(model.generate(memory, start=[2, 2, 2], steps=2)[0], one)
    for end in (7, 99):
        with pytest.raises(ValueError, match=f"end: expected a label below O = 7, .* got {end}"):
            model.generate(memory, start=0, end=end, steps=2)
    with pytest.raises(ValueError, match="end: expected a whole number of at least 0, got -1"):
        model.generate(memory, start=0, end=-1, steps=2)
    with pytest.raises(TypeError, match=r"end: expected a whole number, got 0\.5"):
        model.generate(memory, start=0, end=0.5, steps=2)
    with model.write() as p:
        p["head.bias"][3] = np.nan
    with pytest.raises(ValueError, match=r"head: expected numbers, of which some .* got NaN"):
        model.generate(memory, start=0, steps=2)
