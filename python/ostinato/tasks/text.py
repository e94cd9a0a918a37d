"""A character language model: train one on any text, and write new text with it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import _check, _deferred, _device, losses, nn, optim
from .._annotations import readable
from .._check import Array
from ..data import StreamLoader
from ..train import Callback, Parallel, Row, Trainer
from ..train._parallel import ALONE
from ._visible import visible
from .corpora import Encoded, encode, known_words
from .models import (
    CHECKPOINT,
    LOG,
    check_shapes,
    known_options,
    load_model,
    prepare_folder,
    recurrent_shapes,
    save_model,
)

__all__ = ["CharModel", "TextOptions", "train_text"]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}
BATCH, WINDOW, EMBEDDING = 32, 64, 64
PRECISIONS = ("float32", "bfloat16", "float16")  # float16 on a GPU only
SHORTEST = 1000  # characters; a shorter text leaves nothing to hold out
HELD_IN = 0.95  # fraction of a text that is trained on
MOST_VALID = 200_000  # held-out characters that are measured


@dataclass
class TextOptions:
    """Options of ``train text``; the defaults take about three minutes on two cores.

    >>> TextOptions(hidden=64).cell
    'lstm'

    Attributes:
        steps: updates of the parameters.
        hidden: units H of each recurrent layer.
        layers: recurrent layers.
        cell: "lstm", "gru" or "rnn".
        rate: peak learning rate.
        dropout: dropout rate, in [0, 1).
        seed: seed of the initial parameters, of dropout and of samples.
        precision: "float32", "bfloat16" or, on a GPU, "float16".
        device: "cpu" or "cuda".
        batch: streams of the text that are read beside one another, by all processes together.
    """

    steps: int = 4000
    hidden: int = 320
    layers: int = 1
    cell: str = "lstm"
    rate: float = 5e-3
    dropout: float = 0.0
    seed: int = 0
    precision: str = "float32"
    device: str = "cpu"
    batch: int = BATCH


class CharModel:
    """A character model with its alphabet: all that is needed to write text.

    >>> model = CharModel.fresh("ab", TextOptions(hidden=8))
    >>> len(model.generate("a", 5, seed=0))
    5

    Args:
        alphabet: the characters, each once; character k is index k.
        options: options of the network.
        model: the network, from indices ``[T, B]`` to logits ``[T, B, A]``.
    """

    def __init__(self, alphabet: str, options: TextOptions, model: nn.Sequential) -> None:
        self.alphabet, self.options, self.model = alphabet, options, model
        self.index = {c: i for i, c in enumerate(alphabet)}

    @classmethod
    def fresh(cls, alphabet: str, options: TextOptions) -> CharModel:
        """Build an untrained model.

        Args:
            alphabet: the characters, each once.
            options: options of the network.

        Returns:
            The model, with random parameters of ``options.seed``.
        """
        _check.choice("cell", options.cell, tuple(CELLS))
        rngs = np.random.SeedSequence(options.seed).spawn(4)
        make = [np.random.default_rng(r) for r in rngs]
        cell = CELLS[options.cell](
            EMBEDDING,
            options.hidden,
            options.layers,
            dropout=options.dropout if options.layers > 1 else 0.0,
            # Only a GPU has float16.
            precision="float32" if options.precision == "float16" else options.precision,
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
        """Set the precision of the recurrent layers.

        Args:
            precision: "float32", "bfloat16", "int8" (CPU) or "float16" (GPU).
        """
        for layer in self.model.layers:
            if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
                layer.precision = precision

    def encode(self, text: str, name: str = "text") -> Array:
        """Return the indices of characters.

        Args:
            text: the characters.
            name: name of the text, for errors.

        Returns:
            int64 [N].

        Raises:
            ValueError: a character is not in the alphabet.
        """
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise ValueError(
                f"{name}: expected characters that the model has seen, got "
                f"{''.join(unknown)[:80]!r}"
            )
        return np.array([self.index[c] for c in text], np.int64)

    def stream(
        self, prompt: str, length: int, *, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """Return an iterator over new characters; the arguments are checked at once.

        Args:
            prompt: text to continue; "" begins a line.
            length: how many characters.
            temperature: temperature of the sampling; 0 takes the most likely character.
            seed: seed of the sampling; None: another text every time.

        Returns:
            An iterator of single characters.

        Raises:
            ValueError: the prompt has a character that is not in the alphabet, or a number is out
                of range.
        """
        _check.positive("length", length, 0)
        _check.finite("temperature", temperature)
        if not prompt:
            prompt = "\n" if "\n" in self.index else self.alphabet[0]
        return self._stream(
            self.encode(prompt, "prompt"), length, temperature, np.random.default_rng(seed)
        )

    def _stream(
        self, prompt: Array, length: int, temperature: float, rng: np.random.Generator
    ) -> Iterator[str]:
        y, state = self._next(prompt[:, None], None)  # here a device is asked about the weights
        for _ in range(length):
            logits = _device.host(y[-1, 0]).astype(np.float64)
            if temperature == 0:
                k = int(logits.argmax())
            else:
                with np.errstate(over="ignore"):  # -inf, near temperature 0, is probability 0
                    p = np.exp((logits - logits.max()) / temperature)
                k = int(rng.choice(len(p), p=p / p.sum()))
            yield self.alphabet[k]
            with _deferred.gathered():  # it is not asked whether k is in the alphabet
                y, state = self._next(np.array([[k]]), state)

    def _next(self, ids: Array, state: Any) -> tuple[Any, Any]:
        y, after = self.model(self._placed(ids), state)
        return y, after

    def _placed(self, ids: Array) -> Any:
        return _device.like(ids, self.model.flat)

    def generate(
        self, prompt: str, length: int, *, temperature: float = 1.0, seed: int | None = None
    ) -> str:
        """Return new characters after a prompt.

        Args:
            prompt: text to continue; "" begins a line.
            length: how many characters.
            temperature: temperature of the sampling; 0 takes the most likely character.
            seed: seed of the sampling; None: another text every time.

        Returns:
            The characters, without the prompt.
        """
        return "".join(self.stream(prompt, length, temperature=temperature, seed=seed))

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        task: str = "text",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``model.safetensors``: parameters, alphabet and options.

        Args:
            folder: the folder, which is there.
            task: what the model is for, which `load` asks for.
            facts: more facts, which JSON can hold.

        Raises:
            OSError: the file cannot be written.
        """
        own = {"alphabet": self.alphabet, "options": asdict(self.options)}
        save_model(folder, task, self.model, {**own, **(facts or {})})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, task: str = "text") -> CharModel:
        """Read what `save` wrote.

        Args:
            folder: the folder.
            task: what the model is for.

        Returns:
            The model.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: it is no model for the task, it is damaged, or a newer version wrote it.
        """
        tensors, facts = load_model(folder, task)
        options = _options(folder, facts.get("options"), len(tensors))
        alphabet = facts.get("alphabet")
        if not isinstance(alphabet, str) or not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                f"DIR: expected a model with an alphabet, got {os.fspath(folder)} without one"
            )
        size, hidden = len(alphabet), options.hidden
        last = "3." if options.dropout else "2."
        wanted: dict[str, tuple[int, ...]] = {
            "0.weight": (size, EMBEDDING),
            **recurrent_shapes("1.", options.cell, EMBEDDING, hidden, options.layers),
            f"{last}weight": (size, hidden),
            f"{last}bias": (size,),
        }
        check_shapes(folder, tensors, wanted)
        model = cls.fresh(alphabet, options)
        model.model.load_state_dict(tensors)
        return model


def _options(folder: str | os.PathLike[str], given: Any, tensors: int) -> TextOptions:
    """Return the options of a model that was read; none is larger than its tensors allow."""
    options = TextOptions(**known_options(folder, given, TextOptions))
    right = (
        options.cell in CELLS
        and options.precision in PRECISIONS
        and options.hidden > 0
        and 0 < options.layers <= tensors
        and 0 <= options.dropout < 1
        and options.seed >= 0
        and options.batch > 0
    )
    if not right:
        raise ValueError(
            f"DIR: expected a model with usable options, got {os.fspath(folder)} with "
            f"{given!r:.300}"
        )
    return options


class _Report(Callback):
    """Callback that prints held-out bits per character and a sample of the model's text."""

    def __init__(self, chars: CharModel, prompt: str, folder: Path | None, out: TextIO) -> None:
        self.chars, self.prompt, self.folder, self.out = chars, prompt, folder, out

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """Print the losses and a sample."""
        bits = [row[k] / math.log(2) for k in ("loss", "valid_loss")]
        print(
            f"step {row['step']:5.0f}  {row['seconds']:4.0f} s  bits per character: {bits[0]:.3f} "
            f"trained on, {bits[1]:.3f} held out",
            file=self.out,
        )
        sample = self.chars.generate(self.prompt, 160, temperature=0.7, seed=int(row["step"]))
        print("    " + visible(sample, self.out).replace("\n", "\n    "), file=self.out, flush=True)
        self._keep()

    def on_end(self, trainer: Trainer) -> None:
        """Save the model beside the last checkpoint."""
        self._keep()

    def _keep(self) -> None:
        """Save a model beside every checkpoint, to generate with and to compare alphabets."""
        if self.folder is not None and (self.folder / CHECKPOINT).exists():
            self.chars.save(self.folder)


def train_text(
    text: str | Encoded,
    name: str,
    options: TextOptions,
    *,
    save: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    out: TextIO | None = None,
    parallel: Parallel | None = None,
) -> tuple[CharModel, dict[str, Any]]:
    """Train on the first 95% of a text and hold out the rest.

    >>> import io
    >>> options = TextOptions(steps=2, hidden=4)
    >>> model, figures = train_text("to be or not to be. " * 400, "t", options, out=io.StringIO())
    >>> figures["steps"], model.alphabet
    (2, ' .benort')

    Args:
        text: the text, or what `corpora.read` returned.
        name: name of the text, for messages.
        options: options of the network and its training.
        save: a folder for the model, a checkpoint and a log, in which losses are in nats.
        resume: whether to continue from the checkpoint in that folder.
        overwrite: whether to replace what an earlier run left there.
        out: a stream for progress; None for standard output.
        parallel: the processes that train together; None: this one alone.

    Returns:
        The model, and the figures of the run.

    Raises:
        ValueError: too short a text; a folder with a model, where neither resume nor overwrite is
            given; a checkpoint of another model or another alphabet.
    """
    source = encode(text) if isinstance(text, str) else text
    if len(source) < SHORTEST:
        raise ValueError(
            f"FILE: expected at least {SHORTEST} characters, got {len(source)} in {name}"
        )
    with prepare_folder(save, resume=resume, overwrite=overwrite) as folder:
        screen = sys.stdout if out is None else out
        return _train(source, name, options, folder, resume, overwrite, screen, parallel)


def _train(
    source: Encoded,
    name: str,
    options: TextOptions,
    folder: Path | None,
    resume: bool,
    overwrite: bool,
    out: TextIO,
    parallel: Parallel | None,
) -> tuple[CharModel, dict[str, Any]]:
    """Train, save the model where there is a folder, and measure it."""
    chars = CharModel.fresh(source.alphabet, options)
    chars.model.to((parallel or ALONE)._own(options.device))
    chars.set_precision(options.precision)
    cut = int(len(source) * HELD_IN)
    prompt = source.text(cut, cut + 64)
    batch = min(options.batch, cut // 8)
    # On a GPU the text goes there once, and windows are cut from it there.
    learned, held_out = (
        chars._placed(ids) for ids in (source.ids[:cut], source.ids[cut : cut + MOST_VALID])
    )
    train = StreamLoader(learned, batch, WINDOW)
    valid = StreamLoader(held_out, min(BATCH, (len(source) - cut) // 8), 4 * WINDOW)
    trainer = trainer_of(chars, parallel)
    trainer.callbacks.append(_Report(chars, prompt, folder, out))
    print(
        f"{visible(name, out)}: {len(source):,} characters, {len(chars.alphabet)} different; "
        f"{chars.model.count_parameters():,} parameters",
        file=out,
        flush=True,
    )
    start, first = time.perf_counter(), trainer.optimizer.steps
    history = trainer.fit(
        train,
        validation=valid,
        steps=options.steps,
        validate_every=max(1, options.steps // 8),
        checkpoint=None if folder is None else folder / CHECKPOINT,
        identity={"alphabet": source.alphabet},
        log=None if folder is None else folder / LOG,
        resume=resume and folder is not None,
        overwrite=overwrite and folder is not None,
        progress=False,
    )
    seconds = time.perf_counter() - start
    tokens = (trainer.optimizer.steps - first) * batch * WINDOW
    valid_loss = trainer.evaluate(valid)["loss"]
    sample = chars.generate(prompt, 2000, temperature=0.8, seed=options.seed)
    if folder is not None:
        chars.save(folder)
    return chars, {
        "task": "text",
        "corpus": name,
        "valid_bits_per_char": valid_loss / math.log(2),
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "steps": trainer.optimizer.steps,
        "parameters": chars.model.count_parameters(),
        "seconds": seconds,
        "known_words": known_words(sample, source),
        "stopped": history.stopped,
    }


def trainer_of(chars: CharModel, parallel: Parallel | None = None) -> Trainer:
    """Return a trainer with AdamW, a warm-up and a cosine over the steps of the model's options."""
    options = chars.options
    schedule = optim.Warmup(
        optim.Cosine(options.rate, steps=max(options.steps, 1), final=options.rate / 20),
        steps=max(1, min(50, options.steps // 10)),
    )
    optimizer = optim.AdamW(schedule, betas=(0.9, 0.99))
    return Trainer(chars.model, losses.CrossEntropy(), optimizer, clip_norm=1.0, parallel=parallel)


readable(globals())
