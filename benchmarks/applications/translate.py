"""Measure ``train translate``: error rates or chrF on held-out texts, beside the same in PyTorch.

Both train with the same batches in the same order, learning rates and clipping; the weights that
PyTorch has learnt are then read by ostinato, so that both translate with the same beam search.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import common

from ostinato.tasks import _application, _pairs, translate

RUN = _application.Run(None, None, None, lambda line: print(line, flush=True))


def options_of(p: argparse.ArgumentParser) -> None:
    """Add the data and those options of the command that change the size of the task."""
    p.add_argument("data", nargs="*", help="as of train translate; none: cmudict")
    counts = ("epochs", "limit", "hidden", "embedding", "layers", "members", "batch", "beam")
    for name in (*counts, "pieces"):
        p.add_argument(f"--{name}", type=int)
    p.add_argument("--train-longest", type=int)
    dropouts = ("dropout", "piece-dropout", "word-dropout")
    for name in (*dropouts, "average", "length-penalty", "label-smoothing"):
        p.add_argument(f"--{name}", type=float)
    p.add_argument("--rate", "--lr", type=float)
    p.add_argument("--precision", choices=("float32", "bfloat16"))
    p.add_argument("--attention", choices=("luong", "dot"))
    p.add_argument(
        "--g2p-en",
        action="store_true",
        help="only measure the pretrained model of the package g2p-en on the held-out words of "
        "cmudict, most of which it has seen in its training",
    )


def ours(data: list[str], options: translate.TranslateOptions) -> dict[str, float]:
    """Train and measure with ostinato."""
    trained, pairs, names, watched = translate.prepare(data, options, RUN)
    _, spent = common.timed(lambda: translate._fit(trained, pairs, (names, watched), RUN))
    return {**measured(trained, pairs), **spent}


def measured(trained: translate.Trained, pairs: Any) -> dict[str, float]:
    """Return the figures of the held-out texts that are numbers."""
    figures = translate.measure(trained, pairs, trained.held_out, RUN)
    return {name: value for name, value in figures.items() if name != "task"}


def peer_model(
    torch: Any, sources: int, targets: int, options: translate.TranslateOptions, shared: bool
) -> Any:
    """Return the model in PyTorch, its parameters named as ours are."""
    nn, e, h = torch.nn, options.embedding, options.hidden
    cell = {"lstm": nn.LSTM, "gru": nn.GRU}[options.cell]

    class Peer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Module(), nn.Module()
            self.encoder.embed = nn.Embedding(sources, e)
            self.encoder.rnn = cell(e, h // 2, options.layers, bidirectional=True)
            self.decoder.embed = nn.Embedding(targets, e)
            self.decoder.rnn = cell(e, h, options.layers)
            between = [nn.Linear(h, e)] if shared else []
            last = nn.Linear(e if shared else h, targets)
            self.decoder.head = nn.Sequential(nn.Dropout(options.dropout), *between, last)
            if shared:
                self.decoder.embed.weight = last.weight = self.encoder.embed.weight
                between[0].weight.data *= e**-0.5
            self.decoder.attention = nn.Module()
            weighted = options.attention == "luong"
            self.decoder.attention.key = nn.Linear(h, h, bias=False) if weighted else nn.Identity()
            self.decoder.combine = nn.Linear(2 * h, h)
            self.dropout = nn.Dropout(options.dropout)

        def joined(self, s: Any) -> Any:
            layers, batch = s.shape[0] // 2, s.shape[1]
            return s.view(layers, 2, batch, -1).transpose(1, 2).reshape(layers, batch, h)

        def forward(self, source: Any, inputs: Any, lengths: Any) -> Any:
            rnn = nn.utils.rnn
            packed = rnn.pack_padded_sequence(
                self.encoder.embed(source), lengths, enforce_sorted=False
            )
            memory, state = self.encoder.rnn(packed)
            memory = self.dropout(rnn.pad_packed_sequence(memory)[0])
            gru = not isinstance(state, tuple)
            state = self.joined(state) if gru else tuple(map(self.joined, state))
            y, _ = self.decoder.rnn(self.decoder.embed(inputs), state)
            keys = self.decoder.attention.key(memory)
            scores = torch.matmul(y.transpose(0, 1), keys.permute(1, 2, 0))
            past = torch.arange(len(source))[None, None] >= lengths[:, None, None]
            weights = scores.masked_fill(past, -torch.inf).softmax(-1)
            mean = torch.matmul(weights, memory.transpose(0, 1)).transpose(0, 1)
            both = torch.cat([y, mean], -1)
            return self.decoder.head(torch.tanh(self.decoder.combine(both)))

    return Peer()


def peer(data: list[str], options: translate.TranslateOptions, threads: int) -> dict[str, float]:
    """Train the same model with PyTorch, and measure its weights with ostinato."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(options.seed)
    trained, pairs, names, _ = translate.prepare(data, options, RUN)
    sizes = translate._sizes(trained.source, trained.target)
    model = peer_model(torch, *sizes, options, trained.shared)
    loader = translate.batches(trained, pairs, names, True)
    rates = translate.schedule(options, options.epochs * len(loader))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)

    def run() -> None:
        step = 0
        for epoch in range(options.epochs):
            total = 0.0
            for x, target, lengths in loader.batches(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = rates(step)
                given = (torch.from_numpy(x[n]) for n in ("source", "inputs", "lengths"))
                logits, answer = model(*given), torch.from_numpy(target)
                on = torch.arange(len(answer))[:, None] < torch.from_numpy(lengths)
                loss = torch.nn.functional.cross_entropy(
                    logits[on], answer[on], label_smoothing=options.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step, total = step + 1, total + float(loss.detach())
            RUN.report(f"torch    epoch {epoch + 1}   loss {total / len(loader):.3f}")

    _, spent = common.timed(run)
    trained.model.load_state_dict({n: p.detach().numpy() for n, p in model.state_dict().items()})
    return {**measured(trained, pairs), **spent}


def g2p_en() -> dict[str, float]:
    """Return the error rates of g2p-en's model, run by the example, on the held-out words."""
    path = Path(__file__).parents[2] / "examples" / "pronounce.py"
    spec = importlib.util.spec_from_file_location("pronounce", path)
    assert spec is not None
    assert spec.loader is not None
    pronounce = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pronounce)
    file = pronounce.weights()
    if file is None:
        raise SystemExit("g2p-en is not installed: pip install --no-deps g2p-en==2.1.0")
    options = translate.TranslateOptions()
    pairs = _pairs.read([], options.longest, RUN.report)
    words = _pairs.split(pairs, options.held_out, options.longest)[2]
    found = pronounce.Speller(file).pronounce(words)
    return translate._errors(found, [pairs[word] for word in words])


def main() -> None:
    """Run all seeds, and print the table."""
    args = common.arguments(__doc__, options_of)
    if args.g2p_en:
        title = "g2p-en 2.1.0, greedy, on the held-out words of cmudict"
        common.table(title, {"g2p-en": [g2p_en()]}, args.out)
        return
    if ((args.members or 1) > 1 or args.average) and not args.no_peer:
        raise SystemExit("--members, --average: expected --no-peer beside them; the peer has none")
    fields = {f.name for f in dataclasses.fields(translate.TranslateOptions)}
    given = {n: v for n, v in vars(args).items() if n in fields and v is not None}
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        options = translate.TranslateOptions(**given, seed=seed)
        rows.setdefault("ostinato", []).append(ours(args.data, options))
        if not args.no_peer:
            rows.setdefault("torch", []).append(peer(args.data, options, args.threads))
    what = " ".join(args.data) or "cmudict"
    common.table(f"{what}, {args.threads} thread(s), {options.epochs} epochs", rows, args.out)


if __name__ == "__main__":
    main()
