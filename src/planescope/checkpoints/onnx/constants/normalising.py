"""ONNX operators that normalise constants, as networks with standardised weights are exported."""

from __future__ import annotations

import math

import numpy as np

from planescope.checkpoints.onnx.constants.arithmetic import mapped, rounded
from planescope.checkpoints.onnx.constants.elementwise import Others, axis_of
from planescope.checkpoints.onnx.nodes import Node
from planescope.hyperplanes.layer import Tensor


def batch_normalised(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Normalise along axis 1, by what is stored or, as in training, by the constant's own."""
    known = [other for other in others if other is not None]
    if len(known) != 4 or len(tensor.shape) < 2 or not tensor.is_floating:
        return None
    _expect(known, tensor.shape[1:2])
    is_own = bool(node.integer("training_mode", 0)) or (
        sum(name is not None for name in node.outputs) > 3  # as it was before version 14
    )
    axes = (0, *range(2, len(tensor.shape)))
    return _normalised(node, tensor, known, axes, spread=1, is_own=is_own)


def instance_normalised(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Normalise each example's channels apart."""
    known = [other for other in others if other is not None]
    if len(known) != 2 or len(tensor.shape) < 3 or not tensor.is_floating:
        return None
    _expect(known, tensor.shape[1:2])
    return _normalised(node, tensor, known, tuple(range(2, len(tensor.shape))), spread=1)


def layer_normalised(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Normalise along the last axes."""
    known = [other for other in others if other is not None]
    if not known or len(known) != len(others) or not tensor.is_floating:
        return None
    axis = axis_of(node.integer("axis", -1), tensor)
    if any(np.broadcast_shapes(o.shape, tensor.shape[axis:]) != tensor.shape[axis:] for o in known):
        raise ValueError(f"a scale of {known[0].shape} does not fit {tensor.shape[axis:]}")
    return _normalised(node, tensor, known, tuple(range(axis, len(tensor.shape))), spread=None)


def _expect(known: list[Tensor], shape: tuple[int, ...]) -> None:
    for each in known:
        if each.shape != shape:
            raise ValueError(f"{each.shape} in the place of one number a channel, {shape}")


def _normalised(
    node: Node,
    tensor: Tensor,
    known: list[Tensor],
    axes: tuple[int, ...],
    *,
    spread: int | None,
    is_own: bool = True,
) -> Tensor:
    """Normalise over axes; scale and shift, and what is stored, lie along `spread` or last."""
    eps = node.number("epsilon", 1e-5)
    column = (
        None
        if spread is None
        else tuple(-1 if a == spread else 1 for a in range(len(tensor.shape)))
    )

    def compute(values: np.ndarray, *given: np.ndarray) -> np.ndarray:
        wide = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
        parts = [part if column is None else part.reshape(column) for part in given]
        if is_own:
            mean, variance = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        else:
            mean, variance = parts[2:]
        found = (wide - mean) / np.sqrt(variance + eps) * parts[0]
        return rounded(found + parts[1] if len(parts) > 1 else found, tensor.dtype)

    if not math.prod(tensor.shape):
        raise ValueError("nothing to normalise")
    return mapped(compute, tensor, *known)
