"""Define losses: ``loss(y, target, lengths=None)`` gives ``(value, dy)``.

The value is the mean over what counts, and dy its gradient. ``lengths [B]`` leaves out the steps
past the end of each row: of y ``[T,B,...]``, or ``[B,T,...]`` with ``batch_first``. What is left
out may hold anything, NaN too, and gets a gradient of exactly zero. ``weights`` make it a weighted
mean.

>>> import numpy as np
>>> import ostinato as ost
>>> y, target = np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1), np.float32)
>>> value, dy = ost.losses.MSE()(y, target, lengths=[1])
>>> value, dy.ravel().tolist()
(1.0, [2.0, 0.0])
"""

from ._base import Loss
from ._base import _weights as _weights  # the losses of `tasks` check theirs in the same way
from ._classes import CrossEntropy, Focal
from ._ctc import CTC
from ._elementwise import MAE, MSE, BinaryCrossEntropy, BinaryFocal, Huber, Quantile

__all__ = [
    "CTC",
    "MAE",
    "MSE",
    "BinaryCrossEntropy",
    "BinaryFocal",
    "CrossEntropy",
    "Focal",
    "Huber",
    "Loss",
    "Quantile",
]
