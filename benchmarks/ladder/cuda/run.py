"""Compare every plan of a pass that there are kernels for with the planner's choice.

What its model says, what a run takes, and how that stands to a launch a step; answers compared
first. Needs a GPU.

    python benchmarks/ladder/cuda/run.py              # under three minutes
    python benchmarks/ladder/cuda/run.py --emulated   # a dry run on the CPU; its times mean nothing
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ostinato import _buffers, _cells, _core, _device, _launch, _plan

INPUTS = 16  # so few that the product of the input hardly counts
# Cell, precision, batch, hidden.
SHAPES = [
    *[("lstm", p, 16, h) for p in ("float16", "split") for h in (256, 512, 768, 1024)],
    *[("gru", p, 16, h) for p in ("bfloat16", "split") for h in (256, 512, 1024)],
    ("lstm", "float16", 8, 512),
    ("lstm", "float16", 64, 512),
    ("gru", "bfloat16", 64, 1024),
    ("gru_reset_before", "split", 16, 512),
]
TINY = [
    ("lstm", "float16", 3, 150),
    ("gru", "split", 128, 16),
    ("gru_reset_before", "split", 3, 40),
]
ROUNDS = 5


def rows_of(a: Any) -> _launch.Rows:
    """Return the rows of an array ``[T,B,...]``, as the kernels address them."""
    return _launch.Rows(a, a.strides[0] // a.itemsize, a.strides[1] // a.itemsize)


def plans(w: Any, steps: int, batch: int, backward: bool) -> Iterator[tuple[str, _plan.GpuPlan]]:
    """Yield the plans of a pass by name; the first one, a launch a step, is the reference."""
    figures, (columns, products, _) = w.device.figures, _buffers.columns_of(w.cell)
    word = w.word_bytes
    wanted = _plan._Wanted(products[1:], w.hidden, steps, batch, word, backward=backward)
    yield "a launch a step", _plan._stepwise(figures, wanted, False)
    for partition in _plan.partitions_for(figures, products[1:], w.hidden, word, backward):
        if not _plan.max_groups(figures, partition):
            continue
        planned = _plan._persistent(figures, partition, steps, batch, 1, False)
        name = f"{partition.units} units" + (
            f", {partition.peers} peers" if partition.peers > 1 else ""
        )
        yield name, planned
        if planned.groups > 1:
            few = replace(
                figures,
                multiprocessors=partition.blocks,
                clusters=partition.blocks // partition.peers,
            )
            yield (
                f"{name}, a group at a time",
                _plan._persistent(few, partition, steps, batch, 1, False),
            )
        if planned.span < steps:
            yield f"{name}, all steps in a launch", replace(planned, span=steps, launches=1)
        if _plan.max_groups(figures, partition) >= 2:
            yield (
                f"{name}, both directions",
                _plan._persistent(figures, partition, steps, batch, 2, False),
            )
    if len(products) > 2:
        return  # there are no kernels for two layers of a cell of more phases
    for partition in _plan.partitions_for(figures, [columns], w.hidden, word, backward, True):
        if _plan.max_groups(figures, partition) >= 2:
            planned = _plan._persistent(figures, partition, steps, batch, 2, True)
            yield (
                f"{partition.units} units{f', {partition.peers} peers' * (partition.peers > 1)}, "
                "two layers",
                planned,
            )


def chunks(w: Any, steps: int, batch: int, library: bool) -> Iterator[tuple[str, _plan.GpuPlan]]:
    """Yield plans of a backward pass, with products after all steps or in chunks beside them."""
    figures, products = w.device.figures, _buffers.columns_of(w.cell)[1]
    partitions = _plan.partitions_for(figures, products[1:], w.hidden, w.word_bytes, True)

    def cut(partition: _plan.Partition, n: int = 1) -> _plan.GpuPlan:
        return replace(
            _plan._persistent(figures, partition, steps, batch, 1, False, n), library=library
        )

    partitions = [s for s in partitions if _plan.max_groups(figures, s)]
    if not partitions:
        return
    partition = min(partitions, key=lambda s: cut(s).seconds)
    for n in _plan.CHUNKS:
        if n <= _core.gradient_parts(steps, batch):
            yield (
                "with dW, after the steps" if n == 1 else f"with dW, {n} chunks beside the steps",
                cut(partition, n),
            )


def same(one: _plan.GpuPlan, other: _plan.GpuPlan, chunks: bool) -> bool:
    """Return whether two plans agree, except for their chunks unless ``chunks``."""
    names = (
        "kernel",
        "units",
        "peers",
        "groups",
        "co_launched",
        "rows",
        "register_capacity",
        *(["chunks"] if chunks else []),
    )
    return all(getattr(one, n) == getattr(other, n) for n in names) and (
        chunks or one.span >= other.span
    )


class Case:
    """A layer, its mirror image and one above it, and what their passes read and write."""

    def __init__(
        self, device: _device.Device, cell: str, precision: str, steps: int, batch: int, hidden: int
    ) -> None:
        r, gates = np.random.default_rng(0), _cells.facts_of(cell)["gates"]
        self.device, self.sizes, self.hidden = device, (steps, batch), hidden
        self.two = _cells.facts_of(cell)["states"] > 1

        def draw(*shape: int) -> Any:
            return device.put((r.uniform(-1, 1, shape) / np.sqrt(hidden)).astype(np.float32))

        rows = gates * hidden
        first = [draw(rows, INPUTS), draw(rows, hidden), draw(rows), draw(rows), None]
        above = [draw(rows, hidden), *first[1:]]
        self.raw = first[:4]
        self.weights = {
            "first": _launch.pack(device, cell, first, precision=precision),
            "mirrored": _launch.pack(device, cell, first, precision=precision, reverse=True),
            "above": _launch.pack(device, cell, above, precision=precision),
        }
        self.x, self.dy = draw(steps, batch, INPUTS), draw(steps, batch, hidden)

    def forward(
        self, planned: _plan.GpuPlan, train: bool = False, names: tuple[str, ...] = ()
    ) -> tuple[list[Any], list[_launch.SavedPass]]:
        """Return the outputs, and what is saved for the backward pass."""
        xp, (steps, batch), calls = self.device.xp, self.sizes, []
        y = self.x  # of the layer below the one above
        for name in names or self.names(planned, False):
            below = y if name == "above" else self.x
            y = xp.empty((steps, batch, self.hidden), np.float32)
            end = tuple(
                xp.empty((batch, self.hidden), np.float32) if k <= self.two else None
                for k in range(2)
            )
            rows = rows_of(below), rows_of(y)
            calls.append(_launch.Forward(self.weights[name], *rows, (None, None), end))  # type: ignore[arg-type]
        saved, own = [], replace(planned, library=False)
        for some in [calls] if planned.co_launched == len(calls) else [[c] for c in calls]:
            saved += _launch.forward(some, self.sizes, own, train=train)
        return [c.y.data for c in calls], saved

    def backward(
        self, planned: _plan.GpuPlan, saved: dict[str, _launch.SavedPass], gradients: bool = False
    ) -> list[Any]:
        """Return dh before the first step of each layer, or, with ``gradients``, dR."""
        xp, (_, batch), calls = self.device.xp, self.sizes, []
        for name in self.names(planned, True):
            d = tuple(
                xp.empty((batch, self.hidden), np.float32) if i <= self.two else None
                for i in range(2)
            )
            dy = None if calls and planned.layer_pipelined else rows_of(self.dy)
            grads = [xp.zeros_like(a) for a in self.raw] if gradients else [None] * 4
            calls.append(_launch.Backward(saved[name], dy, (None, None), d, [*grads, None]))  # type: ignore[arg-type]
        _launch.backward(calls, planned if gradients else replace(planned, library=False))
        return [c.grads[1] if gradients else c.dstate[0] for c in calls]

    @staticmethod
    def names(planned: _plan.GpuPlan, backward: bool) -> tuple[str, ...]:
        """Return the names of the co-launched layers of a plan, in their order."""
        pair = (
            ("first", "mirrored")
            if not planned.layer_pipelined
            else ("above", "first")
            if backward
            else ("first", "above")
        )
        return pair[: planned.co_launched]


def seconds_of(device: _device.Device, emulated: bool, work: Callable[[], Any]) -> float:
    """Return seconds by the device's events, or by the clock where kernels are emulated."""
    if emulated:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = device.xp.cuda.Event(), device.xp.cuda.Event()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(device.xp.cuda.get_elapsed_time(begin, end)) * 1e-3


def agree(device: _device.Device, got: Any, want: Any, limit: float) -> None:
    a, b = _device.host(got), _device.host(want)
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not error < limit:
        raise RuntimeError(f"the answers differ by {error:.2g}")


def ladder(device: _device.Device, emulated: bool, budget: float = 150.0) -> list[dict[str, Any]]:
    """Return the rows of all shapes, as far as the time budget reaches."""
    rows, end = [], time.monotonic() + budget
    for cell, precision, batch, hidden in TINY if emulated else SHAPES:
        steps = 5 if emulated else 1024
        case = Case(device, cell, precision, steps, batch, hidden)
        first, by_step = case.weights["first"], None
        for which in ("forward", "backward", "gradients"):
            backward = which != "forward"
            chosen = _launch.plan_of(first, steps, batch, backward)
            of = (
                chunks(first, steps, batch, chosen.library)
                if which == "gradients"
                else plans(first, steps, batch, backward)
            )
            work: dict[str, tuple[_plan.GpuPlan, Callable[[], Any]]] = {}
            if by_step is not None and which == "backward":
                names = "mirrored", "first", "above"
                saved = dict(zip(names, case.forward(by_step, True, names)[1]))
            for name, planned in of:
                by_step = by_step or planned
                if backward:
                    work[name] = (
                        planned,
                        lambda p=planned, c=case, k=saved, w=which: c.backward(
                            p, k, w == "gradients"
                        ),
                    )
                else:
                    work[name] = planned, lambda p=planned, c=case: c.forward(p)[0]
            if not work:
                continue
            if time.monotonic() > end:
                return rows
            base = next(iter(work))
            want = {"first": work[base][1]()[0].copy()}
            if which == "backward":
                want["above"] = case.backward(work[base][0], {"first": saved["above"]})[0].copy()
            for planned, run in work.values():
                of_first = want[case.names(planned, backward)[0]]
                agree(device, run()[0], of_first, 5e-2 if precision != "split" else 1e-4)
                run()
            turns = [
                {n: seconds_of(device, emulated, run) for n, (_, run) in work.items()}
                for _ in range(ROUNDS)
            ]
            for name, (planned, _) in work.items():
                median = statistics.median(t[name] for t in turns)
                over = statistics.median(t[base] * planned.co_launched / t[name] for t in turns)
                rows.append(
                    {
                        "cell": cell,
                        "precision": precision,
                        "batch": batch,
                        "hidden": hidden,
                        "steps": steps,
                        "pass": which,
                        "plan": name,
                        "kernel": planned.kernel,
                        "blocks": planned.blocks,
                        "launches": planned.launches,
                        "chosen": same(planned, chosen, which == "gradients"),
                        "model": planned.seconds,
                        "seconds": median,
                        "over": base,
                        "ratio": over,
                    }
                )
                mark = "*" if rows[-1]["chosen"] else " "
                print(
                    f"{mark}{cell:5}{precision:9}B={batch:<4}H={hidden:<5}{which:10}{name:36}"
                    f"{planned.blocks:4} blocks  model {planned.seconds / steps * 1e6:6.2f} us a "
                    f"step, measured {median / steps * 1e6:8.2f}"
                    f"  {over:5.2f}x {base}",
                    flush=True,
                )
    return rows


def main() -> None:
    """Print the rows, or write them to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="a dry run on the CPU")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there")
    args = parser.parse_args()
    if args.emulated:
        figures = _plan.GpuFigures(
            "emulated", (9, 0), 132, 232448, 1 << 16, clusters=32, library=False
        )
        device = replace(_device.emulated(), figures=figures)
        _device.register(np.ndarray, lambda a: device)
    else:
        device = _device.cuda()
    rows = ladder(device, args.emulated)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"device": device.figures.name, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
