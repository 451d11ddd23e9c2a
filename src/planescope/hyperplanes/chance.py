"""What chance gives: the laws at initialisation, and p-values against them (METHOD, section 3).

Written over NumPy alone: importing scipy.special takes longer than measuring a network does. The
tests hold every function against SciPy or exact fractions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# Nodes of the Gauss-Legendre rule for the cosine's law: the integrand is entire and the range is
# cut where it has decayed, so that 48 nodes give 1e-15 for every fan-in.
_NODES = 48
# Cosines at a time: an array of them times the nodes stays below 2 MB.
_BLOCK = 4096
# Angle, in units of 1/sqrt(fan_in), beyond which the law's mass is lost on float64.
_TAIL = 9.0
# From here on both deviations at once are too rare to tell in float64: exp(-6 n D^2) < 1e-13.
_ONE_SIDED = 5.0
# Above this the exact laws grow slow, and the expansion is good to 1e-9.
_EXACT_LIMIT = 10_000
# sqrt(n) D below which a distance is surpassed with probability 1 - 1e-15 and more.
_SURE = 0.18
# Most that is added in a step of at most 1 on average: more has a probability of 1e-25.
_JUMP = 24
# Terms of a sum at a time: some arrays of them stay below 2 MB.
_TERMS = 1 << 15
# Up to this count binomial coefficients are small enough integers to be exact and quick.
_EXACT_COUNT = 500


def mass_p_value(negative: int, filters: int, /) -> float:
    """Exact two-sided binomial test of a negative mass: N m ~ Binomial(N, 1/2).

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


def mass_band(filters: int, /, *, level: float = 0.95) -> tuple[float, float]:
    """Range of negative masses that chance gives with at least probability `level`.

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
        raise ValueError(f"a band for {filters} filters cannot be")
    # Bisect for the fewest filters k whose own tail P(X <= k) exceeds what is left out on a side.
    outside, inside = -1, filters // 2
    while inside - outside > 1:
        middle = (outside + inside) // 2
        if mass_p_value(middle, filters) > 1.0 - level:
            inside = middle
        else:
            outside = middle
    return inside / filters, (filters - inside) / filters


def cosine_cdf(cosines: ArrayLike, fan_in: ArrayLike, /) -> Floats:
    """Distribution function of c_i at initialisation: (c + 1)/2 ~ Beta((d-1)/2, (d-1)/2).

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
    import numpy as np

    fan = np.asarray(fan_in, dtype=np.float64)
    if fan.size and fan.min() < 2:
        raise ValueError("the cosine has no continuous law for a fan-in below 2")
    angle = np.arcsin(np.clip(np.asarray(cosines, dtype=np.float64), -1.0, 1.0))
    angle, fan = np.broadcast_arrays(angle, fan)
    below = np.empty(angle.shape)
    for start in range(0, angle.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        below.flat[part] = _mass_to_angle(np.abs(angle.flat[part]), fan.flat[part])
    return 0.5 + np.copysign(below, angle)


def cosine_density(cosines: ArrayLike, fan_in: int, /) -> Floats:
    """Density of c_i at initialisation, proportional to (1 - c^2)^((d-3)/2).

    Parameters
    ----------
    cosines : array_like
        In (-1, 1); outside the density is 0.
    fan_in : int
        d, at least 2.
    """
    import numpy as np

    c = np.asarray(cosines, dtype=np.float64)
    inside = np.abs(c) < 1.0
    power = 0.5 * (fan_in - 3.0) * np.log1p(-np.square(np.where(inside, c, 0.0)))
    return np.where(inside, _cosine_peak(np.asarray(float(fan_in))) * np.exp(power), 0.0)


def kolmogorov_smirnov(uniforms: ArrayLike, /) -> float:
    """Two-sided Kolmogorov-Smirnov p-value of values that are uniform on [0, 1] under chance.

    Parameters
    ----------
    uniforms : array_like, shape (n,), n >= 1
        Each value put through the distribution function it should have.

    Returns
    -------
    float
        From a given distance to a relative error of 1e-12 for n up to 10,000, and in the tail
        (n D^2 > 3) for every n; between them the error is below 0.1 / n^2: 1e-9 at n = 10,000 and
        1e-12 at 300,000. The distance itself is rounded, as the law of the cosine is, by up to
        2e-15: that is a share of 4 n D 2e-15 of the p-value, 1e-11 where n = 10,000 and p = 1e-300,
        and of n 2e-15 / (1 - D) where few values lie far out.
    """
    import numpy as np

    ordered = np.sort(np.asarray(uniforms, dtype=np.float64))
    n = ordered.size
    steps = np.arange(1, n + 1)
    largest = float(max(np.max(steps / n - ordered), np.max(ordered - (steps - 1) / n)))
    return kolmogorov_p_value(largest, n)


def kolmogorov_p_value(distance: float, n: int, /) -> float:
    """P(D_n >= distance) for the two-sided Kolmogorov-Smirnov distance of n values.

    Accuracy and sources as for `kolmogorov_smirnov`.
    """
    if distance >= 1.0:
        return 0.0
    if distance <= 0.5 / n:
        return 1.0
    squared = n * distance * distance
    # Above 1/2 the two one-sided deviations exclude each other.
    if squared > _ONE_SIDED or distance >= 0.5:
        return min(1.0, 2.0 * _one_sided(distance, n))
    if squared < _SURE * _SURE:
        return 1.0
    # What the expansion leaves out is about exp(-3.8 n D^2) / 2 n^2 of the p-value.
    if n > _EXACT_LIMIT or 3.8 * squared > 28.0 - 2.0 * math.log(n):
        return min(1.0, 2.0 * _one_sided(distance, n) - _two_sided(math.sqrt(squared), n))
    # The law of Durbin is good to n 1e-17, of 1: too little where p, 2 exp(-2 n D^2), is small.
    if 2.0 * squared < min(5.3, math.log(1e5 / n)):
        return max(0.0, 1.0 - _durbin(distance, n))
    return _first_exits(distance, n)


def benjamini_hochberg(p_values: Sequence[float | None], /) -> list[float | None]:
    """Corrected p-values (false discovery rate; Benjamini and Hochberg 1995), in the given order.

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


def _fair_binomial(k: int, n: int) -> float:
    """P(X = k) for X ~ Binomial(n, 1/2), 2 k <= n."""
    if k <= _EXACT_COUNT:
        # Division of integers is correctly rounded where logarithms of factorials lose digits.
        return math.comb(n, k) / (1 << n)
    import numpy as np

    # Loader's form, as in `_one_sided`: the integers would have n bits.
    return math.exp(float(log_fair_binomial(np.array([k]), np.array([n]))[0]))


def log_fair_binomial(k: NDArray[np.int64], n: NDArray[np.int64], /) -> Floats:
    """Logarithm of P(X = k) for X ~ Binomial(n, 1/2), to a relative error of 1e-15.

    Parameters
    ----------
    k, n : array of int, one shape, 0 <= k <= n
    """
    import numpy as np

    few, n = k.astype(np.float64), n.astype(np.float64)
    rest = n - few
    inside = (few > 0) & (rest > 0)
    few[~inside] = rest[~inside] = 1.0
    # Loader's form, as in `_one_sided`: logarithms of factorials would lose digits.
    log = 0.5 * np.log(np.where(inside, n, 1.0) / (2.0 * math.pi * few * rest))
    log += _stirling_error(np.maximum(n, 1.0)) - _stirling_error(few) - _stirling_error(rest)
    log -= _deviance(few, 0.5 * n - few) + _deviance(rest, 0.5 * n - rest)
    return np.where(inside, log, -n * math.log(2.0))


@functools.cache
def _quadrature() -> tuple[Floats, Floats]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1]; finding them takes milliseconds."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _mass_to_angle(angle: Floats, fan_in: Floats) -> Floats:
    """Mass of the cosine's law between the angle 0 and a positive one."""
    import numpy as np

    nodes, weights = _quadrature()
    reach = np.minimum(angle, _TAIL / np.sqrt(fan_in))
    phi = reach[:, None] * nodes
    # log1p(-sin^2)/2 keeps the digits that log(cos) loses near 0; the power is an exponential.
    density = np.exp((fan_in[:, None] - 2.0) * 0.5 * np.log1p(-np.square(np.sin(phi))))
    return np.minimum(_cosine_peak(fan_in) * reach * (density @ weights), 0.5)


def _cosine_peak(fan_in: Floats) -> Floats:
    """Density of the cosine's angle at 0: Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2))."""
    import numpy as np

    sizes, where = np.unique(fan_in, return_inverse=True)
    peaks = np.array([_gamma_ratio(0.5 * (d - 1.0)) for d in sizes]) / math.sqrt(math.pi)
    return peaks[where].reshape(fan_in.shape)


def _gamma_ratio(x: float) -> float:
    """Gamma(x + 1/2) / Gamma(x), without the digits that large log-gammas lose."""
    if x < 30.0:
        return math.gamma(x + 0.5) / math.gamma(x)
    # Asymptotic series in 1/x (Tricomi and Erdelyi 1951).
    y = 1.0 / x
    tail = y * (-1 / 8 + y * (1 / 128 + y * (5 / 1024 + y * (-21 / 32768 + y * (-399 / 262144)))))
    tail += y**6 * (869 / 4194304 + y * (39325 / 33554432))
    return math.sqrt(x) * (1.0 + tail)


def _one_sided(distance: float, n: int) -> float:
    """P(D+ >= distance), exactly (Birnbaum and Tingey 1951).

    ``sum_j x/(x + j/n) Binomial(j; n, x + j/n)``, all terms positive; each binomial probability is
    taken in C. Loader's saddle-point form ("Fast and accurate computation of binomial
    probabilities", 2000), which keeps its relative accuracy far in the tail.
    """
    import numpy as np

    # j = 0 has no logarithm: its term is (1 - x)^n.
    terms, last = [math.exp(n * math.log1p(-distance))], math.floor(n * (1.0 - distance))
    shift = n * distance
    every = float(_stirling_error(np.array([float(n)]))[0]) + 0.5 * math.log(n / (2.0 * math.pi))
    for start in range(1, last + 1, _TERMS):
        j = np.arange(start, min(start + _TERMS, last + 1), dtype=np.float64)
        j = j[j + shift < n]
        rest, mean = n - j, j + shift
        log = every + np.log(shift / mean) - 0.5 * (np.log(j) + np.log(rest))
        log -= _stirling_error(j) + _stirling_error(rest)
        log -= _deviance(j, np.full_like(j, shift)) + _deviance(rest, np.full_like(j, -shift))
        terms.append(float(np.exp(log).sum()))
    return math.fsum(terms)


def _two_sided(x: float, n: int) -> float:
    """P(D+ >= D and D- >= D), x = sqrt(n) D; what it leaves out falls as 1/n^2.

    All but the first term of the expansion of W. Pelz and I. J. Good, "Approximating the lower
    tail-areas of the Kolmogorov-Smirnov one-sample statistic", J. R. Stat. Soc. B 38 (1976), in
    the form that converges where x is large (Li-Chien 1956). The first is twice P(D+ >= D).
    """
    total, root, square = 0.0, math.sqrt(n), x * x
    for k in range(2, 2 + math.ceil(5.0 / x)):
        kk, odd = float(k * k), k % 2
        f = kk - odd
        g = 5.0 * kk + 22.0 - 15.0 * odd
        y = kk * square
        brace = 1.0 - 2.0 * kk * x / (3.0 * root)
        brace -= (f - 4.0 * (f + 3.0) * y + 8.0 * y * y) / (18.0 * n)
        brace += kk * x / (27.0 * n * root) * (g / 5.0 - 4.0 * (g + 45.0) * y / 15.0 + 8.0 * y * y)
        total += (-1 if odd else 1) * 2.0 * math.exp(-2.0 * y) * brace
    return total


def _stirling_error(n: Floats) -> Floats:
    """log(n!) minus Stirling's approximation, n >= 1."""
    import numpy as np

    exact = np.array(
        [
            0.0,
            *(
                math.lgamma(k + 1.0) - (k + 0.5) * math.log(k) + k - 0.5 * math.log(2.0 * math.pi)
                for k in range(1, 16)
            ),
        ]
    )
    m = np.maximum(n, 16.0)
    inverse = 1.0 / np.square(m)
    series = (
        1 / 12
        - inverse
        * (
            1 / 360
            - inverse
            * (1 / 1260 - inverse * (1 / 1680 - inverse * (1 / 1188 - inverse * 691 / 360360)))
        )
    ) / m
    return np.where(n < 16, exact[np.minimum(n, 15.0).astype(np.intp)], series)


def _deviance(x: Floats, gap: Floats) -> Floats:
    """X log(x/mean) + mean - x, mean = x + gap; accurate where x is near its mean."""
    import numpy as np

    mean = x + gap
    ratio = -gap / (x + mean)
    square = np.square(ratio)
    # 2 atanh(v) = log((1+v)/(1-v)): the first term of the series is what cancels.
    series = np.zeros_like(x)
    for k in range(14, 0, -1):
        series = square * (1.0 / (2 * k + 1) + series)
    near = 2.0 * x * ratio * series - gap * ratio
    far = x * np.log(x / mean) + gap
    return np.where(np.abs(ratio) < 0.25, near, far)


def _first_exits(distance: float, n: int) -> float:
    """P(D_n >= distance), exactly, as a sum over where the values first leave the band.

    The number N of values up to a time, in units in which n pass, is a Poisson process that has
    come to n at time n (M. Noe, Ann. Math. Stat. 43, 1972; V. Moscovich and B. Nadler, Stat.
    Probab. Lett. 123, 2017). It must stay within n D of the time. Which N are inside changes at two
    moments in each unit of time; what is lost there is weighed with the probability of coming to n
    all the same. No term is negative, so that small probabilities keep their digits.
    """
    import numpy as np

    reach = n * distance
    top = math.ceil(reach)
    gap = top - reach
    inside, low = np.zeros(top), 0  # probabilities of N = low, low + 1, ...
    inside[0] = 1.0
    kernels = [_poisson(step) for step in _steps(gap)]
    counts, times, lost = [], [], []
    for moment in range(2 * n):
        unit, second = divmod(moment, 2)
        opens = second == (gap > 0.5)
        time = unit + gap if opens else unit + 1.0 - gap
        if time >= n or not len(inside):
            break
        kernel = kernels[0 if moment == 0 else 1 + second]
        moved = np.convolve(inside, kernel)
        inside, beyond = moved[: len(inside)], moved[len(inside) :]
        counts.append(low + len(inside) + np.arange(len(beyond)))
        times.append(np.full(len(beyond), time))
        lost.append(beyond)
        if opens:  # one more N is inside from now on
            inside = np.append(inside, 0.0)
        elif unit + 1 >= top:  # and the lowest is no more
            counts.append(np.array([low]))
            times.append(np.array([time]))
            lost.append(inside[:1])
            inside, low = inside[1:], low + 1
    weights = _ways_on(np.concatenate(counts), np.concatenate(times), n)
    return min(1.0, float((np.concatenate(lost) * weights).sum()))


def _steps(gap: float) -> tuple[float, float, float]:
    """Time to the first moment, from the second in a unit on to the next, and between the two."""
    first, second = min(gap, 1.0 - gap), max(gap, 1.0 - gap)
    return first, 2.0 * first, second - first


def _poisson(mean: float) -> Floats:
    import numpy as np

    factors = np.append(1.0, mean / np.arange(1.0, _JUMP + 1.0))
    return math.exp(-mean) * np.cumprod(factors)


def _ways_on(counts: NDArray[np.intp], times: Floats, n: int) -> Floats:
    """P(N = n at time n | N at some time), in units of P(N = n at time n)."""
    import numpy as np

    ways = np.zeros(len(counts))
    error = float(_stirling_error(np.array([float(n)]))[0])
    some, none = counts < n, counts == n
    rest, gap = (n - counts[some]).astype(np.float64), counts[some] - times[some]
    log = error - _stirling_error(rest) - _deviance(rest, gap) + 0.5 * np.log(n / rest)
    ways[some] = np.exp(log)
    ways[none] = np.exp(times[none] - n + error + 0.5 * math.log(2.0 * math.pi * n))
    return ways


def _durbin(distance: float, n: int) -> float:
    """P(D_n < distance), exactly: J. Durbin's matrix, raised to its n-th power.

    As G. Marsaglia, W. W. Tsang and J. Wang do, "Evaluating Kolmogorov's distribution",
    J. Stat. Soft. 8(18) (2003).
    """
    import numpy as np

    k = math.ceil(n * distance)
    gap = k - n * distance
    size = 2 * k - 1
    order = np.arange(1, size + 1, dtype=np.float64)
    matrix = np.zeros((size, size))
    factorial = np.cumprod(1.0 / order)
    for row in range(size):
        matrix[row, : row + 1] = factorial[row::-1]
        if row + 1 < size:
            matrix[row, row + 1] = 1.0
    powers = gap**order
    matrix[:, 0] -= powers * factorial
    matrix[-1, :] -= (powers * factorial)[::-1]
    matrix[-1, 0] += max(0.0, 2.0 * gap - 1.0) ** size * factorial[-1]
    power, exponent = _scaled_power(matrix, n)
    value, shift = math.frexp(power[k - 1, k - 1])
    for i in range(1, n + 1):
        value, more = math.frexp(value * i / n)
        shift += more
    return math.ldexp(value, shift + exponent)


def _scaled_power(matrix: Floats, n: int) -> tuple[Floats, int]:
    """matrix^n as (mantissas, binary exponent): the entries leave float64's range."""
    import numpy as np

    result, result_exponent, exponent = np.eye(len(matrix)), 0, 0
    while n:
        if n & 1:
            result = result @ matrix
            result_exponent += exponent
            result, result_exponent = _rescaled(result, result_exponent)
        matrix = matrix @ matrix
        exponent *= 2
        matrix, exponent = _rescaled(matrix, exponent)
        n >>= 1
    return result, result_exponent


def _rescaled(matrix: Floats, exponent: int) -> tuple[Floats, int]:
    import numpy as np

    shift = math.frexp(float(np.abs(matrix).max()))[1]
    scaled: Floats = np.ldexp(matrix, -shift)
    return scaled, exponent + shift
