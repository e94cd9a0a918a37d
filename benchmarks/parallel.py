"""Training by two processes beside one: python benchmarks/parallel.py [--rounds N] [--out FILE]

It starts itself under ``mpiexec -n 2``; each process has one thread and a core of its own. In every
round four things run in turn, with the same rows a process: *one* process trains while the other
sleeps; *each* of the two trains a model of its own, and nothing is exchanged, which is what the
machine can do at most; *both* train one model, with twice the batch, whose gradients lie in memory
that they share; with *messages* they send them, as two machines do. Printed are rows a second in
units of one process: 2 is all that there is to win. Then the sum over the ranks, in either way, is
timed beside ``Allreduce`` of the library of MPI, which promises no order, and the exchange of a few
numbers that every step makes twice. Times are medians over the steps of rank 0. Last comes, on
paper, the share of 64 machines that would be used if they sent as these two processes do:
docs/parallel.md has the model. ``--paper FILE`` computes it from figures that were kept.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
CHILD = "OSTINATO_PARALLEL_BENCHMARK"
# Kind, units, rows a process, steps of a window, steps that are timed.
CASES: dict[str, tuple[str, int, int, int, int]] = {
    "LSTM 320, 32 rows of 64 steps (train text)": ("LSTM", 320, 32, 64, 12),
    "GRU 128, 16 rows of 32 steps": ("GRU", 128, 16, 32, 150),
    "LSTM 1024, 16 rows of 32 steps": ("LSTM", 1024, 16, 32, 8),
}
SIZES = (1, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
SYMBOLS, WIDTH = 100, 64  # of the embedding
MACHINES = 64


def timed_steps(case: tuple[str, int, int, int, int], parallel: Any, rows: int) -> float:
    """Train some steps of a language model; return the median of their seconds."""
    import numpy as np

    import ostinato as ost

    kind, units, _, window, steps = case

    class Clock(ost.train.Callback):
        def __init__(self) -> None:
            self.at: list[float] = []

        def on_step(self, trainer: Any, step: int, loss: float, norm: float) -> None:
            self.at.append(time.perf_counter())

    layers = [
        ost.nn.Embedding(SYMBOLS, WIDTH, rng=0),
        getattr(ost.nn, kind)(WIDTH, units, rng=1),
        ost.nn.Linear(units, SYMBOLS, rng=2),
    ]
    ids = np.random.default_rng(0).integers(0, SYMBOLS, rows * window * (steps + 2) + 1)
    clock = Clock()
    trainer = ost.Trainer(
        ost.nn.Sequential(*layers),
        ost.losses.CrossEntropy(),
        ost.optim.AdamW(1e-3),
        clip_norm=1.0,
        callbacks=[clock],
        parallel=parallel,
    )
    trainer.fit(ost.data.StreamLoader(ids, rows, window), steps=steps + 2, progress=False)
    return statistics.median(b - a for a, b in zip(clock.at[1:], clock.at[2:]))


def together(comm: Any) -> None:
    """Wait for the other process without taking its core."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def scaling(parallel: Any, rounds: int) -> dict[str, Any]:
    """Return the seconds of a step: alone, beside another process, and with it."""
    comm, out = parallel._comm, {}
    for name, case in CASES.items():
        rows = case[2]
        found: dict[str, list[float]] = {"one": [], "each": [], "both": [], "messages": []}
        for _ in range(rounds):
            together(comm)
            if parallel.rank == 0:
                found["one"].append(timed_steps(case, None, rows))
            together(comm)
            found["each"].append(timed_steps(case, None, rows))
            together(comm)
            found["both"].append(timed_steps(case, parallel, 2 * rows))
            together(comm)
            with by_messages(parallel):
                found["messages"].append(timed_steps(case, parallel, 2 * rows))
        if parallel.rank == 0:
            ratios = {
                kind: statistics.median(2 * one / other for one, other in zip(found["one"], times))
                for kind, times in found.items()
                if kind != "one"
            }
            medians = {f"milliseconds_{k}": 1e3 * statistics.median(v) for k, v in found.items()}
            out[name] = {**ratios, **medians}
    return out


@contextlib.contextmanager
def by_messages(parallel: Any) -> Iterator[None]:
    """Let ranks send gradients as messages, as if each were on a machine of its own."""
    before = parallel._one_machine
    parallel._one_machine = False
    yield
    parallel._one_machine = before


def repeated(call: Callable[[], Any], comm: Any, seconds: float = 0.4) -> float:
    """Return the median of the seconds of a call that both processes make together."""
    count, times = comm.bcast(max(5, min(400, _count(call, seconds, comm)))), []
    for _ in range(count):
        comm.Barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _count(call: Callable[[], Any], seconds: float, comm: Any) -> int:
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(3):
        call()
    return int(seconds / max((time.perf_counter() - start) / 3, 1e-7))


def transfers(parallel: Any) -> dict[str, Any]:
    """Return the microseconds of a sum, beside those of Allreduce, and of an exchange."""
    import numpy as np

    import ostinato as ost

    comm, rows = parallel._comm, {}
    for size in SIZES:
        a, b = np.ones(size, np.float32), np.empty(size, np.float32)
        ours = repeated(lambda a=a: parallel._add(a), comm)
        theirs = repeated(lambda a=a, b=b: comm.Allreduce(a, b), comm)
        rows[str(size)] = {"sum_us": 1e6 * ours, "allreduce_us": 1e6 * theirs}
        layer = ost.nn.Linear(size, 1, bias=False, rng=0)
        shared = parallel._hold_together(layer)
        if shared is not None:
            own = layer._writable_grads().flat
            there = repeated(lambda a=own, s=shared: parallel._add(a, None, s), comm)
            rows[str(size)]["shared_us"] = 1e6 * there
    exchange = repeated(lambda: parallel._exchange("a benchmark", 1.0), comm)
    return {"float32": rows, "exchange_us": 1e6 * exchange}


def parameters(name: str) -> int:
    """Return how many parameters the model of a case has."""
    kind, units, *_ = CASES[name]
    gates = {"LSTM": 4, "GRU": 3}[kind]
    return SYMBOLS * WIDTH + gates * units * (WIDTH + units + 2) + (units + 1) * SYMBOLS


def share(step: float, count: int, latency: float, bandwidth: float) -> float:
    """Return the share of the machines that is used, on paper.

    Args:
        step: seconds of a step on one machine.
        count: parameters, of 4 bytes.
        latency: seconds of a message.
        bandwidth: bytes a second that a machine sends and receives.
    """
    n = MACHINES
    sums = 2 * (n - 1) / n * 4 * count / bandwidth + 2 * (n - 1) * latency
    return step / (step + sums + 2 * math.log2(n) * latency)


def paper(found: dict[str, Any]) -> dict[str, float]:
    """Return the share of 64 machines for each case, with what two processes have measured.

    The sum of one number is two messages to the other process; that of the most numbers gives the
    bandwidth.
    """
    sums = found["transfers"]["float32"]
    most = max(SIZES)
    latency = max(sums["1"]["sum_us"] / 2, found["transfers"]["exchange_us"]) * 1e-6
    bandwidth = 4 * most / (sums[str(most)]["sum_us"] * 1e-6)
    return {
        name: share(row["milliseconds_one"] * 1e-3, parameters(name), latency, bandwidth)
        for name, row in found["scaling"].items()
    }


def child(rounds: int) -> None:
    """Measure, as one of the two processes; rank 0 prints the figures."""
    import ostinato as ost
    from ostinato._machine import info

    parallel = ost.train.Parallel()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[parallel.rank % len(cores)]})
    ost.set_num_threads(1)
    found = {"scaling": scaling(parallel, rounds), "transfers": transfers(parallel)}
    if parallel.rank == 0:
        from mpi4py import MPI

        library = MPI.Get_library_version().split("\n")[0].split(",")[0]
        names = ("ostinato", "python", "numpy", "system", "cpu", "kernels")
        machine = {name: info()[name] for name in names} | {"mpi": library}
        print(json.dumps({"machine": machine, **found}))


def show(found: dict[str, Any]) -> None:
    """Print the table that people read."""
    print("rows a second in units of one process:")
    for name, row in found["scaling"].items():
        kinds = [kind for kind in ("each", "both", "messages") if kind in row]
        print(f"  {name:44}", *(f"{kind} {row[kind]:.2f}" for kind in kinds), sep="  ")
    print("sum of float32 over two ranks by messages and in shared memory, times as long as")
    print("Allreduce:")
    for size, row in found["transfers"]["float32"].items():
        ways = [f"{row[k] / row['allreduce_us']:.2f}" for k in ("sum_us", "shared_us") if k in row]
        print(f"  {int(size):12,}", *ways, sep="  ")
    print(f"share of {MACHINES} machines that send as these processes do, on paper:")
    for name, used in paper(found).items():
        print(f"  {name:44}  {used:.0%}")


def main() -> None:
    """Start the two processes, print their figures and write them to a file."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--out", type=Path, help="default: results/DATE-parallel.json")
    p.add_argument("--paper", type=Path, help="figures of an earlier run: measure nothing")
    args = p.parse_args()
    if args.paper is not None:
        show(json.loads(args.paper.read_text(encoding="utf-8")))
        return
    if CHILD in os.environ:
        child(args.rounds)
        return
    mpiexec = shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("mpiexec: expected a library of MPI, such as pip install 'ostinato[mpi]' mpich")
    out = args.out or HERE.parent / f"results/{datetime.date.today()}-parallel.json"
    command = [mpiexec, "-n", "2", sys.executable, str(HERE), "--rounds", str(args.rounds)]
    done = subprocess.run(
        command, env={**os.environ, CHILD: "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    show(found)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
