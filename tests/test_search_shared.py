"""Searches that processes share: a journal file or a database, and processes that die."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_mpi
import ostinato as ost
from ostinato.train import _study

optuna = pytest.importorskip("optuna", reason="pip install 'ostinato[search]'")

EXAMPLE = Path(__file__).parent.parent / "examples" / "search.py"
X = np.random.default_rng(0).normal(size=(32, 4, 2)).astype(np.float32)
DATA = (X, X.sum(2, keepdims=True))
SPACE = {"size": (3, 8), "lr": (1e-4, 1e-1, "log"), "kind": ["GRU", "RNN"]}


def build(size: int = 4, lr: float = 1e-2, kind: str = "GRU") -> ost.Trainer:
    rnn = getattr(ost.nn, kind)(2, size, batch_first=True, rng=0)
    model = ost.nn.Sequential(rnn, ost.nn.Linear(size, 1, rng=1))
    return ost.Trainer(model, ost.losses.MSE(), ost.optim.Adam(lr))


def run(storage: Any, trials: int, make: Any = build, **options: Any) -> Any:
    given = {"epochs": 2, "grace": 0.2, **options}
    space = given.pop("space", SPACE)
    return ost.search(make, space, DATA, validation=DATA, trials=trials, storage=storage, **given)


def numbers_of(result: Any) -> list[int]:
    return [t.number for t in result.trials]


def program(text: str) -> list[str]:
    """Return the command of a process that has this module as `here`."""
    before = f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    return [sys.executable, "-c", f"{before}\n{textwrap.dedent(text)}"]


def test_two_processes_share_a_journal(tmp_path: Path) -> None:
    """Both end with all trials; none is made twice, none too many, and both made some."""
    path = tmp_path / "a.journal"
    command = program(f"""
        import time, pathlib
        import test_search_shared as here
        folder = pathlib.Path({str(tmp_path)!r})
        def build(**settings):  # nobody is so fast that the other one gets no trial
            (folder / f"{{os.getpid()}}.began").touch()
            while len(list(folder.glob("*.began"))) < 2:
                time.sleep(0.01)
            return here.build(**settings)
        print(here.run({str(path)!r}, 8, build, grace=1000.0))
    """)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as a,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as b,
        contextlib.ExitStack() as stack,
    ):
        for p in (a, b):  # one that waits for the other would never end
            stack.callback(p.kill)
        tables = [p.communicate(timeout=200)[0] for p in (a, b)]
    assert (a.returncode, b.returncode) == (0, 0)
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 9
    records = path.read_text(encoding="utf-8")
    told = re.findall(r'"worker_id":"([^"]+)","trial_id":\d+,"user_attr":{"state"', records)
    assert len(told) == 8
    assert len(set(told)) == 2  # workers
    rows = {line.split(maxsplit=4)[4] for line in tables[0].splitlines()[1:]}
    assert len(rows) == 8  # no settings twice


def test_the_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)  # as for a script
    spec = importlib.util.spec_from_file_location("search", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = ["--storage", str(tmp_path / "a.journal"), "--epochs", "1"]
    first = module.main([*given, "--trials", "1"])
    assert module.main([*given, "--trials", "2"]).trials[:1] == first.trials
    assert capsys.readouterr().out.count("valid_loss") == 2
    with pytest.raises(SystemExit, match="search: study: expected 'search' to be searched as bef"):
        module.main([*given[:2], "--epochs", "2"])


def test_a_search_continues(tmp_path: Path) -> None:
    """The trials of three runs are those of one."""
    storage = tmp_path / "a.journal"
    first = run(storage, 2)
    assert first.trainer is not None
    second = run(storage, 5)
    assert second.trials[:2] == first.trials
    assert numbers_of(second) == list(range(5))
    again = run(storage, 5)  # nothing is left to do
    assert (again.trials, again.best, again.trainer) == (second.trials, second.best, None)
    assert str(again) == str(second)
    at_once = run(tmp_path / "b.journal", 5)
    assert at_once.trials == second.trials
    assert at_once.trainer.evaluate(DATA)["loss"] == pytest.approx(second.best.value)
    other = run(storage, 3, study="another")
    assert other.trials == second.trials[:3]


def test_a_search_in_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    first = run(url, 1)
    second = run(url, 2)
    assert second.trials[:1] == first.trials
    assert run(tmp_path / "a.journal", 2).trials == second.trials


def test_databases_that_several_begin_at_once(tmp_path: Path) -> None:
    """All of them make the tables, and each meets some that another one has just made."""
    for k in range(3):
        url, start = f"sqlite:///{tmp_path / f'{k}.db'}", threading.Barrier(3)

        def begin(_: int, url: str = url, start: threading.Barrier = start) -> Any:
            start.wait()
            return _study._opened(optuna, url)

        opened = fake_mpi.in_threads(3, begin)
        optuna.create_study(storage=opened[0], study_name="a")
        assert [[study.study_name for study in s.get_all_studies()] for s in opened] == [["a"]] * 3
        for storage in opened:
            _study._close(storage)


def test_a_search_leaves_no_database_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that is refused, nor an attempt to make the tables that fails."""
    import sqlite3

    open_now: set[int] = set()

    class Counted(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            open_now.add(id(self))

        def close(self) -> None:
            open_now.discard(id(self))
            super().close()

    connect = sqlite3.dbapi2.connect
    made = []

    def counted(*args: Any, **options: Any) -> Any:
        made.append(connect(*args, **{**options, "factory": Counted}))
        return made[-1]

    monkeypatch.setattr(sqlite3.dbapi2, "connect", counted)
    monkeypatch.setattr(sqlite3, "connect", counted)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    run(url, 1)
    assert made
    assert not open_now
    with pytest.raises(ValueError, match="study: expected 'search' to be searched as before"):
        run(url, 1, seed=5)
    assert not open_now
    attempts: list[Any] = []
    begin = optuna.storages.RDBStorage.__init__

    def fails_once(self: Any, url: str) -> None:
        begin(self, url)
        attempts.append(self)
        if len(attempts) == 1:
            self.engine.connect().close()  # one that the pool keeps
            raise RuntimeError("table studies already exists")

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", fails_once)
    run(url, 2)
    assert len(attempts) == 2
    assert not open_now


def test_a_database_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def out_of_reach(self: Any, url: str) -> None:
        asked.append(url)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", out_of_reach)
    with pytest.raises(ValueError, match=r"expected the URL of a database.*no route to host"):
        run("sqlite:///a.db", 1)
    assert len(asked) == 1


def test_a_process_that_dies_loses_its_trial_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    command = program(f"""
        import signal
        import test_search_shared as here
        calls = []
        def dies(**settings):
            calls.append(settings)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return here.build(**settings)
        here.run({str(path)!r}, 6, dies)
    """)
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    result = run(path, 6)
    assert numbers_of(result) == [0, 1, 3, 4, 5, 6]  # the third was lost, and made anew
    assert numbers_of(run(path, 6)) == numbers_of(result)


@pytest.mark.parametrize("last", ["figure", "step", "state"])
def test_a_process_that_dies_while_it_tells(tmp_path: Path, last: str) -> None:
    """A trial counts once all is written that the table needs; before, it is made anew."""
    path = tmp_path / "a.journal"
    command = program(f"""
        import signal
        import test_search_shared as here
        kept = here.optuna.trial.Trial.set_user_attr
        def dies(trial, key, value):
            kept(trial, key, value)
            if key == {last!r} and trial.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        here.optuna.trial.Trial.set_user_attr = dies
        here.run({str(path)!r}, 3)
    """)
    assert subprocess.run(command, check=False, timeout=100).returncode == -signal.SIGKILL
    result = run(path, 3)
    assert numbers_of(result) == ([0, 1, 2] if last == "state" else [0, 2, 3])
    assert all(np.isfinite(t.value) and t.step for t in result.trials)


def studies(path: Path, *, lr: float = 1.0) -> Any:
    """Return a study as `ostinato.search` makes it."""
    settings = {"space": {"lr": (0.1, lr)}}
    return _study.Study(optuna, settings, 0, path, "search", 1000.0)


def test_a_study_that_another_process_begins_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first look, whether that is at the trials or at the settings."""
    path, trials = tmp_path / "a.journal", optuna.Study.get_trials
    settings = optuna.Study.user_attrs

    def other() -> None:
        monkeypatch.setattr(optuna.Study, "get_trials", trials)
        monkeypatch.setattr(optuna.Study, "user_attrs", settings)
        assert studies(path).ask(3).number == 0

    def slow_trials(study: Any, *args: Any, **options: Any) -> Any:
        there = trials(study, *args, **options)
        other()
        return there

    def slow_settings(study: Any) -> Any:
        there = settings.fget(study)
        other()
        return there

    monkeypatch.setattr(optuna.Study, "get_trials", slow_trials)
    monkeypatch.setattr(optuna.Study, "user_attrs", property(slow_settings))
    assert studies(path).ask(3).number == 1


@pytest.mark.parametrize("asked", [False, True])
def test_two_processes_with_other_settings_begin_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Both find no settings; one of them searches, and no trial is of the other one's."""
    path, write = tmp_path / "a.journal", optuna.Study.set_user_attr
    first: list[Any] = []

    def slow(study: Any, key: str, value: Any) -> None:  # the other one is faster
        monkeypatch.setattr(optuna.Study, "set_user_attr", write)
        first.append(studies(path, lr=0.5))
        if asked:
            assert first[0].ask(3).number == 0
        write(study, key, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", slow)
    if asked:
        with pytest.raises(ValueError, match=r"searched as before, .* 0\.5.*, got .* 1\.0"):
            studies(path)
        assert first[0].ask(3).number == 1
        with pytest.raises(ValueError, match=r"searched as before, .* 0\.5.*, got .* 1\.0"):
            studies(path)
    else:
        second = studies(path)
        with pytest.raises(ValueError, match=r"searched as before, .* 1\.0.*, got .* 0\.5"):
            first[0].ask(3)
        assert second.ask(3).number == 1
        assert [t.number for t in second.trials()] == [1]


def test_a_sign_of_life_that_fails_is_not_the_last(tmp_path: Path) -> None:
    study = _study.Study(optuna, {}, 0, tmp_path / "a.journal", "search", 0.04)
    beats: list[int] = []
    heard = threading.Event()

    class Locked:
        """A trial in a database that is locked at times."""

        def set_user_attr(self, key: str, value: int) -> None:
            beats.append(value)
            if len(beats) == 1:
                raise RuntimeWarning("database is locked")
            if len(beats) == 3:
                heard.set()
                raise study.gone("given up by others")

    with study.alive(Locked()):
        assert heard.wait(30)
        time.sleep(0.05)
    assert beats == [1, 1, 2]


def test_an_error_of_a_trial_blocks_nobody(tmp_path: Path) -> None:
    path, calls = tmp_path / "a.journal", [0]

    def fails(**settings: Any) -> ost.Trainer:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyError("mine")
        return build(**settings)

    with pytest.raises(KeyError, match="mine"):
        run(path, 3, fails, grace=1000.0)
    assert numbers_of(run(path, 3, grace=1000.0)) == [0, 2, 3]  # without waiting for anybody


def test_a_trial_that_others_gave_up_is_not_kept(tmp_path: Path) -> None:
    path, calls = tmp_path / "a.journal", [0]

    class Pause(ost.train.Callback):
        """Another process takes the first trial for lost, after its first validation."""

        def on_row(self, trainer: Any, row: Any) -> None:
            calls[0] += 1
            if calls[0] == 1:
                journal = optuna.storages.journal
                storage = journal.JournalStorage(journal.JournalFileBackend(str(path)))
                study = optuna.load_study(study_name="search", storage=storage)
                study.tell(0, state=optuna.trial.TrialState.FAIL)

    def pauses(**settings: Any) -> ost.Trainer:
        trainer = build(**settings)
        trainer.callbacks.append(Pause())
        return trainer

    with pytest.warns(RuntimeWarning, match="search: trial 0 gave no sign of life for 1000 sec"):
        result = run(path, 2, pauses, grace=1000.0)
    assert numbers_of(result) == [1, 2]


def test_trials_that_diverge_are_kept_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    space = {"lr": [1e30, 1e-2]}
    result = run(path, 5, space=space, epochs=3)
    assert {t.state for t in result.trials if t.settings["lr"] == 1e30} == {"diverged"}
    again = run(path, 5, space=space, epochs=3)
    assert [(t.state, t.settings) for t in again.trials] == [
        (t.state, t.settings) for t in result.trials
    ]
    assert again.best == result.best


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    run(path, 1)
    for options, words in (
        ({"epochs": 3}, r'fit = {"epochs": 2}, got {"epochs": 3}'),
        ({"seed": 1}, "seed = 0, got 1"),
        ({"prune": False}, "prune = true, got false"),
        ({"space": {**SPACE, "size": (3.0, 8.0)}}, r'space = .*got .*"size": \[3.0, 8.0\]'),
        ({"space": {"size": (3, 9)}}, r'space = .*"size": \[3, 8\]'),
        ({"patience": 2}, r"fit = .*patience"),
    ):
        with pytest.raises(ValueError, match=f"study: expected 'search' to be .* {words}"):
            run(path, 1, **options)
    assert len(run(path, 1).trials) == 1
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend(str(path)))
    optuna.create_study(study_name="theirs", storage=storage).ask()
    with pytest.raises(
        ValueError, match=r"study: expected one that ostinato.search made, got 'the"
    ):
        run(storage, 1, study="theirs")


def test_storages_that_are_none(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    for content in ("date,sales\n1,2\n", "date,sales", '{"a": 1}\n', "3"):
        table.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"storage: expected a journal of Optuna or a new fil"):
            run(table, 1)
        assert table.read_text(encoding="utf-8") == content
    with pytest.raises(ValueError, match="storage: expected a journal of Optuna or a new file"):
        run(tmp_path, 1)
    with pytest.raises(ValueError, match="storage: expected a path in a folder that exists"):
        run(tmp_path / "none" / "a.journal", 1)
    for url in ("nothing://a/b", f"sqlite:///{tmp_path}/none/a.db"):
        with pytest.raises(ValueError, match="storage: expected the URL of a database, got"):
            run(url, 1)
    with pytest.raises(TypeError, match="storage: expected a path, the URL of a database, or a st"):
        run(3, 1)
    with pytest.raises(ValueError, match="study: expected a storage that has it, got 'a'"):
        run(None, 1, study="a")
    with pytest.raises(TypeError, match="study: expected a name, got 3"):
        run(tmp_path / "a", 1, study=3)
    for grace in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="grace: expected seconds above 0"):
            run(tmp_path / "a", 1, grace=grace)


def test_passwords_are_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that of the URL nor what a driver says of it."""

    said = ["no such host: {}", "", "\n"]  # in turn

    def fails(self: Any, url: str) -> None:
        said.append(said.pop(0))
        raise RuntimeError(said[-1].format(url))

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", fails)
    for url in (
        "postgresql://me:geh/e@im@host/name",
        "postgresql://host/name?user=me&password=geh/e@im",
        "mysql://:geh/e@im@host/name?charset=utf8",
    ):
        for _ in said:
            with pytest.raises(ValueError, match="expected the URL of a database, got '") as e:
                run(url, 1)
            shown = traceback.format_exception(type(e.value), e.value, e.value.__traceback__)
            assert "geh" not in "".join(shown)
            assert "***" in str(e.value)
            assert "host/name" in str(e.value)
    said[:] = [""]
    with pytest.raises(ValueError, match=r"got 'sqlite:///a:b@c\.db': RuntimeError"):
        run("sqlite:///a:b@c.db", 1)


def test_locks_lead_to_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a lock that a process died with would block all others for ever."""
    links: list[str] = []
    link = os.symlink

    def seen(target: str, name: str) -> None:
        link(target, name)
        links.append(target if os.path.exists(name) else "")

    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "symlink", seen)
    run("sub/a.journal", 1)
    assert set(links) == {str(tmp_path / "sub" / "a.journal")}


def test_a_record_that_was_half_written(tmp_path: Path) -> None:
    """It is taken off, since the next record would otherwise end the same line."""
    path = tmp_path / "a.journal"
    first = run(path, 1)
    with path.open("ab") as file:
        file.write(b'{"op_code":8,"worker')
    assert run(path, 2).trials[:1] == first.trials
    assert len(run(path, 2).trials) == 2
    assert not os.path.lexists(f"{path}.lock")
