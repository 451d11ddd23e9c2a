"""The objects of an HDF5 file: headers, groups and texts, from its bytes.

The HDF5 library does not survive the files of a stranger: a wrong size in the global heap makes it
(2.0) loop for ever, a wrong type of text ends the process, a free list in a circle takes all
memory, and more of the kind stands in its list of open issues. So it is not used: what Keras needs
of the format is small. Each structure is read once, within the file, and all of them together
within a budget, so that none can be made to end nowhere. The price is this module and the two
beside it, 860 lines: no file of 100,000 damaged ones crashes, hangs or takes more memory than it
may. Another reader would have to show the same.
Layout: "HDF5 File Format Specification Version 3.0", II.A, III.A, III.C to III.E and IV.A.
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
MAX_MESSAGES = 1 << 22  # of all headers that are read; a layer has some 30
MAX_LINKS = 1 << 18

# Kinds of messages.
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT = 0x01, 0x02, 0x03, 0x06, 0x07, 0x08
FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 0x0B, 0x0C, 0x10, 0x11, 0x15

_FIXED, _VARIABLE = 3, 9  # classes of datatypes
_SOFT_LINK = 2  # what an entry of a group may cache
_SHARED = 0x02  # flag of a message that is kept elsewhere
UNDEFINED = (1 << 64) - 1


class Link(NamedTuple):
    """A name in a group; `address` is that of an object's header, None where it is elsewhere."""

    name: bytes
    address: int | None


class _Attribute(NamedTuple):
    name: bytes
    datatype: bytes
    elements: int
    values: bytes


class Objects:
    """The objects of a file, by the addresses of their headers.

    All raise ValueError, LookupError or struct.error where the bytes are not what the format wants.

    Parameters
    ----------
    read : callable
        (address, length) -> that many bytes of the file; raises where it does not have them.
    size : int
        Bytes of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.read = read
        self.size = size
        self._bytes_left = TOTAL_BYTES
        self._messages_left = MAX_MESSAGES
        self._links_left = MAX_LINKS
        self._collection = functools.lru_cache(maxsize=8)(self._read_collection)

    def root(self) -> int:
        """Return the address of the group that holds all others."""
        block = self.read(0, 96)
        if not block.startswith(MAGIC):
            raise ValueError("no HDF5 signature")
        old = block[8] < 2
        if tuple(block[13:15] if old else block[9:11]) != (8, 8):
            raise ValueError("its addresses do not have 8 bytes")
        at = 64 + 4 * block[8] if old else 36
        return int.from_bytes(block[at : at + 8], "little")

    def messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of an object header, of either version, with their kinds."""
        head = self.read(address, 16)
        newer = head.startswith(b"OHDR")
        if newer:
            flags = head[5]
            begin = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(begin + width, int.from_bytes(self.read(begin, width), "little"))]
            layout = struct.Struct("<BHB2x" if flags & 4 else "<BHB")
        else:
            if head[0] != 1:
                raise ValueError("an object without a header")
            blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
            layout = struct.Struct("<HHB3x")
        for number, (begin, size) in enumerate(blocks):
            block = self.block(begin, size)
            if newer and number:  # between a signature and a checksum
                block = block[4:-4]
            at = 0
            while at + layout.size <= len(block):
                self._messages_left -= 1
                if self._messages_left < 0:
                    raise ValueError("far too many messages in its headers")
                kind, length, flags = layout.unpack_from(block, at)
                at += layout.size
                message = block[at : at + length]
                at += length
                # A description that is kept elsewhere is none that Keras wrote.
                if flags & _SHARED and kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS):
                    raise ValueError("a type or shape that is kept elsewhere")
                yield kind, message
                if kind == CONTINUATION and len(blocks) < MAX_BLOCKS:
                    blocks.append(struct.unpack_from("<QQ", message))

    def block(self, address: int, size: int) -> bytes:
        """Read a block of a size that the file claims."""
        self._bytes_left -= size
        if size > BLOCK_BYTES or self._bytes_left < 0:
            raise ValueError("too long a header or heap of texts")
        return self.read(address, size)

    def is_dataset(self, address: int) -> bool:
        """Return whether an object is a dataset, not a group or a type."""
        return any(kind == LAYOUT for kind, _ in self.messages(address))

    def links(self, address: int) -> list[Link] | None:
        """List the members of a group; None for another object.

        Raises
        ------
        NotImplementedError
            If the group keeps its names in the way of newer versions for many of them.
        """
        links: list[Link] = []
        is_group = False
        for kind, message in self.messages(address):
            if kind == SYMBOL_TABLE:
                is_group = True
                tree, heap = struct.unpack_from("<QQ", message)
                links.extend(self._symbols(tree, heap))
            elif kind == LINK:
                is_group = True
                links.append(_link(message))
            elif kind == LINK_INFO:
                is_group = True
                if struct.unpack_from("<Q", message, 10 if message[1] & 1 else 2)[0] != UNDEFINED:
                    raise NotImplementedError("groups in HDF5's newer way")
        self._links_left -= len(links)
        if self._links_left < 0:
            raise ValueError("far too many links")
        return links if is_group else None

    def _symbols(self, tree: int, heap: int) -> Iterator[Link]:
        """Yield the entries of a group of the older kind: a tree of nodes, with names in a heap."""
        head = self.read(heap, 32)
        if not head.startswith(b"HEAP"):
            raise ValueError("a heap of names without its signature")
        size, data = struct.unpack_from("<Q8xQ", head, 8)
        names = self.block(data, size)
        for _, node in self.leaves(tree, kind=0, key_bytes=8):
            count = struct.unpack("<4s2xH", self.read(node, 8))
            if count[0] != b"SNOD":
                raise ValueError("a node of a group without its signature")
            entries = self.block(node + 8, 40 * count[1])
            for offset, address, cached in struct.iter_unpack("<QQI20x", entries):
                end = names.index(b"\0", offset)
                yield Link(names[offset:end], None if cached == _SOFT_LINK else address)

    def leaves(self, tree: int, *, kind: int, key_bytes: int) -> Iterator[tuple[bytes, int]]:
        """Yield the key and address of each leaf of a tree (a B-tree of version 1), in order."""
        seen: set[int] = set()
        pending = [(tree, -1)]
        while pending:
            address, level = pending.pop()
            if address in seen:
                raise ValueError("a tree that comes back to itself")
            seen.add(address)
            head = self.read(address, 24)
            if head[:5] != b"TREE" + bytes([kind]) or level not in (-1, head[5]):
                raise ValueError("a node of another kind of tree")
            count = int.from_bytes(head[6:8], "little")
            entries = self.block(address + 24, count * (key_bytes + 8))
            found = [
                (
                    entries[at : at + key_bytes],
                    int.from_bytes(entries[at + key_bytes :][:8], "little"),
                )
                for at in range(0, len(entries), key_bytes + 8)
            ]
            if head[5] == 0:
                yield from found
            else:
                pending += [(child, head[5] - 1) for _, child in reversed(found)]

    def texts(self, address: int, name: str) -> list[str] | None:
        """Return the texts of an attribute of an object.

        None if there is no such attribute; empty if it is no text.
        """
        for kind, message in self.messages(address):
            if kind == ATTRIBUTE:
                attribute = _parsed(message)
                if attribute.name == name.encode():
                    return [text.decode(errors="replace") for text in self._texts(attribute)]
            elif kind == ATTRIBUTE_INFO:
                at = 4 if message[1] & 1 else 2
                if struct.unpack_from("<Q", message, at)[0] != UNDEFINED:
                    raise NotImplementedError("attributes in HDF5's newer way")
        return None

    def _texts(self, attribute: _Attribute) -> Iterator[bytes]:
        kind = attribute.datatype[0] & 15
        # A variable-length type has a kind of its own, of which text is one.
        if kind not in (_FIXED, _VARIABLE) or (
            kind == _VARIABLE and attribute.datatype[1] & 15 != 1
        ):
            return
        width = 16 if kind == _VARIABLE else int.from_bytes(attribute.datatype[4:8], "little")
        if width == 0 or attribute.elements * width > len(attribute.values):
            raise ValueError("an attribute claims more than it holds")
        for at in range(0, attribute.elements * width, width):
            value = attribute.values[at : at + width]
            if kind == _VARIABLE:
                length, address, index = struct.unpack("<IQI", value)
                value = self._collection(address)[index][:length] if length else b""
            yield value.partition(b"\0")[0]

    def _read_collection(self, address: int) -> dict[int, bytes]:
        """Return the objects of one collection of the global heap, by their index."""
        signature, size = struct.unpack("<8sQ", self.read(address, 16))
        if signature != b"GCOL\1\0\0\0":
            raise ValueError("a heap of texts without its signature")
        block = self.block(address, size)
        objects: dict[int, bytes] = {}
        at = 16
        while at + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", block, at)
            if index == 0:  # what is free
                break
            objects[index] = block[at + 16 : at + 16 + length]
            at += 16 + _padded(length)
        return objects


def _link(message: bytes) -> Link:
    """Return the link of a group of the newer kind."""
    version, flags = message[:2]
    if version != 1:
        raise ValueError("a link of an unknown version")
    at = 2
    kind = message[at] if flags & 8 else 0
    at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = int.from_bytes(message[at : at + width], "little")
    at += width
    name = message[at : at + length]
    address = None if kind else struct.unpack_from("<Q", message, at + length)[0]
    return Link(name, address)


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
    extents = shape_of(space)
    elements = 0 if extents is None else math.prod(extents)
    return _Attribute(name.partition(b"\0")[0], datatype, elements, message[at:])


def shape_of(space: bytes) -> tuple[int, ...] | None:
    """Return the extents of a dataspace; None for one that holds nothing."""
    version, rank, _, kind = struct.unpack_from("<4B", space)
    if version == 2 and kind == 2:
        return None
    return struct.unpack_from(f"<{rank}Q", space, 4 if version == 2 else 8)


def _padded(size: int) -> int:
    return size + -size % 8
