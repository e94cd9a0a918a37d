"""The native module for NVIDIA GPUs, if this package was built with it, and what it finds."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _module() -> tuple[Any, str]:
    """Return the module and "", or None and the reason."""
    try:
        return importlib.import_module("ostinato._cuda"), ""
    except ModuleNotFoundError:
        return (
            None,
            "this ostinato was built without CUDA; build it with -C cmake.define.OSTINATO_CUDA=ON",
        )
    except ImportError as error:
        return None, f"ostinato._cuda does not load: {error}"


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
