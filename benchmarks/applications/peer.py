"""A model of ours as one of PyTorch: the same parameters, schedule and clipping."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ostinato import optim


def warm_up(args: argparse.Namespace) -> None:
    """Import PyTorch if it takes part, before anything is timed."""
    if not args.no_peer:
        import torch

        torch.set_num_threads(args.threads)


def share(ours: Any, theirs: Any, names: dict[str, str]) -> None:
    """Copy our parameters to a model of PyTorch; ``names`` maps beginnings of our names to its."""
    import torch

    theirs.load_state_dict(
        {_renamed(n, names): torch.from_numpy(a.copy()) for n, a in ours.state_dict().items()}
    )


def take_back(ours: Any, theirs: Any, names: dict[str, str]) -> None:
    """Copy the parameters of a model of PyTorch to ours, so that one code measures both."""
    trained = {n: t.detach().numpy() for n, t in theirs.state_dict().items()}
    ours.load_state_dict({n: np.array(trained[_renamed(n, names)]) for n in ours.state_dict()})


def _renamed(name: str, names: dict[str, str]) -> str:
    for begin, other in names.items():
        if name.startswith(begin):
            return other + name[len(begin) :]
    raise KeyError(name)


def fit(
    model: Any,
    loss: Callable[[Any], Any],
    batches: Iterable[Any],
    schedule: optim.Schedule,
    *,
    threads: int,
    betas: tuple[float, float] = (0.9, 0.999),
    decay: float = 0.0,
) -> None:
    """Train a model of PyTorch: Adam (AdamW with a decay), clipped to a norm of 1.

    Args:
        model: the model.
        loss: returns the loss of a batch.
        batches: one for each step.
        schedule: our schedule of the rate.
        threads: threads of PyTorch.
        betas: those of Adam.
        decay: decay of the weights.
    """
    import torch

    torch.set_num_threads(threads)
    model.train()
    adam = torch.optim.AdamW(model.parameters(), lr=schedule(0), betas=betas, weight_decay=decay)
    for step, batch in enumerate(batches):  # steps taken before
        adam.param_groups[0]["lr"] = schedule(step)
        adam.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    model.eval()
