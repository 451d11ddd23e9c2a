"""Allocations that others use: the share of each layer that stays, of what stays in all.

Pure functions on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from planescope.criticality.options import PlannedWay
from planescope.files.errors import UsageError

Array = NDArray[Any]
Weights = Mapping[str, Array]
# Of a layer: the share of its weights or filters that goes, the rank that stays, the number of
# bits, 1 where it is put back and 0 where it is not.
Settings = dict[str, Fraction]

MOST_BITS = 16


def uniform_pruning(weights: Weights, size: float, /) -> Settings:
    """Prune the same share of every layer."""
    return _counted(weights, {n: (1 - size) * w.size for n, w in weights.items()}, size)


def global_magnitude(weights: Weights, size: float, /) -> Settings:
    """Prune the weights of least magnitude, wherever they are."""
    return _least({name: np.abs(w).ravel() for name, w in weights.items()}, weights, size)


def lamp(weights: Weights, size: float, /) -> Settings:
    """Prune by layer-adaptive magnitude (J. Lee et al., ICLR 2021).

    The score of a weight is its square over the sum of the squares, within its layer, that are not
    smaller.
    """
    scores = {}
    for name, weight in weights.items():
        squares = np.sort(np.asarray(weight, np.float64).ravel() ** 2)
        rest = np.cumsum(squares[::-1])[::-1]
        scores[name] = squares / np.where(rest > 0, rest, 1)
    return _least(scores, weights, size)


def uniform_rank(weights: Weights, size: float, /) -> Settings:
    """Keep of every layer the rank whose two factors hold a share of its weights."""
    found: Settings = {}
    for name, weight in weights.items():
        filters, fan_in = len(weight), weight[0].size
        rank = int(size * filters * fan_in / (filters + fan_in))
        found[name] = Fraction(max(1, min(rank, filters, fan_in)))
    return found


def uniform_bits(weights: Weights, mean: float, /) -> Settings:
    """Give every filter the same number of bits; of a mean between two, small layers have more."""
    low = int(mean)
    more = round((mean - low) * sum(w.size for w in weights.values()))
    found: Settings = {}
    for name, weight in sorted(weights.items(), key=lambda one: one[1].size):
        gets_more = weight.size <= more
        more -= weight.size if gets_more else 0
        found[name] = Fraction(low + gets_more)
    return {name: found[name] for name in weights}


def uniform_filters(weights: Weights, size: float, /) -> Settings:
    """Remove the same share of the filters of every layer."""
    steps = []
    for name, weight in weights.items():
        steps += [((n + 1) / len(weight), name) for n in range(len(weight) - 1)]
    return _filter_by_filter(weights, sorted(steps), size)


def global_filters(weights: Weights, size: float, /) -> Settings:
    """Remove the filters of least root mean square, wherever they are."""
    steps = []
    for name, weight in weights.items():
        norms = np.sort(np.sqrt((_rows(weight) ** 2).mean(axis=1)))
        steps += [(float(norm), name) for norm in norms[:-1]]
    return _filter_by_filter(weights, sorted(steps), size)


def lamp_filters(weights: Weights, size: float, /) -> Settings:
    """Remove filters by LAMP of their norms: its square over those, in the layer, not smaller."""
    steps = []
    for name, weight in weights.items():
        squares = np.sort((_rows(weight) ** 2).sum(axis=1))
        rest = np.cumsum(squares[::-1])[::-1]
        steps += [(float(s / (r or 1.0)), name) for s, r in zip(squares, rest, strict=True)][:-1]
    return _filter_by_filter(weights, sorted(steps), size)


def in_order(weights: Weights, order: Sequence[str], size: float, /) -> Settings:
    """Put whole layers back, in an order, until no more than a size stays as it was trained."""
    total = left = sum(w.size for w in weights.values())
    found: Settings = dict.fromkeys(weights, Fraction(0))
    for name in order:
        if left <= size * total:
            break
        found[name] = Fraction(1)
        left -= weights[name].size
    return found


# Ways in which whole layers are put back to an earlier state.
PUT_BACK = ("reset", "freeze")
RIVALS: dict[str, dict[str, Callable[[Weights, float], Settings]]] = {
    "prune": {
        "uniform": uniform_pruning,
        "global magnitude": global_magnitude,
        "LAMP": lamp,
    },
    "filters": {
        "uniform": uniform_filters,
        "global magnitude": global_filters,
        "LAMP": lamp_filters,
    },
    "rank": {"uniform": uniform_rank},
    "bits": {"uniform": uniform_bits},
}


def check_size(way: str, size: float, weights: Weights, /) -> None:
    """Refuse what no setting reaches, and name the nearest that is reached.

    Raises
    ------
    UsageError
        If there is no such way or size.
    """
    check_way(way)
    if math.isnan(size):
        raise UsageError(f"{'bits' if way == 'bits' else 'a size'} of nan: give a number")
    if way == "bits":
        if not 2 <= size <= MOST_BITS:
            nearest = MOST_BITS if size > MOST_BITS else 2
            raise UsageError(f"{size:g} bits cannot be reached; the nearest is {nearest}")
        return
    least = least_share(way, weights)
    if not least <= size < 1:
        nearest_size = f"{least:.4g}" if size < least else "just below 1"
        raise UsageError(
            f"a size of {size:g} cannot be reached: the share of weights that stays is from "
            f"{least:.4g} to below 1, the nearest {nearest_size}"
        )


def check_way(way: str, /) -> None:
    """Refuse a way that is not planned."""
    if way not in get_args(PlannedWay):
        raise UsageError(
            f"way {way!r} is not planned; take one of {', '.join(get_args(PlannedWay))}"
        )


def least_share(way: str, weights: Weights, /) -> float:
    """Tell the smallest share of the weights that a way leaves."""
    total = sum(w.size for w in weights.values())
    if way in PUT_BACK:
        return 0.0
    if way == "rank":
        return float(sum(len(w) + w[0].size for w in weights.values()) / total)
    if way == "filters":  # one of each layer
        return float(sum(w[0].size for w in weights.values()) / total)
    return 1 / total


def stays(way: str, weight: Array, setting: Fraction, /) -> float:
    """Count the weights that a layer holds: bits count as a share of 32."""
    if way == "prune":
        return float(weight.size - round(setting * weight.size))
    if way == "filters":
        return float((len(weight) - round(setting * len(weight))) * weight[0].size)
    if way in PUT_BACK:
        return float(weight.size * (1 - setting))
    if way == "rank":
        return float(min(weight.size, int(setting) * (len(weight) + weight[0].size)))
    return float(weight.size * setting / 32)


def _counted(weights: Weights, wanted: Mapping[str, float], size: float) -> Settings:
    """Return the shares of whole numbers of weights that together are as many as asked for."""
    left = _pruned(weights, size)
    found, floor = {}, {name: int(count) for name, count in wanted.items()}
    rest = left - sum(floor.values())
    order = sorted(wanted, key=lambda name: floor[name] - wanted[name])
    for place, name in enumerate(order):
        found[name] = floor[name] + (place < rest)
    return {name: Fraction(found[name], weights[name].size) for name in weights}


def _rows(weight: Array) -> Array:
    return np.asarray(weight, np.float64).reshape(len(weight), -1)


def _filter_by_filter(
    weights: Weights, steps: Sequence[tuple[float, str]], size: float
) -> Settings:
    """Remove filters in an order until no more than a size stays; one of each layer stays."""
    total = left = sum(w.size for w in weights.values())
    gone = dict.fromkeys(weights, 0)
    for _, name in steps:
        if left <= size * total:
            break
        gone[name] += 1
        left -= weights[name][0].size
    return {name: Fraction(count, len(weights[name])) for name, count in gone.items()}


def _least(scores: Mapping[str, Array], weights: Weights, size: float) -> Settings:
    every = np.concatenate(list(scores.values()))
    owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores.values()])
    chosen = owner[np.argsort(every, kind="stable")[: _pruned(weights, size)]]
    counts = np.bincount(chosen, minlength=len(scores))
    return {
        name: Fraction(int(count), weights[name].size)
        for name, count in zip(scores, counts, strict=True)
    }


def _pruned(weights: Weights, size: float) -> int:
    total = sum(w.size for w in weights.values())
    return total - round(Fraction(str(size)) * total)
