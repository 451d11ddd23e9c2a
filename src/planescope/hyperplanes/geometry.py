"""Hyperplanes of a layer: pure functions over arrays of any library that speaks the Array API.

NumPy arrays read from a file, torch tensors of a live model on any device, JAX and CuPy arrays go
through the same code, and results stay where the input was. Rows are taken in blocks, so that the
float64 copies in which sums are accumulated stay small. Tensors of torch on the CPU are summed by
NumPy, which looks at the same memory: a live model and its file give the same bits.

METHOD: H_i = { p : <w_i, p> + b_i = 0 } (arXiv 2003.07797, section 2).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.hyperplanes.layer import Array
from planescope.hyperplanes.toeplitz import interior_rows as interior_rows
from planescope.hyperplanes.toeplitz import toeplitz as toeplitz

if TYPE_CHECKING:
    from numpy.typing import NDArray

Namespace = Any


# Elements a block: its float64 copy fits a processor's second-level cache, and is large enough that
# the calls do not count.
_BLOCK_ELEMENTS = 1 << 17
# Weights of a filter that are Python numbers at a time, of 32 bytes each.
_EXACT_ELEMENTS = 1 << 16
# Share of its length below which a projection is summed exactly. The rounding of a plain sum is
# 3e-16 of the length, as seen for fan-ins of 9 to 50,000, so that all others have twelve digits;
# of random filters one in 4,000 is as near to 0.
_NEAR = 3e-4
# Roundings of the sum of magnitudes within which a projection is one of 0 (METHOD, section 2).
ROUNDINGS = 4
# On an accelerator the calls count and the cache does not.
_DEVICE_BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Hyperplanes:
    """The arrangement of one layer, a value a filter; each array has shape (filters,).

    Attributes
    ----------
    projection : array
        pi_i, sum of the weights of a filter.
    norm : array
        Euclidean length of the normal; 0 for a degenerate filter, NaN or infinite for a non-finite
        one.
    cosine : array
        c_i in [-1, 1] up to rounding; NaN where there is no direction.
    bias : array or None
        b_i; None where the layer has none (then 0).
    sideless : array of bool, or None
        Whether a projection is within rounding of 0, so that the hyperplane faces neither way; None
        where nobody asked.
    """

    projection: Array
    norm: Array
    cosine: Array
    bias: Array | None
    sideless: Array | None = None


def namespace(array: Array, /) -> Namespace:
    """Array API namespace of an array; NumPy's own needs no wrapper, whose import costs 0.1 s."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, (numpy.ndarray, numpy.generic)):
        return numpy
    if _is_torch(array):  # looked up below at ten times the cost, and more than a kernel's launch
        from array_api_compat import torch

        return torch
    import array_api_compat

    return array_api_compat.array_namespace(array)


def arrangement(
    normals: Array,
    bias: Array | None = None,
    /,
    *,
    eps: float | None = None,
    xp: Namespace | None = None,
) -> Hyperplanes:
    """Projection, norm and cosine of all filters of a layer in one pass over the weights.

    Parameters
    ----------
    normals : array, shape (filters, fan_in), real floating
        One flattened filter a row.
    bias : array, shape (filters,), optional
    eps : float, optional
        Distance from 1 to the next number of the type in which the weights are stored, where that
        is narrower than the array's own.

    Returns
    -------
    Hyperplanes
        In float64 where the array's library and device have it, else in float32.

    Raises
    ------
    ValueError
        If `normals` is not 2-D, or its dtype is not real floating, or `bias` has another length.

    Notes
    -----
    Sums are accumulated in float64. Where weights cancel so far that rounding could decide the
    sign of a projection or its twelfth digit, weights on the CPU are summed again, exactly; others
    would wait for the device. A projection or a norm beyond 1.8e308, which float64 weights alone
    can have, is infinite.
    """
    xp = _checked(normals, bias, xp)
    wide = _widest_float(normals, xp)
    eps = float(xp.finfo(normals.dtype).eps) if eps is None else eps
    columns = zip(*(_sums(rows) for rows in _row_blocks(normals)), strict=True)
    total, length, *unit = (_concat(column) for column in columns)
    projection, norm = (total * unit[0], length * unit[0]) if unit else (total, length)
    if _is_numpy(namespace(total)):
        for row, exact in _exact_sums(normals, _doubtful(total, length, normals.shape[1])):
            projection[row], total[row] = exact, exact / unit[0][row] if unit else exact
        lost = sideless(normals, total, length, eps, unit=unit[0] if unit else None)
    else:
        whole = _concat([_magnitudes(rows) for rows in _row_blocks(normals)])
        lost = xp.abs(projection) <= ROUNDINGS * eps * whole
    cosine = _cosine(total, length, normals.shape[1])
    return Hyperplanes(
        projection=_given_back(projection, xp),
        norm=_given_back(norm, xp),
        cosine=_given_back(cosine, xp),
        bias=None if bias is None else xp.astype(bias, wide),
        sideless=_given_back(lost, xp),
    )


def sideless(
    normals: Array,
    projection: NDArray[np.float64],
    norm: NDArray[np.float64],
    eps: float,
    /,
    *,
    unit: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Tell the filters whose projection is within rounding of 0 (METHOD, section 2).

    Parameters
    ----------
    normals : array in the host's memory, shape (filters, fan_in)
    projection, norm : NumPy array, shape (filters,)
        Of these filters, as `arrangement` gives them.
    eps : float
        Distance from 1 to the next number of the stored type.
    unit : NumPy array, shape (filters,), optional
        What projections and norms are in units of, filter by filter.

    Returns
    -------
    NumPy array of bool, shape (filters,)
        ``abs(pi_i) <= 4 eps sum_j abs(w_ij)``; False for a filter without a direction.
    """
    # The sum of magnitudes is at most sqrt(fan_in) times the length: few filters need it taken.
    most = ROUNDINGS * eps * math.sqrt(normals.shape[1]) * (1.0 + 1e-9)
    found = (np.abs(projection) <= most * norm) & (norm > 0) & np.isfinite(norm)
    near = np.flatnonzero(found)
    if len(near):
        wholes = []
        for first in range(0, len(near), step := max(1, _BLOCK_ELEMENTS // normals.shape[1])):
            rows = near[first : first + step]
            block = next(_row_blocks(normals[rows, :], whole=True))
            scaled = block if unit is None else block / unit[rows, None]
            wholes.append(np.abs(scaled).sum(axis=1, dtype=np.float64))
        found[near] = np.abs(projection[near]) <= ROUNDINGS * eps * np.concatenate(wholes)
    return found


def from_sums(
    projection: NDArray[np.float64],
    norm: NDArray[np.float64],
    fan_in: int,
    bias: Array | None,
    /,
    *,
    sideless: NDArray[np.bool_],
) -> Hyperplanes:
    """Hyperplanes of filters whose sums and lengths somebody has taken; NumPy's, but the bias.

    Parameters
    ----------
    projection, norm : NumPy array, shape (filters,)
    fan_in : int
    bias : array, shape (filters,), or None
    sideless : NumPy array of bool, shape (filters,)
    """
    if bias is not None:
        xp = namespace(bias)
        bias = xp.astype(bias, _widest_float(bias, xp))
    return Hyperplanes(
        projection=projection,
        norm=norm,
        cosine=_cosine(projection, norm, fan_in),
        bias=bias,
        sideless=sideless,
    )


def host_view(array: Array, /) -> NDArray[Any] | None:
    """Return NumPy's view of an array in the host's memory; None where it cannot look at it."""
    if not _is_on_host(array):
        return None
    view = _numpy_view(array) if _is_torch(array) else array
    return view if _is_numpy(namespace(view)) else None


def projection(normals: Array, /, *, xp: Namespace | None = None) -> Array:
    """Sum of the weights of each filter, pi_i.

    Parameters
    ----------
    normals : array, shape (filters, fan_in), real floating

    Returns
    -------
    array, shape (filters,)
        Accumulated in float64 where there is one.

    Raises
    ------
    ValueError
        As `arrangement`.
    """
    return arrangement(normals, xp=xp).projection


def cosine(normals: Array, /, *, xp: Namespace | None = None) -> Array:
    """Return the cosine between each hyperplane's normal and the all-ones direction, c_i.

    Parameters
    ----------
    normals : array, shape (filters, fan_in), real floating
        One flattened filter a row; the bias is not part of it.

    Returns
    -------
    array, shape (filters,)
        Unitless, in [-1, 1] up to rounding; NaN for a row of zeros, which has no direction, and
        for a row with a NaN or an infinity.

    Raises
    ------
    ValueError
        If `normals` is not 2-D, or its dtype is not real floating.

    Notes
    -----
    ``sum_j w_ij / (||w_i|| sqrt(fan_in))``, the normalised projection of arXiv 2003.07797.
    """
    return arrangement(normals, xp=xp).cosine


def crossing(projection: Array, bias: Array | None, /, *, xp: Namespace | None = None) -> Array:
    """Return where each hyperplane crosses the identity line: t_i = -b_i / pi_i.

    Parameters
    ----------
    projection : array, shape (filters,)
        pi_i.
    bias : array of the same shape, or None for a layer without.

    Returns
    -------
    array, shape (filters,)
        Coordinate on (1, ..., 1); NaN where pi_i = 0: the hyperplane is parallel to the line.
    """
    xp = namespace(projection) if xp is None else xp
    parallel = projection == 0
    nowhere = xp.full_like(projection, math.nan)
    offset = xp.zeros_like(projection) if bias is None else -bias
    # Adding 0 turns -0.0, which the quotient gives for a bias of 0, into 0.0.
    return xp.where(parallel, nowhere, offset / xp.where(parallel, nowhere, projection) + 0.0)


def offset(norm: Array, bias: Array | None, /, *, xp: Namespace | None = None) -> Array:
    """Signed distance of the origin from each hyperplane: s_i = b_i / ||w_i||.

    Parameters
    ----------
    norm : array, shape (filters,)
        ||w_i||.
    bias : array of the same shape, or None for a layer without.

    Returns
    -------
    array, shape (filters,)
        Positive where the origin is on the active side; NaN for a degenerate filter.
    """
    xp = namespace(norm) if xp is None else xp
    nowhere = xp.full_like(norm, math.nan)
    length = xp.where(norm == 0, nowhere, norm)
    return (xp.zeros_like(norm) if bias is None else bias) / length


def effective(
    raw: Hyperplanes,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    variance: Array,
    eps: float,
    /,
    *,
    xp: Namespace | None = None,
) -> Hyperplanes:
    """Hyperplanes that convolution, batch norm and ReLU cut together (METHOD, section 4).

    ``w' = s w`` and ``b' = beta + s (b - mean)`` with ``s = gamma / sqrt(variance + eps)``: a
    negative gamma turns the normal round, gamma = 0 makes the filter degenerate.

    Parameters
    ----------
    raw : Hyperplanes
        Of the convolution itself.
    gamma, beta : array, shape (filters,), or None for a norm without affine parameters
    mean, variance : array, shape (filters,)
    eps : float
        The norm's own; PyTorch's default is 1e-5, that of Keras 1e-3.
    """
    xp = namespace(raw.norm) if xp is None else xp
    wide = raw.norm.dtype
    mean, variance = xp.astype(mean, wide), xp.astype(variance, wide)
    gamma = xp.ones_like(mean) if gamma is None else xp.astype(gamma, wide)
    beta = xp.zeros_like(mean) if beta is None else xp.astype(beta, wide)
    scale = gamma / xp.sqrt(variance + eps)
    return Hyperplanes(
        projection=scale * raw.projection,
        norm=xp.abs(scale) * raw.norm,
        cosine=xp.where(
            scale == 0, xp.full_like(raw.cosine, math.nan), xp.sign(scale) * raw.cosine
        ),
        bias=beta + scale * ((0.0 if raw.bias is None else raw.bias) - mean),
        sideless=raw.sideless,
    )


def centre(gamma: Array, beta: Array, /, *, xp: Namespace | None = None) -> Array:
    """Return the distance of the data's centre from each hyperplane behind batch norm, kappa_i.

    Parameters
    ----------
    gamma, beta : array, shape (filters,)

    Returns
    -------
    array, shape (filters,), float64 where there is one
        ``beta / |gamma|`` in standard deviations of the preactivation; negative where the data's
        centre is on the inactive side; NaN where gamma or beta is 0: nothing to tell.
    """
    xp = namespace(gamma) if xp is None else xp
    wide = _widest_float(gamma, xp)
    gamma, beta = xp.astype(gamma, wide), xp.astype(beta, wide)
    told = (gamma != 0) & (beta != 0)
    nothing = xp.full_like(gamma, math.nan)
    return xp.where(told, beta, nothing) / xp.where(told, xp.abs(gamma), nothing)


def distances(
    weight: Array, initial: Array, /, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Relative distances of a layer's weights from their initial values (METHOD, section 5).

    Parameters
    ----------
    weight, initial : array, shape (filters, fan_in), real floating

    Returns
    -------
    l2, linf : 0-d arrays
        ``||W - W0||_F / ||W0||_F`` and ``max|W - W0| / max|W0|``; NaN where W0 is all zero.

    Raises
    ------
    ValueError
        If the shapes differ, or an array is not 2-D or not real floating.
    """
    xp = namespace(weight) if xp is None else xp
    path, far = extent(weight, initial, xp=xp)
    size, top = (_given_back(part, xp) for part in extent(initial))
    return path / _nan_for_zero(size, xp), far / _nan_for_zero(top, xp)


def extent(
    weight: Array, initial: Array | None = None, /, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Return the size of a layer's weights, or of their difference from others.

    Parameters
    ----------
    weight, initial : array, shape (filters, fan_in), real floating

    Returns
    -------
    length, peak : 0-d arrays
        ``||W||_F`` and ``max|W|``, or ``||W - W0||_F`` and ``max|W - W0|``.

    Raises
    ------
    ValueError
        If the shapes differ, or an array is not 2-D or not real floating.

    Notes
    -----
    Differences are taken in float64 on the host. On a device those of narrower weights are taken in
    float32, where they are exact for a weight that moved by less than half; their squares are
    summed in float64 where there is one.
    """
    xp = _checked(weight, None, xp)
    if initial is None:
        parts = [_length_and_peak(rows) for rows in _row_blocks(weight)]
    else:
        _checked(initial, None, None)
        if weight.shape != initial.shape:
            raise ValueError(f"shapes differ: {tuple(weight.shape)} and {tuple(initial.shape)}")
        blocks = zip(_row_blocks(weight), _row_blocks(initial), strict=True)
        parts = [_length_and_peak(_difference(now, then)) for now, then in blocks]
    if len(parts) == 1:
        length, peak = parts[0]
    else:
        inside = namespace(parts[0][0])
        lengths, peaks = (inside.stack(column) for column in zip(*parts, strict=True))
        length, peak = _length_and_peak(lengths)[0], inside.max(peaks)
    return _given_back(length, xp), _given_back(peak, xp)


def _checked(normals: Array, bias: Array | None, xp: Namespace | None) -> Namespace:
    xp = namespace(normals) if xp is None else xp
    if normals.ndim != 2:
        raise ValueError(f"normals must be 2-D (filters, fan_in), not of {normals.ndim} dimensions")
    if not xp.isdtype(normals.dtype, "real floating"):
        raise ValueError(f"normals must be real floating, not {normals.dtype}")
    if bias is not None and tuple(bias.shape) != (normals.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, not ({normals.shape[0]},)")
    return xp


def _is_numpy(xp: Namespace) -> bool:
    return xp is sys.modules.get("numpy")


def _widest_float(array: Array, xp: Namespace) -> Any:
    """float64 where the library and the device have it; JAX by default and Apple GPUs do not."""
    if _is_numpy(xp):
        return xp.float64
    if _is_torch(array):
        return xp.float32 if array.device.type == "mps" else xp.float64

    # JAX would give float32 for float64, with a warning.
    if "float64" not in xp.__array_namespace_info__().dtypes(kind="real floating"):
        return xp.float32
    return xp.float64


def _is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_on_host(array: Array) -> bool:
    """Return whether NumPy can look at the array's memory; of tensors, at plain ones alone."""
    if not _is_torch(array):
        return hasattr(array, "__array_interface__")
    torch = sys.modules["torch"]
    return type(array) in (torch.Tensor, torch.nn.Parameter) and array.device.type == "cpu"


def _row_blocks(normals: Array, *, whole: bool = False) -> Iterator[Array]:
    """Yield some rows at a time, or all; NumPy's view of them where that can be had."""
    filters, fan_in = normals.shape
    on_host = _is_on_host(normals)
    if on_host and _is_torch(normals):
        normals = _numpy_view(normals)
    elements = _BLOCK_ELEMENTS if on_host else _DEVICE_BLOCK_ELEMENTS
    step = max(1, filters if whole else elements // max(1, fan_in))
    # One block at least, so that a layer without filters gives empty arrays.
    for start in range(0, max(1, filters), step):
        rows = normals[start : min(start + step, filters), :]
        if _is_torch(rows) and (on_host or rows.dtype.itemsize == 1):
            rows = rows.float()  # bfloat16, and float8, in which torch does not add
            yield _numpy_view(rows) if on_host else rows
        else:
            yield rows


def _numpy_view(rows: Array) -> Array:
    """NumPy's view of a tensor on the CPU; types that NumPy has not, as bfloat16, stay tensors."""
    torch = sys.modules["torch"]
    if rows.dtype not in (torch.float16, torch.float32, torch.float64):
        return rows
    # Tensor.numpy() would leave the network's memory unable to be resized, as FSDP has to.
    return np.from_dlpack(rows.detach().resolve_neg())


def _sums(rows: Array) -> tuple[Array, ...]:
    """Sum and Euclidean length of each row; in units of the third array, where there is one."""
    xp = namespace(rows)
    wide = _widest_float(rows, xp)
    # Squares of float32 and narrower types stay inside the range of float64; no others do.
    if rows.shape[1] and (wide != xp.float64 or rows.dtype == wide):
        values = xp.astype(rows, wide, copy=False)
        unit = _row_unit(values, xp)
        return *_sum_and_length(values / unit[:, None], wide, xp), unit
    return _sum_and_length(rows, wide, xp)


def _magnitudes(rows: Array) -> Array:
    """Sum of the magnitudes of each row."""
    xp = namespace(rows)
    wide = _widest_float(rows, xp)
    if _is_torch(rows):
        return xp.linalg.vector_norm(rows, ord=1, axis=1, dtype=wide)
    return xp.sum(xp.abs(xp.astype(rows, wide, copy=False)), axis=1)


def _sum_and_length(values: Array, wide: Any, xp: Namespace) -> tuple[Array, Array]:
    if _is_torch(values):  # its reductions widen as they read
        return xp.sum(values, axis=1, dtype=wide), xp.linalg.vector_norm(values, axis=1, dtype=wide)
    values = xp.astype(values, wide, copy=False)
    # The BLAS behind NumPy adds a row up in half the time that NumPy's own sum takes.
    ones = xp.ones(values.shape[1], dtype=wide) if _is_numpy(xp) else None
    total = xp.sum(values, axis=1) if ones is None else xp.vecdot(values, ones)
    return total, xp.sqrt(xp.vecdot(values, values))


def _cosine(total: Array, length: Array, fan_in: int) -> Array:
    reach = length * math.sqrt(fan_in)
    # torch gives NaN for 0 / 0 without a word.
    return total / (reach if _is_torch(reach) else _nan_for_zero(reach, namespace(reach)))


def _exact_sums(normals: Array, rows: NDArray[np.intp]) -> Iterator[tuple[int, float]]:
    """Yield the sums of some rows, rounded once."""
    for row in rows.tolist():
        # Beyond 1e308 on the way no exact sum can be had.
        with contextlib.suppress(OverflowError):
            yield row, math.fsum(itertools.chain.from_iterable(_numbers(normals[row, :])))


def _numbers(weights: Array) -> Iterator[list[float]]:
    """Yield some at a time: a list of ten million would take 320 MB."""
    for start in range(0, weights.shape[0], _EXACT_ELEMENTS):
        yield weights[start : start + _EXACT_ELEMENTS].tolist()


def _doubtful(total: Array, length: Array, fan_in: int) -> Array:
    """Rows in which so much cancels that rounding could have decided the sign, or leave few digits.

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


def _difference(now: Array, then: Array) -> Array:
    xp = namespace(now)
    dtype = xp.float64 if _is_numpy(xp) else xp.result_type(now.dtype, then.dtype, xp.float32)
    return xp.astype(now, dtype, copy=False) - xp.astype(then, dtype, copy=False)


def _length_and_peak(values: Array) -> tuple[Array, Array]:
    """Euclidean length and largest magnitude of a whole block, safe from overflow."""
    xp = namespace(values)
    wide = _widest_float(values, xp)
    if math.prod(values.shape) == 0:
        zero = xp.sum(xp.astype(values, wide))
        return zero, zero
    if _is_torch(values) and values.dtype != wide:
        norm = xp.linalg.vector_norm
        return norm(values, dtype=wide), norm(values, ord=math.inf, dtype=wide)
    peak = xp.astype(xp.maximum(xp.max(values), -xp.min(values)), wide)
    if wide == xp.float64 and values.dtype != wide:  # as in `_sums`: no square leaves the range
        values = xp.astype(values, wide)
        return xp.sqrt(xp.sum(xp.vecdot(values, values))), peak
    unit = xp.where(peak == 0, xp.ones_like(peak), peak)
    values = values / unit
    return unit * xp.sqrt(xp.sum(xp.vecdot(values, values))), peak


def _nan_for_zero(values: Array, xp: Namespace) -> Array:
    return xp.where(values == 0, xp.full_like(values, math.nan), values)


def _concat(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts)


def _given_back(array: Array, xp: Namespace) -> Array:
    """Return the array in the library that the weights came in."""
    return array if namespace(array) is xp else xp.asarray(array)
