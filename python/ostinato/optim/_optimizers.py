"""Optimisers: one step moves the parameters of a model by its gradients, on two flat buffers."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _deferred, _device, _native
from .._annotations import readable
from .._check import Array, flag, mapping, positive, text
from ..nn import Layer
from ._checks import check_model, fraction, number
from ._schedules import Schedule, chosen_name, schedule_of

_Part = tuple[slice, float, float, int]  # of the flat buffer: rate, weight decay, steps so far


class Also(NamedTuple):
    """What a training loop wants of a step on its way, so that it needs no pass by itself.

    Attributes:
        factor: the gradients are multiplied by it, and stay so; None: by nothing.
        previous: filled with what the parameters were; None: with nothing.
    """

    factor: Any = None
    previous: Array | None = None

    def of(self, part: slice) -> Also:
        """Return what is wanted of a part of the parameters."""
        return Also(self.factor, None if self.previous is None else self.previous[part])

    def apply(self, p: Array, g: Array, where: Any) -> None:
        """Do it in passes of its own."""
        if self.previous is not None:
            self.previous[...] = p if where is None else np.where(where, p, self.previous)
        if self.factor is not None:
            g *= _deferred.scalar(self.factor, g.dtype)


class Optimizer:
    """Base of the optimisers: a learning rate, a count of steps, and state in flat buffers.

    The buffers have the layout of the model's parameters. Frozen parameters do not move. An
    optimiser defines in ``_buffers`` the names of its buffers, which begin as zeros, and
    ``_update(self, p, g, lr, decay, age, *state)``, which returns the new values ``(p, *state)``
    and changes none of its arguments: p and g are parameters ``[n]`` and their gradients, lr their
    learning rate, decay their weight decay or 0, age their steps with this one, and state their
    parts ``[n]`` of the buffers.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> optimizer = ost.optim.Adam(ost.optim.Cosine(1e-3, steps=100))
    >>> optimizer.lr, optimizer.steps
    (0.001, 0)

    One of your own, which steps along the signs of averaged gradients:

    >>> class Signs(ost.optim.Optimizer):
    ...     _buffers = ("mean",)
    ...
    ...     def _update(self, p, g, lr, decay, age, mean):
    ...         mean = mean + p.dtype.type(0.1) * (g - mean)
    ...         return p - p.dtype.type(lr) * (np.sign(mean) + p.dtype.type(decay) * p), mean
    >>> layer = ost.nn.Linear(1, 1, rng=0)
    >>> y, pullback = layer.vjp(np.ones((1, 1), np.float32))
    >>> before, dx = layer.state_dict(), pullback(np.ones((1, 1), np.float32))
    >>> Signs(0.5).step(layer)
    >>> {name: float((a - before[name]).sum()) for name, a in layer.parameters().items()}
    {'weight': -0.5, 'bias': -0.5}

    Args:
        lr: the learning rate, a number or a `Schedule`.
        weight_decay: at least 0; it acts on the parameters whose decay flag is set.
        groups: names or shell patterns of parameters to factors of the learning rate, such as
            ``{"0.*": 0.1}``; where several match, the last one counts.
        rate: another name of lr, which is canonical.

    Raises:
        TypeError: an argument of the wrong type, or both names of the learning rate.
        ValueError: a number below 0 or that is not finite.
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
        self.schedule = schedule_of(chosen_name(lr, rate))
        self.weight_decay = number("weight_decay", weight_decay)
        if groups is not None and not isinstance(groups, Mapping):
            raise TypeError(
                f"groups: expected a dict of patterns to factors, got {type(groups).__name__}"
            )
        for pattern in groups or ():
            text("groups", pattern, "a pattern of names as key")
        self.groups = {p: number(f"groups[{p!r}]", factor) for p, factor in (groups or {}).items()}
        self.steps = 0
        self.state: dict[str, Array] = {}
        # By parameter that has been updated, how many of the steps have left it out: those before
        # its first one, and those in which it was frozen.
        self.started: dict[str, int] = {}

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

    def step(self, model: Layer, *, where: Any = None) -> None:
        """Move the parameters of a model by its gradients.

        Args:
            model: a layer, the same one every time.
            where: a bool array without axes on the device of the model; if it is False, parameters
                and buffers stay as they are, though the step is counted. None: True.

        Raises:
            KeyError: a pattern of ``groups`` that matches no parameter.
            ValueError: the model has another size or dtype than at the steps before.
        """
        self._advance(model, where, Also())

    def _advance(self, model: Layer, where: Any, also: Also) -> None:
        """Make a step, and what a training loop wants with it."""
        check_model(model)
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
            buffer = self.state[name]
            if _device.of(buffer) is not _device.of(model.flat):  # the model has moved since
                self.state[name] = _device.like(_device.host(buffer), model.flat)
        lr, taken, started = self.lr, self.steps, dict(self.started)
        runs = [
            (
                slice(start, stop),
                lr * factor,
                self.weight_decay if decay else 0.0,
                taken + 1 - begun,
            )
            for start, stop, decay, begun, factor in _runs(model, started, taken, self.groups)
        ]
        # What is too small for the dtype becomes zero without a warning.
        with model.write() as p, np.errstate(under="ignore"):
            g = model.flat_grads if also.factor is None else model._writable_grads().flat
            state = [self.state[n] for n in self._buffers]
            self._move((p.flat, g, *state), runs, where, also)
        self.started, self.steps = started, taken + 1

    def _move(
        self, arrays: tuple[Array, ...], runs: list[_Part], where: Array | None, also: Also
    ) -> None:
        """Update parts of p and of the buffers: all of them or, without the memory, none.

        Args:
            arrays: p, their gradients and the buffers.
            runs: the parts, with what they are stepped by.
            where: a flag of the device, without which nothing moves; None: True.
            also: what comes before the update.
        """
        p, g, *state = arrays
        also.apply(p, g, where)
        new: list[tuple[Array, Array]] = []
        for part, lr, decay, age in runs:
            old = [p[part], *(s[part] for s in state)]
            for into, values in zip(old, self._update(old[0], g[part], lr, decay, age, *old[1:])):
                new.append((into, values if where is None else np.where(where, values, into)))
        for into, values in new:
            into[...] = values

    def _update(
        self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array
    ) -> tuple[Array, ...]:
        """Return new values of p and of the state, which stay as they are; see `Optimizer`."""
        raise TypeError(f"{type(self).__name__} does not define _update")

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
        """Restore what `state_dict` returned, or, on an error, nothing.

        Args:
            state: the state.

        Raises:
            KeyError: the state is that of another kind of optimiser or schedule.
            TypeError: no state, or one whose entries are of another type.
            ValueError: entries of another value or shape.
        """
        self.check_state(state)
        self.schedule.load_state_dict(state["schedule"])
        self.steps, self.started = int(state["steps"]), dict(state["started"])
        self.state = {k: np.array(v) for k, v in state["buffers"].items()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise an error if a state is that of another kind of optimiser.

        Args:
            state: what `state_dict` returned.

        Raises:
            KeyError: entries are missing, or its buffers or those of its schedule are others.
            TypeError: no state, or one whose entries are of another type.
            ValueError: entries of another value or shape.
        """
        mapping("state", state, "what state_dict returned")
        if missing := [n for n in ("steps", "started", "schedule", "buffers") if n not in state]:
            raise KeyError(f"state: expected what state_dict returned, got no {missing[0]!r}")
        for name in ("started", "schedule", "buffers"):
            mapping(f"state[{name!r}]", state[name], "a mapping")
        positive("state['steps']", state["steps"], 0)
        for name, begun in state["started"].items():
            if positive(f"state['started'][{name!r}]", begun, 0) > state["steps"]:
                raise ValueError(
                    f"state['started'][{name!r}]: expected at most {state['steps']}, the steps "
                    f"taken, got {begun}"
                )
        for name, given in state["buffers"].items():
            a = np.asarray(given)
            if a.dtype not in (np.float32, np.float64) or a.ndim != 1:
                raise ValueError(
                    f"state['buffers'][{name!r}]: expected an array [n] of float32 or float64, got "
                    f"shape {a.shape} of {a.dtype}"
                )
        copy.deepcopy(self.schedule).load_state_dict(state["schedule"])
        wanted, found = set(self._buffers) if state["steps"] else set(), set(state["buffers"])
        # An error within the first step leaves buffers of zeros.
        if found != wanted and (state["steps"] or found != set(self._buffers)):
            raise KeyError(
                f"state: expected buffers {sorted(wanted)}, got {sorted(state['buffers'])}"
            )


_Run = tuple[int, int, bool, int, float]


def _runs(
    model: Layer, started: dict[str, int], taken: int, groups: dict[str, float]
) -> list[_Run]:
    """Return the ranges of the flat buffer that are updated together.

    Each is (start, stop, decay, steps that have left it out, factor of the rate).

    Frozen parameters are left out, and this step is then one of those.
    """
    table = model._block.entries
    # Not those that are tied to a parameter of another layer.
    views = [n for n in model.parameters() if model._prefix + n in table]
    entries = [table[model._prefix + n] for n in views]
    base = entries[0].offset if entries else 0
    runs: list[_Run] = []
    for k, (name, e) in enumerate(zip(views, entries)):
        stop = entries[k + 1].offset if k + 1 < len(entries) else base + model.flat.size
        if not e.trainable:
            if name in started:
                started[name] += 1
            continue
        factor = next((f for p, f in reversed(groups.items()) if fnmatch.fnmatchcase(name, p)), 1.0)
        start, kind = e.offset - base, (e.decay, started.setdefault(name, taken), factor)
        if runs and runs[-1][1] == start and runs[-1][2:] == kind:
            start = runs.pop()[0]
        runs.append((start, stop - base, *kind))
    return runs


class _Native(Optimizer):
    """An optimiser that has a kernel for the CPU, which makes its update in one pass."""

    def _run(self, native: Any, arrays: tuple[Array, ...], runs: list[Any], **more: Any) -> None:
        """Run the kernel on p, g and the buffers; a run is (first, end, rate, decay, age)."""
        raise NotImplementedError  # the optimisers below define it

    def _is_own(self) -> bool:
        """Whether a user has defined the update, of which no kernel knows."""
        return getattr(self._update, "__func__", None) not in _OURS

    def _move(
        self, arrays: tuple[Array, ...], runs: list[_Part], where: Array | None, also: Also
    ) -> None:
        if self._is_own() or _device.of(arrays[0]) is not None:
            return super()._move(arrays, runs, where, also)
        if where is not None and not where:
            return None
        p, g = arrays[:2]
        for start, end in zip(
            [0, *(r[0].stop for r in runs)], [*(r[0].start for r in runs), p.size]
        ):
            if start < end:  # frozen parameters, which the kernel does not see
                also.of(slice(start, end)).apply(p[start:end], g[start:end], None)
        more: dict[str, Any] = {} if also.previous is None else {"previous": also.previous}
        if also.factor is not None:
            more["factor"] = float(also.factor)
        given = [(part.start, part.stop, lr, decay, age) for part, lr, decay, age in runs]
        self._run(_native.backend_for(p), arrays, given, **more)
        return None


# The defaults are objects of their own, so that a rate given under both names can be told from
# a default.
_RMSPROP, _ADAM = float("1e-2"), float("1e-3")


class SGD(_Native):
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
        super().__init__(chosen_name(lr, rate), weight_decay, groups=groups)
        self.momentum, self.nesterov = fraction("momentum", momentum), flag("nesterov", nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0 with it, got 0")
        if not momentum:
            self._buffers = ()

    def _update(
        self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array
    ) -> tuple[Array, ...]:
        t = p.dtype.type
        g = g + p * t(decay) if decay else g
        if not state:
            return (p - g * t(lr),)
        v = state[0] * t(self.momentum) + g
        return p - (g + v * t(self.momentum) if self.nesterov else v) * t(lr), v

    def _run(self, native: Any, arrays: tuple[Array, ...], runs: list[Any], **more: Any) -> None:
        p, g, *state = arrays
        given = [run[:4] for run in runs]
        velocity = state[0] if state else None
        native.sgd_runs_(p, g, velocity, given, self.momentum, self.nesterov, **more)


class RMSprop(_Native):
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
        super().__init__(chosen_name(lr, rate, _RMSPROP), weight_decay, groups=groups)
        self.alpha, self.eps = fraction("alpha", alpha), number("eps", eps)

    def _update(
        self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array
    ) -> tuple[Array, ...]:
        t = p.dtype.type
        g = g + p * t(decay) if decay else g
        mean = state[0] * t(self.alpha) + g * t(1 - self.alpha) * g
        return p - g / (np.sqrt(mean) + t(self.eps)) * t(lr), mean

    def _run(self, native: Any, arrays: tuple[Array, ...], runs: list[Any], **more: Any) -> None:
        p, g, mean = arrays
        given = [run[:4] for run in runs]
        native.rmsprop_runs_(p, g, mean, given, self.alpha, self.eps, **more)


class Adam(_Native):
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
        super().__init__(chosen_name(lr, rate, _ADAM), weight_decay, groups=groups)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected a pair of numbers in [0, 1), got {betas!r}")
        self.betas = (fraction("betas[0]", betas[0]), fraction("betas[1]", betas[1]))
        self.eps = number("eps", eps)

    def _update(
        self, p: Array, g: Array, lr: float, decay: float, age: int, *state: Array
    ) -> tuple[Array, ...]:
        t, (b1, b2) = p.dtype.type, self.betas
        if decay and not self._decoupled:
            g = g + p * t(decay)
        mean = state[0] * t(b1) + g * t(1 - b1)
        square = state[1] * t(b2) + g * t(1 - b2) * g
        rate, root = t(lr / (1 - b1**age)), t((1 - b2**age) ** -0.5)
        kept = p * t(1 - lr * decay) if self._decoupled else p
        return kept - mean * rate / (np.sqrt(square) * root + t(self.eps)), mean, square

    def _move(
        self, arrays: tuple[Array, ...], runs: list[_Part], where: Array | None, also: Also
    ) -> None:
        if self._is_own() or _device.of(arrays[0]) is None:
            return super()._move(arrays, runs, where, also)
        also.apply(arrays[0], arrays[1], where)
        given = [(part.start, part.stop, lr, decay, age) for part, lr, decay, age in runs]
        return self._run(_native.backend_for(arrays[0]), arrays, given, where=where)

    def _run(self, native: Any, arrays: tuple[Array, ...], runs: list[Any], **more: Any) -> None:
        b1, b2 = self.betas
        given = [(*run[:4], 1 - b1 ** run[4], 1 - b2 ** run[4]) for run in runs]
        native.adam_runs_(*arrays, given, b1, b2, self.eps, self._decoupled, **more)


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
            chosen_name(lr, rate, _ADAM),
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            groups=groups,
        )


# Where another function stands in the place of these, a user has defined the update.
_OURS = (SGD._update, RMSprop._update, Adam._update)
readable(globals())
