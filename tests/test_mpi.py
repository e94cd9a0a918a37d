"""Training over processes that mpiexec starts; skipped without mpi4py and a library of MPI."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ostinato as ost

HERE = Path(sys.executable).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(HERE), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpi4py or mpiexec is not installed: pip install mpi4py mpich",
)
# More ranks than cores, and a superuser in a container, are refused by Open MPI unless it is told.
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}


def mpiexec(size: int, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with some arguments on so many ranks."""
    path = str(Path(ost.__file__).parents[1])
    return subprocess.run(
        [str(MPIEXEC), "-n", str(size), sys.executable, *words],
        env={**os.environ, **ALLOWED, "PYTHONPATH": path, "OSTINATO_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


TRAINING = """
import sys
import numpy as np
import ostinato as ost
from ostinato.train._shared import SharedGradients

calls = []
add = SharedGradients.add
SharedGradients.add = lambda self, factor: (calls.append(self), add(self, factor))

def trained(parallel, **options):
    r = np.random.default_rng(0)
    x, lengths = r.standard_normal((22, 6, 2)), r.integers(0, 7, 22)
    rnn = ost.nn.GRU(2, 5, batch_first=True, rng=0, dtype=np.float64)
    model = ost.nn.Sequential(rnn, ost.nn.Linear(5, 1, rng=1, dtype=np.float64))
    trainer = ost.Trainer(model, ost.losses.MSE(), clip_norm=0.5, parallel=parallel)
    data = x, x.cumsum(1)[..., :1], lengths
    trainer.fit(data, validation=data, batch_size=5, progress=False, **options)
    return model.flat.copy()

with ost.train.Parallel() as parallel:
    one = trained(None, epochs=3)
    first, again = (trained(parallel, epochs=3) for _ in range(2))
    assert np.array_equal(first, again)
    np.testing.assert_allclose(first, one, rtol=1e-9)
    trained(parallel, epochs=3, steps=7, checkpoint="run.safetensors")
    resumed = trained(parallel, epochs=3, checkpoint="run.safetensors", resume=True)
    assert np.array_equal(resumed, first)
    assert parallel.rank or not np.array_equal(first, one)  # another order of sums
    together = len(calls)
    assert bool(together) == parallel.shares_memory
    parallel._one_machine = False  # as ranks on several machines, which send messages
    assert np.array_equal(trained(parallel, epochs=3), first)
    assert len(calls) == together
    # At once, or the words of several ranks come between one another where nothing is buffered.
    sys.stdout.write(f"rank {parallel.rank} of {parallel.size} has done\\n")
"""


def test_ranks_train_as_one_process_does_and_repeat_their_bits(tmp_path: Path) -> None:
    done = mpiexec(3, "-c", TRAINING, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:3]) == [f"rank {k} of 3 has done" for k in range(3)]


def test_the_program_of_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs/parallel.md"
    block = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert block is not None
    (tmp_path / "program.py").write_text(block[1], encoding="utf-8")
    done = mpiexec(2, "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("valid_loss") == 1
    assert sum("epoch" in line for line in done.stderr.splitlines()) == 3


FAILING = """
import os, signal, sys
import numpy as np
import ostinato as ost

class Fail(ost.train.Callback):
    def on_step(self, trainer, step, loss, norm):
        if trainer.parallel.rank == 1 and step == 4 and sys.argv[1] != "kill in a sum":
            if sys.argv[1] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("no such word")

calls, add = [], ost.train.Parallel._add

def add_or_die(self, *args):
    calls.append(self)
    if self.rank == 1 and len(calls) == 4 and sys.argv[1] == "kill in a sum":
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *args)

ost.train.Parallel._add = add_or_die
with ost.train.Parallel() as parallel:
    x = np.ones((64, 3, 2), np.float32)
    trainer = ost.Trainer(
        ost.nn.GRU(2, 2, batch_first=True, rng=0),
        ost.losses.MSE(),
        parallel=parallel,
        callbacks=[Fail()],
    )
    options = {"checkpoint": "run.safetensors", "checkpoint_every": 1, "progress": False}
    trainer.fit((x, x), epochs=4, batch_size=8, **options)
"""


@pytest.mark.parametrize("how", ["raise", "kill", "kill in a sum"])
def test_a_rank_that_fails_ends_the_others_and_leaves_the_checkpoint(
    how: str, tmp_path: Path
) -> None:
    done = mpiexec(3, "-c", FAILING, how, folder=tmp_path)
    assert done.returncode != 0
    step = ost.train.Checkpoint.load(tmp_path / "run.safetensors", which="last").step
    if how == "raise":
        assert done.stderr.count("rank 1 of 3 has failed: KeyError: 'no such word'") == 2
        assert step == 4
    else:  # mpiexec has ended the others
        assert 3 <= step <= 4
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_the_command_line_trains_on_all_ranks(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60, encoding="utf-8")
    words = ["-m", "ostinato", "train", "text", "text.txt", "--hidden", "8", "--save", "model"]
    done = mpiexec(2, *words, "--steps", "4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in model") == 1
    assert done.stderr == ""
    assert len((tmp_path / "model/log.csv").read_text().splitlines()) == 5
    done = mpiexec(2, *words, "--steps", "8", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("ostinato: --save: expected a folder without a model") == 1
    assert done.stderr.count("rank 0 of 2 has failed: ValueError: --save") == 1
    done = mpiexec(2, "-m", "ostinato", "train", "forecast", "text.txt", folder=tmp_path)
    assert "train forecast: expected one process" in done.stderr
