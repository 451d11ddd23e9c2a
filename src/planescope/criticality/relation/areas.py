"""Areas under the ROC curve for "critical" by its definition (METHOD, section 7), and differences.

Over all pairs of layers, over pairs within a network, and over layers that the truth decides;
intervals draw whole runs anew, and all scores are drawn together, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planescope.criticality.definition import Critical
from planescope.criticality.relation import ranks
from planescope.criticality.relation.record import Area, Over, RelatedLayer
from planescope.hyperplanes.arrays import Flags, Floats

# What every score is held against, paired.
RIVALS = ("l2", "alpha")


def areas(
    layers: Sequence[RelatedLayer],
    scores: Sequence[str],
    /,
    *,
    bound: float,
    draws: int,
    rng: np.random.Generator,
) -> Iterator[Area]:
    """Yield the areas of scores; none where no layer has a loss, or all of them are alike.

    Parameters
    ----------
    layers : sequence of RelatedLayer
        Those of several runs; those without a loss are left out.
    scores : sequence of str
    bound : float
        Of the loss, above which a layer is critical.
    draws : int
        Of runs, and of random scores.
    rng : numpy.random.Generator
    """
    known = [layer for layer in layers if layer.loss is not None]
    for over in Over:
        some = [layer for layer in known if over is not Over.DECIDED or layer.is_decided]
        table = _Table(some, over, bound, draws, rng)
        for score in scores:
            found = table.area(score)
            if found is not None:
                yield found


class _Table:
    def __init__(
        self,
        layers: Sequence[RelatedLayer],
        over: Over,
        bound: float,
        draws: int,
        rng: np.random.Generator,
    ) -> None:
        self._layers, self._over, self._draws, self._rng = layers, over, draws, rng
        runs = {run: i for i, run in enumerate(dict.fromkeys(layer.run for layer in layers))}
        self._of = np.array([runs[layer.run] for layer in layers], dtype=np.intp)
        self._critical = np.array(
            [
                layer.critical is Critical.YES
                if over is Over.DECIDED
                else layer.loss is not None and layer.loss > bound
                for layer in layers
            ],
            dtype=bool,
        )
        self._runs = len(runs)
        # By the layers that a score has.
        self._chance: dict[bytes, tuple[float | None, float | None]] = {}
        self._weights = ranks.resampled(len(runs), draws=draws, rng=rng) if len(runs) > 1 else None

    def area(self, score: str) -> Area | None:
        values = self._values(score)
        there = np.isfinite(values)
        whole = self._of_draws(values, there, np.ones((1, self._runs)))
        if whole is None:
            return None
        low, high = self._interval(values, there)
        random_low, random_high = self._random(there)
        fields = {
            f"over_{rival}{end}": value
            for rival in RIVALS
            if rival != score
            for end, value in zip(("", "_low", "_high"), self._ahead(values, rival), strict=True)
        }
        return Area(
            score=score, over=self._over, runs=len(set(self._of[there])), layers=int(there.sum()),
            critical=int(self._critical[there].sum()), auc=float(whole[0]), low=low, high=high,
            random_low=random_low, random_high=random_high, **fields,
        )  # fmt: skip

    def _values(self, score: str) -> Floats:
        values = [layer.scores.get(score) for layer in self._layers]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def _of_draws(self, values: Floats, there: Flags, weights: Floats) -> Floats | None:
        """Return the areas by rows of weights of runs; None where there is no pair."""
        critical, of = self._critical[there], self._of[there]
        if self._over is not Over.WITHIN:
            if not 0 < critical.sum() < len(critical):
                return None
            return ranks.auc(values[there], critical, weights[:, of])
        found = ranks.auc_within(values[there], critical, of, weights)
        return None if np.isnan(found).all() else found

    def _interval(self, values: Floats, there: Flags) -> tuple[float | None, float | None]:
        drawn = None if self._weights is None else self._of_draws(values, there, self._weights)
        return (None, None) if drawn is None else ranks.interval(drawn)

    def _ahead(self, values: Floats, rival: str) -> tuple[float | None, float | None, float | None]:
        """Tell by how much an area is larger than a rival's, on the layers that have both."""
        others = self._values(rival)
        there = np.isfinite(values) & np.isfinite(others)
        one = np.ones((1, self._runs))
        mine, theirs = (self._of_draws(v, there, one) for v in (values, others))
        if mine is None or theirs is None:
            return None, None, None
        low = high = None
        if self._weights is not None:
            drawn = [self._of_draws(v, there, self._weights) for v in (values, others)]
            if drawn[0] is not None and drawn[1] is not None:
                low, high = ranks.interval(drawn[0] - drawn[1])
        return float(mine[0] - theirs[0]), low, high

    def _random(self, there: Flags) -> tuple[float | None, float | None]:
        """Return the areas that 95 % of random scores have."""
        key = there.tobytes()
        if key not in self._chance:
            one = np.ones((1, self._runs))
            found = np.full(self._draws, np.nan)
            for draw in range(self._draws):
                drawn = self._of_draws(self._rng.random(len(there)), there, one)
                found[draw] = np.nan if drawn is None else drawn[0]
            self._chance[key] = ranks.interval(found)
        return self._chance[key]
