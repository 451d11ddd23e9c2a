"""The stack machine that a pickle is a program for; it imports and calls nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError
from planescope.files.pickles.records import Call, Key, Persistent, Stretch

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

_STOP = ord(".")


class Machine:
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
        self.string: Callable[[bytes], object] = bytes if raw_strings else as_text
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, object] = {}
        self.persistent: list[Persistent] = []

    def run(self, instructions: Sequence[Callable[[Machine], None]]) -> object:
        """Follow the stream to its stop; return what is then on the stack."""
        data, end = self.data, self.end
        try:
            for _ in range(MAX_INSTRUCTIONS):
                at = self.at
                if at >= end:
                    raise self.damaged("ends without a stop instruction")
                self.at = at + 1
                if data[at] == _STOP:
                    return self.stack.pop()
                instructions[data[at]](self)
        except IndexError:  # of the stack: each instruction takes its own operands
            raise self.damaged("takes from an empty stack") from None
        raise CheckpointError(
            f"{self.where}: the pickle has more than {MAX_INSTRUCTIONS} instructions; save the "
            "model's state dict alone"
        )

    def damaged(self, how: str) -> CheckpointError:
        """Return the error that says how the pickle is damaged."""
        return CheckpointError(
            f"{self.where}: the pickle is damaged: before byte {self.at} it {how}; "
            "is the download complete?"
        )

    def take(self, length: int) -> bytes:
        """Read so many bytes."""
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
        """Count bytes that are copied against what one pickle may hold."""
        self.left -= length
        if self.left < 0:
            raise CheckpointError(
                f"{self.where}: the pickle has more than {MAX_BYTES} bytes of texts; save the "
                "model's state dict alone"
            )

    def number(self, size: int) -> int:
        """Read an unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        """Read to the end of the line, without it."""
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
        """Return the integer that a text writes."""
        if len(text) > MAX_INTEGER_BYTES:
            raise self.damaged(f"has a number of {len(text)} digits")
        try:
            return int(text)
        except ValueError:
            raise self.damaged("has a number that cannot be read") from None

    def integer(self, size: int) -> int:
        """Read a signed integer of so many bytes."""
        if size > MAX_INTEGER_BYTES:
            raise self.damaged(f"has an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def to_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        if not self.marks:
            raise self.damaged("wants a mark that was never set")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        """Keep what is on top of the stack under a number."""
        if not 0 <= index <= len(self.memo) + MEMO_GAP:
            raise self.damaged(f"remembers object {index} as its {len(self.memo)}th")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push what was kept under a number."""
        if index not in self.memo:
            raise self.damaged(f"recalls object {index}, which it never remembered")
        self.stack.append(self.memo[index])

    def append(self, elements: list[Any]) -> None:
        """Put elements into what is on top of the stack."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(elements)
        elif type(target) is Call:
            target.elements.extend(elements)
        elif type(target) is set:
            target.update(map(hashable, elements))
        else:
            raise self.damaged(f"appends to a {type(target).__name__}")

    def store(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into what is on top of the stack."""
        target = self.stack[-1]
        if len(items) % 2:
            raise self.damaged("has a dictionary key without a value")
        if type(target) is Call:
            target = target.items
        elif type(target) is not dict:
            raise self.damaged(f"stores items in a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else hashable(key)] = value


def hashable(value: object) -> object:
    """Return what stands for a value as a key: text and bytes do themselves."""
    return value if type(value) is str or type(value) is bytes else Key(value)


def as_text(raw: bytes) -> str:
    """Return the text; lone surrogates, which cannot be printed, as escapes."""
    return raw.decode("utf-8", "backslashreplace")
