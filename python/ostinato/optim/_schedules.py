"""Learning-rate schedules: the rate as a function of the steps taken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from ._checks import number


class Schedule:
    """Base of the schedules: a learning rate as a function of the number of steps taken.

    >>> import ostinato as ost
    >>> class Inverse(ost.optim.Schedule):
    ...     def __call__(self, step):
    ...         return 1 / (1 + step)
    >>> Inverse()(3)
    0.25
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step; every schedule defines it.

        Args:
            step: the number of steps taken before.

        Returns:
            The learning rate.

        Raises:
            TypeError: the schedule does not define it.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")

    @property
    def observes(self) -> bool:
        """Whether the schedule depends on `observe`, so that training needs validation data."""
        return type(self).observe is not Schedule.observe

    def observe(self, value: float) -> None:
        """Take the monitored figure after each validation; lower is better.

        Args:
            value: the figure, negated if higher is better.
        """

    def forget(self) -> None:
        """Forget what was observed: later figures cannot be compared with it. The rate stays."""

    def state_dict(self) -> dict[str, Any]:
        """Return what changes with time, as JSON can hold it.

        Returns:
            The state, which `load_state_dict` takes.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state.
        """


class Constant(Schedule):
    """Always ``lr``.

    >>> Constant(0.1)(1000)
    0.1

    Args:
        lr: the learning rate, at least 0.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.
    """

    def __init__(self, lr: float | None = None, *, rate: float | None = None) -> None:
        self.lr = number("lr", chosen_name(lr, rate))

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            ``lr``.
        """
        return self.lr


class StepDecay(Schedule):
    """``lr`` times ``factor`` for every ``every`` steps taken.

    >>> [StepDecay(1.0, every=2, factor=0.5)(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]

    Args:
        lr: the learning rate of the first step.
        every: steps between two changes.
        factor: what the rate is multiplied by, at least 0.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.
    """

    def __init__(
        self, lr: float | None = None, *, every: int, factor: float = 0.1, rate: float | None = None
    ) -> None:
        self.lr, self.every = number("lr", chosen_name(lr, rate)), _check.positive("every", every)
        self.factor = number("factor", factor)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            ``lr * factor ** (step // every)``.
        """
        return _grown(self.lr, self.factor, step // self.every)


class Exponential(Schedule):
    """``lr * factor ** step``.

    >>> Exponential(1.0, factor=0.5)(3)
    0.125

    Args:
        lr: the learning rate of the first step.
        factor: what the rate is multiplied by every step, at least 0.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.
    """

    def __init__(
        self, lr: float | None = None, *, factor: float, rate: float | None = None
    ) -> None:
        self.lr, self.factor = number("lr", chosen_name(lr, rate)), number("factor", factor)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            ``lr * factor ** step``.
        """
        return _grown(self.lr, self.factor, step)


class Cosine(Schedule):
    """From ``lr`` to ``final`` along half a cosine in ``steps`` steps, then ``final``.

    >>> schedule = Cosine(1.0, steps=10)
    >>> [round(schedule(step), 2) for step in (0, 5, 10, 99)]
    [1.0, 0.5, 0.0, 0.0]

    Args:
        lr: the learning rate of the first step.
        steps: the length of the way down.
        final: the learning rate at its end, at least 0.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.

    Source: Loshchilov, Hutter (2017), "SGDR: stochastic gradient descent with warm restarts".
    """

    def __init__(
        self, lr: float | None = None, *, steps: int, final: float = 0.0, rate: float | None = None
    ) -> None:
        self.lr, self.steps = number("lr", chosen_name(lr, rate)), _check.positive("steps", steps)
        self.final = number("final", final)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            The learning rate.
        """
        done = min(step / self.steps, 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class Warmup(Schedule):
    """Rise linearly to another schedule's first rate in ``steps`` steps; it counts from there.

    >>> [Warmup(Constant(1.0), steps=4)(step) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]

    Args:
        schedule: what follows the rise, a `Schedule` or a number.
        steps: the length of the rise.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number out of range.
    """

    def __init__(self, schedule: Schedule | float, *, steps: int) -> None:
        self.schedule, self.steps = schedule_of(schedule), _check.positive("steps", steps)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            The learning rate.
        """
        if step < self.steps:
            return self.schedule(0) * (step + 1) / self.steps
        return self.schedule(step - self.steps)

    @property
    def observes(self) -> bool:
        """Whether the schedule that follows depends on what `observe` is given."""
        return self.schedule.observes

    def observe(self, value: float) -> None:
        """Hand the monitored figure to the schedule that follows.

        Args:
            value: the figure; lower is better.
        """
        self.schedule.observe(value)

    def forget(self) -> None:
        """Let the schedule that follows forget what it observed."""
        self.schedule.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule that follows.

        Returns:
            The state, which `load_state_dict` takes.
        """
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state.
        """
        self.schedule.load_state_dict(state)


class ReduceOnPlateau(Schedule):
    """Multiply ``lr`` by ``factor`` when the monitored figure no longer improves.

    That is after more than ``patience`` validations without a better figure.

    The figure is the validation loss, or what ``fit(monitor=)`` names; without validation data
    training is refused.

    >>> schedule = ReduceOnPlateau(1.0, factor=0.5, patience=1)
    >>> for loss in (3.0, 2.0, 2.5, 2.5):
    ...     schedule.observe(loss)
    >>> schedule(0)
    0.5

    Args:
        lr: the learning rate at the start.
        factor: what the rate is multiplied by, at least 0.
        patience: how many validations in a row may be no better, at least 0.
        min_delta: how much lower a figure must be to count as better.
        minimum: the least rate.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        lr: float | None = None,
        *,
        factor: float = 0.5,
        patience: int = 2,
        min_delta: float = 0.0,
        minimum: float = 0.0,
        rate: float | None = None,
    ) -> None:
        self.lr, self.factor = number("lr", chosen_name(lr, rate)), number("factor", factor)
        self.patience, self.min_delta = (
            _check.positive("patience", patience, 0),
            number("min_delta", min_delta),
        )
        self.minimum = number("minimum", minimum)
        self._scale, self._best, self._bad = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        """Return the present learning rate.

        Args:
            step: not used.

        Returns:
            The learning rate, at least ``minimum``.
        """
        return max(self.lr * self._scale, self.minimum)

    def forget(self) -> None:
        """Forget the best figure and the validations that were no better; the rate stays."""
        self._best, self._bad = math.inf, 0

    def observe(self, value: float) -> None:
        """Take the monitored figure after a validation; lower is better.

        Args:
            value: the figure.

        Raises:
            TypeError: value is no number.
        """
        value = _check.number("value", value, "a number")
        if value < self._best - self.min_delta:
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad > self.patience:
            self._scale, self._bad = self._scale * self.factor, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor so far, the best figure, and the validations that were no better.

        Returns:
            The state, which `load_state_dict` takes.
        """
        return {
            "scale": self._scale,
            "best": None if math.isinf(self._best) else self._best,
            "bad": self._bad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state.

        Raises:
            KeyError: an entry is missing; the state is that of another schedule.
            TypeError: no state, or an entry is no finite number; nothing has changed.
        """
        _check.mapping("state", state, "what state_dict returned")
        if missing := [name for name in ("scale", "best", "bad") if name not in state]:
            raise KeyError(
                f"state: expected that of a ReduceOnPlateau, got no {missing[0]!r}; the schedule "
                "must be the one that was saved"
            )
        best, bad = state["best"], state["bad"]
        for name, value in (
            ("scale", state["scale"]),
            ("best", 0 if best is None else best),
            ("bad", bad),
        ):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
            ):
                raise TypeError(f"state: expected a finite number as {name}, got {value!r}")
        self._scale, self._bad = float(state["scale"]), int(state["bad"])
        self._best = math.inf if state["best"] is None else float(state["best"])


def _grown(lr: float, factor: float, times: int) -> float:
    """Return a rate after so many changes; one that no float holds is infinite."""
    try:
        return lr * factor**times
    except OverflowError:
        return math.inf if lr else 0.0


def schedule_of(lr: object) -> Schedule:
    if isinstance(lr, Schedule):
        return lr
    if isinstance(lr, bool) or not isinstance(lr, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"lr: expected a number or a Schedule, got {type(lr).__name__}; "
            "the Trainer, or step(model), gives the optimiser its parameters"
        )
    return Constant(number("lr", lr))


def chosen_name(lr: Any, rate: Any, default: Any = None) -> Any:
    """Return what was given under one of the two names, of which only one may be used."""
    if rate is None:
        return lr
    if not isinstance(lr, (int, float, np.integer, np.floating, Schedule)) and lr is not None:
        raise TypeError(
            f"lr: expected the learning rate alone, got {type(lr).__name__} before it; "
            "the Trainer, or step(model), gives the optimiser its parameters"
        )
    if lr is not None and lr is not default:
        raise TypeError("rate: expected None beside lr, of which it is another name, got both")
    return rate


readable(globals())
