"""The definition of "critical", for all that says it of a layer (METHOD, section 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.chance import CONFIDENCE

# Share of what a network knows beyond chance, above which its loss makes a layer critical.
THRESHOLD = 0.1
DRAWS = 2000
# Of a bootstrap's counts that are drawn at once.
_BLOCK = 1 << 22
# Kinds of rows, or columns, that are counted in place of being drawn one by one.
_FEW = 4


class Critical(StrEnum):
    """The verdict on whether the network needs what was replaced."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss of a changed network: the share of what it knew beyond chance that is gone.

    Attributes
    ----------
    value : float
        ``(a - a_r) / (a - a_0)``: a the trained metric, a_r the changed one, a_0 chance.
    low, high : float or None
        95 % interval; None where there is no value an example.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def critical(self) -> Critical | None:
        """Say on which side of the threshold the interval lies, or on both; None without one.

        METHOD, section 7: critical where the whole interval lies above 0.1.
        """
        return None if self.low is None or self.high is None else decide(self.low, self.high)


def decide(low: float, high: float, /, *, bound: float = THRESHOLD) -> Critical:
    """Compare an interval of the loss with the bound."""
    if low > bound:
        return Critical.YES
    return Critical.NO if high < bound else Critical.UNDECIDED


def agreed(found: Iterable[Critical | None], /) -> Critical | None:
    """Return the verdict of several draws of one layer: theirs where they agree.

    None where one of them has none.
    """
    kinds = set(found)
    if len(kinds) == 1:
        return kinds.pop()
    return Critical.UNDECIDED if kinds and None not in kinds else None


def is_robust(
    critical: Critical | None, loss: float | None, significant: bool | None, /, *, bound: float
) -> bool | None:
    """Tell whether a layer loses next to nothing; None where critical or not is not decided.

    Robust is a layer that is not critical and whose loss is up to `bound`, or within noise.
    """
    if critical is Critical.YES:
        return False
    if critical is not Critical.NO or loss is None:
        return None
    return loss <= bound or not significant


def loss(trained: float, changed: float, chance: float, /) -> Loss:
    """Give the loss without an interval, for metrics that have no value an example."""
    return Loss(value=(trained - changed) / (trained - chance))


def loss_of_examples(trained: Floats, changed: Floats, chance: float, /) -> Loss:
    """Give the loss and its interval from the metric of each example before and after.

    Parameters
    ----------
    trained, changed : array of float64, shape (examples,)
        The same examples in the same order; their means are a and a_r. a is above `chance`.

    Notes
    -----
    Paired percentile bootstrap over examples, `DRAWS` draws of seed 0, chance fixed. A bootstrap
    cannot draw what was never seen: where no example lost, the upper end is at least that of a
    share of which 0 in n were seen (Clopper and Pearson). All draws of a single example are one: it
    has no interval.
    """
    if len(trained) < 2:
        return loss(float(trained.mean()), float(changed.mean()), chance)
    before, after = resampled(np.stack([trained, changed], 1)).T
    found = loss_of_draws(float(trained.mean()), float(changed.mean()), chance, before, after)
    if found.high is None or (changed < trained).any():
        return found
    spread = max(float(trained.max()), float(changed.max())) - float(min(trained.min(), chance))
    most = spread * unseen_share(len(trained)) / (float(trained.mean()) - chance)
    return replace(found, high=max(found.high, found.value + most))


def loss_of_draws(
    trained: float, changed: float, chance: float, before: Floats, after: Floats, /
) -> Loss:
    """Give the loss and its interval from means over the same bootstrap draws."""
    found, over = loss(trained, changed, chance), before - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        # At or below chance a draw has no loss that could be told from any.
        losses = np.where(over > 0, (before - after) / over, np.inf)
    low, high = (float(x) for x in quantiles(losses))
    if not (math.isfinite(low) and math.isfinite(high)):
        return found
    # Rounding must not exclude what was seen.
    return Loss(value=found.value, low=min(low, found.value), high=max(high, found.value))


def loss_of_bounds(
    trained: tuple[float, float, float],
    changed: tuple[float, float, float],
    chance: float,
    /,
    *,
    is_accuracy: bool,
) -> Loss:
    """Give the loss and its interval from value, lower and upper end of both metrics.

    Square-and-add limits of the difference (Donner and Zou 2012): for what was ended early, whose
    examples are not those of the trained network. That both are of the same examples would make
    them narrower.
    """
    found = loss(trained[0], changed[0], chance)
    low, high = difference_bounds(trained, changed)
    least, most = loss_range(trained[0], chance) if is_accuracy else (-math.inf, math.inf)
    over = trained[0] - chance
    return Loss(value=found.value, low=max(low / over, least), high=min(high / over, most))


def difference_bounds(
    trained: tuple[float, float, float], changed: tuple[float, float, float], /
) -> tuple[float, float]:
    """Give the 95 % interval of the drop a - a_r, from value, lower and upper end of both.

    Square-and-add limits (Donner and Zou 2012).
    """
    (a, a_low, a_high), (b, b_low, b_high) = trained, changed
    return (
        a - b - math.hypot(a - a_low, b_high - b),
        a - b + math.hypot(a_high - a, b - b_low),
    )


def loss_range(trained: float, chance: float, /) -> tuple[float, float]:
    """Give what a loss of accuracy can be: that of a network always right, and never."""
    return (trained - 1) / (trained - chance), trained / (trained - chance)


def interval(values: Floats, /) -> tuple[float, float]:
    """Give the percentile bootstrap's 95 % interval of a mean."""
    low, high = quantiles(resampled(values[:, None])[:, 0])
    return min(float(low), float(values.mean())), max(float(high), float(values.mean()))


def unseen_share(examples: int, /) -> float:
    """Give the upper end of the 95 % interval of a share of which none was seen."""
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / examples))


def resampled(columns: Floats, /) -> Floats:
    """Draw the means of columns as a bootstrap over examples does, all on the same examples.

    Parameters
    ----------
    columns : array of float64, shape (examples, columns)

    Returns
    -------
    array of float64, shape (DRAWS, columns)
    """
    rng, total = np.random.default_rng(0), len(columns)
    if _are_few(columns):
        kinds, counts = np.unique(columns, axis=0, return_counts=True)
        drawn = rng.multinomial(total, counts / total, size=DRAWS) @ kinds
        return np.asarray(drawn / total, dtype=np.float64)
    block = max(1, _BLOCK // total)
    parts = []
    for start in range(0, DRAWS, block):
        size = min(block, DRAWS - start)
        chosen = rng.integers(0, total, (size, total))
        parts.append(np.stack([np.bincount(one, minlength=total) for one in chosen]) @ columns)
    return np.asarray(np.concatenate(parts) / total, dtype=np.float64)


def _are_few(columns: Floats) -> bool:
    """Tell whether rows are of few kinds, as those of right and wrong answers are."""
    return columns.shape[1] <= _FEW and all(len(np.unique(c)) <= _FEW for c in columns.T)


def quantiles(draws: Floats, /) -> Floats:
    """Give the two ends of the percentile interval; of values, so that infinities may be some."""
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    return np.quantile(draws, ends, method="nearest", axis=0)
