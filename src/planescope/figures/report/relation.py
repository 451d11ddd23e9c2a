"""Scores that need no data against what resets cost, as a page has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planescope.criticality.relation import Association, Relation, Selection
from planescope.criticality.scores import SCORES
from planescope.figures.report.resets import ResetsShown
from planescope.figures.report.rounding import rounded
from planescope.measurement.record import LayerMeasurement

# What an association says of a score; each rounded.
NUMBERS = (
    "rho", "rho_low", "rho_high", "rho_p", "rho_q", "tau", "tau_low", "tau_high", "partial",
    "partial_low", "partial_high", "auc", "auc_low", "auc_high", "average_precision",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScoreShown:
    """A score of all layers, and how it goes with their drops where that is known."""

    key: str
    title: str
    values: list[float | None]
    association: Mapping[str, float | None] | None


@dataclass(frozen=True, kw_only=True)
class RelationShown:
    """Scores against drops.

    Attributes
    ----------
    column : int or str
        What layers were put back to.
    drops : list of (value, low, high) or None
        Per cent, by layer; with an interval where there is one.
    scores : tuple of ScoreShown
    verdict, selection : str or None
        Of a relation, where there is one, and which layers it speaks of.
    decisions : list of str or None
        What to do with each layer.
    runs : int
        How many the associations are of; 0 without a relation.
    """

    column: int | str
    drops: list[tuple[float | None, float | None, float | None] | None]
    scores: tuple[ScoreShown, ...]
    verdict: str | None = None
    selection: str | None = None
    decisions: list[str | None] | None = None
    runs: int = 0


def scores_shown(layers: Sequence[LayerMeasurement], resets: ResetsShown) -> RelationShown | None:
    """Scores beside the drops of the first column of some resets; no more than is known of each."""
    if not resets.is_drop:
        return None
    drops: list[Any] = [None] * len(layers)
    for place, row in zip(resets.layers, resets.values, strict=True):
        if place is not None and row[0] is not None:
            drops[place] = (row[0], None, None)
    return RelationShown(
        column=resets.columns[0],
        drops=drops,
        scores=tuple(
            ScoreShown(key=key, title=SCORES[key], values=values, association=None)
            for key, values in _scores(layers).items()
            if any(value is not None for value in values)
        ),
    )


def _scores(layers: Sequence[LayerMeasurement]) -> dict[str, list[float | None]]:
    """Return those scores that a measurement holds, without the weights."""
    last = max(1, len(layers) - 1)
    return {
        "agreement": [rounded(layer.agreement) for layer in layers],
        "abs_z": [None if layer.z is None else rounded(abs(layer.z)) for layer in layers],
        "mean_cosine": [rounded(layer.mean_cosine) for layer in layers],
        "mean_centre": [rounded(layer.mean_centre) for layer in layers],
        "l2": [rounded(layer.l2) for layer in layers],
        "linf": [rounded(layer.linf) for layer in layers],
        "position": [rounded(i / last) for i in range(len(layers))],
    }


def relation_shown(
    layers: Sequence[LayerMeasurement], relation: Relation, run: str
) -> RelationShown:
    """Take the layers of one run out of a relation, perhaps of many."""
    places = {layer.name: i for i, layer in enumerate(layers)}
    related = [layer for layer in relation.layers if layer.run == run and layer.name in places]
    drops: list[Any] = [None] * len(layers)
    for layer in related:
        interval = (layer.drop, layer.drop_low, layer.drop_high)
        drops[places[layer.name]] = tuple(rounded(100 * value) for value in interval)
    decisions: list[str | None] = [None] * len(layers)
    networks = {layer.network for layer in related}
    for advice in relation.advice:
        if advice.network in networks and advice.layer in places:
            decisions[places[advice.layer]] = str(advice.decision)
    keys = dict.fromkeys(key for layer in related for key in layer.scores)
    return RelationShown(
        column=0,
        drops=drops,
        scores=tuple(
            ScoreShown(
                key=key,
                title=SCORES.get(key, key),
                values=_by_place({places[r.name]: r.scores.get(key) for r in related}, len(layers)),
                association=_numbers(relation.at(key, relation.selection)),
            )
            for key in keys
        ),
        verdict=relation.verdict,
        selection=_SPOKEN[relation.selection],
        decisions=decisions,
        runs=len(relation.runs),
    )


_SPOKEN = {
    Selection.ALL: "all layers",
    Selection.INNER: "the layers behind a ReLU",
    Selection.FIRST: "first layers",
}


def _by_place(values: Mapping[int, float | None], count: int) -> list[float | None]:
    return [rounded(values.get(place)) for place in range(count)]


def _numbers(association: Association | None) -> dict[str, float | None] | None:
    if association is None:
        return None
    return {key: rounded(getattr(association, key)) for key in NUMBERS} | {
        "layers": association.layers
    }
