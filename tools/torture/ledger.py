"""What was done so far, in a file that later runs add to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def fast_folder() -> str | None:
    """Return a folder in memory, None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Ledger:
    """Counts by names, which are written at each change, so that a run may end at any time.

    Args:
        out: the folder of the file; None keeps the counts in memory alone.
        name: the name of the file.
    """

    def __init__(self, out: str | Path | None, name: str) -> None:
        self.path = None if out is None else Path(out) / f"{name}.json"
        self.facts: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            self.facts = json.loads(self.path.read_text(encoding="utf-8"))

    def of(self, key: str) -> dict[str, Any]:
        """Return the counts under a name, none if there are none yet."""
        return self.facts.get(key, {})

    def add(self, key: str, **counts: float | str | list[str]) -> None:
        """Add numbers and lists to those under a name; a text takes the place of another."""
        own = self.facts.setdefault(key, {})
        for name, n in counts.items():
            own[name] = n if isinstance(n, str) or name not in own else own[name] + n
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
            os.replace(part, self.path)
