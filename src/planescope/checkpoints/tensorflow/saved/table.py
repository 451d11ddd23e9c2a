"""The index of a checkpoint: a sorted table of LevelDB's format, keys to short values.

https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER_BYTES = 48

# The largest published ones have a few MB.
MAX_BYTES = 1 << 27
_MAX_BLOCK_BYTES = 1 << 25

_TRAILER_BYTES = 5  # compression and checksum behind each block
_PLAIN, _SNAPPY = 0, 1
_LONGEST_VARINT = 10


def is_table(path: Path) -> bool:
    """Tell whether a file ends as a table does."""
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < FOOTER_BYTES:
            return False
        file.seek(size - len(MAGIC))
        return file.read(len(MAGIC)) == MAGIC


def read_table(path: Path) -> dict[bytes, bytes]:
    """Read all keys and values of a table.

    Raises
    ------
    CheckpointError
        If it is damaged, by its checksums too, or claims more than it can hold.
    """
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
    if not FOOTER_BYTES <= size <= MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes cannot be an index; is the download complete?")
    return parse_table(path, read_exactly(path, 0, size))


def parse_table(path: Path, data: bytes) -> dict[bytes, bytes]:
    """Read all keys and values of a table from its bytes, which are those of `path`."""
    if not data.endswith(MAGIC):
        raise CheckpointError(f"{path}: does not end as an index does; is the download complete?")
    footer = len(data) - FOOTER_BYTES
    _, _, at = _handle(path, data, footer)  # of filters, which nobody writes
    begin, length, _ = _handle(path, data, at)
    found: dict[bytes, bytes] = {}
    used = 0
    for _, handle in _entries(path, _block(path, data, begin, length)):
        begin, length, _ = _handle(path, handle, 0)
        block = _block(path, data, begin, length)
        used += len(block)
        if used > MAX_BYTES:
            raise CheckpointError(f"{path}: unpacks to more than {MAX_BYTES} bytes; refused")
        found.update(_entries(path, block))
    return found


def unmasked(checksum: int) -> int:
    """Undo what LevelDB does to a checksum that is stored beside its data."""
    rotated = (checksum - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Compute Castagnoli's checksum."""
    import google_crc32c

    return int(google_crc32c.value(data))


def _block(path: Path, data: bytes, begin: int, length: int) -> bytes:
    end = begin + length
    if end + _TRAILER_BYTES > len(data):
        raise CheckpointError(
            f"{path}: a block reaches to byte {end} of {len(data)}; is the download complete?"
        )
    compression = data[end]
    (stored,) = struct.unpack_from("<I", data, end + 1)
    if crc32c(data[begin : end + 1]) != unmasked(stored):
        raise CheckpointError(
            f"{path}: the checksum of bytes {begin} to {end} is wrong: they are damaged; get the "
            "file again"
        )
    block = data[begin:end]
    if compression == _SNAPPY:
        return _unsnapped(path, block)
    if compression != _PLAIN:
        raise CheckpointError(
            f"{path}: a block is compressed by method {compression}, which is not known; save the "
            "checkpoint again"
        )
    return block


def _entries(path: Path, block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read keys and values; each key repeats the beginning of the one before it."""
    if len(block) < 4:
        raise CheckpointError(f"{path}: a block has no end; get the file again")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    key, at, keys = b"", 0, 0
    while at < end:
        shared, at = _varint(path, block, at)
        fresh, at = _varint(path, block, at)
        length, at = _varint(path, block, at)
        keys += shared
        # Of one entry after another the keys may grow: the square of what is stored.
        if shared > len(key) or at + fresh + length > end or keys > MAX_BYTES:
            raise CheckpointError(f"{path}: an entry of the index is damaged; get the file again")
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _handle(path: Path, data: bytes, at: int) -> tuple[int, int, int]:
    """Read where a block lies: its first byte, its length, and where the handle ends."""
    begin, at = _varint(path, data, at)
    length, at = _varint(path, data, at)
    return begin, length, at


def _varint(path: Path, data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, at + count + 1
    raise CheckpointError(f"{path}: a number in the index does not end; get the file again")


def _unsnapped(path: Path, packed: bytes) -> bytes:
    """Decompress a block of Snappy's raw format: copies of what was, and literals.

    https://github.com/google/snappy/blob/main/format_description.txt
    """
    damaged = CheckpointError(f"{path}: a compressed block is damaged; get the file again")
    length, at = _varint(path, packed, 0)
    if length > _MAX_BLOCK_BYTES:
        raise CheckpointError(f"{path}: a block unpacks to {length} bytes; refused as a bomb")
    out = bytearray()
    while at < len(packed):
        tag = packed[at]
        at += 1
        kind, number = tag & 3, tag >> 2
        if kind == 0:
            wide = number - 59 if number >= 60 else 0
            count = (int.from_bytes(packed[at : at + wide], "little") if wide else number) + 1
            at += wide
            if at + count > len(packed):
                raise damaged
            out += packed[at : at + count]
            at += count
        else:
            wide = (0, 1, 2, 4)[kind]
            back = int.from_bytes(packed[at : at + wide], "little")
            at += wide
            if kind == 1:
                back |= number >> 3 << 8
                number &= 7
                number += 3
            count = number + 1
            if not 0 < back <= len(out):
                raise damaged
            if back >= count:
                out += out[len(out) - back : len(out) - back + count]
            else:
                piece = out[-back:]
                out += (piece * (count // back + 1))[:count]
        if len(out) > length:
            raise damaged
    if len(out) != length:
        raise damaged
    return bytes(out)
