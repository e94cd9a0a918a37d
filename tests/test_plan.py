"""The planner, over the figures of devices as their runtime tells them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from ostinato import _core, _plan
from ostinato._plan import (
    GROUP_ROWS,
    MOST_WAVES,
    REGISTER_CAPACITY,
    GpuFigures,
    GpuPlan,
    Partition,
    partitions_for,
    plan,
    register_capacity_for,
)

DEVICES = [
    GpuFigures("A100-SXM4", (8, 0), 108, 166912, 40 << 20),
    GpuFigures("H100-SXM5", (9, 0), 132, 232448, 50 << 20, clusters=32, pairs=66),
    GpuFigures("H200", (9, 0), 132, 232448, 50 << 20, clusters=30, pairs=66),
    GpuFigures("L40S", (8, 9), 142, 101376, 48 << 20),
    GpuFigures("RTX 5090", (12, 0), 170, 101376, 96 << 20),
    GpuFigures("B200", (10, 0), 148, 232448, 126 << 20, clusters=36, pairs=74),
]
FEW = GpuFigures("of few multiprocessors", (9, 0), 8, 232448, 4 << 20)
LSTM, GRU, BEFORE = [4], [3], [2, 1]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_every_shape_has_a_plan(device: GpuFigures) -> None:
    kernels = set()
    for products, hidden, batch, word, backward, by_step, split in product(
        (LSTM, GRU, BEFORE, [1]),
        (1, 32, 33, 64, 65, 128, 129, 512, 1000, 4096),
        (1, 8, 9, 64, 1000, 20000),
        (2, 4, 8),
        (False, True),
        (False, True),
        (False, True),
    ):
        sizes = {"hidden": hidden, "steps": 7, "batch": batch, "word": word}
        p = plan(device, products, **sizes, backward=backward, by_step=by_step, split=split)
        kernels.add(p.kernel)
        assert p.reason
        assert p.seconds > 0
        if p.kernel == "loop":
            assert (p.launches, p.blocks) == (1, -(-batch // p.rows))
            assert p.rows in (1, 2, 4, 8)
            assert p.rows == 8 or p.blocks <= device.multiprocessors
            assert p.rows == 1 or -(-batch * 2 // p.rows) > device.multiprocessors
            assert p.loop_split == (split and word == 4)
            assert hidden <= p.register_capacity
            assert (
                p.register_capacity * hidden * max(products) * word <= 128 << 10
                or hidden < p.register_capacity
            )
            assert p.blocks <= MOST_WAVES * device.multiprocessors
            assert not by_step
        elif p.kernel == "persistent":
            check_persistent(p, device, products, hidden, 7, batch, word, backward)
            assert word == 2 or (word == 4 and split)
            assert not by_step
        elif p.kernel == "stream":
            assert p.register_capacity == p.units == 0
            assert p.rows in (8, 16, 32)
            assert p.launches == 7 * len(products) + backward
            assert not (backward and (by_step or word > 2))
            assert word < 8
            assert p.blocks * p.rows * (16 if backward else 16 // max(products)) >= hidden * batch
        else:
            assert p.kernel == "step"
            assert p.register_capacity == p.rows == p.units == 0
            each, units, rows = len(products), 64 // max(products), 32
            if backward:
                each, units = 2 * len(products) + by_step, 64
                if _core.step_slices(word, batch, hidden, hidden * max(products)):
                    rows = 16
                    if len(products) > 1 or by_step:
                        each += len(products)  # the sums of slices
            assert p.launches == 7 * each
            assert p.blocks * units * rows >= hidden * batch
    assert kernels == {"loop", "persistent", "stream", "step"}


def check_persistent(
    p: GpuPlan,
    device: GpuFigures,
    products: list[int],
    hidden: int,
    steps: int,
    batch: int,
    word: int,
    backward: bool,
) -> None:
    """All blocks have their own multiprocessor, all weights have room, and all units, rows and
    steps have their turn.
    """
    partition = Partition.of(products, hidden, p.units, p.peers, word, backward)
    assert p.blocks == partition.blocks * p.groups <= device.multiprocessors
    assert partition.blocks * p.units >= hidden
    assert partition.blocks * p.units < hidden + p.units * p.peers  # no cluster without units
    for n, depth, outs in zip(products, partition.depth, partition.out_tiles):
        assert depth * 8 * p.peers * 16 >= hidden * (n if backward else 1)
        assert outs * 16 >= p.units * p.peers * (1 if backward else n)
    assert p.peers == 1 or (
        backward and p.blocks <= {2: 2 * device.pairs, 4: 4 * device.clusters}[p.peers]
    )
    assert partition.blocks % p.peers == 0
    # a thread's registers: of 16 x 16 weights of 2 bytes it keeps 16 bytes
    assert (
        sum(
            outs * partition.parts * depth * 4
            for outs, depth in zip(partition.out_tiles, partition.depth)
        )
        <= 128
    )
    assert 1 <= p.span <= steps
    assert p.groups * p.span * partition.step_bytes <= max(
        device.l2_bytes // 4, p.groups * partition.step_bytes
    )
    passes = -(-batch // (p.groups * GROUP_ROWS))
    parts = _core.gradient_parts(steps, batch)
    cuts = [steps * (parts * k // p.chunks) // parts for k in range(p.chunks + 1)]
    assert p.launches == passes * sum(-(-(b - a) // p.span) for a, b in pairwise(cuts))
    if p.chunks > 1:  # the products of one need multiprocessors beside the steps of the next
        assert backward
        assert p.blocks < device.multiprocessors
        assert steps >= parts >= p.chunks
        assert f"the products of {p.chunks} chunks" in p.reason


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_weights_that_many_multiprocessors_share(device: GpuFigures) -> None:
    """The shapes that the persistent kernels are for."""
    chosen, chunks = {}, set()
    for products, hidden, batch, word, backward in product(
        (LSTM, GRU), (256, 512, 768, 1024), (8, 16, 64), (2, 4), (False, True)
    ):
        sizes = {"hidden": hidden, "steps": 1024, "batch": batch, "word": word}
        p = plan(device, products, **sizes, backward=backward, split=True)
        chosen[max(products), hidden, batch, word, backward] = p.kernel
        if p.kernel == "persistent":
            check_persistent(p, device, products, hidden, 1024, batch, word, backward)
            chunks.add(p.chunks)
    assert len(chunks) > 1
    if device.multiprocessors >= 128:
        for (columns, hidden, batch, word, backward), kernel in chosen.items():
            if (
                partitions_for(device, [columns], hidden, word, backward)
                and not backward
                and batch <= 16
            ):
                assert kernel == "persistent", (columns, hidden, batch, word)


def test_what_is_chosen_and_why() -> None:
    h100 = DEVICES[1]
    sizes = {"steps": 100, "batch": 16}
    small = plan(h100, LSTM, hidden=64, word=4, **sizes)
    assert (small.kernel, small.register_capacity, small.launches) == ("loop", 64, 1)
    assert (small.rows, small.blocks) == (1, 16)
    assert "takes 1 row through all steps" in small.reason
    each = [plan(h100, LSTM, hidden=64, word=4, steps=1, batch=b).rows for b in (132, 133, 600)]
    assert each == [1, 2, 8]
    for products, hidden, word, more, reason in (
        (LSTM, 65, 4, {}, "H = 65 is beyond 64"),
        (
            LSTM,
            65,
            4,
            {"split": True, "device": FEW},
            "too few multiprocessors, 8, to share the weights",
        ),
        (
            LSTM,
            2049,
            2,
            {},
            "H = 2049 is beyond 128, where the recurrent weights fill the registers of a "
            "multiprocessor; there is no room",
        ),
        (LSTM, 1100, 2, {}, "too few multiprocessors, 132, to share the weights"),
        (
            LSTM,
            2000,
            4,
            {"split": True},
            "no room for the recurrent weights in those of all multiprocessors either",
        ),
        (LSTM, 512, 2, {"steps": 2}, "to partition them would take longer"),
        (LSTM, 8, 8, {}, "words of 2 and 4 bytes"),
        (BEFORE, 8, 4, {}, "2 phases a step"),
        (LSTM, 8, 4, {"backward": True, "by_step": True}, "the norm of every step's gradient"),
        (
            LSTM,
            8,
            4,
            {"batch": 8 * 132 * MOST_WAVES + 1},
            "1057 blocks of 8 rows are 9 waves over 132 multiprocessors",
        ),
    ):
        p = plan(more.pop("device", h100), products, hidden=hidden, word=word, **{**sizes, **more})
        assert p.kernel in ("step", "stream")
        assert reason in p.reason


def test_pairs_of_blocks_where_clusters_of_four_are_too_few() -> None:
    """An LSTM of 1024 units needs 128 blocks: 32 clusters of four, of which an H200 runs 30."""
    sizes: dict[str, Any] = {"hidden": 1024, "steps": 1024, "batch": 16, "word": 4, "split": True}
    h200 = DEVICES[2]
    p = plan(h200, LSTM, backward=True, **sizes)
    assert (p.kernel, p.units, p.peers, p.blocks) == ("persistent", 8, 2, 128)
    assert "clusters of 2 take in a part of the gradients each" in p.reason
    timed = replace(h200, clock_hz=TABLE["figures"]["clock_hz"])
    rate = timed.multiprocessors * _plan._products_rate(4, True, True) * timed.clock_hz
    products = 4 * 16 * 1024 * 4 * 1024**2 / rate  # W x, dx, dW, dR
    training = sum(plan(timed, LSTM, backward=n, **sizes).seconds for n in (False, True))
    assert training + products < 1024 * 25e-6  # by the model: no device has shown it
    assert plan(replace(h200, pairs=0), LSTM, backward=True, **sizes).kernel == "step"
    assert plan(replace(h200, pairs=63), LSTM, backward=True, **sizes).kernel == "step"


def test_streams() -> None:
    sizes = {"hidden": 512, "steps": 100, "word": 2}
    assert [plan(FEW, LSTM, batch=b, **sizes).rows for b in (1, 8, 9, 16, 17, 64, 65)] == [
        8,
        8,
        16,
        16,
        32,
        32,
        0,
    ]
    p = plan(FEW, LSTM, batch=16, **sizes)
    assert (p.kernel, p.blocks, p.launches) == ("stream", 128, 100)
    assert plan(FEW, LSTM, batch=16, backward=True, **sizes).launches == 101
    sliced = plan(FEW, LSTM, batch=16, backward=True, **sizes | {"word": 4})
    assert (sliced.kernel, sliced.blocks, sliced.launches) == ("step", 128, 200)
    assert plan(FEW, BEFORE, batch=16, backward=True, **sizes).kernel == "step"


def test_register_capacity() -> None:
    assert [register_capacity_for(LSTM, h, 4) for h in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, 0]
    assert [register_capacity_for(GRU, h, 2) for h in (64, 65, 128, 129)] == [64, 128, 128, 0]
    assert register_capacity_for(BEFORE, 1, 4) == register_capacity_for(LSTM, 1, 8) == 0
    assert set(REGISTER_CAPACITY) == {2, 4}


# ---- what a device has shown ----

TABLE = json.loads(
    (
        Path(__file__).parent.parent / "benchmarks/results/2026-11-27-gpu-nvidia-h200-planner.json"
    ).read_text()
)
WITHIN = 1.3  # what a prediction may be away by, as a factor


def recorded() -> GpuFigures:
    """The device of the table, whose library then had no products of words of 2 bytes."""
    figures = {**TABLE["figures"], "capability": tuple(TABLE["figures"]["capability"])}
    return GpuFigures(TABLE["device"], **figures, why_no_words="nobody asked for them yet")


def planned(row: dict[str, Any], backward: bool) -> GpuPlan:
    precision = row["precision"]
    return plan(
        recorded(),
        {"lstm": LSTM, "gru": GRU}[row["cell"]],
        hidden=row["hidden"],
        steps=TABLE["steps"],
        batch=row["batch"],
        word=2 if precision in ("float16", "bfloat16") else 4,
        split=precision == "float32",
        backward=backward,
    )


def name_of(row: dict[str, Any]) -> str:
    names = ("cell", "precision", "batch", "hidden", "pass")
    return "-".join(str(row[n]) for n in names if n in row)


def test_the_model_is_of_the_device_of_the_table() -> None:
    assert TABLE["device"] == _plan.CONFIRMED_BY
    changed = {(k, p) for k, passes in TABLE["changed since"].items() for p in passes}
    assert changed == set(_plan.CHANGED_SINCE)
    assert len(TABLE["recurrence"]) >= 17
    assert len(TABLE["calls"]) >= 16


@pytest.fixture
def then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan as at the commit of the table.

    Its loop kernels took eight rows a block and multiplied float32 exactly, and backward words of 4
    bytes were streamed. The formulas are those of today; constants of kernels that have changed are
    fitted to the table.
    """
    for name, value in TABLE["model then"].items():
        monkeypatch.setattr(_plan, name, tuple(value) if isinstance(value, list) else value)
    loop, rows_for = _plan._loop, _plan.rows_for
    monkeypatch.setattr(_plan, "_loop", lambda d, w, n: loop(d, replace(w, split=False), n))
    monkeypatch.setattr(_plan, "rows_for", lambda *a: rows_for(*a[:3], False, False))


@pytest.mark.usefixtures("then")
@pytest.mark.parametrize("row", TABLE["recurrence"], ids=name_of)
def test_recurrence_takes_what_was_measured(row: dict[str, Any]) -> None:
    p = planned(row, row["pass"] == "backward")
    assert p.kernel == row["kernel"]
    assert 1 / WITHIN < p.seconds / TABLE["steps"] * 1e6 / row["microseconds a step"] < WITHIN


def calls_of(row: dict[str, Any]) -> tuple[tuple[GpuPlan, GpuPlan], float, float]:
    """Return the plans of both passes, and the microseconds of a step in inference and training.

    Nothing but the recurrence was fitted; products are added at the rates of the table.
    """
    device, steps = recorded(), TABLE["steps"]
    word = 2 if row["precision"] != "float32" else 4
    forward, backward = planned(row, False), planned(row, True)
    columns = {"lstm": 4, "gru": 3}[row["cell"]]
    rate = _plan._products_rate(word, forward.library, False)
    work = row["batch"] * columns * row["hidden"] ** 2
    product = work / (rate * device.multiprocessors * device.clock_hz) * 1e6
    inference = forward.seconds / steps * 1e6 + product
    return (forward, backward), inference, inference + backward.seconds / steps * 1e6 + 3 * product


@pytest.mark.usefixtures("then")
@pytest.mark.parametrize("row", TABLE["calls"], ids=name_of)
def test_calls_take_what_was_measured(row: dict[str, Any]) -> None:
    _, inference, training = calls_of(row)
    assert 1 / WITHIN < inference / row["inference"] < WITHIN
    assert 1 / WITHIN < training / row["training"] < WITHIN


@pytest.mark.parametrize("row", TABLE["calls"], ids=name_of)
def test_what_has_changed_since_is_no_slower(row: dict[str, Any]) -> None:
    """Kernels that the table does not describe are named, and where constants are estimates of them
    the planner expects less than the table has.
    """
    (forward, backward), inference, training = calls_of(row)
    passes = (forward, inference, "inference"), (backward, training, "training")
    for (p, said, name), which in zip(passes, ("forward", "backward")):
        kind = (p.kernel, which)
        assert kind in _plan.CHANGED_SINCE
        if kind in _plan.ESTIMATES:
            assert row[name] / 6 < said < row[name]


def test_rates_of_products_are_those_of_the_table() -> None:
    rates, device = TABLE["rates"], recorded()
    each = 2 * device.multiprocessors * device.clock_hz / 1e12
    low, high = rates["our own products of words of 2 bytes, TFLOP/s"]
    assert low <= _plan.TILES * each <= high
    low, high = rates["float32 matmul of CuPy, TFLOP/s"]
    assert low <= _plan.LIBRARY * each <= high
    shown = [
        2e-9 * p["rows"] * p["depth"] * p["columns"] / p["milliseconds"] for p in TABLE["products"]
    ]
    assert min(shown) <= _plan.LIBRARY_WORDS * each <= max(shown)


@pytest.mark.usefixtures("then")
def test_the_loop_kernel_takes_the_cycles_of_the_table() -> None:
    sizes = {"hidden": 64, "steps": 1, "batch": 16, "word": 4}
    cycles = plan(recorded(), LSTM, **sizes).seconds * recorded().clock_hz
    shown = TABLE["rates"]["loop kernel, float32, H=64, B=16, cycles a step"]
    assert 1 / WITHIN < cycles / shown < WITHIN


def test_chunks_beside_the_steps() -> None:
    """Four gained on the device of the table, and eight lost where the library multiplies."""
    sizes: dict[str, Any] = {"steps": 1024, "batch": 16, "backward": True, "split": True}
    for hidden, word in product((256, 512, 768), (2, 4)):
        device = GpuFigures("H200", (9, 0), 132, 232448, 50 << 20, 1.98e9, clusters=30)
        p = plan(device, LSTM, hidden=hidden, word=word, **sizes)
        assert p.library
        assert p.chunks <= 4
