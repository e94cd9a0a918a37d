"""Which kernels run a layer on a GPU: a function of shapes and of the device's figures, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

ROWS = 8  # of the batch, that a block of the "loop" kernels takes: csrc/cuda/engine.h
ROOM = {4: (32, 64), 2: (64, 128)}  # hidden units, by bytes of a word: csrc/cuda/plan.h
LIBRARY_ROWS = (
    512  # (t, b) of a call: for fewer a launch more costs what a better product gains (an estimate)
)
STREAM_ROWS = 64  # rows of the batch: beyond, tiles read less (an estimate: to be measured)
MOST_WAVES = 8  # of blocks of which each takes all steps; beyond, whole steps fill the device better (an estimate: to be measured)

# Of the "persistent" kernels: csrc/cuda/persistent.h.
GROUP_ROWS = 16  # of the batch
FRAGMENTS = 32  # of 16 x 16 weights, that a warp keeps
WARPS = 8
TILE_BYTES = 512  # of a part of 16 inputs for the rows of a group, as they are sent
PEERS = 4  # blocks of a cluster
PORTIONS = (1, 2, 4, 8)  # of a backward pass
WORTH = 0.95  # of the time of products after the steps: less is not worth the waits at the borders of portions (an estimate)
PART_ROWS = 256  # (t, b) of a part of the gradients' sums, at least, of which there are at most 8: csrc/cuda/backward.h

# What a step takes, in cycles. Estimates from published figures, until benchmarks/gpu.py has measured them.
EXCHANGE = 900.0  # from one multiprocessor to the others by way of the L2 cache
CLUSTER = 350.0  # sums to the peers of a cluster, and their meeting
CELL = 500.0  # sums of all warps, the cell, two meetings of a block
L2_BYTES = 34.6  # a cycle, of a multiprocessor
MMA = 6.5  # of a quarter of a multiprocessor, m16n8k16
FMA = 128.0  # a cycle, of a multiprocessor
TILES, TILES_EXACT, TILES_DOUBLE = (
    FMA * 4,
    FMA / 3,
    FMA / 6,
)  # of products of our own, by words of 2, 4 and 8 bytes
LIBRARY = FMA * 0.8  # of the array library's, of floats
LAUNCH = 2.4e-6  # seconds, of a kernel that follows another one in a recorded graph
START = 8e-6  # seconds, of a launch that shares the weights out: its empty mailbox, and the weights on their way to the registers


@dataclass(frozen=True)
class GpuFigures:
    """Of a device, as its runtime tells them; ``library``: whether its array library has found a product (cuBLAS)."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # that a block can have
    l2_bytes: int
    clock_hz: float = 1.5e9
    clusters: int = (
        0  # of `PEERS` blocks that write to each other's shared memory, at the same time
    )
    library: bool = True


@dataclass(frozen=True)
class GpuPlan:
    """How one layer and direction is run in one pass.

    Attributes:
        kernel: "loop": one launch, in which every block takes some rows of the batch through all steps, with the recurrent weights in the
            registers of its multiprocessor; "persistent": all steps in few launches, with the weights in the registers of many
            multiprocessors, which send each other what a step needs; "stream" and "step": every step and phase is a launch, of blocks that
            each read their share of the weights for all rows at once, or that go along the product tile by tile.
        blocks: of the launch, or of a step.
        launches: of the recurrence.
        library: whether the products of all steps at once (W x; dx, dW, dR) are the array library's, which opens cuBLAS, or our own.
        reason: why.
        room: hidden units that a "loop" kernel is compiled for, or 0.
        rows: of the batch, that a block of a "stream" kernel takes, or 0.
        units: hidden units of a block of a "persistent" kernel, or 0.
        peers: such blocks that write to each other's shared memory, in the backward pass; 1: none.
        groups: of such blocks in a launch, each with `GROUP_ROWS` rows of the batch.
        span: steps of such a launch.
        together: 2: both directions go in the same launches, or with `wave` two layers.
        wave: whether they are layers.
        portions: of a backward pass: while the steps of one are run, the products of the one before (dx, dW, dR) run beside them, on the
            multiprocessors that are free.
        seconds: what the recurrence, of both if they go together, takes by the model of this module: an estimate, which no run of our
            kernels has confirmed yet.
    """

    kernel: str
    blocks: int
    launches: int
    library: bool
    reason: str
    room: int = 0
    rows: int = 0
    units: int = 0
    peers: int = 1
    groups: int = 0
    span: int = 0
    together: int = 1
    wave: bool = False
    portions: int = 1
    seconds: float = 0.0


def room_for(products: list[int], hidden: int, word: int) -> int:
    """Return the hidden units of the least "loop" kernel that has room for so many; 0: none has."""
    return next((n for n in ROOM.get(word, ()) if hidden <= n), 0) if len(products) == 1 else 0


def rows_for(products: list[int], batch: int, word: int, backward: bool, by_step: bool) -> int:
    """Return the rows of a block that streams the weights; 0: tiles."""
    if word == 8 or batch > STREAM_ROWS or (backward and (len(products) > 1 or by_step)):
        return 0
    return next(n for n in (8, 16, 32) if batch <= n or n == 32)


@dataclass(frozen=True)
class Share:
    """What the blocks of a "persistent" kernel keep and send.

    Attributes:
        units: hidden units of a block.
        peers: blocks that take in a share of the inputs each, for the outputs of all of them.
        parts: of an operand: 2 where a float goes as two words of 2 bytes.
        blocks: of a group.
        out_tiles: of 16 outputs, of a block and its peers; this and what follows by the phases of a step.
        tiles: of 16 inputs that a group sends.
        depth: of all that a block takes in, those of a warp.
        room: for so many of them.
    """

    units: int
    peers: int
    parts: int
    blocks: int
    out_tiles: tuple[int, ...]
    tiles: tuple[int, ...]
    depth: tuple[int, ...]
    room: tuple[int, ...]

    @classmethod
    def of(
        cls,
        columns: list[int],
        hidden: int,
        units: int,
        peers: int,
        parts: int,
        backward: bool,
        follows: bool = False,
    ) -> Share:
        """``columns``: of a unit that the product of each phase feeds; ``follows``: what another layer sends is taken in as well."""
        together = max(16, units * peers)  # whole tiles of hidden units
        whole = -(-hidden // together) * together
        tiles = tuple(whole // 16 * (n if backward else 1) for n in columns)
        outs = tuple(-(-units * peers * (1 if backward else n) // 16) for n in columns)
        depth = tuple(-(-n * (1 + follows) // (WARPS * peers)) for n in tiles)
        if backward:
            room = [FRAGMENTS * n // (parts * outs[0] * sum(columns)) for n in columns]
        else:
            room = [FRAGMENTS // (parts * sum(outs))] * len(columns)
        return cls(units, peers, parts, whole // units, outs, tiles, depth, tuple(room))

    @property
    def fits(self) -> bool:
        """Whether there is room for the weights."""
        return all(n <= room for n, room in zip(self.depth, self.room))

    @property
    def step_bytes(self) -> int:
        """Of what a group sends at a step: every phase has room for the one that sends most."""
        return len(self.tiles) * max(self.tiles) * self.parts * TILE_BYTES

    @property
    def weight_bytes(self) -> tuple[int, ...]:
        """Of the weights of all blocks, as fragments, by phases."""
        return tuple(
            self.blocks * self.parts * n * d * WARPS * 512
            for n, d in zip(self.out_tiles, self.depth)
        )

    def cycles(self, rows: int) -> float:
        """Of a step, by the model."""
        row_tiles = -(-min(rows, GROUP_ROWS) // 8)
        products = 1 if self.parts == 1 else 3
        matrix = (
            sum(d * n for d, n in zip(self.depth, self.out_tiles))
            * row_tiles
            * products
            * MMA
            * WARPS
            / 4
        )
        taken = (
            sum(self.depth) * WARPS * self.parts * TILE_BYTES
        )  # by a block, of the peers' shares one
        reading = taken * row_tiles / (GROUP_ROWS / 8) / L2_BYTES
        each = EXCHANGE + CELL + (CLUSTER if self.peers > 1 else 0.0)
        return len(self.depth) * each + reading + matrix


def shares_for(
    device: GpuFigures,
    columns: list[int],
    hidden: int,
    word: int,
    backward: bool,
    follows: bool = False,
) -> list[Share]:
    """Those that there are kernels for and whose weights have room."""
    parts = 2 if word == 4 else 1
    kinds = [(8, 1)] if parts == 2 else [(8, 1), (16, 1)]
    if backward:
        kinds = [(16, 1)] + ([(16 // parts, PEERS)] if device.clusters else [])
    return [
        s
        for s in (Share.of(columns, hidden, *kind, parts, backward, follows) for kind in kinds)
        if s.fits
    ]


def most_groups(device: GpuFigures, share: Share) -> int:
    """That run at the same time."""
    return (device.multiprocessors if share.peers == 1 else device.clusters * PEERS) // share.blocks


def plan(
    device: GpuFigures,
    products: list[int],
    *,
    hidden: int,
    steps: int,
    batch: int,
    word: int,
    inputs: int = 0,
    split: bool = False,
    backward: bool = False,
    by_step: bool = False,
    together: int = 1,
    wave: int = 0,
) -> GpuPlan:
    """Return the plan of one pass over one layer and direction.

    Args:
        products: of each phase of the cell's step, the columns of a unit that its recurrent product feeds.
        word: bytes of an operand: 2, 4 or 8.
        inputs: of the layer; 0: as many as hidden units.
        split: whether an operand of 4 bytes may go as two words of 2 bytes.
        backward: of the backward pass.
        by_step: something is asked for after every step, which needs all units of a row: the norm of a gradient.
        together: 2: whether two such passes may share launches, as the plan then says.
        wave: those two are layers: the columns of a pre-activation; 0: they are two directions.
    """
    library = device.library and word >= 4 and steps * batch >= LIBRARY_ROWS
    by_itself = _stepwise(device, products, hidden, steps, batch, word, backward, by_step)

    def step(reason: str) -> GpuPlan:
        if by_itself.kernel == "step" and word < 8 and batch > STREAM_ROWS:
            reason += f"; B = {batch} is more than the {STREAM_ROWS} rows for which blocks stream the weights"
        return replace(by_itself, library=library, reason=reason)

    if word == 8:
        return step("the registers of a multiprocessor are kept for words of 2 and 4 bytes")
    if by_step:
        return step("the norm of every step's gradient is asked for")
    room, blocks = room_for(products, hidden, word), -(-batch // ROWS)
    waves = -(-blocks // device.multiprocessors)
    if room and waves <= MOST_WAVES:
        work = products[0] * room * room * ROWS / FMA
        cycles = CELL + (work if word == 4 else work / 16)
        reason = (
            f"the recurrent weights fit the registers of a multiprocessor (H = {hidden} of {room})"
        )
        return GpuPlan(
            "loop",
            blocks,
            1,
            library,
            reason,
            room=room,
            seconds=waves * steps * cycles / device.clock_hz,
        )
    if room:
        why = f"{blocks} blocks of {ROWS} rows are {waves} waves over {device.multiprocessors} multiprocessors, more than {MOST_WAVES}"
    elif len(products) > 1:
        why = f"the cell takes {len(products)} phases a step, and each needs all hidden units of the one before"
    else:
        why = f"H = {hidden} is beyond {ROOM[word][-1]}, where the recurrent weights fill the registers of a multiprocessor"
    if word == 4 and not split:
        return step(
            f"{why}; where many multiprocessors share the weights, products are of words of 2 bytes"
        )
    shares = shares_for(device, products, hidden, word, backward)
    if not shares:
        return step(
            f"{why}; there is no room for the recurrent weights in those of all multiprocessors either"
        )
    shares = [s for s in shares if most_groups(device, s)]
    if not shares:
        return step(
            f"{why}; there are too few multiprocessors, {device.multiprocessors}, to share the weights"
        )
    kinds = [(s, 1) for s in shares]
    if together == 2:
        alone = wave and len(products) > 1  # there are no kernels for two layers of more phases
        pairs = (
            []
            if alone
            else shares_for(device, [wave], hidden, word, backward, True)
            if wave
            else shares
        )
        kinds += [(s, 2) for s in pairs if most_groups(device, s) >= 2]

    def of(kind: tuple[Share, int], portions: int = 1) -> GpuPlan:
        return _persistent(
            device, kind[0], steps, batch, kind[1], kind[1] > 1 and wave > 0, portions
        )

    best = min(kinds, key=lambda kind: of(kind).seconds / kind[1])
    times = of(best).seconds / best[1] / max(by_itself.seconds, 1e-12)
    if times >= 1:
        return step(
            f"{why}; to share them out would take longer, by the model {times:.2g} times as long"
        )
    if not backward:
        return replace(of(best), library=library)
    # dW, dR and dx: of layers that go together the lower one's, of directions both, the second added to the whole first
    width, dx = inputs or hidden, 1 if wave else best[1]
    each = [best[1] * (width + hidden), dx * width]
    work, late = (
        sum(products) * hidden * sum(each) * steps * batch,
        each[1] / sum(each) if dx > 1 else 0.0,
    )
    rate = (
        device.multiprocessors
        * device.clock_hz
        * {2: TILES, 4: LIBRARY if library else TILES_EXACT}[word]
    )
    parts = parts_of(steps, batch)
    cuts = [of(best, n) for n in PORTIONS if n == 1 or n <= parts <= steps]
    seconds = [_with_products(device, p, work / rate, late) for p in cuts]
    least = min(range(len(cuts)), key=seconds.__getitem__)
    return replace(cuts[least if seconds[least] < WORTH * seconds[0] else 0], library=library)


def _stepwise(
    device: GpuFigures,
    products: list[int],
    hidden: int,
    steps: int,
    batch: int,
    word: int,
    backward: bool,
    by_step: bool,
) -> GpuPlan:
    """Return a launch a step and phase."""
    rate, weights = device.multiprocessors * device.clock_hz, hidden * hidden * sum(products)
    tiles = {2: TILES, 4: TILES_EXACT, 8: TILES_DOUBLE}[word]  # they have no pipeline
    work = steps * batch * weights / tiles / rate
    rows = rows_for(products, batch, word, backward, by_step)
    if rows:
        units, times = (16 if backward else 16 // max(products)), -(-batch // rows)
        launches, blocks = len(products) * steps + backward, -(-hidden // units) * times
        reading = steps * times * weights * word / (L2_BYTES * rate)
        return GpuPlan(
            "stream",
            blocks,
            launches,
            False,
            "",
            rows=rows,
            seconds=launches * LAUNCH + max(reading, work),
        )
    tile_m, tile_n = 32, 64  # csrc/cuda/product.h
    blocks = -(-hidden // (tile_n // max(products))) * -(-batch // tile_m)
    launches = len(products) * (3 if backward else 1) * steps
    return GpuPlan("step", blocks, launches, False, "", seconds=launches * LAUNCH + work)


def parts_of(steps: int, batch: int) -> int:
    """Of the sums of gradients."""
    return max(1, min(8, steps * batch // PART_ROWS))


def portions_of(steps: int, batch: int, portions: int) -> list[tuple[int, int]]:
    """Steps of each portion of a backward pass: whole parts."""
    parts = parts_of(steps, batch)
    cuts = [steps * (parts * k // portions) // parts for k in range(portions + 1)]
    return list(pairwise(cuts))


def _persistent(
    device: GpuFigures,
    share: Share,
    steps: int,
    batch: int,
    together: int,
    wave: bool,
    portions: int = 1,
) -> GpuPlan:
    wanted = max(1, -(-batch // GROUP_ROWS))
    groups = min(wanted, most_groups(device, share) // together)
    passes = -(-wanted // groups)
    each = [b - a for a, b in portions_of(steps, batch, portions)]
    span = max(1, min(max(each), device.l2_bytes // 4 // (together * groups * share.step_bytes)))
    launches = passes * sum(-(-n // span) for n in each)
    seconds = (
        launches * START
        + (passes * steps + wave * launches) * share.cycles(batch) / device.clock_hz
    )
    reason = (
        f"{share.blocks} multiprocessors have room for the recurrent weights, {share.units} units each; "
        f"{groups} such group{'s' * (groups > 1)} of {GROUP_ROWS} rows at a time"
        + (
            f"; clusters of {share.peers} take in a share of the gradients each"
            if share.peers > 1
            else ""
        )
        + ("; two layers, one a step behind the other, in the same launches" if wave else "")
        + ("; both directions in the same launches" if together > 1 and not wave else "")
        + (
            f"; the products of {portions} portions of the steps beside those that follow"
            if portions > 1
            else ""
        )
    )
    blocks = share.blocks * groups * together
    return GpuPlan(
        "persistent", blocks, launches, False, reason, units=share.units, peers=share.peers, groups=groups, span=span,
        together=together, wave=wave, portions=portions, seconds=seconds,
    )  # fmt: skip


def _with_products(device: GpuFigures, planned: GpuPlan, products: float, late: float) -> float:
    """Seconds of a backward pass with its products, which take so many on the whole device: from the end of the first portion on they have
    what is free of it, and after the last one all of it. ``late``: of the products, those that wait for it."""
    n, free = planned.portions, 1 - planned.blocks / device.multiprocessors
    beside = planned.seconds * (1 - 1 / n) * free
    return planned.seconds + max(products * (late + (1 - late) / n), products - beside)
