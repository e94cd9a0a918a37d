"""Files that describe a model wrongly: each is refused in words of the project."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _check, safetensors
from ostinato.nn import _architecture
from ostinato.nn._description import KEY


def layer(name: str, *args: Any, **options: Any) -> dict[str, Any]:
    return {"kind": "layer", "class": name, "args": list(args), "options": options}


def several(*values: Any) -> dict[str, Any]:
    return {"kind": "list", "tuple": False, "values": list(values)}


def table(**values: Any) -> dict[str, Any]:
    return {"kind": "dict", "values": values}


GRU = layer("GRU", 3, 4)
RIGHT = [
    layer("Linear", 3, 2),
    layer("Embedding", 5, 3, padding_index=0),
    layer("Dropout", 0.5),
    layer("Activation", "tanh"),
    layer("RNN", 3, 4, nonlinearity="relu"),
    layer("LSTM", 3, 4, clip=2.0, bidirectional=True),
    layer("GRU", 3, 4, reset_after=False),
    layer("Sequential", GRU, layer("Linear", 4, 2)),
    layer("Attention", "additive", 3, 3, 4),
    layer("ClockworkRNN", 3, 4, several(1, 2)),
    layer("Concat", layer("Linear", 3, 2), layer("Linear", 3, 2)),
    layer("Residual", layer("Linear", 3, 3)),
    layer("TimeDistributed", layer("Linear", 3, 3)),
    layer("Conv1d", 3, 4, 3, padding="causal"),
    layer("Hierarchical", layer("Sequential", GRU, layer("Pool", "mean")), layer("GRU", 4, 4)),
    layer("LayerNorm", 3),
    layer("Pool", "mean"),
    layer("Softmax"),
    layer("TreeLSTM", 3, 4),
    layer("Encoder", layer("Embedding", 5, 3), GRU),
    layer("Decoder", layer("Embedding", 9, 4), layer("GRU", 4, 8), layer("Linear", 8, 9)),
    layer("LastState", GRU),
    layer("Reversed", GRU),
    layer(
        "Graph",
        several(
            table(op="Recurrent", layer="rnn", inputs=several("x"), outputs=several("all")),
            table(
                op="Squeeze",
                inputs=several("all"),
                outputs=several("h"),
                at=table(axes=several(1)),
            ),
            table(op="Add", inputs=several("h", "one"), outputs=several("y")),
        ),
        table(rnn=GRU),
        numbers=table(one=table(dtype="float32", shape=several(1), values=several(1.0))),
        parameters=table(p=several(2)),
        inputs=several(table(name="x", dtype="float32", shape=several(None, None, 3))),
        outputs=several("y"),
    ),
]
ABSTRACT = {"Layer", "Model", "Recurrent"}  # which make nothing by themselves
WRONG = [None, "x", -1, 1.5, True, 10**30, several(), table(a=1), layer("Dropout", 0.5)]


KINDS = {**_architecture._known_classes(), **_architecture._imported_classes()}


def load(path: Path, described: dict[str, Any]) -> Any:
    made = {"version": 1, "frozen": [], "set": {}, **described}
    safetensors.save(path, {"w": np.ones(1000, np.float32)}, {KEY: json.dumps(made)})
    return ost.load(path)


def inner_places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each part of a description."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield (*way, key)
        if isinstance(part, (dict, list)):
            yield from inner_places(part, (*way, key))


def changed(right: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield descriptions with wrong arguments: names, counts, types and values, at any depth."""
    options = inspect.signature(KINDS[right["class"]]).parameters
    for wrong in WRONG:
        yield {**right, "args": [*right["args"], wrong]}
    for k, name in enumerate((*options, "nonsense")):
        for wrong in (WRONG[k % 9], WRONG[(k + 4) % 9]):
            yield {**right, "options": {**right["options"], name: wrong}}
    for k, way in enumerate(inner_places(right)):
        for wrong in (WRONG[k % 9], WRONG[(k + 2) % 9], WRONG[(k + 5) % 9]):
            made = copy.deepcopy(right)
            into: Any = made
            for key in way[:-1]:
                into = into[key]
            into[way[-1]] = wrong
            yield made
    yield {**right, "args": right["args"][:-1]}
    yield {**right, "args": [*right["args"], *[1] * 5]}


def test_all_layers_are_here() -> None:
    assert {r["class"] for r in RIGHT} | ABSTRACT == set(KINDS)


@pytest.mark.parametrize("right", RIGHT, ids=lambda r: r["class"])
def test_arguments_that_a_layer_does_not_take(right: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mapping: missing"):
        load(tmp_path / "model.safetensors", right)  # it is made; the file has other parameters
    told = []
    for described in changed(right):
        try:
            with warnings.catch_warnings(), _check.made_from_file(1000):
                warnings.simplefilter("ignore")
                _architecture._made(described, KINDS)
        except (TypeError, ValueError) as e:
            told.append(str(e))
    assert len(told) > 10
    assert [text for text in told if "expected" not in text or len(text) > 2000] == []


WRITTEN: dict[str, dict[str, Any]] = {
    "bool of NumPy": {"bias": np.bool_(False)},
    "bool in an array": {"bias": np.array(False)},
    "number in an array": {"num_layers": np.array(2)},
    "dtype of Python": {"dtype": float},
    "rate in an array": {"num_layers": 2, "dropout": np.array(0.25)},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_arguments_that_stand_for_plain_values_are_written(kind: str, tmp_path: Path) -> None:
    made = ost.nn.GRU(np.array(3), 4, **WRITTEN[kind], rng=0)  # type: ignore[arg-type]
    made.save(tmp_path / "gru.safetensors")
    again = ost.load(tmp_path / "gru.safetensors")
    assert (repr(again), again.dtype) == (repr(made), made.dtype)
    assert np.array_equal(again.parameters()["weight_hh_l0"], made.parameters()["weight_hh_l0"])


class Holder(ost.nn.Model):
    def __init__(self, inner: ost.nn.Layer) -> None:
        self.inner = inner

    def __call__(self, x: Any) -> Any:
        y = self.inner(x)
        return y[0] if isinstance(y, tuple) else y


def row(*more: ost.nn.Layer) -> ost.nn.Sequential:
    return ost.nn.Sequential(ost.nn.Linear(3, 3, rng=0), *more)


CHANGED: dict[str, tuple[ost.nn.Layer, ost.nn.Layer, str]] = {
    "another": (
        ost.nn.Activation("tanh"),
        ost.nn.Softmax(),
        r"path: expected a layer Activation at 'inner', .* got 'Softmax'",
    ),
    "inside": (
        row(ost.nn.Activation("tanh")),
        row(ost.nn.Softmax()),
        r"path: expected a layer Activation at 'inner.1', .* got 'Softmax'",
    ),
    "one more": (
        row(),
        row(ost.nn.Softmax()),
        r"path: expected no layer at 'inner.1', .* got 'Softmax'",
    ),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_layers_changed_after_a_model_was_made_are_not_lost(kind: str, tmp_path: Path) -> None:
    path, (first, then, message) = tmp_path / "model.safetensors", CHANGED[kind]
    model = Holder(first)
    model.save(path)
    assert repr(ost.load(path, Holder)) == repr(model)
    model.inner = then
    model.save(path)
    with pytest.raises(ValueError, match=message):
        ost.load(path, Holder)
    again = Holder(copy.deepcopy(then))
    again.load(path)
    assert np.array_equal(again(np.ones((2, 3), np.float32)), model(np.ones((2, 3), np.float32)))


def test_classes_of_layers_that_are_none(tmp_path: Path) -> None:
    arrays, path = ost.nn.Linear(3, 2, rng=0).state_dict(), tmp_path / "model.safetensors"
    made = {"version": 1, "frozen": [], **layer("Linear", 3, 2)}
    for layers in ([], "Linear", 1):
        safetensors.save(path, arrays, {KEY: json.dumps({**made, "layers": layers})})
        with pytest.raises(ValueError, match="path: expected a dict as 'layers' of a description"):
            ost.load(path)
    safetensors.save(path, arrays, {KEY: json.dumps(made)})  # of an earlier version
    assert repr(ost.load(path)) == "Linear(3, 2)"
