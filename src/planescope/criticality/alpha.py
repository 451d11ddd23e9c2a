"""WeightWatcher's alpha: how heavy the tail of a layer's spectrum is (Martin and Mahoney 2021).

The exponent of a power law fitted to the eigenvalues of W W^T above a threshold, which is the one
with the least Kolmogorov-Smirnov distance (Clauset, Shalizi and Newman 2009). Of a convolution the
eigenvalues of the matrices of all kernel positions are taken together. Our own code; the values are
those of weightwatcher 0.7.7 by its default options.
"""

from __future__ import annotations

import math

import numpy as np

from planescope.hyperplanes.arrays import Floats

# The package fits no fewer eigenvalues, corrects for bias below the second number, and takes those
# up to the third for zero.
FEWEST, FEW = 8, 20
ZERO = 1e-5


def alpha(weight: Floats, /) -> float | None:
    """Return the exponent of a layer's spectrum.

    Parameters
    ----------
    weight : array of float, shape (filters, inputs) or (filters, inputs, kernel...)

    Returns
    -------
    float or None
        None where there are fewer than 8 eigenvalues that are not zero, or entries that are not
        finite.
    """
    values = np.asarray(weight, dtype=np.float64)
    if not np.isfinite(values).all():
        return None
    positions = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
    spectra = np.linalg.svd(positions, compute_uv=False) ** 2
    if values.ndim > 2:
        spectra = spectra * len(positions) / 2
    return exponent(np.asarray(spectra.ravel(), dtype=np.float64))


def exponent(eigenvalues: Floats, /) -> float | None:
    """Fit a power law to the tail of some eigenvalues; None where there are too few."""
    tail = np.sort(eigenvalues[eigenvalues > ZERO])
    if len(tail) < FEWEST:
        return None
    logs = np.log(tail)
    best, nearest = math.nan, math.inf
    for start in range(len(tail) - 1):
        count = len(tail) - start
        above = float(logs[start:].sum()) - count * float(logs[start])
        is_few = len(tail) < FEW
        if is_few and (count < FEWEST or above <= ZERO**2):
            continue
        if above <= 0:
            continue
        found = 1 + (count - is_few) / above
        if found <= 1:
            continue
        fitted = 1 - (tail[start:] / tail[start]) ** (1 - found)
        distance = float(np.abs(fitted - np.arange(count) / count).max())
        if distance < nearest:
            best, nearest = found, distance
    return None if math.isnan(best) else best
