"""From layers with scores and drops to what they say together: associations, shares, advice."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from planescope.criticality.definition import Critical, decide, loss_range
from planescope.criticality.relation import ranks
from planescope.criticality.relation.ranks import FEWEST, FEWEST_PARTIAL, Block
from planescope.criticality.relation.record import (
    Advice,
    Association,
    Comparison,
    RelatedLayer,
    Selection,
    Share,
)
from planescope.criticality.scores import CONTROL
from planescope.hyperplanes.chance import benjamini_hochberg, wilson

if TYPE_CHECKING:
    from planescope.criticality.relation.ranks import Integers
    from planescope.hyperplanes.arrays import Flags, Floats

    Statistic = Callable[..., Floats]

# What is computed along the layers of a run: fewest layers, function, names of its fields.
_RANKED: tuple[tuple[str, int, Statistic], ...] = (
    ("rho", FEWEST, ranks.spearman),
    ("tau", FEWEST, ranks.kendall),
    ("partial", FEWEST_PARTIAL, ranks.partial_spearman),
)
_CURVES: tuple[tuple[str, Statistic], ...] = (
    ("auc", ranks.auc),
    ("average_precision", ranks.average_precision),
)


class Sample:
    """Layers of some runs that are looked at together.

    Parameters
    ----------
    layers : sequence of RelatedLayer
        Those of a run stand together, in order; at least one.
    selection : Selection
        What they are.
    draws : int
        Of bootstrap and shuffles.
    rng : numpy.random.Generator
    run : str, optional
        Where they are of one run among several.
    """

    def __init__(
        self,
        layers: Sequence[RelatedLayer],
        selection: Selection,
        /,
        *,
        draws: int,
        rng: np.random.Generator,
        run: str | None = None,
    ) -> None:
        self.runs = tuple(dict.fromkeys(layer.run for layer in layers))
        self._layers, self._selection, self._run = layers, selection, run
        self._draws, self._rng = draws, rng
        index = {path: i for i, path in enumerate(self.runs)}
        self._of = np.array([index[layer.run] for layer in layers])
        self._drop = np.array([layer.relative_drop for layer in layers])
        self._critical = np.array([layer.critical is Critical.YES for layer in layers])
        self._decided = np.array([layer.is_decided for layer in layers])
        self._position = self._score("position")
        # One set of draws for all scores, so that their differences have intervals.
        if len(self.runs) > 1:
            self._weights = ranks.resampled(len(self.runs), draws=draws, rng=rng)
        else:
            self._drawn = rng.integers(0, len(layers), (draws, len(layers)))
        # By score: rho of each run, and of each draw of the layers where there is one run.
        self._rho: dict[str, tuple[Floats, Floats | None]] = {}

    def _score(self, score: str) -> Floats:
        values = [layer.scores[score] for layer in self._layers]
        return np.array([np.nan if value is None else value for value in values])

    def has(self, score: str) -> bool:
        """Return whether any layer has the score."""
        return any(layer.scores[score] is not None for layer in self._layers)

    def associate(self, score: str) -> Association:
        """Associate a score with the relative drop, and with the word critical."""
        values = self._score(score)
        there = np.isfinite(values)
        fields: dict[str, float | None] = {}
        columns = (values, self._drop, self._position)
        for name, fewest, statistic in _RANKED:
            fields |= self._ranked(score, name, fewest, statistic, columns, there)
        p_values = ranks.permutation_p_values(
            list(self._blocks(columns, there)), shuffles=self._draws, rng=self._rng
        )
        fields |= {f"{name}_p": getattr(p_values, name) for name, _, _ in _RANKED}
        for name, curve in _CURVES:
            fields |= self._curve(name, curve, values, there & self._decided)
        return Association(
            score=score,
            selection=self._selection,
            run=self._run,
            runs=len(set(self._of[there])),
            layers=int(there.sum()),
            decided=int((there & self._decided).sum()),
            **fields,
        )

    def _ranked(
        self,
        score: str,
        name: str,
        fewest: int,
        statistic: Statistic,
        columns: Sequence[Floats],
        there: Flags,
    ) -> dict[str, float | None]:
        """Return a statistic along the layers: its mean over runs, and the interval."""
        inputs = columns if name == "partial" else columns[:2]
        by_run = np.full(len(self.runs), np.nan)
        for run in range(len(self.runs)):
            own = there & (self._of == run)
            if own.sum() >= fewest:
                by_run[run] = statistic(*(column[own] for column in inputs))
        draws = None
        if len(self.runs) == 1 and np.isfinite(by_run[0]):
            # Drawn among the layers that have the score.
            drawn = self._drawn if there.all() else self._redrawn(np.flatnonzero(there))
            draws = statistic(*(column[drawn] for column in inputs))
        if name == "rho":
            self._rho[score] = by_run, draws
        known = np.isfinite(by_run)
        if not known.any():
            return {}
        if draws is None:
            draws = ranks.weighted_mean(by_run, self._weights)
        low, high = ranks.interval(draws)
        return {name: float(by_run[known].mean()), f"{name}_low": low, f"{name}_high": high}

    def _redrawn(self, chosen: Integers) -> Integers:
        return chosen[self._rng.integers(0, len(chosen), (self._draws, len(chosen)))]

    def _blocks(self, columns: Sequence[Floats], there: Flags) -> Iterator[Block]:
        """Yield the runs that have the same layers of the same network."""
        alike: dict[tuple[str, ...], list[Flags]] = defaultdict(list)
        for run in range(len(self.runs)):
            own = there & (self._of == run)
            chosen = [layer for layer, is_own in zip(self._layers, own, strict=True) if is_own]
            if len(chosen) >= FEWEST:
                alike[chosen[0].network, *(layer.name for layer in chosen)].append(own)
        for rows in alike.values():
            score, drop, position = (np.stack([c[own] for own in rows]) for c in columns)
            yield Block(score=score, drop=drop, position=position)

    def _curve(
        self, name: str, curve: Statistic, score: Floats, there: Flags
    ) -> dict[str, float | None]:
        """Return the area or precision over decided layers, and the interval."""
        found, critical = score[there], self._critical[there]
        if not 0 < critical.sum() < len(critical):
            return {}
        value = float(curve(found, critical, np.ones((1, len(found))))[0])
        parts = []
        for part in ranks.chunks(self._draws, len(found)):
            if len(self.runs) > 1:
                weights = self._weights[part][:, self._of[there]]
            else:
                weights = _counts(self._drawn[part], len(self._layers))[:, there]
            parts.append(curve(found, critical, weights))
        low, high = ranks.interval(np.concatenate(parts))
        return {name: value, f"{name}_low": low, f"{name}_high": high}

    def compare(self, pooled: Sequence[Association], /) -> Iterator[Comparison]:
        """Yield the best score against each other one, in what `associate` found."""
        ranked = [a for a in pooled if a.rho is not None]
        most = max((a.runs for a in ranked), default=0)
        whole = [a for a in ranked if a.runs == most and a.score != CONTROL]
        if not whole:
            return
        best = max(whole, key=lambda a: abs(a.rho or 0.0)).score
        for other in ranked:
            if other.score != best:
                yield self._compared(best, other.score)

    def _compared(self, best: str, other: str) -> Comparison:
        (first, first_draws), (second, second_draws) = self._rho[best], self._rho[other]
        both = np.isfinite(first) & np.isfinite(second)
        if first_draws is None or second_draws is None:
            alone = [np.where(both, values, np.nan) for values in (first, second)]
            first_draws, second_draws = (
                ranks.weighted_mean(values, self._weights) for values in alone
            )
        ahead = np.abs(first_draws) - np.abs(second_draws)
        low, high = ranks.interval(ahead)
        told = ahead[np.isfinite(ahead)]
        return Comparison(
            selection=self._selection,
            best=best,
            other=other,
            difference=float(abs(first[both].mean()) - abs(second[both].mean())),
            low=low,
            high=high,
            wins=float(((told > 0) + (told == 0) / 2).mean()),
        )


def _counts(drawn: Integers, layers: int) -> Floats:
    """Return how often each layer was drawn, by rows."""
    counts = np.zeros((len(drawn), layers))
    np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1.0)
    return counts


def selected(layers: Sequence[RelatedLayer], selection: Selection, /) -> list[RelatedLayer]:
    """Return the layers of a selection."""
    is_all = selection is Selection.ALL
    return [layer for layer in layers if is_all or layer.selection is selection]


def corrected(pooled: Sequence[Association], /) -> list[Association]:
    """Return the same with p-values of rho corrected over the scores; the control takes no part."""
    tested = [a for a in pooled if a.score != CONTROL]
    values = benjamini_hochberg([a.rho_p for a in tested])
    by_score = {a.score: q for a, q in zip(tested, values, strict=True)}
    return [dataclasses.replace(a, rho_q=by_score.get(a.score)) for a in pooled]


def shares(
    layers: Sequence[RelatedLayer], /, *, draws: int, rng: np.random.Generator
) -> Iterator[Share]:
    """Yield both directions of the claim, by selection.

    Outcomes of the unbiased and of the biased.
    """
    for selection in Selection:
        chosen = selected(layers, selection)
        for biased in (False, True):
            side = [layer for layer in chosen if layer.biased is biased]
            for outcome in ("robust", "critical"):
                yield _share(side, selection, biased, outcome, draws, rng)


def _share(
    side: Sequence[RelatedLayer],
    selection: Selection,
    biased: bool,
    outcome: str,
    draws: int,
    rng: np.random.Generator,
) -> Share:
    decided = [layer for layer in side if layer.is_decided]
    by_run: dict[str, list[bool]] = defaultdict(list)
    for layer in decided:
        is_so = layer.critical is Critical.YES if outcome == "critical" else layer.robust
        by_run[layer.run].append(bool(is_so))
    counts = np.array([sum(flags) for flags in by_run.values()], dtype=np.float64)
    totals = np.array([len(flags) for flags in by_run.values()], dtype=np.float64)
    low = high = None
    if decided:
        low, high = wilson(int(counts.sum()), len(decided))
    if len(by_run) > 1 and low is not None and high is not None:
        weights = ranks.resampled(len(by_run), draws=draws, rng=rng)
        lower, upper = ranks.interval((weights @ counts) / (weights @ totals))
        low, high = min(low, lower or 0.0), max(high, upper or 0.0)
    return Share(
        selection=selection,
        biased=biased,
        outcome=outcome,
        count=int(counts.sum()),
        layers=len(decided),
        runs=len(by_run),
        undecided=len(side) - len(decided),
        share=float(counts.sum()) / len(decided) if decided else None,
        low=low,
        high=high,
    )


def advise(layers: Sequence[RelatedLayer], /, *, critical: float) -> Iterator[Advice]:
    """Tell whether each layer of each network is critical, by what resetting it costs."""
    same: dict[tuple[str, str], list[RelatedLayer]] = defaultdict(list)
    for layer in layers:
        same[layer.network, layer.name].append(layer)
    for (network, name), every in same.items():
        several = [layer for layer in every if layer.loss is not None]
        loss, low, high = _mean_loss(several)
        verdict = None
        if len(several) == 1:
            verdict = several[0].critical
        elif low is not None and high is not None:
            verdict = decide(low, high, bound=critical)
        verdicts = [layer.critical for layer in several]
        yield Advice(
            network=network,
            layer=name,
            runs=len(several),
            yes=verdicts.count(Critical.YES),
            no=verdicts.count(Critical.NO),
            undecided=verdicts.count(Critical.UNDECIDED),
            robust=sum(bool(layer.robust) for layer in several),
            relative_drop=float(np.mean([layer.relative_drop for layer in several or every])),
            loss=loss,
            loss_low=low,
            loss_high=high,
            critical=verdict,
        )


def _mean_loss(
    several: Sequence[RelatedLayer],
) -> tuple[float | None, float | None, float | None]:
    """Return the mean over runs and its interval: Student's, or what one run itself has."""
    if not several:
        return None, None, None
    if len(several) == 1:
        return several[0].loss, several[0].loss_low, several[0].loss_high
    from scipy.special import stdtrit

    losses = np.array([layer.loss for layer in several], dtype=np.float64)
    half = float(stdtrit(len(losses) - 1, 0.975) * losses.std(ddof=1)) / math.sqrt(len(losses))
    mean = float(losses.mean())
    least, most = np.mean([_range(layer) for layer in several], axis=0)
    return mean, max(mean - half, min(mean, float(least))), min(mean + half, max(mean, float(most)))


def _range(layer: RelatedLayer) -> tuple[float, float]:
    """Return what the loss of a layer can be; without bounds where the metric's are not known."""
    if layer.metric != "accuracy" or layer.trained is None or layer.chance is None:
        return -math.inf, math.inf
    return loss_range(layer.trained, layer.chance)
