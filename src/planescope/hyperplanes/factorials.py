"""Parts of the probabilities of counts, computed without losing digits.

The form of C. Loader, "Fast and accurate computation of binomial probabilities", 2000:
logarithms of factorials lose as many digits as they have in front of the point.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def stirling_error(n: Floats) -> Floats:
    """Return log(n!) minus Stirling's approximation, n >= 1."""
    exact = np.array(
        [
            0.0,
            *(
                math.lgamma(k + 1.0) - (k + 0.5) * math.log(k) + k - 0.5 * math.log(2.0 * math.pi)
                for k in range(1, 16)
            ),
        ]
    )
    m = np.maximum(n, 16.0)
    inverse = 1.0 / np.square(m)
    series = (
        1 / 12
        - inverse
        * (
            1 / 360
            - inverse
            * (1 / 1260 - inverse * (1 / 1680 - inverse * (1 / 1188 - inverse * 691 / 360360)))
        )
    ) / m
    return np.where(n < 16, exact[np.minimum(n, 15.0).astype(np.intp)], series)


def deviance(x: Floats, gap: Floats) -> Floats:
    """Return X log(x/mean) + mean - x, mean = x + gap; accurate where x is near its mean."""
    mean = x + gap
    ratio = -gap / (x + mean)
    square = np.square(ratio)
    # 2 atanh(v) = log((1+v)/(1-v)): the first term of the series is what cancels.
    series = np.zeros_like(x)
    for k in range(14, 0, -1):
        series = square * (1.0 / (2 * k + 1) + series)
    near = 2.0 * x * ratio * series - gap * ratio
    far = x * np.log(x / mean) + gap
    return np.where(np.abs(ratio) < 0.25, near, far)
