"""Statistics of filters together, and their p-values (METHOD, sections 2 to 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planescope.hyperplanes import chance
from planescope.hyperplanes.arrays import Flags, Floats


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a set of filters: a layer, a stage, a network.

    Every float is None where it has no meaning: no usable filter, no law (d = 1), no norm.

    Attributes
    ----------
    filters : int
        All filters, the ones left out included.
    degenerate, non_finite : int
        Filters left out: a zero normal; a NaN or an infinity.
    sideless : int
        Usable filters whose projection is within rounding of 0: they take part in all but
        negative_mass, agreement and p_mass.
    negative_mass : float
        m, share of usable filters that have a side with pi_i <= 0.
    mean_cosine, std_cosine, min_cosine, q25_cosine, median_cosine, q75_cosine, max_cosine : float
        Of c_i over usable filters; std is the population's (divided by N).
    mean_projection : float
        Mean of pi_i.
    agreement : float
        A = abs(2 m - 1).
    z : float
        Standard score of the mean cosine, ``sum_i c_i sqrt(d_i) / sqrt(N)``; that is
        ``mean_cosine sqrt(d N)`` in a layer.
    p_mass : float
        Exact two-sided binomial test of the negative mass.
    p_cosine : float
        Kolmogorov-Smirnov test of all c_i against their laws at initialisation.
    negative_centre, mean_centre : float
        Share of kappa_i < 0, and mean of kappa_i, over filters with beta and gamma not 0.
    p_centre : float
        Exact two-sided sign test of negative_centre.
    """

    filters: int
    degenerate: int
    non_finite: int
    negative_mass: float | None
    mean_cosine: float | None
    std_cosine: float | None
    min_cosine: float | None
    q25_cosine: float | None
    median_cosine: float | None
    q75_cosine: float | None
    max_cosine: float | None
    mean_projection: float | None
    agreement: float | None
    z: float | None
    p_mass: float | None
    p_cosine: float | None
    negative_centre: float | None
    mean_centre: float | None
    p_centre: float | None
    sideless: int = 0  # files of before do not tell


@dataclass(frozen=True, kw_only=True, eq=False)
class Filters:
    """Values of each filter, on the host in float64; each array has shape (filters,).

    Attributes
    ----------
    projection, norm, cosine, bias : array
        pi_i, ||w_i||, c_i, b_i; of the chosen view. `bias` is 0 where the layer has none.
    crossing, offset : array
        t_i and s_i; NaN where there is none.
    centre : array or None
        kappa_i, NaN where gamma or beta is 0; None where no norm follows and no data were given.
    rate : array or None
        P(z_i > 0) over the data; None where none were given.
    sideless : array of bool, or None
        Whether pi_i is within rounding of 0; None where nobody asked: then where it is 0.
    law : array or None
        P(C <= c_i) at initialisation, as `cosine_law` gives it; None where it is not worked out.
    """

    projection: Floats
    norm: Floats
    cosine: Floats
    bias: Floats
    crossing: Floats
    offset: Floats
    centre: Floats | None
    rate: Floats | None = None
    sideless: Flags | None = None
    law: Floats | None = None

    @property
    def finite(self) -> Flags:
        """Return the filters without a NaN or an infinity."""
        finite: Flags = (
            np.isfinite(self.norm) & np.isfinite(self.projection) & np.isfinite(self.bias)
        )
        return finite

    @property
    def usable(self) -> Flags:
        """Return the filters that enter the statistics: finite, with a normal that is not zero."""
        return self.finite & (self.norm > 0)

    @property
    def sided(self) -> Flags:
        """Return filters whose normals face one way or the other, the unusable ones among them."""
        return self.projection != 0 if self.sideless is None else ~self.sideless


def summarise(filters: Filters, fan_in: Floats | int, /) -> Statistics:
    """Return the statistics of some filters.

    Parameters
    ----------
    filters : Filters
    fan_in : int, or array of shape (filters,)
        d of each filter; it differs where filters of several layers are pooled.
    """
    usable, finite = filters.usable, filters.finite
    law = cosine_law(filters, fan_in) if filters.law is None else filters.law
    projection, cosine = filters.projection[usable], filters.cosine[usable]
    d = np.broadcast_to(fan_in, usable.shape)[usable]
    n = len(cosine)
    sides = projection[filters.sided[usable]]
    told, negative = len(sides), int(np.count_nonzero(sides <= 0))
    smallest, q25, median, q75, largest = _quantiles(cosine)
    signs, mean_centre = _centres(filters)
    return Statistics(
        filters=len(usable),
        degenerate=int(np.count_nonzero(finite & ~usable)),
        non_finite=int(np.count_nonzero(~finite)),
        sideless=n - told,
        negative_mass=negative / told if told else None,
        mean_cosine=float(cosine.mean()) if n else None,
        std_cosine=float(cosine.std()) if n else None,
        min_cosine=smallest,
        q25_cosine=q25,
        median_cosine=median,
        q75_cosine=q75,
        max_cosine=largest,
        mean_projection=_mean(projection),
        agreement=abs(2 * negative - told) / told if told else None,
        z=float((cosine * np.sqrt(d)).sum() / math.sqrt(n)) if n else None,
        p_mass=chance.mass_p_value(negative, told) if told else None,
        p_cosine=_cosine_p_value(law),
        negative_centre=signs[0] / signs[1] if signs[1] else None,
        mean_centre=mean_centre,
        p_centre=chance.mass_p_value(*signs) if signs[1] else None,
    )


def _mean(values: Floats) -> float | None:
    """Return the mean of values of any size, rounded once.

    What cancels leaves what it does not cancel.
    """
    if not len(values):
        return None
    # A sum of large float64 values could overflow where their mean cannot.
    largest = float(np.abs(values).max())
    shift = max(0, math.frexp(largest)[1] + len(values).bit_length() - 1023)
    total = math.fsum(np.ldexp(values, -shift).tolist() if shift else values.tolist())
    return math.ldexp(total / len(values), shift)


def _quantiles(values: Floats) -> list[float | None]:
    """Return the minimum, quartiles and maximum, interpolated linearly as numpy.quantile does.

    Its general machinery costs more than the whole rest of `summarise`.
    """
    if not len(values):
        return [None] * 5
    ordered = np.sort(values)
    spots = np.array([0.0, 0.25, 0.5, 0.75, 1.0]) * (len(values) - 1)
    return [float(q) for q in np.interp(spots, np.arange(len(values)), ordered)]


def cosine_law(filters: Filters, fan_in: Floats | int, /) -> Floats:
    """Return P(C <= c_i) at initialisation, uniform on [0, 1]; NaN where there is no such law.

    That is for filters that are not usable, and for d = 1 (depthwise 1x1), whose law is not
    continuous: these take no part in the test.
    """
    d = np.broadcast_to(fan_in, filters.cosine.shape)
    lawful = filters.usable & (d >= 2)
    law = np.full(filters.cosine.shape, np.nan)
    law[lawful] = chance.cosine_cdf(filters.cosine[lawful], d[lawful])
    return law


def _cosine_p_value(law: Floats) -> float | None:
    lawful = law[np.isfinite(law)]
    return chance.kolmogorov_smirnov(lawful) if len(lawful) else None


def _centres(filters: Filters) -> tuple[tuple[int, int], float | None]:
    """Return (negative ones, all that tell) and mean of the centres.

    A degenerate filter has no hyperplane, so it has no side of it either; gamma = 0 or beta = 0
    leaves a NaN.
    """
    if filters.centre is None:
        return (0, 0), None
    told = filters.centre[filters.usable & np.isfinite(filters.centre)]
    if not len(told):
        return (0, 0), None
    return (int(np.count_nonzero(told < 0)), len(told)), _mean(told)
