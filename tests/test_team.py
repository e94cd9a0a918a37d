"""The thread pool as programs meet it.

Workers that sleep, are pinned, come late, or are another library's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _core

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="affinity is told and set by Linux alone"
)


def layer_and_input() -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(40, 32, 64)).astype(np.float32)
    return ost.nn.LSTM(64, 128, rng=0), x


def run(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
        check=False,
    )


def python(code: str, *arguments: str, **env: str) -> str:
    done = run(code, *arguments, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def wait() -> Any:
    before = _core.get_spin_microseconds()
    yield
    _core.set_spin_microseconds(before)


@pytest.mark.parametrize("policy", ["default", "active", "passive"])
def test_the_bits_are_the_same_however_workers_wait(policy: str, threads: None, wait: None) -> None:
    layer, x = layer_and_input()
    ost.set_num_threads(1)
    want, _ = layer(x)
    ost.set_num_threads(3)
    ost.set_wait(policy, ms=None if policy != "active" else 5)
    for pause in (0.0, 0.02, 0.0, 0.02):
        time.sleep(pause)
        assert np.array_equal(layer(x)[0], want)
        (y, _), pullback = layer.vjp(x)
        dx, _ = pullback(y)
        assert np.array_equal(y, want)
        assert np.isfinite(dx).all()


def test_units_of_one_step_are_shared_by_those_who_come(threads: None) -> None:
    """A single row is split by hidden units.

    Whoever is late has a part in the steps, or blocks of them, that are left.
    """
    layer = ost.nn.LSTM(256, 320, rng=0)
    x = np.random.default_rng(0).normal(size=(300, 1, 256)).astype(np.float32)
    ost.set_num_threads(1)
    (y, _), pullback = layer.vjp(x)
    want = [y.copy(), pullback(y)[0].copy(), layer.flat_grads.copy()]
    ost.set_num_threads(4)
    for pause in (0.0, 0.0, 0.03, 0.0, 0.03):
        time.sleep(pause)
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        assert np.array_equal(y, want[0])
        assert np.array_equal(pullback(y)[0], want[1])
        assert np.array_equal(layer.flat_grads, want[2])


@pytest.mark.parametrize("name", ["rows", "units", "directions", "layers"])
def test_members_that_sleep_at_once_have_the_same_bits(name: str, threads: None) -> None:
    """Whoever waits sleeps, is woken, and has a part in turns of a few steps.

    Otherwise members look for so long before they sleep that they seldom do.
    """
    cases: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
        "rows": ((40, 24, 32), {}),
        "units": ((60, 1, 160), {}),
        "directions": ((40, 3, 32), {"bidirectional": True}),
        "layers": ((40, 3, 32), {"num_layers": 3}),
    }
    shape, options = cases[name]
    layer = ost.nn.LSTM(shape[2], 160, rng=0, **options)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def all_of() -> list[Any]:
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        return [layer(x)[0].copy(), y.copy(), pullback(y)[0].copy(), layer.flat_grads.copy()]

    ost.set_num_threads(1)
    want = all_of()
    _core.set_impatient(True)
    try:
        for n in (2, 3, 4):
            ost.set_num_threads(n)
            for _ in range(15):
                for got, wanted in zip(all_of(), want):
                    assert np.array_equal(got, wanted)
    finally:
        _core.set_impatient(False)


def test_wait_is_told_and_checked(wait: None) -> None:
    ost.set_wait("active")
    assert ost.get_wait() == ("active", 50.0)
    ost.set_wait("passive")
    assert ost.get_wait() == ("passive", 0.0)
    ost.set_wait("active", ms=2.5)
    assert ost.get_wait() == ("active", 2.5)
    ost.set_wait()
    assert ost.get_wait() == ("default", 0.1)
    with pytest.raises(ValueError, match="policy: expected one of"):
        ost.set_wait("busy")
    with pytest.raises(ValueError, match="ms: expected a number from 0 to 10000, got nan"):
        ost.set_wait("active", ms=float("nan"))
    with pytest.raises(ValueError, match="ms: expected a number from 0 to 10000, got -1"):
        ost.set_wait("active", ms=-1)
    with pytest.raises(ValueError, match="ms: expected a number from 0 to 10000, got 1000"):
        ost.set_wait("active", ms=10**400)
    with pytest.raises(ValueError, match="ms: expected none beside 'passive'"):
        ost.set_wait("passive", ms=3)
    with pytest.raises(TypeError, match="ms: expected a number from 0 to 10000, got '5'"):
        ost.set_wait("active", ms="5")  # type: ignore[arg-type]
    assert ost.get_wait() == ("default", 0.1)  # a refused call changes nothing


def test_the_environment_says_how_to_wait() -> None:
    show = "import ostinato as ost; print(*ost.get_wait())"
    assert python(show, OSTINATO_WAIT="active,20") == "active 20.0"
    assert python(show, OSTINATO_WAIT="passive") == "passive 0.0"
    for text in ("busy", "active,", "active,x", "passive,5"):
        done = run(show, OSTINATO_WAIT=text)
        assert (
            "OSTINATO_WAIT: expected 'default', 'active' or 'passive', perhaps with milliseconds "
            f"as in 'active,20', got '{text}'" in done.stderr
        )


@linux
def test_workers_are_kept_from_the_callers_cpu() -> None:
    """Where the caller may use two CPUs or more, a worker that has slept is not woken on the
    caller's own.
    """
    code = """
        import os, time
        from pathlib import Path
        import numpy as np
        import ostinato as ost
        allowed = os.sched_getaffinity(0)
        ost.set_num_threads(2)
        layer, x = ost.nn.LSTM(64, 128, rng=0), np.ones((40, 32, 64), np.float32)
        for _ in range(4):
            layer(x)
            time.sleep(0.05)
        names = {p.parent.name: p.read_text() for p in Path("/proc/self/task").glob("*/comm")}
        (worker,) = [int(task) for task, name in names.items() if name == "ostinato\\n"]
        assert os.sched_getaffinity(0) == allowed, "the caller's own affinity is not touched"
        left_out = allowed - os.sched_getaffinity(worker)
        assert len(left_out) == (len(allowed) > 1), left_out
        assert os.sched_getaffinity(worker) <= allowed
    """
    python(code)


@linux
def test_a_caller_on_one_cpu_runs_alone() -> None:
    """Also one that was pinned after the number of threads was chosen.

    Two threads on one CPU would take turns.
    """
    code = """
        import os
        import numpy as np
        import ostinato as ost
        from ostinato import _core
        ost.set_num_threads(2)
        layer, x = ost.nn.LSTM(64, 128, rng=0), np.ones((40, 32, 64), np.float32)
        want, _ = layer(x)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        teams = set()
        for _ in range(40):
            assert np.array_equal(layer(x)[0], want)
            teams.add(_core.last_team())
        print((1, "alone") in teams)
    """
    assert python(code, OSTINATO_WAIT="passive") == "True"


GROUPS: dict[
    str, tuple[str, dict[str, str], int | None]
] = {  # lines of /proc/self/cgroup, files, CPUs
    "none": ("0::/\n", {}, None),
    "a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "a service": (
        "0::/system.slice/one.service\n",
        {"system.slice/one.service/cpu.max": "300000 100000\n"},
        3,
    ),
    "a group above": (
        "0::/a/b/c\n",
        {
            "a/b/c/cpu.max": "max 100000\n",
            "a/cpu.max": "200000 100000\n",
            "cpu.max": "800000 100000\n",
        },
        2,
    ),
    "a small share": ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    "version 1": (
        "5:cpuset:/x\n4:cpu,cpuacct:/docker/12\n",
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "version 1, no limit": (
        "4:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
}


@pytest.mark.parametrize("name", list(GROUPS))
def test_quota_of_control_groups(name: str, tmp_path: Path) -> None:
    lines, files, cpus = GROUPS[name]
    for file, text in {
        "proc/self/cgroup": lines,
        **{f"sys/fs/cgroup/{f}": t for f, t in files.items()},
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    got = _core.cgroup_quota(str(tmp_path))
    assert got == cpus if cpus else got > 1000


def gomp() -> Any:
    """GCC's OpenMP runtime, which any process may have."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs: on one the runtime does not spin")
    name = ctypes.util.find_library("gomp")
    if name is None:
        pytest.skip("needs an OpenMP runtime: libgomp, which comes with gcc")
    return name


OPENMP = """
    import ctypes, os, sys, time
    import numpy as np
    import ostinato as ost
    from ostinato import _core
    library = ctypes.CDLL(sys.argv[1])
    library.omp_set_num_threads(2)
    ost.set_num_threads(1)
    layer, r = ost.nn.LSTM(64, 128, rng=0), np.random.default_rng(0)
    x = r.normal(size=(40, 32, 64)).astype(np.float32)
    one = ost.nn.LSTM(256, 320, rng=0)
    row = np.random.default_rng(0).normal(size=(100, 1, 256)).astype(np.float32)

    def all_of(layer, x):
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        return y, pullback(y)[0], layer.flat_grads.copy()

    want, wanted_row = all_of(layer, x), all_of(one, row)
    ost.set_num_threads(2)
    all_of(layer, x)
"""


@linux
def test_a_team_of_openmp_threads_has_the_same_bits() -> None:
    """The threads of a runtime that spin after a parallel region are the team.

    A child, where they are not, has workers.
    """
    code = (
        OPENMP
        + """
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    library.GOMP_parallel(parallel, None, 2, 0)  # as another library would: the team is there
    assert _core.find_openmp() == 2
    kinds = set()
    end = time.monotonic() + 60
    while (2, "openmp") not in kinds and time.monotonic() < end:
        time.sleep(0.02)  # until our own workers sleep
        for got, target in zip(all_of(layer, x), want):
            assert np.array_equal(got, target)
        for got, target in zip(all_of(one, row), wanted_row):
            assert np.array_equal(got, target)
        kinds.add(_core.last_team())
    assert (2, "openmp") in kinds, kinds
    pid = os.fork()
    if pid == 0:
        for got, target in zip(all_of(layer, x), want):
            assert np.array_equal(got, target)
        os._exit(0 if _core.last_team()[1] != "openmp" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    print("fine")
    """
    )
    done = run(code, gomp(), OMP_WAIT_POLICY="active")
    assert done.stdout == "fine\n", done.stderr


@linux
def test_openmp_threads_that_sleep_are_left_alone() -> None:
    code = (
        OPENMP
        + """
    assert _core.find_openmp() == 1, "there is no team yet: it is not ours to make"
    assert _core.find_openmp() == 1, "and the runtime is not looked at again"
    for _ in range(5):
        time.sleep(0.02)
        all_of(layer, x)
        assert _core.last_team()[1] != "openmp", _core.last_team()
    print("fine")
    """
    )
    done = run(code, gomp(), OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
    assert done.stdout == "fine\n", done.stderr


def test_explain_measures_after_a_pause(threads: None) -> None:
    ost.set_num_threads(2)
    layer, x = layer_and_input()
    e = ost.explain(layer, x.shape, measure=True)
    assert list(e.facts["measured_after_pause"]) == [0.01, 0.1]
    assert all(s > 0 for s in e.facts["measured_after_pause"].values())
    assert e.facts["team"][0] in (1, 2)
    assert "after 100 ms without a call" in str(e)
    assert ost.explain(layer, x.shape).facts["measured_after_pause"] == {}
