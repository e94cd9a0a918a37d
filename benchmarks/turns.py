"""Two builds of ostinato in turns: python benchmarks/turns.py BEFORE [AFTER] [--rounds N]

BEFORE and AFTER are folders that hold the package ``ostinato`` with its compiled modules, such as
the ``python`` folder of a checkout; AFTER is that of this checkout if it is not given. Each build
has a process of its own, and they take turns at every case, so that what else the machine does
falls on both. Printed is how fast AFTER is in units of BEFORE, the median over the rounds: 0.97 is
three percent slower. One thread is timed by its CPU time, which does not count the time for which
the system gives the core to others; several threads by the clock. The cases are the forms of
sequences of ``sequences.py``, calls of a small layer, and what a training step does outside the
recurrent layers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
STEPS = 100


def cases() -> dict[str, Callable[[], Any]]:
    """Return the calls by name, for the ostinato of this process."""
    import numpy as np

    import ostinato as ost

    out: dict[str, Callable[[], Any]] = {}

    def add(name: str, layer: Any, x: Any, options: dict[str, Any]) -> None:
        dy = np.ones((*x.shape[:2], layer.hidden_size), np.float32)

        def train() -> None:
            _, pullback = layer.vjp(x, **options)
            pullback(dy)

        if "clip_step_norm" not in options and "memory_limit" not in options:
            out[f"{name} infer"] = lambda: layer(x, **options)
        out[f"{name} train"] = train

    for cell in ("LSTM", "GRU", "RNN"):
        layer = getattr(ost.nn, cell)
        add(f"{cell} T=1 B=1 H=16", layer(16, 16, rng=0), np.ones((1, 1, 16), np.float32), {})
    for cell in ("LSTM", "GRU"):
        for batch in (16, 64):
            for hidden in (64, 256):
                r = np.random.default_rng(0)
                layer = getattr(ost.nn, cell)(hidden, hidden, rng=0)
                x = r.standard_normal((STEPS, batch, hidden)).astype(np.float32)
                lengths = r.permutation(np.linspace(1, STEPS, batch).round().astype(np.int64))
                forms: dict[str, dict[str, Any]] = {
                    "plain": {},
                    "lengths": {"lengths": lengths},
                    "resets": {"resets": r.random((STEPS, batch)) < 0.02},
                    "clipped": {"clip_step_norm": 1.0},
                    "least": {"memory_limit": "least"},
                    "states": {"memory_limit": "states"},
                }
                for form, options in forms.items():
                    add(f"{cell} B={batch} H={hidden} {form}", layer, x, options)
    return {**out, **functional_cases(), **outside_cases()}


def functional_cases() -> dict[str, Callable[[], Any]]:
    """Return passes by `ostinato.functional`, whose gradients are new arrays at every call."""
    import numpy as np

    import ostinato as ost

    out: dict[str, Callable[[], Any]] = {}
    for cell, gates in (("lstm", 4), ("gru", 3)):
        for batch, hidden in ((1, 16), (1, 256), (8, 256), (32, 256), (8, 512)):
            r = np.random.default_rng(0)
            x = r.standard_normal((50, batch, hidden)).astype(np.float32)
            shape = gates * hidden, hidden
            weights = [r.uniform(-0.05, 0.05, shape).astype(np.float32) for _ in range(2)]

            def train(cell: str = cell, x: Any = x, weights: Any = weights) -> None:
                _, pullback = getattr(ost.functional, f"{cell}_vjp")(x, *weights)
                pullback(x)

            out[f"functional {cell} B={batch} H={hidden} train"] = train
    return out


def outside_cases() -> dict[str, Callable[[], Any]]:
    """Return what a training step does outside the recurrent layers."""
    import numpy as np

    import ostinato as ost

    r = np.random.default_rng(0)
    model = ost.nn.Linear(1000, 750, rng=0)
    model.vjp(np.ones((8, 1000), np.float32))[1](r.standard_normal((8, 750)).astype(np.float32))
    adam, sgd, rmsprop = (
        ost.optim.AdamW(1e-4),
        ost.optim.SGD(1e-4, momentum=0.9),
        ost.optim.RMSprop(1e-4),
    )
    dropout = ost.nn.Dropout(0.1, rng=0)
    x = r.standard_normal((10, 64, 256)).astype(np.float32)
    embedding = ost.nn.Embedding(100, 256, rng=0)
    ids = r.integers(0, 100, (10, 64))
    loss = ost.losses.CrossEntropy()
    logits = r.standard_normal((10, 64, 70)).astype(np.float32)
    target = r.integers(0, 70, (10, 64))

    def scatter() -> None:
        embedding.vjp(ids)[1](x)

    tiny = ost.nn.Sequential(ost.nn.LSTM(3, 8, rng=0), ost.nn.Linear(8, 3, rng=0))
    trainer = ost.Trainer(tiny, ost.losses.MSE(), ost.optim.AdamW(1e-4), clip_norm=1.0)
    steps = r.standard_normal((10, 2, 1, 3)).astype(np.float32)

    def small_fit() -> None:
        trainer.fit(list(zip(steps, steps)), epochs=1, progress=False)

    return {
        "AdamW, 750,750 parameters": lambda: adam.step(model),
        "SGD with momentum, 750,750 parameters": lambda: sgd.step(model),
        "RMSprop, 750,750 parameters": lambda: rmsprop.step(model),
        "fit of ten steps, T=2 B=1 H=8": small_fit,
        "global_norm, 750,750 gradients": lambda: ost.optim.global_norm(model),
        "Dropout, 163,840 numbers": lambda: dropout.vjp(x, rng=1),
        "Embedding and its gradient, 640 rows of 256": scatter,
        "CrossEntropy, 640 rows of 70": lambda: loss(logits, target),
    }


def serve(threads: int) -> None:
    """Time the case of each line that is read and write its seconds for one call."""
    import ostinato as ost

    ost.set_num_threads(threads)
    calls = cases()
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats: dict[str, int] = {}
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        call = calls[name := line.strip()]
        if name not in repeats:
            call()
            start = time.perf_counter()
            call()
            repeats[name] = max(1, int(0.03 / (time.perf_counter() - start)))
        call()
        start = clock()
        for _ in range(repeats[name]):
            call()
        print((clock() - start) / repeats[name], flush=True)


class Build:
    """A process that imports ostinato from a folder and times what it is told."""

    def __init__(self, folder: Path, threads: int) -> None:
        if not list(folder.glob("ostinato/_core*")):
            raise SystemExit(f"{folder}: expected ostinato with its compiled modules in it")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", "--threads", str(threads), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},
        )
        self.names: list[str] = json.loads(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def seconds(self, name: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.answer())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=HERE.parents[1] / "python")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the cases with this in the name"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.threads)
        return 0
    before, after = (Build(folder, args.threads) for folder in (args.before, args.after))
    ratios = []
    for name in (n for n in before.names if n in after.names and args.only in n):
        turns = [before.seconds(name) / after.seconds(name) for _ in range(args.rounds)]
        ratios.append(statistics.median(turns))
        print(f"{name:28} {ratios[-1]:.2f}  ({min(turns):.2f} to {max(turns):.2f})", flush=True)
    print(f"geometric mean {math.exp(statistics.mean(map(math.log, ratios))):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
