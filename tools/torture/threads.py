"""Threads, forks, signals and exits in the middle of calls: tools/torture-native threads

Each kind is tried so many times. A try runs in a forked child, which must end as it should and in
time: with the bits of a call that nothing has disturbed, or as the signal or the exit says.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import nn

from .ledger import Ledger

SECONDS = 600  # of one try, on a machine that may have much else to do
LONG = 2000  # steps of a call that is to be met in its middle


class Work:
    """A layer, an input, and what a call gives."""

    def __init__(self, steps: int = 30) -> None:
        self.layer = nn.LSTM(16, 48, 2, rng=0)
        self.x = np.random.default_rng(0).normal(size=(steps, 6, 16)).astype(np.float32)
        self.want = None

    def call(self) -> Any:
        (y, _), pullback = self.layer.vjp(self.x)
        grads = self.layer.new_grads()
        dx, _ = pullback(y, grads=grads)
        return y, dx, grads.flat

    def check(self) -> None:
        """Run once and compare the bits with those of the first call."""
        got = self.call()
        if self.want is None:
            self.want = got
        assert all(map(np.array_equal, got, self.want)), "other bits"


def several_threads(r: random.Random) -> None:
    """Threads compute with one layer, with any number of threads each."""
    work = Work()
    work.check()
    wrong: list[BaseException] = []

    def many() -> None:
        try:
            for _ in range(3):
                ost.set_num_threads(r.randint(1, 4))
                work.check()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=many) for _ in range(r.randint(2, 6))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong


def forks(r: random.Random) -> None:
    """The process forks while another thread computes; the child computes too."""
    work, stop = Work(), threading.Event()
    work.check()

    def loop() -> None:
        while not stop.is_set():
            work.check()

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(r.random() * 0.005)
    pid = os.fork()
    if pid == 0:
        work.check()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    thread.join()


def _later(seconds: float, number: int) -> None:
    """Raise a signal, which is not SIGALRM, after so many seconds."""
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def interrupts(r: random.Random) -> None:
    """Ctrl-C comes in the middle of calls; the next call has the bits of any other."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = Work(LONG)
    short = Work()
    short.check()
    try:
        _later(0.001 + r.random() * 0.05, signal.SIGINT)
        while True:
            work.call()
    except KeyboardInterrupt:
        pass
    short.check()


def alarms(r: random.Random) -> None:
    """Handlers of signals run in the middle of calls, and compute as well."""
    work, inner, count = Work(300), Work(3), 0
    work.check()
    inner.check()

    def handler(*_: Any) -> None:
        nonlocal count
        inner.check()
        count += 1

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001 + r.random() * 0.004, 0.005)
    while count < 3:
        work.check()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _end(code: int) -> None:
    """Leave as the interpreter does at the end of a program."""
    sys.stderr.close()
    sys.exit(code)


def exits(r: random.Random) -> None:
    """The interpreter exits while daemon threads compute."""
    work = Work(LONG)

    def loop() -> None:
        while True:
            work.call()

    for _ in range(r.randint(1, 3)):
        threading.Thread(target=loop, daemon=True).start()
    time.sleep(r.random() * 0.02)
    _end(0)


def late_threads(r: random.Random) -> None:
    """Threads that are no daemons are still at work when the main thread ends."""
    work = Work()

    def some() -> None:
        time.sleep(r.random() * 0.003)
        for _ in range(3):
            work.call()

    for _ in range(r.randint(1, 4)):
        threading.Thread(target=some).start()
    _end(0)


KINDS: dict[str, Callable[[random.Random], None]] = {
    f.__name__: f for f in (several_threads, forks, interrupts, alarms, exits, late_threads)
}


def _child(kind: str, seed: int) -> None:
    """Be the child of one try, whose end is that of a program."""
    try:
        ost.set_num_threads(2)
        KINDS[kind](random.Random(seed))
    except SystemExit:
        raise
    except BaseException as error:
        os.write(2, f"{kind} {seed}: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def attempt(kind: str, seed: int) -> str:
    """Run one try; return how it went wrong, or ""."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)  # the other end closes when the child is gone
        _child(kind, seed)
    os.close(writer)
    ended, _, _ = select.select([reader], [], [], SECONDS)
    os.close(reader)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not ended:
        return f"no end within {SECONDS} s"
    return f"ended by status {status}" if status else ""


def main(kinds: list[str], count: int, seed: int, seconds: float, out: str) -> int:
    """Run tries up to a number, those of earlier runs among them; return the faults of this run."""
    faults, end, done = 0, time.monotonic() + seconds, Ledger(out or None, "threads")
    for kind in kinds or KINDS:
        while (tried := done.of(kind).get("tries", 0)) < count and time.monotonic() < end:
            wrong = attempt(kind, seed + tried)
            if wrong:
                print(f"FAULT {kind}, seed {seed + tried}: {wrong}", flush=True)
                faults += 1
            done.add(kind, tries=1, faults=[f"seed {seed + tried}: {wrong}"] if wrong else [])
        print(f"{kind}: {tried} tries, {KINDS[kind].__doc__}", flush=True)
    return faults
