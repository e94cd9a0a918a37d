"""Keep the trials of a search in a study of Optuna, which processes and machines may share."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check
from .._annotations import readable

_ATTEMPTS = 30  # to make the tables of a database, which others make as well
_BEATS = 4  # signs of life within the time after which a trial without one is lost
# Of a URL: the password behind a user's name, and one among the options.
_SECRETS = re.compile(r"(?<=://)[^:/@]*:(.*)@|[?&]\w*(?:password|passwd|pwd)\w*=([^&\s]*)", re.I)


def _journal(optuna: Any, path: Path) -> Any:
    """Open or make a journal file; a record that a process left half-written is taken off.

    The path is made absolute, since the lock is a link to it: Optuna takes a lock away from a
    process that died with it after 30 seconds, but not if the link leads nowhere.
    """
    journal = optuna.storages.journal
    path = path.absolute()
    if not path.parent.is_dir():
        raise ValueError(f"storage: expected a path in a folder that exists, got {str(path)!r}")
    if path.exists() and (not path.is_file() or not _is_journal(path)):
        raise ValueError(f"storage: expected a journal of Optuna or a new file, got {str(path)!r}")
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        lock = journal.JournalFileSymlinkLock(str(path))  # no other process is writing then
        lock.acquire()
        try:
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        finally:
            lock.release()
    return journal.JournalStorage(journal.JournalFileBackend(str(path)))


def _database(optuna: Any, url: str) -> Any:
    """Open a database, whose tables are made by the process that comes first.

    Of those that come at the same moment several make them, table by table, and each fails at one
    that another process has made. It finds that one at its next attempt.
    """
    kind = optuna.storages.RDBStorage
    for attempt in range(_ATTEMPTS):
        storage = kind.__new__(kind)  # which holds connections, also where the rest fails
        try:
            storage.__init__(url)
            return storage
        except Exception as error:  # whatever SQLAlchemy and drivers raise
            _close(storage)
            others = type(error).__name__ == "IntegrityError" or "exists" in str(error).lower()
            if not others or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.02, 0.1))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _close(storage: Any) -> None:
    """Close the connections of a database; a journal keeps no file open."""
    engine = getattr(storage, "engine", None)
    if engine is not None:
        engine.dispose()


def _is_journal(path: Path) -> bool:
    """Return whether the first line is a record of a journal, or there is none yet."""
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    if not line:
        return True
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "op_code" in record


def _opened(optuna: Any, storage: Any) -> Any:
    """Return the storage of a path, of the URL of a database, or the one that was given."""
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if not isinstance(storage, (str, os.PathLike)):
        raise TypeError(
            "storage: expected a path, the URL of a database, or a storage of Optuna, got "
            f"{type(storage).__name__}"
        )
    text = os.fspath(storage)
    if "://" not in text:
        return _journal(optuna, Path(text))
    try:
        return _database(optuna, text)
    except Exception as error:  # whatever SQLAlchemy and drivers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = _hidden(str(error), text) != str(error)  # a traceback would show the password
        raise ValueError(
            f"storage: expected the URL of a database, got {_hidden(text, text)!r}: "
            f"{_hidden(reason, text)}"
        ) from (None if told else error)


def _hidden(message: str, url: str) -> str:
    """Return a message without the passwords that a URL has."""
    for found in _SECRETS.finditer(url):
        secret = found[1] or found[2]
        for known in (secret, urllib.parse.unquote(secret or "")):
            message = message.replace(known, "***") if known else message
    return message


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def written(value: Any) -> Any:
    """Return a value as JSON has it; what JSON lacks becomes its type and name."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return written(value.item())
    if isinstance(value, Mapping):
        return {str(k): written(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(v) for v in value]
    kind = type(value)
    name = getattr(value, "__qualname__", None)
    return f"{kind.__module__}.{kind.__qualname__}" + ("" if name is None else f" {name}")


class Study:
    """The trials of a search: those of this process, and of all that share the storage.

    Every trial says by a counter that its process lives. One whose counter has stood still for
    `grace` seconds, by the clock of the process that looks, is lost: it fails, and another one
    takes its place.

    Args:
        optuna: the module.
        settings: what has to be equal for all that share the study.
        seed: seed of the proposals.
        storage: a path, a URL, a storage of Optuna, or None.
        name: of the study.
        grace: seconds without a sign of life after which a trial is lost.
    """

    def __init__(
        self,
        optuna: Any,
        settings: Mapping[str, Any],
        seed: int,
        storage: Any,
        name: str,
        grace: float,
    ) -> None:
        self._optuna, self._seed = optuna, seed
        if seed >= 2**32:  # beyond what Optuna takes
            seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._shared, self._grace = storage is not None, grace
        self._seen: dict[int, tuple[Any, float]] = {}  # the counter of a trial, and since when
        self.states = optuna.trial.TrialState
        # What says that a trial has ended; before Optuna 4.2 it has no class of its own.
        self.gone: type[Exception] = getattr(
            optuna.exceptions, "UpdateFinishedTrialError", RuntimeError
        )
        there = _opened(optuna, storage)
        self._own = None if there is storage else there
        try:
            self._study = optuna.create_study(  # of figures of which less is better
                study_name=name,
                storage=there,
                load_if_exists=True,
                direction="minimize",
                sampler=optuna.samplers.TPESampler(seed=seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            )
            self._settings: dict[str, Any] = json.loads(json.dumps(written(settings)))
            if self._shared:
                self._claim()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the storage, unless it was given as one."""
        _close(self._own)

    def _claim(self) -> None:
        """Say with which settings the study is searched, if nobody has, and compare them.

        Of processes with different settings that come at the same moment, the last one to write
        takes the place of the others' words. So each writes its settings into a trial, too, before
        it compares again (`_asked`): whoever has compared too early to see what the last one wrote
        has left them there before, and the last one sees them here, puts them back, and refuses.
        """
        study, key, name = self._study, "ostinato", self._study.study_name
        there = study.get_trials(deepcopy=False)  # before the key, which others write first
        if key not in study.user_attrs:
            if there or study.direction.name != "MINIMIZE":
                raise ValueError(
                    f"study: expected one that ostinato.search made, got {name!r}, which has "
                    "trials of another program; give another name"
                )
            study.set_user_attr(key, self._settings)
            for t in study.get_trials(deepcopy=False):
                if _text(t.user_attrs.get(key, self._settings)) != _text(self._settings):
                    study.set_user_attr(key, t.user_attrs[key])
        self._compare()

    def _compare(self) -> None:
        """Refuse a study of other settings; 3 and 3.0 are two, as they are to Optuna."""
        there, settings = self._study.user_attrs["ostinato"], self._settings
        for part in sorted({*there, *settings}):
            before, now = _text(there.get(part)), _text(settings.get(part))
            if before != now:
                raise ValueError(
                    f"study: expected {self._study.study_name!r} to be searched as before, "
                    f"{part} = {before}, got {now}; give another name for other settings"
                )

    def trials(self) -> list[Any]:
        """Return the trials that run or have said how they ended, as Optuna has them."""
        there = self._study.get_trials(deepcopy=False)
        return [t for t in there if t.state == self.states.RUNNING or "state" in t.user_attrs]

    def ask(self, wanted: int) -> Any:
        """Return the next trial, or None once as many as wanted are done.

        A process that finds all of them taken waits for those of the others, and takes over what
        they do not end.
        """
        while True:
            self._bury()
            there = self.trials()
            if len(there) < wanted:
                trial = self._asked()
                before = sum(t.number < trial.number for t in self.trials())
                if before < wanted:
                    return trial
                self.leave(trial.number)  # another process was faster
            elif sum(t.state != self.states.RUNNING for t in there) >= wanted:
                return None
            else:
                time.sleep(min(self._grace / 8, 0.5))

    def _asked(self) -> Any:
        trial = self._study.ask()
        if self._shared:
            trial.set_user_attr("ostinato", self._settings)
            try:
                self._compare()
            except ValueError:
                self.leave(trial.number)
                raise
            # Proposals follow from the seed, the number, and the trials before.
            seeds = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
            with warnings.catch_warnings():  # before Optuna 5 this option is experimental
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                self._study.sampler = self._optuna.samplers.TPESampler(
                    seed=int(seeds[0]), multivariate=False, constant_liar=True
                )
        return trial

    def _bury(self) -> None:
        """Give up the trials of other processes that show no sign of life."""
        now = time.monotonic()
        running = [t for t in self.trials() if t.state == self.states.RUNNING]
        self._seen = {t.number: self._seen.get(t.number, (None, now)) for t in running}
        for t in running:
            beat = t.user_attrs.get("beat", 0)
            known, since = self._seen[t.number]
            if beat != known:
                self._seen[t.number] = beat, now
            elif now - since > self._grace:
                self.leave(t.number)

    def leave(self, number: int) -> None:
        """Give a trial up: it fails without having said how it ended, and does not count."""
        with contextlib.suppress(self.gone):
            self._study.tell(number, state=self.states.FAIL, skip_if_finished=True)

    @contextlib.contextmanager
    def alive(self, trial: Any) -> Iterator[None]:
        """Say from time to time, for the length of a block, that this process lives."""
        if not self._shared:
            yield
            return
        ends = threading.Event()

        def beat() -> None:
            count = 1
            while not ends.wait(self._grace / _BEATS):
                try:
                    trial.set_user_attr("beat", count)
                except self.gone:
                    return
                except Exception:  # a database that is locked or out of reach for a moment
                    continue
                count += 1

        thread = threading.Thread(target=beat, name="ostinato-search", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def tell(self, trial: Any, state: str, figure: float, step: int, sign: float) -> bool:
        """Keep how a trial ended; return False if others gave it up before, and it is not kept."""
        known = figure if math.isfinite(figure) else None
        try:  # the state last: a trial that has one counts, even if this process dies here
            for name, value in (("figure", known), ("step", step), ("state", state)):
                trial.set_user_attr(name, value)
            if known is None:
                self._study.tell(trial, state=self.states.FAIL)
            elif state == "pruned":
                self._study.tell(trial, state=self.states.PRUNED)
            else:
                self._study.tell(trial, sign * known)
        except self.gone:
            self._say_lost(trial)
            return False
        return True

    def _say_lost(self, trial: Any) -> None:
        """Warn of a trial that others gave up while this process ran it."""
        warnings.warn(
            f"search: trial {trial.number} gave no sign of life for {self._grace:g} seconds, and "
            "another process gave it up: it is not kept; a larger grace= allows longer pauses",
            RuntimeWarning,
            stacklevel=2,
        )


def check_shared(storage: Any, study: Any, grace: Any) -> tuple[str, float]:
    """Return the name of the study and the seconds, checked."""
    if storage is None and study is not None:
        raise ValueError(f"study: expected a storage that has it, got {study!r} and storage=None")
    if study is not None and (not isinstance(study, str) or not study):
        raise TypeError(f"study: expected a name, got {study!r}")
    seconds = _check.number("grace", grace, "seconds above 0")
    if not 0 < seconds < math.inf:
        raise ValueError(f"grace: expected seconds above 0, got {grace!r}")
    return study or "search", seconds


readable(globals())
