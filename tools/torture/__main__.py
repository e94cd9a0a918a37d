#!/usr/bin/env python3
"""Torture what ostinato reads and writes: python tools/torture files | kill | disk | memory

- files: malformed files for each reader, by a coverage-guided fuzzer (atheris, extra `torture`).
- memory: the most memory that each reader takes for a large file, over the file's size.
- kill: SIGKILL at random moments of training; the resumed run must end with the same bits.
- disk: every write fails in turn: full, read-only, input/output error, cut short, slow.

The package of PYTHONPATH, or the installed one, is asked. The exit status is 1 where a fault was
found. docs/reliability.md has the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="tools/torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)
    files = commands.add_parser("files", help="malformed files")
    files.add_argument("reader", nargs="*", help="names of readers (default: all)")
    files.add_argument("--runs", type=int, default=100_000, help="files for each reader")
    files.add_argument("--seed", type=int, default=1)
    files.add_argument("--seconds", type=int, default=0, help="for each reader; 0 for no limit")
    files.add_argument("--out", default="build/torture", help="folder of corpora and faults")
    files.add_argument("--list", action="store_true", help="only name the readers")
    memory = commands.add_parser("memory", help="memory for large files")
    memory.add_argument("reader", nargs="*", help="names of readers (default: all)")
    kill = commands.add_parser("kill", help="SIGKILL and resume")
    kill.add_argument("job", nargs="*", help="text, fit, forecast (default: all)")
    kill.add_argument("--kills", type=int, default=1000, help="of each job")
    kill.add_argument("--seed", type=int, default=0)
    kill.add_argument("--out", help="folder of the counts, to which later runs add")
    disk = commands.add_parser("disk", help="writes that fail")
    disk.add_argument("job", nargs="*", help="names of writers (default: all)")
    disk.add_argument("--fault", action="append", help="full, read-only, error, short or slow")
    disk.add_argument("--out", default="", help="folder of the counts, to which later runs add")
    return made


def main() -> int:
    """Run a command; return the exit status."""
    args = parser().parse_args()
    if args.command == "files":
        from torture import files

        return files.run(args)
    if args.command == "memory":
        from torture import memory

        return memory.run(args)
    if args.command == "kill":
        from torture import kill

        return kill.run(args)
    from torture import disk

    return disk.run(args)


if __name__ == "__main__":
    sys.exit(main())
