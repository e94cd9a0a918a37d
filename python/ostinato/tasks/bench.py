"""ostinato beside its peers: a process for each contender, the turn passed between them, answers compared first.

Each contender is a process of its own, since the idle workers of one would take the cores of the next; the driver tells one at a
time to run and waits in between until its threads have gone to sleep. Every turn of ostinato also measures the FMA peak of one
core, so that all figures of a case come from the same minute of the same machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, safetensors
from .._check import Array

__all__ = ["FULL", "SHORT", "Case", "run"]

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
TOLERANCE = 2e-4  # float32, relative to the largest value, after T steps of chained sums in another order
TURN_SECONDS = 0.15  # work of one turn
SLEEP_SECONDS = 0.06  # between turns: OpenMP workers spin on for a few milliseconds after a call


@dataclass(frozen=True)
class Case:
    """One benchmark: a layer of one direction, float32, I = H."""

    cell: str
    mode: str  # "infer" or "train": forward and all gradients
    batch: int
    hidden: int
    steps: int = 100

    @property
    def name(self) -> str:
        """Such as lstm-infer-B32-H256."""
        return f"{self.cell}-{self.mode}-B{self.batch}-H{self.hidden}"

    @property
    def flops(self) -> float:
        """Multiplications and additions of the products: a training step counts as three forwards."""
        return (
            (3 if self.mode == "train" else 1)
            * 2.0
            * GATES[self.cell]
            * self.hidden
            * 2
            * self.hidden
            * self.steps
            * self.batch
        )


SHORT = [Case(c, m, b, 256) for c in ("lstm", "gru", "rnn") for m, b in (("infer", 32), ("train", 32), ("infer", 1))]
FULL = [
    Case(c, m, b, h)
    for c in ("lstm", "gru", "rnn")
    for m in ("infer", "train")
    for b in (1, 4, 16, 32, 64, 128)
    for h in (64, 128, 256, 512)
]


def _arrays(case: Case) -> dict[str, Array]:
    """The same weights, input and output gradient in every process."""
    r, rows, h = np.random.default_rng(7), GATES[case.cell] * case.hidden, case.hidden
    bound = 1 / np.sqrt(h)
    shapes = {"weight_ih": (rows, h), "weight_hh": (rows, h), "bias_ih": (rows,), "bias_hh": (rows,)}
    arrays: dict[str, Array] = {n: r.uniform(-bound, bound, s).astype(np.float32) for n, s in shapes.items()}
    arrays["x"] = r.standard_normal((case.steps, case.batch, h)).astype(np.float32)
    arrays["dy"] = r.standard_normal((case.steps, case.batch, h)).astype(np.float32)
    return arrays


# -- contenders: each makes a function that runs the case once and returns what is compared ----------------------------------


def _ostinato(case: Case, a: dict[str, Array], threads: int) -> Callable[[], dict[str, Array]]:
    import ostinato as ost

    ost.set_num_threads(threads)
    layer = {"rnn": ost.nn.RNN, "lstm": ost.nn.LSTM, "gru": ost.nn.GRU}[case.cell](case.hidden, case.hidden)
    layer.load_state_dict({n + "_l0": a[n] for n in WEIGHTS})

    def train() -> dict[str, Array]:
        with layer.write():  # as after an optimiser's step: the weights are packed anew
            pass
        layer.zero_grad()
        (y, _), pullback = layer.vjp(a["x"])
        dx, _ = pullback(a["dy"])
        return {
            "y": y,
            "dx": dx,
            **{n: layer.grads[n + "_l0"] for n in WEIGHTS},
        }

    return train if case.mode == "train" else lambda: {"y": layer(a["x"])[0]}


def _torch(case: Case, a: dict[str, Array], threads: int) -> Callable[[], dict[str, Array]]:
    import torch

    torch.set_num_threads(threads)
    layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](case.hidden, case.hidden)
    layer.load_state_dict({n + "_l0": torch.from_numpy(a[n]) for n in WEIGHTS})
    x, dy = torch.from_numpy(a["x"]), torch.from_numpy(a["dy"])

    def infer() -> dict[str, Array]:
        with torch.inference_mode():
            return {"y": layer(x)[0].numpy()}

    def train() -> dict[str, Array]:
        layer.zero_grad(set_to_none=False)
        leaf = x.detach().requires_grad_(True)
        y, _ = layer(leaf)
        y.backward(dy)
        assert leaf.grad is not None
        grads = {n: getattr(layer, n + "_l0").grad.numpy() for n in WEIGHTS}
        return {"y": y.detach().numpy(), "dx": leaf.grad.numpy(), **grads}

    return train if case.mode == "train" else infer


def _onnxruntime(case: Case, a: dict[str, Array], threads: int) -> Callable[[], dict[str, Array]]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    order = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}[case.cell]

    def blocks(w: Array) -> Array:
        parts = np.split(w, GATES[case.cell])
        return np.concatenate([parts[k] for k in order])[None]

    weights = {
        "W": blocks(a["weight_ih"]),
        "R": blocks(a["weight_hh"]),
        "B": np.concatenate([blocks(a["bias_ih"]), blocks(a["bias_hh"])], axis=1),
    }
    options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
    node = helper.make_node(case.cell.upper(), ["X", "W", "R", "B"], ["Y"], hidden_size=case.hidden, **options)
    shape = helper.make_tensor_value_info("X", TensorProto.FLOAT, list(a["x"].shape))
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [case.steps, 1, case.batch, case.hidden])
    graph = helper.make_graph([node], "one", [shape], [y], [numpy_helper.from_array(w, n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: {"y": session.run(None, {"X": a["x"]})[0][:, 0]}


CONTENDERS: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = {  # maker, modules, modes
    "ostinato": (_ostinato, (), ("infer", "train")),
    "torch": (_torch, ("torch",), ("infer", "train")),
    "onnxruntime": (_onnxruntime, ("onnxruntime", "onnx"), ("infer",)),
}


def worker(name: str) -> None:
    """The loop of one contender: a JSON line in, a JSON line out."""
    call: Callable[[], dict[str, Array]] | None = None
    repeat = 1
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any] = {}
        if order["do"] == "prepare":
            case = Case(**order["case"])
            call = CONTENDERS[name][0](case, _arrays(case), order["threads"])
            safetensors.save(order["answers"], {k: np.ascontiguousarray(v) for k, v in call().items()})
            start = time.perf_counter()
            call()
            repeat = max(1, int(TURN_SECONDS / max(time.perf_counter() - start, 1e-6)))
        elif order["do"] == "run" and call is not None:
            if name == "ostinato":
                from .. import _core

                reply["peak"] = _core.fma_peak(0.02, 4)
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            reply["seconds"] = (time.perf_counter() - start) / repeat
        elif order["do"] == "versions":
            import importlib.metadata

            reply = {m: importlib.metadata.version(m) for m in CONTENDERS[name][1]}
        print(json.dumps(reply), flush=True)


class _Contender:
    def __init__(self, name: str) -> None:
        self.name = name
        code = "import sys; from ostinato.tasks import bench; bench.worker(sys.argv[1])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.name}: the contender's process ended with status {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _compare(ours: dict[str, Array], theirs: dict[str, Array], name: str, case: Case) -> float:
    errors = [np.abs(ours[key] - value).max() / max(float(np.abs(value).max()), 1e-30) for key, value in theirs.items()]
    worst = float(np.max(errors))  # NaN stays
    if not worst <= TOLERANCE:
        raise ValueError(f"{case.name}: expected answers within {TOLERANCE} of {name}, got {worst:.2g}")
    return worst


def run(
    cases: Sequence[Case],
    *,
    rounds: int = 7,
    threads: int | None = None,
    peers: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    budget: float = 1e9,
) -> dict[str, Any]:
    """Run the cases and print a table; figures are medians over interleaved rounds. Returns everything."""
    import ostinato as ost

    from ..__main__ import info

    _check.positive("--rounds", rounds)
    threads = ost.get_num_threads() if threads is None else threads
    for name in peers or ():
        _check.choice("--peers", name, [n for n in CONTENDERS if n != "ostinato"])
    there = {
        n: all(importlib.util.find_spec(m) is not None for m in modules) for n, (_, modules, _) in CONTENDERS.items()
    }
    names = ["ostinato"] + [n for n in CONTENDERS if n != "ostinato" and there[n] and (peers is None or n in peers)]
    for n in CONTENDERS:
        if not there[n] and (peers is None or n in peers):
            print(f"{n} is not installed and takes no part: pip install 'ostinato[bench]'")
    contenders = {n: _Contender(n) for n in names}
    figures: dict[str, Any] = {"machine": info(), "threads": threads, "rounds": rounds, "versions": {}, "cases": []}
    begin = time.monotonic()
    try:
        for c in contenders.values():
            figures["versions"].update(c.ask(do="versions"))
        print(
            f"{figures['machine']['cpu']}, {threads} threads, kernels {figures['machine']['kernels']['chosen']}; "
            + ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
        )
        print(f"{'case':24}{'GFLOP/s':>9}{'of peak':>9}" + "".join(f"{'x ' + n:>15}" for n in names[1:]), flush=True)
        for case in cases:
            if time.monotonic() - begin > budget:
                print(
                    f"the time budget of {budget:.0f} s is used up; {len(cases) - len(figures['cases'])} cases left out"
                )
                break
            row = _case(case, {n: c for n, c in contenders.items() if case.mode in CONTENDERS[n][2]}, rounds, threads)
            figures["cases"].append(row)
            cells = "".join(f"{row['ratio'][n]:>14.2f}x" if n in row["ratio"] else f"{'-':>15}" for n in names[1:])
            print(f"{case.name:24}{row['gflops']:>9.1f}{100 * row['of_peak']:>8.0f}%{cells}", flush=True)
    finally:
        for c in contenders.values():
            c.close()
    for n in names[1:]:
        ratios = [r["ratio"][n] for r in figures["cases"] if n in r["ratio"]]
        if ratios:
            figures.setdefault("geometric_mean", {})[n] = float(np.exp(np.mean(np.log(ratios))))
            print(f"geometric mean over {len(ratios)} cases against {n}: {figures['geometric_mean'][n]:.2f}x")
    if out is not None:
        with safetensors.atomic_write(out) as f:
            f.write(json.dumps(figures, indent=1).encode())
    return figures


def _case(case: Case, contenders: dict[str, _Contender], rounds: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answers = {}
        for n, c in contenders.items():
            path = Path(folder) / n
            c.ask(do="prepare", case=asdict(case), threads=threads, answers=str(path))
            answers[n] = safetensors.load(path)[0]
    difference = {n: _compare(answers["ostinato"], a, n, case) for n, a in answers.items() if n != "ostinato"}
    seconds: dict[str, list[float]] = {n: [] for n in contenders}
    peaks = []
    for _ in range(rounds):
        for n, c in contenders.items():
            time.sleep(SLEEP_SECONDS)
            reply = c.ask(do="run")
            seconds[n].append(reply["seconds"])
            if "peak" in reply:
                peaks.append(reply["peak"])
    peak, medians = statistics.median(peaks), {n: statistics.median(s) for n, s in seconds.items()}
    rate = case.flops / medians["ostinato"] * 1e-9
    return {
        **asdict(case),
        "name": case.name,
        "difference": difference,
        "seconds": medians,
        "spread": {n: [min(s), max(s)] for n, s in seconds.items()},
        "peak_gflops": peak,
        "gflops": rate,
        "of_peak": rate / (peak * threads),
        "ratio": {
            n: statistics.median(t / o for t, o in zip(s, seconds["ostinato"]))
            for n, s in seconds.items()
            if n != "ostinato"
        },
    }
