"""One pass over the weights gives what `geometry` gives: signs exactly, sizes to 1e-6."""

import math

import numpy as np
import pytest

from planescope.hyperplanes import geometry
from planescope.hyperplanes.distances import extent
from planescope.training.tracker import onepass

# As an update does: filters that are left out may overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SHAPES = [(8, 27), (64, 576), (3, 577), (5, 1151), (16, 4608), (2, 200_000), (300, 700), (1, 1)]


@pytest.fixture(autouse=True)
def every_size_counts_as_large(monkeypatch):
    monkeypatch.setattr(onepass, "_WORTH", 0)


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def same_planes(ours, theirs):
    np.testing.assert_array_equal(ours.projection <= 0, theirs.projection <= 0)
    np.testing.assert_array_equal(ours.norm == 0, theirs.norm == 0)
    np.testing.assert_allclose(ours.norm, theirs.norm, rtol=1e-6)
    np.testing.assert_allclose(ours.cosine, theirs.cosine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        ours.projection, theirs.projection, rtol=0, atol=1e-6 * np.nanmax(theirs.norm, initial=1)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_planes_and_way_are_those_of_geometry(shape):
    now, then, bias = weights(shape), weights(shape, 1), weights(shape[0], 2)
    planes, way = onepass.read(now, bias, then)
    same_planes(planes, geometry.arrangement(now, bias))
    np.testing.assert_array_equal(planes.bias, bias.astype(float))
    length, peak = extent(now, then)
    # Differences are float32's here, and float64's there.
    assert way == (pytest.approx(float(length), rel=1e-6), pytest.approx(float(peak), rel=1e-7))
    assert onepass.read(now, None, None)[1] is None


@pytest.mark.parametrize("step", [1, 2, 100])
def test_blocks_make_no_difference(monkeypatch, step):
    now, then = weights((7, 700)), weights((7, 700), 1)
    whole, way = onepass.read(now, None, then)
    monkeypatch.setattr(onepass, "_BLOCK", step * 576)
    apart, way_apart = onepass.read(now, None, then)
    np.testing.assert_array_equal(apart.cosine, whole.cosine)
    assert way_apart == way


def test_where_weights_cancel_the_sign_is_exact():
    """In float32 these sums, of 3,000 weights of size 1, are noise of about 1e-5."""
    half = weights((200, 1500))
    rows = np.concatenate([half, -half], axis=1)
    for row in rows:
        np.random.default_rng(3).shuffle(row)
    exact = [math.fsum(row.tolist()) for row in rows]
    assert set(exact) == {0.0}
    rows[:100, 7] += np.float32(3e-6) * np.where(np.arange(100) % 2, 1, -1).astype(np.float32)
    exact = [math.fsum(row.tolist()) for row in rows]
    assert len({np.sign(total) for total in exact}) == 3
    planes, _ = onepass.read(rows, None, None)
    np.testing.assert_array_equal(planes.projection, exact)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-15, 1e15, 1e25, 3e37])
def test_weights_whose_squares_leave_the_range_of_float32(scale):
    now, then = (weights((20, 600), seed) * np.float32(scale) for seed in (0, 1))
    planes, way = onepass.read(now, None, then)
    theirs = geometry.arrangement(now)
    np.testing.assert_allclose(planes.cosine, theirs.cosine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(planes.norm, theirs.norm, rtol=1e-6)
    np.testing.assert_allclose(way, [float(x) for x in extent(now, then)], rtol=1e-6)


@pytest.mark.parametrize("place", [0, 599], ids=["in a piece", "behind the pieces"])
def test_filters_without_a_direction_or_a_number(place):
    now = weights((6, 600))
    then = now.copy()
    now[1] = 0
    now[2, place], now[3, place], now[4, place] = math.nan, math.inf, 3e38
    planes, way = onepass.read(now, None, then)
    theirs = geometry.arrangement(now)
    for ours, other in (
        (planes.projection, theirs.projection),
        (planes.norm, theirs.norm),
        (planes.cosine, theirs.cosine),
    ):
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(other))
    assert planes.norm[1] == 0
    assert planes.cosine[4] == pytest.approx(theirs.cosine[4], abs=1e-7)
    assert not np.isfinite(way).any()


def test_a_tensor_is_looked_at_and_its_memory_stays_its_own():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(4, 9))
    planes, way = onepass.read(weight, weight.sum(1), torch.zeros(4, 9))
    assert planes.cosine.tolist() == [1.0] * 4
    assert planes.bias.tolist() == [9.0] * 4
    assert way == (6.0, 1.0)
    assert weight.untyped_storage().resizable()


def test_small_layers_and_other_types_are_left_to_geometry(monkeypatch):
    monkeypatch.setattr(onepass, "_WORTH", 1 << 16)
    for dtype in (np.float32, np.float64):
        now, then = weights((3, 600)).astype(dtype), weights((3, 600), 1)
        planes, way = onepass.read(now, None, then)
        np.testing.assert_array_equal(planes.cosine, geometry.arrangement(now).cosine)
        assert way == extent(now, then)
