"""Define what decoders give."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._annotations import readable
from .._check import Array


class Hypothesis(NamedTuple):
    """Hold one sequence of labels that a decoder found.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> best = ost.decoding.ctc_beam_search(np.zeros((2, 1, 3)))[0][0]
    >>> best.labels.tolist(), round(best.log_probability, 3)
    ([1], -1.099)

    Attributes:
        labels: ``[n]`` whole numbers.
        score: by what hypotheses are ordered, the highest first.
        log_probability: of the labels by the model, in nats, without a language model, a bonus or a
            penalty of length.
        ended: whether the sequence has its end; False where it was cut after the most steps.
    """

    labels: npt.NDArray[np.int64]
    score: float
    log_probability: float
    ended: bool = True


def log_softmax(y: Array) -> Array:
    """Return float64 logarithms of the probabilities on the last axis."""
    z = y.astype(np.float64)
    # A logit of -inf is probability 0, and so is one that is farther below than any float.
    with np.errstate(divide="ignore", over="ignore"):
        z = z - z.max(-1, keepdims=True)
        out: Array = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return out


def refuse_unusable(name: str, y: Any) -> None:
    """Raise where rows of logits are no distribution: NaN, infinity, or all of them -infinity."""
    if not np.can_cast(y.dtype, np.float64, "same_kind"):  # bfloat16 can be, and text cannot
        raise TypeError(f"{name}: expected logits that are real numbers, got dtype {y.dtype}")
    if y.size and not np.isfinite(y.max(-1)).all():
        raise ValueError(
            f"{name}: expected numbers, of which some on the last axis are finite, got NaN, "
            "infinity or minus infinity alone"
        )


readable(globals())
