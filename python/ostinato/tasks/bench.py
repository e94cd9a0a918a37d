"""Benchmark of ostinato beside its peers, with answers compared before anything is timed.

Each contender is a process of its own, because the idle workers of one would take the cores of the
next. A driver passes the turn between them and waits until their threads have gone to sleep. Every
turn of ostinato also measures the FMA peak of one core, so all figures of a case come from the same
minute of the same machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, safetensors
from .._annotations import readable
from .._check import Array
from .._runtime import release_memory
from .contenders import CONTENDERS, Case, arrays, make, settings_of
from .models import prepare_file

__all__ = ["FULL", "SHORT", "Case", "Contender", "run", "run_case"]

TOLERANCE = {  # relative to the largest value, after T steps of chained sums in another order
    "float32": 2e-4,
    "float64": 1e-10,
    "bfloat16": 6e-2,  # both sides round; torch its states and sums too
    "int8": 1e-1,
}
TURN_SECONDS = 0.08  # work of one turn
SLEEP_SECONDS = 0.04  # between turns: OpenMP workers spin on for a few milliseconds after a call


SHORT = [
    Case(c, m, b, 256)
    for c in ("lstm", "gru", "rnn")
    for m, b in (("infer", 32), ("train", 32), ("infer", 1))
]
"""The cases of the short benchmark."""
SHORT += [
    Case("lstm", m, 32, 256, pause=ms) for m, ms in (("infer", 10), ("infer", 100), ("train", 10))
]
PAUSED_CALLS = 5  # of a turn, where each comes after a pause
BATCHES, HIDDEN = (1, 4, 16, 32, 64, 128), (32, 64, 128, 256, 512, 1024)
LONGEST = 12e9  # floating-point operations of a case: T is cut where it would take longer


def _grid_case(cell: str, mode: str, batch: int, hidden: int) -> Case:
    one = Case(cell, mode, batch, hidden, 1)
    return Case(cell, mode, batch, hidden, int(min(100, max(10, LONGEST / one.flops))))


FULL = [
    _grid_case(c, m, b, h)
    for c in ("lstm", "gru", "rnn")
    for m in ("infer", "train")
    for h in HIDDEN
    for b in BATCHES
]
"""The cases of the whole benchmark."""


def extra_of(contender: str) -> str:
    """Return the extra that installs a contender.

    >>> extra_of("torch"), extra_of("jax")
    ('bench', 'bench-all')

    Args:
        contender: a name of `CONTENDERS`.

    Returns:
        The name of the extra.
    """
    return "bench" if contender in ("torch", "onnxruntime") else "bench-all"


def _resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes; 0 where the system does not have it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _reset_peak() -> None:
    """Reset VmHWM, and free what the allocator has cached of the case before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def worker(name: str) -> None:
    """Run one contender: read an order a line from standard input, write a reply a line.

    Args:
        name: a name of `CONTENDERS`, with settings.
    """
    job = _Job(name)
    out, sys.stdout = sys.stdout, sys.stderr  # what a framework prints is no reply
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any] = {}
        if order["do"] == "prepare":
            reply["memory"] = job.prepare(order)
        elif order["do"] == "run":
            reply = job.run(order)
        elif order["do"] == "versions":
            reply = _versions(name)
        print(json.dumps(reply), file=out, flush=True)


class _Job:
    """The case that a contender runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.case = SHORT[0]
        self.call: Callable[[], dict[str, Array]] | None = None
        self.repeat = 1

    def prepare(self, order: dict[str, Any]) -> int:
        """Build the case, save its answers, and return the bytes that it takes."""
        self.call = None
        self.case = case = Case(**order["case"])
        arrays(case)  # so that the memory of numpy.random and the like is there already
        release_memory()  # what the case before left would be neither this one's nor counted
        _reset_peak()
        before = _resident("VmRSS")
        self.call = call = make(self.name, case, order["threads"])
        answers = call()
        _reset_peak()
        # The second call counts: what a framework builds in its first call and keeps is part of
        # the memory, the building is not.
        answers = call()
        memory = _resident("VmHWM") - before
        contiguous = {k: np.ascontiguousarray(v) for k, v in answers.items()}
        safetensors.save(order["answers"], contiguous)
        del answers, contiguous
        start = time.perf_counter()
        call()
        many = max(1, int(TURN_SECONDS / max(time.perf_counter() - start, 1e-6)))
        self.repeat = PAUSED_CALLS if case.pause else many
        return memory

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run one turn; return its seconds and, for ostinato, the peak of one core."""
        if self.call is None:
            return {}
        reply: dict[str, Any] = {}
        if self.name == "ostinato":
            from .. import _core

            reply["peak"] = _core.fma_peak(0.02, 8 if order.get("float64") else 4)
        pause, each = self.case.pause / 1000, bool(order.get("each"))
        reply["seconds"] = _turn(self.call, self.repeat, pause, each)
        return reply


def _versions(name: str) -> dict[str, str]:
    """Return the versions of a contender's packages."""
    import importlib.metadata

    owners = importlib.metadata.packages_distributions()  # tensorflow may be tensorflow-cpu
    modules = CONTENDERS[name.partition(":")[0]][1]
    return {m: importlib.metadata.version(owners.get(m, [m])[0]) for m in modules}


def _turn(call: Callable[[], object], repeat: int, pause: float, each: bool) -> float:
    """Return the seconds of a call.

    They are the mean over a row of calls, or the median where each is timed or follows a pause.
    """
    if not (pause or each):
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - start) / repeat
    seconds = []
    for _ in range(repeat):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Contender:
    """Process that runs the cases of one contender.

    >>> contender = Contender("ostinato")
    >>> contender.ask(do="versions")
    {}
    >>> contender.close()

    Args:
        name: a name of `CONTENDERS`, with settings.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        code = "import sys; from ostinato.tasks import bench; bench.worker(sys.argv[1])"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the reply.

        Args:
            **order: ``do`` and what belongs to it, see `worker`.

        Returns:
            The reply.

        Raises:
            ChildProcessError: the process has ended; the message has its last lines.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self._errors.seek(0)
            last = "".join(self._errors.readlines()[-3:]).strip()
            raise ChildProcessError(
                f"{self.name}: the contender's process ended with status {status}: {last}"
            )
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self._errors.close()


def _compare(ours: dict[str, Array], theirs: dict[str, Array], name: str, case: Case) -> float:
    for key, value in theirs.items():
        if value.shape != ours[key].shape:  # as of a peer that does not have the case's options
            raise ValueError(
                f"{case.name}: expected {key} of {name} of shape {ours[key].shape}, got "
                f"{value.shape}"
            )
    errors = [
        np.abs(ours[key] - value).max() / max(float(np.abs(value).max()), 1e-30)
        for key, value in theirs.items()
    ]
    worst = float(np.max(errors))  # NaN stays
    limit = max(
        TOLERANCE[p] for p in (case.precision, settings_of(name).get("precision", case.precision))
    )
    if not worst <= limit:
        raise ValueError(f"{case.name}: expected answers within {limit} of {name}, got {worst:.2g}")
    return worst


def run(
    cases: Sequence[Case],
    *,
    rounds: int = 7,
    threads: int | None = None,
    peers: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    budget: float = 1e9,
) -> dict[str, Any]:
    """Run cases and print a table; figures are medians over interleaved rounds.

    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...     figures = run([Case("gru", "infer", 1, 8, 5)], rounds=1, peers=[])
    >>> figures["cases"][0]["name"]
    'gru-infer-B1-H8'

    Args:
        cases: what is run, in this order.
        rounds: turns of each contender in each case.
        threads: threads of each contender; None: as many as ostinato takes.
        peers: names of `CONTENDERS`; None: all whose packages are installed.
        out: a JSON file for the figures, written after an interruption too, with the cases that
            are done.
        overwrite: whether a file that is there may be replaced.
        budget: seconds after which no further case begins.

    Returns:
        The machine, threads, rounds, versions, and a row for each case as `run_case` returns it.

    Raises:
        ValueError: an unknown peer; a file that is there; a contender whose answers differ.
        ChildProcessError: a contender's process has ended.
    """
    import ostinato as ost

    from .._machine import info

    _check.positive("--rounds", rounds)
    prepare_file("--out", out, overwrite=overwrite)
    threads = ost.get_num_threads() if threads is None else threads
    names = _participants(peers)
    contenders = {n: Contender(n) for n in names}
    figures: dict[str, Any] = {
        "machine": info(),
        "threads": threads,
        "rounds": rounds,
        "versions": {},
        "cases": [],
    }
    begin = time.monotonic()
    try:
        for c in contenders.values():
            figures["versions"].update(c.ask(do="versions"))
        _print_head(figures, names)
        for case in cases:
            if time.monotonic() - begin > budget:
                left = len(cases) - len(figures["cases"])
                print(f"the time budget of {budget:.0f} s is used up; {left} cases left out")
                break
            able = {n: c for n, c in contenders.items() if case.mode in CONTENDERS[n][2]}
            row = run_case(case, able, rounds, threads)
            figures["cases"].append(row)
            _print_row(row, names)
    finally:
        for c in contenders.values():
            c.close()
        if out is not None and figures["cases"]:
            with safetensors.atomic_write(out) as f:
                f.write(json.dumps(figures, indent=1).encode())
    for n in names[1:]:
        ratios = [r["ratio"][n] for r in figures["cases"] if n in r["ratio"]]
        if ratios:
            mean = np.exp(np.mean(np.log(ratios)))
            print(f"geometric mean over {len(ratios)} cases against {n}: {mean:.2f}x")
    return figures


def _participants(peers: Sequence[str] | None) -> list[str]:
    """Return ostinato and the peers that are installed; print which of those asked for are not."""
    for name in peers or ():
        _check.choice("--peers", name, [n for n in CONTENDERS if n != "ostinato"])
    names = ["ostinato"]
    for n, (_, modules, _) in CONTENDERS.items():
        if n == "ostinato" or not (peers is None or n in peers):
            continue
        if all(importlib.util.find_spec(m) is not None for m in modules):
            names.append(n)
        else:
            extra = extra_of(n)
            print(f"{n} is not installed and takes no part: pip install 'ostinato[{extra}]'")
    return names


def _print_head(figures: dict[str, Any], names: list[str]) -> None:
    machine, threads = figures["machine"], figures["threads"]
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    kernels = machine["kernels"]["chosen"]
    print(f"{machine['cpu']}, {threads} threads, kernels {kernels}; {versions}")
    peers = "".join(f"{'x ' + n:>15}" for n in names[1:])
    print(f"{'case':32}{'GFLOP/s':>9}{'of peak':>9}{peers}", flush=True)


def _print_row(row: dict[str, Any], names: list[str]) -> None:
    ratio = row["ratio"]
    cells = "".join(f"{ratio[n]:>14.2f}x" if n in ratio else f"{'-':>15}" for n in names[1:])
    rate = f"{row['gflops']:>9.1f}{100 * row['of_peak']:>8.0f}%"
    print(f"{row['name']:32}{rate}{cells}", flush=True)


def run_case(
    case: Case, contenders: dict[str, Contender], rounds: int, threads: int, *, each: bool = False
) -> dict[str, Any]:
    """Run one case: compare the answers with those of ``ostinato``, then take turns.

    >>> ours = Contender("ostinato")
    >>> row = run_case(Case("gru", "infer", 1, 8, 5), {"ostinato": ours}, rounds=1, threads=1)
    >>> row["steps"], row["ratio"]
    (5, {})
    >>> ours.close()

    Args:
        case: the case.
        contenders: processes by name, ``ostinato`` among them.
        rounds: turns of each.
        threads: threads of each.
        each: the time of a turn is the median over its calls, not their mean.

    Returns:
        The fields of the case and ``name``; ``difference`` of the answers by peer; by contender
        median ``seconds`` of a call, their ``spread`` and ``memory`` in bytes; ``peak_gflops`` of
        one core; ``gflops`` and ``of_peak`` of ostinato; ``ratio`` by peer: how many times faster
        ostinato is.

    Raises:
        ValueError: answers differ by more than `TOLERANCE`.
    """
    memory = {}
    with tempfile.TemporaryDirectory() as folder:
        answers = {}
        for n, c in contenders.items():
            path = Path(folder) / n.replace(":", "-")
            memory[n] = c.ask(do="prepare", case=asdict(case), threads=threads, answers=str(path))[
                "memory"
            ]
            answers[n] = safetensors.load(path)[0]
    difference = {
        n: _compare(answers["ostinato"], a, n, case) for n, a in answers.items() if n != "ostinato"
    }
    seconds: dict[str, list[float]] = {n: [] for n in contenders}
    peaks = []
    for _ in range(rounds):
        for n, c in contenders.items():
            time.sleep(SLEEP_SECONDS)
            reply = c.ask(do="run", float64=case.precision == "float64", each=each)
            seconds[n].append(reply["seconds"])
            if "peak" in reply:
                peaks.append(reply["peak"])
    peak, medians = statistics.median(peaks), {n: statistics.median(s) for n, s in seconds.items()}
    rate = case.flops / medians["ostinato"] * 1e-9
    return {
        **asdict(case),
        "name": case.name,
        "difference": difference,
        "seconds": medians,
        "spread": {n: [min(s), max(s)] for n, s in seconds.items()},
        "memory": memory,
        "peak_gflops": peak,
        "gflops": rate,
        "of_peak": rate / (peak * threads),
        "ratio": {
            n: statistics.median(t / o for t, o in zip(s, seconds["ostinato"]))
            for n, s in seconds.items()
            if n != "ostinato"
        },
    }


readable(globals())
