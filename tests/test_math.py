"""The vector functions: largest error in ULP over the whole range, on every kernel set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ostinato import _core

# What csrc/cpu/math.h states, by function and dtype. The baseline set has no fused multiply-add and
# is a little worse.
ULP = {"exp": (2.0, 2.0), "sigmoid": (4.0, 4.0), "tanh": (4.0, 4.0)}
CLAMPS = {"float32": (-87.0, 88.0), "float64": (-708.0, 709.0)}


def points(dtype: Any) -> Any:
    rng = np.random.default_rng(0)
    low, high = CLAMPS[np.dtype(dtype).name]
    spread = np.concatenate(
        [
            rng.uniform(low, high, 300_000),
            rng.uniform(-12, 12, 300_000),
            rng.uniform(-0.7, 0.7, 200_000),
        ]
    )
    tiny = np.exp(rng.uniform(np.log(1e-30), 0, 200_000)) * rng.choice([-1, 1], 200_000)
    return np.concatenate([spread, tiny]).astype(dtype)


def exact(name: str, x: Any) -> Any:
    wide = x.astype(np.longdouble)
    if name == "exp":
        return np.exp(wide)
    return np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
def test_ulp(name: str, dtype: Any, kernel_set: str) -> None:
    run = getattr(_core, "map_" + {np.float32: "Float32", np.float64: "Float64"}[dtype])
    x = points(dtype)
    want = exact(name, x)
    ulps = np.abs(run(name, x) - want) / np.spacing(np.abs(want.astype(dtype)))
    limit = ULP[name][0 if dtype is np.float32 else 1]
    worst = int(np.argmax(ulps))
    assert ulps[worst] <= limit, f"{name} is {float(ulps[worst]):.2f} ULP off at {x[worst]!r}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype: Any, kernel_set: str) -> None:
    run = getattr(_core, "map_" + {np.float32: "Float32", np.float64: "Float64"}[dtype])
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    tanh, sigmoid, exp = (run(n, x) for n in ("tanh", "sigmoid", "exp"))
    assert np.isnan([tanh[0], sigmoid[0], exp[0]]).all()
    assert tanh[1:4].tolist() == [1, -1, 0]
    assert sigmoid[1] == 1
    assert 0 <= sigmoid[2] < 1e-37
    assert sigmoid[3] == 0.5
    assert exp[3] == 1
    assert run("tanh", x[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_do_not_depend_on_the_place_in_the_vector(dtype: Any, kernel_set: str) -> None:
    run = getattr(_core, "map_" + {np.float32: "Float32", np.float64: "Float64"}[dtype])
    x = np.linspace(-9, 9, 67).astype(dtype)
    whole = run("tanh", x)
    assert all(run("tanh", x[k : k + 1])[0] == whole[k] for k in range(67))
