"""Small files of every format that is read, as the project writes them or as its tests do."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import struct
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import nn, safetensors

from . import sealed

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))


def _written(write: Callable[[Path], Any], name: str = "a") -> bytes:
    """Return the bytes of the file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


def _saved(save: Callable[[str], Any]) -> bytes:
    """Return the bytes of the model that a function saves in a folder, without a checksum."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return sealed.unsealed((Path(folder) / "model.safetensors").read_bytes())


def tensors() -> list[bytes]:
    """Return safetensors files, with a checksum and without one."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "a": rng.normal(size=(3, 2)).astype(np.float32),
        "b": rng.normal(size=3),
        "c": np.arange(4, dtype=np.int16),
        "d": np.zeros((0, 2), np.float16),
        "e": np.array(True),
    }
    whole = _written(lambda p: safetensors.save(p, arrays, {"k": "v"}))
    half = _written(lambda p: safetensors.save(p, {"w": arrays["a"]}, dtype="bfloat16"))
    return [whole, sealed.unsealed(whole), sealed.unsealed(half)]


def _models() -> list[nn.Layer]:
    return [
        nn.Sequential(rnn=nn.GRU(2, 2, rng=0), head=nn.Linear(2, 2, rng=1)),
        nn.Sequential(
            nn.Embedding(3, 2, rng=0),
            nn.LSTM(2, 2, bidirectional=True, peephole=True, rng=0),
            nn.Dropout(0.1),
            nn.Residual(nn.Linear(4, 4, rng=0)),
            nn.LayerNorm(4),
        ),
        nn.Sequential(nn.RNN(2, 2, dtype=np.float64, rng=0)),
    ]


def models() -> list[bytes]:
    """Return files that say how a model was made."""
    return [sealed.unsealed(_written(m.save)) for m in _models()]


def _run(path: Path, **options: Any) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (8, 5, 1)).astype(np.float32)
    model = nn.Sequential(nn.GRU(1, 2, batch_first=True, rng=0), nn.Linear(2, 1, rng=1))
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
    trainer.fit((x, x), progress=False, batch_size=4, checkpoint=path, **options)


def checkpoints() -> list[bytes]:
    """Return checkpoints of a Trainer."""
    x = np.zeros((4, 5, 1), np.float32)
    plain = _written(lambda p: _run(p, epochs=2, identity={"alphabet": "ab"}))
    best = _written(lambda p: _run(p, epochs=2, validation=(x, x)))
    return [sealed.unsealed(plain), sealed.unsealed(best)]


# -- models of the command line --------------------------------------------------------------------


def text_models() -> list[bytes]:
    """Return models of ``train text``."""
    from ostinato.tasks.text import CharModel, TextOptions

    deep = TextOptions(hidden=2, layers=2, dropout=0.1, cell="gru")
    made = [CharModel.fresh("ab\n", o) for o in (TextOptions(hidden=2), deep)]
    return [_saved(m.save) for m in made]


def compose_models() -> list[bytes]:
    """Return models of ``train compose``."""
    from ostinato.tasks.text import CharModel, TextOptions

    chars = CharModel.fresh("\n:ABCK|", TextOptions(hidden=2))
    return [_saved(lambda folder: chars.save(folder, task="compose"))]


def tag_models() -> list[bytes]:
    """Return models of ``train tag``."""
    from ostinato.tasks._tagger import Tagger, TaggerOptions

    made = Tagger.fresh([["a", "b"]], [["X", "Y"]], TaggerOptions(hidden=2))
    facts = {"columns": [1, 0], "source": "file", "ambiguous": []}
    return [_saved(lambda folder: made.save(folder, facts))]


def parse_models() -> list[bytes]:
    """Return models of ``train parse``."""
    from ostinato.tasks.parse import ParseOptions, Parser

    return [_saved(Parser(ParseOptions(hidden=2), ["[MAX", "1", "2"], ["1", "2"]).save)]


def anomaly_models() -> list[bytes]:
    """Return models of ``train anomaly``."""
    import polars as pl

    from ostinato.tasks._surprise import Detector, DetectorOptions
    from ostinato.tasks.anomaly import read

    values = np.sin(np.arange(400) / 5) + np.random.default_rng(0).normal(size=400) / 50
    made = Detector(DetectorOptions(steps=2, hidden=2, window=50)).fit(values)
    like = read(pl.DataFrame({"v": values})).facts
    facts = {"reading": like, "label": "", "example": "", "held_out": 0.3}
    return [_saved(lambda folder: made.save(folder, facts))]


def speech_models() -> list[bytes]:
    """Return models of ``train transcribe``."""
    from ostinato.tasks._recognizer import Recognizer, TranscribeOptions

    options = TranscribeOptions(hidden=2, layers=1)
    made = Recognizer(options, " ab", np.zeros(40), np.ones(40))
    made.language.fit([np.array([1, 2, 3, 2, 1])])
    return [_saved(made.save)]


def classify_models() -> list[bytes]:
    """Return models of ``train classify``."""
    from ostinato.tasks.classify import ClassifyOptions, TextClassifier, network

    out = []
    for kind in ("flat", "hierarchical"):
        options = ClassifyOptions(hidden=2, embedding=2, model=kind, members=1)
        words, labels = ["<pad>", "<unknown>", "a"], ["x", "y"]
        one = network(len(words), len(labels), options, 0)
        out.append(_saved(TextClassifier(words, labels, options, [one], "").save))
    return out


def translate_models() -> list[bytes]:
    """Return models of ``train translate``."""
    from ostinato.tasks import _application, translate

    options = translate.TranslateOptions(
        hidden=2, embedding=2, epochs=1, batch=16, held_out=4, members=1
    )
    lines = "".join(f"{a}{b}{c}\t{c}{b} {a}\n" for a in "abcd" for b in "abcd" for c in "ab")

    def save(folder: str) -> None:
        data = Path(folder) / "pairs.tsv"
        data.write_text(lines, encoding="utf-8")
        at = Path(folder) / "m"
        _application.train("translate", [str(data)], options, save=at, report=lambda line: None)
        (at / "model.safetensors").rename(Path(folder) / "model.safetensors")

    return [_saved(save)]


def frame() -> Any:
    """Return the table that a seed of `forecast_models` was trained with."""
    import polars as pl

    t = np.arange(60)
    return pl.DataFrame({"t": t, "load": 10 + np.sin(2 * np.pi * t / 6)})


def forecast_models() -> list[bytes]:
    """Return models of ``train forecast``."""
    from ostinato.tasks import series
    from ostinato.tasks.forecaster import ForecastOptions

    options = ForecastOptions(horizon=2, epochs=1, members=1, hidden=2)

    def save(folder: str) -> None:
        series.train_series(frame(), options, save=folder, report=lambda line: None)

    return [_saved(save)]


# -- other programs' models ------------------------------------------------------------------------


@functools.cache
def _torch(zipped: bool) -> bytes:
    from test_interop_torch import Storage, dictionary, plain, tensor_of, write

    numbers = np.arange(24, dtype=np.float32)
    f = Storage("FloatStorage", "0", numbers.tobytes(), 24)
    h = Storage("BFloat16Storage", "1", numbers[:6].tobytes(), 12)
    items = {
        "w": tensor_of(f, 1, (2, 3), (3, 1)),
        "b": tensor_of(h, 0, (12,), (1,)),
        "l": plain([1, (2.5, "é"), None]),
    }
    return _written(lambda p: write(p, dictionary(items), [f, h], zipped))


def torch_zips() -> list[bytes]:
    """Return files of torch.save, zip archives."""
    return [_torch(True)]


def torch_streams() -> list[bytes]:
    """Return files of torch.save in the older form."""
    return [_torch(False)]


def torch_pickles() -> list[bytes]:
    """Return what is pickled in an archive, and pickles that ask to run something."""
    hostile = [
        b"cposix\nsystem\n(S'true'\ntR.",
        b"\x80\x02cbuiltins\nexec\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02ccollections\nOrderedDict\n)R}b.",
    ]
    return [sealed.entry(_torch(True), "a/data.pkl"), *hostile]


def torch_archive(words: bytes) -> bytes:
    """Return an archive of torch.save with other bytes as its pickle."""
    return sealed.archive(_torch(True), "a/data.pkl", words)


@functools.cache
def _keras(form: str) -> bytes:
    from test_interop_keras import fuzzed_file

    with tempfile.TemporaryDirectory() as folder:
        return fuzzed_file(Path(folder), form).read_bytes()


def keras_files() -> list[bytes]:
    """Return files of Keras in HDF5, of the older form and of the newer."""
    return [_keras("h5"), _keras("weights.h5")]


def keras_zips() -> list[bytes]:
    """Return ``.keras`` archives, one that the project writes."""
    model = nn.Sequential(nn.GRU(2, 2, rng=0), nn.Linear(2, 1, rng=1))
    ours = _written(lambda p: ost.to_keras(model, p), "a.weights.h5")
    return [_keras("keras"), sealed.archive(_keras("keras"), "model.weights.h5", ours)]


def keras_configs() -> list[bytes]:
    """Return configurations of models, one of which holds code."""
    plain = sealed.entry(_keras("keras"), "config.json")
    lambdas = json.loads(plain)
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==\n", "defaults": None}}
    own = {"name": "f", "function": code}
    lambdas["config"]["layers"].append({"class_name": "Lambda", "config": own})
    return [plain, json.dumps(lambdas).encode()]


def keras_archive(words: bytes) -> bytes:
    """Return a ``.keras`` archive with another configuration."""
    return sealed.archive(_keras("keras"), "config.json", words)


def onnx_files() -> list[bytes]:
    """Return ONNX models: a chain, and one with data in another file."""
    import onnx

    out = []
    for layer in (nn.LSTM(2, 2, peephole=True, rng=0), nn.GRU(2, 2, bidirectional=True, rng=0)):
        wide = layer.hidden_size * (2 if layer.bidirectional else 1)
        model = nn.Sequential(rnn=layer, head=nn.Linear(wide, 2, rng=1))
        out.append(ost.to_onnx(model).SerializeToString())
    outside = onnx.load_from_string(out[0])
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../etc/passwd")
    return [*out, outside.SerializeToString()]


def dynet_files() -> list[bytes]:
    """Return text files of DyNet."""
    from test_interop_dynet import drawn, write

    lstm = {
        f"/birnn/vanilla-lstm-builder{k}/_{n}": drawn(*shape, seed=n)
        for k in ("", "_1")
        for n, shape in enumerate([(8, 3), (8, 2), (8,)])
    }
    plain = {"L/_0": drawn(3, 4), "/_1": drawn(2, 4, seed=1), "/_2": drawn(2, seed=2)}
    return [_written(functools.partial(write, arrays=a)) for a in (lstm, plain)]


# -- data ------------------------------------------------------------------------------------------


def tables() -> list[bytes]:
    """Return tables as text: delimiters, quotes, dates, encodings, compressed."""
    dates = "".join(f"2024-01-{d:02d},{d}.5,a\n2024-01-{d:02d},{d},b\n" for d in range(1, 9))
    text = "date,value,store\n" + dates
    quoted = 'n;"a ""b"" c"\n1;"x\ny"\n2;3,5\n3;4,5\n'
    zoned = "time\tv\n" + "".join(f"2024-03-31T0{h}:00:00+01:00\t{h}e1\n" for h in range(6))
    plain = [text, quoted, zoned, "v\n1\n2\n3\n", "id,text,label\n1,Hello,mail\n2,Cheap,spam\n"]
    out = [p.encode() for p in plain]
    wide = ("a,b\n" + "1,é\n2,ü\n").encode("utf-16")
    return [*out, wide, "a,b\n1,é\n".encode("cp1252"), gzip.compress(text.encode(), mtime=0)]


def parquets() -> list[bytes]:
    """Return Parquet files."""
    out = io.BytesIO()
    frame().write_parquet(out, compression="uncompressed")
    small = io.BytesIO()
    frame()[:3].write_parquet(small)
    return [out.getvalue(), small.getvalue()]


def texts() -> list[bytes]:
    """Return plain texts."""
    return [b"To be, or not\r\nto be\rthat\n", "\ufeffЧто это — 'что'? 漢字\n".encode()]


def sounds() -> list[bytes]:
    """Return WAV files of each width, and one with more chunks."""
    out = []
    for width, channels in ((1, 1), (2, 2), (3, 1), (4, 1)):
        made = io.BytesIO()
        with wave.open(made, "wb") as f:
            f.setnchannels(channels)
            f.setsampwidth(width)
            f.setframerate(8000)
            f.writeframes(bytes(range(24)) * width)
        out.append(made.getvalue())
    extra = b"LIST" + struct.pack("<I", 4) + b"abcd"
    return [*out, out[1][:36] + extra + out[1][36:]]


def tunes() -> list[bytes]:
    """Return books of tunes in ABC."""
    book = (
        "X:1\nT:One\nM:6/8\nL:1/8\nK:Gmix\n|:GBd gdB|(3abc {e}d2 z^c'-|1 c,,/2>d [CEG]3:|2 Z2|]\n"
    )
    return [(book + '\nX:2\nK:D\n[M:C|]a2b2 (5:4:5abcde "Am"f4|]\n').encode()]


def trees() -> list[bytes]:
    """Return labelled expressions."""
    return [b"9\t[MAX 2 [MIN 9 4] 9]\t4\n3\t[MIN 8 3]\n\nyes\t[AND [NOT no ] yes ]\t_\n"]


def tags() -> list[bytes]:
    """Return sequences with tags."""
    return [
        b"# a comment\nthe\tD\ncat\tN\n\nhello\tI\nEOS\n",
    ]


def sounds_of_words() -> list[bytes]:
    """Return dictionaries of words and their sounds."""
    return [b"content K AA1 N T EH0 N T\ncontent(2) K AH0 N T EH1 N T # also\n"]


def pairs() -> list[bytes]:
    """Return pairs of texts in two columns."""
    return ["\ufeffone\tun\ntwo\tdeux\n\nthree\ttrois\r\n".encode()]


def catalogues() -> list[bytes]:
    """Return compiled catalogues of gettext."""
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "_File": "_Fichier", "b\0bs": "c"}
    keys = [k.encode() for k in sorted(messages)]
    values = [messages[k].encode() for k in sorted(messages)]
    at = 28 + 16 * len(keys)
    index, body = b"", b""
    for some in (keys, values):
        for words in some:
            index += struct.pack("<II", len(words), at + len(body))
            body += words + b"\0"
    head = (0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, at)
    return [struct.pack("<7I", *head) + index + body]


def transcripts() -> list[bytes]:
    """Return transcripts of clips, plain and compressed."""
    text = b"; comment\nsub/1.wav\tDial 2, [beep]\nb: DON'T <noise>\n"
    return [text, gzip.compress(text, mtime=0), bz2.compress(text)]
