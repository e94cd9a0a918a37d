"""Calls as programs make them, beside torch and ONNX Runtime: python benchmarks/use.py.

Calls after a pause, right after an operation of another library, between layers of a torch model,
beside another thread or process, under `taskset` and under a CPU quota, whole training steps with
Python between them, and the first call of a process. Each contender of a row is a process of its
own, and the contenders take turns; figures are medians over the rounds, answers are compared first.
`--report FILE.json` writes the table of docs/performance.md, with `--page` that of another page.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost
from ostinato import _core, safetensors
from ostinato.__main__ import info
from ostinato.tasks import bench, contenders
from ostinato.tasks.contenders import Case

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PEERS = ("torch", "onnxruntime")
SETTLE = 0.05  # seconds before a turn, until what the turn before left spinning sleeps


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    case: Case
    pause: float = 0.0  # seconds of sleep before each call
    before: str = ""  # what runs right before each call: see before()
    beside: str = ""  # "thread": another Python thread computes; else a key of PROGRAMS
    processes: int = 1  # that make the same calls at the same time
    cpus: int = 0  # of taskset; 0: all
    quota: float = 0.0  # CPUs that a control group allows; 0: no such group
    inside: bool = False  # between two Linear layers of a torch model
    model: bool = False  # the main job's model: ten steps of its training
    first: bool = False  # the first call of a fresh process, with the making of the layer
    peers: tuple[str, ...] = PEERS
    calls: int = 15


PROGRAMS = {"programs": (2, 0), "nice programs": (4, 10)}  # how many that compute, how nice
INFER = Case("lstm", "infer", 32, 256, 50)
TRAIN = Case("lstm", "train", 32, 256, 50)
SMALL = Case("lstm", "infer", 1, 512, 50)
GRU = Case("gru", "infer", 32, 256, 50)
STEP = Case("lstm", "step", 1, 256, 1)


def rows() -> list[Row]:
    """Yield every row, in the order of the table."""
    out = []
    for ms in (0, 0.5, 5, 10, 20, 50, 100, 300):
        out += [
            Row(f"{case.name}, pause {ms:g} ms", case, pause=ms / 1000, calls=15 if ms < 100 else 6)
            for case in (INFER, TRAIN, SMALL)
        ]
    out += [Row(f"{GRU.name}, pause {ms:g} ms", GRU, pause=ms / 1000) for ms in (0, 10, 50)]
    out += [
        Row(f"stream step, pause {ms:g} ms", STEP, pause=ms / 1000, calls=40) for ms in (0, 10, 100)
    ]
    for name, text in (
        ("torch", "a torch Linear"),
        ("numpy", "a NumPy product"),
        ("onnxruntime", "an ONNX Runtime call"),
    ):
        out += [
            Row(f"{case.name}, right after {text}", case, before=name) for case in (INFER, TRAIN)
        ]
    out += [
        Row("inside a torch model, inference", INFER, inside=True, peers=("torch",)),
        Row("inside a torch model, training", TRAIN, inside=True, peers=("torch",)),
        Row("a second Python thread computes", INFER, beside="thread"),
        *(
            Row(
                f"{case.name} every 10 ms, beside {count} programs of nice {nice}",
                case,
                pause=0.01,
                beside=kind,
                calls=60,
            )
            for case in (INFER, SMALL)
            for kind, (count, nice) in PROGRAMS.items()
        ),
        Row("2 processes", INFER, processes=2),
        Row("4 processes", INFER, processes=4),
        Row("taskset, one CPU", INFER, cpus=1),
        *(Row(f"a quota of {n:g} CPUs", INFER, quota=n, calls=60) for n in (1.0, 1.5)),
        Row("first call of a process", INFER, first=True, calls=1),
    ]
    out += [
        Row(
            f"the main job's training step, H = {h}",
            Case("lstm", "train", 32, h, 64),
            model=True,
            peers=("torch",),
            calls=2,
        )
        for h in (320, 512)
    ]
    out += [
        Row(f"training step, {ms} ms of Python between", TRAIN, before=f"python {ms}")
        for ms in (5, 20, 50)
    ]
    return out


# -- in a contender's process ---------------------------------------------------------------------


def _product() -> Callable[[], object]:
    a = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)

    def run() -> None:
        a @ a

    return run


def _torch_linear() -> Callable[[], object]:
    import torch

    layer, x = torch.nn.Linear(1024, 1024), torch.randn(256, 1024)

    def run() -> None:
        with torch.inference_mode():
            layer(x)

    return run


def _onnx_call() -> Callable[[], object]:
    case = Case("gru", "infer", 32, 256, 10)
    return contenders.make("onnxruntime", case, ost.get_num_threads())


def _python(ms: int) -> Callable[[], object]:
    def run() -> None:
        until = time.perf_counter() + ms / 1000
        while time.perf_counter() < until:
            sum(range(200))

    return run


def before(name: str) -> Callable[[], object] | None:
    """Return what runs right before each call."""
    if name.startswith("python "):
        return _python(int(name.split()[1]))
    makers = {
        "": lambda: None,
        "torch": _torch_linear,
        "numpy": _product,
        "onnxruntime": _onnx_call,
    }
    return makers[name]()


def _inside_torch(name: str, case: Case, threads: int) -> Callable[[], dict[str, Any]]:
    """Build Linear, a contender's layer and Linear in torch; ours is a function of autograd."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    h, a = case.hidden, contenders.arrays(case)
    head, tail = torch.nn.Linear(case.input_size, case.input_size), torch.nn.Linear(h, h)
    x, dy = torch.from_numpy(a["x"]), torch.from_numpy(a["dy"])
    if name == "torch":
        core = torch.nn.LSTM(case.input_size, h)
        core.load_state_dict({n + "_l0": torch.from_numpy(a[n]) for n in contenders.WEIGHTS})
        middle: Callable[[Any], Any] = lambda v: core(v)[0]
    else:
        ours = ost.nn.LSTM(case.input_size, h, rng=0)
        with ours.write() as p:
            for n in contenders.WEIGHTS:
                p[n + "_l0"][...] = a[n]

        class Layer(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, v: Any) -> Any:
                (y, _), ctx.pullback = ours.vjp(v.detach().numpy())
                return torch.from_numpy(y.copy())

            @staticmethod
            def backward(ctx: Any, d: Any) -> Any:
                return torch.from_numpy(ctx.pullback(d.contiguous().numpy())[0])

        middle = (
            Layer.apply
            if case.mode == "train"
            else lambda v: torch.from_numpy(ours(v.numpy())[0].copy())
        )

    def infer() -> dict[str, Any]:
        with torch.inference_mode():
            return {"y": tail(middle(head(x))).numpy()}

    def train() -> dict[str, Any]:
        if name != "torch":
            with ours.write():
                pass
        y = tail(middle(head(x)))
        y.backward(dy)
        out = {"y": y.detach().numpy(), "dw": head.weight.grad.numpy().copy()}
        head.weight.grad = None
        return out

    return train if case.mode == "train" else infer


STEPS = 10  # of the main job's model in one call


def _main_job(name: str, hidden: int, threads: int) -> Callable[[], dict[str, Any]]:
    """Run ten training steps of a character model.

    Embedding, LSTM, Linear, cross entropy, AdamW.
    """
    from ostinato.tasks import text

    width, classes = 64, 65
    r = np.random.default_rng(0)
    ids = r.integers(0, classes, (STEPS, text.BATCH, text.WINDOW + 1))
    model = ost.nn.Sequential(
        ost.nn.Embedding(classes, width, rng=0),
        ost.nn.LSTM(width, hidden, rng=0),
        ost.nn.Linear(hidden, classes, rng=0),
    )
    ost.set_num_threads(threads)
    betas = (0.9, 0.99)
    if name == "ostinato":
        adam = ost.optim.AdamW(1e-3, betas=betas)
        trainer = ost.Trainer(model, ost.losses.CrossEntropy(), adam, clip_norm=1.0)
        batches = [
            (np.ascontiguousarray(b[:, :-1].T), np.ascontiguousarray(b[:, 1:].T)) for b in ids
        ]

        def ours() -> dict[str, Any]:
            history = trainer.fit(batches, epochs=1, progress=False)
            return {"loss": np.array([history.rows[-1]["loss"]])}

        return ours
    import torch

    torch.set_num_threads(threads)
    embed, core, head = (
        torch.nn.Embedding(classes, width),
        torch.nn.LSTM(width, hidden),
        torch.nn.Linear(hidden, classes),
    )
    for k, part in enumerate((embed, core, head)):
        own = {
            n[2:]: torch.from_numpy(a.copy())
            for n, a in model.state_dict().items()
            if n.startswith(f"{k}.")
        }
        part.load_state_dict(own)
    parameters = [p for part in (embed, core, head) for p in part.parameters()]
    adam_w = torch.optim.AdamW(parameters, 1e-3, betas=betas, weight_decay=0.01)
    tensors = [
        (torch.from_numpy(b[:, :-1].T.copy()), torch.from_numpy(b[:, 1:].T.copy())) for b in ids
    ]

    def theirs() -> dict[str, Any]:
        total = 0.0
        for x, target in tensors:
            logits = head(core(embed(x))[0])
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, classes), target.reshape(-1)
            )
            adam_w.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adam_w.step()
            total += loss.item()
        return {"loss": np.array([total / STEPS])}

    return theirs


def worker(text: str) -> None:
    """Build the row's function; for each line run it and reply with the middle of their seconds."""
    order = json.loads(text)
    row = Row(**{**order["row"], "case": Case(**order["row"]["case"])})
    name, threads = order["name"], order["threads"]
    out, sys.stdout = sys.stdout, sys.stderr
    if row.cpus:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: row.cpus])
        threads = min(threads, row.cpus)
    if row.quota:
        threads = ost.get_num_threads()  # what ostinato makes of the quota, for every contender
    prepare = before(row.before)
    start = time.perf_counter()
    if row.model:
        call = _main_job(name, row.case.hidden, threads)
    elif row.inside:
        call = _inside_torch(name, row.case, threads)
    else:
        call = contenders.make(name, row.case, threads)
    answers = call()
    first = time.perf_counter() - start
    safetensors.save(order["answers"], {k: np.array(v) for k, v in answers.items()})
    if row.beside == "thread":
        threading.Thread(target=_compute, daemon=True).start()
    print(json.dumps({"first": first}), file=out, flush=True)
    for line in sys.stdin:
        if row.processes > 1:  # all of them begin at the same time
            time.sleep(max(0.0, float(line) - time.time()))
        seconds = []
        for _ in range(row.calls + 3):
            if prepare is not None:
                prepare()
            if row.pause:
                time.sleep(row.pause)
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        # A group that has used its quota up sleeps for the rest of a period, and a thread that has
        # lost its core waits for it: a median hides that.
        middle = statistics.mean if row.quota or row.beside in PROGRAMS else statistics.median
        print(json.dumps(middle(seconds[3:])), file=out, flush=True)


def _compute() -> None:
    a = np.ones(1 << 16)
    while True:
        np.sin(a, out=a)  # without the GIL


# -- the driver -----------------------------------------------------------------------------------


@contextlib.contextmanager
def control_group(cpus: float) -> Iterator[Path | None]:
    """Make a control group of a CPU quota, and yield the file of its processes; None for none."""
    if not cpus:
        yield None
        return
    period, top = 100_000, Path("/sys/fs/cgroup")
    first = (top / "cpu").is_dir()  # version 1 has a tree for each controller
    group = (top / "cpu" if first else top) / f"ostinato-use-{os.getpid()}"
    group.mkdir()
    try:
        if first:
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(int(cpus * period)))
        else:
            (group / "cpu.max").write_text(f"{int(cpus * period)} {period}")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def may_limit() -> bool:
    """Return whether control groups can be made here: root can, unless it is in a container."""
    try:
        with control_group(1.0):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def programs(kind: str) -> Iterator[None]:
    """Have other programs compute in the meantime, if the kind is one of PROGRAMS."""
    count, nice = PROGRAMS.get(kind, (0, 0))
    code = f"import os; os.nice({nice})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        time.sleep(SETTLE if others else 0)
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


class Process:
    """A contender of one row."""

    def __init__(
        self, row: Row, name: str, threads: int, answers: Path, group: Path | None = None
    ) -> None:
        order = {"row": asdict(row), "name": name, "threads": threads, "answers": str(answers)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=group and (lambda: group.write_text(str(os.getpid()))),
        )
        self.first: float = self._reply()["first"]

    def _reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"a contender ended with status {self.process.wait()}")
        return json.loads(line)

    def begin(self, at: float) -> None:
        """Start its calls at a given time."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{at}\n")
        self.process.stdin.flush()

    def end(self) -> float:
        """Wait for the seconds of a call, the median or the mean."""
        return float(self._reply())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(row: Row, names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row: median seconds of each contender, and ratios within a round."""
    seconds: dict[str, list[float]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder) / n for n in names}
        if row.first:
            for _ in range(rounds):
                for n in names:
                    one = Process(row, n, threads, paths[n])
                    seconds[n].append(one.first)
                    one.close()
        else:
            with contextlib.ExitStack() as stack:
                limit = stack.enter_context(control_group(row.quota))
                groups = {}
                for n in names:
                    groups[n] = [
                        Process(row, n, threads, paths[n], limit) for _ in range(row.processes)
                    ]
                    for one in groups[n]:
                        stack.callback(one.close)
                _same_answers(row, names, paths)
                if row.beside:  # a thread that computes would disturb the others' turns
                    stack.close()
                    groups = {}
                for _ in range(rounds):
                    for n in names:
                        group = groups.get(n) or [Process(row, n, threads, paths[n])]
                        time.sleep(SETTLE)
                        with programs(row.beside):
                            at = time.time() + 0.02
                            for one in group:
                                one.begin(at)
                            seconds[n].append(statistics.median([one.end() for one in group]))
                        if n not in groups:
                            group[0].close()
    ours = seconds["ostinato"]
    return {
        "name": row.name,
        "seconds": {n: statistics.median(s) for n, s in seconds.items()},
        "ratio": {
            n: statistics.median([t / o for t, o in zip(seconds[n], ours)])
            for n in names
            if n != "ostinato"
        },
    }


def _same_answers(row: Row, names: list[str], paths: dict[str, Path]) -> None:
    ours = safetensors.load(paths["ostinato"])[0]
    for n in names:
        bench._compare(ours, safetensors.load(paths[n])[0], n, row.case)


def table(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table in docs/performance.md."""
    yield "| call | ostinato, over its calls in a row | torch | ONNX Runtime |"
    yield "|---|---|---|---|"
    base: dict[str, float] = {}
    for r in figures["rows"]:
        kind = r["name"].split(", pause")[0]
        ours = r["seconds"]["ostinato"]
        base.setdefault(kind, ours)
        own = f"{ours / base[kind]:.2f}" if ", pause" in r["name"] else "-"
        peers = " | ".join(f"{r['ratio'][n]:.2f}" if n in r["ratio"] else "-" for n in PEERS)
        yield f"| {r['name']} | {own} | {peers} |"


def speed_after_pauses() -> dict[str, float]:
    """Return how fast a thread multiplies and adds in the first 0.5 ms after pauses, to no pause.

    It is what the CPU itself takes to come back to its speed, whatever program runs.
    """
    seconds, times = 0.0005, 15
    _core.fma_peak(0.05, 4)
    usual = statistics.median(_core.fma_peak(seconds, 4) for _ in range(times))
    out = {}
    for ms in (10, 50, 100, 300):
        speeds = []
        for _ in range(times):
            time.sleep(ms / 1000)
            speeds.append(_core.fma_peak(seconds, 4))
        out[str(ms)] = statistics.median(speeds) / usual
    return out


def report(figures: dict[str, Any], page: str) -> None:
    """Write docs/PAGE-use.md, a part of docs/PAGE.md."""
    machine = figures["machine"]
    head = (
        f"`python benchmarks/use.py`, {figures['date']}, {machine['cpu']}, {figures['threads']} "
        "threads,\n"
        f"kernel set {machine['kernels']['chosen']}, T = 50. The first column\n"
        "is our time over that of the same calls without a pause. The other columns say how many "
        "times faster\n"
        "ostinato is than each peer in the same place."
    )
    head += "\n" + textwrap.fill(figures["note"], 100) if "note" in figures else ""
    if speed := figures.get("speed_after_pauses"):  # of results since 2026-11-29
        *first, last = (f"{share:.2f} after {ms} ms" for ms, share in speed.items())
        head += "\n" + textwrap.fill(
            "After a pause the CPU itself is slower, whatever it runs: in the first half "
            f"millisecond one thread multiplies and adds at {', '.join(first)} and {last} of its "
            "speed without one.",
            100,
        )
    (DOCS / f"{page}-use.md").write_text(
        "\n".join(["## Calls as programs make them", "", head, "", *table(figures), ""])
    )


def main() -> None:
    """Run the rows and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument(
        "--report", metavar="FILE", help="write the part of a page from a file of results"
    )
    parser.add_argument("--page", default="performance", help="the page of docs, without .md")
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker)
    if args.report:
        return report(json.loads(Path(args.report).read_text()), args.page)
    there = [n for n in PEERS if importlib.util.find_spec(n) is not None]
    threads = ost.get_num_threads()
    date = f"{datetime.date.today():%Y-%m-%d}"
    figures: dict[str, Any] = {"machine": info(), "threads": threads, "date": date, "rows": []}
    figures["speed_after_pauses"] = speed_after_pauses()
    print(
        f"{figures['machine']['cpu']}, {threads} threads; milliseconds, and how many times faster "
        "than each peer"
    )
    for row in rows():
        if args.only not in row.name:
            continue
        modes = {n: contenders.CONTENDERS[n][2] for n in there}
        names = ["ostinato"] + [n for n in there if n in row.peers and row.case.mode in modes[n]]
        if row.before in PEERS and row.before not in there:
            continue
        if row.quota and not may_limit():
            print(f"{row.name:50} left out: control groups cannot be made here")
            continue
        r = measure(row, names, args.rounds, threads)
        figures["rows"].append(r)
        cells = "  ".join(
            f"{n} {r['seconds'][n] * 1e3:8.3f} ({r['ratio'][n]:.2f}x)" for n in names[1:]
        )
        print(f"{row.name:50} {r['seconds']['ostinato'] * 1e3:8.3f}  {cells}", flush=True)
    lost = [(r["name"], n, x) for r in figures["rows"] for n, x in r["ratio"].items() if x < 0.97]
    print(
        f"lost by more than 3%: {len(lost)}"
        + "".join(f"\n  {name}: {n} {x:.2f}" for name, n, x in lost)
    )
    if not args.only:
        out = RESULTS / f"{date}-use-{ost.kernels()['chosen']}.json"
        with safetensors.atomic_write(out) as f:
            f.write(json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
