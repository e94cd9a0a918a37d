"""The flow of gradients back through time: norms, reach, saturated gates, dead units.

Bengio, Simard, Frasconi (1994), "Learning long-term dependencies with gradient descent is
difficult"; Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
networks".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any

import numpy as np

from . import _check, _device
from ._annotations import readable
from ._cells import saved_gates
from ._check import Array
from ._figure import save_figure
from ._functions import limits
from ._ragged import Ragged, unwrapped
from ._recording import mapped
from .nn import Layer, Model, Recurrent, Sequential
from .train import Callback, Trainer

__all__ = ["Flow", "FlowLog", "LayerFlow", "gradient_flow"]

SATURATED = 0.05  # distance of a sigmoid from 0 or 1, of a tanh from -1 or 1
DEAD = 1e-6  # share of the largest unit's movement; a dead unit moves less
_one_at_a_time = RLock()  # a layer has one that watches it


@dataclass
class LayerFlow:
    """Hold what `gradient_flow` found in one layer and direction.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.random.default_rng(0).normal(size=(50, 4, 2)).astype(np.float32)
    >>> [layer] = ost.diagnostics.gradient_flow(ost.nn.GRU(2, 16, rng=0), x)
    >>> layer.name, layer.dh.shape, sorted(layer.saturation)
    ('l0', (50,), ['n', 'r', 'z'])

    Attributes:
        name: place in the model (position in a `Sequential`, attribute of a `Model`), layer and
            direction, such as "1.l0", "l0_reverse" or "encoder.rnn.l0". A layer that a `Model`
            runs several times has a flow for each call: "cell.l0 (call 2 of 5)".
        dh: ``[T]`` norms over batch and units of dL/dh_t by all paths; rows that take no part in a
            step do not count.
        dc: ``[T]`` norms of dL/dc_t by all paths; None without c.
        survival: by distance, for a gradient of only the last state: the part of its norm that is
            left after k steps. The dc of an LSTM counts with dh, as the square root of the sum of
            squares; rows shorter than the longest take no part, and masked steps are no steps.
        reach: the first k at which less than ``threshold`` is left; None if there is none.
        saturation: of each gate, the fraction of (t, b, unit) within 0.05 of its limits; a gate
            whose function has no limits is not among them.
        dead: the numbers of the units whose output hardly moves.
        verdict: a sentence that sums it up. Of a layer of a `Model` that no gradient of the outputs
            comes to it says so, and the arrays are empty.
    """

    name: str
    dh: Array
    dc: Array | None
    survival: Array
    reach: int | None
    saturation: dict[str, float]
    dead: Array
    verdict: str


@dataclass
class Flow:
    """Hold what `gradient_flow` found: a `LayerFlow` for every layer and direction.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.random.default_rng(0).normal(size=(50, 4, 2)).astype(np.float32)
    >>> flow = ost.diagnostics.gradient_flow(ost.nn.RNN(2, 16, bidirectional=True, rng=0), x)
    >>> [layer.name for layer in flow]
    ['l0', 'l0_reverse']

    Attributes:
        layers: in the order of the model.
    """

    layers: list[LayerFlow]

    def __iter__(self) -> Iterator[LayerFlow]:
        return iter(self.layers)

    def __str__(self) -> str:
        return "\n".join(layer.verdict for layer in self.layers)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the norms by step and the survival by distance, with matplotlib.

        Args:
            path: a file to write the figure to, in the format of its ending; None: none.

        Returns:
            The figure of matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: the file cannot be written; what was there before stays.
            TypeError: path is no path.
            ValueError: matplotlib does not have this format.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        norms, survival = figure.subplots(1, 2)
        for layer in self.layers:
            norms.semilogy(np.maximum(layer.dh, 1e-30), label=f"{layer.name} dL/dh")
            if layer.dc is not None:
                norms.semilogy(np.maximum(layer.dc, 1e-30), "--", label=f"{layer.name} dL/dc")
            survival.semilogy(np.maximum(layer.survival, 1e-12), label=layer.name)
        norms.set(xlabel="step t", ylabel="norm", title="gradient by step")
        survival.set(xlabel="steps back", ylabel="share left", title="a gradient at the last step")
        for axes in (norms, survival):
            axes.legend()
        if path is not None:
            save_figure(figure, path)
        return figure


def gradient_flow(
    model: Layer,
    x: Any,
    dy: Any = None,
    state: Any = None,
    *,
    threshold: float = 0.01,
    **times: Any,
) -> Flow:
    """Measure how the gradient of one input fares on its way back through time.

    The norms by step, how far the gradient reaches, saturated gates and dead units come from the
    model's own backward passes; its gradients are left as they are.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> from ostinato.diagnostics import gradient_flow
    >>> rnn = ost.nn.RNN(2, 16, rng=0)
    >>> x = np.random.default_rng(0).normal(size=(50, 4, 2)).astype(np.float32)
    >>> flow = gradient_flow(rnn, x)
    >>> print(flow)
    l0: the gradient falls below 1% after 8 steps

    Args:
        model: a recurrent layer, or a `Sequential` or `Model` with such layers.
        x: the inputs, as in a call; a tuple of all that the call of a `Model` takes.
        dy: the gradient of the outputs, for `LayerFlow.dh` and `LayerFlow.dc`; None: ones.
        state: the state, as in a call.
        threshold: the part of the gradient that `LayerFlow.reach` asks for, between 0 and 1.
        **times: options of the model's ``vjp``, such as ``lengths``.

    Returns:
        A `LayerFlow` for every layer and direction.

    Raises:
        TypeError: a model without recurrent layers, or a state for one that has none.
        ValueError: a threshold that is not between 0 and 1; memory_limit, outputs or rng are given.
    """
    recurrent = _recurrent(model) if isinstance(model, Layer) else {}
    if not recurrent:
        raise TypeError(f"model: expected recurrent layers, got {model!r}")
    _check_threshold(threshold)
    for name in ("memory_limit", "outputs", "rng"):
        if times.get(name) is not None:
            raise ValueError(
                f"{name}: expected none, since all steps are looked at, got {times[name]!r}"
            )
    with _watching(recurrent) as seen:
        _run_back(model, x, dy, state, times)
    out = []
    for name, layer in recurrent.items():
        passes = seen[id(layer)][::-1]  # as they were run forward
        for k, (tape, norms) in enumerate(passes):
            which = f" (call {k + 1} of {len(passes)})" if len(passes) > 1 else ""
            out += _flows(name, which, layer, tape, norms, threshold)
        if not passes:
            out += _without_gradient(name, layer)
    return Flow(out)


def _run_back(model: Layer, x: Any, dy: Any, state: Any, times: dict[str, Any]) -> None:
    """Run a model and its pullback; no gradient of the model changes."""
    if state is not None and not model.stateful:
        raise TypeError(f"state: expected None, since {type(model).__name__} has no state")
    # The fixed seed leaves the generator of the model's dropout as it is.
    if isinstance(model, Model):
        given = {} if state is None else {"state": state}
        args = x if isinstance(x, tuple) else (unwrapped(x)[0],)
        y, pullback = model.vjp(*args, rng=0, **given, **times)
    else:
        y, pullback = model.vjp(unwrapped(x)[0], state, rng=0, **times)
    y = y[0] if model.stateful else y
    if dy is None:
        dy = mapped(_ones, y.rows if isinstance(y, Ragged) else y)
    # Within a model, a layer whose own parameters are frozen runs back for its inputs alone.
    pullback(dy, grads=model.new_grads(), need_dx=not isinstance(model, Recurrent))


def _ones(a: Any) -> Any:
    """Return a gradient of ones for an array of real numbers, None for anything else."""
    return np.ones_like(a) if _check.is_array(a) and a.dtype.kind == "f" else None


def _flows(
    name: str, which: str, layer: Recurrent, tape: Any, by_step: Array, threshold: float
) -> list[LayerFlow]:
    """Return what was found in one pass of a recurrent layer, for each layer and direction."""
    norms, out = _device.host(by_step), []
    survival, facts = _survival(layer, tape), _facts(layer, tape)
    for part, end in enumerate(layer._suffixes()):
        dh, dc = (np.sqrt(norms[part][:, k]) if k < norms.shape[2] else None for k in (0, 1))
        assert dh is not None
        reach = next((int(k) for k in np.flatnonzero(survival[part] < threshold)), None)
        full = f"{name}{end[1:]}{which}"
        sentence = _verdict(survival[part], reach, threshold, *facts[part], layer._output_size)
        verdict = f"{full}: {sentence}"
        out.append(LayerFlow(full, dh, dc, survival[part], reach, *facts[part], verdict))
    return out


def _without_gradient(name: str, layer: Recurrent) -> list[LayerFlow]:
    """Return flows without steps for a layer that no gradient of the outputs comes to."""
    none, dead = np.zeros(0, layer.dtype), np.zeros(0, np.int64)
    return [
        LayerFlow(full, none, None, none, None, {}, dead, f"{full}: no gradient comes to it")
        for full in (f"{name}{end[1:]}" for end in layer._suffixes())
    ]


def _verdict(
    survival: Array,
    reach: int | None,
    threshold: float,
    saturation: dict[str, float],
    dead: Array,
    units: int,
) -> str:
    if not survival.any():
        return "no steps"
    lost = np.flatnonzero(~np.isfinite(survival))
    if lost.size:
        text = f"the gradient is not finite after {lost[0]} steps"
    elif survival.max() > 100:
        text = (
            f"the gradient grows {survival.max():.3g} times within {int(survival.argmax())} steps"
        )
    elif reach is not None:
        text = f"the gradient falls below {100 * threshold:.3g}% after {reach} steps"
    else:
        text = f"{survival[-1]:.1%} of the gradient is left after {len(survival) - 1} steps"
    if dead.size:
        text += f"; {dead.size} of {units} units hardly move"
    worst = max(saturation, key=lambda g: saturation[g], default="")
    if worst and saturation[worst] > 0.5:
        text += f"; gate {worst} is saturated in {saturation[worst]:.0%} of places"
    return text


def _recurrent(model: Layer, prefix: str = "") -> dict[str, Recurrent]:
    """Return the recurrent layers by their places in the model."""
    if isinstance(model, Recurrent):
        return {prefix: model}
    out: dict[str, Recurrent] = {}
    inner: Any = model._children().items()
    for name, layer in enumerate(model.layers) if isinstance(model, Sequential) else inner:
        out.update(_recurrent(layer, f"{prefix}{name}."))
    return out


@contextmanager
def _watching(recurrent: dict[str, Recurrent]) -> Iterator[dict[int, list[tuple[Any, Array]]]]:
    """Collect the tapes and norms of the passes that run back, by the layers' ids."""
    seen: dict[int, list[tuple[Any, Array]]] = {id(layer): [] for layer in recurrent.values()}
    mine = get_ident()

    def watch(layer: Recurrent, tape: Any, norms: Array) -> None:
        if get_ident() == mine:  # other threads may train the layer
            seen[id(layer)].append((tape, norms))

    with _one_at_a_time:
        for layer in recurrent.values():
            layer._watch = watch
        try:
            yield seen
        finally:
            for layer in recurrent.values():
                del layer._watch


def _facts(layer: Recurrent, tape: Any) -> list[tuple[dict[str, float], Array]]:
    """Return the saturation of the gates and the dead units of each layer and direction."""
    on = _device.host(tape.active())  # [T,B]

    def values(a: Array) -> Array:
        host = _device.host(a)
        v: Array = (host.swapaxes(0, 1) if layer.batch_first else host)[on]
        return v

    gates, hidden, out = saved_gates(layer._cell, tape), tape.hidden(), []
    for part in range(len(layer._suffixes())):
        saturation = {}
        for name, gate in gates.items():
            inner: Any = layer
            ends = limits(inner.activation if name in "gn" else inner.recurrent_activation)
            if ends is None:
                continue  # a gate without limits, such as one of a ReLU
            if name == "f" and getattr(layer, "coupled_gates", False):
                ends = 1 - ends[1], 1 - ends[0]  # of 1 - i
            v = values(gate[part])
            distance = np.minimum(v - ends[0], ends[1] - v)
            saturation[name] = float((distance < SATURATED).mean()) if v.size else 0.0
        h = values(hidden[part])
        spread = h.std(0) if len(h) else np.ones(layer._output_size)
        out.append((saturation, np.flatnonzero(spread <= DEAD * float(spread.max()))))
    return out


def _survival(layer: Recurrent, tape: Any) -> list[Array]:
    """Return what is left of a gradient of only the last state, by distance.

    It is one backward pass for each layer and direction, of the longest rows; with a mask, one for
    each of the different rows of the mask among them.
    """
    steps, batch = tape.shape
    active = _device.host(tape.active())  # [T,B]
    lengths = active.sum(0)
    longest = np.flatnonzero(lengths == lengths.max(initial=0))
    # Rows that skip other steps are elsewhere at the same distance.
    patterns, alike = np.unique(active[:, longest], axis=1, return_inverse=True)
    ends, out = layer._suffixes(), []
    for part, end in enumerate(ends):
        first = np.random.default_rng(0).standard_normal((len(longest), layer._output_size))
        left = np.zeros(lengths.max(initial=0))
        for k, pattern in enumerate(patterns.T):
            mine = alike.reshape(-1) == k
            dh = np.zeros((len(ends), batch, layer._output_size), layer.dtype)
            dh[part, longest[mine]] = first[mine]
            start = _device.like(dh, layer._block.values)
            flow = tape.backward(None, start, None, layer._parts({}), False, flow=True)[-1]
            left += _device.host(flow)[part].sum(1)[pattern]
        # In the order of the backward pass, from the step at which the gradient begins.
        back = np.sqrt(left if end.endswith("_reverse") else left[::-1])
        with np.errstate(invalid="ignore"):  # of what is infinite from the beginning
            out.append(back / back[0] if back.size and back[0] != 0 else np.zeros(steps))
    return out


def _check_threshold(threshold: object) -> float:
    n = _check.number("threshold", threshold, "a number between 0 and 1")
    if not 0 < n < 1:
        raise ValueError(f"threshold: expected a number between 0 and 1, got {threshold!r}")
    return n


class FlowLog(Callback):
    """Log `gradient_flow` on a fixed batch while a Trainer trains.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> from ostinato.diagnostics import FlowLog
    >>> x = np.random.default_rng(0).uniform(0, 0.1, (64, 10, 1)).astype(np.float32)
    >>> log = FlowLog(x[:8], every=2)
    >>> gru = ost.nn.GRU(1, 8, batch_first=True, rng=0)
    >>> model = ost.nn.Sequential(gru, ost.nn.Linear(8, 1, rng=0))
    >>> trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2), callbacks=[log])
    >>> history = trainer.fit((x, x.cumsum(1)), epochs=2, progress=False)
    >>> [step for step, flow in log.flows]
    [2, 4]

    Args:
        x: the inputs of the batch; ``flows`` becomes a list of ``(step, Flow)``.
        every: steps between two measurements.
        threshold: see `gradient_flow`.
        echo: a function that is given a line for each measurement; None: none.

    Raises:
        TypeError: every is no whole number, threshold no number or echo no function.
        ValueError: every is less than 1, or threshold not between 0 and 1.
    """

    def __init__(
        self, x: Array, *, every: int = 100, threshold: float = 0.01, echo: Any = None
    ) -> None:
        if echo is not None and not callable(echo):
            raise TypeError(f"echo: expected a function, got {type(echo).__name__}")
        self.x, self.echo = x, echo
        self.every = _check.positive("every", every)
        self.threshold = _check_threshold(threshold)
        self.flows: list[tuple[int, Flow]] = []

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        """Measure, if it is time to.

        Args:
            trainer: the trainer.
            step: the number of the update, from 1 on.
            loss: not used.
            norm: not used.
        """
        if step % self.every == 0:
            flow = gradient_flow(
                trainer.model, trainer._placed(unwrapped(self.x)[0]), threshold=self.threshold
            )
            self.flows.append((step, flow))
            if self.echo is not None:
                self.echo(f"step {step}: {flow}")


readable(globals())
