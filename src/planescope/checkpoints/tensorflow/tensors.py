"""The numbers of a TensorProto: where they lie, and their type.

All is lazy: a `Tensor` from here knows its shape, and reads the file when asked for its values.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/tensor.proto
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, decode, stored_tensor
from planescope.checkpoints.protobuf import BYTES, Field, Span, WireFile, signed, unpack_varints
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor

# DataType. Types that no weights have (string, complex, resource) are missing on purpose.
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    11: "int8",  # of 11, 12, 13, 15 and 16 TensorFlow says that they are quantised
    12: "uint8",
    13: "int32",
    14: "bfloat16",
    15: "int16",
    16: "uint16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}

# One value stands for all that follow it: what a few bytes may claim.
MAX_REPEATED = 1 << 24


class _Part(IntEnum):
    """Fields of a TensorProto."""

    DTYPE = 1
    SHAPE = 2
    CONTENT = 4
    FLOAT = 5
    DOUBLE = 6
    INT = 7
    INT64 = 10
    BOOL = 11
    HALF = 13
    UINT32 = 16
    UINT64 = 17
    FLOAT8 = 18


# Which field holds the elements of a type where they are not raw bytes; INT for all others.
_TYPED = {
    "float32": _Part.FLOAT,
    "float64": _Part.DOUBLE,
    "int64": _Part.INT64,
    "bool": _Part.BOOL,
    "float16": _Part.HALF,
    "bfloat16": _Part.HALF,
    "uint32": _Part.UINT32,
    "uint64": _Part.UINT64,
    "float8_e5m2": _Part.FLOAT8,
    "float8_e4m3fn": _Part.FLOAT8,
}
_FIXED_WIDTHS: dict[int, int] = {_Part.FLOAT: 4, _Part.DOUBLE: 8}


@dataclass
class _Proto:
    """The fields of a TensorProto."""

    path: Path
    span: Span
    data_type: int = 0
    shape: tuple[int, ...] | None = ()
    content: Span | None = None


def tensor_at(wire: WireFile, span: Span, name: str) -> Tensor:
    """Describe the TensorProto at `span`; one of another type than numbers has that in its dtype.

    Raises
    ------
    CheckpointError
        If its shape and its bytes do not agree.
    """
    proto = _Proto(wire.path, span)
    for part in wire.fields(span):
        match part.number:
            case _Part.DTYPE:
                proto.data_type = part.value
            case _Part.SHAPE:
                proto.shape = shape_at(wire, part)
            case _Part.CONTENT if part.wire == BYTES:
                proto.content = part.span
    where = f"{wire.path}: constant {name!r}"
    shape = proto.shape
    if shape is None or any(extent < 0 for extent in shape):
        raise CheckpointError(f"{where} has an impossible shape; get the file again")
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        return Tensor(shape, f"type {proto.data_type}", lambda: _unreadable(where))
    wanted = math.prod(shape) * ITEM_SIZES[dtype]
    if proto.content is not None and proto.content[1] > proto.content[0]:
        begin, end = proto.content
        if end - begin != wanted:
            raise CheckpointError(
                f"{where} has {end - begin} bytes where shape {shape} of {dtype} takes {wanted}; "
                "the file is damaged, get it again"
            )
        return stored_tensor(wire.path, begin, dtype, shape)
    if math.prod(shape) > max(MAX_REPEATED, wire.span[1]):
        raise CheckpointError(
            f"{where} claims {math.prod(shape)} elements and holds few; refused as a bomb"
        )
    return Tensor(shape, dtype, lambda: _read_typed(proto, dtype, shape, where))


def shape_at(wire: WireFile, part: Field) -> tuple[int, ...] | None:
    """Read a TensorShapeProto; None where the number of dimensions is unknown."""
    extents: list[int] = []
    for dimension in islice(wire.fields(part.span), MAX_DIMENSIONS + 1):
        if dimension.number == 3 and dimension.value:
            return None
        if dimension.number == 2:
            size = wire.find(dimension.span, 1)
            extents.append(signed(size.value) if size else 0)
    if len(extents) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{wire.path}: a shape has more than {MAX_DIMENSIONS} dimensions; get the file again"
        )
    return tuple(extents)


def _unreadable(where: str) -> np.ndarray:
    raise CheckpointError(f"{where} holds no numbers; get the file again")


def _read_typed(proto: _Proto, dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Read numbers of a repeated field; the last one stands for all that follow."""
    number = _TYPED.get(dtype, _Part.INT)
    width = _FIXED_WIDTHS.get(number)
    values = array("Q")
    with WireFile(proto.path) as wire:
        for part in wire.fields(proto.span):
            if part.number != number:
                continue
            if part.wire != BYTES:
                values.append(part.value)
                continue
            packed = np.frombuffer(wire.payload(part.span), dtype=np.uint8)
            try:
                if number == _Part.FLOAT8:
                    numbers = packed
                else:
                    numbers = packed.view(f"<u{width}") if width else unpack_varints(packed)
            except ValueError as exc:
                raise CheckpointError(f"{where} is damaged: {exc}") from exc
            values.frombytes(numbers.astype(np.uint64).tobytes())
    count = math.prod(shape)
    if len(values) > count:
        raise CheckpointError(
            f"{where} has {len(values)} elements where shape {shape} takes {count}; the file is "
            "damaged, get it again"
        )
    found = np.array(values, dtype=np.uint64)
    # Two's complement: the low bytes are the element, whatever its width and sign.
    low = found.astype(f"<u{ITEM_SIZES[dtype]}").view(np.uint8)
    elements = decode(low, dtype)
    if len(elements) == count:
        return elements.reshape(shape)
    last = elements[-1] if len(elements) else 0
    full = np.full(count, last, dtype=elements.dtype)
    full[: len(elements)] = elements
    return full.reshape(shape)
