"""Music: learn tunes in ABC notation as a character model, and write new ones."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn
from .._annotations import readable
from .._files import atomic_write
from .._ragged import Ragged
from ..data import StreamLoader
from ..decoding import NGram
from ..train import History
from . import _abc, _midi, _picture, corpora
from ._application import Application, Figures, Run, check_out, option, package_file, split
from ._progress import EpochReport
from ._visible import visible
from .text import BATCH, WINDOW, CharModel, TextOptions, trainer_of

__all__ = [
    "ComposeOptions",
    "TuneLoader",
    "bits_per_char",
    "compose",
    "load",
    "read",
    "save",
    "train",
    "write",
]

BOOK = "music21", "music21/corpus/oneills1850", "O'Neill's Music of Ireland"
LEAST = 20  # tunes of a book that is trained on
ORDER = 5  # of the model of sequences of characters that ours is compared with
BEGIN = "\n"  # the empty line before a tune, which its model reads first
LONGEST = 3000  # characters of a tune that is written
TRIES = 20  # tunes that are written for one that parses
TEMPERATURE = 0.6
TEMPO = 160.0  # quarter notes a minute, of a dance


@dataclass
class ComposeOptions:
    """Options of ``train compose``; the defaults take about three minutes on one core.

    >>> ComposeOptions(hidden=64).cell
    'lstm'

    Attributes:
        steps: updates of the parameters.
        hidden: units H of each recurrent layer.
        layers: recurrent layers.
        cell: "lstm", "gru" or "rnn".
        rate: peak learning rate.
        dropout: dropout rate before the last layer, and between recurrent layers.
        seed: seed of the initial parameters, of dropout and of the tunes that are written.
        written: tunes that are written at the end, to count those that parse.
    """

    steps: int = option(2500, "updates of the parameters")
    hidden: int = option(256, "units of each recurrent layer")
    layers: int = option(1, "recurrent layers")
    cell: str = option("lstm", "kind of recurrent layer", choices=("lstm", "gru", "rnn"))
    rate: float = option(5e-3, "peak learning rate", kind="rate")
    dropout: float = option(0.2, "dropout rate", kind="fraction")
    seed: int = option(0, "seed of parameters, dropout and samples", kind="index")
    written: int = option(100, "tunes that are written at the end, to count those that parse")


def read(files: Sequence[str | os.PathLike[str]] = ()) -> list[str]:
    r"""Read the tunes of books in ABC.

    >>> import tempfile
    >>> book = Path(tempfile.mkdtemp()) / "book.abc"
    >>> _ = book.write_text("X:1\nT:The Example\nM:6/8\nK:G\nGBd gdB|G6|]\n" * 2)
    >>> read([book])
    ['M:6/8\nK:G\nGBd gdB|G6|]\n']

    Args:
        files: files in ABC; without any, the tunes of O'Neill's "Music of Ireland" in the package
            ``music21``, which is not imported.

    Returns:
        Meter, unit, key and music of each different tune, without titles and comments.

    Raises:
        ImportError: no file is given, and the package is not installed.
        ValueError: a file is no text in UTF-8, has no tune, or one of several voices.
        OSError: a file cannot be read.
    """
    if not files:
        folder = package_file(*BOOK)
        files = sorted(folder.glob("*.abc"))
    tunes: list[str] = []
    for path in files:
        source = corpora.read([path])
        try:
            found = _abc.split(source.text(0, len(source)))
        except ValueError as error:
            raise ValueError(f"DATA: {error} in {os.fspath(path)}") from None
        if not found:
            raise ValueError(
                f"DATA: expected tunes in ABC, each from a line X:1 on with a line K:, got "
                f"{os.fspath(path)} without any"
            )
        tunes += found
    return list(dict.fromkeys(tunes))


def _parts(tunes: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the tunes to train on, to choose the best step by, and to measure."""
    if len(tunes) < LEAST:
        raise ValueError(f"DATA: expected at least {LEAST} different tunes, got {len(tunes)}")
    rest, chosen, held = ([tunes[k] for k in part] for part in split(len(tunes)))
    return rest, chosen, held


class TuneLoader(StreamLoader):
    r"""Yield tunes one after the other, each of which is read from the initial state on.

    >>> chars = CharModel.fresh("\n:ABCK|", TextOptions(hidden=4))
    >>> loader = TuneLoader(chars, ["K:C\nABC|\n"] * 4, batch_size=2, window=12)
    >>> x, target, third = next(iter(loader))
    >>> x.shape, third["resets"][:, 0].nonzero()[0].tolist()
    ((12, 2), [10])

    Args:
        chars: the model, for its alphabet.
        tunes: tunes as `read` gives them.
        batch_size: streams that are read beside one another; fewer where there is little to read.
        window: characters of a batch, in each stream.

    Raises:
        ValueError: a character that the model has not seen.
    """

    def __init__(
        self,
        chars: CharModel,
        tunes: Sequence[str],
        *,
        batch_size: int = BATCH,
        window: int = WINDOW,
    ) -> None:
        # An empty line stands before and behind each tune.
        stream = chars.encode(BEGIN + "".join(tune + "\n" for tune in tunes), "tunes")
        super().__init__(stream, min(batch_size, max(1, len(stream) // 8)), window)
        # Its newline is predicted from the tune before it, and the next tune reads it first.
        newline = self._x == chars.index["\n"]
        self._resets = np.zeros_like(newline)
        self._resets[1:] = newline[1:] & newline[:-1]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        """Yield the windows from number ``start`` on, with a reset at every empty line.

        Args:
            epoch: not used: every epoch is the same.
            start: the number of the first window.

        Yields:
            ``x, target, {"resets": ...}``.
        """
        for k, (x, target) in enumerate(super().batches(epoch, start), start):
            part = slice(k * self.window, (k + 1) * self.window)
            yield x, target, {"resets": np.ascontiguousarray(self._resets[part])}


def bits_per_char(chars: CharModel, tunes: Sequence[str]) -> float:
    r"""Return the mean of ``-log2 p`` over the characters and the ends of tunes.

    Each tune is read from the model's initial state on.

    >>> model = CharModel.fresh("\nABCK:", TextOptions(hidden=4))
    >>> 1 < bits_per_char(model, ["K:C\nABC\n"]) < 4
    True

    Args:
        chars: the model.
        tunes: tunes as `read` gives them.

    Returns:
        Bits.

    Raises:
        ValueError: no tune, or a character that the model has not seen.
    """
    if not tunes:
        raise ValueError("tunes: expected at least one tune, got none")
    total, count = 0.0, 0
    for begin in range(0, len(tunes), 16):
        rows = [chars.encode(BEGIN + tune + "\n", "DATA") for tune in tunes[begin : begin + 16]]
        y, _ = chars.model(Ragged.join([row[:-1] for row in rows]))
        for row, logits in zip(rows, y):
            # What stands before every tune is given.
            log_p = nn.log_softmax(logits[len(BEGIN) - 1 :].astype(np.float64))
            target = row[len(BEGIN) :]
            total -= float(log_p[np.arange(len(target)), target].sum())
            count += len(target)
    return total / count / math.log(2)


def ngram_bits(chars: CharModel, train: Sequence[str], test: Sequence[str]) -> float:
    """Return what `bits_per_char` returns for a model of sequences of five characters."""
    model = NGram(len(chars.alphabet), ORDER)
    model.fit([chars.encode(tune) for tune in train])
    return model.bits_per_label([chars.encode(tune) for tune in test])


def write(
    chars: CharModel,
    fields: dict[str, str] | None = None,
    *,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> tuple[str, bool]:
    r"""Write a tune.

    >>> model = CharModel.fresh("\nABCK:", TextOptions(hidden=4))
    >>> tune, ended = write(model, {"K": "C"}, seed=0)
    >>> "K:C" in tune
    True

    Args:
        chars: the model.
        fields: what M, L or K are to be; the model writes the others.
        temperature: temperature of the sampling; 0 takes the most likely character.
        seed: seed of the sampling.

    Returns:
        The tune, and whether it ended by itself.

    Raises:
        ValueError: a field that is no meter, unit or key, or with characters that the model has not
            seen.
    """
    fields = dict(fields or {})
    for name, value in fields.items():
        _abc.check_field(name, value)
        chars.encode(value, name)
    seeds = np.random.SeedSequence(seed).generate_state(len(_abc.KEPT) + 1)
    tune = _head(chars, fields, temperature, [int(number) for number in seeds[:-1]])
    for c in chars.stream(
        BEGIN + tune, LONGEST - len(tune), temperature=temperature, seed=int(seeds[-1])
    ):
        if c == "\n" and tune.endswith("\n"):
            return tune, True
        tune += c
    return tune, False


def _head(
    chars: CharModel, fields: dict[str, str], temperature: float, seeds: Sequence[int]
) -> str:
    """Return what a tune begins with: its first field's name, or the fields that are given.

    Fields that stand before a given one and are not given themselves are the model's.
    """
    names = [name for name in _abc.KEPT if name in chars.index]
    if not fields:
        return f"{names[0]}:"
    head: dict[str, str] = {}
    for name, number in zip(_abc.KEPT, seeds):
        if name in fields:
            head[name] = fields[name]
        elif name in names and name != "K":
            begun = f"{name}:" if name == names[0] else ""
            line = begun + _line(chars, BEGIN + _lines(head) + begun, temperature, number)
            if line.startswith(f"{name}:"):
                head[name] = line[2:]
    return _lines(head)


def _lines(head: dict[str, str]) -> str:
    return "".join(f"{name}:{value}\n" for name, value in head.items())


def _line(chars: CharModel, begin: str, temperature: float, seed: int) -> str:
    """Return the line that the model writes behind a text."""
    line = ""
    for c in chars.stream(begin, 40, temperature=temperature, seed=seed):
        if c == "\n":
            break
        line += c
    return line


def _parsed(tune: str, ended: bool) -> tuple[_abc.Tune | None, str]:
    """Return a tune that was read, or why it cannot be."""
    if not ended:
        return None, f"ABC: expected an end within {LONGEST} characters, got none"
    try:
        return _abc.parse(tune), ""
    except ValueError as error:
        return None, str(error)


def share_parsed(chars: CharModel, count: int, seed: int) -> dict[str, float]:
    """Return which share of tunes parses, and which of the bars of those is full.

    Args:
        chars: the model.
        count: tunes to write.
        seed: seed of the sampling.

    Returns:
        The share that parses, and the mean share of full bars of those that do.
    """
    seeds = np.random.SeedSequence(seed).generate_state(count)
    found = [_parsed(*write(chars, seed=int(number)))[0] for number in seeds]
    full = [tune.full() for tune in found if tune is not None]
    known = [share for share in full if not math.isnan(share)]
    return {
        "parsed": sum(tune is not None for tune in found) / count,
        "full_bars": sum(known) / len(known) if known else 0.0,
    }


def compose(
    chars: CharModel,
    fields: dict[str, str] | None = None,
    *,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Write tunes until one parses.

    >>> model = CharModel.fresh("\nABCK:", TextOptions(hidden=4))
    >>> sorted(compose(model, {"K": "C"}))
    ['abc', 'attempts', 'bars', 'notes', 'problem', 'seconds', 'seed']

    Args:
        chars: the model.
        fields: what M, L or K are to be.
        temperature: temperature of the sampling.
        seed: seed of the sampling.

    Returns:
        The tune ("abc"), how many were written for it, its bars as they are written, and the notes
        and seconds that are played; "problem" says why the last one does not parse, and is "" where
        it does.

    Raises:
        ValueError: a field that is no meter, unit or key.
    """
    attempts = 0
    for number in np.random.SeedSequence(seed).generate_state(TRIES):
        attempts += 1
        tune, ended = write(chars, fields, temperature=temperature, seed=int(number))
        found, problem = _parsed(tune, ended)
        if found is not None:
            break
    played = [] if found is None else found.played()
    return {
        "seed": seed,
        "abc": tune,
        "attempts": attempts,
        "problem": problem,
        "bars": 0 if found is None else len(found.bars),
        "notes": len(played),
        "seconds": float(played[-1].start + played[-1].length) * 240 / TEMPO if played else 0.0,
    }


def load(folder: str | os.PathLike[str]) -> CharModel:
    """Read the model that ``train compose --save`` wrote.

    >>> load("no-such-folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    FileNotFoundError: DIR: expected a folder with model.safetensors, found none at ...

    Args:
        folder: the folder.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: it is no model for music, or it is damaged.
    """
    chars = CharModel.load(folder, task="compose")
    missing = sorted({"\n", ":", "K"} - set(chars.alphabet))
    if missing:
        raise ValueError(
            f"DIR: expected a model whose alphabet has what every tune has, got "
            f"{os.fspath(folder)} without {missing[0]!r}"
        )
    return chars


def train(tunes: list[str], options: ComposeOptions, run: Run) -> tuple[CharModel, dict[str, Any]]:
    r"""Train on tunes and measure on those that were held out, a tenth of them.

    >>> tunes = [f"M:6/8\nK:G\n{a}B{b} gdB|{b}6|]\n" for a in "ABcde" for b in "GABcd"]
    >>> options = ComposeOptions(steps=2, hidden=4, written=1)
    >>> model, figures = train(tunes, options, Run(None, None, None, lambda line: None))
    >>> figures["tunes"], figures["test_tunes"]
    (25, 3)

    Args:
        tunes: tunes as `read` gives them.
        options: options of the model and its training.
        run: where the model is saved.

    Returns:
        The model, and the figures.

    Raises:
        ValueError: too few tunes, or too short ones.
    """
    own, valid, test = _parts(tunes)
    chars = _fresh(tunes, options)
    run.report(
        f"{len(tunes):,} different tunes, {sum(map(len, tunes)):,} characters; "
        f"{len(test):,} tunes are held out; {chars.model.count_parameters():,} parameters"
    )
    history = _fit(chars, own, valid, options, run)
    if run.folder is not None:  # before what can fail, or be interrupted
        chars.save(run.folder, task="compose")
    figures = {
        "task": "compose",
        "tunes": len(tunes),
        "test_tunes": len(test),
        "bits_per_char": bits_per_char(chars, test),
        "ngram_bits_per_char": ngram_bits(chars, own, test),
        **share_parsed(chars, options.written, options.seed),
        "parameters": chars.model.count_parameters(),
        "seconds": history.rows[-1]["seconds"],
    }
    return chars, figures


def _fresh(tunes: list[str], options: ComposeOptions) -> CharModel:
    """Return a model of all characters of the tunes, with its initial values."""
    text = TextOptions(
        steps=options.steps,
        hidden=options.hidden,
        layers=options.layers,
        cell=options.cell,
        rate=options.rate,
        dropout=options.dropout,
        seed=options.seed,
    )
    return CharModel.fresh("".join(sorted(set("\n".join(tunes)))), text)


def _fit(
    chars: CharModel, own: list[str], valid: list[str], options: ComposeOptions, run: Run
) -> History:
    """Train on tunes; others choose the best step."""
    trainer = trainer_of(chars, run.parallel)
    trainer.callbacks.append(EpochReport(run.report, bits=True))
    return trainer.fit(
        TuneLoader(chars, own),
        validation=TuneLoader(chars, valid, batch_size=8, window=4 * WINDOW),
        steps=options.steps,
        validate_every=max(1, options.steps // 8),
        seed=options.seed,
        progress=False,
    )


def _train(data: Sequence[str], options: ComposeOptions, run: Run) -> Figures:
    """Run ``train compose``."""
    chars, figures = train(read(data), options, run)
    run.report(
        f"bits per character of held-out tunes: {figures['bits_per_char']:.3f}; "
        f"{ORDER}-gram model: {figures['ngram_bits_per_char']:.3f}"
    )
    _report_parsed(figures, options.written, run)
    if run.plot is not None:
        _draw_one(chars, options.seed, run)
    return figures


def _report_parsed(figures: Figures, count: int, run: Run) -> None:
    run.report(
        f"{figures['parsed']:.0%} of {count} tunes that it wrote parse; {figures['full_bars']:.0%} "
        "of their bars are as long as the meter says"
    )


def _wanted(text: str) -> dict[str, Any]:
    """Return the fields, the seed and the temperature of an INPUT of predict."""
    fields: dict[str, str] = {}
    out: dict[str, Any] = {"fields": fields}
    for word in text.split():
        name, _, value = word.partition(":")
        key, _, number = word.partition("=")
        if name in _abc.KEPT and value and name not in fields:
            _abc.check_field(name, value)
            fields[name] = value
        elif key == "seed" and re.fullmatch(r"\d{1,18}", number) and key not in out:
            out[key] = int(number)
        elif key == "temperature" and re.fullmatch(r"\d{1,3}(\.\d{1,9})?", number):
            out[key] = float(number)
        else:
            raise ValueError(
                "INPUT: expected words such as M:6/8, L:1/8, K:G, seed=3 and temperature=0.6, each "
                f"once, got {word[:40]!r}"
            )
    return out


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    """Run ``predict`` with a model for music."""
    if run.folder is None:
        raise ValueError("DIR: expected the folder of a model, got none")
    check_out(run.out, ".abc", ".mid")
    wanted = [_wanted(text) for text in (inputs or [""])]
    for k, one in enumerate(wanted):
        one.setdefault("seed", k)
    chars = load(run.folder)
    tunes = [compose(chars, **one) for one in wanted]
    for k, tune in enumerate(tunes, 1):
        run.report(_titled(tune, k))
        if tune["problem"]:
            run.report(f"it does not parse, nor did {TRIES - 1} others: {tune['problem']}\n")
    if run.out is not None:
        save(tunes, run.out)
    if run.plot is not None:
        _draw(tunes, run)
    return {"task": "compose", "tunes": tunes}


def _titled(tune: dict[str, Any], number: int) -> str:
    """Return a tune with the fields that a book of tunes has."""
    return f"X:{number}\nT:Tune of seed {tune['seed']}\n{visible(tune['abc'])}"


def _heard(
    tunes: Sequence[dict[str, Any]], option_name: str
) -> list[tuple[dict[str, Any], _abc.Tune]]:
    """Return the tunes that parse."""
    out = [(tune, _abc.parse(tune["abc"])) for tune in tunes if not tune["problem"]]
    if not out:
        raise ValueError(f"{option_name}: expected a tune that parses, got none; train longer")
    return out


def save(tunes: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    r"""Write tunes as a book in ABC, or one after the other as a standard MIDI file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "tune.mid"
    >>> save([{"abc": "L:1/8\nK:C\nCEGc|\n", "problem": "", "seed": 0}], file)
    >>> file.read_bytes()[:4]
    b'MThd'

    Args:
        tunes: what `compose` returned for each.
        path: a file whose name ends in ``.abc``; in ``.mid`` tunes that do not parse are left out.

    Raises:
        ValueError: another name, or no tune that parses.
        OSError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".abc":
        book = "\n".join(_titled(tune, k) for k, tune in enumerate(tunes, 1))
        with atomic_write(path) as f:
            f.write(book.encode("utf-8"))
        return
    if suffix != ".mid":
        raise ValueError(
            f"--out: expected a name that ends in .abc or .mid, got {os.fspath(path)!r}"
        )
    heard = [tune for _, tune in _heard(tunes, "--out")]
    notes: list[_abc.Note] = []
    for tune in heard:
        pause = math.ceil(notes[-1].start + notes[-1].length) + 1 if notes else 0
        notes += [_abc.Note(n.start + pause, n.length, n.pitches) for n in tune.played()]
    _midi.write(path, notes, tempo=TEMPO, meter=heard[0].meter, sharps=heard[0].sharps)


def _draw(tunes: list[dict[str, Any]], run: Run) -> None:
    """Draw the first tunes as piano rolls."""
    heard = _heard(tunes, "--plot")[:4]
    figure = _picture.figure(9, 0.6 + 2.2 * len(heard))
    for axes, (tune, found) in zip(figure.subplots(len(heard), squeeze=False)[:, 0], heard):
        played = found.played()
        meter = (1, 1) if found.meter is None else found.meter
        bar = meter[0] / meter[1]
        for note in played:
            for pitch in note.pitches:
                left, width = float(note.start) / bar, float(note.length) / bar
                axes.barh(pitch, width * 0.94, left=left, height=0.9, color="tab:blue")
        pitches = [pitch for note in played for pitch in note.pitches]
        octaves = range(12 * (min(pitches) // 12), max(pitches) + 12, 12)
        axes.set_yticks(list(octaves), [f"C{k // 12 - 1}" for k in octaves])
        axes.set_ylim(min(pitches) - 2, max(pitches) + 2)
        axes.margins(x=0.01)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"seed {tune['seed']}", fontsize=9, loc="left")
        axes.set_xlabel("bar" if found.meter else "whole note")
    if run.plot is not None:
        _picture.save(figure, run.plot)
        run.report(f"picture  {run.plot}")


def _draw_one(chars: CharModel, seed: int, run: Run) -> None:
    """Draw a tune that is written now; where none parses say so, and keep the figures."""
    tune = compose(chars, seed=seed)
    if tune["problem"]:
        run.report(f"no picture: of {TRIES} tunes none parses; train longer")
    else:
        _draw([tune], run)


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    """Run ``evaluate`` with a model for music."""
    if run.folder is None:
        raise ValueError("DIR: expected the folder of a model, got none")
    chars = load(run.folder)
    tunes = read(data) if data else _parts(read())[2]
    figures: Figures = {
        "task": "compose",
        "tunes": len(tunes),
        "bits_per_char": bits_per_char(chars, tunes),
        **share_parsed(chars, 20, 0),
    }
    run.report(f"{figures['bits_per_char']:.3f} bits per character of {len(tunes)} tunes")
    _report_parsed(figures, 20, run)
    if run.plot is not None:
        _draw_one(chars, 0, run)
    return figures


APPLICATION = Application(
    help="learn tunes in ABC notation, and write new ones",
    data="files in ABC; without any, O'Neill's tunes (pip install --no-deps music21); in evaluate "
    "the tenth of them that was held out",
    inputs="for each tune words such as 'M:6/8 K:G seed=3 temperature=0.6'; --out FILE.mid or "
    "FILE.abc",
    options=ComposeOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)

readable(globals())
