"""Standard output of the commands: text that a terminal can be given, and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import unicodedata
from typing import Any

import numpy as np


def one_line(message: object) -> str:
    """Return a message without what would begin a new line or set a terminal to something."""
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c if unicodedata.category(c) not in hidden else c.encode("unicode_escape").decode()
        for c in str(message)
    )


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
