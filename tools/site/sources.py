"""A hook of MkDocs: source files that pages lead to are pages themselves, with highlighted code."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

LANGUAGES = {".py": "python", ".cpp": "cpp"}


class Source(File):
    """A source file; MkDocs takes it for the Markdown that `on_page_read_source` makes of it."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any) -> Files:
    """Replace source files by pages at the same path, so that links to them need no change."""
    for file in list(files):
        if PurePosixPath(file.src_uri).suffix in LANGUAGES:
            files.remove(file)
            page = Source(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls)
            page.inclusion = file.inclusion
            files.append(page)
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """Return the code of a source file as Markdown, and None for other pages."""
    path = PurePosixPath(page.file.src_uri)
    if path.suffix not in LANGUAGES:
        return None
    return f"# {path.name}\n\n````{LANGUAGES[path.suffix]}\n{page.file.content_string}````\n"
