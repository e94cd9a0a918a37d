"""Streams, plans and what explain() says of them; directions and layers side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import _core
from ostinato.__main__ import main

LAYERS: dict[str, Any] = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU, "rnn": ost.nn.RNN}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_stream_gives_the_bits_of_the_layer(cell: str, precision: str, kernel_set: str) -> None:
    dtype = np.float64 if precision == "float64" else np.float32
    layer = LAYERS[cell](5, 19, num_layers=2, precision=precision, dtype=dtype, rng=0)
    x = np.random.default_rng(1).normal(size=(9, 3, 5)).astype(dtype)
    y, state = layer(x)
    stream = layer.stream(3)
    assert stream.x.shape == (3, 5)
    for t in range(9):
        if t % 2:
            out = stream.step(x[t])
        else:
            stream.x[...] = x[t]
            out = stream.step()
        assert out is stream.y
        assert np.array_equal(out, y[t])
    h, c = state if cell == "lstm" else (state, None)
    assert np.array_equal(stream.h, h)
    assert stream.c is None if c is None else np.array_equal(stream.c, c)
    stream.h[...] = 0
    if stream.c is not None:
        stream.c[...] = 0
    assert np.array_equal(stream.step(x[0]), y[0])


CHANGES: dict[str, Any] = {
    "write": lambda layer: _add(layer, 0.1),
    "load": lambda layer: layer.load_state_dict(
        ost.nn.LSTM(3, 4, rng=5, learned_state=True).state_dict()
    ),
    "precision": lambda layer: setattr(layer, "precision", "bfloat16"),
    "input_scale": lambda layer: setattr(layer, "input_scale", [1, 2, 64]),
    "a model": lambda layer: ost.nn.Sequential(layer, ost.nn.Linear(4, 1, rng=0)),
}


def _add(layer: Any, value: float) -> None:
    with layer.write() as p:
        for name in p:
            p[name][...] += value


@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_of_a_model_that_changed_is_an_error_until_it_is_refreshed(change: str) -> None:
    layer = ost.nn.LSTM(3, 4, precision="int8", learned_state=True, rng=0)
    x = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)
    stream = layer.stream(2)
    for t in range(3):
        stream.step(x[t])
    state = stream.state
    owner = CHANGES[change](layer)  # kept alive: a model that owns the layer
    for call in (
        stream.step,
        lambda: stream.step(x[3]),
        lambda: stream.step(x[3, :1], [1]),
        stream.reset,
    ):
        with pytest.raises(
            RuntimeError,
            match=r"have changed since; call stream.refresh\(\), which keeps the states",
        ):
            call()
    old = stream.x, stream.y, stream.h, stream.c
    assert all(np.array_equal(a, b) for a, b in zip(stream.state, state))
    stream.refresh()
    assert all(np.array_equal(a, b) for a, b in zip(stream.state, state))
    assert np.array_equal(stream.x, x[2])
    assert np.array_equal(stream.y, state[0][-1])
    want, (h, c) = layer(x[3:], state)
    assert all(np.array_equal(stream.step(x[t]), want[t - 3]) for t in range(3, 6))
    assert np.array_equal(stream.h, h)
    assert np.array_equal(stream.c, c)
    stream.reset()
    assert np.array_equal(stream.step(x[0]), layer(x[:1])[0][0])
    for a in (old[0], old[2], old[3]):
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0
    assert np.isnan(old[1]).all()
    assert (owner is None) == (change != "a model")


def test_a_stream_of_a_whole_model_is_refreshed() -> None:
    model = ost.nn.Sequential(
        ost.nn.Embedding(9, 3, rng=0),
        ost.nn.GRU(3, 4, rng=0),
        ost.nn.Activation("tanh"),
        ost.nn.Linear(4, 2, rng=0),
    )
    ids = np.array([[1, 2], [3, 4]])
    stream = model.stream(2)
    stream.step(ids[0])
    state = stream.state
    _add(model, 0.25)
    with pytest.raises(RuntimeError, match=r"stream: expected the model that it was made of"):
        stream.step(ids[1])
    stream.refresh()
    assert np.array_equal(stream.step(ids[1]), model(ids[1:], state)[0][0])


def test_a_stream_refuses_what_it_cannot_do() -> None:
    layer = ost.nn.LSTM(3, 4, rng=0)
    stream = layer.stream()
    with pytest.raises(ValueError, match=r"x: expected shape \(B, I\) = \(1, 3\), got \(2, 3\)"):
        stream.step(np.ones((2, 3), np.float32))
    assert np.array_equal(stream.step(stream.x), stream.y)
    two = layer.stream(2)
    with pytest.raises(ValueError, match=r"stream.x: expected memory of its own"):
        two.step(two.x[::-1])
    with pytest.raises(TypeError, match=r"x: expected dtype float32, got float64"):
        stream.step(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"stream: expected a layer of one direction"):
        ost.nn.GRU(3, 4, bidirectional=True).stream()
    with pytest.raises(ValueError, match=r"batch: expected a whole number of at least 1, got 0"):
        layer.stream(0)


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
@pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, True), (3, False), (2, True), (10, False)]
)
@pytest.mark.parametrize("cell", LAYERS)
def test_layers_and_directions_side_by_side_keep_the_bits(
    cell: str, layers: int, bidirectional: bool, batch: int, threads: None
) -> None:
    layer = LAYERS[cell](6, 40, num_layers=layers, bidirectional=bidirectional, rng=0)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(70, batch, 6)).astype(np.float32)
    lengths = rng.integers(0, 71, batch)
    dy = rng.normal(size=(70, batch, 40 * (1 + bidirectional))).astype(np.float32)
    results = []
    for n in (1, 2, 3, 4):
        ost.set_num_threads(n)
        layer.zero_grad()
        (y, state), pullback = layer.vjp(x, lengths=lengths)
        assert np.array_equal(y, layer(x, lengths=lengths)[0])
        dx, dstate = pullback(dy)
        flat = [*state, *dstate] if cell == "lstm" else [state, dstate]
        results.append([y, dx, *flat, *(layer.grads[k].copy() for k in layer.grads)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize(("inputs", "hidden"), [(512, 40), (24, 512), (1024, 512)])
def test_a_wavefront_of_layers_whose_rows_collide_in_the_cache(
    inputs: int, hidden: int, layers: int, threads: None
) -> None:
    """Rows a multiple of 2 KB apart are copied for the weight gradients.

    In one layer of a stack, not in the other.
    """
    layer = ost.nn.LSTM(inputs, hidden, num_layers=layers, rng=0)
    x = np.random.default_rng(0).normal(size=(90, 1, inputs)).astype(np.float32)
    grads = []
    for n in (1, 2):
        ost.set_num_threads(n)
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        dx, _ = pullback(np.ones_like(y))
        grads.append([dx, *(layer.grads[k].copy() for k in layer.grads)])
    assert all(np.array_equal(a, b) for a, b in zip(*grads))


def plans(layer: Any, shape: tuple[int, ...], training: bool = False) -> Any:
    return ost.explain(layer, shape, training=training).facts["passes"]


def test_the_plan_uses_directions_layers_rows_then_units(threads: None) -> None:
    ost.set_num_threads(2)
    (both,) = plans(ost.nn.LSTM(128, 128, bidirectional=True), (100, 1, 128))["forward"]
    assert (both["spread"], both["together"], both["lanes"]) == ("lanes", True, 2)
    (rows,) = plans(ost.nn.LSTM(128, 128), (100, 32, 128))["forward"]
    assert (rows["spread"], rows["lanes"], rows["lane_rows"]) == ("lanes", 2, 16)
    (units,) = plans(ost.nn.LSTM(256, 256), (100, 1, 256))["forward"]
    assert units["spread"] == "units"
    (wave,) = plans(ost.nn.LSTM(64, 64, num_layers=2), (1000, 1, 64))["forward"]
    assert (wave["layers"], wave["together"], wave["block_steps"]) == (2, True, 125)
    (first, second) = plans(ost.nn.LSTM(64, 64, num_layers=2), (100, 1, 64), training=True)[
        "backward"
    ]
    assert not first["together"]  # one chunk of steps: there is nothing to overlap
    assert not second["together"]
    (alone,) = plans(ost.nn.LSTM(8, 8), (3, 1, 8))["forward"]
    assert (alone["spread"], alone["threads"]) == ("alone", 1)
    ost.set_num_threads(1)
    assert plans(ost.nn.LSTM(128, 128), (100, 32, 128))["forward"][0]["threads"] == 1


def test_explain_counts(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rates of a machine that does nothing else: 100 GFLOP/s, 100 GB/s.
    monkeypatch.setattr(_core, "fma_peak", lambda seconds, itemsize: 100.0)
    monkeypatch.setattr(_core, "read_bandwidth", lambda size, seconds: 100.0)
    e = ost.explain(
        ost.nn.GRU(7, 20, num_layers=2, bidirectional=True, rng=0), (11, 3, 7), training=True
    )
    lanes = _core.fma_lanes(4)
    padded = -(-20 // lanes) * lanes
    assert e.facts["flops"] == 3 * 2 * 3 * 20 * ((7 + 20) + (40 + 20)) * 11 * 3 * 2
    assert (
        e.facts["tape_bytes"] == 11 * 3 * 4 * padded * 4 * 2 * 2
    )  # r z n n_h, two layers, two directions
    assert 0 < e.facts["roofline_seconds"] < 1
    assert e.facts["workspace_bytes"] > 0
    for part in (
        "kernel set",
        "packed weights",
        "tape",
        "workspace",
        "roofline",
        "faster",
        "backward",
    ):
        assert part in str(e)
    assert "tape           none" in str(ost.explain(ost.nn.RNN(3, 16), (5, 3)))
    single = ost.explain(ost.nn.LSTM(256, 256, batch_first=True), (1, 50, 256))
    assert single.facts["bound"] == "reading the recurrent weights"
    assert "bfloat16" in str(single)
    assert "multiple of" in str(ost.explain(ost.nn.LSTM(256, 5), (50, 8, 256)))


def test_explain_refuses_what_it_does_not_know() -> None:
    with pytest.raises(
        TypeError, match=r"layer: expected an RNN, LSTM or GRU, a Sequential or a Model, got Linear"
    ):
        ost.explain(ost.nn.Linear(2, 3), (4, 1, 2))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"shape: expected \(T, B, I\) or \(T, I\) with I = 3, got \(4, 2\)"
    ):
        ost.explain(ost.nn.GRU(3, 4), (4, 2))
    with pytest.raises(
        ValueError, match=r"precision: expected one that can be trained, got 'int8'"
    ):
        ost.explain(ost.nn.GRU(3, 4, precision="int8"), (4, 3), training=True)


def test_explain_takes_a_whole_model() -> None:
    model = ost.nn.Sequential(
        embed=ost.nn.Embedding(50, 8, rng=0),
        deep=ost.nn.Sequential(ost.nn.GRU(8, 16, bidirectional=True, rng=0), ost.nn.Dropout(0.1)),
        rnn=ost.nn.LSTM(32, 24, rng=0),
        head=ost.nn.Linear(24, 2, rng=0),
    )
    e = ost.explain(model, (100, 4))
    first, second = e.facts["layers"]
    assert (first["name"], first["shape"]) == ("deep.0", (100, 4, 8))
    assert (second["name"], second["shape"]) == ("rnn", (100, 4, 32))
    assert second["flops"] == ost.explain(model["rnn"], (100, 4, 32)).facts["flops"]  # type: ignore[arg-type]
    assert "deep.0: GRU(8, 16, bidirectional=True), T=100, B=4: inference" in str(e)
    assert "\nrnn: LSTM(32, 24), T=100, B=4: inference" in str(e)
    assert (
        "tape_bytes"
        in ost.explain(model, (100, 4), training=True, memory_limit="1MB").facts["layers"][1]
    )
    (alone,) = ost.explain(ost.nn.Sequential(ost.nn.Linear(3, 4), ost.nn.RNN(4, 5)), (7, 3)).facts[
        "layers"
    ]
    assert alone["shape"] == (7, 4)
    for wrong, shape in ((model, (100, 4, 8)), (model, ()), (model["rnn"], (4, 3))):
        with pytest.raises(ValueError, match="shape: expected"):
            ost.explain(wrong, shape)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"shape: expected \(T, B, I\) or \(T, I\) with I = 3, got \(4, 2\)"
    ):
        ost.explain(ost.nn.Sequential(ost.nn.Linear(3, 4), ost.nn.RNN(4, 5)), (4, 2))
    with pytest.raises(
        TypeError, match="layer: expected a Sequential with an RNN, LSTM or GRU in it"
    ):
        ost.explain(ost.nn.Sequential(ost.nn.Linear(3, 4)), (5, 2, 3))


class Loop(ost.nn.Model):
    """Both directions of a layer, then a cell that is called a step at a time."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.embed = ost.nn.Embedding(9, 4, dtype=dtype, rng=0)
        self.deep = {"rnn": ost.nn.LSTM(4, 5, bidirectional=True, dtype=dtype, rng=1)}
        self.cell = ost.nn.GRU(10, 10, dtype=dtype, rng=2)
        self.unused = ost.nn.GRU(3, 3, dtype=dtype, rng=3)
        self.head = ost.nn.Linear(10, 2, dtype=dtype, rng=4)

    def __call__(self, x: Any, lengths: Any = None, steps: int = 3) -> Any:
        y, _ = self.deep["rnn"](self.embed(x), lengths=lengths)
        state, z = None, y[-1:]
        for _ in range(steps):
            z, state = self.cell(z, state)
        return self.head(z[0])


@pytest.mark.parametrize("training", [False, True])
def test_explain_looks_into_a_model_of_the_users_own(training: bool) -> None:
    model = Loop()
    e = ost.explain(model, (20, 4), training=training)
    found = [(f["name"], f["shape"], f["calls"], f["lookup"]) for f in e.facts["layers"]]
    assert found == [("deep.rnn", (20, 4, 4), 1, False), ("cell", (1, 4, 10), 3, False)]
    assert e.facts["not_run"] == ["unused"]
    rnn: Any = model.deep["rnn"]
    mine = ost.explain(rnn, (20, 4, 4), training=training).facts
    assert {"tape_bytes", "flops"} <= set(mine)
    for name in ("flops", "tape_bytes", "weight_bytes", "passes"):
        assert e.facts["layers"][0][name] == mine[name]
    kind = "training" if training else "inference"
    assert f"deep.rnn: {rnn!r}, T=20, B=4: {kind}" in str(e)
    assert "  calls          3 of this shape" in str(e)
    assert str(e).endswith("\nunused: not run by this call")
    again = ost.explain(model, np.ones((7, 2), np.int64), training=training)
    assert again.facts["layers"][0]["shape"] == (7, 2, 4)
    assert not model.flat_grads.any()
    assert all("_forward" not in vars(layer) for layer in (rnn, model.cell, model.unused))


def test_explain_calls_a_model_with_all_that_it_takes() -> None:
    decoder = ost.nn.Decoder(
        ost.nn.Embedding(9, 4, rng=0),
        ost.nn.GRU(12, 8, rng=1),
        ost.nn.Linear(8, 9, rng=2),
        attention=ost.nn.Attention("dot"),
        memory_size=8,
        feed="context",
        rng=3,
    )
    x, memory = np.ones((5, 2), np.int64), np.ones((6, 2, 8), np.float32)
    (facts,) = ost.explain(decoder, (x, memory), training=True).facts["layers"]
    assert (facts["name"], facts["shape"], facts["calls"]) == ("rnn", (1, 2, 12), 5)
    ragged = ost.Ragged.join([np.ones((n, 3), np.float32) for n in (4, 6)])
    row = ost.nn.Sequential(
        ost.nn.Residual(ost.nn.GRU(3, 3, batch_first=True)), ost.nn.LSTM(3, 4, batch_first=True)
    )
    for inputs in ((2, 6, 3), ragged, list(ragged)):
        first, second = ost.explain(row, inputs).facts["layers"]
        assert (first["name"], first["shape"]) == ("0.layer", (2, 6, 3))
        assert (second["name"], second["shape"]) == ("1", (2, 6, 3))
    table = ost.nn.Sequential(ost.nn.Embedding(5, 3), ost.nn.GRU(3, 4))
    for inputs in ((50, 4), np.ones((50, 4), np.int64)):
        e = ost.explain(table, inputs)
        (facts,) = e.facts["layers"]
        assert facts["lookup"]
        assert facts["shape"] == (50, 4, 3)
        assert "made of the 5 rows of the table, not of 200 steps" in str(e)
    measured = ost.explain(Loop(), (5, 2), measure=True).facts["layers"]
    assert all(facts["measured_seconds"] > 0 for facts in measured)


def test_explain_refuses_models_and_calls_without_recurrent_layers() -> None:
    with pytest.raises(TypeError, match=r"layer: expected a model with an RNN, LSTM or GRU in it"):
        ost.explain(ost.nn.Residual(ost.nn.Linear(3, 3)), (5, 2, 3))
    model = Loop()
    broken = ost.nn.Sequential(ost.nn.Residual(ost.nn.GRU(3, 3)))
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, I\) = \(\*, \*, 3\)"):
        ost.explain(broken, (5, 2, 4))
    assert all("_forward" not in vars(layer) for layer in (model.cell, model.unused))

    class Idle(ost.nn.Model):
        def __init__(self) -> None:
            self.rnn = ost.nn.GRU(3, 3)

        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(ValueError, match=r"shape: expected a call that runs a rec.* none of rnn"):
        ost.explain(Idle(), (5, 2, 3))


def test_explain_follows_the_steps_of_convolutions_and_pools() -> None:
    nn = ost.nn
    model = nn.Sequential(
        nn.Conv1d(3, 5, 3, stride=2, batch_first=True, rng=0),
        nn.GRU(5, 6, batch_first=True, rng=0),
        nn.Sequential(nn.Conv1d(6, 4, 4, padding="valid", batch_first=True, rng=0)),
        nn.LSTM(4, 6, batch_first=True, rng=0),
        nn.Pool("mean", batch_first=True),
        nn.Linear(6, 1, rng=0),
    )
    x = np.zeros((2, 21, 3), np.float32)
    told, seen = (ost.explain(model, given).facts["layers"] for given in (x.shape, x))
    assert [f["shape"] for f in told] == [(2, 11, 5), (2, 8, 4)]
    for a, b in zip(told, seen):
        assert (a["shape"], a["flops"]) == (b["shape"], b["flops"])
    (first, *_) = ost.explain(model, (21, 3)).facts["layers"]
    assert first["shape"] == (11, 5)
    convolutions = (nn.Conv1d(3, n, n, stride=2, batch_first=True) for n in (2, 3))
    model = nn.Sequential(nn.Concat(*convolutions), nn.GRU(5, 6, batch_first=True))
    assert [f["shape"] for f in ost.explain(model, x.shape).facts["layers"]] == [(2, 11, 5)]


@pytest.mark.parametrize("training", [False, True])
def test_explain_counts_the_products_of_a_table(training: bool) -> None:
    gru = ost.nn.GRU(8, 6, 2, bidirectional=True, rng=0)
    model = ost.nn.Sequential(ost.nn.Embedding(5, 8, rng=0), gru)
    (facts,) = ost.explain(model, (50, 4), training=training).facts["layers"]
    assert facts["lookup"]
    each = 5 * 18 * 8 + 200 * 18 * 6 + 200 * 18 * (12 + 6)
    assert facts["flops"] == 2 * each * 2 * (3 if training else 1)


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 2), (0.5, 4)])
def test_explain_counts_what_passes_between_layers(dropout: float, kept: int) -> None:
    layer = ost.nn.LSTM(16, 64, 3, bidirectional=True, dropout=dropout, rng=0)
    x = np.zeros((60, 8, 16), np.float32)
    width = 60 * 8 * 128 * 4
    _, pullback = layer.vjp(x)
    facts = ost.explain(layer, x.shape, training=True).facts
    assert pullback._tape.bytes - facts["tape_bytes"] == kept * width
    for which, f in (("forward", ost.explain(layer, x.shape).facts), ("backward", facts)):
        own = max(g["workspace_bytes"] for g in f["passes"][which])
        more = 0 if which == "forward" else kept * width
        assert f["workspace_bytes"] == own + 2 * width + more
        assert "with the outputs between layers" in str(ost.explain(layer, x.shape))


def test_explain_counts_the_layers_that_run_together(threads: None) -> None:
    ost.set_num_threads(2)
    layer, width = ost.nn.LSTM(64, 64, 4, rng=0), 2000 * 64 * 4

    def most(groups: list[dict[str, Any]]) -> int:
        out = []
        for g in groups:
            own = range(g["first_layer"], g["first_layer"] + g["layers"])
            handed = {layer for k in own for layer in (k - 1, k)} & {0, 1, 2}
            out.append(g["workspace_bytes"] + len(handed) * width)
        return max(out)

    facts = ost.explain(layer, (2000, 1, 64)).facts
    assert facts["workspace_bytes"] == most(facts["passes"]["forward"])
    facts = ost.explain(layer, (2000, 1, 64), training=True).facts
    assert facts["workspace_bytes"] == 3 * width + most(facts["passes"]["backward"])


@pytest.mark.parametrize("shape", [None, 5])
def test_explain_refuses_what_is_no_shape(shape: Any) -> None:
    gru = ost.nn.GRU(3, 4, rng=0)
    for layer in (gru, ost.nn.Sequential(ost.nn.GRU(3, 4, rng=0)), Loop()):
        with pytest.raises(TypeError, match=rf"shape: expected \(T, B, I\) .* got {shape}"):
            ost.explain(layer, shape)


def test_explain_warns_of_int8_that_nobody_measured() -> None:
    layer = ost.nn.GRU(3, 16, precision="int8", rng=0)
    e = ost.explain(layer, (5, 2, 3))
    (warning,) = e.facts["warnings"]
    assert "depends on the data" in warning
    assert "quantization_report(x)" in warning
    assert "calibrate(x)" in warning
    assert warning in str(e)
    layer.calibrate(np.ones((4, 1, 3), np.float32))
    assert ost.explain(layer, (5, 2, 3)).facts["warnings"] == []
    layer.input_scale, layer.precision = None, "float32"
    assert "warning" not in str(ost.explain(layer, (5, 2, 3)))


def test_explain_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "gru", "--hidden", "48", "--layers", "2", "--train", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["passes"]) == {"forward", "backward"}
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "lstm", "--hidden", "0", "--input", "3"])
    assert "--hidden: expected a whole number of at least 1, got 0" in capsys.readouterr().err


def test_what_the_machine_reads_and_multiplies_can_be_measured() -> None:
    assert _core.read_bandwidth(1 << 14, 0.005) > 0.1
    assert _core.read_bandwidth(1, 0.001) > 0
    assert set(_core.instructions()) == {"bfloat16", "int8"}


def test_more_threads_than_cores_and_one_core_only(threads: None) -> None:
    layer = ost.nn.LSTM(9, 50, rng=0)
    x = np.random.default_rng(0).normal(size=(40, 30, 9)).astype(np.float32)
    ost.set_num_threads(1)
    y = layer(x)[0]
    ost.set_num_threads(13)
    assert np.array_equal(layer(x)[0], y)
    if hasattr(os, "sched_setaffinity"):
        code = (
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
            "import ostinato; print(ostinato.get_num_threads())"
        )
        env = {k: v for k, v in os.environ.items() if k != "OSTINATO_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        )
        assert done.stdout.strip() == "1"


def test_kept_memory_is_given_back_and_used_again() -> None:
    layer = ost.nn.LSTM(256, 256, rng=0)
    x = np.random.default_rng(0).normal(size=(50, 8, 256)).astype(np.float32)
    grads = []
    for _ in range(3):  # the second and third time on blocks that hold old numbers
        layer.zero_grad()
        (y, _), pullback = layer.vjp(x)
        dx, _ = pullback(np.ones_like(y), need_dx=True)
        grads.append([y.copy(), dx, *(layer.grads[n].copy() for n in layer.grads)])
        if len(grads) == 2:
            ost.release_memory()
    for other in grads[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(grads[0], other))


def test_explain_tells_the_schedule_of_a_memory_limit() -> None:
    layer = ost.nn.LSTM(2, 32, rng=0)
    e = ost.explain(layer, (10000, 1, 2), training=True, memory_limit="1MB")
    s = e.facts["schedule"]
    assert s.bytes <= 1e6
    assert 0 < s.extra < 1
    assert f"{s.count} segments of {s.length} steps" in str(e)
    with pytest.raises(ValueError, match="memory_limit: expected training=True"):
        ost.explain(layer, (100, 1, 2), memory_limit="1MB")
    with pytest.raises(ValueError, match="memory_limit: expected at least"):
        ost.explain(layer, (10000, 1, 2), training=True, memory_limit="1KB")


def test_the_peak_is_that_of_the_instructions(monkeypatch: Any, kernel_set: str) -> None:
    """Where words are widened they are multiplied as float32, or two bytes at a time."""
    monkeypatch.setattr(_core, "fma_peak", lambda *_: 100.0)
    layer = ost.nn.GRU(3, 5, rng=0)
    for precision, times in (("float32", 1), ("bfloat16", 2), ("int8", 4)):
        layer.precision = precision
        widened = _core.instructions().get(precision, "").startswith("widened")
        found = ost.explain(layer, (4, 2, 3)).facts["peak_flops"]
        assert found == 100e9 * times / (2 if widened else 1), (precision, kernel_set)
