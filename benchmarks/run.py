"""The full benchmark: python benchmarks/run.py [--budget SECONDS].

The short form is python -m ostinato bench.

Runs the grid against every peer that is installed, then what stands beside it (`extras.py`), and
holds all of it against the targets (`report.py`). Figures are saved under benchmarks/results/ with
date and kernel set; `python benchmarks/report.py FILE.json` prints the targets and writes the table
and the pictures of docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import extras
import ostinato as ost
import report
from ostinato import safetensors
from ostinato.tasks import bench

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what fits into the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--budget",
        type=float,
        default=3600,
        help="seconds for the grid; what does not fit is left out and named",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--short", action="store_true", help="the cases of the short form, and nothing else"
    )
    args = parser.parse_args()
    short = "-short" if args.short else ""
    name = f"{datetime.date.today():%Y-%m-%d}-cpu-{ost.kernels()['chosen']}{short}.json"
    out = RESULTS / name
    cases = bench.SHORT if args.short else bench.FULL
    figures = bench.run(cases, rounds=args.rounds, budget=args.budget, out=out)
    if args.short:
        return
    figures["extras"] = extras.run(args.rounds, figures["threads"])
    with safetensors.atomic_write(out) as f:
        f.write(json.dumps(figures, indent=1).encode())
    report.write(figures)


if __name__ == "__main__":
    main()
