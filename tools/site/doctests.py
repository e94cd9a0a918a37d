"""An extension of Griffe: examples in docstrings are blocks of code, wherever they stand."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)(>>> .*(?:\n *\S.*)*)", re.M)  # to the next empty line


def fence(obj: griffe.Object) -> None:
    """Fence every doctest of a docstring, which Markdown would take for quotations."""
    if obj.docstring:
        obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)


class Doctests(griffe.Extension):
    """Fence the doctests of all that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence those of a member of the package."""
        fence(obj)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Fence those of the package itself, which is no member of anything."""
        fence(pkg)
