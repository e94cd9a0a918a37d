"""The proof that the contract of a cell fits.

Every kind of cell as a struct, on the plain float64 path, gradient-checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import (
    CELLS,
    NORMS,
    native_for_tests,
    numeric_gradient,
    reference_options,
    scalars_of,
)
from ostinato import reference

_native = native_for_tests()

T, B, I, H, P = 4, 3, 2, 6, 3  # noqa: E741  # the names of the axes


def problem(cell: str) -> tuple[dict[str, Any], tuple[int, ...], Any, Any]:
    facts = _native.plain_cells()[cell]
    gates, units, states = facts["gates"], facts["units"], facts["states"]
    rng = np.random.default_rng(3)
    width = P if facts["projected"] else H
    heads = 3 if facts["block_diagonal"] else 1
    recurrent = gates * H if facts["recurrent"] else 0
    shapes = {
        "weight_ih": (gates * H, I),
        "weight_hh": (recurrent, width // heads),
        "bias_ih": (gates * H,),
        "bias_hh": (recurrent,),
        "units": (units, H),
        "projection": (P, H) if facts["projected"] else (0,),
        "x": (T, B, I),
        "h0": (B, width),
        "states": (len(states) - 1, B, H),
    }
    arrays: dict[str, Any] = {n: rng.normal(size=s) * 0.7 for n, s in shapes.items()}
    arrays["noise"] = rng.uniform(size=(T, B, H))
    arrays["scalars"] = np.array(scalars_of(cell))
    if "n" in states:  # a sum of exponentials
        arrays["states"][states.index("n") - 1] = rng.uniform(0.5, 1.5, size=(B, H))
    dy, dstates = rng.normal(size=(T, B, width)), rng.normal(size=arrays["states"].shape)
    return arrays, (T, B, I, H, width, heads), dy, dstates


@pytest.mark.parametrize("cell", sorted(_native.plain_cells()))
def test_gradients_against_finite_differences(cell: str) -> None:
    arrays, sizes, dy, dstates = problem(cell)

    def loss() -> float:
        y, states, _ = _native.plain_run(cell, *sizes, arrays, dy, dstates)
        return float((y * dy.ravel()).sum() + (states * dstates.ravel()).sum())

    _, _, grads = _native.plain_run(cell, *sizes, arrays, dy, dstates)
    names = [n for n in grads if arrays[n].size]
    assert {"weight_ih", "bias_ih", "x", "h0"} <= set(names)
    for name in names:
        numeric = numeric_gradient(loss, arrays[name]).ravel()
        np.testing.assert_allclose(
            grads[name], numeric, rtol=1e-6, atol=1e-8, err_msg=f"{cell}: d{name}"
        )


@pytest.mark.parametrize("cell", CELLS)
def test_plain_path_against_the_reference(cell: str) -> None:
    arrays, sizes, dy, dstates = problem(cell)
    w = reference.Weights(
        *(arrays[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        arrays["units"] if cell in ("lstm_peephole", "lstm_general") else None,
        arrays["projection"] if cell == "lstm_projected" else None,
        options=reference_options(cell),
    )
    if cell == "lstm_layer_norm":
        for name, rows in zip(NORMS, np.split(arrays["units"], [4, 8, 9])):
            setattr(w, name, rows.ravel())
    c0, dc = (*arrays["states"], None)[0], (*dstates, None)[0]
    run = reference.forward(cell, arrays["x"], w, arrays["h0"], c0)
    g = reference.backward(run, dy, None, dc)
    y, _, grads = _native.plain_run(cell, *sizes, arrays, dy, dstates)
    np.testing.assert_allclose(y, run.y.ravel(), rtol=1e-12, atol=1e-14)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        np.testing.assert_allclose(
            grads[name], getattr(g.weights, name).ravel(), rtol=1e-10, atol=1e-12, err_msg=name
        )
    if cell == "lstm_layer_norm":
        norms = np.concatenate([getattr(g.weights, name) for name in NORMS])
        np.testing.assert_allclose(grads["units"], norms, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads["x"], g.x.ravel(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads["h0"], g.h0.ravel(), rtol=1e-10, atol=1e-12)


def test_slstm_is_what_the_paper_writes() -> None:
    """Without the stabiliser m, and with R as a whole matrix of which the blocks are not zero."""
    arrays, sizes, dy, dstates = problem("slstm")
    y, states, _ = _native.plain_run("slstm", *sizes, arrays, dy, dstates)
    heads = sizes[-1]
    assert _native.plain_cells()["slstm"]["states"] == ["h", "c", "n", "m"]
    recurrent = np.zeros((4, H, H))
    for u in range(H):
        block = slice(u // (H // heads) * (H // heads), (u // (H // heads) + 1) * (H // heads))
        recurrent[:, u, block] = arrays["weight_hh"].reshape(4, H, -1)[:, u]
    h, (c, n, m) = arrays["h0"], arrays["states"]
    c, n = c * np.exp(m), n * np.exp(m)
    for t in range(T):
        a = arrays["x"][t] @ arrays["weight_ih"].T + arrays["bias_ih"] + arrays["bias_hh"]
        a_i, a_f, a_z, a_o = a.reshape(B, 4, H).swapaxes(0, 1) + h @ recurrent.swapaxes(1, 2)
        c = np.exp(a_f) * c + np.exp(a_i) * np.tanh(a_z)
        n = np.exp(a_f) * n + np.exp(a_i)
        h = c / n / (1 + np.exp(-a_o))
        np.testing.assert_allclose(y.reshape(T, B, H)[t], h, rtol=1e-12)
    c1, n1, m1 = states.reshape(3, B, H)
    np.testing.assert_allclose([c1 * np.exp(m1), n1 * np.exp(m1)], [c, n], rtol=1e-12)


def test_the_proof_covers_every_kind_of_cell() -> None:
    kinds = {
        "rnn_tanh",
        "lstm",
        "gru",
        "gru_reset_before",
        "lstm_layer_norm",
        "lstm_gate_norm",
        "lstm_projected",
        "zoneout_gru",
        "zoneout_lstm",
        "min_gru",
        "slstm",
    }
    assert kinds <= set(_native.plain_cells())
