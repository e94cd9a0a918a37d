"""Streams and training for a long time: tools/torture-native soak --minutes 60

In runs of a minute or more memory in use must not grow; the times of a step must be at the end what
they were at first.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import nn

GROWTH = 8 << 20  # bytes that the process may have more at the end than after the first tenth
BUSY = 5e-3  # seconds of the processor between two rests
MOST = 100_000  # times that are kept, the latest ones
SETTLED = 1.0  # minutes from which on growth is a fault; before, it may be that of the allocator


def resident() -> int:
    """Return the bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def stream() -> Callable[[], Any]:
    """Return a step of a stream: all slots, some, and a reset at times."""
    model = nn.Sequential(nn.LSTM(16, 64, 2, rng=0), nn.Linear(64, 8, rng=0))
    s, r, count = model.stream(4), np.random.default_rng(0), 0
    x = r.normal(size=(4, 16)).astype(np.float32)

    def step() -> Any:
        nonlocal count
        count += 1
        if count % 97 == 0:
            s.reset([count % 4])
        return s.step(x) if count % 3 else s.step(x[:2], [3, 1])

    return step


def training() -> Callable[[], Any]:
    """Return a step of training, with sequences of other lengths every time."""
    model = nn.Sequential(nn.GRU(8, 48, 2, dropout=0.1, rng=0), nn.Linear(48, 4, rng=0))
    optimizer, r = ost.optim.Adam(1e-3), np.random.default_rng(0)

    def step() -> Any:
        steps, batch = int(r.integers(1, 60)), int(r.integers(1, 12))
        x = r.normal(size=(steps, batch, 8)).astype(np.float32)
        lengths = r.integers(0, steps + 1, batch)
        model.zero_grad()
        (y, _), pullback = model.vjp(x, lengths=lengths)
        loss, dy = ost.losses.MSE()(y, np.zeros_like(y), lengths)
        pullback(dy, need_dx=False)
        optimizer.step(model)
        return loss

    return step


KINDS = {"stream": stream, "training": training}


def run(kind: str, seconds: float, duty: float) -> tuple[int, list[tuple[Any, int]]]:
    """Run steps for so long; return their number, and quantiles and bytes at ten times.

    Args:
        kind: what is run.
        seconds: for how long.
        duty: the share of one processor that it takes; it sleeps for the rest.
    """
    step, parts, count = KINDS[kind](), [], 0
    for _ in range(200):
        step()
    rested = time.process_time()  # not the clock, which goes on while other programs run
    for _ in range(10):
        times, done, end = list[float](), 0, time.perf_counter() + seconds / 10
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            step()
            took = time.perf_counter() - begin
            done += 1
            if len(times) < MOST:  # a list of all would be the memory that grows
                times.append(took)
            else:
                times[done % MOST] = took
            busy = time.process_time() - rested
            if duty < 1 and busy > BUSY:
                time.sleep(busy / duty - busy)
                rested = time.process_time()
        count += done
        parts.append((np.quantile(times, (0.5, 0.9, 0.99)), resident()))
    return count, parts


def main(kinds: list[str], minutes: float, duty: float) -> int:
    """Run the kinds for so many minutes each; return the number of those whose memory grew."""
    grown = 0
    for kind in kinds or KINDS:
        count, parts = run(kind, 60 * minutes, duty)
        ratios = parts[-1][0] / parts[0][0]
        growth = max(size for _, size in parts[1:]) - parts[0][1]
        grown += growth > GROWTH and minutes >= SETTLED
        print(
            f"{kind}: {count} steps in {minutes:g} minutes; resident memory grew by "
            f"{growth / 1024:.0f} kB; the last tenth's times are "
            + ", ".join(f"{r:.2f} (p{p})" for r, p in zip(ratios, (50, 90, 99)))
            + " of the first's",
            flush=True,
        )
    return grown
