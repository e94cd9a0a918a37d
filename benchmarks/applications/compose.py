"""Measure `train compose` on O'Neill's tunes, beside the same network in PyTorch.

Needs the package music21 (`pip install --no-deps music21`), whose files are read as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import peer

from ostinato.tasks import _application, compose, text
from ostinato.tasks.text import CharModel, trainer_of

NAMES = {"0.": "embed.", "1.": "rnn.", "3.": "head."}


def torch_fit(chars: CharModel, tunes: list[str], threads: int) -> None:
    """Train the network in PyTorch, from our initial values on our batches.

    PyTorch cannot reset states within a batch, so they are carried on from tune to tune.
    """
    import torch
    from torch import nn

    o = chars.options

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(len(chars.alphabet), text.EMBEDDING)
            self.rnn = nn.LSTM(text.EMBEDDING, o.hidden)
            self.drop = nn.Dropout(o.dropout)
            self.head = nn.Linear(o.hidden, len(chars.alphabet))
            self.state: Any = None

        def forward(self, x: Any) -> Any:
            y, (h, c) = self.rnn(self.embed(x), self.state)
            self.state = h.detach(), c.detach()
            return self.head(self.drop(y))

    loader = compose.TuneLoader(chars, tunes)

    def batches() -> Any:
        for step in range(o.steps):
            at = step % len(loader)
            if at == 0:
                turn, model.state = loader.batches(0), None
            x, target, _ = next(turn)
            yield torch.from_numpy(x), torch.from_numpy(target)

    def loss(batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    model = Network()
    torch.manual_seed(o.seed)
    peer.share(chars.model, model, NAMES)
    schedule = trainer_of(chars).optimizer.schedule
    peer.fit(model, loss, batches(), schedule, threads=threads, betas=(0.9, 0.99), decay=0.01)
    peer.take_back(chars.model, model, NAMES)


def measure(
    seed: int, written: int, fit: Callable[[CharModel, list[str], list[str]], None]
) -> dict[str, float]:
    """Train by ``fit``, on the tunes and from the initial values of the command, and measure."""
    tunes = compose.read()
    own, valid, test = compose._parts(tunes)
    chars = compose._fresh(tunes, compose.ComposeOptions(seed=seed))
    _, times = common.timed(lambda: fit(chars, own, valid))
    return {
        "bits per character": compose.bits_per_char(chars, test),
        "5-gram's": compose.ngram_bits(chars, own, test),
        **shares(compose.share_parsed(chars, written, seed)),
        "CPU seconds": times["cpu_seconds"],
    }


def fit(chars: CharModel, own: list[str], valid: list[str]) -> None:
    """Train as the command does, with its validation."""
    options = compose.ComposeOptions(seed=chars.options.seed)
    run = _application.Run(None, None, None, lambda line: print(line, flush=True))
    compose._fit(chars, own, valid, options, run)


def shares(figures: dict[str, Any]) -> dict[str, float]:
    """Return the shares of tunes that parse and of full bars, in percent."""
    return {
        "tunes that parse, %": 100 * figures["parsed"],
        "full bars, %": 100 * figures["full_bars"],
    }


def main() -> None:
    """Print the table."""
    args = common.arguments(__doc__)
    peer.warm_up(args)
    written = 100
    rows = {"ostinato": [measure(seed, written, fit) for seed in args.seeds]}
    if not args.no_peer:

        def peers(chars: CharModel, own: list[str], _valid: list[str]) -> None:
            torch_fit(chars, own, args.threads)

        rows["torch"] = [measure(seed, written, peers) for seed in args.seeds]
    common.table("Tunes", rows, args.out)


if __name__ == "__main__":
    main()
