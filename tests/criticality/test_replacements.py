"""What stands in for a weight is METHOD's, section 7, to the letter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from planescope.criticality.replacements import (
    NOISE_DRAWS,
    Way,
    noisy,
    of_bits,
    of_rank,
    pruned,
    read_ways,
    replaced,
    weakest_filters,
    without_filters,
)
from planescope.files.errors import UsageError

WEIGHTS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5),
    elements=st.floats(-8, 8, width=32),
)  # fmt: skip
SHARES = st.integers(1, 100).map(lambda percent: percent / 100)


@pytest.mark.parametrize(
    ("share", "left"),
    [
        pytest.param(0.5, [[3, 0], [0, 4]], id="half-of-4"),
        pytest.param(0.25, [[3, -2], [0, 4]], id="a-quarter-of-4"),
        pytest.param(0.625, [[3, 0], [0, 4]], id="2.5-rounds-to-even"),  # round(2.5) = 2
        pytest.param(1, [[0, 0], [0, 0]], id="all"),
    ],
)
def test_the_least_weights_are_pruned(share, left):
    assert pruned(np.array([[3.0, -2.0], [1.0, 4.0]]), share).tolist() == left


def test_of_equal_weights_the_first_is_pruned():
    assert pruned(np.array([[1.0, -1.0, 1.0]]), "0.67").tolist() == [[0, 0, 1]]  # round(2.01)


def test_the_weakest_filters_and_what_belongs_to_them_become_zero():
    weight = np.array([[3.0, 4.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 9.0]])  # norms 5, √2, √2, 9
    assert weakest_filters(weight, 0.25).tolist() == [1]  # ties: lowest index
    which = weakest_filters(weight, 0.5)
    assert without_filters(weight, which).tolist() == [[3, 4], [0, 0], [0, 0], [0, 9]]
    assert without_filters(np.array([1.0, 2, 3, 4]), which).tolist() == [1, 0, 0, 4]


def test_rank_is_cut_to_the_floor_and_to_1_at_least():
    weight = np.diag([3.0, 2.0, 1.0])
    assert np.allclose(of_rank(weight, 0.67), np.diag([3, 2, 0]))  # floor(2.01) = 2
    assert np.allclose(of_rank(weight, 0.1), np.diag([3, 0, 0]))
    assert np.array_equal(of_rank(weight, 1), weight)
    assert (
        np.linalg.matrix_rank(of_rank(np.random.default_rng(0).normal(size=(100, 200)), 0.29)) == 29
    )


def test_bits_round_to_even_by_filter():
    # 3 bits: step = max / 3. The second filter is 3, 1.5, -0.5: 1.5 and 0.5 steps, to even.
    weight = np.array([[0.0, 0.0, 0.0], [3.0, 1.5, -0.5], [-0.6, 0.25, 0.1]], dtype=np.float32)
    found = of_bits(weight, 3)
    assert found[:2].tolist() == [[0, 0, 0], [3, 2, 0]]
    assert found[2] == pytest.approx([-0.6, 0.2, 0.0])  # 0.25 / 0.2 = 1.25; 0.5 steps to 0
    assert of_bits(np.array([[1.0, 0.5, -0.51]]), 2).tolist() == [[1, 0, -1]]


def test_noise_has_exactly_the_norm_that_was_asked_for():
    weight = np.random.default_rng(1).normal(size=(4, 3, 3, 3))
    draws = noisy(weight, 0.5)
    assert len(draws) == NOISE_DRAWS
    for draw in draws:
        assert np.linalg.norm(draw - weight) == pytest.approx(0.5 * np.linalg.norm(weight))
    assert not np.array_equal(draws[0], draws[1])
    assert np.array_equal(noisy(weight, 0.5)[0], draws[0])


@given(WEIGHTS, SHARES)
def test_counts_are_exact_and_nothing_else_changes(weight, share):
    before = weight.copy()
    result = pruned(weight, share)
    went = round(share * weight.size)
    order = sorted(range(weight.size), key=lambda i: (abs(weight.flat[i]), i))
    assert all(result.flat[i] == 0 for i in order[:went])
    assert all(result.flat[i] == weight.flat[i] for i in order[went:])
    assert len(weakest_filters(weight, share)) == round(share * len(weight))
    assert np.array_equal(weight, before)


@given(WEIGHTS, st.integers(2, 8))
def test_few_bits_are_multiples_of_the_step_next_to_the_weight(weight, bits):
    found = of_bits(weight, bits).astype(np.float64).reshape(len(weight), -1)
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    step = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(found - rows) <= step * (0.5 + 1e-5) + 1e-30).all()
    assert (np.abs(found) <= np.abs(rows).max(axis=1, keepdims=True) * (1 + 1e-6)).all()


@given(WEIGHTS, st.sampled_from(["prune:0.3", "filters:0.5", "rank:0.5", "bits:3", "noise:0.5"]))
def test_shape_and_type_stay(weight, key):
    for one in replaced(Way.parse(key), weight):
        assert (one.shape, one.dtype) == (weight.shape, weight.dtype)


def test_keys_are_as_typed_and_callables_have_names():
    assert [way.key for way in read_ways("prune:0.90, bits:3")] == ["prune:0.90", "bits:3"]
    ways = read_ways({"halved": lambda weight: weight / 2, "few": "bits:2"})
    assert [way.key for way in ways] == ["halved", "few"]
    assert replaced(ways[0], np.array([[2.0, 4.0]]))[0].tolist() == [[1, 2]]
    assert len(read_ways(None)) == 12


@pytest.mark.parametrize(
    ("ways", "sentence"),
    [
        ("prune", "way 'prune' is not understood; prune:S sets a share"),
        ("prune:1.5", "'prune:1.5' is not understood"),
        ("prune:nan", "'prune:nan' is not understood"),
        ("bits:2.5", "B a whole number from 2"),
        ("bits:1", "B a whole number from 2"),
        ("prunes:0.5", "way 'prunes:0.5' is not known; .*prune"),
        ("prune:0.5,prune:0.5", "given twice"),
        ([], "ways is empty"),
        ([len], "give a callable a name"),
        ({"mine": 3}, "give a callable on a weight"),
    ],
)
def test_a_way_that_is_not_understood_is_said(ways, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_ways(ways)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (lambda weight: weight[:1], "gives shape"),
        (lambda weight: weight * np.nan, "not finite"),
        (lambda weight: weight.nothing, "fails: AttributeError"),
    ],
)
def test_an_own_way_that_gives_no_weight_is_said(own, sentence):
    with pytest.raises(UsageError, match=sentence):
        replaced(read_ways({"mine": own})[0], np.ones((2, 2)))
