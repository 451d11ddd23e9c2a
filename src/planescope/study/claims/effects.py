"""Effects: means and differences over runs, with their intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALL = "all networks"
_ROUNDING = 1e-9  # shares of the largest value


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One comparison.

    Attributes
    ----------
    claim : int
        Of `CLAIMS`.
    network : str
        Of which network, or ``"all networks"``.
    comparison, measure : str
        What is compared with what, and in what.
    runs, others : int
        Runs on the two sides; 0 others where the same runs are compared with themselves.
    before, after : float or None
        Means of the two sides.
    effect : float
    low, high : float or None
        `after` less `before`, and its 95 % interval: Student's over runs, Welch's between groups,
        within what a difference of shares can be.
    p : float or None
        Two-sided, by the same law. None with one run, or where no run differs from another.
    q : float or None
        Corrected over all tests of the claim (Benjamini-Hochberg); what two claims compare is
        tested in the first of them.
    """

    claim: int
    network: str
    comparison: str
    measure: str
    runs: int
    others: int
    before: float | None
    after: float | None
    effect: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    q: float | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the texts of a table's row."""
        interval = "" if self.low is None else f"{self.low:+.2f} to {self.high:+.2f}"
        return (
            self.network,
            self.comparison,
            self.measure,
            f"{self.runs}" + (f" and {self.others}" if self.others else ""),
            _number(self.before, ".2f"),
            _number(self.after, ".2f"),
            _number(self.effect, "+.2f"),
            interval,
            _number(self.p, ".2g"),
            _number(self.q, ".2g"),
        )


# What `Effect.cells` gives.
COLUMNS = (
    "network", "comparison", "measure", "runs", "from", "to", "effect", "95 % interval", "p", "q",
)  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference: its value, the variance of that, and the degrees of freedom."""

    value: float
    variance: float
    freedom: float

    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """Return 95 % interval and p-value."""
        from scipy.special import stdtr, stdtrit

        if not self.freedom or not self.variance:
            return None, None, None
        error = math.sqrt(self.variance)
        half = float(stdtrit(self.freedom, 0.975)) * error
        p = 2 * float(stdtr(self.freedom, -abs(self.value) / error))
        return self.value - half, self.value + half, p


def mean(values: Sequence[float]) -> Estimate:
    """Estimate a mean over runs; what differs by rounding alone has no spread to judge by."""
    count = len(values)
    differs = np.ptp(values) > _ROUNDING * np.max(np.abs(values))
    variance = float(np.var(values, ddof=1)) / count if differs else 0.0
    return Estimate(float(np.mean(values)), variance, count - 1)


def difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Return Welch's difference."""
    sides = [mean(after), mean(before)]
    return Estimate(sides[0].value - sides[1].value, *_pooled(sides, 1.0))


def _average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent ones, each counting alike."""
    count = len(estimates)
    value = sum(one.value for one in estimates) / count
    if not all(one.variance for one in estimates):
        return Estimate(value, 0.0, 0.0)  # runs that happen to agree do not make it certain
    return Estimate(value, *_pooled(estimates, 1 / count))


def _pooled(estimates: Sequence[Estimate], weight: float) -> tuple[float, float]:
    """Return the variance of a weighted sum, and its degrees of freedom (Satterthwaite)."""
    if not all(one.freedom for one in estimates):
        return 0.0, 0.0
    parts = [weight * weight * one.variance for one in estimates]
    spread = sum(p * p / one.freedom for p, one in zip(parts, estimates, strict=True))
    return sum(parts), sum(parts) ** 2 / spread if spread else 0.0


def effect_of(
    estimate: Estimate, *, before: float | None, after: float | None, **about: Any
) -> Effect:
    """Return an estimate as an effect, with its interval and test."""
    low, high, p = estimate.bounds()
    if low is not None and high is not None:
        # What is compared are shares: no difference of two lies beyond 1.
        low, high = max(low, -1.0), min(high, 1.0)
    return Effect(
        before=before, after=after, effect=estimate.value, low=low, high=high, p=p, **about
    )


def with_all(estimates: dict[str, Estimate]) -> Iterator[tuple[str, Estimate]]:
    """Yield the networks, and their mean where there are several of which the spread is known."""
    yield from estimates.items()
    if len(estimates) > 1:
        yield ALL, _average(list(estimates.values()))
