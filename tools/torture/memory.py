"""The most memory that a reader takes for a large file that is right, over the file's size."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import nn, safetensors

from . import sealed
from .readers import READERS, Reader

MEGABYTES = 24


def _side() -> int:
    """Return the width of a square of float32 that fills a file."""
    return int((MEGABYTES * 2**20 / 4) ** 0.5)


def _numbers() -> Any:
    return np.random.default_rng(0).normal(size=(_side(), _side())).astype(np.float32)


def _bfloat16(path: Path) -> None:
    safetensors.save(path, {"w": np.concatenate([_numbers()] * 2)}, dtype="bfloat16")


def _linear(path: Path) -> None:
    nn.Linear(_side(), _side(), rng=0).save(path)


def _checkpoint(path: Path) -> None:
    side = _side() // 2
    model = nn.Linear(side, side, rng=0)
    x = np.zeros((1, side), np.float32)
    trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-3))
    trainer.fit((x, x), checkpoint=path, overwrite=True, progress=False)


def _torch(zipped: bool) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        from test_interop_torch import Storage, dictionary, tensor_of, write

        a = _numbers()
        storage = Storage("FloatStorage", "0", a.tobytes(), a.size)
        body = dictionary({"w": tensor_of(storage, 0, a.shape, (a.shape[1], 1))})
        write(path, body, [storage], zipped)

    return make


def _keras(path: Path) -> None:
    ost.to_keras(nn.Linear(_side(), _side(), rng=0), path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def _keras_zip(path: Path) -> None:
    _keras(path)
    words = sealed.archive(READERS["keras-zip"].seeds()[0], "config.json", b"")
    path.write_bytes(sealed.archive(words, "model.weights.h5", path.read_bytes()))


def _onnx(path: Path) -> None:
    ost.to_onnx(nn.Linear(_side(), _side(), rng=0), path)


def _repeated(line: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(line * (MEGABYTES * 2**20 // len(line))) and None


def _table(path: Path) -> None:
    with path.open("w") as f:
        f.write("t,value\n")
        for k in range(MEGABYTES * 2**20 // 16):
            f.write(f"{k},{k % 977 / 7:.5f}\n")


def _dynet(path: Path) -> None:
    numbers = " ".join(f"{v:+.8e}" for v in _numbers()[: _side() // 4].reshape(-1))
    head = f"#LookupParameter# /_0 {{{_side() // 4},{_side()}}} 9 ZERO_GRAD\n"
    path.write_text(head + numbers + "\n")


def _sound(path: Path) -> None:
    import wave

    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(16000)
        f.writeframes((_numbers() * 3000).astype("<i2").tobytes() * 2)


FILES: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda p: safetensors.save(p, {"w": _numbers()}),
    "bfloat16": _bfloat16,
    "model": _linear,
    "checkpoint": _checkpoint,
    "torch-zip": _torch(True),
    "torch-stream": _torch(False),
    "keras-h5": _keras,
    "onnx": _onnx,
    "dynet": _dynet,
    "table": _table,
    "text": _repeated(b"To be, or not to be: that is the question.\n"),
    "wav": _sound,
    "tags": _repeated(b"the\tD\ncat\tN\n\n"),
}
"""How a large file of each reader is made, by name."""


def _reader(name: str) -> Reader:
    return READERS["safetensors" if name == "bfloat16" else name]


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def ratio(name: str) -> float:
    """Return the peak of this process's memory, beyond what it had before, over the file's size."""
    reader = _reader(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.file
        path.write_bytes(reader.seeds()[0])
        with contextlib.suppress(*reader.errors):
            read_only(name, path)  # what is imported late
        code = f"from torture import memory; memory.FILES[{name!r}](memory.Path({str(path)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        read_only(name, path)
        return (_peak() - before) / path.stat().st_size


def read_only(name: str, path: Path) -> Any:
    """Read a file as a user does, without the checks of `readers`."""
    from ostinato.tasks import corpora, tables, tag

    calls: dict[str, Callable[[Path], Any]] = {
        "model": ost.load,
        "checkpoint": ost.train.Checkpoint.load,
        "torch-zip": ost.load_torch,
        "torch-stream": ost.load_torch,
        "keras-h5": ost.from_keras,
        "onnx": ost.from_onnx,
        "dynet": ost.interop.from_dynet,
        "table": tables.read,
        "text": lambda p: corpora.read([p]),
        "wav": ost.audio.read_wav,
        "tags": lambda p: tag.read([p]),
    }
    if name == "checkpoint":
        return ost.train.Checkpoint.load(path, which="last")
    return calls.get(name, safetensors.load)(path)


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    paths = [str(Path(__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    bad = False
    for name in args.reader or FILES:
        if name not in FILES:
            raise SystemExit(f"memory: expected some of {', '.join(FILES)}, got {name!r}")
        code = f"from torture import memory; print(memory.ratio({name!r}))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:14} failed: {done.stderr[-500:]}")
            bad = True
        else:
            print(
                f"{name:14} {float(done.stdout):5.1f} times the file of {MEGABYTES} MB", flush=True
            )
    return int(bad)
