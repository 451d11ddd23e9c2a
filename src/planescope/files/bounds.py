"""Bounds of the numbers among options: stated once in a table, and checked in one way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from planescope.files.errors import UsageError

# As pydantic's `Field` names them: gt and lt leave the bound itself out, ge and le do not.
Bounds = Mapping[str, Mapping[str, float]]


def check_bounds(options: Any, bounds: Bounds, /) -> None:
    """Refuse options of which a number lies outside its bounds; None stands for no number.

    Raises
    ------
    UsageError
        If one does, or is no finite number.
    """
    for name, bound in bounds.items():
        given = getattr(options, name)
        values = given if isinstance(given, Sequence) else (given,)
        if not all(value is None or _is_within(value, **bound) for value in values):
            raise UsageError(f"{name.replace('_', ' ')} must {_words(**bound)}, not {given}")


def check_seed(seed: int, /) -> None:
    """Refuse a seed that NumPy cannot draw with.

    Raises
    ------
    UsageError
        If it is negative.
    """
    if seed < 0:
        raise UsageError(f"a seed must be 0 or more, not {seed}")


def _is_within(
    value: float,
    *,
    gt: float = -math.inf,
    ge: float = -math.inf,
    lt: float = math.inf,
    le: float = math.inf,
) -> bool:
    return gt < value < lt and ge <= value <= le


def _words(
    *, gt: float | None = None, ge: float | None = None, lt: float | None = None,
    le: float | None = None,
) -> str:  # fmt: skip
    low, high = (ge if gt is None else gt), (le if lt is None else lt)
    if low is None:
        return "be finite"
    if high is None:
        return f"be above {low:g}" if ge is None else f"be {low:g} or more"
    return f"lie in {'(' if ge is None else '['}{low:g}, {high:g}{')' if le is None else ']'}"
