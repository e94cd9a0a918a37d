"""Parameter trees of Flax and Haiku, by formulas and against both where they are installed."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest

from conftest import assert_close
from ostinato import interop, nn
from ostinato.interop import _jax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import flax.linen as linen
        import jax
    except ImportError:
        jax = linen = None  # type: ignore[assignment]
    try:
        import haiku
    except ImportError:
        haiku = None  # type: ignore[assignment]
needs_flax = pytest.mark.skipif(linen is None, reason="flax is not installed: pip install flax")
needs_haiku = pytest.mark.skipif(
    haiku is None or jax is None, reason="haiku is not installed: pip install dm-haiku"
)


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


X = drawn(6, 2, 3, seed=9)  # [T,B,I]


def test_a_haiku_gru_has_the_opposite_gate() -> None:
    w, r, b = drawn(3, 12, seed=1), drawn(4, 12, seed=2), drawn(12, seed=3)
    layer: Any = interop.from_haiku({"gru": {"w_i": w, "w_h": r, "b": b}}).layer
    h, want = np.zeros((2, 4)), []
    for x in X:
        z = sigmoid(x @ w[:, :4] + h @ r[:, :4] + b[:4])
        s = sigmoid(x @ w[:, 4:8] + h @ r[:, 4:8] + b[4:8])
        h = (1 - z) * h + z * np.tanh(x @ w[:, 8:] + (s * h) @ r[:, 8:] + b[8:])
        want.append(h)
    assert_close(layer(X)[0], np.array(want, np.float32))


def test_a_haiku_lstm_adds_one_to_the_forget_gate() -> None:
    w, b = drawn(7, 16, seed=1), drawn(16, seed=3)
    given = {"net/lstm_1/linear": {"w": w, "b": b}, "net/linear": {"w": drawn(4, 2)}}
    imported = interop.from_haiku(given)
    assert list(imported) == ["net/lstm_1", "net/linear"]
    layer: Any = imported["net/lstm_1"]
    h, c, want = np.zeros((2, 4)), np.zeros((2, 4)), []
    for x in X:
        i, g, f, o = np.split(np.concatenate([x, h], 1) @ w + b, 4, 1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        want.append(h)
    assert_close(layer(X)[0], np.array(want, np.float32))
    assert np.array_equal(b, drawn(16, seed=3))  # the caller's is as it was


def test_what_is_refused() -> None:
    ok = {"kernel": np.ones((2, 3), np.float32)}
    with pytest.raises(
        ValueError, match=r"a\.b: expected the parameters of an LSTMCell.*\[2,3,4\]"
    ):
        interop.from_flax({"a": {"b": {"kernel": np.ones((2, 3, 4))}}})
    with pytest.raises(ValueError, match=r"a: expected parameters that fit one another"):
        interop.from_flax({"a": {**ok, "bias": np.ones(4)}})
    with pytest.raises(ValueError, match=r"c: expected a layer, got an array beside layers"):
        interop.from_flax({"a": ok, "c": np.ones(3)})
    with pytest.raises(TypeError, match=r"params: expected a mapping, got a list"):
        interop.from_flax([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a\.kernel: expected real numbers"):
        interop.from_flax({"a": {"kernel": np.ones((2, 3), int)}})
    deep: Any = ok
    for _ in range(100):
        deep = {"x": deep}
    with pytest.raises(ValueError, match=r"at most 50 levels"):
        interop.from_flax(deep)
    with pytest.raises(ValueError, match=r"conv: expected the parameters of an LSTM, GRU"):
        interop.from_haiku({"conv": {"w": np.ones((2, 3, 4)), "b": np.ones(4)}})
    with pytest.raises(ValueError, match=r"gru: expected parameters that fit one another"):
        interop.from_haiku({"gru": {"w_i": drawn(3, 12), "w_h": drawn(4, 11), "b": drawn(12)}})
    with pytest.raises(ValueError, match=r"their order is not in a tree"):
        interop.from_flax({"a": ok, "b": ok}).model()
    with pytest.raises(TypeError, match=r"params: expected a mapping of mappings"):
        interop.from_haiku({"a": np.ones(2)})


@needs_flax
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell"])
def test_cells_of_flax(kind: str) -> None:
    class Net(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact
        def __call__(self, ids: Any) -> Any:
            x = linen.LayerNorm(name="norm")(linen.Embed(9, 3, name="words")(ids))
            x = linen.RNN(getattr(linen, kind)(4), name="rnn")(x)
            return linen.Dense(2, name="head")(x)

    net, ids = Net(), np.random.default_rng(0).integers(0, 9, (2, 6))
    params = net.init(jax.random.PRNGKey(0), ids)
    leaves, tree = jax.tree_util.tree_flatten(params)
    rng = np.random.default_rng(1)
    leaves = [(a + 0.3 * rng.normal(size=a.shape)).astype(np.float32) for a in leaves]
    params = jax.tree_util.tree_unflatten(tree, leaves)
    imported = interop.from_flax(params, verify=True)
    assert {"head", "norm", "words"} < set(imported)
    rnn = next(m for m in imported.values() if isinstance(m, nn.Recurrent))
    model = nn.Sequential(imported["words"], imported["norm"], rnn, imported["head"])
    assert_close(model(ids)[0], np.asarray(net.apply(params, ids)), scale=4)


def cell_of_flax() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tree: dict[str, Any] = {f"i{g}": {"kernel": rng.normal(size=(3, 4))} for g in "ifgo"}
    bias = {"bias": rng.normal(size=4)}
    return tree | {f"h{g}": {"kernel": rng.normal(size=(4, 4)), **bias} for g in "ifgo"}


@needs_flax
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_verify_sees_gates_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        g: {n: a.astype(np.float32) for n, a in own.items()} for g, own in cell_of_flax().items()
    }
    assert repr(interop.from_flax({"rnn": tree}, verify=True).layer).startswith("LSTM(3, 4")
    right = _jax._stacked
    monkeypatch.setattr(_jax, "_stacked", lambda found, letters: right(found, letters[::-1]))
    with pytest.raises(ValueError, match=r"expected the outputs of Flax, rnn within 1e-05"):
        interop.from_flax({"rnn": tree}, verify=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_first": "no"}, "batch_first: expected True or False, got 'no'"),
        ({"verify": "no"}, "verify: expected True or False, got 'no'"),
        ({"eps": "a"}, "eps: expected a number above 0, got 'a'"),
        ({"eps": -1}, "eps: expected a number above 0, got -1"),
    ],
)
def test_options_that_nothing_uses_are_checked(options: dict[str, Any], message: str) -> None:
    dense = {"head": {"kernel": np.ones((3, 2), np.float32)}}
    linear = {"linear": {"w": np.ones((3, 2), np.float32)}}
    for make, params in ((interop.from_flax, dense), (interop.from_haiku, linear)):
        with pytest.raises((TypeError, ValueError), match=message):
            make(params, **options)


def test_verify_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flax", "flax.linen", "haiku"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"verify=True needs flax: pip install flax"):
        interop.from_flax({"rnn": cell_of_flax()}, verify=True)
    arrays = {"gru": {"w_i": drawn(3, 12), "w_h": drawn(4, 12), "b": drawn(12)}}
    with pytest.raises(ImportError, match=r"verify=True needs dm-haiku: pip install dm-haiku"):
        interop.from_haiku(arrays, verify=True)


@needs_haiku
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "VanillaRNN"])
def test_cores_of_haiku(kind: str) -> None:
    def net(x: Any) -> Any:
        core = getattr(haiku, kind)(4)
        y, _ = haiku.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return haiku.Linear(2)(haiku.LayerNorm(-1, True, True)(y))

    made = haiku.without_apply_rng(haiku.transform(net))
    params = made.init(jax.random.PRNGKey(0), X)
    rng = np.random.default_rng(1)
    params = {
        n: {k: np.asarray(a + 0.3 * rng.normal(size=a.shape), np.float32) for k, a in own.items()}
        for n, own in params.items()
    }
    imported = interop.from_haiku(params, verify=True)
    assert "Haiku: 3 layers" in imported.describe()
    rnn = next(m for m in imported.values() if isinstance(m, nn.Recurrent))
    model = nn.Sequential(rnn, imported["layer_norm"], imported["linear"])
    assert_close(model(X)[0], np.asarray(made.apply(params, X)), scale=4)
