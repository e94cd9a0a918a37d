"""The examples in the docstrings and in the README run and print what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import fake_cupy
import ostinato
import ostinato.cli
from conftest import native_for_tests

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(ostinato.__path__, "ostinato.")
    if not m.name.endswith(("_core", "_emulated", "__main__"))
)


def need_framework(name: str) -> None:
    """Skip what is of PyTorch, JAX, Keras, aeon or sktime where it is not installed."""
    for library, needed in (("aeon", "numba"), ("sktime", "skbase")):
        if name == f"ostinato.interop.{library}":  # which may be there without what it needs
            pytest.importorskip(needed, reason=f"{needed}, which {library} needs, is missing")
            pytest.importorskip(library, reason=f"{library} is not installed")
    ours = ("keras.md", "ostinato.interop.keras", "ostinato.interop._keras_")
    files = ("_keras_file", "_keras_write", "_keras_kernels", "_keras_on_numpy")  # without Keras
    if name.startswith(ours) and not name.endswith(files):
        for bridge in ("jax", "tensorflow", "torch"):
            if name.endswith(f"_on_{bridge}"):
                pytest.importorskip(bridge, reason=f"{bridge} is not installed")
                return
        pytest.importorskip("keras", reason="Keras 3 is not installed: pip install keras")
    own = ("torch.md", "ostinato.interop.torch", "ostinato.interop._torch_")
    if name.startswith(own) and not name.endswith("_torch_file"):  # which reads files without it
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    if name == "serving.md":
        pytest.importorskip("websockets", reason="websockets is missing: pip install websockets")
    if name == "parallel.md":
        pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install mpi4py mpich")
    if name.startswith(("jax.md", "ostinato.interop.jax", "ostinato.interop._jax_")):
        pytest.importorskip("jax", reason="JAX is not installed: pip install jax")


@pytest.mark.parametrize("name", ["ostinato", *MODULES])
def test_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_framework(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # examples leave files there
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


CHECKS = re.compile(r"\braise |_check\.|\b(?:flag|fraction|number|positive)\(")


@pytest.mark.parametrize(
    "name",
    [
        "audio",
        "functional",
        "nn",
        "losses",
        "optim",
        "data",
        "decoding",
        "interop",
        "interop.jax",
        "interop.torch",
        "metrics",
        "train",
        "safetensors",
        "reference",
        "diagnostics",
    ],
)
def test_everything_public_is_documented(name: str) -> None:
    need_framework(f"ostinato.{name}")
    module = importlib.import_module(f"ostinato.{name}")
    for public in module.__all__:
        value = getattr(module, public)
        assert (value.__doc__ or "").strip() or not callable(value), public
        own = vars(value).get("__init__") if isinstance(value, type) else None
        written = inspect.isfunction(own) and own.__code__.co_filename.endswith(".py")
        if written and CHECKS.search(inspect.getsource(own)):  # not one that a dataclass has made
            assert "Raises:" in (value.__doc__ or ""), f"{public} checks its arguments"


# What a comment behind a print says that it prints, where that is a truth, a number or shapes.
SHAPES = r"\([\d, ]+\)(?: \([\d, ]+\))*"
PROMISED = re.compile(rf"print\(.*\)  # (True|False|Ragged\(.*\)|{SHAPES}|[\d-]+$)")


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_python_in_the_documents(path: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    need_framework(path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if path.name == "gpu.md" and not ostinato.cuda.is_available():
        native_for_tests()
        fake_cupy.stand_in(monkeypatch)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        told: dict[int, str] = {}

        def keep(*values: Any, sep: str = " ", told: dict[int, str] = told) -> None:
            told[sys._getframe(1).f_lineno] = sep.join(map(str, values))

        exec(compile(block, path.name, "exec"), {"__name__": "readme", "print": keep})
        for number, line in enumerate(block.splitlines(), 1):
            promised = PROMISED.search(line)
            if promised and number in told:
                end = "" if promised[1].startswith("Ragged") else " "  # of the value, or of it all
                assert f"{told[number]} ".startswith(promised[1] + end), line


def test_the_stubs_of_the_native_module_are_complete() -> None:
    package = Path(ostinato.__file__).parent
    assert (package / "py.typed").exists()
    stub = (package / "_core.pyi").read_text()
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.M))
    native = {n for n in dir(ostinato._core) if not n.startswith("__")}
    assert native <= declared
    assert declared - native == {
        "_Packed",
        "_Tape",
        "_Stream",
        "_PackedLinear",
        "_Sums",
    }  # what the two dtypes share
    for name, base in [
        ("PackedFloat32", "_Packed"),
        ("TapeFloat64", "_Tape"),
        ("StreamFloat32", "_Stream"),
        ("PackedLinearFloat32", "_PackedLinear"),
    ]:
        body = stub.split(f"class {base}:")[1].split("\nclass ")[0]
        methods = {n for n in vars(getattr(ostinato._core, name)) if not n.startswith("_")}
        assert methods == set(re.findall(r"def (\w+)", body)) - {"__init__"}


def native_arguments(signature: str) -> list[tuple[str, bool]]:
    """Names of the arguments in the first line of a native docstring, and whether each has a
    default.
    """
    inner = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", signature.split("\n")[0]))
    names = re.findall(
        r"(\w+): [^,=]*?( = [^,]+)?(?=, \w+: |\) -> )", inner.replace("'", "").replace(", *,", ",")
    )
    return [(name, bool(default)) for name, default in names if name != "self"]


def stub_arguments(node: ast.FunctionDef) -> list[tuple[str, bool]]:
    names = [a.arg for a in node.args.args]
    required = len(names) - len(node.args.defaults)
    by_name = [(a.arg, d is not None) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults)]
    return [(name, k >= required) for k, name in enumerate(names) if name != "self"] + by_name


def test_the_stubs_name_the_arguments_of_the_native_module() -> None:
    """In their order, with the defaults where there are any.

    Mypy sees the stubs and a call sees the module.
    """
    tree = ast.parse((Path(ostinato.__file__).parent / "_core.pyi").read_text())
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    seen = 0
    for name, node in classes.items():
        native = getattr(ostinato._core, name, None)
        if native is None:
            continue
        base = classes[ast.unparse(node.bases[0])] if node.bases else node
        for method in (
            m for m in base.body if isinstance(m, ast.FunctionDef) and not m.decorator_list
        ):
            text = getattr(native, method.name).__doc__
            if "arg0" in text:  # bound without names: the count is what there is to compare
                assert text.split("\n")[0].count("arg") == len(stub_arguments(method)), (
                    name,
                    method.name,
                )
            else:
                assert native_arguments(text) == stub_arguments(method), (name, method.name)
            seen += 1
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        text = getattr(ostinato._core, function.name).__doc__
        if "arg0" in text:
            assert text.split("\n")[0].count("arg") == len(stub_arguments(function)), function.name
        else:
            assert native_arguments(text) == stub_arguments(function), function.name
        seen += 1
    assert seen > 60


DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "HACKING", "SECURITY", "CONTRIBUTING")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
]


PLACEHOLDER = re.compile(r"\b(?:NAME|DATA|DIR|FILE|INPUT)\b|\[|\.\.\.")


def commands_of(text: str) -> list[str]:
    """Return the commands of a document: lines of plain blocks, and code within the prose."""
    text = text.replace("\\\n", "")  # a command that goes on in the next line
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    lines = [part for line in lines for part in re.sub(r"\s# .*", "", line).split(" && ")]
    before = r"^(?:\$ |[A-Z_]+=\S+ |mpiexec -n \d+ |\.venv/bin/)*"
    return [re.sub(before, "", line.strip()).removesuffix(" &") for line in lines]


def parsed(words: list[str]) -> Any:
    """Return the exit code with which the command line would refuse words, or 0."""
    try:
        ostinato.cli.parser(words).parse_args(words)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_documents(path: Path) -> None:
    """Programs are there, and the command line takes the words; nothing is run."""
    text = path.read_text(encoding="utf-8")
    for command in commands_of(text):
        program = re.match(r"(?:python3? )?((?:[\w-]+/)+[\w.-]+|[\w-]+\.py)(?: |$)", command)
        if program and re.match(r"python|tools/", command) and f"as `{program[1]}`" not in text:
            assert (ROOT / program[1]).exists(), command
        words = shlex.split(re.sub(r" [<>] ?\S+", "", command)) if "ostinato " in command else []
        if words[:3] != ["python", "-m", "ostinato"] or PLACEHOLDER.search(command):
            continue
        assert parsed(words[3:]) == 0, command


def test_commands_are_found() -> None:
    found = {c for p in DOCUMENTS for c in commands_of(p.read_text(encoding="utf-8"))}
    assert 'python -m ostinato generate shakespeare --prompt "ROMEO" --length 500' in found
    assert "python -m ostinato train text --device cuda" in found
    assert "python benchmarks/serving.py" in found
