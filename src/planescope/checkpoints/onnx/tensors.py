"""The numbers of an ONNX tensor: in raw bytes, typed fields, or a file beside the model.

All is lazy: a `Tensor` from here knows its shape, and reads the file when asked for its values.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from pathlib import Path, PureWindowsPath

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, MAX_DIMENSIONS, decode, stored_tensor
from planescope.checkpoints.protobuf import BYTES, Span, WireFile, unpack_varints
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary
from planescope.hyperplanes.layer import Tensor

# TensorProto.DataType. Types that no weights have (string, complex) are missing on purpose.
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}
# Bits of what is packed, several to a byte, the first one in the lowest bits.
_BITS = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2}
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class _Part(IntEnum):
    """Fields of a TensorProto."""

    DIMS = 1
    DATA_TYPE = 2
    FLOAT_DATA = 4
    INT32_DATA = 5
    INT64_DATA = 7
    NAME = 8
    RAW_DATA = 9
    DOUBLE_DATA = 10
    UINT64_DATA = 11
    EXTERNAL_DATA = 13
    DATA_LOCATION = 14


# Which field holds the elements of a type where they are not raw bytes; INT32_DATA for all others.
_TYPED = {
    "float32": _Part.FLOAT_DATA,
    "float64": _Part.DOUBLE_DATA,
    "int64": _Part.INT64_DATA,
    "uint32": _Part.UINT64_DATA,
    "uint64": _Part.UINT64_DATA,
}
_FIXED_WIDTHS: dict[int, int] = {_Part.FLOAT_DATA: 4, _Part.DOUBLE_DATA: 8}


@dataclass
class _Proto:
    """The fields of a TensorProto."""

    path: Path
    span: Span
    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw: Span | None = None
    packed: list[tuple[int, Span]] = field(default_factory=list)  # with the number of the field
    unpacked: Counter[int] = field(default_factory=Counter)  # by the number of the field
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False

    @property
    def where(self) -> str:
        return f"{self.path}: tensor {self.name!r}"


def tensor_at(wire: WireFile, span: Span) -> Tensor:
    """Describe the TensorProto at `span`.

    Raises
    ------
    CheckpointError
        If its type is unknown, its shape and its bytes do not agree, or its external data are not
        there or outside of the model's folder.
    """
    proto = _parse(wire, span)
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise CheckpointError(
            f"{proto.where} has element type {proto.data_type}, which cannot be measured"
        )
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(extent < 0 for extent in shape):
        raise CheckpointError(f"{proto.where} has an impossible shape; get the file again")
    if proto.is_external:
        return _external_tensor(proto, dtype, shape)
    if proto.raw is not None:
        return _fixed_tensor(proto, proto.path, proto.raw, dtype, shape)
    return _typed_tensor(proto, dtype, shape)


def is_external(wire: WireFile, span: Span) -> bool:
    """Tell whether the data of a tensor lie in a file beside the model."""
    return _parse(wire, span).is_external


def _parse(wire: WireFile, span: Span) -> _Proto:
    proto = _Proto(wire.path, span)
    for part in wire.fields(span):
        match part.number:
            case _Part.DIMS:
                # One more than can be, so that the check sees that there are too many.
                proto.dims += islice(wire.integers(part), MAX_DIMENSIONS + 1)
            case _Part.DATA_TYPE:
                proto.data_type = part.value
            case _Part.NAME:
                proto.name = wire.text(part)
            case _Part.RAW_DATA:
                proto.raw = part.span
            case _Part.EXTERNAL_DATA:
                key, value = wire.find(part.span, 1), wire.find(part.span, 2)
                if key and value:
                    proto.external[wire.text(key)] = wire.text(value)
            case _Part.DATA_LOCATION:
                proto.is_external = part.value == 1
            case number if part.wire == BYTES:
                proto.packed.append((number, part.span))
            case number:
                proto.unpacked[number] += 1
    return proto


def _fixed_tensor(
    proto: _Proto, path: Path, span: Span, dtype: str, shape: tuple[int, ...]
) -> Tensor:
    """Return the tensor whose elements lie in one piece at `span` of `path`."""
    begin, end = span
    wanted = _stored_items(dtype, shape) * _item_size(dtype)
    if end - begin != wanted:
        raise CheckpointError(
            f"{proto.where} has {end - begin} bytes where shape {shape} of {dtype} takes {wanted}; "
            "the file is damaged, get it again"
        )
    if dtype not in _BITS:
        return stored_tensor(path, begin, dtype, shape)
    packed = stored_tensor(
        path, begin, "uint8", (wanted,), finish=lambda packed: _unpacked(packed, dtype, shape)
    )
    return Tensor(shape, dtype, packed.read, None, packed.digest)


def _external_tensor(proto: _Proto, dtype: str, shape: tuple[int, ...]) -> Tensor:
    path = _external_path(proto)
    try:
        begin = int(proto.external.get("offset", "0"))
        length = _stored_items(dtype, shape) * _item_size(dtype)
        end = begin + int(proto.external.get("length", length))
    except ValueError as exc:
        raise CheckpointError(f"{proto.where} has no number for its place in {path}") from exc
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
    if not 0 <= begin <= end <= size:
        raise CheckpointError(
            f"{proto.where} lies in bytes {begin} to {end} of {path}, which has {size}; "
            "is that download complete?"
        )
    return _fixed_tensor(proto, path, (begin, end), dtype, shape)


def _external_path(proto: _Proto) -> Path:
    """Return the path of the file that holds the data, which a model must not choose freely."""
    location = proto.external.get("location", "")
    claimed = PureWindowsPath(location)  # takes / and \\ alike
    refusal = CheckpointError(
        f"{proto.where} wants its data from {location!r}, which is not a path inside the model's "
        "folder; refused"
    )
    if not claimed.parts or claimed.anchor or ".." in claimed.parts:
        raise refusal
    try:
        path = (proto.path.parent / location).resolve()
        # In the hub's cache the model and its data are both links into one folder.
        folders = (proto.path.parent.resolve(), proto.path.resolve().parent)
    except (OSError, ValueError, RuntimeError) as exc:  # loops of links; NUL in a name
        raise refusal from exc
    if not any(path.is_relative_to(folder) for folder in folders):
        raise refusal
    return path


def _typed_tensor(proto: _Proto, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor whose elements are numbers in a repeated field, packed or not."""
    number = _TYPED.get(dtype, _Part.INT32_DATA)
    spans = [span for packed, span in proto.packed if packed == number]
    unpacked = proto.unpacked[number]
    width = _FIXED_WIDTHS.get(number)
    if width and len(spans) == 1 and not unpacked:
        return _fixed_tensor(proto, proto.path, spans[0], dtype, shape)
    most = sum(end - begin for begin, end in spans) // (width or 1) + unpacked
    if most < _stored_items(dtype, shape):
        raise CheckpointError(
            f"{proto.where} has at most {most} elements where shape {shape} takes "
            f"{math.prod(shape)}; the file is damaged, get it again"
        )
    return Tensor(shape, dtype, lambda: _read_typed(proto, number, dtype, shape))


def _read_typed(proto: _Proto, number: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
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
                numbers = packed.view(f"<u{width}") if width else unpack_varints(packed)
            except ValueError as exc:
                raise CheckpointError(f"{proto.where} is damaged: {exc}") from exc
            values.frombytes(numbers.astype(np.uint64).tobytes())
    if len(values) != _stored_items(dtype, shape):
        raise CheckpointError(
            f"{proto.where} has {len(values)} elements where shape {shape} takes "
            f"{math.prod(shape)}; the file is damaged, get it again"
        )
    # Two's complement: the low bytes are the element, whatever its width and sign.
    low = np.array(values, dtype=np.uint64).astype(f"<u{_item_size(dtype)}").view(np.uint8)
    if dtype in _BITS:
        return _unpacked(low, dtype, shape)
    return decode(low, dtype).reshape(shape)


def _item_size(dtype: str) -> int:
    return 1 if dtype in _BITS else ITEM_SIZES[dtype]


def _stored_items(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the elements as stored: those of a few bits come several to a byte."""
    each = 8 // _BITS.get(dtype, 8)
    return -(-math.prod(shape) // each)


def _unpacked(stored: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = _BITS[dtype]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (stored.reshape(-1, 1) >> shifts) & np.uint8((1 << bits) - 1)
    codes = codes.reshape(-1)[: math.prod(shape)].reshape(shape)
    if dtype.startswith("uint"):
        return codes
    if dtype.startswith("int"):
        sign = 1 << (bits - 1)
        return np.asarray((codes.astype(np.int8) ^ sign) - sign)
    return np.asarray(np.array([*_FLOAT4, *(-value for value in _FLOAT4)], np.float32)[codes])
