"""ONNX operators that compute numbers of constants: element by element, sums and products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.checkpoints.onnx.constants.arithmetic import mapped, rounded
from planescope.checkpoints.onnx.nodes import Node
from planescope.hyperplanes.layer import Tensor

# Inputs of a node behind the first one.
Others = Sequence[Tensor | None]
Operator = Callable[[Node, Tensor, Others], Tensor | None]


def listed(node: Node, name: str, others: Others) -> tuple[int, ...]:
    """Return the integers that a node takes as an input or, in older opsets, as an attribute."""
    given = others[0] if others else None
    if given is None:
        return node.integers(name)
    if given.is_floating or math.prod(given.shape) > MAX_DIMENSIONS:
        raise ValueError(f"no list of integers for {name}")
    return tuple(int(n) for n in given.read().reshape(-1))


def axis_of(axis: int, tensor: Tensor) -> int:
    """Return an axis as a number from 0 on."""
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is none of shape {tensor.shape}")
    return axis % rank


def elementwise(function: Callable[..., np.ndarray], count: int | None = None) -> Operator:
    """Make an operator of so many operands, or of any number, spread over one another."""

    def operator(_node: Node, tensor: Tensor, others: Others) -> Tensor | None:
        operands = [tensor, *(other for other in others if other is not None)]
        if len(operands) != (count or len(operands)):
            raise ValueError(f"{len(operands)} operands where there are {count}")
        if len({operand.dtype for operand in operands}) != 1 or tensor.dtype == "bool":
            return None
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        return mapped(
            lambda *values: rounded(np.asarray(function(*values)), tensor.dtype),
            *operands,
            shape=shape,
        )

    return operator


def quotient(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Divide; of integers what is behind the point is cut off."""
    exact: np.ndarray = one / other
    return exact if np.isdtype(one.dtype, "real floating") else np.asarray(np.trunc(exact))


def of_all(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Put a function of two operands upon any number of them."""
    return lambda *values: functools.reduce(function, values)


def power_of(_node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Raise a constant to a power."""
    exponent = others[0] if others else None
    if exponent is None or not tensor.is_floating:
        return None
    shape = np.broadcast_shapes(tensor.shape, exponent.shape)
    return mapped(
        lambda base, by: rounded(np.power(base, by), tensor.dtype), tensor, exponent, shape=shape
    )


def clipped(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Clip a constant between bounds, which are inputs or attributes."""
    bounds = [other for other in others if other is not None]
    if len(bounds) != len(others) or any(math.prod(bound.shape) != 1 for bound in bounds):
        return None
    if not bounds:
        low, high = node.number("min", -math.inf), node.number("max", math.inf)
        return mapped(lambda values: np.clip(values, low, high).astype(values.dtype), tensor)
    return mapped(
        lambda values, *limits: np.clip(
            values, limits[0].reshape(()), limits[1].reshape(()) if limits[1:] else None
        ),
        tensor,
        *bounds,
    )


def compared(function: Callable[..., np.ndarray]) -> Operator:
    """Make an operator that holds two constants against one another, element by element."""

    def operator(_node: Node, tensor: Tensor, others: Others) -> Tensor | None:
        other = others[0] if others else None
        if other is None or other.dtype != tensor.dtype:
            return None
        shape = np.broadcast_shapes(tensor.shape, other.shape)
        return mapped(function, tensor, other, shape=shape, dtype="bool")

    return operator


def denied(_node: Node, tensor: Tensor, _others: Others) -> Tensor | None:
    """Turn true and false round."""
    return mapped(np.logical_not, tensor) if tensor.dtype == "bool" else None


def triangle(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
    """Keep what lies above or below a diagonal, and put 0 in the place of the rest."""
    given = others[0] if others else None
    if len(tensor.shape) < 2 or (given is not None and math.prod(given.shape) != 1):
        return None
    least = -sum(tensor.shape)
    by = 0 if given is None else int(given.read().reshape(()))
    by = max(least, min(by, -least))  # beyond that it changes nothing, and NumPy would fall
    half = np.triu if node.integer("upper", 1) else np.tril
    return mapped(lambda values: half(values, by), tensor)


def chosen_where(_node: Node, condition: Tensor, others: Others) -> Tensor | None:
    """Take elements of one constant or another."""
    chosen = [other for other in others if other is not None]
    if len(chosen) != 2 or condition.dtype != "bool":
        return None
    shape = np.broadcast_shapes(condition.shape, *(other.shape for other in chosen))
    return mapped(np.where, condition, *chosen, shape=shape, dtype=chosen[0].dtype)


def reduced(function: Callable[..., np.ndarray]) -> Operator:
    """Make an operator that sums up axes by a function."""

    def operator(node: Node, tensor: Tensor, others: Others) -> Tensor | None:
        if not tensor.is_floating and tensor.dtype not in ("int32", "int64"):  # extents
            return None
        axes = {axis_of(axis, tensor) for axis in listed(node, "axes", others)}
        if not axes:
            if node.integer("noop_with_empty_axes", 0):
                return tensor
            axes = set(range(len(tensor.shape)))
        keeps = node.integer("keepdims", 1)
        shape = tuple(
            1 if axis in axes else extent
            for axis, extent in enumerate(tensor.shape)
            if keeps or axis not in axes
        )
        return mapped(
            lambda values: rounded(
                np.asarray(function(values, axis=tuple(axes))).reshape(shape), tensor.dtype
            ),
            tensor,
            shape=shape,
        )

    return operator


def root_of_squares(values: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """Return the root of the sum of squares."""
    return np.asarray(np.sqrt(np.square(values).sum(axis=axis)))
