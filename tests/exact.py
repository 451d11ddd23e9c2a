"""Figures as mpmath, fractions and integers have them, and how far ours are from them.

``python tests/exact.py`` prints the table of docs/reliability.md; `test_numbers` holds each line to
its bound.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
from mpmath import mp, mpf

from planescope.hyperplanes import chance, geometry
from planescope.hyperplanes.distances import distances
from planescope.hyperplanes.statistics import summarise
from planescope.measurement.assemble import filters_on_host

mp.dps = 50


@dataclass(frozen=True)
class Case:
    """Figures of one kind: `errors` gives how far each is off, in the measure that `of` names."""

    name: str
    of: str
    errors: Callable[[], Iterator[float]]
    bound: float
    slow: bool = False

    def worst(self) -> float:
        return max(self.errors())


CASES: list[Case] = []


def case(name, *, bound, of="relative", slow=False):
    def add(errors):
        CASES.append(Case(name, of, errors, bound, slow))
        return errors

    return add


def relative(found, exact) -> float:
    """NaN, which no bound is above, where one of the two is none."""
    found = mpf(float(found))
    if not mp.isfinite(exact) or not mp.isfinite(found):
        return 0.0 if str(found) == str(exact) else math.inf
    return float(abs(found - exact) / abs(exact)) if exact else float(abs(found) > 0)


def absolute(found, exact) -> float:
    return float(abs(mpf(float(found)) - exact))


# --- exact figures


def exact(row):
    """Projection, norm and cosine of one filter."""
    weights = [mpf(float(weight)) for weight in row]
    total, norm = mp.fsum(weights), mp.sqrt(mp.fsum(weight * weight for weight in weights))
    return total, norm, total / (norm * mp.sqrt(len(weights))) if norm else mp.nan


def quantile(ordered, share):
    spot = mpf(share) * (len(ordered) - 1)
    low = int(mp.floor(spot))
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (spot - low) * (ordered[high] - ordered[low])


def has_side(row, total):
    """Whether a projection is further from 0 than roundings of its weights."""
    magnitude = mp.fsum(abs(mpf(float(weight))) for weight in row)
    return abs(total) > 4 * mpf(float(np.finfo(row.dtype).eps)) * magnitude


def exact_statistics(rows):
    """All of METHOD, section 2 and 3, of filters that are all usable."""
    values = [exact(row) for row in rows]
    n, d = len(rows), len(rows[0])
    cosines = sorted(cosine for _, _, cosine in values)
    sided = [total for row, (total, _, _) in zip(rows, values, strict=True) if has_side(row, total)]
    told, negative = len(sided), sum(total < 0 for total in sided)
    mean = mp.fsum(cosines) / n
    far = distance([cosine_law(c, d) for c in cosines]) if d > 1 else None
    return {
        "negative_mass": mpf(negative) / told if told else None,
        "agreement": abs(2 * mpf(negative) / told - 1) if told else None,
        "mean_projection": mp.fsum(total for total, _, _ in values) / n,
        "mean_cosine": mean,
        "std_cosine": mp.sqrt(mp.fsum((cosine - mean) ** 2 for cosine in cosines) / n),
        "min_cosine": cosines[0],
        "q25_cosine": quantile(cosines, 0.25),
        "median_cosine": quantile(cosines, 0.5),
        "q75_cosine": quantile(cosines, 0.75),
        "max_cosine": cosines[-1],
        "z": mean * mp.sqrt(d * n),
        "p_mass": binomial(negative, told) if told else None,
        "p_cosine": kolmogorov(far, n) if d > 1 else None,
        "distance": far,
    }


def binomial(negative, n):
    """Two-sided: the probability of what is as far from n/2."""
    k = min(negative, n - negative)
    if 2 * k == n:
        return mpf(1)
    term = mp.exp(mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1) - n * mp.log(2))
    total = term
    for i in range(k, 0, -1):
        term *= mpf(i) / (n - i + 1)
        total += term
        if term < total * mpf(10) ** -30:
            break
    return min(mpf(1), 2 * total)


def cosine_law(cosine, d):
    """P(c <= cosine) at initialisation."""
    half = mpf(d - 1) / 2
    if d > 5000:  # from the middle, as the tail would take too many terms
        peak = mp.gammaprod([half + mpf(1) / 2], [half]) / mp.sqrt(mp.pi)
        return mpf(1) / 2 + cosine * peak * mp.hyp2f1(0.5, 1 - half, 1.5, cosine**2)
    return mp.betainc(half, half, 0, (1 + cosine) / 2, regularized=True)


def distance(uniforms):
    ordered, n = sorted(uniforms), len(uniforms)
    return max(
        max(mpf(i + 1) / n - u, u - mpf(i) / n) for i, u in enumerate(ordered)
    )  # fmt: skip


def kolmogorov(distance, n):
    """P(D_n >= distance): Durbin's matrix in integers, or in the tail twice one side."""
    distance = mpf(distance)
    if distance >= 1:
        return mpf(0)
    if n * distance**2 > 30 or distance >= 0.5:
        return 2 * one_sided(distance, n)
    return 1 - durbin(distance, n)


def one_sided(distance, n):
    """P(D+ >= distance): Birnbaum and Tingey, from the largest term on to either side."""

    def term(j):
        p = distance + mpf(j) / n
        if p >= 1:
            return mpf(0)
        ways = mp.loggamma(n + 1) - mp.loggamma(j + 1) - mp.loggamma(n - j + 1)
        return distance / p * mp.exp(ways + j * mp.log(p) + (n - j) * mp.log1p(-p))

    last = int(mp.floor(n * (1 - distance)))
    middle = max(range(0, last + 1, max(1, n // 100)), key=term)
    total = mpf(0)
    for steps in (range(middle, last + 1), range(middle - 1, -1, -1)):
        for j in steps:
            found = term(j)
            total += found
            if found < total * mpf(10) ** -20:
                break
    return total


def durbin(distance, n):
    """P(D_n < distance), in fixed point with 400 bits behind it."""
    one = 1 << 400
    reach = n * distance
    k = int(mp.ceil(reach))
    gap, size = k - reach, 2 * k - 1
    inverse = [mpf(1) / mp.factorial(i) for i in range(size + 2)]
    matrix = mp.zeros(size, size)
    for i in range(size):
        for j in range(min(i + 2, size)):
            matrix[i, j] = inverse[i - j + 1]
    for i in range(size):
        matrix[i, 0] -= gap ** (i + 1) * inverse[i + 1]
        matrix[size - 1, i] -= gap ** (size - i) * inverse[size - i]
    if 2 * gap > 1:
        matrix[size - 1, 0] += (2 * gap - 1) ** size * inverse[size]
    base = np.array([[int(matrix[i, j] * one) for j in range(size)] for i in range(size)], object)
    # One entry of the n-th power is asked for: its row is enough, and the matrix is squared only
    # where that spares more steps of the row than it costs.
    row = np.array([one * (j == k - 1) for j in range(size)], object)
    rest = n
    while rest:
        if rest % 2 or rest < 2 * size:
            row = (row @ base) >> 400
            rest -= 1
        else:
            base = (base @ base) >> 400
            rest //= 2
    return mpf(int(row[k - 1])) / one * mp.factorial(n) / mpf(n) ** n


# --- layers that are hard


def mixed(rng, shape, dtype):
    """Weights from 1e-30 to 1e30."""
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-30, 30, shape)).astype(dtype)


def cancelling(rng, shape, dtype, *, left):
    """Weights of which each has its negative, but one that differs a little."""
    half = mixed(rng, (shape[0], shape[1] // 2), dtype)
    rows = np.concatenate([half, -half, np.zeros((shape[0], shape[1] % 2), dtype)], axis=1)
    rows[:, 0] += np.abs(rows[:, 0]) * dtype(left) * rng.choice([-1, 1], shape[0]).astype(dtype)
    rows[:, -1] += dtype(1e-30)
    return rows[:, rng.permutation(shape[1])]


def of_planes(rows):
    """Errors of projections, norms and cosines; a side that is wrong is one of infinity."""
    planes = geometry.arrangement(rows)
    plain = rows.double().numpy() if hasattr(rows, "double") else rows
    for i, row in enumerate(plain):
        total, norm, cosine = exact(row)
        if (planes.projection[i] <= 0) != (total <= 0):
            yield math.inf
        yield relative(planes.projection[i], total)
        yield relative(planes.norm[i], norm)
        if norm and abs(cosine) > 1e-300:
            yield relative(planes.cosine[i], cosine)


SHAPES = ((20, 9), (10, 576), (2, 4608))


@case("weights from 1e-30 to 1e30, float32 and float64: projection, norm, cosine", bound=1e-12)
def _():
    for dtype in (np.float32, np.float64):
        for shape in SHAPES:
            yield from of_planes(mixed(np.random.default_rng(0), shape, dtype))


@case("weights from 1e-30 to 1e30, all of which cancels but 1e-18 to 1e-6 of it", bound=1e-12)
def _():
    for dtype in (np.float32, np.float64):
        for left in (0, 1e-18, 1e-14, 1e-12, 1e-9, 1e-6):
            for shape in SHAPES[:2]:
                yield from of_planes(cancelling(np.random.default_rng(1), shape, dtype, left=left))


@case("denormals of float16, float32, float64: projection, cosine", bound=1e-14)
def _():
    rng = np.random.default_rng(2)
    for dtype, least in ((np.float16, 6e-8), (np.float32, 1e-45), (np.float64, 5e-324)):
        for d in (1, 9, 1000):
            rows = (rng.integers(-40, 41, (20, d)) * np.float64(dtype(least))).astype(dtype)
            planes = geometry.arrangement(rows)
            for i, row in enumerate(rows):
                total, norm, cosine = exact(row)
                yield relative(planes.projection[i], total)
                if norm:
                    yield relative(planes.cosine[i], cosine)


@case("norms beyond float16, bfloat16, float8 (e4m3, e5m2), float32", bound=1e-14)
def _():
    import torch

    rng = np.random.default_rng(3)
    types = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float32)
    for dtype in types:
        largest = torch.finfo(dtype).max
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], (6, 900), p=[0.3, 0.7]))
        yield from of_planes((signs * largest).to(dtype))


@case("filters of ten million weights, float32 and float64", bound=1e-12, slow=True)
def _():
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(4)
        rows = rng.standard_normal((2, 10**7)).astype(dtype)
        rows[1, ::2] = -rows[1, 1::2]
        rows[1, 7] += dtype(1e-3)
        planes = geometry.arrangement(rows)
        for i, row in enumerate(rows):
            norm = mp.sqrt(mpf(math.fsum(map(_square_sum, np.split(row, 1000)))))
            total = mpf(math.fsum(row.tolist()))
            yield relative(planes.projection[i], total)
            yield relative(planes.norm[i], norm)
            yield relative(planes.cosine[i], total / (norm * mp.sqrt(10**7)))


def _square_sum(part):
    """Sum of the squares of ten thousand weights, in pairs: good to 1e-14 of it."""
    return np.square(part, dtype=np.float64).sum()


# --- statistics of a layer


def of_statistics(rows):
    with np.errstate(all="ignore"):
        filters = filters_on_host(geometry.arrangement(rows), None)
    found = summarise(filters, rows.shape[1])
    scale = mp.sqrt(rows.shape[0] * rows.shape[1])
    statistics = exact_statistics(rows)
    # Of a distance near 1 the p-value goes with what is left to 1, which has few digits.
    lost = (statistics.pop("distance") or 0) > 0.99
    for name, wanted in statistics.items():
        value = getattr(found, name)
        if wanted is None:
            yield math.inf if value is not None else 0.0
        elif name == "p_cosine" and lost:
            continue
        elif name.endswith("cosine") and name != "p_cosine":
            yield absolute(value, wanted)
        elif name == "z":
            yield absolute(value, wanted) / float(scale)
        elif name == "mean_projection":
            largest = float(np.abs(filters.projection).max()) or 1.0
            yield absolute(value, wanted) / largest
        else:
            yield relative(value, wanted)


@case(
    "all statistics of layers: N = 1, d = 1, mixed weights, near sums",
    of="relative; of cosines and z/√(dN) absolute",
    bound=1e-12,
)
def _():
    rng = np.random.default_rng(5)
    for n, d in ((1, 1), (1, 27), (2, 1), (40, 1), (9, 2), (64, 9), (12, 576), (3, 4608)):
        for dtype in (np.float32, np.float64):
            yield from of_statistics(rng.standard_normal((n, d)).astype(dtype) + dtype(0.05))
            yield from of_statistics(mixed(rng, (n, d), dtype))
            if d > 1:
                yield from of_statistics(cancelling(rng, (n, d), dtype, left=1e-12))


@case(
    "mass, mean, deviation, z, quartiles of a million filters, d = 1 and 9",
    of="relative; of cosines and z/√(dN) absolute",
    bound=1e-12,
    slow=True,
)
def _():
    rng = np.random.default_rng(6)
    n = 10**6
    for d in (1, 9):
        rows = (rng.standard_normal((n, d)) - 0.005).astype(np.float32)
        rows[: n // 100] = 0.0
        found = summarise(filters_on_host(geometry.arrangement(rows), None), d)
        wide = rows[n // 100 :].astype(np.float64)
        columns = wide.T.tolist()
        totals = list(map(math.fsum, zip(*columns, strict=True)))
        sizes = [norm * math.sqrt(d) for norm in map(math.hypot, *columns)]
        cosines = sorted(total / size for total, size in zip(totals, sizes, strict=True))
        usable = len(totals)
        mean = mpf(math.fsum(cosines)) / usable
        middle = float(mean)
        squares = math.fsum((cosine - middle) ** 2 for cosine in cosines)
        yield relative(found.degenerate, mpf(n - usable))
        bounds = 4 * float(np.finfo(np.float32).eps) * np.abs(wide).sum(axis=1)
        sided = [t for t, bound in zip(totals, bounds.tolist(), strict=True) if abs(t) > bound]
        told, negative = len(sided), sum(total < 0 for total in sided)
        yield relative(found.sideless, mpf(usable - told))
        yield relative(found.negative_mass, mpf(negative) / told)
        yield relative(found.p_mass, binomial(negative, told))
        yield relative(found.mean_projection, mpf(math.fsum(totals)) / usable)
        yield absolute(found.mean_cosine, mean)
        yield absolute(found.z, mean * mp.sqrt(d * usable)) / math.sqrt(d * usable)
        yield absolute(found.std_cosine, mp.sqrt(mpf(squares) / usable))
        for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            yield absolute(getattr(found, f"{name}_cosine"), quantile(cosines, share))


@case("mean projection of filters that cancel: 1e30, -1e30, 1e-30; 1e308; 5e-324", bound=1e-15)
def _():
    for column in ([1e30, -1e30, 1e-30], [1.7e308] * 5, [5e-324] * 3, [1e308, -1e308, 1.0]):
        rows = np.array(column)[:, None]
        found = summarise(filters_on_host(geometry.arrangement(rows), None), 1).mean_projection
        yield relative(found, mp.fsum(map(mpf, column)) / len(column))


# --- p-values


def counts(n):
    """How far from n/2, down to a p-value of 1e-300."""
    for z in (0.2, 0.7, 1.5, 3, 6, 12, 20, 30, 36):
        negative = n // 2 - round(z * math.sqrt(n) / 2)
        if negative >= 0:
            yield negative


@case("p_mass against mpmath, N from 1 to a million, down to 1e-300", bound=1e-12)
def _():
    for n in (1, 2, 3, 47, 999, 5504, 10**5, 10**6):
        for negative in counts(n):
            wanted = binomial(negative, n)
            if wanted > 1e-300:
                yield relative(chance.mass_p_value(negative, n), wanted)


@case("p_mass against scipy.stats.binomtest, N up to 5,504, down to 1e-300", bound=1e-11)
def _():
    import scipy.stats

    for n in (1, 2, 3, 47, 999, 5504):
        for negative in counts(n):
            wanted = scipy.stats.binomtest(negative, n).pvalue
            if wanted > 1e-300:
                yield relative(chance.mass_p_value(negative, n), mpf(float(wanted)))


REACHES = (0.1, 0.5, 1.0, 1.6, 2.0, 2.6, 3.1, 3.6, 4.2, 4.7, 4.99, 5.01)


@case("Kolmogorov-Smirnov against Durbin's matrix in integers, n up to 150", bound=1e-12)
def _():
    for n in (1, 2, 5, 9, 20, 41, 80, 150):
        for reach in REACHES if n < 80 else REACHES[1::3]:
            far = math.sqrt(reach / n)
            if 0.5 / n < far < 1:
                yield relative(chance.kolmogorov_p_value(far, n), kolmogorov(far, n))


@case("Kolmogorov-Smirnov against the same, n = 500 and 2,000", bound=1e-12, slow=True)
def _():
    for n, reaches in ((500, REACHES[2::2]), (2000, (2.0,))):
        for reach in reaches:
            far = math.sqrt(reach / n)
            yield relative(chance.kolmogorov_p_value(far, n), kolmogorov(far, n))


@case("Kolmogorov-Smirnov in the tail against mpmath, n up to 100,000, to 1e-300", bound=1e-12)
def _():
    for n in (40, 200, 2000, 10**5):
        for reach in (35, 150, 340) if n < 10**4 else (340,):
            far = math.sqrt(reach / n)
            if far < 1:
                wanted = 2 * one_sided(mpf(far), n)
                if wanted > 1e-300:
                    yield relative(chance.kolmogorov_p_value(far, n), wanted)


@case("Kolmogorov-Smirnov against scipy.stats.kstwo where that is exact, n up to 140", bound=5e-12)
def _():
    import scipy.stats

    for n in (5, 20, 50, 100, 140):
        for reach in (*REACHES, 10, 20, 30):
            far = math.sqrt(reach / n)
            if 0.5 / n < far < 1:
                wanted = mpf(float(scipy.stats.kstwo.sf(far, n)))
                yield relative(chance.kolmogorov_p_value(far, n), wanted)


@case("law of the cosine against mpmath, d from 2 to ten million", of="absolute", bound=3e-15)
def _():
    for d in (2, 3, 9, 27, 576, 4608, 10**5, 10**7):
        for deviations in (-8, -3, -1.1, -0.3, -1e-3, 0, 0.2, 1.7, 5):
            cosine = deviations / math.sqrt(d)
            if abs(cosine) <= 1:
                yield absolute(chance.cosine_cdf(cosine, d), cosine_law(mpf(cosine), d))


@case("Benjamini-Hochberg against fractions, p from 1 to 1e-320", bound=1e-15)
def _():
    rng = np.random.default_rng(7)
    for count in (1, 7, 150):
        given = [float(p) for p in 10.0 ** -rng.uniform(0, 307, count)] + [5e-324, 1e-320, 1.0]
        found = chance.benjamini_hochberg(given)
        order = sorted(range(len(given)), key=given.__getitem__)
        smallest = Fraction(1)
        for rank in range(len(given), 0, -1):
            i = order[rank - 1]
            smallest = min(smallest, Fraction(given[i]) * len(given) / rank)
            if smallest > Fraction(1, 10**306):
                yield relative(found[i], mpf(smallest.numerator) / smallest.denominator)


# --- what surrounds the weights


@case(
    "crossing, offset, centre, effective view; gamma and variance from 1e-30 to 1e30", bound=1e-14
)
def _():
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((200, 27)).astype(np.float32)
    bias, gamma, beta, mean = (mixed(rng, 200, np.float32) for _ in range(4))
    variance = np.abs(mixed(rng, 200, np.float32))
    raw = geometry.arrangement(rows, bias)
    found = geometry.effective(raw, gamma, beta, mean, variance, 1e-5)
    crossing, offset = geometry.crossing(raw.projection, bias), geometry.offset(raw.norm, bias)
    centre = geometry.centre(gamma, beta)
    for i, row in enumerate(rows):
        total, norm, cosine = exact(row)
        b, g, t, m, v = (mpf(float(x[i])) for x in (bias, gamma, beta, mean, variance))
        scale = g / mp.sqrt(v + mpf(1e-5))
        yield relative(crossing[i], -b / total)
        yield relative(offset[i], b / norm)
        yield relative(centre[i], t / abs(g))
        yield relative(found.projection[i], scale * total)
        yield relative(found.norm[i], abs(scale) * norm)
        yield relative(found.cosine[i], mp.sign(scale) * cosine)
        # Of a sum that cancels the error goes with its parts.
        parts = abs(t) + abs(scale) * (abs(b) + abs(m))
        yield float(abs(mpf(float(found.bias[i])) - (t + scale * (b - m))) / parts)


@case("distances l2 and linf; float16, float32, float64, moves of 1e-7 to 1e60 times", bound=1e-14)
def _():
    rng = np.random.default_rng(9)
    for dtype in (np.float16, np.float32, np.float64):
        start = rng.standard_normal((7, 60)).astype(dtype)
        pairs = [(rng.standard_normal((7, 60)).astype(dtype), start), (start * dtype(1.01), start)]
        if dtype is not np.float16:
            pairs += [(start * dtype(1 + 3e-7), start), (start * dtype(1e30), start * dtype(1e-30))]
            pairs += [(mixed(rng, (7, 60), dtype), mixed(rng, (7, 60), dtype))]
        largest = np.full((2, 3), np.finfo(np.float32).max, np.float32)
        pairs += [(largest, -largest)] * (dtype is np.float32)
        for now, then in pairs:
            before = [mpf(float(w)) for w in then.ravel()]
            moved = [mpf(float(w)) - b for w, b in zip(now.ravel(), before, strict=True)]
            l2 = mp.sqrt(mp.fsum(m * m for m in moved)) / mp.sqrt(mp.fsum(b * b for b in before))
            found = distances(now, then)
            yield relative(found[0], l2)
            yield relative(found[1], max(map(abs, moved)) / max(map(abs, before)))


@case("centre and activation rate from data, a deviation of 1e-6 of the mean", bound=1e-9)
def _():
    import torch
    from torch import nn

    from planescope.measurement.activations import measure_activations

    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0], [2.0**-40], [-(2.0**60)]])
    inputs = 1 + 2.0**-20 * torch.randint(0, 9, (1000, 1), generator=generator)
    found = measure_activations(nn.Sequential(layer), inputs.split(77), {"0": "0"})["0"]
    for i, weight in enumerate(layer.weight[:, 0].tolist()):
        values = [Fraction(x) * Fraction(weight) for x in inputs[:, 0].tolist()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        deviation = mp.sqrt(mpf(variance.numerator) / variance.denominator)
        mean = mpf(mean.numerator) / mean.denominator
        yield relative(found.mean[i], mean)
        yield relative(found.centre[i], mean / deviation)
        yield relative(found.rate[i], mpf(weight > 0))


@case("norms of scores: Frobenius, spectral, stable rank; weights of 1e30 and 1e-30", bound=1e-12)
def _():
    from planescope.criticality.scores import _norms

    rng = np.random.default_rng(10)
    for rows in (
        *(rng.standard_normal((5, 9)).astype(np.float32) * np.float32(s) for s in (1, 1e-30, 1e30)),
        mixed(rng, (6, 4), np.float32),
        mixed(rng, (3, 8), np.float64),
    ):
        frobenius, spectral = _norms(np.array(rows, dtype=np.float64))
        largest = mp.svd_r(mp.matrix(rows.astype(float).tolist()), compute_uv=False)[0]
        yield relative(frobenius, mp.sqrt(mp.fsum(mpf(float(w)) ** 2 for w in rows.ravel())))
        yield relative(spectral, largest)


@case("Wilson intervals and sequential p-values against mpmath, down to 1e-300", bound=1e-12)
def _():
    from planescope.criticality.confidence import sequential_change_p_value
    from planescope.hyperplanes.chance import wilson

    z = mpf("1.959963984540054235524594430520551")
    for right, seen in ((0, 7), (7, 7), (1, 10**9), (3, 10**6), (999_999, 10**6), (5, 10)):
        share, square = mpf(right) / seen, z * z / seen
        middle, half = share + square / 2, mp.sqrt(share * (1 - share) * square + square**2 / 4)
        low, high = wilson(right, seen)
        yield relative(low, (middle - half) / (1 + square)) if right else low
        yield relative(high, (middle + half) / (1 + square))
    for n, share in ((10, 0.9), (1000, 0.6), (20_000, 0.55), (1000, 1.0)):
        before = np.random.default_rng(11).random(n) < share
        lost = np.cumsum(before)
        evidence = [
            c * math.log(2) + math.lgamma(k + 1) + math.lgamma(c - k + 1) - math.lgamma(c + 2)
            for c, k in enumerate(lost.tolist(), start=1)
        ]
        c = int(np.argmax(evidence)) + 1
        k = int(lost[c - 1])
        wealth = mpf(2) ** c * mp.beta(k + 1, c - k + 1)
        yield relative(sequential_change_p_value(before, ~before), min(mpf(1), 1 / wealth))


# --- files and live networks


@case("a file (npz), a filter larger than what is summed at a time: planes", bound=1e-12)
def _():
    import tempfile

    import planescope as ps

    rng = np.random.default_rng(12)
    rows = cancelling(rng, (3, 140_001), np.float32, left=1e-6)
    few = cancelling(rng, (50, 900), np.float32, left=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.npz"
        np.savez(path, **{"a.weight": rows, "b.weight": few})
        measured = ps.measure(path, kinds="linear").layers
    for layer, weights in zip(measured, (rows, few), strict=True):
        for i, row in enumerate(weights):
            total, norm = mpf(math.fsum(row.tolist())), mp.sqrt(sum(map(_fraction_square, [row])))
            yield relative(layer.values.projection[i], total)
            yield relative(layer.values.norm[i], norm)


def _fraction_square(row):
    return mpf(math.fsum((row.astype(np.float64) ** 2).tolist()))  # squares of float32 are exact


@case(
    "Tracker's pass in float32 pieces: cosines; signs are exact",
    of="absolute",
    bound=1e-6,
)
def _():
    from planescope.training.tracker import onepass

    rng = np.random.default_rng(13)
    with np.errstate(all="ignore"):
        for rows in (
            rng.standard_normal((100, 2304)).astype(np.float32),
            mixed(rng, (100, 2304), np.float32),
            cancelling(rng, (100, 1500), np.float32, left=1e-6),
            cancelling(rng, (100, 1500), np.float32, left=0),
            rng.integers(-9, 10, (100, 1500)).astype(np.float32) * np.float32(1e-45),
        ):
            assert rows.size > onepass._WORTH
            planes, _ = onepass.read(rows, None, None)
            for i, row in enumerate(rows):
                total = mpf(math.fsum(row.tolist()))
                norm = mp.sqrt(_fraction_square(row))
                if (planes.projection[i] <= 0) != (total <= 0):
                    yield math.inf
                yield absolute(planes.cosine[i], total / (norm * mp.sqrt(len(row))))


def main() -> None:
    print(f"{mpmath.__name__} {mpmath.__version__}, NumPy {np.__version__}, {os.uname().machine}")
    print("| case | measure | worst error | promised | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for one in CASES:
        if sys.argv[1:] and not any(word in one.name for word in sys.argv[1:]):
            continue
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            worst = one.worst()
        took = time.process_time() - began
        print(f"| {one.name} | {one.of} | {worst:.1e} | {one.bound:.0e} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
