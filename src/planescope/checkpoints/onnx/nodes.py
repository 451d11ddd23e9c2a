"""Nodes of an ONNX graph, and what they make of constants.

Weights are often cast, turned round or dequantised by the graph before a layer uses them. `fold`
follows that: it gives a `Tensor` that computes when it is read.
https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.onnx.tensors import DTYPES, tensor_at
from planescope.checkpoints.protobuf import BYTES, Field, Span, WireFile
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Array, Tensor

if TYPE_CHECKING:
    import numpy as np

_FLOATS = ("float16", "bfloat16", "float32", "float64")

# Least and greatest of the integers that weights are quantised to.
INTEGER_RANGES = {
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph.

    Attributes
    ----------
    op : str
        Its name; with the domain in front where that is not ONNX's own.
    inputs, outputs : tuple of str
        Names of values; "" for an optional one that is not given.
    attributes : tuple of (int, int)
        Where they lie; they are read when asked for.
    """

    wire: WireFile
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Span, ...]

    def integers(self, name: str) -> tuple[int, ...]:
        """Value of an attribute of one or more integers; empty where it is not given."""
        fields = self._attribute(name, 3, 8)
        return tuple(n for field in fields for n in self.wire.integers(field))

    def integer(self, name: str, default: int) -> int:
        """Value of an integer attribute."""
        return (self.integers(name) or (default,))[-1]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Value of an attribute of one or more float32; empty where it is not given."""
        packed = bytearray()
        for field in self._attribute(name, 2, 7):
            is_list = field.wire == BYTES
            packed += (
                self.wire.payload(field.span) if is_list else field.value.to_bytes(8, "little")[:4]
            )
        return struct.unpack(f"<{len(packed) // 4}f", packed[: len(packed) // 4 * 4])

    def number(self, name: str, default: float) -> float:
        """Value of a float32 attribute."""
        return (self.numbers(name) or (default,))[-1]

    def tensors(self, name: str) -> list[Span]:
        """Where the tensor of an attribute lies."""
        return [field.span for field in self._attribute(name, 5)]

    def graphs(self) -> list[Span]:
        """Where the bodies of a loop or branch lie."""
        return [
            part.span
            for span in self.attributes
            for part in self.wire.fields(span)
            if part.number == 6
        ]

    def _attribute(self, name: str, *numbers: int) -> Iterator[Field]:
        for span in self.attributes:
            found = self.wire.find(span, 1)
            if found and self.wire.text(found) == name:
                yield from (part for part in self.wire.fields(span) if part.number in numbers)


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
        op=op if domain in ("", "ai.onnx") else f"{domain}.{op}",
        name="".join(texts(3)[-1:]),
        inputs=texts(1),
        outputs=texts(2),
        attributes=tuple(part.span for part in parts.get(5, ())),
    )


def constant(node: Node) -> Tensor | None:
    """What a Constant node holds; None where that is sparse or text."""
    for span in node.tensors("value"):
        return tensor_at(node.wire, span)
    for name, dtype in (("value_float", "float32"), ("value_int", "int64")):
        if single := node.numbers(name) or node.integers(name):
            return _in_memory(single[-1], dtype)
        if several := node.numbers(f"{name}s") or node.integers(f"{name}s"):
            return _in_memory(several, dtype)
    return None


def fold(node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    """What a node makes of constants; None for an operator that is not followed.

    Parameters
    ----------
    inputs : sequence of Tensor or None
        One for each input of the node; None for an optional one that is not given.

    Raises
    ------
    CheckpointError
        If shapes and attributes do not fit together.
    """
    operator = OPERATORS.get(node.op)
    if operator is None or not inputs or inputs[0] is None:
        return None
    try:
        return operator(node, inputs[0], inputs[1:])
    except ValueError as exc:
        raise CheckpointError(
            f"{node.wire.path}: {node.op} that gives {node.outputs[0]!r}: {exc}; "
            "the file is damaged, get it again"
        ) from exc


def mapped(
    function: Callable[..., Array],
    *tensors: Tensor,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Tensor that is `function` of others; by default with the shape and type of the first."""

    def read() -> Array:
        import numpy as np

        arrays = [tensor.read() for tensor in tensors]
        # What is not finite is for the measurement to report, not for NumPy to warn of.
        with np.errstate(all="ignore"):
            return function(*arrays)

    first = tensors[0]
    return Tensor(first.shape if shape is None else shape, dtype or first.dtype, read)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements in another shape.

    Raises
    ------
    ValueError
        If that shape takes another number of elements.
    """
    possible = len(shape) <= MAX_DIMENSIONS and all(extent >= 0 for extent in shape)
    if not possible or math.prod(shape) != math.prod(tensor.shape):
        raise ValueError(f"shape {tensor.shape} cannot become {shape}")
    return mapped(lambda values: values.reshape(shape), tensor, shape=shape)


def transposed(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """The same elements with the axes in another order.

    Raises
    ------
    ValueError
        If `axes` is no order of the axes.
    """
    if sorted(axes) != list(range(len(tensor.shape))):
        raise ValueError(f"{tuple(axes)} is no order of the axes of shape {tensor.shape}")
    shape = tuple(tensor.shape[axis] for axis in axes)
    return mapped(lambda values: values.transpose(axes), tensor, shape=shape)


# Inputs of a node behind the first one.
_Others = Sequence[Tensor | None]


def _identity(_node: Node, tensor: Tensor, _others: _Others) -> Tensor:
    return tensor


def _cast(node: Node, tensor: Tensor, _others: _Others) -> Tensor | None:
    dtype = DTYPES.get(node.integer("to", 0))
    if dtype not in _FLOATS:
        return None
    return mapped(lambda values: _rounded(values, dtype), tensor, dtype=dtype)


def _transpose(node: Node, tensor: Tensor, _others: _Others) -> Tensor:
    return transposed(tensor, node.integers("perm") or range(len(tensor.shape))[::-1])


def _reshape(node: Node, tensor: Tensor, others: _Others) -> Tensor:
    """To a shape in which 0 copies an extent and -1 takes what remains."""
    wanted = _listed(node, "shape", others)
    if 0 in wanted[len(tensor.shape) :]:
        raise ValueError(f"shape {tensor.shape} has no extent to copy into {wanted}")
    shape = [extent or tensor.shape[axis] for axis, extent in enumerate(wanted)]
    if -1 in shape:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(tensor.shape) // rest if rest > 0 else -1
    return reshaped(tensor, tuple(shape))


def _flatten(node: Node, tensor: Tensor, _others: _Others) -> Tensor:
    axis = node.integer("axis", 1)
    return reshaped(tensor, (math.prod(tensor.shape[:axis]), math.prod(tensor.shape[axis:])))


def _squeeze(node: Node, tensor: Tensor, others: _Others) -> Tensor:
    axes = _listed(node, "axes", others)
    rank = len(tensor.shape)
    gone = {axis % rank for axis in axes} if axes and rank else set()
    return reshaped(
        tensor,
        tuple(
            extent
            for axis, extent in enumerate(tensor.shape)
            if (axis not in gone if axes else extent != 1)
        ),
    )


def _unsqueeze(node: Node, tensor: Tensor, others: _Others) -> Tensor:
    axes = _listed(node, "axes", others)
    rank = len(tensor.shape) + len(axes)
    shape = list(tensor.shape)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return reshaped(tensor, tuple(shape))


def _listed(node: Node, name: str, others: _Others) -> tuple[int, ...]:
    """Integers that a node takes as its second input or, in older opsets, as an attribute."""
    given = others[0] if others else None
    if given is None:
        return node.integers(name)
    if given.is_floating or math.prod(given.shape) > MAX_DIMENSIONS:
        raise ValueError(f"no list of integers for {name}")
    return tuple(int(n) for n in given.read().reshape(-1))


def _dequantize(node: Node, tensor: Tensor, others: _Others) -> Tensor | None:
    """``(x - zero_point) * scale`` in float32, rounded to the type of the result."""
    scale, zero, along = _quantisation(node, tensor, others)
    dtype = DTYPES.get(node.integer("output_dtype", 0), scale.dtype)
    if dtype not in _FLOATS:
        return None

    def compute(steps: np.ndarray, scales: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
        values = steps.astype("float32")
        for zero_points in zeros:
            values -= along(zero_points).astype("float32")
        return _rounded(values * along(scales), dtype)

    return mapped(compute, tensor, scale, *zero, dtype=dtype)


def _quantize(node: Node, tensor: Tensor, others: _Others) -> Tensor | None:
    """``round(x / scale) + zero_point``, halves to even, cut to the range of the result."""
    scale, zero, along = _quantisation(node, tensor, others)
    dtype = zero[0].dtype if zero else DTYPES.get(node.integer("output_dtype", 2), "")
    if dtype not in INTEGER_RANGES:
        return None

    def compute(values: np.ndarray, scales: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
        import numpy as np

        steps = np.rint(values / along(scales))
        for zero_points in zeros:
            steps += along(zero_points)
        cut: np.ndarray = np.clip(steps, *INTEGER_RANGES[dtype])
        return cut.astype(dtype.replace("int4", "int8"))

    return mapped(compute, tensor, scale, *zero, dtype=dtype)


def _quantisation(
    node: Node, tensor: Tensor, others: _Others
) -> tuple[Tensor, list[Tensor], Callable[[np.ndarray], np.ndarray]]:
    """Scale, zero point (if there is one), and what spreads them along the tensor they are for.

    Both are for all of the tensor, for each index of an axis, or for each block along an axis.
    """
    scale = others[0] if others else None
    zero = [other for other in others[1:2] if other is not None]
    if scale is None or any(other.shape != scale.shape for other in zero):
        raise ValueError("scale and zero point are not of one shape")
    if math.prod(scale.shape) == 1:
        return scale, zero, lambda values: values.reshape(())
    shape, rank = tensor.shape, len(tensor.shape)
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    if not -rank <= axis < rank or block < 0:
        raise ValueError(f"axis {axis} or block size {block} is none of shape {shape}")
    axis %= rank
    if block:
        fitting = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    else:
        fitting = (shape[axis],)
    if scale.shape != fitting:
        raise ValueError(f"a scale of shape {scale.shape} does not fit shape {shape}")

    def along(values: np.ndarray) -> np.ndarray:
        if not block:
            return values.reshape(-1, *(1,) * (rank - axis - 1))
        # The last block may be cut short.
        spread = values.repeat(min(block, shape[axis]), axis)
        return spread[(slice(None),) * axis + (slice(shape[axis]),)]

    return scale, zero, along


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as `dtype` has them; those of bfloat16 in float32, as all readers give it."""
    import numpy as np

    if dtype != "bfloat16":
        return values.astype(dtype, copy=False)
    import ml_dtypes

    near: np.ndarray = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return near


def _in_memory(value: float | tuple[float, ...], dtype: str) -> Tensor:
    def read() -> np.ndarray:
        import numpy as np

        return np.array(value, dtype=dtype)

    return Tensor((len(value),) if isinstance(value, tuple) else (), dtype, read)


# By name, what `fold` follows.
OPERATORS: dict[str, Callable[[Node, Tensor, _Others], Tensor | None]] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Flatten": _flatten,
    "Identity": _identity,
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
