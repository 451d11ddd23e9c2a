"""The whole matrix of a convolution, and what METHOD section 1 says about its rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from planescope.hyperplanes import geometry

torch = pytest.importorskip("torch")

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


class Convolution(NamedTuple):
    """Weights, an input and the options of one convolution; integers, so that sums are exact."""

    weight: np.ndarray
    x: np.ndarray
    options: dict

    @property
    def positional(self) -> dict:
        """Options that `interior_rows` takes."""
        return {name: self.options[name] for name in ("stride", "padding", "dilation")}

    def matrix(self, padding_mode: str) -> np.ndarray:
        sparse = geometry.toeplitz(
            self.weight, self.x.shape, **self.options, padding_mode=padding_mode
        )
        return sparse.toarray()

    def interior(self) -> np.ndarray:
        return geometry.interior_rows(self.weight, self.x.shape, **self.positional)

    def by_torch(self, padding_mode: str) -> np.ndarray:
        kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[self.weight.ndim - 3]
        filters, depth, *kernel = self.weight.shape
        groups = self.options["groups"]
        module = kind(
            depth * groups, filters, kernel, bias=False, padding_mode=padding_mode, **self.options
        ).double()
        module.weight.data = torch.from_numpy(self.weight)
        with torch.no_grad():
            return module(torch.from_numpy(self.x)[None])[0].numpy()


@st.composite
def convolutions(draw, *, stride: int = 3):
    groups, depth, per_group = (draw(st.integers(1, 2)) for _ in range(3))
    sizes = draw(st.lists(st.integers(3, 6), min_size=1, max_size=3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in sizes)

    # A kernel of 2 with dilation 2 reaches 3, which every size holds; padding stays below the size,
    # beyond which torch has no reflection.
    kernel, dilation = each(1, 2), each(1, 2)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Whole numbers without 0, so that a lost tap is seen.
    weight = rng.choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], (per_group * groups, depth, *kernel))
    x = rng.integers(-9, 10, (depth * groups, *sizes)).astype(float)
    options = {"stride": each(1, stride), "padding": each(0, 2), "dilation": dilation}
    return Convolution(weight, x, options | {"groups": groups})


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(PADDING_MODES))
def test_the_matrix_is_the_convolution(convolution, padding_mode):
    found = convolution.matrix(padding_mode) @ convolution.x.ravel()
    assert_array_equal(found, convolution.by_torch(padding_mode).ravel())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_functional_convolution_agrees_for_plain_options(dimensions):
    rng = np.random.default_rng(dimensions)
    weight, x = rng.normal(size=(4, 3, *[3] * dimensions)), rng.normal(size=(3, *[7] * dimensions))
    convolve = getattr(torch.nn.functional, f"conv{dimensions}d")
    wanted = convolve(torch.from_numpy(x)[None], torch.from_numpy(weight), stride=2, padding=1)
    found = geometry.toeplitz(weight, x.shape, stride=2, padding=1) @ x.ravel()
    assert_allclose(found, wanted.numpy().ravel(), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(convolutions(stride=1))
def test_circular_padding_gives_all_rows_of_a_filter_one_angle_and_one_crossing(convolution):
    filters = len(convolution.weight)
    rows = convolution.matrix("circular").reshape(filters, -1, convolution.x.size)
    entries = np.sort(rows, axis=2)
    assert_array_equal(entries, np.broadcast_to(entries[:, :1], entries.shape))
    cosine, crossing = angles_and_crossings(rows)
    assert_allclose(cosine, np.broadcast_to(cosine[:, :1], cosine.shape), atol=1e-14)
    assert_array_equal(crossing, np.broadcast_to(crossing[:, :1], crossing.shape))
    # The crossing is that of the filter itself: no tap is lost or counted twice.
    assert_array_equal(crossing[:, 0], crossing_of_filters(convolution.weight))


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_zero_padding_keeps_the_interior_and_takes_taps_from_border_rows(convolution):
    filters, fan_in = len(convolution.weight), math.prod(convolution.weight.shape[1:])
    rows = convolution.matrix("zeros").reshape(filters, -1, convolution.x.size)
    interior = convolution.interior().reshape(filters, -1)
    assert_array_equal(np.count_nonzero(rows, axis=2) == fan_in, interior)
    cosine, crossing = angles_and_crossings(rows)
    for i, inside in enumerate(interior):
        assert_allclose(
            cosine[i, inside], cosine[i, inside].mean() if inside.any() else 0, atol=1e-14
        )
        assert_array_equal(crossing[i, inside], crossing_of_filters(convolution.weight)[i])


def angles_and_crossings(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of shape (filters, positions, inputs), with the bias i + 1 for filter i."""
    filters, positions, inputs = rows.shape
    flat = rows.reshape(-1, inputs)
    bias = np.repeat(np.arange(1.0, filters + 1), positions)
    crossing = geometry.crossing(geometry.projection(flat), bias)
    return geometry.cosine(flat).reshape(filters, -1), crossing.reshape(filters, -1)


def crossing_of_filters(weight: np.ndarray) -> np.ndarray:
    rows = weight.reshape(len(weight), -1)
    return geometry.crossing(geometry.projection(rows), np.arange(1.0, len(rows) + 1))


def test_a_matrix_worked_by_hand():
    # Taps 1, 2 over four inputs, one zero before and behind: each output is x[o-1] + 2 x[o].
    found = geometry.toeplitz(np.array([[[1.0, 2.0]]]), (1, 4), padding=1)
    wanted = [[2, 0, 0, 0], [1, 2, 0, 0], [0, 1, 2, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    assert_array_equal(found.toarray(), wanted)
    inside = geometry.interior_rows(np.array([[[1.0, 2.0]]]), (1, 4), padding=1)
    assert_array_equal(inside, [False, True, True, True, False])


def test_on_one_pixel_the_matrix_is_the_weights():
    weight = np.arange(1.0, 7.0).reshape(2, 3, 1, 1)
    assert_array_equal(geometry.toeplitz(weight, (3, 1, 1)).toarray(), weight.reshape(2, 3))
    assert geometry.interior_rows(weight, (3, 1, 1)).tolist() == [True, True]


def test_taps_that_fold_on_one_input_are_summed():
    # Three taps around a circle of two: the outer two fall on the same input.
    weight = np.array([[[1.0, 10.0, 100.0]]])
    found = geometry.toeplitz(weight, (1, 2), padding=1, padding_mode="circular")
    assert_array_equal(found.toarray(), [[10, 101], [101, 10]])
    assert found.nnz == 4


def test_rows_run_over_filters_first_and_groups_see_their_own_channels():
    weight = np.array([[[2.0]], [[3.0]]])  # two groups of one channel, kernel of 1
    found = geometry.toeplitz(weight, (2, 2), groups=2)
    assert_array_equal(found.toarray(), np.diag([2.0, 2.0, 3.0, 3.0]))


@pytest.mark.parametrize(("dtype", "wanted"), [
    ("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int64", "float64"),
])  # fmt: skip
def test_the_matrix_keeps_the_precision_of_the_weights(dtype, wanted):
    assert geometry.toeplitz(np.ones((1, 1, 2), dtype), (1, 3)).dtype == wanted


SHAPE, INPUT = (4, 2, 3, 3), (2, 5, 5)


@pytest.mark.parametrize(("shape", "x", "options", "sentence"), [
    pytest.param((4, 2), (2,), {}, "are no 1-, 2- or 3-D convolution", id="linear"),
    pytest.param(SHAPE, (2, 5), {}, r"weight of shape \(4, 2, 3, 3\)", id="fewer-dimensions"),
    pytest.param((1, 1, 2, 2, 2, 2), (1, 3, 3, 3, 3), {}, "3-D", id="4-d"),
    pytest.param(SHAPE, (3, 5, 5), {}, "do not make 1 groups of 3 channels", id="channels"),
    pytest.param(SHAPE, (6, 5, 5), {"groups": 3}, "4 filters over 2 channels", id="groups"),
    pytest.param(SHAPE, INPUT, {"groups": 0}, "do not make 0 groups", id="no-groups"),
    pytest.param(SHAPE, (2, 5, 2), {}, "kernel of 3 .* input of 2 with padding 0", id="small"),
    pytest.param(SHAPE, INPUT, {"dilation": 3}, "with dilation 3 does not fit", id="dilation"),
    pytest.param(SHAPE, (2, 0, 5), {"padding": 2}, "into an input of 0", id="empty"),
    pytest.param(SHAPE, INPUT, {"stride": 0}, "stride must be .* at least 1, not 0", id="stride"),
    pytest.param(SHAPE, INPUT, {"padding": -1}, "padding must be .* at least 0", id="negative"),
    pytest.param(SHAPE, INPUT, {"padding": (1, 1, 1)}, "an int or 2 ints", id="three-for-two"),
    pytest.param(SHAPE, INPUT, {"padding_mode": "wrap"}, "there are zeros, circular", id="mode"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(shape, x, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        geometry.toeplitz(np.ones(shape), x, **options)
