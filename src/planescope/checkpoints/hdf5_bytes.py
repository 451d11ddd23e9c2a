"""What is read of an HDF5 file without the HDF5 library, which does not survive all damage.

A wrong size in the global heap, where texts of variable length lie, makes the library (2.0) loop
for ever, a wrong type of text ends the process, and a free list of a group's heap that runs in a
circle takes all memory. So texts are read here, and groups checked before the library sees them.
Layout: "HDF5 File Format Specification Version 3.0", II.A, III.D, III.E and IV.A.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAGIC = b"\x89HDF\r\n\x1a\n"

MAX_BLOCKS = 64  # of an object's header, which has one or two
BLOCK_BYTES = 1 << 25  # of a header or a heap; the longest is the heap with the model's config
TOTAL_BYTES = 1 << 30  # of them all, which a file may refer to again and again

_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x0C, 0x10, 0x11  # messages
_FIXED, _VARIABLE = 3, 9  # classes of datatypes
_END_OF_FREE = 1


class _Attribute(NamedTuple):
    name: bytes
    datatype: bytes
    elements: int
    values: bytes


class Objects:
    """The objects of a file, by the addresses of their headers.

    All raise ValueError or struct.error where the bytes are not what the format wants.

    Parameters
    ----------
    read : callable
        (address, length) -> that many bytes of the file; raises where it does not have them.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._left = TOTAL_BYTES
        self._collection = functools.lru_cache(maxsize=8)(self._read_collection)

    def check_root(self) -> None:
        """Check the superblock, and the root's header and heap."""
        block = self._read(0, 100)
        if not block.startswith(MAGIC):
            raise ValueError("no HDF5 signature")
        old = block[8] < 2
        if tuple(block[13:15] if old else block[9:11]) != (8, 8):
            raise ValueError("its addresses do not have 8 bytes")
        if old:
            root, cached, heap = struct.unpack_from("<QI12xQ", block, 64 + 4 * block[8])
            if cached == 1:
                self._check_heap(heap)
        else:
            (root,) = struct.unpack_from("<Q", block, 36)
        self.check(root)

    def check(self, address: int) -> None:
        """Check an object's header, and if it is a group's its heap of names."""
        for kind, message in self._messages(address):
            if kind == _SYMBOL_TABLE:
                self._check_heap(struct.unpack_from("<8xQ", message)[0])

    def _check_heap(self, address: int) -> None:
        size, free, data = struct.unpack("<8xQQQ", self._read(address, 32))
        seen: set[int] = set()
        while free != _END_OF_FREE and free < size:
            if free in seen:
                raise ValueError("a free list in a circle")
            seen.add(free)
            (free,) = struct.unpack("<Q", self._read(data + free, 8))

    def texts(self, address: int, name: str) -> list[str] | None:
        """Texts of an attribute of an object.

        None if there is no such attribute; empty if it is no text.
        """
        for kind, message in self._messages(address):
            if kind == _ATTRIBUTE:
                attribute = _parsed(message)
                if attribute.name == name.encode():
                    return [text.decode(errors="replace") for text in self._texts(attribute)]
        return None

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Messages of an object header, of either version, with their kinds."""
        head = self._read(address, 16)
        newer = head.startswith(b"OHDR")
        if newer:
            flags = head[5]
            begin = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(begin + width, int.from_bytes(self._read(begin, width), "little"))]
            layout = struct.Struct("<BHB2x" if flags & 4 else "<BHB")
        else:
            blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
            layout = struct.Struct("<HHB3x")
        for number, (begin, size) in enumerate(blocks):
            block = self._block(begin, size)
            if newer and number:  # between a signature and a checksum
                block = block[4:-4]
            at = 0
            while at + layout.size <= len(block):
                kind, length, _ = layout.unpack_from(block, at)
                at += layout.size
                message = block[at : at + length]
                at += length
                yield kind, message
                if kind == _CONTINUATION and len(blocks) < MAX_BLOCKS:
                    blocks.append(struct.unpack_from("<QQ", message))

    def _block(self, address: int, size: int) -> bytes:
        self._left -= size
        if size > BLOCK_BYTES or self._left < 0:
            raise ValueError("too long a header or heap of texts")
        return self._read(address, size)

    def _texts(self, attribute: _Attribute) -> Iterator[bytes]:
        kind = attribute.datatype[0] & 15
        # A variable-length type has a kind of its own, of which text is one.
        if kind not in (_FIXED, _VARIABLE) or (
            kind == _VARIABLE and attribute.datatype[1] & 15 != 1
        ):
            return
        width = 16 if kind == _VARIABLE else int.from_bytes(attribute.datatype[4:8], "little")
        if attribute.elements * width > len(attribute.values):
            raise ValueError("an attribute claims more than it holds")
        for at in range(0, attribute.elements * width, width or 1):
            value = attribute.values[at : at + width]
            if kind == _VARIABLE:
                length, address, index = struct.unpack("<IQI", value)
                value = self._collection(address)[index][:length] if length else b""
            yield value.partition(b"\0")[0]

    def _read_collection(self, address: int) -> dict[int, bytes]:
        """Objects of one collection of the global heap, by their index."""
        signature, size = struct.unpack("<8sQ", self._read(address, 16))
        if signature != b"GCOL\1\0\0\0":
            raise ValueError("a heap of texts without its signature")
        block = self._block(address, size)
        objects: dict[int, bytes] = {}
        at = 16
        while at + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", block, at)
            if index == 0:  # what is free
                break
            objects[index] = block[at + 16 : at + 16 + length]
            at += 16 + _padded(length)
        return objects


def _parsed(message: bytes) -> _Attribute:
    version, flags, *sizes = struct.unpack_from("<BBHHH", message)
    at = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(message[at : at + size])
        at += _padded(size) if version == 1 else size
    name, datatype, space = parts
    # A datatype that is kept elsewhere, or none, is no text that Keras wrote.
    datatype = bytes(8) if flags & 3 or len(datatype) < 8 else datatype
    return _Attribute(name.partition(b"\0")[0], datatype, _count(space), message[at:])


def _count(space: bytes) -> int:
    """Number of elements in a dataspace."""
    version, rank, _, kind = struct.unpack_from("<4B", space)
    if version == 2 and kind == 2:  # null
        return 0
    return math.prod(struct.unpack_from(f"<{rank}Q", space, 4 if version == 2 else 8))


def _padded(size: int) -> int:
    return size + -size % 8
