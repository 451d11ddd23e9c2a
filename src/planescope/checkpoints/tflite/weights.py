"""The numbers of a TensorFlow Lite tensor: stored, quantised, packed or sparse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from planescope.checkpoints.arrays.raw import ITEM_SIZES, stored_tensor
from planescope.checkpoints.onnx.constants.arithmetic import mapped
from planescope.checkpoints.tflite.schema import Quantisation, Sparsity, Stored
from planescope.files.errors import CheckpointError
from planescope.hyperplanes.layer import Tensor

# TensorType. Those that no weights have (strings, complex, resources) are missing on purpose.
DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
    17: "int4",
    18: "bfloat16",
}
# Least of the integers that values are quantised to.
LEAST = {"int8": -128, "uint8": 0, "int16": -32768}


def tensor_of(path: Path, stored: Stored) -> Tensor | None:
    """Describe the numbers that a tensor stores, as they are stored; None where it stores none.

    Raises
    ------
    CheckpointError
        If its shape and its bytes do not agree.
    """
    dtype = DTYPES.get(stored.type)
    if stored.begin == stored.end or dtype is None:
        return None
    shape = stored.shape
    if any(extent < 0 for extent in shape):
        raise CheckpointError(f"{path}: tensor {stored.name!r} has an impossible shape")
    length = stored.end - stored.begin
    if stored.sparsity is not None:
        size = 1 if dtype == "int4" else ITEM_SIZES[dtype]
        if dtype == "int4" or length % size:
            raise CheckpointError(f"{path}: tensor {stored.name!r} is sparse in a way unknown here")
        return _dense(path, stored, stored.sparsity, dtype, length // size)
    count = math.prod(shape)
    wanted = (count + 1) // 2 if dtype == "int4" else count * ITEM_SIZES[dtype]
    if length != wanted:
        raise CheckpointError(
            f"{path}: tensor {stored.name!r} has {length} bytes where shape {shape} of {dtype} "
            f"takes {wanted}; the file is damaged, get it again"
        )
    if dtype == "int4":
        pairs = stored_tensor(path, stored.begin, "uint8", (wanted,))
        return mapped(lambda p: _split_nibbles(p, shape), pairs, shape=shape, dtype="int4")
    return stored_tensor(path, stored.begin, dtype, shape)


def dequantised(path: Path, stored: Stored, tensor: Tensor) -> Tensor | None:
    """Give the numbers that integers stand for, in float32; None where the file has no scale.

    Raises
    ------
    CheckpointError
        If there is not one scale for all or for each index of an axis.
    """
    if tensor.is_floating:
        return tensor
    quantisation = stored.quantisation
    if quantisation is None:
        return None
    shape, axis = tensor.shape, quantisation.axis
    several = len(quantisation.scales) > 1
    if several and (not 0 <= axis < len(shape) or shape[axis] != len(quantisation.scales)):
        raise CheckpointError(
            f"{path}: tensor {stored.name!r} of shape {shape} has {len(quantisation.scales)} "
            f"scales along axis {axis}; the file is damaged, get it again"
        )
    return mapped(lambda steps: _scaled(steps, quantisation), tensor, dtype="float32")


def _scaled(steps: np.ndarray, quantisation: Quantisation) -> np.ndarray:
    """Multiply in float64 and round once, as TensorFlow Lite's own operator does."""

    def along(values: np.ndarray) -> np.ndarray:
        if len(values) == 1:
            return values.reshape(())
        return values.reshape(-1, *(1,) * (steps.ndim - quantisation.axis - 1))

    values = (steps.astype(np.int64) - along(quantisation.zeros)).astype(np.float64)
    values *= along(quantisation.scales)
    rounded: np.ndarray = values.astype(np.float32)
    return rounded


def _split_nibbles(pairs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    single = np.stack((pairs & 0xF, pairs >> 4), axis=-1).reshape(-1)[: math.prod(shape)]
    signed: np.ndarray = ((single.astype(np.int8) ^ 8) - 8).reshape(shape)
    return signed


def _dense(path: Path, stored: Stored, sparsity: Sparsity, dtype: str, count: int) -> Tensor:
    """Describe a sparse tensor as the dense one that it stands for.

    Its dimensions are walked in an order of its own, those of blocks behind the others; of a
    sparse one only the indices are walked that it lists.
    """
    places = _places(path, stored, sparsity, count)
    values = stored_tensor(path, stored.begin, dtype, (count,))

    def spread(found: np.ndarray) -> np.ndarray:
        full = np.zeros(math.prod(stored.shape), dtype=found.dtype)
        full[places] = found
        return full.reshape(stored.shape)

    return mapped(spread, values, shape=stored.shape)


def _places(path: Path, stored: Stored, sparsity: Sparsity, count: int) -> np.ndarray:
    """Tell where in the dense tensor each stored value stands."""
    damaged = CheckpointError(
        f"{path}: sparse tensor {stored.name!r} does not fit together; get the file again"
    )
    rank, order, blocks = len(stored.shape), sparsity.order, sparsity.blocks
    # A dense tensor that a few bytes claim.
    claimed = math.prod(stored.shape)
    if claimed > max(1 << 24, 4096 * (stored.end - stored.begin)):
        raise damaged
    if sorted(order) != list(range(rank + len(blocks))) or len(order) != len(sparsity.dimensions):
        raise damaged
    if any(not 0 <= block < rank for block in blocks) or len(set(blocks)) != len(blocks):
        raise damaged
    if any(axis >= rank for axis in order[:rank]):
        raise damaged
    sizes = [0] * len(order)  # of each dimension, by its number
    for axis, dimension in zip(order, sparsity.dimensions, strict=True):
        sizes[axis] = dimension.size
    inner = {block: sizes[rank + at] for at, block in enumerate(blocks)}
    if any(size < 1 or stored.shape[block] % size for block, size in inner.items()):
        raise damaged
    found = _walked(sparsity, claimed, damaged)
    if len(found) != count:
        raise damaged
    index = np.zeros((count, rank), dtype=np.int64)
    for column, axis in enumerate(order):
        if axis < rank:
            index[:, axis] += found[:, column] * inner.get(axis, 1)
        else:
            index[:, blocks[axis - rank]] += found[:, column]
    if count and ((index < 0).any() or (index >= np.array(stored.shape)).any()):
        raise damaged
    if not rank:
        return np.zeros(count, dtype=np.int64)
    return np.asarray(np.ravel_multi_index(tuple(index.T), stored.shape))


def _walked(sparsity: Sparsity, claimed: int, damaged: CheckpointError) -> np.ndarray:
    """Return the index of each stored value in each dimension, a row a value."""
    found = np.zeros((1, 0), dtype=np.int64)
    at = np.zeros(1, dtype=np.int64)  # the number of each row of what is walked so far
    for dimension in sparsity.dimensions:
        segments, indices = dimension.segments, dimension.indices
        if segments is None or indices is None:
            if not 0 < dimension.size <= claimed or len(at) * dimension.size > claimed:
                raise damaged
            here = np.tile(np.arange(dimension.size), len(at))
            rows = np.repeat(np.arange(len(at)), dimension.size)
            at = np.repeat(at, dimension.size) * dimension.size + here
        else:
            if len(segments) <= int(at.max(initial=0)) + 1:
                raise damaged
            begins, ends = segments[at], segments[at + 1]
            lengths = ends - begins
            if (lengths < 0).any() or (begins < 0).any() or (ends > len(indices)).any():
                raise damaged
            total = int(lengths.sum())
            if total > claimed:
                raise damaged
            rows = np.repeat(np.arange(len(at)), lengths)
            offsets = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            at = begins[rows] + offsets
            here = indices[at]
        found = np.column_stack((found[rows], here))
    return found
