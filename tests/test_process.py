"""The process around the kernels: threads, fork, Ctrl-C, environment variables, symbols."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import nn

ROOT = Path(__file__).parent.parent


def python(code: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
        check=False,
    )


def test_concurrent_calls_of_one_layer(threads: None) -> None:
    ost.set_num_threads(2)
    layer, x = (
        nn.LSTM(20, 64, rng=0),
        np.random.default_rng(0).normal(size=(50, 16, 20)).astype(np.float32),
    )
    want, _ = layer(x)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            (y, _), pullback = layer.vjp(x)
            apart = layer.new_grads()
            pullback(np.ones_like(y), grads=apart)
            if not np.array_equal(y, want):
                wrong.append("y")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_the_gil_is_released() -> None:
    """Another Python thread goes on while a kernel runs."""
    layer, x = nn.LSTM(128, 256, rng=0), np.zeros((400, 32, 128), np.float32)
    layer(x[:2])
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    start = time.perf_counter()
    layer(x)
    end = time.perf_counter()
    done.set()
    other.join()
    inside = [t for t in ticks if start < t < end]
    assert len(inside) >= 3, f"{len(inside)} ticks in {end - start:.3f} s"


FORK = """
    import os, sys, numpy as np, ostinato as ost
    ost.set_num_threads(2)
    layer, x = ost.nn.GRU(64, 128, rng=0), np.ones((40, 32, 64), np.float32)
    want, _ = layer(x)
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            y, _ = layer(x)
            os._exit(0 if np.array_equal(y, want) else 1)
        y, _ = layer(x)
        assert np.array_equal(y, want)
        assert os.waitpid(pid, 0)[1] == 0
    print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork() -> None:
    done = python(FORK)
    assert done.stdout == "fine\n", done.stderr
    assert (
        "Warning" not in done.stderr
    )  # the workers are joined before a fork, so Python does not warn either


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_another_thread_computes() -> None:
    done = python(
        """
        import os, threading, warnings, numpy as np, ostinato as ost
        # Python warns of fork beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        ost.set_num_threads(2)
        layer, x = ost.nn.GRU(64, 128, rng=0), np.ones((60, 32, 64), np.float32)
        want, stop = layer(x)[0], threading.Event()
        def work():
            while not stop.is_set():
                assert np.array_equal(layer(x)[0], want)
        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if np.array_equal(layer(x)[0], want) else 1)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        print("fine")
        """
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("job", ["layer(x)", "layer.vjp(x)", "pullback()"])
def test_ctrl_c_ends_a_long_call(job: str) -> None:
    code = f"""
    import numpy as np, ostinato as ost, sys, time
    layer = ost.nn.LSTM(64, 512, rng=0)
    steps = 300 if "pullback" in {job!r} else 100_000
    length = steps if "vjp" not in {job!r} else 2000
    x = np.broadcast_to(np.zeros((1, 64, 64), np.float32), (length, 64, 64))
    if "pullback" in {job!r}:
        (y, _), one = layer.vjp(x)
        def pullback():
            while True:  # each is short: the signal comes within one of them or between
                (y, _), back = layer.vjp(x)
                back(np.ones_like(y))
    print("ready", flush=True)
    try:
        while True:
            {job}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.4)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert out == "interrupted\n"
    assert child.returncode == 0


def test_a_daemon_thread_may_be_left_in_a_call() -> None:
    done = python(
        """
        import threading, time, numpy as np, ostinato as ost
        layer, x = ost.nn.LSTM(64, 256, rng=0), np.zeros((3000, 32, 64), np.float32)
        threading.Thread(target=lambda: layer(x), daemon=True).start()
        time.sleep(0.3)
        print("end", flush=True)
        """
    )
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr


def test_daemon_threads_that_come_back_at_the_end_leave_quietly() -> None:
    """Short calls without end: some of them return while the interpreter goes."""
    for _ in range(3):
        done = python(
            """
            import threading, time, numpy as np, ostinato as ost
            layer, x = ost.nn.LSTM(8, 16, rng=0), np.zeros((400, 4, 8), np.float32)
            def run():
                while True:
                    layer.vjp(x)
            for _ in range(3):
                threading.Thread(target=run, daemon=True).start()
            time.sleep(0.2)
            print("end", flush=True)
            """
        )
        assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


def test_signal_handlers_see_denormals() -> None:
    done = python(
        """
        import signal, numpy as np, ostinato as ost
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(5e-310 * float(np.float64(1))))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        layer, x = ost.nn.LSTM(64, 256, rng=0), np.zeros((2000, 32, 64), np.float32)
        while not seen:
            layer(x)
        print(seen[0] > 0)
        """
    )
    assert done.stdout == "True\n", done.stderr


def test_workers_that_are_not_wanted_are_not_waited_for(threads: None) -> None:
    layer, x = nn.LSTM(64, 128, rng=0), np.ones((20, 40, 64), np.float32)
    want, _ = layer(x)
    for n in (7, 2, 5, 1, 3):
        ost.set_num_threads(n)
        assert all(np.array_equal(layer(x)[0], want) for _ in range(20))


def test_environment_variables() -> None:
    show = "import ostinato as ost; print(ost.kernels()['chosen'], ost.get_num_threads())"
    for name in ost.kernels()["supported"]:  # type: ignore[attr-defined]  # a list
        done = python(show, OSTINATO_KERNELS=name, OSTINATO_NUM_THREADS="3")
        assert done.stdout == f"{name} 3\n", done.stderr
    done = python(show, OSTINATO_KERNELS="mmx")
    assert done.returncode != 0
    assert "OSTINATO_KERNELS: expected one of the kernel sets" in done.stderr
    assert all(name in done.stderr for name in ost.kernels()["known"])  # type: ignore[attr-defined]
    done = python(show, OSTINATO_NUM_THREADS="many")
    assert "OSTINATO_NUM_THREADS: expected a whole number from 1 to 1024, got 'many'" in done.stderr
    assert "got '0'" in python(show, OSTINATO_NUM_THREADS="0").stderr
    unset = dict.fromkeys(("OSTINATO_KERNELS", "OSTINATO_NUM_THREADS", "OSTINATO_WAIT"), "")
    done = python(show, **unset)  # one that is empty counts as not set
    assert done.returncode == 0, done.stderr


def test_an_import_loads_only_what_every_program_needs() -> None:
    """What trains, reads files or plans for a GPU is loaded when it is first asked for."""
    done = python(
        """
        import sys, numpy
        before = set(sys.modules)
        import ostinato
        print(*sorted(set(sys.modules) - before))
        """
    )
    loaded = set(done.stdout.split())
    assert "ostinato.nn._recurrent" in loaded, done.stderr
    roots = {name.partition(".")[0] for name in loaded}
    assert roots <= {*sys.stdlib_module_names, "numpy", "ostinato"}
    of_python = {"ctypes", "datetime", "importlib.metadata", "json", "platform", "subprocess"}
    of_numpy = {"numpy.random", "numpy.testing"}
    ours = "_explain _memory_limit _plan _segments cli functional interop losses optim reference"
    later = {f"ostinato.{name}" for name in [*ours.split(), "safetensors", "tasks", "train"]}
    assert not loaded & (of_python | of_numpy | later)


def test_out_of_memory_names_the_bytes() -> None:
    done = python(
        """
        import resource, numpy as np, ostinato as ost
        layer, x = ost.nn.LSTM(4, 512, rng=0), np.zeros((2000, 64, 4), np.float32)
        before = layer.flat.copy()
        # Beside what is reserved already, of which free-threaded Python has more.
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 900_000_000, now + 900_000_000))
        try:
            layer.vjp(x)
        except MemoryError as e:
            print(e, np.array_equal(layer.flat, before))
        """
    )
    assert re.fullmatch(r"\w[\w' ]*: cannot allocate \d{9,} bytes True\n", done.stdout), (
        done.stderr + done.stdout
    )


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs g++ and nm")
@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="compiles the AVX-512 set"
)
@pytest.mark.parametrize("kind", ["exact_float", "exact_double", "low", "ctc"])
def test_kernels_export_no_weak_symbol_outside_their_namespace(kind: str, tmp_path: Any) -> None:
    """Else the linker may keep the AVX-512 copy of a shared inline function for old CPUs."""
    target = "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -DOST_SET=avx512"
    target += f" -DOST_KIND={kind}"
    flags = f"-std=gnu++20 -O1 -ffp-contract=off -fno-exceptions -w -c {target}"
    source = ROOT / "csrc/cpu" / ("ctc.cpp" if kind == "ctc" else "kernels.cpp")
    subprocess.run(
        ["g++", *flags.split(), str(source), "-o", str(tmp_path / "k.o")],
        check=True,
    )
    listing = subprocess.run(
        ["nm", "-C", str(tmp_path / "k.o")], check=True, capture_output=True, text=True
    ).stdout
    weak = [
        line.split(" ", 2)[2]
        for line in listing.splitlines()
        if line[17:18] in "WVu" and line[17:18] != "w"
    ]
    assert any("ost::avx512" in name for name in weak)
    outside = [name for name in weak if "ost::avx512::" not in name]
    assert not outside, outside
