"""Train the last layer of a model first, and the others one after the other."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import _check
from .._annotations import readable
from ..nn import Layer, layer_groups
from ._callbacks import Callback

if TYPE_CHECKING:
    from ._trainer import Trainer


class GradualUnfreezing(Callback):
    """Freeze all but the last group of parameters, and take in one more after every so many steps.

    A new head is random at first, and its gradients would spoil what lies below. Groups are the
    layers of the model, from the last to the first. What was frozen before the run stays frozen,
    and at its end all else is trained again, however it ends. A resumed run continues with the
    groups of its step.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> model = ost.nn.Sequential(rnn=ost.nn.GRU(2, 4, batch_first=True), head=ost.nn.Linear(4, 1))
    >>> unfreezing = ost.train.GradualUnfreezing(every=5)
    >>> trainer = ost.Trainer(model, ost.losses.MSE(), callbacks=[unfreezing])
    >>> x, before = np.ones((8, 3, 2), np.float32), model.state_dict()
    >>> _ = trainer.fit((x, x[..., :1]), steps=5, epochs=5, progress=False)
    >>> [n for n, a in model.state_dict().items() if (a != before[n]).any()]
    ['head.weight', 'head.bias']

    Args:
        every: steps from one group to the next.
        groups: patterns of names, the group that is trained first in front, such as ``["head.*",
            "rnn.*_l1*", "rnn.*_l0*"]``; a list of patterns for a group of several. What is in no
            group is trained from the start. None: the layers of the model, the last one first; see
            `nn.layer_groups`.

    Raises:
        KeyError: when a run starts, a pattern that matches no parameter.
        TypeError: groups that are no patterns.
        ValueError: every is less than 1, or there is no group.
    """

    def __init__(self, every: int, groups: Sequence[str | Sequence[str]] | None = None) -> None:
        self.every = _check.positive("every", every)
        self.groups = None if groups is None else _patterns(groups)
        self._waiting: list[list[str]] = []  # names of each group that is frozen, the next first
        self._taken = 0

    def on_start(self, trainer: Trainer) -> None:
        model = trainer.model
        self._waiting, self._taken = [], 0
        for names in self._named(model)[1:]:
            own = [n for n in names if model._block.entry(model._prefix + n).trainable]
            for name in own:
                model.freeze(glob.escape(name))
            self._waiting.append(own)
        self._follow(model, trainer.at_step)

    def _named(self, model: Layer) -> list[list[str]]:
        """Return the names of each group, the first one to be trained in front; checked."""
        if self.groups is None:
            return layer_groups(model)[::-1]
        names, out, seen = list(model.parameters()), [], set[str]()
        for group in self.groups:
            found: list[str] = []
            for pattern in group:
                matched = fnmatch.filter(names, pattern)
                if not matched:
                    raise KeyError(
                        f"groups: expected to match a parameter among {', '.join(names)}, got "
                        f"{pattern!r}"
                    )
                found += [n for n in matched if n not in seen]
                seen.update(matched)
            out.append(found)
        return out

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        self._follow(trainer.model, step)

    def _follow(self, model: Layer, step: int) -> None:
        """Take in the groups whose time has come after so many steps."""
        while self._taken < min(step // self.every, len(self._waiting)):
            self._unfreeze(model, self._waiting[self._taken])
            self._taken += 1

    def on_end(self, trainer: Trainer) -> None:
        for names in self._waiting[self._taken :]:
            self._unfreeze(trainer.model, names)
        self._waiting, self._taken = [], 0

    @staticmethod
    def _unfreeze(model: Layer, names: list[str]) -> None:
        for name in names:
            model.unfreeze(glob.escape(name))


def _patterns(groups: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Return each group as a list of patterns, checked."""
    if isinstance(groups, str) or not isinstance(groups, (list, tuple)):
        raise TypeError(f"groups: expected a list of patterns, got {type(groups).__name__}")
    out = [
        [g] if isinstance(g, str) else _check.patterns(f"groups[{k}]", g)
        for k, g in enumerate(groups)
    ]
    if not out:
        raise ValueError("groups: expected at least one group, got none")
    return out


readable(globals())
