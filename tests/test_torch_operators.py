"""The operators below `ostinato.interop.torch`: compilers, transforms, checkpoints, processes."""

from __future__ import annotations

import copy
import io
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ostinato as ost

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from ostinato.interop import _torch_kernels as kernels  # noqa: E402
from ostinato.interop import torch as ot  # noqa: E402

KINDS = ("LSTM", "GRU", "RNN")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, and forget what PyTorch compiled."""
    before = torch.get_num_threads(), ost.get_num_threads()
    torch.set_num_threads(1)
    ost.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    ost.set_num_threads(before[1])
    torch._dynamo.reset()


class Model(torch.nn.Module):
    """A recurrent layer between two Linear ones."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 6 * (2 if options.get("bidirectional") else 1)
        self.head = torch.nn.Linear(3, 5)
        self.core = getattr(ot, kind)(5, 6, **options)
        self.tail = torch.nn.Linear(width, 2)

    def forward(self, x: Any, state: Any = None, **options: Any) -> Any:
        y, _ = self.core(torch.tanh(self.head(x)), state, **options)
        return self.tail(y)


def gradients(model: Any, x: Any, **options: Any) -> list[Any]:
    """Return the outputs and the gradients of a squared sum of them."""
    given = x.detach().clone().requires_grad_()
    model.zero_grad()
    y = model(given, **options)
    y.square().sum().backward()
    return [y.detach(), given.grad, *(p.grad.clone() for p in model.parameters())]


def assert_close(got: list[Any], want: list[Any], atol: float = 1e-5) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def forward_arguments(cell: str = "lstm", dtype: Any = torch.float64, **changes: Any) -> list[Any]:
    """Return the arguments of the forward operator; tensors require gradients."""
    gates = {"lstm": 4, "gru": 3, "rnn_tanh": 1}[cell]
    torch.manual_seed(0)

    def leaf(*shape: int) -> Any:
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    weights = []
    for width in (5, 6):
        weights += [leaf(gates * 6, width), leaf(gates * 6, 6), leaf(gates * 6), leaf(gates * 6)]
    values = {
        "x": leaf(7, 2, 5),
        "h0": leaf(2, 2, 6),
        "c0": leaf(2, 2, 6) if cell == "lstm" else None,
        "weights": weights,
        "lengths": None,
        "resets": None,
        "batch_sizes": None,
        "key": None,
        "batch": 2,
        "cell": cell,
        "layers": 2,
        "bias": True,
        "bidirectional": False,
        "batch_first": False,
        "dropout": 0.0,
        "precision": "float64",
        "save": True,
        **changes,
    }
    return list(values.values())


CASES: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "gru", "lengths": torch.tensor([7, 3])},
    {"cell": "rnn_tanh", "resets": torch.arange(14).reshape(7, 2) % 5 == 0},
    {"cell": "gru", "key": torch.tensor([5]), "dropout": 0.5},
    {
        "cell": "lstm",
        "x": torch.randn(9, 5, dtype=torch.float64),
        "batch_sizes": torch.tensor([2, 2, 2, 1, 1, 1]),
    },
]


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # its own
def test_opcheck_of_torch(number: int) -> None:
    args = forward_arguments(**CASES[number])
    told = torch.library.opcheck(torch.ops.ostinato.recurrent.default, args)
    assert set(told.values()) == {"SUCCESS"}
    detached = [
        [w.detach() for w in a] if isinstance(a, list) else a.detach() if torch.is_tensor(a) else a
        for a in args
    ]
    y, h, c, saved = torch.ops.ostinato.recurrent(*detached)
    dc = torch.randn_like(c) if args[9] == "lstm" else None
    need = [True, True, dc is not None] + [True] * 7 + [False]
    back = [torch.randn_like(y), torch.randn_like(h), dc, y, saved, *detached[:-1], need]
    told = torch.library.opcheck(torch.ops.ostinato.recurrent_backward.default, back)
    assert set(told.values()) == {"SUCCESS"}


def test_gradcheck_of_the_operator() -> None:
    args = forward_arguments()
    tensors = [args[0], args[1], args[2], *args[3]]

    def call(x: Any, h0: Any, c0: Any, *weights: Any) -> Any:
        return torch.ops.ostinato.recurrent(x, h0, c0, list(weights), *args[4:])[:3]

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("GRU", {"batch_first": True}),
        ("RNN", {"bias": False}),
        ("LSTM", {"layer_norm": True}),
        ("LSTM", {"proj_size": 6, "num_layers": 2}),
    ],
    ids=["lstm", "gru", "rnn", "norm", "projected"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_as_one_graph(kind: str, options: dict[str, Any]) -> None:
    if "proj_size" in options:
        model = Model(kind)
        model.core = ot.LSTM(5, 8, **options)
    else:
        model = Model(kind, **options)
    x = torch.randn(4, 4, 3)
    resets = torch.arange(16).reshape(4, 4) % 7 == 3
    want = gradients(model, x)
    own = gradients(model, x, resets=resets)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(gradients(compiled, x), want)
    assert_close(gradients(compiled, x, resets=resets), own)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), want[0], rtol=0, atol=1e-6)
    with torch.no_grad():  # weights are read at every call
        model.core.weight_hh_l0.mul_(0.5)
    assert_close(gradients(compiled, x), gradients(model, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_for_all_shapes_and_twice_in_one_graph() -> None:
    torch.manual_seed(0)
    layer = ot.GRU(5, 5)

    def call(x: Any, lengths: Any) -> Any:
        y, h = layer(x, lengths=lengths)
        return layer(y, h, lengths=lengths)[0].square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, batch in ((7, 3), (4, 2)):
        x, lengths = torch.randn(steps, batch, 5), torch.arange(batch) + 1
        results = []
        for run in (call, compiled):
            layer.zero_grad()
            total = run(x, lengths)
            total.backward()
            results.append([total.detach(), *(p.grad.clone() for p in layer.parameters())])
        assert_close(results[1], results[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_with_packed_sequences_and_lengths() -> None:
    layer = ot.LSTM(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    packed = torch.nn.utils.rnn.pack_sequence(
        [torch.randn(n, 3) for n in (2, 5, 3)], enforce_sorted=False
    )
    want = layer(packed)
    got = compiled(packed)
    torch.testing.assert_close(got[0].data, want[0].data, rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1][1], want[1][1], rtol=0, atol=1e-6)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(
        compiled(x, lengths=[3, 2])[0], layer(x, lengths=[3, 2])[0], rtol=0, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_with_dropout_and_autocast() -> None:
    model = Model("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    want = gradients(model, x)
    torch.manual_seed(5)
    assert_close(gradients(compiled, x), want)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        want = gradients(model, x)
        assert_close(gradients(compiled, x), want, atol=0.05)


def test_export_and_its_file() -> None:
    for kind in KINDS:
        model = Model(kind, batch_first=True).eval()
        batch, steps = torch.export.Dim("B", min=2, max=64), torch.export.Dim("T", min=2, max=64)
        program = torch.export.export(
            model, (torch.randn(3, 5, 3),), dynamic_shapes=({0: batch, 1: steps},)
        )
        stream = io.BytesIO()
        torch.export.save(program, stream)
        stream.seek(0)
        loaded = torch.export.load(stream).module()
        x = torch.randn(4, 9, 3)
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-6)
        targets = [str(n.target) for n in program.graph.nodes]
        assert "ostinato.recurrent.default" in targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_vmap_over_batches(kind: str, first: bool) -> None:
    model = Model(kind, num_layers=2, batch_first=first)
    x = torch.randn(4, 7, 2, 3)
    want = torch.stack([model(v) for v in x])
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(model)(x), want, rtol=0, atol=1e-6)
        moved = torch.vmap(model, in_dims=2, out_dims=1)(x.movedim(0, 2))
        torch.testing.assert_close(moved.movedim(1, 0), want, rtol=0, atol=1e-6)
    y = torch.vmap(model)(x)  # with a graph around the transform
    got = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    assert_close(got, torch.autograd.grad(want.square().sum(), list(model.parameters())), 1e-4)
    lengths = torch.tensor([[1, 2], [2, 1], [2, 2], [1, 1]])
    resets = torch.rand(x.shape[:3], generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        rows = torch.vmap(lambda v, n, r: model(v, lengths=n, resets=r))
        small, marks = (x[:, :2], resets[:, :2])
        want = torch.stack(
            [model(v, lengths=n, resets=r) for v, n, r in zip(small, lengths, marks)]
        )
        torch.testing.assert_close(rows(small, lengths, marks), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind: str) -> None:
    model = Model(kind)
    x = torch.randn(4, 7, 2, 3)
    parameters = dict(model.named_parameters())

    def loss(given: Any, v: Any) -> Any:
        return torch.func.functional_call(model, given, (v,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    of_x = torch.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, 0))(parameters, x)
    for k, v in enumerate(x):
        _, dx, *want = gradients(model, v)
        assert_close([each[n][k] for n in parameters], want)
        torch.testing.assert_close(of_x[k], dx, rtol=0, atol=1e-5)
    jacobian = torch.func.jacrev(model)(x[0])
    want = torch.autograd.functional.jacobian(model, x[0])
    torch.testing.assert_close(jacobian, want, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # its own
@pytest.mark.parametrize("trainable", [False, True])
def test_a_layer_beside_what_is_differentiated(trainable: bool) -> None:
    """Within a transform of torch.func new tensors have no memory of their own."""
    layer = ot.GRU(3, 4).requires_grad_(trainable)
    x, tangent = torch.randn(5, 2, 3), torch.ones(5, 2, 3)
    y = layer(x)[0].detach()

    def scaled(v: Any) -> Any:
        return v.sum() * layer(x)[0]

    jacobian = torch.func.jacrev(scaled)(x)
    torch.testing.assert_close(jacobian[..., 0, 0, 0], y)
    moved = torch.func.jvp(scaled, (x,), (tangent,))[1]
    torch.testing.assert_close(moved, y * tangent.sum())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # its own
def test_forward_mode_is_refused() -> None:
    """Tangents would be lost, and the derivative zero."""
    layer = ot.GRU(3, 4).requires_grad_(False)
    x, state = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    weights = {n: v.detach() for n, v in layer.named_parameters()}
    ones = {n: torch.ones_like(v) for n, v in weights.items()}
    told = pytest.raises(RuntimeError, match="forward mode: expected tensors without tangents")
    with told:
        torch.func.jvp(lambda v: layer(v)[0], (x,), (torch.ones_like(x),))
    with told:
        torch.func.jacfwd(lambda h: layer(x, h)[0])(state)
    with told:
        torch.func.jvp(lambda w: torch.func.functional_call(layer, w, (x,)), (weights,), (ones,))
    ad = torch.autograd.forward_ad
    with ad.dual_level(), torch.no_grad(), told:
        layer(ad.make_dual(x, torch.ones_like(x)))
    with ad.dual_level():
        torch.testing.assert_close(layer(x)[0], layer(x)[0])


def test_vmap_over_models_and_random_numbers() -> None:
    layers = [ot.GRU(3, 4) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = torch.randn(5, 2, 3)
    y = torch.vmap(lambda p, x: torch.func.functional_call(base, p, (x,))[0], in_dims=(0, None))(
        stacked, x
    )
    for k, layer in enumerate(layers):
        torch.testing.assert_close(y[k], layer(x)[0], rtol=0, atol=1e-6)
    dropping = ot.GRU(3, 4, 2, dropout=0.5)
    same = x.expand(3, *x.shape)
    rows = torch.vmap(lambda v: dropping(v)[0], randomness="different")(same)
    assert not torch.equal(rows[0], rows[1])
    rows = torch.vmap(lambda v: dropping(v)[0], randomness="same")(same)
    assert torch.equal(rows[0], rows[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda v: dropping(v)[0])(same)


def test_there_is_no_second_derivative() -> None:
    layer = ot.GRU(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    assert first.requires_grad
    with pytest.raises(RuntimeError, match="backward: expected first derivatives alone"):
        first.square().sum().backward()
    args = forward_arguments()
    y = torch.ops.ostinato.recurrent(*args)[0]
    (first,) = torch.autograd.grad(y.sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="backward: expected first derivatives alone"):
        first.square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model = Model("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(7, 2, 3)
    torch.manual_seed(1)
    want = gradients(model, x)
    torch.manual_seed(1)
    model.zero_grad()
    given = x.clone().requires_grad_()
    y = checkpoint(model, given, use_reentrant=reentrant)
    y.square().sum().backward()
    got = [y.detach(), given.grad, *(p.grad for p in model.parameters())]
    assert_close(got, want, atol=0)
    assert not len(kernels._saved)


def test_hooks_that_copy_what_is_saved() -> None:
    model = Model("GRU", num_layers=2, dropout=0.5)
    x = torch.randn(7, 2, 3)
    torch.manual_seed(1)
    want = gradients(model, x)
    torch.manual_seed(1)
    with torch.autograd.graph.save_on_cpu():  # the pass is run again, with the same bits
        assert_close(gradients(model, x), want, atol=0)


def test_tensors_without_memory() -> None:
    layer = ot.LSTM(3, 4, bidirectional=True)
    meta = copy.deepcopy(layer).to("meta")
    y, (h, c) = meta(torch.zeros(5, 2, 3, device="meta"))
    real, (h_n, c_n) = layer(torch.zeros(5, 2, 3))
    assert (y.shape, h.shape, c.shape) == (real.shape, h_n.shape, c_n.shape)
    assert y.device.type == "meta"
    fake = pytest.importorskip("torch._subclasses.fake_tensor").FakeTensorMode()
    with fake:
        y, h = ot.GRU(3, 4)(torch.zeros(5, 2, 3))
        with torch.no_grad():
            assert ot.GRU(3, 4)(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)
    assert y.shape == (5, 2, 4)
    assert h.requires_grad


SCRIPT = """
    import sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from ostinato.interop import torch as ot

    torch.set_num_threads(1)
    rank, path = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), ot.GRU(5, 6, num_layers=2))
    both = DistributedDataParallel(model)
    x = torch.randn(7, 4, 3)
    own = x[:, 2 * rank : 2 * rank + 2]
    both(own)[0].square().sum().backward()
    shared = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(x)[0].square().sum() / 2).backward()
    for a, p in zip(shared, model.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=0, atol=1e-5)
    print("the same gradients")
    dist.destroy_process_group()
"""


needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch was built without gloo",
)


@needs_gloo
def test_two_processes_share_gradients(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    meeting = str(tmp_path / "meeting")
    group = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), meeting],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in group:
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert "the same gradients" in told


@needs_gloo
def test_the_program_of_the_documentation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes train as one, by what `torchrun` says to each."""
    page = (Path(__file__).parent.parent / "docs" / "torch.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", page, re.S)
    (program,) = (b for b in blocks if "DistributedDataParallel(" in b)

    def world(ranks: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        names = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0}
        for name, value in {**names, "OSTINATO_NUM_THREADS": 1}.items():
            monkeypatch.setenv(name, str(value))

    world(2)
    command = [sys.executable, "-c", program]
    group = [
        subprocess.Popen(
            command, env={**os.environ, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in group]
    finally:
        for process in group:  # of two, one waits for the other if that has failed
            process.kill()
    assert [process.returncode for process in group] == [0, 0]
    world(1)
    exec(compile(program, "torch.md", "exec"), {"__name__": "alone"})
    alone = float(capsys.readouterr().out)
    assert float(said[0]) == pytest.approx(alone, abs=1e-3)
    assert said[1] == ""
    assert alone < 0.3
