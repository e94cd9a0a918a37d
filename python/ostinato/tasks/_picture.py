"""Draw with matplotlib into a PNG file, without a screen and without `pyplot`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._figure import save_figure


def check(path: str | os.PathLike[str] | None) -> None:
    """Check that a picture can be drawn into a file, before the work whose result it shows.

    Args:
        path: the file of ``--plot``; None for none.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a name that does not end in ``.png``.
    """
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"--plot: expected a name that ends in .png, got {os.fspath(path)!r}")
    _matplotlib()


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'ostinato[data]'") from None
    return Figure, FigureCanvasAgg


def figure(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib.

    Args:
        width: inches.
        height: inches.
    """
    figure_class, canvas_class = _matplotlib()
    made = figure_class(figsize=(width, height), layout="constrained")
    canvas_class(made)
    return made


def save(drawn: Any, path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure as PNG.

    Args:
        drawn: the figure.
        path: the file.
        dpi: points an inch.

    Raises:
        OSError: the file cannot be written.
    """
    save_figure(drawn, path, dpi=dpi)
