"""A recogniser of speech: features, network, alphabet and language model, in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .. import audio, decoding, nn
from .._annotations import readable
from .._check import Array
from ._application import check_options, held_out_option, option
from ._clips import DIGITS, Clip
from .models import check_shapes, known_options, load_model, recurrent_shapes, save_model

TASK = "transcribe"
HOP = 0.01  # seconds from one row of the features to the next, as near as whole samples are
SPEEDS = (9, 10, 11)  # tenths
KERNEL = 5
WIDEST = 10_000  # prefixes of a search
SLOWEST, FASTEST = 4000, 192_000  # samples in a second
# Names of arrays beside those of the network.
MEAN, SCALE, TRAINED, LANGUAGE = "features.mean", "features.scale", "trained", "language."


@dataclass
class TranscribeOptions:
    """Options of ``train transcribe``; the defaults take five minutes on one core.

    >>> TranscribeOptions(hidden=64).layers
    2

    Attributes:
        epochs: passes over the clips.
        batch: clips of a batch.
        hidden: units of each direction of the LSTM, and channels before it.
        layers: layers of the LSTM.
        stride: hops of 10 ms from one output to the next.
        bands: mel bands.
        sample_rate: samples in a second; sounds of another rate are resampled.
        rate: peak learning rate.
        dropout: dropout rate, in [0, 1).
        seed: seed of all that is drawn: the division, the parameters, augmentation.
        held_out: texts that are held out: a share below 1, or how many, at most a tenth of all;
            0 for none.
        part: part of the other texts that is trained on.
        longest: seconds; longer clips are left out.
        digits: the language in which digits that stand alone are said, "" for none.
        strip_accents: whether letters are written without accents.
        order: characters of the language model's n-grams.
        width: prefixes that the search keeps.
        weight: weight of the language model.
        bonus: what each character adds to the score of the search.
    """

    epochs: int = option(45, "passes over the clips")
    batch: int = option(16, "clips of a batch")
    hidden: int = option(192, "units of each direction of the LSTM, and channels before it")
    layers: int = option(2, "layers of the LSTM")
    stride: int = option(3, "hops of 10 ms from one output to the next")
    bands: int = option(40, "mel bands")
    sample_rate: int = option(8000, "samples a second; sounds of another rate are resampled")
    rate: float = option(3e-3, "peak learning rate", kind="rate")
    dropout: float = option(0.3, "dropout rate", kind="fraction")
    seed: int = option(0, "seed of all that is drawn", kind="index")
    held_out: float = held_out_option(0.1, "texts that are held out, 0 for none")
    part: float = option(1.0, "part of the other clips that is trained on, at most 1", kind="rate")
    longest: float = option(25.0, "seconds; longer clips are left out", kind="rate")
    digits: str = option(
        "", "the language in which digits that stand alone are said", choices=("", *DIGITS)
    )
    strip_accents: bool = option(False, "write letters without accents")
    order: int = option(6, "characters of the language model's n-grams")
    width: int = option(16, "prefixes that the search keeps")
    weight: float = option(0.6, "weight of the language model")
    bonus: float = option(1.0, "what each character adds to the score of the search")


def check_values(options: TranscribeOptions) -> None:
    """Raise if an option is out of its range, beside what `check_options` knows of it."""
    check_options(options)
    if options.part > 1:
        raise ValueError(f"part: expected a number above 0 and at most 1, got {options.part!r}")
    if options.width > WIDEST:
        raise ValueError(f"width: expected at most {WIDEST} prefixes, got {options.width}")
    if not SLOWEST <= options.sample_rate <= FASTEST:
        raise ValueError(
            f"sample_rate: expected {SLOWEST} to {FASTEST} samples a second, got "
            f"{options.sample_rate}"
        )


def hop_of(options: TranscribeOptions) -> int:
    """Return the samples from one row of the features to the next."""
    return round(HOP * options.sample_rate)


def network(options: TranscribeOptions, classes: int) -> nn.Sequential:
    """Return the network, from features to logits of the characters and the blank."""
    rng = np.random.default_rng(options.seed)
    size, drop = options.hidden, options.dropout
    return nn.Sequential(
        first=nn.Conv1d(options.bands, size, KERNEL, rng=rng),
        gelu=nn.Activation("gelu"),
        second=nn.Conv1d(size, size, KERNEL, stride=options.stride, rng=rng),
        gelu2=nn.Activation("gelu"),
        norm=nn.LayerNorm(size),
        drop=nn.Dropout(drop, rng=rng),
        rnn=nn.LSTM(
            size,
            size,
            options.layers,
            bidirectional=True,
            dropout=drop if options.layers > 1 else 0.0,
            rng=rng,
        ),
        drop2=nn.Dropout(drop, rng=rng),
        head=nn.Linear(2 * size, classes, rng=rng),
    )


def _shapes(options: TranscribeOptions, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the network's parameters, without making it."""
    size, bands = options.hidden, options.bands
    out: dict[str, tuple[int, ...]] = {
        "first.weight": (size, bands, KERNEL),
        "first.bias": (size,),
        "second.weight": (size, size, KERNEL),
        "second.bias": (size,),
        "norm.weight": (size,),
        "norm.bias": (size,),
        "head.weight": (classes, 2 * size),
        "head.bias": (classes,),
    }
    return out | recurrent_shapes("rnn.", "lstm", size, size, options.layers, bidirectional=True)


class Recognizer:
    """Turn sounds into text.

    >>> options = TranscribeOptions(hidden=4, layers=1)
    >>> recognizer = Recognizer(options, " ab", np.zeros(40), np.ones(40))
    >>> features = recognizer.features(np.zeros(8000))
    >>> recognizer.logits([features])[0].shape  # an output for each 30 ms
    (33, 4)

    Args:
        options: of the network and the search.
        alphabet: the characters, each once; character k is class k + 1, and 0 is the blank.
        mean: mean of each mel band, over the speaker's clips.
        scale: standard deviation of each.
        model: the network; None: a new one.
    """

    def __init__(
        self,
        options: TranscribeOptions,
        alphabet: str,
        mean: Array,
        scale: Array,
        model: nn.Sequential | None = None,
    ) -> None:
        self.options, self.alphabet = options, alphabet
        self.mean, self.scale = mean.astype(np.float32), scale.astype(np.float32)
        classes = len(alphabet) + 1
        self.model = network(options, classes) if model is None else model
        self.language = decoding.NGram(classes, options.order)
        self.trained: Array = np.zeros(0, np.int64)  # keys of the clips that it was trained on
        self._index = {c: k for k, c in enumerate(alphabet, 1)}

    @property
    def hop(self) -> float:
        """Seconds from one row of the features to the next: 10 ms, rounded to whole samples."""
        return hop_of(self.options) / self.options.sample_rate

    @property
    def step(self) -> float:
        """Seconds from one output to the next: ``stride`` rows of the features."""
        return self.hop * self.options.stride

    def features(self, samples: Array) -> Array:
        """Return the features of a sound at the rate of the model.

        Args:
            samples: ``[N]``, from -1 to 1.

        Returns:
            ``[T, bands]``, a row for each 10 ms.
        """
        x = audio.log_mel(samples, self.options.sample_rate, bands=self.options.bands)
        with np.errstate(over="ignore"):
            out: Array = (x - self.mean) / self.scale
        if not np.isfinite(out).all():
            raise ValueError(
                "samples: expected features that float32 holds in the units of the model, got some "
                "that it does not; the model is damaged"
            )
        return out

    def labels(self, text: str) -> Array:
        """Return the classes of the characters of a text.

        Args:
            text: the text, of characters of the alphabet.

        Returns:
            ``[n]`` whole numbers from 1 on.
        """
        return np.array([self._index[c] for c in text], np.int64)

    def text(self, labels: Array) -> str:
        """Return the characters of classes.

        Args:
            labels: ``[n]`` whole numbers from 1 on.

        Returns:
            The text.
        """
        return "".join(self.alphabet[k - 1] for k in labels)

    def logits(self, features: Sequence[Array], batch: int = 16) -> list[Array]:
        """Return the logits of each sound.

        Args:
            features: ``[T, bands]`` of each.
            batch: sounds that are run at a time.

        Returns:
            ``[T', classes]`` of each.
        """
        out: list[Array] = []
        for k in range(0, len(features), batch):
            out += self.model(list(features[k : k + batch]))[0]
        return out

    def search(self, logits: Sequence[Array]) -> list[str]:
        """Return the texts that the search finds, with the language model.

        Args:
            logits: ``[T', classes]`` of each sound.

        Returns:
            The texts.
        """
        o = self.options
        found = decoding.ctc_beam_search(
            list(logits),
            width=o.width,
            language_model=self.language,
            weight=o.weight,
            bonus=o.bonus,
        )
        return [self.text(best[0].labels) if best else "" for best in found]

    def greedy(self, logits: Sequence[Array]) -> list[str]:
        """Return the texts of the best paths, without a language model.

        Args:
            logits: ``[T', classes]`` of each sound.

        Returns:
            The texts.
        """
        return [self.text(labels) for labels in decoding.ctc_greedy(list(logits))]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``: network, features, alphabet, language model and options.

        Args:
            folder: the folder, which is there.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {
            MEAN: self.mean,
            SCALE: self.scale,
            TRAINED: self.trained,
            **{LANGUAGE + n: a for n, a in self.language.state_dict().items()},
        }
        facts = {"alphabet": self.alphabet, "options": asdict(self.options)}
        save_model(folder, TASK, self.model, facts, arrays=arrays)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Recognizer:
        """Read what `save` wrote.

        Args:
            folder: the folder.

        Returns:
            The recogniser.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: it is no model of this kind, it is damaged, or a newer version wrote it.
        """
        tensors, facts = load_model(folder, TASK)
        name = os.fspath(folder)
        given = known_options(folder, facts.get("options"), TranscribeOptions)
        try:
            options = TranscribeOptions(**given)
            check_values(options)
        except (TypeError, ValueError) as e:
            raise ValueError(
                f"DIR: expected a model with usable options, got {name}: {e}"
            ) from None
        alphabet = facts.get("alphabet")
        if not isinstance(alphabet, str) or not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"DIR: expected a model with an alphabet, got {name} without one")
        counts = {n: a for n, a in tensors.items() if n.startswith(LANGUAGE)}
        trained = tensors.get(TRAINED)
        others = {n: a for n, a in tensors.items() if n not in counts and n != TRAINED}
        if options.layers > len(others) or options.order > len(counts):
            raise ValueError(f"DIR: expected a model with usable options, got {name} with {given}")
        shapes = _shapes(options, len(alphabet) + 1)
        wanted = {**shapes, MEAN: (options.bands,), SCALE: (options.bands,)}
        check_shapes(folder, others, wanted)
        if trained is None or trained.dtype != np.int64 or trained.ndim != 1:
            raise ValueError(f"DIR: expected a model with {TRAINED!r}, got {name} without it")
        if not (others[SCALE] > 0).all():
            raise ValueError(f"DIR: expected scales above 0, got {name} with others")
        made = cls(options, alphabet, others[MEAN], others[SCALE])
        made.model.load_state_dict({n: others[n] for n in shapes})
        try:
            made.language.load_state_dict({n[len(LANGUAGE) :]: a for n, a in counts.items()})
        except ValueError as e:
            raise ValueError(f"DIR: expected a language model in {name}: {e}") from None
        made.trained = trained
        return made


def statistics(clips: Sequence[Clip], options: TranscribeOptions) -> tuple[Array, Array]:
    """Return the mean and the standard deviation of each mel band over clips of a speaker."""
    rows = [audio.log_mel(c.samples, options.sample_rate, bands=options.bands) for c in clips]
    x = np.concatenate(rows).astype(np.float64)
    if not len(x):
        raise ValueError("DATA: expected clips of at least one window of 25 ms, got shorter ones")
    return x.mean(0), np.maximum(x.std(0), 1e-3)


def steps_needed(labels: Array) -> int:
    """Return the outputs that CTC needs for labels: one each, and one between equal ones."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


class Augmented:
    """Batches of clips, changed anew in every epoch: a loader for a Trainer.

    A clip is taken at one of three speeds, neighbours in the order of the epoch are joined now and
    then, time is stretched a little, and bands and spans of time are covered (SpecAugment, Park et
    al. 2019).
    """

    def __init__(self, clips: Sequence[Clip], recognizer: Recognizer) -> None:
        o = recognizer.options
        self.options, self.space = o, recognizer.alphabet.find(" ") + 1
        self.labels = [recognizer.labels(c.text) for c in clips]
        self.features = [
            [recognizer.features(audio.resample(c.samples, speed, 10)) for speed in SPEEDS]
            for c in clips
        ]

    def __len__(self) -> int:
        return -(-len(self.labels) // self.options.batch)

    def __iter__(self) -> Iterator[tuple[list[Array], list[Array]]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[Array], list[Array]]]:
        """Yield the batches of an epoch, which depend on its number and the seed alone."""
        rng = np.random.default_rng((self.options.seed, epoch))
        pairs = [(self._changed(x, rng), y) for x, y in self._joined(rng)]
        pairs.sort(key=lambda pair: len(pair[0]) + rng.uniform(0, 30))
        cuts = np.linspace(0, len(pairs), min(len(self), len(pairs)) + 1).astype(int)
        for k in rng.permutation(len(cuts) - 1)[start:]:
            some = pairs[cuts[k] : cuts[k + 1]]
            yield [x for x, _ in some], [y for _, y in some]

    def _joined(self, rng: np.random.Generator) -> list[tuple[Array, Array]]:
        """Return each clip at some speed; some are joined to the next by a space."""
        out: list[tuple[Array, Array]] = []
        for k in rng.permutation(len(self.labels)):
            x, y = self.features[k][rng.integers(len(SPEEDS))], self.labels[k]
            if self.space and out and len(out[-1][0]) < 300 and rng.random() < 0.3:
                before, labels = out.pop()
                x, y = np.concatenate([before, x]), np.concatenate([labels, [self.space], y])
            out.append((x, y))
        return out

    def _changed(self, x: Array, rng: np.random.Generator) -> Array:
        """Return features that are stretched, louder or softer, noisier, and covered in parts."""
        count = max(round(len(x) * rng.uniform(0.9, 1.1)), 1)
        at = np.linspace(0, len(x) - 1, count)
        low = at.astype(int)
        part = (at - low)[:, None].astype(np.float32)
        x = x[low] * (1 - part) + x[np.minimum(low + 1, len(x) - 1)] * part
        x += rng.normal(0, 0.1) + rng.normal(0, 0.1, x.shape).astype(np.float32)
        for _ in range(2):
            width = rng.integers(0, self.options.bands // 5 + 1)
            begin = rng.integers(0, self.options.bands - width + 1)
            x[:, begin : begin + width] = 0
        for _ in range(1 + len(x) // 100):
            width = rng.integers(0, min(11, len(x) // 2 + 1))
            begin = rng.integers(0, len(x) - width + 1)
            x[begin : begin + width] = 0
        return x.astype(np.float32)


readable(globals())
