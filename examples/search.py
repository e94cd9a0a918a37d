"""Search for the settings of a network, in as many terminals and on as many machines as there are.

The task is the adding problem (Hochreiter and Schmidhuber 1997). Start it several times with one
storage: the processes share the trials, none is made twice, and one that is stopped or killed is
continued by the same command.

    pip install 'ostinato[search]'
    python examples/search.py --storage adding.journal --trials 20 &
    python examples/search.py --storage adding.journal --trials 20

A storage is a file, or the URL of a database that several machines reach, such as
postgresql://user@host/name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import ostinato as ost

Array = npt.NDArray[np.float32]
SPACE: dict[str, Any] = {
    "cell": ["LSTM", "GRU", "RNN"],
    "size": (8, 48),
    "rate": (1e-3, 3e-2, "log"),
}


def adding(count: int, steps: int, seed: int) -> tuple[Array, Array]:
    """Return x ``[N,T,2]``, numbers and two marks in each, and the sum of the marked ones."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, steps, 2), np.float32)
    x[..., 0] = rng.random((count, steps))
    for row in x:
        row[rng.choice(steps, 2, replace=False), 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(1, keepdims=True)


def build(cell: str, size: int, rate: float) -> ost.Trainer:
    """Return a trainer of a network with these settings."""
    rnn = getattr(ost.nn, cell)(2, size, batch_first=True, rng=0)
    model = ost.nn.Sequential(
        rnn, ost.nn.Pool("last", batch_first=True), ost.nn.Linear(size, 1, rng=1)
    )
    return ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(rate), clip_norm=1.0)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Search, print the table of all trials, and return it."""
    parser = argparse.ArgumentParser(description="Search for settings, with other processes.")
    parser.add_argument("--storage", help="a file or the URL of a database; none: in memory")
    parser.add_argument("--study", help="the name of the study in the storage")
    parser.add_argument("--trials", type=int, default=20, help="in all, by all processes")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds until a trial is lost")
    a = parser.parse_args(arguments)
    train, valid = adding(2000, 20, seed=0), adding(500, 20, seed=1)
    shared = {"storage": a.storage, "study": a.study, "grace": a.grace}
    try:
        result = ost.search(
            build, SPACE, train, validation=valid, trials=a.trials, epochs=a.epochs, **shared
        )
    except (ImportError, ValueError) as error:
        raise SystemExit(f"search: {error}") from None
    print(result)
    return result


if __name__ == "__main__":
    main()
