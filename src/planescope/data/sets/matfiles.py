"""Numeric arrays of MATLAB files of version 5, as SVHN comes in.

SciPy's reader crashes the process on damaged files and says that it is not made for those of a
stranger; this one reads the plain arrays that data sets consist of, and nothing else.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary
from planescope.files.zips import BOMB_BYTES, BOMB_RATIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER_BYTES = 128
LITTLE_ENDIAN_5 = b"\x00\x01IM"  # version and byte order, the last bytes of the header

MATRIX, COMPRESSED = 14, 15
# What a sequence of numbers is stored as. MATLAB writes doubles that are small integers as bytes.
STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
STORED |= {12: "<i8", 13: "<u8"}
NUMERIC_CLASSES = range(6, 16)
COMPLEX = 0x0800


class _DamagedError(Exception):
    """A fault in a file; its reader adds the place."""


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """Read the real numeric arrays of a MATLAB file, by name, as they are stored.

    Raises
    ------
    CheckpointError
        If the file is not of version 5 and little-endian, is damaged, or would inflate beyond
        reason.
    """
    with open_binary(path) as file:
        data = file.read()
    try:
        if data[HEADER_BYTES - 4 : HEADER_BYTES] != LITTLE_ENDIAN_5:
            raise _DamagedError("its header is another")
        arrays = map(_array, _matrices(memoryview(data)))
        return {name: array for name, array in arrays if array is not None}
    except (_DamagedError, zlib.error) as exc:
        raise CheckpointError(
            f"{path}: is no sound MATLAB 5 file ({exc}); is the download complete?"
        ) from exc


def _matrices(data: memoryview) -> Iterator[memoryview]:
    budget = max(BOMB_BYTES, BOMB_RATIO * len(data))
    at = HEADER_BYTES
    while at < len(data):
        kind, content, at = _element(data, at)
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            inflated = inflater.decompress(content, budget)
            budget -= len(inflated)
            if not inflater.eof or budget <= 0:
                raise _DamagedError("a compressed element is cut or inflates beyond reason")
            kind, content, _ = _element(memoryview(inflated), 0)
        if kind != MATRIX:
            raise _DamagedError(f"an element has the type {kind}, which is no array")
        yield content


def _element(data: memoryview, at: int) -> tuple[int, memoryview, int]:
    """Return the type and content of the element at `at`, and where the next one begins."""
    if len(data) - at < 8:
        raise _DamagedError("it ends inside an element")
    kind, length = struct.unpack_from("<II", data, at)
    if kind >> 16:  # up to four bytes, kept in the tag itself
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise _DamagedError(f"a small element has {length} bytes")
        return kind, data[at + 4 : at + 4 + length], at + 8
    begin, end = at + 8, at + 8 + length
    if end > len(data):
        raise _DamagedError(f"an element of {length} bytes ends behind what holds it")
    return kind, data[begin:end], end if kind == COMPRESSED else end + -length % 8


def _array(matrix: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and values of an array; None where it is not real and numeric."""
    _, flags, at = _element(matrix, 0)
    _, sizes, at = _element(matrix, at)
    _, name, at = _element(matrix, at)
    label = bytes(name).decode("latin1")
    if len(flags) != 8 or len(sizes) % 4:
        raise _DamagedError("an array has a broken header")
    (flag,) = struct.unpack_from("<I", flags)
    if flag & 0xFF not in NUMERIC_CLASSES or flag & COMPLEX:
        return label, None
    kind, content, _ = _element(matrix, at)
    shape = tuple(np.frombuffer(sizes, "<i4").tolist())
    if kind not in STORED or len(shape) > 32 or min(shape, default=-1) < 0:
        raise _DamagedError(f"the array {label!r} has the shape {shape} and the type {kind}")
    dtype = np.dtype(STORED[kind])
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _DamagedError(f"the array {label!r} of shape {shape} has {len(content)} bytes")
    return label, np.frombuffer(content, dtype).reshape(shape, order="F")
