"""Read the pickles of PyTorch's files by an allow-list; nothing in them is executed.

`read` is a machine for the opcodes that plain data need. A global is a name and nothing else: it
is looked up in the table that the caller gives, and one that is not there is an error that names
it. Lengths are held against what is left of the file, so that no opcode asks for more memory.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

_KEYS = (str, int, float, bool, type(None))  # kinds of keys of a dictionary
_VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_ARGUMENTS = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "SHORT_BINSTRING",
    "BINSTRING",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
)  # opcodes whose argument is the value
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """Report what a pickle asks for beyond the allow-list, or what is wrong with it."""


class Global:
    """A name of a module and of something in it, which is never imported.

    Args:
        name: such as "torch.FloatStorage".
    """

    def __init__(self, name: str) -> None:
        self.name = name


class _Mark:
    """What the opcode MARK puts on the stack."""


class Bounded:
    """A file from which no more is asked than it has left.

    Args:
        file: open for reading, at the place where reading begins.
        size: of the whole file, in bytes.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size = file, size

    @property
    def left(self) -> int:
        """The bytes that have not been read."""
        return max(self.size - self._file.tell(), 0)

    def read(self, count: int) -> bytes:
        """Read some bytes, fewer at the end of the file."""
        return self._file.read(min(count, self.left))

    def readline(self) -> bytes:
        """Read a line, which holds a name; escapes, of protocol 0, are refused."""
        line = self._file.readline(self.left)
        if b"\\" in line:
            raise Refused("a pickle with a backslash in a name")
        return line

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(
        self, functions: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any]
    ) -> None:
        self._functions, self._persistent = functions, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._spare = 0  # elements of lists that functions may still be given

    def run(self, file: Bounded) -> Any:
        """Return what the pickle at this place of the file holds."""
        self._spare = file.size
        for code, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            name = code.name
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                return self._pop()
            if name in _VALUES:
                self._stack.append(_VALUES[name]())
            elif name in _ARGUMENTS:
                self._stack.append(argument)
            else:
                self._step(name, argument)
        raise Refused("a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        step = getattr(self, "_op_" + name.lower(), None)
        if name in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(reversed(parts)))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if int(argument) not in self._memo:
                raise Refused(f"number {argument} of its memo before it is there")
            self._stack.append(self._memo[int(argument)])
        elif step is not None:
            step(argument)
        else:
            raise Refused(f"a pickle that asks for the opcode {name}{self._wanted()}")

    def _wanted(self) -> str:
        """Return which object an opcode that makes one would make."""
        names = [v.name for v in self._stack[-4:] if isinstance(v, Global)]
        return f", to make a {names[-1]}" if names else ""

    def _pop(self) -> Any:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise Refused("a pickle that takes more from its stack than there is")
        return self._stack.pop()

    def _top(self, kind: type = object) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise Refused(f"a pickle without a {kind.__name__} where one is due")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        for k in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[k], _Mark):
                values = self._stack[k + 1 :]
                del self._stack[k:]
                return values
        raise Refused("a pickle without the mark that it needs")

    def _op_mark(self, argument: Any) -> None:
        self._stack.append(_Mark())

    def _op_pop(self, argument: Any) -> None:
        self._stack.pop() if self._stack else self._pop()

    def _op_pop_mark(self, argument: Any) -> None:
        self._since_mark()

    def _op_dup(self, argument: Any) -> None:
        self._stack.append(self._top())

    def _op_memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _op_tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _op_list(self, argument: Any) -> None:
        self._stack.append(self._since_mark())

    def _op_dict(self, argument: Any) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._fill(values)

    def _op_append(self, argument: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _op_appends(self, argument: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _op_setitem(self, argument: Any) -> None:
        value, key = self._pop(), self._pop()
        self._fill([key, value])

    def _op_setitems(self, argument: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise Refused("a pickle with a key without a value")
        into = self._top(dict)
        for key, value in zip(values[::2], values[1::2]):
            if not isinstance(key, _KEYS):
                raise Refused(f"a pickle with a {type(key).__name__} as a key")
            into[key] = value

    def _op_global(self, argument: Any) -> None:
        self._stack.append(Global(str(argument).replace(" ", ".", 1)))

    def _op_stack_global(self, argument: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a pickle with a global whose name is no text")
        self._stack.append(Global(f"{module}.{name}"))

    def _op_reduce(self, argument: Any) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise Refused("a pickle that calls what is no function")
        make = self._functions.get(function.name)
        if make is None:
            raise Refused(f"a pickle that asks to call {function.name}")
        # A function may copy a list, and a list of the memo may be given again and again.
        self._spare -= sum(len(a) for a in args if isinstance(a, (list, dict)))
        if self._spare < 0:
            raise Refused(f"a pickle that gives {function.name} more than the file holds")
        try:
            self._stack.append(make(*args))
        except TypeError:
            raise Refused(f"a pickle with wrong arguments for {function.name}") from None

    def _op_build(self, argument: Any) -> None:
        self._pop()  # attributes of a dictionary, such as the versions of modules
        into = self._top()
        if type(into) is not dict:
            raise Refused(f"a pickle that asks to set attributes of a {type(into).__name__}")

    def _op_binpersid(self, argument: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


def read(
    file: Bounded,
    functions: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[Any], Any],
) -> Any:
    """Return what the next pickle of a file holds.

    >>> import io, pickle
    >>> words = pickle.dumps({"a": [1, (2.5, None)]})
    >>> read(Bounded(io.BytesIO(words), len(words)), {}, str)
    {'a': [1, (2.5, None)]}

    Args:
        file: at the place where the pickle begins; afterwards at its end.
        functions: by their names, what a pickle may call.
        persistent: gives what stands for a persistent id.

    Returns:
        Plain values, `Global` for names, and what the functions return.

    Raises:
        Refused: it asks for more than is allowed, or it is damaged.
    """
    try:
        return _Machine(functions, persistent).run(file)
    except (ValueError, OverflowError, UnicodeError) as e:
        raise Refused(f"a pickle that cannot be read: {str(e)[:200]}") from None


def read_bytes(
    words: bytes,
    functions: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[Any], Any],
) -> Any:
    """Return what a pickle in memory holds; see `read`."""
    return read(Bounded(io.BytesIO(words), len(words)), functions, persistent)
