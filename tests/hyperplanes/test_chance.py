"""The laws of chance against exact fractions and SciPy, and the false-alarm rates they promise."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from planescope.hyperplanes import chance, geometry, kolmogorov
from planescope.hyperplanes.layer import Kind, Layer, Tensor
from planescope.hyperplanes.statistics import summarise
from planescope.measurement.assemble import filters_on_host, measure_layers
from planescope.measurement.record import Source

# --- the negative mass


def exact_mass(negative, filters):
    """Two-sided binomial test as a fraction: the probability of all that is as far from N/2."""
    far = abs(2 * negative - filters)
    ways = sum(math.comb(filters, k) for k in range(filters + 1) if abs(2 * k - filters) >= far)
    return Fraction(ways, 2**filters)


@pytest.mark.parametrize(
    ("negative", "filters", "p"),
    [
        pytest.param(0, 1, 1.0, id="one-filter-tells-nothing"),
        pytest.param(0, 2, 0.5, id="2/4"),
        pytest.param(1, 2, 1.0, id="even"),
        pytest.param(0, 6, 0.03125, id="2/64"),
        pytest.param(5, 6, 0.21875, id="2-(1+6)/64"),
        pytest.param(0, 2000, 0.0, id="below-the-smallest-float"),
    ],
)
def test_p_value_of_a_negative_mass(negative, filters, p):
    assert chance.mass_p_value(negative, filters) == p


def test_p_values_of_all_small_masses_are_exact():
    for filters in range(1, 41):
        for negative in range(filters + 1):
            wanted = float(exact_mass(negative, filters))
            assert chance.mass_p_value(negative, filters) == pytest.approx(wanted, rel=1e-15)


def test_masses_next_to_one_half_have_a_p_value_of_at_most_1():
    # Of an odd number of filters the sum is 1 but for rounding, which goes both ways.
    nearest = [chance.mass_p_value(filters // 2, filters) for filters in range(1, 999, 2)]
    assert max(nearest) == 1.0
    assert min(nearest) > 1.0 - 1e-13


@pytest.mark.parametrize("filters", [999, 1200, 5504, 20_000])
def test_p_values_of_large_layers_are_exact_to_1e_12(filters):
    # P(X <= k), term by term in integers.
    term, ways, checked = 1, 0, 0
    for k in range((filters + 1) // 2):
        ways += term
        bits = ways.bit_length() - filters
        if bits > -1000 and k % 50 == 0:
            wanted = float(Fraction(2 * ways, 2**filters))
            assert chance.mass_p_value(k, filters) == pytest.approx(wanted, rel=1e-12)
            assert chance.mass_p_value(filters - k, filters) == pytest.approx(wanted, rel=1e-12)
            checked += 1
        term = term * (filters - k) // (k + 1)
    assert checked > 5


@pytest.mark.parametrize("filters", [20_000, 20_001])
def test_p_values_next_to_the_middle_of_a_huge_layer_are_exact(filters):
    # 1 - P(nearer to N/2), whose terms go down from the middle one.
    middle = filters // 2
    term = math.comb(filters, middle)
    nearer = term if filters % 2 == 0 else 2 * term
    for negative in range(middle - 1, middle - 301, -1):
        term = term * (negative + 1) // (filters - negative)
        if negative % 50 == 0 or middle - negative < 3:
            wanted = float(Fraction(2**filters - nearer, 2**filters))
            assert chance.mass_p_value(negative, filters) == pytest.approx(wanted, rel=1e-13)
        nearer += 2 * term


@pytest.mark.parametrize(("negative", "filters"), [(50_000, 101_000), (499_000, 10**6)])
def test_p_values_of_huge_layers_agree_with_scipy(negative, filters):
    wanted = scipy.stats.binomtest(negative, filters).pvalue
    assert chance.mass_p_value(negative, filters) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("negative", "filters"), [(-1, 4), (5, 4), (0, 0)])
def test_what_is_no_count_is_refused(negative, filters):
    with pytest.raises(ValueError, match=f"{negative} of {filters} filters is no count"):
        chance.mass_p_value(negative, filters)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_the_band_is_the_smallest_symmetric_one(level):
    for filters in range(1, 60):
        ways = [math.comb(filters, k) for k in range(filters + 1)]
        narrowest = max(
            k
            for k in range(filters // 2 + 1)
            if Fraction(sum(ways[k : filters - k + 1]), 2**filters) >= Fraction(level)
        )
        low, high = chance.mass_band(filters, level=level)
        assert (low, high) == (narrowest / filters, (filters - narrowest) / filters)


def test_a_band_without_filters_is_refused():
    with pytest.raises(ValueError, match="not 0"):
        chance.mass_band(0)


# --- the cosine


@pytest.mark.parametrize("fan_in", [2, 3, 4, 5, 9, 27, 60, 61, 62, 576, 4608, 10**5, 10**6])
def test_cosine_cdf_is_the_beta_law(fan_in):
    tail = min(1.0, 12 / math.sqrt(fan_in))
    cosines = np.concatenate([np.linspace(-1, 1, 501), np.linspace(-tail, tail, 501)])
    half = (fan_in - 1) / 2
    wanted = scipy.special.betainc(half, half, (cosines + 1) / 2)
    # Before 1.16 or so SciPy's own values are off by up to 1e-11 for large parameters.
    atol = 1e-13 if scipy_version() >= (1, 16) else 1e-11
    np.testing.assert_allclose(chance.cosine_cdf(cosines, fan_in), wanted, rtol=0, atol=atol)


def scipy_version() -> tuple[int, int]:
    major, minor, *_ = scipy.__version__.split(".")
    return int(major), int(minor)


@pytest.mark.parametrize(
    ("cosine", "fan_in", "below"),
    [
        pytest.param(0.0, 7, 0.5, id="symmetric"),
        pytest.param(0.5, 2, 2 / 3, id="plane: 1/2 + asin(c)/π"),
        pytest.param(0.5, 3, 0.75, id="sphere: uniform (Archimedes)"),
        # 1/2 + (c √(1 - c²) + asin c)/π = 1/2 + √3/4π + 1/6
        pytest.param(0.5, 4, 2 / 3 + 3**0.5 / (4 * math.pi), id="in four dimensions"),
        pytest.param(-1.0, 9, 0.0, id="least"),
        pytest.param(1.0, 9, 1.0, id="largest"),
        pytest.param(1.0 + 1e-15, 9, 1.0, id="beyond-by-rounding"),
    ],
)
def test_cosine_cdf_by_hand(cosine, fan_in, below):
    assert chance.cosine_cdf(cosine, fan_in) == pytest.approx(below, abs=1e-15)


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_cosine_cdf_broadcasts_and_blocks_make_no_difference(monkeypatch, block):
    cosines, fan_ins = np.linspace(-0.9, 0.9, 5)[:, None], np.array([2, 9, 576])
    one_by_one = [[float(chance.cosine_cdf(c, d)) for d in fan_ins] for c in cosines[:, 0]]
    monkeypatch.setattr(chance, "_BLOCK", block)
    np.testing.assert_allclose(chance.cosine_cdf(cosines, fan_ins), one_by_one, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_laws_of_narrow_cosines_are_taken_in_float64(dtype):
    cosines = np.array([-1, -0.3, 0, 0.1, 1]).astype(dtype)
    wide = cosines.astype(np.float64)
    for law in (chance.cosine_cdf, chance.cosine_density):
        assert law(cosines, 9).tolist() == law(wide, 9).tolist()
    uniforms = np.abs(cosines)
    assert chance.kolmogorov_smirnov(uniforms) == chance.kolmogorov_smirnov(np.abs(wide))


def test_cosine_cdf_of_nothing_is_empty():
    assert chance.cosine_cdf([], 9).shape == (0,)


def test_a_fan_in_of_one_has_no_continuous_law():
    with pytest.raises(ValueError, match="fan-in below 2"):
        chance.cosine_cdf([0.0, 1.0], [9, 1])


@pytest.mark.parametrize("fan_in", [2, 3, 4, 9, 61, 4608, 10**5])
def test_cosine_density_is_that_of_the_beta_law(fan_in):
    cosines = np.linspace(-1, 1, 401)[1:-1] * min(1.0, 12 / math.sqrt(fan_in))
    half = (fan_in - 1) / 2
    wanted = scipy.stats.beta.pdf((cosines + 1) / 2, half, half) / 2
    np.testing.assert_allclose(chance.cosine_density(cosines, fan_in), wanted, rtol=1e-11)
    np.testing.assert_array_equal(chance.cosine_density([-1.5, -1.0, 1.0], fan_in), 0.0)


# --- Kolmogorov-Smirnov


def noe(distance, n):
    """P(D_n < distance) as a fraction, by counting where the order statistics may lie.

    Steck's determinant in the recursive form of M. Noé (1972): between the sorted bounds of all
    order statistics, polynomials in the number of values that have come so far.
    """
    lower = [max(Fraction(0), Fraction(i, n) - distance) for i in range(1, n + 1)]
    upper = [min(Fraction(1), Fraction(i - 1, n) + distance) for i in range(1, n + 1)]
    cuts = sorted({Fraction(0), Fraction(1), *lower, *upper})
    # ways[k]: probability that the first k values lie below the cut, over k!.
    ways = {0: Fraction(1)}
    for left, right in itertools.pairwise(cuts):
        at_least = sum(bound <= right for bound in upper)
        at_most = sum(bound < right for bound in lower)
        ways = {
            k: sum(
                ways.get(j, 0) * (right - left) ** (k - j) / math.factorial(k - j)
                for j in range(k + 1)
            )
            for k in range(at_least, at_most + 1)
        }
        ways = {k: way for k, way in ways.items() if way}
    return ways.get(n, 0) * math.factorial(n)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 9, 14])
def test_kolmogorov_is_exact_for_few_values(n):
    for distance in (Fraction(k, 29) for k in range(1, 29)):
        wanted = float(1 - noe(distance, n))
        assert chance.kolmogorov_p_value(float(distance), n) == pytest.approx(
            wanted, rel=1e-12, abs=1e-15
        )


@pytest.mark.parametrize(
    ("distance", "n", "p"),
    [
        pytest.param(1.0, 3, 0.0, id="nothing-is-as-far"),
        pytest.param(0.125, 4, 1.0, id="no-value-can-be-nearer"),
        pytest.param(0.75, 1, 0.5, id="2-(1 - D)"),
        # D_2 >= 1/2 unless one value lies in each half: 1 - 2/4
        pytest.param(0.5, 2, 0.5, id="one-in-each-half"),
        pytest.param(0.9, 2, 0.02, id="2-(1 - D)²"),
    ],
)
def test_kolmogorov_by_hand(distance, n, p):
    assert chance.kolmogorov_p_value(distance, n) == pytest.approx(p, rel=1e-14)


@pytest.mark.parametrize("n", [5, 20, 50, 100, 140])
def test_kolmogorov_is_as_scipy_has_it_where_scipy_is_exact(n):
    distances = np.linspace(0.5 / n, 1, 150)[1:-1]
    found = [chance.kolmogorov_p_value(d, n) for d in distances]
    np.testing.assert_allclose(found, scipy.stats.kstwo.sf(distances, n), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [200, 5504, 10**5])
@pytest.mark.parametrize("reach", [12, 100, 700])
def test_the_far_tail_of_kolmogorov_is_twice_the_one_sided_one(n, reach):
    distance = math.sqrt(reach / (2 * n))
    wanted = 2 * scipy.stats.ksone.sf(distance, n)
    assert chance.kolmogorov_p_value(distance, n) == pytest.approx(wanted, rel=1e-9, abs=1e-320)


@pytest.mark.parametrize("n", [10, 137, 2000, 30_000])
def test_kolmogorov_falls_all_the_way(n):
    reach = np.sqrt(np.linspace(0.04, 12, 30) / n)
    found = [chance.kolmogorov_p_value(min(d, 1.0), n) for d in reach]
    assert np.all(np.diff(found) <= 1e-13)


@pytest.mark.parametrize("n", [7, 600, 3000])
def test_kolmogorov_has_no_step_where_the_tail_begins(n):
    edge = min(0.5, math.sqrt(kolmogorov._ONE_SIDED / n))
    below, above = (chance.kolmogorov_p_value(edge * (1 + step), n) for step in (-1e-13, 1e-13))
    assert below == pytest.approx(above, abs=1e-13)


@pytest.mark.parametrize("reach", [0.2, 0.5, 1.0, 2.0])
def test_kolmogorov_has_no_step_where_the_exact_law_ends(monkeypatch, reach):
    n = 2000
    distance = math.sqrt(reach / n)
    exact = chance.kolmogorov_p_value(distance, n)
    monkeypatch.setattr(kolmogorov, "_EXACT_LIMIT", n - 1)
    # The expansion is off by terms of 1/n^2: 2e-8 here, 1e-9 from 10,000 on.
    assert chance.kolmogorov_p_value(distance, n) == pytest.approx(exact, abs=3e-8)


@pytest.mark.parametrize("n", [10_001, 10**5, 10**6])
@pytest.mark.parametrize("reach", [0.01, 0.05, 0.2, 0.5, 1.0, 3.0, 4.99])
def test_kolmogorov_of_many_values_is_scipys(n, reach):
    distance = math.sqrt(reach / n)
    wanted = scipy.stats.kstwo.sf(distance, n)
    # SciPy takes twice the one-sided probability from reach 2.2 on, which is 1e-10 too much.
    found = chance.kolmogorov_p_value(distance, n)
    assert found == pytest.approx(wanted, rel=3e-9, abs=2e-10)


@given(uniforms=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_kolmogorov_smirnov_is_scipys_exact_test(uniforms):
    wanted = scipy.stats.ks_1samp(uniforms, scipy.stats.uniform.cdf, method="exact").pvalue
    assert chance.kolmogorov_smirnov(uniforms) == pytest.approx(wanted, rel=1e-10, abs=1e-13)


# --- Benjamini-Hochberg

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([0.03], [0.03], id="one-test"),
        pytest.param([0.01, 0.04], [0.02, 0.04], id="0.01-2/1, 0.04-2/2"),
        pytest.param([0.04, 0.03], [0.04, 0.04], id="never-above-a-larger-one"),
        pytest.param([0.9, 0.8], [0.9, 0.9], id="at-most-one"),
        pytest.param([None, 0.01, None, 0.04], [None, 0.02, None, 0.04], id="none-is-no-test"),
    ],
)
def test_benjamini_hochberg_by_hand(p_values, corrected):
    assert chance.benjamini_hochberg(p_values) == corrected


@given(p_values=PROBABILITIES)
def test_benjamini_hochberg_is_scipys(p_values):
    wanted = scipy.stats.false_discovery_control(p_values)
    np.testing.assert_allclose(chance.benjamini_hochberg(p_values), wanted, rtol=1e-12)


@given(p_values=PROBABILITIES)
def test_corrected_values_keep_the_order_and_are_no_smaller(p_values):
    corrected = chance.benjamini_hochberg(p_values)
    assert all(q >= p for p, q in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


# --- what is promised at initialisation: each false-alarm rate is stated; no seed is chosen

# Of what is tested here on 2,000 random layers, one time in 10,000 chance alone would fail it.
FALSE_ALARM = 1e-4
LAYERS = 2_000


def gaussian(rng, shape):
    return rng.standard_normal(shape)


def kaiming_uniform(rng, shape):
    return rng.uniform(-1, 1, shape) / math.sqrt(shape[1])


@functools.cache
def at_initialisation(draw, filters, fan_in):
    """Statistics of random layers, one a seed, as `measure` has them."""

    def statistics(seed):
        rows = draw(np.random.default_rng(seed), (filters, fan_in)).astype(np.float32)
        return summarise(filters_on_host(geometry.arrangement(rows), None), fan_in)

    return [statistics(seed) for seed in range(LAYERS)]


@pytest.mark.parametrize(("filters", "fan_in"), [(1, 9), (6, 2), (16, 27), (64, 9)])
def test_p_cosine_is_uniform_at_gaussian_initialisation(filters, fan_in):
    p_values = [layer.p_cosine for layer in at_initialisation(gaussian, filters, fan_in)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("draw", "filters", "fan_in"),
    [(gaussian, 6, 2), (gaussian, 16, 1), (gaussian, 64, 9), (kaiming_uniform, 16, 27)],
)
def test_p_mass_follows_its_discrete_law_at_initialisation(draw, filters, fan_in):
    """P(p <= x) = x at each value that p can take, hence below x between them."""
    found = np.array([layer.p_mass for layer in at_initialisation(draw, filters, fan_in)])
    possible = {chance.mass_p_value(k, filters) for k in range(filters // 2 + 1)}
    assert set(found) <= possible
    for p in possible:
        below = int(np.count_nonzero(found <= p))
        assert scipy.stats.binomtest(below, LAYERS, p).pvalue > FALSE_ALARM / len(possible)


@pytest.mark.parametrize(("filters", "fan_in"), [(16, 27), (64, 144)])
def test_p_cosine_is_nearly_uniform_at_kaiming_uniform_initialisation(filters, fan_in):
    """Not exactly: the law is that of isotropic weights, which uniform ones approach as d grows.

    From d = 27 (a first 3x3 convolution) on, the rate of p <= 0.05 lies within five standard
    deviations of 2,000 draws, 0.024, of what it should be.
    """
    p_values = [layer.p_cosine for layer in at_initialisation(kaiming_uniform, filters, fan_in)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.024)


def test_at_most_one_network_in_twenty_has_a_layer_called_biased_at_initialisation():
    """The family-wise rate: where all layers are random, Benjamini-Hochberg errs in 5 %."""
    sizes = [(16, 1, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (40, 1, 5, 5)]
    networks, alarms = 400, 0
    for seed in range(networks):
        rng = np.random.default_rng(seed)
        weights = [rng.standard_normal(size, dtype=np.float32) for size in sizes]
        layers = [
            Layer(name=str(i), kind=Kind.CONV, weight=Tensor(w.shape, "float32", lambda w=w: w))
            for i, w in enumerate(weights)
        ]
        source = Source(path="random", format="arrays", bytes=None)
        alarms += measure_layers(layers, source=source).network.biased_layers > 0
    assert scipy.stats.binomtest(alarms, networks, 0.05, "greater").pvalue > FALSE_ALARM
