"""From what was counted on inputs to score and loss (METHOD, section 7: expected without labels).

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planescope.criticality.definition import Loss, interval, loss_of_examples
from planescope.criticality.sensitivity.record import Estimate, Method
from planescope.hyperplanes.chance import wilson

if TYPE_CHECKING:
    from planescope.criticality.resets.engine.answers import Judge
    from planescope.criticality.resets.engine.progress import Tally

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimates:
    """Estimates from tallies, held against the tally of the whole network.

    Attributes
    ----------
    method : Method
    judge : Judge
    whole : Tally
        Of the network as it is.
    chance : float or None
        Of the metric.
    sets : mapping of str to array of int
        Of synthetic inputs: which of them make up each set.
    """

    method: Method
    judge: Judge
    whole: Tally
    chance: float | None
    sets: Mapping[str, NDArray[np.intp]]

    @cached_property
    def values(self) -> Floats | None:
        """Return the metric of each example; without labels, the probability of its answer."""
        return self._values(self.whole)

    @cached_property
    def mean(self) -> float | None:
        """Return what the whole network's metric is; None where it cannot be told."""
        if self.values is not None:
            return float(self.values.mean())
        if "metric" in self.whole.sums:
            return self.whole.sums["metric"] / self.whole.examples
        return None

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the whole network's accuracy."""
        assert self.values is not None  # noqa: S101
        if "positions" in self.whole.sums:  # shares of the positions of each example
            return interval(self.values)
        return wilson(int(self.values.sum()), self.whole.examples)

    @property
    def learned(self) -> bool:
        """Return whether the whole network can be told from chance."""
        if self.mean is None or self.chance is None or not math.isfinite(self.mean):
            return False
        if self.judge.counts_right and self.method is Method.MEASURED:
            low, _ = self.interval
            return low > self.chance
        return self.mean > self.chance

    def of(self, draws: Sequence[Tally], /, *, scope: str | None = None) -> Estimate:
        """Return what a replacement costs; of several draws, the mean over them."""
        return dataclasses.replace(self._of(draws), scope=scope)

    def _of(self, draws: Sequence[Tally]) -> Estimate:
        if self.method is Method.MEASURED:
            return self._measured(draws)
        if not self.judge.is_softmax:
            return Estimate(score=_finite(self._changes(draws)))
        if self.method is Method.SYNTHETIC:
            gone = [1 - _column(tally, "agrees") for tally in draws]
            by_set = [[float(one[which].mean()) for which in self.sets.values()] for one in gone]
            return Estimate(score=float(np.mean(by_set)))
        found = self._loss(draws)
        assert self.values is not None  # noqa: S101  a softmax has them
        left = float(np.mean([_column(tally, "given").mean() for tally in draws]))
        return Estimate(
            score=1 - left / float(self.values.mean()),
            loss=None if found is None else found.value,
            lower=None if found is None else found.low,
            upper=None if found is None else found.high,
        )

    def _measured(self, draws: Sequence[Tally]) -> Estimate:
        found, mean = self._loss(draws), self.mean
        changed = [self._mean_of(tally) for tally in draws]
        drop = None
        if mean is not None and not any(one is None for one in changed):
            drop = mean - float(np.mean([one for one in changed if one is not None]))
        if drop is None or not math.isfinite(drop):
            # The metric is no number with these weights: nothing is left of what it told.
            return Estimate(score=1.0)
        return Estimate(
            score=drop if found is None else found.value,
            loss=None if found is None else found.value,
            lower=None if found is None else found.low,
            upper=None if found is None else found.high,
            drop=drop,
            relative_drop=drop / mean if mean and mean > 0 and self._tells else None,
        )

    @property
    def _tells(self) -> bool:
        return self.chance is None or self.learned

    def _mean_of(self, tally: Tally) -> float | None:
        values = self._values(tally)
        if values is not None:
            return float(values.mean())
        return tally.sums["metric"] / tally.examples if "metric" in tally.sums else None

    def _loss(self, draws: Sequence[Tally]) -> Loss | None:
        """Return loss and interval; None where the network cannot be told from chance."""
        if not self.learned or self.chance is None or self.mean is None:
            return None
        each = [self._values(tally) for tally in draws]
        if self.values is not None and all(one is not None for one in each):
            changed = np.mean([one for one in each if one is not None], axis=0)
            if not np.isfinite(changed).all():
                return None
            return loss_of_examples(self.values, changed, self.chance)
        means = [one for one in map(self._mean_of, draws) if one is not None]
        value = (self.mean - float(np.mean(means))) / (self.mean - self.chance)
        return Loss(value=value) if math.isfinite(value) else None

    def _values(self, tally: Tally) -> Floats | None:
        if self.method is not Method.MEASURED:
            return tally.column("given")
        return tally.column("right" if self.judge.counts_right else "value")

    def _changes(self, draws: Sequence[Tally]) -> float:
        """Return the relative change of the outputs, by their L2 norm."""
        square = self.whole.sums.get("square", 0.0)
        if not square > 0:
            return math.inf
        return float(np.mean([math.sqrt(tally.sums["changed"] / square) for tally in draws]))


def _column(tally: Tally, name: str) -> Floats:
    column: Any = tally.column(name)
    return np.asarray(column, dtype=np.float64)


def _finite(value: float) -> float:
    """Return a number that JSON has: outputs that are no numbers have changed beyond measure."""
    return value if math.isfinite(value) else float(np.finfo(np.float64).max)
