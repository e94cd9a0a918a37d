"""The CTC loss with its gradient beside PyTorch's: python benchmarks/ctc.py.

Each contender is a process of its own and they take turns; values and gradients are first compared
with those of PyTorch in float64. A figure is the median over rounds, a ratio the median of the
ratios within a round. Logits are float32 as a network gives them, so PyTorch's log-softmax counts.
An error is the largest one of the gradient's, relative to its largest element.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = [(200, 32, 50, 40), (200, 1, 50, 40), (1000, 8, 30, 200), (100, 32, 1000, 20)]  # T, B, V, L
CALLS = 10  # of a turn, of which the median counts
LIMITS = {"ostinato": 1e-6, "torch": 5e-3}  # of the errors


def inputs(steps: int, batch: int, classes: int, labels: int) -> tuple[Any, Any, Any]:
    """Return logits ``[T,B,V]``, labels ``[B,L]`` and lengths of three quarters of T and more."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((steps, batch, classes), dtype=np.float32)
    return (
        y,
        rng.integers(1, classes, (batch, labels)),
        rng.integers(3 * steps // 4, steps + 1, batch),
    )


def ours(y: Any, target: Any, lengths: Any) -> Callable[[], tuple[float, Any]]:
    import ostinato as ost

    loss = ost.losses.CTC()
    return lambda: loss(y, target, lengths)


def torchs(y: Any, target: Any, lengths: Any) -> Callable[[], tuple[float, Any]]:
    import torch

    x, t = torch.tensor(y, requires_grad=True), torch.tensor(target)
    n, counts = torch.tensor(lengths), torch.full((len(lengths),), target.shape[1])

    def run() -> tuple[float, Any]:
        x.grad = None
        p = torch.nn.functional.log_softmax(x, -1)
        loss = torch.nn.functional.ctc_loss(p, t, n, counts, reduction="sum") / len(lengths)
        loss.backward()
        return loss.item(), x.grad.numpy()

    return run


MAKERS = {"ostinato": ours, "torch": torchs}


def contend(name: str) -> None:
    """Serve sizes from standard input: write the answer to a file, then time a turn a line."""
    run: Any = None
    for line in sys.stdin:
        told = json.loads(line)
        if told:
            y, target, lengths = inputs(*told["size"])
            if told["wide"]:
                y = y.astype(np.float64)
            run = MAKERS[name](y, target, lengths)
            value, gradient = run()
            np.savez(told["file"], value=value, gradient=gradient)
            run()
            print(json.dumps(0), flush=True)
            continue
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(seconds)), flush=True)


class Contender:
    """A process that runs one library."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, "--contender", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: Any) -> float:
        """Send a line, and return the number that comes back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def measure(
    size: tuple[int, ...], contenders: dict[str, Contender], rounds: int, folder: Path
) -> dict[str, Any]:
    """Compare the answers, then time rounds of turns."""
    file, answers = folder / "answer.npz", []
    for name, wide in [("torch", True), *((n, False) for n in contenders)]:
        contenders[name].ask({"size": size, "file": str(file), "wide": wide})
        with np.load(file) as stored:
            answers.append((float(stored["value"]), stored["gradient"]))
    (exact, slope), *found = answers
    row: dict[str, Any] = {"size": dict(zip(("T", "B", "V", "L"), size))}
    for name, (value, gradient) in zip(contenders, found):
        row[f"{name} error"] = float(abs(gradient - slope).max() / abs(slope).max())
        assert row[f"{name} error"] <= LIMITS[name], (name, size, row)
        assert abs(value - exact) <= LIMITS[name] * abs(exact), (name, size, value, exact)
    turns = [{name: c.ask(None) for name, c in contenders.items()} for _ in range(rounds)]
    row.update({name: statistics.median(t[name] for t in turns) for name in contenders})
    row["ratio"] = statistics.median(t["torch"] / t["ostinato"] for t in turns)
    return row


def main() -> None:
    """Print a row for each size."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=sorted(MAKERS), help=argparse.SUPPRESS)
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of each contender (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.contender:
        contend(options.contender)
        return
    contenders = {name: Contender(name) for name in MAKERS}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for size in SIZES:
                row = measure(size, contenders, options.rounds, Path(folder))
                name = "  ".join(f"{k}={v}" for k, v in row["size"].items())
                times = "  ".join(
                    f"{n} {1e3 * row[n]:.2f} ms (error {row[f'{n} error']:.0e})" for n in MAKERS
                )
                print(f"{name:32}{times}  {row['ratio']:.1f} times as fast", flush=True)
    finally:
        for contender in contenders.values():
            contender.process.kill()
            contender.process.wait()


if __name__ == "__main__":
    main()
