"""Fuzzed calls of the bindings and of the public functions: tools/torture-native calls

Each call has a number, which decides its arguments. A call may be refused, by a TypeError,
ValueError, OverflowError, KeyError or MemoryError. One that is accepted must leave its inputs
as they were, and give the same bits for copies of its arguments in plain memory; of every
fiftieth the float64 reference must agree. The calls run in a process of its own, which is
started again behind a call that ends it.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .ledger import Ledger

PATIENCE = 600.0  # seconds of one call, on a machine that may have much else to do
PIECE = 5_000  # calls of one process, whose counts are then kept
REFUSALS = (TypeError, ValueError, OverflowError, KeyError, MemoryError)
LARGE = 1 << 20  # bytes of an array that is not compared any more
SLACK = 400.0  # of the reference, times the tolerance of the tests: weights may be any numbers


def flattened(value: Any) -> list[Any]:
    """Return the arrays within a result; other things stand as they are."""
    if value is None or isinstance(value, (np.ndarray, np.generic)):
        return [None if value is None else np.array(value)]
    if isinstance(value, (tuple, list)):
        return [a for v in value for a in flattened(v)]
    if hasattr(value, "rows"):
        return [np.array(value.rows)]
    return [value]


def same(a: Any, b: Any) -> bool:
    """Whether two results have the same bits; NaN may be any NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return a.tobytes() == b.tobytes() or np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    return type(a) is type(b) and (a is b or a == b or a != a)  # some compare for ever


def plain(value: Any) -> Any:
    """Return a copy of an argument, its arrays in memory of their own and in order."""
    if type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    if isinstance(value, tuple):
        return type(value)(*(plain(v) for v in value))
    if isinstance(value, np.ndarray) and value.dtype.isnative:
        return np.array(value, order="C", subok=True)
    return value


def bare(value: Any) -> Any:
    """Return an argument without subclasses of arrays, whose own products the reference has not."""
    if isinstance(value, (tuple, list)):
        parts = [bare(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return np.asarray(value) if isinstance(value, np.ndarray) else value


def is_large(value: Any) -> bool:
    """Whether copies of an argument would take long, or any memory at all."""
    if isinstance(value, (tuple, list)):
        return any(is_large(v) for v in value)
    size = getattr(value, "nbytes", 0)
    return size > LARGE or (isinstance(value, np.ndarray) and max(value.shape, default=0) > LARGE)


def close(got: Any, want: Any, arguments: dict[str, Any]) -> str:
    """Compare results with those of the reference; return what differs."""
    for k, (g, w) in enumerate(zip(got, want)):
        if not isinstance(w, np.ndarray) or not isinstance(g, np.ndarray) or not w.size:
            continue
        if g.shape != w.shape:
            return f"result {k}: {g.shape} where the reference has {w.shape}"
        if not np.isfinite(w).all() or np.abs(w).max() > 1e4:
            continue
        unit = 5e-6 if g.dtype == np.float32 else 1e-13
        error = float(np.abs(g - w).max())
        if not error <= unit * SLACK * max(float(np.abs(w).max()), 1.0):
            return f"result {k}: {error:.3g} from the reference"
    return ""


def tame(value: Any) -> bool:
    """Whether the reference can be asked: moderate numbers in arrays of NumPy."""
    if isinstance(value, (tuple, list)):
        return all(tame(v) for v in value)
    if not isinstance(value, np.ndarray):
        return True
    if value.dtype.kind != "f" or value.size == 0:
        return True
    magnitude = np.abs(value)
    return bool(np.isfinite(value).all() and magnitude.max() < 50)


def _sentence(arguments: dict[str, Any]) -> str:
    """Describe the arguments of a call."""
    parts = []
    for name, a in arguments.items():
        if isinstance(a, np.ndarray):
            parts.append(f"{name}={a.dtype}{list(a.shape)}/{list(a.strides)}")
        else:
            parts.append(f"{name}={a!r:.80}")
    return ", ".join(parts)


def try_call(seed: int, index: int, compare: bool | None = None) -> tuple[str, str]:
    """Run one call; return what became of it, and what was wrong ("" if nothing was)."""
    from .targets import TARGETS
    from .values import Draw, overlap, spoil

    d = Draw(seed, index)
    target = d.pick(TARGETS)
    run, arguments, outputs, reference = target(d)
    valid = dict(arguments)
    kind = d.r.random()
    if kind > 0.25 and arguments and target.__name__ != "numbers":
        spoil(d, arguments)
    shared = overlap(d, arguments) if 0.15 < kind <= 0.25 else ""
    large = any(is_large(a) for a in arguments.values())
    before = None if large else {n: plain(a) for n, a in arguments.items()}

    def told(wrong: str) -> str:  # made for a fault alone: it takes as long as the call
        return f"{shared}{target.__name__}({_sentence(arguments)}): {wrong}"

    try:
        got = flattened(run(**arguments))
    except REFUSALS as error:
        got = None
        name = type(error).__name__
        if not str(error) and not isinstance(error, MemoryError):
            return name, told(f"an error without a word: {error!r}")
    except Exception as error:
        return type(error).__name__, told(repr(error))
    if before is None:
        return "large", ""
    if wrong := _changed(arguments, before, outputs if got is not None else ()):
        return "changed", told(wrong)
    if got is None:
        return name, ""
    again = {n: plain(a) for n, a in before.items()}
    if target.__name__ != "numbers":
        try:
            want = flattened(run(**again))
        except Exception as error:
            return "refused", told(f"copies of the arguments were refused: {error!r}")
        if len(got) != len(want) or not all(map(same, got, want)):
            return "different", told("other bits for copies of the arguments")
    ask = compare if compare is not None else index % 50 == 0
    # Options that were spoiled and accepted, such as 1 for True, are not those of the reference.
    arrays = {n for n, a in valid.items() if isinstance(a, np.ndarray)}
    usual = all(
        valid[n] is a or (n in arrays and isinstance(a, np.ndarray)) for n, a in arguments.items()
    )
    if reference is not None and ask and usual and all(map(tame, before.values())):
        want = flattened(reference(**{n: bare(a) for n, a in before.items()}))
        if wrong := close(got, want, before):
            return "wrong", told(wrong)
        return "compared", ""
    return "accepted", ""


def _changed(arguments: dict[str, Any], before: dict[str, Any], outputs: tuple[str, ...]) -> str:
    """Say which input is not as it was; an output of the call may share memory with one."""
    written = [arguments[n] for n in outputs if isinstance(arguments.get(n), np.ndarray)]
    for name, a in arguments.items():
        if name in outputs or any(
            isinstance(a, np.ndarray) and np.may_share_memory(a, w) for w in written
        ):
            continue
        if not all(map(same, flattened(a), flattened(before[name]))):
            return f"{name} was changed"
    return ""


def work(seed: int, first: int, last: int, path: str, seconds: float) -> None:
    """Run calls one after the other and say in a file which one it is."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    end = time.monotonic() + seconds
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        counts: dict[str, int] = {}
        for index in range(first, last):
            struct.pack_into("<q", place, 0, index)
            outcome, wrong = try_call(seed, index)
            counts[outcome] = counts.get(outcome, 0) + 1
            if wrong:
                print(f"FAULT {index} {outcome}: {wrong}", flush=True)
            late = time.monotonic() > end
            if late or index % 1000 == 999 or index + 1 == last:
                print("COUNTS", *(f"{n}={k}" for n, k in sorted(counts.items())), flush=True)
                counts.clear()
            if late:
                break
        struct.pack_into("<q", place, 0, index + 1)


def _read(path: Path) -> int:
    number: int = struct.unpack("<q", path.read_bytes()[:8])[0]
    return number


def _watched(child: subprocess.Popen[str], path: Path) -> list[str]:
    """Wait for the end of a worker; one that stays at a call is ended, which is a fault."""
    at, since = -1, time.monotonic()
    hung: list[str] = []
    while child.poll() is None:
        time.sleep(0.2)
        if (now := _read(path)) != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            hung.append(f"FAULT {at} hang: no result in {PATIENCE:.0f} s")
            child.send_signal(signal.SIGABRT)
            child.wait()
    return hung


def _counted(text: str) -> dict[str, int]:
    """Return the counts that a worker has printed."""
    counts: dict[str, int] = {}
    for line in text.splitlines():
        for word in line.split()[1:] if line.startswith("COUNTS") else ():
            name, _, n = word.partition("=")
            counts[name] = counts.get(name, 0) + int(n)
    return counts


def main(seed: int, first: int, count: int, seconds: float, out: str) -> int:
    """Run calls in processes of their own, up to a number; return the number of faults."""
    done, key = Ledger(out or None, "calls"), f"seed {seed} from {first}, {_build()}"
    path = Path(tempfile.mkstemp()[1])
    begin, end, faults = first + done.of(key).get("calls", 0), time.monotonic() + seconds, 0
    command = [sys.executable, sys.argv[0], "calls-worker", str(seed)]
    while begin < first + count and (left := end - time.monotonic()) > 0:
        path.write_bytes(struct.pack("<q", begin))
        last = min(first + count, begin + PIECE)
        words = [*command, str(begin), str(last), str(path), str(left)]
        with tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True)
            hung = _watched(child, path)
            log.seek(0)
            text = log.read()
        now = _read(path)
        found = [*hung, *(x for x in text.splitlines() if x.startswith("FAULT"))]
        if child.returncode and not hung:
            found.append(f"FAULT {now} crash: status {child.returncode}\n{text[-3000:]}")
        for line in found:
            print(line, flush=True)
        now += bool(child.returncode)
        counts = {n.lower(): k for n, k in _counted(text).items()}
        done.add(key, calls=now - begin, faults=found, **counts)
        faults, begin = faults + len(found), now
    os.unlink(path)
    print(f"{begin - first} calls of seed {seed} from {first} on, {faults} faults; {done.of(key)}")
    return faults


def _build() -> str:
    """Return whether the address sanitizer watches this process and those that it starts."""
    return "with sanitizers" if "libasan" in os.environ.get("LD_PRELOAD", "") else "without"
