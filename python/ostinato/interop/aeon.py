"""Recurrent classifiers and regressors of aeon, over those for scikit-learn.

Collections are aeon's: arrays ``[N,C,T]`` of channels, or lists of ``[C,n]`` of different lengths.
This module imports aeon; nothing else of ostinato does.

>>> import numpy as np
>>> from ostinato.interop.aeon import RecurrentClassifier
>>> X = np.random.default_rng(0).normal(size=(40, 1, 12))
>>> y = np.where(X.sum((1, 2)) > 0, "high", "low")
>>> model = RecurrentClassifier("gru", hidden_size=8, epochs=5, random_state=0).fit(X, y)
>>> model.predict_proba(X).shape
(40, 2)
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

try:
    from aeon.classification.base import BaseClassifier
    from aeon.regression.base import BaseRegressor
except ImportError as error:
    raise ImportError(
        f"ostinato.interop.aeon: expected aeon 1.0 or later: pip install 'ostinato[aeon]' ({error})"
    ) from error

from .._annotations import readable
from ._series_options import SMALL, Classifier, Options, Regressor

__all__ = ["RecurrentClassifier", "RecurrentRegressor"]

TAGS = {
    "X_inner_type": ["np-list", "numpy3D"],
    "capability:multivariate": True,
    "capability:unequal_length": True,
}


def _sequences(X: Any) -> Any:
    """Return ``[N,T,C]``, or a list of ``[n,C]``: steps before channels."""
    if isinstance(X, np.ndarray):
        return np.ascontiguousarray(X.swapaxes(1, 2))
    return [np.ascontiguousarray(np.asarray(x).T) for x in X]


class RecurrentClassifier(Options, BaseClassifier):
    """Say which class a series belongs to, by a recurrent network.

    >>> import numpy as np
    >>> from ostinato.interop.aeon import RecurrentClassifier
    >>> rising = [np.arange(n)[None] + 0.5 for n in (4, 7, 5, 9)]
    >>> X, y = rising + [-x for x in rising], [1] * 4 + [0] * 4
    >>> model = RecurrentClassifier("gru", hidden_size=8, epochs=30, random_state=0)
    >>> model.fit(X, np.array(y)).predict([np.arange(6.0)[None], -np.arange(3.0)[None]]).tolist()
    [1, 0]

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

    _tags: ClassVar[dict[str, Any]] = TAGS

    def _fit(self, X: Any, y: Any) -> RecurrentClassifier:
        self.estimator_ = self._made(Classifier).fit(_sequences(X), y)
        return self

    def _predict(self, X: Any) -> Any:
        return self.estimator_.predict(_sequences(X))

    def _predict_proba(self, X: Any) -> Any:
        return self.estimator_.predict_proba(_sequences(X))

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return dict(SMALL)


class RecurrentRegressor(Options, BaseRegressor):
    """Say a number of a series, by a recurrent network.

    >>> import numpy as np
    >>> from ostinato.interop.aeon import RecurrentRegressor
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
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return dict(SMALL)


readable(globals())
