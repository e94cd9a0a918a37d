"""Write figures of matplotlib whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ._files import atomic_write


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a figure, in the format that the end of the file's name says.

    Args:
        figure: a figure of matplotlib.
        path: the file; PNG where its name has no ending.
        **options: of the figure's ``savefig``.

    Raises:
        OSError: the file cannot be written; what was there before stays.
        ValueError: matplotlib does not have this format.
    """
    with atomic_write(path) as f:
        figure.savefig(f, format=Path(path).suffix[1:].lower() or "png", **options)
