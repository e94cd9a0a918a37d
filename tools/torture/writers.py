"""Everything that writes files: what each needs, how it is run, and what it leaves."""

from __future__ import annotations

import io
import shlex
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import cli, nn, safetensors

from . import seeds


@dataclass(frozen=True)
class Writer:
    """A command or a function that writes files.

    Attributes:
        prepare: writes what it needs into a folder ``in``.
        run: writes into a folder ``out``; what it returns is the exit status of a command, None for
            a function, which raises.
        outputs: the names that it writes.
        needs: packages that it cannot do without.
        earlier: writes files that `run` reads if they are there, of another content; None where it
            does not read them.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], int | None]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    earlier: Callable[[Path], int | None] | None = None


def _nothing(folder: Path) -> None:
    """Prepare nothing."""


def short_samples() -> None:
    """Let ``train text`` print a few characters of its own: they take most of its time."""
    from ostinato.tasks.text import CharModel

    generate = CharModel.generate

    def short(self: Any, prompt: str, length: int, **options: Any) -> str:
        return generate(self, prompt, min(length, 5), **options)

    CharModel.generate = short  # type: ignore[method-assign]


def _main(command: str) -> Callable[[Path], int]:
    """Return a function that runs a command, with IN and OUT in place of folders."""

    def run(folder: Path) -> int:
        ins, outs = str(folder / "in"), str(folder / "out")
        words = shlex.split(command)
        return cli.main([w.replace("IN/", ins + "/").replace("OUT/", outs + "/") for w in words])

    return run


def _brief(command: str) -> Callable[[Path], int]:
    """Return a function that runs a command, whose samples are short."""

    def run(folder: Path) -> int:
        short_samples()
        return _main(command)(folder)

    return run


def _model_of(made: Callable[[], list[bytes]], **files: Any) -> Callable[[Path], None]:
    """Return a function that puts a saved model and files in the folder ``in``."""

    def prepare(folder: Path) -> None:
        (folder / "in" / "m").mkdir()
        (folder / "in" / "m" / "model.safetensors").write_bytes(made()[0])
        for name, words in files.items():
            content = words() if callable(words) else words
            (folder / "in" / name.replace("_", ".")).write_bytes(content)

    return prepare


def _layer(folder: Path) -> None:
    nn.Linear(60, 60, rng=1).save(folder / "out" / "layer.safetensors")


def _tensors(folder: Path) -> None:
    many = {f"w{k}": np.full(3000, k, np.float32) for k in range(4)}
    safetensors.save(folder / "out" / "t.safetensors", many, {"k": "v"}, dtype="bfloat16")


def _fit(folder: Path, epochs: int = 3) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (16, 5, 1)).astype(np.float32)
    model = nn.Sequential(nn.GRU(1, 3, batch_first=True, rng=0), nn.Linear(3, 1, rng=1))
    trainer = ost.Trainer(model, ost.losses.MSE())
    out = folder / "out"
    options: dict[str, Any] = {"checkpoint": out / "run", "log": out / "log.csv"}
    there = (out / "run").exists()
    trainer.fit(
        (x, x), validation=(x, x), batch_size=4, epochs=epochs, validate_every=4, progress=False,
        resume=there, overwrite=not there, **options,
    )  # fmt: skip


def _onnx(folder: Path) -> None:
    ost.to_onnx(nn.GRU(3, 4, rng=0), folder / "out" / "m.onnx")


def _keras(folder: Path) -> None:
    model = nn.Sequential(nn.GRU(3, 4, rng=0), nn.Linear(4, 2, rng=1))
    ost.to_keras(model, folder / "out" / "m.weights.h5")


def _flow(folder: Path) -> None:
    x = np.ones((6, 2, 3), np.float32)
    flow = ost.diagnostics.gradient_flow(nn.GRU(3, 4, rng=0), x)
    flow.plot(folder / "out" / "flow.png")


def _search(folder: Path) -> None:
    trials = [ost.train.Trial(k, {"rate": 0.1 * k}, k, "complete", 10) for k in range(1, 4)]
    found = ost.train.SearchResult(trials, trials[0], "valid_loss", None)
    found.plot(folder / "out" / "search.png")


def _sales(folder: Path) -> None:
    rows = [f"{t},{10 + (t % 6) + (t % 7) / 10}" for t in range(72)]
    text = "\n".join(["t,sales", *rows]) + "\n"
    (folder / "in" / "sales.csv").write_text(text, encoding="utf-8")


def _corpus(folder: Path) -> None:
    text = "to be or not to be that is the question " * 60
    (folder / "in" / "corpus.txt").write_text(text, encoding="utf-8")


def _frame() -> bytes:
    rows = [f"{t},{10 + np.sin(2 * np.pi * t / 6)}" for t in range(60)]
    return ("\n".join(["t,load", *rows]) + "\n").encode()


def _series() -> bytes:
    return ("\n".join(["v", *(f"{np.sin(k / 5):.3f}" for k in range(200))]) + "\n").encode()


def _clip() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(8000)
        f.writeframes((np.sin(np.arange(4000) / 3) * 9000).astype("<i2").tobytes())
    return out.getvalue()


def _pairs(folder: Path) -> None:
    lines = [f"{a}{b}{c}\t{c}{b} {a}" for a in "abcd" for b in "abcd" for c in "ab"]
    (folder / "in" / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


_PICTURES = ("matplotlib",)
_TABLES = ("matplotlib", "polars")

WRITERS = {
    "layer": Writer(_nothing, _layer, ("layer.safetensors",)),
    "tensors": Writer(_nothing, _tensors, ("t.safetensors",)),
    "fit": Writer(_nothing, _fit, ("run", "log.csv"), earlier=lambda folder: _fit(folder, 1)),
    "onnx": Writer(_nothing, _onnx, ("m.onnx",), ("onnx",)),
    "keras": Writer(_nothing, _keras, ("m.weights.h5",), ("h5py",)),
    "flow": Writer(_nothing, _flow, ("flow.png",), _PICTURES),
    "search": Writer(_nothing, _search, ("search.png",), _PICTURES),
    "text": Writer(
        _corpus,
        _brief("train text IN/corpus.txt --steps 2 --hidden 4 --save OUT/run --overwrite"),
        ("run",),
    ),
    "forecast-train": Writer(
        _sales,
        _main(
            "train forecast IN/sales.csv --save OUT/run --plot OUT/p.png --overwrite --horizon 3 "
            "--epochs 1 --members 1 --hidden 4 --season 6"
        ),
        ("run", "p.png"),
        _TABLES,
    ),
    "forecast": Writer(
        _model_of(seeds.forecast_models, a_csv=_frame),
        _main("forecast IN/m IN/a.csv --out OUT/f.csv --plot OUT/f.png --overwrite"),
        ("f.csv", "f.png"),
        _TABLES,
    ),
    "parse": Writer(
        _model_of(seeds.parse_models),
        _main("predict IN/m 1 --out OUT/p.txt --plot OUT/p.png --overwrite"),
        ("p.txt", "p.png"),
        _PICTURES,
    ),
    "classify": Writer(
        _model_of(seeds.classify_models),
        _main("predict IN/m 'a a' b --out OUT/c.csv --overwrite"),
        ("c.csv",),
    ),
    "tag": Writer(
        _model_of(seeds.tag_models),
        _main("predict IN/m 'a b' --out OUT/t.conll --overwrite"),
        ("t.conll",),
    ),
    "translate": Writer(
        _model_of(seeds.translate_models),
        _main("predict IN/m abc bca --out OUT/t.tsv --overwrite"),
        ("t.tsv",),
    ),
    "compose": Writer(
        _model_of(seeds.compose_models),
        _main("predict IN/m --out OUT/t.abc --overwrite"),
        ("t.abc",),
    ),
    "transcribe": Writer(
        _model_of(seeds.speech_models, a_wav=_clip),
        _main("predict IN/m IN/a.wav --out OUT/t.txt --overwrite"),
        ("t.txt",),
    ),
    "anomaly": Writer(
        _model_of(seeds.anomaly_models, a_csv=_series),
        _main("predict IN/m IN/a.csv --out OUT/a.csv --plot OUT/a.png --overwrite"),
        ("a.csv", "a.png"),
        _TABLES,
    ),
    "translate-train": Writer(
        _pairs,
        _main(
            "train translate IN/pairs.tsv --save OUT/run --overwrite --hidden 2 --embedding 2 "
            "--epochs 1 --batch 16 --held-out 4 --members 1"
        ),
        ("run",),
    ),
}
"""Everything that writes, by its name."""
