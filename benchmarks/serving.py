"""A server of streams beside the same server on PyTorch: python benchmarks/serving.py.

examples/serve.py holds 1,000 streams in one process on one core; this program is its clients, on
another core. In the same server, PyTorch's LSTM takes the place of ours, and so does "echo", which
computes nothing: what is left is what websockets cost. Answers are compared first. Contenders take
turns, each on connections of its own; in a turn

- closed: every stream has one row on its way at all times: CPU time of a row (how many rows a
  second there are, the clients limit, not the server);
- open: rows come at a rate that the slowest contender reaches twice over, and latency is counted
  from when a row was due;
- churn: the same, while streams leave and join all the time, and the first answer of each that
  joined is compared;
- greedy, flood (ours alone): the same beside a client that sends without end, and reads its answers
  or nothing.

Figures are medians over the rounds, ratios those within a round. What is printed for each contender
are rows (steps of a stream) a second of the closed part, those that a core would serve at the CPU
time of a row, latencies, streams that join in a second, and bytes of a stream. Where PyTorch is
missing it is left out. Nothing but loopback is used.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import datetime
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

import contenders
import ostinato as ost
from ostinato import safetensors
from ostinato.__main__ import info

ROOT = Path(__file__).parent.parent
TORCH = ("torch",) if importlib.util.find_spec("torch") else ()
NAMES = ("ostinato", *TORCH, "echo")
INPUTS, OUTPUTS, LIMIT = 32, 16, 2e-4
SPARE = 8  # slots for those that join while others leave, and for the flood
CLOSED, OPEN, FLOOD = 1.2, 1.5, 1.2  # seconds of each part of a turn
CHURN = 0.02  # of the rows are those of a stream that has just joined


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    hidden: int
    layers: int


ROWS = (Row("LSTM, H = 128", 128, 1), Row("2 x LSTM, H = 256", 256, 2))


def model_of(row: Row) -> Any:
    """Return the model that all contenders have the weights of."""
    lstm = ost.nn.LSTM(INPUTS, row.hidden, row.layers, rng=0)
    return ost.nn.Sequential(lstm, ost.nn.Linear(row.hidden, OUTPUTS, rng=1))


class TorchStream:
    """PyTorch's LSTM and Linear with states in slots, called as `ostinato.nn.Stream`.

    Args:
        row: the sizes.
        batch: the number of slots.
    """

    def __init__(self, row: Row, batch: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch, model = torch, model_of(row)
        self.lstm = torch.nn.LSTM(INPUTS, row.hidden, row.layers)
        self.linear = torch.nn.Linear(row.hidden, OUTPUTS)
        for k, layer in enumerate((self.lstm, self.linear)):
            state = {n: torch.from_numpy(np.array(a)) for n, a in model[k].state_dict().items()}
            layer.load_state_dict(state)
        self.batch = batch
        self.x = np.zeros((batch, INPUTS), np.float32)
        self.y = np.zeros((batch, OUTPUTS), np.float32)
        self.h = torch.zeros(row.layers, batch, row.hidden)
        self.c = torch.zeros_like(self.h)

    def reset(self, slots: list[int]) -> None:
        """Put slots back to zeros."""
        self.h[:, slots] = self.c[:, slots] = 0

    def step(self, x: Any, slots: list[int]) -> Any:
        """Run a step of some slots."""
        with self.torch.inference_mode():
            where = self.torch.tensor(slots)
            state = self.h.index_select(1, where), self.c.index_select(1, where)
            y, (h, c) = self.lstm(self.torch.from_numpy(x)[None], state)
            self.h.index_copy_(1, where, h)
            self.c.index_copy_(1, where, c)
            return self.linear(y[0]).numpy()


class Echo:
    """Answers that cost nothing."""

    def __init__(self, row: Row, batch: int) -> None:
        self.batch = batch
        self.x = np.zeros((batch, INPUTS), np.float32)
        self.y = np.zeros((batch, OUTPUTS), np.float32)

    def reset(self, slots: list[int]) -> None:
        """Do nothing."""

    def step(self, x: Any, slots: list[int]) -> Any:
        """Return zeros."""
        return self.y[: len(x)]


def stream_of(name: str, row: Row, batch: int) -> Any:
    """Return the stream of a contender."""
    if name == "ostinato":
        return model_of(row).stream(batch)
    return (TorchStream if name == "torch" else Echo)(row, batch)


async def worker(order: dict[str, Any]) -> None:
    """Serve a contender until the standard input ends."""
    os.sched_setaffinity(0, {order["core"]})
    ost.set_num_threads(1)
    serve = contenders.example("serve")
    limits = serve.Limits(slots=order["streams"] + SPARE)
    stream = stream_of(order["name"], Row(**order["row"]), limits.slots)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    async with serve.serving(stream, limits, host="127.0.0.1", port=0) as server:
        print(server.port, flush=True)
        await stop.wait()


class Contender:
    """A server in a process of its own.

    Args:
        name: one of `NAMES`.
        row: the sizes.
        streams: the number of slots.
        core: where it runs.
    """

    def __init__(self, name: str, row: Row, streams: int, core: int) -> None:
        order = {"name": name, "row": asdict(row), "streams": streams, "core": core}
        self.name, self.streams = name, streams
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def cpu(self) -> float:
        """Return the seconds of CPU time since the start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Return the resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Figures:
    """What was seen in one part of a turn."""

    latencies: list[float] = field(default_factory=list)
    compared: int = 0
    worst: float = 0.0  # difference of an answer that was compared


class Client(asyncio.Protocol):
    """One stream, by the part of `websockets` that does no input or output of its own.

    Args:
        port: of the server.
        answered: called with the client and the bytes of every answer.
    """

    def __init__(self, port: int, answered: Callable[[Client, bytes], None]) -> None:
        self.ws = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"))
        self.answered = answered
        loop = asyncio.get_running_loop()
        self.ready, self.gone = loop.create_future(), loop.create_future()
        self.due: collections.deque[float] = collections.deque()
        self.expected: collections.deque[Any] = collections.deque()
        self.leaving = False

    def connection_made(self, transport: Any) -> None:
        """Ask for a websocket."""
        self.transport = transport
        self.ws.send_request(self.ws.connect())
        self.flush()

    def flush(self) -> None:
        """Send what is to be sent."""
        for data in self.ws.data_to_send():
            if data:
                self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        self.ws.receive_data(data)
        for event in self.ws.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self.answered(self, event.data)
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                first = json.loads(bytes(event.data))
                if "error" in first:
                    raise RuntimeError(first["error"])
                self.ready.set_result(None)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Say so."""
        self.gone.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(str(self.ws.close_exc)))

    def send(self, row: bytes, due: float) -> None:
        """Send a row that was due at a time."""
        self.due.append(due)
        self.ws.send_binary(row)
        self.flush()

    def leave(self) -> None:
        """Close the connection."""
        self.leaving = True
        self.ws.send_close(1000)
        self.flush()


async def join(port: int, answered: Callable[[Client, bytes], None]) -> Client:
    """Return a client that has a slot."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(port, answered), "127.0.0.1", port)
    await client.ready
    return client


async def join_all(
    port: int, count: int, answered: Callable[[Client, bytes], None]
) -> list[Client]:
    """Return clients, of which a hundred join at a time."""
    out: list[Client] = []
    while len(out) < count:
        some = min(100, count - len(out))
        out += await asyncio.gather(*(join(port, answered) for _ in range(some)))
    return out


async def leave_all(clients: list[Client]) -> None:
    """Close connections, and wait until they are."""
    for c in clients:
        c.leave()
    await asyncio.gather(*(c.gone for c in clients))


class Flooder(Client):
    """A client that sends rows without end, as long as the server takes them."""

    def connection_made(self, transport: Any) -> None:
        """Ask for a websocket."""
        self.paused = False
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Wait: the server takes no more."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False

    async def flood(self, row: bytes, until: float, reads: bool) -> None:
        """Send what the server takes, and leave without a word."""
        if not reads:
            self.transport.pause_reading()
        while time.perf_counter() < until:
            for _ in range(50):
                if not self.paused:
                    self.send(row, 0.0)
            await asyncio.sleep(0.002)
        self.transport.abort()
        await self.gone


def narrow(port: int) -> socket.socket:
    """Return a socket to a server that the system buffers little for."""
    made = socket.socket()
    for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, which, 4096)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made


class Load:
    """The streams of a turn.

    Args:
        contender: whose server they meet.
        model: what answers are compared with; None for an echo.
    """

    def __init__(self, contender: Contender, model: Any) -> None:
        self.contender, self.model = contender, model
        rng = np.random.default_rng(0)
        x = rng.standard_normal((64, INPUTS)).astype(np.float32)
        self.rows = [row.tobytes() for row in x]
        self.first = None if model is None else model(x[None])[0][0]
        self.clients: list[Client] = []
        self.figures = Figures()
        self.closed = False

    def answered(self, client: Client, data: bytes) -> None:
        """Count an answer, and in a closed loop send the next row."""
        now = time.perf_counter()
        self.figures.latencies.append(now - client.due.popleft())
        if client.expected:
            off = np.abs(np.frombuffer(data, "<f4") - (y := client.expected.popleft())).max()
            self.figures.worst = max(self.figures.worst, float(off / np.abs(y).max()))
            self.figures.compared += 1
        if self.closed:
            client.send(self.rows[0], now)

    async def answers(self) -> float:
        """Return how far the answers of 20 streams of 30 steps are from the model's at most."""
        x = np.random.default_rng(1).standard_normal((30, 20, INPUTS)).astype(np.float32)
        y = self.model(x)[0]
        clients = await join_all(self.contender.port, 20, self.answered)
        for t in range(len(x)):
            for k, c in enumerate(clients):
                c.expected.append(y[t, k])
                c.send(x[t, k].tobytes(), 0.0)
        while self.figures.compared < y.shape[0] * y.shape[1]:
            await asyncio.sleep(0.01)
        await leave_all(clients)
        return self.figures.worst

    async def settle(self) -> None:
        """Wait for the answers that are on their way."""
        while any(c.due for c in self.clients):
            await asyncio.sleep(0.005)

    async def run_closed(self, seconds: float) -> dict[str, float]:
        """Keep one row of every stream on its way."""
        self.figures, self.closed = Figures(), True
        before, start = self.contender.cpu(), time.perf_counter()
        for c in self.clients:
            c.send(self.rows[0], time.perf_counter())
        await asyncio.sleep(seconds)
        self.closed = False
        await self.settle()
        taken = time.perf_counter() - start
        return self.shown(taken, self.contender.cpu() - before)

    async def run_open(self, seconds: float, rate: float, churn: float = 0.0) -> dict[str, float]:
        """Send rows at a rate, each stream in its turn; some of the streams are new ones."""
        self.figures, rng = Figures(), np.random.default_rng(2)
        before, start = self.contender.cpu(), time.perf_counter()
        joining: set[asyncio.Task[None]] = set()
        sent = 0
        while (now := time.perf_counter()) < start + seconds:
            while (due := start + sent / rate) <= now:
                k = sent % len(self.clients)
                sent += 1
                if self.clients[k].leaving:
                    continue
                if rng.random() < churn:
                    joining.add(asyncio.create_task(self.replace(k, int(rng.integers(64)))))
                else:
                    self.clients[k].send(self.rows[k % 64], due)
            await asyncio.sleep(0.0003)
        taken = time.perf_counter() - start
        await asyncio.gather(*joining)
        await self.settle()
        return self.shown(taken, self.contender.cpu() - before)

    async def replace(self, k: int, row: int) -> None:
        """Let a stream leave and another one join, whose first answer is compared."""
        old = self.clients[k]
        old.leave()
        await old.gone
        new = await join(self.contender.port, self.answered)
        if self.first is not None:
            new.expected.append(self.first[row])
        new.send(self.rows[row], time.perf_counter())
        self.clients[k] = new

    async def run_flood(self, seconds: float, rate: float, reads: bool) -> dict[str, float]:
        """Send at a rate beside a client that floods the server."""
        loop, port = asyncio.get_running_loop(), self.contender.port
        before = self.contender.resident()
        made = lambda: Flooder(port, lambda client, data: None)
        _, flooder = await loop.create_connection(made, sock=narrow(port))
        await flooder.ready
        until = time.perf_counter() + seconds
        flooding = asyncio.create_task(flooder.flood(self.rows[0], until, reads))
        out = await self.run_open(seconds, rate)
        await flooding
        return {**out, "grown_bytes": self.contender.resident() - before}

    def shown(self, seconds: float, cpu: float) -> dict[str, float]:
        """Return the figures of a part of a turn."""
        got = np.array(self.figures.latencies)
        if not self.figures.worst < LIMIT:
            raise AssertionError(f"{self.contender.name}: an answer is off by {self.figures.worst}")
        return {
            "rows_per_second": len(got) / seconds,
            "cpu_per_row": cpu / len(got),
            "p50": float(np.quantile(got, 0.5)),
            "p99": float(np.quantile(got, 0.99)),
            "compared": self.figures.compared,
        }

    async def turn(self, rate: float | None) -> dict[str, Any]:
        """Run all parts, or without a rate a short closed one."""
        before = self.contender.resident()
        join_start = time.perf_counter()
        self.clients = await join_all(self.contender.port, self.contender.streams, self.answered)
        out: dict[str, Any] = {"join_seconds": time.perf_counter() - join_start}
        out["closed"] = await self.run_closed(CLOSED)
        out["bytes_per_stream"] = (self.contender.resident() - before) / len(self.clients)
        if rate is not None:
            out["open"] = await self.run_open(OPEN, rate)
            out["churn"] = await self.run_open(OPEN, rate, CHURN)
        if rate is not None and self.contender.name == "ostinato":
            for name, reads in (("greedy", True), ("flood", False)):
                out[name] = await self.run_flood(FLOOD, rate, reads)
        await leave_all(self.clients)
        return out


def measure(row: Row, streams: int, rounds: int, cores: list[int]) -> dict[str, Any]:
    """Measure one row of the table."""
    model = model_of(row)
    with contextlib.ExitStack() as stack:
        group = {n: Contender(n, row, streams, cores[0]) for n in NAMES}
        for c in group.values():
            stack.callback(c.close)

        def turn(name: str, rate: float | None) -> dict[str, Any]:
            load = Load(group[name], None if name == "echo" else model)
            return asyncio.run(load.turn(rate))

        off = {n: asyncio.run(answers(group[n], model)) for n in NAMES if n != "echo"}
        first = {n: asyncio.run(Load(group[n], None).turn(None)) for n in NAMES}
        rate = 0.5 * min(f["closed"]["rows_per_second"] for f in first.values())
        turns = [{n: turn(n, rate) for n in NAMES} for _ in range(rounds)]
    return {
        "name": row.name,
        "answers_off": off,
        "rate": rate,
        "bytes_per_stream": {n: first[n]["bytes_per_stream"] for n in NAMES},
        "turns": turns,
        "ratio": ratios(turns),
    }


async def answers(contender: Contender, model: Any) -> float:
    """Return how far the answers of a contender are from the model's; too far is an error."""
    off = await Load(contender, model).answers()
    if not off < LIMIT:
        raise AssertionError(f"{contender.name}: answers are off by {off:.1e}")
    return off


def table(row: dict[str, Any], streams: int) -> str:
    """Return the figures of a row of the table, a line for each contender."""
    heads = "rows/s", "of a core", "p50 ms", "p99 ms", "joining p99 ms", "joins/s", "KB a stream"
    lines = [f"{row['name']:20}" + "".join(f"{head:>15}" for head in heads)]
    for name in NAMES:
        turns = [t[name] for t in row["turns"]]

        def median(part: str, key: str, turns: Any = turns) -> float:
            return statistics.median(t[part][key] for t in turns)

        joins = streams / statistics.median(t["join_seconds"] for t in turns)
        figures = (
            f"{median('closed', 'rows_per_second'):15,.0f}"
            f"{1 / median('closed', 'cpu_per_row'):15,.0f}"
            f"{1e3 * median('open', 'p50'):15.2f}{1e3 * median('open', 'p99'):15.2f}"
            f"{1e3 * median('churn', 'p99'):15.2f}{joins:15,.0f}"
            f"{row['bytes_per_stream'][name] / 1e3:15.1f}"
        )
        lines.append(f"{name:20}{figures}")
    return "\n".join(lines)


def ratios(turns: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return medians of ratios within a round: of the others to ours, and of parts of a turn."""

    def median(f: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(f(t) for t in turns)

    def over(name: str, part: str, key: str) -> float:
        return median(lambda t: t[name][part][key] / t["ostinato"][part][key])

    out = {}
    for name in NAMES[1:]:
        parts, keys = ("open", "churn"), ("p50", "p99", "cpu_per_row")
        some = {f"{p}_{k}": over(name, p, k) for p in parts for k in keys}
        out[name] = {"closed_rows_per_second": over(name, "closed", "rows_per_second")}
        out[name] |= {"closed_cpu_per_row": over(name, "closed", "cpu_per_row"), **some}

    def beside(part: str, key: str) -> float:
        return median(lambda t: t["ostinato"][part][key] / t["ostinato"]["open"][key])

    out["ostinato"] = {
        f"{p}_over_open_{k}": beside(p, k)
        for p in ("churn", "greedy", "flood")
        for k in ("p50", "p99")
    }
    return out


def main() -> None:
    """Run the rows and write the results, or one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--only", default="", help="rows whose name has this text; writes nothing")
    args = parser.parse_args()
    if args.worker:
        return asyncio.run(worker(json.loads(args.worker)))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("serving: expected two cores, one of them for the clients, got one")
    os.sched_setaffinity(0, {cores[1]})
    date = f"{datetime.date.today():%Y-%m-%d}"
    figures: dict[str, Any] = {"machine": info(), "streams": args.streams, "date": date, "rows": []}
    for row in ROWS:
        if args.only in row.name:
            r = measure(row, args.streams, args.rounds, cores)
            figures["rows"].append(r)
            print(table(r, args.streams), json.dumps(r["ratio"], indent=1), sep="\n", flush=True)
    if not args.only:
        out = ROOT / "benchmarks" / "results" / f"{date}-serving-{ost.kernels()['chosen']}.json"
        with safetensors.atomic_write(out) as f:
            f.write(json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
