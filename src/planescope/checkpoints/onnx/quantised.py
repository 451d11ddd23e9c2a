"""Weights that an ONNX graph stores as integers, and what they stand for.

https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import FLOATS, mapped, rounded
from planescope.checkpoints.onnx.nodes import Node
from planescope.checkpoints.onnx.tensors import DTYPES
from planescope.hyperplanes.layer import Tensor

# Least and greatest of the integers that weights are quantised to.
INTEGER_RANGES = {
    "uint2": (0, 3),
    "int2": (-2, 1),
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
}

# Inputs of a node behind the first one.
_Others = Sequence[Tensor | None]


def dequantize(node: Node, tensor: Tensor, others: _Others) -> Tensor | None:
    """Return ``(x - zero_point) * scale`` in float32, rounded to the type of the result."""
    scale, zero, along = _quantisation(node, tensor, others)
    dtype = DTYPES.get(node.integer("output_dtype", 0), scale.dtype)
    if dtype not in FLOATS:
        return None

    def compute(steps: np.ndarray, scales: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
        values = steps.astype("float32")
        for zero_points in zeros:
            values -= along(zero_points).astype("float32")
        return rounded(values * along(scales), dtype)

    return mapped(compute, tensor, scale, *zero, dtype=dtype)


def quantize(node: Node, tensor: Tensor, others: _Others) -> Tensor | None:
    """Return ``round(x / scale) + zero_point``, halves to even, cut to the range of the result."""
    scale, zero, along = _quantisation(node, tensor, others)
    dtype = zero[0].dtype if zero else DTYPES.get(node.integer("output_dtype", 2), "")
    if dtype not in INTEGER_RANGES:
        return None

    def compute(values: np.ndarray, scales: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
        steps = np.rint(values / along(scales))
        for zero_points in zeros:
            steps += along(zero_points)
        cut: np.ndarray = np.clip(steps, *INTEGER_RANGES[dtype])
        return cut.astype(re.sub("int[24]", "int8", dtype))

    return mapped(compute, tensor, scale, *zero, dtype=dtype)


def _quantisation(
    node: Node, tensor: Tensor, others: _Others
) -> tuple[Tensor, list[Tensor], Callable[[np.ndarray], np.ndarray]]:
    """Scale, zero point (if there is one), and what spreads them along the tensor they are for.

    Both are for all of the tensor, for each index of an axis, or for each block along an axis.
    """
    scale = others[0] if others else None
    zero = [other for other in others[1:2] if other is not None]
    sizes = {
        other.shape if math.prod(other.shape) != 1 else () for other in (scale, *zero) if other
    }
    if scale is None or len(sizes) != 1:
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


def scaled(weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return weights of whole numbers with their filters first, as ``(q - zero_point) * scale``.

    Scale and zero point have one element, or one for each filter.
    """
    dtype = scale.dtype if scale.dtype in FLOATS else "float32"

    def compute(steps: np.ndarray, scales: np.ndarray, *zeros: np.ndarray) -> np.ndarray:
        column = (-1, *(1,) * (steps.ndim - 1))
        values = steps.astype("float32")
        for zero_points in zeros:
            values = values - zero_points.reshape(column).astype("float32")
        return rounded(values * scales.reshape(column), dtype)

    operands = [weight, scale, *([] if zero is None else [zero])]
    return mapped(compute, *operands, dtype=dtype)


def in_blocks(node: Node, packed: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Return the matrix of shape (N, K) whose numbers are packed to a few bits, in blocks along K.

    Raises
    ------
    ValueError
        If shapes and attributes do not fit together.
    """
    rows, columns = node.integer("N", 0), node.integer("K", 0)
    bits, size = node.integer("bits", 4), node.integer("block_size", 32)
    if bits not in (2, 4, 8) or min(rows, columns, size) < 1 or size * bits % 8:
        raise ValueError("bits, block size or shape are invalid")
    blocks = -(-columns // size)
    if math.prod(packed.shape) != rows * blocks * (size * bits // 8) or packed.dtype != "uint8":
        raise ValueError("not as many bytes as the shape takes")
    if math.prod(scales.shape) != rows * blocks:
        raise ValueError("not as many scales as blocks")
    row_bytes = -(-blocks * bits // 8)
    is_packed = zeros is not None and zeros.dtype == "uint8"
    wanted = rows * (row_bytes if is_packed else blocks)
    if zeros is not None and math.prod(zeros.shape) != wanted:
        raise ValueError("not as many zero points as blocks")
    dtype = scales.dtype if scales.dtype in FLOATS else "float32"

    def compute(stored: np.ndarray, factors: np.ndarray, *points: np.ndarray) -> np.ndarray:
        steps = _unpacked(stored.reshape(-1), bits).reshape(rows, blocks, size).astype("float32")
        middle = np.float32(1 << (bits - 1))
        if points and is_packed:
            each = _unpacked(points[0].reshape(-1), bits).reshape(rows, -1)[:, :blocks]
            steps -= each[..., None].astype("float32")
        elif points:
            steps -= points[0].reshape(rows, blocks, 1).astype("float32")
        else:
            steps -= middle
        steps *= factors.reshape(rows, blocks, 1)
        return rounded(steps.reshape(rows, -1)[:, :columns], dtype)

    operands = [packed, scales, *([] if zeros is None else [zeros])]
    return mapped(compute, *operands, shape=(rows, columns), dtype=dtype)


def _unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers of a few bits from bytes, the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((stored[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
