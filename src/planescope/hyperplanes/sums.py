"""Sums, lengths and differences of rows, over arrays of any library that speaks the Array API.

Rows are taken in blocks, so that the float64 copies in which sums are accumulated stay small.
Tensors of torch on the CPU are summed by NumPy, which looks at the same memory: a live model and
its file give the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.hyperplanes.layer import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

Namespace = Any

# Elements a block: its float64 copy fits a processor's second-level cache, and is large enough that
# the calls do not count. Lengths of differences are summed block by block, so that their last digit
# is of this number; sums and lengths of rows are not, and in half of it take a twentieth less.
BLOCK_ELEMENTS = 1 << 17
SUM_ELEMENTS = 1 << 16
# Weights of a filter that are Python numbers at a time, of 32 bytes each.
_EXACT_ELEMENTS = 1 << 16
# Share of its length below which a projection is summed exactly. The rounding of a plain sum is
# 3e-16 of the length, as seen for fan-ins of 9 to 50,000, so that all others have twelve digits;
# of random filters one in 4,000 is as near to 0.
_NEAR = 3e-4
# On an accelerator the calls count and the cache does not.
DEVICE_BLOCK_ELEMENTS = 1 << 24


def namespace(array: Array, /) -> Namespace:
    """Return the array API namespace of an array.

    NumPy's own needs no wrapper, whose import costs 0.1 s.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, (numpy.ndarray, numpy.generic)):
        return numpy
    if is_torch(array):  # looked up below at ten times the cost, and more than a kernel's launch
        from array_api_compat import torch

        return torch
    import array_api_compat

    return array_api_compat.array_namespace(array)


def is_numpy(xp: Namespace) -> bool:
    """Return whether a namespace is NumPy's."""
    return xp is sys.modules.get("numpy")


def widest_float(array: Array, xp: Namespace) -> Any:
    """Return float64 where the library and the device have it.

    JAX by default and Apple GPUs do not.
    """
    if is_numpy(xp):
        return xp.float64
    if is_torch(array):
        return xp.float32 if array.device.type == "mps" else xp.float64

    # JAX would give float32 for float64, with a warning.
    if "float64" not in xp.__array_namespace_info__().dtypes(kind="real floating"):
        return xp.float32
    return xp.float64


def is_torch(array: Array) -> bool:
    """Return whether an array is a tensor of torch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_on_host(array: Array) -> bool:
    """Return whether NumPy can look at the array's memory; of tensors, at plain ones alone."""
    if not is_torch(array):
        return hasattr(array, "__array_interface__")
    torch = sys.modules["torch"]
    return type(array) in (torch.Tensor, torch.nn.Parameter) and array.device.type == "cpu"


def row_blocks(
    normals: Array, *, whole: bool = False, elements: int | None = None
) -> Iterator[Array]:
    """Yield some rows at a time, or all; NumPy's view of them where that can be had.

    `elements` is how many of the host are taken at a time, where it is not `BLOCK_ELEMENTS`.
    """
    filters, fan_in = normals.shape
    on_host = is_on_host(normals)
    if on_host and is_torch(normals):
        normals = numpy_view(normals)
    elements = (elements or BLOCK_ELEMENTS) if on_host else DEVICE_BLOCK_ELEMENTS
    step = max(1, filters if whole else elements // max(1, fan_in))
    # One block at least, so that a layer without filters gives empty arrays.
    for start in range(0, max(1, filters), step):
        rows = normals[start : min(start + step, filters), :]
        if is_torch(rows) and (on_host or rows.dtype.itemsize == 1):
            rows = rows.float()  # bfloat16, and float8, in which torch does not add
            yield numpy_view(rows) if on_host else rows
        else:
            yield rows


def some_rows(normals: Array, rows: NDArray[np.intp]) -> Array:
    """Return rows by their numbers; torch before 2.7 indexes no float8, but its bytes."""
    if is_torch(normals) and normals.dtype.itemsize == 1:
        torch = sys.modules["torch"]
        return normals.view(torch.uint8)[rows, :].view(normals.dtype)
    return normals[rows, :]


def numpy_view(rows: Array) -> Array:
    """Return NumPy's view of a tensor on the CPU.

    Types that NumPy has not, as bfloat16, stay tensors.
    """
    torch = sys.modules["torch"]
    if rows.dtype not in (torch.float16, torch.float32, torch.float64):
        return rows
    # Tensor.numpy() would leave the network's memory unable to be resized, as FSDP has to.
    return np.from_dlpack(rows.detach().resolve_neg())


def row_sums(rows: Array) -> tuple[Array, ...]:
    """Sum and Euclidean length of each row; in units of the third array, where there is one."""
    xp = namespace(rows)
    wide = widest_float(rows, xp)
    # Squares of float32 and narrower types stay inside the range of float64; no others do.
    if rows.shape[1] and (wide != xp.float64 or rows.dtype == wide):
        values = xp.astype(rows, wide, copy=False)
        unit = _row_unit(values, xp)
        return *_sum_and_length(values / unit[:, None], wide, xp), unit
    return _sum_and_length(rows, wide, xp)


def magnitudes(rows: Array) -> Array:
    """Sum of the magnitudes of each row."""
    xp = namespace(rows)
    wide = widest_float(rows, xp)
    if is_torch(rows):
        return xp.linalg.vector_norm(rows, ord=1, axis=1, dtype=wide)
    return xp.sum(xp.abs(xp.astype(rows, wide, copy=False)), axis=1)


def _sum_and_length(values: Array, wide: Any, xp: Namespace) -> tuple[Array, Array]:
    if is_torch(values):  # its reductions widen as they read
        return xp.sum(values, axis=1, dtype=wide), xp.linalg.vector_norm(values, axis=1, dtype=wide)
    values = xp.astype(values, wide, copy=False)
    # The BLAS behind NumPy adds a row up in half the time that NumPy's own sum takes.
    ones = _ones(values.shape[1]) if is_numpy(xp) else None
    total = xp.sum(values, axis=1) if ones is None else xp.vecdot(values, ones)
    return total, xp.sqrt(xp.vecdot(values, values))


def _ones(count: int) -> NDArray[np.float64]:
    return _few_ones(count) if count <= SUM_ELEMENTS else np.ones(count)


@functools.lru_cache(maxsize=4)
def _few_ones(count: int) -> NDArray[np.float64]:
    """Return them for one block after another; to fill them anew takes a tenth of the sums."""
    return np.ones(count)


def cosine_of(total: Array, length: Array, fan_in: int) -> Array:
    """Return cosines by sums and lengths of rows; NaN where the length is 0."""
    reach = length * math.sqrt(fan_in)
    # torch gives NaN for 0 / 0 without a word.
    return total / (reach if is_torch(reach) else nan_for_zero(reach, namespace(reach)))


def exact_sums(normals: Array, rows: NDArray[np.intp]) -> Iterator[tuple[int, float]]:
    """Yield the sums of some rows, rounded once."""
    for row in rows.tolist():
        # Beyond 1e308 on the way no exact sum can be had.
        with contextlib.suppress(OverflowError):
            yield row, math.fsum(itertools.chain.from_iterable(_numbers(normals[row, :])))


def _numbers(weights: Array) -> Iterator[list[float]]:
    """Yield some at a time: a list of ten million would take 320 MB."""
    for start in range(0, weights.shape[0], _EXACT_ELEMENTS):
        yield weights[start : start + _EXACT_ELEMENTS].tolist()


def doubtful(total: Array, length: Array, fan_in: int) -> Array:
    """Find rows in which so much cancels that rounding could decide the sign, or leave few digits.

    In whatever order n terms are added, the error is below n/2 ulps of the sum of magnitudes, which
    is at most sqrt(n) times the length.
    """
    bound = max(np.finfo(np.float64).eps * fan_in**1.5, _NEAR)
    return np.flatnonzero((np.abs(total) <= bound * length) & (length > 0) & np.isfinite(length))


def _row_unit(values: Array, xp: Namespace) -> Array:
    """Return the power of two near the largest magnitude of each row; 1 for a row of zeros.

    Dividing by it is exact, so that weights which cancel to 0 still do so.
    """
    peak = xp.max(xp.abs(values), axis=1)
    power = xp.floor(xp.log2(xp.where(peak == 0, xp.ones_like(peak), peak)))
    # XLA multiplies by the reciprocal and takes denormals for 0: 1 / 2**127 must not come up.
    return 2.0 ** xp.where(power > 0, power - 1, power)


def difference(now: Array, then: Array) -> Array:
    """Return the difference, in float64 where NumPy takes it, else no narrower than float32."""
    xp = namespace(now)
    dtype = xp.float64 if is_numpy(xp) else xp.result_type(now.dtype, then.dtype, xp.float32)
    return xp.astype(now, dtype, copy=False) - xp.astype(then, dtype, copy=False)


def length_and_peak(values: Array) -> tuple[Array, Array]:
    """Return Euclidean length and largest magnitude of a whole block, safe from overflow."""
    xp = namespace(values)
    wide = widest_float(values, xp)
    if math.prod(values.shape) == 0:
        zero = xp.sum(xp.astype(values, wide))
        return zero, zero
    if is_torch(values) and values.dtype != wide:
        norm = xp.linalg.vector_norm
        return norm(values, dtype=wide), norm(values, ord=math.inf, dtype=wide)
    # NumPy 2.0 converts arrays alone, and no scalars.
    peak = xp.astype(xp.asarray(xp.maximum(xp.max(values), -xp.min(values))), wide)
    if wide == xp.float64 and values.dtype != wide:  # as in `row_sums`: no square leaves the range
        values = xp.astype(values, wide)
        return xp.sqrt(xp.sum(xp.vecdot(values, values))), peak
    unit = xp.where(peak == 0, xp.ones_like(peak), peak)
    values = values / unit
    return unit * xp.sqrt(xp.sum(xp.vecdot(values, values))), peak


def nan_for_zero(values: Array, xp: Namespace) -> Array:
    """Return the values, with NaN in place of 0."""
    return xp.where(values == 0, xp.full_like(values, math.nan), values)


def concat(parts: Sequence[Array]) -> Array:
    """Put blocks together again."""
    return parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts)


def given_back(array: Array, xp: Namespace) -> Array:
    """Return the array in the library that the weights came in."""
    return array if namespace(array) is xp else xp.asarray(array)
