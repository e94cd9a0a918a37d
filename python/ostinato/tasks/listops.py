"""Bracketed expressions, and ListOps: expressions with a value, generated from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .._annotations import readable
from .._check import quoted
from .._trees import Trees

__all__ = ["Expression", "generate", "read", "trees_of", "value"]

OPERATOR_SHARE = 0.25  # of arguments that are operators themselves, as published
DRAWS = 50  # for each expression that is wanted, before generation gives up

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int(np.median(values)),  # of an even number the mean, rounded down
    "SM": lambda values: sum(values) % 10,
}

_TOKENS = re.compile(r"[\[\]()]|[^\s\[\]()]+")
_CLOSING = {"[": "]", "(": ")"}


@dataclass
class Expression:
    """Hold one expression as a tree and as a sequence.

    >>> e = read("[MAX 2 [MIN 4 7] 0]")
    >>> e.labels, e.parents
    (['[MAX', '2', '[MIN', '4', '7', '0'], [-1, 0, 0, 2, 2, 0])
    >>> e.tokens
    ['[MAX', '2', '[MIN', '4', '7', ']', '0', ']']
    >>> e.text(2)
    '[MIN 4 7]'

    Attributes:
        labels: of the nodes, each before its children; those with children begin with a bracket.
        parents: of the nodes, -1 for the root.
        tokens: the expression as a sequence: labels, and a bracket at the end of each node with
            children.
        spans: where each node begins and ends in tokens.
    """

    labels: list[str]
    parents: list[int]
    tokens: list[str]
    spans: list[tuple[int, int]]

    def text(self, node: int = 0) -> str:
        """Return the expression of a node as text.

        Args:
            node: its number.

        Returns:
            The text, with square brackets.
        """
        start, end = self.spans[node]
        return " ".join(self.tokens[start:end]).replace(" ]", "]")

    @property
    def height(self) -> int:
        """The longest way from the root down to a leaf: 0 for a leaf alone."""
        heights = [0] * len(self.labels)
        for k in range(len(heights) - 1, 0, -1):  # children stand behind their parents
            heights[self.parents[k]] = max(heights[self.parents[k]], heights[k] + 1)
        return heights[0]


def read(text: str, where: str = "expression") -> Expression:
    """Read a bracketed expression: ``[label argument ...]``, or with round brackets.

    An argument is an expression in brackets or a label.

    >>> read("(3 (2 not) (4 bad))").labels
    ['[3', '[2', 'not', '[4', 'bad']

    Args:
        text: the expression.
        where: what errors call it.

    Returns:
        The expression.

    Raises:
        ValueError: no expression, several ones, a bracket without a label or without its partner.
    """
    e = Expression([], [], [], [])
    open_: list[tuple[int, str]] = []  # nodes and the brackets that end them, the outermost first
    begins = False  # whether a label must follow
    for token in _TOKENS.findall(text):
        if not begins and e.labels and not open_:
            raise ValueError(f"{where}: expected one expression, got {token!r:.40} behind its end")
        if begins and (token in _CLOSING or token in "])"):
            raise ValueError(f"{where}: expected a label behind a bracket, got {quoted(token)}")
        if token in "])":
            if not open_ or open_[-1][1] != token:
                wanted = f"{open_[-1][1]!r}" if open_ else "an expression"
                raise ValueError(f"{where}: expected {wanted}, got {quoted(token)}")
            node, _ = open_.pop()
            e.tokens.append("]")
            e.spans[node] = (e.spans[node][0], len(e.tokens))
            continue
        if token in _CLOSING:
            begins = True
            closing = _CLOSING[token]
            continue
        e.parents.append(open_[-1][0] if open_ else -1)
        e.labels.append("[" + token if begins else token)
        e.spans.append((len(e.tokens), len(e.tokens) + 1))
        e.tokens.append(e.labels[-1])
        if begins:
            open_.append((len(e.labels) - 1, closing))
        begins = False
    if not e.labels or open_ or begins:
        got = f"the end before {open_[-1][1]!r}" if open_ else f"{text.strip()!r:.40}"
        raise ValueError(f"{where}: expected an expression such as [MAX 2 [MIN 4 7]], got {got}")
    return e


def value(expression: Expression) -> list[int]:
    """Return the value of every node of a ListOps expression.

    MIN, MAX, MED (the median; of an even number of arguments the mean of the two in the middle,
    rounded down) and SM (the sum modulo 10) of digits.

    >>> value(read("[SM 9 [MED 1 2 5 8] [MAX 4 7]]"))
    [9, 9, 3, 1, 2, 5, 8, 7, 4, 7]

    Args:
        expression: the expression.

    Returns:
        The values, in the order of the nodes.

    Raises:
        ValueError: an operator or a number that ListOps does not have.
    """
    found = [0] * len(expression.labels)
    arguments: list[list[int]] = [[] for _ in found]
    for k in range(len(found) - 1, -1, -1):
        label = expression.labels[k]
        name = label[1:]
        if label.startswith("[") and name in OPERATORS and arguments[k]:
            found[k] = OPERATORS[name](arguments[k])
        elif len(label) == 1 and label in "0123456789":
            found[k] = int(label)
        else:
            raise ValueError(
                f"expression: expected digits and {', '.join(OPERATORS)} of at least one argument, "
                f"got {label!r:.40}"
            )
        if k:
            arguments[expression.parents[k]].append(found[k])
    return found


def generate(
    count: int,
    *,
    seed: int = 0,
    max_depth: int = 20,
    max_args: int = 5,
    max_length: int = 100,
) -> list[Expression]:
    """Generate distinct expressions, each an operator with its arguments.

    An operator has 2 to max_args arguments, as many with equal probability; a quarter of those are
    operators themselves, all others digits.

    >>> generate(2, seed=5, max_args=3)[1].text()
    '[SM 6 3]'
    >>> len({e.text() for e in generate(50)})
    50

    Args:
        count: how many.
        seed: of the generator; a larger count goes on where a smaller one ended.
        max_depth: operators within one another, at most.
        max_args: arguments of an operator, at most.
        max_length: tokens of an expression, at most; longer ones are drawn anew.

    Returns:
        The expressions, in the order in which they were drawn.

    Raises:
        ValueError: fewer than two arguments, or options that give fewer expressions.

    Source: Nangia, Bowman (2018), "ListOps: a diagnostic dataset for latent tree learning".
    """
    for name, given, least in (
        ("max_depth", max_depth, 1),
        ("max_args", max_args, 2),
        ("max_length", max_length, 4),
    ):
        if given < least:
            raise ValueError(f"{name}: expected at least {least}, got {given}")
    rng = random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(DRAWS * count + 1000):
        if len(found) == count:
            break
        tokens = _drawn(rng, max_depth, max_args, max_length)
        if tokens is not None:
            found.setdefault(" ".join(tokens))
    if len(found) < count:
        raise ValueError(
            f"examples: expected at most {len(found)}, the distinct expressions that were found "
            f"with max_depth={max_depth}, max_args={max_args} and max_length={max_length}, got "
            f"{count}"
        )
    return [read(text) for text in found]


def _drawn(rng: random.Random, max_depth: int, max_args: int, max_length: int) -> list[str] | None:
    """Return the tokens of one expression; None for one that is too long.

    Only ``random()`` is called, whose numbers are the same in every version of Python.
    """
    names = list(OPERATORS)

    def below(n: int) -> int:
        return int(rng.random() * n)

    tokens: list[str] = []
    left: list[int] = []  # arguments that the open operators still need, the outermost first
    operator = True
    while True:
        if operator:
            tokens.append("[" + names[below(len(names))])
            left.append(2 + below(max_args - 1))
        else:
            tokens.append(str(below(10)))
            left[-1] -= 1
        while left and left[-1] == 0:
            tokens.append("]")
            left.pop()
            if left:
                left[-1] -= 1
        if not left:
            return tokens if len(tokens) <= max_length else None
        if len(tokens) > max_length:
            return None
        operator = len(left) < max_depth and rng.random() < OPERATOR_SHARE


def trees_of(expressions: Sequence[Expression], numbers: dict[str, int]) -> Trees:
    """Return expressions as trees whose rows are the numbers of the labels.

    >>> trees_of([read("[MAX 1 2]")], {"[MAX": 0, "1": 1, "2": 2})
    Trees(1 trees, 3 nodes)

    Args:
        expressions: the expressions.
        numbers: the number of each label.

    Returns:
        The trees.
    """
    rows = np.array([numbers[label] for e in expressions for label in e.labels], np.int64)
    return Trees(rows, [e.parents for e in expressions])


readable(globals())
