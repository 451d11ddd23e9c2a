"""What the filters of a layer say together, against a plain loop and hand-worked layers."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planescope.hyperplanes import chance, geometry
from planescope.hyperplanes.statistics import Statistics, summarise
from planescope.measurement.assemble import filters_on_host

NAN = math.nan
FLOATS = [
    field.name
    for field in dataclasses.fields(Statistics)
    if field.name not in ("filters", "degenerate", "non_finite", "sideless")
]


def filters_of(rows, *, bias=None, gamma=None, beta=None):
    """Filters with these weights, behind a norm where gamma and beta are given."""
    as_array = [None if x is None else np.array(x, dtype=np.float64) for x in (bias, gamma, beta)]
    centre = None if gamma is None else geometry.centre(*as_array[1:])
    with np.errstate(all="ignore"):
        planes = geometry.arrangement(np.array(rows, dtype=np.float64), as_array[0])
        return filters_on_host(planes, centre)


def by_a_loop(rows):
    """The same statistics, one filter after the other."""
    usable = [row for row in rows if any(row) and all(map(math.isfinite, row))]
    d = len(rows[0])
    projections = [math.fsum(row) for row in usable]
    cosines = [math.fsum(row) / (math.hypot(*row) * math.sqrt(d)) for row in usable]
    n, negative = len(usable), sum(p <= 0 for p in projections)
    q25, q50, q75 = statistics.quantiles(cosines, n=4, method="inclusive") if n > 1 else cosines * 3
    return {
        "negative_mass": negative / n,
        "mean_cosine": statistics.fmean(cosines),
        "std_cosine": statistics.pstdev(cosines),
        "min_cosine": min(cosines),
        "q25_cosine": q25,
        "median_cosine": q50,
        "q75_cosine": q75,
        "max_cosine": max(cosines),
        "mean_projection": statistics.fmean(projections),
        "agreement": abs(2 * negative / n - 1),
        "z": statistics.fmean(cosines) * math.sqrt(d * n),
        "p_mass": chance.mass_p_value(negative, n),
    }


def test_a_layer_worked_by_hand():
    #        projection  3, -1, -7, 0;  norm 3, 5, 5, √2;  d = 2
    found = summarise(filters_of([[3, 0], [3, -4], [-3, -4], [1, -1]]), 2)
    root = math.sqrt(2)
    cosines = [3 / (3 * root), -1 / (5 * root), -7 / (5 * root), 0.0]  # 0.71, -0.14, -0.99, 0
    assert (found.filters, found.degenerate, found.non_finite) == (4, 0, 0)
    assert found.sideless == 1  # a projection of 0 faces neither way
    assert found.negative_mass == 2 / 3
    assert found.agreement == 1 / 3
    assert found.mean_projection == -1.25
    assert found.mean_cosine == pytest.approx(sum(cosines) / 4)
    assert found.std_cosine == pytest.approx(statistics.pstdev(cosines))
    assert (found.min_cosine, found.max_cosine) == pytest.approx((cosines[2], cosines[0]))
    assert found.q25_cosine == pytest.approx(0.25 * cosines[2] + 0.75 * cosines[1])
    assert found.median_cosine == pytest.approx(0.5 * cosines[1])
    assert found.q75_cosine == pytest.approx(0.25 * cosines[0])
    assert found.z == pytest.approx(sum(cosines) / 4 * math.sqrt(8))
    assert found.p_mass == 1.0  # two of three signs: 2 (1 + 3) / 8
    # On the circle the angle is uniform: asin(c)/π + 1/2 = 0.75, 0.455, 0.045, 0.5.
    uniforms = [0.5 + math.asin(c) / math.pi for c in cosines]
    assert found.p_cosine == pytest.approx(chance.kolmogorov_smirnov(uniforms))
    assert found.negative_centre is found.mean_centre is found.p_centre is None


WEIGHTS = st.floats(-100, 100, allow_subnormal=False).map(lambda w: round(w, 3))


@given(
    rows=st.integers(1, 6).flatmap(
        lambda d: st.lists(st.lists(WEIGHTS, min_size=d, max_size=d), min_size=1, max_size=12)
    )
)
def test_any_layer_is_as_by_a_loop(rows):
    found = summarise(filters_of(rows), len(rows[0]))
    assert found.degenerate == sum(not any(row) for row in rows)
    if found.degenerate < len(rows):
        for name, wanted in by_a_loop(rows).items():
            assert getattr(found, name) == pytest.approx(wanted, rel=1e-12, abs=1e-12), name


@given(seed=st.integers(0, 999), zeros=st.integers(1, 5), broken=st.integers(0, 3))
def test_filters_that_are_left_out_change_nothing_but_their_counts(seed, zeros, broken):
    rng = np.random.default_rng(seed)
    rows, more = rng.standard_normal((6, 4)), np.zeros((zeros + broken, 4))
    more[zeros:, 0] = rng.choice([np.nan, np.inf, -np.inf], broken)
    gamma, beta = rng.standard_normal(6), rng.standard_normal(6)
    rest = np.ones(zeros + broken)
    plain = summarise(filters_of(rows, gamma=gamma, beta=beta), 4)
    mixed = summarise(
        filters_of(
            np.concatenate([more, rows]),
            gamma=np.concatenate([rest, gamma]),
            beta=np.concatenate([-rest, beta]),
        ),
        4,
    )
    left_out = {"filters": 6 + zeros + broken, "degenerate": zeros, "non_finite": broken}
    assert mixed == dataclasses.replace(plain, **left_out)


@given(seed=st.integers(0, 999))
def test_turning_all_filters_round_mirrors_the_layer(seed):
    rows = np.random.default_rng(seed).standard_normal((7, 5))
    plain, turned = summarise(filters_of(rows), 5), summarise(filters_of(-rows), 5)
    assert turned.negative_mass == pytest.approx(1 - plain.negative_mass)
    for name, mirror in (("min", "max"), ("q25", "q75"), ("median", "median"), ("mean", "mean")):
        found = getattr(turned, f"{name}_cosine")
        assert found == pytest.approx(-getattr(plain, f"{mirror}_cosine"), abs=1e-15)
    assert turned.z == pytest.approx(-plain.z)
    for name in ("agreement", "std_cosine", "p_mass", "p_cosine"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name), abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        pytest.param(np.zeros((0, 4)), (0, 0, 0), id="no-filters"),
        pytest.param(np.zeros((3, 4)), (3, 3, 0), id="all-degenerate"),
        pytest.param(np.full((3, 4), NAN), (3, 0, 3), id="all-nan"),
        pytest.param([[math.inf, 1.0], [0.0, 0.0]], (2, 1, 1), id="one-of-each"),
    ],
)
def test_without_usable_filters_there_are_no_statistics(rows, counts):
    found = summarise(filters_of(rows, gamma=[1] * len(rows), beta=[1] * len(rows)), 4)
    assert (found.filters, found.degenerate, found.non_finite) == counts
    assert [getattr(found, name) for name in FLOATS] == [None] * len(FLOATS)


def bank(rng, filters, dtype):
    """Filters of a fixed, zero-mean bank, in which rounding alone leaves a sum."""
    rows = rng.standard_normal((filters, 25))
    return (rows - rows.mean(axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_filters_whose_sum_is_rounding_have_no_side(dtype):
    """METHOD, section 2: |π| <= 4 eps Σ|w| is counted apart, and the cosine stays."""
    rng = np.random.default_rng(0)
    centred, others = bank(rng, 40, dtype), np.ones((3, 25), dtype)
    others[0] *= -1
    planes = geometry.arrangement(np.concatenate([centred, others]))
    found = summarise(filters_on_host(planes, None), 25)
    assert (found.sideless, found.degenerate) == (40, 0)
    assert (found.negative_mass, found.agreement) == (1 / 3, 1 / 3)
    assert found.p_mass == 1.0
    assert found.mean_cosine == pytest.approx(1 / 43, abs=1e-3)


def test_a_bank_of_filters_alone_tells_no_side():
    found = summarise(
        filters_on_host(geometry.arrangement(bank(np.random.default_rng(1), 9, "float32")), None),
        25,
    )
    assert (found.sideless, found.negative_mass, found.agreement, found.p_mass) == (9, *[None] * 3)
    assert found.mean_cosine == pytest.approx(0.0, abs=1e-6)
    assert found.p_cosine < 0.05  # they lie nearer to 0 than chance puts them


@given(seed=st.integers(0, 999), share=st.floats(0.0, 8.0))
def test_four_roundings_of_the_magnitudes_are_the_bound(seed, share):
    rng = np.random.default_rng(seed)
    row = np.abs(rng.standard_normal(8))
    row[4:] = -row[:4]
    eps = 2.0**-23
    row[0] += share * eps * np.abs(row).sum()
    lost = geometry.arrangement(row[None], eps=eps).sideless
    total, magnitude = math.fsum(row), math.fsum(abs(row))
    assert bool(lost[0]) == (abs(total) <= 4 * eps * magnitude)


def test_the_stored_type_tells_what_rounding_is():
    """bfloat16 is widened to float32 as it is read; its own rounding counts."""
    rows = bank(np.random.default_rng(2), 20, "float32")
    coarse = rows.view(np.uint32) & 0xFFFF0000
    coarse = coarse.view(np.float32)
    assert not geometry.arrangement(coarse).sideless.all()
    assert geometry.arrangement(coarse, eps=2.0**-7).sideless.all()


def test_a_broken_bias_leaves_a_filter_out():
    found = summarise(filters_of([[1, 1], [1, 2], [1, 3]], bias=[0, NAN, math.inf]), 2)
    assert (found.non_finite, found.mean_projection) == (2, 2.0)


def test_one_filter_has_no_spread():
    found = summarise(filters_of([[1, 1]]), 2)
    assert (found.negative_mass, found.std_cosine, found.p_mass) == (0.0, 0.0, 1.0)
    quantiles = {getattr(found, f"{q}_cosine") for q in ("min", "q25", "median", "q75", "max")}
    assert quantiles == {found.mean_cosine}


def test_a_fan_in_of_one_has_a_mass_but_no_law_of_the_cosine():
    found = summarise(filters_of([[2], [-1], [-3], [0]]), 1)
    assert (found.negative_mass, found.p_mass, found.degenerate) == (2 / 3, 1.0, 1)
    assert (found.min_cosine, found.max_cosine, found.p_cosine) == (-1.0, 1.0, None)


@pytest.mark.parametrize("size", [0.1, 1e-5, 1e-300])
def test_the_mean_of_one_projection_is_that_projection_to_the_bit(size):
    assert summarise(filters_of([[size]]), 1).mean_projection == size


@pytest.mark.parametrize("size", [1e308, 1e-300, 5e-324])
def test_means_of_extreme_weights_are_finite(size):
    found = summarise(filters_of([[size], [size], [-size]], gamma=[1] * 3, beta=[size] * 3), 1)
    assert found.mean_centre == pytest.approx(size, rel=1e-9, abs=1e-323)
    assert found.mean_projection == pytest.approx(size / 3, rel=1e-9, abs=1e-323)
    assert found.negative_mass == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("gamma", "beta", "negative", "mean", "p"),
    [
        # κ = -1/2, -3, 2: mean -0.5; two of three signs: 2 (1 + 3)/8
        pytest.param([2, -1, 0.5], [-1, -3, 1], 2 / 3, -0.5, 1.0, id="by-hand"),
        pytest.param([1, 1, 1], [-1, -2, -3], 1.0, -2.0, 0.25, id="all-negative"),
        pytest.param([1, 0, 1], [-1, -2, 0], 1.0, -1.0, 1.0, id="gamma-or-beta-of-0-tells-nothing"),
        pytest.param([1, 1, 1], [0, 0, 0], None, None, None, id="at-initialisation"),
        pytest.param([1, NAN, 1], [-1, 1, NAN], 1.0, -1.0, 1.0, id="non-finite"),
    ],
)
def test_centres(gamma, beta, negative, mean, p):
    found = summarise(filters_of([[1, 2], [1, 3], [1, 4]], gamma=gamma, beta=beta), 2)
    assert (found.negative_centre, found.p_centre) == (negative, p)
    assert found.mean_centre == (mean if mean is None else pytest.approx(mean))


def test_a_centre_on_the_hyperplane_or_near_it_is_not_negative():
    filters = dataclasses.replace(filters_of(np.ones((4, 2))), centre=np.array([0.0, 0.5, -0.5, 2]))
    found = summarise(filters, 2)
    assert (found.negative_centre, found.mean_centre, found.p_centre) == (0.25, 0.5, 0.625)


def test_a_pool_puts_every_cosine_through_its_own_law():
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal((8, d)) for d in (2, 9, 144)]
    parts = [filters_of(rows) for rows in layers]
    fan_in = np.repeat([2, 9, 144], 8)
    pooled = dataclasses.replace(
        parts[0],
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("projection", "norm", "cosine", "bias", "crossing", "offset", "sideless")
        },
    )
    found = summarise(pooled, fan_in)
    uniforms = [
        u
        for part, d in zip(parts, (2, 9, 144), strict=True)
        for u in chance.cosine_cdf(part.cosine, d)
    ]
    assert found.p_cosine == pytest.approx(chance.kolmogorov_smirnov(uniforms))
    assert found.z == pytest.approx(
        sum(part.cosine.sum() * math.sqrt(d) for part, d in zip(parts, (2, 9, 144), strict=True))
        / math.sqrt(24)
    )


def test_a_pool_leaves_fan_ins_of_one_out_of_the_law_of_the_cosine():
    pooled = filters_of([[1, 1], [1, -2], [3, 0], [-2, 1]])
    fan_in = np.array([2, 2, 1, 1])
    uniforms = chance.cosine_cdf(pooled.cosine[:2], 2)
    assert summarise(pooled, fan_in).p_cosine == chance.kolmogorov_smirnov(uniforms)
