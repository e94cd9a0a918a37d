"""Tell whether this installation has kernels for NVIDIA GPUs and a device to run them on.

The kernels are a module of their own, in the package ``ostinato-cuda13``, whose version has to be
that of ostinato, or in ostinato itself if it was built with ``-C cmake.define.OSTINATO_CUDA=ON``.
It loads on machines without a driver too.

>>> import ostinato as ost
>>> ost.cuda.is_available() == (ost.cuda.why_not() == "")
True
"""

from __future__ import annotations

from typing import Any

from . import _device, _driver
from ._annotations import readable

__all__ = ["check", "devices", "is_available", "why_not"]


def why_not() -> str:
    """Tell why there is no GPU to run on; never raise.

    >>> import ostinato as ost
    >>> isinstance(ost.cuda.why_not(), str)
    True

    Returns:
        One sentence; "" where there is a GPU.
    """
    return _driver.why_not()


def is_available() -> bool:
    """Tell whether kernels can run on a GPU; never raise.

    >>> import ostinato as ost
    >>> isinstance(ost.cuda.is_available(), bool)
    True

    Returns:
        True where `why_not` has nothing to say.
    """
    return why_not() == ""


def devices() -> list[dict[str, Any]]:
    """List the GPUs that the kernels can run on.

    >>> import ostinato as ost
    >>> isinstance(ost.cuda.devices(), list)
    True

    Returns:
        For every GPU a dict with its name, compute capability, multiprocessors, bytes of memory,
        and the versions of driver and runtime; an empty list where there is none.
    """
    return _driver.devices()


def check() -> None:
    """Wait until the GPUs have done all that was launched, and raise what went wrong there.

    Some kernels find out on the device that they cannot continue. The outputs of that call are NaN
    then, nothing else is lost, and the next call on the device raises, or this function. Without a
    GPU it does nothing.

    >>> import ostinato as ost
    >>> ost.cuda.check()

    Raises:
        RuntimeError: what a kernel has found; it is raised once.
    """
    _device.check()


readable(globals())
