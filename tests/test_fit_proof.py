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

T, B, I, H, P = 4, 3, 2, 5, 3  # noqa: E741  # the names of the axes


def problem(cell: str) -> tuple[dict[str, Any], tuple[int, int, int, int, int], Any, Any]:
    gates, units, _, recurrent, projected = _native.plain_cells()[cell]
    rng = np.random.default_rng(3)
    width = P if projected else H
    shapes = {
        "weight_ih": (gates * H, I),
        "weight_hh": (gates * H if recurrent else 0, width),
        "bias_ih": (gates * H,),
        "bias_hh": (gates * H if recurrent else 0,),
        "units": (units, H),
        "projection": (P, H) if projected else (0,),
        "x": (T, B, I),
        "h0": (B, width),
        "c0": (B, H),
    }
    arrays: dict[str, Any] = {n: rng.normal(size=s) * 0.7 for n, s in shapes.items()}
    arrays["noise"] = rng.uniform(size=(T, B, H))
    arrays["scalars"] = np.array(scalars_of(cell))
    return arrays, (T, B, I, H, width), rng.normal(size=(T, B, width)), rng.normal(size=(B, H))


@pytest.mark.parametrize("cell", sorted(_native.plain_cells()))
def test_gradients_against_finite_differences(cell: str) -> None:
    arrays, sizes, dy, dc = problem(cell)

    def loss() -> float:
        y, cn, _ = _native.plain_run(cell, *sizes, arrays, dy, dc)
        return float((y * dy.ravel()).sum() + (cn * dc.ravel()[: cn.size]).sum())

    _, _, grads = _native.plain_run(cell, *sizes, arrays, dy, dc)
    names = [
        n for n in grads if arrays[n].size and (n != "c0" or _native.plain_cells()[cell][2] > 1)
    ]
    assert {"weight_ih", "bias_ih", "x", "h0"} <= set(names)
    for name in names:
        numeric = numeric_gradient(loss, arrays[name]).ravel()
        np.testing.assert_allclose(
            grads[name], numeric, rtol=1e-6, atol=1e-8, err_msg=f"{cell}: d{name}"
        )


@pytest.mark.parametrize("cell", CELLS)
def test_plain_path_against_the_reference(cell: str) -> None:
    arrays, sizes, dy, dc = problem(cell)
    w = reference.Weights(
        *(arrays[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        arrays["units"] if cell in ("lstm_peephole", "lstm_general") else None,
        arrays["projection"] if cell == "lstm_projected" else None,
        options=reference_options(cell),
    )
    if cell == "lstm_layer_norm":
        for name, rows in zip(NORMS, np.split(arrays["units"], [4, 8, 9])):
            setattr(w, name, rows.ravel())
    run = reference.forward(cell, arrays["x"], w, arrays["h0"], arrays["c0"])
    g = reference.backward(run, dy, None, dc if "lstm" in cell else None)
    y, _, grads = _native.plain_run(cell, *sizes, arrays, dy, dc)
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
    }
    assert kinds <= set(_native.plain_cells())
