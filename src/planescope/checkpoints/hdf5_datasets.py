"""Datasets of an HDF5 file: what one is, where its bytes lie, and its chunks unpacked.

Layout: "HDF5 File Format Specification Version 3.0", III.A.1, IV.A.2.b, d, i and l, and VII.C.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.hdf5_bytes import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    UNDEFINED,
    Objects,
    shape_of,
)
from planescope.files.errors import CheckpointError

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)  # classes of layouts
_SINGLE, _IMPLICIT, _FIXED_ARRAY = 1, 2, 3  # where newer layouts keep the places of chunks
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3

_SHORT_NAMES = {3: "text", 4: "bit", 5: "void", 6: "record", 7: "reference", 8: "enumerated"}
_SHORT_NAMES |= {2: "time", 9: "text or list", 10: "array"}

# Size, then places and sizes of exponent and mantissa, and the exponent's bias.
_FLOATS = {
    (2, 10, 5, 0, 10, 15): "float16",
    (2, 7, 8, 0, 7, 127): "bfloat16",
    (4, 23, 8, 0, 23, 127): "float32",
    (8, 52, 11, 0, 52, 1023): "float64",
}


@dataclass(frozen=True)
class Chunk:
    """Bytes of a dataset, and which of its elements come first in them."""

    begin: int
    size: int
    offset: tuple[int, ...] = ()
    skipped: int = 0  # a bit for each filter that was left out


@dataclass(frozen=True)
class Dataset:
    """A dataset of an HDF5 file: shape, type, and where its values lie.

    Attributes
    ----------
    dtype : str
        As NumPy names it; what no number is has a name of its own.
    shape : tuple of int or None
        None where it holds nothing.
    chunks : tuple of Chunk
        One where it is not chunked; none where `compact` has the values.
    chunk_shape : tuple of int or None
    filters : tuple of int
        In the order in which they were applied.
    compact : bytes or None
        Values that stand in the header itself.
    """

    dtype: str
    big_endian: bool
    shape: tuple[int, ...] | None
    chunks: tuple[Chunk, ...]
    chunk_shape: tuple[int, ...] | None = None
    filters: tuple[int, ...] = ()
    compact: bytes | None = None


def read_dataset(objects: Objects, address: int, where: str) -> Dataset:
    """Describe the dataset whose header is at an address.

    Raises
    ------
    CheckpointError
        If its values are in another file, or packed by an unknown filter.
    ValueError, LookupError, struct.error
        If it is damaged.
    NotImplementedError
        If it is kept in a way that is not read.
    """
    messages = dict(objects.messages(address))
    if EXTERNAL in messages or messages[LAYOUT][1] == _VIRTUAL:
        raise CheckpointError(
            f"{where} keeps its values in another file, which is not opened; "
            "copy the weights themselves into the file"
        )
    filters = _filters(messages[FILTERS]) if FILTERS in messages else ()
    if not {DEFLATE, SHUFFLE, FLETCHER32}.issuperset(filters) or len(set(filters)) < len(filters):
        raise CheckpointError(
            f"{where} is packed by HDF5 filters {list(filters)}; save it uncompressed or with gzip"
        )
    dtype, big_endian, width = _type(messages[DATATYPE])
    shape = shape_of(messages[DATASPACE])
    if shape is not None and (
        len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) * width >= 1 << 63
    ):
        raise ValueError("a shape beyond all sizes")
    described = Dataset(dtype, big_endian, shape, (), filters=filters)
    return described if shape is None else _laid_out(objects, messages[LAYOUT], described, width)


def _type(message: bytes) -> tuple[str, bool, int]:
    """Name, whether the highest byte comes first, and bytes of a type."""
    kind, bits = message[0] & 15, message[1]
    (width,) = struct.unpack_from("<I", message, 4)
    if kind == 0:
        offset, precision = struct.unpack_from("<HH", message, 8)
        whole = (offset, precision) == (0, 8 * width) and width in (1, 2, 4, 8)
        return (
            f"{'int' if bits & 8 else 'uint'}{precision}" if whole else "integer",
            bool(bits & 1),
            width,
        )
    if kind == 1:
        standard = _FLOATS.get((width, *struct.unpack_from("<4x4BI", message, 8)), "float")
        # Its sign is the highest bit, and the highest bit of the mantissa is not stored.
        usual = message[2] == 8 * width - 1 and bits & 0b11_1110 == 0b10_0000 and not bits & 64
        return standard if usual else "float", bool(bits & 1), width
    name = _SHORT_NAMES.get(kind, "unknown")
    return f"{name}{8 * width}" if kind == 5 else name, False, width


def _filters(message: bytes) -> tuple[int, ...]:
    version, count = message[:2]
    at = 8 if version == 1 else 2
    found = []
    for _ in range(count):
        (number,) = struct.unpack_from("<H", message, at)
        at += 2
        length = 0
        if version == 1 or number >= 256:
            (length,) = struct.unpack_from("<H", message, at)
            at += 2
        _, values = struct.unpack_from("<HH", message, at)
        at += 4 + (length + -length % 8 if version == 1 else length) + 4 * values
        at += 4 * (values % 2) if version == 1 else 0
        found.append(number)
    return tuple(found)


def _laid_out(objects: Objects, message: bytes, dataset: Dataset, width: int) -> Dataset:
    """Return the dataset with the places of its bytes."""
    version, kind = message[:2]
    if version not in (3, 4, 5):
        raise NotImplementedError("datasets in HDF5's oldest way")
    shape = dataset.shape or ()
    size = width * math.prod(shape)
    if kind == _COMPACT:
        (length,) = struct.unpack_from("<H", message, 2)
        values = message[4 : 4 + length]
        if len(values) < size:
            raise ValueError("fewer values than its shape has")
        return replace(dataset, compact=values[:size])
    if kind == _CONTIGUOUS:
        begin, stored = struct.unpack_from("<QQ", message, 2)
        # Of a dataset that was never written nothing is stored, whatever it claims.
        whole = () if begin == UNDEFINED else (Chunk(begin, min(stored, size)),)
        return replace(dataset, chunks=whole)
    if kind != _CHUNKED:
        raise ValueError("a layout of an unknown class")
    if version == 3:
        rank = message[2]
        (tree,) = struct.unpack_from("<Q", message, 3)
        extents = struct.unpack_from(f"<{rank}I", message, 11)
        chunks = () if tree == UNDEFINED else tuple(_of_tree(objects, tree, rank))
    else:
        extents, chunks = _newer_chunks(
            objects, message, shape, width, packed=bool(dataset.filters)
        )
    if len(extents) != len(shape) + 1 or extents[-1] != width or 0 in extents:
        raise ValueError("chunks of another shape than its own")
    return replace(dataset, chunks=chunks, chunk_shape=extents[:-1])


def _of_tree(objects: Objects, tree: int, rank: int) -> Iterator[Chunk]:
    """Yield the chunks of the older kind, kept in a tree."""
    form = struct.Struct(f"<II{rank}Q")
    for key, begin in objects.leaves(tree, kind=1, key_bytes=form.size):
        size, skipped, *offset = form.unpack(key)
        yield Chunk(begin, size, tuple(offset[:-1]), skipped)


def _newer_chunks(
    objects: Objects, message: bytes, shape: tuple[int, ...], width: int, *, packed: bool
) -> tuple[tuple[int, ...], tuple[Chunk, ...]]:
    """Return the shape of the chunks, elements' bytes last, and the chunks, of the newer kind."""
    flags, rank, bytes_each = message[2:5]
    at = 5 + rank * bytes_each
    extents = tuple(
        int.from_bytes(message[begin : begin + bytes_each], "little")
        for begin in range(5, at, bytes_each or 1)
    )
    index, at = message[at], at + 1
    if 0 in extents or len(extents) != len(shape) + 1:
        raise ValueError("chunks of another shape than its own")
    size = width * math.prod(extents[:-1])
    if index == _SINGLE:
        skipped = 0
        if flags & 2:
            size, skipped = struct.unpack_from("<QI", message, at)
            at += 12
        (begin,) = struct.unpack_from("<Q", message, at)
        return extents, () if begin == UNDEFINED else (
            Chunk(begin, size, (0,) * len(shape), skipped),
        )
    if index not in (_IMPLICIT, _FIXED_ARRAY):
        raise NotImplementedError("datasets that can grow in HDF5's newer way")
    counts = [-(-n // chunk) for n, chunk in zip(shape, extents[:-1], strict=True)]
    (begin,) = struct.unpack_from("<Q", message, at + (1 if index == _FIXED_ARRAY else 0))
    if begin == UNDEFINED:
        return extents, ()
    places: Sequence[tuple[int, int, int]]
    if index == _FIXED_ARRAY:
        places = _fixed_array(objects, begin, math.prod(counts), size, packed=packed)
    elif math.prod(counts) * size > objects.size:
        raise ValueError("more chunks than the file holds")
    else:
        places = [(begin + number * size, size, 0) for number in range(math.prod(counts))]
    return extents, tuple(
        Chunk(begin, stored, _offset(number, counts, extents), skipped)
        for number, (begin, stored, skipped) in enumerate(places)
        if begin != UNDEFINED
    )


def _offset(number: int, counts: Sequence[int], extents: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of a chunk's first element, by its number."""
    offset = []
    for count, extent in zip(reversed(counts), reversed(extents[:-1]), strict=True):
        number, index = divmod(number, count)
        offset.append(index * extent)
    return tuple(reversed(offset))


def _fixed_array(
    objects: Objects, address: int, count: int, size: int, *, packed: bool
) -> list[tuple[int, int, int]]:
    """Return the place, size and skipped filters of each chunk."""
    head = objects.read(address, 28)
    if not head.startswith(b"FAHD"):
        raise ValueError("an array of chunks without its signature")
    width, page_bits = head[6:8]
    entries, data = struct.unpack_from("<QQ", head, 8)
    if entries > 1 << page_bits:
        raise NotImplementedError("datasets of many chunks in HDF5's newer way")
    if entries < count or width < (13 if packed else 8):
        raise ValueError("an array of fewer chunks than its dataset has")
    if not objects.read(data, 14).startswith(b"FADB"):
        raise ValueError("a block of chunks without its signature")
    raw = objects.block(data + 14, count * width)
    found = []
    for at in range(0, len(raw), width):
        begin = int.from_bytes(raw[at : at + 8], "little")
        stored = int.from_bytes(raw[at + 8 : at + width - 4], "little") if packed else size
        skipped = int.from_bytes(raw[at + width - 4 : at + width], "little") if packed else 0
        found.append((begin, stored, skipped))
    return found


def unpacked(where: str, dataset: Dataset, raw: Callable[[Chunk], bytes], width: int) -> np.ndarray:
    """Return the bytes of all values, in order, as one array.

    Raises
    ------
    CheckpointError
        If a chunk inflates beyond its own shape, or values are missing.
    """
    shape = dataset.shape or ()
    if dataset.compact is not None:
        return np.frombuffer(dataset.compact, np.uint8)
    if dataset.chunk_shape is None:
        flat = np.frombuffer(b"".join(map(raw, dataset.chunks)), np.uint8)
        _check_whole(where, len(flat), width * math.prod(shape))
        return flat
    values = np.empty((*shape, width), np.uint8)
    written = 0
    for chunk in dataset.chunks:
        if len(chunk.offset) != len(shape) or any(
            at >= n or at % step
            for at, n, step in zip(chunk.offset, shape, dataset.chunk_shape, strict=True)
        ):
            raise ValueError("a chunk that lies outside")
        data = _chunk(where, dataset, chunk, raw(chunk), width)
        box = tuple(
            slice(at, min(at + step, n))
            for at, n, step in zip(chunk.offset, shape, dataset.chunk_shape, strict=True)
        )
        part = values[box]
        part[...] = data.reshape(*dataset.chunk_shape, width)[tuple(map(slice, part.shape))]
        written += part.size
    # Two chunks at one place leave another one missing.
    _check_whole(
        where,
        written if len({c.offset for c in dataset.chunks}) == len(dataset.chunks) else -1,
        values.size,
    )
    return values.reshape(-1)


def _check_whole(where: str, held: int, wanted: int) -> None:
    if held != wanted:
        raise CheckpointError(f"{where}: values of it were never written; save the model again")


def _chunk(where: str, dataset: Dataset, chunk: Chunk, data: bytes, width: int) -> np.ndarray:
    """Undo the filters of a chunk, no further than its shape goes."""
    size = width * math.prod(dataset.chunk_shape or ())
    for number, kind in reversed(list(enumerate(dataset.filters))):
        if chunk.skipped >> number & 1:
            continue
        if kind == FLETCHER32:
            data, check = data[:-4], int.from_bytes(data[-4:], "little")
            if not _fits(data, check):
                raise ValueError("a chunk whose checksum is another")
        elif kind == SHUFFLE:
            whole = len(data) // width * width
            turned = np.frombuffer(data[:whole], np.uint8).reshape(width, -1).T
            data = turned.tobytes() + data[whole:]
        else:
            # A checksum that was compressed with the values adds 4 bytes.
            data = zlib.decompressobj().decompress(data, size + 5)
            if len(data) > size + 4:
                raise CheckpointError(f"{where} inflates beyond its own shape; refused as a bomb")
    if len(data) != size:
        raise ValueError("a chunk of another size than its shape")
    return np.frombuffer(data, np.uint8)


def _fits(data: bytes, check: int) -> bool:
    """Check a checksum (Fletcher's, of 32 bits) against the bytes."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    # Reduced first: the sums of 2^32 words with weights below 65535 stay below 2^64.
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % 65535
    first, second = int(words.sum()), int((words * weights).sum())
    return (check & 0xFFFF) % 65535 == first % 65535 and (check >> 16) % 65535 == second % 65535
