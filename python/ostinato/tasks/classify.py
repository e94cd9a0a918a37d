"""Text classification: train on the rows of a table or on a corpus, predict and evaluate."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, losses, nn, optim, safetensors
from .._annotations import readable
from .._check import Array, quoted
from .._ragged import Ragged, leaves
from ..data import RaggedLoader
from ..train import Parallel, Trainer
from ..train.metrics import F1
from . import _picture
from ._application import (
    Application,
    Figures,
    Run,
    check_out,
    held_out_option,
    one_cell,
    option,
    texts_given,
)
from ._documents import (
    CORPORA,
    Documents,
    corpus,
    has_words,
    hold_out,
    numbers_of,
    read_tables,
    sentences_of,
    vocabulary,
    words_of,
)
from ._progress import EpochReport
from .models import known_options, load_model, save_model

__all__ = ["ClassifyOptions", "TextClassifier", "read_held_out", "train_classifier"]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
UNKNOWN = 0  # the number of words that are not known, and of those that training drops
SCALE = 0.3  # standard deviation of the initial embeddings
SHOWN = 20  # classes of a picture
AT_A_TIME = 256  # texts that a prediction runs at once


@dataclass(frozen=True)
class ClassifyOptions:
    """Options of ``train classify``.

    >>> ClassifyOptions(model="hierarchical").cell
    'lstm'

    Attributes:
        text: the column of the texts.
        label: the column of the labels.
        group: the column of what is held out together.
        test: a file with the rows that are held out.
        held_out: what is held out where there is no such file: a share below 1, or how many texts
            (of `group`: how many groups), at most a tenth of all.
        model: "flat", or "hierarchical": words in sentences in texts.
        cell: "lstm" or "gru".
        hidden: units H of each direction.
        embedding: numbers E that a word is embedded in.
        members: networks whose probabilities are averaged.
        epochs: passes over the texts.
        batch: texts of a batch.
        rate: peak learning rate.
        dropout: rate of the dropout before the last layer.
        word_dropout: share of the words that training replaces by the unknown word.
        min_count: how often a word must occur to be known.
        max_words: how many words are known at most.
        length: words of a text that are read.
        sentence: words of a sentence at most, in a hierarchical model.
        seed: seed of the initial parameters, of dropout and of the order.
    """

    text: str = option("text", "column of the texts (default: %(default)s)")
    label: str = option("label", "column of the labels (default: %(default)s)")
    group: str = option("", "column of what is held out together, such as the author")
    test: str = option("", "file with the rows that are held out, in place of a share of DATA")
    held_out: float = held_out_option(0.2, "texts that are held out, or with --group groups")
    model: str = option(
        "flat",
        "flat: the words of a text; hierarchical: words in sentences (default: %(default)s)",
        choices=("flat", "hierarchical"),
    )
    cell: str = option("lstm", "recurrent layer (default: %(default)s)", choices=tuple(CELLS))
    hidden: int = option(64, "units of each direction (default: %(default)s)")
    embedding: int = option(64, "numbers of an embedded word (default: %(default)s)")
    members: int = option(1, "networks that are averaged (default: %(default)s)")
    epochs: int = option(6, "passes over the texts (default: %(default)s)")
    batch: int = option(32, "texts of a batch (default: %(default)s)")
    rate: float = option(2e-3, "peak learning rate (default: %(default)s)", kind="rate")
    dropout: float = option(
        0.5, "dropout before the last layer (default: %(default)s)", kind="fraction"
    )
    word_dropout: float = option(
        0.3, "share of words that training hides (default: %(default)s)", kind="fraction"
    )
    min_count: int = option(2, "occurrences of a word that is known (default: %(default)s)")
    max_words: int = option(50_000, "words that are known at most (default: %(default)s)")
    length: int = option(300, "words of a text that are read (default: %(default)s)")
    sentence: int = option(20, "words of a sentence at most (default: %(default)s)")
    seed: int = option(0, "seed of the run (default: %(default)s)", kind="index")


def network(words: int, classes: int, options: ClassifyOptions, seed: int) -> nn.Sequential:
    """Return an untrained network from numbers of words to logits.

    Args:
        words: how many words are known.
        classes: how many classes there are.
        options: the options.
        seed: of the initial parameters.

    Returns:
        Embedding, recurrent layers in two directions, the mean and maximum over the steps, and a
        linear layer. A hierarchical one reads each sentence first, and pools it by attention.
    """
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    size, hidden, cell = options.embedding, options.hidden, CELLS[options.cell]
    embed = nn.Embedding(words + 1, size, rng=rngs[0])
    with embed.write() as p:
        p["weight"][...] *= SCALE
    rnn = cell(size, hidden, bidirectional=True, rng=rngs[1])
    both = nn.Concat(nn.Pool("mean"), nn.Pool("max"))
    end = [nn.Dropout(options.dropout, rng=rngs[4]), nn.Linear(4 * hidden, classes, rng=rngs[5])]
    if options.model == "flat":
        return nn.Sequential(embed, rnn, both, *end)
    sentence = nn.Sequential(embed, rnn, nn.Pool("attention", 2 * hidden, rng=rngs[2]))
    document = nn.Sequential(cell(2 * hidden, hidden, bidirectional=True, rng=rngs[3]), both)
    return nn.Sequential(nn.Hierarchical(sentence, document), *end)


def start_from_counts(net: nn.Sequential, x: Ragged, target: Array, classes: int) -> None:
    """Put into the embedding how much more often a class has a word than the others have it.

    These log ratios of naive Bayes are a number for each of the most frequent classes, and take at
    most half of the numbers of a word; the others stay random. The unknown word has zeros.

    Args:
        net: an untrained network.
        x: the numbers of the words of each text, or of its sentences.
        target: int64 [N], the classes.
        classes: how many classes there are.
    """
    name = next(n for n in net.parameters() if n.endswith("0.weight"))
    words, size = net.parameters()[name].shape
    sizes = x.lengths
    if isinstance(x.rows, Ragged):
        sizes = np.diff(x.rows.offsets[x.offsets])
    text = np.repeat(np.arange(len(x)), sizes)
    pairs = np.unique(text * words + leaves(x))  # a word counts once a text
    text, word = pairs // words, pairs % words
    counts: Array = np.bincount(target[text] * words + word, minlength=classes * words)
    counts = counts.reshape(classes, words) + 1.0
    rest = counts.sum(0) - counts
    ratio = np.log(counts / counts.sum(1, keepdims=True))
    ratio -= np.log(rest / rest.sum(1, keepdims=True))
    kept = 1 if classes == 2 else min(classes, size // 2)  # of two, one is minus the other
    order = np.argsort(-np.bincount(target, minlength=classes), kind="stable")[:kept]
    with net.write() as p:
        p[name][:, :kept] = 0.5 * ratio[order].T
        p[name][UNKNOWN, :kept] = 0


class _Members(nn.Model):
    """Networks whose probabilities are averaged."""

    reduces_time = True

    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        self.members = list(members)

    def __call__(self, x: Any) -> Any:
        total: Any = 0
        for member in self.members:
            total = total + nn.softmax(member(x)[0].astype(np.float64))
        return total / len(self.members)


class TextClassifier:
    """Networks with the words and the classes that they know.

    >>> model = TextClassifier(["good", "bad"], ["no", "yes"], ClassifyOptions(hidden=2))
    >>> model.probabilities(["A good one.", "Bad!"]).shape
    (2, 2)

    Args:
        words: the words that are known; word k is number k + 1, and 0 are all others.
        labels: the classes.
        options: options of the networks.
        networks: as many as ``options.members`` says; None: untrained ones.
        corpus: the name of the corpus that was trained on; "" for files.
    """

    def __init__(
        self,
        words: Sequence[str],
        labels: Sequence[str],
        options: ClassifyOptions,
        networks: Sequence[nn.Sequential] | None = None,
        corpus: str = "",
    ) -> None:
        self.words, self.labels, self.options = list(words), list(labels), options
        self.corpus = corpus
        self._index = {word: k for k, word in enumerate(self.words, 1)}
        if networks is None:
            seeds = range(options.seed, options.seed + options.members)
            networks = [network(len(words), len(labels), options, seed) for seed in seeds]
        self.model = _Members(networks)

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the numbers of the words of texts.

        Args:
            texts: at least one; one without words is a single unknown word.

        Returns:
            The words of each text; with a hierarchical model those of its sentences.
        """
        o = self.options
        if o.model == "flat":
            return Ragged.join([self._numbers(words_of(text)[: o.length]) for text in texts])
        documents = [_shortened(sentences_of(text, o.sentence), o.length) for text in texts]
        documents = [sentences or [[]] for sentences in documents]
        flat = [self._numbers(words) for sentences in documents for words in sentences]
        return Ragged(Ragged.join(flat), np.cumsum([0, *map(len, documents)]))

    def _numbers(self, words: Sequence[str]) -> Array:
        return np.array([self._index.get(w, UNKNOWN) for w in words] or [UNKNOWN], np.int64)

    def probabilities(self, texts: Sequence[str]) -> Array:
        """Return the probability of each class for texts.

        Args:
            texts: the texts; each should have a letter or a digit.

        Returns:
            float64 [N, C].
        """
        if not texts:
            return np.zeros((0, len(self.labels)))
        return self._probabilities(self.encode(texts))

    def _probabilities(self, x: Ragged) -> Array:
        parts = [self.model(x[k : k + AT_A_TIME]) for k in range(0, len(x), AT_A_TIME)]
        return np.concatenate(parts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``: parameters, words, labels and options.

        Args:
            folder: the folder, which is there.

        Raises:
            OSError: the file cannot be written.
        """
        facts = {
            "words": self.words,
            "labels": self.labels,
            "corpus": self.corpus,
            "options": asdict(self.options),
        }
        save_model(folder, "classify", self.model, facts)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextClassifier:
        """Read what `save` wrote.

        Args:
            folder: the folder.

        Returns:
            The model.

        Raises:
            FileNotFoundError: there is no model in the folder.
            ValueError: it is no classifier, it is damaged, or a newer version wrote it.
        """
        tensors, facts = load_model(folder, "classify")
        where = os.fspath(folder)
        options = ClassifyOptions(**known_options(folder, facts.get("options"), ClassifyOptions))
        words: Any = facts.get("words")
        labels: Any = facts.get("labels")
        name = facts.get("corpus", "")
        known = all(
            isinstance(given, list)
            and all(isinstance(one, str) for one in given)
            and len(set(given)) == len(given)
            for given in (words, labels)
        )
        usable = known and len(labels) > 1 and name in ("", *CORPORA) and _is_usable(options)
        if not usable:
            raise ValueError(
                f"DIR: expected a model with words, labels and usable options, got {where}"
            )
        elements = sum(a.size for a in tensors.values())
        try:
            with _check.made_from_file(elements):
                first = network(len(words), len(labels), options, options.seed)
                if first.count_parameters() * options.members != elements:
                    raise ValueError(f"{first.count_parameters()} parameters a network")
                more = range(1, options.members)
                rest = [network(len(words), len(labels), options, options.seed + k) for k in more]
            made = cls(words, labels, options, [first, *rest], name)
            made.model.load_state_dict(tensors)
        except (ValueError, KeyError, TypeError, MemoryError) as e:
            raise ValueError(
                f"DIR: expected a model whose parameters fit its options, got {where}: {e}"
            ) from None
        if not np.isfinite(made.model.flat).all():
            raise ValueError(f"DIR: expected parameters that are finite, got others in {where}")
        return made


def _is_usable(options: ClassifyOptions) -> bool:
    """Whether the options of a model that was read are those of a network."""
    counts = (options.hidden, options.embedding, options.members, options.length, options.sentence)
    return (
        options.cell in CELLS
        and options.model in ("flat", "hierarchical")
        and all(n > 0 for n in counts)
        and 0 <= options.dropout < 1
        and options.seed >= 0
    )


def _shortened(sentences: list[list[str]], length: int) -> list[list[str]]:
    """Return the sentences of the first words of a text."""
    out = []
    for words in sentences:
        if length <= 0:
            break
        out.append(words[:length])
        length -= len(words)
    return out


# -- training --------------------------------------------------------------------------------------


class _Batches(RaggedLoader):
    """Batches in which words are hidden at random: others in every epoch, the same in every run."""

    def __init__(self, x: Ragged, target: Array, options: ClassifyOptions, seed: int) -> None:
        super().__init__(x, target, batch_size=options.batch, outputs="last", rng=seed)
        self.share = options.word_dropout

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        for k, (x, target) in enumerate(super().batches(epoch, start), start):
            rng = np.random.default_rng((self.rng, epoch, k))
            ids = leaves(x)
            hidden = np.where(rng.random(ids.shape) < self.share, UNKNOWN, ids)
            sentences = isinstance(x.rows, Ragged)
            yield x.like(x.rows.like(hidden) if sentences else hidden), target


def train_classifier(
    train: Documents,
    held_out: Documents,
    options: ClassifyOptions,
    *,
    corpus: str = "",
    report: Callable[[str], None] = print,
    parallel: Parallel | None = None,
) -> TextClassifier:
    """Train on documents, and report the loss of others after every epoch.

    Nothing is chosen by what is held out: the last parameters are those of the model.

    >>> from ostinato.tasks._documents import Documents
    >>> texts = ["good film", "bad film"] * 8
    >>> some = Documents(texts, ["yes", "no"] * 8, None, [""] * 16, "")
    >>> options = ClassifyOptions(hidden=4, embedding=4, epochs=20, batch=4, rate=0.02)
    >>> model = train_classifier(some, some, options, report=lambda line: None)
    >>> model.labels[model.probabilities(["A good one"]).argmax()]
    'yes'

    Args:
        train: what is trained on.
        held_out: what is measured after every epoch.
        options: the options.
        corpus: the name of the corpus that they are of; "" for none.
        report: called with each line.
        parallel: the processes that train together; None: this one alone.

    Returns:
        The classifier.

    Raises:
        ValueError: documents of one class, or held-out ones of a class that was not trained on.
    """
    labels = sorted(set(train.labels))
    if len(labels) < 2:
        raise ValueError(
            f"DATA: expected at least 2 classes to train on, got {', '.join(labels) or 'none'} "
            f"alone in {train.source}"
        )
    target, held_target = numbers_of(train, labels), numbers_of(held_out, labels)
    read = [words_of(text) for text in train.texts]
    longer = sum(len(one) > options.length for one in read)
    cut = (one[: options.length] for one in read)
    words = vocabulary(cut, options.min_count, options.max_words)
    made = TextClassifier(words, labels, options, [], corpus)
    x, held = made.encode(train.texts), made.encode(held_out.texts)
    report(
        f"{train.source}: {len(train):,} texts of {len(labels)} classes, {len(held_out):,} held "
        f"out; {len(words):,} words known"
    )
    if longer:
        report(f"{longer:,} texts are longer than {options.length} words, which is what is read")
    networks = []
    for k in range(options.members):
        seed = options.seed + k
        net = network(len(words), len(labels), options, seed)
        start_from_counts(net, x, target, len(labels))
        name = f"network {k + 1}  " if options.members > 1 else ""
        loader = _Batches(x, target, options, seed)
        steps = options.epochs * len(loader)
        trainer = Trainer(
            net,
            losses.CrossEntropy(),
            optim.AdamW(optim.Cosine(options.rate, steps=steps, final=options.rate / 20)),
            clip_norm=1.0,
            metrics=["accuracy"],
            callbacks=[EpochReport(report, name=name)],
            parallel=parallel,
        )
        trainer.fit(
            loader,
            validation=RaggedLoader(
                held, held_target, batch_size=AT_A_TIME, outputs="last", shuffle=False
            ),
            epochs=options.epochs,
            restore_best=False,  # or the reported part would choose the epoch
            seed=seed,
            progress=False,
        )
        networks.append(net)
    return TextClassifier(words, labels, options, networks, corpus)


def read_held_out(
    data: Sequence[str], options: ClassifyOptions
) -> tuple[Documents, Documents, str]:
    r"""Read documents to train on, and those that are held out.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "mails.csv"
    >>> _ = path.write_text("text,label\nCheap!,spam\nFree!,spam\nHello,mail\nDear all,mail")
    >>> train, held_out, _ = read_held_out([str(path)], ClassifyOptions(held_out=0.5))
    >>> len(train), sorted(held_out.labels)
    (2, ['mail', 'spam'])

    Args:
        data: files, or the name of a corpus; empty for the reviews.
        options: the columns, and what is held out.

    Returns:
        Both, and the name of the corpus ("" for files).

    Raises:
        ValueError: a table that is not as expected, or an option that could not act.
        OSError: a file cannot be read.
        ImportError: the package of the corpus, or Polars, is not installed.
    """
    name = _corpus_name(data)
    if name:
        _refuse(options, ("test", "group", "held_out"), f"{name}, which has a held-out part")
        _refuse(options, ("text", "label"), f"{name}, which is no table")
        return (*corpus(name), name)
    if options.test:
        kept = ("held_out",) if options.held_out else ()  # to hold out nothing of DATA is right
        _refuse(options, ("group", *kept), "--test, which has all rows that are held out")
    if not options.held_out and not options.test:
        raise ValueError("--held-out: expected texts to measure with, or --test FILE, got 0")
    documents = read_tables(data, options.text, options.label, options.group)
    if len(set(documents.labels)) < 2:
        raise ValueError(
            f"DATA: expected at least 2 classes to train on, got {quoted(documents.labels[0])} "
            f"alone in {documents.source}"
        )
    if options.test:
        return documents, read_tables([options.test], options.text, options.label), ""
    return (*hold_out(documents, options.held_out), "")


def _refuse(options: ClassifyOptions, names: Sequence[str], beside: str) -> None:
    """Raise for an option that was given and cannot act beside something else."""
    for name in names:
        value = getattr(options, name)
        if value != getattr(ClassifyOptions, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: expected none with {beside}, got {value!r}")


def _corpus_name(data: Sequence[str]) -> str:
    """Return the name of the corpus that DATA is, "" for files."""
    if not data:
        return CORPORA[0]
    names = [name for name in data if name in CORPORA]
    if names and len(data) > 1:
        raise ValueError(
            f"DATA: expected files, or one of {', '.join(CORPORA)} by itself, got {', '.join(data)}"
        )
    return names[0] if names else ""


# -- the commands ----------------------------------------------------------------------------------


def _train(data: Sequence[str], options: ClassifyOptions, run: Run) -> Figures:
    start = time.perf_counter()
    if options.model == "flat":
        _refuse(options, ("sentence",), "--model flat, which reads no sentences")
    train, held_out, name = read_held_out(data, options)
    model = train_classifier(
        train, held_out, options, corpus=name, report=run.report, parallel=run.parallel
    )
    if run.folder is not None:
        model.save(run.folder)
    figures = _measured(model, held_out, run)
    figures |= {
        "trained_on": len(train),
        "words": len(model.words),
        "parameters": model.model.count_parameters(),
        "seconds": time.perf_counter() - start,
    }
    return figures


def _measured(model: TextClassifier, documents: Documents, run: Run) -> Figures:
    """Return the figures of a model on documents, and draw the picture that is asked for."""
    target = numbers_of(documents, model.labels)
    p = model.probabilities(documents.texts)
    guess = p.argmax(1)
    count = len(model.labels)
    matrix = np.bincount(target * count + guess, minlength=count * count).reshape(count, count)
    f1 = F1("macro")
    f1.update(p, target)
    figures: Figures = {
        "task": "classify",
        "data": documents.source,
        "model": model.options.model,
        "texts": len(documents),
        "classes": count,
        "accuracy": float((guess == target).mean()),
        "macro_f1": f1.compute(),
        "log_loss": float(-np.log(np.maximum(p[np.arange(len(p)), target], 1e-300)).mean()),
        "most_frequent": float(np.bincount(target).max() / len(target)),
        "labels": model.labels,
        "confusion": matrix.tolist(),
    }
    run.report(
        f"accuracy {100 * figures['accuracy']:.2f}% of {len(documents):,} texts (the most frequent "
        f"class alone: {100 * figures['most_frequent']:.2f}%), macro F1 {figures['macro_f1']:.3f}"
    )
    if run.plot is not None:
        _draw(run.plot, matrix, model.labels)
        run.report(f"picture  {run.plot}")
    return figures


def _evaluate(data: Sequence[str], run: Run) -> Figures:
    assert run.folder is not None
    model = TextClassifier.load(run.folder)
    if not data and not model.corpus:
        raise ValueError("DATA: expected a file with texts and labels, got none")
    name = _corpus_name(data or [model.corpus])
    documents = corpus(name)[1] if name else _rows(data, model.options)
    return _measured(model, documents, run)


def _rows(data: Sequence[str], options: ClassifyOptions) -> Documents:
    return read_tables(data, options.text, options.label)


def _predict(inputs: Sequence[str], run: Run) -> Figures:
    if run.plot is not None:
        raise ValueError("--plot: expected none with predict; evaluate draws a confusion matrix")
    assert run.folder is not None
    check_out(run.out, ".csv")
    model = TextClassifier.load(run.folder)
    texts = _given(inputs)
    p = model.probabilities(texts)
    rows = []
    for text, row in zip(texts, p.tolist()):
        best = int(np.argmax(row))
        rows.append(
            {
                "text": text,
                "label": model.labels[best],
                "probability": row[best],
                "probabilities": dict(zip(model.labels, row)),
            }
        )
    if run.out is not None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        # Before Python 3.13 a carriage return alone gets no quotes, and would end a row.
        quoting = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label", "probability"])
        for r in rows:
            cells = [r["text"], r["label"], f"{r['probability']:.6f}"]
            (quoting if "\r" in r["text"] + r["label"] else writer).writerow(cells)
        with safetensors.atomic_write(run.out) as f:
            f.write(table.getvalue().encode())
        run.report(f"{len(rows)} texts in {run.out}")
    else:
        for r in rows:
            label, text = one_cell(r["label"]), one_cell(r["text"])
            run.report(f"{label}\t{r['probability']:.3f}\t{text}")
    return {"task": "classify", "predictions": rows}


def _given(inputs: Sequence[str]) -> list[str]:
    """Return the texts of the arguments, each of which has words."""
    texts = texts_given(inputs)
    for text in texts:
        if not has_words(text):
            raise ValueError(f"INPUT: expected a text with a letter or a digit, got {text!r:.60}")
    return texts


# -- the picture -----------------------------------------------------------------------------------


def _draw(path: Path, matrix: Array, labels: Sequence[str]) -> None:
    """Draw a confusion matrix: for each class, the shares of what its texts were taken for."""
    names = [label.replace("$", r"\$") for label in labels]
    if len(names) > SHOWN:  # the most frequent ones, and all others as one
        order = np.argsort(-matrix.sum(1), kind="stable")
        kept = np.sort(order[: SHOWN - 1])
        group = np.full(len(names), SHOWN - 1)
        group[kept] = np.arange(SHOWN - 1)
        reduced = np.zeros((SHOWN, SHOWN), np.int64)
        np.add.at(reduced, (group[:, None], group[None, :]), matrix)
        others = len(names) - len(kept)
        matrix, names = reduced, [*(names[k] for k in kept), f"{others} others"]
    count = len(names)
    side = 2.5 + 0.42 * max(count, 3)
    figure = _picture.figure(side + 0.8, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), n in np.ndenumerate(matrix):
        if n:
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(n), ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(count), names, rotation=90)
    axes.set_yticks(range(count), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    figure.colorbar(image, label="share of the texts of a label", shrink=0.8)
    _picture.save(figure, path)


APPLICATION = Application(
    help="classify texts: the rows of a table, film reviews or news",
    data="CSV or Parquet files with a column of texts and one of labels; or one of "
    f"{', '.join(CORPORA)} (default: {CORPORA[0]}, in evaluate what was trained on)",
    inputs="texts to classify, or - for the lines of the standard input",
    options=ClassifyOptions,
    train=_train,
    predict=_predict,
    evaluate=_evaluate,
)

readable(globals())
