"""Threads, memory and kernel sets of the process."""

from __future__ import annotations

from . import _check, _core
from ._annotations import readable


def get_num_threads() -> int:
    """Return how many threads a call may use, the calling one included.

    >>> import ostinato as ost
    >>> ost.get_num_threads() >= 1
    True

    Returns:
        The number that `set_num_threads` or OSTINATO_NUM_THREADS has set; else the CPUs that the
        process may use.
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Choose how many threads a call may use; the bits of the results do not depend on it.

    The environment variable OSTINATO_NUM_THREADS sets the number at the start of the process.

    >>> import ostinato as ost
    >>> before = ost.get_num_threads()
    >>> ost.set_num_threads(1)
    >>> ost.get_num_threads()
    1
    >>> ost.set_num_threads(before)

    Args:
        n: a whole number from 1 to 1024.

    Raises:
        TypeError: n is no whole number.
        ValueError: n is out of range.
    """
    _core.set_num_threads(_check.whole("n", n))


def release_memory() -> None:
    """Give the blocks that are kept for the next call back to the system.

    Freed blocks of 1 MB and more are kept, 256 MB of them at most.

    >>> import ostinato as ost
    >>> ost.release_memory()
    """
    _core.release_memory()


def use_kernels(name: str) -> None:
    """Choose the kernel set that calls run on from now on.

    The environment variable OSTINATO_KERNELS chooses one at the start of the process.

    >>> import ostinato as ost
    >>> ost.use_kernels(ost.kernels()["chosen"])

    Args:
        name: one of ``kernels()["supported"]``, such as "avx2" or "baseline".

    Raises:
        TypeError: name is no text.
        ValueError: there is no such set, or the CPU does not run it.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected the name of a kernel set, got {name!r}")
    _core.use_kernels(name)


readable(globals())
