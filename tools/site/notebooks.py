"""A hook of MkDocs: notebooks are pages, converted by nbconvert, and their pictures are files."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


class Notebook(File):
    """A notebook; MkDocs takes it for the Markdown that its content becomes."""

    def is_documentation_page(self) -> bool:
        return True


def converted(file: File) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of a notebook, and its pictures by name."""
    notebook = nbformat.reads(file.content_string, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise PluginError(f"{file.src_uri}: a cell ended with {output.ename}")
    name = PurePosixPath(file.src_uri).stem
    given = {"output_files_dir": ".", "unique_key": name}
    markdown, resources = MarkdownExporter().from_notebook_node(notebook, resources=given)
    pictures = {PurePosixPath(k).name: v for k, v in resources["outputs"].items()}
    return markdown.replace("](./", "]("), pictures


def on_files(files: Files, config: Any) -> Files:
    """Replace notebooks by pages at the same path, and add their pictures."""
    for file in list(files):
        path = PurePosixPath(file.src_uri)
        if path.suffix != ".ipynb":
            continue
        page = Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls)
        page.inclusion = file.inclusion
        page.content_string, pictures = converted(file)
        files.remove(file)
        files.append(page)
        for name, content in pictures.items():
            files.append(File.generated(config, str(path.parent / name), content=content))
    return files
