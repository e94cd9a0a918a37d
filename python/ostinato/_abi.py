"""Fields of the structs that kernels of a device are given; csrc/cuda/abi.h reads them by name.

An unknown or a missing field raises there. An address is an array of the device, a number, or None
where there is nothing. Shapes and meanings stand beside the fields in C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

Address = Any  # an array of any device's library, a number or None
Addresses = Sequence[Address]  # by product or phase of a step


class RowsFields(TypedDict):
    """Rows ``[T,B,*]``: see `_launch.Rows`."""

    data: Address
    t: int
    b: int
    starts: Address
    ends: Address


class WeightFields(TypedDict):
    """Packed weights of one layer and direction."""

    precision: str
    input: int
    hidden: int
    output: int
    panels: Addresses
    transposed: Addresses
    bias: Address
    units: Address
    scalars: Sequence[float]
    stream_panels: Addresses
    stream_transposed: Address
    loop_panels: Address
    loop_transposed: Address


class SharedFields(TypedDict):
    """Recurrent weights of kernels that partition them among multiprocessors, by phase."""

    panels: Addresses
    scales: Addresses
    transposed: Addresses
    transposed_scales: Addresses


class LayerFields(TypedDict):
    """One layer and direction of a pass."""

    weights: WeightFields
    shared: SharedFields
    steps: int
    batch: int
    reverse: bool
    lengths: Address
    predecessors: Address
    x: RowsFields
    px: RowsFields | None
    y: RowsFields
    h0: Address
    c0: Address
    restart_h: Address
    restart_c: Address
    gx: Address
    saved: Address
    cells: Address
    emitted: Address
    state: Address
    saved_scratch: Address
    normed: Addresses
    normed_scratch: Addresses
    moments: Address
    hn: Address
    cn: Address


class GradientFields(TypedDict):
    """What the backward pass of one layer and direction is given besides."""

    dy: RowsFields | None
    dx: RowsFields | None
    dcells: RowsFields | None
    dx_add: bool
    dhn: Address
    dcn: Address
    dh0: Address
    dc0: Address
    dh: Address
    dc: Address
    demitted: Address
    slices: Address
    da: Addresses
    dproducts: Addresses
    sums: Addresses
    bias_sums: Addresses
    operands: Addresses
    dparams: Address
    param_sums: Address
    restarts: Address
    scales: Address
    squares: Address
    flow: Address
    cuts: Address
    clip_value: float
    clip_norm: float
    library: bool
    first_part: int
    last_part: int
    gradients: Addresses
    unit_gradients: Addresses
    drestart_h: Address
    drestart_c: Address


class PlanFields(TypedDict):
    """What the planner has chosen: csrc/cuda/plan.h."""

    loop: int
    loop_split: bool
    rows: int
    units: int
    peers: int
    groups: int
    span: int
    co_launched: int
    layer_pipelined: bool
    cluster: int


class PassFields(TypedDict):
    """One pass over a layer, or over two that run together."""

    layers: list[LayerFields]
    gradients: list[GradientFields]
    plan: PlanFields
    exchange: Address
    carry: Address
    host_status: int
    spin_limit: int
    chunks: int
    launches: int


class PackFields(TypedDict):
    """Weights as the user holds them, and where they are packed to."""

    weight_ih: Address
    weight_hh: Address
    bias_ih: Address
    bias_hh: Address
    weight_hr: Address
    weights: WeightFields
    loop: int
    loop_split: bool


class PackSharedFields(TypedDict):
    """Recurrent weights for blocks of some units, made of packed ones."""

    weights: WeightFields
    shared: SharedFields
    plan: PlanFields
    upstream: bool
    transposed_upstream: Address


class TimesFields(TypedDict):
    """The table of resets and masks: csrc/core/times.h."""

    steps: int
    batch: int
    lengths: Address
    resets: Address
    mask: Address
    held: Address
    restarted: Address
    resets_after: Address
    predecessors: Address
    repeat: bool
    from_end: bool


# "from" is a keyword of Python, so these are given by the other syntax.
DropFields = TypedDict(
    "DropFields",
    {
        "from": Address,
        "to": Address,
        "steps": int,
        "batch": int,
        "hidden": int,
        "directions": int,
        "layer": int,
        "first_step": int,
        "rate": float,
        "key": int,
    },
)
DropFlatFields = TypedDict(
    "DropFlatFields", {"from": Address, "to": Address, "count": int, "rate": float, "key": int}
)
ScatterFields = TypedDict(
    "ScatterFields",
    {
        "from": Address,
        "ids": Address,
        "order": Address,
        "to": Address,
        "count": int,
        "width": int,
        "rows": int,
    },
)
CopyRowsFields = TypedDict(
    "CopyRowsFields",
    {
        "from": Address,
        "to": RowsFields,
        "steps": int,
        "batch": int,
        "width": int,
        "first": int,
        "add": bool,
    },
)


class MatmulFields(TypedDict):
    """A product of matrices with strides."""

    a: Address
    b: Address
    out: Address
    rows: int
    columns: int
    depth: int
    a_row: int
    a_k: int
    b_k: int
    b_column: int


class AdamFields(TypedDict):
    """One step of Adam; nothing changes where the flag ``where`` is there, and False."""

    p: Address
    g: Address
    m: Address
    v: Address
    where: Address
    count: int
    rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    correction1: float
    correction2: float
    decoupled: bool
