"""Every reader of files: how it is called, what it may raise, and what a right result is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import safetensors

from . import seeds


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        name: its name.
        file: the name of the file that it is given.
        read: reads a file; it raises AssertionError where the result is wrong.
        seeds: returns small files that it reads, or parts of such where there is a `dress`.
        errors: what it may raise for a bad file.
        needs: packages that it cannot do without.
        dress: makes a file of the bytes that are mutated.
        tokens: what its files are made of.
    """

    name: str
    file: str
    read: Callable[[Path], Any]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[BaseException], ...] = (ValueError,)
    needs: tuple[str, ...] = ()
    dress: Callable[[bytes], bytes] = bytes
    tokens: tuple[bytes, ...] = ()

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [n for n in self.needs if importlib.util.find_spec(n) is None]


def _equal(a: Any, b: Any) -> bool:
    return (
        set(a) == set(b)
        and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape for n in a)
        and all(a[n].tobytes() == b[n].tobytes() for n in a)
    )


def _tensors(path: Path) -> None:
    arrays, metadata = safetensors.load(path)
    with path.open("rb") as f:
        words = f.read()
    if importlib.util.find_spec("safetensors") is not None and b"BF16" not in words:
        from safetensors.numpy import load

        assert _equal(arrays, load(words)), "another content than the reference implementation's"
    assert all(isinstance(v, str) for v in metadata.values())


def _model(path: Path) -> None:
    arrays, _ = safetensors.load(path)
    layer = ost.load(path)
    state = layer.state_dict()
    assert set(state) <= set(arrays)
    assert sum(a.size for a in state.values()) <= sum(a.size for a in arrays.values())


def _checkpoint(path: Path) -> None:
    saved = ost.train.Checkpoint.load(path, which="last")
    assert saved.step >= 0
    assert all({"step", "epoch", "loss"} <= set(row) for row in saved.history.rows)


def _folder(load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: load(path.parent)


def _text_model(folder: Path) -> None:
    from ostinato.tasks.text import CharModel

    made = CharModel.load(folder)
    assert len(made.generate(made.alphabet[0], 3, seed=0)) == 3


def _compose_model(folder: Path) -> None:
    from ostinato.tasks import compose

    compose.load(folder)


def _tag_model(folder: Path) -> None:
    from ostinato.tasks._tagger import Tagger

    tagger, _ = Tagger.load(folder)
    assert len(tagger.predict([["a", "b"]])[0]) == 2


def _parse_model(folder: Path) -> None:
    from ostinato.tasks import listops, parse

    parser = parse.load(folder)
    tokens = [t for t in parser.tokens if not t.startswith("[")]
    if tokens:
        assert np.isfinite(parser.probabilities([listops.read(tokens[0])])).all()


def _anomaly_model(folder: Path) -> None:
    from ostinato.tasks._surprise import Detector

    detector, _ = Detector.load(folder)
    assert len(detector.score(np.sin(np.arange(80) / 5))) == 80


def _speech_model(folder: Path) -> None:
    from ostinato.tasks._recognizer import Recognizer
    from ostinato.tasks.transcribe import words

    recognizer = Recognizer.load(folder)
    features = recognizer.features(np.sin(np.arange(2400) / 3))
    with np.errstate(all="ignore"):  # a file may hold any weights
        found = recognizer.logits([features])
    text = recognizer.search(found)[0]
    assert "".join(w["word"] for w in words(recognizer, found[0], text)) == text.replace(" ", "")


def _classify_model(folder: Path) -> None:
    from ostinato.tasks.classify import TextClassifier

    made = TextClassifier.load(folder)
    assert np.isfinite(made.probabilities(["a b. c"])).all()


def _translate_model(folder: Path) -> None:
    from ostinato.tasks import translate

    translate._load(folder)


def _forecast_model(folder: Path) -> None:
    from ostinato.tasks import series

    figures = series.forecast(folder, seeds.frame())
    json.dumps(figures, allow_nan=False)


def _arrays_of(value: Any) -> None:
    """Touch every number of what was read."""
    if isinstance(value, np.ndarray):
        value.tobytes() if value.nbytes < 1 << 24 else value.reshape(-1)[:1]
    elif isinstance(value, dict):
        for v in value.values():
            _arrays_of(v)
    elif isinstance(value, (list, tuple)):
        for v in value[:1000]:
            _arrays_of(v)


def _torch(path: Path) -> None:
    _arrays_of(ost.load_torch(path))


def _imported(imported: Any) -> None:
    imported.describe()
    for name in imported:
        assert np.ndim(imported[name].flat) == 1
    with contextlib.suppress(ValueError):  # many have no whole model, and say so
        imported.model()


def _keras(path: Path) -> None:
    _imported(ost.from_keras(path))


def _onnx(path: Path) -> None:
    _imported(ost.from_onnx(path))


def _dynet(path: Path) -> None:
    _imported(ost.interop.from_dynet(path))


def _table(path: Path) -> None:
    from ostinato.tasks import tables

    table = tables.read(path)
    assert all(len(s.values) for s in table.series)


def _documents(path: Path) -> None:
    from ostinato.tasks import _documents as documents

    made = documents.read_tables([path], "text", "label")
    assert len(made.texts) == len(made.labels)


def _text(path: Path) -> None:
    from ostinato.tasks import corpora

    made = corpora.read([path])
    wanted = path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n")
    assert made.text(0, len(made)) == wanted.replace("\ufeff", "")


def _sound(path: Path) -> None:
    sound = ost.audio.read_wav(path)
    assert sound.rate >= 1
    assert np.isfinite(sound.samples).all()
    assert np.abs(sound.samples).max(initial=0) <= 1


def _tunes(path: Path) -> None:
    from ostinato.tasks import _abc, compose

    for tune in compose.read([path]):
        assert _abc.tidy(tune) == tune
        notes = _abc.parse(tune).played()
        assert all(n.length >= 0 for n in notes)


def _trees(path: Path) -> None:
    from ostinato.tasks import listops, parse

    made = parse.read([path])
    for e in made.expressions:
        assert listops.read(e.text()) == e
        assert len(listops.value(e)) if not e.labels else True


def _tags(path: Path) -> None:
    from ostinato.tasks import tag

    made = tag.read([path])
    assert [len(t) for t in made.tokens] == [len(t) for t in made.tags]
    assert all(all(some) for some in made.tokens)


def _stress(path: Path) -> None:
    from ostinato.tasks import tag

    made = tag.stress(path)
    assert [len(t) for t in made.tokens] == [len(t) for t in made.tags]


def _pairs(path: Path) -> None:
    from ostinato.tasks import _pairs as pairs

    made = pairs.read([str(path)], 64, lambda line: None)
    assert all(s and all(answers) for s, answers in made.items())


def _transcripts(path: Path) -> None:
    from ostinato.tasks import _clips as clips

    for name, text in clips.read_transcripts(path):
        assert name
        clips.written(text, "en", strip_accents=True)


_MODEL = "model.safetensors"
_JSON = tuple(
    t.encode()
    for t in (
        '"class"', '"args"', '"options"', '"kind":"layer"', '"kind":"list"', '"kind":"dict"',
        '"values":[', '"dtype"', '"shape"', '"data_offsets"', "null", "true", "1e400", "NaN",
        "-1", "[[[[", "99999999999999999999", "\\ud800", "__metadata__", '"tuple":true',
    )
)  # fmt: skip
_MORE = (ValueError, KeyError, TypeError)
_POLARS = ("polars",)

_ALL = (
    Reader("safetensors", "a.safetensors", _tensors, seeds.tensors, tokens=_JSON),
    Reader("model", _MODEL, _model, seeds.models, _MORE, tokens=_JSON),
    Reader("checkpoint", "run.safetensors", _checkpoint, seeds.checkpoints, tokens=_JSON),
    Reader("text-model", _MODEL, _folder(_text_model), seeds.text_models, tokens=_JSON),
    Reader("compose-model", _MODEL, _folder(_compose_model), seeds.compose_models, tokens=_JSON),
    Reader("tag-model", _MODEL, _folder(_tag_model), seeds.tag_models, tokens=_JSON),
    Reader("parse-model", _MODEL, _folder(_parse_model), seeds.parse_models, tokens=_JSON),
    Reader(
        "anomaly-model",
        _MODEL,
        _folder(_anomaly_model),
        seeds.anomaly_models,
        needs=_POLARS,
        tokens=_JSON,
    ),
    Reader("speech-model", _MODEL, _folder(_speech_model), seeds.speech_models, tokens=_JSON),
    Reader("classify-model", _MODEL, _folder(_classify_model), seeds.classify_models, tokens=_JSON),
    Reader(
        "translate-model", _MODEL, _folder(_translate_model), seeds.translate_models, tokens=_JSON
    ),
    Reader(
        "forecast-model",
        _MODEL,
        _folder(_forecast_model),
        seeds.forecast_models,
        needs=_POLARS,
        tokens=_JSON,
    ),
    Reader("torch-zip", "a.pt", _torch, seeds.torch_zips),
    Reader("torch-pickle", "a.pt", _torch, seeds.torch_pickles, dress=seeds.torch_archive),
    Reader("torch-stream", "a.pt", _torch, seeds.torch_streams),
    Reader("keras-h5", "a.h5", _keras, seeds.keras_files, needs=("h5py",)),
    Reader("keras-zip", "a.keras", _keras, seeds.keras_zips, needs=("h5py",)),
    Reader(
        "keras-config",
        "a.keras",
        _keras,
        seeds.keras_configs,
        needs=("h5py",),
        dress=seeds.keras_archive,
        tokens=_JSON,
    ),
    Reader("onnx", "a.onnx", _onnx, seeds.onnx_files, needs=("onnx",)),
    Reader("dynet", "a.model", _dynet, seeds.dynet_files, tokens=(b"#Parameter# ", b"nan", b"{2}")),
    Reader("table", "a.csv", _table, seeds.tables, needs=_POLARS, tokens=(b'"', b"\r\n", b"\xff")),
    Reader("documents", "a.csv", _documents, seeds.tables, needs=_POLARS),
    Reader("parquet", "a.parquet", _table, seeds.parquets, needs=_POLARS),
    Reader("text", "a.txt", _text, seeds.texts),
    Reader("wav", "a.wav", _sound, seeds.sounds, tokens=(b"RIFF", b"fmt ", b"data")),
    Reader("abc", "a.abc", _tunes, seeds.tunes, tokens=(b"X:1\n", b"K:C\n", b"(3", b"|:", b"[M:")),
    Reader("trees", "a.tsv", _trees, seeds.trees, tokens=(b"[MAX", b" ]", b"\t", b"_")),
    Reader("tags", "a.conll", _tags, seeds.tags),
    Reader("stress", "a.dict", _stress, seeds.sounds_of_words),
    Reader("pairs", "a.tsv", _pairs, seeds.pairs),
    Reader("catalogue", "a.mo", _pairs, seeds.catalogues),
    Reader("transcripts", "a.txt", _transcripts, seeds.transcripts),
)
READERS = {reader.name: reader for reader in _ALL}
"""Every reader, by its name."""


def chosen(names: list[str]) -> list[Reader]:
    """Return readers by their names, all for none.

    Raises:
        SystemExit: there is no such reader.
    """
    unknown = [n for n in names if n not in READERS]
    if unknown:
        raise SystemExit(f"reader: expected some of {', '.join(READERS)}, got {unknown[0]!r}")
    return [READERS[n] for n in names] if names else list(_ALL)
