"""Search for the settings of a model: trials of a space, with Optuna."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable
from .._figure import save_figure
from ._callbacks import Callback
from ._settings import sign_of
from ._study import Study, check_shared
from ._trainer import Trainer
from ._types import Diverged, Row


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    >>> import ostinato as ost
    >>> ost.train.Trial(0, {"lr": 0.1}, 0.5, "complete", 10).state
    'complete'

    Attributes:
        number: from 0 on.
        settings: what ``build`` was given.
        value: the best monitored figure; NaN for a trial that diverged, or that has none.
        state: "complete", "pruned" or "diverged".
        step: steps that were taken.
    """

    number: int
    settings: dict[str, Any]
    value: float
    state: str
    step: int


@dataclass(frozen=True, repr=False)
class SearchResult:
    """Hold what `ostinato.search` found; ``str()`` gives a table.

    >>> import ostinato as ost
    >>> best = ost.train.Trial(0, {"lr": 0.1}, 0.5, "complete", 10)
    >>> print(ost.train.SearchResult([best], best, "valid_loss", None))
    trial  valid_loss  state     steps  lr
        0         0.5  complete     10  0.1

    Attributes:
        trials: all of them, in their order.
        best: the one with the best figure.
        monitor: the name of the figure.
        trainer: that of the best trial, with its model as it was at its best; None where another
            process made that trial, or an earlier run of the search.
    """

    trials: list[Trial]
    best: Trial
    monitor: str
    trainer: Any

    def __repr__(self) -> str:
        names = list(self.best.settings)
        rows = [["trial", self.monitor, "state", "steps", *names]]
        better = sorted(self.trials, key=lambda t: (t is not self.best, t.number))
        for t in better:
            values = [_text(t.settings.get(n)) for n in names]
            rows.append([str(t.number), _text(t.value), t.state, str(t.step), *values])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        left = {2, *range(4, len(widths))}
        return "\n".join(
            "  ".join(
                text.ljust(w) if k in left else text.rjust(w)
                for k, (text, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the figure of every trial over each setting, with matplotlib.

        >>> import ostinato as ost
        >>> best = ost.train.Trial(0, {"lr": 0.1}, 0.5, "complete", 10)
        >>> figure = ost.train.SearchResult([best], best, "valid_loss", None).plot()
        >>> figure.axes[0].get_xlabel()
        'lr'

        Args:
            path: where to write the picture; None: nowhere.

        Returns:
            The figure of matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: the file cannot be written; what was there before stays.
            TypeError: path is no path.
            ValueError: matplotlib does not have this format.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot needs matplotlib: pip install 'ostinato[data]'") from None
        names = list(self.best.settings)
        figure = Figure(figsize=(3.2 * max(len(names), 1), 3.0), layout="constrained")
        panels = figure.subplots(1, max(len(names), 1), sharey=True, squeeze=False)[0]
        panels[0].set_ylabel(self.monitor)
        for name, panel in zip(names, panels):
            known = [t for t in self.trials if math.isfinite(t.value)]
            # An axis has numbers or names: among names, numbers are names as well.
            place = float if all(_is_number(t.settings[name]) for t in self.trials) else str
            for state, color in (("complete", "C0"), ("pruned", "C7"), ("diverged", "C3")):
                some = [t for t in known if t.state == state]
                x = [place(t.settings[name]) for t in some]
                panel.scatter(x, [t.value for t in some], color=color, label=state, s=18)
            at = place(self.best.settings[name])
            panel.scatter([at], [self.best.value], marker="*", color="C1", s=120, label="best")
            panel.set_xlabel(name)
            if _spans_decades([t.settings[name] for t in self.trials]):
                panel.set_xscale("log")
        panels[-1].legend(fontsize="small")
        if path is not None:
            save_figure(figure, path)
        return figure


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _spans_decades(values: list[Any]) -> bool:
    if not all(map(_is_number, values)):
        return False
    return bool(min(values) > 0 and max(values) >= 10 * min(values))


class _Report(Callback):
    """Tell the study of every validation, and stop a trial that it prunes."""

    def __init__(self, trial: Any, monitor: str, prune: bool, gone: type[Exception]) -> None:
        self.trial, self.monitor, self.prune, self.gone = trial, monitor, prune, gone
        self.pruned, self.step = False, 0

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        self.step = step

    def on_row(self, trainer: Trainer, row: Row) -> None:
        if self.monitor not in row or self.pruned:
            return
        try:
            self.trial.report(row[self.monitor], int(row["step"]))
        except self.gone:
            trainer.stop("given up by another process")
            return
        if self.prune and self.trial.should_prune():
            self.pruned = True
            trainer.stop("pruned")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ImportError("search needs Optuna: pip install 'ostinato[search]'") from None
    return optuna


def _check_space(space: Any) -> dict[str, Any]:
    """Return the space with a tuple (low, high, log) for each range, or a list of choices."""
    if not isinstance(space, Mapping) or not space:
        raise TypeError(f"space: expected a dict of names to ranges, got {type(space).__name__}")
    out: dict[str, Any] = {}
    for name, given in space.items():
        _check.text("space", name, "names of arguments of build")
        wanted = "(low, high), (low, high, 'log') of two numbers, or a list of choices"
        if isinstance(given, list) and given:
            out[name] = given
            continue
        log = isinstance(given, tuple) and len(given) == 3 and given[2] == "log"
        if not isinstance(given, tuple) or (len(given) != 2 and not log):
            raise TypeError(f"space[{name!r}]: expected {wanted}, got {given!r}")
        low, high = given[:2]
        whole = all(
            isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in (low, high)
        )
        if whole:
            low, high = int(low), int(high)
        else:
            low, high = (_check.number(f"space[{name!r}]", v, wanted) for v in (low, high))
        if not (low < high and math.isfinite(high - low)) or (log and low <= 0):
            both = "both finite and above 0" if log else "both finite"
            raise ValueError(f"space[{name!r}]: expected low < high, {both}, got {given!r}")
        out[name] = (low, high, log)
    return out


def _settings(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, list):  # by number: choices may be anything
            settings[name] = given[trial.suggest_categorical(name, list(range(len(given))))]
            continue
        low, high, log = given
        whole = isinstance(low, int) and isinstance(high, int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        settings[name] = suggest(name, low, high, log=log)
    return settings


def search(
    build: Callable[..., Trainer],
    space: Mapping[str, Any],
    train: Any,
    *,
    validation: Any,
    trials: int = 20,
    monitor: str = "valid_loss",
    mode: str | None = None,
    prune: bool = True,
    seed: int = 0,
    storage: Any = None,
    study: str | None = None,
    grace: float = 60.0,
    **fit: Any,
) -> SearchResult:
    """Train with settings drawn from a space, and return the trials and the best of them.

    Settings are proposed by Optuna (the extra ``search``) from the trials before, and a trial whose
    figure is worse than the median of those at the same step is ended early. Equal seeds give equal
    trials.

    With a storage, any number of processes, on any machines that reach it, share one search: each
    calls `search` with the same arguments, and together they make `trials` of them. A search that
    was interrupted continues with the trials that it has. A trial of a process that ends without a
    word is made anew by another one.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = np.random.default_rng(0).normal(size=(64, 5, 2)).astype(np.float32)
    >>> def build(size, lr):
    ...     model = ost.nn.Sequential(
    ...         ost.nn.GRU(2, size, batch_first=True, rng=0), ost.nn.Linear(size, 1, rng=1)
    ...     )
    ...     return ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(lr))
    >>> data = (x, x.sum(2, keepdims=True))
    >>> space = {"size": [4, 8], "lr": (1e-3, 1e-1, "log")}
    >>> result = ost.search(build, space, data, validation=data, trials=3, epochs=2)
    >>> sorted(result.best.settings), len(result.trials)
    (['lr', 'size'], 3)

    Args:
        build: returns a new `Trainer` for settings, which it is given by their names.
        space: names to what they are drawn from: ``(low, high)``, both included, whole numbers if
            both are; ``(low, high, "log")`` on a logarithmic scale; or a list of choices.
        train: data as in `Trainer.fit`; it serves every trial, so no iterator.
        validation: data on which trials are compared.
        trials: how many are made; with a storage, in all, by all processes and runs.
        monitor: the figure that is compared: "valid_loss", or "valid_" and the name of a metric.
        mode: "min" or "max": which way is better; None: as the metric says.
        prune: whether trials that do badly are ended early.
        seed: seed of the proposals, and of every run.
        storage: None: the trials are in memory. A path: a journal file, which processes on one
            machine or a shared file system write. A URL: a database, such as
            ``"sqlite:///study.db"`` or ``"postgresql://..."``, as SQLAlchemy has them. Or a storage
            of Optuna (4 or later).
        study: the name of the study in the storage; None: "search".
        grace: seconds without a sign of life from another process after which its trial is lost.
        **fit: further arguments of `Trainer.fit`, such as ``epochs``, ``patience`` and
            ``validate_every``.

    Returns:
        The trials, those of all processes, the best one, and its trainer if this process made it.

    Raises:
        ImportError: Optuna is not installed.
        RuntimeError: every trial diverged.
        TypeError: a space or a build of another form.
        ValueError: a range without numbers in it; no validation data; a storage that cannot be
            opened; or a study that was searched with another space, monitor, mode, seed, `prune` or
            arguments of `fit`.
    """
    _check.positive("trials", trials)
    _check.seed("seed", seed)
    checked, prune = _check_space(space), _check.flag("prune", prune)
    if validation is None:
        raise ValueError("validation: expected data on which trials are compared, got None")
    if not callable(build):
        raise TypeError(f"build: expected a function, got {type(build).__name__}")
    for name in ("monitor", "mode", "seed", "checkpoint", "resume", "log"):
        if name in fit:
            raise TypeError(f"{name}: expected no such argument of fit, which all trials share")
    name, grace = check_shared(storage, study, grace)
    optuna = _optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = {"space": space, "monitor": monitor, "mode": mode, "prune": prune, "seed": seed}
    settings["fit"] = {k: v for k, v in fit.items() if k != "progress"}
    try:
        with contextlib.closing(Study(optuna, settings, seed, storage, name, grace)) as made:
            options = {"progress": False, **fit, "seed": seed, "monitor": monitor, "mode": mode}
            options |= {"train": train, "validation": validation}
            return _Search(made, build, checked, options, prune).run(trials)
    finally:
        optuna.logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class _Search:
    """What the trials of a search have in common."""

    study: Study
    build: Callable[..., Trainer]
    space: Mapping[str, Any]
    fit: Mapping[str, Any]
    prune: bool

    def run(self, trials: int) -> SearchResult:
        """Make trials until there are as many."""
        own: tuple[int, Trainer] | None = None  # the best of this process
        lowest, sign, monitor = math.inf, 1.0, self.fit["monitor"]
        while (asked := self.study.ask(trials)) is not None:
            try:
                with self.study.alive(asked):
                    value, trainer, sign = self.trial(asked)
            except BaseException:
                self.study.leave(asked.number)
                raise
            if trainer is not None and sign * value < lowest:
                lowest, own = sign * value, (asked.number, trainer)
        there = [t for t in self.study.trials() if t.state != self.study.states.RUNNING]
        found = [_found(t, self.space) for t in there]  # others may want more and go on
        known = [t for t in found if math.isfinite(t.value)]
        if not known:
            raise RuntimeError(
                f"search: expected a trial that does not diverge, got {len(found)} that did"
            )
        if own is None:  # which way is better, a trainer says
            trainer = self.build(**known[0].settings)
            sign = sign_of(trainer, monitor, self.fit["mode"], True)
        best = min(known, key=lambda t: sign * t.value)
        mine = own is not None and own[0] == best.number
        return SearchResult(found, best, monitor, own[1] if own and mine else None)

    def trial(self, asked: Any) -> tuple[float, Trainer | None, float]:
        """Run a trial; return its figure, its trainer if the figure counts, and which way it is."""
        trainer = self.build(**_settings(asked, self.space))
        if not isinstance(trainer, Trainer):
            raise TypeError(f"build: expected it to return a Trainer, got {type(trainer).__name__}")
        monitor = self.fit["monitor"]
        sign = sign_of(trainer, monitor, self.fit["mode"], True)
        report = _Report(_Signed(asked, sign), monitor, self.prune, self.study.gone)
        trainer.callbacks.append(report)
        value, state = math.nan, "complete"
        try:
            history = trainer.fit(**self.fit)
        except Diverged:
            state = "diverged"
        else:
            value = math.nan if history.best is None else history.best[monitor]
            state = "pruned" if report.pruned else "complete"
        finally:
            trainer.callbacks.remove(report)
        kept = self.study.tell(asked, state, value, report.step, sign)
        return value, trainer if kept and math.isfinite(value) else None, sign


def _found(trial: Any, space: Mapping[str, Any]) -> Trial:
    """Return a trial as the study has it."""
    known = trial.user_attrs
    value = math.nan if known["figure"] is None else known["figure"]
    settings = {
        n: v[trial.params[n]] if isinstance(v, list) else trial.params[n] for n, v in space.items()
    }
    return Trial(trial.number, settings, value, known["state"], known["step"])


class _Signed:
    """A trial to which figures are told so that less is better."""

    def __init__(self, trial: Any, sign: float) -> None:
        self._trial, self._sign = trial, sign

    def report(self, value: float, step: int) -> None:
        self._trial.report(self._sign * value, step)

    def should_prune(self) -> bool:
        return bool(self._trial.should_prune())


readable(globals())
