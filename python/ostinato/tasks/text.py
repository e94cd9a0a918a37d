"""A character language model: train one on any text, and write new text with it."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import _check, _device, losses, nn, optim
from .._check import Array
from ..data import StreamLoader
from ..train import Callback, Row, Trainer
from .models import load_model, save_model

__all__ = ["CharModel", "TextOptions", "known_words", "train_text"]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
BATCH, WINDOW, EMBEDDING = 32, 64, 64
SHORTEST = 1000  # characters: below, nothing could be held out


@dataclass
class TextOptions:
    """What ``train text`` can be told; the defaults take about three minutes on two cores."""

    steps: int = 4000
    hidden: int = 320
    layers: int = 1
    cell: str = "lstm"
    rate: float = 5e-3
    dropout: float = 0.0
    seed: int = 0
    precision: str = "float32"
    device: str = "cpu"


class CharModel:
    """A trained model with its alphabet: all that is needed to write text.

    >>> model = CharModel.fresh("ab", TextOptions(hidden=8))
    >>> len(model.generate("a", 5, seed=0))
    5
    """

    def __init__(self, alphabet: str, options: TextOptions, model: nn.Sequential) -> None:
        self.alphabet, self.options, self.model = alphabet, options, model
        self.index = {c: i for i, c in enumerate(alphabet)}

    @classmethod
    def fresh(cls, alphabet: str, options: TextOptions) -> CharModel:
        """An untrained model over these characters."""
        _check.choice("cell", options.cell, tuple(CELLS))
        rngs = np.random.SeedSequence(options.seed).spawn(4)
        make = [np.random.default_rng(r) for r in rngs]
        cell = CELLS[options.cell](
            EMBEDDING,
            options.hidden,
            options.layers,
            dropout=options.dropout if options.layers > 1 else 0.0,
            precision="float32" if options.precision == "float16" else options.precision,  # which a GPU alone has
            rng=make[1],
        )
        if isinstance(cell, nn.LSTM):
            cell.initialize(forget_bias=1.0)
        layers: list[nn.Layer] = [nn.Embedding(len(alphabet), EMBEDDING, rng=make[0]), cell]
        if options.dropout:
            layers.append(nn.Dropout(options.dropout, rng=make[3]))
        layers.append(nn.Linear(options.hidden, len(alphabet), rng=make[2]))
        return cls(alphabet, options, nn.Sequential(*layers))

    def set_precision(self, precision: str) -> None:
        """Let the recurrent layers multiply in "float32", "bfloat16", "int8" (CPU) or "float16" (GPU) from now on."""
        for layer in self.model.layers:
            if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
                layer.precision = precision

    def encode(self, text: str, name: str = "text") -> Array:
        """Indices of the characters."""
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise ValueError(f"{name}: expected characters that the model has seen, got {''.join(unknown)!r}")
        return np.array([self.index[c] for c in text], np.int64)

    def stream(self, prompt: str, length: int, *, temperature: float = 1.0, seed: int | None = None) -> Iterator[str]:
        """New characters after the prompt, one after the other. The arguments are checked before the first is asked for."""
        _check.positive("length", length, 0)
        _check.finite("temperature", temperature)
        if not prompt:
            prompt = "\n" if "\n" in self.index else self.alphabet[0]
        return self._stream(self.encode(prompt, "prompt"), length, temperature, np.random.default_rng(seed))

    def _stream(self, prompt: Array, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        y, state = self.model(self._placed(prompt[:, None]))
        for _ in range(length):
            logits = _device.host(y[-1, 0]).astype(np.float64)
            if temperature == 0:
                k = int(logits.argmax())
            else:
                p = np.exp((logits - logits.max()) / temperature)
                k = int(rng.choice(len(p), p=p / p.sum()))
            yield self.alphabet[k]
            y, state = self.model(self._placed(np.array([[k]])), state)

    def _placed(self, ids: Array) -> Any:
        return _device.like(ids, self.model.flat)

    def generate(self, prompt: str, length: int, *, temperature: float = 1.0, seed: int | None = None) -> str:
        """So many new characters."""
        return "".join(self.stream(prompt, length, temperature=temperature, seed=seed))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``: parameters, alphabet and options."""
        save_model(folder, "text", self.model, {"alphabet": self.alphabet, "options": asdict(self.options)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CharModel:
        """Read what `save` wrote."""
        tensors, facts = load_model(folder, "text")
        model = cls.fresh(facts["alphabet"], TextOptions(**facts["options"]))
        model.model.load_state_dict(tensors)
        return model


def known_words(text: str, corpus: str) -> float:
    """The share of the words in ``text`` that occur in ``corpus``.

    >>> known_words("To be or not to bee", "to be, or not")
    0.8333333333333334
    """
    words = [w.lower() for w in re.findall(r"[A-Za-z']+", text)]
    known = {w.lower() for w in re.findall(r"[A-Za-z']+", corpus)}
    return sum(w in known for w in words) / max(len(words), 1)


class _Report(Callback):
    """Held-out bits per character as they fall, and a sample of what the model writes."""

    def __init__(self, chars: CharModel, prompt: str, folder: Path | None, out: TextIO) -> None:
        self.chars, self.prompt, self.folder, self.out = chars, prompt, folder, out

    def on_row(self, trainer: Trainer, row: Row) -> None:
        bits = [row[k] / math.log(2) for k in ("loss", "valid_loss")]
        print(
            f"step {row['step']:5.0f}  {row['seconds']:4.0f} s  bits per character: {bits[0]:.3f} trained on, {bits[1]:.3f} held out",
            file=self.out,
        )
        sample = self.chars.generate(self.prompt, 160, temperature=0.7, seed=int(row["step"]))
        print("    " + sample.replace("\n", "\n    "), file=self.out, flush=True)
        if self.folder is not None:
            self.chars.save(self.folder)  # so that an interrupted run leaves a model to generate with


def train_text(
    text: str,
    name: str,
    options: TextOptions,
    *,
    save: str | os.PathLike[str] | None = None,
    resume: bool = False,
    out: TextIO = sys.stdout,
) -> tuple[CharModel, dict[str, Any]]:
    """Train on the first 95% of a text, hold out the rest; returns the model and the figures."""
    if len(text) < SHORTEST:
        raise ValueError(f"FILE: expected at least {SHORTEST} characters, got {len(text)} in {name}")
    chars = CharModel.fresh("".join(sorted(set(text))), options)
    chars.model.to(options.device)
    chars.set_precision(options.precision)
    folder = None if save is None else Path(save)
    if folder is not None:
        kept = folder / "checkpoint.safetensors"
        if kept.exists() and not resume:
            raise ValueError(
                f"--save: expected a folder without a model, found one in {folder}; go on with --resume, or take another"
            )
        if resume and not kept.exists():
            raise ValueError(f"--resume: expected a checkpoint to go on from, found none in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
    stream, cut = chars.encode(text), int(len(text) * 0.95)
    batch = min(BATCH, cut // 8)
    train = StreamLoader(stream[:cut], batch, WINDOW)
    valid = StreamLoader(stream[cut : cut + 200_000], min(BATCH, (len(text) - cut) // 8), 4 * WINDOW)
    schedule = optim.Warmup(
        optim.Cosine(options.rate, steps=max(options.steps, 1), final=options.rate / 20),
        steps=max(1, min(50, options.steps // 10)),
    )
    trainer = Trainer(chars.model, losses.CrossEntropy(), optim.AdamW(schedule, betas=(0.9, 0.99)), clip_norm=1.0)
    trainer.callbacks.append(_Report(chars, text[cut : cut + 64], folder, out))
    print(
        f"{name}: {len(text):,} characters, {len(chars.alphabet)} different; {chars.model.count_parameters():,} parameters",
        file=out,
        flush=True,
    )
    start = time.perf_counter()
    first = trainer.optimizer.steps
    history = trainer.fit(
        train,
        validation=valid,
        steps=options.steps,
        validate_every=max(1, options.steps // 8),
        checkpoint=None if folder is None else folder / "checkpoint.safetensors",
        resume=resume,
        log=None if folder is None else folder / "log.csv",
        progress=False,
    )
    seconds = time.perf_counter() - start
    valid_loss = trainer.evaluate(valid)["loss"]
    figures = {
        "task": "text",
        "corpus": name,
        "valid_bits_per_char": valid_loss / math.log(2),
        "tokens_per_second": (trainer.optimizer.steps - first) * batch * WINDOW / max(seconds, 1e-9),
        "steps": trainer.optimizer.steps,
        "parameters": chars.model.count_parameters(),
        "seconds": seconds,
        "known_words": known_words(
            chars.generate(text[cut : cut + 64], 2000, temperature=0.8, seed=options.seed), text
        ),
        "stopped": history.stopped,
    }
    if folder is not None:
        chars.save(folder)
    return chars, figures
