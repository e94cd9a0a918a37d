"""The full benchmark: python benchmarks/run.py [--budget SECONDS]. The short form is python -m ostinato bench.

The machinery is `ostinato.tasks.bench`; results are kept under benchmarks/results/ with date and kernel set.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import ostinato as ost
from ostinato.tasks import bench

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=3600, help="seconds; what does not fit is left out and named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="the cases of the short form")
    args = parser.parse_args()
    name = f"{datetime.date.today():%Y-%m-%d}-cpu-{ost.kernels()['chosen']}{'-short' if args.short else ''}.json"
    cases = bench.SHORT if args.short else bench.FULL
    bench.run(cases, rounds=args.rounds, budget=args.budget, out=Path(__file__).parent / "results" / name)
