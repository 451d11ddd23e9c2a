"""Numbers as a page has them: short, and never NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable

DIGITS = 6


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """To so many significant digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def rounded_all(values: Iterable[float], digits: int = DIGITS) -> list[float | None]:
    """Each of some numbers."""
    return [rounded(value, digits) for value in values]
