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


@pytest.mark.parametrize("square", [False, True])
def test_the_order_of_a_file_does_not_matter(tmp_path: Path, square: bool) -> None:
    """Parameters and builders have numbers."""
    inputs = 4 if square else 3
    shapes = [(16, inputs), (16, 4), (16,), (16, 4), (16, 4), (16,)]
    stack = [drawn(*s, seed=k) for k, s in enumerate(shapes)]
    ends = [stack[:3], [drawn(*s, seed=9) for s in shapes[:3]]]
    arrays = {f"/vanilla-lstm-builder/_{k}": a for k, a in enumerate(stack)}
    for end, own in zip(("", "_1"), ends):
        arrays |= {f"/birnn/vanilla-lstm-builder{end}/_{k}": a for k, a in enumerate(own)}
    x = drawn(6, inputs, seed=9)
    turned = dict(reversed(arrays.items()))
    for found in (arrays, turned):
        imported = interop.from_dynet(write(tmp_path / "a.model", found))
        layers: Any = imported["/vanilla-lstm-builder"], imported["/birnn"]
        want = lstm(lstm(x, *stack[:3]), *stack[3:])
        assert_close(layers[0](x)[0], want.astype(np.float32), scale=2)
        assert_close(layers[1](x)[0], both(x, ends[0] + ends[1]).astype(np.float32), scale=2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["compact-vanilla-lstm-builder"], r"_0: .* got a compact-vanilla-lstm-builder"),
        (["lstm-builder_1"], r"/lstm-builder_1/_0: expected a vanilla-lstm-builder, got a lstm-bu"),
        (["gru-builder"], r"/gru-builder/_0: expected .* got a gru-builder"),
        (["a/simple-rnn-builder"], r"/a/simple-rnn-builder/_0: .* got a simple-rnn-builder"),
        (["birnn/vanilla-lstm-builder"], r"/birnn: expected an LSTM, .*builders 0, not two"),
        (
            ["birnn/vanilla-lstm-builder", "birnn/vanilla-lstm-builder_2"],
            r"/birnn: expected an LSTM, .*builders 0, 2, not two for each layer",
        ),
    ],
)
def test_builders_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    own = [drawn(16, 3), drawn(16, 4), drawn(16)]
    arrays = {f"/{n}/_{k}": a for n in names for k, a in enumerate(own)}
    with pytest.raises(ValueError, match=message):
        interop.from_dynet(write(tmp_path / "a.model", arrays))


def test_missing_parameters_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    arrays = {f"/vanilla-lstm-builder/_{k}": drawn(16, 4) for k in (0, 1, 3)}
    with pytest.raises(ValueError, match=r"parameters _0, _1, _3 of a builder"):
        interop.from_dynet(write(path, arrays))
    with pytest.raises(TypeError, match=r"^batch_first: expected True or False, got 'no'"):
        interop.from_dynet(path, batch_first="no")  # type: ignore[arg-type]


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
