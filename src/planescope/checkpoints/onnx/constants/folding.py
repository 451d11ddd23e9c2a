"""Operators of an ONNX graph that act on constants, computed when the file is read.

Weights are often cast, turned round, scaled, put together or normalised by the graph before a layer
uses them. Shapes are told without reading a weight.
https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import (
    FLOATS,
    mapped,
    reshaped,
    rounded,
    transposed,
)
from planescope.checkpoints.onnx.constants.elementwise import (
    Operator,
    Others,
    axis_of,
    chosen_where,
    clipped,
    compared,
    denied,
    elementwise,
    listed,
    of_all,
    power_of,
    quotient,
    reduced,
    root_of_squares,
    triangle,
)
from planescope.checkpoints.onnx.constants.normalising import (
    batch_normalised,
    instance_normalised,
    layer_normalised,
)
from planescope.checkpoints.onnx.constants.products import (
    einstein_sum,
    general_product,
    matrix_product,
)
from planescope.checkpoints.onnx.nodes import Node, in_memory
from planescope.checkpoints.onnx.quantised import dequantize, quantize
from planescope.checkpoints.onnx.tensors import DTYPES, tensor_at
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor


def fold(node: Node, inputs: Sequence[Tensor | None], output: int = 0) -> Tensor | None:
    """Tell what a node makes of constants; None for an operator that is not followed.

    Parameters
    ----------
    inputs : sequence of Tensor or None
        One for each input of the node; None for an optional one that is not given.
    output : int
        Which of its outputs.

    Raises
    ------
    CheckpointError
        If shapes and attributes do not fit together.
    """
    if not inputs or inputs[0] is None:
        return None
    try:
        if node.op == "Split":
            return _split(node, inputs[0], inputs[1:], output)
        operator = OPERATORS.get(node.op)
        return None if operator is None or output else operator(node, inputs[0], inputs[1:])
    except ValueError as exc:
        raise CheckpointError(
            f"{node.wire.path}: {node.op} that gives {node.output.text!r}: {exc}; "
            "the file is damaged, get it again"
        ) from exc


# Other shapes of the same elements.


def _identity(_node: Node, tensor: Tensor, _others: Others) -> Tensor:
    return tensor


def _cast(node: Node, tensor: Tensor, _others: Others) -> Tensor | None:
    return _as(tensor, DTYPES.get(node.integer("to", 0)))


def _cast_like(_node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    if not others:
        return None
    if others[0] is None:  # the type of a value that the network computes: floating point
        return tensor if tensor.is_floating else _as(tensor, "float32")
    return _as(tensor, others[0].dtype)


def _as(tensor: Tensor, dtype: str | None) -> Tensor | None:
    if dtype in FLOATS:
        return mapped(lambda values: rounded(values, dtype), tensor, dtype=dtype)
    if dtype in ("int32", "int64", "bool"):
        return mapped(lambda values: values.astype(dtype), tensor, dtype=dtype)
    return None


def _transpose(node: Node, tensor: Tensor, _others: Others) -> Tensor:
    return transposed(tensor, node.integers("perm") or range(len(tensor.shape))[::-1])


def _reshape(node: Node, tensor: Tensor, others: Others) -> Tensor:
    """Reshape; 0 in a shape copies an extent, and -1 takes what remains."""
    wanted = listed(node, "shape", others)
    if 0 in wanted[len(tensor.shape) :]:
        raise ValueError(f"shape {tensor.shape} has no extent to copy into {wanted}")
    shape = [extent or tensor.shape[axis] for axis, extent in enumerate(wanted)]
    if -1 in shape:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(tensor.shape) // rest if rest > 0 else -1
    return reshaped(tensor, tuple(shape))


def _flatten(node: Node, tensor: Tensor, _others: Others) -> Tensor:
    axis = node.integer("axis", 1)
    return reshaped(tensor, (math.prod(tensor.shape[:axis]), math.prod(tensor.shape[axis:])))


def _squeeze(node: Node, tensor: Tensor, others: Others) -> Tensor:
    axes = listed(node, "axes", others)
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


def _unsqueeze(node: Node, tensor: Tensor, others: Others) -> Tensor:
    axes = listed(node, "axes", others)
    rank = len(tensor.shape) + len(axes)
    shape = list(tensor.shape)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return reshaped(tensor, tuple(shape))


def _shape(node: Node, tensor: Tensor, _others: Others) -> Tensor:
    begin, end = node.integer("start", 0), node.integer("end", len(tensor.shape))
    return in_memory(tensor.shape[begin:end], "int64")


# Parts of a tensor, and tensors put together.


def _split(node: Node, tensor: Tensor, others: Others, output: int) -> Tensor:
    axis = axis_of(node.integer("axis", 0), tensor)
    extent, parts = tensor.shape[axis], max(len(node.outputs), 1)
    sizes = listed(node, "split", others)
    if not sizes:
        step = -(-extent // parts)
        sizes = tuple(max(0, min(step, extent - step * part)) for part in range(parts))
    if sum(sizes) != extent or min(sizes) < 0 or output >= len(sizes):
        raise ValueError(f"parts of {sizes} do not make an axis of {extent}")
    begin = sum(sizes[:output])
    return _sliced(tensor, {axis: slice(begin, begin + sizes[output])})


def _slice(node: Node, tensor: Tensor, others: Others) -> Tensor:
    given = [
        listed(node, name, others[number : number + 1])
        for number, name in enumerate(("starts", "ends", "axes", "steps"))
    ]
    starts, ends, axes, steps = given
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) != 1 or 0 in steps:
        raise ValueError("its begins, ends, axes and steps do not fit one another")
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # From the end backwards, an end before the first element is told by a large negative one.
        stop = None if step < 0 and end < -tensor.shape[axis_of(axis, tensor)] else end
        cuts[axis_of(axis, tensor)] = slice(start, stop, step)
    return _sliced(tensor, cuts)


def _sliced(tensor: Tensor, cuts: dict[int, slice]) -> Tensor:
    where = tuple(cuts.get(axis, slice(None)) for axis in range(len(tensor.shape)))
    shape = tuple(
        len(range(*cut.indices(extent))) for cut, extent in zip(where, tensor.shape, strict=True)
    )
    return mapped(lambda values: values[where], tensor, shape=shape)


def _gather(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    indices = others[0] if others else None
    if indices is None or indices.is_floating or math.prod(indices.shape) > 1 << 16:
        return None
    axis = axis_of(node.integer("axis", 0), tensor)
    chosen, extent = indices.read().astype(np.int64), tensor.shape[axis]
    if ((chosen < -extent) | (chosen >= extent)).any():
        raise ValueError(f"an index beyond an axis of {extent}")
    shape = (*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :])
    return mapped(lambda values: values.take(chosen, axis=axis), tensor, shape=shape)


def _concat(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    parts = [tensor, *(other for other in others if other is not None)]
    axis = axis_of(node.integer("axis", 0), tensor)
    rests = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
    if len(rests) != 1 or len({part.dtype for part in parts}) != 1:
        raise ValueError(f"shapes {[part.shape for part in parts]} cannot be put together")
    extent = sum(part.shape[axis] for part in parts)
    shape = (*tensor.shape[:axis], extent, *tensor.shape[axis + 1 :])
    return mapped(lambda *values: np.concatenate(values, axis), *parts, shape=shape)


def _expand(node: Node, tensor: Tensor, others: Others) -> Tensor:
    shape = np.broadcast_shapes(tensor.shape, listed(node, "shape", others))
    return mapped(lambda values: np.broadcast_to(values, shape), tensor, shape=shape)


def _tile(node: Node, tensor: Tensor, others: Others) -> Tensor:
    times = listed(node, "repeats", others)
    if len(times) != len(tensor.shape) or min(times, default=0) < 0:
        raise ValueError(f"shape {tensor.shape} cannot be repeated {times} times")
    shape = tuple(extent * n for extent, n in zip(tensor.shape, times, strict=True))
    return mapped(lambda values: np.tile(values, times), tensor, shape=shape)


def _pad(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    pads = listed(node, "pads", others)
    value, along = (others[n] if len(others) > n else None for n in (1, 2))
    rank = len(tensor.shape)
    mode = node.text("mode") or "constant"
    if mode != "constant" or (value is not None and math.prod(value.shape) != 1):
        return None
    axes = range(rank) if along is None else [axis_of(a, tensor) for a in listed(node, "", [along])]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes) or min(pads, default=0) < 0:
        return None
    around = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    widths = tuple(around.get(axis, (0, 0)) for axis in range(rank))
    shape = tuple(extent + sum(w) for extent, w in zip(tensor.shape, widths, strict=True))
    fill = float(value.read().reshape(())) if value is not None else node.number("value", 0.0)
    return mapped(lambda values: np.pad(values, widths, constant_values=fill), tensor, shape=shape)


def _constant_of_shape(node: Node, tensor: Tensor, _others: Others) -> Tensor | None:
    shape = listed(node, "shape", [tensor])
    if min(shape, default=0) < 0:
        raise ValueError(f"{shape} is no shape")
    for span in node.tensors("value"):
        single = tensor_at(node.wire, span)
        if math.prod(single.shape) == 1:
            return mapped(
                lambda value: np.broadcast_to(value.reshape(()), shape), single, shape=shape
            )
        return None
    return Tensor(shape, "float32", lambda: np.zeros(shape, np.float32))


# Arithmetic.


# Of these what comes out holds the elements of the first input and no others.
REARRANGING = frozenset((
    "Cast", "CastLike", "DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze",
    "Transpose", "Unsqueeze", "com.microsoft.DequantizeLinear",
))  # fmt: skip

# By name, what `fold` follows.
OPERATORS: dict[str, Operator] = {
    "Abs": elementwise(np.abs, 1),
    "Add": elementwise(np.add, 2),
    "And": compared(np.logical_and),
    "BatchNormalization": batch_normalised,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": elementwise(np.ceil, 1),
    "Clip": clipped,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": dequantize,
    "Div": elementwise(quotient, 2),
    "Einsum": einstein_sum,
    "Equal": compared(np.equal),
    "Exp": elementwise(np.exp, 1),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": elementwise(np.floor, 1),
    "Gather": _gather,
    "Gemm": general_product,
    "Greater": compared(np.greater),
    "GreaterOrEqual": compared(np.greater_equal),
    "Identity": _identity,
    "InstanceNormalization": instance_normalised,
    "LayerNormalization": layer_normalised,
    "Less": compared(np.less),
    "LessOrEqual": compared(np.less_equal),
    "Log": elementwise(np.log, 1),
    "MatMul": matrix_product,
    "Max": elementwise(of_all(np.maximum)),
    "Min": elementwise(of_all(np.minimum)),
    "Mul": elementwise(np.multiply, 2),
    "Neg": elementwise(np.negative, 1),
    "Not": denied,
    "Or": compared(np.logical_or),
    "Pad": _pad,
    "Pow": power_of,
    "QuantizeLinear": quantize,
    "Reciprocal": elementwise(np.reciprocal, 1),
    "ReduceL1": reduced(lambda values, axis: np.abs(values).sum(axis=axis)),
    "ReduceL2": reduced(root_of_squares),
    "ReduceMax": reduced(np.max),
    "ReduceMean": reduced(np.mean),
    "ReduceMin": reduced(np.min),
    "ReduceProd": reduced(np.prod),
    "ReduceSum": reduced(np.sum),
    "ReduceSumSquare": reduced(lambda values, axis: np.square(values).sum(axis=axis)),
    "Relu": elementwise(lambda values: np.maximum(values, 0), 1),
    "Reshape": _reshape,
    "Round": elementwise(np.rint, 1),
    "Shape": _shape,
    "Sigmoid": elementwise(lambda values: 1 / (1 + np.exp(-values)), 1),
    "Sign": elementwise(np.sign, 1),
    "Slice": _slice,
    "Sqrt": elementwise(np.sqrt, 1),
    "Squeeze": _squeeze,
    "Sub": elementwise(np.subtract, 2),
    "Sum": elementwise(of_all(np.add)),
    "Tanh": elementwise(np.tanh, 1),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": triangle,
    "Unsqueeze": _unsqueeze,
    "Where": chosen_where,
    "com.microsoft.DequantizeLinear": dequantize,
    "com.microsoft.QuantizeLinear": quantize,
}
