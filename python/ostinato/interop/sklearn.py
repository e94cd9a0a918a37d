"""Recurrent estimators for scikit-learn: pipelines, grid searches and cross-validation.

They take one number a step (``[N,T]``), several (``[N,T,I]``), or sequences of different lengths
(a list of ``[n]`` or ``[n,I]``, or a `Ragged`). This module imports scikit-learn; nothing else of
ostinato does.

>>> import numpy as np
>>> from ostinato.interop.sklearn import RecurrentClassifier
>>> rng = np.random.default_rng(0)
>>> X = rng.normal(size=(80, 12))
>>> y = np.where(X.cumsum(1).max(1) > 2, "high", "low")
>>> classifier = RecurrentClassifier("gru", hidden_size=8, epochs=5, random_state=0).fit(X, y)
>>> classifier.predict_proba(X).shape, classifier.classes_.tolist()
((80, 2), ['high', 'low'])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_array, check_consistent_length, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        "ostinato.interop.sklearn: expected scikit-learn 1.6 or later: "
        f"pip install 'ostinato[sklearn]' ({error})"
    ) from error

from .. import _check, losses, nn, optim
from .._annotations import readable
from .._ragged import Ragged
from ..train import Trainer

__all__ = ["RecurrentClassifier", "RecurrentForecaster", "RecurrentRegressor"]

Array = npt.NDArray[Any]
Sequences = Any  # [N,T,I], or a Ragged of [n,I]

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def _are_sequences(X: Any) -> bool:
    """Return whether X is a list of arrays, or of lists that make no array."""
    if not isinstance(X, (list, tuple)) or len(X) == 0:
        return False
    if any(isinstance(x, np.ndarray) and x.ndim in (1, 2) for x in X):
        return True
    return len({len(x) for x in X if isinstance(x, (list, tuple))}) > 1


def _moments(rows: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column; where nothing varies the latter is 1."""
    spread = rows.std(0, dtype=np.float64)
    return rows.mean(0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


class _Recurrent(BaseEstimator):
    """What the estimators share: their options, the check of X, and the run of the Trainer."""

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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # -- X -----------------------------------------------------------------------------------------

    def _sequences(self, X: Any, *, reset: bool) -> Sequences:
        """Return checked sequences as float64 ``[N,T,I]``, or a `Ragged` of ``[n,I]``."""
        if getattr(X, "ndim", 2) == 1 and str(getattr(X, "dtype", "")) == "object":
            X = list(X)  # an array or a Series of sequences
        if isinstance(X, Ragged) or _are_sequences(X):
            return self._ragged(X, reset)
        axes = np.ndim(X) if isinstance(X, (list, tuple)) else getattr(X, "ndim", 2)
        if reset:
            self.fixed_ = axes != 3  # [N,T]: T is a number of features, as elsewhere
        if axes == 3:
            x = check_array(X, dtype=np.float64, ensure_2d=False, allow_nd=True)
            if x.shape[1] == 0:
                raise ValueError("X: expected sequences of at least one step, got none")
            return self._with_width(x, reset)
        if reset or self.fixed_:
            x = validate_data(self, X, reset=reset, dtype=np.float64)[:, :, None]
        else:
            x = check_array(X, dtype=np.float64)[:, :, None]
        if reset:
            self.input_size_ = 1
            return x
        return self._with_width(x, False)

    def _ragged(self, X: Any, reset: bool) -> Ragged:
        """Return checked sequences of different lengths."""
        if not isinstance(X, Ragged):
            X = Ragged.join([np.asarray(x, np.float64) for x in X], "X")
        rows = np.asarray(X.rows)
        if X.lengths.min(initial=1) < 1:
            raise ValueError("X: expected sequences of at least one step, got an empty one")
        rows = check_array(rows[:, None] if rows.ndim == 1 else rows, dtype=np.float64)
        if reset:
            self.fixed_ = False
        return Ragged(self._with_width(rows, reset), X.offsets)

    def _with_width(self, x: Array, reset: bool) -> Array:
        """Return x, of which the numbers a step are those of fit."""
        if reset:
            self.input_size_ = self.n_features_in_ = x.shape[-1]
        elif self.input_size_ != x.shape[-1]:
            raise ValueError(f"X: expected {self.input_size_} numbers a step, got {x.shape[-1]}")
        return x

    def _scaled(self, x: Sequences, *, reset: bool) -> Sequences:
        """Return sequences whose numbers have mean 0 and variance 1, by those of fit."""
        rows = x.rows if isinstance(x, Ragged) else x.reshape(-1, x.shape[-1])
        if reset:
            self.mean_, self.scale_ = _moments(rows)
        rows = ((rows - self.mean_) / self.scale_).astype(np.float32)
        return Ragged(rows, x.offsets) if isinstance(x, Ragged) else rows.reshape(x.shape)

    # -- training ----------------------------------------------------------------------------------

    def _start(self, inputs: int, outputs: int, loss: losses.Loss, kind: str = "last") -> None:
        """Make the model and its Trainer."""
        layer = CELLS[_check.choice("cell", self.cell, tuple(CELLS))]
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        size = _check.positive("hidden_size", self.hidden_size)
        recurrent = layer(
            inputs,
            size,
            self.num_layers,
            bidirectional=bool(self.bidirectional),
            dropout=self.dropout,
            batch_first=True,
            rng=rng,
        )
        head = nn.Linear(size * (2 if self.bidirectional else 1), outputs, rng=rng)
        optimizer = optim.AdamW(self.learning_rate, weight_decay=self.weight_decay)
        self.model_ = nn.Sequential(recurrent, head)
        self.trainer_ = Trainer(
            self.model_, loss, optimizer, clip_norm=self.clip_norm, outputs=kind
        )
        self.seed_ = int(rng.integers(2**31))

    def _run(self, x: Sequences, target: Any, epochs: int) -> None:
        """Train for some epochs; a share of the sequences is held out where that is asked for."""
        share = _check.finite("validation_fraction", self.validation_fraction)
        if not 0 <= share < 1:
            raise ValueError(f"validation_fraction: expected 0 to below 1, got {share}")
        held = round(share * len(x)) if share else 0
        if share and not 0 < held < len(x):
            raise ValueError(
                f"validation_fraction: expected a share that holds out some of {len(x)} sequences, "
                f"got {share}"
            )
        options: dict[str, Any] = {}
        if held:
            order = np.random.default_rng(self.seed_).permutation(len(x))
            out, rest = order[:held], order[held:]
            options["validation"] = (x[out], target[out])
            options["patience"] = self.patience
            x, target = x[rest], target[rest]
        self.history_ = self.trainer_.fit(
            (x, target),
            epochs=_check.positive("epochs", epochs),
            batch_size=_check.positive("batch_size", self.batch_size),
            seed=self.seed_,
            progress=False,
            **options,
        )

    def _outputs(self, X: Any) -> Array:
        """Return what the model gives after the last step of each sequence."""
        check_is_fitted(self, "model_")
        x = self._scaled(self._sequences(X, reset=False), reset=False)
        y: Array = self.trainer_.predict(x, batch_size=self.batch_size)
        return y


class RecurrentClassifier(ClassifierMixin, _Recurrent):
    """Say which class a sequence belongs to.

    >>> import numpy as np
    >>> from ostinato.interop.sklearn import RecurrentClassifier
    >>> rising = [np.arange(n) + 0.5 for n in (4, 7, 5, 9)]
    >>> X, y = rising + [-x for x in rising], [1] * 4 + [0] * 4
    >>> model = RecurrentClassifier("gru", hidden_size=8, epochs=30, random_state=0).fit(X, y)
    >>> model.predict([np.arange(6.0), -np.arange(3.0)]).tolist()
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
        classes_: the classes, sorted.
        model_: the `nn.Sequential` that was trained.
        history_: the `train.History` of the last run.
    """

    def fit(self, X: Any, y: Any) -> RecurrentClassifier:
        """Train from the beginning.

        Args:
            X: N sequences: ``[N,T]``, ``[N,T,I]``, a list of ``[n]`` or ``[n,I]``, or a `Ragged`.
            y: ``[N]`` classes.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X or y of another shape, not finite, or of one class.
        """
        x, labels = self._labelled(X, y, reset=True)
        self._begin(np.unique(labels))
        self._run(self._scaled(x, reset=True), self._numbers(labels), self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> RecurrentClassifier:
        """Train one pass more over some sequences.

        Args:
            X: as for `fit`; mean and variance are those of the first call.
            y: ``[N]`` classes.
            classes: all classes, which the first call needs.

        Returns:
            The estimator itself.

        Raises:
            ValueError: no classes at the first call, or others than then.
        """
        first = not hasattr(self, "model_")
        x, labels = self._labelled(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("classes: expected all classes at the first call, got None")
            self._begin(np.unique(classes))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes: expected those of the first call, got {classes!r}")
        self._run(self._scaled(x, reset=first), self._numbers(labels), 1)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class.

        Args:
            X: as for `fit`.

        Returns:
            ``[N,C]`` in the order of ``classes_``.
        """
        out: Array = nn.softmax(self._outputs(X).astype(np.float64))
        return out

    def predict(self, X: Any) -> Array:
        """Return the likeliest class of each sequence.

        Args:
            X: as for `fit`.

        Returns:
            ``[N]`` of ``classes_``.
        """
        numbers = self._outputs(X).argmax(1)
        out: Array = self.classes_[numbers]
        return out

    def _labelled(self, X: Any, y: Any, *, reset: bool) -> tuple[Sequences, Array]:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        x = self._sequences(X, reset=reset)
        labels: Array = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        check_consistent_length(x, labels)
        return x, labels

    def _begin(self, classes: Array) -> None:
        if len(classes) < 2:
            raise ValueError(f"y: expected at least two classes, got one class: {classes[0]!r}")
        self.classes_ = classes
        self._start(self.input_size_, len(classes), losses.CrossEntropy())

    def _numbers(self, labels: Array) -> Array:
        """Return the place of each label among the classes."""
        place = np.searchsorted(self.classes_, labels)
        known = self.classes_[np.minimum(place, len(self.classes_) - 1)] == labels
        if not np.all(known):
            other = labels[np.flatnonzero(~known)[0]]
            raise ValueError(f"y: expected the classes {self.classes_.tolist()}, got {other!r}")
        return place.astype(np.int64)


class RecurrentRegressor(RegressorMixin, _Recurrent):
    """Say a number, or several, of a sequence.

    >>> import numpy as np
    >>> from ostinato.interop.sklearn import RecurrentRegressor
    >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 10))
    >>> model = RecurrentRegressor("gru", epochs=20, random_state=0).fit(X, X.sum(1))
    >>> bool(model.score(X, X.sum(1)) > 0.9)
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
        model_: the `nn.Sequential` that was trained.
        history_: the `train.History` of the last run.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> RecurrentRegressor:
        """Train from the beginning.

        Args:
            X: N sequences: ``[N,T]``, ``[N,T,I]``, a list of ``[n]`` or ``[n,I]``, or a `Ragged`.
            y: ``[N]`` or ``[N,O]`` numbers.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X or y of another shape, or not finite.
        """
        return self._fit(X, y, True, self.epochs)

    def partial_fit(self, X: Any, y: Any) -> RecurrentRegressor:
        """Train one pass more over some sequences.

        Args:
            X: as for `fit`; means and variances are those of the first call.
            y: as for `fit`.

        Returns:
            The estimator itself.
        """
        return self._fit(X, y, not hasattr(self, "model_"), 1)

    def _fit(self, X: Any, y: Any, reset: bool, epochs: int) -> RecurrentRegressor:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        x = self._sequences(X, reset=reset)
        target = check_array(y, ensure_2d=False, dtype=np.float64)
        check_consistent_length(x, target)
        rows = target.reshape(len(target), -1)
        if reset:
            self.target_mean_, self.target_scale_ = _moments(rows)
            self.target_axes_ = target.ndim
            self._start(self.input_size_, rows.shape[1], losses.MSE())
        elif (target.ndim, rows.shape[1]) != (self.target_axes_, len(self.target_mean_)):
            raise ValueError(f"y: expected as many numbers as at first, got shape {target.shape}")
        rows = ((rows - self.target_mean_) / self.target_scale_).astype(np.float32)
        self._run(self._scaled(x, reset=reset), rows, epochs)
        return self

    def predict(self, X: Any) -> Array:
        """Return the numbers of each sequence.

        Args:
            X: as for `fit`.

        Returns:
            ``[N]`` or ``[N,O]``, as y was.
        """
        y: Array = self._outputs(X) * self.target_scale_ + self.target_mean_
        return y[:, 0] if self.target_axes_ == 1 else y


class RecurrentForecaster(_Recurrent):
    """Say how sequences go on: the next ``horizon`` steps, all at once.

    Every step of every sequence is an example: from what has been read so far, the steps after it.
    A sequence is measured from its own mean, by its own standard deviation, and a forecast is the
    difference from the last step.

    >>> import numpy as np
    >>> from ostinato.interop.sklearn import RecurrentForecaster
    >>> t = np.arange(80) / 4
    >>> X = np.stack([np.sin(t + k) for k in range(12)])
    >>> model = RecurrentForecaster("gru", horizon=8, epochs=40, random_state=0).fit(X)
    >>> model.predict(X[:2]).shape
    (2, 8)
    >>> bool(model.score(X) > 0.5)
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
        horizon: steps of a forecast.

    Attributes:
        model_: the `nn.Sequential` that was trained.
        history_: the `train.History` of the last run.
    """

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
        horizon: int = 1,
    ) -> None:
        super().__init__(
            cell,
            hidden_size,
            num_layers,
            bidirectional,
            dropout,
            epochs,
            batch_size,
            learning_rate,
            weight_decay,
            clip_norm,
            validation_fraction,
            patience,
            random_state,
        )
        self.horizon = horizon

    def fit(self, X: Any, y: Any = None) -> RecurrentForecaster:
        """Train from the beginning.

        Args:
            X: N sequences: ``[N,T]``, ``[N,T,I]``, a list of ``[n]`` or ``[n,I]``, or a `Ragged`.
            y: not used.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X of another shape, not finite, or with a sequence of ``horizon`` steps or
                fewer; two directions, of which one has seen what is to be forecast.
        """
        horizon = self.horizon_ = _check.positive("horizon", self.horizon)
        if self.bidirectional:
            raise ValueError("bidirectional: expected False for a forecast, got True")
        x = list(self._sequences(X, reset=True))
        width = self.input_size_
        inputs, targets = [], []
        for rows in self._longer(x, horizon):
            own, _, _ = self._own(rows)
            inputs.append(own[:-horizon])
            ahead = np.lib.stride_tricks.sliding_window_view(own[1:], horizon, axis=0)
            steps = ahead.swapaxes(1, 2) - own[:-horizon, None]
            targets.append(steps.reshape(len(steps), horizon * width))
        self._start(width, horizon * width, losses.MSE(), "all")
        self._run(Ragged.join(inputs), Ragged.join(targets), self.epochs)
        return self

    def predict(self, X: Any) -> Array:
        """Return the steps that follow each sequence.

        Args:
            X: as for `fit`; other sequences, and of any length (``[N,T]`` is as long as that of
                fit; give a list, or ``[N,T,1]``, where it is not).

        Returns:
            ``[N,horizon]`` where the sequences have one number a step, else ``[N,horizon,I]``.
        """
        check_is_fitted(self, "model_")
        y = self._ahead(list(self._sequences(X, reset=False)))
        return y[..., 0] if self.input_size_ == 1 else y

    def score(self, X: Any, y: Any = None) -> float:
        """Return how much better the last steps of sequences are forecast than by repeating.

        Args:
            X: as for `fit`; the last ``horizon`` steps of each are what is forecast.
            y: not used.

        Returns:
            1 less the mean absolute error over that of the last step before them; 1 is perfect.
            Where nothing moves, 1 or 0.
        """
        check_is_fitted(self, "model_")
        horizon = self.horizon_
        x = self._longer(list(self._sequences(X, reset=False)), horizon)
        y = np.stack([rows[-horizon:] for rows in x])
        repeated = np.stack([rows[-horizon - 1] for rows in x])[:, None]
        error = np.abs(self._ahead([rows[:-horizon] for rows in x]) - y).mean()
        plain = float(np.abs(repeated - y).mean())
        if plain == 0:  # nothing moves: there is nothing to be better than
            return float(error == 0)
        return float(1 - error / plain)

    def _ahead(self, x: Sequence[Array]) -> Array:
        own, means, scales = zip(*(self._own(rows) for rows in x))
        outputs = self.trainer_.predict(list(own), batch_size=self.batch_size)
        last = np.stack([o[-1] for o in outputs]).reshape(len(x), -1, self.input_size_)
        y: Array = (last + np.stack([o[-1:] for o in own])) * np.stack(scales)[:, None]
        out: Array = y + np.stack(means)[:, None]
        return out

    @staticmethod
    def _own(rows: Array) -> tuple[Array, Array, Array]:
        """Return a sequence measured by its own mean and deviation, and both."""
        mean, scale = _moments(rows)
        return ((rows - mean) / scale).astype(np.float32), mean, scale

    @staticmethod
    def _longer(x: Sequence[Array], horizon: int) -> Sequence[Array]:
        """Return sequences, all of which have more steps than a forecast."""
        least = min(len(rows) for rows in x)
        if least <= horizon:
            raise ValueError(
                f"X: expected sequences of more than horizon = {horizon} steps, got one of {least} "
                f"(n_features = {least})"
            )
        return x


readable(globals())
