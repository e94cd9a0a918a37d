"""Commands that ``mpiexec`` has started as several processes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

from ..train import Parallel

# Variables by which launchers tell a process how many there are: Open MPI, and those of PMI.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# That of a launcher which does not; in SLURM, a shell that srun has started has it too.
RANK, TASKS = "PMIX_RANK", "SLURM_STEP_NUM_TASKS"
ALONE = ("forecast", "series")  # commands of train that do not use a Trainer


def launched() -> int:
    """Return how many processes a launcher has started, 0 if it does not say."""
    for name in (*SIZES, *((TASKS,) if RANK in os.environ else ())):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0 if RANK in os.environ else 1


@contextlib.contextmanager
def ranks(args: argparse.Namespace) -> Iterator[None]:
    """Let ``train`` run on all processes that were started together.

    Rank 0 has the output and the files; the others write nothing but their errors.
    """
    count = launched()
    if args.command != "train" or count == 1:
        yield
        return
    _check_alone(args.task, count)
    with Parallel() as parallel:
        if count and parallel.size != count:
            raise ValueError(
                f"mpiexec has started {count} processes, and mpi4py finds {parallel.size}: "
                "expected both to be of one installation of MPI; reinstall mpi4py, or call the "
                "mpiexec of the library that it uses"
            )
        args.parallel = None if parallel.size == 1 else parallel
        _check_alone(args.task, parallel.size)  # what a launcher that tells no size has started
        with contextlib.ExitStack() as stack:
            if parallel.rank:
                args.save = args.plot = None
                args.overwrite = args.resume = False
                nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nothing))
                stack.enter_context(contextlib.redirect_stderr(nothing))
            yield


def _check_alone(task: str, count: int) -> None:
    """Raise if several processes run a command that does not divide its work."""
    if task in ALONE and count > 1:
        raise ValueError(
            f"train {task}: expected one process, since it does not train by a Trainer, got "
            f"{count} that mpiexec has started"
        )


def repeats(args: argparse.Namespace, error: BaseException) -> bool:
    """Return whether a rank before this one has failed in the same way, and says so."""
    parallel: Parallel | None = args.parallel
    if parallel is None:
        return False
    said = f"{type(error).__name__}: {error}"
    return said in parallel._failures[: parallel.rank]
