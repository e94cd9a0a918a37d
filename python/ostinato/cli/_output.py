"""Standard output of the commands: text that a terminal can be given, and JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 2000  # characters of an error
# What the help calls the arguments without dashes that name files.
POSITIONAL = {"file": "FILE", "data": "DATA", "inputs": "INPUT", "dir": "DIR"}
# What the parsed arguments have beside options.
NO_OPTIONS = {*POSITIONAL, "command", "task", "run", "parallel"}


def one_line(message: object) -> str:
    """Return a message without what would begin a new line or set a terminal to something."""
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c if unicodedata.category(c) not in hidden else c.encode("unicode_escape").decode()
        for c in str(message)
    )


def error_line(error: BaseException, args: argparse.Namespace) -> str:
    """Return the line of an error, which speaks of the options, not of the arguments in Python.

    One of the system's says which argument named the file.

    Args:
        error: the error.
        args: the arguments of the command.

    Returns:
        The line, without what would set a terminal to something.
    """
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return one_line(_of_system(error, args))
    line = _of_command(one_line(error) or type(error).__name__, args)
    # What a file holds may be as long as it likes.
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ... ({len(line)} characters)"


def _of_command(line: str, args: argparse.Namespace) -> str:
    """Return a line with the names that its argument has in the command line."""
    name, colon, rest = line.partition(":")
    given = vars(args)
    command, task = given.get("command"), given.get("task")
    forecasts = command == "forecast" or task in ("forecast", "series")
    series = re.fullmatch(r"series(?:\[(\d+)\])?", name)
    if series is not None and forecasts:  # those of FILE; --series is the column of their names
        number = series[1]
        return f"FILE{'' if number is None else f', series {int(number) + 1}'}:{rest}"
    if name == "DIR" and task == "transfer":
        return f"--source:{rest}"
    if name == "memory_limit" and command == "explain":
        rest = rest.replace("training=True", "--train")
    named = [p for key in POSITIONAL for p in _as_list(given.get(key))]  # a file may be called so
    other = name in NO_OPTIONS or name in named or (command == "explain" and name == "cell")
    return f"--{name.replace('_', '-')}:{rest}" if colon and name in given and not other else line


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _of_system(error: OSError, args: argparse.Namespace) -> str:
    """Return an error of the system about a file as what was expected, and what was found."""
    path = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a descriptor"
    name = _argument_of(path, args)
    if name is None:  # such as the standard output
        return f"{path}: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return f"{name}: expected a file, found none at {path}"
    if isinstance(error, IsADirectoryError):
        return f"{name}: expected a file, got the folder {path}"
    use = "written" if name in ("--save", "--plot", "--out") else "read"
    return f"{name}: expected a file that can be {use}, got {path}: {error.strerror}"


def _argument_of(path: str, args: argparse.Namespace) -> str | None:
    """Return the argument that named a file, or the folder that it is in; None: none did."""
    inside = None
    given_as = vars(args)
    for key in (*POSITIONAL, *given_as.keys() - {*POSITIONAL, "command", "task"}):
        value = given_as.get(key)
        name = POSITIONAL.get(key, "--" + key.replace("_", "-"))
        for given in _as_list(value):
            if not isinstance(given, str) or not given:
                continue
            if given == path:
                return name
            if inside is None and Path(given) in Path(path).parents:
                inside = name
    return inside


def write(text: str) -> None:
    """Write to standard output, if there is one, and at once."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as e:
        give_up_output()
        raise OSError(e.errno, e.strerror, "standard output") from e


def give_up_output() -> None:
    """Discard the rest of standard output: the interpreter must not try it again at its exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(value: Any) -> Any:
    """Return what JSON makes of a dataclass or of a number of NumPy."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected figures that JSON can hold, got a {type(value).__name__}")
