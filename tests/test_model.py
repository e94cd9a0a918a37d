"""Models of the user's own: parameters, ties, files, devices, training, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import flat, native_for_tests, parameter_gradient
from ostinato import nn

R = np.random.default_rng(0)


class Net(nn.Model):
    """Layers in every place that an attribute has, and parameters."""

    def __init__(self, size: int = 4, *, dtype: Any = np.float64, rng: int = 0) -> None:
        self.scale = nn.Parameter(np.full(size, 0.5, dtype))
        self.rnn = nn.GRU(3, size, dtype=dtype, rng=rng)
        self.blocks = [nn.Linear(size, size, dtype=dtype, rng=k) for k in range(2)]
        self.heads = {
            "a": nn.Linear(size, 2, dtype=dtype, rng=5),
            "b": nn.Sequential(nn.Linear(size, 1, dtype=dtype, rng=6)),
        }
        self.shift = (nn.Parameter(np.zeros((2, size), dtype)),)
        self.size = size

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        y, _ = self.rnn(x, lengths=lengths)
        for k, block in enumerate(self.blocks):
            y = y + np.tanh(block(y)) * self.scale + self.shift[0][k]
        b, _ = self.heads["b"](y)
        return np.concatenate([self.heads["a"](y), b], axis=-1)


class Words(nn.Model):
    """A language model with tied weights."""

    def __init__(self, words: int = 7, size: int = 4, *, dtype: Any = np.float64) -> None:
        self.embed = nn.Embedding(words, size, dtype=dtype, rng=0)
        self.rnn = nn.LSTM(size, size, dtype=dtype, rng=1)
        self.head = nn.Linear(size, words, dtype=dtype, rng=2)
        self.tie("head.weight", "embed.weight")

    def __call__(self, x: Any) -> Any:
        y, _ = self.rnn(self.embed(x))
        return self.head(y)


NAMES = [
    "scale",
    "shift.0",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "rnn.bias_ih_l0",
    "rnn.bias_hh_l0",
    "blocks.0.weight",
    "blocks.0.bias",
    "blocks.1.weight",
    "blocks.1.bias",
    "heads.a.weight",
    "heads.a.bias",
    "heads.b.0.weight",
    "heads.b.0.bias",
]


def data(dtype: Any = np.float64) -> Any:
    return np.random.default_rng(1).standard_normal((5, 2, 3)).astype(dtype)


# -- parameters ------------------------------------------------------------------------------------


def test_parameters_by_attribute() -> None:
    model = Net()
    assert list(model.parameters()) == NAMES
    assert model.dtype == np.float64
    assert model.count_parameters() == sum(v.size for v in model.parameters().values())
    assert model.flat.size >= model.count_parameters()
    first = model.rnn.parameters()["weight_ih_l0"]
    assert np.shares_memory(first, model.flat)
    assert np.shares_memory(model.heads["b"][0].parameters()["weight"], model.flat)
    assert np.shares_memory(model.scale, model.flat)
    assert model.scale.tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="read-only"):
        model.scale[0] = 1
    with model.write() as p:
        p["scale"][...] = 2
    assert model.scale.tolist() == [2.0] * 4
    assert "blocks.1: Linear(4, 4)" in repr(model)
    assert "shift.0: Parameter([2, 4], float64)" in repr(model)


def test_gradients_of_all_parameters() -> None:
    model, x = Net(), data()
    d = R.standard_normal((5, 2, 3))

    def value() -> Any:
        return (model(x, lengths=[5, 3]) * d).sum()

    y, pullback = model.vjp(x, lengths=[5, 3])
    assert np.array_equal(y, model(x, lengths=[5, 3]))
    dx = pullback(d)
    assert dx.shape == x.shape
    for name in NAMES:
        np.testing.assert_allclose(
            model.grads[name], parameter_gradient(value, model, name), atol=1e-8, err_msg=name
        )
    other = model.new_grads()
    model.zero_grad()
    _, pullback = model.vjp(x, lengths=[5, 3])
    assert pullback(d, grads=other, need_dx=False) is None
    assert not model.flat_grads.any()
    np.testing.assert_allclose(
        other["rnn.weight_hh_l0"], parameter_gradient(value, model, "rnn.weight_hh_l0"), atol=1e-8
    )
    assert other["scale"].any()


def test_freezing() -> None:
    model, x = Net(), data()
    model.freeze("rnn.*")
    model.freeze("scale")
    _, pullback = model.vjp(x)
    pullback(np.ones((5, 2, 3)))
    before = model.state_dict()
    ost.optim.Adam(0.1).step(model)
    for name in NAMES:
        frozen = name.startswith("rnn.") or name == "scale"
        assert model.grads[name].any() != frozen, name
        assert np.array_equal(model.parameters()[name], before[name]) == frozen, name
    assert model.count_parameters(trainable_only=True) == model.count_parameters() - 4 - (
        12 * 3 + 12 * 4 + 24
    )


class Named(nn.Model):
    """Layers whose names are patterns of one another."""

    def __init__(self) -> None:
        names = ("a[0]", "a0", "b*", "bc", "d?", "de")
        self.d = {n: nn.Linear(2, 2, dtype=np.float64, rng=0) for n in names}

    def __call__(self, x: Any) -> Any:
        return sum(layer(x) for layer in self.d.values())


@pytest.mark.parametrize("name", ["a[0]", "b*", "d?"])
def test_names_are_no_patterns(name: str) -> None:
    model = Named()
    own = {f"d.{name}.weight", f"d.{name}.bias"}

    def frozen(model: nn.Layer, prefix: str = "") -> set[str]:
        entry = model._block.entry
        return {prefix + n for n in model.parameters() if not entry(n).trainable}

    model.d[name].set_decay("*", True)
    decayed = {n for n in model.parameters() if model._block.entry(n).decay}
    assert decayed == {n for n in model.parameters() if n.endswith("weight")} | own
    model.d[name].freeze("*")
    assert frozen(model) == own
    model.more = nn.Linear(2, 2, dtype=np.float64, rng=0)  # laid out anew
    assert frozen(model) == own
    model.tie("d.bc.weight", "d.de.weight")
    assert frozen(model) == own
    outer = nn.Sequential(copy.deepcopy(model))
    assert frozen(outer) == {f"0.{n}" for n in own}
    inner = copy.deepcopy(outer[0])  # by itself
    assert frozen(inner) == own
    model.freeze("d.*")
    model.d[name].unfreeze("*")
    assert frozen(model) == {n for n in model.parameters() if n.startswith("d.")} - own


def test_attributes_that_change_afterwards() -> None:
    model, x = Net(), data()
    old, values = model.blocks[1], model.state_dict()
    model.freeze("rnn.*")
    model.blocks.append(nn.Linear(4, 4, dtype=np.float64, rng=9))  # in place: no attribute is set
    assert list(model.parameters())[10:12] == ["blocks.2.weight", "blocks.2.bias"]
    assert all(np.array_equal(model.parameters()[n], values[n]) for n in values)
    assert not model._block.entries["rnn.weight_hh_l0"].trainable
    model.shift = (nn.Parameter(np.zeros((3, 4))),)
    assert model(x).shape == (5, 2, 3)
    del model.blocks[1]
    assert "blocks.2.weight" not in model.parameters()
    assert old._owner is None
    assert np.array_equal(
        old.parameters()["weight"], values["blocks.1.weight"]
    )  # it has them by itself now
    nn.Sequential(old)
    head = nn.Linear(4, 7, dtype=np.float64, rng=0)
    model.heads["a"] = head
    y, pullback = model.vjp(x)
    pullback(np.ones_like(y))
    assert y.shape == (5, 2, 8)
    assert model.grads["heads.a.bias"].tolist() == [10.0] * 7
    del model.scale
    assert "scale" not in model.parameters()
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'scale'"):
        _ = model.scale


def test_parameters_in_lists_are_arrays_in_operations() -> None:
    class Own(nn.Model):
        def __init__(self) -> None:
            self.list = [
                nn.Parameter(R.standard_normal((3, 3))),
                nn.Parameter(R.standard_normal(3)),
            ]
            self.warm = nn.Parameter(np.array(2.0))  # a single number

        def __call__(self, x: Any) -> Any:
            y = x @ self.list[0] + self.list[1]
            z = self.list[1] * x - np.maximum(self.list[1], x)
            joined = np.concatenate([y, np.broadcast_to(self.list[1], x.shape)], axis=-1)
            return (
                joined.sum() * self.warm
                + np.tanh(self.list[0]).sum()
                + z.mean()
                + self.list[0][1, 2]
            )

    model, x = Own(), data()
    for call in (model, lambda a: model(a) * 1.0):
        model.zero_grad()
        value, pullback = ost.vjp(call, x)
        assert value == pytest.approx(model(x))
        pullback()
        for name in model.parameters():
            np.testing.assert_allclose(
                model.grads[name], parameter_gradient(lambda: model(x), model, name), atol=1e-6
            )
    assert model.warm.shape == ()
    assert np.asarray(model.list[1]).shape == (3,)
    assert nn.Parameter(np.ones(2)).value.tolist() == [1.0, 1.0]


def test_layers_of_a_new_model_are_called_by_themselves() -> None:
    """Before the model itself: its parameters are in place when it has been made."""
    model, x = Net(), data()
    _, pullback = ost.vjp(lambda: (model.blocks[0](model.rnn(x)[0]) ** 2).sum() + model(x).sum())
    pullback()
    assert model.grads["blocks.0.weight"].any()
    assert model.grads["rnn.weight_ih_l0"].any()


def test_a_layer_twice_is_one() -> None:
    class Twice(nn.Model):
        def __init__(self) -> None:
            self.first = nn.Linear(3, 3, dtype=np.float64, rng=0)
            self.steps = [self.first, self.first]

        def __call__(self, x: Any) -> Any:
            for step in self.steps:
                x = np.tanh(step(x))
            return x

    model, x = Twice(), data()
    assert list(model.parameters()) == ["first.weight", "first.bias"]
    y, pullback = model.vjp(x)
    pullback(np.ones_like(y))
    want = parameter_gradient(lambda: model(x).sum(), model, "first.weight")
    np.testing.assert_allclose(model.grads["first.weight"], want, atol=1e-8)


def test_super_init_is_not_needed_and_does_no_harm() -> None:
    class Plain(nn.Model):
        def __init__(self) -> None:
            self.a = nn.Linear(3, 2, rng=0)
            super().__init__()
            self.b = nn.Linear(2, 2, rng=0)

    assert len(Plain().parameters()) == 4


def test_nested_models_and_sequentials() -> None:
    class Outer(nn.Model):
        def __init__(self) -> None:
            self.inner = Net()
            self.head = nn.Linear(3, 1, dtype=np.float64, rng=0)

        def __call__(self, x: Any) -> Any:
            return self.head(self.inner(x) * self.inner.scale[0])

    model, x = Outer(), data()
    assert list(model.parameters()) == [*(f"inner.{n}" for n in NAMES), "head.weight", "head.bias"]
    y, pullback = model.vjp(x)
    pullback(np.ones_like(y))
    for name in ("inner.scale", "inner.shift.0", "inner.rnn.bias_ih_l0"):
        want = parameter_gradient(lambda: model(x).sum(), model, name)
        np.testing.assert_allclose(model.grads[name], want, atol=1e-8)
    assert np.array_equal(model.inner.grads["scale"], model.grads["inner.scale"])
    model.inner.more = nn.Linear(2, 2, dtype=np.float64)
    assert "inner.more.weight" in model.parameters()

    row = nn.Sequential(Net(), nn.Linear(3, 1, dtype=np.float64, rng=0))
    (y, _), pullback = row.vjp(x, lengths=[5, 2])
    _, _ = pullback(np.ones_like(y))
    assert row.grads["0.scale"].any()
    assert np.array_equal(row(x, lengths=[5, 2])[0], y)
    with pytest.raises(ValueError, match="more: expected a model that is no part of a Sequential"):
        row[0].more = nn.Linear(2, 2, dtype=np.float64)
    row[0].blocks.append(nn.Linear(4, 4, dtype=np.float64))
    with pytest.raises(
        ValueError, match="expected layers that stay once it is part of a Sequential"
    ):
        row[0].parameters()

    class Around(nn.Model):
        def __init__(self) -> None:
            self.row = nn.Sequential(Net())

        def __call__(self, x: Any) -> Any:
            return self.row(x)[0]

    around = Around()
    with pytest.raises(ValueError, match="more: expected a model that is no part of a Sequential"):
        around.row[0].more = nn.Linear(2, 2, dtype=np.float64)
    around.row[0].blocks.append(nn.Linear(4, 4, dtype=np.float64))
    with pytest.raises(
        ValueError, match="expected layers that stay once it is part of a Sequential"
    ):
        around.vjp(x)


def test_copies_and_pickles() -> None:
    for model in (Net(), Words()):
        x = data() if isinstance(model, Net) else np.array([[1, 2], [3, 4]])
        model.freeze("rnn.*")
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert np.array_equal(other(x), model(x))
            assert not np.shares_memory(other.flat, model.flat)
            assert not other._block.entries["rnn.weight_hh_l0"].trainable
            y, pullback = other.vjp(x)
            pullback(np.ones_like(y))
            assert other.flat_grads.any()
            assert not model.flat_grads.any()
            assert other._block.aliases == model._block.aliases
    alone = copy.deepcopy(Net().blocks[0])
    assert list(alone.parameters()) == ["weight", "bias"]


def test_long_lists_are_read_once() -> None:
    """A vocabulary costs nothing a call, and a layer that is put into it is found."""

    class Counted(list):  # type: ignore[type-arg]
        reads = 0

        def __iter__(self) -> Any:
            type(self).reads += 1
            return super().__iter__()

    model = Net()
    model.words = Counted(["word"] * 2000)
    model.parameters()
    before = Counted.reads
    for _ in range(5):
        model(data())
        model.parameters()
    assert Counted.reads == before <= 2
    model.words.append(nn.Linear(2, 2, dtype=np.float64))
    assert "words.2000.weight" in model.parameters()


def test_threads_that_use_a_new_model_at_once() -> None:
    x = data()
    for _ in range(20):
        model, found, start = Net(), [], threading.Barrier(4)

        def use(model: Any = model, found: Any = found, start: Any = start) -> None:
            start.wait(30)
            found.append(model.vjp(x)[0])

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(np.array_equal(y, found[0]) for y in found)


def test_dropout_within_blocks_is_resumed(tmp_path: Path) -> None:
    """The Trainer gives every dropout a seed of the run, also within layers of layers."""
    results = []
    for stop in (4, 2):
        model = nn.Sequential(
            nn.Residual(nn.Sequential(nn.Linear(3, 3, rng=0), nn.Dropout(0.5, rng=stop))),
            nn.Linear(3, 1, rng=1),
        )
        trainer = ost.Trainer(model, ost.losses.MSE())
        batches = [(data(np.float32), np.ones((5, 2, 1), np.float32))] * 4
        for steps in (stop, 4):
            trainer.fit(
                batches, steps=steps, checkpoint=tmp_path / f"{stop}", resume=True, progress=False
            )
        results.append(model.flat.copy())
    assert np.array_equal(*results)


# -- ties ------------------------------------------------------------------------------------------


def test_tied_weights() -> None:
    model, ids = Words(), np.array([[1, 2], [6, 2], [0, 1]])
    assert next(iter(model.parameters())) == "embed.weight"
    assert "head.weight" not in list(model.parameters())
    assert model.parameters()["head.weight"].shape == (7, 4)  # it can be asked for
    assert np.shares_memory(model.head.parameters()["weight"], model.embed.parameters()["weight"])
    y, pullback = model.vjp(ids)
    pullback(np.ones_like(y))
    want = parameter_gradient(lambda: model(ids).sum(), model, "embed.weight")
    np.testing.assert_allclose(model.grads["embed.weight"], want, atol=1e-8)
    assert np.array_equal(model.head.grads["weight"], model.grads["embed.weight"])
    assert "1 tied to others, counted once" in model.summary()
    model.freeze("head.weight")
    assert not model._block.entry("embed.weight").trainable
    model.unfreeze("embed.*")
    head = copy.deepcopy(model.head)
    assert np.array_equal(head.parameters()["weight"], model.embed.parameters()["weight"])
    ost.optim.SGD(0.1).step(model)
    assert np.shares_memory(model.head.parameters()["weight"], model.flat)


def test_ties_when_attributes_change() -> None:
    model, ids = Words(), np.array([[1, 2], [6, 2]])
    want, table = model(ids), model.embed.parameters()["weight"].copy()
    model.more = nn.Linear(4, 4, dtype=np.float64, rng=0)
    assert "head.weight" not in list(model.parameters())
    assert np.shares_memory(model.head.parameters()["weight"], model.embed.parameters()["weight"])
    assert np.array_equal(model(ids), want)
    old = model.head
    model.head = nn.Linear(4, 7, dtype=np.float64, rng=9)  # tied by its name, as the old one was
    assert np.array_equal(model.head.parameters()["weight"], table)
    assert np.array_equal(old.parameters()["weight"], table)
    assert not np.shares_memory(old.parameters()["weight"], model.flat)

    class Outer(nn.Model):
        def __init__(self) -> None:
            self.words = Words()

        def __call__(self, x: Any) -> Any:
            return self.words(x)

    outer = Outer()
    outer.more = nn.Linear(4, 4, dtype=np.float64, rng=0)
    assert list(outer.parameters())[:2] == ["words.embed.weight", "words.rnn.weight_ih_l0"]
    assert "words.head.weight" not in list(outer.parameters())
    assert np.array_equal(outer(ids), want)


def test_state_dicts_of_tied_weights() -> None:
    model = Words()
    state = model.state_dict()
    assert "head.weight" not in state
    both = {**state, "head.weight": state["embed.weight"]}  # as PyTorch writes it
    model.load_state_dict(both)
    with pytest.raises(
        ValueError, match=r"head\.weight: expected the values of embed\.weight, got others"
    ):
        model.load_state_dict({**both, "head.weight": state["embed.weight"] + 1})
    assert np.array_equal(model.parameters()["embed.weight"], state["embed.weight"])
    row = nn.Sequential(Words())  # ties go along
    assert "0.head.weight" not in list(row.parameters())
    assert np.shares_memory(row[0].head.parameters()["weight"], row[0].embed.parameters()["weight"])


def test_ties_that_cannot_be() -> None:
    model = Words()
    with pytest.raises(
        KeyError, match=r"tie: expected the name of a parameter among .* got 'head\.scale'"
    ):
        model.tie("head.scale", "embed.weight")
    with pytest.raises(
        ValueError, match=r"tie: expected two parameters of one shape, got head\.bias \[7\] and"
    ):
        model.tie("head.bias", "embed.weight")
    with pytest.raises(ValueError, match="tie: expected two parameters of one shape"):
        model.tie("embed.weight", "head.weight")
    assert next(iter(model.parameters())) == "embed.weight"
    row = nn.Sequential(Words())
    with pytest.raises(ValueError, match="tie: expected a model that is no part of a Sequential"):
        row[0].tie("rnn.bias_ih_l0", "rnn.bias_hh_l0")


def test_ties_of_a_model_in_use() -> None:
    class Pair(nn.Model):
        def __init__(self) -> None:
            self.embed, self.head = nn.Embedding(7, 4, rng=0), nn.Linear(4, 7, rng=1)

        def __call__(self, x: Any) -> Any:
            return self.head(self.embed(x))

    class Outer(nn.Model):
        def __init__(self) -> None:
            self.pair, self.shift = Pair(), nn.Parameter(np.zeros(7, np.float32))

        def __call__(self, x: Any) -> Any:
            return self.pair(x) + self.shift

    model, ids = Outer(), np.arange(6).reshape(3, 2)
    before = model(ids)
    model.pair.tie("head.weight", "embed.weight")
    assert list(model.parameters()) == ["shift", "pair.embed.weight", "pair.head.bias"]
    table = model.parameters()["pair.embed.weight"]
    after, pullback = model.vjp(ids)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(
        after, table[ids] @ table.T + model.parameters()["pair.head.bias"], rtol=1e-5, atol=1e-6
    )
    pullback(np.ones_like(after))
    assert model.grads["pair.embed.weight"].any(1).all()  # of both uses: row 6 is never looked up
    outer = Outer()
    outer.other = nn.Embedding(7, 4, rng=2)
    outer.tie("pair.head.weight", "other.weight")
    names = list(outer.parameters())
    with pytest.raises(KeyError, match=r"tie: expected the name of a parameter"):
        outer.pair.tie("head.weight", "embed.weight")  # it gives way to the outer model's already
    assert list(outer.parameters()) == names


# -- files -----------------------------------------------------------------------------------------


BUILT_IN: dict[str, Any] = {
    "RNN": lambda: nn.RNN(3, 4, nonlinearity="relu", rng=0),
    "LSTM": lambda: nn.LSTM(
        3, 4, 2, bidirectional=True, dropout=0.5, batch_first=True, learned_state=True, rng=0
    ),
    "projected": lambda: nn.LSTM(3, 4, proj_size=2, dtype="float64", rng=np.random.default_rng(0)),
    "GRU": lambda: nn.GRU(3, hidden_size=4, reset_after=False, precision="bfloat16", rng=0),
    "Linear": lambda: nn.Linear(3, 4, False, rng=0),
    "Embedding": lambda: nn.Embedding(5, 3, padding_index=2, rng=0),
    "Pool": lambda: nn.Pool("attention", 3, batch_first=True, rng=0),
    "Conv1d": lambda: nn.Conv1d(3, 4, 3, stride=2, padding="causal", rng=0),
    "LayerNorm": lambda: nn.LayerNorm(4, eps=1e-3, dtype=np.float64),
    "Attention": lambda: nn.Attention("additive", 3, 4, 5, causal=True, rng=0),
    "Residual": lambda: nn.Residual(nn.GRU(3, 3, rng=0)),
    "Concat": lambda: nn.Concat(nn.GRU(3, 3, rng=0), nn.Linear(3, 1, rng=0)),
    "TimeDistributed": lambda: nn.TimeDistributed(nn.Conv1d(3, 4, 3, batch_first=True, rng=0)),
    "Sequential": lambda: nn.Sequential(
        nn.Embedding(5, 3, rng=0),
        nn.Dropout(0.1, rng=0),
        rnn=nn.GRU(3, 4, rng=0),
        act=nn.Activation("gelu"),
    ),
    "ClockworkRNN": lambda: nn.ClockworkRNN(3, [4, 2], (1, 3), bias=False, rng=0),
    "Hierarchical": lambda: nn.Hierarchical(
        nn.Sequential(nn.Embedding(5, 3, rng=0), nn.Pool("attention", 3, rng=0)),
        nn.GRU(3, 4, rng=0),
    ),
    "Encoder": lambda: nn.Encoder(
        nn.Embedding(5, 3, rng=0), nn.LSTM(3, 4, bidirectional=True, rng=0)
    ),
    "Decoder": lambda: nn.Decoder(
        nn.Embedding(5, 3, rng=0),
        nn.GRU(7, 4, rng=0),
        nn.Linear(4, 5, rng=0),
        attention=nn.Attention(),
        memory_size=4,
        feed="output",
        rng=0,
    ),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_layers_are_made_anew(name: str, tmp_path: Path) -> None:
    layer = BUILT_IN[name]()
    path = tmp_path / "a.safetensors"
    if layer.parameters():
        layer.freeze(next(iter(layer.parameters())))
    layer.save(path)
    made = ost.load(path)
    assert type(made) is type(layer)
    assert repr(made) == repr(layer)
    assert made.dtype == layer.dtype
    want = layer.state_dict()
    assert list(made.state_dict()) == list(want)
    assert all(np.array_equal(v, want[n]) for n, v in made.state_dict().items())
    assert [e.trainable for e in made._block.entries.values()] == [
        e.trainable for e in layer._block.entries.values()
    ]
    layer.load(path)  # and as parameters alone


def test_the_precision_that_was_set(tmp_path: Path) -> None:
    layer = nn.GRU(3, 4, rng=0)
    layer.precision = "bfloat16"
    layer.save(tmp_path / "a")
    assert ost.load(tmp_path / "a").precision == "bfloat16"


def test_models_of_the_users_own(tmp_path: Path) -> None:
    path, x = tmp_path / "net.safetensors", data(np.float32)
    model = Net(6, dtype=np.float32, rng=3)
    model.freeze("blocks.0.*")
    model.save(path)
    made = ost.load(path, Net)
    assert made.size == 6
    assert np.array_equal(made(x), model(x))
    assert not made._block.entries["blocks.0.bias"].trainable
    with pytest.raises(
        TypeError,
        match=r"classes: expected the class 'Net', which the file needs .* ost\.load\(path, Net\)",
    ):
        ost.load(path)
    with pytest.raises(TypeError, match="classes: expected classes of layers, got 'Net'"):
        ost.load(path, "Net")  # type: ignore[arg-type]
    words = Words(9)
    words.save(path)
    made = ost.load(path, Net, Words)
    assert np.array_equal(made(np.array([[1]])), words(np.array([[1]])))
    nn.Sequential(Net(), nn.Linear(3, 1, dtype=np.float64)).save(
        path
    )  # a class within a built-in one
    assert isinstance(ost.load(path, Net)[0], Net)


def test_models_that_a_file_cannot_describe(tmp_path: Path) -> None:
    class Odd(nn.Model):
        def __init__(self, function: Any) -> None:
            self.function, self.head = function, nn.Linear(3, 2, rng=0)

    path = tmp_path / "odd"
    Odd(np.tanh).save(path)  # the parameters are there
    with pytest.raises(
        ValueError, match=r"path: expected the arguments of a Odd to be .* got Odd\(0\): a ufunc"
    ):
        ost.load(path, Odd)
    model = Odd(np.sin)
    model.load(path)
    ost.safetensors.save(path, model.state_dict())
    with pytest.raises(ValueError, match="path: expected a file that says how its model was made"):
        ost.load(path, Odd)


def test_files_that_are_wrong_run_nothing(tmp_path: Path) -> None:
    path, state = tmp_path / "a", nn.Linear(2, 2, rng=0).state_dict()

    def write(**change: Any) -> None:
        made = {
            "version": 1,
            "frozen": [],
            "class": "Linear",
            "args": [2, 2],
            "options": {},
            **change,
        }
        ost.safetensors.save(path, state, {"ostinato.model": json.dumps(made)})

    write()
    assert repr(ost.load(path)) == "Linear(2, 2)"
    for name in ("os.system", "__import__", "Layer.__init__", "Views", "init"):
        write(**{"class": name})
        with pytest.raises(TypeError, match="classes: expected the class"):
            ost.load(path)
    for change in ({"version": 9}, {"class": 3}, {"frozen": None}, {"args": [{"kind": "code"}, 2]}):
        write(**change)
        with pytest.raises(ValueError, match="path: expected"):
            ost.load(path)
    write(args=[2, 3])
    with pytest.raises(ValueError, match=r"weight: expected shape \(3, 2\), got \(2, 2\)"):
        ost.load(path)
    write(args=[2, 2, False])
    with pytest.raises(KeyError, match="unknown \\['bias'\\]"):
        ost.load(path)


# -- what is refused -------------------------------------------------------------------------------


def test_layers_where_they_would_not_be_found() -> None:
    class Wrong(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

    class InAList(nn.GRU):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.a = [{"b": nn.Linear(3, 2)}]

    class Before(nn.Layer):
        def __init__(self) -> None:
            self.a = nn.Linear(3, 2)
            super().__init__()

    class Row(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 2))
            self.a = nn.Linear(2, 2)

    for kind in (Wrong, InAList, Before, Row):
        with pytest.raises(
            TypeError,
            match=f"a: expected no layer as this attribute of {kind.__name__}, .* ost.nn.Model",
        ):
            kind()

    class Nothing:
        def __init__(self) -> None:
            self.a = nn.Linear(3, 2)

    with pytest.raises(
        TypeError,
        match=r"model: expected a Layer, got Nothing; .* derives from ost\.nn\.Model",
    ):
        ost.Trainer(Nothing(), ost.losses.MSE())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a Layer, got Nothing; a class of yours"):
        ost.optim.Adam().step(Nothing())  # type: ignore[arg-type]


def test_owners_dtypes_and_names() -> None:
    model, owned = Net(), nn.Linear(3, 3, rng=0)
    nn.Sequential(owned)
    with pytest.raises(ValueError, match="extra: expected a layer without an owner, got a Linear"):
        model.extra = owned
    with pytest.raises(ValueError, match=r"extra\.0: expected a layer without an owner"):
        model.extra = [owned]
    with pytest.raises(
        TypeError,
        match="model: expected layers of one dtype, got float64 of scale and float32 of extra",
    ):
        model.extra = nn.Linear(2, 2, rng=0)
    with pytest.raises(
        TypeError, match=r"extra: expected names that are text without dots, got 'a\.b'"
    ):
        model.extra = {"a.b": nn.Linear(2, 2, dtype=np.float64)}
    with pytest.raises(TypeError, match="model: expected layers of one dtype"):
        model.rnn = nn.GRU(3, 4, rng=0)
    assert not hasattr(model, "extra")
    assert model(data()).shape == (5, 2, 3)  # all is as it was
    assert list(model.parameters()) == NAMES
    model.blocks.append(owned)
    with pytest.raises(ValueError, match=r"blocks\.2: expected a layer without an owner"):
        model.parameters()
    del model.blocks[2]
    assert list(model.parameters()) == NAMES
    with pytest.raises(TypeError, match="value: expected dtype float32 or float64, got int64"):
        nn.Parameter(np.arange(3))
    with pytest.raises(ValueError, match="again: expected a layer without an owner"):
        model.again = model


def test_nothing_is_dropped_by_an_assignment_of_arrays() -> None:
    model = Net()
    values = model.state_dict()
    with pytest.raises(
        TypeError,
        match=r"scale: expected a Parameter in place of one, got ndarray; change its values with "
        r"`with model\.write\(\) as p: p\['scale'\]\[\.\.\.\] = \.\.\.`",
    ):
        model.scale = model.scale * 2
    with pytest.raises(TypeError, match="rnn: expected a Layer in place of one, got function"):
        model.rnn = lambda x: (x, None)
    with pytest.raises(
        TypeError, match="shift: expected a tuple of layers or parameters in place of one, got list"
    ):
        model.shift = [p * 2 for p in model.shift]
    with pytest.raises(TypeError, match="got Variable"):
        ost.vjp(lambda x: setattr(model, "scale", x) or x, np.ones(4))
    assert list(model.parameters()) == NAMES
    assert all(np.array_equal(v, values[n]) for n, v in model.parameters().items())
    model.scale = nn.Parameter(np.full(4, 3.0))
    model.blocks, model.size = [], 5
    assert model.scale.tolist() == [3.0] * 4
    model.scale = None
    assert "scale" not in model.parameters()
    assert "blocks.0.weight" not in model.parameters()


class Refusing(nn.Layer):
    """A layer whose pullback raises."""

    def __call__(self, x: Any) -> Any:
        return x

    def vjp(self, x: Any, *, rng: Any = None) -> Any:
        def backward(grads: Any, dy: Any, need_dx: bool) -> Any:
            raise ValueError("dy: refused")

        return x, self._pullback(backward)


class Inside(nn.Model):
    """Layers and parameters in lists and dicts."""

    def __init__(self) -> None:
        self.shifts = [nn.Parameter(np.full(3, k, np.float32)) for k in range(2)]
        self.heads = {"a": nn.Linear(3, 3, rng=0), "more": [nn.Linear(3, 3, rng=1)]}

    def __call__(self, x: Any) -> Any:
        return self.heads["a"](x + self.shifts[0]) + self.shifts[1]


@pytest.mark.parametrize(
    ("holder", "key", "name", "kind"),
    [
        (lambda m: m.shifts, 0, "shifts.0", "Parameter"),
        (lambda m: m.heads, "a", "heads.a", "Linear"),
        (lambda m: m.heads["more"], 0, "heads.more.0", "Linear"),
    ],
    ids=["parameter", "layer", "nested"],
)
def test_an_array_over_an_entry_is_refused(holder: Any, key: Any, name: str, kind: str) -> None:
    """When the model is next used: the entry is what it was, and nothing is lost."""
    model = Inside()
    before, part = model.state_dict(), holder(model)[key]
    for use in (model.parameters, model.state_dict, lambda: model.vjp(np.ones(3, np.float32))):
        for value in (np.zeros(3, np.float32), 2.0):
            holder(model)[key] = value
            with pytest.raises(
                TypeError,
                match=rf"{name}: expected a {kind} in place of one, got {type(value).__name__}",
            ):
                use()
            assert holder(model)[key] is part
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(np.array_equal(after[n], before[n]) for n in before)
    inside = Outer(Inside())
    inside.inner.shifts[0] = np.zeros(3, np.float32)
    with pytest.raises(TypeError, match=r"shifts\.0: expected a Parameter"):
        inside.parameters()


def test_entries_may_be_removed_and_moved() -> None:
    model = Inside()
    again = pickle.loads(pickle.dumps(model))
    again.shifts[0] = np.zeros(3, np.float32)
    with pytest.raises(TypeError, match=r"shifts\.0: expected a Parameter"):
        again.parameters()
    model.shifts.insert(0, np.ones(3, np.float32))
    assert [n for n in model.parameters() if "shifts" in n] == ["shifts.1", "shifts.2"]
    model.shifts.pop(0)
    model.shifts[1] = None
    del model.heads["more"][0]
    assert list(model.parameters()) == ["shifts.0", "heads.a.weight", "heads.a.bias"]
    model.shifts[1] = np.ones(3, np.float32)  # where there is none
    assert len(model.parameters()) == 3


def test_a_pullback_of_a_model_adds_once_or_not_at_all() -> None:
    """A wrong argument leaves it as it is; it is used when a layer of it has run."""

    class Two(nn.Model):
        def __init__(self, refusing: bool, outer: Any) -> None:
            self.first = (
                Refusing(dtype=np.float64) if refusing else nn.Activation("tanh", dtype=np.float64)
            )
            self.second = nn.Linear(3, 2, dtype=np.float64, rng=0)
            self.plain = nn.Linear(2, 2, dtype=np.float64, rng=1)
            self.__dict__["outer"] = lambda: outer  # a layer of its own, out of sight

        def __call__(self, x: Any) -> Any:
            return self.plain(self.outer()(self.second(self.first(x))))

    outer, d = nn.Linear(2, 2, dtype=np.float64, rng=2), np.ones((5, 2, 2))
    model = Two(True, outer)
    _, pullback = model.vjp(data())
    with pytest.raises(ValueError, match="dy: expected shape"):
        pullback(d[1:])
    with pytest.raises(
        TypeError, match=r"dy: expected dtype float64, .*use dy\.astype\(np\.float64"
    ):
        pullback(d.astype(np.float32))
    assert not model.flat_grads.any()
    with pytest.raises(ValueError, match="dy: refused"):
        pullback(d)
    once = model.flat_grads.copy()
    assert once.any()
    with pytest.raises(RuntimeError, match="pullback: it has been used; call vjp again"):
        pullback(d)
    assert np.array_equal(model.flat_grads, once)
    model = Two(False, outer)
    _, pullback = model.vjp(data())
    outer.zero_grad()
    with outer.write() as p:
        p["bias"][...] += 1
    with pytest.raises(RuntimeError, match="the parameters have changed since the forward pass"):
        pullback(d)
    assert not model.flat_grads.any()
    assert not outer.flat_grads.any()


CHANGES: dict[str, Any] = {
    "+=": lambda p: p.__iadd__(1),
    "out": lambda p: np.exp(np.zeros(3), out=p),
    "out of two": lambda p: np.modf(np.zeros(3), out=(p, np.zeros(3))),
    "at": lambda p: np.add.at(p, [0], 1.0),
    "out of a function": lambda p: np.sum(np.ones((2, 3)), axis=0, out=p),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_parameter_is_not_changed_in_place(name: str) -> None:
    p = nn.Parameter(np.ones(3))
    model = Lists(p)
    for use in (CHANGES[name], lambda p: ost.vjp(lambda x: CHANGES[name](p) + x, np.ones(3))):
        with pytest.raises(TypeError, match="expected no change of a Parameter in place; use"):
            use(p)
    assert model.list[0] is p
    assert p.value.tolist() == [1.0] * 3
    assert np.add(1, p, where=p > 0, out=np.zeros(3)).tolist() == [2.0] * 3


class Lists(nn.Model):
    """What a list holds, and models."""

    def __init__(self, *parts: Any) -> None:
        self.list: list[Any] = list(parts)

    def __call__(self, x: Any) -> Any:
        return x


def test_a_parameter_of_two_models_is_refused() -> None:
    p = nn.Parameter(np.ones(3))
    first = Lists(p)
    with pytest.raises(
        ValueError,
        match=r"list\.0: expected a Parameter of one model, got one that a Lists has already; use "
        r"model\.tie for one array under two names, or ost\.nn\.Parameter\(p\.value\)",
    ):
        Lists(p)
    with pytest.raises(ValueError, match="again: expected a Parameter of one model, got one that"):
        Net().again = p
    with pytest.raises(ValueError, match=r"list\.0: .* got one in two of its models"):
        Lists(first).again = p
    assert list(first.parameters()) == ["list.0"]
    outer = Lists(nn.Parameter(np.zeros(2)), Lists(), Lists())
    fresh = nn.Parameter(np.ones(2))
    outer.list[1].list.append(fresh)
    outer.list[2].list.append(fresh)
    with pytest.raises(ValueError, match=r"list\.0: .* got one in two of its models"):
        outer.parameters()
    outer.list[2].list[0] = nn.Linear(2, 2, dtype=np.float64)
    outer.list[1].list[0] = outer.list[2].list[0]
    with pytest.raises(ValueError, match=r"model: expected a layer without .* a Linear in two of"):
        outer.parameters()
    outer.list[1].list[0] = outer.list[0]
    with pytest.raises(ValueError, match=r"list\.0: .* Parameter of one model"):
        outer.parameters()
    del outer.list[0]  # it moves from one model to another
    assert "list.0.list.0" in outer.parameters()


def test_streams_that_would_ignore_a_call() -> None:
    class Twice(nn.GRU):
        def __call__(self, *args: Any, **options: Any) -> Any:
            y, state = super().__call__(*args, **options)
            return 2 * y, state

    class Row(nn.Sequential):
        def __call__(self, *args: Any, **options: Any) -> Any:
            y, state = super().__call__(*args, **options)
            return 2 * y, state

    class Named(nn.GRU):
        """A class with the call of its base streams."""

    for model in (Twice(3, 4), nn.Sequential(nn.Linear(3, 3), Twice(3, 4)), Row(nn.GRU(3, 4))):
        with pytest.raises(
            TypeError,
            match=r"stream: expected the __call__ of \w+, got that of (Twice|Row)",
        ):
            model.stream()
        with pytest.raises(TypeError, match=r"vjp: expected the __call__ of"):
            ost.Trainer(model, ost.losses.MSE())
    assert Named(3, 4).stream().step(np.ones((1, 3), np.float32)).shape == (1, 4)


class Chain(nn.Model):
    """A chain of layers whose call is given, of layers of its own and within another model."""

    def __init__(self, call: Any, *, stateful: bool = False) -> None:
        self.stateful = stateful
        self.embed = nn.Embedding(7, 4, rng=0)
        self.a, self.b = nn.LSTM(4, 5, rng=1), nn.GRU(5, 5, 2, learned_state=True, rng=2)
        self.rest = nn.Sequential(nn.Residual(nn.GRU(5, 5, rng=3)), nn.Dropout(0.5, rng=0))
        self.head = nn.Linear(5, 3, rng=4)
        self.size, self.how = 5, call

    def __call__(self, x: Any, state: Any = None) -> Any:
        return self.how(self, x, state)


def without_state(m: Any, x: Any, state: Any) -> Any:
    y, _ = m.a(m.embed(x), lengths=None, masked="repeat")
    y, _ = m.b(x=y)
    return m.head(m.rest(y)[0])


def with_state(m: Any, x: Any, state: Any) -> Any:
    (a, b), rest = ((None, None), None) if state is None else state
    y, a = m.a(m.embed(x), a)
    y, b = m.b(y, state=b)
    y, rest = m.rest(y, rest)
    return m.head(y), ((a, b), rest)


class Outer(nn.Model):
    """A model whose call is that of another one, and of a layer."""

    def __init__(self, inner: nn.Model) -> None:
        self.inner, self.last = inner, nn.Linear(3, 2, rng=0)

    def __call__(self, x: Any) -> Any:
        return self.last(self.inner(x))


def test_streams_of_chains_are_the_model_bit_for_bit(kernel_set: str) -> None:
    ids = np.random.default_rng(0).integers(0, 7, (6, 3))
    for model in (Chain(without_state), Outer(Chain(without_state))):
        y, stream = model(ids), model.stream(3)
        for t in range(6):
            np.testing.assert_allclose(stream.step(ids[t]), y[t], atol=1e-6)
        stream.reset([1])
        np.testing.assert_allclose(stream.step(ids[0, 1:2], slots=[1]), y[0, 1:2], atol=1e-6)
    row, _ = nn.Sequential(Outer(Chain(without_state)), nn.Linear(2, 2, rng=0))(ids)
    stream = nn.Sequential(Outer(Chain(without_state)), nn.Linear(2, 2, rng=0)).stream(3)
    for t in range(6):
        np.testing.assert_allclose(stream.step(ids[t]), row[t], atol=1e-6)
    words = Words(dtype=np.float32)
    y, stream = words(ids), words.stream(3)
    for t in range(6):
        assert np.array_equal(stream.step(ids[t]), y[t])


def test_a_stream_of_a_chain_has_the_state_of_the_model() -> None:
    ids = np.random.default_rng(0).integers(0, 7, (6, 3))
    model = Chain(with_state, stateful=True)
    y, state = model(ids)
    more, _ = model(ids, state)
    stream = model.stream(3)
    for t in range(6):
        stream.step(ids[t])
    for got, want in zip(flat(stream.state), flat(state)):
        np.testing.assert_allclose(got, want, atol=1e-6)
    stream.reset()
    stream.state = state
    for t in range(6):
        np.testing.assert_allclose(stream.step(ids[t]), more[t], atol=1e-6)
    with pytest.raises(TypeError, match=r"state: expected a tuple of 2, got ndarray"):
        stream.state = ids
    with model.write() as p:
        p["head.bias"][...] += 1
    with pytest.raises(RuntimeError, match=r"stream: expected the model that it was made of"):
        stream.step(ids[0])
    before = stream.state
    stream.refresh()
    assert all(np.array_equal(a, b) for a, b in zip(flat(before), flat(stream.state)))
    model.head = nn.Linear(5, 2, rng=0)
    with pytest.raises(RuntimeError, match=r"stream: expected the model that it was made of"):
        stream.step(ids[0])
    decoder = nn.Decoder(nn.Embedding(7, 4, rng=0), nn.LSTM(4, 5, rng=0), nn.Linear(5, 7, rng=0))
    y, (h, _) = decoder(ids)
    stream = decoder.stream(3)
    assert all(np.array_equal(stream.step(ids[t]), y[t]) for t in range(6))
    assert np.array_equal(stream.state[0], h)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda m, x, s: np.tanh(m.a(x)[0]), r"computes np\.tanh"),
        (lambda m, x, s: m.b(m.a(x)[0])[0] * 2, r"computes np\.multiply"),
        (lambda m, x, s: np.concatenate([m.a(x)[0]]), r"computes np\.concatenate"),
        (lambda m, x, s: nn.relu(m.a(x)[0]), r"raised TypeError: x: expected a numpy\.ndarray"),
        (lambda m, x, s: m.a(x[::-1])[0], "takes a part of what it is given"),
        (lambda m, x, s: m.a(x)[0] if len(x) else x, "asks for the length"),
        (lambda m, x, s: m.a(x)[0] if x.shape[0] else x, r"asks for \.shape of"),
        (lambda m, x, s: m.a(x)[0] if x else x, "decides by what it is given"),
        (lambda m, x, s: m.a([*x])[0], "takes apart what it is given"),
        (lambda m, x, s: m.head(np.array(m.a(x)[0])), "makes an array of what it is given"),
        (lambda m, x, s: m.b(m.a(x)[0])[0] and m.b(x)[0], "decides by"),
        (lambda m, x, s: (m.a(x)[0], m.b(x)[0])[1], "gives b something else than what the layer"),
        (lambda m, x, s: m.a(np.zeros((1, 1, 4)))[0], "gives a something else than the input"),
        (lambda m, x, s: m.a(x, lengths=[1])[0], "gives a the option lengths"),
        (lambda m, x, s: m.a(x, outputs="last")[0], "gives a the option outputs"),
        (lambda m, x, s: m.b(m.a(x)[0], np.zeros((2, 1, 5)))[0], "gives b another state"),
        (lambda m, x, s: m.a(x, None, 3)[0], "gives a more than x and state"),
        (lambda m, x, s: m.a(x)[1][0], "returns something else than what its last layer gave"),
        (lambda m, x, s: x, "returns something else than what its last layer gave"),
        (lambda m, x, s: {"y": m.a(x)[0]}, "returns something else than"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_streams_of_what_is_no_chain(call: Any, what: str) -> None:
    wanted = "stream: expected a call of Chain that is a chain of layers, got one that "
    with pytest.raises(TypeError, match=wanted + what):
        Chain(call).stream()


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda m, x, s: m.a(x)[0], r"returns Passed in place of \(y, state\)"),
        (lambda m, x, s: (m.a(x)[0], x), "returns something else than states of its layers"),
        (lambda m, x, s: m.a(x, None), "gives a another state than the one that it left"),
        (lambda m, x, s: (m.b(m.a(x, s)[0])[0], None), "gives a another state than"),
        (lambda m, x, s: m.a(x) if s is None else m.b(x, s), "gives b another state"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_streams_of_states_that_are_not_handed_on(call: Any, what: str) -> None:
    wanted = "stream: expected a call of Chain that is a chain of layers, got one that "
    with pytest.raises(TypeError, match=wanted + what):
        Chain(call, stateful=True).stream()


class Pooled(nn.Model):
    """A chain with a layer that does not run step by step."""

    def __init__(self) -> None:
        self.pool = nn.Pool("mean")

    def __call__(self, x: Any) -> Any:
        return self.pool(x)


class Both(nn.Model):
    """A chain with a layer of two directions."""

    def __init__(self) -> None:
        self.rnn = nn.GRU(3, 4, bidirectional=True, rng=0)

    def __call__(self, x: Any) -> Any:
        return self.rnn(x)[0]


def test_streams_of_models_that_need_more() -> None:
    for model in (
        nn.Attention("dot"),
        nn.TimeDistributed(nn.Linear(3, 2)),
        nn.Encoder(None, nn.GRU(3, 4)),
    ):
        name = type(model).__name__
        with pytest.raises(TypeError, match=f"stream: expected a call of {name} that is a chain"):
            model.stream()
    with pytest.raises(TypeError, match=r"stream: expected a call of Net that is a chain of lay"):
        nn.Sequential(Net()).stream()
    with pytest.raises(TypeError, match=r"stream: expected layers that need one step .* a Pool"):
        Pooled().stream()
    with pytest.raises(ValueError, match=r"stream: expected a layer of one direction"):
        Both().stream()


def test_outputs_of_a_call() -> None:
    class Constant(nn.Model):
        def __call__(self, x: Any) -> Any:
            return np.ones(3)

    class State(nn.Model):
        stateful = True

        def __call__(self, x: Any, state: Any = None) -> Any:
            return x * 2

    with pytest.raises(
        TypeError, match="Constant: expected an output that depends on parameters or inputs"
    ):
        Constant().vjp(data())
    with pytest.raises(
        TypeError, match=r"State: expected \(y, state\) of a call with stateful = True"
    ):
        State().vjp(data())


# -- training --------------------------------------------------------------------------------------


class Tagger(nn.Model):
    def __init__(self) -> None:
        self.rnn = nn.LSTM(3, 12, batch_first=True, bidirectional=True, rng=0)
        self.drop = nn.Dropout(0.1, rng=0)
        self.head = nn.Linear(24, 1, rng=1)

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        y, _ = self.rnn(x, lengths=lengths)
        return self.head(self.drop(y))


def series() -> Any:
    r = np.random.default_rng(2)
    x = r.standard_normal((96, 6, 3)).astype(np.float32)
    return x, x.sum(2, keepdims=True).cumsum(1) / 4, r.integers(1, 7, 96)


def test_the_trainer() -> None:
    x, target, lengths = series()
    model = Tagger()
    trainer = ost.Trainer(
        model, ost.losses.MSE(), ost.optim.Adam(1e-2), clip_norm=1.0, memory_limit="least"
    )
    history = trainer.fit((x, target, lengths), epochs=20, progress=False)
    assert history.rows[-1]["loss"] < 0.2 * history.rows[0]["loss"]
    assert trainer.evaluate((x, target, lengths))["loss"] < 0.2 * history.rows[0]["loss"]
    assert trainer.predict(x, lengths=lengths).shape == target.shape
    plain = nn.Sequential(
        copy.deepcopy(model.rnn), copy.deepcopy(model.drop), copy.deepcopy(model.head)
    )
    assert np.array_equal(model(x, lengths=lengths), plain(x, lengths=lengths)[0])


def test_the_trainer_gives_the_bits_of_a_sequential() -> None:
    x, target, lengths = series()
    results = []
    for kind in ("model", "sequential"):
        model: Any = Tagger()
        if kind == "sequential":
            model = nn.Sequential(
                **{n: copy.deepcopy(layer) for n, layer in model._children().items()}
            )
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
        trainer.fit((x, target, lengths), steps=5, seed=3, progress=False)
        results.append(model.state_dict())
    assert all(np.array_equal(results[0][n], results[1][n]) for n in results[0])


def test_one_output_a_sequence() -> None:
    class Classifier(nn.Model):
        def __init__(self) -> None:
            self.rnn = nn.GRU(3, 8, batch_first=True, rng=0)
            self.pool = nn.Pool("attention", 8, batch_first=True, rng=1)
            self.head = nn.Linear(8, 2, rng=2)

        def __call__(self, x: Any, lengths: Any = None) -> Any:
            return self.head(self.pool(self.rnn(x, lengths=lengths)[0], lengths=lengths))

    class Last(nn.Model):
        reduces_time = True

        def __init__(self) -> None:
            self.rnn = nn.GRU(3, 8, batch_first=True, rng=0)
            self.head = nn.Linear(8, 2, rng=2)

        def __call__(self, x: Any, lengths: Any = None) -> Any:
            return self.head(self.rnn(x, lengths=lengths)[1][0])

    x, _, lengths = series()
    target = (x[:, 0, 0] > 0).astype(np.int64)
    for kind in (Classifier, Last):
        assert kind().reduces_time
        trainer = ost.Trainer(
            kind(), ost.losses.CrossEntropy(), ost.optim.Adam(3e-2), metrics=["accuracy"]
        )
        trainer.fit((x, target, lengths), epochs=15, progress=False)
        assert trainer.evaluate((x, target, lengths))["accuracy"] > 0.9
        assert trainer.predict(x, lengths=lengths).shape == (96, 2)


def test_a_model_with_a_state() -> None:
    class Cell(nn.Model):
        stateful = takes_lengths = True

        def __init__(self) -> None:
            self.rnn = nn.LSTM(3, 8, batch_first=True, dtype=np.float64, rng=0)
            self.head = nn.Linear(8, 1, dtype=np.float64, rng=1)

        def __call__(self, x: Any, state: Any = None, **times: Any) -> Any:
            y, state = self.rnn(x, state, **times)
            return self.head(y), state

    x, target, lengths = series()
    x, target, model = x.astype(np.float64), target.astype(np.float64), Cell()
    (y, (h, c)), pullback = model.vjp(x[:2])
    dx, dstate = pullback(np.ones_like(y), (np.ones_like(h), None))
    assert dx.shape == x[:2].shape
    assert dstate is None
    want = parameter_gradient(
        lambda: sum(a.sum() for a in (model(x[:2])[0], model(x[:2])[1][0])), model, "head.bias"
    )
    np.testing.assert_allclose(model.grads["head.bias"], want, atol=1e-7)
    first, state = model(x[:2, :3])
    assert np.array_equal(np.concatenate([first, model(x[:2, 3:], state)[0]], 1), model(x[:2])[0])
    _, pullback = model.vjp(x[:2], (h, c))
    dx, (dh, _) = pullback(None, (h, None))
    assert dh.shape == h.shape
    trainer = ost.Trainer(model, ost.losses.MSE(), tbptt=(2, 4))
    history = trainer.fit((x, target, lengths), epochs=2, progress=False)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


def test_lengths_that_a_call_would_not_see() -> None:
    class Deaf(nn.Model):
        def __init__(self) -> None:
            self.rnn = nn.GRU(3, 8, batch_first=True, bidirectional=True, rng=0)
            self.head = nn.Linear(16, 1, rng=2)

        def __call__(self, x: Any) -> Any:
            return self.head(self.rnn(x)[0])

    x, target, lengths = series()
    trainer = ost.Trainer(Deaf(), ost.losses.MSE())
    trainer.fit((x, target), steps=1, progress=False)
    with pytest.raises(
        ValueError, match="lengths: expected None for a Deaf, whose __call__ takes no lengths"
    ):
        trainer.fit((x, target, lengths), steps=1, progress=False)


@pytest.mark.parametrize("name", ["lengths", "mask", "resets"])
def test_steps_that_the_call_of_a_model_with_a_state_would_not_see(name: str) -> None:
    class Deaf(nn.Model):
        stateful = True

        def __init__(self) -> None:
            self.rnn = nn.GRU(3, 1, rng=0)

        def __call__(self, x: Any, state: Any = None) -> Any:
            return self.rnn(x, state)

    x, target = (np.ones((5, 2, n), np.float32) for n in (3, 1))
    given = {"lengths": [5, 3], "mask": np.ones((5, 2), bool), "resets": np.ones((5, 2), bool)}
    batches = [(x, target, {name: np.asarray(given[name])})]
    model = Deaf()
    trainer, before = ost.Trainer(model, ost.losses.MSE()), model.flat.copy()
    trainer.evaluate([(x, target)])
    message = f"{name}: expected None for a Deaf, whose __call__ takes no {name}"
    for run in (trainer.evaluate, lambda b: trainer.fit(b, steps=1, progress=False)):
        with pytest.raises(ValueError, match=message):
            run(batches)
    assert np.array_equal(model.flat, before)


def test_a_checkpoint_of_a_model(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 7, (12, 16))
    batches = [(ids[:-1], ids[1:])] * 4
    results = []
    for stop in (4, 2):
        model = Words()
        trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(1e-2))
        path = tmp_path / f"run{stop}"
        trainer.fit(batches, steps=stop, checkpoint=path, progress=False)
        trainer.fit(batches, steps=4, checkpoint=path, resume=True, progress=False)
        results.append(model.flat.copy())
    assert np.array_equal(*results)


def test_a_summary() -> None:
    lines = Net().summary().splitlines()
    assert lines[0].split() == ["name", "layer", "parameters", "trained"]
    assert lines[1].split() == ["scale", "Parameter[4]", "4", "4"]
    assert [line.split()[0] for line in lines[3:-1]] == [
        "rnn",
        "blocks.0",
        "blocks.1",
        "heads.a",
        "heads.b.0",
    ]
    total = Net().count_parameters()
    assert (
        lines[-1]
        == f"{total} parameters in {total * 8 / 1000:.1f} kB of float64, {total} of them trained"
    )
    assert nn.Linear(2, 1).summary().splitlines()[1].split() == ["-", "Linear(2,", "1)", "3", "3"]


# -- on a device -----------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    native_for_tests()
    return fake_cupy.stand_in(monkeypatch)


def test_models_on_a_device(gpu: Any) -> None:
    model, x = Net(dtype=np.float32), data(np.float32)
    there = copy.deepcopy(model).to("cuda")
    assert there.device == gpu.name == there.rnn.device == there.blocks[0].device
    y, pullback = model.vjp(x, lengths=[5, 3])
    dx = pullback(y)
    y2, pullback = there.vjp(gpu.put(x), lengths=[5, 3])
    dx2 = pullback(y2)
    np.testing.assert_allclose(y2.get(), y, atol=2e-5)
    np.testing.assert_allclose(dx2.get(), dx, atol=2e-5)
    for name in NAMES:
        np.testing.assert_allclose(
            there.grads[name].get(), model.grads[name], atol=1e-4, err_msg=name
        )
    ost.optim.Adam(1e-2).step(there)
    back = there.to("cpu")
    assert back.device == "cpu"
    assert back(x).shape == y.shape
    with pytest.raises(ValueError, match="device: expected the whole model to be moved"):
        model.rnn.to("cuda")


def test_tied_weights_on_a_device(gpu: Any) -> None:
    ids = np.array([[1, 2], [6, 2], [0, 1]])
    model = Words(dtype=np.float32)
    there = copy.deepcopy(model).to("cuda")
    loss = ost.losses.CrossEntropy()
    for m, put in ((model, np.asarray), (there, gpu.put)):
        _, pullback = ost.vjp(lambda x, m=m, put=put: loss(m(x), put(ids))[0], put(ids))
        pullback()
    np.testing.assert_allclose(
        there.grads["embed.weight"].get(), model.grads["embed.weight"], atol=1e-5
    )


# -- damaged files ---------------------------------------------------------------------------------


GRU_OF_FILE = {"kind": "layer", "class": "GRU", "args": [2, 2], "options": {}}
DAMAGED: dict[str, tuple[Any, str]] = {
    "no mapping": ([1], "path: expected a model that can be read"),
    "no version": ({"version": None}, "path: expected a model of version 1, got None"),
    "options": ({"options": [1]}, r"path: expected a dict as 'options' .* got \[1\]"),
    "args": ({"args": 3}, "path: expected a list as 'args' of a description, got 3"),
    "no args": ({"args": None}, "path: expected a list as 'args' of a description, got None"),
    "class": ({"class": ["GRU"]}, r"path: expected a str as 'class' .* got \['GRU'\]"),
    "inner class": (
        {"class": "Residual", "args": [{**GRU_OF_FILE, "class": ["GRU"]}]},
        r"path: expected a str as 'class' .* got \['GRU'\]",
    ),
    "inner args": (
        {"class": "Residual", "args": [{**GRU_OF_FILE, "args": {}}]},
        "path: expected a list as 'args'",
    ),
    "frozen": ({"frozen": [3]}, r"path: expected names in 'frozen' .* got \[3\]"),
    "kind": ({"args": [{"kind": ["list"]}]}, "path: expected one of layer, list"),
    "list": ({"args": [{"kind": "list"}]}, "path: expected a list as 'values'"),
    "list of text": (
        {"args": [{"kind": "list", "values": "ab", "tuple": True}]},
        "path: expected a list as 'values' of a description, got 'ab'",
    ),
    "tuple": (
        {"args": [{"kind": "list", "values": []}]},
        "path: expected a bool as 'tuple' of a description, got None",
    ),
    "dict": ({"args": [{"kind": "dict", "values": []}]}, "path: expected a dict as 'values'"),
    "dtype": (
        {"options": {"dtype": {"kind": "dtype", "name": "nope"}}},
        "path: expected the name of a dtype, got 'nope'",
    ),
    "dtype of a number": (
        {"options": {"dtype": {"kind": "dtype", "name": 4}}},
        "path: expected a str as 'name' of a description, got 4",
    ),
    "nested": ({"class": "Residual", "args": ["NESTED"]}, "path: expected"),
    "large": ({"args": [5, 10**9]}, "weight: expected at most 6, .* of the file, got 5000000000"),
    "larger": ({"args": [5, 10**40]}, "out_features: expected a whole number below"),
    "largest": ({"args": [5, 10**400]}, "expected"),
    "GRU": ({"class": "GRU", "args": [1, 10**5]}, "weight_ih_l0: expected at most 6"),
    "num_layers": ({"class": "GRU", "args": [1, 1, 10**9]}, "num_layers: expected at most 6"),
    "Embedding": ({"class": "Embedding", "args": [10**9, 5]}, "weight: expected at most 6"),
    "Conv1d": ({"class": "Conv1d", "args": [5, 5, 10**9]}, "weight: expected at most 6"),
    "LayerNorm": ({"class": "LayerNorm", "args": [10**11]}, "weight: expected at most 6"),
    "Attention": (
        {"class": "Attention", "args": ["additive", 1, 1, 10**11]},
        "weight: expected at most 6",
    ),
    "Pool": ({"class": "Pool", "args": ["attention", 10**11]}, "expected at most 6"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_told(name: str, tmp_path: Path) -> None:
    change, message = DAMAGED[name]
    made = {"version": 1, "frozen": [], "class": "Linear", "args": [2, 2], "options": {}}
    made = {**made, **change} if isinstance(change, dict) else change
    path = tmp_path / "a"
    before, after = json.dumps({**GRU_OF_FILE, "class": "Residual", "args": [0]}).split("0")
    nested = before * 3000 + json.dumps(GRU_OF_FILE) + after * 3000
    text = json.dumps(made).replace('"NESTED"', nested)
    state = nn.Linear(2, 2, rng=0).state_dict()
    ost.safetensors.save(path, state, {"ostinato.model": text})
    with pytest.raises(ValueError, match=message):
        ost.load(path)
    nn.LayerNorm(100)  # no limit is left behind


def test_names_of_what_is_frozen_are_no_patterns(tmp_path: Path) -> None:
    layers = {"a[0]": nn.Linear(2, 2, rng=0), "a0": nn.Linear(2, 2, rng=1)}
    model = nn.Sequential(**layers)
    for entry in list(model._block.entries):
        if entry.startswith("a["):
            model.freeze(entry.replace("[", "[[]"))
    model.save(tmp_path / "a")
    made = ost.load(tmp_path / "a")
    trainable = {n: e.trainable for n, e in made._block.entries.items()}
    assert trainable == {
        "a[0].weight": False,
        "a[0].bias": False,
        "a0.weight": True,
        "a0.bias": True,
    }
