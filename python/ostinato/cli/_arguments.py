"""Types of arguments, and the form of help and of errors."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from ._output import one_line


def whole(minimum: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from minimum to most."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {minimum}, got {text[:40]}"
            )
        if value > most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at most {most}, got {text[:40]}"
            )
        return value

    return convert


def number(expected: str, right: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a type of arguments: finite numbers for which a condition holds."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and right(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:40]}")
        return value

    return convert


LARGEST_SIZE = 10**6
COUNT, SIZE = whole(1), whole(1, LARGEST_SIZE)
SEED = whole(0, 2**63 - 1)
RATE = number("a finite number above 0", lambda v: v > 0)
FRACTION = number("a number in [0, 1)", lambda v: 0 <= v < 1)
NOT_NEGATIVE = number("a finite number of at least 0", lambda v: v >= 0)


class _Formatter(argparse.HelpFormatter):
    """Formatter of a help that shows every default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = "%(default)" in text or "default:" in text
        default = action.default
        silent = (
            default is None
            or default is False
            or default in ("", argparse.SUPPRESS)
            or not action.option_strings
        )
        return text if shown or silent else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Parser whose help shows all defaults, and whose errors are one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **options)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        if "default" in options:
            options.setdefault("help", "default: %(default)s")
        return super().add_argument(*names, **options)

    def error(self, message: str) -> Any:
        self.exit(2, f"ostinato: {one_line(message)}; see {self.prog} --help\n")
