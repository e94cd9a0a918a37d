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

import contextlib
from collections.abc import Iterator, Sequence
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
from .._spread import moments
from ..train import Trainer

__all__ = ["RecurrentClassifier", "RecurrentForecaster", "RecurrentRegressor"]

Array = npt.NDArray[Any]
Sequences = Any  # [N,T,I], or a Ragged of [n,I]

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def _rank(value: Any) -> int:
    """Return the number of axes of an array, a series or a data frame; 0 of anything else."""
    shape = getattr(value, "shape", ())
    return len(shape) if isinstance(shape, tuple) else 0


def _is_sequence(value: Any) -> bool:
    """Return whether it is a list, or an array, a series or a data frame of one or two axes."""
    return isinstance(value, (list, tuple)) or _rank(value) in (1, 2)


def _holds_sequences(column: Any) -> bool:
    """Return whether the elements of a series are lists or arrays."""
    kind = str(getattr(column, "dtype", "")).lower()
    if not kind.startswith(("object", "list", "array", "fixed_size_list")):
        return False
    return _is_sequence(next(iter(column), None))


def _listed(X: Any) -> Any:
    """Return a series of sequences, or the only column of a data frame, as a list."""
    columns = getattr(X, "columns", None)
    if columns is not None and _rank(X) == 2:
        names = [name for name in columns if _holds_sequences(X[name])]
        if names and len(columns) > 1:
            raise ValueError(
                f"X: expected one column of sequences, got {len(columns)} columns, of which "
                f"{_check.some(names)} hold sequences; use a list of [n,I] for several numbers a "
                "step"
            )
        X = X[names[0]] if names else X
    if _rank(X) == 1 and (str(getattr(X, "dtype", "")) == "object" or _holds_sequences(X)):
        return [x if isinstance(x, (list, tuple)) or not _rank(x) else np.asarray(x) for x in X]
    return X


def _are_sequences(X: Any) -> bool:
    """Return whether X is a list of arrays, or of lists or series that make no array."""
    if not isinstance(X, (list, tuple)) or len(X) == 0:
        return False
    if any(isinstance(x, np.ndarray) and x.ndim in (1, 2) for x in X):
        return True
    return len({len(x) for x in X if _is_sequence(x)}) > 1


def _axes(X: Any) -> int:
    """Return the number of axes of X, which is no list of sequences."""
    if not isinstance(X, (list, tuple)):
        array = hasattr(X, "shape") or hasattr(X, "__array__")  # a sparse one is a dict as well
        if not array and (isinstance(X, (str, bytes, dict, set)) or not hasattr(X, "__len__")):
            raise TypeError(
                f"X: expected an array, a list of sequences or a Ragged, got {type(X).__name__}"
            )
        return int(getattr(X, "ndim", 2))
    try:
        axes = np.ndim(X)
    except ValueError:  # lists of different lengths within lists of one length
        raise ValueError(
            "X: expected sequences [n] or [n,I] of numbers, got lists that make no array"
        ) from None
    if len(X) == 0:
        raise ValueError("X: expected at least one sequence, got none")
    return axes


def _steps(name: str, x: Any) -> Array:
    """Return a sequence ``[n]`` or ``[n,I]`` as float64."""
    try:
        a = np.asarray(x)
        real: Array = a if a.dtype.kind == "c" else np.asarray(a, np.float64)
    except (TypeError, ValueError) as e:
        raise (TypeError if isinstance(e, TypeError) else ValueError)(
            f"{name}: expected numbers, got {type(x).__name__}: {e}"
        ) from None
    if real.dtype.kind == "c":  # a ValueError as scikit-learn raises it for an array
        raise ValueError(
            f"{name}: expected real numbers, got {real.dtype} (Complex data not supported)"
        )
    if real.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape (n,) or (n, I), got {real.shape}")
    return real


def _measured(name: str, rows: Array, mean: Array, scale: Array) -> Array:
    """Return rows by the mean and the deviation of fit, as float32."""
    with np.errstate(over="ignore"):
        out: Array = ((rows - mean) / scale).astype(np.float32)
    if not np.isfinite(out).all():
        raise ValueError(
            f"{name}: expected numbers that float32 holds once they are scaled as those of fit, "
            f"got numbers up to {np.abs(rows).max():g}"
        )
    return out


def _plain(value: Any) -> Any:
    """Return a number or a text of NumPy as Python's, for an error."""
    return value.item() if isinstance(value, np.generic) else value


def _refuse_missing(name: str, labels: Array) -> None:
    """Raise where a class is None, or NaN or NA among objects."""
    if labels.dtype.kind != "O":
        return
    for k, label in enumerate(labels.flat):
        nan = isinstance(label, (float, np.floating)) and label != label
        if label is None or nan or type(label).__name__ in ("NAType", "NaTType"):
            raise ValueError(
                f"{name}: expected classes, got {_plain(label)!r} at position {k}; leave such "
                "sequences out"
            )


def _distinct(name: str, labels: Array) -> Array:
    """Return the classes, sorted."""
    try:
        classes: Array = np.unique(labels)
    except TypeError:
        kinds = sorted({type(label).__name__ for label in labels.flat})
        raise TypeError(f"{name}: expected classes of one type, got {', '.join(kinds)}") from None
    if len(classes) == 1:
        raise ValueError(
            f"{name}: expected at least two classes, got one class: {_plain(classes[0])!r}"
        )
    return classes


def _listed_classes(classes: Any) -> Array:
    """Return the classes that `RecurrentClassifier.partial_fit` is given, sorted."""
    labels = np.asarray(classes)
    _refuse_missing("classes", labels)
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("classes: expected classes, got NaN")
    if labels.size == 0:
        raise ValueError("classes: expected at least two classes, got none")
    return _distinct("classes", labels)


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
        X = _listed(X)
        if isinstance(X, Ragged) or _are_sequences(X):
            return self._ragged(X, reset)
        axes = _axes(X)
        if axes > 3:
            shape = np.shape(X) if isinstance(X, (list, tuple)) else X.shape
            raise ValueError(f"X: expected shape (N, T) or (N, T, I), got {tuple(shape)}")
        if reset:
            self.fixed_ = axes != 3  # [N,T]: T is a number of features, as elsewhere
        elif (
            self.fixed_
            and isinstance(X, (list, tuple))
            and axes == 2
            and len(X[0]) != self.n_features_in_
        ):
            return self._ragged(X, False)  # lists may have any lengths, also one for all
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
            X = Ragged.join([_steps(f"X[{k}]", x) for k, x in enumerate(X)], "X")
        if isinstance(X.rows, Ragged):
            raise TypeError("X: expected a Ragged of [n] or [n,I], got one of sequences of those")
        rows = np.asarray(X.rows)
        if rows.ndim > 2:
            raise ValueError(f"X: expected a Ragged of [n] or [n,I], got rows {rows.shape}")
        if X.lengths.min(initial=1) < 1:
            raise ValueError("X: expected sequences of at least one step, got an empty one")
        rows = check_array(rows[:, None] if rows.ndim == 1 else rows, dtype=np.float64)
        if reset:
            self.fixed_ = False
        return Ragged(self._with_width(rows, reset), X.offsets)

    def _with_width(self, x: Array, reset: bool) -> Array:
        """Return x, of which the numbers a step are those of fit."""
        if x.shape[-1] == 0:
            raise ValueError("X: expected at least one number a step, got none")
        if reset:
            self.input_size_ = self.n_features_in_ = x.shape[-1]
            self.__dict__.pop("feature_names_in_", None)  # of an earlier fit on a data frame
        elif self.input_size_ != x.shape[-1]:
            raise ValueError(f"X: expected {self.input_size_} numbers a step, got {x.shape[-1]}")
        return x

    def _scaled(self, x: Sequences, *, reset: bool) -> Sequences:
        """Return sequences whose numbers have mean 0 and variance 1, by those of fit."""
        rows = x.rows if isinstance(x, Ragged) else x.reshape(-1, x.shape[-1])
        if reset:
            self.mean_, self.scale_ = moments(rows)
        rows = _measured("X", rows, self.mean_, self.scale_)
        return Ragged(rows, x.offsets) if isinstance(x, Ragged) else rows.reshape(x.shape)

    # -- training ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _unchanged_by_errors(self) -> Iterator[None]:
        """Take back every attribute that a fit has written before it raises."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _check_options(self, epochs: int) -> None:
        """Raise for an option that is wrong, before anything is drawn or written."""
        _check.choice("cell", self.cell, tuple(CELLS))
        _check.positive("hidden_size", self.hidden_size)
        _check.positive("num_layers", self.num_layers)
        _check.flag("bidirectional", self.bidirectional)
        _check.fraction("dropout", self.dropout)
        _check.positive("epochs", epochs)
        _check.positive("batch_size", self.batch_size)
        self._optimizer()
        if self.clip_norm is not None:
            _check.clipping("clip_norm", self.clip_norm)
        share = _check.finite("validation_fraction", self.validation_fraction)
        if share >= 1:
            raise ValueError(f"validation_fraction: expected 0 to below 1, got {share}")
        if self.patience is not None:
            _check.positive("patience", self.patience)

    def _optimizer(self) -> optim.Optimizer:
        rate = self.learning_rate
        if not isinstance(rate, optim.Schedule):
            rate = _check.finite("learning_rate", rate)
        return optim.AdamW(rate, weight_decay=self.weight_decay)

    def _held(self, count: int) -> int:
        """Return how many of so many sequences are held out."""
        share = float(self.validation_fraction)
        held = round(share * count) if share else 0
        if share and not 0 < held < count:
            raise ValueError(
                f"validation_fraction: expected a share that holds out some of {count} sequences, "
                f"got {share}"
            )
        return held

    def _start(self, inputs: int, outputs: int, loss: losses.Loss, kind: str = "last") -> None:
        """Make the model and its Trainer."""
        layer = CELLS[self.cell]
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        size = _check.positive("hidden_size", self.hidden_size)
        both = _check.flag("bidirectional", self.bidirectional)
        recurrent = layer(
            inputs,
            size,
            self.num_layers,
            bidirectional=both,
            dropout=self.dropout,
            batch_first=True,
            rng=rng,
        )
        head = nn.Linear(size * (2 if both else 1), outputs, rng=rng)
        optimizer = self._optimizer()
        self.model_ = nn.Sequential(recurrent, head)
        self.trainer_ = Trainer(
            self.model_, loss, optimizer, clip_norm=self.clip_norm, outputs=kind
        )
        self.seed_ = int(rng.integers(2**31))

    def _run(self, x: Sequences, target: Any, epochs: int) -> None:
        """Train for some epochs; a share of the sequences is held out where that is asked for."""
        held = self._held(len(x))
        options: dict[str, Any] = {}
        if held:
            order = np.random.default_rng(self.seed_).permutation(len(x))
            out, rest = order[:held], order[held:]
            options["validation"] = (x[out], target[out])
            options["patience"] = self.patience
            x, target = x[rest], target[rest]
        self.history_ = self.trainer_.fit(
            (x, target),
            epochs=int(epochs),
            batch_size=int(self.batch_size),
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
            TypeError: an option, X or y of the wrong type.
            ValueError: an option of the wrong value; X or y of another shape, not finite, or of
                one class. The estimator is then as it was.
        """
        self._check_options(self.epochs)
        with self._unchanged_by_errors():
            x, labels = self._labelled(X, y, reset=True)
            self.classes_ = _distinct("y", labels)
            self._learn(x, labels, True, self.epochs)
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
            TypeError: an option, X, y or classes of the wrong type.
            ValueError: no classes at the first call, or others than then; an option, X or y as for
                `fit`. The estimator is then as it was.
        """
        first = not hasattr(self, "model_")
        self._check_options(1)
        known = None if classes is None else _listed_classes(classes)
        with self._unchanged_by_errors():
            x, labels = self._labelled(X, y, reset=first)
            if first:
                if known is None:
                    raise ValueError("classes: expected all classes at the first call, got None")
                self.classes_ = known
            elif known is not None and not np.array_equal(known, self.classes_):
                raise ValueError(f"classes: expected those of the first call, got {classes!r}")
            self._learn(x, labels, first, 1)
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
        _refuse_missing("y", labels)
        check_classification_targets(labels)
        check_consistent_length(x, labels)
        return x, labels

    def _learn(self, x: Sequences, labels: Array, reset: bool, epochs: int) -> None:
        """Train on checked sequences and their classes."""
        numbers = self._numbers(labels)
        x = self._scaled(x, reset=reset)
        self._held(len(x))
        if reset:
            self._start(self.input_size_, len(self.classes_), losses.CrossEntropy())
        self._run(x, numbers, epochs)

    def _numbers(self, labels: Array) -> Array:
        """Return the place of each label among the classes."""
        wanted = f"y: expected the classes {self.classes_.tolist()}"
        try:
            place = np.searchsorted(self.classes_, labels)
        except TypeError:  # a number cannot be compared with a text
            raise TypeError(f"{wanted}, got {_plain(labels[0])!r}") from None
        known = self.classes_[np.minimum(place, len(self.classes_) - 1)] == labels
        if not np.all(known):
            other = labels[np.flatnonzero(~known)[0]]
            raise ValueError(f"{wanted}, got {_plain(other)!r}")
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
            TypeError: an option, X or y of the wrong type.
            ValueError: an option of the wrong value; X or y of another shape, or not finite. The
                estimator is then as it was.
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
        self._check_options(epochs)
        with self._unchanged_by_errors():
            self._learn(X, y, reset, epochs)
        return self

    def _learn(self, X: Any, y: Any, reset: bool, epochs: int) -> None:
        """Check sequences and their numbers, and train on them."""
        x = self._sequences(X, reset=reset)
        target = check_array(y, ensure_2d=False, allow_nd=True, dtype=np.float64, input_name="y")
        if target.ndim > 2:
            raise ValueError(f"y: expected shape (N,) or (N, O), got {target.shape}")
        check_consistent_length(x, target)
        rows = target.reshape(len(target), -1)
        if reset:
            self.target_mean_, self.target_scale_ = moments(rows)
            self.target_axes_ = target.ndim
        elif (target.ndim, rows.shape[1]) != (self.target_axes_, len(self.target_mean_)):
            raise ValueError(f"y: expected as many numbers as at first, got shape {target.shape}")
        rows = _measured("y", rows, self.target_mean_, self.target_scale_)
        x = self._scaled(x, reset=reset)
        self._held(len(x))
        if reset:
            self._start(self.input_size_, rows.shape[1], losses.MSE())
        self._run(x, rows, epochs)

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
            TypeError: an option or X of the wrong type.
            ValueError: an option of the wrong value; X of another shape, not finite, or with a
                sequence of ``horizon`` steps or fewer; two directions, of which one has seen what
                is to be forecast. The estimator is then as it was.
        """
        self._check_options(self.epochs)
        if self.bidirectional:
            raise ValueError("bidirectional: expected False for a forecast, got True")
        with self._unchanged_by_errors():
            self._learn(X, _check.positive("horizon", self.horizon))
        return self

    def _learn(self, X: Any, horizon: int) -> None:
        """Check sequences, and train on them."""
        x = list(self._sequences(X, reset=True))
        width = self.input_size_
        inputs, targets = [], []
        for rows in self._longer(x, horizon):
            own, _, _ = self._own(rows)
            inputs.append(own[:-horizon])
            ahead = np.lib.stride_tricks.sliding_window_view(own[1:], horizon, axis=0)
            steps = ahead.swapaxes(1, 2) - own[:-horizon, None]
            targets.append(steps.reshape(len(steps), horizon * width))
        self.horizon_ = horizon
        self._held(len(x))
        self._start(width, horizon * width, losses.MSE(), "all")
        self._run(Ragged.join(inputs), Ragged.join(targets), self.epochs)

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
        mean, scale = moments(rows)
        return _measured("X", rows, mean, scale), mean, scale

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
