"""Recurrent classifiers, regressors and forecasters of sktime, over those for scikit-learn.

Panels are sktime's: ``[N,C,T]``, data frames with an index of instances and times, and more.
This module imports sktime; nothing else of ostinato does.

>>> import pandas as pd
>>> from ostinato.interop.sktime import RecurrentForecaster
>>> y = pd.Series([0.0, 1.0, 2.0, 1.0] * 10)
>>> model = RecurrentForecaster("gru", hidden_size=8, epochs=100, random_state=0)
>>> model.fit(y, fh=[1, 2, 3]).predict().round(0).tolist()
[0.0, 1.0, 2.0]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

try:
    import pandas as pd
    from sktime.classification.base import BaseClassifier
    from sktime.datatypes import update_data
    from sktime.forecasting.base import BaseForecaster
    from sktime.regression.base import BaseRegressor
except ImportError as error:
    raise ImportError(
        "ostinato.interop.sktime: expected sktime 1.0 or later: pip install 'ostinato[sktime]' "
        f"({error})"
    ) from error

from .._annotations import readable
from ._series_options import SMALL, Classifier, Forecaster, Options, Regressor

__all__ = ["RecurrentClassifier", "RecurrentForecaster", "RecurrentRegressor"]

TAGS = {
    "X_inner_mtype": "df-list",
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "capability:random_state": True,
    "python_dependencies": "scikit-learn",
}


def _sequences(X: Any) -> Any:
    """Return ``[n,C]`` of each series."""
    return [frame.to_numpy(np.float64) for frame in X]


class RecurrentClassifier(Options, BaseClassifier):
    """Say which class a series belongs to, by a recurrent network.

    >>> import numpy as np
    >>> from ostinato.interop.sktime import RecurrentClassifier
    >>> X = np.random.default_rng(0).normal(size=(40, 1, 12))
    >>> y = np.where(X.sum((1, 2)) > 0, "high", "low")
    >>> model = RecurrentClassifier("gru", hidden_size=8, epochs=5, random_state=0).fit(X, y)
    >>> model.predict_proba(X).shape
    (40, 2)

    Args:
        cell: "lstm", "gru" or "rnn".
        hidden_size: units of a layer.
        num_layers: layers, one on the other.
        bidirectional: whether a second direction reads every sequence from its end.
        dropout: between layers.
        epochs: passes over the data.
        batch_size: sequences of an update.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: bound on the norm of the gradient, None for none.
        validation_fraction: the share of the sequences that is held out, and that says which epoch
            is kept; 0 for none.
        patience: epochs without a better figure on them after which the run ends; None: all run.
        random_state: a seed or a ``RandomState``, of the parameters and of the order of the data.

    Attributes:
        estimator_: the `ostinato.interop.sklearn.RecurrentClassifier` that was fitted.
    """

    _tags: ClassVar[dict[str, Any]] = {**TAGS, "capability:predict_proba": True}

    def _fit(self, X: Any, y: Any) -> RecurrentClassifier:
        self.estimator_ = self._made(Classifier).fit(_sequences(X), y)
        return self

    def _predict(self, X: Any) -> Any:
        return self.estimator_.predict(_sequences(X))

    def _predict_proba(self, X: Any) -> Any:
        return self.estimator_.predict_proba(_sequences(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> Any:
        """Return options with which the checks of sktime are quick.

        Args:
            parameter_set: a name, of which there is one.

        Returns:
            The options, twice: sktime asks for two sets.
        """
        return [dict(SMALL), {**SMALL, "cell": "gru", "num_layers": 2}]


class RecurrentRegressor(Options, BaseRegressor):
    """Say a number of a series, by a recurrent network.

    >>> import numpy as np
    >>> from ostinato.interop.sktime import RecurrentRegressor
    >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 1, 10))
    >>> y = X.sum((1, 2))
    >>> model = RecurrentRegressor("gru", epochs=20, random_state=0).fit(X, y)
    >>> bool(np.corrcoef(model.predict(X), y)[0, 1] > 0.9)
    True

    Args:
        cell: "lstm", "gru" or "rnn".
        hidden_size: units of a layer.
        num_layers: layers, one on the other.
        bidirectional: whether a second direction reads every sequence from its end.
        dropout: between layers.
        epochs: passes over the data.
        batch_size: sequences of an update.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: bound on the norm of the gradient, None for none.
        validation_fraction: the share of the sequences that is held out, and that says which epoch
            is kept; 0 for none.
        patience: epochs without a better figure on them after which the run ends; None: all run.
        random_state: a seed or a ``RandomState``, of the parameters and of the order of the data.

    Attributes:
        estimator_: the `ostinato.interop.sklearn.RecurrentRegressor` that was fitted.
    """

    _tags: ClassVar[dict[str, Any]] = TAGS

    def _fit(self, X: Any, y: Any) -> RecurrentRegressor:
        self.estimator_ = self._made(Regressor).fit(_sequences(X), y)
        return self

    def _predict(self, X: Any) -> Any:
        return self.estimator_.predict(_sequences(X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> Any:
        """Return options with which the checks of sktime are quick.

        Args:
            parameter_set: a name, of which there is one.

        Returns:
            The options, twice: sktime asks for two sets.
        """
        return [dict(SMALL), {**SMALL, "cell": "gru", "num_layers": 2}]


class RecurrentForecaster(Options, BaseForecaster):
    """Say how series go on, by a recurrent network that gives all steps of a forecast at once.

    The horizon of `fit` says how many steps it learns to give. Series of several columns are
    forecast together.

    >>> import pandas as pd
    >>> from ostinato.interop.sktime import RecurrentForecaster
    >>> y = pd.Series([0.0, 1.0, 2.0, 1.0] * 10)
    >>> model = RecurrentForecaster("gru", hidden_size=8, epochs=100, random_state=0)
    >>> model.fit(y, fh=[1, 2, 3]).predict().round(0).tolist()
    [0.0, 1.0, 2.0]

    Args:
        cell: "lstm", "gru" or "rnn".
        hidden_size: units of a layer.
        num_layers: layers, one on the other.
        bidirectional: whether a second direction reads every sequence from its end.
        dropout: between layers.
        epochs: passes over the data.
        batch_size: sequences of an update.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: bound on the norm of the gradient, None for none.
        validation_fraction: the share of the sequences that is held out, and that says which epoch
            is kept; 0 for none.
        patience: epochs without a better figure on them after which the run ends; None: all run.
        random_state: a seed or a ``RandomState``, of the parameters and of the order of the data.

    Attributes:
        estimator_: the `ostinato.interop.sklearn.RecurrentForecaster` that was fitted.
    """

    _tags: ClassVar[dict[str, Any]] = {
        "y_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:insample": False,
        "capability:update": True,
        "requires-fh-in-fit": True,
        "capability:random_state": True,
        "python_dependencies": "scikit-learn",
    }

    def _fit(self, y: Any, X: Any, fh: Any) -> RecurrentForecaster:
        steps = self._steps(fh)
        made = self._made(Forecaster, horizon=int(steps.max()))
        self.estimator_ = made.fit([y.to_numpy(np.float64)])
        self._read = y  # sktime keeps it by itself only where its configuration says so
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> RecurrentForecaster:
        read = update_data(self._read, y)
        if update_params:
            return self._fit(read, X, self._fh)
        self._read = read
        return self

    def _predict(self, fh: Any, X: Any) -> Any:
        steps = self._steps(fh)
        y = self.estimator_.predict([self._read.to_numpy(np.float64)])[0]
        rows = y.reshape(self.estimator_.horizon_, -1)[steps - 1]
        index = fh.to_absolute_index(self.cutoff)
        return pd.DataFrame(rows, index=index, columns=self._read.columns)

    def _steps(self, fh: Any) -> Any:
        """Return how many steps ahead each step of a forecast is."""
        return fh.to_relative(self.cutoff).to_numpy().astype(int)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> Any:
        """Return options with which the checks of sktime are quick.

        Args:
            parameter_set: a name, of which there is one.

        Returns:
            The options, twice: sktime asks for two sets.
        """
        return [dict(SMALL), {**SMALL, "cell": "gru", "num_layers": 2}]


readable(globals())
