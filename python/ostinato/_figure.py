"""Write figures of matplotlib whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import _check
from ._files import atomic_write, require_path


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a figure, in the format that the end of the file's name says.

    Args:
        figure: a figure of matplotlib.
        path: the file; PNG where its name has no ending.
        **options: of the figure's ``savefig``.

    Raises:
        OSError: the file cannot be written; what was there before stays.
        TypeError: path is no path.
        ValueError: matplotlib does not have this format.
    """
    require_path(path)
    ending = Path(path).suffix[1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(
            "path: expected the ending of a format that matplotlib knows "
            f"({', '.join(sorted(known))}), got {_check.quoted(os.fspath(path))}"
        )
    with atomic_write(path) as f:
        figure.savefig(f, format=ending, **options)
