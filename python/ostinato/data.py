"""Define loaders: iterables of ``(x, target)`` or ``(x, target, lengths)`` in the model's layout.

A loader may say ``carries_state = True`` (the state is carried from batch to batch) and
``time_major`` (the layout of its batches, which the Trainer compares with that of the model). It
may have ``batches(epoch, start)``, so that a run resumes where it stopped without reading what it
has seen, and ``fingerprint()``, by which a resumed run recognises its data. The arrays of a loader
are never changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _check, _device
from ._annotations import readable
from ._check import Array
from ._ragged import Ragged, flat_flags, leaves, rows_of
from ._trees import Trees

__all__ = ["ArrayLoader", "InputsLoader", "PairLoader", "RaggedLoader", "StreamLoader"]


def as_array(name: str, value: Any) -> Any:
    """Return an array of NumPy or of a device.

    Args:
        name: what errors call the value.
        value: such an array, a tensor of PyTorch, or a frame of pandas or Polars.

    Returns:
        The array; of the same memory where that is possible.

    Raises:
        TypeError: it is none of these, or holds something else than numbers.
        ValueError: a masked array with masked elements.
    """
    if isinstance(value, np.ndarray):
        a: Any = np.asarray(_check.unmasked(name, value))
    elif hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach()
        if "bfloat16" in str(value.dtype):
            raise TypeError(
                f"{name}: expected a dtype that NumPy has, got {value.dtype}; use {name}.float()"
            )
        a = value.numpy() if value.device.type == "cpu" else _device.taken(value)
    elif hasattr(value, "to_numpy"):
        a = value.to_numpy()
    else:
        a = _device.taken(value)
        if not _check.is_array(a):
            if not hasattr(a, "__array__"):
                raise TypeError(f"{name}: expected a numpy.ndarray, got {type(value).__name__}")
            a = np.asarray(a)
    if isinstance(a, np.ndarray) and a.dtype.kind not in "fiub":
        raise TypeError(
            f"{name}: expected numbers, got dtype {a.dtype}; use {name}.astype(np.float32) or the "
            "like"
        )
    return a


@dataclass
class Inputs:
    """Several inputs of a model: arrays or `Ragged`, by position or by name.

    Attributes:
        args: those by position.
        named: those by name.
    """

    args: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, x: Any) -> Inputs:
        """Return the inputs of a tuple or a mapping with names."""
        if not isinstance(x, Mapping):
            return cls(tuple(x))
        for name in x:
            if not isinstance(name, str):
                raise TypeError(f"x: expected names of the arguments of the model, got {name!r}")
        return cls((), dict(x))

    def items(self) -> list[tuple[str, Any]]:
        """Return what errors call each input, and the input."""
        by_position = [(f"x[{k}]", a) for k, a in enumerate(self.args)]
        return by_position + [(f"x[{n!r}]", a) for n, a in self.named.items()]

    def mapped(self, call: Callable[[str, Any], Any]) -> Inputs:
        """Return inputs made of the results of a call, which is given names and inputs."""
        made = [call(name, a) for name, a in self.items()]
        n = len(self.args)
        return Inputs(tuple(made[:n]), dict(zip(self.named, made[n:])))

    def given(self) -> Any:
        """Return the tuple or the dict."""
        return self.named or self.args

    def take(self, rows: Any) -> Inputs:
        """Return the inputs of some samples."""
        return self.mapped(lambda _, a: a.take(rows) if isinstance(a, Ragged) else a[rows])

    def count(self) -> int:
        """Return the number of samples, the same in all inputs."""
        sizes = {name: len(a) for name, a in self.items()}
        if not sizes:
            raise ValueError("x: expected at least one input, got none")
        first, size = next(iter(sizes.items()))
        for name, n in sizes.items():
            if n != size:
                raise ValueError(f"{name}: expected {size} samples as {first} has, got {n}")
        return size


def whole_input(name: str, a: Any) -> Any:
    """Return an input of all samples as an array ``[N,...]`` or a `Ragged`.

    Args:
        name: what errors call it.
        a: an array, a `Ragged`, or a list of arrays ``[n,...]``.

    Returns:
        The array, or the sequences.

    Raises:
        TypeError: it is none of these.
        ValueError: a single number, or an empty list.
    """
    if isinstance(a, Ragged):
        return a
    if isinstance(a, list):
        return Ragged.join([as_array(f"{name}[{k}]", s) for k, s in enumerate(a)], name)
    made = as_array(name, a)
    if made.ndim == 0:
        raise ValueError(f"{name}: expected an axis of samples, got a single number")
    return made


def _sample(a: Any) -> dict[str, Any]:
    """Return shape, dtype and the hash of at most 16,384 elements at even distances.

    Of sequences they are those of all rows, beside a hash of where they are cut, and of the parents
    of the nodes of trees.
    """
    if isinstance(a, Ragged):
        cuts, rows = hashlib.blake2b(digest_size=16), leaves(a)
        while isinstance(a, Ragged):
            cuts.update(a.offsets.tobytes())
            if isinstance(a, Trees):
                cuts.update(a.parents.tobytes())
            a = a.rows
        return {**_sample(rows), "cuts": cuts.hexdigest()}
    facts: dict[str, Any] = {"shape": list(a.shape), "dtype": str(a.dtype)}
    if _check.is_array(a) and a.size:
        at = np.linspace(0, a.size - 1, min(a.size, 16384)).astype(np.int64)
        places = tuple(_device.like(k, a) for k in np.unravel_index(at, a.shape))
        picked = np.ascontiguousarray(_device.host(a[places]))
        facts["hash"] = hashlib.blake2b(picked.tobytes(), digest_size=16).hexdigest()
    return facts


def _kind(a: Any, axes: int) -> list[Any]:
    """Return the facts of a shape that do not change when samples are added."""
    return [str(a.dtype), *a.shape[axes:]]


class _Selections:
    """Choose which samples of x go into which batch."""

    carries_state = False
    x: Any
    target: Any
    outputs: str
    times: dict[str, Any]

    def _select(self, batch_size: int, shuffle: bool, rng: int) -> None:
        self.batch_size = _check.positive("batch_size", batch_size)
        self.shuffle = _check.flag("shuffle", shuffle)
        self.rng = _check.seed("rng", rng)

    @property
    def _samples(self) -> int:
        return len(self.x)

    def __len__(self) -> int:
        return -(-self._samples // self.batch_size)

    def _batch(self, rows: Array) -> Any:
        """Return the batch of some samples: of all that a selection has, or of a part of them."""
        raise NotImplementedError

    def _selections(self, epoch: int, start: int) -> Iterator[Array]:
        """Yield the numbers of the samples of each batch, from batch ``start`` on."""
        n = self._samples
        order = (
            np.random.default_rng((self.rng, epoch)).permutation(n)
            if self.shuffle
            else np.arange(n)
        )
        for k in range(start, len(self)):
            yield order[k * self.batch_size : (k + 1) * self.batch_size]

    def fingerprint(self) -> dict[str, Any]:
        """Describe this data: its form, the order of its batches, and a sample of its content.

        Returns:
            Facts that JSON can hold, by which a resumed run recognises its data.
        """
        x = leaves(self.x)
        axes = 2 if self.outputs == "all" and not isinstance(self.x, Ragged) else 1
        kind = {
            "type": type(self).__name__,
            "x": _kind(x, 1 if isinstance(self.x, Ragged) else 2),
            "target": _kind(self.target, axes),
            "times": sorted(self.times),
        }
        order = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.rng}
        content = {"N": len(self.x), "x": _sample(self.x), "target": _sample(self.target)}
        content.update({n: _sample(a) for n, a in self.times.items() if isinstance(a, np.ndarray)})
        return {"kind": kind, "order": order, "content": content}


_THIRD = ("lengths", "resets", "mask", "masked", "weights")


def _place(epoch: object, start: object) -> tuple[int, int]:
    """Return the checked arguments of ``batches``."""
    return _check.seed("epoch", epoch), _check.positive("start", start, 0)


def _third(given: Any) -> dict[str, Any]:
    """Return lengths, or a dict of them and others, as a dict."""
    if not isinstance(given, Mapping):
        return {} if given is None else {"lengths": given}
    unknown = sorted(set(given) - set(_THIRD), key=str)
    if unknown:
        raise ValueError(
            f"lengths: expected lengths or a dict of {', '.join(_THIRD)}, got {unknown}"
        )
    return {n: v for n, v in given.items() if v is not None}


def _beside(name: str, value: Any) -> Array:
    """Return what goes beside x as an array on the host: of an array, a list or the like."""
    if not (_check.is_array(value) or hasattr(value, "__array__") or hasattr(value, "to_numpy")):
        value = _check.plain(name, value, "an array of numbers")
    return np.asarray(_device.host(as_array(name, value)))


def _weights(value: Any) -> Array:
    """Return weights as an array on the host."""
    a = _beside("weights", value)
    bad = np.argwhere(~(np.isfinite(a) & (a >= 0)))
    if len(bad):
        at = bad[0].tolist()
        raise ValueError(
            f"weights: expected finite numbers of at least 0, got {a[tuple(at)]} at {at}"
        )
    return a


def _masked(times: dict[str, Any]) -> None:
    """Raise unless what masked steps give is one that layers know."""
    if "masked" in times:
        _check.choice("masked", times["masked"], ("repeat", "zero"))


def _whole_flags(name: str, value: Any, steps: int, batch: int) -> Array:
    """Return checked flags ``[N,T]``."""
    a = np.asarray(_device.host(as_array(name, value)))
    _check.flags(name, a, steps, batch, True)
    return a


class ArrayLoader(_Selections):
    """Yield batches of samples from whole arrays.

    >>> import numpy as np
    >>> x, target = np.zeros((10, 7, 3)), np.zeros((10, 7, 1))
    >>> loader = ArrayLoader(x, target, batch_size=4, time_major=True, rng=0)
    >>> [x.shape for x, target, lengths in loader]
    [(7, 4, 3), (7, 4, 3), (7, 2, 3)]

    Args:
        x: samples ``[N,T,I]``, or ``[N,T]`` of indices.
        target: ``[N,T,...]``, or ``[N,...]`` with ``outputs="last"``.
        lengths: ``[N]``, or a dict with any of lengths ``[N]``, resets and mask (bool ``[N,T]``),
            masked, and weights (``[N]`` or ``[N,T]``); batches then have such a dict in the third
            place.
        batch_size: samples of a batch; the last one may have fewer.
        shuffle: whether every epoch has a new order, that of (rng, epoch).
        outputs: "all": a target a step; "last": one a sequence.
        time_major: whether batches are ``[T,B,...]`` (views of the selected samples) or
            ``[B,T,...]``.
        rng: seed of the order.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong shape or value.
    """

    def __init__(
        self,
        x: Array,
        target: Array,
        lengths: Any = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        outputs: str = "all",
        time_major: bool = True,
        rng: int = 0,
    ) -> None:
        self.x, self.target = as_array("x", x), as_array("target", target)
        if self.x.ndim < 2:
            raise ValueError(f"x: expected shape (N, T, ...), got {self.x.shape}")
        _check.choice("outputs", outputs, ("all", "last"))
        wanted = self.x.shape[:2] if outputs == "all" else self.x.shape[:1]
        if self.target.shape[: len(wanted)] != wanted:
            fix = ""
            if (
                outputs == "all"
                and self.target.shape[:1] == self.x.shape[:1]
                and self.target.ndim < 3
            ):
                fix = '; a target a sequence needs outputs="last"'
            raise ValueError(
                f"target: expected a shape that begins with {wanted}, got {self.target.shape}{fix}"
            )
        self.times = self._checked(_third(lengths))
        self.lengths = self.times.get("lengths")
        self._dict = isinstance(lengths, Mapping)
        self._select(batch_size, shuffle, rng)
        self.outputs, self.time_major = outputs, _check.flag("time_major", time_major)

    def _checked(self, times: dict[str, Any]) -> dict[str, Any]:
        batch, steps = self.x.shape[:2]
        _masked(times)
        if "lengths" in times:
            times["lengths"] = _check.lengths(_beside("lengths", times["lengths"]), steps, batch)
        for name in ("resets", "mask"):
            if name in times:
                times[name] = _whole_flags(name, times[name], steps, batch)
        if "weights" in times:
            w = _weights(times["weights"])
            if w.shape not in ((batch,), (batch, steps)):
                raise ValueError(
                    f"weights: expected shape (N,) or (N, T), {(batch,)} or {(batch, steps)}, got "
                    f"{w.shape}"
                )
            times["weights"] = w
        return times

    def __iter__(self) -> Iterator[tuple[Array, Array, Any]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array, Any]]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: its number, which decides the order.
            start: the number of the first batch.

        Returns:
            An iterator of ``x, target, third``, where third is lengths ``[B]``, a dict, or None.

        Raises:
            TypeError: a number that is not whole.
            ValueError: a number below 0.
        """
        return map(self._batch, self._selections(*_place(epoch, start)))

    def _batch(self, rows: Array) -> tuple[Array, Array, Any]:
        x, target = self.x[rows], self.target[rows]
        if self.time_major:
            x = np.swapaxes(x, 0, 1)
            if self.outputs == "all":
                target = np.swapaxes(target, 0, 1)
        return x, target, self._some(rows)

    def _some(self, rows: Array) -> Any:
        """Return the third entry of a batch of these samples."""
        if not self._dict:
            return None if self.lengths is None else self.lengths[rows]
        out = {}
        for name, value in self.times.items():
            if isinstance(value, np.ndarray):
                value = value[rows]
                value = value.T if self.time_major and value.ndim == 2 else value
            out[name] = value
        return out


def targets_of(target: Any, x: Ragged, outputs: str) -> Array:
    """Return targets of ragged sequences: flat rows, or with outputs="last" ``[B,...]``."""
    if outputs == "all":
        return rows_of("target", target, x)
    a = _check.array("target", target)
    if a.ndim == 0 or len(a) != len(x):
        raise ValueError(
            f"target: expected {len(x)} rows, one for each sequence, got shape {a.shape}"
        )
    return a


def some_weights(weights: Array, x: Ragged, some: Array, outputs: str) -> Array:
    """Return the weights of some of the sequences of x, ``[B]``, or of their rows.

    Where those of sequences are as many as the rows of the batch, as empty ones allow, they are
    given by row: nobody could tell them apart.
    """
    last = outputs == "last"
    if len(weights) != len(x) or (len(x) == len(x.rows) and not last):
        rows: Array = x.like(weights).take(some).rows
        return rows
    lengths, picked = x.lengths[some], weights[some]
    return np.repeat(picked, lengths) if lengths.sum() == len(some) and not last else picked


class RaggedLoader(_Selections):
    """Yield batches of sequences of different lengths, without padding.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> x = ost.Ragged(np.zeros((10, 3)), [0, 4, 4, 9, 10])
    >>> loader = RaggedLoader(x, np.zeros((10, 1)), batch_size=3, shuffle=False)
    >>> [(batch, target.shape) for batch, target in loader]
    [(Ragged(3 sequences, 9 rows), (9, 1)), (Ragged(1 sequences, 1 rows), (1, 1))]

    Args:
        x: an `ostinato.Ragged`, of rows or of sequences.
        target: flat rows ``[N,...]``, or a `Ragged` or a list cut as x; with ``outputs="last"`` one
            a sequence, ``[B,...]``.
        times: a dict with any of resets and mask (flat rows of bool, or a `Ragged` or a list cut as
            x), masked, and weights (of sequences ``[B]`` or of flat rows ``[N]``; where both are as
            many, of rows, but with ``outputs="last"`` of sequences).
        batch_size: sequences of a batch; the last one may have fewer.
        shuffle: whether every epoch has a new order, that of (rng, epoch).
        outputs: "all": a target a step; "last": one a sequence.
        rng: seed of the order.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong shape or value.
    """

    def __init__(
        self,
        x: Ragged,
        target: Any,
        times: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        outputs: str = "all",
        rng: int = 0,
    ) -> None:
        if not isinstance(x, Ragged):
            raise TypeError(f"x: expected an ostinato.Ragged, got {type(x).__name__}")
        self.x, self.outputs = x, _check.choice("outputs", outputs, ("all", "last"))
        self.target = targets_of(target, x, outputs)
        self.times = _third(times)
        if "lengths" in self.times:
            raise ValueError("lengths: expected none beside ragged sequences, got some")
        _masked(self.times)
        for name in ("resets", "mask"):
            if name in self.times:
                self.times[name] = flat_flags(name, self.times[name], x)
        if "weights" in self.times:
            w = _weights(self.times["weights"])
            if w.shape not in ((len(x),), (len(x.rows),)):
                raise ValueError(
                    f"weights: expected one a sequence or one a row, {len(x)} or {len(x.rows)}, "
                    f"got shape {w.shape}"
                )
            self.times["weights"] = w
        self._select(batch_size, shuffle, rng)

    def __iter__(self) -> Iterator[Any]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: its number, which decides the order.
            start: the number of the first batch.

        Returns:
            An iterator of ``x, target``, or ``x, target, times`` if there are any.

        Raises:
            TypeError: a number that is not whole.
            ValueError: a number below 0.
        """
        return map(self._batch, self._selections(*_place(epoch, start)))

    def _batch(self, some: Array) -> tuple[Any, ...]:
        target = (
            self.x.like(self.target).take(some).rows if self.outputs == "all" else self.target[some]
        )
        x = self.x.take(some)
        times = {n: self._some(n, v, some) for n, v in self.times.items()}
        return (x, target, times) if times else (x, target)

    def _some(self, name: str, value: Any, some: Array) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if name == "weights":
            return some_weights(value, self.x, some, self.outputs)
        return self.x.like(value).take(some).rows


class InputsLoader(_Selections):
    """Yield batches of samples for a model of several inputs.

    >>> import numpy as np
    >>> x = {"source": np.zeros((10, 7), np.int64), "inputs": np.zeros((10, 5), np.int64)}
    >>> loader = InputsLoader(x, np.zeros((10, 5)), batch_size=4)
    >>> [(x["inputs"].shape, target.shape) for x, target, lengths in loader]
    [((4, 5), (4, 5)), ((4, 5), (4, 5)), ((2, 5), (2, 5))]

    Args:
        x: a tuple of inputs, which the model is called with by position, or a dict, by name; each
            an array ``[N,...]``, a `Ragged` or a list of ``[n,...]``.
        target: ``[N,...]``; or a `Ragged` or a list of ``[n,...]`` for a model whose outputs are
            ragged.
        lengths: ``[N]``, of the outputs, or a dict with any of lengths, mask (``[N,T]``) and
            weights; they go to the loss alone.
        batch_size: samples of a batch; the last one may have fewer.
        shuffle: whether every epoch has a new order, that of (rng, epoch).
        rng: seed of the order.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: inputs or a target of another number of samples, or another argument of the
            wrong shape or value.
    """

    outputs = "last"

    def __init__(
        self,
        x: Any,
        target: Any,
        lengths: Any = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        rng: int = 0,
    ) -> None:
        if not isinstance(x, (tuple, Mapping)):
            raise TypeError(f"x: expected a tuple or a dict of inputs, got {type(x).__name__}")
        self.inputs = Inputs.of(x).mapped(whole_input)
        count = self.inputs.count()
        self.target: Any = whole_input("target", target)
        self.times = _third(lengths)
        for name in sorted({"resets", "masked"} & set(self.times)):
            raise ValueError(f"{name}: expected it among the inputs of the model, got it beside")
        if self.times and isinstance(self.target, Ragged):
            raise ValueError(f"{next(iter(self.times))}: expected none beside a ragged target")
        if len(self.target) != count:
            raise ValueError(f"target: expected {count} samples as x has, got {len(self.target)}")
        self.times = {name: _of_outputs(name, a, count) for name, a in self.times.items()}
        self._count = count
        self._select(batch_size, shuffle, rng)

    @property
    def _samples(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any, Any]]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: its number, which decides the order.
            start: the number of the first batch.

        Returns:
            An iterator of ``x, target, third``, where x is as it was given, and third a dict or
            None.

        Raises:
            TypeError: a number that is not whole.
            ValueError: a number below 0.
        """
        return map(self._batch, self._selections(*_place(epoch, start)))

    def _batch(self, rows: Array) -> tuple[Any, Any, Any]:
        target = self.target
        some = target.take(rows) if isinstance(target, Ragged) else target[rows]
        third = {n: v[rows] for n, v in self.times.items()}
        return self.inputs.take(rows).given(), some, third or None

    def fingerprint(self) -> dict[str, Any]:
        """Describe this data: its form, the order of its batches, and a sample of its content.

        Returns:
            Facts that JSON can hold, by which a resumed run recognises its data.
        """
        parts = dict([*self.inputs.items(), ("target", self.target)])
        kind: dict[str, Any] = {"type": "InputsLoader", "times": sorted(self.times)}
        kind.update({n: _kind(leaves(a), 1) for n, a in parts.items()})
        order = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.rng}
        content: dict[str, Any] = {n: _sample(a) for n, a in {**parts, **self.times}.items()}
        return {"kind": kind, "order": order, "content": {"N": self._count, **content}}


def _of_outputs(name: str, value: Any, count: int) -> Array:
    """Return lengths, mask or weights of the outputs of samples, of which T is not known."""
    a = _weights(value) if name == "weights" else _beside(name, value)
    axes, shapes = {
        "lengths": ((1,), "(N,)"),
        "mask": ((2,), "(N, T)"),
        "weights": ((1, 2), "(N,) or (N, T)"),
    }[name]
    if name == "lengths" and a.size and a.dtype.kind not in "iu":
        raise TypeError(
            f"lengths: expected an integer dtype, got {a.dtype}; use lengths.astype(np.int64)"
        )
    if name == "mask" and a.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {a.dtype}; use mask.astype(bool)")
    if a.ndim not in axes or len(a) != count:
        raise ValueError(f"{name}: expected shape {shapes} with N = {count}, got {a.shape}")
    if name == "lengths" and (a < 0).any():
        n = int(np.flatnonzero(a < 0)[0])
        raise ValueError(f"lengths: expected numbers of at least 0, got {a[n]} at n = {n}")
    return a


class PairLoader(_Selections):
    """Yield padded batches of pairs of sequences, for a model of an encoder and a decoder.

    x of a batch is a dict: source ``[S,B]``, its lengths ``[B]``, and inputs ``[T,B]`` of the
    decoder: the target one step late, behind ``start``. The target ends with ``end``. Pairs of
    about the same lengths come into one batch (bucketing), so that there is little padding: those
    of ``buckets`` batches at a time are put in order, and the batches then shuffled.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> source, target = ([np.arange(2, 2 + n) for n in sizes] for sizes in ((3, 1), (2, 4)))
    >>> loader = PairLoader(source, target, start=0, end=1, batch_size=2, shuffle=False)
    >>> x, answer, lengths = next(iter(loader))
    >>> {name: a.T.tolist() for name, a in x.items()}["inputs"], answer.T.tolist()
    ([[0, 2, 3, 0, 0], [0, 2, 3, 4, 5]], [[2, 3, 1, 0, 0], [2, 3, 4, 5, 1]])
    >>> x["lengths"].tolist(), lengths.tolist()
    ([3, 1], [3, 5])

    Args:
        source: a `Ragged` or a list of ``[n]`` whole numbers.
        target: as many.
        start: the first input of the decoder.
        end: the label behind the last one.
        batch_size: pairs of a batch; the last one may have fewer.
        buckets: batches among which pairs are put in order of their lengths; 1: none.
        shuffle: whether every epoch has a new order, that of (rng, epoch).
        time_major: whether batches are ``[T,B]`` or ``[B,T]``.
        rng: seed of the order.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: another number of targets than of sources.
    """

    outputs = "all"

    def __init__(
        self,
        source: Any,
        target: Any,
        *,
        start: int,
        end: int,
        batch_size: int = 32,
        buckets: int = 50,
        shuffle: bool = True,
        time_major: bool = True,
        rng: int = 0,
    ) -> None:
        self.source, self.pairs = (
            _labels(name, a) for name, a in (("source", source), ("target", target))
        )
        if len(self.source) != len(self.pairs):
            raise ValueError(
                f"target: expected {len(self.source)} sequences as source has, got "
                f"{len(self.pairs)}"
            )
        self.start, self.end = (
            _check.positive(name, value, 0) for name, value in (("start", start), ("end", end))
        )
        self.buckets, self.time_major = (
            _check.positive("buckets", buckets),
            _check.flag("time_major", time_major),
        )
        self.times: dict[str, Any] = {}
        self._select(batch_size, shuffle, rng)

    @property
    def _samples(self) -> int:
        return len(self.source)

    def _selections(self, epoch: int, start: int) -> Iterator[Array]:
        """Yield the numbers of the pairs of each batch, of about the same lengths."""
        parts = list(super()._selections(epoch, 0))
        most = int(self.source.lengths.max(initial=0)) + 1
        size = self.pairs.lengths * most + self.source.lengths
        batches = []
        for k in range(0, len(parts), self.buckets):
            some = np.concatenate(parts[k : k + self.buckets])
            if self.buckets > 1:
                some = some[np.argsort(size[some], kind="stable")]
            batches += np.split(some, range(self.batch_size, len(some), self.batch_size))
        order = np.arange(len(batches))
        if self.shuffle:
            order = np.random.default_rng((self.rng, epoch, 1)).permutation(len(batches))
        return (batches[k] for k in order[start:])

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any, Any]]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: its number, which decides the order.
            start: the number of the first batch.

        Returns:
            An iterator of ``x, target, lengths``, with x a dict of source, inputs and lengths.

        Raises:
            TypeError: a number that is not whole.
            ValueError: a number below 0.
        """
        return map(self._batch, self._selections(*_place(epoch, start)))

    def _batch(self, rows: Array) -> tuple[Any, Any, Any]:
        source, pairs = self.source.take(rows), self.pairs.take(rows)
        ends = pairs.lengths
        body = pairs.padded().astype(np.int64)
        answer = np.concatenate([body, np.zeros((1, len(rows)), np.int64)])
        answer[ends, np.arange(len(rows))] = self.end
        first = np.full((1, len(rows)), self.start, np.int64)
        arrays = source.padded().astype(np.int64), np.concatenate([first, body]), answer
        x, given, target = (a if self.time_major else a.T.copy() for a in arrays)
        return {"source": x, "inputs": given, "lengths": source.lengths}, target, ends + 1

    def fingerprint(self) -> dict[str, Any]:
        """Describe this data: its form, the order of its batches, and a sample of its content.

        Returns:
            Facts that JSON can hold, by which a resumed run recognises its data.
        """
        order = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.rng}
        parts = {"source": self.source, "target": self.pairs}
        content: dict[str, Any] = {n: _sample(a) for n, a in parts.items()}
        kind = {"type": "PairLoader", "start": self.start, "end": self.end}
        kind["time_major"] = self.time_major
        order["buckets"] = self.buckets
        return {"kind": kind, "order": order, "content": {"N": len(self.source), **content}}


def _labels(name: str, sequences: Any) -> Ragged:
    """Return sequences of whole numbers."""
    made = whole_input(name, sequences)
    if not isinstance(made, Ragged) or made.rows.ndim != 1 or made.rows.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected a Ragged or a list of [n] whole numbers, got others")
    return made


class StreamLoader:
    """Yield windows of a long stream of indices, cut into parallel rows.

    The stream is cut into ``batch_size`` rows of equal length; batch k holds the steps
    ``k * window ..`` of every row, and its target the same one step later. The state is carried
    from window to window, so only the gradient is cut: truncated backpropagation through time.

    >>> import numpy as np
    >>> loader = StreamLoader(np.arange(13), batch_size=2, window=3)
    >>> [(x.T.tolist(), target.T.tolist()) for x, target in loader][0]
    ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]])

    Args:
        text: the stream ``[N]`` of whole numbers, N > batch_size, of any integer dtype. It is used
            without a copy, so leave it unchanged; batches are int64.
        batch_size: B, parallel rows.
        window: T, steps of a batch; the last one of an epoch may have fewer.
        time_major: whether batches are ``[T,B]`` or ``[B,T]``.

    Raises:
        TypeError: text is no array of whole numbers.
        ValueError: text has another number of axes than one, masked elements, or is too short; or
            a size is below 1.

    Source: Williams, Peng (1990); for language models Mikolov et al. (2010).
    """

    carries_state = True

    def __init__(
        self, text: Array, batch_size: int, window: int, *, time_major: bool = True
    ) -> None:
        stream = _check.array("text", text)
        if stream.dtype.kind not in "iu":
            raise TypeError(f"text: expected an integer dtype, got {stream.dtype}")
        if stream.ndim != 1:
            raise ValueError(f"text: expected shape (N,), got {stream.shape}")
        stream = _check.contiguous(stream)
        self.time_major = _check.flag("time_major", time_major)
        self.batch_size, self.window = (
            _check.positive("batch_size", batch_size),
            _check.positive("window", window),
        )
        self.steps = (stream.size - 1) // self.batch_size  # of every row
        if self.steps < 1:
            raise ValueError(
                f"text: expected more than batch_size = {batch_size} elements, got {stream.size}"
            )
        used = self.steps * self.batch_size
        self._x = stream[:used].reshape(self.batch_size, -1).T
        self._target = stream[1 : used + 1].reshape(self.batch_size, -1).T

    def __len__(self) -> int:
        return -(-self.steps // self.window)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Iterate over the windows from number ``start`` on.

        Args:
            epoch: not used: every epoch is the same.
            start: the number of the first window.

        Returns:
            An iterator of ``x, target``.

        Raises:
            TypeError: a number that is not whole.
            ValueError: a number below 0.
        """
        return self._windows(_place(epoch, start)[1], slice(None))

    def _windows(self, start: int, rows: slice) -> Iterator[tuple[Any, Any]]:
        """Yield some rows of the windows from number ``start`` on."""
        for k in range(start, len(self)):
            part = slice(k * self.window, (k + 1) * self.window)
            x, target = self._x[part, rows], self._target[part, rows]
            if not self.time_major:
                x, target = x.T, target.T
            yield _check.contiguous(x, np.int64), _check.contiguous(target, np.int64)

    def fingerprint(self) -> dict[str, Any]:
        """Describe this data: the order of its batches, and a sample of its content.

        Returns:
            Facts that JSON can hold, by which a resumed run recognises its data.
        """
        order = {"batch_size": self.batch_size, "window": self.window}
        return {
            "kind": {"type": "StreamLoader"},
            "order": order,
            "content": {"x": _sample(self._x)},
        }


readable(globals())
