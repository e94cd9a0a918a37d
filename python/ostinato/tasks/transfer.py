"""Train a model further on other data, beside the same model from scratch: ``train transfer``.

A model of ``train text`` learns another text, one of ``train transcribe`` another speaker or
language. What the two alphabets share keeps its row of the new head.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import losses, nn, optim
from .._annotations import readable
from .._check import Array
from ..data import StreamLoader
from ..train import Callback, GradualUnfreezing, Parallel, Trainer
from . import _picture, corpora, transcribe
from ._application import Application, Figures, Run, option, task_of
from ._clips import DIGITS, Clip
from ._recognizer import Augmented, Recognizer, TranscribeOptions, statistics
from .text import BATCH, WINDOW, CharModel, TextOptions

__all__ = ["APPLICATION", "Course", "TransferOptions", "carried_over", "compare", "run_course"]

VALID, TEST = 0.1, 0.2  # parts of a text that validate, and that are measured at the end
CHECKS = 20  # validations of a run
Report = Callable[[str], None]


@dataclass
class TransferOptions:
    """Options of ``train transfer``; the defaults take some minutes on two cores.

    >>> TransferOptions(steps=100).part
    0.1

    Attributes:
        source: folder of the model that is trained further; "" for one of Shakespeare's plays.
        play: the play that is left out of those, and then learned.
        part: part of the training data that is taken, at most 1.
        steps: updates of either model.
        source_steps: updates of the model of the other plays.
        hidden: units of that model.
        rate: peak learning rate.
        factor: what the rate is divided by from layer to layer, from the outputs to the inputs.
        unfreeze: steps after which the next layer is trained; 0 trains all from the start.
        seed: seed of all that is drawn.
        digits: the language in which digits that stand alone are said.
        strip_accents: whether letters are written without accents.
    """

    source: str = option("", "folder of the model that is trained further; default: one is made")
    play: str = option("hamlet", "without --source: the play that the model has not seen")
    part: float = option(0.1, "part of the training data that is taken, at most 1", kind="rate")
    steps: int = option(600, "updates of either model")
    source_steps: int = option(1500, "without --source: updates of the model of the other plays")
    hidden: int = option(192, "without --source: units of its layer")
    rate: float = option(3e-3, "peak learning rate", kind="rate")
    factor: float = option(1.3, "what the rate is divided by from layer to layer", kind="rate")
    unfreeze: int = option(20, "steps until the next layer is trained, or 0", kind="index")
    seed: int = option(0, "seed of all that is drawn", kind="index")
    digits: str = option(
        "", "speech: the language in which digits that stand alone are said", choices=("", *DIGITS)
    )
    strip_accents: bool = option(False, "speech: write letters without accents")


@dataclass
class Course:
    """How a run went: its validation loss after some steps, from 0 on.

    >>> Course([(0, 3.0), (10, 2.0), (20, 2.5)]).best
    (10, 2.0)

    Attributes:
        rows: pairs of steps and validation loss.
    """

    rows: list[tuple[int, float]]

    @property
    def best(self) -> tuple[int, float]:
        """The first of the smallest losses, with its steps."""
        return min(self.rows, key=lambda row: (row[1], row[0]))

    def steps_to(self, loss: float) -> int | None:
        """Return the steps after which the loss was first as small as this.

        Args:
            loss: the loss to reach.

        Returns:
            The steps; None if it never was.
        """
        return next((step for step, value in self.rows if value <= loss), None)


def compare(scratch: Course, transfer: Course) -> Figures:
    """Return how much sooner, and how much better, the transferred model was.

    >>> figures = compare(Course([(0, 4.0), (10, 2.0)]), Course([(0, 3.0), (5, 2.0), (10, 1.5)]))
    >>> figures["steps_share"], figures["loss_lower"]
    (0.5, 0.25)

    Args:
        scratch: the run from scratch.
        transfer: the run of the transferred model.

    Returns:
        ``steps_share``: the steps after which transfer was as good as scratch at its best, over
        those of scratch; None if it never was. ``loss_lower``: by which part of it the best
        validation loss is lower.
    """
    step, loss = scratch.best
    reached = transfer.steps_to(loss)
    return {
        "scratch_best_step": step,
        "transfer_steps_to_it": reached,
        "steps_share": None if reached is None else reached / max(step, 1),
        "scratch_valid_loss": loss,
        "transfer_valid_loss": transfer.best[1],
        "loss_lower": 1 - transfer.best[1] / loss,
    }


def carried_over(
    tensors: dict[str, Array], model: nn.Layer, rows: Sequence[str], old: Sequence[int], new: Array
) -> None:
    """Copy parameters into a model; of those whose rows are characters, the shared rows.

    >>> model = nn.Linear(2, 3, rng=0)
    >>> carried_over({"weight": np.ones((2, 2)), "bias": np.ones(2)}, model, ["weight", "bias"],
    ...              [0], np.array([2]))
    >>> model.parameters()["weight"][2].tolist()
    [1.0, 1.0]

    Args:
        tensors: parameters of the other model, by name.
        model: the model to change.
        rows: names of the parameters whose rows are characters.
        old: the rows that are copied, in the other model.
        new: their places in this one.
    """
    with model.write() as p:
        for name, a in tensors.items():
            if name in rows:
                p[name][new] = a[list(old)]
            else:
                p[name][...] = a


def run_course(
    model: nn.Layer,
    loss: losses.Loss,
    data: Any,
    valid: Any,
    options: TransferOptions,
    *,
    transferred: bool,
    report: Report,
    parallel: Parallel | None = None,
) -> Course:
    """Train one of the two models; it ends with the parameters of its best validation.

    >>> x = np.random.default_rng(0).normal(size=(16, 5, 2)).astype(np.float32)
    >>> model = nn.Sequential(nn.GRU(2, 4, batch_first=True, rng=0), nn.Linear(4, 1, rng=1))
    >>> data, options = (x, x[..., :1]), TransferOptions(steps=20)
    >>> course = run_course(
    ...     model, losses.MSE(), data, data, options, transferred=False, report=lambda line: None
    ... )
    >>> course.best[1] < course.rows[0][1]
    True

    Args:
        model: the model.
        loss: the loss.
        data: what it is trained on, for `Trainer.fit`.
        valid: what validates it.
        options: steps, rate, factor and unfreeze.
        transferred: whether layers have rates of their own and are unfrozen gradually.
        report: called with each line that people read.
        parallel: the processes that train together; None: this one alone.

    Returns:
        The course of the run.
    """
    schedule = optim.Warmup(
        optim.Cosine(options.rate, steps=options.steps, final=options.rate / 20),
        steps=max(1, min(50, options.steps // 10)),
    )
    groups = optim.discriminative(model, options.factor) if transferred else None
    callbacks: list[Callback] = []
    if transferred and options.unfreeze:
        callbacks.append(GradualUnfreezing(options.unfreeze))
    trainer = Trainer(
        model,
        loss,
        optim.AdamW(schedule, betas=(0.9, 0.98), groups=groups),
        clip_norm=5.0,
        callbacks=callbacks,
        parallel=parallel,
    )
    first = trainer.evaluate(valid)["loss"]
    before = model.flat.copy()
    history = trainer.fit(
        data,
        validation=valid,
        steps=options.steps,
        epochs=options.steps,
        validate_every=max(options.steps // CHECKS, 1),
        seed=options.seed,
        progress=False,
    )
    rows = [(int(r["step"]), float(r["valid_loss"])) for r in history.rows]
    course = Course([(0, first), *rows])
    if course.best[0] == 0:  # no step made it better
        with model.write() as p:
            p.flat[...] = before
    name = "transferred" if transferred else "from scratch"
    report(
        f"{name}: validation loss {first:.3f} at first, {course.best[1]:.3f} at best, after "
        f"{course.best[0]} steps"
    )
    return course


# -- text ------------------------------------------------------------------------------------------


def _bits(chars: CharModel, ids: Array) -> float:
    """Return the bits per character of a text."""
    trainer = Trainer(chars.model, losses.CrossEntropy())
    loader = StreamLoader(ids, 1, min(4 * WINDOW, len(ids) - 1))
    return trainer.evaluate(loader)["loss"] / math.log(2)


def _adapted(source: CharModel, alphabet: str) -> CharModel:
    """Return a copy of a model for another alphabet."""
    made = CharModel.fresh(alphabet, source.options)
    shared = [c for c in alphabet if c in source.index]
    names = list(source.model.parameters())
    rows = [names[0], *names[-2:]]  # the embedding, and weight and bias of the head
    old = [source.index[c] for c in shared]
    new = np.array([made.index[c] for c in shared], np.int64)
    carried_over(source.model.state_dict(), made.model, rows, old, new)
    return made


def _source_of_plays(plays: dict[str, str], options: TransferOptions, run: Run) -> CharModel:
    """Train a model on all plays but one."""
    others = corpora.encode("\n\n".join(t for n, t in plays.items() if n != options.play))
    text_options = TextOptions(
        steps=options.source_steps, hidden=options.hidden, rate=options.rate, seed=options.seed
    )
    chars = CharModel.fresh(others.alphabet, text_options)
    schedule = optim.Warmup(
        optim.Cosine(options.rate, steps=options.source_steps, final=options.rate / 20), steps=50
    )
    trainer = Trainer(
        chars.model,
        losses.CrossEntropy(),
        optim.AdamW(schedule, betas=(0.9, 0.99)),
        clip_norm=1.0,
        parallel=run.parallel,
    )
    run.report(f"learning {len(plays) - 1} plays, {len(others):,} characters")
    trainer.fit(StreamLoader(others.ids, BATCH, WINDOW), steps=options.source_steps, progress=False)
    return chars


def _text(source: CharModel | None, text: str, options: TransferOptions, run: Run) -> Figures:
    """Transfer a model of text to another text."""
    begin = len(text) - int(len(text) * (VALID + TEST))
    end = len(text) - int(len(text) * TEST)
    train = text[: max(round(options.part * begin), 1)]
    if len(train) < 8 * WINDOW or end - begin < 2 * WINDOW:
        raise ValueError(
            f"DATA: expected at least {8 * WINDOW} characters in the part that is trained on, got "
            f"{len(train)} of {len(text)}"
        )
    if source is None:
        source = _source_of_plays(corpora.plays(), options, run)
    alphabet = "".join(sorted({*source.alphabet, *text}))
    transferred = _adapted(source, alphabet)
    scratch = CharModel.fresh(alphabet, replace(source.options, seed=options.seed))
    ids = transferred.encode(text)
    parts = ids[: len(train)], ids[begin:end], ids[end:]
    run.report(
        f"{len(parts[0]):,} characters to learn, {len(parts[1]):,} validate, {len(parts[2]):,} are "
        "held out"
    )
    loader = StreamLoader(parts[0], min(8, len(train) // WINDOW), WINDOW)
    valid = StreamLoader(parts[1], 1, min(4 * WINDOW, len(parts[1]) - 1))
    loss = losses.CrossEntropy()
    given: dict[str, Any] = {"report": run.report, "parallel": run.parallel}
    courses = [
        run_course(m.model, loss, loader, valid, options, transferred=t, **given)
        for m, t in ((scratch, False), (transferred, True))
    ]
    bits = [_bits(m, parts[2]) for m in (scratch, transferred)]
    before = _bits(_adapted(source, alphabet), parts[2])
    if run.folder is not None:
        transferred.save(run.folder)
    figures = {
        "unit": "bits per character",
        "source": before,
        "scratch": bits[0],
        "transfer": bits[1],
        "better": 1 - bits[1] / bits[0],
    }
    return _told(figures, courses, run)


# -- speech ----------------------------------------------------------------------------------------


def _parts(
    clips: list[Clip], options: TranscribeOptions
) -> tuple[list[Clip], list[Clip], list[Clip]]:
    """Return the clips to learn, those that validate, and those that are held out."""
    rest, held_out = transcribe.divide(clips, replace(options, held_out=VALID, part=1.0))
    train, valid = transcribe.divide(rest, replace(options, held_out=VALID))
    return train, valid, held_out


def _transferred(source: Recognizer, scratch: Recognizer) -> Recognizer:
    """Return a recogniser like the one from scratch, with what the source has learned."""
    head = copy.deepcopy(scratch.model["head"])
    model = source.model.replaced("head", head)
    made = Recognizer(scratch.options, scratch.alphabet, scratch.mean, scratch.scale, model)
    shared = "".join(c for c in scratch.alphabet if c in source.alphabet)
    old, new = ([0, *r.labels(shared).tolist()] for r in (source, made))  # 0 is the blank
    rows = dict(source.model["head"].parameters())
    carried_over(rows, head, list(rows), old, np.array(new))
    return made


def _speech(source: Recognizer, data: Sequence[str], options: TransferOptions, run: Run) -> Figures:
    """Transfer a recogniser to another speaker or language."""
    wanted = replace(
        source.options,
        seed=options.seed,
        part=options.part,
        digits=options.digits,
        strip_accents=options.strip_accents,
    )
    train, valid, held_out = _parts(transcribe.read(data, wanted, run.report), wanted)
    train = transcribe.fitting(train, wanted, run.report)
    known = set(source.alphabet).union(*(c.text for c in train))
    valid = [c for c in valid if set(c.text) <= known]
    valid = transcribe.fitting(valid, wanted, run.report)
    scratch = Recognizer(wanted, "".join(sorted(known)), *statistics(train, wanted))
    models = scratch, _transferred(source, scratch)
    run.report(f"{len(train)} clips to learn, {len(valid)} validate, {len(held_out)} are held out")
    loader = Augmented(train, scratch)
    features = [scratch.features(c.samples) for c in valid]
    validation = features, [scratch.labels(c.text) for c in valid]
    loss = losses.CTC(impossible="skip")
    given: dict[str, Any] = {"report": run.report, "parallel": run.parallel}
    known_clips = [*train, *valid]  # evaluate leaves out what chose the parameters, too
    courses, errors = [], []
    for recognizer, t in zip(models, (False, True)):
        net = recognizer.model
        courses.append(run_course(net, loss, loader, validation, options, transferred=t, **given))
        recognizer.language.fit(loader.labels)
        recognizer.trained = np.array(sorted({c.key for c in known_clips}), np.int64)
        errors.append(transcribe.measure(recognizer, held_out)[0]["cer"])
    if run.folder is not None:
        models[1].save(run.folder)
    figures = {
        "unit": "character error rate",
        "scratch": errors[0],
        "transfer": errors[1],
        "better": 1 - errors[1] / max(errors[0], 1e-9),
    }
    return _told(figures, courses, run)


# -- both ------------------------------------------------------------------------------------------


def _told(figures: Figures, courses: list[Course], run: Run) -> Figures:
    """Say the figures, draw the two courses, and return all."""
    figures = {**figures, **compare(*courses)}
    reached = figures["transfer_steps_to_it"]
    run.report(
        f"held out, {figures['unit']}: {figures['scratch']:.3f} from scratch, "
        f"{figures['transfer']:.3f} transferred, {figures['better']:.1%} better"
    )
    best = figures["scratch_best_step"]
    run.report(
        f"as good as scratch after {best} steps: "
        + ("never" if reached is None else f"transferred after {reached} steps")
    )
    if run.plot is not None:
        _draw(run.plot, courses, run.report)
    rows = {n: c.rows for n, c in zip(("scratch_course", "transfer_course"), courses)}
    return {"task": "transfer", **figures, **rows}


def _draw(path: Path, courses: list[Course], report: Report) -> None:
    """Draw the validation losses of both by steps."""
    figure = _picture.figure(6.0, 3.4)
    axes = figure.subplots()
    for course, name in zip(courses, ("from scratch", "transferred")):
        axes.plot(*zip(*course.rows), marker=".", label=name)
    axes.set(xlabel="steps", ylabel="validation loss (nats)")
    axes.legend(frameon=False)
    _picture.save(figure, path, dpi=110)
    report(f"picture  {path}")


def _train(data: Sequence[str], options: TransferOptions, run: Run) -> Figures:
    """Train both models, and save the transferred one as a model of its own kind."""
    given = {f.name for f in fields(options) if getattr(options, f.name) != f.default}
    for name in ("play", "source_steps", "hidden"):
        if options.source and name in given:
            value = getattr(options, name)
            raise ValueError(f"{name}: expected none with --source, got {value!r:.40}")
    if options.part > 1:
        raise ValueError(f"part: expected a number above 0 and at most 1, got {options.part!r}")
    if options.factor < 1:
        raise ValueError(f"factor: expected a number of at least 1, got {options.factor!r}")
    began = time.perf_counter()
    task = task_of(options.source) if options.source else "plays"
    for name in ("digits", "strip_accents"):
        if task in ("plays", "text") and name in given:
            raise ValueError(
                f"{name}: expected none without a model of train transcribe as --source, got "
                f"{getattr(options, name)!r}"
            )
    if task == "plays":
        if data:
            raise ValueError(
                "DATA: expected none without --source DIR, the model that learns it, got "
                f"{len(data)}"
            )
        plays = corpora.plays()
        if options.play not in plays:
            raise ValueError(f"play: expected one of {', '.join(plays)}, got {options.play!r:.40}")
        figures = _text(None, plays[options.play], options, run)
    elif task == "text":
        if not data:
            raise ValueError("DATA: expected files of text, got none")
        encoded = corpora.read(data)
        text = encoded.text(0, len(encoded))
        run.report(f"{encoded.name}: {len(encoded):,} characters")
        figures = _text(CharModel.load(options.source), text, options, run)
    elif task == "transcribe":
        figures = _speech(Recognizer.load(options.source), data, options, run)
    else:
        raise ValueError(
            "--source: expected a model of train text or of train transcribe, got "
            f"{options.source} of another kind"
        )
    return {**figures, "source_task": task, "seconds": time.perf_counter() - began}


APPLICATION = Application(
    help="train a model further on other data, beside the same model from scratch",
    data="as in the command that made the model of --source: files of text, or clips; without "
    "--source none",
    inputs="",
    options=TransferOptions,
    train=_train,
)
"""What the command line needs to know of ``train transfer``."""

readable(globals())
