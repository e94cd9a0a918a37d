"""The flow of gradients through time.

Against products of Jacobians, the reference and its own words.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import SEQUENCES
from ostinato.diagnostics import gradient_flow


def test_flow_is_a_product_of_jacobians() -> None:
    """A tanh network by hand, in float64: dL/dh_t = R^T diag(1 - h^2) dL/dh_{t+1} + dy_t."""
    layer = ost.nn.RNN(3, 6, dtype=np.float64, rng=0)
    r = np.random.default_rng(0)
    x, dy = r.standard_normal((15, 4, 3)), r.standard_normal((15, 4, 6))
    y, _ = layer(x)
    weight = layer.parameters()["weight_hh_l0"]
    flow = next(iter(gradient_flow(layer, x, dy)))
    d, want = np.zeros((4, 6)), []
    for t in reversed(range(15)):
        d = d + dy[t]
        want.insert(0, np.linalg.norm(d))
        d = (d * (1 - y[t] ** 2)) @ weight
    np.testing.assert_allclose(flow.dh, want, rtol=1e-12)
    d = np.random.default_rng(0).standard_normal((4, 6))
    left = [np.linalg.norm(d)]
    for t in reversed(range(1, 15)):
        d = (d * (1 - y[t] ** 2)) @ weight
        left.append(np.linalg.norm(d))
    np.testing.assert_allclose(flow.survival, np.array(left) / left[0], rtol=1e-12)
    assert flow.reach == next(k for k, v in enumerate(left) if v / left[0] < 0.01)
    assert flow.dc is None
    assert not layer.flat_grads.any()
    assert layer._watch is None


def test_flow_of_an_lstm_against_the_reference() -> None:
    from ostinato import reference

    layer = ost.nn.LSTM(3, 6, dtype=np.float64, rng=0)
    r = np.random.default_rng(0)
    x, dy, lengths = (
        r.standard_normal((15, 4, 3)),
        r.standard_normal((15, 4, 6)),
        np.array([15, 2, 9, 15]),
    )
    weights = reference.Weights(
        *(
            np.array(layer.parameters()[n + "_l0"])
            for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
    )
    run = reference.forward("lstm", x, weights, lengths=lengths)
    want = np.sqrt(reference.backward(run, dy).flow)
    flow = next(iter(gradient_flow(layer, x, dy, lengths=lengths)))
    np.testing.assert_allclose(flow.dh, want[:, 0], rtol=1e-10)
    np.testing.assert_allclose(flow.dc, want[:, 1], rtol=1e-10)


def test_flow_leaves_the_training_alone() -> None:
    layer = ost.nn.GRU(2, 4, 2, dropout=0.5, rng=0)
    before = layer._rng.bit_generator.state
    gradient_flow(layer, np.zeros((5, 2, 2), np.float32))
    assert layer._rng.bit_generator.state == before
    for bad in ({"memory_limit": "1MB"}, {"outputs": "none"}):
        with pytest.raises(ValueError, match="expected none, since all steps are looked at"):
            gradient_flow(layer, np.zeros((5, 2, 2), np.float32), **bad)
    assert "no steps" in str(gradient_flow(layer, np.zeros((0, 2, 2), np.float32)))
    (y, _), pullback = layer.vjp(np.zeros((5, 2, 2), np.float32))
    pullback(y)
    with pytest.raises(TypeError, match="a pullback that has not been used"):
        _ = pullback.gates


def test_the_flow_through_ragged_sequences() -> None:
    model = ost.nn.Sequential(
        ost.nn.LSTM(3, 8, bidirectional=True, rng=0), ost.nn.Linear(16, 1, rng=0)
    )
    ragged = ost.Ragged.join(SEQUENCES)
    wanted = gradient_flow(
        model,
        ragged.padded(),
        ragged.padded(np.ones((len(ragged.rows), 1), np.float32)),
        lengths=ragged.lengths,
    )
    for given in (ragged, SEQUENCES):
        for a, b in zip(gradient_flow(model, given), wanted):
            assert np.array_equal(a.dh, b.dh)
            assert np.array_equal(a.survival, b.survival)
            assert (a.saturation, a.verdict) == (b.saturation, b.verdict)


class Net(ost.nn.Model):
    """A model that computes what a `Sequential` of its layers does."""

    def __init__(self) -> None:
        self.blocks = [ost.nn.GRU(2, 7, bidirectional=True, rng=0), ost.nn.LSTM(14, 5, rng=1)]
        self.head, self.other = ost.nn.Linear(5, 3, rng=2), ost.nn.RNN(2, 3, rng=3)

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        y, _ = self.blocks[0](x, lengths=lengths)
        y, _ = self.blocks[1](y, lengths=lengths)
        return self.head(y)


def test_flow_within_a_model_is_that_of_a_sequential() -> None:
    model, twin = Net(), Net()
    first, second = twin.blocks
    twin.blocks = []
    head, twin.head = twin.head, None
    row = ost.nn.Sequential(first, second, head)
    x = np.random.default_rng(0).standard_normal((9, 3, 2)).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((9, 3, 3)).astype(np.float32)
    want = list(gradient_flow(row, x, dy, lengths=[9, 4, 7]))
    got = list(gradient_flow(model, x, dy, lengths=[9, 4, 7]))
    names = ["blocks.0.l0", "blocks.0.l0_reverse", "blocks.1.l0", "other.l0"]
    assert [flow.name for flow in got] == names
    for a, b in zip(got, want):
        assert np.array_equal(a.dh, b.dh)
        assert np.array_equal(a.survival, b.survival)
        assert (a.reach, a.saturation) == (b.reach, b.saturation)
        assert np.array_equal(a.dead, b.dead)
    assert got[3].verdict == "other.l0: no gradient comes to it"
    assert got[3].dh.size == got[3].survival.size == got[3].dead.size == 0
    assert not model.flat_grads.any()
    assert all("_watch" not in vars(layer) for layer in (*model.blocks, model.other))
    model.freeze("blocks.0.*")  # its inputs have a gradient all the same
    assert np.array_equal(gradient_flow(model, x, dy, lengths=[9, 4, 7]).layers[0].dh, want[0].dh)
    with pytest.raises(TypeError, match="state: expected None, since Net has no state"):
        gradient_flow(model, x, state=x)


def test_flow_of_each_call_of_a_layer() -> None:
    decoder = ost.nn.Decoder(
        ost.nn.Linear(3, 4, rng=0),
        ost.nn.GRU(12, 8, rng=1),
        ost.nn.Linear(8, 2, rng=2),
        feed="output",
    )
    x = np.random.default_rng(0).standard_normal((3, 2, 3)).astype(np.float32)
    start = np.random.default_rng(1).standard_normal((1, 2, 8)).astype(np.float32)
    flow = list(gradient_flow(decoder, x, state=start))
    assert [f.name for f in flow] == [f"rnn.l0 (call {k} of 3)" for k in (1, 2, 3)]
    assert all(f.dh.shape == (1,) and f.dh[0] > 0 for f in flow)
    # The last call has the gradient of its output alone.
    _, state = decoder(x[:2], state=start)
    (alone,) = gradient_flow(decoder, x[2:], state=state)
    np.testing.assert_allclose(flow[2].dh, alone.dh, rtol=1e-5)
    assert flow[0].dh[0] > alone.dh[0]


def test_flow_names_what_is_wrong(tmp_path: Any) -> None:
    gru = ost.nn.GRU(2, 16, 2, bidirectional=True, rng=0)
    with gru.write() as p:
        p["bias_ih_l0"][16:32] = 100.0  # z = 1: the state is kept, whatever comes
    model = ost.nn.Sequential(ost.nn.Linear(2, 2, rng=0), gru)
    x = np.random.default_rng(0).standard_normal((30, 4, 2)).astype(np.float32)
    flow = gradient_flow(model, x)
    first = flow.layers[0]
    assert [layer.name for layer in flow] == ["1.l0", "1.l0_reverse", "1.l1", "1.l1_reverse"]
    assert first.saturation["z"] == 1.0
    assert first.dead.size == 16
    assert first.reach is None
    assert "gate z is saturated in 100% of places" in str(flow)
    assert "16 of 16 units hardly move" in first.verdict
    pytest.importorskip("matplotlib")
    flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 1000
    with pytest.raises(TypeError, match="model: expected recurrent layers"):
        gradient_flow(ost.nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match="threshold: expected a number between 0 and 1, got 2"):
        gradient_flow(gru, x, threshold=2)


def test_survival_counts_the_steps_that_a_row_takes() -> None:
    """A row with a mask is what it is without the steps that it skips."""
    layer = ost.nn.LSTM(3, 6, bidirectional=True, rng=0)
    r = np.random.default_rng(0)
    x, mask = r.standard_normal((12, 3, 3)).astype(np.float32), np.ones((12, 3), bool)
    mask[[2, 5, 10, 11], 0] = mask[[0, 5, 6, 7], 1] = mask[[1, 2, 3, 4, 5, 6], 2] = False
    taken = np.stack([x[mask[:, b], b] for b in range(2)], 1)
    masked, alone = gradient_flow(layer, x, mask=mask), gradient_flow(layer, taken)
    for a, b in zip(masked, alone):
        np.testing.assert_allclose(a.survival, b.survival, rtol=1e-5)
        assert a.reach == b.reach
    padded = gradient_flow(layer, x[:, :2], lengths=[6, 6])
    for a, b in zip(padded, gradient_flow(layer, x[:6, :2])):
        assert np.array_equal(a.survival, b.survival)
        assert a.verdict == b.verdict


def test_the_words_of_a_verdict() -> None:
    layer = ost.nn.RNN(3, 16, rng=0)
    x = np.random.default_rng(0).standard_normal((20, 4, 3)).astype(np.float32)
    for threshold, text in ((0.005, "0.5%"), (0.125, "12.5%"), (0.3, "30%")):
        assert f"falls below {text} after" in str(gradient_flow(layer, x, threshold=threshold))
    x[5] = np.nan
    assert str(gradient_flow(layer, x)) == "l0: the gradient is not finite after 1 steps"


def test_a_frozen_layer_within_another_is_seen() -> None:
    model = ost.nn.Sequential(ost.nn.Residual(ost.nn.GRU(3, 3, rng=0)), ost.nn.Linear(3, 1, rng=0))
    x = np.random.default_rng(0).standard_normal((10, 4, 3)).astype(np.float32)
    (want,) = gradient_flow(model, x)
    model.freeze("0.*")
    (got,) = gradient_flow(model, x)
    assert got.verdict == want.verdict
    assert np.array_equal(got.dh, want.dh)


def test_several_threads_look_at_one_model() -> None:
    model = ost.nn.Sequential(ost.nn.Residual(ost.nn.GRU(3, 3, rng=0)))
    x = np.random.default_rng(0).standard_normal((10, 4, 3)).astype(np.float32)
    want = str(gradient_flow(model, x)), str(ost.explain(model, x).facts["layers"][0]["calls"])

    def look(_: int) -> set[tuple[str, str]]:
        flows = [str(gradient_flow(model, x)) for _ in range(30)]
        calls = [ost.explain(model, x).facts["layers"] for _ in range(3)]
        return {(flow, str(c[0]["calls"])) for flow in flows for c in calls}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(look, range(4))) == [{want}] * 4


def test_a_figure_is_written_to_a_path_of_a_known_format(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    flow = gradient_flow(ost.nn.RNN(2, 3, rng=0), np.ones((4, 1, 2), np.float32))
    flow.plot(tmp_path / "flow.PNG")
    with pytest.raises(TypeError, match="path: expected a path"):
        flow.plot(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path: expected the ending of a format .* \(.*png"):
        flow.plot(tmp_path / "flow.abc")
    assert [f.name for f in tmp_path.iterdir()] == ["flow.PNG"]
