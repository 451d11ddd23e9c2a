"""Operations on constants, computed: weights are cast, reshaped and scaled before they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.onnx.constants.arithmetic import mapped, reshaped, transposed
from planescope.checkpoints.tensorflow.operations import Operation
from planescope.checkpoints.tensorflow.tensors import DTYPES
from planescope.hyperplanes.layer import Tensor

# These give what they get.
SILENT = frozenset((
    "CheckNumerics", "Enter", "Identity", "IdentityN", "PreventGradient", "ReadVariableOp",
    "RefIdentity", "Snapshot", "StopGradient",
))  # fmt: skip

_FLOATS = ("float16", "bfloat16", "float32", "float64")

_Inputs = Sequence[Tensor]


def fold(operation: Operation, inputs: _Inputs) -> Tensor | None:
    """Tell what an operation makes of constants; None for one that is not followed.

    Raises
    ------
    ValueError
        If shapes and attributes do not fit together.
    """
    if not inputs:
        return None
    if operation.op in SILENT:
        return inputs[0]
    follow = _OPERATORS.get(operation.op)
    return None if follow is None else follow(operation, inputs)


def _cast(operation: Operation, inputs: _Inputs) -> Tensor | None:
    to = operation.attributes.get("DstT")
    dtype = DTYPES.get(to) if isinstance(to, int) else None
    if dtype not in _FLOATS:
        return None
    if dtype == "bfloat16":
        import ml_dtypes

        half = ml_dtypes.bfloat16
        return mapped(lambda v: v.astype(half).astype(np.float32), inputs[0], dtype=dtype)
    return mapped(lambda values: values.astype(dtype), inputs[0], dtype=dtype)


def _reshape(_operation: Operation, inputs: _Inputs) -> Tensor:
    shape = list(_listed(inputs[1:]))
    if -1 in shape:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(inputs[0].shape) // rest if rest > 0 else -1
    return reshaped(inputs[0], tuple(shape))


def _expand(_operation: Operation, inputs: _Inputs) -> Tensor:
    shape = list(inputs[0].shape)
    for axis in _listed(inputs[1:]):
        at = axis + len(shape) + 1 if axis < 0 else axis
        if not 0 <= at <= len(shape):
            raise ValueError(f"shape {tuple(shape)} has no place for axis {axis}")
        shape.insert(at, 1)
    return reshaped(inputs[0], tuple(shape))


def _squeeze(operation: Operation, inputs: _Inputs) -> Tensor:
    shape = inputs[0].shape
    axes = operation.integers("squeeze_dims") or operation.integers("axis")
    gone = {axis % len(shape) for axis in axes} if shape else set()
    kept = (
        extent for axis, extent in enumerate(shape) if (axis not in gone if axes else extent != 1)
    )
    return reshaped(inputs[0], tuple(kept))


def _transpose(_operation: Operation, inputs: _Inputs) -> Tensor:
    return transposed(inputs[0], _listed(inputs[1:]))


def _strided_slice(operation: Operation, inputs: _Inputs) -> Tensor | None:
    if len(inputs) != 4 or operation.number("ellipsis_mask", 0):
        return None
    begins, ends, steps = (_listed([each]) for each in inputs[1:])
    if not len(begins) == len(ends) == len(steps) <= MAX_DIMENSIONS // 2 or 0 in steps:
        raise ValueError("a slice whose begin, end and strides do not fit together")
    masks = ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask")
    open_begin, open_end, new, single = (int(operation.number(mask, 0)) for mask in masks)
    index: list[slice | int | None] = []
    for axis, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        bit = 1 << axis
        if new & bit:
            index.append(None)
        elif single & bit:
            index.append(begin)
        else:
            index.append(
                slice(None if open_begin & bit else begin, None if open_end & bit else end, step)
            )
    at = tuple(index)
    try:
        shape = np.broadcast_to(np.float32(0), inputs[0].shape)[at].shape
    except IndexError as exc:
        raise ValueError(f"a slice beyond shape {inputs[0].shape}") from exc
    return mapped(lambda values: values[at], inputs[0], shape=shape)


def _listed(others: _Inputs) -> tuple[int, ...]:
    if not others or others[0].is_floating or math.prod(others[0].shape) > MAX_DIMENSIONS:
        raise ValueError("no list of integers where one is wanted")
    return tuple(int(n) for n in others[0].read().reshape(-1))


def _elementwise(
    function: Callable[..., np.ndarray], operands: int
) -> Callable[..., Tensor | None]:
    def follow(_operation: Operation, inputs: _Inputs) -> Tensor | None:
        if len(inputs) != operands or not all(tensor.is_floating for tensor in inputs):
            return None
        shape = np.broadcast_shapes(*(tensor.shape for tensor in inputs))
        # Two small ones may be spread to what no memory holds.
        if math.prod(shape) > max(math.prod(tensor.shape) for tensor in inputs):
            return None
        return mapped(function, *inputs, shape=shape)

    return follow


_OPERATORS: dict[str, Callable[[Operation, _Inputs], Tensor | None]] = {
    "Cast": _cast,
    "Reshape": _reshape,
    "ExpandDims": _expand,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Transpose": _transpose,
    "Add": _elementwise(np.add, 2),
    "AddV2": _elementwise(np.add, 2),
    "Sub": _elementwise(np.subtract, 2),
    "Mul": _elementwise(np.multiply, 2),
    "RealDiv": _elementwise(np.divide, 2),
    "Neg": _elementwise(np.negative, 1),
    "Square": _elementwise(np.square, 1),
    "Sqrt": _elementwise(np.sqrt, 1),
    "Rsqrt": _elementwise(lambda values: 1 / np.sqrt(values), 1),
    "Maximum": _elementwise(np.maximum, 2),
    "Minimum": _elementwise(np.minimum, 2),
}
