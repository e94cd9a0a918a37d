"""Malformed files for every reader, by atheris, which is guided by the coverage of Python."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from .fuzzing import totals
from .readers import Reader, chosen

ROOT = Path(__file__).resolve().parent.parent.parent


def _fuzzed(reader: Reader, args: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one reader up to a number of files, in a new process after each that crashed."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    state = out / f"{reader.name}.json"
    ended: list[str] = []
    began = time.monotonic()
    while (done := totals(state)["runs"]) < args.runs and len(ended) < 20:
        left = args.seconds - int(time.monotonic() - began) if args.seconds else 0
        if args.seconds and left <= 0:
            break
        words = [reader.name, os.path.abspath(args.out)]
        words += [str(n) for n in (args.runs - done, args.seed + done, left)]
        command = [sys.executable, "-m", "torture.fuzzing", *words]
        ran = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, check=False
        )
        if ran.returncode == 0:
            break
        ended.append(_reason(ran))
        if totals(state)["runs"] == done:
            break
    faults = sorted((out / "faults" / reader.name).glob("*.txt"))
    return {**totals(state), "ended": ended, "faults": [f.read_text().strip() for f in faults]}


def _environment() -> dict[str, str]:
    """Return the environment of a process that fuzzes; threads would only wait for one another."""
    return {
        **os.environ,
        "PYTHONPATH": _paths(),
        "PYTHONWARNINGS": "ignore",
        "RUST_BACKTRACE": "0",  # of a panic of Polars, which takes seconds to write
        "POLARS_MAX_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _paths() -> str:
    return os.pathsep.join([str(ROOT / "tools"), *os.environ.get("PYTHONPATH", "").split(":")])


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a process ended before its time."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        lines = [x for x in done.stderr.splitlines() if "ERROR" in x or "artifact" in x]
        return f"{name}: {' '.join(lines)[:300]}"
    lines = [x for x in done.stderr.splitlines() if "ERROR" in x or "Test unit" in x]
    return " ".join(lines)[:300] or f"exit {done.returncode}: {done.stderr[-600:]}"


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    readers = chosen(args.reader)
    if args.list:
        print("\n".join(r.name for r in readers))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("files: expected atheris, found none: pip install 'ostinato[torture]'")
        return 2
    bad = 0
    for reader in readers:
        if reader.missing():
            print(f"{reader.name:16} left out: {', '.join(reader.missing())} is not installed")
            continue
        try:
            found = _fuzzed(reader, args)
        except KeyboardInterrupt:
            raise
        except Exception:
            traceback.print_exc()
            bad = 1
            continue
        kinds = len(found["faults"]) + len(found["ended"])
        bad |= kinds > 0
        print(
            f"{reader.name:16} {found['runs']:7} files, {found['read']:6} read, "
            f"{found['inside']:6} refused inside, {found['front']:6} at the front, "
            f"{kinds} kinds of faults, {found['seconds']:.0f} s of the processor",
            flush=True,
        )
        for what in (*found["faults"], *found["ended"]):
            print(f"    {what[:300]}", flush=True)
    return int(bad)
