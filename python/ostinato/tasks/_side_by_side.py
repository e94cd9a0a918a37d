"""Train several networks at the same time, each on threads of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from .._runtime import get_num_threads, set_num_threads
from ..train import Callback, Trainer


class Ending(Callback):
    """Stop a run after a step once ``now`` is true."""

    now = False

    def on_step(self, trainer: Trainer, step: int, loss: float, norm: float) -> None:
        """Stop the run if it is to end.

        Args:
            trainer: the trainer of the run.
            step: not used.
            loss: not used.
            norm: not used.
        """
        if self.now:
            trainer.stop("another run has failed")


def side_by_side(runs: Sequence[Callable[[Ending], None]], *, in_turn: bool = False) -> None:
    """Call functions that train a network each, at the same time where there are threads.

    A run of its own on each thread does more than one run on all threads. While there are more runs
    than threads, up to twice as many less one go on together, so that three of them end on two
    threads at about the same time.

    Args:
        runs: functions that are called with a callback for their trainer.
        in_turn: whether to call one after the other, however many threads there are.

    Raises:
        BaseException: what one of them raised; the others end after their step.
    """
    threads, ending = get_num_threads(), Ending()
    if in_turn or min(threads, len(runs)) == 1:
        for run in runs:
            run(ending)
        return
    set_num_threads(max(1, threads // len(runs)))
    try:
        with ThreadPoolExecutor(min(len(runs), 2 * threads - 1)) as pool:
            try:
                for done in as_completed([pool.submit(run, ending) for run in runs]):
                    done.result()
            except BaseException:  # Ctrl-C, too: the pool waits for the other runs
                ending.now = True
                raise
    finally:
        set_num_threads(threads)
