"""Failing allocations: tools/torture-native allocations

For every pass (packing, forward, backward, streams, optimisers, losses) the first allocation fails,
then the second, and so on until the pass needs no more. Each try runs in a child of a process that
has not computed anything yet, so that also what is made once fails. It must raise a MemoryError or
do without, leave parameters and states as they were, and give the same bits when it is called
again. Then the same in one process, which must not keep memory.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import importlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ostinato as ost
from ostinato import nn

from .ledger import Ledger

SHIM = Path(__file__).parent / "fail_alloc.c"
SECONDS = 600  # of one try, for those that hang, on a machine that may have much else to do
LEAST = 2048  # bytes from which on an allocation of NumPy or Python counts
MOST_LEFT = 64 << 10  # bytes that a hundred failures may leave in use


class Case(NamedTuple):
    """A pass: what runs it, and what must stay as it is if it fails."""

    run: Callable[[], Any]
    state: Callable[[], Any]


def _input(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def _stack(kind: Any, train: bool, times: bool = False, **options: Any) -> Callable[[], Case]:
    """Return what makes a case of a stack of layers."""
    limit = options.pop("memory_limit", None)

    def make() -> Case:
        layer = kind(6, 40, rng=0, **options)
        x = _input(12, 7, 6, dtype=layer.dtype)
        given: dict[str, Any] = {}
        if times:
            flags = np.random.default_rng(2).random((12, 7))
            given = {"lengths": [12, 3, 0, 7, 12, 1, 5], "resets": flags < 0.2, "mask": flags < 0.9}

        def run() -> Any:
            if not train:
                return layer(x, **given)
            (y, state), pullback = layer.vjp(x, rng=0, memory_limit=limit, **given)
            grads = layer.new_grads()
            return y, state, pullback(np.ones_like(y), grads=grads), grads.flat

        return Case(run, lambda: (layer.flat, layer.flat_grads, x))

    return make


def _ragged() -> Case:
    layer = nn.GRU(5, 33, 2, rng=0)
    x = [_input(n, 5) for n in (9, 0, 4, 17)]

    def run() -> Any:
        (y, state), pullback = layer.vjp(x)
        grads = layer.new_grads()
        return y, state, pullback(y, grads=grads), grads.flat

    return Case(run, lambda: (layer.flat, *x))


def _functional(train: bool) -> Callable[[], Case]:
    def make() -> Case:
        x, w_ih, w_hh = _input(9, 5, 6), _input(128, 6), _input(128, 32)

        def run() -> Any:
            if not train:
                return ost.functional.lstm(x, w_ih, w_hh)
            (y, state), pullback = ost.functional.lstm_vjp(x, w_ih, w_hh)
            return y, state, tuple(pullback(y))

        return Case(run, lambda: (x, w_ih, w_hh))

    return make


def _model() -> Any:
    return nn.Sequential(
        nn.Embedding(9, 12, rng=0),
        nn.LSTM(12, 40, 2, rng=1),
        nn.Dropout(0.2, rng=3),
        nn.GRU(40, 24, rng=2),
        nn.Linear(24, 9, rng=3),
    )


def _training() -> Case:
    model = _model()
    ids = np.random.default_rng(0).integers(0, 9, (11, 6))

    def run() -> Any:
        (y, _), pullback = model.vjp(ids, rng=0)
        loss, dy = ost.losses.CrossEntropy(label_smoothing=0.1)(y, ids)
        grads = model.new_grads()
        pullback(dy, grads=grads, need_dx=False)
        return y, loss, grads.flat

    return Case(run, lambda: (model.flat,))


def _stream(slots: bool) -> Callable[[], Case]:
    def make() -> Case:
        stream = _model().stream(4)
        x = np.array([1, 5] if slots else [1, 2, 3, 8])
        stream.step(np.array([3, 3, 7, 0]))

        def run() -> Any:
            y = stream.step(x, [2, 0] if slots else None)
            return y.copy(), stream.state

        return Case(run, lambda: (stream.state,))

    return make


def _optimizer(make_optimizer: Callable[[], Any], steps: int) -> Callable[[], Case]:
    def make() -> Case:
        model, optimizer = _model(), make_optimizer()
        grads = model._writable_grads().flat
        grads[...] = _input(grads.size)
        for _ in range(steps):
            optimizer.step(model)

        def run() -> Any:
            optimizer.step(model)
            return model.flat, *optimizer.state.values()

        def state() -> Any:
            known = list(optimizer.state.values()) if steps else []
            return model.flat, optimizer.steps, *known

        return Case(run, state)

    return make


def _ctc() -> Case:
    y, labels = _input(20, 4, 30), np.random.default_rng(0).integers(1, 30, (4, 5))
    return Case(lambda: ost.losses.CTC()(y, list(labels)), lambda: (y,))


CASES: dict[str, Callable[[], Case]] = {
    "forward": _stack(nn.LSTM, False),
    "forward of one row": lambda: _one_row(),
    "forward of a tall stack": _stack(nn.RNN, False, num_layers=10),
    "forward, int8": _stack(nn.LSTM, False, precision="int8"),
    "training": _stack(nn.GRU, True, times=True),
    "training of three layers": _stack(nn.LSTM, True, num_layers=3),
    "training both ways with dropout": _stack(
        nn.LSTM, True, True, num_layers=2, bidirectional=True, dropout=0.3, batch_first=False
    ),
    "training with a memory limit": _stack(nn.GRU, True, memory_limit=4, num_layers=2),
    "training that keeps the states": _stack(nn.LSTM, True, memory_limit="states"),
    "training in bfloat16": _stack(nn.LSTM, True, precision="bfloat16"),
    "training in float64": _stack(nn.GRU, True, dtype=np.float64, reset_after=False),
    "layer norm": _stack(nn.LSTM, True, layer_norm=True),
    "projection": _stack(nn.LSTM, True, proj_size=9),
    "sequences without padding": _ragged,
    "a function": _functional(False),
    "a function and its gradients": _functional(True),
    "a model and its loss": _training,
    "a step of a stream": _stream(False),
    "a step of two slots": _stream(True),
    "SGD": _optimizer(lambda: ost.optim.SGD(0.1), 1),
    "momentum": _optimizer(lambda: ost.optim.SGD(0.1, momentum=0.9, weight_decay=0.1), 1),
    "Nesterov": _optimizer(lambda: ost.optim.SGD(0.1, momentum=0.9, nesterov=True), 2),
    "RMSprop": _optimizer(lambda: ost.optim.RMSprop(weight_decay=0.1), 1),
    "Adam": _optimizer(lambda: ost.optim.Adam(), 1),
    "the first step of AdamW": _optimizer(lambda: ost.optim.AdamW(groups={"0.*": 0.1}), 0),
    "CTC": _ctc,
}


def _one_row() -> Case:
    layer, x = nn.LSTM(64, 320, rng=0), _input(60, 1, 64)
    return Case(lambda: layer(x), lambda: (layer.flat,))


def digest(value: Any) -> str:
    """Return a sum over the bits of a result."""
    sums = hashlib.sha256()

    def add(v: Any) -> None:
        if isinstance(v, (tuple, list)):
            for one in v:
                add(one)
        elif isinstance(v, (np.ndarray, np.generic)):
            sums.update(f"{v.dtype}{v.shape}".encode() + np.ascontiguousarray(v).tobytes())
        else:
            sums.update(repr(v).encode())

    add(value)
    return sums.hexdigest()


class Shim:
    """What makes allocations fail, in this process."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.environ["TORTURE_SHIM"])
        self.library.fail_watch.argtypes = [ctypes.c_size_t] * 2
        self.library.fail_least.argtypes = [ctypes.c_size_t]
        self.library.fail_arm.argtypes = [ctypes.c_long, ctypes.c_int]
        self.library.fail_disarm.restype = ctypes.c_long
        for line in Path("/proc/self/maps").read_text().splitlines():
            words = line.split()
            ours = words[-1].rpartition("/")[2].startswith(("_core.", "libstdc++"))
            if "x" in words[1] and ours:
                begin, end = (int(n, 16) for n in words[0].split("-"))
                self.library.fail_watch(begin, end)
        self.library.fail_least(LEAST)

    def attempt(self, run: Callable[[], Any], k: int, onwards: bool) -> tuple[Any, int]:
        """Run with the k-th allocation failing; return the result or error, and how many were."""
        self.library.fail_arm(k, onwards)
        try:
            out = run()
        except BaseException as error:
            out = error.with_traceback(None)
        return out, self.library.fail_disarm()


def _try(shim: Shim, make: Callable[[], Case], k: int, onwards: bool, want: str) -> str:
    """Run one try; return "done" if no allocation failed, "" if all is well, or what is wrong."""
    case = make()
    before = digest(case.state())
    got, count = shim.attempt(case.run, k, onwards)
    if count < k:
        return "done"
    failed = isinstance(got, BaseException)
    if failed and not isinstance(got, MemoryError):
        return f"expected a MemoryError, got {got!r}"
    if failed and digest(case.state()) != before:
        return "the state is another"
    result = digest(case.run() if failed else got)
    return "" if result == want else f"other bits {'afterwards' if failed else 'without it'}"


def _in_child(work: Callable[[], str]) -> str:
    """Run something in a forked process; return its answer, or how it ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException:
            answer = traceback.format_exc()
        os.write(writer, answer.encode()[:60000] or b"fine")
        os._exit(0)
    os.close(writer)
    answer = ""
    ready, _, _ = select.select([reader], [], [], SECONDS)
    if ready:
        answer = os.read(reader, 65536).decode()
    else:
        os.kill(pid, signal.SIGABRT)
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    if not ready:
        return f"no end within {SECONDS} s"
    return answer if not status else f"ended by status {status}"


def _first(make: Callable[[], Case]) -> str:
    """Run a pass; return the sum of its result, and the modules that it loads.

    Python's own compiler ends in other errors than MemoryError where it has no memory.
    """
    case, before = make(), set(sys.modules)
    result = digest(case.run())
    return " ".join([result, *sorted(set(sys.modules) - before)])


def sweep(shim: Shim, make: Callable[[], Case], onwards: bool) -> Iterator[tuple[int, str]]:
    """Yield the number of the allocation and what was wrong, for each until there are no more."""
    answer = _in_child(lambda: _first(make))
    want, *modules = answer.split()
    if not re.fullmatch("[0-9a-f]{64}", want):
        raise SystemExit(f"the pass fails by itself: {answer}")
    for name in modules:
        importlib.import_module(name)
    k = 1
    while (wrong := _in_child(lambda: _try(shim, make, k, onwards, want))) != "done":  # noqa: B023
        yield k, "" if wrong == "fine" else wrong
        k += 1


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_size_t)
        for n in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        ]
    ]


def in_use() -> int:
    """Return the bytes that are allocated from the C library."""
    ost.release_memory()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.uordblks) + int(info.hblkhd)


def leaked(shim: Shim, make: Callable[[], Case]) -> int:
    """Return by how many bytes use grew while each allocation failed, the third time."""
    case = make()
    at = []
    for _ in range(3):
        k = 1
        while True:
            out, count = shim.attempt(case.run, k, False)
            del out
            if count < k:
                break
            k += 1
        at.append(in_use())
    return at[2] - at[1]


def _swept(shim: Shim, name: str, most: int) -> tuple[int, list[str]]:
    """Run the sweeps of a case; return the number of failures and what was wrong."""
    tries, wrongs = 0, list[str]()
    for onwards in (False, True):
        for k, wrong in sweep(shim, CASES[name], onwards):
            tries += 1
            if wrong:
                kind = "and all after it" if onwards else "alone"
                wrongs.append(f"allocation {k} {kind} fails: {wrong}")
                print(f"FAULT {name}: {wrongs[-1]}", flush=True)
            if k >= most:
                break
    return tries, wrongs


def worker(names: list[str], most: int, out: str) -> int:
    """Run the sweeps of some cases that no earlier run has ended; return the number of faults."""
    faulthandler.enable()
    ost.set_num_threads(3)
    shim, done = Shim(), Ledger(out or None, "allocations")
    faults = 0
    for name in names:
        if done.of(name):
            continue
        tries, wrongs = _swept(shim, name, most)
        print(f"{name}: {tries} allocations failed, one at a time and all from one on", flush=True)
        if most > 1000 or name == names[0]:
            answer = _in_child(lambda: str(leaked(shim, CASES[name])))  # noqa: B023
            if not answer.lstrip("-").isdigit() or int(answer) > MOST_LEFT:
                wrongs.append(f"memory in use grew by {answer}")
                print(f"FAULT {name}: {wrongs[-1]}", flush=True)
        faults += len(wrongs)
        done.add(name, tries=tries, faults=wrongs)
    return faults


def main(names: list[str], most: int, out: str) -> int:
    """Build what makes allocations fail, and run the cases with it; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "fail_alloc.so"
        words = ["cc", "-O1", "-shared", "-fPIC", "-o", str(shim), str(SHIM), "-ldl"]
        subprocess.run(words, check=True)
        extra = {"LD_PRELOAD": str(shim), "TORTURE_SHIM": str(shim), "PYTHONMALLOC": "pymalloc"}
        command = [sys.executable, sys.argv[0], "allocations-worker", f"--out={out}", str(most)]
        command += names or CASES
        return subprocess.run(command, env={**os.environ, **extra}, check=False).returncode
