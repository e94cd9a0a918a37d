"""Files: the format, other programs' files, and that nothing is lost when writing fails."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import nn, safetensors


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=5),
        "c": np.arange(6, dtype=np.int64).reshape(2, 3),
        "d": np.zeros((0, 2), np.float16),
        "e": np.array(True),
    }


def test_round_trip(tmp_path: Any) -> None:
    safetensors.save(tmp_path / "x", tensors(), {"k": "v"})
    back, metadata = safetensors.load(tmp_path / "x")
    assert metadata == {"k": "v"}
    for name, value in tensors().items():
        assert back[name].dtype == value.dtype
        assert np.array_equal(back[name], value)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_reference_implementation_reads_and_writes_the_same(tmp_path: Any) -> None:
    theirs = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed: pip install 'ostinato[test]'"
    )
    safetensors.save(tmp_path / "ours", tensors(), {"k": "v"})
    got = theirs.load_file(tmp_path / "ours")
    assert all(np.array_equal(got[n], v) for n, v in tensors().items())
    theirs.save_file(tensors(), tmp_path / "theirs", {"k": "v"})
    back, metadata = safetensors.load(tmp_path / "theirs")
    assert metadata == {"k": "v"}
    assert all(np.array_equal(back[n], v) for n, v in tensors().items())


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


BAD = {
    "empty": (b"", "got 0 bytes"),
    "text": (b"this is not a model, but a sentence", "got a header of"),
    "short header": (struct.pack("<Q", 50) + b"{}", "got a header of 50 bytes in a file of 10"),
    "deep": (struct.pack("<Q", 100_000) + b"[" * 100_000, "a header that is not JSON"),
    "not json": (file_of(b"{nonsense"), "a header that is not JSON"),
    "a list": (file_of([1, 2]), "a header that is not an object"),
    "dtype": (file_of({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, b"0000"), "a bad entry for 'w'"),
    "truncated": (
        file_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"0000"),
        "byte range 0:8 for 'w' of shape (2,) in a body of 4 bytes",
    ),
    "range": (file_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"), "byte range 0:4"),
    "negative": (file_of({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"0000"), "byte range 4:0"),
    "overflow": (file_of({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}), "byte range 0:0"),
    "no shape": (file_of({"w": {"dtype": "F32"}}), "a bad entry for 'w'"),
    "metadata": (file_of({"__metadata__": {"a": 3}}), "metadata that is not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_corrupt_files(name: str, tmp_path: Any) -> None:
    path, (content, message) = tmp_path / "x", BAD[name]
    path.write_bytes(content)
    layer = nn.Linear(2, 2, rng=0)
    before = layer.flat.copy()
    with pytest.raises(ValueError) as caught:
        layer.load(path)
    assert str(caught.value).startswith(f"{path}: expected a safetensors file, got")
    assert message in str(caught.value)
    assert np.array_equal(layer.flat, before)


def test_a_foreign_model_is_refused_whole(tmp_path: Any) -> None:
    nn.Linear(2, 2).save(tmp_path / "x")
    with pytest.raises(
        KeyError, match=r"missing \['weight_ih_l0'.*unknown \['bias', 'weight'\]|missing .*unknown \['weight', 'bias'\]"
    ):
        nn.GRU(2, 2).load(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        nn.GRU(2, 2).load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="path: expected a folder at"):
        nn.GRU(2, 2).save(tmp_path / "no" / "x")
    with pytest.raises(TypeError, match="w: expected a dtype that safetensors knows, got complex128"):
        safetensors.save(tmp_path / "y", {"w": np.zeros(2, complex)})
    assert not (tmp_path / "y").exists()


def run(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_save_leaves_the_old_file_whole(tmp_path: Any) -> None:
    path = tmp_path / "model"
    layer = nn.Linear(64, 64, rng=0)
    layer.save(path)
    old = path.read_bytes()
    child = run(
        """
        import os, sys, ostinato as ost
        real, n = os.fsync, [0]
        def slow(fd):  # the bytes are written, the file is not yet in its place
            print("writing", flush=True)
            sys.stdin.read() if False else __import__("time").sleep(60)
        os.fsync = slow
        ost.nn.Linear(64, 64, rng=1).save(sys.argv[1])
        """,
        str(path),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert path.read_bytes() == old
    again = nn.Linear(64, 64)
    again.load(path)
    assert np.array_equal(again.flat, layer.flat)


def test_a_full_disk_leaves_the_old_file_and_no_trace(tmp_path: Any) -> None:
    resource = pytest.importorskip("resource")
    assert resource
    path = tmp_path / "model"
    nn.Linear(8, 8, rng=0).save(path)
    old = path.read_bytes()
    child = run(
        """
        import resource, signal, sys, ostinato as ost
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # writing further fails, as on a full disk
        try:
            ost.nn.Linear(100, 100).save(sys.argv[1])
        except OSError as e:
            print("OSError", e.errno)
        """,
        str(path),
    )
    out, err = child.communicate()
    assert out.startswith("OSError"), err
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model"]


def test_save_overwrites(tmp_path: Any) -> None:
    a, b = nn.Linear(3, 3, rng=0), nn.Linear(3, 3, rng=1)
    a.save(tmp_path / "m")
    b.save(tmp_path / "m")
    a.load(str(tmp_path / "m"))
    assert np.array_equal(a.flat, b.flat)
    assert ost.safetensors is safetensors
