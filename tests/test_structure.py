"""The package's modules import one another without circles, and its functions are short."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost

ROOT = Path(ost.__file__).parent
LONGEST = 60  # lines of a function, its docstring not counted

# Longer functions, by file and name, with the reason. One that is short has to leave this list.
LONGER: dict[str, str] = {}


def name_of(path: Path) -> str:
    """Return the name of the module in a file."""
    parts = ["ostinato", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
COMPILED = {name_of(path) for path in ROOT.rglob("*.pyi")}


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that can run: all but the blocks that are for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from executed(node)


def imports(name: str, path: Path) -> set[str]:
    """Return the modules of the package that a module imports, in its functions too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level])
            base = f"{base}.{node.module}" if node.level and node.module else base
            base = base if node.level else str(node.module)
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if n in FILES or n in COMPILED else base for n in full}
    return (found & set(FILES)) - {name}


# Where each library may be imported, by the beginnings of module names. The others are the
# contenders of the benchmark, and the writer of logs for TensorBoard that PyTorch has.
ADAPTERS = {
    "torch": ("torch", "_torch", "_keras_on_torch"),
    "jax": ("jax", "_jax", "_keras_on_jax"),
    "keras": ("keras", "_keras"),
    "tensorflow": ("_keras_on_tensorflow",),
    "sklearn": ("sklearn",),
    "aeon": ("aeon",),
    "sktime": ("sktime",),
    "onnx": (),
    "onnxruntime": (),
    "h5py": (),
    "flax": (),
    "haiku": (),
}
MEASURED = ("ostinato.tasks.contenders",)
LOGS = ("ostinato.train._callbacks", "torch.utils.tensorboard")


def foreign(path: Path) -> set[str]:
    """Return the modules that a file imports by an import statement."""
    found: set[str] = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
    return found


def test_a_library_is_imported_by_its_adapter_alone() -> None:
    """Those that files need are asked for by `require`, whose error says how to install them."""
    seen, wrong = set(), []
    for name, path in FILES.items():
        for module in foreign(path):
            library = module.partition(".")[0]
            if library not in ADAPTERS or name in MEASURED or (name, module) == LOGS:
                continue
            place, _, own = name.rpartition(".")
            if place != "ostinato.interop" or not own.startswith(ADAPTERS[library]):
                wrong.append((name, module))
            seen.add(library)
    assert wrong == []
    assert seen == {library for library, places in ADAPTERS.items() if places}


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that a module imports, directly or by way of others."""
    seen: set[str] = set()
    left = [start]
    while left:
        for name in graph[left.pop()] - seen:
            seen.add(name)
            left.append(name)
    return seen


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the largest groups of modules each of which leads to all others of its group."""
    far = {name: reached(graph, name) for name in graph}
    groups = {
        frozenset(other for other in far[name] if name in far[other])
        for name in graph
        if name in far[name]
    }
    return {group for group in groups if group}


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": {"e"}, "e": set[str]()}
    assert circles(graph) == {frozenset("bc")}


def test_imports_are_found() -> None:
    assert "ostinato.nn" in imports("ostinato.optim._clipping", FILES["ostinato.optim._clipping"])
    lazy = imports("ostinato.cli._commands", FILES["ostinato.cli._commands"])
    assert {"ostinato", "ostinato._machine", "ostinato.tasks.bench"} <= lazy
    typed = imports("ostinato.train._step", FILES["ostinato.train._step"])
    assert "ostinato.train._trainer" not in typed


def test_modules_import_without_circles() -> None:
    assert circles({name: imports(name, path) for name, path in FILES.items()}) == set()


# What opens files for writing: `atomic_write`, and the log, which adds rows.
WRITERS = {"_files.py", "train/_log.py"}
READ = {"", "r", "rb", "rt"}


def writes(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of calls that open a file for writing, or write to one by its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = [a.value for a in node.args if isinstance(a, ast.Constant)]
        given += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
        modes = {v for v in given if isinstance(v, str) and re.fullmatch(r"[rwaxbt+]{1,3}", v)}
        opens = name in ("open", "fdopen", "File", "ZipFile") and not modes <= READ
        descriptor = name == "open" and ast.unparse(node.func) == "os.open"
        by_name = name in ("write_text", "write_bytes", "tofile", "to_csv", "write_csv")
        by_name |= name in ("savez", "savetxt", "copyfile", "mkstemp", "NamedTemporaryFile")
        figure = name == "savefig" and ast.unparse(node.args[0]) != "f"
        if opens or descriptor or by_name or figure:
            yield node.lineno


def test_files_are_written_in_one_place() -> None:
    """Everything else writes through `atomic_write`, whole or not at all."""
    found = {}
    for path in FILES.values():
        lines = list(writes(ast.parse(path.read_text(encoding="utf-8"))))
        if lines:
            found[path.relative_to(ROOT).as_posix()] = lines
    # The settings of a process in /proc, the standard output's end, and HDF5 in memory; the null
    # device, where the ranks behind the first print; memory that ranks share; and a journal, which
    # other processes append to: what is half-written at its end is cut off in place, under the lock
    # of its writers.
    known = {"tasks/bench.py": 1, "cli/_output.py": 1, "interop/_keras_write.py": 1}
    known |= {"cli/_ranks.py": 1, "train/_shared.py": 1, "train/_study.py": 1}
    assert {name: len(lines) for name, lines in found.items() if name not in WRITERS} == known
    assert set(found) >= WRITERS


def test_writes_are_found() -> None:
    for text in ("open(p, 'wb')", "p.open('a')", "p.write_text('')", "figure.savefig(path)"):
        assert list(writes(ast.parse(text))) == [1], text
    for text in ("open(p, 'rb')", "open_regular(p)", "f.write(b'')", "figure.savefig(f)"):
        assert list(writes(ast.parse(text))) == [], text


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """Yield every function's name and its lines without its docstring."""
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{within}.{node.name}".lstrip(".")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = int(node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= int(node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield name, lines
        yield from functions(node, name)


def test_functions_are_short() -> None:
    long = {}
    for path in FILES.values():
        for name, lines in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if lines > LONGEST:
                long[f"{path.relative_to(ROOT).as_posix()}:{name}"] = lines
    assert {name: n for name, n in long.items() if name not in LONGER} == {}
    assert set(LONGER) - set(long) == set(), "these are short now: take them off the list"


def test_lines_of_a_function_are_counted() -> None:
    tree = ast.parse('class A:\n    def f(self):\n        """Doc."""\n\n        return 1\n')
    assert list(functions(tree)) == [("A.f", 3)]


def test_public_names_are_where_they_were_before_files_were_divided() -> None:
    """What is pickled is found by these, by any version."""
    for name in ost.functional.__all__:
        value: Any = getattr(ost.functional, name)
        assert (value.__module__, value.__qualname__) == ("ostinato.functional", name)
        if inspect.isfunction(value):
            assert f"def {name}(" in inspect.getsource(value)
    for kind in (ost.nn.RNN, ost.nn.LSTM, ost.nn.GRU):
        assert kind.__module__ == "ostinato.nn._recurrent"
    assert type(ost.explain(ost.nn.GRU(2, 3), (4, 2))).__module__ == "ostinato._explain"
    w = np.ones((4, 1))
    _, pullback = ost.functional.lstm_vjp(np.ones((3, 2, 1)), w, w)
    gradients = pullback(dh_n=np.ones((2, 1)))
    data = pickle.dumps(gradients)
    assert b"ostinato.functional\n" in data or b"ostinato.functional\x94" in data
    again = pickle.loads(data)
    assert type(again) is ost.functional.Gradients
    assert np.array_equal(again.dx, gradients.dx)
