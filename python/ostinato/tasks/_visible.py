"""Text that a terminal can be given."""

from __future__ import annotations

import unicodedata
from typing import TextIO


def visible(text: str, out: TextIO | None = None) -> str:
    r"""Return a text that is safe to print, with control characters as escapes.

    >>> print(visible("a" + chr(27) + "[2Jb"))
    a\x1b[2Jb

    Args:
        text: text of a model or a file, which may hold anything.
        out: the stream, whose encoding decides what else is escaped; None: UTF-8.

    Returns:
        The text with escapes.
    """
    safe = "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text
    )
    encoding = getattr(out, "encoding", None) or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)
