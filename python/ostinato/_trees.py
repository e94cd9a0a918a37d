"""Hold trees, their nodes one after the other in flat rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._annotations import readable
from ._check import Array
from ._ragged import Ragged, _listed, _numbers, sequence_of, step_of

Ints = npt.NDArray[np.int64]


class Level(NamedTuple):
    """Nodes of one height, in the order of `Levels`, with the edges to their children.

    Attributes:
        nodes: the places of the nodes, which lie side by side.
        edges: the places of their edges.
        child: the place of the child of each edge, ``[e]``.
        parent: the parent of each edge, counted from the first node of the level, ``[e]``.
        slot: the number of each edge's child among its siblings, ``[e]``.
    """

    nodes: slice
    edges: slice
    child: Ints
    parent: Ints
    slot: Ints


class Levels(NamedTuple):
    """Nodes ordered by height, leaves first, so that children stand before their parents.

    Attributes:
        order: the node at each place, ``[N]``.
        place: the place of each node, ``[N]``.
        child: the place of the child of each edge, ``[E]``; edges are ordered by their parents.
        levels: the levels, leaves first.
    """

    order: Ints
    place: Ints
    child: Ints
    levels: tuple[Level, ...]


class _Shape:
    """The form of trees, which sets of rows share: parents, heights, levels.

    Args:
        offsets: ``[B+1]``.
        parents: ``[N]``, numbers within the tree, -1 for a root; they are known to form trees.
        heights: ``[N]``; None: they are computed.
    """

    def __init__(self, offsets: Ints, parents: Ints, heights: Ints | None = None) -> None:
        self.offsets, self.parents = offsets, parents
        self.heights = self._computed_heights() if heights is None else heights
        for a in (self.offsets, self.parents, self.heights):
            a.flags.writeable = False
        self._levels: Levels | None = None

    def rows_of_parents(self) -> Ints:
        """Return the row of each node's parent, its own for a root."""
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        own: Ints = np.arange(len(self.parents))
        return np.where(self.parents < 0, own, starts + self.parents)

    def depths(self) -> Ints:
        """Return the number of edges between each node and its root.

        Every node looks at its parent, then at what that looked at, and so on: log2(n) times. The
        row that a node ends at is the root, unless there is a cycle.
        """
        return _climbed(self.rows_of_parents(), np.diff(self.offsets))[0]

    def _computed_heights(self) -> Ints:
        above, depths = self.rows_of_parents(), self.depths()
        heights = np.zeros(len(above), np.int64)
        deepest_first = np.argsort(-depths, kind="stable")
        start = 0
        for end in np.cumsum(np.bincount(depths)[:0:-1]).tolist():
            nodes = deepest_first[start:end]
            np.maximum.at(heights, above[nodes], heights[nodes] + 1)
            start = end
        return heights

    def levels(self) -> Levels:
        """Return the nodes by height, computed once."""
        if self._levels is None:
            self._levels = self._computed_levels()
        return self._levels

    def _computed_levels(self) -> Levels:
        order = np.argsort(self.heights, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        nodes = np.flatnonzero(self.parents >= 0)
        parent = place[self.rows_of_parents()[nodes]]
        sorted_edges = np.argsort(parent, kind="stable")  # siblings stay in the order of their rows
        child, parent = place[nodes][sorted_edges], parent[sorted_edges]
        slot = step_of(np.bincount(parent, minlength=len(order)))
        ends = np.cumsum(np.bincount(self.heights)) if len(order) else np.zeros(0, np.int64)
        edge_ends = np.searchsorted(parent, ends)
        levels, start, edge = [], 0, 0
        for stop, last in zip(ends.tolist(), edge_ends.tolist()):
            e = slice(edge, last)
            own = np.ascontiguousarray(parent[e] - start)
            levels.append(Level(slice(start, stop), e, child[e], own, slot[e]))
            start, edge = stop, last
        return Levels(order, place, child, tuple(levels))

    def take(self, trees: Any) -> tuple[Ints, _Shape]:
        """Return the rows of some trees, and their form."""
        numbers = np.arange(len(self.offsets) - 1)[trees]
        lengths = np.diff(self.offsets)[numbers]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        at = step_of(lengths) + np.repeat(self.offsets[:-1][numbers], lengths)
        return at, _Shape(offsets, self.parents[at], self.heights[at])


class Trees(Ragged):
    """Hold trees; `nn.TreeLSTM` reads them from the leaves to the roots.

    The nodes of tree b are ``rows[offsets[b]:offsets[b + 1]]``, in any order. The order of siblings
    is that of their rows. Trees are a `Ragged` with edges: layers that know of no edges take the
    nodes one after the other.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> trees = ost.Trees(np.zeros((7, 3), np.float32), [[-1, 0, 0, 1], [2, 2, -1]])
    >>> trees.heights.tolist(), trees.roots.tolist()
    ([2, 1, 0, 0, 0, 0, 1], [0, 6])
    >>> ost.nn.TreeLSTM(3, 5, rng=0)(trees).shape
    (2, 5)

    Args:
        rows: ``[N,...]``, what each node holds; not copied.
        parents: for each tree the parents of its nodes: numbers within the tree, and -1 for the
            root. A list of lists or arrays, or a `Ragged` of whole numbers.

    Raises:
        TypeError: rows are no array, or parents no whole numbers.
        ValueError: a tree without a node or without a root, with several roots or with a cycle; a
            parent out of range; or another number of rows than of nodes.
    """

    def __init__(self, rows: Array, parents: Any) -> None:
        flat, lengths = _flat_parents(parents)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        has_rows = hasattr(rows, "__len__") and np.ndim(rows) > 0  # if not, Ragged says so
        if has_rows and len(rows) != offsets[-1]:
            raise ValueError(
                f"rows: expected {offsets[-1]}, as many as parents has nodes, got {len(rows)}"
            )
        super().__init__(rows, offsets)
        _refuse_no_trees(flat, lengths)
        self._shape = _Shape(self.offsets, flat)

    @classmethod
    def from_nested(cls, trees: Sequence[Any], labels: Mapping[Any, int] | None = None) -> Trees:
        """Make trees from nested tuples: ``(label, child, child, ...)``, with labels as leaves.

        >>> import ostinato as ost
        >>> trees = ost.Trees.from_nested([(7, 1, (8, 2, 3)), 4])
        >>> trees.rows.tolist(), trees.parents.tolist()
        ([7, 1, 8, 2, 3, 4], [-1, 0, 0, 2, 2, -1])
        >>> words = {"+": 0, "x": 1, "y": 2}
        >>> ost.Trees.from_nested([("+", "x", ("+", "x", "y"))], words).rows.tolist()
        [0, 1, 0, 1, 2]

        Args:
            trees: a sequence of trees; tuples or lists are nodes with children.
            labels: the number of each label; None: labels are numbers or arrays of one shape.

        Returns:
            Trees whose rows are the labels, each node before its children.

        Raises:
            TypeError: labels that are no numbers.
            ValueError: an empty tuple or a list within itself, or a label that is not known.
        """
        if not hasattr(trees, "__iter__"):
            raise TypeError(f"trees: expected a list of trees, got {type(trees).__name__}")
        found: list[Any] = []
        parents = [_walked(f"trees[{k}]", tree, found) for k, tree in enumerate(trees)]
        if labels is not None:
            found = [_number_of(label, labels) for label in found]
        try:
            rows = np.array(found) if found else np.zeros(0, np.int64)
        except ValueError:
            rows = np.zeros(0, object)
        if rows.dtype.kind not in "fiu":
            raise TypeError(
                "trees: expected labels that are numbers or arrays of one shape, got others; give "
                "labels={label: number, ...}"
            )
        return cls(rows, parents)

    @classmethod
    def _of(cls, rows: Array, shape: _Shape) -> Trees:
        """Return trees of a form that is known."""
        made = cls.__new__(cls)
        Ragged.__init__(made, rows, shape.offsets)
        made._shape = shape
        return made

    @classmethod
    def join(cls, sequences: Any, name: str = "trees") -> Trees:
        """Copy a list of `Trees` into one.

        Args:
            sequences: a list, or another iterable, of `Trees` whose rows have one dtype and one
                shape.
            name: what errors call the list.

        Returns:
            The trees of all, in their order.

        Raises:
            TypeError: something that is no `Trees`.
            ValueError: an empty list, or rows that differ in dtype or shape.
        """
        sequences = _listed(sequences, name)
        for k, one in enumerate(sequences):
            if not isinstance(one, Trees):
                raise TypeError(
                    f"{name}[{k}]: expected an ostinato.Trees, got {type(one).__name__}"
                )
        rows = Ragged.join([one.rows for one in sequences], name).rows
        lengths = np.concatenate([one.lengths for one in sequences])
        shape = _Shape(
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            np.concatenate([one.parents for one in sequences]),
            np.concatenate([one.heights for one in sequences]),
        )
        return Trees._of(rows, shape)

    def take(self, sequences: Any) -> Trees:
        """Copy some of the trees into other `Trees`.

        Args:
            sequences: their numbers, in the order wanted: a list or an array; or a bool array
                ``[B]``, True for those wanted.

        Returns:
            Those trees.

        Raises:
            TypeError: something else than whole numbers.
            ValueError: an array of several axes, or a bool array of another length.
            IndexError: a number that no tree has.
        """
        if not isinstance(sequences, slice):
            sequences = _numbers("sequences", sequences, len(self))
        at, shape = self._shape.take(sequences)
        return Trees._of(self.rows[at], shape)

    def like(self, rows: Array) -> Trees:
        """Return trees of the same form with other rows.

        Args:
            rows: ``[N,...]``, not copied.

        Returns:
            The trees.

        Raises:
            TypeError: rows that are no array.
            ValueError: another number of rows.
        """
        Ragged.like(self, rows)
        return Trees._of(rows, self._shape)

    @property
    def parents(self) -> Ints:
        """The parent of every node, ``[N]``: numbers within its tree, -1 for a root."""
        return self._shape.parents

    @property
    def heights(self) -> Ints:
        """The longest way from every node down to a leaf, ``[N]``: 0 for leaves."""
        return self._shape.heights

    @property
    def depths(self) -> Ints:
        """The way from every node up to its root, ``[N]``: 0 for roots."""
        return self._shape.depths()

    @property
    def roots(self) -> Ints:
        """The rows of the roots, ``[B]``."""
        roots: Ints = np.flatnonzero(self._shape.parents < 0)
        return roots

    @property
    def degrees(self) -> Ints:
        """How many children every node has, ``[N]``."""
        shape = self._shape
        above = shape.rows_of_parents()[shape.parents >= 0]
        counts: Ints = np.bincount(above, minlength=len(shape.parents)).astype(np.int64)
        return counts

    def levels(self) -> Levels:
        """Return the nodes by height, which is how `nn.TreeLSTM` reads them.

        Returns:
            The levels, computed once for all rows of this form.
        """
        return self._shape.levels()

    def __repr__(self) -> str:
        return f"Trees({len(self)} trees, {len(self.rows)} nodes)"


def _flat_parents(parents: Any) -> tuple[Ints, Ints]:
    """Return the parents of all trees one after the other, and the number of nodes of each."""
    if isinstance(parents, Ragged):
        rows = np.asarray(parents.rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise TypeError(
                f"parents: expected whole numbers, got shape {rows.shape} of {rows.dtype}"
            )
        return rows.astype(np.int64), parents.lengths
    if not isinstance(parents, (list, tuple)):
        raise TypeError(
            f"parents: expected a list with the parents of each tree, got {type(parents).__name__}"
        )
    made = []
    for k, own in enumerate(parents):
        try:
            a = np.asarray(own)
        except ValueError:
            a = np.zeros((), object)
        if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
            raise TypeError(
                f"parents[{k}]: expected a list of whole numbers, the parents of one tree, got "
                f"{own!r:.60}"
            )
        made.append(a.astype(np.int64))
    return np.concatenate([np.zeros(0, np.int64), *made]), np.array([len(a) for a in made], int)


def _refuse_no_trees(parents: Ints, lengths: Ints) -> None:
    """Raise, by the number of the tree, where parents do not form trees."""
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise ValueError(f"parents[{empty[0]}]: expected a tree of at least one node, got none")
    tree, node = sequence_of(lengths), step_of(lengths)
    bad = np.flatnonzero((parents < -1) | (parents >= lengths[tree]))
    if bad.size:
        k = bad[0]
        raise ValueError(
            f"parents[{tree[k]}]: expected -1 for the root and numbers from 0 to "
            f"{lengths[tree[k]] - 1}, got {parents[k]} as the parent of node {node[k]}"
        )
    roots = np.bincount(tree[parents < 0], minlength=len(lengths))
    several = np.flatnonzero(roots > 1)
    if several.size:
        k = several[0]
        both = node[(tree == k) & (parents < 0)][:2].tolist()
        raise ValueError(
            f"parents[{k}]: expected one root, got {roots[k]}: nodes {both[0]} and {both[1]} have "
            "no parent"
        )
    starts = np.cumsum(lengths) - lengths
    above = np.where(parents < 0, np.arange(len(parents)), starts[tree] + parents)
    lost = np.flatnonzero(parents[_climbed(above, lengths)[1]] >= 0)
    if lost.size:
        k = lost[0]
        raise ValueError(
            f"parents[{tree[k]}]: expected a tree, got a cycle: the way up from node {node[k]} "
            "ends at no root"
        )


def _climbed(above: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Return how far each node climbs, and the row where it ends: its root without a cycle.

    A root is above itself. The way doubles each time, so that the longest takes log2(n) of them.
    """
    far = (above != np.arange(len(above))).astype(np.int64)
    for _ in range(int(lengths.max(initial=1)).bit_length()):
        far, above = far + far[above], above[above]
    return far, above


def _walked(name: str, tree: Any, found: list[Any]) -> list[int]:
    """Return the parents of a nested tree, and add the labels of its nodes to ``found``."""
    parents: list[int] = []
    open_: list[tuple[int, Any, int]] = []  # nodes whose children are being read, outermost first
    ids: set[int] = set()

    def enter(node: Any, parent: int) -> None:
        parents.append(parent)
        if not isinstance(node, (tuple, list)):
            found.append(node)
            return
        if id(node) in ids:
            raise ValueError(f"{name}: expected a tree, got a cycle: a list that is within itself")
        if not node or isinstance(node[0], (tuple, list)):
            got = "an empty one" if not node else f"{node[0]!r:.40} as a label"
            raise ValueError(f"{name}: expected (label, child, ...), got {got}")
        found.append(node[0])
        ids.add(id(node))
        open_.append((len(parents) - 1, iter(node[1:]), id(node)))

    enter(tree, -1)
    while open_:
        number, children, own = open_[-1]
        for child in children:
            enter(child, number)
            break
        else:
            open_.pop()
            ids.discard(own)
    return parents


def _number_of(label: Any, labels: Mapping[Any, int]) -> int:
    """Return the number of a label."""
    try:
        return labels[label]
    except (KeyError, TypeError):
        raise ValueError(f"trees: expected known labels, got {label!r:.60}") from None


readable(globals())
