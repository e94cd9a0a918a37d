"""Annotations that ``help`` shows as types: ``int | None`` and not ``'int | None'``."""

from __future__ import annotations

import re
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

# The meaning of the short names of the package, in words that a reader of `help` knows.
_MEANINGS = {
    "Array": "ndarray",
    "nn.QuantizationReport": "QuantizationReport",
    "nn.ModelQuantizationReport": "ModelQuantizationReport",
    "Lengths": "ArrayLike | None",
    "Seed": "int | Generator | None",
    "Sequences": "ndarray | Ragged | list[ndarray]",
    "State": "ndarray | tuple[ndarray, ndarray] | None",
    "Row": "dict[str, float]",
    "Shape": "tuple[int, ...]",
    "npt.NDArray[np.int64]": "ndarray",
    "npt.NDArray[np.integer[Any]]": "ndarray",
    "npt.DTypeLike": "DTypeLike",
    "npt.ArrayLike": "ArrayLike",
}


@cache
def _short_names() -> re.Pattern[str]:
    """Return the pattern of the short names; few programs ever call ``help``."""
    return re.compile("|".join(rf"(?<![\w.]){re.escape(n)}(?!\w)" for n in _MEANINGS))


class Annotation(str):
    """The text of an annotation, which is shown without quotes and with our own names spelt out."""

    def __repr__(self) -> str:
        return _short_names().sub(lambda m: _MEANINGS[m[0]], str(self))

    def __format__(self, spec: str) -> str:  # what Python 3.14 shows
        return format(repr(self), spec)


def readable(namespace: dict[str, Any]) -> None:
    """Let ``help`` show the annotations of a module's functions and classes as types.

    ``typing.get_type_hints`` finds what it found before: the text itself does not change.

    Args:
        namespace: the globals of the module, at its end.
    """
    for value in namespace.values():
        if getattr(value, "__module__", None) != namespace["__name__"]:
            continue
        if isinstance(value, FunctionType):
            _unquote(value)
        elif isinstance(value, type):
            for member in vars(value).values():
                member = getattr(member, "__func__", member)  # of a class or static method
                if isinstance(member, FunctionType):
                    _unquote(member)


def complete(*modules: ModuleType, **names: Any) -> None:
    """Give modules the names that their annotations have and that they cannot import.

    A module that is imported by what it names (the callbacks of a Trainer) would import in a
    circle. `typing.get_type_hints` looks the names up among the globals.

    Args:
        *modules: the modules.
        **names: what they are given.
    """
    for module in modules:
        for name, value in names.items():
            module.__dict__.setdefault(name, value)


def _unquote(function: FunctionType) -> None:
    """Replace texts among the annotations of a function by ones that are shown without quotes."""
    function = getattr(function, "__wrapped__", function)  # below a decorator
    notes = dict(function.__annotations__)
    for name, note in notes.items():
        text = getattr(note, "__forward_arg__", note)  # a NamedTuple wraps it
        if type(text) is str:
            notes[name] = Annotation(text)
    function.__annotations__ = notes  # a new dict, in place of which Python 3.14 has a function
