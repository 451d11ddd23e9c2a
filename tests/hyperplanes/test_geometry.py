"""Hyperplanes of a layer against hand-worked values, exact sums, and the laws they obey."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planescope.hyperplanes import geometry, sums
from planescope.hyperplanes.distances import distances, extent

NAN = math.nan
INF = math.inf
DTYPES = (np.float16, np.float32, np.float64)


def exactly(row):
    """Projection, norm and cosine of one filter, in rational and 60-digit decimal arithmetic."""
    weights = [Fraction(float(w)) for w in row]
    with decimal.localcontext(prec=60, Emin=-9999, Emax=9999):
        total, square = sum(weights), sum(w * w for w in weights)
        norm = (decimal.Decimal(square.numerator) / square.denominator).sqrt()
        projection = decimal.Decimal(total.numerator) / total.denominator
        cosine = projection / (norm * decimal.Decimal(len(weights)).sqrt()) if norm else NAN
        return float(projection), float(norm), float(cosine)


def layers(shape=None):
    """Small layers of float32 weights of either sign, zeros among them."""
    weights = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    shape = shape or hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    return hnp.arrays(np.float32, shape, elements=weights)


def values(xp, planes):
    return [xp.numpy(part) for part in (planes.projection, planes.norm, planes.cosine)]


def close(xp, found, wanted, *, scale=1.0, ulps=64):
    """Equal up to rounding: `ulps` units in the last place of `scale`."""
    bound = ulps * xp.eps * np.broadcast_to(scale, np.shape(wanted))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    assert np.all((np.abs(found - wanted) <= bound) | np.isnan(wanted) | (found == wanted))


# --- one filter, worked by hand


@pytest.mark.parametrize(
    ("normal", "projection", "norm", "cosine"),
    [
        pytest.param([3.0, 3.0], 6.0, 18**0.5, 1.0, id="along-ones"),
        pytest.param([-2.0, 0.0], -2.0, 2.0, -(0.5**0.5), id="one-negative-axis"),  # -2 / (2 √2)
        pytest.param([1.0, -1.0], 0.0, 2**0.5, 0.0, id="orthogonal"),
        pytest.param([3.0, 0.0, -4.0, 0.0], -1.0, 5.0, -0.1, id="3-4-5"),  # -1 / (5 · 2)
        pytest.param([-7.0], -7.0, 7.0, -1.0, id="one-weight"),
        pytest.param([0.0, 0.0], 0.0, 0.0, NAN, id="zero-filter-has-no-direction"),
        pytest.param([NAN, 1.0], NAN, NAN, NAN, id="nan"),
    ],
)
def test_one_filter(xp, normal, projection, norm, cosine):
    planes = geometry.arrangement(xp([normal]))
    for found, wanted in zip(values(xp, planes), (projection, norm, cosine), strict=True):
        close(xp, found, [wanted], scale=8)
    assert planes.bias is None


@pytest.mark.parametrize("normal", [[INF, 1.0], [-INF, 1.0], [INF, -INF], [INF, NAN]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_weight_leaves_no_finite_norm(xp, normal, dtype):
    with np.errstate(invalid="ignore"):
        planes = geometry.arrangement(xp([normal, [1.0, 1.0]], dtype))
    _, norm, cosine = values(xp, planes)
    assert not np.isfinite(norm[0])
    assert np.isnan(cosine[0])
    close(xp, cosine[1:], [1.0])


@pytest.mark.parametrize(
    ("projection", "bias", "crossing"),
    [
        pytest.param(2.0, 3.0, -1.5, id="-b/π"),
        pytest.param(-2.0, 3.0, 1.5, id="negative-projection"),
        pytest.param(2.0, 0.0, 0.0, id="through-the-origin"),
        pytest.param(0.0, 3.0, NAN, id="parallel-to-the-line"),
        pytest.param(0.0, 0.0, NAN, id="holds-the-line"),
    ],
)
def test_crossing(xp, projection, bias, crossing):
    found = xp.numpy(geometry.crossing(xp([projection]), xp([bias])))
    np.testing.assert_array_equal(found, [crossing])
    assert not np.signbit(found[0]) or crossing < 0  # no -0.0


def test_without_a_bias_every_hyperplane_crosses_at_the_origin(xp):
    found = xp.numpy(geometry.crossing(xp([2.0, -2.0, 0.0]), None))
    np.testing.assert_array_equal(found, [0.0, 0.0, NAN])


@pytest.mark.parametrize(
    ("norm", "bias", "offset"),
    [
        pytest.param(2.0, 3.0, 1.5, id="origin-on-the-active-side"),
        pytest.param(2.0, -3.0, -1.5, id="origin-on-the-inactive-side"),
        pytest.param(0.0, 3.0, NAN, id="degenerate"),
    ],
)
def test_offset(xp, norm, bias, offset):
    np.testing.assert_array_equal(xp.numpy(geometry.offset(xp([norm]), xp([bias]))), [offset])


def test_without_a_bias_every_hyperplane_holds_the_origin(xp):
    np.testing.assert_array_equal(xp.numpy(geometry.offset(xp([2.0, 0.0]), None)), [0.0, NAN])


@pytest.mark.parametrize(
    ("gamma", "beta", "centre"),
    [
        pytest.param(2.0, 1.0, 0.5, id="active"),
        pytest.param(-2.0, 1.0, 0.5, id="sign-of-gamma-does-not-matter"),
        pytest.param(-0.5, -1.0, -2.0, id="inactive"),
        pytest.param(0.0, 1.0, NAN, id="no-hyperplane"),
        pytest.param(2.0, 0.0, NAN, id="untrained-tells-nothing"),
    ],
)
def test_centre(xp, gamma, beta, centre):
    found = xp.numpy(geometry.centre(xp([gamma]), xp([beta])))
    np.testing.assert_array_equal(found, [centre])


@pytest.mark.parametrize("dtype", DTYPES)
def test_filters_without_a_direction_are_no_reason_to_warn(dtype):
    with np.errstate(all="raise"):
        assert np.isnan(geometry.cosine(np.zeros((2, 3), dtype))).all()
        geometry.crossing(np.zeros(2), np.ones(2))
        geometry.offset(np.zeros(2), np.ones(2))
        geometry.centre(np.zeros(2, dtype), np.zeros(2, dtype))


# --- any layer, against exact arithmetic


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (5, 27), (3, 2304)])
def test_a_random_layer_is_as_in_exact_arithmetic(xp, dtype, shape):
    rows = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    wanted = np.array([exactly(row) for row in rows]).T
    found = values(xp, geometry.arrangement(xp(rows, dtype)))
    # Rounding of a sum goes with its largest part, the length times √d.
    length = wanted[1] * math.sqrt(shape[1])
    for got, want, scale in zip(found, wanted, (length, wanted[1], 1.0), strict=True):
        close(xp, got, want, scale=scale, ulps=256)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        pytest.param([1e30, 1e-30, 2e30], np.float32, id="far-apart-in-float32"),
        pytest.param([1e30, -1e30, 1e-30], np.float32, id="cancels-down-to-1e-30"),
        pytest.param([3.4e38] * 9, np.float32, id="largest-float32"),
        pytest.param([1e-45, -3e-45, 1e-45], np.float32, id="smallest-float32"),
        pytest.param([65504.0, -65504.0, 6e-8], np.float16, id="whole-range-of-float16"),
        pytest.param([1e200, 1e-200, 3e200], np.float64, id="squares-beyond-float64"),
        pytest.param([1e200, -1e200, 1e-200], np.float64, id="cancels-down-to-1e-200"),
        pytest.param([1e-200, -3e-200], np.float64, id="squares-below-float64"),
        pytest.param([5e-324, 1e-323], np.float64, id="denormals-of-float64"),
        pytest.param([0.1, 0.2, -0.3], np.float64, id="decimal-fractions-do-not-cancel"),
        pytest.param([1.0, 2.0**-53, 2.0**-53, -1.0], np.float64, id="lost-in-any-plain-sum"),
    ],
)
def test_numpy_sums_are_exact_where_much_cancels(weights, dtype):
    row = np.array(weights, dtype)
    wanted = exactly(row)
    for rows in (row[None, :], np.asfortranarray(np.stack([row, row]))):
        planes = geometry.arrangement(rows)
        np.testing.assert_allclose(planes.projection, wanted[0], rtol=1e-15, atol=0)
        np.testing.assert_allclose(planes.norm, wanted[1], rtol=1e-15, atol=0)
        np.testing.assert_allclose(planes.cosine, wanted[2], rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        pytest.param([1e30, 1e-30, 2e30], np.float32, id="far-apart-in-float32"),
        pytest.param([3.4e38] * 9, np.float32, id="largest-float32"),
        pytest.param([1.5e-38, -3e-38, 6e-38], np.float32, id="smallest-normal-float32"),
        pytest.param([65504.0, 65504.0], np.float16, id="largest-float16"),
        pytest.param([1e200, 1e-200, 3e200], np.float64, id="squares-beyond-float64"),
        pytest.param([1e-200, -3e-200], np.float64, id="squares-below-float64"),
    ],
)
def test_extreme_weights_in_every_library(xp64, weights, dtype):
    row = np.array(weights, dtype)
    for found, wanted in zip(
        values(xp64, geometry.arrangement(xp64([row], dtype))), exactly(row), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_float32_weights_where_there_is_no_float64(xp, scale):
    weights = np.array([scale, -3 * scale, scale], np.float32)
    cosine = geometry.cosine(xp([weights], np.float32))
    close(xp, xp.numpy(cosine), [exactly(weights)[2]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_antisymmetric_filters_have_a_projection_of_exactly_zero(xp64, dtype):
    half = np.random.default_rng(0).standard_normal((64, 36)).astype(dtype)
    rows = np.concatenate([half, -half[:, ::-1]], axis=1)
    planes = geometry.arrangement(xp64(rows, dtype))
    if dtype is np.float64 and not xp64.name.startswith("numpy"):
        close(xp64, xp64.numpy(planes.projection), np.zeros(64), scale=72)
        return
    np.testing.assert_array_equal(xp64.numpy(planes.projection), 0.0)
    np.testing.assert_array_equal(xp64.numpy(planes.cosine), 0.0)


def test_no_weights_have_no_extent(xp):
    assert [float(x) for x in extent(xp(np.empty((0, 9)), np.float32))] == [0.0, 0.0]


def test_a_sum_that_overflows_on_the_way_raises_nothing():
    with np.errstate(over="ignore"):
        planes = geometry.arrangement(np.array([[1.7e308, 1.7e308, -1.7e308, -1.7e308]]))
    assert planes.projection == 0


@pytest.mark.parametrize("layout", ["C", "F"])
def test_a_million_weights_a_filter(layout):
    rows = np.random.default_rng(0).standard_normal((2, 1_000_000)).astype(np.float32)
    planes = geometry.arrangement(np.array(rows, order=layout))
    for i, row in enumerate(rows.tolist()):
        length = math.sqrt(math.fsum(w * w for w in row))
        assert planes.projection[i] == pytest.approx(math.fsum(row), abs=1e-10)
        assert planes.cosine[i] == pytest.approx(math.fsum(row) / (length * 1e3), abs=1e-15)


# --- laws: of NumPy arrays of any shape, and every library finds what NumPy finds


@given(rows=layers((4, 6)))
@settings(max_examples=30)
def test_every_library_finds_what_numpy_finds(xp, rows):
    wanted = geometry.arrangement(rows)
    found = values(xp, geometry.arrangement(xp(rows, np.float32)))
    norm = wanted.norm * math.sqrt(rows.shape[1])
    for got, want, scale in zip(
        found, (wanted.projection, wanted.norm, wanted.cosine), (norm, norm, 1.0), strict=True
    ):
        close(xp, got, want, scale=scale)


@given(rows=layers(), power=st.integers(-60, 60))
def test_scaling_by_a_power_of_two_scales_exactly(rows, power):
    plain, scaled = geometry.arrangement(rows), geometry.arrangement(rows * np.float32(2.0**power))
    np.testing.assert_array_equal(scaled.projection, plain.projection * 2.0**power)
    np.testing.assert_array_equal(scaled.norm, plain.norm * 2.0**power)
    np.testing.assert_array_equal(scaled.cosine, plain.cosine)


@given(rows=layers(), seed=st.integers(0, 99))
def test_the_order_of_weights_does_not_matter_and_that_of_filters_is_kept(rows, seed):
    rng = np.random.default_rng(seed)
    filters, weights = rng.permutation(len(rows)), rng.permutation(rows.shape[1])
    plain, moved = geometry.arrangement(rows), geometry.arrangement(rows[filters][:, weights])
    np.testing.assert_allclose(moved.projection, plain.projection[filters], atol=1e-11)
    np.testing.assert_allclose(moved.norm, plain.norm[filters], rtol=1e-14)
    np.testing.assert_allclose(moved.cosine, plain.cosine[filters], atol=1e-14)
    # The side that a filter faces does not hang on rounding at all.
    np.testing.assert_array_equal(moved.projection <= 0, plain.projection[filters] <= 0)


@given(rows=layers())
def test_turning_a_filter_round_negates_its_projection_and_cosine(rows):
    plain, turned = geometry.arrangement(rows), geometry.arrangement(-rows)
    np.testing.assert_array_equal(turned.projection, -plain.projection)
    np.testing.assert_array_equal(turned.norm, plain.norm)
    np.testing.assert_array_equal(turned.cosine, -plain.cosine)


@given(rows=layers(), zeros=st.integers(1, 4))
def test_zero_filters_leave_the_others_as_they_are(rows, zeros):
    padding = np.zeros((zeros, rows.shape[1]), np.float32)
    plain = geometry.arrangement(rows)
    padded = geometry.arrangement(np.concatenate([rows, padding]))
    for name, rest in (("projection", 0.0), ("norm", 0.0), ("cosine", NAN)):
        found = getattr(padded, name)
        np.testing.assert_array_equal(found[: len(rows)], getattr(plain, name))
        np.testing.assert_array_equal(found[len(rows) :], rest)


@given(rows=layers())
def test_a_cosine_lies_within_one(rows):
    cosine = geometry.cosine(rows)
    assert np.all((np.abs(cosine) <= 1 + 1e-15) | np.isnan(cosine))


# --- shapes, blocks, types


def test_a_layer_without_filters_gives_empty_arrays(xp):
    planes = geometry.arrangement(xp(np.zeros((0, 9))), xp(np.zeros(0)))
    for part in (*values(xp, planes), xp.numpy(planes.bias)):
        assert part.shape == (0,)


def test_filters_without_weights_are_degenerate(xp):
    projection, norm, cosine = values(xp, geometry.arrangement(xp(np.zeros((3, 0)))))
    np.testing.assert_array_equal(projection, np.zeros(3))
    np.testing.assert_array_equal(norm, np.zeros(3))
    np.testing.assert_array_equal(cosine, np.full(3, NAN))


@pytest.mark.parametrize("elements", [1, 12, 17, 42, 43])
def test_blocks_of_rows_make_no_difference(monkeypatch, elements):
    rows = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    whole, apart = geometry.arrangement(rows), distances(rows, rows + 1)
    monkeypatch.setattr(sums, "BLOCK_ELEMENTS", elements)
    planes = geometry.arrangement(rows)
    np.testing.assert_array_equal(planes.projection, whole.projection)
    np.testing.assert_array_equal(planes.norm, whole.norm)
    np.testing.assert_array_equal(planes.cosine, whole.cosine)
    np.testing.assert_allclose(distances(rows, rows + 1), apart, rtol=1e-14)


def test_a_layer_larger_than_a_block_is_whole(xp, monkeypatch):
    monkeypatch.setattr(sums, "DEVICE_BLOCK_ELEMENTS", sums.BLOCK_ELEMENTS)
    ones = np.ones((2, sums.BLOCK_ELEMENTS), np.float32)
    ones[1] *= -2
    projection, _, cosine = values(xp, geometry.arrangement(xp(ones, np.float32)))
    np.testing.assert_array_equal(projection, ones.sum(axis=1, dtype=float))
    close(xp, cosine, [1.0, -1.0])


def test_results_stay_in_the_library_and_on_the_device_of_the_weights(xp):
    rows, bias = xp(np.ones((2, 3)), np.float32), xp(np.ones(2), np.float32)
    planes = geometry.arrangement(rows, bias)
    moments = (xp([1.0, 2.0], np.float32),) * 2
    turned = geometry.effective(planes, *moments, *moments, 1e-5)
    found = [
        *(planes.projection, planes.norm, planes.cosine, planes.bias, turned.norm, turned.bias),
        geometry.crossing(planes.projection, planes.bias),
        geometry.offset(planes.norm, planes.bias),
        *distances(rows, rows),
    ]
    for array in found:
        assert type(array) is type(rows) or isinstance(array, np.floating)  # NumPy's 0-d
        assert "float64" in str(array.dtype) or not xp.wide
        device = getattr(rows, "device", None)
        assert getattr(array, "device", device) == device  # NumPy 2.0's 0-d have none


@pytest.mark.parametrize("name", ["torch", "jax.numpy"])
def test_bfloat16_is_summed_in_a_wider_type(name):
    library = pytest.importorskip(name)
    rows = library.ones((1, 1000), dtype=library.bfloat16)  # bfloat16 counts to 256
    assert float(geometry.projection(rows)[0]) == 1000
    large = library.asarray([[3e38, 3e38]], dtype=library.bfloat16)
    assert float(geometry.cosine(large)[0]) == pytest.approx(1.0)


def test_jax_without_float64_gives_no_warning(recwarn):
    jax = pytest.importorskip("jax")
    geometry.arrangement(jax.numpy.ones((2, 3)))
    assert not recwarn.list


def test_the_memory_of_a_tensor_stays_its_own():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(4, 9))
    geometry.arrangement(weight)
    distances(weight, weight)
    assert weight.untyped_storage().resizable()


def test_numpy_looks_at_tensors_of_the_host_and_at_no_others():
    torch = pytest.importorskip("torch")

    class Computed(torch.Tensor):
        pass

    array = np.ones((2, 3), np.float32)
    tensor = torch.from_numpy(array)
    for held in (array, tensor, torch.nn.Parameter(tensor)):
        view = geometry.host_view(held)
        assert type(view) is np.ndarray
        assert np.shares_memory(view, array)
    # No memory; of a type that NumPy has not; of a class that may compute its values.
    for other in (tensor.to("meta"), tensor.bfloat16(), tensor.as_subclass(Computed)):
        assert geometry.host_view(other) is None


def test_arguments_are_not_written_to(xp):
    arrays = [np.random.default_rng(i).standard_normal((4, 9)) for i in range(2)]
    vectors = [np.random.default_rng(i).random(4) for i in range(4)]
    given_arrays, given_vectors = [xp(a) for a in arrays], [xp(v) for v in vectors]
    planes = geometry.arrangement(given_arrays[0], given_vectors[0])
    before = values(xp, planes)
    geometry.effective(planes, *given_vectors, 1e-5)
    geometry.centre(*given_vectors[:2])
    geometry.crossing(*given_vectors[:2])
    geometry.offset(*given_vectors[:2])
    distances(*given_arrays)
    dtype = np.float64 if xp.wide else np.float32
    for kept, made in zip((*given_arrays, *given_vectors), (*arrays, *vectors), strict=True):
        np.testing.assert_array_equal(xp.numpy(kept), made.astype(dtype))
    for kept, made in zip(values(xp, planes), before, strict=True):
        np.testing.assert_array_equal(kept, made)


@pytest.mark.parametrize(
    ("normals", "bias", "message"),
    [
        pytest.param(np.ones(3), None, r"must be 2-D .* not of 1 dimensions", id="vector"),
        pytest.param(np.ones((2, 3, 3)), None, r"not of 3 dimensions", id="unflattened"),
        pytest.param(np.ones((2, 3), int), None, r"real floating, not int", id="integers"),
        pytest.param(np.ones((2, 3), complex), None, r"not complex128", id="complex"),
        pytest.param(np.ones((2, 3)), np.ones(3), r"\(3,\), not \(2,\)", id="long-bias"),
        pytest.param(np.ones((2, 3)), np.ones((2, 1)), r"\(2, 1\), not \(2,\)", id="bias-2-d"),
    ],
)
def test_what_is_no_layer_is_refused(normals, bias, message):
    with pytest.raises(ValueError, match=message):
        geometry.arrangement(normals, bias)


# --- the effective view


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_affine", [True, False])
def test_effective_hyperplanes_are_those_of_folded_weights(xp, with_bias, with_affine):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((6, 9)), rng.standard_normal(6)
    gamma, beta = rng.standard_normal(6), rng.standard_normal(6)
    mean, variance, eps = rng.standard_normal(6), rng.random(6), 1e-3
    gamma[0], gamma[1], variance[2] = 0.0, -1.5, 0.0
    scale = (gamma if with_affine else 1.0) / np.sqrt(variance + eps)
    folded_bias = (beta if with_affine else 0.0) + scale * ((bias if with_bias else 0.0) - mean)
    folded = geometry.arrangement(scale[:, None] * weight, folded_bias)
    raw = geometry.arrangement(xp(weight), xp(bias) if with_bias else None)
    affine = (xp(gamma), xp(beta)) if with_affine else (None, None)
    found = geometry.effective(raw, *affine, xp(mean), xp(variance), eps)
    for got, want in zip(values(xp, found), values(xp, folded), strict=True):
        close(xp, got, want, scale=256)
    close(xp, xp.numpy(found.bias), folded.bias, scale=256)


def test_a_negative_gamma_turns_the_normal_round_and_a_zero_one_leaves_none(xp):
    raw = geometry.arrangement(xp([[1.0, 1.0]] * 3))
    ones, gamma = xp([1.0] * 3), xp([-2.0, 0.0, 2.0])
    found = geometry.effective(raw, gamma, ones, xp([0.0] * 3), ones, 0.0)
    projection, norm, cosine = values(xp, found)
    close(xp, projection, [-4.0, 0.0, 4.0])
    close(xp, norm, [8**0.5, 0.0, 8**0.5], scale=4)
    close(xp, cosine, [-1.0, NAN, 1.0])
    close(xp, xp.numpy(found.bias), [1.0, 1.0, 1.0])


# --- distances


@pytest.mark.parametrize(
    ("weight", "initial", "l2", "linf"),
    [
        # moved by (3, -4): 5 / 2 and 4 / 2
        pytest.param([[5.0, -4.0]], [[2.0, 0.0]], 2.5, 2.0, id="3-4-5"),
        pytest.param([[2.0], [2.0]], [[2.0], [2.0]], 0.0, 0.0, id="unmoved"),
        pytest.param([[0.0], [0.0]], [[3.0], [4.0]], 1.0, 1.0, id="all-gone"),
        pytest.param([[1.0]], [[0.0]], NAN, NAN, id="from-zero"),
        pytest.param([[NAN]], [[1.0]], NAN, NAN, id="nan"),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 2.0**60, 2.0**-60])
def test_distances_from_the_initial_weights(xp, weight, initial, l2, linf, factor):
    weight, initial = np.array(weight) * factor, np.array(initial) * factor
    found = distances(xp(weight), xp(initial))
    for got, want in zip(found, (l2, linf), strict=True):
        close(xp, xp.numpy(got), np.array(want), scale=4)


def test_distances_do_not_overflow(xp64):
    weight, initial = xp64([[1e200, -1e200]]), xp64([[1e200, 1e200]])
    l2, linf = distances(weight, initial)  # 2e200 / (√2 e200), 2e200 / 1e200
    assert float(l2) == pytest.approx(2**0.5)
    assert float(linf) == pytest.approx(2.0)


def test_differences_of_narrow_weights_are_taken_in_a_wider_type(xp):
    # 60000 - (-60000) lies beyond the largest float16, 65504.
    weight, initial = (xp([[sign * 60000.0, 0.0]], np.float16) for sign in (1, -1))
    l2, linf = distances(weight, initial)
    assert (float(l2), float(linf)) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("weight", "initial", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"shapes differ: \(2, 3\) and \(3, 2\)"),
        (np.ones((2, 3)), np.ones(6), r"not of 1 dimensions"),
        (np.ones((2, 3), int), np.ones((2, 3)), r"real floating"),
    ],
)
def test_distances_of_unlike_layers_are_refused(weight, initial, message):
    with pytest.raises(ValueError, match=message):
        distances(weight, initial)
