"""Replacements of a layer's weight: pruned, without filters, of lower rank, of fewer bits.

METHOD, section 7. Pure functions on arrays: nothing is written into an argument. What a layer is
put back to (its initialisation, an epoch, a fresh draw) is in `criticality.resets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planescope.files.errors import UsageError, nearest

Array = NDArray[Any]
# A user's own way: from a weight, as the network holds it, to another of its shape.
Own = Callable[[Any], Any]
Ways = str | Sequence[str] | Mapping[str, "Own | str | Way"]

# Draws of noise, over which scores are averaged.
NOISE_DRAWS = 5
# Where nobody asks: a short ladder of each of the first four.
LADDER = (
    "prune:0.5", "prune:0.8", "prune:0.9", "filters:0.1", "filters:0.25", "filters:0.5",
    "rank:0.5", "rank:0.25", "rank:0.1", "bits:4", "bits:3", "bits:2",
)  # fmt: skip
_MOST_BITS = 24


class WayKind(StrEnum):
    """A way to change a weight."""

    PRUNE = "prune"
    FILTERS = "filters"
    RANK = "rank"
    BITS = "bits"
    NOISE = "noise"
    OWN = "own"


_MEANS = {
    WayKind.PRUNE: "prune:S sets a share of the weights to 0, 0 < S <= 1",
    WayKind.FILTERS: "filters:S sets a share of the filters to 0, 0 < S <= 1",
    WayKind.RANK: "rank:S keeps a share of the rank, 0 < S <= 1",
    WayKind.BITS: f"bits:B rounds to B bits a filter, B a whole number from 2 to {_MOST_BITS}",
    WayKind.NOISE: "noise:R adds Gaussian noise of R times the layer's norm, R > 0",
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to replace a weight.

    Attributes
    ----------
    key : str
        As it was typed: ``"prune:0.9"``; the name of a user's own.
    kind : WayKind
    amount : Fraction
        Exactly as typed: a share, a number of bits, a ratio; 0 of a user's own.
    own : callable, optional
        Of a weight as the network holds it (a tensor, not to be changed), to another of its shape.
    """

    key: str
    kind: WayKind
    amount: Fraction = Fraction(0)
    own: Own | None = None

    @classmethod
    def parse(cls, text: str, /) -> Way:
        """Read ``kind:amount``.

        Raises
        ------
        UsageError
            If it is not understood.
        """
        key = text.strip()
        name, colon, number = key.partition(":")
        kinds = [kind.value for kind in _MEANS]
        if name not in kinds:
            raise UsageError(f"way {key!r} is not known; {nearest(name, kinds)}")
        kind = WayKind(name)
        try:
            amount = Fraction(Decimal(number)) if colon and len(number) <= 32 else None
        except (InvalidOperation, ValueError, OverflowError):
            amount = None
        if amount is None or not _is_allowed(kind, amount):
            raise UsageError(f"way {key!r} is not understood; {_MEANS[kind]}")
        return cls(key=key, kind=kind, amount=amount)


def _is_allowed(kind: WayKind, amount: Fraction) -> bool:
    match kind:
        case WayKind.BITS:
            return amount.denominator == 1 and 2 <= amount <= _MOST_BITS
        case WayKind.NOISE:
            return 0 < amount <= 10**6
        case _:
            return 0 < amount <= 1


def read_ways(ways: Ways | None, /) -> tuple[Way, ...]:
    """Read what a user asks for: ``"prune:0.9,bits:3"``, a sequence of such, or own callables.

    Parameters
    ----------
    ways : str, sequence of str, mapping of str to callable, or None
        A mapping names callables; a name that holds a way in place of a callable stands for it.
        None is a short ladder of pruned weights, filters, ranks and bits.

    Raises
    ------
    UsageError
        If one is not understood, or comes twice.
    """
    if ways is None:
        ways = LADDER
    found: list[Way] = []
    if isinstance(ways, Mapping):
        for name, way in ways.items():
            found.append(_named(str(name), way))
    else:
        parts = ways.split(",") if isinstance(ways, str) else list(ways)
        for part in parts:
            if not isinstance(part, str):
                raise UsageError(
                    f"ways has a {type(part).__name__}; give a callable a name: "
                    "ways={'mine': callable}"
                )
            found.append(Way.parse(part))
    if not found:
        raise UsageError("ways is empty; give one, such as prune:0.9")
    keys = [way.key for way in found]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise UsageError(f"way {twice[0]!r} is given twice")
    return tuple(found)


def _named(name: str, way: Any) -> Way:
    if isinstance(way, Way):
        return Way(key=name, kind=way.kind, amount=way.amount, own=way.own)
    if isinstance(way, str):
        return _named(name, Way.parse(way))
    if not callable(way):
        raise UsageError(f"way {name!r} is a {type(way).__name__}; give a callable on a weight")
    return Way(key=name, kind=WayKind.OWN, own=way)


def replaced(way: Way, weight: Array, /) -> list[Array]:
    """Give the weights that stand in for one; several where the cell is a mean over draws.

    Parameters
    ----------
    weight : array, shape (filters, ...), real floating
        Filters first. Of a user's own way also another layout: it is handed over as it is.

    Returns
    -------
    list of arrays of the shape and type of `weight`
        `NOISE_DRAWS` of them for noise, else one.

    Raises
    ------
    UsageError
        If a user's own way gives no weight of the same shape, or numbers that are none.
    """
    match way.kind:
        case WayKind.PRUNE:
            return [pruned(weight, way.amount)]
        case WayKind.FILTERS:
            return [without_filters(weight, weakest_filters(weight, way.amount))]
        case WayKind.RANK:
            return [of_rank(weight, way.amount)]
        case WayKind.BITS:
            return [of_bits(weight, int(way.amount))]
        case WayKind.NOISE:
            return noisy(weight, way.amount)
        case WayKind.OWN:
            return [_own(way, weight)]


def pruned(weight: Array, share: Fraction | float | str, /) -> Array:
    """Set the weights of least magnitude to 0: exactly ``round(share * n)`` of n.

    Of equal magnitudes the one of the lowest index goes first, in the order of the array given.
    """
    result = np.array(weight, order="C")  # of another order, reshape would give a copy
    order = np.argsort(np.abs(result).ravel(), kind="stable")
    result.reshape(-1)[order[: _rounded(share, result.size)]] = 0
    return result


def weakest_filters(weight: Array, share: Fraction | float | str, /) -> NDArray[np.intp]:
    """Find the filters of least L2 norm: exactly ``round(share * N)`` of N, lowest index first.

    Returns
    -------
    array of int, shape (round(share * N),)
        In ascending order. Norms are computed in float64.
    """
    rows = _rows(weight)
    largest = float(np.abs(rows).max(initial=0.0)) or 1.0
    # So that squares neither overflow nor vanish; a power of 2 leaves ties as they are.
    scaled = rows * 2.0 ** -math.frexp(largest)[1]
    order = np.argsort((scaled**2).sum(axis=1), kind="stable")
    return np.sort(order[: _rounded(share, len(rows))])


def without_filters(array: Array, which: NDArray[np.intp], /) -> Array:
    """Set some filters to 0, or their entries in a bias or a norm's parameters."""
    result = np.array(array)
    result[which] = 0
    return result


def of_rank(weight: Array, share: Fraction | float | str, /) -> Array:
    """Truncate the singular values of the (N, d) matrix to ``max(1, floor(share * min(N, d)))``.

    The decomposition is computed in float64.
    """
    rows = _rows(weight)
    kept = max(1, math.floor(_exact(share) * min(rows.shape)))
    if kept >= min(rows.shape):
        return np.array(weight)
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    truncated = (left[:, :kept] * values[:kept]) @ right[:kept]
    result: Array = truncated.reshape(weight.shape).astype(weight.dtype)
    return result


def of_bits(weight: Array, bits: int, /) -> Array:
    """Round each filter to multiples of ``max|w| / (2^(bits-1) - 1)``, ties to even.

    A filter of zeros stays. Computed in float64, in which the quotient of float32 weights is that
    of their exact values, rounded once.
    """
    rows, most = _rows(weight), 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)
    steps = np.rint(rows * most / scale)
    result: Array = (steps * scale / most).reshape(weight.shape).astype(weight.dtype)
    return result


def noisy(weight: Array, ratio: Fraction | float | str, /) -> list[Array]:
    """Add Gaussian noise whose Frobenius norm is exactly `ratio` times the weight's.

    Returns
    -------
    list of `NOISE_DRAWS` arrays
        Drawn one after the other by NumPy's default generator of seed 0.
    """
    wide, rng = np.asarray(weight, dtype=np.float64), np.random.default_rng(0)
    size = float(np.linalg.norm(wide)) * float(_exact(ratio))
    draws = [rng.standard_normal(wide.shape) for _ in range(NOISE_DRAWS)]
    return [(wide + draw * (size / np.linalg.norm(draw))).astype(weight.dtype) for draw in draws]


def _own(way: Way, weight: Array) -> Array:
    assert way.own is not None  # noqa: S101
    given: Any = np.array(weight)
    try:
        found = np.asarray(way.own(given))
    except Exception as exc:  # the user's own code
        raise UsageError(f"way {way.key!r} fails: {type(exc).__name__}: {exc}") from exc
    return checked(way, found, weight)


def checked(way: Way, found: Array, weight: Array, /) -> Array:
    """Refuse what a user's own way gives where it cannot stand in for the weight."""
    if found.shape != weight.shape:
        raise UsageError(
            f"way {way.key!r} gives shape {found.shape} for a weight of shape {weight.shape}"
        )
    if found.dtype.kind not in "fiub" or not np.isfinite(found).all():
        raise UsageError(f"way {way.key!r} gives values that are not finite numbers")
    return found.astype(weight.dtype)


def _rows(weight: Array) -> NDArray[np.float64]:
    return np.asarray(weight, dtype=np.float64).reshape(len(weight), -1)


def _exact(amount: Fraction | float | str) -> Fraction:
    """Return a number as it reads: 0.29 is 29/100, so that 0.29 of 100 is 29."""
    return amount if isinstance(amount, Fraction) else Fraction(str(amount))


def _rounded(share: Fraction | float | str, total: int) -> int:
    return round(_exact(share) * total)
