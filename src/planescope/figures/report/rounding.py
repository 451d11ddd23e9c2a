"""Numbers as a page has them: short, and never NaN."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DIGITS = 6


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """Round to so many significant digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def rounded_all(values: ArrayLike, digits: int) -> list[float | None]:
    """Return each of some numbers, of which there may be many."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    known = np.where(finite & (array != 0), np.abs(array), 1.0)
    places = digits - 1 - np.floor(np.log10(known))
    # Divided by a power of ten, a whole number is the float that is written in so many digits.
    up, down = 10.0 ** np.maximum(places, 0.0), 10.0 ** np.maximum(-places, 0.0)
    short = np.rint(np.where(finite, array, 0.0) / down * up) / up * down
    numbers: list[float | None] = short.tolist()
    for i in np.flatnonzero(~finite):
        numbers[i] = None
    return numbers
