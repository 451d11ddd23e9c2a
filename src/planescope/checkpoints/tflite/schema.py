"""Operators and tensors of a FlatBuffer, as plain records."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.files.errors import CheckpointError
from planescope.files.reading import open_binary, read_exactly

# FlatBuffers have 31 bits for an address.
MAX_BYTES = (1 << 31) - 1

# Some ten times what the largest published models have. A few bytes can be many tables' part.
MAX_ITEMS = 2_000_000

# What the packages raise where a file leads them astray.
_ASTRAY = (struct.error, ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Integers that stand for numbers: (stored - zero point) * scale, by index of an axis."""

    scales: np.ndarray
    zeros: np.ndarray
    axis: int


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a sparse tensor: dense, or with the indices that are there."""

    size: int
    segments: np.ndarray | None
    indices: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The layout of a sparse tensor: order of its dimensions, and those cut into blocks."""

    order: tuple[int, ...]
    blocks: tuple[int, ...]
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a graph; its bytes lie from `begin` to `end`, which are one where it has none."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    end: int
    quantisation: Quantisation | None
    sparsity: Sparsity | None


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a graph.

    Attributes
    ----------
    op : str
        TensorFlow Lite's word (``CONV_2D``), or the name of a custom one.
    inputs, outputs : tuple of int
        Numbers of tensors; -1 for one that is not given.
    options : mapping of str to int
        ``activation``, ``stride``, ``multiplier``, ``turned`` and the like, where it has them.
    """

    op: str
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph: the model's own, or the body of a loop or branch."""

    tensors: tuple[Stored, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def graphs_at(path: Path) -> list[Graph]:
    """Read all graphs of a model, the model's own first.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are more than a FlatBuffer can have")
    data = read_exactly(path, 0, size)
    try:
        return list(_Reading(path, data).graphs())
    except _ASTRAY as exc:
        raise CheckpointError(
            f"{path}: a damaged TensorFlow Lite model, whose tables lead out of the file or hold "
            f"no such thing ({exc}); is the "
            "download complete?"
        ) from exc


@cache
def _words() -> dict[int, str]:
    from tflite.BuiltinOperator import BuiltinOperator

    return {code: word for word, code in vars(BuiltinOperator).items() if isinstance(code, int)}


class _Reading:
    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.items = 0

    def graphs(self) -> Iterator[Graph]:
        from tflite.Model import Model

        model = Model.GetRootAs(self.data, 0)
        codes = [model.OperatorCodes(i) for i in self.counted(model.OperatorCodesLength())]
        names = [self._word(code) for code in codes]
        for i in self.counted(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            tensors = tuple(
                self._tensor(model, graph.Tensors(j)) for j in self.counted(graph.TensorsLength())
            )
            operators = tuple(
                self._operator(names, graph.Operators(j))
                for j in self.counted(graph.OperatorsLength())
            )
            inputs = self._integers(graph.InputsAsNumpy(), graph.InputsLength())
            outputs = self._integers(graph.OutputsAsNumpy(), graph.OutputsLength())
            used = [*inputs, *outputs]
            for operator in operators:
                used += (*operator.inputs, *operator.outputs)
            if used and not -1 <= min(used) <= max(used) < len(tensors):
                raise ValueError(f"a tensor beyond the {len(tensors)} that there are")
            yield Graph(tensors, operators, inputs, outputs)

    def counted(self, count: int) -> range:
        """Count what is read: one table may be a part of many."""
        self.items += count
        if self.items > MAX_ITEMS:
            raise CheckpointError(
                f"{self.path}: more than {MAX_ITEMS} items, beyond any real model; is it damaged?"
            )
        return range(count)

    def _integers(self, array: Any, count: int) -> tuple[int, ...]:
        self.counted(count)
        return tuple(array.tolist()) if count else ()

    def _word(self, code: Any) -> tuple[str, bool]:
        # Up to 127 operators a byte was enough.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        word = _words().get(number, f"operator {number}")
        if word != "CUSTOM":
            return word, False
        custom = code.CustomCode()
        return (custom.decode(errors="replace") if custom else word), True

    def _tensor(self, model: Any, tensor: Any) -> Stored:
        shape = self._integers(tensor.ShapeAsNumpy(), tensor.ShapeLength())
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"a shape of {len(shape)} dimensions")
        name = tensor.Name()
        begin, end = self._place(model, tensor.Buffer())
        return Stored(
            name=name.decode(errors="replace") if name else "",
            shape=shape,
            type=tensor.Type(),
            begin=begin,
            end=end,
            quantisation=self._quantisation(tensor.Quantization()),
            sparsity=self._sparsity(tensor.Sparsity()),
        )

    def _place(self, model: Any, number: int) -> tuple[int, int]:
        """Tell where a buffer's bytes lie; the first buffer is that of tensors without any."""
        if not 0 < number < model.BuffersLength():
            return 0, 0
        buffer = model.Buffers(number)
        if buffer.Offset() > 1:  # of models so large that their data lie behind the tables
            begin, length = buffer.Offset(), buffer.Size()
        else:
            length = buffer.DataLength()
            at = buffer._tab.Offset(4)
            begin = buffer._tab.Vector(at) if at else 0
        if not 0 <= begin <= begin + length <= len(self.data):
            raise ValueError(f"bytes {begin} to {begin + length} of {len(self.data)}")
        return begin, begin + length

    def _quantisation(self, told: Any) -> Quantisation | None:
        if told is None or not told.ScaleLength():
            return None
        self.counted(told.ScaleLength() + told.ZeroPointLength())
        scales = np.array(told.ScaleAsNumpy(), dtype=np.float32)
        zeros = np.array(told.ZeroPointAsNumpy() if told.ZeroPointLength() else [0], np.int64)
        if len(zeros) not in (1, len(scales)):
            raise ValueError(f"{len(scales)} scales and {len(zeros)} zero points")
        return Quantisation(scales, zeros, told.QuantizedDimension())

    def _sparsity(self, told: Any) -> Sparsity | None:
        if told is None:
            return None
        order = self._integers(told.TraversalOrderAsNumpy(), told.TraversalOrderLength())
        blocks = self._integers(told.BlockMapAsNumpy(), told.BlockMapLength())
        dimensions = []
        for i in self.counted(told.DimMetadataLength()):
            meta = told.DimMetadata(i)
            if meta.Format() == 0:
                dimensions.append(Dimension(meta.DenseSize(), None, None))
                continue
            segments = self._packed(meta.ArraySegmentsType(), meta.ArraySegments())
            indices = self._packed(meta.ArrayIndicesType(), meta.ArrayIndices())
            dimensions.append(Dimension(0, segments, indices))
        return Sparsity(order, blocks, tuple(dimensions))

    def _packed(self, kind: int, table: Any) -> np.ndarray:
        from tflite.Int32Vector import Int32Vector
        from tflite.Uint8Vector import Uint8Vector
        from tflite.Uint16Vector import Uint16Vector

        vector = {1: Int32Vector, 2: Uint16Vector, 3: Uint8Vector}[kind]()
        vector.Init(table.Bytes, table.Pos)
        self.counted(vector.ValuesLength())
        return np.array(vector.ValuesAsNumpy() if vector.ValuesLength() else [], dtype=np.int64)

    def _operator(self, names: list[tuple[str, bool]], operator: Any) -> Operator:
        word, is_custom = names[operator.OpcodeIndex()]
        return Operator(
            op=word,
            is_custom=is_custom,
            inputs=self._integers(operator.InputsAsNumpy(), operator.InputsLength()),
            outputs=self._integers(operator.OutputsAsNumpy(), operator.OutputsLength()),
            options=_options(word, operator),
        )


def _options(word: str, operator: Any) -> dict[str, int]:
    """Read what an operator's options say that matters here."""
    reader = _option_reader(word)
    table = operator.BuiltinOptions()
    if reader is None or table is None:
        return {}
    options, asked = reader()
    options.Init(table.Bytes, table.Pos)
    return {name: int(getattr(options, method)()) for name, method in asked.items()}


_FUSED = {"activation": "FusedActivationFunction"}
_STRIDES = {"stride_w": "StrideW", "stride_h": "StrideH"}
_ASKED = {
    "CONV_2D": ("Conv2DOptions", {**_FUSED, **_STRIDES}),
    "CONV_3D": ("Conv3DOptions", {**_FUSED, **_STRIDES, "stride_d": "StrideD"}),
    "CONV_3D_TRANSPOSE": ("Conv3DOptions", _FUSED),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        {**_FUSED, **_STRIDES, "multiplier": "DepthMultiplier"},
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", {**_FUSED, "format": "WeightsFormat"}),
    "TRANSPOSE_CONV": ("TransposeConvOptions", _FUSED),
    "BATCH_MATMUL": ("BatchMatMulOptions", {"turned": "AdjY"}),
    "MAX_POOL_2D": ("Pool2DOptions", {**_FUSED, **_STRIDES}),
    "AVERAGE_POOL_2D": ("Pool2DOptions", {**_FUSED, **_STRIDES}),
    "L2_POOL_2D": ("Pool2DOptions", {**_FUSED, **_STRIDES}),
    "ADD": ("AddOptions", _FUSED),
    "SUB": ("SubOptions", _FUSED),
    "MUL": ("MulOptions", _FUSED),
    "DIV": ("DivOptions", _FUSED),
    "CONCATENATION": ("ConcatenationOptions", _FUSED),
    "IF": ("IfOptions", {"then": "ThenSubgraphIndex", "else": "ElseSubgraphIndex"}),
    "WHILE": ("WhileOptions", {"body": "BodySubgraphIndex"}),
}


def _option_reader(word: str) -> Any:
    from importlib import import_module

    if word not in _ASKED:
        return None
    name, asked = _ASKED[word]
    made = getattr(import_module(f"tflite.{name}"), name)
    return lambda: (made(), asked)
