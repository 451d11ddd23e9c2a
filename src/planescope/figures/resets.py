"""The heat map of Zhang, Bengio and Singer: what a reset costs, layers × snapshots."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planescope.criticality.definition import Critical
from planescope.criticality.resets.record import RAND, ResetLayer, Resets
from planescope.figures.canvas import AWAY, NEUTRAL, TOWARD, Width, canvas, inches, shown, styled
from planescope.figures.layers import row_pitch
from planescope.hyperplanes.arrays import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Inches: a row; what stands above and below the rows; the strip, the scale.
PITCH, FRAME, STRIP, SCALE = 0.2, 0.75, 0.36, 0.1
# More below, where the names of columns stand aslant.
ASLANT = 0.45
# Inches that three digits in parentheses need at a size of one point; the least and the largest
# size in points; and the points that an inch of a row's height has room for.
DIGITS, SMALLEST, LARGEST, FILLING = 0.043, 4.0, 6.5, 60.0
# Characters of a name, and inches of one; inches between names that stand aslant.
LONGEST_NAME, LONGEST_SNAPSHOT = 26, 18
CHARACTER, APART = 0.058, 0.15


@styled
def heatmap(resets: Resets, /, *, width: Width = "page") -> Figure:
    """Draw relative drop of the accuracy with each layer put back to each snapshot, in per cent.

    Cells of fresh draws have their mean. The number of a layer that is critical by its loss is in
    bold; a drop within noise has its number in parentheses, or is dotted where numbers have no
    room. Beside the map stands each layer's negative mass once
    trained, in bold where the layer is biased. Where the trained network knows nothing there are no
    drops, and the map has accuracies.

    Parameters
    ----------
    resets : Resets
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    rows, columns = resets.rows, resets.snapshots
    pitch = row_pitch(len(rows), PITCH)
    names = told_apart(rows)
    name = 0.075 * max(map(len, names))
    across = max(0.6, inches(width) - name - STRIP - SCALE - 0.7)
    titles = [shown(str(column), LONGEST_SNAPSHOT) for column in columns]
    room, needed = across / len(columns), CHARACTER * (max(map(len, titles)) + 1)
    # A number is read where one in so many has its name; of files each needs its own.
    aslant = needed > room and not _are_epochs(columns)
    figure = canvas(width, len(rows) * pitch + FRAME + ASLANT * aslant)
    axes, strip, scale = figure.subplots(1, 3, width_ratios=[across, STRIP, SCALE])
    values, is_drop = _values(resets)
    size = min(LARGEST, FILLING * pitch, across / len(columns) / DIGITS)
    image = axes.imshow(
        values, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="nearest"
    )
    _write_cells(axes, resets, values, size)
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(length=0, labelsize=min(6.5, 60 * pitch))
    _name_columns(axes, titles, (APART if aslant else needed) / room, aslant=aslant)
    axes.set_xlabel("put back to epoch" if _are_epochs(columns) else "put back to")
    _draw_strip(strip, resets, min(LARGEST, FILLING * pitch))
    for frame in (axes, strip):
        frame.spines[:].set_visible(False)
    label = "relative drop, %" if is_drop else "accuracy, %"
    figure.colorbar(
        image, cax=scale, label=label, extend="min" if (values < 0).any() else "neither"
    )
    scale.tick_params(length=2)
    return figure


def _values(resets: Resets) -> tuple[Floats, bool]:
    """Return the per cent by row and column, NaN where there is no cell.

    And whether they are drops.
    """
    is_drop = any(cell.relative_drop is not None for cell in resets.cells)

    def value(row: str, column: int | str) -> float:
        cells = resets.at(row, column)
        drop = resets.drop(row, column)
        if is_drop:
            return float("nan") if drop is None else 100 * drop[0]
        values = [cell.value for cell in cells if cell.value is not None]
        return 100 * statistics.fmean(values) if values else float("nan")

    table = [[value(row, column) for column in resets.snapshots] for row in resets.rows]
    return np.asarray(table), is_drop


def _write_cells(axes: Axes, resets: Resets, values: Floats, size: float) -> None:
    import matplotlib as mpl

    colors = mpl.colormaps["viridis"]
    for i, row in enumerate(resets.rows):
        for j, column in enumerate(resets.snapshots):
            cells = resets.at(row, column)
            if not cells:
                continue
            noise = any(cell.significant is False for cell in cells)
            color = readable(colors, values[i, j] / 100)
            if size >= SMALLEST:
                number = f"{values[i, j]:.0f}".replace("-0", "0")
                text = f"({number})" if noise else number
                is_critical = resets.critical(row, column) is Critical.YES
                weight = "bold" if is_critical else "normal"
                place: dict[str, Any] = {"ha": "center", "va": "center", "weight": weight}
                axes.text(j, i, text, color=color, size=size, **place)
            elif noise:
                axes.plot(j, i, ".", color=color, markersize=2)


def readable(colors: Colormap, share: float) -> str:
    """Return the black or white, whichever stands out from the colour of a cell."""
    red, green, blue, _ = colors(share)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def told_apart(names: Sequence[str]) -> list[str]:
    """Return the names that are short enough; of long ones, what all have in common is left out."""
    if len(names) > 1 and max(map(len, names)) > LONGEST_NAME:
        reverse = [name[::-1] for name in names]
        head, tail = (os.path.commonprefix(n).rpartition(".")[0] for n in (names, reverse))  # noqa: RUF071
        names = [
            f"{'…' * bool(head)}{name[len(head) : len(name) - len(tail)]}{'…' * bool(tail)}"
            for name in names
        ]
    return [shown(name, LONGEST_NAME) for name in names]


def _are_epochs(columns: Sequence[int | str]) -> bool:
    return all(isinstance(column, int) or column == RAND for column in columns)


def _name_columns(axes: Axes, titles: Sequence[str], columns: float, *, aslant: bool) -> None:
    """Name the last column, and others as far as there is room; a name takes some columns."""
    step = math.ceil(columns)
    last = len(titles) - 1
    named = [*(i for i in range(0, last, step) if last - i >= step), last]
    axes.set_xticks(named, [titles[i] for i in named])
    if aslant:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")


def _draw_strip(axes: Axes, resets: Resets, size: float) -> None:
    """Draw the negative mass of each layer, in the colour of the side that its normals face."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("sides", [TOWARD, "white", AWAY])
    layers: dict[str, ResetLayer] = {layer.name: layer for layer in resets.layers}
    masses = [layers[row].negative_mass if row in layers else None for row in resets.rows]
    column = np.array([[np.nan if mass is None else mass] for mass in masses])
    axes.imshow(column, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for i, (row, mass) in enumerate(zip(resets.rows, masses, strict=True)):
        if mass is not None:
            axes.text(
                0,
                i,
                f"{mass:.2f}",
                size=size,
                color=readable(colors, mass),
                weight="bold" if layers[row].biased else "normal",
                ha="center",
                va="center",
            )
    axes.set_yticks([])
    axes.set_xticks([0], ["negative\nmass"])
    axes.tick_params(length=0, labelcolor=NEUTRAL)
