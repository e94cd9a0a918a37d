"""The planner, over the figures of devices as their runtime tells them."""

from __future__ import annotations

from itertools import product

import pytest

from ostinato._plan import MOST_WAVES, ROOM, GpuFigures, plan, room_for

DEVICES = [
    GpuFigures("A100-SXM4", (8, 0), 108, 166912, 40 << 20),
    GpuFigures("H100-SXM5", (9, 0), 132, 232448, 50 << 20),
    GpuFigures("H200", (9, 0), 132, 232448, 50 << 20),
    GpuFigures("L40S", (8, 9), 142, 101376, 48 << 20),
    GpuFigures("RTX 5090", (12, 0), 170, 101376, 96 << 20),
    GpuFigures("B200", (10, 0), 148, 232448, 126 << 20),
]
LSTM, GRU, BEFORE = [4], [3], [2, 1]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_every_shape_has_a_plan(device: GpuFigures) -> None:
    for products, hidden, batch, word, backward, by_step in product(
        (LSTM, GRU, BEFORE, [1]),
        (1, 32, 33, 64, 65, 128, 129, 4096),
        (1, 8, 9, 1000, 20000),
        (2, 4, 8),
        (False, True),
        (False, True),
    ):
        p = plan(device, products, hidden=hidden, steps=7, batch=batch, word=word, backward=backward, by_step=by_step)
        assert p.reason
        if p.kernel == "loop":
            assert (p.launches, p.blocks) == (1, -(-batch // 8))
            assert hidden <= p.room
            assert p.room * hidden * max(products) * word <= 128 << 10 or hidden < p.room
            assert p.blocks <= MOST_WAVES * device.multiprocessors
            assert not by_step
        elif p.kernel == "stream":
            assert p.room == 0
            assert p.rows in (8, 16, 32)
            assert p.launches == 7 * len(products) + backward
            assert not (backward and by_step)
            assert word < 8
            assert p.blocks * p.rows * (16 if backward else 16 // max(products)) >= hidden * batch
        else:
            assert p.room == p.rows == 0
            assert p.launches == 7 * len(products) * (3 if backward else 1)
            assert p.blocks * (64 // max(products)) * 32 >= hidden * batch


def test_what_is_chosen_and_why() -> None:
    h100 = DEVICES[1]
    sizes = {"steps": 100, "batch": 16}
    small = plan(h100, LSTM, hidden=64, word=4, **sizes)
    assert (small.kernel, small.room, small.blocks, small.launches) == ("loop", 64, 2, 1)
    for products, hidden, word, more, reason in (
        (LSTM, 65, 4, {}, "H = 65 is beyond 64"),
        (LSTM, 129, 2, {}, "H = 129 is beyond 128"),
        (LSTM, 8, 8, {}, "words of 2 and 4 bytes"),
        (BEFORE, 8, 4, {}, "2 phases a step"),
        (LSTM, 8, 4, {"backward": True, "by_step": True}, "the norm of every step's gradient"),
        (LSTM, 8, 4, {"batch": 8 * 132 * MOST_WAVES + 1}, "1057 blocks of 8 rows are 9 waves over 132 multiprocessors"),
    ):
        p = plan(h100, products, hidden=hidden, word=word, **{**sizes, **more})
        assert p.kernel in ("step", "stream")
        assert reason in p.reason


def test_streams() -> None:
    sizes = {"hidden": 512, "steps": 100, "word": 2}
    assert [plan(DEVICES[1], LSTM, batch=b, **sizes).rows for b in (1, 8, 9, 16, 17, 64, 65)] == [
        8,
        8,
        16,
        16,
        32,
        32,
        0,
    ]
    p = plan(DEVICES[1], LSTM, batch=16, **sizes)
    assert (p.kernel, p.blocks, p.launches) == ("stream", 128, 100)
    assert plan(DEVICES[1], LSTM, batch=16, backward=True, **sizes).launches == 101
    assert plan(DEVICES[1], BEFORE, batch=16, backward=True, **sizes).kernel == "step"


def test_room() -> None:
    assert [room_for(LSTM, h, 4) for h in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, 0]
    assert [room_for(GRU, h, 2) for h in (64, 65, 128, 129)] == [64, 128, 128, 0]
    assert room_for(BEFORE, 1, 4) == room_for(LSTM, 1, 8) == 0
    assert set(ROOM) == {2, 4}
