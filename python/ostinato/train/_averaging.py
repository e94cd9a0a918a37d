"""A callback that averages the parameters over the last updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _device
from .._annotations import readable
from ..nn import Layer
from ._callbacks import Callback
from ._restore import split_parameters

if TYPE_CHECKING:
    from ._trainer import Trainer


class WeightAverage(Callback):
    """Keep a mean of the parameters, in which older ones count less and less.

    After update n of a run it is ``d mean + (1 - d) parameters``, with ``d = min(decay, (1 + n) /
    (10 + n))``, so that the initial parameters are soon forgotten. It helps most while the learning
    rate is high; at the end of a schedule that falls to almost nothing, little. The run itself goes
    on as without it: `copy_to` puts the mean into a model, after `Trainer.fit` or in a callback.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Linear(2, 1, rng=0)
    >>> average = ost.train.WeightAverage(decay=0.99)
    >>> trainer = ost.Trainer(
    ...     model, ost.losses.MSE(), ost.optim.SGD(0.1), callbacks=[average]
    ... )
    >>> x = np.random.default_rng(0).normal(size=(64, 1, 2)).astype(np.float32)
    >>> _ = trainer.fit(x, x.sum(2, keepdims=True), epochs=9, batch_size=8, progress=False)
    >>> average.copy_to(model)
    >>> model.parameters()["weight"].round(2).tolist()
    [[1.0, 1.0]]

    A run that is resumed begins a new mean, from the parameters that it is resumed with: it is no
    part of a checkpoint.

    Args:
        decay: d, in [0, 1): about ``1 / (1 - d)`` updates count. 0 is the last one alone.

    Raises:
        TypeError: decay is no number.
        ValueError: decay is out of its range.

    Attributes:
        updates: how many are in the mean.

    Source: Polyak, Juditsky (1992), "Acceleration of stochastic approximation by averaging".
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = _check.finite("decay", decay)
        if self.decay >= 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}")
        self.updates = 0
        self._model: Any = None
        self._mean: Any = None

    def on_start(self, trainer: Trainer) -> None:
        self.updates = 0
        self._model = trainer.model
        self._mean = trainer.model.flat.astype(np.float64)

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        # In this form a frozen parameter keeps its bits.
        self._mean += (1 - decay) * (trainer.model.flat - self._mean)

    def copy_to(self, model: Layer) -> None:
        """Put the mean in the place of the parameters of a model.

        Args:
            model: the model that was trained, or one of the same layers.

        Raises:
            TypeError: something that is no layer.
            ValueError: no update was made, or a model of other parameters.
        """
        if not isinstance(model, Layer):
            raise TypeError(f"model: expected a Layer, got {type(model).__name__}")
        if not self.updates:
            raise ValueError("copy_to: expected a run with an update before it, got none")
        mean = split_parameters(self._model, _device.host(self._mean))
        shapes = {name: a.shape for name, a in mean.items()}
        given = {name: view.shape for name, view in model.parameters().items()}
        if given != shapes:
            wrong = next(n for n in {**shapes, **given} if given.get(n) != shapes.get(n))
            raise ValueError(
                f"model: expected the parameters of the one that was trained, with {wrong} of "
                f"shape {shapes.get(wrong)}, got {given.get(wrong)}"
            )
        with model.write() as p:
            for name, view in p.items():
                view[...] = _device.like(mean[name].astype(view.dtype), view)


readable(globals())
