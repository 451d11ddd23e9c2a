"""Rank correlations and curves of layers' scores against their costs, and what chance gives.

Layers of one run are not independent, and neither are those at one place of several runs of the
same network. Two rules follow. Intervals over several runs resample whole runs. And where several
runs have the same layers, chance is what one shuffle of the layers, the same in all of these runs,
gives: were the runs shuffled each on its own, a score and a drop that both merely depend on the
place in the network would pass for related in every run anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planescope.hyperplanes.arrays import Flags, Floats
from planescope.hyperplanes.chance import CONFIDENCE

Integers = NDArray[np.int64]


# Ranks of fewer layers say nothing; behind one more variable, of one more.
FEWEST, FEWEST_PARTIAL = 3, 4
# Fewer runs than these, drawn anew, give intervals that are too narrow to build on.
FEWEST_RUNS = 5
# Tied statistics differ in their last bits; they count as tied.
_ROUNDING = 1e-9
# Numbers in a block of pairs of layers times shuffles.
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Runs that have the same layers, in one order.

    Attributes
    ----------
    score, drop, position : array of float64, shape (runs, layers)
    """

    score: Floats
    drop: Floats
    position: Floats


def ranks(values: Floats, /) -> Floats:
    """Return the ranks along the last axis, tied ones averaged.

    Centred, of length 1; NaN where all are tied.

    The product of two of them is Spearman's rho.
    """
    from scipy.stats import rankdata

    ranked = rankdata(values, axis=-1)
    ranked -= ranked.mean(axis=-1, keepdims=True)
    length = np.sqrt((ranked * ranked).sum(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(length > 0, ranked / length, np.nan))


def spearman(first: Floats, second: Floats, /) -> Floats:
    """Return Spearman's rho along the last axis; NaN where one of the two is constant."""
    return np.asarray((ranks(first) * ranks(second)).sum(axis=-1))


def kendall(first: Floats, second: Floats, /) -> Floats:
    """Return Kendall's tau-b along the last axis; NaN where one of the two is constant."""
    return np.asarray((_signs(first) * _signs(second)).sum(axis=(-2, -1)))


def _signs(values: Floats) -> Floats:
    """Compare layers by pairs: signs of differences, of length 1; NaN where all are tied."""
    signs = np.sign(values[..., :, None] - values[..., None, :])
    length = np.sqrt((signs * signs).sum(axis=(-2, -1), keepdims=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(length > 0, signs / length, np.nan))


def partial_spearman(score: Floats, drop: Floats, position: Floats, /) -> Floats:
    """Return Spearman's rho of what position leaves of the ranks of score and drop, last axis.

    NaN where position tells one of the two without rest.
    """
    left = [_without(ranks(values), ranks(position)) for values in (score, drop)]
    return np.asarray((left[0] * left[1]).sum(axis=-1))


def _without(values: Floats, direction: Floats) -> Floats:
    """Remove a direction of length 1; what is left has length 1 again, or is NaN."""
    rest = values - (values * direction).sum(axis=-1, keepdims=True) * direction
    length = np.sqrt((rest * rest).sum(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(length > 1e-7, rest / length, np.nan))


@dataclass(frozen=True, kw_only=True)
class PValues:
    """Two-sided permutation p-values of means over runs; None where there is no statistic."""

    rho: float | None
    tau: float | None
    partial: float | None


def permutation_p_values(
    blocks: Sequence[Block], /, *, shuffles: int, rng: np.random.Generator
) -> PValues:
    """Return the share of shuffles whose layers go with the drops as well as the layers do.

    Parameters
    ----------
    blocks : sequence of Block
        All runs of a block are shuffled alike, blocks each on their own.
    shuffles : int
        How many are drawn where there are more than that in all; else every one is gone through.
    rng : numpy.random.Generator

    Returns
    -------
    PValues
        Of the means over runs of rho, of tau-b, and of the partial rho given position, for which
        the residuals of the score are shuffled (Freedman and Lane 1983). Exact where every shuffle
        is gone through; else the draws and what was found count as one sample, so that p is never
        too small (Phipson and Smyth 2010).
    """
    orders, exact = _orders([block.score.shape[1] for block in blocks], shuffles, rng)
    sums = np.zeros((3, len(orders[0]) if orders else 0))
    found, counts = np.zeros(3), np.zeros(3)
    for block, order in zip(blocks, orders, strict=True):
        pairs = (
            _rho_terms(block.score, block.drop),
            _tau_terms(block.score, block.drop),
            _partial_terms(block),
        )
        for i, (left, right, axis) in enumerate(pairs):
            # A run without the statistic is left out, as it is left out of the mean.
            usable = np.isfinite(left).all(axis=_last(left)) & np.isfinite(right).all(
                axis=_last(right)
            )
            counts[i] += usable.sum()
            for one, other, along in zip(left[usable], right[usable], axis[usable], strict=True):
                found[i] += float((one * other).sum())
                sums[i] += _shuffled(one, other, along, order)
    extra = 0 if exact else 1
    far = (np.abs(sums) >= np.abs(found)[:, None] - _ROUNDING).sum(axis=1) + extra
    total = sums.shape[1] + extra
    p = [float(far[i] / total) if counts[i] and total else None for i in range(3)]
    return PValues(rho=p[0], tau=p[1], partial=p[2])


def _last(array: Floats) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def _rho_terms(score: Floats, drop: Floats) -> tuple[Floats, Floats, Floats]:
    left, right = ranks(score), ranks(drop)
    return left, right, 0 * right


def _tau_terms(score: Floats, drop: Floats) -> tuple[Floats, Floats, Floats]:
    left, right = _signs(score), _signs(drop)
    return left, right, 0 * drop


def _partial_terms(block: Block) -> tuple[Floats, Floats, Floats]:
    along = ranks(block.position)
    left, right = (_without(ranks(values), along) for values in (block.score, block.drop))
    if block.score.shape[1] < FEWEST_PARTIAL:
        left = np.full_like(left, np.nan)
    return left, right, along


def _shuffled(left: Floats, right: Floats, along: Floats, orders: Integers) -> Floats:
    """Compute one run's statistic for each order of the left side, without what is position's."""
    values = np.empty(len(orders))
    for part in chunks(len(orders), left.size):
        some = orders[part]
        if left.ndim == 2:
            turned = left[some[:, :, None], some[:, None, :]]
            values[part] = np.tensordot(turned, right, 2)
            continue
        turned = left[some]
        rest = np.sqrt(np.maximum(1 - (turned @ along) ** 2, 1e-14))
        values[part] = turned @ right / rest
    return values


def _orders(
    sizes: Sequence[int], shuffles: int, rng: np.random.Generator
) -> tuple[list[Integers], bool]:
    """Return the orders of the layers of each block, and whether these are all there are."""
    if len(sizes) == 1 and math.factorial(min(sizes[0], 20)) <= shuffles:
        return [np.array(list(itertools.permutations(range(sizes[0]))))], True
    return [rng.permuted(np.tile(np.arange(n), (shuffles, 1)), axis=1) for n in sizes], False


def auc(score: Floats, critical: Flags, /, weights: Floats) -> Floats:
    """Return the area under the ROC curve, with weights of the layers.

    Parameters
    ----------
    score : array, shape (layers,)
    critical : array of bool, shape (layers,)
    weights : array, shape (draws, layers)
        How often each layer is there.

    Returns
    -------
    array, shape (draws,)
        Share of the pairs of a critical and another layer in which the critical one has the larger
        score, ties by half; NaN where there are no pairs.
    """
    order, last = _descending(score)
    hits = np.cumsum(weights[:, order] * critical[order], axis=1)[:, last]
    misses = np.cumsum(weights[:, order] * ~critical[order], axis=1)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        rise = np.diff(hits, axis=1, prepend=0.0)
        # Misses above each step, and half of those that are tied with it.
        above = misses - np.diff(misses, axis=1, prepend=0.0) / 2
        area = 1 - (rise * above).sum(axis=1) / (hits[:, -1] * misses[:, -1])
    return np.asarray(area)


def auc_within(score: Floats, critical: Flags, run: NDArray[np.intp], /, weights: Floats) -> Floats:
    """Return the area under the ROC curve over the pairs of layers of one run.

    Parameters
    ----------
    score : array, shape (layers,)
    critical : array of bool, shape (layers,)
    run : array of int, shape (layers,)
        The run of each layer, from 0.
    weights : array, shape (draws, runs)
        How often each run is there.

    Returns
    -------
    array, shape (draws,)
        The mean over runs, each weighted by its pairs; NaN where there are none.
    """
    pairs, own = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for each in np.unique(run):
        mine = run == each
        flags = critical[mine]
        pairs[each] = flags.sum() * (~flags).sum()
        if pairs[each]:
            own[each] = auc(score[mine], flags, np.ones((1, len(flags))))[0]
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ (own * pairs)) / (weights @ pairs))


def average_precision(score: Floats, critical: Flags, /, weights: Floats) -> Floats:
    """Return the mean precision at the critical layers, highest score first.

    Parameters as for `auc`.

    Returns
    -------
    array, shape (draws,)
        In [0, 1]; what chance gives is the share of critical layers. NaN where there are none.
    """
    order, last = _descending(score)
    hits = np.cumsum(weights[:, order] * critical[order], axis=1)[:, last]
    every = np.cumsum(weights[:, order], axis=1)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(every > 0, hits / every, 0.0)
        gained = np.diff(hits, axis=1, prepend=0.0)
        return np.asarray((gained * precision).sum(axis=1) / hits[:, -1])


def _descending(score: Floats) -> tuple[Integers, Integers]:
    """Order by falling score, and where each run of tied scores ends in it."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return order, last


def resampled(units: int, /, *, draws: int, rng: np.random.Generator) -> Floats:
    """Draw units with replacement; return counts of shape (draws, units)."""
    return np.asarray(rng.multinomial(units, np.full(units, 1 / units), draws), dtype=np.float64)


def weighted_mean(values: Floats, weights: Floats, /) -> Floats:
    """Return the means of values by rows of weights, those of NaN left out.

    NaN where nothing is left.
    """
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray((weights[:, there] @ values[there]) / weights[:, there].sum(axis=1))


def interval(draws: Floats, /) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of draws, NaN left out."""
    there = draws[np.isfinite(draws)]
    if not len(there):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(there, (tail, 1 - tail))
    return float(low), float(high)


def chunks(rows: int, columns: int, /) -> list[slice]:
    """Return the parts of so many rows that a block of them and the columns stays small."""
    step = max(1, _BLOCK // max(columns, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


def roc(score: Floats, critical: Flags, /, weights: Floats, grid: Floats) -> Floats:
    """Return ROC curves: share of critical layers found by share of others taken for critical.

    Parameters
    ----------
    score, critical, weights
        As for `auc`.
    grid : array, shape (points,)
        Shares of the others, rising, in [0, 1].

    Returns
    -------
    array, shape (draws, points)
        Linear between the thresholds; rows of NaN where one of the two kinds is missing.
    """
    order, last = _descending(score)
    hits = np.cumsum(weights[:, order] * critical[order], axis=1)[:, last]
    misses = np.cumsum(weights[:, order] * ~critical[order], axis=1)[:, last]
    curves = np.full((len(weights), len(grid)), np.nan)
    for row, (found, wrong) in enumerate(zip(hits, misses, strict=True)):
        if found[-1] and wrong[-1]:
            x, y = np.append(0.0, wrong / wrong[-1]), np.append(0.0, found / found[-1])
            curves[row] = np.interp(grid, x, y)
    return curves
