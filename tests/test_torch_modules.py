"""Modules of `ostinato.interop.torch` beside those of torch.nn: outputs, gradients, bad input."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests
from ostinato import _device

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence  # noqa: E402

from ostinato.interop import _torch_kernels as kernels  # noqa: E402
from ostinato.interop import torch as ot  # noqa: E402

FORMS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True},
]
KINDS = ("LSTM", "GRU", "RNN", "RNN relu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: small products on more wait for each other."""
    before = torch.get_num_threads(), ost.get_num_threads()
    torch.set_num_threads(1)
    ost.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    ost.set_num_threads(before[1])


def pair(kind: str, form: dict[str, Any], dtype: Any = torch.float64) -> tuple[Any, Any]:
    """Return a layer of torch.nn and ours with the same parameters."""
    name, _, relu = kind.partition(" ")
    options = {**form, "dtype": dtype, **({"nonlinearity": relu} if relu else {})}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(5, 7, **options)
    torch.manual_seed(0)
    ours = getattr(ot, name)(5, 7, **options)
    return theirs, ours


def leaves(value: Any) -> list[Any]:
    """Return the tensors of an output, data of a PackedSequence included."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in leaves(v)]


def assert_same(theirs: Any, ours: Any, call: Any, inputs: list[Any], atol: float = 1e-12) -> None:
    """Compare outputs and all gradients of two modules; call is given the module and inputs."""
    results = []
    for module in (theirs, ours):
        given = [x.detach().clone().requires_grad_() for x in inputs]
        out = leaves(call(module, *given))
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in out]
        module.zero_grad()
        torch.autograd.backward(out, weights)
        grads = [t.grad for t in (*given, *module.parameters())]
        results.append([*out, *grads])
    assert len(results[0]) == len(results[1])
    for want, got in zip(*results):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=atol)


def state_for(module: Any, batch: int, dtype: Any = torch.float64) -> list[Any]:
    """Return h, and c of an LSTM, for a module."""
    parts = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size]
    if module.mode == "LSTM":
        sizes.append(module.hidden_size)
    return [torch.randn(parts, batch, n, dtype=dtype) for n in sizes]


@pytest.mark.parametrize("number", range(len(FORMS)))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [False, True])
def test_outputs_and_gradients(kind: str, number: int, state: bool) -> None:
    form = FORMS[number]
    if "proj_size" in form and kind != "LSTM":
        pytest.skip("a projection is of the LSTM")
    theirs, ours = pair(kind, form)
    for p, q in zip(theirs.parameters(), ours.parameters()):
        assert torch.equal(p, q)  # the same seed draws the same values
    x = torch.randn((4, 6, 5) if form.get("batch_first") else (6, 4, 5), dtype=torch.float64)
    states = state_for(theirs, 4) if state else []

    def call(module: Any, x: Any, *hx: Any) -> Any:
        return module(x, (hx if len(hx) == 2 else hx[0]) if hx else None)

    assert_same(theirs, ours, call, [x, *states])
    with torch.no_grad():
        assert torch.equal(call(ours, x, *states)[0], call(ours.train(), x, *states)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sort", [False, True])
def test_packed_sequences(kind: str, sort: bool) -> None:
    for form in FORMS[:4]:
        theirs, ours = pair(kind, form)
        lengths = [6, 4, 3, 1] if sort else [3, 6, 1, 4]
        x = torch.randn(6, 4, 5, dtype=torch.float64)

        def call(module: Any, x: Any, *hx: Any, lengths: Any = lengths) -> Any:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=sort)
            out, state = module(packed, hx if len(hx) == 2 else hx[0])
            assert isinstance(out, PackedSequence)
            for a, b in zip(out[1:], packed[1:]):
                assert (a is None and b is None) or torch.equal(a, b)
            return out, state

        assert_same(theirs, ours, call, [x, *state_for(theirs, 4)])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_inputs_of_torchs_own_module_tests(kind: str) -> None:
    common = pytest.importorskip("torch.testing._internal.common_modules")
    info = next(m for m in common.module_db if m.module_cls is getattr(torch.nn, kind))
    count = 0
    for training in (True, False):
        for packed in (False, True):
            samples = info.module_inputs_func(
                info, "cpu", torch.float64, True, training, with_packed_sequence=packed
            )
            for sample in samples:
                made = sample.constructor_input
                theirs, ours = (
                    getattr(m, kind)(*made.args, **made.kwargs, dtype=torch.float64).train(training)
                    for m in (torch.nn, ot)
                )
                ours.load_state_dict(theirs.state_dict())
                given = sample.forward_input
                want, got = (leaves(m(*given.args, **given.kwargs)) for m in (theirs, ours))
                for a, b in zip(want, got):
                    torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
                grads = []
                for module, out in ((theirs, want), (ours, got)):
                    sum(t.square().sum() for t in out).backward()
                    grads.append([p.grad for p in module.parameters()])
                for a, b in zip(*grads):
                    torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
                count += 1
    assert count >= {"LSTM": 64, "GRU": 64, "RNN": 128}[kind]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_errors_of_torchs_own_module_tests(kind: str) -> None:
    common = pytest.importorskip("torch.testing._internal.common_modules")
    info = next(m for m in common.module_db if m.module_cls is getattr(torch.nn, kind))
    for bad in info.module_error_inputs_func(info, "cpu", torch.float32, False, True):
        made, given = bad.module_error_input.constructor_input, bad.module_error_input.forward_input
        with pytest.raises(bad.error_type):
            getattr(ot, kind)(*made.args, **made.kwargs)(*given.args, **given.kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_load_both_ways(kind: str) -> None:
    theirs, ours = pair(kind, FORMS[1], torch.float32)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert repr(theirs) == repr(ours)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first"):
        assert getattr(theirs, name) == getattr(ours, name)
    for name in ("dropout", "bidirectional", "proj_size"):
        assert getattr(theirs, name) == getattr(ours, name)
    torch.nn.init.normal_(theirs.weight_hh_l1_reverse)
    ours.load_state_dict(theirs.state_dict())
    ours.flatten_parameters()
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=1e-5)
    torch.nn.init.normal_(ours.weight_ih_l0)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=1e-5)
    assert [[w.shape for w in ws] for ws in ours.all_weights] == [
        [w.shape for w in ws] for ws in theirs.all_weights
    ]
    assert len(list(ours.buffers())) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_lengths_are_those_of_packed_sequences(kind: str, first: bool) -> None:
    theirs, ours = pair(kind, {**FORMS[1], "batch_first": first})
    lengths = [2, 6, 3]
    x = torch.randn((3, 6, 5) if first else (6, 3, 5), dtype=torch.float64)
    padded = torch.nn.utils.rnn.pad_packed_sequence
    packed, state = theirs(
        pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    )
    want = padded(packed, batch_first=first)[0]
    for given in (lengths, torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)):
        got, own = ours(x, lengths=given)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        for a, b in zip(leaves(state), leaves(own)):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_resets_are_a_loop_over_steps(kind: str) -> None:
    theirs, ours = pair(kind, {"num_layers": 2})
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    resets = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    resets[0, 0] = True

    def call(module: Any, x: Any, *hx: Any) -> Any:
        if module is ours:
            return module(x, hx if len(hx) == 2 else hx[0], resets=resets)
        rows, state = [], list(hx)
        for t in range(6):
            state = [s * (~resets[t])[None, :, None] for s in state]
            y, out = module(x[t : t + 1], tuple(state) if len(state) == 2 else state[0])
            state = leaves(out)
            rows.append(y)
        return torch.cat(rows), state

    assert_same(theirs, ours, call, [x, *state_for(theirs, 4)])


def test_flags_are_packed_as_the_input() -> None:
    """Those of another packing would be of other rows."""
    rows = [torch.randn(n, 3) for n in (2, 5, 3)]
    marks = [torch.zeros(n, dtype=torch.bool) for n in (2, 5, 3)]
    packed, module = pack_sequence(rows, enforce_sorted=False), ot.GRU(3, 4)
    module(packed, resets=pack_sequence(marks, enforce_sorted=False))
    in_order = pack_sequence([marks[k] for k in (1, 2, 0)])
    others = PackedSequence(torch.zeros(10, dtype=torch.bool), torch.tensor([2] * 5))
    for wrong in (in_order, others):
        with pytest.raises(ValueError, match="resets: expected a PackedSequence of the batch_siz"):
            module(packed, resets=wrong)
    for count in (2, 5):
        with pytest.raises(RuntimeError, match="hx: expected states of 3 sequences, got shape"):
            module(packed, torch.zeros(1, count, 4))


def test_autocast_is_of_floating_point_numbers() -> None:
    module, x = ot.LSTM(3, 4), torch.ones(2, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        module(x.double())
        for wrong in (x * 1j, x.long()):
            with pytest.raises(ValueError, match=r"input: expected torch\.float32 as the"):
                module(wrong)
    with pytest.raises(TypeError, match="layer_norm: expected True or False, got 'no'"):
        ot.LSTM(3, 4, layer_norm="no")
    with pytest.raises(TypeError, match="hx: expected a pair of tensors, got one of ndarray"):
        module(x, (np.zeros((1, 2, 4)), np.zeros((1, 2, 4))))


def test_resets_of_packed_sequences_and_single_ones() -> None:
    _, ours = pair("GRU", {"bidirectional": True})
    sequences = [torch.randn(n, 5, dtype=torch.float64) for n in (3, 6, 1)]
    flags = [torch.arange(n) % 3 == 2 for n in (3, 6, 1)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    marks = pack_sequence(flags, enforce_sorted=False)
    out, h = ours(packed, resets=marks)
    same, _ = ours(packed, resets=marks.data)
    assert torch.equal(out.data, same.data)
    rows = torch.nn.utils.rnn.unpack_sequence(out)
    for b, (x, r) in enumerate(zip(sequences, flags)):
        y, last = ours(x, resets=r)
        torch.testing.assert_close(rows[b], y, rtol=0, atol=1e-12)
        torch.testing.assert_close(h[:, b], last, rtol=0, atol=1e-12)
    y, _ = ours(sequences[1], lengths=torch.tensor(4))
    assert not y[4:].any()
    assert y[3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    _, ours = pair(kind, {"num_layers": 2, "bidirectional": True})
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in state_for(ours, 2)]
    names = [n for n, _ in ours.named_parameters()]
    resets = torch.tensor([[False, True], [False, False], [True, False]])

    def call(x: Any, *rest: Any) -> Any:
        hx = rest[: len(states)]
        given = dict(zip(names, rest[len(states) :]))
        out = torch.func.functional_call(
            ours,
            given,
            (x, hx if len(hx) == 2 else hx[0]),
            {"resets": resets, "lengths": [3, 2]},
        )
        return tuple(leaves(out))

    assert torch.autograd.gradcheck(call, (x, *states, *ours.parameters()), fast_mode=True)


def test_layer_norm_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    ours = ot.LSTM(5, 7, 2, bidirectional=True, layer_norm=True, dtype=torch.float64)
    assert repr(ours) == "LSTM(5, 7, num_layers=2, bidirectional=True, layer_norm=True)"
    assert ours.weight_ln_c_l1_reverse.detach().unique().tolist() == [1.0]
    assert not ours.bias_ln_c_l0.detach().any()
    layer = ost.nn.LSTM(5, 7, 2, bidirectional=True, layer_norm=True, dtype=np.float64)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    layer.load_state_dict({n: p.detach().numpy() for n, p in ours.named_parameters()})
    x = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    y, (h, c) = ours(x)
    (want, (h_n, c_n)), pullback = layer.vjp(x.detach().numpy())
    for a, b in ((y, want), (h, h_n), (c, c_n)):
        np.testing.assert_array_equal(a.detach().numpy(), b)
    y.backward(torch.ones_like(y))
    dx, _ = pullback(np.ones_like(want))
    np.testing.assert_allclose(x.grad.numpy(), dx, rtol=0, atol=1e-12)
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), layer.grads[name], rtol=0, atol=1e-12)
    ours.reset_parameters()
    assert ours.weight_ln_ih_l0.detach().unique().tolist() == [1.0]


def test_dropout_follows_the_seed_of_torch() -> None:
    ours = ot.GRU(5, 7, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    torch.manual_seed(3)
    y, _ = ours(x)
    other, _ = ours(x)
    torch.manual_seed(3)
    again, _ = ours(x)
    assert torch.equal(y, again)
    assert not torch.equal(y, other)
    with torch.no_grad():
        torch.manual_seed(3)
        assert torch.equal(y, ours(x)[0])  # as in training: the mode counts, not the gradients
    ours.eval()
    a, _ = ours(x)
    assert torch.equal(a, ours(x)[0])
    mean = torch.stack([ours.train()(x)[0].detach() for _ in range(50)]).mean(0)
    assert (mean - a).abs().mean() < 0.05


def test_tensors_are_not_copied() -> None:
    ours = ot.LSTM(5, 7)
    x = torch.randn(3, 2, 5)
    assert kernels._rows(x).ctypes.data == x.data_ptr()
    assert kernels._rows(x.transpose(0, 1)).ctypes.data == x.data_ptr()
    w = ours.weight_hh_l0
    assert kernels._dense(w).ctypes.data == w.data_ptr()
    array = np.zeros((3, 2, 5), np.float32)
    assert kernels._tensor(array, x).data_ptr() == array.ctypes.data
    columns = torch.randn(3, 5, 2).transpose(1, 2)  # only what the kernels cannot read
    assert torch.equal(ours(columns)[0], ours(columns.contiguous())[0])
    skewed = torch.nn.Parameter(torch.randn(5, 28).t())
    ours.weight_ih_l0 = skewed
    y = ours(x)[0]
    ours.weight_ih_l0 = torch.nn.Parameter(skewed.detach().contiguous())
    assert torch.equal(y, ours(x)[0])


def test_what_a_pass_saves_goes_with_its_graph() -> None:
    ours = ot.GRU(5, 7)
    before = len(kernels._saved)
    y, _ = ours(torch.randn(3, 2, 5))
    assert len(kernels._saved) == before + 1
    y.sum().backward(retain_graph=True)
    first = ours.weight_hh_l0.grad.clone()
    y.sum().backward()  # as often as is wanted
    torch.testing.assert_close(ours.weight_hh_l0.grad, 2 * first)
    assert len(kernels._saved) == before
    y, h = ours(torch.randn(3, 2, 5))
    del y, h
    assert len(kernels._saved) == before


def test_a_change_in_place_is_found() -> None:
    ours = ot.GRU(5, 7)
    x = torch.randn(3, 2, 5)
    for change in (lambda y: y.mul_(2), lambda y: x.add_(1)):
        y, _ = ours(x)
        total = y.sum()
        with torch.no_grad():
            change(y)
        with pytest.raises(RuntimeError, match="inplace operation"):
            total.backward()


def test_frozen_parameters_and_partial_outputs() -> None:
    theirs, ours = pair("LSTM", {"num_layers": 2})
    for m in (theirs, ours):
        m.weight_hh_l0.requires_grad_(False)
        m.bias_ih_l1.requires_grad_(False)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    assert_same(theirs, ours, lambda m, x: m(x)[1][1], [x])
    for m in (theirs, ours):
        m.requires_grad_(False)
    assert_same(theirs, ours, lambda m, x: m(x)[1][0], [x])
    assert not ours(x)[0].requires_grad


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_low_precision_parameters(kind: str) -> None:
    theirs, ours = pair(kind, {"num_layers": 2}, torch.float32)
    x = torch.randn(6, 3, 5)
    want = theirs(x)[0]
    for dtype, limit in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        low = copy.deepcopy(ours).to(dtype)
        y, state = low(x.to(dtype))
        assert {t.dtype for t in leaves((y, state))} == {dtype}
        assert (y.float() - want).abs().max() < limit
        y.sum().backward()
        assert {p.grad.dtype for p in low.parameters()} == {dtype}
    half = copy.deepcopy(ours).half()
    exact = copy.deepcopy(half).float()  # computed in float32, and rounded at the end
    assert torch.equal(half(x.half())[0], exact(x.half().float())[0].half())


def test_autocast() -> None:
    _, ours = pair("GRU", {}, torch.float32)
    linear = torch.nn.Linear(5, 5)
    x = torch.randn(6, 3, 5)
    plain = ours(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, h = ours(x)
        same, _ = ours(x.bfloat16())  # what a linear layer gives here
        ours(linear(x))[0].sum().backward()
    assert y.dtype == h.dtype == ours.weight_hh_l0.grad.dtype == torch.float32
    assert same.dtype == torch.float32
    layer = ost.nn.GRU(5, 7, precision="bfloat16")
    layer.load_state_dict({n: p.detach().numpy() for n, p in ours.named_parameters()})
    np.testing.assert_array_equal(y.detach().numpy(), layer(x.numpy())[0])
    assert not torch.equal(y, plain)
    with torch.autocast("cpu", torch.float16):  # no such products on the CPU: float32
        assert torch.equal(ours(x)[0], plain)


def test_pickles_and_copies() -> None:
    ours = ot.LSTM(5, 7, 2, layer_norm=True)
    x = torch.randn(3, 2, 5)
    want = ours(x)[0]
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert torch.equal(other(x)[0], want)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert torch.equal(ours(x)[0], want)
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x)[0], want)
    moved = ours.double()
    assert moved(x.double())[0].dtype == torch.float64


def test_parametrizations_are_read_at_every_call() -> None:
    theirs, ours = pair("LSTM", {})
    parametrizations = torch.nn.utils.parametrizations
    for m in (theirs, ours):
        parametrizations.weight_norm(m, "weight_hh_l0")
        torch.nn.utils.parametrize.register_parametrization(m, "bias_ih_l0", torch.nn.Tanh())
    for p, q in zip(theirs.parameters(), ours.parameters()):
        with torch.no_grad():
            q.copy_(p)
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    out = [m(x)[0] for m in (theirs, ours)]
    torch.testing.assert_close(out[1], out[0], rtol=0, atol=1e-12)
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(ours(x)[0], out[1])
    ours(x)[0].sum().backward()
    assert ours.parametrizations.weight_hh_l0.original0.grad.any()
    assert torch.equal(copy.deepcopy(ours)(x)[0], ours(x)[0])


# -- replace ---------------------------------------------------------------------------------------


class Custom(torch.nn.LSTM):
    """A layer of somebody else."""


def test_replace_keeps_the_parameters_and_names_what_stays() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.LSTM(5, 5, 2)),
            "gru": torch.nn.GRU(5, 5, bidirectional=True),
            "rnn": torch.nn.RNN(5, 5, nonlinearity="relu"),
            "cell": torch.nn.LSTMCell(5, 5),
            "custom": Custom(5, 5),
            "ours": ot.GRU(5, 5),
        }
    )
    alias, calls = model["gru"], []
    model["gru"].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 2, 5)
    names = ("a", "gru", "rnn")
    want = [model[n](x) for n in names]
    before = {n: id(p) for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    told = ot.replace(model)
    assert list(told.replaced) == ["a.1", "gru", "rnn"]
    assert list(told.kept) == ["cell", "custom"]
    assert "Custom" in told.kept["custom"]
    assert "kept, a cell runs one step" in str(told)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert type(alias) is ot.GRU
    got = [model[n](x) for n in names]
    for a, b in zip(leaves(want), leaves(got)):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    assert len(calls) == 2
    old = model["rnn"].weight_hh_l0.detach().clone()
    sum(t.sum() for t in leaves(got)).backward()
    optimizer.step()
    assert not torch.equal(model["rnn"].weight_hh_l0, old)
    assert str(ot.replace(torch.nn.Linear(2, 2))) == "no recurrent layers"
    layer = torch.nn.LSTM(5, 5)
    assert list(ot.replace(layer).replaced) == [""]
    assert type(layer) is ot.LSTM
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x)[0], layer(x)[0])
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int"):
        ot.replace(3)


def test_replace_tells_of_parametrized_layers() -> None:
    layer = torch.nn.LSTM(3, 3)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    told = ot.replace(torch.nn.Sequential(layer))
    assert not told.replaced
    assert "class of its own" in told.kept["0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certain = torch.nn.LSTM(3, 3, dropout=1.0)
    assert "dropout" in ot.replace(certain).kept[""]


# -- bad input -------------------------------------------------------------------------------------

X = torch.zeros(4, 2, 5)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, r"input: expected \[T,B,I\]", lambda m: m(torch.zeros(5))),
        (RuntimeError, "input: expected 5 features", lambda m: m(torch.zeros(4, 2, 3))),
        (RuntimeError, "input: expected at least one step", lambda m: m(torch.zeros(0, 2, 5))),
        (ValueError, "input: expected torch.float32", lambda m: m(X.double())),
        (ValueError, "input: expected torch.float32", lambda m: m(X.long())),
        (ValueError, "hx: expected torch.float32", lambda m: m(X, (X.double(), X))),
        (TypeError, r"hx: expected a pair \(h, c\), got Tensor", lambda m: m(X, X)),
        (RuntimeError, "hx: expected h of shape", lambda m: m(X, (X, X))),
        (
            RuntimeError,
            "hx: expected c of shape",
            lambda m: m(X, (torch.zeros(1, 2, 7), torch.zeros(1, 2, 5))),
        ),
        (
            RuntimeError,
            "hx: expected 2 axes",
            lambda m: m(X[:, 0], (torch.zeros(1, 1, 7), torch.zeros(1, 1, 7))),
        ),
        (TypeError, "lengths: expected whole numbers", lambda m: m(X, lengths=[1.0, 2.0])),
        (
            TypeError,
            "lengths: expected whole numbers",
            lambda m: m(X, lengths=torch.ones(2, requires_grad=True)),
        ),
        (RuntimeError, r"lengths: expected shape \(B,\)", lambda m: m(X, lengths=[1])),
        (ValueError, "lengths: expected values from 0 to T", lambda m: m(X, lengths=[1, 5])),
        (ValueError, "lengths: expected values from 0 to T", lambda m: m(X, lengths=[-1, 4])),
        (TypeError, "resets: expected a tensor of bool", lambda m: m(X, resets=torch.zeros(4, 2))),
        (TypeError, "resets: expected a tensor of bool", lambda m: m(X[:, 0], resets=[True] * 4)),
        (TypeError, "input: expected a tensor or a PackedSequence", lambda m: m(X.numpy())),
        (
            TypeError,
            r"lengths: expected whole numbers, got \[None, 1\]",
            lambda m: m(X, lengths=[None, 1]),
        ),
        (TypeError, "lengths: expected whole numbers, got 'ab'", lambda m: m(X, lengths="ab")),
        (TypeError, "lengths: expected whole numbers", lambda m: m(X, lengths=[2**70, 1])),
        (
            RuntimeError,
            r"lengths: expected shape \(B,\) = \(1,\)",
            lambda m: m(X[:, 0], lengths=[3, 2]),
        ),
        (TypeError, "resets: expected a tensor of bool", lambda m: m(X, resets=np.zeros((4, 2)))),
        (
            RuntimeError,
            r"resets: expected shape \(4, 2\)",
            lambda m: m(X, resets=torch.zeros(2, 4, dtype=torch.bool)),
        ),
        (
            ValueError,
            "lengths: expected None with a PackedSequence",
            lambda m: m(pack_sequence([X[:, 0]]), lengths=[4]),
        ),
        (
            RuntimeError,
            r"resets: expected shape \(4,\)",
            lambda m: m(pack_sequence([X[:, 0]]), resets=torch.zeros(4, 1, dtype=torch.bool)),
        ),
        (
            ValueError,
            "batch_sizes: expected sizes that do not increase",
            lambda m: m(PackedSequence(torch.zeros(3, 5), torch.tensor([1, 2]))),
        ),
        (
            ValueError,
            "batch_sizes: expected sizes that do not increase, of 4 rows",
            lambda m: m(PackedSequence(torch.zeros(4, 5), torch.tensor([2, 1]))),
        ),
        (RuntimeError, "input: expected a tensor on cpu", lambda m: m(X.to("meta"))),
        (
            RuntimeError,
            "hx: expected a tensor on cpu",
            lambda m: m(X, (torch.zeros(1, 2, 7, device="meta"), torch.zeros(1, 2, 7))),
        ),
    ],
    ids=range(30),
)
def test_bad_input(error: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(error, match=text):
        call(ot.LSTM(5, 7))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="hx: expected a tensor h, got tuple"):
        ot.GRU(5, 7)(X, (X, X))
    with pytest.raises(ValueError, match="proj_size: expected 0 with layer_norm=True, got 2"):
        ot.LSTM(5, 7, proj_size=2, layer_norm=True)
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu'"):
        ot.RNN(5, 7, nonlinearity="gelu")
    with pytest.raises(ValueError, match=r"dropout: expected a number in \[0, 1\), got 1.0"):
        ot.GRU(5, 7, 2, dropout=1.0)
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        ot.GRU(5, 7, dropout=0.5)
    with pytest.raises(ValueError, match="expected parameters of float32"):
        ot.GRU(5, 7).to(torch.float8_e5m2)(X.to(torch.float8_e5m2))


def test_no_rows_at_all() -> None:
    theirs, ours = pair("LSTM", {"num_layers": 2})
    x = torch.zeros(4, 0, 5, dtype=torch.float64)
    assert_same(theirs, ours, lambda m, x: m(x), [x])
    y, (h, _) = ours(torch.randn(4, 2, 5, dtype=torch.float64), lengths=[0, 0])
    assert not y.any()
    assert not h.any()


def test_the_package_imports_without_torch() -> None:
    code = (
        "import sys, ostinato, ostinato.interop; assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try:\n    from ostinato.interop import torch\n"
        "except ImportError as e:\n    print(e)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected PyTorch, which is not installed: pip install 'ostinato[torch]'" in told.stdout


# -- a device --------------------------------------------------------------------------------------


def test_a_gpu_without_kernels_is_an_error() -> None:
    if ost.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="expected a tensor on the CPU, got one on cuda:0: "):
        kernels.require_device(torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="expected a tensor on the CPU or a CUDA GPU, got one"):
        kernels.require_device(torch.device("mps"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The way of a CUDA tensor, with the emulated kernels in the place of a GPU's."""
    native_for_tests()
    device = fake_cupy.stand_in(monkeypatch)
    monkeypatch.setattr(kernels, "_on_cpu", lambda t: False)
    monkeypatch.setattr(kernels, "require_device", lambda d: None)
    monkeypatch.setattr(kernels, "_on_stream", lambda x: nullcontext())
    plain = kernels._array

    def array(t: Any) -> Any:  # of the memory of a tensor, as those of CuPy are
        return plain(t) if kernels._on_cpu(t) else device.xp.ndarray(t.detach().numpy())

    monkeypatch.setattr(kernels, "_array", array)

    def tensor(a: Any, like: Any) -> Any:
        t = a if isinstance(a, torch.Tensor) else torch.from_numpy(_device.host(a))
        return t.to(like.dtype)

    monkeypatch.setattr(kernels, "_tensor", tensor)
    return device


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("form", [{"num_layers": 2}, {"bidirectional": True, "batch_first": True}])
def test_kernels_of_a_device(kind: str, form: Any, gpu: Any) -> None:
    theirs, ours = pair(kind, form, torch.float32)
    x = torch.randn((2, 6, 5) if form.get("batch_first") else (6, 2, 5))
    states = state_for(theirs, 2, torch.float32)

    def call(module: Any, x: Any, *hx: Any) -> Any:
        return module(x, hx if len(hx) == 2 else hx[0])

    assert_same(theirs, ours, call, [x, *states], atol=2e-5)
    packed = pack_sequence([torch.randn(n, 5) for n in (3, 5)], enforce_sorted=False)
    for a, b in zip(leaves(theirs(packed)), leaves(ours(packed))):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("options", [{}, {"proj_size": 3}, {"layer_norm": True}], ids=str)
def test_lengths_and_resets_on_a_device(
    options: Any, first: bool, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch.nn does not have is held against the kernels of the CPU."""
    layer = ot.LSTM(5, 7, batch_first=first, **options)
    x = torch.randn(3, 6, 5) if first else torch.randn(6, 3, 5)
    resets = torch.rand(x.shape[:2]) < 0.3
    found = []
    for on_cpu in (True, False):
        monkeypatch.setattr(kernels, "_on_cpu", lambda t, c=on_cpu: c)
        for given in ({"lengths": [6, 0, 4]}, {"resets": resets}):
            at = x.clone().requires_grad_()
            layer.zero_grad()
            y, (h, c) = layer(at, **given)
            (y.cos().sum() + h.sum() + c.sum()).backward()
            found.append([y, h, c, at.grad, *(p.grad for p in layer.parameters())])
    for want, got in zip(found[:2], found[2:]):
        for a, b in zip(want, got):
            torch.testing.assert_close(b, a, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_on_a_device(dtype: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = ot.GRU(5, 7).to(dtype), torch.randn(6, 3, 5).to(dtype)
    found = []
    for on_cpu in (True, False):
        monkeypatch.setattr(kernels, "_on_cpu", lambda t, c=on_cpu: c)
        at = x.clone().requires_grad_()
        layer.zero_grad()
        y, h = layer(at)
        y.sum().backward()
        found.append([y, h, at.grad, *(p.grad for p in layer.parameters())])
        assert all(t.dtype == dtype for t in found[-1])
    limit = {torch.float64: 1e-12, torch.bfloat16: 0.05, torch.float16: 5e-3}[dtype]
    for a, b in zip(*found):
        torch.testing.assert_close(b, a, rtol=limit, atol=limit)


def test_large_results_on_a_device_are_memory_of_pytorch(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, and the gradients of x and of the weights; nothing of them is copied."""
    made, shared = [], kernels._array
    monkeypatch.setattr(kernels, "_array", lambda t: made.append(t.data_ptr()) or shared(t))
    layer, x = ot.LSTM(5, 7), torch.randn(6, 3, 5, requires_grad=True)
    with torch.no_grad():
        assert layer(x)[0].data_ptr() in made
    y, _ = layer(x)
    assert {t.data_ptr() for t in (y, x, *layer.parameters())} <= set(made)
    dy = torch.ones_like(y)
    y.backward(dy)
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert {t.data_ptr() for t in (dy, *grads)} <= set(made)


class _Cupy:
    """What the adapter asks of CuPy, which notes it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.cuda = self

    def ExternalStream(self, pointer: int, index: int) -> Any:
        return self._context(("stream", pointer, index))

    def Device(self, index: int) -> Any:
        return self._context(("device", index))

    @contextmanager
    def _context(self, what: Any) -> Iterator[None]:
        self.seen.append(what)
        yield
        self.seen.append(("left", what[0]))

    def from_dlpack(self, t: Any) -> Any:
        self.seen.append(("dlpack", t.data_ptr(), t.requires_grad))
        return t


class _OnGpu:
    """A tensor on a GPU as far as it is asked."""

    is_cpu, device = False, torch.device("cuda", 1)

    def detach(self) -> Any:
        return torch.ones(3)


def test_launches_go_to_the_current_stream_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream and the GPU are those of the tensor, also in the thread of autograd."""
    cupy, asked = _Cupy(), []
    gpu = SimpleNamespace(xp=cupy)
    monkeypatch.setattr(_device, "cuda", lambda index: asked.append(index) or gpu)
    stream = SimpleNamespace(cuda_stream=4321)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: asked.append(d) or stream)
    x: Any = _OnGpu()
    with kernels._on_stream(x):
        array = kernels._array(x)
    assert asked == [1, x.device, 1]
    assert cupy.seen[:2] == [("device", 1), ("stream", 4321, 1)]
    assert cupy.seen[2] == ("dlpack", array.data_ptr(), False)
    assert cupy.seen[3:] == [("left", "stream"), ("left", "device")]


def test_a_trace_is_refused() -> None:
    """It would keep the outputs of one call."""
    layer = ot.GRU(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace: expected torch\.compile"):
            torch.jit.trace(layer, (x,))


def test_a_packed_sequence_takes_half_a_state_as_others_do() -> None:
    layer, c = ot.LSTM(3, 4), torch.randn(1, 2, 4)
    x = torch.randn(5, 2, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 5])
    _, (h, _) = layer(x, (None, c))
    _, (h2, _) = layer(packed, (None, c))
    assert torch.equal(h, h2)
