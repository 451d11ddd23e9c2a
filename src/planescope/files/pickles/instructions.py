"""The instructions of pickles, of every protocol: each a function of the machine."""

from __future__ import annotations

import struct
from collections.abc import Callable

from planescope.files.errors import CheckpointError
from planescope.files.pickles.machine import Machine, as_text, hashable
from planescope.files.pickles.records import Call, Global, Persistent, Stretch, unquoted


def _text_or_stretch(operand: bytes | Stretch) -> object:
    return as_text(operand) if type(operand) is bytes else operand


def _string_or_stretch(machine: Machine, operand: bytes | Stretch) -> object:
    return machine.string(operand) if type(operand) is bytes else operand


_Instruction = Callable[[Machine], None]


def _unknown(m: Machine) -> None:
    raise m.damaged(f"has the unknown instruction 0x{m.data[m.at - 1]:02x}")


INSTRUCTIONS: list[_Instruction] = [_unknown] * 256


def _instruction(code: bytes) -> Callable[[_Instruction], _Instruction]:
    def register(function: _Instruction) -> _Instruction:
        INSTRUCTIONS[code[0]] = function
        return function

    return register


def _pushes(code: bytes, operand: Callable[[Machine], object]) -> None:
    """Register an instruction that pushes what `operand` reads, and does nothing else."""

    @_instruction(code)
    def push(m: Machine) -> None:
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

_pushes(b"X", lambda m: _text_or_stretch(m.operand(4, "utf-8")))
_pushes(b"\x8c", lambda m: as_text(m.take(m.number(1))))
_pushes(b"\x8d", lambda m: _text_or_stretch(m.operand(8, "utf-8")))
_pushes(b"B", lambda m: m.operand(4))
_pushes(b"C", lambda m: m.take(m.number(1)))
_pushes(b"\x8e", lambda m: m.operand(8))
_pushes(b"\x96", lambda m: m.operand(8))
# What Python 2 called str: text or bytes, and nothing tells which.
_pushes(b"T", lambda m: _string_or_stretch(m, m.operand(4)))
_pushes(b"U", lambda m: m.string(m.take(m.number(1))))

_pushes(b"t", lambda m: tuple(m.to_mark()))
_pushes(b"l", lambda m: m.to_mark())
_pushes(b"\x91", lambda m: frozenset(map(hashable, m.to_mark())))
_pushes(b"\x85", lambda m: (m.stack.pop(),))
_pushes(b"2", lambda m: m.stack[-1])
_pushes(b"c", lambda m: Global(as_text(m.line()), as_text(m.line())))


@_instruction(b"I")
def _int_line(m: Machine) -> None:
    text = m.line()
    # Protocol 0 has no booleans of its own; it writes them with a leading zero.
    m.stack.append(text == b"01" if text in (b"00", b"01") else m.decimal(text))


@_instruction(b"F")
def _float_line(m: Machine) -> None:
    text = m.line()
    try:
        m.stack.append(float(text))
    except ValueError:
        raise m.damaged("has a number that cannot be read") from None


@_instruction(b"V")
def _unicode_line(m: Machine) -> None:
    if (stretch := m.long_line("raw-unicode-escape")) is not None:
        m.stack.append(stretch)
        return
    try:
        text = m.line().decode("raw-unicode-escape")
    except UnicodeDecodeError:
        raise m.damaged("has text with a broken escape") from None
    m.stack.append(as_text(text.encode("utf-8", "surrogatepass")))


@_instruction(b"S")
def _string_line(m: Machine) -> None:
    if (stretch := m.long_line("string-escape")) is not None:
        m.stack.append(stretch)
        return
    try:
        m.stack.append(m.string(unquoted(m.line())))
    except ValueError:
        raise m.damaged("has a string without quotes") from None


@_instruction(b"(")
def _mark(m: Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


@_instruction(b"0")
def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.to_mark()


@_instruction(b"1")
def _pop_mark(m: Machine) -> None:
    m.to_mark()


@_instruction(b"\x86")
def _pair(m: Machine) -> None:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)


@_instruction(b"\x87")
def _triple(m: Machine) -> None:
    last, middle = m.stack.pop(), m.stack.pop()
    m.stack[-1] = (m.stack[-1], middle, last)


@_instruction(b"a")
def _append(m: Machine) -> None:
    m.append([m.stack.pop()])


@_instruction(b"\x90")  # to a set; both kinds add all down to the mark
@_instruction(b"e")
def _appends(m: Machine) -> None:
    m.append(m.to_mark())


@_instruction(b"d")
def _dict(m: Machine) -> None:
    items = m.to_mark()
    m.stack.append({})
    m.store(items)


@_instruction(b"s")
def _set_item(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.store([key, value])


@_instruction(b"u")
def _set_items(m: Machine) -> None:
    m.store(m.to_mark())


@_instruction(b"p")
def _put(m: Machine) -> None:
    m.remember(m.decimal(m.line()))


@_instruction(b"q")
def _put_1(m: Machine) -> None:
    m.remember(m.take(1)[0])


@_instruction(b"r")
def _put_4(m: Machine) -> None:
    m.remember(m.number(4))


@_instruction(b"\x94")
def _memoize(m: Machine) -> None:
    m.remember(len(m.memo))


@_instruction(b"g")
def _get(m: Machine) -> None:
    m.recall(m.decimal(m.line()))


@_instruction(b"h")
def _get_1(m: Machine) -> None:
    m.recall(m.take(1)[0])


@_instruction(b"j")
def _get_4(m: Machine) -> None:
    m.recall(m.number(4))


@_instruction(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise m.damaged("names a global by something other than text")
    m.stack.append(Global(module, name))


@_instruction(b"i")
def _inst(m: Machine) -> None:
    function = Global(as_text(m.line()), as_text(m.line()))
    args = tuple(m.to_mark())
    m.stack.append(Call(function, args))


@_instruction(b"o")
def _obj(m: Machine) -> None:
    items = m.to_mark()
    m.stack.append(Call(items[0], tuple(items[1:])))


@_instruction(b"\x81")  # an object made without __init__ is the same record
@_instruction(b"R")
def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = Call(m.stack[-1], args)


@_instruction(b"\x92")
def _new_object_ex(m: Machine) -> None:
    m.stack.pop()
    _reduce(m)


@_instruction(b"b")
def _build(m: Machine) -> None:
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
def _persistent_line(m: Machine) -> None:
    m.persistent.append(Persistent(as_text(m.line())))
    m.stack.append(m.persistent[-1])


@_instruction(b"Q")
def _persistent(m: Machine) -> None:
    m.persistent.append(Persistent(m.stack.pop()))
    m.stack.append(m.persistent[-1])


@_instruction(b"\x82")
@_instruction(b"\x83")
@_instruction(b"\x84")
def _extension(m: Machine) -> None:
    raise CheckpointError(
        f"{m.where}: the pickle names objects by codes of its writer's extension registry, which "
        "nobody else knows; save the model's state dict alone"
    )


@_instruction(b"\x97")
def _next_buffer(m: Machine) -> None:
    raise CheckpointError(
        f"{m.where}: the pickle keeps data in buffers outside the file; save it without them"
    )


@_instruction(b"\x80")
def _protocol(m: Machine) -> None:
    m.take(1)


@_instruction(b"\x95")
def _frame(m: Machine) -> None:
    m.take(8)  # frames speed up reading from a pipe; nothing depends on them


@_instruction(b"\x98")
def _read_only(m: Machine) -> None:
    """Do nothing: all that was read is as good as read-only."""
