"""The law of Kolmogorov and Smirnov for a finite number of values, exact where that matters.

SciPy's own is an approximation from n = 140 on where n D^2 < 5, and to import it takes longer than
to measure a network. Its price: of the two exact forms, Durbin's matrix alone would give p-values
to 1e-9; `_first_exits` and its helpers, 75 lines, give the 1e-12 that docs/reliability.md states.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from planescope.hyperplanes.factorials import deviance, stirling_error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

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
# Multiplications in a product of matrices that OpenBLAS leaves to one thread (interface/gemm.c).
_ONE_THREAD = 1 << 18


def kolmogorov_smirnov(uniforms: ArrayLike, /) -> float:
    """Return the two-sided Kolmogorov-Smirnov p-value of values uniform on [0, 1] under chance.

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
    ordered = np.sort(np.asarray(uniforms, dtype=np.float64))
    n = ordered.size
    steps = np.arange(1, n + 1)
    largest = float(max(np.max(steps / n - ordered), np.max(ordered - (steps - 1) / n)))
    return kolmogorov_p_value(largest, n)


def kolmogorov_p_value(distance: float, n: int, /) -> float:
    """Return P(D_n >= distance) for the two-sided Kolmogorov-Smirnov distance of n values.

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


def _one_sided(distance: float, n: int) -> float:
    """Return P(D+ >= distance), exactly (Birnbaum and Tingey 1951).

    ``sum_j x/(x + j/n) Binomial(j; n, x + j/n)``, all terms positive; each binomial probability is
    taken in C. Loader's saddle-point form ("Fast and accurate computation of binomial
    probabilities", 2000), which keeps its relative accuracy far in the tail.
    """
    # j = 0 has no logarithm: its term is (1 - x)^n.
    terms, last = [math.exp(n * math.log1p(-distance))], math.floor(n * (1.0 - distance))
    shift = n * distance
    every = float(stirling_error(np.array([float(n)]))[0]) + 0.5 * math.log(n / (2.0 * math.pi))
    for start in range(1, last + 1, _TERMS):
        j = np.arange(start, min(start + _TERMS, last + 1), dtype=np.float64)
        j = j[j + shift < n]
        rest, mean = n - j, j + shift
        log = every + np.log(shift / mean) - 0.5 * (np.log(j) + np.log(rest))
        log -= stirling_error(j) + stirling_error(rest)
        log -= deviance(j, np.full_like(j, shift)) + deviance(rest, np.full_like(j, -shift))
        terms.append(float(np.exp(log).sum()))
    return math.fsum(terms)


def _two_sided(x: float, n: int) -> float:
    """Return P(D+ >= D and D- >= D), x = sqrt(n) D; what it leaves out falls as 1/n^2.

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


def _first_exits(distance: float, n: int) -> float:
    """Return P(D_n >= distance), exactly, as a sum over where the values first leave the band.

    The number N of values up to a time, in units in which n pass, is a Poisson process that has
    come to n at time n (M. Noe, Ann. Math. Stat. 43, 1972; V. Moscovich and B. Nadler, Stat.
    Probab. Lett. 123, 2017). It must stay within n D of the time. Which N are inside changes at two
    moments in each unit of time; what is lost there is weighed with the probability of coming to n
    all the same. No term is negative, so that small probabilities keep their digits.
    """
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
    factors = np.append(1.0, mean / np.arange(1.0, _JUMP + 1.0))
    return math.exp(-mean) * np.cumprod(factors)


def _ways_on(counts: NDArray[np.intp], times: Floats, n: int) -> Floats:
    """Return P(N = n at time n | N at some time), in units of P(N = n at time n)."""
    ways = np.zeros(len(counts))
    error = float(stirling_error(np.array([float(n)]))[0])
    some, none = counts < n, counts == n
    rest, gap = (n - counts[some]).astype(np.float64), counts[some] - times[some]
    log = error - stirling_error(rest) - deviance(rest, gap) + 0.5 * np.log(n / rest)
    ways[some] = np.exp(log)
    ways[none] = np.exp(times[none] - n + error + 0.5 * math.log(2.0 * math.pi * n))
    return ways


def _durbin(distance: float, n: int) -> float:
    """Return P(D_n < distance), exactly: J. Durbin's matrix, raised to its n-th power.

    As G. Marsaglia, W. W. Tsang and J. Wang do, "Evaluating Kolmogorov's distribution",
    J. Stat. Soft. 8(18) (2003).
    """
    k = math.ceil(n * distance)
    gap = k - n * distance
    size = 2 * k - 1
    order = np.arange(1, size + 1, dtype=np.float64)
    factorial = np.cumprod(1.0 / order)
    # By row less column: 1 / j! on and below the diagonal, 1 next above it.
    below = np.subtract.outer(np.arange(size), np.arange(size))
    matrix = np.concatenate([np.zeros(size), [1.0], factorial])[below + size + 1]
    powers = gap**order
    matrix[:, 0] -= powers * factorial
    matrix[-1, :] -= (powers * factorial)[::-1]
    matrix[-1, 0] += max(0.0, 2.0 * gap - 1.0) ** size * factorial[-1]
    power, exponent = _scaled_power(matrix, n)
    ways, shift = _orders(n)
    return math.ldexp(power[k - 1, k - 1] * ways, shift + exponent)


@functools.cache
def _orders(n: int) -> tuple[float, int]:
    """Return n! / n^n as (mantissa, binary exponent)."""
    value, shift = 1.0, 0
    for i in range(1, n + 1):
        value, more = math.frexp(value * i / n)
        shift += more
    return value, shift


# Mantissas, and the binary exponent of them all: powers leave float64's range.
_Scaled = tuple["Floats", int]


def _scaled_power(matrix: Floats, n: int) -> _Scaled:
    """Return matrix^n for n of 1 or more."""
    square = _rescaled(matrix, 0)
    power: _Scaled | None = None
    while n:
        if n & 1:
            power = square if power is None else _times(power, square)
        n >>= 1
        if n:
            square = _times(square, square)
    assert power is not None  # noqa: S101
    return power


def _times(one: _Scaled, other: _Scaled) -> _Scaled:
    return _rescaled(_product(one[0], other[0]), one[1] + other[1])


def _product(one: Floats, other: Floats) -> Floats:
    """Multiply by blocks of rows, each small enough for the library not to start threads.

    Where other processes are at work its threads wait for one another: a product of some
    microseconds then costs milliseconds.
    """
    rows = max(1, _ONE_THREAD // other.size)
    if rows >= len(one):
        return one @ other
    parts = [one[start : start + rows] @ other for start in range(0, len(one), rows)]
    return np.concatenate(parts)


def _rescaled(matrix: Floats, exponent: int) -> _Scaled:
    shift = math.frexp(float(np.abs(matrix).max()))[1]
    return matrix * math.ldexp(1.0, -shift), exponent + shift
