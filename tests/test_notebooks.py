"""The notebooks of the documentation: their code compiles, and their outputs are those of a run.

tools/notebooks executes them.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What only the machine of a run has: absolute paths, packages, addresses of objects.
MACHINE = re.compile(r"(?<![\w/.])/\w[\w.-]*/|\b[A-Z]:\\|site-packages|0x[0-9a-f]{6,}")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [c for c in notebook["cells"] if c["cell_type"] == kind]


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(value)


def outputs(path: Path) -> list[dict[str, Any]]:
    return [o for c in cells(path, "code") for o in c["outputs"]]


def test_the_notebooks_were_found() -> None:
    assert [p.stem for p in NOTEBOOKS] == ["anomaly", "forecasting", "text"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_code_compiles_and_was_run_in_order(path: Path) -> None:
    code = cells(path, "code")
    for k, cell in enumerate(code, 1):
        compile(text_of(cell["source"]), f"{path.name}, cell {k}", "exec")
        assert cell["execution_count"] == k
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")


def test_what_only_a_machine_has_is_found() -> None:
    for text in ("in /a/b.py", "'/srv/x/y'", r"C:\a", "<A at 0x7f00aa11>"):
        assert MACHINE.search(text), text
    for text in ("1/2/3", "12 / 5 / 2", "a/b/c", "https://a.org/b/c", "0.5 s/step"):
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_those_of_a_run_without_an_error(path: Path) -> None:
    assert {o["output_type"] for o in outputs(path)} == {"stream", "display_data"}
    assert {o["name"] for o in outputs(path) if o["output_type"] == "stream"} == {"stdout"}
    pictures = [o["data"]["image/png"] for o in outputs(path) if "data" in o]
    assert len(pictures) == 1
    text = "".join(text_of(o["text"]) for o in outputs(path) if "text" in o)
    assert re.search(r"\d", text)
    assert not MACHINE.search(text)
    assert path.stat().st_size < 150_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert all(set(c["metadata"]) == set() for c in notebook["cells"])  # no times of runs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_names_of_the_library_are_there(path: Path) -> None:
    """What a cell takes of ostinato exists, so that a name that goes is noticed without a run."""
    import importlib

    trees = [ast.parse(text_of(c["source"])) for c in cells(path, "code")]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    modules: dict[str, Any] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith("ostinato"):
                    modules[a.asname or a.name] = importlib.import_module(a.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("ostinato"):
            source = importlib.import_module(str(node.module))
            for a in node.names:
                if not hasattr(source, a.name):
                    importlib.import_module(f"{node.module}.{a.name}")
                modules[a.asname or a.name] = getattr(source, a.name)
    assert modules
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ost."):
            first, second, *_ = ast.unparse(node).split(".")[1:]
            if second.isidentifier():
                assert hasattr(getattr(modules["ost"], first), second), ast.unparse(node)
