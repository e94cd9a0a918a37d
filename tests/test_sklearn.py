"""The estimators for scikit-learn: its own checks, forms of sequences, pipelines and searches."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="pip install 'ostinato[sklearn]'")
from sklearn.base import clone
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
