"""From what was counted to what is said of it: values, intervals, losses and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planescope.criticality.confidence import (
    accuracy_bounds,
    change_p_value,
    sequential_change_p_value,
)
from planescope.criticality.definition import (
    Loss,
    interval,
    loss,
    loss_of_bounds,
    loss_of_draws,
    loss_of_examples,
    resampled,
)
from planescope.criticality.resets.record import Accuracy, ResetCell
from planescope.hyperplanes.chance import LEVEL, benjamini_hochberg, wilson

if TYPE_CHECKING:
    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.engine.answers import Judge
    from planescope.criticality.resets.engine.progress import Tally

Floats = NDArray[np.float64]
Place = tuple[str, int | str, int | None]

# More rows than these are counted.
_NAMED = 5
# Columns whose means are drawn at once.
_COLUMNS = 64


@dataclass(frozen=True, eq=False)
class Table:
    """The table that tallies come to.

    Attributes
    ----------
    judge : Judge
        What was counted, and what of it chance gives.
    trained : Tally
        Of the trained network: all examples.
    total : int or None
        Examples in all, where that was known beforehand.
    given : float or None
        What the user says that chance gives of the metric.
    sets : mapping of str to array of int
        Of synthetic pictures: which make up each set.
    """

    judge: Judge
    options: ResetOptions
    trained: Tally
    total: int | None
    given: float | None
    sets: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)

    @property
    def chance(self) -> float | None:
        """Return what the metric is by chance; None where nobody knows."""
        if self.given is not None:
            return self.given
        return None if self.judge.metric is not None else self.judge.chance

    @cached_property
    def values(self) -> Floats | None:
        """Return the trained network's metric of each example."""
        return self._values(self.trained)

    @cached_property
    def trained_value(self) -> Accuracy:
        """Return the accuracy of the trained network."""
        return self._accuracy(self.trained, exact=True)

    @property
    def positions(self) -> int | None:
        """Count the answers of all examples, where an example has several."""
        count = self.trained.sums.get("positions")
        return None if count is None else int(count)

    @property
    def learned(self) -> bool:
        """Tell whether the trained network is better than chance: its interval lies above it."""
        found, chance = self.trained_value, self.chance
        if found.value is None or found.low is None:
            return found.value is not None and chance is not None and found.value > chance
        return chance is not None and found.low > chance

    @property
    def _has_drops(self) -> bool:
        value = self.trained_value.value
        if value is None or not value > 0:
            return False
        return self.learned or self.chance is None

    def notes(self) -> Iterable[str]:
        """Return notes for the reader."""
        found = self.trained_value
        if self.judge.name is None:
            return
        if found.value is None:
            yield f"the trained network's {self.judge.name} is no number"
        elif self.chance is not None and not self.learned:
            what = (
                f"accuracy, {self._counted(found)}, is no better than chance (the most "
                f"frequent class gives {self.chance:.1%})"
                if found.top1 is not None
                else f"{self.judge.name}, {found.value:.4g}, is no better than chance, "
                f"{self.chance:.4g}"
            )
            yield (
                f"no relative drops: the trained network's {what}; was it trained with other "
                "preprocessing?"
            )
        elif self.chance is None:
            yield f"no layer is called critical: give chance=, what {self.judge.name} is by chance"
        if found.value is not None and found.low is None:
            yield f"{self.judge.name} has no value an example, and so no interval"
        if self.options.tolerance is not None:
            yield (
                f"each cell was ended once its accuracy on all {self.trained.examples} examples "
                f"was known to ±{self.options.tolerance:g}, with 95 % confidence at every moment"
            )

    def _counted(self, found: Accuracy) -> str:
        """Count the right answers; where an example has several positions, take their share."""
        if self.trained.columns["right"][0].dtype == bool:
            return f"{self.trained.right} of {self.trained.examples}"
        return f"{found.value:.1%}"

    def not_numbers(self, tallies: Mapping[Place, Tally]) -> Iterable[str]:
        """Say where outputs were not numbers."""
        places = [("the trained network", self.trained)]
        places += [(f"{row} at {name}", tally) for (row, name, _), tally in tallies.items()]
        where = [text for text, tally in places if tally.sums.get("none")]
        if where:
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            yield (
                "outputs that are not numbers count as wrong answers: of "
                f"{', '.join(where[:3])}{more}"
            )

    def _values(self, tally: Tally) -> Floats | None:
        return tally.column("value" if self.judge.metric is not None else "right")

    def _accuracy(self, tally: Tally, *, exact: bool) -> Accuracy:
        """Return the value and interval; `exact` where all examples were looked at for certain."""
        seen, values = tally.examples, self._values(tally)
        value, bounds = self._bounds(tally, values, exact=exact)
        of_classes = self.judge.counts_right
        right = tally.column("right") if of_classes else None
        return Accuracy(
            value=value,
            low=bounds[0],
            high=bounds[1],
            examples=seen,
            top1=None if right is None else float(right.mean()),
            top5=tally.sums["top5"] / seen if of_classes else None,
            cross_entropy=_finite(tally.sums["loss"] / seen) if of_classes else None,
        )

    def _bounds(
        self, tally: Tally, values: Floats | None, *, exact: bool
    ) -> tuple[float | None, tuple[float | None, float | None]]:
        seen = tally.examples
        if values is None or not self.judge.by_example:
            value = tally.sums.get("metric")
            return (None if value is None else _finite(value / seen)), (None, None)
        if not np.isfinite(values).all():
            return None, (None, None)
        if self.judge.metric is None and tally.columns["right"][0].dtype == bool:
            right = tally.right
            bounds = wilson(right, seen) if exact else (
                accuracy_bounds(right, seen, self.total or seen)
            )  # fmt: skip
            return right / seen, bounds
        return float(values.mean()), interval(values)

    def cells(self, tallies: Mapping[Place, Tally]) -> tuple[ResetCell, ...]:
        """Return the cells of the result, with p-values corrected over all of them."""
        exact = self.options.tolerance is None
        before = self.values
        p_values: list[float | None] = []
        for tally in tallies.values():
            after = self._values(tally) if self.judge.by_example else None
            if before is None or after is None or not np.isfinite(after).all():
                p_values.append(None)
                continue
            test = change_p_value if exact else sequential_change_p_value
            p_values.append(test(before[: len(after)], after))
        corrected = benjamini_hochberg(p_values)
        expected = self._expected(list(tallies.values()))
        return tuple(
            self._cell(place, tally, p, q, drop)
            for (place, tally), p, q, drop in zip(
                tallies.items(), p_values, corrected, expected, strict=True
            )
        )

    def _cell(
        self,
        place: Place,
        tally: Tally,
        p: float | None,
        q: float | None,
        expected: tuple[float, Loss | None] | None,
    ) -> ResetCell:
        exact = self.options.tolerance is None
        found, trained = self._accuracy(tally, exact=exact), self.trained_value.value
        lost = self._loss(tally, found)
        drop = None
        if trained is not None and found.value is not None and self._has_drops:
            drop = (trained - found.value) / trained
        agrees = tally.column("agrees")
        hopes = None if expected is None else expected[1]
        square = tally.sums.get("square", 0.0)
        return ResetCell(
            **vars(found),
            layer=place[0],
            snapshot=place[1],
            draw=place[2],
            relative_drop=drop,
            loss=None if lost is None else lost.value,
            loss_low=None if lost is None else lost.low,
            loss_high=None if lost is None else lost.high,
            critical=None if lost is None else lost.critical,
            p_value=p,
            significant=None if q is None else q < LEVEL,
            disagreement=None if agrees is None else self._changed(agrees),
            expected_drop=None if expected is None else expected[0],
            expected_loss=None if hopes is None else hopes.value,
            expected_loss_low=None if hopes is None else hopes.low,
            expected_loss_high=None if hopes is None else hopes.high,
            divergence=_finite(tally.sums.get("divergence", math.nan) / tally.examples),
            relative_l2=_finite(math.sqrt(tally.sums["changed"] / square)) if square > 0 else None,
        )

    def _changed(self, agrees: Floats) -> float:
        """Return the share of examples with another answer; of sets the mean of their shares."""
        if not self.sets:
            return float(1 - agrees.mean())
        return float(np.mean([1 - agrees[which].mean() for which in self.sets.values()]))

    def _loss(self, tally: Tally, found: Accuracy) -> Loss | None:
        """Return the loss of a cell; None where nothing can be said."""
        trained, chance = self.trained_value, self.chance
        if not self.learned or chance is None or found.value is None or trained.value is None:
            return None
        before, after = self.values, self._values(tally)
        if before is None or after is None or not self.judge.by_example:
            return loss(trained.value, found.value, chance)
        if self.options.tolerance is None:
            return loss_of_examples(before, after, chance)
        known = (trained, found)
        (a, b) = ((one.value or 0.0, one.low or 0.0, one.high or 0.0) for one in known)
        return loss_of_bounds(a, b, chance, is_accuracy=self.judge.metric is None)

    def _expected(self, tallies: Sequence[Tally]) -> list[tuple[float, Loss | None] | None]:
        """Drop and loss that the trained network's own probabilities let expect."""
        sure = self.trained.column("given")
        columns = [tally.column("given") for tally in tallies]
        usable = sure is not None and bool(np.isfinite(sure).all()) and float(sure.sum()) > 0
        usable = usable and not self.sets  # pictures that the network is sure of tell no loss
        if sure is None or not usable:
            return [None] * len(tallies)
        drawn = self._drawn(sure, columns)
        chance = self.judge.chance
        found: list[tuple[float, Loss | None] | None] = []
        for column, draws in zip(columns, drawn, strict=True):
            if column is None or not np.isfinite(column).all():
                found.append(None)
                continue
            own = sure[: len(column)]
            hopes = None
            if chance is not None and float(own.mean()) > chance:
                before, after = float(own.mean()), float(column.mean())
                hopes = loss(before, after, chance)
                if draws is not None:
                    hopes = loss_of_draws(before, after, chance, *draws)
            found.append((float(1 - column.sum() / own.sum()), hopes))
        return found

    def _drawn(
        self, sure: Floats, columns: Sequence[Floats | None]
    ) -> list[tuple[Floats, Floats] | None]:
        """Return the bootstrap means of `sure` and of each column on the same draws.

        Of whole columns.
        """
        whole = [i for i, c in enumerate(columns) if c is not None and len(c) == len(sure)]
        found: list[tuple[Floats, Floats] | None] = [None] * len(columns)
        for start in range(0, len(whole), _COLUMNS):
            part: list[Any] = [columns[i] for i in whole[start : start + _COLUMNS]]
            means = resampled(np.stack([sure, *part], 1))
            for j, i in enumerate(whole[start : start + _COLUMNS]):
                found[i] = means[:, 0], means[:, j + 1]
        return found

    def needed_steps(self, cells: Sequence[ResetCell]) -> dict[str, float | None]:
        """Return the least share of a path that keeps the metric within its interval, by row."""
        low = self.trained_value.low
        found: dict[str, float | None] = {}
        for cell in cells:
            step, _, steps = str(cell.snapshot).removeprefix("path:").partition("/")
            share = int(step) / int(steps)
            keeps = low is not None and cell.value is not None and cell.value >= low
            best = found.setdefault(cell.layer, None)
            if keeps and (best is None or share < best):
                found[cell.layer] = share
        return found


def untouched(cells: Sequence[ResetCell], /) -> str:
    """Name the rows by which no output changed, wherever they were put back to; "" without one."""
    moves: dict[str, bool] = {}
    for cell in cells:
        step, _, steps = str(cell.snapshot).removeprefix("path:").partition("/")
        if step != steps:  # the end of a path is the trained network
            moves[cell.layer] = moves.get(cell.layer, False) or cell.relative_l2 != 0
    still = [row for row, does in moves.items() if not does]
    if not still:
        return ""
    shown = ", ".join(still[:_NAMED]) + (f" and {len(still) - _NAMED} more") * (len(still) > _NAMED)
    verb, their = ("its", "it") if len(still) == 1 else ("their", "them")
    return (
        f"no output changes by {shown}: evaluation does not reach {their}, or {verb} weights are "
        "those that were put back"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
