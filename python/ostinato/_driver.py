"""The native module for NVIDIA GPUs, of this package or of ostinato-cuda13, and what it finds."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from . import _core

# Where the kernels may be: in this package, if it was built with them, or in one of their own.
HOMES = ("ostinato._cuda", "ostinato_cuda13._cuda")


@lru_cache(maxsize=1)
def _module() -> tuple[Any, str]:
    """Return the module and "", or None and the reason."""
    version = _core.__version__
    for name in HOMES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            return None, f"{name} does not load: {error}"
        if (found := getattr(module, "__version__", "unknown")) != version:
            return None, (
                f"{name}: expected the version of ostinato, {version}, got {found}; "
                f"pip install ostinato-cuda13=={version}"
            )
        return module, ""
    return None, (
        f"there are no kernels for NVIDIA GPUs: pip install ostinato-cuda13=={version}, "
        "or build ostinato with -C cmake.define.OSTINATO_CUDA=ON"
    )


def module() -> Any:
    """Return the native module, or None where `why_not` gives a reason."""
    return _module()[0]


def why_not() -> str:
    """Tell why there is no GPU to run on; "" where there is one."""
    module, reason = _module()
    return reason if module is None else str(module.why_not())


def devices() -> list[dict[str, Any]]:
    """Return the facts of every GPU that the kernels can run on."""
    module, _ = _module()
    if module is None or module.why_not():
        return []
    return [dict(module.device_info(k)) for k in range(module.device_count())]
