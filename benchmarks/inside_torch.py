"""Our layers inside PyTorch models, beside those of torch.nn: python benchmarks/inside_torch.py.

A model is Linear, a recurrent layer, Linear; a call is its forward and backward pass, gradients of
all parameters and of the input included. Further rows are a PackedSequence, sequences with resets
(which torch runs step by step, or cut at the resets into padded pieces), the overhead of one step
without gradients, and the training of RecurrentPPO where sb3-contrib is installed. Each contender
is a process of its own and they take turns; answers are compared first; figures are medians over
the rounds, ratios those within a round.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import contenders
import ostinato as ost

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str = "LSTM"
    batch: int = 32
    hidden: int = 256
    steps: int = 50
    what: str = "train"  # or "packed", "resets", "step"
    peers: tuple[str, ...] = ("torch",)
    calls: int = 5


def rows(short: bool) -> list[Row]:
    """Return every row, in the order of the table."""
    sizes = (1, 8, 32, 64) if short else (1, 2, 4, 8, 16, 32, 64)
    out = [Row(f"{k}, B = {b}", k, b) for k in ("GRU", "LSTM") for b in sizes]
    out += [Row(f"{k}, PackedSequence, B = 32", k, what="packed") for k in ("GRU", "LSTM")]
    out += [
        Row(f"{k}, 3% resets, B = T = 128", k, 128, 256, 128, "resets", ("loop", "pieces"), 1)
        for k in ("GRU", "LSTM")
    ]
    step = Row("LSTM, one step, B = 1", "LSTM", 1, 128, 1, "step", ("functional", "torch"), 400)
    out += [step, replace(step, name="GRU, one step, B = 1", kind="GRU")]
    if importlib.util.find_spec("sb3_contrib") is not None:
        out.append(Row("RecurrentPPO, train()", what="ppo", calls=2))
    return out


# -- in a contender's process ---------------------------------------------------------------------


def _pieces(resets: Any) -> tuple[Any, Any]:
    """Return the rows of pieces between resets, padded ``[T',N]``, and where each row lies there.

    Rows are numbered ``t * B + b``.
    """
    steps, batch = resets.shape
    own = []
    for b in range(batch):
        cuts = [0, *(np.flatnonzero(resets[1:, b]) + 1), steps]
        own += [np.arange(first, last) * batch + b for first, last in itertools.pairwise(cuts)]
    longest = max(map(len, own))
    at = np.zeros((longest, len(own)), np.int64)
    back = np.zeros(steps * batch, np.int64)
    for n, piece in enumerate(own):
        at[: len(piece), n] = piece
        back[piece] = np.arange(len(piece)) * len(own) + n
    return at, back


def _recurrent(name: str, row: Row, core: Any) -> Callable[[Any], Any]:
    """Return what gives all outputs of the recurrent layer on ``[T,B,H]``."""
    import torch

    rng = np.random.default_rng(1)
    if row.what == "packed":
        lengths = torch.from_numpy(rng.integers(row.steps // 10, row.steps + 1, row.batch))

        def packed(x: Any) -> Any:
            given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return core(given)[0].data

        return packed
    if row.what != "resets":
        return lambda x: core(x)[0]
    flags = rng.random((row.steps, row.batch)) < 0.03
    resets, keep = torch.from_numpy(flags), torch.from_numpy(~flags)[..., None].float()
    if name == "ostinato":
        return lambda x: core(x, resets=resets)[0]
    if name == "pieces":
        at, back = map(torch.from_numpy, _pieces(flags))
        return lambda x: core(x.flatten(0, 1)[at])[0].flatten(0, 1)[back].view(*flags.shape, -1)

    def loop(x: Any) -> Any:
        out, state = [], [torch.zeros(1, row.batch, row.hidden)] * (1 + (row.kind == "LSTM"))
        for t in range(row.steps):
            state = [s * keep[t] for s in state]
            y, h = core(x[t : t + 1], tuple(state) if len(state) == 2 else state[0])
            state = list(h) if len(state) == 2 else [h]
            out.append(y)
        return torch.cat(out)

    return loop


def make(name: str, row: Row, threads: int) -> Callable[[], dict[str, Any]]:
    """Return a contender's call, which gives its answers."""
    import torch

    from ostinato.interop import torch as ost_torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    ost.set_num_threads(threads)
    if row.what == "ppo":
        return _ppo(name)
    h = row.hidden
    core = getattr(torch.nn if name != "ostinato" else ost_torch, row.kind)(h, h)
    head, tail = torch.nn.Linear(h, h), torch.nn.Linear(h, h)
    x = torch.randn(row.steps, row.batch, h)
    if row.what == "step":
        return _one_step(name, row, core, x)
    x.requires_grad_()
    middle = _recurrent(name, row, core)
    parameters = [*head.parameters(), *core.parameters(), *tail.parameters()]

    def train() -> dict[str, Any]:
        for p in (x, *parameters):
            p.grad = None
        y = tail(middle(head(x)))
        y.square().mean().backward()
        grads = {str(k): p.grad for k, p in enumerate((x, *parameters))}
        return {n: t.numpy() for n, t in {"y": y.detach(), **grads}.items()}

    return train


def _ppo(name: str) -> Callable[[], dict[str, Any]]:
    """Return train() of examples/recurrent_ppo.py, always on the same steps and parameters."""
    example = contenders.example("recurrent_ppo")
    policy = example.Policy if name == "ostinato" else "MlpLstmPolicy"
    # One epoch of ten, in the time that it takes with another rate.
    learner = example.model(policy, learning_rate=0.0, n_epochs=1)
    learner.learn(128)

    def train() -> dict[str, Any]:
        np.random.seed(0)  # noqa: NPY002  (which the learner draws from)
        learner.train()
        losses = learner.logger.name_to_value  # that of the policy alone is zero but for rounding
        return {n: np.array([losses[n]]) for n in ("train/loss", "train/value_loss")}

    return train


def _one_step(name: str, row: Row, core: Any, x: Any) -> Callable[[], dict[str, Any]]:
    import torch

    if name == "functional":
        weights, given = [p.detach().numpy() for p in core.parameters()], x.numpy()
        function = getattr(ost.functional, row.kind.lower())
        return lambda: {"y": function(given, *weights)[0]}

    def infer() -> dict[str, Any]:
        with torch.no_grad():
            return {"y": core(x)[0].numpy()}

    return infer


def main() -> None:
    """Run the rows and write the results."""

    def shown(row: Row, r: dict[str, Any]) -> str:
        cells = "  ".join(
            f"{n} {r['seconds'][n] * 1e3:9.3f} ({r['ratio'][n]:.2f}x)" for n in row.peers
        )
        if row.what == "step":
            cells += f"  over functional: {r['more']['functional'] * 1e6:+.1f} us"
        return cells

    contenders.main(__file__, __doc__, Row, rows, make, "their time over ours", shown)


if __name__ == "__main__":
    main()
