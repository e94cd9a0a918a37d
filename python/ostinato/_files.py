"""Open regular files for reading, and write files whole; formats are not known here."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ._annotations import readable

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:
    fcntl = None  # a system without advisory locks

_LONGEST_NAME = 200  # bytes of a target's name that its part file repeats; systems allow 255


def require_path(path: object, *more: type, name: str = "path") -> None:
    """Refuse what is no path, nor of one of the other types; a number would be an open file."""
    if not isinstance(path, (str, os.PathLike, *more)):
        raise TypeError(f"{name}: expected a path (str or os.PathLike), got {type(path).__name__}")


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading, without waiting for the writer of a pipe.

    >>> with open_regular(__file__) as f:
    ...     f.read(3)
    b'\"\"\"'

    Raises:
        IsADirectoryError: it is a folder.
        TypeError: it is no path.
        ValueError: it is a device, a pipe or a socket.
        OSError: it cannot be opened.
    """
    require_path(path, bytes)
    _require_regular(path, os.stat(path).st_mode)  # opening a device can already start it
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(path, os.fstat(fd).st_mode)  # the path may name another file by now
        return os.fdopen(fd, "rb")
    except BaseException:  # Ctrl-C, too, leaves no file open
        os.close(fd)
        raise


def _require_regular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((word for test, word in kinds if test(mode)), "a device")
        raise ValueError(f"{os.fspath(path)}: expected a regular file, got {kind}")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file that appears at ``path`` whole when the block ends.

    On an error the file that was there stays, and nothing else is left. A file that is replaced
    keeps its mode; a symbolic link stays, and the file that it points to is replaced. The bytes are
    gathered in a hidden ``.part`` file beside the target; what a killed process left of one is
    removed by the next write to the same target.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a"
    >>> with atomic_write(target) as f:
    ...     _ = f.write(b"all of it")
    >>> target.read_bytes()
    b'all of it'

    Args:
        path: the file to write.

    Yields:
        A binary file to write to.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the target is no regular file.
        OSError: writing failed, for example on a full disk; the error names the target.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: expected a folder at {target.parent}, found none")
    part = ""
    try:
        old = _target_stat(path, target)
        _clear_parts(target)
        fd, part = _new_part(target, 0o666 if old is None else 0o600)
        with os.fdopen(fd, "wb") as f:
            if old is not None:
                _take_over(fd, old)
            yield f
            f.flush()
            os.fsync(fd)
            os.replace(part, target)
            part = ""
    except OSError as e:
        if e.errno is None or not _is_ours(e.filename, target):
            raise
        raise OSError(e.errno, os.strerror(e.errno), os.fspath(path)) from e
    finally:
        if part:
            with contextlib.suppress(OSError):
                os.unlink(part)


def _target_stat(path: str | os.PathLike[str], target: Path) -> os.stat_result | None:
    """Return what is at the target, None for nothing; refuse what must not be replaced."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(old.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    _require_regular(path, old.st_mode)
    if not os.access(target, os.W_OK):  # replacing needs no right to the file itself
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return old


def _take_over(fd: int, old: os.stat_result) -> None:
    """Give the new file the owner, where that is allowed, and the mode of the old one."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{name[:40]}-{zlib.crc32(os.fsencode(name)):08x}"
    return f".{name}."


def _part_pattern(target: Path) -> re.Pattern[str]:
    """Return what the names of the part files of a target are; the group is their writer's."""
    return re.compile(re.escape(_prefix(target)) + r"(\d+)\.[0-9a-f]{8}\.part")


def _is_ours(name: object, target: Path) -> bool:
    """Return whether the file that an error names is the target, or one that users never see."""
    if name is None:
        return True
    if not isinstance(name, (str, bytes)):
        return False
    path = Path(os.fsdecode(name))
    if path.parent != target.parent:
        return False
    return path == target or _part_pattern(target).fullmatch(path.name) is not None


def _new_part(target: Path, mode: int) -> tuple[int, str]:
    """Create a part file and hold its lock, by which others know that its writer lives."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        name = f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}.part"
        part = os.fspath(target.parent / name)
        fd = os.open(part, flags, mode)  # the mode is subject to the umask
        try:
            _lock(fd, wait=True)
            if os.fstat(fd).st_nlink:
                return fd, part
        except BaseException:  # a disk that fails, or Ctrl-C, leaves nothing behind
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        os.close(fd)  # another process took it for a dead one's before it was locked


def _lock(fd: int, wait: bool) -> bool | None:
    """Take the lock of a part file. None: this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear_parts(target: Path) -> None:
    """Remove the part files of this target whose writers are gone."""
    pattern = _part_pattern(target)
    for name in os.listdir(target.parent):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        with contextlib.suppress(OSError):  # it is gone, or belongs to another user
            part = target.parent / name
            fd = os.open(
                part, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
            )
            try:
                free = _lock(fd, wait=False)
                if free or (free is None and not _alive(int(match[1]))):
                    os.unlink(part)
            finally:
                os.close(fd)


def _alive(pid: int) -> bool:
    """Return whether a process runs; True where it cannot be known."""
    if os.name != "posix":
        return True  # on Windows, os.kill(pid, 0) sends a signal
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


readable(globals())
