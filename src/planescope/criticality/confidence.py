"""Intervals of an accuracy: from all examples, and at any moment while they are looked at."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.chance import CONFIDENCE, log_fair_binomial, mass_p_value

Values = NDArray[np.bool_] | Floats


def accuracy_bounds(right: int, seen: int, total: int, /) -> tuple[float, float]:
    """Return bounds of the accuracy over all examples, from those seen so far in a random order.

    With probability 95 % they hold at every moment at once, so that one may stop whenever they are
    narrow enough; when all examples were seen they are the accuracy itself.

    Parameters
    ----------
    right, seen, total : int
        ``0 <= right <= seen <= total``, at least one in all.

    Returns
    -------
    low, high : float
        In [0, 1].

    Raises
    ------
    ValueError
        If the counts contradict each other.

    Notes
    -----
    The prior-posterior-ratio martingale of Waudby-Smith and Ramdas (*Confidence sequences for
    sampling without replacement*, NeurIPS 2020, section 2), with a uniform prior over the number K
    of right answers in all: prior(K) / posterior(K) is a martingale for the true K, and by Ville's
    inequality ever reaches 20 with probability 5 % at most.
    """
    if not 0 <= right <= seen <= total or total < 1:
        raise ValueError(f"{right} right of {seen} seen of {total} are no possible counts")
    log = _log_factorials(total + 1)
    rest = total - seen
    more = slice(0, rest + 1)  # how many of the rest are right: K - right
    # Beta-binomial: C(rest, j) B(K + 1, total - K + 1) / B(right + 1, seen - right + 1)
    posterior = log[rest] - log[more] - log[more][::-1]
    posterior += log[right : right + rest + 1] + log[seen - right : seen - right + rest + 1][::-1]
    posterior += log[seen + 1] - log[right] - log[seen - right] - log[total + 1]
    # The beta-binomial with parameters of 1 or more has one peak, so that these are neighbours.
    possible = np.flatnonzero(-math.log(total + 1) - posterior < -math.log(1 - CONFIDENCE))
    return (right + int(possible[0])) / total, (right + int(possible[-1])) / total


@functools.cache
def _log_factorials(largest: int) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, largest + 1)))))


def change_p_value(before: Values, after: Values, /) -> float:
    """Return exact two-sided test of whether two accuracies on the same examples are one.

    Parameters
    ----------
    before, after : array of bool or float, shape (examples,)
        Which answers were right; or another metric of each example.

    Returns
    -------
    float
        McNemar's test in its exact form: of the answers that changed, as many were right before
        as are right after. 1.0 where none changed.
    """
    lost, gained = int((after < before).sum()), int((before < after).sum())
    return mass_p_value(lost, lost + gained) if lost + gained else 1.0


def sequential_change_p_value(before: Values, after: Values, /) -> float:
    """Test as in `change_p_value`, for examples that were looked at until one had seen enough.

    Returns
    -------
    float
        At most p with probability p, whenever one stopped.

    Notes
    -----
    One over the largest value that the mixture of likelihood ratios ``2^n B(lost + 1, gained + 1)``
    reached on the way; it is a martingale while changes to either side are equally likely (Ville).
    """
    changed = before != after
    lost = np.cumsum((after < before)[changed])
    count = np.arange(1, len(lost) + 1)
    if not len(count):
        return 1.0
    # 1 / B(lost + 1, gained + 1) is n + 1 times the binomial coefficient.
    return min(1.0, math.exp(float((np.log1p(count) + log_fair_binomial(lost, count)).min())))
