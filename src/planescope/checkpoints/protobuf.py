"""The wire format of protocol buffers, walked in place.

A message is a run of fields: a tag (field number and wire type), then a varint, 4 or 8 bytes, or a
length and that many bytes. Payloads are skipped, not read: walking a model of gigabytes reads a few
kilobytes of it. What a field means is the business of the format on top.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary

# Wire types. 3 and 4, groups, went out of use before any format that we read began.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_LENGTHS = {FIXED64: 8, FIXED32: 4}

# Bytes, of 7 bits each, that hold 64 bits.
_LONGEST_VARINT = 10

# Small, since behind each payload that is skipped the window is filled anew.
_WINDOW = 8192

# Some ten times what the largest published graphs have. Without a limit a file of nothing but
# two-byte fields would keep us busy for hours.
MAX_FIELDS = 2_000_000

# Where in the file a message or a payload lies: first byte, and first byte behind it.
Span = tuple[int, int]


class Field(NamedTuple):
    """One field of a message.

    `value` holds the bits of a varint or fixed number as an unsigned integer, 0 for bytes; `span`
    is where the payload lies.
    """

    number: int
    wire: int
    value: int
    span: Span


class WireFile:
    """A file of protocol buffers, open to be walked.

    Attributes
    ----------
    path : Path
    span : (int, int)
        All of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_binary(path)
        self.span: Span = (0, os.fstat(self._file.fileno()).st_size)
        self._window, self._window_begin = b"", 0
        self._walked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def fields(self, span: Span) -> Iterator[Field]:
        """Walk the fields of the message at `span`, which must lie inside the file.

        Raises
        ------
        CheckpointError
            At the first field that is damaged or reaches beyond the message.
        """
        offset, end = span
        while offset < end:
            self._count()
            start = offset
            tag, offset = self._varint(offset, end)
            number, wire = tag >> 3, tag & 7
            value = 0
            if wire == VARINT:
                value, stop = self._varint(offset, end)
            elif wire == BYTES:
                length, offset = self._varint(offset, end)
                stop = offset + length
            elif wire in _FIXED_LENGTHS:
                stop = offset + _FIXED_LENGTHS[wire]
            else:
                number = stop = 0
            if number == 0:
                raise CheckpointError(
                    f"{self.path}: no field begins at byte {start}; is it damaged?"
                )
            if stop > end:
                raise CheckpointError(
                    f"{self.path}: a field at byte {start} wants {stop - offset} bytes where "
                    f"{end - offset} are left; is the download complete?"
                )
            if wire in _FIXED_LENGTHS:
                value = int.from_bytes(self._look(offset)[: stop - offset], "little")
            yield Field(number, wire, value, (offset, stop))
            offset = stop

    def find(self, span: Span, number: int) -> Field | None:
        """Return the first field of that number in a message; what follows it is not walked."""
        return next((field for field in self.fields(span) if field.number == number), None)

    def integers(self, field: Field) -> Iterator[int]:
        """Yield the signed integers of a repeated field: one by itself, or packed."""
        if field.wire == VARINT:
            yield signed(field.value)
        elif field.wire == BYTES:
            offset, end = field.span
            while offset < end:
                self._count()
                value, offset = self._varint(offset, end)
                yield signed(value)

    def payload(self, span: Span) -> bytes:
        """Return the payload of a field.

        Raises
        ------
        CheckpointError
            If the file has become shorter since it was opened.
        """
        begin, end = span
        at, stop = begin - self._window_begin, end - self._window_begin
        if at >= 0 and stop <= len(self._window):
            return self._window[at:stop]
        self._file.seek(begin)
        found = self._file.read(end - begin)
        if len(found) != end - begin:
            raise CheckpointError(f"{self.path}: ends early; is it still being written?")
        return found

    def text(self, field: Field) -> str:
        """Return the payload as text; a name that is no UTF-8 is no reason to refuse a file."""
        return self.payload(field.span).decode(errors="replace")

    def _count(self) -> None:
        self._walked += 1
        if self._walked > MAX_FIELDS:
            raise CheckpointError(
                f"{self.path}: more than {MAX_FIELDS} fields, beyond any real model; is it damaged?"
            )

    def _look(self, offset: int) -> bytes:
        """Return enough bytes from `offset` on for one varint or fixed number.

        Fewer at the file's end.
        """
        at = offset - self._window_begin
        if not 0 <= at <= len(self._window) - _LONGEST_VARINT:
            self._file.seek(offset)
            self._window, self._window_begin = self._file.read(_WINDOW), offset
            at = 0
        return self._window[at : at + _LONGEST_VARINT]

    def _varint(self, offset: int, end: int) -> tuple[int, int]:
        """Return the integer at `offset`, and the offset behind it."""
        at = offset - self._window_begin
        if 0 <= at < len(self._window) and offset < end and self._window[at] < 0x80:
            return self._window[at], offset + 1  # most are short, and this is the innermost loop
        value = 0
        for count, byte in enumerate(self._look(offset)[: end - offset]):
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value & (1 << 64) - 1, offset + count + 1
        raise CheckpointError(
            f"{self.path}: the number at byte {offset} does not end; is the download complete?"
        )


class WireBytes(WireFile):
    """Protocol buffers in memory, which were part of the file at `path`."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._file = io.BytesIO(data)
        self.span = (0, len(data))
        self._window, self._window_begin = b"", 0
        self._walked = 0


def signed(value: int) -> int:
    """Return two's complement of 64 bits, as protocol buffers store int32, int64 and enums."""
    return value - (1 << 64) if value >> 63 else value


def unpack_varints(packed: np.ndarray) -> np.ndarray:
    """Return the integers of a packed field, as uint64.

    Parameters
    ----------
    packed : array of uint8, 1-D
        The payload.

    Raises
    ------
    ValueError
        If an integer has more than 10 bytes or the last one does not end.
    """
    ends = np.flatnonzero(packed < 0x80) + 1
    starts = np.concatenate(([0], ends[:-1]))[: ends.size]
    lengths = ends - starts
    if packed.size and (packed[-1] >= 0x80 or lengths.max() > _LONGEST_VARINT):
        raise ValueError("a packed integer does not end")
    values = np.zeros(ends.size, dtype=np.uint64)
    for count in range(int(lengths.max(initial=0))):
        longer = lengths > count
        septets = packed[starts[longer] + count].astype(np.uint64) & 0x7F
        values[longer] |= septets << np.uint64(7 * count)
    return values
