"""Hold sequences of different lengths, one after the other in flat rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check, _device
from ._annotations import readable
from ._check import Array
from ._options import Options
from ._recording import Variable, value_of


class Ragged:
    """Hold sequences without padding; layers take it in place of ``[T,B,I]``.

    Sequence b is ``rows[offsets[b]:offsets[b + 1]]``; ``ragged[b]`` returns it as a view.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = ost.Ragged(np.zeros((7, 3), np.float32), [0, 4, 4, 7])
    >>> y, h = ost.nn.GRU(3, 5, rng=0)(x)
    >>> [len(sequence) for sequence in y], y.rows.shape, h.shape
    ([4, 0, 3], (7, 5), (1, 3, 5))

    Sequences of sequences are a `Ragged` whose rows are one: documents of sentences of words. Its
    ``rows`` are all sentences, and `nn.Hierarchical` takes it.

    >>> sentences = ost.Ragged(np.array([3, 1, 4, 1, 5, 9]), [0, 3, 4, 6])
    >>> documents = ost.Ragged(sentences, [0, 2, 3])
    >>> [[words.tolist() for words in document] for document in documents]
    [[[3, 1, 4], [1]], [[5, 9]]]

    Args:
        rows: ``[N,...]``, not copied; or a `Ragged` of N sequences.
        offsets: ``[B+1]`` whole numbers from 0 to N that do not decrease.

    Raises:
        TypeError: rows are no array and no `Ragged`, or offsets no whole numbers.
        ValueError: offsets that do not run from 0 to N, or that decrease; or rows with masked
            elements.
    """

    _is_ragged = True  # which `vjp` knows it by

    def __init__(self, rows: Any, offsets: Sequence[int] | npt.NDArray[np.integer[Any]]) -> None:
        known = type(rows) is Variable or isinstance(rows, Ragged)  # a Variable: within vjp
        self.rows: Any = rows if known else _check.array("rows", rows)
        if not isinstance(rows, Ragged) and self.rows.ndim == 0:
            raise ValueError("rows: expected at least 1 axis, got shape ()")
        a = _check.plain("offsets", offsets, "a sequence of whole numbers")
        if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
            raise TypeError(
                f"offsets: expected a sequence of whole numbers, got shape {a.shape} of {a.dtype}"
            )
        self.offsets: npt.NDArray[np.int64] = np.array(a, dtype=np.int64)
        self.offsets.flags.writeable = False
        if not a.size or self.offsets[0] != 0 or self.offsets[-1] != len(rows):
            raise ValueError(
                f"offsets: expected numbers from 0 to N = {len(rows)}, got {a.tolist()[:1]} to "
                f"{a.tolist()[-1:]}"
            )
        down = np.flatnonzero(np.diff(self.offsets) < 0)
        if down.size:
            k = int(down[0])
            raise ValueError(
                f"offsets: expected numbers that do not decrease, got {a[k]} before {a[k + 1]} at "
                f"position {k + 1}"
            )

    @classmethod
    def join(cls, sequences: Any, name: str = "x") -> Ragged:
        """Copy a list of arrays ``[n,...]``, or of `Ragged`, into one `Ragged`.

        Args:
            sequences: a list, or another iterable, of arrays of one dtype and of one shape but for
                the first axis; or of sequences of such, each a `Ragged`.
            name: what errors call the list.

        Returns:
            The sequences, in their order.

        Raises:
            TypeError: one array in place of a list, something in it that is no array, arrays beside
                a `Ragged`, or arrays on different devices.
            ValueError: an empty list, arrays that differ in dtype or shape, or with masked
                elements.
        """
        sequences = _listed(sequences, name)
        if not sequences:
            raise ValueError(f"{name}: expected at least one sequence, got none")
        if any(isinstance(s, Ragged) for s in sequences):
            return cls._join_nested(sequences, name)
        arrays = [_check.array(f"{name}[{k}]", value_of(s)) for k, s in enumerate(sequences)]
        for k, a in enumerate(arrays):
            first = arrays[0]
            _device.same(f"{name}[{k}]", a, first, f"{name}[0]")
            if a.ndim == 0 or a.shape[1:] != first.shape[1:] or a.dtype != first.dtype:
                wanted = ", ".join(map(str, ("n", *first.shape[1:])))
                raise ValueError(
                    f"{name}[{k}]: expected shape ({wanted}) of {first.dtype} as {name}[0], got "
                    f"{a.shape} of {a.dtype}"
                )
        recorded = any(type(s) is Variable for s in sequences)  # within vjp
        rows: Any = np.concatenate(sequences if recorded else arrays)
        return cls(rows, np.cumsum([0, *map(len, arrays)]))

    @classmethod
    def _join_nested(cls, sequences: Sequence[Any], name: str) -> Ragged:
        """Return sequences of sequences as one; see `join`."""
        for k, s in enumerate(sequences):
            if not isinstance(s, Ragged):
                raise TypeError(
                    f"{name}[{k}]: expected an ostinato.Ragged as others have it, got "
                    f"{type(s).__name__}"
                )
        rows = cls.join([s.rows for s in sequences], name)
        inner = np.concatenate([[0], np.cumsum(np.concatenate([s.lengths for s in sequences]))])
        return cls(cls(rows.rows, inner), np.cumsum([0, *map(len, sequences)]))

    @classmethod
    def from_arrow(cls, column: Any) -> Ragged:
        """Make sequences of a column of lists, of pyarrow, Polars or pandas.

        The numbers are not copied where the column is of one piece; they are then read-only. Lists
        of lists of one fixed size are rows ``[N,I]`` (``Array`` in Polars), and lists of lists of
        different lengths a `Ragged` of `Ragged`.

        >>> import ostinato as ost
        >>> try:
        ...     import polars
        ...     column = polars.DataFrame({"readings": [[1.0, 2.0], [3.0]]})["readings"]
        ... except ImportError:
        ...     print("Ragged(2 sequences, 3 rows)")
        ... else:
        ...     print(ost.Ragged.from_arrow(column))
        Ragged(2 sequences, 3 rows)

        Args:
            column: an object with Arrow's PyCapsule interface (``__arrow_c_array__`` or
                ``__arrow_c_stream__``), or a Series of pandas with a dtype of Arrow.

        Returns:
            A sequence for each row of the table.

        Raises:
            TypeError: no such column, or one of something else than lists of numbers.
            ValueError: missing lists or numbers.
        """
        from ._arrow import nested

        rows, offsets = nested(column, "column")
        out: Any = rows
        for cuts in reversed(offsets):
            out = cls(out, cuts)
        ragged: Ragged = out
        return ragged

    def take(self, sequences: Any) -> Ragged:
        """Copy some of the sequences into another `Ragged`.

        Args:
            sequences: their numbers, in the order wanted: a list or an array; or a bool array
                ``[B]``, True for those wanted.

        Returns:
            Those sequences.

        Raises:
            TypeError: something else than whole numbers.
            ValueError: an array of several axes, or a bool array of another length.
            IndexError: a number that no sequence has.
        """
        if type(sequences) is not np.ndarray and not isinstance(sequences, slice):
            sequences = _numbers("sequences", sequences, len(self))
        try:
            lengths = self.lengths[sequences]
        except IndexError:  # which NumPy words in its own terms
            sequences = _numbers("sequences", sequences, len(self))
            lengths = self.lengths[sequences]
        if lengths.ndim > 1:
            raise ValueError(
                f"sequences: expected an array of one axis, got shape {np.shape(sequences)}"
            )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(
            self.offsets[:-1][sequences] - offsets[:-1], lengths
        )
        return Ragged(self.rows[at], offsets)

    def like(self, rows: Any) -> Ragged:
        """Return other rows, cut at the same places.

        Args:
            rows: ``[N,...]``, not copied; or a `Ragged` of N sequences.

        Returns:
            Sequences with the same offsets.

        Raises:
            TypeError: rows that are no array and no `Ragged`.
            ValueError: another number of rows.
        """
        try:
            return Ragged(rows, self.offsets)
        except ValueError:  # the offsets are right, so the rows are not
            raise ValueError(_other_rows(self, rows)) from None

    def _places(self) -> tuple[Array, Array]:
        """Return the step and the sequence of every row."""
        return step_of(self.lengths), sequence_of(self.lengths)

    def padded(self, rows: Array | None = None) -> Array:
        """Copy the sequences to ``[T,B,...]``, with zeros past the ends.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> ost.Ragged(np.arange(1, 5), [0, 3, 4]).padded()
        array([[1, 4],
               [2, 0],
               [3, 0]])

        Args:
            rows: other rows ``[N,...]`` to lay out in the same way; None: those of the sequences.

        Returns:
            ``[T,B,...]``, with T the longest length.

        Raises:
            TypeError: rows that are no array, such as sequences, of which those of ``rows`` can be
                padded.
            ValueError: another number of rows.
        """
        rows = _check.array("rows", self.rows if rows is None else rows)
        if rows.ndim == 0 or len(rows) != len(self.rows):
            raise ValueError(_other_rows(self, rows))
        out = np.zeros(
            (self.lengths.max(initial=0), len(self), *rows.shape[1:]), rows.dtype, like=rows
        )
        out[self._places()] = rows
        return out

    def flat(self, padded: Array) -> Array:
        """Return the rows ``[N,...]`` of a padded array: the inverse of `padded`.

        Args:
            padded: ``[T,B,...]``, with T the longest length or more.

        Returns:
            A copy of the rows.

        Raises:
            TypeError: padded is no array.
            ValueError: padded has another shape.
        """
        shape = _check.array("padded", value_of(padded)).shape  # it may be recorded by `vjp`
        steps, batch = int(self.lengths.max(initial=0)), len(self)
        if len(shape) < 2 or shape[0] < steps or shape[1] != batch:
            raise ValueError(
                f"padded: expected shape (T, B, ...) with T >= {steps} and B = {batch}, got {shape}"
            )
        rows: Array = padded[self._places()]
        return rows

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The lengths of the sequences, ``[B]``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: Any) -> Any:
        """Return sequence b as a view; or several, by a slice, a list or an array of numbers.

        Several are a `Ragged`: a view for a slice in steps of 1, otherwise a copy.
        """
        n = len(self)
        if isinstance(b, slice):
            start, stop, step = b.indices(n)
            if step != 1:
                return self.take(np.arange(start, stop, step))
            offsets = self.offsets[start : max(start, stop) + 1]
            return Ragged(self.rows[offsets[0] : offsets[-1]], offsets - offsets[0])
        if isinstance(b, list) or (isinstance(b, np.ndarray) and b.ndim):
            return self.take(_numbers("index", b, n))
        b = b if type(b) is int else _check.whole("index", b)
        if not -n <= b < n:
            raise IndexError(f"index: expected the number of one of {n} sequences, got {b}")
        return self.rows[self.offsets[b % n] : self.offsets[b % n + 1]]

    def __iter__(self) -> Iterator[Any]:
        return (self[b] for b in range(len(self)))

    def __repr__(self) -> str:
        inner = self.rows if isinstance(self.rows, Ragged) else f"{len(self.rows)} rows"
        return f"Ragged({len(self)} sequences, {inner})"


def _listed(sequences: Any, name: str) -> list[Any]:
    """Return what `Ragged.join` joins as a list; raise where it is one array or no iterable."""
    one = value_of(sequences)
    if _check.is_array(one):
        raise TypeError(
            f"{name}: expected a list of arrays, got one array of shape {one.shape}; use "
            f"list({name}) if its first axis is that of the sequences"
        )
    return list(_check.each(name, sequences, "arrays"))


def _numbers(name: str, given: Any, count: int) -> Array:
    """Return which of ``count`` sequences a list or an array picks, as an index of NumPy."""
    a = _check.plain(name, given, "the numbers of sequences")
    a = a if a.size else a.astype(np.int64)
    if a.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected the numbers of sequences, got {_check.quoted(given)}")
    if a.ndim > 1:
        raise ValueError(f"{name}: expected an array of one axis, got shape {a.shape}")
    if a.dtype.kind == "b":
        if a.shape != (count,):
            raise ValueError(f"{name}: expected bool of shape (B,) = ({count},), got {a.shape}")
        return a
    bad = np.flatnonzero((a < -count) | (a >= count))
    if bad.size:
        raise IndexError(
            f"{name}: expected the numbers of some of {count} sequences, got {a.flat[bad[0]]}"
        )
    return a


def _other_rows(own: Ragged, rows: Any) -> str:
    """Return the message for rows that are not as many as those of sequences."""
    count = len(own.rows)
    got = f"{len(rows)} sequences" if isinstance(rows, Ragged) else f"shape {rows.shape}"
    return f"rows: expected {count} rows, as many as the sequences have, got {got}"


def leaves(x: Any) -> Any:
    """Return the rows of sequences, those of the innermost ones; anything else as it is."""
    while isinstance(x, Ragged):
        x = x.rows
    return x


def refuse_nested(x: Ragged, name: str = "x") -> None:
    """Raise if the rows of sequences are sequences themselves, where a layer reads arrays."""
    if isinstance(x.rows, Ragged):
        raise TypeError(
            f"{name}: expected sequences of rows, got {x!r}; ost.nn.Hierarchical takes sequences "
            "of sequences"
        )


def times(x: Ragged, resets: Any, mask: Any, masked: str) -> Options:
    """Return the options of time of ragged sequences, as `_check.times` does of arrays.

    resets and mask are a `Ragged`, a list or flat rows of bool, and stay flat.
    """
    return {
        "lengths": x.lengths,
        "resets": flag_bytes("resets", resets, x),
        "mask": flag_bytes("mask", mask, x),
        "repeat": _check.choice("masked", masked, ("repeat", "zero")) == "repeat",
        "starts": np.ascontiguousarray(x.offsets[:-1]),
        "span": int(x.lengths.max(initial=0)),
    }


def as_given(rows: Any, ragged: Ragged | None, listed: bool) -> Any:
    """Flat rows in the form that x came in; what is no ragged input's stays as it is."""
    if ragged is None or rows is None:
        return rows
    return list(ragged.like(rows)) if listed else ragged.like(rows)


def rows_of(name: str, given: Any, own: Ragged) -> Array:
    """Return the flat rows of what goes with ``own``.

    That is a `Ragged` or a list cut at the same places, or flat rows.
    """
    given, _ = unwrapped(given, name)
    if isinstance(given, Ragged):
        if not np.array_equal(given.offsets, own.offsets):
            raise ValueError(f"{name}: expected sequences as long as those of x, got others")
        given = given.rows
    rows = _check.array(name, given)
    if rows.ndim == 0 or len(rows) != len(own.rows):
        raise ValueError(
            f"{name}: expected {len(own.rows)} rows, as many as x has, got shape {rows.shape}"
        )
    return rows


def flat_flags(name: str, flags: Any, own: Ragged) -> npt.NDArray[np.bool_] | None:
    """Bool rows ``[N]``."""
    if flags is None:
        return None
    rows = rows_of(name, flags, own)
    if rows.dtype != np.bool_:
        raise TypeError(f"{name}: expected dtype bool, got {rows.dtype}; use {name}.astype(bool)")
    if rows.ndim != 1:
        raise ValueError(f"{name}: expected shape (N,) = ({len(rows)},), got {rows.shape}")
    return rows


def flag_bytes(name: str, flags: Any, own: Ragged) -> npt.NDArray[np.uint8] | None:
    """Return flags of ragged sequences as contiguous bytes ``[N]``."""
    rows = flat_flags(name, flags, own)
    return None if rows is None else _check.contiguous(rows).view(np.uint8)


def rows_that_count(
    x: Any, lengths: object, mask: Any, batch_first: bool
) -> tuple[Ragged, npt.NDArray[np.bool_]]:
    """Return sequences one after the other, and which of their rows are real and not masked.

    x is a `Ragged`, a list or ``[T,B,D]`` (``[B,T,D]`` if batch_first).
    """
    x, _ = unwrapped(x)
    if isinstance(x, Ragged):
        refuse_nested(x)
        if lengths is not None:
            raise ValueError(
                f"lengths: expected None with ragged sequences, got {type(lengths).__name__}"
            )
        on = flat_flags("mask", mask, x)
        return x, np.ones(len(x.rows), bool) if on is None else np.asarray(on, bool)
    a = _check.array("x", x, 3)
    rows = _check.contiguous(a if batch_first else a.swapaxes(0, 1))
    batch, steps, width = rows.shape
    flags = _check.flags("mask", mask, steps, batch, batch_first)
    on = _check.taking_part(steps, batch, _check.lengths(lengths, steps, batch), flags)
    return Ragged(rows.reshape(batch * steps, width), np.arange(batch + 1) * steps), on.T.reshape(
        -1
    )


def sequence_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the number of the sequence that each flat row belongs to."""
    return np.repeat(np.arange(len(lengths)), lengths)


def step_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the step that each flat row is in its sequence."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def most(values: Array, lengths: npt.NDArray[np.int64]) -> Array:
    """Return the greatest of the flat numbers (at least 0) of each sequence; 0 if it is empty."""
    out = np.zeros(len(lengths), values.dtype)
    filled = lengths > 0
    if filled.any():
        out[filled] = np.maximum.reduceat(values, (np.cumsum(lengths) - lengths)[filled])
    return out


def unwrapped(x: Any, name: str = "x") -> tuple[Any, bool]:
    """x, a list of arrays made a `Ragged`; and whether it was one."""
    listed = isinstance(x, (list, tuple)) and all(
        _check.is_array(_device.taken(value_of(a))) for a in x
    )
    return (Ragged.join(x, name), True) if listed else (x, False)


def rows_like(name: str, given: Any, own: Ragged, width: int) -> Array | None:
    """Return the rows of a gradient of outputs ``[N,width]``."""
    if given is None:
        return None
    rows = rows_of(name, given, own)
    if rows.shape[1:] != (width,):
        raise ValueError(
            f"{name}: expected shape (N, D*H) = {(len(rows), width)}, got {rows.shape}"
        )
    return rows


readable(globals())
