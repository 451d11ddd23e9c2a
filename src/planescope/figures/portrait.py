"""The portrait of a layer: its hyperplanes in the half-plane of the identity line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from planescope.figures.canvas import AWAY, TOWARD, Width, canvas, fitted, inches, styled
from planescope.files.errors import UsageError
from planescope.hyperplanes.arrays import Floats
from planescope.measurement.record import LayerMeasurement, Measurement, filter_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FARTHEST = 1e100
# Inches around the axes for labels, ticks and legend. They are fixed, so that angles can be true.
LEFT, RIGHT, BOTTOM, TOP = 0.6, 0.12, 0.5, 0.64
# Height of the axes over their width: what it should be, and the most it may be.
ASPECT, STEEPEST = 0.5, 1.0
# Greys of the positive orthant: regions that lie in it, and that it reaches into.
INSIDE, PARTLY = "#D2D2D2", "#F0F0F0"


@styled
def portrait(measurement: Measurement, layer: str, /, *, width: Width = "column") -> Figure:
    """Draw the hyperplanes of a layer, each at its angle and its crossing.

    A normal is ``w/||w|| = c e + sqrt(1 - c^2) u`` with e along (1, ..., 1) and u at a right angle
    to it. In the half-plane that e and u span, with x along the identity line and y >= 0 the
    distance from it, hyperplane i is the half-line ``c_i x + sqrt(1 - c_i^2) y + s_i = 0``, which
    leaves the line at ``x = t_i sqrt(d)``. Its active side is above it. On the identity line itself
    that is the far side where pi > 0, and the near side where pi < 0: there the triangles point.

    The positive orthant fills the dark cone and lies within the light one.

    Parameters
    ----------
    measurement : Measurement
    layer : str
        Name of a measured layer.
    width : "column", "page" or inches

    Raises
    ------
    UsageError
        If no measured layer has that name, or `width` is invalid.
    NoLayersError
        If the measurement was loaded from a file, which holds no filters.
    """
    chosen = _layer_named(measurement, layer)
    across = inches(width)
    height = portrait_height(across)
    figure = canvas(width, height, layout=None)
    portrait_panel(figure, across, height, measurement, chosen)
    return figure


def portrait_height(width: float, aspect: float = ASPECT) -> float:
    """Return the inches that a portrait needs to be so wide, with its labels."""
    return aspect * (width - LEFT - RIGHT) + BOTTOM + TOP


def _layer_named(measurement: Measurement, name: str) -> LayerMeasurement:
    layers = {layer.name: layer for layer in measurement.layers}
    if name in layers:
        return layers[name]
    near = difflib.get_close_matches(name, layers, n=3, cutoff=0.0)
    raise UsageError(
        f"{measurement.source.path}: no layer {name!r} was measured; near it are {', '.join(near)}"
    )


def portrait_panel(
    figure: Figure | SubFigure,
    width: float,
    height: float,
    measurement: Measurement,
    layer: LayerMeasurement,
) -> Axes:
    """Draw the portrait of a layer into a figure of some inches, at its top."""
    values = filter_values(measurement, layer)
    crossing = values.crossing * math.sqrt(layer.fan_in)
    # NaN, where there is no crossing, is not below; nor is what float64 cannot tell from parallel.
    drawn = values.usable & values.sided & (np.abs(crossing) < FARTHEST)
    crossing, cosine, offset = crossing[drawn], values.cosine[drawn], values.offset[drawn]
    low, high = seen_range(crossing)
    across = width - LEFT - RIGHT
    up = min(height - BOTTOM - TOP, STEEPEST * across)
    axes = figure.add_axes(
        (LEFT / width, (height - TOP - up) / height, across / width, up / height)
    )
    top, stretch = seen_height(cosine, offset, low, high, up / across)
    seen = (crossing >= low) & (crossing <= high)
    segments = half_lines(cosine, offset, low, high, top)
    alpha = min(1.0, max(0.12, 5.0 / math.sqrt(max(len(cosine), 1))))
    for name, side, color, marker in (
        ("π > 0", cosine > 0, TOWARD, ">"),
        ("π < 0", cosine < 0, AWAY, "<"),
    ):
        label = f"{name} ({np.count_nonzero(side)})"
        _draw_side(axes, segments[side], crossing[side & seen], color, marker, alpha, label)
    _draw_orthant(axes, layer.fan_in, high)
    _legend(axes, f"{fitted(layer.name, across)}\nN = {layer.filters}, d = {layer.fan_in}")
    axes.set(xlim=(low, high), ylim=(0, top), ylabel="distance from the line")
    counts = {
        "cross outside": int(np.count_nonzero(~seen)),
        "parallel to the line": int(np.count_nonzero(values.usable)) - len(cosine),
        "degenerate": layer.degenerate,
        "non-finite": layer.non_finite,
    }
    axes.set_xlabel(f"t √d, along the identity line\n{_caption(counts, stretch)}".rstrip())
    axes.locator_params(nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.3g}")
    return axes


def _caption(counts: Mapping[str, int], stretch: float) -> str:
    """Return notes beside the picture, possibly none."""
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if stretch > 1.0:
        parts.append(f"heights × {stretch:.2g}")
    return ", ".join(parts)


def half_lines(cosine: Floats, offset: Floats, low: float, high: float, top: float, /) -> Floats:
    """Clip each half-line to x between low and high, y between 0 and top.

    Parameters
    ----------
    cosine, offset : array, shape (filters,)
        c_i, not 0, and s_i.

    Returns
    -------
    array, shape (filters, 2, 2)
        Both ends as (x, y), that at the crossing first; NaN where nothing is seen.
    """
    rise = np.sqrt(np.maximum(0.0, 1.0 - np.square(cosine)))

    def height(x: Floats) -> Floats:
        # Infinite, or NaN at the crossing, where the half-line is vertical.
        with np.errstate(divide="ignore", invalid="ignore"):
            return -(cosine * x + offset) / rise

    crossing = -offset / cosine
    begin = np.clip(crossing, low, high)
    side = np.where(cosine > 0, low, high)  # toward which it leans
    y_begin = np.where(begin == crossing, 0.0, height(begin))
    through_top = ~(height(side) <= top)
    end = np.where(through_top, crossing - rise * top / cosine, side)
    y_end = np.where(through_top, top, height(side))
    lines = np.stack([np.stack([begin, y_begin], -1), np.stack([end, y_end], -1)], axis=1)
    seen = (y_begin >= 0.0) & (y_begin < top) & (y_end > 0.0)
    return np.where(seen[:, None, None], lines, np.nan)


def seen_range(crossing: Floats) -> tuple[float, float]:
    """Range of x that shows the origin and most crossings: a few may lie very far away."""
    reach = 3.0 * float(np.median(np.abs(crossing))) if len(crossing) else 0.0
    if reach < 1.0 / FARTHEST:
        return -1.0, 1.0
    low = min(0.0, max(float(crossing.min()), -reach))
    high = max(0.0, min(float(crossing.max()), reach))
    margin = 0.25 * (high - low)
    return low - margin, high + margin


def seen_height(
    cosine: Floats, offset: Floats, low: float, high: float, aspect: float
) -> tuple[float, float]:
    """Range of y, and by how much heights are stretched: half-lines may all be almost level."""
    true = aspect * (high - low)
    if not len(cosine):
        return true, 1.0
    ends = half_lines(cosine, offset, low, high, true)[:, 1, 1]
    top = min(true, 1.15 * float(np.nanquantile(ends, 0.95)))
    # Little is gained by a little, and true angles are lost.
    return (top, true / top) if 0.0 < top < 0.6 * true else (true, 1.0)


def _draw_orthant(axes: Axes, fan_in: int, high: float) -> None:
    """Draw the cones about the identity line.

    One inside the positive orthant, one that holds it.
    """
    slope = math.sqrt(max(fan_in - 1, 0))
    cones = [(slope, PARTLY, "partly in it")]
    if slope:
        cones.insert(0, (1.0 / slope, INSIDE, "in the orthant"))
    for i, (rise, color, label) in enumerate(cones):
        axes.fill_between(
            [0, high], [0, high * rise], color=color, linewidth=0, label=label, zorder=1 - i
        )


def _draw_side(
    axes: Axes,
    segments: Floats,
    crossing: Floats,
    color: str,
    marker: str,
    alpha: float,
    label: str,
) -> None:
    """Draw half-lines that face one way, and a triangle at each crossing toward the active side."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(list(segments), colors=color, linewidths=0.8, alpha=alpha))
    axes.plot(
        crossing,
        0.0 * crossing,
        linestyle="",
        marker=marker,
        color=color,
        alpha=alpha,
        markeredgewidth=0,
        label=label,
        clip_on=False,
        in_layout=False,  # where there are none, they would count as lying at the figure's corner
        zorder=3,
    )


def _legend(axes: Axes, title: str) -> None:
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, title=title, alignment="left"
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)  # that of many lines is too faint for one
