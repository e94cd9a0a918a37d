"""Keras' files, of every version: written by hand, and by Keras where it is installed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close
from ostinato import nn
from ostinato.interop import LastState, _keras_file

h5py: Any = pytest.importorskip(
    "h5py", reason="h5py is not installed: pip install 'ostinato[keras]'"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import keras
    except ImportError:
        keras = None  # type: ignore[assignment]
needs_keras = pytest.mark.skipif(
    keras is None, reason="keras is not installed: pip install 'ostinato[bench-all]'"
)
D, H = 3, 4


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# -- an independent reference, in Keras' own layout ------------------------------------------------


def lstm(x: Any, kernel: Any, recurrent: Any, bias: Any = 0, s: Any = sigmoid) -> Any:
    h, c = np.zeros((2, len(x), len(recurrent)))
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, -1)
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, 1)


def gru(x: Any, kernel: Any, recurrent: Any, bias: Any, after: bool) -> Any:
    h, n = np.zeros((len(x), len(recurrent))), len(recurrent)
    out = []
    for t in range(x.shape[1]):
        own, other = (bias[0], bias[1]) if after else (bias, 0)
        zx, rx, hx = np.split(x[:, t] @ kernel + own, 3, -1)
        zh, rh, hh = np.split(h @ recurrent + other, 3, -1)
        z, r = sigmoid(zx + zh), sigmoid(rx + rh)
        inner = r * hh if after else (r * h) @ recurrent[:, 2 * n :]
        h = z * h + (1 - z) * np.tanh(hx + inner)
        out.append(h)
    return np.stack(out, 1)


def rnn(x: Any, kernel: Any, recurrent: Any, bias: Any) -> Any:
    h = np.zeros((len(x), len(recurrent)))
    out = []
    for t in range(x.shape[1]):
        h = np.maximum(x[:, t] @ kernel + h @ recurrent + bias, 0)
        out.append(h)
    return np.stack(out, 1)


# -- files written by hand -------------------------------------------------------------------------


def legacy(path: Path, layers: dict[str, Any], config: Any = None, version: str = "2.4.0") -> Path:
    """The form of Keras 1 and 2."""
    with h5py.File(path, "w") as f:
        group = f
        if config is not None:
            f.attrs["model_config"] = json.dumps(config)
            group = f.create_group("model_weights")
        if version:
            f.attrs["keras_version"] = version.encode()
        group.attrs["layer_names"] = [n.encode() for n in layers]
        for name, arrays in layers.items():
            own = group.create_group(name)
            names = [f"{name}/w{k}:0".encode() for k in range(len(arrays))]
            if isinstance(arrays, dict):
                names = [n.encode() for n in arrays]
                arrays = list(arrays.values())
            own.attrs["weight_names"] = names if names else np.zeros(0, "S1")
            for n, a in zip(names, arrays):
                own.create_dataset(n.decode(), data=a)
    return path


def sequential(*layers: tuple[str, dict[str, Any]], old: bool = False) -> Any:
    described = [{"class_name": kind, "config": config} for kind, config in layers]
    inner: Any = described if old else {"name": "sequential", "layers": described}
    return {"class_name": "Sequential", "config": inner}


KERNEL, RECURRENT = drawn(D, 4 * H, seed=1), drawn(H, 4 * H, seed=2)
X = drawn(2, 6, D, seed=9)


def test_an_lstm_of_keras_2(tmp_path: Path) -> None:
    bias = drawn(4 * H, seed=3)
    config = sequential(
        ("LSTM", {"name": "lstm_1", "units": H, "recurrent_activation": "sigmoid"}), old=True
    )
    path = legacy(tmp_path / "a.h5", {"lstm_1": [KERNEL, RECURRENT, bias]}, config)
    imported = ost.from_keras(path)
    want = lstm(X, KERNEL, RECURRENT, bias)
    assert_close(imported["lstm_1"](X)[0], want.astype(np.float32))
    assert_close(imported.model()(X)[0], want[:, -1].astype(np.float32))  # no return_sequences
    assert isinstance(imported.model(), LastState)
    assert "Keras 2.4.0: 1 layer" in imported.describe()


@pytest.mark.parametrize("shape", [(2, 3 * H), (6 * H,), (3 * H,)], ids=str)
def test_grus_by_the_shape_of_their_bias(tmp_path: Path, shape: Any) -> None:
    kernel, recurrent, bias = drawn(D, 3 * H, seed=1), drawn(H, 3 * H, seed=2), drawn(*shape)
    config = sequential(
        ("GRU", {"name": "g", "return_sequences": True, "recurrent_activation": "sigmoid"})
    )
    path = legacy(tmp_path / "a.h5", {"g": [kernel, recurrent, bias]}, config)
    layer: Any = ost.from_keras(path).layer
    if shape == (6 * H,):  # of CuDNNGRU
        kernel = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(kernel, 3)])
        recurrent = np.hstack([k.T for k in np.hsplit(recurrent, 3)])
    after = shape != (3 * H,)
    want = gru(X, kernel, recurrent, bias.reshape(2, -1) if after else bias, after)
    assert layer.reset_after == after
    assert_close(layer(X)[0], want.astype(np.float32))


def test_the_cudnn_layout_of_an_lstm(tmp_path: Path) -> None:
    bias = drawn(8 * H, seed=3)
    kernel = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(KERNEL, 4)])
    recurrent = np.hstack([k.T for k in np.hsplit(RECURRENT, 4)])
    want = lstm(X, kernel, recurrent, bias[: 4 * H] + bias[4 * H :]).astype(np.float32)
    config = sequential(("CuDNNLSTM", {"name": "c", "units": H, "return_sequences": True}))
    for given in (config, None):  # by its class, and by the shape of its bias
        path = legacy(tmp_path / "a.h5", {"c": [KERNEL, RECURRENT, bias]}, given, "2.1.3")
        assert_close(ost.from_keras(path)["c"](X)[0], want)  # type: ignore[operator]


def test_files_of_keras_1(tmp_path: Path) -> None:
    bias = drawn(4 * H, seed=3)
    gates = [np.split(a, 4, -1) for a in (KERNEL, RECURRENT, bias)]
    arrays = [gates[k][g] for g in (0, 2, 1, 3) for k in range(3)]  # i c f o
    layers = {"lstm": arrays, "dense": [drawn(H, 2), drawn(2)]}
    common = {"name": "lstm", "output_dim": H, "activation": "tanh", "return_sequences": True}
    dense = (
        "TimeDistributed",
        {
            "name": "dense",
            "layer": {"class_name": "Dense", "config": {"name": "d", "activation": "softmax"}},
        },
    )
    config = sequential(("LSTM", {**common, "inner_activation": "sigmoid"}), dense, old=True)
    model = ost.from_keras(legacy(tmp_path / "a.h5", layers, config, "1.2.2")).model()
    h = lstm(X, KERNEL, RECURRENT, bias)
    scores = np.exp(h @ layers["dense"][0] + layers["dense"][1])
    want = scores / scores.sum(-1, keepdims=True)
    assert_close(model(X)[0], want.astype(np.float32), scale=2)
    hard = sequential(("LSTM", {**common, "inner_activation": "hard_sigmoid"}), dense, old=True)
    imported = ost.from_keras(legacy(tmp_path / "a.h5", layers, hard, "1.2.2"))
    h = lstm(X, KERNEL, RECURRENT, bias, lambda a: np.clip(0.2 * a + 0.5, 0, 1))
    assert_close(imported["lstm"](X)[0], h.astype(np.float32))


def test_a_gru_of_keras_1(tmp_path: Path) -> None:
    kernel, recurrent, bias = drawn(D, 3 * H, seed=1), drawn(H, 3 * H, seed=2), drawn(3 * H)
    gates = [np.split(a, 3, -1) for a in (kernel, recurrent, bias)]
    path = legacy(
        tmp_path / "a.h5", {"g": [gates[k][g] for g in range(3) for k in range(3)]}, None, ""
    )
    layer = ost.from_keras(path, recurrent_activation="sigmoid").layer
    assert_close(layer(X)[0], gru(X, kernel, recurrent, bias, False).astype(np.float32))


def test_weights_alone(tmp_path: Path) -> None:
    bias = drawn(4 * H, seed=3)
    path = legacy(tmp_path / "a.h5", {"l": [KERNEL, RECURRENT, bias]}, None, "")
    with pytest.raises(ValueError, match=r"l: expected recurrent_activation=.*before 2\.3"):
        ost.from_keras(path)
    hard = ost.from_keras(path, recurrent_activation="hard_sigmoid").layer
    assert hard.recurrent_activation == ("hard_sigmoid", 0.2, 0.5)  # as in Keras 1 and 2
    imported = ost.from_keras(path, recurrent_activation="sigmoid")
    assert_close(imported.layer(X)[0], lstm(X, KERNEL, RECURRENT, bias).astype(np.float32))
    with pytest.raises(ValueError, match=r"weights alone do not say in which order"):
        imported.model()
    config = sequential(("LSTM", {"name": "l", "recurrent_activation": "sigmoid"}))
    for given in (config, json.dumps(config)):
        assert isinstance(ost.from_keras(path, config=given).model(), LastState)


def test_layers_that_are_left_out(tmp_path: Path) -> None:
    """Without a configuration a layer without weights is nothing; others may be skipped."""
    bias = drawn(4 * H, seed=3)
    arrays = {"input": [], "l": [KERNEL, RECURRENT, bias], "my_attention": [drawn(7, 1)]}
    path = legacy(tmp_path / "a.h5", arrays)
    with pytest.raises(ValueError, match=r"my_attention: expected a layer of Keras that is one"):
        ost.from_keras(path)
    imported = ost.from_keras(path, skip=["my_*"])
    assert list(imported) == ["l"]
    assert "my_attention" in imported.describe()
    config = sequential(
        ("LSTM", {"name": "l"}), ("MyAttention", {"name": "my_attention", "registered_name": "x"})
    )
    described = legacy(tmp_path / "b.h5", {n: a for n, a in arrays.items() if a}, config)
    imported = ost.from_keras(described, skip=["my_*"])
    with pytest.raises(ValueError, match=r"the layer 'my_attention' is left out"):
        imported.model()


def test_bidirectional_embedding_and_masks(tmp_path: Path) -> None:
    table = drawn(9, D)
    both = {
        "b/forward_lstm/kernel:0": KERNEL,
        "b/forward_lstm/recurrent_kernel:0": RECURRENT,
        "b/backward_lstm/kernel:0": KERNEL[::-1].copy(),
        "b/backward_lstm/recurrent_kernel:0": RECURRENT[::-1].copy(),
    }
    inner = {"class_name": "LSTM", "config": {"use_bias": False, "return_sequences": True}}
    config = sequential(
        ("Embedding", {"name": "e", "mask_zero": True}),
        ("Bidirectional", {"name": "b", "layer": inner, "merge_mode": "concat"}),
        ("GlobalMaxPooling1D", {"name": "m"}),
        ("Dense", {"name": "d", "use_bias": False, "activation": "tanh"}),
    )
    layers = {"e": [table], "b": both, "m": [], "d": [drawn(2 * H, 2)]}
    path = legacy(tmp_path / "a.h5", layers, config, "2.4.0")
    imported = ost.from_keras(path)
    assert "e masks steps" in imported.describe()
    ids = np.array([[1, 2, 3], [4, 8, 0]])
    x = table[ids]
    forward = lstm(x, KERNEL, RECURRENT)
    backward = lstm(x[:, ::-1], KERNEL[::-1], RECURRENT[::-1])[:, ::-1]
    h = np.concatenate([forward, backward], -1).max(1)
    want = np.tanh(h @ layers["d"][0])
    assert_close(imported.model()(ids)[0], want.astype(np.float32), scale=2)
    config["config"]["layers"][1]["config"]["merge_mode"] = "sum"
    with pytest.raises(ValueError, match=r"b: expected merge_mode 'concat', got 'sum'"):
        ost.from_keras(legacy(tmp_path / "a.h5", layers, config))


REFUSED: dict[str, tuple[tuple[str, dict[str, Any]], Any, str]] = {
    "a gate": (
        ("LSTM", {"recurrent_activation": "swish"}),
        [KERNEL, RECURRENT],
        r"x: expected recurrent_activation among tanh, .*, leaky_relu, got 'swish'",
    ),
    "an activation": (
        ("LSTM", {"activation": "selu"}),
        [KERNEL, RECURRENT],
        r"x: expected activation among tanh, .* got 'selu'",
    ),
    "a custom one": (
        ("SimpleRNN", {"activation": {"class_name": "Mine", "config": {}}}),
        [drawn(D, H), drawn(H, H)],
        r"got 'Mine'",
    ),
    "backwards": (
        ("GRU", {"go_backwards": True}),
        [drawn(D, 3 * H), drawn(H, 3 * H)],
        r"x: expected go_backwards only within Bidirectional",
    ),
    "a layer": (("ConvLSTM2D", {}), [KERNEL], r"x: expected a layer of Keras .* got a ConvLSTM2D"),
    "shapes": (("LSTM", {}), [KERNEL, RECURRENT[:, 1:]], r"x: expected the weights of a LSTM"),
    "the form": (
        ("GRU", {"reset_after": True}),
        [drawn(D, 3 * H), drawn(H, 3 * H), drawn(3 * H)],
        r"x: expected a bias that fits reset_after=True",
    ),
    "a dense activation": (
        ("Dense", {"activation": "swish"}),
        [drawn(3, 2), drawn(2)],
        r"x: expected the activation linear, relu, .* got 'swish'",
    ),
    "a dense shape": (("Dense", {}), [drawn(3)], r"x: expected the weights of a Dense"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    (kind, config), arrays, message = REFUSED[name]
    given = sequential((kind, {"name": "x", **config}))
    with pytest.raises(ValueError, match=message):
        ost.from_keras(legacy(tmp_path / "a.h5", {"x": arrays}, given))


def test_what_is_no_chain_is_named(tmp_path: Path) -> None:
    def node(*names: str) -> Any:
        return [[[n, 0, 0, {}] for n in names]]

    layers = [
        {"class_name": "InputLayer", "config": {"name": "i"}, "name": "i", "inbound_nodes": []},
        {"class_name": "Dense", "config": {"name": "a"}, "inbound_nodes": node("i")},
        {"class_name": "Dense", "config": {"name": "b"}, "inbound_nodes": node("i")},
    ]
    config = {"class_name": "Functional", "config": {"layers": layers}}
    arrays = {"i": [], "a": [drawn(3, 2), drawn(2)], "b": [drawn(3, 2), drawn(2)]}
    imported = ost.from_keras(legacy(tmp_path / "a.h5", arrays, config))
    assert list(imported) == ["a", "b"]
    with pytest.raises(ValueError, match=r"the layer 'b' reads another one than that before it"):
        imported.model()
    layers[2]["inbound_nodes"] = node("a")
    arrays["b"] = [drawn(2, 5), drawn(5)]
    model = ost.from_keras(legacy(tmp_path / "a.h5", arrays, config)).model()
    assert model(X)[0].shape == (2, 6, 5)


# -- what changes the numbers ----------------------------------------------------------------------


def archive(path: Path, config: Any, groups: dict[str, list[Any]]) -> Path:
    """The form of Keras 3: arrays by the paths of their groups."""
    weights = path.with_suffix(".weights.h5")
    with h5py.File(weights, "w") as f:
        for name, arrays in groups.items():
            group = f.create_group(f"layers/{name}")
            for k, a in enumerate(arrays):
                group[str(k)] = a
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        z.writestr("config.json", json.dumps(config))
        z.writestr("model.weights.h5", weights.read_bytes())
    return path


def tensor(name: str, output: int = 0) -> Any:
    """An argument of a call in Keras 3."""
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, output]}}


def functional(
    kind: str, options: dict[str, Any], read: int, outputs: Any, old: bool, **given: Any
) -> Any:
    """An input, a recurrent layer "r" and a Dense "d" that reads one of its outputs."""

    def entry(kind: str, config: dict[str, Any], *reads: Any) -> Any:
        nodes: Any = [{"args": [tensor(*r) for r in reads], "kwargs": given}] if reads else []
        if old:
            nodes = [[[r[0], 0, r[1], given] for r in reads]] if reads else []
        own = {"class_name": kind, "config": config, "name": config["name"]}
        return {**own, "inbound_nodes": nodes}

    layers = [
        entry("InputLayer", {"name": "i", "batch_shape": [None, None, D]}),
        entry(kind, {"name": "r", "return_state": True, **options}, ("i", 0)),
        entry("Dense", {"name": "d", "use_bias": False}, ("r", read)),
    ]
    inner = {"layers": layers, "input_layers": ["i", 0, 0], "output_layers": outputs}
    return {"class_name": "Functional", "config": inner}


@pytest.mark.parametrize("old", [False, True], ids=["keras", "h5"])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("read", [0, 1, 2])
def test_which_output_is_read(tmp_path: Path, read: int, sequences: bool, old: bool) -> None:
    """y, h or c of a layer with return_state."""
    dense = drawn(H, 2, seed=5)
    options = {"return_sequences": sequences, "recurrent_activation": "sigmoid"}
    config = functional("LSTM", options, read, ["d", 0, 0], old)
    if old:
        arrays = {"i": [], "r": [KERNEL, RECURRENT], "d": [dense]}
        path = legacy(tmp_path / "a.h5", arrays, config)
    else:
        groups = {"lstm/cell/vars": [KERNEL, RECURRENT], "dense/vars": [dense]}
        path = archive(tmp_path / "a.keras", config, groups)
    imported = ost.from_keras(path)
    if read == 2:
        with pytest.raises(ValueError, match=r"model: .* output 2 of the layer 'r' is read"):
            imported.model()
        return
    h = lstm(X, KERNEL, RECURRENT)
    want = (h if sequences and read == 0 else h[:, -1]) @ dense
    assert_close(imported.model()(X)[0], want.astype(np.float32), scale=2)


@pytest.mark.parametrize(
    ("outputs", "given", "message"),
    [
        ([["r", 0, 0], ["d", 0, 0]], {}, r"the model has several outputs, of r, d"),
        ({"a": ["r", 0, 0], "b": ["d", 0, 0]}, {}, r"the model has several outputs"),
        (["r", 0, 0], {}, r"the layer 'r' gives the output, and others follow it"),
        ([["d", 0, 0]], {"training": True}, r"the layer 'r' is called with training="),
        ([["d", 0, 0]], {"initial_state": [1.0]}, r"the layer 'r' is called with initial_state="),
        ([["d", 0, 0]], {"training": False, "mask": None}, ""),
        ({"a": ["d", 0, 0]}, {}, ""),
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["keras", "h5"])
def test_models_that_are_no_chain(
    tmp_path: Path, outputs: Any, given: Any, message: str, old: bool
) -> None:
    config = functional("SimpleRNN", {}, 0, outputs, old, **given)
    arrays = {"r": [drawn(D, H), drawn(H, H)], "d": [drawn(H, 2)]}
    imported = ost.from_keras(legacy(tmp_path / "a.h5", arrays, config))
    if message:
        with pytest.raises(ValueError, match=message):
            imported.model(verify=True)
        assert imported["r"]
    else:
        assert imported.model()(X)[0].shape == (2, 2)


OPTIONS: dict[str, tuple[str, dict[str, Any], list[Any], str]] = {
    "relu6": ("ReLU", {"max_value": 6.0}, [], r"expected max_value=None, got 6\.0"),
    "a slope": ("ReLU", {"negative_slope": 0.1}, [], r"expected negative_slope=0, got 0\.1"),
    "a threshold": ("ReLU", {"threshold": 0.1}, [], r"expected threshold=0, got 0\.1"),
    "the steps": ("Softmax", {"axis": 1}, [], r"expected axis=-1, the last one, got 1"),
    "rms": (
        "LayerNormalization",
        {"rms_scaling": True},
        [drawn(D), drawn(D)],
        r"expected rms_scaling=False, got True",
    ),
    "the axis": ("LayerNormalization", {"axis": [1]}, [drawn(6)] * 2, r"expected axis=-1"),
    "no scale": ("LayerNormalization", {"scale": False}, [drawn(D)] * 2, r"\(scale=False and"),
    "neither": ("LayerNormalization", {"scale": False, "center": False}, [], r"scale=False with"),
    "a mean kept": ("GlobalAveragePooling1D", {"keepdims": True}, [], r"expected keepdims=False"),
    "a maximum kept": ("GlobalMaxPooling1D", {"keepdims": True}, [], r"expected keepdims=False"),
    "channels": (
        "GlobalMaxPooling1D",
        {"data_format": "channels_first"},
        [],
        r"expected data_format='channels_last', got 'channels_first'",
    ),
    "channels of a convolution": (
        "Conv1D",
        {"data_format": "channels_first"},
        [drawn(3, 6, 2)],
        r"expected data_format='channels_last'",
    ),
    "groups": ("Conv1D", {"groups": [3]}, [drawn(3, 1, 6)], r"expected groups=1, got \[3\]"),
    "a bias less": ("Conv1D", {"use_bias": True}, [drawn(3, D, 2)], r"\(a kernel and a bias\)"),
    "scales": ("Dense", {"use_bias": True}, [drawn(D, 2)] + [drawn(2)] * 7, r"a kernel and a bias"),
    "a bias more": ("Dense", {"use_bias": False}, [drawn(D, 2), drawn(2)], r"a kernel alone"),
    "units": ("Dense", {"units": 3}, [drawn(D, 2)], r"expected the weights of units=3, got .*=2"),
    "two tables": ("Embedding", {}, [drawn(9, D), drawn(9)], r"\(one table\)"),
    "words": ("Embedding", {"input_dim": 8}, [drawn(9, D)], r"the weights of input_dim=8, got"),
    "time": (
        "LSTM",
        {"time_major": True},
        [KERNEL, RECURRENT],
        r"expected time_major=False, got True",
    ),
    "other units": ("LSTM", {"units": 5}, [KERNEL, RECURRENT], r"the weights of units=5, got"),
    "no bias": ("LSTM", {"use_bias": True}, [KERNEL, RECURRENT], r"of use_bias=True, got those"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_refused(tmp_path: Path, name: str) -> None:
    kind, options, arrays, message = OPTIONS[name]
    config = sequential(
        ("InputLayer", {"name": "i", "batch_shape": [None, 6, D]}), (kind, {"name": "x", **options})
    )
    with pytest.raises(ValueError, match=f"x: .*{message}"):
        ost.from_keras(legacy(tmp_path / "a.h5", {"x": arrays}, config))


def test_the_last_axis_by_its_number(tmp_path: Path) -> None:
    """2 of three axes, and 1 of two, after a final state or a pooling."""
    norm = {"name": "n", "axis": [2]}
    layers = [
        ("InputLayer", {"name": "i", "batch_shape": [None, 6, D]}),
        ("LayerNormalization", norm),
        ("Softmax", {"name": "s", "axis": 2}),
        ("SimpleRNN", {"name": "r"}),
        ("LayerNormalization", {**norm, "name": "m", "axis": 1}),
        ("Softmax", {"name": "t", "axis": 1}),
    ]
    arrays = {"n": [drawn(D)] * 2, "r": [drawn(D, H), drawn(H, H)], "m": [drawn(H)] * 2}
    path = legacy(tmp_path / "a.h5", arrays, sequential(*layers))
    assert ost.from_keras(path).model()(X)[0].shape == (2, H)
    layers.insert(1, ("ReLU", {"name": "p", "max_value": None, "negative_slope": 0.0}))
    layers[-1] = ("Softmax", {"name": "t", "axis": 2})
    with pytest.raises(ValueError, match=r"t: expected axis=-1, the last one, got 2"):
        ost.from_keras(legacy(tmp_path / "a.h5", arrays, sequential(*layers)))


UNLIKE: dict[str, tuple[str, dict[str, Any], str]] = {
    "alike": ("GRU", {}, ""),
    "an activation": ("GRU", {"activation": "relu"}, r"with the activation='tanh' of the forward"),
    "the form": ("GRU", {"reset_after": False}, r"with the reset_after=True of the forward one"),
    "a bias": ("GRU", {"use_bias": True}, r"with the use_bias=False of the forward one, got True"),
    "a class": ("LSTM", {}, r"a backward_layer that is a GRU, got 'LSTM'"),
    "forward": ("GRU", {"go_backwards": False}, r"a backward_layer with go_backwards=True"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_backward_layers_of_their_own(tmp_path: Path, name: str) -> None:
    kind, options, message = UNLIKE[name]
    own = {"use_bias": False, "reset_after": True}
    config = sequential(
        (
            "Bidirectional",
            {
                "name": "b",
                "layer": {"class_name": "GRU", "config": own},
                "backward_layer": {
                    "class_name": kind,
                    "config": {**own, "go_backwards": True, **options},
                },
            },
        )
    )
    arrays = [drawn(D, 3 * H, seed=1), drawn(H, 3 * H, seed=2)]
    groups = {f"bidirectional/{n}_layer/cell/vars": arrays for n in ("forward", "backward")}
    path = archive(tmp_path / "a.keras", config, groups)
    if message:
        with pytest.raises(ValueError, match=rf"b: expected .*{message}"):
            ost.from_keras(path)
        return
    assert ost.from_keras(path).model()(X)[0].shape == (2, 2 * H)
    del groups["bidirectional/backward_layer/cell/vars"]
    with pytest.raises(ValueError, match=r"weights of a Bidirectional, got those of one direction"):
        ost.from_keras(archive(path, config, groups))


@pytest.mark.parametrize(
    ("module", "registered", "own"),
    [
        ("keras.layers", None, False),
        ("ostinato.interop.keras", "ostinato>SimpleRNN", False),
        (None, "Custom>SimpleRNN", True),
        (None, "SimpleRNN", True),
        ("mine.layers", None, True),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_classes_of_ones_own(
    tmp_path: Path, module: Any, registered: Any, own: bool, wrapped: bool
) -> None:
    """A class that is called as one of Keras' may do something else."""
    entry: Any = {"module": module, "class_name": "SimpleRNN", "registered_name": registered}
    entry["config"] = {"name": "x"}
    groups: Any = {"simple_rnn/cell/vars": [drawn(D, H), drawn(H, H)]}
    if wrapped:
        both = {"name": "x", "layer": entry}
        entry = {"module": "keras.layers", "class_name": "Bidirectional", "config": both}
        inner = groups.popitem()[1]
        ends = ("forward", "backward")
        groups = {f"bidirectional/{n}_layer/cell/vars": inner for n in ends}
    config = {"class_name": "Sequential", "config": {"layers": [entry]}}
    path = archive(tmp_path / "a.keras", config, groups)
    if own:
        with pytest.raises(ValueError, match=r"x: .* got a class of your own, '.*SimpleRNN'"):
            ost.from_keras(path)
        assert not ost.from_keras(path, skip=["x"])
    else:
        assert isinstance(ost.from_keras(path).layer, nn.RNN)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [
        ("float32", ""),
        ("mixed_bfloat16", ""),
        ("bfloat16", "bfloat16"),
        ({"class_name": "DTypePolicy", "config": {"name": "bfloat16"}}, "bfloat16"),
        (
            {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": "f"}},
            "int8_from_f",
        ),
        ("float8_from_float32", "float8_from_float32"),
    ],
)
def test_dtypes_of_layers(tmp_path: Path, policy: Any, dtype: str) -> None:
    config = sequential(("Dense", {"name": "x", "dtype": policy}))
    a = np.zeros((D, 2), np.int8 if dtype else np.float32)
    path = archive(tmp_path / "a.keras", config, {"dense/vars": [a]})
    if not dtype:
        assert isinstance(ost.from_keras(path).layer, nn.Linear)
        return
    with pytest.raises(ValueError, match=rf"x: expected dtype float32, .* got '{dtype}'"):
        ost.from_keras(path)
    with pytest.raises(ValueError, match=r"an array '.*' of dtype 'int8' that is not stored"):
        ost.from_keras(path.with_suffix(".weights.h5"))


@pytest.mark.parametrize("old", [False, True], ids=["keras", "h5"])
def test_the_configuration_of_the_model_made_again(tmp_path: Path, old: bool) -> None:
    """Layers without names of their own are lstm_1 in one model and lstm_2 in the next."""

    def made(k: int, units: int = H) -> Any:
        options = {"units": units, "recurrent_activation": "sigmoid"}
        return sequential(("LSTM", {"name": f"lstm_{k}", **options}), ("Dense", {"name": f"d_{k}"}))

    path, dense = tmp_path / "a.weights.h5", drawn(H, 2)
    if old:
        legacy(path, {"lstm_1": [KERNEL, RECURRENT], "d_1": [dense]})
    else:
        with h5py.File(path, "w") as f:
            for name, group, arrays in (
                ("lstm_1", "lstm/cell", [KERNEL, RECURRENT]),
                ("d_1", "dense", [dense]),
            ):
                f.require_group(f"layers/{group.partition('/')[0]}/vars").attrs["name"] = name
                for k, a in enumerate(arrays):
                    f[f"layers/{group}/vars/{k}"] = a
    want = (lstm(X, KERNEL, RECURRENT)[:, -1] @ dense).astype(np.float32)
    for k in (1, 2):
        imported = ost.from_keras(path, config=made(k))
        assert list(imported) == [f"lstm_{k}", f"d_{k}"]
        assert_close(imported.model()(X)[0], want, scale=2)
    with pytest.raises(ValueError, match=r"lstm_2: expected the weights of units=5, got"):
        ost.from_keras(path, config=made(2, 5))
    short = made(2)
    short["config"]["layers"].pop()
    with pytest.raises(ValueError, match=r"expected"):
        ost.from_keras(path, config=short)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Dropout", {"rate": 0.5}),
        ("Activation", {"activation": "tanh"}),
        ("ReLU", {}),
        ("Softmax", {}),
        ("GlobalMaxPooling1D", {}),
    ],
)
def test_layers_without_weights_have_the_dtype_of_the_others(
    tmp_path: Path, kind: str, config: Any
) -> None:
    first, last = drawn(D, 4, seed=1).astype(np.float64), drawn(4, 2, seed=2).astype(np.float64)
    described = sequential(
        ("Dense", {"name": "a", "use_bias": False}),
        (kind, {"name": "b", **config}),
        ("Dense", {"name": "c", "use_bias": False}),
    )
    path = legacy(tmp_path / "a.h5", {"a": [first], "b": [], "c": [last]}, described)
    between = {
        "Dropout": lambda y: y,
        "Activation": np.tanh,
        "ReLU": lambda y: np.maximum(y, 0),
        "Softmax": lambda y: np.exp(y) / np.exp(y).sum(-1, keepdims=True),
        "GlobalMaxPooling1D": lambda y: y.max(1),
    }[kind]
    x = X.astype(np.float64)
    y, _ = ost.from_keras(path).model()(x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, between(x @ first) @ last, rtol=1e-10, atol=1e-12)


def test_arguments(tmp_path: Path) -> None:
    path = legacy(tmp_path / "a.h5", {"r": [drawn(D, H), drawn(H, H)]})
    with pytest.raises(TypeError, match=r"verify: expected True or False, got 'yes'"):
        ost.from_keras(path, verify="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"path: expected a path .*, got NoneType"):
        ost.to_keras(nn.LSTM(D, H), None)  # type: ignore[arg-type]


# -- writing ---------------------------------------------------------------------------------------

WRITTEN: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(D, H, num_layers=2, bidirectional=True, batch_first=True, rng=0),
    "gru": lambda: nn.GRU(D, H, batch_first=True, rng=0),
    "before": lambda: nn.GRU(D, H, reset_after=False, batch_first=True, rng=0),
    "functions": lambda: nn.Sequential(
        nn.LSTM(
            D,
            H,
            activation="softsign",
            recurrent_activation=("hard_sigmoid", 1 / 6, 0.5),
            batch_first=True,
            rng=0,
        ),
        nn.GRU(H, H, activation=("elu", 1.0), batch_first=True, rng=1),
        nn.RNN(H, H, nonlinearity="softplus", batch_first=True, rng=2),
    ),
    "rnn": lambda: nn.RNN(D, H, nonlinearity="relu", bias=False, batch_first=True, rng=0),
    "model": lambda: nn.Sequential(
        nn.Linear(D, 5, bias=False, rng=0),
        nn.LSTM(5, H, batch_first=True, rng=1),
        nn.LayerNorm(H),
        nn.Activation("tanh"),
        nn.GRU(H, H, bidirectional=True, batch_first=True, rng=2),
        nn.Conv1d(2 * H, 5, 3, padding="causal", dilation=2, batch_first=True, rng=3),
        nn.Dropout(0.3),
        LastState(nn.LSTM(5, H, bidirectional=True, batch_first=True, rng=4)),
        nn.Linear(2 * H, 3, rng=5),
        nn.Softmax(),
    ),
}


def called(layer: nn.Layer, x: Any) -> Any:
    out = layer(x)
    return out[0] if layer.stateful else out


@pytest.mark.parametrize("name", WRITTEN)
def test_written_weights_come_back(tmp_path: Path, name: str) -> None:
    model, path = WRITTEN[name](), tmp_path / "a.weights.h5"
    lines = ost.to_keras(model, path)
    kinds = {"relu": "activation='relu'"}
    assert any("LSTM" in line or "GRU" in line or kinds["relu"] in line for line in lines)
    imported = ost.from_keras(path)
    recurrent = [m for m in imported.values() if isinstance(m, nn.Recurrent)]
    if name in ("gru", "before", "rnn"):
        options = {"recurrent_activation": "sigmoid"}
        again = ost.from_keras(path, **options).layer
        if name == "rnn":
            with again.write():
                pass
        else:
            assert again.reset_after == (name == "gru")
            assert_close(called(again, X), called(model, X))
    assert len(recurrent) == {"lstm": 2, "model": 3, "functions": 3}.get(name, 1)


def test_written_files_have_the_groups_of_keras_own(tmp_path: Path) -> None:
    """The model itself has variables, none, without which Keras 3.3 opens no file."""
    path = tmp_path / "m.weights.h5"
    ost.to_keras(nn.LSTM(3, 4, batch_first=True), path)
    with h5py.File(path) as f:
        assert set(f) == {"layers", "vars"}
        assert len(f["vars"]) == 0


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    path.write_bytes(b"before")
    for layer, message in (
        (nn.LSTM(3, 4, peephole=True), r"expected LSTM without peephole=True"),
        (nn.Sequential(nn.LSTM(3, 4, proj_size=2)), r"0: expected LSTM without proj_size"),
        (nn.GRU(3, 4, learned_state=True), r"without learned_state=True"),
        (nn.GRU(3, 4, clip=2.0), r"GRU: expected GRU without clip=2.0"),
        (nn.LSTM(3, 4, coupled_gates=True), r"without coupled_gates=True"),
        (nn.LSTM(3, 4, output_activation="relu"), r"expected an output_activation that is the act"),
        (nn.Attention("dot"), r"Attention: expected a layer that Keras has"),
    ):
        with pytest.raises(ValueError, match=message):
            ost.to_keras(layer, path)
    with pytest.raises(ValueError, match=r"path: expected a name that ends with '\.weights\.h5'"):
        ost.to_keras(nn.GRU(3, 4), tmp_path / "a.h5")
    assert path.read_bytes() == b"before"


# -- damaged and hostile files ---------------------------------------------------------------------


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    words = legacy(path, {"l": [KERNEL, RECURRENT]}, None).read_bytes()
    for damaged in (b"", b"abc", words[: len(words) // 2], b"PK\x03\x04", words[:8]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.h5: expected a file of Keras, got "):
            ost.from_keras(path)
    with pytest.raises(FileNotFoundError):
        ost.from_keras(tmp_path / "none.h5")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("config.json", b" " * 1_000_000)
        z.writestr("model.weights.h5", words)
    with pytest.raises(ValueError, match=r"an archive with a compressed config\.json"):
        ost.from_keras(path)
    for config in ("{", "[]", '{"class_name": "Sequential"}', "[" * 100_000):
        with h5py.File(path, "w") as f:
            f.create_group("layers")
        with pytest.raises(ValueError, match=r"expected a file of Keras, got "):
            ost.from_keras(path, config=config)


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    other = tmp_path / "secret"
    other.write_bytes(bytes(1000))

    def bomb(f: Any) -> None:
        f.create_dataset("layers/dense/vars/0", (2**30, 2**10), "f4")

    def squeezed(f: Any) -> None:
        f.create_dataset("layers/dense/vars/0", data=np.zeros((1000, 1000)), compression="gzip")

    def outside(f: Any) -> None:
        f.create_dataset("layers/dense/vars/0", (2, 3), "f4", external=[(str(other), 0, 24)])

    def linked(f: Any) -> None:
        f.create_group("layers/dense/vars")["0"] = h5py.ExternalLink(str(other), "/a")

    def text(f: Any) -> None:
        f.create_dataset("layers/dense/vars/0", data=b"text")

    for write in (bomb, squeezed, outside, linked, text):
        with h5py.File(path, "w") as f:
            write(f)
        with pytest.raises(ValueError, match=r"expected a file of Keras, got (an array|a link)"):
            ost.from_keras(path)


# -- mutations -------------------------------------------------------------------------------------

# What a process of its own runs, since the HDF5 library may crash or run for ever: it says each
# mutation before it reads it, and its outcome after.
FUZZ = """
import faulthandler, signal, sys, tracemalloc
from pathlib import Path

import numpy as np
import ostinato as ost

faulthandler.enable()
source, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
words, path = source.read_bytes(), source.with_name("mutated" + source.name)
ost.from_keras(source)  # what it imports is not counted
tracemalloc.start()
for k in range(first, count):
    rng = np.random.default_rng(k)
    b = bytearray(words)
    if k % 8 == 0:
        b = b[: int(rng.integers(len(b)))]
    for _ in range(int(rng.integers(1, 5))):
        end = len(b) if k % 2 else min(len(b), 4096)
        if end:
            b[int(rng.integers(end))] = int(rng.choice([0, 1, 127, 255, int(rng.integers(256))]))
    path.write_bytes(b)
    print(k, end=" ", flush=True)
    signal.alarm(20)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        ost.from_keras(path)
        outcome = "read"
    except ValueError as e:
        outcome = "refused" if str(e) else "ValueError without a text"
    except BaseException as e:
        outcome = f"{type(e).__name__}: {e}"[:200]
    signal.alarm(0)
    if tracemalloc.get_traced_memory()[1] - before > 3 * len(words) + 1_000_000:
        outcome = "memory"
    print(outcome.replace(chr(10), " "), flush=True)
"""


def mutated(path: Path, count: int) -> dict[str, int]:
    """Return how often mutations of a file end in which way."""
    found: dict[str, int] = {}
    first = 0
    while first < count:
        command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(path), str(first), str(count)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        if done.returncode:  # the last line has no outcome
            own = "ran for ever" if done.returncode == -signal.SIGALRM else "crashed"
            lines[-1] = (lines[-1][0], " ", f"{own} ({done.returncode})")
        assert lines, done.stderr[-2000:]
        for _, _, outcome in lines:
            found[outcome] = found.get(outcome, 0) + 1
        first = int(lines[-1][0]) + 1
    return found


def fuzzed_file(folder: Path, form: str) -> Path:
    """Write a file of a form of Keras, of two recurrent layers."""
    arrays = {"lstm": [KERNEL, RECURRENT, drawn(4 * H, seed=3)], "rnn": [drawn(H, H, seed=4)] * 2}
    config = sequential(
        ("LSTM", {"name": "lstm", "return_sequences": True}), ("SimpleRNN", {"name": "rnn"})
    )
    if form == "h5":
        return legacy(folder / "a.h5", arrays, config)
    weights = folder / "a.weights.h5"
    with h5py.File(weights, "w") as f:
        for name, own in zip(("lstm", "simple_rnn"), arrays.values()):
            group = f.create_group(f"layers/{name}/cell/vars")
            for k, a in enumerate(own):
                group[str(k)] = a
            f.create_group(f"layers/{name}/vars").attrs["name"] = name.removeprefix("simple_")
    if form == "weights.h5":
        return weights
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w") as z:
        entries: dict[str, Any] = {
            "metadata.json": json.dumps({"keras_version": "3.15.1"}),
            "config.json": json.dumps(config),
            "model.weights.h5": weights.read_bytes(),
        }
        for name, words in entries.items():
            z.writestr(zipfile.ZipInfo(name), words)  # which has the same date in every run
    return path


@pytest.mark.parametrize("form", ["keras", "h5", "weights.h5"])
def test_mutations(tmp_path: Path, form: str) -> None:
    """A mutated file is read or refused with a text: no crash, no other error, no memory."""
    path = fuzzed_file(tmp_path, form)
    assert len(ost.from_keras(path)) == 2
    found = mutated(path, 60)
    assert set(found) == {"read", "refused"}


@pytest.mark.soak
@pytest.mark.parametrize("form", ["keras", "h5", "weights.h5"])
def test_many_mutations(tmp_path: Path, form: str) -> None:
    """As above, 3,400 times each: pytest -m soak.

    The HDF5 library itself crashed in 2 of 3,400 mutated `.h5` files, where it reads attributes,
    and in 2 of as many `.weights.h5` files.
    """
    found = mutated(fuzzed_file(tmp_path, form), 3400)
    print(form, found)
    crashed = found.pop(f"crashed ({-signal.SIGSEGV})", 0)
    assert set(found) == {"read", "refused"}
    assert crashed <= 10


# -- against Keras ---------------------------------------------------------------------------------


def keras_models() -> dict[str, Any]:
    k = keras.layers
    return {
        "tagger": [
            keras.Input((None,)),
            k.Embedding(10, 4, mask_zero=True, name="words"),
            k.Bidirectional(k.LSTM(5, return_sequences=True), name="both"),
            k.GRU(6, return_sequences=True, reset_after=False),
            k.SimpleRNN(3, activation="relu", return_sequences=True),
            k.Dropout(0.3),
            k.Dense(2, activation="softmax", name="out"),
        ],
        "classifier": [
            keras.Input((None, 3)),
            k.Dense(5, activation="gelu"),
            k.LSTM(4, return_sequences=True),
            k.LayerNormalization(),
            k.Conv1D(4, 3, padding="causal", activation="tanh"),
            k.GRU(5, return_sequences=True, use_bias=False),
            k.Bidirectional(k.GRU(4)),
            k.Dense(2, use_bias=False),
            k.Activation("sigmoid"),
        ],
        "last": [keras.Input((None, 3)), k.SimpleRNN(4), k.Dense(1)],
        "functions": [
            keras.Input((None, 3)),
            k.LSTM(
                4, activation="softsign", recurrent_activation="hard_sigmoid", return_sequences=True
            ),
            k.GRU(4, activation="elu", recurrent_activation="hard_sigmoid", return_sequences=True),
            k.Bidirectional(
                k.LSTM(
                    4, activation="linear", recurrent_activation="softplus", return_sequences=True
                )
            ),
            k.SimpleRNN(4, activation="leaky_relu"),
        ],
    }


def filled(name: str) -> Any:
    """A model none of whose weights has a special value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Sequential(keras_models()[name])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) / 2 for w in model.get_weights()])
    return model


@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5"])
@pytest.mark.parametrize("name", ["tagger", "classifier", "last", "functions"])
def test_files_that_keras_writes(tmp_path: Path, name: str, ending: str) -> None:
    theirs, path = filled(name), tmp_path / f"a.{ending}"
    config = theirs.to_json() if ending == "weights.h5" else None
    (theirs.save_weights if config else theirs.save)(path)
    imported = ost.from_keras(path, config=config, verify=True)
    rng = np.random.default_rng(2)
    x: Any = rng.integers(1, 10, (3, 7)) if name == "tagger" else drawn(3, 7, 3)
    want = keras.ops.convert_to_numpy(theirs(x))
    assert_close(imported.model()(x)[0], want, scale=4)
    if ending == "weights.h5" and name != "functions":
        alone = ost.from_keras(path, reset_after=True)
        assert {repr(m) for m in alone.values() if isinstance(m, nn.Recurrent)} == {
            repr(m).replace(", nonlinearity='relu'", "")
            for m in imported.values()
            if isinstance(m, nn.Recurrent)
        }


@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", WRITTEN)
def test_keras_loads_what_is_written(tmp_path: Path, name: str) -> None:
    model, path = WRITTEN[name](), tmp_path / "a.weights.h5"
    rng = np.random.default_rng(7)
    with model.write() as p:
        for n in p:
            p[n][...] += 0.1 * rng.normal(size=p[n].shape).astype(np.float32)
    lines = ost.to_keras(model, path)
    namespace = {**vars(keras.layers), "keras": keras}
    theirs = keras.Sequential([keras.Input((None, D)), *(eval(c, namespace) for c in lines)])
    theirs.load_weights(path)
    want = keras.ops.convert_to_numpy(theirs(X))
    assert_close(called(model, X), want, scale=4)
    back = ost.from_keras(path, config=theirs.to_json(), verify=True).model()
    assert_close(called(back, X), called(model, X), scale=2)


@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "function",
    [
        ("affine", 0.7, 0.2),
        ("leaky_relu", 0.3),
        ("thresholded_relu", 0.4),
        ("scaled_tanh", 1.3, 0.6),
        ("hard_sigmoid", 0.2, 0.5),
        ("elu", 0.7),
    ],
    ids=lambda f: f[0],
)
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
def test_functions_are_written_as_code(tmp_path: Path, function: Any, both: bool) -> None:
    """They have names, by which Keras makes the layers again."""
    options: dict[str, Any] = {"bidirectional": both, "batch_first": True, "rng": 0}
    model, path = nn.RNN(D, H, nonlinearity=function, **options), "a.weights.h5"
    (line,) = ost.to_keras(model, tmp_path / path)
    namespace = {**vars(keras.layers), "keras": keras}
    theirs = keras.Sequential([keras.Input((None, D)), eval(line, namespace)])
    theirs.load_weights(tmp_path / path)
    assert_close(called(model, X), keras.ops.convert_to_numpy(theirs(X)), scale=2)
    theirs.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert_close(called(model, X), keras.ops.convert_to_numpy(again(X)), scale=2)


@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_approximation_of_gelu_has_a_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(D, H, rng=0), nn.Activation("gelu_tanh"))
    lines = ost.to_keras(model, tmp_path / "a.weights.h5")
    namespace = {**vars(keras.layers), "keras": keras}
    theirs = keras.Sequential([keras.Input((None, D)), *(eval(c, namespace) for c in lines)])
    theirs.load_weights(tmp_path / "a.weights.h5")
    theirs.save(tmp_path / "a.keras")
    for one in (theirs, keras.models.load_model(tmp_path / "a.keras")):
        assert_close(called(model, X), keras.ops.convert_to_numpy(one(X)), scale=2)


@needs_keras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_verify_finds_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.interop import _keras

    filled("classifier").save(tmp_path / "a.keras")
    monkeypatch.setitem(_keras._ORDER, "GRU", (0, 1, 2))
    with pytest.raises(ValueError, match=r"verify: expected the outputs of Keras within"):
        ost.from_keras(tmp_path / "a.keras", verify=True)


# -- heaps of texts --------------------------------------------------------------------------------


def heap(*texts: bytes) -> bytes:
    """A heap of texts as HDF5 writes it, numbered from 1 on."""
    body = b"".join(
        struct.pack("<HHIQ", k + 1, 1, 0, len(t)) + t + bytes(-len(t) % 8)
        for k, t in enumerate(texts)
    )
    return b"GCOL\x01\x00\x00\x00" + struct.pack("<Q", 16 + len(body)) + body


def refers(length: int, place: int, number: int) -> bytes:
    return struct.pack("<IQI", length, place, number)


class Counted(bytes):
    """Bytes that count how often they are searched from end to end."""

    searches = 0

    def find(self, *args: Any) -> int:
        self.searches += 1
        return super().find(*args)


@pytest.mark.parametrize("chunk", [16, 64, 1 << 20])
def test_texts_longer_than_their_places(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keras_file, "_CHUNK", chunk)
    for before in range(24):  # wherever the reference stands
        head = bytes(8 + before)
        for length, bad in ((11, False), (12, True)):
            words = head + heap(b"abc", b"hello world") + bytes(before)
            words += refers(3, len(head), 1) + refers(length, len(head), 2) + bytes(4)
            if bad:
                with pytest.raises(_keras_file.Damaged, match="longer than its place"):
                    _keras_file._refuse_bad_heaps(words)
            else:
                _keras_file._refuse_bad_heaps(words)


def test_damaged_heaps() -> None:
    good = heap(b"abc", b"d")
    for words, message in (
        (good[:-1], "cut off"),
        (good[:24] + struct.pack("<Q", 2**60) + good[32:], "wrong size"),
        (heap(heap(b"abc"), b"d"), "within another"),
    ):
        with pytest.raises(_keras_file.Damaged, match=message):
            _keras_file._refuse_bad_heaps(bytes(8) + words)


def test_a_heap_of_many_texts_is_searched_once() -> None:
    words = Counted(bytes(8) + heap(*[b"text"] * 5000))
    _keras_file._refuse_bad_heaps(words)
    assert words.searches == 2
