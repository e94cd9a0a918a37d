"""Gradients of what was recorded, against central differences; the unknown is refused by name."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fake_cupy
import ostinato as ost
from conftest import native_for_tests, numeric_gradient, parameter_gradient
from ostinato import nn

A = np.random.default_rng(0).standard_normal((3, 4))
B = np.random.default_rng(1).standard_normal((4, 5))
ROW = np.random.default_rng(2).standard_normal(4)
BATCH = np.random.default_rng(3).standard_normal((2, 3, 4))
MASK = np.random.default_rng(4).random((3, 4)) < 0.5
POSITIVE = np.abs(A) + 0.5

# Every operation, as a function of arrays that it is called with.
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "add": (lambda a, b: a + b, (A, ROW)),
    "add a number": (lambda a: 2 + a, (A,)),
    "subtract": (lambda a, b: a - b, (ROW, A)),
    "subtract from": (lambda a: 1 - a, (A,)),
    "multiply": (lambda a, b: a * b, (A, A[:, :1])),
    "divide": (lambda a, b: a / b, (A, POSITIVE)),
    "divide a number": (lambda a: 1 / a, (POSITIVE,)),
    "power": (lambda a: a**3, (A,)),
    "power of negatives": (lambda a: a**2, (-POSITIVE,)),
    "power with an array": (lambda a, b: a**b, (POSITIVE, A)),
    "a number to a power": (lambda b: 2.0**b, (A,)),
    "negative": (lambda a: -a, (A,)),
    "positive": (lambda a: +a, (A,)),
    "absolute": (abs, (A,)),
    "exp": (np.exp, (A,)),
    "expm1": (np.expm1, (A,)),
    "exp2": (np.exp2, (A,)),
    "log": (np.log, (POSITIVE,)),
    "log1p": (np.log1p, (POSITIVE,)),
    "log2": (np.log2, (POSITIVE,)),
    "log10": (np.log10, (POSITIVE,)),
    "sqrt": (np.sqrt, (POSITIVE,)),
    "square": (np.square, (A,)),
    "reciprocal": (np.reciprocal, (POSITIVE,)),
    "tanh": (np.tanh, (A,)),
    "sin": (np.sin, (A,)),
    "cos": (np.cos, (A,)),
    "sinh": (np.sinh, (A,)),
    "cosh": (np.cosh, (A,)),
    "arctan": (np.arctan, (A,)),
    "maximum": (np.maximum, (A, ROW)),
    "minimum": (np.minimum, (A, ROW)),
    "logaddexp": (np.logaddexp, (A, ROW)),
    "where": (lambda a, b: np.where(MASK, a, b), (A, ROW)),
    "where by itself": (lambda a: np.where(a > 0, a, 0.1 * a), (A,)),
    "clip": (lambda a: np.clip(a, -0.5, 0.5), (A,)),
    "clip, the method": (lambda a: a.clip(0, None), (A,)),
    "nan_to_num": (np.nan_to_num, (A,)),
    "matmul": (lambda a, b: a @ b, (A, B)),
    "matmul of stacks": (lambda a, b: a @ b, (BATCH, np.stack([B, 2 * B]))),
    "matmul of a stack and a matrix": (lambda a, b: a @ b, (BATCH, B)),
    "matmul of a matrix and a stack": (lambda a, b: a @ b, (A, np.stack([B, 2 * B]))),
    "matmul with a vector": (lambda a, b: a @ b, (BATCH, ROW)),
    "matmul of a vector": (lambda a, b: a @ b, (ROW, np.stack([B, 2 * B]))),
    "matmul with a list": (lambda a: np.matmul(a, B.tolist()), (A,)),
    "matmul of a list": (lambda b: A.tolist() @ b, (B,)),
    "matmul of a tuple": (lambda b: np.matmul(tuple(ROW), b), (B,)),
    "matmul of vectors": (lambda a, b: a @ b, (ROW, ROW + 1)),
    "matmul from the right": (lambda b: A @ b, (B,)),
    "dot": (np.dot, (A, B)),
    "dot with a list": (lambda a: np.dot(a, ROW.tolist()), (A,)),
    "dot with a number": (lambda a: np.dot(a, 2.0), (A,)),
    "outer with a list": (lambda a: np.outer(a, [1.0, 2.0]), (A,)),
    "outer": (np.outer, (A, ROW)),
    "einsum": (lambda a, b: np.einsum("ij,jk->ki", a, b), (A, B)),
    "einsum with a list and dots": (
        lambda a: np.einsum("...j,...j->...", a, ROW.tolist()),
        (BATCH,),
    ),
    "einsum of three": (lambda a, b, c: np.einsum("bij,jk,i->b", a, b, c), (BATCH, B, A[:, 0])),
    "einsum, implicit": (lambda a, b: np.einsum("ij,jk", a, b), (A, B)),
    "einsum with dots": (lambda a, b: np.einsum("...j,jk->...k", a, b), (BATCH, B)),
    "einsum that sums": (lambda a: np.einsum("bij->i", a), (BATCH,)),
    "einsum to a number": (lambda a: np.einsum("ij,ij->", a, a), (A,)),
    "sum": (lambda a: a.sum(), (A,)),
    "sum over an axis": (lambda a: np.sum(a, axis=-1), (BATCH,)),
    "sum over axes": (lambda a: a.sum(axis=(0, 2), keepdims=True), (BATCH,)),
    "mean": (lambda a: a.mean(1), (BATCH,)),
    "mean of all": (np.mean, (BATCH,)),
    "var": (lambda a: a.var(axis=1, ddof=1), (A,)),
    "std": (lambda a: np.std(a, axis=0, keepdims=True), (A,)),
    "max": (lambda a: a.max(axis=1), (A,)),
    "max of all": (np.max, (A,)),
    "min": (lambda a: np.min(a, axis=(0, 1), keepdims=True), (BATCH,)),
    "cumsum": (lambda a: np.cumsum(a, axis=0), (A,)),
    "cumsum of all": (np.cumsum, (A,)),
    "reshape": (lambda a: a.reshape(2, -1) * ROW[0], (A,)),
    "reshape, the function": (lambda a: np.reshape(a, (6, 2)), (A,)),
    "ravel": (lambda a: a.ravel() * np.arange(12.0), (A,)),
    "flatten": (lambda a: a.flatten() * np.arange(12.0), (A,)),
    "transpose": (lambda a: a.T @ A, (A,)),
    "transpose, with axes": (lambda a: a.transpose(2, 0, 1)[1], (BATCH,)),
    "swapaxes": (lambda a: a.swapaxes(0, 2)[1], (BATCH,)),
    "moveaxis": (lambda a: np.moveaxis(a, 0, -1)[1], (BATCH,)),
    "squeeze": (lambda a: a[None].squeeze(0) * ROW, (A,)),
    "expand_dims": (lambda a: np.expand_dims(a, 1) * ROW, (A,)),
    "broadcast_to": (lambda a: np.broadcast_to(a, (3, 4)) * A, (ROW,)),
    "flip": (lambda a: np.flip(a, 1) * ROW, (A,)),
    "roll": (lambda a: np.roll(a, 1, axis=0) * A, (A,)),
    "repeat": (lambda a: np.repeat(a, 2, axis=1)[:, ::3], (A,)),
    "repeat of all": (lambda a: np.repeat(a, 2) * np.arange(24.0), (A,)),
    "pad": (lambda a: np.pad(a, ((1, 0), (0, 2)))[1:, 1:], (A,)),
    "tril": (lambda a: np.tril(a, -1), (A,)),
    "triu": (np.triu, (A,)),
    "concatenate": (lambda a, b: np.concatenate([a, A, b], axis=1), (A, A[:, :2])),
    "concatenate of all": (
        lambda a, b: np.concatenate([a, b, [1.0]], axis=None) * np.arange(17.0),
        (A, ROW),
    ),
    "concatenate with a list": (lambda a: np.concatenate([A.tolist(), a]), (A,)),
    "stack with a list": (lambda a: np.stack([ROW.tolist(), a], axis=1), (ROW,)),
    "stack": (lambda a, b: np.stack([a, b, ROW], axis=1), (ROW, ROW + 1)),
    "hstack": (lambda a, b: np.hstack([a, b]), (A, A[:, :2])),
    "vstack": (lambda a, b: np.vstack([a, b]), (ROW, ROW + 1)),
    "vstack of a row and rows": (lambda a, b: np.vstack([a, b, a]), (ROW, A)),
    "vstack of rows and a row": (lambda a, b: np.vstack([a, b]), (A, ROW)),
    "vstack of numbers": (lambda a: np.vstack([a[0, 0], 2.0, a[1, 1]]), (A,)),
    "hstack of numbers": (lambda a: np.hstack([a[0, 0], 2.0, a[1, :2]]), (A,)),
    "split": (lambda a: np.split(a, 2, axis=1)[1], (A,)),
    "array_split": (lambda a: np.array_split(a, [1, 3], axis=1)[1], (A,)),
    "an element": (lambda a: a[1, 2], (A,)),
    "a slice": (lambda a: a[::-1, 1:3], (A,)),
    "an axis more": (lambda a: a[:, None, ..., 0], (BATCH,)),
    "a mask": (lambda a: a[MASK], (A,)),
    "rows by number": (lambda a: a[np.array([[0, 2], [2, 2]])], (A,)),
    "rows by a list": (lambda a: a[[0, -1, 0]], (A,)),
    "rows by an empty list": (lambda a: a[[]], (A,)),
    "rows by a list of bools": (lambda a: a[[True, False, True]], (A,)),
    "all rows by a list of bools": (lambda a: a[[True, True, True]] * A, (A,)),
    "columns by a list of bools": (lambda a: a[1:, [True, False, True, True]], (A,)),
    "a mask as lists": (lambda a: a[MASK.tolist()], (A,)),
    "elements by lists": (lambda a: a[[0, 1, 0], [3, -1, 3]], (A,)),
    "elements by numbers": (lambda a: a[np.array([0, 1, 0]), np.array([3, 3, 3])], (A,)),
    "numbers behind a slice": (lambda a: a[:, [1, 1, 0]], (BATCH,)),
    "take": (lambda a: np.take(a, [1, 1, 0], axis=1), (A,)),
    "take of all": (lambda a: np.take(a, [5, 5]), (A,)),
    "take by a tuple": (lambda a: np.take(a, (5, 2, 5)), (A,)),
    "take by bools": (lambda a: np.take(a, [True, False, True], axis=1), (A,)),
    "take by an array of bools": (lambda a: a.take(np.array([True, True, True]), axis=0), (A,)),
    "take_along_axis": (
        lambda a: np.take_along_axis(a, np.array([[1, 1], [0, 3], [2, 2]]), axis=1),
        (A,),
    ),
    "iteration": (lambda a: sum(row[k] for k, row in enumerate(a)), (A,)),
    "astype": (lambda a: a.astype(np.float64) * 2, (A,)),
    "used twice": (lambda a: a * a + a, (A,)),
    "not used": (lambda a, b: a * 2, (A, B)),
    "sigmoid": (nn.sigmoid, (A,)),
    "relu": (nn.relu, (A,)),
    "gelu": (nn.gelu, (A,)),
    "gelu_tanh": (lambda a: nn.gelu(a, approximate=True), (A,)),
    "softmax": (nn.softmax, (A,)),
    "softmax over an axis": (lambda a: nn.softmax(a, axis=0), (A,)),
    "softmax of some": (lambda a: nn.softmax(a, where=np.tril(np.ones((3, 4), bool), -1)), (A,)),
    "log_softmax": (nn.log_softmax, (A,)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    function, arrays = OPERATIONS[name]
    arrays = tuple(a.copy() for a in arrays)
    y, pullback = ost.vjp(function, *arrays)
    assert np.array_equal(y, function(*arrays))  # the same call without a recording
    d = np.random.default_rng(9).standard_normal(np.shape(y))
    found = pullback(np.asarray(d, np.float64))
    found = found if len(arrays) > 1 else (found,)
    for a, dx in zip(arrays, found):
        want = numeric_gradient(lambda: float((function(*arrays) * d).sum()), a)
        np.testing.assert_allclose(dx, want, rtol=1e-6, atol=1e-7)
        assert (dx.shape, dx.dtype) == (a.shape, a.dtype)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_have_the_dtype_of_what_they_belong_to(name: str) -> None:
    function, arrays = OPERATIONS[name]
    arrays = tuple(a.astype(np.float32) for a in arrays)
    y, pullback = ost.vjp(function, *arrays)
    found = pullback(np.ones_like(y))
    for a, dx in zip(arrays, found if len(arrays) > 1 else (found,)):
        assert (dx.shape, dx.dtype) == (a.shape, np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
def test_elements_picked_more_than_once_of_every_dtype(dtype: str) -> None:
    a = A.astype(dtype)
    for index in ([0, -1, 0], (np.array([0, 0, 0]), np.array([1, 1, 2])), np.zeros((2, 0), int)):
        y, pullback = ost.vjp(lambda a: a[index], a)  # noqa: B023
        dx, want = pullback(np.full_like(y, 0.5)), np.zeros_like(a)
        np.add.at(want, index, np.full_like(y, 0.5))
        assert dx.dtype == a.dtype
        assert np.array_equal(dx, want)


def test_equal_ones_share_the_gradient() -> None:
    _, pullback = ost.vjp(lambda a: np.max(a), np.ones(4))
    assert pullback().tolist() == [0.25] * 4
    _, pullback = ost.vjp(lambda a, b: np.maximum(a, b), np.ones(2), np.ones(2))
    assert [d.tolist() for d in pullback(np.ones(2))] == [[0.5, 0.5], [0.5, 0.5]]


def test_powers_at_zero() -> None:
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0), (3.0, 0.0)):
        _, pullback = ost.vjp(lambda a: a**exponent, np.zeros(1))  # noqa: B023
        assert pullback(np.ones(1)).tolist() == [slope]


RETURNED: dict[str, tuple[Callable[..., Any], int]] = {
    "what was given": (lambda a: a + 1, 1),
    "a view of it": (lambda a: a.reshape(-1), 1),
    "one of two": (lambda a, b: a + b, 2),
    "a broadcast one": (lambda a: a.sum(), 1),
    "a sum": (lambda a: a + a, 1),
    "pieces of one": (lambda a, b: np.concatenate([a, b]), 2),
    "that of a layer": (nn.Dropout(0.0, dtype=np.float64), 1),
}


@pytest.mark.parametrize("name", RETURNED)
def test_gradients_are_arrays_of_their_own(name: str) -> None:
    function, count = RETURNED[name]
    y, pullback = ost.vjp(function, *[A.copy() for _ in range(count)])
    d = np.ones_like(y)
    found = pullback(d)
    found = [found] if count == 1 else list(found)
    for k, dx in enumerate(found):
        assert dx.flags.writeable
        assert not np.shares_memory(dx, d)
        assert not any(np.shares_memory(dx, other) for other in found[k + 1 :])
    want = found[-1].copy()
    found[0] += 1
    assert (d == 1).all()
    assert count == 1 or np.array_equal(found[-1], want)


UNKNOWN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a ufunc": (np.arcsin, r"np\.arcsin: expected an operation that vjp knows"),
    "a function": (np.median, r"np\.median: expected an operation that vjp knows"),
    "a submodule": (np.linalg.inv, r"np\.inv: expected an operation"),
    "a method of a ufunc": (np.add.accumulate, r"np\.add\.accumulate: expected an operation"),
    "an option": (
        lambda a: np.sum(a, axis=0, dtype=np.float64),
        r"np\.sum: expected no dtype within vjp",
    ),
    "an order by position": (
        lambda a: np.reshape(a, (4, 3), "F"),
        r"np\.reshape: expected at most 2 arguments by position within vjp, got 3",
    ),
    "an order of ravel": (
        lambda a: a.ravel("F"),
        r"np\.ravel: expected at most 1 argument by position within vjp, got 2",
    ),
    "a copy by position": (
        lambda a: np.nan_to_num(a, True),
        r"np\.nan_to_num: expected at most 1 argument by position within vjp, got 2",
    ),
    "a dtype by position": (
        lambda a: np.sum(a, 0, np.float64),
        r"np\.sum: expected at most 2 arguments by position within vjp, got 3",
    ),
    "a dtype by position of a method": (
        lambda a: a.mean(0, np.float64),
        r"np\.mean: expected at most 2 arguments by position within vjp, got 3",
    ),
    "no dtype by position": (
        lambda a: np.var(a, 0, None),
        r"np\.var: expected at most 2 arguments by position within vjp, got 3",
    ),
    "a dtype of std by position": (
        lambda a: np.std(a, 0, np.float64),
        r"np\.std: expected at most 2 arguments by position within vjp, got 3",
    ),
    "an output by position": (
        lambda a: np.max(a, 0, None),
        r"np\.a?max: expected at most 2 arguments by position within vjp, got 3",
    ),
    "limits by position": (
        lambda a: np.clip(a, 0, 1, None),
        r"np\.clip: expected at most 3 arguments by position within vjp, got 4",
    ),
    "an option of a ufunc": (
        lambda a: np.add(a, a, where=a > 0),
        r"np\.add: expected no options within vjp, got where",
    ),
    "in place": (lambda a: a.__iadd__(1), r"x \+= \.\.\.: expected no change in place"),
    "in place of a plain array": (
        lambda a: np.zeros((3, 4)).__iadd__(a),
        r"np\.add\(out=\.\.\.\): expected no change",
    ),
    "an assignment": (lambda a: a.__setitem__(0, 1), "Variable: expected no assignment"),
    "an assignment to a plain array": (
        lambda a: np.zeros((3, 4)).__setitem__(0, a[0]),
        "would lose the gradient",
    ),
    "np.asarray": (np.asarray, "would lose the gradient; use np.stack"),
    "np.array of a list": (lambda a: np.array([a[0], a[1]]), "would lose the gradient"),
    "float": (lambda a: float(a.sum()), "conversion to a number, which would lose the gradient"),
    "item": (lambda a: a.sum().item(), "conversion to a number"),
    "a diagonal": (lambda a: np.einsum("ii->i", a[:, :3]), "np.einsum: expected every index once"),
    "einsum with lists": (lambda a: np.einsum(a, [0, 1], [0]), "expected subscripts as text"),
    "repeats": (
        lambda a: np.repeat(a, [1, 2, 3], axis=0),
        "np.repeat: expected one number of repeats",
    ),
    "a mode": (
        lambda a: np.pad(a, 1, mode="edge"),
        "np.pad: expected mode 'constant' within vjp, got 'edge'",
    ),
    "a wide dot": (
        lambda a: np.dot(a, np.ones((2, 4, 3))),
        "np.dot: expected at most 2 axes on the right",
    ),
}


def test_arguments_by_position_are_those_of_numpy() -> None:
    """No rule takes as its second or third argument what NumPy has elsewhere."""
    rules: Any = importlib.import_module("ostinato._rules")
    checked = 0
    for function, rule in rules.FUNCTIONS.items():
        try:
            names = list(inspect.signature(function).parameters)
        except ValueError:  # written in C, without one: concatenate, where, dot
            continue
        most = rules._POSITIONS[rule]
        if most is not None:
            own = list(inspect.signature(rule).parameters)[1:most]
            assert own == [n.replace("newshape", "shape") for n in names[1:most]], function
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    function, message = UNKNOWN[name]
    with pytest.raises(TypeError, match=message):
        ost.vjp(function, A.copy())


def test_an_unknown_attribute_is_named() -> None:
    with pytest.raises(
        AttributeError, match="prod: expected an attribute of arrays that vjp knows"
    ):
        ost.vjp(lambda a: a.prod(), A)


def test_methods_take_the_arguments_of_numpy() -> None:
    def function(a: Any) -> Any:
        return (a.flatten("C") + a.copy("C").reshape(shape=(12,)) + a.reshape(-1)).sum()

    _, pullback = ost.vjp(function, A)
    assert (pullback() == 3).all()
    for method in (lambda a: a.flatten("F"), lambda a: a.reshape(4, 3, order="F")):
        with pytest.raises(TypeError, match=r"np\.reshape: expected no order within vjp"):
            ost.vjp(method, A)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda a: abs(a * 1j).sum(), "complex128"),
        (lambda a: abs(np.where(a > 0, a, 1j)).sum(), "complex128"),
        (lambda a: abs(a.astype(complex)).sum() + a.sum(), "complex128"),
        (lambda a: (a * np.array([1, 2, 3, 4], object)).sum(), "object"),
    ],
    ids=["a factor", "where", "astype", "objects"],
)
def test_numbers_that_are_not_real_are_refused(function: Any, kind: str) -> None:
    """Slopes are those of real numbers: the gradient of abs had the wrong sign, or none."""
    with pytest.raises(
        TypeError, match=f"Variable: expected operations on real numbers .* a result of {kind}"
    ):
        ost.vjp(function, A)


def test_masked_arrays() -> None:
    with pytest.raises(ValueError, match="args: expected an array without masked elements"):
        ost.vjp(lambda a: (a * a).sum(), np.ma.masked_array(A, MASK))
    _, pullback = ost.vjp(lambda a: (a * a).sum(), np.ma.masked_array(A))
    d = pullback()
    assert type(d) is np.ndarray
    np.testing.assert_array_equal(d, 2 * A)


def test_constants_and_decisions() -> None:
    def function(a: Any) -> Any:
        assert a.shape == (3, 4)
        assert (a.ndim, a.size, a.dtype, len(a)) == (2, 12, np.float64, 3)
        on = a > 0
        assert isinstance(on, np.ndarray)
        if np.any(on):
            a = np.where(on, a, 0)
        assert np.argmax(a) == A.argmax()
        assert isinstance(np.zeros_like(a), np.ndarray)
        assert (a == a).all()
        return (a * np.floor(a) * np.sign(a)).sum() + ost.stop_gradient(a).sum()

    _, pullback = ost.vjp(function, A)
    positive = np.where(A > 0, A, 0)
    np.testing.assert_allclose(pullback(), (A > 0) * np.floor(positive) * np.sign(positive))
    assert ost.stop_gradient(A) is A


@pytest.mark.parametrize("how", ["pullback", "no pullback", "an error"])
def test_memory_goes_with_the_pass(how: str) -> None:
    """The collector of circles, which counts objects and not bytes, has nothing to do."""
    layer, kept = nn.GRU(4, 5, dtype=np.float64, rng=0), []

    def function(x: Any) -> Any:
        y = np.tanh(layer(x)[0] * layer.parameters()["bias_hh_l0"][:5])
        kept.append(weakref.ref(ost.stop_gradient(y)))
        return abs(y * 1j) if how == "an error" else y.sum()

    gc.disable()
    try:
        with contextlib.suppress(TypeError):
            _, pullback = ost.vjp(function, BATCH)
            if how == "pullback":
                pullback()
            del pullback
        assert [ref() is None for ref in kept] == [True]
    finally:
        gc.enable()


@pytest.mark.parametrize("run", [False, True], ids=["no pullback", "pullback"])
def test_memory_goes_with_the_pass_of_a_model(run: bool) -> None:
    kept: list[Any] = []

    class Own(nn.Model):
        def __init__(self) -> None:
            self.rnn = nn.GRU(4, 5, dtype=np.float64, rng=0)

        def __call__(self, x: Any) -> Any:
            y = np.tanh(self.rnn(x)[0])
            kept.append(weakref.ref(ost.stop_gradient(y)))
            return y

    model = Own()
    gc.disable()
    try:
        y, pullback = model.vjp(BATCH)
        if run:
            pullback(y)
        del y, pullback
        assert [ref() is None for ref in kept] == [True]
    finally:
        gc.enable()


def test_no_gradient_goes_through_a_state_that_is_stopped() -> None:
    layer, kept = nn.LSTM(4, 5, dtype=np.float64, rng=0), []

    def function(x: Any) -> Any:
        _, state = layer(x[:1])
        state = ost.stop_gradient(state)
        kept.append(ost.stop_gradient({"rows": [ost.Ragged(x[0], [0, 3])], "other": 1}))
        return layer(x[1:], state)[0].sum()

    _, pullback = ost.vjp(function, BATCH)
    dx = pullback()
    assert not dx[0].any()
    assert dx[1].any()
    assert kept[0]["other"] == 1
    np.testing.assert_array_equal(kept[0]["rows"][0].rows, BATCH[0])
    state = (A, A)
    assert ost.stop_gradient(state) is state


def test_no_gradient_goes_to_a_parameter_that_is_stopped() -> None:
    class Net(nn.Model):
        def __init__(self) -> None:
            self.own, self.listed = nn.Parameter(ROW.copy()), [nn.Parameter(ROW.copy())]
            self.trained = nn.Parameter(ROW.copy())

        def __call__(self, x: Any) -> Any:
            own, (listed,) = ost.stop_gradient(self.own), ost.stop_gradient(self.listed)
            return (x * own * listed * self.trained).sum()

    model = Net()
    _, pullback = model.vjp(A)
    pullback()
    assert {n: bool(g.any()) for n, g in model.grads.items()} == {
        "own": False,
        "listed.0": False,
        "trained": True,
    }


@pytest.mark.parametrize("function", [np.tanh, np.exp, lambda a: 1 / a, lambda a: a, np.sqrt])
def test_an_output_may_be_changed_before_the_pullback(function: Any) -> None:
    """Slopes read what it was."""
    _, pullback = ost.vjp(function, POSITIVE)
    want, x = pullback(A), POSITIVE.copy()
    y, pullback = ost.vjp(function, x)
    y -= 1
    np.testing.assert_array_equal(pullback(A), want)
    np.testing.assert_array_equal(x, POSITIVE)


def test_structures_of_arguments_and_outputs() -> None:
    rows = ost.Ragged(np.random.default_rng(0).standard_normal((5, 3)), [0, 2, 5])

    def function(x: Any, pair: Any, ids: Any, *, scale: float) -> Any:
        a, (b, _) = pair[0], pair[1]
        return {"y": x.like(np.tanh(x.rows)), "z": (a * b[ids], ids)}

    given = (rows, (np.ones(2), [np.arange(3.0), None]), np.array([2, 2]))
    out, pullback = ost.vjp(function, *given, scale=2.0)
    assert isinstance(out["y"], ost.Ragged)
    assert out["z"][0].tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match=r"d: expected a dict of 2, got tuple"):
        pullback((None, None))
    with pytest.raises(TypeError, match=r"d: expected a dict of 2, got one of 1"):
        pullback({"y": None})
    with pytest.raises(TypeError, match=r"d: expected 'z' in it, got \['y', 'other'\]"):
        pullback({"y": None, "other": None})
    with pytest.raises(
        ValueError, match=r"d\['z'\]\[0\]: expected shape \(2,\) of float64, got \(3,\)"
    ):
        pullback({"y": None, "z": (np.ones(3), None)})
    drows, (da, (db, none)), dids = pullback(
        {"y": rows.like(np.ones((5, 3))), "z": (np.ones(2), None)}
    )
    np.testing.assert_allclose(drows.rows, 1 - np.tanh(rows.rows) ** 2)
    assert da.tolist() == [2.0, 2.0]
    assert db.tolist() == [0.0, 0.0, 2.0]
    assert none is None
    assert dids is None
    with pytest.raises(RuntimeError, match="pullback: it has been used; call vjp again"):
        pullback(None)


def test_misuse_is_told() -> None:
    with pytest.raises(
        TypeError, match="vjp: expected an output that depends on parameters or inputs"
    ):
        ost.vjp(lambda a: np.ones(3), A)
    _, pullback = ost.vjp(lambda a: a * 2, A)
    with pytest.raises(
        TypeError, match="d: expected the gradient of the output, which is no single number"
    ):
        pullback()
    kept = []
    ost.vjp(lambda a: kept.append(a) or a * 2, A)
    with pytest.raises(
        RuntimeError, match="Variable: expected to be used within the vjp that made it"
    ):
        kept[0] * 2
    with pytest.raises(RuntimeError, match="vjp: expected no recording within another"):
        ost.vjp(lambda a: ost.vjp(np.tanh, A)[0] * a, A)
    assert ost.vjp(np.tanh, A)[0].shape == (3, 4)  # an error leaves no recording behind
    with pytest.raises(
        ValueError, match="memory_limit: expected a model with recurrent layers, got a call of none"
    ):
        ost.vjp(np.tanh, A, memory_limit="1MB")


def test_layers_within_any_function() -> None:
    """Layers are run by their vjp: outputs have its bits, and its gradients."""
    lstm = nn.LSTM(4, 5, num_layers=2, dtype=np.float64, rng=0)
    head = nn.Sequential(
        nn.Linear(5, 3, dtype=np.float64, rng=1), nn.Activation("tanh", dtype=np.float64)
    )
    x, state = (
        BATCH.copy(),
        tuple(np.random.default_rng(k).standard_normal((2, 3, 5)) for k in range(2)),
    )

    def function(x: Any, state: Any) -> Any:
        y, (h, c) = lstm(x, state, lengths=[2, 1, 0])
        z, _ = head(y * 2)
        return (z * z).sum() + (h[-1] * c[0]).mean()

    value, pullback = ost.vjp(function, x, state)
    assert value == function(x, state)
    dx, (dh, dc) = pullback()
    for array, found in ((x, dx), (state[0], dh), (state[1], dc)):
        np.testing.assert_allclose(
            found, numeric_gradient(lambda: function(x, state), array), atol=1e-8
        )
    for layer in (lstm, head):
        for name in layer.parameters():
            want = parameter_gradient(lambda: function(x, state), layer, name)
            np.testing.assert_allclose(layer.grads[name], want, atol=1e-8, err_msg=name)


def test_a_frozen_layer_lets_the_gradient_through() -> None:
    first, second = (nn.Linear(4, 4, dtype=np.float64, rng=k) for k in range(2))
    second.freeze()
    _, pullback = ost.vjp(lambda: (second(first(A)) ** 2).sum())
    assert pullback() == ()
    assert first.grads["weight"].any()
    assert not second.grads["weight"].any()
    first.freeze()
    _, pullback = ost.vjp(lambda: (second(first(A)) ** 2).sum())
    pullback()
    assert not first.grads["weight"].any()


def test_parameters_read_by_name_have_gradients() -> None:
    """Such as the weights of an embedding that are used once more, by hand."""
    embed = nn.Embedding(6, 4, dtype=np.float64, rng=0)
    ids = np.array([1, 5, 1])

    def function() -> Any:
        return (np.tanh(embed(ids)) @ embed.parameters()["weight"].T).sum()

    _, pullback = ost.vjp(function)
    pullback()
    want = parameter_gradient(function, embed, "weight")
    np.testing.assert_allclose(embed.grads["weight"], want, atol=1e-8)
    with pytest.raises(TypeError, match="flat: expected parameters by their names within vjp"):
        ost.vjp(lambda a: a * embed.flat.sum(), A)
    _, pullback = ost.vjp(function)
    with embed.write() as p:
        p["weight"][0, 0] += 1
    with pytest.raises(RuntimeError, match="the parameters have changed since the forward pass"):
        pullback()


@pytest.mark.parametrize("changed", [0, 1])
def test_a_layer_that_has_changed_is_found_before_anything_is_added(changed: int) -> None:
    layers = [nn.Linear(4, 4, dtype=np.float64, rng=k) for k in range(2)]
    _, pullback = ost.vjp(lambda a: (layers[0](layers[1](a)) ** 2).sum(), A)
    with layers[changed].write() as p:
        p["bias"][...] += 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the parameters have changed since the forward"):
            pullback()
    assert not any(layer.flat_grads.any() for layer in layers)


@pytest.mark.parametrize("name", ["MSE", "MAE", "Huber", "BinaryCrossEntropy", "CrossEntropy"])
def test_losses_within(name: str) -> None:
    loss = getattr(ost.losses, name)()
    y = np.random.default_rng(0).standard_normal((4, 2, 3))
    target = np.random.default_rng(1).random((4, 2, 3))
    target = target.argmax(-1) if name == "CrossEntropy" else target

    def function(y: Any) -> Any:
        value, dy = loss(y * y, target, [4, 2])
        assert isinstance(dy, np.ndarray)
        return 3 * value

    value, pullback = ost.vjp(function, y)
    assert value == pytest.approx(function(y))
    np.testing.assert_allclose(pullback(), numeric_gradient(lambda: function(y), y), atol=1e-7)
    _, pullback = ost.vjp(lambda y, t: loss(y * y, t, [4, 2])[0], y, target)
    dy, none = pullback()
    np.testing.assert_allclose(3 * dy, numeric_gradient(lambda: function(y), y), atol=1e-7)
    assert none is None  # a target is a constant
    if name != "CrossEntropy":
        with pytest.raises(
            TypeError, match=f"{name}: expected a gradient for y alone, got a Variable"
        ):
            ost.vjp(lambda t: loss(y, t * 2)[0], np.ones((4, 2, 3)))


def test_a_loss_of_the_users_own() -> None:
    class Cube(ost.losses.Loss):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:
            return float(((y - target) ** 3).sum()), 3 * (y - target) ** 2

    value, pullback = ost.vjp(lambda y: Cube()(y=y * 2, target=np.zeros((3, 4)))[0], A)
    assert value == pytest.approx((8 * A**3).sum())
    np.testing.assert_allclose(pullback(), 24 * A**2)


@pytest.mark.parametrize("kind", ["list", "Ragged"])
def test_a_loss_of_sequences_within(kind: str) -> None:
    """Beside another loss, without which a missing gradient would be an error."""
    gru, ctc = nn.GRU(3, 4, dtype=np.float64, rng=0), ost.losses.CTC()
    sequences = [np.random.default_rng(k).standard_normal((5 + k, 3)) for k in range(2)]
    labels = [np.array([1, 2]), np.array([3])]
    given = sequences if kind == "list" else ost.Ragged.join(sequences)

    def function(xs: Any) -> Any:
        ys, _ = gru(xs)
        value, dy = ctc(ys, labels)
        assert type(dy) is type(ys)
        first = xs[0] if kind == "list" else xs.rows
        return 2 * value + (first * first).sum()

    value, pullback = ost.vjp(function, given)
    assert value == pytest.approx(function(given), rel=1e-12)
    found = pullback()
    arrays, found = (given, found) if kind == "list" else ([given.rows], [found.rows])
    for a, dx in zip(arrays, found):
        np.testing.assert_allclose(dx, numeric_gradient(lambda: function(given), a), atol=1e-7)
    for name in gru.parameters():
        want = parameter_gradient(lambda: function(given), gru, name)
        np.testing.assert_allclose(gru.grads[name], want, atol=1e-7, err_msg=name)


def test_a_loss_without_a_gradient_for_all_of_its_sequences_is_refused() -> None:
    class First(ost.losses.Loss):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:
            return float(y[0].sum()), [np.ones_like(y[0]), None]

    with pytest.raises(
        TypeError, match="First: expected a gradient for every part of y, got 1 for 2"
    ):
        ost.vjp(lambda a: First()([a, 2 * a], None)[0], A)


def test_a_layer_that_ignores_its_own_call_is_refused() -> None:
    class Twice(nn.Linear):
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    layer = Twice(4, 2, dtype=np.float64, rng=0)
    assert np.array_equal(layer(A), 2 * nn.Linear.__call__(layer, A))
    with pytest.raises(TypeError, match="vjp: expected the __call__ of Linear, got that of Twice"):
        ost.vjp(layer, A)

    class Gone(nn.Layer):
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(TypeError, match="Gone does not define vjp"):
        ost.vjp(Gone(), A)


def test_gradients_elsewhere_are_refused() -> None:
    gru = nn.GRU(4, 5, dtype=np.float64, rng=0)
    with pytest.raises(
        TypeError, match="GRU: expected gradients for its inputs and its state alone"
    ):
        ost.vjp(lambda a: gru(BATCH, mask=a)[0], A)


def test_recordings_of_threads_are_apart() -> None:
    """One thread records while others call layers, and record calls of their own."""
    layer = nn.Linear(4, 3, dtype=np.float64, rng=0)
    want = layer(A)
    inside, done, wrong = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait(30)
        if not isinstance(layer(A), np.ndarray) or not np.array_equal(layer(A), want):
            wrong.append("a plain call was recorded")
        _, pullback = ost.vjp(lambda a: np.tanh(a).sum(), A)
        if not np.allclose(pullback(), 1 - np.tanh(A) ** 2):
            wrong.append("a gradient is wrong")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def function(a: Any) -> Any:
        y = layer(a)
        inside.set()
        assert done.wait(30)
        return (y * 2).sum()

    _, pullback = ost.vjp(function, A)
    thread.join()
    assert not wrong
    np.testing.assert_allclose(
        pullback(), np.broadcast_to(2 * layer.parameters()["weight"].sum(0), A.shape)
    )


def test_dropout_and_its_seed() -> None:
    drop, x = nn.Dropout(0.5, dtype=np.float64, rng=0), np.ones((50, 4))
    first, second = (ost.vjp(lambda a: drop(a) * 1, x, rng=3)[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert 0 < (first == 0).sum() < first.size
    assert np.array_equal(drop(x), x)


# -- on a device -----------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    native_for_tests()
    return fake_cupy.stand_in(monkeypatch)


# With constants of the CPU, which arrays of a device do not meet.
HOST_ONLY = {
    "matmul from the right",
    "repeat of all",
    "ravel",
    "flatten",
    "reshape",
    "transpose",
    "broadcast_to",
    "flip",
    "roll",
    "squeeze",
    "expand_dims",
    "all rows by a list of bools",
    "matmul with a list",
    "matmul of a list",
    "matmul of a tuple",
    "dot with a list",
    "outer with a list",
    "einsum with a list and dots",
    "concatenate of all",
    "concatenate with a list",
    "stack with a list",
    "vstack of numbers",
    "hstack of numbers",
    "concatenate",
    "stack",
    "where",
    "a mask",
    "softmax of some",
}


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in HOST_ONLY])
def test_operations_on_a_device(gpu: Any, name: str) -> None:
    function, arrays = OPERATIONS[name]
    y, pullback = ost.vjp(function, *arrays)
    want = pullback(np.ones_like(np.asarray(y)))
    y2, pullback = ost.vjp(function, *map(gpu.put, arrays))
    assert ost._device.of(y2) is gpu
    np.testing.assert_allclose(y2.get(), y, rtol=1e-12)
    found = pullback(gpu.put(np.ones_like(np.asarray(y))))
    for a, b in zip(found if len(arrays) > 1 else (found,), want if len(arrays) > 1 else (want,)):
        assert ost._device.of(a) is gpu
        np.testing.assert_allclose(a.get(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["times", "of", "matmul", "where"])
def test_constants_of_a_device(gpu: Any, name: str) -> None:
    function = {
        "times": lambda a, c: a * c,
        "of": lambda a, c: c - a,
        "matmul": lambda a, c: c @ a.T,
        "where": lambda a, c: np.where(c > 0, a, c),
    }[name]
    _, pullback = ost.vjp(lambda a: function(a, B.T[:3] if name == "matmul" else A[::-1]).sum(), A)
    there = gpu.put(np.ascontiguousarray(B.T[:3] if name == "matmul" else A[::-1]))
    _, pullback2 = ost.vjp(lambda a: function(a, there).sum(), gpu.put(A))
    np.testing.assert_allclose(pullback2().get(), pullback(), rtol=1e-12)


def test_a_loss_of_the_users_own_on_a_device(gpu: Any) -> None:
    """Its value is an array of the device, as NumPy's functions give there."""

    class Square(ost.losses.Loss):
        def __call__(self, y: Any, target: Any, lengths: Any = None) -> Any:
            d = y - target
            return (d * d).sum(), 2 * d

    value, pullback = ost.vjp(lambda y, t: Square()(y, t)[0], *map(gpu.put, (A, A[::-1])))
    assert float(value) == pytest.approx(((A - A[::-1]) ** 2).sum())
    np.testing.assert_allclose(pullback()[0].get(), 2 * (A - A[::-1]))


@pytest.mark.parametrize("wrong", [0, 1])
def test_gradients_of_another_device_change_nothing(gpu: Any, wrong: int) -> None:
    class Two(nn.Model):
        def __init__(self) -> None:
            self.one, self.other = (nn.Conv1d(4, 2, 1, rng=k) for k in range(2))

        def __call__(self, x: Any) -> Any:
            return self.one(x), self.other(x)

    model = Two().to("cuda")
    out, pullback = model.vjp(gpu.put(BATCH.astype(np.float32)))
    d = list(out)
    d[wrong] = d[wrong].get()
    with pytest.raises(
        TypeError, match=rf"dy\[{wrong}\]: expected an array on emulated, where the output is, got "
    ):
        pullback(tuple(d))
    assert not model.flat_grads.get().any()
    pullback(out)
    assert model.flat_grads.get().any()
    _, pullback = ost.vjp(lambda a: a * 2, A)
    with pytest.raises(TypeError, match="d: expected an array on cpu, where the output is, got "):
        pullback(gpu.put(A))
    assert pullback(np.ones_like(A)).tolist() == (2 * np.ones_like(A)).tolist()


def test_options_reach_every_recurrent_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the numbers are the same, and only the memory is not."""

    class Two(nn.Model):
        def __init__(self) -> None:
            self.first, self.second = nn.GRU(3, 4, rng=0), nn.GRU(4, 2, rng=1)

        def __call__(self, x: Any) -> Any:
            y, _ = self.first(x)
            return self.second(y * 2)[0]

    seen, vjp = [], nn.GRU.vjp

    def noting(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(options.get("memory_limit"))
        return vjp(self, *args, **options)

    monkeypatch.setattr(nn.GRU, "vjp", noting)
    Two().vjp(np.ones((5, 2, 3), np.float32), memory_limit=10**8)
    assert seen == [10**8, 10**8]
