"""Intervals and tests of accuracies against SciPy, and their error rates by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from planescope.criticality.confidence import (
    accuracy_bounds,
    change_p_value,
    sequential_change_p_value,
)
from planescope.hyperplanes.chance import wilson


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (7, 20), (945, 1000), (0, 10_000), (10_000, 10_000)]
)
def test_wilson_is_scipys(successes, trials):
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-15)


def test_wilson_by_hand():
    # 1 of 2, z^2 = 3.8415: middle 1/2, half = sqrt(z^2 / 8 + z^4 / 16) / (1 + z^2 / 2)
    square = 1.959963984540054**2
    half = (square / 8 + square**2 / 16) ** 0.5 / (1 + square / 2)
    assert wilson(1, 2) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-15)


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="is no share"):
        wilson(*counts)


@pytest.mark.parametrize("counts", [(2, 1, 5), (1, 6, 5), (-1, 0, 5), (0, 0, 0)])
def test_impossible_counts_of_some_are_refused(counts):
    with pytest.raises(ValueError, match="no possible counts"):
        accuracy_bounds(*counts)


@pytest.mark.parametrize(
    ("right", "seen", "total"),
    [(0, 0, 50), (3, 7, 50), (0, 20, 50), (20, 20, 50), (499, 600, 1000), (50_000, 60_000, 70_000)],
)
def test_bounds_are_where_the_posterior_is_a_twentieth_of_the_prior(right, seen, total):
    every = np.arange(total + 1)
    posterior = stats.betabinom.pmf(every - right, total - seen, right + 1, seen - right + 1)
    held = every[posterior > 1 / (20 * (total + 1))]
    assert accuracy_bounds(right, seen, total) == (held[0] / total, held[-1] / total)


def test_bounds_close_on_the_accuracy_when_all_were_seen():
    assert accuracy_bounds(37, 50, 50) == (0.74, 0.74)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.97])
def test_bounds_are_ever_wrong_in_one_of_twenty_runs_at_most(share):
    # Looked at after each example, for as long as it takes: 0.05, and three standard errors on top.
    total, runs = 300, 400
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(runs):
        right = np.cumsum(rng.permutation(total) < share * total)
        bounds = [accuracy_bounds(int(r), n, total) for n, r in enumerate(right, start=1)]
        low, high = np.array(bounds).T
        wrong += bool(((low > right[-1] / total) | (high < right[-1] / total)).any())
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_a_fixed_interval_looked_at_again_and_again_is_wrong_far_more_often():
    total, runs = 2000, 200
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(runs):
        right = np.cumsum(rng.random(total) < 0.5)
        bounds = [wilson(int(right[n - 1]), n) for n in range(10, total, 10)]
        wrong += any(not low <= 0.5 <= high for low, high in bounds)
    assert wrong / runs > 0.15


def test_bounds_grow_narrow_as_promised():
    low, high = accuracy_bounds(4500, 9000, 50_000)
    assert high - low < 0.04


def test_a_change_is_tested_on_the_answers_that_changed():
    before = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    after = np.array([0, 0, 0, 0, 0, 0, 0, 1], dtype=bool)
    # 6 lost, 1 gained: 2 (C(7,0) + C(7,1)) / 2^7
    assert change_p_value(before, after) == pytest.approx(16 / 128)
    assert change_p_value(before, before) == 1.0
    assert sequential_change_p_value(before, before) == 1.0


def test_a_sequential_change_by_hand():
    lost = np.ones(3, dtype=bool)
    # 2^n / (n + 1) after n losses: 1, 4/3, 2
    assert sequential_change_p_value(lost, ~lost) == pytest.approx(1 / 2)


def test_a_sequential_change_is_seen_where_there_is_none_in_one_of_twenty_runs_at_most():
    rng = np.random.default_rng(0)
    runs, found, fixed = 600, 0, 0
    for _ in range(runs):
        before = rng.random(1500) < 0.5
        found += sequential_change_p_value(before, ~before) < 0.05
        looks = [change_p_value(before[:n], ~before[:n]) for n in range(50, 1500, 50)]
        fixed += min(looks) < 0.05
    assert found / runs <= 0.05
    assert fixed / runs > 0.15  # what looking again and again at a fixed test would do


def test_a_sequential_change_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    before = rng.random(1000) < 0.9
    after = before & (rng.random(1000) < 0.9)
    assert sequential_change_p_value(before, after) < 1e-6
