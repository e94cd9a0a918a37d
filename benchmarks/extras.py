"""What the grid does not hold.

One sequence at the rate of the cache, streams, precisions, directions, a busy machine, imports.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib.util
import io
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import _core
from ostinato.tasks.bench import Contender, run_case
from ostinato.tasks.contenders import CONTENDERS, Case

BF16, F32, ONE = "ostinato:precision=bfloat16", "ostinato:precision=float32", "ostinato:threads=1"


def there(name: str) -> bool:
    """Whether what the contender needs is installed."""
    return all(
        importlib.util.find_spec(m) is not None for m in CONTENDERS[name.partition(":")[0]][1]
    )


@contextlib.contextmanager
def contenders(names: Sequence[str]) -> Iterator[dict[str, Contender]]:
    """Processes for those that are installed."""
    made = {n: Contender(n) for n in names if there(n)}
    try:
        yield made
    finally:
        for c in made.values():
            c.close()


def rows(
    label: str,
    cases: Sequence[Case],
    names: Sequence[str],
    rounds: int,
    threads: int,
    *,
    each: bool = False,
) -> list[dict[str, Any]]:
    """Run the cases; prints and returns a row each."""
    out = []
    with contenders(names) as there_are:
        for case in cases:
            row = run_case(case, there_are, rounds, threads, each=each)
            ratios = "  ".join(f"{n} {r:.2f}x" for n, r in row["ratio"].items())
            print(
                f"{label:12}{case.name:34}{100 * row['of_peak']:5.0f}% of peak  {ratios}",
                flush=True,
            )
            out.append(row)
    return out


def one_sequence(rounds: int) -> list[dict[str, Any]]:
    """Bytes of recurrent weights read a second at B = 1.

    They are a share of what one thread reads from a block of that size.
    """
    out, before = [], ost.get_num_threads()
    for make, hidden in ((ost.nn.LSTM, 128), (ost.nn.LSTM, 192), (ost.nn.GRU, 256)):
        layer = make(1, hidden, rng=0)
        x = np.random.default_rng(0).standard_normal((1000, 1, 1)).astype(np.float32)
        size = 4 * layer._gates * hidden * hidden
        for threads in (1, 2):
            ost.set_num_threads(threads)
            shares = []
            for _ in range(rounds):
                bandwidth = _core.read_bandwidth(size // threads, 0.05) * 1e9 * threads
                times = []
                for _ in range(9):
                    start = time.perf_counter()
                    layer(x)
                    times.append(time.perf_counter() - start)
                shares.append(len(x) * size / statistics.median(times) / bandwidth)
            out.append(
                {"layer": repr(layer), "threads": threads, "share": statistics.median(shares)}
            )
            print(
                f"one sequence  {layer!r}, {threads} threads: {100 * out[-1]['share']:.0f}% of "
                "the read bandwidth",
                flush=True,
            )
    ost.set_num_threads(before)
    return out


def busy(rounds: int, threads: int) -> list[dict[str, Any]]:
    """Load the other core by another process.

    Compare our threads with one thread, by the median over calls.
    """
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        cases = [
            Case("lstm", "infer", 32, 128),
            Case("lstm", "infer", 1, 256, 1000),
            Case("gru", "train", 32, 256),
        ]
        return rows("busy", cases, ["ostinato", ONE], rounds, threads, each=True)
    finally:
        hog.kill()
        hog.wait()


def footprint() -> dict[str, float]:
    """Seconds that `import ostinato` takes after `import numpy`, and bytes of the package, both as
    a wheel would install it, which has neither the emulation of the GPU's kernels nor those
    kernels.
    """
    package, archive = Path(_core.__file__).parent, io.BytesIO()
    files = {
        p: p.relative_to(root)
        for root in (Path(ost.__file__).parent, package)
        for p in root.rglob("*")
    }
    files = {p: name for p, name in files.items() if p.suffix in (".py", ".pyi", ".so", ".typed")}
    files = {
        p: name for p, name in files.items() if not p.name.startswith(("_emulated.c", "_cuda.c"))
    }
    # A copy, and without the finder of an editable install, which looks at the disk for every
    # module.
    code = """
import sys, time, numpy
sys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type)]
sys.path.insert(0, sys.argv[1])
start = time.perf_counter()
import ostinato
print(time.perf_counter() - start)
assert ostinato.__file__.startswith(sys.argv[1])
"""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
            for path, name in files.items():
                z.write(path, name)
        zipfile.ZipFile(archive).extractall(Path(folder) / "ostinato")
        compileall.compile_dir(folder, quiet=1)  # as pip does
        command = [sys.executable, "-c", code, folder]
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(11)
        ]
    seconds = [float(r.stdout) for r in runs]
    figures = {"import_seconds": statistics.median(seconds), "wheel_bytes": float(archive.tell())}
    print(
        f"footprint     import {figures['import_seconds'] * 1e3:.0f} ms after numpy, wheel "
        f"{figures['wheel_bytes'] / 1e6:.1f} MB",
        flush=True,
    )
    return figures


def run(rounds: int, threads: int) -> dict[str, Any]:
    """All of it, in about four minutes."""
    low = [
        Case(c, "infer", b, h, precision="bfloat16")
        for c in ("lstm", "gru", "rnn")
        for b in (1, 4, 32, 64)
        for h in (256, 512)
    ]
    low += [
        Case(c, "train", 32, h, precision="bfloat16")
        for c in ("lstm", "gru", "rnn")
        for h in (256, 512)
    ]
    return {
        "one_sequence": one_sequence(rounds),
        "step": rows(
            "stream",
            [Case("lstm", "step", 1, 128, 1, 64)],
            ["ostinato", BF16, "torch", "onnxruntime"],
            rounds,
            threads,
        ),
        "bfloat16": rows("bfloat16", low, ["ostinato", F32, "torch"], rounds, threads),
        "int8": rows(
            "int8",
            [
                Case(c, "infer", 1, h, precision="int8")
                for c in ("lstm", "gru", "rnn")
                for h in (512, 1024)
            ],
            ["ostinato", BF16],
            rounds,
            threads,
        ),
        "side_by_side": rows(
            "directions",
            [
                Case(c, "infer", 1, h, bidirectional=True)
                for c in ("lstm", "gru")
                for h in (64, 128, 256)
            ]
            + [Case("lstm", "infer", 1, h, 1000, layers=n) for h in (64, 128) for n in (2, 4)],
            ["ostinato", ONE],
            rounds,
            threads,
        ),
        "float64": rows(
            "float64",
            [
                Case(c, m, 32, 256, precision="float64")
                for c in ("lstm", "gru", "rnn")
                for m in ("infer", "train")
            ],
            ["ostinato", "torch"],
            rounds,
            threads,
        ),
        "variants": rows(
            "variants",
            [
                Case(c, m, 32, 256, variant=v)
                for c, v in (
                    ("lstm", "peephole"),
                    ("lstm", "layer_norm"),
                    ("lstm", ""),
                    ("gru", "reset_before"),
                )
                for m in ("infer", "train")
            ],
            ["ostinato"],
            rounds,
            threads,
        ),
        "projected": rows(
            "projected",
            [
                Case("lstm", m, 32, 256, variant=v)
                for v in ("projected", "")
                for m in ("infer", "train")
            ],
            ["ostinato", "torch"],
            rounds,
            threads,
        ),
        "busy": busy(rounds, threads),
        "footprint": footprint(),
    }
