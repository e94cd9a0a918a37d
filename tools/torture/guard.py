"""What a reader may do with a file that nobody vouches for, and what it may not."""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LONGEST = 2000  # characters of an error that a person can read
# Events of the interpreter's audit that mean that something was run, or that a host was asked.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "marshal.loads",
    "ctypes.dlopen",
    "socket.connect",
    "socket.bind",
    "shutil.rmtree",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
)
_TRUSTED = tuple(
    os.path.realpath(p)
    for p in {
        *(sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(p for p in sys.path if p),
        str(Path(__file__).parent.parent.parent / "python"),
    }
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Executed(BaseException):
    """A reader ran something, or touched what it was not given; no `except` of its own hides it."""


def _importing() -> bool:
    """Return whether this is within an import, which was allowed when it began."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap_external>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Watch:
    """The audit hook, which cannot be taken off again: it sleeps between two readings."""

    def __init__(self) -> None:
        self.allowed: str | None = None  # the folder of the file that is read
        self.seen: str | None = None
        self.loaded: set[str] | frozenset[str] = frozenset()
        self.modules = 0  # how many there were when `loaded` was made

    def note_modules(self) -> None:
        """Allow the imports of what is there already; a name costs as much as a small file."""
        if len(sys.modules) != self.modules:
            self.modules = len(sys.modules)
            self.loaded = {n.partition(".")[0] for n in sys.modules} | sys.stdlib_module_names

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in ("marshal.loads", "exec", "compile") and _importing():
            return
        if event in FORBIDDEN:
            self._stop(f"{event} {args!r:.200}")
        elif event == "open":
            self._opened(*args)
        elif event in ("exec", "compile"):
            self._compiled(event, args)
        elif event == "import" and args[0].partition(".")[0] not in self.loaded:
            self._stop(f"import of {args[0]!r:.80}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))
        if isinstance(flags, int) and flags & _WRITES and real != os.devnull:
            self._stop(f"opened for writing: {real!r:.200}")
        inside = real.startswith((str(self.allowed) + os.sep, *_TRUSTED, "/proc/", "/sys/"))
        if not inside and real != os.devnull:
            self._stop(f"another file was opened: {real!r:.200}")

    def _compiled(self, event: str, args: tuple[Any, ...]) -> None:
        name = args[0].co_filename if event == "exec" else args[1]
        name = os.fsdecode(name) if isinstance(name, (str, bytes)) else "<unknown>"
        # "<unknown>" is ast.parse, which makes a tree and no code that runs.
        known = name == "<unknown>" if event == "compile" else False
        file = os.path.isabs(name) and os.path.realpath(name).startswith(_TRUSTED)
        if not (known or file or name.startswith("<frozen ")):
            self._stop(f"{event} of {args[0]!r:.200}")

    def _stop(self, what: str) -> None:
        self.seen = what
        raise Executed(what)


_watch = _Watch()
_hooked = False


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Refuse to run, import, write or open anything but the files in a folder and of packages.

    Raises:
        Executed: it was tried, also where the reader hid it.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked = True
    _watch.seen = None
    _watch.note_modules()
    _watch.allowed = os.path.realpath(folder)
    try:
        yield
    finally:
        _watch.allowed = None
        if _watch.seen is not None:
            raise Executed(_watch.seen)


def fault_of(error: BaseException, allowed: tuple[type[BaseException], ...]) -> str:
    """Return what is wrong with the error of a reader, "" for nothing."""
    text = str(error)
    if not isinstance(error, allowed):
        return f"{type(error).__name__}: {text[:300]}"
    if not any(word in text for word in ("expected", "missing")):
        return f"an error that says nothing that was expected: {text[:300]!r}"
    if len(text) > LONGEST:
        return f"an error of {len(text)} characters: {text[:100]}"
    return ""


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
        kind: "read" or "refused".
        fault: what was wrong, "" for nothing.
        site: the line that refused it, "" where it was read.
    """

    kind: str
    fault: str
    site: str = ""


def site_of(error: BaseException) -> str:
    """Return the line where an error, or the one that it was made of, was raised."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"


def outcome(
    read: Callable[[Path], Any], path: Path, allowed: tuple[type[BaseException], ...]
) -> Outcome:
    """Read a file; return what became of it."""
    try:
        with warnings.catch_warnings(), watched(path.parent):
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            read(path)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        return Outcome("refused", fault_of(e, allowed), site_of(e))
    return Outcome("read", "")
