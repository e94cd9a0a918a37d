"""The command line: ``main`` runs a command, ``parser`` describes all of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ostinato as ost

from .._annotations import readable
from ._output import error_line, give_up_output, plain, write
from ._parser import parser
from ._ranks import ranks, repeats

__all__ = ["main", "parser"]


def _run(args: argparse.Namespace) -> None:
    """Run a command.

    With --json, standard output has only the figures, and all else goes to standard error.
    """
    if not getattr(args, "json", False):
        args.run(args)
        write("")
        return
    with contextlib.redirect_stdout(sys.stderr):
        figures = args.run(args)
    write(json.dumps(figures, default=plain) + "\n")


def _check_names(args: argparse.Namespace) -> None:
    """Refuse an empty name, as of a variable that is not set: it would be the current folder."""
    for name, wanted in (("save", "a folder"), ("out", "a file")):
        if getattr(args, name, None) == "":
            raise ValueError(f"--{name}: expected {wanted}, got an empty name")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the command line.

    Errors that a user can correct are one line on standard error, and exit status 2.

    >>> main(["forecast", "no-such-folder", "sales.csv"])
    2

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, 2 for an error, 130 after an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Characters that the stream cannot encode are shown as escapes.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    args = parser(words).parse_args(words)
    if getattr(args, "plot", None) == "":
        args.plot = None
    args.parallel = None
    try:
        _check_names(args)
        with ranks(args):
            _run(args)
    except BrokenPipeError:  # the reader of a pipe has gone
        give_up_output()
        return 0
    except (
        OSError,
        ValueError,
        ImportError,
        MemoryError,
        OverflowError,
        ost._device.NoGpu,
        ost.train.Diverged,
        ost.train.ParallelError,
    ) as e:
        if not repeats(args, e):
            print(f"ostinato: {error_line(e, args)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = getattr(args, "save", None)
        there = folder is not None and (Path(folder) / "checkpoint.safetensors").exists()
        print(
            "\nostinato: interrupted" + (f"; the checkpoint is in {folder}" if there else ""),
            file=sys.stderr,
        )
        return 130
    return 0


readable(globals())
