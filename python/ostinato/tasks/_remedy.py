"""What an error about a table advises: only options that the running command has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

__all__ = ["argument", "fix", "has", "only"]

# Options of the command, by those of the reader; None: it has all of them.
_options: ContextVar[Mapping[str, str] | None] = ContextVar("reading_options", default=None)


@contextlib.contextmanager
def only(options: Mapping[str, str] | None) -> Iterator[None]:
    """Let errors within name no other options of the reader than these.

    Args:
        options: what the command calls an option, by what the reader calls it; None: it has all
            options of the reader.
    """
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def has(*options: str) -> bool:
    """Return whether the command has all of these options."""
    known = _options.get()
    return known is None or all(option in known for option in options)


def argument(option: str) -> str:
    """Return what an error begins with: an option, or FILE where the command does not have it."""
    known = _options.get()
    return option if known is None else known.get(option, "FILE")


def fix(advice: str, *options: str, otherwise: str = "mend the file") -> str:
    """Return the end of an error: what to do with these options, or without them.

    >>> fix("--fill linear fills them", "--fill")
    '; --fill linear fills them'
    >>> with only({}):
    ...     fix("--fill linear fills them", "--fill")
    '; mend the file'

    Args:
        advice: what to do with the options.
        *options: the options that it names.
        otherwise: what to do where the command lacks one of them.

    Returns:
        The end of the error, from its semicolon on.
    """
    return f"; {advice if has(*options) else otherwise}"
