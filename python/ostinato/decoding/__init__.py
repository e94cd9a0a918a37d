"""Decode: turn what a model gives into sequences of labels.

`ctc_greedy`, `ctc_beam_search` and `ctc_align` read logits of the CTC loss; a language model
(`NGram`, `StreamModel`) may join the beam search. `greedy`, `beam_search` and `sample` write with a
model, a stream or any function of one step, or with several at once (`Ensemble`).

>>> import numpy as np
>>> import ostinato as ost
>>> y = np.log([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]])[:, None]  # [T,B,V], class 0 is the blank
>>> ost.decoding.ctc_greedy(y)[0].tolist()
[1, 1]
>>> best = ost.decoding.ctc_beam_search(y)[0][0]
>>> best.labels.tolist(), round(float(np.exp(best.score)), 3)
([1], 0.556)
"""

from ._ctc import ctc_align, ctc_beam_search, ctc_greedy
from ._ensemble import Ensemble
from ._hypothesis import Hypothesis
from ._language import LanguageModel, NGram, StreamModel
from ._sampling import probabilities
from ._steps import beam_search, greedy, sample

__all__ = [
    "Ensemble",
    "Hypothesis",
    "LanguageModel",
    "NGram",
    "StreamModel",
    "beam_search",
    "ctc_align",
    "ctc_beam_search",
    "ctc_greedy",
    "greedy",
    "probabilities",
    "sample",
]
