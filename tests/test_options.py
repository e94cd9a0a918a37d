"""Options of layers stay as they were given, and files of layers with others are refused."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import nn

LAYERS: dict[str, Any] = {
    "rnn": lambda: nn.RNN(3, 4, 2, rng=0),
    "lstm": lambda: nn.LSTM(3, 4, 2, rng=0),
    "gru": lambda: nn.GRU(3, 4, 2, rng=0),
    "linear": lambda: nn.Linear(3, 4, rng=0),
    "embedding": lambda: nn.Embedding(3, 4, rng=0),
    "dropout": lambda: nn.Dropout(0.5),
    "activation": lambda: nn.Activation("tanh"),
    "norm": lambda: nn.LayerNorm(4),
    "conv": lambda: nn.Conv1d(3, 4, 3, rng=0),
    "pool": lambda: nn.Pool("mean"),
    "softmax": lambda: nn.Softmax(),
    "attention": lambda: nn.Attention("additive", 4, 4, 4, rng=0),
    "clockwork": lambda: nn.ClockworkRNN(3, 8, rng=0),
    "tree": lambda: nn.TreeLSTM(3, 4, rng=0),
    "residual": lambda: nn.Residual(nn.GRU(4, 4, rng=0)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_option_stays_as_it_was_given(name: str) -> None:
    made = LAYERS[name]()
    given = inspect.signature(type(made).__init__).parameters
    held = [n for n in given if n in vars(made) and n not in made._settable]
    assert held or name == "dropout"
    for layer in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        before = repr(layer)
        for option in held:
            with pytest.raises(AttributeError, match=f"^{option}: expected no change once"):
                setattr(layer, option, getattr(layer, option))
            with pytest.raises(AttributeError, match=f"^{option}: expected to stay"):
                delattr(layer, option)
        assert repr(layer) == before


def test_an_option_of_a_derived_layer_stays_and_its_own_attributes_change() -> None:
    class Named(nn.GRU):
        def __init__(self, size: int, label: str) -> None:
            super().__init__(size, size)
            self.label = label
            with pytest.raises(AttributeError, match=r"^clip: expected no change"):
                self.clip = 1.0

    layer = Named(3, "one")
    layer.label = "two"
    with pytest.raises(AttributeError, match=r"^reset_after: expected no change"):
        layer.reset_after = False


def test_a_rate_of_dropout_may_change_and_is_saved(tmp_path: Path) -> None:
    class Net(nn.Model):
        def __init__(self) -> None:
            self.rnn = nn.LSTM(3, 4, 2, dropout=0.1, rng=0)
            self.drop = nn.Dropout(0.5, rng=0)

    net = Net()
    net.rnn.dropout, net.drop.rate, net.rnn.precision = 0.25, 0.0, "bfloat16"
    for layer, name in ((net.rnn, "dropout"), (net.drop, "rate")):
        with pytest.raises(ValueError, match=rf"^{name}: expected a number in \[0, 1\)"):
            setattr(layer, name, 1.0)
    x = np.ones((2, 3), np.float32)
    assert np.array_equal(net.drop.vjp(x)[0], x)
    net.save(tmp_path / "net")
    again = ost.load(tmp_path / "net", Net)
    assert (again.rnn.dropout, again.drop.rate) == (0.25, 0.0)
    assert again.rnn.precision == "bfloat16"


def test_a_pullback_drops_what_its_pass_dropped() -> None:
    drop, x = nn.Dropout(0.5, rng=0), np.ones((50, 4), np.float32)
    y, pullback = drop.vjp(x)
    drop.rate = 0.0
    assert np.array_equal(pullback(x), y)


OTHERS: dict[str, tuple[Any, Any, str, str]] = {
    "nonlinearity": (nn.RNN(3, 4, rng=0), nn.RNN(3, 4, nonlinearity="relu"), "'relu'", "'tanh'"),
    "activation": (
        nn.LSTM(3, 4, rng=0),
        nn.LSTM(3, 4, activation=("elu", 0.5)),
        r"\('elu', 0.5\)",
        "'tanh'",
    ),
    "recurrent_activation": (
        nn.GRU(3, 4, recurrent_activation=("hard_sigmoid", 0.2, 0.5), rng=0),
        nn.GRU(3, 4),
        "'sigmoid'",
        r"\('hard_sigmoid', 0.2, 0.5\)",
    ),
    "clip": (nn.GRU(3, 4, clip=2, rng=0), nn.GRU(3, 4), "None", "2.0"),
    "coupled_gates": (
        nn.LSTM(3, 4, coupled_gates=True, rng=0),
        nn.LSTM(3, 4),
        "False",
        "True",
    ),
    "reset_after": (nn.GRU(3, 4, reset_after=False, rng=0), nn.GRU(3, 4), "True", "False"),
    "stride": (nn.Conv1d(3, 4, 3, stride=2, rng=0), nn.Conv1d(3, 4, 3), "1", "2"),
    "eps": (nn.LayerNorm(3, eps=1e-3), nn.LayerNorm(3), "1e-05", "0.001"),
}


@pytest.mark.parametrize("option", OTHERS)
def test_parameters_of_a_layer_that_computes_something_else_are_refused(
    option: str, tmp_path: Path
) -> None:
    saved, other, own, theirs = OTHERS[option]
    saved.save(tmp_path / "layer")
    copy.deepcopy(saved).load(tmp_path / "layer")
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"^{option}: expected .* with {own}, got .* {theirs} in"):
        other.load(tmp_path / "layer")
    assert all(np.array_equal(a, before[n]) for n, a in other.state_dict().items())


def test_a_layer_within_a_model_is_named(tmp_path: Path) -> None:
    def model(**options: Any) -> nn.Sequential:
        return nn.Sequential(rnn=nn.GRU(3, 4, **options, rng=0), head=nn.Linear(4, 2, rng=0))

    class Net(nn.Model):
        clip: float | None = None

        def __init__(self) -> None:
            self.rnn = nn.GRU(3, 4, clip=type(self).clip, rng=0)

    model(clip=1.0).save(tmp_path / "chain")
    with pytest.raises(ValueError, match=r"^rnn\.clip: expected .* None, got .* 1\.0"):
        model().load(tmp_path / "chain")
    Net().save(tmp_path / "net")
    ost.load(tmp_path / "net", Net)
    Net.clip = 3.0  # the class has changed since
    with pytest.raises(ValueError, match=r"^rnn\.clip: expected .* 3\.0, got .* None"):
        ost.load(tmp_path / "net", Net)
    ost.safetensors.save(tmp_path / "plain", Net().state_dict())
    Net().load(tmp_path / "plain")  # a file that says nothing of it


@pytest.mark.parametrize("text", ["{", "[1]", '{"": 3}'])
def test_a_damaged_list_of_options_is_refused(text: str, tmp_path: Path) -> None:
    layer = nn.GRU(3, 4, rng=0)
    layer.save(tmp_path / "layer")
    arrays, metadata = ost.safetensors.load(tmp_path / "layer")
    ost.safetensors.save(tmp_path / "bad", arrays, {**metadata, "ostinato.functions": text})
    with pytest.raises(ValueError, match=r"^path: expected options of layers"):
        layer.load(tmp_path / "bad")


def test_a_run_continues_with_the_functions_that_it_began_with(tmp_path: Path) -> None:
    x = np.zeros((8, 5, 1), np.float32)

    def fit(epochs: int, *, resume: bool = True, **options: Any) -> None:
        model = nn.GRU(1, 1, batch_first=True, rng=0, **options)
        trainer = ost.Trainer(model, ost.losses.MSE())
        checkpoint = tmp_path / "run"
        trainer.fit((x, x), epochs=epochs, checkpoint=checkpoint, resume=resume, progress=False)

    fit(1, resume=False)
    with pytest.raises(ValueError, match=r"clip: expected parameters .* 1\.0, got .* None"):
        fit(2, clip=1.0)
    fit(2)


def test_explain_speaks_of_the_functions_of_the_layer() -> None:
    text = str(ost.explain(nn.GRU(2, 3, clip=1.0, rng=0), (4, 2, 2)))
    assert "functions, clip or coupled gates of a layer's own" in text
    assert "a call chooses" not in text


def test_a_class_of_a_user_has_attributes_of_its_own() -> None:
    """An argument of a constructor that is no attribute of the layer is free to be one."""

    class Mine(ost.nn.LSTM):
        def __init__(self) -> None:
            super().__init__(2, 3, rng=0)
            self.rng = 0
            self.rng = 1

    assert Mine().rng == 1
    with pytest.raises(AttributeError, match="hidden_size: expected no change"):
        Mine().hidden_size = 4
