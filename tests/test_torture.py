"""``tools/torture`` in short: malformed files, kills, and writes that fail.

The long forms are commands; docs/reliability.md has what they found. Files that once showed a fault
are in ``damaged/READER/``.
"""

from __future__ import annotations

import datetime
import gzip
import io
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost

HERE = Path(__file__).parent
TOOLS = HERE.parent / "tools"
sys.path.append(str(TOOLS))

from torture import disk, guard, sealed, seeds  # noqa: E402
from torture.fuzzing import Target, mutate_some  # noqa: E402
from torture.readers import READERS, Reader  # noqa: E402

MUTATIONS = 30
COSTLY = {"table": 6, "documents": 10}  # mutations of what takes 10 ms a file
# Seeds that take more than a tenth of a second to make.
SLOW = ("forecast-model", "translate-model")
CRASHING = ("keras-h5",)  # what reads these is not Python, and may end the process
DATED = ("torch-zip", "torch-pickle", "keras-zip", "keras-config", "table", "transcripts")
DAMAGED = sorted(p for p in (HERE / "damaged").glob("*/*") if p.is_file())


def reader_of(name: str) -> Reader:
    reader = READERS[name]
    if reader.missing():
        pytest.skip(f"{', '.join(reader.missing())} is not installed: pip install 'ostinato[test]'")
    return reader


# -- malformed files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in READERS if n not in SLOW])
def test_malformed_files(name: str, tmp_path: Path) -> None:
    """A file is read or refused with a clear error, and nothing is run, written or looked up."""
    given = reader_of(name).name, tmp_path, COSTLY.get(name, MUTATIONS)
    if name in CRASHING:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            faults, counts = child.submit(mutate_some, *given).result()
    else:
        faults, counts = mutate_some(*given)
    assert faults == []
    assert counts["read"] > 0
    assert counts["inside"] + counts["front"] > 0


@pytest.mark.parametrize("name", DATED)
def test_the_files_to_mutate_do_not_depend_on_the_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, made = reader_of(name), []
    for year in (2001, 2022):
        then = datetime.datetime(year, 3, 4, tzinfo=datetime.timezone.utc)
        monkeypatch.setattr(time, "time", then.timestamp)
        monkeypatch.setattr(time, "localtime", lambda *_, at=then: at.timetuple())
        for kept in (seeds._keras, seeds._torch):
            kept.cache_clear()
        made.append([reader.dress(words) for words in reader.seeds()])
    assert made[0] == made[1]


@pytest.mark.parametrize("path", DAMAGED, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_files_that_once_showed_a_fault(path: Path, tmp_path: Path) -> None:
    reader = reader_of(path.parent.name)
    target = Target(reader, tmp_path)
    try:
        target.warm_up(reader.seeds()[:1])
        assert target(path.read_bytes()) == ""
    finally:
        target.close()


def _wide_parquet() -> bytes:
    """Ten million rows of one number, in a few kilobytes."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    out = io.BytesIO()
    pl.select(v=pl.repeat(0.5, 10_000_000, dtype=pl.Float64)).write_parquet(out)
    return out.getvalue()


def _with_names() -> bytes:
    """A model with five thousand parameters that it does not have."""
    header, body = sealed.apart(READERS["model"].seeds()[0])
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return sealed.together({**header, **{f"name{k}": none for k in range(5000)}}, body)


# Files that took minutes, or memory far beyond their size, for what makes them hard.
HARD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a field with spaces": ("abc", lambda: b"X:1\nK:C\nA:b" + b" " * 100_000 + b"c\nabc|\n", ""),
    "brackets that open": ("transcripts", lambda: b"a: " + b"[(<" * 60_000 + b" yes\n", ""),
    "names of columns": (
        "table",
        lambda: ",".join(f"c{k}" for k in range(6_000)).encode() + b"\n",
        "expected",
    ),
    "one text, many answers": (
        "pairs",
        lambda: "".join(f"a\tb{k}\n" for k in range(40_000)).encode(),
        "",
    ),
    "a compressed table": ("table", lambda: gzip.compress(b"v\n" + b"1\n" * (2 << 20)), "unpack"),
    "a parquet of one number": ("parquet", _wide_parquet, "cells in a Parquet file of"),
    "unknown names": ("model", _with_names, "and 4992 more"),
}


@pytest.mark.parametrize("name", HARD)
def test_files_that_are_hard_to_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is read, or refused with the error that is wanted.

    How long that takes is not tested. The files are so large that work that grows as the square of
    them takes minutes, as it once did, and is noticed by whoever waits for it.
    """
    kind, made, wanted = HARD[name]
    reader, words = reader_of(kind), made()
    if "compressed" in name or "parquet" in name:
        from ostinato.tasks import _frames

        monkeypatch.setattr(_frames, "SMALL", 1 << 20)
    path = tmp_path / reader.file
    path.write_bytes(words)
    if wanted:
        with pytest.raises(reader.errors, match=wanted) as caught:
            reader.read(path)
        assert guard.fault_of(caught.value, reader.errors) == ""
    else:
        reader.read(path)


@pytest.mark.parametrize("name", ["table", "transcripts"])
def test_a_small_compressed_file_takes_little_memory(name: str, tmp_path: Path) -> None:
    """What may be unpacked at most is not what is taken for a file of a few bytes."""
    reader = reader_of(name)
    path = tmp_path / reader.file
    path.write_bytes(gzip.compress(b"v\n1\n2\n" if name == "table" else b"a: yes\n"))
    reader.read(path)
    tracemalloc.start()
    try:
        reader.read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _imports(path: Path) -> None:
    __import__("module_of_a_file")


def _unpickles(path: Path) -> None:
    pickle.loads(b"cos\nsystem\n(S'true'\ntR.")


def _looks_elsewhere(path: Path) -> None:
    (path.parent.parent / "other").read_text()


def _calls(path: Path) -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def _hides(path: Path) -> None:
    try:
        subprocess.run(["true"], check=True)
    except BaseException as e:
        raise ValueError("expected nothing to be run") from e


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a process": (lambda path: os.system("true"), "os.system"),
    "a hidden process": (_hides, "Executed"),
    "code": (lambda path: exec("1 + 1"), "compile|exec"),
    "a pickle": (_unpickles, "pickle.find_class|os.system"),
    "a host": (_calls, "socket.connect"),
    "a write": (lambda path: path.write_text("mine"), "opened for writing"),
    "a removal": (lambda path: path.unlink(), "os.remove"),
    "another file": (_looks_elsewhere, "another file was opened"),
    "an import": (_imports, "import of 'module_of_a_file'"),
    "a warning": (lambda path: warnings.warn("overflow", RuntimeWarning, 2), "RuntimeWarning"),
    "another error": (lambda path: {}["name"], "KeyError"),
    "an error without words": (lambda path: int("x" * 5), "says nothing that was expected"),
    "a long error": (lambda path: np.dtype(path.read_text()), "TypeError"),
    "an endless error": (lambda path: _refuse(5000), "an error of"),
    "a wrong result": (lambda path: _wrong(), "AssertionError"),
}


def _refuse(length: int) -> None:
    raise ValueError("expected " + "x" * length)


def _wrong() -> None:
    raise AssertionError("another content")


@pytest.mark.parametrize("name", HOSTILE)
def test_faults_are_noticed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "other").write_text("secret")
    path = folder / "a"
    path.write_text("content")
    read, wanted = HOSTILE[name]
    fault = guard.outcome(read, path, (ValueError,)).fault
    assert any(one in fault for one in wanted.split("|")), fault


def test_only_the_first_file_of_a_kind_is_kept(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        raise TypeError(f"number {len(path.read_bytes())} of {path}")

    target = Target(Reader("x", "a", read, lambda: [b""]), tmp_path / "faults")
    assert [bool(target(words)) for words in (b"a", b"bb")] == [True, True]
    target.close()
    assert len(list((tmp_path / "faults").glob("*.txt"))) == 1


# -- kills -----------------------------------------------------------------------------------------


def run(*words: str) -> str:
    paths = [str(Path(ost.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(TOOLS / "torture"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_as_those_that_were_not() -> None:
    out = run("kill", "fit", "--kills", "4")
    assert "0 faults" in out


# -- writes that fail ------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_writes_that_fail() -> None:
    out = run("disk", "layer", "fit", "--fault", "full")
    assert out.count(" 0 faults") == 2


BEFORE = {"a.safetensors": b"old", "log.csv": b"a\n", "t.txt": b"old", "m.onnx": b"old"}
BEFORE["w.h5"] = b"old"
GOOD = {"status": 2, "error": "OSError: No space left on device: 'a'", "lines": ""}
DONE = {"status": 0, "error": "", "lines": ""}
WRONG: dict[str, tuple[dict[str, Any], dict[str, bytes | None], str]] = {
    "a traceback": ({**GOOD, "error": "", "lines": "Traceback"}, {}, "Traceback"),
    "another error": ({**GOOD, "status": 3}, {}, "status 3"),
    "no reason": ({**GOOD, "error": "OSError: failed"}, {}, "does not say"),
    "a hidden name": ({**GOOD, "error": GOOD["error"] + ".part"}, {}, "names a part file"),
    "a part file": (GOOD, {".a.1.part": b""}, "left behind"),
    "a lost file": (GOOD, {"t.txt": None}, "t.txt is gone"),
    "half a row": (GOOD, {"log.csv": b"a\n1,"}, "log.csv is not whole"),
    "half a new file": (GOOD, {"b.png": b"\x89PNG"}, "b.png is new and not whole"),
    "half a text": (GOOD, {"t.txt": b"ne"}, "t.txt is not whole"),
    "half a model": (GOOD, {"a.safetensors": b"ne"}, "a.safetensors is not whole"),
    "half a graph": (GOOD, {"m.onnx": b"\x08\x07:"}, "m.onnx is not whole"),
    "half a tree": (GOOD, {"w.h5": b"\x89HDF\r\n\x1a\n"}, "w.h5 is not whole"),
    "an old file, said to be written": (DONE, {"t.txt": b"old"}, "status 0, and t.txt is the old"),
    "nothing, said to be written": (DONE, {"new.txt": None}, "status 0, and new.txt was not"),
}


def written(folder: Path) -> dict[str, bytes]:
    """Return what a write without a fault leaves."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    layer = ost.nn.GRU(2, 2, rng=0)
    layer.save(folder / "a.safetensors")
    ost.to_onnx(layer, folder / "m.onnx")
    ost.to_keras(ost.nn.Sequential(layer), folder / "w.weights.h5")
    made = {n.replace(".weights", ""): words for n, words in disk.files_of(folder).items()}
    return {**made, "log.csv": b"a\n1,2\n", "t.txt": b"new\n", "new.txt": b"new\n"}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_failed_write_must_not_do(name: str, tmp_path: Path) -> None:
    case = disk.Case("full", BEFORE, written(tmp_path))
    found, changed, message = WRONG[name]
    for right, after in ((GOOD, BEFORE), (GOOD, case.wanted), (DONE, case.wanted)):
        assert disk.judged(right, case, after) == ""
    after = {**(case.wanted if found is DONE else BEFORE), **changed}
    assert message in disk.judged(found, case, {n: w for n, w in after.items() if w is not None})


def test_a_file_that_cannot_be_written_is_named_and_not_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk the part file cannot even be made; after that nothing may be left."""
    target = tmp_path / "model"
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system", path)
        return real(path, flags, *rest, **more)

    def failing(fd: int) -> os.stat_result:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(OSError, match=r"Read-only file system: '.*/model'$"):
            ost.nn.Linear(2, 2).save(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", failing)
        with pytest.raises(OSError, match=r"Input/output error: '.*/model'$"):
            ost.nn.Linear(2, 2).save(target)
    assert os.listdir(tmp_path) == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "flow.png"
    flow = ost.diagnostics.gradient_flow(ost.nn.GRU(2, 3, rng=0), np.ones((4, 2, 2), np.float32))
    best = ost.train.Trial(0, {"lr": 0.1}, 0.5, "complete", 10)
    found = ost.train.SearchResult([best], best, "valid_loss", None)
    for draw in (flow.plot, found.plot):
        path.write_bytes(b"old")
        with pytest.raises(ValueError, match=r"(?i)format"):
            draw(path.with_suffix(".nonsense"))
        assert os.listdir(tmp_path) == ["flow.png"]
        draw(path)
        assert path.read_bytes().startswith(b"\x89PNG")
