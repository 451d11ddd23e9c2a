"""The whole matrix of a convolution: one hyperplane of input space a row (METHOD, section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]

# What padding reads, as options of numpy.pad over the indices of the input; -1 is no input.
_PAD: dict[str, dict[str, Any]] = {
    "zeros": {"mode": "constant", "constant_values": -1},
    "circular": {"mode": "wrap"},
    "reflect": {"mode": "reflect"},
    "replicate": {"mode": "edge"},
}


def toeplitz(
    weight: NDArray[Any],
    input_shape: Sequence[int],
    /,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
) -> scipy.sparse.csr_array:
    """Return the whole matrix of a convolution.

    Each row is the normal of one hyperplane in input space.

    Parameters
    ----------
    weight : NumPy array, shape (filters, channels / groups, *kernel)
        Kernel of 1, 2 or 3 dimensions.
    input_shape : (channels, *spatial)
    stride, padding, dilation : int, or one int a dimension
        As in torch.nn.Conv1d, Conv2d and Conv3d; padding on both sides.
    groups : int
    padding_mode : {"zeros", "circular", "reflect", "replicate"}

    Returns
    -------
    scipy.sparse.csr_array, shape (filters * positions, channels * prod(spatial))
        Rows run over filters first, then over output positions; in float32 or wider. Where padding
        folds several taps on one input, their weights are summed.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.

    Notes
    -----
    ``toeplitz(weight, x.shape) @ x.ravel()`` is the convolution of x. Circular padding makes the
    matrix block-circulant: all rows of a filter hold the same entries in another order, so they
    have the same cosine and the same crossing. With zero padding this holds for `interior_rows`.
    """
    import scipy.sparse

    weight = np.asarray(weight)
    taps = _taps(weight.shape, input_shape, stride, padding, dilation, padding_mode)
    filters, depth = weight.shape[:2]
    channels, pixels = input_shape[0], math.prod(input_shape[1:])
    if groups < 1 or filters % groups or depth * groups != channels:
        raise ValueError(
            f"{filters} filters over {depth} channels each do not make {groups} groups "
            f"of {channels} channels"
        )
    group = np.arange(filters) // (filters // groups)
    channel = group[:, None] * depth + np.arange(depth)
    # Axes of all that follows: filter, output position, channel of the group, tap.
    column = channel[:, None, :, None] * pixels + taps[:, None, :]
    row = np.arange(filters * len(taps)).reshape(filters, -1, 1, 1)
    value = weight.astype(np.result_type(weight, np.float32)).reshape(filters, 1, depth, -1)
    inside = np.broadcast_to(taps[:, None, :] >= 0, column.shape)
    row, value = (np.broadcast_to(part, column.shape)[inside] for part in (row, value))
    shape = (filters * len(taps), channels * pixels)
    return scipy.sparse.coo_array((value, (row, column[inside])), shape=shape).tocsr()


def interior_rows(
    weight: NDArray[Any],
    input_shape: Sequence[int],
    /,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> NDArray[np.bool_]:
    """Tell the rows of `toeplitz` whose receptive field lies inside the input from border rows.

    Parameters
    ----------
    weight, input_shape, stride, padding, dilation
        As for `toeplitz`.

    Returns
    -------
    array of bool, shape (filters * positions,)
        False where a tap of the row falls on the padding.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    """
    taps = _taps(weight.shape, input_shape, stride, padding, dilation, "zeros")
    return np.tile((taps >= 0).all(axis=1), weight.shape[0])


def _taps(
    weight_shape: Sequence[int],
    input_shape: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    mode: str,
) -> NDArray[np.intp]:
    """Return flat input pixel that each tap of each output position reads, -1 on padding of zeros.

    Shape (positions, prod(kernel)).
    """
    kernel, spatial = tuple(weight_shape[2:]), tuple(input_shape[1:])
    if not 1 <= len(kernel) <= 3 or len(kernel) != len(spatial):
        raise ValueError(
            f"a weight of shape {tuple(weight_shape)} and an input of shape {tuple(input_shape)} "
            "are no 1-, 2- or 3-D convolution: (filters, channels / groups, *kernel) over "
            "(channels, *spatial)"
        )
    if mode not in _PAD:
        raise ValueError(f"unknown padding_mode {mode!r}; there are {', '.join(_PAD)}")
    steps = _each("stride", stride, len(kernel), least=1)
    pads = _each("padding", padding, len(kernel), least=0)
    spreads = _each("dilation", dilation, len(kernel), least=1)
    taps = np.zeros((1, 1), dtype=np.intp)
    for size, extent, step, pad, spread in zip(spatial, kernel, steps, pads, spreads, strict=True):
        reach = spread * (extent - 1)
        if extent < 1 or size < 1 or reach >= size + 2 * pad:
            raise ValueError(
                f"a kernel of {extent} with dilation {spread} does not fit into an input of {size} "
                f"with padding {pad}"
            )
        source = np.pad(np.arange(size), pad, **_PAD[mode])
        starts = np.arange(0, size + 2 * pad - reach, step)
        line = source[starts[:, None] + spread * np.arange(extent)]
        # One more dimension, C order: (positions, 1, taps, 1) with (1, outputs, 1, extent).
        outer, inner = taps[:, None, :, None], line[None, :, None, :]
        taps = np.where((outer < 0) | (inner < 0), -1, outer * size + inner)
        taps = taps.reshape(len(outer) * len(line), -1)
    return taps


def _each(name: str, value: int | Sequence[int], count: int, *, least: int) -> tuple[int, ...]:
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count or min(values) < least:
        raise ValueError(
            f"{name} must be an int or {count} ints, each at least {least}, not {value!r}"
        )
    return values
