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

from adding_problem import Adding

import ostinato as ost

SPACE: dict[str, Any] = {
    "cell": ["LSTM", "GRU", "RNN"],
    "size": (8, 48),
    "rate": (1e-3, 3e-2, "log"),
}


def build(cell: str, size: int, rate: float) -> ost.Trainer:
    """Return a trainer of a network with these settings."""
    rnn = getattr(ost.nn, cell)(2, size, rng=0)
    model = ost.nn.Sequential(rnn, ost.nn.Linear(size, 1, rng=1))
    return ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(rate), clip_norm=1.0, outputs="last")


def main(arguments: Sequence[str] | None = None) -> Any:
    """Search, print the table of all trials, and return it."""
    parser = argparse.ArgumentParser(description="Search for settings, with other processes.")
    parser.add_argument("--storage", help="a file or the URL of a database; none: in memory")
    parser.add_argument("--study", help="the name of the study in the storage")
    parser.add_argument("--trials", type=int, default=20, help="in all, by all processes")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds until a trial is lost")
    a = parser.parse_args(arguments)
    train, valid = Adding(20, 40, 50, seed=0), Adding(20, 500, 1, seed=1)
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
