"""SIGKILL at random moments of training; the run that is resumed must end with the same bits.

A process with everything imported forks for each attempt. Half of the kills come after a random
time of the processor, so that other work of the machine moves none, half right before a random
operation on files (opening for writing, renaming, removing), where little time is spent and most
could go wrong. SIGKILL leaves what was handed to the system;
it is no power cut.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import cli, safetensors
from ostinato.tasks import series as _series  # noqa: F401  # before all forks
from ostinato.tasks import text as _of_text  # noqa: F401

from .ledger import Ledger, fast_folder
from .writers import short_samples

OPERATIONS = "operations.txt"
LONGEST = 1200  # seconds of a run and its kills, on a machine that may have much else to do
PROCESSOR = 2  # CLOCK_PROCESS_CPUTIME_ID
_WRITES = os.O_WRONLY | os.O_RDWR
_CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")


@dataclass(frozen=True)
class Job:
    """A training that is killed.

    Attributes:
        prepare: writes the data into a folder.
        run: trains in a folder, and goes on from what a killed run left there.
        model: the file of the result, within the folder.
        files: all that may be there in the end.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], int]
    model: str
    files: frozenset[str]


def _text_data(folder: Path) -> None:
    rng = random.Random(0)
    words = ["to", "be", "or", "not", "that", "is", "the", "question"]
    text = " ".join(rng.choice(words) for _ in range(1500))
    (folder / "corpus.txt").write_text(text, encoding="utf-8")


def _text(folder: Path) -> int:
    there = (folder / "run" / "checkpoint.safetensors").exists()
    way = "--resume" if there else "--overwrite"
    options = f"--steps 24 --hidden 8 --dropout 0.1 --save {folder}/run {way}"
    return cli.main(shlex.split(f"train text {folder}/corpus.txt {options}"))


def _no_data(folder: Path) -> None:
    (folder / "run").mkdir()


def _fit(folder: Path) -> int:
    """Train on streams in strides, with a log, a validation and a rate that follows it."""
    ids = np.random.default_rng(0).integers(0, 5, 400)
    loader = ost.data.StreamLoader(ids, 4, 12)
    model = ost.nn.Sequential(
        ost.nn.Embedding(5, 3, rng=0), ost.nn.LSTM(3, 4, rng=0), ost.nn.Linear(4, 5, rng=0)
    )
    rate = ost.optim.ReduceOnPlateau(0.01, patience=1)
    trainer = ost.Trainer(model, ost.losses.CrossEntropy(), ost.optim.Adam(rate), tbptt=(3, 6))
    there = (folder / "run" / "checkpoint").exists()
    trainer.fit(
        loader,
        validation=loader,
        steps=60,
        validate_every=3,
        checkpoint=folder / "run" / "checkpoint",
        log=folder / "run" / "log.csv",
        resume=there,
        overwrite=not there,
        progress=False,
    )
    model.save(folder / "run" / "model.safetensors")
    return 0


def _table(folder: Path) -> None:
    rows = [f"{t},{10 + (t % 6) + (t % 7) / 10}" for t in range(72)]
    (folder / "sales.csv").write_text("\n".join(["t,sales", *rows]) + "\n", encoding="utf-8")


def _forecast(folder: Path) -> int:
    """Train a model that has no checkpoint: a killed run begins anew."""
    options = "--horizon 3 --epochs 2 --members 1 --hidden 4 --season 6 --overwrite"
    return cli.main(shlex.split(f"train forecast {folder}/sales.csv --save {folder}/run {options}"))


_MODEL = "model.safetensors"
JOBS = {
    "text": Job(
        _text_data, _text, _MODEL, frozenset({_MODEL, "checkpoint.safetensors", "log.csv"})
    ),
    "fit": Job(_no_data, _fit, _MODEL, frozenset({_MODEL, "checkpoint", "log.csv"})),
    "forecast": Job(_table, _forecast, _MODEL, frozenset({_MODEL})),
}


class _Trigger:
    """Count a process's operations on files, and kill it right before one of them."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count = str(folder), at, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
        if (writes or event in _CHANGES) and str(args[0]).startswith(self.folder):
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


class _Event(ctypes.Structure):
    """A ``sigevent`` of the C library that sends a signal."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("way", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


def _killed_after(seconds: float) -> None:
    """Let the system kill this process when it has computed for so long."""
    library, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = _Event(signal=signal.SIGKILL)
    whole, rest = divmod(max(seconds, 1e-6), 1.0)
    times = (ctypes.c_long * 4)(0, 0, int(whole), int(rest * 1e9))
    if library.timer_create(PROCESSOR, ctypes.byref(event), ctypes.byref(timer)) or (
        library.timer_settime(timer, 0, times, None)
    ):
        raise OSError(ctypes.get_errno(), "no timer of the processor")


def attempt(job: Job, folder: Path, *, after: float | None = None, at: int | None = None) -> int:
    """Run a job in a process of its own, and kill it; return the status that `os.wait` gives.

    Args:
        job: the job.
        folder: where it works.
        after: seconds of the processor after which it is killed; None for never.
        at: the number of the operation on files before which it kills itself.
    """
    child = os.fork()
    if not child:
        status = 70
        try:
            for fd in (1, 2):
                os.dup2(os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
            short_samples()
            trigger = _Trigger(folder / "run", at)
            sys.addaudithook(trigger)
            if after is not None:
                _killed_after(after)
            status = job.run(folder)
            (folder / OPERATIONS).write_text(f"{trigger.count} {time.process_time()}")
        except BaseException as e:
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log, without the times."""
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


def result(job: Job, folder: Path) -> dict[str, Any]:
    """Return what must be equal, bit by bit, and what else lies in the folder."""
    inside = folder / "run"
    names = {p.name for p in inside.iterdir()}
    out: dict[str, Any] = {"left over": sorted(names - job.files)}
    out["model"] = (inside / job.model).read_bytes()
    for name in sorted(names & job.files - {job.model}):
        if name == "log.csv":
            out[name] = _rows(inside / name)
        else:
            arrays, _ = safetensors.load(inside / name)
            out[name] = {n: a.tobytes() for n, a in arrays.items()}
    return out


def whole(folder: Path) -> str:
    """Return what is not whole after a kill, "" for nothing."""
    inside = folder / "run"
    for path in inside.iterdir() if inside.exists() else ():
        if path.name.startswith(".") or path.suffix == ".csv":
            continue  # the part file of the dead, or the log, whose last row a resume mends
        try:
            safetensors.load(path)
        except ValueError as e:
            return f"{path.name} is not whole: {e}"
    return ""


def series(job: Job, kills: int, seed: int, done: Ledger, name: str) -> list[str]:
    """Kill runs of a job until there were so many kills, and compare each end; return faults."""
    rng, number, faults = random.Random(seed), 0, list[str]()
    with tempfile.TemporaryDirectory(dir=fast_folder()) as base:
        first = Path(base) / "undisturbed"
        first.mkdir()
        job.prepare(first)
        if attempt(job, first):
            raise RuntimeError((first / "output.txt").read_text())
        wanted = result(job, first)
        sites, length = (first / OPERATIONS).read_text().split()
        while done.of(name).get("kills", 0) < kills and len(faults) < 5:
            number += 1
            folder = Path(base) / str(number)
            folder.mkdir()
            job.prepare(folder)
            tally, fault = _to_the_end(job, folder, rng, (float(length), int(sites)))
            if not fault and result(job, folder) != wanted:
                differing = [n for n, v in result(job, folder).items() if v != wanted.get(n)]
                fault = f"another end than that of the undisturbed run: {differing}"
            if fault:
                faults.append(f"run {number} of seed {seed}: {fault}")
            done.add(name, **tally, ends=1, faults=faults[-1:] if fault else [])
            shutil.rmtree(folder)
    return faults


def _to_the_end(
    job: Job, folder: Path, rng: random.Random, size: tuple[float, int]
) -> tuple[dict[str, int], str]:
    """Kill and resume a run until it ends; return the counts and a fault, "" for none.

    Args:
        job: the job.
        folder: where it works.
        rng: when it is killed.
        size: seconds and operations on files of the undisturbed run.
    """
    tally = {"kills": 0, "resumed": 0}
    began = time.monotonic()
    while time.monotonic() - began < LONGEST:
        if rng.random() < 0.5:
            status = attempt(job, folder, after=rng.uniform(0, size[0]))
        else:
            status = attempt(job, folder, at=rng.randrange(size[1]))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            tally["kills"] += 1
            fault = whole(folder)
            if fault:
                return tally, fault
            tally["resumed"] += (folder / "run").exists() and any((folder / "run").iterdir())
        elif status:
            return tally, f"status {status}: {(folder / 'output.txt').read_text()[-500:]}"
        else:
            return tally, ""
    return tally, f"no end within {LONGEST} s"


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    names = args.job or list(JOBS)
    unknown = [n for n in names if n not in JOBS]
    if unknown:
        raise SystemExit(f"job: expected some of {', '.join(JOBS)}, got {unknown[0]!r}")
    bad, done = False, Ledger(args.out, "kill")
    if "forecast" in names:
        importlib.import_module("polars")  # before all forks
    for name in names:
        seed = args.seed + done.of(name).get("kills", 0)
        faults = series(JOBS[name], args.kills, seed, done, name)
        bad |= bool(faults)
        own = done.of(name)
        print(
            f"{name:10} {own.get('kills', 0)} kills, {own.get('resumed', 0)} of which left files "
            f"to go on from, {own.get('ends', 0)} ends compared, {len(faults)} faults",
            flush=True,
        )
        for fault in faults:
            print(f"    {fault}")
    return int(bad)
