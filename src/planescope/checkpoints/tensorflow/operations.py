"""The operations of a TensorFlow graph, as a GraphDef lists them.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/node_def.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planescope.checkpoints.protobuf import BYTES, Field, Span, WireFile, signed
from planescope.checkpoints.tensorflow.tensors import shape_at


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a graph.

    Attributes
    ----------
    op : str
        What it does (``Conv2D``).
    name : str
    inputs : tuple of str
        Values that it takes: names of operations, with ``:1`` behind that of a second output.
    attributes : mapping of str to object
        Numbers, bools, bytes, shapes, lists of these, and where a tensor lies.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """Give an attribute that is text."""
        value = self.attributes.get(name)
        return value.decode(errors="replace") if isinstance(value, bytes) else default

    def texts(self, name: str) -> tuple[str, ...]:
        """Give an attribute that is a list of texts."""
        values = self.attributes.get(name)
        return tuple(
            value.decode(errors="replace")
            for value in (values if isinstance(values, list) else ())
            if isinstance(value, bytes)
        )

    def integers(self, name: str) -> tuple[int, ...]:
        """Give an attribute that is a list of integers; empty where it has none."""
        values = self.attributes.get(name)
        values = values if isinstance(values, list) else ()
        return tuple(value for value in values if isinstance(value, int))

    def number(self, name: str, default: float) -> float:
        """Give an attribute that is a number."""
        value = self.attributes.get(name)
        return float(value) if isinstance(value, int | float) else default

    def flag(self, name: str, default: bool = False) -> bool:
        """Give an attribute that is true or false."""
        value = self.attributes.get(name)
        return bool(value) if isinstance(value, bool | int) else default


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a graph's library: a body that operations call by its name.

    Attributes
    ----------
    arguments : tuple of str
    outputs : mapping of str to str
        Values of the body by the names of what the function gives, in their order.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: Mapping[str, str]
    operations: tuple[Operation, ...]


def operations_at(wire: WireFile, spans: Iterable[Span]) -> list[Operation]:
    """Read the operations of the GraphDef at `spans`; a message may be written in parts."""
    return [
        operation_at(wire, part.span)
        for span in spans
        for part in wire.fields(span)
        if part.number == 1 and part.wire == BYTES
    ]


def functions_at(wire: WireFile, spans: Iterable[Span]) -> Iterator[Function]:
    """Read the library of functions of the GraphDef at `spans`."""
    for span in spans:
        for part in wire.fields(span):
            if part.number == 2 and part.wire == BYTES:
                for function in wire.fields(part.span):
                    if function.number == 1 and function.wire == BYTES:
                        yield _function_at(wire, function.span)


def _function_at(wire: WireFile, span: Span) -> Function:
    name = ""
    arguments: list[str] = []
    order: list[str] = []
    operations: list[Operation] = []
    returned: dict[str, str] = {}
    for part in wire.fields(span):
        if part.wire != BYTES:
            continue
        if part.number == 1:
            for each in wire.fields(part.span):
                if each.number == 1 and each.wire == BYTES:
                    name = wire.text(each)
                elif each.number in (2, 3) and each.wire == BYTES:
                    given = wire.find(each.span, 1)
                    into = arguments if each.number == 2 else order
                    into.append(wire.text(given) if given and given.wire == BYTES else "")
        elif part.number == 3:
            operations.append(operation_at(wire, part.span))
        elif part.number == 4:
            key, value = wire.find(part.span, 1), wire.find(part.span, 2)
            if key and value and key.wire == value.wire == BYTES:
                returned[wire.text(key)] = wire.text(value)
    outputs = {each: returned[each] for each in order if each in returned}
    return Function(name, tuple(arguments), outputs, tuple(operations))


def operation_at(wire: WireFile, span: Span) -> Operation:
    """Read the NodeDef at `span`; tensors among its attributes stay where they are."""
    op, name = "", ""
    inputs: list[str] = []
    attributes: dict[str, Any] = {}
    for part in wire.fields(span):
        if part.wire != BYTES:
            continue
        match part.number:
            case 1:
                name = wire.text(part)
            case 2:
                op = wire.text(part)
            case 3:
                inputs.append(wire.text(part))
            case 5:
                key, value = wire.find(part.span, 1), wire.find(part.span, 2)
                if key and value and key.wire == value.wire == BYTES:
                    attributes[wire.text(key)] = _attribute(wire, value.span)
    return Operation(op, name, values_of(inputs), attributes)


def values_of(inputs: Iterable[str]) -> tuple[str, ...]:
    """Name the values among an operation's inputs: those that begin with ^ only tell an order."""
    return tuple(name.removesuffix(":0") for name in inputs if not name.startswith("^"))


def _attribute(wire: WireFile, span: Span) -> Any:
    for part in wire.fields(span):
        if part.number == 1 and part.wire == BYTES:  # a list
            return _list(wire, part)
        return _value(wire, part, 0)
    return None


def _list(wire: WireFile, field: Field) -> list[Any]:
    values: list[Any] = []
    for part in wire.fields(field.span):
        if part.wire == BYTES and part.number in (3, 5, 6):
            values += wire.integers(part)
        elif part.wire == BYTES and part.number == 4:
            packed = wire.payload(part.span)
            values += struct.unpack(f"<{len(packed) // 4}f", packed[: len(packed) // 4 * 4])
        else:
            values.append(_value(wire, part, 1))
    return values


def _value(wire: WireFile, part: Field, of_list: int) -> Any:
    match part.number:
        case 2 if part.wire == BYTES:
            return wire.payload(part.span)
        case 3:
            return signed(part.value)
        case 4:
            return struct.unpack("<f", (part.value & 0xFFFFFFFF).to_bytes(4, "little"))[0]
        case 5:
            return bool(part.value)
        case 6:
            return part.value
        case 7 if part.wire == BYTES:
            shape = shape_at(wire, part)
            return None if shape is None else list(shape)
        case 8 if part.wire == BYTES:
            return part.span
        case number if part.wire == BYTES and number == 10 - of_list:
            name = wire.find(part.span, 1)
            return wire.payload(name.span) if name and name.wire == BYTES else None
    return None
