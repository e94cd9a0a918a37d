"""Layers inside JAX: values and gradients, transformations, dtypes, bad input, both bridges."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import (
    CELLS,
    NORMS,
    assert_close,
    cast,
    names_of,
    options_of,
    output_size,
    random_weights,
    slack,
    widened,
)
from ostinato import reference
from ostinato._machine import info

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'ostinato[jax]'")

import jax.export  # noqa: E402, F811
import jax.numpy as jnp  # noqa: E402

from ostinato.interop import _jax_calls  # noqa: E402
from ostinato.interop import jax as ost_jax  # noqa: E402

T, B, I, H = 6, 3, 4, 5  # noqa: E741
ROOT = Path(__file__).parent.parent
FUNCTIONS = {"rnn": ost_jax.rnn, "lstm": ost_jax.lstm, "gru": ost_jax.gru}
DTYPES = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=["ffi", "callback"])
def each_bridge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test by custom calls and by callbacks."""
    assert _jax_calls.bridge() == ("ffi", "")
    if request.param == "callback":
        monkeypatch.setattr(_jax_calls, "bridge", lambda: ("callback", "for a test"))
    return str(request.param)


def close(got: Any, want: Any, limit: float) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= limit * max(1.0, np.abs(want).max(initial=0))


def same(got: Any, want: Any) -> None:
    """All arrays of two trees are equal bit by bit."""
    a, b = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


ARRAYS = ("weight_peephole", "weight_hr", "layer_norm")  # options that are arrays


def made(cell: str, dtype: str, steps: int = T, batch: int = B) -> tuple[Any, Any, Any]:
    """Return the arrays of a call, a function of them that runs the cell, and all weights."""
    rng = np.random.default_rng(CELLS.index(cell))
    weights = cast(random_weights(cell, I, H, rng), dtype)
    own = options_of(cell, weights)
    arrays = {"x": rng.normal(size=(steps, batch, I)), "weights": weights[:4]}
    arrays["h0"] = rng.normal(size=(batch, output_size(cell, H)))
    if cell.startswith("lstm"):
        arrays["c0"] = rng.normal(size=(batch, H))
    arrays["own"] = {k: v for k, v in own.items() if k in ARRAYS}
    arrays = jax.tree.map(lambda a: a.astype(dtype), arrays)
    fixed = {k: v for k, v in own.items() if k not in ARRAYS}

    def run(module: Any, arrays: Any, **more: Any) -> Any:
        given = {k: v for k, v in arrays.items() if k in ("h0", "c0")}
        function = getattr(module, cell.split("_")[0])
        return function(arrays["x"], *arrays["weights"], **given, **arrays["own"], **fixed, **more)

    return arrays, run, weights


def total(run: Callable[..., Any], module: Any = ost_jax, **more: Any) -> Callable[[Any], Any]:
    """Return a function of the arrays whose value depends on all outputs."""

    def loss(arrays: Any) -> Any:
        outputs = jax.tree.leaves(run(module, arrays, **more))
        return sum(jnp.sin(a * (k + 1.0)).sum() for k, a in enumerate(outputs))

    return loss


def times_of(batch_first: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    flags = rng.random((T, B)) < 0.3, rng.random((T, B)) < 0.8
    resets, mask = (f.T if batch_first else f for f in flags)
    return {"lengths": np.array([4, T, 0]), "resets": resets, "mask": mask, "masked": "zero"}


# -- against lax.scan ------------------------------------------------------------------------------


def step_of(kind: str) -> Callable[..., Any]:
    """One step of a cell in JAX."""

    def rnn(w: Any, x: Any, state: Any) -> Any:
        return (jnp.tanh(x @ w[0].T + w[2] + state[0] @ w[1].T + w[3]),)

    def gru(w: Any, x: Any, state: Any) -> Any:
        a = jnp.split(x @ w[0].T + w[2], 3, -1)
        r_, z_, n_ = jnp.split(state[0] @ w[1].T + w[3], 3, -1)
        r, z = jax.nn.sigmoid(a[0] + r_), jax.nn.sigmoid(a[1] + z_)
        return ((1 - z) * jnp.tanh(a[2] + r * n_) + z * state[0],)

    def lstm(w: Any, x: Any, state: Any) -> Any:
        a = x @ w[0].T + w[2] + state[0] @ w[1].T + w[3]
        i, f, g, o = jnp.split(a, 4, -1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return {"rnn": rnn, "gru": gru, "lstm": lstm}[kind]


class Scan:
    """The functions by `jax.lax.scan`."""

    def __init__(self, kind: str) -> None:
        setattr(self, kind, self.run)
        self.step = step_of(kind)

    def run(
        self, x: Any, *w: Any, h0: Any, c0: Any = None, lengths: Any, resets: Any
    ) -> tuple[Any, Any]:
        initial = (h0,) if c0 is None else (h0, c0)

        def body(state: Any, given: Any) -> Any:
            t, now, start = given
            clean = tuple(jnp.where(start[:, None], 0, s) for s in state)
            new = self.step(w, now, clean)
            on = (t < lengths)[:, None]
            new = tuple(jnp.where(on, n, s) for n, s in zip(new, state))
            return new, jnp.where(on, new[0], 0)

        steps = jnp.arange(x.shape[0])
        state, y = jax.lax.scan(body, initial, (steps, x, resets))
        return y, state if c0 is not None else state[0]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_equals_a_scan(cell: str, dtype: str, each_bridge: str) -> None:
    arrays, run, _ = made(cell, dtype)
    resets = np.random.default_rng(0).random((T, B)) < 0.3
    times = {"lengths": jnp.array([T, 0, 4]), "resets": jnp.asarray(resets)}
    scan = Scan(cell.split("_")[0])
    ours, theirs = run(ost_jax, arrays, **times), run(scan, arrays, **times)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        close(a, b, DTYPES[dtype])
    ours = jax.grad(total(run, ost_jax, **times))(arrays)
    theirs = jax.grad(total(run, scan, **times))(arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == dtype
        close(a, b, DTYPES[dtype])


# -- against ostinato itself -----------------------------------------------------------------------


def same_as_functional(cell: str, dtype: str, more: dict[str, Any]) -> None:
    """Outputs and all gradients are those of `ostinato.functional`, bit by bit."""
    arrays, run, _ = made(cell, dtype)
    same(run(ost_jax, arrays, **more), run(ost.functional, arrays, **more))
    out, vjp = jax.vjp(lambda a: run(ost_jax, a, **more), arrays)
    rng = np.random.default_rng(2)
    cotangent = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), out)
    (ours,) = vjp(cotangent)
    family = cell.split("_")[0]
    with_vjp = type("Vjp", (), {family: staticmethod(getattr(ost.functional, family + "_vjp"))})
    _, pullback = run(with_vjp, arrays, **more)
    g = pullback(*(np.asarray(a) for a in jax.tree.leaves(cotangent)))
    same([ours["x"], ours["h0"]], [g.dx, g.dh0])
    same(ours.get("c0"), g.dc0)
    same(ours["weights"], [g.dweight_ih, g.dweight_hh, g.dbias_ih, g.dbias_hh])
    for name, gradient in ours["own"].items():
        theirs = getattr(g, "d" + name)
        same(list(gradient), list(theirs)) if name == "layer_norm" else same(gradient, theirs)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("cell", CELLS)
def test_equals_functional_bit_by_bit(cell: str, dtype: str) -> None:
    same_as_functional(cell, dtype, {**times_of(), "reverse": True})


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm_projected", "gru"])
def test_every_kernel_set(cell: str, kernel_set: str) -> None:
    same_as_functional(cell, "float32", {})


@pytest.mark.parametrize("cell", CELLS)
def test_callbacks_equal_functional_bit_by_bit(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jax_calls, "bridge", lambda: ("callback", "for a test"))
    assert ost_jax.bridge() == "callback: for a test"
    same_as_functional(cell, "float32", {**times_of(), "reverse": True})


@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_reference(cell: str) -> None:
    arrays, run, weights = made(cell, "float64")
    lengths = np.array([T, 2, 4])
    (y, state), vjp = jax.vjp(lambda a: run(ost_jax, a, lengths=lengths), arrays)
    (grads,) = vjp((jnp.cos(y), jax.tree.map(jnp.sin, state)))
    p = widened(cell, weights)
    there = reference.forward(cell, arrays["x"], p, arrays["h0"], arrays.get("c0"), lengths=lengths)
    own = [there.h_n, there.c_n][: len(jax.tree.leaves(state))]
    g = reference.backward(there, np.cos(there.y), *map(np.sin, own))
    loose = 10 * slack(cell)
    assert_close(y, there.y, "y", loose)
    for a, b in zip(jax.tree.leaves(state), own):
        assert_close(a, b, "state", loose)
    assert_close(grads["x"], g.x, "dx", loose)
    assert_close(grads["h0"], g.h0, "dh0", loose)
    if "c0" in grads:
        assert_close(grads["c0"], g.c0, "dc0", loose)
    for name, d in zip(names_of(p), grads["weights"]):
        assert_close(d, getattr(g.weights, name), name, loose)
    norms = dict(zip(NORMS, grads["own"].get("layer_norm", ())))
    for name, d in {**norms, **grads["own"]}.items():
        if name != "layer_norm":
            assert_close(d, getattr(g.weights, name), name, loose)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_the_state_after_a_reset_has_a_gradient(cell: str, each_bridge: str) -> None:
    arrays, run, _ = made(cell, "float64")
    arrays["reset"] = [jnp.linspace(-1, 1, H), jnp.linspace(0, 1, H)][: 1 + (cell == "lstm")]
    resets = times_of()["resets"]

    def of_reset(module: Any, a: Any, **more: Any) -> Any:
        reset = tuple(a["reset"]) if cell == "lstm" else a["reset"][0]
        return run(module, a, reset_state=reset, **more)

    ours = jax.grad(total(of_reset, resets=resets))(arrays)["reset"]
    for k, r in enumerate(arrays["reset"]):
        for u in range(H):
            up, down = ([*arrays["reset"]] for _ in range(2))
            up[k], down[k] = r.at[u].add(1e-6), r.at[u].add(-1e-6)
            loss = total(of_reset, resets=resets)
            slope = (loss({**arrays, "reset": up}) - loss({**arrays, "reset": down})) / 2e-6
            close(ours[k][u], slope, 1e-7)
    never = jax.grad(total(of_reset, resets=np.zeros_like(resets)))(arrays)["reset"]
    assert all((np.asarray(d) == 0).all() for d in never)


def test_batch_first_and_one_sequence(each_bridge: str) -> None:
    arrays, run, _ = made("lstm", "float64")
    y, state = run(ost_jax, arrays, **times_of())
    turned = {**arrays, "x": arrays["x"].swapaxes(0, 1)}
    ours = run(ost_jax, turned, batch_first=True, **times_of(batch_first=True))
    same(ours, (y.swapaxes(0, 1), state))
    times = times_of()
    for b in range(B):
        one = {**arrays, "x": arrays["x"][:, b], "h0": arrays["h0"][b], "c0": arrays["c0"][b]}
        own = {
            "lengths": times["lengths"][b],
            "resets": times["resets"][:, b],
            "mask": times["mask"][:, b],
            "masked": "zero",
        }
        for batch_first in (False, True):
            got = run(ost_jax, one, batch_first=batch_first, **own)
            same(got, (y[:, b], tuple(s[b] for s in state)))
    g = jax.grad(total(run, **times))(arrays)
    g_turned = jax.grad(total(run, batch_first=True, **times_of(batch_first=True)))(turned)
    same(g["x"], g_turned["x"].swapaxes(0, 1))
    same(g["weights"], g_turned["weights"])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (1, 1)], ids=str)
def test_empty_and_least_sizes(shape: tuple[int, int], each_bridge: str) -> None:
    arrays, run, _ = made("gru", "float32", *shape)
    y, h = run(ost_jax, arrays)
    same((y, h), run(ost.functional, arrays))
    grads = jax.grad(total(run))(arrays)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, arrays)
    if 0 in shape:
        assert all((np.asarray(w) == 0).all() for w in grads["weights"])


# -- transformations -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn_relu", "lstm_peephole", "gru"])
def test_jit_equals_eager_bit_by_bit(cell: str, each_bridge: str) -> None:
    arrays, run, _ = made(cell, "float32")

    def f(a: Any, lengths: Any) -> Any:
        return run(ost_jax, a, lengths=lengths)

    lengths = jnp.array([3, 0, T])
    same(jax.jit(f)(arrays, lengths), f(arrays, lengths))
    loss = total(f, None)

    def by_f(module: Any, a: Any) -> Any:
        return f(a, lengths)

    loss = total(by_f)
    same(jax.jit(jax.grad(loss))(arrays), jax.grad(loss)(arrays))
    same(jax.grad(jax.jit(loss))(arrays), jax.grad(loss)(arrays))


def calls_in(function: Any, *args: Any) -> dict[str, int]:
    """Count the custom calls of a compiled function by their names, and its loops."""
    text = jax.jit(function).lower(*args).compile().as_text()
    found = re.findall(r'custom_call_target="ostinato_(\w+)"', text)
    return {**{n: found.count(n) for n in set(found)}, "loops": len(re.findall(r" while\(", text))}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_is_one_call_of_a_larger_batch(axis: int, batch_first: bool) -> None:
    arrays, run, _ = made("lstm", "float32")
    rng = np.random.default_rng(3)
    xs = jnp.asarray(rng.normal(size=(4, T, B, I)), jnp.float32)
    xs = jnp.moveaxis(xs.swapaxes(1, 2) if batch_first else xs, 0, axis)
    lengths = jnp.asarray(rng.integers(0, T + 1, (4, B)))

    def f(x: Any, n: Any) -> Any:
        return run(ost_jax, {**arrays, "x": x}, lengths=n, batch_first=batch_first)

    def loss(x: Any, n: Any) -> Any:
        y, state = f(x, n)
        return jnp.sin(y).sum() + sum(jnp.cos(s).sum() for s in jax.tree.leaves(state))

    alone = [f(jnp.take(xs, k, axis), lengths[k]) for k in range(4)]
    mapped = jax.vmap(f, (axis, 0))
    same(mapped(xs, lengths), jax.tree.map(lambda *a: jnp.stack(a), *alone))
    assert calls_in(mapped, xs, lengths) == {"infer": 1, "loops": 0}
    per_sample = jax.vmap(jax.grad(loss), (axis, 0))
    grads = [jax.grad(loss)(jnp.take(xs, k, axis), lengths[k]) for k in range(4)]
    same(per_sample(xs, lengths), jnp.stack(grads))
    one = {"pack": 1, "forward": 1, "backward": 1, "loops": 0}
    assert calls_in(per_sample, xs, lengths) == one

    def of_all(xs: Any, n: Any) -> Any:
        return jax.vmap(loss, (axis, 0))(xs, n).sum()

    same(jax.grad(of_all)(xs, lengths), jnp.moveaxis(jnp.stack(grads), 0, axis))
    assert calls_in(jax.grad(of_all), xs, lengths) == one


def test_gradients_of_shared_weights_under_vmap() -> None:
    arrays, run, _ = made("gru", "float64")
    rng = np.random.default_rng(3)
    xs, lengths = jnp.asarray(rng.normal(size=(4, T, B, I))), rng.integers(0, T + 1, (4, B))
    lengths = jnp.asarray(lengths)

    def loss(w: Any, x: Any, n: Any) -> Any:
        return total(run, lengths=n)({**arrays, "weights": w, "x": x})

    each_loss = jax.vmap(loss, (None, 0, 0))

    def of_all(w: Any) -> Any:
        return each_loss(w, xs, lengths).sum()

    alone = [jax.grad(loss)(arrays["weights"], *one) for one in zip(xs, lengths)]
    for a, *b in zip(jax.grad(of_all)(arrays["weights"]), *alone):
        close(a, sum(b), 1e-13)
    one = {"pack": 1, "forward": 1, "backward": 1, "loops": 0}
    assert calls_in(jax.grad(of_all), arrays["weights"]) == one
    each = jax.vmap(jax.grad(loss), (None, 0, 0))  # of the tape of one call, sample by sample
    same(each(arrays["weights"], xs, lengths), jax.tree.map(lambda *a: jnp.stack(a), *alone))
    twice = jax.vmap(each_loss, (None, 0, 0))
    halves = (a.reshape(2, 2, *a.shape[1:]) for a in (xs, lengths))
    same(twice(arrays["weights"], *halves).ravel(), each_loss(arrays["weights"], xs, lengths))


def test_vmap_of_one_sequence_moves_nothing() -> None:
    arrays, _, _ = made("gru", "float32")
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(4, T, I)), jnp.float32)

    def f(x: Any) -> Any:
        return ost_jax.gru(x, *arrays["weights"])[0]

    text = jax.jit(jax.vmap(f)).lower(xs).compile().as_text()
    assert "transpose" not in text
    assert "copy" not in text
    same(jax.vmap(f)(xs), jnp.stack([f(x) for x in xs]))
    g = jax.vmap(jax.grad(lambda x: jnp.sin(f(x)).sum()))
    same(g(xs), jnp.stack([jax.grad(lambda x: jnp.sin(f(x)).sum())(x) for x in xs]))


@pytest.mark.parametrize("what", ["weights", "h0", "resets", "cotangents"])
def test_vmap_over_one_argument_alone(what: str, each_bridge: str) -> None:
    arrays, run, _ = made("lstm", "float64")
    rng = np.random.default_rng(4)
    if what == "cotangents":
        _, vjp = jax.vjp(lambda a: run(ost_jax, a)[0], arrays)
        dys = jnp.asarray(rng.normal(size=(3, T, B, H)))
        same(jax.vmap(vjp)(dys), jax.tree.map(lambda *a: jnp.stack(a), *map(vjp, dys)))
        return
    shape = {"weights": (4 * H, H), "h0": (B, H), "resets": (T, B)}[what]
    values = rng.normal(size=(3, *shape))
    values = jnp.asarray(values > 0 if what == "resets" else values)

    def loss(v: Any) -> Any:
        if what == "resets":
            return total(run, resets=v)(arrays)
        if what == "h0":
            return total(run)({**arrays, "h0": v})
        w = arrays["weights"]
        return total(run)({**arrays, "weights": [w[0], v, *w[2:]]})

    same(jax.vmap(loss)(values), jnp.stack([loss(v) for v in values]))
    if what != "resets":
        grad = jax.grad(loss)
        same(jax.vmap(grad)(values), jnp.stack([grad(v) for v in values]))


def test_a_branch_that_each_sample_takes_for_itself() -> None:
    arrays, run, _ = made("lstm", "float64")
    xs = jnp.asarray(np.random.default_rng(5).normal(size=(4, T, B, I)))
    lengths = jnp.asarray(np.random.default_rng(6).integers(0, T + 1, (4, B)))
    on = jnp.array([False, True, True, False])

    def loss(x: Any, n: Any, on: Any) -> Any:
        def layer(x: Any) -> Any:
            return total(run, lengths=n)({**arrays, "x": x})

        return jax.lax.cond(on, layer, lambda x: (x**2).sum(), x)

    grad = jax.grad(loss)
    close(
        jax.vmap(grad)(xs, lengths, on),
        jnp.stack([grad(*one) for one in zip(xs, lengths, on)]),
        1e-13,
    )


@pytest.mark.parametrize("remat", [False, True])
def test_inside_a_scan_and_checkpoint(remat: bool, each_bridge: str) -> None:
    arrays, run, _ = made("lstm", "float64", steps=8)

    def chunked(module: Any, a: Any) -> Any:
        def body(state: Any, x: Any) -> Any:
            y, state = run(module, {**a, "x": x, "h0": state[0], "c0": state[1]})
            return state, y

        body = jax.checkpoint(body) if remat else body
        state, y = jax.lax.scan(body, (a["h0"], a["c0"]), a["x"].reshape(4, 2, B, I))
        return y.reshape(8, B, H), state

    same(chunked(ost_jax, arrays), run(ost_jax, arrays))
    whole, parts = jax.grad(total(run))(arrays), jax.grad(total(chunked))(arrays)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole)):
        close(a, b, 1e-13)


def test_packed_weights_are_made_once_for_a_scan() -> None:
    arrays, run, _ = made("gru", "float32", steps=8)

    def loss(w: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            y, h = run(ost_jax, {**arrays, "weights": w, "x": x, "h0": h})
            return h, y.sum()

        xs = arrays["x"].reshape(4, 2, B, I)
        return jax.lax.scan(body, jnp.asarray(arrays["h0"]), xs)[1].sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(arrays["weights"]))
    before_the_loop, _, within = jaxpr.partition("scan[")
    assert "ostinato_pack" in before_the_loop
    assert "ostinato_pack" not in within


def test_only_gradients_that_are_asked_for_are_computed() -> None:
    arrays, run, _ = made("lstm", "float32")

    def loss(w: Any) -> Any:
        return total(run)({**arrays, "weights": [arrays["weights"][0], w, *arrays["weights"][2:]]})

    jaxpr = jax.make_jaxpr(jax.grad(loss))(arrays["weights"][1])
    eqns = [e for e in jaxpr.eqns if e.primitive.name == "ostinato_backward"]
    assert [[v.aval.shape for v in e.outvars] for e in eqns] == [[(4 * H, H)]]


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from ostinato.interop import jax as ost_jax

rng = np.random.default_rng(0)
x, w, r = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 4, 3), (12, 3), (12, 4)))
mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))

def layer(x, w):
    return ost_jax.gru(x, w, r, lengths=jnp.full(x.shape[1], 4))[0]

def gradients(f):
    return jax.jit(jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1)))(x, w)

for check in (True, False):
    rows = P(None, "rows")
    f = jax.shard_map(layer, mesh=mesh, in_specs=(rows, P()), out_specs=rows, check_vma=check)
    assert jnp.array_equal(jax.jit(f)(x, w), layer(x, w))
    for a, b in zip(gradients(f), gradients(layer)):
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5), check
"""


def test_shards_of_a_batch() -> None:
    """Weights that all shards share have the sum of their gradients."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_export() -> None:
    pytest.importorskip("flatbuffers", reason="jax.export needs it: pip install flatbuffers")
    arrays, run, _ = made("gru", "float32")

    def f(x: Any) -> Any:
        return run(ost_jax, {**arrays, "x": x})

    check = jax.export.DisabledSafetyCheck.custom_call("ostinato_infer")
    exported = jax.export.export(jax.jit(f), disabled_checks=[check])(arrays["x"])
    same(jax.export.deserialize(exported.serialize()).call(arrays["x"]), f(arrays["x"]))


def test_a_training_step_learns() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (20, 32, 1)), jnp.float32)
    target = x.cumsum(0) / 5
    size = 16
    shapes = [(4 * size, 1), (4 * size, size), (4 * size,), (4 * size,)]
    params = [jnp.asarray(rng.normal(0, 0.3, s), jnp.float32) for s in (*shapes, (size, 1))]

    def loss(params: Any) -> Any:
        y, _ = ost_jax.lstm(x, *params[:4])
        return ((y @ params[4] - target) ** 2).mean()

    @jax.jit
    def step(params: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        return value, [p - 0.5 * g for p, g in zip(params, grads)]

    first, params = step(params)
    for _ in range(200):
        last, params = step(params)
    assert last < first / 2


# -- dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "gru_general"])
def test_words_of_two_bytes(cell: str, dtype: str) -> None:
    arrays, run, _ = made(cell, "float32")
    small = jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), small)
    precision = "bfloat16" if dtype == "bfloat16" and cell != "gru_general" else None
    y, state = run(ost_jax, small)
    want = run(ost_jax, wide, precision=precision)
    assert y.dtype == dtype
    same((y, state), jax.tree.map(lambda a: a.astype(dtype), want))
    grads = jax.grad(lambda a: run(ost_jax, a)[0].astype(jnp.float32).sum())(small)
    assert {str(a.dtype) for a in jax.tree.leaves(grads)} == {dtype}
    theirs = jax.grad(lambda a: run(ost_jax, a, precision=precision)[0].sum())(wide)
    same(grads, jax.tree.map(lambda a: a.astype(dtype), theirs))


def test_products_in_bfloat16_are_those_of_packed_weights() -> None:
    arrays, run, weights = made("lstm", "float32")
    p = ost.functional.pack("lstm", *weights[:4], precision="bfloat16")
    y, state = ost.functional.lstm(arrays["x"], p, h0=arrays["h0"], c0=arrays["c0"])
    same(run(ost_jax, arrays, precision="bfloat16"), (y, state))


def test_without_float64_lists_and_float64_arrays_become_float32() -> None:
    jax.config.update("jax_enable_x64", False)
    arrays, run, _ = made("gru", "float64")
    y, h = run(ost_jax, arrays, lengths=[T, 2, 0])
    assert y.dtype == h.dtype == jnp.float32
    grads = jax.grad(total(run, lengths=np.array([T, 2, 0])))(jax.tree.map(jnp.asarray, arrays))
    assert grads["x"].dtype == jnp.float32


# -- threads ---------------------------------------------------------------------------------------


def test_calls_of_several_threads() -> None:
    arrays, run, _ = made("gru", "float32", steps=40, batch=16)
    step = jax.jit(jax.grad(total(run)))
    want = step(arrays)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            try:
                same(step(arrays), want)
            except AssertionError as e:
                wrong.append(str(e))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert wrong == []


def test_the_number_of_threads_changes_no_bit(threads: None) -> None:
    arrays, run, _ = made("lstm", "float32", steps=50, batch=40)
    step = jax.jit(jax.grad(total(run)))
    ost.set_num_threads(1)
    want = step(arrays)
    ost.set_num_threads(2)
    same(step(arrays), want)


# -- what cannot be --------------------------------------------------------------------------------


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    arrays, run, _ = made("gru", "float32")
    loss = total(run)
    with pytest.raises(NotImplementedError, match=r"grad: expected first derivatives alone"):
        jax.hessian(lambda x: loss({**arrays, "x": x}))(arrays["x"])
    with pytest.raises(NotImplementedError, match=r"grad: expected first derivatives alone"):
        jax.jit(jax.grad(lambda a: jax.grad(loss)(a)["x"].sum()))(arrays)
    for f in (
        lambda: jax.jvp(loss, (arrays,), (arrays,)),
        lambda: jax.jit(lambda a: jax.jvp(loss, (a,), (a,)))(arrays),
        lambda: jax.jacfwd(lambda x: loss({**arrays, "x": x}))(arrays["x"]),
    ):
        with pytest.raises(NotImplementedError, match=r"jvp: expected derivatives in reverse mode"):
            f()


def test_arrays_of_a_gpu_are_refused() -> None:
    arrays, run, _ = made("gru", "float32")
    traced = jax.jit(lambda a: run(ost_jax, a)).trace(arrays)
    with pytest.raises(NotImplementedError, match=r"x: expected arrays on the CPU, got .* cuda"):
        traced.lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("dtype", ["int32", "int64", "int8"])
def test_lengths_beyond_the_steps_are_an_error_when_they_are_run(dtype: str) -> None:
    arrays, run, _ = made("gru", "float32")
    f = jax.jit(lambda a, n: run(ost_jax, a, lengths=n))
    same(f(arrays, jnp.array([1, 0, T], dtype)), run(ost_jax, arrays, lengths=[1, 0, T]))
    for bad, value in (([1, 0, T + 1], T + 1), ([-1, 0, 2], -1)):
        with pytest.raises(
            Exception, match=rf"lengths: expected values from 0 to T = 6, got {value}"
        ):
            jax.block_until_ready(f(arrays, jnp.array(bad, dtype)))
        with pytest.raises(
            ValueError, match=rf"lengths: expected values from 0 to T = 6, got {value}"
        ):
            run(ost_jax, arrays, lengths=bad)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_lengths_do_not_wrap(dtype: str) -> None:
    arrays, run, _ = made("gru", "float32")
    f = jax.jit(lambda a, n: run(ost_jax, a, lengths=n))
    good = jnp.array([1, 0, T], dtype)
    for y in (f(arrays, good), run(ost_jax, arrays, lengths=good)):
        same(y, run(ost_jax, arrays, lengths=[1, 0, T]))
    bits = 8 * good.dtype.itemsize
    for value in {2**bits - 1, 2 ** (bits // 2) + 1, 2 ** (bits - 1) + 1}:
        bad = jnp.array([value, 0, 2], dtype)
        with pytest.raises(ValueError, match=rf"lengths: .* to T = 6, got {value} at b = 0"):
            run(ost_jax, arrays, lengths=bad)
        with pytest.raises(Exception, match=r"lengths: expected values from 0 to T = 6, got"):
            jax.block_until_ready(f(arrays, bad))


def test_one_sequence_as_lists() -> None:
    arrays, _, _ = made("gru", "float64", batch=1)
    x, weights = arrays["x"][:, 0], arrays["weights"]
    want = ost_jax.gru(x, *weights, lengths=3)
    for n in ([3], np.array([3]), jnp.array([3]), jnp.array(3), [jnp.array(3)], np.int64(3)):
        same(ost_jax.gru(x, *weights, lengths=n), want)
    same(jax.jit(lambda n: ost_jax.gru(x, *weights, lengths=[n]))(3), want)
    same(ost_jax.gru(x.tolist(), *weights, lengths=3), want)
    same(ost_jax.gru(x, *weights, reverse=jnp.array(True)), ost_jax.gru(x, *weights, reverse=True))


def test_without_jit(each_bridge: str) -> None:
    arrays, run, _ = made("lstm", "float64")
    loss = total(run, lengths=np.array([4, T, 0]))
    want = run(ost_jax, arrays), jax.grad(loss)(arrays)
    with jax.disable_jit():
        same((run(ost_jax, arrays), jax.grad(loss)(arrays)), want)
        many = jax.tree.map(lambda a: jnp.stack([a, a]), arrays)
        y = jax.vmap(lambda a: run(ost_jax, a)[0])(many)
    close(y[1], want[0][0], 1e-12)


BAD = {
    "x: expected an array, got str": lambda x, w, r: ost_jax.gru("x", w, r),
    "x: expected 3 axes": lambda x, w, r: ost_jax.gru(x[0, 0], w, r),
    "x: expected dtype float32, float64, bfloat16, float16, got int": lambda x, w, r: ost_jax.gru(
        x.astype(int), w, r
    ),
    r"x: expected shape \(T, B, I\) = \(6, 3, 4\), got \(6, 3, 2\)": lambda x, w, r: ost_jax.gru(
        x[..., :2], w, r
    ),
    "weight_ih: expected dtype float64, that of x, got float32": lambda x, w, r: ost_jax.gru(
        x, w.astype(np.float32), r
    ),
    r"weight_ih: expected shape \(G\*H, I\) = \(15, 4\), got \(12, 4\)": lambda x, w, r: (
        ost_jax.gru(x, w[:12], r)
    ),
    "bias_hh: expected 1 axes": lambda x, w, r: ost_jax.gru(x, w, r, None, r),
    r"h0: expected shape \(B, H\) = \(3, 5\), got \(2, 5\)": lambda x, w, r: ost_jax.gru(
        x, w, r, h0=np.zeros((2, 5))
    ),
    r"lengths: expected shape \(B,\)": lambda x, w, r: ost_jax.gru(x, w, r, lengths=[1, 2]),
    "lengths: expected an integer dtype": lambda x, w, r: ost_jax.gru(x, w, r, lengths=jnp.ones(3)),
    "resets: expected dtype bool": lambda x, w, r: ost_jax.gru(x, w, r, resets=x[..., 0]),
    r"mask: expected shape \(B, T\)": lambda x, w, r: ost_jax.gru(
        x, w, r, mask=np.ones((3, 6), bool), batch_first=True
    ),
    "reset_state: expected h, or": lambda x, w, r: ost_jax.gru(x, w, r, reset_state=(1, 2)),
    r"reset_state: expected shape \(H,\)": lambda x, w, r: ost_jax.gru(
        x, w, r, reset_state=np.ones(4)
    ),
    "mask: expected a bool array, got str": lambda x, w, r: ost_jax.gru(x, w, r, mask="a"),
    "resets: expected a bool array, got object": lambda x, w, r: ost_jax.gru(
        x, w, r, resets=object()
    ),
    "reverse: expected True or False, got 'no'": lambda x, w, r: ost_jax.gru(x, w, r, reverse="no"),
    "batch_first: expected True or False, got 'no'": lambda x, w, r: ost_jax.gru(
        x, w, r, batch_first="no"
    ),
    "reverse: expected True or False, got a value that JAX traces": lambda x, w, r: jax.jit(
        lambda flag: ost_jax.gru(x, w, r, reverse=flag)
    )(True),
    r"lengths: expected shape \(B,\) = \(1,\), got \(2,\)": lambda x, w, r: ost_jax.gru(
        x[:, 0], w, r, lengths=[1, 2]
    ),
    r"lengths: expected whole numbers \[B\], got": lambda x, w, r: ost_jax.gru(
        x, w, r, lengths=[[1], [1, 2]]
    ),
    "masked: expected one of": lambda x, w, r: ost_jax.gru(x, w, r, masked="skip"),
    "precision: expected one of 'float64'": lambda x, w, r: ost_jax.gru(x, w, r, precision="int8"),
    "activation: expected": lambda x, w, r: ost_jax.gru(x, w, r, activation="swish"),
}


@pytest.mark.parametrize("message", list(BAD), ids=range(len(BAD)))
def test_errors_name_the_argument(message: str) -> None:
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=s) for s in ((T, B, I), (3 * H, I), (3 * H, H)))
    with pytest.raises((TypeError, ValueError), match=message):
        BAD[message](*arrays)


def test_a_cell_with_functions_of_its_own_has_no_bfloat16() -> None:
    arrays, run, _ = made("gru_general", "float32")
    with pytest.raises(ValueError, match=r"precision: expected 'float32' for a cell with"):
        run(ost_jax, arrays, precision="bfloat16")


# -- the C interface -------------------------------------------------------------------------------


def fields(text: str, name: str) -> list[str]:
    """Return the names of a struct's fields in their order; functions by what they do."""
    found = re.search(rf"struct {name} \{{(.*?)\n\}}", text, re.S)
    assert found, name
    body = re.sub(r"//[^\n]*", "", found[1])
    body = re.sub(r"\(\*(\w+)\)\([^)]*\)", r"\1", body)
    body = re.sub(r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\)", lambda m: m[1].lower(), body)
    return re.findall(r"(\w+)\s*;", body)


def test_our_structs_are_those_of_the_header_of_jaxlib() -> None:
    path = ROOT / "csrc/bindings/xla_ffi.h"
    if not path.exists():
        pytest.skip("the sources are not beside the tests")
    ours = path.read_text()
    theirs = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    version = [int(re.search(rf"XLA_FFI_API_{v} (\d+)", theirs)[1]) for v in ("MAJOR", "MINOR")]
    assert version[0] == 0
    names = {
        "ExtensionBase": "Extension_Base",
        "ApiVersion": "Api_Version",
        "ErrorCreateArgs": "Error_Create_Args",
        "Api": "Api",
        "Buffer": "Buffer",
        "ByteSpan": "ByteSpan",
        "Scalar": "Scalar",
        "Array": "Array",
        "Args": "Args",
        "Rets": "Rets",
        "Attrs": "Attrs",
        "CallFrame": "CallFrame",
        "Metadata": "Metadata",
        "MetadataExtension": "Metadata_Extension",
    }
    for own, name in names.items():
        mine, whole = fields(ours, own), fields(theirs, f"XLA_FFI_{name}")
        assert whole[: len(mine)] == mine, name
        if own in ("Args", "Rets", "Attrs", "Buffer", "ErrorCreateArgs"):
            assert whole == mine, name
    for own, name in (
        ("kPred", "PRED"),
        ("kS32", "S32"),
        ("kS64", "S64"),
        ("kF32", "F32"),
        ("kF64", "F64"),
    ):
        value = re.search(rf"XLA_FFI_DataType_{name} = (\d+)", theirs)[1]
        assert f"{own} = {value}" in ours


def test_a_call_that_is_not_ours_is_an_error() -> None:
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(Exception, match=r"kernels: expected an attribute of the call, got none"):
        jax.block_until_ready(jax.ffi.ffi_call("ostinato_pack", shape)(jnp.ones(3, jnp.float32)))


def test_info_tells_how_passes_run() -> None:
    found = info()["jax"]
    assert found == {"version": jax.__version__, "bridge": "ffi"}


def test_it_is_imported_when_it_is_asked_for() -> None:
    import ostinato.interop

    assert ostinato.interop.jax is ost_jax
    assert importlib.util.find_spec("ostinato.interop._jax") is not None  # the importer is another
