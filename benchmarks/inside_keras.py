"""Our layers inside Keras models, beside those of keras.layers: python benchmarks/inside_keras.py.

The backend is that of KERAS_BACKEND. A model is one recurrent layer and a Dense; "train" is
`train_on_batch`, "predict" is `predict_on_batch`. Answers are compared first; figures are medians
over interleaved rounds, ratios those within a round. One thread is timed by its CPU time, which
does not count the time for which the system gives the core to others; several by the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import ostinato as ost
from ostinato.interop import keras as ost_keras

LIMIT = 1e-4  # difference of predictions


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the seconds of a call."""
    start = clock()
    call()
    return clock() - start


def measured(kind: str, batch: int, given: argparse.Namespace) -> None:
    """Print the line of one size."""
    steps, hidden, rounds = given.steps, given.hidden, given.rounds
    clock = time.process_time if given.threads == 1 else time.perf_counter
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, steps, hidden)).astype("float32")
    y = rng.normal(size=(batch, 1)).astype("float32")
    models = []
    for module in (keras.layers, ost_keras):
        layer = getattr(module, kind)(hidden)
        model = keras.Sequential([keras.Input((steps, hidden)), layer, keras.layers.Dense(1)])
        model.compile("adam", "mse")
        models.append(model)
    theirs, ours = models
    ours.set_weights(theirs.get_weights())
    difference = np.abs(ours.predict_on_batch(x) - theirs.predict_on_batch(x)).max()
    if not difference <= LIMIT:
        raise SystemExit(f"{kind}, B = {batch}: answers differ by {difference}")
    for what in ("train", "predict"):
        calls: list[Callable[[], Any]] = []
        for model in models:
            if what == "train":
                calls.append(lambda m=model: m.train_on_batch(x, y))
            else:
                calls.append(lambda m=model: m.predict_on_batch(x))
            calls[-1]()  # compiles
        found = [[timed(call, clock) for call in calls] for _ in range(rounds)]
        medians = [1e3 * statistics.median(column) for column in zip(*found)]
        ratio = statistics.median(a / b for a, b in found)
        print(
            f"{kind:9} B={batch:3} {what:7} keras {medians[0]:8.2f} ms  ostinato "
            f"{medians[1]:8.2f} ms  {ratio:5.2f} x",
            flush=True,
        )


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=0, help="of all; 0: one for each core")
    given = parser.parse_args()
    if given.threads:  # before the backend has started its own, one for each core that it sees
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
        ost.set_num_threads(given.threads)
    print(f"Keras {keras.__version__} on {keras.config.backend()}")
    for kind in ("LSTM", "GRU", "SimpleRNN"):
        for batch in given.batch:
            measured(kind, batch, given)


if __name__ == "__main__":
    main()
