"""Trees and TreeLSTM, against the reference, finite differences and PyTorch."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import TOLERANCE, assert_close, numeric_gradient, parameter_gradient
from ostinato import nn, reference, safetensors

F64 = {"dtype": np.float64}
D, H = 3, 4
# A node alone, a chain, a star, a mixture whose root stands last, and one whose root is within.
PARENTS = [[-1], [-1, 0, 1, 2], [-1, 0, 0], [4, 4, 1, 1, -1], [1, -1, 1, 0, 3, 3]]
STAR = [-1, *[0] * 40]


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def trees(parents: Any = PARENTS, width: int = D, dtype: Any = np.float64) -> ost.Trees:
    return ost.Trees(drawn(sum(map(len, parents)), width).astype(dtype), parents)


def random_parents(count: int, seed: int, degree: int) -> list[list[int]]:
    """Trees of up to 30 nodes in a random order, with at most so many children a node."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        n = int(rng.integers(1, 31))
        parents, left = [-1], [degree]
        for k in range(1, n):
            p = int(rng.choice([j for j in range(k) if left[j]]))
            left[p] -= 1
            parents.append(p)
            left.append(degree)
        order = rng.permutation(n)
        shuffled = [0] * n
        for k, p in enumerate(parents):
            shuffled[order[k]] = -1 if p < 0 else int(order[p])
        made.append(shuffled)
    return made


def rows_of(y: Any) -> Any:
    return y.rows if isinstance(y, ost.Trees) else y


# -- Trees -----------------------------------------------------------------------------------------


def test_heights_depths_roots_and_degrees() -> None:
    x = trees()
    assert len(x) == 5
    assert x.lengths.tolist() == [1, 4, 3, 5, 6]
    assert x.heights.tolist() == [0, 3, 2, 1, 0, 1, 0, 0, 0, 1, 0, 0, 2, 2, 3, 0, 1, 0, 0]
    assert x.depths.tolist() == [0, 0, 1, 2, 3, 0, 1, 1, 1, 1, 2, 2, 0, 1, 0, 1, 2, 3, 3]
    assert x.roots.tolist() == [0, 1, 5, 12, 14]
    assert x.degrees.tolist() == [0, 1, 1, 1, 0, 2, 0, 0, 0, 2, 0, 0, 2, 1, 2, 0, 2, 0, 0]
    assert repr(x) == "Trees(5 trees, 19 nodes)"


def test_heights_of_random_trees_are_those_of_a_walk() -> None:
    parents = random_parents(20, 1, 4)
    x, start = trees(parents), 0
    for own in parents:
        for node in range(len(own)):

            def height(n: int, own: list[int] = own) -> int:
                return max((1 + height(k) for k, p in enumerate(own) if p == n), default=0)

            assert x.heights[start + node] == height(node)
        start += len(own)


def test_a_long_chain_is_no_recursion() -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = (0, nested)
    x = ost.Trees.from_nested([nested])
    assert x.heights.tolist() == list(range(5000, -1, -1))
    assert np.array_equal(x.depths, np.arange(5001))


def test_take_like_join_and_copies() -> None:
    x = trees()
    some = x.take([3, 1, 3])
    assert some.parents.tolist() == [*PARENTS[3], *PARENTS[1], *PARENTS[3]]
    assert some.offsets.tolist() == [0, 5, 9, 14]
    assert np.array_equal(some.rows[:5], x[3])
    assert np.array_equal(some.heights, trees([PARENTS[k] for k in (3, 1, 3)]).heights)
    assert len(x.take([])) == 0
    other = x.like(np.zeros(19))
    assert isinstance(other, ost.Trees)
    assert other.parents is x.parents
    both = ost.Trees.join([x, some])
    assert both.parents.tolist() == [*x.parents, *some.parents]
    assert np.array_equal(both.take(slice(5, None)).rows, some.rows)
    for again in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert np.array_equal(again.rows, x.rows)
        assert np.array_equal(again.levels().order, x.levels().order)
    with pytest.raises(TypeError, match=r"trees\[1\]: expected an ostinato.Trees, got Ragged"):
        ost.Trees.join([x, ost.Ragged(np.zeros((2, D)), [0, 2])])
    with pytest.raises(ValueError, match="trees: expected at least one sequence, got none"):
        ost.Trees.join([])


def test_parents_as_arrays_and_ragged() -> None:
    flat = ost.Ragged(np.concatenate(PARENTS).astype(np.int16), trees().offsets)
    for given in (flat, [np.array(p, np.int32) for p in PARENTS], tuple(map(tuple, PARENTS))):
        made = ost.Trees(np.zeros(19), given)
        assert np.array_equal(made.parents, trees().parents)
        assert np.array_equal(made.offsets, trees().offsets)


def test_nested_trees() -> None:
    made = ost.Trees.from_nested([("+", ("x",), ["+", "y", "x"]), "y"], {"+": 0, "x": 1, "y": 2})
    assert made.rows.tolist() == [0, 1, 0, 2, 1, 2]
    assert made.parents.tolist() == [-1, 0, 0, 2, 2, -1]
    vectors = ost.Trees.from_nested([(np.zeros(2), np.ones(2))])
    assert vectors.rows.tolist() == [[0, 0], [1, 1]]
    shared = [5, 6]  # the same list twice is two subtrees
    assert ost.Trees.from_nested([(1, shared, shared)]).rows.tolist() == [1, 5, 6, 5, 6]
    assert len(ost.Trees.from_nested([])) == 0


BAD_PARENTS: dict[str, tuple[Any, type[Exception], str]] = {
    "an empty tree": (
        [[-1], []],
        ValueError,
        r"parents\[1\]: expected a tree of at least one node",
    ),
    "two roots": (
        [[-1], [-1, 0, -1]],
        ValueError,
        r"parents\[1\]: expected one root, got 2: nodes 0 and 2 have no parent",
    ),
    "no root": ([[-1], [1, 2, 0]], ValueError, r"parents\[1\]: expected a tree, got a cycle"),
    "its own parent": ([[0]], ValueError, r"parents\[0\]: expected a tree, got a cycle"),
    "a cycle beside a tree": (
        [[-1, 0, 3, 4, 2, 4]],
        ValueError,
        r"parents\[0\]: .* a cycle: the way up from node 2 ends at no root",
    ),
    "too large": (
        [[-1], [-1, 2]],
        ValueError,
        r"parents\[1\]: expected -1 for the root and numbers from 0 to 1, got 2 .* of node 1",
    ),
    "too small": ([[-1, -2]], ValueError, r"parents\[0\]: expected -1 .* got -2"),
    "fractions": ([[-1, 0.5]], TypeError, r"parents\[0\]: expected a list of whole numbers"),
    "one list": ([-1, 0], TypeError, r"parents\[0\]: expected a list of whole numbers"),
    "an array": (np.zeros(3), TypeError, "parents: expected a list with the parents of each tree"),
    "uneven": ([[-1, [0]]], TypeError, r"parents\[0\]: expected a list of whole numbers"),
    "ragged floats": (
        ost.Ragged(np.zeros(2), [0, 2]),
        TypeError,
        "parents: expected whole numbers, got shape",
    ),
}


@pytest.mark.parametrize("name", BAD_PARENTS)
def test_what_is_no_tree_is_refused(name: str) -> None:
    parents, kind, message = BAD_PARENTS[name]
    count = len(np.concatenate(parents)) if name in list(BAD_PARENTS)[:7] else 2
    with pytest.raises(kind, match=message):
        ost.Trees(np.zeros((count, D)), parents)


def test_a_long_cycle_is_found() -> None:
    for n in (2, 3, 7, 8, 9, 100):
        with pytest.raises(ValueError, match="got a cycle"):
            ost.Trees(np.zeros(n + 1), [[-1, *range(2, n + 1), 1]])


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected 3, as many as parents has nodes, got 2"):
        ost.Trees(np.zeros((2, D)), [[-1, 0, 0]])
    with pytest.raises(TypeError, match=r"rows: expected a numpy.ndarray, got list"):
        ost.Trees([[1.0], [2.0]], [[-1, 0]])  # type: ignore[arg-type]


def test_bad_nested_trees_are_refused() -> None:
    within: list[Any] = [1, 2]
    within.append([3, within])
    for given, kind, message in (
        ([1, within], ValueError, r"trees\[1\]: expected a tree, got a cycle"),
        ([()], ValueError, r"trees\[0\]: expected \(label, child, ...\), got an empty one"),
        ([((1, 2), 3)], ValueError, r"trees\[0\]: expected \(label, .* got \(1, 2\) as a label"),
        (["x"], TypeError, "trees: expected labels that are numbers"),
        ([(1, np.zeros(2))], TypeError, "trees: expected labels that are numbers"),
    ):
        with pytest.raises(kind, match=message):
            ost.Trees.from_nested(given)
    with pytest.raises(ValueError, match="trees: expected known labels, got 'z'"):
        ost.Trees.from_nested([("x", "z")], {"x": 0})
    with pytest.raises(TypeError, match="trees: expected a list of trees, got int"):
        ost.Trees.from_nested(5)  # type: ignore[arg-type]


# -- TreeLSTM --------------------------------------------------------------------------------------

KINDS = [None, 2, 3]


def parameters(layer: Any) -> list[Any]:
    p = layer.parameters()
    return [p[n].astype(np.float64) for n in ("weight_ih", "weight_hh", "bias")]


@pytest.mark.parametrize("outputs", ["root", "nodes"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("children", KINDS)
def test_against_the_reference(
    kernel_set: str, children: int | None, dtype: str, outputs: str
) -> None:
    parents = random_parents(12, 3, children or 5) + ([STAR] if children is None else [])
    x = trees(parents, dtype=dtype)
    layer = nn.TreeLSTM(D, H, children, outputs=outputs, dtype=dtype, rng=0)
    y, pullback = layer.vjp(x)
    assert np.array_equal(rows_of(layer(x)), rows_of(y))
    d = drawn(*rows_of(y).shape, seed=5).astype(dtype)
    dx = pullback(d)
    assert isinstance(dx, ost.Trees)
    w, r, b = parameters(layer)
    totals = [np.zeros_like(a) for a in (w, r, b)]
    scale = 4.0  # sums over all nodes of all trees
    for k, own in enumerate(parents):
        rows, at = x[k].astype(np.float64), slice(x.offsets[k], x.offsets[k + 1])
        run = reference.tree_lstm(rows, own, w, r, b, children)
        root = own.index(-1)
        dh = np.zeros_like(run.h)
        if outputs == "root":
            assert_close(y[k], run.h[root].astype(np.float64), "y", scale)
            dh[root] = d[k]
        else:
            assert_close(y[k], run.h, "y", scale)
            dh[:] = d[at]
        want, *more = reference.tree_lstm_backward(run, dh, rows, w, r, children)
        assert_close(dx[k], want, "dx", scale)
        totals = [a + part for a, part in zip(totals, more)]
    for name, want in zip(("weight_ih", "weight_hh", "bias"), totals):
        assert_close(layer.grads[name], want, name, scale)


@pytest.mark.parametrize("outputs", ["root", "nodes"])
@pytest.mark.parametrize("children", KINDS)
def test_finite_differences(children: int | None, outputs: str) -> None:
    x, layer = trees(), nn.TreeLSTM(D, H, children, outputs=outputs, rng=0, **F64)
    y, pullback = layer.vjp(x)
    d = drawn(*rows_of(y).shape, seed=1)

    def value() -> float:
        return float((rows_of(layer(x)) * d).sum())

    dx = pullback(x.like(d) if outputs == "nodes" else d).rows
    np.testing.assert_allclose(dx, numeric_gradient(value, x.rows), atol=1e-8)
    for name in layer.parameters():
        np.testing.assert_allclose(
            layer.grads[name], parameter_gradient(value, layer, name), atol=1e-8
        )


@pytest.mark.parametrize("children", KINDS)
def test_the_reference_against_finite_differences(children: int | None) -> None:
    w, r = drawn(4 * H, D), drawn((3 + (children or 1)) * H, (children or 1) * H, seed=1) / 2
    b, x, dh = drawn(4 * H, seed=2), drawn(6, D, seed=3), drawn(6, H, seed=4)
    run = reference.tree_lstm(x, PARENTS[4], w, r, b, children)
    found = reference.tree_lstm_backward(run, dh, x, w, r, children)

    def value() -> float:
        return float((reference.tree_lstm(x, PARENTS[4], w, r, b, children).h * dh).sum())

    for a, d in zip((x, w, r, b), found):
        np.testing.assert_allclose(d, numeric_gradient(value, a), atol=1e-7)


@pytest.mark.parametrize("children", KINDS)
def test_against_torch(children: int | None) -> None:
    """Node by node, with torch's own gradient."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    x, layer = trees(), nn.TreeLSTM(D, H, children, outputs="nodes", rng=0, **F64)
    y, pullback = layer.vjp(x)
    d = drawn(*y.rows.shape, seed=1)
    dx = pullback(d)
    names = ("weight_ih", "weight_hh", "bias")
    w, r, b = (torch.tensor(np.array(layer.parameters()[n]), requires_grad=True) for n in names)
    rows = torch.tensor(x.rows, requires_grad=True)

    def node(n: int, own: list[int], start: int, hs: dict[int, Any]) -> Any:
        below = [node(k, own, start, hs) for k, p in enumerate(own) if p == n]
        zero = torch.zeros(H, dtype=torch.float64)
        a = w @ rows[start + n] + b
        if children is None:
            s = r[: 3 * H] @ sum((h for h, _ in below), zero)
            f = [r[3 * H :] @ h for h, _ in below]
        else:
            h = torch.cat([h for h, _ in below] + [zero] * (children - len(below)))
            s, f = (r @ h)[: 3 * H], (r @ h)[3 * H :].split(H)
        i, o = torch.sigmoid(a[:H] + s[:H]), torch.sigmoid(a[H : 2 * H] + s[H : 2 * H])
        c = i * torch.tanh(a[2 * H : 3 * H] + s[2 * H :])
        for part, (_, inner) in zip(f, below):
            c = c + torch.sigmoid(a[3 * H :] + part) * inner
        hs[start + n] = o * torch.tanh(c)
        return hs[start + n], c

    hs: dict[int, Any] = {}
    for k, own in enumerate(PARENTS):
        node(own.index(-1), own, int(x.offsets[k]), hs)
    theirs = torch.stack([hs[n] for n in range(len(x.rows))])
    theirs.backward(torch.tensor(d))
    assert_close(y.rows, theirs.detach().numpy(), scale=10)
    assert_close(dx.rows, rows.grad.numpy(), scale=10)
    for name, theirs in zip(names, (w, r, b)):
        assert_close(layer.grads[name], theirs.grad.numpy(), scale=10)


@pytest.mark.parametrize("children", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_batch_or_threads(
    kernel_set: str, threads: None, children: int | None, dtype: str
) -> None:
    x = trees(random_parents(10, 7, children or 6), width=17, dtype=dtype)
    layer = nn.TreeLSTM(17, 33, children, dtype=dtype, rng=0)
    ost.set_num_threads(1)
    y, pullback = layer.vjp(x)
    d = drawn(*y.shape, seed=1).astype(dtype)
    dx = pullback(d)
    ost.set_num_threads(3)
    for k in range(len(x)):
        one, pullback = layer.vjp(x.take([k]))
        assert np.array_equal(one[0], y[k])
        assert np.array_equal(pullback(d[k : k + 1]).rows, dx[k])
    ost.set_num_threads(2)
    assert np.array_equal(layer(x), y)


def test_the_order_of_rows_means_nothing_to_child_sum() -> None:
    """Siblings are added up in the order of their rows, so sums may differ in the last bit."""
    x, layer = trees(), nn.TreeLSTM(D, H, rng=0, **F64)
    turned = ost.Trees(
        np.concatenate([own[::-1] for own in x]),
        [[-1 if p < 0 else len(own) - 1 - p for p in own[::-1]] for own in PARENTS],
    )
    assert_close(layer(turned), layer(x))
    binary = nn.TreeLSTM(D, H, 2, rng=0, **F64)
    assert np.abs(binary(turned) - binary(x)).max() > 1e-3  # there, the places count


def test_one_child_at_each_node_is_an_lstm() -> None:
    """A chain is a sequence: the leaf is its first step."""
    layer, lstm = nn.TreeLSTM(D, H, rng=0, **F64), nn.LSTM(D, H, rng=1, **F64)
    p = {n: np.array(a) for n, a in layer.parameters().items()}

    def turned(a: Any) -> Any:  # i o g f to i f g o
        i, o, g, f = np.split(a, 4)
        return np.concatenate([i, f, g, o])

    with lstm.write() as w:
        w["weight_ih_l0"][...] = turned(p["weight_ih"])
        w["weight_hh_l0"][...] = turned(p["weight_hh"])
        w["bias_ih_l0"][...] = turned(p["bias"])
        w["bias_hh_l0"][...] = 0
    x = drawn(7, D)
    chain = ost.Trees(x, [[*range(1, 7), -1]])
    assert_close(layer(chain), lstm(x[:, None])[1][0][0], scale=4)


def model(outputs: str = "root", **options: Any) -> nn.Sequential:
    return nn.Sequential(
        embed=nn.Embedding(9, D, rng=0, **options),
        tree=nn.TreeLSTM(D, H, outputs=outputs, rng=1, **options),
        head=nn.Linear(H, 2, rng=2, **options),
    )


def ids(parents: Any = PARENTS) -> ost.Trees:
    count = sum(map(len, parents))
    return ost.Trees(np.random.default_rng(2).integers(0, 9, count), parents)


@pytest.mark.parametrize("outputs", ["root", "nodes"])
def test_sequential_model_and_vjp_agree(outputs: str) -> None:
    sequential = model(outputs, **F64)
    layers = [copy.deepcopy(layer) for layer in sequential.layers]
    x = ids()
    (y, _), pullback = sequential.vjp(x)
    d = drawn(*rows_of(y).shape, seed=4)
    pullback(d)

    class Own(nn.Model):
        def __init__(self) -> None:
            self.embed, self.tree, self.head = layers

        def __call__(self, x: Any) -> Any:
            h = self.tree(x.like(self.embed(x.rows)))
            return self.head(h) if outputs == "root" else h.like(self.head(h.rows))

    own = Own()
    z, pullback = ost.vjp(own, x)
    assert np.array_equal(rows_of(z), rows_of(y))
    pullback(x.like(d) if outputs == "nodes" else d)
    for name in own.parameters():
        assert np.array_equal(own.grads[name], sequential.grads[name])


def test_vjp_gives_the_gradient_of_rows() -> None:
    x, layer = trees(), nn.TreeLSTM(D, H, outputs="nodes", rng=0, **F64)
    value, pullback = ost.vjp(lambda x: (layer(x).rows ** 2).sum(), x)
    found = pullback()
    assert isinstance(found, ost.Trees)
    want = numeric_gradient(lambda: float((layer(x).rows ** 2).sum()), x.rows)
    np.testing.assert_allclose(found.rows, want, atol=1e-8)
    assert value == pytest.approx((layer(x).rows ** 2).sum())


def test_layers_of_layers_see_the_edges() -> None:
    """Residual, Concat and Sequential within each other hand trees on, not their rows."""
    x, tree = trees(width=H), nn.TreeLSTM(H, H, outputs="nodes", rng=0, **F64)
    want = tree(x).rows
    residual = nn.Residual(copy.deepcopy(tree))
    assert np.array_equal(residual(x).rows, x.rows + want)
    joined = nn.Concat(copy.deepcopy(tree), nn.Linear(H, 2, rng=0, **F64))
    assert np.array_equal(joined(x).rows[:, :H], want)
    inner = nn.Sequential(nn.Residual(copy.deepcopy(tree)), nn.Linear(H, 2, rng=0, **F64))
    outer = nn.Sequential(inner, nn.Pool("mean", **F64))
    (y, _), pullback = outer.vjp(x)
    assert y.shape == (len(x), 2)
    dx, _ = pullback(np.ones_like(y))
    value = lambda: float(outer(x)[0].sum())
    np.testing.assert_allclose(dx.rows, numeric_gradient(value, x.rows), atol=1e-8)


@pytest.mark.parametrize("outputs", ["root", "nodes"])
def test_the_trainer_takes_trees(outputs: str) -> None:
    x = ids(random_parents(60, 5, 3))
    first = x.rows[x.roots] if outputs == "root" else x.rows
    trainer = ost.Trainer(
        model(outputs), ost.losses.CrossEntropy(), ost.optim.Adam(2e-2), metrics=["accuracy"]
    )
    target = first % 2
    trainer.fit((x, target), epochs=15, batch_size=8, progress=False)
    assert trainer.evaluate((x, target))["accuracy"] > 0.95
    y = trainer.predict(x, batch_size=7)
    assert np.array_equal(rows_of(y), rows_of(trainer.model(x)[0]))
    with pytest.raises(ValueError, match="mask"):
        trainer.fit((x, target, {"mask": np.ones(len(x.rows), bool)}), epochs=1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    path, own = tmp_path / "model.safetensors", model("nodes")
    own.freeze("tree.bias")
    own.save(path)
    again = ost.load(path)
    assert repr(again) == repr(own)
    assert np.array_equal(again(ids())[0].rows, own(ids())[0].rows)
    assert not again.grads["tree.bias"].any()
    binary = nn.TreeLSTM(D, H, children=2, rng=0)
    binary.save(path)
    assert repr(ost.load(path)) == "TreeLSTM(3, 4, children=2)"
    arrays, text = safetensors.load(path)
    made = json.loads(text["ostinato.model"])
    made["args"][1] = 10**9
    safetensors.save(path, arrays, {"ostinato.model": json.dumps(made)})
    with pytest.raises(ValueError, match="the elements of all arrays of the file"):
        ost.load(path)
    state = {**binary.state_dict(), "bias": np.zeros(3)}
    with pytest.raises(ValueError, match=r"bias: expected shape \(16,\), got \(3,\)"):
        binary.load_state_dict(state)


def test_frozen_parameters_get_no_gradient() -> None:
    whole, part = (nn.TreeLSTM(D, H, rng=0, **F64) for _ in range(2))
    part.freeze("weight_hh")
    part.freeze("bias")
    found = []
    for layer in (whole, part):
        y, pullback = layer.vjp(trees())
        found.append(pullback(np.ones_like(y)).rows)
    assert np.array_equal(*found)
    assert np.array_equal(whole.grads["weight_ih"], part.grads["weight_ih"])
    assert not part.grads["weight_hh"].any()
    assert not part.grads["bias"].any()


def test_a_pullback_adds_and_is_used_once() -> None:
    layer, x = nn.TreeLSTM(D, H, rng=0, **F64), trees()
    y, pullback = layer.vjp(x)
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 4\) of float64, got \(5, 3\)"):
        pullback(np.zeros((5, 3)))
    assert pullback(np.ones_like(y), need_dx=False) is None
    once = np.array(layer.flat_grads)
    with pytest.raises(RuntimeError, match="it has been used"):
        pullback(np.ones_like(y))
    y, pullback = layer.vjp(x)
    pullback(np.ones_like(y))
    np.testing.assert_allclose(layer.flat_grads, 2 * once, rtol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 1


def test_leaves_alone_and_no_tree_at_all() -> None:
    layer = nn.TreeLSTM(D, H, rng=0, **F64)
    leaves = trees([[-1]] * 3)
    y, pullback = layer.vjp(leaves)
    assert pullback(np.ones_like(y)).rows.shape == (3, D)
    assert not layer.grads["weight_hh"].any()
    none, pullback = layer.vjp(leaves.take([]))
    assert none.shape == (0, H)
    assert pullback(none).rows.shape == (0, D)


def test_bad_inputs_are_refused() -> None:
    layer = nn.TreeLSTM(D, H, rng=0)
    for x, kind, message in (
        (np.zeros((2, 1, D), np.float32), TypeError, "x: expected an ostinato.Trees, got ndarray"),
        (
            ost.Ragged(np.zeros((3, D), np.float32), [0, 3]),
            TypeError,
            r"x: expected an ostinato.Trees, got Ragged; ost.Trees\(rows, parents\) makes it",
        ),
        (trees(), TypeError, r"x: expected rows \(N, I\) = \(19, 3\) of float32, got .* float64"),
        (trees(width=2, dtype=np.float32), ValueError, r"x: expected rows \(N, I\) = \(19, 3\)"),
    ):
        with pytest.raises(kind, match=message):
            layer(x)
        with pytest.raises(kind, match=message):
            layer.vjp(x)
    with pytest.raises(
        ValueError, match="x: expected at most 1 children a node, got 2 at node 0 of tree 2"
    ):
        nn.TreeLSTM(D, H, 1, rng=0)(trees(dtype=np.float32))
    with pytest.raises(ValueError, match="children: expected a whole number of at least 1, got 0"):
        nn.TreeLSTM(D, H, 0)
    with pytest.raises(ValueError, match="outputs: expected one of 'root', 'nodes', got 'all'"):
        nn.TreeLSTM(D, H, outputs="all")
    with pytest.raises(TypeError, match=r"stream: .* got a TreeLSTM"):
        nn.Sequential(nn.TreeLSTM(D, H)).stream()


def test_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.stand_in(monkeypatch)
    own = model()
    with pytest.raises(ValueError, match="device: expected 'cpu' for a model with a TreeLSTM"):
        own.to("cuda")
    assert own.device == "cpu"


def test_tolerances_are_tight() -> None:
    """A wrong order of gates, or a forget gate of the wrong child, is far beyond them."""
    x, layer = trees(), nn.TreeLSTM(D, H, rng=0, **F64)
    y = layer(x)
    with layer.write() as p:
        i, o, g, f = (np.array(a) for a in np.split(p["weight_hh"], 4))
        p["weight_hh"][...] = np.concatenate([o, i, g, f])
    assert np.abs(layer(x) - y).max() > 1e6 * TOLERANCE[np.dtype(np.float64)]


def test_trees_are_joined_and_taken_as_ragged_sequences_are() -> None:
    trees = ost.Trees(np.arange(4.0).reshape(4, 1), [[-1, 0], [1, -1]])
    assert np.array_equal(ost.Trees.join(t for t in (trees, trees)).parents, [*trees.parents] * 2)
    assert np.array_equal(trees.take([False, True]).rows, trees.rows[2:])
    assert np.array_equal(trees[1:].rows, trees.rows[2:])
    for run, kind, message in (
        (lambda: trees.take([5]), IndexError, "sequences: expected the numbers of some of 2"),
        (lambda: trees.take("a"), TypeError, "sequences: expected the numbers of sequences"),
        (lambda: trees.like(np.zeros((3, 1))), ValueError, "rows: expected 4 rows"),
        (lambda: ost.Trees.join([]), ValueError, "trees: expected at least one"),
    ):
        with pytest.raises(kind, match=message):
            run()
