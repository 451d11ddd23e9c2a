"""Hyperplanes of a layer: pure functions over arrays of any library that speaks the Array API.

NumPy arrays read from a file, torch tensors of a live model on any device, JAX and CuPy arrays go
through the same code, and results stay where the input was. Rows are taken in blocks, so that the
float64 copies in which sums are accumulated stay small. Tensors of torch on the CPU are summed by
NumPy, which looks at the same memory: a live model and its file give the same bits.

METHOD: H_i = { p : <w_i, p> + b_i = 0 } (arXiv 2003.07797, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.hyperplanes import sums
from planescope.hyperplanes.layer import Array
from planescope.hyperplanes.sums import (
    Namespace,
    concat,
    cosine_of,
    doubtful,
    exact_sums,
    given_back,
    is_numpy,
    is_on_host,
    is_torch,
    magnitudes,
    numpy_view,
    row_blocks,
    row_sums,
    some_rows,
    widest_float,
)
from planescope.hyperplanes.sums import (
    namespace as namespace,
)
from planescope.hyperplanes.toeplitz import interior_rows as interior_rows
from planescope.hyperplanes.toeplitz import toeplitz as toeplitz

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Roundings of the sum of magnitudes within which a projection is one of 0 (METHOD, section 2).
ROUNDINGS = 4


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


def arrangement(
    normals: Array,
    bias: Array | None = None,
    /,
    *,
    eps: float | None = None,
    xp: Namespace | None = None,
) -> Hyperplanes:
    """Return projection, norm and cosine of all filters of a layer in one pass over the weights.

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
    xp = checked(normals, bias, xp)
    wide = widest_float(normals, xp)
    eps = float(xp.finfo(normals.dtype).eps) if eps is None else eps
    blocks = row_blocks(normals, elements=sums.SUM_ELEMENTS)
    columns = zip(*map(row_sums, blocks), strict=True)
    total, length, *unit = (concat(column) for column in columns)
    projection, norm = (total * unit[0], length * unit[0]) if unit else (total, length)
    if is_numpy(namespace(total)):
        for row, exact in exact_sums(normals, doubtful(total, length, normals.shape[1])):
            projection[row], total[row] = exact, exact / unit[0][row] if unit else exact
        lost = sideless(normals, total, length, eps, unit=unit[0] if unit else None)
    else:
        whole = concat([magnitudes(rows) for rows in row_blocks(normals)])
        lost = xp.abs(projection) <= ROUNDINGS * eps * whole
    cosine = cosine_of(total, length, normals.shape[1])
    return Hyperplanes(
        projection=given_back(projection, xp),
        norm=given_back(norm, xp),
        cosine=given_back(cosine, xp),
        bias=None if bias is None else xp.astype(bias, wide),
        sideless=given_back(lost, xp),
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
        for first in range(0, len(near), step := max(1, sums.BLOCK_ELEMENTS // normals.shape[1])):
            rows = near[first : first + step]
            block = next(row_blocks(some_rows(normals, rows), whole=True))
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
    """Return the hyperplanes of filters whose sums and lengths somebody has taken.

    NumPy's, but the bias.

    Parameters
    ----------
    projection, norm : NumPy array, shape (filters,)
    fan_in : int
    bias : array, shape (filters,), or None
    sideless : NumPy array of bool, shape (filters,)
    """
    if bias is not None:
        xp = namespace(bias)
        bias = xp.astype(bias, widest_float(bias, xp))
    return Hyperplanes(
        projection=projection,
        norm=norm,
        cosine=cosine_of(projection, norm, fan_in),
        bias=bias,
        sideless=sideless,
    )


def host_view(array: Array, /) -> NDArray[Any] | None:
    """Return NumPy's view of an array in the host's memory; None where it cannot look at it."""
    if not is_on_host(array):
        return None
    view = numpy_view(array) if is_torch(array) else array
    return view if is_numpy(namespace(view)) else None


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
    """Return the signed distance of the origin from each hyperplane: s_i = b_i / ||w_i||.

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
    """Return hyperplanes that convolution, batch norm and ReLU cut together (METHOD, section 4).

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
    wide = widest_float(gamma, xp)
    gamma, beta = xp.astype(gamma, wide), xp.astype(beta, wide)
    told = (gamma != 0) & (beta != 0)
    nothing = xp.full_like(gamma, math.nan)
    return xp.where(told, beta, nothing) / xp.where(told, xp.abs(gamma), nothing)


def checked(normals: Array, bias: Array | None, xp: Namespace | None) -> Namespace:
    """Return the array API namespace of a layer's weights, or say why they are none."""
    xp = namespace(normals) if xp is None else xp
    if normals.ndim != 2:
        raise ValueError(f"normals must be 2-D (filters, fan_in), not of {normals.ndim} dimensions")
    if not xp.isdtype(normals.dtype, "real floating"):
        raise ValueError(f"normals must be real floating, not {normals.dtype}")
    if bias is not None and tuple(bias.shape) != (normals.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, not ({normals.shape[0]},)")
    return xp
