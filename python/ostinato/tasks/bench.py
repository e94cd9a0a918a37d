"""ostinato beside its peers: a process for each contender, the turn passed between them, answers compared first.

Each contender is a process of its own, since the idle workers of one would take the cores of the next; the driver tells one at a
time to run and waits in between until its threads have gone to sleep. Every turn of ostinato also measures the FMA peak of one
core, so that all figures of a case come from the same minute of the same machine.
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
from .._check import Array
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


def extra_of(contender: str) -> str:
    """The extra that brings a contender.

    >>> extra_of("torch"), extra_of("jax")
    ('bench', 'bench-all')
    """
    return "bench" if contender in ("torch", "onnxruntime") else "bench-all"


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _reset_peak() -> None:
    """Begin VmHWM anew, and give back what the allocator keeps of the case before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def worker(name: str) -> None:
    """The loop of one contender: a JSON line in, a JSON line out."""
    call: Callable[[], dict[str, Array]] | None = None
    case = SHORT[0]
    repeat = 1
    out, sys.stdout = sys.stdout, sys.stderr  # what a framework prints is no reply
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any] = {}
        if order["do"] == "prepare":
            call = None
            case = Case(**order["case"])
            arrays(case)  # so that the memory of numpy.random and the like is there already
            _reset_peak()
            before = _resident("VmRSS")
            call = make(name, case, order["threads"])
            answers = call()
            _reset_peak()
            answers = call()  # the second call: what a framework makes once is kept, and counts, but not its making
            reply["memory"] = _resident("VmHWM") - before
            safetensors.save(
                order["answers"], {k: np.ascontiguousarray(v) for k, v in answers.items()}
            )
            del answers
            start = time.perf_counter()
            call()
            many = max(1, int(TURN_SECONDS / max(time.perf_counter() - start, 1e-6)))
            repeat = PAUSED_CALLS if case.pause else many
        elif order["do"] == "run" and call is not None:
            if name == "ostinato":
                from .. import _core

                reply["peak"] = _core.fma_peak(0.02, 8 if order.get("float64") else 4)
            reply["seconds"] = _turn(call, repeat, case.pause / 1000, bool(order.get("each")))
        elif order["do"] == "versions":
            import importlib.metadata

            owners = (
                importlib.metadata.packages_distributions()
            )  # tensorflow may come as tensorflow-cpu
            modules = CONTENDERS[name.partition(":")[0]][1]
            reply = {m: importlib.metadata.version(owners.get(m, [m])[0]) for m in modules}
        print(json.dumps(reply), file=out, flush=True)


def _turn(call: Callable[[], object], repeat: int, pause: float, each: bool) -> float:
    """Return the seconds of a call: the mean over a row of them, or the median of each and of those after a pause."""
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
    """A process that runs cases when it is told to."""

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
        """Send an order, wait for the reply."""
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
    """Run the cases and print a table; figures are medians over interleaved rounds. Returns everything.

    A file at ``out`` is replaced only with ``overwrite=True``; it is written also after an
    interruption, with the cases that are done.
    """
    import ostinato as ost

    from .._machine import info

    _check.positive("--rounds", rounds)
    prepare_file("--out", out, overwrite=overwrite)
    threads = ost.get_num_threads() if threads is None else threads
    for name in peers or ():
        _check.choice("--peers", name, [n for n in CONTENDERS if n != "ostinato"])
    there = {
        n: all(importlib.util.find_spec(m) is not None for m in modules)
        for n, (_, modules, _) in CONTENDERS.items()
    }
    names = ["ostinato"] + [
        n for n in CONTENDERS if n != "ostinato" and there[n] and (peers is None or n in peers)
    ]
    for n in CONTENDERS:
        if not there[n] and (peers is None or n in peers):
            print(f"{n} is not installed and takes no part: pip install 'ostinato[{extra_of(n)}]'")
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
        print(
            f"{figures['machine']['cpu']}, {threads} threads, kernels {figures['machine']['kernels']['chosen']}; "
            + ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
        )
        print(
            f"{'case':32}{'GFLOP/s':>9}{'of peak':>9}"
            + "".join(f"{'x ' + n:>15}" for n in names[1:]),
            flush=True,
        )
        for case in cases:
            if time.monotonic() - begin > budget:
                print(
                    f"the time budget of {budget:.0f} s is used up; {len(cases) - len(figures['cases'])} cases left out"
                )
                break
            row = run_case(
                case,
                {n: c for n, c in contenders.items() if case.mode in CONTENDERS[n][2]},
                rounds,
                threads,
            )
            figures["cases"].append(row)
            cells = "".join(
                f"{row['ratio'][n]:>14.2f}x" if n in row["ratio"] else f"{'-':>15}"
                for n in names[1:]
            )
            print(
                f"{case.name:32}{row['gflops']:>9.1f}{100 * row['of_peak']:>8.0f}%{cells}",
                flush=True,
            )
    finally:
        for c in contenders.values():
            c.close()
        if out is not None and figures["cases"]:  # what there is, also after an interruption
            with safetensors.atomic_write(out) as f:
                f.write(json.dumps(figures, indent=1).encode())
    for n in names[1:]:
        ratios = [r["ratio"][n] for r in figures["cases"] if n in r["ratio"]]
        if ratios:
            print(
                f"geometric mean over {len(ratios)} cases against {n}: {np.exp(np.mean(np.log(ratios))):.2f}x"
            )
    return figures


def run_case(
    case: Case, contenders: dict[str, Contender], rounds: int, threads: int, *, each: bool = False
) -> dict[str, Any]:
    """One case: answers compared with those of ``ostinato``, then turns. Ratios are how many times faster it is than each. The time of
    a turn is the mean over its calls or, with ``each``, their median.
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
