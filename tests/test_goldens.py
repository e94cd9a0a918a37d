"""ONNX Runtime's own golden cases, from the folder that OSTINATO_GOLDENS names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost

FOLDER = os.environ.get("OSTINATO_GOLDENS")
CASES = json.loads((Path(FOLDER) / "ort_rnn_goldens.json").read_text())["cases"] if FOLDER else []
DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
NAMES = {
    "LSTM": ("recurrent_activation", "activation", "output_activation"),
    "GRU": ("recurrent_activation", "activation"),
    "RNN": ("nonlinearity",),
}
ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}  # ONNX' gate blocks -> PyTorch's


def options_of(case: dict[str, Any], direction: int) -> dict[str, Any]:
    """The functions of a direction, clip and coupled gates."""
    names = NAMES[case["op"]]
    given = [a.lower() for a in case["activations"] or []] or DEFAULTS[case["op"]] * 2
    functions = given[direction * len(names) : (direction + 1) * len(names)]
    options: dict[str, Any] = dict(zip(names, functions))
    if case["input_forget"]:
        options["coupled_gates"] = True
    return {**options, "clip": case["clip"]}


@pytest.mark.skipif(not FOLDER, reason="OSTINATO_GOLDENS names no folder")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_golden(case: dict[str, Any], kernel_set: str) -> None:
    op, f = case["op"], np.float32
    arrays = {
        k: None if case[k] is None else np.array(case[k], f)
        for k in ("X", "W", "R", "B", "P", "initial_h", "initial_c")
    }
    x, w, r = arrays["X"], arrays["W"], arrays["R"]
    assert x is not None
    assert w is not None
    assert r is not None
    lengths = case["sequence_lens"]

    def gates(a: Any) -> Any:
        parts = np.split(a, len(ORDER[op]))
        return np.ascontiguousarray(np.concatenate([parts[k] for k in ORDER[op]]))

    ys, hs, cs = [], [], []
    for d in range(w.shape[0]):
        weights: list[Any] = [gates(w[d]), gates(r[d]), None, None]
        if arrays["B"] is not None:
            weights[2:] = [gates(b) for b in np.split(arrays["B"][d], 2)]
        options: dict[str, Any] = {
            "lengths": lengths,
            "reverse": case["direction"] == "reverse" or d == 1,
            **options_of(case, d),
        }
        h0 = None if arrays["initial_h"] is None else arrays["initial_h"][d]
        if op == "LSTM":
            if arrays["P"] is not None:
                i, o, forget = np.split(arrays["P"][d], 3)  # ONNX: i o f
                options["weight_peephole"] = np.stack([i, forget, o])
            c0 = None if arrays["initial_c"] is None else arrays["initial_c"][d]
            y, (h, c) = ost.functional.lstm(x, *weights, h0, c0, **options)
            cs.append(c)
        elif op == "GRU":
            y, h = ost.functional.gru(
                x, *weights, h0, reset_after=bool(case["linear_before_reset"]), **options
            )
        else:
            y, h = ost.functional.rnn(x, *weights, h0, **options)
        ys.append(y)
        hs.append(h)
    compared = 0
    for name, got in (
        ("Y", np.stack(ys, 1)),
        ("Y_h", np.stack(hs)),
        ("Y_c", np.stack(cs) if cs else None),
    ):
        if case.get(name) is not None:
            want = np.array(case[name], f)
            np.testing.assert_allclose(
                got, want.reshape(np.shape(got)), rtol=0, atol=max(case["tol"], 1e-6), err_msg=name
            )
            compared += 1
    assert compared


def cell_of(case: dict[str, Any], direction: int) -> str:
    one = {"LSTM": ost.nn.LSTM, "GRU": ost.nn.GRU, "RNN": ost.nn.RNN}[case["op"]]
    options = options_of(case, 0 if case["direction"] != "bidirectional" else direction)
    return str(one(1, 1, **options)._cell)


@pytest.mark.skipif(not FOLDER, reason="OSTINATO_GOLDENS names no folder")
def test_how_many_there_are() -> None:
    assert len(CASES) == 58
    unusual = [c for c in CASES if any("general" in cell_of(c, d) for d in (0, 1))]
    assert len(unusual) == 8
    assert sum(bool(c["clip"]) for c in unusual) == 2
