"""The theory, shown: the matrix of a convolution, and where the hyperplanes of its rows lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planescope.figures.canvas import AWAY, NEUTRAL, TOWARD, Width, canvas, inches, styled
from planescope.hyperplanes import geometry
from planescope.hyperplanes.arrays import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# The example: two 3x3 filters, one that faces the positive orthant and one that faces away, on a
# 5x5 input. No part of a kernel that the border leaves sums to 0, so that each row has a crossing.
WEIGHT = (
    (((2.0, -1.0, 3.0), (1.0, 4.0, -2.0), (1.0, 2.0, -2.0)),),
    (((-1.0, 1.0, -3.0), (-2.0, -4.0, 1.0), (2.0, -1.0, 1.0)),),
)
BIAS = (-3.0, 4.0)
INPUT = (1, 5, 5)
TWO_ABREAST = 5.0


@styled
def theory(*, width: Width = "page") -> Figure:
    """Draw why one number a filter tells how all of its hyperplanes face the positive orthant.

    The whole matrix of a small convolution, and beside each row the angle between its normal and
    the identity line, and where its hyperplane crosses that line. With circular padding all rows
    of a filter agree. With zero padding those agree whose receptive field lies inside the input;
    border rows (hollow), which lose taps, differ.

    Parameters
    ----------
    width : "column", "page" or inches
        A narrow figure has the two matrices one above the other.

    Raises
    ------
    UsageError
        If `width` is invalid.
    """
    abreast = 2 if inches(width) >= TWO_ABREAST else 1
    figure = canvas(width, 6.8 / abreast)
    panels = figure.subplots(
        2 // abreast, 3 * abreast, sharey=True, width_ratios=[1.6, 1, 1] * abreast
    ).reshape(2, 3)
    weight = np.asarray(WEIGHT)
    inside = geometry.interior_rows(weight, INPUT, padding=1)
    circular = geometry.toeplitz(weight, INPUT, padding=1, padding_mode="circular").toarray()
    zeros = geometry.toeplitz(weight, INPUT, padding=1).toarray()
    _block(panels[0], circular, np.ones_like(inside), "a  circular padding")
    _block(panels[1], zeros, inside, "b  zero padding (hollow: border rows)")
    for column in (1, 2):
        panels[0, column].sharex(panels[1, column])
    return figure


def _block(
    panels: NDArray[np.object_], matrix: Floats, inside: NDArray[np.bool_], title: str
) -> None:
    """Draw a matrix, and the angles and crossings of its rows."""
    image, angles, crossings = panels
    positions, inputs = len(matrix) // len(BIAS), matrix.shape[1]
    largest = np.abs(matrix).max()
    image.imshow(matrix, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
    image.set(title=title, xlabel=f"{inputs} inputs", xticks=[])
    image.set_yticks([positions * 0.5 - 0.5, positions * 1.5 - 0.5], ["filter 1", "filter 2"])
    image.tick_params(axis="y", length=0, rotation=90)
    angle = np.degrees(np.arccos(geometry.cosine(matrix)))
    crossing = geometry.crossing(geometry.projection(matrix), np.repeat(BIAS, positions))
    _points(angles, angle, inside, "angle, degrees")
    _points(crossings, crossing, inside, "crossing t")
    for axes in panels:
        axes.axhline(positions - 0.5, color=NEUTRAL, linewidth=0.6)


def _points(axes: Axes, values: Floats, inside: NDArray[np.bool_], label: str) -> None:
    """Draw a point a row, in the colour of its filter; hollow where the row lies at the border."""
    rows = np.arange(len(values))
    first = rows < len(rows) // 2
    for color, own in ((TOWARD, first), (AWAY, ~first)):
        for chosen, face in ((own & inside, color), (own & ~inside, "white")):
            axes.plot(
                values[chosen],
                rows[chosen],
                linestyle="",
                marker="o",
                markersize=2.6,
                markeredgewidth=0.7,
                color=color,
                markerfacecolor=face,
            )
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
