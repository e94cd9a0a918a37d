"""Values, gradients and state dicts against PyTorch, where it is installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from conftest import assert_close
from ostinato import losses, nn, optim

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: pip install 'ostinato[bench]'"
    )

KINDS = {
    "RNN": {},
    "RNN relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "LSTM projected": {"proj_size": 4},
    "GRU": {},
}


def pair(kind: str, dtype: Any, **options: Any) -> tuple[Any, Any]:
    name = kind.split()[0]
    options = {**KINDS[kind], **options}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(5, 9, **options).to(
        torch.float32 if dtype == np.float32 else torch.float64
    )
    ours = getattr(nn, name)(5, 9, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, dtype: Any, options: Any) -> None:
    ours, theirs = pair(kind, dtype, **options)
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.parameters().items()
    }
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 3, 5)).astype(dtype)
    leaf = torch.from_numpy(x).requires_grad_(True)
    y, state = theirs(leaf)
    (got, got_state), pullback = ours.vjp(x)
    assert_close(got, y.detach().numpy(), "y", 2)
    states = state if isinstance(state, tuple) else (state,)
    got_states = got_state if isinstance(got_state, tuple) else (got_state,)
    for a, b in zip(got_states, states):
        assert_close(a, b.detach().numpy(), "state", 2)
    dy, dstates = (
        rng.normal(size=got.shape).astype(dtype),
        [rng.normal(size=s.shape).astype(dtype) for s in got_states],
    )
    torch.autograd.backward([y, *states], [torch.from_numpy(d) for d in (dy, *dstates)])
    dx, _ = pullback(dy, tuple(dstates) if isinstance(state, tuple) else dstates[0])
    assert_close(dx, leaf.grad.numpy(), "dx", 10)
    for name, p in theirs.named_parameters():
        assert_close(ours.grads[name], p.grad.numpy(), name, 10)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_against_packed_sequences(kind: str) -> None:
    ours, theirs = pair(kind, np.float64, num_layers=2, bidirectional=True)
    x, lengths = np.random.default_rng(2).normal(size=(7, 4, 5)), [3, 7, 1, 5]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.tensor(lengths), enforce_sorted=False
    )
    y, state = theirs(packed)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=7)
    got, got_state = ours(x, lengths=lengths)
    assert_close(got, y.detach().numpy())
    for a, b in zip(*((s if isinstance(s, tuple) else (s,)) for s in (got_state, state))):
        assert_close(a, b.detach().numpy())


def test_state_dicts_go_back_too() -> None:
    ours, theirs = pair("LSTM", np.float32, num_layers=2)
    with ours.write() as p:
        p["bias_ih_l1"][...] = 3
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    assert (theirs.bias_ih_l1 == 3).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy(dtype: Any, smoothing: float) -> None:
    rng = np.random.default_rng(0)
    y, target = (3 * rng.normal(size=(6, 4, 35))).astype(dtype), rng.integers(0, 35, (6, 4))
    target[2, 1] = -100
    leaf = torch.from_numpy(y).requires_grad_(True)
    want = torch.nn.functional.cross_entropy(
        leaf.reshape(-1, 35), torch.from_numpy(target).reshape(-1), label_smoothing=smoothing
    )
    want.backward()
    value, dy = losses.CrossEntropy(label_smoothing=smoothing)(y, target)
    assert abs(value - float(want.detach())) < 1e-5
    assert_close(dy, leaf.grad.numpy())


OPTIMIZERS = {
    "sgd": (
        lambda: optim.SGD(0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    ),
    "momentum": (
        lambda: optim.SGD(0.05, momentum=0.8),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.8),
    ),
    "nesterov": (
        lambda: optim.SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "rmsprop": (
        lambda: optim.RMSprop(0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.1),
    ),
    "adam": (
        lambda: optim.Adam(0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (
        lambda: optim.AdamW(0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers(name: str, kernel_set: str) -> None:
    ours, theirs = pair("GRU", np.float64)
    for pattern in ours.parameters():
        ours.set_decay(pattern, True)
    mine, other = OPTIMIZERS[name][0](), OPTIMIZERS[name][1](theirs.parameters())
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(size=(4, 3, 5))
        (y, _), pullback = ours.vjp(x)
        ours.zero_grad()
        pullback(np.ones_like(y))
        ours_norm = optim.clip_by_norm(ours, 0.5)
        mine.step(ours)
        other.zero_grad()
        theirs(torch.from_numpy(x))[0].sum().backward()
        assert np.isclose(
            ours_norm, float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
        )
        other.step()
    for n, p in theirs.named_parameters():
        np.testing.assert_allclose(
            ours.parameters()[n], p.detach().numpy(), rtol=2e-5, atol=1e-7, err_msg=n
        )


def test_adam_after_unfreezing_counts_from_there() -> None:
    ours, theirs = pair("GRU", np.float64)
    mine, other = optim.Adam(0.01), torch.optim.Adam(theirs.parameters(), 0.01)
    ours.freeze("weight_hh_l0")
    theirs.weight_hh_l0.requires_grad_(False)
    x = np.random.default_rng(0).normal(size=(4, 3, 5))
    for step in range(12):
        if step == 8:
            ours.unfreeze("weight_hh_l0")
            theirs.weight_hh_l0.requires_grad_(True)
        (y, _), pullback = ours.vjp(x)
        ours.zero_grad()
        pullback(np.ones_like(y))
        mine.step(ours)
        other.zero_grad()
        theirs(torch.from_numpy(x))[0].sum().backward()
        other.step()
    for n, p in theirs.named_parameters():
        np.testing.assert_allclose(
            ours.parameters()[n], p.detach().numpy(), rtol=1e-6, atol=1e-9, err_msg=n
        )
