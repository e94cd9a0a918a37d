"""Optimisers, learning-rate schedules and gradient clipping, on a model's two flat buffers.

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

import math
from typing import Any

import numpy as np

from . import _check, _device
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


# -- schedules -----------------------------------------------------------------------------------------------------------


class Schedule:
    """A learning rate as a function of the number of steps taken."""

    def __call__(self, step: int) -> float:
        raise TypeError(f"{type(self).__name__} does not define __call__")

    def observe(self, value: float) -> None:
        """Takes the validation loss, after each validation."""

    def state_dict(self) -> dict[str, Any]:
        """What changes with time, as JSON would hold it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""


class Constant(Schedule):
    """Always ``rate``."""

    def __init__(self, rate: float) -> None:
        self.rate = _check.finite("rate", rate)

    def __call__(self, step: int) -> float:
        return self.rate


class StepDecay(Schedule):
    """``rate`` times ``factor`` for every ``every`` steps taken.

    >>> [StepDecay(1.0, every=2, factor=0.5)(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, rate: float, *, every: int, factor: float = 0.1) -> None:
        self.rate, self.every = _check.finite("rate", rate), _check.positive("every", every)
        self.factor = _check.finite("factor", factor)

    def __call__(self, step: int) -> float:
        return self.rate * self.factor ** (step // self.every)


class Exponential(Schedule):
    """``rate * factor ** step``."""

    def __init__(self, rate: float, *, factor: float) -> None:
        self.rate, self.factor = _check.finite("rate", rate), _check.finite("factor", factor)

    def __call__(self, step: int) -> float:
        return self.rate * self.factor**step


class Cosine(Schedule):
    """From ``rate`` to ``final`` along half a cosine in ``steps`` steps, then ``final`` (Loshchilov, Hutter 2017).

    >>> schedule = Cosine(1.0, steps=10)
    >>> [round(schedule(step), 2) for step in (0, 5, 10, 99)]
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, rate: float, *, steps: int, final: float = 0.0) -> None:
        self.rate, self.steps, self.final = (
            _check.finite("rate", rate),
            _check.positive("steps", steps),
            _check.finite("final", final),
        )

    def __call__(self, step: int) -> float:
        done = min(step / self.steps, 1.0)
        return self.final + (self.rate - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class Warmup(Schedule):
    """Linearly from nothing to another schedule's rate in ``steps`` steps; that schedule counts from there.

    >>> [Warmup(Constant(1.0), steps=4)(step) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, schedule: Schedule | float, *, steps: int) -> None:
        self.schedule, self.steps = _schedule(schedule), _check.positive("steps", steps)

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.schedule(0) * (step + 1) / self.steps
        return self.schedule(step - self.steps)

    def observe(self, value: float) -> None:
        self.schedule.observe(value)

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)


class ReduceOnPlateau(Schedule):
    """``rate``, times ``factor`` whenever the validation loss has not fallen for more than ``patience`` validations.

    >>> schedule = ReduceOnPlateau(1.0, factor=0.5, patience=1)
    >>> for loss in (3.0, 2.0, 2.5, 2.5):
    ...     schedule.observe(loss)
    >>> schedule(0)
    0.5
    """

    def __init__(
        self, rate: float, *, factor: float = 0.5, patience: int = 2, min_delta: float = 0.0, minimum: float = 0.0
    ) -> None:
        self.rate, self.factor = _check.finite("rate", rate), _check.finite("factor", factor)
        self.patience, self.min_delta = _check.positive("patience", patience, 0), _check.finite("min_delta", min_delta)
        self.minimum = _check.finite("minimum", minimum)
        self._scale, self._best, self._bad = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        return max(self.rate * self._scale, self.minimum)

    def observe(self, value: float) -> None:
        if value < self._best - self.min_delta:
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad > self.patience:
            self._scale, self._bad = self._scale * self.factor, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self._scale, "best": None if math.isinf(self._best) else self._best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scale, self._bad = state["scale"], state["bad"]
        self._best = math.inf if state["best"] is None else state["best"]


def _schedule(rate: object) -> Schedule:
    if isinstance(rate, Schedule):
        return rate
    if not isinstance(rate, (int, float, np.integer, np.floating)):
        got = type(rate).__name__
        raise TypeError(
            f"rate: expected a number or a Schedule, got {got}; step(model) is given the parameters, not the optimiser"
        )
    return Constant(float(rate))


# -- clipping ------------------------------------------------------------------------------------------------------------


def global_norm(model: Layer) -> float:
    """The Euclidean norm of all gradients of a model."""
    total: float = _check.typed("square_sum_", model.flat_grads)(model.flat_grads)
    return math.sqrt(total) if total >= 0 else math.nan


def clip_by_norm(model: Layer, max_norm: float) -> float:
    """Scale the gradients so that their global norm is at most ``max_norm``; returns the norm before (Pascanu et al. 2013)."""
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a number above 0, got {max_norm!r}")
    norm = global_norm(model)
    if norm > max_norm:
        flat = model._writable_grads().flat
        flat *= flat.dtype.type(max_norm / norm)
    return norm


def clip_by_value(model: Layer, limit: float) -> None:
    """Limit every gradient to [-limit, limit]."""
    if not limit > 0:
        raise ValueError(f"limit: expected a number above 0, got {limit!r}")
    flat = model._writable_grads().flat
    np.clip(flat, -limit, limit, out=flat)


# -- optimisers ----------------------------------------------------------------------------------------------------------


class Optimizer:
    """Base: a learning rate, a count of steps, and state buffers of the model's flat layout.

    ``weight_decay`` acts on the parameters whose decay flag is set (`Layer.set_decay`): matrices, unless said otherwise.
    Frozen parameters do not move.
    """

    _buffers: tuple[str, ...] = ()

    def __init__(self, rate: Schedule | float, weight_decay: float = 0.0) -> None:
        self.schedule = _schedule(rate)
        self.weight_decay = _check.finite("weight_decay", weight_decay)
        self.steps = 0
        self.state: dict[str, Array] = {}
        self.started: dict[str, int] = {}  # steps that had been taken when a parameter first took part

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule(self.steps)

    def step(self, model: Layer) -> None:
        """Move the parameters of the model by its gradients."""
        size = model.flat.size
        for name in self._buffers:
            if name not in self.state:
                self.state[name] = np.zeros(size, model.dtype, like=model.flat)
            if self.state[name].shape != (size,) or self.state[name].dtype != model.dtype:
                raise ValueError(
                    f"model: expected the one that this optimiser has stepped so far, got one of {size} parameters"
                )
            if _device.of(self.state[name]) is not _device.of(model.flat):  # the model has moved since
                self.state[name] = _device.like(_device.host(self.state[name]), model.flat)
        rate, taken = self.rate, self.steps
        self.steps += 1
        with model.write() as p:
            flat, grads = p.flat, model.flat_grads
            for start, stop, decay, begun in _runs(model, self.started, taken):
                part = slice(start, stop)
                buffers = [self.state[n][part] for n in self._buffers]
                self._update(
                    flat[part], grads[part], rate, self.weight_decay if decay else 0.0, self.steps - begun, *buffers
                )

    def _update(self, p: Array, g: Array, rate: float, decay: float, age: int, *state: Array) -> None:
        raise NotImplementedError  # every optimiser below defines it

    def state_dict(self) -> dict[str, Any]:
        """Steps, schedule and copies of the buffers."""
        return {
            "steps": self.steps,
            "started": dict(self.started),
            "schedule": self.schedule.state_dict(),
            "buffers": {k: np.array(_device.host(v)) for k, v in self.state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.check_state(state)
        self.steps, self.started = int(state["steps"]), dict(state["started"])
        self.schedule.load_state_dict(state["schedule"])
        self.state = {k: np.array(v) for k, v in state["buffers"].items()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises if the state is that of another kind of optimiser."""
        wanted = set(self._buffers) if state["steps"] else set()
        if set(state["buffers"]) != wanted:
            raise KeyError(f"state: expected buffers {sorted(wanted)}, got {sorted(state['buffers'])}")


def _runs(model: Layer, started: dict[str, int], taken: int) -> list[tuple[int, int, bool, int]]:
    """Stretches of the flat buffer that move together: (start, stop, decay, steps before the first); frozen parameters are left out."""
    views = model.parameters()
    entries = [model._block.entries[model._prefix + n] for n in views]
    base = entries[0].offset if entries else 0
    runs: list[tuple[int, int, bool, int]] = []
    for k, (name, e) in enumerate(zip(views, entries)):
        stop = entries[k + 1].offset if k + 1 < len(entries) else base + views.flat.size
        if not e.trainable:
            continue
        start, kind = e.offset - base, (e.decay, started.setdefault(name, taken))
        if runs and runs[-1][1] == start and runs[-1][2:] == kind:
            start = runs.pop()[0]
        runs.append((start, stop - base, *kind))
    return runs


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's form of it, as PyTorch writes them: ``v = m v + g; p -= rate v``.

    With ``nesterov`` the step is along ``g + m v`` (Sutskever et al. 2013).
    """

    _buffers: tuple[str, ...] = ("momentum",)

    def __init__(
        self, rate: Schedule | float, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(rate, weight_decay)
        self.momentum, self.nesterov = _check.fraction("momentum", momentum), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0 with it, got 0")
        if not momentum:
            self._buffers = ()

    def _update(self, p: Array, g: Array, rate: float, decay: float, age: int, *state: Array) -> None:
        t = p.dtype.type
        if decay:
            g = g + t(decay) * p
        if state:
            (v,) = state
            v *= t(self.momentum)
            v += g
            g = g + t(self.momentum) * v if self.nesterov else v
        p -= t(rate) * g


class RMSprop(Optimizer):
    """``s = a s + (1 - a) g^2;  p -= rate g / (sqrt(s) + eps)`` (Hinton 2012, lecture 6)."""

    _buffers = ("square",)

    def __init__(
        self, rate: Schedule | float = 1e-2, *, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(rate, weight_decay)
        self.alpha, self.eps = _check.fraction("alpha", alpha), _check.finite("eps", eps)

    def _update(self, p: Array, g: Array, rate: float, decay: float, age: int, *state: Array) -> None:
        (s,), t = state, p.dtype.type
        if decay:
            g = g + t(decay) * p
        s *= t(self.alpha)
        s += t(1 - self.alpha) * g * g
        p -= t(rate) * g / (np.sqrt(s) + t(self.eps))


class Adam(Optimizer):
    """Adam (Kingma, Ba 2015); ``weight_decay`` is added to the gradient."""

    _buffers = ("mean", "square")
    _decoupled = False

    def __init__(
        self,
        rate: Schedule | float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(rate, weight_decay)
        self.betas = (_check.fraction("betas[0]", betas[0]), _check.fraction("betas[1]", betas[1]))
        self.eps = _check.finite("eps", eps)

    def _update(self, p: Array, g: Array, rate: float, decay: float, age: int, *state: Array) -> None:
        mean, square = state
        b1, b2 = self.betas
        corrections = (1 - b1**age, 1 - b2**age)
        _check.typed("adam_", p)(p, g, mean, square, rate, b1, b2, self.eps, decay, *corrections, self._decoupled)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019): the weights shrink by ``rate * weight_decay`` a step."""

    _decoupled = True

    def __init__(
        self,
        rate: Schedule | float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(rate, betas=betas, eps=eps, weight_decay=weight_decay)
