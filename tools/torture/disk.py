"""Writes that fail, one after the other, in everything that writes files.

A library that the loader puts before the C library counts the calls that change files in one
folder, and lets one of them fail, or all from there on. So it sees what Python, NumPy, HDF5 and
matplotlib do alike. Every run is a process of its own, forked after all imports.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .ledger import Ledger, fast_folder

ROOT = Path(__file__).resolve().parent.parent.parent
FAULTS = {"full": 1, "read-only": 2, "error": 3, "short": 4, "slow": 5}
# A name of the system's for each kind; "short" ends as a full disk does.
TEXTS = {
    "full": "No space left on device",
    "short": "No space left on device",
    "read-only": "Read-only file system",
    "error": "Input/output error",
}
STUCK = ("read-only", "error")  # faults that may keep a part file from being removed


def build(folder: Path) -> Path:
    """Compile the library.

    Raises:
        FileNotFoundError: there is no C compiler.
        RuntimeError: it does not compile.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("disk: expected a C compiler, found none")
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return library


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    from .writers import WRITERS

    names = args.job or list(WRITERS)
    kinds = args.fault or list(FAULTS)
    for given, known in ((names, WRITERS), (kinds, FAULTS)):
        unknown = [n for n in given if n not in known]
        if unknown:
            raise SystemExit(f"disk: expected some of {', '.join(known)}, got {unknown[0]!r}")
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        paths = [str(ROOT / "tools"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "torture.disk", json.dumps([names, kinds, args.out])]
        return subprocess.run(command, env=environment, check=False).returncode


# -- in the process with the library ---------------------------------------------------------------


class _Library:
    """The functions of the library, which is loaded already."""

    def __init__(self) -> None:
        self.own = ctypes.CDLL(None)
        self.own.torture_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self.own.torture_count.restype = ctypes.c_long
        self.own.torture_names.restype = ctypes.c_char_p

    def arm(self, folder: Path, at: int, kind: int, lasting: bool) -> None:
        """Let the call with a number fail; -1 for none."""
        self.own.torture_arm(os.fsencode(folder), at, kind, int(lasting))

    def disarm(self) -> tuple[int, str]:
        """Let all calls work again; return how many there were, and their names."""
        self.own.torture_disarm()
        return self.own.torture_count(), self.own.torture_names().decode()


def _attempt(writer: Any, folder: Path, at: int, kind: int, lasting: bool) -> dict[str, Any]:
    """Run a writer in a process of its own; return what it came to."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _child(writer, folder, (at, kind, lasting), report)
        finally:
            os._exit(71)
    status = os.waitpid(child, 0)[1]
    if not report.exists():
        return {"status": status, "error": "", "lines": f"it ended with {status}", "count": 0}
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _child(writer: Any, folder: Path, fault: tuple[int, int, bool], report: Path) -> None:
    library, output = _Library(), folder / "output.txt"
    for fd in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), fd)
    library.arm(folder / "out", *fault)
    error, status = "", 0
    try:
        status = writer.run(folder) or 0
    except OSError as e:
        error, status = f"{type(e).__name__}: {e}", 2
    except BaseException as e:
        error, status = f"not an OSError, but {type(e).__name__}: {e}", 3
    count, names = library.disarm()
    sys.stdout.flush()
    sys.stderr.flush()
    lines = output.read_text(errors="replace")
    facts = {"status": status, "error": error, "lines": lines, "count": count, "names": names}
    report.write_text(json.dumps(facts))
    os._exit(0)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder and their bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def _loads(path: Path, name: str) -> bool:
    """Return whether the library that reads a format reads all of a file."""
    from ostinato import safetensors

    try:
        if name.endswith(".safetensors") or name == "run":
            safetensors.load(path)
        elif name.endswith(".onnx"):
            import onnx

            onnx.checker.check_model(onnx.load(path), full_check=True)
        elif name.endswith(".h5"):
            import h5py

            with h5py.File(path) as f:
                f.visititems(lambda _, v: v[()] is None if isinstance(v, h5py.Dataset) else None)
    except Exception:  # whatever the library makes of a part of a file
        return False
    return True


def whole(words: bytes, name: str, wanted: bytes | None = None) -> bool:
    """Return whether a file is all there, as far as its format can tell.

    Args:
        words: its bytes.
        name: its name.
        wanted: what is written without a fault; plain text has no other mark of its end.
    """
    if not words:
        return False
    if name.endswith((".txt", ".tsv", ".abc", ".conll")):
        return words == wanted
    if name.endswith(".png"):
        return words.startswith(b"\x89PNG") and words.rstrip().endswith(b"IEND\xaeB`\x82")
    if name.endswith(".csv"):
        return words.endswith(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(words)
        return _loads(path, name)


@dataclass(frozen=True)
class Case:
    """A write that fails.

    Attributes:
        kind: the fault.
        before: the files that were there, of another content than those that are written.
        wanted: the files that are there after a write without a fault.
    """

    kind: str
    before: dict[str, bytes]
    wanted: dict[str, bytes]


def judged(found: dict[str, Any], case: Case, after: dict[str, bytes]) -> str:
    """Return what is wrong with a run whose write failed, "" for nothing.

    Args:
        found: what the run said.
        case: the fault, and the files.
        after: the files that are there now.
    """
    said, text = found["error"] or found["lines"], TEXTS[case.kind]
    if "Traceback" in said or found["status"] not in (0, 2):
        return f"status {found['status']}: {said[-400:]}"
    if found["status"] == 2 and text not in said:
        return f"an error that does not say {text!r}: {said[-300:]}"
    if found["status"] == 2 and ".part" in said:
        return f"an error that names a part file: {said[-300:]}"
    parts = [n for n in after if n.endswith(".part")]
    if parts and case.kind not in STUCK:
        return f"left behind: {parts}"
    gone = [n for n in case.before if n not in after]
    if gone:
        return f"{gone[0]} is gone"
    return _content(found["status"] == 0, case, {n: after[n] for n in after if n not in parts})


def _content(done: bool, case: Case, after: dict[str, bytes]) -> str:
    """Return what is wrong with the files of a run that said that it is done, or that it failed."""
    if done:
        for name in case.wanted:
            if name not in after:
                return f"status 0, and {name} was not written"
            if after[name] == case.before.get(name) != case.wanted[name]:
                return f"status 0, and {name} is the old one"
    for name, words in after.items():
        old = words == case.before.get(name)
        if not old and not whole(words, name, case.wanted.get(name)):
            return f"{name} is {'' if name in case.before else 'new and '}not whole"
    return ""


def _tried(writer: Any, base: Path, case: Case, at: int, lasting: bool) -> str:
    """Run a writer with one fault on a copy of a folder; return what is wrong."""
    kind, work = case.kind, base.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    found = _attempt(writer, work, at, FAULTS[kind], lasting)
    after = files_of(work / "out")
    name = found.get("names", "").split()
    site = f"{kind}{' from there on' if lasting else ''} at call {at}"
    site += f" ({name[at]})" if at < len(name) else ""
    wrong = judged(found, case, after)
    if not wrong and any(n.endswith(".part") for n in after):
        again = _attempt(writer, work, -1, 0, False)  # what was left is cleared by the next write
        left = [n for n in files_of(work / "out") if n.endswith(".part")]
        wrong = f"left behind for good: {left}" if left or again["status"] else ""
    return f"{site}: {wrong}" if wrong else ""


def _put_others(writer: Any, base: Path) -> None:
    """Put files of another content where the writer writes.

    A writer that reads what is there writes them itself; for all others anything will do.
    """
    first = replace(writer, run=writer.earlier or writer.run)
    _attempt(first, base, -1, 0, False)
    for path in () if writer.earlier else (base / "out").rglob("*"):
        if path.is_file():
            path.write_bytes(b"an earlier file\n")


def _prepared(writer: Any, folder: Path) -> None:
    """Prepare a folder in a process of its own: forks would lack the threads that it starts."""
    child = os.fork()
    if not child:
        status = 70
        try:
            writer.prepare(folder)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("disk: what the writer needs could not be made")


def _all(name: str, writer: Any, kinds: list[str], folder: Path, done: Ledger) -> list[str]:
    """Let every call of a writer fail that did not in an earlier run; return what was wrong."""
    wrong: list[str] = []
    for there in (False, True):  # nothing is there before; the files of an earlier run are
        left = [k for k in kinds if not done.of(_key(name, there, k))]
        if not left:
            continue
        base = folder / f"{name}-{there}"
        (base / "in").mkdir(parents=True)
        (base / "out").mkdir()
        _prepared(writer, base)
        if there:
            _put_others(writer, base)
        work = folder / "work"
        shutil.copytree(base, work)
        plain = _attempt(writer, work, -1, 0, False)
        if plain["status"] or plain["error"]:
            return [f"it fails without a fault: {plain['error'] or plain['lines'][-500:]}"]
        missing = [n for n in writer.outputs if not (work / "out" / n).exists()]
        if missing:
            return [f"it did not write {missing}"]
        before, wanted = files_of(base / "out"), files_of(work / "out")
        for kind in left:
            runs, found = _each(writer, base, Case(kind, before, wanted), plain["count"])
            wrong += found
            done.add(_key(name, there, kind), calls=plain["count"], runs=runs, faults=found)
        shutil.rmtree(work, ignore_errors=True)
    return wrong


def _key(name: str, there: bool, kind: str) -> str:
    return f"{name}, {'files before' if there else 'nothing before'}, {kind}"


def _each(writer: Any, base: Path, case: Case, calls: int) -> tuple[int, list[str]]:
    """Let every call fail with one fault; return the number of runs and what was wrong."""
    if case.kind == "slow":
        return 1, _slow(writer, base, base.parent / "work")
    # A disk stays full; an error may be one of this call alone.
    ways = (True, False) if case.kind == "error" else (True,)
    found = [_tried(writer, base, case, at, way) for at in range(calls) for way in ways]
    return len(found), [f for f in found if f]


def _slow(writer: Any, base: Path, work: Path) -> list[str]:
    """Run a writer with all calls slow: it ends as it does otherwise."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    found = _attempt(writer, work, -1, FAULTS["slow"], True)
    there = all((work / "out" / n).exists() for n in writer.outputs)
    return [] if not found["status"] and there else [f"slow: {found['error'] or found['lines']}"]


def _main(names: list[str], kinds: list[str], out: str) -> int:
    import ostinato.tasks.series
    import ostinato.tasks.text  # noqa: F401  # before all forks

    from .writers import WRITERS

    needed = {n for name in names for n in WRITERS[name].needs}
    for module in sorted(n for n in needed if importlib.util.find_spec(n) is not None):
        importlib.import_module("matplotlib.figure" if module == "matplotlib" else module)
    bad, done = False, Ledger(out or None, "disk")
    for name in names:
        missing = [n for n in WRITERS[name].needs if importlib.util.find_spec(n) is None]
        if missing:
            print(f"{name:16} left out: {', '.join(missing)} is not installed")
            continue
        with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
            wrong = _all(name, WRITERS[name], kinds, Path(folder), done)
        bad |= bool(wrong)
        print(f"{_told(name, done)}, {len(wrong)} faults", flush=True)
        for what in wrong[:12]:
            print(f"    {what}", flush=True)
    return int(bad)


def _told(name: str, done: Ledger) -> str:
    """Return what was done with a writer so far."""
    mine = [facts for key, facts in done.facts.items() if key.startswith(f"{name}, ")]
    calls, runs = max((f["calls"] for f in mine), default=0), sum(f["runs"] for f in mine)
    return f"{name:16} {calls:4} calls that change files, {runs:5} runs"


if __name__ == "__main__":
    sys.exit(_main(*json.loads(sys.argv[1])))
