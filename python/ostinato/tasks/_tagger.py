"""A model that gives every token of a sequence a tag."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import losses, nn, optim
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged
from ..data import RaggedLoader
from ..train import Parallel, Trainer
from ._application import check_options, option
from ._progress import EpochReport
from .models import check_shapes, known_options, load_model, recurrent_shapes, save_model

__all__ = ["Tagger", "TaggerOptions"]

EMBEDDING = 32
ENDING = 3  # letters of a token's end
OFTEN = 2  # tokens that occur less often stand for all that are not known
CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"lstm": nn.LSTM, "gru": nn.GRU}
Sentences = Sequence[Sequence[str]]


@dataclass(frozen=True)
class TaggerOptions:
    """Options of a `Tagger`.

    >>> TaggerOptions(hidden=32).cell
    'lstm'

    Attributes:
        hidden: units H of each direction; with one direction it has twice as many.
        cell: "lstm" or "gru".
        epochs: passes over the sequences.
        batch: sequences of a batch.
        rate: peak learning rate.
        dropout: dropout rate of what the recurrent layer reads and gives.
        seed: seed of the initial parameters, of dropout and of the order of the sequences.
    """

    hidden: int = option(64, "units of each direction")
    cell: str = option("lstm", "kind of recurrent layer", choices=("lstm", "gru"))
    epochs: int = option(4, "passes over the sequences")
    batch: int = option(64, "sequences of a batch")
    rate: float = option(5e-3, "peak learning rate", kind="rate")
    dropout: float = option(0.2, "dropout rate", kind="fraction")
    seed: int = option(0, "seed of the parameters, of dropout and of the order", kind="index")


class _Network(nn.Model):
    """Embeddings of the token and, where there is one, of its ending; a layer; a tag's logits."""

    def __init__(self, sizes: Sequence[int], tags: int, options: TaggerOptions, both: bool) -> None:
        rngs = np.random.SeedSequence(options.seed).spawn(4)
        make = [np.random.default_rng(r) for r in rngs]
        width = options.hidden if both else 2 * options.hidden
        self.embed = [nn.Embedding(n, EMBEDDING, rng=make[0]) for n in sizes]
        self.drop = nn.Dropout(options.dropout, rng=make[1])
        self.rnn = CELLS[options.cell](
            EMBEDDING * len(sizes), width, bidirectional=both, rng=make[2]
        )
        self.head = nn.Linear(2 * options.hidden, tags, rng=make[3])

    def __call__(self, x: Any) -> Any:
        """Return the logits ``[n,tags]`` of sequences ``[n,features]``, both a `Ragged`."""
        rows = [layer(x.rows[:, k]) for k, layer in enumerate(self.embed)]
        y, _ = self.rnn(x.like(self.drop(np.concatenate(rows, -1))))
        return y.like(self.head(self.drop(y.rows)))


class Tagger:
    """Give each token of a sequence a tag, by the tokens before it and behind it.

    >>> sentences = [["the", "cat", "sat"], ["a", "cat", "ran"]] * 8
    >>> tags = [["D", "N", "V"]] * 16
    >>> tagger = Tagger.fresh(sentences, tags, TaggerOptions(hidden=8, epochs=20, batch=4))
    >>> tagger.fit(sentences, tags).predict([["the", "cat", "ran"]])
    [['D', 'N', 'V']]

    Args:
        features: for each feature of a token (the token; its ending) the values that have a number
            of their own, from 1 on; 0 is for all others.
        tags: the tags, each once.
        options: options of the network.
        both: whether it reads in both directions, or forward only.
    """

    def __init__(
        self,
        features: Sequence[Sequence[str]],
        tags: Sequence[str],
        options: TaggerOptions,
        both: bool = True,
    ) -> None:
        check_options(options)
        self.features, self.tags = [list(f) for f in features], list(tags)
        self.options, self.both = options, both
        self._index = [{value: k for k, value in enumerate(f, 1)} for f in self.features]
        self._tag = {tag: k for k, tag in enumerate(self.tags)}
        sizes = [len(f) + 1 for f in self.features]
        self.model = _Network(sizes, len(self.tags), options, both)

    @classmethod
    def fresh(
        cls, sentences: Sentences, tags: Sentences, options: TaggerOptions, both: bool = True
    ) -> Tagger:
        """Build an untrained tagger.

        Args:
            sentences: the tokens of each sequence that it will be trained on.
            tags: their tags.
            options: options of the network.
            both: whether it reads in both directions.

        Returns:
            The tagger, with the tokens and the tags that occur.
        """
        counts = Counter(token for sentence in sentences for token in sentence)
        features = [sorted(token for token, n in counts.items() if n >= OFTEN)]
        if any(len(token) > ENDING for token in counts):
            endings = Counter(token[-ENDING:] for token in counts)
            features.append(sorted(e for e, n in endings.items() if n >= OFTEN))
        return cls(features, sorted({tag for some in tags for tag in some}), options, both)

    def encode(self, sentences: Sentences) -> Ragged:
        """Return the numbers of the features of tokens.

        Args:
            sentences: the tokens of each sequence, at least one.

        Returns:
            Sequences of int64 ``[n,features]``.
        """
        rows = []
        for sentence in sentences:
            ends = [token[-ENDING:] for token in sentence]
            columns = [
                [i.get(v, 0) for v in some] for i, some in zip(self._index, (sentence, ends))
            ]
            rows.append(np.array(columns, np.int64).T)
        return Ragged.join(rows)

    def encode_tags(self, tags: Sentences) -> Array:
        """Return the numbers of tags, one sequence after the other.

        Args:
            tags: the tags of each sequence.

        Returns:
            int64 ``[N]``.

        Raises:
            ValueError: a tag that the tagger does not have.
        """
        unknown = sorted({tag for some in tags for tag in some} - set(self.tags))
        if unknown:
            raise ValueError(
                f"DATA: expected tags that were trained on ({', '.join(self.tags)[:200]}), got "
                f"{unknown[0]!r:.40}"
            )
        return np.array([self._tag[tag] for some in tags for tag in some], np.int64)

    def fit(
        self,
        sentences: Sentences,
        tags: Sentences,
        validation: tuple[Sentences, Sentences] | None = None,
        report: Callable[[str], None] | None = None,
        *,
        parallel: Parallel | None = None,
    ) -> Tagger:
        """Train, and keep the parameters of the best epoch if there is a validation.

        Args:
            sentences: the tokens of each sequence.
            tags: their tags.
            validation: other sequences and their tags; None for none.
            report: called with a line for each epoch.
            parallel: the processes that train together; None: this one alone.

        Returns:
            The tagger itself.

        Raises:
            ValueError: a tag that the tagger does not have.
        """
        o = self.options
        train = RaggedLoader(
            self.encode(sentences), self.encode_tags(tags), batch_size=o.batch, rng=o.seed
        )
        held = None
        if validation is not None:
            words, right = validation
            held = RaggedLoader(
                self.encode(words), self.encode_tags(right), batch_size=256, shuffle=False
            )
        steps = o.epochs * len(train)
        schedule = optim.Cosine(o.rate, steps=steps, final=o.rate / 50)
        trainer = Trainer(
            self.model,
            losses.CrossEntropy(),
            optim.Adam(schedule),
            clip_norm=1.0,
            callbacks=[] if report is None else [EpochReport(report)],
            parallel=parallel,
        )
        trainer.fit(train, validation=held, epochs=o.epochs, seed=o.seed, progress=False)
        return self

    def predict(self, sentences: Sentences, batch: int = 256) -> list[list[str]]:
        """Return the most likely tag of every token.

        Args:
            sentences: the tokens of each sequence; a sequence may be empty.
            batch: sequences that are run at a time.

        Returns:
            As many tags as there are tokens, for each sequence.
        """
        out: list[list[str]] = [[] for _ in sentences]
        # Sequences of similar lengths run together.
        order = sorted((k for k, s in enumerate(sentences) if s), key=lambda k: len(sentences[k]))
        for begin in range(0, len(order), batch):
            some = order[begin : begin + batch]
            y = self.model(self.encode([sentences[k] for k in some]))
            for k, logits in zip(some, y):
                out[k] = [self.tags[i] for i in logits.argmax(-1)]
        return out

    def save(self, folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
        """Write ``model.safetensors``.

        Args:
            folder: the folder, which is there.
            facts: more facts, which JSON can hold.

        Raises:
            OSError: the file cannot be written.
        """
        own = {
            "options": asdict(self.options),
            "features": self.features,
            "tags": self.tags,
            "both": self.both,
        }
        save_model(folder, "tag", self.model, {**facts, **own})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[Tagger, dict[str, Any]]:
        """Read what `save` wrote.

        Args:
            folder: the folder.

        Returns:
            The tagger, and the facts.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: it is no model for tags, or it is damaged.
        """
        tensors, facts = load_model(folder, "tag")
        options = TaggerOptions(**known_options(folder, facts.get("options"), TaggerOptions))
        features, tags, both = (facts.get(name) for name in ("features", "tags", "both"))
        try:
            check_options(options)
            good = isinstance(features, list) and 1 <= len(features) <= 2
            good = good and isinstance(both, bool)
        except (TypeError, ValueError):
            good = False
        lists = [*features, tags] if good and isinstance(features, list) else []
        good = good and all(are_texts(values) for values in lists) and bool(tags)
        if not good or not isinstance(features, list) or not isinstance(tags, list):
            raise ValueError(
                f"DIR: expected a model with usable options, tokens and tags, got "
                f"{os.fspath(folder)} without"
            )
        wanted = _shapes([len(f) + 1 for f in features], len(tags), options, bool(both))
        check_shapes(folder, tensors, wanted)
        tagger = cls(features, tags, options, bool(both))
        tagger.model.load_state_dict(tensors)
        return tagger, facts


def are_texts(values: Any) -> bool:
    """Return whether a value of a file is a list of texts that differ."""
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        return False
    return len(set(values)) == len(values)


def _shapes(
    sizes: Sequence[int], tags: int, options: TaggerOptions, both: bool
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the parameters of a network."""
    width = options.hidden if both else 2 * options.hidden
    out: dict[str, tuple[int, ...]] = {
        f"embed.{k}.weight": (size, EMBEDDING) for k, size in enumerate(sizes)
    }
    out |= recurrent_shapes(
        "rnn.", options.cell, EMBEDDING * len(sizes), width, 1, bidirectional=both
    )
    out["head.weight"], out["head.bias"] = (tags, 2 * options.hidden), (tags,)
    return out


readable(globals())
