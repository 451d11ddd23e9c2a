"""The layers of a Caffe network as its file lists them, in all three forms that Caffe has had.

Message types and field numbers: BVLC/caffe, src/caffe/proto/caffe.proto.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS, stored_tensor
from planescope.checkpoints.protobuf import BYTES, VARINT, Field, Span, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor

# Fields of a NetParameter: layers of the older forms, and of the newest.
OLDER, NEWEST = 2, 100

# Types of the middle form by number, as the newest calls them.
_TYPES = {
    3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 9: "HDF5Data",
    12: "ImageData", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 19: "Sigmoid",
    20: "Softmax", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power",
    29: "MemoryData", 32: "DummyData", 33: "Slice", 34: "MVN", 35: "AbsVal", 38: "Exp",
    39: "Deconvolution",
}  # fmt: skip
# Types of the oldest form.
OLDEST_TYPES = {
    "conv": "Convolution", "innerproduct": "InnerProduct", "relu": "ReLU", "pool": "Pooling",
    "lrn": "LRN", "dropout": "Dropout", "padding": "Padding", "concat": "Concat",
    "flatten": "Flatten", "softmax": "Softmax", "sigmoid": "Sigmoid", "data": "Data",
}  # fmt: skip

# Where the options of each kind stand: in the middle form, and in the newest.
_OPTIONS = {
    "convolution": (10, 106), "inner_product": (17, 117), "pooling": (19, 121), "relu": (30, 123),
    "eltwise": (24, 110), "batch_norm": (None, 139), "power": (21, 122),
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class CaffeLayer:
    """One layer of a network.

    Attributes
    ----------
    type : str
        As the newest form names it, ``"Convolution"``.
    bottoms, tops : tuple of str
        Names of what it reads and gives.
    blobs : tuple of Tensor
        Its arrays, of the shapes that the file gives.
    shared : str
        Name under which its first array is shared with other layers; "" if it is not.
    options : mapping of str to mapping of int to list of int
        Fields by kind of options and number; floats by their bits.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    blobs: tuple[Tensor, ...]
    shared: str
    options: Mapping[str, Mapping[int, list[int]]]

    def integer(self, kind: str, number: int, default: int) -> int:
        """Return the first value of an option."""
        return next(iter(self.options.get(kind, {}).get(number, [])), default)

    def integers(self, kind: str, *numbers: int) -> list[int]:
        """Return all values of some options."""
        held = self.options.get(kind, {})
        return [value for number in numbers for value in held.get(number, [])]

    def numbers(self, kind: str, number: int) -> list[float]:
        """Return the values of an option that is a real number, or several."""
        return [
            struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]
            for bits in self.integers(kind, number)
        ]


def layers_of(wire: WireFile) -> Iterator[CaffeLayer]:
    """Walk the layers of a network in order.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    for field in wire.fields(wire.span):
        if field.wire == BYTES and field.number == NEWEST:
            yield _newest(wire, field.span)
        elif field.wire == BYTES and field.number == OLDER:
            yield _older(wire, field.span)


def _newest(wire: WireFile, span: Span) -> CaffeLayer:
    fields = _fields(wire, span)
    name = _text(wire, fields, 1)
    parameters = [_fields(wire, each.span) for each in fields[6] if each.wire == BYTES]
    return CaffeLayer(
        name,
        _text(wire, fields, 2),
        _texts(wire, fields, 3),
        _texts(wire, fields, 4),
        _blobs(wire, fields[7], name),
        _text(wire, parameters[0], 1) if parameters else "",
        _options(wire, fields, 1),
    )


def _older(wire: WireFile, span: Span) -> CaffeLayer:
    fields = _fields(wire, span)
    for inner in fields[1]:
        return _oldest(wire, _fields(wire, inner.span), fields)
    name = _text(wire, fields, 4)
    number = fields[5][0].value if fields[5] else 0
    return CaffeLayer(
        name,
        _TYPES.get(number, f"type {number}"),
        _texts(wire, fields, 2),
        _texts(wire, fields, 3),
        _blobs(wire, fields[6], name),
        _text(wire, fields, 1001),
        _options(wire, fields, 0),
    )


def _oldest(
    wire: WireFile, inner: defaultdict[int, list[Field]], outer: defaultdict[int, list[Field]]
) -> CaffeLayer:
    name, kind = _text(wire, inner, 1), _text(wire, inner, 2)
    # Their numbers are those of the layer itself; here they take those of the newest.
    options = {
        "convolution": {5: _values(inner[9]), 6: _values(inner[10])},
        "pooling": {3: _values(inner[10])},
    }
    return CaffeLayer(
        name,
        OLDEST_TYPES.get(kind, kind),
        _texts(wire, outer, 2),
        _texts(wire, outer, 3),
        _blobs(wire, inner[50], name),
        "",
        options,
    )


def _fields(wire: WireFile, span: Span) -> defaultdict[int, list[Field]]:
    found: defaultdict[int, list[Field]] = defaultdict(list)
    for field in wire.fields(span):
        found[field.number].append(field)
    return found


def _text(wire: WireFile, fields: defaultdict[int, list[Field]], number: int) -> str:
    return next(iter(_texts(wire, fields, number)), "")


def _texts(wire: WireFile, fields: defaultdict[int, list[Field]], number: int) -> tuple[str, ...]:
    return tuple(wire.text(field) for field in fields[number] if field.wire == BYTES)


def _values(fields: list[Field]) -> list[int]:
    return [field.value for field in fields if field.wire != BYTES]


def _options(
    wire: WireFile, fields: defaultdict[int, list[Field]], form: int
) -> dict[str, dict[int, list[int]]]:
    options: dict[str, dict[int, list[int]]] = {}
    for kind, numbers in _OPTIONS.items():
        number = numbers[form]
        for field in fields[number] if number is not None else ():
            held = options.setdefault(kind, {})
            for option in wire.fields(field.span) if field.wire == BYTES else ():
                if option.wire != BYTES:
                    held.setdefault(option.number, []).append(option.value)
    return options


def _blobs(wire: WireFile, fields: list[Field], layer: str) -> tuple[Tensor, ...]:
    where = f"{wire.path}: layer {layer[:200]!r}"
    return tuple(_blob(wire, field.span, where) for field in fields if field.wire == BYTES)


def _blob(wire: WireFile, span: Span, where: str) -> Tensor:
    """Describe an array: its shape, and where its values lie in one piece."""
    fields = _fields(wire, span)
    number, dtype, width = (8, "float64", 8) if fields[8] else (5, "float32", 4)
    pieces = fields[number]
    if len(pieces) > 1 or any(piece.wire != BYTES for piece in pieces):
        raise CheckpointError(
            f"{where} keeps its values number by number, as no Caffe writes them; save it again"
        )
    begin, end = pieces[0].span if pieces else (0, 0)
    shape = _shape(wire, fields, where)
    if math.prod(shape) * width != end - begin:
        raise CheckpointError(
            f"{where} claims values of shape {shape}, but has {end - begin} bytes of them; "
            "is the download complete? (NVIDIA's Caffe keeps them in a way of its own, which is "
            "not read)"
        )
    return stored_tensor(wire.path, begin, dtype, shape)


def _shape(wire: WireFile, fields: defaultdict[int, list[Field]], where: str) -> tuple[int, ...]:
    extents: list[int] = []
    for field in fields[7]:
        for dim in wire.fields(field.span) if field.wire == BYTES else ():
            if dim.number == 1:
                extents.extend(wire.integers(dim))
            if len(extents) > MAX_DIMENSIONS:
                break
    if not fields[7]:
        extents = [
            next((field.value for field in fields[number] if field.wire == VARINT), 0)
            for number in (1, 2, 3, 4)
        ]
    if len(extents) > MAX_DIMENSIONS or not all(0 <= extent < 1 << 59 for extent in extents):
        raise CheckpointError(f"{where} claims an impossible shape; is the download complete?")
    return tuple(extents)
