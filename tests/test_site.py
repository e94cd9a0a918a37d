"""The documentation site: every page is in its navigation, and every public name has one place."""

from __future__ import annotations

import ast
import collections
import functools
import importlib.util
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "ostinato"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def block(key: str) -> str:
    """Return what is indented below a key of the configuration."""
    found = re.search(rf"^{key}:.*\n((?:[ ]+.*\n|\n)+)", CONFIG, re.M)
    assert found is not None
    return found[1]


NAVIGATION = re.findall(r"(\S+\.(?:md|ipynb))$", block("nav"), re.M)


def public_modules() -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of every module that users import."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts), path


MODULES = dict(public_modules())


def file_of(module: str) -> Path:
    """Return the file of a module of the package, private ones included."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def parsed(module: str) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Return ``__all__`` of a module, and the module and name that each import of it is from.

    It is read without an import, which may need another library.
    """
    path = file_of(module)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    public: list[str] = []
    imports = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = list(ast.literal_eval(node.value))
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            source = ".".join([*base, *([node.module] if node.module else [])])
            imports |= {a.asname or a.name: (source, a.name) for a in node.names}
    return public, imports


def origin(module: str, name: str) -> tuple[str, str]:
    """Return the module in which a name is defined, and its name there."""
    source, original = parsed(module)[1].get(name, (module, name))
    if (source, original) == (module, name) or not file_of(source).exists():
        return module, name
    return origin(source, original)


def documented() -> Iterator[tuple[str, str, str]]:
    """Yield each page of the API reference, with a module and a name of it that it documents."""
    for path in sorted((ROOT / "docs" / "api").rglob("*.md")):
        page = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        for module, options in re.findall(r"^::: (\S+)\n((?:[ ]+.*\n)*)", text, re.M):
            if not file_of(module).exists():  # a name, not a module
                owner, _, name = module.rpartition(".")
                yield page, owner, name
                continue
            for name in re.findall(r"^ +- (\w+)$", options, re.M) or parsed(module)[0]:
                yield page, module, name


def test_the_configuration_was_read() -> None:
    assert len(NAVIGATION) > 50
    assert len(MODULES) > 40
    assert origin("ostinato", "Trainer") == ("ostinato.train._trainer", "Trainer")
    assert origin("ostinato", "nn") == ("ostinato", "nn")


def test_navigation_names_every_page_once() -> None:
    found = [p for form in ("*.md", "*.ipynb") for p in (ROOT / "docs").rglob(form)]
    pages = [p.relative_to(ROOT).as_posix() for p in found]
    parts = {line.strip().lstrip("/") for line in block("exclude_docs").splitlines()}
    left = {page for page in pages if page not in parts}
    named = [page for page in NAVIGATION if page.startswith("docs/")]
    assert sorted(named) == sorted(left)
    assert {"README.md", "HACKING.md", "CHANGELOG.md"} <= set(NAVIGATION)
    assert len(NAVIGATION) == len(set(NAVIGATION))
    assert [page for page in NAVIGATION if not (ROOT / page).exists()] == []


def test_stylesheets_are_part_of_the_tree() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (named,) = re.findall(r"^extra_css: \[(.*)\]$", text, re.M)
    tree = (ROOT / "tools" / "site" / "tree").read_text(encoding="utf-8")
    for path in named.split(", "):
        assert (ROOT / path).read_text(encoding="utf-8").count("{")
        assert f" {path}" in tree  # else a page names what the site does not have


def test_every_public_module_has_a_page() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").rglob("*.md"))
    shown = re.findall(r"^::: (\S+)$", text, re.M)
    assert [m for m, n in collections.Counter(shown).items() if n > 1] == []
    assert {m for m in shown if "._" not in m} == set(MODULES)


def test_every_public_name_appears_once() -> None:
    places = collections.defaultdict(list)
    for page, module, name in documented():
        if f"{module}.{name}" not in MODULES:
            places[origin(module, name)].append(f"{page}: {module}.{name}")
    assert [found for found in places.values() if len(found) > 1] == []
    public = {
        origin(module, name)
        for module in MODULES
        for name in parsed(module)[0]
        if f"{module}.{name}" not in MODULES and name != "__version__"
    }
    assert public - set(places) == set()


def test_the_site_is_built(tmp_path: Path) -> None:
    """Without a warning, and with a place to link to for each name that a page documents."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers", "nbconvert"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install '.[docs]'")
    subprocess.run([ROOT / "tools" / "site" / "tree", ROOT / "build" / "docs" / "tree"], check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can't work" not in done.stdout + done.stderr  # of hooks, which is no error
    source = (tmp_path / "site" / "examples" / "serve" / "index.html").read_text(encoding="utf-8")
    assert '<h1 id="servepy">' in source
    assert '<span class="kn">import</span>' in source  # highlighted
    pages = tmp_path / "site" / "docs" / "notebooks"
    for name in (path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = (pages / name / "index.html").read_text(encoding="utf-8")
        pictures = re.findall(r'<img [^>]*src="\.\./([^"]+)"', page)
        assert pictures
        assert all((pages / picture).stat().st_size > 1000 for picture in pictures)
    inventory = (tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    named = {f"{module}.{name}" for _, module, name in documented()}
    assert named - names - set(MODULES) - {"ostinato.__version__"} == set()
