"""Hold what an importer found: layers by their names, and how each came about."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from .._annotations import readable
from .._check import Array
from ..nn import Layer, Sequential


class Entry(NamedTuple):
    """A part of a model of another library.

    >>> Entry("fc", "Linear", "weight [2,3]", "Linear(3, 2)").became
    'Linear(3, 2)'

    Attributes:
        name: of the part.
        kind: what it is there.
        found: its arrays and attributes.
        became: what it is here.
    """

    name: str
    kind: str
    found: str
    became: str


class Imported(Mapping[str, Layer]):
    """Layers that an importer made, by the names that they had.

    `from_torch`, `from_onnx` and `from_keras` return it. It is a mapping, so that
    ``ost.nn.Sequential(**imported)`` runs its layers one after the other.

    >>> import numpy as np
    >>> import ostinato as ost
    >>> weights = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
    >>> imported = ost.from_torch(weights)
    >>> imported["fc"], imported.layer
    (Linear(3, 2), Linear(3, 2))
    >>> print(imported.describe())
    PyTorch: 1 layer
    name  there   found                   here
    fc    Linear  weight [2,3], bias [2]  Linear(3, 2)

    Args:
        source: what the layers come from, such as "PyTorch".
        layers: by their names.
        entries: how each part was read, those that became no layer included.
        notes: what is worth knowing, a sentence each.
        assemble: makes the whole model of the layers; or a text that says why there is none.
        check: compares the whole model with the other library, which raises where they differ.
    """

    def __init__(
        self,
        source: str,
        layers: Mapping[str, Layer],
        entries: list[Entry],
        notes: list[str] | None = None,
        assemble: Callable[[], Layer] | str = "its order is not known",
        check: Callable[[Layer], None] | None = None,
    ) -> None:
        self.source, self.entries, self.notes = source, tuple(entries), tuple(notes or ())
        self._layers, self._assemble, self._check = dict(layers), assemble, check
        self._model: Layer | None = None

    def __getitem__(self, name: str) -> Layer:
        """Return a layer by its name; KeyError lists the names that there are."""
        if name not in self._layers:
            raise KeyError(f"name: expected one of {', '.join(self._layers)}, got {name!r}")
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        inner = "".join(f"\n  {n}: {layer!r}" for n, layer in self._layers.items())
        return f"Imported({self.source}{inner}\n)"

    @property
    def layer(self) -> Any:
        """The layer, where there is exactly one; ValueError otherwise."""
        if len(self._layers) != 1:
            raise ValueError(
                f"layer: expected one layer, got {len(self._layers)}: "
                f"{', '.join(self._layers) or 'none'}; pick one by its name"
            )
        return next(iter(self._layers.values()))

    def model(self, *, verify: bool = False) -> Any:
        """Return the whole model, which owns the layers from then on.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> ost.from_torch({"weight": np.ones((2, 3)), "bias": np.zeros(2)}).model()
        Linear(3, 2)

        Args:
            verify: whether to run a random input through the model and through the library that
                the file comes from, which must be installed.

        Returns:
            A layer or a `Sequential`; the same one at every call.

        Raises:
            ImportError: ``verify`` needs a library that is not installed.
            ValueError: the order of the layers is not known or cannot be expressed, or the two
                sides differ; the message says why.
        """
        verify = _check.flag("verify", verify)
        if self._model is None:
            if isinstance(self._assemble, str):
                raise ValueError(
                    f"model: expected a chain of layers, got one where {self._assemble}; make one "
                    "of the layers, such as ost.nn.Sequential(**imported)"
                )
            self._model = self._assemble()
        if verify:
            if self._check is None:
                raise ValueError(
                    f"verify: expected False, since nothing of {self.source} can run this model"
                )
            self._check(self._model)
        return self._model

    def describe(self) -> str:
        """Return a table of what was found, and of what it became.

        Returns:
            A line for each part, and the notes.
        """
        count = len(self._layers)
        head = f"{self.source}: {count} layer{'' if count == 1 else 's'}"
        rows = [Entry("name", "there", "found", "here")]
        rows += [Entry(e.name or "-", *e[1:]) for e in self.entries]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = ["  ".join([*(f"{c:<{w}}" for c, w in zip(r, widths)), r[3]]) for r in rows]
        return "\n".join([head, *(line.rstrip() for line in lines), *self.notes])


def require(module: str, extra: str, what: str, package: str = "") -> Any:
    """Import a library that an adapter needs; an error says how to install it.

    Args:
        module: what is imported.
        extra: the extra of ostinato that installs it; "" without one.
        what: what needs it.
        package: the package that has it, where no extra does.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        name = package or module.partition(".")[0]
        install = package or f"'ostinato[{extra}]'"
        raise ImportError(f"{what} needs {name}: pip install {install} ({e})") from e


def shapes(arrays: Mapping[str, Array]) -> str:
    """Return names and shapes of arrays, in short."""
    return ", ".join(f"{n} [{','.join(map(str, np.shape(a)))}]" for n, a in arrays.items())


def real(name: str, a: Any) -> Array:
    """Return an array of real numbers as float32, or as float64 where it is that."""
    if isinstance(a, Mapping):
        raise TypeError(
            f"{name}: expected real numbers, got a {type(a).__name__}; give what is in it instead"
        )
    if hasattr(a, "detach"):
        a = _of_tensor(name, a)
    try:
        array = np.asarray(a)
    except (TypeError, ValueError):  # lists of different lengths among them
        raise TypeError(f"{name}: expected real numbers, got {_check.quoted(a)}") from None
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    out: Array = array.astype(np.float64 if array.dtype.itemsize >= 8 else np.float32)
    return out


def _of_tensor(name: str, t: Any) -> Any:
    """Return the values of a tensor of PyTorch as an array, or raise the error that names it."""
    dtype, layout = str(t.dtype), str(getattr(t, "layout", "torch.strided"))
    if layout != "torch.strided":
        raise TypeError(f"{name}: expected a dense tensor, got {layout}; use .to_dense()")
    if getattr(t, "is_quantized", False):
        raise TypeError(f"{name}: expected real numbers, got {dtype}; use .dequantize()")
    if dtype.startswith(("torch.float8", "torch.float4")):
        raise TypeError(f"{name}: expected real numbers, got {dtype}; use .float() and its scale")
    if getattr(t, "is_meta", False):
        raise ValueError(f"{name}: expected a tensor with values, got one on the device meta")
    try:
        t = t.detach().cpu()
        return (t.float() if dtype == "torch.bfloat16" else t).numpy()
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(
            f"{name}: expected a tensor that NumPy can hold, got a {type(t).__name__} of {dtype} "
            f"({str(e)[:200]})"
        ) from None


def common(arrays: Mapping[str, Array]) -> np.dtype[Any]:
    """Return the dtype of a layer with these arrays."""
    return np.result_type(*arrays.values()) if arrays else np.dtype(np.float32)


def compare(what: str, got: Any, want: Any, limit: float = 1e-5) -> float:
    """Return by how much outputs differ, relative to the largest; raise where that is too much."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(
            f"verify: expected outputs of shape {want.shape} of {what}, got {got.shape}"
        )
    scale = max(float(np.abs(want).max(initial=0)), 1.0)
    error = float(np.abs(got - want).max(initial=0)) / scale
    if not error <= limit:
        raise ValueError(
            f"verify: expected the outputs of {what} within {limit:g}, got a difference of "
            f"{error:.3g}"
        )
    return error


def chain_of(layers: Mapping[str, Layer]) -> Layer:
    """Return layers one after the other: the layer itself where there is one."""
    if len(layers) == 1:
        return next(iter(layers.values()))
    return Sequential(**layers) if _unique(layers) else Sequential(*layers.values())


def _unique(layers: Mapping[str, Layer]) -> bool:
    """Whether no name is the beginning of another one, which names of parameters need."""
    return "self" not in layers and not any(
        a != b and b.startswith(a + ".") for a in layers for b in layers
    )


readable(globals())
