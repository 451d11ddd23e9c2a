"""Flax's msgpack files: a tree of dictionaries whose leaves are arrays.

MessagePack is a run of values, each behind a byte that tells its type and, where that is long, its
length. The values of arrays stay in the file until they are wanted, which no library for the format
allows: these read a file of gigabytes whole. Format: github.com/msgpack/msgpack, spec.md; what Flax
puts in its extensions: flax/serialization.py.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from planescope.checkpoints.arrays.nested import MAX_DEPTH, Tree, of_sequence, state_dict
from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, stored_tensor
from planescope.checkpoints.probe import Probe
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary
from planescope.hyperplanes.layer import StateDict, Tensor

NAME = "flax-msgpack"

# A tree of 50,000 arrays has some 400,000 values.
MAX_VALUES = 1 << 22

_LONGEST_NAME = 4096  # longer texts are none

_NDARRAY = 1  # the type of Flax's extension for arrays
_CHUNKED = "__msgpack_chunked_array__"

# Bytes of a length, by the byte in front: strings, bytes, lists, maps, extensions.
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
# Numbers, by the bytes that they take and whether the first of these has a sign.
_INTEGERS = {0xCC + n: (1 << n, False) for n in range(4)} | {
    0xD0 + n: (1 << n, True) for n in range(4)
}
_FLOATS = {0xCA: 4, 0xCB: 8}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes that stay in the file; those of an extension have its type."""

    begin: int
    length: int
    extension: int | None = None


_Value: TypeAlias = "bool | int | str | _Span | list[_Value] | dict[str, _Value] | None"


def recognises(probe: Probe) -> bool:
    """Tell a map whose first key is a text that may be a name."""
    head = probe.head
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in _MAPS):
        return False
    at = 1 + _MAPS.get(head[0], 0)
    first = head[at] if at < len(head) else 0
    if 0xA1 <= first <= 0xBF:
        key = head[at + 1 : at + 1 + (first & 31)]
    elif first == 0xD9:
        key = head[at + 2 : at + 2 + head[at + 1]] if at + 1 < len(head) else b""
    else:
        return False
    return key.decode("utf-8", "replace").isprintable() and b"\0" not in key and bool(key)


def read(path: Path, *, entry: str | None = None) -> StateDict:
    """Describe the arrays of a Flax file by their names; no values are read.

    Raises
    ------
    CheckpointError
        If the file is damaged, or holds no arrays.
    """
    with open_binary(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as exc:
            raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
        with data:
            reader = _Reader(path, data)
            value = reader.value(0)
            if reader.at != len(data) or not isinstance(value, dict):
                raise CheckpointError(
                    f"{path}: begins as a MessagePack file of Flax, but is another or is damaged; "
                    "is the download complete?"
                )
            tree = reader.tree(value, ())
    return state_dict(tree if isinstance(tree, dict) else {}, path, entry=entry)


class _Reader:
    """Values of a file, one behind the other."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data
        self.at, self.end = 0, len(data)
        self.left = MAX_VALUES

    def damaged(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: the MessagePack file is damaged: before byte {self.at} it {how}; "
            "is the download complete?"
        )

    def span(self, length: int) -> _Span:
        if length > self.end - self.at:
            raise self.damaged(f"wants {length} bytes where {self.end - self.at} are left")
        self.at += length
        return _Span(self.at - length, length)

    def number(self, length: int, *, signed: bool = False) -> int:
        span = self.span(length)
        return int.from_bytes(self.data[span.begin : self.at], "big", signed=signed)

    def value(self, depth: int) -> _Value:
        """Read the value that comes next; long ones stay in the file."""
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise self.damaged(f"has more than {MAX_VALUES} values, or nests beyond {MAX_DEPTH}")
        code = self.number(1)
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if (code < 0xA0 and code < 0x90) or code in _MAPS:
            return self.map(self.number(_MAPS[code]) if code in _MAPS else code & 15, depth)
        if code < 0xA0 or code in _LISTS:
            return self.list(self.number(_LISTS[code]) if code in _LISTS else code & 15, depth)
        if code < 0xC0 or code in _STRINGS:
            return self.text(self.number(_STRINGS[code]) if code in _STRINGS else code & 31)
        return self.other(code)

    def other(self, code: int) -> _Value:
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _INTEGERS:
            width, signed = _INTEGERS[code]
            return self.number(width, signed=signed)
        if code in _FLOATS:
            return self.span(_FLOATS[code])
        if code in _BYTES:
            return self.span(self.number(_BYTES[code]))
        if code in _EXTENSIONS or code in _FIXED_EXTENSIONS:
            length = _FIXED_EXTENSIONS.get(code) or self.number(_EXTENSIONS[code])
            kind = self.number(1)
            span = self.span(length)
            return _Span(span.begin, span.length, kind)
        raise self.damaged(f"has the unknown type 0x{code:02x}")

    def text(self, length: int) -> str | _Span:
        span = self.span(length)
        if length > _LONGEST_NAME:
            return span
        return self.data[span.begin : self.at].decode("utf-8", "backslashreplace")

    def list(self, count: int, depth: int) -> list[_Value]:
        if count > self.end - self.at:
            raise self.damaged(f"claims {count} elements")
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[str, _Value]:
        if 2 * count > self.end - self.at:
            raise self.damaged(f"claims {count} entries")
        found: dict[str, _Value] = {}
        for _ in range(count):
            key, value = self.value(depth + 1), self.value(depth + 1)
            if isinstance(key, (str, int)):
                found[str(key)] = value
        return found

    def tree(self, value: _Value, path: tuple[str, ...]) -> Tree | None:
        """Make tensors of the arrays in a value; None where there are none."""
        if isinstance(value, _Span):
            return self.array(value, path) if value.extension == _NDARRAY else None
        if isinstance(value, list):
            return of_sequence([self.tree(each, (*path, str(i))) for i, each in enumerate(value)])
        if not isinstance(value, dict):
            return None
        if value.get(_CHUNKED) is True:
            return self.chunked(value, path)
        return {
            name: tree for name, each in value.items() if (tree := self.tree(each, (*path, name)))
        }

    def array(self, span: _Span, path: tuple[str, ...]) -> Tensor | None:
        """Describe an array, whose shape, type and bytes are a list within the extension."""
        where = f"{self.path}: array {'.'.join(path)[:200]!r}"
        self.at, end = span.begin, self.end
        self.end = span.begin + span.length
        content = self.value(0)
        self.end = end
        match content:
            case [list() as shape, str(dtype), _Span(extension=None) as values]:
                pass
            case _:
                raise CheckpointError(f"{where} is not described as Flax describes it")
        if dtype not in ITEM_SIZES:
            raise CheckpointError(
                f"{where} holds {dtype[:40]} values, which are no plain numbers; leave it out"
            )
        extents = _extents(shape, where)
        if math.prod(extents) * ITEM_SIZES[dtype] != values.length:
            raise CheckpointError(
                f"{where} claims {dtype} values of shape {extents}, but has {values.length} bytes; "
                "is the download complete?"
            )
        return stored_tensor(self.path, values.begin, dtype, extents)

    def chunked(self, value: Mapping[str, _Value], path: tuple[str, ...]) -> Tensor:
        """Describe an array that Flax cut into pieces of a gigabyte."""
        where = f"{self.path}: array {'.'.join(path)[:200]!r}"
        shape, chunks = value.get("shape"), value.get("chunks")
        if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
            raise CheckpointError(f"{where} is not described as Flax describes it")
        extents = _extents(list(shape.values()), where)
        parts = [self.tree(each, (*path, name)) for name, each in chunks.items()]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        dtypes = {tensor.dtype for tensor in tensors}
        held = sum(math.prod(tensor.shape) for tensor in tensors)
        if len(tensors) != len(parts) or len(dtypes) != 1 or held != math.prod(extents):
            raise CheckpointError(f"{where} lacks some of its pieces; is the download complete?")

        def read() -> np.ndarray:
            return np.concatenate([tensor.read().ravel() for tensor in tensors]).reshape(extents)

        return Tensor(extents, dtypes.pop(), read)


def _extents(shape: list[_Value], where: str) -> tuple[int, ...]:
    extents = tuple(each for each in shape if isinstance(each, int) and 0 <= each < 1 << 59)
    if (
        len(extents) != len(shape)
        or len(extents) > MAX_DIMENSIONS
        or math.prod(extent or 1 for extent in extents) >= 1 << 59
    ):
        raise CheckpointError(f"{where} claims an impossible shape; is the download complete?")
    return extents
