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

from ._clipping import clip_by_norm, clip_by_value, global_norm
from ._groups import discriminative
from ._optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from ._schedules import (
    Constant,
    Cosine,
    Exponential,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    Warmup,
)

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
    "discriminative",
    "global_norm",
]
