"""Measure everything that needs a GPU within eight minutes, what matters most first.

That is: accuracy, comparisons with PyTorch, FlashRNN and JAX where they are installed, the tests of
the device, tokens a second of `train text`, the CPU beside PyTorch (`--cpu`), the plans with the
times of the planner's model, ceilings, the cost of exchanging words between multiprocessors,
compute-sanitizer. A part for which no time is left is named as such.

    python benchmarks/gpu.py              # on a machine with a GPU, CuPy and ostinato._cuda
    python benchmarks/gpu.py --cpu        # the short CPU benchmark at 1, 4 and 16 threads as well
    python benchmarks/gpu.py --no-tests   # where the tests have run already
    python benchmarks/gpu.py --emulated   # a dry run on the CPU; its times mean nothing

Ratios are medians of turns taken in one run, answers compared first. The figures are saved in
benchmarks/results, with device and date, after every part.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import _device, _plan, reference, safetensors
from ostinato.__main__ import info
from ostinato.tasks import bench
from ostinato.tasks import text as tasks_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "ladder" / "cuda"))
import run as cuda_ladder  # noqa: E402

RESULTS, TESTS = HERE / "results", HERE.parent / "tests"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZED = (
    "(two_bytes or one_launch or every_cell or against_tiles) and (lstm or before) "
    "and not 128 and not float64 and not 70"
)
STEPS = 1024
SECONDS = 480.0  # of all parts together
TESTED = [
    "test_device.py",
    "test_persistent.py",
    "test_gpu_arrays.py",
    "test_gpu_products.py",
    "test_gpu_reads.py",
]
PROCESSES = 4  # that share the device while they test; one in a dry run
THREADS = (1, 4, 16)  # of the CPU

# What errors may be; of gradients in words of 2 bytes no more than what PyTorch's own show is
# asked.
LIMITS: dict[tuple[str, str], dict[str, float]] = {
    ("float32", "outputs"): {"limit": 1e-5},
    ("float32", "gradients"): {"limit": 2e-5},
    ("float16", "outputs"): {"limit": 1e-3},
    ("float16", "gradients"): {},
    ("bfloat16", "outputs"): {"limit": 1e-2},
    ("bfloat16", "gradients"): {},
}

# Cell, options, precision, batch, hidden: what docs and targets speak of, first those that matter
# most.
GRID: list[tuple[str, dict[str, Any], str, int, int]] = [
    *[("lstm", {}, p, 16, h) for p in ("float32", "bfloat16", "float16") for h in (256, 512, 1024)],
    *[("gru", {}, p, 16, h) for p in ("float32", "bfloat16") for h in (256, 512, 1024)],
    *[
        ("lstm", {}, p, b, h)
        for p, h in (("float32", 64), ("bfloat16", 128), ("float16", 128))
        for b in (16, 64)
    ],
    *[("gru", {}, p, b, h) for p, h in (("float32", 64), ("bfloat16", 128)) for b in (16, 64)],
    ("lstm", {"num_layers": 2}, "bfloat16", 16, 512),
    ("lstm", {"bidirectional": True}, "bfloat16", 16, 512),
    ("lstm", {"lengths": True}, "bfloat16", 16, 512),
    ("gru", {"lengths": True}, "float32", 16, 256),
    ("lstm", {}, "float16", 16, 768),
    *[
        (c, {}, p, b, 512)
        for c in ("lstm", "gru")
        for p in ("float32", "bfloat16")
        for b in (8, 64)
    ],
    ("lstm", {"num_layers": 2}, "float32", 16, 512),
    ("lstm", {"bidirectional": True}, "float32", 16, 512),
]


Clock = Callable[[Callable[[], Any]], float]  # seconds of work: `cuda_ladder.seconds_of` a device


def alternate(clock: Clock, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of calls that run in turns.

    Each runs three times first, which records its graph.
    """
    for call in calls.values():
        for _ in range(3):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(clock(call))
    return {name: statistics.median(s) for name, s in seconds.items()}


def ceilings(device: _device.Device, clock: Clock, size: int) -> dict[str, float]:
    """Measure bytes a second of a copy, and operations a second of the array library's float32
    product.
    """
    xp = device.xp
    a, b = xp.ones((size, size), np.float32), xp.ones((size, size), np.float32)
    out = xp.empty_like(a)
    calls = {"copy": lambda: a.copy(), "product": lambda: xp.matmul(a, b, out=out)}
    seconds = alternate(clock, calls, 5)
    return {
        "copy bytes a second": 2 * a.nbytes / seconds["copy"],
        "product flops a second": 2 * size**3 / seconds["product"],
    }


def exchange(device: _device.Device, clock: Clock) -> dict[str, Any]:
    """Measure microseconds a step of each way to exchange 1 KB a block among P blocks, one on each
    multiprocessor.
    """
    xp, steps, empty, out = device.xp, 1000, 0xFFFFFFFF, {}
    module = xp.RawModule(
        code=(HERE / "cuda" / "exchange.cu").read_text(),
        options=("-std=c++17",),
        enable_cooperative_groups=True,
    )
    inputs = xp.ones((1 << 25) // 4, np.float32)  # what a step reads beside the words of the others
    for name in (
        "exchange_words",
        "exchange_reading",
        "exchange_prefetching",
        "barrier",
        "grid_sync",
        "cluster_sync",
    ):
        for blocks in (8,) if name == "cluster_sync" else (2, 4, 8, 16, 32, 64, 128):
            if blocks > device.figures.multiprocessors or (
                name == "cluster_sync" and device.figures.capability < (9, 0)
            ):
                continue
            kernel, error = module.get_function(name), xp.zeros(1, np.uint32)
            slots = xp.empty((steps + 2) * blocks * 256, np.uint32)
            seconds = []
            for _ in range(5):
                slots.fill(empty if name.startswith("exchange") else 0)
                more = (
                    (inputs, np.int64(inputs.size // 4))
                    if name in ("exchange_reading", "exchange_prefetching")
                    else ()
                )
                launch = partial(kernel, (blocks,), (256,), (slots, np.int32(steps), error, *more))
                seconds.append(clock(launch))
            if int(error[0]):
                raise RuntimeError(f"{name} of {blocks} blocks: a wait ended too early")
            out[f"{name} {blocks}"] = statistics.median(seconds) / steps * 1e6
    return out


def accuracy(device: _device.Device, emulated: bool) -> dict[str, dict[str, float]]:
    """Measure the errors of outputs and gradients against the reference, T = 128, by relative
    Frobenius norms.
    """
    steps, batch, hidden = (128, 4, 24) if emulated else (128, 16, 256)
    r, out = np.random.default_rng(0), {}
    x, dy = (r.standard_normal((steps, batch, hidden)).astype(np.float32) for _ in range(2))
    for cell in (ost.nn.LSTM, ost.nn.GRU):
        layer = cell(hidden, hidden, rng=0)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = reference.Weights(
            *(layer.parameters()[n + "_l0"].astype(np.float64) for n in names)
        )
        run = reference.forward(cell.__name__.lower(), x.astype(np.float64), weights)
        want = reference.backward(run, dy.astype(np.float64))
        goals = {
            "outputs": [run.y],
            "gradients": [want.x, *(getattr(want.weights, n) for n in names)],
        }
        layer._move(device)
        for precision in ("float32", "bfloat16", "float16"):
            layer.precision = precision
            (y, _), pullback = layer.vjp(device.put(x))
            layer.zero_grad()
            got = {
                "outputs": [y],
                "gradients": [
                    pullback(device.put(dy))[0],
                    *(layer.grads[n + "_l0"] for n in names),
                ],
            }
            for kind, arrays in goals.items():
                errors = [
                    float(np.linalg.norm(_device.host(a) - b) / np.linalg.norm(b))
                    for a, b in zip(got[kind], arrays)
                ]
                out[f"{cell.__name__} {precision} {kind}"] = {
                    "worst": max(errors),
                    **LIMITS[precision, kind],
                }
    return out


def layer_calls(
    device: _device.Device,
    cell: str,
    options: dict[str, Any],
    precision: str,
    steps: int,
    batch: int,
    hidden: int,
) -> tuple[dict[str, Callable[[], Any]], str]:
    """Forward and training of ours, and of PyTorch's and FlashRNN's where they run.

    It also reports what was left out, and why.
    """
    options, r = dict(options), np.random.default_rng(0)
    lengths = (
        np.sort(r.integers(1, steps + 1, batch))[::-1].copy()
        if options.pop("lengths", False)
        else None
    )
    layer = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU}[cell](hidden, hidden, rng=0, **options)
    state = layer.state_dict()
    layer._move(device)
    layer.precision = precision
    width = hidden * (2 if options.get("bidirectional") else 1)
    x = r.standard_normal((steps, batch, hidden)).astype(np.float32)
    dy = r.standard_normal((steps, batch, width)).astype(np.float32)
    there, above = device.put(x), device.put(dy)
    times = {} if lengths is None else {"lengths": device.put(lengths)}

    def infer() -> Any:
        return layer(there, **times)[0]

    def train() -> Any:
        with layer.write():
            pass  # as after a step of the optimiser: the weights are packed again
        layer.zero_grad()
        (_, _), pullback = layer.vjp(there, **times)
        return pullback(above)[0]

    calls: dict[str, Callable[[], Any]] = {"infer": infer, "train": train}
    try:
        import torch
    except ImportError:
        return calls, "torch is not installed"
    if device.name == "emulated" or not torch.cuda.is_available():
        return calls, "torch has no GPU"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, precision)
    theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](hidden, hidden, **options).cuda()
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in state.items()})
    theirs = theirs.to(dtype)
    theirs.flatten_parameters()
    leaf, from_above = (
        torch.from_numpy(x).cuda().to(dtype).requires_grad_(True),
        torch.from_numpy(dy).cuda().to(dtype),
    )

    def run() -> Any:
        if lengths is None:
            return theirs(leaf)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(leaf, torch.from_numpy(lengths))
        return torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], total_length=steps)[0]

    def torch_infer() -> Any:
        with torch.inference_mode():
            return run()

    def torch_train() -> Any:
        theirs.zero_grad(set_to_none=False)
        leaf.grad = None
        run().backward(from_above)
        return leaf.grad

    limit = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 2e-2}[precision]
    for ours, other in ((infer(), torch_infer()), (train(), torch_train())):
        got, want = _device.host(ours), other.float().cpu().numpy()
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if not error < limit:
            return calls, f"torch's answers differ by {error:.2g}"
    calls |= {"torch infer": torch_infer, "torch train": torch_train}
    if cell == "lstm" and precision == "bfloat16" and not options and lengths is None:
        more, why = flashrnn_calls(state, x, dy, _device.host(infer()))
        return {**calls, **more}, why
    return calls, ""


def flashrnn_calls(
    state: dict[str, Any], x: Any, dy: Any, y: Any
) -> tuple[dict[str, Callable[[], Any]], str]:
    """FlashRNN's two CUDA backends on the same weights, with the input product, which it leaves to
    its caller.
    """
    try:
        import torch
        from flashrnn import flashrnn
    except ImportError as error:
        return {}, f"FlashRNN is not installed: {error}"
    hidden, (steps, batch, _) = y.shape[-1], x.shape
    there = {n: torch.from_numpy(a).cuda().bfloat16() for n, a in state.items()}
    leaf = (
        torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1)))
        .cuda()
        .bfloat16()
        .requires_grad_(True)
    )
    above = torch.from_numpy(np.ascontiguousarray(dy.swapaxes(0, 1))).cuda().bfloat16()
    bias = (there["bias_ih_l0"] + there["bias_hh_l0"]).reshape(4, 1, hidden).requires_grad_(True)
    w = there["weight_ih_l0"].requires_grad_(True)
    zeros = torch.zeros(2, batch, 1, 1, hidden, device="cuda", dtype=torch.bfloat16)
    square = there["weight_hh_l0"].reshape(4, 1, hidden, hidden)
    out: dict[str, Callable[[], Any]] = {}
    reasons = []
    for backend in ("cuda_fused", "cuda"):
        for r in (
            square,
            square.transpose(-1, -2).contiguous(),
        ):  # whichever way round it multiplies
            r = r.detach().requires_grad_(True)

            def forward(backend: str = backend, r: Any = r) -> Any:
                inputs = (leaf @ w.T).reshape(batch, steps, 4, 1, hidden)
                return flashrnn(inputs, r, bias, states=zeros, function="lstm", backend=backend)[0][
                    0
                ][:, :, 0]

            def infer(forward: Any = forward) -> Any:
                with torch.inference_mode():
                    return forward()

            def train(forward: Any = forward) -> None:
                forward().backward(above)

            try:
                got = infer().float().cpu().numpy().swapaxes(0, 1)
                error = float(np.linalg.norm(got - y) / np.linalg.norm(y))
                if error < 5e-2:
                    train()
                    out |= {f"flashrnn {backend} infer": infer, f"flashrnn {backend} train": train}
                    break
                reasons.append(f"FlashRNN {backend}: answers differ by {error:.2g}")
            except Exception as error:
                reasons.append(
                    f"FlashRNN {backend}: {type(error).__name__}: "
                    f"{str(error).splitlines()[0][:100]}"
                )
                break
    return out, "; ".join(reasons)


def jax_calls(x: Any, state: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """A scan over LSTM steps, compiled: what JAX users write."""
    import jax
    import jax.numpy as jnp

    p = {n: jax.device_put(jnp.asarray(a)) for n, a in state.items()}
    there = jax.device_put(jnp.asarray(x))

    def step(carry: Any, inputs: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(inputs + h @ p["weight_hh_l0"].T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    @jax.jit
    def forward(x: Any) -> Any:
        zeros = jnp.zeros((x.shape[1], state["weight_hh_l0"].shape[1]), x.dtype)
        gx = x @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"]
        return jax.lax.scan(step, (zeros, zeros), gx)[1]

    return {"jax infer": lambda: forward(there).block_until_ready()}


def times(
    device: _device.Device, clock: Clock, emulated: bool, seconds: float
) -> list[dict[str, Any]]:
    """Measure seconds of each case, and ratios to the peers, as far as the time budget reaches."""
    out, end = [], time.monotonic() + seconds
    for cell, options, precision, batch, hidden in GRID:
        if emulated and (precision == "float32") == (hidden > 64):
            continue
        if time.monotonic() > end:
            print(f"{cell} {precision} B={batch} H={hidden}: not run, the time is over", flush=True)
            continue
        steps, b, h = (6, 2, 8) if emulated else (STEPS, batch, hidden)
        calls, why = layer_calls(device, cell, options, precision, steps, b, h)
        medians = alternate(clock, calls, 2 if emulated else 7)
        row: dict[str, Any] = {
            "cell": cell,
            **options,
            "precision": precision,
            "steps": steps,
            "batch": b,
            "hidden": h,
            "seconds": medians,
            "left out": why,
        }
        ratios = {
            f"{n.rsplit(' ', 1)[0]} {mode}": medians[n] / medians[mode]
            for mode in ("infer", "train")
            for n in medians
            if n.endswith(" " + mode)
        }
        row["over"] = ratios
        shown = "  ".join(f"{k} {v:.2f}x" for k, v in ratios.items()) or "no peer"
        print(f"{cell:5}{precision:9}B={b:<4}H={h:<5}{options or ''} {shown} {why}", flush=True)
        out.append(row)
    return out


def beside_jax(device: _device.Device, clock: Clock, emulated: bool) -> dict[str, Any]:
    """One float32 LSTM."""
    try:
        import jax

        if not emulated and jax.default_backend() != "gpu":
            return {"left out": "JAX has no GPU"}
        steps, batch, hidden = (6, 2, 8) if emulated else (STEPS, 16, 256)
        layer = ost.nn.LSTM(hidden, hidden, rng=0)
        x, state = (
            np.random.default_rng(0).standard_normal((steps, batch, hidden)).astype(np.float32),
            layer.state_dict(),
        )
        layer._move(device)
        there, theirs = device.put(x), jax_calls(x, state)
        got, want = _device.host(layer(there)[0]), np.asarray(theirs["jax infer"]())
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        if error > 2e-3:  # its products may be TF32
            return {"left out": f"JAX's answers differ by {error:.2g}"}

        def wall(call: Callable[[], Any]) -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        def ours() -> None:
            _device.host(layer(there)[1][0])  # waits, as theirs does

        calls = {"infer": ours, **theirs}
        for call in calls.values():
            for _ in range(3):
                call()
        turns = [{n: wall(c) for n, c in calls.items()} for _ in range(2 if emulated else 7)]
        medians = {n: statistics.median(t[n] for t in turns) for n in calls}
        return {"seconds": medians, "jax infer": medians["jax infer"] / medians["infer"]}
    except ImportError as error:
        return {"left out": f"JAX is not installed: {error}"}


def text(device: _device.Device, emulated: bool) -> dict[str, Any]:
    """Measure tokens a second of training as `train text` does, and of the same in PyTorch.

    Both take the same windows of one stream, carry the state on, clip the norm and step by AdamW;
    float32, the wall clock, the median of three turns.
    """
    classes, steps, hidden = (16, 2, 8) if emulated else (96, 60, 512)
    batch, window = tasks_text.BATCH, 8 if emulated else tasks_text.WINDOW
    ids = np.random.default_rng(0).integers(0, classes, batch * window * steps + 1)
    loader = ost.data.StreamLoader(device.put(ids), batch, window)  # as `train text` does
    options = tasks_text.TextOptions(steps=steps, hidden=hidden, seed=0)
    chars = tasks_text.CharModel.fresh("".join(map(chr, range(48, 48 + classes))), options)
    state = chars.model.state_dict()
    chars.model._move(device)
    trainer = tasks_text.trainer_of(chars)

    def ours() -> None:
        trainer.fit(loader, steps=trainer.optimizer.steps + steps, progress=False)
        device.wait()

    calls, why = {"ours": ours}, ""
    try:
        import torch

        if device.name == "emulated" or not torch.cuda.is_available():
            why = "torch has no GPU"
        else:
            calls["torch"] = torch_text(
                state, list(ost.data.StreamLoader(ids, batch, window)), classes, hidden
            )
    except ImportError:
        why = "torch is not installed"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(4):  # of which the first warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {n: statistics.median(s[1:]) for n, s in seconds.items()}
    found: dict[str, Any] = {
        f"{n} tokens a second": steps * batch * window / s for n, s in medians.items()
    }
    if "torch" in medians:
        found["torch over ours"] = medians["torch"] / medians["ours"]
    return {**found, "hidden": hidden, "left out": why}


def torch_text(
    state: dict[str, Any], batches: list[tuple[Any, Any]], classes: int, hidden: int
) -> Callable[[], None]:
    """The same training in PyTorch, without a read of the host but at the end."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    width = tasks_text.EMBEDDING
    table = torch.nn.Embedding(classes, width).cuda()
    lstm = torch.nn.LSTM(width, hidden).cuda()
    out = torch.nn.Linear(hidden, classes).cuda()
    modules = torch.nn.ModuleList([table, lstm, out])
    names = [n for m in modules for n, _ in m.named_parameters()]
    given = [torch.from_numpy(a) for a in state.values()]
    if len(names) != len(given):
        raise RuntimeError(f"{len(names)} parameters in PyTorch, {len(given)} here")
    with torch.no_grad():
        for p, a in zip(modules.parameters(), given):
            p.copy_(a)
    optimizer = torch.optim.AdamW(modules.parameters(), 1e-3, betas=(0.9, 0.99), fused=True)
    there = [tuple(torch.from_numpy(a).cuda() for a in pair) for pair in batches]
    cross_entropy = torch.nn.functional.cross_entropy

    def run() -> None:
        kept, total = None, torch.zeros((), device="cuda")
        for x, target in there:
            optimizer.zero_grad(set_to_none=True)
            y, kept = lstm(table(x), kept)
            kept = tuple(s.detach() for s in kept)
            loss = cross_entropy(out(y).flatten(0, 1), target.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            total += loss.detach()
        float(total)

    return run


def run_tests(
    files: list[str],
    select: str,
    seconds: float,
    log: Path | None,
    processes: int,
    *prefix: str,
) -> str:
    """The last lines of the tests of the device, in several processes or, for a tool, in one.

    All that they print goes to a file, if one is given.
    """
    paths = [str(TESTS / f) for f in files]
    command = [
        *prefix,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        *paths,
    ]
    command += ["-k", select] if select else []
    if processes > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes)]
    # Of the memory of the device each process may take no more than its part.
    environment = {**os.environ, "CUPY_GPU_MEMORY_LIMIT": f"{80 // processes}%"}
    status = ""
    with tempfile.TemporaryFile("w+") if log is None else log.open("w+") as output:
        try:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            status = f"not finished in {seconds:.0f} s"
        output.seek(0)
        told = r"passed|failed|error|ERROR SUMMARY|^FAILED|^ERROR"
        lines = [line.strip() for line in output if re.search(told, line)]
    return f"{status or f'exit {done.returncode}'}: " + "; ".join(lines[-3:])


def on_the_cpu(emulated: bool, seconds: float) -> dict[str, Any]:
    """Measure the short benchmark of the CPU beside PyTorch, with several numbers of threads.

    Cases with pauses are left out, and so are numbers of threads that the machine does not have.
    """
    cases = [c for c in bench.SHORT if not c.pause]
    if emulated:
        cases = [bench.Case("gru", "infer", 2, 8, 5)]
    peers = ["torch"] if importlib.util.find_spec("torch") is not None else []
    cores = len(os.sched_getaffinity(0))
    counts = [n for n in THREADS if n <= cores]
    end, out = time.monotonic() + seconds, {}
    for k, n in enumerate(counts):
        left = (end - time.monotonic()) / (len(counts) - k)
        rounds = 1 if emulated else 3
        out[f"{n} threads"] = bench.run(cases, rounds=rounds, threads=n, peers=peers, budget=left)
    for n in THREADS:
        out.setdefault(f"{n} threads", {"left out": f"the machine has {cores} CPUs"})
    return out


class Report:
    """The figures of all parts, which are written after each of them."""

    def __init__(self, figures: dict[str, Any], path: Path | None, seconds: float) -> None:
        self.figures, self.path, self.end = figures, path, time.monotonic() + seconds
        self.not_run: list[str] = []

    def part(self, name: str, run: Callable[[float], Any], most: float, least: float = 0.0) -> None:
        """Run one part, which is given the seconds that it may take; an error ends no other part.

        It is left out where fewer than ``least`` seconds are left.
        """
        left = min(most, self.end - time.monotonic())
        if left < least:
            self.not_run.append(name)
            print(f"{name}: not run, the time is over", flush=True)
            return
        begin = time.monotonic()
        try:
            self.figures[name] = run(left)
        except Exception as error:
            self.figures[name] = f"{type(error).__name__}: {error}"
        above = name in ("times", "plans", "cpu")
        shown = "as above" if above else json.dumps(self.figures[name], indent=1)
        print(f"{name}: {shown} ({time.monotonic() - begin:.0f} s)", flush=True)
        if self.path is not None:
            with safetensors.atomic_write(self.path) as f:
                f.write(json.dumps(self.figures, indent=1).encode())

    def log(self, name: str) -> Path | None:
        """Return the file beside the figures to which the tests of a part write."""
        return None if self.path is None else self.path.with_suffix(f".{name}.log")

    def wrong(self) -> list[str]:
        """Return the parts that are not as they should be."""
        found = [
            name
            for name, value in self.figures.items()
            if isinstance(value, str) and not value.startswith("exit 0")
        ]
        errors = self.figures.get("accuracy")
        if isinstance(errors, dict):
            found += [n for n, row in errors.items() if row["worst"] > row.get("limit", 1.0)]
        return found


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--emulated", action="store_true", help="a dry run on the CPU; nothing is saved"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="the short CPU benchmark beside PyTorch as well"
    )
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the figures (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all parts (default: %(default)s)"
    )
    return parser.parse_args()


def measure(
    report: Report, device: _device.Device, given: argparse.Namespace, clock: Clock
) -> None:
    """Run the parts in the order of what they are needed for."""
    emulated = given.emulated
    wide = _plan.GpuFigures("emulated", (9, 0), 132, 232448, 1 << 16, clusters=32, library=False)
    planned = replace(device, figures=wide) if emulated else device
    report.part("accuracy", lambda _: accuracy(device, emulated), 30)
    report.part("times", lambda left: times(device, clock, emulated, left), 150, 20)
    if not given.no_tests:
        select = "cuda or DEVICES or every or launch or tiles or words"
        dry = "lstm-float32 or to_and_fro"
        chosen = dry if emulated else select
        log, count = report.log("tests"), 1 if emulated else PROCESSES
        report.part("tests", lambda left: run_tests(TESTED, chosen, left, log, count), 150, 60)
    report.part("text", lambda _: text(device, emulated), 20, 20)
    if given.cpu:
        report.part("cpu", lambda left: on_the_cpu(emulated, left), 75, 15)
    report.part("plans", lambda left: cuda_ladder.ladder(planned, emulated, left), 70, 20)
    report.part("ceilings", lambda _: ceilings(device, clock, 64 if emulated else 8192), 10, 10)
    if not emulated:
        report.part("exchange", lambda _: exchange(device, clock), 20, 20)
    report.part("jax", lambda _: beside_jax(device, clock, emulated), 20, 20)
    sanitizer = shutil.which("compute-sanitizer")
    for tool in TOOLS if sanitizer and not emulated else ():
        more = ("--target-processes=all", "--error-exitcode=1")
        command = (str(sanitizer), f"--tool={tool}", *more)
        log = report.log(tool)
        report.part(
            tool,
            lambda left, to=log, c=command: run_tests(TESTED[:2], SANITIZED, left, to, 1, *c),
            45,
            30,
        )
    if not emulated and sanitizer is None:
        print("compute-sanitizer: not found")


def main() -> None:
    """Run all parts and write the figures to a file."""
    given = arguments()
    if given.emulated:
        sys.path.insert(0, str(TESTS))
        import fake_cupy

        device = fake_cupy.DEVICE
        _device.register(fake_cupy.ndarray, lambda a: device)
    else:
        device = _device.cuda()
    figures: dict[str, Any] = {
        "machine": info(),
        "devices": ost.cuda.devices(),
        "library": device.figures.library,
    }
    path = None
    if not given.emulated:
        name = figures["devices"][0]["name"].lower().replace(" ", "-")
        path = given.out / f"{datetime.date.today():%Y-%m-%d}-gpu-{name}.json"
    report = Report(figures, path, given.seconds)
    measure(report, device, given, partial(cuda_ladder.seconds_of, device, given.emulated))
    if report.not_run:
        print(f"not run, the time was over: {', '.join(report.not_run)}")
    wrong = report.wrong()
    sys.exit(f"not as it should be: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
