"""Contenders that take turns, each a process of its own.

What scripts of this folder share. A script starts itself with ``--worker`` and an order;
the worker replies to every line that it is sent with the median seconds of its calls. One thread is
timed by its CPU time, which does not count the time for which the system gives the core to others;
several threads by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import safetensors
from ostinato.__main__ import info

RESULTS = Path(__file__).parent / "results"
SETTLE = 0.05  # seconds before a turn, until what the turn before left spinning sleeps
LIMIT = 2e-4  # difference of answers, of the largest value


def example(name: str) -> Any:
    """Return a script of the folder ``examples`` as a module, by its name without ``.py``."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def serve(order: dict[str, Any], calls: int, make: Callable[[], Callable[[], Any]]) -> None:
    """Make a contender's call; for each line run it and reply with the median seconds."""
    out = sys.stdout
    sys.stdout = sys.stderr
    call = make()
    clock = time.process_time if order["threads"] == 1 else time.perf_counter
    safetensors.save(order["answers"], {n: np.array(a) for n, a in call().items()})
    print(0.0, file=out, flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(calls + 1):
            start = clock()
            call()
            seconds.append(clock() - start)
        print(statistics.median(seconds[1:]), file=out, flush=True)


class Process:
    """A contender of one row.

    Args:
        script: the benchmark that runs it.
        order: what it is told.
    """

    def __init__(self, script: str, order: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reply()

    def reply(self) -> float:
        """Wait for the seconds of a turn."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"a contender ended with status {self.process.wait()}")
        return float(line)

    def turn(self) -> float:
        """Run a turn; return the median seconds of its calls."""
        assert self.process.stdin is not None
        time.sleep(SETTLE)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.reply()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    script: str, row: Any, peers: Sequence[str], rounds: int, threads: int
) -> dict[str, Any]:
    """Measure one row: median seconds of each contender, and ratios within a round."""
    names = ["ostinato", *peers]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = {n: Path(folder) / n for n in names}
        group = {}
        for n in names:
            order = {"row": asdict(row), "name": n, "threads": threads, "answers": str(paths[n])}
            group[n] = Process(script, order)
            stack.callback(group[n].close)
        ours = safetensors.load(paths["ostinato"])[0]
        for n in peers:
            for key, a in safetensors.load(paths[n])[0].items():
                off = np.abs(a - ours[key]).max() / np.abs(a).max()
                if not off < LIMIT:
                    raise AssertionError(f"{row.name}: {n} and ostinato differ by {off:.1e}: {key}")
        turns = [{n: group[n].turn() for n in names} for _ in range(rounds)]
    return {
        "name": row.name,
        "seconds": {n: statistics.median(t[n] for t in turns) for n in names},
        "ratio": {n: statistics.median(t[n] / t["ostinato"] for t in turns) for n in peers},
        "more": {n: statistics.median(t["ostinato"] - t[n] for t in turns) for n in peers},
    }


def main(
    script: str,
    description: str | None,
    kind: type[Any],
    rows: Callable[[bool], Iterable[Any]],
    make: Callable[[str, Any, int], Callable[[], Any]],
    told: str,
    shown: Callable[[Any, dict[str, Any]], str],
) -> None:
    """Run the rows of a script and write their results, or one contender of a row.

    Args:
        script: the path of the script, which names the file of results.
        description: what ``--help`` says, in its first line.
        kind: the class of a row.
        rows: all rows, or those of ``--short``.
        make: makes the call of a contender, by its name, of a row, on some threads.
        told: what the columns are.
        shown: the columns of a row, of its figures.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help="fewer sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of each contender; default: all")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    args = parser.parse_args()
    if args.worker:
        order = json.loads(args.worker)
        row = kind(**order["row"])
        return serve(order, row.calls, lambda: make(order["name"], row, order["threads"]))
    threads = args.threads or ost.get_num_threads()
    date = f"{datetime.date.today():%Y-%m-%d}"
    figures: dict[str, Any] = {"machine": info(), "threads": threads, "date": date, "rows": []}
    print(f"{figures['machine']['cpu']}, {threads} threads; milliseconds, and {told}")
    for row in rows(args.short):
        if args.only in row.name:
            r = measure(script, row, row.peers, args.rounds, threads)
            figures["rows"].append(r)
            print(
                f"{row.name:32} {r['seconds']['ostinato'] * 1e3:9.3f}  {shown(row, r)}", flush=True
            )
    if not args.only:
        name = Path(script).stem.replace("_", "-")
        out = RESULTS / f"{date}-{name}-{ost.kernels()['chosen']}.json"
        with safetensors.atomic_write(out) as f:
            f.write(json.dumps(figures, indent=1).encode())
