"""What is said of GPUs, on any machine: nothing here needs one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ostinato as ost
from ostinato import _core, _driver, cuda


@pytest.fixture(autouse=True)
def _asked_anew() -> Any:
    _driver._module.cache_clear()
    yield
    _driver._module.cache_clear()


def test_a_reason_or_a_device() -> None:
    assert ost.cuda.is_available() == (ost.cuda.why_not() == "") == (len(ost.cuda.devices()) > 0)
    done = subprocess.run(
        [sys.executable, "-m", "ostinato", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["cuda"]["why_not"] == ost.cuda.why_not()


def test_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the module, with one that does not load, without a driver, and with a device."""

    def importing(result: Any) -> None:
        def import_module(name: str) -> Any:
            found = result[name] if isinstance(result, dict) else result
            if isinstance(found, Exception):
                raise found
            return found

        _driver._module.cache_clear()
        monkeypatch.setattr(_driver, "importlib", SimpleNamespace(import_module=import_module))

    own, other = _driver.HOMES
    absent = {name: ModuleNotFoundError("no", name=name) for name in (own, other)}
    absent[other] = ModuleNotFoundError("no", name="ostinato_cuda13")
    old = SimpleNamespace(why_not=lambda: "", __version__="0.0.9", __file__="/a/_cuda.so")
    told = f"expected the version of ostinato, {_core.__version__}, got 0.0.9; "
    for result, words in (
        (absent, "with tools/wheels --cuda, or ostinato with -C cmake.define.OSTINATO_CUDA=ON"),
        (
            {**absent, other: ModuleNotFoundError("No module named 'cupy'", name="cupy")},
            f"{other} does not load: No module named 'cupy'",
        ),
        (
            {**absent, own: ImportError("libfoo.so is missing")},
            f"{own} does not load: libfoo.so is missing",
        ),
        ({**absent, other: SyntaxError("it is damaged")}, f"{other} does not load: it is damaged"),
        (
            {**absent, own: old},
            f"{own}: {told}build ostinato again with -C cmake.define.OSTINATO_CUDA=ON, or remove "
            "/a/_cuda.so",
        ),
        (
            {**absent, other: old},
            f"{other}: {told}install ostinato-cuda13 {_core.__version__}, which tools/wheels",
        ),
        (old, f"/a/_cuda.so; {other}: {told}"),
        (ImportError("libfoo.so is missing"), "does not load: libfoo.so is missing"),
        (
            SimpleNamespace(
                why_not=lambda: "there is no NVIDIA driver", __version__=_core.__version__
            ),
            "there is no NVIDIA driver",
        ),
        (SimpleNamespace(why_not=lambda: ""), "got unknown"),
    ):
        importing(result)
        assert words in cuda.why_not()
        assert not cuda.is_available()
        assert cuda.devices() == []
    facts = {"name": "a GPU", "multiprocessors": 132}
    right = SimpleNamespace(
        why_not=lambda: "",
        device_count=lambda: 1,
        device_info=lambda k: facts,
        __version__=_core.__version__,
    )
    # What the first home has, and cannot be used, does not hide the second.
    for result in (right, {own: old, other: right}, {own: ImportError("no"), other: right}):
        importing(result)
        assert cuda.is_available()
        assert cuda.devices() == [facts]


@pytest.mark.parametrize("version", [_core.__version__, "0.0.9"])
def test_the_kernels_of_the_other_package_are_found(version: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("ostinato._cuda") is not None:
        pytest.skip("this ostinato has kernels for NVIDIA GPUs of its own")
    package = tmp_path / "ostinato_cuda13"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_cuda.py").write_text(
        f"__version__ = {version!r}\n\n\ndef why_not():\n    return 'asked'\n", encoding="utf-8"
    )
    code = "import ostinato as ost; print(ost.cuda.why_not(), ost.cuda.devices())"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    told = f"expected the version of ostinato, {_core.__version__}, got 0.0.9"
    assert ("asked []" if version == _core.__version__ else told) in done.stdout


def test_both_packages_have_one_version() -> None:
    root = Path(__file__).parent.parent
    (version,) = re.findall(
        r'^version = "(.*)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    said = f"Version {version.rpartition('.')[0]}:"
    assert said in (root / "README.md").read_text(encoding="utf-8")
    other = (root / "packaging" / "cuda13" / "pyproject.toml").read_text(encoding="utf-8")
    assert _core.__version__ == version
    assert 'dynamic = ["version", "dependencies"]' in other
    assert 'result = ["ostinato=={project[version]}"' in other
