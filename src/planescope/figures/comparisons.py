"""Networks side by side, and one network under data that grow harder or noisier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.figures.canvas import (
    CHANCE,
    NEUTRAL,
    SIGNS_AN_INCH,
    Width,
    canvas,
    fitted,
    inches,
    styled,
)
from planescope.figures.dynamics import ON_TOP, depth_colors
from planescope.figures.layers import (
    AWAY_BIASED,
    TALLEST,
    TOWARD_BIASED,
    UNBIASED,
    legend,
    look,
    tested_level,
    usable_filters,
)
from planescope.files.errors import UsageError
from planescope.hyperplanes import chance
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.chance import NORMAL_95
from planescope.hyperplanes.statistics import Statistics
from planescope.measurement.record import LayerMeasurement, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The networks that one panel shows: several where only their seeds differ.
Group = Sequence[Measurement]

# Inches: the least width of a panel, its height with title and ticks; legend and label of the axis.
PANEL_WIDTH, PANEL, FRAME = 1.25, 1.15, 0.6
LINE = 0.135  # more of a title or legend
SETTING_WIDTH, SETTING_PANEL = 1.6, 1.55
# Points across, and of how many networks of a group each is drawn as if it were alone.
MARKER, FAINT_LINE = 2.8, 0.35
MARKERS = "osD^vPX"


def networks_room(width: Width) -> int:
    """Return how many panels of `networks` a page holds."""
    return _columns(width, PANEL_WIDTH) * int(TALLEST / (PANEL + 2 * LINE))


def settings_room(width: Width) -> int:
    """Return how many panels of `settings` stand side by side."""
    return _columns(width, SETTING_WIDTH)


def _columns(width: Width, panel: float) -> int:
    return max(1, int(inches(width) / panel))


@styled
def networks(groups: Mapping[str, Group], /, *, width: Width = "page") -> Figure:
    """Draw negative mass by layer, a panel a network, over the band of chance that was tested.

    Parameters
    ----------
    groups : mapping of str to sequence of Measurement
        By title; the measurements of one panel are drawn over each other, as of runs with other
        seeds. Loaded ones will do.
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If there is nothing to draw or more than a page holds, or `width` is invalid.
    """
    room = networks_room(width)
    if not 0 < len(groups) <= room or not all(groups.values()):
        raise UsageError(f"{len(groups)} networks: a figure so wide holds from 1 to {room}")
    columns = min(len(groups), _columns(width, PANEL_WIDTH))
    rows = math.ceil(len(groups) / columns)
    across = inches(width) / columns - 0.2
    titles = [_folded(title, across, len(group)) for title, group in groups.items()]
    lines = max(title.count("\n") for title in titles)
    figure = canvas(width, rows * (PANEL + lines * LINE) + FRAME)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, title, group in zip(panels, titles, groups.values(), strict=False):
        _chance_band(axes, group[0], "negative_mass")
        for measurement in group:
            _draw_network(axes, measurement, alone=len(group) == 1)
        axes.set_title(title)
        _layer_axis(axes, len(group[0].layers))
    for axes in panels[len(groups) :]:
        axes.remove()
    panels[0].set(ylim=(0, 1), yticks=(0, 0.5, 1))
    figure.supxlabel("layer", size="medium")
    figure.supylabel("negative mass", size="medium")
    legend(figure, inches(width))
    return figure


def _folded(title: str, width: float, networks: int = 1) -> str:
    """Return a title in lines of so many inches, parted at its commas.

    How many networks, if several.
    """
    room = int(SIGNS_AN_INCH * width)
    count = f" ({networks})" if networks > 1 else ""
    lines = [""]
    for part in (title + count).split(", "):
        fits = len(lines[-1]) + len(part) + 2 <= room
        if lines[-1] and fits:
            lines[-1] += ", "
        elif lines[-1]:
            lines.append("")
        lines[-1] += fitted(part, width)
    return "\n".join(lines)


def _draw_network(axes: Axes, measurement: Measurement, *, alone: bool) -> None:
    """Draw the points in the look of their bias, joined in the order of the network."""
    numbers, mass = np.arange(1, len(measurement.layers) + 1), _values(measurement, "negative_mass")
    looks = np.array([look(layer) for layer in measurement.layers])
    axes.plot(numbers, mass, color=NEUTRAL, linewidth=0.6 if alone else FAINT_LINE)
    for kind in (AWAY_BIASED, TOWARD_BIASED, UNBIASED):
        chosen = looks == kind
        if chosen.any():
            axes.plot(
                numbers[chosen],
                mass[chosen],
                linestyle="",
                marker=kind.marker,
                markersize=MARKER,
                color=kind.color,
                markerfacecolor=kind.color if kind.filled else "white",
                label=kind.label,
                **ON_TOP,
            )


@styled
def settings(
    panels: Mapping[str, Mapping[str, Group]], setting: str, /, *, width: Width = "page"
) -> Figure:
    """Draw the negative mass and mean cosine by layer, a line a value of a setting of the runs.

    A line is the mean over the runs of a value, between the least and the largest of them. Grey is
    where chance puts one network, with 95 % probability.

    Parameters
    ----------
    panels : mapping of str to mapping of str to sequence of Measurement
        By what else the runs have in common, and by value, in order.
    setting : str
        What it is called, as "label noise".
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If there is nothing to draw, there are more panels than have room, networks of one panel
        have different layers, or `width` is invalid.
    """
    room = settings_room(width)
    if not 0 < len(panels) <= room or not all(map(all, (p.values() for p in panels.values()))):
        raise UsageError(f"{len(panels)} panels: a figure so wide holds from 1 to {room}")
    names = list(dict.fromkeys(value for panel in panels.values() for value in panel))
    figure = canvas(width, 2 * SETTING_PANEL + FRAME)
    grid = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
    colors = dict(zip(names, depth_colors()([*_steps(len(names))]), strict=True))
    markers = dict(zip(names, itertools.cycle(MARKERS), strict=False))
    across = inches(width) / len(panels) - 0.3
    for column, (title, panel) in enumerate(panels.items()):
        first = next(iter(panel.values()))[0]
        for row, statistic in enumerate(("negative_mass", "mean_cosine")):
            axes = grid[row, column]
            _chance_band(axes, first, statistic)
            for value, group in panel.items():
                style = {"color": colors[value], "marker": markers[value], "label": value}
                _draw_mean(axes, group, statistic, style)
        grid[0, column].set_title(_folded(title, across))
        grid[1, column].set_xlabel("layer")
        _layer_axis(grid[1, column], len(first.layers))
    grid[0, 0].set(ylim=(0, 1), ylabel="negative mass")
    grid[1, 0].set_ylabel("mean cosine")
    lines = legend(figure, inches(width), setting)
    figure.set_figheight(figure.get_figheight() + lines * LINE)
    return figure


def _steps(count: int) -> Sequence[float]:
    return [i / max(1, count - 1) for i in range(count)]


def _draw_mean(axes: Axes, group: Group, statistic: str, style: Mapping[str, Any]) -> None:
    lengths = {tuple(layer.name for layer in m.layers) for m in group}
    if len(lengths) > 1:
        raise UsageError(f"{group[0].source.path}: networks of one line have different layers")
    values = np.array([_values(measurement, statistic) for measurement in group])
    numbers = np.arange(1, values.shape[1] + 1)
    if len(group) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(numbers, low, high, color=style["color"], alpha=0.18, linewidth=0)
    mean = values.mean(axis=0)
    axes.plot(numbers, mean, markersize=MARKER, **style, **ON_TOP)


def _values(measurement: Measurement, statistic: str) -> Floats:
    """Return a value a layer; NaN where it has no usable filter."""
    found = [getattr(layer, statistic) for layer in measurement.layers]
    return np.array([math.nan if value is None else value for value in found])


def mass_range(row: Statistics, level: float = chance.LEVEL) -> tuple[float, float]:
    """Return the range of a negative mass by chance; 1/2 where no filter is usable.

    `level` is how seldom chance leaves it: of a layer `tested_level`.
    """
    usable = usable_filters(row)
    return chance.mass_band(usable, level=1 - level) if usable else (0.5, 0.5)


def _mean_range(layer: LayerMeasurement) -> tuple[float, float]:
    """Return the same of a mean cosine."""
    usable = usable_filters(layer)
    spread = NORMAL_95 / math.sqrt(layer.fan_in * usable) if usable else 0.0
    return -spread, spread


def _chance_band(axes: Axes, measurement: Measurement, statistic: str) -> None:
    level = tested_level(measurement.layers)
    ranges = [
        mass_range(layer, level) if statistic == "negative_mass" else _mean_range(layer)
        for layer in measurement.layers
    ]
    low, high = np.array(ranges).T
    steps = np.add.outer(np.arange(1, len(low) + 1), (-0.5, 0.5)).ravel()
    axes.fill_between(
        steps, low.repeat(2), high.repeat(2), color=CHANCE, linewidth=0, label="chance, 95 %"
    )


def _layer_axis(axes: Axes, layers: int) -> None:
    axes.set_xlim(0.5, layers + 0.5)
    axes.locator_params(axis="x", integer=True, nbins=5)
