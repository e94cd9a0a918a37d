"""Plan which kernels run a layer on a GPU, from shapes and the device's figures alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from . import _core

# Numbers that kernels are compiled with: csrc/cuda/geometry.h.
CONSTANTS = _core.device_constants()
# Rows of the batch that a block of the "loop" kernels may have.
ROWS: tuple[int, ...] = CONSTANTS["loop_rows"]
# Hidden units that a "loop" kernel is compiled for, by bytes of a word.
REGISTER_CAPACITY: dict[int, tuple[int, ...]] = CONSTANTS["register_capacity"]
GROUP_ROWS: int = CONSTANTS["group_rows"]  # rows of the batch of a group of "persistent" blocks
WARPS: int = CONSTANTS["warps"]  # of a block
STREAM: tuple[int, ...] = CONSTANTS["stream_rows"]  # rows of a block that streams the weights
STREAM_OUTPUTS: int = CONSTANTS["stream_outputs"]  # columns of such a block
TILE: tuple[int, int] = CONSTANTS["tile"]  # rows and columns of the product of a launch a step
# Rows and columns of a block where blocks share the product of a step backward by slices.
SLICE_TILE: tuple[int, int] = CONSTANTS["slice_tile"]
# (t, b) of a call. For fewer, one more launch costs what the better product gains (an estimate).
LIBRARY_ROWS = 512
# Multiply-adds of W x; for more, float32 is split into words of 2 bytes for the products of the
# library. Below, the launches that split them take what is gained (an estimate).
SPLIT_WORK = 1 << 30
STREAM_ROWS = 64  # rows of the batch; for more, tiles read less (an estimate)
# Waves of blocks that each take all steps; beyond, single steps fill the device better (an
# estimate).
MOST_WAVES = 8

CHUNKS = (1, 2, 4, 8)  # chunks of a backward pass
LIBRARY_CHUNKS = 4  # at most, where the library multiplies: eight were slower on an H200
# Chunks must bring the time below this fraction, or the waits at their borders are not worth it
# (an estimate).
WORTH = 0.95
# The model of a step, in cycles. Its constants are fitted to what one H200 has shown
# (`CONFIRMED_BY`; benchmarks/results has the table, which says what it was measured with), but for
# those that are called estimates.
CONFIRMED_BY = "NVIDIA H200"
# Kernels, and their passes, that have changed since: no device has run those of today.
CHANGED_SINCE = (
    ("persistent", "forward"),
    ("persistent", "backward"),
    ("loop", "forward"),
    ("loop", "backward"),
    ("step", "backward"),
)
# Those of them whose constants are estimates. "persistent" kernels have other code for the same
# exchange, and the constants of the ones before.
ESTIMATES = (("loop", "forward"), ("loop", "backward"), ("step", "backward"))
EXCHANGE = 3000.0  # a word from one multiprocessor to the others, and the checks around it
CELL = 1850.0  # sums of all warps, the cell, two barriers of a block
CLUSTER = 1850.0  # sums to the peers of a cluster, and its barrier
RECEIVE = 520.0  # what a warp does for each tile of 16 inputs: addresses, looks, tests
L2_BYTES = 34.6  # bytes a cycle of a multiprocessor
MMA = 6.5  # cycles of one m16n8k16 in a quarter of a multiprocessor
FMA = 128.0  # multiply-adds a cycle of a multiprocessor
# Of a "loop" kernel: a step, and each cell of a thread; backward takes so many times as long
# (estimates).
LOOP, LOOP_CELL, LOOP_BACKWARD = 600.0, 350.0, 1.5
# Of a step backward whose product blocks share: the sums and cells that follow, and each column of
# a slice (estimates).
SLICED, SLICE_COLUMN = 3000.0, 32.0
# Of a launch a step: each input of its product, which blocks take one after the other, by words of
# 2, 4 and 8 bytes (4: measured backward, with kernels like those that run forward; the others are
# estimates).
DEPTH = {2: 16.0, 4: 65.0, 8: 130.0}
# Multiply-adds a cycle of our own products, by words of 2, 4 and 8 bytes (4 and 8: estimates).
TILES, TILES_EXACT, TILES_DOUBLE = 29.0, FMA / 3, FMA / 6
LIBRARY = 88.0  # of the array library's float32 products
LIBRARY_WORDS = 730.0  # of those of words of 2 bytes
LAUNCH = 2.4e-6  # seconds of one more kernel in a recorded graph (an estimate)
# Cycles of a step of a "cluster" kernel, by its capacity and the blocks of a cluster. These are not
# fitted: they are what a prototype of a forward pass took on the device above, of an LSTM in
# float16 and 16 rows. No device has run the kernels of this library. Split words, and backward,
# take so many times as long (estimates).
CLUSTER_STEP = {(64, 2): 1010.0, (128, 4): 1370.0, (256, 8): 2630.0, (256, 16): 1900.0}
CLUSTER_SPLIT, CLUSTER_BACKWARD = 1.3, 1.5
# How much faster the estimate of a "loop" kernel has to be than a figure that comes from what a
# prototype took, before it is preferred.
ESTIMATED = 1.3
# Seconds of a launch that partitions the weights: it clears the exchange buffer and loads the
# weights into registers (an estimate).
START = 8e-6


@dataclass(frozen=True)
class GpuFigures:
    """Figures of a device, as its runtime gives them.

    Attributes:
        name: of the device.
        capability: compute capability, ``(major, minor)``.
        multiprocessors: their number.
        shared_bytes: the most shared memory of a block.
        l2_bytes: of the L2 cache.
        clock_hz: of the multiprocessors.
        clusters: how many clusters of four blocks, which write to each other's shared memory, run
            at the same time.
        pairs: how many clusters of two blocks.
        cluster_fits: for "cluster" kernels: blocks of a cluster, and how many such clusters run at
            the same time; empty where a device has no clusters.
        library: whether its array library has found a product (cuBLAS).
        why_no_words: why that library has no product of words of 2 bytes whose sums are float32
            (`_words.why_not`); "": it has.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int
    clock_hz: float = 1.5e9
    clusters: int = 0
    pairs: int = 0
    library: bool = True
    why_no_words: str = ""
    cluster_fits: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class GpuPlan:
    """How one layer and direction is run in one pass.

    Attributes:
        kernel: "loop": one launch, in which every block takes some rows of the batch through all
            steps, with the recurrent weights in the registers of its multiprocessor; blocks have as
            few rows as there are multiprocessors for. "persistent":
            all steps in few launches, with the weights in the registers of many multiprocessors,
            which exchange what a step needs. "cluster": all steps in one launch, with the weights
            in the registers of the blocks of a cluster, which takes `ROWS` rows of the batch and
            exchanges what a step needs in their shared memory. "stream" and "step": a launch for
            every step and phase, of blocks that each read their part of the weights for all rows at
            once, or that compute the product tile by tile, or backward by slices of the columns,
            which the next launch adds up.
        blocks: of the launch, or of a step.
        launches: of the recurrence.
        library: whether the products of all steps at once (W x; dx, dW, dR) are the array
            library's, which opens cuBLAS, or our own.
        library_split: whether the library multiplies float32 as two words of 2 bytes each.
        reason: why this kernel was chosen.
        register_capacity: hidden units that a "loop" kernel is compiled for; 0 for other kernels.
        loop_split: whether that kernel multiplies a float as two words of 2 bytes.
        rows: rows of the batch of a block of a "loop" or "stream" kernel; 0 for other kernels.
        units: hidden units of a block of a "persistent" kernel; 0 for other kernels.
        peers: blocks of a cluster that write to each other's shared memory, in the backward pass; 1
            without clusters.
        groups: groups of blocks in a launch, each with `GROUP_ROWS` rows of the batch.
        span: steps of such a launch.
        co_launched: problems that share the launches: 1, or 2 for both directions, or with
            `layer_pipelined` for two layers.
        layer_pipelined: whether the two problems are layers, one a step behind the other.
        cluster: blocks of a cluster of a "cluster" kernel; 0 for other kernels.
        chunks: chunks of the steps of a backward pass. While the steps of one run, the products of
            the one before (dx, dW, dR) run on the multiprocessors that are free.
        seconds: time of the recurrence, of both problems if two are co-launched, by the model of
            this module: an estimate, see `CONFIRMED_BY`.
    """

    kernel: str
    blocks: int
    launches: int
    library: bool
    reason: str
    library_split: bool = False
    register_capacity: int = 0
    loop_split: bool = False
    rows: int = 0
    units: int = 0
    peers: int = 1
    groups: int = 0
    span: int = 0
    co_launched: int = 1
    layer_pipelined: bool = False
    cluster: int = 0
    chunks: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class _Wanted:
    """One pass over one layer and direction: the arguments of `plan`, under the same names."""

    products: list[int]
    hidden: int
    steps: int
    batch: int
    word: int
    inputs: int = 0
    split: bool = False
    backward: bool = False
    by_step: bool = False
    co_launched: int = 1
    pipeline_columns: int = 0
    lacks: str = ""

    @property
    def rows(self) -> int:
        """Rows (t, b) of the pass."""
        return self.steps * self.batch

    @property
    def weights(self) -> int:
        """Recurrent weights of the layer."""
        return self.hidden * self.hidden * sum(self.products)


def register_capacity_for(products: list[int], hidden: int, word: int) -> int:
    """Return the least capacity of a "loop" kernel for so many hidden units; 0 if there is none."""
    return (
        next((n for n in REGISTER_CAPACITY.get(word, ()) if hidden <= n), 0)
        if len(products) == 1
        else 0
    )


def rows_for(products: list[int], batch: int, word: int, backward: bool, by_step: bool) -> int:
    """Return the rows of a block that streams the weights; 0 for tiles or slices."""
    if word == 8 or batch > STREAM_ROWS:
        return 0
    if backward and (word > 2 or len(products) > 1 or by_step):
        return 0
    return next((n for n in STREAM if batch <= n), STREAM[-1])


def loop_rows_for(device: GpuFigures, batch: int) -> int:
    """Return the fewest rows of a block of a "loop" kernel for which all blocks run at once."""
    return next((n for n in ROWS if -(-batch // n) <= device.multiprocessors), ROWS[-1])


@dataclass(frozen=True)
class Partition:
    """How the blocks of a "persistent" kernel divide the weights and what they send.

    These are the figures of `_core.persistent_kernels`.

    Attributes:
        units: hidden units of a block.
        peers: blocks that each take in a part of the inputs, for the outputs of all of them.
        parts: words of an operand: 2 where a float is split into two words of 2 bytes.
        blocks: of a group.
        out_tiles: tiles of 16 outputs of a block and its peers; this and what follows for each
            phase of a step.
        depth: tiles of 16 inputs that a warp multiplies.
        weight_bytes: bytes of the weights of all blocks.
        scale_counts: scales of those weights; 0 where operands are one word.
        tile_bytes: bytes of 16 inputs for the rows of a group.
        step_bytes: bytes that a group sends at a step.
        fits: whether there is room for the weights.
    """

    units: int
    peers: int
    parts: int
    blocks: int
    out_tiles: tuple[int, ...]
    depth: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    scale_counts: tuple[int, ...]
    tile_bytes: int
    step_bytes: int
    fits: bool

    @classmethod
    def all_of(
        cls, columns: list[int], hidden: int, word: int, backward: bool, has_upstream: bool = False
    ) -> list[Partition]:
        """Return one for each kernel that there is.

        Args:
            columns: columns of a unit that the product of each phase feeds.
            hidden: hidden units of the layer.
            word: bytes of an operand, 2 or 4.
            backward: whether it is the backward pass.
            has_upstream: whether a block also takes in what another layer sends.
        """
        kernels = _core.persistent_kernels(columns, hidden, word, backward, has_upstream)
        return [cls(**kernel) for kernel in kernels]

    @classmethod
    def of(
        cls,
        columns: list[int],
        hidden: int,
        units: int,
        peers: int,
        word: int,
        backward: bool,
        has_upstream: bool = False,
    ) -> Partition:
        """Return that of the kernel of so many units and peers; raise where there is none."""
        for p in cls.all_of(columns, hidden, word, backward, has_upstream):
            if (p.units, p.peers) == (units, peers):
                return p
        raise ValueError(
            f"units: expected those of a kernel that there is for {columns} columns, got {units} "
            f"with {peers} peers"
        )

    def cycles(self, rows: int) -> float:
        """Return the cycles of a step by the model."""
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
        # By a block, which reads one peer's part.
        taken = sum(self.depth) * WARPS * self.tile_bytes
        reading = taken * row_tiles / (GROUP_ROWS / 8) / L2_BYTES
        each = EXCHANGE + CELL + (CLUSTER if self.peers > 1 else 0.0)
        return len(self.depth) * each + sum(self.depth) * RECEIVE + reading + matrix


@dataclass(frozen=True)
class ClusterKernel:
    """A "cluster" kernel that there is: figures of `_core.cluster_kernels`.

    Attributes:
        blocks: of a cluster.
        warps: of a block.
        rows: rows of the batch of a cluster.
        capacity: hidden units that a cluster has room for.
        parts: words of an operand: 2 where a float is split into two words of 2 bytes.
        weight_bytes: bytes of the weights of a cluster.
        scale_count: scales of those weights; 0 where operands are one word.
    """

    blocks: int
    warps: int
    rows: int
    capacity: int
    parts: int
    weight_bytes: int
    scale_count: int

    @classmethod
    def all_of(cls, columns: int, word: int, backward: bool) -> list[ClusterKernel]:
        """Return those for products of so many columns a unit, and operands of so many bytes."""
        return [cls(**k) for k in _core.cluster_kernels(columns, word, backward)]

    @classmethod
    def of(cls, columns: int, blocks: int, word: int, backward: bool) -> ClusterKernel:
        """Return that of clusters of so many blocks; raise where there is none."""
        for kernel in cls.all_of(columns, word, backward):
            if kernel.blocks == blocks:
                return kernel
        raise ValueError(
            f"cluster: expected the blocks of a cluster that there is a kernel for, for {columns} "
            f"columns, got {blocks}"
        )

    def cycles(self, backward: bool) -> float:
        """Return the cycles of a step by the model."""
        cycles = CLUSTER_STEP[self.capacity, self.blocks]
        cycles *= CLUSTER_SPLIT if self.parts > 1 else 1
        return cycles * (CLUSTER_BACKWARD if backward else 1)


def _by_cluster(device: GpuFigures, wanted: _Wanted) -> GpuPlan | None:
    """Return the plan of the "cluster" kernel that costs least for each direction, or None."""
    fits, plans = dict(device.cluster_fits), []
    directions = 1 if wanted.pipeline_columns else wanted.co_launched
    for kernel in ClusterKernel.all_of(wanted.products[0], wanted.word, wanted.backward):
        if wanted.hidden > kernel.capacity or not fits.get(kernel.blocks):
            continue
        for count in range(1, directions + 1):
            clusters = count * -(-wanted.batch // kernel.rows)
            waves = -(-clusters // fits[kernel.blocks])
            cycles = waves * wanted.steps * kernel.cycles(wanted.backward)
            said = (
                f"clusters of {kernel.blocks} blocks of {kernel.warps} warps have room for the "
                f"recurrent weights (H = {wanted.hidden} of {kernel.capacity}); {clusters} of "
                f"them, of {kernel.rows} rows each"
            )
            plans.append(
                GpuPlan(
                    "cluster",
                    clusters * kernel.blocks,
                    1,
                    False,
                    said + "; both directions in the same launch" * (count > 1),
                    co_launched=count,
                    cluster=kernel.blocks,
                    seconds=START + cycles / device.clock_hz,
                )
            )
    return min(plans, key=lambda p: p.seconds / p.co_launched, default=None)


def partitions_for(
    device: GpuFigures,
    columns: list[int],
    hidden: int,
    word: int,
    backward: bool,
    has_upstream: bool = False,
) -> list[Partition]:
    """Return the partitions that there are kernels for and whose weights fit."""
    every = Partition.all_of(columns, hidden, word, backward, has_upstream)
    return [p for p in every if p.fits and room_for(device, p.peers)]


def room_for(device: GpuFigures, peers: int) -> int:
    """Return how many blocks of clusters of so many can run at the same time."""
    return {1: device.multiprocessors, 2: 2 * device.pairs, 4: 4 * device.clusters}[peers]


def max_groups(device: GpuFigures, partition: Partition) -> int:
    """Return how many groups can run at the same time."""
    return room_for(device, partition.peers) // partition.blocks


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
    co_launched: int = 1,
    pipeline_columns: int = 0,
    lacks: str = "",
) -> GpuPlan:
    """Return the plan of one pass over one layer and direction.

    Args:
        device: figures of the device.
        products: for each phase of the cell's step, the columns of a unit that its recurrent
            product feeds.
        hidden: hidden units.
        steps: T.
        batch: B.
        word: bytes of an operand: 2, 4 or 8.
        inputs: input features of the layer; 0: as many as hidden units.
        split: whether an operand of 4 bytes may be split into two words of 2 bytes.
        backward: whether it is the backward pass.
        by_step: whether something needs all units of a row after every step: the norm of a
            gradient.
        co_launched: 2: two such passes may share launches, as the plan then says.
        pipeline_columns: the columns of a pre-activation if those two are layers; 0 for directions.
        lacks: what kernels that hold the recurrent weights lack for the cell; "": nothing.
    """
    wanted = _Wanted(
        products,
        hidden,
        steps,
        batch,
        word,
        inputs or hidden,
        split,
        backward,
        by_step,
        co_launched,
        pipeline_columns,
        lacks,
    )
    others = _without_clusters(device, wanted)
    if by_step or lacks or len(products) > 1 or not (word == 2 or (word == 4 and split)):
        return others
    by = _by_cluster(device, wanted)
    doubt = ESTIMATED if others.kernel == "loop" else 1.0
    if by is None or by.seconds / by.co_launched >= doubt * others.seconds / others.co_launched:
        return others
    return replace(by, library=others.library, library_split=others.library_split)


def _without_clusters(device: GpuFigures, wanted: _Wanted) -> GpuPlan:
    """Return the plan of all kernels but "cluster"."""
    products, word, backward = wanted.products, wanted.word, wanted.backward
    library = _has_library(device, wanted.rows, word)
    may_split = wanted.split and word == 4 and library
    may_split = may_split and not wanted.lacks and not device.why_no_words
    work = wanted.rows * wanted.inputs * wanted.hidden * sum(products)
    library_split = may_split and work >= SPLIT_WORK
    by_itself = _stepwise(device, wanted, wanted.by_step or (backward and wanted.lacks != ""))

    def of_library(planned: GpuPlan) -> GpuPlan:
        return replace(planned, library=library, library_split=library_split)

    def step(reason: str) -> GpuPlan:
        streams = word == 2 or (word == 4 and not backward)
        if by_itself.kernel == "step" and streams and wanted.batch > STREAM_ROWS:
            reason += (
                f"; B = {wanted.batch} is more than the {STREAM_ROWS} rows for which blocks stream "
                "the weights"
            )
        return of_library(replace(by_itself, reason=reason))

    if why := _why_by_step(word, wanted.by_step, wanted.lacks):
        return step(why)
    capacity = register_capacity_for(products, wanted.hidden, word)
    blocks = -(-wanted.batch // loop_rows_for(device, wanted.batch))
    if capacity and -(-blocks // device.multiprocessors) <= MOST_WAVES:
        return of_library(_loop(device, wanted, capacity))
    why = _why_not_one(device, wanted, blocks, capacity)
    if word == 4 and not wanted.split:
        return step(
            f"{why}; where many multiprocessors share the weights, products are of words of 2 bytes"
        )
    every = partitions_for(device, products, wanted.hidden, word, backward)
    partitions = [s for s in every if max_groups(device, s)]
    if not partitions:
        return step(f"{why}; {_why_not_shared(device, every)}")
    best = _cheapest(device, wanted, partitions)
    shared = _of(device, best, wanted)
    times = shared.seconds / best[1] / max(by_itself.seconds, 1e-12)
    if times >= 1:
        return step(
            f"{why}; to partition them would take longer, by the model {times:.2g} times as long"
        )
    if not backward:
        return of_library(shared)
    return of_library(_in_chunks(device, best, wanted, library, library_split))


def _why_by_step(word: int, by_step: bool, lacks: str) -> str:
    """Return why no kernel that keeps the recurrent weights can run, or nothing."""
    if lacks:
        return f"kernels that keep the recurrent weights have no {lacks}"
    if word == 8:
        return "the registers of a multiprocessor hold words of 2 and 4 bytes only"
    return "the norm of every step's gradient is asked for" if by_step else ""


def _why_not_shared(device: GpuFigures, every: list[Partition]) -> str:
    """Return why multiprocessors cannot share the recurrent weights."""
    if every:
        return f"there are too few multiprocessors, {device.multiprocessors}, to share the weights"
    return "there is no room for the recurrent weights in those of all multiprocessors either"


def plan_by_step(
    device: GpuFigures,
    products: list[int],
    *,
    hidden: int,
    steps: int,
    batch: int,
    word: int,
    backward: bool,
    lacks: str,
    launches: int,
) -> GpuPlan:
    """Return the plan of a cell for which all kernels but those of single steps lack something.

    Args:
        device: figures of the device.
        products: as `plan` takes them.
        hidden: hidden units.
        steps: T.
        batch: B.
        word: bytes of an operand: 2, 4 or 8.
        backward: whether it is the backward pass.
        lacks: what the other kernels lack.
        launches: of a step.
    """
    wanted = _Wanted(products, hidden, steps, batch, word, backward=backward)
    planned = _stepwise(device, wanted, False, step_launches=launches)
    return replace(
        planned,
        library=_has_library(device, steps * batch, word),
        reason=f"all other kernels lack {lacks}; a step takes {launches} launches",
    )


def _has_library(device: GpuFigures, rows: int, word: int) -> bool:
    """Return whether the array library computes the products of all steps."""
    there = device.library and not (word == 2 and device.why_no_words)
    return there and rows >= LIBRARY_ROWS


def _products_rate(word: int, library: bool, split: bool) -> float:
    """Return the multiply-adds a cycle and multiprocessor of the products of all steps."""
    if split:
        return LIBRARY_WORDS / 3
    if library:
        return LIBRARY_WORDS if word == 2 else LIBRARY
    return TILES if word == 2 else TILES_EXACT


def _loop(device: GpuFigures, wanted: _Wanted, capacity: int) -> GpuPlan:
    """Return the plan of a kernel that keeps the recurrent weights in registers."""
    # Words of 2 bytes of an operand, 0 where products are exact.
    words = 1 if wanted.word == 2 else 2 if wanted.split else 0
    rows, weights = loop_rows_for(device, wanted.batch), wanted.products[0] * capacity * capacity
    blocks = -(-wanted.batch // rows)
    cycles = LOOP + LOOP_CELL * -(-capacity * rows // (32 * WARPS))
    if words:  # an instruction takes 16 x 16 weights: by a word of eight rows, or both of four
        cycles += weights / 256 * (1 if words == 1 else 2 * -(-rows // 4)) * MMA / 4
    else:
        cycles += weights * rows / FMA
    cycles *= LOOP_BACKWARD if wanted.backward else 1
    waves = -(-blocks // device.multiprocessors)
    return GpuPlan(
        "loop",
        blocks,
        1,
        False,
        f"the recurrent weights fit the registers of a multiprocessor (H = {wanted.hidden} of "
        f"{capacity}), which takes {rows} row{'s' * (rows > 1)} through all steps",
        register_capacity=capacity,
        loop_split=words == 2,
        rows=rows,
        seconds=waves * wanted.steps * cycles / device.clock_hz,
    )


def _why_not_one(device: GpuFigures, wanted: _Wanted, blocks: int, capacity: int) -> str:
    """Return why no multiprocessor runs all steps by itself."""
    if capacity:
        return (
            f"{blocks} blocks of {ROWS[-1]} rows are {-(-blocks // device.multiprocessors)} waves "
            f"over {device.multiprocessors} multiprocessors, more than {MOST_WAVES}"
        )
    if len(wanted.products) > 1:
        return (
            f"the cell takes {len(wanted.products)} phases a step, and each needs all hidden units "
            "of the one before"
        )
    return (
        f"H = {wanted.hidden} is beyond {REGISTER_CAPACITY[wanted.word][-1]}, where the recurrent "
        "weights fill the registers of a multiprocessor"
    )


# A partition, and how many problems share its launches.
Kind = tuple[Partition, int]


def _of(device: GpuFigures, kind: Kind, wanted: _Wanted, chunks: int = 1) -> GpuPlan:
    partition, count = kind
    pipelined = count > 1 and wanted.pipeline_columns > 0
    return _persistent(device, partition, wanted.steps, wanted.batch, count, pipelined, chunks)


def _cheapest(device: GpuFigures, wanted: _Wanted, partitions: list[Partition]) -> Kind:
    """Return the partition that costs least for each problem."""
    kinds = [(s, 1) for s in partitions]
    columns, sizes = wanted.pipeline_columns, (wanted.hidden, wanted.word, wanted.backward)
    if wanted.co_launched == 2:
        # There are no kernels for two layers of more phases.
        pairs = [] if columns and len(wanted.products) > 1 else partitions
        if pairs and columns:
            pairs = partitions_for(device, [columns], *sizes, True)
        kinds += [(s, 2) for s in pairs if max_groups(device, s) >= 2]
    return min(kinds, key=lambda kind: _of(device, kind, wanted).seconds / kind[1])


def _in_chunks(
    device: GpuFigures, kind: Kind, wanted: _Wanted, library: bool, library_split: bool
) -> GpuPlan:
    """Return a backward pass by the chunks that cost least, one unless more are worth it."""
    # dW, dR and dx: of pipelined layers those of the lower one; of directions both, the second
    # added to the complete first one.
    width, dx = wanted.inputs, 1 if wanted.pipeline_columns else kind[1]
    each = (kind[1] * (width + wanted.hidden), dx * width)
    work = sum(wanted.products) * wanted.hidden * sum(each) * wanted.rows
    late = each[1] / sum(each) if dx > 1 else 0.0
    rate = device.multiprocessors * device.clock_hz
    rate *= _products_rate(wanted.word, library, library_split)
    parts = _core.gradient_parts(wanted.steps, wanted.batch)
    most = LIBRARY_CHUNKS if library else CHUNKS[-1]
    counts = [n for n in CHUNKS if n == 1 or (n <= parts <= wanted.steps and n <= most)]
    cuts = [_of(device, kind, wanted, n) for n in counts]
    seconds = [_with_products(device, p, work / rate, late) for p in cuts]
    least = min(range(len(cuts)), key=seconds.__getitem__)
    return cuts[least if seconds[least] < WORTH * seconds[0] else 0]


def _stepwise(
    device: GpuFigures, wanted: _Wanted, by_step: bool, step_launches: int = 0
) -> GpuPlan:
    """Return the plan of one launch for each step and phase.

    ``by_step``: something stands between a step's product and its cell. ``step_launches`` are those
    of a step of a cell that no kernel streams the weights of; 0: it is another cell.
    """
    products, word, backward = wanted.products, wanted.word, wanted.backward
    rate = device.multiprocessors * device.clock_hz
    tiles = {2: TILES, 4: TILES_EXACT, 8: TILES_DOUBLE}[word]  # they have no pipeline
    work = wanted.rows * wanted.weights / tiles / rate
    rows = 0 if step_launches else rows_for(products, wanted.batch, word, backward, by_step)
    width = wanted.hidden * max(products)
    if backward and not rows and _core.step_slices(word, wanted.batch, wanted.hidden, width) > 0:
        each = 2 if len(products) == 1 and not by_step else 3 * len(products) + by_step
        return _by_slices(device, wanted, wanted.steps * (step_launches or each), work)
    depth = wanted.hidden * (sum(products) if backward else len(products))
    work = max(work, wanted.steps * depth * DEPTH[word] / device.clock_hz)
    if rows:
        units = STREAM_OUTPUTS if backward else STREAM_OUTPUTS // max(products)
        times = -(-wanted.batch // rows)
        launches = len(products) * wanted.steps + backward
        reading = wanted.steps * times * wanted.weights * word / (L2_BYTES * rate)
        return GpuPlan(
            "stream",
            -(-wanted.hidden // units) * times,
            launches,
            False,
            "",
            rows=rows,
            seconds=launches * LAUNCH + max(reading, work),
        )
    tile_m, tile_n = TILE
    units = tile_n if backward else tile_n // max(products)
    blocks = -(-wanted.hidden // units) * -(-wanted.batch // tile_m)
    each = 2 * len(products) + by_step if backward else len(products)
    launches = (step_launches or each) * wanted.steps
    return GpuPlan("step", blocks, launches, False, "", seconds=launches * LAUNCH + work)


def _by_slices(device: GpuFigures, wanted: _Wanted, launches: int, work: float) -> GpuPlan:
    """Return the plan of a backward pass whose products by step blocks share by slices.

    ``work``: seconds of the products where there are blocks enough.
    """
    (rows, outs), width = SLICE_TILE, wanted.hidden * max(wanted.products)
    tiles = -(-wanted.hidden // outs) * -(-wanted.batch // rows)
    slices = _core.step_slices(wanted.word, wanted.batch, wanted.hidden, width)
    blocks = tiles * slices
    cycles = SLICED + width / slices * SLICE_COLUMN * -(-blocks // device.multiprocessors)
    seconds = max(work, len(wanted.products) * wanted.steps * cycles / device.clock_hz)
    return GpuPlan("step", blocks, launches, False, "", seconds=launches * LAUNCH + seconds)


def chunks_of(steps: int, batch: int, chunks: int) -> list[tuple[int, int]]:
    """Return the steps of each chunk of a backward pass, which consists of whole parts."""
    parts = _core.gradient_parts(steps, batch)
    cuts = [steps * (parts * k // chunks) // parts for k in range(chunks + 1)]
    return list(pairwise(cuts))


def _persistent(
    device: GpuFigures,
    partition: Partition,
    steps: int,
    batch: int,
    co_launched: int,
    layer_pipelined: bool,
    chunks: int = 1,
) -> GpuPlan:
    """Return the plan of a "persistent" kernel."""
    all_groups = max(1, -(-batch // GROUP_ROWS))
    groups = min(all_groups, max_groups(device, partition) // co_launched)
    passes = -(-all_groups // groups)
    each = [b - a for a, b in chunks_of(steps, batch, chunks)]
    span = max(
        1, min(max(each), device.l2_bytes // 4 // (co_launched * groups * partition.step_bytes))
    )
    launches = passes * sum(-(-n // span) for n in each)
    seconds = (
        launches * START
        + (passes * steps + layer_pipelined * launches) * partition.cycles(batch) / device.clock_hz
    )
    blocks = partition.blocks * groups * co_launched
    return GpuPlan(
        "persistent",
        blocks,
        launches,
        False,
        _why_shared(partition, groups, co_launched, layer_pipelined, chunks),
        units=partition.units,
        peers=partition.peers,
        groups=groups,
        span=span,
        co_launched=co_launched,
        layer_pipelined=layer_pipelined,
        chunks=chunks,
        seconds=seconds,
    )


def _why_shared(
    partition: Partition, groups: int, co_launched: int, layer_pipelined: bool, chunks: int
) -> str:
    """Return what multiprocessors share, and what runs beside it."""
    said = [
        f"{partition.blocks} multiprocessors have room for the recurrent weights, "
        f"{partition.units} units each",
        f"{groups} such group{'s' * (groups > 1)} of {GROUP_ROWS} rows at a time",
    ]
    if partition.peers > 1:
        said.append(f"clusters of {partition.peers} take in a part of the gradients each")
    if layer_pipelined:
        said.append("two layers, one a step behind the other, in the same launches")
    elif co_launched > 1:
        said.append("both directions in the same launches")
    if chunks > 1:
        said.append(f"the products of {chunks} chunks of the steps beside those that follow")
    return "; ".join(said)


def _with_products(device: GpuFigures, planned: GpuPlan, products: float, late: float) -> float:
    """Return the seconds of a backward pass with its products.

    ``products`` are their seconds on the whole device. From the end of the first chunk on they have
    the multiprocessors that are free, and after the last chunk all of them. ``late`` is the
    fraction of the products that waits for the last chunk.
    """
    n, free = planned.chunks, 1 - planned.blocks / device.multiprocessors
    beside = planned.seconds * (1 - 1 / n) * free
    return planned.seconds + max(products * (late + (1 - late) / n), products - beside)
