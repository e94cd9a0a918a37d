"""Text files of DyNet: by formulas, and the file of a Japanese tagger where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import assert_close
from ostinato import interop


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 2


def write(path: Path, arrays: dict[str, Any]) -> Path:
    """A file in which names that begin with "L" are tables."""
    lines = []
    for name, a in arrays.items():
        kind = "LookupParameter" if name.startswith("L") else "Parameter"
        dims = ",".join(map(str, a.shape))
        numbers = " ".join(f"{x:+.8e}" for x in a.reshape(-1, order="F"))
        lines += [f"#{kind}# {name.removeprefix('L')} {{{dims}}} 9 ZERO_GRAD", numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


def lstm(x: Any, w: Any, r: Any, b: Any) -> Any:
    """An LSTM as DyNet runs it: gates i f o g, 1 added to the forget gate."""

    def sigmoid(a: Any) -> Any:
        return 1 / (1 + np.exp(-a))

    h, c, out = np.zeros(r.shape[1]), np.zeros(r.shape[1]), []
    for row in x:
        i, f, o, g = np.split(w @ row + r @ h + b, 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def both(x: Any, a: list[Any]) -> Any:
    return np.concatenate([lstm(x, *a[:3]), lstm(x[::-1], *a[3:])[::-1]], 1)


def test_layers_of_a_file(tmp_path: Path) -> None:
    own = [drawn(16, 3, seed=1), drawn(16, 4, seed=2), drawn(16, seed=3)]
    other = [drawn(16, 3, seed=4), drawn(16, 4, seed=5), drawn(16, seed=6)]
    arrays = {f"/birnn/vanilla-lstm-builder/_{k}": a for k, a in enumerate(own)}
    arrays |= {f"/birnn/vanilla-lstm-builder_1/_{k}": a for k, a in enumerate(other)}
    arrays |= {f"/vanilla-lstm-builder/_{k}": a for k, a in enumerate(own)}
    arrays |= {"/_5": drawn(2, 8), "/_6": drawn(2), "L/_0": drawn(3, 9), "/_7": drawn(2, 5)}
    imported = interop.from_dynet(write(tmp_path / "a.model", arrays))
    assert list(imported) == ["/birnn", "/vanilla-lstm-builder", "/_5", "/_0", "/_7"]
    x = drawn(6, 3, seed=9)
    layer: Any = imported["/birnn"]
    assert_close(layer(x)[0], both(x, own + other).astype(np.float32), scale=2)
    single: Any = imported["/vanilla-lstm-builder"]
    assert_close(single(x)[0], lstm(x, *own).astype(np.float32), scale=2)
    assert_close(imported["/_5"].state_dict()["bias"], arrays["/_6"])
    assert_close(imported["/_0"].state_dict()["weight"], arrays["L/_0"].T)
    assert repr(imported["/_7"]) == "Linear(5, 2, bias=False)"


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    head = "#Parameter# /_0 {2,2} 9 ZERO_GRAD\n"
    for text, message in (
        ("abc\n", "the line"),
        (head + "1 2 3\n", "3 numbers for '/_0'"),
        (head + "1 2 3 x\n", "could not convert"),
        ("#Parameter# /_0 {99999999,99999999} 9 ZERO_GRAD\n1\n", "in 2 bytes"),
        (head + "1 2 3 4\n" + head + "1 2 3 4\n", "'/_0' of"),
        ("#Parameter# /_0 {,} 9 ZERO_GRAD\n1\n", "in 2 bytes"),
        ("", "no parameters"),
        (head + "1 2 nan 4\n", "numbers for '/_0' that are not finite"),
        (head + "1 2 3 -inf\n", "numbers for '/_0' that are not finite"),
        (head.replace("ZERO", "FULL") + "1 2 3 4\n", "no gradients for '/_0'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"a\.model: expected a text file .*{message}"):
            interop.from_dynet(path)
    with pytest.raises(ValueError, match=r"/_0: expected a table or a matrix, got a Parameter"):
        interop.from_dynet(write(path, {"/_0": drawn(3)}))
    arrays = {f"/vanilla-lstm-builder/_{k}": drawn(16, 4) for k in range(2)}
    with pytest.raises(ValueError, match=r"/vanilla-lstm-builder: expected an LSTM, got"):
        interop.from_dynet(write(path, arrays))


def test_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    text = "#Parameter# /_0 {2,2} 9 FULL_GRAD\n1 2 3 4\n0 0 0 0\n"
    path.write_text(text, encoding="utf-8-sig")
    assert interop.from_dynet(path)["/_0"].state_dict()["weight"].tolist() == [[1, 3], [2, 4]]
