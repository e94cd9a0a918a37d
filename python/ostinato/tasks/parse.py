"""Classify bracketed expressions by their trees: ListOps, or the user's own."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import losses, nn, optim
from .._annotations import readable
from .._check import Array
from .._files import atomic_write, open_regular
from .._ragged import Ragged
from ..train import History, Parallel, Trainer
from . import _picture, listops, models
from ._application import (
    Application,
    Figures,
    Run,
    check_options,
    check_out,
    held_out_of,
    held_out_option,
    inputs_given,
    one_cell,
    option,
)
from ._progress import EpochReport
from ._visible import visible
from .listops import Expression

__all__ = ["Examples", "ParseOptions", "Parser", "load", "read", "train"]

UNKNOWN = "_"  # in a file, the label of a bracket that is not known
LEAST = 10  # different expressions of a user's file
CLIP = 1.0
BATCH = 256  # expressions that are classified at a time
LARGEST = 120  # nodes of a tree that is drawn
OF_LISTOPS = ("examples", "max_depth", "max_args", "max_length")


@dataclass
class ParseOptions:
    """Options of ``train parse``.

    >>> ParseOptions(model="lstm").hidden
    128

    Attributes:
        model: "tree", a TreeLSTM over the trees; or "lstm", an LSTM over the tokens.
        children: of the TreeLSTM: 0 for any number, whose states are added up; N for at most N,
            each with weights of its own.
        targets: "root", the label of each expression; or "nodes", also those of the expressions
            within it, where they are known. The LSTM tells them at their closing brackets.
        embedding: E, features of a label.
        hidden: H, units.
        epochs: passes over the expressions.
        batch: expressions of a batch.
        rate: peak learning rate.
        seed: seed of the initial parameters and of the order of expressions.
        examples: expressions of ListOps to train on.
        held_out: what is held out to be measured, and again as much to choose the best epoch by:
            a share below 1, or how many expressions, at most a tenth of those that are not
            generated.
        max_depth: operators of ListOps within one another, at most.
        max_args: arguments of an operator of ListOps, at most.
        max_length: tokens of an expression of ListOps, at most.
        data_seed: seed of ListOps, or of the division of a user's file.
    """

    model: str = option("tree", "TreeLSTM, or LSTM over the tokens", choices=("tree", "lstm"))
    children: int = option(
        0, "children a node, each with weights of its own; 0: any number, added up", kind="index"
    )
    targets: str = option(
        "nodes",
        "train on the labels of whole expressions, or on those within them too, where known",
        choices=("root", "nodes"),
    )
    embedding: int = option(16, "features of a label")
    hidden: int = option(128, "units")
    epochs: int = option(10, "passes over the expressions")
    batch: int = option(64, "expressions of a batch")
    rate: float = option(1e-2, "peak learning rate", kind="rate")
    seed: int = option(0, "seed of parameters and order", kind="index")
    examples: int = option(120000, "expressions of ListOps to train on")
    held_out: float = held_out_option(
        2000.0, "expressions to measure with, and again as many to choose the epoch by"
    )
    max_depth: int = option(20, "ListOps: operators within one another, at most")
    max_args: int = option(5, "ListOps: arguments of an operator, at most")
    max_length: int = option(100, "ListOps: tokens of an expression, at most")
    data_seed: int = option(0, "seed of ListOps, or of the division of a file", kind="index")


@dataclass
class Examples:
    """Hold expressions with their labels.

    >>> len(Examples([listops.read("[MAX 1 2]")], ["2"]))
    1

    Attributes:
        expressions: the expressions.
        labels: the label of each.
        nodes: for each the label of every node, "" where it is not known; [] where none is known
            but that of the whole.
    """

    expressions: list[Expression]
    labels: list[str]
    nodes: list[list[str]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = self.nodes or [[] for _ in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, numbers: Sequence[int]) -> Examples:
        """Return some of the expressions.

        Args:
            numbers: which.

        Returns:
            Those expressions.
        """
        return Examples(*([own[k] for k in numbers] for own in self._lists()))

    def _lists(self) -> tuple[list[Any], ...]:
        return self.expressions, self.labels, self.nodes

    def cut(self, *ends: int) -> list[Examples]:
        """Return the parts between some places.

        Args:
            *ends: where a part ends and the next one begins.

        Returns:
            The parts, one more than there are places.
        """
        places = [0, *ends, len(self)]
        return [
            Examples(*(own[a:b] for own in self._lists())) for a, b in itertools.pairwise(places)
        ]


class Parser:
    """Classify expressions with a trained network.

    Args:
        options: the options that it was trained with.
        tokens: the labels of nodes that it knows and, for an LSTM, the bracket at the end.
        classes: the labels of expressions.
        listops: whether it was trained on ListOps, whose values are known.
        rng: seed of the initial parameters.

    >>> parser = Parser(ParseOptions(hidden=8), ["[MAX", "1", "2"], ["1", "2"], rng=0)
    >>> parser.probabilities([listops.read("[MAX 1 2]")]).shape
    (1, 2)
    """

    def __init__(
        self,
        options: ParseOptions,
        tokens: Sequence[str],
        classes: Sequence[str],
        *,
        listops: bool = False,
        rng: int = 0,
    ) -> None:
        self.options, self.listops = options, listops
        self.tokens, self.classes = list(tokens), list(classes)
        self._numbers = {token: k for k, token in enumerate(self.tokens)}
        self.network = self._made(rng, "root")

    def _made(self, rng: int, outputs: str) -> nn.Sequential:
        """Return a new network, whose TreeLSTM gives the roots or all nodes."""
        options = self.options
        sizes = options.embedding, options.hidden
        seeds = [int(s) for s in np.random.SeedSequence(rng).generate_state(3)]
        layers: dict[str, nn.Layer] = {
            "embed": nn.Embedding(len(self.tokens), sizes[0], rng=seeds[0])
        }
        if options.model == "tree":
            children = options.children or None
            layers["tree"] = nn.TreeLSTM(*sizes, children, outputs=outputs, rng=seeds[1])
        else:
            layers["rnn"] = nn.LSTM(*sizes, rng=seeds[1])
        layers["head"] = nn.Linear(sizes[1], len(self.classes), rng=seeds[2])
        return nn.Sequential(**layers)

    def fit(
        self,
        rest: Examples,
        valid: Examples,
        report: Callable[[str], None],
        *,
        parallel: Parallel | None = None,
    ) -> History:
        """Train the network.

        Args:
            rest: expressions to train on.
            valid: expressions to choose the best epoch by.
            report: called with a line an epoch.
            parallel: the processes that train together; None: this one alone.

        Returns:
            The rows of the run.

        Raises:
            ValueError: a label that the model does not have.
        """
        options, whole = self.options, self.options.targets == "root"
        network = self.network
        if not whole and options.model == "tree":
            network = self._made(options.seed, "nodes")
            network.load_state_dict(self.network.state_dict())
        steps = options.epochs * -(-len(rest) // options.batch)
        trainer = Trainer(
            network,
            losses.CrossEntropy(),
            optim.Adam(optim.Cosine(options.rate, steps=steps, final=options.rate / 20)),
            outputs="last" if whole and options.model == "lstm" else "all",
            clip_norm=CLIP,
            metrics=["accuracy"] if whole else None,
            callbacks=[EpochReport(report)],
            parallel=parallel,
        )
        given = [self._data(examples) for examples in (rest, valid)]
        history = trainer.fit(
            given[0],
            validation=given[1],
            epochs=options.epochs,
            batch_size=options.batch,
            seed=options.seed,
            monitor="valid_accuracy" if whole else "valid_loss",
            progress=False,
        )
        self.network.load_state_dict(network.state_dict())
        return history

    def _data(self, examples: Examples) -> tuple[Any, ...]:
        """Return inputs and targets as the trainer takes them, with weights of nodes or steps."""
        x = self.inputs(examples.expressions, "DATA")
        if self.options.targets == "root":
            return x, self.targets(examples.labels)
        target, weights = np.zeros(len(x.rows), np.int64), np.zeros(len(x.rows), np.float32)
        tree = self.options.model == "tree"
        for k, (e, start) in enumerate(zip(examples.expressions, x.offsets.tolist())):
            names = _of_nodes(e) if self.listops else examples.nodes[k] or [examples.labels[k]]
            at = [(k, name) for k, name in enumerate(names) if name]
            places = np.array([k if tree else e.spans[k][1] - 1 for k, _ in at]) + start
            target[places] = self.targets([name for _, name in at])
            weights[places] = 1
        return x, target, {"weights": weights}

    def inputs(self, expressions: Sequence[Expression], where: str = "expression") -> Ragged:
        """Return expressions as the network reads them: trees, or sequences of tokens.

        Args:
            expressions: the expressions.
            where: what errors call one of them.

        Returns:
            `Trees`, or a `Ragged`.

        Raises:
            ValueError: a label that was not trained on, or more children than the network takes.
        """
        most = self.options.children or None
        for e in expressions:
            unknown = next((t for t in e.labels if t not in self._numbers), None)
            if unknown is not None:
                raise ValueError(
                    f"{where}: expected labels that the model was trained on, got "
                    f"{visible(unknown.lstrip('['))!r:.40} in {visible(e.text())!r:.60}"
                )
            if most is not None and np.bincount(np.array(e.parents) + 1)[1:].max(initial=0) > most:
                raise ValueError(
                    f"{where}: expected at most {most} arguments (--children), got more in "
                    f"{visible(e.text())!r:.60}"
                )
        if self.options.model == "tree":
            return listops.trees_of(expressions, self._numbers)
        ids = [self._numbers[t] for e in expressions for t in e.tokens]
        return Ragged(
            np.array(ids, np.int64), np.cumsum([0, *(len(e.tokens) for e in expressions)])
        )

    def targets(self, labels: Sequence[str], where: str = "DATA") -> Array:
        """Return the number of the class of each label.

        Args:
            labels: the labels.
            where: what errors call them.

        Returns:
            ``[N]``.

        Raises:
            ValueError: a label that is no class of the model.
        """
        known = {name: k for k, name in enumerate(self.classes)}
        unknown = next((label for label in labels if label not in known), None)
        if unknown is not None:
            raise ValueError(
                f"{where}: expected labels that the model knows, "
                f"{visible(', '.join(self.classes))!r:.60}, got {visible(unknown)!r:.40}"
            )
        return np.array([known[label] for label in labels], np.int64)

    def probabilities(self, expressions: Sequence[Expression], where: str = "expression") -> Array:
        """Return the probability of every class.

        Args:
            expressions: the expressions.
            where: what errors call one of them.

        Returns:
            ``[N,C]``.

        Raises:
            ValueError: a label that was not trained on.
        """
        options = {} if self.options.model == "tree" else {"outputs": "last"}
        parts = [np.zeros((0, len(self.classes)), np.float32)]
        for k in range(0, len(expressions), BATCH):
            x = self.inputs(expressions[k : k + BATCH], where)
            parts.append(nn.softmax(self.network(x, **options)[0]))
        return np.concatenate(parts)

    def nodes(self, expression: Expression) -> list[str]:
        """Return the class of every node: that of its subtree as an expression of its own.

        Args:
            expression: the expression.

        Returns:
            The classes, in the order of the nodes.

        Raises:
            ValueError: a label that was not trained on.
        """
        parts = [listops.read(expression.text(k)) for k in range(len(expression.labels))]
        return [self.classes[k] for k in self.probabilities(parts).argmax(1)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a folder.

        Args:
            folder: the folder, which is there.

        Raises:
            OSError: the file cannot be written.
        """
        facts = {
            "options": dataclasses.asdict(self.options),
            "tokens": self.tokens,
            "classes": self.classes,
            "listops": self.listops,
        }
        models.save_model(folder, "parse", self.network, facts)


def _of_nodes(e: Expression) -> list[str]:
    """Return the values of the nodes of ListOps that are learnt.

    These are what an operator gives, or a digit by itself, and not those within; "" for others.
    """
    values = listops.value(e)
    alone = len(values) == 1
    return [str(v) if t.startswith("[") or alone else "" for v, t in zip(values, e.labels)]


def load(folder: str | os.PathLike[str]) -> Parser:
    """Read a model that `Parser.save` wrote.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> Parser(ParseOptions(hidden=8), ["[MAX", "1", "2"], ["1", "2"]).save(folder)
    >>> load(folder).classes
    ['1', '2']

    Args:
        folder: the folder.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the file is damaged, or it is no such model.
    """
    tensors, facts = models.load_model(folder, "parse")
    given = facts.get("options")
    if isinstance(given, dict):  # the first models had a share of files beside the number
        given = {name: value for name, value in given.items() if name != "fraction"}
    options = ParseOptions(**models.known_options(folder, given, ParseOptions))
    named = f"DIR: expected a model of expressions, got {os.fspath(folder)}"
    try:
        check_options(options)
    except ValueError as e:
        raise ValueError(f"{named} with {e}") from None
    names = []
    for name in ("tokens", "classes"):
        given = facts.get(name)
        right = isinstance(given, list) and all(isinstance(t, str) for t in given)
        if not right or not given or len(set(given)) != len(given):
            raise ValueError(f"{named} without {name} that can be read")
        names.append(given)
    if not isinstance(facts.get("listops"), bool):
        raise ValueError(f"{named} that does not say whether it is one of ListOps")
    models.check_shapes(folder, tensors, _shapes(options, len(names[0]), len(names[1])))
    parser = Parser(options, *names, listops=facts["listops"])
    parser.network.load_state_dict(tensors)
    return parser


def _shapes(options: ParseOptions, tokens: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the parameters."""
    e, h, places = options.embedding, options.hidden, options.children or 1
    if options.model == "lstm":
        inner = models.recurrent_shapes("rnn.", "lstm", e, h, 1)
    else:
        inner = {
            "tree.weight_ih": (4 * h, e),
            "tree.weight_hh": ((3 + places) * h, places * h),
            "tree.bias": (4 * h,),
        }
    return {
        "embed.weight": (tokens, e),
        **inner,
        "head.weight": (classes, h),
        "head.bias": (classes,),
    }


# -- data ------------------------------------------------------------------------------------------


def read(files: Sequence[str | os.PathLike[str]]) -> Examples:
    r"""Read the different expressions of files, with their labels.

    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "few.tsv"
    >>> _ = path.write_text("9\t[MAX 2 [MIN 9 4] 9]\t4\n3\t[MIN 8 3]\n")
    >>> few = read([path])
    >>> few.labels, few.nodes
    (['9', '3'], [['9', '', '4', '', '', ''], []])

    Args:
        files: files in UTF-8 with a line ``label TAB expression`` for each expression; behind
            another tab there may be the labels of the brackets within it, in the order in which
            they open, with spaces between them and ``_`` for one that is not known.

    Returns:
        The expressions in their order, repeated ones once.

    Raises:
        ValueError: a line that is none of that form, one expression with two labels, or no line.
        OSError: a file cannot be read.
    """
    found: dict[str, tuple[Expression, str, list[str]]] = {}
    for path in files:
        for where, line in _lines(path):
            label, tab, text = line.partition("\t")
            if not tab or not label.strip():
                raise ValueError(
                    f"{where}: expected a label, a tab and an expression, got {visible(line)!r:.60}"
                )
            text, _, within = text.strip().partition("\t")
            e = listops.read(text, where)
            one = e, label.strip(), _within(e, label.strip(), within.split(), where)
            known = found.setdefault(e.text(), one)
            if known != one:
                got = f"{visible(known[1])!r:.40} and {visible(one[1])!r:.40}"
                if known[1] == one[1]:
                    got = "others within it"
                raise ValueError(
                    f"{where}: expected one label for {visible(e.text())!r:.60}, got {got}"
                )
    if not found:
        names = ", ".join(os.fspath(path) for path in files)
        raise ValueError(f"DATA: expected lines of a label, a tab and an expression, got {names}")
    every = found.values()
    return Examples([e for e, _, _ in every], [n for _, n, _ in every], [n for _, _, n in every])


def _within(e: Expression, label: str, given: Sequence[str], where: str) -> list[str]:
    """Return the labels of all nodes, from those of the brackets within an expression."""
    if not given:
        return []
    inner = [k for k, token in enumerate(e.labels) if k and token.startswith("[")]
    if len(given) != len(inner):
        raise ValueError(
            f"{where}: expected no labels of the brackets within {visible(e.text())!r:.60}, or "
            f"{len(inner)}, got {len(given)}"
        )
    names = {k: name for k, name in zip(inner, given) if name != UNKNOWN}
    return [label, *(names.get(k, "") for k in range(1, len(e.labels)))]


def _lines(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the lines of a file that are not blank, each with what errors call it."""
    named = os.fspath(path)
    with open_regular(path) as f:
        try:
            text = f.read().decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise ValueError(
                f"DATA: expected text in UTF-8, got {named} with a byte 0x{e.object[e.start]:02x} "
                f"at position {e.start}"
            ) from None
    lines = text.replace("\r\n", "\n").split("\n")
    return [(f"DATA: {named}, line {k}", line) for k, line in enumerate(lines, 1) if line.strip()]


def _of_listops(options: ParseOptions, *, test_only: bool = False) -> list[Examples]:
    """Return generated expressions to train on, to choose the best epoch by, and to measure.

    With test_only the first two are empty. What is held out comes first, so that it is the same for
    any number of examples.
    """
    held = options.held_out
    held = round(held * options.examples) if held < 1 else int(held)
    if not held:
        raise ValueError(f"--held-out: expected expressions to measure with, got {held:g}")
    made = listops.generate(
        held if test_only else options.examples + 2 * held,
        seed=options.data_seed,
        max_depth=options.max_depth,
        max_args=options.max_args,
        max_length=options.max_length,
    )
    if not test_only:
        made += [listops.read(str(k)) for k in range(10)]  # digits are expressions as well
    whole = Examples(made, [str(listops.value(e)[0]) for e in made])
    test, valid, rest = whole.cut(held, held if test_only else 2 * held)
    return [rest, valid, test]


def _of_files(files: Sequence[str], options: ParseOptions) -> list[Examples]:
    """Return the expressions of files to train on, to choose the best epoch by, and to measure."""
    for f in dataclasses.fields(options):
        if f.name in OF_LISTOPS and getattr(options, f.name) != f.default:
            flag = f.name.replace("_", "-")
            raise ValueError(f"--{flag}: expected no such option with DATA, which is not generated")
    whole = read(files)
    held = held_out_of(options.held_out, len(whole))
    if len(whole) < LEAST or not held or len(whole) <= 2 * held:
        raise ValueError(
            f"DATA: expected at least {LEAST} different expressions, of which --held-out takes "
            f"one or more twice and leaves some, got {len(whole)} and "
            f"{options.held_out:g}"
        )
    order = np.random.default_rng(options.data_seed).permutation(len(whole))
    test, valid, rest = whole.part(order.tolist()).cut(held, 2 * held)
    return [rest, valid, test]


# -- training --------------------------------------------------------------------------------------


def train(files: Sequence[str], options: ParseOptions, run: Run) -> Figures:
    """Train on ListOps, or on the user's own expressions.

    >>> small = ParseOptions(examples=20, held_out=5, epochs=1, hidden=4)
    >>> figures = train([], small, Run(None, None, None, lambda line: None))
    >>> figures["examples"], figures["classes"]
    (5, 10)

    Args:
        files: files with a line ``label TAB expression`` each; empty for ListOps.
        options: the options.
        run: where the model and the picture go.

    Returns:
        The figures of the expressions that were held out.

    Raises:
        ValueError: a file or an option is not as expected.
        OSError: a file cannot be read or written.
    """
    if options.children and options.model == "lstm":
        raise ValueError("--children: expected 0 with --model lstm, which sees no tree")
    parts = _of_files(files, options) if files else _of_listops(options)
    rest, valid, test = parts
    if files and not any(rest.nodes):  # whose expressions have labels as a whole
        options = dataclasses.replace(options, targets="root")
    classes = sorted(
        {label for part in parts for label in part.labels}
        | {label for part in parts for names in part.nodes for label in names if label}
    )
    if len(classes) < 2:
        raise ValueError(f"DATA: expected at least two labels, got {visible(classes[0])!r:.40}")
    known = {t for part in parts for e in part.expressions for t in (*e.labels, "]")}
    parser = Parser(options, sorted(known), classes, listops=not files, rng=options.seed)
    run.report(
        f"{len(rest):,} expressions to train on, {len(valid):,} to choose the epoch by, "
        f"{len(test):,} held out; {len(classes)} classes, "
        f"{parser.network.count_parameters():,} parameters"
    )
    history = parser.fit(rest, valid, run.report, parallel=run.parallel)
    if run.folder is not None:  # before what can fail, or be interrupted
        parser.save(run.folder)
    figures = {
        **_measured(parser, test, run),
        "targets": options.targets,
        "model": options.model,
        "classes": len(classes),
        "parameters": parser.network.count_parameters(),
        "best_epoch": None if history.best is None else int(history.best["epoch"]),
        "seconds": history.rows[-1]["seconds"],
    }
    return figures


def _measured(parser: Parser, test: Examples, run: Run) -> Figures:
    """Return, report and draw how many expressions are classified right."""
    target = parser.targets(test.labels)
    right = parser.probabilities(test.expressions, "DATA").argmax(1) == target
    heights = np.array([e.height for e in test.expressions])
    by_height = {
        int(h): {"accuracy": float(right[heights == h].mean()), "count": int((heights == h).sum())}
        for h in np.unique(heights)
    }
    most_common = float(np.bincount(target).max() / len(target))
    run.report(
        f"{right.mean():.2%} of {len(right):,} expressions right; the most common label alone: "
        f"{most_common:.2%}"
    )
    cells = [f"{h}: {f['accuracy']:.1%} of {f['count']}" for h, f in by_height.items()]
    run.report("by height  " + ", ".join(cells))
    within = _right_within(parser, test)
    if within is not None:
        run.report(f"{within:.2%} of the labels within them right")
    if run.plot is not None:
        _draw_heights(by_height, run)
    return {
        "task": "parse",
        "accuracy": float(right.mean()),
        "within_accuracy": within,
        "most_common": most_common,
        "examples": len(right),
        "by_height": by_height,
    }


def _right_within(parser: Parser, test: Examples) -> float | None:
    """Return the share of right labels within expressions; None where none is known."""
    right = [
        name == given
        for e, names in zip(test.expressions, test.nodes)
        if names
        for name, given in list(zip(names, parser.nodes(e)))[1:]
        if name
    ]
    return float(np.mean(right)) if right else None


def _draw_heights(by_height: dict[int, dict[str, Any]], run: Run) -> None:
    """Draw the share of right expressions for each height of their trees."""
    assert run.plot is not None
    figure = _picture.figure(6, 3.2)
    axes = figure.subplots()
    heights = list(by_height)
    axes.bar(heights, [100 * f["accuracy"] for f in by_height.values()], color="tab:blue")
    for h, f in by_height.items():
        axes.annotate(f"{f['count']:,}", (h, 2), ha="center", color="white", fontsize=7)
    axes.set(xlabel="height of the tree", ylabel="expressions right (%)", ylim=(0, 100))
    axes.set_xticks(heights)
    _picture.save(figure, run.plot)
    run.report(f"picture  {run.plot}")


# -- use -------------------------------------------------------------------------------------------


def predict(inputs: Sequence[str], run: Run) -> Figures:
    """Return the class of expressions and of all their nodes.

    Args:
        inputs: expressions, files with one a line (behind a label and a tab, if there is one), or
            "-" for the lines of the standard input, which are expressions.
        run: the folder of the model, and where the result and the picture go.
    """
    assert run.folder is not None
    check_out(run.out, ".tsv", ".txt")
    parser, expressions = load(run.folder), _given(inputs)
    if run.plot is not None and len(expressions[0].labels) > LARGEST:
        raise ValueError(
            f"--plot: expected a first expression of at most {LARGEST} nodes, got "
            f"{len(expressions[0].labels)}"
        )
    found, lines = [], []
    for e, p in zip(expressions, parser.probabilities(expressions, "INPUT")):
        label = parser.classes[int(p.argmax())]
        parts = parser.nodes(e)
        nodes = [{"expression": e.text(k), "label": part} for k, part in enumerate(parts)]
        known: dict[str, Any] = {}
        if parser.listops:
            values = [str(v) for v in listops.value(e)]
            known = {"value": values[0]}
            nodes = [{**node, "value": v} for node, v in zip(nodes, values)]
        found.append(
            {"expression": e.text(), "label": label, "probability": float(p.max()), **known}
            | {"nodes": nodes}
        )
        lines.append(f"{one_cell(label)}\t{one_cell(e.text())}")
        right = f"; its value is {known['value']}" if known else ""
        run.report(f"{label}  {p.max():4.0%}  {e.text()}{right}")
    if run.plot is not None:
        _draw_tree(expressions[0], found[0], run)
    if run.out is not None:
        with atomic_write(run.out) as f:
            f.write("".join(line + "\n" for line in lines).encode())
    return {"task": "parse", "predictions": found}


def _given(inputs: Sequence[str]) -> list[Expression]:
    """Return the expressions of INPUT: themselves, or files with one a line."""
    found = []
    for k, (text, argument) in enumerate(inputs_given(inputs), 1):
        if argument and "[" not in text and "(" not in text and os.path.isfile(text):
            lines = [(where.replace("DATA", "INPUT"), line) for where, line in _lines(text)]
            if not lines:
                raise ValueError(f"INPUT: expected lines with expressions, got {text} without any")
            # Behind a label, and before the labels within, if they are there.
            columns = [(where, line.split("\t")) for where, line in lines]
            found += [listops.read(some[len(some) > 1], where) for where, some in columns]
        else:
            found.append(listops.read(text, f"INPUT {k}"))
    return found


def _draw_tree(e: Expression, found: dict[str, Any], run: Run) -> None:
    """Draw a tree with the classes at its nodes; wrong ones are red, if the values are known."""
    assert run.plot is not None
    count = len(e.labels)
    children: list[list[int]] = [[] for _ in range(count)]
    depths, across = [0] * count, [0.0] * count
    for k in range(1, count):
        children[e.parents[k]].append(k)
        depths[k] = depths[e.parents[k]] + 1
    leaves = [k for k in range(count) if not children[k]]
    for place, k in enumerate(leaves):
        across[k] = place
    for k in range(count - 1, -1, -1):  # children stand behind their parents
        if children[k]:
            across[k] = (across[children[k][0]] + across[children[k][-1]]) / 2
    width, height = max(4.0, 0.55 * len(leaves)), 1.2 + 0.8 * max(depths)
    figure = _picture.figure(min(width, 40), min(height, 20))
    axes = figure.subplots()
    for k in range(1, count):
        p = e.parents[k]
        axes.plot([across[k], across[p]], [-depths[k], -depths[p]], color="0.7", lw=1, zorder=1)
    for k, node in enumerate(found["nodes"]):
        wrong = node.get("value", node["label"]) != node["label"]
        label = e.labels[k].lstrip("[")
        text = label if not children[k] and label == node["label"] else f"{label}\n{node['label']}"
        box = {"boxstyle": "round", "fc": "#ffd6d6" if wrong else "#e4eefb", "ec": "0.6"}
        axes.text(
            across[k],
            -depths[k],
            visible(text).replace("$", r"\$"),
            ha="center",
            va="center",
            fontsize=8,
            bbox=box,
        )
    axes.set(xlim=(-0.7, len(leaves) - 0.3), ylim=(-max(depths) - 0.6, 0.6))
    axes.set_axis_off()
    _picture.save(figure, run.plot)
    run.report(f"picture  {run.plot}, the first expression")


def evaluate(files: Sequence[str], run: Run) -> Figures:
    """Return how many expressions are classified right.

    Args:
        files: files as in training; empty for the part of ListOps that was held out.
        run: the folder of the model, and where the picture goes.
    """
    assert run.folder is not None
    parser = load(run.folder)
    if files:
        return _measured(parser, read(files), run)
    if not parser.listops:
        raise ValueError("DATA: expected a file, since the model was not trained on ListOps")
    return _measured(parser, _of_listops(parser.options, test_only=True)[2], run)


APPLICATION = Application(
    help="train a tree network on bracketed expressions",
    data="files with a line 'label TAB [operator argument ...]' for each expression, and behind "
    "another tab the labels of the brackets within it, where known; without any, ListOps, which is "
    "generated",
    inputs="expressions such as '[MAX 2 9 [MIN 4 7]]', files with one a line, or - for the lines "
    "of the standard input",
    options=ParseOptions,
    train=train,
    predict=predict,
    evaluate=evaluate,
)

readable(globals())
