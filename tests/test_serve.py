"""The example of a server: its streams are the model's, whatever the others send."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost

pytest.importorskip("websockets.asyncio.client", reason="pip install 'ostinato[serve]'")

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "serve.py"


def imported(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where its dataclasses look themselves up
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def module() -> Any:
    return imported(SCRIPT, "serve")


def model_of_rows() -> Any:
    return ost.nn.Sequential(ost.nn.LSTM(3, 9, 2, rng=0), ost.nn.Linear(9, 2, rng=1))


def model_of_ids() -> Any:
    return ost.nn.Sequential(
        ost.nn.Embedding(11, 4, rng=0), ost.nn.GRU(4, 7, rng=1), ost.nn.Linear(7, 5, rng=2)
    )


def served(
    module: Any,
    model: Any,
    act: Callable[[Any, str], Awaitable[None]],
    sock: socket.socket | None = None,
    **limits: Any,
) -> None:
    """Run what a test does with a server, on a free port."""

    async def run() -> None:
        given = module.Limits(**limits)
        listen = {"sock": sock} if sock else {"host": "127.0.0.1", "port": 0}
        stream = model.stream(given.slots)
        async with module.serving(stream, given, module.ids_of(model), **listen) as server:
            await act(server, f"ws://127.0.0.1:{server.port}")

    finish(run())


def finish(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, and close the connections that it has left."""

    async def run() -> None:
        try:
            await asyncio.wait_for(test, 60)
        finally:
            await asyncio.gather(*(connection.close() for connection in opened))
            opened.clear()

    asyncio.run(run())


opened: list[Any] = []


async def joined(address: str) -> tuple[Any, dict[str, Any]]:
    """Connect; return the connection and the first message."""
    connection = await connect(address, compression=None)
    opened.append(connection)
    return connection, json.loads(await connection.recv())


async def asked(connection: Any, message: str | bytes) -> Any:
    await connection.send(message)
    return await connection.recv()


def test_twenty_streams_are_the_model(module: Any) -> None:
    """They join, send pieces of any length and of both forms, begin anew, leave and rejoin."""
    model, rng = model_of_rows(), np.random.default_rng(0)
    x = rng.standard_normal((30, 20, 3)).astype(np.float32)
    whole = model(x)[0]

    async def one(address: str, k: int, seed: int) -> int:
        r = np.random.default_rng(seed)
        connection, form = await joined(address)
        for _ in range(2):
            t = 0
            while t < len(x):
                rows = x[t : t + r.integers(1, 6), k]
                if r.random() < 0.5:
                    got = await asked(connection, rows.astype("<f4").tobytes())
                    y = np.frombuffer(got, "<f4").reshape(-1, 2)
                else:
                    got = json.loads(await asked(connection, json.dumps({"x": rows.tolist()})))
                    y = np.array(got["y"], np.float32)
                assert np.array_equal(y, whole[t : t + len(rows), k])
                t += len(rows)
                if r.random() < 0.2:
                    assert "error" in json.loads(await asked(connection, b"\0" * 7))
            assert json.loads(await asked(connection, '{"reset": true}')) == {"reset": True}
        await connection.close()
        return int(form["slot"])

    async def act(server: Any, address: str) -> None:
        for turn in range(2):  # the second in slots that were used
            slots = await asyncio.gather(*(one(address, k, 100 * turn + k) for k in range(20)))
            assert sorted(slots) == list(range(20))
            while len(server.batcher.free) < 20:
                await asyncio.sleep(0.001)
        assert server.batcher.rows == 2 * 20 * 2 * len(x)
        assert server.batcher.most > 1  # they shared steps
        assert server.batcher.steps < server.batcher.rows

    served(module, model, act, slots=20)


ROWS_REFUSED = [
    (b"", "x: expected rows of 12 bytes"),
    (b"1234567", "got 7 bytes"),
    (np.full(3, np.nan, "<f4").tobytes(), "x: expected finite numbers"),
    (np.ones((9, 3), "<f4").tobytes(), "x: expected 1 to 8 rows, got 9"),
    ("", "message: expected JSON"),
    ("[" * 4000, "message: expected JSON"),
    ('{"x": 1e', "message: expected JSON"),
    ('{"x": ' + "9" * 4000 + "}", "x: expected a list of rows of 3 numbers, got int"),
    ("[1, 2, 3]", "message: expected an object"),
    ("{}", "got the keys -"),
    ('{"x": [[1, 2, 3]], "reset": true}', "got the keys x, reset"),
    ('{"reset": 1}', "got the keys reset"),
    ('{"x": [[1, 2]]}', "x: expected a list of rows of 3 numbers, got shape (1, 2)"),
    ('{"x": [1, 2, 3]}', "got shape (3,)"),
    ('{"x": [[1, 2, 3], [1, 2]]}', "got lists of unequal lengths"),
    ('{"x": [["a", "b", "c"]]}', "got list"),
    ('{"x": [[true, false, true]]}', "got list"),
    ('{"x": [[null, 1, 2]]}', "got list"),
    ('{"x": [[99999999999999999999999, 1, 2]]}', "got list"),
    ('{"x": [[1e39, 0, 0]]}', "x: expected finite numbers"),
    ('{"x": [[Infinity, 0, 0]]}', "x: expected finite numbers"),
    ('{"x": []}', "x: expected a list of rows"),
    ('{"x": 3}', "got shape ()"),
    ('{"x": {"a": 1}}', "got dict"),
]
IDS_REFUSED = [
    (np.array([3, 11], "<i8").tobytes(), "x: expected numbers from 0 to 10, got 11"),
    (np.array([-1], "<i8").tobytes(), "got -1"),
    ('{"x": 3}', "x: expected a list of numbers, got shape ()"),
    ('{"x": []}', "x: expected a list of numbers, got shape (0,)"),
    ('{"x": [0.5]}', "x: expected a list of numbers, got shape (1,)"),
    ('{"x": [[1]]}', "x: expected a list of numbers, got shape (1, 1)"),
    ('{"x": [1, 12]}', "x: expected numbers from 0 to 10, got 12"),
]


@pytest.mark.parametrize("ids", [False, True])
def test_messages_that_are_refused_hurt_nobody(module: Any, ids: bool) -> None:
    model = model_of_ids() if ids else model_of_rows()
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, (60, 2)) if ids else rng.standard_normal((60, 2, 3)).astype("<f4")
    whole = model(x)[0]
    bad = IDS_REFUSED if ids else ROWS_REFUSED

    async def act(server: Any, address: str) -> None:
        (a, form), (b, _) = await joined(address), await joined(address)
        assert form["x"]["ids"] == (11 if ids else None)
        for t in range(len(x)):
            message, words = bad[t % len(bad)]
            wrong, ya = asked(b, message), asked(a, x[t, 0].tobytes())
            error, y = await asyncio.gather(wrong, ya)
            assert words in json.loads(error)["error"], (message[:30], error)
            assert np.array_equal(np.frombuffer(y, "<f4"), whole[t, 0])
            y = await asked(b, x[t, 1].tobytes())  # as if nothing had been
            assert np.array_equal(np.frombuffer(y, "<f4"), whole[t, 1])
        assert server.refused == len(x)
        with pytest.raises(ConnectionClosed) as closed:
            await asked(b, b"\0" * 100_000)
        assert closed.value.rcvd.code == 1009
        assert await asked(a, x[0, 0].tobytes())

    served(module, model, act, slots=2, rows=8)


def test_numbers_out_of_range_of_a_graph_hurt_nobody(module: Any) -> None:
    nodes = [
        {"op": "Embedding", "layer": "table", "inputs": ["i"], "outputs": ["x"]},
        {"op": "Recurrent", "layer": "rnn", "inputs": ["x"], "outputs": ["all"]},
        {"op": "Squeeze", "inputs": ["all"], "outputs": ["y"], "at": {"axes": [1]}},
    ]
    layers = {"table": ost.nn.Embedding(11, 4, rng=0), "rnn": ost.nn.GRU(4, 7, rng=1)}
    given = [{"name": "i", "dtype": "int64", "shape": [None, None]}]
    model = ost.interop.Graph(nodes, layers, inputs=given, outputs=["y"])

    async def act(server: Any, address: str) -> None:
        (a, form), (b, _) = await joined(address), await joined(address)
        assert form["x"]["ids"] == 11
        wrong, right = asked(b, '{"x": [11]}'), asked(a, '{"x": [3]}')
        error, y = map(json.loads, await asyncio.gather(wrong, right))
        assert "x: expected numbers from 0 to 10, got 11" in error["error"]
        np.testing.assert_allclose(y["y"], model(np.array([[3]]))[0], rtol=1e-6)

    served(module, model, act, slots=2)


def test_a_full_server_says_so(module: Any) -> None:
    async def act(server: Any, address: str) -> None:
        first, second = [await joined(address) for _ in range(2)]
        with pytest.raises(ConnectionClosed) as closed:
            await joined(address)
        assert closed.value.rcvd.code == 1013
        assert closed.value.rcvd.reason == "all 2 slots are taken: try again later"
        await first[0].close()
        while not server.batcher.free:
            await asyncio.sleep(0.001)
        again, form = await joined(address)
        assert form["slot"] == first[1]["slot"] != second[1]["slot"]
        facts = await asyncio.to_thread(status, server.port)
        assert (facts["slots"], facts["free"]) == (2, 0)
        await again.close()

    served(module, model_of_rows(), act, slots=2)


def status(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/status")
    return json.loads(connection.getresponse().read())


def small(port: int | None = None) -> socket.socket:
    """Return a socket that the system buffers little for."""
    made = socket.socket()
    for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, which, 4096)
    if port is None:
        made.bind(("127.0.0.1", 0))
    else:
        made.connect(("127.0.0.1", port))
    return made


def test_who_does_not_read_is_kept_from_sending(module: Any) -> None:
    """What was sent is answered in the end, to the bit, and others are served meanwhile."""
    model, rng = model_of_rows(), np.random.default_rng(0)
    x = rng.standard_normal((30000, 1, 3)).astype("<f4")
    pieces = [x[t : t + 100, 0].tobytes() for t in range(0, len(x), 100)]

    async def act(server: Any, address: str) -> None:
        flood = await connect(address, sock=small(server.port), compression=None, max_queue=1)
        opened.append(flood)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for piece in pieces:
                await flood.send(piece)
                sent += 1

        sending = asyncio.create_task(send())
        before, same = 0, 0
        while same < 5 or not before:  # readings
            same = same + 1 if before == server.batcher.rows else 0
            before = server.batcher.rows
            await asyncio.sleep(0.1)
        assert not sending.done()
        assert sent < len(pieces)
        other, _ = await joined(address)
        for t in range(20):
            y = await asked(other, x[t, 0].tobytes())
            assert np.array_equal(np.frombuffer(y, "<f4"), model(x[: t + 1])[0][t, 0])
        assert server.batcher.rows == before + 20
        form = json.loads(await flood.recv())
        assert form["rows"] == 256
        got = b"".join([await flood.recv() for _ in pieces])
        await sending
        assert np.array_equal(np.frombuffer(got, "<f4").reshape(-1, 2), model(x)[0][:, 0])

    served(module, model, act, sock=small(), slots=2, queue=2, buffer=4096)


def test_silence_ends_a_stream(module: Any) -> None:
    async def act(server: Any, address: str) -> None:
        connection, _ = await joined(address)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd.code == 1008
        assert closed.value.rcvd.reason == "no message for 0.2 seconds"

    served(module, model_of_rows(), act, slots=2, idle=0.2)


def test_who_waits_for_an_answer_is_not_silent(module: Any) -> None:
    async def act(server: Any, address: str) -> None:
        connection, _ = await joined(address)
        run = server.batcher.run

        async def slow(slot: int, rows: Any) -> Any:
            await asyncio.sleep(0.5)
            return await run(slot, rows)

        server.batcher.run = slow
        assert len(await asked(connection, np.ones(3, "<f4").tobytes())) == 8
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd.code == 1008

    served(module, model_of_rows(), act, slots=2, idle=0.2)


def test_outputs_that_json_lacks(module: Any) -> None:
    """They are found after the steps, which the stream keeps; bytes have them."""
    model = ost.nn.Sequential(ost.nn.LSTM(3, 9, rng=0), ost.nn.Linear(9, 2, rng=1))
    with model.write() as p:
        p["1.weight"][...] = 3e38
    x = np.random.default_rng(0).standard_normal((40, 1, 3)).astype("<f4") * 3
    with np.errstate(over="ignore"):
        whole = model(x)[0][:, 0]
    bad = ~np.isfinite(whole).all(1)
    assert 0 < bad.sum() < len(x)

    async def act(server: Any, address: str) -> None:
        connection, _ = await joined(address)
        for t in range(len(x)):
            if t % 2:
                y = np.frombuffer(await asked(connection, x[t, 0].tobytes()), "<f4")
                assert np.array_equal(y, whole[t], equal_nan=True)
                continue
            got = json.loads(await asked(connection, json.dumps({"x": x[t].tolist()})))
            if bad[t]:
                assert "y: expected finite numbers" in got["error"]
            else:
                assert np.array_equal(np.array(got["y"][0], np.float32), whole[t])

    served(module, model, act, slots=1)


def test_a_step_that_fails_ends_its_streams(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of_rows()

    async def act(server: Any, address: str) -> None:
        connection, _ = await joined(address)
        with model.write() as p:  # after which no step is right any more
            p["1.bias"][...] = 1
        with pytest.raises(ConnectionClosed) as closed:
            await asked(connection, np.zeros(3, "<f4").tobytes())
        assert closed.value.rcvd.code == 1011
        with pytest.raises(ConnectionClosed) as closed:
            await joined(address)
        assert closed.value.rcvd.code == 1011
        assert len(server.batcher.free) == 2  # no slot is lost

    served(module, model, act, slots=2)
    assert "stream.refresh()" in caplog.text


def test_what_was_taken_is_answered_before_a_server_stops(module: Any) -> None:
    model, x = model_of_rows(), np.ones((200, 1, 3), "<f4")
    ended: list[Any] = []

    async def last(connection: Any) -> None:
        y = np.frombuffer(await asked(connection, x.tobytes()), "<f4").reshape(-1, 2)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        ended.append((closed.value.rcvd.code, np.array_equal(y, model(x)[0][:, 0])))

    async def act(server: Any, address: str) -> None:
        connections = [(await joined(address))[0] for _ in range(3)]
        asking = [asyncio.create_task(last(c)) for c in connections]
        while len(server.batcher.jobs) < 3:
            await asyncio.sleep(0)
        finishing.extend(asking)

    finishing: list[Any] = []

    async def run() -> None:
        limits = module.Limits(slots=3)
        listen = {"host": "127.0.0.1", "port": 0}
        async with module.serving(model.stream(3), limits, **listen) as server:
            await act(server, f"ws://127.0.0.1:{server.port}")
        await asyncio.gather(*finishing)

    finish(run())
    assert ended == [(1001, True)] * 3


def test_the_client_of_the_documentation(module: Any) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "connect(" in c)
    names: dict[str, Any] = {}
    exec(compile(code, "serving.md", "exec"), names)
    model, x = model_of_rows(), np.random.default_rng(0).standard_normal((20, 3))

    async def act(server: Any, address: str) -> None:
        first, _ = await joined(address)  # the only slot
        asking = asyncio.create_task(names["outputs"](address, x))
        await asyncio.sleep(0.05)
        await first.close()
        whole = model(x[:, None].astype(np.float32))[0][:, 0]
        assert np.array_equal(await asking, whole)
        with pytest.raises(ValueError, match="x: expected rows of 12 bytes"):
            await names["outputs"](address, x[:, :2])

    served(module, model, act, slots=1)


def test_processes_share_a_port_and_stop(tmp_path: Path) -> None:
    model = model_of_rows()
    model.save(tmp_path / "m.safetensors")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "m.safetensors"), "--port", "0"]
    command += ["--processes", "2", "--slots", "30"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)  # which leaving the block would wait for
        assert server.stdout is not None
        said = server.stdout.readline()
        port = int(re.fullmatch(r"serving on ws://127.0.0.1:(\d+): 2 x 30 slots\n", said)[1])  # type: ignore[index]

        async def act() -> None:
            x = np.ones((4, 1, 3), "<f4")
            connections = [(await joined(f"ws://127.0.0.1:{port}"))[0] for _ in range(20)]
            for c in connections:
                y = np.frombuffer(await asked(c, x.tobytes()), "<f4").reshape(4, 2)
                assert np.array_equal(y, model(x)[0][:, 0])
            processes = {(await asyncio.to_thread(status, port))["process"] for _ in range(40)}
            assert len(processes) == 2
            os.kill(min(processes), signal.SIGKILL)  # another one takes its place
            said = await asyncio.to_thread(server.stdout.readline)  # type: ignore[union-attr]
            assert said == "a process ended with -9: another one starts\n"
            until = time.monotonic() + 20
            while len(processes) < 3 and time.monotonic() < until:
                try:
                    processes.add((await asyncio.to_thread(status, port))["process"])
                except ConnectionError:
                    await asyncio.sleep(0.05)
            assert len(processes) == 3
            last = await joined(f"ws://127.0.0.1:{port}")
            server.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                await last[0].recv()
            assert closed.value.rcvd.code == 1001

        finish(act())
        assert server.wait(30) == 0


def test_what_cannot_be_served(tmp_path: Path, module: Any) -> None:
    path = str(tmp_path / "m.safetensors")
    with pytest.raises(SystemExit, match=r"serve: .*m\.safetensors"):
        module.main([path])
    ost.nn.GRU(3, 4, bidirectional=True).save(path)
    with pytest.raises(SystemExit, match="serve: stream: expected a layer of one direction"):
        module.main([path])
    model_of_rows().save(path)
    for option, words in (
        ("--slots", "slots: expected at least 1"),
        ("--rows", "rows: expected at least 1"),
        ("--queue", "queue: expected at least 1"),
        ("--processes", "--processes: expected at least 1"),
    ):
        with pytest.raises(SystemExit, match=f"serve: {words}, got 0"):
            module.main([path, option, "0"])
    for port in ("65536", "-1"):  # for two processes it was 0
        for processes in ("1", "2"):
            with pytest.raises(SystemExit, match=f"serve: --port: expected 0 to 65535, got {port}"):
                module.main([path, "--port", port, "--processes", processes])
    with pytest.raises(SystemExit, match="serve: slots: expected as many as memory holds, got 1"):
        module.main([path, "--slots", str(10**13)])
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = str(other.getsockname()[1])
        for processes in ("1", "2"):
            with pytest.raises(SystemExit, match=f"serve: 127.0.0.1:{port}: .*in use"):
                module.main([path, "--port", port, "--processes", processes])


def test_what_a_load_test_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians over the rounds, in units that a reader knows."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = imported(ROOT / "benchmarks" / "serving.py", "serving_benchmark")

    def turn(k: int) -> dict[str, Any]:
        part = {"p50": 0.001 * k, "p99": 0.01 * k}
        closed = {"rows_per_second": 5000.0 * k, "cpu_per_row": 5e-5}
        return {"closed": closed, "open": part, "churn": {"p99": 0.02 * k}, "join_seconds": 0.5}

    names = bench.NAMES
    turns = [{name: turn(k) for name in names} for k in (3, 1, 2)]
    row = {"name": "LSTM", "turns": turns, "bytes_per_stream": dict.fromkeys(names, 18_000)}
    head, *lines = bench.table(row, 1000).splitlines()
    assert head.split()[0] == "LSTM"
    assert [line.split() for line in lines] == [
        [name, "10,000", "20,000", "2.00", "20.00", "40.00", "2,000", "18.0"] for name in names
    ]
