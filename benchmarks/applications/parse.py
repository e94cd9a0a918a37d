"""ListOps: a TreeLSTM over the trees and an LSTM over the tokens, and the same in PyTorch.

All are trained with the command's options, from the same initial parameters and on the same batches
in the same order; what is held out is the same for all seeds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import common
import numpy as np

import ostinato as ost
from ostinato.tasks import listops, parse
from ostinato.tasks._application import Run


def say(line: str) -> None:
    """Report on standard error, so that standard output has the table alone."""
    print(line, file=sys.stderr, flush=True)


def ours(model: str, seed: int, **given: Any) -> dict[str, float]:
    """Return the figures of ostinato: accuracy, and the seconds of the whole command."""
    options = parse.ParseOptions(model=model, seed=seed, **given)
    figures, times = common.timed(lambda: parse.train([], options, Run(None, None, None, say)))
    return {"right (%)": 100 * figures["accuracy"], **times}


def tree_lstm(torch: Any, x: Any, trees: ost.Trees, p: dict[str, Any]) -> Any:
    """Return h of all nodes, in their order: a child-sum TreeLSTM, level by level."""
    size, levels = p["tree.bias"].shape[0] // 4, trees.levels()
    rows = p["embed.weight"][torch.from_numpy(x[levels.order])]
    z = rows @ p["tree.weight_ih"].T + p["tree.bias"]
    h, c = [], []
    below: tuple[Any, Any] | None = None
    for level in levels.levels:
        a = z[level.nodes]
        iog, carried = a[:, : 3 * size], 0.0
        if below is not None:
            child, parent = torch.from_numpy(level.child), torch.from_numpy(level.parent)
            h_k, c_k = below[0][child], below[1][child]
            zeros = a.new_zeros(len(a), size)
            iog = iog + zeros.index_add(0, parent, h_k) @ p["tree.weight_hh"][: 3 * size].T
            f = torch.sigmoid(a[parent, 3 * size :] + h_k @ p["tree.weight_hh"][3 * size :].T)
            carried = zeros.index_add(0, parent, f * c_k)
        i, o, g = iog.split(size, 1)
        c.append(torch.sigmoid(i) * torch.tanh(g) + carried)
        h.append(torch.sigmoid(o) * torch.tanh(c[-1]))
        below = torch.cat(h), torch.cat(c)
    assert below is not None
    return below[0][torch.from_numpy(levels.place)]


def sequence_lstm(torch: Any, lstm: Any, x: ost.Ragged, p: dict[str, Any]) -> Any:
    """Return h of all steps of sequences of different lengths, one after the other, packed."""
    parts = torch.from_numpy(x.rows).split(x.lengths.tolist())
    rows = [p["embed.weight"][part] for part in parts]
    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    return torch.cat(torch.nn.utils.rnn.unpack_sequence(lstm(packed)[0]))


def roots_of(x: Any) -> Any:
    """Return the rows of the whole expressions: the roots of trees, the last steps of sequences."""
    return x.roots if isinstance(x, ost.Trees) else x.offsets[1:] - 1


def theirs(model: str, seed: int, **given: Any) -> dict[str, float]:
    """Return the figures of the same network in PyTorch."""
    import torch

    options = parse.ParseOptions(model=model, seed=seed, **given)

    def run() -> float:
        parts = parse._of_listops(options)
        known = {t for part in parts for e in part.expressions for t in (*e.labels, "]")}
        classes = sorted({label for part in parts for label in part.labels})
        parser = parse.Parser(options, sorted(known), classes, listops=True, rng=seed)
        data = [(parser.inputs(d.expressions), parser.targets(d.labels)) for d in parts[1:]]
        p = {n: torch.tensor(a, requires_grad=True) for n, a in parser.network.state_dict().items()}
        lstm = None
        if model == "lstm":
            lstm = torch.nn.LSTM(options.embedding, options.hidden)
            with torch.no_grad():
                for name, value in lstm.named_parameters():
                    value.copy_(p.pop(f"rnn.{name}"))
            p |= {f"rnn.{name}": value for name, value in lstm.named_parameters()}

        def logits(x: Any) -> Any:
            h = (
                tree_lstm(torch, x.rows, x, p)
                if model == "tree"
                else sequence_lstm(torch, lstm, x, p)
            )
            return h @ p["head.weight"].T + p["head.bias"]

        def right(x: Any, target: Any) -> float:
            with torch.no_grad():
                found = [
                    logits(some)[roots_of(some)].argmax(1).numpy()
                    for k in range(0, len(x), 256)
                    for some in [x.take(np.arange(k, min(k + 256, len(x))))]
                ]
            return float((np.concatenate(found) == target).mean())

        return _train(torch, p, options, (parser._data(parts[0]), *data), logits, right)

    value, times = common.timed(run)
    return {"right (%)": 100 * value, **times}


def _train(
    torch: Any,
    p: dict[str, Any],
    options: parse.ParseOptions,
    data: Sequence[tuple[Any, ...]],
    logits: Any,
    right: Any,
) -> float:
    """Return the accuracy on what is held out, with the parameters of the best epoch."""
    (x, target, *more), valid, test = data
    optimizer = torch.optim.Adam(list(p.values()))
    step, size = 0, options.batch
    total = options.epochs * -(-len(x) // size)
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for epoch in range(options.epochs):
        order = np.random.default_rng((options.seed, epoch)).permutation(len(x))
        for k in range(0, len(order), size):
            rows = order[k : k + size]
            share = (1 + math.cos(math.pi * step / total)) / 2
            for group in optimizer.param_groups:
                group["lr"] = options.rate * (1 / 20 + (1 - 1 / 20) * share)
            optimizer.zero_grad()
            batch = x.take(rows)
            y = logits(batch)
            if more:  # the labels of all nodes
                at = np.concatenate([np.arange(x.offsets[r], x.offsets[r + 1]) for r in rows])
                on = np.flatnonzero(more[0]["weights"][at])
                y, labels = y[on], target[at[on]]
            else:
                y, labels = y[roots_of(batch)], target[rows]
            torch.nn.functional.cross_entropy(y, torch.from_numpy(labels)).backward()
            torch.nn.utils.clip_grad_norm_(list(p.values()), parse.CLIP)
            optimizer.step()
            step += 1
        now = right(*valid)
        say(f"torch epoch {epoch + 1}: {now:.2%}")
        if now > best[0]:
            best = now, {n: a.detach().clone() for n, a in p.items()}
    with torch.no_grad():
        for n, a in p.items():
            a.copy_(best[1][n])
    return float(right(*test))


def check(torch: Any) -> None:
    """Assert that both networks give the same outputs, before anything is timed."""
    options = parse.ParseOptions(hidden=16, embedding=8)
    made = listops.generate(20, seed=1)
    known = sorted({t for e in made for t in e.labels})
    parser = parse.Parser(options, known, [str(k) for k in range(10)], rng=0)
    x = parser.inputs(made)
    p = {n: torch.tensor(a) for n, a in parser.network.state_dict().items()}
    got = tree_lstm(torch, x.rows, x, p) @ p["head.weight"].T + p["head.bias"]
    np.testing.assert_allclose(parser.network(x)[0], got[x.roots].numpy(), atol=1e-5)


def main() -> None:
    """Print the table."""
    args = common.arguments(__doc__)
    rows: dict[str, list[dict[str, float]]] = {}
    for model, name in (("tree", "TreeLSTM"), ("lstm", "LSTM")):
        rows[f"ostinato {name}"] = [ours(model, seed) for seed in args.seeds]
        if not args.no_peer:
            import torch

            torch.set_num_threads(args.threads)
            check(torch)
            rows[f"PyTorch {name}"] = [theirs(model, seed) for seed in args.seeds]
    common.table(f"ListOps, {len(args.seeds)} seeds, {args.threads} threads", rows, args.out)


if __name__ == "__main__":
    main()
