"""Our layers inside JAX, beside a cell in jax.lax.scan: python benchmarks/inside_jax.py.

A model is a product, a recurrent layer and a product, all in one `jax.jit`; a call is its forward
pass, or that with the gradients of its mean square for all weights and the input. Further rows are
sequences of different lengths, a layer under `jax.vmap`, and one step. Each contender is a process
of its own, on as many cores as there are threads, and they take turns; answers are compared first;
figures are medians over the rounds, ratios those within a round.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import contenders
import ostinato as ost

RESULTS = Path(__file__).parent / "results"
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str = "LSTM"
    batch: int = 32
    hidden: int = 256
    steps: int = 50
    what: str = "train"  # or "infer", "lengths", "vmap"
    calls: int = 5
    peers: tuple[str, ...] = ("scan",)


def rows(short: bool) -> list[Row]:
    """Return every row, in the order of the table."""
    sizes = (1, 32) if short else (1, 8, 32, 128)
    out = [
        Row(f"{k}, {what}, B = {b}", k, b, what=what)
        for k in ("LSTM", "GRU", "RNN")
        for what in ("infer", "train")
        for b in sizes
    ]
    out += [Row(f"{k}, train, lengths of 5 to 50", k, what="lengths") for k in ("LSTM", "GRU")]
    out += [Row(f"{k}, train, vmap of 32", k, what="vmap") for k in ("LSTM", "GRU")]
    out += [Row(f"{k}, one step, B = 1", k, 1, 128, 1, "infer", 200) for k in ("LSTM", "GRU")]
    return out


def scan(kind: str) -> Callable[..., Any]:
    """Return a layer by `jax.lax.scan`, called as ours; the input product is of all steps."""
    import jax
    import jax.numpy as jnp

    def lstm(state: Any, a: Any, r: Any, b: Any) -> Any:
        i, f, g, o = jnp.split(a + state[0] @ r.T + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(state: Any, a: Any, r: Any, b: Any) -> Any:
        own, n = jnp.split(a, [2 * r.shape[1]], axis=-1)
        of_h, n_of_h = jnp.split(state[0] @ r.T + b, [2 * r.shape[1]], axis=-1)
        reset, update = jnp.split(jax.nn.sigmoid(own + of_h), 2, axis=-1)
        return ((1 - update) * jnp.tanh(n + reset * n_of_h) + update * state[0],)

    def rnn(state: Any, a: Any, r: Any, b: Any) -> Any:
        return (jnp.tanh(a + state[0] @ r.T + b),)

    cell = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[kind]

    def layer(x: Any, w: Any, r: Any, b_ih: Any, b_hh: Any, lengths: Any = None) -> Any:
        zero = jnp.zeros((*x.shape[1:-1], r.shape[1]), x.dtype)

        def step(state: Any, given: Any) -> Any:
            t, a = given
            new = cell(state, a, r, b_hh)
            if lengths is None:
                return new, new[0]
            on = (t < lengths)[:, None]
            return tuple(jnp.where(on, n, s) for n, s in zip(new, state)), new[0] * on

        first = (zero,) * (2 if kind == "LSTM" else 1)
        return jax.lax.scan(step, first, (jnp.arange(x.shape[0]), x @ w.T + b_ih))[1]

    return layer


def ours(kind: str) -> Callable[..., Any]:
    """Return our layer."""
    from ostinato.interop import jax as ost_jax

    function = getattr(ost_jax, kind.lower())
    return lambda x, *weights, **more: function(x, *weights, **more)[0]


def make(name: str, row: Row, threads: int) -> Callable[[], dict[str, Any]]:
    """Return a contender's call, which gives its answers."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # XLA has a thread a core
    ost.set_num_threads(threads)
    import jax
    import jax.numpy as jnp

    h, rng = row.hidden, np.random.default_rng(0)
    gates = GATES[row.kind] * h
    shapes = ((h, h), (gates, h), (gates, h), (gates,), (gates,), (h, h))
    bound = h**-0.5
    weights = [jnp.asarray(rng.uniform(-bound, bound, s), jnp.float32) for s in shapes]
    x = jnp.asarray(rng.normal(size=(row.steps, row.batch, h)), jnp.float32)
    layer = (ours if name == "ostinato" else scan)(row.kind)
    more = {}
    if row.what == "lengths":
        more["lengths"] = jnp.asarray(rng.integers(row.steps // 10, row.steps + 1, row.batch))

    def model(x: Any, weights: Any) -> Any:
        head, *own, tail = weights
        return layer(x @ head.T, *own, **more) @ tail.T

    def mapped(x: Any, weights: Any) -> Any:
        return jax.vmap(model, (1, None), 1)(x, weights)

    run = mapped if row.what == "vmap" else model
    if row.what == "infer":
        infer = jax.jit(run)
        return lambda: {"y": np.asarray(infer(x, weights))}
    both = jax.jit(jax.value_and_grad(lambda *a: (run(*a) ** 2).mean(), (0, 1)))

    def train() -> dict[str, Any]:
        loss, (dx, grads) = jax.block_until_ready(both(x, weights))
        named = {str(k): np.asarray(g) for k, g in enumerate(grads)}
        return {"loss": np.asarray(loss).reshape(1), "dx": np.asarray(dx), **named}

    return train


def main() -> None:
    """Run the rows and write the results."""

    def shown(row: Row, r: dict[str, Any]) -> str:
        return f"{r['seconds']['scan'] * 1e3:9.3f}  {r['ratio']['scan']:.2f}x"

    contenders.main(__file__, __doc__, Row, rows, make, "the scan's over ours", shown)


if __name__ == "__main__":
    main()
