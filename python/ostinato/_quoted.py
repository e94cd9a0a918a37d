"""What a file says, in the words of an error: short enough to be read, however long it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LONGEST = 80  # characters of a value
MOST = 20  # names of a list


def quoted(value: Any) -> str:
    """Return a value as Python writes it; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Return names with commas between them; of many, or long ones, the first characters."""
    all_names = list(names)
    short = [n if len(n) <= LONGEST else n[: LONGEST - 3] + "..." for n in all_names[:MOST]]
    return ", ".join(short) + (", ..." if len(all_names) > MOST else "")
