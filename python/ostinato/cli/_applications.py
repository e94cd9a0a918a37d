"""The commands of applications: ``train NAME``, ``predict`` and ``evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..tasks import _application, _picture
from ..tasks.models import prepare_file
from ._arguments import LARGEST_SIZE, number, whole
from ._commands import check_memory

# Other names of options, that users of other libraries type.
ALIASES = {"--rate": ("--lr",), "--batch": ("--batch-size",)}

# Options that parameters are allocated by, bounded as in ``train text``.
SIZES = ("hidden", "embedding", "layers")

# Names that options had before, which the help does not show: for each what it is called now, and
# the value that it stands for.
FORMER: dict[tuple[str, str], tuple[str, Callable[[float], float]]] = {
    ("anomaly", "--share"): ("held_out", lambda share: 1 - share),
    ("parse", "--fraction"): ("held_out", lambda share: share),
}


def add_train(train: Any, words: Sequence[str] | None) -> None:
    """Add ``train NAME`` for each application, with one option for each field of its options.

    Where the words that will be parsed name another command or application, there is only the name.
    """
    command, task = ("train", "") if words is None else [*words[:2], "", ""][:2]
    whole = command == "train" and (not task or task.startswith("-"))  # or its help has no lines
    for name in _application.NAMES:
        if not whole and (command, task) != ("train", name):
            train.add_parser(name)
            continue
        application = _application.load(name)
        c = train.add_parser(name, help=application.help)
        c.add_argument("data", nargs="*", metavar="DATA", help=application.data)
        for f in dataclasses.fields(application.options):
            _add_option(c, f)
        for (of, flag), (now, value) in FORMER.items():
            if of == name:
                _add_former(c, flag, now, value)
        c.add_argument("--save", metavar="DIR", help="save the model in this folder")
        c.add_argument("--plot", metavar="FILE.png", help="draw a picture into this file")
        c.add_argument(
            "--overwrite", action="store_true", help="replace an existing model and picture"
        )
        c.add_argument("--json", action="store_true", help="print one JSON object")
        c.set_defaults(run=_run_train)


def _add_option(c: argparse.ArgumentParser, f: dataclasses.Field[Any]) -> None:
    """Add the option of a field."""
    flag, text = "--" + f.name.replace("_", "-"), f.metadata["help"]
    flags = [flag, *ALIASES.get(flag, ())]
    kind = f.metadata["kind"]
    if isinstance(f.default, bool):
        c.add_argument(flag, action="store_true", help=text)
    elif kind is None:
        choices = f.metadata["choices"] or None
        c.add_argument(flag, choices=choices, default=f.default, help=text)
    elif kind == "part":
        value: Any = f.default
        default = int(value) if value == int(value) else value
        c.add_argument(*flags, type=_part, default=default, help=text)
    elif kind in ("count", "index"):
        least = int(_application.LIMITS[kind][0])
        convert: Any = whole(least, LARGEST_SIZE) if f.name in SIZES else whole(least)
        c.add_argument(*flags, type=convert, default=f.default, help=text)
    else:
        right = _within(kind)
        convert = number(_application.expected_number(kind), right)
        c.add_argument(*flags, type=convert, default=f.default, help=text)


def _add_former(
    c: argparse.ArgumentParser, flag: str, now: str, value: Callable[[float], float]
) -> None:
    """Add a name that an option had before, with a share as its value."""
    share = number("a number between 0 and 1", lambda v: 0 < v < 1)
    c.add_argument(
        flag,
        dest=now,
        type=lambda text: value(share(text)),
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def _part(text: str) -> float:
    """Return a share below 1, or how many."""
    return number(_application.expected_number("part"), _within("part"))(text)


def _within(kind: str) -> Callable[[float], bool]:
    return lambda value: _application.within(kind, value)


def _report(args: argparse.Namespace) -> Callable[[str], None]:
    screen = sys.stderr if args.json else sys.stdout
    return lambda line: print(line, file=screen, flush=True)


def _run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Train the model of an application."""
    options = _application.load(args.task).options
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(options)}
    if "hidden" in values:  # before the data are read; of two directions one is counted
        cell = values.get("cell", "lstm")
        layers = values.get("layers", 1)
        check_memory(cell, values.get("embedding", 0), values["hidden"], layers)
    report = _report(args)
    figures = _application.train(
        args.task,
        args.data,
        options(**values),
        save=args.save,
        plot=args.plot,
        overwrite=args.overwrite,
        report=report,
        parallel=args.parallel,
    )
    if args.save is not None:
        report(f"saved in {args.save}; now: python -m ostinato {_application.use_of(args.save)}")
    return figures


def add_predict(commands: Any, words: Sequence[str] | None) -> None:
    """Add ``predict``, which reads any application's model; its help says what INPUT is of each."""
    helps = any(word.startswith(("-h", "--h")) for word in words or ())
    shown = words is None or (helps and words[0] == "predict")
    c = commands.add_parser("predict", help="use the model that train NAME --save wrote")
    c.add_argument("dir", metavar="DIR", help="the folder of the model")
    c.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="; ".join(
            f"{n}: {a.inputs}"
            for n in (_application.NAMES if shown else ())
            if (a := _application.load(n)).predict is not None
        ),
    )
    c.add_argument("--plot", metavar="FILE.png", help="draw a picture into this file")
    c.add_argument(
        "--out",
        metavar="FILE",
        help="write the result to this file: .csv (anomaly, classify), .abc or .mid (compose), "
        ".tsv or .txt (parse, tag, transcribe, translate), and .conll (tag)",
    )
    c.add_argument("--overwrite", action="store_true", help="replace existing files")
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c.set_defaults(run=_run_predict)


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate``, which reads any application's model."""
    c = commands.add_parser("evaluate", help="measure the model that train NAME --save wrote")
    c.add_argument("dir", metavar="DIR", help="the folder of the model")
    c.add_argument("data", nargs="*", metavar="DATA", help="data as in train NAME, held out")
    c.add_argument("--plot", metavar="FILE.png", help="draw a picture into this file")
    c.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c.set_defaults(run=_run_evaluate)


def _run_predict(args: argparse.Namespace) -> dict[str, Any]:
    """Use a saved model."""
    run = _saved(args, args.out)
    predict = _application.application_of(args.dir).predict
    assert predict is not None  # no model is of a command without it
    return predict(args.inputs, run)


def _run_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a saved model."""
    run = _saved(args, None)
    evaluate = _application.application_of(args.dir).evaluate
    assert evaluate is not None  # no model is of a command without it
    return evaluate(args.data, run)


def _saved(args: argparse.Namespace, out: str | None) -> _application.Run:
    """Return where predict or evaluate write, checked."""
    _application.check_apart("--out", out, "--plot", args.plot)
    for name, path in (("--plot", args.plot), ("--out", out)):
        prepare_file(name, path, overwrite=args.overwrite)
    _picture.check(args.plot)
    plot = None if args.plot is None else Path(args.plot)
    target = None if out is None else Path(out)
    return _application.Run(Path(args.dir), plot, target, _report(args))
