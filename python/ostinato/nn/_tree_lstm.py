"""Define TreeLSTM: an LSTM along the edges of trees, from the leaves to the roots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check, _device, _native
from .._annotations import readable
from .._check import Array, Seed
from .._ragged import rows_of
from .._trees import Level, Levels, Trees
from ._layer import Layer, Pullback

OUTPUTS = ("root", "nodes")


@dataclass
class _Weights:
    """Packed weights.

    Attributes:
        inputs: ``weight_ih`` with the bias.
        nodes: the rows of ``weight_hh`` that are multiplied once a node.
        edges: the rows of the forget gate, multiplied once an edge; None with a fixed number of
            children, whose rows are all in ``nodes``.
        backward: whether they are packed for the way back as well.
        native: the functions for their dtype.
    """

    inputs: Any
    nodes: Any
    edges: Any
    backward: bool
    native: Any


@dataclass
class _Saved:
    """What a forward pass leaves for its way back; nodes and edges in the order of `Levels`.

    Attributes:
        x: the inputs ``[N,I]``.
        gates: i and o, ``[N,2*H]``.
        g: the candidate ``[N,H]``.
        f: the forget gates: ``[E,H]`` of the edges, or ``[M,K,H]`` of the M nodes that have
            children.
        below: what ``_Weights.nodes`` was multiplied with, for the nodes that have children:
            ``[M,H]``, or ``[M,K*H]``.
        c: ``[N,H]``.
        tanh_c: ``[N,H]``.
        h: ``[N,H]``.
    """

    x: Array
    gates: Array
    g: Array
    f: Array
    below: Array
    c: Array
    tanh_c: Array
    h: Array


class TreeLSTM(Layer):
    """Run an LSTM over trees, from the leaves to the roots: child-sum, or with N children.

    A node reads its row x and the states of its children. Child-sum takes any number of children,
    in any order, with one forget gate an edge::

        s = sum of h_k                      (over the children k)
        i, o = sigmoid(W x + R s + b)       g = tanh(W x + R s + b)
        f_k  = sigmoid(W x + R h_k + b)
        c = i g + sum of f_k c_k            h = o tanh(c)

    With ``children=N`` each of at most N children has weights of its own, by its place among its
    siblings: R s is the sum of R_k h_k, and ``f_k`` has the sum of R_kl h_l in place of R h_k.
    Children that a node lacks count as zeros.

    All nodes of one height, of all trees of a batch, are computed at once. The outputs have the
    same bits for any composition of a batch and any number of threads.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> trees = ost.Trees.from_nested([(0, 1, (0, 2, 3)), 4])
    >>> model = ost.nn.Sequential(
    ...     ost.nn.Embedding(5, 8), ost.nn.TreeLSTM(8, 16), ost.nn.Linear(16, 3)
    ... )
    >>> model(trees)[0].shape
    (2, 3)

    Args:
        input_size: I.
        hidden_size: H. Parameters are ``weight_ih [4*H,I]``, ``bias [4*H]`` and ``weight_hh
            [4*H,H]``, with N children ``[(3+N)*H,N*H]``; the gates are in the order i o g f, with N
            children i o g f_1 ... f_N.
        children: None: child-sum; a number N: at most N children a node, 2 for binary trees.
        outputs: "root": ``[B,H]``, h of the roots; "nodes": `Trees` with h of all nodes.
        dtype: float32 or float64.
        rng: seed or generator of the initial values, U(-1/sqrt(H), 1/sqrt(H)).

    Raises:
        TypeError: an argument has the wrong type, or dtype is neither float32 nor float64.
        ValueError: a size or children below 1, or outputs that there are not.

    Source: Tai, Socher, Manning (2015), "Improved semantic representations from tree-structured
    long short-term memory networks".
    """

    takes_trees = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        children: int | None = None,
        *,
        outputs: str = "root",
        dtype: npt.DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.input_size = _check.positive("input_size", input_size)
        self.hidden_size = _check.positive("hidden_size", hidden_size)
        self.children = None if children is None else _check.positive("children", children)
        self.outputs: str = _check.choice("outputs", outputs, OUTPUTS)
        h, places = self.hidden_size, self.children or 1
        g, bound = _check.generator(rng), 1 / math.sqrt(h)
        shapes = {
            "weight_ih": (4 * h, self.input_size),
            "weight_hh": ((3 + places) * h, places * h),
            "bias": (4 * h,),
        }

        def draw(shape: tuple[int, ...]) -> Array:
            return g.uniform(-bound, bound, shape)

        self._declare({n: _check.drawn(n, s, self._dtype, draw) for n, s in shapes.items()})

    @property
    def reduces_time(self) -> bool:
        """Whether the output is one row a tree."""
        return self.outputs == "root"

    def _check_device(self, device: _device.Device | None) -> None:
        if device is not None:
            raise ValueError(
                f"device: expected 'cpu' for a model with a TreeLSTM, got {device.name!r}"
            )

    def _join_stream(self, native: Any) -> None:
        raise TypeError(
            "stream: expected layers that read one step after the other, got a TreeLSTM"
        )

    def _pack(self, backward: bool) -> _Weights:
        p, h = self.parameters(), self.hidden_size
        native = _native.backend_for(self._block.values)
        make = native.PackedLinear
        inputs = make(p["weight_ih"], p["bias"], backward)
        if self.children is not None:
            return _Weights(inputs, make(p["weight_hh"], None, backward), None, backward, native)
        nodes, edges = (make(w, None, backward) for w in np.split(p["weight_hh"], [3 * h]))
        return _Weights(inputs, nodes, edges, backward, native)

    def _checked(self, x: Any) -> tuple[Array, Levels]:
        """Return the rows of trees in the order of their levels."""
        if not isinstance(x, Trees):
            raise TypeError(
                f"x: expected an ostinato.Trees, got {type(x).__name__}; "
                "ost.Trees(rows, parents) makes it"
            )
        rows = _check.array("x", x.rows)
        if rows.dtype != self._dtype or rows.shape[1:] != (self.input_size,):
            raise (TypeError if rows.dtype != self._dtype else ValueError)(
                f"x: expected rows (N, I) = ({len(rows)}, {self.input_size}) of {self._dtype}, got "
                f"{rows.shape} of {rows.dtype}"
            )
        if self.children is not None:
            degrees = x.degrees
            most = int(degrees.max(initial=0))
            if most > self.children:
                node = int(degrees.argmax())
                tree = int(np.searchsorted(x.offsets, node, side="right")) - 1
                raise ValueError(
                    f"x: expected at most {self.children} children a node, got {most} at node "
                    f"{node - x.offsets[tree]} of tree {tree}; children=None takes any number"
                )
        levels = x.levels()
        return rows.take(levels.order, axis=0), levels

    # -- forward -----------------------------------------------------------------------------------

    def _run(self, x: Array, levels: Levels, backward: bool) -> _Saved:
        """Compute all nodes, level by level."""
        size = self.hidden_size
        weights: _Weights = self._packed(backward)
        native = weights.native
        count, edges, k = len(x), len(levels.child), self.children
        inner = count - (levels.levels[0].nodes.stop if levels.levels else 0)  # have children
        first = count - inner

        def empty(*shape: int) -> Array:
            return np.empty(shape, self._dtype)

        s = _Saved(
            x=x,
            gates=empty(count, 2 * size),
            g=empty(count, size),
            f=empty(edges, size) if k is None else empty(inner, k, size),
            below=empty(inner, (k or 1) * size),
            c=empty(count, size),
            tanh_c=empty(count, size),
            h=empty(count, size),
        )
        z = weights.inputs.forward(x)
        for level in levels.levels:
            nodes = level.nodes
            kept = slice(nodes.start - first, nodes.stop - first)
            own = z[nodes]
            a, carried = own[:, : 3 * size], None
            if len(level.child):
                a, carried = self._of_children(weights, own, level, s, kept)
            s.gates[nodes] = _map(native, "sigmoid", a[:, : 2 * size])
            s.g[nodes] = _map(native, "tanh", a[:, 2 * size :])
            c = s.gates[nodes, :size] * s.g[nodes]
            if carried is not None:
                c += carried
            s.c[nodes] = c
            s.tanh_c[nodes] = _map(native, "tanh", c)
            s.h[nodes] = s.gates[nodes, size:] * s.tanh_c[nodes]
        return s

    def _of_children(
        self, weights: _Weights, own: Array, level: Level, s: _Saved, kept: slice
    ) -> tuple[Array, Array]:
        """Return what comes of the children: pre-activations of i o g, and the sum of f_k c_k.

        Args:
            weights: the packed weights.
            own: W x + b of the nodes.
            level: the nodes.
            s: what is known of the levels below; ``f`` and ``below`` of this one are written.
            kept: where the nodes stand among those that have children.
        """
        size, native = self.hidden_size, weights.native
        h, c = s.h.take(level.child, axis=0), s.c.take(level.child, axis=0)
        if self.children is None:
            s.below[kept] = _sums(native, level.parent, h, len(own))
            r = weights.nodes.forward(s.below[kept])
            f = own[:, 3 * size :].take(level.parent, axis=0) + weights.edges.forward(h)
            f = _map(native, "sigmoid", f)
            s.f[level.edges] = f
            return own[:, : 3 * size] + r, _sums(native, level.parent, f * c, len(own))
        places = (len(own), self.children, size)
        beside, carried = np.zeros(places, own.dtype), np.zeros(places, own.dtype)
        beside[level.parent, level.slot], carried[level.parent, level.slot] = h, c
        s.below[kept] = beside.reshape(len(own), -1)
        r = weights.nodes.forward(s.below[kept])
        f = r[:, 3 * size :].reshape(places) + own[:, None, 3 * size :]
        s.f[kept] = _map(native, "sigmoid", f)
        return own[:, : 3 * size] + r[:, : 3 * size], (s.f[kept] * carried).sum(1)

    def _output(self, x: Trees, h: Array, levels: Levels) -> Any:
        if self.outputs == "root":
            return h.take(levels.place[x.roots], axis=0)
        return x.like(h.take(levels.place, axis=0))

    def __call__(self, x: Any) -> Any:
        """Return h of the roots, or of all nodes.

        Args:
            x: `Trees` with rows ``[N,I]``.

        Returns:
            ``[B,H]``; with ``outputs="nodes"`` `Trees` with rows ``[N,H]``.

        Raises:
            TypeError: x is no `Trees`, or has another dtype than the layer.
            ValueError: rows of another length, or a node with more than N children.
        """
        rows, levels = self._checked(x)
        return self._output(x, self._run(rows, levels, False).h, levels)

    # -- backward ----------------------------------------------------------------------------------

    def vjp(self, x: Any, *, rng: Seed = None) -> tuple[Any, Pullback]:
        """Return the outputs and a pullback, of which ``pullback(dy)`` gives dx.

        Args:
            x: `Trees` with rows ``[N,I]``.
            rng: not used.

        Returns:
            ``y, pullback``, with y read-only; dx is `Trees`.

        Raises:
            TypeError: x is no `Trees`, or has another dtype than the layer.
            ValueError: rows of another length, or a node with more than N children.
        """
        rows, levels = self._checked(x)
        s = self._run(rows, levels, True)
        weights: _Weights = self._packed(True)
        y = self._output(x, s.h, levels)
        _check.read_only(y.rows if isinstance(y, Trees) else y)

        def backward(grads: dict[str, Array | None], dy: Any, need_dx: bool) -> Any:
            dh = np.zeros_like(s.h)
            if isinstance(y, Trees):
                d = _rows_like(rows_of("dy", dy, y), y.rows)
                dh[levels.place] = d
            else:
                d = _rows_like(_check.array("dy", dy), y)
                dh[levels.place[x.roots]] = d
            dx = self._back(weights, s, levels, dh, grads, need_dx)
            return None if dx is None else x.like(dx.take(levels.place, axis=0))

        return y, self._pullback(backward)

    def _back(
        self,
        weights: _Weights,
        s: _Saved,
        levels: Levels,
        dh: Array,
        grads: dict[str, Array | None],
        need_dx: bool,
    ) -> Array | None:
        """Add the gradients of the parameters; return that of the rows, in the order of levels.

        Gradients of a node are complete when its level is reached, since its parent lies in a
        higher one. A child has one parent, so that no two edges add to the same row. The gradients
        of the weights are products over all levels at once, at the end.
        """
        size = self.hidden_size
        first = len(dh) - len(s.below)
        da = np.empty((len(dh), 4 * size), dh.dtype)  # of i o g f
        df = np.empty_like(s.f)
        dc = np.zeros_like(dh)
        for level in reversed(levels.levels):
            nodes = level.nodes
            i, o = s.gates[nodes, :size], s.gates[nodes, size:]
            g, tanh_c, d = s.g[nodes], s.tanh_c[nodes], dh[nodes]
            d_c = dc[nodes] + d * o * (1 - tanh_c * tanh_c)
            da[nodes, :size] = d_c * g * i * (1 - i)
            da[nodes, size : 2 * size] = d * tanh_c * o * (1 - o)
            da[nodes, 2 * size : 3 * size] = d_c * i * (1 - g * g)
            if not len(level.child):
                da[nodes, 3 * size :] = 0  # leaves forget nothing
                continue
            kept = slice(nodes.start - first, nodes.stop - first)
            below = self._children_back(weights, s, level, kept, da[nodes], d_c, df)
            for into, part in zip((dh, dc), below):
                into[level.child] += part
        self._add(weights, s, levels, da, df, grads)
        dx: Array | None = weights.inputs.run_backward(
            s.x, da, grads["weight_ih"], grads["bias"], need_dx
        )
        return dx

    def _children_back(
        self,
        weights: _Weights,
        s: _Saved,
        level: Level,
        kept: slice,
        da: Array,
        d_c: Array,
        df: Array,
    ) -> tuple[Array, Array]:
        """Return the gradients of h and c of the children of a level.

        Args:
            weights: the packed weights.
            s: what the forward pass has saved.
            level: the nodes.
            kept: where the nodes stand among those that have children.
            da: of the pre-activations of the nodes, where those of f are written.
            d_c: of c of the nodes.
            df: of the pre-activations of all forget gates, where those of the level are written.
        """
        size, native = self.hidden_size, weights.native
        c = s.c.take(level.child, axis=0)
        d_iog = np.ascontiguousarray(da[:, : 3 * size])
        if self.children is None:
            f, d_edge = s.f[level.edges], d_c.take(level.parent, axis=0)
            own = d_edge * c * f * (1 - f)
            df[level.edges] = own
            da[:, 3 * size :] = _sums(native, level.parent, own, len(da))
            h = s.h.take(level.child, axis=0)
            d_sum = weights.nodes.run_backward(s.below[kept], d_iog, None, None, True)
            d_h = weights.edges.run_backward(h, own, None, None, True)
            d_h += d_sum.take(level.parent, axis=0)
            return d_h, d_edge * f
        f = s.f[kept]
        carried = np.zeros_like(f)
        carried[level.parent, level.slot] = c
        own = d_c[:, None] * carried * f * (1 - f)
        df[kept] = own
        da[:, 3 * size :] = own.sum(1)
        d_all = np.concatenate([d_iog, own.reshape(len(da), -1)], axis=1)
        d_below = weights.nodes.run_backward(s.below[kept], d_all, None, None, True)
        at = level.parent, level.slot
        return d_below.reshape(f.shape)[at], (d_c[:, None] * f)[at]

    def _add(
        self,
        weights: _Weights,
        s: _Saved,
        levels: Levels,
        da: Array,
        df: Array,
        grads: dict[str, Array | None],
    ) -> None:
        """Add the gradient of the recurrent weights."""
        into = grads["weight_hh"]
        if into is None or not len(s.below):
            return
        size = self.hidden_size
        d_iog = da[len(da) - len(s.below) :, : 3 * size]
        if self.children is None:
            d_iog = np.ascontiguousarray(d_iog)
            weights.nodes.run_backward(s.below, d_iog, into[: 3 * size], None, False)
            h = s.h.take(levels.child, axis=0)
            weights.edges.run_backward(h, df, into[3 * size :], None, False)
            return
        d_all = np.concatenate([d_iog, df.reshape(len(df), -1)], axis=1)
        weights.nodes.run_backward(s.below, d_all, into, None, False)

    def __repr__(self) -> str:
        children = "" if self.children is None else f", children={self.children}"
        outputs = "" if self.outputs == "root" else f", outputs={self.outputs!r}"
        return f"TreeLSTM({self.input_size}, {self.hidden_size}{children}{outputs})"


def _map(native: Any, name: str, x: Array) -> Array:
    """Return a function of every element."""
    flat = np.ascontiguousarray(x).reshape(-1)
    y: Array = native.elementwise(name, flat).reshape(x.shape)
    return y


def _sums(native: Any, parent: Array, rows: Array, count: int) -> Array:
    """Return the sums over the children of each node; those of a node lie side by side.

    The kernel that adds up the gradients of an embedding takes a thirtieth of the time of
    np.add.reduceat.
    """
    out = np.zeros((count, rows.shape[1]), rows.dtype)
    native.embedding_scatter_(parent, rows, out)
    return out


def _rows_like(d: Array, y: Array) -> Array:
    """Return a gradient, which must have the shape and dtype of the outputs."""
    if d.shape != y.shape:
        raise ValueError(f"dy: expected shape {y.shape} of {y.dtype}, got {d.shape} of {d.dtype}")
    _check.of_dtype("dy", d, y.dtype)
    return d


readable(globals())
