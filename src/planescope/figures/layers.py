"""Figures with one row a layer: negative masses, and distributions of the cosine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.figures.canvas import (
    AWAY,
    CHANCE,
    FAINT,
    NEUTRAL,
    TOWARD,
    Width,
    canvas,
    inches,
    shown,
    styled,
)
from planescope.hyperplanes import chance
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.statistics import Filters, Statistics
from planescope.measurement.record import LayerMeasurement, Measurement, filter_values

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Inches. A page has room for 8.5 below its legend; a name needs 0.11.
TALLEST, NAME_PITCH = 8.5, 0.11
MASS_PITCH, RIDGE_PITCH = 0.165, 0.3
# Legend above the rows, ticks and label below them.
FRAME = 0.75
# A figure this wide has two columns of ridges where there are more rows than this.
TWO_COLUMNS, MANY = 5.0, 12
LEGEND_ENTRY = 1.05
# Height of a ridge's peak, in rows.
PEAK = 0.86
# Width of a bin in standard deviations over cbrt(N). Scott's 3.49, right for one normal peak, hides
# that there are several.
SMOOTHING, MOST_BINS = 2.5, 64
DAGGER = "†"


@dataclass(frozen=True, kw_only=True)
class Look:
    """The look of a row: bias by fill and shape, its side by colour."""

    label: str
    color: str
    marker: str
    filled: bool

    @property
    def face(self) -> str:
        """Return the colour that fills its histograms."""
        return self.color if self.filled else FAINT


AWAY_BIASED = Look(label="biased to π ≤ 0", color=AWAY, marker="D", filled=True)
TOWARD_BIASED = Look(label="biased to π > 0", color=TOWARD, marker="D", filled=True)
UNBIASED = Look(label="not biased", color=NEUTRAL, marker="o", filled=False)
POOL = Look(label="all layers", color=NEUTRAL, marker="s", filled=True)


def look(layer: LayerMeasurement) -> Look:
    """Look of a layer."""
    if not layer.biased or layer.negative_mass is None:
        return UNBIASED
    return AWAY_BIASED if layer.negative_mass > 0.5 else TOWARD_BIASED


@styled
def negative_mass(measurement: Measurement, /, *, width: Width = "column") -> Figure:
    """Draw the negative mass of each layer, over the band of chance that was tested.

    It is exact, and corrected over the layers: 5 % of the layers called biased may be so by chance.
    One row a layer in the order of the network, the network's pool last. Biased layers are filled,
    in the colour of the side that their normals face. A dagger marks layers with filters left out.

    Parameters
    ----------
    measurement : Measurement
        A loaded one will do.
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    pitch = row_pitch(len(measurement.layers) + 1, MASS_PITCH)
    figure = canvas(width, (len(measurement.layers) + 1) * pitch + FRAME)
    axes = figure.add_subplot()
    mass_panel(axes, measurement)
    name_rows(axes, measurement.layers, pitch, pool=True)
    mark_stages(axes, measurement.layers, pitch)
    legend(figure, inches(width))
    return figure


@styled
def cosines(measurement: Measurement, /, *, width: Width = "column") -> Figure:
    """Draw the distribution of the cosines of each layer, over the density that chance gives.

    Each row has a histogram and the density of the layer's law at initialisation, in one scale; a
    row is as high as its peak. A wide figure of many layers has two columns of rows.

    Parameters
    ----------
    measurement : Measurement
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    NoLayersError
        If the measurement was loaded from a file, which holds no filters.
    """
    layers = measurement.layers
    columns = 2 if len(layers) > MANY and inches(width) >= TWO_COLUMNS else 1
    rows = math.ceil(len(layers) / columns)
    pitch = row_pitch(rows, RIDGE_PITCH)
    figure = canvas(width, rows * pitch + FRAME)
    panels = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    for axes, start in zip(panels, range(0, len(layers), rows), strict=True):
        part = layers[start : start + rows]
        ridge_panel(axes, measurement, part)
        name_rows(axes, part, pitch, rows=rows)
        mark_stages(axes, part, pitch)
    legend(figure, inches(width))
    return figure


def row_pitch(rows: int, best: float) -> float:
    """Return the inches a row, so that a page holds them all."""
    return min(best, TALLEST / rows)


def mass_panel(axes: Axes, measurement: Measurement) -> None:
    """Draw the masses over their bands of chance; the network's pool is the last row."""
    rows = [*measurement.layers, measurement.network]
    looks = np.array([*map(look, measurement.layers), POOL])
    mass = np.array([math.nan if row.negative_mass is None else row.negative_mass for row in rows])
    # The band that was tested, corrected over the layers; all filters together are one test.
    level = tested_level(measurement.layers)
    mass_bands(
        axes,
        [usable_filters(row) for row in rows],
        [*([level] * len(measurement.layers)), chance.LEVEL],
        label="chance, 95 %",
    )
    y = np.arange(len(rows))
    axes.hlines(y, 0.5, mass, colors=[look.color for look in looks], linewidth=0.8)
    for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED, POOL):
        chosen = looks == kind
        if chosen.any():
            _plot_points(axes, mass[chosen], y[chosen], kind)
    for row in np.flatnonzero(np.isnan(mass)):  # no usable filter
        axes.text(0.5, float(row), "none", ha="center", va="center", style="italic")
    axes.set_xticks((0.25, 0.75), minor=True)


def tested_level(layers: Sequence[LayerMeasurement]) -> float:
    """Return the p-value below which a layer is biased, beside the others."""
    return chance.called_level([layer.p_mass for layer in layers])


def mass_bands(
    axes: Axes, filters: Sequence[int], levels: Sequence[float], *, label: str, parts: int = 1
) -> None:
    """Draw the masses that chance gives so many filters, a row each, and their axis.

    `levels` are how seldom chance leaves the band of each row; a row has so many `parts`.
    """
    low, high = np.array(
        [
            chance.mass_band(count, level=1 - level) if count else (0.5, 0.5)
            for count, level in zip(filters, levels, strict=True)
        ]
    ).T
    steps = np.add.outer(np.arange(len(filters)), (0, 1)).ravel() / parts - 0.5
    band = low.repeat(2), high.repeat(2)
    axes.fill_betweenx(steps, *band, color=CHANCE, linewidth=0, label=label)
    axes.axvline(0.5, color=NEUTRAL, linewidth=0.5)
    axes.set(xlim=(0, 1), xlabel="negative mass m")
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))


def _plot_points(axes: Axes, mass: Floats, y: Any, kind: Look) -> None:
    axes.plot(
        mass,
        y,
        linestyle="",
        marker=kind.marker,
        color=kind.color,
        markerfacecolor=kind.color if kind.filled else "white",
        label=kind.label,
        clip_on=False,  # masses of 0 and 1 are drawn whole
        zorder=3,
    )


def ridge_panel(axes: Axes, measurement: Measurement, layers: Sequence[LayerMeasurement]) -> None:
    """Draw the histograms of cosines with the density of chance over them, one row a layer."""
    from matplotlib.collections import LineCollection, PolyCollection

    histograms: dict[Look, list[Floats]] = {}
    laws: list[Floats] = []
    for row, layer in enumerate(layers):
        (histogram,), law = ridge([filter_values(measurement, layer)], layer.fan_in, row)
        histograms.setdefault(look(layer), []).append(histogram)
        laws.append(law)
    for kind, polygons in histograms.items():
        axes.add_collection(
            PolyCollection(
                polygons, facecolor=kind.face, edgecolor=kind.color, linewidth=0.3, label=kind.label
            )
        )
    lines = LineCollection(laws, colors="black", linewidths=0.8, label="chance, density")
    axes.add_collection(lines)
    cosine_axis(axes, measurement.layers)


def ridge(versions: Sequence[Filters], fan_in: int, row: int) -> tuple[list[Floats], Floats]:
    """Return the outlines of a layer's histograms, and the density of chance, placed in a row.

    All versions of the layer have the same bins and scale: the row is as high as the highest peak.
    """
    cosines = [values.cosine[values.usable] for values in versions]
    edges = bins(np.concatenate(cosines), fan_in, max(map(len, cosines)))
    outlines, law = [_outline(cosine, edges) for cosine in cosines], law_curve(fan_in)
    peak = max(curve[:, 1].max(initial=0.0) for curve in (*outlines, law))
    base = np.array([0.0, row + 0.5 * PEAK])
    unit = np.array([1.0, -PEAK / (peak or 1.0)])
    return [base + unit * outline for outline in outlines], base + unit * law


def cosine_axis(axes: Axes, layers: Iterable[LayerMeasurement]) -> None:
    """Range of cosines that shows every filter of some layers, and what chance may give."""
    largest = [
        max(
            abs(layer.min_cosine or 0.0),
            abs(layer.max_cosine or 0.0),
            4.0 / math.sqrt(max(1, layer.fan_in)),
        )
        for layer in layers
    ]
    reach = 1.03 * min(1.0, max(largest))
    axes.axvline(0.0, color=CHANCE, linewidth=0.5, zorder=0)
    axes.set(xlim=(-reach, reach), xlabel="cosine c")


def bins(cosine: Floats, fan_in: int, filters: int) -> Floats:
    """Return the edges of bins that hold these cosines, for histograms of so many of them.

    Cosines that spread wider than chance are binned as finely as if they did not.
    """
    if not len(cosine):
        return np.zeros(1)
    low, high = cosine.min(), cosine.max()
    chance_spread = 1.0 / math.sqrt(fan_in)
    spread = min(cosine.std(), chance_spread) or 0.1 * chance_spread
    width = max(SMOOTHING * spread / np.cbrt(filters), (high - low) / MOST_BINS)
    count = math.floor((high - low) / width) + 1
    edges: Floats = 0.5 * (low + high) + width * (np.arange(count + 1) - 0.5 * count)
    return edges


def _outline(cosine: Floats, edges: Floats) -> Floats:
    """Return the outline (cosine, density) of a histogram; flat where there is no cosine."""
    counts, _ = np.histogram(cosine, edges)
    density = counts / (max(len(cosine), 1) * np.diff(edges))
    return np.stack([np.repeat(edges, 2), np.pad(np.repeat(density, 2), 1)], axis=1)


def law_curve(fan_in: int) -> Floats:
    """Return the points (cosine, density) of what chance gives.

    None for d = 1, which has no density.
    """
    if fan_in < 2:
        return np.empty((0, 2))
    # Closer where the law is narrow; the end points, where that of d = 2 is infinite, are left out.
    angle = np.linspace(-1.0, 1.0, 201) * min(0.98 * math.pi / 2, 4.0 / math.sqrt(fan_in))
    grid = np.sin(angle)
    return np.stack([grid, chance.cosine_density(grid, fan_in)], axis=1)


def name_rows(
    axes: Axes,
    layers: Sequence[LayerMeasurement],
    pitch: float,
    *,
    pool: bool = False,
    rows: int | None = None,
) -> None:
    """Name the rows, first layer on top; every row where its name has room."""
    every = math.ceil(NAME_PITCH / pitch)
    names = {i: _name(layers[i]) for i in range(0, len(layers), every)}
    if pool:
        names = {i: name for i, name in names.items() if i + every <= len(layers)}
        names[len(layers)] = POOL.label
    axes.set_yticks(list(names), list(names.values()))
    if any(_left_out(layer) for layer in layers):
        axes.plot([], [], " ", label=f"{DAGGER} filters left out")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim((rows or len(layers) + pool) - 0.5, -0.5)


def _name(layer: LayerMeasurement) -> str:
    return shown(layer.name) + (f" {DAGGER}" if _left_out(layer) else "")


def usable_filters(row: Statistics) -> int:
    """Count the filters that a negative mass is a share of."""
    return row.filters - row.degenerate - row.non_finite - row.sideless


def _left_out(layer: LayerMeasurement) -> int:
    return layer.degenerate + layer.non_finite + layer.sideless


def mark_stages(axes: Axes, layers: Sequence[LayerMeasurement], pitch: float) -> None:
    """Part the stages of the network by lines, and name them on the right where there is room."""
    place = axes.get_yaxis_transform()
    start = 0
    for stage, run in itertools.groupby(layers, key=lambda layer: layer.stage):
        end = start + len(list(run))
        if stage is not None and (end - start) * pitch >= NAME_PITCH:
            middle = 0.5 * (start + end - 1)
            axes.text(1.03, middle, f"stage {stage}", transform=place, va="center", color=NEUTRAL)
        if start:
            axes.axhline(start - 0.5, color=NEUTRAL, linewidth=0.4, linestyle=(0, (1, 2)))
        start = end


def legend(
    figure: Figure | SubFigure,
    width: float,
    title: str | None = None,
    *,
    entry: float = LEGEND_ENTRY,
) -> int:
    """Return one legend above all panels, of what is in any of them; gives its number of lines.

    `width` and `entry`, the room of an entry, are inches.
    """
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    lines = math.ceil(len(entries) / max(1, int(width / entry)))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper center" if title is None else "outside upper left",
        ncols=math.ceil(len(entries) / lines),
        title=title,
        alignment="left",
    )
    return lines
