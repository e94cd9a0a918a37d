"""Define the options that the estimators of aeon and sktime have, which are scikit-learn's here."""

from __future__ import annotations

from typing import Any

from .._annotations import readable
from . import sklearn


class Options:
    """Keep the options of `sklearn.RecurrentClassifier`, and make such an estimator of them."""

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        validation_fraction: float = 0.0,
        patience: int | None = 10,
        random_state: Any = None,
    ) -> None:
        self.cell, self.hidden_size, self.num_layers = cell, hidden_size, num_layers
        self.bidirectional, self.dropout = bidirectional, dropout
        self.epochs, self.batch_size = epochs, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.clip_norm = clip_norm
        self.validation_fraction, self.patience = validation_fraction, patience
        self.random_state = random_state
        super().__init__()

    def _made(self, kind: type[Any], **more: Any) -> Any:
        """Return an estimator for scikit-learn with these options."""
        own: Any = self
        return kind(**{**own.get_params(deep=False), **more})


SMALL = {"hidden_size": 4, "epochs": 2}  # what the checks of both libraries run with

Classifier = sklearn.RecurrentClassifier
Regressor = sklearn.RecurrentRegressor
Forecaster = sklearn.RecurrentForecaster

readable(globals())
