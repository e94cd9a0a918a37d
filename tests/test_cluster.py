"""Kernels of clusters, whose blocks are emulated in turn.

Their stores to other blocks arrive late and in any order, and a barrier counts their bytes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import DEVICE_CELLS
from ostinato import _core, _device, _launch, _plan
from test_device import DEVICES, NAMES, on_cpu, on_device, problem
from test_persistent import with_options

CLUSTERED = [c for c in DEVICE_CELLS if not _core.drivers()[c]["cluster"]]
# Words, and the blocks of a cluster.
KINDS = [
    *product(CLUSTERED, [("float16", 2), ("split", 2)]),
    *product(["lstm"], [("bfloat16", 4), ("split", 4), ("float16", 8)]),
    *product(["lstm", "gru"], [("bfloat16", 16)]),
]
CASES = [pytest.param(cell, *kind, id=f"{cell}-{kind[0]}-{kind[1]}") for cell, kind in KINDS]


def clustered(
    cell: str, p: Any, control: Any, device: Any, precision: str, blocks: int, **facts: Any
) -> list[Any]:
    """Run both passes by clusters."""
    facts |= {"register_capacity": 0, "rows": 0, "units": 0, "cluster": blocks}
    return on_device(cell, p, control, device, precision, **facts)


def close(want: list[Any], got: list[Any], limit: float) -> None:
    for name, a, b in zip(NAMES, want, got):
        if a is not None and a.size:
            error = float(np.linalg.norm(b - a))
            assert error <= limit * max(float(np.linalg.norm(a)), 1e-3), name


def widened(p: dict[str, Any]) -> dict[str, Any]:
    """Return a problem in float64."""

    def wide(v: Any) -> Any:
        if isinstance(v, (list, tuple)):
            return [wide(a) for a in v]
        return v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v

    return {name: wide(v) for name, v in p.items()}


@pytest.mark.parametrize(("cell", "precision", "blocks"), CASES)
def test_against_float64(cell: str, precision: str, blocks: int) -> None:
    """Agree with the CPU in float64, which is held against the reference, for every cell.

    Neither the order of blocks and threads nor that of stores changes a bit.
    """
    devices = [with_options(d, delays=n) for d, n in ((DEVICES[0], 7), (DEVICES[1], 12345))]
    limit = 2e-5 if precision == "split" else 1e-2
    limit *= 5 if cell == "rnn_relu" else 1  # one at rest flips by rounding: another slope
    hidden = {2: 37, 4: 70}.get(blocks, 133)  # of a cluster that has room for more
    cases: list[Any] = [((5, 3, 3, hidden), "none", False, {})]
    if blocks == 2:
        cases += [((6, 11, 3, hidden), "all", True, {"cut": True, "clip_value": 0.4})]
    for sizes, kind, reverse, control in cases:
        p = problem(cell, np.float32, sizes, kind, reverse)
        want = on_cpu(cell, widened(p), control)
        first, second = (clustered(cell, p, control, d, precision, blocks) for d in devices)
        close(want, first, limit)
        assert all(a is None or np.array_equal(a, b) for a, b in zip(first, second))
        for device in DEVICES[2:]:
            close(want, clustered(cell, p, control, device, precision, blocks), limit)


def test_lengths_without_a_table() -> None:
    """Rows that end early take no part from then on, without resets or a mask."""
    p = problem("lstm", np.float32, (7, 9, 3, 20), "lengths", False)
    device = with_options(DEVICES[0], delays=3)
    close(on_cpu("lstm", widened(p), {}), clustered("lstm", p, {}, device, "split", 2), 2e-5)


@pytest.mark.parametrize(("blocks", "hidden"), [(2, 64), (4, 128)])
def test_full_clusters_over_many_steps(blocks: int, hidden: int) -> None:
    """The targets of float32 on a GPU: 1e-5 of outputs and 2e-5 of gradients, against float64."""
    p = problem("lstm", np.float32, (40 if blocks == 2 else 12, 8, 5, hidden), "none", False)
    want = on_cpu("lstm", widened(p), {})
    close(want, clustered("lstm", p, {}, DEVICES[0], "split", blocks), 1e-5)


def test_nan_travels() -> None:
    """A NaN stays in its row."""
    p = problem("lstm", np.float32, (5, 4, 3, 40), "none", False)
    for precision in ("float16", "split"):
        p["x"][2, 3] = 0
        want = clustered("lstm", p, {}, DEVICES[0], precision, 2)[0]
        p["x"][2, 3] = np.nan
        got = clustered("lstm", p, {}, DEVICES[0], precision, 2)[0]
        assert np.isnan(got[2:, 3]).all()
        assert np.array_equal(got[:, :3], want[:, :3])
        assert np.array_equal(got[:2, 3], want[:2, 3])


def test_states_beyond_float16() -> None:
    """Two words of float16 stand for a float32 up to 65504; beyond, the outputs are NaN."""
    p = problem("gru", np.float32, (3, 2, 3, 20), "none", False)
    device = with_options(DEVICES[0])
    p["h0"][1, 7] = 65504.0
    assert np.isfinite(clustered("gru", p, {}, device, "split", 2)[0]).all()
    p["h0"][1, 7] = 70000.0
    with pytest.raises(RuntimeError, match=r"a state of an earlier call was beyond 65504"):
        clustered("gru", p, {}, device, "split", 2)


@pytest.mark.parametrize("backward", [False, True])
def test_a_wait_that_is_given_up(backward: bool) -> None:
    """The gradients are NaN, the next call raises, and then all is well.

    Blocks are delayed longer than the others wait. Those of a cluster end together, when no store
    is on its way any longer.
    """
    p = problem("lstm", np.float32, (9, 3, 3, 100), "none", False)
    plain, action_of = _device.emulated(), ("backward" if backward else "forward")

    def run(action: str, cell: int, itemsize: int, values: dict[str, Any]) -> None:
        late = {}
        if action == action_of:
            late, values = {"delays": 5}, {**values, "spin_limit": 1}
        plain.run(action, cell, itemsize, values, **late)

    device = replace(plain, run=run, host_status=np.zeros(1, np.uint32))
    results: list[Any] = []
    with pytest.raises(RuntimeError, match="a block of an earlier launch timed out"):
        results.extend(clustered("lstm", p, {}, device, "bfloat16", 4)), device.check()
    # A backward pass asks whether the forward pass has ended well, before it begins.
    assert bool(results) == backward
    assert not backward or np.isnan(results[3]).any()
    got = clustered("lstm", p, {}, with_options(plain), "bfloat16", 4)
    close(on_cpu("lstm", widened(p), {}), got, 1e-2)


def test_plans_that_the_kernels_refuse() -> None:
    p = problem("lstm", np.float32, (2, 2, 3, 65), "none", False)
    for precision, blocks, message in (
        ("bfloat16", 3, "cluster: expected the blocks of a cluster that there is a kernel for"),
        (
            "bfloat16",
            2,
            "cluster: expected clusters with room for all weights, got 2 blocks for 65",
        ),
        ("split", 8, "cluster: expected the blocks of a cluster that there is a kernel for"),
    ):
        with pytest.raises(ValueError, match=message):
            clustered("lstm", p, {}, DEVICES[0], precision, blocks)
    p = problem("gru_reset_before", np.float32, (2, 2, 3, 4), "none", False)
    with pytest.raises(ValueError, match="cluster: expected the blocks of a cluster"):
        clustered("gru_reset_before", p, {}, DEVICES[0], "bfloat16", 2)


# ---- as users call them ----

FITS = ((2, 66), (4, 30), (8, 15), (16, 28))
FIGURES = _plan.GpuFigures("of clusters", (9, 0), 132, 232448, 50 << 20, 1.98e9, cluster_fits=FITS)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _device.Device:
    """A stand-in for a GPU with clusters."""
    monkeypatch.setattr(_plan, "LAUNCH", 1.0)  # short calls take these kernels as well
    monkeypatch.setattr(_plan, "START", 0.0)
    figures = {"figures": FIGURES, "host_status": np.zeros(1, np.uint32)}
    return fake_cupy.stand_in(monkeypatch, replace(fake_cupy.DEVICE, **figures))


@pytest.mark.parametrize(
    ("name", "options", "how"),
    [
        ("LSTM", {"num_layers": 2}, {"precision": "float16"}),
        ("GRU", {"bidirectional": True}, {"lengths": [5, 0, 3]}),
        ("RNN", {"batch_first": True}, {"resets": 0.3, "precision": "bfloat16"}),
        ("LSTM", {"learned_state": True}, {"memory_limit": "states"}),
        ("GRU", {}, {"memory_limit": 2}),
    ],
)
def test_layers(
    device: _device.Device,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    how: dict[str, Any],
) -> None:
    """Layers train as on the CPU, and both directions share a launch."""
    seen: list[tuple[Any, bool]] = []
    real = _launch.pass_fields

    def watch(layers: Any, weights: Any, planned: Any, back: bool, sizes: Any) -> Any:
        seen.append((planned, back))
        return real(layers, weights, planned, back, sizes)

    monkeypatch.setattr(_launch, "pass_fields", watch)
    layer = getattr(ost.nn, name)(5, 40, **options, rng=0)
    there, r, how = copy.deepcopy(layer).to("cuda"), np.random.default_rng(1), dict(how)
    there.precision = how.pop("precision", None)
    shape = (3, 5) if layer.batch_first else (5, 3)
    x = r.standard_normal((*shape, 5)).astype(np.float32)
    given = {n: r.random(shape) < v if isinstance(v, float) else v for n, v in how.items()}
    (y, _), pullback = layer.vjp(x, **given)
    (y2, _), pullback2 = there.vjp(device.put(x), **given)
    dy = r.standard_normal(y.shape).astype(np.float32)
    dx, dx2 = pullback(dy)[0], pullback2(device.put(dy))[0]
    limit = 2e-5 if there.precision == "float32" else 2e-2
    pairs = [("y", y2, y), ("dx", dx2, dx)]
    pairs += [(n, there.grads[n], g) for n, g in layer.grads.items()]
    for what, got, want in pairs:
        error = float(np.linalg.norm(_device.host(got) - want))
        assert error <= limit * max(float(np.linalg.norm(want)), 1e-3), what
    assert {(p.kernel, p.cluster) for p, _ in seen} == {("cluster", 2)}
    assert {back for _, back in seen} == {False, True}
    assert {p.co_launched for p, _ in seen} == {1 + layer.bidirectional}


def test_explain(device: _device.Device) -> None:
    """The kernel, why it was chosen, and that no device has confirmed what the model says."""
    layer = ost.nn.LSTM(5, 100, rng=0).to("cuda")
    layer.precision = "float16"
    e = ost.explain(layer, (50, 16, 5), training=True)
    for of in e.facts["passes"].values():
        (planned,) = of
        assert (planned["kernel"], planned["cluster"], planned["blocks"]) == ("cluster", 4, 8)
    assert "clusters of 4 blocks of 8 warps have room for the recurrent weights" in str(e)
    assert "2 of them, of 8 rows each" in str(e)
    assert "no device has run this kernel" in str(e)
    for n in (False, True):  # nothing is said that no device has been told of
        kernels = _core.cluster_kernels(4, 2, n)
        assert {k["blocks"] for k in kernels} == {2, 4, 8, 16}
        assert all((k["capacity"], k["blocks"]) in _plan.CLUSTER_STEP for k in kernels)


def test_memory_is_what_explain_says(
    device: _device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arrays of one pass beside its outputs, within a tenth."""
    layer = ost.nn.GRU(5, 40, rng=0).to("cuda")
    x = device.put(np.zeros((30, 3, 5), np.float32))
    layer(x)  # the weights are packed
    made = fake_cupy.bytes_made(monkeypatch)
    y = layer(x)[0]
    said = ost.explain(layer, (30, 3, 5)).facts["workspace_bytes"]
    assert abs(sum(made) - y.nbytes - said) <= 0.1 * said


def test_nothing(device: _device.Device) -> None:
    """No rows, and no steps."""
    layer = ost.nn.LSTM(5, 20, rng=0).to("cuda")
    for steps, batch in ((3, 0), (0, 3)):
        (y, _), pullback = layer.vjp(device.put(np.zeros((steps, batch, 5), np.float32)))
        assert pullback(y)[0].shape == (steps, batch, 5)


# ---- what is chosen ----


@pytest.mark.parametrize(
    ("hidden", "word", "blocks"),
    [(64, 2, 2), (65, 2, 4), (128, 2, 4), (256, 2, 16), (257, 2, 0), (64, 4, 2), (129, 4, 0)],
)
def test_what_is_chosen(hidden: int, word: int, blocks: int) -> None:
    """Clusters of the fewest blocks that have room, or of the fastest; nothing beyond them."""
    for backward in (False, True):
        sizes = {"hidden": hidden, "steps": 1024, "batch": 16, "word": word, "split": True}
        p = _plan.plan(FIGURES, [4], **sizes, backward=backward)
        assert p.cluster == blocks
        assert (p.kernel == "cluster") == (blocks > 0)
        if blocks:
            assert (p.blocks, p.launches, p.units, p.register_capacity) == (2 * blocks, 1, 0, 0)
            others = _plan.plan(replace(FIGURES, cluster_fits=()), [4], **sizes, backward=backward)
            assert others.kernel != "cluster"
            assert p.seconds < _plan.ESTIMATED * others.seconds
            assert (p.library, p.library_split) == (others.library, others.library_split)


def test_devices_and_calls_without_clusters() -> None:
    """What is refused goes another way, and large batches go the cheaper one."""
    sizes: dict[str, Any] = {"hidden": 256, "steps": 1024, "batch": 16, "word": 2}
    small = replace(FIGURES, cluster_fits=FITS[:3])  # it takes no clusters of 16
    assert _plan.plan(small, [4], **sizes).cluster in (0, 8)
    assert _plan.ClusterKernel.of(4, 8, 2, False).warps == 8
    with pytest.raises(ValueError, match="cluster: expected the blocks of a cluster"):
        _plan.ClusterKernel.of(4, 5, 2, False)
    for more in ({"by_step": True, "backward": True}, {"lacks": "a projection of h"}, {"word": 4}):
        assert not _plan.plan(FIGURES, [4], **{**sizes, **more}).cluster
    assert not _plan.plan(FIGURES, [2, 1], **sizes).cluster
    for batch in (8, 224, 225, 4096):  # 28 clusters of 8 rows at the same time
        p = _plan.plan(FIGURES, [4], **{**sizes, "batch": batch})
        others = _plan.plan(replace(FIGURES, cluster_fits=()), [4], **{**sizes, "batch": batch})
        waves = -(-batch // 224)
        cost = _plan.START + waves * 1024 * 1900.0 / FIGURES.clock_hz
        assert p.kernel == ("cluster" if cost < others.seconds else others.kernel)
        if p.cluster:
            assert p.seconds == pytest.approx(cost)


@pytest.mark.parametrize(("hidden", "seconds"), [(64, 0.51e-6), (128, 0.69e-6), (256, 0.96e-6)])
def test_the_model_is_that_of_the_prototype(hidden: int, seconds: float) -> None:
    sizes = {"hidden": hidden, "steps": 1024, "batch": 16, "word": 2}
    p = _plan.plan(FIGURES, [4], **sizes)
    assert (p.seconds - _plan.START) / 1024 == pytest.approx(seconds, rel=0.01)
