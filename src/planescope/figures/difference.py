"""The figure of a difference: masses before and after, sides changed, distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.figures.canvas import (
    AWAY,
    NEUTRAL,
    TOWARD,
    Width,
    canvas,
    inches,
    shown,
    styled,
)
from planescope.figures.layers import FRAME, MASS_PITCH, NAME_PITCH, legend, mass_bands, row_pitch
from planescope.hyperplanes import chance
from planescope.measurement.difference import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: a narrow figure has its panels one above the other.
WIDE = 5.0


@styled
def difference(difference: Difference, /, *, width: Width = "page") -> Figure:
    """Draw each layer's negative mass before and after, filters that changed sides, distance.

    One row a layer in the order of the first checkpoint. The grey band is the one that was tested,
    corrected over the layers of each checkpoint, for the filters that have a side: in the upper
    half of a row before, in the lower half after. An arrow leads from the mass before to the mass
    after.

    Parameters
    ----------
    difference : Difference
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` cannot be.
    """
    rows = len(difference.layers)
    pitch = row_pitch(rows, MASS_PITCH)
    height = rows * pitch + FRAME
    if inches(width) >= WIDE:
        figure = canvas(width, height)
        panels = list(figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1]))
    else:
        figure = canvas(width, 3 * height)
        panels = list(figure.subplots(3, 1, sharey=True))
    _masses(panels[0], difference)
    _sides(panels[1], difference)
    _distances(panels[2], difference)
    every = math.ceil(NAME_PITCH / pitch)
    names = {i: shown(difference.layers[i].name) for i in range(0, rows, every)}
    for axes in panels:
        axes.set_yticks(list(names), list(names.values()))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_ylim(rows - 0.5, -0.5)
    legend(figure, inches(width))
    return figure


def _masses(axes: Axes, difference: Difference) -> None:
    layers = difference.layers
    y = np.arange(len(layers))
    _bands(axes, difference)
    before, after = (
        np.array([math.nan if (m := getattr(layer, key)) is None else m for layer in layers])
        for key in ("mass_before", "mass_after")
    )
    for row, (start, end) in enumerate(zip(before, after, strict=True)):
        if abs(end - start) > 0.02:  # shorter than its head otherwise
            arrow = {"arrowstyle": "->", "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0}
            color = AWAY if end > start else TOWARD
            axes.annotate("", (end, row), (start, row), arrowprops={**arrow, "color": color})
    common: dict[str, Any] = {"linestyle": "", "clip_on": False, "zorder": 3}
    axes.plot(
        before, y, marker="o", color=NEUTRAL, markerfacecolor="white", label="before", **common
    )
    axes.plot(after, y, marker="D", color=NEUTRAL, label="after", **common)


def _bands(axes: Axes, difference: Difference) -> None:
    """Draw the bands that were tested: in the upper half of a row before, in the lower after."""
    layers = difference.layers
    levels = difference.level_before, difference.level_after
    tested = [(layer.tested_before, layer.tested_after) for layer in layers]
    label = "chance, tested: before above, after below"
    if None in levels or any(None in pair for pair in tested):
        # Of a file of before, which does not say what was tested.
        levels = (chance.LEVEL, chance.LEVEL)
        tested = [(layer.filters, layer.filters) for layer in layers]
        label = "chance, 95 %, of one layer alone"
    mass_bands(
        axes,
        [count or 0 for pair in tested for count in pair],
        [level or chance.LEVEL for _ in layers for level in levels],
        label=label,
        parts=2,
    )


def _sides(axes: Axes, difference: Difference) -> None:
    layers = difference.layers
    y = np.arange(len(layers))
    for key, sign, color, label in (
        ("turned_away", 1, AWAY, "turned away"),
        ("turned_toward", -1, TOWARD, "turned toward"),
    ):
        shares = [sign * getattr(layer, key) / layer.filters for layer in layers]
        axes.barh(y, shares, height=0.6, color=color, label=label)
    axes.axvline(0.0, color=NEUTRAL, linewidth=0.5)
    reach = max(0.05, *(max(x.turned_away, x.turned_toward) / x.filters for x in layers)) * 1.05
    axes.set(xlim=(-reach, reach), xlabel="share of filters\nthat changed sides")


def _distances(axes: Axes, difference: Difference) -> None:
    layers = difference.layers
    y = np.arange(len(layers))
    known = np.array([math.nan if layer.l2 is None else layer.l2 for layer in layers])
    axes.barh(y, np.nan_to_num(known), height=0.6, color=NEUTRAL)
    for row in np.flatnonzero(np.isnan(known)):
        axes.text(0.0, float(row), " not comparable", va="center", style="italic")
    top = float(np.nanmax(known, initial=0.0))
    axes.set(xlim=(0, 1.05 * top or 1.0), xlabel="distance of the weights,\nrelative (l2)")
