"""Measure ``train transcribe``: error rates on held-out clips over seeds, and PyTorch beside it.

    python benchmarks/applications/transcribe.py FOLDER TRANSCRIPTS --digits en

The network, the clips, their features, the augmentation, the schedule and the search are the same;
PyTorch computes the network, the CTC loss and AdamW. ``--epochs 2`` measures times alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from common import arguments, table, timed

import ostinato as ost
from ostinato.tasks import transcribe
from ostinato.tasks._clips import Clip
from ostinato.tasks._recognizer import Augmented, Recognizer, TranscribeOptions, statistics


def own_arguments() -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return the options of this benchmark, and those that all have."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("data", nargs="*", help="folder of WAV files, file of transcripts")
    p.add_argument("--digits", default="")
    p.add_argument("--strip-accents", action="store_true")
    p.add_argument("--epochs", type=int, default=TranscribeOptions.epochs)
    own, rest = p.parse_known_args()
    sys.argv[1:] = rest
    return own, arguments(__doc__)


def figures_of(recognizer: Recognizer, held_out: Sequence[Clip], times: dict[str, float]) -> Any:
    found = transcribe.measure(recognizer, held_out)[0]
    return {n: found[n] for n in ("cer", "wer", "cer_greedy")} | times


class Peer:
    """The network of a recogniser in PyTorch, with its initial parameters."""

    def __init__(self, recognizer: Recognizer) -> None:
        import torch

        o, nn = recognizer.options, torch.nn
        self.torch, self.options = torch, o
        size, drop = o.hidden, o.dropout
        parts = {
            "first": nn.Conv1d(o.bands, size, 5, padding=2),
            "second": nn.Conv1d(size, size, 5, stride=o.stride, padding=2),
            "norm": nn.LayerNorm(size),
            "rnn": nn.LSTM(size, size, o.layers, bidirectional=True, dropout=drop),
            "head": nn.Linear(2 * size, len(recognizer.alphabet) + 1),
        }
        self.net = nn.ModuleDict(parts)
        state = recognizer.model.state_dict()
        self.net.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in state.items()})

    def logits(self, x: Sequence[np.ndarray]) -> tuple[Any, Any]:
        """Return padded logits ``[T',B,V]`` and how many outputs each sound has."""
        torch, f, net = self.torch, self.torch.nn.functional, self.net
        rnn = torch.nn.utils.rnn
        lengths = torch.tensor([len(a) for a in x])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None])[:, None]
        h = rnn.pad_sequence([torch.from_numpy(a) for a in x], batch_first=True).transpose(1, 2)
        h = f.gelu(net["first"](h)) * mask
        h = f.gelu(net["second"](h)).permute(2, 0, 1)
        h = f.dropout(net["norm"](h), self.options.dropout, net.training)
        ends = -(-lengths // self.options.stride)
        packed = rnn.pack_padded_sequence(h, ends, enforce_sorted=False)
        y = rnn.pad_packed_sequence(net["rnn"](packed)[0])[0]
        return net["head"](f.dropout(y, self.options.dropout, net.training)), ends

    def train(self, data: Augmented) -> None:
        """Train as `transcribe.train` does."""
        torch, o = self.torch, self.options
        steps = o.epochs * len(data)
        schedule = ost.optim.Warmup(
            ost.optim.Cosine(o.rate, steps=steps, final=o.rate / 50),
            steps=max(1, min(60, steps // 10)),
        )
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        rest = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=o.rate, betas=(0.9, 0.98))
        step = 0
        for epoch in range(o.epochs):
            for x, labels in data.batches(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = schedule(step)
                y, ends = self.logits(x)
                loss = torch.nn.functional.ctc_loss(
                    y.log_softmax(-1),
                    torch.from_numpy(np.concatenate(labels)),
                    ends,
                    torch.tensor([len(a) for a in labels]),
                    reduction="none",
                    zero_infinity=True,
                ).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
                optimizer.step()
                step += 1

    def put_into(self, recognizer: Recognizer) -> None:
        """Give a recogniser of ours the trained parameters, for the search."""
        self.net.eval()
        state = {n: p.detach().numpy() for n, p in self.net.state_dict().items()}
        recognizer.model.load_state_dict(state)


def same_answers(peer: Peer, recognizer: Recognizer, x: list[np.ndarray]) -> None:
    """Raise unless both networks give the same logits."""
    peer.net.eval()
    with peer.torch.no_grad():
        y, ends = peer.logits(x)
    for b, ours in enumerate(recognizer.logits(x)):
        if not np.allclose(y[: ends[b], b].numpy(), ours, atol=1e-4):
            raise SystemExit("the networks differ")
    peer.net.train()


def main() -> None:
    """Run all seeds and print the table."""
    own, args = own_arguments()
    base = TranscribeOptions(epochs=own.epochs, digits=own.digits, strip_accents=own.strip_accents)
    rows: dict[str, list[Any]] = {"ostinato": []} | ({} if args.no_peer else {"PyTorch": []})
    for seed in args.seeds:
        options = replace(base, seed=seed)
        clips = transcribe.read(own.data, options, print)
        some, held_out = transcribe.divide(clips, options)
        some = transcribe.fitting(some, options, print)
        recognizer, times = timed(lambda s=some, o=options: transcribe.train(s, o))
        rows["ostinato"].append(figures_of(recognizer, held_out, times))
        print(time.strftime("%H:%M"), seed, rows["ostinato"][-1], flush=True)
        if args.no_peer:
            continue
        other = Recognizer(options, recognizer.alphabet, *statistics(some, options))
        peer = Peer(other)
        peer.torch.set_num_threads(args.threads)
        peer.torch.manual_seed(seed)
        same_answers(peer, other, [other.features(c.samples) for c in held_out[:4]])
        _, times = timed(lambda p=peer, s=some, r=other: p.train(Augmented(s, r)))
        peer.put_into(other)
        other.language = recognizer.language
        rows["PyTorch"].append(figures_of(other, held_out, times))
        print(time.strftime("%H:%M"), seed, rows["PyTorch"][-1], flush=True)
    table(f"train transcribe, {base.epochs} epochs", rows, args.out)


if __name__ == "__main__":
    main()
