"""Measure ``train transfer``: a transferred model beside the same one from scratch, over seeds.

    python benchmarks/applications/transfer.py                     # Shakespeare to one play
    python benchmarks/applications/transfer.py FOLDER TRANSCRIPTS --source MODEL --digits es \
        --strip-accents                                            # clips, from a recogniser
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import arguments, table, timed

from ostinato.tasks import _application
from ostinato.tasks.transfer import TransferOptions


def main() -> None:
    """Run all seeds and print the table."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("data", nargs="*", help="what train transfer is given")
    p.add_argument("--source", default="")
    p.add_argument("--digits", default="")
    p.add_argument("--strip-accents", action="store_true")
    p.add_argument("--steps", type=int, default=TransferOptions.steps)
    p.add_argument("--part", type=float, default=TransferOptions.part)
    own, sys.argv[1:] = p.parse_known_args()
    args = arguments(__doc__)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        options = TransferOptions(
            source=own.source,
            digits=own.digits,
            strip_accents=own.strip_accents,
            steps=own.steps,
            part=own.part,
            seed=seed,
        )
        figures, times = timed(lambda o=options: _application.train("transfer", own.data, o))
        share = figures["steps_share"]
        rows.append(
            {
                "scratch": figures["scratch"],
                "transfer": figures["transfer"],
                "better": figures["better"],
                "share of steps": float("inf") if share is None else share,
                **times,
            }
        )
    table(f"train transfer, {figures['unit']}", {"ostinato": rows}, args.out)


if __name__ == "__main__":
    main()
