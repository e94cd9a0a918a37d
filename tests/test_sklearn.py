"""The estimators for scikit-learn: its own checks, forms of sequences, pipelines and searches."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="pip install 'ostinato[sklearn]'")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import ostinato as ost
from ostinato.interop.sklearn import RecurrentClassifier, RecurrentForecaster, RecurrentRegressor


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    "estimator",
    [
        RecurrentClassifier(epochs=25, random_state=0),
        RecurrentRegressor(epochs=25, random_state=0),
        RecurrentForecaster(epochs=3, random_state=0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_its_own_checks(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    wrong = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert wrong == []
    assert sum(r["status"] == "passed" for r in results) > 35


def labelled(n: int = 60) -> tuple[list[Any], Any]:
    """Sequences of different lengths that rise or fall, with their classes."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, n)
    slopes = np.where(y, 0.3, -0.3)
    x = [s * np.arange(rng.integers(4, 20)) + rng.normal(size=()) for s in slopes]
    return x, np.array(["falls", "rises"])[y]


def test_all_forms_of_sequences() -> None:
    x, y = labelled()
    model = RecurrentClassifier("gru", hidden_size=8, epochs=15, random_state=0)
    columns = [a[:, None] for a in x]
    for form in (x, columns, ost.Ragged.join([a.astype(np.float32) for a in columns])):
        fitted = clone(model).fit(form, y)
        assert fitted.score(form, y) > 0.9
        assert np.allclose(fitted.predict_proba(x), fitted.predict_proba(form), atol=1e-5)
    assert model.fit(x, y).n_features_in_ == 1
    cut = np.stack([a[:4] for a in x])
    flat, deep = (clone(model).fit(form, y) for form in (cut, cut[:, :, None]))
    assert np.array_equal(flat.predict_proba(cut), deep.predict_proba(cut[:, :, None]))
    assert (flat.n_features_in_, deep.n_features_in_) == (4, 1)
    both = clone(model).fit(cut.tolist(), y.tolist())  # lists of numbers are an array
    assert np.array_equal(both.predict_proba(cut), flat.predict_proba(cut))
    again: Any = pickle.loads(pickle.dumps(flat))
    assert np.array_equal(again.predict_proba(cut), flat.predict_proba(cut))


def test_a_seed_and_what_is_held_out() -> None:
    x, y = normal(50, 9), normal(50, seed=1)
    one, same, other = (
        RecurrentRegressor(epochs=3, random_state=k).fit(x, y).predict(x) for k in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    held = RecurrentRegressor(
        epochs=40, validation_fraction=0.2, patience=3, learning_rate=0.05, random_state=0
    ).fit(x, y)  # noise: there is nothing to learn
    assert len(held.history_.column("valid_loss")) < 40
    with pytest.raises(ValueError, match=r"validation_fraction: expected 0 to below 1, got 1"):
        RecurrentRegressor(validation_fraction=1).fit(x, y)


def test_several_numbers_and_their_scale() -> None:
    x = normal(120, 6, 2)
    y = np.stack([1e4 * x[:, :, 0].sum(1) + 5e5, x[:, -1, 1]], 1)
    model = RecurrentRegressor("gru", epochs=60, random_state=0).fit(x, y)
    assert model.predict(x).shape == (120, 2)
    assert model.score(x, y) > 0.9
    constant = RecurrentRegressor(epochs=2, random_state=0).fit(x, np.full(120, 7.0))
    assert np.abs(constant.predict(x) - 7).max() < 1


def test_passes_over_parts() -> None:
    x, y = normal(64, 8), np.sign(normal(64, seed=2)).astype(int)
    model = RecurrentClassifier(hidden_size=4, random_state=0)
    with pytest.raises(ValueError, match=r"classes: expected all classes at the first call"):
        model.partial_fit(x, y)
    for _ in range(2):
        model.partial_fit(x[:32], y[:32], classes=[-1, 1]).partial_fit(x[32:], y[32:])
    whole = clone(model).set_params(epochs=1).fit(x[:32], y[:32])
    assert len(model.history_.column("loss")) == 1
    assert not np.array_equal(whole.predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match=r"classes: expected those of the first call"):
        model.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"y: expected the classes \[-1, 1\], got"):
        model.partial_fit(x, y * 3)
    number = RecurrentRegressor(hidden_size=4, random_state=0).partial_fit(x, y)
    with pytest.raises(ValueError, match=r"y: expected as many numbers as at first"):
        number.partial_fit(x, np.stack([y, y], 1))


def test_a_pipeline_and_a_search() -> None:
    x = normal(60, 5)
    y = (x.sum(1) > 0).astype(int)
    steps = make_pipeline(
        StandardScaler(),
        FunctionTransformer(lambda a: a[:, :, None]),
        RecurrentClassifier("rnn", hidden_size=4, epochs=2, random_state=0),
    )
    search = GridSearchCV(steps, {"recurrentclassifier__hidden_size": [4, 8]}, cv=2).fit(x, y)
    assert search.best_params_["recurrentclassifier__hidden_size"] in (4, 8)
    texts, labels = labelled(30)
    model = RecurrentClassifier("gru", hidden_size=8, epochs=15, random_state=0)
    assert cross_val_score(model, texts, labels, cv=3).min() > 0.8


def test_a_forecast_goes_on() -> None:
    t = np.arange(60) / 3
    waves = [5 * np.sin(t[: 40 + k] + k) + 100 * k for k in range(10)]
    model = RecurrentForecaster("gru", horizon=4, epochs=120, random_state=0).fit(waves)
    assert model.score(waves) > 0.7
    ahead = model.predict(waves)
    assert ahead.shape == (10, 4)
    want = np.stack([5 * np.sin((len(w) + np.arange(4)) / 3 + k) for k, w in enumerate(waves)])
    assert np.abs(ahead - 100 * np.arange(10)[:, None] - want).mean() < 1.5
    pairs = np.stack([np.stack([w[:40], -w[:40]], 1) for w in waves])
    two = RecurrentForecaster(horizon=3, epochs=2, random_state=0).fit(pairs)
    assert two.predict(pairs).shape == (10, 3, 2)
    with pytest.raises(ValueError, match=r"more than horizon = 3 steps, got one of 2"):
        two.fit(pairs[:, :2])
    with pytest.raises(ValueError, match=r"bidirectional: expected False for a forecast"):
        RecurrentForecaster(bidirectional=True).fit(waves)


def test_sequences_of_one_length_after_others() -> None:
    x, y = labelled(40)
    model = RecurrentClassifier("gru", hidden_size=8, epochs=10, random_state=0).fit(x, y)
    whole = model.predict_proba(x)
    assert np.array_equal(model.predict_proba(x[:1]), whole[:1])
    assert np.array_equal(model.predict_proba([x[0].tolist()]), whole[:1])
    assert np.array_equal(model.predict_proba(x[0][None]), whole[:1])
    objects = np.empty(2, object)
    objects[:] = x[:2]
    assert np.array_equal(model.predict_proba(objects), whole[:2])
    mixed = RecurrentClassifier(epochs=1).fit([[1.5, 2.0], [3], [4, 5, 6]], [0, 1, 0])
    assert mixed.n_features_in_ == 1
    waves = np.sin(np.arange(30) / 3 + np.arange(5)[:, None])
    forecaster = RecurrentForecaster(epochs=2, horizon=2, random_state=0).fit(waves)
    assert forecaster.predict(list(waves[:, :20])).shape == (5, 2)
    assert forecaster.set_params(horizon=3).predict(waves).shape == (5, 2)
    assert forecaster.score(np.ones((3, 30))) in (0.0, 1.0)


def test_an_offset_does_not_lose_the_data() -> None:
    x = normal(80, 6)
    y = (x.sum(1) > 0).astype(int)
    model = RecurrentClassifier("gru", epochs=30, random_state=0)
    assert clone(model).fit(x + 1e9, y).score(x + 1e9, y) > 0.9
    with pytest.raises(ValueError, match=r"validation_fraction: expected a share that holds out"):
        RecurrentClassifier(validation_fraction=0.001).fit(x, y)


def test_what_is_refused() -> None:
    x, y = labelled()
    model = RecurrentClassifier(epochs=1)
    for given, message in (
        ([*x[:-1], np.zeros(0)], "at least one step, got an empty one"),
        (np.zeros((60, 0, 2)), "at least one step, got none"),
        ([*x[:-1], np.array([1.0, np.nan])], "contains NaN"),
        (x[:-1], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(given, y)
    model.fit(x, y)
    with pytest.raises(ValueError, match=r"X: expected 1 numbers a step, got 2"):
        model.predict(np.zeros((3, 4, 2)))
    wide = RecurrentClassifier(epochs=1).fit([np.stack([a, a], 1) for a in x], y)
    with pytest.raises(ValueError, match=r"X: expected 2 numbers a step, got 1|expecting 2"):
        wide.predict(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"cell: expected one of"):
        RecurrentClassifier("transformer").fit(x, y)


def test_a_channel_that_does_not_vary() -> None:
    x = normal(40, 6)
    y = x.sum(1)
    two = np.stack([x, np.full_like(x, 0.1)], -1)  # 0.1 is not its own mean, to the last bit
    model = RecurrentRegressor("gru", hidden_size=4, epochs=2, random_state=0).fit(two, y)
    assert model.scale_[1] == 1
    other = two.copy()
    other[..., 1] = 0.1000001
    assert np.abs(model.predict(two) - model.predict(other)).max() < 1e-5
    assert RecurrentRegressor(epochs=1).fit(two, np.full(40, 0.1)).target_scale_[0] == 1
    forecaster = RecurrentForecaster(hidden_size=4, epochs=1, random_state=0).fit(x)
    flat = [np.full(n, 0.1) for n in (6, 6)]
    assert np.ptp(forecaster.predict([*flat, np.zeros(6)]) - np.array([[0.1], [0.1], [0]])) < 1e-5


@pytest.mark.parametrize("factor", [2.0**600, 2.0**-600])
def test_numbers_whose_squares_float64_does_not_hold(factor: float) -> None:
    x = normal(20, 5)
    y = x.sum(1)
    model = RecurrentRegressor(hidden_size=4, epochs=2, random_state=0)
    want = clone(model).fit(x, y).predict(x)
    assert np.array_equal(
        clone(model).fit(x * factor, y * factor).predict(x * factor), want * factor
    )
    with pytest.raises(ValueError, match=r"X: expected numbers that float32 holds once"):
        clone(model).fit(x, y).predict(x * 1e300)
    with pytest.raises(ValueError, match=r"y: expected numbers that float32 holds once"):
        clone(model).fit(x, y).partial_fit(x, y * 1e300)


ROWS = normal(20, 6)
NAMES = np.where(ROWS.sum(1) > 0, "high", "low")


@pytest.mark.parametrize(
    ("options", "x", "y"),
    [
        ({"epochs": 0}, ROWS, NAMES),
        ({"validation_fraction": 2.0}, ROWS, NAMES),
        ({"learning_rate": -1}, ROWS[:, :3], NAMES),
        ({"random_state": "x"}, ROWS[:, :3], NAMES),
        ({}, normal(20, 3, 2), ["low"] * 20),
        ({}, ROWS, NAMES[:5]),
    ],
)
def test_a_fit_that_raises_changes_nothing(options: Any, x: Any, y: Any) -> None:
    good = {"hidden_size": 4, "epochs": 2, "random_state": 0}
    model = RecurrentClassifier(**good).fit(ROWS, NAMES)
    before, want = set(vars(model)), model.predict_proba(ROWS)
    with pytest.raises(ValueError):
        model.set_params(**options).fit(x, y)
    assert set(vars(model)) == before
    assert np.array_equal(model.set_params(**good).predict_proba(ROWS), want)
    fresh = RecurrentClassifier(**{**good, **options})
    with pytest.raises(ValueError):
        fresh.fit(x, y)
    with pytest.raises(NotFittedError):
        fresh.predict(ROWS)


def test_a_first_part_that_is_refused_and_a_horizon() -> None:
    model = RecurrentClassifier(hidden_size=4, random_state=0)
    with pytest.raises(ValueError, match=r"y: expected the classes \['high', 'low'\], got 'x'"):
        model.partial_fit(ROWS * 100, ["x"] * 20, classes=["high", "low"])
    assert not hasattr(model, "scale_")
    model.partial_fit(ROWS, NAMES, classes=["high", "low"])
    assert model.scale_[0] < 2
    forecaster = RecurrentForecaster(hidden_size=4, epochs=1, random_state=0).fit(ROWS)
    score = forecaster.score(ROWS)
    with pytest.raises(ValueError, match=r"learning_rate: expected"):
        forecaster.set_params(horizon=3, learning_rate=-1).fit(ROWS)
    assert forecaster.score(ROWS) == score


def test_series_and_frames_of_sequences() -> None:
    pd = pytest.importorskip("pandas")
    x, y = labelled(20)
    model = RecurrentClassifier(hidden_size=4, epochs=1, random_state=0)
    want = clone(model).fit(x, y).predict_proba(x)
    forms: list[Any] = [[pd.Series(a) for a in x], pd.DataFrame({"s": x}), pd.Series(x)]
    forms.append([pd.DataFrame({"v": a}) for a in x])
    try:
        import polars
    except ImportError:
        pass
    else:
        column = polars.Series("s", [a.tolist() for a in x])
        forms += [column, column.to_frame(), [polars.Series(a) for a in x]]
    for form in forms:
        assert np.array_equal(clone(model).fit(form, y).predict_proba(form), want)
    with pytest.raises(ValueError, match=r"X: expected one column of sequences, got 2 columns"):
        model.fit(pd.DataFrame({"s": x, "t": x}), y)
    named = pd.DataFrame(ROWS, columns=list("abcdef"))
    refitted = clone(model).fit(named, NAMES)
    assert list(refitted.feature_names_in_) == list("abcdef")
    assert not hasattr(refitted.fit(ROWS[:, :, None], NAMES), "feature_names_in_")


def test_lists_of_any_length_after_arrays() -> None:
    model = RecurrentClassifier(hidden_size=4, epochs=1, random_state=0).fit(ROWS, NAMES)
    lists = [[1.0, 2, 3], [3, 4, 5]]
    want = model.predict_proba([*map(np.array, lists), np.ones(4)])
    assert np.array_equal(model.predict_proba(lists), want[:2])
    assert np.array_equal(model.predict_proba(lists[:1]), want[:1])
    with pytest.raises(ValueError, match=r"X has 3 features, but RecurrentClassifier is expecting"):
        model.predict(np.array(lists))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": "x"}, "patience: expected a whole number, got 'x'"),
        ({"patience": 0}, "patience: expected a whole number of at least 1, got 0"),
        ({"bidirectional": "no"}, "bidirectional: expected True or False, got 'no'"),
        ({"learning_rate": "x"}, "learning_rate: expected a finite number"),
    ],
)
def test_options_are_refused_by_their_names(options: Any, message: str) -> None:
    for kind in (RecurrentClassifier, RecurrentRegressor, RecurrentForecaster):
        with pytest.raises((TypeError, ValueError), match=message):
            kind(epochs=1, **options).fit(ROWS, ROWS[:, 0] > 0)


def test_a_schedule_is_a_rate() -> None:
    rate = ost.optim.Cosine(0.01, steps=4)
    model = RecurrentRegressor(epochs=1, learning_rate=rate).fit(ROWS, ROWS[:, 0])
    assert model.predict(ROWS).shape == (20,)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([a[:n] + 1j for a, n in zip(ROWS, [3, 4] * 10)], r"X\[0\]: expected real numbers"),
        ([["a", "b"]] * 19 + [["c"]], r"X\[0\]: expected numbers, got list"),
        ([[1.0, [2.0]]] * 20, r"X: expected sequences \[n\] or \[n,I\] of numbers"),
        (np.ones((20, 2, 2, 2)), r"X: expected shape \(N, T\) or \(N, T, I\), got \(20, 2, 2"),
        (np.ones((20, 2, 0)), "X: expected at least one number a step"),
        ({"a": 1}, "X: expected an array, a list of sequences or a Ragged, got dict"),
        ([], "X: expected at least one sequence, got none"),
    ],
)
def test_sequences_that_are_none(x: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RecurrentClassifier(epochs=1).fit(x, NAMES)


def test_classes_and_numbers_that_are_missing() -> None:
    model = RecurrentClassifier(epochs=1)
    for y in ([*NAMES[:19], None], np.array([*NAMES[:19], np.nan], object)):
        with pytest.raises(ValueError, match=r"y: expected classes, got (None|nan) at position 19"):
            model.fit(ROWS, y)
    with pytest.raises(TypeError, match=r"classes: expected classes of one type, got int, str"):
        model.partial_fit(ROWS, NAMES, classes=np.array([1, "a"], object))
    for classes, message in (
        ([True, None], "classes: expected classes, got None at position 1"),
        ([0.0, np.nan], "classes: expected classes, got NaN"),
        ("ab", "classes: expected at least two classes, got one class: 'ab'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(ROWS, ROWS[:, 0] > 0, classes=classes)
    with pytest.raises(ValueError, match=r"y: expected shape \(N,\) or \(N, O\), got \(20, 2, 3"):
        RecurrentRegressor(epochs=1).fit(ROWS, ROWS.reshape(20, 2, 3))
