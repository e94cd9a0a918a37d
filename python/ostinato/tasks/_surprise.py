"""Score every row of a series by how far it is from what a recurrent network expected."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import _check, losses, nn, optim
from .._annotations import readable
from .._check import Array
from .._spread import varies
from ..train import Parallel, Trainer
from ._application import check_options, option
from .models import check_shapes, known_options, load_model, recurrent_shapes, save_model

__all__ = ["Detector", "DetectorOptions", "Place", "moving_mean", "moving_zscore", "places"]

HELD = 0.2  # share of the normal rows that is not trained on: the errors of the others are smaller
MOST_HORIZON = 64
CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a `Detector`.

    >>> DetectorOptions(hidden=16).horizon
    2

    Attributes:
        horizon: each row is expected from 1, 2, ... horizon rows before it.
        smooth: rows of the centred moving mean of the score: about the length of an anomaly.
        window: rows of a training window.
        hidden: units H of the recurrent layer.
        cell: "gru" or "lstm".
        steps: updates of the parameters.
        rate: peak learning rate.
        seed: seed of the initial parameters and of the order of the windows.
    """

    horizon: int = option(2, "rows ahead that are expected, 1, 2, ... up to this")
    smooth: int = option(30, "rows over which scores are averaged: about those of an anomaly")
    window: int = option(100, "rows of a training window")
    hidden: int = option(32, "units of the recurrent layer")
    cell: str = option("gru", "kind of recurrent layer", choices=("gru", "lstm"))
    steps: int = option(600, "updates of the parameters")
    rate: float = option(5e-3, "peak learning rate", kind="rate")
    seed: int = option(0, "seed of the parameters and of the order", kind="index")


@dataclass(frozen=True)
class Place:
    """A place of a series where the score has a peak.

    >>> Place(row=7, begin=5, end=9, score=3.5).score
    3.5

    Attributes:
        row: the row of the peak.
        begin: the first row around it whose score is at least half of the peak's.
        end: the row behind the last such row.
        score: the score of the peak.
    """

    row: int
    begin: int
    end: int
    score: float


def checked_series(name: str, values: Array) -> Array:
    """Return a series ``[n]`` as float64."""
    a = _check.array(name, values, 1)
    if a.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
    a = np.asarray(a, np.float64)
    bad = np.flatnonzero(~np.isfinite(a))
    if bad.size:
        raise ValueError(f"{name}: expected finite numbers, got {a[bad[0]]} in row {bad[0]}")
    return a


def moving_mean(values: Array, width: int, counts: Array | None = None) -> Array:
    """Return the centred moving mean; at the ends it is that of the rows that there are.

    >>> moving_mean(np.array([0.0, 0.0, 3.0, 0.0]), 3).tolist()
    [0.0, 1.0, 1.0, 1.5]
    >>> moving_mean(np.array([9.0, 2.0, 4.0]), 3, np.array([False, True, True])).tolist()
    [2.0, 3.0, 3.0]

    Args:
        values: ``[n]``.
        width: rows of a mean.
        counts: ``[n]`` of bool: the rows that a mean is taken of. None: all are.

    Returns:
        float64 ``[n]``; 0 where no row of a mean counts.
    """
    n = len(values)
    begin = np.maximum(np.arange(n) - (width - 1) // 2, 0)
    end = np.minimum(np.arange(n) + width // 2 + 1, n)
    # Each sum by itself: in differences of one running sum a large value drowns all later ones.
    bounds = np.stack([begin, end], 1).reshape(-1)

    def sums(rows: Array) -> Array:
        padded = np.append(rows.astype(np.float64), 0.0)
        total: Array = np.add.reduceat(padded, bounds)[::2] if n else padded[:0]
        return total

    if counts is None:
        out: Array = sums(np.asarray(values)) / (end - begin)
        return out
    number = sums(counts)
    return np.divide(sums(np.where(counts, values, 0.0)), number, out=np.zeros(n), where=number > 0)


def moving_zscore(values: Array, window: int) -> Array:
    """Return how many standard deviations each row is from the mean of the rows before it.

    >>> moving_zscore(np.array([1.0, 3.0, 1.0, 3.0, 5.0]), 4).tolist()
    [0.0, 0.0, 0.0, 0.0, 3.0]

    Args:
        values: ``[n]``.
        window: rows of the mean and of the standard deviation.

    Returns:
        ``[n]``; 0 for the first ``window`` rows, and where the rows before do not vary.
    """
    out = np.zeros(len(values))
    if len(values) > window:
        before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
        away = np.abs(values[window:] - before.mean(1))
        np.divide(away, before.std(1), out=out[window:], where=varies(before, 1))
    return out


def places(score: Array, count: int, apart: int) -> list[Place]:
    """Return the highest peaks of a score, the highest first.

    >>> score = np.array([0, 1, 4, 3, 0, 0, 2, 0.0])
    >>> [(p.row, p.begin, p.end) for p in places(score, 2, 2)]
    [(2, 2, 4), (6, 6, 7)]

    Args:
        score: ``[n]``.
        count: the most peaks.
        apart: rows around a peak and its surroundings in which there is no other.

    Returns:
        Peaks above 0.
    """
    beside = np.pad(score.astype(np.float64), 1, constant_values=-np.inf)
    left = np.where((score >= beside[:-2]) & (score >= beside[2:]), score, 0.0)
    out: list[Place] = []
    while len(out) < count and left.size and left.max() > 0:
        row = int(left.argmax())
        low = np.flatnonzero(score < score[row] / 2)
        k = int(np.searchsorted(low, row))
        begin = int(low[k - 1]) + 1 if k else 0
        end = int(low[k]) if k < len(low) else len(score)
        out.append(Place(row, begin, end, float(score[row])))
        left[max(begin - apart, 0) : end + apart] = 0
    return out


class Detector:
    """Expect each row of a series from those before it, and score how wrong that was.

    A recurrent network is trained on normal rows to predict the next ``horizon`` rows. The errors
    of the predictions of a row are one vector; its score is the squared distance from the mean of
    such vectors in normal rows that were not trained on, in the metric of their covariance,
    averaged over neighbouring rows. A score of 1 is the highest of those normal rows.

    >>> import numpy as np
    >>> wave = np.sin(np.arange(900) / 7)
    >>> options = DetectorOptions(steps=100, hidden=8, window=50, smooth=5)
    >>> detector = Detector(options).fit(wave[:500])
    >>> test = wave[500:].copy()
    >>> test[200:205] += 0.5
    >>> place = places(detector.score(test, before=wave[:500]), 1, 5)[0]
    >>> bool(195 <= place.row < 210)
    True

    Args:
        options: options of the network and of the score.

    Raises:
        TypeError: an option of another type.
        ValueError: an option out of its range.

    Source: Malhotra, Vig, Shroff, Agarwal (2015), "Long short term memory networks for anomaly
    detection in time series".
    """

    def __init__(self, options: DetectorOptions | None = None) -> None:
        self.options = DetectorOptions() if options is None else options
        check_options(self.options)
        if self.options.horizon > MOST_HORIZON:
            raise ValueError(
                f"horizon: expected at most {MOST_HORIZON}, got {self.options.horizon}"
            )
        rngs = np.random.SeedSequence(self.options.seed).spawn(2)
        first, second = (np.random.default_rng(r) for r in rngs)
        cell = CELLS[self.options.cell](1, self.options.hidden, batch_first=True, rng=first)
        head = nn.Linear(self.options.hidden, self.options.horizon, rng=second)
        self.model = nn.Sequential(cell, head)
        self.mean = self.scale = self.limit = math.nan
        self.center = np.zeros(self.options.horizon)
        self.inverse = np.eye(self.options.horizon)

    @property
    def shortest(self) -> int:
        """The fewest normal rows that can be trained on."""
        return math.ceil((self.options.window + self.options.horizon + 8) / (1 - HELD)) + 1

    def fit(
        self,
        values: Array,
        normal: Array | None = None,
        report: Callable[[str], None] | None = None,
        *,
        parallel: Parallel | None = None,
    ) -> Detector:
        """Train on a series of normal rows.

        Args:
            values: ``[n]``.
            normal: ``[n]`` of bool; windows with a row that is not normal are left out, and the
                score of 1 is measured without such rows and the `warm_up` rows behind them. None:
                all are.
            report: called with lines about the training.
            parallel: the processes that train together; None: this one alone.

        Returns:
            The detector itself.

        Raises:
            TypeError: values that are no array of real numbers.
            ValueError: values that are too few, do not vary or are not finite.
        """
        o = self.options
        values = checked_series("values", values)
        if len(values) < self.shortest:
            raise ValueError(
                f"values: expected at least {self.shortest} rows to train on with windows of "
                f"{o.window} rows, got {len(values)}; a smaller window makes it fewer"
            )
        if not varies(values):
            raise ValueError(f"values: expected rows that vary, got {values[0]:g} in all of them")
        normal = np.ones(len(values), bool) if normal is None else np.asarray(normal, bool)
        if not normal.any() or not varies(values[normal]):
            raise ValueError("values: expected normal rows that vary, got none")
        self.mean, self.scale = float(values[normal].mean()), float(values[normal].std())
        z = self._scaled(values)
        cut = int((1 - HELD) * len(z))
        train = self._windows(z[:cut], normal[:cut], 3)
        begin = max(0, cut - o.window)
        valid = self._windows(z[begin:], normal[begin:], 7)
        best = self._train(train, valid, parallel)
        if report is not None:
            report(
                f"trained {o.steps} steps; normal rows are predicted with an error of {best:.3g} "
                "standard deviations"
            )
        self._measure(z, cut, normal)
        return self

    def _scaled(self, values: Array) -> Array:
        with np.errstate(over="ignore"):
            scaled: Array = ((values - self.mean) / self.scale).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError(
                f"values: expected values that float32 holds in units of {self.scale:g} around "
                f"{self.mean:g}, got some that it does not"
            )
        return scaled

    def _windows(self, z: Array, normal: Array, stride: int) -> tuple[Array, Array]:
        """Return windows ``[N,window,1]`` and what follows each row of them."""
        o = self.options
        wide = np.lib.stride_tricks.sliding_window_view(z, o.window + o.horizon)[::stride]
        right = np.lib.stride_tricks.sliding_window_view(normal, o.window + o.horizon)[::stride]
        wide = wide[right.all(1)]
        if not len(wide):
            raise ValueError(
                f"values: expected windows of {o.window} rows that are all normal, got none"
            )
        ahead = [wide[:, k : k + o.window] for k in range(1, o.horizon + 1)]
        return np.ascontiguousarray(wide[:, : o.window, None]), np.stack(ahead, -1)

    def _train(
        self, train: tuple[Array, Array], valid: tuple[Array, Array], parallel: Parallel | None
    ) -> float:
        """Train the network; return the root of its mean squared error in other windows."""
        o = self.options
        schedule = optim.Cosine(o.rate, steps=o.steps, final=o.rate / 50)
        trainer = Trainer(
            self.model, losses.MSE(), optim.Adam(schedule), clip_norm=1.0, parallel=parallel
        )
        history = trainer.fit(
            train,
            validation=valid,
            steps=o.steps,
            validate_every=max(1, o.steps // 6),
            seed=o.seed,
            progress=False,
        )
        return math.sqrt(min(row["valid_loss"] for row in history.rows))

    def _errors(self, z: Array) -> Array:
        """Return the errors of the predictions of each row, ``[n,horizon]``; 0 for none."""
        predicted = self.model(z[None, :, None])[0][0]
        out = np.zeros((len(z), self.options.horizon))
        for k in range(1, self.options.horizon + 1):
            out[k:, k - 1] = z[k:] - predicted[:-k, k - 1]
        return out

    def _counting(self, normal: Array, cut: int) -> Array:
        """Return which rows tell how large the errors of normal rows are, ``[n]`` of bool.

        They are the normal rows that a network has predicted which had read nothing abnormal for
        as long as it needs at the beginning of a series. Where no more than ``horizon`` rows that
        were held out are such, those that were not predicted directly from an abnormal row count,
        and where these are as few, all normal rows do.
        """
        o = self.options
        rows = np.arange(len(normal))
        last = np.maximum.accumulate(np.where(normal, -len(normal), rows))  # the abnormal one
        for behind in (max(self.warm_up, o.horizon), o.horizon):
            counts: Array = rows - last > behind
            if counts[cut:].sum() > o.horizon:
                break
        else:
            counts = normal.copy()
        counts[: self.warm_up] = False
        return counts

    def _measure(self, z: Array, cut: int, normal: Array) -> None:
        """Take mean, covariance and the highest score of the normal rows that were held out."""
        errors = self._errors(z)
        counts = self._counting(normal, cut)
        held = errors[cut:][counts[cut:]]
        self.center = held.mean(0)
        covariance = np.atleast_2d(np.cov(held.T, bias=True))
        least = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12
        self.inverse = np.linalg.inv(covariance + least * np.eye(len(covariance)))
        score = moving_mean(self._distances(errors), self.options.smooth, counts)
        self.limit = max(float(score[cut:][counts[cut:]].max()), 1e-12)

    def _distances(self, errors: Array) -> Array:
        away = errors - self.center
        with np.errstate(over="ignore", invalid="ignore"):
            out: Array = np.einsum("ti,ij,tj->t", away, self.inverse, away)
        if not np.isfinite(out).all():
            raise ValueError(
                "values: expected errors of predictions within the range of float64, got larger "
                "ones; the values or the model are damaged"
            )
        return out

    @property
    def warm_up(self) -> int:
        """Rows at the beginning of a series that nothing is known before, which have no score."""
        return min(self.options.window // 2, 200)

    def score(self, values: Array, before: Array | None = None) -> Array:
        """Return how surprising each row is, against the most surprising of the normal rows.

        Args:
            values: ``[n]``.
            before: the rows before them, of which the network reads the last ones first; None: the
                first `warm_up` rows have a score of 0.

        Returns:
            ``[n]``; above 1 is more than any normal row had that was held out of the training.

        Raises:
            RuntimeError: the detector is not trained.
            TypeError: values that are no array of real numbers.
            ValueError: values that are not finite, or no rows.
        """
        if math.isnan(self.limit):
            raise RuntimeError("score: expected a detector that is trained; call fit first")
        values = checked_series("values", values)
        known = np.zeros(0) if before is None else checked_series("before", before)
        if not len(values):
            raise ValueError("values: expected at least one row, got none")
        known = known[-10 * self.options.window :]
        distances = self._distances(self._errors(self._scaled(np.concatenate([known, values]))))
        scored = np.arange(len(distances)) >= self.warm_up
        distances, scored = distances[len(known) :], scored[len(known) :]
        score: Array = moving_mean(distances, self.options.smooth, scored) / self.limit
        score[~scored] = 0
        return score

    def save(self, folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
        """Write ``model.safetensors``.

        Args:
            folder: the folder, which is there.
            facts: more facts, which JSON can hold.

        Raises:
            OSError: the file cannot be written.
        """
        own = {
            "options": asdict(self.options),
            "mean": self.mean,
            "scale": self.scale,
            "limit": self.limit,
            "center": self.center.tolist(),
            "inverse": self.inverse.tolist(),
        }
        save_model(folder, "anomaly", self.model, {**facts, **own})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[Detector, dict[str, Any]]:
        """Read what `save` wrote.

        Args:
            folder: the folder.

        Returns:
            The detector, and the facts.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: it is no model for anomalies, or it is damaged.
        """
        tensors, facts = load_model(folder, "anomaly")
        given = known_options(folder, facts.get("options"), DetectorOptions)
        options = DetectorOptions(**given)
        try:
            check_options(options)
            if options.horizon > MOST_HORIZON:
                raise ValueError("horizon")
            numbers = [float(facts[name]) for name in ("mean", "scale", "limit")]
            center = np.array(facts["center"], np.float64)
            inverse = np.array(facts["inverse"], np.float64)
            good = np.isfinite(numbers).all() and numbers[1] > 0 and numbers[2] > 0
            good &= np.isfinite(center).all() and np.isfinite(inverse).all()
            good &= center.shape == (options.horizon,)
            good &= inverse.shape == (options.horizon, options.horizon)
        except (KeyError, TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise ValueError(
                f"DIR: expected a model with usable options and scales, got {os.fspath(folder)} "
                "without"
            )
        wanted = {
            **recurrent_shapes("0.", options.cell, 1, options.hidden, 1),
            "1.weight": (options.horizon, options.hidden),
            "1.bias": (options.horizon,),
        }
        check_shapes(folder, tensors, wanted)
        detector = cls(options)
        detector.model.load_state_dict(tensors)
        detector.mean, detector.scale, detector.limit = numbers
        detector.center, detector.inverse = center, inverse
        return detector, facts


readable(globals())
