"""Masks against Keras, where it is installed.

What a masked step does to outputs, states and gradients.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

from conftest import assert_close
from ostinato import nn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf: Any = pytest.importorskip(
        "tensorflow", reason="tensorflow is not installed: pip install 'ostinato[bench-all]'"
    )
    keras: Any = pytest.importorskip(
        "keras", reason="keras is not installed: pip install 'ostinato[bench-all]'"
    )
if keras.backend.backend() != "tensorflow":  # the gradients below are taken by TensorFlow's tape
    pytest.skip("keras runs on another backend", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GATES = {
    "RNN": [0],
    "LSTM": [0, 1, 2, 3],
    "GRU": [1, 0, 2],
}  # ours at each of theirs: i f c o; z r h


def blocks(kind: str, a: Any) -> Any:
    """Gate by gate in their order."""
    return np.concatenate([a[6 * k : 6 * k + 6] for k in GATES[kind]])


def pair(kind: str, both: bool, zero: bool) -> tuple[Any, Any]:
    """A layer of ours and one of theirs with the same weights."""
    ours = nn.__dict__[kind](3, 6, batch_first=True, bidirectional=both, rng=0)
    make = {"RNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU}[kind]
    theirs = make(6, return_sequences=True, zero_output_for_mask=zero)
    if both:
        theirs = keras.layers.Bidirectional(theirs)
    theirs.build((None, None, 3))
    weights = []
    for end in ("_l0", "_l0_reverse")[: 1 + both]:
        p = {n[: -len(end)]: a for n, a in ours.state_dict().items() if n.endswith(end)}

        bias = [blocks(kind, p["bias_ih"]), blocks(kind, p["bias_hh"])]
        weights += [blocks(kind, p["weight_ih"]).T, blocks(kind, p["weight_hh"]).T]
        weights.append(np.stack(bias) if kind == "GRU" else sum(bias))
    theirs.set_weights(weights)
    return ours, theirs


@pytest.mark.parametrize(("both", "masked"), [(False, "repeat"), (False, "zero"), (True, "zero")])
@pytest.mark.parametrize("kind", GATES)
def test_masks_are_those_of_keras(kind: str, both: bool, masked: str) -> None:
    """Keras' own two meanings; its Bidirectional always takes the second."""
    ours, theirs = pair(kind, both, masked == "zero")
    r = np.random.default_rng(0)
    x, mask = r.standard_normal((5, 12, 3)).astype(np.float32), r.random((5, 12)) < 0.6
    mask[0], mask[1] = True, False
    dy = r.standard_normal((5, 12, 6 * (1 + both))).astype(np.float32)
    with tf.GradientTape() as tape:
        leaf = tf.constant(x)
        tape.watch(leaf)
        want = theirs(leaf, mask=tf.constant(mask))
        total = tf.reduce_sum(want * dy)
    gradients = [g.numpy() for g in tape.gradient(total, [leaf, *theirs.trainable_weights])]
    (y, _), pullback = ours.vjp(x, mask=mask, masked=masked)
    dx, _ = pullback(dy)
    assert_close(y, want.numpy(), "y")
    assert_close(dx, gradients[0], "dx")
    for n, end in enumerate(("_l0", "_l0_reverse")[: 1 + both]):
        for k, name in enumerate(("weight_ih", "weight_hh")):
            assert_close(blocks(kind, ours.grads[name + end]).T, gradients[1 + 3 * n + k], name)
