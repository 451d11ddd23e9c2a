"""The laws of chance at initialisation, and p-values against them (METHOD, section 3).

Written over NumPy alone: importing scipy.special takes longer than measuring a network does. The
tests hold every function against SciPy or exact fractions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from planescope.hyperplanes.factorials import deviance, stirling_error
from planescope.hyperplanes.kolmogorov import kolmogorov_p_value as kolmogorov_p_value
from planescope.hyperplanes.kolmogorov import kolmogorov_smirnov as kolmogorov_smirnov

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# Nodes of the Gauss-Legendre rule for the cosine's law: the integrand is entire and the range is
# cut where it has decayed, so that 48 nodes give 1e-15 for every fan-in; 16 do up to `_NEAR`, below
# which nearly all cosines of a layer near its initialisation lie: a seventh of a VGG19's time.
_NODES, _FEW_NODES = 48, 16
# Angle in units of 1/sqrt(fan_in).
_NEAR = 3.0
# Cosines at a time: an array of them times the nodes stays below 2 MB.
_BLOCK = 4096
# Angle, in units of 1/sqrt(fan_in), beyond which the law's mass is lost on float64.
_TAIL = 9.0
# Up to this count binomial coefficients are small enough integers to be exact and quick.
_EXACT_COUNT = 500

# The standard normal leaves 95 % of its mass within this of 0.
NORMAL_95 = 1.959963984540054

# Where chance alone would call one in twenty so (METHOD, section 3), corrected where several are
# tested. Intervals are of the confidence that this leaves.
LEVEL = 0.05
CONFIDENCE = 1 - LEVEL


def mass_p_value(negative: int, filters: int, /) -> float:
    """Return exact two-sided binomial test of a negative mass: N m ~ Binomial(N, 1/2).

    Parameters
    ----------
    negative : int
        Number of filters on one side, N m.
    filters : int
        N, usable filters; at least 1.

    Returns
    -------
    float
        Probability that chance is at least as far from N/2; to a relative error of 1e-12, and 0.0
        where it is below the smallest float.

    Raises
    ------
    ValueError
        If not 0 <= negative <= filters, or filters < 1.
    """
    if not 0 <= negative <= filters or filters < 1:
        raise ValueError(f"{negative} of {filters} filters is no count")
    fewer = min(negative, filters - negative)
    if 2 * fewer == filters:
        return 1.0
    # P(X <= k) = P(X = k) (1 + k/(n-k+1) + k(k-1)/((n-k+1)(n-k+2)) + ...): all terms positive.
    series = term = 1.0
    for k in range(fewer, 0, -1):
        term *= k / (filters - k + 1)
        series += term
        if term < series * 1e-17:
            break
    return min(1.0, 2.0 * series * _fair_binomial(fewer, filters))


def mass_band(filters: int, /, *, level: float = CONFIDENCE) -> tuple[float, float]:
    """Return the range of negative masses that chance gives with at least probability `level`.

    The smallest band symmetric about 1/2, from the exact binomial law.

    Returns
    -------
    low, high : float
        In [0, 1], both inclusive.

    Raises
    ------
    ValueError
        If filters < 1.
    """
    if filters < 1:
        raise ValueError(f"a band is for 1 filter or more, not {filters}")
    # Bisect for the fewest filters k whose own tail P(X <= k) exceeds what is left out on a side.
    outside, inside = -1, filters // 2
    while inside - outside > 1:
        middle = (outside + inside) // 2
        if mass_p_value(middle, filters) > 1.0 - level:
            inside = middle
        else:
            outside = middle
    return inside / filters, (filters - inside) / filters


def wilson(successes: int, trials: int, /) -> tuple[float, float]:
    """Return 95 % interval of a share (Wilson 1927).

    Parameters
    ----------
    successes, trials : int
        ``0 <= successes <= trials``, at least one trial.

    Returns
    -------
    low, high : float
        In [0, 1]. They hold for a number of trials that was fixed beforehand.

    Raises
    ------
    ValueError
        If the counts contradict each other.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no share")
    share, square = successes / trials, NORMAL_95 * NORMAL_95 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    # Rounding must not exclude what was seen.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def cosine_cdf(cosines: ArrayLike, fan_in: ArrayLike, /) -> Floats:
    """Return the distribution function of c_i at initialisation.

    (c + 1)/2 ~ Beta((d-1)/2, (d-1)/2).

    Parameters
    ----------
    cosines : array_like
        In [-1, 1]; values beyond by rounding are clipped.
    fan_in : array_like of int, broadcastable
        d, at least 2: for d = 1 there is no such law.

    Returns
    -------
    array of float64, broadcast shape
        To an absolute error of 3e-15, whatever the fan-in.

    Raises
    ------
    ValueError
        If a fan-in is below 2.

    Notes
    -----
    With c = sin(phi) the density is proportional to cos(phi)^(d-2), which is smooth for each d, so
    one Gauss-Legendre rule serves all filters of a network at once.
    """
    fan = np.asarray(fan_in, dtype=np.float64)
    if fan.size and fan.min() < 2:
        raise ValueError("the cosine has no continuous law for a fan-in below 2")
    angle = np.arcsin(np.clip(np.asarray(cosines, dtype=np.float64), -1.0, 1.0))
    angle, fan = np.broadcast_arrays(angle, fan)
    side, fan = np.abs(angle).ravel(), fan.ravel()
    peak = _cosine_peak(fan)
    below = np.empty(side.shape)
    is_near = side * np.sqrt(fan) <= _NEAR
    for chosen, nodes in ((is_near, _FEW_NODES), (~is_near, _NODES)):
        where = np.flatnonzero(chosen)
        for start in range(0, where.size, _BLOCK):
            part = where[start : start + _BLOCK]
            below[part] = _mass_to_angle(side[part], fan[part], peak[part], nodes)
    return 0.5 + np.copysign(below.reshape(angle.shape), angle)


def cosine_density(cosines: ArrayLike, fan_in: int, /) -> Floats:
    """Return the density of c_i at initialisation, proportional to (1 - c^2)^((d-3)/2).

    Parameters
    ----------
    cosines : array_like
        In (-1, 1); outside the density is 0.
    fan_in : int
        d, at least 2.
    """
    c = np.asarray(cosines, dtype=np.float64)
    inside = np.abs(c) < 1.0
    power = 0.5 * (fan_in - 3.0) * np.log1p(-np.square(np.where(inside, c, 0.0)))
    return np.where(inside, _cosine_peak(np.asarray(float(fan_in))) * np.exp(power), 0.0)


def benjamini_hochberg(p_values: Sequence[float | None], /) -> list[float | None]:
    """Return the p-values corrected for the false discovery rate, in the given order.

    Benjamini and Hochberg 1995.

    None, where there was no test, stays None and does not count as one.
    """
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    smallest = 1.0
    for rank in range(len(ranked), 0, -1):
        p, i = ranked[rank - 1]
        smallest = min(smallest, p * (len(ranked) / rank))
        corrected[i] = smallest
    return corrected


def called_level(p_values: Sequence[float | None], /) -> float:
    """Return the p-value below which `benjamini_hochberg` leaves one below `LEVEL`.

    A band of `mass_band` at ``level=1 - called_level(...)`` is the one that was tested: a mass lies
    outside it where its corrected p-value is below `LEVEL`, and nowhere else.
    """
    return level_of(q for q in benjamini_hochberg(p_values) if q is not None)


def level_of(corrected: Iterable[float], /) -> float:
    """Return the same of p-values that are corrected already."""
    found = [float(q) for q in corrected]
    return LEVEL * max(1, sum(q < LEVEL for q in found)) / max(1, len(found))


def _fair_binomial(k: int, n: int) -> float:
    """Return P(X = k) for X ~ Binomial(n, 1/2), 2 k <= n."""
    if k <= _EXACT_COUNT:
        # Division of integers is correctly rounded where logarithms of factorials lose digits.
        return math.comb(n, k) / (1 << n)
    # Loader's form, as in `_one_sided`: the integers would have n bits.
    return math.exp(float(log_fair_binomial(np.array([k]), np.array([n]))[0]))


def log_fair_binomial(k: NDArray[np.int64], n: NDArray[np.int64], /) -> Floats:
    """Return the logarithm of P(X = k) for X ~ Binomial(n, 1/2), to a relative error of 1e-15.

    Parameters
    ----------
    k, n : array of int, one shape, 0 <= k <= n
    """
    few, n = k.astype(np.float64), n.astype(np.float64)
    rest = n - few
    inside = (few > 0) & (rest > 0)
    few[~inside] = rest[~inside] = 1.0
    # Loader's form, as in `_one_sided`: logarithms of factorials would lose digits.
    log = 0.5 * np.log(np.where(inside, n, 1.0) / (2.0 * math.pi * few * rest))
    log += stirling_error(np.maximum(n, 1.0)) - stirling_error(few) - stirling_error(rest)
    log -= deviance(few, 0.5 * n - few) + deviance(rest, 0.5 * n - rest)
    return np.where(inside, log, -n * math.log(2.0))


@functools.cache
def _quadrature(count: int) -> tuple[Floats, Floats]:
    """Return the nodes and weights of the Gauss-Legendre rule on [0, 1].

    Finding them takes milliseconds.
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _mass_to_angle(angle: Floats, fan_in: Floats, peak: Floats, count: int) -> Floats:
    """Return the mass of the cosine's law between the angle 0 and a positive one."""
    nodes, weights = _quadrature(count)
    reach = np.minimum(angle, _TAIL / np.sqrt(fan_in))
    phi = reach[:, None] * nodes
    # log1p(-sin^2)/2 keeps the digits that log(cos) loses near 0; the power is an exponential.
    density = np.exp((fan_in[:, None] - 2.0) * 0.5 * np.log1p(-np.square(np.sin(phi))))
    return np.minimum(peak * reach * (density @ weights), 0.5)


def _cosine_peak(fan_in: Floats) -> Floats:
    """Return the density of the cosine's angle at 0: Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2))."""
    if fan_in.size and (fan_in == fan_in.flat[0]).all():  # of one layer
        return np.full(
            fan_in.shape, _gamma_ratio(0.5 * (fan_in.flat[0] - 1.0)) / math.sqrt(math.pi)
        )
    sizes, where = np.unique(fan_in, return_inverse=True)
    peaks = np.array([_gamma_ratio(0.5 * (d - 1.0)) for d in sizes]) / math.sqrt(math.pi)
    return peaks[where].reshape(fan_in.shape)


def _gamma_ratio(x: float) -> float:
    """Return Gamma(x + 1/2) / Gamma(x), without the digits that large log-gammas lose."""
    if x < 30.0:
        return math.gamma(x + 0.5) / math.gamma(x)
    # Asymptotic series in 1/x (Tricomi and Erdelyi 1951).
    y = 1.0 / x
    tail = y * (-1 / 8 + y * (1 / 128 + y * (5 / 1024 + y * (-21 / 32768 + y * (-399 / 262144)))))
    tail += y**6 * (869 / 4194304 + y * (39325 / 33554432))
    return math.sqrt(x) * (1.0 + tail)
