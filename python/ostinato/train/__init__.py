"""The training loop: `Trainer`, callbacks, metrics, checkpoints.

>>> import numpy as np
>>> import ostinato as ost
>>> x = np.random.default_rng(0).uniform(0, 0.1, (200, 10, 1)).astype(np.float32)
>>> model = ost.nn.Sequential(ost.nn.RNN(1, 8, batch_first=True, rng=0), ost.nn.Linear(8, 1, rng=0))
>>> trainer = ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(1e-2))
>>> history = trainer.fit((x, x.cumsum(1)), epochs=20, progress=False)
>>> bool(history.rows[-1]["loss"] < history.rows[0]["loss"] / 5)
True
"""

from .._annotations import complete as _complete
from . import _averaging, _callbacks, _progress, _unfreezing, metrics
from ._averaging import WeightAverage
from ._callbacks import Callback, ScheduledSampling, TensorBoard
from ._checkpoint import Checkpoint
from ._parallel import Parallel, ParallelError
from ._search import SearchResult, Trial, search
from ._trainer import Trainer
from ._types import Diverged, History, Row
from ._unfreezing import GradualUnfreezing

__all__ = [
    "Callback",
    "Checkpoint",
    "Diverged",
    "GradualUnfreezing",
    "History",
    "Parallel",
    "ParallelError",
    "Row",
    "ScheduledSampling",
    "SearchResult",
    "TensorBoard",
    "Trainer",
    "Trial",
    "WeightAverage",
    "metrics",
    "search",
]

_complete(_averaging, _callbacks, _progress, _unfreezing, Trainer=Trainer)
