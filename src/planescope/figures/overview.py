"""One page that says what was found in a network."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from planescope.figures.canvas import Width, canvas, fitted, inches, styled
from planescope.figures.layers import (
    TALLEST,
    legend,
    mark_stages,
    mass_panel,
    name_rows,
    ridge_panel,
)
from planescope.figures.portrait import ASPECT, portrait_height, portrait_panel
from planescope.hyperplanes.layer import View
from planescope.measurement.record import LayerMeasurement, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

PITCH = 0.19
# A figure this wide with no more rows than these has its portrait at the side, not below.
WIDE, SHORT = 6.0, 26
# The share of a wide figure that the portrait takes; and the least height of such a figure.
SIDE, LOWEST = 0.42, 2.6
# Below, the most inches that the half-plane is high.
TALLEST_PORTRAIT = 1.6
# Legend, ticks and title of the rows.
FRAME = 0.95


@styled
def overview(measurement: Measurement, /, *, width: Width = "page") -> Figure:
    """Draw negative masses, distributions of cosines, and the portrait of the most biased layer.

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
    across, rows = inches(width), len(measurement.layers) + 1
    if across >= WIDE and rows <= SHORT:
        below = height = max(LOWEST, rows * PITCH + FRAME)
        sides = ((1 - SIDE) * across, SIDE * across)
        figure = canvas(width, height)
        parts: Any = figure.subfigures(1, 2, width_ratios=sides)
        pitch = PITCH
    else:
        below = portrait_height(across, min(ASPECT, TALLEST_PORTRAIT / across))
        pitch = min(PITCH, (TALLEST - below) / rows)
        sides = (across, across)
        tall = rows * pitch + FRAME
        figure = canvas(width, tall + below)
        parts = figure.subfigures(2, 1, height_ratios=[tall, below])
    _draw_rows(parts[0], measurement, sides[0], pitch)
    axes = portrait_panel(parts[1], sides[1], below, measurement, most_biased(measurement))
    _letter(axes, "c")
    return figure


def most_biased(measurement: Measurement) -> LayerMeasurement:
    """Return the layer whose normals agree most, among the biased ones if there are any."""
    return max(
        measurement.layers,
        key=lambda layer: (bool(layer.biased), layer.agreement or 0.0, layer.filters),
    )


def _draw_rows(figure: SubFigure, measurement: Measurement, width: float, pitch: float) -> None:
    """Draw the masses and cosines side by side; the names of the layers stand once."""
    layers = measurement.layers
    masses, ridges = figure.subplots(1, 2)
    mass_panel(masses, measurement)
    ridge_panel(ridges, measurement, layers)
    for axes in (masses, ridges):
        name_rows(axes, layers, pitch, pool=True)
    ridges.set_yticks([])
    mark_stages(ridges, layers, pitch)
    legend(figure, width, _title(measurement, width))
    _letter(masses, "a")
    _letter(ridges, "b")


def _letter(axes: Axes, letter: str) -> None:
    axes.annotate(
        letter,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-10, 4),
        textcoords="offset points",
        weight="bold",
        size=8,
    )


def _title(measurement: Measurement, width: float) -> str:
    source, network = PurePath(measurement.source.path), measurement.network
    view = ", effective view" if measurement.view is View.EFFECTIVE else ""
    found = f": {network.biased_layers} of {network.layers} layers biased{view}"
    return fitted(source.name, width, found)
