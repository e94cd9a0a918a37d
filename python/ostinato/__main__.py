"""``python -m ostinato``: info, train, generate, forecast, explain, bench."""

from __future__ import annotations

import sys

from ._machine import info
from .cli import main, parser

__all__ = ["info", "main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
