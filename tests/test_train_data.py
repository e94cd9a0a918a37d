"""What the Trainer takes as data: one layout, every kind of array, seeds, outputs.

What is wrong is named with its fix.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from ostinato import data, losses, nn, optim
from ostinato.tasks._application import check_options
from ostinato.tasks._forecast_options import ForecastOptions
from ostinato.tasks._tagger import TaggerOptions
from ostinato.train import Diverged


def quiet(trainer: Any, *args: Any, **options: Any) -> Any:
    return trainer.fit(*args, progress=False, **options)


def fresh(batch_first: bool = True, size: int = 2, **options: Any) -> ost.Trainer:
    model = nn.Sequential(nn.GRU(size, 4, batch_first=batch_first, rng=0), nn.Linear(4, 1, rng=1))
    return ost.Trainer(model, losses.MSE(), optim.Adam(0.01), **options)


def sequences(n: int = 8, steps: int = 6) -> Any:
    x = np.random.default_rng(0).standard_normal((n, steps, 2)).astype(np.float32)
    return x, x[..., :1].cumsum(1)


def fitted(*given: Any, trainer: Any = None, **options: Any) -> Any:
    trainer = trainer or fresh()
    quiet(trainer, *given, **options)
    return trainer.model.flat.copy()


@pytest.mark.parametrize("batches", [False, True])
def test_rows_in_any_order_of_memory(batches: bool) -> None:
    x, target = (a.reshape(-1, a.shape[-1]) for a in sequences())
    cuts = np.arange(0, 49, 6)

    def trained(x: Any, target: Any) -> Any:
        given = ost.Ragged(x, cuts), target
        return fitted([given] if batches else given)

    expected = trained(x, target)
    assert np.array_equal(trained(np.asfortranarray(x), np.asfortranarray(target)), expected)
    assert np.array_equal(trained(x[:, ::-1].copy()[:, ::-1], target), expected)


# -- one layout ------------------------------------------------------------------------------------


def test_whole_arrays_and_the_model_read_the_same() -> None:
    x, target = sequences(6, 6)  # equal sizes: nothing but the layout tells them apart
    trainer = fresh()
    quiet(trainer, (x, target))
    assert np.array_equal(trainer.predict(x), trainer.model(x)[0])
    for call in (
        lambda t: quiet(t, (x, target)),
        lambda t: t.evaluate((x, target)),
        lambda t: t.predict(x),
    ):
        with pytest.raises(
            ValueError,
            match=r"with batch_first=True for whole arrays .* or give batches \[T, B, ...\]",
        ):
            call(fresh(batch_first=False))
    loader = data.ArrayLoader(x, target, time_major=True)
    np.testing.assert_allclose(
        fitted(loader, trainer=fresh(False)), fitted((x, target)), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(
        ValueError, match=r"train: expected batches \[B, T, ...\], .* give it time_major=False"
    ):
        fitted(loader)
    with pytest.raises(
        ValueError, match=r"train: expected batches \[T, B, ...\], .* give it time_major=True"
    ):
        fitted(data.ArrayLoader(x, target, time_major=False), trainer=fresh(False))


def test_a_dataloader_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x, target = sequences(8, 6)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(target)), batch_size=4
    )
    want = fitted([(x[:4], target[:4]), (x[4:], target[4:])])
    assert np.array_equal(fitted(loader), want)
    with pytest.raises(
        ValueError, match=r"train: expected batches .* from a loader of batch_size 4"
    ):
        fitted(loader, trainer=fresh(False))
    ids = torch.arange(24).reshape(4, 6) % 5
    model = nn.Sequential(nn.Embedding(5, 2, rng=0), nn.GRU(2, 5, batch_first=True, rng=0))
    assert quiet(ost.Trainer(model, losses.CrossEntropy()), [(ids, ids)]).rows
    with pytest.raises(TypeError, match=r"data: expected .* got TensorDataset"):
        fitted(torch.utils.data.TensorDataset(torch.tensor(x)))


def test_streams_in_the_layout_of_the_model() -> None:
    text = np.random.default_rng(0).integers(0, 5, 200)
    ends = []
    for first in (False, True):
        model = nn.Sequential(nn.Embedding(5, 3, rng=0), nn.GRU(3, 5, batch_first=first, rng=0))
        trainer = ost.Trainer(model, losses.CrossEntropy(), optim.SGD(0.1))
        quiet(trainer, data.StreamLoader(text, 4, 7, time_major=not first), epochs=2)
        ends.append(model.flat.copy())
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-7)


def test_a_model_without_time() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    trainer = ost.Trainer(nn.Linear(3, 1, rng=0), losses.MSE(), optim.Adam(0.05))
    history = quiet(trainer, (x, x.sum(1, keepdims=True)), epochs=60)
    assert history.rows[-1]["loss"] < 0.01
    assert trainer.predict(x).shape == (50, 1)


# -- kinds of arrays -------------------------------------------------------------------------------


def test_every_kind_of_array_gives_the_same() -> None:
    torch, pandas, polars = (pytest.importorskip(n) for n in ("torch", "pandas", "polars"))
    x, target = sequences()
    last = {"outputs": "last"}
    want, ends = fitted((x, target)), fitted((x, target[:, -1]), trainer=fresh(**last))
    assert np.array_equal(fitted(x, target), want)
    assert np.array_equal(fitted([x, target]), want)
    assert np.array_equal(fitted((np.ma.array(x), target)), want)
    assert np.array_equal(fitted((torch.tensor(x, requires_grad=True), torch.tensor(target))), want)
    assert np.array_equal(fitted((np.asfortranarray(x), target)), want)
    for frame in (pandas.DataFrame(target[:, -1]), polars.DataFrame(target[:, -1])):
        assert np.array_equal(fitted((x, frame), trainer=fresh(**last)), ends)
    with pytest.warns(UserWarning, match="x: converted once from float64 to float32"):
        assert np.array_equal(fitted((x.tolist(), target.tolist())), want)
    with pytest.warns(UserWarning, match="x: converted once from int64 to float32"):
        fitted((x.astype(np.int64), target))
    trainer = fresh()
    assert np.array_equal(trainer.predict(torch.tensor(x)), trainer.predict(x))
    assert trainer.evaluate(torch.tensor(x), torch.tensor(target)) == trainer.evaluate(x, target)


def wrong() -> dict[str, Any]:
    x, target = sequences()
    masked = np.ma.array(x, mask=x > 1)
    infinite = x.copy()
    infinite[3, 2, 1] = np.inf
    return {
        "masked": (
            (masked, target),
            ValueError,
            r"x: expected an array without masked elements, got some; use x.filled\(0\)",
        ),
        "infinite": (
            (infinite, target),
            ValueError,
            r"x: expected finite numbers, got inf at \[3, 2, 1\]",
        ),
        "no inputs": (
            (x[..., 0], target),
            ValueError,
            r"x: expected shape \(N, T, I\), got \(8, 6\); .* use x\[..., None\]",
        ),
        "objects": (
            (x.astype(object), target),
            TypeError,
            r"x: expected numbers, got dtype object; use x.astype",
        ),
        "complex": (
            (x.astype(complex), target),
            TypeError,
            "x: expected numbers, got dtype complex128",
        ),
        "words": (
            ([["a"]], target),
            TypeError,
            "x: expected an array, or a list of arrays for sequences of different",
        ),
        "uneven": (
            ([[[1.0, 2]], [[1.0, 2], [3, 4]]], target),
            TypeError,
            "x: expected an array, or a list of arrays",
        ),
        "target": (
            (x, target[..., 0]),
            ValueError,
            r"target: expected the shape of y .*; use target\[..., None\]",
        ),
        "ends": (
            (x, target[:, -1]),
            ValueError,
            'target: expected a shape that begins with .* needs outputs="last"',
        ),
        "a target twice": (((x, target), target), TypeError, "target: expected None beside train"),
        "text": (
            ("abc",),
            TypeError,
            r"data: expected \(x, target\[, lengths\]\) or an iterable of such batches, got str",
        ),
        "x alone": ((x,), TypeError, r"data: expected \(x, target\[, lengths\]\) or an iterable"),
        "times": (
            ((x, target, {"mask": x[..., 0] > 0, "length": [1]}),),
            ValueError,
            "lengths: expected lengths or a dict",
        ),
        "mask": (
            ((x, target, {"mask": x[..., 0]}),),
            TypeError,
            r"mask: expected dtype bool.*mask.astype\(bool\)",
        ),
        "weights": (
            ((x, target, {"weights": [1.0]}),),
            ValueError,
            r"weights: expected shape \(N,\) or \(N, T\)",
        ),
    }


@pytest.mark.parametrize("case", wrong())
def test_what_is_wrong_is_named(case: str) -> None:
    given, error, words = wrong()[case]
    trainer = fresh()
    before = trainer.model.flat.copy()
    with pytest.raises(error, match=words):
        quiet(trainer, *given)
    assert np.array_equal(trainer.model.flat, before)


def test_an_embedding_names_its_dtype() -> None:
    trainer = ost.Trainer(
        nn.Sequential(nn.Embedding(5, 2), nn.GRU(2, 5, batch_first=True)), losses.CrossEntropy()
    )
    with pytest.raises(
        TypeError, match=r"x: expected an integer dtype for an Embedding, got float64; use x.astype"
    ):
        quiet(trainer, (np.zeros((3, 4)), np.zeros((3, 4), int)))


def test_padding_may_hold_anything() -> None:
    x, target = sequences()
    lengths = np.array([6, 1, 3, 6, 2, 5, 6, 4])
    spoilt = x.copy()
    spoilt[np.arange(6) >= lengths[:, None]] = np.inf
    assert np.array_equal(fitted((spoilt, target, lengths)), fitted((x, target, lengths)))
    trainer = fresh()
    assert np.array_equal(
        trainer.predict(spoilt, lengths=lengths), trainer.predict(x, lengths=lengths)
    )
    with pytest.raises(ValueError, match=r"x: expected finite numbers, got inf at \[1, 1, 0\]"):
        trainer.predict(spoilt)
    nan = np.where(np.isinf(spoilt), np.nan, spoilt)
    with pytest.raises(ValueError, match=r"x: expected finite numbers, got nan at \[1, 1, 0\]"):
        trainer.evaluate((nan, target))
    with pytest.raises(Diverged, match=r"x holds nan at \[1, 1, 0\]"):
        quiet(trainer, (nan, target), shuffle=False)


# -- masks, resets and weights ---------------------------------------------------------------------


def test_masks_and_resets_of_whole_arrays() -> None:
    x, target = sequences()
    r = np.random.default_rng(1)
    mask, resets = r.random((8, 6)) < 0.7, r.random((8, 6)) < 0.2
    mask[:, 0] = True
    times = {"mask": mask, "resets": resets, "masked": "zero"}
    want = fitted([(x, target, times)])
    assert np.array_equal(fitted((x, target, times), shuffle=False), want)
    assert not np.array_equal(fitted((x, target)), want)
    trainer = fresh()
    assert np.array_equal(trainer.predict(x, batch_size=3, **times), trainer.model(x, **times)[0])
    ragged = list(x)
    flags = {"mask": list(mask), "resets": list(resets), "masked": "zero"}
    np.testing.assert_allclose(
        trainer.predict(ragged, **flags)[3], trainer.model(x, **times)[0][3], rtol=1e-5
    )
    loader = data.ArrayLoader(x, target, times, time_major=True, batch_size=8, shuffle=False)
    np.testing.assert_allclose(fitted(loader, trainer=fresh(False)), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["arrays", "ragged"])
def test_weights_of_samples_and_steps(kind: str) -> None:
    """A weight of two counts as if it were there twice; of zero, as if it were not there."""
    x, target = sequences()
    w = np.array([2, 0, 1, 1, 0, 2, 1, 1])
    doubled = np.repeat(np.arange(8), w)
    trainer, other = (fresh() for _ in range(2))
    given: Any = (x, target) if kind == "arrays" else (list(x), list(target))
    pick = (lambda a: a[doubled]) if kind == "arrays" else (lambda a: [a[k] for k in doubled])
    history = quiet(trainer, (*given, {"weights": w}), epochs=3)
    want = quiet(other, tuple(map(pick, given)), epochs=3)
    np.testing.assert_allclose(trainer.model.flat, other.model.flat, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history.column("loss"), want.column("loss"), rtol=1e-5)
    steps = np.zeros((8, 6))
    steps[:, :2] = 1
    flat = steps if kind == "arrays" else steps.reshape(-1)
    lengths = np.full(8, 2)
    loss = trainer.evaluate((*given, {"weights": flat}))["loss"]
    assert loss == pytest.approx(trainer.evaluate((x, target, lengths))["loss"], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
@pytest.mark.parametrize("cuts", [[0, 2, 2, 3, 4, 7, 7], [0, 3, 4, 4, 4, 6, 6]], ids=str)
def test_weights_of_sequences_some_of_which_are_empty(batch_size: int, cuts: list[int]) -> None:
    """Also where a batch has as many rows as sequences: [2, 0] are two and two."""
    r = np.random.default_rng(0)
    x = ost.Ragged(r.standard_normal((cuts[-1], 2)).astype(np.float32), cuts)
    w, target = np.arange(1.0, 7), x.rows[:, :1].cumsum(0)
    options: Any = {"batch_size": batch_size, "shuffle": False}
    if len(x) != len(x.rows):  # otherwise they are weights of rows
        by_row = fitted((x, target, {"weights": np.repeat(w, x.lengths)}), **options)
        assert np.array_equal(fitted((x, target, {"weights": w}), **options), by_row)

    def pooled() -> ost.Trainer:
        rnn, pool = nn.GRU(2, 4, batch_first=True, rng=0), nn.Pool("max", batch_first=True)
        return ost.Trainer(nn.Sequential(rnn, pool, nn.Linear(4, 1, rng=1)), losses.MSE())

    last = w[:, None].astype(np.float32)
    padded = x.padded().swapaxes(0, 1), last, {"lengths": x.lengths, "weights": w}
    found = pooled().evaluate((x, last, {"weights": w}), batch_size=batch_size)["loss"]
    assert found == pytest.approx(pooled().evaluate(padded)["loss"])


def test_weights_are_checked() -> None:
    y = np.zeros((3, 2, 1))
    for bad, words in (
        (np.array([1.0, -1, 1]), "weights: expected finite numbers of at least 0"),
        (np.array([1.0, np.nan, 1]), "weights: expected finite numbers"),
        (np.ones(2), r"weights: expected shape \(3,\) or \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            losses.MSE()(y, y, weights=bad)
    assert losses.MSE()(y, y + 1, weights=np.zeros(3))[0] == 0


def loaders() -> dict[str, Any]:
    x, target = sequences()
    labels = [np.array([2, 3])] * 5
    ragged = ost.Ragged.join(list(x))
    return {
        "arrays": data.ArrayLoader(x, target, batch_size=3),
        "ragged": data.RaggedLoader(ragged, list(target), batch_size=3),
        "inputs": data.InputsLoader((x, x), target, batch_size=3),
        "pairs": data.PairLoader(labels, labels, start=0, end=1, batch_size=2),
        "stream": data.StreamLoader(np.arange(50), 2, 9),
    }


@pytest.mark.parametrize("kind", loaders())
def test_the_batches_of_a_loader_have_whole_numbers(kind: str) -> None:
    """They are looked at when the iterator is made."""
    loader = loaders()[kind]
    assert len(list(loader.batches(np.int64(2), np.int32(1)))) == 2
    assert list(loader.batches(10**30, 7)) == []
    least = "expected a whole number of at least 0, got -1"
    for given, error, words in (
        ((0, -1), ValueError, f"start: {least}"),
        ((-1,), ValueError, f"epoch: {least}"),
        ((0, 1.5), TypeError, r"start: expected a whole number, got 1\.5"),
        ((0.5,), TypeError, r"epoch: expected a whole number, got 0\.5"),
    ):
        with pytest.raises(error, match=words):
            loader.batches(*given)


BESIDE: dict[str, tuple[Any, Any, str, str]] = {
    "a number": (5, ValueError, r"lengths: expected shape .*, got \(\)", "arrays inputs"),
    "too few": ([1, 2], ValueError, r"lengths: expected shape .*, got \(2,\)", "arrays inputs"),
    "uneven": ([[1], [2, 3]], TypeError, "lengths: expected an array of numb", "arrays inputs"),
    "text": ("abc", TypeError, "lengths: expected numbers, got dtype <U3", "arrays inputs"),
    "below 0": (
        np.full(8, -1),
        ValueError,
        "lengths: expected .* 0.*, got -1 at . = 0",
        "arrays inputs",
    ),
    "fractions": (
        np.full(8, 0.5),
        TypeError,
        "lengths: expected an integer dtype, got float64",
        "arrays inputs",
    ),
    "mask": (
        {"mask": np.full((8, 6), 0.5)},
        TypeError,
        "mask: expected dtype bool",
        "arrays inputs",
    ),
    "flat mask": (
        {"mask": np.ones(8, bool)},
        ValueError,
        "mask: expected shape .* got .8,",
        "arrays inputs",
    ),
    "weights below 0": (
        {"weights": [1, -1, *[1] * 6]},
        ValueError,
        r"weights: expected finite numbers of at least 0, got -1 at \[1\]",
        "arrays ragged inputs",
    ),
    "weights that are none": (
        {"weights": np.full(8, np.nan)},
        ValueError,
        r"weights: expected finite numbers of at least 0, got nan at \[0\]",
        "arrays ragged inputs",
    ),
    "one weight": ({"weights": 5}, ValueError, "weights: expected", "arrays ragged inputs"),
    "masked": (
        {"masked": "bogus"},
        ValueError,
        "masked: expected one of 'repeat', 'zero', got 'bogus'",
        "arrays ragged",
    ),
    "names": (
        {1: 2, "a": 3},
        ValueError,
        r"lengths: expected lengths or a dict of .*, got \[1, 'a'\]",
        "arrays ragged inputs",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_goes_beside_the_inputs_is_checked_at_once(case: str) -> None:
    given, error, words, kinds = BESIDE[case]
    x, target = sequences()
    makers: dict[str, Any] = {
        "arrays": lambda: data.ArrayLoader(x, target, given),
        "ragged": lambda: data.RaggedLoader(ost.Ragged.join(list(x)), list(target), given),
        "inputs": lambda: data.InputsLoader((x, x), target, given),
    }
    for kind in kinds.split():
        with pytest.raises(error, match=words):
            makers[kind]()


def test_lengths_of_every_kind_go_beside_the_inputs() -> None:
    x, target = sequences()
    ends = [6, 0, 3, 1, 2, 5, 4, 6]
    for given in (ends, tuple(ends), np.array(ends, np.int32), {"lengths": np.array(ends)}):
        arrays = data.ArrayLoader(x, target, given, shuffle=False)
        inputs = data.InputsLoader((x, x), target, given, shuffle=False)
        assert arrays.times["lengths"].tolist() == ends
        assert next(iter(inputs))[2]["lengths"].tolist() == ends


@pytest.mark.parametrize(
    "make",
    [
        lambda a: ost.Ragged(a, [0, 1, 4]),
        lambda a: ost.Ragged.join([a, a]),
        lambda a: data.RaggedLoader(ost.Ragged(np.ones(4), [0, 1, 4]), a),
        lambda a: data.RaggedLoader(ost.Ragged(np.ones(4), [0, 1, 2, 3, 4]), a, outputs="last"),
        lambda a: data.StreamLoader(a, 1, 2),
    ],
)
def test_masked_elements_are_not_numbers(make: Any) -> None:
    make(np.ma.masked_array(np.arange(4), [False] * 4))
    with pytest.raises(ValueError, match=r": expected an array without masked elements, got some"):
        make(np.ma.masked_array(np.arange(4), [False, True, False, False]))


def test_a_stream_has_one_axis() -> None:
    with pytest.raises(ValueError, match=r"text: expected shape \(N,\), got \(3, 4\)"):
        data.StreamLoader(np.arange(12).reshape(3, 4), 2, 3)


# -- seeds -----------------------------------------------------------------------------------------


def dropping(seed: Any) -> ost.Trainer:
    gru = nn.GRU(2, 4, 2, dropout=0.5, batch_first=True, rng=0)
    gru._rng = np.random.default_rng(seed)
    model = nn.Sequential(gru, nn.Dropout(0.5, rng=seed), nn.Linear(4, 1, rng=0))
    return ost.Trainer(model, losses.MSE(), optim.SGD(0.1))


def test_the_seed_of_fit_is_that_of_all_that_draws() -> None:
    same = [fitted(sequences(), trainer=dropping(s), epochs=2, seed=7) for s in (0, 1, None)]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])
    assert not np.array_equal(same[0], fitted(sequences(), trainer=dropping(0), epochs=2, seed=8))
    assert not np.array_equal(
        fitted(sequences(), trainer=dropping(0), shuffle=False, seed=7),
        fitted(sequences(), trainer=dropping(0), shuffle=False, seed=8),
    )
    assert not hasattr(ost, "seed")


def test_a_seed_may_be_any_whole_number_from_0() -> None:
    large = 2**100
    runs = [fitted(sequences(), trainer=dropping(0), seed=s) for s in (large, large, large + 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    x = np.arange(8.0).reshape(8, 1, 1)
    loader = ost.data.ArrayLoader(x, x, batch_size=4, rng=large)
    assert sorted(a for b in loader for a in b[0].ravel()) == list(range(8))
    assert ForecastOptions(seed=large).seed == large
    check_options(TaggerOptions(seed=10**400))  # beyond all floats, too
    for make in (
        lambda seed: ost.data.ArrayLoader(x, x, batch_size=4, rng=seed),
        lambda seed: fitted(sequences(), trainer=dropping(0), seed=seed),
        lambda seed: ForecastOptions(seed=seed),
    ):
        for wrong, error in ((-1, ValueError), (True, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match=r"(seed|rng): expected a whole number"):
                make(wrong)


def test_fitting_leaves_the_generators_of_others_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    before, trainer = np.random.get_state()[1].tolist(), dropping(3)  # type: ignore[index]  # noqa: NPY002
    state = copy.deepcopy(trainer.model.layers[1]._rng.bit_generator.state)  # type: ignore[attr-defined]
    quiet(trainer, sequences())
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002
    assert trainer.model.layers[1]._rng.bit_generator.state == state  # type: ignore[attr-defined]


# -- outputs ---------------------------------------------------------------------------------------


def first_and_last(n: int = 300) -> Any:
    """The class is told by the first token alone; padding follows the end."""
    r = np.random.default_rng(0)
    x, lengths = r.integers(0, 6, (n, 12)), r.integers(3, 13, n)
    return x, x[:, 0].copy(), lengths


@pytest.mark.parametrize("outputs", ["last", "last_step"])
def test_final_states_of_both_directions(outputs: str) -> None:
    x, target, lengths = first_and_last()
    gru = nn.GRU(8, 16, bidirectional=True, batch_first=True, rng=0)
    with (
        gru.write() as p
    ):  # the direction from the start forgets at once: the other one must have seen the first token
        for name in ("weight_ih_l0", "bias_ih_l0"):
            p[name][...] = 0
    gru.freeze("*_l0")
    model = nn.Sequential(nn.Embedding(6, 8, rng=0), gru, nn.Linear(32, 6, rng=1))
    trainer = ost.Trainer(
        model, losses.CrossEntropy(), optim.Adam(0.02), outputs=outputs, metrics=["accuracy"]
    )
    quiet(trainer, (x, target, lengths), epochs=15)
    accuracy = trainer.evaluate((x, target, lengths))["accuracy"]
    assert accuracy == 1.0 if outputs == "last" else accuracy < 0.5
    y = trainer.predict(x, lengths=lengths)
    assert np.array_equal(y, model(x, lengths=lengths, outputs=outputs)[0])


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_a_pool_in_the_trainer(kind: str) -> None:
    x, target, lengths = first_and_last()
    gru = nn.GRU(8, 16, batch_first=True, rng=0)
    model = nn.Sequential(
        nn.Embedding(6, 8, rng=0), gru, nn.Pool(kind, batch_first=True), nn.Linear(16, 6, rng=1)
    )
    trainer = ost.Trainer(model, losses.CrossEntropy(), optim.Adam(0.02), metrics=["accuracy"])
    quiet(trainer, (x, target, lengths), epochs=15)
    assert trainer.evaluate((x, target, lengths))["accuracy"] > 0.95
    assert np.array_equal(trainer.predict(x, lengths=lengths), model(x, lengths=lengths)[0])
    cut = [a[:n] for a, n in zip(x, lengths)]
    np.testing.assert_allclose(
        trainer.predict(cut), trainer.predict(x, lengths=lengths), rtol=1e-5, atol=1e-6
    )
    assert trainer.evaluate((cut, target))["accuracy"] > 0.95
    with pytest.raises(
        ValueError, match='outputs: expected "all" for a model that reduces the axis of time'
    ):
        ost.Trainer(model, losses.CrossEntropy(), outputs="last")
    with pytest.raises(ValueError, match="tbptt: expected outputs"):
        ost.Trainer(model, losses.CrossEntropy(), tbptt=(2, 2))


def test_last_needs_layers_that_keep_steps_apart() -> None:
    class Own(nn.Layer):
        def __call__(self, y: Any) -> Any:
            return y

        def vjp(self, y: Any, *, rng: Any = None) -> Any:
            return y, self._pullback(lambda grads, dy, need_dx: dy)

    model = nn.Sequential(
        nn.GRU(2, 4, bidirectional=True, batch_first=True, rng=0), Own(), nn.Linear(8, 1, rng=0)
    )
    with pytest.raises(
        ValueError, match='outputs: expected "last_step", or a model whose layers behind'
    ):
        ost.Trainer(model, losses.MSE(), outputs="last")
    x, target = sequences()
    trainer = ost.Trainer(model, losses.MSE(), optim.SGD(0.1), outputs="last_step")
    quiet(trainer, (x, target[:, -1]))
    np.testing.assert_allclose(trainer.predict(x), model(x)[0][:, -1], rtol=1e-6)


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_trainer_goes_on_by_itself(way: Any) -> None:
    trainer = fresh(metrics=["mae"])
    quiet(trainer, sequences())
    twin = way(trainer)
    before = trainer.model.flat.copy()
    quiet(twin, sequences(), epochs=2)
    assert np.array_equal(trainer.model.flat, before)
    quiet(trainer, sequences(), epochs=2)
    assert np.array_equal(trainer.model.flat, twin.model.flat)
