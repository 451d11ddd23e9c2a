"""Scores that need no data against what resetting a layer costs: drops, ranks, critical layers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.criticality.definition import Critical
from planescope.criticality.relation.ranks import resampled
from planescope.criticality.relation.ranks import roc as roc_curves
from planescope.criticality.relation.record import RelatedLayer, Relation, Selection
from planescope.criticality.scores import SCORES
from planescope.figures.canvas import CHANCE, NEUTRAL, Width, canvas, inches, shown, styled
from planescope.figures.layers import row_pitch
from planescope.files.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Runs are told apart by marker; where there are more than have room for names, networks are.
MARKERS = "osD^vPX<>p*h"
MOST_NAMED = 6
# Okabe and Ito's, of scores: the method's own, the best other, position.
CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73")
CURVE_LINES = ("-", (0, (4, 1)), (0, (1, 1)))
AXIS_NAMES = {
    "agreement": "agreement",
    "abs_z": "|z|",
    "mean_cosine": "mean cosine",
    "mean_centre": "mean centre",
    "l2": "l2 distance",
    "linf": "l∞ distance",
    "frobenius": "Frobenius norm",
    "spectral": "spectral norm",
    "stable_rank": "stable rank",
    "position": "position",
    "random": "random",
}
# Inches.
PANEL, WIDE, LEGEND_LINE, PITCH, FRAME, BELOW = 2.1, 5.0, 0.13, 0.15, 0.75, 0.36
DRAWS = 999
LONGEST_NAME = 22


@styled
def relation(relation: Relation, /, *, width: Width = "page") -> Figure:
    """Draw the agreement against the drop, ranks by layer, and ROC curves, side by side.

    Parameters
    ----------
    relation : Relation
    width : "column", "page" or inches
        A narrow figure has its panels one above the other.

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    wide = inches(width) >= WIDE
    rows = len(_ranked_layers(relation)[1])
    ranks_height = rows * row_pitch(rows, PITCH) + FRAME
    key = LEGEND_LINE * max(4, _legend_lines(relation, 2))
    if wide:
        figure = canvas(width, max(PANEL + key, ranks_height))
        panels = list(figure.subplots(1, 3))
    else:
        figure = canvas(width, 2 * (PANEL + key) + ranks_height)
        panels = list(figure.subplots(3, 1, height_ratios=[PANEL, ranks_height, PANEL]))
    _scatter(panels[0], relation, "agreement")
    _ranks(panels[1], relation)
    _curves(panels[2], relation)
    for letter, axes in zip("abc", panels, strict=True):
        axes.set_title(f"{letter}  {axes.get_title(loc='left')}".rstrip())
    return figure


@styled
def score_against_drop(
    relation: Relation, /, *, score: str = "agreement", width: Width = "column"
) -> Figure:
    """Draw one score against the relative drop, a point a layer; runs are told apart by marker.

    A filled point is critical by the definition, a white one is not, a pale one is undecided, and
    a cross has no loss to tell by; a ringed one is a first layer, whose input is an image. Of one
    run a line stands where the bound of the loss lies.

    Parameters
    ----------
    relation : Relation
    score : str
        A name of `planescope.criticality.scores.SCORES`.
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` or `score` is invalid.
    """
    if score not in SCORES:
        raise UsageError(f"unknown score {score!r}; there are {', '.join(SCORES)}")
    figure = canvas(width, PANEL + LEGEND_LINE * _legend_lines(relation, 2))
    _scatter(figure.subplots(), relation, score)
    return figure


@styled
def ranks(relation: Relation, /, *, width: Width = "column") -> Figure:
    """Draw each layer's mean rank by agreement and by drop, over runs of the commonest network.

    Parameters
    ----------
    relation : Relation
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    rows = len(_ranked_layers(relation)[1])
    figure = canvas(width, rows * row_pitch(rows, PITCH) + FRAME)
    _ranks(figure.subplots(), relation)
    return figure


@styled
def roc(relation: Relation, /, *, width: Width = "column") -> Figure:
    """Draw ROC curves for critical layers, with 95 % bands: agreement, the best score, position.

    Layers whose loss is not told from the bound are left out.

    Parameters
    ----------
    relation : Relation
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    figure = canvas(width, PANEL + 4 * LEGEND_LINE)
    _curves(figure.subplots(), relation)
    return figure


def _groups(relation: Relation) -> dict[str, list[RelatedLayer]]:
    """Return the layers by what their marker tells: run, or network where there are many runs."""
    by_network = len(relation.runs) > MOST_NAMED
    above = len(os.path.commonpath([Path(run).parent for run in relation.runs]))
    groups: dict[str, list[RelatedLayer]] = {}
    for layer in relation.layers:
        name = layer.network if by_network else layer.run[above:].lstrip(os.sep)
        groups.setdefault(name, []).append(layer)
    return groups


def _legend_lines(relation: Relation, columns: int) -> int:
    return -(-(len(_groups(relation)) + len(_seen(relation)) + 1) // columns)


# The face of a point by what is said of its layer, and the word of the legend.
FACES = {
    Critical.YES: (CURVE_COLORS[0], "critical"),
    Critical.UNDECIDED: ("#B8D4E8", "undecided"),
    Critical.NO: ("white", "not critical"),
    None: ("none", "no loss known"),
}


def _scatter(axes: Axes, relation: Relation, score: str) -> None:
    style: dict[str, Any] = {"linestyle": "", "color": CURVE_COLORS[0], "markeredgewidth": 0.8}
    drawn: dict[str, Any] = {"alpha": 0.85, "clip_on": False, "in_layout": False}
    for i, (name, layers) in enumerate(_groups(relation).items()):
        marker = MARKERS[i % len(MARKERS)]
        for verdict, (face, _) in FACES.items():
            own = [layer for layer in layers if layer.critical is verdict]
            look = {**style, "marker": marker if verdict else "x", "markerfacecolor": face}
            axes.plot(
                _values(own, score), [100 * each.relative_drop for each in own], **look, **drawn
            )
        axes.plot([], [], linestyle="", marker=marker, color=NEUTRAL, label=shown(name, 16))
    for verdict in _seen(relation):
        face, word = FACES[verdict]
        look = {**style, "marker": "o" if verdict else "x", "markerfacecolor": face}
        axes.plot([], [], label=word, **look)
    firsts = [layer for layer in relation.layers if layer.selection is Selection.FIRST]
    axes.plot(
        _values(firsts, score),
        [100 * layer.relative_drop for layer in firsts],
        linestyle="",
        marker="o",
        markersize=7,
        markerfacecolor="none",
        color=CHANCE,
        markeredgewidth=0.8,
        zorder=1,
        label="first layer",
        clip_on=False,
        in_layout=False,
    )
    bound = _bound(relation)
    if bound is not None:
        axes.axhline(100 * bound, color=CHANCE, linewidth=0.6, zorder=0)
    axes.set(xlabel=AXIS_NAMES[score], ylabel="relative drop, %")
    found = relation.at(score, relation.selection)
    if found is not None and found.rho is not None:
        axes.set_title(f"ρ = {found.rho:.2f}")
    _legend_below(axes, 2)


def _seen(relation: Relation) -> list[Critical | None]:
    """Return what is said of the layers, in the order of the legend."""
    there = {layer.critical for layer in relation.layers}
    return [verdict for verdict in FACES if verdict in there]


def _bound(relation: Relation) -> float | None:
    """Return the relative drop at which a loss reaches the bound; None of several networks."""
    known = {(layer.trained, layer.chance) for layer in relation.layers}
    if len(known) > 1:
        return None
    ((trained, chance),) = known
    if trained is None or chance is None:
        return None
    return relation.critical * (trained - chance) / trained


def _values(layers: Sequence[RelatedLayer], score: str) -> list[float]:
    """Return NaN, which is not drawn, where a layer has no such score."""
    found = (layer.scores[score] for layer in layers)
    return [math.nan if value is None else value for value in found]


def _legend_below(axes: Axes, columns: int) -> None:
    from matplotlib.transforms import ScaledTranslation

    # Below the ticks and the label, which are as high in a low panel as in a high one.
    below = ScaledTranslation(0, -BELOW, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        ncols=columns,
        handletextpad=0.4,
        borderaxespad=0,
    )


def _ranked_layers(relation: Relation) -> tuple[str, list[str]]:
    """Return the commonest network, and names of its layers that the ranks are of."""
    counts: dict[str, set[str]] = {}
    for layer in relation.layers:
        counts.setdefault(layer.network, set()).add(layer.run)
    network = max(counts, key=lambda name: len(counts[name]))
    names = [
        layer.name
        for layer in relation.layers
        if layer.network == network and _chosen(relation, layer)
    ]
    return network, list(dict.fromkeys(names))


def _chosen(relation: Relation, layer: RelatedLayer) -> bool:
    return relation.selection in (Selection.ALL, layer.selection)


def _ranks(axes: Axes, relation: Relation) -> None:
    """Draw two marks a layer: its mean rank by agreement and by drop; a line joins them."""
    from scipy.stats import rankdata

    network, names = _ranked_layers(relation)
    runs: dict[str, list[RelatedLayer]] = {}
    for layer in relation.layers:
        if layer.network == network and layer.name in names and _chosen(relation, layer):
            runs.setdefault(layer.run, []).append(layer)
    whole = [
        layers
        for layers in runs.values()
        if all(layer.scores["agreement"] is not None for layer in layers)
    ]
    scores = [rankdata([layer.scores["agreement"] for layer in layers]) for layers in whole]
    drops = [rankdata([layer.relative_drop for layer in layers]) for layers in whole]
    rows = np.arange(len(names))
    if whole:
        by_score, by_drop = np.mean(scores, axis=0), np.mean(drops, axis=0)
        axes.hlines(rows, by_score, by_drop, color=CHANCE, linewidth=1.5, zorder=0)
        axes.plot(by_score, rows, "o", color=CURVE_COLORS[0], label="agreement", clip_on=False)
        # Hollow, so that two marks at one place are both seen.
        axes.plot(
            by_drop,
            rows,
            "D",
            color=CURVE_COLORS[1],
            markerfacecolor="none",
            markersize=6,
            label="relative drop",
            clip_on=False,
        )
    axes.set_yticks(rows, [shown(name, LONGEST_NAME) for name in names])
    axes.set(xlabel="mean rank (highest last)", ylim=(len(names) - 0.4, -0.6))
    axes.set_xlim(1, max(2, len(names)))
    axes.tick_params(axis="y", length=0)
    axes.set_title(shown(network, 24))
    _legend_below(axes, 2)


def _curves(axes: Axes, relation: Relation) -> None:
    """Draw ROC curves with bands, over the decided layers that the verdict speaks of."""
    every = [layer for layer in relation.layers if _chosen(relation, layer)]
    layers = [layer for layer in every if layer.is_decided]
    rng = np.random.default_rng(relation.seed)
    runs = {run: i for i, run in enumerate(dict.fromkeys(layer.run for layer in layers))}
    of = np.array([runs[layer.run] for layer in layers], dtype=np.intp)
    # Draws of whole runs, or of layers where there is one run.
    units = of if len(runs) > 1 else np.arange(len(layers))
    count = int(units.max(initial=0)) + 1
    weights = resampled(count, draws=DRAWS, rng=rng)[:, units]
    grid = np.linspace(0, 1, 101)
    axes.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.8)
    for i, score in enumerate(_compared(relation)):
        found = relation.at(score, relation.selection)
        values = np.array(_values(layers, score))
        there = np.isfinite(values)
        critical = np.array([layer.critical is Critical.YES for layer in layers])[there]
        if found is None or found.auc is None:
            continue
        curve = roc_curves(values[there], critical, np.ones((1, there.sum())), grid)[0]
        band = roc_curves(values[there], critical, weights[:, there], grid)
        low, high = np.nanquantile(band, (0.025, 0.975), axis=0)
        axes.fill_between(grid, low, high, color=CURVE_COLORS[i], alpha=0.15, linewidth=0)
        label = f"{AXIS_NAMES[score]}, area {found.auc:.2f}"
        axes.plot(grid, curve, color=CURVE_COLORS[i], linestyle=CURVE_LINES[i], label=label)
    axes.set(
        xlabel="share of false alarms",
        ylabel="share of critical found",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    _, labels = axes.get_legend_handles_labels()
    left_out = len(every) - len(layers)
    if labels:
        if left_out:
            axes.plot([], [], " ", label=f"{left_out} undecided: left out")
        _legend_below(axes, 1)
    else:
        text = "all layers are alike:\nnone is critical, or every one is"
        if not layers:
            text = "of no layer it is decided\nwhether it is critical"
        axes.text(0.5, 0.5, text, ha="center", va="center", color=NEUTRAL)
    axes.set_title("critical layers")


def _compared(relation: Relation) -> Sequence[str]:
    """Return the agreement, the best of the other scores, position."""
    best = next(
        (c.best for c in relation.comparisons if c.selection is relation.selection), "agreement"
    )
    return list(dict.fromkeys(("agreement", best, "position")))
