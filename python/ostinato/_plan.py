"""Which kernels run a layer on a GPU: a function of shapes and of the device's figures, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 8  # of the batch, that a block of the "loop" kernels takes: csrc/cuda/engine.h
ROOM = {4: (32, 64), 2: (64, 128)}  # hidden units, by bytes of a word: csrc/cuda/plan.h
LIBRARY_ROWS = 512  # (t, b) of a call: for fewer a launch more costs what a better product gains (an estimate)
STREAM_ROWS = 64  # rows of the batch: beyond, tiles read less (an estimate: to be measured)
MOST_WAVES = 8  # of blocks of which each takes all steps; beyond, whole steps fill the device better (an estimate: to be measured)


@dataclass(frozen=True)
class GpuFigures:
    """Of a device, as its runtime tells them; ``library``: whether its array library has found a product (cuBLAS)."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # that a block can have
    l2_bytes: int
    library: bool = True


@dataclass(frozen=True)
class GpuPlan:
    """How one layer and direction is run in one pass.

    Attributes:
        kernel: "loop": one launch, in which every block takes some rows of the batch through all steps, with the recurrent weights in the
            registers of its multiprocessor; "stream" and "step": every step and phase is a launch, of blocks that each read their share of
            the weights for all rows at once, or that go along the product tile by tile.
        room: hidden units that a "loop" kernel is compiled for, or 0.
        rows: of the batch, that a block of a "stream" kernel takes, or 0.
        blocks: of the launch, or of a step.
        launches: of the recurrence.
        library: whether the products of all steps at once (W x; dx, dW, dR) are the array library's, which opens cuBLAS, or our own.
        reason: why.
    """

    kernel: str
    room: int
    rows: int
    blocks: int
    launches: int
    library: bool
    reason: str


def room_for(products: list[int], hidden: int, word: int) -> int:
    """The hidden units of the least "loop" kernel that has room for so many; 0: none has."""
    return next((n for n in ROOM.get(word, ()) if hidden <= n), 0) if len(products) == 1 else 0


def rows_for(products: list[int], batch: int, word: int, backward: bool, by_step: bool) -> int:
    """The rows of a block that streams the weights; 0: tiles."""
    if word == 8 or batch > STREAM_ROWS or (backward and (len(products) > 1 or by_step)):
        return 0
    return next(n for n in (8, 16, 32) if batch <= n or n == 32)


def plan(
    device: GpuFigures,
    products: list[int],
    *,
    hidden: int,
    steps: int,
    batch: int,
    word: int,
    backward: bool = False,
    by_step: bool = False,
) -> GpuPlan:
    """The plan of one pass over one layer and direction.

    Args:
        products: of each phase of the cell's step, the columns of a unit that its recurrent product feeds.
        word: bytes of an operand: 2, 4 or 8.
        backward: of the backward pass.
        by_step: something is asked for after every step, which needs all units of a row: the norm of a gradient.
    """
    tile_m, tile_n = 32, 64  # csrc/cuda/product.h
    units = tile_n // max(products)
    stepwise = -(-hidden // units) * -(-batch // tile_m)
    blocks = -(-batch // ROWS)
    waves = -(-blocks // device.multiprocessors)
    room = room_for(products, hidden, word)

    library = device.library and word >= 4 and steps * batch >= LIBRARY_ROWS

    def step(reason: str) -> GpuPlan:
        rows = rows_for(products, batch, word, backward, by_step)
        if rows:
            units = 16 if backward else 16 // max(products)
            streams = -(-hidden // units) * -(-batch // rows)
            return GpuPlan("stream", 0, rows, streams, len(products) * steps + backward, library, reason)
        if word < 8 and batch > STREAM_ROWS:
            reason += f"; B = {batch} is more than the {STREAM_ROWS} rows for which blocks stream the weights"
        return GpuPlan("step", 0, 0, stepwise, len(products) * (3 if backward else 1) * steps, library, reason)

    if len(products) > 1:
        return step(f"the cell takes {len(products)} phases a step, and each needs all hidden units of the one before")
    if not room:
        limit = ROOM.get(word, (0,))[-1]
        if not limit:
            return step("the registers of a multiprocessor are kept for words of 2 and 4 bytes")
        return step(
            f"H = {hidden} is beyond {limit}, where the recurrent weights fill the registers of a multiprocessor"
        )
    if by_step:
        return step("the norm of every step's gradient is asked for")
    if waves > MOST_WAVES:
        return step(
            f"{blocks} blocks of {ROWS} rows are {waves} waves over {device.multiprocessors} multiprocessors, more than {MOST_WAVES}"
        )
    reason = f"the recurrent weights fit the registers of a multiprocessor (H = {hidden} of {room})"
    return GpuPlan("loop", room, 0, blocks, 1, library, reason)
