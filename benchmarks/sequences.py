"""Sequences as they come, beside PyTorch where it can do it at all.

Run ``python benchmarks/sequences.py [--rounds N] [--long]``.

Lengths against the dense kernel (time a real step) and against PackedSequence; resets and clipping
against none; a bound on memory against none; the latency of a stream step. ``--long`` trains one
sequence of a million steps and asks the system for the memory. Ratios are medians over interleaved
rounds; answers are compared first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import safetensors
from ostinato.__main__ import info

RESULTS = Path(__file__).parent / "results"
STEPS = 100


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, the turn passed between them."""
    repeat = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeat[name] = max(1, int(0.05 / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.03)  # OpenMP workers of a peer spin on after a call
            start = time.perf_counter()
            for _ in range(repeat[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeat[name])
    return seconds


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """How many times the seconds of b those of a are."""
    return statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))


def torch_calls(
    cell: str, a: dict[str, Any], lengths: Any, threads: int, want: Any
) -> dict[str, Callable[[], Any]]:
    """PackedSequence, forward and training; {} without torch."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    hidden = a["x"].shape[2]
    layer = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}[cell](hidden, hidden)
    layer.load_state_dict({n: torch.from_numpy(v) for n, v in a["weights"].items()})
    x, dy, lens = torch.from_numpy(a["x"]), torch.from_numpy(a["dy"]), torch.from_numpy(lengths)
    pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence

    def infer() -> Any:
        with torch.inference_mode():
            y, _ = layer(pack(x, lens, enforce_sorted=False))
            return pad(y, total_length=len(x))[0]

    def train() -> Any:
        layer.zero_grad(set_to_none=False)
        leaf = x.detach().requires_grad_(True)
        y = pad(layer(pack(leaf, lens, enforce_sorted=False))[0], total_length=len(x))[0]
        y.backward(dy)
        return leaf.grad

    for got, wanted in ((infer().numpy(), want[0]), (train().numpy(), want[1])):
        assert np.abs(got - wanted).max() <= 2e-4 * np.abs(wanted).max(), "answers differ"
    return {"torch infer": infer, "torch train": train}


def lengths_and_resets(rounds: int) -> list[dict[str, Any]]:
    """The grid of the kernels: LSTM and GRU, B of 16 and 64, H of 64 and 256, lengths uniform in
    1..T.
    """
    out = []
    for cell in ("LSTM", "GRU"):
        for batch in (16, 64):
            for hidden in (64, 256):
                r = np.random.default_rng(0)
                layer = getattr(ost.nn, cell)(hidden, hidden, rng=0)
                x, dy = (
                    r.standard_normal((STEPS, batch, hidden)).astype(np.float32) for _ in range(2)
                )
                lengths = r.permutation(np.linspace(1, STEPS, batch).round().astype(np.int64))
                resets = r.random((STEPS, batch)) < 0.02

                def train(layer: Any = layer, x: Any = x, dy: Any = dy, **options: Any) -> Any:
                    (y, _), pullback = layer.vjp(x, **options)
                    return y, pullback(dy)[0]

                calls: dict[str, Callable[[], Any]] = {
                    "infer": lambda layer=layer, x=x: layer(x),
                    "infer lengths": lambda layer=layer, x=x, n=lengths: layer(x, lengths=n),
                    "infer resets": lambda layer=layer, x=x, m=resets: layer(x, resets=m),
                    "train": train,
                    "train lengths": lambda train=train, n=lengths: train(lengths=n),
                    "train resets": lambda train=train, m=resets: train(resets=m),
                    "train clipped": lambda train=train: train(clip_step_norm=1.0),
                    "train least": lambda train=train: train(memory_limit="least"),
                    "train states": lambda train=train: train(memory_limit="states"),
                }
                a = {"x": x, "dy": dy, "weights": layer.state_dict()}
                calls |= torch_calls(
                    cell, a, lengths, ost.get_num_threads(), train(lengths=lengths)
                )
                seconds = alternate(calls, rounds)
                share = float(lengths.sum()) / (STEPS * batch)
                row: dict[str, Any] = {"cell": cell, "batch": batch, "hidden": hidden}
                for mode in ("infer", "train"):
                    row[f"{mode}: a real step over a dense one"] = (
                        ratio(seconds, f"{mode} lengths", mode) / share
                    )
                    row[f"{mode}: resets over none"] = ratio(seconds, f"{mode} resets", mode)
                    if f"torch {mode}" in seconds:
                        row[f"{mode}: over PackedSequence"] = ratio(
                            seconds, f"torch {mode}", f"{mode} lengths"
                        )
                row["train: clipped steps over none"] = ratio(seconds, "train clipped", "train")
                row["train: least memory over no limit"] = ratio(seconds, "train least", "train")
                row["train: states only over no limit"] = ratio(seconds, "train states", "train")
                out.append(row)
                print(
                    f"{cell:5}B={batch:<3} H={hidden:<4}"
                    + "  ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float)),
                    flush=True,
                )
    over = [v for row in out for k, v in row.items() if "PackedSequence" in k]
    if over:
        print(f"geometric mean over PackedSequence: {np.exp(np.mean(np.log(over))):.2f}x")
    return out


def latency(steps: int) -> dict[str, dict[str, float]]:
    """Median, 99th percentile and maximum of one step, B = 1, I = 64, LSTM of 128, in units of the
    median of a stream step of ours.
    """
    layer = ost.nn.LSTM(64, 128, rng=0)
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    stream = layer.stream()
    model = ost.nn.Sequential(ost.nn.LSTM(64, 128, rng=0), ost.nn.Linear(128, 10, rng=0)).stream()
    calls: dict[str, Callable[[], Any]] = {
        "ostinato": lambda: stream.step(x),
        "ostinato, with a Linear": lambda: model.step(x),
    }
    try:
        import torch

        torch.set_num_threads(ost.get_num_threads())
        peer, state = torch.nn.LSTM(64, 128), None
        peer.load_state_dict({n: torch.from_numpy(v) for n, v in layer.state_dict().items()})

        def step() -> Any:
            nonlocal state
            with torch.inference_mode():
                y, state = peer(torch.from_numpy(x)[None], state)
                return y.numpy()

        calls["torch"] = step
    except ImportError:
        print("torch is not installed and takes no part")
    try:
        from ostinato.tasks.contenders import Case, arrays, onnx_session

        case = Case("lstm", "step", 1, 128, 1, 64)
        session = onnx_session(
            case,
            {**arrays(case), **{n.removesuffix("_l0"): v for n, v in layer.state_dict().items()}},
            1,
            states=True,
        )
        feed = {
            "X": x[None],
            "H0": np.zeros((1, 1, 128), np.float32),
            "C0": np.zeros((1, 1, 128), np.float32),
        }

        def run() -> Any:
            y, feed["H0"], feed["C0"] = session.run(None, feed)
            return y

        calls["onnxruntime"] = run
    except ImportError:
        print("onnxruntime is not installed and takes no part")
    out: dict[str, dict[str, float]] = {}
    first = np.asarray(calls["ostinato"]()).copy()
    for name, call in calls.items():
        if name in ("torch", "onnxruntime"):
            assert np.abs(np.asarray(call()).reshape(first.shape) - first).max() < 1e-5, (
                "answers differ"
            )
    seconds = {name: np.empty(steps) for name in calls}
    part = max(1, steps // 20)
    for begin in range(0, steps, part):  # in turns
        for name, call in calls.items():
            time.sleep(0.03)
            call()
            for k in range(begin, min(begin + part, steps)):
                start = time.perf_counter()
                call()
                seconds[name][k] = time.perf_counter() - start
    unit = float(np.median(seconds["ostinato"]))
    for name, s in seconds.items():
        out[name] = {
            "median": float(np.median(s)) / unit,
            "99%": float(np.percentile(s, 99)) / unit,
            "max": float(s.max()) / unit,
        }
        print(
            f"step        {name:28}" + "  ".join(f"{k} {v:.2f}" for k, v in out[name].items()),
            flush=True,
        )
    return out


def million(steps: int = 1_000_000) -> dict[str, float]:
    """One sequence of a million steps, H = 256.

    Bytes beyond the caller's own arrays, by the system.
    """
    layer = ost.nn.LSTM(4, 256, rng=0)
    x = np.random.default_rng(0).standard_normal((steps, 1, 4)).astype(np.float32)
    layer.zero_grad()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    (y, _), pullback = layer.vjp(x, outputs="last", memory_limit="128MB")
    forward = time.perf_counter() - start
    pullback(np.ones_like(y), need_dx=False)
    both = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert np.isfinite(layer.flat_grads).all()
    out = {"bytes": float(after - before), "backward over forward": (both - forward) / forward}
    times = out["backward over forward"]
    print(
        f"T = {steps}: {out['bytes'] / 1e6:.0f} MB beyond the caller's arrays; the pullback took "
        f"{times:.1f} forward passes"
    )
    return out


def main() -> None:
    """Run it and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the latency")
    parser.add_argument(
        "--long", action="store_true", help="a million steps as well: a few minutes"
    )
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": info()}
    if args.long:
        figures["million"] = million()  # first: the peak of the process is asked for
    figures["kernels"] = lengths_and_resets(args.rounds)
    figures["latency"] = latency(args.steps)
    name = f"{datetime.date.today():%Y-%m-%d}-sequences-{ost.kernels()['chosen']}.json"
    with safetensors.atomic_write(RESULTS / name) as f:
        f.write(json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
