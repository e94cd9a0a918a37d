"""The examples in the docstrings and in the README run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import fake_cupy
import ostinato
from conftest import native_for_tests

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(ostinato.__path__, "ostinato.")
    if not m.name.endswith(("_core", "_emulated", "__main__"))
)


@pytest.mark.parametrize("name", ["ostinato", *MODULES])
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize(
    "name", ["functional", "nn", "losses", "optim", "data", "train", "safetensors", "reference", "diagnostics"]
)
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(f"ostinato.{name}")
    for public in module.__all__:
        assert (getattr(module, public).__doc__ or "").strip() or not callable(getattr(module, public)), public


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_python_in_the_documents(path: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if path.name == "gpu.md" and not ostinato.cuda.is_available():
        native_for_tests()
        fake_cupy.stand_in(monkeypatch)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        exec(compile(block, path.name, "exec"), {"__name__": "readme"})


def test_the_stubs_of_the_native_module_are_complete() -> None:
    package = Path(ostinato.__file__).parent
    assert (package / "py.typed").exists()
    stub = (package / "_core.pyi").read_text()
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.M))
    native = {n for n in dir(ostinato._core) if not n.startswith("__")}
    assert native <= declared
    assert declared - native == {"_Packed", "_Tape", "_Stream", "_PackedLinear", "_Sums"}  # what the two dtypes share
    for name, base in [
        ("PackedFloat32", "_Packed"),
        ("TapeFloat64", "_Tape"),
        ("StreamFloat32", "_Stream"),
        ("PackedLinearFloat32", "_PackedLinear"),
    ]:
        body = stub.split(f"class {base}:")[1].split("\nclass ")[0]
        methods = {n for n in vars(getattr(ostinato._core, name)) if not n.startswith("_")}
        assert methods == set(re.findall(r"def (\w+)", body)) - {"__init__"}
