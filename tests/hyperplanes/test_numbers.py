"""Every figure against exact ones: each case of `exact` is within what it promises."""

from __future__ import annotations

import math

import exact
import numpy as np
import pytest

from planescope.hyperplanes import chance, geometry

# As measuring does: filters that are left out may overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow)
        for case in exact.CASES
    ],
)
def test_figures_are_as_near_to_the_exact_ones_as_promised(case):
    assert case.worst() <= case.bound


def test_an_error_that_is_there_is_seen():
    """The measures themselves: what they would say of figures that are wrong."""
    assert exact.relative(1.0 + 1e-12, exact.mpf(1)) == pytest.approx(1e-12, rel=1e-3)
    assert exact.relative(math.nan, exact.mpf(1)) == math.inf
    assert exact.relative(math.inf, exact.mpf(10) ** 400) == math.inf
    assert exact.relative(1e-300, exact.mpf(0)) == 1.0


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_the_exact_law_of_kolmogorov_is_that_of_order_statistics(n):
    """Durbin's matrix in integers, against the one way of which nobody doubts: n = 2 by hand."""
    assert float(exact.kolmogorov(exact.mpf(1) / 2, 2)) == 0.5
    # D_n >= d for every sample if d <= 1/2n, and (1 - d)^n twice near 1.
    near = 1 - exact.mpf(1) / (2 * n)
    assert float(exact.kolmogorov(near, n)) == pytest.approx(2 * (1 / (2 * n)) ** n, rel=1e-14)


# --- where figures end


@pytest.mark.parametrize(
    ("weights", "projection", "norm", "cosine"),
    [
        pytest.param([1e308] * 9, math.inf, math.inf, 1.0, id="sum-beyond-float64"),
        pytest.param([1.7e308, -1.7e308], 0.0, math.inf, 0.0, id="length-beyond-float64"),
        pytest.param([5e-324] * 4, 2e-323, 1e-323, 1.0, id="denormals"),
    ],
)
def test_float64_weights_at_the_ends_of_its_range(weights, projection, norm, cosine):
    planes = geometry.arrangement(np.array([weights]))
    found = planes.projection[0], planes.norm[0], planes.cosine[0]
    assert found == (projection, norm, pytest.approx(cosine))


def test_p_values_below_the_smallest_float_are_0():
    assert chance.mass_p_value(0, 1074) > 0 == chance.mass_p_value(0, 1080)
    assert chance.kolmogorov_p_value(0.999, 100) > 0 == chance.kolmogorov_p_value(0.999, 110)
