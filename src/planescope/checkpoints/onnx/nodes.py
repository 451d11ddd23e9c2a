"""Nodes of an ONNX graph: what each reads and gives, and its attributes.

https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planescope.checkpoints.onnx.tensors import tensor_at
from planescope.checkpoints.protobuf import BYTES, Field, Span, WireFile
from planescope.hyperplanes.layer import Tensor


class Name(NamedTuple):
    """A value of a graph: as the file calls it, and the number of the scope that defines it."""

    text: str
    scope: int


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator of a graph.

    Attributes
    ----------
    op : str
        Its name; with the domain in front where that is not ONNX's own.
    input_texts, output_texts : tuple of str
        Names of values as written; "" for an optional one that is not given.
    attributes, annotations : tuple of (int, int)
        Where they lie; they are read when asked for.
    inputs, outputs : tuple of Name or None
        The values that the names stand for where the node is.
    given : mapping of str to (int, int)
        Within a function: the attributes that it is called with.
    """

    wire: WireFile
    op: str
    name: str
    input_texts: tuple[str, ...]
    output_texts: tuple[str, ...]
    attributes: tuple[Span, ...]
    overload: str = ""
    inputs: tuple[Name | None, ...] = ()
    outputs: tuple[Name | None, ...] = ()
    given: Mapping[str, Span] = dataclasses.field(default_factory=dict)
    annotations: tuple[Span, ...] = ()

    @property
    def output(self) -> Name:
        """Return the first of the values that it gives."""
        return next(name for name in self.outputs if name is not None)

    def input(self, number: int) -> Name | None:
        """Return the value that it reads at a position; None where it reads none there."""
        return self.inputs[number] if number < len(self.inputs) else None

    def integers(self, name: str) -> tuple[int, ...]:
        """Return the value of an attribute of one or more integers; empty where it is not given."""
        fields = self._attribute(name, 3, 8)
        return tuple(n for field in fields for n in self.wire.integers(field))

    def integer(self, name: str, default: int) -> int:
        """Return the value of an integer attribute."""
        return (self.integers(name) or (default,))[-1]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return the value of an attribute of one or more float32; empty where it is not given."""
        packed = bytearray()
        for field in self._attribute(name, 2, 7):
            is_list = field.wire == BYTES
            packed += (
                self.wire.payload(field.span) if is_list else field.value.to_bytes(8, "little")[:4]
            )
        return struct.unpack(f"<{len(packed) // 4}f", packed[: len(packed) // 4 * 4])

    def number(self, name: str, default: float) -> float:
        """Return the value of a float32 attribute."""
        return (self.numbers(name) or (default,))[-1]

    def tensors(self, name: str) -> list[Span]:
        """Return where the tensor of an attribute lies."""
        return [field.span for field in self._attribute(name, 5)]

    def sparse_tensors(self, name: str) -> list[Span]:
        """Return where the sparse tensor of an attribute lies."""
        return [field.span for field in self._attribute(name, 22)]

    def graphs(self) -> list[Span]:
        """Return where the bodies of a loop or branch lie."""
        return [
            part.span
            for span in (self.spans().values() if self.given else self.attributes)
            for part in self.wire.fields(span)
            if part.number == 6
        ]

    def text(self, name: str) -> str:
        """Return the value of an attribute of text; "" where it is not given."""
        fields = [self.wire.text(field) for field in self._attribute(name, 4)]
        return "".join(fields[-1:])

    def texts(self, name: str) -> list[str]:
        """Return the value of an attribute of several texts."""
        return [self.wire.text(field) for field in self._attribute(name, 9)]

    def annotation(self, key: str) -> str:
        """Return what the exporter wrote beside the node under a key; "" where it wrote nothing."""
        for span in self.annotations:
            name, value = self.wire.find(span, 1), self.wire.find(span, 2)
            if name and value and self.wire.text(name) == key:
                return self.wire.text(value)
        return ""

    def spans(self) -> dict[str, Span]:
        """Return where each attribute lies, by its name; within a function, those of the call."""
        found = {}
        for span in self.attributes:
            name, refers = self.wire.find(span, 1), None
            if self.given:
                refers = self.wire.find(span, 21)
            if name and (refers is None or self.wire.text(refers) in self.given):
                target = self.given[self.wire.text(refers)] if refers else span
                found[self.wire.text(name)] = target
        return found

    def _attribute(self, name: str, *numbers: int) -> Iterator[Field]:
        if self.given:
            spans = [self.spans()[name]] if name in self.spans() else []
        else:
            spans = [span for span in self.attributes if self._is_called(span, name)]
        for span in spans:
            yield from (part for part in self.wire.fields(span) if part.number in numbers)

    def _is_called(self, span: Span, name: str) -> bool:
        found = self.wire.find(span, 1)
        return found is not None and self.wire.text(found) == name


def qualified(domain: str, op: str) -> str:
    """Name of an operator, with its domain in front where that is not ONNX's own."""
    return op if domain in ("", "ai.onnx") else f"{domain}.{op}"


def node_at(wire: WireFile, span: Span) -> Node:
    """Read the NodeProto at `span`, all but its attributes."""
    parts: dict[int, list[Field]] = {}
    for part in wire.fields(span):
        parts.setdefault(part.number, []).append(part)

    def texts(number: int) -> tuple[str, ...]:
        return tuple(wire.text(part) for part in parts.get(number, ()))

    op, domain = "".join(texts(4)[-1:]), "".join(texts(7)[-1:])
    return Node(
        wire=wire,
        op=qualified(domain, op),
        overload="".join(texts(8)[-1:]),
        name="".join(texts(3)[-1:]),
        input_texts=texts(1),
        output_texts=texts(2),
        attributes=tuple(part.span for part in parts.get(5, ())),
        annotations=tuple(part.span for part in parts.get(9, ())),
    )


def constant(node: Node) -> Tensor | None:
    """Return the value of a Constant node; None for sparse values and text."""
    for span in node.tensors("value"):
        return tensor_at(node.wire, span)
    for name, dtype in (("value_float", "float32"), ("value_int", "int64")):
        if single := node.numbers(name) or node.integers(name):
            return in_memory(single[-1], dtype)
        if several := node.numbers(f"{name}s") or node.integers(f"{name}s"):
            return in_memory(several, dtype)
    return None


def in_memory(value: float | tuple[float, ...], dtype: str) -> Tensor:
    """Return the tensor of numbers that are at hand."""

    def read() -> np.ndarray:
        return np.array(value, dtype=dtype)

    return Tensor((len(value),) if isinstance(value, tuple) else (), dtype, read)
