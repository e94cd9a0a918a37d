"""The commands: each takes parsed arguments and returns its figures for JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ost

from .._machine import info
from ._output import write

# Options of ``train forecast`` that are fields of `tables.ReadOptions`.
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


def run_info(args: argparse.Namespace) -> dict[str, Any]:
    """Print what the machine and the installation have."""
    figures = info()
    if not args.json:
        print("\n".join(_info_lines(figures)))
    return figures


def _info_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that ``info`` prints."""
    versions = f"Python {figures['python']}, NumPy {figures['numpy']}"
    yield f"ostinato {figures['ostinato']}, {versions}, {figures['system']}"
    yield f"cpu         {figures['cpu']}"
    kernels = figures["kernels"]
    runs, known = (", ".join(kernels[k]) for k in ("supported", "known"))
    yield f"kernels     {kernels['chosen']} chosen; this CPU runs {runs}; compiled: {known}"
    yield f"threads     {figures['threads']}"
    for device in figures["cuda"]["devices"]:
        memory = f"{device['memory_bytes'] / 1e9:.0f} GB"
        what = f"{device['name']}, {device['multiprocessors']} multiprocessors, {memory}"
        yield f"cuda        {what}; driver {device['driver']}"
    if figures["cuda"]["why_not"]:
        yield f"cuda        none: {figures['cuda']['why_not']}"
    if figures["jax"]:
        yield f"jax         {figures['jax']['version']}, called by {figures['jax']['bridge']}"
    for extra, packages in figures["extras"].items():
        missing = [m for m, there in packages.items() if not there]
        state = f"missing: {', '.join(missing)}" if missing else "all installed"
        yield f"[{extra}]".ljust(12) + state


def run_train_text(args: argparse.Namespace) -> dict[str, Any]:
    """Train a character language model."""
    from ..tasks import corpora, models, text

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
        batch=args.batch,
    )
    check_memory(args.cell, text.EMBEDDING, args.hidden, args.layers)
    with models.prepare_folder(args.save, resume=args.resume, overwrite=args.overwrite):
        # The folder is checked before the text is read, which can take a minute.
        source = corpora.read(args.file, args.corpus)
        _, figures = text.train_text(
            source,
            source.name,
            options,
            save=args.save,
            resume=args.resume,
            overwrite=args.overwrite,
            parallel=args.parallel,
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


def run_train_series(args: argparse.Namespace) -> dict[str, Any]:
    """Train a model that forecasts series."""
    from ..tasks import forecaster, series

    names = ("horizon", "hidden", "layers", "cell", "epochs", "lr", "seed", "members")
    check_memory(args.cell, 0, args.hidden, args.layers)  # before the table is read
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


def run_forecast(args: argparse.Namespace) -> dict[str, Any]:
    """Forecast series with a saved model; print CSV without --json or --out."""
    from ..tasks import series

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


def run_generate(args: argparse.Namespace) -> None:
    """Write text with a saved model, character by character."""
    from ..tasks._visible import visible
    from ..tasks.text import CharModel

    model = CharModel.load(args.dir)
    if args.precision:
        model.set_precision(args.precision)
    characters = model.stream(
        args.prompt, args.length, temperature=args.temperature, seed=args.seed
    )
    write(visible(args.prompt, sys.stdout))
    for c in characters:
        write(visible(c, sys.stdout))
    write("\n")


# Options of ``explain`` that describe a layer, with their defaults.
LAYER_OPTIONS: dict[str, Any] = {
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
# The option that only one cell takes.
CELL_OPTIONS = {"lstm": "peephole", "gru": "reset_before", "rnn": "nonlinearity"}


def _explained_layers(args: argparse.Namespace) -> list[Any]:
    """Return the layer that the options describe, or the recurrent layers of a saved model."""
    if args.cell in CELL_OPTIONS:
        return [_described_layer(args)]
    if not Path(args.cell).is_dir():
        raise ValueError(
            f"CELL: expected lstm, gru, rnn or a folder with a model for text, got {args.cell!r}"
        )
    given = [n for n, default in LAYER_OPTIONS.items() if getattr(args, n) != default]
    if given:
        raise ValueError(
            f"{_option(given[0])}: expected none for a model in a folder, which has its own, "
            "got one"
        )
    from ..tasks.text import CharModel

    model = CharModel.load(args.cell)
    precision = model.options.precision
    model.set_precision(precision if precision != "float16" else "float32")
    return [m for m in model.model.layers if isinstance(m, ost.nn.Recurrent)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _described_layer(args: argparse.Namespace) -> Any:
    """Return the layer that the options of ``explain`` describe."""
    for cell, name in CELL_OPTIONS.items():
        if cell != args.cell and getattr(args, name) != LAYER_OPTIONS[name]:
            raise ValueError(f"{_option(name)}: expected {cell} with it, got {args.cell}")
    if args.dropout and args.layers == 1:
        raise ValueError(
            f"--dropout: expected --layers of at least 2, between which it acts, got {args.dropout}"
        )
    cells: dict[str, Any] = {"lstm": ost.nn.LSTM, "gru": ost.nn.GRU, "rnn": ost.nn.RNN}
    special: dict[str, Any] = {
        "lstm": {"peephole": args.peephole},
        "gru": {"reset_after": not args.reset_before},
        "rnn": {"nonlinearity": args.nonlinearity or "tanh"},
    }[args.cell]
    inputs = args.input or args.hidden
    check_memory(args.cell, inputs, args.hidden, args.layers * (1 + args.bidirectional))
    layer = cells[args.cell](
        inputs,
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
    return layer


def run_explain(args: argparse.Namespace) -> dict[str, Any]:
    """Print which kernels layers use."""
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


def run_bench(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark against other libraries."""
    from ..tasks import bench

    return bench.run(
        bench.SHORT if not args.full else bench.FULL,
        rounds=args.rounds,
        peers=args.peers.split(",") if args.peers is not None else None,
        out=args.out,
        overwrite=args.overwrite,
    )


def check_memory(cell: str, inputs: int, hidden: int, layers: int) -> None:
    """Raise an error for a network that does not fit into this machine's memory.

    Its parameters, gradients and initial values count.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not tell
        return
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[cell]
    parameters = gates * hidden * (inputs + hidden + 2 * (layers - 1) * hidden)
    if 16 * parameters > memory:  # two words of 4 bytes each, and the random numbers in float64
        raise ValueError(
            f"--hidden: expected a network that fits into {memory / 1e9:.0f} GB of memory, "
            f"got {hidden} with {layers} layers: {16 * parameters / 1e9:.0f} GB"
        )
