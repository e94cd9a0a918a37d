"""Train a recogniser of speech on clips with transcripts: ``train transcribe``.

Log-mel features, a convolution with a stride, a bidirectional LSTM, the CTC loss, and a search over
prefixes with a language model of characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import audio, decoding, losses, metrics, optim
from .._annotations import readable
from .._check import Array
from .._files import atomic_write
from ..train import Callback, Parallel, Trainer
from . import _picture
from ._application import Application, Figures, Run, check_out, held_out_of, one_cell
from ._clips import QUIETEST, Clip, Left, read_clips, sound_of
from ._progress import EpochReport
from ._recognizer import (
    Augmented,
    Recognizer,
    TranscribeOptions,
    check_values,
    hop_of,
    statistics,
    steps_needed,
)
from ._visible import visible

__all__ = ["APPLICATION", "Recognizer", "TranscribeOptions", "divide", "measure", "train", "words"]

SHOWN = 8  # texts that are shown after training
Report = Callable[[str], None]


def divide(clips: Sequence[Clip], options: TranscribeOptions) -> tuple[list[Clip], list[Clip]]:
    """Divide clips by their texts: those that are trained on, and those that are held out.

    Clips of one text are in the same part. The order of the texts is drawn by the seed.

    >>> clips = [Clip(str(k), np.zeros(3), text) for k, text in enumerate("abcab")]
    >>> train, held_out = divide(clips, TranscribeOptions(held_out=0.3, seed=1))
    >>> sorted(c.name for c in train), sorted(c.name for c in held_out)
    (['1', '2', '4'], ['0', '3'])

    Args:
        clips: the clips.
        options: its held_out, part and seed.

    Returns:
        The two parts. Of the first one only a part is taken where the options say so.

    Raises:
        ValueError: there are too few texts for two parts.
    """
    texts = sorted({c.text for c in clips})
    count = held_out_of(options.held_out, len(texts))
    if options.held_out:
        count = max(count, 1)
    if len(texts) - count < 1:
        raise ValueError(
            f"DATA: expected at least {count + 1} different texts, got {len(texts)}; --held-out 0 "
            "holds none out"
        )
    rng = np.random.default_rng(options.seed)
    order = [texts[k] for k in rng.permutation(len(texts))]
    out = set(order[:count])
    rest = order[count:]
    taken = set(rest[: max(round(options.part * len(rest)), 1)])
    return [c for c in clips if c.text in taken], [c for c in clips if c.text in out]


def fitting(clips: Sequence[Clip], options: TranscribeOptions, say: Report) -> list[Clip]:
    """Return the clips that are long enough for CTC to write their texts; the others are said."""
    left, kept = Left(), []
    window, hop = round(0.025 * options.sample_rate), hop_of(options)
    for c in clips:
        frames = max((len(c.samples) - window) // hop + 1, 0)
        labels = np.array([ord(x) for x in c.text])
        if -(-frames // options.stride) < steps_needed(labels):
            left.add("shorter than its text allows", c.name)
        else:
            kept.append(c)
    left.report(say)
    if not kept:
        output = 1000 * hop * options.stride / options.sample_rate
        raise ValueError(
            "DATA: expected clips long enough for their texts, got shorter ones alone: each "
            f"character takes {output:.4g} ms; a smaller --stride, or other transcripts"
        )
    return kept


def train(
    clips: Sequence[Clip],
    options: TranscribeOptions,
    *,
    start: Recognizer | None = None,
    optimizer: optim.Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    report: Report = print,
    parallel: Parallel | None = None,
) -> Recognizer:
    """Train a recogniser on clips.

    >>> noise = np.random.default_rng(0).normal(size=8000) / 10
    >>> clips = [Clip("one", noise, "no"), Clip("two", noise[4000:], "noise")]
    >>> options = TranscribeOptions(hidden=4, layers=1, epochs=1)
    >>> recognizer = train(clips, options, report=lambda line: None)
    >>> recognizer.alphabet
    'einos'

    Args:
        clips: the clips, all of which are trained on.
        options: the options.
        start: a recogniser whose network is trained further; None: a new one.
        optimizer: the optimiser; None: AdamW with a warm-up and a cosine.
        callbacks: callbacks of the Trainer.
        report: called with each line that people read.
        parallel: the processes that train together; None: this one alone.

    Returns:
        The recogniser.

    Raises:
        ValueError: no clip is long enough for its text.
    """
    clips = fitting(clips, options, report)
    if start is None:
        alphabet = "".join(sorted(set("".join(c.text for c in clips))))
        recognizer = Recognizer(options, alphabet, *statistics(clips, options))
    else:
        recognizer = start
    data = Augmented(clips, recognizer)
    recognizer.language.fit(data.labels)
    recognizer.trained = np.array(sorted({c.key for c in clips}), np.int64)
    steps = options.epochs * len(data)
    schedule = optim.Warmup(
        optim.Cosine(options.rate, steps=steps, final=options.rate / 50),
        steps=max(1, min(60, steps // 10)),
    )
    trainer = Trainer(
        recognizer.model,
        losses.CTC(impossible="skip"),  # stretched or faster, a clip may be too short
        optim.AdamW(schedule, betas=(0.9, 0.98)) if optimizer is None else optimizer,
        clip_norm=5.0,
        callbacks=[*callbacks, EpochReport(report, every=max(options.epochs // 10, 1))],
        parallel=parallel,
    )
    seconds = sum(len(c.samples) for c in clips) / options.sample_rate
    report(
        f"{len(clips)} clips, {seconds / 60:.1f} minutes, {len(recognizer.alphabet)} characters; "
        f"{recognizer.model.count_parameters():,} parameters"
    )
    trainer.fit(data, epochs=options.epochs, seed=options.seed, progress=False)
    return recognizer


def measure(recognizer: Recognizer, clips: Sequence[Clip]) -> tuple[Figures, list[str]]:
    """Return the error rates on clips, and what was recognised in each.

    >>> noise = np.random.default_rng(0).normal(size=8000) / 10
    >>> recognizer = Recognizer(TranscribeOptions(hidden=4), "no", np.zeros(40), np.ones(40))
    >>> figures, texts = measure(recognizer, [Clip("one", noise, "no")])
    >>> figures["clips"], len(texts)
    (1, 1)

    Args:
        recognizer: the recogniser.
        clips: clips that it was not trained on.

    Returns:
        ``cer`` and ``wer`` of the search with the language model, ``cer_greedy`` without it, and
        the number of clips; and the texts.
    """
    features = [recognizer.features(c.samples) for c in clips]
    logits = recognizer.logits(features)
    texts = recognizer.search(logits)
    right = [c.text for c in clips]
    return {
        "clips": len(clips),
        "cer": metrics.cer(right, texts),
        "wer": metrics.wer(right, texts),
        "cer_greedy": metrics.cer(right, recognizer.greedy(logits)),
    }, texts


def _spans(recognizer: Recognizer, logits: Array, text: str) -> Array:
    """Return the first output of each character of a text, and that behind its last, ``[n,2]``."""
    return decoding.ctc_align([logits], [recognizer.labels(text)])[0]


def words(recognizer: Recognizer, logits: Array, text: str) -> list[dict[str, Any]]:
    """Return when each word of a text was said.

    >>> recognizer = Recognizer(TranscribeOptions(hidden=4), " ab", np.zeros(40), np.ones(40))
    >>> path = 9 * np.eye(4)[[0, 2, 2, 1, 0, 3, 0]]  # blank a a space blank b blank
    >>> words(recognizer, path, "a b")[0]
    {'word': 'a', 'begin': 0.03, 'end': 0.09}

    Args:
        recognizer: the recogniser.
        logits: what it gives for the sound.
        text: what is said in it.

    Returns:
        Each word with its begin and end in seconds.
    """
    spans = _spans(recognizer, logits, text)
    second = recognizer.step
    out, begin = [], 0
    for word in text.split(" ") if text else []:
        end = begin + len(word)
        if word:  # the search may find spaces at an end, or several in a row
            out.append(
                {
                    "word": word,
                    "begin": round(float(spans[begin][0] * second), 3),
                    "end": round(float(spans[end - 1][1] * second), 3),
                }
            )
        begin = end + 1
    return out


def _draw(path: Path, recognizer: Recognizer, clip: Clip, text: str, say: Report) -> None:
    """Draw the spectrogram of a clip, with the characters where they were heard."""
    options = recognizer.options
    features = recognizer.features(clip.samples)
    logits = recognizer.logits([features])[0]
    spans = _spans(recognizer, logits, text)
    energy = audio.log_mel(clip.samples, options.sample_rate, bands=options.bands)
    seconds = recognizer.hop * len(energy)
    figure = _picture.figure(max(5.0, min(3 + 1.6 * seconds, 16)), 3.2)
    axes = figure.subplots()
    axes.imshow(energy.T, origin="lower", aspect="auto", extent=(0, seconds, 0, options.bands))
    for c, (first, last) in zip(text, spans):
        at = recognizer.step * first
        axes.axvline(at, color="white", lw=0.4, alpha=0.6)
        middle = at + recognizer.step * (last - first) / 2
        axes.text(middle, options.bands + 0.8, "\u00b7" if c == " " else c, ha="center")
    axes.set_ylim(0, options.bands + 4)
    axes.set(xlabel="seconds", ylabel="mel band")
    axes.set_title(visible(clip.name).replace("$", r"\$"), loc="left", fontsize="small")
    _picture.save(figure, path, dpi=110)
    say(f"picture  {path}")


def read(data: Sequence[str], options: TranscribeOptions, say: Report) -> list[Clip]:
    return read_clips(
        data,
        options.sample_rate,
        digits=options.digits,
        strip_accents=options.strip_accents,
        longest=options.longest,
        say=say,
    )


def show(recognizer: Recognizer, held_out: Sequence[Clip], run: Run) -> Figures:
    """Measure a recogniser, show some texts, and draw the first one.

    Args:
        recognizer: the recogniser.
        held_out: clips that it was not trained on.
        run: where to write.

    Returns:
        The figures.
    """
    figures, texts = measure(recognizer, held_out)
    run.report(
        f"held out: CER {figures['cer']:.1%}, WER {figures['wer']:.1%}; without search and "
        f"language model CER {figures['cer_greedy']:.1%}"
    )
    for c, text in list(zip(held_out, texts))[:SHOWN]:
        run.report(f"  {c.text}\n  > {text}")
    if run.plot is not None:
        k = max(range(len(held_out)), key=lambda k: min(len(held_out[k].text), 40))
        _draw(run.plot, recognizer, held_out[k], texts[k], run.report)
    figures["texts"] = {c.name: text for c, text in zip(held_out, texts)}
    return figures


def _train(data: Sequence[str], options: TranscribeOptions, run: Run) -> Figures:
    """Train, save and measure."""
    check_values(options)
    some, held_out = divide(read(data, options, run.report), options)
    began = time.perf_counter()
    recognizer = train(some, options, report=run.report, parallel=run.parallel)
    seconds = time.perf_counter() - began
    if run.folder is not None:
        recognizer.save(run.folder)
    figures = show(recognizer, held_out, run) if held_out else {"clips": 0}
    parameters = recognizer.model.count_parameters()
    return {"task": "transcribe", **figures, "parameters": parameters, "seconds": seconds}


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    """Measure on the clips of DATA that the model was not trained on."""
    assert run.folder is not None
    recognizer = Recognizer.load(run.folder)
    clips = read(data, recognizer.options, run.report)
    known = set(recognizer.trained.tolist())
    new = [c for c in clips if c.key not in known]
    if len(new) < len(clips):
        run.report(f"{len(clips) - len(new)} clips that the model was trained on are left out")
    if not new:
        raise ValueError("DATA: expected clips that the model was not trained on, got others alone")
    return {"task": "transcribe", **show(recognizer, new, run)}


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    """Transcribe WAV files."""
    assert run.folder is not None
    check_out(run.out, ".tsv", ".txt")
    if not inputs:
        raise ValueError("INPUT: expected WAV files, got none")
    recognizer = Recognizer.load(run.folder)
    clips, seen, rate = [], set[str](), recognizer.options.sample_rate
    for name in inputs:
        samples, _ = sound_of("INPUT", Path(name), rate, run.report, seen)
        if len(samples) < 0.025 * rate:
            raise ValueError(
                f"INPUT: expected at least 25 ms of sound, got {len(samples)} samples in {name}"
            )
        if abs(samples).max() < QUIETEST:
            run.report(f"silent: {name}")
        clips.append(Clip(name, samples, ""))
    logits = recognizer.logits([recognizer.features(c.samples) for c in clips])
    found: list[dict[str, Any]] = []
    for c, y in zip(clips, logits):
        silent = abs(c.samples).max() < QUIETEST
        text = "" if silent else recognizer.search([y])[0]
        found.append({"file": c.name, "text": text, "words": words(recognizer, y, text)})
        run.report(f"{one_cell(c.name)}\t{text}")
    if run.plot is not None:
        _draw(run.plot, recognizer, clips[0], found[0]["text"], run.report)
    if run.out is not None:
        with atomic_write(run.out) as f:
            f.write("".join(f"{one_cell(r['file'])}\t{r['text']}\n" for r in found).encode())
    return {"task": "transcribe", "transcripts": found}


APPLICATION = Application(
    help="recognise speech: clips of one speaker with transcripts",
    data="a folder of WAV files and a file of transcripts (name TAB text, or name: text); without "
    "DATA the English clips of Debian's asterisk packages",
    inputs="WAV files",
    options=TranscribeOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)
"""What the command line needs to know of ``train transcribe``."""

readable(globals())
