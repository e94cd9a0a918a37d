"""The native module for NVIDIA GPUs, of this package or of ostinato-cuda13, and what it finds."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from . import _core

# Where the kernels may be: in this package, if it was built with them, or in one of their own.
HOMES = ("ostinato._cuda", "ostinato_cuda13._cuda")
BUILD = "-C cmake.define.OSTINATO_CUDA=ON"


@lru_cache(maxsize=1)
def _module() -> tuple[Any, str]:
    """Return the module and "", or None and the reason."""
    version, reasons = _core.__version__, []
    for name in HOMES:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a damaged package may raise anything, and `why_not` never does
            if not _is_absent(name, error):
                reasons.append(f"{name} does not load: {error}")
            continue
        found = getattr(module, "__version__", "unknown")
        if found == version:
            return module, ""
        reasons.append(
            f"{name}: expected the version of ostinato, {version}, got {found}; "
            + _advice(name, module)
        )
    return None, "; ".join(reasons) or (
        "there are no kernels for NVIDIA GPUs: from a checkout, build their package with "
        f"tools/wheels --cuda, or ostinato with {BUILD}"
    )


def _is_absent(name: str, error: Exception) -> bool:
    """Whether there is no such module or package, rather than one that lacks something."""
    return isinstance(error, ModuleNotFoundError) and error.name in (name, name.split(".")[0])


def _advice(name: str, module: Any) -> str:
    """Tell what to do about kernels of another version."""
    if name == HOMES[0]:
        file = getattr(module, "__file__", None) or "that module"
        return f"build ostinato again with {BUILD}, or remove {file}"
    return f"install ostinato-cuda13 {_core.__version__}, which tools/wheels --cuda builds"


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
