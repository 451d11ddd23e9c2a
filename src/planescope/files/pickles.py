"""Pickle streams to inert data.

A pickle is a program for a small stack machine that may import and call anything. This machine
does neither: what a pickle names becomes a `Global`, what it would call a `Call`, and plain data
itself. `pickle.Unpickler` with restricted globals is not enough for a file of a stranger: it takes
memory by numbers in the stream and hashes keys that were made to collide.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError

if TYPE_CHECKING:
    from mmap import mmap

# A pickle describes tensors; the 6,000 of a large network take 1 MB and 200,000 instructions. An
# instruction takes at most about 100 bytes of memory beyond those of the stream.
MAX_BYTES = 1 << 29
MAX_INSTRUCTIONS = 1 << 23

# Longer operands stay in the file where `read_pickle` is asked for that: texts, which may be names,
# and bytes, which are values.
STRETCH_TEXT = 1024
STRETCH_BYTES = 255

# Decimal text converts in quadratic time, and Python refuses to print more than 4,300 digits.
MAX_INTEGER_BYTES = 1024

# Writers number what they remember 0, 1, 2, ...; free numbers could be made to collide in a dict.
MEMO_GAP = 1 << 16


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that the stream names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """A call of `function` with `args` that was not made; keyword arguments are dropped.

    Attributes
    ----------
    state : object
        What the stream would set on the result; None if nothing.
    items : dict
        What it would put into the result as a mapping.
    elements : list
        What it would append or add to the result.
    """

    function: object
    args: object
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Persistent:
    """An object that is stored outside the stream, under `id`."""

    id: object


@dataclass(frozen=True, eq=False, slots=True)
class Key:
    """A dictionary key or set element that is neither text nor bytes, compared by identity.

    Python randomises the hashes of text and bytes alone; numbers and tuples can be made to collide,
    and hashing a tuple of tuples recurses.
    """

    value: object


@dataclass(frozen=True, eq=False, slots=True)
class Stretch:
    """A long operand that stays in the file.

    Attributes
    ----------
    begin, length : int
        Where its bytes lie.
    form : {"bytes", "utf-8", "raw-unicode-escape", "string-escape"}
        How the stream writes it: as bytes, as text of two kinds, or quoted as in Python 2.
    """

    begin: int
    length: int
    form: str = "bytes"


@dataclass(frozen=True, eq=False, slots=True)
class Pickled:
    """The contents of a stream: its value, its persistent objects, and the offset behind it."""

    value: object
    persistent: list[Persistent]
    end: int


def read_pickle(
    data: bytes | mmap,
    offset: int = 0,
    *,
    where: str,
    raw_strings: bool = False,
    stretches: bool = False,
    behind: Callable[[Call, int], Stretch | None] | None = None,
) -> Pickled:
    """Read the pickle at `offset`, of any protocol, without executing anything in it.

    Parameters
    ----------
    where : str
        File (and member), for messages.
    raw_strings : bool
        Give the strings of Python 2 as bytes: there one type held text and bytes.
    stretches : bool
        Leave bytes of more than `STRETCH_BYTES`, and texts of more than `STRETCH_TEXT`, in the
        file; the stream may then be as long as the file is.
    behind : callable, optional
        Record whose state was set, and the offset behind it -> bytes of another kind that stand
        there in the stream and belong to it; they become the last of its `elements`.

    Returns
    -------
    Pickled
        None, bool, int, float, str, bytes (for bytearray too), list, tuple, dict, set and frozenset
        as they are, all else as the records of this module. Lone surrogates in text, and bytes of
        Python 2 that are not UTF-8, come as backslash escapes.

    Raises
    ------
    CheckpointError
        If the stream is cut short, damaged or out of all proportion, or uses the extension registry
        or out-of-band buffers.
    """
    machine = _Machine(data, offset, where, raw_strings=raw_strings, stretches=stretches)
    machine.behind = behind
    value = machine.run()
    return Pickled(value, machine.persistent, machine.at)


class _Machine:
    """The state of the stack machine; the instructions are the functions below."""

    def __init__(
        self, data: bytes | mmap, offset: int, where: str, *, raw_strings: bool, stretches: bool
    ) -> None:
        self.data = data
        self.at = offset
        self.end = len(data) if stretches else min(len(data), offset + MAX_BYTES)
        self.stretches = stretches
        self.left = MAX_BYTES  # of operands that are copied
        self.behind: Callable[[Call, int], Stretch | None] | None = None
        self.where = where
        self.string: Callable[[bytes], object] = bytes if raw_strings else _text
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, object] = {}
        self.persistent: list[Persistent] = []

    def run(self) -> object:
        data, end = self.data, self.end
        try:
            for _ in range(MAX_INSTRUCTIONS):
                at = self.at
                if at >= end:
                    raise self.damaged("ends without a stop instruction")
                self.at = at + 1
                if data[at] == _STOP:
                    return self.stack.pop()
                _INSTRUCTIONS[data[at]](self)
        except IndexError:  # of the stack: each instruction takes its own operands
            raise self.damaged("takes from an empty stack") from None
        raise CheckpointError(
            f"{self.where}: the pickle has more than {MAX_INSTRUCTIONS} instructions; save the "
            "model's state dict alone"
        )

    def damaged(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: the pickle is damaged: before byte {self.at} it {how}; "
            "is the download complete?"
        )

    def take(self, length: int) -> bytes:
        begin = self.at
        if length > self.end - begin:
            raise self.damaged(f"wants {length} bytes where {max(self.end - begin, 0)} are left")
        self.at = begin + length
        return self.data[begin : self.at]

    def operand(self, width: int, form: str = "bytes") -> bytes | Stretch:
        """Return the operand behind its own length, of `width` bytes."""
        length = self.number(width)
        if self.stretches and length > (STRETCH_BYTES if form == "bytes" else STRETCH_TEXT):
            return self.stretch(length, form)
        found = self.take(length)
        self.spend(length)
        return found

    def stretch(self, length: int, form: str = "bytes") -> Stretch:
        """Step over bytes that stay in the file."""
        begin = self.at
        if length > self.end - begin:
            raise self.damaged(f"wants {length} bytes where {max(self.end - begin, 0)} are left")
        self.at = begin + length
        return Stretch(begin, length, form)

    def spend(self, length: int) -> None:
        self.left -= length
        if self.left < 0:
            raise CheckpointError(
                f"{self.where}: the pickle has more than {MAX_BYTES} bytes of texts; save the "
                "model's state dict alone"
            )

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        begin, end = self.at, self.data.find(b"\n", self.at, self.end)
        if end < 0:
            raise self.damaged("has a line without an end")
        self.at = end + 1
        self.spend(end - begin)
        return self.data[begin:end]

    def long_line(self, form: str) -> Stretch | None:
        """Return the rest of the line as a stretch where it is long, and they are wanted."""
        begin, end = self.at, self.data.find(b"\n", self.at, self.end)
        if not self.stretches or end - begin <= STRETCH_TEXT:
            return None
        self.at = end + 1
        return Stretch(begin, end - begin, form)

    def decimal(self, text: bytes) -> int:
        if len(text) > MAX_INTEGER_BYTES:
            raise self.damaged(f"has a number of {len(text)} digits")
        try:
            return int(text)
        except ValueError:
            raise self.damaged("has a number that cannot be read") from None

    def integer(self, size: int) -> int:
        if size > MAX_INTEGER_BYTES:
            raise self.damaged(f"has an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def to_mark(self) -> list[Any]:
        if not self.marks:
            raise self.damaged("wants a mark that was never set")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        if not 0 <= index <= len(self.memo) + MEMO_GAP:
            raise self.damaged(f"remembers object {index} as its {len(self.memo)}th")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged(f"recalls object {index}, which it never remembered")
        self.stack.append(self.memo[index])

    def append(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(elements)
        elif type(target) is Call:
            target.elements.extend(elements)
        elif type(target) is set:
            target.update(map(_hashable, elements))
        else:
            raise self.damaged(f"appends to a {type(target).__name__}")

    def store(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise self.damaged("has a dictionary key without a value")
        if type(target) is Call:
            target = target.items
        elif type(target) is not dict:
            raise self.damaged(f"stores items in a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else _hashable(key)] = value


def _hashable(value: object) -> object:
    return value if type(value) is str or type(value) is bytes else Key(value)


def _text(raw: bytes) -> str:
    # Lone surrogates cannot be printed, so no name may hold one.
    return raw.decode("utf-8", "backslashreplace")


def _as_text(operand: bytes | Stretch) -> object:
    return _text(operand) if type(operand) is bytes else operand


def _as_string(machine: _Machine, operand: bytes | Stretch) -> object:
    return machine.string(operand) if type(operand) is bytes else operand


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def _unescaped(match: re.Match[bytes]) -> bytes:
    """Return one escape as `repr` of Python 2 writes it."""
    code = match[1]
    return bytes.fromhex(code[1:].decode()) if len(code) == 3 else _ESCAPES.get(code, match[0])


def _unquoted(quoted: bytes) -> bytes:
    """Return the bytes of a string as `repr` of Python 2 writes it.

    Raises
    ------
    ValueError
        If it has no quotes.
    """
    quoted = quoted.strip()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    return _ESCAPE.sub(_unescaped, quoted[1:-1])


def stretch_bytes(raw: bytes, form: str, /) -> bytes:
    """Return the bytes that a stretch stands for: of text, those of its characters in Latin-1.

    Raises
    ------
    ValueError
        If it cannot be that.
    """
    if form == "bytes":
        return raw
    if form == "string-escape":
        return _unquoted(raw)
    return raw.decode(form).encode("latin-1")


_Instruction = Callable[[_Machine], None]
_STOP = ord(".")


def _unknown(m: _Machine) -> None:
    raise m.damaged(f"has the unknown instruction 0x{m.data[m.at - 1]:02x}")


_INSTRUCTIONS: list[_Instruction] = [_unknown] * 256


def _instruction(code: bytes) -> Callable[[_Instruction], _Instruction]:
    def register(function: _Instruction) -> _Instruction:
        _INSTRUCTIONS[code[0]] = function
        return function

    return register


def _pushes(code: bytes, operand: Callable[[_Machine], object]) -> None:
    """Instruction that pushes what `operand` reads, and does nothing else."""

    @_instruction(code)
    def push(m: _Machine) -> None:
        value = operand(m)  # before `m.stack` is looked up: a mark changes it
        m.stack.append(value)


_pushes(b"N", lambda _: None)
_pushes(b"\x88", lambda _: True)
_pushes(b"\x89", lambda _: False)
_pushes(b")", lambda _: ())
_pushes(b"]", lambda _: [])
_pushes(b"}", lambda _: {})
_pushes(b"\x8f", lambda _: set())

_pushes(b"K", lambda m: m.take(1)[0])
_pushes(b"M", lambda m: m.number(2))
_pushes(b"J", lambda m: m.integer(4))
_pushes(b"\x8a", lambda m: m.integer(m.number(1)))
_pushes(b"\x8b", lambda m: m.integer(m.number(4)))
_pushes(b"L", lambda m: m.decimal(m.line().removesuffix(b"L")))
_pushes(b"G", lambda m: struct.unpack(">d", m.take(8))[0])

_pushes(b"X", lambda m: _as_text(m.operand(4, "utf-8")))
_pushes(b"\x8c", lambda m: _text(m.take(m.number(1))))
_pushes(b"\x8d", lambda m: _as_text(m.operand(8, "utf-8")))
_pushes(b"B", lambda m: m.operand(4))
_pushes(b"C", lambda m: m.take(m.number(1)))
_pushes(b"\x8e", lambda m: m.operand(8))
_pushes(b"\x96", lambda m: m.operand(8))
# What Python 2 called str: text or bytes, and nothing tells which.
_pushes(b"T", lambda m: _as_string(m, m.operand(4)))
_pushes(b"U", lambda m: m.string(m.take(m.number(1))))

_pushes(b"t", lambda m: tuple(m.to_mark()))
_pushes(b"l", lambda m: m.to_mark())
_pushes(b"\x91", lambda m: frozenset(map(_hashable, m.to_mark())))
_pushes(b"\x85", lambda m: (m.stack.pop(),))
_pushes(b"2", lambda m: m.stack[-1])
_pushes(b"c", lambda m: Global(_text(m.line()), _text(m.line())))


@_instruction(b"I")
def _int_line(m: _Machine) -> None:
    text = m.line()
    # Protocol 0 has no booleans of its own; it writes them with a leading zero.
    m.stack.append(text == b"01" if text in (b"00", b"01") else m.decimal(text))


@_instruction(b"F")
def _float_line(m: _Machine) -> None:
    text = m.line()
    try:
        m.stack.append(float(text))
    except ValueError:
        raise m.damaged("has a number that cannot be read") from None


@_instruction(b"V")
def _unicode_line(m: _Machine) -> None:
    if (stretch := m.long_line("raw-unicode-escape")) is not None:
        m.stack.append(stretch)
        return
    try:
        text = m.line().decode("raw-unicode-escape")
    except UnicodeDecodeError:
        raise m.damaged("has text with a broken escape") from None
    m.stack.append(_text(text.encode("utf-8", "surrogatepass")))


@_instruction(b"S")
def _string_line(m: _Machine) -> None:
    if (stretch := m.long_line("string-escape")) is not None:
        m.stack.append(stretch)
        return
    try:
        m.stack.append(m.string(_unquoted(m.line())))
    except ValueError:
        raise m.damaged("has a string without quotes") from None


@_instruction(b"(")
def _mark(m: _Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


@_instruction(b"0")
def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.to_mark()


@_instruction(b"1")
def _pop_mark(m: _Machine) -> None:
    m.to_mark()


@_instruction(b"\x86")
def _pair(m: _Machine) -> None:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)


@_instruction(b"\x87")
def _triple(m: _Machine) -> None:
    last, middle = m.stack.pop(), m.stack.pop()
    m.stack[-1] = (m.stack[-1], middle, last)


@_instruction(b"a")
def _append(m: _Machine) -> None:
    m.append([m.stack.pop()])


@_instruction(b"\x90")  # to a set; both kinds add all down to the mark
@_instruction(b"e")
def _appends(m: _Machine) -> None:
    m.append(m.to_mark())


@_instruction(b"d")
def _dict(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append({})
    m.store(items)


@_instruction(b"s")
def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.store([key, value])


@_instruction(b"u")
def _set_items(m: _Machine) -> None:
    m.store(m.to_mark())


@_instruction(b"p")
def _put(m: _Machine) -> None:
    m.remember(m.decimal(m.line()))


@_instruction(b"q")
def _put_1(m: _Machine) -> None:
    m.remember(m.take(1)[0])


@_instruction(b"r")
def _put_4(m: _Machine) -> None:
    m.remember(m.number(4))


@_instruction(b"\x94")
def _memoize(m: _Machine) -> None:
    m.remember(len(m.memo))


@_instruction(b"g")
def _get(m: _Machine) -> None:
    m.recall(m.decimal(m.line()))


@_instruction(b"h")
def _get_1(m: _Machine) -> None:
    m.recall(m.take(1)[0])


@_instruction(b"j")
def _get_4(m: _Machine) -> None:
    m.recall(m.number(4))


@_instruction(b"\x93")
def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise m.damaged("names a global by something other than text")
    m.stack.append(Global(module, name))


@_instruction(b"i")
def _inst(m: _Machine) -> None:
    function = Global(_text(m.line()), _text(m.line()))
    args = tuple(m.to_mark())
    m.stack.append(Call(function, args))


@_instruction(b"o")
def _obj(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append(Call(items[0], tuple(items[1:])))


@_instruction(b"\x81")  # an object made without __init__ is the same record
@_instruction(b"R")
def _reduce(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = Call(m.stack[-1], args)


@_instruction(b"\x92")
def _new_object_ex(m: _Machine) -> None:
    m.stack.pop()
    _reduce(m)


@_instruction(b"b")
def _build(m: _Machine) -> None:
    state = m.stack.pop()
    if type(m.stack[-1]) is not Call:
        raise m.damaged(f"sets the state of a {type(m.stack[-1]).__name__}")
    record = m.stack[-1]
    record.state = state
    stretch = None if m.behind is None else m.behind(record, m.at)
    if stretch is not None:
        m.at = stretch.begin
        record.elements.append(m.stretch(stretch.length))


@_instruction(b"P")
def _persistent_line(m: _Machine) -> None:
    m.persistent.append(Persistent(_text(m.line())))
    m.stack.append(m.persistent[-1])


@_instruction(b"Q")
def _persistent(m: _Machine) -> None:
    m.persistent.append(Persistent(m.stack.pop()))
    m.stack.append(m.persistent[-1])


@_instruction(b"\x82")
@_instruction(b"\x83")
@_instruction(b"\x84")
def _extension(m: _Machine) -> None:
    raise CheckpointError(
        f"{m.where}: the pickle names objects by codes of its writer's extension registry, which "
        "nobody else knows; save the model's state dict alone"
    )


@_instruction(b"\x97")
def _next_buffer(m: _Machine) -> None:
    raise CheckpointError(
        f"{m.where}: the pickle keeps data in buffers outside the file; save it without them"
    )


@_instruction(b"\x80")
def _protocol(m: _Machine) -> None:
    m.take(1)


@_instruction(b"\x95")
def _frame(m: _Machine) -> None:
    m.take(8)  # frames speed up reading from a pipe; nothing depends on them


@_instruction(b"\x98")
def _read_only(m: _Machine) -> None:
    """All that was read is as good as read-only."""
