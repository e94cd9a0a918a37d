"""What the benchmarks of applications share: options, times, and tables of several seeds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ostinato as ost
from ostinato._machine import info


def arguments(
    description: str | None, more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Return the options that every benchmark of an application has, and those that more adds."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        "--seeds",
        type=seeds,
        default=range(3),
        metavar="N or A:B",
        help="the seeds 0 to N - 1, or those from A to B - 1, for a part of a long measurement",
    )
    p.add_argument("--threads", type=int, default=2, help="threads of ostinato and of the peer")
    p.add_argument("--no-peer", action="store_true", help="leave torch out")
    p.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    if more is not None:
        more(p)
    args = p.parse_args()
    ost.set_num_threads(args.threads)
    return args


def seeds(text: str) -> range:
    """Return the seeds that an option asks for: "3" is 0, 1, 2 and "1:3" is 1, 2."""
    first, _, end = text.rpartition(":")
    return range(int(first or 0), int(end))


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what a call returns, with its seconds by the clock and by the CPUs."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Return the median of values with the smallest and the largest."""
    low, middle, high = (
        form.format(v) for v in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def table(title: str, rows: Mapping[str, Sequence[Mapping[str, float]]], out: Path | None) -> None:
    """Print a table with a row for each model and a column for each figure, over the seeds.

    Args:
        title: the line above it.
        rows: for each model the figures of each seed; all models have the same figures.
        out: a file for the figures with the machine, as JSON; None for none.
    """
    names = list(next(iter(rows.values()))[0])
    print(f"{title}\n\n| model | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for model, figures in rows.items():
        cells = [spread([f[name] for f in figures]) for name in names]
        print(f"| {model} | {' | '.join(cells)} |")
    if out is not None:
        machine = {k: v for k, v in info().items() if k in ("ostinato", "python", "numpy", "cpu")}
        date = time.strftime("%Y-%m-%d")
        text = json.dumps(
            {"title": title, "date": date, "machine": machine, "rows": rows},
            indent=1,
            default=lambda number: number.item(),  # of NumPy
        )
        out.write_text(text + "\n", encoding="utf-8")
