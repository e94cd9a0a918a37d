"""Docstrings of all that is public.

They document the arguments that there are, and `help` reads well.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import ostinato as ost

MODULES = (
    "",
    ".audio",
    ".functional",
    ".nn",
    ".nn.init",
    ".losses",
    ".optim",
    ".data",
    ".decoding",
    ".interop",
    ".metrics",
    ".train",
    ".train.metrics",
    ".safetensors",
    ".reference",
    ".diagnostics",
    ".cuda",
    "._explain",
    ".cli",
    ".tasks.anomaly",
    ".tasks.bench",
    ".tasks.compose",
    ".tasks.classify",
    ".tasks.contenders",
    ".tasks.corpora",
    ".tasks.forecaster",
    ".tasks.listops",
    ".tasks.models",
    ".tasks.parse",
    ".tasks.season",
    ".tasks.series",
    ".tasks.tables",
    ".tasks.tag",
    ".tasks.text",
    ".tasks.translate",
    ".tasks.transcribe",
    ".tasks.transfer",
    *([".interop.sklearn"] if importlib.util.find_spec("sklearn") else []),
    *([".interop.jax"] if importlib.util.find_spec("jax") else []),
    *([".interop.torch"] if importlib.util.find_spec("torch") else []),
    # These two are there without what they need where they were installed by themselves.
    *([".interop.aeon"] if all(map(importlib.util.find_spec, ("aeon", "numba"))) else []),
    *([".interop.sktime"] if all(map(importlib.util.find_spec, ("sktime", "skbase"))) else []),
    *([".interop.keras"] if importlib.util.find_spec("keras") else []),
)


def exported() -> Iterator[tuple[str, Any]]:
    """Yield every public function and class with its name."""
    for module in MODULES:
        m = importlib.import_module("ostinato" + module)
        for name in m.__all__:
            value = getattr(m, name)
            ours = str(getattr(value, "__module__", "")).startswith("ostinato")
            if ours and (inspect.isclass(value) or inspect.isroutine(value)):
                yield f"ostinato{module}.{name}", value


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, inherited ones of ours included."""
    for name in dir(cls):
        owner = next((c for c in cls.__mro__ if name in vars(c)), object)
        if (name.startswith("_") and name != "__call__") or not owner.__module__.startswith(
            "ostinato"
        ):
            continue
        value = inspect.getattr_static(cls, name)
        value = getattr(value, "__func__", value)
        if inspect.isfunction(value) or isinstance(value, property):
            yield name, value


def section(doc: str, title: str) -> str:
    """Return a section of a docstring, "" if it is not there."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.M)
    return found[1] if found else ""


def entries(doc: str, title: str) -> list[str]:
    """Return the names that a section of a docstring documents."""
    return re.findall(r"^    (\*{0,2}\w+): ", section(doc, title), re.M)


def arguments(function: Any) -> list[str]:
    """Return the names of arguments as a docstring has them."""
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    given = inspect.signature(function).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in given if p.name not in ("self", "cls")]


def gives(function: Any) -> bool:
    """Whether a function returns a value."""
    return inspect.signature(function).return_annotation not in (
        "None",
        None,
        inspect.Signature.empty,
    )


CALLABLES = {
    (name if not method else f"{name}.{method}"): value
    for name, thing in exported()
    for method, value in [("", thing), *(members(thing) if inspect.isclass(thing) else ())]
}
FUNCTIONS = {
    n: f for n, f in CALLABLES.items() if not inspect.isclass(f) and not isinstance(f, property)
}
CLASSES = {n: c for n, c in CALLABLES.items() if inspect.isclass(c)}


def documentation(name: str) -> str:
    """Return the docstring of a callable, that of its base class if it has none."""
    owner, _, method = name.rpartition(".")
    if owner in CLASSES:
        return inspect.getdoc(getattr(CLASSES[owner], method)) or ""
    return inspect.getdoc(CALLABLES[name]) or ""


def test_there_is_something_to_look_at() -> None:
    assert len(FUNCTIONS) > 150
    assert len(CLASSES) > 50
    assert "ostinato.nn.LSTM.vjp" in FUNCTIONS


@pytest.mark.parametrize("name", CALLABLES)
def test_a_summary_of_one_sentence(name: str) -> None:
    lines = documentation(name).splitlines()
    assert lines
    assert lines[0].rstrip().endswith("."), lines[0]
    assert len(lines) == 1 or not lines[1].strip()
    assert not re.match(r"(Of|Those|The same) ", lines[0]), lines[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_their_arguments_and_results(name: str) -> None:
    doc, function = documentation(name), FUNCTIONS[name]
    assert entries(doc, "Args") == arguments(function)
    if gives(function):
        assert section(doc, "Returns") or section(doc, "Yields")
    else:
        assert not section(doc, "Returns")


@pytest.mark.parametrize("name", CLASSES)
def test_classes_document_their_arguments(name: str) -> None:
    cls = CLASSES[name]
    doc = inspect.getdoc(cls) or ""
    if is_dataclass(cls):
        assert entries(doc, "Attributes") == [f.name for f in fields(cls)]
    elif hasattr(cls, "_fields"):
        assert entries(doc, "Attributes") == list(cls._fields)
    elif not issubclass(cls, Exception):
        own = cls.__init__ is not object.__init__
        assert entries(doc, "Args") == (arguments(cls) if own else [])


@pytest.mark.parametrize("name", CALLABLES)
def test_documented_errors_are_errors(name: str) -> None:
    for error in entries(documentation(name), "Raises"):
        kind = getattr(builtins, error, None) or getattr(
            importlib.import_module("ostinato.train"), error
        )
        assert issubclass(kind, BaseException)


@pytest.mark.parametrize("name", [n for n, _ in exported()])
def test_an_example(name: str) -> None:
    doc = documentation(name)
    assert ">>> " in doc or issubclass(CALLABLES[name], Exception)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_signatures_show_types(name: str) -> None:
    """No quoted strings, and nothing of the binding library's own."""
    if CALLABLES[name] in (ost.train.Diverged, ost.train.ParallelError):
        return  # an exception has no signature of its own
    signature = inspect.signature(CALLABLES[name])
    notes = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
    for note in notes:
        if note is not inspect.Signature.empty:
            assert not re.match(r"['\"]|ForwardRef", inspect.formatannotation(note))
    assert "pybind11" not in pydoc.plain(pydoc.render_doc(CALLABLES[name]))


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield every docstring of the package, private ones included, with its place."""
    for path in sorted(Path(ost.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node
            ):
                yield f"{path.name}:{getattr(node, 'name', '')}", str(ast.get_docstring(node))


@pytest.mark.parametrize("name", CALLABLES)
def test_hints_can_be_evaluated(name: str) -> None:
    """Tools that read types ask `typing.get_type_hints`, which looks every name up."""
    value = CALLABLES[name]
    value = value.fget if isinstance(value, property) else value
    callables = [value]
    if inspect.isclass(value) and inspect.isfunction(value.__init__):
        callables.append(value.__init__)
    for one in callables:
        assert isinstance(typing.get_type_hints(one), dict)


def test_docstrings_need_no_line_before_them() -> None:
    found = [place for place, doc in docstrings() if re.match(r"(Of|Those|The same|So|As) ", doc)]
    assert not found


# Private words, each with a word of the field in its place.
FORBIDDEN = {
    "mailbox": "exchange buffer",
    "weave": "interleave",
    "to and fro": "snake order",
    "law of the bits": "bitwise reproducibility",
    "any company": "any batch composition",
    "made again": "recomputed",
    "rung": "step of the ladder",
}


def test_words_are_those_of_the_field() -> None:
    root = Path(__file__).parent.parent
    pages = [*root.glob("docs/*.md"), root / "README.md", root / "HACKING.md"]
    found = {}
    for path in [*sorted(Path(ost.__file__).parent.rglob("*.py")), *pages]:
        text = " ".join(path.read_text(encoding="utf-8").lower().split())
        words = [word for word in FORBIDDEN if re.search(rf"\b{word}", text)]
        if words:
            found[path.name] = {word: FORBIDDEN[word] for word in words}
    assert found == {}


def test_help_of_a_layer() -> None:
    text = pydoc.plain(pydoc.render_doc(ost.nn.LSTM))
    assert "precision: str | None = None" in text
    assert "rng: int | Generator | None = None" in text
    assert "Source: Hochreiter" in text
