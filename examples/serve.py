"""Serve a recurrent model over websockets: every client has a stream of its own, in a slot.

`pip install 'ostinato[serve]'` brings the library `websockets`. One batch step serves all streams
that have input, whichever they are; answers have the bits of the model run whole.

    python examples/serve.py model.safetensors --port 8765 --slots 1000 --processes 2

docs/serving.md has the messages, the close codes, a client, and what was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http
import json
import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import numpy.typing as npt

import ostinato as ost

try:
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed
except ImportError:
    raise SystemExit("serve.py needs websockets: pip install 'ostinato[serve]'") from None

Array = npt.NDArray[Any]
GOING_AWAY, POLICY, FULL = 1001, 1008, 1013  # close codes of RFC 6455 and its registry
DRAIN = 5.0  # seconds within which a server that stops answers what it has taken


@dataclass(frozen=True)
class Limits:
    """What one process allows.

    Attributes:
        slots: streams at a time.
        queue: messages of a client that wait; of further ones it is kept from sending them.
        rows: steps in one message.
        idle: seconds without a message after which a client has to leave; 0: none.
        buffer: bytes of a client that the system keeps each way; left to itself it keeps megabytes.
    """

    slots: int = 1000
    queue: int = 8
    rows: int = 256
    idle: float = 0.0
    buffer: int = 1 << 16

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        for name in ("slots", "queue", "rows", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.idle < float("inf"):
            raise ValueError(f"idle: expected seconds from 0 on, got {self.idle}")


class Refused(ValueError):
    """A message that has no answer but what is wrong with it."""


class Form:
    """The form of a message: rows of x of a stream, as bytes or as JSON.

    Args:
        x: the inputs of the stream, ``[B,I]``, or ``[B]`` numbers of an Embedding.
        ids: how many numbers there are; None where x are no such numbers.
        most: rows of one message.
    """

    def __init__(self, x: Array, ids: int | None, most: int) -> None:
        self.row, self.ids, self.most = x.shape[1:], ids, most
        self.dtype = x.dtype.newbyteorder("<")
        self.bytes = self.dtype.itemsize * math.prod(self.row)

    def read(self, message: bytes) -> Array:
        """Return the rows ``[k,I]`` or ``[k]`` of a binary message."""
        if not message or len(message) % self.bytes:
            raise Refused(
                f"x: expected rows of {self.bytes} bytes, {self.row} of {self.dtype.name}, got "
                f"{len(message)} bytes"
            )
        return self.checked(np.frombuffer(message, self.dtype).reshape(-1, *self.row))

    def of_json(self, value: Any) -> Array:
        """Return the rows of the value of a JSON object."""
        wanted = f"a list of rows of {self.row[0]} numbers" if self.row else "a list of numbers"
        try:
            given = np.array(value)  # of lists of unequal lengths: an error
        except ValueError:
            raise Refused(f"x: expected {wanted}, got lists of unequal lengths") from None
        whole = self.ids is not None
        fits = given.ndim == 1 + len(self.row) and given.shape[1:] == self.row
        if given.dtype.kind not in ("iu" if whole else "iuf") or not fits:
            kind = f"shape {given.shape}" if given.dtype.kind in "iuf" else type(value).__name__
            raise Refused(f"x: expected {wanted}, got {kind}")
        with np.errstate(over="ignore"):  # what is too large is refused as infinite
            return self.checked(given.astype(self.dtype))

    def checked(self, rows: Array) -> Array:
        """Return rows in which a step finds no fault: one would end the step of all streams."""
        if not 1 <= len(rows) <= self.most:
            raise Refused(f"x: expected 1 to {self.most} rows, got {len(rows)}")
        if self.ids is None:
            if not np.isfinite(rows).all():
                raise Refused("x: expected finite numbers, got NaN or infinity")
        elif rows.min() < 0 or rows.max() >= self.ids:
            bad = rows[(rows < 0) | (rows >= self.ids)][0]
            raise Refused(f"x: expected numbers from 0 to {self.ids - 1}, got {bad}")
        return rows


@dataclass
class Job:
    """Rows of one stream that wait for their steps, and the answers to those that were taken."""

    rows: Array
    out: Array
    done: asyncio.Future[Array]
    taken: int = 0


class Batcher:
    """Slots of a stream, which clients take and leave, and the steps that they share.

    Args:
        stream: `ostinato.nn.Stream`, or what has its ``batch``, ``x``, ``y``, ``step`` and
            ``reset``.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.x = stream, np.empty_like(stream.x)
        self.free = list(range(stream.batch - 1, -1, -1))
        self.jobs: dict[int, Job] = {}
        self.some = asyncio.Event()
        self.steps = self.rows = self.most = 0  # most: rows of one step

    def join(self) -> int | None:
        """Return a slot in its initial state, None where all are taken."""
        if not self.free:
            return None
        self.stream.reset(self.free[-1:])
        return self.free.pop()

    def leave(self, slot: int) -> None:
        """Give a slot back; what it waits for is dropped."""
        self.jobs.pop(slot, None)
        self.free.append(slot)

    async def run(self, slot: int, rows: Array) -> Array:
        """Return the outputs of rows of a slot, of which one is taken a step."""
        done: asyncio.Future[Array] = asyncio.get_running_loop().create_future()
        out = np.empty((len(rows), *self.stream.y.shape[1:]), self.stream.y.dtype)
        self.jobs[slot] = Job(rows, out, done)
        self.some.set()
        return await done

    def step(self) -> None:
        """Run one step of all slots that have a row."""
        jobs = list(self.jobs.items())
        x = self.x[: len(jobs)]
        for k, (_, job) in enumerate(jobs):
            x[k] = job.rows[job.taken]
        y = self.stream.step(x, slots=[slot for slot, _ in jobs])
        for k, (slot, job) in enumerate(jobs):
            job.out[job.taken] = y[k]
            job.taken += 1
            if job.taken == len(job.rows):
                del self.jobs[slot]
                if not job.done.cancelled():
                    job.done.set_result(job.out)
        self.steps += 1
        self.rows += len(jobs)
        self.most = max(self.most, len(jobs))

    async def serve(self) -> None:
        """Run steps while there are rows, and wait where there are none.

        A step that fails ends the streams that had a part in it, whose states are unknown then.
        """
        while True:
            await self.some.wait()
            while self.jobs:
                try:
                    self.step()
                except Exception as error:
                    for job in self.jobs.values():
                        if not job.done.cancelled():
                            job.done.set_exception(error)
                    self.jobs.clear()
                await asyncio.sleep(0)  # sockets are read, and their rows join the next step
            self.some.clear()


class Server:
    """What clients meet in one process.

    Args:
        stream: as for a `Batcher`.
        form: of the messages.
        limits: what a client may do.
    """

    def __init__(self, stream: Any, form: Form, limits: Limits) -> None:
        self.batcher, self.form, self.limits = Batcher(stream), form, limits
        # When each connection that has a slot, and waits for no answer, last said a word.
        self.heard: dict[Any, float] = {}
        self.stops = False
        self.refused = 0
        self.port = 0

    def status(self, connection: Any, request: Any) -> Any:
        """Answer requests that are no websocket: /status says what the process does."""
        if request.path == "/":
            return None
        if request.path != "/status":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "expected / or /status\n")
        b = self.batcher
        facts = {"process": os.getpid(), "slots": b.stream.batch, "free": len(b.free)}
        facts |= {"steps": b.steps, "rows": b.rows, "most_rows_of_a_step": b.most}
        facts |= {"refused_messages": self.refused, "stops": self.stops}
        response = connection.respond(http.HTTPStatus.OK, json.dumps(facts) + "\n")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def client(self, connection: Any) -> None:
        """Give a connection a slot, and answer its messages in their order until it ends."""
        if self.stops:
            return await connection.close(GOING_AWAY, "the server stops")
        given = connection.transport.get_extra_info("socket")
        for which in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):  # of a client that has gone
                given.setsockopt(socket.SOL_SOCKET, which, self.limits.buffer)
        slot = self.batcher.join()
        if slot is None:
            reason = f"all {self.batcher.stream.batch} slots are taken: try again later"
            return await connection.close(FULL, reason)
        try:
            await connection.send(json.dumps(self.welcome(slot)))
            self.heard[connection] = time.monotonic()
            async for message in connection:
                del self.heard[connection]
                answer = await self.answer(slot, message)
                self.heard[connection] = time.monotonic()
                await connection.send(answer)  # waits where the client does not read
                self.heard[connection] = time.monotonic()
                if self.stops:
                    return await connection.close(GOING_AWAY, "the server stops")
        except ConnectionClosed:
            pass  # in the middle of an answer
        finally:
            self.heard.pop(connection, None)
            self.batcher.leave(slot)

    def welcome(self, slot: int) -> dict[str, Any]:
        """Return the first message: what rows have to be."""
        y = self.batcher.stream.y
        x = {"dtype": self.form.dtype.name, "row": list(self.form.row), "ids": self.form.ids}
        y = {"dtype": y.dtype.name, "row": list(y.shape[1:])}
        return {"slot": slot, "x": x, "y": y, "rows": self.limits.rows}

    async def answer(self, slot: int, message: str | bytes) -> str | bytes:
        """Return the answer to a message: of its form, or an error.

        What a message is refused for changes no state. But that outputs are NaN or infinite, which
        JSON has not, is known only once the steps have run: that error leaves the state after them.
        """
        try:
            if isinstance(message, bytes):
                y = await self.batcher.run(slot, self.form.read(message))
                return y.astype(y.dtype.newbyteorder("<"), copy=False).tobytes()
            order = order_of(message)
            if "reset" in order:
                self.batcher.stream.reset([slot])
                return json.dumps({"reset": True})
            y = await self.batcher.run(slot, self.form.of_json(order["x"]))
            if not np.isfinite(y).all():
                raise Refused(
                    "y: expected finite numbers, which JSON has; send x as bytes, or reset"
                )
            return json.dumps({"y": y.tolist()})
        except Refused as error:
            self.refused += 1
            return json.dumps({"error": str(error)})

    async def sweep(self) -> None:
        """Close connections that said nothing for too long."""
        while self.limits.idle:
            await asyncio.sleep(self.limits.idle / 4)
            before = time.monotonic() - self.limits.idle
            reason = f"no message for {self.limits.idle:g} seconds"
            late = [c.close(POLICY, reason) for c, at in self.heard.items() if at < before]
            await asyncio.gather(*late, return_exceptions=True)

    async def drain(self) -> None:
        """Answer what has been taken."""
        self.stops = True
        until = time.monotonic() + DRAIN
        while self.batcher.jobs and time.monotonic() < until:
            await asyncio.sleep(0.005)


def order_of(message: str) -> dict[str, Any]:
    """Return a message of text: {"x": rows} or {"reset": true}."""
    try:
        order = json.loads(message)
    except (ValueError, RecursionError):
        raise Refused("message: expected JSON, got text that is none") from None
    wanted = 'an object {"x": rows} or {"reset": true}'
    if not isinstance(order, dict):
        raise Refused(f"message: expected {wanted}, got {type(order).__name__}")
    if list(order) != ["x"] and (list(order) != ["reset"] or order["reset"] is not True):
        raise Refused(f"message: expected {wanted}, got the keys {', '.join(order) or '-'}"[:200])
    return order


def ids_of(model: Any) -> int | None:
    """Return how many numbers the first layer takes if it is an Embedding.

    A graph does not say which of its tables its input is looked up in: it is the smallest here, so
    that no number ends a step.
    """
    while isinstance(model, ost.nn.Sequential):
        model = model[0]
    if isinstance(model, ost.interop.Graph) and model.stream(1).x.dtype.kind == "i":
        tables = [t for t in model.layers.values() if isinstance(t, ost.nn.Embedding)]
        return min(t.num_embeddings for t in tables)
    return model.num_embeddings if isinstance(model, ost.nn.Embedding) else None


@contextlib.asynccontextmanager
async def serving(
    stream: Any, limits: Limits, ids: int | None = None, **listen: Any
) -> AsyncIterator[Server]:
    """Serve a stream for the length of an ``async with`` block.

    Args:
        stream: as for a `Batcher`, with ``limits.slots`` slots.
        limits: what a client may do.
        ids: how many numbers an Embedding at the front takes; None where x are no such numbers.
        **listen: ``host`` and ``port``, or what else `asyncio.loop.create_server` takes.

    Yields:
        The server; its ``port`` is the one that it has.
    """
    form = Form(stream.x, ids, limits.rows)
    server = Server(stream, form, limits)
    options = {
        "compression": None,  # numbers hardly shrink, and its tables take memory for every stream
        "max_queue": limits.queue,
        "max_size": max(4096, limits.rows * 32 * math.prod(form.row)),  # 32: a number in JSON
        "backlog": 1024,
        "process_request": server.status,
    }
    tasks = [asyncio.create_task(server.batcher.serve()), asyncio.create_task(server.sweep())]
    try:
        async with serve(server.client, **options, **listen) as listener:
            server.port = next(iter(listener.sockets)).getsockname()[1]
            yield server
            await server.drain()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(
    model: Any, limits: Limits, ready: Any, parent: Connection | None, listen: Any
) -> None:
    """Serve a model until a signal comes, or until the process that started this one is gone."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if parent is not None:
        loop.add_reader(parent.fileno(), stop.set)
    async with serving(model.stream(limits.slots), limits, ids_of(model), **listen) as server:
        ready(server.port)
        await stop.wait()


def work(path: str, limits: Limits, core: int, parent: Connection, listen: dict[str, Any]) -> None:
    """Serve in a process of its own, on one core."""
    os.sched_setaffinity(0, {core})
    ost.set_num_threads(1)
    asyncio.run(run(ost.load(path), limits, parent.send, parent, listen))


def free_port(host: str, port: int) -> int:
    """Return the port for processes to share, a free one for 0.

    Processes that share a port do not notice another server that shares it too: it is bound alone
    first, which fails where somebody has it.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        return int(alone.getsockname()[1])


class Workers:
    """Processes that share a port, one a core; one that ends by itself is replaced.

    Each ends when its pipe to this process does, for whatever reason.
    """

    def __init__(self, path: str, limits: Limits, listen: dict[str, Any]) -> None:
        self.given = path, limits
        self.listen = listen
        self.context = multiprocessing.get_context("spawn")
        self.alive: dict[int, tuple[Any, Connection, int]] = {}  # by sentinel

    def start(self, cores: Iterable[int]) -> None:
        """Start a process for each core, and wait until all of them serve."""
        made = [self.launch(core) for core in cores]
        for process, ours in made:
            try:
                ours.recv()
            except EOFError:
                process.join()
                code = process.exitcode
                raise SystemExit(f"a process ended before it served, with {code}") from None

    def launch(self, core: int) -> tuple[Any, Connection]:
        """Start a process; return it and the pipe by which it says that it serves."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(*self.given, core, theirs, self.listen))
        process.start()
        theirs.close()
        self.alive[process.sentinel] = process, ours, core
        return process, ours

    def watch(self, signals: socket.socket) -> None:
        """Replace processes that end, until a signal comes."""
        while signals not in (ended := wait([signals, *self.alive])):
            for sentinel in ended:
                process, ours, core = self.alive.pop(sentinel)
                process.join()
                ours.close()
                print(f"a process ended with {process.exitcode}: another one starts", flush=True)
                self.start([core])

    def stop(self) -> None:
        """End the processes, which answer what they have taken."""
        for _, ours, _ in self.alive.values():
            ours.close()
        for process, _, _ in self.alive.values():
            process.join(2 * DRAIN + 10)
            if process.exitcode is None:
                process.kill()
                process.join()


def share(path: str, limits: Limits, processes: int, host: str, port: int) -> None:
    """Serve with several processes, until a signal comes."""
    cores = sorted(os.sched_getaffinity(0))
    workers = Workers(path, limits, {"host": host, "port": port, "reuse_port": True})
    signals, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # what wakes is the number, sent to `signals`
    try:
        workers.start(cores[k % len(cores)] for k in range(processes))
        print(f"serving on ws://{host}:{port}: {processes} x {limits.slots} slots", flush=True)
        workers.watch(signals)
    finally:
        workers.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description="Serve a recurrent model over websockets.")
    parser.add_argument("model", help="a file that model.save(path) wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="0: a free one")
    parser.add_argument("--slots", type=int, default=1000, help="streams of a process")
    parser.add_argument("--queue", type=int, default=8, help="messages of a client that wait")
    parser.add_argument("--rows", type=int, default=256, help="rows of one message, at most")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds; 0: clients may be silent")
    parser.add_argument("--processes", type=int, default=1, help="that share the port, one a core")
    a = parser.parse_args(arguments)
    if a.processes < 1:
        raise SystemExit(f"serve: --processes: expected at least 1, got {a.processes}")
    if not 0 <= a.port < 1 << 16:  # the system may take the rest of a division by that
        raise SystemExit(f"serve: --port: expected 0 to 65535, got {a.port}")
    try:
        limits = Limits(a.slots, a.queue, a.rows, a.idle)
        model = ost.load(a.model)
        model.stream(1)  # which says why a model has none
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise SystemExit(f"serve: {error}") from None
    try:
        if a.processes > 1:
            share(a.model, limits, a.processes, a.host, free_port(a.host, a.port))
        else:
            said = f"serving on ws://{a.host}:%d: {a.slots} slots"
            listen = {"host": a.host, "port": a.port}
            asyncio.run(
                run(model, limits, lambda port: print(said % port, flush=True), None, listen)
            )
    except MemoryError:
        raise SystemExit(f"serve: slots: expected as many as memory holds, got {a.slots}") from None
    except OSError as error:
        raise SystemExit(f"serve: {a.host}:{a.port}: {error}") from None


if __name__ == "__main__":
    main()
