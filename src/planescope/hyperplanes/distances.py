"""Distances of a layer's weights from their initial values, in arrays of any library."""

from __future__ import annotations

from planescope.hyperplanes.geometry import checked
from planescope.hyperplanes.layer import Array
from planescope.hyperplanes.sums import (
    Namespace,
    difference,
    given_back,
    length_and_peak,
    namespace,
    nan_for_zero,
    row_blocks,
)


def distances(
    weight: Array, initial: Array, /, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Return relative distances of a layer's weights from their initial values (METHOD, section 5).

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
    size, top = (given_back(part, xp) for part in extent(initial))
    return path / nan_for_zero(size, xp), far / nan_for_zero(top, xp)


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
    xp = checked(weight, None, xp)
    if initial is None:
        parts = [length_and_peak(rows) for rows in row_blocks(weight)]
    else:
        checked(initial, None, None)
        if weight.shape != initial.shape:
            raise ValueError(f"shapes differ: {tuple(weight.shape)} and {tuple(initial.shape)}")
        blocks = zip(row_blocks(weight), row_blocks(initial), strict=True)
        parts = [length_and_peak(difference(now, then)) for now, then in blocks]
    if len(parts) == 1:
        length, peak = parts[0]
    else:
        inside = namespace(parts[0][0])
        lengths, peaks = (inside.stack(column) for column in zip(*parts, strict=True))
        length, peak = length_and_peak(lengths)[0], inside.max(peaks)
    return given_back(length, xp), given_back(peak, xp)
