"""Scores that need no data against what resets cost, and which layers are critical, on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planescope.criticality.definition import THRESHOLD
from planescope.criticality.relation.conclusions import spoken
from planescope.criticality.relation.record import Association, RelatedLayer, Relation
from planescope.criticality.scores import SCORES
from planescope.figures.report.resets import ResetsShown
from planescope.figures.report.rounding import rounded
from planescope.measurement.record import LayerMeasurement

# Whether a layer is critical, in words.
WORDS = {"yes": "critical", "no": "not critical", "undecided": "undecided"}
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
        Relative drops, per cent, by layer; with an interval where there is one.
    losses : list of (value, low, high) or None
        Likewise the losses, which "critical" is about.
    scores : tuple of ScoreShown
    verdict, selection : str or None
        Of a relation, where there is one, and which layers it speaks of.
    decisions : list of str or None
        Whether each layer is critical, by the interval of its loss.
    bound : float or None
        Of the loss, per cent.
    runs : int
        How many the associations are of; 0 without a relation.
    """

    column: int | str
    drops: list[tuple[float | None, float | None, float | None] | None]
    scores: tuple[ScoreShown, ...]
    losses: list[tuple[float | None, float | None, float | None] | None]
    decisions: list[str | None]
    bound: float | None = None
    verdict: str | None = None
    selection: str | None = None
    runs: int = 0


def scores_shown(layers: Sequence[LayerMeasurement], resets: ResetsShown) -> RelationShown | None:
    """Return the scores beside the drops of the first column of some resets.

    No more than is known of each.
    """
    if not resets.is_drop:
        return None
    drops: list[Any] = [None] * len(layers)
    losses: list[Any] = [None] * len(layers)
    decisions: list[str | None] = [None] * len(layers)
    for place, row, loss, verdicts in zip(
        resets.layers, resets.values, resets.losses, resets.verdicts, strict=True
    ):
        if place is not None and row[0] is not None:
            drops[place], losses[place] = (row[0], None, None), loss[0]
            decisions[place] = WORDS.get(verdicts[0] or "")
    return RelationShown(
        column=resets.columns[0],
        drops=drops,
        losses=losses,
        decisions=decisions,
        bound=100 * THRESHOLD,
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
    losses: list[Any] = [None] * len(layers)
    decisions: list[str | None] = [None] * len(layers)
    for layer in related:
        place = places[layer.name]
        drops[place] = _interval(layer, "relative_drop")
        losses[place] = None if layer.loss is None else _interval(layer, "loss")
        decisions[place] = WORDS.get(layer.critical or "")
    keys = dict.fromkeys(key for layer in related for key in layer.scores)
    return RelationShown(
        column=0,
        drops=drops,
        losses=losses,
        decisions=decisions,
        bound=100 * relation.critical,
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
        selection=spoken(relation),
        runs=len(relation.runs),
    )


def _interval(layer: RelatedLayer, key: str) -> tuple[float | None, ...]:
    """Return a value with its interval, in per cent."""
    ends = (getattr(layer, f"{key}{end}") for end in ("", "_low", "_high"))
    return tuple(None if value is None else rounded(100 * value) for value in ends)


def _by_place(values: Mapping[int, float | None], count: int) -> list[float | None]:
    return [rounded(values.get(place)) for place in range(count)]


def _numbers(association: Association | None) -> dict[str, float | None] | None:
    if association is None:
        return None
    return {key: rounded(getattr(association, key)) for key in NUMBERS} | {
        "layers": association.layers,
        "decided": association.decided,
    }
