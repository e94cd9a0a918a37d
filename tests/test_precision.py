"""bfloat16 and int8: one step against the same rounding in NumPy, whole sequences within the stated
bounds, bitwise reproducibility.
"""

from __future__ import annotations

import copy
import pickle
from threading import Lock
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    CELLS,
    GATES,
    GENERAL_CELLS,
    assert_close,
    cast,
    output_size,
    random_weights,
    widened,
)
from ostinato import _core, reference

# Relative Frobenius norm against float64 over 30 steps at H = 40, as docs/kernels.md states it.
BOUND = {"bfloat16": 1e-2, "int8": 3e-2}
SIZES = [(1, 1, 1), (2, 3, 5), (5, 17, 33), (19, 40, 64), (3, 70, 47)]  # B, I, H


def bfloat16(a: Any) -> Any:
    """Rounded to nearest, ties to even, as float64."""
    u = np.asarray(a, np.float32).view(np.uint32)
    return (
        ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    )


def int8(a: Any) -> Any:
    """Each row as whole multiples of its largest value / 127, as float64."""
    a = np.asarray(a, np.float32)
    top = np.abs(a).max(axis=-1, keepdims=True)
    q = np.rint(
        a * np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    )
    return q.astype(np.float64) * (top / np.float32(127))


ROUND = {"bfloat16": bfloat16, "int8": int8}
ROUNDED = [c for c in CELLS if c not in GENERAL_CELLS]


def pack(cell: str, weights: list[Any], precision: str) -> ost.functional.Packed:
    return ost.functional.Packed(cell, weights, False, precision)


def run(packed: Any, x: Any, h0: Any = None, c0: Any = None, train: bool = False) -> Any:
    state = [None if s is None else s[None] for s in (h0, c0)]
    return packed.native.forward(x, state[0], state[1], None, train=train)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "cell", [c for c in ROUNDED if c != "gru_reset_before"]
)  # whose second operand is rounded too
def test_one_step_is_that_of_rounded_operands(
    cell: str, precision: str, sizes: tuple[int, int, int], kernel_set: str
) -> None:
    batch, inputs, hidden = sizes
    rng = np.random.default_rng(3)
    w = random_weights(cell, inputs, hidden, rng)
    size = output_size(cell, hidden)
    x, h0, c0 = (rng.normal(size=n) for n in ((1, batch, inputs), (batch, size), (batch, hidden)))
    arrays = cast(w, np.float32)
    x32, h32, c32 = (a.astype(np.float32) for a in (x, h0, c0))
    cells = c32 if _core.cells()[cell]["states"] > 1 else None
    y = run(pack(cell, arrays, precision), x32, h32, cells)[0]

    # The operands are rounded, the old state that enters pointwise is not.
    r = ROUND[precision]
    a = r(x32[0]) @ r(arrays[0]).T
    b = r(h32) @ r(arrays[1]).T
    exact = widened(cell, arrays)
    want = _step(cell, a, b, exact, h32.astype(np.float64), c32.astype(np.float64))
    if (
        cell == "lstm_projected"
    ):  # a value that falls between two words may go to the other one, by its last bit
        want = r(want) @ r(arrays[5]).T
        assert np.abs(y[0] - want).max() <= 2.0**-8 * np.abs(want).max()
        return
    assert_close(y[0], want, precision)


def _step(cell: str, a: Any, b: Any, w: Any, h: Any, c: Any) -> Any:
    """One step from finished products."""

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    normed = cell == "lstm_layer_norm"

    def norm(v: Any) -> Any:
        return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)

    if normed:
        a, b = norm(a) * w.weight_ln_ih, norm(b) * w.weight_ln_hh
    a, b = a + w.bias_ih, b + w.bias_hh
    if cell.startswith("rnn"):
        return np.tanh(a + b) if cell == "rnn_tanh" else np.maximum(a + b, 0)
    parts = list(zip(np.split(a, GATES[cell], axis=1), np.split(b, GATES[cell], axis=1)))
    if cell == "gru":
        r, z = (sigmoid(u + v) for u, v in parts[:2])
        n = np.tanh(parts[2][0] + r * parts[2][1])
        return (1 - z) * n + z * h
    i, f, g, o = (u + v for u, v in parts)
    p = w.weight_peephole if cell == "lstm_peephole" else np.zeros((3, c.shape[1]))
    c1 = sigmoid(f + p[1] * c) * c + sigmoid(i + p[0] * c) * np.tanh(g)
    if normed:
        return sigmoid(o) * np.tanh(norm(c1) * w.weight_ln_c + w.bias_ln_c)
    return sigmoid(o + p[2] * c1) * np.tanh(c1)


def frobenius(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", ROUNDED)
def test_a_sequence_stays_within_the_bound(cell: str, precision: str, kernel_set: str) -> None:
    rng = np.random.default_rng(0)
    w = random_weights(cell, 24, 40, rng)
    x, dy = rng.normal(size=(30, 7, 24)), rng.normal(size=(30, 7, output_size(cell, 40)))
    trains = precision != "int8"
    packed = pack(cell, cast(w, np.float32), precision)
    y, _, _, tape = run(packed, x.astype(np.float32), train=trains)
    want = reference.forward(cell, x, w)
    assert frobenius(y, want.y) < BOUND[precision]
    assert not np.array_equal(
        y, run(pack(cell, cast(w, np.float32), "float32"), x.astype(np.float32))[0]
    )
    if trains:
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, *_ = tape.backward(dy.astype(np.float32), None, None, [grads], True)
        backward = reference.backward(want, dy)
        # A unit that is off in one and on in the other; a norm, which divides every error by the
        # spread of the row.
        limit = {"rnn_relu": 10, "lstm_layer_norm": 6}.get(cell, 2) * BOUND[precision]
        assert frobenius(dx, backward.x) < limit
        for got, name in zip(grads[:4], ("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            assert frobenius(got, getattr(backward.weights, name)) < limit, name


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh", "lstm_projected", "lstm_layer_norm"]
)
def test_the_law_of_the_bits(cell: str, precision: str, kernel_set: str, threads: None) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 33, 130, rng), np.float32), precision)
    x = rng.normal(size=(60, 9, 33)).astype(np.float32)
    ost.set_num_threads(1)
    y = run(packed, x)[0]
    for n in (2, 3):
        ost.set_num_threads(n)
        assert np.array_equal(y, run(packed, x)[0])
        assert np.array_equal(y[:, 2:3], run(packed, np.ascontiguousarray(x[:, 2:3]))[0])
    _, h, c, _ = run(packed, x[:25])
    rest = packed.native.forward(x[25:], h, c, None)[0]
    assert np.array_equal(y[25:], rest)


@pytest.mark.parametrize("batch", [1, 9, 33])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_projected", "lstm_layer_norm"])
def test_gradients_in_bfloat16_have_the_same_bits_for_any_threads(
    cell: str, batch: int, kernel_set: str, threads: None
) -> None:
    rng = np.random.default_rng(1)
    packed = pack(cell, cast(random_weights(cell, 19, 70, rng), np.float32), "bfloat16")
    x, dy = (
        rng.normal(size=(45, batch, n)).astype(np.float32) for n in (19, output_size(cell, 70))
    )
    results = []
    for n in (1, 2, 3):
        ost.set_num_threads(n)
        tape = run(packed, x, train=True)[3]
        grads = [None if a is None else np.zeros_like(a) for a in packed.weights]
        dx, dh0, *_ = tape.backward(dy, None, None, [grads], True)
        results.append([dx, dh0, *(g for g in grads if g is not None)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert np.array_equal(a, b)


def test_int8_takes_zero_rows_and_refuses_what_has_no_scale(kernel_set: str) -> None:
    layer = ost.nn.LSTM(5, 6, rng=0)
    with layer.write() as p:
        p["weight_ih_l0"][...] = 0
        p["weight_hh_l0"][3] = 0
    layer.precision = "int8"
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    assert np.isfinite(layer(x)[0]).all()
    x[1, 2, 0] = np.nan
    y = layer(x)[0]
    assert np.isnan(y[1:, 2]).all()
    assert np.isfinite(y[:, :2]).all()
    with layer.write() as p:
        p["weight_hh_l0"][7, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"weight_hh_l0: expected finite weights for int8, got nan in row 7"
    ):
        layer(x)


def test_errors_name_the_precision() -> None:
    with pytest.raises(
        ValueError,
        match=r"precision: expected one of 'float32', 'bfloat16', 'int8', 'exact', got 'half'",
    ):
        ost.nn.GRU(3, 4, precision="half")
    with pytest.raises(ValueError, match=r"precision: expected one of 'float64', got 'int8'"):
        ost.nn.GRU(3, 4, precision="int8", dtype=np.float64)
    layer = ost.nn.GRU(3, 4, precision="int8", rng=0)
    with pytest.raises(ValueError, match=r"precision: expected one that can be trained"):
        layer.vjp(np.zeros((2, 1, 3), np.float32))
    weights = ost.functional.pack(
        "rnn", np.ones((2, 3), np.float32), np.ones((2, 2), np.float32), precision="int8"
    )
    with pytest.raises(
        ValueError, match=r"expected a precision that can be trained, got weights packed as int8"
    ):
        ost.functional.rnn_vjp(np.ones((1, 1, 3), np.float32), weights)


def test_a_layer_pickled_before_there_were_precisions() -> None:
    layer = ost.nn.GRU(3, 4, rng=0)
    state = layer.__getstate__()
    del state["_precision"]
    other = object.__new__(ost.nn.GRU)
    other.__setstate__(state)
    x = np.ones((2, 1, 3), np.float32)
    assert other.precision == "float32"
    assert np.array_equal(other(x)[0], layer(x)[0])
    layer.precision = "int8"
    assert copy.deepcopy(layer).precision == "int8"


def test_a_layer_changes_its_precision_and_back() -> None:
    layer = ost.nn.LSTM(8, 16, num_layers=2, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 2, 8)).astype(np.float32)
    exact = layer(x)[0]
    for name in ("bfloat16", "int8"):
        layer.precision = name
        assert 0 < frobenius(layer(x)[0], exact) < BOUND[name]
    layer.precision = "float32"
    assert np.array_equal(layer(x)[0], exact)


def test_training_in_bfloat16_learns_as_well() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 20, 2)).astype(np.float32)
    target = (x[..., :1] * 0.5 + x[..., 1:]).cumsum(axis=1)
    losses = []
    for precision in ("float32", "bfloat16"):
        model = ost.nn.Sequential(
            ost.nn.GRU(2, 32, precision=precision, batch_first=True, rng=0),
            ost.nn.Linear(32, 1, rng=1),
        )
        trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.AdamW(3e-3), clip_norm=1.0)
        losses.append(
            min(
                trainer.fit((x, target), epochs=20, batch_size=32, progress=False).column("loss")[
                    -3:
                ]
            )
        )
    assert losses[1] < 1.25 * losses[0]
    assert losses[0] < 0.1


# -- weights in other dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_weights_of_pytorch_in_any_dtype_are_taken(kind: str) -> None:
    torch = pytest.importorskip("torch")
    layer, other = ost.nn.LSTM(3, 5, rng=0), ost.nn.LSTM(3, 5, rng=1)
    tensors = {
        n: torch.tensor(a).to(getattr(torch, kind)).requires_grad_()
        for n, a in layer.state_dict().items()
    }
    other.load_state_dict(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(
            other.parameters()[name], tensor.detach().double().numpy().astype(np.float32)
        )


def test_weights_of_ml_dtypes_are_taken_and_bits_without_a_meaning_are_not() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer, other = ost.nn.GRU(3, 5, rng=0), ost.nn.GRU(3, 5, rng=1)
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in layer.state_dict().items()}
    other.load_state_dict(arrays)
    assert all(
        np.array_equal(other.parameters()[n], a.astype(np.float32)) for n, a in arrays.items()
    )
    before = other.flat.copy()
    with pytest.raises(TypeError, match=r"weight_ih_l0: expected numbers, got dtype \|V2"):
        other.load_state_dict({n: a.view("V2") for n, a in arrays.items()})
    with pytest.raises(TypeError, match=r"bias_hh_l0: expected numbers, got dtype complex64"):
        other.load_state_dict({**arrays, "bias_hh_l0": arrays["bias_hh_l0"].astype(np.complex64)})
    assert np.array_equal(other.flat, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_layer_is_saved_in_bfloat16_and_read_back(dtype: str, tmp_path: Any) -> None:
    layer = ost.nn.GRU(7, 9, num_layers=2, dtype=dtype, rng=0)
    path = tmp_path / "layer.safetensors"
    layer.save(path, dtype="bfloat16")
    other = ost.nn.GRU(7, 9, num_layers=2, dtype=dtype, rng=1)
    other.load(path)
    for name, a in layer.parameters().items():
        assert np.array_equal(other.parameters()[name], bfloat16(a)), name
    layer.save(tmp_path / "whole.safetensors")
    assert path.stat().st_size < 0.7 * (tmp_path / "whole.safetensors").stat().st_size
    with pytest.raises(ValueError, match=r"dtype: expected None or 'bfloat16', got 'int8'"):
        layer.save(path, dtype="int8")
    with layer.write() as p:
        p["bias_ih_l1"][3] = 3.4e38
    with pytest.raises(
        ValueError, match=r"bias_ih_l1: expected values within the range of bfloat16, got 3.4e\+38"
    ):
        layer.save(path, dtype="bfloat16")
    other.load(path)  # it is as it was


def test_what_is_saved_in_bfloat16_is_what_the_original_library_reads(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    original = pytest.importorskip("safetensors.torch")
    layer = ost.nn.LSTM(5, 8, rng=0)
    layer.save(tmp_path / "a.safetensors", dtype="bfloat16")
    tensors = original.load_file(tmp_path / "a.safetensors")
    for name, a in layer.state_dict().items():
        assert tensors[name].dtype == torch.bfloat16
        assert torch.equal(tensors[name], torch.tensor(a).to(torch.bfloat16))
    theirs = {n: (3 * t.float()).to(torch.bfloat16) for n, t in tensors.items()}
    original.save_file(theirs, tmp_path / "b.safetensors")
    layer.load(tmp_path / "b.safetensors")
    assert all(np.array_equal(layer.parameters()[n], t.float().numpy()) for n, t in theirs.items())


def test_bfloat16_is_rounded_to_nearest_once(tmp_path: Any) -> None:
    from ostinato import safetensors

    step = 2.0**-7
    cases = {  # value: bfloat16
        1 + step / 2: 1.0,  # a tie goes to even
        1 + 3 * step / 2: 1 + 2 * step,
        1 + step / 2 + 2.0**-40: 1 + step,  # which float32 would take for a tie
        1 + 3 * step / 2 - 2.0**-40: 1 + step,
        -(1 + step / 2 + 2.0**-40): -(1 + step),
        2.0**-133: 2.0**-133,  # the smallest
        2.0**-134 + 2.0**-160: 2.0**-133,
        2.0**-134: 0.0,
        0.0: 0.0,
        np.inf: np.inf,
        -np.inf: -np.inf,
    }
    a = np.array([*cases, np.nan])
    safetensors.save(tmp_path / "a", {"a": a, "n": np.arange(3)}, dtype="bfloat16")
    read = safetensors.load(tmp_path / "a")[0]
    assert np.array_equal(read["a"], np.array([*cases.values(), np.nan]), equal_nan=True)
    assert read["n"].dtype == np.int64
    random = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    safetensors.save(tmp_path / "b", {"a": random}, dtype="bfloat16")
    assert np.array_equal(safetensors.load(tmp_path / "b")[0]["a"], bfloat16(random))


# -- int8 on data: reports, and scales for features ------------------------------------------------


def uneven(cls: Any, ratio: float, **options: Any) -> tuple[Any, Any]:
    """A layer whose weights make as much of small features as of ones that are ratio times larger,
    and inputs.
    """
    rng = np.random.default_rng(0)
    ranges = np.where(np.arange(16) % 2, ratio, 1.0)
    layer = cls(16, 48, rng=0, **options)
    with layer.write() as p:
        for name in p:
            if "weight_ih_l0" in name:
                p[name][...] *= 2 / ranges
    return layer, (rng.normal(size=(30, 6, 16)) * ranges).astype(np.float32)


@pytest.mark.parametrize("ratio", [1, 100, 1000])
@pytest.mark.parametrize("cls", [ost.nn.LSTM, ost.nn.GRU, ost.nn.RNN])
def test_scales_bring_uneven_features_down_to_the_error_of_even_ones(
    cls: Any, ratio: float, kernel_set: str
) -> None:
    layer, x = uneven(cls, ratio)
    exact = layer(x)[0]
    layer.precision = "int8"
    before = frobenius(layer(x)[0], exact)
    assert layer.calibrate(x) is layer
    after = frobenius(layer(x)[0], exact)
    if ratio > 1:
        assert before > 0.3
    assert after < 0.012  # 0.6 to 0.8%, as for ratio 1
    scale = layer.input_scale
    assert np.array_equal(np.exp2(np.rint(np.log2(scale))), scale)
    assert ratio / 4 <= scale[1::2].min() / scale[::2].max()
    layer.input_scale = None
    assert frobenius(layer(x)[0], exact) == before


@pytest.mark.parametrize("ratio", [100, 1000])
def test_scales_of_weights_that_take_no_notice_of_ranges_do_no_harm(ratio: float) -> None:
    layer, x = ost.nn.GRU(16, 48, rng=0), uneven(ost.nn.GRU, ratio)[1]
    errors = layer.quantization_report(x).errors
    assert errors["int8 calibrated"] < 1.1 * errors["int8"]


def test_scaled_inputs_are_those_of_scaled_weights_in_every_form() -> None:
    layer, x = uneven(ost.nn.LSTM, 100, bidirectional=True, num_layers=2, precision="int8")
    scale = layer.calibrate(x).input_scale
    other = copy.deepcopy(layer)
    other.input_scale = None
    with other.write() as p:
        for end in ("", "_reverse"):
            p["weight_ih_l0" + end][...] *= scale
    want, (h, c) = other(x / scale, lengths=[30, 7, 0, 3, 30, 1])
    y, state = layer(x, lengths=[30, 7, 0, 3, 30, 1])
    assert np.array_equal(y, want)
    assert np.array_equal(state[0], h)
    assert np.array_equal(state[1], c)
    rows = [x[:9, 0], x[:4, 1]]
    assert all(
        np.array_equal(a, b) for a, b in zip(layer(rows)[0], other([r / scale for r in rows])[0])
    )
    assert np.array_equal(layer(x[:, 0])[0], other(x[:, 0] / scale)[0])
    assert np.array_equal(layer(x.transpose(1, 0, 2).copy().transpose(1, 0, 2))[0], layer(x)[0])
    assert np.array_equal(layer(x, outputs="last")[0], other(x / scale, outputs="last")[0])
    kept = x.copy()
    layer(x)
    assert np.array_equal(x, kept)
    with pytest.raises(TypeError, match=r"x: expected dtype float32, got float64"):
        layer(x.astype(np.float64))


def test_scales_are_for_int8_alone_and_go_where_the_layer_goes(tmp_path: Any) -> None:
    layer, x = uneven(ost.nn.GRU, 100)
    exact = layer(x)[0]
    layer.calibrate(x)
    assert np.array_equal(layer(x)[0], exact)
    layer.precision = "int8"
    y = layer(x)[0]
    assert list(layer.state_dict()) == list(ost.nn.GRU(16, 48).state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert np.array_equal(other.input_scale, layer.input_scale)
        assert np.array_equal(other(x)[0], y)
        with pytest.raises(ValueError, match="read-only"):
            other.input_scale[0] = 2
    layer.save(tmp_path / "a.safetensors")
    fresh = ost.nn.GRU(16, 48, precision="int8")
    fresh.load(tmp_path / "a.safetensors")
    assert fresh.input_scale is None
    assert np.array_equal(fresh.calibrate(x)(x)[0], y)


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_stream_scales_its_inputs_as_the_layer_does(
    cell: str, power: bool, kernel_set: str
) -> None:
    cls = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU}[cell]
    layer, x = uneven(cls, 100, precision="int8")
    layer.calibrate(x)
    if not power:
        layer.input_scale = np.linspace(0.3, 90, 16)
    y, _ = layer(x)
    stream = layer.stream(6)
    assert stream.x.shape == (6, 16)
    assert all(np.array_equal(stream.step(x[t]), y[t]) for t in range(30))
    assert np.array_equal(stream.x, x[-1])
    model = ost.nn.Sequential(
        ost.nn.Linear(16, 16, rng=0), layer, ost.nn.GRU(48, 5, precision="int8", rng=0)
    )
    model.calibrate(x)
    y, _ = model(x)
    stream = model.stream(6)
    assert all(np.array_equal(stream.step(x[t]), y[t]) for t in range(30))


def test_a_report_measures_and_changes_nothing() -> None:
    layer, x = uneven(ost.nn.LSTM, 1000)
    exact, version, random = (
        layer(x)[0],
        layer.version,
        copy.deepcopy(layer._rng.bit_generator.state),
    )
    report = layer.quantization_report(x)
    assert (layer.version, layer.precision, layer.input_scale) == (version, "float32", None)
    assert layer._rng.bit_generator.state == random
    assert np.array_equal(report.input_ranges, np.abs(x).max((0, 1)))
    assert report.range_ratio == report.input_ranges.max() / report.input_ranges.min()
    for name in ("bfloat16", "int8"):
        layer.precision = name
        y = layer(x)[0].astype(np.float64)
        assert report.errors[name] == pytest.approx(
            frobenius(y, exact.astype(np.float64)), rel=1e-6
        )
        each = np.sqrt(((y - exact) ** 2).sum((0, 1)) / (exact.astype(np.float64) ** 2).sum((0, 1)))
        assert report.worst[name] == (int(each.argmax()), pytest.approx(each.max(), rel=1e-6))
    assert report.errors["int8"] > 0.3
    assert report.errors["int8 calibrated"] < 0.012
    assert any("calibrate(x)" in a for a in report.advice)
    for part in ("LSTM(16, 48)", "bfloat16", "int8 calibrated", "input ranges", "advice"):
        assert part in repr(report)
    calibrated = layer.calibrate(x).quantization_report(x)
    assert calibrated.calibrated
    assert calibrated.errors["int8"] == report.errors["int8 calibrated"]
    assert not any("calibrate" in a for a in calibrated.advice)


def test_steps_that_take_no_part_do_not_count() -> None:
    layer, x = uneven(ost.nn.GRU, 100, batch_first=True)
    x = np.ascontiguousarray(x.swapaxes(0, 1))
    lengths = np.array([30, 4, 9, 1, 0, 12])
    rows = [x[b, :n] for b, n in enumerate(lengths)]
    mask = np.arange(30) < lengths[:, None]
    padded = np.where(mask[..., None], x, np.nan).astype(np.float32)
    want = np.abs(np.concatenate(rows)).max(0)
    for a, times in ((padded, {"lengths": lengths}), (padded, {"mask": mask}), (rows, {})):
        report = layer.quantization_report(a, **times)
        assert np.array_equal(report.input_ranges, want)
        assert 0.3 < report.errors["int8"] < 1
        scale = layer.calibrate(a, **times).input_scale
        assert np.array_equal(scale, layer.calibrate(rows).input_scale)
        layer.input_scale = None
    assert np.array_equal(layer.calibrate(x[0]).input_scale, layer.calibrate(x[:1]).input_scale)
    zeros = np.zeros((1, 3, 16), np.float32)
    zeros[..., 2] = 5
    assert layer.quantization_report(zeros).range_ratio == 1
    assert np.isfinite(layer.calibrate(zeros).input_scale).all()
    assert np.isfinite(layer.calibrate(0 * zeros).input_scale).all()


def test_a_model_reports_each_recurrent_layer_on_what_it_gets() -> None:
    first, x = uneven(ost.nn.GRU, 100, precision="int8")
    model = ost.nn.Sequential(
        ost.nn.Dropout(0.1),
        deep=ost.nn.Sequential(rnn=first, drop=ost.nn.Dropout(0.2)),
        last=ost.nn.LSTM(48, 9, rng=1),
    )
    lengths = [30, 4, 9, 1, 0, 12]
    report = model.quantization_report(x, lengths=lengths)
    assert list(report.layers) == ["deep.rnn", "last"]
    assert repr(report["deep.rnn"]) == repr(first.quantization_report(x, lengths=lengths))
    exact = copy.deepcopy(first)
    exact.precision = "float32"
    inner = exact(x, lengths=lengths)[0]
    assert repr(report["last"]) == repr(model["last"].quantization_report(inner, lengths=lengths))  # type: ignore[attr-defined]
    assert "last: LSTM(48, 9) on this data" in repr(report)
    assert model.calibrate(x, lengths=lengths) is model
    assert np.array_equal(
        first.input_scale, copy.deepcopy(first).calibrate(x, lengths=lengths).input_scale
    )
    assert first._owner is model["deep"]
    with pytest.raises(TypeError, match="model: expected recurrent layers in it"):
        ost.nn.Sequential(ost.nn.Linear(2, 3)).quantization_report(np.ones((1, 1, 2), np.float32))


class Again(ost.nn.Model):
    """A model that calls its layer several times, on inputs of other ranges."""

    def __init__(self) -> None:
        self.cell = ost.nn.GRU(3, 3, rng=0)

    def __call__(self, x: Any) -> Any:
        state = None
        for k in (1, 8, 2):
            y, state = self.cell(k * x, state)
        return y


def test_a_model_reports_layers_within_other_layers() -> None:
    nn, x = ost.nn, np.random.default_rng(0).standard_normal((9, 4, 3)).astype(np.float32)
    model = nn.Sequential(
        nn.Residual(nn.Sequential(nn.LSTM(3, 5, rng=0), nn.Linear(5, 3, rng=0))),
        Again(),
        nn.Concat(nn.RNN(3, 2, rng=0), nn.GRU(3, 2, activation="relu", rng=0)),
        nn.GRU(4, 3, rng=0),
    )
    inner: list[Any] = [model[0].layer[0], model[1].cell, model[2].layers[0], model[3]]  # type: ignore[attr-defined]
    y, before = model(x)[0], [repr(one) for one in inner]
    report = model.quantization_report(x)
    assert list(report.layers) == ["0.layer.0", "1.cell", "2.layers.0", "3"]
    assert repr(report["0.layer.0"]) == repr(inner[0].quantization_report(x))
    read = model[0](x)[0]
    assert np.array_equal(report["1.cell"].input_ranges, 8 * np.abs(read).max((0, 1)))
    model.calibrate(x)
    alone = copy.deepcopy(inner[1]).calibrate(8 * read)
    assert np.array_equal(inner[1].input_scale, alone.input_scale)
    assert all(one.input_scale is not None for one in inner)
    assert [repr(one) for one in inner] == before
    assert np.array_equal(model(x)[0], y)
    model[1].lock = Lock()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"model: expected layers that copy.deepcopy copies, got a"):
        model.calibrate(x)


def test_functions_of_a_layers_own_have_no_int8() -> None:
    layer = ost.nn.GRU(3, 4, clip=2.0, rng=0)
    with pytest.raises(ValueError, match="layer: expected one that has int8, got GRU"):
        layer.quantization_report(np.ones((2, 1, 3), np.float32))


def test_a_masked_array_is_divided_by_the_scales_as_a_whole() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4, 3)).astype(np.float32)
    layer = ost.nn.GRU(3, 6, precision="int8", rng=0)
    layer.input_scale = [8, 8, 8]
    assert np.array_equal(np.asarray(layer._scaled(np.ma.array(x, mask=x > 1))), x / 8)


WRONG_SCALES: dict[str, Any] = {
    "zero": (
        [1, 0, 1],
        ValueError,
        r"input_scale: expected positive numbers from 1e-30 to 1e\+30, got 0 for feature 1",
    ),
    "negative": ([1, 1, -2.0], ValueError, r"got -2.0 for feature 2"),
    "nan": ([np.nan, 1, 1], ValueError, r"got nan for feature 0"),
    "infinite": ([np.inf, 1, 1], ValueError, r"got inf for feature 0"),
    "shape": ([1, 1], ValueError, r"input_scale: expected shape \(I,\) = \(3,\), got \(2,\)"),
    "lists": ([[1], [1, 2]], TypeError, r"input_scale: expected numbers or None, got \[\[1\]"),
    "half": (np.array([1, 0, 1], np.float16), ValueError, r"got 0.0 for feature 1"),
    "text": ("calibrate", TypeError, r"input_scale: expected numbers or None, got 'calibrate'"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", WRONG_SCALES)
def test_scales_that_are_none(kind: str) -> None:
    layer = ost.nn.GRU(3, 4, precision="int8", rng=0)
    layer.input_scale = [1, 2, 4]
    value, error, message = WRONG_SCALES[kind]
    with pytest.raises(error, match=message):
        layer.input_scale = value
    assert layer.input_scale is not None
    assert layer.input_scale.tolist() == [1, 2, 4]


def test_data_that_nothing_can_be_measured_on() -> None:
    layer = ost.nn.GRU(3, 4, rng=0)
    x = np.ones((2, 1, 3), np.float32)
    for measure in (layer.calibrate, layer.quantization_report):
        with pytest.raises(ValueError, match=r"x: expected at least one step that takes part"):
            measure(x[:0])
        with pytest.raises(ValueError, match=r"x: expected at least one step that takes part"):
            measure(x, lengths=[0])
        with pytest.raises(ValueError, match=r"x: expected finite values, got nan in feature 1"):
            measure(np.array([[[1, np.nan, 1]]], np.float32))
        with pytest.raises(ValueError, match=r"x: expected I = 3 features, got shape \(2, 1, 2\)"):
            measure(x[..., :2])
        with pytest.raises(TypeError, match=r"x: expected dtype float32, got float64"):
            measure(x.astype(np.float64))
    assert layer.input_scale is None
    wide = ost.nn.GRU(3, 4, dtype=np.float64)
    for call in (
        wide.calibrate,
        wide.quantization_report,
        lambda x: setattr(wide, "input_scale", x[0, 0]),
    ):
        with pytest.raises(
            TypeError, match=r"layer: expected dtype float32, which has int8, got float64"
        ):
            call(x.astype(np.float64))
