"""``tools/wheels``: which Pythons it finds headers of, and that the workflows build for all."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script as a module."""
    loader = importlib.machinery.SourceFileLoader("wheels", str(ROOT / "tools" / "wheels"))
    spec = importlib.util.spec_from_loader("wheels", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "wheels", module)  # where its dataclass looks itself up
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def made(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_headers_of_one_kind_of_cpu_are_not_those_of_another(wheels: Any, tmp_path: Path) -> None:
    headers = made(tmp_path, "python3.13/Python.h", "x86_64-linux-gnu/python3.13/pyconfig.h")
    python = wheels.found("3.13", "x86_64", headers)
    assert (python.tag, python.abi) == ("cp313", "cp313")
    assert python.include == (headers / "python3.13", headers)
    assert wheels.found("3.13", "aarch64", headers) is None
    assert wheels.found("3.12", "x86_64", headers) is None
    # As Debian's: this one looks for that of the CPU.
    made(tmp_path, "python3.13/pyconfig.h")
    assert wheels.found("3.13", "aarch64", headers) is None
    made(tmp_path, "aarch64-linux-gnu/python3.13/pyconfig.h")
    assert wheels.found("3.13", "aarch64", headers) is not None


def test_headers_in_one_folder(wheels: Any, tmp_path: Path) -> None:
    headers = made(tmp_path, "python3.14/Python.h")
    assert wheels.found("3.14", "x86_64", headers) is None
    made(tmp_path, "python3.14/pyconfig.h")
    assert wheels.found("3.14", "x86_64", headers) is not None
    free = wheels.found("3.14t", "aarch64", headers)
    assert (free.tag, free.abi) == ("cp314", "cp314t")


def test_a_wheel_that_is_packed_again_is_a_sound_archive(
    wheels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index refuses one whose entries are not packed as they say."""

    packer = types.SimpleNamespace(compress=zlib.compress)  # of the same format
    monkeypatch.setitem(sys.modules, "zopfli", types.SimpleNamespace(zlib=packer))
    monkeypatch.setitem(sys.modules, "zopfli.zlib", packer)
    given, out = tmp_path / "a.whl", tmp_path / "out"
    out.mkdir()
    files = {"a/b.py": b"x = 1\n" * 50, "a/py.typed": b"", "a/c.so": bytes(1000)}
    with zipfile.ZipFile(given, "w") as z:
        z.writestr("a/", b"")
        for name, data in files.items():
            stored = name == "a/c.so"
            z.writestr(name, data, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(wheels.shortened(given, out)) as z:
        assert {name: z.read(name) for name in z.namelist()} == files
        for entry in z.infolist():
            assert entry.compress_type == zipfile.ZIP_DEFLATED
            assert entry.compress_size == len(zlib.compress(files[entry.filename])) - 6


def test_all_pythons_are_built_for_and_named(wheels: Any) -> None:
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", release)
    assert tuple(re.findall(r'"([^"]+)"', matrix)) == wheels.PYTHONS
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r"'([\w-]+[<>=][^'\s]*)'", release)
    assert needed
    assert [one for one in needed if f'"{one}"' not in project] == []  # as the extras have it
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert named == [version for version in wheels.PYTHONS if not version.endswith("t")]


def test_the_source_distribution_has_what_tests_read() -> None:
    """Results of benchmarks are not part of it, but for those that a test names."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    excluded, included = (
        re.findall(r'"([^"]+)"', re.findall(rf"^sdist\.{kind} = \[(.*?)\]", project, re.M)[0])
        for kind in ("exclude", "include")
    )
    assert excluded == ["benchmarks/results"]
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    read = set(re.findall(r"benchmarks/results/[\w-]+\.json", tests))
    assert read == set(included)
    assert all((ROOT / path).exists() for path in read)


def test_the_kernels_of_gpus_need_their_compiler(
    wheels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="nvcc: expected that of CUDA 13 on PATH, found none"):
        wheels.cuda(tmp_path, [])
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.4, V12.4.99\n")
    nvcc.chmod(0o755)
    with pytest.raises(SystemExit, match="expected that of CUDA 13 on PATH, found release 12"):
        wheels.cuda(tmp_path, [])


def test_the_kernels_of_gpus_are_built_for_what_runs(
    wheels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["wheels", "--cuda", "90", "--python", "3.13", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit):
        wheels.main()
    assert "--cuda: expected without --headers, --python and --target" in capsys.readouterr().err


def test_the_kernels_of_gpus_have_the_pythons_of_the_package() -> None:
    def pythons(folder: Path) -> list[str]:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        return re.findall(
            r"Programming Language :: Python :: (3\.\d+)|requires-python = (.*)", text
        )

    assert pythons(ROOT / "packaging" / "cuda13") == pythons(ROOT)
