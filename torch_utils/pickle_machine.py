"""Pickles read as data: an interpreter for the few opcodes that a network or a CIFAR-10 file needs.

Python's own Unpickler calls what a file tells it to call. This machine never does: a global is a `Global` out of
a fixed table (any other is refused by name), REDUCE and NEWOBJ run only the function that the table holds for it,
and BUILD fills only our own `Record` objects. There is no attribute access, no import and no `__setstate__`.
Work and memory are bounded by the file's own size and by a `Budget`.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dnnlib.errors import UserError, shown


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a file may mention: what REDUCE makes of arguments, and what NEWOBJ makes of none."""

    name: str
    call: Callable[[tuple[object, ...]], object] | None = None
    new: Callable[[], object] | None = None


class Record:
    """An inert object that a file describes; BUILD hands its state to `build`."""

    def build(self, state: object) -> None:
        raise UserError("damaged or hostile pickle: an object without state is given one")


@dataclass
class Budget:
    """What one file, with everything nested in it, may still use."""

    operations: int
    nbytes: int

    def step(self) -> None:
        self.operations -= 1
        if self.operations < 0:
            raise UserError("refused: the pickle has far more steps than any network needs")

    def take(self, nbytes: int) -> None:
        self.nbytes -= nbytes
        if self.nbytes < 0:
            raise UserError("refused: the pickle asks for more memory than its own size")


_MARK = object()
_FIXED = {  # opcodes with a number behind them
    b"\x80": "<B", b"\x95": "<Q", b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d",
    b"h": "<B", b"j": "<I", b"q": "<B", b"r": "<I",
}  # fmt: skip
_COUNTED = {  # opcodes with a length and that many bytes behind them
    b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x8a": "<B",
}  # fmt: skip
_CONSTANTS: dict[bytes, object] = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_CONTAINERS: dict[bytes, Callable[[], object]] = {b"]": list, b"}": dict, b"\x8f": set}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_OPCODES = [bytes([code]) for code in range(256)]
_OPCODE_NAMES = {op.code: op.name for op in pickletools.opcodes}
_MAX_NAME = 200  # bytes in one half of a global's name


class Machine:
    """Runs one pickle of protocol 2 to 5, without out-of-band buffers, from `data[start:]`.

    Args:
        names: the globals that the file may use, by (module, name).
        budget: operations and memory that are left; shared by nested pickles.
        persistent: what BINPERSID makes of an id; None refuses it.
        kind: what the file should be, for messages.
        python2: admit Python 2's byte strings: those below 256 bytes become text (latin-1), longer ones bytes.
    """

    def __init__(
        self,
        data: memoryview,
        names: Mapping[tuple[str, str], Global],
        budget: Budget,
        *,
        start: int = 0,
        persistent: Callable[[object], object] | None = None,
        kind: str = "network",
        python2: bool = False,
    ) -> None:
        self.data, self.at, self.names, self.budget, self.persistent = data, start, names, budget, persistent
        self.kind, self.python2 = kind, python2
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """The object that the pickle describes; `at` is then the position behind it. Raises UserError."""
        if bytes(self._take(1)) != b"\x80" or not 2 <= self._take(1)[0] <= 5:
            raise UserError("not a pickle of protocol 2 to 5")
        while (op := self._opcode()) != b".":
            self.budget.step()
            if op in _CONSTANTS:
                self.stack.append(_CONSTANTS[op])
            elif op in _CONTAINERS:
                self.stack.append(_CONTAINERS[op]())
            elif op in _FIXED:
                self._number(op)
            elif op in _COUNTED:
                self._counted(op)
            elif op in _TUPLES:
                items = [self._pop() for _ in range(_TUPLES[op])]
                self.stack.append(tuple(reversed(items)))
            else:
                self._act(op)
        return self._pop()

    def _act(self, op: bytes) -> None:
        match op:
            case b"(":
                self.stack.append(_MARK)
            case b"\x94":  # MEMOIZE
                self.memo[len(self.memo)] = self._top()
            case b"t":
                self.stack.append(tuple(self._to_mark()))
            case b"a":
                self._extend([self._pop()])
            case b"e" | b"\x90":  # APPENDS, ADDITEMS
                self._extend(self._to_mark())
            case b"s":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case b"u":
                self._set_items(self._to_mark())
            case b"c":
                self._global(self._line(), self._line())
            case b"\x93":  # STACK_GLOBAL
                name, module = self._pop(), self._pop()
                self._global(module, name)
            case b"R":
                arguments, function = self._pop(), self._pop()
                self._reduce(function, arguments)
            case b"\x81":  # NEWOBJ
                arguments, cls = self._pop(), self._pop()
                if not isinstance(cls, Global) or cls.new is None or not _is_empty(arguments):
                    raise UserError(f"refused: the pickle builds an object that no {self.kind} needs")
                self.stack.append(cls.new())
            case b"b":
                state, record = self._pop(), self._top()
                if not isinstance(record, Record):
                    raise UserError("refused: the pickle sets the state of an object that must not have one")
                record.build(state)
            case b"Q" if self.persistent is not None:
                self.stack.append(self.persistent(self._pop()))
            case b"U" if self.python2:  # SHORT_BINSTRING
                self.stack.append(bytes(self._take(self._take(1)[0])).decode("latin-1"))
            case b"T" if self.python2:  # BINSTRING
                self.stack.append(self._take(struct.unpack("<I", self._take(4))[0]))
            case _:
                name = _OPCODE_NAMES.get(op.decode("latin-1"), f"an unknown opcode {op!r}")
                raise UserError(f"refused: the pickle uses {name}, which no {self.kind} needs; nothing was run")

    def _number(self, op: bytes) -> None:
        form = _FIXED[op]
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        if op in b"KMJG":
            self.stack.append(value)
        elif op in b"hj":
            if value not in self.memo:
                raise UserError("damaged pickle: it refers to an object that it has not described")
            self.stack.append(self.memo[value])
        elif op in b"qr":
            self.memo[value] = self._top()
        elif op == b"\x80":
            raise UserError("damaged pickle: a second beginning")

    def _counted(self, op: bytes) -> None:
        form = _COUNTED[op]
        (length,) = struct.unpack(form, self._take(struct.calcsize(form)))
        content = self._take(length)
        if op in b"CB\x8e":
            self.stack.append(content)
        elif op == b"\x8a":
            if length > 16:
                raise UserError("refused: the pickle holds an absurdly large number")
            self.stack.append(int.from_bytes(content, "little", signed=True))
        else:
            self.stack.append(_text(content))

    def _reduce(self, function: object, arguments: object) -> None:
        if not isinstance(function, Global) or function.call is None or not isinstance(arguments, tuple):
            what = shown(function.name) if isinstance(function, Global) else "an object that is not a function"
            raise UserError(f"refused: the pickle calls {what}, which no {self.kind} needs")
        self.stack.append(function.call(arguments))

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UserError("damaged or hostile pickle: the name of a global is not text")
        if (module, name) not in self.names:
            raise UserError(
                f"refused: the pickle asks for {shown(f'{module}.{name}')}, which no {self.kind} needs; nothing was run"
            )
        self.stack.append(self.names[module, name])

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set) and all(isinstance(item, (str, int)) for item in items):
            target.update(items)
        else:
            raise UserError("damaged or hostile pickle: items for an object that takes none")

    def _set_items(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise UserError("damaged or hostile pickle: entries for an object that takes none")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):  # hashing anything deeper is the file's to make expensive
                raise UserError("refused: the pickle has a dictionary key that is neither text nor a number")
            target[key] = value

    def _take(self, length: int) -> memoryview:
        if length > len(self.data) - self.at:
            raise self._cut_short()
        self.at += length
        return self.data[self.at - length : self.at]

    def _cut_short(self) -> UserError:
        return UserError(f"the file is cut short (or no {self.kind} pickle); fetch it again")

    def _opcode(self) -> bytes:
        if self.at >= len(self.data):
            raise self._cut_short()
        self.at += 1
        return _OPCODES[self.data[self.at - 1]]

    def _line(self) -> str:
        window = bytes(self.data[self.at : self.at + _MAX_NAME])
        if b"\n" not in window:
            raise UserError("damaged or hostile pickle: the name of a global has no end")
        line = window[: window.index(b"\n")]
        self.at += len(line) + 1
        return _text(line)

    def _pop(self) -> object:
        value = self._top()
        self.stack.pop()
        return value

    def _top(self) -> object:
        if not self.stack or self.stack[-1] is _MARK:
            raise UserError("damaged pickle: it takes an object that is not there")
        return self.stack[-1]

    def _to_mark(self) -> list[object]:
        items: list[object] = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise UserError("damaged pickle: a group without a beginning")
        self.stack.pop()
        items.reverse()
        return items


def _is_empty(arguments: object) -> bool:
    return isinstance(arguments, tuple) and not arguments


def _text(content: memoryview | bytes) -> str:
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("damaged pickle: text that is not UTF-8") from None
