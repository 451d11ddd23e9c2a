"""Rank statistics, curves and permutations, against SciPy, scikit-learn and sums by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from planescope.criticality.relation import ranks
from planescope.criticality.relation.ranks import Block

few = st.lists(st.integers(0, 4), min_size=4, max_size=9)


@given(few, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_rank_correlations_are_those_of_scipy(values, random):
    first = np.array(values, float)
    second = np.array([random.randint(0, 4) for _ in values], float)
    if len(set(first)) > 1 and len(set(second)) > 1:
        assert ranks.spearman(first, second) == pytest.approx(
            stats.spearmanr(first, second).statistic, abs=1e-12
        )
        assert ranks.kendall(first, second) == pytest.approx(
            stats.kendalltau(first, second).statistic, abs=1e-12
        )
    else:
        assert math.isnan(ranks.spearman(first, second))
        assert math.isnan(ranks.kendall(first, second))


@given(few, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_curves_are_those_of_scikit_learn_with_weights(values, random):
    score = np.array(values, float)
    critical = np.array([random.random() < 0.5 for _ in values])
    weights = np.array([[random.randint(0, 3) for _ in values] for _ in range(3)], float)
    area = ranks.auc(score, critical, weights)
    precision = ranks.average_precision(score, critical, weights)
    for row, found_area, found_precision in zip(weights, area, precision, strict=True):
        there = row > 0
        if critical[there].any() and not critical[there].all():
            args = (critical[there], score[there])
            expected = metrics.roc_auc_score(*args, sample_weight=row[there])
            assert found_area == pytest.approx(expected, abs=1e-12)
            expected = metrics.average_precision_score(*args, sample_weight=row[there])
            assert found_precision == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(found_area)


def test_a_roc_curve_goes_through_the_thresholds():
    # Scores 3, 2, 1, 0 with the first and third critical: up 1/2, right 1/2, up, right.
    score, critical = np.array([3.0, 2, 1, 0]), np.array([True, False, True, False])
    curve = ranks.roc(score, critical, np.ones((1, 4)), np.array([0.25, 0.5, 0.75]))
    assert curve[0].tolist() == [0.5, 1.0, 1.0]


def test_partial_correlation_is_the_formula_of_three_correlations():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 12))
    ab, ac, bc = (stats.spearmanr(x, y).statistic for x, y in ((a, b), (a, c), (b, c)))
    expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert ranks.partial_spearman(a, b, c) == pytest.approx(expected, abs=1e-12)


def test_what_position_tells_whole_leaves_no_partial_correlation():
    a, b = np.arange(5.0), np.array([2.0, 1, 5, 3, 4])
    assert math.isnan(ranks.partial_spearman(a, b, a))


def _one_block(score, drop):
    score, drop = np.atleast_2d(score), np.atleast_2d(drop)
    return [
        Block(score=score, drop=drop, position=np.tile(np.arange(score.shape[1]), (len(score), 1)))
    ]


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_few_layers_have_the_exact_permutation_p_value(layers):
    rng = np.random.default_rng(layers)
    score, drop = rng.normal(size=(2, layers))
    found = ranks.permutation_p_values(_one_block(score, drop), shuffles=999, rng=rng)
    observed = abs(stats.spearmanr(score, drop).statistic)
    every = [
        abs(stats.spearmanr(score[list(order)], drop).statistic)
        for order in itertools.permutations(range(layers))
    ]
    assert found.rho == sum(r >= observed - 1e-9 for r in every) / math.factorial(layers)


def test_perfect_order_of_five_layers_has_two_in_120():
    found = ranks.permutation_p_values(
        _one_block(np.arange(5.0), np.arange(5.0)), shuffles=999, rng=np.random.default_rng(0)
    )
    assert found.rho == found.tau == 2 / 120


def test_many_runs_of_one_network_are_shuffled_as_one():
    # Forty runs that say the same thing tell no more of the layers than one does.
    same = np.tile(np.arange(4.0), (40, 1))
    found = ranks.permutation_p_values(
        _one_block(same, same), shuffles=999, rng=np.random.default_rng(0)
    )
    assert found.rho == 2 / 24


def test_runs_of_different_networks_are_shuffled_apart():
    # Two networks of four layers in perfect order: both straight or both reversed, 2/24 * 1/24.
    order = np.arange(4.0)
    blocks = _one_block(order, order) + _one_block(order, order)
    found = ranks.permutation_p_values(blocks, shuffles=49_999, rng=np.random.default_rng(0))
    assert found.rho == pytest.approx(2 / 24**2, abs=4 * math.sqrt(2 / 24**2 / 49_999))


def test_a_drawn_p_value_is_never_0():
    order = np.arange(12.0)
    found = ranks.permutation_p_values(
        _one_block(order, order), shuffles=99, rng=np.random.default_rng(0)
    )
    assert found.rho == 1 / 100


def test_runs_without_a_statistic_leave_no_p_value():
    found = ranks.permutation_p_values(
        _one_block(np.ones(4), np.arange(4.0)), shuffles=99, rng=np.random.default_rng(0)
    )
    assert (found.rho, found.tau, found.partial) == (None, None, None)


def test_a_mean_over_drawn_runs_leaves_out_the_runs_that_have_none():
    means = ranks.weighted_mean(
        np.array([1.0, np.nan, 3.0]), np.array([[1.0, 5, 1], [3, 0, 1], [0, 2, 0]])
    )
    assert means[:2].tolist() == [2.0, 1.5]
    assert math.isnan(means[2])
