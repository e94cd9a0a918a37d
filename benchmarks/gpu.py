"""Everything that needs a GPU, in one go of under ten minutes: facts and ceilings, correctness, times beside PyTorch, compute-sanitizer.

    python benchmarks/gpu.py              # on a machine with a GPU, CuPy and ostinato._cuda
    python benchmarks/gpu.py --emulated   # a dry run of the script on the CPU, on tiny shapes: no time of it means anything

Ratios are medians of turns taken in one run, answers compared first. The figures are kept in benchmarks/results, with device and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import _core, _device, safetensors
from ostinato.__main__ import info

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parent.parent / "tests" / "test_device.py"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Clock:
    """Seconds of work on a device: by its events, or by the wall where kernels are emulated."""

    def __init__(self, device: _device.Device) -> None:
        self.xp = device.xp

    def __call__(self, work: Callable[[], Any]) -> float:
        if self.xp is np:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(begin, end)) * 1e-3


def alternate(clock: Clock, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, the turn passed between them."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(clock(call))
    return {name: statistics.median(s) for name, s in seconds.items()}


def ceilings(device: _device.Device, clock: Clock, size: int) -> dict[str, float]:
    """Bytes a second of a copy, and multiply-adds a second of the array library's float32 product."""
    xp = device.xp
    a, b = xp.ones((size, size), np.float32), xp.ones((size, size), np.float32)
    out = xp.empty_like(a)
    seconds = alternate(clock, {"copy": lambda: xp.copyto(out, a), "product": lambda: xp.matmul(a, b, out=out)}, 5)
    return {
        "copy bytes a second": 2 * a.nbytes / seconds["copy"],
        "product flops a second": 2 * size**3 / seconds["product"],
    }


def layer_calls(device: _device.Device, cell: str, steps: int, batch: int, hidden: int) -> dict[str, Callable[[], Any]]:
    """Forward and training of one layer of ours, and of PyTorch's where it runs on this device."""
    r, gates = np.random.default_rng(0), _core.cells()[cell]["gates"]
    shapes = [(gates * hidden, hidden), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)]
    weights = [(r.uniform(-1, 1, s) / np.sqrt(hidden)).astype(np.float32) for s in shapes]
    x, dy = (r.standard_normal((steps, batch, hidden)).astype(np.float32) for _ in range(2))
    mine, there, d = [device.put(w) for w in weights], device.put(x), device.put(dy)
    packed = _device.pack(device, cell, [*mine, None])
    grads = [device.xp.zeros_like(w) for w in mine]

    def infer() -> Any:
        return _device.forward(packed, there)[0]

    def train() -> Any:
        again = _device.pack(device, cell, [*mine, None])  # as after a step of the optimiser
        tape = _device.forward(again, there, train=True)[3]
        assert tape is not None
        return _device.backward(tape, d, None, None, [*grads, None])[0]

    calls = {"infer": infer, "train": train}
    try:
        import torch
    except ImportError:
        return calls
    if device.xp is np or not torch.cuda.is_available() or cell not in ("lstm", "gru"):
        return calls
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](hidden, hidden).cuda()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict({n: torch.from_numpy(w) for n, w in zip(names, weights)})
    leaf, above = torch.from_numpy(x).cuda().requires_grad_(True), torch.from_numpy(dy).cuda()

    def torch_infer() -> Any:
        with torch.inference_mode():
            return layer(leaf)[0]

    def torch_train() -> Any:
        layer.zero_grad(set_to_none=False)
        leaf.grad = None
        layer(leaf)[0].backward(above)
        return leaf.grad

    for ours, theirs in ((infer(), torch_infer()), (train(), torch_train())):
        got, want = device.get(ours), theirs.cpu().numpy()
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        assert error < 2e-3, f"{cell}: answers differ by {error:.2g}"  # TF32 may be on in their products
    return {**calls, "torch infer": torch_infer, "torch train": torch_train}


def times(device: _device.Device, clock: Clock, emulated: bool) -> list[dict[str, Any]]:
    """By cell, batch and size: seconds, and PyTorch's as a ratio."""
    out = []
    for cell in ("lstm", "gru"):
        for batch, hidden in [(2, 8)] if emulated else [(16, 256), (16, 512), (16, 1024), (64, 512)]:
            steps = 4 if emulated else 256
            seconds = alternate(clock, layer_calls(device, cell, steps, batch, hidden), 3 if emulated else 11)
            row: dict[str, Any] = {"cell": cell, "steps": steps, "batch": batch, "hidden": hidden, "seconds": seconds}
            for mode in ("infer", "train"):
                if f"torch {mode}" in seconds:
                    row[f"{mode}: over torch"] = seconds[f"torch {mode}"] / seconds[mode]
            ratios = "  ".join(f"{k} {v:.2f}x" for k, v in row.items() if isinstance(v, float))
            print(f"{cell:5}B={batch:<4}H={hidden:<5}{ratios or 'no peer'}", flush=True)
            out.append(row)
    return out


def run_tests(select: str, *prefix: str) -> str:
    """The last line of the tests of the device, perhaps under a tool."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", str(TESTS)]
    done = subprocess.run([*command, "-k", select] if select else command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if re.search(r"passed|failed|error|ERROR SUMMARY", line)]
    return f"exit {done.returncode}: " + "; ".join(lines[-3:])


def main() -> None:
    """Run it all and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="a dry run on the CPU; nothing is kept")
    args = parser.parse_args()
    device = _device.emulated() if args.emulated else _device.cuda()
    clock = Clock(device)
    figures: dict[str, Any] = {"machine": info(), "devices": ost.cuda.devices()}
    figures["ceilings"] = ceilings(device, clock, 64 if args.emulated else 8192)
    print(figures["devices"], figures["ceilings"])
    figures["tests"] = run_tests("lstm-float32" if args.emulated else "")
    print(f"tests: {figures['tests']}", flush=True)
    figures["times"] = times(device, clock, args.emulated)
    sanitizer = shutil.which("compute-sanitizer")
    figures["sanitizer"] = {}
    for tool in TOOLS if sanitizer and not args.emulated else ():
        small = "(lstm or before) and float32 and all"
        found = run_tests(small, str(sanitizer), f"--tool={tool}", "--error-exitcode=1")
        figures["sanitizer"][tool] = found
        print(f"{tool}: {found}", flush=True)
    if not args.emulated:
        name = figures["devices"][0]["name"].lower().replace(" ", "-")
        with safetensors.atomic_write(RESULTS / f"{datetime.date.today():%Y-%m-%d}-gpu-{name}.json") as f:
            f.write(json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
