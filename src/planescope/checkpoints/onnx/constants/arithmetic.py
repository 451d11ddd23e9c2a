"""Tensors made of tensors: what is computed when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from planescope.checkpoints.arrays.raw import MAX_DIMENSIONS
from planescope.hyperplanes.layer import Array, Tensor, joint_digest

FLOATS = ("float16", "bfloat16", "float32", "float64")


def mapped(
    function: Callable[..., Array],
    *tensors: Tensor,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Return the tensor that is `function` of others.

    By default with the shape and type of the first.
    """

    def read() -> Array:
        arrays = [tensor.read() for tensor in tensors]
        # What is not finite is for the measurement to report, not for NumPy to warn of.
        with np.errstate(all="ignore"):
            return function(*arrays)

    first = tensors[0]
    shape = first.shape if shape is None else shape
    return Tensor(shape, dtype or first.dtype, read, None, joint_digest(tensors))


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the same elements in another shape.

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
    """Return the same elements with the axes in another order.

    Raises
    ------
    ValueError
        If `axes` is no order of the axes.
    """
    if sorted(axes) != list(range(len(tensor.shape))):
        raise ValueError(f"{tuple(axes)} is no order of the axes of shape {tensor.shape}")
    shape = tuple(tensor.shape[axis] for axis in axes)
    return mapped(lambda values: values.transpose(axes), tensor, shape=shape)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values as `dtype` has them.

    Those of bfloat16 in float32, as all readers give it.
    """
    if dtype != "bfloat16":
        return values.astype(dtype, copy=False)
    import ml_dtypes

    near: np.ndarray = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return near
