"""Turn the data of users into batches in the model's layout, or errors that name the fix."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _check, _device
from .._check import Array
from .._ragged import Ragged, flat_flags, leaves, unwrapped
from ..data import (
    ArrayLoader,
    Inputs,
    InputsLoader,
    RaggedLoader,
    StreamLoader,
    as_array,
    targets_of,
    whole_input,
)
from ..losses._ctc import padded_labels
from ..nn import Embedding, Layer, Linear, Model, Recurrent
from ..nn._model import takes
from ..nn._sequential import _leaf
from ..nn._walk import layers_of
from ._carried import refuse_uncarried
from ._division import none_of, own_inputs, own_rows
from ._types import FLAGS, THIRD, Batch, Times


@dataclass
class Form:
    """The form of a batch that a model and a Trainer expect.

    Attributes:
        model: whose dtype and device x is brought to.
        time_major: the layout of its recurrent layers; None without any.
        per_sequence: a target a sequence, in place of one a step.
        loss_first: ``batch_first`` of the loss.
        labels: whether the target is the labels of each sequence, ``[B,S]``, see `losses.CTC`.
        host_targets: whether the loss moves the target to the device itself.
    """

    model: Layer
    time_major: bool | None
    per_sequence: bool
    loss_first: bool | None
    labels: bool = False
    host_targets: bool = False

    @property
    def outputs(self) -> str:
        """The name of the form in the loaders of `ostinato.data`: "all" or "last"."""
        return "last" if self.per_sequence or self.labels else "all"

    def target_of(self, target: Any) -> Any:
        """Return the target as an array or a `Ragged`; labels of sequences padded to ``[B,S]``."""
        if self.labels and isinstance(target, (list, tuple, Ragged)):
            return padded_labels(target)
        return sequences(target, "target")

    @property
    def takes_ids(self) -> bool:
        """Whether the first layer is an Embedding, or any layer of a model of the user's own."""
        first = self._first()
        layers = layers_of(first) if isinstance(first, Model) else (first,)
        return any(isinstance(layer, Embedding) for layer in layers)

    def several(self, x: Any) -> bool:
        """Whether x is several inputs: a dict, or a tuple for a call of several arguments.

        Raise where the model cannot be given them.
        """
        named = isinstance(x, Mapping)
        if not named and not (isinstance(x, tuple) and _required(self.model) > 1):
            return False
        kind = type(self.model).__name__
        if not isinstance(self.model, Model):
            raise TypeError(
                f"x: expected one input for a {kind}, got a {type(x).__name__}; several inputs "
                "need an ost.nn.Model whose __call__ takes them"
            )
        if self.model.stateful and not takes(type(self.model), "state"):
            raise TypeError(
                f"x: expected one input for a {kind}, which has a state and whose __call__ takes "
                f"no argument of that name, got a {type(x).__name__}"
            )
        return True

    def converted(self, name: str, a: Any, *, quiet: bool = False) -> Any:
        """Return one of several inputs, with real numbers in the dtype of the model."""
        if isinstance(a, Ragged):
            return a.like(self.converted(name, a.rows, quiet=quiet))
        if a.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected numbers, got dtype {a.dtype}")
        if a.dtype.kind != "f" or a.dtype == self.model.dtype:
            return contiguous(a)
        if not quiet:
            warnings.warn(
                f"{name}: converted once from {a.dtype} to {self.model.dtype}", stacklevel=6
            )
        return a.astype(self.model.dtype)

    def placed(self, a: Any) -> Any:
        """Return an array, or sequences, where the model is."""
        if isinstance(a, Inputs):
            return a.mapped(lambda _, one: self.placed(one))
        if isinstance(a, Ragged):
            return a.like(self.placed(a.rows))
        own = self.model._block.values
        return (
            _device.like(_device.host(a), own)
            if _check.is_array(a) and _device.of(a) is not _device.of(own)
            else a
        )

    def floats(self, x: Any, name: str = "x", *, quiet: bool = False) -> Any:
        """x in the dtype of the model, where its first layer takes real numbers."""
        if isinstance(x, Ragged):
            return x.like(self.floats(x.rows, name, quiet=quiet))
        first = self._first()
        if x.dtype.kind not in "fiub":
            raise TypeError(
                f"{name}: expected numbers, got dtype {x.dtype}; use "
                f"{name}.astype(np.{self.model.dtype})"
            )
        if isinstance(first, Embedding):
            if x.dtype.kind not in "iu":
                raise TypeError(
                    f"{name}: expected an integer dtype for an Embedding, got {x.dtype}; use "
                    f"{name}.astype(np.int64)"
                )
            return x
        known = isinstance(first, (Linear, Recurrent))
        if x.dtype == self.model.dtype or (x.dtype.kind != "f" and not known):
            return x
        if not quiet:
            warnings.warn(
                f"{name}: converted once from {x.dtype} to {self.model.dtype}", stacklevel=5
            )
        return x.astype(self.model.dtype)

    def _first(self) -> Layer:
        return _leaf(self.model, 0)

    def refuse_arrays(self, name: str, inputs: Inputs) -> None:
        """Raise if inputs are arrays ``[N,T,...]`` for a model that reads ``[T,B,...]``."""
        if any(not isinstance(a, Ragged) and a.ndim > 1 for _, a in inputs.items()):
            self.refuse_time_major(name)

    def check_rank(self, x: Array, name: str = "x") -> None:
        """Raise where a whole array or a batch lacks the axis of the inputs."""
        first = self._first()
        if isinstance(first, Recurrent) and x.ndim != 3:
            fix = f"; for one number a step use {name}[..., None]" if x.ndim == 2 else ""
            axes = "(T, B, I)" if self.time_major and name != "x" else "(N, T, I)"
            raise ValueError(f"{name}: expected shape {axes}, got {x.shape}{fix}")

    def refuse_time_major(self, name: str) -> None:
        """Raise if whole arrays ``[N,T,...]`` are given to a model that reads ``[T,B,...]``."""
        if self.time_major:
            raise ValueError(
                f"{name}: expected recurrent layers with batch_first=True for whole arrays [N, T, "
                "...], got a model that "
                "reads [T, B, ...]; build its recurrent layers with batch_first=True, or give "
                "batches [T, B, ...], such as "
                "ost.data.ArrayLoader(x, target, time_major=True)"
            )


class Source:
    """The batches of one argument: whole arrays, sequences, or an iterable of batches.

    Args:
        name: of the argument, for errors.
        data: what was given.
        form: what is expected.
        batch_size, shuffle, seed: of whole arrays.
        part: the rows of every batch that are taken, in a parallel run; None: all.
    """

    def __init__(
        self,
        name: str,
        data: Any,
        form: Form,
        batch_size: int,
        shuffle: bool,
        seed: int,
        part: slice | None = None,
    ) -> None:
        self.name, self.form, self.part = name, form, part
        self.loader = self._loader(data, batch_size, shuffle, seed)
        self.carries_state = bool(getattr(self.loader, "carries_state", False))
        if self.carries_state:
            refuse_uncarried(name, form.model)
        said = getattr(self.loader, "time_major", None)
        if (
            said is not None
            and form.time_major is not None
            and bool(said) != form.time_major
            and not isinstance(self.loader, RaggedLoader)
        ):
            axes = "[T, B, ...]" if form.time_major else "[B, T, ...]"
            raise ValueError(
                f"{name}: expected batches {axes}, as the model reads them, got a loader with "
                f"time_major={bool(said)}; "
                f"give it time_major={form.time_major}"
            )
        if form.time_major is not None:
            self.time_major = form.time_major
        else:
            self.time_major = bool(said) if said is not None else form.loss_first is False

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def has_length(self) -> bool:
        """Whether the number of batches is known."""
        try:
            return hasattr(self.loader, "__len__") and len(self.loader) >= 0
        except TypeError:  # a DataLoader of an iterable data set
            return False

    def _loader(self, data: Any, batch_size: int, shuffle: bool, seed: int) -> Any:
        whole = _whole(data, self.form)
        if whole is None:
            if (
                not isinstance(data, Iterable)
                or isinstance(data, (str, bytes))
                or _check.is_array(data)
            ):
                raise TypeError(
                    f"{self.name if self.name == 'validation' else 'data'}: expected (x, target[, "
                    "lengths]) or an iterable "
                    f"of such batches, got {type(data).__name__}"
                )
            return data
        x, target, third = whole
        if self.form.several(x):
            return self._several(x, target, third, batch_size, shuffle, seed)
        x = sequences(x)
        target = self.form.target_of(target)
        outputs = self.form.outputs
        if self.form.time_major is None and getattr(x, "ndim", 0) == 2 and not self.form.takes_ids:
            outputs = "last"  # rows of inputs, without an axis of time
        options: Any = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "rng": seed,
            "outputs": outputs,
        }
        if isinstance(x, Ragged):
            if third is not None and not isinstance(third, Mapping):
                raise ValueError("data: expected no lengths beside ragged sequences, got some")
            return RaggedLoader(self.form.floats(x), target, third, **options)
        self.form.refuse_time_major(self.name)
        self.form.check_rank(x)
        return ArrayLoader(self.form.floats(x), target, third, time_major=False, **options)

    def _several(
        self, x: Any, target: Any, third: Any, batch_size: int, shuffle: bool, seed: int
    ) -> InputsLoader:
        """Return the loader of whole arrays for a model of several inputs."""
        inputs = Inputs.of(x).mapped(whole_input).mapped(self.form.converted)
        self.form.refuse_arrays(self.name, inputs)
        target = padded_labels(target) if self.form.labels else target
        return InputsLoader(
            inputs.given(), target, third, batch_size=batch_size, shuffle=shuffle, rng=seed
        )

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch from number ``start`` on, checked."""
        selections = getattr(self.loader, "_selections", None)
        if self.part is not None and selections is not None and _picks(self.loader):
            yield from self._own_samples(selections(epoch, start), self.part, start)
            return
        if self.part is not None and isinstance(self.loader, StreamLoader) and _picks(self.loader):
            yield from self._own_streams(self.loader, self.part, start)
            return
        rows = selections(epoch, start) if selections is not None else None
        raw = (
            self.loader.batches(epoch, start)
            if hasattr(self.loader, "batches")
            else _from(self.loader, start)
        )
        for k, batch in enumerate(raw):
            yield self._checked(
                batch, first=k == start == 0, rows=None if rows is None else next(rows, None)
            )

    def _own_samples(self, selections: Iterator[Array], part: slice, start: int) -> Iterator[Batch]:
        """Yield this rank's part of each batch, of which no other sample is read."""
        for k, rows in enumerate(selections):
            own = rows[part]
            if not len(own):
                yield none_of(self.time_major, len(rows))
                continue
            batch = self._checked(
                self.loader._batch(own), first=k == start == 0, rows=own, divided=True
            )
            yield replace(batch, whole=len(rows))

    def _own_streams(self, loader: StreamLoader, part: slice, start: int) -> Iterator[Batch]:
        """Yield this rank's rows of each window, of which no other row is read."""
        count = loader.batch_size
        own = len(range(*part.indices(count)))
        for k, given in enumerate(loader._windows(start, part)):
            if not own:
                yield none_of(self.time_major, count)
                continue
            batch = self._checked(given, first=k == start == 0, rows=None, divided=True)
            yield replace(batch, whole=count)

    def _checked(self, batch: Any, first: bool, rows: Any, divided: bool = False) -> Batch:
        if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
            raise TypeError(
                "data: expected (x, target[, lengths]) as numpy arrays, or batches of that form, "
                "got "
                f"{type(batch).__name__}"
            )
        x, target, third = (*batch, None)[:3]
        times = _times(third)
        if self.form.several(x):
            return self._of_several(Inputs.of(x), target, times, rows, divided)
        x, target = sequences(x), self.form.target_of(target)
        if isinstance(x, Ragged):
            target, times = _flat(x, target, times, self.form.outputs)
        else:
            x, target = as_array("x", x), as_array("target", target)
            self._check_layout(x, times, first)
        x = self.form.floats(x, quiet=True) if not _is_id_like(x) else x
        x = contiguous(x)
        given = Batch(x, target, times, self.time_major, rows)
        if self.part is not None and not divided:
            given = own_rows(given, self.part, per_sequence=self.form.outputs == "last")
            if given.x is None:
                return given
        refuse_non_finite(given, infinite=self.name != "data")  # NaN shows in the loss of training
        return self._placed(given)

    def _placed(self, given: Batch) -> Batch:
        """Return a batch whose x is where the model is; so is its target unless the loss moves it.

        What leaves the host is looked at before: later one would have to wait for it.
        """
        x, target = self.form.placed(given.x), given.target
        if not self.form.host_targets:
            target = self.form.placed(target)
        moved = _on_device(x) and not _on_device(given.x)
        known = first_non_finite(given) if moved and not _on_device(given.target) else ""
        return replace(given, x=x, target=target, non_finite=known)

    def _of_several(self, x: Inputs, target: Any, times: Times, rows: Any, divided: bool) -> Batch:
        """Return a checked batch of several inputs."""
        for name in sorted({"resets", "masked"} & set(times)):
            raise ValueError(f"{name}: expected it among the inputs of the model, got it beside")
        inputs = x.mapped(lambda n, a: self.form.converted(n, whole_input(n, a), quiet=True))
        target, count = self.form.target_of(target), 0
        if self.part is not None and not divided:
            axis, last = int(self.time_major), self.form.outputs == "last"
            inputs, target, times, count = own_inputs(
                inputs, target, times, self.part, axis, per_sequence=last
            )
            rows = None if rows is None else rows[self.part]
            if not len(range(*self.part.indices(count))):
                return none_of(self.time_major, count)
        if isinstance(target, Ragged):
            target, times = target.rows, _none_beside_ragged(times)
        else:
            self._check_times(times)
        whole = self.form.outputs == "last" or target.ndim < 2
        given = Batch(inputs, target, times, self.time_major, rows, per_sequence=whole, whole=count)
        return self._placed(given)

    def _check_layout(self, x: Array, times: Times, first: bool) -> None:
        size = getattr(self.loader, "batch_size", None)
        said = getattr(self.loader, "time_major", None)
        transposed = (
            first and said is None and self.form.time_major and isinstance(size, int) and x.ndim > 1
        )
        if transposed and x.shape[0] == size != x.shape[1]:
            raise ValueError(
                f"{self.name}: expected batches [T, B, ...], as the model reads them, got x of "
                f"shape {x.shape} from a "
                f"loader of batch_size {size}; build the recurrent layers with batch_first=True"
            )
        self._check_times(times)

    def _check_times(self, times: Times) -> None:
        """Raise if lengths or a mask are read by the loss in another layout."""
        if (
            not {"lengths", "mask"} & set(times)
            or self.form.per_sequence
            or self.form.loss_first is None
        ):
            return
        if self.form.loss_first == self.time_major:
            raise ValueError(
                f"loss: expected batch_first={not self.time_major}, as the model has it, got "
                f"{self.form.loss_first}"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return facts about the data: its form, how it is divided into batches, and a sample.

        They are called ``kind``, ``order`` and ``content``.
        """
        own = getattr(self.loader, "fingerprint", None)
        if own is not None:
            found: dict[str, Any] = own()
            return found
        return {"kind": {"type": "batches"}, "order": {}, "content": {}}

    def refuse_nothing(self) -> None:
        """Raise if lengths or a mask that are known say that no step counts."""
        third = getattr(self.loader, "times", None) or {}
        for name in ("lengths", "mask"):
            if third.get(name) is not None and not np.asarray(third[name]).any():
                raise ValueError(
                    f"{self.name}: expected at least one step that counts, got {name} of zeros "
                    "alone"
                )


def _picks(loader: Any) -> bool:
    """Return whether the batches of a loader are no more than the samples that it selects.

    A class of the user's own may change what it has selected, by numbers drawn for whole batches.
    """
    return getattr(type(loader).batches, "__module__", "") == ArrayLoader.__module__


def contiguous(x: Any) -> Any:
    """Return x, or its rows, with unit stride on the last axis, as the kernels read it."""
    if isinstance(x, Ragged):
        rows = contiguous(x.rows)
        return x if rows is x.rows else x.like(rows)
    if isinstance(x, np.ndarray) and x.ndim > 1 and x.strides[-1] != x.itemsize:
        return np.ascontiguousarray(x)
    return x


def _none_beside_ragged(times: Times) -> Times:
    """Raise if there are lengths, a mask or weights beside a ragged target."""
    for name in times:
        raise ValueError(f"{name}: expected none beside a ragged target, got some")
    return times


def _required(model: Layer) -> int:
    """Return how many arguments the call of a model of the user's own must be given."""
    if not isinstance(model, Model):
        return 1
    parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in by_position and p.default is p.empty for p in parameters)


def _is_id_like(x: Any) -> bool:
    return leaves(x).dtype.kind in "iub"


def _whole(data: Any, form: Form) -> tuple[Any, Any, Any] | None:
    """Return x, target and third entry of whole arrays; None for anything else."""
    if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
        return None
    x, target, third = (*data, None)[:3]
    # A list of lists is a list of batches, a tuple of lists is x and target.
    lists = (list,) if isinstance(data, tuple) else ()
    beside = isinstance(data, tuple) and (_array_like(target) or isinstance(target, list))
    if beside and form.several(x):
        return x, target, third
    if _array_like(x) and (_array_like(target) or isinstance(target, lists)):
        return x, target, third
    if isinstance(x, lists) and (_array_like(target) or isinstance(target, list)):
        return x, target, third
    return None


def _array_like(a: Any) -> bool:
    return (
        isinstance(a, Ragged)
        or _check.is_array(a)
        or hasattr(a, "__array__")
        or hasattr(a, "__dlpack__")
    )


def sequences(a: Any, name: str = "x") -> Any:
    """Return an array, or a `Ragged` of a list of arrays; lists of numbers are made an array."""
    if isinstance(a, Ragged):
        return a
    if isinstance(a, (list, tuple)):
        if a and all(_array_like(s) and getattr(s, "ndim", 1) > 0 for s in a):
            return unwrapped([as_array(f"{name}[{k}]", s) for k, s in enumerate(a)], name)[0]
        try:
            made = np.array(a)
        except ValueError:
            made = np.zeros(0, object)
        if made.dtype.kind not in "fiub":
            raise TypeError(
                f"{name}: expected an array, or a list of arrays for sequences of different "
                "lengths, got a list of others; "
                f"use [np.asarray(s, np.float32) for s in {name}]"
            )
        return made
    return as_array(name, a)


def _times(third: Any) -> Times:
    """Return the third entry of a batch as a dict, on the host, where the Trainer reads it."""
    given = (
        dict(third) if isinstance(third, Mapping) else {} if third is None else {"lengths": third}
    )
    unknown = sorted(set(given) - set(THIRD))
    if unknown:
        raise ValueError(
            "data: expected lengths, resets, mask, masked and weights in the third place, got "
            f"{unknown}"
        )
    out = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in ("lengths", "weights") and isinstance(value, (list, tuple)):
            value = np.asarray(value)
        if name == "masked" or isinstance(value, (Ragged, list, tuple)):
            out[name] = value
        else:
            out[name] = _device.host(as_array(name, value))
    return out


def _flat(x: Ragged, target: Any, times: Times, outputs: str) -> tuple[Array, Times]:
    """Return targets and flags of ragged sequences as flat rows."""
    if times.get("lengths") is not None:
        raise ValueError("data: expected no lengths beside ragged sequences, got some")
    flags = {n: flat_flags(n, times.get(n), x) for n in FLAGS}
    return targets_of(target, x, outputs), {
        **times,
        **{n: f for n, f in flags.items() if f is not None},
    }


def taking_part(batch: Batch) -> Array:
    """``[T,B]``: the steps that count, by lengths and mask; of a batch of padded sequences."""
    mask = batch.times.get("mask")
    if mask is not None and not batch.time_major:
        mask = mask.T
    ends = batch.times.get("lengths")
    on: Array = _check.taking_part(
        batch.steps, batch.size, None if ends is None else np.asarray(ends), mask
    )
    return on


def _not_finite(name: str, batch: Batch, *, infinite: bool) -> tuple[str, str] | None:
    """Return what of x or target is not finite at a step that takes part, and where.

    Padding may hold anything.
    """
    if isinstance(batch.x, Inputs):
        return _not_finite_of_several(name, batch, infinite=infinite)
    value = getattr(batch, name)
    ragged = isinstance(batch.x, Ragged)
    a = leaves(value)
    if a is None or not isinstance(a, np.ndarray) or a.dtype.kind != "f" or np.isfinite(a).all():
        return None
    bad = np.isinf(a) if infinite else ~np.isfinite(a)
    steps = leaves(batch.x).shape[:1] if ragged else batch.x.shape[:2]
    by_step = a.shape[: len(steps)] == steps
    nested = ragged and isinstance(batch.x.rows, Ragged)  # a mask is of what holds the rows
    if by_step and ragged and not nested and batch.times.get("mask") is not None:
        bad &= batch.times["mask"].reshape(-1, *(1,) * (a.ndim - 1))
    elif by_step and not ragged and a.ndim > 1 and {"lengths", "mask"} & set(batch.times):
        _check.lengths(batch.times.get("lengths"), batch.steps, batch.size)
        on = taking_part(batch)
        bad &= (on if batch.time_major else on.T).reshape(*steps, *(1,) * (a.ndim - 2))
    if not bad.any():
        return None
    where = [int(k) for k in np.argwhere(bad)[0]]
    at = list(where)
    if ragged or batch.rows is None:
        return str(a[tuple(where)]), f"{at} of the batch"
    if by_step and batch.time_major:
        at[0], at[1] = at[1], at[0]
    at[0] = int(batch.rows[at[0]])
    return str(a[tuple(where)]), str(at)


def _not_finite_of_several(name: str, batch: Batch, *, infinite: bool) -> tuple[str, str] | None:
    """Return what of several inputs, or of their target, is not finite, and where."""
    parts = batch.x.items() if name == "x" else [(name, batch.target)]
    for called, value in parts:
        a = leaves(value)
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
            continue
        bad = np.isinf(a) if infinite else ~np.isfinite(a)
        if bad.any():
            at = [int(k) for k in np.argwhere(bad)[0]]
            return str(a[tuple(at)]), f"{at} of {called} of the batch"
    return None


def refuse_non_finite(batch: Batch, *, infinite: bool = False) -> None:
    """Raise if x holds NaN or infinity; ``infinite``: only for infinity.

    Gates have plausible values for infinity.
    """
    found = _not_finite("x", batch, infinite=infinite)
    if found is not None:
        raise ValueError(
            f"x: expected finite numbers, got {found[0]} at {found[1]}; fill it, or leave such "
            "steps out by lengths or a mask"
        )


def first_non_finite(batch: Batch) -> str:
    """Return a sentence that names the first input of a batch that is not finite."""
    host = replace(batch, x=_on_host(batch.x), target=_on_host(batch.target))
    for name in ("x", "target"):
        found = _not_finite(name, host, infinite=False)
        if found is not None:
            return f"{name} holds {found[0]} at {found[1]}"
    return "x and target are finite, so it came of the parameters: a lower lr or clip_norm may help"


def _on_device(a: Any) -> bool:
    """Return whether an array, sequences or one of several inputs is on a device."""
    if isinstance(a, Inputs):
        return any(_on_device(one) for _, one in a.items())
    return _device.of(leaves(a)) is not None


def culprit_of(batch: Batch) -> Callable[[], str]:
    """Return what tells the first input that is not finite, holding no array of the host's."""
    known = batch.non_finite
    return (lambda: known) if known else lambda: first_non_finite(batch)


def _on_host(a: Any) -> Any:
    if isinstance(a, Inputs):
        return a.mapped(lambda _, one: _on_host(one))
    return a.like(_on_host(a.rows)) if isinstance(a, Ragged) else _device.host(a)


def _from(iterable: Iterable[Any], start: int) -> Iterator[Any]:
    """Yield the batches of an iterable from number ``start`` on; earlier ones are dropped."""
    for k, batch in enumerate(iterable):
        if k >= start:
            yield batch
