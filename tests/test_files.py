"""Files: the format, other programs' files, and that nothing is lost when writing fails."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import wave
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _check, nn, safetensors


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
    "dtype": (
        file_of({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        "a bad entry for 'w'",
    ),
    "truncated": (
        file_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"0000"),
        "byte range 0:8 for 'w' of shape (2,) in a body of 4 bytes",
    ),
    "range": (
        file_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"),
        "byte range 0:4",
    ),
    "negative": (
        file_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
        "byte range 4:0",
    ),
    "a negative shape": (
        file_of({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        "the number -1 in its header",
    ),
    "overflow": (
        file_of({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        "byte range 0:0",
    ),
    "no shape": (file_of({"w": {"dtype": "F32"}}), "a bad entry for 'w'"),
    "metadata": (file_of({"__metadata__": {"a": 3}}), "metadata that is not text"),
    "overlap": (
        file_of(
            {
                "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            },
            b"00000000",
        ),
        "byte range 0:8 for 'w', where one that begins at 8 is due",
    ),
    "a hole": (
        file_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"00000000"),
        "byte range 4:8 for 'w', where one that begins at 0 is due",
    ),
    "trailing bytes": (
        file_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"00000"),
        "a body of 5 bytes, of which tensors fill 4",
    ),
    "a name twice": (
        file_of(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"0000",
        ),
        "a header with more than one 'w'",
    ),
    "a bool in a shape": (
        file_of({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"0000"),
        "a bad entry for 'w'",
    ),
    "72 axes": (
        file_of({"w": {"dtype": "F32", "shape": [1] * 72, "data_offsets": [0, 4]}}, b"0000"),
        "72 axes for 'w'",
    ),
    "an endless empty axis": (
        file_of({"w": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}),
        "for 'w' of shape [9223372036854775808, 0], which has no size",
    ),
    "F8": (
        file_of({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"0"),
        "a bad entry for 'w': dtype 'F8_E4M3', where one of F64, F32",
    ),
    "a bool of 7": (
        file_of({"w": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x07"),
        "a bool of value 7",
    ),
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


def _mutations() -> list[bytes]:
    """Two thousand files: headers with one or two bytes changed, cut out, put in or repeated."""
    rng = np.random.default_rng(0)
    header = {
        "__metadata__": {"k": "v"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "I16", "shape": [0, 3], "data_offsets": [8, 8]},
        "c": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
        "d": {"dtype": "F16", "shape": [], "data_offsets": [11, 13]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    out = []
    for _ in range(2000):
        words = bytearray(text)
        for _ in range(rng.integers(1, 3)):
            at, width = int(rng.integers(len(words))), int(rng.integers(1, 4))
            piece = bytes(
                rng.choice(bytearray(b'0123456789-.eE[]{},:"ntF\\u \x00\xff'), width).tolist()
            )
            kind = rng.integers(4)
            if kind == 0:
                words[at : at + width] = piece
            elif kind == 1:
                del words[at : at + width]
            elif kind == 2:
                words[at:at] = piece
            else:
                words[at:at] = words[at : at + 8 * width]
        out.append(file_of(bytes(words), bytes(13)))
    return out


def test_what_the_reference_implementation_refuses_is_refused(tmp_path: Any) -> None:
    theirs = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed: pip install 'ostinato[test]'"
    )
    path, counts = tmp_path / "x", {"both": 0, "neither": 0}
    refusals = []
    for content in [*_mutations(), *(content for content, _ in BAD.values())]:
        path.write_bytes(content)
        ours: Any
        try:
            ours = safetensors.load(path)[0]
        except ValueError as e:
            ours = None
            refusals.append(str(e))
        try:
            wanted = theirs.load(content)
        except Exception:
            assert ours is None, content
            counts["neither"] += 1
            continue
        if ours is not None:
            counts["both"] += 1
            assert set(ours) == set(wanted)
            assert all(
                np.array_equal(ours[n], v) and ours[n].dtype == v.dtype for n, v in wanted.items()
            )
    assert all(r.startswith(f"{path}: expected a safetensors file, got") for r in refusals)
    assert counts["both"] > 10
    assert counts["neither"] > 1000


def test_a_flipped_bit_is_told(tmp_path: Any) -> None:
    path = tmp_path / "x"
    wanted = {"w": np.arange(3, dtype=np.float32), "v": np.arange(4, dtype=np.int8)}
    safetensors.save(path, wanted, {"k": "v"})
    whole = path.read_bytes()
    loaded = []
    for at in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            tensors, metadata = safetensors.load(path)
        except ValueError:
            continue
        loaded.append(at // 8)
        assert metadata["k"] == "v"
        assert all(np.array_equal(tensors[n], v) for n, v in wanted.items())
    assert all(whole[at : at + 1] == b" " for at in loaded)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="got one that is damaged: its checksum is"):
        safetensors.load(path)


def test_a_copy_by_another_program_fits_its_checksum(tmp_path: Any) -> None:
    theirs = pytest.importorskip(
        "safetensors", reason="safetensors is not installed: pip install 'ostinato[test]'"
    )
    numpy_side = pytest.importorskip("safetensors.numpy")
    safetensors.save(tmp_path / "x", tensors(), {"k": "v"})
    with theirs.safe_open(tmp_path / "x", "np") as f:
        copied = f.metadata()
    numpy_side.save_file(tensors(), tmp_path / "y", copied)
    assert safetensors.load(tmp_path / "y")[1] == {"k": "v"}
    numpy_side.save_file({**tensors(), "a": np.zeros((3, 4), np.float32)}, tmp_path / "y", copied)
    with pytest.raises(ValueError, match="another program has changed the tensors"):
        safetensors.load(tmp_path / "y")


def test_bfloat16_is_read_exactly(tmp_path: Any) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    header = {"w": {"dtype": "BF16", "shape": [2**8, 2**8], "data_offsets": [0, 2**17]}}
    (tmp_path / "x").write_bytes(file_of(header, bits.astype("<u2").tobytes()))
    got = safetensors.load(tmp_path / "x")[0]["w"]
    assert (got.dtype, got.shape) == (np.float32, (2**8, 2**8))
    assert np.array_equal(got.view(np.uint32).reshape(-1), bits.astype(np.uint32) << 16)
    words = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    value = np.array([[1.5, -2.0, 3.140625]], words.bfloat16)
    safetensors.save(tmp_path / "y", {"w": value})
    assert b'"BF16"' in (tmp_path / "y").read_bytes()
    assert np.array_equal(safetensors.load(tmp_path / "y")[0]["w"], value.astype(np.float32))


def test_only_regular_files_are_read(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("/dev/zero", tmp_path / "zero")
    with pytest.raises(ValueError, match="fifo: expected a regular file, got a pipe"):
        safetensors.load(tmp_path / "fifo")
    with pytest.raises(ValueError, match="zero: expected a regular file, got a device"):
        safetensors.load(tmp_path / "zero")
    with pytest.raises(IsADirectoryError):
        safetensors.load(tmp_path)


@pytest.mark.parametrize("path", [5, True, None], ids=str)
def test_what_is_no_path(path: Any) -> None:
    """A number would be a file that is open already."""
    words = rf"path: expected a path \(str or os.PathLike\), got {type(path).__name__}"
    with pytest.raises(TypeError, match=words):
        safetensors.load(path)
    with pytest.raises(TypeError, match=words):
        safetensors.save(path, {})
    with pytest.raises(TypeError, match=words):
        ost.audio.read_wav(path)


def test_arrays_in_which_nothing_is_masked_are_written(tmp_path: Any) -> None:
    safetensors.save(tmp_path / "x", {"w": np.ma.array([1.0, 2.0]), "v": [[1.0], [2.0]]})
    found = safetensors.load(os.fsencode(tmp_path / "x"))[0]  # type: ignore[arg-type]
    assert {n: a.tolist() for n, a in found.items()} == {"w": [1.0, 2.0], "v": [[1.0], [2.0]]}


def test_nothing_is_allocated_for_what_is_not_there(tmp_path: Any) -> None:
    huge = file_of({"w": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}, b"0000")
    many = {
        f"w{k}": {"dtype": "U8", "shape": [10**5], "data_offsets": [0, 10**5]} for k in range(500)
    }
    tracemalloc.start()
    try:
        for content in (huge, file_of(many, bytes(10**5))):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(ValueError, match="expected a safetensors file"):
                safetensors.load(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "metadata", "error", "message"),
    [
        (
            {"__metadata__": np.ones(1)},
            None,
            ValueError,
            "expected names other than '__metadata__'",
        ),
        ({3: np.ones(1)}, None, TypeError, "expected names that are text, got 3"),
        ({"\ud800": np.ones(1)}, None, ValueError, "expected text that UTF-8 can write"),
        ({}, {"a": 3}, TypeError, "metadata: expected text for text, got 'a': 3"),
        ({}, {"a": "\udcff"}, ValueError, "metadata: expected text that UTF-8 can write"),
        ([np.ones(1)], None, TypeError, r"tensors: expected names to arrays \(a dict\), got list"),
        (None, None, TypeError, r"tensors: expected names to arrays \(a dict\), got NoneType"),
        ({}, "abc", TypeError, "metadata: expected text for text, got str"),
        ({"w": [[1], [2, 3]]}, None, TypeError, "w: expected a numpy.ndarray, got list"),
        (
            {"w": np.ma.array([1.0, 2.0], mask=[True, False])},
            None,
            ValueError,
            r"w: expected numbers everywhere, got a masked array; use a\.filled\(number\)",
        ),
    ],
    ids=[
        "reserved",
        "number",
        "surrogate",
        "metadata",
        "metadata surrogate",
        "list",
        "nothing",
        "metadata text",
        "ragged",
        "masked",
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    values: Any, metadata: Any, error: Any, message: str, tmp_path: Any
) -> None:
    with pytest.raises(error, match=message):
        safetensors.save(tmp_path / "x", values, metadata)
    assert os.listdir(tmp_path) == []


def test_writing_keeps_modes_and_links(tmp_path: Any) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    with safetensors.atomic_write(link) as f:
        f.write(b"new")
    assert link.is_symlink()
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o640)
    (tmp_path / "dangling").symlink_to(tmp_path / "store" / "later")
    with safetensors.atomic_write(tmp_path / "dangling") as f:
        f.write(b"now")
    assert (tmp_path / "store" / "later").read_bytes() == b"now"
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for name, error in (("loop", OSError), ("fifo", ValueError), ("store", IsADirectoryError)):
        with pytest.raises(error), safetensors.atomic_write(tmp_path / name) as f:
            f.write(b"never")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "fifo", "link", "loop", "store"]
    with safetensors.atomic_write(tmp_path / ("n" * 250)) as f:  # no room for ".part" behind it
        f.write(b"long")
    assert (tmp_path / ("n" * 250)).read_bytes() == b"long"


def test_parts_of_the_dead_are_cleared_and_those_of_the_living_kept(tmp_path: Any) -> None:
    code = """
        import os, sys, time
        from ostinato import safetensors
        with safetensors.atomic_write(sys.argv[1]) as f:
            f.write(b"half")
            f.flush()
            print("writing", flush=True)
            time.sleep(60)
        """
    dead, alive = run(code, str(tmp_path / "model")), run(code, str(tmp_path / "model"))
    other = run(code, str(tmp_path / "model.2"))
    for child in (dead, alive, other):
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
    for child in (dead, other):
        child.kill()
        child.communicate()
    assert len(os.listdir(tmp_path)) == 3
    with safetensors.atomic_write(tmp_path / "model") as f:
        f.write(b"whole")
    left = sorted(name.split(".")[-3] for name in os.listdir(tmp_path) if name.endswith(".part"))
    assert left == sorted([str(alive.pid), str(other.pid)])
    alive.kill()
    alive.communicate()
    for name in ("model", "model.2"):
        with safetensors.atomic_write(tmp_path / name) as f:
            f.write(b"again")
    assert sorted(os.listdir(tmp_path)) == ["model", "model.2"]


def test_a_foreign_model_is_refused_whole(tmp_path: Any) -> None:
    nn.Linear(2, 2).save(tmp_path / "x")
    with pytest.raises(
        KeyError,
        match=r"missing \['weight_ih_l0'.*unknown \['bias', 'weight'\]|missing .*unknown "
        r"\['weight', 'bias'\]",
    ):
        nn.GRU(2, 2).load(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        nn.GRU(2, 2).load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="path: expected a folder at"):
        nn.GRU(2, 2).save(tmp_path / "no" / "x")
    with pytest.raises(
        TypeError, match="w: expected a dtype that safetensors knows, got complex128"
    ):
        safetensors.save(tmp_path / "y", {"w": np.zeros(2, complex)})
    assert not (tmp_path / "y").exists()


def run(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
        # Writing further fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            ost.nn.Linear(100, 100).save(sys.argv[1])
        except OSError as e:
            print("OSError", e.filename)
        """,
        str(path),
    )
    out, err = child.communicate()
    assert out == f"OSError {path}\n", err
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model"]


def test_save_overwrites(tmp_path: Any) -> None:
    a, b = nn.Linear(3, 3, rng=0), nn.Linear(3, 3, rng=1)
    a.save(tmp_path / "m")
    b.save(tmp_path / "m")
    a.load(str(tmp_path / "m"))
    assert np.array_equal(a.flat, b.flat)
    assert ost.safetensors is safetensors


# -- memory ----------------------------------------------------------------------------------------


def _weights_of_keras(path: Any) -> None:
    pytest.importorskip("h5py")
    ost.to_keras(nn.LSTM(400, 500, rng=0), path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def _sound(path: Any) -> None:
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(8000)
        f.writeframes(bytes(1 << 21))


def _table(path: Any) -> None:
    pytest.importorskip("polars")
    path.write_text("t,value\n" + "".join(f"{k},{k % 977 / 7:.5f}\n" for k in range(150_000)))


def _text_of(path: Any) -> Any:
    from ostinato.tasks import _csv

    return _csv._records(path.read_bytes(), ord(","))


# How a file is made, how it is read, and the most memory that this takes, times the file. What
# tracemalloc counts is what is asked for: parameters that are zeros at first are in it, though the
# system gives no memory for them.
READERS: dict[str, tuple[Any, Any, float]] = {
    "model": (lambda p: nn.Sequential(nn.LSTM(400, 500), nn.Linear(500, 9)).save(p), ost.load, 3.2),
    "bfloat16": (
        lambda p: safetensors.save(p, {"w": np.ones((900, 900))}, dtype="bfloat16"),
        safetensors.load,
        2.5,
    ),
    "keras": (_weights_of_keras, ost.from_keras, 3.2),
    "wav": (_sound, ost.audio.read_wav, 3.0),
    "records": (_table, _text_of, 4.0),
}


@pytest.mark.parametrize("name", READERS)
def test_memory_for_a_large_file(name: str, tmp_path: Any) -> None:
    make, read, most = READERS[name]
    make(tmp_path / "file")
    read(tmp_path / "file")  # what is imported late
    tracemalloc.start()
    try:
        read(tmp_path / "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * (tmp_path / "file").stat().st_size


def test_layers_of_a_file_draw_no_numbers(tmp_path: Any) -> None:
    """Those of a class of the user's own do, since its constructor may compute with them."""
    seen = []

    class Net(nn.Model):
        def __init__(self) -> None:
            self.own = nn.Linear(3, 4)
            seen.append(np.array(self.own.parameters()["weight"]))

    path = tmp_path / "model"
    Net().save(path)
    nn.Sequential(nn.GRU(3, 4, rng=0), nn.LayerNorm(4)).save(tmp_path / "other")
    made = ost.load(path, Net)
    assert seen[-1].any()
    np.testing.assert_array_equal(seen[0], made.own.parameters()["weight"])
    assert not np.array_equal(seen[-1], seen[0])
    with _check.values_follow():
        assert not nn.GRU(3, 4, rng=0).flat.any()
    loaded = ost.load(tmp_path / "other")
    assert loaded.parameters()["0.weight_hh_l0"].all()
    assert nn.GRU(3, 4, rng=0).parameters()["weight_hh_l0"].all()  # and others draw as before


def test_parameters_may_be_loaded_from_views_of_themselves() -> None:
    layer = nn.GRU(4, 4, rng=0)
    before = layer.state_dict()
    views = dict(layer.parameters())
    views["weight_ih_l0"], views["weight_hh_l0"] = views["weight_hh_l0"], views["weight_ih_l0"]
    layer.load_state_dict(views)
    np.testing.assert_array_equal(layer.parameters()["weight_ih_l0"], before["weight_hh_l0"])
    np.testing.assert_array_equal(layer.parameters()["weight_hh_l0"], before["weight_ih_l0"])
