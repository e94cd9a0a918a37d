"""One reader in a process of its own, fuzzed by atheris; nothing is imported before it watches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import guard, mutate
from .ledger import fast_folder

if TYPE_CHECKING:
    from .readers import Reader

MARGIN = 256 << 20  # bytes of address space beside three times the file: arenas and threads
PACKAGES = ("ostinato", "zipfile", "pickletools", "wave", "gettext", "csv")
Fault = tuple[str, bytes]  # what is wrong, and the file
TIMEOUT = 10  # seconds of the processor for one file, each a few kilobytes
STUCK = 600  # seconds after which a file that does not even compute is given up
COUNTS = ("runs", "read", "inside", "front")
NOISE = (b"", b"\0", b"\0" * 64, random.Random(0).randbytes(300))  # what is no file of any format
KEPT = 300  # files that were read and are changed further


class Target:
    """Read one file after the other, and keep those that show a fault.

    A file that is refused where noise is refused too has not got past the front of a reader; all
    others have reached its inside.

    Args:
        reader: the reader.
        faults: a folder for the files.
    """

    def __init__(self, reader: Reader, faults: Path) -> None:
        self.reader, self.faults = reader, faults
        self.folder = Path(tempfile.mkdtemp(dir=fast_folder()))
        self.path = self.folder / reader.file
        self.counts = dict.fromkeys(COUNTS, 0)
        self.known: set[str] = set()
        self.front: set[str] = set()
        self.last = ""

    def __call__(self, words: bytes) -> str:
        """Read a file of these bytes; return what is wrong, "" for nothing."""
        began = time.process_time()
        self.path.write_bytes(self.reader.dress(words))
        kind, fault, site = guard.outcome(self.reader.read, self.path, self.reader.errors)
        if (took := time.process_time() - began) > TIMEOUT:
            fault = fault or f"it took {took:.0f} s of the processor"
        self.last = kind if kind == "read" else "front" if site in self.front else "inside"
        self.counts["runs"] += 1
        self.counts[self.last] += 1
        if fault:
            self._keep(words, fault, site)
        return fault

    def warm_up(self, seeds: list[bytes]) -> None:
        """Read files without a guard: what is imported late is there then; see what noise does."""
        for words in seeds:
            self.path.write_bytes(self.reader.dress(words))
            with contextlib.suppress(*self.reader.errors):
                self.reader.read(self.path)
        for words in NOISE:
            self.path.write_bytes(self.reader.dress(words))
            self.front.add(guard.outcome(self.reader.read, self.path, self.reader.errors).site)
        self.front.discard("")  # of noise that is read, as text without a mark is

    def _keep(self, words: bytes, fault: str, site: str) -> None:
        """Keep the first file of each kind of fault: numbers and quoted words make none."""
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "#", fault.replace(str(self.folder), ""))[:120]
        if kind in self.known:
            return
        self.known.add(kind)
        name = hashlib.sha1(kind.encode()).hexdigest()[:12]
        self.faults.mkdir(parents=True, exist_ok=True)
        (self.faults / name).write_bytes(words)
        (self.faults / f"{name}.txt").write_text(f"{fault}\n{site}\n", encoding="utf-8")

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def mutate_some(name: str, folder: Path, count: int) -> tuple[list[Fault], dict[str, int]]:
    """Read the seeds of a reader and some mutations of them, the same ones in every run.

    Args:
        name: the name of the reader.
        folder: where files are kept that show a fault.
        count: how many mutations.

    Returns:
        The faults with their files, and the counts of the target.
    """
    from .readers import chosen

    reader = chosen([name])[0]
    target, rng = Target(reader, folder), random.Random(zlib.crc32(name.encode()))
    try:
        seeds = reader.seeds()
        target.warm_up(seeds)
        more = [mutate.mutated(rng.choice(seeds), rng, reader.tokens) for _ in range(count)]
        outcomes = [(target(words), words) for words in (*seeds, *more)]
    finally:
        target.close()
    return [(fault, words) for fault, words in outcomes if fault], target.counts


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Bound the address space to what is taken now and three times a file of some size.

    Only while a file is read: the fuzzer, whose own memory grows with what it has seen, would end
    the process where it has none.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 3 * size + MARGIN
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Ledger:
    """The counts of a reader over all runs, in a file.

    Args:
        path: the file.
        target: the target, of which the first files are those that an earlier run has counted.
        again: how many these are.
        most: how many files there are in this run beside them.
    """

    def __init__(self, path: Path, target: Target, again: int, most: int) -> None:
        self.path, self.target, self.again, self.most = path, target, again, most
        self.before, self.began = totals(path), time.process_time()
        target.counts = dict.fromkeys(COUNTS, 0)

    def note(self) -> None:
        """Count a file; write the counts at times, and at the end of the run."""
        counts = self.target.counts
        if self.again:
            self.again -= 1
            counts.update(dict.fromkeys(COUNTS, 0))
        elif counts["runs"] % 100 == 0 or counts["runs"] == self.most:
            facts: dict[str, Any] = {n: self.before[n] + counts[n] for n in COUNTS}
            facts["seconds"] = self.before["seconds"] + time.process_time() - self.began
            self.path.write_text(json.dumps(facts))


def totals(path: Path) -> dict[str, Any]:
    """Return the counts of a ledger, zeros where there is none."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {**dict.fromkeys(COUNTS, 0), "seconds": 0.0, **kept}


def fuzz(name: str, out: str, runs: str, seed: str, seconds: str) -> None:
    """Fuzz one reader in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        from .readers import chosen

        reader = chosen([name])[0]
        target = Target(reader, Path(out) / "faults" / name)
        seeds = reader.seeds()
        target.warm_up(seeds)
    longest = 2 * max(map(len, seeds)) + 256
    corpus = Path(out) / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    known = len(list(corpus.iterdir()))
    for words in seeds:
        (corpus / hashlib.sha1(words).hexdigest()).write_bytes(words)
    ledger, pool = Ledger(Path(out) / f"{name}.json", target, known, int(runs)), list(seeds)

    def one(words: bytes) -> None:
        with limited_memory(longest):
            target(words)
        if target.last == "read":  # a change of it is more likely to reach the inside
            pool.append(words)
            del pool[len(seeds) : len(pool) - KEPT]
        ledger.note()

    def mutator(words: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.6:
            words = rng.choice(pool)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(words, most))
        return mutate.mutated(words, rng, reader.tokens)[:most]

    options = [
        f"-runs={int(runs) + known}",
        f"-seed={seed}",
        f"-max_len={longest}",
        f"-timeout={STUCK}",
        "-rss_limit_mb=0",  # the limit of the address space is the tighter one
        "-verbosity=0",
        "-print_final_stats=1",
        "-len_control=0",
        f"-artifact_prefix={Path(out) / 'faults' / name}-",
        *([f"-max_total_time={seconds}"] if int(seconds) else []),
        str(corpus),
    ]
    (Path(out) / "faults").mkdir(parents=True, exist_ok=True)
    atheris.Setup(["torture", *options], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(*sys.argv[1:])
