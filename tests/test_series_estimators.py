"""Estimators of aeon and sktime: the checks of these libraries, and the numbers of ours."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

OPTIONS: dict[str, Any] = {"cell": "gru", "hidden_size": 8, "epochs": 5, "random_state": 0}


def aeon_of() -> Any:
    pytest.importorskip("aeon", reason="aeon is not installed", exc_type=ImportError)
    pytest.importorskip("numba", reason="numba, which aeon needs, is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ostinato.interop import aeon
    return aeon


def sktime_of() -> Any:
    pytest.importorskip("sktime", reason="sktime is not installed", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ostinato.interop import sktime
    return sktime


def collection(count: int = 30) -> tuple[Any, Any]:
    """``[N,C,T]`` of two channels, and which of two classes each is of."""
    X = np.random.default_rng(0).normal(size=(count, 2, 9))
    return X, np.where(X.sum((1, 2)) > 0, "high", "low")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["RecurrentClassifier", "RecurrentRegressor"])
def test_aeon_checks(name: str) -> None:
    module = aeon_of()
    testing = pytest.importorskip("aeon.testing.estimator_checking")
    found = testing.check_estimator(getattr(module, name), raise_exceptions=True, verbose=False)
    assert set(found.values()) == {"PASSED"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["RecurrentClassifier", "RecurrentRegressor", "RecurrentForecaster"]
)
def test_sktime_checks(name: str) -> None:
    module = sktime_of()
    checks = pytest.importorskip("sktime.utils.estimator_checks")
    found = checks.check_estimator(getattr(module, name), raise_exceptions=True, verbose=False)
    assert set(found.values()) == {"PASSED"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["aeon", "sktime"])
def test_predictions_are_those_for_scikit_learn(library: str) -> None:
    module = aeon_of() if library == "aeon" else sktime_of()
    from ostinato.interop import sklearn

    X, y = collection()
    theirs = module.RecurrentClassifier(**OPTIONS).fit(X, y)
    own = sklearn.RecurrentClassifier(**OPTIONS).fit(X.swapaxes(1, 2), y)
    want = own.predict_proba(X.swapaxes(1, 2))  # sums of rows are in another order there
    np.testing.assert_allclose(theirs.predict_proba(X), want, atol=1e-5)
    number = X.sum((1, 2))
    regressor = module.RecurrentRegressor(**OPTIONS).fit(X, number)
    other = sklearn.RecurrentRegressor(**OPTIONS).fit(X.swapaxes(1, 2), number)
    want = other.predict(X.swapaxes(1, 2))
    np.testing.assert_allclose(regressor.predict(X), want, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_series_of_different_lengths_in_aeon() -> None:
    module = aeon_of()
    X, y = collection()
    several = [x[:, : 4 + k % 5] for k, x in enumerate(X)]
    model = module.RecurrentClassifier(**OPTIONS).fit(several, y)
    assert model.predict(several).shape == y.shape


@pytest.mark.filterwarnings("ignore")
def test_forecasts_of_sktime() -> None:
    module = sktime_of()
    import pandas as pd

    from ostinato.interop import sklearn

    index = pd.period_range("2020-01", periods=40, freq="M")
    y = pd.DataFrame({"a": np.sin(np.arange(40)), "b": np.cos(np.arange(40))}, index)
    model = module.RecurrentForecaster(**OPTIONS).fit(y, fh=[2, 4])
    found = model.predict()
    own = sklearn.RecurrentForecaster(**OPTIONS, horizon=4).fit([y.to_numpy()])
    assert np.array_equal(found.to_numpy(), own.predict([y.to_numpy()])[0][[1, 3]])
    assert list(found.index) == [index[-1] + 2, index[-1] + 4]
    assert list(found.columns) == ["a", "b"]
    with pytest.raises(NotImplementedError, match="in-sample"):
        module.RecurrentForecaster(**OPTIONS).fit(y, fh=[0, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("refit", [True, False])
def test_a_forecaster_reads_on(kept: bool, refit: bool) -> None:
    """It keeps the series itself, which sktime does only where its configuration says so."""
    module = sktime_of()
    import pandas as pd

    from ostinato.interop import sklearn

    y = pd.DataFrame({"a": np.sin(np.arange(40)), "b": np.cos(np.arange(40))})
    model = module.RecurrentForecaster(**OPTIONS).set_config(remember_data=kept)
    found = model.fit(y[:35], fh=[1, 2]).update(y[35:], update_params=refit).predict()
    own = sklearn.RecurrentForecaster(**OPTIONS, horizon=2)
    own.fit([y.to_numpy() if refit else y[:35].to_numpy()])
    assert np.array_equal(found.to_numpy(), own.predict([y.to_numpy()])[0])
    assert list(found.index) == [40, 41]


@pytest.mark.parametrize("library", ["aeon", "sktime"])
def test_without_the_library_the_error_says_how_to_get_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.classification.base", None)
    monkeypatch.delitem(sys.modules, f"ostinato.interop.{library}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'ostinato\[{library}\]'"):
        importlib.import_module(f"ostinato.interop.{library}")
