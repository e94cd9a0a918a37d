"""Define optimisers, learning-rate schedules and gradient clipping, on a model's two flat buffers.

The learning rate is called ``lr``; ``rate`` is taken as another name for it. An optimiser is not
given the parameters: the Trainer, or ``step(model)``, brings them.

>>> import numpy as np
>>> import ostinato as ost
>>> model = ost.nn.Linear(1, 1, rng=0)
>>> optimizer, x = ost.optim.Adam(0.1), np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
>>> for _ in range(200):
...     y, pullback = model.vjp(x)
...     loss, dy = ost.losses.MSE()(y, 3 * x)
...     model.zero_grad()
...     _ = pullback(dy)
...     optimizer.step(model)
>>> bool(abs(model.parameters()["weight"][0, 0] - 3) < 0.01)
True
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _check, _device, _native
from ._annotations import readable
from ._check import Array
from .nn import Layer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Exponential",
    "Optimizer",
    "RMSprop",
    "ReduceOnPlateau",
    "Schedule",
    "StepDecay",
    "Warmup",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
]


# -- schedules -------------------------------------------------------------------------------------


def _number(name: str, value: Any) -> float:
    """Return a finite number of at least 0; the error names the argument whatever came in."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return _check.finite(name, float(value))


def _fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    _number(name, value)
    return _check.fraction(name, value)


def _named(lr: Any, rate: Any, default: Any = None) -> Any:
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
            value: the figure, with its sign turned if higher is better.
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
    """

    def __init__(self, lr: float | None = None, *, rate: float | None = None) -> None:
        self.lr = _number("lr", _named(lr, rate))

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
    """

    def __init__(
        self, lr: float | None = None, *, every: int, factor: float = 0.1, rate: float | None = None
    ) -> None:
        self.lr, self.every = _number("lr", _named(lr, rate)), _check.positive("every", every)
        self.factor = _number("factor", factor)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            ``lr * factor ** (step // every)``.
        """
        return self.lr * self.factor ** (step // self.every)


class Exponential(Schedule):
    """``lr * factor ** step``.

    >>> Exponential(1.0, factor=0.5)(3)
    0.125

    Args:
        lr: the learning rate of the first step.
        factor: what the rate is multiplied by every step, at least 0.
        rate: another name of lr, which is canonical.
    """

    def __init__(
        self, lr: float | None = None, *, factor: float, rate: float | None = None
    ) -> None:
        self.lr, self.factor = _number("lr", _named(lr, rate)), _number("factor", factor)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: the number of steps taken before.

        Returns:
            ``lr * factor ** step``.
        """
        return self.lr * self.factor**step


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

    Source: Loshchilov, Hutter (2017), "SGDR: stochastic gradient descent with warm restarts".
    """

    def __init__(
        self, lr: float | None = None, *, steps: int, final: float = 0.0, rate: float | None = None
    ) -> None:
        self.lr, self.steps = _number("lr", _named(lr, rate)), _check.positive("steps", steps)
        self.final = _number("final", final)

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
    """

    def __init__(self, schedule: Schedule | float, *, steps: int) -> None:
        self.schedule, self.steps = _schedule(schedule), _check.positive("steps", steps)

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
        self.lr, self.factor = _number("lr", _named(lr, rate)), _number("factor", factor)
        self.patience, self.min_delta = (
            _check.positive("patience", patience, 0),
            _number("min_delta", min_delta),
        )
        self.minimum = _number("minimum", minimum)
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
        """
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
            KeyError: an entry is missing.
            TypeError: an entry is no finite number; nothing has changed.
        """
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


def _schedule(lr: object) -> Schedule:
    if isinstance(lr, Schedule):
        return lr
    if isinstance(lr, bool) or not isinstance(lr, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"lr: expected a number or a Schedule, got {type(lr).__name__}; "
            "the Trainer, or step(model), gives the optimiser its parameters"
        )
    return Constant(float(lr))


# -- clipping --------------------------------------------------------------------------------------


def _above_zero(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")


def global_norm(model: Layer) -> float:
    """Return the Euclidean norm of all gradients of a model.

    >>> import ostinato as ost
    >>> ost.optim.global_norm(ost.nn.Linear(3, 2, rng=0))
    0.0

    Args:
        model: a layer.

    Returns:
        The norm; NaN if a gradient is NaN.
    """
    total: float = _native.backend_for(model.flat_grads).square_sum(model.flat_grads)
    return math.sqrt(total) if total >= 0 else math.nan


def clip_by_norm(model: Layer, max_norm: float) -> float:
    """Scale the gradients of a model so that their global norm is at most ``max_norm``.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Linear(1, 1, rng=0)
    >>> _, pullback = model.vjp(np.full((1, 1), 3, np.float32))
    >>> dx = pullback(np.full((1, 1), 1, np.float32))  # gradients 3 and 1
    >>> round(ost.optim.clip_by_norm(model, 1.0), 3), round(ost.optim.global_norm(model), 3)
    (3.162, 1.0)

    Args:
        model: a layer.
        max_norm: the bound, above 0.

    Returns:
        The norm before.

    Raises:
        TypeError: max_norm is no number.
        ValueError: max_norm is not above 0.

    Source: Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
    networks".
    """
    _above_zero("max_norm", max_norm)
    norm = global_norm(model)
    if norm > max_norm:
        flat = model._writable_grads().flat
        flat *= flat.dtype.type(max_norm / norm)
    return norm


def clip_by_value(model: Layer, limit: float) -> None:
    """Limit every gradient of a model to [-limit, limit].

    >>> import ostinato as ost
    >>> ost.optim.clip_by_value(ost.nn.Linear(3, 2, rng=0), 1.0)

    Args:
        model: a layer.
        limit: the bound, above 0.

    Raises:
        TypeError: limit is no number.
        ValueError: limit is not above 0.
    """
    _above_zero("limit", limit)
    flat = model._writable_grads().flat
    np.clip(flat, -limit, limit, out=flat)


# -- optimisers ------------------------------------------------------------------------------------


class Optimizer:
    """Base of the optimisers: a learning rate, a count of steps, and state in flat buffers.

    The buffers have the layout of the model's parameters. Frozen parameters do not move. An
    optimiser defines ``_update``, and in ``_buffers`` the names of its buffers.

    >>> import ostinato as ost
    >>> optimizer = ost.optim.Adam(ost.optim.Cosine(1e-3, steps=100))
    >>> optimizer.lr, optimizer.steps
    (0.001, 0)

    Args:
        lr: the learning rate, a number or a `Schedule`.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.
        rate: another name of lr, which is canonical.
    """

    _buffers: tuple[str, ...] = ()

    def __init__(
        self,
        lr: Schedule | float | None = None,
        weight_decay: float = 0.0,
        *,
        groups: Mapping[str, float] | None = None,
        rate: Schedule | float | None = None,
    ) -> None:
        self.schedule = _schedule(_named(lr, rate))
        self.weight_decay = _number("weight_decay", weight_decay)
        if groups is not None and not isinstance(groups, Mapping):
            raise TypeError(
                f"groups: expected a dict of patterns to factors, got {type(groups).__name__}"
            )
        self.groups = {p: _number(f"groups[{p!r}]", factor) for p, factor in (groups or {}).items()}
        self.steps = 0
        self.state: dict[str, Array] = {}
        self.started: dict[
            str, int
        ] = {}  # steps that had been taken when a parameter first took part

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.schedule(self.steps)

    @property
    def rate(self) -> float:
        """Another name of `lr`."""
        return self.lr

    def check_groups(self, model: Layer) -> None:
        """Raise an error if a pattern of ``groups`` matches no parameter.

        Args:
            model: a layer.

        Raises:
            KeyError: the pattern that matches none.
        """
        if not self.groups:
            return
        names = list(model.parameters())
        for pattern in self.groups:
            if not fnmatch.filter(names, pattern):
                raise KeyError(
                    f"groups: expected to match a parameter among {', '.join(names)}, got "
                    f"{pattern!r}"
                )

    def step(self, model: Layer) -> None:
        """Move the parameters of a model by its gradients.

        Args:
            model: a layer, the same one every time.

        Raises:
            KeyError: a pattern of ``groups`` that matches no parameter.
            ValueError: the model has another size or dtype than at the steps before.
        """
        size = model.flat.size
        self.check_groups(model)
        for name in self._buffers:
            if name not in self.state:
                self.state[name] = np.zeros(size, model.dtype, like=model.flat)
            if self.state[name].shape != (size,) or self.state[name].dtype != model.dtype:
                raise ValueError(
                    "model: expected the one that this optimiser has stepped so far, got one of "
                    f"{size} parameters"
                )
            if _device.of(self.state[name]) is not _device.of(
                model.flat
            ):  # the model has moved since
                self.state[name] = _device.like(_device.host(self.state[name]), model.flat)
        lr, taken = self.lr, self.steps
        self.steps += 1
        with (
            model.write() as p,
            np.errstate(under="ignore"),
        ):  # what is too small for the dtype is zero
            flat, grads = p.flat, model.flat_grads
            for start, stop, decay, begun, factor in _runs(model, self.started, taken, self.groups):
                part = slice(start, stop)
                buffers = [self.state[n][part] for n in self._buffers]
                kept = self.weight_decay if decay else 0.0
                self._update(
                    flat[part], grads[part], lr * factor, kept, self.steps - begun, *buffers
                )

    def _update(self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array) -> None:
        raise NotImplementedError  # every optimiser below defines it

    def state_dict(self) -> dict[str, Any]:
        """Return the steps, the state of the schedule and copies of the buffers.

        Returns:
            The state, which `load_state_dict` takes.
        """
        return {
            "steps": self.steps,
            "started": dict(self.started),
            "schedule": self.schedule.state_dict(),
            "buffers": {k: np.array(_device.host(v)) for k, v in self.state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state.

        Raises:
            KeyError: the state is that of another kind of optimiser.
        """
        self.check_state(state)
        self.steps, self.started = int(state["steps"]), dict(state["started"])
        self.schedule.load_state_dict(state["schedule"])
        self.state = {k: np.array(v) for k, v in state["buffers"].items()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise an error if a state is that of another kind of optimiser.

        Args:
            state: what `state_dict` returned.

        Raises:
            KeyError: its buffers are others.
        """
        wanted = set(self._buffers) if state["steps"] else set()
        if set(state["buffers"]) != wanted:
            raise KeyError(
                f"state: expected buffers {sorted(wanted)}, got {sorted(state['buffers'])}"
            )


_Run = tuple[int, int, bool, int, float]


def _runs(
    model: Layer, started: dict[str, int], taken: int, groups: dict[str, float]
) -> list[_Run]:
    """Return the ranges of the flat buffer that are updated together.

    Each is (start, stop, decay, steps before the first, factor of the rate).

    Frozen parameters are left out.
    """
    views = model.parameters()
    entries = [model._block.entries[model._prefix + n] for n in views]
    base = entries[0].offset if entries else 0
    runs: list[_Run] = []
    for k, (name, e) in enumerate(zip(views, entries)):
        stop = entries[k + 1].offset if k + 1 < len(entries) else base + views.flat.size
        if not e.trainable:
            continue
        factor = next((f for p, f in reversed(groups.items()) if fnmatch.fnmatchcase(name, p)), 1.0)
        start, kind = e.offset - base, (e.decay, started.setdefault(name, taken), factor)
        if runs and runs[-1][1] == start and runs[-1][2:] == kind:
            start = runs.pop()[0]
        runs.append((start, stop - base, *kind))
    return runs


# The defaults are objects of their own, so that a rate given under both names is told from a
# default.
_RMSPROP, _ADAM = float("1e-2"), float("1e-3")


class SGD(Optimizer):
    """Stochastic gradient descent: ``v = m v + g; p -= lr v``, m the momentum, as in PyTorch.

    With ``nesterov`` the step is along ``g + m v``.

    >>> import ostinato as ost
    >>> ost.optim.SGD(0.1, momentum=0.9, nesterov=True).momentum
    0.9

    Args:
        lr: the learning rate, a number or a `Schedule`.
        rate: another name of lr, which is canonical.
        momentum: m, in [0, 1).
        nesterov: whether to use Nesterov's form, which needs momentum.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range, or nesterov without momentum.

    Source: Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization and
    momentum in deep learning".
    """

    _buffers: tuple[str, ...] = ("momentum",)

    def __init__(
        self,
        lr: Schedule | float | None = None,
        rate: Schedule | float | None = None,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        groups: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(_named(lr, rate), weight_decay, groups=groups)
        self.momentum, self.nesterov = _fraction("momentum", momentum), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0 with it, got 0")
        if not momentum:
            self._buffers = ()

    def _update(self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array) -> None:
        t = p.dtype.type
        if decay:
            g = g + t(decay) * p
        if state:
            (v,) = state
            v *= t(self.momentum)
            v += g
            g = g + t(self.momentum) * v if self.nesterov else v
        p -= t(lr) * g


class RMSprop(Optimizer):
    """RMSprop: ``s = a s + (1 - a) g^2;  p -= lr g / (sqrt(s) + eps)``.

    >>> import ostinato as ost
    >>> ost.optim.RMSprop().lr
    0.01

    Args:
        lr: the learning rate, a number or a `Schedule`.
        rate: another name of lr, which is canonical.
        alpha: a, in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.

    Source: Hinton (2012), "Neural networks for machine learning", lecture 6.
    """

    _buffers = ("square",)

    def __init__(
        self,
        lr: Schedule | float = _RMSPROP,
        rate: Schedule | float | None = None,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(_named(lr, rate, _RMSPROP), weight_decay, groups=groups)
        self.alpha, self.eps = _fraction("alpha", alpha), _number("eps", eps)

    def _update(self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array) -> None:
        (s,), t = state, p.dtype.type
        if decay:
            g = g + t(decay) * p
        s *= t(self.alpha)
        s += t(1 - self.alpha) * g * g
        p -= t(lr) * g / (np.sqrt(s) + t(self.eps))


class Adam(Optimizer):
    """Adam; ``weight_decay`` is added to the gradient.

    >>> import ostinato as ost
    >>> ost.optim.Adam().lr
    0.001

    Args:
        lr: the learning rate, a number or a `Schedule`.
        rate: another name of lr, which is canonical.
        betas: decay rates of the mean and of the mean square, each in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.

    Source: Kingma, Ba (2015), "Adam: a method for stochastic optimization".
    """

    _buffers = ("mean", "square")
    _decoupled = False

    def __init__(
        self,
        lr: Schedule | float = _ADAM,
        rate: Schedule | float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(_named(lr, rate, _ADAM), weight_decay, groups=groups)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected a pair of numbers in [0, 1), got {betas!r}")
        self.betas = (_fraction("betas[0]", betas[0]), _fraction("betas[1]", betas[1]))
        self.eps = _number("eps", eps)

    def _update(self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array) -> None:
        mean, square = state
        b1, b2 = self.betas
        corrections = (1 - b1**age, 1 - b2**age)
        _native.backend_for(p).adam_(
            p, g, mean, square, lr, b1, b2, self.eps, decay, *corrections, self._decoupled
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: weights shrink by ``lr * weight_decay`` a step.

    >>> import ostinato as ost
    >>> ost.optim.AdamW(1e-2).weight_decay
    0.01

    Args:
        lr: the learning rate, a number or a `Schedule`.
        rate: another name of lr, which is canonical.
        betas: decay rates of the mean and of the mean square, each in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number out of range.

    Source: Loshchilov, Hutter (2019), "Decoupled weight decay regularization".
    """

    _decoupled = True

    def __init__(
        self,
        lr: Schedule | float = _ADAM,
        rate: Schedule | float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        groups: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            _named(lr, rate, _ADAM), betas=betas, eps=eps, weight_decay=weight_decay, groups=groups
        )


readable(globals())
